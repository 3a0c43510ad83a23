# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection, classification and outlining of the sources of a patch."""

from __future__ import annotations

__all__ = [
    "IncompatibleExposuresError",
    "InferenceConfig",
    "MaskRcnnDeblendConfig",
    "MaskRcnnDeblendConnections",
    "MaskRcnnDeblendTask",
    "MissingBandError",
    "UncalibratedExposureError",
]

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch

import lsst.geom as geom
import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
import lsst.pipe.base.connectionTypes as cT
from lsst.afw.geom import SkyWcs
from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.meas.base import IdGenerator, SkyMapIdGeneratorConfig
from lsst.pex.exceptions import Exception as PexError
from lsst.resources import ResourcePath
from lsst.utils.logging import PeriodicLogger

from .catalogs.footprints import clean_masks, inclusive_boxes, masks_to_footprints, measure_masks
from .catalogs.mask_planes import defined_plane_bits
from .catalogs.schema import CatalogColumns, fill_catalog, make_schema
from .imaging.units import FWHM_PER_SIGMA
from .network.inference import Detections, InferenceSettings, Precision, detect, select_device
from .network.model_file import MaskRcnnModel, ModelMetadata, read_model
from .normalize_task import NormalizeBaseTask, config_from_settings, normalizeRegistry


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
        doc="Coadds of one patch in the bands of the model; other bands are not read.",
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
        doc="Sources with footprints, classes, scores and flags.",
        name="{coaddName}Coadd_maskRcnnCatalog",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch"),
    )
    outputSchema = cT.InitOutput(
        doc="Schema of the catalogue.",
        name="{coaddName}Coadd_maskRcnnCatalog_schema",
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
        doc="Overlap (IoU) of two boxes above which the one of lower score goes; None takes the model's "
        "default.",
        default=None,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
        optional=True,
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
        doc="Most detections that are kept in one tile, by score; None takes the model's default.",
        default=None,
        min=1,
        optional=True,
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
            mask_threshold=self.maskThreshold,
            max_detections_per_tile=either(self.maxDetectionsPerTile, spec.detections_per_image),
            precision=cast(Precision, self.precision),
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
    minArea = pexConfig.RangeField(
        dtype=int,
        doc="Fewest pixels of a footprint that is kept.",
        default=1,
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
    idGenerator = SkyMapIdGeneratorConfig.make_field()

    def validate(self) -> None:
        """Check that no band of the data is used twice."""
        super().validate()
        targets = list(self.bands.values())
        if len(set(targets)) != len(targets):
            raise pexConfig.FieldValidationError(
                self.__class__.bands,
                self,
                f"Each band of the model needs a band of its own, but bands = {dict(self.bands)}.",
            )


class MaskRcnnDeblendTask(pipeBase.PipelineTask):
    """Find, classify and outline the sources of one patch with Mask R-CNN.

    Overlapping sources are found one by one and have overlapping footprints;
    there are no parents.

    Parameters
    ----------
    **kwargs
        Forwarded to `lsst.pipe.base.PipelineTask`.

    Attributes
    ----------
    schema : `lsst.afw.table.Schema`
        Schema of the catalogue.
    outputSchema : `lsst.afw.table.SourceCatalog`
        Empty catalogue with that schema.
    """

    ConfigClass: ClassVar[type[MaskRcnnDeblendConfig]] = MaskRcnnDeblendConfig
    _DefaultName: ClassVar[str] = "maskRcnnDeblend"

    config: MaskRcnnDeblendConfig
    normalize: NormalizeBaseTask

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not self.config.useModelNormalization:
            self.makeSubtask("normalize")
        self.schema = make_schema()
        self.outputSchema = SourceCatalog(self.schema)

    def runQuantum(
        self,
        butlerQC: pipeBase.QuantumContext,
        inputRefs: pipeBase.InputQuantizedConnection,
        outputRefs: pipeBase.OutputQuantizedConnection,
    ) -> None:
        """Load the model and its bands, and store the catalogue.

        Parameters
        ----------
        butlerQC : `lsst.pipe.base.QuantumContext`
            Butler restricted to this quantum.
        inputRefs : `lsst.pipe.base.InputQuantizedConnection`
            Inputs.
        outputRefs : `lsst.pipe.base.OutputQuantizedConnection`
            Outputs.

        Raises
        ------
        MissingBandError
            Raised if a band of the model is missing in this patch.
        lsst.pipe.base.NoWorkFound
            Raised in its place if ``config.skipIncomplete`` is set.
        """
        if self.config.model_uri is not None:
            model = self.read_model(self.config.model_uri)
        else:
            model = butlerQC.get(inputRefs.model)
        refs = {ref.datasetRef.dataId["band"]: ref for ref in inputRefs.exposures}
        try:
            bands = self._choose_bands(refs, model.metadata)
        except MissingBandError as error:
            if self.config.skipIncomplete:
                raise pipeBase.NoWorkFound(str(error)) from error
            raise
        # The order is the model's; that of the refs means nothing.
        exposures = {band: butlerQC.get(refs[band]).get() for band in bands}
        idGenerator = self.config.idGenerator.apply(butlerQC.quantum.dataId)

        # pipetask limits every process to one thread unless told otherwise.
        n_threads = torch.get_num_threads()
        torch.set_num_threads(butlerQC.resources.num_cores)
        try:
            outputs = self.run(exposures=exposures, model=model, idGenerator=idGenerator)
        finally:
            torch.set_num_threads(n_threads)
        butlerQC.put(outputs, outputRefs)

    def run(
        self,
        *,
        exposures: Mapping[str, ExposureF],
        model: MaskRcnnModel,
        idGenerator: IdGenerator | None = None,
    ) -> pipeBase.Struct:
        """Find, classify and outline sources.

        Parameters
        ----------
        exposures : `~collections.abc.Mapping` [`str`, \
                `lsst.afw.image.ExposureF`]
            Calibrated exposures on one pixel grid by the data's name of the
            band, in any order; bands that the model does not use do no harm.
            They are not changed.
        model : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`
            The trained model.
        idGenerator : `lsst.meas.base.IdGenerator`, optional
            Makes the ids of the records; by default they count from 1.

        Returns
        -------
        results : `lsst.pipe.base.Struct`
            Results with the attribute:

            ``catalog``
                The sources by descending score
                (`lsst.afw.table.SourceCatalog`).

        Raises
        ------
        MissingBandError
            Raised if a band of the model is not among the exposures.
        IncompatibleExposuresError
            Raised if boxes or coordinate systems disagree.
        UncalibratedExposureError
            Raised if an exposure has no WCS or no usable PhotoCalib.
        lsst.pipe.base.InvalidQuantumError
            Raised if ``config.bands`` names a band that the model does not
            have, if the model's normalisation is not known, or if the device
            is not there.
        """
        metadata = model.metadata
        bands = self._choose_bands(exposures, metadata)
        selected = {band: exposures[band] for band in bands}
        wcs = self._check_exposures(selected)
        self._check_scale(wcs, selected[bands[0]].getBBox(), metadata)
        if idGenerator is None:
            idGenerator = IdGenerator()
        catalog = idGenerator.make_source_catalog(self.schema)
        self.metadata["model"] = metadata.name
        self.metadata["bands"] = list(bands)

        started = time.perf_counter()
        normalized = self._make_normalization(metadata).run(exposures=selected)
        image, valid = normalized.image, normalized.valid
        self.metadata["seconds_normalize"] = time.perf_counter() - started
        self.metadata["n_valid_pixels"] = int(np.count_nonzero(valid))
        self.metadata["noise_nJy"] = [float(noise) for noise in normalized.noise]

        if not valid.any():
            self.log.info("No valid pixel in %s: its catalogue is empty.", idGenerator)
            detections = None
        else:
            detections = self._detect(model, image, valid, self._psf_widths(selected))
        started = time.perf_counter()
        if detections is not None:
            self._fill(catalog, detections, selected, wcs, image, valid)
        self.metadata["seconds_catalog"] = time.perf_counter() - started
        n_stars = int(np.count_nonzero(catalog["maskrcnn_star"])) if len(catalog) else 0
        self.metadata["n_sources"] = len(catalog)
        self.metadata["n_stars"] = n_stars
        self.log.info(
            "Found %d sources in %s: %d stars, %d galaxies.",
            len(catalog),
            idGenerator,
            n_stars,
            len(catalog) - n_stars,
        )
        return pipeBase.Struct(catalog=catalog)

    def read_model(self, uri: str) -> MaskRcnnModel:
        """Read a model file from a path or URI.

        Parameters
        ----------
        uri : `str`
            Path or URI, for instance
            ``resource://lsst.meas.maskrcnn/models/lite.safetensors``.

        Returns
        -------
        model : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`
            The model.

        Raises
        ------
        FileNotFoundError
            Raised if there is no such file.
        lsst.meas.maskrcnn.network.model_file.ModelFileError
            Raised if it is not a model file that this version can use.
        """
        with ResourcePath(uri, forceDirectory=False).as_local() as local:
            return read_model(local.ospath)

    def _choose_bands(self, available: Mapping[str, Any], metadata: ModelMetadata) -> list[str]:
        """Bands of the data in the order of the model's."""
        unknown = set(self.config.bands) - set(metadata.bands)
        if unknown:
            raise pipeBase.InvalidQuantumError(
                f"config.bands maps {sorted(unknown)}, but the bands of model {metadata.name!r} are "
                f"{list(metadata.bands)}. Its keys are the model's bands, its values the data's."
            )
        bands = [self.config.bands.get(band, band) for band in metadata.bands]
        missing = [band for band in bands if band not in available]
        if missing:
            raise MissingBandError(missing, available, metadata)
        return bands

    def _check_exposures(self, exposures: Mapping[str, ExposureF]) -> SkyWcs:
        """Check that exposures are calibrated and on one grid of the sky,
        and return its WCS.
        """
        all_wcs: dict[str, SkyWcs] = {}
        for band, exposure in exposures.items():
            photo_calib = exposure.getPhotoCalib()
            if photo_calib is None:
                raise UncalibratedExposureError(band, "PhotoCalib")
            mean = photo_calib.getCalibrationMean()
            if not (math.isfinite(mean) and mean > 0):
                raise UncalibratedExposureError(band, f"usable PhotoCalib ({mean} nJy per count)")
            wcs = exposure.getWcs()
            if wcs is None:
                raise UncalibratedExposureError(band, "WCS")
            all_wcs[band] = wcs
        (first, reference), *others = exposures.items()
        bbox = reference.getBBox()
        advice = "Warp all bands to one pixel grid, as coadds of one patch have it."
        for band, exposure in others:
            if exposure.getBBox() != bbox:
                raise IncompatibleExposuresError(
                    "bounding box", (first, band), (bbox, exposure.getBBox()), advice
                )
        x, y = np.array([[p.getX(), p.getY()] for p in geom.Box2D(bbox).getCorners()]).T.copy()
        ra, dec = all_wcs[first].pixelToSkyArray(x, y)
        for band, _ in others:
            other_x, other_y = all_wcs[band].skyToPixelArray(ra, dec)
            distance = np.hypot(other_x - x, other_y - y)
            # A comparison with NaN is False, so this asks for what is right.
            if not np.all(distance <= self.config.maxWcsOffset):
                worst = int(np.argmax(np.where(np.isfinite(distance), distance, np.inf)))
                raise IncompatibleExposuresError(
                    "WCS",
                    (first, band),
                    (
                        f"pixel ({x[worst]:.2f}, {y[worst]:.2f})",
                        f"({other_x[worst]:.2f}, {other_y[worst]:.2f}) for the same position",
                    ),
                    f"At most {self.config.maxWcsOffset} pixel (config.maxWcsOffset) is fine. {advice}",
                )
        return all_wcs[first]

    def _check_scale(self, wcs: SkyWcs, bbox: geom.Box2I, metadata: ModelMetadata) -> None:
        """Warn if sources have other sizes than those the model has seen."""
        scale = wcs.getPixelScale(geom.Box2D(bbox).getCenter()).asArcseconds()
        ratio = scale / metadata.pixel_scale
        if max(ratio, 1 / ratio) > self.config.maxScaleRatio:
            self.log.warning(
                "Pixels are %.3f arcsec, but model %s was trained on %.3f arcsec: expect it to miss sources.",
                scale,
                metadata.name,
                metadata.pixel_scale,
            )

    def _make_normalization(self, metadata: ModelMetadata) -> NormalizeBaseTask:
        """The configured subtask, or one with the model's own settings."""
        if not self.config.useModelNormalization:
            return self.normalize
        name = metadata.normalization.name
        try:
            config = config_from_settings(name, metadata.normalization.settings)
        except ValueError as error:
            raise pipeBase.InvalidQuantumError(
                f"Model {metadata.name!r} was trained with normalisation {name!r} and settings "
                f"{metadata.normalization.settings}, which this version does not know ({error}). Update "
                "meas_maskrcnn, or set useModelNormalization=False and configure 'normalize'."
            ) from error
        task_class = normalizeRegistry[name]
        # Not a subtask: those must live as long as their parent, and another
        # model may bring other settings.
        return task_class(config=config, name="normalize", log=self.log)

    def _psf_widths(self, exposures: Mapping[str, ExposureF]) -> np.ndarray:
        """FWHM of each band's PSF in pixels, NaN where it is not known."""
        widths = np.full(len(exposures), np.nan)
        for index, (band, exposure) in enumerate(exposures.items()):
            psf = exposure.getPsf()
            if psf is None:
                self.log.warning("The exposure in band %r has no PSF; stars are told by their look.", band)
                continue
            try:
                # A coadd's PSF is only defined where there is data: its own average position is.
                shape = psf.computeShape(psf.getAveragePosition())
            except PexError as error:
                self.log.warning("The PSF in band %r cannot be computed (%s); going on without.", band, error)
                continue
            widths[index] = FWHM_PER_SIGMA * shape.getDeterminantRadius()
        self.metadata["psf_fwhm_pixels"] = [float(width) for width in widths]
        return widths

    def _detect(
        self, model: MaskRcnnModel, image: np.ndarray, valid: np.ndarray, psf_fwhm: np.ndarray
    ) -> Detections:
        """Run the network on the normalised image."""
        try:
            device = select_device(self.config.inference.device)
        except ValueError as error:
            raise pipeBase.InvalidQuantumError(
                f"config.inference.device cannot be used on this machine: {error}."
            ) from error
        periodic = PeriodicLogger(self.log)

        def report(done: int, total: int) -> None:
            periodic.log("Network is done with %d of %d tiles.", done, total)

        detections = detect(
            model.build(device),
            image,
            valid,
            self.config.inference.settings(model.metadata),
            progress=report,
            psf_fwhm=psf_fwhm,
        )
        for name, seconds in detections.timings.items():
            self.metadata[f"seconds_{'detect' if name == 'total' else name}"] = float(seconds)
        self.metadata["device"] = str(device)
        self.metadata["n_detections"] = len(detections.scores)
        return detections

    def _fill(
        self,
        catalog: SourceCatalog,
        detections: Detections,
        exposures: Mapping[str, ExposureF],
        wcs: SkyWcs,
        image: np.ndarray,
        valid: np.ndarray,
    ) -> None:
        """Measure the masks and write the records."""
        bbox = next(iter(exposures.values())).getBBox()
        height, width = valid.shape
        masks, origins, kept = clean_masks(
            detections.masks, detections.origins, (height, width), self.config.minArea
        )
        measured = measure_masks(
            masks,
            origins,
            image.mean(axis=0),
            valid=valid,
            bad=self._flagged(exposures, self.config.badMaskPlanes),
            saturated=self._flagged(exposures, self.config.saturatedMaskPlanes),
        )
        min_x, min_y, max_x, max_y = inclusive_boxes(detections.boxes[kept], measured, (height, width))
        x0, y0 = bbox.getMinX(), bbox.getMinY()
        p_star = np.asarray(detections.p_star)[kept]
        columns = CatalogColumns(
            centroid_x=measured.centroid_x + x0,
            centroid_y=measured.centroid_y + y0,
            centroid_flag=measured.centroid_flag,
            bbox_minX=min_x + x0,
            bbox_minY=min_y + y0,
            bbox_maxX=max_x + x0,
            bbox_maxY=max_y + y0,
            score=np.asarray(detections.scores)[kept],
            pStar=p_star,
            area=measured.area,
            badFraction=measured.n_bad / np.maximum(measured.area, 1),
            star=p_star >= 0.5,
            galaxy=p_star < 0.5,
            flag_edge=(min_x == 0) | (min_y == 0) | (max_x == width - 1) | (max_y == height - 1),
            flag_bad=measured.n_bad > 0,
            flag_saturated=measured.n_saturated > 0,
            flag_invalid=measured.n_invalid > 0,
        )
        footprints = masks_to_footprints(masks, origins, measured, bbox)
        fill_catalog(catalog, columns, footprints, wcs)

    def _flagged(self, exposures: Mapping[str, ExposureF], planes: Iterable[str]) -> np.ndarray:
        """Pixels with any of the planes set in any band."""
        flagged: np.ndarray | None = None
        for exposure in exposures.values():
            pixels = (exposure.mask.array & defined_plane_bits(exposure.mask, planes)) != 0
            flagged = pixels if flagged is None else flagged | pixels
        if flagged is None:
            raise ValueError("No exposure was given.")
        return flagged
