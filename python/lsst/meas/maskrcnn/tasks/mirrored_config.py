# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fields of a configuration made from those of a dataclass.

The engines take frozen dataclasses, so that they need no LSST package; the
tasks take `lsst.pex.config`. Names, types, defaults and documentation are
written once, in the dataclass.
"""

from __future__ import annotations

__all__ = ["config_class", "field_docs", "mirrored_fields", "settings_config"]

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import lsst.pex.config as pexConfig


def field_docs(source: type) -> dict[str, str]:
    """Read what a dataclass says of its fields.

    Parameters
    ----------
    source : `type`
        A dataclass that describes its fields in the section Parameters of
        its docstring, or by a docstring under each.

    Returns
    -------
    docs : `dict` [`str`, `str`]
        Descriptions by name, each in one line. Empty where Python was told
        to drop docstrings and the source is not there.
    """
    docs: dict[str, str] = {}
    for name, text in itertools.chain(_from_parameters(source), _from_source(source)):
        docs[name] = f"{docs.get(name, '')} {text}".strip()
    return docs


def _from_parameters(source: type) -> Iterator[tuple[str, str]]:
    """Give the lines of the section Parameters of a class's numpydoc."""
    section = (inspect.getdoc(source) or "").partition("Parameters\n----------\n")[2]
    names: list[str] = []
    for line in section.splitlines():
        heading = re.match(r"(\w+(?:, \w+)*) : ", line)
        if heading:
            names = heading[1].split(", ")
        elif line and not line.startswith(" "):
            # The next section.
            return
        elif line:
            yield from ((name, line.strip()) for name in names)


def _from_source(source: type) -> Iterator[tuple[str, str]]:
    """Give the docstrings that stand under the fields of a class."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(source))).body
    except OSError:
        # Installed without its source.
        return
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            yield ast.unparse(field.target), " ".join(str(ast.literal_eval(text.value)).split())


def mirrored_fields(
    source: Any, leave_out: tuple[str, ...] = (), unset: str | None = None
) -> dict[str, pexConfig.Field]:
    """Make a field of a configuration for each of a dataclass.

    Parameters
    ----------
    source : `type`
        The dataclass; its fields are plain values or tuples of one type.
    leave_out : `tuple` [`str`, ...]
        Fields to leave out.
    unset : `str`, optional
        With it, all fields are `None` by default, and this sentence of their
        documentation says what that means; else they have the dataclass's
        defaults.

    Returns
    -------
    fields : `dict` [`str`, `lsst.pex.config.Field`]
        By name.
    """
    docs = field_docs(source)
    kinds = typing.get_type_hints(source)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(source):
        if field.name in leave_out:
            continue
        # A line of configuration shows `None` as None.
        doc = docs.get(field.name, f"Setting {field.name} of {source.__name__}.").replace("`", "")
        if unset is not None:
            doc = f"{doc} {unset}"
        kind = kinds[field.name]
        items = typing.get_args(kind)
        if typing.get_origin(kind) is tuple:
            fields[field.name] = pexConfig.ListField(
                doc=doc,
                dtype=items[0],
                default=None if unset is not None else list(typing.cast(tuple[Any, ...], field.default)),
                optional=unset is not None,
                length=None if items[-1] is Ellipsis else len(items),
            )
            continue
        plain = [item for item in items or (kind,) if item is not types.NoneType]
        fields[field.name] = pexConfig.Field(
            doc=doc,
            dtype=plain[0],
            default=None if unset is not None else field.default,
            optional=unset is not None or len(plain) < len(items),
        )
    return fields


def config_class(name: str, doc: str, module: str, members: Mapping[str, Any]) -> Any:
    """Make a class of configurations, as a class statement does.

    Parameters
    ----------
    name, doc, module : `str`
        Its name, docstring and module.
    members : `~collections.abc.Mapping` [`str`, `object`]
        Fields and methods.

    Returns
    -------
    config : `type`
        Subclass of `lsst.pex.config.Config`.
    """
    return types.new_class(
        name,
        (pexConfig.Config,),
        exec_body=lambda body: body.update({"__doc__": doc, "__module__": module, **members}),
    )


def settings_config(source: Any, name: str, doc: str, module: str, leave_out: tuple[str, ...] = ()) -> Any:
    """Make a class of configurations with the fields and defaults of a dataclass.

    Parameters
    ----------
    source : `type`
        The dataclass; it raises `ValueError` for values that do not fit.
    name, doc, module : `str`
        Name, docstring and module of the class.
    leave_out : `tuple` [`str`, ...]
        Fields to leave out.

    Returns
    -------
    config : `type`
        Subclass of `lsst.pex.config.Config` with the methods ``values()``,
        ``settings()``, which makes the dataclass, ``set_from(settings)`` and
        a ``validate()`` that raises what the dataclass would.
    """
    fields = mirrored_fields(source, leave_out)

    def values(self: Any) -> dict[str, Any]:
        lists = {key for key, field in fields.items() if isinstance(field, pexConfig.ListField)}
        return {key: tuple(getattr(self, key)) if key in lists else getattr(self, key) for key in fields}

    def settings(self: Any) -> Any:
        return source(**self.values())

    def set_from(self: Any, given: Any) -> None:
        for key in fields:
            value = getattr(given, key)
            setattr(self, key, list(value) if isinstance(value, tuple) else value)

    def validate(self: Any) -> None:
        pexConfig.Config.validate(self)
        try:
            self.settings()
        except ValueError as error:
            # The message starts with the name of the setting, if it is about one.
            named = [key for key in fields if str(error).startswith(key)]
            field = type(self)._fields[[*named, *fields][0]]
            raise pexConfig.FieldValidationError(field, self, str(error)) from error

    values.__doc__ = f"Return the fields of `{source.__name__}`, by name."
    settings.__doc__ = f"Return the same as a `{source.__name__}`."
    set_from.__doc__ = f"Take all values of a `{source.__name__}`."
    validate.__doc__ = "Check that the settings fit each other."
    methods = {"values": values, "settings": settings, "set_from": set_from, "validate": validate}
    return config_class(name, doc, module, {**fields, **methods})
