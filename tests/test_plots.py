# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plots hold what they were given."""

import base64
import io
import sys

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb

from lsst.meas.maskrcnn.metrics.binned import binned_fraction, binned_statistics, fraction
from lsst.meas.maskrcnn.metrics.binned_figures import BinnedShares, binned_shares, class_shares
from lsst.meas.maskrcnn.metrics.blends import BLEND_DTYPE, BLEND_KINDS
from lsst.meas.maskrcnn.metrics.calibration import reliability
from lsst.meas.maskrcnn.metrics.classification import confusion_matrix, magnitude_rocs, roc_curve
from lsst.meas.maskrcnn.metrics.completeness import CompletenessLimit
from lsst.meas.maskrcnn.metrics.cutouts import BlendCutout, add_models
from lsst.meas.maskrcnn.metrics.evaluation_metrics import EvaluationGallery
from lsst.meas.maskrcnn.metrics.match_table import MatchedSources, make_match_table
from lsst.meas.maskrcnn.report import gallery, model_gallery, plots
from lsst.meas.maskrcnn.report.calibration_figure import plot_calibration
from lsst.meas.maskrcnn.report.plot_style import CLASS_STYLES, OKABE_ITO, curve_style, family_styles

CLASSES = ("all", "star", "galaxy")


@pytest.fixture
def table(rng) -> np.ndarray:
    """Two hundred sources of which the bright are found, and thirty false detections."""
    n, n_false = 200, 30
    mag = rng.uniform(20.0, 26.0, n)
    is_star = rng.random(n) < 0.3
    truth = {
        "id": np.arange(n),
        "x": rng.uniform(0.0, 500.0, n),
        "y": rng.uniform(0.0, 300.0, n),
        "is_star": is_star,
        "mag": mag,
        "snr": 10.0 ** (0.4 * (27.0 - mag)),
        "flux": 10.0 ** (0.4 * (31.4 - mag)),
        "blendedness": rng.random(n),
        "neighbor_distance": np.where(rng.random(n) < 0.1, np.nan, rng.uniform(0.3, 20.0, n)),
    }
    found = np.flatnonzero(rng.random(n) < (26.0 - mag) / 4.0)
    match = np.concatenate([found, np.full(n_false, -1)])
    m = len(match)
    detections = {
        "id": np.arange(m),
        "x": rng.uniform(0.0, 500.0, m),
        "y": rng.uniform(0.0, 300.0, m),
        "is_star": rng.random(m) < 0.3,
        "score": rng.random(m),
        "p_star": rng.random(m),
        "flux": rng.uniform(100.0, 1000.0, m),
    }
    return make_match_table(truth, detections, match)


def line_of(axis, label):
    """The one line whose legend begins so."""
    (line,) = [line for line in axis.lines if str(line.get_label()).startswith(label)]
    return line


def test_no_global_state(table):
    before = dict(matplotlib.rcParams)
    loaded = "matplotlib.pyplot" in sys.modules
    plots.plot_shares(binned_shares(MatchedSources(table, classes=CLASSES))[:1]).canvas.draw()
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_curves_differ_without_colour():
    for styles in (list(CLASS_STYLES.values()), [curve_style("", i) for i in range(6)]):
        assert len({(str(style.line), style.marker) for style in styles}) == len(styles)
        assert len({style.color for style in styles}) == len(styles)
        assert {style.color for style in styles} <= set(OKABE_ITO.values())
    family = family_styles(10)
    # Ever lighter, but never lost on white.
    light = [np.dot(to_rgb(style.color), (0.2126, 0.7152, 0.0722)) for style in family]
    assert np.all(np.diff(light) > 0) and light[-1] < 0.75
    assert len({(style.color, str(style.line)) for style in family}) == 10


def test_precision_recall():
    recall, precision = np.array([0.25, 0.5, 0.75]), np.array([1.0, 0.8, 0.6])
    curves = [
        plots.PrecisionRecallCurve(name, iou, recall, precision - iou / 10, 0.6 - iou / 2)
        for name in ("star", "galaxy")
        for iou in (0.75, 0.5)
    ]
    figure = plots.plot_precision_recall(curves)
    assert [axis.get_title() for axis in figure.axes] == ["star", "galaxy"]
    for axis in figure.axes:
        line = line_of(axis, "0.50")
        np.testing.assert_allclose(line.get_xdata(), [0.0, *recall])
        np.testing.assert_allclose(line.get_ydata(), [0.95, 0.95, 0.75, 0.55])
        assert line.get_drawstyle() == "steps-pre"
        texts = [text.get_text() for text in axis.get_legend().get_texts()]
        assert texts == ["0.50: 0.350", "0.75: 0.225"]
        assert axis.get_xlabel() == "Recall"
    figure.canvas.draw()


def test_fractions_and_their_limits():
    mag = np.repeat([20.5, 21.5, 23.5, 24.5], 10)
    found = np.arange(40) % 10 < np.repeat([10, 8, 6, 2], 10)
    curve = binned_fraction(mag, found, np.arange(20.0, 26.0))
    limit = CompletenessLimit(23.75, 23.6, 23.9)
    families = [
        BinnedShares("completeness", "mag", {"star": curve}, {"star": limit}),
        BinnedShares("completeness", "snr", {"star": curve}),
    ]
    figure = plots.plot_shares(families, band="i")
    left, right = figure.axes
    line = line_of(left, "star")
    assert line.get_label() == "star: 23.75"
    assert left.get_legend().get_title().get_text() == "50 % complete at"
    np.testing.assert_allclose(line.get_ydata(), [1.0, 0.8, np.nan, 0.6, 0.2])
    np.testing.assert_allclose(line.get_xdata(), [20.5, 21.5, 22.5, 23.5, 24.5])
    mark = [one for one in left.lines if one is not line]
    np.testing.assert_allclose(mark[0].get_xdata(), [23.75, 23.75])
    # The band runs between the limits, in two parts around the empty bin.
    (band,) = [part for part in left.collections if isinstance(part, PolyCollection)]
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    assert len(band.get_paths()) == 2
    assert corners[:, 1].min() == pytest.approx(curve.low[-1])
    assert corners[:, 1].max() == pytest.approx(curve.high[0])
    assert (left.get_xlabel(), left.get_ylabel()) == ("True i magnitude (AB)", "Completeness")
    assert right.get_xscale() == "log"
    figure.canvas.draw()


def test_a_single_bin_shows_its_interval():
    curve = binned_fraction(10 * [0.5, 2.5], 10 * [True, False], [0.0, 1.0, 2.0, 3.0])
    axis = plots.plot_shares([BinnedShares("purity", "score", {"all": curve})]).axes[0]
    (bars,) = [part for part in axis.collections if isinstance(part, LineCollection)]
    ends = np.array(bars.get_segments())
    np.testing.assert_allclose(ends[:, 0, 1], curve.low[[0, 2]])
    np.testing.assert_allclose(ends[:, 1, 1], curve.high[[0, 2]])


def test_panels_of_a_table(table):
    families = binned_shares(MatchedSources(table, classes=CLASSES))
    assert [(one.measure, one.column) for one in families] == [
        ("completeness", "mag"),
        ("completeness", "snr"),
        ("completeness", "blendedness"),
        ("completeness", "neighbor_distance"),
        ("purity", "score"),
        ("purity", "mag_detected"),
    ]
    for one in families[:3]:
        assert one.curves["all"].total.sum() == 200
        assert one.curves["star"].total.sum() + one.curves["galaxy"].total.sum() == 200
    assert families[4].curves["all"].hits.sum() == np.count_nonzero(table["outcome"] == "matched")
    assert 22.0 < families[0].limits["all"].value < 26.0
    without = table.copy()
    without["snr"] = np.nan
    assert len(binned_shares(MatchedSources(without, classes=("all",)))) == 5
    figure = plots.plot_shares(families)
    assert len(figure.axes) == 6
    # Detections of a lower score are left out, of completeness and of purity.
    strict = binned_shares(MatchedSources(table, classes=("all",), min_score=0.5))
    assert strict[0].curves["all"].hits.sum() < families[0].curves["all"].hits.sum()
    assert strict[-1].curves["all"].total.sum() == np.count_nonzero(table["score"] >= 0.5)


def test_confusion(table):
    counts, shares = confusion_matrix(MatchedSources(table)), class_shares(MatchedSources(table))
    figure = plots.plot_confusion(counts, shares, band="r")
    left, right, lower = figure.axes
    share = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(left.images[0].get_array(), share)
    texts = [text.get_text() for text in left.texts]
    assert texts == [f"{100 * s:.1f} %\n({n})" for s, n in zip(share.ravel(), counts.ravel())]
    for name, curve in shares.curves.items():
        np.testing.assert_allclose(line_of(right, name).get_ydata(), curve.fraction)
    np.testing.assert_array_equal(lower.patches[0].get_data().values, shares.curves["star"].total)
    assert lower.get_xlabel() == "True r magnitude (AB)"
    figure.canvas.draw()


def test_roc(table):
    curves = {"all": roc_curve([0.9, 0.6, 0.6, 0.1], [True, True, False, False]), "none": roc_curve([], [])}
    axis = plots.plot_roc(curves).axes[0]
    line = line_of(axis, "all")
    assert line.get_label() == "all: area 0.875"
    np.testing.assert_allclose(line.get_xdata(), curves["all"].false_positive)
    np.testing.assert_allclose(line.get_ydata(), curves["all"].true_positive)
    assert line_of(axis, "none").get_label() == "none: one class only"
    assert len(plots.plot_roc(magnitude_rocs(MatchedSources(table))).axes[0].lines) == 5


def test_residuals_as_points(rng):
    x, y = rng.random(100), rng.normal(0.0, 0.1, 100)
    y[:3] = [np.nan, 5.0, -5.0]
    binned = binned_statistics(x, y, [0.0, 0.5, 1.0])
    figure = plots.plot_residuals([plots.ResidualPanel("stars", x, y, binned)])
    (axis,) = figure.axes
    points = axis.lines[0]
    low, high = axis.get_ylim()
    inside = y[(y > low) & (y < high)]
    assert 85 <= len(inside) < 98
    np.testing.assert_allclose(np.sort(points.get_ydata()), np.sort(inside))
    medians = axis.containers[0].lines[0]
    np.testing.assert_allclose(medians.get_xdata(), binned.center)
    np.testing.assert_allclose(medians.get_ydata(), binned.median)
    bars = np.array(axis.containers[0].lines[2][0].get_segments())
    np.testing.assert_allclose(bars[:, 1, 1] - bars[:, 0, 1], 2.0 * binned.scatter)
    assert axis.texts[0].get_text() == f"99 sources, {99 - len(inside)} beyond the axis"
    assert axis.get_title() == "stars"


def test_residuals_as_shading(rng):
    x, y = rng.uniform(0.0, 1.0, 2000), rng.uniform(-0.1, 0.1, 2000)
    panel = plots.ResidualPanel("all", x, y, binned_statistics(x, y, np.linspace(0.0, 1.0, 6)))
    figure = plots.plot_residuals([panel, panel], x_label="Blendedness")
    for axis in figure.axes:
        assert axis.collections[0].get_array().sum() == 2000
    assert figure.axes[0].get_ylabel() == "Detected flux / true flux - 1"
    figure.canvas.draw()


def test_few_sources_have_no_scatter():
    x, y = np.array([0.1, 0.2, *np.linspace(0.6, 0.9, 9)]), np.linspace(-0.1, 0.1, 11)
    binned = binned_statistics(x, y, [0.0, 0.5, 1.0])
    axis = plots.plot_residuals([plots.ResidualPanel("", x, y, binned)]).axes[0]
    np.testing.assert_allclose(line_of(axis, "fewer than 5").get_ydata(), binned.median[:1])
    bars = axis.containers[0].lines[2][0].get_segments()
    drawn = [np.ma.filled(np.ma.masked_invalid(bar), np.nan) for bar in bars]
    assert not any(np.isfinite(bar).all() and len(bar) == 2 for bar in drawn[:1])
    np.testing.assert_allclose(np.diff(drawn[1][:, 1]), 2.0 * binned.scatter[1])


def test_calibration(rng):
    probability = rng.random(500)
    result = reliability(probability, rng.random(500) < probability)
    figure = plot_calibration({"star": result}, x_label="p(star)", y_label="Share of stars")
    top, bottom = figure.axes
    line = line_of(top, "star")
    assert line.get_label() == f"star: ECE {result.expected_error:.3f}"
    np.testing.assert_allclose(line.get_xdata(), result.mean_probability)
    np.testing.assert_allclose(line.get_ydata(), result.bins.fraction)
    np.testing.assert_array_equal(bottom.patches[0].get_data().values, result.bins.total)
    assert bottom.get_xlabel() == "p(star)" and top.get_ylabel() == "Share of stars"
    figure.canvas.draw()


def test_blends():
    shares = {kind: fraction(hits, 2) for kind, hits in zip(BLEND_KINDS, (1, 1, 0, 0, 0))}
    figure = plots.plot_blends({"ours": shares, "theirs": shares})
    (axis,) = figure.axes
    heights = [bar.get_height() for bar in axis.containers[1]]
    assert heights == [0.5, 0.5, 0.0, 0.0, 0.0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "ours (2 blends)",
        "theirs (2 blends)",
    ]
    figure.canvas.draw()


def test_empty_input_draws(tmp_path, table):
    empty = table[:0]
    nothing = binned_statistics([], [], [0.0, 0.5])
    figures = {
        "shares": plots.plot_shares(binned_shares(MatchedSources(empty, classes=CLASSES))),
        "confusion": plots.plot_confusion(
            confusion_matrix(MatchedSources(empty)), class_shares(MatchedSources(empty))
        ),
        "curves": plots.plot_precision_recall([]),
        "roc": plots.plot_roc({}),
        "residuals": plots.plot_residuals([plots.ResidualPanel("", np.zeros(0), np.zeros(0), nothing)]),
        "calibration": plot_calibration({"all": reliability([], [])}, x_label="x", y_label="y"),
        "blends": plots.plot_blends({"none": {kind: fraction(0, 0) for kind in BLEND_KINDS}}),
        "gallery": model_gallery.plot_gallery(EvaluationGallery()),
    }
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=50)
        assert (tmp_path / f"{name}.png").stat().st_size > 500


def test_models_where_a_band_is_missing():
    """They are not known where the image is not, nor in a band without a flux."""
    image = np.zeros((3, 8, 8))
    image[0, :, 4:], image[:, :2] = np.nan, np.nan
    stamp = np.ones((3, 4, 4))
    stamp[0] = np.nan
    drawn = add_models(
        BlendCutout(image, None, None, (10, 20)), np.ones((8, 8)), {1: (22, 12, stamp)}, {1: "one"}
    )
    label, child = drawn.children[0]
    assert label == "one" and np.isnan(child[0, 2:6, 2:6]).all() and (child[1:, 2:6, 2:6] == 1.0).all()
    assert not child[:, :2].any() and not child[:, :, 6:].any()
    assert drawn.model is not None and np.isnan(drawn.model[0, 2:, 4:]).all()
    assert np.isfinite(drawn.model[:, :2]).all() and np.isfinite(drawn.model[:, :, :4]).all()
    assert drawn.model[1, 3].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def make_cutout(residual: bool = True) -> BlendCutout:
    """Two truths that overlap, one of which was found; the two lowest rows are off the image."""
    image = np.zeros((3, 40, 40), dtype=np.float32)
    image[:, :2] = np.nan
    image[:, 5:15, 8:25] = 100.0
    masks = [np.ones((8, 9), dtype=bool), np.ones((6, 7), dtype=bool)]
    origins = np.array([[5, 8], [8, 14]])
    left_over = np.where(np.isfinite(image[0]), np.linspace(-20.0, 20.0, 40), np.nan)
    return BlendCutout(
        image=image,
        noise=None,
        residual=left_over if residual else None,
        corner=(100, 200),
        truth_masks=masks,
        truth_origins=origins,
        truth_is_star=np.array([False, True]),
        detection_masks=masks[:1],
        detection_origins=origins[:1],
        detection_is_star=np.array([False]),
        caption="2 true, 1 found",
    )


def read_png(text: str) -> np.ndarray:
    """A stored picture, its first row at the bottom."""
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(text)), format="png")[::-1, :, :3]


def test_a_blend_is_drawn_where_it_is():
    entry = gallery.draw_entry(make_cutout(), kind="best", patch=(3, 4), quality=0.5)
    assert (entry.size, entry.x0, entry.y0, entry.tract, entry.patch) == (40, 100, 200, 3, 4)
    picture = read_png(entry.image)
    assert picture[6:14, 9:24].min() > picture[20:, 30:].max()
    assert np.ptp(picture[:2]) == 0.0 and picture[0, 0, 0] == pytest.approx(40 / 255)
    residual = read_png(entry.residual)
    # Blue where too much was taken away, red where something is left, grey off the image.
    assert (residual[5:, 0, 2] > residual[5:, 0, 0]).all() and (
        residual[5:, -1, 0] > residual[5:, -1, 2]
    ).all()
    np.testing.assert_allclose(residual[:2], 40 / 255, atol=0.01)
    assert entry.truth_is_star == [False, True] and len(entry.detection_outlines) == 1
    line = np.array(entry.truth_outlines[1][0])
    np.testing.assert_allclose(line.min(axis=0), [14 - 0.5, 8 - 0.5])
    np.testing.assert_allclose(line.max(axis=0), [14 + 6.5, 8 + 5.5])
    again = EvaluationGallery.model_validate_json(EvaluationGallery(entries=[entry]).model_dump_json())
    assert again.entries == [entry]
    assert gallery.draw_entry(make_cutout(False), kind="best", patch=(3, 4), quality=0.5).residual == ""


def test_gallery_keeps_the_best_and_the_worst():
    chosen = gallery.BlendGallery(2, ["z", "r", "g"])
    cut = []

    def take(group: int) -> BlendCutout:
        cut.append(group)
        return make_cutout(False)

    def groups(n_truth: list[int], quality: list[float], n_detection: list[int]) -> np.ndarray:
        rows = np.zeros(len(n_truth), BLEND_DTYPE)
        rows["n_truth"], rows["quality"], rows["n_detection"] = n_truth, quality, n_detection
        return rows

    # Groups of one are no blends; of the equal the larger is the more extreme; none is in both.
    chosen.add((1, 1), groups([2, 2, 3, 1], [0.2, 0.9, 0.2, 0.0], [1, 2, 4, 1]), take)
    chosen.add((1, 2), groups([2, 2], [0.5, 0.95], [1, 3]), take)
    kept = [(entry.kind, entry.patch, entry.quality) for entry in chosen.entries()]
    assert kept[:4] == [("best", 2, 0.95), ("best", 1, 0.9), ("worst", 1, 0.2), ("worst", 1, 0.2)]
    assert kept[4:] == [("busiest", 1, 0.2), ("busiest", 2, 0.95), ("busiest", 1, 0.9)]
    assert 3 not in cut
    alone = gallery.BlendGallery(2, ["z", "r", "g"])
    alone.add((1, 1), groups([2], [0.5], [1]), take)
    failures = {number: (float(number), "missed") for number in range(12)}
    alone.add_failures((1, 1), failures, take)
    entries = alone.entries()
    assert [entry.kind for entry in entries] == ["best", *10 * ["failure"]]
    assert [entry.quality for entry in entries[1:]] == list(range(11, 1, -1))


def test_gallery_shows_image_truth_and_found():
    entries = [
        gallery.draw_entry(make_cutout(residual), kind=kind, patch=(3, 4), quality=0.5)
        for kind, residual in (("best", True), ("worst", False), ("worst", False))
    ]
    figure = model_gallery.plot_gallery(EvaluationGallery(pixel_scale=0.2, entries=entries))
    # Three rows, of which the first has a residual.
    assert len(figure.axes) == 10
    first = figure.axes[:4]
    np.testing.assert_allclose(first[0].images[0].get_array()[..., :3], read_png(entries[0].image))
    assert [axis.get_title() for axis in first] == ["image", "truth", "found", "residual"]
    assert first[0].get_ylabel() == "best\n2 true, 1 found"
    lines = [[segment for part in axis.collections for segment in part.get_segments()] for axis in first]
    assert [len(part) for part in lines] == [0, 2, 1, 0]
    np.testing.assert_allclose(lines[2][0], entries[0].detection_outlines[0][0])
    assert "10 (red)" in figure.texts[0].get_text()
    assert model_gallery.plot_gallery(EvaluationGallery()).texts[0].get_text() == "There is no blend to draw."


def test_plots_of_a_field_do_not_touch(rng):
    """Whatever few blends there are; counts have plain numbers."""
    magnitudes = {band: 25.0 - rng.exponential(1.0, 30) for band in "gr"}
    figure = model_gallery.plot_field([], "r", magnitudes, rng.uniform(size=30))
    figure.canvas.draw()
    counts, colors = figure.axes[:2]
    assert counts.get_tightbbox().y0 > colors.get_tightbbox().y1
    labels = [label.get_text() for label in counts.get_yticklabels(which="both")]
    assert {"1", "10"} <= set(labels) and not any("$" in label for label in labels)
