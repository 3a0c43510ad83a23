# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small Butler repositories: dimension records for a few patches, and the
coadds that go into them; sky maps whose patches are simulated scenes.

A repository of a survey has all this already. These functions are for the
demonstration, for tests, and for simulated scenes.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from lsst.afw.detection import GaussianPsf
from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF, FilterLabel, ImageD, PhotoCalib
from lsst.afw.math import FixedKernel
from lsst.daf.butler import (
    Butler,
    Config,
    DataCoordinate,
    DatasetIdGenEnum,
    DatasetRef,
    DatasetType,
    DimensionUniverse,
    FileDataset,
)
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.geom import Box2D, Box2I, Extent2I, Point2D, Point2I, SpherePoint, arcseconds, degrees
from lsst.meas.algorithms import KernelPsf
from lsst.sphgeom import ConvexPolygon

from ..images.units import FWHM_PER_SIGMA
from ..scenes.artefacts import MASK_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "SEED_CONFIG",
    "PatchGeometry",
    "SceneGrid",
    "SceneLike",
    "create_repo",
    "gaussian_psf",
    "image_psf",
    "ingest_scene",
    "make_exposure",
    "missing_scenes",
    "patch_data_id",
    "put_exposures",
    "register_bands",
    "register_patches",
    "scene_dataset_types",
    "scene_to_exposures",
    "truth_to_exposures",
]

SEED_CONFIG = "resource://lsst.meas.maskrcnn/configs/butler_seed.yaml"
"""What a repository must be created with, or include, to store models: it adds
their storage class and formatter (`str`)."""

_PSF_FLUX_LOST = 0.003
"""Share of the flux that may lie outside a PSF's image."""

_PSF_HALF_SIZES = (12, 40)
"""Fewest and most pixels between the centre of a PSF's image and its edge."""

_WRITE_RECIPE: dict[str, Any] = {
    # Noise does not become smaller, and trying takes half the time of making a scene.
    "image": None,
    "mask": {"algorithm": "GZIP_2"},
    "variance": {"algorithm": "GZIP_2"},
}
"""How the planes of an exposure are compressed: without loss."""


class SceneLike(Protocol):
    """What `scene_to_exposures` needs of a scene."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands in the order of the images."""

    @property
    def images(self) -> NDArray[np.float32]:
        """Flux per pixel (nJy), (band, y, x), sky-subtracted."""

    @property
    def variance(self) -> NDArray[np.float32]:
        """Its variance (nJy^2), (band, y, x)."""

    @property
    def psf_fwhm(self) -> NDArray[np.float64]:
        """Full width at half maximum of the PSF per band (arcsec)."""

    @property
    def pixel_scale(self) -> float:
        """Pixel scale (arcsec)."""


@dataclass(frozen=True)
class PatchGeometry:
    """One patch on the sky.

    Parameters
    ----------
    tract, patch : `int`
        Its numbers in the sky map.
    wcs : `lsst.afw.geom.SkyWcs`
        Projection of its tract.
    bbox : `lsst.geom.Box2I`
        Outer box in the pixels of the tract.
    cell : `tuple` [`int`, `int`]
        Column and row of the patch in its tract.
    """

    tract: int
    patch: int
    wcs: SkyWcs
    bbox: Box2I
    cell: tuple[int, int] = (0, 0)

    def region(self) -> ConvexPolygon:
        """Outline of the patch on the sky.

        Returns
        -------
        region : `lsst.sphgeom.ConvexPolygon`
            Around the outer edges of the outermost pixels.
        """
        corners = Box2D(self.bbox).getCorners()
        return ConvexPolygon([self.wcs.pixelToSky(corner).getVector() for corner in corners])


def create_repo(path: str | os.PathLike[str], seed_config: str | None = SEED_CONFIG) -> Butler:
    """Make an empty Butler repository that knows this package's model.

    Parameters
    ----------
    path : `str` or `os.PathLike`
        Its root; must not exist, or be an empty folder.
    seed_config : `str` or `None`
        URI of a Butler configuration to start from.

    Returns
    -------
    butler : `lsst.daf.butler.Butler`
        A writeable client.

    Raises
    ------
    FileExistsError
        Raised if there is something at ``path`` already.

    Notes
    -----
    The repository is made beside ``path`` and moved there when it is
    complete, so that a half-made one is never found.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     butler = create_repo(folder + "/repo")
    ...     butler.registry.defaults.run is None
    True
    """
    root = Path(path).absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"A new repository was to be made at {root}, but something is there already.")
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".repo-", dir=root.parent))
    # Butler takes what follows a dot in the name of a root for a file format.
    partial = folder / "repo"
    try:
        config = Config(seed_config) if seed_config is not None else None
        Butler.makeRepo(str(partial), config=config)
        if root.exists():
            root.rmdir()
        partial.rename(root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Butler.from_config(str(root), writeable=True)


def patch_data_id(skymap: str, tract: int, patch: int) -> dict[str, str | int]:
    """Data id of a patch, dimensions spelt in full.

    Parameters
    ----------
    skymap : `str`
        Name of the sky map.
    tract, patch : `int`
        Numbers.

    Returns
    -------
    data_id : `dict`
    """
    return {"skymap": skymap, "tract": tract, "patch": patch}


def register_patches(
    butler: Butler,
    skymap: str,
    patches: Sequence[PatchGeometry],
    bands: Iterable[str],
    *,
    instrument: str = "MaskRcnnSim",
) -> None:
    """Write the dimension records of patches and bands.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        A writeable client.
    skymap : `str`
        Name of the sky map. Records that are there already must agree.
    patches : `~collections.abc.Sequence` [`PatchGeometry`]
        All patches of the sky map.
    bands : `~collections.abc.Iterable` [`str`]
        Bands; each comes with a physical filter ``<instrument>-<band>``.
    instrument : `str`
        Name of the instrument that the filters belong to.

    Raises
    ------
    ValueError
        Raised if ``patches`` is empty or holds a patch twice.
    lsst.daf.butler.registry.ConflictingDefinitionError
        Raised if the repository has other records of the same names.
    """
    if not patches:
        raise ValueError("No patches were given; give at least one PatchGeometry.")
    numbers = [(patch.tract, patch.patch) for patch in patches]
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"A patch was given twice; (tract, patch) given: {numbers}.")

    registry = butler.registry
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(skymap.encode())
    regions = [patch.region() for patch in patches]
    for number, region in zip(numbers, regions):
        digest.update(repr(number).encode())
        digest.update(region.encode())

    with butler.transaction():
        register_bands(butler, bands, instrument)
        registry.syncDimensionData(
            "skymap",
            {
                "name": skymap,
                "hash": digest.digest(),
                "tract_max": max(tract for tract, _ in numbers) + 1,
                "patch_nx_max": max(patch.cell[0] for patch in patches) + 1,
                "patch_ny_max": max(patch.cell[1] for patch in patches) + 1,
            },
        )
        for tract in sorted({tract for tract, _ in numbers}):
            vertices = [
                vertex
                for patch, region in zip(patches, regions)
                if patch.tract == tract
                for vertex in region.getVertices()
            ]
            # The constructor takes the convex hull.
            registry.syncDimensionData(
                "tract", {"skymap": skymap, "id": tract, "region": ConvexPolygon(vertices)}
            )
        for patch, region in zip(patches, regions):
            registry.syncDimensionData(
                "patch",
                {
                    "skymap": skymap,
                    "tract": patch.tract,
                    "id": patch.patch,
                    "cell_x": patch.cell[0],
                    "cell_y": patch.cell[1],
                    "region": region,
                },
            )


def register_bands(butler: Butler, bands: Iterable[str], instrument: str) -> None:
    """Write the records of bands and of the instrument that has them.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        A writeable client.
    bands : `~collections.abc.Iterable` [`str`]
        Bands; each comes with a physical filter ``<instrument>-<band>``.
    instrument : `str`
        Name of the instrument.

    Raises
    ------
    lsst.daf.butler.registry.ConflictingDefinitionError
        Raised if the repository has other records of the same names.
    """
    butler.registry.syncDimensionData(
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
        butler.registry.syncDimensionData(
            "physical_filter", {"instrument": instrument, "name": f"{instrument}-{band}", "band": band}
        )


@dataclass(frozen=True)
class SceneGrid:
    """Sky map of simulated scenes: a tract per seed, a patch per scene.

    Patches abut row by row. What is in a record depends on the fields of this
    class and the two numbers only, so that scenes can be added later.

    Parameters
    ----------
    name : `str`
        Name of the sky map.
    shape : `tuple` [`int`, `int`]
        Height and width of a scene, px.
    pixel_scale : `float`
        Pixel size in the middle of a tract, arcsec.

    Raises
    ------
    ValueError
        Raised if a number is not positive.
    """

    name: str
    shape: tuple[int, int]
    pixel_scale: float

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
        """Patches along each side of a tract.

        A hundred, or fewer if a tract would be wider than ten degrees: far
        from its middle a tangent plane is stretched.
        """
        width = max(self.shape) * self.pixel_scale / 3600.0
        return int(np.clip(self._WIDEST / width, 1, self._SIDE))

    def wcs(self, tract: int) -> SkyWcs:
        """Return the projection of a tract.

        Parameters
        ----------
        tract : `int`
            Its number, below `TRACT_MAX`.

        Returns
        -------
        wcs : `lsst.afw.geom.SkyWcs`
            Tangent plane, north up and east to the left. Tracts are spread
            evenly between declinations -60 and 60 deg, away from RA 0.

        Raises
        ------
        ValueError
            Raised if there is no such tract.
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
        """Return the place of a scene.

        Parameters
        ----------
        tract, patch : `int`
            Numbers: seed, and number of the scene.

        Returns
        -------
        geometry : `PatchGeometry`
            The patch.

        Raises
        ------
        ValueError
            Raised if there is no such patch.
        """
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
        registry = butler.registry
        with butler.transaction():
            try:
                registry.syncDimensionData("skymap", skymap)
            except ConflictingDefinitionError as error:
                raise ValueError(
                    f"The repository has a sky map {self.name!r} of scenes of another size than {width} x "
                    f"{height} px of {self.pixel_scale} arcsec, or it was made by other software; give "
                    "another name with --skymap."
                ) from error
            register_bands(butler, bands, "MaskRcnnSim")
            registry.syncDimensionData(
                "tract",
                {"skymap": self.name, "id": tract, "region": PatchGeometry(tract, 0, wcs, whole).region()},
            )
            records = [
                {
                    "skymap": self.name,
                    "tract": tract,
                    "id": geometry.patch,
                    "cell_x": geometry.cell[0],
                    "cell_y": geometry.cell[1],
                    "region": geometry.region(),
                }
                for geometry in geometries
            ]
            # The hash of the sky map vouches for the records that are there already.
            registry.insertDimensionData("patch", *records, skip_existing=True)


def scene_dataset_types(
    universe: DimensionUniverse, *, coadd_name: str = "deep", flux: bool = True
) -> dict[str, DatasetType]:
    """Return the dataset types of a simulated or imported scene.

    Parameters
    ----------
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repository.
    coadd_name : `str`
        Start of the name of the coadds.
    flux : `bool`
        Whether each source's own pixels are among them.

    Returns
    -------
    dataset_types : `dict` [`str`, `lsst.daf.butler.DatasetType`]
        Under ``exposures``, ``truth``, ``truthImages`` and ``truthFlux``.
    """
    patch = ("skymap", "tract", "patch")
    kinds = {
        "exposures": (f"{coadd_name}Coadd_calexp", (*patch, "band"), "ExposureF"),
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
    """Return key, band and reference of all that belongs to scenes.

    Ids follow from the names, so that a scene that is made again gets the
    same ones.
    """
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
    """Find the scenes that are not, or not wholly, in a run.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        A client.
    run : `str`
        Name of the RUN collection.
    data_ids : `~collections.abc.Sequence` [`~collections.abc.Mapping`]
        The patches, as `patch_data_id` makes them; their records must be
        there.
    bands : `~collections.abc.Sequence` [`str`]
        Bands of the scenes.
    dataset_types : `~collections.abc.Mapping`
        As `scene_dataset_types` returns them.

    Returns
    -------
    missing : `list` [`int`]
        Indices into ``data_ids``, rising.
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
    """Store all that belongs to a scene, at once or not at all.

    Files are written to ``staging`` first, while other processes may use the
    repository's database, and then moved in one short transaction.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        A writeable client of a repository with the records and the dataset
        types.
    run : `str`
        Name of the RUN collection, which must be there.
    data_id : `~collections.abc.Mapping`
        The patch, as `patch_data_id` makes it.
    products : `~collections.abc.Mapping`
        For each key of ``dataset_types`` the object, or a mapping from bands
        to objects if the type has the dimension band.
    dataset_types : `~collections.abc.Mapping`
        As `scene_dataset_types` returns them.
    staging : `str` or `os.PathLike`
        Folder for temporary files; best on the file system of the repository.

    Notes
    -----
    What the run holds already is left as it is.
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


def put_exposures(
    butler: Butler,
    run: str,
    data_id: Mapping[str, str | int],
    exposures: Mapping[str, ExposureF],
    *,
    coadd_name: str = "deep",
) -> None:
    """Put the coadds of a patch, one per band.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        A writeable client.
    run : `str`
        Name of the RUN collection; it is made if it is missing.
    data_id : `~collections.abc.Mapping`
        The patch, as `patch_data_id` makes it.
    exposures : `~collections.abc.Mapping` [`str`, `lsst.afw.image.ExposureF`]
        Exposures by band.
    coadd_name : `str`
        Start of the dataset type's name.

    Notes
    -----
    Bands that the run holds already are left as they are, so that a put that
    was cut short can be repeated.
    """
    dataset_type = scene_dataset_types(butler.dimensions, coadd_name=coadd_name)["exposures"]
    butler.registry.registerDatasetType(dataset_type)
    butler.collections.register(run)
    for band, exposure in exposures.items():
        full = {**data_id, "band": band}
        if butler.find_dataset(dataset_type, full, collections=run) is None:
            butler.put(exposure, dataset_type, full, run=run)


def scene_to_exposures(
    scene: SceneLike,
    *,
    xy0: tuple[int, int] = (0, 0),
    sky_center: tuple[float, float] = (150.1, 2.2),
    wcs: SkyWcs | None = None,
    nanojansky_per_count: float | Mapping[str, float] = 1.0,
) -> dict[str, ExposureF]:
    """Turn a simulated scene into calibrated exposures.

    Parameters
    ----------
    scene : `SceneLike`
        The scene, in nJy.
    xy0 : `tuple` [`int`, `int`]
        Position (x, y) of the first pixel in the tract.
    sky_center : `tuple` [`float`, `float`]
        Right ascension and declination of the centre of the image (deg); not
        used with ``wcs``.
    wcs : `lsst.afw.geom.SkyWcs`, optional
        Projection of the tract.
    nanojansky_per_count : `float` or `~collections.abc.Mapping`
        Calibration of the exposures, one for all or by band. Pixels are
        divided by it.

    Returns
    -------
    exposures : `dict` [`str`, `lsst.afw.image.ExposureF`]
        By band, in the scene's order, each with WCS, PSF, PhotoCalib and
        FilterLabel. The PSFs are those of the attribute ``psfs`` of the
        scene, a `~.light.BandPsf` per band, or Gaussian if it has none. Where
        it has an array ``mask`` (band, y, x) with the bits of
        `~.artefacts.MASK_BITS`, these planes are set. Pixels that are not
        finite, or have no positive variance, have mask plane NO_DATA.

    Raises
    ------
    ValueError
        Raised if the arrays of the scene do not fit each other.
    """
    images = np.asarray(scene.images)
    variance = np.asarray(scene.variance)
    if images.ndim != 3 or len(images) != len(scene.bands) or variance.shape != images.shape:
        raise ValueError(
            f"A scene needs images and variance of shape ({len(scene.bands)}, height, width) for bands "
            f"{tuple(scene.bands)}; given were {images.shape} and {variance.shape}."
        )
    height, width = images.shape[1:]
    bbox = Box2I(Point2I(*xy0), Extent2I(width, height))
    if wcs is None:
        wcs = makeSkyWcs(
            Point2D(xy0[0] + 0.5 * (width - 1), xy0[1] + 0.5 * (height - 1)),
            SpherePoint(*sky_center, degrees),
            makeCdMatrix(scale=scene.pixel_scale * arcseconds),
        )
    # Simulated scenes carry camera artefacts as bits; a scene made by other means need not.
    flags = getattr(scene, "mask", None)
    exposures = {}
    for index, band in enumerate(scene.bands):
        calibration = (
            nanojansky_per_count[band] if isinstance(nanojansky_per_count, Mapping) else nanojansky_per_count
        )
        exposure = make_exposure(
            images[index] / calibration,
            variance[index] / calibration**2,
            bbox=bbox,
            wcs=wcs,
            nanojansky_per_count=calibration,
            band=band,
        )
        exposure.setPsf(_scene_psf(scene, index))
        if flags is not None:
            for plane, bit in MASK_BITS.items():
                exposure.mask.array[(flags[index] & bit) != 0] |= exposure.mask.getPlaneBitMask(plane)
        exposures[band] = exposure
    return exposures


def truth_to_exposures(scene: Any, exposures: Mapping[str, ExposureF]) -> dict[str, ExposureF]:
    """Make exposures of the light of a scene's sources alone.

    Parameters
    ----------
    scene : `~.simulate.Scene`
        Scene with ``light`` (band, y, x), nJy.
    exposures : `~collections.abc.Mapping` [`str`, `lsst.afw.image.ExposureF`]
        What `scene_to_exposures` made of it: box, WCS, PSF and calibration
        are taken from there.

    Returns
    -------
    truth : `dict` [`str`, `lsst.afw.image.ExposureF`]
        By band, in the units of ``exposures``, with variance 0 and an empty
        mask.
    """
    truth = {}
    for index, band in enumerate(scene.bands):
        model = exposures[band]
        exposure = ExposureF(model.getBBox(), model.getWcs())
        exposure.image.array[:] = scene.light[index] / model.getPhotoCalib().getCalibrationMean()
        exposure.setPsf(model.getPsf())
        exposure.setPhotoCalib(model.getPhotoCalib())
        exposure.setFilter(model.getFilter())
        truth[band] = exposure
    return truth


def make_exposure(
    image: NDArray[np.floating],
    variance: NDArray[np.floating],
    *,
    bbox: Box2I,
    wcs: SkyWcs,
    nanojansky_per_count: float,
    band: str,
) -> ExposureF:
    """Build an exposure from arrays.

    Parameters
    ----------
    image, variance : `numpy.ndarray`
        Pixels (counts) and their variance (counts^2), (y, x).
    bbox : `lsst.geom.Box2I`
        Box of the image.
    wcs : `lsst.afw.geom.SkyWcs`
        World coordinates.
    nanojansky_per_count : `float`
        Calibration.
    band : `str`
        Name of the band. Coadds have no physical filter.

    Returns
    -------
    exposure : `lsst.afw.image.ExposureF`
        Pixels that are not finite, or have no positive variance, have mask
        plane NO_DATA.
    """
    exposure = ExposureF(bbox, wcs)
    exposure.image.array[:] = image
    exposure.variance.array[:] = variance
    bad = ~np.isfinite(exposure.image.array) | ~(exposure.variance.array > 0.0)
    exposure.mask.array[bad] |= exposure.mask.getPlaneBitMask("NO_DATA")
    exposure.setPhotoCalib(PhotoCalib(nanojansky_per_count))
    exposure.setFilter(FilterLabel.fromBand(band))
    return exposure


def gaussian_psf(fwhm: float) -> GaussianPsf:
    """Make a round Gaussian PSF.

    Parameters
    ----------
    fwhm : `float`
        Full width at half maximum (pixels).

    Returns
    -------
    psf : `lsst.afw.detection.GaussianPsf`
        Its kernel reaches out to five sigma.
    """
    sigma = max(fwhm / FWHM_PER_SIGMA, 0.3)
    size = 2 * int(np.ceil(5.0 * sigma)) + 1
    return GaussianPsf(size, size, sigma)


def image_psf(image: NDArray[np.floating]) -> KernelPsf:
    """Make a PSF of its image, the same everywhere.

    Parameters
    ----------
    image : `numpy.ndarray`, (size, size)
        The PSF about the central pixel; ``size`` is odd.

    Returns
    -------
    psf : `lsst.meas.algorithms.KernelPsf`
        Its kernel sums to one.

    Raises
    ------
    ValueError
        Raised if the image has no central pixel.
    """
    height, width = image.shape
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"The image of a PSF must have odd sides, not {image.shape}.")
    kernel = ImageD(Extent2I(width, height))
    kernel.array[:] = image / image.sum()
    return KernelPsf(FixedKernel(kernel))


def _scene_psf(scene: SceneLike, index: int) -> GaussianPsf | KernelPsf:
    """Return the PSF of one band of a scene."""
    psfs = getattr(scene, "psfs", None)
    if psfs is None:
        return gaussian_psf(float(scene.psf_fwhm[index]) / scene.pixel_scale)
    halves = np.arange(_PSF_HALF_SIZES[0], _PSF_HALF_SIZES[1] + 1)
    enough = psfs[index].missing_flux(halves * scene.pixel_scale) < _PSF_FLUX_LOST
    half = halves[np.argmax(enough)] if enough.any() else halves[-1]
    return image_psf(psfs[index].image(2 * int(half) + 1, scene.pixel_scale))
