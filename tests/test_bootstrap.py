# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bootstrap errors against what is known of means, and comparisons of runs."""

import numpy as np
import pytest

import lsst.meas.maskrcnn.metrics.bootstrap as bootstrap_module
from lsst.meas.maskrcnn.metrics.average_precision import ap_statistic, collect_outcomes, compute_ap
from lsst.meas.maskrcnn.metrics.bootstrap import bootstrap, combine, paired_bootstrap, ratio_statistic
from lsst.meas.maskrcnn.metrics.matching import ImagePairs
from lsst.meas.maskrcnn.metrics.spans import SpanMasks

NAMES = tuple(f"patch {k}" for k in range(30))


def mean_of(values, names=NAMES):
    return ratio_statistic(names, values, np.ones_like(values))


def image(name, scores, good, n_truth):
    """Detections of one row each; the truths are the rows from 0."""
    row = np.where(good, np.arange(len(scores)) % n_truth, 1000 + np.arange(len(scores)))
    masks = [np.ones((1, 10), bool)]
    found = SpanMasks.from_masks(masks * len(scores), np.stack([row, 0 * row], axis=1))
    truths = SpanMasks.from_masks(masks * n_truth, [[k, 0] for k in range(n_truth)])
    return ImagePairs.from_spans(
        found, scores, np.ones(len(scores), int), truths, np.ones(n_truth, int), name=name
    )


def test_the_error_of_a_mean():
    rng = np.random.default_rng(1)
    values = rng.normal(5.0, 2.0, (30, 2))
    result = bootstrap(mean_of(values), rng, n_samples=4000)
    np.testing.assert_allclose(result.value, values.mean(axis=0))
    expected = values.std(axis=0) / np.sqrt(30)
    np.testing.assert_allclose(result.error, expected, rtol=0.06)
    # Nearly a normal distribution: the limits are one sigma off.
    np.testing.assert_allclose(result.high - result.value, expected, rtol=0.12)
    np.testing.assert_allclose(result.value - result.low, expected, rtol=0.12)
    wide = bootstrap(mean_of(values), rng, n_samples=4000, level=0.9545)
    np.testing.assert_allclose(wide.high - wide.low, 4 * expected, rtol=0.1)
    assert result.samples.shape == (4000, 2)


def test_one_seed_one_result_however_many_at_once(monkeypatch):
    values = np.random.default_rng(2).normal(size=30)
    first = bootstrap(mean_of(values), np.random.default_rng(3), n_samples=100)
    monkeypatch.setattr(bootstrap_module, "_CELLS", 700)
    again = bootstrap(mean_of(values), np.random.default_rng(3), n_samples=100)
    np.testing.assert_allclose(first.samples, again.samples, atol=1e-14)


def test_the_limits_cover_the_truth():
    """Of many sets of images, about the level asked for has the truth between its limits."""
    rng = np.random.default_rng(4)
    inside = 0
    for _ in range(300):
        result = bootstrap(mean_of(rng.normal(1.0, 1.0, 30)), rng, n_samples=200, level=0.8)
        inside += bool(result.low[0] <= 1.0 <= result.high[0])
    # 0.8 of 300 with an error of 7; percentile limits of 30 images are a little narrow.
    assert 215 < inside < 262


def test_a_ratio_weighs_images_by_what_is_in_them():
    found, truths = np.array([1.0, 30.0, 0.0]), np.array([1.0, 60.0, 0.0])
    statistic = ratio_statistic(("a", "b", "c"), found, truths)
    assert statistic.value == pytest.approx(31 / 61)
    weights = np.array([[3.0, 0, 0], [1, 2, 0], [0, 0, 3]])
    np.testing.assert_allclose(statistic.function(weights)[:, 0], [1.0, 61 / 121, np.nan])
    # Samples of the empty image alone have no value and are left out.
    result = bootstrap(statistic, np.random.default_rng(5), n_samples=500)
    missing = np.isnan(result.samples).mean()
    assert missing == pytest.approx(1 / 27, abs=0.03) and missing > 0
    assert np.isfinite([result.error, result.low, result.high]).all()


def test_a_single_image_has_no_error():
    result = bootstrap(mean_of(np.array([0.7]), ("a",)), np.random.default_rng(6), n_samples=10)
    assert result.value.tolist() == [0.7]
    assert np.isnan([result.error, result.low, result.high]).all()
    with pytest.raises(ValueError, match="10 samples of 0 images"):
        bootstrap(mean_of(np.zeros(0), ()), np.random.default_rng(6), n_samples=10)


def test_a_pair_is_judged_by_its_difference():
    """Images differ much, the runs a little but in each of them."""
    rng = np.random.default_rng(7)
    hard = rng.normal(0.5, 0.2, 30)
    first, second = mean_of(hard), mean_of(hard + 0.02 + rng.normal(0, 0.01, 30))
    result = paired_bootstrap(first, second, rng, n_samples=2000)
    assert result.difference.value == pytest.approx(0.02, abs=0.006)
    assert result.p_value < 0.01
    assert bootstrap(first, rng).error > 10 * result.difference.error
    assert (result.first, result.second) == (pytest.approx(hard.mean()), second.value)
    backwards = paired_bootstrap(second, first, rng, n_samples=2000)
    np.testing.assert_allclose(backwards.difference.value, -result.difference.value)


def test_equal_runs_do_not_differ():
    values = np.random.default_rng(8).normal(size=30)
    result = paired_bootstrap(mean_of(values), mean_of(values), np.random.default_rng(9))
    assert result.p_value == 1.0 and result.difference.value == result.difference.error == 0.0


def test_p_values_of_chance_are_even():
    """Without a difference, p is below 0.2 about as often as it says."""
    rng = np.random.default_rng(10)
    p_values = []
    for _ in range(300):
        a, b = rng.normal(size=(2, 30))
        p_values.append(paired_bootstrap(mean_of(a), mean_of(b), rng, n_samples=200).p_value[0])
    assert 0.13 < np.mean(np.array(p_values) < 0.2) < 0.29
    assert 0.4 < np.mean(np.array(p_values) < 0.5) < 0.62


def test_other_images_are_refused():
    first, second = mean_of(np.ones(2), ("a", "b")), mean_of(np.ones(2), ("a", "c"))
    with pytest.raises(ValueError, match="only one of them has b, c"):
        paired_bootstrap(first, second, np.random.default_rng(0))
    with pytest.raises(ValueError, match="their order differs"):
        paired_bootstrap(first, mean_of(np.ones(2), ("b", "a")), np.random.default_rng(0))
    with pytest.raises(ValueError, match="different images"):
        combine(lambda a, b: a + b, first, second)
    with pytest.raises(ValueError, match=r"above and below are \(3,\) and \(2,\)"):
        ratio_statistic(("a", "b"), np.ones(3), np.ones(2))


def test_figures_are_combined():
    a, b = np.random.default_rng(11).normal(size=(2, 30))
    both = combine(lambda x, y: (x + y) / 2, mean_of(a), mean_of(b))
    assert both.value == pytest.approx((a.mean() + b.mean()) / 2)
    result = bootstrap(both, np.random.default_rng(12), n_samples=2000)
    assert result.error == pytest.approx(((a + b) / 2).std() / np.sqrt(30), rel=0.1)


def test_the_error_of_average_precision():
    """The bootstrap of one set has the scatter of many sets."""
    rng = np.random.default_rng(13)

    def outcomes(n_images):
        images = []
        for k in range(n_images):
            n_truth = 20
            quality = rng.uniform(0.5, 1.0)  # images differ
            good = rng.random(20) < quality
            scores = np.where(good, rng.normal(0.7, 0.2, 20), rng.normal(0.5, 0.2, 20))
            images.append(image(str(k), scores, good, n_truth))
        return collect_outcomes(images, thresholds=(0.5,))

    scatter = np.std([compute_ap(outcomes(40), "pooled").at(0.5) for _ in range(40)])
    errors = [bootstrap(ap_statistic(outcomes(40)), rng, n_samples=200).error[0] for _ in range(10)]
    assert np.mean(errors) == pytest.approx(scatter, rel=0.3)


def test_a_better_run_is_seen():
    rng = np.random.default_rng(14)
    runs = ([], [])
    for k in range(25):
        draw, scores = rng.random(20), rng.random(20)
        for run, quality in zip(runs, (0.6, 0.75)):
            run.append(image(str(k), scores, draw < quality, 20))
    first, second = (ap_statistic(collect_outcomes(run, thresholds=(0.5, 0.75))) for run in runs)
    result = paired_bootstrap(first, second, rng, n_samples=500)
    assert (result.difference.value > 0.05).all() and (result.p_value < 0.01).all()
    np.testing.assert_allclose(
        result.difference.value, compute_ap(collect_outcomes(runs[1]), "pooled").at(0.5) - result.first[0]
    )
