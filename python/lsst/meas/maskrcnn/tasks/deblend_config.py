# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Errors, connections and configuration of the deblending task."""

from __future__ import annotations

__all__ = [
    "IncompatibleExposuresError",
    "InferenceConfig",
    "MaskRcnnDeblendConfig",
    "MaskRcnnDeblendConnections",
    "MissingBandError",
    "RuntimeConfig",
    "ScaleConfig",
    "ShareConfig",
    "UncalibratedExposureError",
]

from collections.abc import Iterable
from typing import Any, cast

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
import lsst.pipe.base.connectionTypes as cT
from lsst.meas.base import (
    CatalogCalculationTask,
    ForcedMeasurementTask,
    SingleFrameMeasurementTask,
    SkyMapIdGeneratorConfig,
)

from ..deblend.scales import ScaleSettings
from ..deblend.shares import ShareSettings
from ..network.inference import InferenceSettings, Precision, SoftDecay, Suppression
from ..network.model_file import ModelMetadata
from ..network.runtime import RuntimeSettings
from .mirrored_config import settings_config
from .normalize import normalizeRegistry


class MissingBandError(pipeBase.AlgorithmError):
    """Some bands that the model needs are not among the inputs.

    Parameters
    ----------
    missing : `~collections.abc.Iterable` [`str`]
        Bands that are needed and not there.
    available : `~collections.abc.Iterable` [`str`]
        Bands that are there.
    metadata : `~lsst.meas.maskrcnn.network.model_file.ModelMetadata`
        Header of the model.
    """

    def __init__(self, missing: Iterable[str], available: Iterable[str], metadata: ModelMetadata) -> None:
        self.missing = sorted(missing)
        self.available = sorted(available)
        self.model = metadata.name
        super().__init__(
            f"No exposure in band {', '.join(map(repr, self.missing))}: model {metadata.name!r} needs "
            f"{list(metadata.bands)}, found {self.available}. Add the missing coadds, map the model's bands "
            "to those of the data with config.bands, or choose another model."
        )

    @property
    def metadata(self) -> dict[str, str]:
        """What failed, for the task's metadata (`dict`)."""
        return {
            "missing": " ".join(self.missing),
            "available": " ".join(self.available),
            "model": self.model,
        }


class IncompatibleExposuresError(pipeBase.AlgorithmError):
    """Exposures of two bands do not cover the same pixels of the sky.

    Parameters
    ----------
    quantity : `str`
        What disagrees.
    bands : `tuple` [`str`, `str`]
        The two bands.
    values : `tuple`
        The two values.
    advice : `str`
        What to do.
    """

    def __init__(self, quantity: str, bands: tuple[str, str], values: tuple[Any, Any], advice: str) -> None:
        self.quantity = quantity
        self.bands = bands
        self.values = (str(values[0]), str(values[1]))
        super().__init__(
            f"The {quantity} of the exposures disagrees: {self.values[0]} in band {bands[0]!r}, "
            f"{self.values[1]} in band {bands[1]!r}. {advice}"
        )

    @property
    def metadata(self) -> dict[str, str]:
        """What failed, for the task's metadata (`dict`)."""
        return {
            "quantity": self.quantity,
            "bands": " ".join(self.bands),
            "first": self.values[0],
            "second": self.values[1],
        }


class UncalibratedExposureError(pipeBase.AlgorithmError):
    """An exposure lacks a calibration that the task needs.

    Parameters
    ----------
    band : `str`
        Band of the exposure.
    component : `str`
        What it lacks.
    """

    def __init__(self, band: str, component: str) -> None:
        self.band = band
        self.component = component
        super().__init__(
            f"The exposure in band {band!r} has no {component}; calibrate it before this task, which works "
            "in nJy on a common grid of the sky."
        )

    @property
    def metadata(self) -> dict[str, str]:
        """What failed, for the task's metadata (`dict`)."""
        return {"band": self.band, "component": self.component}


class MaskRcnnDeblendConnections(
    pipeBase.PipelineTaskConnections,
    dimensions=("skymap", "tract", "patch"),
    defaultTemplates={"coaddName": "deep"},
):
    """Inputs and outputs of `MaskRcnnDeblendTask`.

    Parameters
    ----------
    config : `MaskRcnnDeblendConfig`
        Configuration of the task; with ``model_uri`` there is no input
        ``model``.
    """

    exposures = cT.Input(
        doc="Coadds of one patch in the bands of the model and config.extraBands; other bands are not read.",
        name="{coaddName}Coadd_calexp",
        storageClass="ExposureF",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
    )
    model = cT.PrerequisiteInput(
        doc="Trained network and how to use it; the first one in the input collections.",
        name="maskRcnnModel",
        storageClass="MaskRcnnModel",
        dimensions=(),
    )
    catalog = cT.Output(
        doc="Parents, isolated sources and children, sorted by parent, with Footprints, classes, scores, "
        "flags and measurements in the reference band.",
        name="{coaddName}Coadd_maskRcnnCatalog",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch"),
    )
    bandCatalogs = cT.Output(
        doc="The same records by band, with HeavyFootprints of their shares of the image and forced "
        "measurements.",
        name="{coaddName}Coadd_maskRcnnDeblended",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
    )
    blendStatistics = cT.Output(
        doc="One row for each parent: sources, pixels, time, flux outside all masks, residuals.",
        name="{coaddName}Coadd_maskRcnnBlends",
        storageClass="ArrowAstropy",
        dimensions=("skymap", "tract", "patch"),
    )
    outputSchema = cT.InitOutput(
        doc="Schema of the catalogue.",
        name="{coaddName}Coadd_maskRcnnCatalog_schema",
        storageClass="SourceCatalog",
    )
    bandSchema = cT.InitOutput(
        doc="Schema of the catalogues of the bands.",
        name="{coaddName}Coadd_maskRcnnDeblended_schema",
        storageClass="SourceCatalog",
    )

    def __init__(self, *, config: MaskRcnnDeblendConfig) -> None:
        super().__init__(config=config)
        if config.model_uri is not None:
            del self.model


class InferenceConfig(pexConfig.Config):
    """How the network is run and which of its detections are kept."""

    tileSize = pexConfig.RangeField(
        dtype=int,
        doc="Side of the square tiles in which the network sees the image (pixels).",
        default=512,
        min=64,
    )
    tileOverlap = pexConfig.RangeField(
        dtype=int,
        doc="Pixels that neighbouring tiles share; larger sources may be cut at seams.",
        default=128,
        min=0,
    )
    batchSize = pexConfig.RangeField(
        dtype=int,
        doc="Tiles in one forward pass; memory grows with it.",
        default=2,
        min=1,
    )
    scoreThreshold = pexConfig.RangeField(
        dtype=float,
        doc="Lowest probability of being a source that is kept; None takes the model's default.",
        default=None,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
        optional=True,
    )
    nmsThreshold = pexConfig.RangeField(
        dtype=float,
        doc="Overlap (IoU) of two boxes above which they may be of one source; None takes the model's "
        "default.",
        default=None,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
        optional=True,
    )
    suppression = pexConfig.ChoiceField[str](
        doc="What happens to the one of lower score of two detections that may be of one source.",
        default=InferenceSettings.suppression,
        allowed={
            "hard": "it goes",
            "mask": "it goes, unless the two are apart by place and colour, and their masks are not the same",
            "soft": "its score is lowered",
        },
    )
    separation = pexConfig.RangeField(
        dtype=float,
        doc="For suppression 'mask': distance of two boxes' centres from which they are two sources (FWHM of "
        "the PSF).",
        default=InferenceSettings.separation,
        min=0.0,
    )
    colorSeparation = pexConfig.RangeField(
        dtype=float,
        doc="The same for two sources of different colours.",
        default=InferenceSettings.color_separation,
        min=0.0,
    )
    colorDifference = pexConfig.RangeField(
        dtype=float,
        doc="For suppression 'mask': significance from which colours differ (standard deviations).",
        default=InferenceSettings.color_difference,
        min=0.0,
    )
    maskOverlap = pexConfig.RangeField(
        dtype=float,
        doc="For suppression 'mask': overlap (IoU) of two masks from which they are the same.",
        default=InferenceSettings.mask_overlap,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
    )
    softDecay = pexConfig.ChoiceField[str](
        doc="For suppression 'soft': by what scores are multiplied.",
        default=InferenceSettings.soft_decay,
        allowed={
            "gaussian": "exp(-IoU^2 / softSigma)",
            "linear": "1 - IoU, where that is over nmsThreshold",
        },
    )
    softSigma = pexConfig.RangeField(
        dtype=float,
        doc="For suppression 'soft' with decay 'gaussian': see there.",
        default=InferenceSettings.soft_sigma,
        min=0.0,
        inclusiveMin=False,
    )
    maskThreshold = pexConfig.RangeField(
        dtype=float,
        doc="Lowest probability that a pixel belongs to a source at which it enters the footprint.",
        default=0.5,
        min=0.0,
        max=1.0,
        inclusiveMin=False,
        inclusiveMax=False,
    )
    maxDetectionsPerTile = pexConfig.RangeField(
        dtype=int,
        doc="Most detections in one tile; one that holds more is looked at again in quarters. None takes the "
        "model's default.",
        default=None,
        min=1,
        optional=True,
    )
    splitCrowded = pexConfig.Field[bool](
        doc="Do so? Otherwise only the best are kept.",
        default=InferenceSettings.split_crowded,
    )
    precision = pexConfig.ChoiceField[str](
        doc="Arithmetic of the forward pass.",
        default="auto",
        allowed={
            "auto": "bfloat16 where the device has it in hardware, else float32",
            "float32": "single precision",
            "bfloat16": "mixed precision",
        },
    )
    device = pexConfig.ChoiceField[str](
        doc="Where the network runs.",
        default="auto",
        allowed={
            "auto": "the GPU where there is one, else the CPU",
            "cpu": "the CPU",
            "cuda": "the GPU; an error where there is none",
        },
    )

    def validate(self) -> None:
        """Check that tiles are larger than their overlap."""
        super().validate()
        if self.tileOverlap >= self.tileSize:
            raise pexConfig.FieldValidationError(
                self.__class__.tileOverlap,
                self,
                f"tileOverlap ({self.tileOverlap}) must be less than tileSize ({self.tileSize}).",
            )

    def settings(self, metadata: ModelMetadata) -> InferenceSettings:
        """Put the settings together for the engine.

        Parameters
        ----------
        metadata : `~lsst.meas.maskrcnn.network.model_file.ModelMetadata`
            Header of the model, for what this configuration leaves to it.

        Returns
        -------
        settings : `~lsst.meas.maskrcnn.network.inference.InferenceSettings`
            The same for torch-only code.
        """
        spec = metadata.architecture

        def either(value: Any, default: Any) -> Any:
            return default if value is None else value

        return InferenceSettings(
            tile_size=self.tileSize,
            tile_overlap=self.tileOverlap,
            batch_size=self.batchSize,
            score_threshold=either(self.scoreThreshold, spec.detection_score),
            nms_threshold=either(self.nmsThreshold, spec.detection_nms),
            suppression=cast(Suppression, self.suppression),
            separation=self.separation,
            color_separation=self.colorSeparation,
            color_difference=self.colorDifference,
            mask_overlap=self.maskOverlap,
            soft_decay=cast(SoftDecay, self.softDecay),
            soft_sigma=self.softSigma,
            mask_threshold=self.maskThreshold,
            max_detections_per_tile=either(self.maxDetectionsPerTile, spec.detections_per_image),
            split_crowded=self.splitCrowded,
            precision=cast(Precision, self.precision),
        )


ScaleConfig: Any = settings_config(
    ScaleSettings,
    "ScaleConfig",
    """At which pixel sizes the network looks, and how what it finds is merged.

    The fields are those of
    `~lsst.meas.maskrcnn.deblend.scales.ScaleSettings`.
    """,
    __name__,
)


RuntimeConfig: Any = settings_config(
    RuntimeSettings,
    "RuntimeConfig",
    """How the network computes: what makes it quicker.

    The fields are those of
    `~lsst.meas.maskrcnn.network.runtime.RuntimeSettings`.
    """,
    __name__,
    # pipetask and runQuantum decide on these.
    leave_out=("threads",),
)


ShareConfig: Any = settings_config(
    ShareSettings,
    "ShareConfig",
    """How the flux of overlapping sources is shared among them.

    The fields are those of
    `~lsst.meas.maskrcnn.deblend.shares.ShareSettings`.
    """,
    __name__,
)


class MaskRcnnDeblendConfig(pipeBase.PipelineTaskConfig, pipelineConnections=MaskRcnnDeblendConnections):
    """Configuration of `MaskRcnnDeblendTask`."""

    model_uri = pexConfig.Field[str](
        doc="Path or URI of a model file (resource:// included) to use in place of the dataset "
        "maskRcnnModel; None takes that dataset from the input collections.",
        default=None,
        optional=True,
    )
    bands = pexConfig.DictField[str, str](
        doc="Band of the data to use for a band of the model, where the two have different names.",
        default={},
    )
    extraBands = pexConfig.ListField[str](
        doc="Bands of the data beside those of the model in which flux is shared and measured, too, where "
        "there is an exposure. The network does not see them.",
        default=[],
    )
    skipIncomplete = pexConfig.Field[bool](
        doc="Skip patches in which a band of the model is missing, in place of failing?",
        default=False,
    )
    useModelNormalization = pexConfig.Field[bool](
        doc="Normalise the images as the model's training images were? Otherwise as 'normalize' says.",
        default=True,
    )
    normalize = normalizeRegistry.makeField(
        doc="Normalisation of the images; only used if useModelNormalization is False.",
        default="lupton",
    )
    inference = pexConfig.ConfigField[InferenceConfig](
        doc="How the network is run and which of its detections are kept.",
    )
    scales = pexConfig.ConfigField[ScaleConfig](
        doc="At which pixel sizes the network looks, and how what it finds is merged.",
    )
    runtime = pexConfig.ConfigField[RuntimeConfig](
        doc="How the network computes: what makes it quicker.",
    )
    minArea = pexConfig.RangeField(
        dtype=int,
        doc="Fewest pixels of a footprint that is kept.",
        default=1,
        min=1,
    )
    parentGrow = pexConfig.RangeField(
        dtype=float,
        doc="Radius by which the footprints of sources are grown to make those of parents and isolated "
        "sources (pixels). Sources whose grown footprints touch share their flux; flux further out belongs "
        "to nobody. About 1.5 FWHM of the PSF is best for fluxes.",
        default=6.0,
        min=0.0,
    )
    shares = pexConfig.ConfigField[ShareConfig](
        doc="How the flux of overlapping sources is shared among them.",
    )
    maxParentSources = pexConfig.RangeField(
        dtype=int,
        doc="Most sources of a parent. One that has more is grown by less, so that it falls apart; where "
        "that does not help, flux is shared by masks alone (deblend_fallback).",
        default=2000,
        min=1,
    )
    maxParentArea = pexConfig.RangeField(
        dtype=int,
        doc="Most pixels of the bounding box of a parent; as for maxParentSources.",
        default=4_000_000,
        min=1,
    )
    badMaskPlanes = pexConfig.ListField[str](
        doc="Mask planes that count as bad in maskrcnn_badFraction and maskrcnn_flag_bad. Planes that an "
        "exposure does not define are passed over.",
        default=["BAD", "CR", "NO_DATA", "SAT"],
    )
    saturatedMaskPlanes = pexConfig.ListField[str](
        doc="Mask planes that set maskrcnn_flag_saturated.",
        default=["SAT"],
    )
    maxWcsOffset = pexConfig.RangeField(
        dtype=float,
        doc="Largest distance of one sky position on the grids of two bands (pixels).",
        default=0.1,
        min=0.0,
    )
    maxScaleRatio = pexConfig.RangeField(
        dtype=float,
        doc="Factor between the pixel scales of the data and of the model's training images, either way, "
        "from which a warning is logged.",
        default=1.5,
        min=1.0,
    )
    referenceBand = pexConfig.Field[str](
        doc="Band of the data in which sources are measured for the catalogue, and which gives its flux "
        "columns; None takes the one that the model calls r, or else the middle one of its bands.",
        default=None,
        optional=True,
    )
    doMeasure = pexConfig.Field[bool](
        doc="Measure the sources in the reference band, and by force in all bands? Without, the catalogues "
        "have no measurement columns, and the pipeline's own tasks can add theirs.",
        default=True,
    )
    measurement: Any = pexConfig.ConfigurableField(
        target=SingleFrameMeasurementTask,
        doc="Measurement in the reference band, each source with the others' flux replaced by noise.",
    )
    catalogCalculation: Any = pexConfig.ConfigurableField(
        target=CatalogCalculationTask,
        doc="What follows from the measured columns: extendedness.",
    )
    forcedMeasurement: Any = pexConfig.ConfigurableField(
        target=ForcedMeasurementTask,
        doc="Measurement in every band at the positions and shapes of the reference band.",
    )
    doPrimaryFlags = pexConfig.Field[bool](
        doc="Add detect_isPrimary and its kin, by children alone? Turn off where SetPrimaryFlagsTask "
        "follows, which adds them itself and looks at the sky map, too.",
        default=True,
    )
    idGenerator = SkyMapIdGeneratorConfig.make_field()

    def setDefaults(self) -> None:
        """Choose what is measured."""
        super().setDefaults()
        self.measurement.plugins.names = [
            "base_PixelFlags",
            "base_SdssCentroid",
            "base_SdssShape",
            "base_GaussianFlux",
            "base_PsfFlux",
            "base_CircularApertureFlux",
            "base_SkyCoord",
            "base_Blendedness",
            "base_LocalBackground",
        ]
        self.catalogCalculation.plugins.names = ["base_ClassificationExtendedness"]
        self.forcedMeasurement.plugins.names = [
            "base_PixelFlags",
            "base_TransformedCentroid",
            "base_TransformedShape",
            "base_GaussianFlux",
            "base_PsfFlux",
            "base_CircularApertureFlux",
            "base_LocalBackground",
        ]
        # Slots of the forced catalogues are empty upstream but for positions and shapes; colours want fluxes.
        self.forcedMeasurement.slots.psfFlux = "base_PsfFlux"
        self.forcedMeasurement.slots.gaussianFlux = "base_GaussianFlux"
        self.forcedMeasurement.slots.modelFlux = "base_GaussianFlux"
        self.forcedMeasurement.slots.apFlux = "base_CircularApertureFlux_12_0"

    def validate(self) -> None:
        """Check that no band is used twice, and that all of a parent has claimants."""
        super().validate()
        targets = list(self.bands.values())
        if len(set(targets)) != len(targets):
            raise pexConfig.FieldValidationError(
                self.__class__.bands,
                self,
                f"Each band of the model needs a band of its own, but bands = {dict(self.bands)}.",
            )
        if self.parentGrow > self.shares.reach:
            raise pexConfig.FieldValidationError(
                self.__class__.parentGrow,
                self,
                f"Parents would be grown by {self.parentGrow} pixels, but sources have claims to "
                f"{self.shares.reach} pixels (shares.reach): set the latter to at least the former.",
            )
