# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stamps of many sources in little memory."""

from __future__ import annotations

__all__ = ["StampStore"]

import os
import tempfile
import weakref
from collections.abc import Sequence
from typing import IO, overload

import numpy as np

from .light import Stamp


class StampStore(Sequence[Stamp]):
    """A list of stamps that moves to a temporary file when it gets large.

    Stamps in the file are read each time that they are asked for. The file
    has no name: it goes with the store, or with the process.

    Parameters
    ----------
    memory : `int`
        Bytes of pixels that stay in memory; what comes later is written to
        the file, in the folder of `tempfile.gettempdir`.
    """

    def __init__(self, memory: int = 150_000_000) -> None:
        if memory < 0:
            raise ValueError(f"The memory for stamps is {memory!r} bytes; it must be >= 0.")
        self._memory = memory
        self._held: list[np.ndarray] = []
        self._shapes: list[tuple[int, int, int]] = []
        self._origins: list[tuple[int, int]] = []
        # Of the stamps in the file, which come after those in memory.
        self._offsets: list[int] = []
        self._file: IO[bytes] | None = None
        self._end = 0

    def append(self, stamp: Stamp) -> None:
        """Add a stamp.

        Parameters
        ----------
        stamp : `Stamp`
            Its pixels are copied, as `numpy.float32`.
        """
        pixels = np.array(stamp.pixels, np.float32, order="C")
        if pixels.ndim != 3:
            raise ValueError(f"The pixels of a stamp must be (band, y, x), not of shape {pixels.shape}.")
        self._shapes.append(pixels.shape)
        self._origins.append((int(stamp.y0), int(stamp.x0)))
        if self._file is None and pixels.nbytes <= self._memory:
            self._memory -= pixels.nbytes
            self._held.append(pixels)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="stamps")
            weakref.finalize(self, self._file.close)
        self._offsets.append(self._end)
        self._file.write(pixels.data if pixels.size else b"")
        self._end += pixels.nbytes

    @property
    def spooled(self) -> int:
        """Bytes in the temporary file."""
        return self._end

    def __len__(self) -> int:
        return len(self._shapes)

    @overload
    def __getitem__(self, index: int) -> Stamp: ...

    @overload
    def __getitem__(self, index: slice) -> list[Stamp]: ...

    def __getitem__(self, index: int | slice) -> Stamp | list[Stamp]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        y0, x0 = self._origins[place]
        if place < len(self._held):
            return Stamp(self._held[place], y0, x0)
        return Stamp(self._read(place), y0, x0)

    def _read(self, place: int) -> np.ndarray:
        shape = self._shapes[place]
        pixels = np.empty(shape, np.float32)
        if pixels.size == 0 or self._file is None:
            return pixels
        self._file.flush()
        offset = self._offsets[place - len(self._held)]
        # Reads do not move the place where the next stamp is written.
        data = os.pread(self._file.fileno(), pixels.nbytes, offset)
        if len(data) != pixels.nbytes:
            raise OSError(f"The temporary file of stamps ends early: {len(data)} of {pixels.nbytes} bytes.")
        pixels.reshape(-1)[:] = np.frombuffer(data, np.float32)
        return pixels
