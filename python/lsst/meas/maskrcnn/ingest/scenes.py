# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated scenes in a Butler repository: their sky map, and what is stored."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF
from lsst.daf.butler import (
    Butler,
    DataCoordinate,
    DatasetIdGenEnum,
    DatasetRef,
    DatasetType,
    DimensionUniverse,
    FileDataset,
)
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.geom import Box2I, Extent2I, Point2D, Point2I, SpherePoint, arcseconds, degrees

from .repo import PatchGeometry, register_records, store_sky_map

_WRITE_RECIPE: dict[str, Any] = {
    # Noise does not become smaller, and trying takes half the time of making a scene.
    "image": None,
    "mask": {"algorithm": "GZIP_2"},
    "variance": {"algorithm": "GZIP_2"},
}
"""How the planes of an exposure are compressed: without loss."""


@dataclass(frozen=True)
class SceneGrid:
    """Sky map of simulated scenes: a tract per seed, a patch per scene.

    Patches abut row by row. What is in a record depends on the fields of this
    class and the two numbers only, so that scenes can be added later. A
    ValueError is raised if a number is not positive.
    """

    name: str
    shape: tuple[int, int]
    """Height and width of a scene, px."""
    pixel_scale: float
    """Pixel size in the middle of a tract, arcsec."""

    TRACT_MAX: ClassVar[int] = 1_000_000
    """One more than the largest number of a tract, and so of a seed."""

    _SIDE: ClassVar[int] = 100
    _WIDEST: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 1 or not 0 < self.pixel_scale < math.inf:
            raise ValueError(
                "A grid of scenes needs (height, width) and a pixel scale above 0, not "
                f"{self.shape} and {self.pixel_scale}."
            )

    @property
    def side(self) -> int:
        """Patches along each side of a tract: fewer where it would be so wide that its plane is stretched."""
        width = max(self.shape) * self.pixel_scale / 3600.0
        return int(np.clip(self._WIDEST / width, 1, self._SIDE))

    def wcs(self, tract: int) -> SkyWcs:
        """Return the projection of a tract, a tangent plane, north up and east to the left.

        Tracts are spread evenly between declinations -60 and 60 deg, away from RA 0. A ValueError is raised
        if there is no such tract.
        """
        if not 0 <= tract < self.TRACT_MAX:
            raise ValueError(f"There is no tract {tract}; numbers (seeds) go from 0 to {self.TRACT_MAX - 1}.")
        # Roberts' sequence in two dimensions: neighbours are far apart.
        plastic = 1.324717957244746
        u, v = (math.modf(0.5 + (tract + 1) / power)[0] for power in (plastic, plastic**2))
        center = SpherePoint(
            15.0 + 330.0 * u, math.degrees(math.asin((2.0 * v - 1.0) * math.sin(math.radians(60.0)))), degrees
        )
        height, width = self.shape
        middle = Point2D(0.5 * (self.side * width - 1), 0.5 * (self.side * height - 1))
        return makeSkyWcs(middle, center, makeCdMatrix(scale=self.pixel_scale * arcseconds))

    def patch(self, tract: int, patch: int) -> PatchGeometry:
        """Return the place of a scene; a ValueError is raised if there is no such patch."""
        return self._place(tract, patch, self.wcs(tract))

    def _place(self, tract: int, patch: int, wcs: SkyWcs) -> PatchGeometry:
        if not 0 <= patch < self.side**2:
            raise ValueError(
                f"There is no patch {patch}: a tract of {self.shape[1]} x {self.shape[0]} px scenes has "
                f"{self.side**2}, numbered from 0. For more scenes, use another seed."
            )
        row, column = divmod(patch, self.side)
        height, width = self.shape
        bbox = Box2I(Point2I(column * width, row * height), Extent2I(width, height))
        return PatchGeometry(tract, patch, wcs, bbox, (column, row))

    def register(self, butler: Butler, tract: int, patches: Iterable[int], bands: Iterable[str]) -> None:
        """Write the dimension records of scenes.

        Parameters
        ----------
        butler : `lsst.daf.butler.Butler`
            A writeable client.
        tract : `int`
            Number of the tract (seed).
        patches : `~collections.abc.Iterable` [`int`]
            Numbers of the scenes. Records that are there already do no harm.
        bands : `~collections.abc.Iterable` [`str`]
            Bands; each comes with a physical filter ``MaskRcnnSim-<band>``.

        Raises
        ------
        ValueError
            Raised if there is no such tract or patch, or the repository has a
            sky map of this name with scenes of another size or scale.
        """
        height, width = self.shape
        wcs = self.wcs(tract)
        geometries = [self._place(tract, patch, wcs) for patch in patches]
        # A pixel more on each side: rounding must not leave a patch's corner out.
        whole = Box2I(Point2I(-1, -1), Extent2I(self.side * width + 2, self.side * height + 2))
        identity = f"{self.name} {height} {width} {self.pixel_scale!r} {self.side}"
        skymap = {
            "name": self.name,
            "hash": hashlib.sha1(identity.encode(), usedforsecurity=False).digest(),
            "tract_max": self.TRACT_MAX,
            "patch_nx_max": self.side,
            "patch_ny_max": self.side,
        }
        region = PatchGeometry(tract, 0, wcs, whole).region()
        try:
            register_records(
                butler, skymap, {tract: region}, geometries, bands, "MaskRcnnSim", trust_patches=True
            )
        except ConflictingDefinitionError as error:
            raise ValueError(
                f"The repository has a sky map {self.name!r} of scenes of another size than {width} x "
                f"{height} px of {self.pixel_scale} arcsec, or it was made by other software; give "
                "another name with --skymap."
            ) from error
        store_sky_map(butler, self.name, tract, wcs, (width, height), (self.side, self.side))


def scene_dataset_types(universe: DimensionUniverse, *, flux: bool = True) -> dict[str, DatasetType]:
    """Return the dataset types of a simulated or imported scene, with or without each source's own pixels.

    They are under ``exposures``, ``truth``, ``truthImages`` and ``truthFlux``.
    """
    patch = ("skymap", "tract", "patch")
    kinds = {
        "exposures": ("deepCoadd_calexp", (*patch, "band"), "ExposureF"),
        "truth": ("maskRcnn_truth", patch, "SourceCatalog"),
        "truthImages": ("maskRcnn_truthImage", (*patch, "band"), "ExposureF"),
    }
    if flux:
        kinds["truthFlux"] = ("maskRcnn_truthFlux", (*patch, "band"), "SourceCatalog")
    return {
        key: DatasetType(name, dimensions, storage_class, universe=universe)
        for key, (name, dimensions, storage_class) in kinds.items()
    }


def _scene_refs(
    butler: Butler,
    run: str,
    data_ids: Iterable[Mapping[str, str | int]],
    bands: Sequence[str],
    dataset_types: Mapping[str, DatasetType],
) -> list[tuple[str, str | None, DatasetRef]]:
    """Return key, band and reference of all that belongs to scenes; ids follow from the names."""
    refs: list[tuple[str, str | None, DatasetRef]] = []
    for data_id in data_ids:
        coordinates = {
            band: DataCoordinate.standardize(
                {**data_id, "band": band} if band is not None else data_id, universe=butler.dimensions
            )
            for band in (None, *bands)
        }
        for key, dataset_type in dataset_types.items():
            for band in bands if "band" in dataset_type.dimensions.names else (None,):
                ref = DatasetRef(
                    dataset_type,
                    coordinates[band].subset(dataset_type.dimensions),
                    run=run,
                    id_generation_mode=DatasetIdGenEnum.DATAID_TYPE_RUN,
                )
                refs.append((key, band, ref))
    return refs


def missing_scenes(
    butler: Butler,
    run: str,
    data_ids: Sequence[Mapping[str, str | int]],
    bands: Sequence[str],
    dataset_types: Mapping[str, DatasetType],
) -> list[int]:
    """Find the scenes that are not, or not wholly, in a run: indices into ``data_ids``, rising.

    The patches have records, and ``dataset_types`` are those of `scene_dataset_types`.
    """
    refs = _scene_refs(butler, run, data_ids, bands, dataset_types)
    per_scene = len(refs) // max(len(data_ids), 1)
    stored = butler.stored_many([ref for _, _, ref in refs])
    lacking = [index for index, (_, _, ref) in enumerate(refs) if not stored[ref]]
    return sorted({index // per_scene for index in lacking})


def ingest_scene(
    butler: Butler,
    run: str,
    data_id: Mapping[str, str | int],
    products: Mapping[str, Any],
    dataset_types: Mapping[str, DatasetType],
    staging: str | os.PathLike[str],
) -> None:
    """Store all that belongs to a scene, at once or not at all; what the run holds already is left as it is.

    The repository has the records, the run and the dataset types, which are those of `scene_dataset_types`.
    For each of them there is the product, or a mapping from bands to products if it has the dimension band.
    Files are written to ``staging`` first, best on the same file system, while other processes may use the
    repository's database, and then moved in one short transaction.
    """
    bands = list(products["exposures"])
    refs = _scene_refs(butler, run, [data_id], bands, dataset_types)
    stored = butler.stored_many([ref for _, _, ref in refs])
    with tempfile.TemporaryDirectory(dir=staging) as folder:
        datasets = []
        for key, band, ref in refs:
            if stored[ref]:
                continue
            product = products[key] if band is None else products[key][band]
            path = os.path.join(folder, f"{key}_{band}.fits")
            if isinstance(product, ExposureF):
                product.writeFitsWithOptions(path, _WRITE_RECIPE)
            else:
                product.writeFits(path)
            datasets.append(FileDataset(path=path, refs=[ref]))
        if datasets:
            butler.ingest(*datasets, transfer="move")
