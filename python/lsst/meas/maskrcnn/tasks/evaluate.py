# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Evaluation of a catalogue by the truth of simulated patches."""

from __future__ import annotations

__all__ = [
    "EvaluationInputError",
    "MaskRcnnEvaluateConfig",
    "MaskRcnnEvaluateConnections",
    "MaskRcnnEvaluateTask",
]

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from astropy.table import Table

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
from lsst.utils.logging import PeriodicLogger

from ..catalogs.blend_cutout import cut_group, cut_source
from ..catalogs.evaluation import (
    EvaluationPatch,
    EvaluationSettings,
    MismatchedPatchError,
    PatchComparison,
    PatchResult,
    compare_patch,
)
from ..catalogs.evaluation_io import match_output, task_timing
from ..catalogs.exposures import InputError, instrumental_bands
from ..catalogs.injected import injected_truth
from ..metrics.binned_figures import binned_tables, precision_recall_table
from ..metrics.bootstrap import LEVEL
from ..metrics.cutouts import BlendCutout
from ..metrics.evaluation_metrics import (
    EvaluationGallery,
    EvaluationMetrics,
    outcomes_table,
    software_versions,
)
from ..metrics.match_table import MatchedSources, find_failures
from ..metrics.matching import PSF_AREA_RANGES, AreaRange
from ..metrics.run_comparison import EvaluatedRun
from ..metrics.summary import blend_figures, source_figures, summarize_precision, throughput_figures
from .config_fields import make_config
from .connections import BAND, PATCH, SKYMAP, deferred_input, named_output
from .failures import say_where

if TYPE_CHECKING:
    from ..report.gallery import BlendGallery

_OF_DETECTIONS = ("purity", "score_", "calibration/score")
"""Beginnings of the names of figures that need to know which detections are false."""

_GALLERY_SIZE = 8
"""Number of the best blends, and of the worst, that are stored for the report."""


class EvaluationInputError(InputError):
    """The inputs of an evaluation, or of a patch of it, cannot be compared."""

    def __init__(self, message: str, patch: str = "") -> None:
        self.patch = patch
        super().__init__(message, patch=patch, message=message)


class MaskRcnnEvaluateConnections(
    pipeBase.PipelineTaskConnections,
    dimensions=SKYMAP,
    defaultTemplates={
        "coaddName": "deep",
        "catalogName": "deepCoadd_maskRcnnCatalog",
        "deblendLabel": "maskRcnnDeblend",
        "outputName": "maskRcnnEvaluation",
    },
):
    """Inputs and outputs of `MaskRcnnEvaluateTask`.

    The truth alone decides which patches there are: one whose catalogue is
    missing is not passed over in silence. Inputs that the configuration does
    not want are left out.
    """

    catalogs = deferred_input(
        "Catalogues to evaluate, with footprints.", "{catalogName}", "SourceCatalog", PATCH, optional=True
    )
    truth = deferred_input(
        "The sources that are there: positions, classes, fluxes, and masks as footprints.",
        "maskRcnn_truth",
        "SourceCatalog",
        PATCH,
    )
    injected = deferred_input(
        "With injected, in place of truth: what source_injection has put into the coadds.",
        "injected_{coaddName}_coadd_predetection_catalog",
        "ArrowAstropy",
        BAND,
    )
    bandCatalogs = deferred_input(
        "Catalogues of the bands of the same records, with HeavyFootprints and fluxes of the models.",
        "{coaddName}Coadd_maskRcnnDeblended",
        "SourceCatalog",
        BAND,
        optional=True,
    )
    exposures = deferred_input(
        "Coadds in which the sources were found.", "{coaddName}Coadd_calexp", "ExposureF", BAND, optional=True
    )
    taskMetadata = deferred_input(
        "Metadata of the task that made the catalogues, for how long it took.",
        "{deblendLabel}_metadata",
        "TaskMetadata",
        PATCH,
        optional=True,
    )
    metrics = named_output(
        "metrics", "All figures with their errors, and what they were computed from.", "MaskRcnnMetrics"
    )
    matches = named_output(
        "matches", "Match table: one row for each true source and each detection without one."
    )
    precisionRecall = named_output("precisionRecall", "Precision-recall curves by definition, class and IoU.")
    outcomes = named_output(
        "outcomes", "Hits and false detections by class and IoU, from which runs are compared."
    )
    gallery = named_output(
        "gallery", "Pictures and outlines of the best and the worst blends.", "MaskRcnnGallery"
    )
    plotPrecisionRecall = named_output(
        "plot_precisionRecall", "Precision against recall by class and IoU.", "Plot"
    )
    plotCompleteness = named_output("plot_completeness", "Completeness and purity.", "Plot")
    plotConfusion = named_output("plot_confusion", "Confusion of stars and galaxies, by magnitude.", "Plot")
    plotRoc = named_output("plot_roc", "Stars kept against galaxies let through.", "Plot")
    plotFluxResidual = named_output("plot_fluxResidual", "Flux residuals by blendedness.", "Plot")
    plotCalibration = named_output(
        "plot_calibration", "Scores against the share of detections that are true.", "Plot"
    )
    plotBlends = named_output("plot_blends", "How blends ended.", "Plot")
    plotGallery = named_output("plot_gallery", "The best and the worst blends.", "Plot")

    def __init__(self, *, config: MaskRcnnEvaluateConfig) -> None:
        super().__init__(config=config)
        delattr(self, "truth" if config.injected else "injected")
        # Of other deblenders there are no such catalogues.
        own = config.connections.catalogName.endswith(("maskRcnnCatalog", "object_maskrcnn"))
        if not (config.do_exposures and own):
            del self.bandCatalogs
        if not config.do_exposures:
            del self.exposures
        if not config.do_throughput:
            del self.taskMetadata
        if not config.do_gallery:
            del self.gallery
            del self.plotGallery
        if not config.do_plots:
            for name in sorted(self.outputs):
                if name.startswith("plot"):
                    delattr(self, name)


_SettingsConfig: Any = make_config(EvaluationSettings, "EvaluationSettingsConfig")


class MaskRcnnEvaluateConfig(
    pipeBase.PipelineTaskConfig, _SettingsConfig, pipelineConnections=MaskRcnnEvaluateConnections
):
    """Configuration of `MaskRcnnEvaluateTask`, with all fields of `EvaluationSettings`."""

    missing = pexConfig.ChoiceField[str](
        doc="What to do about a patch that has a truth but no catalogue, or the reverse.",
        default="fail",
        allowed={
            "fail": "stop",
            "skip": "leave the patch out",
            "empty": "count a missing catalogue as one without sources; without truth, leave the patch out",
        },
    )
    skip_without_footprint = pexConfig.Field[bool](
        doc="Leave out sources of the catalogue that have no pixel in their footprint, in place of failing?",
        default=False,
    )
    do_exposures = pexConfig.Field[bool](
        doc="Read the exposures? They are needed for pictures, bad pixels, the width of the PSF, and the "
        "calibration of instrumental fluxes.",
        default=True,
    )
    do_throughput = pexConfig.Field[bool](
        doc="Read how long the catalogues took from the metadata of the task that made them?", default=True
    )
    do_plots = pexConfig.Field[bool](doc="Draw plots?", default=True)
    do_gallery = pexConfig.Field[bool](
        doc="Make pictures of the best, the worst and the busiest blends, and of failures?", default=True
    )
    gallery_bands = pexConfig.ListField[str](
        doc="Bands of the pictures: red, green and blue.", default=["z", "r", "g"], length=3
    )

    def validate(self) -> None:
        """Check that the settings fit each other."""
        super().validate()
        _SettingsConfig.validate(self)
        for name in ("do_gallery", "injected"):
            if getattr(self, name) and not self.do_exposures:
                message = f"{name} = True needs the exposures, but do_exposures = False; switch either."
                raise pexConfig.FieldValidationError(self._fields[name], self, message)


class MaskRcnnEvaluateTask(pipeBase.PipelineTask):
    """Evaluate a catalogue by the truth of the patches that it was made of.

    Any catalogue with footprints will do, whatever made it.
    """

    ConfigClass: ClassVar[type[MaskRcnnEvaluateConfig]] = MaskRcnnEvaluateConfig
    _DefaultName: ClassVar[str] = "maskRcnnEvaluate"

    config: MaskRcnnEvaluateConfig

    @say_where
    def runQuantum(
        self,
        butlerQC: pipeBase.QuantumContext,
        inputRefs: pipeBase.InputQuantizedConnection,
        outputRefs: pipeBase.OutputQuantizedConnection,
    ) -> None:
        """Load one patch after the other, and store the figures."""

        def by_patch(name: str) -> dict[tuple[int, int], list[Any]]:
            grouped: dict[tuple[int, int], list[Any]] = {}
            for ref in getattr(inputRefs, name, ()):
                data_id = ref.datasetRef.dataId
                grouped.setdefault((int(data_id["tract"]), int(data_id["patch"])), []).append(ref)
            return grouped

        names = ("catalogs", "truth", "injected", "bandCatalogs", "exposures", "taskMetadata")
        refs = {name: by_patch(name) for name in names}
        truths = "injected" if self.config.injected else "truth"
        keys = sorted({*refs["catalogs"], *refs[truths]})
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
                exposures, by_band = dict[str, Any](), dict[str, Any]()
                if key in refs[truths] and (catalog is not None or self.config.missing == "empty"):
                    exposures = banded("exposures", key, self._wanted_bands())
                    if self.config.injected:
                        truth = injected_truth(banded("injected", key, set(exposures)), exposures)
                if truth is not None and catalog is not None:
                    by_band = banded("bandCatalogs", key, set(exposures))
                label = self.config.connections.deblendLabel
                seconds, megapixels, model = task_timing(one("taskMetadata", key), label)
                yield EvaluationPatch(*key, truth, catalog, by_band, exposures, seconds, megapixels, model)

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
                `~lsst.meas.maskrcnn.catalogs.evaluation.EvaluationPatch`]
            The patches, of which one is in memory at a time.
        runs : `~collections.abc.Sequence` [`str`]
            Collections that the catalogues came from.
        skymap : `str`
            Name of the sky map.
        n_patches : `int`, optional
            Number of patches.

        Returns
        -------
        results : `lsst.pipe.base.Struct`
            Results with the attributes:

            ``metrics``
                All figures, an `EvaluationMetrics`.
            ``matches``, ``precisionRecall``, ``outcomes``
                Tables (`astropy.table.Table`).
            ``gallery``, ``plotPrecisionRecall``, ``plotCompleteness``, ...
                Pictures and plots, those that are asked for.

        Raises
        ------
        EvaluationInputError
            Raised if no patch can be evaluated, or the inputs of one are
            missing or do not fit.
        """
        settings = self.config.settings()
        logger = PeriodicLogger(self.log)
        of_patches = "" if n_patches is None else f" of {n_patches}"
        gallery = self._make_gallery()
        results: list[PatchResult] = []
        models, instrumental = set[str](), set[str]()
        for patch in self._usable(patches):
            try:
                comparison = compare_patch(patch, settings, image=len(results))
            except MismatchedPatchError as error:
                raise EvaluationInputError(str(error), patch.name) from error
            result = comparison.result
            results.append(result)
            models |= {patch.model} - {""}
            instrumental.update(instrumental_bands(patch.exposures))
            if gallery is not None and set(gallery.bands) <= set(patch.exposures):
                self._add_pictures(gallery, patch, comparison)
            self._check_patch(patch, comparison, results[0])
            logger.log("Compared %d%s patches.", len(results), of_patches)
        if not results:
            raise EvaluationInputError(
                "There is no patch to evaluate: none has both a truth and a catalogue. Check the collections."
            )
        about = {"runs": list(runs), "models": sorted(models), "instrumental": sorted(instrumental)}
        outputs = self._summarize(results, settings, skymap=skymap, **about)
        if gallery is not None:
            scales = np.array([result.pixel_scale for result in results])
            known = scales[np.isfinite(scales)]
            outputs.gallery = EvaluationGallery(
                bands=gallery.bands,
                instrumental=outputs.metrics.instrumental,
                pixel_scale=float(np.median(known)) if len(known) else float("nan"),
                entries=gallery.entries(),
            )
        if self.config.do_plots:
            self._draw(outputs)
        self._report(outputs.metrics)
        return outputs

    def _make_gallery(self) -> BlendGallery | None:
        if not self.config.do_gallery:
            return None
        # Drawing needs matplotlib, which evaluations without pictures do not import.
        from ..report.gallery import BlendGallery

        return BlendGallery(_GALLERY_SIZE, self.config.gallery_bands)

    @staticmethod
    def _add_pictures(gallery: BlendGallery, patch: EvaluationPatch, comparison: PatchComparison) -> None:
        """Offer the blends and the failures of a patch to the gallery."""
        place, bands = (patch.tract, patch.patch), gallery.bands
        cut = functools.partial(cut_group, patch, comparison, bands=bands)
        gallery.add(place, comparison.result.groups, cut)
        failures = find_failures(comparison.result.table)

        def cut_failure(row: int) -> BlendCutout:
            return cut_source(patch, comparison, row, bands, failures[row][1])

        gallery.add_failures(place, failures, cut_failure)

    def _summarize(
        self, results: Sequence[PatchResult], settings: EvaluationSettings, **provenance: Any
    ) -> pipeBase.Struct:
        """Compute figures and tables of all patches."""
        logger = PeriodicLogger(self.log)
        names = tuple(result.pairs.name for result in results)
        has_class = all(result.has_class for result in results)
        classes = ("all", "star", "galaxy") if has_class else ("all",)
        table = np.concatenate([result.table for result in results])
        groups = np.concatenate([result.groups for result in results])
        summaries = [result.summary for result in results]
        sources = MatchedSources(
            table, names, classes, settings.score_threshold, settings.band, results[0].bands
        )
        areas: Sequence[AreaRange] = PSF_AREA_RANGES
        if not np.isfinite([result.psf_fwhm for result in results]).all():
            areas = ()
            self.log.info("No ranges of areas: the width of the PSF is not known without exposures.")
        precision = summarize_precision(
            [result.pairs for result in results], classes, settings.iou_thresholds, areas
        )
        seconds, megapixels = [one.seconds for one in summaries], [one.megapixels for one in summaries]
        values = []
        for group in itertools.chain(
            precision.groups,
            source_figures(sources),
            blend_figures(groups, names),
            throughput_figures(seconds, megapixels, names),
        ):
            logger.log("Resampling: %s.", group.step)
            values += group.with_errors(settings.n_samples, settings.seed)
        tables = binned_tables(sources)
        if settings.injected:
            # Which of the detections without truth are false is not known.
            values = [one for one in values if not one.name.startswith(_OF_DETECTIONS)]
            tables = {name: one for name, one in tables.items() if not name.startswith(_OF_DETECTIONS)}
        versions = software_versions()
        metrics = EvaluationMetrics(
            package_version=versions["lsst-meas-maskrcnn"],
            software=versions,
            name=self.config.connections.outputName,
            catalog=self.config.connections.catalogName,
            config=self.config.toDict(),
            patches=summaries,
            n_truth={name: one.n_truth.tolist() for name, one in precision.outcomes.items()},
            iou_thresholds=list(settings.iou_thresholds),
            level=LEVEL,
            n_samples=settings.n_samples,
            values=values,
            tables=tables,
            **provenance,
        )
        row_group = np.concatenate([result.row_group for result in results])
        return pipeBase.Struct(
            metrics=metrics,
            matches=match_output(table, row_group, groups, metrics),
            precisionRecall=Table(precision_recall_table(precision.results)),
            outcomes=Table(outcomes_table(precision.outcomes.values())),
        )

    def _draw(self, outputs: pipeBase.Struct) -> None:
        """Add the plots."""
        from ..report.evaluation_figures import EvaluationFigures
        from ..report.model_gallery import plot_gallery

        matches, curves, outcomes = (
            np.asarray(table.as_array())
            for table in (outputs.matches, outputs.precisionRecall, outputs.outcomes)
        )
        run = EvaluatedRun(outputs.metrics.name, outputs.metrics, matches, outcomes)
        for name, figure in EvaluationFigures(run, curves).task_plots().items():
            setattr(outputs, f"plot{name[0].upper()}{name[1:]}", figure)
        if self.config.do_gallery:
            outputs.plotGallery = plot_gallery(outputs.gallery)

    def _report(self, metrics: EvaluationMetrics) -> None:
        """Put the most important figures into the metadata and the log."""
        n_truth = sum(patch.n_truth for patch in metrics.patches)
        n_detections = sum(patch.n_detections for patch in metrics.patches)
        self.metadata["n_patches"] = len(metrics.patches)
        self.metadata["n_truth"], self.metadata["n_detections"] = n_truth, n_detections
        words, shares = [], []
        for one in itertools.chain(*(metrics.select(name=name) for name in ("completeness", "purity"))):
            self.metadata[f"{one.name}_{one.object_class}"] = one.value
            if one.object_class == "all":
                shares.append(f"{one.name} {one.value:.3f}")
        for name in metrics.n_truth:
            for one in metrics.select(name="ap", object_class=name, area="all"):
                if one.iou is None or one.iou == metrics.iou_thresholds[0]:
                    at = "mean" if one.iou is None else f"{100 * one.iou:.0f}"
                    self.metadata[f"ap_{one.definition}_{at}_{name}"] = one.value
                    if one.definition == "perImage" and one.iou is not None:
                        words.append(f"{name} {one.value:.3f} +- {one.error:.3f}")
        self.log.info(
            "%d patches, %d truths, %d detections: %s, AP (perImage, IoU %.2f): %s.",
            len(metrics.patches),
            n_truth,
            n_detections,
            ", ".join(shares),
            metrics.iou_thresholds[0],
            ", ".join(words),
        )

    def _usable(self, patches: Iterable[EvaluationPatch]) -> Iterator[EvaluationPatch]:
        """Take the patches that can be compared."""
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

    def _check_patch(self, patch: EvaluationPatch, comparison: PatchComparison, first: PatchResult) -> None:
        """Compare the bands with those of the first patch, and warn of sources that were left out."""
        bands = comparison.result.bands
        if bands != first.bands:
            raise EvaluationInputError(
                f"{patch.name}: the truth has fluxes in {list(bands)}, that of the patches before in "
                f"{list(first.bands)}; name those that all have with config.bands.",
                patch.name,
            )
        found = comparison.detections
        if found.n_without_footprint and not self.config.skip_without_footprint:
            raise EvaluationInputError(
                f"{patch.name}: {found.n_without_footprint} of {found.n_without_footprint + len(found)} "
                "sources of the catalogue have no pixel in their footprint, and would count as missed. The "
                "children of scarlet's catalogue get theirs from its models; else set "
                "config.skip_without_footprint.",
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
        return wanted | set(self.config.gallery_bands) if self.config.do_gallery else wanted
