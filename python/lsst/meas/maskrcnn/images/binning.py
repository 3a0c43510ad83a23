# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of larger pixels, and the widths that PSFs have on them.

`astropy.nddata.block_reduce` sums squares in the same way, but takes longer to import than to do so.

A bright star or a large galaxy fills too much of a tile. On sums of 2 x 2 or
4 x 4 pixels it has the size of an ordinary source.
"""

from __future__ import annotations

__all__ = ["bin_image", "bin_psf_fwhm", "sum_squares"]

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .units import FWHM_PER_SIGMA

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

# Binned rows that are made at once: the scratch of a block stays small.
_BLOCK_PIXELS = 1_000_000


class BinnedImage(NamedTuple):
    """A multi-band image of larger pixels."""

    flux: npt.NDArray[np.float32]
    """Summed over squares, (band, y, x); 0 where not valid."""
    variance: npt.NDArray[np.float32] | None
    """Variance of these sums for noise that is not correlated, (band, y, x); 0 where not valid."""
    valid: BoolArray
    """Usable squares, (y, x)."""


def sum_squares(planes: npt.NDArray[Any], factor: int) -> npt.NDArray[np.float32]:
    """Sum the pixels of images in squares.

    Parameters
    ----------
    planes : `numpy.ndarray`
        Images, (..., y, x). Rows and columns that do not fill a square are
        left out.
    factor : `int`
        Pixels per square and axis.

    Returns
    -------
    sums : `numpy.ndarray`
        Float32, (..., y // factor, x // factor).

    Raises
    ------
    ValueError
        If the factor is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> sum_squares(np.arange(10.0).reshape(2, 5), 2).tolist()
    [[12.0, 20.0]]
    """
    _check_factor(factor)
    height, width = (side // factor for side in planes.shape[-2:])
    whole = planes[..., : height * factor, : width * factor]
    squares = whole.reshape(*whole.shape[:-2], height, factor, width, factor)
    return squares.sum(axis=(-3, -1), dtype=np.float32)


def bin_psf_fwhm(fwhm: npt.ArrayLike, factor: int) -> npt.NDArray[np.float64]:
    """Return the widths of a PSF on an image of binned pixels.

    Parameters
    ----------
    fwhm : array_like
        Full width at half maximum before, (band,), px; NaN where it is not
        known.
    factor : `int`
        Pixels per binned pixel and axis.

    Returns
    -------
    widths : `numpy.ndarray`
        In binned pixels. The variance of the larger pixel, (factor^2 - 1)/12,
        is added.

    Raises
    ------
    ValueError
        If the factor is below 1.

    Examples
    --------
    >>> bin_psf_fwhm([4.0], 2).round(3).tolist()
    [2.085]
    """
    _check_factor(factor)
    pixel = FWHM_PER_SIGMA**2 * (factor**2 - 1) / 12.0
    return np.sqrt(np.square(fwhm, dtype=float) + pixel) / factor


def bin_image(
    flux: FloatArray, variance: FloatArray | None, valid: BoolArray | None, factor: int
) -> BinnedImage:
    """Sum the pixels of a multi-band image in squares.

    Parameters
    ----------
    flux : `numpy.ndarray`
        Flux per pixel, (band, y, x).
    variance : `numpy.ndarray` or `None`
        Its variance, (band, y, x).
    valid : `numpy.ndarray` or `None`
        Usable pixels, bool, (y, x); `None` for all. A pixel whose flux is not
        finite in some band is never used.
    factor : `int`
        Pixels per square and axis.

    Returns
    -------
    binned : `BinnedImage`
        Of ceil(y / factor) rows and ceil(x / factor) columns; a square at the
        edge lacks the pixels that are not on the image.

    Raises
    ------
    ValueError
        If shapes disagree or the factor is below 1.

    Notes
    -----
    A square is usable if half of its pixels are. Each of the others counts
    with the mean of the usable ones, so that every sum is that of a whole
    square, and a hole is not fainter than its surroundings.
    """
    _check_factor(factor)
    if flux.ndim != 3:
        raise ValueError(f"flux has shape {flux.shape}; (band, y, x) is needed.")
    for name, array, shape in (("variance", variance, flux.shape), ("valid", valid, flux.shape[1:])):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; {shape} is needed beside flux.")
    bands, height, width = flux.shape
    rows, columns = -(-height // factor), -(-width // factor)
    out_flux = np.zeros((bands, rows, columns), dtype=np.float32)
    out_variance = None if variance is None else np.zeros((bands, rows, columns), dtype=np.float32)
    out_valid = np.zeros((rows, columns), dtype=bool)
    step = max(1, _BLOCK_PIXELS // max(1, columns * factor**2))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        block = slice(first * factor, min(last * factor, height))
        usable = np.asarray(np.isfinite(flux[:, block]).all(axis=0))
        if valid is not None:
            usable &= valid[block]
        counts = sum_squares(_padded(usable, factor), factor)
        full = 2.0 * counts >= factor**2
        # What each usable pixel stands for.
        weight = np.where(full, factor**2 / np.maximum(counts, 1.0), 0.0).astype(np.float32)
        out_valid[first:last] = full
        for band in range(bands):
            pixels = np.where(usable, flux[band, block], np.float32(0.0))
            out_flux[band, first:last] = weight * sum_squares(_padded(pixels, factor), factor)
            if variance is not None and out_variance is not None:
                pixels = np.where(usable, variance[band, block], np.float32(0.0))
                out_variance[band, first:last] = weight**2 * sum_squares(_padded(pixels, factor), factor)
    return BinnedImage(out_flux, out_variance, out_valid)


def _padded(plane: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Add rows and columns of zeros that make all squares whole."""
    extra = [-side % factor for side in plane.shape]
    return np.pad(plane, [(0, n) for n in extra]) if any(extra) else plane


def _check_factor(factor: int) -> None:
    if factor < 1:
        raise ValueError(f"factor is {factor}, wanted 1 or more")
