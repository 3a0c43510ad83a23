# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two deblenders on one image: matching, residuals, blendedness, truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lsst.meas.maskrcnn.compare.comparison import (
    ComparisonSettings,
    _blend_measures,
    _matched_iou,
    _reduced_chi2,
    compare_fields,
    compare_with_truth,
    match_positions,
)
from lsst.meas.maskrcnn.compare.deblender import DeblendedField, FieldImages, PixelModels, make_parents
from lsst.meas.maskrcnn.compare.summary import DIFFERENCE, comparison_values, truth_tables, truth_values
from lsst.meas.maskrcnn.images.classes import GALAXY, STAR
from lsst.meas.maskrcnn.metrics.spans import SpanMasks
from lsst.meas.maskrcnn.report.deblender_plots import (
    _cut_disagreements,
    plot_disagreements,
    plot_flux_pairs,
    plot_residual_panels,
)

ORIGIN = (8000, 12000)
SHAPE = (60, 90)


def boxes(corners: Sequence[tuple[int, int, int, int]]) -> SpanMasks:
    """Rectangles (y0, x0, height, width)."""
    return SpanMasks.from_masks(
        [np.ones((h, w), dtype=bool) for _, _, h, w in corners],
        np.array([(y + ORIGIN[0], x + ORIGIN[1]) for y, x, _, _ in corners], dtype=np.int64).reshape(-1, 2),
    )


def make_field(
    name: str,
    corners: Sequence[tuple[int, int, int, int]],
    levels: Sequence[float],
    parents: Sequence[int],
    *,
    templates: bool = False,
    labels: Sequence[int] | None = None,
    positions: Sequence[tuple[float, float]] | None = None,
) -> DeblendedField:
    """Flat sources in rectangles; a parent of 0 is none."""
    spans = boxes(corners)
    ids = np.arange(1, len(corners) + 1, dtype=np.int64)
    own = np.where(np.array(parents, dtype=np.int64) == 0, ids, np.array(parents, dtype=np.int64))
    models = {
        band: PixelModels(
            spans, np.repeat(np.array(levels, dtype=np.float32) * factor, spans.areas).astype(np.float32)
        )
        for band, factor in (("g", 1.0), ("r", 2.0))
    }
    table, parent_spans = make_parents(ids, own, spans)
    middle = spans.centroids[:, ::-1] if positions is None else np.array(positions) + ORIGIN[::-1]
    return DeblendedField(
        name,
        ids,
        own,
        middle[:, 0],
        middle[:, 1],
        np.array(labels if labels is not None else [GALAXY] * len(ids)),
        spans,
        {band: one.sums for band, one in models.items()},
        table,
        parent_spans,
        models,
        models if templates else {},
    )


def make_images(*fields: DeblendedField, noise: float = 1.0) -> FieldImages:
    image = {band: np.zeros(SHAPE) for band in ("g", "r")}
    for field in fields:
        for band in image:
            image[band] += field.models[band].paint(SHAPE, ORIGIN)
    variance = {band: np.full(SHAPE, noise**2) for band in image}
    return FieldImages(image, variance, np.ones(SHAPE, dtype=bool), ORIGIN)


def test_paint_masks() -> None:
    """A mask at the edge of the image is cut there."""
    images = make_images()
    pixels = images.paint_masks(boxes([(2, 3, 2, 3), (59, 88, 5, 5)]))
    assert np.argwhere(pixels).tolist() == [[y, x] for y in (2, 3) for x in (3, 4, 5)] + [[59, 88], [59, 89]]


def test_pixel_models() -> None:
    spans = boxes([(2, 3, 2, 3), (2, 4, 2, 3), (0, 0, 0, 0)])
    models = PixelModels(spans, np.repeat([1.0, 10.0], 6).astype(np.float32))
    image = models.paint(SHAPE, ORIGIN)
    assert image[2].tolist()[3:7] == [1.0, 11.0, 11.0, 10.0]
    assert models.sums[:2].tolist() == [6.0, 60.0] and np.isnan(models.sums[2])
    other = PixelModels(boxes([(9, 9, 1, 1)] * 3), np.full(3, 7.0, dtype=np.float32))
    assert models.filled(other).sums.tolist() == [6.0, 60.0, 7.0]
    with pytest.raises(ValueError, match="hold 12 pixels"):
        PixelModels(spans, np.zeros(11, dtype=np.float32))


def test_make_parents() -> None:
    spans = boxes([(2, 3, 2, 3), (2, 4, 3, 4), (20, 30, 2, 2)])
    ids = np.array([1, 2, 3])
    parents, footprints = make_parents(ids, np.array([9, 9, 3]), spans)
    assert parents["id"].tolist() == [3, 9]
    assert parents["n_child"].tolist() == [0, 2]
    # 6 + 12 pixels that share 4.
    assert footprints.areas.tolist() == [4, 14]


def test_field_refuses_lost_parents() -> None:
    field = make_field("a", [(2, 3, 2, 3)], [1.0], [0])
    with pytest.raises(ValueError, match="1 of 1 sources have a parent that is not among"):
        DeblendedField(
            "a", field.ids, np.array([77]), field.x, field.y, field.labels, field.spans, {}, field.parents,
            field.parent_spans,
        )  # fmt: skip


def test_match_positions_takes_the_closest_first() -> None:
    first = [(0.0, 0.0), (2.0, 0.0), (np.nan, 0.0), (50.0, 5.0)]
    second = [(1.5, 0.0), (-1.0, 0.0), (50.0, 9.0)]
    match, separation = match_positions(first, second, 3.0)
    assert match.tolist() == [1, 0, -1, -1]
    np.testing.assert_allclose(separation, [1.0, 0.5, np.nan, np.nan])


def test_matched_iou() -> None:
    first, second = boxes([(0, 0, 4, 4), (10, 0, 4, 4), (20, 0, 4, 4)]), boxes([(0, 2, 4, 4), (30, 0, 2, 2)])
    iou = _matched_iou(first, second, np.array([0, 1, -1]))
    assert iou[0] == pytest.approx(8 / 24)
    assert iou[1] == 0.0 and np.isnan(iou[2])


def test_blend_measures() -> None:
    """Two flat sources of 10 pixels that share 5: worked out by hand."""
    spans = boxes([(0, 0, 1, 10), (0, 5, 1, 10), (0, 8, 1, 10)])
    values = np.repeat([1.0, 3.0, 5.0], 10).astype(np.float32)
    # The third is of another parent.
    blendedness, overlap, fraction = _blend_measures(PixelModels(spans, values), spans, np.array([0, 0, 1]))
    np.testing.assert_allclose(blendedness, [1 - 10 / (5 + 20), 1 - 90 / (45 + 60), 0.0])
    np.testing.assert_allclose(overlap, [15.0, 5.0, 0.0])
    np.testing.assert_allclose(fraction, [1.5, 5 / 30, 0.0], rtol=1e-6)
    # A mask that is smaller than the model holds less of the neighbour.
    mask = boxes([(0, 0, 1, 6), (0, 5, 1, 10), (0, 8, 1, 10)])
    assert _blend_measures(PixelModels(spans, values), mask, np.array([0, 0, 1]))[1][0] == 3.0


def test_reduced_chi2() -> None:
    field = make_field("a", [(2, 3, 2, 5), (2, 8, 2, 5)], [10.0, 20.0], [7, 7], templates=True)
    images = make_images(field, noise=2.0)
    images.images["r"][2, 3] += 6.0  # one pixel of 20, 3 sigma off
    chi2 = _reduced_chi2(field, field.parent_spans, images, images.usable)
    assert chi2["g"].tolist() == [0.0]
    assert chi2["r"][0] == pytest.approx(9.0 / 20.0)
    # A bad pixel does not count.
    images.usable[2, 3] = False
    assert _reduced_chi2(field, field.parent_spans, images, images.usable)["r"].tolist() == [0.0]


def test_compare_fields() -> None:
    """A blend of two that the second took for one, a source that only the first has, one that both have."""
    first = make_field(
        "ours", [(2, 3, 6, 6), (2, 9, 6, 6), (30, 40, 4, 4), (50, 70, 5, 5)], [4.0, 2.0, 1.0, 3.0],
        [100, 100, 0, 0], labels=[STAR, GALAXY, GALAXY, STAR],
    )  # fmt: skip
    second = make_field(
        "other", [(2, 3, 6, 12), (50, 70, 5, 5)], [3.0, 6.0], [0, 0], positions=[(5.6, 4.4), (72, 52)]
    )
    images = make_images(first)
    result = compare_fields(first, second, images, ComparisonSettings(match_radius=2.0, friend_radius=8.0))
    assert result.match.tolist() == [0, -1, -1, 1]
    sources, table = result.sources, result.blends
    assert sources["outcome"].tolist() == ["matched", "only ours", "only ours", "matched"]
    assert sources["id_other"].tolist() == [1, -1, -1, 2]
    assert sources["class_ours"].tolist() == ["star", "galaxy", "galaxy", "star"]
    assert sources["flux_r_ours"][0] == 36 * 8.0
    assert sources["flux_ratio_r"][[0, 3]].tolist() == [pytest.approx(288 / 432), 0.5]
    assert np.isnan(sources["flux_ratio_r"][1])
    assert sources["color_difference_g_r"][0] == pytest.approx(0.0, abs=1e-12)
    # 16 pixels of flux 2 with a noise of 1 each.
    assert sources["snr_ours"][2] == pytest.approx(32 / 4)
    assert sources["significance"][2] == pytest.approx(8.0)
    # One to many: the second's source has both of the first's near it.
    assert sources["n_friends_ours"][:2].tolist() == [2, 2]
    assert sources["n_friends_other"][:2].tolist() == [1, 1]
    assert table["n_children_ours"].tolist() == [1, 1, 2]
    assert table["n_children_other"].tolist() == [0, 1, 1]
    assert table["n_matched"].tolist() == [0, 1, 1]
    blend = sources["group"][0]
    assert sources["group"][1] == blend != sources["group"][2]
    assert table["x1"][blend] - table["x0"][blend] == 12 and table["x0"][blend] == ORIGIN[1] + 3
    # All light of the first's is given away there; what only it has, the second gives to no one.
    assert table["unassigned_r_ours"][blend] == pytest.approx(0.0)
    assert table["unassigned_r_other"][sources["group"][2]] == 1.0
    # Neither has templates, so that there are no residuals.
    assert np.isnan(table["chi2_ours"]).all()
    values = {(one.name, one.definition): one.value for one in comparison_values(result)}
    assert values["matched", ""] == 2.0 and values["only_here", "ours"] == 2.0
    assert values["blends_split_more", ""] == 2.0 and values["blends_split_less", ""] == 0.0


def test_residuals_are_of_the_same_pixels() -> None:
    """What the one has no idea of counts for neither."""
    first = make_field("a", [(2, 3, 4, 8)], [5.0], [0], templates=True)
    second = make_field("b", [(2, 3, 4, 4), (2, 7, 4, 4)], [5.0, 5.0], [9, 9], templates=True)
    images = make_images(first)
    images.images["r"][3, 4] += 4.0
    images.images["r"][3, 9] += 8.0
    table = compare_fields(first, second, images).blends
    np.testing.assert_allclose(table["chi2_r_a"], (16.0 + 64.0) / 32)
    np.testing.assert_allclose(table["chi2_r_b"], table["chi2_r_a"])
    bare = PixelModels(
        SpanMasks.concatenate(
            [second.spans.select([0]), SpanMasks(np.zeros(2, int), *np.zeros((3, 0), int))]
        ),
        second.models["r"].values[: second.spans.areas[0]],
    )
    lacking = DeblendedField(
        "b", second.ids, second.parent_ids, second.x, second.y, second.labels, second.spans, second.flux,
        second.parents, second.parent_spans, second.models, {"r": bare},
    )  # fmt: skip
    table = compare_fields(first, lacking, images).blends
    assert table["chi2_r_a"][0] == table["chi2_r_b"][0] == pytest.approx(16.0 / 16)


def test_no_overlap() -> None:
    """Nothing in common gives counts, and no figures of what both have."""
    first = make_field("a", [(2, 3, 4, 4)], [5.0], [0])
    second = make_field("b", [(40, 70, 4, 4)], [5.0], [0])
    result = compare_fields(first, second, make_images(first, second))
    assert result.sources["outcome"].tolist() == ["only a", "only b"]
    assert not result.matched.any()
    values = {(one.name, one.definition, one.band): one for one in comparison_values(result)}
    assert values["matched", "", ""].value == 0.0
    ratio = values["flux_ratio", "", "r"]
    assert np.isnan(ratio.value) and ratio.n == 0
    for figure in (plot_flux_pairs(result, ["r"]), plot_residual_panels(result, "r")):
        figure.canvas.draw()


def test_nothing_at_all() -> None:
    empty = make_field("a", [], [], [])
    other = make_field("b", [], [], [])
    result = compare_fields(empty, other, make_images())
    assert len(result.sources["group"]) == len(result.blends["group"]) == 0
    assert {one.value for one in comparison_values(result) if one.name == "sources"} == {0.0}
    plot_disagreements(result, make_images(), 3, ("r", "g", "g"), "r").canvas.draw()


def test_same_name_is_refused() -> None:
    field = make_field("a", [], [], [])
    with pytest.raises(ValueError, match="different names"):
        compare_fields(field, field, make_images())


def test_truth() -> None:
    """A perfect deblender against one that misses every second source and loses a tenth of the flux."""
    corners = [(3 + 14 * row, 2 + 11 * column, 6, 6) for row in range(4) for column in range(8)]
    levels = [1.0 + k for k in range(len(corners))]
    truth = make_field("truth", corners, levels, [0] * len(corners))
    good = make_field("good", corners, levels, [0] * len(corners))
    keep = list(range(0, len(corners), 2))
    poor = make_field(
        "poor",
        [*(corners[k] for k in keep), (58, 0, 2, 2)],
        [*(0.9 * levels[k] for k in keep), 1.0],
        [0] * 17,
    )
    result = compare_fields(good, poor, make_images(truth))
    counted = np.ones(len(corners), dtype=bool)
    counted[0] = False
    truth = replace(truth, ignored=~counted)
    result, table = compare_with_truth(result, truth, make_images(truth))
    assert table["found_good"].all() and table["found_poor"].tolist() == [True, False] * 16
    np.testing.assert_allclose(table["flux_residual_r_poor"][keep], -0.1, rtol=1e-5)
    np.testing.assert_array_equal(table["iou_good"], 1.0)
    # An ignored truth is neither hit nor false; the stray one is false.
    assert result.sources["truth_poor"][0] == -2 and result.sources["truth_poor"][-1] == -1
    values = {
        (one.name, one.definition, one.band): one for one in truth_values(table, result, ["r"], n_samples=200)
    }
    assert values["completeness", "good", ""].value == 1.0
    assert values["completeness", "poor", ""].value == pytest.approx(15 / 31)
    gain = values["completeness", DIFFERENCE, ""]
    assert gain.value == pytest.approx(16 / 31)
    # Each blend is one truth: the error is that of a binomial share.
    assert gain.error == pytest.approx(np.sqrt(15 * 16) / 31 / np.sqrt(31), rel=0.2)
    assert values["completeness_p_value", DIFFERENCE, ""].value == pytest.approx(1 / 201)
    assert values["purity", "poor", ""].value == pytest.approx(15 / 16)
    assert values["flux_residual", "good", "r"].value == pytest.approx(0.0, abs=1e-6)
    assert values["flux_residual", DIFFERENCE, "r"].value == pytest.approx(0.1, abs=1e-6)
    assert values["flux_scatter", "poor", "r"].value == pytest.approx(0.0, abs=1e-6)
    tables = truth_tables(table, result.names, "r")
    assert tables["completeness/neighbor_distance/poor"]["total"] == [0.0, 0.0, 31.0, 0.0, 0.0, 0.0]


def test_gallery_is_sorted_by_significance() -> None:
    first = make_field("a", [(2, 3, 4, 4), (30, 40, 4, 4), (30, 60, 4, 4)], [1.0, 9.0, 4.0], [0, 0, 0])
    second = make_field("b", [(30, 60, 4, 4)], [4.0], [0])
    images = make_images(first)
    comparison = compare_fields(first, second, images)
    panels = _cut_disagreements(comparison, images, 5, ("r", "r", "g"), "r")
    # The third they agree on.
    assert len(panels) == 2
    assert [panel.caption.split("\n")[0] for panel in panels] == ["1 / 0 sources"] * 2
    residual_first, residual_second = panels[0].pictures[3:]
    assert residual_first is not None and np.nanmax(np.abs(residual_first)) == 0.0
    assert residual_second is not None and residual_second[16, 16] == 18.0
    assert panels[0].peaks[0].tolist() == [[15.5, 15.5]] and len(panels[0].peaks[1]) == 0
    plot_disagreements(comparison, images, 5, ("r", "r", "g"), "r").canvas.draw()
