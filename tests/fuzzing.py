# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Damaged files of every format that the package reads, and how they are judged."""

from __future__ import annotations

import json
import re
import resource
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits

from lsst.afw.detection import Footprint, GaussianPsf, HeavyFootprintF
from lsst.afw.geom import SpanSet, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF, MaskedImageF, PhotoCalib
from lsst.afw.table import SourceCatalog, SourceTable
from lsst.geom import Box2I, Extent2I, Point2D, Point2I, SpherePoint, arcseconds, degrees
from lsst.meas.maskrcnn.compare.scarlet_models import ScarletModelError, read_scarlet_models
from lsst.meas.maskrcnn.images.normalize import LuptonSettings
from lsst.meas.maskrcnn.ingest.fits_files import BandFiles, FitsImageError
from lsst.meas.maskrcnn.ingest.fits_images import FitsOptions, read_field
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.model_file import (
    MaskRcnnModel,
    ModelFileError,
    ModelMetadata,
    model_to_bytes,
    read_model,
)
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
from lsst.meas.maskrcnn.train.band_scenes import read_band_scene, to_band_scene, write_band_scene
from lsst.meas.maskrcnn.train.checkpoint import (
    CheckpointError,
    TrainingState,
    read_checkpoint,
    write_checkpoint,
)
from lsst.meas.maskrcnn.train.training_scene import SceneFileError, TrainingScene, read_scene, write_scene
from lsst.pex.exceptions import Exception as AfwException

_NUMBERS = (
    b"-1",
    b"0",
    b"9223372036854775807",
    b"1e400",
    b"NaN",
    b"3.5",
    b"99999999",
    b"'x'",
    b"null",
    b"[]",
)


@dataclass
class Format:
    """A format: a good file, what reads it, and the only error that is allowed."""

    suffix: str
    good: bytes
    read: Callable[[Path], Any]
    error: type[Exception]
    same: Callable[[Any, Any], bool] = lambda first, second: True
    """Whether what was read is not worse than what the good file holds."""


@dataclass
class Result:
    """What became of the mutants of one format."""

    read: int = 0
    refused: int = 0
    lost: int = 0
    slow: int = 0
    longest: float = 0.0
    memory: float = 0.0
    """MB that the largest amount of memory has grown by."""
    raw: Counter[str] = field(default_factory=Counter)
    """Other exceptions, and messages of several lines, by their beginning."""


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one to three places."""
    for _ in range(int(rng.integers(1, 4))):
        size = max(len(data), 1)
        # Headers are at the beginning.
        place = int(rng.integers(size) if rng.random() < 0.5 else rng.integers(min(size, 6000)))
        length = int(rng.integers(1, 200))
        kind = int(rng.integers(8))
        if kind == 0:
            flipped = bytes([data[place] ^ 1 << int(rng.integers(8))]) if data else b""
            data = data[:place] + flipped + data[place + 1 :]
        elif kind == 1:
            data = data[:place] + rng.bytes(length) + data[place + length :]
        elif kind == 2:
            data = data[:place]
        elif kind == 3:
            data = data[:place] + data[place + length :]
        elif kind == 4:
            data = data[:place] + data[place : place + length] + data[place:]
        elif kind == 5:
            data = data[:place] + bytes([int(rng.choice([0, 255]))]) * length + data[place + length :]
        else:
            numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data[:20_000]))
            if numbers:
                found = numbers[int(rng.integers(len(numbers)))]
                new = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
                # In FITS the length has to stay.
                old = found.end() - found.start()
                kept = data[found.end() :] if kind == 6 else data[found.start() + max(old, len(new)) :]
                data = data[: found.start()] + new.rjust(old) + kept
    return data


def fuzz(form: Format, count: int, seed: int, folder: Path) -> Result:
    """Read so many mutants of a format."""
    rng, result = np.random.default_rng(seed), Result()
    path = folder / f"mutant{form.suffix}"
    path.write_bytes(form.good)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good = form.read(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(count):
            path.write_bytes(mutate(form.good, rng))
            start = time.process_time()
            try:
                found = form.read(path)
            except form.error as error:
                result.refused += 1
                # Those of afw need not name the file.
                unnamed = path.name not in str(error) and form.error is not AfwException
                if "\n" in str(error) or unnamed:
                    result.raw[f"{type(error).__name__}: {str(error)[:150]!r}"] += 1
            except Exception as error:
                result.raw[f"{type(error).__name__}: {str(error)[:150]}"] += 1
            else:
                result.read += 1
                result.lost += not form.same(good, found)
            used = time.process_time() - start
            result.slow += used > 5.0
            result.longest = max(result.longest, used)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    result.memory = grown / 1024
    return result


def formats(folder: Path) -> dict[str, Format]:
    """Make a small good file of every format."""
    made = {
        "model": (".safetensors", _model(), read_model, ModelFileError),
        "checkpoint": (".checkpoint", _checkpoint(folder), _read_checkpoint, CheckpointError),
        "scene": (".npz", _scene(folder), read_scene, SceneFileError),
        "scarlet zip": (".scarlet", _scarlet(folder), read_scarlet_models, ScarletModelError),
        "scarlet JSON": (".json", json.dumps(_SCARLET).encode(), read_scarlet_models, ScarletModelError),
        "FITS image": (".fits", _image(folder, False), _read_image, FitsImageError),
        "FITS image, packed": (".fits", _image(folder, True), _read_image, FitsImageError),
        "any-band scene": (".npz", _band_scene(folder), read_band_scene, SceneFileError),
        "catalogue": (".fits", _catalog(folder), _read_catalog, AfwException),
        "exposure": (".fits", _exposure(folder), _read_exposure, AfwException),
    }
    same = {
        "model": _same_state,
        "checkpoint": lambda one, other: _equal(one[0]["network"], other[0]["network"]),
        "catalogue": lambda one, other: None not in [record.getFootprint() for record in other],
    }
    return {
        name: Format(*parts, **({"same": same[name]} if name in same else {})) for name, parts in made.items()
    }


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _same_state(one: MaskRcnnModel, other: MaskRcnnModel) -> bool:
    return _equal(one.state, other.state)


def _model() -> bytes:
    spec = NetworkSpec(
        in_channels=1,
        backbone="resnet18",
        returned_layers=(1,),
        fpn_channels=4,
        anchor_sizes=((8.0,), (16.0,)),
        box_features=4,
        box_pool=2,
        mask_channels=(4,),
        mask_pool=2,
    )
    metadata = ModelMetadata(
        name="tiny", architecture=spec, bands=("r",), normalization=LuptonSettings(), pixel_scale=0.2
    )
    return model_to_bytes(MaskRcnnModel.from_network(build_network(spec), metadata), half=True)


def _checkpoint(folder: Path) -> bytes:
    path = folder / "good.checkpoint"
    tensors = {"network": {"a": torch.arange(50.0), "b": torch.zeros(3, 4)}}
    write_checkpoint(path, tensors, {"seed": 1, "stages": [{"steps": 3}]}, TrainingState(step=7))
    return path.read_bytes()


def _read_checkpoint(path: Path) -> Any:
    return read_checkpoint(path, {"seed": 1, "stages": [{"steps": 3}]})


def _scene(folder: Path) -> bytes:
    rng = np.random.default_rng(1)
    scene = TrainingScene(
        noiseless=rng.normal(size=(2, 24, 20)).astype(np.float32),
        variance=np.ones((2, 24, 20), np.float32),
        valid=rng.random((24, 20)) > 0.1,
        labels=np.array([1, 2]),
        peak_flux=np.ones((2, 2), np.float32),
        origins=np.array([[1, 2], [5, 6]], np.int32),
        masks=[np.ones((3, 4), bool), np.ones((5, 5), bool)],
        noisy=False,
    )
    write_scene(scene, folder / "good.npz")
    return (folder / "good.npz").read_bytes()


_COMPONENT = {
    "component_type": "factorized",
    "origin": [3, 4],
    "peak": [4.0, 5.0],
    "shape": [2, 3],
    "morph": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    "spectrum": [1.0, 2.0],
}
_BLEND = {
    "blend_type": "blend",
    "origin": [2, 3],
    "shape": [6, 7],
    "sources": {"11": {"components": [_COMPONENT], "metadata": {"id": 11}}},
}
_SCARLET = {
    "metadata": {
        "bands": ["g", "r"],
        "model_psf": [0.1] * 9,
        "model_psf_shape": [1, 3, 3],
        "model_psf_dtype": "float32",
        "array_keys": ["model_psf"],
    },
    "version": "1.0.0",
    "blends": {"1": _BLEND, "2": _BLEND},
}


def _scarlet(folder: Path) -> bytes:
    path = folder / "good.scarlet"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata", "version"):
            archive.writestr(name, json.dumps(_SCARLET[name]))
        for name, blend in _SCARLET["blends"].items():
            archive.writestr(name, json.dumps(blend))
    return path.read_bytes()


def _band_scene(folder: Path) -> bytes:
    settings = preset_config("hsc-500s", shape=(64, 64), bands=("g", "r"), noise=False, keep_models=True)
    scene = simulate_scene(settings, np.random.default_rng(3))
    write_band_scene(to_band_scene(scene), folder / "band.npz")
    return (folder / "band.npz").read_bytes()


def _catalog(folder: Path) -> bytes:
    catalog = SourceCatalog(SourceTable.make(SourceTable.makeMinimalSchema()))
    image = MaskedImageF(Box2I(Point2I(0, 0), Extent2I(40, 30)))
    for number in range(6):
        record = catalog.addNew()
        footprint = Footprint(SpanSet.fromShape(3, offset=(5 + 5 * number, 10)))
        footprint.addPeak(5 + 5 * number, 10, 1.0)
        record.setFootprint(HeavyFootprintF(footprint, image) if number % 2 else footprint)
    catalog.writeFits(str(folder / "catalog.fits"))
    return (folder / "catalog.fits").read_bytes()


def _read_catalog(path: Path) -> SourceCatalog:
    return SourceCatalog.readFits(str(path))


def _exposure(folder: Path) -> bytes:
    exposure = ExposureF(Box2I(Point2I(7, 8), Extent2I(20, 16)))
    exposure.setPsf(GaussianPsf(11, 11, 1.5))
    exposure.setWcs(makeSkyWcs(Point2D(10, 8), SpherePoint(150, 2, degrees), makeCdMatrix(0.2 * arcseconds)))
    exposure.setPhotoCalib(PhotoCalib(2.0))
    exposure.writeFits(str(folder / "exposure.fits"))
    return (folder / "exposure.fits").read_bytes()


def _read_exposure(path: Path) -> Any:
    exposure = ExposureF.readFits(str(path))
    return exposure.getPsf(), exposure.getWcs(), exposure.getPhotoCalib()


def _image(folder: Path, packed: bool) -> bytes:
    rng = np.random.default_rng(2)
    pixels = rng.normal(size=(40, 48)).astype(np.float32)
    pixels[18:22, 20:24] += 50.0
    header = fits.Header()
    values = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 24.0, "CRPIX2": 20.0, "CRVAL1": 150.0}
    values |= {
        "CRVAL2": 2.0,
        "CD1_1": -5.6e-5,
        "CD1_2": 0.0,
        "CD2_1": 0.0,
        "CD2_2": 5.6e-5,
        "RADESYS": "ICRS",
    }
    values |= {"MAGZERO": 27.0, "FILTER": "r", "BUNIT": "adu", "EXPTIME": 30.0, "EQUINOX": 2000.0}
    header.update(values)
    hdu = fits.CompImageHDU(pixels, header) if packed else fits.PrimaryHDU(pixels, header)
    path = folder / f"good{packed}.fits"
    (fits.HDUList([fits.PrimaryHDU(), hdu]) if packed else hdu).writeto(path, overwrite=True)
    return path.read_bytes()


def _read_image(path: Path) -> Any:
    return read_field({"r": BandFiles(path)}, FitsOptions(psf_fwhm=0.8))
