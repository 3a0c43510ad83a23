# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command that trains a model: a step of it, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lsst.meas.maskrcnn.cli.train import main
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.model_file import (
    MaskRcnnModel,
    ModelMetadata,
    NormalizationMetadata,
    read_model,
    write_model,
)
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.normalize_task import config_from_settings


def run(folder: Path, *options: str) -> int:
    output = str(folder / "model.safetensors")
    threads = torch.get_num_threads()
    try:
        return main([output, "--scenes", str(folder / "scenes"), "--count", "1", "--jobs", "1", *options])
    finally:
        torch.set_num_threads(threads)


def test_one_step(tmp_path: Path) -> None:
    assert run(tmp_path, "--steps", "1", "--batch-size", "1", "--device", "cpu", "--name", "short") == 0
    metadata = read_model(tmp_path / "model.safetensors").metadata
    assert (metadata.name, metadata.bands) == ("short", ("z", "r", "g"))
    assert metadata.training["steps"] == 1
    # The task can normalise as the training did.
    config = config_from_settings(metadata.normalization.name, metadata.normalization.settings)
    assert config.stretch == metadata.normalization.settings["stretch"]
    assert not (tmp_path / "model.safetensors.checkpoint").exists()


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, and before anything is simulated."""
    spec = NetworkSpec.light(3).model_copy(update={"box_features": 8, "mask_channels": (8,)})
    header = ModelMetadata(
        name="narrow",
        architecture=spec,
        bands=("z", "r", "g"),
        normalization=NormalizationMetadata(name="lupton"),
        pixel_scale=0.168,
    )
    other = tmp_path / "other.safetensors"
    write_model(MaskRcnnModel.from_network(build_network(spec), header), other)
    for options, message in (
        (("--steps", "0"), "--steps 0"),
        (("--batch-size", "0"), "--batch-size 0"),
        (("--device", "tpu"), "tpu"),
        (("--initial", str(tmp_path / "none.safetensors")), "none.safetensors"),
        (("--initial", str(other)), "another architecture"),
    ):
        assert run(tmp_path, *options) == 1
        assert message in capsys.readouterr().err
    assert main([str(tmp_path / "none" / "model.safetensors"), "--scenes", str(tmp_path / "scenes")]) == 1
    assert "no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [other]
