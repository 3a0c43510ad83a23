# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of larger pixels, and the widths that PSFs have on them.

`astropy.nddata.block_reduce` sums squares in the same way, but takes longer to import than to do so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .units import FWHM_PER_SIGMA


def sum_squares(planes: npt.NDArray[Any], factor: int) -> npt.NDArray[np.float32]:
    """Sum the pixels of images (..., y, x) in squares of ``factor`` by ``factor``.

    Rows and columns that do not fill a square are left out.

    Examples
    --------
    >>> import numpy as np
    >>> sum_squares(np.arange(10.0).reshape(2, 5), 2).tolist()
    [[12.0, 20.0]]
    """
    height, width = (side // factor for side in planes.shape[-2:])
    whole = planes[..., : height * factor, : width * factor]
    squares = whole.reshape(*whole.shape[:-2], height, factor, width, factor)
    return squares.sum(axis=(-3, -1), dtype=np.float32)


def bin_psf_fwhm(fwhm: npt.ArrayLike, factor: int) -> npt.NDArray[np.float64]:
    """Return the widths of a PSF, (band,), px, on an image of binned pixels; NaN where it is not known.

    The variance of the larger pixel, (factor^2 - 1)/12, is added.

    Examples
    --------
    >>> bin_psf_fwhm([4.0], 2).round(3).tolist()
    [2.085]
    """
    pixel = FWHM_PER_SIGMA**2 * (factor**2 - 1) / 12.0
    return np.sqrt(np.square(fwhm, dtype=float) + pixel) / factor
