# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""One list of sources from those detected at several pixel sizes.

Detections are compared on the detection image: which share of the flux they
have in common, which of them has the peak, and whether a part of a large source
stands out of its smooth profile. The thresholds were chosen on simulated
galaxies and stars brighter than magnitude 18
(``tests/benchmarks/bench_bright.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import label, uniform_filter

from ..network.detections import Detections

__all__ = ["MIN_SIDE", "join", "merge_scales", "paint_mask"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating[Any]]


MIN_SIDE = 6.0
"""Least side, the root of the area, of a coarse detection in its own pixels.
What is smaller is left to finer binnings."""

_CONFIDENT = 0.5
"""Probability from which a detection without binning may be a part of a coarse one."""

_SAME_IOU = 0.4
"""Mask IoU from which two detections are one source."""

_COVERED = 0.6
"""Share of a coarse detection's flux in the masks of others, over which it is
a blend of them."""

_CONTAINED = 0.7
"""Share of a detection's flux in a larger one, from which it may be a part of
that."""

_FRAGMENT_SHARE = 0.35
"""Largest share of a source's flux in one of its clumps."""

_CONTRAST = 4.0
"""Brightness of a peak in units of the smooth profile of the large source about
it, from which it is a source of its own."""

_OWN_SCORE = 0.85
"""Probability from which it is one as well."""

_REPEATED_SCORE = 0.55
"""Probability up to which a bright source within another one, which has its
peak, is a second detection of that."""

_CORE_LEVEL = 0.1
"""Brightness of the outer part of a large source in units of its peak, from
which a detection that has the peak alone is only its core; masks of cores grow
to that brightness."""

_LARGE_AREA = 20.0
"""Least area of a source that may have parts, in units of the square of the
PSF's FWHM: galaxies that are less resolved show no clumps."""

_BRIGHT_SNR = 300.0
"""Flux of a source over the root of its area, in units of the noise of a pixel,
from which it may have parts."""


def merge_scales(levels: Sequence[Detections], detection: npt.NDArray[np.float32], fwhm: float) -> Detections:
    """Make one list of sources of those found at several binnings.

    Parameters
    ----------
    levels : `~collections.abc.Sequence` [`Detections`]
        What was found at each binning, the finest first, all in pixels of the
        whole image (see `~.detection.to_full_pixels`).
    detection : `numpy.ndarray`
        Detection image: flux above the sky in units of its noise, float32,
        (y, x), at least 0; 0 where it is not known.
    fwhm : `float`
        Full width at half maximum of the PSF, px.

    Returns
    -------
    merged : `Detections`
        The sources, those of the first level first. A source has the pixels
        of the parts that were joined to it, and the best of their scores.

    Notes
    -----
    All of the first level are sources to begin with. The coarse detections
    are then compared with them one by one, by ascending binning and descending
    score. A coarse detection

    - whose peak is in the mask of a source, or whose mask is that of one, is
      that source, unless the source is only its core, which is replaced;
    - most of whose flux is in the masks of sources with peaks of their own is
      a blend of them, and dropped;
    - that has no peak, but lies on the flank of something brighter, is
      dropped;
    - is otherwise a source that finer binnings have lost.

    A detection within a large and bright source is part of it, unless its
    score is high or it stands out of the smooth profile, the median along
    ellipses, by much more than the clumps of galaxies do. Last, a bright source
    with a low score, of which another one has the peak and most of the pixels,
    is joined to that, and large galaxies of which only the core was found grow
    to the connected pixels around it.

    Memory goes with the number of mask pixels.
    """
    everything = Detections.concatenate(levels)
    if not len(everything):
        return everything
    pool = _Pool(everything, detection)
    fine = len(levels[0])
    pool.kept[:fine] = True
    coarse = np.arange(fine, len(everything))
    order = np.lexsort((coarse, -everything.scores[coarse], everything.binning[coarse]))
    for index in coarse[order].tolist():
        _add_coarse(pool, index, fwhm)
    _join_repeated(pool)
    grown = _grow_cores(pool, fwhm)
    merged = join(everything, pool.kept, pool.parts)
    for place, index in enumerate(np.flatnonzero(pool.kept).tolist()):
        if index in grown:
            _add_pixels(merged, place, *grown[index])
    return merged


def join(found: Detections, kept: BoolArray, parts: dict[int, list[int]]) -> Detections:
    """Give sources the pixels of their parts.

    Parameters
    ----------
    found : `Detections`
        Sources and parts.
    kept : `numpy.ndarray`
        Which of them stay, bool, (source,).
    parts : `dict` [`int`, `list` [`int`]]
        Indices of the parts of some sources.

    Returns
    -------
    joined : `Detections`
        The sources that stay.
    """
    index = np.flatnonzero(kept)
    result = found.take(index)
    place = {int(source): number for number, source in enumerate(index)}
    for source, others in parts.items():
        if source not in place or not others:
            continue
        number, group = place[source], [source, *others]
        result.masks[number], result.origins[number] = _union(
            [found.masks[i] for i in group], found.origins[group]
        )
        result.soft[number], result.soft_origins[number] = _union(
            [found.soft[i] for i in group], found.soft_origins[group]
        )
        result.boxes[number, :2] = found.boxes[group, :2].min(axis=0)
        result.boxes[number, 2:] = found.boxes[group, 2:].max(axis=0)
        result.scores[number] = found.scores[group].max()
        result.flag_limited[number] = found.flag_limited[group].any()
    return result


def _union(
    patches: Sequence[npt.NDArray[Any]], origins: npt.NDArray[np.integer[Any]]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.integer[Any]]]:
    """Largest value of each pixel, and the origin of the result."""
    low = origins.min(axis=0)
    high = (origins + [patch.shape for patch in patches]).max(axis=0)
    result = np.zeros(high - low, dtype=patches[0].dtype)
    for patch, (y, x) in zip(patches, origins - low, strict=True):
        view = result[y : y + patch.shape[0], x : x + patch.shape[1]]
        np.maximum(view, patch, out=view)
    return result, low


class _Pool:
    """All detections, which of them are sources so far, and which are parts of those."""

    def __init__(self, everything: Detections, detection: npt.NDArray[np.float32]):
        self.all = everything
        self.detection = detection
        self.smooth = uniform_filter(detection, 3, mode="nearest")
        shapes = np.array([mask.shape for mask in everything.masks], dtype=np.int64).reshape(-1, 2)
        self.low = everything.origins.astype(np.int64).reshape(-1, 2)
        self.high = self.low + shapes
        self.area = np.array([np.count_nonzero(mask) for mask in everything.masks], dtype=float)
        self.flux = np.array([self._flux(index) for index in range(len(everything))], dtype=float)
        self.kept = np.zeros(len(everything), dtype=bool)
        self.parts: dict[int, list[int]] = {}

    def window(self, index: int, grow: int = 0) -> tuple[slice, slice]:
        """Slices that cut a source's box, with a border, from the image."""
        low = np.maximum(self.low[index] - grow, 0)
        high = np.minimum(self.high[index] + grow, self.detection.shape)
        return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))

    def _flux(self, index: int) -> float:
        pixels = self.detection[self.window(index)]
        return float(pixels[self.all.masks[index]].sum(dtype=np.float64))

    def peak(self, index: int) -> tuple[int, int]:
        """Brightest place of a source, (y, x) in the window of its mask."""
        mask = self.all.masks[index]
        pixels = np.where(mask, self.smooth[self.window(index)], np.float32(-1.0))
        row, column = np.unravel_index(int(np.argmax(pixels)), mask.shape)
        return int(row), int(column)

    def near(self, index: int, grow: int = 0) -> list[int]:
        """Sources whose boxes overlap that of a detection, with a border."""
        touch = self.kept.copy()
        for axis in (0, 1):
            touch &= self.low[:, axis] < self.high[index, axis] + grow
            touch &= self.high[:, axis] > self.low[index, axis] - grow
        touch[index] = False
        return list(np.flatnonzero(touch).tolist())

    def on(self, index: int, other: int) -> tuple[tuple[slice, slice], BoolArray]:
        """Where in the window of a detection another's mask is, and that part of it."""
        low = np.maximum(self.low[index], self.low[other])
        high = np.minimum(self.high[index], self.high[other])
        here, there, size = low - self.low[index], low - self.low[other], high - low
        part = self.all.masks[other][there[0] : there[0] + size[0], there[1] : there[1] + size[1]]
        return (slice(here[0], here[0] + size[0]), slice(here[1], here[1] + size[1])), part

    def absorb(self, owner: int, others: Sequence[int]) -> None:
        """Make sources parts of another one."""
        for other in others:
            self.kept[other] = False
            self.parts.setdefault(owner, []).extend([other, *self.parts.pop(other, [])])


@dataclass
class _Overlaps:
    """How the sources that overlap a coarse detection relate to it."""

    covered: BoolArray
    """Pixels of the detection that are those of other sources."""
    owner: int = -1
    """Source that the detection is."""
    parts: list[int] = field(default_factory=list)
    """Sources that are parts of it."""
    is_core: bool = False
    """Whether one of the parts has its peak."""
    foreground: bool = False
    """Whether its brightest pixel is that of another source, off its middle."""


def _add_coarse(pool: _Pool, index: int, fwhm: float) -> None:
    """Decide whether a coarse detection is a source, and what is part of it."""
    flux = pool.flux[index]
    if not flux > 0:
        return
    peak = pool.peak(index)
    overlaps = _compare(pool, index, peak, fwhm)
    if overlaps.owner >= 0:
        pool.absorb(overlaps.owner, overlaps.parts)
        return
    if not overlaps.is_core:
        taken = float(pool.detection[pool.window(index)][overlaps.covered].sum(dtype=np.float64))
        if taken > _COVERED * flux:
            return
        if not overlaps.foreground and not _is_summit(pool, index, peak, fwhm):
            return
    pool.kept[index] = True
    pool.absorb(index, overlaps.parts)


def _compare(pool: _Pool, index: int, peak: tuple[int, int], fwhm: float) -> _Overlaps:
    """Compare a coarse detection with the sources that overlap it."""
    found, mask = pool.all, pool.all.masks[index]
    flux, area = pool.flux[index], pool.area[index]
    pixels = pool.detection[pool.window(index)]
    height = float(pool.smooth[pool.window(index)][peak])
    large = flux >= _BRIGHT_SNR * math.sqrt(area) and area >= _LARGE_AREA * fwhm**2
    result = _Overlaps(np.zeros(mask.shape, dtype=bool))
    profile: npt.NDArray[np.float32] | None = None
    for other in pool.near(index):
        if found.binning[other] == 1 and found.scores[other] < _CONFIDENT:
            continue
        where, part = pool.on(index, other)
        common = part & mask[where]
        count = np.count_nonzero(common)
        if not count:
            continue
        shared = float(pixels[where][common].sum(dtype=np.float64))
        contained = shared >= _CONTAINED * pool.flux[other]
        same = count >= _SAME_IOU * (area + pool.area[other] - count)
        row, column = peak[0] - where[0].start, peak[1] - where[1].start
        has_peak = 0 <= row < part.shape[0] and 0 <= column < part.shape[1] and bool(part[row, column])
        star = bool(found.p_star[other] >= 0.5)
        if same or has_peak:
            if large and contained and not star and area >= 2.0 * pool.area[other]:
                rest = mask.copy()
                rest[where] &= ~part
                if np.median(pixels[rest]) >= _CORE_LEVEL * height:
                    result.parts.append(other)
                    result.is_core = True
                    continue
            stands_out = star
            if large and not star:
                if profile is None:
                    profile = _smooth_profile(pixels, mask)
                stands_out = _contrast(pixels[where], profile[where], common) >= _CONTRAST
            if stands_out and not same and _is_off_centre(mask, peak):
                result.foreground = True
            elif result.owner < 0 or pool.flux[other] > pool.flux[result.owner]:
                result.owner = other
        elif large and contained and shared <= _FRAGMENT_SHARE * flux and found.scores[other] < _OWN_SCORE:
            if profile is None:
                profile = _smooth_profile(pixels, mask)
            if _contrast(pixels[where], profile[where], common) < _CONTRAST:
                result.parts.append(other)
                continue
        result.covered[where] |= common
    return result


def _join_repeated(pool: _Pool) -> None:
    """Join bright sources of low scores, rarely real, to a better one with their peak and pixels."""
    scores = pool.all.scores
    bright = pool.flux >= _BRIGHT_SNR * np.sqrt(pool.area)
    chosen = np.flatnonzero(pool.kept & bright & (scores < _REPEATED_SCORE))
    for index in chosen[np.argsort(scores[chosen], kind="stable")].tolist():
        row, column = pool.peak(index)
        for other in pool.near(index):
            if (scores[other], pool.flux[other]) <= (scores[index], pool.flux[index]):
                continue
            where, part = pool.on(index, other)
            mine = np.zeros(pool.all.masks[index].shape, dtype=bool)
            mine[where] = part
            if not mine[row, column]:
                continue
            common = np.count_nonzero(mine & pool.all.masks[index])
            # A star may lie on a galaxy that is larger than its mask.
            area = pool.area[index] if pool.all.p_star[other] >= 0.5 else min(pool.area[[index, other]])
            if common >= _CONTAINED * area:
                pool.absorb(other, [index])
                break


def _grow_cores(pool: _Pool, fwhm: float) -> dict[int, tuple[BoolArray, npt.NDArray[np.int64]]]:
    """Find the pixels, and their origin, of large galaxies of which only the core was detected.

    They are connected to the peak, brighter than a share of it, and in no other
    mask. Where they lead to something brighter, the core stays as it is.
    """
    bright = pool.flux >= _BRIGHT_SNR * np.sqrt(pool.area)
    grown = {}
    for index in np.flatnonzero(pool.kept & bright & (pool.all.p_star < 0.5)).tolist():
        peak = pool.peak(index)
        reach = 2 * int(max(pool.all.masks[index].shape)) + math.ceil(fwhm)
        window = pool.window(index, reach)
        place = tuple(
            int(low + at - axis.start) for low, at, axis in zip(pool.low[index], peak, window, strict=True)
        )
        pixels = pool.smooth[window]
        regions, _ = label(pixels >= _CORE_LEVEL * pixels[place])
        region = regions == regions[place]
        if np.count_nonzero(region) < 2.0 * pool.area[index] or pixels[region].max() > pixels[place]:
            continue
        low = np.array([axis.start for axis in window])
        own = paint_mask(pool.all, index, low, region.shape)
        others, parts = np.zeros(region.shape, dtype=bool), []
        for other in pool.near(index, reach):
            mask = paint_mask(pool.all, other, low, region.shape)
            if np.count_nonzero(mask & region) >= _CONTAINED * pool.area[other] and (
                pool.all.p_star[other] < 0.5
                and pool.all.scores[other] < _OWN_SCORE
                and pool.flux[other] <= _FRAGMENT_SHARE * pool.flux[index]
            ):
                parts.append((other, mask))
            else:
                others |= mask
        region &= ~others | own
        area = np.count_nonzero(region)
        if area < 2.0 * pool.area[index] or area < _LARGE_AREA * fwhm**2:
            continue
        profile = _smooth_profile(pool.detection[window], region)
        for other, mask in parts:
            if _contrast(pool.detection[window], profile, mask) < _CONTRAST:
                pool.absorb(index, [other])
        grown[index] = region, low
    return {index: value for index, value in grown.items() if pool.kept[index]}


def paint_mask(
    found: Detections, index: int, corner: Sequence[int] | npt.NDArray[np.int64], shape: tuple[int, ...]
) -> BoolArray:
    """Draw the mask of a source on a window of the image.

    Parameters
    ----------
    found : `Detections`
        Sources.
    index : `int`
        Which source.
    corner, shape : `tuple` [`int`, `int`]
        First pixel, (y, x), and shape of the window.

    Returns
    -------
    mask : `numpy.ndarray`
        Bool, (y, x).
    """
    result = np.zeros(shape, dtype=bool)
    mask = found.masks[index]
    start = found.origins[index].astype(np.int64) - corner
    low, high = np.maximum(start, 0), np.minimum(start + mask.shape, shape)
    if (low < high).all():
        part = mask[low[0] - start[0] : high[0] - start[0], low[1] - start[1] : high[1] - start[1]]
        result[low[0] : high[0], low[1] : high[1]] = part
    return result


def _add_pixels(found: Detections, place: int, region: BoolArray, origin: npt.NDArray[np.int64]) -> None:
    """Give a source further pixels."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    region = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    origin = origin + [rows[0], columns[0]]
    found.masks[place], found.origins[place] = _union(
        [found.masks[place], region], np.stack([found.origins[place], origin])
    )
    found.soft[place], found.soft_origins[place] = _union(
        [found.soft[place], np.where(region, np.uint8(255), np.uint8(0))],
        np.stack([found.soft_origins[place], origin]),
    )
    corners = [origin[1], origin[0], origin[1] + region.shape[1], origin[0] + region.shape[0]]
    box = found.boxes[place]
    found.boxes[place] = [*np.minimum(box[:2], corners[:2]), *np.maximum(box[2:], corners[2:])]


def _is_off_centre(mask: BoolArray, place: tuple[int, int]) -> bool:
    """Whether a place is nearer to the edge of a mask than to its middle, about."""
    rows, columns = np.nonzero(mask)
    distance = math.hypot(rows.mean() - place[0], columns.mean() - place[1])
    return distance > 0.4 * math.sqrt(len(rows) / math.pi)


def _is_summit(pool: _Pool, index: int, peak: tuple[int, int], fwhm: float) -> bool:
    """Whether nothing within about the PSF's width is brighter."""
    reach = max(3, math.ceil(fwhm))
    y, x = (pool.low[index] + peak).tolist()
    around = pool.smooth[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
    return bool(pool.smooth[y, x] >= around.max())


def _smooth_profile(pixels: npt.NDArray[np.float32], mask: BoolArray) -> npt.NDArray[np.float32]:
    """Median brightness along ellipses of the mask's own shape, which falls outwards."""
    rows, columns = np.nonzero(mask)
    y, x = rows.mean(), columns.mean()
    # The moments of a pixel keep those of a line from vanishing.
    yy, xx = np.mean((rows - y) ** 2) + 1.0 / 12.0, np.mean((columns - x) ** 2) + 1.0 / 12.0
    xy = np.mean((rows - y) * (columns - x))
    dy, dx = np.arange(mask.shape[0])[:, None] - y, np.arange(mask.shape[1]) - x
    # 1 at the edge of an ellipse of equal brightness.
    squared = (xx * dy**2 + yy * dx**2 - 2.0 * xy * dx * dy) / (4.0 * (yy * xx - xy**2))
    count = int(np.clip(math.sqrt(len(rows) / math.pi) / 1.5, 4, 24))
    rings = np.minimum((np.sqrt(np.maximum(squared, 0.0)) * count).astype(np.int64), count + 4)
    which = rings[mask]
    order = np.argsort(which, kind="stable")
    values = pixels[mask][order]
    ends = np.searchsorted(which[order], np.arange(count + 6))
    levels = np.zeros(count + 5, dtype=np.float32)
    level = float(values.max())
    for ring in range(count + 5):
        part = values[ends[ring] : ends[ring + 1]]
        if len(part) >= 3:
            level = min(level, float(np.median(part)))
        levels[ring] = level
    return levels[rings]


def _contrast(pixels: FloatArray, profile: FloatArray, part: BoolArray) -> float:
    """Brightest pixel of a part over the profile there, of which some noise is always."""
    peak = int(np.argmax(np.where(part, pixels, -np.inf)))
    return float(pixels.ravel()[peak] / max(float(profile.ravel()[peak]), 0.3))
