# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Configurations made from the settings of a stage.

Names, types, ranges, defaults and documentation are written once, in the
dataclass (see `lsst.meas.maskrcnn.images.settings`).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable
from typing import Any, NoReturn

from pydantic.fields import FieldInfo

import lsst.pex.config as pexConfig


def make_fields(source: Any, leave_out: tuple[str, ...] = (), unset: str = "") -> dict[str, pexConfig.Field]:
    """Make a field of a configuration, by name, for each setting of a dataclass but those that are left out.

    Settings that are dataclasses themselves become configurations of their own. With ``unset`` all fields are
    `None` by default, and this sentence of their documentation says what that means.
    """
    hints = typing.get_type_hints(source, include_extras=True)
    return {
        field.name: _make_field(field, hints[field.name], unset)
        for field in dataclasses.fields(source)
        if field.name not in leave_out
    }


def make_config(source: Any, name: str, leave_out: tuple[str, ...] = ()) -> Any:
    """Make a class of configurations with the fields of a dataclass, see `make_fields`.

    It has the methods ``values()``, which gives the fields by name, ``settings(**others)``,
    which makes the dataclass, ``set_from(settings)``, and a ``validate()`` that raises what the dataclass
    would: a ValueError for values that do not fit.
    """
    fields = make_fields(source, leave_out)

    def _values(self: Any) -> dict[str, Any]:
        """Return the settings by name."""
        return {key: plain_value(getattr(self, key)) for key in fields}

    def _settings(self: Any, **others: Any) -> Any:
        """Return the same as a dataclass, with the settings that were left out."""
        return source(**self.values(), **others)

    def _set_from(self: Any, given: Any) -> None:
        """Take all values of a dataclass."""
        for key in fields:
            value = getattr(given, key)
            if isinstance(getattr(self, key), pexConfig.Config):
                getattr(self, key).set_from(value)
            else:
                setattr(self, key, list(value) if isinstance(value, tuple) else value)

    def _validate(self: Any) -> None:
        """Check that the settings fit each other."""
        pexConfig.Config.validate(self)
        try:
            self.settings()
        except ValueError as error:
            refuse(self, error, fields)

    methods = {"values": _values, "settings": _settings, "set_from": _set_from, "validate": _validate}
    doc = f"Configuration of `~{source.__module__}.{source.__name__}`."
    members = {**fields, **methods, "__doc__": doc, "__module__": __name__}
    return types.new_class(name, (pexConfig.Config,), exec_body=lambda body: body.update(members))


def refuse(config: pexConfig.Config, error: ValueError, names: Iterable[str]) -> NoReturn:
    """Refuse the value of the field with which a message begins, or of the first one of some names."""
    fields = list(names)
    name = next((name for name in fields if str(error).startswith(name)), fields[0])
    raise pexConfig.FieldValidationError(type(config)._fields[name], config, str(error)) from error


def plain_value(value: Any) -> Any:
    """Value of a field as the dataclass takes it."""
    if isinstance(value, pexConfig.Config):
        return value.settings()  # type: ignore[attr-defined]
    if isinstance(value, pexConfig.dictField.Dict):
        return dict(value)
    return tuple(value) if isinstance(value, pexConfig.listField.List) else value


def _make_field(field: dataclasses.Field[Any], hint: Any, unset: str) -> pexConfig.Field:
    kind, *extras = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    info = next((extra for extra in extras if isinstance(extra, FieldInfo)), FieldInfo())
    if dataclasses.is_dataclass(kind):
        made = make_config(kind, f"{field.name.title().replace('_', '')}Config")
        return pexConfig.ConfigField(doc=info.description or made.__doc__, dtype=made)
    options = [option for option in typing.get_args(kind) if option is not types.NoneType]
    optional = types.NoneType in typing.get_args(kind)
    if optional:
        kind, options = options[0], list(typing.get_args(options[0]))
    default = None if unset else field.default
    common: dict[str, Any] = {
        "doc": f"{info.description or field.name} {unset}".strip(),
        "default": list(default) if isinstance(default, tuple) else default,
        "optional": optional or bool(unset),
    }
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        docs: Any = info.json_schema_extra or {}
        return pexConfig.ChoiceField(dtype=str, allowed={o: docs.get(o, o) for o in options}, **common)
    if origin is dict:
        return pexConfig.DictField(keytype=options[0], itemtype=options[1], **(common | {"default": {}}))
    if origin is tuple:
        return pexConfig.ListField(dtype=options[0], **common)
    limits: dict[str, Any] = {}
    for bound in info.metadata:
        for key, name in (("ge", "min"), ("gt", "min"), ("le", "max"), ("lt", "max")):
            if hasattr(bound, key):
                limits[name] = kind(getattr(bound, key))
                limits[f"inclusive{name.capitalize()}"] = key in ("ge", "le")
    return (pexConfig.RangeField if limits else pexConfig.Field)(dtype=kind, **common, **limits)
