# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Evaluations in a Butler repository, as the commands that show them need them."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError
from tqdm import tqdm

from lsst.daf.butler import Butler, DatasetRef, MissingCollectionError, MissingDatasetTypeError

from ..metrics.run_comparison import EvaluatedRun
from .command import CommandError, first_line

EVALUATION = "maskRcnnEvaluation"
"""First part of the names of the datasets of an evaluation (`str`)."""


@dataclass(frozen=True)
class StoredRun:
    """An evaluation in a repository, by the collection that was asked for and the reference of its metrics.

    ``evaluation`` is the first part of the names of its datasets.
    """

    butler: Butler
    collection: str
    ref: DatasetRef
    evaluation: str
    run: EvaluatedRun

    def get(self, part: str) -> Any:
        """Read another dataset of the evaluation by the last part of its name; `None` if there is none."""
        return _get(self.butler, f"{self.evaluation}_{part}", self.ref)


def open_butler(repo: str, writeable: bool = False) -> Butler:
    """Open a repository (path, URI or alias) to read from it, or to write to it."""
    # It warns of each kind of table that it could make as well, if pandas were there.
    logging.getLogger("lsst.daf.butler._storage_class").setLevel(logging.ERROR)
    try:
        return Butler.from_config(repo, writeable=writeable)
    except Exception as error:
        if writeable and type(error).__module__.startswith("sqlalchemy"):
            raise
        # What follows is about aliases.
        text = first_line(error).partition(" (given ")[0]
        if writeable or "readonly database" not in text:
            # Which exception tells of a repository that is not there depends on what is there instead.
            raise CommandError(f"{repo!r} is no Butler repository that can be opened: {text}") from error
    try:
        # A process was killed while it wrote; SQLite takes that back when it may write itself.
        Butler.from_config(repo, writeable=True)
        return Butler.from_config(repo)
    except Exception as error:
        raise CommandError(
            f"{repo!r} was left by a process that was killed while it wrote to the database. Somebody with "
            "write access must open it once before it can be read; see 'After a kill' in the documentation."
        ) from error


def find_run(
    butler: Butler, collection: str, *, skymap: str | None = None, evaluation: str = EVALUATION
) -> StoredRun:
    """Read the evaluation of this name in a collection, on a sky map if there are several."""
    name = f"{evaluation}_metrics"
    try:
        refs = butler.query_datasets(name, collections=collection, find_first=True, explain=False)
    except MissingCollectionError as error:
        raise CommandError(_no_collection(butler, collection)) from error
    except MissingDatasetTypeError as error:
        raise CommandError(
            f"The repository holds no evaluation (it knows no dataset {name}); run "
            f"pipelines/MaskRcnnEvaluate.yaml first{_other_names(butler, collection, evaluation)}."
        ) from error
    if not refs:
        raise CommandError(
            f"Collection {collection!r} holds no evaluation (no dataset {name}); run "
            "pipelines/MaskRcnnEvaluate.yaml with it as output, or name the output collection of such a run"
            f"{_other_names(butler, collection, evaluation)}."
        )
    by_skymap = {str(ref.dataId["skymap"]): ref for ref in refs}
    listed = ", ".join(map(repr, sorted(by_skymap)))
    if skymap is None:
        if len(by_skymap) > 1:
            raise CommandError(
                f"Collection {collection!r} holds evaluations on several sky maps ({listed}); name one "
                "with --skymap."
            )
        skymap = next(iter(by_skymap))
    if skymap not in by_skymap:
        raise CommandError(
            f"Collection {collection!r} holds no evaluation on the sky map {skymap!r}; there is one on "
            f"{listed}."
        )
    ref = by_skymap[skymap]
    metrics = _get(butler, name, ref)
    tables = {}
    for part in ("matches", "outcomes"):
        table = _get(butler, f"{evaluation}_{part}", ref)
        if table is None:
            raise CommandError(
                f"Run {ref.run!r} has {name} but no {evaluation}_{part}; it was not stored whole. Run the "
                "evaluation again."
            )
        tables[part] = _structured(table)
    if "flux_model" not in (tables["matches"].dtype.names or ()):
        raise CommandError(f"The evaluation in run {ref.run!r} is of an older version; run it again.")
    run = EvaluatedRun(collection, metrics, tables["matches"], tables["outcomes"])
    return StoredRun(butler, collection, ref, evaluation, run)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function for `compare_runs` that shows on a terminal how far a comparison is."""
    # disable=None: no bar where nobody watches.
    with tqdm(leave=False, disable=None, bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} {elapsed}") as bar:

        def show(step: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(step, refresh=False)
            bar.update(done - bar.n)

        yield show


def _other_names(butler: Butler, collection: str, evaluation: str) -> str:
    """Say which evaluations of other names a collection has."""
    found = []
    for dataset_type in butler.registry.queryDatasetTypes("*_metrics"):
        other = dataset_type.name.removesuffix("_metrics")
        if dataset_type.storageClass_name != "MaskRcnnMetrics" or other == evaluation:
            continue
        if "patch" in dataset_type.dimensions:
            continue  # a comparison of deblenders
        try:
            refs = butler.query_datasets(
                dataset_type, collections=collection, find_first=False, explain=False
            )
        except MissingCollectionError:
            return ""
        found += [other] if refs else []
    return f"; or give --evaluation {' or '.join(sorted(found))}" if found else ""


def _get(butler: Butler, name: str, ref: DatasetRef) -> Any:
    """Read what was stored beside some dataset."""
    try:
        found = butler.find_dataset(name, ref.dataId, collections=ref.run)
    except MissingDatasetTypeError:
        return None
    if found is None:
        return None
    try:
        return butler.get(found)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ValidationError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ValidationError):
            details = "; ".join(str(item["msg"]).removeprefix("Value error, ") for item in cause.errors()[:2])
            raise CommandError(f"{name} in {ref.run!r} cannot be read: {details}") from error
        raise CommandError(f"{name} in {ref.run!r} cannot be read: {first_line(error)}") from error


def _structured(table: Any) -> np.ndarray:
    """Columns of plain arrays; tables of astropy may be masked and hold text as objects."""
    columns = {}
    for name in table.colnames:
        column = table[name]
        values = np.asarray(
            column.filled(np.nan)
            if getattr(column, "mask", None) is not None and column.dtype.kind == "f"
            else column
        )
        columns[name] = values.astype(str) if values.dtype.kind in "OS" else values
    result = np.zeros(len(table), dtype=[(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        result[name] = values
    return result


def _no_collection(butler: Butler, collection: str) -> str:
    known: Sequence[str] = butler.collections.query("*")
    close = difflib.get_close_matches(collection, known, n=3, cutoff=0.5) or sorted(known)[:5]
    listed = ", ".join(map(repr, close))
    return f"There is no collection {collection!r} in the repository" + (
        f"; there are {listed}{' and others' if len(known) > len(close) else ''}."
        if known
        else ", nor any other."
    )
