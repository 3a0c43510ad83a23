# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated scenes with their truth, as the coadds of a patch."""

from __future__ import annotations

__all__ = ["SimulateScenesConfig", "SimulateScenesConnections", "SimulateScenesTask"]

import dataclasses
import types
from typing import Any, ClassVar

import numpy as np

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
import lsst.pipe.base.connectionTypes as cT
from lsst.meas.base import IdGenerator, SkyMapIdGeneratorConfig

from ..catalogs.truth import make_truth_catalog, make_truth_flux
from ..ingest.exposures import scene_to_exposures, truth_to_exposures
from ..ingest.scenes import SceneGrid
from ..scenes.config import ArtefactConfig, MaskRule, PopulationConfig, PsfConfig, SceneConfig
from ..scenes.presets import PRESETS, preset_config
from ..scenes.simulate import simulate_scene
from .config_fields import make_fields, plain_value, refuse
from .failures import say_where


def _changes(source: type, *names: str) -> Any:
    """Make a configuration with an optional field for some settings of a preset."""
    others = {field.name for field in dataclasses.fields(source)} - set(names)
    members: dict[str, Any] = {
        **make_fields(source, leave_out=tuple(others), unset="None takes the preset's."),
        "__doc__": f"Changes to the `~{source.__module__}.{source.__name__}` of a preset.",
        "__module__": __name__,
    }
    name = f"{source.__name__}Changes"
    return types.new_class(name, (pexConfig.Config,), exec_body=lambda body: body.update(members))


def _given(config: pexConfig.Config, names: Any) -> dict[str, Any]:
    """Return the settings of a configuration that are set."""
    values = {name: plain_value(getattr(config, name)) for name in names}
    return {name: value for name, value in values.items() if value is not None}


_SCENE_CHANGES: Any = _changes(SceneConfig, "shape", "bands", "pixel_scale", "noise", "exposure_factor")
_PARTS = ("psf", "population", "artefacts", "mask_rule")


class ConditionsChanges(pexConfig.Config):
    """Changes to the observing conditions of a preset."""

    fwhm = pexConfig.DictField[str, float](
        doc="Median FWHM of the PSF by band (arcsec); the preset's for other bands.", default={}
    )
    sky_sigma = pexConfig.DictField[str, float](
        doc="Photon noise of the sky in a pixel by band (nJy); the preset's for other bands.", default={}
    )


class SimulateScenesConnections(
    pipeBase.PipelineTaskConnections,
    dimensions=("skymap", "tract", "patch"),
    defaultTemplates={"coaddName": "deep"},
):
    """Outputs of `SimulateScenesTask`, with or without ``truthFlux``; there are no inputs."""

    exposures = cT.Output(
        doc="Simulated coadds of one patch.",
        name="{coaddName}Coadd_calexp",
        storageClass="ExposureF",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
    )
    truth = cT.Output(
        doc="The sources: positions, types, fluxes, and truth masks as footprints.",
        name="maskRcnn_truth",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch"),
    )
    truthFlux = cT.Output(
        doc="Each source's own pixels without noise, as heavy footprints.",
        name="maskRcnn_truthFlux",
        storageClass="SourceCatalog",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
    )
    truthImages = cT.Output(
        doc="The light of the sources alone, without noise.",
        name="maskRcnn_truthImage",
        storageClass="ExposureF",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
    )

    def __init__(self, *, config: SimulateScenesConfig) -> None:
        super().__init__(config=config)
        if not config.doTruthFlux:
            del self.truthFlux


class SimulateScenesConfig(
    pipeBase.PipelineTaskConfig, _SCENE_CHANGES, pipelineConnections=SimulateScenesConnections
):
    """Configuration of `SimulateScenesTask`: a preset, and changes to it.

    The fields have the names of those of
    `~lsst.meas.maskrcnn.scenes.config.SceneConfig` and its parts.
    """

    preset = pexConfig.ChoiceField[str](
        doc="Kind of scenes, before the changes that the other fields make.",
        default="hsc-wide",
        allowed={name: "A preset; the documentation lists the numbers of all." for name in PRESETS},
    )
    seed = pexConfig.RangeField(
        doc="Random seed, together with the patch's number; None takes the number of the tract.",
        dtype=int,
        default=None,
        optional=True,
        min=0,
    )
    conditions: Any = pexConfig.ConfigField(doc="Observing conditions by band.", dtype=ConditionsChanges)
    psf: Any = pexConfig.ConfigField(
        doc="Shape of the PSF.", dtype=_changes(PsfConfig, "profile", "beta", "ellipticity")
    )
    population: Any = pexConfig.ConfigField(
        doc="The sources.",
        dtype=_changes(
            PopulationConfig,
            "galaxy_density",
            "star_density",
            "mag_limit",
            "star_mag_range",
            "pair_fraction",
            "pair_separation",
            "cluster_probability",
            "bright_star_density",
            "large_galaxy_density",
        ),
    )
    artefacts: Any = pexConfig.ConfigField(
        doc="Effects of camera and sky.",
        dtype=_changes(
            ArtefactConfig, "saturation", "bleed", "spikes", "halo", "correlation", "cosmic_rays", "chip_gaps"
        ),
    )
    mask_rule: Any = pexConfig.ConfigField(
        doc="Which pixels are a source's truth mask.",
        dtype=_changes(MaskRule, "kind", "star_fraction", "galaxy_fraction", "isophote", "flux_fraction"),
    )
    doTruthFlux = pexConfig.Field[bool](
        doc="Store each source's own pixels? They take two to three times the space of the coadds.",
        default=True,
    )
    idGenerator = SkyMapIdGeneratorConfig.make_field()

    def validate(self) -> None:
        """Check that the scene's settings fit each other."""
        super().validate()
        try:
            self.scene()
        except ValueError as error:
            refuse(self, error, ("preset", *self._fields))

    def scene(self) -> SceneConfig:
        """Return the preset with the changes, for the simulator; a ValueError if they do not fit."""
        preset = preset_config(self.preset)
        changes = _given(self, _SCENE_CHANGES._fields)
        for name in _PARTS:
            part = getattr(self, name)
            try:
                changes[name] = dataclasses.replace(getattr(preset, name), **_given(part, part._fields))
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from error
        by_band = {condition.band: condition for condition in preset.conditions}
        for name in self.conditions._fields:
            for band, value in getattr(self.conditions, name).items():
                if band not in by_band:
                    raise ValueError(
                        f"conditions.{name} is given for band {band!r}; preset {self.preset!r} has bands "
                        f"{sorted(by_band)}"
                    )
                by_band[band] = dataclasses.replace(by_band[band], **{name: value})
        # The peaks of the truth come from the models, whether these are stored or not.
        return dataclasses.replace(preset, **changes, conditions=tuple(by_band.values()), keep_models=True)

    def expanded(self) -> SimulateScenesConfig:
        """Return a copy with the preset's numbers in the fields that are not set.

        It gives the same scenes, also if a later version changes these numbers of the preset.
        """
        scene = self.scene()
        expanded = type(self)()
        expanded.update(preset=self.preset, seed=self.seed, doTruthFlux=self.doTruthFlux)
        expanded.idGenerator = self.idGenerator
        pairs = [(expanded, scene, _SCENE_CHANGES._fields)]
        pairs += [(getattr(expanded, name), getattr(scene, name), None) for name in _PARTS]
        for config, settings, names in pairs:
            for name in names or config._fields:
                value = getattr(settings, name)
                setattr(config, name, list(value) if isinstance(value, tuple) else value)
        for name in expanded.conditions._fields:
            setattr(expanded.conditions, name, {c.band: getattr(c, name) for c in scene.conditions})
        return expanded

    def grid(self, skymap: str) -> SceneGrid:
        """Return the sky map that the scenes belong to, whose patches have the size of a scene.

        Parameters
        ----------
        skymap : `str`
            Name of the sky map.
        """
        scene = self.scene()
        return SceneGrid(skymap, scene.shape, scene.pixel_scale)


class SimulateScenesTask(pipeBase.PipelineTask):
    """Simulate the scene of a patch, and its truth.

    Scenes depend on the configuration, the seed and the number of the patch.
    Presets that differ in the observation only, such as ``hsc-500s`` and
    ``hsc-500s-noiseless``, have the same sources for the same numbers.
    """

    ConfigClass: ClassVar[type[SimulateScenesConfig]] = SimulateScenesConfig
    _DefaultName: ClassVar[str] = "simulateScenes"

    config: SimulateScenesConfig

    @say_where
    def runQuantum(
        self,
        butlerQC: pipeBase.QuantumContext,
        inputRefs: pipeBase.InputQuantizedConnection,
        outputRefs: pipeBase.OutputQuantizedConnection,
    ) -> None:
        """Simulate the patch that the quantum names.

        Raises
        ------
        lsst.pipe.base.InvalidQuantumError
            Raised if the patch is not of this package's sky maps, or is for
            scenes of another size, or the repository lacks a band.
        """
        data_id: Any = butlerQC.quantum.dataId
        tract, patch = int(data_id["tract"]), int(data_id["patch"])
        grid = self.config.grid(str(data_id["skymap"]))
        region = getattr(data_id.records["patch"], "region", None)
        try:
            expected = grid.patch(tract, patch).region()
        except ValueError as error:
            raise pipeBase.InvalidQuantumError(str(error)) from error
        if region is None or region.encode() != expected.encode():
            raise pipeBase.InvalidQuantumError(
                f"Patch {patch} of tract {tract} in sky map {data_id['skymap']!r} was not made for scenes of "
                f"{grid.shape[1]} x {grid.shape[0]} px of {grid.pixel_scale} arcsec; register it with "
                "SceneGrid.register."
            )
        bands = self.config.scene().bands
        by_band = {ref.dataId["band"]: ref for ref in outputRefs.exposures}
        missing = sorted(set(bands) - set(by_band))
        if missing:
            raise pipeBase.InvalidQuantumError(
                f"There are no outputs for bands {missing}, but for {sorted(by_band)}; the data query must "
                "allow all bands of the scenes, and the repository know them."
            )
        result = self.run(tract=tract, patch=patch, idGenerator=self.config.idGenerator.apply(data_id))
        butlerQC.put(result.truth, outputRefs.truth)
        for name in ("exposures", "truthImages", "truthFlux"):
            products = getattr(result, name)
            # The query may find bands of other scenes.
            for ref in getattr(outputRefs, name) if products is not None else ():
                if ref.dataId["band"] in products:
                    butlerQC.put(products[ref.dataId["band"]], ref)

    def run(self, *, tract: int, patch: int, idGenerator: IdGenerator | None = None) -> pipeBase.Struct:
        """Simulate one scene.

        Parameters
        ----------
        tract, patch : `int`
            Place in the sky map: seed (unless the configuration has one) and
            number of the scene.
        idGenerator : `lsst.meas.base.IdGenerator`, optional
            Makes the ids of the sources. Without one they count from 1.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            Results as attributes:

            ``exposures``
                Coadds (`dict` [`str`, `lsst.afw.image.ExposureF`]) by band,
                in nJy.
            ``truth``
                The sources (`lsst.afw.table.SourceCatalog`).
            ``truthImages``
                Light of the sources without noise (`dict` [`str`,
                `lsst.afw.image.ExposureF`]) by band.
            ``truthFlux``
                Each source's own pixels (`dict` [`str`,
                `lsst.afw.table.SourceCatalog`]) by band; `None` without
                ``doTruthFlux``.

        Raises
        ------
        ValueError
            Raised if there is no such patch.
        """
        settings = self.config.scene()
        geometry = self.config.grid("").patch(tract, patch)
        seed = tract if self.config.seed is None else self.config.seed
        scene = simulate_scene(settings, np.random.default_rng([seed, patch]))
        xy0 = geometry.bbox.getMin()
        exposures = scene_to_exposures(scene, xy0=(xy0.getX(), xy0.getY()), wcs=geometry.wcs)
        factory = idGenerator.make_table_id_factory() if idGenerator is not None else None
        truth = make_truth_catalog(scene, geometry.wcs, xy0, factory)
        flux = None
        if self.config.doTruthFlux:
            flux = {band: make_truth_flux(scene, band, xy0, truth["id"]) for band in scene.bands}
        self.log.info(
            "Simulated %d sources on %d x %d pixels in %s (preset %s, seed %d, number %d).",
            len(truth),
            settings.shape[1],
            settings.shape[0],
            ", ".join(scene.bands),
            self.config.preset,
            seed,
            patch,
        )
        return pipeBase.Struct(
            exposures=exposures, truth=truth, truthImages=truth_to_exposures(scene, exposures), truthFlux=flux
        )
