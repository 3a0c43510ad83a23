# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measurement of the catalogues of a patch by the algorithms of ``lsst.meas.base``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
from lsst.afw.detection import Footprint, HeavyFootprintF
from lsst.afw.geom import SkyWcs
from lsst.afw.image import ExposureF
from lsst.afw.table import Schema, SourceCatalog, SourceTable
from lsst.meas.base import (
    ApplyApCorrTask,
    BasePlugin,
    CatalogCalculationTask,
    ForcedMeasurementTask,
    SingleFrameMeasurementTask,
)

from ..catalogs.record_order import RecordOrder
from ..catalogs.schema import UNMEASURED

_PLUGINS = ("base_PixelFlags", "base_PsfFlux", "base_CircularApertureFlux")
"""Measured in all bands: what the fitted models and the shares of the image do not tell."""

_RADII = (3.0, 6.0, 9.0, 12.0, 17.0, 25.0)
"""Radii of the apertures (px): those of Rubin's object tables up to where neighbours take over."""


class MeasureConfig(pexConfig.Config):
    """Which algorithms of ``lsst.meas.base`` measure the sources."""

    doMeasure = pexConfig.Field[bool](
        doc="Measure the sources in the reference band, and by force in all bands? Without, the catalogues "
        "have no measurement columns, and the pipeline's own tasks can add theirs.",
        default=True,
    )
    doMeasureParents = pexConfig.Field[bool](
        doc=f"Measure parents, too, each with its sources as one? Without, they are flagged {UNMEASURED}.",
        default=False,
    )
    measurement: Any = pexConfig.ConfigurableField(
        target=SingleFrameMeasurementTask,
        doc="Measurement in the reference band, each source with the others' flux replaced by noise.",
    )
    catalogCalculation: Any = pexConfig.ConfigurableField(
        target=CatalogCalculationTask, doc="Extendedness, from the measured columns."
    )
    forcedMeasurement: Any = pexConfig.ConfigurableField(
        target=ForcedMeasurementTask,
        doc="Measurement in every band at the positions and shapes of the reference band. What "
        "'measurement' measures with the same settings is copied from it in the reference band.",
    )
    applyApCorr: Any = pexConfig.ConfigurableField(
        target=ApplyApCorrTask,
        doc="Aperture corrections, for exposures that have them; the fluxes of models need none.",
    )

    def setDefaults(self) -> None:
        """Choose what is measured."""
        super().setDefaults()
        own = ["base_SdssCentroid", "base_SdssShape", "base_SkyCoord", "base_Blendedness"]
        self.measurement.plugins.names = [*_PLUGINS, *own]
        self.catalogCalculation.plugins.names = ["base_ClassificationExtendedness"]
        transformed = ["base_TransformedCentroid", "base_TransformedShape"]
        self.forcedMeasurement.plugins.names = [*_PLUGINS, *transformed]
        for task in (self.measurement, self.forcedMeasurement):
            task.plugins["base_CircularApertureFlux"].radii = list(_RADII)
            # The fluxes of the models are there before anything is measured.
            task.slots.modelFlux = task.slots.gaussianFlux = None
        # Slots of the forced catalogues are empty upstream but for positions and shapes; colours want fluxes.
        self.forcedMeasurement.slots.psfFlux = "base_PsfFlux"
        self.forcedMeasurement.slots.apFlux = "base_CircularApertureFlux_12_0"


class BandRecords(NamedTuple):
    """What is measured in a band."""

    catalog: SourceCatalog
    """That of the reference band."""
    heavy: Sequence[HeavyFootprintF]
    """Shares of the sources in this band."""
    order: RecordOrder
    exposure: ExposureF
    band: str
    exposure_id: int
    """For the seed of the noise that replaces other sources."""


class Measurement:
    """What measures the catalogues of a patch, with the subtasks of a task.

    The schema is that of the reference band; it gets the fields of what is measured.
    """

    def __init__(self, config: MeasureConfig, schema: Schema, task: pipeBase.Task) -> None:
        self.config, self.log, self.schema = config, task.log, schema
        if config.doMeasure:
            task.makeSubtask("measurement", schema=schema)
            task.makeSubtask("applyApCorr", schema=schema)
            task.makeSubtask("catalogCalculation", schema=schema)
            self.subtasks: Any = task

    def complete(self) -> Schema:
        """Make the schema of the forced catalogues, once that of the reference band has all of its fields."""
        self.forced_schema = SourceTable.makeMinimalSchema()
        if self.config.doMeasure:
            self.subtasks.makeSubtask("forcedMeasurement", refSchema=self.schema)
            self.forced_schema = self.subtasks.forcedMeasurement.schema
            self.forced_correction = self.config.applyApCorr.apply(
                schema=self.forced_schema, name="forcedApplyApCorr", parentTask=self.subtasks
            )
        return self.forced_schema

    def measure(self, records: BandRecords) -> None:
        """Measure the records of the reference band."""
        catalog, heavy, order, exposure, band, exposure_id = records
        chosen = self._choose(order)
        if self._can_measure(exposure, band) and chosen.any():
            # The measurement takes the pixels from HeavyFootprints; the catalogue keeps the network's masks.
            masks = [record.getFootprint() for record in catalog]
            _attach(catalog, heavy, order, masks)
            self._mark_unmeasured(catalog, catalog, ~chosen)
            self._log_measuring(band, order, chosen, "")
            with _measuring(self.subtasks.measurement, catalog, chosen):
                self.subtasks.measurement.run(catalog, exposure, exposureId=exposure_id)
            self._correct(self.subtasks.applyApCorr, catalog[chosen], exposure)
            self.subtasks.catalogCalculation.run(catalog[chosen])
            for record, mask in zip(catalog, masks, strict=True):
                record.setFootprint(mask)
        else:
            self._mark_unmeasured(catalog, catalog, np.ones(len(catalog), bool))

    def measure_forced(self, records: BandRecords, wcs: SkyWcs, is_reference: bool) -> SourceCatalog:
        """Make the catalogue of one band, measured at the positions of the reference band."""
        catalog, heavy, order, exposure, band, exposure_id = records
        if self.config.doMeasure:
            made = self.subtasks.forcedMeasurement.generateMeasCat(exposure, catalog, wcs)
            # Whole columns can only be set where records lie side by side.
            made = made if made.isContiguous() else made.copy(deep=True)
        else:
            made = SourceCatalog(self.forced_schema)
            made.resize(len(catalog))
        if not len(catalog):
            return made
        for record, given in zip(made, catalog, strict=True):
            record.setId(given.getId())
            record.setParent(given.getParent())
            record.setCoord(given.getCoord())
        _attach(made, heavy, order, [record.getFootprint() for record in catalog])
        # Without the reference band there are no positions at which to measure.
        chosen = self._choose(order) & ~np.asarray(catalog[UNMEASURED])
        if self._can_measure(exposure, band) and chosen.any():
            copied = self._same_plugins() if is_reference else []
            last = BasePlugin.FLUX_ORDER if copied else None
            self._log_measuring(band, order, chosen, ", forced")
            with _measuring(self.subtasks.forcedMeasurement, made, chosen):
                self.subtasks.forcedMeasurement.run(
                    made, exposure, catalog, wcs, exposureId=exposure_id, endOrder=last
                )
            if copied:
                _copy_columns(catalog, made, copied)
            else:
                self._correct(self.forced_correction, made[chosen], exposure)
        else:
            chosen[:] = False
        self._mark_unmeasured(made, catalog, ~chosen)
        return made

    def _log_measuring(self, band: str, order: RecordOrder, chosen: npt.NDArray[np.bool_], how: str) -> None:
        """Name the band, which the log of the measurement does not, and count its parents apart."""
        parents = int(np.count_nonzero(order.is_parent & chosen))
        sources = int(np.count_nonzero(chosen)) - parents
        self.log.info("Measuring %d sources and %d parents in band %s%s.", sources, parents, band, how)

    def _choose(self, order: RecordOrder) -> npt.NDArray[np.bool_]:
        """Rows that are measured."""
        return np.asarray(~order.is_parent | self.config.doMeasureParents)

    def _can_measure(self, exposure: ExposureF, band: str) -> bool:
        """Whether there is all that measurement needs."""
        if self.config.doMeasure and exposure.getPsf() is None:
            self.log.warning("Nothing is measured in band %r, as its exposure has no PSF.", band)
        return self.config.doMeasure and exposure.getPsf() is not None

    def _same_plugins(self) -> list[str]:
        """Forced plugins that measure fluxes, if all of them are run in the reference band already."""
        found = ["base_InvalidPsf"]
        if self.config.forcedMeasurement.undeblended.names:
            return []
        for name, plugin in self.subtasks.forcedMeasurement.plugins.items():
            if plugin.getExecutionOrder() < BasePlugin.FLUX_ORDER:
                continue
            single, forced = (
                task.plugins for task in (self.config.measurement, self.config.forcedMeasurement)
            )
            if name not in single.names or single[name].toDict() != forced[name].toDict():
                return []
            found.append(name)
        return found

    def _correct(self, task: ApplyApCorrTask, catalog: SourceCatalog, exposure: ExposureF) -> None:
        """Apply the aperture corrections of an exposure that has some."""
        info: Any = exposure.getInfo()
        corrections = info.getApCorrMap()
        if corrections is not None and len(corrections):
            # Whole columns can only be read where records lie side by side.
            together = catalog if catalog.isContiguous() else catalog.copy(deep=True)
            task.run(together, corrections)
            for record, corrected in zip(catalog, together, strict=True):
                record.assign(corrected)

    def _mark_unmeasured(
        self, catalog: SourceCatalog, found: SourceCatalog, rows: npt.NDArray[np.bool_]
    ) -> None:
        """Flag records, and put the centroids of their masks where a measurement would have been."""
        if not rows.any():
            return
        catalog[UNMEASURED] = rows
        if not self.config.doMeasure:
            return
        for name in ("Shape", "PsfFlux", "ApFlux"):
            # Forced photometry asks by the flag whether there is a shape.
            if f"slot_{name}_flag" in catalog.schema:
                catalog[f"slot_{name}_flag"] = np.asarray(catalog[f"slot_{name}_flag"]) | rows
        slot = catalog.schema.getAliasMap().get("slot_Centroid")
        if not slot:
            return
        for axis in "xy":
            catalog[f"{slot}_{axis}"] = np.where(
                rows, found[f"maskrcnn_centroid_{axis}"], catalog[f"{slot}_{axis}"]
            )
        if f"{slot}_flag" in catalog.schema:
            catalog[f"{slot}_flag"] = np.asarray(catalog[f"{slot}_flag"]) | rows


@contextmanager
def _measuring(task: Any, catalog: SourceCatalog, rows: npt.NDArray[np.bool_]) -> Iterator[None]:
    """Let a task measure some records alone; the image is that of all of them."""
    ids = {record.getId() for record in catalog[rows]}

    def only_some(method: Any, place: int) -> Any:
        return lambda *args, **kwargs: args[place].getId() in ids and method(*args, **kwargs)

    task.callMeasure, task.doMeasurement = only_some(task.callMeasure, 0), only_some(task.doMeasurement, 1)
    try:
        yield
    finally:
        del task.callMeasure, task.doMeasurement


def _copy_columns(given: SourceCatalog, made: SourceCatalog, prefixes: Sequence[str]) -> None:
    """Copy the columns that begin with some names."""
    for name in made.schema.getNames():
        if name.startswith(tuple(f"{prefix}_" for prefix in prefixes)) and name in given.schema:
            made[name] = np.asarray(given[name])


def _attach(
    catalog: SourceCatalog, heavy: Sequence[HeavyFootprintF], order: RecordOrder, others: Sequence[Footprint]
) -> None:
    """Give sources the HeavyFootprints of a band, and parents their own footprints."""
    for record, source, footprint in zip(catalog, order.source.tolist(), others, strict=True):
        record.setFootprint(heavy[source] if source >= 0 else footprint)
