# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files of any kind to the pixels that the engine takes."""

from __future__ import annotations

__all__ = ["read_images"]

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..deblend.image import MultibandImage
from .fits_files import BandFiles, FitsImageError
from .fits_images import FitsField, FitsOptions, PlainImage, read_field

_LOG = logging.getLogger(__name__)
# As of exposures, see `~lsst.meas.maskrcnn.catalogs.exposures.to_multiband_image`.
_UNUSABLE_PLANES = ("BAD", "NO_DATA")
_BAD_PLANES = ("BAD", "CR", "NO_DATA", "SAT")


def read_images(
    files: Mapping[str, str | os.PathLike[str] | BandFiles], options: FitsOptions | None = None
) -> MultibandImage:
    """Read images of one field, one per band.

    Parameters
    ----------
    files : `~collections.abc.Mapping`
        Files by band: FITS images, files that afw wrote (ExposureF), or
        coadds of ``lsst.images`` (CellCoadd, MaskedImage), all
        on one pixel grid. `~.fits_files.BandFiles` name the variance and mask
        of an image as well.
    options : `~.fits_images.FitsOptions`, optional
        How plain images are read.

    Returns
    -------
    image : `~lsst.meas.maskrcnn.deblend.image.MultibandImage`
        In nJy, with the sky subtracted where it is far from zero. What had to
        be assumed of the images is logged.

    Raises
    ------
    FitsImageError
        Raised if a file is missing or damaged, if the images do not fit each
        other, or if some were written by afw and others were not.

    Notes
    -----
    Only files that afw wrote need an LSST package.

    Examples
    --------
    >>> from lsst.meas.maskrcnn import read_images
    >>> image = read_images({"g": "g.fits", "r": "r.fits", "z": "z.fits"})  # doctest: +SKIP
    """
    entries = {
        band: entry if isinstance(entry, BandFiles) else BandFiles(Path(entry))
        for band, entry in files.items()
    }
    field = read_field(entries, options)
    for note in field.notes:
        _LOG.info("%s", note)
    if not field.exposures:
        return _from_plain_images(field)
    try:
        from lsst.afw.image import ExposureF
    except ImportError as error:
        raise FitsImageError(
            f"afw wrote {', '.join(path.name for path in field.exposures.values())}, and lsst.afw is not "
            "installed; set up the LSST Science Pipelines, or give plain FITS images."
        ) from error

    from ..catalogs.exposures import to_multiband_image

    return to_multiband_image({band: ExposureF.readFits(str(path)) for band, path in field.exposures.items()})


def _from_plain_images(field: FitsField) -> MultibandImage:
    shape = (len(field.bands), *field.shape)
    flux, variance = np.empty(shape, np.float32), np.empty(shape, np.float32)
    flags = {name: np.zeros(shape, bool) for name in ("unusable", "bad", "saturated")}
    images = [field.images[band] for band in field.bands]

    def psf(band: int, y: float, x: float) -> npt.NDArray[np.floating[Any]] | None:
        local = images[band].local_psf
        return images[band].psf if local is None else local(y, x)

    for index, band in enumerate(field.bands):
        image = field.images[band]
        # Counts as an exposure would hold them, so that it gives the same pixels.
        scale = np.float64(image.nanojansky_per_count)
        flux[index] = image.pixels.astype(np.float32) * scale
        variance[index] = image.variance.astype(np.float32) * scale**2
        planes = {**image.planes, "NO_DATA": ~np.isfinite(image.pixels) | image.planes.get("NO_DATA", False)}
        for name, wanted in (("unusable", _UNUSABLE_PLANES), ("bad", _BAD_PLANES), ("saturated", ("SAT",))):
            for plane in wanted:
                flags[name][index] |= planes.get(plane, False)
    return MultibandImage(
        flux,
        field.bands,
        field.pixel_scale,
        variance,
        usable=~flags["unusable"],
        saturated=flags["saturated"],
        bad=flags["bad"],
        psf=psf,
        wcs=field.wcs,
        calibrated=[image.calibrated for image in images],
        noise=_noise(images, field.shape),
    )


def _noise(images: Sequence[PlainImage], shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
    """Realisations of the noise, (band, y, x), NaN in bands without; `None` if no band has one."""
    if all(image.noise is None for image in images):
        return None
    nothing = np.broadcast_to(np.float32(np.nan), shape)
    return np.stack([nothing if image.noise is None else image.noise.astype(np.float32) for image in images])
