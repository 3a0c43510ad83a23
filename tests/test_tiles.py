# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of tiles and of detections across their seams."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lsst.meas.maskrcnn.images.tiles import Tile, make_tiles, seam_keep
from lsst.meas.maskrcnn.metrics.matching import greedy_match
from lsst.meas.maskrcnn.metrics.spans import mask_pairs
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.network.inference import DetectionSettings, detect

sys.path.append(str(Path(__file__).parent))
from fixed_bands import grid, toy_scene
from fixed_bands import observe as add_noise


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


def test_tiles_of_nothing_and_of_bad_settings() -> None:
    assert make_tiles(0, 10, 64, 16) == []
    assert make_tiles(10, 0, 64, 16) == []
    assert make_tiles(10, 12, 64, 16) == [Tile(0, 0, 10, 12)]
    with pytest.raises(ValueError, match="overlap is 64 for tiles of 64"):
        make_tiles(100, 100, 64, 64)
    with pytest.raises(ValueError, match="overlap is -1"):
        make_tiles(100, 100, 64, -1)
    with pytest.raises(ValueError, match="tile size is 0"):
        make_tiles(100, 100, 0, 0)
    with pytest.raises(ValueError, match="negative"):
        make_tiles(-1, 100, 64, 0)


def observe(
    truth: np.ndarray, tiles: list[Tile], rng: np.random.Generator, jitter: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Detect each true box in every tile that sees a fair part of it.

    The box is clipped to the tile and each of its edges is off by up to
    ``jitter``.  Returns boxes, scores, tile indices, and the index of the
    true source.
    """
    rows: list[tuple[np.ndarray, float, int, int]] = []
    for t, tile in enumerate(tiles):
        low, high = np.array([tile.x0, tile.y0]), np.array([tile.x1, tile.y1])
        for k, box in enumerate(truth):
            side = np.minimum(box[2:], high) - np.maximum(box[:2], low)
            if (side < 3).any() or side.prod() < 0.15 * (box[2:] - box[:2]).prod():
                continue
            seen = box + rng.uniform(-jitter, jitter, size=4)
            seen = np.concatenate([np.clip(seen[:2], low, high), np.clip(seen[2:], low, high)])
            rows.append((seen, rng.uniform(0.5, 1.0), t, k))
    if not rows:
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    boxes, scores, tile_index, source = zip(*rows, strict=True)
    return np.array(boxes), np.array(scores), np.array(tile_index), np.array(source)


@pytest.mark.parametrize(("size", "jitter"), [((8, 8), 0.0), ((8, 8), 0.5), ((14, 20), 0.5), ((30, 12), 1.0)])
def test_source_at_every_position_is_kept_once(size: tuple[int, int], jitter: float) -> None:
    height, width = 150, 170
    tiles = make_tiles(height, width, 100, 36)
    rng = np.random.default_rng(11)
    for y in range(0, height - size[0], 9):
        for x in range(0, width - size[1], 1 if y % 2 else 7):
            truth = np.array([[x, y, x + size[1], y + size[0]]], dtype=float)
            boxes, scores, tile_index, _ = observe(truth, tiles, rng, jitter)
            kept = seam_keep(boxes, scores, tile_index, tiles, height, width)
            assert len(kept) == 1, (x, y, boxes[kept])
            # It is smaller than the overlap, so that one tile sees all of it.
            np.testing.assert_allclose(boxes[kept[0]], truth[0], atol=max(jitter, 1e-12))


def test_source_larger_than_the_overlap_is_kept_once() -> None:
    height, width = 160, 230
    tiles = make_tiles(height, width, 100, 30)
    rng = np.random.default_rng(12)
    for x in range(0, width - 60, 2):
        truth = np.array([[x, 40, x + 60, 95]], dtype=float)
        boxes, scores, tile_index, _ = observe(truth, tiles, rng)
        kept = seam_keep(boxes, scores, tile_index, tiles, height, width)
        assert len(kept) == 1, (x, boxes[kept])
        # Of the parts the largest one stays.
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        assert area[kept[0]] > 0.95 * area.max()


def test_blends_on_seams_are_not_merged() -> None:
    height, width = 150, 170
    tiles = make_tiles(height, width, 100, 40)
    rng = np.random.default_rng(13)
    for x in range(0, width - 32, 2):
        for shift in ((6.0, 2.0), (4.0, 4.0), (12.0, 0.0)):
            # Boxes of two true sources, IoU 0.45 to 0.65.
            truth = np.array(
                [[x, 58, x + 24, 82], [x + shift[0], 58 + shift[1], x + 24 + shift[0], 82 + shift[1]]]
            )
            boxes, scores, tile_index, source = observe(truth.clip(0, width), tiles, rng, 0.3)
            kept = seam_keep(boxes, scores, tile_index, tiles, height, width)
            assert sorted(source[kept]) == [0, 1], (x, shift)


def test_small_source_in_a_large_one() -> None:
    """A star in front of a galaxy is not a fragment of it."""
    height, width = 150, 170
    tiles = make_tiles(height, width, 100, 50)
    rng = np.random.default_rng(14)
    for x in range(0, width - 45):
        truth = np.array([[x, 50, x + 45, 95], [x + 18, 70, x + 26, 78]], dtype=float)
        boxes, scores, tile_index, source = observe(truth, tiles, rng, 0.3)
        kept = seam_keep(boxes, scores, tile_index, tiles, height, width)
        assert sorted(source[kept]) == [0, 1], x


def test_one_source_of_two_sizes_is_kept_once() -> None:
    """One tile takes for a star, with wide wings, what the other takes for a galaxy."""
    tiles = make_tiles(100, 160, 100, 40)
    wide, narrow = [70.0, 40.0, 90.0, 60.0], [76.0, 46.0, 85.0, 55.0]
    for boxes in ([wide, narrow], [narrow, wide]):
        kept = seam_keep(np.array(boxes), np.array([0.8, 0.9]), np.array([0, 1]), tiles, 100, 160)
        assert len(kept) == 1
    # Off the middle it is another source.
    beside = [82.0, 51.0, 89.0, 58.0]
    kept = seam_keep(np.array([wide, beside]), np.array([0.8, 0.9]), np.array([0, 1]), tiles, 100, 160)
    assert len(kept) == 2


def test_fragments_of_a_source_cut_by_its_tile_are_dropped() -> None:
    tiles = make_tiles(100, 160, 100, 40)
    boxes = np.array(
        [
            [80.0, 30, 130, 70],  # whole in the right tile
            [80.0, 31, 99, 48],  # two pieces of it at the edge of the left tile
            [82.0, 50, 100, 69],
            [20.0, 20, 30, 30],  # elsewhere
            [97.0, 5, 100, 9],  # cut, and seen by no other: kept
        ]
    )
    kept = seam_keep(boxes, np.array([0.6, 0.99, 0.98, 0.9, 0.7]), np.array([1, 0, 0, 0, 0]), tiles, 100, 160)
    assert kept.tolist() == [0, 3, 4]


def test_the_better_centred_view_stays() -> None:
    tiles = make_tiles(100, 160, 100, 40)
    # 8 and 22 pixels from the edge of the first tile and of the second.
    boxes = np.array([[82.0, 30, 92, 40], [82.0, 30, 92, 40]])
    for scores in ([0.9, 0.8], [0.8, 0.9]):
        assert seam_keep(boxes, np.array(scores), np.array([0, 1]), tiles, 100, 160).tolist() == [1]


def test_only_other_tiles_suppress() -> None:
    tiles = make_tiles(100, 160, 100, 40)
    boxes = np.array([[70.0, 30, 90, 50], [70.0, 30, 90, 50]])
    scores = np.array([0.9, 0.8])
    assert seam_keep(boxes, scores, np.array([0, 0]), tiles, 100, 160).tolist() == [0, 1]
    assert seam_keep(boxes, scores, np.array([0, 1]), tiles, 100, 160).tolist() == [0]
    # At the edge of the image a box is whole.
    boxes = np.array([[70.0, 0, 90, 20], [71.0, 0, 91, 20]])
    assert seam_keep(boxes, scores[::-1], np.array([0, 1]), tiles, 100, 160).tolist() == [1]


@pytest.mark.parametrize("shape", [(50, 40), (100, 160)])
def test_nothing_is_lost_without_seams(shape: tuple[int, int]) -> None:
    tiles = make_tiles(*shape, 256, 64)
    rng = np.random.default_rng(15)
    corner = rng.uniform(0, min(shape) - 12, size=(50, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 12, size=(50, 2))], axis=1)
    kept = seam_keep(boxes, rng.uniform(size=50), np.zeros(50, dtype=int), tiles, *shape)
    assert kept.tolist() == list(range(50))
    assert seam_keep(boxes[:0], np.zeros(0), np.zeros(0, dtype=int), tiles, *shape).tolist() == []


def crowded_field(
    n_side: int, rng: np.random.Generator, size: int, jitter: float = 0.4
) -> tuple[np.ndarray, np.ndarray]:
    """Give true boxes on a jittered grid, not overlapping."""
    pitch = size / n_side
    grid = (np.stack(np.meshgrid(np.arange(n_side), np.arange(n_side)), axis=-1).reshape(-1, 2)) * pitch
    extent = rng.uniform(0.4 * pitch, 0.9 * pitch, size=grid.shape)
    return np.concatenate([grid, grid + extent], axis=1), extent


def test_order_does_not_matter_and_all_are_kept_once() -> None:
    size = 900
    tiles = make_tiles(size, size, 256, 64)
    rng = np.random.default_rng(16)
    truth, _ = crowded_field(40, rng, size)
    boxes, scores, tile_index, source = observe(truth, tiles, rng, 0.4)
    scores = np.round(scores, 1)  # ties
    kept = seam_keep(boxes, scores, tile_index, tiles, size, size)
    assert sorted(source[kept]) == list(range(len(truth)))
    shuffled = rng.permutation(len(boxes))
    again = seam_keep(boxes[shuffled], scores[shuffled], tile_index[shuffled], tiles, size, size)
    assert sorted(shuffled[again]) == kept.tolist()


def test_many_boxes_need_little_memory() -> None:
    size = 3400
    tiles = make_tiles(size, size, 512, 128)
    rng = np.random.default_rng(17)
    truth, _ = crowded_field(150, rng, size)
    low = np.array([[t.x0, t.y0] for t in tiles])
    high = np.array([[t.x1, t.y1] for t in tiles])
    rows, index = [], []
    for t in range(len(tiles)):
        seen = np.concatenate([np.maximum(truth[:, :2], low[t]), np.minimum(truth[:, 2:], high[t])], axis=1)
        use = ((seen[:, 2:] - seen[:, :2]) > 3).all(axis=1)
        rows.append(seen[use])
        index.append(np.full(use.sum(), t))
    boxes, tile_index = np.concatenate(rows), np.concatenate(index)
    assert len(boxes) > 30_000
    scores = rng.uniform(0.5, 1, size=len(boxes))
    tracemalloc.start()
    kept = seam_keep(boxes, scores, tile_index, tiles, size, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(kept) == len(truth)
    assert peak < 100e6  # N^2 bits alone would be 200 MB


def test_wrong_input_is_refused() -> None:
    tiles = make_tiles(100, 160, 100, 40)
    boxes = np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        seam_keep(boxes, np.zeros(3), np.zeros(2, dtype=int), tiles, 100, 160)
    with pytest.raises(ValueError, match="0 to 7, but there are 2 tiles"):
        seam_keep(boxes, np.zeros(2), np.array([0, 7]), tiles, 100, 160)


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
    with pytest.raises(ValueError, match="alignment is 0"):
        make_tiles(10, 10, 5, 0, 0)


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
