# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the commands that import images have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lsst.daf.butler import DataCoordinate
from lsst.daf.butler.registry import ConflictingDefinitionError

from ..ingest.import_repo import FieldStore, ImportConflictError
from ..ingest.repo import PatchGeometry, check_collection, lock_repo, open_repo
from .command import Arguments, CommandError, command, split_shares

SPLITS = ("train", "validation", "test")
"""Names of the splits (`tuple` [`str`])."""

_SHOWN_NOTES = 20


@dataclass(frozen=True)
class FieldJob:
    """One field to import."""

    label: str
    """What to call it."""

    tract: int
    patch: int
    split: str
    """Its split, or empty."""

    bands: tuple[str, ...]
    has_truth: bool
    """Whether a truth belongs to it."""

    paths: Sequence[Path]
    digest: Callable[[], str]
    """Makes the digest of what it is made from."""

    read: Callable[[], Field]


@dataclass
class Field:
    """A field that was read."""

    geometry: PatchGeometry
    products: Callable[[DataCoordinate], Mapping[str, Any]]
    """Makes what is stored of it, for its data id."""

    notes: list[str]
    """Sentences for the user."""

    sources: np.ndarray | None = None
    """Those in it, if they are known, with ``is_star``."""


@dataclass
class _Tally:
    imported: int = 0
    present: int = 0
    stars: int = 0
    galaxies: int = 0
    notes: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def note(self, label: str, notes: Iterable[str]) -> None:
        for text in notes:
            # Notes that differ in numbers only are one note.
            self.notes.setdefault(re.sub(r"\d[\d.e+-]*", "#", text), []).append((label, text))


def by_band(words: Sequence[str] | None, bands: Sequence[str], option: str) -> dict[str, float] | None:
    """Read numbers that an option has for all bands (one, or one each) or for some (``BAND=NUMBER``)."""
    if not words:
        return None
    result: dict[str, float] = {}
    try:
        if any("=" in word for word in words):
            for word in words:
                band, _, number = word.partition("=")
                if band not in bands or band in result:
                    raise ValueError(f"{word} names no band of {', '.join(bands)}, or one twice")
                result[band] = float(number)
        elif len(words) == 1:
            result = dict.fromkeys(bands, float(words[0]))
        elif len(words) == len(bands):
            result = {band: float(word) for band, word in zip(bands, words)}
        else:
            raise ValueError(f"{len(words)} numbers for the {len(bands)} bands {', '.join(bands)}")
    except ValueError as error:
        raise CommandError(
            f"{option} {' '.join(words)} is not understood ({error}); give one number, or BAND=NUMBER."
        ) from error
    return result


def made_up_center(tract: int) -> tuple[float, float]:
    """Choose where on the sky to put a field without world coordinates (RA, Dec, deg).

    That is half a degree from the fields of other tracts, up to 40,000.
    """
    row, column = divmod(tract % 40_000, 400)
    return (150.0 + 0.5 * column) % 360.0, 0.5 * row


def parse_split(text: str) -> str | tuple[str, ...]:
    """Read the option ``--split``: auto, none, one of `SPLITS`, or ``train=7,validation=1,test=2``.

    Returns the word, or a split for each last digit of a number.
    """
    if text in ("auto", "none", *SPLITS):
        return text
    names = split_shares(text) or []
    if len(names) != 10 or not set(names) <= set(SPLITS):
        raise CommandError(
            f"--split {text} is not understood; use auto, none, {', '.join(SPLITS)}, or shares that make 10, "
            "such as train=7,validation=1,test=2."
        )
    return tuple(names)


def split_of(choice: str | tuple[str, ...], number: int, named: str) -> str:
    """Choose the split of a field by `parse_split`, its number, and what its folders say; empty for none."""
    if isinstance(choice, tuple):
        return choice[number % 10]
    return {"auto": named, "none": ""}.get(choice, choice)


def import_command(make_jobs: Callable[[Arguments], list[FieldJob]]) -> Callable[[Arguments], int]:
    """Make a command that imports the fields which a function finds by the options."""
    as_command = command(ValueError, ImportConflictError, advice="; run it again to go on")
    return as_command(lambda arguments: _import(arguments, make_jobs(arguments)))


def _import(arguments: Arguments, jobs: Sequence[FieldJob]) -> None:
    if not jobs:
        raise CommandError("There is nothing to import.")
    check_collection(arguments.collection)
    places: dict[tuple[int, int], str] = {}
    for job in jobs:
        other = places.setdefault((job.tract, job.patch), job.label)
        for path in job.paths:
            if not path.is_file():
                raise CommandError(f"{job.label}: There is no file {path}; check the name.")
        if other is not job.label:
            raise CommandError(
                f"{job.label} and {other} would both be tract {job.tract}, patch {job.patch}; "
                "give them different numbers."
            )
    try:
        butler = open_repo(arguments.repo)
    except (OSError, ValueError, RuntimeError) as error:
        raise CommandError(f"The repository {arguments.repo} cannot be used: {error}") from error
    store = FieldStore(butler, arguments.skymap, arguments.collection)
    store.check_names()
    tally = _Tally()
    for job in tqdm(jobs, desc="fields", unit="field"):
        try:
            with lock_repo(butler):
                _import_field(store, job, tally)
        except (ImportConflictError, ConflictingDefinitionError, ValueError, OSError) as error:
            text = str(error)
            raise CommandError(text if job.label in text else f"{job.label}: {text}") from error
        finally:
            # Also after an error: what is in is to be found.
            if tally.imported:
                store.chain()
    store.chain()
    _report(arguments, jobs, tally)


def _import_field(store: FieldStore, job: FieldJob, tally: _Tally) -> None:
    digest = job.digest()
    if store.present(job.tract, job.patch, job.split, digest, job.bands, job.has_truth):
        tally.present += 1
        return
    loaded = job.read()
    data_id = store.register(loaded.geometry, job.bands)
    store.put(job.tract, job.patch, job.split, digest, loaded.products(data_id))
    tally.imported += 1
    if loaded.sources is not None:
        stars = int(loaded.sources["is_star"].sum())
        tally.stars += stars
        tally.galaxies += len(loaded.sources) - stars
    tally.note(job.label, loaded.notes)


def _report(arguments: Arguments, jobs: Sequence[FieldJob], tally: _Tally) -> None:
    """Print notes and a summary."""
    for entries in list(tally.notes.values())[:_SHOWN_NOTES]:
        label, text = entries[0]
        more = f" (and {len(entries) - 1} more like this)" if len(entries) > 1 else ""
        print(f"{label}: {text}{more}" if len(jobs) > 1 else text)
    if len(tally.notes) > _SHOWN_NOTES:
        print(f"... and {len(tally.notes) - _SHOWN_NOTES} other notes.")
    tracts = sorted({job.tract for job in jobs})
    where = f"tract {tracts[0]}" if len(tracts) == 1 else f"tracts {tracts[0]} to {tracts[-1]}"
    sources = f" ({tally.stars} stars, {tally.galaxies} galaxies)" if tally.stars + tally.galaxies else ""
    print(
        f"Fields imported: {tally.imported}{sources}; there already: {tally.present}. Collection "
        f"{arguments.collection!r}, sky map {arguments.skymap!r}, {where}, in {arguments.repo}."
    )
