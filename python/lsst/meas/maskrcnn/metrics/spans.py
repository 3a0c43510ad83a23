# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Masks as rows of pixels, and the overlap of many masks with many others.

Pixels are those of the image, whatever its first one is called: (y, x), half
open, so that the pixels 3, 4 and 5 of a row have x0 = 3 and x1 = 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import BoolArray, FloatArray, IntArray

__all__ = ["MaskPairs", "SpanMasks", "mask_iou", "mask_pairs"]

Masks = Sequence[BoolArray]
Integers = npt.NDArray[np.integer[Any]]

# Pixels of an image, and pairs of spans, that are handled at once: they bound the memory.
_CELLS = 8_000_000
_SPAN_PAIRS = 2_000_000


@dataclass(frozen=True, eq=False)
class SpanMasks:
    """N masks as the spans of their rows.

    The spans of each mask are put in order of row and column, and those that
    touch are joined, so that equal masks have equal arrays.

    Raises
    ------
    ValueError
        Raised if the arrays do not fit each other, a span has no pixel or two
        spans of one mask share pixels.
    """

    offsets: IntArray
    """The spans of mask i are ``offsets[i]:offsets[i + 1]``, (N + 1,). A mask may be empty."""
    y: npt.NDArray[np.int32]
    """Row of each span, (span,)."""
    x0: npt.NDArray[np.int32]
    x1: npt.NDArray[np.int32]
    """First column, and the one after the last, (span,)."""

    def __post_init__(self) -> None:
        offsets = np.asarray(self.offsets, dtype=np.int64)
        y, x0, x1 = (np.asarray(part, dtype=np.int32) for part in (self.y, self.x0, self.x1))
        if y.ndim != 1 or not y.shape == x0.shape == x1.shape:
            raise ValueError(
                f"y, x0, x1 have the shapes {y.shape}, {x0.shape}, {x1.shape}; they must be (span,)."
            )
        if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(y):
            raise ValueError(f"offsets must go from 0 to the number of spans, {len(y)}; got {offsets!r}.")
        if (np.diff(offsets) < 0).any():
            raise ValueError("offsets must not fall.")
        if (x1 <= x0).any():
            bad = int(np.flatnonzero(x1 <= x0)[0])
            raise ValueError(f"Span {bad} goes from x0 = {x0[bad]} to x1 = {x1[bad]}: it has no pixel.")
        if len(y):
            offsets, y, x0, x1 = _canonical(offsets, y, x0, x1)
        for name, part in (("offsets", offsets), ("y", y), ("x0", x0), ("x1", x1)):
            object.__setattr__(self, name, part)

    @classmethod
    def from_masks(cls, masks: Masks, origins: npt.ArrayLike) -> SpanMasks:
        """Take masks that are arrays of pixels; `ValueError` is raised if the shapes do not fit.

        Parameters
        ----------
        masks : `~collections.abc.Sequence` [`numpy.ndarray`]
            Masks, bool, (y, x) each.
        origins : `numpy.ndarray`
            (y0, x0) of the first pixel of each in the image, integers, (N, 2).
        """
        corners = np.asarray(origins)
        if corners.size == 0:
            corners = corners.reshape(-1, 2).astype(np.int64)
        if corners.shape != (len(masks), 2) or not np.issubdtype(corners.dtype, np.integer):
            raise ValueError(
                f"origins are {corners.dtype} {corners.shape}; "
                f"{len(masks)} masks need integers of the shape ({len(masks)}, 2)."
            )
        flat = sum(np.ndim(mask) != 2 for mask in masks)
        if flat:
            raise ValueError(f"{flat} of {len(masks)} masks do not have two axes (y, x).")
        parts = [_spans_of(np.asarray(mask, dtype=bool), *corner) for mask, corner in zip(masks, corners)]
        offsets = np.concatenate([[0], np.cumsum([len(y) for y, _, _ in parts], dtype=np.int64)])
        return cls(offsets, *(_joined(one) for one in list(zip(*parts)) or [()] * 3))  # type: ignore[arg-type]

    @classmethod
    def concatenate(cls, sets: Sequence[SpanMasks]) -> SpanMasks:
        """Put the masks of several sets one after the other.

        Parameters
        ----------
        sets : `~collections.abc.Sequence` [`SpanMasks`]
            The sets; none gives an empty one.
        """
        counts = _joined([np.diff(one.offsets) for one in sets])
        return cls(
            np.concatenate([[0], np.cumsum(counts)]),
            *(_joined([getattr(one, name) for one in sets]) for name in ("y", "x0", "x1")),  # type: ignore[arg-type]
        )

    def pixels(self) -> tuple[IntArray, IntArray, IntArray]:
        """List mask, row and column of each pixel, mask by mask and row by row, int64, (pixel,) each."""
        lengths = (self.x1 - self.x0).astype(np.int64)
        y = np.repeat(self.y.astype(np.int64), lengths)
        return np.repeat(self.owner, lengths), y, _ranges(self.x0, lengths)

    def unite(self, group: IntArray, number: int) -> SpanMasks:
        """Join the masks of groups: the pixels that any mask of each group holds.

        Parameters
        ----------
        group : `numpy.ndarray`
            Group of each mask, from 0, int64, (N,).
        number : `int`
            Number of groups.
        """
        if not len(self.y):
            return SpanMasks(np.zeros(number + 1, dtype=np.int64), self.y, self.x0, self.x1)
        owner = group[self.owner]
        order = np.lexsort((self.x0, self.y, owner))
        owner, y, x0, x1 = owner[order], self.y[order], self.x0[order], self.x1[order].astype(np.int64)
        # A key that rises from row to row and group to group, so that one maximum runs over all of them.
        low, width = int(x0.min()), int(x1.max()) - int(x0.min()) + 1
        line = np.append(0, np.cumsum((np.diff(owner) != 0) | (np.diff(y) != 0))) * width - low
        end = np.maximum.accumulate(line + x1)
        begins = np.append(True, line[1:] + x0[1:] > end[:-1])
        last = np.append(begins[1:], True)
        offsets = np.append(0, np.cumsum(np.bincount(owner[begins], minlength=number)))
        return SpanMasks(offsets, y[begins], x0[begins], (end - line)[last].astype(np.int32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def owner(self) -> IntArray:
        """Index of the mask of each span, int64, (span,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def areas(self) -> IntArray:
        """Number of pixels of each mask, int64, (N,)."""
        return self._sum(self.x1 - self.x0)

    @property
    def boxes(self) -> IntArray:
        """Box of each mask, [x0, y0, x1, y1], half open, int64, (N, 4).

        Zeros for an empty mask.
        """
        boxes = np.zeros((len(self), 4), dtype=np.int64)
        full = np.diff(self.offsets) > 0
        starts = self.offsets[:-1][full]
        if len(starts):
            boxes[full, 0] = np.minimum.reduceat(self.x0, starts)
            boxes[full, 1] = np.minimum.reduceat(self.y, starts)
            boxes[full, 2] = np.maximum.reduceat(self.x1, starts)
            boxes[full, 3] = np.maximum.reduceat(self.y, starts) + 1
        return boxes

    @property
    def centroids(self) -> FloatArray:
        """Mean (y, x) of the pixels of each mask, float64, (N, 2).

        NaN for an empty mask. The centre of the pixel (3, 4) is (3.0, 4.0).
        """
        length = (self.x1 - self.x0).astype(np.float64)
        areas = self.areas.astype(np.float64)
        areas[areas == 0] = np.nan
        middle = 0.5 * (self.x0.astype(np.float64) + self.x1 - 1)
        return np.stack([self._sum(length * self.y), self._sum(length * middle)], axis=1) / areas[:, None]

    def select(self, chosen: npt.ArrayLike) -> SpanMasks:
        """Take some of the masks, in the order given.

        Parameters
        ----------
        chosen : `numpy.ndarray`
            Indices, in any order, or one bool for each mask.
        """
        picked = np.asarray(chosen)
        indices = np.arange(len(self))[picked if picked.size else picked.astype(np.int64)]
        counts = np.diff(self.offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        spans = _ranges(self.offsets[indices], counts)
        return SpanMasks(offsets, self.y[spans], self.x0[spans], self.x1[spans])

    def to_masks(self) -> tuple[list[BoolArray], IntArray]:
        """Give each mask in its own box, bool, (y, x), and (y0, x0) of all of them, int64, (N, 2).

        An empty mask is (0, 0).
        """
        boxes = self.boxes
        masks = []
        for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
            mask = np.zeros((bottom - top, right - left), dtype=bool)
            for k in range(self.offsets[i], self.offsets[i + 1]):
                mask[self.y[k] - top, self.x0[k] - left : self.x1[k] - left] = True
            masks.append(mask)
        return masks, boxes[:, [1, 0]]

    def share_in(self, image: BoolArray, origin: tuple[int, int] = (0, 0)) -> FloatArray:
        """Compute which part of each mask lies on pixels that are set, float64, (N,); NaN for an empty mask.

        Parameters
        ----------
        image : `numpy.ndarray`
            Such as the pixels without data, bool, (y, x); those outside are not set.
        origin : `tuple` [`int`]
            (y0, x0) of the first pixel of the image.
        """
        areas = self.areas.astype(np.float64)
        areas[areas == 0] = np.nan
        return self.sum_over(np.asarray(image, dtype=bool), origin) / areas

    def sum_over(self, image: npt.NDArray[Any], origin: tuple[int, int] = (0, 0)) -> FloatArray:
        """Sum an image over each mask, float64, (N,).

        Parameters
        ----------
        image : `numpy.ndarray`
            The image, (y, x); pixels outside it, or not finite, count as 0.
        origin : `tuple` [`int`]
            (y0, x0) of the first pixel of the image.
        """
        height, width = image.shape
        sums = np.zeros(len(self))
        if not len(self.y) or not height or not width:
            return sums
        row = self.y.astype(np.int64) - origin[0]
        left = np.clip(self.x0.astype(np.int64) - origin[1], 0, width)
        right = np.clip(self.x1.astype(np.int64) - origin[1], 0, width)
        inside = np.flatnonzero((row >= 0) & (row < height) & (right > left))
        # One block of rows at a time: the sums of a whole coadd in double precision would be large.
        order = inside[np.argsort(row[inside], kind="stable")]
        owner = self.owner
        block = max(1, _CELLS // width)
        for start in range(0, height, block):
            part = order[slice(*np.searchsorted(row[order], (start, start + block)))]
            if not len(part):
                continue
            pixels = np.asarray(image[start : start + block], dtype=np.float64)
            before = np.zeros((len(pixels), width + 1))
            np.cumsum(np.where(np.isfinite(pixels), pixels, 0.0), axis=1, out=before[:, 1:])
            line = row[part] - start
            values = before[line, right[part]] - before[line, left[part]]
            sums += np.bincount(owner[part], weights=values, minlength=len(self))
        return sums

    def order(self) -> IntArray:
        """Rank the masks, from 0, by the box, the area and then the pixels, int64, (N,).

        The rank depends on the masks alone and not on how they are listed; equal masks share a place.
        """
        boxes, areas = self.boxes, self.areas
        with np.errstate(over="ignore"):
            code = self.y.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            for part in (self.x0, self.x1):
                code = (code ^ (code >> np.uint64(29))) + part.astype(np.uint64)
                code *= np.uint64(0xBF58476D1CE4E5B9)
        sums = self._sum(code ^ (code >> np.uint64(32)))
        keys = (sums, areas, *(boxes[:, k] for k in (2, 3, 0, 1)))
        order = np.lexsort(keys)
        differs = np.zeros(len(self), dtype=bool)
        for key in keys:
            differs[1:] |= key[order[1:]] != key[order[:-1]]
        rank = np.empty(len(self), dtype=np.int64)
        rank[order] = np.cumsum(differs)
        return rank

    def _sum(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sum a number of each span over the spans of each mask."""
        if values.dtype.kind == "i":
            values = values.astype(np.int64)
        sums = np.zeros(len(self), dtype=values.dtype)
        full = np.diff(self.offsets) > 0
        if full.any():
            sums[full] = np.add.reduceat(values, self.offsets[:-1][full])
        return sums


@dataclass(frozen=True, eq=False)
class MaskPairs:
    """The pairs of masks that share pixels."""

    first: IntArray
    second: IntArray
    """Indices into the two sets, int64, (pair,); by first, then second."""
    intersection: IntArray
    """Number of pixels shared, int64, (pair,)."""
    iou: FloatArray
    """Intersection over union, float64, (pair,)."""

    def __len__(self) -> int:
        return len(self.first)

    def select(self, chosen: npt.NDArray[Any]) -> MaskPairs:
        """Take some of the pairs.

        Parameters
        ----------
        chosen : `numpy.ndarray`
            Indices, or one bool for each pair.
        """
        return MaskPairs(self.first[chosen], self.second[chosen], self.intersection[chosen], self.iou[chosen])


def mask_iou(first: SpanMasks, second: SpanMasks) -> MaskPairs:
    """Find which masks of two sets overlap, and by how much.

    Parameters
    ----------
    first, second : `SpanMasks`
        The two sets, in pixels of the same image.

    Notes
    -----
    Of two spans of a row that overlap, either the second begins within the
    first, or the first begins within the second, after its first pixel. Both
    kinds are found by bisection in the sorted beginnings; no image is painted,
    and the time goes with the number of overlapping spans.
    """
    if not len(first.y) or not len(second.y):
        none = np.zeros(0, dtype=np.int64)
        return MaskPairs(none, none, none, np.zeros(0))
    low = int(min(first.x0.min(), second.x0.min()))
    width = int(max(first.x1.max(), second.x1.max())) - low + 1
    top = int(min(first.y.min(), second.y.min()))
    keys = []
    for one in (first, second):
        row = (one.y.astype(np.int64) - top) * width - low
        keys.append((row + one.x0, row + one.x1))
    (a0, a1), (b0, b1) = keys
    lengths = (first.x1 - first.x0).astype(np.int64), (second.x1 - second.x0).astype(np.int64)
    n = len(second)
    codes, sums = [], []
    for code, shared in _joins(a0, a1, b0, lengths, (first.owner, second.owner), n, strict=False):
        codes.append(code)
        sums.append(shared)
    for code, shared in _joins(b0, b1, a0, lengths[::-1], (second.owner, first.owner), len(first), True):
        codes.append((code % len(first)) * n + code // len(first))
        sums.append(shared)
    code, intersection = _add_up(_joined(codes), _joined(sums))
    i, j = code // n, code % n
    iou = intersection / (first.areas[i] + second.areas[j] - intersection)
    return MaskPairs(i, j, intersection, iou)


def mask_pairs(
    first: Masks, first_origins: npt.ArrayLike, second: Masks, second_origins: npt.ArrayLike
) -> MaskPairs:
    """Find which masks of two sets of arrays overlap, and by how much, as `mask_iou` does.

    Parameters
    ----------
    first : `~collections.abc.Sequence` [`numpy.ndarray`]
        Masks, bool, (y, x) each.
    first_origins : `numpy.ndarray`
        (y0, x0) of each mask, (mask, 2), pixels.
    second, second_origins : as above
        Those of the other set.
    """
    return mask_iou(SpanMasks.from_masks(first, first_origins), SpanMasks.from_masks(second, second_origins))


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if len(parts) else np.zeros(0, dtype=np.int64)


def _ranges(starts: Integers, counts: Integers) -> IntArray:
    """Concatenate ``arange(start, start + count)``."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


def _chunks(sizes: Integers) -> Iterator[tuple[int, int]]:
    """Cut a list so that the sizes of a piece add up to `_SPAN_PAIRS` at most, or it has one entry."""
    ends = np.cumsum(sizes)
    start, done = 0, 0
    while start < len(sizes):
        stop = max(int(np.searchsorted(ends, done + _SPAN_PAIRS, side="right")), start + 1)
        yield start, stop
        start, done = stop, int(ends[stop - 1])


def _canonical(
    offsets: IntArray, y: npt.NDArray[np.int32], x0: npt.NDArray[np.int32], x1: npt.NDArray[np.int32]
) -> tuple[IntArray, npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Sort the spans of each mask, join those that touch, refuse those that overlap."""
    same = np.ones(len(y) - 1, dtype=bool)
    cuts = offsets[1:-1]
    same[cuts[(cuts > 0) & (cuts < len(y))] - 1] = False
    fine = (y[1:] > y[:-1]) | ((y[1:] == y[:-1]) & (x0[1:] > x1[:-1]))
    if fine[same].all():
        return offsets, y, x0, x1
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((x0, y, owner))
    y, x0, x1 = y[order], x0[order], x1[order]
    neighbours = same & (y[1:] == y[:-1])
    if (neighbours & (x0[1:] < x1[:-1])).any():
        k = int(np.flatnonzero(neighbours & (x0[1:] < x1[:-1]))[0])
        raise ValueError(
            f"Two spans of mask {owner[k]} overlap in row {y[k]}: "
            f"[{x0[k]}, {x1[k]}) and [{x0[k + 1]}, {x1[k + 1]}); each pixel may be listed once."
        )
    begins = np.append(True, ~(neighbours & (x0[1:] == x1[:-1])))
    ends = np.append(begins[1:], True)
    counts = np.bincount(owner[begins], minlength=len(offsets) - 1)
    return np.concatenate([[0], np.cumsum(counts)]), y[begins], x0[begins], x1[ends]


def _spans_of(mask: BoolArray, y0: int, x0: int) -> tuple[Integers, Integers, Integers]:
    """Row, first column and the one after the last of the spans of a mask whose first pixel is (y0, x0)."""
    steps = np.diff(mask.astype(np.int8), axis=1, prepend=0, append=0)
    row, start = np.nonzero(steps == 1)
    return row + y0, start + x0, np.nonzero(steps == -1)[1] + x0


def _joins(
    begin: IntArray,
    end: IntArray,
    others: IntArray,
    lengths: Sequence[IntArray],
    owners: Sequence[IntArray],
    n_others: int,
    strict: bool,
) -> Iterator[tuple[IntArray, IntArray]]:
    """Join spans with those of the other set that begin within them.

    Yields, for a bounded number of span pairs each, the pairs of masks as
    ``owner * n_others + other owner`` and the pixels that they share.
    """
    order = np.argsort(others, kind="stable")
    beginnings = others[order]
    other_owner, other_length = owners[1][order], lengths[1][order]
    low = np.searchsorted(beginnings, begin, side="right" if strict else "left")
    count = np.searchsorted(beginnings, end, side="left") - low
    for start, stop in _chunks(count):
        counts = count[start:stop]
        other = _ranges(low[start:stop], counts)
        left = np.repeat(end[start:stop], counts) - beginnings[other]
        code = np.repeat(owners[0][start:stop] * n_others, counts) + other_owner[other]
        yield _add_up(code, np.minimum(left, other_length[other]))


def _add_up(code: IntArray, values: IntArray) -> tuple[IntArray, IntArray]:
    """Sum the values of equal codes; the codes come back sorted."""
    if not len(code):
        return code, values
    order = np.argsort(code, kind="stable")
    code = code[order]
    begins = np.flatnonzero(np.append(True, code[1:] != code[:-1]))
    return code[begins], np.add.reduceat(values[order], begins)
