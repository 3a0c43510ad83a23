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

__all__ = ["Detections"]

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt


@dataclass
class Detections:
    """Sources found in an image.

    Parameters
    ----------
    boxes : `numpy.ndarray`
        [x0, y0, x1, y1], half open, float32, (source, 4), array pixels.
    scores : `numpy.ndarray`
        Calibrated probability of being a source, float32, (source,).
    p_star : `numpy.ndarray`
        Calibrated P(star) / (P(star) + P(galaxy)), float32, (source,).
    origins : `numpy.ndarray`
        (y0, x0) of each mask, int32, (source, 2), array pixels.
    masks : `list` [`numpy.ndarray`]
        Masks, bool, (y, x) each, tight around the source.
    timings : `dict` [`str`, `float`]
        Wall time by part (s).
    soft : `list` [`numpy.ndarray`], optional
        Probability of each pixel to belong to the source, times 255 and
        rounded, uint8, (y, x) each, on the mask and where it is over 5 %.
        By default 255 on the masks.
    soft_origins : `numpy.ndarray`, optional
        (y0, x0) of each of ``soft``, int32, (source, 2), array pixels.
    binning : `numpy.ndarray`, optional
        Binning of the image in which each was found, int8, (source,); by
        default 1.
    flag_limited : `numpy.ndarray`, optional
        Whether the network gave as many sources in the tile of each as it
        can, so that others may be missing there, bool, (source,); by default
        none.
    positions : `numpy.ndarray`, optional
        (y, x) of each source, float32, (source, 2), array pixels, 0 at the
        centre of the first; by default NaN, which is not known.
    p_blend : `numpy.ndarray`, optional
        Probability that each is more than one source, float32, (source,); by
        default NaN.

    Raises
    ------
    ValueError
        Raised if the lengths disagree.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    p_star: npt.NDArray[np.float32]
    origins: npt.NDArray[np.int32]
    masks: list[npt.NDArray[np.bool_]]
    timings: dict[str, float] = field(default_factory=dict)
    soft: list[npt.NDArray[np.uint8]] = cast(Any, None)
    soft_origins: npt.NDArray[np.int32] = cast(Any, None)
    binning: npt.NDArray[np.int8] = cast(Any, None)
    flag_limited: npt.NDArray[np.bool_] = cast(Any, None)
    positions: npt.NDArray[np.float32] = cast(Any, None)
    p_blend: npt.NDArray[np.float32] = cast(Any, None)

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
        """Make detections of nothing.

        Returns
        -------
        detections : `Detections`
        """
        none = np.zeros(0, np.float32)
        return cls(np.zeros((0, 4), np.float32), none, none.copy(), np.zeros((0, 2), np.int32), [])

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Self:
        """Put detections one after the other.

        Parameters
        ----------
        parts : `~collections.abc.Sequence` [`Detections`]
            The detections; their timings are added up.

        Returns
        -------
        detections : `Detections`
            All of them, in the order of the parts.
        """
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
        """Choose some of the detections.

        Parameters
        ----------
        index : `numpy.ndarray`
            Their indices, int, in the order wanted; or bool, (source,).

        Returns
        -------
        detections : `Detections`
            The chosen ones, which share pixels with these.
        """
        rows = np.flatnonzero(index) if index.dtype == bool else index
        values: dict[str, Any] = {}
        for name in _PER_SOURCE:
            column = getattr(self, name)
            values[name] = [column[i] for i in rows] if isinstance(column, list) else column[rows]
        return type(self)(timings=dict(self.timings), **values)

    def sorted(self) -> Self:
        """Order the detections as `detect` does.

        Returns
        -------
        detections : `Detections`
            By descending score; equal scores by y, then x of their boxes'
            first pixels, then the last ones.
        """
        x0, y0, x1, y1 = self.boxes.T
        return self.take(np.lexsort((x1, y1, x0, y0, -self.scores)))


_PER_SOURCE = tuple(item.name for item in fields(Detections) if item.name != "timings")
