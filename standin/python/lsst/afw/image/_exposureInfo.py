# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that an exposure has besides pixels."""

from __future__ import annotations

__all__ = ["ExposureInfo"]

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lsst.daf.base import PropertyList

if TYPE_CHECKING:
    from lsst.afw.geom import SkyWcs
    from lsst.daf.base import PropertySet

    from ._visitInfo import VisitInfo


class ExposureInfo:
    """WCS, PSF, calibration and other components of an exposure.

    Parameters
    ----------
    wcs, psf, photoCalib, detector, polygon, coaddInputs, apCorrMap, \
            transmissionCurve : optional
        Components; `None` where there is none.
    metadata : `lsst.daf.base.PropertySet`, optional
        FITS keys (default: an empty `lsst.daf.base.PropertyList`).
    visitInfo : `VisitInfo`, optional
        Facts about the observation.

    Notes
    -----
    ``ExposureInfo(other)`` and ``ExposureInfo(other, copyMetadata)`` copy;
    components are shared and, unless ``copyMetadata`` is true, metadata too.
    """

    KEY_WCS = "SKYWCS"
    KEY_PSF = "PSF"
    KEY_PHOTO_CALIB = "PHOTOCALIB"
    KEY_DETECTOR = "DETECTOR"
    KEY_VALID_POLYGON = "VALID_POLYGON"
    KEY_COADD_INPUTS = "COADD_INPUTS"
    KEY_AP_CORR_MAP = "AP_CORR_MAP"
    KEY_TRANSMISSION_CURVE = "TRANSMISSION_CURVE"
    KEY_FILTER = "FILTER"
    KEY_SUMMARY_STATS = "SUMMARY_STATS"

    _id: int | None
    _visitInfo: VisitInfo | None
    _metadata: Any

    if TYPE_CHECKING:
        # The accessors of components are made in a loop.
        def __getattr__(self, name: str) -> Any: ...

    def __init__(
        self,
        wcs: Any = None,
        psf: Any = None,
        photoCalib: Any = None,
        detector: Any = None,
        polygon: Any = None,
        metadata: PropertySet | None = None,
        coaddInputs: Any = None,
        apCorrMap: Any = None,
        visitInfo: VisitInfo | None = None,
        transmissionCurve: Any = None,
        *,
        other: ExposureInfo | None = None,
        copyMetadata: bool = False,
    ):
        if isinstance(wcs, ExposureInfo):
            other, copyMetadata, wcs, psf = wcs, bool(psf) or copyMetadata, None, None
        self._components: dict[str, Any] = {}
        if other is not None:
            self._id = other._id
            self._visitInfo = other._visitInfo
            self._metadata = other._metadata.deepCopy() if copyMetadata else other._metadata
            self._components.update(other._components)
            return
        self._id = None
        self._visitInfo = visitInfo
        self._metadata = PropertyList() if metadata is None else metadata
        for key, value in (
            (self.KEY_WCS, wcs),
            (self.KEY_PSF, psf),
            (self.KEY_PHOTO_CALIB, photoCalib),
            (self.KEY_DETECTOR, detector),
            (self.KEY_VALID_POLYGON, polygon),
            (self.KEY_COADD_INPUTS, coaddInputs),
            (self.KEY_AP_CORR_MAP, apCorrMap),
            (self.KEY_TRANSMISSION_CURVE, transmissionCurve),
        ):
            self.setComponent(key, value)

    # ------------------------------------------------------------- components

    def hasComponent(self, key: str) -> bool:
        """Tell whether there is a component of a name."""
        return key in self._components

    def getComponent(self, key: str) -> Any:
        """Return a component, or `None` where there is none."""
        return self._components.get(key)

    def setComponent(self, key: str, object: Any) -> None:
        """Set a component; `None` removes it."""
        self._components.pop(key, None)
        if object is not None:
            self._components[key] = object

    def removeComponent(self, key: str) -> None:
        """Remove a component if there is one."""
        self._components.pop(key, None)

    def _iterate(self) -> Iterator[tuple[str, Any]]:
        """Return components in the order in which they go to a file.

        The newest is first, as in the hash map that upstream iterates over.
        """
        return iter(reversed(list(self._components.items())))

    # --------------------------------------------------------------- metadata

    def getMetadata(self) -> Any:
        """Return the FITS keys (shared)."""
        return self._metadata

    def setMetadata(self, metadata: PropertySet | None) -> None:
        """Set the FITS keys."""
        self._metadata = PropertyList() if metadata is None else metadata

    def hasVisitInfo(self) -> bool:
        """Tell whether there is a VisitInfo."""
        return self._visitInfo is not None

    def getVisitInfo(self) -> VisitInfo | None:
        """Return the VisitInfo, or `None`."""
        return self._visitInfo

    def setVisitInfo(self, visitInfo: VisitInfo | None) -> None:
        """Set the VisitInfo."""
        self._visitInfo = visitInfo

    def hasId(self) -> bool:
        """Tell whether there is an exposure ID."""
        return self._id is not None

    def getId(self) -> int | None:
        """Return the exposure ID, or `None`."""
        return self._id

    def setId(self, id: int | None) -> None:
        """Set the exposure ID; `None` removes it."""
        self._id = None if id is None else int(id)

    def clearId(self) -> None:
        """Remove the exposure ID."""
        self._id = None

    id = property(getId, setId, doc="Exposure ID or `None`.")

    # ------------------------------------------------------- named components

    def hasWcs(self) -> bool:
        """Tell whether there is a WCS."""
        return self.hasComponent(self.KEY_WCS)

    def getWcs(self) -> SkyWcs | None:
        """Return the WCS, or `None`."""
        return self.getComponent(self.KEY_WCS)

    def setWcs(self, wcs: SkyWcs | None) -> None:
        """Set the WCS."""
        self.setComponent(self.KEY_WCS, wcs)

    def hasPsf(self) -> bool:
        """Tell whether there is a PSF."""
        return self.hasComponent(self.KEY_PSF)

    def getPsf(self) -> Any:
        """Return the PSF, or `None`."""
        return self.getComponent(self.KEY_PSF)

    def setPsf(self, psf: Any) -> None:
        """Set the PSF."""
        self.setComponent(self.KEY_PSF, psf)


def _component_methods(label: str, key: str, argument: str) -> dict[str, Callable[..., Any]]:
    """Make the has/get/set methods of a component."""

    def has(self: ExposureInfo) -> bool:
        return self.hasComponent(key)

    def get(self: ExposureInfo) -> Any:
        return self.getComponent(key)

    def set(self: ExposureInfo, *args: Any, **kwargs: Any) -> None:
        values = [*args, *(value for name, value in kwargs.items() if name == argument)]
        if len(values) != 1 or len(args) + len(kwargs) != 1:
            raise TypeError(f"set{label} takes exactly one argument, {argument}.")
        self.setComponent(key, values[0])

    methods = {f"has{label}": has, f"get{label}": get, f"set{label}": set}
    for name, method in methods.items():
        method.__name__ = name
        method.__qualname__ = f"ExposureInfo.{name}"
        verb = {"has": "Tell whether there is", "get": "Return", "set": "Set"}[name[:3]]
        method.__doc__ = f"{verb} the component ``{key}``."
    return methods


for _label, _key, _argument in (
    ("PhotoCalib", ExposureInfo.KEY_PHOTO_CALIB, "photoCalib"),
    ("Detector", ExposureInfo.KEY_DETECTOR, "detector"),
    ("ValidPolygon", ExposureInfo.KEY_VALID_POLYGON, "polygon"),
    ("CoaddInputs", ExposureInfo.KEY_COADD_INPUTS, "coaddInputs"),
    ("ApCorrMap", ExposureInfo.KEY_AP_CORR_MAP, "apCorrMap"),
    ("TransmissionCurve", ExposureInfo.KEY_TRANSMISSION_CURVE, "transmissionCurve"),
    ("Filter", ExposureInfo.KEY_FILTER, "filterLabel"),
    ("SummaryStats", ExposureInfo.KEY_SUMMARY_STATS, "summaryStats"),
):
    for _name, _method in _component_methods(_label, _key, _argument).items():
        setattr(ExposureInfo, _name, _method)
