# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the commands have in common: errors, limits of options, changes to a configuration."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lsst.pipe.base.configOverrides import ConfigOverrides

_LOG = logging.getLogger(__name__)

Arguments = SimpleNamespace
"""Values of the options of a command, by name."""


class Command(click.Command):
    """A command whose options may have several values, as in ``--bands g r z``.

    Parameters
    ----------
    words : `~collections.abc.Sequence` [`str`]
        Options that words without one stand for, in order, where these options are not given.
    """

    def __init__(self, *arguments: Any, words: Sequence[str] = (), **options: Any) -> None:
        self._words = words
        super().__init__(*arguments, **options)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show what words without an option stand for."""
        return [*super().collect_usage_pieces(ctx), *(f"[{name.upper()}]" for name in self._words)]

    def make_parser(self, ctx: click.Context) -> Any:
        """Make a parser that splits options of several values, and finds options for words."""
        parser = super().make_parser(ctx)
        parse = parser.parse_args
        params = {param.name: param for param in self.get_params(ctx)}
        several = {opt for param in params.values() if isinstance(param, Several) for opt in param.opts}

        def parse_words(args: list[str]) -> tuple[dict[str, Any], list[str], list[click.Parameter]]:
            opts, words, order = parse(args=_split_values(args, several))
            for name in self._words:
                if words and name not in opts:
                    multiple = params[name].multiple
                    opts[name], words = (words, []) if multiple else (words[0], words[1:])
                    order.append(params[name])
            return opts, words, order

        parser.parse_args = parse_words  # type: ignore[method-assign]
        return parser


class Several(click.Option):
    """An option that may have several values."""

    def make_metavar(self, ctx: click.Context) -> str:
        """Show that there may be more."""
        return f"{super().make_metavar(ctx)} ..."


def _split_values(args: Sequence[str], several: set[str]) -> list[str]:
    """Repeat the name of an option before each of its values."""
    result: list[str] = []
    current = ""
    for word in args:
        name, equals, value = word.partition("=")
        if name in several:
            current = name
            result += [name, value] if equals else [name]
        elif current and (not word.startswith("-") or re.match(r"-\.?\d", word)):
            result += [word] if result[-1] == current else [current, word]
        else:
            current = ""
            result.append(word)
    return result


class CommandError(RuntimeError):
    """A command cannot do what it was asked to; the message says why."""


def command(
    *errors: type[Exception], advice: str = ""
) -> Callable[[Callable[[Arguments], object]], Callable[[Arguments], int]]:
    """Let a function do the work of a command and return its exit status.

    That is 1 after a `CommandError`, one of ``errors``, or an error of files or of
    a repository's database, which are printed in a line, and 130 after an
    interruption.
    """
    expected: tuple[type[Exception], ...] = (CommandError, OSError, *errors)

    def decorate(work: Callable[[Arguments], object]) -> Callable[[Arguments], int]:
        @functools.wraps(work)
        def run(arguments: Arguments) -> int:
            name = click.get_current_context().command_path
            # It says in a line of its own which repository cannot be opened, and then raises.
            logging.getLogger("lsst.daf.butler.direct_butler").setLevel(logging.CRITICAL)
            try:
                work(arguments)
            except KeyboardInterrupt:
                print(f"{name}: interrupted{advice}.", file=sys.stderr)
                return 130
            except Exception as error:
                problem = _describe(error, expected, advice)
                if problem is None:
                    raise
                _LOG.debug("Details:", exc_info=True)
                print(f"{name}: {problem}", file=sys.stderr)
                return 1
            return 0

        return run

    return decorate


def _describe(error: Exception, expected: tuple[type[Exception], ...], advice: str) -> str | None:
    """Say in a line what went wrong; `None` for what should not have."""
    if isinstance(error, expected):
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return " ".join(text.split())
    # sqlalchemy is not imported for commands that have no repository.
    if type(error).__module__.startswith("sqlalchemy") or type(error).__name__ == "MissingDatabaseTableError":
        return (
            f"the database of the repository: {first_line(error)}. Look whether its disk is full or "
            f"read-only{advice}."
        )
    return None


def check_limits(arguments: Arguments, **limits: tuple[float, float]) -> None:
    """Refuse numbers outside of limits, which are both allowed."""
    for name, (low, high) in limits.items():
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            limit = f"{low} or more" if math.isinf(high) else f"{low} to {high}"
            raise CommandError(f"--{name.replace('_', '-')} {value} is not possible; give {limit}.")


def check_bands(bands: Sequence[str]) -> None:
    """Refuse bands of which one is named twice."""
    if len(set(bands)) != len(bands):
        raise CommandError(f"--bands {' '.join(bands)} names a band twice.")


def split_shares(text: str) -> list[str] | None:
    """Read shares such as ``train=7,test=3``: each name so many times; `None` if they are not understood."""
    names: list[str] = []
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        if not name.isidentifier() or not share.isdecimal() or name in names:
            return None
        names += [name] * int(share)
    return names


def check_folder(path: Path) -> None:
    """Refuse to write a file where there is no folder, or one that cannot be written to."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise CommandError(f"There is no folder {folder} to write {path.name} to; make it first.")
    if not os.access(folder, os.W_OK):
        raise CommandError(f"The folder {folder} cannot be written to; choose another one for {path.name}.")


def check_unfinished(output: Path, checkpoint: Path) -> None:
    """Refuse to train a model that is there, unless a training of it was interrupted."""
    if output.exists() and not checkpoint.exists():
        raise CommandError(f"{output} is there already; choose another name, or remove it.")


@contextmanager
def keep_out_others(lock: Path, goal: str) -> Iterator[None]:
    """Refuse to train what another command trains."""
    # The help of a command is there before numpy is.
    from ..images.files import locked

    try:
        with locked(lock, wait=False):
            yield
    except BlockingIOError as error:
        raise CommandError(
            f"Another command is training {goal}; wait for it, or choose another name."
        ) from error


def first_line(error: BaseException) -> str:
    """Say in a line what an exception says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no more is known"
    # Others may say a key alone.
    plain = isinstance(error, OSError | ValueError | RuntimeError)
    return text if plain else f"{type(error).__name__}: {text}"


def add_overrides(overrides: ConfigOverrides, arguments: Arguments, example: str) -> None:
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


@contextmanager
def training_bar(first: bool = True) -> Iterator[Any]:
    """Give a function that shows how far a training is, in the first process."""
    from tqdm import tqdm

    with tqdm(desc="training", unit="step", disable=not first) as bar:

        def report(step: int, steps: int, row: Mapping[str, Any]) -> None:
            bar.total = steps
            bar.update(step - bar.n)
            if row["kind"] == "step":
                bar.set_postfix({"stage": row["stage"], "loss": f"{row['loss']:.3f}"})

        yield report
