# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Zip files of arrays and texts, whose sizes are checked before memory is taken."""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from .files import one_line

_LARGEST_RATIO, _ALWAYS_READ = 50, 32_000_000
"""Times its own size that a file may unpack to, and bytes that any may: numbers as text pack to a third."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Others may unpack to thousands of times their size at once."""

# OSError is that of a seek to a place before the file.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
    LookupError,
    OSError,
)


class ZipReader:
    """A zip file; a context manager. Everything that is wrong with it is a `ValueError` that says so."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        size = os.path.getsize(path)
        with _value_errors():
            self.archive = zipfile.ZipFile(path)
        self.names = self.archive.namelist()
        self.members = self.archive.infolist()
        total, limit = sum(member.file_size for member in self.members), _LARGEST_RATIO * size
        if total > max(limit, _ALWAYS_READ):
            self.archive.close()
            raise ValueError(f"its {size} bytes would unpack to {total}, over {_LARGEST_RATIO} times as many")

    def __enter__(self) -> ZipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()

    def read(self, name: str) -> bytes:
        """Read a member."""
        with _value_errors():
            member = self.archive.getinfo(name)
            if member.flag_bits & 1:
                raise ValueError(f"member {name!r} is encrypted")
            if member.compress_type not in _METHODS:
                raise ValueError(f"member {name!r} is packed by method {member.compress_type}, wanted 0 or 8")
            return self.archive.read(member)


@contextmanager
def _value_errors() -> Iterator[None]:
    try:
        yield
    except _ZIP_ERRORS as error:
        raise ValueError(one_line(error)) from error


def read_arrays(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of an ``.npz`` file by name.

    A ValueError is raised if this is no such file, or it declares another size than it has.
    """
    with ZipReader(path) as reader:
        return {name.removesuffix(".npy"): _read_array(name, reader.read(name)) for name in reader.names}


def _read_array(name: str, data: bytes) -> npt.NDArray[Any]:
    stream = BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(stream)
    except (ValueError, KeyError, TypeError, RecursionError, MemoryError, SyntaxError) as error:
        raise ValueError(f"member {name!r} is no array ({one_line(error)})") from error
    start = stream.tell()
    wanted = math.prod(shape) * dtype.itemsize
    plain = dtype.kind in "biuf" and len(shape) <= 4 and min(shape, default=0) >= 0
    if not plain or wanted != len(data) - start:
        raise ValueError(
            f"member {name!r} has {len(data) - start} bytes for an array of shape {one_line(shape, 80)} of "
            f"{one_line(dtype, 40)}"
        )
    flat = np.frombuffer(data, dtype, offset=start) if wanted else np.zeros(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C").copy()
