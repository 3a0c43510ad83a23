# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command that trains a model: on simulated scenes, in a repository, and what it refuses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lsst.daf.butler import Butler
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.images.normalize import LuptonSettings
from lsst.meas.maskrcnn.network.model_file import default_model_path, read_metadata, read_model

PROJECT = Path(__file__).resolve().parent.parent
QUICK = ("--steps", "1", "--batch-size", "2", "--jobs", "1", "--device", "cpu", "-c", "crops.size=64")
SHORT = ("--schedule", "published", "-c", "stage_order=['heads']", *QUICK)
SKY = "maskRcnnSim-hsc-500s"


def run(target: Path | str, *options: str) -> int:
    threads = torch.get_num_threads()
    try:
        return maskrcnn("train", [str(target), *options])
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with nine scenes to train on and one for validation."""
    root = tmp_path_factory.mktemp("repo") / "simulated"
    options = ["--shape", "64", "96", "--no-flux", "--split", "train=9,validation=1"]
    assert maskrcnn("simulate", [str(root), "--preset", "hsc-500s", "--count", "10", *options]) == 0
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes") / "here"


def test_scenes(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model.safetensors"
    options = ("--scenes", str(scenes), "--count", "1", "--validate", "1", "--presets", "hsc-500s")
    assert run(output, *options, *SHORT, "--seed", "5", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "1 scenes of 512 x 512 px" in printed and "stars" in printed and "1 steps, about 0 h" in printed
    assert not list(tmp_path.iterdir())
    assert run(output, *options, *SHORT, "--seed", "5") == 0
    printed = capsys.readouterr().out
    assert f"maskrcnn calibrate --model {output} -o model.calibrated.safetensors" in printed
    metadata = read_model(output).metadata
    assert (metadata.name, metadata.bands) == ("model", ("z", "r", "g"))
    assert metadata.training["steps"] == 1
    assert metadata.training["presets"] == ["hsc-500s"]
    assert metadata.training["seed"] == metadata.training["schedule"]["seed"] == 5
    assert metadata.training["last_epoch"]["n_galaxy"] > 0
    assert metadata.normalization == LuptonSettings()
    assert sorted(path.name for path in scenes.iterdir()) == ["hsc-500s_5_00000.npz", "hsc-500s_5_00001.npz"]
    names = {path.name.removeprefix("model.safetensors") for path in tmp_path.iterdir()}
    history = {".history.json", ".history.csv", ".history.png"}
    assert names == {"", ".pictures", "model.best.safetensors", *history}
    assert [path.name for path in (tmp_path / "model.safetensors.pictures").iterdir()] == [
        "validation_0001.png"
    ]


def test_scenes_for_the_model_of_the_package(tmp_path: Path) -> None:
    """By default it is the model that learns more."""
    output = tmp_path / "tuned.safetensors"
    options = ("--scenes", str(tmp_path / "scenes"), "--count", "1", "--presets", "hsc-500s")
    assert run(output, *options, "-c", "stage_order=['adaptAll']", *QUICK) == 0
    metadata, shipped = read_metadata(output), read_metadata(default_model_path())
    assert metadata.architecture.kind == shipped.architecture.kind
    assert metadata.training["initial"]["name"] == shipped.name


def test_repository(repo: Path, tmp_path: Path) -> None:
    options = ("-i", "simulated/hsc-500s", "-d", f"skymap='{SKY}' AND patch > 6")
    changes = ("-c", "maskRcnnTrain:stages['heads'].decay=step", "-c", "use_truth_images=True")
    states = tmp_path / "states"
    arguments = (*options, *changes, *SHORT, "--checkpoints", str(states))
    assert run(repo, "-o", "trained/one", *arguments, "--name", "one") == 0
    butler = Butler.from_config(str(repo), collections="trained/one")
    model = butler.get("maskRcnnModel")
    assert model.metadata.name == "one"
    assert model.metadata.training["patches"] == 2
    assert model.metadata.training["validation_patches"] == 1
    assert model.metadata.training["schedule"]["stages"][0]["decay"] == "step"
    assert list(butler.get("maskRcnnTraining_steps", skymap=SKY)["step"]) == [1]
    assert butler.exists("maskRcnnTraining_epochs", skymap=SKY)
    assert butler.exists("maskRcnnTraining_plot", skymap=SKY)
    assert butler.get("maskRcnnTrain_config").engine.device == "cpu"
    assert butler.get("maskRcnnTrain_metadata", skymap=SKY)["maskRcnnTrain"]["n_steps"] == 1
    assert not states.exists()


def test_fine_tune(repo: Path) -> None:
    """The shipped model, and the schedule for few images."""
    changes = [f"stages['{name}'].{text}" for name in ("adaptHeads", "adaptAll") for text in ("steps=1",)]
    options = [text for change in changes for text in ("-c", change)]
    options += ["-i", "simulated/hsc-500s/train", "-d", f"skymap='{SKY}' AND patch < 3", "--jobs", "1"]
    assert run(repo, "-o", "trained/tuned", "--schedule", "fine-tune", *options, "-c", "crops.size=64") == 0
    metadata = Butler.from_config(str(repo)).get("maskRcnnModel", collections="trained/tuned").metadata
    shipped = read_metadata(default_model_path())
    assert metadata.architecture.kind == shipped.architecture.kind
    assert metadata.training["initial"]["name"] == shipped.name
    assert [stage["name"] for stage in metadata.training["schedule"]["stages"]] == ["adaptHeads", "adaptAll"]


@pytest.mark.slow
def test_torchrun(repo: Path) -> None:
    """Two processes share the work, and one of them stores the model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launcher, "--master-port", str(port), str(PROJECT / "bin" / "train"), str(repo)]
    options = ["-i", "simulated/hsc-500s", "-o", "trained/two", *SHORT]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The model is maskRcnnModel") == 1
    metadata = Butler.from_config(str(repo)).get("maskRcnnModel", collections="trained/two").metadata
    assert metadata.training["machine"]["processes"] == 2
    assert metadata.training["patches"] == 9


def test_refusals(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, and before anything is simulated."""
    output = tmp_path / "model.safetensors"
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for options, message in (
        (("--steps", "0"), "--steps 0"),
        (("--batch-size", "0"), "--batch-size 0"),
        (("--validate", "-1"), "--validate -1"),
        (("--device", "tpu"), "tpu"),
        (("--initial", str(tmp_path / "none.safetensors")), "none.safetensors"),
        (("--initial", str(tmp_path / "broken.safetensors")), "not a model file"),
        (("-c", "crops.sise=3"), "sise"),
        (("-c", "crops.size"), "write it like"),
        (("-c", "stages['heads'].learning_rate=-2"), "learning_rate"),
        (("-C", str(tmp_path / "none.py")), "none.py"),
        (("--schedule", "published", "--steps", "3"), "stages['heads'].steps=3"),
        (("--input", "here"), "--input is for a training in a repository"),
    ):
        assert run(output, "--scenes", str(tmp_path / "scenes"), "--count", "1", *options) == 1, options
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert run(tmp_path / "none" / "model.safetensors", "--scenes", str(tmp_path / "scenes")) == 1
    assert "no folder" in capsys.readouterr().err
    output.write_bytes(b"precious")
    assert run(output, "--scenes", str(tmp_path / "scenes")) == 1
    assert "is there already" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.safetensors", "model.safetensors"]


def test_refusals_in_a_repository(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(repo, *SHORT) == 1
    assert "--input and --output" in capsys.readouterr().err
    for options, message in (
        (("-i", "nothing/here", "-o", "trained/x"), "nothing/here"),
        (("-i", "simulated/hsc-500s", "-o", "simulated/hsc-500s"), "CHAINED"),
        (("-i", "simulated/hsc-500s", "-o", "trained/x", "-d", "patch < 3"), "skymap"),
        (("-i", "simulated/hsc-500s", "-o", "trained/x", "-d", "skymap='no'"), "no maskRcnn_truth"),
        (("-i", "simulated/hsc-500s", "-o", "trained/x", "-c", "bands=['i']"), "no exposure in band 'i'"),
        (("-i", "simulated/hsc-500s/validation", "-o", "trained/x"), "none is left to train on"),
    ):
        assert run(repo, *SHORT, *options) == 1, options
        assert message in capsys.readouterr().err
    butler = Butler.from_config(str(repo))
    assert "trained/x" not in butler.collections.query("*")
