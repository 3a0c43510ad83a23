# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Matching of detections with truths, on cases worked out by hand and against plain loops."""

import numpy as np
import pytest

from lsst.meas.maskrcnn.metrics.matching import (
    IOU_THRESHOLDS,
    AreaRange,
    ImagePairs,
    greedy_match,
    match,
    psf_area,
)
from lsst.meas.maskrcnn.metrics.spans import SpanMasks, mask_iou, mask_pairs

STAR, GALAXY = 1, 2


def rows(*pieces):
    """Make masks of one row: (y, x0, x1) each."""
    y, x0, x1 = np.array(pieces, dtype=int).reshape(-1, 3).T
    return SpanMasks(np.arange(len(y) + 1), y, x0, x1)


def compare(found, scores, truths, labels=None, truth_labels=None, **options):
    labels = [STAR] * len(found) if labels is None else labels
    truth_labels = [STAR] * len(truths) if truth_labels is None else truth_labels
    return ImagePairs.from_spans(found, scores, labels, truths, truth_labels, **options)


def random_image(rng, n_found=60, n_truth=50, levels=6, **options):
    """Short masks in few rows, so that many overlap, and few different scores and IoU."""

    def pieces(number):
        x0 = rng.integers(0, 60, number)
        return np.stack([rng.integers(0, 3, number), x0, x0 + rng.integers(3, 9, number)], axis=1)

    return compare(
        rows(*pieces(n_found)),
        rng.integers(0, levels, n_found) / levels,
        rows(*pieces(n_truth)),
        rng.choice([STAR, GALAXY], n_found),
        rng.choice([STAR, GALAXY], n_truth),
        ignored=rng.random(n_found) < 0.2,
        truth_ignored=rng.random(n_truth) < 0.2,
        **options,
    )


def plain_greedy(image, threshold, label, area):
    """Do what `match` does, one pair at a time."""
    pairs = image.pairs
    real = ~image.truth_ignored & area.holds(image.truth_areas)
    ranked = sorted(
        (-image.class_scores[i], not real[j], -iou, image.order[i], image.truth_order[j], i, j)
        for i, j, iou in zip(pairs.first, pairs.second, pairs.iou)
        if iou >= threshold and image.labels[i] == label == image.truth_labels[j]
    )
    truth = np.full(len(image), -1)
    taken = set()
    for *_, i, j in ranked:
        if truth[i] < 0 and j not in taken:
            truth[i] = j
            taken.add(j)
    status = []
    for i in range(len(image)):
        outside = image.ignored[i] or not area.low <= image.areas[i] <= area.high
        if image.labels[i] != label or (truth[i] >= 0 and not real[truth[i]]) or (truth[i] < 0 and outside):
            status.append("ignored")
        else:
            status.append("hit" if truth[i] >= 0 else "false")
    return truth, status


@pytest.mark.parametrize("seed", range(5))
def test_all_at_once_is_one_by_one(seed):
    image = random_image(np.random.default_rng(seed))
    area = AreaRange("some", 4, 6)
    matches = match(image, (0.3, 0.5, 0.75), STAR, area)
    seen = set()
    for t, threshold in enumerate((0.3, 0.5, 0.75)):
        truth, status = plain_greedy(image, threshold, STAR, area)
        np.testing.assert_array_equal(matches.truth[t], truth)
        ours = np.where(matches.hit[t], "hit", np.where(matches.false[t], "false", "ignored"))
        assert ours.tolist() == status
        seen |= set(status)
    assert seen == {"hit", "false", "ignored"}


@pytest.mark.parametrize("label", [None, GALAXY])
def test_the_order_of_the_input_does_not_matter(label):
    rng = np.random.default_rng(7)
    found = rows(*[(int(y), int(x), int(x) + 4) for y, x in rng.integers(0, [3, 40], (60, 2))])
    truths = rows(*[(int(y), int(x), int(x) + 4) for y, x in rng.integers(0, [3, 40], (50, 2))])
    scores, labels = rng.integers(0, 3, 60) / 3, rng.choice([STAR, GALAXY], 60)
    truth_labels, faint = rng.choice([STAR, GALAXY], 50), rng.random(50) < 0.3

    def run(i, j):
        image = compare(
            found.select(i), scores[i], truths.select(j), labels[i], truth_labels[j], truth_ignored=faint[j]
        )
        matches = match(image, (0.3, 0.6), label)
        # What each mask, by its pixels, class and score, has come to.
        state = np.where(matches.hit, 2, np.where(matches.false, 1, 0))
        seen = [(*found.boxes[k], scores[k], labels[k], *state[:, n]) for n, k in enumerate(i)]
        hit = np.zeros((2, len(j)), dtype=bool)
        for step in range(2):
            hit[step, matches.truth[step][matches.hit[step]]] = True
        hit_truths = [(*truths.boxes[k], truth_labels[k], *hit[:, n]) for n, k in enumerate(j)]
        return sorted(map(str, seen)), sorted(map(str, hit_truths))

    expected = run(np.arange(60), np.arange(50))
    for _ in range(10):
        assert run(rng.permutation(60), rng.permutation(50)) == expected


def test_a_duplicate_is_false():
    image = compare(rows((0, 0, 3), (0, 0, 4)), [0.6, 0.9], rows((0, 0, 4)))
    matches = match(image, (0.5,))
    assert matches.truth.tolist() == [[-1, 0]]
    assert matches.hit.tolist() == [[False, True]] and matches.false.tolist() == [[True, False]]


def test_nested_masks():
    # A star of 4 px upon a galaxy of 20 px: IoU 1/5, so that each finds its own.
    star, galaxy = (5, 10, 14), (5, 0, 20)
    image = compare(rows(galaxy, star), [0.8, 0.9], rows(star, galaxy))
    assert match(image, (0.5,)).truth.tolist() == [[1, 0]]
    assert match(image, (0.2,)).truth.tolist() == [[1, 0]]  # greedy takes the larger IoU


def test_greedy_goes_by_score():
    # The stronger detection lies best on truth 0 (5/7), but also on 1 (1/2); the weaker only on 0 (1/3).
    found, truths = rows((0, 0, 6), (0, 4, 10)), rows((0, 1, 7), (0, -2, 4))
    image = compare(found, [0.9, 0.5], truths)
    pairs = {(i, j): iou for i, j, iou in zip(image.pairs.first, image.pairs.second, image.pairs.iou)}
    assert pairs == {(0, 0): 5 / 7, (0, 1): 0.5, (1, 0): 1 / 3}
    assert match(image, (0.3,)).truth.tolist() == [[0, -1]]


def test_a_truth_that_counts_goes_before_an_ignored_one():
    # The detection overlaps the ignored truth better (0.8) than the one that counts (0.6).
    found, truths = rows((0, 0, 10)), rows((0, 0, 8), (0, 4, 10))
    image = compare(found, [0.9], truths, truth_ignored=[True, False])
    assert image.pairs.iou.tolist() == [0.8, 0.6]
    matches = match(image, (0.5, 0.7))
    assert matches.truth.tolist() == [[1], [0]]
    assert matches.hit.tolist() == [[True], [False]]
    assert matches.false.tolist() == [[False], [False]]
    assert matches.counted.tolist() == [False, True]


def test_an_ignored_truth_takes_one_detection():
    image = compare(rows((0, 0, 10), (0, 1, 10)), [0.9, 0.8], rows((0, 0, 10)), truth_ignored=[True])
    matches = match(image, (0.5,))
    assert matches.truth.tolist() == [[0, -1]]
    assert matches.false.tolist() == [[False, True]]
    assert not matches.hit.any() and not matches.counted.any()


def test_an_ignored_detection_can_hit_but_is_not_false():
    image = compare(rows((0, 0, 5), (9, 0, 5)), [0.9, 0.8], rows((0, 0, 5)), ignored=[True, True])
    matches = match(image, (0.5,))
    assert matches.hit.tolist() == [[True, False]] and not matches.false.any()


def test_classes():
    found, truths = rows((0, 0, 5), (1, 0, 5)), rows((0, 0, 5), (1, 0, 5))
    image = compare(found, [0.9, 0.8], truths, [GALAXY, STAR], [STAR, GALAXY])
    assert match(image, (0.5,)).hit.all()
    for label in (STAR, GALAXY):
        matches = match(image, (0.5,), label)
        assert matches.false.sum() == 1 and matches.counted.sum() == 1 and not matches.hit.any()


def test_areas_have_the_unit_of_the_pixel_area():
    found, truths = rows((0, 0, 10), (1, 0, 9), (5, 0, 10)), rows((0, 0, 10), (1, 0, 10))
    image = compare(found, [0.9, 0.8, 0.7], truths, pixel_area=0.04)
    np.testing.assert_allclose(image.areas, [0.4, 0.36, 0.4])
    # The second is outside the range, but its truth is not: a hit.
    inside = match(image, (0.5,), area=AreaRange("ten", 0.39, 0.41))
    assert inside.hit.tolist() == [[True, True, False]] and inside.false.tolist() == [[False, False, True]]
    below = match(image, (0.5,), area=AreaRange("small", 0, 0.39))
    assert below.ignored.all() and not below.counted.any()
    assert psf_area(2.0) == pytest.approx(np.pi)


def test_classes_are_ranked_by_their_own_scores():
    found, truths = rows((0, 0, 10), (0, 0, 9)), rows((0, 0, 10))
    image = compare(found, [0.9, 0.8], truths, class_scores=[0.5, 0.8])
    assert match(image, (0.5,)).truth.tolist() == [[0, -1]]
    assert match(image, (0.5,), STAR).truth.tolist() == [[-1, 0]]
    assert match(image, (0.5,), STAR).scores.tolist() == [0.5, 0.8]


def test_nothing_to_match():
    none, some = rows(), rows((0, 0, 5), (2, 0, 5))
    matches = match(compare(none, [], some))
    assert matches.hit.shape == (10, 0) and matches.counted.sum() == 2
    matches = match(compare(some, [0.9, 0.8], none))
    assert matches.false.all() and matches.counted.shape == (0,)
    assert match(compare(none, [], none)).hit.shape == (10, 0)


def test_a_threshold_that_is_just_reached_is_enough():
    # 11 of 20, 12 of 20, ... pixels: every threshold is met by one detection, and by those above.
    found = rows(*[(k, 0, 10 + k) for k in range(10)])
    truths = rows(*[(k, 0, 20) for k in range(10)])
    hits = match(compare(found, np.linspace(0.9, 0.8, 10), truths)).hit
    np.testing.assert_array_equal(hits, np.arange(10) >= np.arange(len(IOU_THRESHOLDS))[:, None])


def test_greedy_match_of_equal_scores_takes_the_better_pair_whatever_the_order():
    truth = [np.ones((4, 4), dtype=bool)]
    found = [np.ones((4, 3), dtype=bool), np.ones((4, 4), dtype=bool)]
    for order in ([0, 1], [1, 0]):
        pairs = mask_pairs([found[i] for i in order], np.zeros((2, 2), int), truth, np.zeros((1, 2), int))
        assert greedy_match(pairs, np.array([0.7, 0.7]), 1)[order.index(1)] == 0


def test_greedy_match_is_match_without_what_is_ignored():
    rng = np.random.default_rng(11)
    # In order of position, by which `match` breaks ties.
    spans = [rows(*[(0, int(x), int(x) + 5) for x in np.sort(rng.integers(0, 90, 40))]) for _ in range(2)]
    image = compare(spans[0], rng.random(40), spans[1])
    ours = greedy_match(image.pairs, image.scores, 40, 0.6)
    np.testing.assert_array_equal(ours, match(image, (0.6,)).truth[0])
    assert 5 < (ours >= 0).sum() < 40
    assert greedy_match(mask_iou(rows(), rows()), [], 0).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.9, np.nan]}, "1 of 2 scores of image 'p' are NaN"),
        ({"scores": [0.9]}, r"class_scores.*|labels of image 'p' has the shape \(2,\); it must be \(1,\)"),
        ({"labels": [1, 2, 1]}, r"labels of image 'p' has the shape \(3,\); it must be \(2,\)"),
        ({"truth_ignored": [True, False]}, r"truth_ignored of image 'p' has the shape \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"scores": [0.9, 0.8], "labels": [1, 2], **change}
    with pytest.raises(ValueError, match=message):
        compare(rows((0, 0, 5), (1, 0, 5)), truths=rows((0, 0, 5)), name="p", **given)


def test_bad_options_are_refused():
    image = compare(rows((0, 0, 5)), [0.9], rows((0, 0, 5)))
    with pytest.raises(ValueError, match="must be above 0"):
        match(image, (0.0, 0.5))
    with pytest.raises(ValueError, match="from 3 down to 2"):
        AreaRange("none", 3, 2)
