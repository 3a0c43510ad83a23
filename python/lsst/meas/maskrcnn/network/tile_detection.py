# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection on images of any size, tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..images.tiles import Tile, make_tiles
from .detections import Detections
from .memory import release_memory

_CLOSEST = 0.35
"""Distance in FWHM below which two detections are of one source."""

_SAME_BOX = 0.8
"""IoU of boxes from which two detections are of one source."""

_TILES_BETWEEN = 8
"""Tiles after which free memory is given back: the masks that are kept lie between what each tile frees."""

_TILE_MEMORY = 1.2e9
"""Most memory (bytes) of a tile of six bands with a thousand sources."""


def detect_in_tiles(
    detect: Callable[[list[Tile]], list[Detections]],
    shape: tuple[int, int],
    fwhm: float,
    *,
    size: int,
    overlap: int,
    align: int,
    together: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Detections:
    """Find the sources of an image of a shape (y, x), each once, by descending score.

    ``detect`` finds the sources of some tiles, in pixels of the image. Side and overlap of tiles and their
    alignment (px) are those of `~lsst.meas.maskrcnn.images.tiles.make_tiles`; so many are detected on
    ``together``. ``progress`` is called with the number of tiles done and the number of tiles.

    A source belongs to the tile in the middle part of which it lies; one that reaches the edge of that tile
    is found again in a tile around it.
    """
    tiles = make_tiles(*shape, size, overlap, align)
    parts: list[Detections] = []
    cut: list[npt.NDArray[np.bool_]] = []
    for start in range(0, len(tiles), together):
        some = tiles[start : start + together]
        for tile, found in zip(some, detect(some), strict=True):
            # Half of what two tiles share belongs to either; the edges of the image to the outer ones.
            corner, end = np.array([tile.y0, tile.x0]), np.array([tile.y1, tile.x1])
            low = np.where(corner > 0, corner + overlap / 2 - 2.0 * fwhm, -np.inf)
            high = np.where(end < shape, end - overlap / 2 + 2.0 * fwhm, np.inf)
            places = _places(found)
            inside = (places >= low) & (places < high)
            parts.append(found.take(np.logical_and.reduce(inside, axis=1)))
            cut.append(_reaches_edge(parts[-1].boxes, tile, shape))
        done = start + len(some)
        if start // _TILES_BETWEEN != done // _TILES_BETWEEN:
            release_memory(shape)
        if progress is not None:
            progress(done, len(tiles))
    every = Detections.concatenate(parts)
    again = np.zeros(len(every), bool)
    for index in np.flatnonzero(np.concatenate([np.zeros(0, bool), *cut])).tolist():
        place = _places(every)[index]
        (found,) = detect([_tile_around(place, size, shape, align)])
        distance = np.hypot(*(_places(found) - place).T)
        if distance.min(initial=np.inf) < fwhm:
            parts.append(found.take(np.array([distance.argmin()])))
            again[index] = True
    every = Detections.concatenate([every.take(~again), *parts[len(cut) :]]).sorted()
    release_memory(shape)
    return every.take(unique_sources(every.boxes, _places(every), fwhm))


def tiles_at_once(device: torch.device) -> int:
    """Choose how many tiles half of the free memory of a GPU holds; on a CPU one at a time is fastest."""
    if device.type != "cuda":
        return 1
    return int(np.clip(0.5 * torch.cuda.mem_get_info(device)[0] / _TILE_MEMORY, 1, 64))


def unique_sources(
    boxes: npt.NDArray[Any], positions: npt.NDArray[Any], fwhm: float
) -> npt.NDArray[np.int64]:
    """Drop what is at the place, or in the box, of something likelier; returns the indices that are kept.

    Boxes are (source, 4), positions (y, x), (source, 2), px, the likeliest first.
    """
    kept: list[int] = []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for index in range(len(boxes)):
        before = np.array(kept, int)
        if len(before):
            near = np.hypot(*(positions[before] - positions[index]).T) < _CLOSEST * fwhm
            low = np.maximum(boxes[before, :2], boxes[index, :2])
            high = np.minimum(boxes[before, 2:], boxes[index, 2:])
            shared = np.clip(high - low, 0.0, None).prod(axis=1)
            same = shared > _SAME_BOX * (areas[before] + areas[index] - shared)
            if (near | same).any():
                continue
        kept.append(index)
    return np.array(kept, np.int64)


def _places(found: Detections) -> npt.NDArray[np.float32]:
    """Positions (y, x), (source, 2), or the middles of the boxes where they are not known."""
    middles = 0.5 * (found.boxes[:, 1::-1] + found.boxes[:, :1:-1]) - 0.5
    return np.where(np.isfinite(found.positions), found.positions, middles)


def _reaches_edge(
    boxes: npt.NDArray[np.float32], tile: Tile, shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Say which boxes reach an edge of a tile that is not one of the image, (box,)."""
    height, width = shape
    return (
        ((boxes[:, 0] < tile.x0 + 1) & (tile.x0 > 0))
        | ((boxes[:, 1] < tile.y0 + 1) & (tile.y0 > 0))
        | ((boxes[:, 2] > tile.x1 - 1) & (tile.x1 < width))
        | ((boxes[:, 3] > tile.y1 - 1) & (tile.y1 < height))
    )


def _tile_around(place: npt.NDArray[np.floating], size: int, shape: tuple[int, int], align: int) -> Tile:
    """Make a tile in the image with a place (y, x) in its middle, as far as the image goes."""
    starts = [
        max(min(int(middle) - size // 2, side - size), 0) // align * align
        for middle, side in zip(place, shape)
    ]
    ends = [min(start + size, side) for start, side in zip(starts, shape)]
    return Tile(*starts, *ends)
