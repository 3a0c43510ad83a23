# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Blocks of memory that records live in.

A block holds ``capacity`` records one after the other, in the byte layout
that the schema prescribes.  Columns are strided views of it, so that nothing
is copied and no Python object exists per value; only variable-length
entries and attached objects (footprints) are Python objects, kept beside.
Blocks never grow: a full one is followed by a new one, hence views stay
valid for as long as somebody holds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import lsst.pex.exceptions as pexExceptions

from ._fields import FieldString, KeyFlag, KeyString, _ArrayKeyImpl, _KeyImpl
from ._schema import Schema

__all__ = ["RECORDS_PER_BLOCK", "Block", "make_template"]

# Size of a block that nobody asked for by preallocating.
RECORDS_PER_BLOCK = 100

# More than this for one record can only be a mistake.
_MAX_RECORD_SIZE = 2**31


def make_template(schema: Schema) -> np.ndarray:
    """Return the bytes of a new record: NaN for floats, else zeros.

    Parameters
    ----------
    schema : `Schema`
        Schema, its record size already padded.

    Returns
    -------
    template : `numpy.ndarray`, (record size,)
        The record, dtype uint8.

    Raises
    ------
    lsst.pex.exceptions.LengthError
        Raised if a string field was made without a size.
    """
    size = schema.getRecordSize()
    if size > _MAX_RECORD_SIZE:
        names = [
            i.field.getName() for i in schema if isinstance(i.field, FieldString) and i.field._size > 2**31
        ]
        raise pexExceptions.LengthError(
            f"A record of this schema would take {size} bytes; give the string fields {names} a size "
            "(0 for variable length)."
        )
    template = np.zeros(size, dtype=np.uint8)
    for item in schema:
        key = item.key
        if key._numpy in (np.float32, np.float64) and not is_variable(key):
            view: np.ndarray = np.ndarray((key._size,), dtype=key._numpy, buffer=template, offset=key._offset)
            view[:] = np.nan
    return template


def is_variable(key: _KeyImpl) -> bool:
    """Return whether the entries of a column differ in length."""
    return key._size == 0 and isinstance(key, _ArrayKeyImpl | KeyString)


class Block:
    """Memory for a number of records.

    Parameters
    ----------
    template : `numpy.ndarray`, (record size,)
        What a new record holds.
    capacity : `int`
        Number of records.
    table : `BaseTable`
        The table whose records these are.
    """

    __slots__ = ("attached", "buffer", "capacity", "memory", "objects", "record_size", "table", "used")

    def __init__(self, template: np.ndarray, capacity: int, table: Any) -> None:
        self.table = table
        self.record_size = len(template)
        self.capacity = capacity
        self.buffer = np.empty((capacity, self.record_size), dtype=np.uint8)
        self.buffer[:] = template
        self.memory = self.buffer.reshape(-1).data
        self.used = 0
        # Offset of a variable-length column -> one object per record.
        self.objects: dict[int, np.ndarray] = {}
        # Row -> what a record holds besides its fields.
        self.attached: dict[int, Any] = {}

    def get_object(self, offset: int, row: int) -> Any:
        """Return a variable-length entry, None where it was never set."""
        column = self.objects.get(offset)
        return None if column is None else column[row]

    def object_column(self, offset: int) -> np.ndarray:
        """Return the entries of a variable-length column, to write to."""
        column = self.objects.get(offset)
        if column is None:
            column = self.objects[offset] = np.full(self.capacity, None, dtype=object)
        return column

    def set_object(self, offset: int, row: int, value: Any) -> None:
        """Set a variable-length entry."""
        self.object_column(offset)[row] = value

    def column(self, key: _KeyImpl, start: int, stop: int) -> np.ndarray:
        """Return a view of a column that is no flag, rows start to stop.

        Strings come as bytes, angles as radians.
        """
        shape: tuple[int, ...] = (stop - start,)
        strides: tuple[int, ...] = (self.record_size,)
        dtype: Any
        if isinstance(key, KeyString):
            dtype = np.dtype(("S", key._size))
        else:
            dtype = np.dtype(key._numpy)
            if isinstance(key, _ArrayKeyImpl):
                shape += (key._size,)
                strides += (dtype.itemsize,)
        return np.ndarray(
            shape,
            dtype=dtype,
            buffer=self.buffer,
            offset=start * self.record_size + key._offset,
            strides=strides,
        )

    def _flag_bytes(self, key: KeyFlag, start: int, stop: int) -> np.ndarray:
        return self.buffer[start:stop, key._offset + (key._bit >> 3)]

    def flag_column(self, key: KeyFlag, start: int, stop: int) -> np.ndarray:
        """Return a copy of a flag column as bool."""
        return (self._flag_bytes(key, start, stop) & np.uint8(1 << (key._bit & 7))).astype(bool)

    def set_flag_column(self, key: KeyFlag, start: int, stop: int, value: Any) -> None:
        """Set a flag column to an array or a scalar."""
        column = self._flag_bytes(key, start, stop)
        mask = np.uint8(1 << (key._bit & 7))
        column &= np.uint8(~mask & 0xFF)
        column |= np.asarray(value, dtype=bool).astype(np.uint8) * mask
