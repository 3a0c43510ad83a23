# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection, classification, deblending and measurement of the sources of a patch."""

from __future__ import annotations

__all__ = ["MaskRcnnDeblendConfig", "MaskRcnnDeblendConnections", "MaskRcnnDeblendTask"]

from ..network import torch_import  # noqa: F401, before what imports torch

# isort: split

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
import lsst.pipe.base.connectionTypes as cT
import lsst.skymap
from lsst.afw.geom import SkyWcs
from lsst.afw.image import ExposureF, ImageF
from lsst.afw.table import SourceCatalog
from lsst.daf.butler import DataCoordinate, DeferredDatasetHandle
from lsst.meas.base import IdGenerator, SkyMapIdGeneratorConfig
from lsst.resources import ResourcePath
from lsst.utils.logging import PeriodicLogger

from ..catalogs.cell_coadds import read_cell_coadd
from ..catalogs.deblend_columns import (
    PRIMARY_FIELDS,
    ParentFluxes,
    add_fields,
    fill_band_columns,
    fill_primary_flags,
)
from ..catalogs.exposures import MissingBandError, UnusableExposureError, to_multiband_image
from ..catalogs.heavy import deblend_band, parent_fluxes, share_footprints
from ..catalogs.model_images import model_image
from ..catalogs.profile_columns import fill_profile_fluxes
from ..catalogs.record_order import RecordOrder, order_records
from ..catalogs.schema import extend_band_schema, make_schema
from ..catalogs.source_catalog import fill_source_catalog
from ..catalogs.tables import object_table, parent_table, select_primary, with_bands
from ..deblend.deblend import DeblendSettings, find_sources
from ..deblend.object_table import make_object_table
from ..deblend.sources import SourceList
from ..images.normalize import NormalizedImage
from ..network.inference import select_device
from ..network.model_file import MaskRcnnModel, ModelMetadata, read_model
from .bands import band_wavelengths, choose_bands, choose_reference
from .config_fields import make_fields
from .connections import SKYMAP, deferred_input
from .failures import say_where
from .measure import BandRecords, MeasureConfig, Measurement
from .normalize import normalizeRegistry


class MaskRcnnDeblendConnections(
    pipeBase.PipelineTaskConnections,
    dimensions=("skymap", "tract", "patch"),
    defaultTemplates={"coaddName": "deep"},
):
    """Inputs and outputs of `MaskRcnnDeblendTask`; with ``config.model_uri`` there is no input ``model``."""

    exposures = cT.Input(
        doc="Coadds of one patch in the bands of the model and config.extra_bands; other bands are not read.",
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
    skyMap = deferred_input(
        "The sky map, by which detect_isPrimary of the object table is set in inner regions alone. Without "
        "one it is set for all sources.",
        "skyMap",
        "SkyMap",
        SKYMAP,
        multiple=False,
        optional=True,
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
    modelImages = cT.Output(
        doc="Sum of the fitted models of all sources, in the units of the exposure; with doModelImages.",
        name="{coaddName}Coadd_maskRcnnModelImage",
        storageClass="ImageF",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
    )
    objectTable = cT.Output(
        doc="One row for each source, without parents: positions, classes, shapes, fluxes in nJy, flags.",
        name="{coaddName}Coadd_maskRcnnObject",
        storageClass="ArrowAstropy",
        dimensions=("skymap", "tract", "patch"),
    )
    blendStatistics = cT.Output(
        doc="One row for each parent and isolated source: sources, pixels, time, flux outside all masks, "
        "residuals.",
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
        if not config.doModelImages:
            del self.modelImages


_ENGINE = make_fields(DeblendSettings)

_OTHER_BAND = (
    r'(?s).*filter label mismatch \(file is FilterLabel\(band="([^"]+)"'
    r'.*data ID is FilterLabel\(band="(?!\1")'
)
"""Warning of the Butler of an exposure in another band than its data id says."""


class MaskRcnnDeblendConfig(
    pipeBase.PipelineTaskConfig, MeasureConfig, pipelineConnections=MaskRcnnDeblendConnections
):
    """Configuration of `MaskRcnnDeblendTask`.

    ``detection`` and ``shares`` are those of `DeblendSettings`.
    """

    model_uri = pexConfig.Field[str](
        doc="Path or URI of a model file (resource:// included) to use in place of the dataset "
        "maskRcnnModel; None takes that dataset from the input collections.",
        default=None,
        optional=True,
    )
    bands = pexConfig.DictField[str, str](
        doc="Band of the data to use for a band of the model, where the two have different names.", default={}
    )
    wavelengths = pexConfig.DictField[str, float](
        doc="Effective wavelengths (nm) by the data's names of bands, for a model that takes any bands, "
        "where a name does not tell. Such a model is given all bands there are, or those of config.bands.",
        default={},
    )
    extra_bands = pexConfig.ListField[str](
        doc="Further bands of the data in which flux is shared and measured; the network is not given them.",
        default=[],
    )
    output_bands = pexConfig.ListField[str](
        doc="Bands of the data, and no others, that the tables have columns of: NaN and flagged in patches "
        "without them. Tables of patches that differ in columns cannot be put together to those of tracts. "
        "None takes the bands in use.",
        default=None,
        optional=True,
    )
    skip_incomplete = pexConfig.Field[bool](
        doc="Skip patches in which a band of the model is missing, in place of failing?", default=False
    )
    fail_without_pixels = pexConfig.Field[bool](
        doc="Fail where a patch or one of its bands has no valid pixel, in place of a warning?", default=False
    )
    detection: Any = _ENGINE["detection"]
    shares: Any = _ENGINE["shares"]
    normalize = normalizeRegistry.makeField(
        doc="Normalisation of the images; None normalises them as the model's training images were.",
        default=None,
        optional=True,
    )
    unusable_planes = pexConfig.ListField[str](
        doc="Mask planes of pixels that hold no data: the network is given 0 there, and they set "
        "maskrcnn_flag_invalid. Planes that an exposure does not define are ignored, here and below. SAT is "
        "not among the defaults, so that stars with a saturated core are detected; nor are CR and INTRP, "
        "whose pixels hold interpolated values.",
        default=["BAD", "NO_DATA"],
    )
    bad_planes = pexConfig.ListField[str](
        doc="Mask planes of pixels to which no template is fitted (their flux is shared all the same), and "
        "that count as bad in maskrcnn_badFraction and maskrcnn_flag_bad.",
        default=["BAD", "CR", "NO_DATA", "SAT"],
    )
    saturated_planes = pexConfig.ListField[str](
        doc="Mask planes that set maskrcnn_flag_saturated, and on which the pieces of a saturated star are "
        "joined to one source.",
        default=["SAT"],
    )
    background = pexConfig.Field[str](
        doc="Background to subtract of those that cell coadds carry: its name, or 'none'; None leaves the "
        "one that is subtracted. The coadds must be of storage class CellCoadd.",
        default=None,
        optional=True,
    )
    noise_realizations = pexConfig.Field[bool](
        doc="Take the scale and the correlation of the noise, for the errors of fitted fluxes, from the "
        "noise realisations of cell coadds, not from the pixels? The coadds must be of storage class "
        "CellCoadd.",
        default=False,
    )
    max_wcs_offset = pexConfig.RangeField(
        dtype=float,
        doc="Largest distance of one sky position on the grids of two bands (pixels).",
        default=0.1,
        min=0.0,
    )
    reference_band = pexConfig.Field[str](
        doc="Band of the data in which sources are measured for the catalogue, and which gives its flux "
        "columns; None takes the one that the model calls r, or else the middle one of its bands.",
        default=None,
        optional=True,
    )
    doModelImages = pexConfig.Field[bool](
        doc="Store an image of the fitted models by band? The exposure less this image is the residual.",
        default=False,
    )
    doPrimaryFlags = pexConfig.Field[bool](
        doc="Add detect_isPrimary and its kin, by children alone? Turn off where SetPrimaryFlagsTask "
        "follows, which adds them itself and considers the sky map, too.",
        default=True,
    )
    idGenerator = SkyMapIdGeneratorConfig.make_field()

    def validate(self) -> None:
        """Check that no band is used twice."""
        super().validate()
        targets = list(self.bands.values())
        if len(set(targets)) != len(targets):
            message = f"Each band of the model needs a band of its own, but bands = {dict(self.bands)}."
            raise pexConfig.FieldValidationError(self.__class__.bands, self, message)


class MaskRcnnDeblendTask(pipeBase.PipelineTask):
    """Find, classify, deblend and measure the sources of one patch.

    `~lsst.meas.maskrcnn.deblend.deblend.find_sources` does so; this task takes
    exposures to it, and makes and measures catalogues of what it finds.

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
    normalize: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.config.normalize.name is not None:
            self.makeSubtask("normalize")
        self.schema = make_schema()
        self._measurement = Measurement(self.config, self.schema, self)
        if self.config.doPrimaryFlags:
            add_fields(self.schema, "detect", PRIMARY_FIELDS)
        self.outputSchema = SourceCatalog(self.schema)
        self.forcedSchema = self._measurement.complete()
        extend_band_schema(self.forcedSchema)
        self.bandSchema = SourceCatalog(self.forcedSchema)

    @say_where
    def runQuantum(
        self,
        butlerQC: pipeBase.QuantumContext,
        inputRefs: pipeBase.InputQuantizedConnection,
        outputRefs: pipeBase.OutputQuantizedConnection,
    ) -> None:
        """Load the model and its bands, and store the catalogues.

        Raises
        ------
        MissingBandError, lsst.pipe.base.NoWorkFound
            Raised if a band is missing, by ``config.skip_incomplete``.
        """
        if self.config.model_uri is not None:
            model = self.read_model(self.config.model_uri)
        else:
            model = butlerQC.get(inputRefs.model)
        refs = {ref.datasetRef.dataId["band"]: ref for ref in inputRefs.exposures}
        try:
            bands = choose_bands(self.config, refs, model.metadata)
        except MissingBandError as error:
            if self.config.skip_incomplete:
                raise pipeBase.NoWorkFound(str(error)) from error
            raise
        with warnings.catch_warnings():
            warnings.filterwarnings("error", _OTHER_BAND)
            exposures, noise = self._read_exposures({band: butlerQC.get(refs[band]) for band in bands})
        idGenerator = self.config.idGenerator.apply(butlerQC.quantum.dataId)
        skyInfo = self._read_sky_map(butlerQC, inputRefs)
        n_threads = torch.get_num_threads()
        torch.set_num_threads(butlerQC.resources.num_cores)
        try:
            outputs = self.run(
                exposures=exposures, model=model, idGenerator=idGenerator, skyInfo=skyInfo, noise=noise
            )
        finally:
            torch.set_num_threads(n_threads)
        butlerQC.put(outputs.catalog, outputRefs.catalog)
        for name in ("objectTable", "blendStatistics"):
            # Patches are put together to tracts by these.
            table = outputs.getDict()[name]
            for key in ("tract", "patch"):
                table[key] = outputRefs.catalog.dataId[key]
            butlerQC.put(table, getattr(outputRefs, name))
        for name in ("bandCatalogs", "modelImages"):
            made = outputs.getDict()[name]
            for ref in getattr(outputRefs, name, ()):
                # The refs are those of all bands that were observed.
                if ref.dataId["band"] in made:
                    butlerQC.put(made[ref.dataId["band"]], ref)

    def run(
        self,
        *,
        exposures: Mapping[str, ExposureF],
        model: MaskRcnnModel,
        idGenerator: IdGenerator | None = None,
        skyInfo: pipeBase.Struct | None = None,
        noise: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> pipeBase.Struct:
        """Find, classify, deblend and measure sources.

        Parameters
        ----------
        exposures : `~collections.abc.Mapping` [`str`, \
                `lsst.afw.image.ExposureF`]
            Calibrated exposures on one pixel grid by the data's name of the
            band, in any order, others included. They are not changed.
        model : `~lsst.meas.maskrcnn.network.model_file.MaskRcnnModel`
            The trained model.
        idGenerator : `lsst.meas.base.IdGenerator`, optional
            Makes the ids of the records; by default they count from 1.
        skyInfo : `lsst.pipe.base.Struct`, optional
            ``skyMap``, ``tractInfo`` and ``patchInfo``, by which
            ``detect_isPrimary`` of the object table considers inner regions.
        noise : `~collections.abc.Mapping` [`str`, `numpy.ndarray`], optional
            Realisations of the noise by the data's name of the band, (y, x), nJy.

        Returns
        -------
        results : `lsst.pipe.base.Struct`
            Results with the attributes:

            ``catalog``
                Parents and isolated sources by best score, then children, by
                parent and score (`lsst.afw.table.SourceCatalog`).
            ``bandCatalogs``
                The same records with the HeavyFootprints of each band
                (`dict` [`str`, `lsst.afw.table.SourceCatalog`]).
            ``modelImages``
                Sum of the models by band, with ``config.doModelImages``
                (`dict` [`str`, `lsst.afw.image.ImageF`]).
            ``objectTable``
                One row for each source (`astropy.table.Table`).
            ``blendStatistics``
                One row for each parent and isolated source
                (`astropy.table.Table`).

        Raises
        ------
        MissingBandError, IncompatibleExposuresError, UncalibratedExposureError
            Raised if a band of the model is missing, boxes or coordinate
            systems disagree, or a WCS or a usable PhotoCalib is missing.
        lsst.pipe.base.InvalidQuantumError
            Raised if a band in the configuration is not one of the model, or
            not in use, or if the device is not there.
        """
        idGenerator = idGenerator or IdGenerator()
        chosen = {band: exposures[band] for band in choose_bands(self.config, exposures, model.metadata)}
        reference = choose_reference(self.config, list(chosen), model.metadata)
        sources = self._find_sources(chosen, model, noise)
        self._record(sources, model.metadata, list(chosen), reference, idGenerator)
        objects, models = make_object_table(sources), self._draw_models(sources, chosen)
        # The catalogues take theirs from the exposures.
        sources = sources.without_pixels()

        order = order_records(sources.parents)
        fluxes = parent_fluxes(sources, chosen)
        catalog, band_catalogs = self._make_catalogs(sources, order, fluxes, chosen, reference, idGenerator)
        tables = {
            "objectTable": object_table(objects, sources.image, order, catalog, band_catalogs, chosen),
            "blendStatistics": parent_table(catalog, order, sources, fluxes),
        }
        if skyInfo is not None:
            select_primary(tables["objectTable"], skyInfo)
        if self.config.output_bands is not None:
            for name, table in tables.items():
                tables[name] = with_bands(table, list(chosen), self.config.output_bands)
        return pipeBase.Struct(catalog=catalog, bandCatalogs=band_catalogs, modelImages=models, **tables)

    def read_model(self, uri: str) -> MaskRcnnModel:
        """Read a model file from a path or URI.

        Parameters
        ----------
        uri : `str`
            Path or URI, ``resource://`` included.
        """
        with ResourcePath(uri, forceDirectory=False).as_local() as local:
            return read_model(local.ospath)

    def _read_exposures(
        self, handles: Mapping[str, DeferredDatasetHandle]
    ) -> tuple[dict[str, ExposureF], dict[str, npt.NDArray[np.float32]]]:
        """Read exposures and realisations of their noise, by band."""
        if self.config.background is None and not self.config.noise_realizations:
            return {band: handle.get() for band, handle in handles.items()}, {}
        coadds = {band: read_cell_coadd(handle, self.config.background) for band, handle in handles.items()}
        use = self.config.noise_realizations
        noise = {band: noise for band, (_, noise) in coadds.items() if use and noise is not None}
        return {band: exposure for band, (exposure, _) in coadds.items()}, noise

    def _read_sky_map(
        self, butlerQC: pipeBase.QuantumContext, inputRefs: pipeBase.InputQuantizedConnection
    ) -> pipeBase.Struct | None:
        """Read the sky map, and choose tract and patch; None where there is none to read."""
        ref = getattr(inputRefs, "skyMap", None)
        if ref is None:
            reason = "No sky map among the inputs"
        elif not hasattr(lsst.skymap, "BaseSkyMap"):
            reason = "lsst.skymap has no sky maps here"
        else:
            skyMap, dataId = butlerQC.get(ref).get(), cast(DataCoordinate, butlerQC.quantum.dataId)
            try:
                tractInfo = skyMap[dataId["tract"]]
                patchInfo = tractInfo[dataId["patch"]]
                return pipeBase.Struct(skyMap=skyMap, tractInfo=tractInfo, patchInfo=patchInfo)
            except LookupError:
                reason = "The sky map has no such tract or patch"
        self.log.info("%s: detect_isPrimary of the object table is set for all sources.", reason)
        return None

    def _make_catalogs(
        self,
        sources: SourceList,
        order: RecordOrder,
        fluxes: Mapping[str, ParentFluxes],
        exposures: Mapping[str, ExposureF],
        reference: str,
        idGenerator: IdGenerator,
    ) -> tuple[SourceCatalog, dict[str, SourceCatalog]]:
        """Make the catalogue of the reference band and those of all bands, and measure them."""
        wcs, bbox = cast(SkyWcs, exposures[reference].getWcs()), exposures[reference].getBBox()
        catalog = idGenerator.make_source_catalog(self.schema)
        fill_source_catalog(catalog, sources, order, wcs, bbox)
        if self.config.doPrimaryFlags:
            fill_primary_flags(catalog)
        footprints = share_footprints(sources, bbox)
        band_catalogs = {}
        # The reference band comes first: the others are measured at its positions.
        for band in sorted(exposures, key=lambda band: band != reference):
            row = list(exposures).index(band)
            heavy, columns = deblend_band(footprints, exposures[band], row)
            coverage = fluxes[band].data_coverage
            records = BandRecords(catalog, heavy, order, exposures[band], band, idGenerator.catalog_id)
            if band == reference:
                fill_band_columns(catalog, order, columns, coverage)
                fill_profile_fluxes(catalog, sources, order, exposures[band], row)
                self._measurement.measure(records)
            made = self._measurement.measure_forced(records, wcs, band == reference)
            fill_band_columns(made, order, columns, coverage, catalog)
            fill_profile_fluxes(made, sources, order, exposures[band], row)
            band_catalogs[band] = made
        return catalog, {band: band_catalogs[band] for band in exposures}

    def _draw_models(self, sources: SourceList, exposures: Mapping[str, ExposureF]) -> dict[str, ImageF]:
        if not self.config.doModelImages:
            return {}
        return {band: model_image(sources, exposures[band], row) for row, band in enumerate(exposures)}

    def _find_sources(
        self,
        exposures: Mapping[str, ExposureF],
        model: MaskRcnnModel,
        noise: Mapping[str, npt.NDArray[np.float32]] | None,
    ) -> SourceList:
        """Run the engine."""
        settings = DeblendSettings(self.config.detection.settings(), self.config.shares.settings())
        try:
            select_device(settings.detection.device)
        except ValueError as error:
            raise pipeBase.InvalidQuantumError(f"config.detection.device cannot be used: {error}.") from error
        image = to_multiband_image(
            exposures,
            names={data: band for band, data in self.config.bands.items()},
            unusable_planes=self.config.unusable_planes,
            bad_planes=self.config.bad_planes,
            saturated_planes=self.config.saturated_planes,
            max_wcs_offset=self.config.max_wcs_offset,
            noise=noise,
        )
        periodic = PeriodicLogger(self.log)

        def report(stage: str, done: int, total: int) -> None:
            periodic.log("Done with %d of %d %s.", done, total, stage)

        def normalize(flux: Any, variance: Any, valid: Any) -> NormalizedImage:
            result: NormalizedImage = self.normalize.run(flux=flux, variance=variance, valid=valid)
            return result

        normalizer = normalize if self.config.normalize.name is not None else None
        wavelengths = band_wavelengths(self.config, exposures) if model.takes_any_bands else None
        return find_sources(
            image, model, settings, normalizer=normalizer, wavelengths=wavelengths, progress=report
        )

    def _record(
        self,
        sources: SourceList,
        metadata: ModelMetadata,
        bands: list[str],
        reference: str,
        idGenerator: IdGenerator,
    ) -> None:
        """Write to the log and the task's metadata what was found."""
        sizes = [len(parent) for parent in sources.parents if len(parent) > 1]
        used = np.isfinite(sources.noise)
        self.metadata["n_valid_pixels"] = sources.n_valid_pixels
        if not (sources.n_valid_pixels and used.all()):
            empty = ", ".join(np.array(bands)[~used]) if sources.n_valid_pixels else "any band"
            if self.config.fail_without_pixels:
                raise UnusableExposureError(
                    f"No valid pixel of {empty} in {idGenerator}, and config.fail_without_pixels is set."
                )
            self.log.warning("No valid pixel of %s in %s.", empty, idGenerator)
        found = {
            "n_sources": len(sources),
            "n_stars": int(np.count_nonzero(sources.is_star)),
            "n_parents": len(sizes),
            "n_children": sum(sizes),
            "n_fallback": int(np.count_nonzero(sources.statistics.fallback)),
        }
        for key, value in {
            "model": metadata.name,
            "bands": bands,
            "reference_band": reference,
            "device": str(select_device(self.config.detection.device)),
            "noise_nJy": sources.noise[used].tolist(),
            "psf_fwhm_pixels": np.asarray(sources.image.psf_fwhm)[used].tolist(),
            **found,
        }.items():
            self.metadata[key] = value
        for stage, seconds in {**sources.timings, "total": sum(sources.timings.values())}.items():
            self.metadata[f"seconds_{stage}"] = float(seconds)
        self.log.info(
            "Found %d sources in %s of %s: %d stars, %d galaxies; %d of them in %d blends.",
            found["n_sources"],
            ", ".join(bands),
            idGenerator,
            found["n_stars"],
            found["n_sources"] - found["n_stars"],
            found["n_children"],
            found["n_parents"],
        )
        if found["n_fallback"]:
            self.log.warning(
                "The flux of %d parents was shared by masks alone (deblend_fallback).", found["n_fallback"]
            )
