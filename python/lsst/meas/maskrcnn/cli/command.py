# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the commands have in common: errors, limits of options, changes to a configuration."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lsst.pipe.base.configOverrides import ConfigOverrides

_LOG = logging.getLogger(__name__)


class CommandError(RuntimeError):
    """A command cannot do what it was asked to; the message says why."""


def run_command(
    name: str, work: Callable[[], None], errors: tuple[type[Exception], ...] = (), advice: str = ""
) -> int:
    """Run a command and return its exit status.

    That is 1 after a `CommandError`, one of ``errors``, or an error of files or of
    a repository's database, which are printed in a line, and 130 after an
    interruption.
    """
    expected: tuple[type[BaseException], ...] = (CommandError, OSError, *errors)
    try:
        work()
    except expected as error:
        _LOG.debug("Details:", exc_info=True)
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except Exception as error:
        # sqlalchemy is not imported for commands that have no repository.
        kind = type(error)
        if not kind.__module__.startswith("sqlalchemy") and kind.__name__ != "MissingDatabaseTableError":
            raise
        _LOG.debug("Details:", exc_info=True)
        print(
            f"{name}: the database of the repository: {first_line(error)}. Look whether its disk is full or "
            f"read-only{advice}.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted{advice}.", file=sys.stderr)
        return 130
    return 0


def check_limits(arguments: argparse.Namespace, **limits: tuple[float, float]) -> None:
    """Refuse numbers outside of limits, which are both allowed."""
    for name, (low, high) in limits.items():
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            limit = f"{low} or more" if math.isinf(high) else f"{low} to {high}"
            raise CommandError(f"--{name.replace('_', '-')} {value} is not possible; give {limit}.")


def check_folder(path: Path) -> None:
    """Refuse to write a file where there is no folder."""
    if not path.absolute().parent.is_dir():
        raise CommandError(
            f"There is no folder {path.absolute().parent} to write {path.name} to; make it first."
        )


def first_line(error: BaseException) -> str:
    """Say in a line what an exception says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no more is known"
    # Others may say a key alone.
    plain = isinstance(error, OSError | ValueError | RuntimeError)
    return text if plain else f"{type(error).__name__}: {text}"


def add_config_options(parser: argparse._ActionsContainer, help: str) -> None:
    """Add the options that change a configuration."""
    parser.add_argument("-c", "--config", action="append", default=[], metavar="FIELD=VALUE", help=help)
    parser.add_argument(
        "-C", "--config-file", action="append", default=[], metavar="FILE", help="file of changes in Python"
    )


def add_overrides(overrides: ConfigOverrides, arguments: argparse.Namespace, example: str) -> None:
    """Read the options that change a configuration, of which the label of the task may precede a field."""
    for name in arguments.config_file:
        if not Path(name).is_file():
            raise CommandError(f"There is no file {name} (--config-file).")
        overrides.addFileOverride(name)
    for text in arguments.config:
        name, equals, value = text.partition("=")
        if not equals:
            raise CommandError(f"--config {text} is not understood; write it like {example}.")
        overrides.addValueOverride(name.rpartition(":")[2], value)
