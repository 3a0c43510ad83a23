# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Aperture corrections of the fluxes of a catalogue."""

from __future__ import annotations

__all__ = ("ApplyApCorrConfig", "ApplyApCorrTask")

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from astropy.table import Table

from lsst.pex.config import Config, DictField, Field, ListField
from lsst.pipe.base import Task

from .apCorrRegistry import getApCorrNameSet

if TYPE_CHECKING:
    from lsst.afw.image import ApCorrMap
    from lsst.afw.table import Schema, SourceCatalog


@dataclass(frozen=True)
class _CorrectedFlux:
    """A flux, and the one whose correction it gets."""

    name: str
    model: str

    def add_fields(self, schema: Schema) -> None:
        """Add the correction, or a name for that of the other flux, and its flag."""
        for suffix, doc in (
            ("apCorr", f"aperture correction applied to {self.name}"),
            ("apCorrErr", f"standard deviation of aperture correction applied to {self.name}"),
        ):
            own, other = f"{self.name}_{suffix}", f"{self.model}_{suffix}"
            if self.name != self.model and other in schema:
                schema.getAliasMap().set(own, other)
            else:
                schema.addField(own, type=np.float64, doc=doc)
        if f"{self.name}_flag_apCorr" not in schema:
            schema.addField(
                f"{self.name}_flag_apCorr", type="Flag", doc=f"set if unable to aperture correct {self.name}"
            )


class ApplyApCorrConfig(Config):
    """Settings of `ApplyApCorrTask`."""

    ignoreList: ListField = ListField(
        dtype=str, default=(), doc="Fluxes of getApCorrNameSet() that are left as they are."
    )
    doFlagApCorrFailures: Field = Field(
        dtype=bool, default=True, doc="Set the flag of a flux that could not be corrected?"
    )
    proxies: DictField = DictField(
        keytype=str, itemtype=str, default={}, doc="Fluxes that get the correction of another one, by name."
    )
    xColumn: Field = Field(dtype=str, default="slot_Centroid_x", doc="Column of the positions x.")
    yColumn: Field = Field(dtype=str, default="slot_Centroid_y", doc="Column of the positions y.")


class ApplyApCorrTask(Task):
    """Multiplies fluxes and their errors by aperture corrections.

    Parameters
    ----------
    schema : `lsst.afw.table.Schema`, optional
        Schema with the fluxes; gets the corrections and their flags. Without
        one, all fluxes that are ever corrected are expected in the catalogue.
    **kwds
        Arguments of `lsst.pipe.base.Task`.
    """

    ConfigClass: ClassVar[Any] = ApplyApCorrConfig
    _DefaultName: ClassVar[str] = "applyApCorr"

    config: Any

    def __init__(self, schema: Schema | None = None, **kwds: Any):
        super().__init__(**kwds)
        known, ignored = getApCorrNameSet(), set(self.config.ignoreList)
        if ignored - known:
            self.log.warning("ignoreList has fluxes that are never corrected: %s", sorted(ignored - known))
        pairs = {name: name for name in sorted(known - ignored)}
        pairs |= {name: model for name, model in self.config.proxies.items() if name not in known}
        self.apCorrInfoDict = {
            name: _CorrectedFlux(name, model)
            for name, model in pairs.items()
            if schema is None or f"{name}_instFlux" in schema
        }
        if schema is not None:
            for flux in self.apCorrInfoDict.values():
                flux.add_fields(schema)

    def run(self, catalog: SourceCatalog | Table, apCorrMap: ApCorrMap) -> None:
        """Correct the fluxes of a catalogue.

        Parameters
        ----------
        catalog : `lsst.afw.table.SourceCatalog` or `astropy.table.Table`
            Sources with fluxes and positions; changed in place. A table gets
            the columns that it lacks.
        apCorrMap : `lsst.afw.image.ApCorrMap`
            Corrections by name of the flux, and those of its error.
        """
        self.log.info("Applying aperture corrections to %d instFlux fields", len(self.apCorrInfoDict))
        for name, flux in self.apCorrInfoDict.items():
            if isinstance(catalog, Table):
                for suffix in ("apCorr", "apCorrErr", "flag_apCorr", "flag"):
                    if f"{name}_{suffix}" not in catalog.colnames:
                        kind = bool if "flag" in suffix else float
                        catalog[f"{name}_{suffix}"] = np.zeros(len(catalog), kind)
            fields = [f"{flux.model}_instFlux", f"{flux.model}_instFluxErr"]
            missing = [field for field in fields if apCorrMap.get(field) is None]
            if missing:
                self.log.warning(
                    "Cannot aperture correct %s because could not find %s in apCorrMap",
                    name,
                    " or ".join(missing),
                )
                catalog[f"{name}_flag_apCorr"] = np.ones(len(catalog), bool)
                continue
            model: Any = apCorrMap.get(fields[0])
            x, y = (np.asarray(catalog[column]) for column in (self.config.xColumn, self.config.yColumn))
            correction = model.evaluate(x, y)
            good = np.isfinite(correction) & (correction > 0.0)
            catalog[f"{name}_apCorr"], catalog[f"{name}_apCorrErr"] = correction, np.zeros(len(catalog))
            for field in ("instFlux", "instFluxErr"):
                catalog[f"{name}_{field}"][good] *= correction[good]
            catalog[f"{name}_flag_apCorr"] = ~good
            if self.config.doFlagApCorrFailures:
                catalog[f"{name}_flag"] = np.asarray(catalog[f"{name}_flag"], bool) | ~good
