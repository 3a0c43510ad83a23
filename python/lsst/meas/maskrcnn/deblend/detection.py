# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection with networks of fixed bands, at the pixel size of the image."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torchvision.models.detection import MaskRCNN

from ..images.normalize import NormalizedImage, normalize
from ..network.detections import Detections
from ..network.inference import DetectionSettings, detect
from ..network.model_file import ModelMetadata
from .image import MultibandImage

BoolArray = npt.NDArray[np.bool_]
Normalize = Callable[[npt.NDArray[np.float32], "npt.NDArray[np.float32] | None", BoolArray], NormalizedImage]
"""Takes flux (band, y, x), variance (band, y, x) or None, and valid (y, x)."""

_LOG = logging.getLogger(__name__)

_UNKNOWN_FWHM = 4.0
"""Width of a PSF that is not known (px): that of 0.7 arcsec seeing with the
pixels of HSC."""

_MAX_SCALE_RATIO = 1.5
"""Factor between the pixel scales of image and training images from which to
warn: the augmentations of the training reach about as far."""


def detect_fixed_bands(
    network: MaskRCNN,
    image: MultibandImage,
    metadata: ModelMetadata,
    settings: DetectionSettings,
    *,
    normalizer: Normalize | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Detections, DetectionImages]:
    """Find the sources of an image, which may have more bands, in those of a model.

    ``normalizer`` normalises flux, variance and usable pixels in place of the model; ``progress`` is called
    with the number of tiles done and the number of tiles. Returns the sources, in pixels of the image, and
    the image, the bands of the model together. A ValueError is raised if a band is missing.
    """
    _check_bands(image, metadata)
    _warn_of_pixel_scale(image, metadata)
    bands = image.select(metadata.bands)
    usable: BoolArray = np.logical_and.reduce(np.asarray(bands.usable), axis=0)
    started = time.perf_counter()
    normalise = normalizer or functools.partial(normalize, metadata.fixed_normalization)
    normalized = normalise(bands.flux, bands.variance, usable)
    seconds = time.perf_counter() - started
    found = detect(
        network,
        normalized.image,
        normalized.valid,
        settings,
        calibration=metadata.calibration,
        psf_fwhm=bands.psf_fwhm,
        progress=progress,
    )
    found.timings["normalize"] = seconds
    return found, _combine_bands(image, bands, normalized)


def _check_bands(image: MultibandImage, metadata: ModelMetadata) -> None:
    missing = [band for band in metadata.bands if band not in image.bands]
    if missing:
        raise ValueError(
            f"model {metadata.name!r} needs the bands {', '.join(metadata.bands)}, but the image has "
            f"{', '.join(image.bands)}: {', '.join(missing)} is missing. Add it, or choose another model."
        )


def _warn_of_pixel_scale(image: MultibandImage, metadata: ModelMetadata) -> None:
    """Warn if sources have other sizes than those the network has been trained on."""
    ratio = image.pixel_scale / metadata.pixel_scale
    if max(ratio, 1.0 / ratio) > _MAX_SCALE_RATIO:
        _LOG.warning(
            "Pixels are %.3f arcsec, but model %s was trained on %.3f arcsec: expect it to miss sources.",
            image.pixel_scale,
            metadata.name,
            metadata.pixel_scale,
        )


@dataclass(frozen=True, eq=False)
class DetectionImages:
    """The image without binning, the bands of the model together."""

    snr: npt.NDArray[np.float32]
    """Detection image: flux above the sky in units of its noise, (y, x)."""
    mean: npt.NDArray[np.float32]
    """Mean of the normalised bands, (y, x)."""
    flags: npt.NDArray[np.uint8]
    """Pixels that hold data in all bands, are bad or saturated in any: sum of `FLAGS`, (y, x)."""
    noise: npt.NDArray[np.float64]
    """Noise of the sky in each band of the image, (band,), nJy; NaN for bands that the model does not use."""
    fwhm: float
    """FWHM of the PSF, px."""

    def has(self, flag: str) -> BoolArray:
        """Give the pixels that have a flag, (y, x)."""
        return (self.flags & FLAGS[flag]) != 0


FLAGS = {"valid": np.uint8(1), "bad": np.uint8(2), "saturated": np.uint8(4)}
"""Bits of pixels by name; one plane takes less memory than three."""


def combine_flags(valid: BoolArray, image: MultibandImage) -> npt.NDArray[np.uint8]:
    """Put the flags of pixels of an image together, some of which are valid, (y, x)."""
    flags = valid * FLAGS["valid"]
    for name, planes in (("bad", image.bad), ("saturated", image.saturated)):
        flags |= np.logical_or.reduce(np.asarray(planes), axis=0) * FLAGS[name]
    return flags


def _combine_bands(
    image: MultibandImage, bands: MultibandImage, normalized: NormalizedImage
) -> DetectionImages:
    """Combine the bands of an image that the model uses, ``bands``, which are ``normalized`` too."""
    noise = np.full(len(image.bands), np.nan)
    noise[[tuple(image.bands).index(band) for band in bands.bands]] = normalized.noise
    return DetectionImages(
        detection_image(bands.flux, normalized.minimum, normalized.noise, normalized.valid),
        normalized.image.mean(axis=0),
        combine_flags(normalized.valid, bands),
        noise,
        bands.fwhm if math.isfinite(bands.fwhm) else _UNKNOWN_FWHM,
    )


def detection_image(
    flux: npt.NDArray[np.float32],
    level: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    valid: BoolArray,
) -> npt.NDArray[np.float32]:
    """Add the bands of an image (band, y, x) up in units of their noise, (y, x), with 0 for pixels not valid.

    It is the sum of (flux - level) / noise over the root of the number of bands, so that its noise is 1 if
    the bands are independent.
    """
    image = np.zeros(flux.shape[1:], dtype=np.float32)
    for pixels, offset, unit in zip(flux, level, noise, strict=True):
        image += (pixels - np.float32(offset)) / np.float32(unit)
    image /= np.float32(math.sqrt(len(flux)))
    image[~valid] = 0.0
    return image
