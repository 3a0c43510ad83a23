# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that came from elsewhere, in the form of simulated scenes."""

from __future__ import annotations

__all__ = ["ImportedConfig", "ImportedScene", "empty_sources", "import_exposures"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..scenes.artefacts import MASK_BITS
from ..scenes.config import MaskRule

if TYPE_CHECKING:
    from lsst.afw.geom import SkyWcs
    from lsst.afw.image import ExposureF

    from ..scenes.light import Stamp

_UNKNOWN = (
    "mag",
    "redshift",
    "half_light_radius",
    "bulge_fraction",
    "axis_ratio",
    "position_angle",
    "sersic_index",
)


@dataclass(frozen=True)
class ImportedConfig:
    """What is known of how an imported scene was made.

    Parameters
    ----------
    name : `str`
        A label.
    mask_rule : `MaskRule`
        How the truth masks were made; its band is that of the models.
    noise : `bool`
        Whether the images hold noise.
    """

    name: str
    mask_rule: MaskRule = MaskRule()
    noise: bool = True


@dataclass
class ImportedScene:
    """Images of a field and, if there is any, its truth.

    Parameters
    ----------
    config : `ImportedConfig`
        Name and mask rule.
    bands : `tuple` [`str`, ...]
        Bands in the order of the arrays.
    images : `numpy.ndarray`, (band, y, x), `numpy.float32`
        Sky-subtracted images, nJy. NaN where the mask says NO_DATA.
    variance : `numpy.ndarray`, (band, y, x), `numpy.float32`
        Their variance, nJy^2. NaN where the mask says NO_DATA.
    mask : `numpy.ndarray`, (band, y, x), `numpy.uint8`
        Bits of `~.artefacts.MASK_BITS`.
    pixel_scale : `float`
        Pixel size, arcsec.
    psf_fwhm : `numpy.ndarray`, (band,)
        Full width at half maximum of the PSF, arcsec.
    sky_sigma : `numpy.ndarray`, (band,)
        Standard deviation of the noise of an empty pixel, nJy.
    wcs : `lsst.afw.geom.SkyWcs`
        World coordinates; the first pixel is (0, 0).
    sources : `numpy.ndarray` or `None`
        The columns of `Scene.sources`; what is not known is NaN. `None`
        without truth.
    masks : `list` [`numpy.ndarray`]
        Truth mask of each source in its own bounding box, `bool`.
    origins : `numpy.ndarray`, (N, 2), `numpy.int32`
        (y0, x0) of the masks.
    models : `~collections.abc.Sequence` [`Stamp`] or `None`
        Each source's own light, nJy; NaN in bands in which it is not known.
    model_bands : `tuple` [`str`, ...]
        Bands in which it is known.
    notes : `list` [`str`]
        Sentences for the user: what was assumed.
    """

    config: ImportedConfig
    bands: tuple[str, ...]
    images: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    pixel_scale: float
    psf_fwhm: np.ndarray
    sky_sigma: np.ndarray
    wcs: SkyWcs
    sources: np.ndarray | None = None
    masks: list[np.ndarray] = field(default_factory=list)
    origins: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    models: Sequence[Stamp] | None = None
    model_bands: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

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


def empty_sources(number: int, bands: Sequence[str]) -> np.ndarray:
    """Make a table with the columns of `Scene.sources`.

    Parameters
    ----------
    number : `int`
        Rows; their ids count from 1.
    bands : `~collections.abc.Sequence` [`str`]
        Bands.

    Returns
    -------
    sources : `numpy.ndarray`, (N,)
        Floats are NaN, integers 0, flags not set.
    """
    columns: list[tuple[str, str]] = [
        ("id", "i8"),
        ("x", "f8"),
        ("y", "f8"),
        ("is_star", "?"),
        ("group", "i4"),
        *((name, "f8") for name in _UNKNOWN),
        ("area", "i4"),
        ("visible", "f4"),
        ("peak_share", "f4"),
        ("blendedness", "f4"),
        ("neighbor_distance", "f8"),
        ("neighbor_flux_ratio", "f8"),
        *((f"flag_{name}", "?") for name in ("empty", "small", "faint", "masked", "edge")),
        *((f"{kind}_{band}", "f8") for band in bands for kind in ("flux", "snr", "peak_snr")),
    ]
    sources = np.zeros(number, np.dtype(columns))
    for name in sources.dtype.names or ():
        if sources.dtype[name].kind == "f":
            sources[name] = np.nan
    sources["id"] = np.arange(1, number + 1)
    return sources


def import_exposures(
    name: str,
    exposures: Mapping[str, ExposureF],
    psf_fwhm: Mapping[str, float],
    sky_sigma: Mapping[str, float],
    notes: Sequence[str] = (),
) -> ImportedScene:
    """Turn calibrated exposures into a scene without truth.

    Parameters
    ----------
    name : `str`
        A label.
    exposures : `~collections.abc.Mapping` [`str`, `lsst.afw.image.ExposureF`]
        By band, in the order wanted, all on one grid.
    psf_fwhm : `~collections.abc.Mapping` [`str`, `float`]
        By band, arcsec.
    sky_sigma : `~collections.abc.Mapping` [`str`, `float`]
        By band, counts.
    notes : `~collections.abc.Sequence` [`str`]
        Sentences for the user.

    Returns
    -------
    scene : `ImportedScene`
        In nJy.

    Raises
    ------
    ValueError
        Raised if an exposure lacks WCS or PhotoCalib.
    """
    bands = tuple(exposures)
    wcs: SkyWcs | None = None
    images, variances, masks = [], [], []
    scales = np.ones(len(bands))
    for k, band in enumerate(bands):
        exposure = exposures[band]
        wcs = exposure.getWcs()
        if wcs is None or exposure.getPhotoCalib() is None:
            raise ValueError(
                f"{name}: the exposure in {band} has no WCS or PhotoCalib; give one that has both."
            )
        scales[k] = exposure.getPhotoCalib().getCalibrationMean()
        images.append(exposure.image.array * np.float32(scales[k]))
        variances.append(exposure.variance.array * np.float32(scales[k] ** 2))
        bits = np.zeros(exposure.mask.array.shape, np.uint8)
        for plane, bit in MASK_BITS.items():
            bits[exposure.mask.array & exposure.mask.getPlaneBitMask(plane) != 0] |= np.uint8(bit)
        masks.append(bits)
    if wcs is None:
        raise ValueError(f"{name}: no exposures were given; give one at least.")
    return ImportedScene(
        config=ImportedConfig(name),
        bands=bands,
        images=np.stack(images),
        variance=np.stack(variances),
        mask=np.stack(masks),
        pixel_scale=wcs.getPixelScale().asArcseconds(),
        psf_fwhm=np.array([psf_fwhm[band] for band in bands]),
        sky_sigma=scales * [sky_sigma[band] for band in bands],
        wcs=wcs,
        notes=list(notes),
    )
