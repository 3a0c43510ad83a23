# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Imported fields in a Butler repository: one tract with one patch each.

Fields of different origin have different projections and may lie on one
another, so that they cannot be patches of one tract.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lsst.daf.butler import Butler, CollectionType, DataCoordinate, DatasetRef, MissingCollectionError
from lsst.daf.butler.registry import ConflictingDefinitionError

from .repo import PatchGeometry, lock_repo, patch_data_id, register_datasets, register_records, store_sky_map
from .scenes import scene_dataset_types

if TYPE_CHECKING:
    from pathlib import Path

_INSTRUMENT = "MaskRcnnImport"
# One more than the largest number of a tract, here.
_TRACT_MAX = 1_000_000
# The last is for fields of no split.
_SPLITS = ("train", "validation", "test", "")


class ImportConflictError(RuntimeError):
    """The repository holds something else under the name of a field."""


def digest_files(paths: Iterable[Path], options: object) -> str:
    """Return a hexadecimal digest of what a field is made from.

    The contents of the files count and not their names, and the ``repr`` of how they are read.
    """
    digest = hashlib.sha256(repr(options).encode())
    for path in paths:
        digest.update(b"\0")
        with open(path, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


class FieldStore:
    """Puts fields into a repository, each at once or not at all.

    The ids of datasets follow from what they are made of, so that a field that comes again is known, and
    another one in its place is refused. The sky map is made unless it is there. All fields are in the CHAINED
    ``collection``, those of a split in ``<collection>/<split>``.
    """

    def __init__(self, butler: Butler, skymap: str, collection: str) -> None:
        self._butler = butler
        self._skymap = skymap
        self._collection = collection
        self._types = scene_dataset_types(butler.dimensions)
        self._registered: set[str] = set()

    def run_of(self, split: str) -> str:
        """Return the RUN collection of a split (``"train"`` and so on), or of fields of no split (empty)."""
        return f"{self._collection}/{split or 'all'}"

    def present(
        self, tract: int, patch: int, split: str, digest: str, bands: Sequence[str], has_truth: bool
    ) -> bool:
        """Say whether a field, with its truth if it has any, is in the repository as a whole.

        The digest is that of `digest_files`. An ImportConflictError is raised if the place holds something
        else.
        """
        keys = [("exposures", band) for band in bands] + ([("truth", None)] if has_truth else [])
        run = self.run_of(split)
        known = self._runs()
        complete = True
        for key, band in keys:
            found = self._find(key, self._data_id(tract, patch, band), known)
            if found is None:
                complete = False
                continue
            where = f"tract {tract}, patch {patch} of sky map {self._skymap!r}"
            if found.run != run:
                raise ImportConflictError(
                    f"There is an image at {where} already, in {found.run!r} and not in {run!r}; "
                    "give the split as before, or another --tract or --collection."
                )
            if found.id != self._id(key, run, tract, patch, band, digest):
                raise ImportConflictError(
                    f"There is another image at {where} in {run!r}, or it was read with other options; "
                    "give another --tract, --skymap or --collection."
                )
        return complete

    def register(self, geometry: PatchGeometry, bands: Sequence[str]) -> DataCoordinate:
        """Write the dimension records of a field; returns the data id of its patch with them.

        An ImportConflictError is raised if the sky map has another place of these numbers, or it is a
        survey's own and has no such place.
        """
        registry = self._butler.registry
        skymap_hash = hashlib.sha1(f"imported {self._skymap}".encode(), usedforsecurity=False).digest()
        data_id = patch_data_id(self._skymap, geometry.tract, geometry.patch)
        known = list(registry.queryDimensionRecords("skymap", skymap=self._skymap))
        if known and known[0].hash != skymap_hash:
            # A survey's own sky map: its patches are what they are.
            if not list(registry.queryDimensionRecords("patch", dataId=data_id)):
                raise ImportConflictError(
                    f"Sky map {self._skymap!r} of this repository has no tract {geometry.tract}, patch "
                    f"{geometry.patch}; give numbers that it has, or another --skymap."
                )
            return registry.expandDataId(data_id)
        if not 0 <= geometry.tract < _TRACT_MAX or geometry.patch != 0:
            raise ImportConflictError(
                f"Tract {geometry.tract}, patch {geometry.patch} is not possible in a sky map of imported "
                f"fields; tracts go from 0 to {_TRACT_MAX - 1}, and each has the patch 0."
            )
        record = {
            "name": self._skymap,
            "hash": skymap_hash,
            "tract_max": _TRACT_MAX,
            "patch_nx_max": 1,
            "patch_ny_max": 1,
        }
        tracts = {geometry.tract: geometry.region()}
        try:
            register_records(self._butler, record, tracts, [geometry], bands, _INSTRUMENT)
        except ConflictingDefinitionError as error:
            raise ImportConflictError(
                f"Tract {geometry.tract} of sky map {self._skymap!r} is another place on the sky; "
                "give another --tract or --skymap."
            ) from error
        box = geometry.bbox
        if box.getMinX() >= 0 and box.getMinY() >= 0:
            size = box.getEndX(), box.getEndY()
            store_sky_map(self._butler, self._skymap, geometry.tract, geometry.wcs, size, (1, 1))
        return registry.expandDataId(data_id)

    def put(self, tract: int, patch: int, split: str, digest: str, products: Mapping[str, Any]) -> None:
        """Store a field, of which `register` wrote the records and `digest_files` made the digest.

        Products are the exposures by band under ``exposures``; if there is a truth, the catalogue under
        ``truth`` and by band ``truthFlux`` and ``truthImages``.
        """
        run = self.run_of(split)
        if run not in self._registered:
            register_datasets(self._butler, self._types.values(), run)
            self._registered.add(run)
        with self._butler.transaction():
            for key, product in products.items():
                entries = [(None, product)] if key == "truth" else list(product.items())
                for band, entry in entries:
                    data_id = self._data_id(tract, patch, band)
                    identity = self._id(key, run, tract, patch, band, digest)
                    found = self._find(key, data_id, [run])
                    if found is not None and found.id == identity:
                        continue
                    ref = DatasetRef(
                        self._types[key], self._butler.registry.expandDataId(data_id), run=run, id=identity
                    )
                    self._butler.put(entry, ref)

    def chain(self) -> list[str]:
        """Make the CHAINED collections of what is there; returns the RUN collections in them."""
        with lock_repo(self._butler):
            runs = self._runs()
            self._butler.collections.register(self._collection, CollectionType.CHAINED)
            current = list(self._butler.collections.get_info(self._collection).children)
            missing = [run for run in runs if run not in current]
            if missing:
                self._butler.collections.redefine_chain(self._collection, [*current, *missing])
            return runs

    def check_names(self) -> None:
        """Check that the collection can be used.

        An ImportConflictError is raised if its name belongs to a collection of another kind.
        """
        for name, wanted in (
            (self._collection, CollectionType.CHAINED),
            *((self.run_of(split), CollectionType.RUN) for split in _SPLITS),
        ):
            try:
                kind = self._butler.collections.get_info(name).type
            except MissingCollectionError:
                continue
            if kind is not wanted:
                raise ImportConflictError(
                    f"Collection {name!r} is a {kind.name} collection, and a {wanted.name} one is wanted; "
                    "give another --collection."
                )

    def _runs(self) -> list[str]:
        """Return the RUN collections that are there."""
        return [run for run in map(self.run_of, _SPLITS) if self._exists(run)]

    def _exists(self, collection: str) -> bool:
        try:
            self._butler.collections.get_info(collection)
        except MissingCollectionError:
            return False
        return True

    def _data_id(self, tract: int, patch: int, band: str | None) -> dict[str, str | int]:
        data_id = patch_data_id(self._skymap, tract, patch)
        return data_id if band is None else {**data_id, "band": band}

    def _id(self, key: str, run: str, tract: int, patch: int, band: str | None, digest: str) -> uuid.UUID:
        words = "\0".join([key, run, self._skymap, str(tract), str(patch), band or "", digest])
        # Not version 5: of those the Butler expects that they follow from the data id.
        return uuid.UUID(bytes=hashlib.sha256(words.encode()).digest()[:16], version=4)

    def _find(self, key: str, data_id: Mapping[str, str | int], runs: Sequence[str]) -> DatasetRef | None:
        if not runs:
            return None
        name = self._types[key].name
        if not list(self._butler.registry.queryDatasetTypes(name)):
            return None
        refs = self._butler.query_datasets(
            name, collections=list(runs), data_id=dict(data_id), explain=False, find_first=False
        )
        return refs[0] if refs else None
