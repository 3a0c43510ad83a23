# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Several processes take the same steps as one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lsst.meas.maskrcnn.network.model_file import read_model
from lsst.meas.maskrcnn.train.distributed import make_fabric
from lsst.meas.maskrcnn.train.loop import TrainingDiverged, TrainSettings, train

sys.path.append(str(Path(__file__).parent))
import toy_training
from toy_training import METADATA, STAGES, Recorder, ToySource

SETTINGS = TrainSettings(stages=STAGES[:2], precision="float32", checkpoint_minutes=0.0, log_every=2)


def assert_close(one, other):
    """Of thirteen steps, of which rounding grows from one to the next."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
def test_two_processes_of_batch_2_are_one_of_batch_4(tmp_path):
    """Under torchrun, with batch normalisation, frozen layers and accumulated parts."""
    several, one = tmp_path / "several.safetensors", tmp_path / "one.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [toy_training.__file__, str(several), "float32"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    # Only the first process reports.
    assert sum(line.startswith("step ") for line in done.stdout.splitlines()) == 13
    toy_training.main(str(one), "float32")
    assert_close(*(safetensors.torch.load_file(path.with_suffix(".float32")) for path in (several, one)))
    first, second = (read_model(path).metadata.training for path in (several, one))
    assert first["machine"]["processes"] == 2 and second["machine"]["processes"] == 1
    assert first["last_epoch"]["loss"] == pytest.approx(second["last_epoch"]["loss"], rel=1e-3)
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.slow
def test_processes_started_from_here(tmp_path):
    """They go on from the checkpoint of one process."""
    output = tmp_path / "m.safetensors"
    with pytest.raises(TrainingDiverged) as error:
        train(ToySource(broken=[9]), METADATA, SETTINGS, output, device="cpu")
    assert error.value.step == 2
    rows: list[tuple] = []
    result = train(
        ToySource(),
        METADATA,
        replace(SETTINGS, devices=2),
        output,
        device="cpu",
        validate=Recorder(),
        progress=lambda *row: rows.append(row),
    )
    whole = train(
        ToySource(), METADATA, SETTINGS, tmp_path / "n.safetensors", device="cpu", validate=Recorder()
    )
    # In half precision, a weight may be rounded to its other neighbour.
    assert_close(result.model.state, whole.model.state)
    assert [step for step, _, row in rows if row["kind"] == "step"] == [4, 6, 8, 10]
    assert [row for _, _, row in rows if row["kind"] == "epoch"] == result.epochs
    assert [row["step"] for row in result.epochs] == [row["step"] for row in whole.epochs]
    assert result.epochs[-1]["ap50_star"] == 0.25
    assert result.steps == whole.steps == 10


@pytest.mark.slow
def test_their_failure_is_that_of_one(tmp_path):
    output = tmp_path / "m.safetensors"
    with pytest.raises(TrainingDiverged) as error:
        train(ToySource(broken=[22]), METADATA, replace(SETTINGS, devices=2), output, device="cpu")
    assert (error.value.step, error.value.stage) == (5, "all")
    # Batch normalisation spreads it over the batch.
    assert error.value.crops == [20, 21, 22, 23] and "image10" in error.value.images
    assert error.value.checkpoint == str(output) + ".checkpoint"


def test_devices():
    fabric = make_fabric("cpu", "float32")
    assert fabric.world_size == 1 and fabric.device.type == "cpu"
    with pytest.raises(ValueError, match="devices must be at least 1, given 0"):
        make_fabric("cpu", devices=0)
    with pytest.raises(ValueError, match="wanted 'auto', 'float32'"):
        make_fabric("cpu", precision="double")
    with pytest.raises(ValueError, match=f"sees {torch.cuda.device_count() or 'no'} GPU|{10**4} devices"):
        make_fabric("cuda", devices=10**4)
