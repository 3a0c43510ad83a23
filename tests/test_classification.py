# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How well stars and galaxies are separated."""

import numpy as np
import pytest
import scipy.integrate
from scipy.special import expit
from scipy.stats import norm

from lsst.meas.maskrcnn.metrics.classification import confusion_matrix, magnitude_rocs, roc_curve
from lsst.meas.maskrcnn.metrics.match_table import MatchedSources, make_match_table


def table_of(truth_is_star, given_is_star, mag, p_star=None, min_score=None) -> MatchedSources:
    n = len(mag)
    truth = {"id": np.arange(n), "x": np.zeros(n), "y": np.zeros(n), "is_star": truth_is_star, "mag": mag}
    found = {"id": np.arange(n), "x": np.zeros(n), "y": np.zeros(n), "is_star": given_is_star}
    found["score"] = np.linspace(0.9, 0.1, n)
    if p_star is not None:
        found["p_star"] = p_star
    return MatchedSources(make_match_table(truth, found, np.arange(n)), min_score=min_score)


def test_confusion_by_hand():
    truth = np.array([True, True, True, False, False, False, False])
    given = np.array([True, True, False, True, False, False, False])
    table = table_of(truth, given, np.full(7, 20.0))
    np.testing.assert_array_equal(confusion_matrix(table), [[2, 1], [1, 3]])
    table = table_of(truth, given, np.full(7, 20.0), min_score=0.3)
    # The last two have scores below 0.3.
    np.testing.assert_array_equal(confusion_matrix(table), [[2, 1], [1, 1]])


def test_swapped_classes_and_nothing():
    truth = np.array([True, False])
    np.testing.assert_array_equal(confusion_matrix(table_of(truth, ~truth, np.zeros(2))), [[0, 1], [1, 0]])
    nothing = table_of(truth[:0], truth[:0], np.zeros(0))
    assert confusion_matrix(nothing).tolist() == [[0, 0], [0, 0]]


def test_unmatched_and_ignored_do_not_count():
    truth = {
        "id": [1, 2],
        "x": [0.0, 1.0],
        "y": [0.0, 1.0],
        "is_star": [True, True],
        "ignored": [False, True],
    }
    found = {"id": [1, 2], "x": [0.0, 1.0], "y": [0.0, 1.0], "is_star": [True, False], "score": [0.9, 0.8]}
    assert confusion_matrix(MatchedSources(make_match_table(truth, found, [-1, 1]))).sum() == 0


def test_bins_add_up_to_the_whole(rng):
    truth, given = rng.random(300) < 0.3, rng.random(300) < 0.4
    table = table_of(truth, given, rng.uniform(18.0, 26.0, 300))
    counts = confusion_matrix(table)
    for i, star in enumerate((True, False)):
        binned = table.binned_share("class_completeness", "mag", np.arange(18.0, 27.0), star)
        assert (binned.hits.sum(), binned.total.sum()) == (counts[i, i], counts[i].sum())


def test_an_error_that_grows_with_magnitude_is_recovered(rng):
    mag = rng.uniform(20.0, 24.0, 40_000)
    truth = rng.random(len(mag)) < 0.5
    wrong = rng.random(len(mag)) < (mag - 20.0) / 8.0
    table = table_of(truth, truth ^ wrong, mag)
    expected = 1.0 - np.array([0.5, 1.5, 2.5, 3.5]) / 8.0
    for star in (True, False):
        binned = table.binned_share("class_completeness", "mag", [20.0, 21.0, 22.0, 23.0, 24.0], star)
        np.testing.assert_allclose(binned.fraction, expected, atol=0.025)


def test_roc_by_hand():
    curve = roc_curve([0.9, 0.8, 0.7, 0.2], [True, False, True, False])
    np.testing.assert_allclose(curve.true_positive, [0.0, 0.5, 0.5, 1.0, 1.0])
    np.testing.assert_allclose(curve.false_positive, [0.0, 0.0, 0.5, 0.5, 1.0])
    np.testing.assert_allclose(curve.threshold, [np.inf, 0.9, 0.8, 0.7, 0.2])
    # Of four pairs, one is in the wrong order.
    assert curve.area == pytest.approx(0.75)
    assert (curve.n_star, curve.n_galaxy) == (2, 2)


def test_area_is_that_under_the_curve_with_ties(rng):
    p_star, is_star = rng.integers(0, 6, 200) / 5.0, rng.random(200) < 0.4
    curve = roc_curve(p_star, is_star)
    assert len(curve.threshold) == 7
    assert curve.area == pytest.approx(scipy.integrate.trapezoid(curve.true_positive, curve.false_positive))
    # The order of the input does not matter, NaN is left out.
    order = rng.permutation(200)
    again = roc_curve(np.append(p_star[order], np.nan), np.append(is_star[order], True))
    assert again.area == pytest.approx(curve.area)
    np.testing.assert_allclose(again.true_positive, curve.true_positive)


def test_limits_of_the_area():
    is_star = np.repeat([True, False], 20)
    perfect = roc_curve(is_star.astype(float), is_star)
    assert perfect.area == 1.0
    assert roc_curve(-is_star.astype(float), is_star).area == 0.0
    assert roc_curve(np.zeros(40), is_star).area == 0.5
    one_class = roc_curve([0.3, 0.4], [True, True])
    assert np.isnan(one_class.area) and np.isnan(one_class.false_positive).all()
    assert np.isnan(roc_curve([], []).area)
    with pytest.raises(ValueError, match="One class per probability"):
        roc_curve([0.1], [True, False])


def test_area_of_two_normal_distributions(rng):
    """The area is Phi(d / sqrt 2) for unit normals a distance d apart."""
    truth = norm.cdf(1.5 / np.sqrt(2.0))
    is_star = np.repeat([True, False], [60, 90])
    curves = [roc_curve(expit(rng.normal(size=150) + 1.5 * is_star), is_star) for _ in range(300)]
    assert np.mean([curve.area for curve in curves]) == pytest.approx(truth, abs=0.01)


def test_roc_of_the_table_by_magnitude(rng):
    is_star = rng.random(600) < 0.5
    mag = rng.uniform(20.0, 24.0, 600)
    p_star = np.where(mag < np.quantile(mag, 1 / 3), is_star, rng.random(600))
    curves = magnitude_rocs(table_of(is_star, is_star, mag, p_star))
    whole, bright, middle, faint = curves.values()
    assert list(curves)[0] == "all" and list(curves)[1].endswith(" mag")
    assert bright.area > 0.99
    assert faint.area == pytest.approx(0.5, abs=0.15)
    assert whole.n_star == bright.n_star + middle.n_star + faint.n_star == is_star.sum()
    assert {one.n_star + one.n_galaxy for one in (bright, middle, faint)} == {200}
    assert faint.area < whole.area < 1.0
    # A handful of sources is not divided.
    assert list(magnitude_rocs(table_of(is_star[:20], is_star[:20], mag[:20], p_star[:20]))) == ["all"]
