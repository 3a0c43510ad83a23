# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that came from elsewhere, in the form of simulated scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lsst.afw.geom import SkyWcs

from ..scenes.artefacts import MASK_BITS
from ..scenes.config import MaskRule
from ..scenes.light import Stamp
from .exposures import sky_wcs
from .fits_files import FitsImageError
from .fits_images import FitsField


@dataclass(frozen=True)
class ImportedConfig:
    """What is known of how an imported scene was made."""

    name: str
    """A label."""
    mask_rule: MaskRule = MaskRule()
    """How the truth masks were made; its band is that of the models."""
    noise: bool = True
    """Whether the images hold noise."""


@dataclass
class ImportedScene:
    """Images of a field and, if there is any, its truth."""

    config: ImportedConfig
    """Name and mask rule."""
    bands: tuple[str, ...]
    """Bands in the order of the arrays."""
    images: np.ndarray
    """Sky-subtracted images, float32, (band, y, x), nJy. NaN where the mask says NO_DATA."""
    variance: np.ndarray
    """Their variance, float32, nJy^2. NaN where the mask says NO_DATA."""
    mask: np.ndarray
    """Bits of `~.artefacts.MASK_BITS`, uint8, (band, y, x)."""
    pixel_scale: float
    """Pixel size, arcsec."""
    psf_fwhm: np.ndarray
    """FWHM of the PSF, arcsec, (band,)."""
    sky_sigma: np.ndarray
    """Standard deviation of the noise of an empty pixel, nJy, (band,)."""
    wcs: SkyWcs
    """World coordinates; the first pixel is (0, 0)."""
    sources: np.ndarray | None = None
    """The columns of `Scene.sources`; what is not known is NaN. `None` without truth."""
    masks: list[np.ndarray] = field(default_factory=list)
    """Truth mask of each source in its own bounding box, bool."""
    origins: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """(y0, x0) of the masks, int32, (N, 2)."""
    models: Sequence[Stamp] | None = None
    """Each source's own light, nJy; NaN in bands in which it is not known."""
    model_bands: tuple[str, ...] = ()
    """Bands in which it is known."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the user: what was assumed."""
    no_zero_point: tuple[str, ...] = ()
    """Bands whose zero point is not known; a count stands for 1 nJy there."""

    @property
    def light(self) -> np.ndarray | None:
        """Sum of the models, (band, y, x), nJy, or `None` without models."""
        if self.models is None:
            return None
        light = np.zeros(self.images.shape)
        unknown = [k for k, band in enumerate(self.bands) if band not in self.model_bands]
        for stamp in self.models:
            height, width = stamp.pixels.shape[1:]
            light[:, stamp.y0 : stamp.y0 + height, stamp.x0 : stamp.x0 + width] += stamp.pixels
        light[unknown] = np.nan
        return light.astype(np.float32)


def import_field(name: str, field: FitsField) -> ImportedScene:
    """Turn plain FITS images into a scene, in nJy, without truth.

    A FitsImageError is raised if afw wrote one of the images.
    """
    if field.exposures or field.wcs is None:
        raise FitsImageError(f"{name}: afw wrote the images; put them into a repository as they are.")
    images = list(field.images.values())
    scales = np.array([image.nanojansky_per_count for image in images])
    mask = np.zeros((len(images), *field.shape), np.uint8)
    for bits, image in zip(mask, images):
        for plane, selected in {"NO_DATA": ~np.isfinite(image.pixels), **image.planes}.items():
            bits[selected] |= np.uint8(MASK_BITS.get(plane, 0))
    return ImportedScene(
        config=ImportedConfig(name),
        bands=field.bands,
        images=np.stack([(image.pixels * scale).astype(np.float32) for scale, image in zip(scales, images)]),
        variance=np.stack(
            [(image.variance * scale**2).astype(np.float32) for scale, image in zip(scales, images)]
        ),
        mask=mask,
        pixel_scale=field.pixel_scale,
        psf_fwhm=np.array([image.psf_fwhm for image in images]),
        sky_sigma=scales * [image.sky_sigma for image in images],
        wcs=sky_wcs(field.wcs, field.shape),
        notes=list(field.notes),
        no_zero_point=tuple(band for band, image in field.images.items() if not image.calibrated),
    )
