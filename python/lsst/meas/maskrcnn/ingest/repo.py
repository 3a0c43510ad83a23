# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small Butler repositories: dimension records for a few patches, and the
coadds that go into them.

A repository of a survey has all this already. These functions are for the
demonstration, for tests, and for simulated and imported scenes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lsst.skymap
from lsst.afw.geom import SkyWcs
from lsst.afw.image import ExposureF
from lsst.daf.butler import Butler, CollectionType, Config, DatasetType
from lsst.geom import Box2D, Box2I
from lsst.sphgeom import ConvexPolygon

from ..images.files import locked

SEED_CONFIG = "resource://lsst.meas.maskrcnn/configs/butler_seed.yaml"
"""What a repository must be created with, or include, to store models: it adds
their storage class and formatter (`str`)."""


_LOG = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"tmp\w{8}|.*\.tmp(\.\w+)*|.*\.transfer-tmp")
"""Names that the Butler gives to files that it has not written yet."""

_COPY = re.compile(r"[a-z0-9_]{16}\.\w+")
"""Names that it gives to files that it has not copied yet; files of datasets may have such names, too."""


@dataclass(frozen=True)
class PatchGeometry:
    """A patch of a sky map."""

    tract: int
    patch: int
    """Its numbers."""
    wcs: SkyWcs
    """Projection of its tract."""
    bbox: Box2I
    """Outer box in the pixels of the tract."""
    cell: tuple[int, int] = (0, 0)
    """Column and row in its tract."""

    def region(self) -> ConvexPolygon:
        """Outline of the patch on the sky, around the outer edges of the outermost pixels."""
        corners = Box2D(self.bbox).getCorners()
        return ConvexPolygon([self.wcs.pixelToSky(corner).getVector() for corner in corners])


def check_collection(name: str) -> None:
    """Refuse the name of a collection that would put files somewhere else or nowhere.

    Its parts become folders: a ValueError is raised unless it has words with slashes between them.
    """
    parts = name.split("/")
    if not all(re.fullmatch(r"[\w.+:@-]+", part) and part.strip(".") for part in parts):
        raise ValueError(
            f"Collection {name!r} is no possible name; give words of letters, digits and any of _-.:+@ with "
            "slashes between them."
        )


def create_repo(path: str | os.PathLike[str]) -> Butler:
    """Make an empty Butler repository that knows this package's model; returns a writeable client.

    It is made beside ``path`` and moved there when it is complete, so that a half-made one is never found. A
    FileExistsError is raised if there is something else there than an empty folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     butler = create_repo(folder + "/repo")
    ...     butler.registry.defaults.run is None
    True
    """
    root = Path(path).absolute()
    root.parent.mkdir(parents=True, exist_ok=True)
    with _workshop(root) as folder:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise FileExistsError(f"{root} is there and is no Butler repository; it is left alone.")
        # Butler takes what follows a dot in the name of a root for a file format.
        Butler.makeRepo(str(folder / "repo"), config=Config(SEED_CONFIG))
        if root.exists():
            root.rmdir()
        (folder / "repo").rename(root)
    return Butler.from_config(str(root), writeable=True)


def _workshop_of(root: Path) -> Path:
    return root.parent / f".repo-{root.name.replace('.', '-')}"


@contextlib.contextmanager
def _workshop(root: Path) -> Iterator[Path]:
    """Give a folder to make a repository in, to one process at a time."""
    folder = _workshop_of(root)
    with locked(folder.with_suffix(".lock")):
        # What is there already is from a process that was killed.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def open_repo(path: str | os.PathLike[str]) -> Butler:
    """Open a Butler repository, or make it as `create_repo` does; returns a writeable client."""
    root = Path(path).absolute()
    there = root / "butler.yaml"
    if there.is_file():
        if _workshop_of(root).with_suffix(".lock").exists():
            with _workshop(root):
                pass  # A process was killed after it had made the repository.
    else:
        try:
            return create_repo(path)
        except FileExistsError:
            # Another process may have made it in between.
            if not there.is_file():
                raise
    butler = Butler.from_config(str(path), writeable=True)
    remove_broken_types(butler)
    return butler


@contextlib.contextmanager
def lock_repo(butler: Butler) -> Iterator[None]:
    """Wait until no other command of this package writes to a repository of files.

    Of two processes that store the same dataset, the later one fails, and takes back what it wrote into the
    place of the other's files. So they look one after the other what is there.
    """
    with contextlib.ExitStack() as stack:
        for root in _roots(butler):
            stack.enter_context(locked(root / ".maskrcnn.lock"))
        yield


def register_datasets(butler: Butler, dataset_types: Iterable[DatasetType], run: str) -> None:
    """Register dataset types and the RUN that they go to, and mend what a killed process left in it.

    No other process writes to this run. Its temporary files are removed. If it is empty, it is registered
    anew, because a killed process may have registered a half of it.
    """
    for dataset_type in dataset_types:
        butler.registry.registerDatasetType(dataset_type)
    # The Butler does this in two steps.
    with butler.transaction():
        if not butler.collections.register(run):
            info = butler.collections.get_info(run, include_parents=True, include_summary=True)
            if info.type is CollectionType.RUN and not info.dataset_types and not info.parents:
                butler.collections.x_remove(run)
                butler.collections.register(run)
    files = [path for root in _roots(butler) for path in (root / run).rglob("*") if path.is_file()]
    left = [path for path in files if _TEMPORARY.fullmatch(path.name)]
    if copies := {path for path in files if _COPY.fullmatch(path.name)}:
        left += copies - _files_of(butler, run)
    for path in left:
        path.unlink(missing_ok=True)


def _files_of(butler: Butler, run: str) -> set[Path]:
    """Local files of the datasets of a RUN."""
    types = butler.collections.get_info(run, include_summary=True).dataset_types or ()
    refs = [ref for name in types for ref in butler.query_datasets(name, run, explain=False, limit=None)]
    uris = [butler.getURIs(ref) for ref in refs]
    places = [place for one in uris for place in (one.primaryURI, *one.componentURIs.values())]
    return {Path(place.ospath) for place in places if place is not None and place.isLocal}


def remove_broken_types(butler: Butler) -> None:
    """Remove dataset types that the Butler registered without a table for their datasets.

    It does so when the disk is full. Nothing can be stored or looked for with such a type; after this it can
    be registered again.
    """
    by_table: dict[Any, list[str]] = {}
    for dataset_type in butler.registry.queryDatasetTypes():
        key = dataset_type.dimensions, dataset_type.isCalibration()
        by_table.setdefault(key, []).append(dataset_type.name)
    for names in by_table.values():
        try:
            butler.query_datasets(names[0], collections=[], find_first=False, explain=False, limit=1)
        except RuntimeError as error:
            # The Butler does not export it.
            if type(error).__name__ != "MissingDatabaseTableError":
                raise
            _LOG.warning("Dataset types %s have no table in the database and are removed.", names)
            butler.registry.removeDatasetType(tuple(names))


def _roots(butler: Butler) -> list[Path]:
    """Local folders in which a repository keeps its files."""
    roots = butler.get_datastore_roots().values()
    return [Path(root.ospath) for root in roots if root is not None and root.isLocal]


def patch_data_id(skymap: str, tract: int, patch: int) -> dict[str, str | int]:
    """Data id of a patch, dimensions spelt in full."""
    return {"skymap": skymap, "tract": tract, "patch": patch}


def register_patches(
    butler: Butler,
    skymap: str,
    patches: Sequence[PatchGeometry],
    bands: Iterable[str],
    *,
    instrument: str = "MaskRcnnSim",
) -> None:
    """Write the dimension records of all patches of a sky map, and of bands, each with a physical filter.

    A ValueError is raised if there is no patch, or one is there twice; a ConflictingDefinitionError of the
    Butler if the repository has other records of the same names.
    """
    if not patches:
        raise ValueError("No patches were given; give at least one PatchGeometry.")
    numbers = [(patch.tract, patch.patch) for patch in patches]
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"A patch was given twice; (tract, patch) given: {numbers}.")

    digest = hashlib.sha1(skymap.encode(), usedforsecurity=False)
    vertices: dict[int, list[Any]] = {}
    for patch in patches:
        region = patch.region()
        digest.update(repr((patch.tract, patch.patch)).encode())
        digest.update(region.encode())
        vertices.setdefault(patch.tract, []).extend(region.getVertices())
    record = {
        "name": skymap,
        "hash": digest.digest(),
        "tract_max": max(vertices) + 1,
        "patch_nx_max": max(patch.cell[0] for patch in patches) + 1,
        "patch_ny_max": max(patch.cell[1] for patch in patches) + 1,
    }
    # The constructor takes the convex hull.
    tracts = {tract: ConvexPolygon(corners) for tract, corners in sorted(vertices.items())}
    register_records(butler, record, tracts, patches, bands, instrument)


def register_records(
    butler: Butler,
    skymap: Mapping[str, Any],
    tracts: Mapping[int, ConvexPolygon],
    patches: Sequence[PatchGeometry],
    bands: Iterable[str],
    instrument: str,
    *,
    trust_patches: bool = False,
) -> None:
    """Write the dimension records of a sky map, all or none.

    Given are the record of the sky map, the regions of its tracts by number, patches, and bands, each of
    which comes with a physical filter ``<instrument>-<band>``. Patches that are there already are not
    compared if they are to be trusted: the hash of the sky map says that they are the same. A
    ConflictingDefinitionError of the Butler is raised if the repository has other records of the same names.
    """
    registry = butler.registry
    records = [
        {
            "skymap": skymap["name"],
            "tract": patch.tract,
            "id": patch.patch,
            "cell_x": patch.cell[0],
            "cell_y": patch.cell[1],
            "region": patch.region(),
        }
        for patch in patches
    ]
    with butler.transaction():
        registry.syncDimensionData(
            "instrument",
            {
                "name": instrument,
                "visit_max": 1,
                "exposure_max": 1,
                "detector_max": 1,
                "class_name": "lsst.obs.base.Instrument",
            },
        )
        for band in bands:
            registry.syncDimensionData(
                "physical_filter", {"instrument": instrument, "name": f"{instrument}-{band}", "band": band}
            )
        registry.syncDimensionData("skymap", skymap)
        for tract, region in tracts.items():
            registry.syncDimensionData("tract", {"skymap": skymap["name"], "id": tract, "region": region})
        if trust_patches:
            registry.insertDimensionData("patch", *records, skip_existing=True)
        else:
            for record in records:
                registry.syncDimensionData("patch", record)


def store_sky_map(
    butler: Butler, name: str, tract: int, wcs: SkyWcs, size: tuple[int, int], count: tuple[int, int]
) -> None:
    """Store the dataset ``skyMap`` of a sky map with a tract, where ``lsst.skymap`` has sky maps.

    ``size`` is (width, height) of a patch, px, ``count`` how many there are along
    x and y.
    """
    if hasattr(lsst.skymap, "BaseSkyMap"):
        from .sky_map import put_sky_map

        put_sky_map(butler, name, {tract: (wcs, size, count)})


def put_exposures(
    butler: Butler, run: str, data_id: Mapping[str, str | int], exposures: Mapping[str, ExposureF]
) -> None:
    """Put the coadds of a patch, one per band, into a RUN collection, which is made if it is missing.

    Bands that the run holds already are left as they are, so that a put that was cut short can be repeated.
    """
    dimensions = ("skymap", "tract", "patch", "band")
    dataset_type = DatasetType("deepCoadd_calexp", dimensions, "ExposureF", universe=butler.dimensions)
    register_datasets(butler, [dataset_type], run)
    for band, exposure in exposures.items():
        full = {**data_id, "band": band}
        if butler.find_dataset(dataset_type, full, collections=run) is None:
            butler.put(exposure, dataset_type, full, run=run)
