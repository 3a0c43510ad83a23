# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Put a trained model into a Butler repository."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    DatasetTypeNotSupportedError,
    FileDataset,
    MissingCollectionError,
    MissingDatasetTypeError,
)

from ..network.model_file import ModelFileError, read_model
from .repo import SEED_CONFIG, check_collection, lock_repo, register_datasets, remove_broken_types

DATASET_TYPE = "maskRcnnModel"
"""Name of the dataset type of models (`str`)."""

STORAGE_CLASS = "MaskRcnnModel"
"""Name of their storage class (`str`)."""


class IngestModelError(RuntimeError):
    """A repository cannot take a model; the message says why."""


def ingest_model(
    butler: Butler,
    path: str | os.PathLike[str],
    collection: str = "models/maskRcnn",
    *,
    bands: Sequence[str] | None = None,
    dataset_type: str = DATASET_TYPE,
) -> DatasetRef:
    """Copy a model file into a RUN collection, which is made if it is not there, byte by byte.

    The file is read and its network built before the repository is touched. A second call with the same file
    changes nothing. Bands, if given, are those that the model must have, in this order. A training that
    starts from a model takes it from a dataset type of another name than that of its result.

    A ModelFileError is raised if the file is truncated, foreign, newer than this version or for other bands;
    an IngestModelError if the repository does not know models, or the collection has an impossible name,
    holds another model already or is no RUN.
    """
    path = Path(path)
    _check_input(path, bands, collection)
    with lock_repo(butler):
        return _ingest(butler, path, collection, dataset_type)


def _ingest(butler: Butler, path: Path, collection: str, dataset_type: str) -> DatasetRef:
    """Copy a file that was checked, unless it is there."""
    remove_broken_types(butler)
    model_type = _make_dataset_type(butler, dataset_type)
    new_type = not list(butler.registry.queryDatasetTypes(dataset_type))
    try:
        kind = butler.collections.get_info(collection).type
    except MissingCollectionError:
        kind = None
    if kind not in (None, CollectionType.RUN):
        raise IngestModelError(
            f"Collection {collection!r} is a {kind.name} collection; choose the name of a RUN or a new one."
        )
    if kind is not None:
        existing = _find_model(butler, dataset_type, collection)
        if existing is not None:
            if butler.getURI(existing).read() == path.read_bytes():
                return existing
            header = butler.get(existing.makeComponentRef("metadata"))
            raise IngestModelError(
                f"Collection {collection!r} already holds another model, {header.name!r}; choose another "
                "collection (a pipeline takes the first model in its input collections)."
            )
    ref = DatasetRef(model_type, DataCoordinate.make_empty(butler.dimensions), run=collection)
    try:
        register_datasets(butler, [model_type], collection)
        butler.ingest(FileDataset(path=str(path.absolute()), refs=[ref]), transfer="copy")
    except BaseException as error:
        # The file itself is rolled back by the datastore.
        if kind is None and collection in butler.collections.query("*"):
            butler.removeRuns([collection])
        if new_type:
            butler.registry.removeDatasetType(dataset_type)
        if isinstance(error, DatasetTypeNotSupportedError | KeyError):
            raise IngestModelError(_how_to_include("a formatter")) from error
        raise
    return ref


def _check_input(path: Path, bands: Sequence[str] | None, collection: str) -> None:
    """Read a model file and build its network; raise if it or the name of the collection cannot be used."""
    try:
        check_collection(collection)
    except ValueError as error:
        raise IngestModelError(str(error)) from error
    if path.is_dir():
        raise IngestModelError(f"{path} is a folder; give the model file itself (.safetensors).")
    model = read_model(path)
    if bands is not None and tuple(bands) != model.metadata.bands:
        raise ModelFileError(
            f"Model '{model.metadata.name}' was trained on bands {model.metadata.bands} in this order, given "
            f"were {tuple(bands)}. Give these bands, or a model that was trained on yours."
        )
    model.build()
    if path.suffix != ".safetensors":
        raise IngestModelError(
            f"{path.name} is a model file, but a repository tells files by their extension: rename it to "
            f"{path.with_suffix('.safetensors').name}."
        )


def _make_dataset_type(butler: Butler, name: str) -> DatasetType:
    """Dataset type of models, if the repository knows their storage class."""
    dataset_type = DatasetType(name, (), STORAGE_CLASS, universe=butler.dimensions)
    try:
        # Names are resolved when first used.
        _ = dataset_type.storageClass
    except KeyError as error:
        raise IngestModelError(_how_to_include("the storage class")) from error
    try:
        registered = butler.get_dataset_type(name)
    except MissingDatasetTypeError:
        return dataset_type
    if registered != dataset_type:
        raise IngestModelError(
            f"The repository defines {name!r} as {registered}, but models need {dataset_type}. It "
            "was made by other software; use another repository or remove that dataset type."
        )
    return registered


def _find_model(butler: Butler, name: str, collection: str) -> DatasetRef | None:
    try:
        return butler.find_dataset(name, collections=collection)
    except MissingDatasetTypeError:
        return None


def _how_to_include(what: str) -> str:
    return (
        f"The repository does not know {what} of {STORAGE_CLASS!r}. Add the line `includeConfigs: "
        f"[{SEED_CONFIG}]` to its butler.yaml, or create it with `butler create --seed-config {SEED_CONFIG}`."
    )
