# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of the way from exposures to arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lsst.afw.image as afwImage
import lsst.geom as geom
from lsst.afw.detection import GaussianPsf
from lsst.meas.maskrcnn.catalogs.exposures import flagged_pixels, psf_fwhm, psf_image, to_nanojansky
from lsst.meas.maskrcnn.deblend.image import gaussian_fwhm
from lsst.meas.maskrcnn.images.normalize import LuptonSettings, normalize

BOX = geom.Box2I(geom.Point2I(12000, 8000), geom.Extent2I(130, 90))


def make_exposure(flux: np.ndarray, variance: np.ndarray, njy_per_count: float = 1.0) -> Any:
    """Give an exposure whose pixels are counts."""
    exposure = afwImage.ExposureF(BOX)
    exposure.image.array[:, :] = flux / njy_per_count
    exposure.variance.array[:, :] = variance / njy_per_count**2
    exposure.setPhotoCalib(afwImage.PhotoCalib(njy_per_count))
    return exposure


@pytest.fixture
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Flux and variance, (y, x), nJy and nJy^2."""
    rng = np.random.default_rng(1)
    variance = rng.uniform(1.0, 5.0, (90, 130))
    return 100.0 * rng.normal(size=(90, 130)), variance


def check(exposure: Any, pixels: tuple[np.ndarray, np.ndarray]) -> None:
    """Compare the arrays of an exposure with what it was made from."""
    for made, wanted in zip(to_nanojansky(exposure), pixels, strict=True):
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("njy_per_count", [1.0, 57.0, 0.003])
def test_constant_calibration(pixels: Any, njy_per_count: float) -> None:
    exposure = make_exposure(*pixels, njy_per_count)
    before = exposure.image.array.copy()
    check(exposure, pixels)
    np.testing.assert_array_equal(exposure.image.array, before)


def test_photo_calib_that_varies(pixels: Any) -> None:
    math = pytest.importorskip("lsst.afw.math")
    if not hasattr(math, "ChebyshevBoundedField"):
        pytest.skip("lsst.afw.math has no ChebyshevBoundedField here")
    field = math.ChebyshevBoundedField(BOX, np.array([[1.0, 0.2], [-0.3, 0.0]]))
    varying = afwImage.PhotoCalib(field)
    x, y = np.meshgrid(np.arange(12000.0, 12130.0), np.arange(8000.0, 8090.0))
    factor = varying.getLocalCalibrationArray(x.ravel(), y.ravel()).reshape(90, 130)
    assert factor.max() > 1.2 * factor.min()
    exposure = make_exposure(pixels[0] / factor, pixels[1] / factor**2)
    exposure.setPhotoCalib(varying)
    check(exposure, pixels)


class VaryingCalib:
    """A calibration with a gradient, by PhotoCalib's methods."""

    def getCalibrationMean(self) -> float:
        return 2.0

    def getLocalCalibrationArray(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 2.0 * (1 + (x - 12000) / 500 - (y - 8000) / 900)


class VaryingExposure:
    """An exposure whose calibration is a `VaryingCalib`."""

    def __init__(self, exposure: Any) -> None:
        self._exposure = exposure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exposure, name)

    def getPhotoCalib(self) -> VaryingCalib:
        return VaryingCalib()


def test_calibration_is_evaluated_at_each_pixel(pixels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parent coordinates, with x and y in their places, over all blocks."""
    monkeypatch.setattr("lsst.meas.maskrcnn.catalogs.exposures._BLOCK_SIZE", 130 * 7)
    x, y = np.meshgrid(np.arange(12000.0, 12130.0), np.arange(8000.0, 8090.0))
    factor = VaryingCalib().getLocalCalibrationArray(x, y)
    check(VaryingExposure(make_exposure(pixels[0] / factor, pixels[1] / factor**2)), pixels)


def test_mask_planes(pixels: Any) -> None:
    exposure = make_exposure(*pixels)
    wanted = np.zeros((90, 130), dtype=bool)
    for k, plane in enumerate(("BAD", "NO_DATA", "SAT", "CR")):
        exposure.mask.array[10 + k, 20:25] |= exposure.mask.getPlaneBitMask(plane)
        wanted[10 + k, 20:25] = plane in ("BAD", "NO_DATA")
    np.testing.assert_array_equal(flagged_pixels(exposure, ["BAD", "NO_DATA", "NO_SUCH_PLANE"]), wanted)
    assert not flagged_pixels(exposure, []).any()


@pytest.mark.parametrize(
    ("name", "other"),
    [("CR", "COSMIC_RAY"), ("SAT", "SATURATED"), ("INTRP", "INTERPOLATED"), ("EDGE", "DETECTION_EDGE")],
)
def test_mask_planes_have_two_spellings(pixels: Any, name: str, other: str) -> None:
    exposure = make_exposure(*pixels)
    if other not in exposure.mask.getMaskPlaneDict():
        exposure.mask.addMaskPlane(other)
    exposure.mask.array[3, 4] |= exposure.mask.getPlaneBitMask(other)
    for asked in (name, other):
        assert np.argwhere(flagged_pixels(exposure, [asked])).tolist() == [[3, 4]]
    assert not flagged_pixels(exposure, ["NO_DATA"]).any()


def test_scarlet_exposures(shared_data: Path) -> None:
    """An HSC-like patch far from the origin, in electrons."""
    exposures = [afwImage.ExposureF(str(shared_data / "scarlet" / f"exposure_{band}.fits")) for band in "zrg"]
    flux, variance = (np.stack(planes) for planes in zip(*map(to_nanojansky, exposures), strict=True))
    bad = np.any([flagged_pixels(exposure, ["BAD", "NO_DATA"]) for exposure in exposures], axis=0)
    result = normalize(LuptonSettings(), flux, variance, ~bad)
    assert result.image.shape == (3, 512, 512)
    assert result.valid.mean() > 0.9 and np.isfinite(result.image).all()
    assert 0.02 < np.median(np.abs(result.image)) < 0.3
    assert 2 < result.image.max() < 30


@pytest.mark.parametrize("sigma", [0.4, 0.6, 0.9, 2.0])
def test_width_of_a_psf_is_that_of_its_image(sigma: float) -> None:
    """Where it is hardly sampled as well."""
    exposure = afwImage.ExposureF(BOX)
    exposure.setPsf(GaussianPsf(25, 25, sigma))
    image = psf_image(exposure, 15.0, 15.0)
    assert image is not None
    width = psf_fwhm({"r": exposure})[0]
    # Of a Gaussian afw knows the moments without its pixels, which differ by 1.2 % from theirs at 0.9 px.
    assert width == pytest.approx(gaussian_fwhm(image), rel=2e-2)
    assert width > 0.9 * max(2.355 * sigma, 1.0)
