# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The match table, fractions in bins, completeness and purity."""

import numpy as np
import pytest
import scipy.stats

from lsst.meas.maskrcnn.metrics.binned import (
    binned_fraction,
    binned_statistics,
    binomial_interval,
    even_edges,
    fraction,
    log_edges,
    robust_statistics,
    weighted_median,
)
from lsst.meas.maskrcnn.metrics.completeness import completeness_limit
from lsst.meas.maskrcnn.metrics.match_table import MatchedSources, ab_magnitude, make_match_table

TRUTH = {
    "id": [11, 12, 13, 14],
    "x": [10.0, 20.0, 30.0, 40.0],
    "y": [5.0, 6.0, 7.0, 8.0],
    "is_star": [True, False, False, True],
    "mag": [20.2, 22.2, 24.2, 26.2],
    "flux": [100.0, 50.0, 20.0, 1.0],
    "ignored": [False, False, False, True],
}
FOUND = {
    "id": [1, 2, 3, 4, 5],
    "x": [40.5, 10.0, 19.0, 90.0, 91.0],
    "y": [8.0, 5.5, 6.0, 90.0, 91.0],
    "is_star": [True, True, True, False, False],
    "score": [0.3, 0.9, 0.8, 0.7, 0.6],
    "flux": [2.0, 110.0, 40.0, 5.0, 6.0],
    "ignored": [True, False, True, False, True],
}
MATCH = [3, 0, 1, -1, -1]


@pytest.fixture
def table() -> np.ndarray:
    return make_match_table(
        TRUTH, FOUND, MATCH, iou=[0.9, 0.8, 0.7, np.nan, np.nan], image=3, pixel_scale=0.2
    )


def empty_table() -> np.ndarray:
    return make_match_table(
        *({name: column[:0] for name, column in one.items()} for one in (TRUTH, FOUND)), []
    )


def test_table_joins_truth_and_detections(table):
    np.testing.assert_array_equal(table["truth_id"], [11, 12, 13, 14, -1, -1])
    np.testing.assert_array_equal(table["detection_id"], [2, 3, -1, 1, 4, 5])
    np.testing.assert_array_equal(table["x"], [10.0, 20.0, 30.0, 40.0, 90.0, 91.0])
    np.testing.assert_array_equal(table["offset_x"], [0.0, -1.0, np.nan, 0.5, np.nan, np.nan])
    np.testing.assert_array_equal(table["offset_y"], [0.5, 0.0, np.nan, 0.0, np.nan, np.nan])
    np.testing.assert_allclose(table["separation_arcsec"], [0.1, 0.2, np.nan, 0.1, np.nan, np.nan])
    np.testing.assert_array_equal(table["iou"], [0.8, 0.7, np.nan, 0.9, np.nan, np.nan])
    np.testing.assert_array_equal(table["flux_detected"], [110.0, 40.0, np.nan, 2.0, 5.0, 6.0])
    # A detection that is set aside still counts for a truth that counts.
    np.testing.assert_array_equal(table["ignored"], [False, False, False, True, False, True])
    assert table["outcome"].tolist() == ["matched", "matched", "missed", "ignored", "spurious", "ignored"]
    assert set(table["image"]) == {3}
    assert np.isnan(table["blendedness"]).all() and np.isnan(table["p_star"]).all()


def test_table_keeps_fluxes_of_bands_and_makes_magnitudes():
    truth = {name: TRUTH[name] for name in ("id", "x", "y", "is_star", "flux")} | {
        "flux_g": [1.0, 2.0, 3.0, 4.0]
    }
    found = FOUND | {"flux_g": [9.0, 8.0, 7.0, 6.0, 5.0]}
    table = make_match_table(truth, found, MATCH, bands=("g", "r"))
    np.testing.assert_array_equal(table["flux_truth_g"][:4], [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(table["flux_detected_g"], [8.0, 7.0, np.nan, 9.0, 6.0, 5.0])
    assert np.isnan(table["flux_detected_r"]).all()
    np.testing.assert_allclose(table["mag"][:4], 31.4 - 2.5 * np.log10(truth["flux"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"match": [0, 0, 1, -1, -1]}, "more than one detection"),
        ({"match": [0, 4, 1, -1, -1]}, "between -1 and 3"),
        ({"match": [0]}, "One match per detection"),
        ({"iou": [0.5]}, "One IoU per detection"),
        ({"truth": {"id": [1], "x": [1.0]}}, "lack the columns y, is_star"),
        ({"truth": TRUTH | {"x": [1.0]}}, "one length"),
        ({"truth": TRUTH | {"id": [-1, 2, 3, 4]}}, "negative"),
        ({"truth_outcome": ["matched"]}, "One outcome per truth"),
        ({"detection_outcome": ["spurious"]}, "One outcome per detection"),
    ],
)
def test_table_refuses_what_does_not_fit(change, words):
    given = {"truth": TRUTH, "detections": FOUND, "match": MATCH} | change
    with pytest.raises(ValueError, match=words):
        make_match_table(**given)


def test_rows(table):
    sources = MatchedSources(table)
    np.testing.assert_array_equal(np.flatnonzero(sources.truths()), [0, 1, 2])
    np.testing.assert_array_equal(np.flatnonzero(sources.truths(False)), [1, 2])
    np.testing.assert_array_equal(np.flatnonzero(sources.detections()), [0, 1, 4])
    strict = MatchedSources(table, min_score=0.85)
    np.testing.assert_array_equal(np.flatnonzero(strict.detections(True)), [0])
    np.testing.assert_array_equal(np.flatnonzero(strict.matched()), [0])
    hits, total = sources.share("class_accuracy")
    assert (np.flatnonzero(hits).tolist(), np.flatnonzero(total).tolist()) == ([0], [0, 1])
    hits, total = sources.share("class_purity", True)
    assert (np.flatnonzero(hits).tolist(), np.flatnonzero(total).tolist()) == ([0], [0, 1])
    assert np.flatnonzero(sources.share("class_completeness", False)[1]).tolist() == [1]


def test_magnitude_of_no_flux_is_nan():
    np.testing.assert_allclose(ab_magnitude([1.0, 100.0]), [31.4, 26.4])
    assert np.isnan(ab_magnitude([0.0, -1.0, np.nan])).all()


def test_interval_covers():
    """The true share lies within the interval about as often as asked, on average over shares."""
    n = 40
    hits = np.arange(n + 1)
    low, high = binomial_interval(hits, n)
    assert np.all(low <= hits / n) and np.all(hits / n <= high)
    assert low[0] == 0.0 and high[-1] == 1.0 and low.min() >= 0.0 and high.max() <= 1.0
    shares = np.linspace(0.05, 0.95, 181)[:, None]
    covered = (scipy.stats.binom.pmf(hits, n, shares) * ((low <= shares) & (shares <= high))).sum(axis=1)
    assert covered.mean() == pytest.approx(0.6827, abs=0.015)


def test_interval_by_hand():
    # Wilson with z = 1 for 1 of 2: (1/2 + 1/4) / (3/2) +- sqrt(1/8 + 1/16) / (3/2).
    low, high = binomial_interval(1, 2)
    assert (low, high) == (pytest.approx(0.5 - np.sqrt(3) / 6), pytest.approx(0.5 + np.sqrt(3) / 6))
    # For no hit of n, z^2 / (n + z^2).
    assert binomial_interval(0, 9)[1] == pytest.approx(0.1)
    assert np.isnan(binomial_interval(0, 0)).all()
    assert np.isnan(fraction(0, 0).value)
    for wrong in ({"hits": 3}, {"hits": -1}):
        with pytest.raises(ValueError):
            binomial_interval(**({"hits": 1, "total": 2} | wrong))


def test_bins():
    values = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.1, -0.1, np.nan])
    hit = np.array([1, 0, 1, 1, 0, 1, 1, 1], dtype=bool)
    binned = binned_fraction(values, hit, [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(binned.total, [2, 3])
    np.testing.assert_array_equal(binned.hits, [1, 2])
    np.testing.assert_allclose(binned.center, [0.25, 1.5])
    everything = binned_fraction(values, hit, [-np.inf, 0.0, 10.0, np.inf])
    np.testing.assert_array_equal(everything.total, [1, 6, 0])
    assert everything.center[2] == 10.0 and np.isnan(everything.fraction[2]) and np.isnan(everything.low[2])
    assert list(binned.columns()) == [
        "bin_low",
        "bin_high",
        "center",
        "hits",
        "total",
        "fraction",
        "low",
        "high",
    ]
    assert binned_fraction([], [], [0.0, 1.0]).total.tolist() == [0]
    for edges in ([0.0], [1.0, 0.0], [0.0, np.nan]):
        with pytest.raises(ValueError, match="ascending"):
            binned_fraction(values, hit, edges)
    with pytest.raises(ValueError, match="one shape"):
        binned_fraction(values, hit[:3], [0.0, 1.0])


def test_edges():
    np.testing.assert_allclose(even_edges([20.0, np.nan, 21.0]), [20.0, 20.5, 21.0])
    np.testing.assert_allclose(even_edges([3.0]), [3.0, 3.5])
    assert len(even_edges([])) == 2 and len(log_edges([0.0, -1.0], 4)) == 2
    np.testing.assert_allclose(log_edges([1.0, 90.0, 0.0], 1), [1.0, 10.0, 100.0])
    values = np.random.default_rng(1).normal(size=1000)
    assert binned_fraction(values, values > 0, even_edges(values, 0.3)).total.sum() == 1000


def test_robust_statistics_of_a_normal_sample(rng):
    sample = rng.normal(3.0, 2.0, 40_000)
    result = robust_statistics(sample)
    assert result.median == pytest.approx(3.0, abs=5 * result.median_error)
    assert result.median_error == pytest.approx(1.2533 * 2.0 / 200.0, rel=0.03)
    assert result.scatter == pytest.approx(2.0, rel=0.03)
    assert result.outliers.value == pytest.approx(0.0027, abs=0.0015)
    dirty = np.concatenate([sample, np.full(2000, 1e6), [np.nan, np.inf]])
    result = robust_statistics(dirty)
    assert result.n == 42_000 and 2000 <= result.outliers.hits < 2150
    assert result.scatter == pytest.approx(2.0, rel=0.12)
    nothing = robust_statistics([np.nan])
    assert nothing.n == 0 and np.isnan([nothing.median, nothing.scatter, nothing.outliers.value]).all()


def test_weighted_median_counts_values_several_times(rng):
    values, weights = rng.normal(size=9), rng.integers(0, 4, (20, 9))
    weights[0] = 0
    wanted = [np.median(np.repeat(values, one)) if one.any() else np.nan for one in weights]
    np.testing.assert_allclose(weighted_median(values, weights.astype(float)), wanted)
    # Each row with values of its own.
    rows = rng.normal(size=(20, 9))
    wanted = [np.median(np.repeat(row, one)) if one.any() else np.nan for row, one in zip(rows, weights)]
    np.testing.assert_allclose(weighted_median(rows, weights.astype(float)), wanted)
    assert np.isnan(weighted_median(np.zeros(0), np.zeros((2, 0)))).all()


def test_binned_statistics_are_those_of_each_bin(rng):
    x, y = rng.uniform(0.0, 3.0, 500), rng.normal(size=500)
    y[::50] = np.nan
    binned = binned_statistics(x, y, [0.0, 1.0, 2.0, 3.0, 4.0])
    for i in range(3):
        alone = robust_statistics(y[(x >= i) & (x < i + 1)])
        assert binned.n[i] == alone.n and binned.median[i] == alone.median
        assert binned.scatter[i] == alone.scatter and binned.outliers.hits[i] == alone.outliers.hits
    assert binned.n[3] == 0 and np.isnan(binned.median[3])
    assert len(binned.columns()["outlier_fraction"]) == 4


def test_in_bins_by_hand(table):
    binned = MatchedSources(table).binned_share
    completeness = binned("completeness", "mag", [20.0, 23.0, 25.0, 27.0])
    np.testing.assert_array_equal(completeness.hits, [2, 0, 0])
    np.testing.assert_array_equal(completeness.total, [2, 1, 0])
    purity = binned("purity", "score", [0.0, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(purity.hits, [0, 0, 2])
    np.testing.assert_array_equal(purity.total, [0, 1, 2])
    purity = binned("purity_same_class", "flux_detected", [0.0, 10.0, 1000.0], True)
    np.testing.assert_array_equal(purity.hits, [0, 1])
    np.testing.assert_array_equal(purity.total, [0, 2])
    assert binned("completeness_same_class", "mag", [20.0, 23.0, 25.0], False).hits.tolist() == [0, 0]
    strict = MatchedSources(table, min_score=0.85).binned_share("completeness", "mag", [20.0, 23.0])
    assert strict.hits.tolist() == [1]
    nothing = MatchedSources(empty_table()).binned_share("completeness", "snr", [1.0, 2.0])
    assert nothing.total.tolist() == [0]


def injected(rng, n=20_000, plateau=0.95, midpoint=24.6, width=0.3):
    mag = rng.uniform(20.0, 27.0, n)
    share = plateau / (1.0 + np.exp((mag - midpoint) / width))
    return mag, rng.random(n) < share


def test_known_completeness_is_recovered(rng):
    mag, found = injected(rng)
    # 0.95 / (1 + exp(u)) = 1/2 at u = log(0.9).
    truth = 24.6 + 0.3 * np.log(0.9)
    binned = binned_fraction(mag, found, even_edges(mag, 0.25))
    limit = completeness_limit(binned)
    assert limit.value == pytest.approx(truth, abs=0.03)
    assert limit.low < limit.value < limit.high


def test_no_limit_without_a_fall(rng):
    mag = rng.uniform(20.0, 24.0, 100)
    for found in (np.ones(100, dtype=bool), np.zeros(100, dtype=bool)):
        assert np.isnan(completeness_limit(binned_fraction(mag, found, even_edges(mag))).value)
    assert np.isnan(completeness_limit(binned_fraction([], [], [0.0, 1.0])).value)


def test_the_last_fall_counts():
    # A dip among bright sources, an empty bin, then the fall from 1 to 0 between 23.5 and 24.5.
    mag = np.repeat([20.5, 21.5, 23.5, 24.5], 4)
    found = np.repeat([False, True, True, False], 4)
    limit = completeness_limit(binned_fraction(mag, found, np.arange(20.0, 26.0)))
    assert limit.value == pytest.approx(24.0)
    # One faint source found by chance is no recovery.
    late = completeness_limit(binned_fraction([*mag, 25.5], [*found, True], np.arange(20.0, 27.0)))
    assert late.value == pytest.approx(24.0)


def test_a_dip_without_a_fall_is_no_limit():
    mag = np.repeat([18.5, 19.5, 20.5, 21.5], [1, 1, 9, 9])
    found = np.repeat([True, False, True, True], [1, 1, 9, 9])
    limit = completeness_limit(binned_fraction(mag, found, np.arange(18.0, 23.0)))
    assert np.isnan([limit.value, limit.low, limit.high]).all()
