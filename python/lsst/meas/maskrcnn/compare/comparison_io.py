# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a comparison of deblenders reads and stores in forms of its own."""

from __future__ import annotations

__all__ = ["comparison_table", "read_models"]

from collections.abc import Mapping

import astropy.units as u
import numpy as np
from astropy.table import Table

from lsst.daf.butler import DeferredDatasetHandle

from .scarlet_models import ScarletModels, read_scarlet_models

_UNITS = {
    "flux": u.nJy,
    "x": u.pix,
    "y": u.pix,
    "separation": u.pix,
    "neighbor_distance": u.pix,
    "runtime_ms": u.ms,
    "color_difference": u.mag,
}
_NO_UNIT = ("flux_ratio", "flux_residual", "flux_overlap_fraction")


def comparison_table(columns: Mapping[str, np.ndarray]) -> Table:
    """Make a table with units.

    Parameters
    ----------
    columns : `~collections.abc.Mapping` [`str`, `numpy.ndarray`]
        Columns by name.

    Returns
    -------
    table : `astropy.table.Table`
        The same.
    """
    table = Table(dict(columns))
    for name in table.colnames:
        if name.startswith(_NO_UNIT):
            continue
        for start, unit in _UNITS.items():
            if name == start or name.startswith(f"{start}_"):
                table[name].unit = unit
    return table


def read_models(handle: DeferredDatasetHandle) -> ScarletModels:
    """Read scarlet's models from a Butler.

    Parameters
    ----------
    handle : `lsst.daf.butler.DeferredDatasetHandle`
        The dataset.

    Returns
    -------
    models : `ScarletModels`
        The models. The file is read as it is, so that scarlet itself need not
        be installed; where there is no file of its own, scarlet reads it.
    """
    uri = handle.butler.getURI(handle.ref)
    if uri.fragment:
        return read_scarlet_models(handle.get())
    with uri.as_local() as local:
        return read_scarlet_models(local.ospath)
