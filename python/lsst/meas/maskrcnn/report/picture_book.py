# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pages of pictures: fields in colour, plain and with the outlines of their
sources side by side, for a person to judge.
"""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from ..images.files import write_atomically
from ..metrics.arrays import BoolArray
from .overlay import GALAXY_COLOR, STAR_COLOR, draw_outlines, draw_scale_bar, mask_outlines
from .plot_style import blank_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_DPI = 100.0
# Pixels of the page.
_MARGIN = 12
_GAP = 6
_HEADER = 62
_FOOT = 14
_LINE = 14
_CHARACTER = 5.6
_DASHES = (0, (2.0, 2.0))


@dataclass(frozen=True)
class PageField:
    """One field on a page."""

    rgb: NDArray[np.uint8]  # picture, first row at the bottom, (y, x, 3)
    pixel_scale: float  # arcsec
    caption: str = ""  # what to write below; it is wrapped
    masks: list[BoolArray] = field(default_factory=list)  # (y, x) each
    # (y0, x0) of the first pixel of each mask, (N, 2).
    origins: NDArray[np.integer] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    is_star: BoolArray = field(default_factory=lambda: np.zeros(0, bool))
    # Sources of which there is too little to ask for them, (N,).
    flagged: BoolArray = field(default_factory=lambda: np.zeros(0, bool))
    has_truth: bool = False  # whether the sources are known; there may be none

    def __post_init__(self) -> None:
        if self.rgb.ndim != 3 or self.rgb.shape[2] != 3 or self.rgb.dtype != np.uint8:
            raise ValueError(
                "A picture must be of shape (height, width, 3) and uint8; given was "
                f"{self.rgb.shape}, {self.rgb.dtype}."
            )
        numbers = len(self.masks), len(self.origins), len(self.is_star), len(self.flagged)
        if len(set(numbers)) != 1:
            raise ValueError(
                "Masks, origins, classes and flags must be of one number; given were "
                f"{', '.join(map(str, numbers))}."
            )


def save_page(
    path: str | os.PathLike[str],
    fields: Sequence[PageField],
    *,
    title: str = "",
    subtitle: str = "",
    outlines: bool = True,
    panel: int = 512,
    colors: int | None = None,
) -> None:
    """Write a page of fields, in reading order, to a PNG file; an old one is replaced by the complete one.

    With ``outlines``, and if any field has a truth, a second picture with the
    outlines stands beside each, and there are two fields in a row, else three.
    ``panel`` is the longest side of a picture (px); for a small file, the page can
    be reduced to some ``colors``, 2 to 256.
    """
    if not fields:
        raise ValueError("A page needs at least one field.")
    if panel < 64 or not 2 <= (colors or 2) <= 256:
        raise ValueError(
            f"Pictures of {panel} px and a palette of {colors} are not possible; give 64 px or more and 2 to "
            "256 colours."
        )
    two = outlines and any(entry.has_truth for entry in fields)
    columns = min(len(fields), 2 if two else 3)
    rows = -(-len(fields) // columns)
    # All places have the size that the largest needs.
    sizes = np.array([_panel_size(entry.rgb.shape[:2], panel) for entry in fields])
    height, width = sizes.max(axis=0).tolist()
    cell_width = 2 * width + _GAP if two else width
    captions = [textwrap.wrap(entry.caption, int(cell_width / _CHARACTER)) for entry in fields]
    caption_height = _LINE * max(len(lines) for lines in captions) + 8
    page_width = 2 * _MARGIN + columns * cell_width + (columns - 1) * 3 * _GAP
    page_height = _HEADER + rows * (height + caption_height) + _FOOT
    figure = blank_figure(page_width / _DPI, page_height / _DPI, _DPI, layout=None)
    left = _MARGIN / page_width
    figure.text(left, 1.0 - 22.0 / page_height, title, fontsize=12, weight="bold", va="center")
    narrow = page_width < 560
    figure.text(left, 1.0 - 44.0 / page_height, subtitle, fontsize=6 if narrow else 8, va="center")
    if two and not narrow:
        _draw_legend(figure, page_width, page_height)
    for index, (entry, (h, w), lines) in enumerate(zip(fields, sizes.tolist(), captions)):
        row, column = divmod(index, columns)
        x = _MARGIN + column * (cell_width + 3 * _GAP)
        top = _HEADER + row * (height + caption_height)
        for number in range(2 if two and entry.has_truth else 1):
            left, bottom = (x + number * (width + _GAP)) / page_width, 1.0 - (top + h) / page_height
            axes = figure.add_axes((left, bottom, w / page_width, h / page_height))
            _draw_field(axes, entry, w, outlines=number == 1)
        place = x / page_width, 1.0 - (top + height + 4.0) / page_height
        figure.text(*place, "\n".join(lines), fontsize=7.5, va="top", linespacing=1.2)
    buffer = io.BytesIO()
    _page_image(figure, colors).save(buffer, format="PNG", optimize=True)
    write_atomically(Path(path), buffer.getvalue())


def _page_image(figure: Figure, colors: int | None) -> Image.Image:
    """Draw a figure, and reduce its colours if it is asked for."""
    canvas: Any = figure.canvas
    canvas.draw()
    page = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    if colors is not None:
        # Colours that cover all of the range, since most pixels are dark sky; mixed so that wings of galaxies
        # have no steps.
        palette = page.quantize(colors, method=Image.Quantize.MAXCOVERAGE)
        page = page.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return page


def _draw_field(axes: Axes, entry: PageField, width: int, *, outlines: bool) -> None:
    """Draw a field as a picture of some width (px), with outlines or with a scale bar."""
    axes.imshow(entry.rgb, origin="lower", interpolation="antialiased", aspect="auto")
    inch_per_pixel = width / _DPI / entry.rgb.shape[1]
    if outlines:
        # Lines of about one and a half image pixels, within what can be seen and what hides nothing.
        line_width = float(np.clip(1.5 * 72.0 * inch_per_pixel, 0.7, 1.4))
        lines = mask_outlines(entry.masks, entry.origins)
        # Flagged sources are thin and dashed, and come first: they matter less.
        for chosen, style in (
            (np.flatnonzero(entry.flagged), {"linestyles": [_DASHES], "alpha": 0.8}),
            (np.flatnonzero(~entry.flagged), {"alpha": 0.95}),
        ):
            part = 0.5 * line_width if "linestyles" in style else line_width
            draw_outlines(axes, [lines[i] for i in chosen], entry.is_star[chosen], part, **style)
    axes.set_xlim(-0.5, entry.rgb.shape[1] - 0.5)
    axes.set_ylim(-0.5, entry.rgb.shape[0] - 0.5)
    if not outlines:
        draw_scale_bar(axes, entry.pixel_scale, entry.rgb.shape[:2], inch_per_pixel)
    axes.set_axis_off()


def _panel_size(shape: tuple[int, ...], panel: int) -> tuple[int, int]:
    """Return height and width on the page of a picture (y, x)."""
    scale = panel / max(shape)
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _draw_legend(figure: Figure, page_width: int, page_height: int) -> None:
    handles = [
        Line2D([], [], color=STAR_COLOR, lw=1.6, label="star"),
        Line2D([], [], color=GALAXY_COLOR, lw=1.6, label="galaxy"),
        Line2D([], [], color="white", lw=0.9, ls=_DASHES, label="flagged"),
    ]
    anchor = 1.0 - _MARGIN / page_width, 1.0 - 0.5 * _HEADER / page_height
    place: dict[str, Any] = {"loc": "center right", "bbox_to_anchor": anchor, "borderaxespad": 0.0}
    style: dict[str, Any] = {"facecolor": "black", "edgecolor": "black", "framealpha": 0.85}
    figure.legend(handles=handles, ncols=3, fontsize=8, labelcolor="white", **place, **style)
