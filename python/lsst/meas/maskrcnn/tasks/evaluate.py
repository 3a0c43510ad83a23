# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How good a catalogue is, judged by the truth of simulated patches."""

from __future__ import annotations

__all__ = [
    "AveragePrecisionConfig",
    "BootstrapConfig",
    "DetectionFieldsConfig",
    "EvaluationInputError",
    "MaskRcnnEvaluateConfig",
    "MaskRcnnEvaluateConnections",
    "MaskRcnnEvaluateTask",
]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
from astropy.table import Table

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
import lsst.pipe.base.connectionTypes as cT
from lsst.utils.logging import PeriodicLogger

from ..catalogs.blend_gallery import BlendGallery
from ..catalogs.compare import (
    CompareSettings,
    EvaluationPatch,
    MismatchedPatchError,
    PatchComparison,
    compare_patch,
)
from ..catalogs.detections import DetectionFields
from ..catalogs.evaluation_io import match_output, task_timing
from ..metrics.average_precision import Definition, NoTruth
from ..metrics.blends import BlendGroups, BlendSummary, summarize_blends
from ..metrics.evaluation_metrics import (
    EvaluationGallery,
    EvaluationMetrics,
    MetricValue,
    PatchSummary,
    outcomes_table,
    software_versions,
)
from ..metrics.matching import IOU_THRESHOLDS, PSF_AREA_RANGES, AreaRange, ImagePairs, Method
from ..metrics.summary import (
    SummarySettings,
    ap_summary,
    binned_tables,
    evaluation_plots,
    precision_recall_table,
    table_values,
    throughput_values,
)
from ..report.gallery import plot_gallery

# More pictures side by side are too small in the width of a page.
_PLOTTED = 4


class EvaluationInputError(pipeBase.AlgorithmError):
    """The inputs of an evaluation cannot be compared.

    Parameters
    ----------
    message : `str`
        What was given, what was wanted and what to do.
    patch : `str`
        The patch that it is about, if it is about one.
    """

    def __init__(self, message: str, patch: str = "") -> None:
        self.patch = patch
        super().__init__(message)

    @property
    def metadata(self) -> dict[str, str]:
        """What failed, for the task's metadata (`dict`)."""
        return {"patch": self.patch, "message": str(self)}


class MaskRcnnEvaluateConnections(
    pipeBase.PipelineTaskConnections,
    dimensions=("skymap",),
    defaultTemplates={
        "coaddName": "deep",
        "catalogName": "deepCoadd_maskRcnnCatalog",
        "deblendLabel": "maskRcnnDeblend",
        "outputName": "maskRcnnEvaluation",
    },
):
    """Inputs and outputs of `MaskRcnnEvaluateTask`.

    The truth alone decides which patches there are: one whose catalogue is
    missing is not passed over in silence.

    Parameters
    ----------
    config : `MaskRcnnEvaluateConfig`
        Configuration of the task; inputs that it does not want are left out.
    """

    catalogs = cT.Input(
        doc="Catalogues to judge, with footprints.",
        name="{catalogName}",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch"),
        multiple=True,
        deferLoad=True,
        deferGraphConstraint=True,
        minimum=0,
    )
    truth = cT.Input(
        doc="The sources that are there: positions, classes, fluxes, and masks as footprints.",
        name="maskRcnn_truth",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch"),
        multiple=True,
        deferLoad=True,
    )
    truthFlux = cT.Input(
        doc="Each true source's own pixels without noise, as heavy footprints.",
        name="maskRcnn_truthFlux",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
        deferGraphConstraint=True,
        minimum=0,
    )
    exposures = cT.Input(
        doc="Coadds in which the sources were found.",
        name="{coaddName}Coadd_calexp",
        storageClass="ExposureF",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
        deferGraphConstraint=True,
        minimum=0,
    )
    taskMetadata = cT.Input(
        doc="Metadata of the task that made the catalogues, for how long it took.",
        name="{deblendLabel}_metadata",
        storageClass="TaskMetadata",
        dimensions=("skymap", "tract", "patch"),
        multiple=True,
        deferLoad=True,
        deferGraphConstraint=True,
        minimum=0,
    )
    metrics = cT.Output(
        doc="All figures with their errors, and what they were computed from.",
        name="{outputName}_metrics",
        storageClass="MaskRcnnMetrics",
        dimensions=("skymap",),
    )
    matches = cT.Output(
        doc="Match table: one row for each true source and each detection without one.",
        name="{outputName}_matches",
        storageClass="ArrowAstropy",
        dimensions=("skymap",),
    )
    precisionRecall = cT.Output(
        doc="Precision-recall curves by definition, class and IoU.",
        name="{outputName}_precisionRecall",
        storageClass="ArrowAstropy",
        dimensions=("skymap",),
    )
    outcomes = cT.Output(
        doc="Hits and false detections by class and IoU, from which runs are compared.",
        name="{outputName}_outcomes",
        storageClass="ArrowAstropy",
        dimensions=("skymap",),
    )
    gallery = cT.Output(
        doc="Pictures and outlines of the best and the worst blends.",
        name="{outputName}_gallery",
        storageClass="MaskRcnnGallery",
        dimensions=("skymap",),
    )
    plotPrecisionRecall = cT.Output(
        doc="Precision against recall by class and IoU.",
        name="{outputName}_plot_precisionRecall",
        storageClass="Plot",
        dimensions=("skymap",),
    )
    plotCompleteness = cT.Output(
        doc="Completeness and purity.",
        name="{outputName}_plot_completeness",
        storageClass="Plot",
        dimensions=("skymap",),
    )
    plotConfusion = cT.Output(
        doc="Confusion of stars and galaxies, by magnitude.",
        name="{outputName}_plot_confusion",
        storageClass="Plot",
        dimensions=("skymap",),
    )
    plotRoc = cT.Output(
        doc="Stars kept against galaxies let through.",
        name="{outputName}_plot_roc",
        storageClass="Plot",
        dimensions=("skymap",),
    )
    plotFluxResidual = cT.Output(
        doc="Flux residuals by blendedness.",
        name="{outputName}_plot_fluxResidual",
        storageClass="Plot",
        dimensions=("skymap",),
    )
    plotCalibration = cT.Output(
        doc="Scores against the share of detections that are true.",
        name="{outputName}_plot_calibration",
        storageClass="Plot",
        dimensions=("skymap",),
    )
    plotBlends = cT.Output(
        doc="How blends ended.",
        name="{outputName}_plot_blends",
        storageClass="Plot",
        dimensions=("skymap",),
    )
    plotGallery = cT.Output(
        doc="The best and the worst blends.",
        name="{outputName}_plot_gallery",
        storageClass="Plot",
        dimensions=("skymap",),
    )

    def __init__(self, *, config: MaskRcnnEvaluateConfig) -> None:
        super().__init__(config=config)
        if not config.doBlendFlux:
            del self.truthFlux
        if not config.doExposures:
            del self.exposures
        if not config.doThroughput:
            del self.taskMetadata
        if not config.doGallery:
            del self.gallery
            del self.plotGallery
        if not config.doPlots:
            for name in sorted(self.outputs):
                if name.startswith("plot"):
                    delattr(self, name)


class DetectionFieldsConfig(pexConfig.Config):
    """Which fields of the catalogue say what."""

    star = pexConfig.Field[str](
        doc="Flag that is set for stars; None takes maskrcnn_star where it is there.",
        default=None,
        optional=True,
    )
    extendedness = pexConfig.Field[str](
        doc="Number that is below 0.5 for stars, used where there is no flag; None takes "
        "base_ClassificationExtendedness_value where it is there. Without either, classes are not judged.",
        default=None,
        optional=True,
    )
    score = pexConfig.Field[str](
        doc="Score of a detection; None takes maskrcnn_score, or else 1 for all.",
        default=None,
        optional=True,
    )
    pStar = pexConfig.Field[str](
        doc="Probability of being a star; None takes maskrcnn_pStar where it is there.",
        default=None,
        optional=True,
    )
    centroid = pexConfig.Field[str](
        doc="Name of the position, without _x and _y; None takes the slot Centroid, deblend_peak_center, "
        "or the peak of the footprint.",
        default=None,
        optional=True,
    )
    flux = pexConfig.DictField[str, str](
        doc="Field of the flux for a band; in nJy, or else instrumental with the PhotoCalib of the exposure.",
        default={},
    )
    heavyBand = pexConfig.Field[str](
        doc="Band of which heavy footprints hold the pixels; None if they are not to be used.",
        default=None,
        optional=True,
    )

    def settings(self) -> DetectionFields:
        """Put the settings together for the reader.

        Returns
        -------
        fields : `~lsst.meas.maskrcnn.catalogs.detections.DetectionFields`
            The same.
        """
        return DetectionFields(
            self.star,
            self.extendedness,
            self.score,
            self.pStar,
            self.centroid,
            dict(self.flux),
            self.heavyBand,
        )


class AveragePrecisionConfig(pexConfig.Config):
    """How average precision is computed."""

    iouThresholds = pexConfig.ListField[float](
        doc="Smallest intersection over union of a match, ascending.",
        default=list(IOU_THRESHOLDS),
        minLength=1,
        maxLength=31,
        itemCheck=lambda value: 0.0 < value <= 1.0,
    )
    definitions = pexConfig.ListField[str](
        doc="Definitions: perImage (published for Astro R-CNN), pooled (all points), coco (101 points).",
        default=["perImage", "pooled", "coco"],
        minLength=1,
        itemCheck=lambda value: value in ("perImage", "pooled", "coco"),
    )
    minScore = pexConfig.Field[float](
        doc="Lowest score that the definition perImage looks at.",
        default=0.5,
    )
    noTruth = pexConfig.ChoiceField[str](
        doc="What an image does in the definition perImage that has detections of a class but no truth.",
        default="skip",
        allowed={"skip": "it is left out", "zero": "it counts as 0"},
    )
    areaEdges = pexConfig.ListField[float](
        doc="Limits between ranges of areas, in units of the disc with the FWHM of the PSF as its diameter; "
        "for the definition coco.",
        default=[8.0, 32.0],
        itemCheck=lambda value: value > 0.0,
    )

    def areas(self) -> tuple[AreaRange, ...]:
        """Put the ranges of areas together.

        Returns
        -------
        areas : `tuple` [`AreaRange`]
            From the smallest to the largest; none without limits.
        """
        edges = list(self.areaEdges)
        if edges == [8.0, 32.0]:
            return PSF_AREA_RANGES
        limits = [0.0, *edges, float("inf")]
        pairs = zip(limits[:-1], limits[1:]) if edges else ()
        return tuple(AreaRange(f"{low:g}-{high:g}", low, high) for low, high in pairs)


class BootstrapConfig(pexConfig.Config):
    """How errors are found by resampling patches."""

    nSamples = pexConfig.RangeField(doc="Number of resamplings.", dtype=int, default=1000, min=2)
    level = pexConfig.RangeField(
        doc="Probability between the limits.",
        dtype=float,
        default=0.6827,
        min=0.0,
        max=1.0,
        inclusiveMin=False,
        inclusiveMax=False,
    )
    seed = pexConfig.RangeField(doc="Source of chance.", dtype=int, default=1, min=0)


class MaskRcnnEvaluateConfig(pipeBase.PipelineTaskConfig, pipelineConnections=MaskRcnnEvaluateConnections):
    """Configuration of `MaskRcnnEvaluateTask`."""

    band = pexConfig.Field[str](
        doc="Reference band: magnitudes, signal to noise ratios and fluxes are those in it.",
        default="r",
    )
    bands = pexConfig.ListField[str](
        doc="Bands of which fluxes are compared, from blue to red; None takes all of the truth.",
        default=None,
        optional=True,
    )
    ignoreFlags = pexConfig.ListField[str](
        doc="Flags of the truth (truth_flag_...) that make a source neither hit nor miss.",
        default=["empty", "small", "faint", "masked"],
        itemCheck=lambda value: value in ("empty", "small", "faint", "masked", "edge"),
    )
    minSnr = pexConfig.RangeField(
        doc="Truths with a lower signal to noise ratio in every band are neither hit nor miss.",
        dtype=float,
        default=0.0,
        min=0.0,
    )
    minPeakSnr = pexConfig.RangeField(
        doc="Truths of which the brightest pixel has a lower signal to noise ratio in every band are neither "
        "hit nor miss.",
        dtype=float,
        default=0.0,
        min=0.0,
    )
    missing = pexConfig.ChoiceField[str](
        doc="What to do about a patch that has a truth but no catalogue, or the reverse.",
        default="fail",
        allowed={
            "fail": "stop",
            "skip": "leave the patch out",
            "empty": "count a missing catalogue as one without sources; without truth, leave the patch out",
        },
    )
    skipWithoutFootprint = pexConfig.Field[bool](
        doc="Leave out sources of the catalogue that have no pixel in their footprint, in place of failing?",
        default=False,
    )
    matchIou = pexConfig.RangeField(
        doc="Smallest intersection over union of a match of the match table.",
        dtype=float,
        default=0.5,
        min=0.0,
        max=1.0,
        inclusiveMin=False,
        inclusiveMax=True,
    )
    matching = pexConfig.ChoiceField[str](
        doc="How detections and truths are matched.",
        default="greedy",
        allowed={
            "greedy": "each detection, by descending score, takes the best truth that is left",
            "optimal": "as many as can be, with the largest sum of overlaps",
        },
    )
    scoreThreshold = pexConfig.Field[float](
        doc="Lowest score of the detections that completeness, purity, classes, blends and residuals are of; "
        "None takes all. Average precision and calibration are of all detections in any case.",
        default=None,
        optional=True,
    )
    linkIou = pexConfig.RangeField(
        doc="Intersection over union from which two masks are friends; friends of friends make a blend.",
        dtype=float,
        default=0.3,
        min=0.0,
        max=1.0,
    )
    linkContainment = pexConfig.RangeField(
        doc="Share of the smaller of two masks in the other from which they are friends.",
        dtype=float,
        default=0.5,
        min=0.0,
        max=1.0,
    )
    linkTruth = pexConfig.Field[bool](
        doc="Can two truths be friends, so that what is a blend does not depend on what was found? Otherwise "
        "only a truth and a detection can.",
        default=True,
    )
    fields = pexConfig.ConfigField[DetectionFieldsConfig](doc="Which fields of the catalogue say what.")
    ap = pexConfig.ConfigField[AveragePrecisionConfig](doc="How average precision is computed.")
    bootstrap = pexConfig.ConfigField[BootstrapConfig](doc="How errors are found.")
    doExposures = pexConfig.Field[bool](
        doc="Read the exposures? They are needed for pictures, fluxes within footprints, bad pixels, the "
        "width of the PSF, and the calibration of instrumental fluxes.",
        default=True,
    )
    doImageFlux = pexConfig.Field[bool](
        doc="Take the sum of the exposure within the footprint as flux, in bands without a field for it?",
        default=True,
    )
    doBlendFlux = pexConfig.Field[bool](
        doc="Compare fluxes with the source's own light within the detection's footprint, in place of all of "
        "it? What is left of the residual is light of neighbours.",
        default=False,
    )
    badMaskPlanes = pexConfig.ListField[str](
        doc="Mask planes of pixels in which a detection without truth is not counted as false.",
        default=["BAD", "NO_DATA"],
    )
    maxBadFraction = pexConfig.RangeField(
        doc="Largest share of such pixels of a detection that can be false.",
        dtype=float,
        default=0.5,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
    )
    psfFwhm = pexConfig.RangeField(
        doc="Full width at half maximum of the PSF (pixels), for ranges of areas; None takes that of the "
        "exposure in the reference band.",
        dtype=float,
        default=None,
        optional=True,
        min=0.0,
        inclusiveMin=False,
    )
    doThroughput = pexConfig.Field[bool](
        doc="Read how long the catalogues took from the metadata of the task that made them?",
        default=True,
    )
    doPlots = pexConfig.Field[bool](doc="Draw plots?", default=True)
    doGallery = pexConfig.Field[bool](doc="Make pictures of the best and the worst blends?", default=True)
    galleryBands = pexConfig.ListField[str](
        doc="Bands of the pictures: red, green and blue.", default=["z", "r", "g"], length=3
    )
    gallerySize = pexConfig.RangeField(
        doc="Number of the best blends, and of the worst, that are stored for the report; the plot shows "
        "up to four of each.",
        dtype=int,
        default=8,
        min=1,
    )
    residualColumn = pexConfig.ChoiceField[str](
        doc="Against what flux residuals are drawn.",
        default="blendedness",
        allowed={"blendedness": "blendedness", "mag": "magnitude"},
    )

    def validate(self) -> None:
        """Check that what needs exposures has them."""
        super().validate()
        if self.doGallery and not self.doExposures:
            raise pexConfig.FieldValidationError(
                self.__class__.doGallery,
                self,
                "doGallery = True needs the exposures, but doExposures = False; switch either.",
            )
        thresholds = list(self.ap.iouThresholds)
        if sorted(set(thresholds)) != thresholds:
            raise pexConfig.FieldValidationError(
                AveragePrecisionConfig.iouThresholds,
                self.ap,
                f"iouThresholds must ascend; given were {thresholds}.",
            )
        if sorted(set(self.ap.areaEdges)) != list(self.ap.areaEdges):
            raise pexConfig.FieldValidationError(
                AveragePrecisionConfig.areaEdges,
                self.ap,
                f"areaEdges must ascend; given were {list(self.ap.areaEdges)}.",
            )

    def compare_settings(self) -> CompareSettings:
        """Put the settings for one patch together.

        Returns
        -------
        settings : `~lsst.meas.maskrcnn.catalogs.compare.CompareSettings`
            The same.
        """
        return CompareSettings(
            fields=self.fields.settings(),
            band=self.band,
            bands=None if self.bands is None else tuple(self.bands),
            ignore_flags=tuple(self.ignoreFlags),
            min_snr=self.minSnr,
            min_peak_snr=self.minPeakSnr,
            match_iou=self.matchIou,
            iou_thresholds=tuple(self.ap.iouThresholds),
            method=cast(Method, self.matching),
            score_threshold=self.scoreThreshold,
            link_iou=self.linkIou,
            link_containment=self.linkContainment,
            link_truth=self.linkTruth,
            bad_planes=tuple(self.badMaskPlanes),
            max_bad_fraction=self.maxBadFraction,
            image_flux=self.doImageFlux,
            psf_fwhm=self.psfFwhm,
        )

    def summary_settings(self, bands: tuple[str, ...], areas: tuple[AreaRange, ...]) -> SummarySettings:
        """Put the settings for all patches together.

        Parameters
        ----------
        bands : `tuple` [`str`]
            Bands of the match table.
        areas : `tuple` [`AreaRange`]
            Ranges of areas.

        Returns
        -------
        settings : `~lsst.meas.maskrcnn.metrics.summary.SummarySettings`
            The same.
        """
        return SummarySettings(
            iou_thresholds=tuple(self.ap.iouThresholds),
            definitions=cast(tuple[Definition, ...], tuple(self.ap.definitions)),
            areas=areas,
            min_score=self.ap.minScore,
            no_truth=cast(NoTruth, self.ap.noTruth),
            method=cast(Method, self.matching),
            score_threshold=self.scoreThreshold,
            n_samples=self.bootstrap.nSamples,
            level=self.bootstrap.level,
            seed=self.bootstrap.seed,
            band=self.band,
            bands=bands,
            residual_column=self.residualColumn,
        )


class MaskRcnnEvaluateTask(pipeBase.PipelineTask):
    """Judge a catalogue by the truth of the patches that it was made of.

    Any catalogue with footprints will do, whatever made it.

    Parameters
    ----------
    **kwargs
        Forwarded to `lsst.pipe.base.PipelineTask`.
    """

    ConfigClass: ClassVar[type[MaskRcnnEvaluateConfig]] = MaskRcnnEvaluateConfig
    _DefaultName: ClassVar[str] = "maskRcnnEvaluate"

    config: MaskRcnnEvaluateConfig

    def runQuantum(
        self,
        butlerQC: pipeBase.QuantumContext,
        inputRefs: pipeBase.InputQuantizedConnection,
        outputRefs: pipeBase.OutputQuantizedConnection,
    ) -> None:
        """Load one patch after the other, and store the figures.

        Parameters
        ----------
        butlerQC : `lsst.pipe.base.QuantumContext`
            Butler restricted to this quantum.
        inputRefs : `lsst.pipe.base.InputQuantizedConnection`
            Inputs.
        outputRefs : `lsst.pipe.base.OutputQuantizedConnection`
            Outputs.
        """

        def by_patch(name: str) -> dict[tuple[int, int], list[Any]]:
            grouped: dict[tuple[int, int], list[Any]] = {}
            for ref in getattr(inputRefs, name, ()):
                data_id = ref.datasetRef.dataId
                grouped.setdefault((int(data_id["tract"]), int(data_id["patch"])), []).append(ref)
            return grouped

        names = ("catalogs", "truth", "truthFlux", "exposures", "taskMetadata")
        refs = {name: by_patch(name) for name in names}
        keys = sorted(set(refs["catalogs"]) | set(refs["truth"]))
        runs = sorted({ref.datasetRef.run for found in refs["catalogs"].values() for ref in found})

        def one(name: str, key: tuple[int, int]) -> Any:
            found = refs[name].get(key)
            return butlerQC.get(found[0]).get() if found else None

        def banded(name: str, key: tuple[int, int], wanted: set[str] | None) -> dict[str, Any]:
            found = {str(ref.datasetRef.dataId["band"]): ref for ref in refs[name].get(key, ())}
            bands = sorted(found if wanted is None else wanted & set(found))
            return {band: butlerQC.get(found[band]).get() for band in bands}

        def load() -> Iterator[EvaluationPatch]:
            for key in keys:
                truth, catalog = one("truth", key), one("catalogs", key)
                exposures: dict[str, Any] = {}
                truth_flux: dict[str, Any] = {}
                if truth is not None and (catalog is not None or self.config.missing == "empty"):
                    exposures = banded("exposures", key, self._wanted_bands())
                if truth is not None and catalog is not None:
                    truth_flux = banded("truthFlux", key, None)
                yield self._patch(key, truth, catalog, truth_flux, exposures, one("taskMetadata", key))

        data_id = butlerQC.quantum.dataId
        outputs = self.run(
            patches=load(),
            runs=runs,
            skymap=str(data_id["skymap"]) if data_id is not None else "",
            n_patches=len(keys),
        )
        butlerQC.put(outputs, outputRefs)

    def run(
        self,
        *,
        patches: Iterable[EvaluationPatch],
        runs: Sequence[str] = (),
        skymap: str = "",
        n_patches: int | None = None,
    ) -> pipeBase.Struct:
        """Compare catalogues with their truth.

        Parameters
        ----------
        patches : `~collections.abc.Iterable` [ \
                `~lsst.meas.maskrcnn.catalogs.compare.EvaluationPatch`]
            The patches; a generator keeps one of them in memory at a time.
        runs : `~collections.abc.Sequence` [`str`]
            Collections that the catalogues came from, for the record.
        skymap : `str`
            Name of the sky map, for the record.
        n_patches : `int`, optional
            Number of patches, for the log.

        Returns
        -------
        results : `lsst.pipe.base.Struct`
            Results with the attributes:

            ``metrics``
                The figures (`~lsst.meas.maskrcnn.metrics.\
evaluation_metrics.EvaluationMetrics`).
            ``matches``, ``precisionRecall``, ``outcomes``
                Tables (`astropy.table.Table`).
            ``gallery``
                The best and the worst blends, if they are asked for
                (`~lsst.meas.maskrcnn.metrics.evaluation_metrics.\
EvaluationGallery`).
            ``plotPrecisionRecall``, ``plotCompleteness``, ``plotConfusion``, \
``plotRoc``, ``plotFluxResidual``, ``plotCalibration``, ``plotBlends``, \
``plotGallery``
                Plots, if they are asked for (`matplotlib.figure.Figure`).

        Raises
        ------
        EvaluationInputError
            Raised if there is no patch, a catalogue or a truth is missing and
            ``config.missing`` is ``fail``, or the inputs of a patch do not
            fit each other.
        """
        settings = self.config.compare_settings()
        logger = PeriodicLogger(self.log)
        of_patches = "" if n_patches is None else f" of {n_patches}"
        gallery = BlendGallery(self.config.gallerySize, self.config.galleryBands)
        images: list[ImagePairs] = []
        summaries: list[PatchSummary] = []
        tables: list[np.ndarray] = []
        row_groups: list[np.ndarray] = []
        group_tables: list[np.ndarray] = []
        kinds: list[np.ndarray] = []
        scales: list[float] = []
        fwhms: list[float] = []
        groups: list[BlendGroups] = []
        models: set[str] = set()
        bands: tuple[str, ...] | None = None
        has_class = True
        for patch in self._usable(patches):
            try:
                comparison = compare_patch(patch, settings, image=len(images))
            except MismatchedPatchError as error:
                raise EvaluationInputError(str(error), patch.name) from error
            if bands is not None and comparison.bands != bands:
                raise EvaluationInputError(
                    f"{patch.name}: the truth has fluxes in {list(comparison.bands)}, that of the patches "
                    f"before in {list(bands)}; name those that all have with config.bands.",
                    patch.name,
                )
            bands = comparison.bands
            has_class &= comparison.detections.has_class
            images.append(comparison.pairs)
            summaries.append(comparison.summary)
            tables.append(comparison.table)
            row_groups.append(comparison.row_group)
            group_tables.append(comparison.group_table(len(group_tables)))
            groups.append(comparison.groups)
            kinds.append(comparison.kinds)
            scales.append(comparison.pixel_scale)
            fwhms.append(comparison.psf_fwhm)
            models |= {patch.model} - {""}
            if self.config.doGallery:
                gallery.add(patch, comparison)
            self._check_left_out(patch, comparison)
            logger.log("Compared %d%s patches.", len(images), of_patches)
        if not images:
            raise EvaluationInputError(
                "There is no patch to evaluate: no patch has both a truth and a catalogue. Check the input "
                "collections and the data query, or simulate patches with SimulateScenesTask."
            )
        pixel_scale = _median(scales)
        if np.isfinite(fwhms).all():
            areas = self.config.ap.areas()
        else:
            areas = ()
            self.log.info("No ranges of areas: the width of the PSF is not known without exposures.")
        classes = ("all", "star", "galaxy") if has_class else ("all",)
        summary_settings = self.config.summary_settings(bands or (), areas)
        return self._summarize(
            images,
            summaries,
            np.concatenate(tables),
            np.concatenate(group_tables),
            np.concatenate(row_groups),
            summarize_blends(groups, kinds),
            gallery,
            classes,
            summary_settings,
            pixel_scale=pixel_scale if np.isfinite(pixel_scale) else None,
            provenance={"runs": list(runs), "skymap": skymap, "models": sorted(models)},
        )

    def _summarize(
        self,
        images: list[ImagePairs],
        summaries: list[PatchSummary],
        table: np.ndarray,
        group_table: np.ndarray,
        row_group: np.ndarray,
        blends: BlendSummary,
        gallery: BlendGallery,
        classes: tuple[str, ...],
        settings: SummarySettings,
        *,
        pixel_scale: float | None,
        provenance: Mapping[str, Any],
    ) -> pipeBase.Struct:
        """Make figures, tables and plots of all patches."""
        logger = PeriodicLogger(self.log)
        names = tuple(image.name for image in images)

        def progress(step: str) -> None:
            logger.log("Computing %s.", step)

        ap = ap_summary(images, classes, settings, progress)
        values: list[MetricValue] = list(ap.values)
        values += table_values(
            table, group_table, names, classes, settings, pixel_scale=pixel_scale, progress=progress
        )
        values += throughput_values(
            [one.seconds for one in summaries], [one.megapixels for one in summaries], names, settings
        )
        binned, panels = binned_tables(table, classes, settings)
        versions = software_versions()
        metrics = EvaluationMetrics(
            package_version=versions["lsst-meas-maskrcnn"],
            software=versions,
            name=self.config.connections.outputName,
            catalog=self.config.connections.catalogName,
            config=self.config.toDict(),
            patches=summaries,
            n_truth={name: one.n_truth.tolist() for name, one in ap.outcomes.items()},
            iou_thresholds=list(settings.iou_thresholds),
            level=settings.level,
            n_samples=settings.n_samples,
            values=values,
            tables=binned,
            **provenance,
        )
        outputs = pipeBase.Struct(
            metrics=metrics,
            matches=match_output(table, row_group, group_table, metrics),
            precisionRecall=Table(precision_recall_table(ap.results)),
            outcomes=Table(outcomes_table(ap.outcomes.values())),
        )
        if self.config.doGallery:
            outputs.gallery = EvaluationGallery(
                bands=gallery.bands,
                pixel_scale=float("nan") if pixel_scale is None else pixel_scale,
                entries=gallery.entries(),
            )
        if self.config.doPlots:
            plots = evaluation_plots(table, blends, ap.results, panels, classes, settings)
            for name, figure in plots.items():
                setattr(outputs, f"plot{name[0].upper()}{name[1:]}", figure)
            if self.config.doGallery:
                outputs.plotGallery = plot_gallery(
                    gallery.panels("best")[:_PLOTTED],
                    gallery.panels("worst")[:_PLOTTED],
                    pixel_scale=pixel_scale,
                )
        self._report(metrics, classes)
        return outputs

    def _report(self, metrics: EvaluationMetrics, classes: Sequence[str]) -> None:
        """Put the most important figures into the metadata and the log."""
        definition = self.config.ap.definitions[0]
        self.metadata["n_patches"] = len(metrics.patches)
        self.metadata["n_truth"] = sum(patch.n_truth for patch in metrics.patches)
        self.metadata["n_detections"] = sum(patch.n_detections for patch in metrics.patches)
        words = []
        for name in classes:
            for what in ("completeness", "purity"):
                value = metrics.get(what, object_class=name)
                self.metadata[f"{what}_{name}"] = value.value
            for one in metrics.select(name="ap", object_class=name, area="all"):
                if one.iou is None or one.iou == metrics.iou_thresholds[0]:
                    at = "mean" if one.iou is None else f"{100 * one.iou:.0f}"
                    self.metadata[f"ap_{one.definition}_{at}_{name}"] = one.value
                    if one.definition == definition and one.iou is not None:
                        words.append(f"{name} {one.value:.3f} +- {one.error:.3f}")
        self.log.info(
            "%d patches, %d truths, %d detections: completeness %.3f, purity %.3f, AP (%s, IoU %.2f): %s.",
            self.metadata["n_patches"],
            self.metadata["n_truth"],
            self.metadata["n_detections"],
            metrics.get("completeness").value,
            metrics.get("purity").value,
            definition,
            metrics.iou_thresholds[0],
            ", ".join(words),
        )

    def _usable(self, patches: Iterable[EvaluationPatch]) -> Iterator[EvaluationPatch]:
        """Pass on the patches that can be compared."""
        for patch in patches:
            if patch.truth is not None and patch.catalog is not None:
                yield patch
                continue
            what = "truth" if patch.truth is None else "catalogue"
            if self.config.missing == "fail":
                raise EvaluationInputError(
                    f"{patch.name} has no {what}. Make it, or set config.missing to 'skip' to leave such "
                    "patches out, or to 'empty' to count a missing catalogue as one without sources.",
                    patch.name,
                )
            if self.config.missing == "empty" and patch.truth is not None:
                self.log.warning("%s has no catalogue; it counts as one without sources.", patch.name)
                yield patch
            else:
                self.log.warning("%s has no %s; it is left out.", patch.name, what)

    def _check_left_out(self, patch: EvaluationPatch, comparison: PatchComparison) -> None:
        """Do not let records vanish in silence."""
        found = comparison.detections
        if found.n_without_footprint and not self.config.skipWithoutFootprint:
            raise EvaluationInputError(
                f"{patch.name}: {found.n_without_footprint} of {found.n_without_footprint + len(found)} "
                "sources of the catalogue have no pixel in their footprint, and would count as missed. The "
                "children of scarlet's catalogue get theirs from its models; else set "
                "config.skipWithoutFootprint.",
                patch.name,
            )
        skipped = found.n_without_footprint + found.n_without_score
        if skipped:
            self.log.warning(
                "%s: left out %d records without a pixel in their footprint or without a score.",
                patch.name,
                skipped,
            )

    def _wanted_bands(self) -> set[str] | None:
        """Bands of the exposures that are needed; None for all."""
        if self.config.bands is None:
            return None
        wanted = {self.config.band, *self.config.bands}
        return wanted | set(self.config.galleryBands) if self.config.doGallery else wanted

    def _patch(
        self,
        key: tuple[int, int],
        truth: Any,
        catalog: Any,
        truth_flux: Mapping[str, Any],
        exposures: Mapping[str, Any],
        metadata: Any,
    ) -> EvaluationPatch:
        """Put the inputs of one patch together."""
        label = self.config.connections.deblendLabel
        seconds, megapixels, model = task_timing(metadata, label)
        return EvaluationPatch(*key, truth, catalog, truth_flux, exposures, seconds, megapixels, model)


def _median(values: Sequence[float]) -> float:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if len(known) else float("nan")
