# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file of an evaluation's figures, and the statistics behind them."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from pydantic import ValidationError

from lsst.meas.maskrcnn.metrics.average_precision import Outcomes
from lsst.meas.maskrcnn.metrics.binned import robust_statistics
from lsst.meas.maskrcnn.metrics.evaluation_metrics import (
    FORMAT_VERSION,
    EvaluationGallery,
    EvaluationMetrics,
    EvaluationMetricsError,
    MetricValue,
    PatchSummary,
    make_gallery_entry,
    outcomes_from_table,
    outcomes_table,
    read_metrics,
    software_versions,
    write_metrics,
)
from lsst.meas.maskrcnn.metrics.summary import SummarySettings, median_statistic, throughput_values
from lsst.meas.maskrcnn.report.gallery import GalleryPanel


def test_versions_of_what_computed_the_figures() -> None:
    versions = software_versions()
    assert versions["numpy"] == np.__version__
    # Installed or run from a checkout, the package knows its own.
    assert versions["lsst-meas-maskrcnn"][0].isdigit()


def make_metrics() -> EvaluationMetrics:
    return EvaluationMetrics(
        package_version="1.2",
        software=software_versions(),
        name="maskRcnnEvaluation",
        config={"band": "r", "ap": {"minScore": 0.5}},
        patches=[
            PatchSummary(tract=3, patch=4, n_truth=2, n_detections=1),
            PatchSummary(tract=3, patch=10, n_truth=0, n_detections=1, seconds=1.5),
        ],
        n_truth={"all": [2, 0], "star": [1, 0]},
        iou_thresholds=[0.5, 0.75],
        level=0.68,
        n_samples=10,
        values=[
            MetricValue(name="ap", definition="pooled", iou=0.5, value=0.75, error=0.1, low=0.6, high=0.8),
            MetricValue(name="ap", definition="pooled", value=0.7),
            MetricValue(name="ap", definition="coco", value=math.nan),
        ],
        tables={"completeness/mag/all": {"bin_low": [20.0, 21.0], "fraction": [1.0, math.nan]}},
    )


def test_round_trip(tmp_path: Path) -> None:
    metrics = make_metrics()
    path = tmp_path / "metrics.json"
    write_metrics(metrics, path)
    again = read_metrics(path)
    assert again.model_dump_json() == metrics.model_dump_json()
    assert again.get("ap", definition="pooled", iou=0.5).error == 0.1
    assert math.isnan(again.get("ap", definition="coco").value)
    assert math.isnan(again.tables["completeness/mag/all"]["fraction"][1])
    assert again.names == ("3,4", "3,10")
    # Other programs read it too: JSON has no NaN.
    plain = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert plain["format_version"] == FORMAT_VERSION
    assert plain["values"][2]["value"] is None


def test_get() -> None:
    metrics = make_metrics()
    assert len(metrics.select(name="ap", definition="pooled")) == 2
    assert metrics.get("ap", definition="pooled").value == 0.7
    with pytest.raises(KeyError, match="There are 0 figures 'ap'"):
        metrics.get("ap")
    with pytest.raises(KeyError, match="names are"):
        metrics.get("completeness")
    assert len({value.key for value in metrics.values}) == 3


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    newer = json.loads(make_metrics().model_dump_json())
    newer["format_version"] = FORMAT_VERSION + 1
    newer["what is new"] = 1
    path.write_text(json.dumps(newer))
    with pytest.raises(EvaluationMetricsError, match=f"version {FORMAT_VERSION + 1}.*update meas_maskrcnn"):
        read_metrics(path)
    path.write_text("{}")
    with pytest.raises(EvaluationMetricsError, match=r"metrics.json cannot be read"):
        read_metrics(path)
    path.write_text("no JSON")
    with pytest.raises(EvaluationMetricsError, match=r"metrics.json cannot be read"):
        read_metrics(path)
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "none.json")
    with pytest.raises(ValidationError, match="gallery have format version 99"):
        EvaluationGallery.model_validate({"format_version": 99})


def test_outcomes() -> None:
    rng = np.random.default_rng(3)
    thresholds = np.array([0.5, 0.75])
    metrics = make_metrics()
    outcomes = {}
    for label, name in ((None, "all"), (1, "star")):
        number = 7 if label is None else 3
        hit = rng.random((2, number)) < 0.5
        outcomes[name] = Outcomes(
            label,
            None,
            thresholds,
            metrics.names,
            np.array(metrics.n_truth[name]),
            rng.integers(0, 2, number),
            rng.random(number),
            hit,
            ~hit & (rng.random((2, number)) < 0.8),
        )
    table = outcomes_table(outcomes.values())
    assert len(table) == 10
    for name, wanted in outcomes.items():
        again = outcomes_from_table(table, metrics, name)
        assert (again.label, again.names) == (wanted.label, wanted.names)
        for column in ("n_truth", "image", "scores", "hit", "false", "thresholds"):
            np.testing.assert_array_equal(getattr(again, column), getattr(wanted, column))
    with pytest.raises(ValueError, match="no outcomes of the class 'galaxy'"):
        outcomes_from_table(table, metrics, "galaxy")
    assert len(outcomes_table([])) == 0


def test_gallery_entry() -> None:
    rgb = np.zeros((5, 5, 3), np.uint8)
    rgb[0, 1] = 255
    line = np.array([[0.5, 1.5], [2.5, 1.5], [0.5, 1.5]])
    panel = GalleryPanel(rgb, [[line]], [], np.array([True]), np.zeros(0, bool), "one", np.full((5, 5), 20.0))
    entry = make_gallery_entry(panel, kind="best", tract=1, patch=2, quality=0.5, corner=(10, 20))
    again = EvaluationGallery.model_validate_json(EvaluationGallery(entries=[entry]).model_dump_json())
    assert math.isnan(again.pixel_scale)
    assert again.entries[0] == entry
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(entry.image)), format="png")
    # The first row of the sky is the last of the file.
    assert picture[4, 1, :3].tolist() == [1.0, 1.0, 1.0]
    assert picture[..., :3].sum() == 3.0
    left_over = matplotlib.image.imread(io.BytesIO(base64.b64decode(entry.residual)), format="png")
    assert (left_over[..., 0] > left_over[..., 2]).all()
    assert entry.truth_outlines[0][0][1] == (2.5, 1.5)


def test_median_statistic() -> None:
    """Weights are repetitions: the same as the statistics of a sample with them."""
    rng = np.random.default_rng(5)
    image = rng.integers(0, 4, 300)
    values = rng.normal(1.0, 2.0, 300)
    values[:5] = 40.0
    statistic = median_statistic(("a", "b", "c", "d"), image, values)
    for weights in ([1, 1, 1, 1], [2, 0, 1, 1], [0, 0, 3, 1]):
        sample = robust_statistics(np.repeat(values, np.array(weights)[image]))
        expected = [sample.median, sample.scatter, sample.outliers.value]
        found = statistic.function(np.array([weights], dtype=float))[0]
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.isnan(statistic.function(np.zeros((1, 4)))).all()
    # Many values are grouped, which hardly shows.
    many = rng.normal(1.0, 2.0, 20_000)
    grouped = median_statistic(("a",), np.zeros(20_000, dtype=np.int64), many).value
    exact = robust_statistics(many)
    np.testing.assert_allclose(grouped, [exact.median, exact.scatter, exact.outliers.value], atol=0.01)


def test_throughput() -> None:
    settings = SummarySettings(n_samples=10)
    values = throughput_values([2.0, 4.0, np.nan], [1.0, np.nan, 5.0], ("a", "b", "c"), settings)
    assert [(value.name, value.value, value.n) for value in values] == [
        ("seconds_per_patch", 3.0, 2),
        ("megapixels_per_second", 0.5, 1),
    ]
    assert throughput_values([np.nan], [1.0], ("a",), settings) == []
