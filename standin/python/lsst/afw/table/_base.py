# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records and tables.

Making a table class of one's own
---------------------------------
Subclass `BaseRecord`, `BaseTable`, `BaseColumnView` and a catalogue class
(`BaseCatalog` or, with an id column, ``SimpleCatalog``), and tie them::

    class PeakRecord(BaseRecord): ...
    class PeakTable(BaseTable):
        @classmethod
        def makeMinimalSchema(cls): ...
    class PeakCatalog(BaseCatalog): ...
    link_classes(PeakRecord, PeakTable, BaseColumnView, PeakCatalog)

A table with ids overrides `BaseTable._assign_ids`; one whose records hold an
object besides their fields (a footprint) sets ``_keeps_attached = True`` and
uses ``record._block.attached[record._row]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import lsst.pex.exceptions as pexExceptions

from ._mapper import SchemaMapper
from ._schema import Schema
from ._storage import RECORDS_PER_BLOCK, Block, is_variable, make_template

if TYPE_CHECKING:
    from lsst.daf.base import PropertyList

    from ._catalog import BaseCatalog

__all__ = ["BaseRecord", "BaseTable", "link_classes"]

# Values of the header key AFW_TYPE -> class of the table.
FITS_TYPES: dict[str, Any] = {}

# Upstream pads records to the size of two doubles.
_RECORD_ALIGNMENT = 16

_MAX_SHARED_BLOCK = 2**16


class BaseRecord:
    """One row: a light view of its table's memory.

    Records are made by a table or catalogue, never directly.
    """

    __slots__ = ("_block", "_position", "_row")

    Table: ClassVar[type[BaseTable]]
    Catalog: ClassVar[type[BaseCatalog]]
    ColumnView: ClassVar[type]

    _block: Block
    _position: int
    _row: int

    @classmethod
    def _at(cls, block: Block, row: int) -> Any:
        self = cls.__new__(cls)
        self._block = block
        self._row = row
        self._position = row * block.record_size
        return self

    def getTable(self) -> Any:
        """Return the table the record belongs to."""
        return self._block.table

    def getSchema(self) -> Schema:
        """Return the schema."""
        return self._block.table.getSchema()

    @property
    def table(self) -> Any:
        """The table the record belongs to."""
        return self._block.table

    @property
    def schema(self) -> Schema:
        """The schema."""
        return self._block.table.getSchema()

    def _key(self, key: Any) -> Any:
        if isinstance(key, str | bytes):
            return self._block.table._schema.find(key).key
        return key

    def get(self, key: Any) -> Any:
        """Return the value of a field.

        Parameters
        ----------
        key : `str`, `Key` or functor key
            What to read.

        Raises
        ------
        KeyError
            Raised if there is no field of that name.
        """
        return self._key(key).get(self)

    __getitem__ = get

    def set(self, key: Any, value: Any) -> None:
        """Set a field.

        Parameters
        ----------
        key : `str`, `Key` or functor key
            What to write.
        value : object
            A value of the field's type: an integer for integer fields, an
            `lsst.geom.Angle` for angles, an array of exactly the dtype and
            length for arrays.

        Raises
        ------
        KeyError
            Raised if there is no field of that name.
        TypeError
            Raised if the value has the wrong type.
        """
        self._key(key).set(self, value)

    __setitem__ = set

    def assign(self, other: BaseRecord, mapper: SchemaMapper | None = None) -> None:
        """Copy the values of another record.

        Parameters
        ----------
        other : `BaseRecord`
            Record to copy from.
        mapper : `SchemaMapper`, optional
            Which fields go where; without one the schemas must be equal.

        Raises
        ------
        lsst.pex.exceptions.LogicError
            Raised if the schemas do not fit.
        """
        rows = np.array([other._row])
        copy_rows(self._block, self._row, [(other._block, rows, np.array([0]))], mapper)

    def extract(self, *patterns: str, items: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return {name: value} of the fields that match.

        Parameters
        ----------
        *patterns : `str`
            Shell-style patterns; see `Schema.extract`, also for the
            keywords ``regex``, ``sub`` and ``ordered``.
        items : `dict`, optional
            What an earlier `Schema.extract` returned.
        """
        if items is None:
            items = self._block.table._schema.extract(*patterns, **kwargs)
        elif kwargs:
            raise ValueError(f"Unrecognized keyword arguments for extract: {', '.join(kwargs)}")
        return {name: item.key.get(self) for name, item in items.items()}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BaseRecord):
            return NotImplemented
        return self._block is other._block and self._row == other._row

    def __hash__(self) -> int:
        return hash((id(self._block), self._row))

    def __str__(self) -> str:
        return "".join(
            f"{item.field.getName()}: {item.key.get(self)}\n" for item in self._block.table._schema
        )

    def __repr__(self) -> str:
        return f"{type(self)}\n{self}"


class BaseTable:
    """Maker of records that share a schema, metadata and memory.

    Use `make`; catalogues call it when they are given a schema.

    Parameters
    ----------
    schema : `Schema`
        The schema; later changes of it do not reach the table.
    """

    Record: ClassVar[type[BaseRecord]]
    Catalog: ClassVar[type[BaseCatalog]]
    ColumnView: ClassVar[type]

    # Whether records hold an object besides their fields.
    _keeps_attached = False
    # Value of the header key AFW_TYPE, "" for none.
    _fits_type: str | None = ""
    # Least number of records of the next block; doubled where many small
    # catalogues share a table.
    _next_capacity = 0

    def __init__(self, schema: Schema) -> None:
        self._schema = Schema(schema)
        self._schema._edit()._align(_RECORD_ALIGNMENT)
        self._schema.disconnectAliases()
        self._metadata: PropertyList | None = None
        self._template: np.ndarray | None = None
        self._current: Block | None = None
        self._slot_cache: dict[str, Any] = {}
        self._slot_version = -1

    @classmethod
    def make(cls, schema: Schema) -> Any:
        """Return a new table."""
        return cls(schema)

    @classmethod
    def makeMinimalSchema(cls) -> Schema:
        """Return the fields that every such table has."""
        return Schema()

    def getSchema(self) -> Schema:
        """Return a copy of the schema; its aliases are the table's own."""
        return Schema(self._schema)

    @property
    def schema(self) -> Schema:
        """A copy of the schema; its aliases are the table's own."""
        return Schema(self._schema)

    def getMetadata(self) -> PropertyList | None:
        """Return the header entries."""
        return self._metadata

    def setMetadata(self, metadata: PropertyList | None) -> None:
        """Set the header entries."""
        self._metadata = metadata

    def popMetadata(self) -> PropertyList | None:
        """Return the header entries and forget them."""
        metadata, self._metadata = self._metadata, None
        return metadata

    metadata = property(getMetadata, setMetadata, doc="The header entries.")

    def clone(self) -> Any:
        """Return an empty table with the same schema and metadata."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._schema = Schema(self._schema)
        other._schema.disconnectAliases()
        if self._metadata is not None:
            other._metadata = self._metadata.deepCopy()
        other._current = None
        other._slot_cache = {}
        other._slot_version = -1
        return other

    # ---- Memory ---------------------------------------------------------

    def preallocate(self, n: int) -> None:
        """Make sure that the next ``n`` records lie one after the other."""
        self._block_for(int(n))

    def _block_for(self, n: int) -> Block:
        """Return the current block, a new one if ``n`` records do not fit."""
        block = self._current
        if block is None or block.capacity - block.used < n:
            if self._template is None:
                self._template = make_template(self._schema)
            capacity = max(n, self._next_capacity)
            block = self._current = Block(self._template, capacity, self)
            if self._next_capacity:
                self._next_capacity = min(2 * capacity, _MAX_SHARED_BLOCK)
        return block

    def getBufferSize(self) -> int:
        """Return how many records fit the memory that is there."""
        return 0 if self._current is None else self._current.capacity - self._current.used

    def _allocate_one(self) -> tuple[Block, int]:
        block = self._current
        if block is None or block.used == block.capacity:
            block = self._block_for(RECORDS_PER_BLOCK)
        row = block.used
        block.used = row + 1
        self._assign_ids(block, row, 1)
        return block, row

    def _allocate(self, n: int) -> tuple[Block, int]:
        """Make ``n`` records that lie one after the other."""
        block = self._block_for(max(n, 1))
        row = block.used
        block.used = row + n
        if n:
            self._assign_ids(block, row, n)
        return block, row

    def _assign_ids(self, block: Block, start: int, n: int) -> None:
        """Give new records their ids; nothing to do without an id column."""

    # ---- Records --------------------------------------------------------

    def makeRecord(self) -> Any:
        """Return a new record that belongs to no catalogue."""
        return self.Record._at(*self._allocate_one())

    def copyRecord(self, other: BaseRecord, mapper: SchemaMapper | None = None) -> Any:
        """Return a new record with the values of another.

        Parameters
        ----------
        other : `BaseRecord`
            Record to copy.
        mapper : `SchemaMapper`, optional
            Which fields go where; without one the schemas must be equal.
        """
        record = self.makeRecord()
        record.assign(other, mapper)
        return record

    def _slot_key(self, name: str) -> Any:
        """Return the key of a name that goes through aliases, or None."""
        aliases = self._schema._aliases
        if aliases._version != self._slot_version:
            self._slot_cache.clear()
            self._slot_version = aliases._version
        if name not in self._slot_cache:
            index = self._schema._layout.names.get(aliases.apply(name))
            self._slot_cache[name] = None if index is None else self._schema._layout.items[index].key
        return self._slot_cache[name]


def link_classes(record: Any, table: Any, column_view: Any, catalog: Any) -> None:
    """Tell the four classes of a kind of catalogue about each other."""
    for cls in (record, table, column_view, catalog):
        if cls is not record:
            cls.Record = record
        if cls is not table:
            cls.Table = table
        if cls is not column_view:
            cls.ColumnView = column_view
        if cls is not catalog:
            cls.Catalog = catalog
    if table.__dict__.get("_fits_type"):
        FITS_TYPES[table._fits_type] = table


def copy_rows(
    target: Block,
    start: int,
    groups: list[tuple[Block, Any, Any]],
    mapper: SchemaMapper | None = None,
) -> None:
    """Copy records into consecutive rows of a block, whole columns at once.

    Parameters
    ----------
    target : `Block`
        Where to write.
    start : `int`
        First row to write.
    groups : `list` [`tuple` [`Block`, `numpy.ndarray`, `numpy.ndarray`]]
        Blocks to read, rows in them, and where each goes, counted from
        ``start``.
    mapper : `SchemaMapper`, optional
        Which fields go where; without one the schemas must be equal.

    Raises
    ------
    lsst.pex.exceptions.LogicError
        Raised if the schemas do not fit.
    lsst.pex.exceptions.InvalidParameterError
        Raised if a mapping joins a fixed and a variable length.
    """
    schema: Schema = target.table._schema
    if mapper is not None and not schema.contains(mapper._output):
        raise pexExceptions.LogicError("Unequal schemas between output record and mapper.")
    for source, rows, positions in groups:
        source_schema: Schema = source.table._schema
        to = start + positions
        if mapper is None:
            if schema != source_schema:
                raise pexExceptions.LogicError("Unequal schemas in record assignment.")
            target.buffer[to] = source.buffer[rows]
            for offset, column in source.objects.items():
                _copy_objects(target.object_column(offset), to, column[rows])
        else:
            if not source_schema.contains(mapper._input):
                raise pexExceptions.LogicError("Unequal schemas between input record and mapper.")
            for source_key, target_key in mapper._map.items():
                _copy_field(target, to, source, rows, source_key, target_key)
        if target.table._keeps_attached and source.table._keeps_attached:
            attached = source.attached
            for row, into in zip(rows.tolist(), to.tolist(), strict=True):
                value = attached.get(row)
                if value is not None:
                    target.attached[into] = value
                else:
                    target.attached.pop(into, None)


def _copy_field(target: Block, to: Any, source: Block, rows: Any, source_key: Any, target_key: Any) -> None:
    if source_key._type == "Flag":
        values = source.flag_column(source_key, 0, source.capacity)[rows]
        column = target._flag_bytes(target_key, 0, target.capacity)
        mask = np.uint8(1 << (target_key._bit & 7))
        column[to] = (column[to] & np.uint8(~mask & 0xFF)) | (values.astype(np.uint8) * mask)
        return
    if is_variable(source_key) != is_variable(target_key):
        raise pexExceptions.InvalidParameterError(
            f"Cannot map {source_key} to {target_key}: one has a fixed length, the other has not."
        )
    if is_variable(source_key):
        if source_key._offset in source.objects:
            _copy_objects(
                target.object_column(target_key._offset), to, source.objects[source_key._offset][rows]
            )
        return
    target.column(target_key, 0, target.capacity)[to] = source.column(source_key, 0, source.capacity)[rows]


def _copy_objects(column: np.ndarray, to: Any, values: np.ndarray) -> None:
    for into, value in zip(to.tolist(), values, strict=True):
        column[into] = value.copy() if isinstance(value, np.ndarray) else value
