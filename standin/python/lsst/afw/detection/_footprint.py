# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Regions of pixels that belong to one object, and their peaks."""

from __future__ import annotations

__all__ = [
    "Footprint",
    "footprintToBBoxList",
    "getFootprintIntersection",
    "mergeFootprints",
    "setMaskFromFootprintList",
]

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lsst.afw.geom import (
    SkyWcs,
    SpanSet,
    Stencil,
    TransformPoint2ToPoint2,
    makeTransform,
    makeWcsPairTransform,
)
from lsst.afw.table import Schema
from lsst.afw.table.io import Persistable, register_persistable
from lsst.geom import AffineTransform, Box2I, Extent2I, LinearTransform, Point2D, Point2I
from lsst.pex.exceptions import InvalidParameterError, LogicError, OutOfRangeError

from ._peak import PeakCatalog, PeakRecord, PeakTable
from ._runs import contains_points

if TYPE_CHECKING:
    from lsst.afw.geom.ellipses import Quadrupole
    from lsst.afw.image import MaskX as Mask
    from lsst.afw.image._image import _TypedImage as Image
    from lsst.afw.table import BaseCatalog


@register_persistable("Footprint", module="lsst.afw.detection")
class Footprint(Persistable):
    """The pixels of a detected object and the peaks in them.

    Parameters
    ----------
    inputSpans : `lsst.afw.geom.SpanSet` or `Footprint`, optional
        Pixels; a footprint is copied (its spans and peak records are
        shared).
    peakSchema : `lsst.afw.table.Schema`, optional
        Schema of the peaks; a superset of ``PeakTable.makeMinimalSchema()``.
    region : `lsst.geom.Box2I`, optional
        Bounding box of the image that the footprint comes from.
    """

    _spans: SpanSet
    _region: Box2I
    # None until somebody asks: most footprints of a catalogue are read for
    # their pixels, and a PeakCatalog costs more than all the rest.
    _peakCatalog: PeakCatalog | None
    _storedPeaks: BaseCatalog | None

    def __init__(self, *args: Any, **kwargs: Any):
        self._storedPeaks = None
        self._peakCatalog = None
        if len(args) == 1 and not kwargs and isinstance(args[0], Footprint):
            self._copyFrom(args[0])
            return
        bound = self._bind(args, kwargs)
        spans = bound.get("inputSpans")
        self._spans = SpanSet() if spans is None else spans
        self._region = Box2I(bound.get("region", Box2I()))
        schema = bound.get("peakSchema")
        if schema is not None:
            self._peakCatalog = PeakCatalog(schema)

    @staticmethod
    def _bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Sort out (inputSpans, region) and (inputSpans, schema, region)."""
        names: tuple[str, ...] = ("inputSpans", "peakSchema", "region")
        if len(args) == 2 and isinstance(args[1], Box2I):
            names = ("inputSpans", "region")
        bound = dict(zip(names, args, strict=False))
        types: dict[str, type] = {"inputSpans": SpanSet, "peakSchema": Schema, "region": Box2I}
        duplicate = set(bound) & set(kwargs)
        bound |= kwargs
        wrong = {name for name, value in bound.items() if not isinstance(value, types.get(name, ()))}
        if len(args) > len(names) or duplicate or wrong or (bound and "inputSpans" not in bound):
            given = [type(value).__name__ for value in args] + [
                f"{name}={type(value).__name__}" for name, value in kwargs.items()
            ]
            raise TypeError(
                f"Footprint({', '.join(given)}): incompatible constructor arguments; wanted (), (Footprint), "
                "(inputSpans: SpanSet, region: Box2I = Box2I()) or (inputSpans: SpanSet, peakSchema: Schema, "
                "region: Box2I = Box2I())."
            )
        return bound

    def _copyFrom(self, other: Footprint) -> None:
        self._spans = other._spans
        self._region = Box2I(other._region)
        if other._peakCatalog is None:
            self._storedPeaks = other._storedPeaks
            self._peakCatalog = None
        else:
            self._storedPeaks = None
            self._peakCatalog = other._peakCatalog.copy(deep=False)

    def assign(self, other: Footprint) -> Footprint:
        """Become a copy of another footprint and return self."""
        self._copyFrom(other)
        return self

    def isHeavy(self) -> bool:
        """Return True if pixel values come with the pixels."""
        return False

    # Spans ---------------------------------------------------------------

    def getSpans(self) -> SpanSet:
        """Return the pixels (`lsst.afw.geom.SpanSet`)."""
        return self._spans

    def setSpans(self, otherSpanSet: SpanSet) -> None:
        """Set the pixels; the peaks stay as they are."""
        if not isinstance(otherSpanSet, SpanSet):
            raise TypeError(f"The spans of a footprint are a SpanSet, not a {type(otherSpanSet).__name__}.")
        self._spans = otherSpanSet

    spans = property(getSpans, setSpans, doc="The pixels (`lsst.afw.geom.SpanSet`).")

    def getArea(self) -> int:
        """Return the number of pixels."""
        return self._spans.getArea()

    def getBBox(self) -> Box2I:
        """Return the bounding box of the pixels."""
        return self._spans.getBBox()

    def getCentroid(self) -> Point2D:
        """Return the mean position of the pixels."""
        return self._spans.computeCentroid()

    def getShape(self) -> Quadrupole:
        """Return the second moments of the pixels about the centroid."""
        return self._spans.computeShape()

    def contains(self, pix: Point2I) -> bool:
        """Return True if a pixel is in the footprint."""
        return bool(self._spans.contains(pix))

    def __contains__(self, pix: Point2I) -> bool:
        return self.contains(pix)

    def isContiguous(self) -> bool:
        """Return True if all pixels hang together."""
        return self._spans.isContiguous()

    def getRegion(self) -> Box2I:
        """Return the bounding box of the image it comes from."""
        return Box2I(self._region)

    def setRegion(self, region: Box2I) -> None:
        """Set the bounding box of the image it comes from."""
        self._region = Box2I(region)

    # Peaks ---------------------------------------------------------------

    def getPeaks(self) -> PeakCatalog:
        """Return the peaks, brightest first if nobody changed them."""
        if self._peakCatalog is None:
            self._peakCatalog = _makePeaks(self._storedPeaks)
            self._storedPeaks = None
        return self._peakCatalog

    peaks = property(getPeaks, doc="The peaks (`PeakCatalog`).")

    def _nPeaks(self) -> int:
        """Return the number of peaks without making a catalogue of them."""
        if self._peakCatalog is not None:
            return len(self._peakCatalog)
        return 0 if self._storedPeaks is None else len(self._storedPeaks)

    def addPeak(self, fx: float, fy: float, value: float) -> PeakRecord:
        """Append a peak.

        Parameters
        ----------
        fx, fy : `float`
            Position; the integer position is this, truncated.
        value : `float`
            Height.

        Returns
        -------
        peak : `PeakRecord`
            The new record.
        """
        peak = self.getPeaks().addNew()
        x, y = np.float32(fx), np.float32(fy)
        peak.setIx(int(x))
        peak.setIy(int(y))
        peak.setFx(float(x))
        peak.setFy(float(y))
        peak.setPeakValue(float(value))
        return peak

    def sortPeaks(self, key: Any = None) -> None:
        """Sort the peaks by decreasing value of a field.

        Parameters
        ----------
        key : `lsst.afw.table.Key`, optional
            Field to sort by; by default the peak value.
        """
        if self._nPeaks() < 2:
            return
        if key is None or not key.isValid():
            key = PeakTable.getPeakValueKey()
        peaks = self.getPeaks()
        peaks._reorder(np.argsort(-peaks._column(key).astype(np.float64), kind="stable"))

    def setPeakSchema(self, peakSchema: Schema) -> None:
        """Set the schema of the peaks; there must be none yet."""
        self.setPeakCatalog(PeakCatalog(peakSchema))

    def setPeakCatalog(self, otherPeaks: PeakCatalog) -> None:
        """Set the peaks; there must be none yet.

        Parameters
        ----------
        otherPeaks : `PeakCatalog`
            Peaks; the records are shared.

        Raises
        ------
        lsst.pex.exceptions.LogicError
            Raised if the footprint has peaks.
        """
        if self._nPeaks():
            raise LogicError("Cannot change the PeakCatalog unless it is empty")
        self._peakCatalog = otherPeaks.copy(deep=False)
        self._storedPeaks = None

    def removeOrphanPeaks(self) -> None:
        """Remove the peaks whose integer pixel is not in the footprint."""
        if not self._nPeaks():
            return
        peaks = self.getPeaks()
        x, y, *_ = peaks._values()
        inside = contains_points(self._spans, x, y)
        if not inside.all():
            peaks._reorder(np.flatnonzero(inside))

    def updatePeakSignificance(self, *args: Any) -> None:
        """Fill the field ``significance`` of the peaks.

        Parameters
        ----------
        sigma : `float`
            Standard deviation; the significance is the peak value over it.
            Or, instead:
        variance : `lsst.afw.image.ImageF`
            Variance plane.
        polarity : `int`
            1 for positive footprints, -1 for negative ones.
        """
        key = self.getPeaks().getSchema().find("significance").key
        for peak in self.getPeaks():
            if len(args) == 1:
                peak.set(key, peak.getPeakValue() / float(args[0]))
            else:
                variance, polarity = args
                peak.set(key, polarity * peak.getPeakValue() / float(np.sqrt(variance[peak.getI()])))

    # Changes -------------------------------------------------------------

    def shift(self, *args: Any) -> None:
        """Move the footprint and its peaks.

        Parameters
        ----------
        dx, dy : `int`
            How far; or one `lsst.geom.Extent2I`.
        """
        dx, dy = (args[0].getX(), args[0].getY()) if len(args) == 1 else args
        self._spans = self._spans.shiftedBy(int(dx), int(dy))
        if not self._nPeaks():
            return
        for peak in self.getPeaks():
            peak.setIx(peak.getIx() + int(dx))
            peak.setIy(peak.getIy() + int(dy))
            peak.setFx(peak.getFx() + int(dx))
            peak.setFy(peak.getFy() + int(dy))

    def clipTo(self, bbox: Box2I) -> None:
        """Remove the pixels and peaks outside a box."""
        self._spans = self._spans.clippedTo(bbox)
        self.removeOrphanPeaks()

    def dilate(self, r: int | SpanSet, stencil: Stencil = Stencil.CIRCLE) -> None:
        """Grow the footprint.

        Parameters
        ----------
        r : `int` or `lsst.afw.geom.SpanSet`
            Radius in pixels, or the kernel itself.
        stencil : `lsst.afw.geom.Stencil`, optional
            Shape of the kernel, with a radius.
        """
        self._spans = self._spans.dilated(r) if isinstance(r, SpanSet) else self._spans.dilated(r, stencil)

    def erode(self, r: int | SpanSet, stencil: Stencil = Stencil.CIRCLE) -> None:
        """Shrink the footprint and remove the peaks that fall out.

        Parameters
        ----------
        r : `int` or `lsst.afw.geom.SpanSet`
            Radius in pixels, or the kernel itself.
        stencil : `lsst.afw.geom.Stencil`, optional
            Shape of the kernel, with a radius.
        """
        self._spans = self._spans.eroded(r) if isinstance(r, SpanSet) else self._spans.eroded(r, stencil)
        self.removeOrphanPeaks()

    def split(self) -> list[Footprint]:
        """Cut the footprint into its connected parts.

        Returns
        -------
        footprints : `list` [`Footprint`]
            One for each part, with the peaks in it and the same region.
        """
        pieces = self._spans.split()
        footprints = []
        for spans in pieces:
            footprint = Footprint(spans, self._region)
            footprint._peakCatalog = self.getPeaks().copy(deep=False)
            if len(pieces) > 1:
                footprint.removeOrphanPeaks()
            footprints.append(footprint)
        return footprints

    def transform(self, *args: Any, **kwargs: Any) -> Footprint:
        """Return the footprint in other coordinates.

        Parameters
        ----------
        t : `lsst.afw.geom.TransformPoint2ToPoint2` or an affine map
            The map; or, instead, ``source`` and ``target``, the
            `lsst.afw.geom.SkyWcs` of this image and of the other one.
        region : `lsst.geom.Box2I`
            Box of the other image.
        doClip : `bool`, optional
            Remove what is outside the region.

        Returns
        -------
        footprint : `Footprint`
            The same pixels and peaks; never heavy.
        """
        pair = "source" in kwargs or (args and isinstance(args[0], SkyWcs))
        names = ("source", "target", "region", "doClip") if pair else ("t", "region", "doClip")
        bound = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or not set(names[:-1]) <= set(bound) <= set(names):
            raise TypeError(
                "Footprint.transform takes (source, target, region, doClip) or (t, region, doClip)."
            )
        if pair:
            t = makeWcsPairTransform(bound["source"], bound["target"])
        else:
            t = bound["t"]
        if isinstance(t, LinearTransform):
            t = AffineTransform(t)
        if not isinstance(t, TransformPoint2ToPoint2):
            t = makeTransform(t)
        new = Footprint(self._spans.transformedBy(t), self.getPeaks().getSchema(), bound["region"])
        peaks = list(self.getPeaks())
        for peak, position in zip(peaks, t.applyForward([p.getF() for p in peaks]), strict=True):
            new.addPeak(position.getX(), position.getY(), peak.getPeakValue())
        if bound.get("doClip", True):
            new.clipTo(bound["region"])
        return new

    # Fluxes --------------------------------------------------------------

    def computeFluxFromArray(self, image: np.ndarray, xy0: Point2I) -> Any:
        """Sum the pixels of an array (y, x) whose first pixel is ``xy0``."""
        return np.asarray(self._spans.flatten(image, xy0)).sum()

    def computeFluxFromImage(self, image: Image) -> Any:
        """Sum the pixels of an image in the footprint."""
        return self.computeFluxFromArray(image.array, image.getXY0())

    def intersect(self, other: Footprint, copyPeaks: bool = True) -> Footprint:
        """Return what this and another footprint have in common.

        Parameters
        ----------
        other : `Footprint`
            The other one; its peaks are ignored.
        copyPeaks : `bool`, optional
            As upstream, without effect: the peaks are kept.

        Returns
        -------
        result : `Footprint`
            Common pixels, with those peaks of ``self`` that are in them.
        """
        return getFootprintIntersection(self, other, True)

    # Comparison and text -------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Footprint):
            return NotImplemented
        if self._nPeaks() != other._nPeaks():
            return False
        if self._nPeaks():
            mine, theirs = (set(zip(*peaks._values(), strict=True)) for peaks in (self.peaks, other.peaks))
            if not mine <= theirs:
                return False
        return bool(self._spans == other._spans)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        centroid = self.getCentroid()
        return (
            f"{self._nPeaks()} peaks, area={self.getArea()}, centroid=({centroid.getX():g}, "
            f"{centroid.getY():g})"
        )

    # Persistence ---------------------------------------------------------

    def isPersistable(self) -> bool:
        """Return True: footprints can be saved."""
        return True

    def _persist(self, handle: Any) -> None:
        schema = Schema()
        key = schema.addField("id", type=np.int32, doc="id of the SpanSet catalog")
        catalog = handle.makeCatalog(schema)
        catalog.addNew().set(key, handle.put(self._spans))
        handle.saveCatalog(catalog)
        stored = self._storedPeaks
        peaks = self.getPeaks() if stored is None or not _isPeakSchema(stored.schema) else stored
        catalog = handle.makeCatalog(peaks.schema)
        catalog.extend(peaks, deep=True)
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: Any, catalogs: list[BaseCatalog]) -> Footprint:
        return _readFootprint(archive, catalogs)


_BASIC_FIELDS = ("id", "f_x", "f_y", "i_x", "i_y", "peakValue")


def _isPeakSchema(schema: Schema) -> bool:
    return all(name in schema for name in _BASIC_FIELDS)


def _makePeaks(stored: BaseCatalog | None) -> PeakCatalog:
    """Make the peak catalogue from what an archive holds."""
    if stored is None:
        return PeakCatalog(PeakTable.makeMinimalSchema())
    if _isPeakSchema(stored.schema):
        peaks = PeakCatalog(stored.schema)
        peaks.extend(stored, deep=True)
        return peaks
    # Files of long ago hold x, y and value only.
    peaks = PeakCatalog(PeakTable.makeMinimalSchema())
    for record in stored:
        peak = peaks.addNew()
        peak.setId(record["id"])
        peak.setFx(record["x"])
        peak.setFy(record["y"])
        peak.setIx(int(record["x"]))
        peak.setIy(int(record["y"]))
        peak.setPeakValue(record["value"])
    return peaks


def _readFootprint(archive: Any, catalogs: list[BaseCatalog]) -> Footprint:
    """Read spans and peaks from the first two catalogues of an object."""
    if "id" in catalogs[0].schema:
        spans = archive.get(catalogs[0][0]["id"])
    else:
        # Files of long ago hold the spans themselves here.
        table = catalogs[0]
        y, x0, x1 = (np.array(table[name]) for name in ("y", "x0", "x1"))
        spans = SpanSet._from_arrays(y, x0, x1)
    footprint = Footprint(spans)
    footprint._storedPeaks = catalogs[1]
    return footprint


def mergeFootprints(footprint1: Footprint, footprint2: Footprint) -> Footprint:
    """Unite two footprints.

    Parameters
    ----------
    footprint1, footprint2 : `Footprint`
        Footprints whose peaks have the same schema.

    Returns
    -------
    merged : `Footprint`
        Pixels of either, copies of the peaks of both, brightest first, and
        an empty region.

    Raises
    ------
    lsst.pex.exceptions.InvalidParameterError
        Raised if the peak schemas differ.
    """
    schema = footprint1.getPeaks().getSchema()
    if schema != footprint2.getPeaks().getSchema():
        raise InvalidParameterError("Cannot merge Footprints with different Schemas")
    merged = Footprint(footprint1.getSpans().union(footprint2.getSpans()), schema)
    peaks = merged.getPeaks()
    for footprint in (footprint1, footprint2):
        peaks.extend(footprint.getPeaks(), deep=True)
    merged.sortPeaks()
    return merged


def getFootprintIntersection(
    footprint1: Footprint, footprint2: Footprint, copyPeaks: bool = True
) -> Footprint:
    """Return the pixels that two footprints have in common.

    Parameters
    ----------
    footprint1, footprint2 : `Footprint`
        The footprints.
    copyPeaks : `bool`, optional
        Keep the peaks of the first one that are in the common pixels; the
        records are shared.

    Returns
    -------
    result : `Footprint`
        The common pixels.
    """
    spans = footprint1.getSpans().intersect(footprint2.getSpans())
    result = Footprint(spans)
    result.setPeakSchema(footprint1.getPeaks().getSchema())
    if copyPeaks:
        for peak in footprint1.getPeaks():
            if spans.contains(peak.getI()):
                result.getPeaks().append(peak)
    return result


def setMaskFromFootprintList(
    mask: Mask, footprints: Iterable[Footprint], bitmask: int, doClip: bool = True
) -> None:
    """Set bits in the pixels of footprints.

    Parameters
    ----------
    mask : `lsst.afw.image.Mask`
        Mask to change.
    footprints : iterable of `Footprint`
        Footprints.
    bitmask : `int`
        Bits to set.
    doClip : `bool`, optional
        Leave out pixels outside the mask; otherwise they raise.

    Raises
    ------
    lsst.pex.exceptions.OutOfRangeError
        Raised if a footprint reaches out of the mask and is not clipped.
    """
    bbox = mask.getBBox()
    for footprint in footprints:
        spans = footprint.getSpans()
        if doClip:
            spans = spans.clippedTo(bbox)
        elif not bbox.contains(spans.getBBox()):
            raise OutOfRangeError("Bounds of a Footprint fall outside mask set doClip to force")
        spans.setMask(mask, bitmask)


def footprintToBBoxList(footprint: Footprint) -> list[Box2I]:
    """Cut a footprint into boxes that cover it exactly.

    Parameters
    ----------
    footprint : `Footprint`
        The footprint.

    Returns
    -------
    boxes : `list` [`lsst.geom.Box2I`]
        Boxes without overlap: each starts with the first run of pixels that
        is left and goes up as long as all its columns are set.
    """
    if not footprint.getArea():
        return []
    bbox = footprint.getBBox()
    left = np.array(footprint.getSpans().asArray(), dtype=bool)
    height = left.shape[0]
    boxes = []
    for y0 in range(height):
        while left[y0].any():
            x0 = int(np.argmax(left[y0]))
            gaps = np.flatnonzero(~left[y0, x0:])
            x1 = x0 + int(gaps[0]) if gaps.size else left.shape[1]
            full = left[y0:, x0:x1].all(axis=1)
            n_rows = int(np.argmin(full)) if not full.all() else height - y0
            left[y0 : y0 + n_rows, x0:x1] = False
            corner = Point2I(bbox.getMinX() + x0, bbox.getMinY() + y0)
            boxes.append(Box2I(corner, Extent2I(x1 - x0, n_rows)))
    return boxes
