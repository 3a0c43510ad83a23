# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn evaluate-report``: a page on an evaluation, one file that needs no network."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from lsst.daf.butler import Butler, DatasetRef, MissingCollectionError, MissingDatasetTypeError

from ..images.files import write_atomically
from ..metrics.run_comparison import RunComparisonError, compare_runs
from ..report.deblender_report import deblender_parts
from ..report.evaluation_report import ReportContext, evaluation_page
from ..report.report_page import Part, Section, render_page
from .command import Arguments, CommandError, check_folder, check_limits, command, first_line
from .evaluation_runs import StoredRun, find_run, open_butler, progress_bar

if TYPE_CHECKING:
    # It brings torch, which takes seconds and is not needed here.
    from ..network.model_file import ModelMetadata

_MODEL = "maskRcnnModel"


@command(RunComparisonError)
def run(arguments: Arguments) -> None:
    """Write a page on an evaluation."""
    out = arguments.out if arguments.out is not None else Path(_file_name(arguments.collection))
    check_limits(arguments, samples=(2, math.inf), gallery=(0, math.inf))
    check_folder(out)
    if out.is_dir():
        raise CommandError(f"{out} is a folder; name a file with --out.")
    data = _report(arguments).encode("utf-8")
    write_atomically(out, data)
    print(f"{out} ({len(data) / 1e6:.1f} MB)")


def _report(arguments: Arguments) -> str:
    butler = open_butler(arguments.repo)
    stored, *others = (
        find_run(butler, collection, skymap=arguments.skymap, evaluation=arguments.evaluation)
        for collection in (arguments.collection, *arguments.compare)
    )
    runs = [stored.run, *(other.run for other in others)]
    comparison = None
    if others:
        with progress_bar() as progress:
            comparison = compare_runs(runs, n_samples=arguments.samples, progress=progress)
    curves = stored.get("precisionRecall")
    page = evaluation_page(
        stored.run,
        None if curves is None else np.asarray(curves.as_array()),
        stored.get("gallery"),
        others=runs[1:],
        comparison=comparison,
        context=_context(stored, arguments),
        n_gallery=arguments.gallery,
    )
    beside = _deblenders(stored, arguments)
    if beside:
        sections = list(page.sections)
        place = [section.name for section in sections].index("patches")
        sections.insert(place, Section("deblenders", "Beside another deblender", beside))
        page = dataclasses.replace(page, sections=sections)
    return render_page(page)


def _deblenders(stored: StoredRun, arguments: Arguments) -> list[Part]:
    """Lay out what CompareDeblendersTask left in the same collection, if anything."""
    name = f"{arguments.deblenders}_metrics"
    skymap = stored.run.metrics.skymap
    try:
        refs = stored.butler.query_datasets(
            name,
            collections=stored.collection,
            find_first=True,
            data_id={"skymap": skymap} if skymap else None,
            explain=False,
            limit=None,
        )
    except (MissingDatasetTypeError, MissingCollectionError):
        return []
    comparisons = [stored.butler.get(ref) for ref in sorted(refs, key=_place)]
    try:
        return deblender_parts(comparisons, arguments.samples)
    except ValueError as error:
        raise RunComparisonError(str(error)) from error


def _place(ref: DatasetRef) -> tuple[int, int]:
    return int(ref.dataId["tract"]), int(ref.dataId["patch"])


def _context(stored: StoredRun, arguments: Arguments) -> ReportContext:
    butler, metrics = stored.butler, stored.run.metrics
    # First where the catalogues were made, which may be another run than that of the evaluation.
    places = list(dict.fromkeys([stored.ref.run, *metrics.runs, stored.collection]))
    known = set(butler.collections.query("*"))
    places = [place for place in places if place in known]
    collections = list(butler.collections.query(stored.collection, flatten_chains=True))
    notes: list[str] = []
    card, details = _model(butler, places, metrics.models)
    if not metrics.models:
        notes.append("The catalogue names no network that made it; no model is described.")
    elif not card:
        notes.append(
            f"The network that made the catalogue ({', '.join(metrics.models)}) is not in these collections "
            f"(dataset {_MODEL}); it is not described."
        )
    configurations = _configurations(butler, places, notes)
    versions = _packages(butler, places, notes)
    footer = (
        f"Made by maskrcnn evaluate-report from {metrics.name}_metrics of the run {stored.ref.run}. Errors "
        "are standard errors from resampling the patches."
    )
    return ReportContext(
        f"Evaluation of {stored.collection}",
        str(arguments.repo),
        stored.collection,
        card,
        details,
        configurations,
        collections,
        versions,
        notes,
        footer,
    )


def _model(
    butler: Butler, places: Sequence[str], names: Sequence[str]
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Say what stands in the header of the model file of the network that made the catalogue."""
    for place in places:
        try:
            refs = butler.query_datasets(_MODEL, collections=place, find_first=False, explain=False)
        except MissingDatasetTypeError:
            return [], {}
        for ref in refs:
            header = butler.get(ref.makeComponentRef("metadata"))
            if header.name in names:
                return _model_card(header, ref.run)
    return [], {}


def _model_card(header: ModelMetadata, run: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
    normalization = dataclasses.asdict(header.normalization)
    kind = normalization.pop("kind")
    settings = ", ".join(f"{name} {value}" for name, value in normalization.items())
    card = [
        ("Name", header.name),
        ("Description", header.description),
        ("Collection", run),
        ("Bands, in order", ", ".join(header.bands)),
        ("Classes", ", ".join(header.class_names)),
        ("Pixel scale", f"{header.pixel_scale:g} arcsec"),
        ("Normalisation", f"{kind} ({settings})" if settings else kind),
        ("Format version", str(header.format_version)),
    ]
    details = {"Architecture": _readable(header.architecture)}
    if header.training:
        details["Training"] = _readable(header.training)
    return [(name, text) for name, text in card if text], details


def _configurations(butler: Butler, places: Sequence[str], notes: list[str]) -> dict[str, str]:
    """Give what the configurations set, as text: to execute them would need the code of every task."""
    found: dict[str, str] = {}
    for dataset_type in sorted(butler.registry.queryDatasetTypes("*_config")):
        ref = _find(butler, dataset_type.name, places)
        if ref is None:
            continue
        try:
            lines = butler.getURI(ref).read().decode("utf-8").splitlines()
        except Exception as error:
            notes.append(f"{dataset_type.name} cannot be read: {first_line(error)}")
            continue
        # Comments and imports are left out.
        label = dataset_type.name.removesuffix("_config")
        found[f"Configuration of {label}"] = "\n".join(
            line for line in lines if re.match(r"\s*config\.", line)
        )
    return found


def _packages(butler: Butler, places: Sequence[str], notes: list[str]) -> dict[str, str]:
    ref = _find(butler, "packages", places)
    if ref is None:
        return {}
    try:
        return {str(name): str(version) for name, version in butler.get(ref).items()}
    except Exception as error:
        notes.append(f"The dataset packages cannot be read: {first_line(error)}")
        return {}


def _find(butler: Butler, name: str, places: Sequence[str]) -> DatasetRef | None:
    """Find a dataset without dimensions in the first collection that has it."""
    for place in places:
        try:
            ref = butler.find_dataset(name, collections=place)
        except (MissingDatasetTypeError, MissingCollectionError):
            continue
        if ref is not None:
            return ref
    return None


def _readable(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)


def _file_name(collection: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", collection).strip("._") + ".html"
