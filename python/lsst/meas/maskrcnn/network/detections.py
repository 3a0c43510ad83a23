# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sources that a network found, as arrays.

Boxes are [x0, y0, x1, y1], half open, in pixels of the array, whose first
pixel is (0, 0): the pixel in column 3 has x0 = 3 and x1 = 4. This is the only
convention of the engine; that of afw (inclusive, with xy0) begins in
`lsst.meas.maskrcnn.catalogs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt


@dataclass
class Detections:
    """Sources found in an image; a ValueError is raised if the lengths disagree."""

    boxes: npt.NDArray[np.float32]
    """[x0, y0, x1, y1], half open, (source, 4), array pixels."""
    scores: npt.NDArray[np.float32]
    """Calibrated probability of being a source, (source,)."""
    p_star: npt.NDArray[np.float32]
    """Calibrated P(star) / (P(star) + P(galaxy)), (source,)."""
    origins: npt.NDArray[np.int32]
    """(y0, x0) of each mask, (source, 2), array pixels."""
    masks: list[npt.NDArray[np.bool_]]
    """Masks, (y, x) each, tight around the source."""
    timings: dict[str, float] = field(default_factory=dict)
    """Wall time by part (s)."""
    soft: list[npt.NDArray[np.uint8]] = cast(Any, None)
    """Probability of each pixel to belong to the source, times 255 and rounded, (y, x) each, on the mask and
    where it is over 5 %; by default 255 on the masks.
    """
    soft_origins: npt.NDArray[np.int32] = cast(Any, None)
    """(y0, x0) of each of ``soft``, (source, 2), array pixels."""
    binning: npt.NDArray[np.int8] = cast(Any, None)
    """Binning of the image in which each was found, (source,); by default 1."""
    flag_limited: npt.NDArray[np.bool_] = cast(Any, None)
    """Whether the network gave as many sources in the tile of each as it can, so that others may be missing
    there, (source,); by default none.
    """
    positions: npt.NDArray[np.float32] = cast(Any, None)
    """(y, x) of each source, (source, 2), array pixels, 0 at the centre of the first; by default NaN, which
    is not known.
    """
    p_blend: npt.NDArray[np.float32] = cast(Any, None)
    """Probability that each is more than one source, (source,); by default NaN."""

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.soft is None:
            self.soft = [np.where(mask, np.uint8(255), np.uint8(0)) for mask in self.masks]
            self.soft_origins = np.array(self.origins, dtype=np.int32)
        if self.binning is None:
            self.binning = np.ones(count, dtype=np.int8)
        if self.flag_limited is None:
            self.flag_limited = np.zeros(count, dtype=bool)
        if self.positions is None:
            self.positions = np.full((count, 2), np.nan, dtype=np.float32)
        if self.p_blend is None:
            self.p_blend = np.full(count, np.nan, dtype=np.float32)
        lengths = {name: len(getattr(self, name)) for name in _PER_SOURCE}
        if set(lengths.values()) != {count}:
            raise ValueError(f"the parts of detections are not of one length: {lengths}")

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls) -> Self:
        """Make detections of nothing."""
        none = np.zeros(0, np.float32)
        return cls(np.zeros((0, 4), np.float32), none, none.copy(), np.zeros((0, 2), np.int32), [])

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Self:
        """Put detections one after the other, and add up their timings."""
        if not parts:
            return cls.empty()
        values: dict[str, Any] = {}
        for name in _PER_SOURCE:
            columns = [getattr(part, name) for part in parts]
            if isinstance(columns[0], list):
                values[name] = [item for column in columns for item in column]
            else:
                values[name] = np.concatenate(columns)
        timings: dict[str, float] = {}
        for part in parts:
            for key, seconds in part.timings.items():
                timings[key] = timings.get(key, 0.0) + seconds
        return cls(timings=timings, **values)

    def take(self, index: npt.NDArray[np.integer[Any] | np.bool_]) -> Self:
        """Choose some of the detections, which share pixels with these.

        The index is int, in the order wanted, or bool, (source,).
        """
        rows = np.flatnonzero(index) if index.dtype == bool else index
        values: dict[str, Any] = {}
        for name in _PER_SOURCE:
            column = getattr(self, name)
            values[name] = [column[i] for i in rows] if isinstance(column, list) else column[rows]
        return type(self)(timings=dict(self.timings), **values)

    def moved(self, y: int, x: int) -> Self:
        """Shift the detections on a tile whose first pixel is (y, x) to pixels of the image."""
        corner = np.array([y, x])
        return replace(
            self,
            boxes=self.boxes + np.array([x, y, x, y], np.float32),
            positions=self.positions + corner.astype(np.float32),
            origins=self.origins + corner.astype(np.int32),
            soft_origins=self.soft_origins + corner.astype(np.int32),
        )

    def sorted(self) -> Self:
        """Order the detections by descending score as `detect` does.

        Equal scores are ordered by y, then x of their boxes' first pixels, then the last ones.
        """
        x0, y0, x1, y1 = self.boxes.T
        return self.take(np.lexsort((x1, y1, x0, y0, -self.scores)))


_PER_SOURCE = tuple(item.name for item in fields(Detections) if item.name != "timings")
