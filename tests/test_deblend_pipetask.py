# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The whole line: exposures and a model in a Butler, `pipetask run`, a catalogue in the Butler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import lsst.geom as geom
from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF, FilterLabel, PhotoCalib
from lsst.afw.table import SourceCatalog
from lsst.daf.butler import Butler
from lsst.meas.base import IdGenerator, SkyMapIdGeneratorConfig
from lsst.meas.maskrcnn.ingest.ingest_model import ingest_model
from lsst.meas.maskrcnn.ingest.repo import PatchGeometry, create_repo, put_exposures, register_patches
from lsst.meas.maskrcnn.network.model_file import default_model_path, read_model
from lsst.meas.maskrcnn.scenes.config import ArtefactConfig
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendTask

PROJECT = Path(__file__).resolve().parent.parent
PIPELINE = PROJECT / "pipelines" / "MaskRcnnDeblend.yaml"
BANDS = ("z", "r", "g")
XY0 = (12000, 8000)
WIDTH, HEIGHT = 300, 200
SCALE = 0.168
NANOJANSKY = {"z": 2.0, "r": 0.5, "g": 10.0}


@dataclass
class Field:
    """A simulated field without noise, and what is in it."""

    flux: np.ndarray
    """Flux per pixel (band, y, x), nJy."""

    sigma: np.ndarray
    """Noise of a pixel (band,), nJy."""

    every: np.ndarray
    """Positions of all sources that were drawn (source, 2), array pixels."""

    x: np.ndarray
    y: np.ndarray
    is_star: np.ndarray
    """Position and class of the sources that nobody should miss: bright, whole, and alone."""


def make_field(seed: int) -> Field:
    config = preset_config("hsc-wide", shape=(HEIGHT, WIDTH), bands=BANDS, artefacts=ArtefactConfig())
    population = replace(
        config.population, mag_limit=23.5, galaxy_density=50.0, star_density=25.0, cluster_probability=0.0
    )
    scene = simulate_scene(replace(config, population=population), np.random.default_rng(seed))
    every = np.stack([scene.sources["x"], scene.sources["y"]], axis=1)
    apart = np.hypot(*(every[:, None] - every).transpose(2, 0, 1)) + 99.0 * np.eye(len(every))
    peaks = np.max([scene.sources[f"peak_snr_{band}"] for band in BANDS], axis=0)
    clear = (scene.sources["area"] >= 12) & (scene.sources["visible"] >= 1.0) & (peaks >= 10.0)
    clear &= (scene.sources["peak_share"] >= 0.9) & (apart.min(axis=1) > 8.0)
    chosen = scene.sources[clear]
    return Field(
        scene.noiseless, np.asarray(scene.sky_sigma), every, chosen["x"], chosen["y"], chosen["is_star"]
    )


@pytest.fixture(scope="session")
def model_path() -> Path:
    return default_model_path()


def make_wcs(shift: float = 0.0) -> SkyWcs:
    return makeSkyWcs(
        geom.Point2D(XY0[0] + WIDTH / 2 + shift, XY0[1] + HEIGHT / 2),
        geom.SpherePoint(150.0, 2.0, geom.degrees),
        makeCdMatrix(scale=SCALE * geom.arcseconds),
    )


def make_exposures(flux: np.ndarray, sigma: np.ndarray, seed: int = 11) -> dict[str, ExposureF]:
    """Exposures of a field with noise, each with a zero point of its own."""
    rng = np.random.default_rng(seed)
    exposures = {}
    for band, pixels, noise in zip(BANDS, flux, sigma, strict=True):
        exposure = ExposureF(
            geom.Box2I(geom.Point2I(*XY0), geom.Extent2I(pixels.shape[1], pixels.shape[0])), make_wcs()
        )
        noisy = pixels + rng.normal(0.0, noise, pixels.shape)
        exposure.image.array[:] = noisy / NANOJANSKY[band]
        exposure.variance.array[:] = (noise / NANOJANSKY[band]) ** 2
        exposure.setPhotoCalib(PhotoCalib(NANOJANSKY[band]))
        exposure.setFilter(FilterLabel.fromBand(band))
        exposures[band] = exposure
    return exposures


def cut(exposures: dict[str, ExposureF], x0: int, x1: int) -> dict[str, ExposureF]:
    """Columns from x0 to x1, in array pixels, of all bands."""
    box = geom.Box2I(geom.Point2I(XY0[0] + x0, XY0[1]), geom.Extent2I(x1 - x0, HEIGHT))
    return {band: exposure[box].clone() for band, exposure in exposures.items()}


def fill_repo(root: Path, patches: dict[int, dict[str, ExposureF]], model: Path | None) -> Butler:
    """A repository with one patch per entry, its bands put in the order given."""
    butler = create_repo(root)
    geometries = [
        PatchGeometry(0, number, make_wcs(), next(iter(exposures.values())).getBBox(), (number, 0))
        for number, exposures in patches.items()
    ]
    register_patches(butler, "sky", geometries, BANDS, instrument="cam")
    for number, exposures in patches.items():
        put_exposures(butler, "coadds", {"skymap": "sky", "tract": 0, "patch": number}, exposures)
    if model is not None:
        ingest_model(butler, model)
    return butler


def pipetask(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the pipeline as a user does."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("pipetask", path=path)
    if program is None:
        pytest.fail("pipetask of lsst-ctrl-mpexec was not found")
    return subprocess.run(
        [
            program,
            "run",
            "-b",
            str(root),
            "-p",
            str(PIPELINE),
            "-o",
            "u/test/deblend",
            "--register-dataset-types",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=root.parent,
        env={**os.environ, **environment},
        timeout=600,
    )


def load(butler: Butler, patch: int) -> SourceCatalog:
    return butler.get(
        "deepCoadd_maskRcnnCatalog", skymap="sky", tract=0, patch=patch, collections="u/test/deblend"
    )


def leaves(catalog: SourceCatalog) -> SourceCatalog:
    """Sources without children."""
    return catalog[np.asarray(catalog["deblend_nChild"]) == 0].copy(deep=True)


def distances(catalog: SourceCatalog, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance of each record (row) from each position (column), given in array pixels."""
    return np.hypot(catalog.getX()[:, None] - XY0[0] - x, catalog.getY()[:, None] - XY0[1] - y)


def imported_modules(text: str) -> set[str]:
    """Names in what Python says of the time of imports."""
    return {line.rsplit("|", 1)[-1].strip() for line in text.splitlines() if "import time" in line}


def test_patches(tmp_path: Path, model_path: Path) -> None:
    """A field in two patches that overlap, in two processes, and whole in this one."""
    field = make_field(99)
    whole = make_exposures(field.flux, field.sigma)
    patches = {1: cut(whole, 0, 160), 2: cut(whole, 140, WIDTH)}
    root = tmp_path / "a repo"
    butler = fill_repo(root, patches, model_path)
    done = pipetask(
        root,
        *("-i", "coadds,models/maskRcnn"),
        *("-d", "skymap='sky' AND tract=0"),
        *("-c", "maskRcnnDeblend:detection.tile_size=192"),
        *("-c", "maskRcnnDeblend:detection.tile_overlap=64"),
        *("-c", "maskRcnnDeblend:detection.precision=float32"),
        *("-c", "maskRcnnDeblend:idGenerator.release_id=3"),
        *("-j", "2"),
        PYTHONPROFILEIMPORTTIME="1",
    )
    assert done.returncode == 0, done.stderr
    imported = imported_modules(done.stderr)
    assert "lsst.meas.maskrcnn.tasks.deblend" in imported
    # What the LSST packages bring is theirs.
    packages = ("ctrl.mpexec", "obs.base", "afw.image", "afw.table", "afw.detection", "meas.base")
    alone = [
        sys.executable,
        "-X",
        "importtime",
        "-c",
        f"import {', '.join(f'lsst.{name}' for name in packages)}",
    ]
    imported -= imported_modules(subprocess.run(alone, capture_output=True, text=True, check=True).stderr)
    unused = ["galsim", "matplotlib", "lightning", "torch._dynamo", "sympy"]
    unused += [f"lsst.meas.maskrcnn.{room}" for room in ("train", "scenes", "report", "compare", "cli")]
    assert not [name for name in imported if name.startswith(tuple(unused))]
    butler = Butler.from_config(str(root))

    # What the options said is what was run and recorded.
    config = butler.get("maskRcnnDeblend_config", collections="u/test/deblend")
    assert (config.detection.tile_size, config.detection.tile_overlap) == (192, 64)
    schema = butler.get("deepCoadd_maskRcnnCatalog_schema", collections="u/test/deblend").schema
    catalogs = {patch: load(butler, patch) for patch in patches}
    assert all(catalog.schema == schema for catalog in catalogs.values())

    # So were the shares of each band, for the same records.
    band_schema = butler.get("deepCoadd_maskRcnnDeblended_schema", collections="u/test/deblend").schema
    for patch, catalog in catalogs.items():
        where = {"skymap": "sky", "tract": 0, "patch": patch, "collections": "u/test/deblend"}
        for band in BANDS:
            shares = butler.get("deepCoadd_maskRcnnDeblended", band=band, **where)
            assert shares.schema == band_schema
            assert shares["id"].tolist() == catalog["id"].tolist()
            assert all(record.getFootprint().isHeavy() for record in leaves(shares))
        blends = butler.get("deepCoadd_maskRcnnBlends", **where)
        assert np.asarray(blends["objectId"]).tolist() == catalog["id"][catalog["parent"] == 0].tolist()
        objects = butler.get("deepCoadd_maskRcnnObject", **where)
        assert np.asarray(objects["objectId"]).tolist() == [record.getId() for record in leaves(catalog)]

    # A notebook gets what the pipeline gets.
    task = MaskRcnnDeblendTask(config=config)
    model = read_model(model_path)
    direct = task.run(exposures=patches[2], model=model).catalog
    assert len(direct) == len(catalogs[2])
    np.testing.assert_allclose(direct.getX(), catalogs[2].getX(), atol=0.01)
    full = leaves(task.run(exposures=whole, model=model).catalog)

    # The field: most of its sources, one by one, of the right class.
    near = distances(full, field.x, field.y)
    found = near.min(axis=0) < 2
    assert found.mean() >= 0.8
    anything = distances(full, field.every[:, 0], field.every[:, 1]).min(axis=1)
    assert np.mean(anything > 5) <= 0.1
    best = near.argmin(axis=0)
    assert len(set(best[found].tolist())) == np.count_nonzero(found)
    assert (full["maskrcnn_star"][best[found]] == field.is_star[found]).mean() >= 0.8
    np.testing.assert_array_equal(full["maskrcnn_star"], ~full["maskrcnn_galaxy"])
    bbox = whole["z"].getBBox()
    sky = make_wcs()
    for record in full:
        assert bbox.contains(record.getFootprint().getBBox())
        assert len(record.getFootprint().getPeaks()) == 1
        position = sky.pixelToSky(record.getCentroid())
        assert record.getCoord().separation(position).asArcseconds() < 1e-3

    # Ids tell patches and releases apart.
    ids = np.concatenate([catalog["id"] for catalog in catalogs.values()])
    assert len(np.unique(ids)) == len(ids)
    generator = SkyMapIdGeneratorConfig()
    generator.release_id = 3
    data_id = butler.registry.expandDataId(skymap="sky", tract=0, patch=2)
    unpack = IdGenerator.unpacker_from_config(generator, butler.registry.expandDataId(skymap="sky"))
    assert catalogs[2]["id"].tolist() == generator.apply(data_id).arange(1, len(catalogs[2]) + 1).tolist()
    assert unpack(int(catalogs[2]["id"][0]))[1]["patch"] == 2

    # Two patches see what the whole sees, each as far as its edge.
    for patch, low, high in ((1, 0, 140), (2, 160, WIDTH)):
        part = leaves(catalogs[patch])
        inside = found & (field.x > low) & (field.x < high)
        assert inside.sum() >= 4
        again = distances(part, field.x[inside], field.y[inside]).min(axis=0)
        assert np.mean(again < 2) >= 0.8
        x = full.getX()[best[inside]] - XY0[0]
        y = full.getY()[best[inside]] - XY0[1]
        assert np.median(distances(part, x, y).min(axis=0)) < 0.5

    metadata = butler.get(
        "maskRcnnDeblend_metadata", skymap="sky", tract=0, patch=2, collections="u/test/deblend"
    )
    assert metadata["maskRcnnDeblend"]["n_sources"] == len(leaves(catalogs[2]))
    assert metadata["maskRcnnDeblend"]["seconds_forward"] > 0


def test_unusual_patches(tmp_path: Path, model_path: Path) -> None:
    """Wrong patches fail for what is wrong with them; empty ones do not, nor those in another order."""
    field = make_field(99)
    whole = make_exposures(field.flux, field.sigma)

    def altered(band: str, **changes: object) -> dict[str, ExposureF]:
        copies = {name: exposure.clone() for name, exposure in whole.items()}
        for name, value in changes.items():
            getattr(copies[band], f"set{name}")(value)
        return copies

    smaller = dict(whole)
    smaller["r"] = cut(whole, 0, WIDTH - 1)["r"]
    patches = {
        0: whole,
        1: {band: whole[band] for band in ("z", "g")},
        2: smaller,
        3: altered("g", Wcs=make_wcs(shift=1.0)),
        4: altered("r", PhotoCalib=None),
        5: {band: whole[band] for band in ("g", "z", "r")},
        6: make_exposures(np.zeros(field.flux.shape), field.sigma),
        7: make_exposures(np.full(field.flux.shape, np.nan), field.sigma),
    }
    root = tmp_path / "repo"
    fill_repo(root, patches, None)
    done = pipetask(
        root,
        *("-i", "coadds"),
        *("-d", "skymap='sky' AND tract=0"),
        *("-C", f"maskRcnnDeblend:{PROJECT / 'config' / 'DECam.py'}"),
        *("-c", f"maskRcnnDeblend:model_uri={model_path}"),
        *("-c", "maskRcnnDeblend:bands={'z': 'z', 'r': 'r', 'g': 'g'}"),
    )
    assert done.returncode != 0
    for message in (
        "No exposure in band 'r'",
        "The bounding box of the exposures disagrees",
        "The WCS of the exposures disagrees",
        "The exposure in band 'r' has no PhotoCalib",
    ):
        assert message in done.stderr, done.stderr

    butler = Butler.from_config(str(root))
    refs = butler.query_datasets("deepCoadd_maskRcnnCatalog", collections="u/test/deblend", explain=False)
    assert sorted(ref.dataId["patch"] for ref in refs) == [0, 5, 6, 7]
    schema = butler.get("deepCoadd_maskRcnnCatalog_schema", collections="u/test/deblend").schema
    full, swapped, empty, void = (load(butler, patch) for patch in (0, 5, 6, 7))
    assert all(catalog.schema == schema for catalog in (full, swapped, empty, void))
    assert len(full) > 10
    for name in ("maskrcnn_centroid_x", "maskrcnn_score", "maskrcnn_area"):
        np.testing.assert_array_equal(swapped[name], full[name])
    assert len(empty) == 0
    assert len(void) == 0
    config = butler.get("maskRcnnDeblend_config", collections="u/test/deblend")
    assert list(config.bad_planes)[-1] == "SUSPECT"
    assert dict(config.bands) == {"z": "z", "r": "r", "g": "g"}
    assert config.model_uri == str(model_path)
