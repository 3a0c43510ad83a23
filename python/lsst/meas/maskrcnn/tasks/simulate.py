# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated scenes with their truth, as the coadds of a patch."""

from __future__ import annotations

__all__ = [
    "SimulateScenesConfig",
    "SimulateScenesConnections",
    "SimulateScenesTask",
    "expand_config",
    "scene_config",
    "scene_grid",
]

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
import lsst.pipe.base.connectionTypes as cT
from lsst.afw.table import IdFactory
from lsst.daf.butler import DataCoordinate
from lsst.meas.base import IdGenerator, SkyMapIdGeneratorConfig

from ..catalogs.truth import make_truth_catalog, make_truth_flux
from ..ingest.repo import SceneGrid, scene_to_exposures, truth_to_exposures
from ..scenes.config import (
    ArtefactConfig,
    BandConditions,
    MaskRule,
    PopulationConfig,
    PsfConfig,
    SceneConfig,
)
from ..scenes.presets import PRESETS, preset_config
from ..scenes.simulate import simulate_scene
from .mirrored_config import config_class, field_docs, mirrored_fields


def _overrides(source: type, leave_out: tuple[str, ...] = ()) -> Any:
    """Make a configuration with an optional field for each of a dataclass."""
    fields = mirrored_fields(source, leave_out, unset="None takes the preset's.")
    return _config_of(source, fields)


def _overrides_by_band(source: type) -> Any:
    """Make a configuration with a mapping from bands for each field."""
    docs = field_docs(source)
    kinds = typing.get_type_hints(source)
    fields: dict[str, Any] = {
        field.name: pexConfig.DictField(
            f"{docs.get(field.name, field.name)} By band; the preset's for bands that are not given.",
            keytype=str,
            itemtype=kinds[field.name],
            default={},
        )
        for field in dataclasses.fields(source)
        if field.name != "band"
    }
    return _config_of(source, fields)


def _config_of(source: type, fields: Mapping[str, Any]) -> Any:
    name = source.__name__.removesuffix("Config").removeprefix("Band") + "Overrides"
    return config_class(name, f"Changes to the `{source.__name__}` of a preset.", __name__, fields)


_PARTS = {
    "psf": "psf",
    "population": "population",
    "artefacts": "artefacts",
    "mask_rule": "maskRule",
}
"""Fields of this configuration by those of `SceneConfig` that hold a dataclass."""

PopulationOverrides: Any = _overrides(PopulationConfig)
ArtefactOverrides: Any = _overrides(ArtefactConfig)
PsfOverrides: Any = _overrides(PsfConfig)
MaskRuleOverrides: Any = _overrides(MaskRule)
ConditionsOverrides: Any = _overrides_by_band(BandConditions)
SceneOverrides: Any = _overrides(SceneConfig, leave_out=(*_PARTS, "conditions", "keep_models", "name"))


class SimulateScenesConnections(
    pipeBase.PipelineTaskConnections,
    dimensions=("skymap", "tract", "patch"),
    defaultTemplates={"coaddName": "deep"},
):
    """Outputs of `SimulateScenesTask`; there are no inputs.

    Parameters
    ----------
    config : `SimulateScenesConfig`
        Configuration of the task; without ``doTruthFlux`` there is no output
        ``truthFlux``.
    """

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
    pipeBase.PipelineTaskConfig, SceneOverrides, pipelineConnections=SimulateScenesConnections
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
        doc="Source of chance, together with the patch's number; None takes the number of the tract.",
        dtype=int,
        default=None,
        optional=True,
        min=0,
    )
    conditions: Any = pexConfig.ConfigField(doc="Observing conditions by band.", dtype=ConditionsOverrides)
    psf: Any = pexConfig.ConfigField(doc="Scatter and shape of the PSF.", dtype=PsfOverrides)
    population: Any = pexConfig.ConfigField(doc="The sources.", dtype=PopulationOverrides)
    artefacts: Any = pexConfig.ConfigField(doc="Camera and sky effects.", dtype=ArtefactOverrides)
    maskRule: Any = pexConfig.ConfigField(
        doc="Which pixels are a source's truth mask.", dtype=MaskRuleOverrides
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
            scene_config(self)
        except ValueError as error:
            raise pexConfig.FieldValidationError(type(self).preset, self, str(error)) from error


def _given(config: pexConfig.Config, source: type) -> dict[str, Any]:
    """Return the fields of a dataclass that a mirror of it sets."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(source):
        value = getattr(config, field.name, None) if field.name in config._fields else None
        if value is not None and not isinstance(value, pexConfig.Config):
            changes[field.name] = tuple(value) if isinstance(value, pexConfig.listField.List) else value
    return changes


def _changed_conditions(
    config: SimulateScenesConfig, conditions: tuple[BandConditions, ...]
) -> tuple[BandConditions, ...]:
    """Return the observing conditions with the configuration's changes."""
    changes: dict[str, dict[str, Any]] = {condition.band: {} for condition in conditions}
    for name in config.conditions._fields:
        for band, value in getattr(config.conditions, name).items():
            if band not in changes:
                raise ValueError(
                    f"conditions.{name} is given for band {band!r}; preset {config.preset!r} has conditions "
                    f"for {sorted(changes)}."
                )
            changes[band][name] = value
    return tuple(dataclasses.replace(condition, **changes[condition.band]) for condition in conditions)


def scene_config(config: SimulateScenesConfig) -> SceneConfig:
    """Return what a configuration means to the simulator.

    Parameters
    ----------
    config : `SimulateScenesConfig`
        A preset and changes to it.

    Returns
    -------
    scene_config : `~lsst.meas.maskrcnn.scenes.config.SceneConfig`
        The preset with the changes.

    Raises
    ------
    ValueError
        Raised if the settings do not fit each other.
    """
    preset = preset_config(config.preset)
    changes = _given(config, SceneConfig)
    for name, override in _PARTS.items():
        part = getattr(preset, name)
        given = _given(getattr(config, override), type(part))
        changes[name] = dataclasses.replace(part, **given)
    changes["conditions"] = _changed_conditions(config, preset.conditions)
    # The peaks of the truth come from the models, whether these are stored or not.
    return dataclasses.replace(preset, **changes, keep_models=True)


def expand_config(config: SimulateScenesConfig) -> SimulateScenesConfig:
    """Write the preset's numbers into the fields that are left to it.

    Parameters
    ----------
    config : `SimulateScenesConfig`
        A preset and changes to it.

    Returns
    -------
    expanded : `SimulateScenesConfig`
        A configuration for the same scenes, which says so even if the preset
        is another one in a later version.
    """
    scene = scene_config(config)
    expanded = type(config)()
    expanded.update(**{name: getattr(config, name) for name in ("preset", "seed", "doTruthFlux")})
    expanded.idGenerator = config.idGenerator
    for name in SceneOverrides._fields:
        setattr(expanded, name, _plain(getattr(scene, name)))
    for name, override in _PARTS.items():
        for field in getattr(expanded, override)._fields:
            setattr(getattr(expanded, override), field, _plain(getattr(getattr(scene, name), field)))
    for field in expanded.conditions._fields:
        values = {condition.band: getattr(condition, field) for condition in scene.conditions}
        setattr(expanded.conditions, field, values)
    return expanded


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def scene_grid(config: SimulateScenesConfig, skymap: str) -> SceneGrid:
    """Return the sky map that scenes of a configuration belong to.

    Parameters
    ----------
    config : `SimulateScenesConfig`
        A preset and changes to it.
    skymap : `str`
        Name of the sky map.

    Returns
    -------
    grid : `~lsst.meas.maskrcnn.ingest.repo.SceneGrid`
        Its patches have the size of a scene.
    """
    scene = scene_config(config)
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

    def runQuantum(
        self,
        butlerQC: pipeBase.QuantumContext,
        inputRefs: pipeBase.InputQuantizedConnection,
        outputRefs: pipeBase.OutputQuantizedConnection,
    ) -> None:
        """Simulate the patch that the quantum names.

        Parameters
        ----------
        butlerQC : `lsst.pipe.base.QuantumContext`
            What puts the outputs.
        inputRefs : `lsst.pipe.base.InputQuantizedConnection`
            References to the inputs; there are none.
        outputRefs : `lsst.pipe.base.OutputQuantizedConnection`
            References to the outputs.

        Raises
        ------
        lsst.pipe.base.InvalidQuantumError
            Raised if the patch is not of this package's sky maps, or is for
            scenes of another size, or the repository lacks a band.
        """
        data_id = typing.cast(DataCoordinate, butlerQC.quantum.dataId)
        tract, patch = int(data_id["tract"]), int(data_id["patch"])
        grid = scene_grid(self.config, str(data_id["skymap"]))
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
        bands = scene_config(self.config).bands
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

    def run(
        self,
        *,
        tract: int,
        patch: int,
        idGenerator: IdGenerator | None = None,
    ) -> pipeBase.Struct:
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
        settings = scene_config(self.config)
        geometry = scene_grid(self.config, "").patch(tract, patch)
        seed = tract if self.config.seed is None else self.config.seed
        scene = simulate_scene(settings, np.random.default_rng([seed, patch]))
        xy0 = geometry.bbox.getMin()
        exposures = scene_to_exposures(scene, xy0=(xy0.getX(), xy0.getY()), wcs=geometry.wcs)
        factory: IdFactory | None = None
        if idGenerator is not None:
            factory = idGenerator.make_table_id_factory()
        truth = make_truth_catalog(scene, geometry.wcs, xy0, factory)
        flux: Mapping[str, Any] | None = None
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
            exposures=exposures,
            truth=truth,
            truthImages=truth_to_exposures(scene, exposures),
            truthFlux=flux,
        )
