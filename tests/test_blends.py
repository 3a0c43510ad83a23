# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Groups of truths and detections, and how they ended."""

import numpy as np
import pytest

from lsst.meas.maskrcnn.metrics.blends import (
    blended_truths,
    classify_groups,
    friends_of_friends,
    group_boxes,
    group_quality,
    overlap_links,
    peak_links,
    source_outcomes,
)
from lsst.meas.maskrcnn.metrics.match_table import OUTCOMES

# One of each: 0 isolated; 1, 2 recognized; 3, 4 unrecognized; 5 shredded; 6 missed; 7 of one wrong mask.
LINKS = [[0, 0], [1, 1], [1, 2], [2, 2], [3, 3], [4, 3], [5, 4], [5, 5], [5, 6], [7, 8]]
MATCH = [0, 1, 2, 3, 5, -1, -1, -1, -1]  # detection 7 is spurious


@pytest.fixture
def groups():
    return friends_of_friends(8, 9, LINKS)


def test_groups(groups):
    np.testing.assert_array_equal(groups.truth_group, [0, 1, 1, 2, 2, 3, 4, 5])
    np.testing.assert_array_equal(groups.detection_group, [0, 1, 1, 2, 3, 3, 3, 6, 5])
    np.testing.assert_array_equal(groups.n_truth, [1, 2, 2, 1, 1, 1, 0])
    np.testing.assert_array_equal(groups.n_detection, [1, 2, 1, 3, 0, 1, 1])


def test_kinds(groups):
    assert classify_groups(groups, MATCH).tolist() == [
        "isolated",
        "recognized",
        "unrecognized",
        "shredded",
        "missed",
        "mismatched",
        "spurious",
    ]
    # The number is right, but one mask is not.
    assert classify_groups(groups, [0, 1, -1, 3, 5, -1, -1, -1, -1])[1] == "mismatched"


def test_outcomes(groups):
    truth, found = source_outcomes(groups, MATCH)
    assert truth.tolist() == [
        *("matched", "matched", "matched", "matched", "unrecognized", "matched", "missed", "mismatched")
    ]
    assert found.tolist() == [
        *(
            "matched",
            "matched",
            "matched",
            "matched",
            "matched",
            "shredded",
            "shredded",
            "spurious",
            "mismatched",
        )
    ]
    assert set(truth) | set(found) <= set(OUTCOMES)
    # Torn so that no piece is like the truth.
    truth, found = source_outcomes(groups, [0, 1, 2, 3, -1, -1, -1, -1, -1])
    assert truth[5] == "shredded" and found[4:7].tolist() == ["shredded"] * 3


def test_nothing():
    groups = friends_of_friends(0, 0, [])
    assert groups.n_groups == 0 and len(classify_groups(groups, [])) == 0
    assert [len(part) for part in source_outcomes(groups, [])] == [0, 0]
    only_truth = friends_of_friends(2, 0, [])
    assert classify_groups(only_truth, []).tolist() == ["missed", "missed"]
    only_found = friends_of_friends(0, 2, [])
    assert classify_groups(only_found, [-1, -1]).tolist() == ["spurious", "spurious"]


def test_ignored_truths_link_nothing():
    # Truth 1 is ignored and touches the detections of truths 0 and 2; detection 3 lies on it alone.
    links = [[0, 0], [1, 0], [1, 1], [2, 1], [1, 2], [1, 3]]
    ignored = [False, True, False]
    groups = friends_of_friends(
        3, 4, links, ignored_truth=ignored, ignored_detection=[False, False, True, False]
    )
    np.testing.assert_array_equal(groups.truth_group, [0, -1, 1])
    np.testing.assert_array_equal(groups.detection_group, [0, 1, -1, -1])
    match = [0, 2, 1, -1]
    assert classify_groups(groups, match).tolist() == ["isolated", "isolated"]
    truth, found = source_outcomes(groups, match)
    assert truth.tolist() == ["matched", "ignored", "matched"]
    assert found.tolist() == ["matched", "matched", "ignored", "ignored"]


def test_links_of_truths_make_blends_of_what_was_not_found():
    links = [[0, 0]]
    assert friends_of_friends(2, 1, links).n_truth.tolist() == [1, 1]
    groups = friends_of_friends(2, 1, links, truth_links=[[0, 1]])
    assert classify_groups(groups, [0]).tolist() == ["unrecognized"]
    ignoring = friends_of_friends(2, 1, links, truth_links=[[0, 1]], ignored_truth=[False, True])
    assert classify_groups(ignoring, [0]).tolist() == ["isolated"]


def test_a_match_across_groups_is_none_for_the_group():
    groups = friends_of_friends(2, 2, [[0, 0], [1, 1]])
    assert classify_groups(groups, [1, 0]).tolist() == ["mismatched", "mismatched"]


def test_errors():
    with pytest.raises(ValueError, match="Links must point"):
        friends_of_friends(1, 1, [[0, 1]])
    with pytest.raises(ValueError, match="One flag per truth"):
        friends_of_friends(2, 1, [], ignored_truth=[True])
    with pytest.raises(ValueError, match="One match per detection"):
        classify_groups(friends_of_friends(1, 1, []), [])
    with pytest.raises(ValueError, match="positive"):
        peak_links([[0, 0]], [[0, 0]], 0.0)


def test_friends_of_friends_against_a_plain_search(rng):
    n, m = 60, 50
    links = np.stack([rng.integers(0, n, 55), rng.integers(0, m, 55)], axis=1)
    groups = friends_of_friends(n, m, links)
    label = np.arange(n + m)
    for _ in range(n + m):
        for a, b in links:
            label[[a, n + b]] = min(label[a], label[n + b])
    group = np.concatenate([groups.truth_group, groups.detection_group])
    np.testing.assert_array_equal(group[:, None] == group, label[:, None] == label)
    np.testing.assert_array_equal(np.unique(group), np.arange(groups.n_groups))
    assert groups.n_truth.sum() == n and groups.n_detection.sum() == m
    # Numbered by first truth.
    assert np.all(np.diff(np.unique(groups.truth_group, return_index=True)[1]) > 0)


def test_overlap_links():
    # A mask of 100 px holds one of 10 px: IoU 0.1; 40 of 100 and 100 px shared: IoU 1/4; 60: 3/7.
    iou = np.array([0.1, 0.25, 3 / 7])
    areas = [100, 100, 100]
    links = overlap_links([0, 1, 2], [0, 1, 2], iou, areas, [10, 100, 100])
    np.testing.assert_array_equal(links, [[0, 0], [2, 2]])
    assert overlap_links([], [], [], areas, areas).shape == (0, 2)


def test_peak_links():
    first = [[0.0, 0.0], [10.0, 0.0], [np.nan, 0.0]]
    second = [[3.0, 4.0], [10.0, 1.0], [9.5, 0.0]]
    np.testing.assert_array_equal(peak_links(first, second, 5.0), [[0, 0], [1, 1], [1, 2]])
    np.testing.assert_array_equal(peak_links(first, second, 0.6), [[1, 2]])
    assert peak_links(np.zeros((0, 2)), second, 1.0).shape == (0, 2)


def test_boxes():
    pair = friends_of_friends(2, 1, [[0, 0], [1, 0]])
    boxes = group_boxes(pair, [[8, 5, 17, 13], [14, 8, 21, 14]], [[7, 6, 15, 16]])
    assert boxes.tolist() == [[7, 5, 21, 16]]
    lonely = friends_of_friends(1, 1, [], ignored_detection=[True])
    assert group_boxes(lonely, [[1, 2, 3, 4]], [[0, 0, 9, 9]]).tolist() == [[1, 2, 3, 4]]


def test_quality(groups):
    quality = group_quality(groups, MATCH, [0.9, 0.8, 0.6, 0.7, 0.5, 0, 0, 0, 0])
    np.testing.assert_allclose(quality, [0.9, 0.7, 0.7 / 1.5, 0.5 / 2.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("distance", "flux", "snr", "blended"),
    [
        (3.9, (9.0, 1.1), (90.0, 11.0), True),
        (4.1, (9.0, 1.1), (90.0, 11.0), False),
        (3.9, (9.0, 0.9), (90.0, 9.0), False),
        (3.9, (9.0, 1.1), (40.0, 4.9), False),
    ],
)
def test_truths_that_blend_are_near_and_alike(distance, flux, snr, blended):
    x, y = [0.0, distance, 30.0], [5.0, 5.0, 5.0]
    found = blended_truths(x, y, [*flux, 9.0], [*snr, 90.0], fwhm=4.0)
    assert found.tolist() == [blended, blended, False]
    assert blended_truths([], [], [], [], fwhm=4.0).tolist() == []
