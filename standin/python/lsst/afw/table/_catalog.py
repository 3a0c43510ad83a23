# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Catalogues: ordered collections of records, and views of their columns."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np

import lsst.geom
import lsst.pex.exceptions as pexExceptions

from ._base import BaseRecord, BaseTable, copy_rows, link_classes
from ._fields import KeyFlag, KeyString, _ArrayKeyImpl, _KeyImpl
from ._mapper import SchemaMapper
from ._schema import Schema
from ._storage import Block, is_variable

__all__ = ["BaseCatalog", "BaseColumnView", "BitsColumn", "Catalog"]

# The default of the hdu argument upstream: the smallest 32-bit integer.
DEFAULT_HDU = -(2**31)

# Types whose columns a catalogue hands out.
_COLUMN_TYPES = frozenset({"I", "L", "F", "D", "Angle"})


class BitsColumn:
    """Several flag columns packed into one integer column."""

    def __init__(self, array: np.ndarray, items: list[Any]) -> None:
        self._array = array
        self._items = items

    def getArray(self) -> np.ndarray:
        """Return the packed flags, dtype int64."""
        return self._array

    array = property(getArray, doc="The packed flags, dtype int64.")

    def getBit(self, key: Any) -> int:
        """Return the bit of a flag, given by key or name."""
        for bit, item in enumerate(self._items):
            if key in (item.key, item.field.getName()):
                return bit
        raise pexExceptions.NotFoundError(f"{key} not found in BitsColumn")

    def getMask(self, key: Any) -> int:
        """Return 2 to the bit of a flag, given by key or name."""
        return 1 << self.getBit(key)


class BaseColumnView:
    """Columns of a contiguous catalogue, as views."""

    Record: ClassVar[type[BaseRecord]]
    Table: ClassVar[type[BaseTable]]
    Catalog: ClassVar[type[BaseCatalog]]

    def __init__(self, table: BaseTable, block: Block | None, start: int, stop: int) -> None:
        self._table = table
        self._block = block
        self._start = start
        self._stop = stop

    def getTable(self) -> Any:
        """Return the table."""
        return self._table

    table = property(getTable, doc="The table.")

    def getSchema(self) -> Schema:
        """Return the schema."""
        return self._table.getSchema()

    schema = property(getSchema, doc="The schema.")

    def _key(self, key: Any) -> Any:
        return self._table._schema.find(key).key if isinstance(key, str) else key

    def __getitem__(self, key: Any) -> np.ndarray:
        """Return a column: a view, but a copy for flags."""
        key = self._key(key)
        if not key.isValid():
            raise pexExceptions.LogicError("Key is not valid.")
        check_viewable(key, self._table._schema, unsigned=True)
        if self._block is None:
            shape: tuple[int, ...] = (0, key._size) if isinstance(key, _ArrayKeyImpl) else (0,)
            return np.zeros(shape, dtype=key._numpy)
        if isinstance(key, KeyFlag):
            return self._block.flag_column(key, self._start, self._stop)
        return self._block.column(key, self._start, self._stop)

    get = __getitem__

    def __setitem__(self, key: Any, value: Any) -> None:
        """Set a whole column to an array or a scalar."""
        self[key][:] = value

    set = __setitem__

    def _bits(self, items: list[Any]) -> BitsColumn:
        if len(items) > 64:
            raise pexExceptions.LengthError(f"Too many flags for one integer column: {len(items)} > 64.")
        bits = np.zeros(self._stop - self._start, dtype=np.int64)
        for bit, item in enumerate(items):
            bits |= self[item.key].astype(np.int64) << bit
        return BitsColumn(bits, items)

    def getBits(self, keys: Iterable[Any] | None = None) -> BitsColumn:
        """Return flags packed into integers.

        Parameters
        ----------
        keys : iterable of `str` or `Key`, optional
            The flags, first is lowest; by default all.
        """
        if keys is None:
            return self.getAllBits()
        return self._bits([self._table._schema.find(key) for key in keys])

    def getAllBits(self) -> BitsColumn:
        """Return all flags packed into integers."""
        return self._bits([item for item in self._table._schema if isinstance(item.key, KeyFlag)])

    def extract(self, *patterns: str, **kwargs: Any) -> dict[str, np.ndarray]:
        """Return {name: column}; see `BaseCatalog.extract`."""
        return _extract(self, self._table._schema, patterns, kwargs)


def check_viewable(key: Any, schema: Schema, unsigned: bool = False) -> None:
    """Raise if there can be no array of a column.

    Raises
    ------
    TypeError
        Raised for strings and (unless ``unsigned``) unsigned integers.
    lsst.pex.exceptions.LogicError
        Raised for arrays of variable length.
    """
    if not isinstance(key, _KeyImpl):
        raise TypeError(f"Columns are given by name or Key, got {key!r}.")
    if isinstance(key, _ArrayKeyImpl):
        if key._size == 0:
            raise pexExceptions.LogicError("Cannot get columns for variable-length array fields")
        return
    if key._type in _COLUMN_TYPES or isinstance(key, KeyFlag) or (unsigned and key._type in "BU"):
        return
    index = schema._layout.by_key.get(key._identity())
    name = "" if index is None else f" '{schema._layout.items[index].field.getName()}'"
    raise TypeError(f"Field{name} of type {key._type} has no column; read it record by record ({key}).")


def _extract(source: Any, schema: Schema, patterns: tuple[str, ...], kwargs: dict) -> dict[str, np.ndarray]:
    copy = kwargs.pop("copy", False)
    where = kwargs.pop("where", None)
    items = kwargs.pop("items", None)
    if items is None:
        items = schema.extract(*patterns, **kwargs)
    elif kwargs:
        raise ValueError("kwd 'items' was specified, which is not compatible with additional keywords")
    result = {}
    for name, item in items.items():
        if isinstance(item.key, KeyString):
            continue
        array = source[item.key]
        if where is not None:
            array = array[where]
        result[name] = np.array(array) if copy else array
    return result


class BaseCatalog:
    """Ordered collection of records that share a schema.

    Parameters
    ----------
    schema : `Schema`, `BaseTable` or `BaseCatalog`
        Schema of a new table, a table, or a catalogue to copy (records are
        shared).  May be given as ``schema``, ``table`` or ``other``.
    """

    Record: ClassVar[type[BaseRecord]]
    Table: ClassVar[type[BaseTable]]
    ColumnView: ClassVar[type[BaseColumnView]]

    def __init__(self, schema: Any = None, *, table: Any = None, other: Any = None) -> None:
        source = next((s for s in (schema, table, other) if s is not None), None)
        self._view: Any = None
        # Where the records are: rows start to stop of one block, or, when
        # _rows is not None, row _rows[i] of block _blocks[_block_of[i]].
        self._block: Block | None = None
        self._start = 0
        self._stop = 0
        self._blocks: list[Block] = []
        self._block_of: np.ndarray | None = None
        self._rows: np.ndarray | None = None
        if isinstance(source, Schema):
            self._table: Any = self.Table.make(source)
        elif isinstance(source, BaseTable):
            if not isinstance(source, self.Table):
                raise TypeError(
                    f"{type(self).__name__} wants a {self.Table.__name__}, got a {type(source).__name__}."
                )
            self._table = source
        elif isinstance(source, BaseCatalog):
            if not isinstance(source._table, self.Table):
                raise TypeError(
                    f"{type(self).__name__} cannot share the records of a {type(source).__name__}."
                )
            self._table = source._table
            self._take(source)
        elif source is None:
            self._table = self.Table.make(self.Table.makeMinimalSchema())
        else:
            raise TypeError(
                f"{type(self).__name__} is made of a Schema, a {self.Table.__name__} or a "
                f"{type(self).__name__}, got {source!r}."
            )

    # ---- Where records are ----------------------------------------------

    @classmethod
    def _from_range(cls, table: Any, block: Block | None, start: int, stop: int) -> Any:
        """Return a catalogue of consecutive rows of a block."""
        self = cls.__new__(cls)
        self._table, self._view = table, None
        self._set_range(block, start, stop)
        return self

    def _set_range(self, block: Block | None, start: int, stop: int) -> None:
        self._block = block if stop > start else None
        self._start = start if stop > start else 0
        self._stop = stop if stop > start else 0
        self._blocks = []
        self._block_of = None
        self._rows = None

    def _set_arrays(self, blocks: list[Block], block_of: np.ndarray, rows: np.ndarray) -> None:
        if len(rows) == 0:
            self._set_range(None, 0, 0)
            return
        first = int(rows[0])
        if (np.diff(rows) == 1).all() and all(blocks[i] is blocks[block_of[0]] for i in np.unique(block_of)):
            self._set_range(blocks[int(block_of[0])], first, first + len(rows))
            return
        self._block = None
        self._start = 0
        self._stop = len(rows)
        self._blocks = blocks
        self._block_of = block_of
        self._rows = rows

    def _take(self, other: BaseCatalog) -> None:
        self._block, self._start, self._stop = other._block, other._start, other._stop
        self._blocks = list(other._blocks)
        self._block_of = None if other._block_of is None else other._block_of.copy()
        self._rows = None if other._rows is None else other._rows.copy()

    def _arrays(self) -> tuple[list[Block], np.ndarray, np.ndarray]:
        """Return blocks, index of the block and row of each record."""
        if self._rows is None or self._block_of is None:
            n = self._stop - self._start
            blocks = [] if self._block is None else [self._block]
            return blocks, np.zeros(n, dtype=np.intp), np.arange(self._start, self._stop, dtype=np.intp)
        return self._blocks, self._block_of[: self._stop], self._rows[: self._stop]

    def _groups(self) -> list[tuple[Block, np.ndarray, np.ndarray]]:
        """Return blocks, rows in them, and positions in the catalogue."""
        blocks, block_of, rows = self._arrays()
        if len(blocks) == 1:
            return [(blocks[0], rows, np.arange(len(rows), dtype=np.intp))]
        order = np.argsort(block_of, kind="stable")
        bounds = np.searchsorted(block_of[order], np.arange(len(blocks) + 1))
        groups = []
        for index, block in enumerate(blocks):
            positions = order[bounds[index] : bounds[index + 1]]
            if len(positions):
                groups.append((block, rows[positions], positions))
        return groups

    def _append_rows(self, block: Block, start: int, stop: int) -> None:
        """Append consecutive rows of a block."""
        n = stop - start
        if n <= 0:
            return
        if self._rows is None or self._block_of is None:
            if self._stop == self._start:
                self._set_range(block, start, stop)
                return
            if block is self._block and start == self._stop:
                self._stop = stop
                return
            self._blocks, self._block_of, self._rows = self._arrays()
            self._block, self._start, self._stop = None, 0, len(self._rows)
        # A block may be listed twice; looking further back would be slow.
        index = len(self._blocks) - 1
        if self._blocks[index] is not block:
            index += 1
            self._blocks.append(block)
        end = self._stop + n
        if end > len(self._rows):
            size = max(end, 2 * len(self._rows))
            self._rows = np.resize(self._rows, size)
            self._block_of = np.resize(self._block_of, size)
        self._rows[self._stop : end] = np.arange(start, stop)
        self._block_of[self._stop : end] = index
        self._stop = end

    def _at(self, index: int) -> Any:
        if self._rows is None or self._block_of is None:
            block = self._block
            row = self._start + index
        else:
            block = self._blocks[self._block_of[index]]
            row = int(self._rows[index])
        return block.table.Record._at(block, row)  # type: ignore[union-attr]

    def _select(self, index: np.ndarray) -> Any:
        """Return a catalogue of the records at these positions."""
        blocks, block_of, rows = self._arrays()
        result = self._from_range(self._table, None, 0, 0)
        result._set_arrays(list(blocks), block_of[index], rows[index])
        return result

    def _index(self, index: Any) -> int:
        try:
            i = index.__index__()
        except AttributeError:
            raise TypeError(
                "A catalog is indexed by an integer, a slice, a boolean array, a field name or a Key, "
                f"got {index!r}."
            ) from None
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"Index {i} not in range [{-n}, {n - 1}]")
        return i + n if i < 0 else i

    # ---- What there is --------------------------------------------------

    def getTable(self) -> Any:
        """Return the table."""
        return self._table

    table = property(getTable, doc="The table.")

    def getSchema(self) -> Schema:
        """Return a copy of the schema; its aliases are the table's own."""
        return self._table.getSchema()

    schema = property(getSchema, doc="A copy of the schema; its aliases are the table's own.")

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[Any]:
        i = 0
        while i < self._stop - self._start:
            yield self._at(i)
            i += 1

    def isContiguous(self) -> bool:
        """Return whether records lie one after the other in memory."""
        if self._rows is not None:
            blocks, block_of, rows = self._arrays()
            self._set_arrays(blocks, block_of, rows)
        if self._rows is not None:
            return False
        return self._block is None or self._block.table is self._table

    def capacity(self) -> int:
        """Return how many records fit the memory that is there."""
        return len(self) + self._table.getBufferSize()

    def reserve(self, n: int) -> None:
        """Make room so that the catalogue can hold ``n`` records."""
        if n > len(self):
            self._table.preallocate(n - len(self))

    def resize(self, n: int) -> None:
        """Drop records at the end, or add new ones, to have ``n``."""
        n = int(n)
        if n > len(self):
            block, row = self._table._allocate(n - len(self))
            self._append_rows(block, row, row + n - len(self))
        else:
            self._stop = self._start + n

    # ---- Adding and removing --------------------------------------------

    def addNew(self) -> Any:
        """Append a new record and return it."""
        block, row = self._table._allocate_one()
        self._append_rows(block, row, row + 1)
        return self._table.Record._at(block, row)

    def append(self, record: Any) -> None:
        """Append a record; it is shared, not copied."""
        self._check_record(record)
        self._append_rows(record._block, record._row, record._row + 1)

    def _check_record(self, record: Any) -> None:
        if not isinstance(record, self.Record):
            raise TypeError(
                f"{type(self).__name__} holds {self.Record.__name__}s, got {type(record).__name__}."
            )

    def set(self, index: int, record: Any) -> None:
        """Put a record in the place of another; it is shared."""
        self._check_record(record)
        i = self._index(index)
        blocks, block_of, rows = self._arrays()
        blocks, block_of, rows = list(blocks), block_of.copy(), rows.copy()
        found = next((k for k, block in enumerate(blocks) if block is record._block), len(blocks))
        if found == len(blocks):
            blocks.append(record._block)
        block_of[i] = found
        rows[i] = record._row
        self._set_arrays(blocks, block_of, rows)

    def extend(self, iterable: Any, deep: Any = False, mapper: SchemaMapper | None = None) -> None:
        """Append all records of an iterable.

        Parameters
        ----------
        iterable : iterable of `BaseRecord`
            Records, often a catalogue.
        deep : `bool`, optional
            Copy the records; true whenever there is a mapper.
        mapper : `SchemaMapper`, optional
            Which fields go where.

        Raises
        ------
        lsst.pex.exceptions.InvalidParameterError
            Raised if the mapper's output is not this schema.
        lsst.pex.exceptions.LogicError
            Raised if schemas do not fit.
        """
        if isinstance(deep, SchemaMapper):
            deep, mapper = False, deep
        if mapper is not None and not self._table._schema.contains(mapper._output):
            raise pexExceptions.InvalidParameterError(
                "SchemaMapper's output schema does not match catalog's schema"
            )
        if isinstance(iterable, BaseCatalog):
            if mapper is not None or deep:
                self._extend_deep(iterable, mapper)
                return
            if isinstance(iterable._table, self.Table):
                if iterable._rows is None:
                    if iterable._block is not None:
                        self._append_rows(iterable._block, iterable._start, iterable._stop)
                    return
                blocks, block_of, rows = self._arrays()
                n = len(blocks)
                self._set_arrays(
                    blocks + iterable._blocks,
                    np.concatenate([block_of, iterable._block_of[: iterable._stop] + n]),  # type: ignore[index]
                    np.concatenate([rows, iterable._rows[: iterable._stop]]),
                )
                return
        for record in iterable:
            if mapper is not None or deep:
                self.append(self._table.copyRecord(record, mapper))
            else:
                self.append(record)

    def _extend_deep(self, other: BaseCatalog, mapper: SchemaMapper | None) -> None:
        n = len(other)
        if n == 0:
            return
        groups = other._groups()
        block, row = self._table._allocate(n)
        copy_rows(block, row, groups, mapper)
        self._append_rows(block, row, row + n)

    def __delitem__(self, index: Any) -> None:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise IndexError("Slice step must be exactly 1 to delete records.")
        else:
            start = self._index(index)
            stop = start + 1
        blocks, block_of, rows = self._arrays()
        keep = np.r_[0:start, max(start, stop) : len(rows)]
        self._set_arrays(blocks, block_of[keep], rows[keep])

    def clear(self) -> None:
        """Remove all records."""
        self._set_range(None, 0, 0)

    def cast(self, type_: Any, deep: bool = False) -> Any:
        """Return a copy as another type of catalogue.

        Parameters
        ----------
        type_ : `type`
            Type to return.
        deep : `bool`, optional
            Copy table and records.
        """
        if deep:
            table = self._table.clone()
            table.preallocate(len(self))
        else:
            table = self._table
        result = type_(table)
        result.extend(self, deep=deep)
        return result

    def copy(self, deep: bool = False) -> Any:
        """Return a copy; records are shared unless ``deep``."""
        return self.cast(type(self), deep)

    # ---- Indexing -------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """Return a record, a column, or a catalogue that shares records.

        Parameters
        ----------
        key : `int`, `slice`, boolean `numpy.ndarray`, `str` or `Key`
            What to return.  Columns of contiguous catalogues are views,
            others and flags are read-only copies.
        """
        if type(key) is slice:
            start = 0 if key.start is None else key.start
            stop = len(self) if key.stop is None else key.stop
            return self.subset(start, stop, 1 if key.step is None else key.step)
        if isinstance(key, np.ndarray):
            if key.dtype == bool:
                return self.subset(key)
            raise RuntimeError(
                "Unsupported array type for indexing a Catalog, "
                f"only boolean arrays are supported: {key.dtype}"
            )
        if isinstance(key, str):
            return self._column(self._table._schema.find(key).key)
        if isinstance(key, _KeyImpl):
            return self._column(key)
        return self._at(self._index(key))

    def _column(self, key: Any) -> np.ndarray:
        if not key.isValid():
            raise pexExceptions.LogicError("Key is not valid (if this is a SourceRecord, set its slots up).")
        check_viewable(key, self._table._schema)
        if isinstance(key, KeyFlag):
            result = np.zeros(len(self), dtype=bool)
            for block, rows, positions in self._groups():
                result[positions] = block.flag_column(key, 0, block.capacity)[rows]
            result.flags.writeable = False
            return result
        if self.isContiguous():
            return self.columns[key]
        shape: tuple[int, ...] = (len(self),)
        if isinstance(key, _ArrayKeyImpl):
            shape += (key._size,)
        result = np.zeros(shape, dtype=key._numpy)
        for block, rows, positions in self._groups():
            result[positions] = block.column(key, 0, block.capacity)[rows]
        result.flags.writeable = False
        return result

    def __setitem__(self, key: Any, value: Any) -> None:
        """Set a record (by index) or a whole column (by name or key)."""
        if isinstance(key, str):
            key = self._table._schema[key].asKey()
        if isinstance(key, KeyFlag):
            self._set_flag(key, value)
        elif isinstance(key, _KeyImpl):
            self.columns[key] = value
        else:
            self.set(key, value)

    def _set_flag(self, key: KeyFlag, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim > 0:
            if value.dtype != bool or value.ndim != 1:
                raise TypeError(
                    f"A Flag column is set to a bool or a one-dimensional bool array, got an array of "
                    f"dtype {value.dtype} and shape {value.shape}."
                )
            if len(value) != len(self):
                raise pexExceptions.LengthError(
                    f"Catalog has {len(self)} rows, while array has {len(value)} elements."
                )
        elif isinstance(value, list | tuple | str | bytes):
            raise TypeError(f"A Flag column is set to a bool or a bool array, got {type(value).__name__}.")
        mask = np.uint8(1 << (key._bit & 7))
        bits = np.broadcast_to(np.asarray(value, dtype=bool).astype(np.uint8) * mask, (len(self),))
        for block, rows, positions in self._groups():
            column = block._flag_bytes(key, 0, block.capacity)
            column[rows] = (column[rows] & np.uint8(~mask & 0xFF)) | bits[positions]

    def subset(self, start: Any, stop: int | None = None, step: int = 1) -> Any:
        """Return a catalogue that shares some of the records.

        Parameters
        ----------
        start : `int` or boolean `numpy.ndarray`
            First index, or which records to take.
        stop, step : `int`, optional
            As in a slice.
        """
        if isinstance(start, np.ndarray) or stop is None:
            mask = np.asarray(start)
            if mask.dtype != bool or mask.ndim != 1:
                raise TypeError(f"subset wants a one-dimensional bool array, got {mask.dtype}.")
            if len(mask) != len(self):
                raise pexExceptions.LengthError(
                    f"Mask array has {len(mask)} elements, but the catalog has {len(self)} records."
                )
            return self._select(np.flatnonzero(mask))
        if step == 0:
            raise pexExceptions.InvalidParameterError("Step cannot be zero.")
        n = len(self)
        start = min(max(start + n if start < 0 else start, 0), n)
        stop = stop + n if stop < 0 else stop
        stop = min(max(stop, 0), n) if step > 0 else max(stop, -1)
        if step == 1 and self._rows is None:
            return self._from_range(self._table, self._block, self._start + start, self._start + stop)
        index = np.arange(start, stop, step)
        return self._select(index[index < n])

    # ---- Columns --------------------------------------------------------

    def getColumnView(self) -> Any:
        """Return a view of all columns.

        Raises
        ------
        lsst.pex.exceptions.RuntimeError
            Raised if the records do not lie one after the other; a deep
            copy has that mended.
        """
        if not self.isContiguous():
            raise pexExceptions.RuntimeError("Record data is not contiguous in memory.")
        view = self._view
        if view is None or (view._block, view._start, view._stop) != (self._block, self._start, self._stop):
            self._view = self._table.ColumnView(self._table, self._block, self._start, self._stop)
        return self._view

    columns = property(getColumnView, doc="A view of all columns.")

    def extract(self, *patterns: str, **kwargs: Any) -> dict[str, np.ndarray]:
        """Return {name: column} of the fields that match; no strings.

        Parameters
        ----------
        *patterns : `str`
            Shell-style patterns.
        **kwargs
            ``items``: what `Schema.extract` returned; ``where``: index into
            the columns; ``copy``: return contiguous copies; and ``regex``,
            ``sub``, ``ordered`` of `Schema.extract`.
        """
        return _extract(self, self._table._schema, patterns, kwargs)

    def asAstropy(self, cls: Any = None, copy: bool = False, unviewable: str = "copy") -> Any:
        """Return an astropy table of the catalogue.

        Parameters
        ----------
        cls : `type`, optional
            Class of the table; `astropy.table.QTable` gives quantities.
        copy : `bool`, optional
            Copy the columns; else they are views where possible.
        unviewable : `str`, optional
            What to do with strings and flags: "copy", "raise" or "skip".

        Raises
        ------
        ValueError
            Raised for an unknown ``unviewable``, or if it is "raise" and
            there is such a column.
        """
        import astropy.table

        if cls is None:
            cls = astropy.table.Table
        if unviewable not in ("copy", "raise", "skip"):
            raise ValueError(f"'unviewable'={unviewable!r} must be one of 'copy', 'raise', or 'skip'")
        metadata = self._table.getMetadata()
        meta = metadata.toOrderedDict() if metadata is not None else None
        columns = []
        for name, item in self._table._schema.extract("*", ordered=True).items():
            key = item.key
            unit = item.field.getUnits() or None
            if isinstance(key, KeyString | KeyFlag):
                what = "string" if isinstance(key, KeyString) else "packed bit columns"
                if not copy and unviewable == "raise":
                    raise ValueError(
                        f"Cannot extract {what} unless copy=True or unviewable='copy' or 'skip'."
                    )
                if not copy and unviewable == "skip":
                    continue
                data = self._column(key) if isinstance(key, KeyFlag) else self._string_column(key)
            elif is_variable(key):
                if unviewable == "raise":
                    raise ValueError("Cannot extract variable-length array fields unless unviewable='skip'.")
                continue
            else:
                data = self.columns[key]
                if key._type == "Angle":
                    unit = "radian"
            columns.append(astropy.table.Column(data, name=name, unit=unit, description=item.field.getDoc()))
        return cls(columns, meta=meta, copy=copy)

    def _string_column(self, key: KeyString) -> np.ndarray:
        if key._size == 0:
            return np.array([key.get(record) for record in self], dtype=str)
        raw = np.zeros(len(self), dtype=("S", key._size))
        for block, rows, positions in self._groups():
            raw[positions] = block.column(key, 0, block.capacity)[rows]
        if len(raw) == 0:
            return np.zeros(0, dtype=(str, key._size))
        return np.char.decode(raw, "utf-8").astype((str, key._size))

    # ---- Sorting and searching ------------------------------------------

    def _sortable(self, key: Any) -> np.ndarray:
        if not isinstance(key, _KeyImpl) or key._type not in _COLUMN_TYPES:
            raise TypeError(f"Catalogs are sorted by Keys of types {sorted(_COLUMN_TYPES)}, got {key!r}.")
        return self._column(key)

    @staticmethod
    def _plain(value: Any) -> Any:
        return value.asRadians() if isinstance(value, lsst.geom.Angle) else value

    def isSorted(self, key: Any) -> bool:
        """Return whether records ascend in a column."""
        column = self._sortable(key)
        return not (column[1:] < column[:-1]).any()

    def sort(self, key: Any) -> None:
        """Sort by a column, ascending and stable."""
        order = np.argsort(self._sortable(key), kind="stable")
        blocks, block_of, rows = self._arrays()
        self._set_arrays(blocks, block_of[order], rows[order])

    def find(self, value: Any, key: Any) -> Any:
        """Return a record by its value in a sorted column, or None."""
        column = self._sortable(key)
        value = self._plain(value)
        index = bisect_left(column, value)
        return self._at(index) if index < len(column) and column[index] == value else None

    def lower_bound(self, value: Any, key: Any) -> int:
        """Return the first index whose value is not below ``value``."""
        return bisect_left(self._sortable(key), self._plain(value))

    def upper_bound(self, value: Any, key: Any) -> int:
        """Return the first index whose value is above ``value``."""
        return bisect_right(self._sortable(key), self._plain(value))

    def equal_range(self, value: Any, key: Any) -> slice:
        """Return the slice of the records with that value."""
        return slice(self.lower_bound(value, key), self.upper_bound(value, key), 1)

    def between(self, lower: Any, upper: Any, key: Any) -> slice:
        """Return the slice of the records from lower to upper, inclusive."""
        return slice(self.lower_bound(lower, key), self.upper_bound(upper, key), 1)

    # ---- Files ----------------------------------------------------------

    @classmethod
    def readFits(cls, filename: Any, hdu: int = DEFAULT_HDU, flags: int = 0) -> Any:
        """Read a catalogue from a binary table.

        Parameters
        ----------
        filename : `str` or `lsst.afw.fits.MemFileManager`
            Name of the file, or the file.
        hdu : `int`, optional
            Number of the HDU (0 is the primary one); by default the first
            that has data.
        flags : `int`, optional
            Bits that the kind of record defines, such as
            ``SOURCE_IO_NO_FOOTPRINTS``.

        Raises
        ------
        lsst.afw.fits.FitsError
            Raised if there is no such file or table.
        """
        from ._fits_catalog import read_catalog

        return read_catalog(cls, filename, hdu, flags)

    def writeFits(self, filename: Any, mode: str = "w", flags: int = 0) -> None:
        """Write the catalogue to a binary table.

        Parameters
        ----------
        filename : `str` or `lsst.afw.fits.MemFileManager`
            Name of the file, or the file.
        mode : `str`, optional
            "w" to replace the file, "a" to add HDUs to it.
        flags : `int`, optional
            Bits that the kind of record defines.
        """
        from ._fits_catalog import write_catalog

        write_catalog(self, filename, mode, flags)

    def __reduce__(self) -> tuple[Any, ...]:
        from lsst.afw.fits import reduceToFits

        return reduceToFits(self)

    # ---- The rest -------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Methods of the table and of the column view work on the catalogue.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            return getattr(self._table, name)
        except AttributeError:
            pass
        try:
            return getattr(self.columns, name)
        except Exception as error:
            error.add_note(f"Error retrieving column attribute '{name}' from {type(self)}")
            raise

    def __dir__(self) -> list[str]:
        return sorted(set(super().__dir__()) | set(dir(self._table)) | set(dir(self._table.ColumnView)))

    def __str__(self) -> str:
        if self.isContiguous():
            return str(self.asAstropy())
        fields = " ".join(self._table._schema.getOrderedNames())
        return f"Non-contiguous afw.Catalog of {len(self)} rows.\ncolumns: {fields}"

    def __repr__(self) -> str:
        return f"{type(self)}\n{self}"


class _CatalogFamily(type):
    """Lets ``Catalog`` name the catalogue classes.

    `lsst.utils.TemplateMeta` refuses members that inherit from each other.
    """

    _members: ClassVar[dict[str, type]] = {}

    def register(cls, key: str, member: type) -> None:
        """Add a catalogue class."""
        cls._members[key] = member

    def __getitem__(cls, key: str) -> type:
        return cls._members[key]

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, BaseCatalog)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, BaseCatalog)


class Catalog(metaclass=_CatalogFamily):
    """Family of the catalogue classes: ``Catalog["Source"]``, ..."""


link_classes(BaseRecord, BaseTable, BaseColumnView, BaseCatalog)
Catalog.register("Base", BaseCatalog)
