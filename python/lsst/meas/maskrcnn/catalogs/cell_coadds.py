# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What cell coadds (``CellCoadd`` of ``lsst.images``) hold beyond an exposure: backgrounds and noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lsst.afw.image import ExposureF


def subtract_background(coadd: Any, name: str) -> None:
    """Subtract one of the backgrounds that a coadd carries in place of another, or none, in place.

    Raises a ValueError if there is no background of this name and it is not ``"none"``.
    """
    names = list(getattr(coadd, "backgrounds", None) or [])
    if name != "none" and name not in names:
        raise ValueError(f"has no background {name!r}; it has {', '.join(names) or 'none'}")
    if names:
        coadd.apply_background(None if name == "none" else name)


def noise_realization(coadd: Any) -> npt.NDArray[np.float32] | None:
    """Return the first realisation of the noise of a coadd, (y, x), nJy; `None` where it has none."""
    from astropy.units import nJy

    realizations = getattr(coadd, "noise_realizations", ())
    if not realizations:
        return None
    return np.asarray(realizations[0].array * coadd.unit.to(nJy), np.float32)


def read_cell_coadd(handle: Any, background: str | None) -> tuple[ExposureF, npt.NDArray[np.float32] | None]:
    """Read a cell coadd with one of its backgrounds from a Butler.

    Parameters
    ----------
    handle : `lsst.daf.butler.DeferredDatasetHandle`
        A dataset of storage class ``CellCoadd``, which the task may call ExposureF.
    background : `str` or `None`
        Its name, or ``"none"``; `None` leaves the one that is subtracted.

    Returns
    -------
    exposure : `lsst.afw.image.ExposureF`
        The coadd.
    noise : `numpy.ndarray` or `None`
        As of `noise_realization`.

    Raises
    ------
    ValueError
        Raised if there is no such background.
    """
    coadd = handle.get(storageClass="CellCoadd")
    if background is not None:
        try:
            subtract_background(coadd, background)
        except ValueError as error:
            raise ValueError(f"The coadd {handle.dataId} {error}; set config.background.") from error
    return coadd.to_legacy(), noise_realization(coadd)
