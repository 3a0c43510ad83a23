# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Resampling of FITS images to the pixel grid of another."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from scipy.interpolate import RectBivariateSpline
from scipy.ndimage import map_coordinates, spline_filter

from .fits_files import FitsImageError
from .fits_wcs import pixel_scale_of

if TYPE_CHECKING:
    from .fits_images import BandImage

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

_STEP = 32
"""Distance of the positions (px) for which world coordinates are computed; others are interpolated."""

_ROWS = 256
"""Rows that are resampled at once."""


class PixelMap:
    """Where the pixels of one grid lie on another.

    Parameters
    ----------
    target : `astropy.wcs.WCS`
        World coordinates of the grid that is wanted.
    target_shape : `tuple` [`int`, `int`]
        Its height and width, px.
    source : `astropy.wcs.WCS`
        World coordinates of the images that there are.
    source_shape : `tuple` [`int`, `int`]
        Their height and width, px.

    Notes
    -----
    Images are interpolated by cubic splines, which makes the noise of
    neighbours correlated; variances, whose pixels stay those of single
    pixels, linearly; flags are those of the nearest pixel.
    """

    def __init__(
        self, target: WCS, target_shape: tuple[int, int], source: WCS, source_shape: tuple[int, int]
    ):
        self.shape = target_shape
        # One position beyond the image on every side, and four at least, as a cubic spline needs.
        y, x = (_STEP * np.arange(-1.0, max(-(-side // _STEP) + 2, 3)) for side in target_shape)
        places = _positions(source, target.pixel_to_world(*np.meshgrid(x, y)), source_shape)
        self._places = [RectBivariateSpline(y, x, plane) for plane in places[::-1]]
        self.area = (pixel_scale_of(target, target_shape) / pixel_scale_of(source, source_shape)) ** 2
        """Area of a pixel of the target in pixels of the source (`float`)."""

    def flux(self, image: FloatArray, known: BoolArray) -> tuple[FloatArray, BoolArray]:
        """Resample counts in pixels (y, x), of which some are known; returns counts, and what is known."""
        filled = np.where(known, image, 0.0)
        there = self._sample(known.astype(np.float32), 1) > 0.999
        return self._sample(filled, 3) * self.area, there

    def variance(self, image: FloatArray, known: BoolArray) -> FloatArray:
        """Resample variances of counts in pixels (y, x), of which some are known."""
        filled = np.where(known, image, np.median(image[known]) if known.any() else 1.0)
        # The noise of a sum over pixels is kept.
        return self._sample(filled, 1) * self.area

    def flags(self, image: BoolArray) -> BoolArray:
        """Resample flags (y, x)."""
        return np.asarray(self._sample(image.astype(np.float32), 0) > 0.5)

    def _sample(self, image: FloatArray, order: int) -> FloatArray:
        height, width = self.shape
        # Places in a pixel, as many along each side as pixels of the source fit in.
        count = max(1, math.ceil(math.sqrt(self.area) - 0.1)) if order else 1
        inner = (np.arange(count) + 0.5) / count - 0.5
        columns = (np.arange(width)[:, None] + inner).ravel()
        result = np.empty(self.shape, image.dtype)
        smooth = spline_filter(image, order, image.dtype) if order > 1 else image
        for start in range(0, height, _ROWS):
            part = np.arange(start, min(start + _ROWS, height))
            rows = (part[:, None] + inner).ravel()
            places = np.stack([place(rows, columns) for place in self._places])
            values = map_coordinates(smooth, places, order=order, mode="constant", cval=0.0, prefilter=False)
            result[part] = values.reshape(len(part), count, width, count).mean(axis=(1, 3))
        return result


def _positions(wcs: WCS, sky: SkyCoord, shape: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Find the pixels (x, y) of positions on the sky, which may lie outside of an image of a shape (y, x).

    Distortions hold for the image and its neighbourhood: where they cannot be inverted, positions
    without them tell that this is far outside.
    """
    plain = wcs.deepcopy()
    plain.sip = plain.cpdis1 = plain.cpdis2 = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, y = wcs.world_to_pixel(sky)
        off = wcs.pixel_to_world(x, y).separation(sky).arcsec
    wrong = ~(off < 0.01 * pixel_scale_of(wcs, shape))
    x, y = (np.where(wrong, *pair) for pair in zip(plain.world_to_pixel(sky), (x, y)))
    inside = (x > -1) & (y > -1) & (x < shape[1]) & (y < shape[0])
    if not (np.isfinite(x) & np.isfinite(y)).all() or (wrong & inside).any():
        raise ValueError("world coordinates cannot be computed there")
    return x, y


def resample_band(entry: BandImage, own: WCS, wcs: WCS, shape: tuple[int, int]) -> BandImage:
    """Bring a band from world coordinates of its own to a grid, where they are others."""
    if own is wcs:
        return entry
    try:
        pixels = PixelMap(wcs, shape, own, (entry.pixels.shape[0], entry.pixels.shape[1]))
        image, finite = pixels.flux(entry.pixels, entry.finite)
        if not finite.any():
            raise ValueError("no pixel is common")
    except ValueError as error:
        raise FitsImageError(f"{entry.name} shows no part of the first band's sky: {error}.") from error
    entry.notes.append(
        f"resampled to the grid of the first band ({pixels.area:.3g} of its pixels a pixel), which makes "
        "the noise of neighbours correlated."
    )
    return dataclasses.replace(
        entry,
        pixels=image,
        finite=finite,
        good=pixels.flags(entry.good) & finite,
        variance=pixels.variance(entry.variance, entry.finite),
        planes={plane: pixels.flags(values) for plane, values in entry.planes.items()},
        sigma=entry.sigma * math.sqrt(pixels.area),
        psf=None,
    )
