# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of tiles and of detections across their seams."""

from __future__ import annotations

import numpy as np
import pytest
from fixed_bands import grid, toy_scene
from fixed_bands import observe as add_noise

from lsst.meas.maskrcnn.images.tiles import Tile, make_tiles
from lsst.meas.maskrcnn.metrics.matching import greedy_match
from lsst.meas.maskrcnn.metrics.spans import mask_pairs
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.network.inference import DetectionSettings, detect


@pytest.mark.parametrize(
    "shape", [(1, 1), (64, 64), (65, 64), (37, 200), (300, 200), (1000, 257), (513, 512)]
)
@pytest.mark.parametrize(("size", "overlap"), [(64, 0), (64, 16), (64, 57), (128, 32), (512, 128), (7, 3)])
def test_tiles_cover_the_image(shape: tuple[int, int], size: int, overlap: int) -> None:
    tiles = make_tiles(*shape, size, overlap)
    count = np.zeros(shape, dtype=int)
    height, width = tiles[0].height, tiles[0].width
    assert height <= min(size, shape[0]) and width <= min(size, shape[1])
    for tile in tiles:
        assert (tile.height, tile.width) == (height, width)
        assert 0 <= tile.y0 < tile.y1 <= shape[0] and 0 <= tile.x0 < tile.x1 <= shape[1]
        count[tile.slices] += 1
    assert count.min() >= 1
    assert len(set(tiles)) == len(tiles)
    for side, starts in ((height, sorted({t.y0 for t in tiles})), (width, sorted({t.x0 for t in tiles}))):
        steps = np.diff(starts)
        assert (steps <= side - overlap).all()
        # No more overlap than whole pixels ask for.
        assert not steps.size or steps.mean() > side - overlap - 2
    # No more tiles than the sizes ask for.
    along = [1 if n <= size else 1 + -(-(n - size) // (size - overlap)) for n in shape]
    assert len(tiles) == along[0] * along[1]


def test_tiles_of_nothing() -> None:
    assert make_tiles(0, 10, 64, 16) == []
    assert make_tiles(10, 0, 64, 16) == []
    assert make_tiles(10, 12, 64, 16) == [Tile(0, 0, 10, 12)]


@pytest.mark.parametrize(
    ("size", "overlap", "align"), [(100, 36, 32), (512, 128, 32), (96, 64, 32), (90, 80, 32)]
)
@pytest.mark.parametrize("shape", [(301, 470), (1024, 3400), (96, 513)])
def test_tiles_begin_on_a_grid(shape: tuple[int, int], size: int, overlap: int, align: int) -> None:
    tiles = make_tiles(*shape, size, overlap, align)
    count = np.zeros(shape, dtype=int)
    for tile in tiles:
        count[tile.slices] += 1
    assert count.min() >= 1
    sides = tiles[0].height, tiles[0].width
    for axis, starts in enumerate((sorted({t.y0 for t in tiles}), sorted({t.x0 for t in tiles}))):
        assert (np.diff(starts) <= sides[axis] - overlap).all() and sides[axis] <= size
        if size - overlap >= align:
            assert all(start % align == 0 for start in starts)
            assert shape[axis] - starts[-1] > min(sides[axis], shape[axis]) - align
        assert shape[axis] - starts[-1] <= sides[axis]


@pytest.fixture(scope="module")
def field(fixed_model):
    """A field of 900 x 700 px, normalised, with the network that knows such sources."""
    rng = np.random.default_rng([7, 1])
    return fixed_model.build(), add_noise(toy_scene(900, 700, grid(900, 700, rng)), rng)[0]


def find(field, y0: int, x0: int) -> Detections:
    """The catalogue of the field from (y0, x0) on, in pixels of the whole."""
    network, image = field
    part = np.ascontiguousarray(image[:, y0:, x0:])
    found = detect(network, part, None, DetectionSettings(tile_size=352, tile_overlap=128))
    found.boxes += np.array([x0, y0, x0, y0], dtype=np.float32)
    found.origins += np.array([y0, x0], dtype=np.int32)
    return found


def differences(first: Detections, second: Detections, low: tuple[int, int], score: float) -> tuple[int, int]:
    """Number of detections of some score of which the other catalogue has none, and of all.

    Only those from ``low`` (y, x) on count.
    """
    lost = total = 0
    for one, other in ((first, second), (second, first)):
        pairs = mask_pairs(one.masks, one.origins, other.masks, other.origins)
        match = greedy_match(pairs, one.scores, len(other), 0.5)
        middle = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2
        counts = (middle[:, 1] >= low[0]) & (middle[:, 0] >= low[1]) & (one.scores >= score)
        lost += int((counts & (match < 0)).sum())
        total += int(counts.sum())
    return lost, total


def test_shifted_tiles_give_the_same_catalogue(field) -> None:
    """Cut at other places, a field has the same sources, each once, in the same order."""
    whole, shifted = find(field, 0, 0), find(field, 64, 96)
    low = (64 + 64, 96 + 64)  # what lies at the edge of one is not at that of the other
    lost, total = differences(whole, shifted, low, 0.7)
    assert total > 200
    assert lost <= 0.03 * total
    lost, total = differences(whole, shifted, low, 0.5)
    assert lost <= 0.06 * total
    # By a shift that is no multiple of its strides, the network itself changes its mind.
    odd = find(field, 37, 53)
    lost, total = differences(whole, odd, (37 + 64, 53 + 64), 0.9)
    assert lost <= 0.06 * total
    for found in (whole, shifted, odd):
        pairs = mask_pairs(found.masks, found.origins, found.masks, found.origins)
        assert (np.diff(found.scores) <= 0).all()
        repeated = (pairs.first != pairs.second) & (pairs.iou > 0.9)
        assert not repeated.any()


def test_the_order_is_always_the_same(field) -> None:
    first, second = find(field, 450, 250), find(field, 450, 250)
    assert len(first) > 50
    for name in ("boxes", "scores", "p_star", "origins", "soft_origins"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    key = list(zip(-first.scores, first.boxes[:, 1], first.boxes[:, 0], strict=True))
    assert key == sorted(key)
