# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fields, keys and schema items, one class per column type.

A key is the place of a column inside a record (byte offset, and bit for
flags); it reads and writes records without knowing names.  The layout rules
(alignment, sizes of variable-length entries, packed flags) are those of
upstream, so that offsets agree.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import astropy.units
import numpy as np

import lsst.geom
import lsst.pex.exceptions as pexExceptions
from lsst.utils import TemplateMeta

if TYPE_CHECKING:
    from ._base import BaseRecord
    from ._mapper import SchemaMapper
    from ._schema import Schema

__all__ = ["Field", "Key", "SchemaItem"]

# What an unset size of a string field is upstream: the largest size_t.
_UNSET_SIZE = 2**64 - 1
# sizeof(std::string) and sizeof(ndarray::Array<T, 1, 1>): the space that
# variable-length entries take in upstream's records.
_STRING_OBJECT_SIZE = 32
_ARRAY_OBJECT_SIZE = 16

_SCALARS: dict[str, tuple[Any, str]] = {
    "B": (np.uint8, "B"),
    "U": (np.uint16, "H"),
    "I": (np.int32, "i"),
    "L": (np.int64, "q"),
    "F": (np.float32, "f"),
    "D": (np.float64, "d"),
}


@lru_cache(maxsize=1024)
def _is_unit(units: str) -> bool:
    astropy.units.Unit(units, parse_strict="raise")
    return True


def _check_units(units: str, parse_strict: str) -> None:
    """Raise ValueError (or warn, or neither) for what is no unit."""
    if not isinstance(units, str):
        raise TypeError(f"units must be a string, got {units!r}.")
    if parse_strict == "raise":
        _is_unit(units)
    else:
        astropy.units.Unit(units, parse_strict=parse_strict)


class _FieldImpl:
    """Name, documentation, units and size of one column.

    Parameters
    ----------
    name : `str`
        Name of the field.
    doc : `str`, optional
        Documentation.
    units : `str`, optional
        Units, in a form that astropy understands.
    size : `int`, optional
        Number of elements (arrays) or bytes (strings); 0 is variable length.
    parse_strict : `str`, optional
        What to do about unknown units: "raise", "warn" or "silent".

    Raises
    ------
    ValueError
        Raised if the units cannot be parsed and ``parse_strict`` is "raise".
    """

    __slots__ = ("_doc", "_name", "_size", "_units")

    _type = ""
    _key_class: type[_KeyImpl]
    _item_class: type[_SchemaItemImpl]
    _sized = False
    _default_size = 1

    def __init__(
        self,
        name: str,
        doc: str = "",
        units: str = "",
        size: int | None = None,
        parse_strict: str = "raise",
    ) -> None:
        _check_units(units, parse_strict)
        if not isinstance(name, str) or not isinstance(doc or "", str):
            raise TypeError(f"Field name and doc must be strings, got {name!r} and {doc!r}.")
        if size is None:
            size = self._default_size
        elif not self._sized:
            if size != 1:
                raise pexExceptions.LogicError(
                    f"Field '{name}' of type {self._type} takes no size, but {size} was given; "
                    "leave size out or use an array type."
                )
        else:
            size = int(size) % 2**64
        self._name = name
        self._doc = doc or ""
        self._units = str(units)
        self._size = size

    @classmethod
    def getTypeString(cls) -> str:
        """Return the code of the type, such as "D" or "ArrayF"."""
        return cls._type

    def getName(self) -> str:
        """Return the name."""
        return self._name

    def getDoc(self) -> str:
        """Return the documentation."""
        return self._doc

    def getUnits(self) -> str:
        """Return the units, "" where there are none."""
        return self._units

    def copyRenamed(self, newName: str) -> _FieldImpl:
        """Return this field under another name."""
        return type(self)(newName, self._doc, self._units, self._size if self._sized else None, "silent")

    def _addTo(self, schema: Schema, doReplace: bool = False) -> _KeyImpl:
        return schema._add_field(self, doReplace)

    def _storage(self) -> tuple[int, int]:
        """Return the size in bytes of one element and their number."""
        dtype = _SCALARS[self._type][0]
        return np.dtype(dtype).itemsize, 1

    def _make_key(self, offset: int) -> _KeyImpl:
        return self._key_class._make(offset, self._size)

    def _same_as(self, other: _FieldImpl) -> bool:
        return type(self) is type(other) and self._size == other._size

    def __str__(self) -> str:
        text = f"Field['{self._type}'](name=\"{self._name}\""
        if self._doc:
            text += f', doc="{self._doc}"'
        if self._units:
            text += f', units="{self._units}"'
        if self._sized:
            text += f", size={self._size}"
        return text + ")"

    __repr__ = __str__


class _SizedMixin:
    __slots__ = ()
    _sized = True
    _size: int

    def getSize(self) -> int:
        """Return the number of elements, 0 for variable length."""
        return self._size


class _ArrayMixin(_SizedMixin):
    __slots__ = ()
    _default_size = 0
    _element = ""

    def isVariableLength(self) -> bool:
        """Return whether the length differs from record to record."""
        return self._size == 0


class _KeyImpl:
    """Place of a column in a record.  Keys come from a schema."""

    __slots__ = ("_offset", "_size", "_valid")

    _type = ""
    _default_size = 1
    _numpy: Any = None

    def __init__(self) -> None:
        self._offset = 0
        self._size = self._default_size
        self._valid = False

    @classmethod
    def _make(cls, offset: int, size: int) -> Any:
        self = cls.__new__(cls)
        self._offset = offset
        self._size = size
        self._valid = True
        return self

    @classmethod
    def getTypeString(cls) -> str:
        """Return the code of the type, such as "D" or "ArrayF"."""
        return cls._type

    @property
    def subfields(self) -> tuple[int, ...] | None:
        """Indices of the elements of a fixed array, else None."""
        return None

    @property
    def subkeys(self) -> tuple[Any, ...] | None:
        """Keys of the elements of a fixed array, else None."""
        return None

    def isValid(self) -> bool:
        """Return whether the key came from a schema."""
        return self._valid

    def getOffset(self) -> int:
        """Return the offset of the field in a record, in bytes."""
        return self._offset

    def _identity(self) -> tuple[Any, ...]:
        return (self._type, self._offset, self._size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _KeyImpl):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __str__(self) -> str:
        return f"Key<{self._type}>(offset={self._offset}, nElements={self._size})"

    __repr__ = __str__

    # Visitors called by Schema.find and SchemaMapper.addMapping.
    def _findIn(self, schema: Schema) -> _SchemaItemImpl:
        return schema._find_key(self)

    def _addMappingTo(self, mapper: SchemaMapper, output: Any, doReplace: bool) -> _KeyImpl:
        return mapper._add_mapping(self, output, doReplace)

    def get(self, record: BaseRecord) -> Any:
        """Return the value of the field in ``record``."""
        raise NotImplementedError

    def set(self, record: BaseRecord, value: Any) -> None:
        """Set the field in ``record``."""
        raise NotImplementedError

    def _check(self) -> None:
        if not self._valid:
            raise pexExceptions.LogicError(
                "Key is not valid (if this is a SourceRecord, make sure slot aliases have been set up)."
            )

    def _refuse(self, value: object, wanted: str) -> TypeError:
        return TypeError(f"Cannot set {self} to {value!r} of type {type(value).__name__}: wanted {wanted}.")


class _NumberKey(_KeyImpl):
    __slots__ = ()
    _struct: struct.Struct

    def get(self, record: BaseRecord) -> Any:
        if not self._valid:
            self._check()
        return self._struct.unpack_from(record._block.memory, record._position + self._offset)[0]


class _IntegerKey(_NumberKey):
    __slots__ = ()

    def set(self, record: BaseRecord, value: Any) -> None:
        if not self._valid:
            self._check()
        try:
            self._struct.pack_into(record._block.memory, record._position + self._offset, value.__index__())
        except (AttributeError, TypeError, struct.error):
            raise self._refuse(value, f"an integer that fits {np.dtype(self._numpy).name}") from None


class _FloatKey(_NumberKey):
    __slots__ = ()

    def set(self, record: BaseRecord, value: Any) -> None:
        if not self._valid:
            self._check()
        if isinstance(value, str | bytes):
            raise self._refuse(value, "a number")
        try:
            number = float(value)
        except TypeError:
            raise self._refuse(value, "a number") from None
        try:
            self._struct.pack_into(record._block.memory, record._position + self._offset, number)
        except OverflowError:
            # A double outside the float32 range becomes an infinity, as in C.
            number = float("inf") if number > 0 else float("-inf")
            self._struct.pack_into(record._block.memory, record._position + self._offset, number)


class _ArrayKeyImpl(_SizedMixin, _KeyImpl):
    __slots__ = ()
    _default_size = 0
    _element_key: type[_KeyImpl]

    def isVariableLength(self) -> bool:
        """Return whether the length differs from record to record."""
        return self._size == 0

    @property
    def subfields(self) -> tuple[int, ...]:
        """Indices of the elements."""
        return tuple(range(self._size))

    @property
    def subkeys(self) -> tuple[Any, ...]:
        """Keys of the elements."""
        return tuple(self[i] for i in range(self._size))

    def __getitem__(self, index: Any) -> _KeyImpl:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._size)
            if step != 1:
                raise pexExceptions.InvalidParameterError("Step for array Key indexing must be 1.")
            return self.slice(start, stop)
        index = index.__index__()
        if self._size == 0:
            raise pexExceptions.LogicError("Cannot get Keys to elements of variable-length arrays.")
        if not 0 <= index < self._size:
            raise pexExceptions.LengthError("Array key index out of range.")
        return self._element_key._make(self._offset + index * np.dtype(self._numpy).itemsize, 1)

    def slice(self, begin: int, end: int) -> Any:
        """Return the key of elements ``begin`` to ``end`` (exclusive)."""
        if self._size == 0:
            raise pexExceptions.LogicError("Cannot get Keys to slices of variable-length arrays.")
        if begin > self._size:
            raise pexExceptions.LengthError("Array key begin index out of range.")
        if end > self._size:
            raise pexExceptions.LengthError("Array key end index out of range.")
        return self._make(self._offset + begin * np.dtype(self._numpy).itemsize, end - begin)

    def get(self, record: BaseRecord) -> np.ndarray:
        """Return the array: a view for fixed, the array set for variable."""
        self._check()
        if self._size == 0:
            value = record._block.get_object(self._offset, record._row)
            return np.zeros(0, dtype=self._numpy) if value is None else value
        return np.ndarray(
            (self._size,),
            dtype=self._numpy,
            buffer=record._block.buffer,
            offset=record._position + self._offset,
        )

    def set(self, record: BaseRecord, value: Any) -> None:
        """Set the array: copied for fixed, shared for variable length."""
        self._check()
        wanted = np.dtype(self._numpy)
        if not isinstance(value, np.ndarray) or value.dtype != wanted or value.ndim != 1:
            # The real library's cast fails with this class of exception.
            raise RuntimeError(
                f"Cannot set {self} to {type(value).__name__}: wanted a one-dimensional numpy array "
                f"of dtype {wanted.name}."
            )
        if self._size == 0:
            if not (value.flags.c_contiguous and value.flags.writeable):
                raise RuntimeError(f"{self} wants a contiguous, writeable array; give it a copy.")
            record._block.set_object(self._offset, record._row, value)
            return
        if len(value) != self._size:
            raise pexExceptions.LengthError(f"Array sizes do not agree: {len(value)} != {self._size}")
        self.get(record)[:] = value


class _SchemaItemImpl:
    """A key and its field."""

    __slots__ = ("field", "key")

    def __init__(self, key: _KeyImpl, field: _FieldImpl) -> None:
        self.key = key
        self.field = field

    def getKey(self) -> _KeyImpl:
        """Return the key."""
        return self.key

    def getField(self) -> _FieldImpl:
        """Return the field."""
        return self.field

    def __getitem__(self, index: int) -> Any:
        if index == 0:
            return self.key
        if index == 1:
            return self.field
        raise IndexError("Index to SchemaItem must be 0 or 1.")

    def __len__(self) -> int:
        return 2

    def __str__(self) -> str:
        return str((self.key, self.field))

    def __repr__(self) -> str:
        return f"SchemaItem(key={self.key}, field={self.field})"


# ---- The concrete types -------------------------------------------------


class FieldFlag(_FieldImpl):
    """One bit; flags share 64-bit words inside a record."""

    __slots__ = ()
    _type = "Flag"

    def _storage(self) -> tuple[int, int]:
        return 8, 1


class KeyFlag(_KeyImpl):
    """Key of one bit."""

    __slots__ = ("_bit",)
    _type = "Flag"
    _numpy = np.bool_

    def __init__(self) -> None:
        super().__init__()
        self._bit = 0

    @classmethod
    def _make(cls, offset: int, size: int, bit: int = 0) -> Any:
        self = super()._make(offset, size)
        self._bit = bit
        return self

    def getBit(self) -> int:
        """Return the bit inside the word."""
        return self._bit

    def _identity(self) -> tuple[Any, ...]:
        return (self._type, self._offset, self._bit)

    def __str__(self) -> str:
        return f"Key['Flag'](offset={self._offset}, bit={self._bit})"

    __repr__ = __str__

    def get(self, record: BaseRecord) -> bool:
        self._check()
        byte = record._block.memory[record._position + self._offset + (self._bit >> 3)]
        return bool((byte >> (self._bit & 7)) & 1)

    def set(self, record: BaseRecord, value: Any) -> None:
        self._check()
        if isinstance(value, str | bytes):
            raise self._refuse(value, "a bool")
        position = record._position + self._offset + (self._bit >> 3)
        mask = 1 << (self._bit & 7)
        if value:
            record._block.memory[position] |= mask
        else:
            record._block.memory[position] &= ~mask & 0xFF


class FieldAngle(_FieldImpl):
    """An angle, kept in radians."""

    __slots__ = ()
    _type = "Angle"

    def _storage(self) -> tuple[int, int]:
        return 8, 1


class KeyAngle(_NumberKey):
    """Key of an angle."""

    __slots__ = ()
    _type = "Angle"
    _numpy = np.float64
    _struct = struct.Struct("=d")

    def get(self, record: BaseRecord) -> lsst.geom.Angle:
        return lsst.geom.Angle(super().get(record))

    def set(self, record: BaseRecord, value: Any) -> None:
        self._check()
        if not isinstance(value, lsst.geom.Angle):
            raise self._refuse(value, "an lsst.geom.Angle")
        self._struct.pack_into(record._block.memory, record._position + self._offset, value.asRadians())


class FieldString(_SizedMixin, _FieldImpl):
    """A string of at most ``size`` bytes, or of any length for size 0."""

    __slots__ = ()
    _type = "String"
    _default_size = _UNSET_SIZE

    def _storage(self) -> tuple[int, int]:
        return (_STRING_OBJECT_SIZE, 1) if self._size == 0 else (1, self._size)


class KeyString(_SizedMixin, _KeyImpl):
    """Key of a string."""

    __slots__ = ()
    _type = "String"
    _default_size = 0

    def get(self, record: BaseRecord) -> str:
        self._check()
        if self._size == 0:
            return record._block.get_object(self._offset, record._row) or ""
        start = record._position + self._offset
        raw = bytes(record._block.memory[start : start + self._size])
        return raw.partition(b"\0")[0].decode()

    def set(self, record: BaseRecord, value: Any) -> None:
        self._check()
        if not isinstance(value, str):
            raise self._refuse(value, "a string")
        if self._size == 0:
            record._block.set_object(self._offset, record._row, str(value))
            return
        raw = value.encode()
        if len(raw) > self._size:
            raise pexExceptions.LengthError(f"String ({len(raw)}) is too large for field ({self._size}).")
        start = record._position + self._offset
        record._block.memory[start : start + self._size] = raw.ljust(self._size, b"\0")


def _scalar_classes(code: str) -> tuple[type, type]:
    dtype, letter = _SCALARS[code]
    base = _FloatKey if code in "FD" else _IntegerKey
    field = type(f"Field{code}", (_FieldImpl,), {"__slots__": (), "_type": code})
    key = type(
        f"Key{code}",
        (base,),
        {"__slots__": (), "_type": code, "_numpy": dtype, "_struct": struct.Struct("=" + letter)},
    )
    return field, key


def _array_classes(code: str, element_key: type) -> tuple[type, type]:
    dtype = _SCALARS[code][0]
    itemsize = np.dtype(dtype).itemsize

    def storage(self: Any) -> tuple[int, int]:
        return (_ARRAY_OBJECT_SIZE, 1) if self._size == 0 else (itemsize, self._size)

    field = type(
        f"FieldArray{code}",
        (_ArrayMixin, _FieldImpl),
        {"__slots__": (), "_type": f"Array{code}", "_storage": storage},
    )
    key = type(
        f"KeyArray{code}",
        (_ArrayKeyImpl,),
        {"__slots__": (), "_type": f"Array{code}", "_numpy": dtype, "_element_key": element_key},
    )
    return field, key


FieldB, KeyB = _scalar_classes("B")
FieldU, KeyU = _scalar_classes("U")
FieldI, KeyI = _scalar_classes("I")
FieldL, KeyL = _scalar_classes("L")
FieldF, KeyF = _scalar_classes("F")
FieldD, KeyD = _scalar_classes("D")
FieldArrayB, KeyArrayB = _array_classes("B", KeyB)
FieldArrayU, KeyArrayU = _array_classes("U", KeyU)
FieldArrayI, KeyArrayI = _array_classes("I", KeyI)
FieldArrayF, KeyArrayF = _array_classes("F", KeyF)
FieldArrayD, KeyArrayD = _array_classes("D", KeyD)


class Key(metaclass=TemplateMeta):
    """Family of the key classes: ``Key["I"]``, ``Key[np.int32]``, ..."""


class Field(metaclass=TemplateMeta):
    """Family of the field classes: ``Field["D"]``, ``Field["Flag"]``, ..."""


class SchemaItem(metaclass=TemplateMeta):
    """Family of the classes that hold a key and its field."""


_PYTHON_TYPES: dict[str, Any] = {code: dtype for code, (dtype, _) in _SCALARS.items()} | {
    "String": str,
    "Angle": lsst.geom.Angle,
}

_FIELD_CLASSES: dict[str, Any] = {}
for _field_class, _key_class in (
    (FieldB, KeyB),
    (FieldU, KeyU),
    (FieldI, KeyI),
    (FieldL, KeyL),
    (FieldF, KeyF),
    (FieldD, KeyD),
    (FieldString, KeyString),
    (FieldAngle, KeyAngle),
    (FieldArrayB, KeyArrayB),
    (FieldArrayU, KeyArrayU),
    (FieldArrayI, KeyArrayI),
    (FieldArrayF, KeyArrayF),
    (FieldArrayD, KeyArrayD),
    (FieldFlag, KeyFlag),
):
    _code = _field_class._type  # type: ignore[attr-defined]
    _item_class = type(f"SchemaItem{_code}", (_SchemaItemImpl,), {"__slots__": ()})
    _field_class._key_class = _key_class  # type: ignore[attr-defined]
    _field_class._item_class = _item_class  # type: ignore[attr-defined]
    _FIELD_CLASSES[_code] = _field_class
    for _cls in (_field_class, _key_class, _item_class):
        _cls.__module__ = __name__
        globals()[_cls.__name__] = _cls
    for _family, _member in ((Field, _field_class), (Key, _key_class), (SchemaItem, _item_class)):
        if _code in _PYTHON_TYPES:
            _family.register(_PYTHON_TYPES[_code], _member)
            _family.alias(_code, _member)
        else:
            _family.register(_code, _member)
for _family, _member in ((Field, FieldD), (Key, KeyD), (SchemaItem, FieldD._item_class)):  # type: ignore[attr-defined]
    _family.alias(float, _member)
