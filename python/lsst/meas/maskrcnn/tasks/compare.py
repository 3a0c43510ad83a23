# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compare two deblenders on the same patch."""

from __future__ import annotations

__all__ = [
    "CompareDeblendersConfig",
    "CompareDeblendersConnections",
    "CompareDeblendersTask",
    "DeblenderInputError",
]

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from astropy.table import Table

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
import lsst.pipe.base.connectionTypes as cT
from lsst.afw.image import ExposureF
from lsst.daf.butler import DeferredDatasetHandle

from ..catalogs.evaluation_io import task_timing
from ..catalogs.exposures import InputError, instrumental_bands
from ..compare.baselines import BASELINES
from ..compare.comparison import (
    ComparisonSettings,
    FieldComparison,
    compare_fields,
    compare_with_truth,
    comparison_table,
)
from ..compare.deblender import DeblendedField, Deblender, FieldImages
from ..compare.readers import CatalogReader, TruthReader, field_images
from ..compare.scarlet_models import ScarletModels, read_scarlet_models
from ..compare.summary import comparison_values, truth_tables, truth_values
from ..metrics.bootstrap import LEVEL
from ..metrics.evaluation_metrics import EvaluationMetrics, PatchSummary, software_versions
from ..report.deblender_plots import plot_disagreements, plot_flux_pairs, plot_residual_panels
from .config_fields import make_config
from .connections import BAND, PATCH, deferred_input, named_output
from .failures import say_where

# Names of datasets that differ between versions of the pipeline, by connection.
_OLDER = {
    "exposures": "{coaddName}Coadd_calexp",
    "otherCatalog": "{coaddName}Coadd_deblendedCatalog",
    "otherModels": "{coaddName}Coadd_scarletModelData",
}
_NEWER = {"exposures": "deep_coadd", "otherCatalog": "object_deblend", "otherModels": "object_scarlet_models"}
_BLUE_TO_RED = "ugrizy"
_GALLERY_SIZE = 6


class DeblenderInputError(InputError):
    """The inputs of a comparison do not fit each other."""

    def __init__(self, message: str) -> None:
        super().__init__(message, message=message)


def _input(
    doc: str, name: str, storage: str = "SourceCatalog", by_band: bool = False, optional: bool = True
) -> cT.Input:
    dimensions = BAND if by_band else PATCH
    return deferred_input(doc, name, storage, dimensions, multiple=by_band, optional=optional)


_output = functools.partial(named_output, dimensions=PATCH)


class CompareDeblendersConnections(
    pipeBase.PipelineTaskConnections,
    dimensions=PATCH,
    defaultTemplates={
        "coaddName": "deep",
        "deblendLabel": "maskRcnnDeblend",
        "outputName": "deblenderComparison",
    },
):
    """Inputs and outputs of `CompareDeblendersTask`.

    Inputs that the configuration does not want are left out.
    """

    catalog = _input("Catalogue of the first deblender.", "{coaddName}Coadd_maskRcnnCatalog", optional=False)
    bandCatalogs = _input(
        "Deblended pixels of the first, as HeavyFootprints.",
        "{coaddName}Coadd_maskRcnnDeblended",
        by_band=True,
    )
    blendStatistics = _input(
        "Residuals of the first by parent.", "{coaddName}Coadd_maskRcnnBlends", "ArrowAstropy"
    )
    otherCatalog = _input(
        "Children and isolated sources of the second deblender.", _OLDER["otherCatalog"], optional=False
    )
    otherParents = _input("Parents of the second deblender.", "object_parent_patch")
    otherModels = _input(
        "Models of the second: its children's masks and fluxes.",
        _OLDER["otherModels"],
        "LsstScarletModelData",
    )
    exposures = _input(
        "Coadds of both deblenders.", _OLDER["exposures"], "ExposureF", by_band=True, optional=False
    )
    truth = _input("The true sources.", "maskRcnn_truth")
    truthFlux = _input(
        "Pixels of each true source without noise, as HeavyFootprints.", "maskRcnn_truthFlux", by_band=True
    )
    taskMetadata = _input(
        "Metadata of the first deblender, for its time.", "{deblendLabel}_metadata", "TaskMetadata"
    )
    metrics = _output("metrics", "Figures of both deblenders and their differences.", "MaskRcnnMetrics")
    sources = _output("sources", "One row for each source of either, both in one row where they match.")
    blends = _output("blends", "One row for each blend: children, residuals, time and failures of both.")
    truths = _output(
        "truths", "One row for each true source: who found it, and how well. Empty without truth."
    )
    plotFlux = _output("plot_flux", "Flux against flux.", "Plot")
    plotResidual = _output("plot_residual", "Flux residuals by blendedness.", "Plot")
    plotGallery = _output(
        "plot_gallery", "Blends on which the two differ most: pictures, models, residuals.", "Plot"
    )

    def __init__(self, *, config: CompareDeblendersConfig) -> None:
        super().__init__(config=config)
        if config.dataset_names == "newer":
            for name, older in _OLDER.items():
                # A name that was given is kept.
                if getattr(config.connections, name) == older:
                    setattr(self, name, dataclasses.replace(getattr(self, name), name=_NEWER[name]))
        unwanted: list[str] = []
        if config.baseline is not None:
            unwanted += ["otherCatalog", "otherParents", "otherModels"]
        if not config.do_truth:
            unwanted += ["truth", "truthFlux", "truths"]
        if not config.do_plots:
            unwanted += ["plotFlux", "plotResidual", "plotGallery"]
        for name in unwanted:
            delattr(self, name)


_SettingsConfig: Any = make_config(ComparisonSettings, "ComparisonSettingsConfig")


class CompareDeblendersConfig(
    pipeBase.PipelineTaskConfig, _SettingsConfig, pipelineConnections=CompareDeblendersConnections
):
    """Configuration of `CompareDeblendersTask`, with all fields of `ComparisonSettings`."""

    dataset_names = pexConfig.ChoiceField[str](
        doc="Names of the coadds and of scarlet's products.",
        default="older",
        allowed={
            "older": "deepCoadd_calexp, deepCoadd_deblendedCatalog, deepCoadd_scarletModelData",
            "newer": "deep_coadd, object_deblend, object_scarlet_models",
        },
    )
    name = pexConfig.Field[str](doc="Name of the first deblender in columns.", default="maskRcnn")
    other_name = pexConfig.Field[str](doc="Name of the second deblender in columns.", default="scarlet")
    baseline = pexConfig.ChoiceField[str](
        doc="Run this deblender and compare with it, instead of with a catalogue.",
        default=None,
        optional=True,
        allowed={
            "sep": "contours as SExtractor uses them",
            "photutils": "contours and a watershed",
            "scarlet2": "models by scarlet2 of the parents that sep finds",
        },
    )
    do_truth = pexConfig.Field[bool](doc="Read the truth where there is one?", default=True)
    do_plots = pexConfig.Field[bool](doc="Draw plots?", default=True)
    convergence_inverted = pexConfig.Field[bool](
        doc="Is deblend_blendConvergenceFailedFlag of the second set where a blend did converge, as in "
        "repositories written before DM-54841 (2026)? None tells it by deblend_iterations; most are "
        "where a blend did not converge.",
        default=None,
        optional=True,
    )
    bad_mask_planes = pexConfig.ListField[str](
        doc="Mask planes of pixels that count neither for residuals nor for baselines.",
        default=["BAD", "NO_DATA", "SAT"],
    )
    gallery_bands = pexConfig.ListField[str](
        doc="Bands of the pictures: red, green and blue.", default=["z", "r", "g"], length=3
    )

    def validate(self) -> None:
        """Check that the names of the deblenders make names of columns."""
        super().validate()
        other = self.other_name if self.baseline is None else self.baseline
        if self.name == other or not self.name.isidentifier():
            raise pexConfig.FieldValidationError(
                self.__class__.name,
                self,
                f"name = {self.name!r} and the other's {other!r} must differ and be words, since columns are "
                "named after them.",
            )


class CompareDeblendersTask(pipeBase.PipelineTask):
    """Compare two deblenders on a patch, with its truth or without."""

    ConfigClass: ClassVar[type[CompareDeblendersConfig]] = CompareDeblendersConfig
    _DefaultName: ClassVar[str] = "compareDeblenders"

    config: CompareDeblendersConfig

    @say_where
    def runQuantum(
        self,
        butlerQC: pipeBase.QuantumContext,
        inputRefs: pipeBase.InputQuantizedConnection,
        outputRefs: pipeBase.OutputQuantizedConnection,
    ) -> None:
        """Load the products of both deblenders, and store the comparison."""
        handles = butlerQC.get(inputRefs)

        def load(name: str) -> Any:
            return None if handles.get(name) is None else handles[name].get()

        def handles_by_band(name: str) -> dict[str, DeferredDatasetHandle]:
            return {str(handle.dataId["band"]): handle for handle in handles.get(name) or ()}

        coadds = handles_by_band("exposures")
        exposures = {band: coadds[band].get() for band in self._choose_bands(coadds)}

        def load_bands(name: str) -> dict[str, Any]:
            return {band: one.get() for band, one in handles_by_band(name).items() if band in exposures}

        models = handles.get("otherModels")
        fields = self.read(
            exposures=exposures,
            catalog=load("catalog"),
            bandCatalogs=load_bands("bandCatalogs"),
            blendStatistics=load("blendStatistics"),
            otherCatalog=load("otherCatalog"),
            otherParents=load("otherParents"),
            otherModels=None if models is None else _read_models(models),
            truth=load("truth"),
            truthFlux=load_bands("truthFlux"),
            seconds=task_timing(load("taskMetadata"), self.config.connections.deblendLabel)[0],
        )
        catalogs = [handles[name] for name in ("catalog", "otherCatalog") if handles.get(name) is not None]
        data_id = butlerQC.quantum.dataId
        place = {} if data_id is None else {name: data_id[name] for name in PATCH}
        outputs = self.run(
            **fields.getDict(),
            tract=int(place.get("tract", 0)),
            patch=int(place.get("patch", 0)),
            skymap=str(place.get("skymap", "")),
            runs=sorted({handle.ref.run for handle in catalogs}),
        )
        butlerQC.put(outputs, outputRefs)

    def read(
        self,
        *,
        exposures: Mapping[str, ExposureF],
        catalog: Any,
        bandCatalogs: Mapping[str, Any] | None = None,
        blendStatistics: Table | None = None,
        otherCatalog: Any = None,
        otherParents: Any = None,
        otherModels: ScarletModels | None = None,
        truth: Any = None,
        truthFlux: Mapping[str, Any] | None = None,
        seconds: float = float("nan"),
    ) -> pipeBase.Struct:
        """Read the products of both deblenders, or run the baseline.

        Parameters
        ----------
        exposures : `~collections.abc.Mapping` [`str`, \
                `lsst.afw.image.ExposureF`]
            Exposures by band.
        catalog : `lsst.afw.table.SourceCatalog`
            Catalogue of the first deblender.
        bandCatalogs : `~collections.abc.Mapping` [`str`, \
                `lsst.afw.table.SourceCatalog`], optional
            Its HeavyFootprints by band.
        blendStatistics : `astropy.table.Table`, optional
            Its residuals by parent.
        otherCatalog : `lsst.afw.table.SourceCatalog`, optional
            Catalogue of the second; needed unless ``config.baseline`` is set.
        otherParents : `lsst.afw.table.SourceCatalog`, optional
            Its parents.
        otherModels : `~lsst.meas.maskrcnn.compare.scarlet_models.\
ScarletModels`, optional
            Its models.
        truth : `lsst.afw.table.SourceCatalog`, optional
            Truth.
        truthFlux : `~collections.abc.Mapping` [`str`, \
                `lsst.afw.table.SourceCatalog`], optional
            Its HeavyFootprints by band.
        seconds : `float`
            How long the first deblender took, if it is known.

        Returns
        -------
        inputs : `lsst.pipe.base.Struct`
            Arguments of `run`.

        Raises
        ------
        DeblenderInputError
            Raised if the inputs cannot be read or do not fit each other.
        """
        first = CatalogReader(
            self.config.name, catalog, bandCatalogs or {}, parent_statistics=blendStatistics, seconds=seconds
        )
        second = self._choose_other(otherCatalog, otherParents, otherModels)
        try:
            images = field_images(exposures, list(self.config.bad_mask_planes))
            inputs = pipeBase.Struct(
                first=first.deblend(images), second=second.deblend(images), images=images
            )
            if truth is not None:
                reader = TruthReader(truth, truthFlux or {}, list(self.config.ignore_flags))
                inputs.truth = reader.deblend(images)
        except ValueError as error:
            raise DeblenderInputError(str(error)) from error
        return inputs

    def run(
        self,
        *,
        first: DeblendedField,
        second: DeblendedField,
        images: FieldImages,
        truth: DeblendedField | None = None,
        tract: int = 0,
        patch: int = 0,
        skymap: str = "",
        runs: Sequence[str] = (),
    ) -> pipeBase.Struct:
        """Compare two deblenders.

        Parameters
        ----------
        first, second : `~lsst.meas.maskrcnn.compare.deblender.DeblendedField`
            Their sources.
        images : `~lsst.meas.maskrcnn.compare.deblender.FieldImages`
            The images.
        truth : `~lsst.meas.maskrcnn.compare.deblender.DeblendedField`, \
                optional
            The truth.
        tract, patch : `int`
            Where it is.
        skymap : `str`
            Name of the sky map, for the record.
        runs : `~collections.abc.Sequence` [`str`]
            Collections that the catalogues came from, for the record.

        Returns
        -------
        results : `lsst.pipe.base.Struct`
            Results with the attributes:

            ``metrics``
                The figures (`~lsst.meas.maskrcnn.metrics.\
evaluation_metrics.EvaluationMetrics`).
            ``sources``, ``blends``, ``truths``
                Tables (`astropy.table.Table`); ``truths`` has no rows without
                truth.
            ``plotFlux``, ``plotResidual``, ``plotGallery``
                Plots, if they are asked for (`matplotlib.figure.Figure`).
        """
        settings = self.config.settings()
        comparison = compare_fields(first, second, images, settings)
        self._log_gaps(comparison)
        truths: dict[str, np.ndarray] | None = None
        if truth is not None and len(truth):
            comparison, truths = compare_with_truth(comparison, truth, images, settings)
        instrumental = instrumental_bands(images.exposures)
        outputs = pipeBase.Struct(
            metrics=self._summarize(comparison, truths, images, tract, patch, skymap, runs),
            sources=comparison_table(comparison.sources, instrumental),
            blends=comparison_table(comparison.blends, instrumental),
            truths=comparison_table(truths or {"id": np.zeros(0, dtype=np.int64)}, instrumental),
        )
        if self.config.do_plots:
            outputs.plotFlux = plot_flux_pairs(comparison, images.bands, instrumental)
            outputs.plotResidual = plot_residual_panels(comparison, settings.band, truths)
            outputs.plotGallery = plot_disagreements(
                comparison, images, _GALLERY_SIZE, list(self.config.gallery_bands), settings.band
            )
        n_matched = int(comparison.matched.sum())
        self.metadata["n_sources"] = len(first)
        self.metadata["n_sources_other"] = len(second)
        self.metadata["n_matched"] = n_matched
        self.log.info(
            "%s has %d sources, %s %d; %d match.", first.name, len(first), second.name, len(second), n_matched
        )
        return outputs

    def _summarize(
        self,
        comparison: FieldComparison,
        truths: dict[str, np.ndarray] | None,
        images: FieldImages,
        tract: int,
        patch: int,
        skymap: str,
        runs: Sequence[str],
    ) -> EvaluationMetrics:
        """The figures of a comparison and where they come from."""
        config = self.config
        values = comparison_values(comparison)
        tables: dict[str, dict[str, list[float]]] = {}
        n_counted = n_truth = 0
        if truths is not None:
            n_counted, n_truth = int(truths["counted"].sum()), len(truths["id"])
            values += truth_values(truths, comparison, images.bands, config.n_samples, config.seed)
            tables = truth_tables(truths, comparison.names, config.band)
        first = comparison.fields[0]
        summary = PatchSummary(
            tract=tract,
            patch=patch,
            n_truth=n_counted,
            n_truth_ignored=n_truth - n_counted,
            n_detections=len(first),
            seconds=first.seconds,
            megapixels=images.usable.size / 1e6,
        )
        versions = software_versions()
        return EvaluationMetrics(
            package_version=versions["lsst-meas-maskrcnn"],
            software=versions,
            name=config.connections.outputName,
            catalog=",".join(comparison.names),
            runs=list(runs),
            config=config.toDict(),
            skymap=skymap,
            patches=[summary],
            level=LEVEL,
            n_samples=config.n_samples,
            values=values,
            tables=tables,
        )

    def _choose_other(self, catalog: Any, parents: Any, models: ScarletModels | None) -> Deblender:
        """The second deblender."""
        if self.config.baseline is not None:
            return BASELINES[self.config.baseline]()
        if catalog is None:
            raise DeblenderInputError(
                "There is no catalogue of a second deblender; give one, or set config.baseline."
            )
        return CatalogReader(
            self.config.other_name,
            catalog,
            scarlet_models=models,
            parent_catalog=parents,
            convergence_inverted=self.config.convergence_inverted,
        )

    def _choose_bands(self, found: Mapping[str, Any]) -> list[str]:
        """Bands to compare, from blue to red."""
        if self.config.bands is not None:
            missing = sorted(set(self.config.bands) - set(found))
            if missing:
                raise DeblenderInputError(
                    f"There are no exposures in {missing}, which config.bands asks for; there are those in "
                    f"{sorted(found)}."
                )
            return list(self.config.bands)
        known = [band for band in _BLUE_TO_RED if band in found]
        return known + sorted(set(found) - set(known))

    def _log_gaps(self, comparison: FieldComparison) -> None:
        """Warn of what cannot be compared."""
        for field in comparison.fields:
            if field.n_without_mask:
                self.log.warning(
                    "%d of %d sources of %s have no mask, and so no flux: its models are missing. They are "
                    "compared by position only.",
                    field.n_without_mask,
                    len(field),
                    field.name,
                )
            given_up = int(np.count_nonzero(field.parents["skipped"] | field.parents["failed"]))
            if given_up:
                self.log.warning("%s skipped or failed on %d parents.", field.name, given_up)
        if not comparison.matched.any():
            self.log.warning(
                "%s and %s have no source in common: only counts, and sources that only one of them has, "
                "are compared.",
                *comparison.names,
            )


def _read_models(handle: DeferredDatasetHandle) -> ScarletModels:
    """Read scarlet's file as it is, so that scarlet need not be installed; without a file, scarlet reads."""
    uri = handle.butler.getURI(handle.ref)
    if uri.fragment:
        return read_scarlet_models(handle.get())
    with uri.as_local() as local:
        return read_scarlet_models(local.ospath)
