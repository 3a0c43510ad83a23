# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Typed, ordered metadata: sets with a hierarchy and flat lists with comments."""

from __future__ import annotations

import builtins
import copy as copy_module
import dataclasses
import math
import numbers
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import numpy as np
from astropy.io.fits.card import Undefined

from lsst.pex.exceptions import InvalidParameterError, NotFoundError, TypeError

from ._date_time import DateTime

__all__ = [
    "PropertyList",
    "PropertySet",
    "TypeInfo",
    "getPropertyListState",
    "getPropertySetState",
    "setPropertyListState",
    "setPropertySetState",
]


class TypeInfo:
    """The type of an element, comparable and hashable.

    Parameters
    ----------
    name : `str`
        Suffix of the typed accessors, such as ``Int`` in ``setInt``.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        """Return the name."""
        return self._name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TypeInfo) and self._name == other._name

    def __hash__(self) -> int:
        return hash(self._name)

    def __repr__(self) -> str:
        return f"TypeInfo({self._name!r})"


_INT_RANGES = {
    "Short": (-(2**15), 2**15 - 1),
    "Int": (-(2**31), 2**31 - 1),
    "Long": (-(2**63), 2**63 - 1),
    "LongLong": (-(2**63), 2**63 - 1),
    "UnsignedLongLong": (0, 2**64 - 1),
}
_TYPES = (
    "Bool",
    *_INT_RANGES,
    "Float",
    "Double",
    "String",
    "DateTime",
    "PropertySet",
    "Undef",
)


def _values(value: Any) -> list[Any]:
    """Return the elements of a scalar or sequence."""
    if isinstance(value, str | bytes | PropertySet | Mapping):
        return [value]
    try:
        return list(value)
    except builtins.TypeError:
        return [value]


def _convert(type_name: str, value: Any, name: str) -> Any:
    """Return a value as the Python object that a typed element holds."""
    if type_name in _INT_RANGES:
        if isinstance(value, float | np.floating) or not isinstance(value, numbers.Integral):
            raise builtins.TypeError(f"Incompatible value {value!r} for item {name} of type {type_name}.")
        low, high = _INT_RANGES[type_name]
        if not low <= int(value) <= high:
            raise builtins.TypeError(f"Value {value!r} does not fit item {name} of type {type_name}.")
        return int(value)
    if type_name == "Float":
        return float(np.float32(value))
    if type_name == "Double":
        return float(value)
    expected: dict[str, Any] = {
        "Bool": (bool, np.bool_),
        "String": (str,),
        "DateTime": (DateTime,),
        "PropertySet": (PropertySet, type(None)),
        "Undef": (type(None),),
    }
    if not isinstance(value, expected[type_name]):
        raise builtins.TypeError(f"Incompatible value {value!r} for item {name} of type {type_name}.")
    if type_name == "Bool":
        return bool(value)
    return str(value) if type_name == "String" else value


def _guess_type(container: PropertySet, name: str, values: list[Any]) -> str:
    """Return the type of element for values of unknown type.

    Integers take the narrowest of 32 bit, 64 bit and unsigned 64 bit that
    holds them and is not narrower than the item that exists.
    """
    exemplar = values[0]
    if all(isinstance(v, numbers.Integral) and not isinstance(v, bool | np.bool_) for v in values):
        order = ["Int", "LongLong", "UnsignedLongLong"]
        current = container._type_name(name) if container.exists(name) else None
        if current in order:
            order = order[order.index(current) :]
        for candidate in order:
            low, high = _INT_RANGES[candidate]
            if all(low <= v <= high for v in values):
                return candidate
        if min(values) >= _INT_RANGES["LongLong"][0] and max(values) <= _INT_RANGES["LongLong"][1]:
            return "LongLong"
        fits = _INT_RANGES["LongLong"][0] <= min(values) and max(values) <= _INT_RANGES["UnsignedLongLong"][1]
        error = builtins.TypeError if fits else builtins.RuntimeError
        raise error(f"Integers of item {name} are out of range: {values}.")
    for kinds, type_name in (
        ((bool, np.bool_), "Bool"),
        ((float, np.floating), "Double"),
        ((str,), "String"),
        ((DateTime,), "DateTime"),
        ((PropertySet,), "PropertySet"),
        ((type(None),), "Undef"),
    ):
        if isinstance(exemplar, kinds):
            return type_name
    raise builtins.TypeError(f"Unknown value type for key '{name}': {type(exemplar)}")


@dataclasses.dataclass
class _Item:
    type_name: str
    values: list[Any]
    comment: str = ""


def _format_number(value: float, digits: int) -> str:
    """Format as C++ does with `showpoint`: trailing zeros are kept."""
    if math.isnan(value) or math.isinf(value):
        return str(value)
    return f"{value:#.{digits}g}"


class PropertySet:
    """Named, typed values; dots in names make a hierarchy.

    Parameters
    ----------
    flat : `bool`, optional
        If true, dots have no meaning.
    """

    _flat: bool

    def __init__(self, flat: bool = False) -> None:
        self._items: dict[str, _Item] = {}
        self._flat = flat

    # Lookup -----------------------------------------------------------------

    def _locate(self, name: str, create: bool = False) -> tuple[PropertySet | None, str]:
        """Return the container that holds (or would hold) an item."""
        if self._flat or "." not in name:
            return self, name
        head, tail = name.split(".", 1)
        item = self._items.get(head)
        if item is None:
            if not create:
                return None, tail
            item = self._items[head] = _Item("PropertySet", [PropertySet()])
        child = item.values[-1]
        if not isinstance(child, PropertySet):
            if create:
                raise InvalidParameterError(f"{head} exists but does not contain PropertySet::Ptrs")
            return None, tail
        return child._locate(tail, create)

    def _find(self, name: str) -> _Item:
        owner, key = self._locate(name)
        if owner is None or key not in owner._items:
            raise NotFoundError(name + " not found")
        return owner._items[key]

    def _item(self, name: str) -> _Item:
        try:
            return self._find(name)
        except NotFoundError:
            raise KeyError(name + " not found") from None

    def _type_name(self, name: str) -> str:
        return self._find(name).type_name

    def exists(self, name: str) -> bool:
        """Tell whether an item exists."""
        owner, key = self._locate(name)
        return owner is not None and key in owner._items

    def isArray(self, name: str) -> bool:
        """Tell whether an item has more than one value."""
        return self.exists(name) and len(self._find(name).values) > 1

    def isUndefined(self, name: str) -> bool:
        """Tell whether an item has no value."""
        return self.exists(name) and self._type_name(name) == "Undef"

    def isPropertySetPtr(self, name: str) -> bool:
        """Tell whether an item is a container."""
        return self.exists(name) and self._type_name(name) == "PropertySet"

    def typeOf(self, name: str) -> TypeInfo:
        """Return the type of an item."""
        return TypeInfo(self._type_name(name))

    def valueCount(self, name: str | None = None) -> int:
        """Return the number of values of one item or of all."""
        if name is not None:
            return len(self._find(name).values) if self.exists(name) else 0
        return sum(
            value.valueCount() if isinstance(value, PropertySet) else 1
            for item in self._items.values()
            for value in item.values
        )

    def names(self, topLevelOnly: bool = True) -> list[str]:
        """Return the names."""
        if topLevelOnly:
            return list(self._items)
        result = []
        for name, item in self._items.items():
            result.append(name)
            child = item.values[-1]
            if isinstance(child, PropertySet):
                result.extend(f"{name}.{n}" for n in child.names(False))
        return result

    def nameCount(self, topLevelOnly: bool = True) -> int:
        """Return the number of names."""
        return len(self.names(topLevelOnly))

    def paramNames(self, topLevelOnly: bool = True) -> list[str]:
        """Return the names that are not containers."""
        return [n for n in self.names(topLevelOnly) if not self.isPropertySetPtr(n)]

    def propertySetNames(self, topLevelOnly: bool = True) -> list[str]:
        """Return the names that are containers."""
        return [n for n in self.names(topLevelOnly) if self.isPropertySetPtr(n)]

    # Reading ----------------------------------------------------------------

    def getArray(self, name: str) -> Any:
        """Return all values of an item (a container as it is)."""
        item = self._item(name)
        return item.values[-1] if item.type_name == "PropertySet" else list(item.values)

    def getScalar(self, name: str) -> Any:
        """Return the last value of an item."""
        return self._item(name).values[-1]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the last value of an item, or a default."""
        return self.getScalar(name) if self.exists(name) else default

    def _auto(self, name: str) -> Any:
        item = self._item(name)
        return list(item.values) if len(item.values) > 1 else item.values[-1]

    def _get_as(self, name: str, types: tuple[str, ...], convert: Callable[[Any], Any]) -> Any:
        item = self._find(name)
        if item.type_name not in types:
            raise TypeError(name)
        return convert(item.values[-1])

    def getAsBool(self, name: str) -> bool:
        """Return a boolean."""
        return self._get_as(name, ("Bool",), bool)

    def getAsInt(self, name: str) -> int:
        """Return an integer of at most 32 bit."""
        return self._get_as(name, ("Bool", "Short", "Int"), int)

    def getAsInt64(self, name: str) -> int:
        """Return an integer."""
        return self._get_as(name, ("Bool", "Short", "Int", "Long", "LongLong"), int)

    def getAsUInt64(self, name: str) -> int:
        """Return an unsigned integer."""
        return self._get_as(name, ("Bool", "UnsignedLongLong"), int)

    def getAsDouble(self, name: str) -> float:
        """Return a number as a float."""
        if self.isUndefined(name):
            return math.nan
        return self._get_as(name, ("Bool", *_INT_RANGES, "Float", "Double"), float)

    def getAsString(self, name: str) -> str:
        """Return a string."""
        return self._get_as(name, ("String",), str)

    def getAsPropertySetPtr(self, name: str) -> PropertySet:
        """Return a container."""
        return self._get_as(name, ("PropertySet",), lambda v: v)

    def toDict(self) -> dict[str, Any]:
        """Return a (nested) dictionary."""
        result = {}
        for name in self:
            value = self._auto(name)
            result[name] = value.toDict() if isinstance(value, PropertySet) else value
        return result

    def get_dict(self, key: str) -> Mapping[str, Any]:
        """Return a nested dictionary, empty if there is no such item."""
        return self.getScalar(key).toDict() if self.exists(key) else {}

    # Writing ----------------------------------------------------------------

    def _set(self, type_name: str, name: str, value: Any, comment: str | None = None) -> None:
        if self._flat and isinstance(value, PropertySet):
            for inner in value.paramNames(False):
                item = value._find(inner)
                self._set(item.type_name, f"{name}.{inner}", list(item.values), item.comment)
            return
        values = [_convert(type_name, v, name) for v in _values(value)]
        if not values:
            return
        if type_name == "PropertySet":
            self._check_cycle(name, values[-1])
        owner, key = self._locate(name, create=True)
        if owner is None:
            raise InvalidParameterError(f"{name} cannot be set")
        old = owner._items.get(key)
        kept = old.comment if old is not None and comment is None else ""
        item = _Item(type_name, values, kept if comment is None else str(comment))
        owner._items[key] = item

    def _add(self, type_name: str, name: str, value: Any, comment: str | None = None) -> None:
        if not self.exists(name) or type_name == "PropertySet":
            self._set(type_name, name, value, comment)
            return
        item = self._find(name)
        if item.type_name != type_name:
            raise TypeError(name + " has mismatched type")
        item.values.extend(_convert(type_name, v, name) for v in _values(value))
        if comment is not None:
            item.comment = str(comment)

    def _check_cycle(self, name: str, value: PropertySet | None) -> None:
        if value is self or (
            value is not None and any(value.get(n) is self for n in value.propertySetNames(False))
        ):
            raise InvalidParameterError(name + " would cause a cycle")

    def set(self, name: str, value: Any) -> None:
        """Set an item, replacing what it was."""
        values = _values(value)
        if values:
            self._set(_guess_type(self, name, values), name, value)

    def add(self, name: str, value: Any) -> None:
        """Append one or more values to an item."""
        values = _values(value)
        if values:
            self._add(_guess_type(self, name, values[:1]), name, value)

    def set_dict(self, key: str, value: Mapping[str, Any]) -> None:
        """Set an item to a nested dictionary."""
        self.set(key, PropertySet.from_mapping(value))

    @classmethod
    def from_mapping(cls, metadata: Any) -> Any:
        """Make a container of a mapping, dataclass or the like."""
        if isinstance(metadata, Mapping):
            mapping: Any = metadata
        elif dataclasses.is_dataclass(metadata) and not isinstance(metadata, type):
            mapping = dataclasses.asdict(metadata)
        else:
            method = next(
                (getattr(metadata, n) for n in ("to_dict", "toDict", "dict") if hasattr(metadata, n)), None
            )
            if method is None:
                raise ValueError(
                    f"Unable to extract mappings from the supplied metadata of type {type(metadata)}"
                )
            mapping = method()
        new = cls()
        new.update(mapping)
        return new

    def update(self, addition: Any) -> None:
        """Overwrite items with those of another container or mapping."""
        if isinstance(addition, PropertySet):
            for name in addition:
                self.copy(name, addition, name)
        else:
            for name, value in addition.items():
                self[name] = value

    def copy(self, dest: str, source: PropertySet, name: str, asScalar: bool = False) -> None:
        """Copy one item of another container, replacing what was there."""
        if not source.exists(name):
            raise InvalidParameterError(name + " not in source")
        item = source._find(name)
        values = item.values[-1:] if asScalar else item.values
        self._set(item.type_name, dest, list(values), item.comment)

    def combine(self, source: PropertySet) -> None:
        """Append all values of another container."""
        for name in source.paramNames(False):
            item = source._find(name)
            self._add(item.type_name, name, list(item.values), item.comment or None)

    def remove(self, name: str) -> None:
        """Remove an item, if it exists."""
        owner, key = self._locate(name)
        if owner is not None:
            owner._items.pop(key, None)

    def pop(self, name: str, default: Any = None) -> Any:
        """Remove an item and return its value."""
        if not self.exists(name):
            if default is None:
                raise KeyError(name)
            return default
        value = self[name]
        self.remove(name)
        return value

    def deepCopy(self) -> Any:
        """Return an independent copy."""
        new = self._empty()
        for name, item in self._items.items():
            values = [v.deepCopy() if isinstance(v, PropertySet) else v for v in item.values]
            new._items[name] = _Item(item.type_name, values, item.comment)
        return new

    def _empty(self) -> Any:
        return PropertySet(self._flat)

    # Mapping ----------------------------------------------------------------

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._items))

    def __getitem__(self, name: str) -> Any:
        return self.getScalar(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            value = PropertySet.from_mapping(value)
        self.set(name, value)

    def __delitem__(self, name: str) -> None:
        if not self.exists(name):
            raise KeyError(f"{name} not present in dict")
        self.remove(name)

    def keys(self) -> KeysView[str]:
        """Return the names."""
        return KeysView(self)  # type: ignore[arg-type]

    def items(self) -> ItemsView[str, Any]:
        """Return names and values."""
        return ItemsView(self)  # type: ignore[arg-type]

    def values(self) -> ValuesView[Any]:
        """Return the values."""
        return ValuesView(self)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        if set(self._items) != set(other._items):  # type: ignore[attr-defined]
            return False
        return all(_same(item, other._items[n]) for n, item in self._items.items())  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> Any:
        new = self._empty()
        for name in self:
            new.copy(name, self, name)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = result = self.deepCopy()
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_property_set, (getPropertySetState(self),)

    # Text -------------------------------------------------------------------

    @staticmethod
    def _format_value(item: _Item, value: Any) -> str:
        if item.type_name == "Bool":
            return str(int(value))
        if item.type_name == "Float":
            return _format_number(value, 7)
        if item.type_name == "Double":
            return _format_number(value, 14)
        if item.type_name == "String":
            return f'"{value}"'
        if item.type_name == "DateTime":
            return value.toString(DateTime.UTC)
        return {"PropertySet": "{ ... }", "Undef": "<Unknown>"}.get(item.type_name, str(value))

    def _format(self, name: str) -> str:
        item = self._items[name]
        text = ", ".join(self._format_value(item, v) for v in item.values)
        return f"{name} = [ {text} ]\n" if len(item.values) > 1 else f"{name} = {text}\n"

    def toString(self, topLevelOnly: bool = False, indent: str = "") -> str:
        """Return all items as text, one a line."""
        lines = []
        for name in sorted(self._items):
            child = self._items[name].values[-1]
            if not isinstance(child, PropertySet):
                lines.append(indent + self._format(name))
            elif topLevelOnly:
                lines.append(f"{indent}{name} = {{ ... }}\n")
            else:
                lines.append(f"{indent}{name} = {{\n{child.toString(False, indent + '..')}{indent}}}\n")
        return "".join(lines)

    def __str__(self) -> str:
        return self.toString()

    def __repr__(self) -> str:
        return self.toString() + "\n"


def _same(a: _Item, b: _Item) -> bool:
    """Compare items; NaN equals NaN."""
    if a.type_name != b.type_name or len(a.values) != len(b.values):
        return False
    return all(x == y or (x != x and y != y) for x, y in zip(a.values, b.values, strict=True))


class PropertyList(PropertySet):
    """Named, typed values in order, with comments, as in a FITS header.

    Dots in names have no meaning.
    """

    COMMENTSUFFIX = "#COMMENT"

    def __init__(self) -> None:
        super().__init__(flat=True)

    def _empty(self) -> Any:
        return PropertyList()

    @classmethod
    def from_astropy_header(cls, header: Any) -> PropertyList:
        """Make a list of the cards of an `astropy.io.fits.Header`, with comments."""
        new = cls()
        for card in header.cards:
            value = None if isinstance(card.value, Undefined) else card.value
            new.add(card.keyword, value, card.comment)
        return new

    def getOrderedNames(self) -> list[str]:
        """Return the names in the order of insertion."""
        return list(self._items)

    def getComment(self, name: str) -> str:
        """Return the comment of an item."""
        return self._find(name).comment

    def setComment(self, name: str, comment: str) -> None:
        """Set the comment of an item."""
        self._item(name).comment = str(comment)

    def set(self, name: str, value: Any, comment: str | None = None) -> None:
        """Set an item, replacing what it was."""
        values = _values(value)
        if values:
            self._set(_guess_type(self, name, values), name, value, comment)

    def add(self, name: str, value: Any, comment: str | None = None) -> None:
        """Append one or more values to an item."""
        values = _values(value)
        if values:
            self._add(_guess_type(self, name, values[:1]), name, value, comment)

    def toList(self) -> list[tuple[str, Any, str]]:
        """Return (name, value, comment) of every value, in order."""
        return [(name, v, item.comment) for name, item in self._items.items() for v in item.values]

    def toOrderedDict(self) -> dict[str, Any]:
        """Return a dictionary in order."""
        return {name: self._auto(name) for name in self}

    def toDict(self) -> dict[str, Any]:
        """Return a dictionary in order."""
        return self.toOrderedDict()

    def get_dict(self, key: str) -> Mapping[str, Any]:
        """Return a nested dictionary of the items that start with a key."""
        result: dict[str, Any] = {}
        for name in self:
            first, *levels = name.split(".")
            if first == key and levels:
                nested = result
                for level in levels[:-1]:
                    nested = nested.setdefault(level, {})
                nested[levels[-1]] = self[name]
        return result

    def __setitem__(self, name: str, value: Any) -> None:
        if name.endswith(self.COMMENTSUFFIX):
            self.setComment(name[: -len(self.COMMENTSUFFIX)], value)
        else:
            super().__setitem__(name, value)

    def __eq__(self, other: object) -> bool:
        equal = super().__eq__(other)
        if equal is not True:
            return equal
        return all(item.comment == other._items[n].comment for n, item in self._items.items())  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def toString(self, topLevelOnly: bool = False, indent: str = "") -> str:
        """Return all items as text, in order, with comments."""
        lines = []
        for name, item in self._items.items():
            lines.append(self._format(name))
            if item.comment:
                lines.append(f"// {item.comment}\n")
        return "".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_property_list, (getPropertyListState(self),)


def _add_typed_accessors(type_name: str) -> None:
    """Define ``setInt``, ``addInt``, ``getArrayInt``, ``TYPE_Int``, ..."""

    def set_typed(self: PropertySet, name: str, value: Any, comment: str | None = None) -> None:
        self._set(type_name, name, value, comment)

    def add_typed(self: PropertySet, name: str, value: Any, comment: str | None = None) -> None:
        self._add(type_name, name, value, comment)

    def get_typed(self: PropertySet, name: str, *default: Any) -> Any:
        if default and not self.exists(name):
            return default[0]
        return get_array_typed(self, name)[-1]

    def get_array_typed(self: PropertySet, name: str) -> list[Any]:
        item = self._find(name)
        if item.type_name != type_name:
            raise TypeError(name)
        return list(item.values)

    for prefix, function in (
        ("set", set_typed),
        ("add", add_typed),
        ("get", get_typed),
        ("getArray", get_array_typed),
    ):
        function.__name__ = prefix + type_name
        function.__doc__ = f"{prefix} values of type {type_name}."
        setattr(PropertySet, function.__name__, function)
    setattr(PropertySet, "TYPE_" + type_name, TypeInfo(type_name))


for _name in _TYPES:
    _add_typed_accessors(_name)
del _name


def getPropertySetState(container: PropertySet, asLists: bool = False) -> list[Any]:
    """Return (name, type, value) of every item."""
    kind = list if asLists else tuple
    return [
        kind((n, container._type_name(n), copy_module.copy(container._auto(n)))) for n in container.names()
    ]


def getPropertyListState(container: PropertyList, asLists: bool = False) -> list[Any]:
    """Return (name, type, value, comment) of every item."""
    kind = list if asLists else tuple
    return [
        kind((n, container._type_name(n), container._auto(n), container.getComment(n)))
        for n in container.getOrderedNames()
    ]


def setPropertySetState(container: PropertySet, state: list[Any]) -> None:
    """Set items as `getPropertySetState` returned them."""
    for name, type_name, value in state:
        if type_name is None:
            raise ValueError(f"Unrecognized values for state restoration: ({name}, {type_name}, {value})")
        container._set(type_name, name, value)


def setPropertyListState(container: PropertyList, state: list[Any]) -> None:
    """Set items as `getPropertyListState` returned them."""
    for name, type_name, value, comment in state:
        container._set(type_name, name, value, comment)


def _make_property_set(state: list[Any]) -> PropertySet:
    container = PropertySet()
    setPropertySetState(container, state)
    return container


def _make_property_list(state: list[Any]) -> PropertyList:
    container = PropertyList()
    setPropertyListState(container, state)
    return container
