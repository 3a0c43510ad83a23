# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Schemas: the ordered fields of a table, and aliases for their names."""

from __future__ import annotations

import fnmatch
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import astropy.units

import lsst.pex.exceptions as pexExceptions

from ._fields import Field, KeyFlag, _FieldImpl, _KeyImpl, _SchemaItemImpl

__all__ = ["AliasMap", "Schema", "SubSchema", "makeSchemaFromFields"]


class AliasMap:
    """Replacements for the beginnings of field names.

    Parameters
    ----------
    other : `AliasMap`, optional
        A map to copy.
    """

    def __init__(self, other: AliasMap | None = None) -> None:
        self._map: dict[str, str] = dict(other._map) if other is not None else {}
        self._sorted: list[str] = sorted(self._map)
        # Counts changes, so that tables can cache what their slots mean.
        self._version = 0

    def __len__(self) -> int:
        return len(self._map)

    def empty(self) -> bool:
        """Return whether there are no aliases."""
        return not self._map

    def apply(self, name: str) -> str:
        """Return ``name`` with all aliases replaced.

        Raises
        ------
        lsst.pex.exceptions.RuntimeError
            Raised if aliases refer to each other in a circle.
        """
        if not self._map:
            return name
        result = name
        for _ in range(len(self._map) + 1):
            target = self._map.get(result)
            if target is not None:
                result = target
                continue
            index = bisect_left(self._sorted, result)
            if index == 0:
                return result
            candidate = self._sorted[index - 1]
            if not result.startswith(candidate):
                return result
            result = self._map[candidate] + result[len(candidate) :]
        raise pexExceptions.RuntimeError(f"Cycle detected in schema aliases involving name '{name}'")

    def get(self, alias: str) -> str:
        """Return the target of ``alias``; NotFoundError if there is none."""
        try:
            return self._map[alias]
        except KeyError:
            raise pexExceptions.NotFoundError(f"Alias '{alias}' not found") from None

    __getitem__ = get

    def set(self, alias: str, target: str) -> None:
        """Add an alias, or change its target."""
        if not isinstance(alias, str) or not isinstance(target, str):
            raise TypeError(f"Aliases and their targets are strings, got {alias!r} and {target!r}.")
        if alias not in self._map:
            self._sorted.insert(bisect_left(self._sorted, alias), alias)
        self._map[alias] = target
        self._version += 1

    __setitem__ = set

    def erase(self, alias: str) -> bool:
        """Remove an alias; return whether it was there."""
        if alias not in self._map:
            return False
        del self._map[alias]
        self._sorted.remove(alias)
        self._version += 1
        return True

    __delitem__ = erase

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AliasMap):
            return NotImplemented
        return self._map == other._map

    __hash__ = None  # type: ignore[assignment]

    def contains(self, other: AliasMap) -> bool:
        """Return whether every alias of ``other`` is in this one."""
        return other._map.items() <= self._map.items()

    __contains__ = contains

    def items(self) -> Iterator[tuple[str, str]]:
        """Iterate over (alias, target), sorted by alias."""
        return iter([(alias, self._map[alias]) for alias in self._sorted])

    def keys(self) -> Iterator[str]:
        """Iterate over the aliases."""
        return iter(list(self._sorted))

    def values(self) -> Iterator[str]:
        """Iterate over the targets."""
        return iter([target for _, target in self.items()])

    __iter__ = keys


class _Layout:
    """The fields of a schema and where they are in a record."""

    __slots__ = ("by_key", "flag_bit", "flag_offset", "items", "names", "record_size", "shared")

    def __init__(self, other: _Layout | None = None) -> None:
        self.shared = False
        if other is None:
            self.items: list[_SchemaItemImpl] = []
            self.names: dict[str, int] = {}
            self.by_key: dict[tuple[Any, ...], int] = {}
            self.record_size = 0
            self.flag_offset = -1
            self.flag_bit = 0
        else:
            self.items = list(other.items)
            self.names = dict(other.names)
            self.by_key = dict(other.by_key)
            self.record_size = other.record_size
            self.flag_offset = other.flag_offset
            self.flag_bit = other.flag_bit

    def _align(self, size: int) -> None:
        self.record_size += -self.record_size % size

    def add(self, field: _FieldImpl) -> _KeyImpl:
        element_size, count = field._storage()
        if isinstance(field, _FIELD_FLAG):
            if self.flag_offset < 0 or self.flag_bit >= 64:
                self._align(element_size)
                self.flag_offset = self.record_size
                self.flag_bit = 0
                self.record_size += element_size
            key: _KeyImpl = KeyFlag._make(self.flag_offset, 1, self.flag_bit)
            self.flag_bit += 1
        else:
            self._align(element_size)
            key = field._make_key(self.record_size)
            self.record_size += element_size * count
        index = len(self.items)
        self.items.append(field._item_class(key, field))
        self.names[field._name] = index
        self.by_key[key._identity()] = index
        return key

    def replace(self, index: int, field: _FieldImpl) -> None:
        old = self.items[index]
        del self.names[old.field._name]
        self.names[field._name] = index
        self.items[index] = field._item_class(old.key, field)

    def item(self, name: str) -> _SchemaItemImpl:
        try:
            return self.items[self.names[name]]
        except KeyError:
            raise pexExceptions.NotFoundError(f"Field with name '{name}' not found") from None

    def get_names(self, top_only: bool, prefix: str | None = None) -> set[str]:
        if prefix is None:
            names = list(self.names)
        else:
            start = len(prefix) + 1
            names = [name[start:] for name in self.names if name.startswith(prefix + "_")]
        return {name.partition("_")[0] for name in names} if top_only else set(names)


_FIELD_FLAG: type = Field["Flag"]


class SubSchema:
    """The fields whose names begin with a prefix and "_".

    Made by ``schema["prefix"]``; the prefix may be an alias.
    """

    def __init__(self, layout: _Layout, aliases: AliasMap, prefix: str) -> None:
        self._layout = layout
        self._aliases = aliases
        self._prefix = prefix

    def getPrefix(self) -> str:
        """Return the prefix."""
        return self._prefix

    def __getitem__(self, name: str) -> SubSchema:
        return SubSchema(self._layout, self._aliases, f"{self._prefix}_{name}")

    def find(self, name: str) -> _SchemaItemImpl:
        """Return the item of ``prefix_name``; NotFoundError if missing."""
        return self._layout.item(self._aliases.apply(f"{self._prefix}_{name}"))

    def _item(self) -> _SchemaItemImpl:
        return self._layout.item(self._aliases.apply(self._prefix))

    def asKey(self) -> Any:
        """Return the key of the field whose name is the prefix."""
        return self._item().key

    def asField(self) -> Any:
        """Return the field whose name is the prefix."""
        return self._item().field

    def getNames(self, topOnly: bool = False) -> set[str]:
        """Return the names without the prefix."""
        return self._layout.get_names(topOnly, self._prefix)


class Schema:
    """Ordered description of the fields of a table.

    Parameters
    ----------
    other : `Schema`, optional
        A schema to copy; its aliases are shared, its fields are not.
    """

    EQUAL_KEYS = 0x01
    EQUAL_NAMES = 0x02
    EQUAL_DOCS = 0x04
    EQUAL_UNITS = 0x08
    EQUAL_FIELDS = 0x0F
    EQUAL_ALIASES = 0x10
    IDENTICAL = 0x1F
    VERSION = 3

    def __init__(self, other: Schema | None = None) -> None:
        if other is None:
            self._layout = _Layout()
            self._aliases = AliasMap()
        else:
            if not isinstance(other, Schema):
                raise TypeError(f"Schema() takes nothing or a Schema, got {type(other).__name__}.")
            # Copied on the first change of either.
            other._layout.shared = True
            self._layout = other._layout
            self._aliases = other._aliases

    # ---- Changing -------------------------------------------------------

    def _edit(self) -> _Layout:
        if self._layout.shared:
            self._layout = _Layout(self._layout)
        return self._layout

    def _add_field(self, field: _FieldImpl, doReplace: bool = False) -> Any:
        index = self._layout.names.get(field._name)
        if index is None:
            return self._edit().add(field)
        if not doReplace:
            raise pexExceptions.InvalidParameterError(
                f"Field with name '{field._name}' already present in schema."
            )
        old = self._layout.items[index]
        if type(old.field) is not type(field):
            raise pexExceptions.TypeError(
                f"Cannot replace field with name '{field._name}' because types differ."
            )
        if not old.field._same_as(field):
            raise pexExceptions.TypeError(
                f"Cannot replace field with name '{field._name}' because sizes differ."
            )
        self._edit().replace(index, field)
        return old.key

    def _replace_field(self, key: _KeyImpl, field: _FieldImpl) -> None:
        """Give the column at ``key`` another field of the same type."""
        index = self._index_of_key(key)
        present = self._layout.names.get(field._name)
        if present is not None and present != index:
            raise pexExceptions.InvalidParameterError(
                f"Field with name '{field._name}' already present in schema with a different key."
            )
        self._edit().replace(index, field)

    def addField(
        self,
        field: Any,
        type: Any = None,
        doc: str = "",
        units: str = "",
        size: int | None = None,
        doReplace: bool = False,
        parse_strict: str = "raise",
    ) -> Any:
        """Add a field and return its key.

        Parameters
        ----------
        field : `str` or `Field`
            Name, or a whole field (then all but ``doReplace`` is ignored).
        type : `str` or `type`
            A type that `Field` knows: "I", np.int32, "Flag", "ArrayF", ...
        doc : `str`, optional
            Documentation.
        units : `str`, optional
            Units.
        size : `int`, optional
            Size of strings and arrays; 0 for variable length.
        doReplace : `bool`, optional
            Replace a field of the same name, type and size.
        parse_strict : `str`, optional
            What to do about unknown units: "raise", "warn" or "silent".

        Returns
        -------
        key : `Key`
            The key of the field.

        Raises
        ------
        KeyError
            Raised for an unknown type.
        ValueError
            Raised for units that are none.
        lsst.pex.exceptions.InvalidParameterError
            Raised if the name is taken and ``doReplace`` is false.
        """
        if isinstance(field, str):
            field = Field[type](field, doc=doc, units=units, size=size, parse_strict=parse_strict)
        return field._addTo(self, doReplace)

    # ---- Finding --------------------------------------------------------

    def _index_of_key(self, key: _KeyImpl) -> int:
        try:
            return self._layout.by_key[key._identity()]
        except KeyError:
            raise pexExceptions.NotFoundError(f"{key} not found in this Schema.") from None

    def _find_key(self, key: _KeyImpl) -> _SchemaItemImpl:
        return self._layout.items[self._index_of_key(key)]

    def find(self, key: Any) -> Any:
        """Return the item of a name (aliases apply) or key.

        Raises
        ------
        KeyError
            Raised if there is no such field.
        """
        if isinstance(key, bytes):
            key = key.decode()
        try:
            if isinstance(key, str):
                return self._layout.item(self._aliases.apply(key))
            return key._findIn(self)
        except pexExceptions.NotFoundError as error:
            raise KeyError(str(error.args[0]) if error.args else str(error)) from None

    def __contains__(self, key: object) -> bool:
        try:
            self.find(key)
        except Exception:
            # The real library answers False for anything it cannot look up.
            return False
        return True

    def __getitem__(self, name: str) -> SubSchema:
        if not isinstance(name, str):
            raise TypeError(f"A Schema is indexed by names, got {type(name).__name__}.")
        self._layout.shared = True
        return SubSchema(self._layout, self._aliases, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._layout.items))

    def forEach(self, func: Callable[[Any], Any]) -> None:
        """Call ``func`` with every item in order."""
        for item in list(self._layout.items):
            func(item)

    def getNames(self, topOnly: bool = False) -> set[str]:
        """Return the names as a set (up to the first "_" on request)."""
        return self._layout.get_names(topOnly)

    def getOrderedNames(self) -> list[str]:
        """Return the names in the order of the fields."""
        return [item.field._name for item in self._layout.items]

    def getFieldCount(self) -> int:
        """Return the number of fields."""
        return len(self._layout.items)

    def getFlagFieldCount(self) -> int:
        """Return the number of flags."""
        return sum(isinstance(item.key, KeyFlag) for item in self._layout.items)

    def getNonFlagFieldCount(self) -> int:
        """Return the number of fields that are no flags."""
        return self.getFieldCount() - self.getFlagFieldCount()

    def getRecordSize(self) -> int:
        """Return the size of a record in bytes."""
        return self._layout.record_size

    def extract(
        self,
        *patterns: str,
        regex: str | re.Pattern | None = None,
        sub: str | None = None,
        ordered: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return {name: item} of the names (and aliases) that match.

        Parameters
        ----------
        *patterns : `str`
            Shell-style patterns.
        regex : `str` or `re.Pattern`, optional
            Expression matched with `re.match`, besides the patterns.
        sub : `str`, optional
            Template for the returned names of what ``regex`` matched.
        ordered : `bool`, optional
            Kept for compatibility; the order is always that of the schema.

        Raises
        ------
        ValueError
            Raised for ``sub`` without ``regex`` and for unknown keywords.
        """
        if sub is not None and regex is None:
            raise ValueError("'sub' keyword argument to extract is invalid without 'regex' argument")
        if kwargs:
            raise ValueError(f"Unrecognized keyword arguments for extract: {', '.join(kwargs)}")
        # One expression for all globs: schemas have hundreds of fields.
        globs = [re.compile(fnmatch.translate(pattern)).match for pattern in patterns]
        aliases = list(self._aliases.items())
        result: dict[str, Any] = {}
        for item in self._layout.items:
            true_name = item.field._name
            names = [true_name]
            for alias, target in aliases:
                if true_name.startswith(target):
                    names.append(true_name.replace(target, alias, 1))
            for name in names:
                if regex is not None:
                    match = re.match(regex, name)
                    if match is not None:
                        result[match.expand(sub) if sub is not None else name] = item
                        continue
                if any(glob(name) for glob in globs):
                    result[name] = item
        return result

    @staticmethod
    def join(*names: str) -> str:
        """Return the names joined by "_"."""
        if not 2 <= len(names) <= 4:
            raise TypeError(f"Schema.join takes two to four names, got {len(names)}.")
        return "_".join(names)

    def checkUnits(self, parse_strict: str = "raise") -> None:
        """Check that astropy understands the units of every field."""
        for item in self._layout.items:
            astropy.units.Unit(item.field._units, parse_strict=parse_strict)

    # ---- Aliases --------------------------------------------------------

    def getAliasMap(self) -> AliasMap:
        """Return the aliases; they are shared, not copied."""
        return self._aliases

    def setAliasMap(self, aliases: AliasMap | None) -> None:
        """Use another set of aliases, shared with its owner."""
        self._aliases = AliasMap() if aliases is None else aliases

    def disconnectAliases(self) -> None:
        """Stop sharing aliases with copies of this schema."""
        self._aliases = AliasMap(self._aliases)

    # ---- Comparing ------------------------------------------------------

    def contains(self, other: Schema, flags: int = EQUAL_KEYS) -> int:
        """Return which ``flags`` hold of the fields that ``other`` has."""
        if self._layout is other._layout:
            return flags
        mine, theirs = self._layout.items, other._layout.items
        if len(mine) < len(theirs):
            return 0
        result = flags
        if result & self.EQUAL_FIELDS:
            for a, b in zip(mine, theirs, strict=False):
                if a is b:
                    continue
                if result & self.EQUAL_KEYS and a.key != b.key:
                    result &= ~self.EQUAL_KEYS
                if a.field is not b.field:
                    if result & self.EQUAL_NAMES and a.field._name != b.field._name:
                        result &= ~self.EQUAL_NAMES
                    if result & self.EQUAL_DOCS and a.field._doc != b.field._doc:
                        result &= ~self.EQUAL_DOCS
                    if result & self.EQUAL_UNITS and a.field._units != b.field._units:
                        result &= ~self.EQUAL_UNITS
                if not result:
                    break
        if result & self.EQUAL_ALIASES and not self._aliases.contains(other._aliases):
            result &= ~self.EQUAL_ALIASES
        return result

    def compare(self, other: Schema, flags: int = EQUAL_KEYS) -> int:
        """Return which ``flags`` hold of both schemas."""
        result = self.contains(other, flags)
        if len(self._layout.items) != len(other._layout.items):
            result &= ~self.EQUAL_FIELDS
        if len(self._aliases) != len(other._aliases):
            result &= ~self.EQUAL_ALIASES
        return result

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schema):
            return NotImplemented
        return bool(self.compare(other, self.EQUAL_KEYS))

    __hash__ = None  # type: ignore[assignment]

    # ---- The rest -------------------------------------------------------

    @staticmethod
    def readFits(filename: str, hdu: int = -(2**31)) -> Schema:
        """Read the schema of a binary table.

        Parameters
        ----------
        filename : `str`
            Name of the file.
        hdu : `int`, optional
            Number of the HDU (0 is the primary one); by default the first
            that has data.
        """
        from ._fits_catalog import read_schema

        return read_schema(filename, hdu)

    def __str__(self) -> str:
        lines = [f"    ({item.field}, {item.key}),\n" for item in self._layout.items]
        lines += [f"    '{alias}'->'{target}'\n" for alias, target in self._aliases.items()]
        return "Schema(\n" + "".join(lines) + ")\n"

    __repr__ = __str__

    def __reduce__(self) -> tuple[Any, ...]:
        return makeSchemaFromFields, ([_field_state(item.field) for item in self._layout.items],)


def _field_state(field: _FieldImpl) -> Mapping[str, Any]:
    return {
        "type": field._type,
        "name": field._name,
        "doc": field._doc,
        "units": field._units,
        "size": field._size if field._sized else None,
    }


def makeSchemaFromFields(fields: list[Any]) -> Schema:
    """Make a schema of fields, or of what `Schema` pickles them as."""
    schema = Schema()
    for field in fields:
        if isinstance(field, Mapping):
            state = dict(field)
            field = Field[state.pop("type")](**state, parse_strict="silent")
        schema.addField(field)
    return schema
