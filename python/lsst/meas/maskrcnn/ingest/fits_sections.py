# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pixels of raw frames that saw no light: the overscan beside the sections that headers name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from scipy import ndimage

from ..images.sky import find_fill
from .fits_header import number_of

_MOST_OVERSCAN = 0.4
"""Share of an image beyond which a section is that of another image, such as the whole of a mosaic."""

_REACH = 0.03
"""Share of a side up to which sections may end before it, where some of them are overscan."""

_LEAST_STRIP, _WIDEST_STRIP = 4, 0.2
"""Width (px) of overscan that no keyword tells, and share of the side that it has at most."""

_STRIP = 20
"""Width (px) of the data beside the overscan that it is compared with."""


def find_overscan(
    header: fits.Header, pixels: npt.NDArray[np.floating[Any]]
) -> tuple[npt.NDArray[np.bool_] | None, str]:
    """Find the overscan of an image (y, x), and the keyword that tells it; `None` for none.

    Keywords often stay in headers of images that were trimmed, cut out or stacked since. They are believed
    if sections lie in the image and either name its overscan as well, or leave pixels that differ from those
    beside them in level or scatter.
    """
    shape = (pixels.shape[0], pixels.shape[1])
    for key, boxes in _data_sections(header, shape):
        if not boxes or None in boxes:
            continue
        dark = np.ones(shape, bool)
        for box in boxes:
            dark[box] = False
        if not 0.0 < dark.mean() <= _MOST_OVERSCAN:
            continue
        biases = [_section(value, shape) for name, value in header.items() if re.match("BIASSEC|BSEC", name)]
        known = [box for box in biases if box is not None and dark[box].all() and dark[box].size]
        ends = [max(box[axis].stop for box in [*boxes, *known] if box) for axis in (0, 1)]
        whole = all(end >= (1.0 - _REACH) * side for end, side in zip(ends, shape))
        if (known and whole) or key.startswith("ESO") or _differs(pixels, dark):
            return dark, key
    dark = _dark_edges(pixels)
    return (dark, "level and noise") if dark.any() else (None, "")


def _data_sections(
    header: fits.Header, shape: tuple[int, int]
) -> list[tuple[str, list[tuple[slice, slice] | None]]]:
    """Sections with light by keyword, one for each amplifier; `None` for what is none of the image."""
    result = []
    for key in ("TRIMSEC", "DATASEC", "TSEC", "DSEC"):
        values = [value for name, value in header.items() if re.fullmatch(f"{key}[A-Z0-9]{{0,2}}", name)]
        result.append((key, [_section(value, shape) for value in values]))
    # Of ESO, where a detector has one output: pixels of the output, and beside it.
    if header.get("ESO DET OUTPUTS") == 1:
        sides = []
        for axis, side in zip("YX", shape):
            light, before, after = (
                int(number_of(header, f"ESO DET OUT1 {word}{axis}") or 0) for word in ("N", "PRSC", "OVSC")
            )
            sides.append(slice(before, before + light) if before + light + after == side else None)
        if sides[0] is not None and sides[1] is not None:
            result.append(("ESO DET OUT1", [(sides[0], sides[1])]))
    return result


def _section(value: Any, shape: tuple[int, int]) -> tuple[slice, slice] | None:
    """Rows and columns of a section such as ``[17:528,1:520]``; `None` if it is not in an image."""
    match = re.fullmatch(r"\[([\d:* ]+),([\d:* ]+)\]", str(value).strip())
    if match is None:
        return None
    sides = []
    for text, side in zip((match[2], match[1]), shape):
        ends = [int(end) for end in text.replace("*", "").split(":") if end.strip().isdigit()] or [1, side]
        if len(ends) != 2 or not 1 <= min(ends) < max(ends) <= side:
            return None
        sides.append(slice(min(ends) - 1, max(ends)))
    return sides[0], sides[1]


def _dark_edges(pixels: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """Find strips at the edges of an image (y, x) that begin with a step down, and have less noise."""
    dark = np.zeros(pixels.shape, bool)
    for turns in range(4):
        _mark_dark_start(np.rot90(pixels, turns), np.rot90(dark, turns))
    return dark


def _mark_dark_start(pixels: npt.NDArray[np.floating[Any]], dark: npt.NDArray[np.bool_]) -> None:
    """Mark the first columns of an image (y, x) if they are overscan."""
    most = int(_WIDEST_STRIP * pixels.shape[1])
    part = pixels[:: max(1, len(pixels) // 500), : most + _STRIP]
    if most < 2 * _LEAST_STRIP or not np.isfinite(part).all():
        return
    low, level, high, highest = np.quantile(part, [0.16, 0.5, 0.84, 0.995], axis=0)
    steps, noise = np.diff(level), 0.5 * (high - low)
    end = int(np.argmax(steps[:most])) + 1
    step, strip = steps[end - 1], level[:end]
    clear = step > 50.0 * np.median(np.abs(steps)) and np.ptp(strip) < 0.1 * step
    quiet = 0.0 < np.median(noise[:end]) < 0.7 * np.median(noise[end:])
    # Sky has sources, and those have gaps between them.
    empty = np.mean(highest[:end] - strip) < 4.0 * np.mean(noise[:end])
    below = np.median(highest[:end]) < np.median(low[end:])
    dark[:, :end] |= end >= _LEAST_STRIP and clear and quiet and empty and below


def _differs(pixels: npt.NDArray[np.floating[Any]], dark: npt.NDArray[np.bool_]) -> bool:
    """Whether pixels (y, x) with values differ in level or scatter from those beside them."""
    if not np.isfinite(pixels[dark]).all() or find_fill(pixels)[dark].any():
        # The margins of stacks.
        return False
    beside = ndimage.maximum_filter(dark, 2 * _STRIP + 1) & ~dark
    (level, scatter), (sky, noise) = (
        (float(middle), 0.5 * float(high - low))
        for low, middle, high in (
            np.nanquantile(np.where(np.isfinite(part), part, np.nan), [0.16, 0.5, 0.84])
            for part in (pixels[dark], pixels[beside])
        )
    )
    return abs(level - sky) > 0.5 * max(scatter, noise) or scatter < 0.7 * noise
