# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What two deblenders made of the same patch, one beside the other."""

from __future__ import annotations

__all__ = [
    "CompareDeblendersConfig",
    "CompareDeblendersConnections",
    "CompareDeblendersTask",
    "DeblenderInputError",
]

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from astropy.table import Table

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
import lsst.pipe.base.connectionTypes as cT
from lsst.afw.image import ExposureF

from ..catalogs.evaluation_io import task_timing
from ..catalogs.truth import PREFIX
from ..compare.comparison_io import comparison_table, read_models
from ..compare.deblender_comparison import ComparisonSettings, FieldComparison, compare_fields, truth_columns
from ..compare.deblender_summary import comparison_values, truth_tables, truth_values
from ..compare.deblenders import (
    BASELINES,
    DeblendedField,
    FieldImages,
    deblend_with_scarlet2,
    field_images,
    read_scarlet_field,
    read_source_catalog,
    read_truth_field,
)
from ..compare.scarlet import attach_scarlet
from ..metrics.evaluation_metrics import EvaluationMetrics, PatchSummary, software_versions
from ..report.deblender_plots import (
    cut_disagreements,
    plot_disagreements,
    plot_flux_pairs,
    plot_residual_panels,
)
from .evaluate import BootstrapConfig

# Names of datasets that differ between versions of the pipeline, by connection.
_OLDER = {
    "exposures": "{coaddName}Coadd_calexp",
    "otherCatalog": "{coaddName}Coadd_deblendedCatalog",
    "otherModels": "{coaddName}Coadd_scarletModelData",
}
_NEWER = {
    "exposures": "deep_coadd",
    "otherCatalog": "object_deblend",
    "otherModels": "object_scarlet_models",
}
_BLUE_TO_RED = "ugrizy"


class DeblenderInputError(pipeBase.AlgorithmError):
    """The inputs of a comparison do not fit each other.

    Parameters
    ----------
    message : `str`
        What was given, what was wanted and what to do.
    """

    @property
    def metadata(self) -> dict[str, str]:
        """What failed, for the task's metadata (`dict`)."""
        return {"message": str(self)}


class CompareDeblendersConnections(
    pipeBase.PipelineTaskConnections,
    dimensions=("skymap", "tract", "patch"),
    defaultTemplates={
        "coaddName": "deep",
        "deblendLabel": "maskRcnnDeblend",
        "outputName": "deblenderComparison",
    },
):
    """Inputs and outputs of `CompareDeblendersTask`.

    Parameters
    ----------
    config : `CompareDeblendersConfig`
        Configuration of the task; inputs that it does not want are left out.
    """

    catalog = cT.Input(
        doc="Catalogue of the first deblender, with footprints.",
        name="{coaddName}Coadd_maskRcnnCatalog",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch"),
        deferLoad=True,
    )
    bandCatalogs = cT.Input(
        doc="What the first gives each source of the light, by band, as HeavyFootprints.",
        name="{coaddName}Coadd_maskRcnnDeblended",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
        deferGraphConstraint=True,
        minimum=0,
    )
    blendStatistics = cT.Input(
        doc="Residuals of the first by parent.",
        name="{coaddName}Coadd_maskRcnnBlends",
        storageClass="ArrowAstropy",
        dimensions=("skymap", "tract", "patch"),
        deferLoad=True,
        deferGraphConstraint=True,
        minimum=0,
    )
    otherCatalog = cT.Input(
        doc="Catalogue of the second deblender: children and isolated sources.",
        name=_OLDER["otherCatalog"],
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch"),
        deferLoad=True,
    )
    otherParents = cT.Input(
        doc="Parents of the second deblender.",
        name="object_parent_patch",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch"),
        deferLoad=True,
        deferGraphConstraint=True,
        minimum=0,
    )
    otherModels = cT.Input(
        doc="Models of the second deblender, from which its children get masks and fluxes.",
        name=_OLDER["otherModels"],
        storageClass="LsstScarletModelData",
        dimensions=("skymap", "tract", "patch"),
        deferLoad=True,
        deferGraphConstraint=True,
        minimum=0,
    )
    exposures = cT.Input(
        doc="Coadds that both deblenders worked on.",
        name=_OLDER["exposures"],
        storageClass="ExposureF",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
    )
    truth = cT.Input(
        doc="The sources that are there.",
        name="maskRcnn_truth",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch"),
        deferLoad=True,
        deferGraphConstraint=True,
        minimum=0,
    )
    truthFlux = cT.Input(
        doc="Each true source's own pixels without noise, as HeavyFootprints.",
        name="maskRcnn_truthFlux",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
        deferGraphConstraint=True,
        minimum=0,
    )
    taskMetadata = cT.Input(
        doc="Metadata of the task that made the first catalogue, for how long it took.",
        name="{deblendLabel}_metadata",
        storageClass="TaskMetadata",
        dimensions=("skymap", "tract", "patch"),
        deferLoad=True,
        deferGraphConstraint=True,
        minimum=0,
    )
    metrics = cT.Output(
        doc="Figures of both deblenders and their differences.",
        name="{outputName}_metrics",
        storageClass="MaskRcnnMetrics",
        dimensions=("skymap", "tract", "patch"),
    )
    sources = cT.Output(
        doc="One row for each source of either, both in one row where they match.",
        name="{outputName}_sources",
        storageClass="ArrowAstropy",
        dimensions=("skymap", "tract", "patch"),
    )
    blends = cT.Output(
        doc="One row for each blend: children, residuals, time and failures of both.",
        name="{outputName}_blends",
        storageClass="ArrowAstropy",
        dimensions=("skymap", "tract", "patch"),
    )
    truths = cT.Output(
        doc="One row for each true source: which deblender found it, and how well. Empty without truth.",
        name="{outputName}_truths",
        storageClass="ArrowAstropy",
        dimensions=("skymap", "tract", "patch"),
    )
    plotFlux = cT.Output(
        doc="Flux against flux.",
        name="{outputName}_plot_flux",
        storageClass="Plot",
        dimensions=("skymap", "tract", "patch"),
    )
    plotResidual = cT.Output(
        doc="Flux residuals by blendedness.",
        name="{outputName}_plot_residual",
        storageClass="Plot",
        dimensions=("skymap", "tract", "patch"),
    )
    plotGallery = cT.Output(
        doc="Blends on which the two differ most: data, models, residuals.",
        name="{outputName}_plot_gallery",
        storageClass="Plot",
        dimensions=("skymap", "tract", "patch"),
    )

    def __init__(self, *, config: CompareDeblendersConfig) -> None:
        super().__init__(config=config)
        if config.datasetNames == "newer":
            for name, older in _OLDER.items():
                # A name that was given is kept.
                if getattr(config.connections, name) == older:
                    setattr(self, name, dataclasses.replace(getattr(self, name), name=_NEWER[name]))
        if config.baseline is not None:
            for name in ("otherCatalog", "otherParents", "otherModels"):
                delattr(self, name)
        elif not config.doModels:
            del self.otherModels
        if not config.doTruth:
            for name in ("truth", "truthFlux", "truths"):
                delattr(self, name)
        if not config.doPlots:
            for name in ("plotFlux", "plotResidual", "plotGallery"):
                delattr(self, name)


class CompareDeblendersConfig(pipeBase.PipelineTaskConfig, pipelineConnections=CompareDeblendersConnections):
    """Configuration of `CompareDeblendersTask`."""

    datasetNames = pexConfig.ChoiceField[str](
        doc="Names of the coadds and of scarlet's products.",
        default="older",
        allowed={
            "older": "deepCoadd_calexp, deepCoadd_deblendedCatalog, deepCoadd_scarletModelData",
            "newer": "deep_coadd, object_deblend, object_scarlet_models",
        },
    )
    name = pexConfig.Field[str](doc="Name of the first deblender in columns.", default="maskRcnn")
    otherName = pexConfig.Field[str](doc="Name of the second deblender in columns.", default="scarlet")
    baseline = pexConfig.ChoiceField[str](
        doc="Compare with a deblender that is run on the spot, in place of a catalogue.",
        default=None,
        optional=True,
        allowed={
            "sep": "contours as SExtractor cuts them",
            "photutils": "contours and a watershed",
            "scarlet2": "models by scarlet2 of the parents that sep finds",
        },
    )
    bands = pexConfig.ListField[str](
        doc="Bands to compare, from blue to red; None takes all that there are.",
        default=None,
        optional=True,
    )
    band = pexConfig.Field[str](doc="Reference band, of signal to noise ratios and blendedness.", default="r")
    doModels = pexConfig.Field[bool](
        doc="Read scarlet's models? Without them its children have positions only.", default=True
    )
    doTruth = pexConfig.Field[bool](doc="Read the truth where there is one?", default=True)
    doPlots = pexConfig.Field[bool](doc="Draw plots?", default=True)
    convergenceInverted = pexConfig.Field[bool](
        doc="Is deblend_blendConvergenceFailedFlag of the second set where a blend did converge, as upstream "
        "does?",
        default=True,
    )
    matchRadius = pexConfig.RangeField(
        doc="Largest distance of a match (pixels).", dtype=float, default=3.0, min=0.0, inclusiveMin=False
    )
    friendRadius = pexConfig.RangeField(
        doc="Largest distance of friends, whose friends make a group (pixels).",
        dtype=float,
        default=5.0,
        min=0.0,
        inclusiveMin=False,
    )
    linkIou = pexConfig.RangeField(
        doc="Intersection over union from which parents of the two are one blend.",
        dtype=float,
        default=0.3,
        min=0.0,
        max=1.0,
    )
    linkContainment = pexConfig.RangeField(
        doc="Share of the smaller parent in the other from which they are one blend.",
        dtype=float,
        default=0.5,
        min=0.0,
        max=1.0,
    )
    ignoreFlags = pexConfig.ListField[str](
        doc="Flags of the truth (truth_flag_...) that make a source neither hit nor miss.",
        default=["empty", "small", "faint", "masked"],
        itemCheck=lambda value: value in ("empty", "small", "faint", "masked", "edge"),
    )
    badMaskPlanes = pexConfig.ListField[str](
        doc="Mask planes of pixels that count neither for residuals nor for baselines.",
        default=["BAD", "NO_DATA", "SAT"],
    )
    separationEdges = pexConfig.ListField[float](
        doc="Bins of the distance to the nearest true neighbour (pixels).",
        default=[0.0, 5.0, 10.0, 15.0, 25.0, 50.0, 1000.0],
        minLength=2,
    )
    bootstrap = pexConfig.ConfigField[BootstrapConfig](doc="How errors are found; blends are drawn.")
    galleryBands = pexConfig.ListField[str](
        doc="Bands of the pictures: red, green and blue.", default=["z", "r", "g"], length=3
    )
    gallerySize = pexConfig.RangeField(doc="Number of blends in the gallery.", dtype=int, default=6, min=1)

    def validate(self) -> None:
        """Check names and bins."""
        super().validate()
        if self.name == self.second_name or not self.name.isidentifier():
            raise pexConfig.FieldValidationError(
                self.__class__.name,
                self,
                f"name = {self.name!r} and the other's {self.second_name!r} must differ and be words, since "
                "columns are named after them.",
            )
        edges = list(self.separationEdges)
        if sorted(set(edges)) != edges:
            raise pexConfig.FieldValidationError(
                self.__class__.separationEdges, self, f"separationEdges must ascend; given were {edges}."
            )

    @property
    def second_name(self) -> str:
        """Name of the second deblender (`str`)."""
        return self.baseline if self.baseline is not None else self.otherName

    def settings(self) -> ComparisonSettings:
        """Put the settings together.

        Returns
        -------
        settings : `~lsst.meas.maskrcnn.compare.deblender_comparison.\
ComparisonSettings`
            The same.
        """
        return ComparisonSettings(
            self.band, self.matchRadius, self.friendRadius, self.linkIou, self.linkContainment
        )


class CompareDeblendersTask(pipeBase.PipelineTask):
    """Compare two deblenders on a patch, with its truth or without.

    Parameters
    ----------
    **kwargs
        Forwarded to `lsst.pipe.base.PipelineTask`.
    """

    ConfigClass: ClassVar[type[CompareDeblendersConfig]] = CompareDeblendersConfig
    _DefaultName: ClassVar[str] = "compareDeblenders"

    config: CompareDeblendersConfig

    def runQuantum(
        self,
        butlerQC: pipeBase.QuantumContext,
        inputRefs: pipeBase.InputQuantizedConnection,
        outputRefs: pipeBase.OutputQuantizedConnection,
    ) -> None:
        """Load what there is of the patch, and store the comparison.

        Parameters
        ----------
        butlerQC : `lsst.pipe.base.QuantumContext`
            Butler restricted to this quantum.
        inputRefs : `lsst.pipe.base.InputQuantizedConnection`
            Inputs.
        outputRefs : `lsst.pipe.base.OutputQuantizedConnection`
            Outputs.
        """

        def handle(name: str) -> Any:
            ref = getattr(inputRefs, name, None)
            return None if ref is None else butlerQC.get(ref)

        def one(name: str) -> Any:
            found = handle(name)
            return None if found is None else found.get()

        def banded(name: str) -> dict[str, Any]:
            refs = getattr(inputRefs, name, None) or ()
            found = {str(ref.datasetRef.dataId["band"]): ref for ref in refs}
            wanted = self._bands(found) if name == "exposures" else [b for b in found if b in exposures]
            return {band: butlerQC.get(found[band]).get() for band in wanted}

        exposures: dict[str, ExposureF] = {}
        exposures = banded("exposures")
        models = handle("otherModels")
        fields = self.read(
            exposures=exposures,
            catalog=one("catalog"),
            bandCatalogs=banded("bandCatalogs"),
            blendStatistics=one("blendStatistics"),
            otherCatalog=one("otherCatalog"),
            otherParents=one("otherParents"),
            otherModels=None if models is None else read_models(models),
            truth=one("truth"),
            truthFlux=banded("truthFlux"),
            seconds=task_timing(one("taskMetadata"), self.config.connections.deblendLabel)[0],
        )
        data_id = butlerQC.quantum.dataId
        place = {} if data_id is None else {name: data_id[name] for name in ("tract", "patch", "skymap")}
        runs = {inputRefs.catalog.datasetRef.run}
        if getattr(inputRefs, "otherCatalog", None) is not None:
            runs.add(inputRefs.otherCatalog.datasetRef.run)
        outputs = self.run(
            **fields.getDict(),
            tract=int(place.get("tract", 0)),
            patch=int(place.get("patch", 0)),
            skymap=str(place.get("skymap", "")),
            runs=sorted(runs),
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
        otherModels: Any = None,
        truth: Any = None,
        truthFlux: Mapping[str, Any] | None = None,
        seconds: float = float("nan"),
    ) -> pipeBase.Struct:
        """Bring the products of deblenders into one form.

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
        calibrations = {
            band: exposure.getPhotoCalib().getCalibrationMean()
            for band, exposure in exposures.items()
            if exposure.getPhotoCalib() is not None
        }
        try:
            images = field_images(exposures, tuple(self.config.badMaskPlanes))
            first = read_source_catalog(
                catalog,
                self.config.name,
                band_catalogs=bandCatalogs,
                parent_statistics=blendStatistics,
                images=images,
                calibrations=calibrations,
                seconds=seconds,
            )
            if self.config.baseline == "scarlet2":
                # It needs the PSFs as well.
                second = deblend_with_scarlet2(exposures)
            elif self.config.baseline is not None:
                second = BASELINES[self.config.baseline](images)
            else:
                if otherCatalog is None:
                    raise ValueError(
                        "There is no catalogue of a second deblender; give one, or set config.baseline."
                    )

                def attach(band: str, redistribute: bool) -> Any:
                    return attach_scarlet(
                        otherCatalog, otherModels, exposures, band, redistribute, allow_missing=True
                    )

                second = read_scarlet_field(
                    otherCatalog,
                    parent_catalog=otherParents,
                    attach=None if otherModels is None else attach,
                    images=images,
                    calibrations=calibrations,
                    name=self.config.otherName,
                    convergence_inverted=self.config.convergenceInverted,
                )
        except ValueError as error:
            raise DeblenderInputError(str(error)) from error
        inputs = pipeBase.Struct(first=first, second=second, images=images)
        if truth is not None:
            inputs.truth = read_truth_field(truth, truthFlux)
            ignored = np.zeros(len(truth), dtype=bool)
            for flag in self.config.ignoreFlags:
                ignored |= np.asarray(truth[f"{PREFIX}_flag_{flag}"], dtype=bool)
            inputs.truthIgnored = ignored
            inputs.truthColumns = {"blendedness": np.array(truth[f"{PREFIX}_blendedness"], dtype=np.float64)}
        return inputs

    def run(
        self,
        *,
        first: DeblendedField,
        second: DeblendedField,
        images: FieldImages,
        truth: DeblendedField | None = None,
        truthIgnored: np.ndarray | None = None,
        truthColumns: Mapping[str, np.ndarray] | None = None,
        tract: int = 0,
        patch: int = 0,
        skymap: str = "",
        runs: Sequence[str] = (),
    ) -> pipeBase.Struct:
        """Compare two deblenders.

        Parameters
        ----------
        first, second : `DeblendedField`
            What they made of the patch.
        images : `FieldImages`
            The images.
        truth : `DeblendedField`, optional
            The truth.
        truthIgnored : `numpy.ndarray`, optional
            Truths that are neither hit nor miss, bool.
        truthColumns : `~collections.abc.Mapping` [`str`, `numpy.ndarray`], \
                optional
            More columns of the truth.
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

        Raises
        ------
        DeblenderInputError
            Raised if a deblender's sources are not on the images.
        """
        for field in (first, second):
            self._check_frame(field, images)
        settings = self.config.settings()
        comparison = compare_fields(first, second, images, settings)
        self._warn(comparison)
        values = comparison_values(comparison)
        tables: dict[str, dict[str, list[float]]] = {}
        found: dict[str, np.ndarray] | None = None
        if truth is not None and len(truth):
            found = truth_columns(
                truth,
                comparison,
                None if truthIgnored is None else ~truthIgnored,
                images,
                settings,
                truthColumns,
            )
            bootstrap = self.config.bootstrap
            values += truth_values(
                found,
                comparison,
                np.random.default_rng(bootstrap.seed),
                bands=images.bands,
                n_samples=bootstrap.nSamples,
                level=bootstrap.level,
            )
            tables = truth_tables(found, comparison, self.config.band, list(self.config.separationEdges))
        versions = software_versions()
        counted = 0 if found is None else int(found["counted"].sum())
        metrics = EvaluationMetrics(
            package_version=versions["lsst-meas-maskrcnn"],
            software=versions,
            name=self.config.connections.outputName,
            catalog=",".join(comparison.names),
            runs=list(runs),
            config=self.config.toDict(),
            skymap=skymap,
            patches=[
                PatchSummary(
                    tract=tract,
                    patch=patch,
                    n_truth=counted,
                    n_truth_ignored=0 if found is None else len(found["id"]) - counted,
                    n_detections=len(first),
                    seconds=first.seconds,
                    megapixels=images.usable.size / 1e6,
                )
            ],
            level=self.config.bootstrap.level,
            n_samples=self.config.bootstrap.nSamples,
            values=values,
            tables=tables,
        )
        outputs = pipeBase.Struct(
            metrics=metrics,
            sources=comparison_table(comparison.sources),
            blends=comparison_table(comparison.table),
            truths=comparison_table(found or {"id": np.zeros(0, dtype=np.int64)}),
        )
        if self.config.doPlots:
            outputs.plotFlux = plot_flux_pairs(comparison, images.bands)
            outputs.plotResidual = plot_residual_panels(comparison, self.config.band, found)
            outputs.plotGallery = plot_disagreements(
                cut_disagreements(
                    comparison,
                    images,
                    self.config.gallerySize,
                    list(self.config.galleryBands),
                    self.config.band,
                )
            )
        self.metadata["n_sources"] = len(first)
        self.metadata["n_sources_other"] = len(second)
        self.metadata["n_matched"] = int(comparison.matched.sum())
        self.log.info(
            "%s has %d sources, %s %d; %d match.",
            first.name,
            len(first),
            second.name,
            len(second),
            self.metadata["n_matched"],
        )
        return outputs

    def _bands(self, found: Mapping[str, Any]) -> list[str]:
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

    def _check_frame(self, field: DeblendedField, images: FieldImages) -> None:
        """Refuse a catalogue of another patch."""
        if not len(field):
            return
        (y0, x0), (height, width) = images.origin, images.shape
        on = (field.x >= x0 - 1) & (field.x <= x0 + width) & (field.y >= y0 - 1) & (field.y <= y0 + height)
        if not on.any():
            raise DeblenderInputError(
                f"None of the {len(field)} sources of {field.name} lies on the exposures, which begin at "
                f"(x, y) = ({x0}, {y0}) and are {width} x {height} pixels; the first source is at "
                f"({field.x[0]:.0f}, {field.y[0]:.0f}). Give both of one patch."
            )

    def _warn(self, comparison: FieldComparison) -> None:
        """Say what there is nothing to compare of."""
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
                "%s and %s have no source in common: nothing but counts and what only one of them has is "
                "compared.",
                *comparison.names,
            )
