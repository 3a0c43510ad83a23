# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pixels of a patch in several bands: the input of the engine."""

from __future__ import annotations

__all__ = ["MultibandImage"]

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..images.pixels import usable_pixels
from ..images.stars import image_fwhm

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
PsfFunction = Callable[[int, float, float], "npt.NDArray[np.floating[Any]] | None"]
"""Takes the number of a band and a position (y, x), px; gives an image of the PSF."""


@dataclasses.dataclass(eq=False, repr=False)
class MultibandImage:
    """Images of one piece of sky in several bands, on one pixel grid.

    Everything is checked once, here. Arrays are (band, y, x), with the first
    pixel at (0, 0).

    Parameters
    ----------
    flux : `numpy.ndarray`
        Flux per pixel above the sky or not, float32, (band, y, x), nJy (without
        a zero point counts). Pixels that are not finite are not used.
    bands : `~collections.abc.Sequence` [`str`]
        Names of the bands, in the order of the arrays.
    pixel_scale : `float`
        Side of a pixel (arcsec).
    variance : `numpy.ndarray`, optional
        Variance of ``flux``, float32, (band, y, x), nJy^2. Without it noise is
        estimated from the pixels; pixels where it is not above 0 are not used.
    usable, saturated, bad : `numpy.ndarray`, optional
        Pixels that hold data, that are saturated, and of which no model is
        made, bool, (band, y, x) or (y, x). By default all, none and none;
        those that are saturated are ``bad`` as well.
    psf : sequence of `numpy.ndarray` or callable, optional
        Image of the PSF of each band, (y, x) with odd sides and the centre in
        the middle pixel; or a function of the number of the band and the
        position (y, x) that returns it, or `None` where it is not known.
    psf_fwhm : array_like, optional
        FWHM of the PSF of each band, (band,), px; NaN where it is not known.
        By default it is measured on ``psf``.
    wcs : object, optional
        Takes pixels to the sky: a WCS of astropy, or anything with
        ``pixelToSkyArray(x, y, degrees=True)``.
    noise : `numpy.ndarray`, optional
        A realisation of the noise of ``flux``, float32, (band, y, x), nJy, NaN
        where there is none. Errors of fitted fluxes take their scale and
        the correlation of neighbours from it; by default from the pixels.
    calibrated : array_like
        Whether ``flux`` is in nJy, bool, (band,) or one for all. Where it is not
        (no zero point), the ratios of the bands still count, but not how deep the
        image is.

    Raises
    ------
    ValueError
        Raised if shapes disagree, a band is there twice, or a number is out
        of its range.

    Examples
    --------
    >>> import numpy as np
    >>> from lsst.meas.maskrcnn import MultibandImage
    >>> image = MultibandImage(np.zeros((2, 5, 8)), bands=["g", "r"], pixel_scale=0.2)
    >>> image.shape
    (5, 8)
    """

    flux: FloatArray
    bands: Sequence[str]
    pixel_scale: float
    variance: FloatArray | None = None
    usable: BoolArray | None = None
    saturated: BoolArray | None = None
    bad: BoolArray | None = None
    psf: Sequence[npt.ArrayLike] | PsfFunction | None = None
    psf_fwhm: npt.ArrayLike | None = None
    wcs: Any = None
    calibrated: npt.ArrayLike = True
    noise: FloatArray | None = None

    def __post_init__(self) -> None:
        self.flux = np.asarray(self.flux, np.float32)
        self.bands = tuple(self.bands)
        if self.flux.ndim != 3 or not self.flux.size:
            raise ValueError(f"flux has shape {self.flux.shape}, wanted (band, y, x) with pixels in it")
        if len(set(self.bands)) != len(self.bands) or len(self.bands) != len(self.flux):
            raise ValueError(
                f"bands are {list(self.bands)} for flux of shape {self.flux.shape}; wanted one name for each "
                "band, no name twice"
            )
        if not (math.isfinite(self.pixel_scale) and self.pixel_scale > 0):
            raise ValueError(f"pixel_scale is {self.pixel_scale} arcsec, wanted a number above 0")
        if self.variance is not None:
            self.variance = np.asarray(self.variance, np.float32)
            if self.variance.shape != self.flux.shape:
                raise ValueError(f"variance has shape {self.variance.shape}, but flux has {self.flux.shape}")
        if self.noise is not None:
            self.noise = np.asarray(self.noise, np.float32)
            if self.noise.shape != self.flux.shape:
                raise ValueError(f"noise has shape {self.noise.shape}, but flux has {self.flux.shape}")
        self.saturated, bad = self._check_mask("saturated"), self._check_mask("bad")
        self.bad = bad | self.saturated if (self.saturated > bad).any() else bad
        self.usable = usable_pixels(self.flux, self.variance, self._check_mask("usable"))
        if self.variance is not None:
            for band, flux, usable in zip(self.bands, self.flux, usable_pixels(self.variance, self.variance)):
                if np.isfinite(flux).any() and not usable.any():
                    raise ValueError(
                        f"the variance of band {band} is nowhere above 0; give none if it is not known"
                    )
        self._check_psf()
        calibrated = np.array(self.calibrated, bool)
        if calibrated.shape not in ((), (len(self.bands),)):
            raise ValueError(
                f"calibrated has shape {calibrated.shape}, wanted one value for {len(self.bands)} bands"
            )
        self.calibrated = np.broadcast_to(calibrated, len(self.bands)).copy()

    def __repr__(self) -> str:
        return f"<MultibandImage {'x'.join(map(str, self.shape))} px, bands {', '.join(self.bands)}>"

    def _check_mask(self, name: str) -> BoolArray:
        given = getattr(self, name)
        if given is None:
            return np.broadcast_to(np.bool_(name == "usable"), self.flux.shape)
        mask = np.asarray(given, bool)
        if mask.shape not in (self.flux.shape, self.shape):
            raise ValueError(f"{name} has shape {mask.shape}, wanted {self.flux.shape} or {self.shape}")
        return np.broadcast_to(mask, self.flux.shape)

    def _check_psf(self) -> None:
        count = len(self.bands)
        if self.psf is not None and not callable(self.psf) and len(self.psf) != count:
            raise ValueError(f"psf has {len(self.psf)} images for {count} bands {list(self.bands)}")
        if self.psf_fwhm is None:
            middle = (self.shape[0] - 1) / 2, (self.shape[1] - 1) / 2
            images = [self.psf_image(band, *middle) for band in range(count)]
            self.psf_fwhm = np.array([np.nan if psf is None else gaussian_fwhm(psf) for psf in images])
        self.psf_fwhm = np.asarray(self.psf_fwhm, dtype=float)
        if self.psf_fwhm.shape != (count,):
            raise ValueError(f"psf_fwhm has shape {self.psf_fwhm.shape}, wanted one width for {count} bands")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width (px)."""
        return self.flux.shape[1], self.flux.shape[2]

    @property
    def fwhm(self) -> float:
        """Median FWHM of the PSF over the bands where it is known (px); NaN without."""
        widths = np.asarray(self.psf_fwhm)
        known = widths[np.isfinite(widths) & (widths > 0)]
        return float(np.median(known)) if known.size else math.nan

    def psf_image(self, band: int, y: float, x: float) -> npt.NDArray[np.floating[Any]] | None:
        """Return an image of the PSF.

        Parameters
        ----------
        band : `int`
            Number of the band.
        y, x : `float`
            Position (px).

        Returns
        -------
        psf : `numpy.ndarray` or `None`
            Image, (y, x), with the centre in the middle pixel; `None` where
            the PSF is not known.
        """
        if self.psf is None:
            return None
        return self.psf(band, y, x) if callable(self.psf) else np.asarray(self.psf[band])

    def psf_wings(self) -> npt.NDArray[np.float64]:
        """Measure how far the wings of the PSF reach.

        Returns
        -------
        wings : `numpy.ndarray`
            Radius at which the PSF in the middle of the image has 0.02 of its
            peak, in units of the FWHM, (band,); NaN where there is no image of
            the PSF, or it ends before.
        """
        middle = (0.5 * (self.shape[0] - 1), 0.5 * (self.shape[1] - 1))
        images = [self.psf_image(band, *middle) for band in range(len(self.bands))]
        radii = np.array([np.nan if psf is None else _wing_radius(np.asarray(psf, float)) for psf in images])
        widths = np.asarray(self.psf_fwhm)
        return radii / np.where(np.isfinite(widths) & (widths > 0), widths, np.nan)

    def select(self, bands: Sequence[str]) -> MultibandImage:
        """Take some of the bands, in another order if need be.

        Parameters
        ----------
        bands : `~collections.abc.Sequence` [`str`]
            Their names.

        Returns
        -------
        image : `MultibandImage`
            The same pixels; views where the order allows.

        Raises
        ------
        ValueError
            Raised if a band is not there.
        """
        missing = [band for band in bands if band not in self.bands]
        if missing:
            raise ValueError(f"there is no band {', '.join(missing)}; the image has {', '.join(self.bands)}")
        if tuple(bands) == self.bands:
            return self
        index = [tuple(self.bands).index(band) for band in bands]
        psf = self.psf
        if callable(psf):
            given = psf

            def psf(number: int, y: float, x: float) -> npt.NDArray[np.floating[Any]] | None:
                return given(index[number], y, x)

        elif psf is not None:
            psf = [psf[number] for number in index]
        chosen: dict[str, Any] = {
            name: None if getattr(self, name) is None else np.asarray(getattr(self, name))[index]
            for name in ("flux", "variance", "usable", "saturated", "bad", "psf_fwhm", "calibrated", "noise")
        }
        return dataclasses.replace(self, bands=bands, psf=psf, **chosen)

    def without_pixels(self) -> MultibandImage:
        """Forget the pixels, which take most of the memory.

        Returns
        -------
        image : `MultibandImage`
            Shape, bands, PSF and WCS are the same; no pixel is known.
        """
        image = copy.copy(self)
        image.flux = np.broadcast_to(np.float32(np.nan), self.flux.shape)
        image.variance = image.noise = None
        image.usable = image.bad = image.saturated = np.broadcast_to(np.bool_(False), self.flux.shape)
        return image

    def to_sky(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Take pixels to the sky.

        Parameters
        ----------
        x, y : array_like
            Positions, (N,), px of the array.

        Returns
        -------
        ra, dec : `numpy.ndarray`
            Degrees, (N,); NaN without a WCS.
        """
        x, y = np.ascontiguousarray(x, dtype=float), np.ascontiguousarray(y, dtype=float)
        if self.wcs is None:
            return np.full(x.shape, np.nan), np.full(x.shape, np.nan)
        if hasattr(self.wcs, "pixelToSkyArray"):
            return self.wcs.pixelToSkyArray(x, y, degrees=True)
        sky = self.wcs.pixel_to_world(x, y).icrs
        return sky.ra.deg, sky.dec.deg


def usual_reference(bands: Sequence[str]) -> int:
    """Choose the band in which sources are measured where none is named: r, or else the middle one."""
    return list(bands).index("r") if "r" in bands else len(bands) // 2


def _wing_radius(psf: npt.NDArray[np.float64]) -> float:
    """Return the radius (px) at which the mean over circles has 0.02 of the peak; NaN beyond the edge."""
    center = (np.array(psf.shape) - 1) / 2
    radii = np.arange(0.0, center.min(), 0.25)
    angles = np.linspace(0.0, 2.0 * math.pi, 24, endpoint=False)
    places = center[:, None, None] + radii[:, None] * np.stack([np.sin(angles), np.cos(angles)])[:, None]
    profile = ndimage.map_coordinates(psf, places, order=3, mode="nearest").mean(axis=1)
    low = np.flatnonzero(profile < 0.02 * profile[0])
    if not len(low) or not profile[0] > 0:
        return math.nan
    outer = int(low[0])
    share = (profile[outer - 1] - 0.02 * profile[0]) / (profile[outer - 1] - profile[outer])
    return float(radii[outer - 1] + 0.25 * share)


def gaussian_fwhm(psf: npt.ArrayLike) -> float:
    """Measure the FWHM (px) of the round Gaussian of the adaptive moments of a PSF (y, x).

    Moments weighted by the Gaussian that has them (Bernstein & Jarvis 2002,
    AJ 123, 583), by iteration. They vanish where the PSF is narrower than about
    1.6 px: then the width at half the peak. NaN for an image without a PSF.
    """
    pixels = np.asarray(psf, dtype=float)
    if not (np.isfinite(pixels).all() and pixels.max(initial=0.0) > 0):
        return math.nan
    y, x = np.indices(pixels.shape) - (np.array(pixels.shape)[:, None, None] - 1) / 2
    moments = np.diag([4.0, 4.0])
    center = np.zeros(2)
    for _ in range(200):
        offset = np.stack([y - center[0], x - center[1]])
        inverse = np.linalg.inv(moments)
        weight = pixels * np.exp(-0.5 * np.einsum("iyx,ij,jyx->yx", offset, inverse, offset))
        total = weight.sum()
        if not total > 0:
            return image_fwhm(pixels)
        step = 2.0 * (weight * offset).sum(axis=(1, 2)) / total
        # The weighted moments of a Gaussian are half its own.
        new = 2.0 * np.einsum("yx,iyx,jyx->ij", weight, offset, offset) / total
        if not (np.isfinite(new).all() and np.linalg.det(new) > 1e-4):
            return image_fwhm(pixels)
        change = np.abs(new - moments).max() / np.trace(new)
        moments, center = new, center + step
        if change < 1e-6 and np.abs(step).max() < 1e-4:
            break
    return float(2.0 * math.sqrt(2.0 * math.log(2.0)) * np.linalg.det(moments) ** 0.25)
