# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Directives that write the reference: ``task``, ``columns`` and ``commands``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

from lsst.pex.config import Config, ConfigDictField, ConfigField, ConfigurableField, RegistryField


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Write a table."""
    yield from ("", ".. list-table::", "   :header-rows: 1", "   :class: reference", "")
    for row in (header, *rows):
        for number, cell in enumerate(row):
            yield f"   {'* -' if number == 0 else '  -'} {cell}"
    yield ""


def plain(text: Any) -> str:
    """Text in one line in which nothing is markup."""
    return re.sub(r"([\\*`|_])", r"\\\1", " ".join(str(text).split()))


def code(text: Any) -> str:
    """Text as code."""
    return f"``{text}``" if str(text) else ""


def short(value: Any) -> str:
    """A default."""
    text = " ".join(repr(value).split())
    return code(text if len(text) <= 40 else text[:37] + "...")


class Generated(Directive):
    """A directive whose lines are parsed as if they stood in the page."""

    required_arguments = 0
    optional_arguments = 1

    def lines(self) -> Iterator[str]:
        """Write the lines."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Parse the lines."""
        parent = nodes.section()
        parent.document = self.state.document
        self.state.nested_parse(
            StringList(list(self.lines()), source="reference"), self.content_offset, parent, match_titles=1
        )
        return parent.children


class Task(Generated):
    """Connections and configuration of a task, with those of its subtasks."""

    def lines(self) -> Iterator[str]:
        """Write the lines."""
        module, _, name = self.arguments[0].rpartition(".")
        task = getattr(importlib.import_module(module), name)
        config = task.ConfigClass()
        connections = config.connections.ConnectionsClass(config=config)
        yield from (f".. autoclass:: {self.arguments[0]}", "   :no-members:", "")
        yield f"Label ``{task._DefaultName}``; dimensions {', '.join(sorted(connections.dimensions))}."
        rows = []
        for kind in ("prerequisiteInputs", "inputs", "outputs"):
            for one in sorted(getattr(connections, kind)):
                connection = getattr(connections, one)
                rows.append((code(connection.name), kind.removesuffix("s"), connection.storageClass, plain(connection.doc)))
        yield from table(("dataset", "kind", "storage class", "contents"), rows)
        yield from table(("configuration", "default", "meaning"), self.fields(config, ""))

    def fields(self, config: Config, prefix: str) -> Iterator[tuple[str, str, str]]:
        """List the fields of this package's configurations."""
        for name, field in config._fields.items():
            value = getattr(config, name)
            if name in ("connections", "saveLogOutput", "saveMetadata"):
                continue
            if isinstance(field, ConfigField) and not prefix.count("."):
                yield from self.fields(value, f"{prefix}{name}.")
            elif isinstance(field, RegistryField):
                yield code(prefix + name), short(value.name), plain(field.doc)
            elif isinstance(field, ConfigurableField):
                yield code(prefix + name), short(value.target.__name__), plain(field.doc)
            elif isinstance(field, ConfigDictField | ConfigField):
                yield code(prefix + name), "", plain(field.doc)
            else:
                yield code(prefix + name), short(value), plain(field.doc)


class Columns(Generated):
    """Columns of the catalogue, or of the object table.

    With the argument ``objects`` those for people, with ``butler-objects`` the others.
    """

    def lines(self) -> Iterator[str]:
        """Write the lines."""
        yield from table(("column", "unit", "meaning"), self.objects() if self.arguments else self.catalogue())

    def catalogue(self) -> Iterator[tuple[str, str, str]]:
        """List the columns of the schema of the task."""
        from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendTask

        for item in MaskRcnnDeblendTask().outputSchema.schema:
            yield code(item.field.getName()), plain(item.field.getUnits()), plain(item.field.getDoc())

    def objects(self) -> Iterator[tuple[str, str, str]]:
        """List the columns of a table of one band."""
        import numpy as np

        from lsst.meas.maskrcnn import MultibandImage, find_sources, load_model
        from lsst.meas.maskrcnn.deblend.object_table import make_object_table

        y, x = np.mgrid[:64, :64]
        noise = np.random.default_rng(1).normal(size=(1, 64, 64))
        light = 500 * np.exp(-((y - 30) ** 2 + (x - 30) ** 2) / (2 * 1.7**2))
        psf = light[15:46, 15:46] / light.sum()
        image = MultibandImage(light + noise, bands="r", pixel_scale=0.168, psf=[psf])
        sources = find_sources(image, load_model())
        columns, short_names = make_object_table(sources), sources.to_table().colnames
        for name in columns.colnames:
            if (name in short_names) != (self.arguments[0] == "objects"):
                continue
            info = columns[name].info
            shown = re.sub(r"^r_", "<band>_", name)
            yield code(shown), plain(info.unit or ""), plain(info.description or "")


class Commands(Generated):
    """Subcommands and their options."""

    def lines(self) -> Iterator[str]:
        """Write the lines."""
        from lsst.meas.maskrcnn.cli.main import maskrcnn

        for name, command in sorted(maskrcnn.commands.items()):
            yield from self.command(f"maskrcnn {name}", command)
            for part, inner in getattr(command, "commands", {}).items():
                yield from self.command(f"maskrcnn {name} {part}", inner)

    def command(self, title: str, command: click.Command) -> Iterator[str]:
        """Write a section."""
        yield from ("", title, "-" * len(title), "")
        yield from (" ".join(part.split()) + "\n" for part in (command.help or "").split("\n\n"))
        rows = []
        for param in command.params:
            if isinstance(param, click.Option):
                shown = param.show_default
                default = shown if isinstance(shown, str) else param.default
                text = plain(default) if isinstance(default, str | int | float) and default is not False else ""
                rows.append((code(", ".join(param.opts)), text, plain(param.help or "")))
        if rows:
            yield from table(("option", "default", "meaning"), rows)


def setup(app: Any) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("task", Task)
    app.add_directive("columns", Columns)
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
