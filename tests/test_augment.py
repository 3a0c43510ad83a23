# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changes of training images: what follows from what."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from lsst.meas.maskrcnn.train.augment import (
    AugmentSettings,
    Realization,
    added_mask_area,
    draw_realization,
    gaussian_kernel,
    grow_mask,
    realize,
)
from lsst.meas.maskrcnn.train.training_scene import TrainingScene

SHAPE = (150, 200)
SIGMA = np.array([2.0, 5.0])
GAIN = 4.0


def source(sigma_y: float, sigma_x: float, shape=SHAPE, center=(70.0, 90.0)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-0.5 * (((y - center[0]) / sigma_y) ** 2 + ((x - center[1]) / sigma_x) ** 2))


def make_scene(*, own: bool = False, noisy: bool = True, seed: int = 1) -> TrainingScene:
    """One galaxy in two bands on a sky whose variance is that of photons and sky."""
    light = np.array([2000.0, 900.0])[:, None, None] * source(6.0, 3.0)
    variance = (SIGMA**2)[:, None, None] + light / GAIN
    image = None
    if own:
        image = light + np.sqrt(variance) * np.random.default_rng(seed).normal(size=light.shape)
    mask = source(6.0, 3.0) > 0.08
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return TrainingScene(
        noiseless=None if own else light.astype(np.float32),
        variance=variance.astype(np.float32),
        valid=np.ones(SHAPE, bool),
        labels=np.array([2]),
        peak_flux=np.array([[2000.0, 900.0]], np.float32),
        origins=np.array([[rows[0], columns[0]]], np.int32),
        masks=[mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]],
        noisy=noisy,
        psf_fwhm=np.array([4.0, 3.0], np.float32),
        image=None if image is None else image.astype(np.float32),
        mask_levels=(0.005, 0.08),
    )


def make_realization(**changes) -> Realization:
    plain = Realization(np.ones(2, np.float32), 1.0, 0.0)
    return dataclasses.replace(plain, **changes)


WHOLE = (0, 0, *SHAPE)
SKY = np.s_[:, :, 130:]
"""Pixels far from the galaxy."""


def test_nothing_changes_by_default():
    assert not AugmentSettings().changes_pixels
    assert AugmentSettings.published().changes_pixels
    for scene in (make_scene(), make_scene(own=True)):
        drawn = draw_realization(AugmentSettings(), np.random.default_rng(1), scene)
        assert (drawn.gain == 1).all()
        assert (drawn.noise, drawn.blur) == (1.0, 0.0)
    flux, variance = realize(scene, SIGMA, drawn, WHOLE, np.random.default_rng(1))
    np.testing.assert_array_equal(flux, scene.image)
    np.testing.assert_array_equal(variance, scene.variance)


def test_noise_has_the_variance_told():
    scene = make_scene()
    for depth in (0.5, 1.0, 3.0):
        rng = np.random.default_rng(4)
        drawn = [realize(scene, SIGMA, make_realization(noise=depth), WHOLE, rng) for _ in range(30)]
        variance = drawn[0][1]
        np.testing.assert_allclose(variance, scene.variance * depth**2, rtol=1e-6)
        pull = (np.stack([flux for flux, _ in drawn]) - scene.noiseless) / np.sqrt(variance)
        assert abs(pull.mean()) < 0.005
        assert abs(pull.std() - 1.0) < 0.005
        # In the galaxy as well, whose photons are noise too.
        assert abs(pull[:, :, 65:75, 87:93].std() - 1.0) < 0.03


def test_brighter_sources_have_more_photon_noise():
    scene = make_scene()
    gain = np.array([2.0, 0.5], np.float32)
    flux, variance = realize(
        scene, SIGMA, make_realization(gain=gain, noise=0.0), WHOLE, np.random.default_rng(1)
    )
    np.testing.assert_allclose(flux, gain[:, None, None] * scene.noiseless, rtol=1e-6)
    expected = (SIGMA**2)[:, None, None] + gain[:, None, None] * scene.noiseless / GAIN
    np.testing.assert_allclose(variance, expected, rtol=1e-4)


def test_only_noise_can_be_added_to_an_image():
    scene = make_scene(own=True)
    settings = AugmentSettings(depth_probability=1.0, depth_range=(0.2, 0.5))
    drawn = draw_realization(settings, np.random.default_rng(2), scene)
    assert drawn.own
    assert drawn.noise == 1.0
    deeper = make_realization(own=True, noise=2.0, gain=np.array([3.0, 1.0], np.float32))
    flux, variance = realize(scene, SIGMA, deeper, WHOLE, np.random.default_rng(5))
    factor = np.array([36.0, 4.0])[:, None, None]
    np.testing.assert_allclose(variance, scene.variance * factor, rtol=1e-5)
    for band in (0, 1):
        pull = (flux / np.sqrt(variance))[band, :, 130:]
        assert abs(pull.std() - 1.0) < 0.02


def test_a_scene_without_noise():
    """Its variance is a scale, until the noise is more."""
    scene = make_scene(noisy=False)
    settings = AugmentSettings(depth_probability=1.0, depth_range=(3.0, 4.0))
    assert draw_realization(settings, np.random.default_rng(1), scene).noise == 0.0
    settings = AugmentSettings(noise_probability=1.0, noise_range=(0.1, 0.2))
    drawn = draw_realization(settings, np.random.default_rng(1), scene)
    assert 0.1 <= drawn.noise <= 0.2
    for noise, factor in ((0.0, 1.0), (0.1, 1.0), (2.0, 4.0)):
        flux, variance = realize(scene, SIGMA, make_realization(noise=noise), WHOLE, np.random.default_rng(1))
        np.testing.assert_allclose(variance, scene.variance * factor, rtol=1e-6)
        scatter = (flux[SKY] - scene.noiseless[SKY]).std(axis=(1, 2))
        np.testing.assert_allclose(scatter, noise * SIGMA, rtol=0.03)


def test_blur_is_that_of_the_seeing():
    """The galaxy comes out with the variances of both added, and its flux is kept."""
    scene = make_scene()
    change = make_realization(blur=1.5, noise=0.0)
    flux, variance = realize(scene, SIGMA, change, WHOLE, np.random.default_rng(1))
    added = change.kernel_variance
    assert abs(added - 1.5**2) < 0.1
    expected = 2000.0 * 18.0 / math.sqrt((36 + added) * (9 + added))
    np.testing.assert_allclose(flux[0].max(), expected, rtol=0.01)
    np.testing.assert_allclose(flux.sum(), scene.noiseless.sum(), rtol=1e-4)
    np.testing.assert_allclose(variance, (SIGMA**2)[:, None, None] + flux / GAIN, rtol=1e-4)
    widths = change.psf_fwhm([4.0, np.nan])
    np.testing.assert_allclose(widths, [math.sqrt(16.0 + 8.0 * math.log(2.0) * added), np.nan])


def test_blurred_noise_is_correlated():
    scene = make_scene(own=True)
    change = make_realization(blur=1.0, own=True)
    flux, variance = realize(scene, SIGMA, change, WHOLE, np.random.default_rng(1))
    kernel = gaussian_kernel(1.0)
    np.testing.assert_allclose(variance[SKY], scene.variance[SKY] * np.sum(kernel**2) ** 2, rtol=1e-3)
    for band in (0, 1):
        sky = flux[band][10:-10, 130:-10]
        expected = math.sqrt(variance[band, 10, 150])
        assert abs(sky.std() / expected - 1.0) < 0.08
        # The autocorrelation of the kernel: exp(-1 / (4 sigma^2)).
        lag = np.mean(sky[1:] * sky[:-1]) / np.mean(sky**2)
        assert abs(lag - math.exp(-0.25)) < 0.05


def test_blur_does_not_spread_unusable_pixels():
    scene = make_scene(own=True)
    scene.valid[:, 150:153] = False
    scene.image[:, :, 150:153] = 1e6
    flux, variance = realize(
        scene, SIGMA, make_realization(blur=1.2, own=True), WHOLE, np.random.default_rng(1)
    )
    assert np.isfinite(flux).all()
    assert (variance > 0).all()
    assert np.abs(flux[:, :, 153:]).max() < 10.0 * SIGMA.max()
    # Fewer pixels are averaged beside the gap.
    assert (variance[:, 20:, 153] > 1.2 * variance[:, 20:, 170]).all()


@pytest.mark.parametrize("blur", [0.0, 1.3])
@pytest.mark.parametrize("window", [(0, 0, 40, 60), (90, 120, 60, 80), (37, 50, 64, 96)])
def test_a_part_is_the_same_as_in_the_whole(blur, window):
    """Noise apart."""
    scene = make_scene()
    change = make_realization(noise=0.0, blur=blur, gain=np.array([1.5, 0.7], np.float32))
    rng = np.random.default_rng(1)
    y0, x0, height, width = window
    for part, whole in zip(
        realize(scene, SIGMA, change, window, rng), realize(scene, SIGMA, change, WHOLE, rng), strict=True
    ):
        np.testing.assert_allclose(part, whole[:, y0 : y0 + height, x0 : x0 + width], rtol=1e-4, atol=1e-4)
    sample, _ = realize(scene, SIGMA, dataclasses.replace(change, blur=0.0), WHOLE, rng, 3)
    whole, _ = realize(scene, SIGMA, dataclasses.replace(change, blur=0.0), WHOLE, rng)
    np.testing.assert_allclose(sample, whole[:, ::3, ::3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("level", "radius", "ratio", "beta"),
    [(0.005, 4.0, 1.0, 2.5), (0.005, 4.5, 1.0, 3.5), (0.08, 8.0, 0.5, 2.0)],
)
@pytest.mark.parametrize("blur", [0.6, 1.2])
def test_masks_grow_as_the_sources_do(level, radius, ratio, beta, blur):
    """Moffat profiles, as stars and galaxies have wings."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    light = (1.0 + ((y - 70.0) ** 2 + ((x - 90.0) / ratio) ** 2) / radius**2) ** -beta
    scene = make_scene(noisy=False)
    scene.noiseless[:] = light
    change = make_realization(noise=0.0, blur=blur)
    blurred = realize(scene, SIGMA, change, WHOLE, np.random.default_rng(1))[0][0]
    before, after = light > level, blurred > level * blurred.max()
    rows, columns = np.flatnonzero(before.any(axis=1)), np.flatnonzero(before.any(axis=0))
    mask = before[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    grown, margin = grow_mask(mask, added_mask_area(change.kernel_variance, level))
    whole = np.zeros_like(after)
    y0, x0 = rows[0] - margin, columns[0] - margin
    whole[y0 : y0 + grown.shape[0], x0 : x0 + grown.shape[1]] = grown
    assert (whole | ~before).all()
    iou = (whole & after).sum() / (whole | after).sum()
    assert iou > 0.92
    if blur > 1:
        assert iou > 0.05 + (before & after).sum() / (before | after).sum()


def test_a_mask_that_does_not_grow():
    mask = np.ones((3, 5), bool)
    grown, margin = grow_mask(mask, 0.2)
    assert margin == 0
    assert grown is mask


@pytest.mark.parametrize(
    "wrong",
    [
        {"flux_probability": 1.5},
        {"blur_range": (2.0, 1.0)},
        {"noise_range": (0.0, 1.0)},
        {"band_flux_scatter": -0.1},
        {"blur_probability": math.nan},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentSettings(**wrong)


def test_every_setting_is_drawn():
    """Each probability on its own changes something, and its range is kept."""
    scene = make_scene()
    rng = np.random.default_rng(8)
    for field in dataclasses.fields(AugmentSettings):
        if not field.name.endswith("_probability"):
            continue
        settings = AugmentSettings(**{field.name: 1.0}, flux_range=(2.0, 3.0), band_flux_scatter=0.0)
        assert settings.changes_pixels
        quiet = make_scene(noisy=False)
        drawn = draw_realization(settings, rng, quiet if field.name == "noise_probability" else scene)
        kind = field.name.removesuffix("_probability")
        expected = {
            "flux": lambda d: 2.0 <= d.gain[0] <= 3.0 and d.gain[0] == d.gain[1],
            "depth": lambda d: 1.0 < d.noise <= 2.0,
            "noise": lambda d: 0.1 <= d.noise < 1.0,
            "blur": lambda d: 0.4 <= d.blur <= 1.2,
        }
        assert expected[kind](drawn), kind
