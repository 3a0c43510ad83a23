# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Masks as spans, and their overlaps against painted images."""

import numpy as np
import pytest

import lsst.meas.maskrcnn.metrics.spans as spans_module
from lsst.meas.maskrcnn.metrics.spans import SpanMasks, mask_pairs

HEIGHT, WIDTH, Y0, X0 = 70, 110, -20, 5000


def random_masks(rng, number, shape=(HEIGHT, WIDTH), origin=(Y0, X0)):
    """Draw masks with holes and separate parts, some empty, in an image with an offset."""
    masks, origins = [], []
    for _ in range(number):
        h, w = rng.integers(1, 25, 2)
        masks.append(rng.random((h, w)) < rng.choice([0.0, 0.2, 0.7, 1.0], p=[0.1, 0.3, 0.3, 0.3]))
        origins.append([origin[0] + rng.integers(0, shape[0] - h), origin[1] + rng.integers(0, shape[1] - w)])
    return masks, np.array(origins, dtype=np.int32)


def painted(masks, origins):
    images = np.zeros((len(masks), HEIGHT, WIDTH), dtype=bool)
    for image, mask, (y0, x0) in zip(images, masks, origins):
        image[y0 - Y0 : y0 - Y0 + mask.shape[0], x0 - X0 : x0 - X0 + mask.shape[1]] = mask
    return images


def same(first, second):
    return all(np.array_equal(getattr(first, k), getattr(second, k)) for k in ("offsets", "y", "x0", "x1"))


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def test_what_is_put_in_comes_out(rng):
    masks, origins = random_masks(rng, 60)
    images = painted(masks, origins)
    spans = SpanMasks.from_masks(masks, origins)
    assert len(spans) == 60
    np.testing.assert_array_equal(spans.areas, images.sum(axis=(1, 2)))
    np.testing.assert_array_equal(painted(*spans.to_masks()), images)
    for image, box, centroid in zip(images, spans.boxes, spans.centroids):
        y, x = np.nonzero(image)
        if len(y):
            corners = [x.min() + X0, y.min() + Y0, x.max() + 1 + X0, y.max() + 1 + Y0]
            np.testing.assert_array_equal(box, corners)
            np.testing.assert_allclose(centroid, [y.mean() + Y0, x.mean() + X0])
        else:
            assert not box.any() and np.isnan(centroid).all()


def test_few_at_once_are_as_many(rng, monkeypatch):
    first, second = random_masks(rng, 40), random_masks(rng, 30)
    whole, pairs = SpanMasks.from_masks(*first), mask_pairs(*first, *second)
    monkeypatch.setattr(spans_module, "_CELLS", 300)
    monkeypatch.setattr(spans_module, "_SPAN_PAIRS", 50)
    assert same(SpanMasks.from_masks(*first), whole)
    again = mask_pairs(*first, *second)
    for name in ("first", "second", "intersection", "iou"):
        np.testing.assert_array_equal(getattr(again, name), getattr(pairs, name))


def test_iou_is_that_of_painted_images(rng):
    first, second = random_masks(rng, 50), random_masks(rng, 40)
    a, b = (painted(*one).reshape(len(one[0]), -1).astype(int) for one in (first, second))
    shared = a @ b.T
    union = a.sum(axis=1)[:, None] + b.sum(axis=1) - shared
    pairs = mask_pairs(*first, *second)
    assert len(pairs) > 100
    np.testing.assert_array_equal(np.stack([pairs.first, pairs.second]), np.nonzero(shared))
    np.testing.assert_array_equal(pairs.intersection, shared[shared > 0])
    np.testing.assert_array_equal(pairs.iou, (shared / np.maximum(union, 1))[shared > 0])


def test_touching_masks_share_nothing_and_nested_ones_all():
    block = np.ones((4, 6), dtype=bool)
    assert not len(mask_pairs([block], [[0, 0]], [block, block], [[4, 0], [0, 6]]))
    pairs = mask_pairs([block], [[0, 0]], [np.ones((2, 3), dtype=bool)], [[1, 1]])
    assert pairs.intersection.tolist() == [6] and pairs.iou.tolist() == [6 / 24]


def test_select_and_concatenate(rng):
    masks, origins = random_masks(rng, 20)
    spans = SpanMasks.from_masks(masks, origins)
    chosen = [7, 3, 3, 19, 0]
    expected = SpanMasks.from_masks([masks[i] for i in chosen], origins[chosen])
    assert same(spans.select(chosen), expected)
    assert same(spans.select(np.arange(20) % 2 == 0), spans.select(np.arange(0, 20, 2)))
    assert len(spans.select([])) == 0
    assert same(SpanMasks.concatenate([spans.select(range(5)), spans.select(range(5, 20))]), spans)
    assert len(SpanMasks.concatenate([])) == len(SpanMasks.from_masks([], [])) == 0


def test_pixels_of_masks(rng):
    masks, origins = random_masks(rng, 30)
    owner, y, x = SpanMasks.from_masks(masks, origins).pixels()
    expected = np.argwhere(painted(masks, origins))
    np.testing.assert_array_equal(np.stack([owner, y - Y0, x - X0], axis=1), expected)


def test_united_masks_are_those_of_painted_images(rng):
    masks, origins = random_masks(rng, 60)
    group = rng.integers(0, 12, 60)
    group[group == 5] = 6
    images = painted(masks, origins)
    union = np.stack([images[group == number].any(axis=0) for number in range(12)])
    corners = np.full((12, 2), (Y0, X0))
    assert same(SpanMasks.from_masks(masks, origins).unite(group, 12), SpanMasks.from_masks(union, corners))
    nothing = SpanMasks.from_masks([np.zeros((0, 0), bool)] * 2, [[0, 0]] * 2)
    assert nothing.unite(np.array([1, 0]), 3).areas.tolist() == [0, 0, 0]


def test_the_share_in_masked_pixels(rng):
    masks, origins = random_masks(rng, 30)
    images = painted(masks, origins)
    bad = rng.random((HEIGHT, WIDTH)) < 0.4
    spans = SpanMasks.from_masks(masks, origins)
    with np.errstate(invalid="ignore"):
        expected = (images & bad).sum(axis=(1, 2)) / images.sum(axis=(1, 2))
        part = bad.copy()
        part[:, :30] = part[40:] = False
        inside = (images & part).sum(axis=(1, 2)) / images.sum(axis=(1, 2))
    np.testing.assert_allclose(spans.share_in(bad, (Y0, X0)), expected)
    np.testing.assert_allclose(spans.share_in(bad[:40, 30:], (Y0, X0 + 30)), inside)


def test_the_order_is_that_of_the_masks_not_of_the_list(rng):
    masks, origins = random_masks(rng, 40)
    masks += [np.eye(5, dtype=bool), np.eye(5, dtype=bool)[::-1]]  # one box, one area
    origins = np.concatenate([origins, [[3, 5100], [3, 5100]]])
    spans = SpanMasks.from_masks(masks, origins)
    spans = SpanMasks.concatenate([spans, spans.select([3, 40])])
    mixed = rng.permutation(len(spans))
    order = spans.order()
    np.testing.assert_array_equal(spans.select(mixed).order(), order[mixed])
    equal = [[same(spans.select([i]), spans.select([j])) for i in range(44)] for j in range(44)]
    np.testing.assert_array_equal(order[:, None] == order, equal)


def test_spans_of_a_mask_are_put_in_order():
    spans = SpanMasks([0, 3, 3, 4], [5, 4, 5, 5], [7, 0, 3, 1], [9, 2, 7, 2])
    assert spans.offsets.tolist() == [0, 2, 2, 3]
    assert (spans.y.tolist(), spans.x0.tolist(), spans.x1.tolist()) == ([4, 5, 5], [0, 3, 1], [2, 9, 2])
    assert same(SpanMasks([0, 2], [1, 1], [0, 3], [3, 6]), SpanMasks([0, 1], [1], [0], [6]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 2], [1, 1], [0, 3], [4, 6]), "Two spans of mask 0 overlap in row 1"),
        (([0, 1], [1], [3], [3]), "has no pixel"),
        (([0, 2], [1], [3], [4]), "offsets must go from 0 to the number of spans, 1"),
        (([0, 1, 0, 1], [1], [3], [4]), "must not fall"),
        (([0, 1], [1], [3, 4], [4]), "must be \\(span,\\)"),
    ],
)
def test_bad_spans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpanMasks(*arguments)


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match="2 masks need integers of the shape"):
        SpanMasks.from_masks([np.ones((2, 2), bool)] * 2, [[0, 0]])
    with pytest.raises(ValueError, match="origins are float64"):
        SpanMasks.from_masks([np.ones((2, 2), bool)], [[0.5, 0]])
    with pytest.raises(ValueError, match="1 of 2 masks do not have two axes"):
        SpanMasks.from_masks([np.ones((2, 2), bool), np.ones(4, bool)], [[0, 0], [0, 0]])
