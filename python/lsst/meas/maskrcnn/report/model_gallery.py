# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Blends with their models: the image, the model, what is left over, and each child alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from ..deblend.sources import SourceList
from .gallery import cut_square
from .plot_style import DOUBLE_COLUMN, NOTE_SIZE, make_figure

_MOST_CHILDREN = 4
_MARGIN, _LEAST_SIDE = 4, 28
"""Pixels around the peaks of a blend, and the least side of a picture (px)."""
_RANGE = 5.0
"""Residual at the ends of the colour scale, in units of the noise."""


def plot_models(
    sources: SourceList, band: int | str = 0, n_blends: int = 5, truth: Mapping[int, float] | None = None
) -> Figure:
    """Draw the brightest blends of two to four sources.

    Parameters
    ----------
    sources : `~lsst.meas.maskrcnn.deblend.sources.SourceList`
        The sources, with models.
    band : `int` or `str`, optional
        Number or name of the band.
    n_blends : `int`, optional
        Most blends: rows of the figure.
    truth : `~collections.abc.Mapping` [`int`, `float`], optional
        True flux of a source (nJy), by its row.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        A row for each blend: image, models, their difference in units of the
        noise, and each child: the model, with its flux and error (nJy).

    Raises
    ------
    ValueError
        Raised if there are no models.
    """
    models = sources.require_models()
    number = sources.image.bands.index(band) if isinstance(band, str) else band
    image = sources.image.flux[number]
    sigma = np.full(image.shape, sources.noise[number])
    if sources.image.variance is not None:
        sigma = np.sqrt(np.maximum(sources.image.variance[number], 0.0))
    residual = sources.residual(model=True)[number]
    blends = [parent.members for parent in sources.parents if 1 < len(parent) <= _MOST_CHILDREN]
    blends.sort(key=lambda members: -float(np.nansum(models.flux[members, number])))
    rows = max(min(n_blends, len(blends)), 1)
    side = DOUBLE_COLUMN / (3 + _MOST_CHILDREN)
    figure, axes = make_figure(DOUBLE_COLUMN, 1.18 * side * rows, rows, 3 + _MOST_CHILDREN)
    for axis in axes:
        axis.set_axis_off()
    for row, members in enumerate(blends[:rows]):
        places = models.parameters[members, :2]
        middle = 0.5 * (places.min(axis=0) + places.max(axis=0))
        size = int(max(np.ptp(places, axis=0).max() + 6 * _MARGIN, _LEAST_SIDE))
        corner = np.rint(middle - 0.5 * size).astype(int).tolist()

        def cut(
            pixels: npt.NDArray[np.floating], corner: list[int] = corner, size: int = size
        ) -> npt.NDArray:
            return cut_square(pixels[None], corner[1], corner[0], size)[0]

        with np.errstate(invalid="ignore", divide="ignore"):
            left_over = cut(residual) / cut(sigma)
        pictures = [("image", cut(image)), ("models", cut(image - residual)), ("residual", left_over)]
        for member in members.tolist():
            flux, error = models.flux[member, number], models.flux_errors[member, number]
            title = f"{'star' if models.is_star[member] else 'galaxy'} {flux:.0f} ± {error:.0f}"
            if truth is not None and member in truth:
                title += f"\ntrue {truth[member]:.0f}"
            pictures.append((title, cut(sources.child_image(member, number, model=True))))
        noise, top = float(np.nanmedian(cut(sigma))), float(np.nanmax(pictures[0][1]))
        for axis, (title, pixels) in zip(axes[row * (3 + _MOST_CHILDREN) :], pictures, strict=False):
            if title == "residual":
                axis.imshow(pixels, origin="lower", cmap="RdBu_r", vmin=-_RANGE, vmax=_RANGE)
            else:
                shown = np.arcsinh(pixels / (2.0 * noise))
                axis.imshow(
                    shown, origin="lower", cmap="gray", vmin=-1.0, vmax=np.arcsinh(top / (2.0 * noise))
                )
            axis.set_title(title, fontsize=NOTE_SIZE, pad=2.0)
    name = sources.image.bands[number]
    note = f"{name}: fluxes in nJy; residuals from -{_RANGE:g} to {_RANGE:g} times the noise"
    figure.suptitle(note, fontsize=NOTE_SIZE)
    return figure
