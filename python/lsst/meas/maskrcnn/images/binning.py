# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of larger pixels, and the widths that PSFs have on them.

`astropy.nddata.block_reduce` sums squares in the same way, but takes longer to import than to do so.
"""

from __future__ import annotations

__all__ = ["bin_psf_fwhm", "sum_squares"]

from typing import Any

import numpy as np
import numpy.typing as npt

from .units import FWHM_PER_SIGMA


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


def _check_factor(factor: int) -> None:
    if factor < 1:
        raise ValueError(f"factor is {factor}, wanted 1 or more")
