# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Several processes take the same steps as one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import toy_training

from lsst.meas.maskrcnn.network.model_file import read_model
from lsst.meas.maskrcnn.train.distributed import make_fabric, on_first_process


def assert_close(one, other):
    """Of thirteen steps, of which rounding grows from one to the next."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
def test_two_processes_of_batch_2_are_one_of_batch_4(tmp_path):
    """Under torchrun, with frozen layers and accumulated parts."""
    several, one = tmp_path / "several.safetensors", tmp_path / "one.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [toy_training.__file__, str(several), "float32"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    # Only the first process reports.
    assert sum(line.startswith("step ") for line in done.stdout.splitlines()) == 13
    toy_training.main(str(one), "float32", freeze_norm_after=0.0)
    assert_close(*(safetensors.torch.load_file(path.with_suffix(".float32")) for path in (several, one)))
    first, second = (read_model(path).metadata.training for path in (several, one))
    assert first["machine"]["processes"] == 2 and second["machine"]["processes"] == 1
    assert first["last_epoch"]["loss"] == pytest.approx(second["last_epoch"]["loss"], rel=1e-3)
    assert not list(tmp_path.glob("*.checkpoint"))


def test_devices():
    fabric = make_fabric("cpu", "float32")
    assert fabric.world_size == 1 and fabric.device.type == "cpu"
    assert on_first_process(lambda: [1, "two"], "cpu") == [1, "two"]
    with pytest.raises(ValueError, match="wanted 'auto', 'float32'"):
        make_fabric("cpu", precision="double")


def test_more_processes_than_devices(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="started 2 processes here, but torch finds 1 GPU"):
        make_fabric("cuda")
    with pytest.raises(ValueError, match="give 'cuda' for 4 processes"):
        make_fabric("cuda:0")
