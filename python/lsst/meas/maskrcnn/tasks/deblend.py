# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection, classification, deblending and measurement of the sources of a patch."""

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

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

import lsst.geom as geom
import lsst.pipe.base as pipeBase
from lsst.afw.detection import Footprint
from lsst.afw.geom import SkyWcs
from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.meas.base import (
    CatalogCalculationTask,
    ForcedMeasurementTask,
    IdGenerator,
    SingleFrameMeasurementTask,
)
from lsst.pex.exceptions import Exception as PexError
from lsst.resources import ResourcePath
from lsst.utils.logging import PeriodicLogger

from ..catalogs.blends import Parent, RecordOrder, make_parents, order_records, split_parents
from ..catalogs.deblend_columns import (
    BandColumns,
    add_primary_fields,
    blend_table,
    copy_relations,
    fill_band_columns,
    fill_parent_columns,
    fill_primary_flags,
    fill_relations,
)
from ..catalogs.footprints import (
    MaskMeasurements,
    clean_masks,
    inclusive_boxes,
    masks_to_footprints,
    measure_masks,
    move_peaks,
)
from ..catalogs.heavy import SharedFlux, ShareLimits, SourceMasks, parent_footprint, share_parents
from ..catalogs.mask_planes import defined_plane_bits
from ..catalogs.schema import (
    UNMEASURED,
    CatalogColumns,
    extend_band_schema,
    fill_catalog,
    make_band_schema,
    make_schema,
)
from ..deblend.peaks import find_peaks
from ..deblend.scales import detect_scales
from ..images.normalize import NormalizedImage
from ..images.units import FWHM_PER_SIGMA
from ..network.calibration import calibrate, raw_settings
from ..network.inference import Detections, select_device
from ..network.model_file import MaskRcnnModel, ModelMetadata, read_model
from ..network.runtime import prepare_network, torch_threads
from .deblend_config import (
    IncompatibleExposuresError,
    InferenceConfig,
    MaskRcnnDeblendConfig,
    MaskRcnnDeblendConnections,
    MissingBandError,
    UncalibratedExposureError,
)
from .normalize import NormalizeBaseTask, config_from_settings, normalizeRegistry


@dataclasses.dataclass(frozen=True, eq=False)
class _Seen:
    """What is kept of the image that the network saw.

    Arrays are (y, x): the mean of the normalised bands, the sum of the bands
    in units of their noise, usable pixels; and the noise (band,), nJy.
    """

    mean: np.ndarray
    brightness: np.ndarray
    valid: np.ndarray
    noise: np.ndarray

    @classmethod
    def make(cls, flux: np.ndarray, normalized: NormalizedImage) -> _Seen:
        brightness = np.zeros(flux.shape[1:], dtype=np.float32)
        for pixels, level, noise in zip(flux, normalized.minimum, normalized.noise, strict=True):
            if noise > 0:
                brightness += (pixels - np.float32(level)) / np.float32(noise)
        brightness[~normalized.valid] = 0.0
        return cls(normalized.image.mean(axis=0), brightness, normalized.valid, normalized.noise)


class MaskRcnnDeblendTask(pipeBase.PipelineTask):
    """Find, classify, deblend and measure the sources of one patch.

    Mask R-CNN finds overlapping sources one by one. Those whose grown masks
    touch make a parent, whose flux is shared among them in every band.

    Parameters
    ----------
    **kwargs
        Forwarded to `lsst.pipe.base.PipelineTask`.

    Attributes
    ----------
    schema, forcedSchema : `lsst.afw.table.Schema`
        Schemas of the catalogue and of those of the bands.
    outputSchema, bandSchema : `lsst.afw.table.SourceCatalog`
        Empty catalogues with these schemas.
    """

    ConfigClass: ClassVar[type[MaskRcnnDeblendConfig]] = MaskRcnnDeblendConfig
    _DefaultName: ClassVar[str] = "maskRcnnDeblend"

    config: MaskRcnnDeblendConfig
    normalize: NormalizeBaseTask
    measurement: SingleFrameMeasurementTask
    catalogCalculation: CatalogCalculationTask
    forcedMeasurement: ForcedMeasurementTask

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not self.config.useModelNormalization:
            self.makeSubtask("normalize")
        self.schema = make_schema()
        if self.config.doMeasure:
            self.makeSubtask("measurement", schema=self.schema)
            self.makeSubtask("catalogCalculation", schema=self.schema)
        if self.config.doPrimaryFlags:
            add_primary_fields(self.schema)
        self.outputSchema = SourceCatalog(self.schema)
        if self.config.doMeasure:
            self.makeSubtask("forcedMeasurement", refSchema=self.schema)
            self.forcedSchema = self.forcedMeasurement.schema
            extend_band_schema(self.forcedSchema)
        else:
            self.forcedSchema = make_band_schema()
        self.bandSchema = SourceCatalog(self.forcedSchema)

    def runQuantum(
        self,
        butlerQC: pipeBase.QuantumContext,
        inputRefs: pipeBase.InputQuantizedConnection,
        outputRefs: pipeBase.OutputQuantizedConnection,
    ) -> None:
        """Load the model and its bands, and store the catalogues.

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
        bands += self._extra_bands(refs, bands)
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
        butlerQC.put(outputs.catalog, outputRefs.catalog)
        butlerQC.put(outputs.blendStatistics, outputRefs.blendStatistics)
        for ref in outputRefs.bandCatalogs:
            # The refs are those of all bands that were observed.
            if ref.dataId["band"] in bands:
                butlerQC.put(outputs.bandCatalogs[ref.dataId["band"]], ref)

    def run(
        self,
        *,
        exposures: Mapping[str, ExposureF],
        model: MaskRcnnModel,
        idGenerator: IdGenerator | None = None,
    ) -> pipeBase.Struct:
        """Find, classify, deblend and measure sources.

        Parameters
        ----------
        exposures : `~collections.abc.Mapping` [`str`, \
                `lsst.afw.image.ExposureF`]
            Calibrated exposures on one pixel grid by the data's name of the
            band, in any order; bands that neither the model nor
            ``config.extraBands`` names do no harm.
            Measurement changes them as it goes and leaves them as they were.
        model : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`
            The trained model.
        idGenerator : `lsst.meas.base.IdGenerator`, optional
            Makes the ids of the records; by default they count from 1.

        Returns
        -------
        results : `lsst.pipe.base.Struct`
            Results with the attributes:

            ``catalog``
                Parents and isolated sources in the order of the best score
                in them, then children, by parent and score
                (`lsst.afw.table.SourceCatalog`).
            ``bandCatalogs``
                The same records with the HeavyFootprints of each band
                (`dict` [`str`, `lsst.afw.table.SourceCatalog`]).
            ``blendStatistics``
                One row for each parent (`astropy.table.Table`).

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
            have, if ``config.referenceBand`` is not a band in use, if the
            model's normalisation is not known, or if the device
            is not there.
        """
        metadata = model.metadata
        bands = self._choose_bands(exposures, metadata)
        selected = {band: exposures[band] for band in bands}
        bands += self._extra_bands(exposures, bands)
        every = {band: exposures[band] for band in bands}
        wcs = self._check_exposures(every)
        self._check_scale(wcs, selected[bands[0]].getBBox(), metadata)
        if idGenerator is None:
            idGenerator = IdGenerator()
        reference = self._choose_reference(bands, metadata)
        catalog = idGenerator.make_source_catalog(self.schema)
        self.metadata["model"] = metadata.name
        self.metadata["bands"] = list(bands)
        self.metadata["reference_band"] = reference

        seen, detections = self._look(model, selected)
        if not seen.valid.any():
            self.log.info("No valid pixel in %s: its catalogue is empty.", idGenerator)

        started = time.perf_counter()
        sources, kept = self._measure_sources(detections, selected, seen)
        grow = self.config.parentGrow
        parents = split_parents(
            make_parents(sources.masks, sources.origins, seen.valid.shape, grow),
            sources.masks,
            sources.origins,
            grow,
            self.config.maxParentSources,
            self.config.maxParentArea,
        )
        order = order_records(parents)
        self._fill(catalog, order, parents, sources, detections.take(kept), selected, wcs, seen)
        del seen
        self.metadata["seconds_catalog"] = time.perf_counter() - started

        started = time.perf_counter()
        shared = self._share(parents, sources, every)
        fill_parent_columns(catalog, order, shared.parents, shared.on_edge)
        fill_band_columns(catalog, self._band_columns(shared, order, reference))
        statistics = blend_table(catalog, order, shared.parents)
        self.metadata["seconds_shares"] = time.perf_counter() - started

        started = time.perf_counter()
        self._measure(catalog, shared, order, every[reference], idGenerator)
        band_catalogs = {
            band: self._make_band_catalog(catalog, shared, order, band, exposure, wcs, idGenerator)
            for band, exposure in every.items()
        }
        self.metadata["seconds_measurement"] = time.perf_counter() - started
        self._report(catalog, idGenerator)
        return pipeBase.Struct(catalog=catalog, bandCatalogs=band_catalogs, blendStatistics=statistics)

    def _report(self, catalog: SourceCatalog, idGenerator: IdGenerator) -> None:
        """Count the records for the log and the metadata."""
        counts = dict.fromkeys(("n_sources", "n_stars", "n_parents", "n_children", "n_fallback"), 0)
        if len(catalog):
            is_parent = np.asarray(catalog["deblend_nChild"]) > 0
            for name, chosen in (
                ("n_sources", ~is_parent),
                ("n_stars", catalog["maskrcnn_star"]),
                ("n_parents", is_parent),
                ("n_children", np.asarray(catalog["parent"]) != 0),
                ("n_fallback", is_parent & catalog["deblend_fallback"]),
            ):
                counts[name] = int(np.count_nonzero(chosen))
        for name, count in counts.items():
            self.metadata[name] = count
        self.log.info(
            "Found %d sources in %s: %d stars, %d galaxies; %d of them in %d blends.",
            counts["n_sources"],
            idGenerator,
            counts["n_stars"],
            counts["n_sources"] - counts["n_stars"],
            counts["n_children"],
            counts["n_parents"],
        )
        if counts["n_fallback"]:
            self.log.warning(
                "The flux of %d parents was shared by masks alone (deblend_fallback).", counts["n_fallback"]
            )

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

    def _extra_bands(self, available: Mapping[str, Any], bands: list[str]) -> list[str]:
        """Bands that only flux is shared in."""
        return [band for band in self.config.extraBands if band in available and band not in bands]

    def _choose_reference(self, bands: list[str], metadata: ModelMetadata) -> str:
        """Band of the data in which sources are measured."""
        wanted = self.config.referenceBand
        if wanted is None:
            names = list(metadata.bands)
            return bands[names.index("r") if "r" in names else len(names) // 2]
        if wanted not in bands:
            raise pipeBase.InvalidQuantumError(
                f"config.referenceBand is {wanted!r}, but the bands in use are {bands}: those of model "
                f"{metadata.name!r} by the names of the data, and of config.extraBands. Choose one, or None."
            )
        return wanted

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

    def _look(self, model: MaskRcnnModel, exposures: Mapping[str, ExposureF]) -> tuple[_Seen, Detections]:
        """Normalise the exposures and run the network."""
        started = time.perf_counter()
        normalization = self._make_normalization(model.metadata)
        flux, variance, usable = normalization.calibrate(exposures)
        self.metadata["seconds_normalize"] = time.perf_counter() - started
        seen: list[_Seen] = []

        def normalise(flux: np.ndarray, variance: np.ndarray | None, valid: np.ndarray) -> NormalizedImage:
            result = normalization.normalize_flux(flux, variance, valid)
            if not seen:
                # The first one is that of the whole pixels.
                seen.append(_Seen.make(flux, result))
            return result

        if (usable & np.isfinite(flux).all(axis=0)).any():
            widths = self._psf_widths(exposures)
            detections = self._detect(model, normalise, flux, variance, usable, widths, exposures)
        else:
            normalise(flux, variance, usable)
            detections = Detections.empty()
        self.metadata["n_valid_pixels"] = int(np.count_nonzero(seen[0].valid))
        self.metadata["noise_nJy"] = [float(noise) for noise in seen[0].noise]
        return seen[0], detections

    def _detect(
        self,
        model: MaskRcnnModel,
        normalise: Callable[..., NormalizedImage],
        flux: np.ndarray,
        variance: np.ndarray | None,
        usable: np.ndarray,
        psf_fwhm: np.ndarray,
        exposures: Mapping[str, ExposureF],
    ) -> Detections:
        """Run the network at all binnings."""
        try:
            device = select_device(self.config.inference.device)
        except ValueError as error:
            raise pipeBase.InvalidQuantumError(
                f"config.inference.device cannot be used on this machine: {error}."
            ) from error
        periodic = PeriodicLogger(self.log)

        def report(done: int, total: int) -> None:
            periodic.log("Network is done with %d of %d tiles.", done, total)

        runtime = self.config.runtime.settings()
        with torch_threads(runtime.threads):
            detections = detect_scales(
                prepare_network(model.build(device), runtime),
                normalise,
                flux,
                variance,
                usable,
                settings=raw_settings(self.config.inference.settings(model.metadata), model.metadata),
                scale_settings=self.config.scales.settings(),
                psf_fwhm=psf_fwhm,
                progress=report,
                saturated=self._flagged(exposures, self.config.saturatedMaskPlanes),
            )
        detections = calibrate(detections, model.metadata)
        self.metadata["seconds_normalize"] += detections.timings.pop("normalize", 0.0)
        for name, seconds in detections.timings.items():
            self.metadata[f"seconds_{'detect' if name == 'total' else name}"] = float(seconds)
        self.metadata["device"] = str(device)
        self.metadata["n_detections"] = len(detections.scores)
        return detections

    def _measure_sources(
        self,
        detections: Detections,
        exposures: Mapping[str, ExposureF],
        seen: _Seen,
    ) -> tuple[SourceMasks, np.ndarray]:
        """Cut the masks at the edge and find their peaks; give the indices of those that are kept, too."""
        masks, origins, kept = clean_masks(
            detections.masks, detections.origins, seen.valid.shape, self.config.minArea
        )
        chosen = detections.take(kept)
        widths = np.array(self.metadata.getArray("psf_fwhm_pixels")) if len(kept) else np.zeros(0)
        known = widths[np.isfinite(widths)]
        peaks = find_peaks(
            seen.brightness,
            chosen.soft,
            chosen.soft_origins,
            # A kernel narrower than the PSF leaves close peaks apart.
            **({"psf_sigma": 0.6 * float(np.median(known)) / FWHM_PER_SIGMA} if len(known) else {}),
        )
        measured = self._measure_masks(masks, origins, exposures, seen)
        sources = SourceMasks(
            masks=masks,
            origins=origins,
            soft=chosen.soft,
            soft_origins=np.asarray(chosen.soft_origins),
            is_star=np.asarray(chosen.p_star) >= 0.5,
            peaks=peaks,
            measured=move_peaks(measured, masks, origins, peaks, seen.mean),
        )
        return sources, kept

    def _measure_masks(
        self,
        masks: list[np.ndarray],
        origins: np.ndarray,
        exposures: Mapping[str, ExposureF],
        seen: _Seen,
    ) -> MaskMeasurements:
        return measure_masks(
            masks,
            origins,
            seen.mean,
            valid=seen.valid,
            bad=self._flagged(exposures, self.config.badMaskPlanes),
            saturated=self._flagged(exposures, self.config.saturatedMaskPlanes),
        )

    def _fill(
        self,
        catalog: SourceCatalog,
        order: RecordOrder,
        parents: list[Parent],
        sources: SourceMasks,
        detections: Detections,
        exposures: Mapping[str, ExposureF],
        wcs: SkyWcs,
        seen: _Seen,
    ) -> None:
        """Write the records: what the network found, and who is whose child."""
        bbox = next(iter(exposures.values())).getBBox()
        x0, y0 = bbox.getMinX(), bbox.getMinY()
        height, width = seen.valid.shape
        blends = [parent for parent in parents if len(parent) > 1]
        whole = self._measure_masks(
            [parent.pixels for parent in blends],
            np.array([(parent.y0, parent.x0) for parent in blends], dtype=np.int64).reshape(-1, 2),
            exposures,
            seen,
        )
        # Rows of parents take from what follows the N sources.
        row = np.where(order.source >= 0, order.source, 0)
        row[order.is_parent] = len(sources) + np.arange(len(blends))

        def both(of_sources: np.ndarray, of_parents: Any) -> np.ndarray:
            return np.concatenate([of_sources, np.broadcast_to(of_parents, len(blends))])[row]

        def merged(name: str) -> np.ndarray:
            return both(getattr(sources.measured, name), getattr(whole, name))

        def of_members(values: np.ndarray, reduce: Callable[[np.ndarray], Any]) -> np.ndarray:
            return np.array([reduce(values[parent.members]) for parent in blends], dtype=values.dtype)

        boxes = np.asarray(detections.boxes, dtype=np.float64)
        corners = [
            both(values, of_members(values, reduce))
            for values, reduce in zip(
                inclusive_boxes(boxes, sources.measured, (height, width)),
                (np.min, np.min, np.max, np.max),
                strict=True,
            )
        ]
        # The pixels of a parent reach beyond those of its sources.
        min_x = np.minimum(corners[0], merged("box_min_x"))
        min_y = np.minimum(corners[1], merged("box_min_y"))
        max_x = np.maximum(corners[2], merged("box_max_x"))
        max_y = np.maximum(corners[3], merged("box_max_y"))
        area, n_bad = merged("area"), merged("n_bad")
        scores, limited = np.asarray(detections.scores), np.asarray(detections.flag_limited)
        columns = CatalogColumns(
            centroid_x=merged("centroid_x") + x0,
            centroid_y=merged("centroid_y") + y0,
            centroid_flag=merged("centroid_flag"),
            bbox_minX=min_x + x0,
            bbox_minY=min_y + y0,
            bbox_maxX=max_x + x0,
            bbox_maxY=max_y + y0,
            score=both(scores, of_members(scores, np.max)),
            pStar=both(np.asarray(detections.p_star), np.nan),
            area=area,
            badFraction=n_bad / np.maximum(area, 1),
            star=both(sources.is_star, False),
            galaxy=both(~sources.is_star, False),
            binning=both(np.asarray(detections.binning), 1),
            flag_edge=(min_x == 0) | (min_y == 0) | (max_x == width - 1) | (max_y == height - 1),
            flag_bad=n_bad > 0,
            flag_saturated=merged("n_saturated") > 0,
            flag_invalid=merged("n_invalid") > 0,
            flag_limited=both(limited, of_members(limited, np.any)),
        )
        footprints = masks_to_footprints(sources.masks, sources.origins, sources.measured, bbox)
        rows = []
        for index, source in enumerate(order.source.tolist()):
            if source >= 0:
                footprint = footprints[source]
                footprint.getPeaks()[0].setId(int(order.peak_id[index]))
            else:
                parent = parents[order.parent[index]]
                numbers = {member: number for number, member in enumerate(parent.members.tolist(), 1)}
                footprint = parent_footprint(parent, sources.measured, numbers, bbox)
            rows.append(footprint)
        fill_catalog(catalog, columns, rows, wcs)
        fill_relations(catalog, order)
        if len(catalog):
            peaks = [footprint.getPeaks()[0] for footprint in rows]
            catalog["deblend_peak_center_x"] = np.array([peak.getIx() for peak in peaks], dtype=np.int32)
            catalog["deblend_peak_center_y"] = np.array([peak.getIy() for peak in peaks], dtype=np.int32)
        if self.config.doPrimaryFlags:
            fill_primary_flags(catalog)

    def _share(
        self, parents: list[Parent], sources: SourceMasks, exposures: Mapping[str, ExposureF]
    ) -> SharedFlux:
        """Share the flux of the parents among their sources."""
        periodic = PeriodicLogger(self.log)

        def report(done: int, total: int) -> None:
            periodic.log("Flux is shared in %d of %d parents and isolated sources.", done, total)

        return share_parents(
            parents,
            sources,
            exposures,
            settings=self.config.shares.settings(),
            limits=ShareLimits(self.config.maxParentSources, self.config.maxParentArea),
            bad_planes=list(self.config.badMaskPlanes),
            progress=report,
        )

    def _band_columns(self, shared: SharedFlux, order: RecordOrder, band: str) -> BandColumns:
        """Measurements on the shares of one band, row by row."""
        return shared.columns[band].to_rows(order, shared.parents.data_coverage[band])

    def _measure(
        self,
        catalog: SourceCatalog,
        shared: SharedFlux,
        order: RecordOrder,
        exposure: ExposureF,
        idGenerator: IdGenerator,
    ) -> None:
        """Measure every record in the reference band."""
        if not len(catalog):
            return
        if not self._can_measure(exposure, self.metadata["reference_band"]):
            self._mark_unmeasured(catalog, catalog)
            return
        # The measurement takes the pixels from HeavyFootprints; the catalogue keeps the network's masks.
        masks = [record.getFootprint() for record in catalog]
        self._attach(catalog, shared, order, self.metadata["reference_band"], masks)
        self.measurement.run(catalog, exposure, exposureId=idGenerator.catalog_id)
        for record, mask in zip(catalog, masks, strict=True):
            record.setFootprint(mask)
        self.catalogCalculation.run(catalog)

    def _mark_unmeasured(self, catalog: SourceCatalog, found: SourceCatalog) -> None:
        """Flag all records, and put the network's centroids where a measurement would have been."""
        catalog[UNMEASURED] = np.ones(len(catalog), dtype=bool)
        slot = catalog.schema.getAliasMap().get("slot_Centroid") if self.config.doMeasure else ""
        if not slot:
            return
        for axis in "xy":
            catalog[f"{slot}_{axis}"] = found[f"maskrcnn_centroid_{axis}"]
        if f"{slot}_flag" in catalog.schema:
            catalog[f"{slot}_flag"] = np.ones(len(catalog), dtype=bool)

    def _can_measure(self, exposure: ExposureF, band: str) -> bool:
        """Tell whether there is all that measurement needs."""
        if not self.config.doMeasure:
            return False
        if exposure.getPsf() is None:
            self.log.warning("Nothing is measured in band %r, as its exposure has no PSF.", band)
            return False
        return True

    def _attach(
        self,
        catalog: SourceCatalog,
        shared: SharedFlux,
        order: RecordOrder,
        band: str,
        otherwise: list[Footprint],
    ) -> None:
        """Give records the HeavyFootprints of a band, and parents their own footprints."""
        heavy = shared.heavy[band]
        for record, source, footprint in zip(catalog, order.source.tolist(), otherwise, strict=True):
            record.setFootprint(heavy[source] if source >= 0 else footprint)

    def _make_band_catalog(
        self,
        catalog: SourceCatalog,
        shared: SharedFlux,
        order: RecordOrder,
        band: str,
        exposure: ExposureF,
        wcs: SkyWcs,
        idGenerator: IdGenerator,
    ) -> SourceCatalog:
        """Make the catalogue of one band, with measurements at the places of the reference band."""
        if self.config.doMeasure:
            made = self.forcedMeasurement.generateMeasCat(exposure, catalog, wcs)
        else:
            made = SourceCatalog(self.forcedSchema)
            made.resize(len(catalog))
        if not len(catalog):
            return made
        for record, given in zip(made, catalog, strict=True):
            record.setId(given.getId())
            record.setParent(given.getParent())
            record.setCoord(given.getCoord())
        self._attach(made, shared, order, band, [record.getFootprint() for record in catalog])
        # Without the reference band there are no places at which to measure.
        measured = not catalog[UNMEASURED].any() and self._can_measure(exposure, band)
        if measured:
            self.forcedMeasurement.run(made, exposure, catalog, wcs, exposureId=idGenerator.catalog_id)
        # Whole columns can only be set where records lie side by side.
        if not made.isContiguous():
            made = made.copy(deep=True)
        if not measured:
            self._mark_unmeasured(made, catalog)
        copy_relations(made, catalog)
        fill_band_columns(made, self._band_columns(shared, order, band))
        return made

    def _flagged(self, exposures: Mapping[str, ExposureF], planes: Iterable[str]) -> np.ndarray:
        """Pixels with any of the planes set in any band."""
        flagged: np.ndarray | None = None
        for exposure in exposures.values():
            pixels = (exposure.mask.array & defined_plane_bits(exposure.mask, planes)) != 0
            flagged = pixels if flagged is None else flagged | pixels
        if flagged is None:
            raise ValueError("No exposure was given.")
        return flagged
