# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that were made to do harm are refused in one line, at once and in little memory."""

import functools
import json
import resource
import struct
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from lsst.meas.maskrcnn.compare.scarlet_models import ScarletModelError, read_scarlet_models
from lsst.meas.maskrcnn.images.normalize import LuptonSettings
from lsst.meas.maskrcnn.ingest.astro_rcnn import AstroRcnnOptions, _read_models
from lsst.meas.maskrcnn.ingest.fits_files import BandFiles, FitsImageError
from lsst.meas.maskrcnn.ingest.fits_images import FitsOptions, read_field
from lsst.meas.maskrcnn.ingest.imported import import_field
from lsst.meas.maskrcnn.ingest.label_truth import add_label_truth
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.model_file import (
    MaskRcnnModel,
    ModelFileError,
    ModelMetadata,
    load_model,
    model_to_bytes,
    read_model,
)
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.train.band_scenes import read_band_scene
from lsst.meas.maskrcnn.train.checkpoint import (
    CheckpointError,
    TrainingState,
    read_checkpoint,
    write_checkpoint,
)
from lsst.meas.maskrcnn.train.training_scene import SceneFileError, read_scene

HOSTILE = Path(__file__).parents[1] / ".." / "shared" / "data" / "hostile"


def hostile(name: str) -> Path:
    path = HOSTILE / name
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return path


@contextmanager
def little() -> Iterator[None]:
    """At most 5 s of CPU and 200 MB of memory more than before."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - start < 5.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def refused(kind, read, path, *words):
    """The error is of a kind, has one line and names the file and some words."""
    with little(), pytest.raises(kind) as error:
        read(path)
    text = str(error.value)
    assert "\n" not in text and len(text) < 1000
    assert path.name in text
    for word in words:
        assert word in text
    return text


@pytest.fixture(scope="module")
def model() -> MaskRcnnModel:
    metadata = ModelMetadata(
        name="tiny",
        architecture=NetworkSpec.light(2),
        bands=("r", "g"),
        normalization=LuptonSettings(q=8.0),
        pixel_scale=0.2,
    )
    return MaskRcnnModel.from_network(build_network(metadata.network_spec), metadata)


# ---- Models -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("nested_header", "nested"),
        ("nested_metadata", "nested"),
        ("offset_infinity", "data_offsets"),
        ("box_pool_overflow", "box_pool"),
        ("small_file_large_network", "version 1"),
    ],
)
def test_model_files(name, word):
    refused(ModelFileError, read_model, hostile(f"model_{name}.safetensors"), word)


def change(data: bytes, **fields: object) -> bytes:
    """Change fields of the architecture in the header, and leave the rest."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["meas_maskrcnn"])
    metadata["architecture"].update(fields)
    header["__metadata__"]["meas_maskrcnn"] = json.dumps(metadata)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data[8 + length :]


@pytest.mark.parametrize(
    "fields",
    [
        {"box_features": 20_000},
        {"fpn_channels": 8_000},
        {"fpn_channels": 20_000, "box_pool": 64, "box_features": 20_000},
        {"mask_channels": [64] * 5_000},
        {"mask_channels": [20_000] * 16},
        {"box_pool": 2**62},
        {"in_channels": 10**30},
        {"anchor_sizes": [[8.0] * 9_999] * 4},
        {"backbone": "resnet101"},
    ],
    ids=str,
)
def test_architectures_that_the_weights_do_not_fit(model, tmp_path, fields):
    path = tmp_path / "m.safetensors"
    path.write_bytes(change(model_to_bytes(model), **fields))
    refused(ModelFileError, read_model, path)


def test_every_flipped_bit_of_a_model_is_noticed(model, tmp_path):
    path = tmp_path / "flipped.safetensors"
    data = model_to_bytes(model, half=True)
    (length,) = struct.unpack("<Q", data[:8])
    rng = np.random.default_rng(1)
    places = np.concatenate([rng.integers(0, 8 + length, 60), rng.integers(8 + length, len(data), 20)])
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match="flipped"):
            read_model(path)


def test_models_without_a_checksum_are_read_with_one_warning(model, tmp_path, caplog):
    path = tmp_path / "old.safetensors"
    data = model_to_bytes(model)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {"meas_maskrcnn": header["__metadata__"]["meas_maskrcnn"]}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])
    for _ in range(2):
        read_model(path).build()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "old.safetensors has no checksum" in caplog.text


def test_the_shipped_model_has_a_checksum(caplog):
    load_model()
    assert not caplog.records


# ---- Checkpoints --------------------------------------------------------


@pytest.mark.parametrize("name", ["without_run", "state_not_json", "negative_step"])
def test_checkpoints(name):
    path = hostile(f"checkpoint_{name}.checkpoint")
    refused(CheckpointError, lambda path: read_checkpoint(path, {"seed": 1}), path)


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "m.checkpoint"
    write_checkpoint(path, {"network": {"a": torch.arange(9.0)}}, {"seed": 1}, TrainingState(step=7))
    data = path.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="m.checkpoint"):
            read_checkpoint(path, {"seed": 1})


def test_checkpoints_of_another_network(tmp_path):
    path = tmp_path / "m.checkpoint"
    write_checkpoint(path, {"network": {"a": torch.arange(9.0)}}, {"seed": 1}, TrainingState(step=7))
    for wanted in ({"network": {"a": torch.zeros(8)}}, {"average": {"a": torch.zeros(9)}}):
        with pytest.raises(CheckpointError, match="m.checkpoint has .*/a in the shape"):
            read_checkpoint(path, {"seed": 1}, wanted)


# ---- Scenes -------------------------------------------------------------


@pytest.mark.parametrize("read", [read_scene, read_band_scene])
def test_scenes(read, tmp_path):
    refused(SceneFileError, read, hostile("scene_huge_header.npz"))


@pytest.mark.parametrize("read", [read_scene, read_band_scene])
@pytest.mark.parametrize(
    "content",
    [
        {"variance": np.ones((1, 4, 4), np.float32)},
        {"pixels": np.ones(3)},
        {"variance": np.array([{}], object)},
    ],
    ids=["one array", "one axis", "objects"],
)
def test_scenes_without_their_arrays(read, content, tmp_path):
    np.savez(tmp_path / "scene.npz", **content)
    refused(SceneFileError, read, tmp_path / "scene.npz")


@pytest.mark.parametrize("read", [read_scene, read_band_scene])
def test_scenes_that_unpack_to_gigabytes(read, tmp_path):
    path = tmp_path / "scene.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("variance.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<f4", "fortran_order": False, "shape": (1, 10_000, 10_000)}
        )
        for _ in range(100):
            member.write(bytes(4_000_000))
    refused(SceneFileError, read, path, "unpack")


# ---- Models of scarlet --------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["bomb.scarlet", "nested.json", "dtype.scarlet", "encrypted_flag.scarlet", "shape_negative.scarlet"],
)
def test_scarlet_files(name):
    refused(ScarletModelError, read_scarlet_models, hostile(f"scarlet_{name}"))


# ---- FITS images --------------------------------------------------------


def read_image(path: Path):
    return read_field({"r": BandFiles(path)})


@pytest.mark.parametrize("name", ["hang_importer_read_field", "fits_compressed_ZTILE1"])
def test_fits_files(name):
    refused(FitsImageError, read_image, hostile(f"{name}.fits"))


@pytest.mark.parametrize(("key", "value"), [("ZVAL1", 0), ("ZVAL2", -1), ("ZVAL2", 3), ("ZVAL2", 10**9)])
def test_parameters_of_a_compression(key, value, tmp_path):
    path = tmp_path / "rice.fits"
    pixels = np.random.default_rng(1).normal(size=(32, 32)).astype(np.float32)
    fits.CompImageHDU(pixels, compression_type="RICE_1").writeto(path)
    with fits.open(path, mode="update", disable_image_compression=True) as hdus:
        hdus[1].header[key] = value
    assert str(value) in refused(FitsImageError, read_image, path)


@pytest.mark.parametrize("name", ["fits_RADESYS_x", "fits_CTYPE1_RATAB", "fits_CRPIX1_x", "fits_CD1_1_0"])
def test_world_coordinates_that_are_none(name):
    path = hostile(f"{name}.fits")
    assert "--pixel-scale" in refused(FitsImageError, read_image, path)
    field = read_field({"r": BandFiles(path)}, FitsOptions(pixel_scale=0.2))
    assert not field.has_sky
    assert any("left out" in note for note in field.notes)


def test_zero_points_that_are_none():
    field = read_image(hostile("fits_MAGZERO_400.fits"))
    assert any("MAGZERO = 400 is no zero point" in note for note in field.notes)


# ---- Truth of images ----------------------------------------------------


def read_truth(path: Path):
    name = path.with_name("good.fits")
    fits.writeto(name, np.random.default_rng(1).normal(size=(40, 48)).astype(np.float32), overwrite=True)
    options = FitsOptions(psf_fwhm=0.8, pixel_scale=0.2, zero_points={"r": 27.0})
    scene = import_field("good.fits", read_field({"r": BandFiles(name)}, options))
    add_label_truth(scene, path)


def coco(segmentation: object) -> dict:
    return {
        "images": [{"id": 1, "height": 40, "width": 48, "file_name": "good.fits"}],
        "categories": [{"id": 1, "name": "star"}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": segmentation}],
    }


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000 + "]" * 100_000,
        json.dumps(coco({"counts": "p" * 1_000_000})),
        json.dumps(coco({"counts": [1920 - 2**70, 2**70]})),
        json.dumps(coco({"counts": [float("inf")]})),
        json.dumps(coco([[float("inf"), 1.0, 2.0, 3.0, 4.0, 5.0]])),
    ],
    ids=["nested", "one run", "runs", "infinite run", "infinite polygon"],
)
def test_truths(content, tmp_path):
    (tmp_path / "truth.json").write_text(content)
    refused(FitsImageError, read_truth, tmp_path / "truth.json")


@pytest.mark.parametrize(("key", "value"), [("GCOUNT", 2**60), ("NAXIS2", 2**40), ("NAXIS", 10**6)])
@pytest.mark.parametrize("kind", ["labels", "masks"])
def test_truths_in_fits_files(kind, key, value, tmp_path):
    path = tmp_path / "masks.fits"
    hdus = [fits.PrimaryHDU(np.ones((40, 48), np.int16)), fits.ImageHDU(np.ones((40, 48), np.int16))]
    for hdu in hdus:
        hdu.header["CLASS_ID"] = 1
    fits.HDUList(hdus).writeto(path)
    data = path.read_bytes()
    start = data.index(key.ljust(8).encode() + b"=", data.index(b"XTENSION"))
    path.write_bytes(data[:start] + f"{key:8}= {value:20d}".encode() + data[start + 30 :])
    if kind == "labels":
        refused(FitsImageError, read_truth, path)
    else:
        read = functools.partial(_read_models, shape=(40, 48), options=AstroRcnnOptions(("r",)), notes=[])
        refused(FitsImageError, lambda path: list(read(path)), path)


# ---- Commands -----------------------------------------------------------


@pytest.mark.parametrize("name", ["../../x", "/x", "a//b", "a/../b", "", "a b"])
def test_collections_elsewhere(name, tmp_path, capsys):
    from lsst.meas.maskrcnn.cli.main import main as maskrcnn

    repo = tmp_path / "repo"
    image = hostile("fits_MAGZERO_400.fits")
    assert maskrcnn("ingest-fits", [str(repo), "--band", f"r={image}", "--collection", name]) == 1
    assert (
        maskrcnn(
            "simulate", [str(repo), "--preset", "hsc-500s-noiseless", "--count", "1", "--collection", name]
        )
        == 1
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(f"Collection {name!r} is no possible name" in line for line in lines)
    assert not repo.exists()


@pytest.mark.parametrize(
    "name", ["fits_RADESYS_x", "fits_CTYPE1_RATAB", "fits_compressed_ZTILE1", "hang_importer_read_field"]
)
def test_images_that_ingest_fits_refuses(name, tmp_path, capsys):
    from lsst.meas.maskrcnn.cli.main import main as maskrcnn

    path = hostile(f"{name}.fits")
    assert maskrcnn("ingest-fits", [str(tmp_path / "repo"), "--band", f"r={path}"]) == 1
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("maskrcnn ingest-fits:")
    ]
    assert path.name in line
