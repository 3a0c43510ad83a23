# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The picture: an image in colour with the outlines of what was found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import astropy.units as u
import contourpy
import matplotlib.patheffects
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.visualization import make_lupton_rgb
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from scipy import ndimage

from ..metrics.arrays import BoolArray, Float32Array, FloatArray
from .plot_style import blank_figure

if TYPE_CHECKING:
    from astropy.wcs import WCS
    from numpy.typing import NDArray

# The two differ in hue and in lightness for all common kinds of colour vision (near the set of Okabe & Ito
# 2008), and neither is a colour that stars or galaxies have.
STAR_COLOR = "#F0E442"
GALAXY_COLOR = "#56D3F2"

_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_BOTTOM, _MARGIN_TOP = 1.0, 0.2, 1.1, 0.45  # inch
_KEY_HEIGHT = 0.55
"""Height of the strip below the picture with its key, scale and compass (inch)."""
_DPI = 100.0
_BLACK = 0.5
"""How far below the sky black lies, in units of its noise."""
# Ids are written beside so many sources at most.
_MAX_LABELS = 150
_NO_DATA, _HATCH_COLOR = 40, "#6b6b6b"
"""Grey level of pixels without data in any band, and the colour of the lines over areas of them."""
_LEAST_AREA = 5
"""Side of the smallest areas without data that are marked, larger than single bad pixels (px)."""


def lupton_rgb(
    image: NDArray[np.floating],
    noise: NDArray[np.floating] | None = None,
    *,
    sky: float | None = None,
    stretch_sigma: float = 6.0,
    softening: float = 4.3,
    balance: Sequence[float] = (0.7, 1.0, 1.35),
    calibrated: bool = True,
) -> NDArray[np.uint8]:
    """Combine three bands into a picture that keeps colours (Lupton et al. 2004, PASP 116, 133).

    The picture is uint8, (y, x, 3). The image is flux per pixel, (band, y, x), the
    reddest band first. A pixel that is not finite in a band has the mean of the other
    bands there, above their skies, and is dark grey if it is finite in none. Noise and
    level of the sky per band, (band,), are by default estimated from the pixels. The
    stretch is in units of the noise, and ``softening`` is Q of
    `astropy.visualization.make_lupton_rgb`. The default weights of the bands make a
    flat spectrum in f_lambda (a star of about 7000 K) roughly white from images in
    f_nu of z, r, g; bands that are not ``calibrated`` to one unit are each in units of
    their noise instead.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"A colour picture needs an image of shape (3, height, width); given was {image.shape}."
        )
    known = np.isfinite(image)
    pixels = np.where(known, image, 0.0).astype(np.float32)
    level, sigma = _sky(pixels, known)
    sigma = sigma if noise is None else np.asarray(noise, dtype=np.float32)
    weights = np.asarray(balance, dtype=np.float32)
    if not calibrated:
        measured = np.isfinite(sigma) & (sigma > 0.0)
        weights = np.where(measured, 1.0 / np.where(measured, sigma, 1.0), 1.0).astype(np.float32)
    scaled = pixels * weights[:, None, None]
    level = (level if sky is None else np.full(3, sky, np.float32)) * weights
    variances = (sigma * weights)[np.isfinite(sigma)] ** 2
    mean_sigma = float(np.sqrt(variances.mean())) if variances.size else 0.0
    if mean_sigma <= 0.0:
        # A noiseless or constant image: any scale will do that shows its range.
        peak = float(np.abs(scaled).max(initial=0.0))
        mean_sigma = peak / 1000.0 if peak > 0.0 else 1.0
    _fill_bands(scaled, known, level)
    black = level - _BLACK * mean_sigma
    rgb = make_lupton_rgb(*scaled, minimum=black, stretch=stretch_sigma * mean_sigma, Q=softening)
    rgb[~known.any(axis=0)] = _NO_DATA
    return np.asarray(rgb)


def _sky(image: Float32Array, known: BoolArray) -> tuple[Float32Array, Float32Array]:
    """Estimate level and noise (NaN if it is not known) of the sky in each band, from the known pixels."""
    level, sigma = np.zeros(len(image), np.float32), np.full(len(image), np.nan, np.float32)
    for band, (plane, there) in enumerate(zip(image, known)):
        if there.any():
            # Some ten thousand pixels give the sky as well as all of them.
            sample = plane[there][:: max(1, there.sum() // 40_000)]
            level[band] = np.median(sample)
            sigma[band] = 1.4826 * np.median(np.abs(sample - level[band]))
    return level, sigma


def _fill_bands(image: Float32Array, known: BoolArray, level: Float32Array) -> None:
    """Give pixels that are known in some bands the mean of these in the others, in place."""
    partly = known.any(axis=0) & ~known.all(axis=0)
    there, sky = known[:, partly], level[:, None]
    mean = np.where(there, image[:, partly] - sky, 0.0).sum(axis=0) / there.sum(axis=0)
    image[:, partly] = np.where(there, image[:, partly], sky + mean)


def mask_outlines(masks: Sequence[BoolArray], origins: NDArray[np.integer]) -> list[list[FloatArray]]:
    """Trace the outlines of masks, bool, (y, x), whose first pixels are at (y0, x0), (mask, 2).

    For each mask they are its closed lines, each an array (point, 2) of positions
    (x, y); the centre of the first pixel of the image is (0, 0).

    Examples
    --------
    >>> (lines,) = mask_outlines([np.ones((3, 4), dtype=bool)], np.array([[10, 20]]))
    >>> float(lines[0][:, 0].min()), float(lines[0][:, 1].max())
    (19.5, 12.5)
    """
    outlines = []
    for mask, (y0, x0) in zip(masks, origins):
        padded = np.pad(np.asarray(mask, dtype=np.float32), 1)
        lines = contourpy.contour_generator(z=padded).lines(0.5)
        outlines.append([np.asarray(line) + (x0 - 1.0, y0 - 1.0) for line in lines])
    return outlines


def draw_outlines(
    axes: Axes,
    outlines: Sequence[Sequence[Any]],
    is_star: Sequence[bool] | BoolArray,
    line_width: float,
    **style: Any,
) -> None:
    """Draw outlines of `mask_outlines` in the colours of their classes; the width is in points."""
    for star, color in ((False, GALAXY_COLOR), (True, STAR_COLOR)):
        lines = [line for source, one in zip(outlines, is_star) if bool(one) == star for line in source]
        drawn = LineCollection(lines, colors=color, linewidths=line_width, **style)
        axes.add_collection(drawn, autolim=False)


def save_overlay(
    path: str | os.PathLike[str],
    image: NDArray[np.floating],
    masks: Sequence[BoolArray],
    origins: NDArray[np.integer],
    is_star: BoolArray,
    ids: Sequence[int] | NDArray[np.integer],
    *,
    noise: NDArray[np.floating] | None = None,
    wcs: WCS | None = None,
    pixel_scale: float | None = None,
    title: str = "",
    calibrated: bool = True,
) -> None:
    """Write the picture of an image, as for `lupton_rgb`, and its sources to a file, usually ``*.png``.

    Areas without data are hatched, those in which a band is missing have a dotted
    outline. Masks and origins are as for `mask_outlines`; of each source there are its class
    and its id, which is written beside it where there is room, (mask,). The pixel
    scale is in arcsec.
    """
    numbers = {len(masks), len(origins), len(is_star), len(ids)}
    if len(numbers) != 1:
        raise ValueError(
            "Masks, origins, classes and ids must be of one number; given were "
            f"{len(masks)}, {len(origins)}, {len(is_star)}, {len(ids)}."
        )
    rgb = lupton_rgb(image, noise, calibrated=calibrated)
    height, width = rgb.shape[:2]
    # Small images are enlarged to about a thousand points, large ones shrunk to about two thousand.
    magnification = float(np.clip(1000.0 / max(height, width), 0.6, 8.0))
    if magnification > 1.0:
        magnification = float(np.round(magnification * 2.0) / 2.0)
    figure, axes = _make_axes((height, width), magnification, wcs)
    axes.imshow(rgb, origin="lower", interpolation="nearest")
    missing = _mark_missing(axes, np.isfinite(image))
    inch_per_pixel = axes.get_position().width * figure.get_figwidth() / width
    # Lines of about one and a half image pixels, within what the eye still sees and what hides no source.
    line_width = float(np.clip(1.1 * inch_per_pixel * 72.0, 0.5, 1.3))
    outlines = mask_outlines(masks, origins)
    is_star = np.asarray(is_star, dtype=bool)
    draw_outlines(axes, outlines, is_star, line_width, alpha=0.9)
    _label_ids(axes, outlines, is_star, [str(one) for one in ids], inch_per_pixel, (height, width))
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(-0.5, height - 0.5)
    _draw_axes_labels(axes, wcs)
    _draw_key(figure, is_star, missing, (height, width), inch_per_pixel, pixel_scale, wcs)
    if title:
        axes.set_title(title, fontsize=11, loc="left", pad=8)
    figure.savefig(path, dpi=1.5 * _DPI if max(height, width) * magnification <= 1300 else _DPI)


def _mark_missing(axes: Axes, known: BoolArray) -> list[Any]:
    """Mark areas without data, and without some of the bands; return what the key shows of them."""
    number = known.sum(axis=0)
    square = np.ones((_LEAST_AREA, _LEAST_AREA), bool)
    x, y = (np.arange(-1.0, side + 1.0) for side in number.shape[::-1])
    handles: list[Any] = []
    empty = ndimage.binary_opening(number == 0, square)
    if empty.any():
        hatch: dict[str, Any] = {"hatches": ["////"], "colors": "none"}
        area = axes.contourf(x, y, np.pad(empty, 1, mode="edge"), [0.5, 1.5], **hatch)
        area.set(edgecolor=_HATCH_COLOR, linewidth=0.0)
        color = "#" + 3 * f"{_NO_DATA:02x}"
        handles.append(Patch(facecolor=color, edgecolor=_HATCH_COLOR, hatch="/////", label="no data"))
    # Where a whole band is missing, there is no line to draw.
    partly = ndimage.binary_opening(number < len(known), square) & ~empty
    if partly.any() and known.any(axis=(1, 2)).all():
        style: dict[str, Any] = {"colors": "white", "linestyles": ":", "linewidths": 0.8}
        axes.contour(x, y, np.pad(partly, 1, mode="edge"), [0.5], **style)
        handles.append(Line2D([], [], color="white", ls=":", lw=1.2, label="a band is missing"))
    return handles


def _draw_key(
    figure: Figure,
    is_star: BoolArray,
    missing: Sequence[Any],
    shape: tuple[int, int],
    inch_per_pixel: float,
    pixel_scale: float | None,
    wcs: WCS | None,
) -> None:
    """Draw colours, scale and compass below the picture, where they cover nothing."""
    width, height = figure.get_size_inches()
    strip = figure.add_axes((0.0, 0.0, 1.0, _KEY_HEIGHT / height))
    strip.set(xlim=(0.0, width), ylim=(0.0, _KEY_HEIGHT))
    strip.set_axis_off()
    middle, right = 0.5 * _KEY_HEIGHT, width - _MARGIN_RIGHT
    n_star = int(is_star.sum())
    handles = [
        Line2D([], [], color=STAR_COLOR, lw=2.0, label=f"star ({n_star})"),
        Line2D([], [], color=GALAXY_COLOR, lw=2.0, label=f"galaxy ({len(is_star) - n_star})"),
        Line2D([], [], color="white", ls="", marker="$12$", ms=9.0, label="id in the catalogue"),
        *missing,
    ]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (_MARGIN_LEFT / width, 0.5)}
    place |= {"borderaxespad": 0.0, "labelspacing": 0.15}
    style: dict[str, Any] = {"facecolor": "#222222", "framealpha": 1.0, "labelcolor": "white"}
    columns, size = (3, 8.5) if width > 6.0 else (1, 6.0)
    strip.legend(handles=handles, ncols=columns, fontsize=size, **place, **style)
    if wcs is not None:
        for name, dx, dy in _sky_directions(wcs, shape):
            tail = right - 0.28, middle - 0.02
            tip = tail[0] + 0.22 * dx, tail[1] + 0.22 * dy
            arrow = {"arrowstyle": "->", "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
            strip.annotate("", tip, tail, arrowprops=arrow)
            strip.text(tail[0] + 0.29 * dx, tail[1] + 0.29 * dy, name, fontsize=7.5, ha="center", va="center")
    if pixel_scale is not None:
        length, label = scale_length(0.15 * shape[1] * pixel_scale)
        inches, end = length / pixel_scale * inch_per_pixel, right - 0.8
        strip.plot([end - inches, end], [middle - 0.07] * 2, color="black", lw=2.0)
        strip.text(end - 0.5 * inches, middle, label, fontsize=9, ha="center")


def _sky_directions(wcs: WCS, shape: tuple[int, int]) -> list[tuple[str, float, float]]:
    """North and east in the middle of an image (y, x): name, and unit vector in x and y."""
    x, y = 0.5 * shape[1], 0.5 * shape[0]
    middle = _to_sky(wcs, x, y)
    found = []
    for name, angle in (("N", 0.0), ("E", 90.0)):
        there = wcs.world_to_pixel(middle.directional_offset_by(angle * u.deg, 1.0 * u.arcsec))
        vector = np.array([float(there[0]) - x, float(there[1]) - y])
        found.append((name, *(vector / np.hypot(*vector)).tolist()))
    return found


def _to_sky(wcs: WCS, x: Any, y: Any) -> SkyCoord:
    sky = wcs.pixel_to_world(x, y)
    return sky.icrs if isinstance(sky, SkyCoord) else SkyCoord(*sky, unit=u.deg)


def _make_axes(shape: tuple[int, int], magnification: float, wcs: WCS | None) -> tuple[Figure, Any]:
    """Make a figure with room for a picture of a shape (y, x) and its axes."""
    width, height = (max(shape[i] * magnification / _DPI, least) for i, least in ((1, 3.5), (0, 2.0)))
    outer = width + _MARGIN_LEFT + _MARGIN_RIGHT, height + _MARGIN_BOTTOM + _MARGIN_TOP
    figure = blank_figure(*outer, _DPI, layout=None)
    box = (_MARGIN_LEFT / outer[0], _MARGIN_BOTTOM / outer[1], width / outer[0], height / outer[1])
    return figure, figure.add_axes(box, projection=wcs) if wcs is not None else figure.add_axes(box)


def _label_ids(
    axes: Axes,
    outlines: Sequence[Sequence[FloatArray]],
    is_star: BoolArray,
    labels: Sequence[str],
    inch_per_pixel: float,
    shape: tuple[int, int],
) -> None:
    """Write ids above the largest sources, where they cover nothing else."""
    font_size = float(np.clip(9.0 * inch_per_pixel * 72.0, 5.0, 7.5))
    if not len(outlines):
        return
    nothing = np.full((1, 2), np.nan)
    points = [np.concatenate(lines) if lines else nothing for lines in outlines]
    boxes = np.array([(*one.min(axis=0), *one.max(axis=0)) for one in points])
    # Extent of a letter in image pixels.
    label_height = 0.95 * font_size / 72.0 / inch_per_pixel
    letter_width = 0.62 * font_size / 72.0 / inch_per_pixel
    height, width = shape
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    occupied = np.zeros((0, 4))
    effect = [matplotlib.patheffects.withStroke(linewidth=1.4, foreground="black", alpha=0.75)]
    for index in np.argsort(-area, kind="stable"):
        x0, y0, x1, y1 = boxes[index]
        label_width = letter_width * len(labels[index])
        if not np.isfinite(area[index]) or len(occupied) >= _MAX_LABELS:
            break
        x, y = 0.5 * (x0 + x1), y1 + 0.1 * label_height
        if y + label_height > height - 0.5:
            y = y0 - 1.1 * label_height
        place = np.array([x - 0.5 * label_width, y, x + 0.5 * label_width, y + label_height])
        if place[0] < 0.0 or place[2] > width - 1.0 or place[1] < 0.0:
            continue
        others = np.concatenate([occupied, np.delete(boxes, index, axis=0)])
        # Boxes are larger than outlines; a label may touch a neighbour's box by a little.
        covers = (
            np.minimum(others[:, 2], place[2]) - np.maximum(others[:, 0], place[0]) > 0.2 * label_width
        ) & (np.minimum(others[:, 3], place[3]) - np.maximum(others[:, 1], place[1]) > 0.2 * label_height)
        if covers.any():
            continue
        occupied = np.concatenate([occupied, place[None]])
        color = STAR_COLOR if is_star[index] else GALAXY_COLOR
        style: dict[str, Any] = {"fontsize": font_size, "path_effects": effect, "clip_on": True}
        axes.text(x, y, labels[index], color=color, ha="center", va="bottom", **style)


def _draw_axes_labels(axes: Any, wcs: WCS | None) -> None:
    """Name the axes."""
    if wcs is None:
        axes.set_xlabel("x (pixels)")
        axes.set_ylabel("y (pixels)")
        return
    ra, dec = axes.coords[0], axes.coords[1]
    ra.set_axislabel("Right ascension (ICRS)", minpad=0.7)
    dec.set_axislabel("Declination (ICRS)", minpad=0.4)
    for coordinate in (ra, dec):
        coordinate.set_ticks(number=6)
        coordinate.set_ticklabel(size=8.5, exclude_overlapping=True)
        coordinate.set_ticks(color="white", size=5)
        coordinate.display_minor_ticks(False)
    axes.coords.grid(color="white", alpha=0.13, linestyle="-", linewidth=0.5)


def scale_length(wanted: float) -> tuple[float, str]:
    """Choose a round length near a wanted one (arcsec), and what to write beside it."""
    rounds = np.outer([1.0, 60.0, 3600.0], [0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0]).ravel()
    length = float(rounds[np.argmin(np.abs(np.log(rounds / wanted)))])
    return length, f'{length:g}"' if length < 60 else f"{length / 60:g}'"


def draw_scale_bar(axes: Axes, pixel_scale: float, shape: tuple[int, int], inch_per_pixel: float) -> None:
    """Draw a bar of a round number of arcseconds at the lower left of an image of a shape (y, x)."""
    length, label = scale_length(0.2 * shape[1] * pixel_scale)
    pixels = length / pixel_scale
    inch = 1.0 / inch_per_pixel
    x, y = 0.15 * inch, 0.17 * inch
    pad = 0.07 * inch
    ground: dict[str, Any] = {"facecolor": "black", "alpha": 0.55, "zorder": 8, "lw": 0}
    axes.add_patch(Rectangle((x - pad, y - pad), pixels + 2 * pad, 0.28 * inch + pad, **ground))
    axes.plot([x, x + pixels], [y, y], color="white", lw=2.2, zorder=9, solid_capstyle="butt")
    style: dict[str, Any] = {"color": "white", "ha": "center", "va": "bottom", "fontsize": 9, "zorder": 9}
    axes.text(x + 0.5 * pixels, y + 0.03 * inch, label, **style)


def write_regions(
    path: str | os.PathLike[str],
    outlines: Sequence[Sequence[FloatArray]],
    is_star: BoolArray,
    ids: Sequence[int] | NDArray[np.integer],
    wcs: WCS | None,
    *,
    comment: str = "",
) -> None:
    """Write outlines of `mask_outlines` as a region file for SAOImage DS9, usually ``*.reg``.

    Each source is a polygon in ICRS or, without world coordinates, in pixels, tagged
    ``star`` or ``galaxy``, with its id as text; holes are left out. The package
    ``regions`` would be one dependency more for as many lines.
    """
    lines = ["# Region file format: DS9 version 4.1"]
    if comment:
        lines.append(f"# {comment}")
    lines += ['global width=1 font="helvetica 9 normal roman" select=1 edit=0 move=0 delete=1']
    lines.append("image" if wcs is None else "icrs")
    for polygons, star, name in zip(outlines, is_star, ids):
        if not polygons:
            continue
        outline = _simplify(max(polygons, key=len))
        if wcs is None:
            points = ",".join(f"{x + 1:.2f},{y + 1:.2f}" for x, y in outline)
        else:
            sky = _to_sky(wcs, outline[:, 0], outline[:, 1])
            points = ",".join(f"{ra:.7f},{dec:.7f}" for ra, dec in zip(sky.ra.deg, sky.dec.deg))
        color, kind = (STAR_COLOR, "star") if star else (GALAXY_COLOR, "galaxy")
        lines.append(f"polygon({points}) # color={color} text={{{name}}} tag={{{kind}}}")
    with open(path, "w", encoding="ascii") as stream:
        stream.write("\n".join(lines) + "\n")


def _simplify(line: FloatArray) -> FloatArray:
    """Drop the last point of a closed line, (point, 2), and those on straight parts."""
    points = line[:-1]
    before = points - np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0) - points
    corner = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    return points[corner] if corner.sum() >= 3 else points
