# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of images of larger pixels."""

from __future__ import annotations

import numpy as np
import pytest

from lsst.meas.maskrcnn.images.binning import bin_image, bin_psf_fwhm, sum_squares
from lsst.meas.maskrcnn.train.scene_cuts import bin_scene
from lsst.meas.maskrcnn.train.training_scene import TrainingScene


def observed(shape: tuple[int, int], seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Flux and variance of noise in two bands."""
    rng = np.random.default_rng(seed)
    variance = rng.uniform(1.0, 4.0, (2, *shape)).astype(np.float32)
    return (rng.normal(size=(2, *shape)) * np.sqrt(variance)).astype(np.float32), variance


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_whole_squares_are_those_of_the_training(factor: int) -> None:
    flux, variance = observed((48, 80))
    valid = np.ones((48, 80), dtype=bool)
    valid[8:24, 12:30] = False
    scene = TrainingScene(
        noiseless=None,
        variance=variance,
        valid=valid,
        labels=np.zeros(0, np.int64),
        peak_flux=np.zeros((0, 2), np.float32),
        origins=np.zeros((0, 2), np.int32),
        masks=[],
        image=flux,
        psf_fwhm=np.array([3.0, 4.0], np.float32),
    )
    learned = bin_scene(scene, factor)
    binned = bin_image(flux, variance, valid, factor)
    assert np.array_equal(binned.valid, learned.valid)
    whole = sum_squares(valid, factor) == factor**2
    assert whole.sum() > 0.8 * whole.size
    np.testing.assert_allclose(binned.flux[:, whole], learned.image[:, whole], rtol=1e-6)
    np.testing.assert_allclose(binned.variance[:, whole], learned.variance[:, whole], rtol=1e-6)
    np.testing.assert_allclose(bin_psf_fwhm(scene.psf_fwhm, factor), learned.psf_fwhm, rtol=1e-6)


def test_holes_do_not_look_like_a_lack_of_light() -> None:
    flux = np.full((3, 37, 53), 7.0, dtype=np.float32)
    flux[1] = -2.0
    valid = np.random.default_rng(1).random((37, 53)) > 0.4
    flux[:, ~valid] = np.nan
    binned = bin_image(flux, None, valid, 4)
    assert binned.flux.shape == (3, 10, 14) and binned.variance is None
    np.testing.assert_allclose(binned.flux[0][binned.valid], 16 * 7.0)
    np.testing.assert_allclose(binned.flux[1][binned.valid], -32.0)
    assert (binned.flux[:, ~binned.valid] == 0.0).all()


def test_squares_with_half_of_their_pixels_are_usable() -> None:
    flux = np.ones((1, 4, 6), dtype=np.float32)
    valid = np.ones((4, 6), dtype=bool)
    valid[0, :2] = False  # two of four left
    valid[:2, 2:4] = [[False, False], [False, True]]
    flux[0, 2, 4] = np.inf
    binned = bin_image(flux, flux, valid, 2)
    assert binned.valid.tolist() == [[True, False, True], [True, True, True]]
    assert binned.flux[0].tolist() == [[4.0, 0.0, 4.0], [4.0, 4.0, 4.0]]
    # Twice two of them, and 4/3 of three.
    np.testing.assert_allclose(binned.variance[0], [[8.0, 0.0, 4.0], [4.0, 4.0, 16.0 / 3.0]], rtol=1e-6)


def test_squares_at_the_edge_lack_what_is_not_on_the_image() -> None:
    flux = np.arange(35.0, dtype=np.float32).reshape(1, 5, 7)
    binned = bin_image(flux, flux, None, 3)
    assert binned.valid.tolist() == [[True, True, False], [True, True, False]]
    assert binned.flux[0, 0, 0] == flux[0, :3, :3].sum()
    # Two rows of three stand for three.
    np.testing.assert_allclose(binned.flux[0, 1, 1], 1.5 * flux[0, 3:, 3:6].sum(), rtol=1e-6)


def test_variance_is_that_of_the_sums() -> None:
    rng = np.random.default_rng(5)
    variance = rng.uniform(0.5, 3.0, (1, 12, 18)).astype(np.float32)
    valid = rng.random((12, 18)) > 0.25
    draws = []
    for _ in range(1500):
        noise = (rng.normal(size=variance.shape) * np.sqrt(variance)).astype(np.float32)
        draws.append(bin_image(noise, variance, valid, 3).flux)
    binned = bin_image(noise, variance, valid, 3)
    measured = np.var(draws, axis=0)[:, binned.valid]
    # The scatter of a variance of 1500 draws is 3.7 %.
    np.testing.assert_allclose(measured, binned.variance[:, binned.valid], rtol=0.2)
    assert abs(np.mean(measured / binned.variance[:, binned.valid]) - 1.0) < 0.03


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    flux, variance = observed((61, 45))
    valid = np.random.default_rng(2).random((61, 45)) > 0.3
    whole = bin_image(flux, variance, valid, 4)
    monkeypatch.setattr("lsst.meas.maskrcnn.images.binning._BLOCK_PIXELS", 400)
    parts = bin_image(flux, variance, valid, 4)
    for name in ("flux", "variance", "valid"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def test_binning_says_what_is_wrong() -> None:
    flux, variance = observed((10, 12))
    with pytest.raises(ValueError, match="factor is 0"):
        bin_image(flux, variance, None, 0)
    with pytest.raises(ValueError, match=r"variance has shape \(2, 10, 11\)"):
        bin_image(flux, variance[..., :-1], None, 2)
    with pytest.raises(ValueError, match="valid has shape"):
        bin_image(flux, None, np.ones((2, 10, 12), bool), 2)
    with pytest.raises(ValueError, match="flux has shape"):
        bin_image(flux[0], None, None, 2)
    with pytest.raises(ValueError, match="factor is -1"):
        bin_psf_fwhm([3.0], -1)
