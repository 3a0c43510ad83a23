# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking exposures apart for a Butler, and putting them together."""

from __future__ import annotations

__all__ = ["ExposureAssembler"]

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

# PSFs can only be read once their classes exist.
import lsst.afw.detection  # noqa: F401
from lsst.afw.image import makeExposure, makeMaskedImage
from lsst.daf.butler import DatasetComponent, StorageClassDelegate

from .utils import add_provenance_to_fits_header

if TYPE_CHECKING:
    from lsst.daf.butler import DatasetProvenance, DatasetRef

_LOG = logging.getLogger(__name__)


class ExposureAssembler(StorageClassDelegate):
    """Delegate of the storage classes of images."""

    EXPOSURE_COMPONENTS = frozenset({"image", "variance", "mask", "wcs", "psf"})
    EXPOSURE_INFO_COMPONENTS = frozenset(
        {
            "apCorrMap",
            "coaddInputs",
            "photoCalib",
            "metadata",
            "filter",
            "transmissionCurve",
            "visitInfo",
            "detector",
            "validPolygon",
            "summaryStats",
            "id",
        }
    )
    EXPOSURE_READ_COMPONENTS = frozenset({"bbox", "dimensions", "xy0"})

    COMPONENT_MAP = {"bbox": "BBox", "xy0": "XY0"}
    """Names of getters where they do not follow from the component."""

    def getComponent(self, composite: Any, componentName: str) -> Any:
        """Return a component of an exposure.

        Parameters
        ----------
        composite : `lsst.afw.image.Exposure`
            The exposure.
        componentName : `str`
            Name of the component.

        Returns
        -------
        component : `object`
            The component, which can be `None`.

        Raises
        ------
        AttributeError
            Raised for an unknown name.
        """
        if componentName in self.EXPOSURE_INFO_COMPONENTS:
            # The composite can be the info itself.
            if hasattr(composite, "getInfo"):
                composite = composite.getInfo()
        elif componentName not in self.EXPOSURE_COMPONENTS | self.EXPOSURE_READ_COMPONENTS:
            raise AttributeError(
                f"Do not know how to retrieve component {componentName} from {type(composite)}"
            )
        return super().getComponent(composite, self.COMPONENT_MAP.get(componentName, componentName))

    def disassemble(
        self, composite: Any, subset: Iterable[str] | None = None, override: Any | None = None
    ) -> dict[str, DatasetComponent]:
        """Take an exposure apart.

        Parameters
        ----------
        composite : `lsst.afw.image.Exposure`
            The exposure.
        subset : `~collections.abc.Iterable` [`str`], optional
            Not supported.
        override : `object`, optional
            Not supported.

        Returns
        -------
        components : `dict` [`str`, `lsst.daf.butler.DatasetComponent`]
            The components that the storage class has and the exposure too.

        Raises
        ------
        NotImplementedError
            Raised for ``subset`` or ``override``.
        TypeError
            Raised if the exposure is not of the storage class's type.
        ValueError
            Raised if the storage class has unknown components.
        """
        if subset is not None or override is not None:
            raise NotImplementedError("ExposureAssembler.disassemble supports neither subset nor override.")
        if not self.storageClass.validateInstance(composite):
            raise TypeError(
                "Unexpected type mismatch between parent and StorageClass"
                f" ({type(composite)} != {self.storageClass.pytype})"
            )
        requested = set(self.storageClass.components)
        unknown = requested - (self.EXPOSURE_COMPONENTS | self.EXPOSURE_INFO_COMPONENTS)
        if unknown:
            raise ValueError(f"Asking for unrecognized component: {sorted(unknown)}")
        components: dict[str, DatasetComponent] = {}
        for names, source in (
            (requested & self.EXPOSURE_COMPONENTS, None),
            (requested & self.EXPOSURE_INFO_COMPONENTS, composite.getInfo()),
        ):
            components.update(super().disassemble(composite, subset=names, override=source) or {})
        psf = components.get("psf")
        if psf is not None and not psf.component.isPersistable():
            _LOG.warning(
                "PSF of type %s is not persistable and has been ignored.", type(psf.component).__name__
            )
            del components["psf"]
        return components

    def assemble(self, components: dict[str, Any], pytype: type | None = None) -> Any:
        """Put an exposure together.

        Parameters
        ----------
        components : `dict` [`str`, `object`]
            The components; some can be missing.
        pytype : `type`, optional
            Not supported.

        Returns
        -------
        exposure : `lsst.afw.image.Exposure`
            The exposure.

        Raises
        ------
        NotImplementedError
            Raised for ``pytype``.
        RuntimeError
            Raised if the pixels are not of the storage class's type.
        ValueError
            Raised for unknown components.
        """
        if pytype is not None:
            raise NotImplementedError("ExposureAssembler.assemble does not support pytype.")
        rest = dict(components)
        planes = {name: rest.pop(name, None) for name in ("image", "mask", "variance")}
        wcs = rest.pop("wcs", None)
        wanted = self.storageClass.pytype
        if any(plane is not None for plane in planes.values()):
            exposure = makeExposure(makeMaskedImage(**planes), wcs)
            if not isinstance(exposure, wanted):
                raise RuntimeError(
                    f"Unexpected type created in assembly; was {type(exposure)} expected {wanted}"
                )
        else:
            exposure = wanted()
            exposure.setWcs(wcs)
        exposure.setPsf(rest.pop("psf", None))
        exposure.setPhotoCalib(rest.pop("photoCalib", None))
        info = exposure.getInfo()
        if "visitInfo" in rest:
            info.setVisitInfo(rest.pop("visitInfo"))
        if "id" in rest:
            info.id = rest.pop("id")
        info.setApCorrMap(rest.pop("apCorrMap", None))
        info.setCoaddInputs(rest.pop("coaddInputs", None))
        info.setMetadata(rest.pop("metadata", None))
        info.setValidPolygon(rest.pop("validPolygon", None))
        info.setDetector(rest.pop("detector", None))
        info.setTransmissionCurve(rest.pop("transmissionCurve", None))
        info.setSummaryStats(rest.pop("summaryStats", None))
        info.setFilter(rest.pop("filter", None))
        if rest:
            raise ValueError(f"The following components were not understood: {sorted(rest)}")
        return exposure

    def handleParameters(self, inMemoryDataset: Any, parameters: Mapping[str, Any] | None = None) -> Any:
        """Apply the parameters of a get to an object in memory.

        Parameters
        ----------
        inMemoryDataset : `lsst.afw.image.Exposure` or an image
            The object.
        parameters : `~collections.abc.Mapping`, optional
            ``bbox`` and ``origin`` are understood.

        Returns
        -------
        dataset : `object`
            The object or a part of it.
        """
        if parameters is None:
            return inMemoryDataset
        use = self.storageClass.filterParameters(parameters, subset=("bbox", "origin"))
        return inMemoryDataset.subset(**use) if use else inMemoryDataset

    @classmethod
    def selectResponsibleComponent(cls, readComponent: str, fromComponents: set[str | None]) -> str:
        """Name the component from which a derived one can be read.

        Parameters
        ----------
        readComponent : `str`
            The derived component.
        fromComponents : `set` [`str`]
            The components that there are.

        Returns
        -------
        component : `str`
            One of ``fromComponents``.

        Raises
        ------
        ValueError
            Raised if none will do.
        """
        if readComponent in cls.EXPOSURE_READ_COMPONENTS:
            for name in ("mask", "image", "variance"):
                if name in fromComponents:
                    return name
        raise ValueError(f"Can not calculate read component {readComponent} from {fromComponents}")

    def add_provenance(
        self, inMemoryDataset: Any, ref: DatasetRef, provenance: DatasetProvenance | None = None
    ) -> Any:
        """Write provenance to the metadata of an object that has them.

        Parameters
        ----------
        inMemoryDataset : `object`
            The object.
        ref : `lsst.daf.butler.DatasetRef`
            The dataset that it is.
        provenance : `lsst.daf.butler.DatasetProvenance`, optional
            Where it came from.

        Returns
        -------
        dataset : `object`
            The same object.
        """
        add_provenance_to_fits_header(getattr(inMemoryDataset, "metadata", None), ref, provenance)
        return inMemoryDataset
