# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A gallery of blends: the image, the truth, what was found, what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.patheffects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from ..metrics.blends import BlendGroups
from .overlay import GALAXY_COLOR, STAR_COLOR, lupton_rgb, mask_outlines
from .plot_style import DOUBLE_COLUMN, LABEL_SIZE, NOTE_SIZE, TICK_SIZE

__all__ = ["GalleryPanel", "cut_panel", "group_boxes", "plot_gallery", "rank_groups"]


@dataclass(frozen=True)
class GalleryPanel:
    """A blend and what was made of it.

    Parameters
    ----------
    rgb : `numpy.ndarray`
        Picture of the cut-out, uint8, (y, x, 3), first row at the bottom.
    truth_outlines, detection_outlines : `list` [`list` [`numpy.ndarray`]]
        Lines (point, 2) of positions (x, y) in the cut-out's pixels for each
        true source and each detection, as `overlay.mask_outlines` makes them.
    truth_is_star, detection_is_star : `numpy.ndarray`
        Their classes, bool, (truth,) and (detection,).
    caption : `str`
        What is written under the column, one or two short lines.
    residual : `numpy.ndarray`, optional
        Image minus model in units of the noise, (y, x).
    truth_is_member, detection_is_member : `numpy.ndarray`, optional
        Which of them belong to the blend, bool, (truth,) and (detection,);
        the others are drawn dotted. By default all do.
    """

    rgb: NDArray[np.uint8]
    truth_outlines: list[list[NDArray[np.float64]]]
    detection_outlines: list[list[NDArray[np.float64]]]
    truth_is_star: NDArray[np.bool_]
    detection_is_star: NDArray[np.bool_]
    caption: str = ""
    residual: NDArray[np.floating] | None = None
    truth_is_member: NDArray[np.bool_] | None = None
    detection_is_member: NDArray[np.bool_] | None = None


def rank_groups(
    groups: BlendGroups, quality: ArrayLike, n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose the blends that were taken apart best and worst.

    Parameters
    ----------
    groups : `BlendGroups`
        The groups.
    quality : array_like
        Quality of each group, from `blends.group_quality`, (group,).
    n : `int`
        Number of blends of each sort.

    Returns
    -------
    best, worst : `numpy.ndarray`
        Groups of two truths or more, at most ``n`` each, none in both, the
        most extreme first; among equals the one of more truths.
    """
    quality = np.asarray(quality, dtype=float)
    blends = np.flatnonzero(groups.n_truth > 1)
    best = blends[np.lexsort((blends, -groups.n_truth[blends], -quality[blends]))]
    worst = blends[np.lexsort((blends, -groups.n_truth[blends], quality[blends]))]
    n_best = min(n, (len(blends) + 1) // 2)
    best = best[:n_best]
    return best, worst[~np.isin(worst, best)][:n]


def group_boxes(
    groups: BlendGroups,
    truth_boxes: ArrayLike,
    detection_boxes: ArrayLike,
) -> NDArray[np.int64]:
    """Compute the bounding boxes of groups.

    Parameters
    ----------
    groups : `BlendGroups`
        The groups.
    truth_boxes, detection_boxes : array_like
        Boxes [x0, y0, x1, y1] of the masks, half open (px), (truth, 4) and
        (detection, 4).

    Returns
    -------
    boxes : `numpy.ndarray`
        Boxes of the groups, int64, (group, 4).
    """
    truth, found = np.asarray(truth_boxes).reshape(-1, 4), np.asarray(detection_boxes).reshape(-1, 4)
    group = np.concatenate([groups.truth_group, groups.detection_group])
    boxes = np.concatenate([truth, found]).astype(np.int64)
    boxes, group = boxes[group >= 0], group[group >= 0]
    result = np.empty((groups.n_groups, 4), dtype=np.int64)
    result[:, :2], result[:, 2:] = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    np.minimum.at(result[:, :2], group, boxes[:, :2])
    np.maximum.at(result[:, 2:], group, boxes[:, 2:])
    return result


def cut_panel(
    image: NDArray[np.floating],
    box: ArrayLike,
    truth_masks: Sequence[NDArray[np.bool_]],
    truth_origins: ArrayLike,
    truth_is_star: ArrayLike,
    detection_masks: Sequence[NDArray[np.bool_]],
    detection_origins: ArrayLike,
    detection_is_star: ArrayLike,
    *,
    noise: ArrayLike | None = None,
    residual: NDArray[np.floating] | None = None,
    truth_is_member: ArrayLike | None = None,
    detection_is_member: ArrayLike | None = None,
    caption: str = "",
    margin: int = 8,
    min_size: int = 40,
) -> GalleryPanel:
    """Cut a blend out of an image.

    Parameters
    ----------
    image : `numpy.ndarray`
        Flux per pixel, (band, y, x), three bands, the reddest first.
    box : array_like
        The blend [x0, y0, x1, y1], half open (px).
    truth_masks : `~collections.abc.Sequence` [`numpy.ndarray`]
        Masks of the truths, bool, (y, x) each; all those that reach into the
        cut-out are drawn.
    truth_origins : array_like
        (y0, x0) of these masks, (truth, 2).
    truth_is_star : array_like
        Their classes, bool, (truth,).
    detection_masks : `~collections.abc.Sequence` [`numpy.ndarray`]
        Masks of the detections.
    detection_origins : array_like
        (y0, x0) of these masks, (detection, 2).
    detection_is_star : array_like
        Their classes, bool, (detection,).
    noise : array_like, optional
        Sky noise per band, (band,).
    residual : `numpy.ndarray`, optional
        Image minus model in units of the noise, (y, x).
    truth_is_member, detection_is_member : array_like, optional
        Which truths and detections belong to the blend, bool, (mask,).
    caption : `str`
        Caption.
    margin : `int`
        Pixels around the box.
    min_size : `int`
        Smallest side of the cut-out (px).

    Returns
    -------
    panel : `GalleryPanel`
        A square cut-out; what lies off the image is grey.
    """
    x0, y0, x1, y1 = (int(side) for side in np.asarray(box))
    size = max(x1 - x0 + 2 * margin, y1 - y0 + 2 * margin, min_size)
    left, bottom = (x0 + x1 - size) // 2, (y0 + y1 - size) // 2
    sky = None if noise is None else np.asarray(noise, dtype=float)
    rgb = lupton_rgb(cut_square(image, left, bottom, size), sky)

    def outlines(
        masks: Sequence[NDArray[np.bool_]],
        origins: ArrayLike,
        is_star: ArrayLike,
        is_member: ArrayLike | None,
    ) -> tuple[list[list[NDArray[np.float64]]], NDArray[np.bool_], NDArray[np.bool_] | None]:
        corners = np.asarray(origins, dtype=np.int64).reshape(-1, 2)
        shapes = np.array([mask.shape for mask in masks], dtype=np.int64).reshape(-1, 2)
        near = np.flatnonzero(
            (corners < (bottom + size, left + size)).all(axis=1)
            & (corners + shapes > (bottom, left)).all(axis=1)
        )
        lines = mask_outlines([masks[i] for i in near.tolist()], corners[near] - (bottom, left))
        member = None if is_member is None else np.asarray(is_member, dtype=bool)[near]
        return lines, np.asarray(is_star, dtype=bool)[near], member

    truth_lines, truth_star, truth_member = outlines(
        truth_masks, truth_origins, truth_is_star, truth_is_member
    )
    found_lines, found_star, found_member = outlines(
        detection_masks, detection_origins, detection_is_star, detection_is_member
    )
    left_over = None if residual is None else cut_square(residual[None], left, bottom, size)[0]
    return GalleryPanel(
        rgb, truth_lines, found_lines, truth_star, found_star, caption, left_over, truth_member, found_member
    )


def plot_gallery(
    best: Sequence[GalleryPanel],
    worst: Sequence[GalleryPanel],
    *,
    pixel_scale: float | None = None,
    width: float = DOUBLE_COLUMN,
    residual_range: float = 10.0,
) -> Figure:
    """Draw the best and the worst blends.

    Parameters
    ----------
    best, worst : `~collections.abc.Sequence` [`GalleryPanel`]
        The blends, one a column. Three or four of each fit a page.
    pixel_scale : `float`, optional
        Pixel scale (arcsec), for scale bars.
    width : `float`
        Width of the figure (inch).
    residual_range : `float`
        Residual at the ends of the colour scale, in units of the noise.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Rows: image, outlines of the truth, outlines of what was found, and
        the residual where there is one.
    """
    panels = [*best, *worst]
    rows = ["image", "truth", "found"]
    if any(panel.residual is not None for panel in panels):
        rows.append("residual")
    n = max(len(panels), 1)
    gap = 0.25 if len(best) and len(worst) else 0.0  # in panels
    label, top, bottom, between, bar = 0.24, 0.24, 0.5, 0.03, 0.5  # inch
    right = bar if "residual" in rows else 0.05
    side = (width - label - right - between * (n - 1)) / (n + gap)
    height = top + bottom + side * len(rows) + between * (len(rows) - 1)
    figure = Figure(figsize=(width, height), dpi=200.0, facecolor="white")
    FigureCanvasAgg(figure)
    drawn = None
    for column, panel in enumerate(panels):
        x = label + column * (side + between) + (gap * side if column >= len(best) else 0.0)
        for row, name in enumerate(rows):
            y = height - top - (row + 1) * side - row * between
            axis = figure.add_axes((x / width, y / height, side / width, side / height))
            axis.set_xticks([])
            axis.set_yticks([])
            shown = _draw_panel(axis, panel, name, residual_range)
            drawn = shown if shown is not None else drawn
            if name == "image":
                _draw_scale(axis, panel.rgb.shape[1], pixel_scale)
            if column == 0:
                axis.set_ylabel(name, fontsize=TICK_SIZE, labelpad=3.0)
            if row == len(rows) - 1 and panel.caption:
                axis.set_xlabel(panel.caption, fontsize=NOTE_SIZE, labelpad=2.5)
    for name, number, start in (("best", len(best), 0), ("worst", len(worst), len(best))):
        if number:
            x = label + start * (side + between) + (gap * side if name == "worst" else 0.0)
            middle = x + 0.5 * (number * (side + between) - between)
            figure.text(middle / width, 1.0 - 0.07 / height, name, fontsize=LABEL_SIZE, ha="center", va="top")
    if drawn is not None:
        x = width - bar + 0.06
        scale = figure.add_axes((x / width, bottom / height, 0.08 / width, side / height))
        figure.colorbar(drawn, cax=scale)
        scale.tick_params(labelsize=NOTE_SIZE, width=0.6, length=2.0, pad=1.5)
        scale.set_ylabel("residual / noise", fontsize=NOTE_SIZE, labelpad=1.0)
    handles = [
        Line2D([], [], color=STAR_COLOR, lw=1.6, label="star", path_effects=_outline_effect()),
        Line2D([], [], color=GALAXY_COLOR, lw=1.6, label="galaxy", path_effects=_outline_effect()),
    ]
    members = [part for panel in panels for part in (panel.truth_is_member, panel.detection_is_member)]
    if any(part is not None and not part.all() for part in members):
        handles.append(Line2D([], [], color="black", lw=1.0, ls=(0, (1, 1.5)), label="not of this blend"))
    figure.legend(
        handles=handles,
        loc="lower left",
        ncols=len(handles),
        fontsize=NOTE_SIZE,
        frameon=False,
        bbox_to_anchor=(label / width, 0.0),
        borderpad=0.2,
        borderaxespad=0.1,
    )
    return figure


def _draw_panel(axis: Axes, panel: GalleryPanel, name: str, residual_range: float) -> AxesImage | None:
    height, width = panel.rgb.shape[:2]
    shown = None
    if name == "residual":
        if panel.residual is None:
            axis.set_axis_off()
            return None
        axis.set_facecolor("#282828")  # off the image, as in the picture
        # Blue and red of equal lightness, white between: grey print shows the size, colour the sign.
        shown = axis.imshow(
            panel.residual,
            origin="lower",
            interpolation="nearest",
            cmap="RdBu_r",
            vmin=-residual_range,
            vmax=residual_range,
        )
    else:
        axis.imshow(panel.rgb, origin="lower", interpolation="nearest")
    if name in ("truth", "found"):
        outlines = panel.truth_outlines if name == "truth" else panel.detection_outlines
        is_star = panel.truth_is_star if name == "truth" else panel.detection_is_star
        is_member = panel.truth_is_member if name == "truth" else panel.detection_is_member
        if is_member is None:
            is_member = np.ones(len(is_star), dtype=bool)
        for member, style, line_width in ((False, (0, (1, 1.5)), 0.7), (True, "-", 0.9)):
            for star, color in ((False, GALAXY_COLOR), (True, STAR_COLOR)):
                chosen = np.flatnonzero((is_member == member) & (is_star == star))
                lines = [line for index in chosen for line in outlines[index]]
                drawn = LineCollection(lines, colors=color, linewidths=line_width, linestyles=[style])
                axis.add_collection(drawn, autolim=False)
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(-0.5, height - 0.5)
    for spine in axis.spines.values():
        spine.set_linewidth(0.5)
    return shown


def _draw_scale(axis: Axes, size: int, pixel_scale: float | None) -> None:
    extent = size * (1.0 if pixel_scale is None else pixel_scale)
    rounds = np.array([0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0])
    length = float(rounds[np.argmin(np.abs(np.log(rounds / (0.25 * extent))))])
    x = np.array([0.05, 0.05 + length / extent])
    axis.plot(x, [0.06, 0.06], color="white", lw=1.4, transform=axis.transAxes, solid_capstyle="butt")
    axis.text(
        x.mean(),
        0.085,
        f"{length:g} px" if pixel_scale is None else f'{length:g}"',
        color="white",
        fontsize=NOTE_SIZE,
        ha="center",
        va="bottom",
        transform=axis.transAxes,
        path_effects=[matplotlib.patheffects.withStroke(linewidth=1.2, foreground="black")],
    )


def _outline_effect() -> list[matplotlib.patheffects.AbstractPathEffect]:
    # Light colours chosen for a dark sky need an edge on white paper.
    return [matplotlib.patheffects.withStroke(linewidth=2.8, foreground="black")]


def cut_square(image: NDArray[np.floating], left: int, bottom: int, size: int) -> NDArray[np.float32]:
    """Cut a square out of an image, (band, y, x); pixels off the image are NaN."""
    cut = np.full((image.shape[0], size, size), np.nan, dtype=np.float32)
    height, width = image.shape[1:]
    y0, y1 = max(bottom, 0), min(bottom + size, height)
    x0, x1 = max(left, 0), min(left + size, width)
    if y1 > y0 and x1 > x0:
        cut[:, y0 - bottom : y1 - bottom, x0 - left : x1 - left] = image[:, y0:y1, x0:x1]
    return cut
