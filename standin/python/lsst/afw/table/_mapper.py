# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mappings of the fields of one schema to those of another."""

from __future__ import annotations

from typing import Any

import lsst.pex.exceptions as pexExceptions

from ._fields import Field, _FieldImpl, _KeyImpl
from ._schema import Schema

__all__ = ["SchemaMapper"]


class SchemaMapper:
    """Says which output field takes the values of which input field.

    Parameters
    ----------
    input : `Schema` or `SchemaMapper`, optional
        Schema of the records to be read, or a mapper to copy.
    output : `Schema` or `bool`, optional
        A schema to start the output from; a bool is ``shareAliasMap``.
    shareAliasMap : `bool`, optional
        Let the output schema share the aliases of the input.
    """

    def __init__(
        self,
        input: Schema | SchemaMapper | None = None,
        output: Schema | bool | None = None,
        *,
        shareAliasMap: bool = False,
    ) -> None:
        if isinstance(input, SchemaMapper):
            self._input: Schema = Schema(input._input)
            self._output: Schema = Schema(input._output)
            self._map: dict[_KeyImpl, _KeyImpl] = dict(input._map)
            return
        if isinstance(output, bool):
            shareAliasMap, output = output, None
        self._input = Schema(input) if input is not None else Schema()
        self._output = Schema(output) if output is not None else Schema()
        self._map = {}
        if shareAliasMap:
            self._output.setAliasMap(self._input.getAliasMap())

    def getInputSchema(self) -> Schema:
        """Return a copy of the input schema."""
        return Schema(self._input)

    def getOutputSchema(self) -> Schema:
        """Return a copy of the output schema."""
        return Schema(self._output)

    def editOutputSchema(self) -> Schema:
        """Return the output schema itself, to add fields to."""
        return self._output

    def addMinimalSchema(self, minimal: Schema, doMap: bool = True) -> None:
        """Begin the output with all fields of ``minimal``.

        Parameters
        ----------
        minimal : `Schema`
            Fields to add.
        doMap : `bool`, optional
            Map those that the input has too.

        Raises
        ------
        lsst.pex.exceptions.LogicError
            Raised if the output has fields already.
        """
        if self._output.getFieldCount() > 0:
            raise pexExceptions.LogicError("Must add minimal schema to mapper before adding any other fields")
        for item in minimal:
            if doMap and item.key._identity() in self._input._layout.by_key:
                self._add_mapping(item.key, None, True)
            else:
                self._output._add_field(item.field)

    @staticmethod
    def removeMinimalSchema(input: Schema, minimal: Schema) -> SchemaMapper:
        """Return a mapper of the fields that ``minimal`` does not have."""
        mapper = SchemaMapper(input)
        for item in input:
            if item.key._identity() not in minimal._layout.by_key:
                mapper._add_mapping(item.key, None, True)
        return mapper

    @staticmethod
    def join(inputs: list[Schema], prefixes: list[str] | tuple[str, ...] = ()) -> list[SchemaMapper]:
        """Return mappers into one schema with the fields of all inputs.

        Parameters
        ----------
        inputs : `list` [`Schema`]
            The schemas.
        prefixes : `list` [`str`], optional
            What goes before the names of each input's fields.

        Raises
        ------
        lsst.pex.exceptions.LengthError
            Raised if there are prefixes, but not one per input.
        """
        if prefixes and len(prefixes) != len(inputs):
            raise pexExceptions.LengthError(
                f"prefix vector size ({len(prefixes)}) must be the same as input vector size ({len(inputs)})"
            )
        result = [SchemaMapper(schema) for schema in inputs]
        for i, schema in enumerate(inputs):
            prefix = prefixes[i] if prefixes else ""
            for item in schema:
                field = item.field.copyRenamed(prefix + item.field.getName())
                for j, mapper in enumerate(result):
                    if i == j:
                        mapper._add_mapping(item.key, field, True)
                    else:
                        mapper._output._add_field(field)
        return result

    def addOutputField(
        self,
        field: Any,
        type: Any = None,
        doc: str | None = None,
        units: str = "",
        size: int | None = None,
        doReplace: bool = False,
        parse_strict: str = "raise",
    ) -> Any:
        """Add a field that nothing is mapped to; see `Schema.addField`."""
        if isinstance(field, str):
            field = Field[type](field, doc=doc or "", units=units, size=size, parse_strict=parse_strict)
        return field._addTo(self._output, doReplace)

    def addMapping(self, input: Any, output: Any = None, doReplace: bool = True) -> Any:
        """Map an input field to a new output field and return its key.

        Parameters
        ----------
        input : `Key`
            Key in the input schema.
        output : `str` or `Field`, optional
            Name or field of the output; by default that of the input.
        doReplace : `bool`, optional
            Replace an output field of the same name.
        """
        if isinstance(output, bool):
            doReplace, output = output, None
        return input._addMappingTo(self, output, doReplace)

    def _add_mapping(self, key: _KeyImpl, output: Any, doReplace: bool) -> _KeyImpl:
        mapped = self._map.get(key)
        if isinstance(output, _FieldImpl):
            field = output
            if field._type != key._type:
                raise TypeError(f"Cannot map {key} to {field}: types differ.")
        elif output is None:
            field = self._input._find_key(key).field
        elif isinstance(output, str):
            source = self._output if mapped is not None else self._input
            field = source._find_key(mapped if mapped is not None else key).field.copyRenamed(output)
        else:
            raise TypeError(f"output must be a name, a Field or None, got {type(output).__name__}.")
        if mapped is not None:
            self._output._replace_field(mapped, field)
            return mapped
        result = self._output._add_field(field, doReplace)
        self._map[key] = result
        return result

    def isMapped(self, key: Any) -> bool:
        """Return whether an input key is mapped."""
        return key in self._map

    def getMapping(self, key: Any) -> Any:
        """Return the output key of an input key.

        Raises
        ------
        lsst.pex.exceptions.NotFoundError
            Raised if the key is not mapped.
        """
        try:
            return self._map[key]
        except KeyError:
            raise pexExceptions.NotFoundError("Input Key is not mapped.") from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SchemaMapper):
            return NotImplemented
        identical = Schema.IDENTICAL
        return (
            self._input.compare(other._input, identical) == identical
            and self._output.compare(other._output, identical) == identical
            and self._map == other._map
        )

    __hash__ = None  # type: ignore[assignment]
