# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Killed and resumed: a training goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import toy_training
from toy_training import METADATA, SPEC, STAGES, Recorder, ToySource

from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, read_model
from lsst.meas.maskrcnn.train import checkpoint as checkpoint_module
from lsst.meas.maskrcnn.train.checkpoint import (
    CheckpointError,
    TrainingState,
    differences,
    read_checkpoint,
    write_checkpoint,
)
from lsst.meas.maskrcnn.train.loop import train
from lsst.meas.maskrcnn.train.stages import TrainSettings

N_STEPS = 13
SETTINGS = TrainSettings(stages=STAGES, precision="float32", checkpoint_minutes=0.0, log_every=1)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Weights (float32) and history of a run that nothing happened to."""
    recorder = Recorder()
    output = tmp_path_factory.mktemp("whole") / "m.safetensors"
    result = train(ToySource(), METADATA, SETTINGS, output, device="cpu", validate=recorder)
    assert result.steps == N_STEPS
    return recorder.states[-1], result


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def interrupt(output, at, settings=SETTINGS, source=None, **arguments):
    """Train until the step before the given one is in a checkpoint."""

    def stop(step, steps, row):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        train(source or ToySource(), METADATA, settings, output, device="cpu", progress=stop, **arguments)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_at_a_random_step(tmp_path, precision):
    """By SIGKILL, which nothing can catch; the weights are bit for bit those of a run that was not killed."""
    rng = np.random.default_rng()
    at = int(rng.integers(1, N_STEPS))
    output = tmp_path / "m.safetensors"
    command = [sys.executable, toy_training.__file__, str(output), precision, str(N_STEPS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.split()[1] == str(at + 1):
                break
        time.sleep(rng.uniform(0.0, 0.1))
        process.kill()
        process.wait()
    assert process.returncode == -9, f"at step {at}"
    assert not output.exists() and (tmp_path / "m.safetensors.checkpoint").exists()

    (tmp_path / "whole").mkdir()
    toy_training.main(str(tmp_path / "whole" / "m.safetensors"), precision)
    toy_training.main(str(output), precision)
    for name in ("m.safetensors", "m.float32"):
        one, other = (safetensors.torch.load_file(folder / name) for folder in (tmp_path, tmp_path / "whole"))
        assert_same(one, other)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        "m.float32",
        "m.safetensors",
        "m.safetensors.history.csv",
        "m.safetensors.history.json",
    ]


def test_interrupted_after_every_step(tmp_path, uninterrupted):
    """Also between two stages and within an accumulated one; the history is that of one run too."""
    weights, whole = uninterrupted
    output = tmp_path / "m.safetensors"
    for at in range(2, N_STEPS + 1):
        interrupt(output, at, validate=Recorder())
    recorder = Recorder()
    result = train(ToySource(), METADATA, SETTINGS, output, device="cpu", validate=recorder)
    assert_same(recorder.states[-1], weights)
    assert_same(result.model.state, whole.model.state)
    times = ("elapsed", "seconds", "data_seconds")
    for one, other in ((result.history, whole.history), (result.epochs, whole.epochs)):
        one, other = (
            [{k: v for k, v in row.items() if k not in times} for row in rows] for rows in (one, other)
        )
        assert one == other
    assert result.model.metadata.training["crops"] == whole.model.metadata.training["crops"]


def test_a_checkpoint_at_the_end_of_an_epoch(tmp_path, monkeypatch):
    """Even if it is not time for one, unless writing takes long."""
    settings = replace(SETTINGS, checkpoint_minutes=1e9, steps_per_epoch=2)
    written = []
    write = checkpoint_module.write_checkpoint

    def count(path, tensors, run, state):
        written.append(state.step)
        write(path, tensors, run, state)

    monkeypatch.setattr("lsst.meas.maskrcnn.train.loop.write_checkpoint", count)
    train(ToySource(), METADATA, settings, tmp_path / "m.safetensors", device="cpu")
    assert written[0] == 2 and all(step in (2, 4, 6, 8, 10) for step in written[:3])
    written.clear()
    monkeypatch.setattr("lsst.meas.maskrcnn.train.loop._WRITE_SHARE", 1e9)
    train(ToySource(), METADATA, settings, tmp_path / "n.safetensors", device="cpu")
    assert written == [2]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    output = tmp_path / "m.safetensors"
    interrupt(output, 3)
    other_stage = (replace(STAGES[0], learning_rate=0.5), *STAGES[1:])
    initial = MaskRcnnModel.from_network(build_network(SPEC), METADATA)
    wider = METADATA.model_copy(update={"architecture": SPEC.model_copy(update={"box_features": 32})})
    for source, metadata, settings, model, message in (
        (
            ToySource(),
            METADATA,
            replace(SETTINGS, stages=other_stage),
            None,
            "stages.0.learning_rate is 0.01 there",
        ),
        (ToySource(), METADATA, replace(SETTINGS, stages=STAGES[:2]), None, "stages is "),
        (ToySource(), METADATA, replace(SETTINGS, seed=2), None, "seed is 1 there, 2 here"),
        (ToySource(seed=4), METADATA, SETTINGS, None, "source.seed is 3 there, 4 here"),
        (ToySource(), METADATA, SETTINGS, initial, "initial is None there"),
        (ToySource(), wider, SETTINGS, None, "architecture.box_features is 16 there, 32 here"),
    ):
        with pytest.raises(CheckpointError, match="another run.*remove the checkpoint") as error:
            train(source, metadata, settings, output, initial=model, device="cpu")
        assert message in str(error.value)
    # What does not decide the weights may change.
    settings = replace(SETTINGS, checkpoint_minutes=5.0, log_every=3, validation_every=0)
    assert train(ToySource(), METADATA, settings, output, device="cpu").steps == N_STEPS
    assert read_model(output).metadata.name == "toy"


def test_differences():
    there = {"a": 1, "b": [1, {"c": 2, "d": 3}], "e": [1], "gone": None}
    here = {"a": 1, "b": [1, {"c": 4, "d": 3}], "e": [1, 2], "new": "x"}
    assert differences(there, json.loads(json.dumps(there))) == []
    assert differences(there, here) == [
        "b.1.c is 2 there, 4 here",
        "e is [1] there, [1, 2] here",
        "gone is None there, 'nothing' here",
        "new is 'nothing' there, 'x' here",
    ]


def test_checkpoints_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "m.checkpoint"
    state = TrainingState(step=7, sums={"step": {"loss": 1.5}})
    write_checkpoint(path, {"network": {"a": torch.arange(3.0)}}, {"seed": 1}, state)
    tensors, read = read_checkpoint(path, {"seed": 1})
    assert tensors["network"]["a"].tolist() == [0.0, 1.0, 2.0] and read == state
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(path, {"network": {"a": torch.zeros(3)}}, {"seed": 1}, state)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()

    path.write_bytes(before[:-4])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path, {"seed": 1})
    safetensors.torch.save_file({"network/a": torch.zeros(3)}, path, {"run": "{}", "state": "{}"})
    with pytest.raises(CheckpointError, match="another version"):
        read_checkpoint(path, {"seed": 1})

    # What a process leaves that is killed while it writes.
    (tmp_path / ".m.checkpoint.partial").write_bytes(before[:100])
    write_checkpoint(path, {"network": {"a": torch.arange(3.0)}}, {"seed": 1}, state)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
