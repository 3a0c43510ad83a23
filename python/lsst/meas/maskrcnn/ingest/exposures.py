# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exposures made of simulated scenes and of FITS images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from numpy.typing import NDArray

from lsst.afw.detection import GaussianPsf
from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ApCorrMap, CoaddInputs, ExposureF, FilterLabel, ImageD, PhotoCalib
from lsst.afw.math import ChebyshevBoundedField, FixedKernel
from lsst.afw.table import ExposureTable
from lsst.daf.base import PropertyList
from lsst.geom import Box2I, Extent2I, Point2D, Point2I, SpherePoint, arcseconds, degrees
from lsst.meas.algorithms import KernelPsf
from lsst.pex.exceptions import Exception as PexError
from lsst.pipe.base import AlgorithmError

from ..catalogs.exposures import NO_ZERO_POINT, check_exposures
from ..images.units import FWHM_PER_SIGMA
from ..scenes.artefacts import MASK_BITS
from .fits_files import FitsImageError
from .fits_images import FitsField
from .fits_wcs import fit_sip

_COADD_PLANES = ("CLIPPED", "INEXACT_PSF", "SENSOR_EDGE")
"""Mask planes that the pipeline's tasks ask of any coadd, if only to find no pixel on them."""

_CORRECTED_FLUXES = (
    "base_GaussianFlux",
    "base_PsfFlux",
    "ext_photometryKron_KronFlux",
    "modelfit_CModel",
    "modelfit_CModel_dev",
    "modelfit_CModel_exp",
    "modelfit_CModel_initial",
)
"""Fluxes with an aperture correction in the pipeline; the PSFs here hold all light, so it is 1."""

_LARGEST_OFFSET = 0.02
"""Distance (px) from the world coordinates of a file up to which others are the same."""

_SKY_CENTER = (150.1, 2.2)
"""Right ascension and declination (deg) of scenes without a projection: the COSMOS field."""

_PSF_FLUX_LOST = 0.003
"""Share of the flux that may lie outside a PSF's image."""

_PSF_HALF_SIZES = (12, 40)
"""Fewest and most pixels between the centre of a PSF's image and its edge."""


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


def field_to_exposures(field: FitsField) -> dict[str, ExposureF]:
    """Turn FITS images into calibrated exposures by band, with WCS, PSF, PhotoCalib and FilterLabel.

    Pixels that are not finite, or have no positive variance, have mask plane NO_DATA. Files that afw wrote
    are read as they are. A FitsImageError is raised if one of these cannot be read, or the images are to have
    a mask plane that is not known.
    """
    exposures: dict[str, ExposureF] = {}
    for band, path in field.exposures.items():
        try:
            exposures[band] = ExposureF.readFits(str(path))
            # Data IDs of coadds have no physical filter, and the Butler compares.
            exposures[band].setFilter(FilterLabel.fromBand(band))
        except (PexError, OSError, ValueError, RuntimeError) as error:
            raise FitsImageError(f"{path} cannot be read ({error}); get the whole file.") from error
    if field.wcs is None:
        try:
            check_exposures(exposures)
        except AlgorithmError as error:
            raise FitsImageError(str(error)) from error
        return exposures
    wcs = sky_wcs(field.wcs, field.shape)
    box = Box2I(Point2I(0, 0), Extent2I(field.shape[1], field.shape[0]))
    for band, image in field.images.items():
        exposure = make_exposure(
            image.pixels,
            image.variance,
            bbox=box,
            wcs=wcs,
            nanojansky_per_count=image.nanojansky_per_count,
            band=band,
        )
        if image.psf is not None:
            exposure.setPsf(image_psf(image.psf))
        _complete_coadd(exposure)
        if not image.calibrated:
            exposure.getMetadata().set(NO_ZERO_POINT, True)
        known = exposure.mask.getMaskPlaneDict()
        for plane, selected in image.planes.items():
            if plane not in known:
                raise FitsImageError(
                    f"There is no mask plane {plane!r}; use one of {', '.join(sorted(known))}."
                )
            exposure.mask.array[selected] |= exposure.mask.getPlaneBitMask(plane)
        exposures[band] = exposure
    return exposures


def sky_wcs(wcs: WCS, shape: tuple[int, int]) -> SkyWcs:
    """Turn world coordinates of astropy, of an image of a shape (y, x), into those of afw.

    They are the same if afw knows the projection, as it does TAN, with or
    without SIP; else a TAN with SIP distortions that is fitted to them.
    """
    x, y = (axis.ravel() for axis in np.meshgrid(*(np.linspace(0, side - 1, 11) for side in shape[::-1])))
    sky = wcs.pixel_to_world(x, y).icrs
    found: list[tuple[float, SkyWcs]] = []
    for candidate in (wcs, fit_sip(wcs, shape)):
        metadata = PropertyList()
        for key, value in candidate.to_header(relax=True).items():
            # The polynomials of the way back are approximate; without them it is solved for.
            if isinstance(value, int | float | str) and not key.startswith(("AP_", "BP_")):
                metadata.set(key, value)
        try:
            result = makeSkyWcs(metadata)
            ra, dec = result.pixelToSkyArray(x, y, degrees=True)
        except (RuntimeError, TypeError, ValueError, PexError):
            continue
        off = SkyCoord(ra, dec, unit="deg").separation(sky).deg.max()
        found.append((float(off) if np.isfinite(off) else math.inf, result))
        if off < _LARGEST_OFFSET * result.getPixelScale().asDegrees():
            break
    return min(found, key=lambda pair: pair[0])[1]


def scene_to_exposures(
    scene: SceneLike,
    *,
    xy0: tuple[int, int] = (0, 0),
    wcs: SkyWcs | None = None,
    nanojansky_per_count: float | Mapping[str, float] = 1.0,
) -> dict[str, ExposureF]:
    """Turn a simulated scene, in nJy, into calibrated exposures by band, in the scene's order.

    Each has WCS, PSF, PhotoCalib and FilterLabel. The first pixel is at ``xy0``, (x, y), in the tract, of the
    projection ``wcs``; without one the centre of the image is in the COSMOS field. Pixels are divided by
    ``nanojansky_per_count``, one for all or by band.

    The PSFs are those of the attribute ``psfs`` of the scene, a `~.light.BandPsf` per band, or Gaussian if it
    has none. Where it has an array ``mask`` (band, y, x) with the bits of `~.artefacts.MASK_BITS`, these
    planes are set; bands in ``no_zero_point`` have the keyword NOZEROPT. Pixels that are not finite, or have
    no positive variance, have mask plane NO_DATA. A ValueError is raised if the arrays do not fit each other.
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
            SpherePoint(*_SKY_CENTER, degrees),
            makeCdMatrix(scale=scene.pixel_scale * arcseconds),
        )
    # Simulated scenes carry camera artefacts as bits; a scene made by other means need not.
    flags = getattr(scene, "mask", None)
    exposures = {}
    for index, band in enumerate(scene.bands):
        factor = nanojansky_per_count
        calibration = factor[band] if isinstance(factor, Mapping) else factor
        exposure = make_exposure(
            images[index] / calibration,
            variance[index] / calibration**2,
            bbox=bbox,
            wcs=wcs,
            nanojansky_per_count=calibration,
            band=band,
        )
        psf = _scene_psf(scene, index)
        if psf is not None:
            exposure.setPsf(psf)
        _complete_coadd(exposure)
        if band in getattr(scene, "no_zero_point", ()):
            exposure.getMetadata().set(NO_ZERO_POINT, True)
        if flags is not None:
            for plane, bit in MASK_BITS.items():
                exposure.mask.array[(flags[index] & bit) != 0] |= exposure.mask.getPlaneBitMask(plane)
        exposures[band] = exposure
    return exposures


def truth_to_exposures(scene: Any, exposures: Mapping[str, ExposureF]) -> dict[str, ExposureF]:
    """Make exposures, by band, of the ``light`` (band, y, x), nJy, of a scene's sources alone.

    Box, WCS, PSF and calibration, and so the units, are those of ``exposures``, which `scene_to_exposures`
    made of the scene; the variance is 0 and the mask empty.
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
    """Build an exposure from pixels (counts) and their variance (counts^2), (y, x).

    Pixels that are not finite, or have no positive variance, have mask plane
    NO_DATA. Coadds have no physical filter.
    """
    exposure = ExposureF(bbox, wcs)
    exposure.image.array[:] = image
    exposure.variance.array[:] = variance
    bad = ~np.isfinite(exposure.image.array) | ~(exposure.variance.array > 0.0)
    exposure.mask.array[bad] |= exposure.mask.getPlaneBitMask("NO_DATA")
    exposure.setPhotoCalib(PhotoCalib(nanojansky_per_count))
    exposure.setFilter(FilterLabel.fromBand(band))
    return exposure


def _complete_coadd(exposure: ExposureF) -> None:
    """Add what the pipeline's own tasks ask of a coadd: mask planes, an input image, corrections."""
    for plane in _COADD_PLANES:
        exposure.mask.addMaskPlane(plane)
    visits, ccds = ExposureTable.makeMinimalSchema(), ExposureTable.makeMinimalSchema()
    ccds.addField("ccd", type=np.int32, doc="number of the detector")
    ccds.addField("visit", type=np.int64, doc="number of the visit")
    for schema in (visits, ccds):
        schema.addField("goodpix", type=np.int32, doc="number of good pixels")
        schema.addField("weight", type=np.float64, doc="weight in the coadd")
        schema.addField("filter", type=str, size=32, doc="filter")
    inputs = CoaddInputs(visits, ccds)
    for catalog in (inputs.visits, inputs.ccds):
        record = catalog.addNew()
        record.setId(1)
        record.setBBox(exposure.getBBox())
        record.setWcs(exposure.getWcs())
        record.setPsf(exposure.getPsf())
        record.setPhotoCalib(exposure.getPhotoCalib())
        record["weight"], record["filter"] = 1.0, exposure.getFilter().bandLabel
        record["goodpix"] = int(np.count_nonzero(np.isfinite(exposure.image.array)))
    inputs.ccds[0]["visit"] = 1
    exposure.getInfo().setCoaddInputs(inputs)
    corrections = ApCorrMap()
    for suffix, value in (("instFlux", 1.0), ("instFluxErr", 0.0)):
        field = ChebyshevBoundedField(exposure.getBBox(), np.array([[value]]))
        for name in _CORRECTED_FLUXES:
            corrections.set(f"{name}_{suffix}", field)
    exposure.getInfo().setApCorrMap(corrections)


def gaussian_psf(fwhm: float) -> GaussianPsf:
    """Make a round Gaussian PSF of a FWHM (px), whose kernel reaches out to five sigma."""
    sigma = max(fwhm / FWHM_PER_SIGMA, 0.3)
    size = 2 * int(np.ceil(5.0 * sigma)) + 1
    return GaussianPsf(size, size, sigma)


def image_psf(image: NDArray[np.floating]) -> KernelPsf:
    """Make a PSF of its image about the central pixel, the same everywhere; its kernel sums to one."""
    height, width = image.shape
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"The image of a PSF must have odd sides, not {image.shape}.")
    kernel = ImageD(Extent2I(width, height))
    kernel.array[:] = image / image.sum()
    return KernelPsf(FixedKernel(kernel))


def _scene_psf(scene: SceneLike, index: int) -> GaussianPsf | KernelPsf | None:
    """Return the PSF of one band of a scene, if it is known."""
    psfs = getattr(scene, "psfs", None)
    if psfs is None:
        if not np.isfinite(scene.psf_fwhm[index]):
            return None
        return gaussian_psf(float(scene.psf_fwhm[index]) / scene.pixel_scale)
    halves = np.arange(_PSF_HALF_SIZES[0], _PSF_HALF_SIZES[1] + 1)
    enough = psfs[index].missing_flux(halves * scene.pixel_scale) < _PSF_FLUX_LOST
    half = halves[np.argmax(enough)] if enough.any() else halves[-1]
    return image_psf(psfs[index].image(2 * int(half) + 1, scene.pixel_scale))
