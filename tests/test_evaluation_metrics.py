# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file of an evaluation's figures, and the statistics behind them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from lsst.meas.maskrcnn.metrics.average_precision import Outcomes
from lsst.meas.maskrcnn.metrics.binned import robust_statistics
from lsst.meas.maskrcnn.metrics.evaluation_metrics import (
    FORMAT_VERSION,
    EvaluationGallery,
    EvaluationMetrics,
    MetricValue,
    PatchSummary,
    outcomes_from_table,
    outcomes_table,
    software_versions,
)
from lsst.meas.maskrcnn.metrics.resampled import median_statistic
from lsst.meas.maskrcnn.metrics.summary import throughput_figures


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
        config={"band": "r"},
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


def test_round_trip() -> None:
    metrics = make_metrics()
    text = metrics.model_dump_json()
    again = EvaluationMetrics.model_validate_json(text)
    assert again.model_dump_json() == metrics.model_dump_json()
    assert again.get("ap", definition="pooled", iou=0.5).error == 0.1
    assert math.isnan(again.get("ap", definition="coco").value)
    assert math.isnan(again.tables["completeness/mag/all"]["fraction"][1])
    assert again.names == ("3,4", "3,10")
    # Other programs read it too: JSON has no NaN.
    plain = json.loads(text, parse_constant=lambda name: pytest.fail(name))
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


def test_newer_files() -> None:
    newer = json.loads(make_metrics().model_dump_json())
    newer["format_version"] = FORMAT_VERSION + 1
    newer["what is new"] = 1
    with pytest.raises(ValidationError, match=f"version {FORMAT_VERSION + 1}.*update meas_maskrcnn"):
        EvaluationMetrics.model_validate(newer)
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
    groups = throughput_figures([2.0, 4.0, np.nan], [1.0, np.nan, 5.0], ("a", "b", "c"))
    values = [value for group in groups for value in group.with_errors(10, 1)]
    assert [(value.name, value.value, value.n) for value in values] == [
        ("seconds_per_patch", 3.0, 2),
        ("megapixels_per_second", 0.5, 1),
    ]
    assert all(value.error > 0 for value in values[:1])
    assert list(throughput_figures([np.nan], [1.0], ("a",))) == []
