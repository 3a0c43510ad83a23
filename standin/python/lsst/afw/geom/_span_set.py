# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of pixels as sorted runs, held in three arrays."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lsst.geom import AffineTransform, Box2D, Box2I, Extent2I, LinearTransform, Point2D, Point2I
from lsst.pex.exceptions import OutOfRangeError

from ._span import Span
from .ellipses import Ellipse, Quadrupole

__all__ = ["SpanSet", "Stencil"]


class Stencil(enum.Enum):
    """Shape of a structuring element."""

    CIRCLE = 0
    BOX = 1
    MANHATTAN = 2


_Runs = tuple[np.ndarray, np.ndarray, np.ndarray]


def _int32(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int32)


def _merge(y: np.ndarray, x0: np.ndarray, x1: np.ndarray) -> _Runs:
    """Sort runs and join those that touch or overlap in a row."""
    if y.size == 0:
        return _int32(y), _int32(x0), _int32(x1)
    line = _Line((y, x0, x1))
    begin, end = line.flatten(y, x0, x1)
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], end[order]
    reach = np.maximum.accumulate(end)
    first = np.concatenate([[True], begin[1:] > reach[:-1]])
    starts = np.flatnonzero(first)
    last = np.concatenate([starts[1:], [begin.size]]) - 1
    return line.unflatten(begin[starts], reach[last])


class _Line:
    """Rows laid end to end, so that runs are intervals of one integer axis.

    Parameters
    ----------
    *runs : `tuple` [`numpy.ndarray`]
        The (y, x0, x1) of every set that takes part.
    """

    def __init__(self, *runs: _Runs) -> None:
        full = [r for r in runs if r[0].size]
        self._y = min(int(r[0].min()) for r in full)
        self._x = min(int(r[1].min()) for r in full)
        # One pixel more than the widest row keeps rows from touching.
        self._stride = max(int(r[2].max()) for r in full) - self._x + 2

    def flatten(self, y: np.ndarray, x0: np.ndarray, x1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return begin and (exclusive) end of each run on the axis."""
        base = (y.astype(np.int64) - self._y) * self._stride - self._x
        return base + x0, base + x1 + 1

    def unflatten(self, begin: np.ndarray, end: np.ndarray) -> _Runs:
        """Return y, x0, x1 of intervals of the axis."""
        y, x0 = np.divmod(begin, self._stride)
        return _int32(y + self._y), _int32(x0 + self._x), _int32(x0 + self._x + (end - begin) - 1)


def _combine(a: _Runs, b: _Runs, table: tuple[bool, bool, bool]) -> _Runs:
    """Return the pixels (only in a, only in b, in both) that a table names."""
    line = _Line(a, b)
    begin_a, end_a = line.flatten(*a)
    begin_b, end_b = line.flatten(*b)
    edges = np.unique(np.concatenate([begin_a, end_a, begin_b, end_b]))
    left = edges[:-1]
    in_a = np.searchsorted(begin_a, left, "right") > np.searchsorted(end_a, left, "right")
    in_b = np.searchsorted(begin_b, left, "right") > np.searchsorted(end_b, left, "right")
    keep = (in_a & ~in_b & table[0]) | (in_b & ~in_a & table[1]) | (in_a & in_b & table[2])
    return line.unflatten(*_true_runs(keep, edges))


def _true_runs(keep: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join adjacent segments that are kept; return begins and ends."""
    step = np.diff(np.concatenate([[0], keep.astype(np.int8), [0]]))
    return edges[np.flatnonzero(step == 1)], edges[np.flatnonzero(step == -1)]


def _runs_of_array(selected: np.ndarray, x0: int, y0: int) -> _Runs:
    """Return the runs of a boolean array (y, x) with an origin."""
    padded = np.zeros((selected.shape[0], selected.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = selected
    step = np.diff(padded, axis=1)
    y, begin = np.nonzero(step == 1)
    end = np.nonzero(step == -1)[1]
    return _int32(y + y0), _int32(begin + x0), _int32(end + (x0 - 1))


class SpanSet:
    """A set of pixels, held as runs that are sorted and do not touch.

    Can be made of nothing, of a `lsst.geom.Box2I`, or of an iterable of
    `Span`.

    Parameters
    ----------
    spans : iterable of `Span` or `lsst.geom.Box2I`, optional
        The pixels; ``box=`` names a box.
    normalize : `bool`, optional
        If false the spans are taken as sorted and not touching.
    """

    __slots__ = ("_area", "_bbox", "_x0", "_x1", "_y")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = ("spans", "normalize")
        if "box" in kwargs and not args:
            args = (kwargs.pop("box"),)
        if len(args) > 2 or not set(kwargs) <= set(names[len(args) :]):
            raise TypeError(f"SpanSet takes (), (box) or (spans, normalize); given {args} {kwargs}.")
        spans = args[0] if args else kwargs.get("spans", ())
        normalize = args[1] if len(args) > 1 else kwargs.get("normalize", True)
        if isinstance(spans, Box2I):
            y = np.arange(spans.beginY, spans.endY) if not spans.isEmpty() else np.empty(0, int)
            self._set(y, np.full(y.size, spans.minX), np.full(y.size, spans.maxX))
            return
        if isinstance(spans, SpanSet):
            self._set(spans._y, spans._x0, spans._x1)
            return
        values = np.array([(s.getY(), s.getX0(), s.getX1()) for s in spans], dtype=np.int64).reshape(-1, 3)
        if normalize:
            self._set(*_merge(*values.T))
        else:
            self._set(*values.T)

    def _set(self, y: np.ndarray, x0: np.ndarray, x1: np.ndarray) -> None:
        self._y, self._x0, self._x1 = _int32(y), _int32(x0), _int32(x1)
        self._area: int | None = None
        self._bbox: Box2I | None = None

    @classmethod
    def _from_arrays(cls, y: Any, x0: Any, x1: Any, normalize: bool = True) -> SpanSet:
        """Make a set of arrays of rows and of first and last columns.

        Parameters
        ----------
        y, x0, x1 : array_like, shape (N,)
            Rows, first columns and last columns.
        normalize : `bool`, optional
            If false, the runs are taken as sorted and not touching.
        """
        new = cls.__new__(cls)
        runs = (np.asarray(y), np.asarray(x0), np.asarray(x1))
        if normalize:
            runs = _merge(*runs)
        new._set(*runs)
        return new

    @classmethod
    def _from_bool(cls, selected: np.ndarray, x0: int = 0, y0: int = 0) -> SpanSet:
        """Make a set of the true pixels of an array (y, x) with an origin."""
        return cls._from_arrays(*_runs_of_array(selected, x0, y0), normalize=False)

    @property
    def _runs(self) -> _Runs:
        return self._y, self._x0, self._x1

    @staticmethod
    def fromMask(mask: Any, bitmask: int | None = None) -> SpanSet:
        """Make a set of the pixels of a mask in which a bit is set.

        Parameters
        ----------
        mask : `lsst.afw.image.Mask`
            The mask.
        bitmask : `int`, optional
            The bits that count; all of them if not given.
        """
        if not hasattr(mask, "getXY0") or mask.array.dtype.kind not in "iu":
            raise TypeError(f"SpanSet.fromMask takes a Mask; given {type(mask).__name__}.")
        array = mask.array
        selected = array != 0 if bitmask is None else (array & array.dtype.type(bitmask)) != 0
        x0, y0 = mask.getXY0()
        return SpanSet._from_bool(selected, x0, y0)

    @staticmethod
    def fromShape(*args: Any, **kwargs: Any) -> SpanSet:
        """Make a set of a stencil or an ellipse.

        Parameters
        ----------
        radius : `int` or `lsst.afw.geom.ellipses.Ellipse`
            Radius of the stencil, or an ellipse; then nothing else is given.
        stencil : `Stencil`, optional
            Shape of the stencil, a circle by default.
        offset : `lsst.geom.Point2I` or `tuple` [`int`], optional
            Centre of the stencil.
        """
        if len(args) == 1 and isinstance(args[0], Ellipse) and not kwargs:
            return _ellipse_spans(args[0])
        return _stencil_spans(*args, **kwargs)

    # Numbers ------------------------------------------------------------

    def getArea(self) -> int:
        """Return the number of pixels."""
        if self._area is None:
            widths = self._x1.astype(np.int64) - self._x0 + 1
            self._area = int(widths.sum())
        return self._area

    def getBBox(self) -> Box2I:
        """Return the smallest box around all pixels."""
        if self._bbox is None:
            self._bbox = (
                Box2I(
                    Point2I(int(self._x0.min()), int(self._y[0])),
                    Point2I(int(self._x1.max()), int(self._y[-1])),
                )
                if self._y.size
                else Box2I()
            )
        return Box2I(self._bbox)

    def computeCentroid(self) -> Point2D:
        """Return the mean position of the pixels."""
        width = self._x1.astype(float) - self._x0 + 1.0
        area = width.sum()
        if area == 0:
            return Point2D(np.nan, np.nan)
        x = float((width * 0.5 * (self._x0.astype(float) + self._x1)).sum() / area)
        return Point2D(x, float((width * self._y).sum() / area))

    def computeShape(self) -> Quadrupole:
        """Return the second moments of the pixels about the centroid."""
        xc, yc = self.computeCentroid()
        width = self._x1.astype(float) - self._x0 + 1.0
        area = width.sum()
        if area == 0:
            return Quadrupole(np.nan, np.nan, np.nan)
        dx = 0.5 * (self._x0.astype(float) + self._x1) - xc
        dy = self._y - yc
        # A run of n pixels about its middle has the sum n (n^2 - 1) / 12.
        sum_xx = (width * dx * dx + width * (width * width - 1.0) / 12.0).sum()
        return Quadrupole(
            float(sum_xx / area), float((width * dy * dy).sum() / area), float((width * dx * dy).sum() / area)
        )

    def indices(self) -> np.ndarray:
        """Return the y and x of every pixel, an int32 array (2, N)."""
        return np.stack(self._pixels(0, 0)).astype(np.int32, copy=False)

    def _pixels(self, x0: int, y0: int) -> tuple[np.ndarray, np.ndarray]:
        """Return y and x of every pixel from an origin."""
        width = self._x1.astype(np.int64) - self._x0 + 1
        y = np.repeat(self._y.astype(np.int64) - y0, width)
        first = np.cumsum(width) - width
        x = np.arange(width.sum()) + np.repeat(self._x0.astype(np.int64) - x0 - first, width)
        return y, x

    def asArray(self, shape: tuple[int, int] | None = None, xy0: Any = None) -> np.ndarray:
        """Return a boolean array in which the pixels are true.

        Parameters
        ----------
        shape : `tuple` [`int`], optional
            Height and width; those of the bounding box by default.
        xy0 : `lsst.geom.Point2I` or `tuple` [`int`], optional
            Position of the first pixel of the array; the minimum of the
            bounding box by default.
        """
        bbox = self.getBBox()
        if shape is None:
            shape = (bbox.height, bbox.width)
        x0, y0 = bbox.getMin() if xy0 is None else (xy0[0], xy0[1])
        result = np.zeros(shape, dtype=bool)
        y, x = self._pixels(x0, y0)
        result[y, x] = True
        return result

    # Relations ------------------------------------------------------------

    def contains(self, other: Any) -> bool:
        """Tell whether a pixel or all pixels of another set are inside."""
        if isinstance(other, SpanSet):
            if not other._y.size or not self._y.size:
                return False
            line = _Line(self._runs, other._runs)
            begin, end = line.flatten(*self._runs)
            begin_other, end_other = line.flatten(*other._runs)
            at = np.searchsorted(begin, begin_other, "right") - 1
            return bool(np.all(at >= 0) and np.all(end[at] >= end_other))
        if not isinstance(other, Point2I):
            raise TypeError(f"SpanSet.contains takes a SpanSet or Point2I; given {other!r}.")
        low, high = np.searchsorted(self._y, other.y, "left"), np.searchsorted(self._y, other.y, "right")
        return bool(np.any((self._x0[low:high] <= other.x) & (self._x1[low:high] >= other.x)))

    __contains__ = contains

    def overlaps(self, other: SpanSet) -> bool:
        """Tell whether two sets share a pixel."""
        if not self._y.size or not other._y.size or not self.getBBox().overlaps(other.getBBox()):
            return False
        return bool(_combine(self._runs, other._runs, (False, False, True))[0].size)

    def _label(self) -> np.ndarray:
        """Return a number for each run: runs that touch share it.

        Runs touch if they share a column in adjacent rows; numbers count up
        in the order of the first run of each region.
        """
        n = self._y.size
        line = _Line(self._runs)
        begin, end = line.flatten(*self._runs)
        below_begin, below_end = line.flatten(self._y - np.int32(1), self._x0, self._x1)
        # For each run, the range of runs of the previous row that it touches.
        low = np.searchsorted(end, below_begin, "right")
        high = np.searchsorted(begin, below_end, "left")
        count = np.maximum(high - low, 0)
        total = int(count.sum())
        run = np.repeat(np.arange(n), count)
        first = np.cumsum(count) - count
        touched = np.arange(total) + np.repeat(low - first, count)
        graph = coo_array((np.ones(total, dtype=np.int8), (run, touched)), shape=(n, n))
        labels = connected_components(graph, directed=False)[1]
        # Number the regions by their first run, whatever the search order.
        _, index, inverse = np.unique(labels, return_index=True, return_inverse=True)
        rank = np.empty(index.size, dtype=np.int64)
        rank[np.argsort(index)] = np.arange(index.size)
        return rank[inverse]

    def isContiguous(self) -> bool:
        """Tell whether all pixels are connected by their edges."""
        return self._y.size == 0 or int(self._label().max()) == 0

    def split(self) -> list[SpanSet]:
        """Return the regions of pixels that are connected by their edges."""
        if self._y.size == 0:
            return []
        labels = self._label()
        order = np.argsort(labels, kind="stable")
        bounds = np.flatnonzero(np.diff(labels[order])) + 1
        return [
            SpanSet._from_arrays(self._y[part], self._x0[part], self._x1[part], normalize=False)
            for part in np.split(order, bounds)
        ]

    # Algebra ----------------------------------------------------------------

    def _other(self, other: Any, bitmask: int | None, within: bool = False) -> SpanSet:
        """Return the operand as a set; a mask counts where bits are set."""
        if isinstance(other, SpanSet):
            return other
        return SpanSet.fromMask(other, bitmask)

    def intersect(self, other: Any, bitmask: int | None = None) -> SpanSet:
        """Return the pixels that are also in a set or marked in a mask."""
        b = self._other(other, bitmask)
        if not self._y.size or not b._y.size:
            return SpanSet()
        return SpanSet._from_arrays(*_combine(self._runs, b._runs, (False, False, True)), normalize=False)

    def intersectNot(self, other: Any, bitmask: int | None = None) -> SpanSet:
        """Return the pixels that are not in a set nor marked in a mask.

        With a mask and a bitmask, pixels outside the mask are left out too.
        """
        a = self
        if not isinstance(other, SpanSet) and bitmask is not None:
            a = self.clippedTo(other.getBBox())
        b = self._other(other, bitmask)
        if not a._y.size or not b._y.size:
            return SpanSet._from_arrays(*a._runs, normalize=False)
        return SpanSet._from_arrays(*_combine(a._runs, b._runs, (True, False, False)), normalize=False)

    def union(self, other: Any, bitmask: int | None = None) -> SpanSet:
        """Return the pixels that are in either set or marked in a mask."""
        b = self._other(other, bitmask)
        return SpanSet._from_arrays(
            np.concatenate([self._y, b._y]),
            np.concatenate([self._x0, b._x0]),
            np.concatenate([self._x1, b._x1]),
        )

    def shiftedBy(self, x: Any, y: int | None = None) -> SpanSet:
        """Return the set moved by an extent or by x and y."""
        dx, dy = (x[0], x[1]) if y is None else (x, y)
        dx, dy = np.int32(dx), np.int32(dy)
        return SpanSet._from_arrays(self._y + dy, self._x0 + dx, self._x1 + dx, normalize=False)

    def clippedTo(self, box: Box2I) -> SpanSet:
        """Return the pixels inside a box."""
        if box.isEmpty():
            return SpanSet()
        keep = (self._y >= box.minY) & (self._y <= box.maxY) & (self._x0 <= box.maxX) & (self._x1 >= box.minX)
        return SpanSet._from_arrays(
            self._y[keep],
            np.maximum(self._x0[keep], box.minX),
            np.minimum(self._x1[keep], box.maxX),
            normalize=False,
        )

    def dilated(self, *args: Any, **kwargs: Any) -> SpanSet:
        """Return the set grown by a stencil.

        Parameters
        ----------
        radius : `int` or `SpanSet`
            Radius of the stencil, or the stencil itself.
        stencil : `Stencil`, optional
            Shape of the stencil, a circle by default.
        """
        other = self._stencil(args, kwargs)
        if not other._y.size or not self._y.size:
            return SpanSet._from_arrays(*self._runs, normalize=False)
        return SpanSet._from_arrays(
            (self._y[:, None] + other._y).ravel(),
            (self._x0[:, None] + other._x0).ravel(),
            (self._x1[:, None] + other._x1).ravel(),
        )

    def eroded(self, *args: Any, **kwargs: Any) -> SpanSet:
        """Return the pixels at which a stencil fits inside the set.

        Parameters
        ----------
        radius : `int` or `SpanSet`
            Radius of the stencil, or the stencil itself.
        stencil : `Stencil`, optional
            Shape of the stencil, a circle by default.
        """
        other = self._stencil(args, kwargs)
        if not other._y.size or not self._y.size:
            return SpanSet._from_arrays(*self._runs, normalize=False)
        y = (self._y[:, None] - other._y).ravel()
        x0 = (self._x0[:, None] - other._x0).ravel()
        x1 = (self._x1[:, None] - other._x1).ravel()
        fits = x1 >= x0
        runs = (y[fits], x0[fits], x1[fits])
        if not runs[0].size:
            return SpanSet()
        # Each run of the stencil asks for one cover of the pixel, and runs of
        # one set never overlap, so a pixel is in if all covers are there.
        line = _Line(runs)
        begin, end = line.flatten(*runs)
        edges = np.unique(np.concatenate([begin, end]))
        change = np.zeros(edges.size, dtype=np.int64)
        np.add.at(change, np.searchsorted(edges, begin), 1)
        np.add.at(change, np.searchsorted(edges, end), -1)
        keep = np.cumsum(change)[:-1] == other._y.size
        return SpanSet._from_arrays(*line.unflatten(*_true_runs(keep, edges)), normalize=False)

    @staticmethod
    def _stencil(args: tuple[Any, ...], kwargs: dict[str, Any]) -> SpanSet:
        if len(args) == 1 and isinstance(args[0], SpanSet) and not kwargs:
            return args[0]
        return _stencil_spans(*args, **kwargs)

    def findEdgePixels(self) -> SpanSet:
        """Return the pixels that have a neighbour outside the set."""
        return self.intersectNot(self.eroded(1, Stencil.CIRCLE))

    def transformedBy(self, t: Any) -> SpanSet:
        """Return the pixels whose image under the inverse map is inside.

        Parameters
        ----------
        t : `lsst.geom.LinearTransform`, `lsst.geom.AffineTransform` or `TransformPoint2ToPoint2`
            The map.
        """
        from ._transform import TransformPoint2ToPoint2, makeTransform

        if isinstance(t, LinearTransform):
            t = AffineTransform(t)
        if isinstance(t, AffineTransform):
            t = makeTransform(t)
        if not isinstance(t, TransformPoint2ToPoint2):
            raise TypeError(f"SpanSet.transformedBy takes a transform or an affine map; given {t!r}.")
        if not self._y.size:
            return SpanSet()
        corners = [Point2D(corner) for corner in self.getBBox().getCorners()]
        mapped = t.applyForward(corners)
        # A map that does not find its way back has no meaning here.
        for corner, back in zip(corners, t.applyInverse(mapped), strict=True):
            if not max(abs(back.x - corner.x), abs(back.y - corner.y)) <= 1.0:
                return SpanSet()
        outline = Box2D()
        for corner in mapped:
            outline.include(corner)
        box = Box2I(outline)
        old = self.getBBox()
        inside = self.asArray()
        x, y = np.meshgrid(
            np.arange(box.beginX, box.endX, dtype=float), np.arange(box.beginY, box.endY, dtype=float)
        )
        source = (np.asarray(v).reshape(x.shape) for v in t._inverse(x.ravel(), y.ravel()))
        source_x, source_y = (np.floor(0.5 + v).astype(np.int64) for v in source)
        source_x, source_y = source_x - old.minX, source_y - old.minY
        valid = (source_x >= 0) & (source_y >= 0) & (source_x < old.width) & (source_y < old.height)
        selected = np.zeros(x.shape, dtype=bool)
        selected[valid] = inside[source_y[valid], source_x[valid]]
        return SpanSet._from_bool(selected, box.minX, box.minY)

    # Pixels -----------------------------------------------------------------

    def _indices_in(self, shape: tuple[int, ...], xy0: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return y and x in an array, or raise if one is outside."""
        x0, y0 = int(xy0[0]), int(xy0[1])
        if self._y.size and (
            self._x0.min() < x0
            or self._y[0] < y0
            or self._x1.max() >= x0 + shape[1]
            or self._y[-1] >= y0 + shape[0]
        ):
            raise OutOfRangeError("SpanSet bounding box lands outside array")
        return self._pixels(x0, y0)

    def setMask(self, target: Any, bitmask: int) -> None:
        """Set bits in a mask (`lsst.afw.image.Mask`) at the pixels."""
        array = target.array
        array[self._indices_in(array.shape, target.getXY0())] |= array.dtype.type(bitmask)

    def clearMask(self, target: Any, bitmask: int) -> None:
        """Clear bits in a mask (`lsst.afw.image.Mask`) at the pixels."""
        array = target.array
        array[self._indices_in(array.shape, target.getXY0())] &= ~array.dtype.type(bitmask)

    def setImage(self, image: Any, val: float, region: Box2I | None = None, doClip: bool = False) -> None:
        """Set the pixels of an image to a value.

        Parameters
        ----------
        image : `lsst.afw.image.Image`
            Changed in place.
        val : `float`
            The value.
        region : `lsst.geom.Box2I`, optional
            Where to clip to, the image by default.
        doClip : `bool`, optional
            Leave out pixels outside the region.
        """
        spans = self
        if doClip:
            spans = self.clippedTo(image.getBBox() if region is None or region.isEmpty() else region)
        try:
            where = spans._indices_in(image.array.shape, image.getXY0())
        except OutOfRangeError:
            raise OutOfRangeError("Footprint Bounds Outside image, set doClip to true") from None
        image.array[where] = val

    def copyImage(self, src: Any, dest: Any) -> None:
        """Copy the pixels of one image to another."""
        target = self._indices_in(dest.array.shape, dest.getXY0())
        dest.array[target] = src.array[self._indices_in(src.array.shape, src.getXY0())]

    def copyMaskedImage(self, src: Any, dest: Any) -> None:
        """Copy image, mask and variance of the pixels."""
        for plane in ("image", "mask", "variance"):
            self.copyImage(getattr(src, plane), getattr(dest, plane))

    def flatten(self, *args: Any, xy0: Any = None, **kwargs: Any) -> np.ndarray | None:
        """Take the pixels out of an array (y, x, ...).

        Parameters
        ----------
        output : `numpy.ndarray`, shape (N, ...), optional
            Where to write; then nothing is returned.
        input : `numpy.ndarray`, shape (height, width, ...)
            The array.
        xy0 : `lsst.geom.Point2I`, optional
            Position of the first pixel of the array, (0, 0) by default.

        Returns
        -------
        flat : `numpy.ndarray`, shape (N, ...)
            The values in the order of the spans.
        """
        output, array, xy0 = self._array_arguments(args, kwargs, xy0)
        values = array[self._indices_in(array.shape, xy0)]
        if output is None:
            return values
        output[...] = values
        return None

    def unflatten(self, *args: Any, xy0: Any = None, **kwargs: Any) -> np.ndarray | None:
        """Put values into an array (y, x, ...).

        Parameters
        ----------
        output : `numpy.ndarray`, shape (height, width, ...), optional
            Where to write; then nothing is returned.
        input : `numpy.ndarray`, shape (N, ...)
            The values in the order of the spans.
        xy0 : `lsst.geom.Point2I`, optional
            Position of the first pixel of ``output``, (0, 0) by default.

        Returns
        -------
        array : `numpy.ndarray`
            Array of the size of the bounding box, zero outside the spans.
        """
        output, values, xy0 = self._array_arguments(args, kwargs, xy0)
        if output is not None:
            output[self._indices_in(output.shape, xy0)] = values
            return None
        bbox = self.getBBox()
        result = np.zeros((bbox.height, bbox.width, *values.shape[1:]), dtype=values.dtype)
        result[self._pixels(bbox.minX, bbox.minY)] = values
        return result

    @staticmethod
    def _array_arguments(
        args: tuple[Any, ...], kwargs: dict[str, Any], xy0: Any
    ) -> tuple[np.ndarray | None, np.ndarray, Any]:
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        rest = [a for a in args if not isinstance(a, np.ndarray)]
        if rest:
            xy0 = rest[0]
        if "output" in kwargs:
            arrays.insert(0, kwargs["output"])
        if "input" in kwargs:
            arrays.append(kwargs["input"])
        if not 1 <= len(arrays) <= 2:
            raise TypeError("Incompatible arguments: give the input array, and the output array if wanted.")
        origin = (0, 0) if xy0 is None else xy0
        return (arrays[0] if len(arrays) == 2 else None), arrays[-1], origin

    # Python -----------------------------------------------------------------

    def __iter__(self) -> Iterator[Span]:
        return (
            Span(y, x0, x1)
            for y, x0, x1 in zip(self._y.tolist(), self._x0.tolist(), self._x1.tolist(), strict=True)
        )

    def __len__(self) -> int:
        return int(self._y.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SpanSet):
            return NotImplemented
        return all(np.array_equal(a, b) for a, b in zip(self._runs, other._runs, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return "".join(f"{span}\n" for span in self)

    def __repr__(self) -> str:
        rows = self.asArray().astype(int).tolist()
        return "".join("[" + ", ".join(str(v) for v in row) + "]\n" for row in rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self._y, self._x0, self._x1)


def _unpickle(y: np.ndarray, x0: np.ndarray, x1: np.ndarray) -> SpanSet:
    return SpanSet._from_arrays(y, x0, x1, normalize=False)


def _stencil_spans(
    radius: int, stencil: Stencil = Stencil.CIRCLE, offset: Point2I | Extent2I | Iterable[int] = (0, 0)
) -> SpanSet:
    """Return a stencil of a radius."""
    if not isinstance(stencil, Stencil):
        raise TypeError(f"The shape of a stencil is a Stencil; given {stencil!r}.")
    dy = np.arange(-radius, radius + 1)
    if stencil is Stencil.CIRCLE:
        dx = np.sqrt(radius * radius - dy * dy).astype(int)
    elif stencil is Stencil.MANHATTAN:
        dx = radius - np.abs(dy)
    else:
        dx = np.full(dy.size, radius)
    x, y = offset
    return SpanSet._from_arrays(dy + y, x - dx, x + dx, normalize=False)


def _ellipse_spans(ellipse: Ellipse) -> SpanSet:
    """Return the pixels whose centres are inside an ellipse.

    The ends of each row solve the quadratic of the ellipse's outline,
    x = p y +- sqrt(r - t y^2) with p = Ixy / Iyy, r = Ixx - Ixy p, t = r / Iyy.
    """
    box = Box2I(ellipse.computeBBox())
    if box.isEmpty():
        return SpanSet()
    core = Quadrupole(ellipse.getCore())
    ixx, iyy, ixy = core.getIxx(), core.getIyy(), core.getIxy()
    if iyy < ixx * np.finfo(float).eps:
        p, r, t = 0.0, ixx, 0.0
    else:
        p = ixy / iyy
        r = ixx - ixy * p
        t = r / iyy
    y = np.arange(box.beginY, box.endY)
    dy = y - ellipse.getCenter().y
    square = r - t * dy * dy
    y, dy, square = y[square >= 0], dy[square >= 0], square[square >= 0]
    middle, half = p * dy + ellipse.getCenter().x, np.sqrt(square)
    x0, x1 = np.ceil(middle - half).astype(int), np.floor(middle + half).astype(int)
    keep = x1 >= x0
    return SpanSet._from_arrays(y[keep], x0[keep], x1[keep], normalize=False)
