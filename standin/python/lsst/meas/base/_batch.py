# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sources that are measured together, each on the image in which all others are noise.

An algorithm with a method ``measureBatch`` measures the ordinary ones of them
at once, on stacks of stamps, and returns the numbers of all others; these are
measured one at a time. Both give the same values, bit for bit: sums run over
the same pixels in the same order.
"""

from __future__ import annotations

__all__ = ["BATCH", "Batch", "dot", "group", "parts"]

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ._algorithm import get_pixels

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF
    from lsst.afw.table import SourceRecord

BATCH = 512
"""Most sources of a batch; its stamps take at most some 100 MB."""


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the products of N pairs of vectors, (N, k) or one (k,), as ``a[i] @ b[i]`` gives them."""
    return np.matmul(a[..., None, :], b[..., :, None])[..., 0, 0]


def group(*values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of N that have all values in common, in ascending order."""
    if len(values[0]):
        _, number = np.unique(np.stack(values), axis=1, return_inverse=True)
        order = np.argsort(number.ravel(), kind="stable")
        yield from np.split(order, np.cumsum(np.bincount(number.ravel()))[:-1])


def parts(rows: np.ndarray, size: int = 64) -> Iterator[np.ndarray]:
    """Yield at most ``size`` of N rows at a time."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


class Batch:
    """Sources that are measured together.

    Where sources overlap, the noise is that of the one which was measured
    last. The image steps through these states as often as need be.

    Parameters
    ----------
    records : `~collections.abc.Sequence` [`lsst.afw.table.SourceRecord`]
        N sources, in the order in which they would be measured one at a time.
    chosen : `~collections.abc.Sequence` [`int`]
        Which of them are measured.
    exposure : `lsst.afw.image.ExposureF`
        Image in which all of them are noise.
    replacer : `NoiseReplacer`
        Has their pixels.
    ids : `~collections.abc.Sequence` [`int`]
        By which the replacer knows them.
    """

    def __init__(
        self,
        records: Sequence[SourceRecord],
        chosen: Sequence[int],
        exposure: ExposureF,
        replacer: Any,
        ids: Sequence[int],
    ):
        self.records, self.chosen, self.exposure = records, np.array(chosen, int), exposure
        self.pixels = get_pixels(exposure)
        self._replacer, self._ids = replacer, ids
        self._parts = [replacer.getPixels(id) for id in ids]
        self._states: list[tuple[Any, np.ndarray, np.ndarray] | None] = []
        for y, x, _, noise, _ in self._parts:
            before = self.pixels.image[y, x]
            changed = before.view(np.int32) != noise.view(np.int32)
            some = (y[changed], x[changed]), before[changed], noise[changed]
            self._states.append(some if changed.any() else None)
            self.pixels.image[some[0]] = some[2]
        self._state = len(records)

    def _seek(self, row: int) -> None:
        """Take the image back or on to what it is before a source is measured."""
        for state in self._states[row : self._state][::-1]:
            if state is not None:
                self.pixels.image[state[0]] = state[1]
        for state in self._states[self._state : row]:
            if state is not None:
                self.pixels.image[state[0]] = state[2]
        self._state = row

    @contextmanager
    def inserted(self, row: int, mask: bool = False) -> Iterator[np.ndarray]:
        """Let a source be itself in the image, if asked for in the mask too."""
        self._seek(row)
        y, x, values, noise, _ = self._parts[row]
        if mask:
            self._replacer.insertSource(self._ids[row])
        else:
            self.pixels.image[y, x] = values
        yield self.pixels.image
        if mask:
            self._replacer.removeSource(self._ids[row])
        else:
            self.pixels.image[y, x] = noise
        self._state = row + 1

    def end(self) -> None:
        """Leave the image as it is after the last source."""
        self._seek(len(self.records))

    def windows(self, plane: np.ndarray, y: np.ndarray, x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Cut windows of one shape from a plane of the image, at corners inside it: (n, height, width)."""
        result = np.empty((y.size, *shape), plane.dtype)
        for stamp, y0, x0 in zip(result, y.tolist(), x.tolist(), strict=True):
            stamp[:] = plane[y0 : y0 + shape[0], x0 : x0 + shape[1]]
        return result

    def stamps(self, rows: np.ndarray, y: np.ndarray, x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Cut windows of the image in which each source is itself, and all others noise.

        Parameters
        ----------
        rows : `numpy.ndarray`, (n,), int
            Sources, in ascending order.
        y, x : `numpy.ndarray`, (n,), int
            First pixel of each window in the array; all of it is inside.
        shape : `tuple` [`int`]
            Height and width.

        Returns
        -------
        stamps : `numpy.ndarray`, (n, height, width), float32
        """
        result = np.empty((rows.size, *shape), np.float32)
        for stamp, row, y0, x0 in zip(result, rows.tolist(), y.tolist(), x.tolist(), strict=True):
            with self.inserted(row) as image:
                stamp[:] = image[y0 : y0 + shape[0], x0 : x0 + shape[1]]
        return result

    def fits(self, y: np.ndarray, x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Tell which windows are inside the image."""
        height, width = self.pixels.image.shape
        return np.asarray((y >= 0) & (x >= 0) & (y + shape[0] <= height) & (x + shape[1] <= width))

    def footprint_pixels(self, row: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return y and x in the array of a source's own footprint, if they are known."""
        y, x, _, _, footprint = self._parts[row]
        return (y, x) if footprint is not None and footprint is self.records[row].getFootprint() else None

    def locate(self, extractor: Any, flags: Any = None) -> tuple[np.ndarray, ...]:
        """Find the positions of sources in the array.

        Parameters
        ----------
        extractor : `SafeCentroidExtractor`
            Knows where they are.
        flags : `FlagHandler`, optional
            Gets its flag of a failure set where a position is doubtful.

        Returns
        -------
        rows : `numpy.ndarray`, (n,), int
            Sources that have a position.
        x, y : `numpy.ndarray`, (n,)
            Positions in the parent's coordinates.
        doubtful : `numpy.ndarray`, (n,), bool
        """
        found = []
        for row in self.chosen.tolist():
            try:
                position, doubtful = extractor.locate(self.records[row])
            except Exception:
                # Measured on its own, which says what is wrong.
                continue
            if math.isfinite(position.x) and math.isfinite(position.y):
                found.append((row, position.x, position.y, doubtful))
                if doubtful and flags is not None:
                    flags.setValue(self.records[row], flags.getFailureFlagNumber(), True)
        rows, x, y, doubt = np.array(found, float).reshape(-1, 4).T
        return rows.astype(int), x, y, doubt > 0

    def put(self, rows: np.ndarray, key: Any, values: np.ndarray) -> None:
        """Set a field of some sources."""
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            key.set(self.records[row], value)

    def others(self, rows: Any = ()) -> list[int]:
        """List the chosen sources but for some."""
        return np.setdiff1d(self.chosen, rows).tolist()
