# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throughput as a function of wavelength."""

from __future__ import annotations

__all__ = ["TransmissionCurve"]

from typing import TYPE_CHECKING, Any

import numpy as np

from lsst.afw.table.io import register_persistable
from lsst.afw.typehandling import Storable
from lsst.geom import Point2D
from lsst.pex.exceptions import LengthError

if TYPE_CHECKING:
    from lsst.afw.table.io import InputArchive, OutputArchiveHandle


@register_persistable("SpatiallyConstantTransmissionCurve", module="lsst.afw.image")
class TransmissionCurve(Storable):
    """A throughput that is the same at all positions.

    Notes
    -----
    Use `makeSpatiallyConstant`; curves that vary over the image are not
    supported and read as `None`.
    """

    def __init__(self, throughput: np.ndarray, wavelengths: np.ndarray, atMin: float, atMax: float):
        self._throughput = np.array(throughput, dtype=float)
        self._wavelengths = np.array(wavelengths, dtype=float)
        self._at_bounds = (float(atMin), float(atMax))

    @staticmethod
    def makeSpatiallyConstant(
        throughput: np.ndarray,
        wavelengths: np.ndarray,
        throughputAtMin: float = 0.0,
        throughputAtMax: float = 0.0,
    ) -> TransmissionCurve:
        """Make a curve from samples.

        Parameters
        ----------
        throughput, wavelengths : `numpy.ndarray`
            Samples, wavelengths (Angstrom) in increasing order.
        throughputAtMin, throughputAtMax : `float`, optional
            Throughput below and above the sampled range.

        Returns
        -------
        curve : `TransmissionCurve`
            The curve, linear between the samples.

        Raises
        ------
        lsst.pex.exceptions.LengthError
            Raised if the arrays' lengths differ.
        """
        if len(throughput) != len(wavelengths):
            raise LengthError(
                f"Length of wavelength array ({len(wavelengths)}) does not match size of throughput array "
                f"({len(throughput)})"
            )
        return TransmissionCurve(throughput, wavelengths, throughputAtMin, throughputAtMax)

    def getWavelengthBounds(self) -> tuple[float, float]:
        """Return the sampled range (Angstrom)."""
        return float(self._wavelengths[0]), float(self._wavelengths[-1])

    def getThroughputAtBounds(self) -> tuple[float, float]:
        """Return the throughput below and above the sampled range."""
        return self._at_bounds

    def sampleAt(
        self, position: Point2D, wavelengths: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray | None:
        """Sample the curve.

        Parameters
        ----------
        position : `lsst.geom.Point2D`
            Position (not used by a constant curve).
        wavelengths : `numpy.ndarray`
            Wavelengths (Angstrom).
        out : `numpy.ndarray`, optional
            Array to fill.

        Returns
        -------
        throughput : `numpy.ndarray` or `None`
            The samples, unless ``out`` was given.
        """
        low, high = self._at_bounds
        values = np.interp(wavelengths, self._wavelengths, self._throughput, left=low, right=high)
        if out is None:
            return values
        out[...] = values
        return None

    def isPersistable(self) -> bool:
        """Tell whether the curve can be written to FITS (always)."""
        return True

    def _persist(self, handle: OutputArchiveHandle) -> None:
        from lsst.afw.table import Schema

        schema = Schema()
        low = schema.addField("throughputAtMin", type=np.float64, doc="throughput below minimum wavelength")
        high = schema.addField("throughputAtMax", type=np.float64, doc="throughput above minimum wavelength")
        values = schema.addField("throughput", type="ArrayD", doc="array of known throughput values", size=0)
        wavelengths = schema.addField(
            "wavelengths", type="ArrayD", doc="array of known wavelength values", units="angstrom", size=0
        )
        catalog = handle.makeCatalog(schema)
        record = catalog.addNew()
        record.set(low, self._at_bounds[0])
        record.set(high, self._at_bounds[1])
        record.set(values, self._throughput)
        record.set(wavelengths, self._wavelengths)
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: InputArchive, catalogs: Any) -> TransmissionCurve:
        record = catalogs[0][0]
        return cls(
            record["throughput"],
            record["wavelengths"],
            float(record["throughputAtMin"]),
            float(record["throughputAtMax"]),
        )
