# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images that went into a coadd."""

from __future__ import annotations

__all__ = ["CoaddInputs"]

from typing import TYPE_CHECKING, Any

import numpy as np

from lsst.afw.table.io import register_persistable
from lsst.afw.typehandling import Storable

if TYPE_CHECKING:
    from lsst.afw.table.io import InputArchive, OutputArchiveHandle


@register_persistable("CoaddInputs", module="lsst.afw.image")
class CoaddInputs(Storable):
    """The images that went into a coadd.

    Parameters
    ----------
    visits, ccds : `lsst.afw.table.ExposureCatalog` or `lsst.afw.table.Schema`, optional
        A record for each visit and for each detector's image.
    """

    def __init__(self, visits: Any = None, ccds: Any = None):
        from lsst.afw.table import ExposureCatalog, ExposureTable, Schema

        def catalog(given: Any) -> Any:
            if given is None:
                return ExposureCatalog(ExposureTable.makeMinimalSchema())
            return ExposureCatalog(given) if isinstance(given, Schema) else given

        self.visits, self.ccds = catalog(visits), catalog(ccds)

    def subset_containing_ccds(self, point: Any, wcs: Any, includeValidPolygon: bool = False) -> Any:
        """Return the detectors' images that a point of the coadd is on.

        Those without a WCS are of cell coadds: their polygons are in the
        pixels of the coadd.
        """
        return _subset(self.ccds, point, wcs, includeValidPolygon)

    def subset_containing_visits(self, point: Any, wcs: Any, includeValidPolygon: bool = False) -> Any:
        """Return the visits that a point of the coadd is on; see `subset_containing_ccds`."""
        return _subset(self.visits, point, wcs, includeValidPolygon)

    def isPersistable(self) -> bool:
        """Tell whether it can be written to FITS."""
        return True

    def _persist(self, handle: OutputArchiveHandle) -> None:
        self.visits.writeToArchive(handle, permissive=True)
        self.ccds.writeToArchive(handle, permissive=True)

    @classmethod
    def _factory(cls, archive: InputArchive, catalogs: Any) -> CoaddInputs:
        from lsst.afw.table import ExposureCatalog

        return cls(*(ExposureCatalog.readFromArchive(archive, catalog) for catalog in catalogs))


def _subset(catalog: Any, point: Any, wcs: Any, includeValidPolygon: bool) -> Any:
    if len(catalog) == 0 or catalog[0].getWcs() is not None:
        return catalog.subsetContaining(point, wcs, includeValidPolygon)
    return catalog[np.array([record.getValidPolygon().contains(point) for record in catalog])]
