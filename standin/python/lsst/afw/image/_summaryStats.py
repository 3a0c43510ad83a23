# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers that sum up an exposure."""

from __future__ import annotations

__all__ = ["ExposureSummaryStats"]

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from lsst.afw.table.io import register_persistable
from lsst.afw.typehandling import Storable

if TYPE_CHECKING:
    from lsst.afw.table.io import InputArchive, OutputArchiveHandle

_NAN = float("nan")


def _no_corners() -> list[float]:
    return [_NAN] * 4


@register_persistable("ExposureSummaryStats", module="lsst.afw.image._exposureSummaryStats")
@dataclasses.dataclass
class ExposureSummaryStats(Storable):
    """Numbers that sum up an exposure, NaN where unknown.

    Sizes are in pixels, angles in degrees, fluxes in the image's units and
    magnitudes in the AB system.
    """

    version: int = 0
    psfSigma: float = _NAN
    psfArea: float = _NAN
    psfIxx: float = _NAN
    psfIyy: float = _NAN
    psfIxy: float = _NAN
    ra: float = _NAN
    dec: float = _NAN
    pixelScale: float = _NAN
    zenithDistance: float = _NAN
    expTime: float = _NAN
    zeroPoint: float = _NAN
    skyBg: float = _NAN
    skyNoise: float = _NAN
    meanVar: float = _NAN
    raCorners: list[float] = dataclasses.field(default_factory=_no_corners)
    decCorners: list[float] = dataclasses.field(default_factory=_no_corners)
    astromOffsetMean: float = _NAN
    astromOffsetStd: float = _NAN
    nPsfStar: int = 0
    psfStarDeltaE1Median: float = _NAN
    psfStarDeltaE2Median: float = _NAN
    psfStarDeltaE1Scatter: float = _NAN
    psfStarDeltaE2Scatter: float = _NAN
    psfStarDeltaSizeMedian: float = _NAN
    psfStarDeltaSizeScatter: float = _NAN
    psfStarScaledDeltaSizeScatter: float = _NAN
    psfTraceRadiusDelta: float = _NAN
    psfApFluxDelta: float = _NAN
    psfApCorrSigmaScaledDelta: float = _NAN
    maxDistToNearestPsf: float = _NAN
    starEMedian: float = _NAN
    starUnNormalizedEMedian: float = _NAN
    starComa1Median: float = _NAN
    starComa2Median: float = _NAN
    starTrefoil1Median: float = _NAN
    starTrefoil2Median: float = _NAN
    starKurtosisMedian: float = _NAN
    starE41Median: float = _NAN
    starE42Median: float = _NAN
    effTime: float = _NAN
    effTimePsfSigmaScale: float = _NAN
    effTimeSkyBgScale: float = _NAN
    effTimeZeroPointScale: float = _NAN
    magLim: float = _NAN

    def isPersistable(self) -> bool:
        """Tell whether it can be written to FITS (always)."""
        return True

    def _persist(self, handle: OutputArchiveHandle) -> None:
        from lsst.afw.table import Schema

        schema = Schema()
        key = schema.addField(
            "bytes", type="ArrayB", doc="an opaque bytestring representation of a Storable", size=0
        )
        catalog = handle.makeCatalog(schema)
        text = yaml.dump(dataclasses.asdict(self), encoding="utf-8")
        catalog.addNew().set(key, np.frombuffer(text, dtype=np.uint8).copy())
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: InputArchive, catalogs: Any) -> ExposureSummaryStats:
        values = yaml.safe_load(bytes(np.asarray(catalogs[0][0]["bytes"], dtype=np.uint8)))
        # The declination's older name.
        if "decl" in values and "dec" not in values:
            values["dec"] = values.pop("decl")
        known = {field.name for field in dataclasses.fields(cls)}
        dropped = sorted(set(values) - known)
        if dropped:
            warnings.warn(
                f"Summary fields {dropped} not recognized by this software version; ignoring them.",
                FutureWarning,
                stacklevel=2,
            )
        return cls(**{name: value for name, value in values.items() if name in known})
