# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The training task: connections, configuration, quanta, and real small trainings."""

from __future__ import annotations

import dataclasses
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scene_list import SceneList

import lsst.pipe.base as pipeBase
import lsst.pipe.base.testUtils as pipelineTests
from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.daf.butler import Butler, DataCoordinate
from lsst.daf.butler.tests import addDatasetType
from lsst.meas.maskrcnn.catalogs.training_data import make_training_scene
from lsst.meas.maskrcnn.catalogs.training_patches import PatchDatasets, group_datasets, split_patches
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.images.normalize import LuptonSettings, ZScoreSettings
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.model_file import (
    MaskRcnnModel,
    ModelMetadata,
    default_model_path,
    load_model,
    write_model,
)
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.tasks.simulate import SimulateScenesConfig, SimulateScenesTask
from lsst.meas.maskrcnn.tasks.train import (
    MaskRcnnTrainConfig,
    MaskRcnnTrainConnections,
    MaskRcnnTrainTask,
    TrainingDataError,
    TrainingDivergedError,
    TrainingPatch,
)
from lsst.meas.maskrcnn.tasks.train_config import StageConfig
from lsst.meas.maskrcnn.train.augment import AugmentSettings
from lsst.meas.maskrcnn.train.dataset import CropSettings, CropSource
from lsst.meas.maskrcnn.train.stages import TrainSettings
from lsst.meas.maskrcnn.train.stages import published_stages as stages_of_engine
from lsst.pex.config import Config, ConfigDictField, ConfigField, FieldValidationError
from lsst.pipe.base.configOverrides import ConfigOverrides
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

PROJECT = Path(__file__).resolve().parent.parent
BANDS = ("z", "r", "g")
HEIGHT, WIDTH = 96, 128


def tiny(steps: int, learning_rate: float = 0.03) -> MaskRcnnTrainConfig:
    """A network and a schedule that a test has time for."""
    config = MaskRcnnTrainConfig()
    config.stages["tiny"] = StageConfig()
    stage = config.stages["tiny"]
    stage.update(steps=steps, batch_size=1, learning_rate=learning_rate, warmup_steps=10, decay="cosine")
    config.augment.set_from(AugmentSettings(turns=False))
    config.stage_order = ["tiny"]
    config.engine.update(steps_per_epoch=steps, precision="float32", device="cpu")
    config.crops.size = 128
    return config


TINY = {
    "returned_layers": (1, 2),
    "fpn_channels": 32,
    "anchor_sizes": ((8.0,), (16.0,), (32.0,)),
    "box_features": 64,
    "mask_channels": (32,),
    "rpn_batch": 64,
    "roi_batch": 32,
    "proposals_train": 100,
    "proposals_test": 100,
}


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the light network one that a test has time for."""
    light = NetworkSpec.light
    monkeypatch.setattr(
        NetworkSpec, "light", staticmethod(lambda n_bands: light(n_bands).model_copy(update=TINY))
    )


def simulate(patch: int, **changes: Any) -> TrainingPatch:
    config = SimulateScenesConfig()
    config.update(preset="hsc-500s-noiseless", shape=[HEIGHT, WIDTH], doTruthFlux=False)
    config.population.update(star_density=60.0, galaxy_density=60.0, mag_limit=24.0)
    config.population.update(**changes)
    made = SimulateScenesTask(config=config).run(tract=1, patch=patch)
    return TrainingPatch(f"patch {patch}", made.exposures, made.truth, made.truthImages)


@pytest.fixture(scope="module")
def patch() -> TrainingPatch:
    return simulate(3)


@pytest.fixture(scope="module")
def model() -> MaskRcnnModel:
    """A model to start from, of the architecture of `tiny`."""
    spec = NetworkSpec.light(3).model_copy(update=TINY)
    metadata = ModelMetadata(
        name="before",
        architecture=spec,
        bands=("i", "r", "g"),
        normalization=ZScoreSettings(softening=2.0),
        pixel_scale=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MaskRcnnModel.from_network(build_network(metadata.architecture), metadata)


def override(config: Config, *texts: str) -> None:
    """Change a configuration as the command line does."""
    overrides = ConfigOverrides()
    for text in texts:
        overrides.addValueOverride(*text.split("=", 1))
    overrides.applyTo(config)


# --- connections and configuration


def test_connections() -> None:
    pipelineTests.lintConnections(MaskRcnnTrainConnections)
    config = MaskRcnnTrainConfig()
    connections = MaskRcnnTrainConnections(config=config)
    assert connections.dimensions == {"skymap"}
    assert connections.inputs == {"exposures", "truth"}
    assert not connections.prerequisiteInputs
    assert connections.outputs == {"model", "steps", "epochs", "plot"}
    # What the deblender asks for.
    assert connections.model.name == "maskRcnnModel"
    assert not connections.model.dimensions
    config.update(use_truth_images=True, use_initial_model=True, do_plot=False)
    connections = MaskRcnnTrainConnections(config=config)
    assert connections.inputs == {"exposures", "truth", "truthImages"}
    assert connections.prerequisiteInputs == {"initialModel"}
    assert connections.outputs == {"model", "steps", "epochs"}


def test_everything_is_documented() -> None:
    def check(config: Config) -> None:
        for name, field in config._fields.items():
            assert len(field.doc.strip()) > 8, name
            if isinstance(field, ConfigField):
                check(getattr(config, name))
            elif isinstance(field, ConfigDictField):
                for item in getattr(config, name).values():
                    check(item)

    check(MaskRcnnTrainConfig())


def test_number_of_settings() -> None:
    """Only what a user can choose is in the configuration."""

    def count(config: Config) -> int:
        total = 0
        for name, field in config._fields.items():
            if isinstance(field, ConfigField) and name != "connections":
                total += count(getattr(config, name))
            elif isinstance(field, ConfigDictField):
                total += count(field.itemtype())
            else:
                total += name not in ("connections", "saveLogOutput")
        return total

    config = MaskRcnnTrainConfig()
    assert count(config) + count(config.normalize["lupton"]) <= 66


def test_default_is_the_published_schedule() -> None:
    stages = MaskRcnnTrainConfig().settings().stages
    assert list(stages) == list(stages_of_engine())
    assert [(stage.trainable, stage.epochs, stage.learning_rate) for stage in stages] == [
        ("heads", 15, 1e-3),
        ("all", 10, 1e-4),
        ("all", 10, 1e-5),
        ("all", 15, 1e-6),
    ]
    assert MaskRcnnTrainConfig().augment.settings() == AugmentSettings.published()
    # A configuration that leaves the numbers of the engine alone keeps them.
    defaults = TrainSettings()
    settings = MaskRcnnTrainConfig().settings()
    assert dataclasses.replace(settings, stages=defaults.stages) == defaults


def test_overrides_from_the_command_line() -> None:
    config = MaskRcnnTrainConfig()
    override(
        config,
        "stages['heads'].learning_rate=2e-3",
        'stages["all2"].steps=7',
        "augment.blur_range=[0.5, 0.6]",
        "stage_order=['all2','heads']",
        "engine.minutes=1.5",
        "architecture.preset=published",
        "architecture.backbone=resnet34",
        "crops.size=200",
    )
    config.validate()
    settings = config.settings()
    assert [stage.name for stage in settings.stages] == ["all2", "heads"]
    assert settings.stages[0].steps == 7
    assert config.augment.settings().blur_range == (0.5, 0.6)
    assert settings.stages[1].learning_rate == 2e-3
    assert settings.minutes == 1.5
    assert config.architecture.spec(4).fpn_channels == 256
    assert config.architecture.spec(4).backbone == "resnet34"
    # Other configurations keep their own.
    assert MaskRcnnTrainConfig().settings().stages[0].learning_rate == 1e-3
    with pytest.raises(AttributeError, match="no 'nix', but 'heads', 'all1'"):
        override(config, "stages['nix'].steps=1")
    with pytest.raises(AttributeError, match="stagez"):
        override(config, "stagez['heads'].steps=1")


def test_configuration_survives_the_butler() -> None:
    config = MaskRcnnTrainConfig()
    config.stages["more"] = StageConfig()
    config.stage_order.append("more")
    config.stages["heads"].steps = 9
    config.augment.turns = False
    stream = io.StringIO()
    config.saveToStream(stream)
    again = MaskRcnnTrainConfig()
    again.loadFromString(stream.getvalue())
    assert again == config
    assert again.settings() == config.settings()


@pytest.mark.parametrize(
    "change, message",
    [
        ("stage_order=['heads','nix']", "no stages ['nix']"),
        ("stage_order=['heads','heads']", "twice"),
        ("stage_order=[]", "list length"),
        ("bands=['r','r']", "twice"),
        ("bands=[]", "at least one"),
        ("stages['heads'].accumulate=3", "no multiple"),
        ("stages['heads'].trainable='('", "regular expression"),
        ("augment.blur_range=[2.0, 1.0]", "lower one first"),
        ("connections.initialModel=maskRcnnModel", "cannot make what it needs"),
        ("initial_model_uri=a.safetensors", "one model only"),
    ],
)
def test_validate(change: str, message: str) -> None:
    config = MaskRcnnTrainConfig()
    config.use_initial_model = change.startswith(("connections", "initial_model_uri"))
    config.validate()
    override(config, change)
    with pytest.raises(FieldValidationError) as caught:
        config.validate()
    assert message in str(caught.value)


@pytest.mark.parametrize("name, initial", [("train_four_stages", False), ("fine_tune", True)])
def test_files_of_overrides(name: str, initial: bool) -> None:
    config = MaskRcnnTrainConfig()
    config.load(str(PROJECT / "config" / f"{name}.py"))
    config.validate()
    stages = config.settings().stages
    task = MaskRcnnTrainTask(config=config)
    start = task.initial_model()
    assert (start is not None) == initial
    if start is not None:
        expected = load_model().metadata
        assert start.metadata == expected
        made = task._make_metadata(task.bands(start), 0.2, start, {})
        assert made.architecture == expected.architecture
        assert made.normalization == expected.normalization
        # Gentler than its own training.
        assert max(stage.learning_rate for stage in stages) < 5e-4
    else:
        assert {stage.trainable for stage in stages} == {"all"}
        assert len(stages) == 4
        # Random weights need large steps at first, and small ones at the end.
        assert stages[0].learning_rate >= 0.01 and stages[0].warmup_steps > 0
        assert stages[-1].learning_rate < 1e-3
        assert config.augment.turns


# --- which patches


def make_datasets(runs: Mapping[int, str]) -> list[PatchDatasets]:
    return [PatchDatasets(f"sky-0-{number}", run, {}, None, {}) for number, run in runs.items()]


def test_split_by_collection() -> None:
    runs = {0: "sim/seed1/train", 1: "sim/seed1/validation", 2: "sim/seed1/test", 3: "u/me/train"}
    training, validation = split_patches(
        make_datasets(runs), validation_runs=["*/validation"], excluded_runs=["*/test"], fraction=0.9
    )
    assert [item.name for item in training] == ["sky-0-0", "sky-0-3"]
    assert [item.name for item in validation] == ["sky-0-1"]


def test_split_by_fraction() -> None:
    datasets = make_datasets(dict.fromkeys(range(400), "coadds"))
    training, validation = split_patches(datasets, fraction=0.25)
    assert sorted([*training, *validation], key=lambda item: item.name) == sorted(
        datasets, key=lambda item: item.name
    )
    assert 70 <= len(validation) <= 130
    # A patch stays where it is when others come or go.
    names = {item.name for item in validation}
    _, fewer = split_patches(datasets[100:], fraction=0.25)
    assert {item.name for item in fewer} == names & {item.name for item in datasets[100:]}
    _, limited = split_patches(datasets, fraction=0.25, max_validation=7)
    assert len(limited) == 7
    assert {item.name for item in limited} <= names
    for few, expected in ((1, (1, 0)), (2, (1, 1)), (3, (2, 1))):
        parts = split_patches(datasets[:few], fraction=1e-6)
        assert tuple(map(len, parts)) == expected
    assert len(split_patches(datasets, fraction=0.0)[1]) == 0


def test_no_patch_is_left() -> None:
    task = MaskRcnnTrainTask(config=MaskRcnnTrainConfig())
    with pytest.raises(TrainingDataError, match="none is left to train on") as caught:
        task.select(make_datasets({0: "a/test", 1: "a/test"}))
    assert caught.value.metadata["patches"] == "sky-0-0 sky-0-1"


# --- run


def test_overfit(patch: TrainingPatch) -> None:
    """A scene that is seen often enough is known."""
    before = torch.get_rng_state()
    task = MaskRcnnTrainTask(config=tiny(160))
    result = task.run(patches=[patch], validation=[patch])
    loss = np.asarray(result.steps["loss"])
    assert loss[-1] < 0.6 * loss[0]
    assert result.epochs["ap50"][-1] > 0.8
    assert result.epochs["n_galaxy"][-1] >= 3
    assert list(result.steps.colnames[:3]) == ["step", "epoch", "stage"]
    assert set(result.steps["stage"]) == {"tiny"}
    assert result.steps["step"][-1] == 160
    assert isinstance(result.plot, Figure)
    assert len(result.plot.axes) == 3
    metadata = result.model.metadata
    assert metadata.bands == BANDS
    assert metadata.pixel_scale == pytest.approx(0.168, rel=1e-3)
    assert metadata.architecture.psf_channels
    assert metadata.normalization == LuptonSettings()
    assert metadata.training["patches"] == 1
    assert task.metadata["validation_ap50"] == result.epochs["ap50"][-1]
    assert task.metadata["n_steps"] == 160
    assert task.metadata["n_patches"] == task.metadata["n_validation_patches"] == 1
    torch.testing.assert_close(torch.get_rng_state(), before)


def test_handles_and_truth_images(patch: TrainingPatch) -> None:
    """What is loaded late, and from another order, is the same."""
    handles = TrainingPatch(
        patch.name,
        {
            band: pipeBase.InMemoryDatasetHandle(patch.exposures[band], storageClass="ExposureF")
            for band in reversed(BANDS)
        },
        pipeBase.InMemoryDatasetHandle(patch.truth, storageClass="SourceCatalog"),
    )
    plain = TrainingPatch(patch.name, patch.exposures, patch.truth)
    config = tiny(2)
    config.do_plot = False
    first, second = (MaskRcnnTrainTask(config=config).run(patches=[item]) for item in (plain, handles))
    assert first.plot is None
    for name, value in first.model.state.items():
        torch.testing.assert_close(second.model.state[name], value, rtol=0, atol=0)
    assert len(first.epochs)
    assert "ap50" not in first.epochs.colnames


def test_start_from_a_model(patch: TrainingPatch, model: MaskRcnnModel, tmp_path: Path) -> None:
    path = tmp_path / "before.safetensors"
    write_model(model, path)
    config = tiny(1, learning_rate=1e-9)
    config.initial_model_uri = path.as_uri()
    # The data call the bands by other names.
    config.bands = list(BANDS)
    trained = MaskRcnnTrainTask(config=config).run(patches=[patch]).model
    assert trained.metadata.bands == BANDS
    assert trained.metadata.architecture == model.metadata.architecture
    assert trained.metadata.normalization == model.metadata.normalization
    assert trained.metadata.training["initial"]["name"] == "before"
    weight = "roi_heads.box_predictor.cls_score.weight"
    torch.testing.assert_close(trained.state[weight], model.state[weight], rtol=1e-3, atol=1e-4)


def test_start_from_the_model_of_the_package(patch: TrainingPatch) -> None:
    """In the bands of the patches, whatever they are; the result takes any."""
    config = tiny(2, learning_rate=1e-5)
    config.initial_model_uri = default_model_path().as_uri()
    config.crops.size = 64
    names = {"z": "i", "r": "r", "g": "u"}
    exposures = {names[band]: exposure for band, exposure in patch.exposures.items()}
    given = TrainingPatch("renamed", exposures, patch.truth)
    task = MaskRcnnTrainTask(config=config)
    results = task.run(patches=[given], validation=[given])
    assert task.metadata.getArray("bands") == ["i", "r", "u"]
    metadata = results.model.metadata
    assert results.model.takes_any_bands and metadata.bands == ()
    assert metadata.training["source"]["wavelengths"] == [765.0, 625.0, 370.0]
    (epoch,) = results.epochs
    # The network was good before: it still finds the sources of the patch.
    assert epoch["completeness"] > 0.6 and epoch["ap50"] > 0.4
    assert metadata.architecture.detection_score == pytest.approx(min(epoch["score_97"], 0.99), abs=1e-4)
    config.stages["tiny"].learning_rate = 0.02
    with pytest.raises(ValueError, match="0.02 of stage 'tiny' is one for stochastic.*at most 0.005"):
        MaskRcnnTrainTask(config=config).run(patches=[given])
    config.bands = ["i", "odd"]
    with pytest.raises(ValueError, match="'odd' is not known"):
        odd = {**exposures, "odd": exposures["r"]}
        MaskRcnnTrainTask(config=config).run(patches=[TrainingPatch("odd", odd, patch.truth)])


def test_interrupted_training_goes_on(
    patch: TrainingPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(6)
    config.engine.update(checkpoint_minutes=0.0, steps_per_epoch=2)
    whole = MaskRcnnTrainTask(config=config).run(patches=[patch]).model
    config.checkpoint_dir = str(tmp_path / "states")

    class Killed(BaseException):
        pass

    def kill(self: object, message: str, *arguments: Any) -> bool:
        if message.startswith("Step") and arguments[0]["step"] == 4:
            raise Killed
        return False

    with monkeypatch.context() as patched:
        patched.setattr("lsst.meas.maskrcnn.tasks.train.PeriodicLogger.log", kill)
        with pytest.raises(Killed):
            MaskRcnnTrainTask(config=config).run(patches=[patch], label="a sky")
    left = sorted(path.name for path in (tmp_path / "states").iterdir())
    assert left == ["a_sky.safetensors.checkpoint", "a_sky.safetensors.history.csv"]
    other = tiny(7)
    other.checkpoint_dir = config.checkpoint_dir
    with pytest.raises(pipeBase.InvalidQuantumError, match="is 6 there, 7 here"):
        MaskRcnnTrainTask(config=other).run(patches=[patch], label="a sky")
    result = MaskRcnnTrainTask(config=config).run(patches=[patch], label="a sky")
    assert list(result.epochs["step"]) == [2, 4, 6]
    for name, value in whole.state.items():
        torch.testing.assert_close(result.model.state[name], value, rtol=0, atol=0)
    # The state stays until the results are stored.
    assert list((tmp_path / "states").iterdir())
    MaskRcnnTrainTask(config=config).remove_state("a sky")
    assert not list((tmp_path / "states").iterdir())


def test_divergence_is_named(patch: TrainingPatch, tmp_path: Path) -> None:
    config = tiny(40, learning_rate=1e30)
    config.stages["tiny"].warmup_steps = 0
    config.engine.checkpoint_minutes = 0.0
    config.checkpoint_dir = str(tmp_path)
    with pytest.raises(TrainingDivergedError, match="not finite at step") as caught:
        MaskRcnnTrainTask(config=config).run(patches=[patch], label="sky")
    metadata = caught.value.metadata
    assert 0 < metadata["step"] < 40
    assert "patch_3" in metadata["images"]
    assert metadata["checkpoint"] == str(tmp_path / "sky.safetensors.checkpoint")
    assert (tmp_path / "sky.safetensors.checkpoint").exists()
    config.checkpoint_dir = None
    with pytest.raises(TrainingDivergedError, match="set config.checkpoint_dir") as caught:
        MaskRcnnTrainTask(config=config).run(patches=[patch])
    assert caught.value.metadata["checkpoint"] == ""


def test_missing_band(patch: TrainingPatch, caplog: pytest.LogCaptureFixture) -> None:
    without = {band: exposure for band, exposure in patch.exposures.items() if band != "r"}
    lacking = TrainingPatch("lacking", without, patch.truth)
    config = tiny(1)
    with pytest.raises(TrainingDataError, match="lacking has no exposure in band 'r'") as caught:
        MaskRcnnTrainTask(config=config).run(patches=[patch, lacking])
    assert caught.value.metadata["patches"] == "lacking"
    config.skip_incomplete = True
    with caplog.at_level(logging.WARNING):
        assert MaskRcnnTrainTask(config=config).run(patches=[lacking, patch]).model
    assert "lacking is skipped" in caplog.text
    with pytest.raises(TrainingDataError, match="no patches to train on"):
        MaskRcnnTrainTask(config=config).run(patches=[lacking])
    config = tiny(1)
    config.use_truth_images = True
    dark = TrainingPatch("dark", patch.exposures, patch.truth)
    with pytest.raises(TrainingDataError, match="dark has no truth image in band 'z', 'r', 'g'"):
        MaskRcnnTrainTask(config=config).run(patches=[patch, dark])


def test_nothing_to_learn(patch: TrainingPatch) -> None:
    empty = TrainingPatch("empty", patch.exposures, SourceCatalog(patch.truth.schema))
    with pytest.raises(TrainingDataError, match="no true source in any of the 1 patches"):
        MaskRcnnTrainTask(config=tiny(1)).run(patches=[empty])
    # A patch without sources is as good as another, beside one with.
    assert MaskRcnnTrainTask(config=tiny(1)).run(patches=[empty, patch]).model
    with pytest.raises(TrainingDataError, match="no patches to train on"):
        MaskRcnnTrainTask(config=tiny(1)).run(patches=[])


def test_epochs_and_crops_of_large_patches(patch: TrainingPatch) -> None:
    """An epoch sees the area of all patches once, whatever is cut in a row."""
    config = tiny(1)
    config.crops.update(size=32, crops_per_scene=5)
    config.stages["tiny"].update(steps=None, epochs=2, batch_size=4)
    config.engine.steps_per_epoch = None
    result = MaskRcnnTrainTask(config=config).run(patches=[patch])
    # 96 x 128 px are twelve crops of 32 px, or three batches of four.
    assert list(result.epochs["step"]) == [3, 6]
    assert result.model.metadata.training["source"]["crops"]["crops_per_scene"] == 5
    scenes = SceneList([make_training_scene(patch.exposures, patch.truth)])
    for n_pixels, given, expected in ((512.0**2, None, 2), (3400.0**2, None, 11), (3400.0**2, 5, 5)):
        settings = CropSettings(crops_per_scene=given)
        source = CropSource(scenes, LuptonSettings(), settings, n_pixels=n_pixels)
        assert source.crops_per_scene == expected


def test_stage_without_a_layer(patch: TrainingPatch) -> None:
    config = tiny(1)
    config.stages["tiny"].trainable = "layer9"
    with pytest.raises(ValueError, match="'layer9', which is found in the name of no parameter"):
        MaskRcnnTrainTask(config=config).run(patches=[patch])


def test_unusable_inputs(patch: TrainingPatch, model: MaskRcnnModel, tmp_path: Path) -> None:
    altered = {band: exposure.clone() for band, exposure in patch.exposures.items()}
    altered["g"].setPhotoCalib(None)
    with pytest.raises(TrainingDataError, match="bare cannot be trained on.*'g' has no PhotoCalib"):
        MaskRcnnTrainTask(config=tiny(1)).run(patches=[TrainingPatch("bare", altered, patch.truth)])
    altered = {band: exposure.clone() for band, exposure in patch.exposures.items()}
    for exposure in altered.values():
        exposure.setWcs(None)
    with pytest.raises(TrainingDataError, match="lost cannot be trained on.*has no WCS"):
        MaskRcnnTrainTask(config=tiny(1)).run(patches=[TrainingPatch("lost", altered, patch.truth)])
    config = tiny(1)
    config.bands = ["r", "g"]
    with pytest.raises(pipeBase.InvalidQuantumError, match="as many bands"):
        MaskRcnnTrainTask(config=config).run(patches=[patch], initialModel=model)
    config = tiny(1)
    config.initial_model_uri = str(tmp_path / "none.safetensors")
    with pytest.raises(pipeBase.InvalidQuantumError, match="none.safetensors"):
        MaskRcnnTrainTask(config=config).run(patches=[patch])
    if not torch.cuda.is_available():
        config = tiny(1)
        config.engine.device = "cuda"
        with pytest.raises(pipeBase.InvalidQuantumError, match="cuda"):
            MaskRcnnTrainTask(config=config).run(patches=[patch])


# --- quanta


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A repository with four scenes, one of them for validation."""
    root = str(tmp_path_factory.mktemp("repo") / "simulated")
    options = ["--shape", str(HEIGHT), str(WIDTH), "--no-flux", "--split", "train=9,validation=1"]
    population = ["-c", "population.star_density=60", "-c", "population.galaxy_density=60"]
    assert maskrcnn("simulate", [root, "--preset", "hsc-500s", "--count", "10", *options, *population]) == 0
    return root


SKY = "maskRcnnSim-hsc-500s"
OUTPUTS = {
    "model": ("maskRcnnModel", (), "MaskRcnnModel"),
    "steps": ("maskRcnnTraining_steps", ("skymap",), "ArrowAstropy"),
    "epochs": ("maskRcnnTraining_epochs", ("skymap",), "ArrowAstropy"),
    "plot": ("maskRcnnTraining_plot", ("skymap",), "Plot"),
}


def run_quantum(
    root: str, run: str, model: MaskRcnnModel | None, mock_run: bool = True, **fields: Any
) -> Mapping[str, Any]:
    """Run a quantum, by default with `run` replaced; returns the arguments of that."""
    simulated = Butler.from_config(root, collections=["simulated/hsc-500s"])
    butler = Butler.from_config(root, run=run)
    config = tiny(1)
    config.update(**fields)
    task = MaskRcnnTrainTask(config=config)
    for name, dimensions, storage in OUTPUTS.values():
        addDatasetType(butler, name, set(dimensions), storage)
    data_id = butler.registry.expandDataId(skymap=SKY)
    empty = DataCoordinate.make_empty(butler.dimensions)
    refs: dict[str, Any] = {"steps": data_id, "epochs": data_id, "model": empty}
    if config.do_plot:
        refs["plot"] = data_id
    patches = [{"skymap": SKY, "tract": 1, "patch": number} for number in (9, 0)]
    bands = [{**patch, "band": band} for patch in patches for band in "grz"]
    refs.update(truth=patches, exposures=bands)
    if config.use_truth_images:
        refs["truthImages"] = bands
    # Quanta of a test read from their own collection.
    for name in ("truth", "exposures", "truthImages"):
        for ref in refs.get(name, ()):
            dataset_type = getattr(MaskRcnnTrainConnections(config=config), name).name
            butler.put(simulated.get(dataset_type, ref), dataset_type, ref)
    if model is not None:
        addDatasetType(butler, "maskRcnnInitialModel", set(), "MaskRcnnModel")
        butler.put(model, "maskRcnnInitialModel")
        refs["initialModel"] = empty
    quantum = pipelineTests.makeQuantum(task, butler, data_id, refs)
    mock = pipelineTests.runTestQuantum(task, butler, quantum, mockRun=mock_run)
    if not mock_run:
        return {"butler": butler}
    mock.assert_called_once()
    assert not mock.call_args.args
    return mock.call_args.kwargs


def test_quantum(repo: str) -> None:
    arguments = run_quantum(repo, "one", None)
    names = [item.name for item in (*arguments["patches"], *arguments["validation"])]
    assert sorted(names) == [f"{SKY}-1-0", f"{SKY}-1-9"]
    assert len(arguments["patches"]) == 1
    assert arguments["initialModel"] is None
    assert arguments["label"] == SKY
    first = arguments["patches"][0]
    assert set(first.exposures) == set(BANDS)
    assert first.truth_images is None
    # Nothing is read before it is its turn.
    image = first.exposures["r"].get()
    assert isinstance(image, ExposureF)
    assert image.getFilter().bandLabel == "r"
    assert isinstance(first.truth.get(), SourceCatalog)


def test_a_failed_put_loses_no_training(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / f"{SKY}.safetensors.checkpoint"

    def fail(*_: Any) -> None:
        raise OSError("the repository is full")

    with monkeypatch.context() as patched:
        patched.setattr(pipeBase.QuantumContext, "put", fail)
        with pytest.raises(OSError, match="is full"):
            run_quantum(repo, "full", None, mock_run=False, checkpoint_dir=str(tmp_path))
    assert state.exists()
    with caplog.at_level(logging.INFO):
        done = run_quantum(repo, "emptied", None, mock_run=False, checkpoint_dir=str(tmp_path))
    assert "Going on at step 1 of 1" in caplog.text
    assert list(done["butler"].get("maskRcnnTraining_steps", skymap=SKY)["step"]) == [1]
    # pipetask may be killed before it has stored the metadata, and then begins anew.
    assert state.exists()
    engine = tiny(1).engine
    engine.seed = 8
    with caplog.at_level(logging.INFO):
        run_quantum(repo, "other", None, mock_run=False, checkpoint_dir=str(tmp_path), engine=engine)
    assert "is removed" in caplog.text


def test_quantum_with_all_inputs(repo: str, model: MaskRcnnModel) -> None:
    arguments = run_quantum(repo, "two", model, use_truth_images=True, use_initial_model=True, do_plot=False)
    assert arguments["initialModel"].metadata == model.metadata
    assert set(arguments["patches"][0].truth_images) == set(BANDS)


def test_quantum_without_validation(repo: str) -> None:
    config = tiny(1).validation
    config.update(runs=[], fraction=0.0)
    arguments = run_quantum(repo, "three", None, validation=config)
    assert [item.name for item in arguments["patches"]] == [f"{SKY}-1-0", f"{SKY}-1-9"]
    assert not arguments["validation"]


def test_threads_are_those_of_the_quantum(repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    run_quantum(repo, "four", None)
    assert seen == [1, before]


def test_group_datasets_by_patch(repo: str) -> None:
    """Whatever their order, and whatever is missing."""
    butler = Butler.from_config(repo, collections="simulated/hsc-500s")
    truth = butler.query_datasets("maskRcnn_truth")
    exposures = butler.query_datasets("deepCoadd_calexp")
    kept = [ref for ref in reversed(exposures) if (ref.dataId["patch"], ref.dataId["band"]) != (2, "r")]
    grouped = group_datasets(kept, reversed(truth))
    assert [item.truth.dataId["patch"] for item in grouped] == list(range(10))
    assert set(grouped[2].exposures) == {"z", "g"}
    assert grouped[9].run.endswith("/validation")
    for item in grouped:
        assert {ref.dataId["patch"] for ref in item.exposures.values()} == {item.truth.dataId["patch"]}


def execute(root: str, name: str, inputs: list[str], output: str, where: str, *overrides: str) -> Butler:
    """Run a pipeline as pipetask does, in this process."""
    pipeline = pipeBase.Pipeline.from_uri(str(PROJECT / "pipelines" / f"{name}.yaml"))
    for text in overrides:
        label, field, value = text.replace(":", "=", 1).split("=", 2)
        pipeline.addConfigOverride(label, field, value)
    if name == "MaskRcnnTrain":
        pipeline.addConfigFile("maskRcnnTrain", str(PROJECT / "config" / "train_four_stages.py"))
        pipeline.addConfigOverride("maskRcnnTrain", "stage_order", ["first"])
        pipeline.addConfigOverride("maskRcnnTrain", "stages['first'].steps", 2)
        pipeline.addConfigOverride("maskRcnnTrain", "stages['first'].batch_size", 1)
    butler = SimplePipelineExecutor.prep_butler(root, inputs, output)
    executor = SimplePipelineExecutor.from_pipeline(pipeline, where=where, butler=butler)
    executor.run(register_dataset_types=True, save_versions=False)
    return butler


def test_the_deblender_takes_the_model(repo: str) -> None:
    """The collection of a training is all that the deblender needs to use its model."""
    butler = execute(
        repo,
        "MaskRcnnTrain",
        ["simulated/hsc-500s"],
        "u/test/train",
        f"skymap='{SKY}' AND patch > 5",
        "maskRcnnTrain:name=mine",
        "maskRcnnTrain:engine.steps_per_epoch=1",
        "maskRcnnTrain:use_truth_images=True",
        "maskRcnnTrain:validation.fraction=0.2",
    )
    assert butler.get("maskRcnnModel").metadata.name == "mine"
    assert list(butler.get("maskRcnnTraining_steps", skymap=SKY)["step"]) == [2]
    epochs = butler.get("maskRcnnTraining_epochs", skymap=SKY)
    assert list(epochs["epoch"]) == [1, 2]
    assert epochs["n_galaxy"][0] > 0
    assert butler.exists("maskRcnnTraining_plot", skymap=SKY)
    metadata = butler.get("maskRcnnTrain_metadata", skymap=SKY)
    assert metadata["maskRcnnTrain"]["n_patches"] == 3
    assert metadata["maskRcnnTrain"]["n_validation_patches"] == 1

    found = execute(
        repo,
        "MaskRcnnDeblend",
        ["simulated/hsc-500s", "u/test/train"],
        "u/test/found",
        f"skymap='{SKY}' AND tract=1 AND patch=9",
        "maskRcnnDeblend:detection.score_threshold=0.9",
    )
    refs = found.query_datasets("deepCoadd_maskRcnnCatalog")
    assert len(refs) == 1
    done = found.get("maskRcnnDeblend_metadata", refs[0].dataId)
    assert done["maskRcnnDeblend"]["model"] == "mine"
