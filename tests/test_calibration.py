# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether scores and probabilities mean what they say."""

import numpy as np
import pytest

from lsst.meas.maskrcnn.metrics.binned_figures import reliability_curves
from lsst.meas.maskrcnn.metrics.calibration import reliability, threshold_at_purity
from lsst.meas.maskrcnn.metrics.match_table import MatchedSources, make_match_table


def test_by_hand():
    # Two bins: 0.2, 0.4 with one of two true; 0.9 with none of one.
    result = reliability([0.2, 0.4, 0.9], [True, False, False], n_bins=2)
    np.testing.assert_array_equal(result.bins.total, [2, 1])
    np.testing.assert_allclose(result.mean_probability, [0.3, 0.9])
    assert result.expected_error == pytest.approx((2 * 0.2 + 1 * 0.9) / 3)
    assert result.brier == pytest.approx((0.64 + 0.16 + 0.81) / 3)
    assert result.n == 3


def test_edges_of_the_range():
    result = reliability([0.0, 1.0, 1.0, np.nan], [False, True, True, True])
    assert result.n == 3 and result.expected_error == 0.0 and result.brier == 0.0
    assert result.bins.total[0] == 1 and result.bins.total[-1] == 2
    assert np.isnan(result.mean_probability[1:-1]).all()


def test_calibrated_and_overconfident(rng):
    probability = rng.random(50_000)
    calibrated = reliability(probability, rng.random(50_000) < probability)
    assert calibrated.expected_error < 0.012
    inside = (calibrated.bins.low <= calibrated.mean_probability) & (
        calibrated.mean_probability <= calibrated.bins.high
    )
    assert inside.sum() >= 4
    # Came true with 0.5 + (p - 0.5) / 2: the mean of |p - 0.5| / 2 is 1/8.
    timid = rng.random(50_000) < 0.5 + 0.5 * (probability - 0.5)
    assert reliability(probability, timid).expected_error == pytest.approx(0.125, abs=0.01)


def test_equal_counts(rng):
    probability = rng.beta(8.0, 1.0, 10_000)
    true = rng.random(10_000) < probability
    result = reliability(probability, true, equal_counts=True)
    assert result.bins.edges[0] == 0.0 and result.bins.edges[-1] == 1.0
    np.testing.assert_allclose(result.bins.total, 1000, atol=2)
    # All equal: one bin is as good as ten.
    flat = reliability(np.full(10, 0.7), np.arange(10) < 7, equal_counts=True)
    assert flat.expected_error == pytest.approx(0.0) and flat.n == 10


def test_nothing_and_errors():
    nothing = reliability([], [])
    assert nothing.n == 0 and np.isnan([nothing.expected_error, nothing.brier]).all()
    assert reliability([], [], equal_counts=True).n == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        reliability([1.2], [True])
    with pytest.raises(ValueError, match="One outcome per probability"):
        reliability([0.2], [True, False])
    with pytest.raises(ValueError, match="At least one bin"):
        reliability([0.2], [True], n_bins=0)


def test_of_the_table():
    truth = {"id": [1, 2, 3], "x": [0.0] * 3, "y": [0.0] * 3, "is_star": [True, False, False]}
    truth["ignored"] = [False, False, True]
    found = {"id": [1, 2, 3, 4], "x": [0.0] * 4, "y": [0.0] * 4, "is_star": [True, True, False, False]}
    found |= {"score": [0.9, 0.8, 0.7, 0.3], "p_star": [0.95, 0.6, 0.1, 0.2]}
    table = make_match_table(truth, found, [0, 1, 2, -1])
    curves = reliability_curves(MatchedSources(table, classes=("all", "star", "galaxy"), min_score=0.85))
    # Scores are of all detections, and true if the class is right too.
    scores = curves["score/all"]
    assert (scores.n, scores.bins.total[[2, 8, 9]].tolist()) == (3, [1, 1, 1])
    np.testing.assert_array_equal(np.flatnonzero(scores.bins.hits), [9])
    assert curves["score/galaxy"].n == 1
    assert (curves["p_star"].n, curves["p_star"].bins.hits.sum()) == (1, 1)
    assert "p_blend" not in curves
    plain = reliability_curves(MatchedSources(table))
    assert list(plain) == ["score/all"] and plain["score/all"].bins.hits.sum() == 2
    stars = reliability_curves(MatchedSources(table, classes=("all", "star")))["p_star"]
    assert stars.n == 2 and stars.bins.hits.sum() == 1
    assert not reliability_curves(MatchedSources(table[:0]))


def test_threshold_at_purity_by_hand():
    # Shares of what is at least as high: 1, 1/2, 2/3, 3/4, 3/5.
    score, true = [0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, True, False]
    assert threshold_at_purity(score, true, 0.7) == 0.6
    assert threshold_at_purity(score, true, 0.9) == 0.9
    # Equal scores pass together.
    assert threshold_at_purity([0.9, 0.6, 0.6], [True, True, False], 0.7) == 0.9
    assert threshold_at_purity([0.9], [False], 0.7) == threshold_at_purity([], [], 0.7) == 1.0
