# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plots of a comparison of two deblenders."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..compare.comparison import FieldComparison
from ..compare.deblender import DeblendedField, FieldImages
from ..compare.summary import BLENDEDNESS_EDGES
from ..images.pixels import cut_square
from ..metrics.arrays import FloatArray
from ..metrics.binned import binned_statistics
from .overlay import lupton_rgb
from .plot_style import (
    DOUBLE_COLUMN,
    LABEL_SIZE,
    NOTE_SIZE,
    OKABE_ITO,
    TICK_SIZE,
    add_legend,
    blank_figure,
    curve_style,
    make_figure,
)
from .plots import ResidualPanel, plot_residuals

_MARGIN = 6
"""Pixels around a blend in its picture."""

_MIN_SIDE, _MAX_SIDE = 32, 256
"""Limits of the side of a picture (px)."""

_RESIDUAL_RANGE = 10.0
"""Residual at the ends of the colour scale, in units of the noise."""


@dataclass(frozen=True, eq=False)
class _Panel:
    """A blend of which two deblenders made different sources: one column of the gallery."""

    pictures: list[npt.NDArray[Any] | None]
    """The image and the models of both, uint8, (y, x, 3), and the residuals of both in units of the noise,
    (y, x); None where a deblender has no pixels."""
    peaks: list[FloatArray]
    """Positions (x, y) of the sources of each in the picture, (source, 2)."""
    caption: str
    size: int
    """Side of the picture (px)."""


def plot_flux_pairs(
    comparison: FieldComparison, bands: Sequence[str], instrumental: Collection[str] = ()
) -> Figure:
    """Draw the fluxes of two deblenders against each other, a panel per band, and their ratio below.

    Fluxes in ``instrumental`` bands are counts.
    """
    first, second = comparison.names
    number = max(len(bands), 1)
    figure, axes = make_figure(DOUBLE_COLUMN, 3.6, 2, number, height_ratios=(2.0, 1.0))
    sources = comparison.sources
    unknown = np.full(len(sources["group"]), np.nan)
    kinds = sources[f"class_{first}"]
    for column, band in enumerate(bands):
        top, bottom = axes[column], axes[number + column]
        a, b = (sources.get(f"flux_{band}_{name}", unknown) for name in comparison.names)
        both = comparison.matched & (a > 0) & (b > 0)
        for index, kind in enumerate(np.unique(kinds[both]).tolist()):
            chosen = both & (kinds == kind)
            style = curve_style(kind, index)
            for axis, y in ((top, a[chosen]), (bottom, a[chosen] / b[chosen])):
                axis.plot(b[chosen], y, style.marker, color=style.color, ms=3.0, ls="", label=kind)
        for axis in (top, bottom):
            axis.set_xscale("log")
        if both.any():
            fluxes = np.append(a[both], b[both])
            ends = [fluxes.min(), fluxes.max()]
            top.plot(ends, ends, color="0.5", lw=0.8)
            top.set_yscale("log")
            bottom.axhline(1.0, color="0.5", lw=0.8)
            bottom.set_ylim(0.4, 1.6)
        else:
            middle: dict[str, Any] = {"transform": top.transAxes, "ha": "center"}
            top.text(0.5, 0.5, "no fluxes in common", fontsize=NOTE_SIZE, **middle)
        top.set_title(band, fontsize=LABEL_SIZE)
        unit = "counts" if band in instrumental else "nJy"
        bottom.set_xlabel(f"{second} flux ({unit})")
        if column == 0 or bool(set(instrumental) & set(bands)):
            top.set_ylabel(f"{first} flux ({unit})")
    axes[number].set_ylabel("ratio")
    add_legend(axes[0], loc="upper left")
    return figure


def plot_residual_panels(
    comparison: FieldComparison, band: str, truths: dict[str, npt.NDArray[Any]] | None = None
) -> Figure:
    """Draw flux residuals by blendedness.

    With ``truths`` of `~lsst.meas.maskrcnn.compare.comparison.compare_with_truth`
    they are those of each deblender; without, or where the true blendedness is not
    known, the ratio of both by the blendedness of the first, or else of the second.
    """
    edges = np.asarray(BLENDEDNESS_EDGES)

    def panel(title: str, at: npt.NDArray[Any], residual: npt.NDArray[Any]) -> ResidualPanel:
        return ResidualPanel(title, at, residual, binned_statistics(at, residual, edges))

    if truths is not None and np.isfinite(truths["blendedness"]).any():
        counted = truths["counted"].astype(bool)
        at, unknown = truths["blendedness"][counted], np.full(len(counted), np.nan)
        residuals = [truths.get(f"flux_residual_{band}_{name}", unknown) for name in comparison.names]
        panels = [panel(name, at, one[counted]) for name, one in zip(comparison.names, residuals)]
        return plot_residuals(panels, y_label=f"Flux / true flux - 1 ({band})")
    first, second = comparison.names
    sources = comparison.sources
    at = sources[f"blendedness_{first}"]
    at = np.where(np.isfinite(at), at, sources[f"blendedness_{second}"])
    ratio = sources.get(f"flux_ratio_{band}", np.full(len(at), np.nan)) - 1.0
    return plot_residuals([panel(f"{first} to {second}", at, ratio)], y_label=f"Flux ratio - 1 ({band})")


def plot_disagreements(
    comparison: FieldComparison, images: FieldImages, number: int, bands: Sequence[str], band: str
) -> Figure:
    """Draw the blends on which two deblenders differ most, so many at most.

    One blend a column, the most significant first. Rows: image, model of each, in
    three bands, the reddest first, and residual of each in one band. Crosses are the
    sources.
    """
    panels = _cut_disagreements(comparison, images, number, bands, band)
    side = (DOUBLE_COLUMN - 0.4) / max(len(panels), 4)
    figure = blank_figure(0.4 + side * max(len(panels), 1), 0.75 + side * 5)
    if not panels:
        figure.text(0.5, 0.5, "no disagreement", ha="center", fontsize=LABEL_SIZE)
        return figure
    grid = figure.subplots(5, len(panels), squeeze=False)
    first, second = comparison.names
    labels = ("image", first, second, f"image - {first}", f"image - {second}")
    colors = (OKABE_ITO["sky"], OKABE_ITO["orange"])
    for column, panel in enumerate(panels):
        for row, picture in enumerate(panel.pictures):
            axis: Axes = grid[row, column]
            _draw_picture(axis, picture, is_residual=row >= 3)
            if row > 0:
                x, y = panel.peaks[(row - 1) % 2].T
                color = colors[row - 1] if row < 3 else "black"
                axis.plot(x, y, "+", color=color, ms=4.0, mew=0.8)
            limits = -0.5, panel.size - 0.5
            axis.set(xticks=[], yticks=[], xlim=limits, ylim=limits)
            if column == 0:
                axis.set_ylabel(labels[row], fontsize=TICK_SIZE)
        grid[4, column].set_xlabel(panel.caption, fontsize=NOTE_SIZE)
    return figure


def _draw_picture(axis: Axes, picture: npt.NDArray[Any] | None, is_residual: bool) -> None:
    if picture is None:
        axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", fontsize=NOTE_SIZE)
        return
    style: dict[str, Any] = {}
    if is_residual:
        axis.set_facecolor("0.16")
        style = {"cmap": "RdBu_r", "vmin": -_RESIDUAL_RANGE, "vmax": _RESIDUAL_RANGE}
    axis.imshow(picture, origin="lower", interpolation="nearest", **style)


def _cut_disagreements(
    comparison: FieldComparison, images: FieldImages, number: int, bands: Sequence[str], band: str
) -> list[_Panel]:
    """The blends of the largest significance; those without any difference are not among them."""
    if not {*bands, band} <= set(images.bands) or not images.usable.any():
        return []
    blends, significance = comparison.blends, comparison.blends["significance"]
    order = np.argsort(-significance, kind="stable")
    order = order[significance[order] > 0][:number]
    if not len(order):
        return []
    noise = np.array([np.sqrt(np.median(images.variances[one][images.usable])) for one in bands])
    sigma = np.sqrt(np.where(images.usable, images.variances[band], np.nan))
    painted = [_paint(field, images, {*bands, band}) for field in comparison.fields]
    residuals = [(images.images[band] - model[band]) / sigma if band in model else None for model in painted]
    panels = []
    for group in order.tolist():
        x0, y0, x1, y1 = (int(blends[name][group]) for name in ("x0", "y0", "x1", "y1"))
        size = int(np.clip(max(x1 - x0, y1 - y0) + 2 * _MARGIN, _MIN_SIDE, _MAX_SIDE))
        left, bottom = (x0 + x1 - size) // 2, (y0 + y1 - size) // 2
        place = left - images.origin[1], bottom - images.origin[0], size
        pictures: list[npt.NDArray[Any] | None] = [
            lupton_rgb(np.concatenate([cut_square(model[one][None], *place) for one in bands]), noise)
            if set(bands) <= set(model)
            else None
            for model in (images.images, *painted)
        ]
        pictures += [None if one is None else cut_square(one[None], *place)[0] for one in residuals]
        peaks = [
            field.positions[groups == group] - (left, bottom)
            for field, groups in zip(comparison.fields, comparison.groups)
        ]
        counts = " / ".join(str(blends[f"n_children_{name}"][group]) for name in comparison.names)
        caption = f"{counts} sources\n{significance[group]:.1f} sigma"
        panels.append(_Panel(pictures, peaks, caption, size))
    return panels


def _paint(field: DeblendedField, images: FieldImages, bands: set[str]) -> dict[str, FloatArray]:
    """Images of the templates, and of the deblended pixels where there is no template."""
    painted = {}
    for band in bands:
        template, share = field.templates.get(band), field.models.get(band)
        if template is not None and share is not None:
            template = template.filled(share)
        model = share if template is None else template
        if model is not None:
            painted[band] = model.paint(images.shape, images.origin)
    return painted
