# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far fluxes and colours of what was found lie from the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .match_table import MatchTable, ab_magnitude, matched_rows

__all__ = ["color_residuals", "flux_residual"]


def flux_residual(flux_detected: ArrayLike, flux_truth: ArrayLike) -> NDArray[np.float64]:
    """Compare measured with true fluxes.

    Parameters
    ----------
    flux_detected, flux_truth : array_like
        Fluxes in the same unit, any shape.

    Returns
    -------
    residual : `numpy.ndarray`
        Detected over true flux, minus 1; NaN where the true flux is not
        positive.

    Examples
    --------
    >>> flux_residual([9.0, -1.0], [10.0, 10.0]).round(6).tolist()
    [-0.1, -1.1]
    """
    detected, truth = np.asarray(flux_detected, dtype=float), np.asarray(flux_truth, dtype=float)
    ratio = np.full(np.broadcast(detected, truth).shape, np.nan)
    np.divide(detected, truth, out=ratio, where=truth > 0.0)
    return ratio - 1.0


def color_residuals(
    table: MatchTable, bands: Sequence[str], is_star: bool | None = None, *, min_score: float | None = None
) -> dict[str, NDArray[np.float64]]:
    """Compare colours of neighbouring bands with the true ones.

    Parameters
    ----------
    table : `MatchTable`
        A match table with the fluxes of the bands.
    bands : `~collections.abc.Sequence` [`str`]
        Bands from blue to red; each pair of neighbours is a colour.
    is_star : `bool`, optional
        Only true stars (`True`) or galaxies (`False`).
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    residuals : `dict` [`str`, `numpy.ndarray`]
        By colour, ``g-r`` for instance: measured minus true (mag), (row,);
        NaN in rows that are not matched or lack a positive flux.

    Raises
    ------
    ValueError
        Raised for less than two bands.
    """
    if len(bands) < 2:
        raise ValueError(f"A colour needs two bands; given were {list(bands)}.")
    rows = matched_rows(table, is_star, min_score=min_score)
    # Colours of the models, where there are any.
    kind = "model" if np.isfinite(table[f"flux_model_{bands[0]}"]).any() else "detected"
    shift = {
        band: ab_magnitude(table[f"flux_{kind}_{band}"]) - ab_magnitude(table[f"flux_truth_{band}"])
        for band in bands
    }
    return {
        f"{blue}-{red}": np.where(rows, shift[blue] - shift[red], np.nan)
        for blue, red in zip(bands[:-1], bands[1:])
    }
