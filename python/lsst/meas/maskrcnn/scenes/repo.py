# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small Butler repositories: dimension records for a few patches, and the
coadds that go into them.

A repository of a survey has all this already. These functions are for the
demonstration, for tests, and for simulated scenes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lsst.afw.detection import GaussianPsf
from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF, FilterLabel, PhotoCalib
from lsst.daf.butler import Butler, Config, DatasetType
from lsst.geom import Box2D, Box2I, Extent2I, Point2D, Point2I, SpherePoint, arcseconds, degrees
from lsst.sphgeom import ConvexPolygon

from .artefacts import MASK_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "SEED_CONFIG",
    "PatchGeometry",
    "SceneLike",
    "create_repo",
    "gaussian_psf",
    "make_exposure",
    "patch_data_id",
    "put_exposures",
    "register_patches",
    "scene_to_exposures",
]

SEED_CONFIG = "resource://lsst.meas.maskrcnn/configs/butler_seed.yaml"
"""What a repository must be created with, or include, to store models: it adds
their storage class and formatter (`str`)."""

_FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))


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
                "physical_filter",
                {"instrument": instrument, "name": f"{instrument}-{band}", "band": band},
            )
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
    dimensions = ("skymap", "tract", "patch", "band")
    dataset_type = DatasetType(
        f"{coadd_name}Coadd_calexp", dimensions, "ExposureF", universe=butler.dimensions
    )
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
        Right ascension and declination of the centre of the image (deg).
    nanojansky_per_count : `float` or `~collections.abc.Mapping`
        Calibration of the exposures, one for all or by band. Pixels are
        divided by it.

    Returns
    -------
    exposures : `dict` [`str`, `lsst.afw.image.ExposureF`]
        By band, in the scene's order, each with WCS, a Gaussian PSF,
        PhotoCalib and FilterLabel. Where the scene has an array ``mask``
        (band, y, x) with the bits of `~.artefacts.MASK_BITS`, these planes
        are set. Pixels that are not finite, or have no
        positive variance, have mask plane NO_DATA.

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
        exposure.setPsf(gaussian_psf(float(scene.psf_fwhm[index]) / scene.pixel_scale))
        if flags is not None:
            for plane, bit in MASK_BITS.items():
                exposure.mask.array[(flags[index] & bit) != 0] |= exposure.mask.getPlaneBitMask(plane)
        exposures[band] = exposure
    return exposures


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
    sigma = max(fwhm / _FWHM_PER_SIGMA, 0.3)
    size = 2 * int(np.ceil(5.0 * sigma)) + 1
    return GaussianPsf(size, size, sigma)
