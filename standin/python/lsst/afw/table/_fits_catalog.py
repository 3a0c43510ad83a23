# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Catalogues to FITS binary tables and back, in upstream's layout.

One HDU holds the records: a bit column with all flags (FLAGCOL, TFLAGn,
TFDOCn), then one column per other field with TDOCn, TUNITn and TCCLSn,
aliases (ALIAS), metadata and the version.  Sources have one more column,
``footprint``: ids of objects in the archive of HDUs that follows (AR_HDU).
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import lsst.pex.exceptions as pexExceptions

from . import _fits_bytes as raw_fits
from ._base import FITS_TYPES, BaseTable
from ._fields import _FIELD_CLASSES, KeyFlag, KeyString, _ArrayKeyImpl
from ._schema import Schema
from ._source import SOURCE_IO_NO_FOOTPRINTS, SOURCE_IO_NO_HEAVY_FOOTPRINTS
from ._storage import Block, is_variable

if TYPE_CHECKING:
    from lsst.daf.base import PropertyList

    from ._catalog import BaseCatalog

_LOG = logging.getLogger("lsst.afw.table.io")

_DEFAULT_HDU = -(2**31)
_TFORM = re.compile(r"(\d+)?([PQ])?([A-Z])(?:\((\d*)\))?")
_FIELD_COMMENT = "Field template used by lsst.afw.table"

# Type codes of fields to letters of FITS formats, and the numpy types there.
_LETTERS = {"B": "B", "U": "I", "I": "J", "L": "K", "F": "E", "D": "D", "Angle": "D", "String": "A"}
_CODES = {"B": "B", "I": "U", "J": "I", "K": "L", "E": "F", "D": "D"}
_DTYPES = {"L": "u1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
_WIDTHS = {"L": 1, "B": 1, "A": 1, "I": 2, "J": 4, "K": 8, "E": 4, "D": 8, "C": 8, "M": 16}
_UNSIGNED_ZERO = 32768

_MOST_USES = 5
"""Times that the bytes of a heap may be in entries of one column: entries may share some."""

# Header keys that describe the file and not what is in it.
_STRUCTURE = re.compile(
    r"SIMPLE|BITPIX|NAXIS\d*|EXTEND|GCOUNT|PCOUNT|XTENSION|TFIELDS|BSCALE|BZERO|THEAP|DATASUM|CHECKSUM"
    r"|Z(BITPIX|IMAGE|CMPTYPE|SIMPLE|EXTEND|BLANK|DATASUM|HECKSUM|QUANTIZ|DITHER0|NAXIS.*|TILE.*|NAME.*|VAL.*)"
    r"|TZERO.*|TSCAL.*|TNULL\d+|TDISP\d+|AFW_TABLE_VERSION|AFW_TYPE|AR_HDU|ALIAS|FLAGCOL"
    r"|(TTYPE|TFORM|TUNIT|TDOC|TCCLS|TFLAG|TFDOC)\d+"
)
_COLUMN_KEY = re.compile(r"(TTYPE|TFORM|TUNIT|TDOC|TCCLS|TFLAG|TFDOC)(\d+)")


# ---- Reading ------------------------------------------------------------


@dataclass
class _Column:
    """A column (number counts from 0) or a flag (bit) of a header."""

    number: int
    is_flag: bool
    name: str = ""
    form: str = ""
    unit: str = ""
    doc: str = ""
    kind: str = ""
    comment: str = ""

    @property
    def documentation(self) -> str:
        return self.doc or self.comment


class TableHeader:
    """What the header of a binary table says.

    Parameters
    ----------
    hdu : `raw_fits.RawHdu`
        The HDU.

    Raises
    ------
    lsst.afw.fits.FitsError
        Raised if this is no binary table or its keys contradict each other.
    """

    def __init__(self, hdu: raw_fits.RawHdu) -> None:
        from lsst.afw.fits import FitsError
        from lsst.daf.base import PropertyList

        keys = hdu.keys
        if keys.get("XTENSION") != "BINTABLE":
            raise FitsError(
                f"a binary table is wanted, but this HDU is {keys.get('XTENSION') or 'the primary one'}"
            )
        self.hdu = hdu
        self.type = str(keys.get("AFW_TYPE", ""))
        default = 0 if "AFW_TYPE" in keys else Schema.VERSION
        self.version = int(keys.get("AFW_TABLE_VERSION", default))
        # AR_HDU counts from 1.
        self.archive_hdu = int(keys.get("AR_HDU", 0)) - 1
        self.aliases: list[tuple[str, str]] = []
        columns: dict[tuple[bool, int], _Column] = {}
        self.metadata: PropertyList = PropertyList()
        for key, value, comment in hdu.cards:
            match = _COLUMN_KEY.fullmatch(key)
            if match:
                what, number = match[1], int(match[2]) - 1
                is_flag = what in ("TFLAG", "TFDOC")
                column = columns.setdefault((is_flag, number), _Column(number, is_flag))
                text = str(value)
                if what in ("TTYPE", "TFLAG"):
                    column.name, column.comment = text, comment
                elif what in ("TDOC", "TFDOC"):
                    # As upstream reads it.
                    column.doc = text.replace("'", "''")
                elif what == "TFORM":
                    column.form = text
                elif what == "TUNIT":
                    column.unit = text
                else:
                    column.kind = text
            elif key == "ALIAS":
                alias, colon, target = str(value).partition(":")
                if not colon:
                    raise FitsError(f"Malformed alias definition: '{value}'")
                self.aliases.append((alias, target))
            elif not _STRUCTURE.fullmatch(key):
                self.metadata.add(key, value, comment)
        self.columns = list(columns.values())
        flag_column = int(keys.get("FLAGCOL", 0)) - 1
        self.flags: _Column | None = None
        if flag_column >= 0:
            self.flags = columns.get((False, flag_column))
            if self.flags is None:
                raise FitsError(f"Column for flag data not found; FLAGCOL={flag_column + 1}")
            if not re.fullmatch(r"\d*X(\(?\d*\)?)?", self.flags.form):
                raise FitsError(f"Invalid TFORM key for flags column: '{self.flags.form}'")
            self.columns.remove(self.flags)
        self.offsets = self._offsets(columns)
        width = sum(_width(column.form) for (is_flag, _), column in columns.items() if not is_flag)
        if width > int(keys.get("NAXIS1", 0)) and keys.get("NAXIS2"):
            raise FitsError(f"the columns have {width} bytes, a row has NAXIS1 = {keys.get('NAXIS1')}")

    @staticmethod
    def _offsets(columns: dict[tuple[bool, int], _Column]) -> dict[int, int]:
        offsets, position = {}, 0
        for (is_flag, number), column in sorted(columns.items()):
            if is_flag:
                continue
            offsets[number] = position
            position += _width(column.form)
        return offsets

    def find(self, name: str) -> _Column | None:
        """Return the column (not flag) of a name."""
        return next((c for c in self.columns if c.name == name and not c.is_flag), None)


def _width(form: str) -> int:
    """Return the number of bytes that a column takes in a row."""
    match = _TFORM.match(form.strip())
    if not match:
        return 0
    count = 1 if match[1] is None else int(match[1])
    if match[2]:
        return count * (8 if match[2] == "P" else 16)
    if match[3] == "X":
        return (count + 7) // 8
    return count * _WIDTHS.get(match[3], 1)


def _field_of(column: _Column) -> Any:
    """Return the field that a column is read into, or None."""
    match = _TFORM.fullmatch(column.form.strip())
    if not match:
        return None
    size = 1 if match[1] is None else int(match[1])
    letter = match[3]
    if match[2]:
        size = 0
    units = column.unit
    if letter == "A":
        code, field_size = "String", size
    elif letter not in _CODES or (letter == "K" and size != 1):
        return None
    elif letter == "D" and size == 1 and column.kind == "Angle":
        # Angles are radians in files and have no unit in memory.
        code, field_size, units = "Angle", None, ""
    elif size == 1 and column.kind != "Array":
        code, field_size = _CODES[letter], None
    else:
        code, field_size = f"Array{_CODES[letter]}", size
    return _FIELD_CLASSES[code](column.name, column.documentation, units, field_size, "silent")


def _is_inst_flux(column: _Column) -> bool:
    if "flux" not in column.name:
        return False
    if "modelfit_CModel" in column.name and not column.unit:
        return True
    unit = column.unit.lower()
    return any(word in unit for word in ("count", "dn", "adu"))


def _make_schema(header: TableHeader) -> tuple[Schema, list[tuple[_Column, Any]]]:
    """Return the schema of a table, and its columns with their keys."""
    from lsst.afw.fits import FitsError

    schema = Schema()
    aliases = schema.getAliasMap()
    for alias, target in header.aliases:
        aliases.set(alias, target)
    if header.version < 3:
        # Names that have since changed are found under the new ones too.
        for column in header.columns:
            name = column.name
            if header.version < 2 and name.endswith("Sigma"):
                name = name.removesuffix("Sigma") + "Err"
            if _is_inst_flux(column):
                name = name.replace("flux", "instFlux", 1)
            if name != column.name:
                aliases.set(name, column.name)
    n_flags = 0
    if header.flags is not None:
        match = _TFORM.match(header.flags.form)
        n_flags = int(match[1]) if match and match[1] else 1
    result = []
    for column in header.columns:
        if column.is_flag:
            if column.number >= n_flags:
                raise FitsError(
                    f"Flag field '{column.name}' is in bit {column.number} (0-indexed) of only {n_flags}"
                )
            field = _FIELD_CLASSES["Flag"](column.name, column.documentation)
        else:
            field = _field_of(column)
            if field is None:
                _LOG.warning("Format %s for column %s not supported; skipping.", column.form, column.name)
                continue
        result.append((column, schema._add_field(field)))
    if schema.getRecordSize() <= 0:
        raise pexExceptions.LengthError("The table has no column that can be read; the file is invalid.")
    return schema, result


def _fill(block: Block, start: int, n: int, header: TableHeader, fields: list[tuple[_Column, Any]]) -> None:
    """Read all rows into a block, whole columns at once."""
    keys = header.hdu.keys
    width = int(keys.get("NAXIS1", 0))
    rows = header.hdu.data[: width * n].reshape(n, width)
    heap_start = int(keys.get("THEAP", width * n))
    heap = header.hdu.data[heap_start:]
    bits = None
    if header.flags is not None:
        begin = header.offsets[header.flags.number]
        bits = np.unpackbits(rows[:, begin : begin + _width(header.flags.form)], axis=1)
    for column, key in fields:
        if isinstance(key, KeyFlag):
            if bits is not None:
                block.set_flag_column(key, start, start + n, bits[:, column.number])
            continue
        begin = header.offsets[column.number]
        match = _TFORM.fullmatch(column.form.strip())
        if match is None:
            continue
        letter = match[3]
        if match[2]:
            pointer_type = ">i8" if match[2] == "Q" else ">i4"
            pointers = _cells(rows, begin, pointer_type, 2).astype(np.int64)
            zero = keys.get(f"TZERO{column.number + 1}", 0) or 0
            _fill_variable(block, start, key, letter, zero, pointers, heap)
            continue
        target = block.column(key, start, start + n)
        if isinstance(key, KeyString):
            text = np.ascontiguousarray(rows[:, begin : begin + key._size]).view(f"S{key._size}")[:, 0]
            # CFITSIO pads with blanks and drops them again.
            target[:] = np.char.rstrip(text, b" ") if key._size else b""
            continue
        count = key._size if isinstance(key, _ArrayKeyImpl) else 1
        values = _cells(rows, begin, _DTYPES[letter], count)
        zero = keys.get(f"TZERO{column.number + 1}", 0) or 0
        if zero:
            values = values.astype(np.int64) + int(zero)
        target[:] = values if isinstance(key, _ArrayKeyImpl) else values[:, 0]


def _cells(rows: np.ndarray, begin: int, dtype: str, count: int) -> np.ndarray:
    """Return cells of a table as an array (rows, count), a view."""
    kind = np.dtype(dtype)
    return (
        np.ndarray(
            (len(rows), count),
            dtype=kind,
            buffer=rows,
            offset=begin,
            strides=(rows.strides[0], kind.itemsize),
        )
        if len(rows)
        else np.zeros((0, count), dtype=kind)
    )


def _fill_variable(
    block: Block, start: int, key: Any, letter: str, zero: float, pointers: np.ndarray, heap: np.ndarray
) -> None:
    from lsst.afw.fits import FitsError

    column = block.object_column(key._offset)
    kind = np.dtype("u1" if letter == "A" else _DTYPES[letter])
    if kind.itemsize * pointers[:, 0].clip(min=0).astype(float).sum() > _MOST_USES * len(heap):
        raise FitsError("The variable-length entries have more bytes than the file; it is corrupt.")
    for i, (count, offset) in enumerate(pointers.tolist()):
        if count <= 0:
            continue
        end = offset + count * kind.itemsize
        if offset < 0 or end > len(heap):
            raise FitsError(f"A variable-length entry of row {i} lies outside the file; it is corrupt.")
        cell = heap[offset:end].view(kind)
        if letter == "A":
            column[start + i] = cell.tobytes().partition(b"\0")[0].decode("utf-8", "replace")
        else:
            column[start + i] = (cell.astype(np.int64) + int(zero) if zero else cell).astype(key._numpy)


def read_table(
    hdu: raw_fits.RawHdu, catalog_class: Any, table: Any = None, skip: tuple[str, ...] = ()
) -> tuple[Any, TableHeader, dict[str, np.ndarray]]:
    """Read the records of one HDU.

    Parameters
    ----------
    hdu : `raw_fits.RawHdu`
        The HDU.
    catalog_class : `type`
        Class of the catalogue to return.
    table : `type`, optional
        Class of its table; by default what AFW_TYPE says.
    skip : `tuple` [`str`], optional
        Names of scalar columns to return beside the catalogue.

    Returns
    -------
    catalog : `BaseCatalog`
        The records.
    header : `TableHeader`
        What the header says.
    skipped : `dict` [`str`, `numpy.ndarray`]
        The columns that were asked for beside the catalogue.
    """
    header = TableHeader(hdu)
    table_class = table or FITS_TYPES.get(header.type, BaseTable)
    n = int(hdu.keys.get("NAXIS2", 0))
    skipped = {}
    for name in skip:
        column = header.find(name)
        if column is not None:
            header.columns.remove(column)
            width = int(hdu.keys["NAXIS1"])
            letter = _TFORM.match(column.form)[3]  # type: ignore[index]
            rows = hdu.data[: width * n].reshape(n, width)
            skipped[name] = _cells(rows, header.offsets[column.number], _DTYPES[letter], 1)[:, 0].astype(
                np.int64
            )
    schema, fields = _make_schema(header)
    made = table_class.make(schema)
    if not isinstance(made, catalog_class.Table):
        raise pexExceptions.RuntimeError(
            f"Invalid table class for catalog: the file holds a {table_class.__name__}, "
            f"{catalog_class.__name__} wants a {catalog_class.Table.__name__}."
        )
    made.setMetadata(header.metadata)
    if n == 0:
        return catalog_class(made), header, skipped
    block, start = made._allocate(n)
    _fill(block, start, n, header, fields)
    return catalog_class._from_range(made, block, start, start + n), header, skipped


def _choose(hdus: list[raw_fits.RawHdu], hdu: int, name: str) -> int:
    from lsst.afw.fits import FitsError

    if hdu == _DEFAULT_HDU:
        return 1 if len(hdus) > 1 and not hdus[0].keys.get("NAXIS") else 0
    if not 0 <= hdu < len(hdus):
        raise FitsError(f"there is no HDU {hdu} in {name}; it has {len(hdus)}")
    return hdu


def read_schema(filename: str | os.PathLike, hdu: int = _DEFAULT_HDU) -> Schema:
    """Read the schema of a binary table."""
    hdus = raw_fits.read_file(filename)
    return _make_schema(TableHeader(hdus[_choose(hdus, hdu, str(filename))]))[0]


def read_catalog(cls: Any, filename: Any, hdu: int = _DEFAULT_HDU, flags: int = 0) -> Any:
    """Read a catalogue; see `BaseCatalog.readFits`."""
    name = "the file in memory" if hasattr(filename, "getData") else f"'{os.fspath(filename)}'"
    return _read_hdus(cls, raw_fits.read_file(filename), hdu, flags, name)


def _read_hdus(cls: Any, hdus: list[raw_fits.RawHdu], hdu: int, flags: int, name: str) -> Any:
    from lsst.afw.fits import FitsError
    from lsst.afw.fits._fits import fits_errors

    index = _choose(hdus, hdu, name)
    is_source = hdus[index].keys.get("AFW_TYPE") == "SOURCE"
    with fits_errors(f"HDU {index} of {name}"):
        catalog, header, skipped = read_table(hdus[index], cls, skip=("footprint",) if is_source else ())
    if is_source and not flags & SOURCE_IO_NO_FOOTPRINTS:
        from .io._archive import InputArchive

        ids = skipped.get("footprint", np.zeros(0, np.int64))
        start = header.archive_hdu if header.archive_hdu > 0 else index + 1
        archived = any(str(hdu.keys.get("EXTTYPE", "")).startswith("ARCHIVE") for hdu in hdus[index + 1 :])
        if "footprint" not in skipped and header.archive_hdu <= 0 and not archived:
            return catalog
        if start >= len(hdus):
            if header.archive_hdu > 0 or ids.any():
                raise FitsError(
                    f"{name} has no archive: its Footprints should be in HDU {start}, the last is "
                    f"{len(hdus) - 1}. Copy it again, or read it with SOURCE_IO_NO_FOOTPRINTS."
                )
            return catalog
        with fits_errors(f"the archive of {name}"):
            archive = InputArchive._from_raw(hdus, start)
            if lost := archive.find("Footprint") - set(ids.tolist()):
                # Upstream does not look, but never writes such a file.
                raise FitsError(f"{len(lost)} of its Footprints belong to no record; the table is damaged")
            _attach_footprints(catalog, ids, archive, flags)
    return catalog


def _attach_footprints(catalog: BaseCatalog, ids: np.ndarray, archive: Any, flags: int) -> None:
    from lsst.afw.fits import FitsError

    no_heavy = bool(flags & SOURCE_IO_NO_HEAVY_FOOTPRINTS)
    block = catalog._block
    if block is None:
        return
    attached = block.attached
    for row, id in enumerate(ids.tolist(), start=catalog._start):
        footprint = archive.get(id)
        if footprint is None:
            if id:
                raise FitsError(f"object {id} is no Footprint that is known")
            if no_heavy:
                # Upstream ends in a segmentation fault: callers must not get used to another answer.
                raise FitsError(
                    f"Record {row} has no Footprint, and lsst.afw cannot read such records with "
                    "SOURCE_IO_NO_HEAVY_FOOTPRINTS; read the file without this flag."
                )
            continue
        attached[row] = _light(footprint) if no_heavy and footprint.isHeavy() else footprint


def _light(footprint: Any) -> Any:
    """Return a heavy footprint without its pixels."""
    from lsst.afw.detection import Footprint

    light = Footprint(footprint.getSpans(), footprint.getRegion())
    light.setPeakCatalog(footprint.getPeaks())
    return light


# ---- Writing ------------------------------------------------------------


def _form(key: Any, longest: int | None) -> str:
    letter = _LETTERS[key._type.removeprefix("Array")]
    if is_variable(key):
        return f"1Q{letter}" if longest is None else f"1Q{letter}({longest})"
    count = key._size if isinstance(key, _ArrayKeyImpl | KeyString) else 1
    return f"{count}{letter}"


def _gather(catalog: BaseCatalog, read: Any, out: np.ndarray) -> None:
    groups = catalog._groups()
    for block, rows, positions in groups:
        out[positions] = read(block)[rows]


def _heap_of(catalog: BaseCatalog, keys: list[Any]) -> tuple[bytes, dict[int, np.ndarray]]:
    """Return the heap, row after row, and the pointers of each column."""
    pointers = {key._offset: np.zeros((len(catalog), 2), dtype=">i8") for key in keys}
    if not keys:
        return b"", pointers
    columns = []
    for key in keys:
        values = np.full(len(catalog), None, dtype=object)
        for block, rows, positions in catalog._groups():
            if key._offset in block.objects:
                values[positions] = block.objects[key._offset][rows]
        letter = _LETTERS[key._type.removeprefix("Array")]
        columns.append((key, letter, values, pointers[key._offset]))
    pieces: list[bytes] = []
    position = 0
    for row in range(len(catalog)):
        for key, letter, values, where in columns:
            value = values[row]
            if isinstance(key, KeyString):
                # CFITSIO writes one byte for an empty string.
                text = (value or "").encode()
                piece, count = text or b"\0", len(text) or 1
                where[row] = (count, position)
            else:
                if value is None or len(value) == 0:
                    continue
                if letter == "I":
                    value = value.astype(np.int32) - _UNSIGNED_ZERO
                count = len(value)
                piece = value.astype(_DTYPES[letter]).tobytes()
                where[row] = (count, position)
            pieces.append(piece)
            position += len(piece)
    return b"".join(pieces), pointers


def _metadata_cards(metadata: PropertyList | None) -> list[raw_fits.Card]:
    cards: list[raw_fits.Card] = []
    if metadata is None:
        return cards
    for name in metadata.getOrderedNames():
        if _STRUCTURE.fullmatch(name):
            continue
        comment = metadata.getComment(name)
        for value in metadata.getArray(name):
            if hasattr(value, "toString") and hasattr(value, "nsecs"):
                value = value.toString(value.UTC)
            if value is None or isinstance(value, bool | int | float | str | np.generic):
                cards.append((name, value, comment))
            else:
                _LOG.warning("Metadata '%s' of type %s cannot be saved.", name, type(value).__name__)
    return cards


def table_bytes(
    catalog: BaseCatalog,
    extra: list[tuple[str, np.ndarray, str]] | None = None,
    more_cards: list[raw_fits.Card] | None = None,
) -> bytes:
    """Return a binary table HDU.

    Parameters
    ----------
    catalog : `BaseCatalog`
        The records.
    extra : `list` [`tuple`], optional
        Further int32 columns: name, values, documentation.
    more_cards : `list`, optional
        Header cards to go after the metadata.
    """
    table = catalog._table
    n = len(catalog)
    items = list(table._schema)
    flags = [item for item in items if isinstance(item.key, KeyFlag)]
    variable = [item.key for item in items if is_variable(item.key)]
    heap, pointers = _heap_of(catalog, variable)

    dtype: list[tuple[Any, ...]] = []
    cards: list[raw_fits.Card] = []
    if flags:
        dtype.append(("c0", "u1", ((len(flags) + 7) // 8,)))
        cards += [
            ("TTYPE1", "flags", "bits for all Flag fields; see also TFLAGn"),
            ("TFORM1", f"{len(flags)}X", "format of field"),
            ("FLAGCOL", 1, "Column number for the bitflags."),
        ]
    flag_number = 0
    for item in items:
        key, field = item.key, item.field
        if isinstance(key, KeyFlag):
            flag_number += 1
            cards.append((f"TFLAG{flag_number}", field._name, ""))
            if field._doc:
                cards.append((f"TFDOC{flag_number}", field._doc, ""))
            continue
        number = len(dtype) + 1
        name = f"c{len(dtype)}"
        longest = None
        if is_variable(key):
            dtype.append((name, ">i8", (2,)))
            if heap:
                longest = int(pointers[key._offset][:, 0].max())
        elif isinstance(key, KeyString):
            dtype.append((name, f"S{key._size}"))
        else:
            kind = _DTYPES[_LETTERS[key._type.removeprefix("Array")]]
            dtype.append((name, kind, (key._size,)) if isinstance(key, _ArrayKeyImpl) else (name, kind))
        cards += _column_cards(number, field, _form(key, longest))
    for extra_name, _, doc in extra or []:
        number = len(dtype) + 1
        dtype.append((f"c{len(dtype)}", ">i4"))
        cards += _column_cards(number, _FIELD_CLASSES["I"](extra_name, doc), "1J")

    rows = np.zeros(n, dtype=dtype)
    _write_rows(rows, catalog, items, flags, pointers)
    for i, (_, values, _) in enumerate(extra or [], start=len(dtype) - len(extra or [])):
        rows[f"c{i}"] = values

    structure: list[raw_fits.Card] = [
        ("XTENSION", "BINTABLE", "binary table extension"),
        ("BITPIX", 8, "8-bit bytes"),
        ("NAXIS", 2, "2-dimensional binary table"),
        ("NAXIS1", rows.dtype.itemsize, "width of table in bytes"),
        ("NAXIS2", n, "number of rows in table"),
        ("PCOUNT", len(heap), "size of special data area"),
        ("GCOUNT", 1, "one data group (required keyword)"),
        ("TFIELDS", len(dtype), "number of fields in each row"),
    ]
    for alias, target in table._schema.getAliasMap().items():
        cards.append(("ALIAS", f"{alias}:{target}", ""))
    cards += _metadata_cards(table.getMetadata())
    tail: list[raw_fits.Card] = list(more_cards or [])
    tail.append(("AFW_TABLE_VERSION", Schema.VERSION, ""))
    if table._fits_type:
        kind = {"SOURCE": "Source", "SIMPLE": "Simple", "PEAK": "Peak"}.get(
            table._fits_type, table._fits_type
        )
        tail.append(("AFW_TYPE", table._fits_type, f"Tells lsst::afw to load this as a {kind} table."))
    return raw_fits.header_bytes(structure + cards + tail) + raw_fits.data_bytes(rows.tobytes(), heap)


def _column_cards(number: int, field: Any, form: str) -> list[raw_fits.Card]:
    cards: list[raw_fits.Card] = [
        (f"TTYPE{number}", field._name, "label for field"),
        (f"TFORM{number}", form, "format of field"),
    ]
    if field._type in ("U", "ArrayU"):
        cards.append((f"TZERO{number}", _UNSIGNED_ZERO, "offset for unsigned integers"))
        cards.append((f"TSCAL{number}", 1, "data are not scaled"))
    if field._doc:
        cards.append((f"TDOC{number}", field._doc, ""))
    if field._type == "Angle":
        cards.append((f"TUNIT{number}", "rad", ""))
        kind = "Angle"
    else:
        if field._units:
            cards.append((f"TUNIT{number}", field._units, ""))
        kind = {"A": "Array", "S": "String"}.get(field._type[0], "Scalar")
    cards.append((f"TCCLS{number}", kind, _FIELD_COMMENT))
    return cards


def _write_rows(
    rows: np.ndarray,
    catalog: BaseCatalog,
    items: list[Any],
    flags: list[Any],
    pointers: dict[int, np.ndarray],
) -> None:
    n = len(rows)
    if flags:
        bits = np.zeros((n, len(flags)), dtype=np.uint8)
        for i, item in enumerate(flags):
            key = item.key
            _gather(catalog, lambda block, key=key: block.flag_column(key, 0, block.capacity), bits[:, i])
        rows["c0"] = np.packbits(bits, axis=1)
    number = 1 if flags else 0
    for item in items:
        key = item.key
        if isinstance(key, KeyFlag):
            continue
        name = f"c{number}"
        number += 1
        if is_variable(key):
            rows[name] = pointers[key._offset]
            continue
        if isinstance(key, KeyString):
            text = np.zeros(n, dtype=f"S{key._size}")
            _gather(catalog, lambda block, key=key: block.column(key, 0, block.capacity), text)
            # CFITSIO pads with blanks.
            letters = text.view(np.uint8)
            letters[letters == 0] = ord(" ")
            rows[name] = text
            continue
        if key._type in ("U", "ArrayU"):
            shape = (n, key._size) if isinstance(key, _ArrayKeyImpl) else (n,)
            values = np.zeros(shape, dtype=np.int32)
            _gather(catalog, lambda block, key=key: block.column(key, 0, block.capacity), values)
            rows[name] = values - _UNSIGNED_ZERO
            continue
        _gather(catalog, lambda block, key=key: block.column(key, 0, block.capacity), rows[name])


def catalog_to_bytes(catalog: BaseCatalog, flags: int = 0, primary: bool = True) -> bytes:
    """Return a whole FITS file with a catalogue and its archive."""
    start = raw_fits.primary_bytes() if primary else b""
    if not catalog._table._keeps_attached or flags & SOURCE_IO_NO_FOOTPRINTS:
        return start + table_bytes(catalog)
    from .io._archive import OutputArchive

    archive = OutputArchive()
    ids = np.zeros(len(catalog), dtype=np.int32)
    no_heavy = bool(flags & SOURCE_IO_NO_HEAVY_FOOTPRINTS)
    blocks, block_of, rows = catalog._arrays()
    for i, (which, row) in enumerate(zip(block_of.tolist(), rows.tolist(), strict=True)):
        footprint = blocks[which].attached.get(row)
        if footprint is not None:
            ids[i] = archive.put(_light(footprint) if no_heavy and footprint.isHeavy() else footprint)
    # The archive follows in the next HDU, which is the third of a new file;
    # AR_HDU counts from 1.
    pointer = (
        "AR_HDU",
        3,
        "HDU (1-indexed) containing the archive index for non-record data (e.g. Footprints)",
    )
    body = table_bytes(catalog, [("footprint", ids, "archive ID for Footprint")], [pointer])
    return start + body + archive.to_bytes()


def write_catalog(catalog: BaseCatalog, filename: Any, mode: str = "w", flags: int = 0) -> None:
    """Write a catalogue; see `BaseCatalog.writeFits`."""
    if any(block.table._schema != catalog._table._schema for block, _, _ in catalog._groups()):
        raise pexExceptions.LogicError("Schemas of the records differ from that of the catalogue.")
    if catalog._table._fits_type is None:
        raise NotImplementedError(f"{type(catalog).__name__} is written as a part of other objects alone.")
    raw_fits.write_file(filename, lambda primary: catalog_to_bytes(catalog, flags, primary), mode)
