# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Blends with their models: the image, the model, what is left over, and each child alone."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib.image
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import LogFormatter

from ..deblend.sources import SourceList
from ..images.pixels import cut_square
from ..metrics.arrays import BoolArray
from ..metrics.cutouts import BlendCutout, Stamp, add_models, blend_square, busiest_blends, child_label
from ..metrics.evaluation_metrics import EvaluationGallery
from .overlay import draw_outlines, lupton_rgb
from .plot_style import (
    CLASS_STYLES,
    LABEL_SIZE,
    NOTE_SIZE,
    TICK_SIZE,
    add_legend,
    add_minor_ticks,
    blank_figure,
    style_axes,
)

MOST_CHILDREN = 5
"""Children of a blend that are drawn, the brightest first."""
MODEL_RESIDUAL_RANGE = 5.0
"""Residual at the ends of the colour scale, in units of the noise."""

_COLUMNS, _PLOTTED = 3 + MOST_CHILDREN, 4
"""Pictures in a row, and the best and the worst blends that are drawn each."""
_Picture = tuple[str, npt.NDArray[Any], Sequence[Any], Sequence[bool]]
"""What is written above it, pixels, and outlines with their classes."""
_SIDE, _TEXT = 1.05, 0.36
"""Side of a picture, and height of what is written above it (inch)."""
_GAP = 0.85
"""Between two plots, one above the other (inch)."""


def plot_models(
    sources: SourceList, band: int | str = 0, n_blends: int = 5, truth: Mapping[int, float] | None = None
) -> Figure:
    """Draw the blends of the most sources.

    Parameters
    ----------
    sources : `~lsst.meas.maskrcnn.deblend.sources.SourceList`
        The sources; `ValueError` is raised if they have no models.
    band : `int` or `str`, optional
        Number or name of the band.
    n_blends : `int`, optional
        Most blends: rows of the figure.
    truth : `~collections.abc.Mapping` [`int`, `float`], optional
        True flux of a source, by its row.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        A row for each blend: image, models, their difference in units of the
        noise, and each child: the model, with its flux and error (nJy, or
        counts without a zero point).
    """
    models = sources.require_models()
    number = sources.image.bands.index(band) if isinstance(band, str) else band
    flux, error = models.flux[:, number], models.flux_errors[:, number]
    y, x = models.parameters[:, :2].T
    cutouts = []
    for members in busiest_blends([parent.members for parent in sources.parents], flux, n_blends):
        x0, y0, side = blend_square(x[members], y[members])
        variance = sources.image.variance
        sigma = np.full((side, side), sources.noise[number])
        if variance is not None:
            sigma = np.sqrt(cut_square(variance[[number]], x0, y0, side)[0])
        stamps: dict[int, Stamp] = {
            row: (top, left, pixels[[number]]) for row, (top, left, pixels) in enumerate(models.windows)
        }
        labels = {
            row: child_label(
                row + 1, models.is_star[row], flux[row], error[row], None if truth is None else truth.get(row)
            )
            for row in members.tolist()
        }
        cutout = BlendCutout(
            cut_square(sources.image.flux[[number]], x0, y0, side), sources.noise[[number]], None, (x0, y0)
        )
        cutouts.append(add_models(cutout, sigma, stamps, labels))
    figure, _ = _make_figure(max(len(cutouts), 1))
    unit = "nJy" if np.asarray(sources.image.calibrated)[number] else "counts"
    _draw_blends(figure, cutouts, sources.image.bands[number], unit)
    return figure


def plot_field(
    cutouts: Sequence[BlendCutout],
    band: str,
    magnitudes: Mapping[str, npt.NDArray[np.floating]],
    p_star: npt.NDArray[np.floating],
    true_magnitudes: npt.NDArray[np.floating] | None = None,
    instrumental: Collection[str] = (),
) -> Figure:
    """Draw blends, and beside them number counts and a colour-magnitude diagram.

    Fluxes that are written and counts are in ``band``, as are the true magnitudes.
    AB magnitudes by band, from blue to red, and probabilities of being a star are
    of N sources, (N,). Bands of no zero point are ``instrumental``: the magnitudes
    are so, and fluxes counts.
    """
    figure, right = _make_figure(max(len(cutouts), 3), beside=4.6)
    unit = "counts" if band in instrumental else "nJy"
    _draw_blends(figure, cutouts, band, unit, not set(magnitudes) & set(instrumental))
    upper, lower = figure.add_axes((*right[:2], right[2], right[3])), None
    if len(magnitudes) > 1:
        half = 0.5 * (right[3] - _GAP / figure.get_size_inches()[1])
        upper.set_position((right[0], right[1] + right[3] - half, right[2], half))
        lower = figure.add_axes((right[0], right[1], right[2], half))
        _draw_colors(figure, lower, magnitudes, band, p_star, instrumental)
    kind = "instrumental" if band in instrumental else "AB"
    _draw_counts(
        upper, magnitudes[band], p_star >= 0.5, f"{band} ({kind} magnitude of the model)", true_magnitudes
    )
    return figure


def _make_figure(rows: int, beside: float = 0.0) -> tuple[Figure, tuple[float, float, float, float]]:
    """Make a figure for rows of blends, with room (inch) on the right; its box is returned."""
    blends = _COLUMNS * _SIDE + 0.5
    width, height = blends + beside, rows * (_SIDE + _TEXT) + 0.75
    box = (blends + 0.65) / width, 0.6 / height, (beside - 1.5) / width, (height - 1.05) / height
    return blank_figure(width, height, 130, layout=None), box


def _draw_blends(
    figure: Figure, cutouts: Sequence[BlendCutout], band: str, unit: str, calibrated: bool = True
) -> None:
    rows = []
    for cutout in cutouts:
        pictures: list[_Picture] = [("image", _rgb(cutout, cutout.image, calibrated), (), ())]
        if cutout.model is not None:
            pictures.append(("models", _rgb(cutout, cutout.model, calibrated), (), ()))
        if cutout.residual is not None:
            pictures.append(("residual", cutout.residual, (), ()))
        for label, one in cutout.children[:MOST_CHILDREN]:
            pictures.append((label, _rgb(cutout, one, calibrated), (), ()))
        more = len(cutout.children) - MOST_CHILDREN
        rows.append((cutout.caption + (f"\n{more} fainter not shown" if more > 0 else ""), pictures))
    limit = f"{MODEL_RESIDUAL_RANGE:g}"
    about = (
        f"The blends with the most sources. Numbers are ids and total fluxes of models in {band} ({unit}). "
        f"Residuals in {band} from \N{MINUS SIGN}{limit} (blue) to {limit} (red) times the noise."
    )
    _draw_rows(figure, rows, about)


def _draw_rows(figure: Figure, rows: Sequence[tuple[str, Sequence[_Picture]]], about: str) -> None:
    """Draw rows of pictures with a text each, and one above all."""
    width, height = figure.get_size_inches()
    left, top = 0.4, height - 0.4
    about = about if rows else "There is no blend to draw."
    figure.text(left / width, 1.0 - 0.12 / height, about, fontsize=TICK_SIZE, va="top")
    grid = GridSpec(
        max(len(rows), 1),
        _COLUMNS,
        figure,
        left=left / width,
        right=(left + _COLUMNS * _SIDE) / width,
        top=(top - _TEXT) / height,
        bottom=(top - max(len(rows), 1) * (_SIDE + _TEXT)) / height,
        hspace=_TEXT / _SIDE * 1.03,
        wspace=0.04,
    )
    for row, (caption, pictures) in enumerate(rows):
        for column, (title, pixels, outlines, is_star) in enumerate(pictures):
            axis = figure.add_subplot(grid[row, column])
            axis.set(xticks=[], yticks=[])
            limits = -MODEL_RESIDUAL_RANGE, MODEL_RESIDUAL_RANGE
            axis.imshow(pixels, "RdBu_r", origin="lower", interpolation="nearest", clim=limits)
            draw_outlines(axis, outlines, is_star, 0.9)
            axis.set_title(title, fontsize=NOTE_SIZE - 0.5, pad=2.0, linespacing=1.05)
            for spine in axis.spines.values():
                spine.set_linewidth(0.4)
            if column == 0:
                axis.set_ylabel(caption, fontsize=NOTE_SIZE - 0.5, labelpad=3.0)


def plot_gallery(gallery: EvaluationGallery) -> Figure:
    """Draw up to four of the best and of the worst blends, a row each.

    They have the image, outlines of the truth and of what was found, and where there are
    any models, residual and children.
    """
    rows = []
    for kind in ("best", "worst"):
        for entry in [one for one in gallery.entries if one.kind == kind][:_PLOTTED]:
            image = _read_png(entry.image)
            pictures: list[_Picture] = [
                ("image", image, (), ()),
                ("truth", image, entry.truth_outlines, entry.truth_is_star),
                ("found", image, entry.detection_outlines, entry.detection_is_star),
            ]
            others = ("models", entry.model), ("residual", entry.residual), *entry.children[: _COLUMNS - 5]
            pictures += [(title, _read_png(png), (), ()) for title, png in others if png]
            rows.append((f"{kind}\n{entry.caption}", pictures))
    figure, _ = _make_figure(max(len(rows), 1))
    limit = f"{gallery.residual_range:g}"
    unit = "counts" if set(gallery.bands[1:2]) & set(gallery.instrumental) else "nJy"
    about = (
        f"The best and the worst blends: stars yellow, galaxies blue; model fluxes in {unit}. Residuals from "
        f"\N{MINUS SIGN}{limit} (blue) to {limit} (red) times the noise."
    )
    _draw_rows(figure, rows, about)
    return figure


def _read_png(picture: str) -> npt.NDArray[Any]:
    # Files have their first row at the top.
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(picture)), format="png")
    return np.asarray(pixels)[::-1]


def _rgb(cutout: BlendCutout, pixels: npt.NDArray[np.floating], calibrated: bool) -> npt.NDArray[np.uint8]:
    noise = cutout.noise
    if len(pixels) == 3:
        return lupton_rgb(pixels, noise, sky=0.0, calibrated=calibrated)
    noise = None if noise is None else np.repeat(noise, 3)
    return lupton_rgb(np.repeat(pixels, 3, axis=0), noise, sky=0.0, balance=(1.0, 1.0, 1.0))


def _draw_counts(
    axis: Axes,
    magnitudes: npt.NDArray[np.floating],
    is_star: BoolArray,
    name: str,
    truth: npt.NDArray[np.floating] | None,
) -> None:
    style_axes(axis)
    known = magnitudes[np.isfinite(magnitudes)]
    if not len(known):
        axis.text(0.5, 0.5, "no magnitude is known", ha="center", transform=axis.transAxes)
        return
    edges = np.arange(math.floor(2.0 * known.min()) / 2.0, known.max() + 0.5, 0.5).tolist()
    if truth is not None:
        axis.hist(truth, edges, histtype="stepfilled", color="0.85", label=f"true ({len(truth)})")
    for kind, chosen in (("galaxy", ~is_star), ("star", is_star)):
        stroke = CLASS_STYLES[kind].stroke | {"lw": 1.4}
        label = f"{kind} ({np.count_nonzero(chosen)})"
        axis.hist(magnitudes[chosen], edges, histtype="step", label=label, **stroke)
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.7)
    axis.yaxis.set_major_formatter(LogFormatter())
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.0, 0.4)))
    axis.set(xlabel=name, ylabel="Sources in 0.5 mag")
    axis.set_title("Number counts", fontsize=LABEL_SIZE)
    add_minor_ticks(axis)
    add_legend(axis, loc="upper left")


def _draw_colors(
    figure: Figure,
    axis: Axes,
    magnitudes: Mapping[str, npt.NDArray[np.floating]],
    band: str,
    p_star: npt.NDArray[np.floating],
    instrumental: Collection[str],
) -> None:
    style_axes(axis)
    blue, red = list(magnitudes)[0], band
    if blue == red:
        red = list(magnitudes)[1]
    color = magnitudes[blue] - magnitudes[red]
    # Stars are few and come last, so that galaxies do not hide them.
    order = np.argsort(p_star, kind="stable")
    points = axis.scatter(
        color[order], magnitudes[band][order], c=p_star[order], s=11, cmap="cividis", vmin=0, vmax=1, lw=0
    )
    known = np.isfinite(color) & np.isfinite(magnitudes[band])
    if known.any():
        low, high = np.quantile(color[known], [0.01, 0.99])
        axis.set_xlim(low - 0.3, high + 0.3)
    axis.invert_yaxis()
    axis.set_title("Colours and magnitudes by pStar", fontsize=LABEL_SIZE)
    color_unit = "mag" if {blue, red}.isdisjoint(instrumental) else "instrumental mag"
    unit = "instrumental mag" if band in instrumental else "mag"
    axis.set(xlabel=f"{blue} \N{MINUS SIGN} {red} ({color_unit})", ylabel=f"{band} ({unit})")
    add_minor_ticks(axis)
    box = axis.get_position()
    bar = figure.colorbar(points, cax=figure.add_axes((box.x1 + 0.008, box.y0, 0.009, box.height)))
    bar.set_label("pStar", fontsize=LABEL_SIZE)
    bar.ax.tick_params(labelsize=TICK_SIZE)
