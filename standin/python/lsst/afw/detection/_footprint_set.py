# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection of footprints in images, and growing and merging them."""

from __future__ import annotations

__all__ = ["FootprintSet"]

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lsst.afw.geom import SpanSet, Stencil
from lsst.afw.table import Schema
from lsst.geom import Box2I
from lsst.pex.exceptions import InvalidParameterError, LogicError
from lsst.pex.exceptions import RuntimeError as PexRuntimeError

from ._footprint import Footprint
from ._footprint_ctrl import FootprintControl, HeavyFootprintCtrl
from ._heavy_footprint import makeHeavyFootprint
from ._peak import PeakTable, make_peak_catalogs
from ._runs import box_bounds, component_labels, find_runs, paint_runs, split_starts
from ._threshold import Threshold

if TYPE_CHECKING:
    from lsst.afw.image import ImageL
    from lsst.afw.image import MaskX as Mask
    from lsst.afw.image._image import _TypedImage as Image
    from lsst.afw.image._maskedImage import _MaskedImageBase as MaskedImage
    from lsst.afw.table import SourceCatalog

_NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)


def _above(array: np.ndarray, level: float, polarity: bool) -> np.ndarray:
    """Compare pixels with a level in double precision, without a copy."""
    if not polarity:
        level = -level
    if array.dtype.kind != "f":
        return array >= np.float64(level) if polarity else array <= np.float64(level)
    # The nearest level of the pixel type on the far side decides the same.
    rounded = array.dtype.type(level)
    if polarity:
        if float(rounded) < level:
            rounded = np.nextafter(rounded, array.dtype.type(np.inf))
        return array >= rounded
    if float(rounded) > level:
        rounded = np.nextafter(rounded, array.dtype.type(-np.inf))
    return array <= rounded


def _select(
    array: np.ndarray, variance: np.ndarray | None, threshold: Threshold, level: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Find the pixels past the threshold and past that of inclusion.

    Parameters
    ----------
    array : `numpy.ndarray`, (height, width)
        Pixels.
    variance : `numpy.ndarray`, (height, width), or `None`
        Variance, where the threshold goes by each pixel's noise.
    threshold : `Threshold`
        Polarity, and multiplier of inclusion.
    level : `float`
        Level in pixel units, or in units of each pixel's noise.

    Returns
    -------
    selected : `numpy.ndarray`, (height, width)
        Boolean image of pixels to detect; NaN is never in it.
    included : `numpy.ndarray`, (height, width), or `None`
        Pixels of which a footprint must have one; `None`: any will do.
    """
    polarity, multiplier = threshold.getPolarity(), threshold.getIncludeMultiplier()
    if variance is None:
        selected = _above(array, level, polarity)
        included = None if multiplier == 1.0 else _above(array, level * multiplier, polarity)
        return selected, included
    with np.errstate(invalid="ignore"):
        noise = np.sqrt(variance.astype(np.float64))
        signed = array if polarity else -array.astype(np.float64)
        selected = signed >= level * noise
        included = None if multiplier == 1.0 else signed >= level * multiplier * noise
    return selected, included


def _peakPixels(array: np.ndarray, selected: np.ndarray, polarity: bool) -> tuple[np.ndarray, np.ndarray]:
    """Find the selected pixels that no neighbour exceeds.

    Parameters
    ----------
    array : `numpy.ndarray`, (height, width)
        Pixels.
    selected : `numpy.ndarray`, (height, width)
        Where to look.
    polarity : `bool`
        True for maxima, False for minima.

    Returns
    -------
    y, x : `numpy.ndarray`, (P,)
        Positions in row-major order. Pixels at the edge of the image are
        never peaks.
    """
    height, width = array.shape
    if height < 3 or width < 3:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    center = array[1:-1, 1:-1]
    peaks = selected[1:-1, 1:-1].copy()
    exceeds = np.greater if polarity else np.less
    for dy, dx in _NEIGHBOURS:
        # NaN exceeds nothing.
        peaks &= ~exceeds(array[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx], center)
    y, x = np.nonzero(peaks)
    return y + 1, x + 1


def _detect(
    array: np.ndarray,
    region: Box2I,
    selected: np.ndarray,
    included: np.ndarray | None,
    polarity: bool,
    npixMin: int,
    setPeaks: bool,
    peakSchema: Schema | None,
) -> list[Footprint]:
    """Make the footprints of connected selected pixels."""
    left, bottom, _, _ = box_bounds(region)
    y, x0, x1 = find_runs(selected)
    n_components, labels = component_labels(y, x0, x1)
    widths = x1.astype(np.int64) - x0 + 1
    keep = np.bincount(labels, weights=widths, minlength=n_components) >= npixMin
    if included is not None:
        height, width = selected.shape
        before = np.zeros((height, width + 1), np.int64)
        np.cumsum(included, axis=1, out=before[:, 1:])
        good = before[y, x1 + 1] > before[y, x0]
        keep &= np.bincount(labels[good], minlength=n_components) > 0

    # Number what is kept, and sort the runs by footprint; the sort is stable,
    # so each footprint's runs stay in row-major order.
    rank = np.cumsum(keep) - 1
    chosen = keep[labels] if n_components else np.zeros(0, bool)
    labels, y, x0, x1 = rank[labels[chosen]], y[chosen], x0[chosen], x1[chosen]
    order = np.argsort(labels, kind="stable")
    labels, y, x0, x1 = labels[order], y[order], x0[order], x1[order]
    n_footprints = int(keep.sum())
    runs = (y, x0, x1)
    # As new arrays: spans must not change with anything else.
    y, x0, x1 = y + np.int32(bottom), x0 + np.int32(left), x1 + np.int32(left)
    starts = split_starts(labels, n_footprints)
    footprints = []
    for i in range(n_footprints):
        part = slice(starts[i], starts[i + 1])
        spans = SpanSet._from_arrays(y[part], x0[part], x1[part], normalize=False)
        if peakSchema is None:
            footprints.append(Footprint(spans, region))
        else:
            footprints.append(Footprint(spans, peakSchema, region))
    if setPeaks and footprints:
        schema = PeakTable.makeMinimalSchema() if peakSchema is None else peakSchema
        _setPeaks(footprints, schema, array, selected, labels, runs, (left, bottom), polarity)
    return footprints


def _setPeaks(
    footprints: Sequence[Footprint],
    schema: Schema,
    array: np.ndarray,
    selected: np.ndarray,
    labels: np.ndarray,
    runs: tuple[np.ndarray, np.ndarray, np.ndarray],
    corner: tuple[int, int],
    polarity: bool,
) -> None:
    """Add the local extrema to new footprints, highest first.

    A footprint without one gets its highest (lowest) pixel.

    Parameters
    ----------
    footprints : `~collections.abc.Sequence` [`Footprint`]
        Footprints without peaks.
    schema : `lsst.afw.table.Schema`
        Schema of the peaks.
    array : `numpy.ndarray`, (height, width)
        Pixels.
    selected : `numpy.ndarray`, (height, width)
        Pixels past the threshold.
    labels : `numpy.ndarray`, (R,)
        Footprint of each run, increasing.
    runs : `tuple` [`numpy.ndarray`, `numpy.ndarray`, `numpy.ndarray`]
        Row, first and last column of each run, in array coordinates.
    corner : `tuple` [`int`, `int`]
        x0 and y0 of the array.
    polarity : `bool`
        True for maxima, False for minima.
    """
    n_footprints = len(footprints)
    py, px = _peakPixels(array, selected, polarity)
    y, x0, x1 = runs
    width = array.shape[1]
    starts = y.astype(np.int64) * width + x0
    by_pixel = np.argsort(starts)
    at = np.searchsorted(starts[by_pixel], py * width + px, side="right") - 1
    run = by_pixel[np.maximum(at, 0)]
    # Some selected pixels are in footprints that were not kept.
    kept = (at >= 0) & (y[run] == py) & (px <= x1[run])
    owner, py, px = labels[run[kept]], py[kept], px[kept]
    without = np.flatnonzero(np.bincount(owner, minlength=n_footprints) == 0)
    if without.size:
        first_run = split_starts(labels, n_footprints)
        extra = [
            _extremum(array, [a[first_run[i] : first_run[i + 1]] for a in runs], polarity) for i in without
        ]
        owner = np.concatenate([owner, without])
        py = np.concatenate([py, [y for y, _ in extra]])
        px = np.concatenate([px, [x for _, x in extra]])
    # IDs go by footprint and pixel; the catalogues are by falling value.
    order = np.argsort(owner, kind="stable")
    owner, py, px = owner[order], py[order], px[order]
    value = array[py, px]
    order = np.lexsort((py, px, -value.astype(np.float64), owner))
    catalogs = make_peak_catalogs(
        schema,
        split_starts(owner, n_footprints),
        order,
        px[order] + corner[0],
        py[order] + corner[1],
        value[order],
    )
    for footprint, peaks in zip(footprints, catalogs, strict=True):
        footprint._peakCatalog = peaks


def _extremum(array: np.ndarray, runs: Sequence[np.ndarray], polarity: bool) -> tuple[int, int]:
    """Return row and column of the highest (lowest) pixel of runs."""
    y, x0, x1 = runs
    pixels = np.concatenate([array[row, a : b + 1] for row, a, b in zip(y, x0, x1, strict=True)])
    best = int(np.argmax(pixels) if polarity else np.argmin(pixels))
    ends = np.cumsum(x1.astype(np.int64) - x0 + 1)
    at = int(np.searchsorted(ends, best, side="right"))
    return int(y[at]), int(x1[at]) - (int(ends[at]) - 1 - best)


class FootprintSet:
    """Footprints that were detected together.

    The signatures are

    - ``(img: Image, threshold, npixMin=1, setPeaks=True, peakSchema=...)``
    - ``(img: MaskedImage, threshold, planeName="", npixMin=1,
      setPeaks=True)``; ``planeName`` is a mask plane to set where
      footprints are
    - ``(img: Mask, threshold, npixMin=1)``, without peaks
    - ``(region: Box2I)``, empty
    - ``(set: FootprintSet)``, copies of the footprints
    - ``(set: FootprintSet, rGrow: int, isotropic: bool)``
    - ``(set: FootprintSet, rGrow: int, ctrl: FootprintControl)``, grown

    Pixels belong together if they touch by a side or a corner.

    Parameters
    ----------
    img : `lsst.afw.image.Image`, `~lsst.afw.image.MaskedImage` or \
            `~lsst.afw.image.Mask`
        Where to detect.
    threshold : `Threshold`
        Level.
    npixMin : `int`, optional
        The fewest pixels of a footprint.
    setPeaks : `bool`, optional
        Look for peaks.
    peakSchema : `lsst.afw.table.Schema`, optional
        Schema of the peaks.
    rGrow : `int`
        How far to grow, in pixels.
    isotropic : `bool`
        Grow by a disc and not by a diamond.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._footprints: list[Footprint] = []
        self._region = Box2I()
        first: Any = None
        if args:
            first, *args = args  # type: ignore[assignment]
        else:
            name = next((name for name in ("img", "region", "set") if name in kwargs), None)
            first = kwargs.pop(name, None)  # type: ignore[arg-type]
        if isinstance(first, Box2I) and not args and not kwargs:
            self._region = Box2I(first)
        elif isinstance(first, FootprintSet):
            self._initFromSet(first, *args, **kwargs)
        elif hasattr(first, "getPlaneBitMask"):
            self._initFromMask(first, *args, **kwargs)
        elif hasattr(first, "variance") and not hasattr(first, "info"):
            self._initFromMaskedImage(first, *args, **kwargs)
        elif hasattr(first, "array"):
            self._initFromImage(first, *args, **kwargs)
        else:
            raise TypeError(
                "FootprintSet is made from an Image, a MaskedImage or a Mask with a Threshold, from a Box2I "
                f"or from a FootprintSet, not from {first!r}."
            )

    def _initFromImage(
        self,
        img: Image,
        threshold: Threshold,
        npixMin: int = 1,
        setPeaks: bool = True,
        peakSchema: Schema | None = None,
    ) -> None:
        array, self._region = img.array, img.getBBox()
        # An image has no variance and no bits: other types mean the value.
        selected, included = _select(array, None, threshold, threshold._levelFor(array))
        self._footprints = _detect(
            array, self._region, selected, included, threshold.getPolarity(), npixMin, setPeaks, peakSchema
        )

    def _initFromMask(self, img: Mask, threshold: Threshold, npixMin: int = 1) -> None:
        array, self._region = img.array, img.getBBox()
        if threshold.getType() is Threshold.BITMASK:
            selected, included = (array & int(threshold.getValue())) != 0, None
        elif threshold.getType() is Threshold.VALUE:
            selected, included = _select(array, None, threshold, threshold.getValue())
        else:
            raise InvalidParameterError("You must specify a numerical threshold value with a Mask")
        self._footprints = _detect(
            array, self._region, selected, included, threshold.getPolarity(), npixMin, False, None
        )

    def _initFromMaskedImage(
        self,
        img: MaskedImage,
        threshold: Threshold,
        planeName: str = "",
        npixMin: int = 1,
        setPeaks: bool = True,
    ) -> None:
        if not isinstance(planeName, str):
            raise TypeError(
                f"planeName is the name of a mask plane, not {planeName!r}; npixMin comes after it."
            )
        array, self._region = img.image.array, img.getBBox()
        variance = img.variance.array if threshold.getType() is Threshold.PIXEL_STDEV else None
        selected, included = _select(array, variance, threshold, threshold._levelFor(array))
        self._footprints = _detect(
            array, self._region, selected, included, threshold.getPolarity(), npixMin, setPeaks, None
        )
        if planeName:
            img.mask.addMaskPlane(planeName)
            self.setMask(img.mask, planeName)

    def _initFromSet(self, other: FootprintSet, *args: Any, **kwargs: Any) -> None:
        if not args and not kwargs:
            self._footprints = [Footprint(footprint) for footprint in other._footprints]
            self._region = other.getRegion()
            return
        if args and isinstance(args[0], FootprintSet):
            raise LogicError("NOT IMPLEMENTED")
        grown = _grow(other, *args, **kwargs)
        self._footprints, self._region = grown._footprints, grown._region

    def swap(self, other: FootprintSet) -> None:
        """Swap everything with another set."""
        self._footprints, other._footprints = other._footprints, self._footprints
        self._region, other._region = other._region, self._region

    def getFootprints(self) -> list[Footprint]:
        """Return a list of the footprints themselves."""
        return list(self._footprints)

    def setFootprints(self, footprints: Iterable[Footprint]) -> None:
        """Set the footprints."""
        self._footprints = list(footprints)

    def getRegion(self) -> Box2I:
        """Return the bounding box of the image searched."""
        return Box2I(self._region)

    def setRegion(self, region: Box2I) -> None:
        """Set the region of the set and of each footprint."""
        self._region = Box2I(region)
        for footprint in self._footprints:
            footprint.setRegion(region)

    def makeSources(self, cat: SourceCatalog) -> None:
        """Append one new record to a catalogue for each footprint."""
        for footprint in self._footprints:
            cat.addNew().setFootprint(footprint)

    def makeHeavy(self, mimg: MaskedImage, ctrl: HeavyFootprintCtrl | None = None) -> None:
        """Replace the footprints by heavy ones with an image's pixels."""
        self._footprints = [makeHeavyFootprint(footprint, mimg, ctrl) for footprint in self._footprints]

    def setMask(self, mask: Mask, planeName: str) -> None:
        """Set a mask plane in the pixels of all footprints."""
        bitmask = mask.getPlaneBitMask(planeName)
        for footprint in self._footprints:
            footprint.getSpans().setMask(mask, bitmask)

    def insertIntoImage(self) -> ImageL:
        """Make an image of footprint numbers, counted from 1.

        Returns
        -------
        image : `lsst.afw.image.ImageL`
            Image of the region; where footprints overlap, their numbers are
            summed.
        """
        from lsst.afw.image import ImageL

        image = ImageL(self._region)
        left, bottom, _, _ = box_bounds(self._region)
        for number, footprint in enumerate(self._footprints, start=1):
            y, x = footprint.getSpans().indices()
            image.array[np.asarray(y) - bottom, np.asarray(x) - left] += image.array.dtype.type(number)
        return image

    def merge(self, rhs: FootprintSet, tGrow: int = 0, rGrow: int = 0, isotropic: bool = True) -> None:
        """Merge another set into this one; what touches becomes one.

        Parameters
        ----------
        rhs : `FootprintSet`
            The other set, of the same region.
        tGrow, rGrow : `int`, optional
            Grow this set's and the other's footprints first, in pixels.
        isotropic : `bool`, optional
            Grow by a disc and not by a diamond.
        """
        merged = _mergeSets(self, tGrow, rhs, rGrow, FootprintControl(True, isotropic))
        self.swap(merged)

    def __repr__(self) -> str:
        return f"{len(self._footprints)} footprints:\n" + "\n".join(map(repr, self._footprints))


def _grow(
    set: FootprintSet,
    rGrow: int,
    isotropic: bool | FootprintControl | None = None,
    ctrl: FootprintControl | None = None,
) -> FootprintSet:
    """Grow the footprints of a set; what then touches becomes one."""
    control = isotropic if ctrl is None else ctrl
    if isinstance(control, bool | np.bool_):
        control = FootprintControl(True, bool(control))
    if not isinstance(control, FootprintControl):
        raise TypeError(f"Growing needs isotropic (True or False) or a FootprintControl, not {control!r}.")
    if rGrow < 0:
        raise InvalidParameterError(f"I cannot grow by negative numbers: {rGrow}")
    if rGrow == 0:
        return FootprintSet(set)
    return _mergeSets(FootprintSet(set.getRegion()), 0, set, rGrow, control)


def _kernel(radius: int, ctrl: FootprintControl) -> SpanSet:
    """Return the pixels that one pixel grows into."""
    if ctrl.isCircular()[1]:
        return SpanSet.fromShape(radius, Stencil.CIRCLE if ctrl.isIsotropic()[1] else Stencil.MANHATTAN)
    top = radius if ctrl.isUp()[1] else 0
    bottom = radius if ctrl.isDown()[1] else 0
    y = np.arange(-bottom, top + 1, dtype=np.int32)
    x0, x1 = np.zeros_like(y), np.zeros_like(y)
    x0[bottom] = -radius if ctrl.isLeft()[1] else 0
    x1[bottom] = radius if ctrl.isRight()[1] else 0
    return SpanSet._from_arrays(y, x0, x1)


def _grownRuns(
    footprints: Sequence[Footprint], radius: int, ctrl: FootprintControl
) -> tuple[np.ndarray, ...]:
    """Return the runs of all grown footprints and whose they are.

    Returns
    -------
    y, x0, x1, owner : `numpy.ndarray`, (R,)
        Runs in parent coordinates, which may overlap, and the index of the
        footprint.
    """
    empty = np.zeros(0, np.int64)
    spans = [footprint.getSpans() for footprint in footprints]
    y = np.concatenate([empty, *(np.asarray(s._y) for s in spans)])
    x0 = np.concatenate([empty, *(np.asarray(s._x0) for s in spans)])
    x1 = np.concatenate([empty, *(np.asarray(s._x1) for s in spans)])
    owner = np.repeat(np.arange(len(spans)), [len(s._y) for s in spans])
    if radius > 0:
        kernel = _kernel(radius, ctrl)
        ky, kx0, kx1 = (np.asarray(a, np.int64)[:, None] for a in (kernel._y, kernel._x0, kernel._x1))
        y, x0, x1 = (ky + y).ravel(), (kx0 + x0).ravel(), (kx1 + x1).ravel()
        owner = np.tile(owner, len(ky))
    return y, x0, x1, owner


def _mergeSets(
    lhs: FootprintSet, rLhs: int, rhs: FootprintSet, rRhs: int, ctrl: FootprintControl
) -> FootprintSet:
    """Merge two sets, growing both first.

    Parameters
    ----------
    lhs, rhs : `FootprintSet`
        Sets of the same region.
    rLhs, rRhs : `int`
        How far to grow, in pixels.
    ctrl : `FootprintControl`
        Which way.

    Returns
    -------
    merged : `FootprintSet`
        One footprint for each connected region of grown pixels, with the
        peak records of all that went into it, brightest first.
    """
    region = lhs.getRegion()
    if region != rhs.getRegion():
        raise InvalidParameterError(
            f"The two FootprintSets must have the same region, not {region} and {rhs.getRegion()}."
        )
    sources = [*lhs._footprints, *rhs._footprints]
    schema = sources[0].getPeaks().getSchema() if sources else PeakTable.makeMinimalSchema()
    if lhs._footprints and rhs._footprints and schema != rhs._footprints[0].getPeaks().getSchema():
        raise PexRuntimeError("FootprintSets to be merged must have identical peak schemas.")

    left, bottom, width, height = box_bounds(region)
    n_lhs = len(lhs._footprints)
    mine, theirs = _grownRuns(lhs._footprints, rLhs, ctrl), _grownRuns(rhs._footprints, rRhs, ctrl)
    y, x0, x1 = (np.concatenate([a, b]) for a, b in zip(mine[:3], theirs[:3], strict=True))
    owner = np.concatenate([mine[3], theirs[3] + n_lhs])
    y, x0, x1 = y - bottom, x0 - left, x1 - left
    counts, inside = paint_runs(y, x0, x1, height, width)

    merged = FootprintSet(region)
    merged._footprints = _detect(counts, region, counts > 0, None, True, 1, False, schema)
    if not merged._footprints:
        return merged

    # Each grown run lies in one merged footprint: that of the run of painted
    # pixels which holds its first pixel.
    spans = [footprint.getSpans() for footprint in merged._footprints]
    keys = np.concatenate([(np.asarray(s._y, np.int64) - bottom) * width + (s._x0 - left) for s in spans])
    labels = np.repeat(np.arange(len(spans)), [len(s._y) for s in spans])
    order = np.argsort(keys)
    first = y[inside] * width + np.maximum(x0[inside], 0)
    number = labels[order[np.searchsorted(keys[order], first, side="right") - 1]]
    pairs = np.unique(number.astype(np.int64) * len(sources) + owner[inside])
    for number, index in zip(*(part.tolist() for part in np.divmod(pairs, len(sources))), strict=True):
        if sources[index]._nPeaks():
            merged._footprints[number].getPeaks().extend(sources[index].getPeaks(), deep=False)
    for footprint in merged._footprints:
        if footprint._nPeaks() > 1:
            footprint.getPeaks()._sortBrightest()
    return merged
