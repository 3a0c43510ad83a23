# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plots of a comparison of two deblenders."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..compare.deblended_field import DeblendedField, FieldImages
from ..compare.deblender_comparison import Columns, FieldComparison
from ..compare.deblender_summary import BLENDEDNESS_EDGES
from ..metrics.binned import binned_statistics
from .overlay import lupton_rgb
from .plot_style import (
    DOUBLE_COLUMN,
    LABEL_SIZE,
    NOTE_SIZE,
    OKABE_ITO,
    TICK_SIZE,
    add_legend,
    curve_style,
    make_figure,
)
from .plots import ResidualPanel, plot_residuals

__all__ = [
    "DisagreementPanel",
    "cut_disagreements",
    "plot_disagreements",
    "plot_flux_pairs",
    "plot_residual_panels",
]


@dataclass(frozen=True, eq=False)
class DisagreementPanel:
    """A blend of which two deblenders made different things.

    Parameters
    ----------
    data : `numpy.ndarray`
        Picture, uint8, (y, x, 3), first row at the bottom.
    models : `list` [`numpy.ndarray` or `None`]
        Picture of what each deblender has there.
    residuals : `list` [`numpy.ndarray` or `None`]
        Image minus that in the reference band, in units of the noise, (y, x).
    peaks : `list` [`numpy.ndarray`]
        Positions (x, y) of the sources of each in the cut-out, (source, 2).
    caption : `str`
        What to write under it.
    names : `tuple` [`str`, `str`]
        Names of the deblenders.
    corner : `tuple` [`int`, `int`]
        (x0, y0) of the cut-out in the parent frame.
    """

    data: npt.NDArray[np.uint8]
    models: list[npt.NDArray[np.uint8] | None]
    residuals: list[npt.NDArray[np.float64] | None]
    peaks: list[npt.NDArray[np.float64]]
    caption: str
    names: tuple[str, str]
    corner: tuple[int, int] = field(default=(0, 0))


def plot_flux_pairs(comparison: FieldComparison, bands: Sequence[str]) -> Figure:
    """Draw the fluxes of one deblender against those of the other.

    Parameters
    ----------
    comparison : `FieldComparison`
        The comparison.
    bands : `~collections.abc.Sequence` [`str`]
        Bands, one panel each; those that one of the two lacks are empty.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Above fluxes, below their ratio.
    """
    first, second = comparison.names
    number = max(len(bands), 1)
    figure, axes = make_figure(DOUBLE_COLUMN, 3.6, 2, number, height_ratios=(2.0, 1.0))
    sources = comparison.sources
    for column, band in enumerate(bands):
        top, bottom = axes[column], axes[number + column]
        a = sources.get(f"flux_{band}_{first}", np.full(len(sources["group"]), np.nan))
        b = sources.get(f"flux_{band}_{second}", np.full(len(sources["group"]), np.nan))
        both = comparison.matched & (a > 0) & (b > 0)
        kinds = sources[f"class_{first}"]
        for index, kind in enumerate(np.unique(kinds[both]).tolist()):
            chosen = both & (kinds == kind)
            style = curve_style(kind, index)
            for axis, y in ((top, a), (bottom, np.divide(a, b, out=np.ones_like(a), where=both))):
                axis.plot(b[chosen], y[chosen], style.marker, color=style.color, ms=3.0, ls="", label=kind)
        for axis in (top, bottom):
            axis.set_xscale("log")
        if both.any():
            ends = np.array([min(a[both].min(), b[both].min()), max(a[both].max(), b[both].max())])
            top.plot(ends, ends, color="0.5", lw=0.8)
            top.set_yscale("log")
            bottom.axhline(1.0, color="0.5", lw=0.8)
            bottom.set_ylim(0.4, 1.6)
        else:
            top.text(
                0.5, 0.5, "no fluxes in common", transform=top.transAxes, ha="center", fontsize=NOTE_SIZE
            )
        top.set_title(band, fontsize=LABEL_SIZE)
        bottom.set_xlabel(f"{second} flux (nJy)")
    axes[0].set_ylabel(f"{first} flux (nJy)")
    axes[number].set_ylabel("ratio")
    add_legend(axes[0], loc="upper left")
    return figure


def plot_residual_panels(comparison: FieldComparison, band: str, truth: Columns | None = None) -> Figure:
    """Draw flux residuals by blendedness.

    Parameters
    ----------
    comparison : `FieldComparison`
        The comparison.
    band : `str`
        Band.
    truth : `dict` [`str`, `numpy.ndarray`], optional
        From `~.deblender_comparison.truth_columns`.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        With truth, the residual of each deblender; without, or where the
        truth knows no blendedness, the ratio of both by the blendedness that
        the first, or else the second, sees.
    """
    first, second = comparison.names
    edges = np.asarray(BLENDEDNESS_EDGES)
    if truth is not None and "blendedness" in truth and np.isfinite(truth["blendedness"]).any():
        counted = truth["counted"].astype(bool)
        at = truth["blendedness"][counted]
        panels = []
        for name in comparison.names:
            residual = truth.get(f"flux_residual_{band}_{name}", np.full(len(counted), np.nan))[counted]
            panels.append(ResidualPanel(name, at, residual, binned_statistics(at, residual, edges)))
        return plot_residuals(panels, y_label=f"Flux / true flux - 1 ({band})")
    sources = comparison.sources
    at = sources[f"blendedness_{first}"]
    at = np.where(np.isfinite(at), at, sources[f"blendedness_{second}"])
    ratio = sources.get(f"flux_ratio_{band}", np.full(len(at), np.nan)) - 1.0
    panel = ResidualPanel(f"{first} to {second}", at, ratio, binned_statistics(at, ratio, edges))
    return plot_residuals([panel], y_label=f"Flux ratio - 1 ({band})")


def cut_disagreements(
    comparison: FieldComparison,
    images: FieldImages,
    number: int,
    bands: Sequence[str],
    band: str,
    *,
    margin: int = 6,
    min_size: int = 32,
    max_size: int = 256,
) -> list[DisagreementPanel]:
    """Cut out the blends on which the deblenders differ most.

    Parameters
    ----------
    comparison : `FieldComparison`
        The comparison.
    images : `FieldImages`
        The images.
    number : `int`
        How many.
    bands : `~collections.abc.Sequence` [`str`]
        Three bands of the pictures, the reddest first.
    band : `str`
        Band of the residuals.
    margin : `int`
        Pixels around the blend.
    min_size, max_size : `int`
        Limits of the side (px).

    Returns
    -------
    panels : `list` [`DisagreementPanel`]
        By significance, the largest first. Blends of equal outcome are not
        among them.
    """
    if not set(bands) <= set(images.bands) or band not in images.bands:
        return []
    table = comparison.table
    significance = table["significance"]
    order = np.argsort(-significance, kind="stable")
    order = order[significance[order] > 0][:number]
    noise = np.array([np.sqrt(np.median(images.variances[one][images.usable])) for one in bands])
    if not len(order) or not np.isfinite(noise).all():
        return []
    painted = [_painted(field, images, {*bands, band}) for field in comparison.fields]
    panels = []
    for group in order.tolist():
        x0, y0, x1, y1 = (int(table[name][group]) for name in ("x0", "y0", "x1", "y1"))
        size = int(np.clip(max(x1 - x0, y1 - y0) + 2 * margin, min_size, max_size))
        left, bottom = (x0 + x1 - size) // 2, (y0 + y1 - size) // 2
        corner = (bottom - images.origin[0], left - images.origin[1])

        cut = functools.partial(_cut, corner=corner, size=size)

        models: list[npt.NDArray[np.uint8] | None] = []
        residuals: list[npt.NDArray[np.float64] | None] = []
        sigma = np.sqrt(np.where(images.usable, images.variances[band], np.nan))
        for model in painted:
            has = set(bands) <= set(model)
            models.append(lupton_rgb(np.stack([cut(model[one]) for one in bands]), noise) if has else None)
            left_over = (images.images[band] - model[band]) / sigma if band in model else None
            residuals.append(cut(left_over) if left_over is not None else None)
        peaks = []
        for field_, groups in zip(comparison.fields, comparison.groups):
            own = groups == group
            peaks.append(field_.positions[own] - (left, bottom))
        first, second = comparison.names
        caption = (
            f"{table[f'n_children_{first}'][group]} / {table[f'n_children_{second}'][group]} sources\n"
            f"{significance[group]:.1f} sigma"
        )
        data = lupton_rgb(np.stack([cut(images.images[one]) for one in bands]), noise)
        panels.append(
            DisagreementPanel(data, models, residuals, peaks, caption, comparison.names, (left, bottom))
        )
    return panels


def plot_disagreements(panels: Sequence[DisagreementPanel], *, residual_range: float = 10.0) -> Figure:
    """Draw the blends on which two deblenders differ most.

    Parameters
    ----------
    panels : `~collections.abc.Sequence` [`DisagreementPanel`]
        The blends, one a column.
    residual_range : `float`
        Residual at the ends of the colour scale, in units of the noise.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Rows: data, model of each, residual of each. Crosses are the sources.
    """
    number = max(len(panels), 1)
    width = DOUBLE_COLUMN
    side = (width - 0.4) / max(number, 4)
    figure = Figure(
        figsize=(0.4 + side * number, 0.75 + side * 5), dpi=200.0, facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(5, number, squeeze=False)
    if not panels:
        for unused in grid.ravel():
            unused.set_axis_off()
        figure.text(0.5, 0.5, "no disagreement", ha="center", fontsize=LABEL_SIZE)
        return figure
    first, second = panels[0].names
    rows = ("data", first, second, f"data - {first}", f"data - {second}")
    colors = (OKABE_ITO["sky"], OKABE_ITO["orange"])
    for column, panel in enumerate(panels):
        pictures = [panel.data, *panel.models, *panel.residuals]
        for row, picture in enumerate(pictures):
            axis: Axes = grid[row, column]
            axis.set_xticks([])
            axis.set_yticks([])
            if picture is None:
                axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", fontsize=NOTE_SIZE)
            elif row >= 3:
                axis.set_facecolor("0.16")
                axis.imshow(
                    picture,
                    origin="lower",
                    cmap="RdBu_r",
                    vmin=-residual_range,
                    vmax=residual_range,
                    interpolation="nearest",
                )
            else:
                axis.imshow(picture, origin="lower", interpolation="nearest")
            size = panel.data.shape[0]
            for side_index in (0, 1):
                if row in (1 + side_index, 3 + side_index) and len(panel.peaks[side_index]):
                    x, y = panel.peaks[side_index].T
                    axis.plot(x, y, "+", color=colors[side_index] if row < 3 else "black", ms=4.0, mew=0.8)
            axis.set_xlim(-0.5, size - 0.5)
            axis.set_ylim(-0.5, size - 0.5)
            if column == 0:
                axis.set_ylabel(rows[row], fontsize=TICK_SIZE)
        grid[4, column].set_xlabel(panel.caption, fontsize=NOTE_SIZE)
    return figure


def _painted(
    source: DeblendedField, images: FieldImages, bands: set[str]
) -> dict[str, npt.NDArray[np.float64]]:
    painted = {}
    for band in sorted(bands):
        model = source.templates.get(band)
        share = source.models.get(band)
        if model is not None and share is not None:
            # What has no template is shown as it is.
            model = model.filled(share)
        model = share if model is None else model
        if model is not None:
            painted[band] = model.paint(images.shape, images.origin)
    return painted


def _cut(image: npt.NDArray[np.floating], corner: tuple[int, int], size: int) -> npt.NDArray[np.float64]:
    cut = np.full((size, size), np.nan)
    bottom, left = corner
    y0, y1 = max(bottom, 0), min(bottom + size, image.shape[0])
    x0, x1 = max(left, 0), min(left + size, image.shape[1])
    if y1 > y0 and x1 > x0:
        cut[y0 - bottom : y1 - bottom, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return cut
