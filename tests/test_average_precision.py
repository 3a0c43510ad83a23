# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Average precision and matching against cases worked out by hand."""

import numpy as np
import pytest

from lsst.meas.maskrcnn.metrics.average_precision import average_precision, greedy_match, mask_pairs


def test_perfect():
    assert average_precision(np.array([0.9, 0.8]), np.array([True, True]), 2) == 1.0


def test_worked_by_hand():
    # hit, miss, hit of three truths: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3; interpolated 1, 2/3, 2/3.
    ap = average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 3)
    assert ap == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)


def test_equal_scores_enter_together():
    hit = np.array([True, False, True, False])
    scores = np.full(4, 0.5)
    values = {
        average_precision(scores, hit[order], 2) for order in ([0, 1, 2, 3], [3, 1, 0, 2], [1, 3, 2, 0])
    }
    assert values == {0.5}


def test_nothing():
    assert average_precision(np.zeros(0), np.zeros(0, dtype=bool), 3) == 0.0
    assert np.isnan(average_precision(np.array([0.9]), np.array([False]), 0))


def test_pairs_share_pixels():
    a = [np.ones((4, 4), dtype=bool), np.ones((2, 2), dtype=bool)]
    b = [np.ones((4, 4), dtype=bool), np.eye(4, dtype=bool)]
    pairs = mask_pairs(a, np.array([[0, 0], [50, 50]]), b, np.array([[2, 0], [0, 2]]))
    np.testing.assert_array_equal(pairs.first, [0, 0])
    np.testing.assert_array_equal(pairs.second, [0, 1])
    # 8 of 16 + 16 - 8 pixels; the diagonal has 2 of its 4 pixels inside.
    np.testing.assert_allclose(pairs.iou, [8 / 24, 2 / 18])


def test_a_duplicate_is_a_miss():
    truth = [np.ones((4, 4), dtype=bool)]
    origins = np.zeros((2, 2), dtype=np.int32)
    pairs = mask_pairs([truth[0], np.ones((4, 3), dtype=bool)], origins, truth, origins[:1])
    np.testing.assert_array_equal(greedy_match(pairs, np.array([0.6, 0.9]), 1), [-1, 0])


def test_equal_scores_match_the_better_pair_whatever_the_order():
    truth = [np.ones((4, 4), dtype=bool)]
    found = [np.ones((4, 3), dtype=bool), np.ones((4, 4), dtype=bool)]
    for order in ([0, 1], [1, 0]):
        pairs = mask_pairs([found[i] for i in order], np.zeros((2, 2), int), truth, np.zeros((1, 2), int))
        assert greedy_match(pairs, np.array([0.7, 0.7]), 1)[order.index(1)] == 0
