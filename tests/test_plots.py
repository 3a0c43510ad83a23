# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plots hold what they were given."""

import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb

from lsst.meas.maskrcnn.metrics import gallery, plots
from lsst.meas.maskrcnn.metrics.average_precision import pooled_ap
from lsst.meas.maskrcnn.metrics.binned import binned_fraction, binned_statistics, even_edges
from lsst.meas.maskrcnn.metrics.blends import classify_groups, friends_of_friends, summarize_blends
from lsst.meas.maskrcnn.metrics.calibration import reliability
from lsst.meas.maskrcnn.metrics.classification import binned_confusion, binned_roc, confusion, roc_curve
from lsst.meas.maskrcnn.metrics.completeness import CompletenessLimit
from lsst.meas.maskrcnn.metrics.match_table import make_match_table, match_table_dtype
from lsst.meas.maskrcnn.report.plot_style import CLASS_STYLES, OKABE_ITO, family_styles


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
    plots.plot_fractions(plots.completeness_panels(table)[:1]).canvas.draw()
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_curves_differ_without_colour():
    for styles in (list(CLASS_STYLES.values()), [plots.curve_style("", i) for i in range(6)]):
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
        plots.PrecisionRecallCurve(
            name, iou, recall, precision - iou / 10, 0.6 - iou / 2, precision - 0.2, precision
        )
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
        assert sum(isinstance(part, PolyCollection) for part in axis.collections) == 2
    figure.canvas.draw()


def test_curves_of_average_precisions_have_its_area():
    from lsst.meas.maskrcnn.metrics.average_precision import collect_outcomes
    from lsst.meas.maskrcnn.metrics.matching import ImagePairs
    from lsst.meas.maskrcnn.metrics.spans import SpanMasks

    square = np.ones((4, 5), dtype=bool)
    truths = SpanMasks.from_masks([square] * 3, [[0, 0], [0, 10], [0, 20]])
    found = SpanMasks.from_masks([square, square[:3], square], [[0, 0], [0, 10], [9, 9]])
    image = ImagePairs.from_spans(found, [0.9, 0.7, 0.8], [1, 1, 1], truths, [1, 1, 1])
    result = pooled_ap(collect_outcomes([image]))
    curves = plots.precision_recall_curves({"all": result})
    assert [curve.iou for curve in curves] == result.thresholds.tolist()
    for curve, ap in zip(curves, result.ap):
        assert curve.ap == ap
        assert np.sum(np.diff(curve.recall, prepend=0.0) * curve.precision) == pytest.approx(ap)


def test_fractions_and_their_limits():
    mag = np.repeat([20.5, 21.5, 23.5, 24.5], 10)
    found = np.arange(40) % 10 < np.repeat([10, 8, 6, 2], 10)
    curve = binned_fraction(mag, found, np.arange(20.0, 26.0))
    limit = CompletenessLimit(23.75, 23.6, 23.9)
    panels = [
        plots.FractionPanel("Magnitude (AB)", "Completeness", {"star": curve}, limits={"star": limit}),
        plots.FractionPanel("S/N", "Completeness", {"star": curve}, log_x=True),
    ]
    figure = plots.plot_fractions(panels)
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
    assert (left.get_xlabel(), left.get_ylabel()) == ("Magnitude (AB)", "Completeness")
    assert right.get_xscale() == "log"
    figure.canvas.draw()


def test_a_single_bin_shows_its_interval():
    curve = binned_fraction([0.5, 2.5], [True, False], [0.0, 1.0, 2.0, 3.0])
    axis = plots.plot_fractions([plots.FractionPanel("x", "y", {"all": curve})]).axes[0]
    (bars,) = [part for part in axis.collections if isinstance(part, LineCollection)]
    ends = np.array(bars.get_segments())
    np.testing.assert_allclose(ends[:, 0, 1], curve.low[[0, 2]])
    np.testing.assert_allclose(ends[:, 1, 1], curve.high[[0, 2]])


def test_panels_of_a_table(table):
    panels = plots.completeness_panels(table, magnitude_label="True r (AB)")
    assert [panel.x_label for panel in panels] == [
        "True r (AB)",
        "True S/N",
        "Blendedness",
        "Nearest neighbour (arcsec)",
        "Score",
        "Measured magnitude (AB)",
    ]
    assert [panel.y_label for panel in panels] == ["Completeness"] * 4 + ["Purity"] * 2
    for panel in panels[:3]:
        assert panel.curves["all"].total.sum() == 200
        assert panel.curves["star"].total.sum() + panel.curves["galaxy"].total.sum() == 200
    assert panels[4].curves["all"].hits.sum() == np.count_nonzero(table["outcome"] == "matched")
    assert 22.0 < panels[0].limits["all"].value < 26.0
    without = table.copy()
    without["snr"] = np.nan
    assert len(plots.completeness_panels(without)) == 5
    figure = plots.plot_fractions(panels)
    assert len(figure.axes) == 6


def test_confusion(table):
    matrix, binned = confusion(table), binned_confusion(table, np.arange(20.0, 27.0))
    figure = plots.plot_confusion(matrix, binned, x_label="True r (AB)")
    left, right, lower = figure.axes
    share = matrix.counts / matrix.counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(left.images[0].get_array(), share)
    texts = [text.get_text() for text in left.texts]
    assert texts == [f"{100 * s:.1f} %\n({n})" for s, n in zip(share.ravel(), matrix.counts.ravel())]
    for name, curve in (("star", binned.star_completeness), ("galaxy", binned.galaxy_completeness)):
        np.testing.assert_allclose(line_of(right, name).get_ydata(), curve.fraction)
    np.testing.assert_array_equal(lower.patches[0].get_data().values, binned.star_completeness.total)
    assert lower.get_xlabel() == "True r (AB)"
    figure.canvas.draw()


def test_roc(table):
    curves = {"all": roc_curve([0.9, 0.6, 0.6, 0.1], [True, True, False, False]), "none": roc_curve([], [])}
    axis = plots.plot_roc(curves).axes[0]
    line = line_of(axis, "all")
    assert line.get_label() == "all: area 0.875"
    np.testing.assert_allclose(line.get_xdata(), curves["all"].false_positive)
    np.testing.assert_allclose(line.get_ydata(), curves["all"].true_positive)
    assert line_of(axis, "none").get_label() == "none: one class only"
    plots.plot_roc(dict(zip("ab", binned_roc(table, [20.0, 23.0, 26.0])))).canvas.draw()


def test_residuals_as_points(rng):
    x, y = rng.random(100), rng.normal(0.0, 0.1, 100)
    y[:3] = [np.nan, 50.0, -50.0]
    binned = binned_statistics(x, y, [0.0, 0.5, 1.0])
    figure = plots.plot_residuals([plots.ResidualPanel("stars", x, y, binned)], y_range=(-1.0, 1.0))
    (axis,) = figure.axes
    points = axis.lines[0]
    assert len(points.get_xdata()) == 97
    np.testing.assert_allclose(np.sort(points.get_ydata()), np.sort(y[3:]))
    medians = axis.containers[0].lines[0]
    np.testing.assert_allclose(medians.get_xdata(), binned.center)
    np.testing.assert_allclose(medians.get_ydata(), binned.median)
    bars = np.array(axis.containers[0].lines[2][0].get_segments())
    np.testing.assert_allclose(bars[:, 1, 1] - bars[:, 0, 1], 2.0 * binned.scatter)
    assert axis.texts[0].get_text() == "99 sources, 2 beyond the axis"
    assert axis.get_title() == "stars"


def test_residuals_as_shading(rng):
    x, y = 10.0 ** rng.uniform(0.0, 3.0, 2000), rng.normal(0.0, 0.1, 2000)
    x[0] = -1.0
    panel = plots.ResidualPanel("all", x, y, binned_statistics(x, y, [1.0, 10.0, 100.0, 1000.0]))
    figure = plots.plot_residuals([panel, panel], log_x=True, x_label="S/N", y_range=(-2.0, 2.0))
    for axis in figure.axes:
        hexagons = axis.collections[0]
        assert hexagons.get_array().sum() == 1999
        assert axis.get_xscale() == "log"
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
    figure = plots.plot_calibration({"star": result}, x_label="p(star)", y_label="Share of stars")
    top, bottom = figure.axes
    line = line_of(top, "star")
    assert line.get_label() == f"star: ECE {result.expected_error:.3f}"
    np.testing.assert_allclose(line.get_xdata(), result.mean_probability)
    np.testing.assert_allclose(line.get_ydata(), result.bins.fraction)
    np.testing.assert_array_equal(bottom.patches[0].get_data().values, result.bins.total)
    assert bottom.get_xlabel() == "p(star)" and top.get_ylabel() == "Share of stars"
    figure.canvas.draw()


def test_blends():
    groups = friends_of_friends(5, 4, [[0, 0], [1, 0], [1, 1], [2, 2], [3, 2]])
    summary = summarize_blends([groups], [classify_groups(groups, [0, 1, 2, -1])])
    figure = plots.plot_blends({"ours": summary, "theirs": summary})
    (axis,) = figure.axes
    heights = [bar.get_height() for bar in axis.containers[1]]
    assert heights == [0.5, 0.5, 0.0, 0.0, 0.0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "ours (2 blends)",
        "theirs (2 blends)",
    ]
    figure.canvas.draw()


def test_empty_input_draws(tmp_path):
    empty = np.zeros(0, dtype=match_table_dtype())
    edges = even_edges([])
    nothing = binned_statistics([], [], edges)
    figures = {
        "fractions": plots.plot_fractions(plots.completeness_panels(empty)),
        "confusion": plots.plot_confusion(confusion(empty), binned_confusion(empty, edges)),
        "curves": plots.plot_precision_recall([]),
        "roc": plots.plot_roc({}),
        "residuals": plots.plot_residuals([plots.ResidualPanel("", np.zeros(0), np.zeros(0), nothing)]),
        "calibration": plots.plot_calibration({"all": reliability([], [])}),
        "blends": plots.plot_blends({"none": summarize_blends([], [])}),
        "gallery": gallery.plot_gallery([], []),
    }
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=50)
        assert (tmp_path / f"{name}.png").stat().st_size > 500


def scene():
    """An image of 30 x 50 px: two truths that overlap, one of which was found, and one far away."""
    image = np.zeros((3, 30, 50), dtype=np.float32)
    image[:, 5:15, 8:25] = 100.0
    masks = [np.ones((8, 9), dtype=bool), np.ones((6, 7), dtype=bool), np.ones((3, 3), dtype=bool)]
    origins = np.array([[5, 8], [8, 14], [26, 46]])
    return image, masks, origins


def test_ranks_and_boxes():
    groups = friends_of_friends(9, 4, [[0, 0], [1, 0], [2, 1], [3, 1], [4, 2], [5, 2], [6, 2], [7, 3]])
    best, worst = gallery.rank_groups(groups, [0.2, 0.9, 0.2, 0.99, 0.0], 2)
    # Groups of one are no blends; of the equal the larger is the more extreme; none is in both.
    assert best.tolist() == [1, 2] and worst.tolist() == [0]
    best, worst = gallery.rank_groups(groups, [0.2, 0.9, 0.2, 0.99, 0.0], 1)
    assert best.tolist() == [1] and worst.tolist() == [2]
    pair = friends_of_friends(2, 1, [[0, 0], [1, 0]])
    boxes = gallery.group_boxes(pair, [[8, 5, 17, 13], [14, 8, 21, 14]], [[7, 6, 15, 16]])
    assert boxes.tolist() == [[7, 5, 21, 16]]
    lonely = friends_of_friends(1, 1, [], ignored_detection=[True])
    assert gallery.group_boxes(lonely, [[1, 2, 3, 4]], [[0, 0, 9, 9]]).tolist() == [[1, 2, 3, 4]]


def test_cut_out_keeps_positions():
    image, masks, origins = scene()
    panel = gallery.cut_panel(
        image,
        [8, 5, 21, 14],
        masks,
        origins,
        [False, True, True],
        masks[:1],
        origins[:1],
        [False],
        residual=image[0],
        margin=2,
        min_size=20,
        caption="a",
    )
    # 20 px about (14.5, 9.5): x from 4, y from -1, so that one row is off the image.
    assert panel.rgb.shape == (20, 20, 3) and panel.residual.shape == (20, 20)
    assert np.isnan(panel.residual[0]).all() and np.isfinite(panel.residual[1:]).all()
    np.testing.assert_array_equal(panel.residual[6:16, 4:16], 100.0)
    assert panel.rgb[6:16, 4:16].min() > panel.rgb[17:, 2:].max()
    # The third truth is outside.
    assert panel.truth_is_star.tolist() == [False, True]
    (line,) = panel.truth_outlines[1]
    np.testing.assert_allclose(line.min(axis=0), [14 - 4 - 0.5, 8 + 1 - 0.5])
    np.testing.assert_allclose(line.max(axis=0), [14 - 4 + 6.5, 8 + 1 + 5.5])


def test_gallery_shows_image_truth_and_found():
    image, masks, origins = scene()
    arguments = (image, [8, 5, 21, 14], masks, origins, [False, True, True], masks[:1], origins[:1], [False])
    with_residual = gallery.cut_panel(*arguments, residual=image[0] - 90.0, caption="2 true, 1 found")
    without = gallery.cut_panel(*arguments)
    figure = gallery.plot_gallery([with_residual], [without, without], pixel_scale=0.2)
    # Three columns of four, and the scale of the residuals.
    assert len(figure.axes) == 13
    first = figure.axes[:4]
    np.testing.assert_array_equal(first[0].images[0].get_array(), with_residual.rgb)
    assert [axis.get_ylabel() for axis in first] == ["image", "truth", "found", "residual"]
    assert first[3].get_xlabel() == "2 true, 1 found"
    np.testing.assert_array_equal(first[3].images[0].get_array(), with_residual.residual)
    lines = [[segment for part in axis.collections for segment in part.get_segments()] for axis in first]
    assert [len(part) for part in lines] == [0, 2, 1, 0]
    np.testing.assert_allclose(lines[2][0], with_residual.detection_outlines[0][0])
    # A bar of 2 arcsec is 10 of 40 px.
    (bar,) = first[0].lines
    np.testing.assert_allclose(np.diff(bar.get_xdata()), 0.25)
    assert first[0].texts[0].get_text() == '2"'
    assert [text.get_text() for text in figure.texts] == ["best", "worst"]
    assert len(gallery.plot_gallery([without], []).axes) == 3
    # Neighbours of the blend are dotted.
    member = gallery.cut_panel(*arguments, truth_is_member=[True, False, False])
    figure = gallery.plot_gallery([member], [])
    solid, dotted = (
        sum(
            len(part.get_segments())
            for part in figure.axes[1].collections
            if (part.get_linewidth()[0] > 0.8) == s
        )
        for s in (True, False)
    )
    assert (solid, dotted) == (1, 1)
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "not of this blend"
