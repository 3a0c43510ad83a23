# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Scenes to train on: from the simulator, and from the products of a Butler."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scene_list import SceneList

import lsst.afw.image as afwImage
import lsst.geom as geom
from lsst.afw.table import SourceCatalog, SourceTable
from lsst.meas.maskrcnn.catalogs.exposures import IncompatibleExposuresError, UncalibratedExposureError
from lsst.meas.maskrcnn.catalogs.training_data import make_training_scene
from lsst.meas.maskrcnn.catalogs.truth import make_truth_catalog
from lsst.meas.maskrcnn.images.normalize import LuptonSettings
from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures, truth_to_exposures
from lsst.meas.maskrcnn.scenes.artefacts import MASK_BITS
from lsst.meas.maskrcnn.scenes.config import MaskRule
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import Scene, simulate_scene
from lsst.meas.maskrcnn.train.dataset import CropSettings, CropSource
from lsst.meas.maskrcnn.train.training_scene import read_scene
from lsst.meas.maskrcnn.train.training_set import (
    MIN_PEAK_SHARE,
    make_training_set,
    mask_levels,
    to_training_scene,
)

XY0 = (-300, 12000)
SHAPE = (140, 190)


@pytest.fixture(scope="module")
def scene() -> Scene:
    config = preset_config("decam-120s", shape=SHAPE, keep_models=True)
    artefacts = dataclasses.replace(
        config.artefacts, chip_gaps=3.0, chip_gap_width=(1.0, 2.0), dead_columns=2.0
    )
    population = dataclasses.replace(config.population, galaxy_density=200.0, star_density=40.0)
    config = dataclasses.replace(config, artefacts=artefacts, population=population)
    return simulate_scene(config, np.random.default_rng(5))


@pytest.fixture(scope="module")
def exposures(scene: Scene) -> dict[str, afwImage.ExposureF]:
    return scene_to_exposures(scene, xy0=XY0, nanojansky_per_count={"z": 2.0, "r": 0.5, "g": 1.0})


@pytest.fixture(scope="module")
def truth(scene: Scene, exposures: dict[str, afwImage.ExposureF]) -> SourceCatalog:
    return make_truth_catalog(scene, exposures["r"].getWcs(), geom.Point2I(*XY0))


# ---- from the simulator


def test_what_is_kept_of_a_scene(scene: Scene) -> None:
    kept = to_training_scene(scene, keep_image=True)
    drawn = np.flatnonzero(scene.sources["area"] >= 1)
    assert 0 < len(drawn) == len(kept.labels)
    sources = scene.sources[drawn]
    np.testing.assert_array_equal(kept.labels == 1, sources["is_star"])
    np.testing.assert_array_equal(
        kept.ignore, sources["flag_masked"] | (sources["peak_share"] < MIN_PEAK_SHARE)
    )
    assert kept.ignore.any() and not kept.ignore.all()
    np.testing.assert_allclose(kept.positions, np.stack([sources["y"], sources["x"]], axis=1), atol=1e-4)
    bad = ((scene.mask & (MASK_BITS["BAD"] | MASK_BITS["NO_DATA"])) != 0).any(axis=0)
    np.testing.assert_array_equal(kept.valid, ~bad)
    np.testing.assert_array_equal(kept.image[:, kept.valid], scene.images[:, kept.valid])
    assert to_training_scene(scene).image is None
    assert kept.mask_levels == (0.005, 0.08)


def test_levels_of_mask_rules() -> None:
    assert mask_levels(MaskRule(star_fraction=0.01)) == (0.01, 0.08)
    np.testing.assert_allclose(mask_levels(MaskRule(kind="fluxFraction", flux_fraction=0.8)), (0.2, 0.2))
    assert mask_levels(MaskRule(kind="isophote")) is None


def test_a_training_set_of_presets(tmp_path) -> None:
    made = list(
        make_training_set(
            tmp_path, 3, 7, presets=["hsc-500s-noiseless", "lsst-1yr"], shape=(64, 80), bands=("r", "g")
        )
    )
    assert [path.name for path in made] == [
        "hsc-500s-noiseless_7_00000.npz",
        "lsst-1yr_7_00001.npz",
        "hsc-500s-noiseless_7_00002.npz",
    ]
    first, second, third = (read_scene(path) for path in made)
    assert (first.noisy, second.noisy) == (False, True)
    assert first.variance.shape == (2, 64, 80)
    assert not np.array_equal(first.noiseless, third.noiseless)
    with pytest.raises(ValueError, match="no preset hsc_wide"):
        list(make_training_set(tmp_path, 1, 7, presets=["hsc_wide"]))


# ---- from the products of a Butler


def test_products_give_the_scene_back(scene: Scene, exposures, truth: SourceCatalog) -> None:
    """Bands in the order asked for, in nJy, whatever the units and the origin of the exposures."""
    light = truth_to_exposures(scene, exposures)
    bands = ("g", "z")
    index = [scene.bands.index(band) for band in bands]
    kept = make_training_scene(exposures, truth, bands, truth_images=light)
    direct = to_training_scene(scene)
    assert kept.noisy
    np.testing.assert_allclose(kept.image[:, kept.valid], scene.images[index][:, kept.valid], rtol=1e-5)
    np.testing.assert_allclose(kept.variance[:, kept.valid], scene.variance[index][:, kept.valid], rtol=1e-5)
    bad = ((scene.mask[index] & (MASK_BITS["BAD"] | MASK_BITS["NO_DATA"])) != 0).any(axis=0)
    assert bad.any()
    np.testing.assert_array_equal(kept.valid, ~bad)
    saturated = (scene.mask[index] & MASK_BITS["SAT"]) != 0
    usable = kept.valid & ~saturated
    np.testing.assert_allclose(kept.noiseless[usable], scene.light[index][usable], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(
        kept.noiseless[saturated & kept.valid], scene.images[index][saturated & kept.valid], rtol=1e-5
    )
    for name in ("labels", "origins", "ignore"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(direct, name))
    np.testing.assert_allclose(kept.positions, direct.positions, atol=1e-3)
    np.testing.assert_allclose(kept.psf_fwhm, direct.psf_fwhm[index], rtol=0.02)
    # The sky's noise is a median here, and stars add to it.
    np.testing.assert_allclose(kept.peak_flux, direct.peak_flux[:, index], rtol=0.1)
    for one, other in zip(kept.masks, direct.masks, strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(np.isfinite(array).all() for array in (kept.noiseless, kept.image, kept.variance))
    assert (kept.variance > 0).all()


def test_without_truth_images_there_is_the_image_alone(exposures, truth: SourceCatalog) -> None:
    kept = make_training_scene(exposures, truth)
    assert kept.noisy
    assert kept.noiseless is None
    assert kept.image.shape == (3, *SHAPE)
    source = CropSource(SceneList([kept]), LuptonSettings(), CropSettings(size=96), 1, True)
    images, targets = source.crops(range(4))
    assert all(bool(torch.isfinite(image).all()) for image in images)
    assert sum(len(target["boxes"]) for target in targets) > 0
    assert sum(len(target["ignore_boxes"]) for target in targets) > 0


@pytest.mark.parametrize("name", ["hsc-500s-noiseless", "hsc-deep-noiseless", "hsc-wide", "lsst-10yr"])
def test_noise_is_seen(name: str) -> None:
    small = simulate_scene(preset_config(name, shape=SHAPE), np.random.default_rng(2))
    made = scene_to_exposures(small, xy0=XY0)
    catalog = make_truth_catalog(small, made["r"].getWcs(), geom.Point2I(*XY0))
    kept = make_training_scene(made, catalog)
    assert kept.noisy == small.config.noise
    assert (kept.noiseless is None) == small.config.noise
    assert (kept.image is None) != small.config.noise


def test_truth_in_one_band_only(scene: Scene, exposures, truth: SourceCatalog) -> None:
    """As importers have it: S/N, truth images and shares of one band or of none."""
    for band in ("r", "g"):
        truth[f"truth_{band}_peakSnr"][:] = np.nan
    truth["truth_peakShare"][:] = np.nan
    light = {"z": truth_to_exposures(scene, exposures)["z"]}
    kept = make_training_scene(exposures, truth, truth_images=light)
    direct = to_training_scene(scene)
    assert kept.noiseless is None
    np.testing.assert_allclose(kept.peak_flux[:, 0], direct.peak_flux[:, 0], rtol=0.1)
    assert not kept.peak_flux[:, 1:].any()
    np.testing.assert_array_equal(
        kept.ignore, scene.sources["flag_masked"][np.flatnonzero(scene.sources["area"] >= 1)]
    )
    # Without any, the brightest pixel within the mask stands in.
    truth["truth_z_peakSnr"][:] = np.nan
    kept = make_training_scene(exposures, truth)
    bright = direct.peak_flux.max(axis=1) > 100.0 * math.sqrt(float(np.median(kept.variance[0])))
    bright &= ~direct.ignore
    assert bright.any()
    assert (kept.peak_flux[bright] > 0.3 * direct.peak_flux[bright]).all()


@pytest.fixture(autouse=True)
def _truth_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Put back what a test changes in the catalogue that all share."""
    if "truth" not in request.fixturenames:
        yield
        return
    catalog = request.getfixturevalue("truth")
    names = [f"truth_{band}_peakSnr" for band in "zrg"] + ["truth_peakShare"]
    before = {name: np.array(catalog[name]) for name in names}
    yield
    for name, values in before.items():
        catalog[name][:] = values


def test_pixels_without_a_variance_are_not_usable(exposures, truth: SourceCatalog) -> None:
    altered = {band: exposure.clone() for band, exposure in exposures.items()}
    altered["r"].variance.array[20, 30:33] = np.nan, 0.0, -1.0
    before, after = (make_training_scene(item, truth) for item in (exposures, altered))
    changed = np.argwhere(before.valid != after.valid)
    np.testing.assert_array_equal(changed, [[20, 30], [20, 31], [20, 32]])
    assert not after.valid[20, 30:33].any()
    assert (after.variance > 0).all()


def test_no_psf(exposures, truth: SourceCatalog) -> None:
    bare = {band: exposure.clone() for band, exposure in exposures.items()}
    bare["z"].setPsf(None)
    kept = make_training_scene(bare, truth, ("z", "r"))
    assert np.isnan(kept.psf_fwhm[0])
    assert kept.psf_fwhm[1] > 1.0
    assert make_training_scene(bare, truth, ("z",)).psf_fwhm is None


def test_refusals(exposures, truth: SourceCatalog) -> None:
    with pytest.raises(ValueError, match=r"no exposure in band 'y'.*\['z', 'r', 'g'\]"):
        make_training_scene(exposures, truth, ("z", "y"))
    with pytest.raises(ValueError, match="No exposure was given"):
        make_training_scene({}, truth)
    part = exposures["r"].Factory(
        exposures["r"], geom.Box2I(geom.Point2I(*XY0), geom.Extent2I(50, 60)), afwImage.PARENT
    )
    with pytest.raises(IncompatibleExposuresError, match="bounding box"):
        make_training_scene({**exposures, "r": part}, truth)
    with pytest.raises(ValueError, match="truth image in band 'r' covers"):
        make_training_scene(exposures, truth, truth_images={**exposures, "r": part})
    bare = exposures["r"].clone()
    bare.setPhotoCalib(None)
    with pytest.raises(UncalibratedExposureError, match="band 'r' has no PhotoCalib"):
        make_training_scene({**exposures, "r": bare}, truth)
    with pytest.raises(ValueError, match="no field truth_isStar"):
        make_training_scene(exposures, SourceCatalog(SourceTable.makeMinimalSchema()))
