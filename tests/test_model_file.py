# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The model file: what goes in comes out, and what is no model is named."""

import json
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lsst.meas.maskrcnn.images.normalize import LuptonSettings
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.calibration import Calibration, CalibrationCurve
from lsst.meas.maskrcnn.network.model_file import (
    FORMAT_VERSION,
    MaskRcnnModel,
    ModelFileError,
    ModelMetadata,
    default_model_path,
    read_metadata,
    read_model,
    replace_metadata,
    write_model,
)
from lsst.meas.maskrcnn.network.spec import NetworkSpec


@pytest.fixture(scope="module")
def model() -> MaskRcnnModel:
    spec = NetworkSpec.light(2)
    metadata = ModelMetadata(
        name="tiny",
        architecture=spec,
        bands=("r", "g"),
        normalization=LuptonSettings(q=8.0),
        pixel_scale=0.2,
        training={"seed": 3},
    )
    return MaskRcnnModel.from_network(build_network(spec), metadata)


def rewrite_header(path: Path, change: dict[str, object]) -> None:
    """Change fields of the header of a model file in place."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    fields = json.loads(header["__metadata__"]["meas_maskrcnn"])
    fields.update(change)
    header["__metadata__"]["meas_maskrcnn"] = json.dumps(fields)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


def test_round_trip(model, tmp_path):
    path = tmp_path / "m.safetensors"
    write_model(model, path)
    back = read_model(path)
    assert back.metadata == model.metadata == read_metadata(path)
    assert back.state.keys() == model.state.keys()
    assert all(torch.equal(back.state[name], value) for name, value in model.state.items())
    assert not back.build().training


def test_half_precision_halves_the_file_and_reads_as_float32(model, tmp_path):
    write_model(model, tmp_path / "full.safetensors")
    write_model(model, tmp_path / "half.safetensors", half=True)
    full, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.55 * full
    back = read_model(tmp_path / "half.safetensors")
    for name, value in model.state.items():
        assert back.state[name].dtype == value.dtype
        torch.testing.assert_close(back.state[name], value, rtol=2e-3, atol=1e-4)


def test_weights_too_large_for_half_precision(model, tmp_path):
    name = next(iter(model.state))
    large = MaskRcnnModel(model.metadata, model.state | {name: torch.full_like(model.state[name], 1e6)})
    with pytest.raises(ModelFileError, match=f"{name}.*half=False"):
        write_model(large, tmp_path / "m.safetensors", half=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated(model, tmp_path, keep):
    path = tmp_path / "m.safetensors"
    write_model(model, path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    expected = "not a model file" if keep in (0, 4) else "truncated"
    for read in (read_model, read_metadata):
        with pytest.raises(ModelFileError, match=expected):
            read(path)


@pytest.mark.parametrize(
    "content",
    [b"SIMPLE  =                    T" * 99, safetensors.torch.save({"a": torch.zeros(3)}), b"\0" * 64],
    ids=["fits", "other safetensors", "zeros"],
)
def test_foreign(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    for read in (read_model, read_metadata):
        with pytest.raises(ModelFileError, match="not a model file"):
            read(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        read_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1, None])
def test_other_format(model, tmp_path, version):
    path = tmp_path / "m.safetensors"
    write_model(model, path)
    rewrite_header(path, {"format_version": version, "unheard_of": 1})
    with pytest.raises(ModelFileError, match=f"version {version}, this code reads version {FORMAT_VERSION}"):
        read_metadata(path)


CURVE = CalibrationCurve(given=(0.0, 0.3, 1.0), probability=(0.1, 0.2, 0.9))
CALIBRATION = Calibration(score=CURVE, p_star=CURVE, provenance={"n_scenes": 3})


def header_of(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["meas_maskrcnn"])


def test_calibration_is_kept(model, tmp_path):
    path = tmp_path / "m.safetensors"
    metadata = model.metadata.model_copy(update={"calibration": CALIBRATION})
    write_model(MaskRcnnModel(metadata, model.state), path)
    assert header_of(path)["format_version"] == FORMAT_VERSION
    assert read_metadata(path) == metadata
    assert read_metadata(path).calibration == CALIBRATION


def test_new_header_leaves_the_weights(model, tmp_path):
    path = tmp_path / "m.safetensors"
    write_model(model, path, half=True)
    old = path.read_bytes()
    path.write_bytes(replace_metadata(old, model.metadata.model_copy(update={"calibration": CALIBRATION})))
    back = read_model(path)
    assert back.metadata.calibration == CALIBRATION
    assert (
        path.read_bytes()[8 + struct.unpack("<Q", path.read_bytes()[:8])[0] :]
        == (old[8 + struct.unpack("<Q", old[:8])[0] :])
    )
    assert back.metadata.model_copy(update={"calibration": None}) == model.metadata
    other = model.metadata.model_copy(update={"architecture": NetworkSpec.published(2)})
    with pytest.raises(ModelFileError, match="another architecture"):
        replace_metadata(old, other)
    with pytest.raises(ModelFileError, match="not a model file"):
        replace_metadata(b"SIMPLE  = " * 20, model.metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": ["r"]}, "bands"),
        ({"bands": ["r", "r"]}, "twice"),
        ({"class_names": ["dog", "cat"]}, "classes"),
        ({"pixel_scale": -1.0}, "pixel_scale"),
        ({"pixel_scale": float("inf")}, "pixel_scale"),
        ({"architecture": {"in_channels": 2, "backbone": "vgg"}}, "backbone"),
        ({"normalization": {"kind": "histogram"}}, "normalization.*'lupton', 'zscore'"),
        ({"normalization": {"kind": "lupton", "strech": 1.0}}, "strech"),
        ({"normalization": {"kind": "zscore", "softening": -1.0}}, "softening"),
        (
            {"normalization": {"kind": "lupton", "scale": 101.0, "scale_unit": "percentile"}},
            "normalization.*scale is 101.*at most 100",
        ),
    ],
)
def test_header_that_is_not_valid(model, tmp_path, change, message):
    path = tmp_path / "m.safetensors"
    write_model(model, path)
    rewrite_header(path, change)
    with pytest.raises(ModelFileError, match=message):
        read_metadata(path)


def test_weights_of_another_architecture(model):
    other = NetworkSpec.light(2).model_copy(update={"fpn_channels": 32})
    mixed = MaskRcnnModel(model.metadata.model_copy(update={"architecture": other}), model.state)
    with pytest.raises(ModelFileError, match="do not fit the architecture"):
        mixed.build()


def test_weights_that_are_not_finite(model):
    name = next(key for key, value in model.state.items() if value.is_floating_point())
    state = {**model.state, name: model.state[name] * float("inf")}
    with pytest.raises(ModelFileError, match=f"not finite.*'{name}'"):
        MaskRcnnModel(model.metadata, state).build()


def test_checksums_whose_names_are_damaged(model, tmp_path):
    """They are none of an older file, which has no checksum."""
    write_model(model, tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    assert data.count(b"sha256") == 2
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(data.replace(b"sha256", b"shb256")[:-1] + b"\x01")
    with pytest.raises(ModelFileError, match="a SHA-256 in its header is called 'shb256"):
        read_model(damaged)


def test_failed_write_leaves_the_old_file_and_nothing_else(model, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_model(model, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_shipped_model_is_small_and_complete():
    path = default_model_path()
    assert path.stat().st_size < 20e6
    metadata = read_metadata(path)
    assert metadata.bands == ()
    assert metadata.training["steps"] > 0
    read_model(path).build()
