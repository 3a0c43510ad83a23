# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of the normalisation of arrays."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsst.meas.maskrcnn.images.background import clip_sorted, mesh_background
from lsst.meas.maskrcnn.images.normalize import LuptonSettings, NormalizedImage, ZScoreSettings, normalize

SHAPE = (3, 120, 170)
SIGMA = np.array([3.0, 2.0, 4.0])


def blobs(shape: tuple[int, int, int] = SHAPE, seed: int = 1) -> np.ndarray:
    """Noiseless Gaussian sources, float64 (band, y, x), nJy."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[1], : shape[2]]
    image = np.zeros(shape)
    for _ in range(12):
        y0, x0 = rng.uniform(0, shape[1]), rng.uniform(0, shape[2])
        profile = np.exp(-((y - y0) ** 2 + (x - x0) ** 2) / 2 / 2.0**2)
        image += 10 ** rng.uniform(1, 4) * rng.uniform(0.3, 2, size=(shape[0], 1, 1)) * profile
    return image


def sky(seed: int = 2, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Noisy flux (float64) and its variance plane."""
    signal = blobs(shape, seed)
    variance = SIGMA[:, None, None] ** 2 + 0.01 * signal
    return signal + np.random.default_rng(seed).normal(size=shape) * np.sqrt(variance), variance


def lupton_normalize(
    flux: Any, variance: Any = None, valid: Any = None, *, overwrite: bool = False, **settings: Any
) -> NormalizedImage:
    return normalize(LuptonSettings(**settings), flux, variance, valid, overwrite=overwrite)


def zscore_normalize(
    flux: Any, variance: Any = None, valid: Any = None, *, overwrite: bool = False, **settings: Any
) -> NormalizedImage:
    return normalize(ZScoreSettings(**settings), flux, variance, valid, overwrite=overwrite)


FIXED: dict[str, Any] = {"stretch": 10.0, "stretch_unit": "nJy", "scale": 1.0, "scale_unit": "nJy"}
LUPTON_SETTINGS = [
    {},
    {"background": "local", "background_mesh": 40},
    {"noise_source": "pixels"},
    {"stretch": 99.0, "stretch_unit": "percentile"},
    {"scale": 99.9, "scale_unit": "percentile"},
    {"stretch": 90.0, "stretch_unit": "percentile", "scale": 99.5, "scale_unit": "percentile", "q": 3.0},
    {"stretch": 500.0, "stretch_unit": "nJy", "scale": 70.0, "scale_unit": "nJy"},
]
ZSCORE_SETTINGS = [
    {"statistics": statistics, "asinh": asinh, "softening": 2.0}
    for statistics in ("clipped", "full")
    for asinh in ("none", "before", "after")
]
ALL_SETTINGS = [(lupton_normalize, s) for s in LUPTON_SETTINGS] + [
    (zscore_normalize, s) for s in ZSCORE_SETTINGS
]


# --- The equation


def test_lupton_equation_by_hand() -> None:
    """x_b / I * asinh(Q I / s) / Q, divided by its value at F."""
    flux = np.array([[[3.0, 40.0]], [[5.0, -10.0]], [[7.0, 30.0]]], dtype=np.float32)
    result = lupton_normalize(
        flux, q=8.0, stretch=16.0, stretch_unit="nJy", scale=50.0, scale_unit="nJy", background="none"
    )
    for pixel, intensity in ((0, 5.0), (1, 20.0)):
        for band in range(3):
            wanted = float(flux[band, 0, pixel]) / intensity * math.asinh(8 * intensity / 16) / 8
            wanted /= math.asinh(8 * 50 / 16) / 8
            assert result.image[band, 0, pixel] == pytest.approx(wanted, rel=3e-7)
    assert result.stretch == 16.0
    assert result.scale == pytest.approx(math.asinh(25.0) / 8)


def test_lupton_is_linear_at_zero_and_logarithmic_far_away() -> None:
    flux = np.array([[[1e-6, -1e-6, 0.0, 1e7]]], dtype=np.float32)
    result = lupton_normalize(flux, background="none", **FIXED)
    unit = result.stretch * result.scale
    np.testing.assert_allclose(result.image[0, 0, :3] * unit, [1e-6, -1e-6, 0.0], rtol=3e-7)
    assert result.image[0, 0, 3] == pytest.approx(math.log(2 * 10 * 1e7 / 10) / 10 / result.scale, rel=1e-6)


def test_lupton_at_zero_intensity_keeps_opposite_bands() -> None:
    """With I = 0 exactly the factor has its limit, 1/s."""
    flux = np.array([[[2.0]], [[-2.0]]], dtype=np.float32)
    result = lupton_normalize(flux, background="none", **FIXED)
    np.testing.assert_allclose(result.image[:, 0, 0] * result.stretch * result.scale, [2.0, -2.0], rtol=3e-7)


def test_lupton_is_smooth_and_odd_through_zero() -> None:
    x = np.linspace(-30, 30, 4001).astype(np.float32)
    result = lupton_normalize(x.reshape(1, 1, -1), background="none", **FIXED)
    y = result.image[0, 0].astype(np.float64)
    np.testing.assert_allclose(y, -y[::-1], atol=1e-6 * np.abs(y).max())
    assert (np.diff(y) > 0).all()
    wanted = np.arcsinh(x.astype(np.float64)) / 10 / result.scale
    np.testing.assert_allclose(y, wanted, rtol=5e-7, atol=1e-12)
    # Across the switch from the series to the function, at Q x / s = 2e-4.
    fine = np.linspace(1e-4, 3e-4, 501).astype(np.float32)
    slope = lupton_normalize(fine.reshape(1, 1, -1), background="none", **FIXED).image[0, 0] / fine
    assert np.ptp(slope) < 4e-7 * slope.mean()


def test_lupton_keeps_colours() -> None:
    flux, variance = sky()
    flux = flux.astype(np.float32)
    result = lupton_normalize(flux, variance, background="none")
    for a, b in ((0, 1), (1, 2), (2, 0)):
        # As cross products, which hold for small and negative pixels too.
        left = result.image[a].astype(np.float64) * flux[b]
        right = result.image[b].astype(np.float64) * flux[a]
        np.testing.assert_allclose(left, right, rtol=5e-7, atol=1e-30)
    # The same above a background, relative to the levels subtracted.
    result = lupton_normalize(flux, variance)
    x = flux - result.minimum[:, None, None]
    np.testing.assert_allclose(
        result.image[0] * x[1], result.image[1] * x[0], rtol=1e-6, atol=1e-9 * np.abs(x).max()
    )


def test_default_range() -> None:
    """What the module's documentation promises of 1 to 1e5 sigma."""
    rng = np.random.default_rng(5)
    flux = rng.normal(size=(3, 200, 200)) * 5
    sigma = 5 / math.sqrt(3)
    wanted = {1: 0.057, 5: 0.28, 20: 1.0, 100: 2.6, 1e3: 5.2, 1e4: 7.8, 1e5: 10.4}
    for k, n in enumerate(wanted):
        flux[:, 100, 20 * k + 5] = n * sigma
    result = lupton_normalize(flux.astype(np.float32), np.full(flux.shape, 25.0))
    for k, value in enumerate(wanted.values()):
        # The clipped median of so few pixels is good to one per cent of sigma.
        assert result.image[:, 100, 20 * k + 5].mean() == pytest.approx(value, rel=0.03, abs=2e-3)
    assert result.image.std(axis=(1, 2))[0] > 0.03


def test_percentiles() -> None:
    flux, variance = sky()
    result = lupton_normalize(flux.astype(np.float32), variance, scale=99.0, scale_unit="percentile")
    assert np.percentile(result.image, 99.0) == pytest.approx(1.0, rel=1e-5)
    result = lupton_normalize(flux.astype(np.float32), variance, stretch=97.0, stretch_unit="percentile")
    intensity = (flux - result.minimum[:, None, None]).mean(axis=0)
    assert result.stretch == pytest.approx(np.percentile(intensity, 97.0), rel=1e-5)
    # A percentile below the sky gives way to the default.
    low = lupton_normalize(flux.astype(np.float32), variance, stretch=1.0, stretch_unit="percentile")
    np.testing.assert_array_equal(low.image, lupton_normalize(flux.astype(np.float32), variance).image)


def test_stretch_and_scale_in_noise_and_in_njy_agree() -> None:
    flux, variance = sky()
    flux = flux.astype(np.float32)
    result = lupton_normalize(flux, variance)
    sigma = math.sqrt((result.noise**2).sum()) / 3
    again = lupton_normalize(
        flux, variance, stretch=200 * sigma, stretch_unit="nJy", scale=20 * sigma, scale_unit="nJy"
    )
    np.testing.assert_allclose(again.image, result.image, rtol=1e-6, atol=1e-9)


# --- Invariance


@pytest.mark.parametrize(("function", "settings"), ALL_SETTINGS)
def test_zero_point_and_exposure_time_do_not_matter(function: Any, settings: dict[str, Any]) -> None:
    """The same counts under other calibrations differ by rounding only.

    Counts are stored as float32 and brought to nJy in float32, as from files.
    """
    njy, variance = sky()
    results = []
    for counts_per_njy in (1.0, 57.3, 1e-4, 3.1e5):
        counts = (njy * counts_per_njy).astype(np.float32)
        flux = counts * np.float32(1 / counts_per_njy)
        var = (variance * counts_per_njy**2).astype(np.float32) * np.float32(counts_per_njy**-2)
        results.append(function(flux, var, **settings))
    for other in results[1:]:
        np.testing.assert_allclose(other.image, results[0].image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("function", "settings"), ALL_SETTINGS)
@pytest.mark.parametrize("factor", [2.0**-20, 1e-6, 4096.0, 12345.0])
def test_unit_does_not_matter(function: Any, settings: dict[str, Any], factor: float) -> None:
    """Another unit of flux gives the same array, unless nJy are asked for."""
    settings = dict(settings)
    for key in ("stretch", "scale"):
        if settings.get(f"{key}_unit") == "nJy":
            settings[key] *= factor
    flux, variance = sky()
    one = function(
        flux.astype(np.float32),
        variance.astype(np.float32),
        **(settings | {k: v / factor for k, v in settings.items() if settings.get(f"{k}_unit") == "nJy"}),
    )
    other = function(
        (flux * factor).astype(np.float32), (variance * factor**2).astype(np.float32), **settings
    )
    np.testing.assert_allclose(other.image, one.image, rtol=1e-5, atol=1e-5)
    if math.log2(factor).is_integer() and settings.get("asinh", "none") == "none":
        # A power of two does not even round.
        np.testing.assert_allclose(other.image, one.image, rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize(("function", "settings"), ALL_SETTINGS)
@pytest.mark.parametrize("level", [-50.0, 7.0, 200.0])
def test_constant_background_does_not_matter(function: Any, settings: dict[str, Any], level: float) -> None:
    flux, variance = sky()
    # Pixels on a grid that float32 holds with and without the background, so
    # that the comparison is of the code and not of the rounding of its input.
    flux = np.round(flux * 256) / 256
    one = function(flux.astype(np.float32), variance.astype(np.float32), **settings)
    shifted = flux + level * np.array([1.0, 0.5, 2.0])[:, None, None]
    other = function(shifted.astype(np.float32), variance.astype(np.float32), **settings)
    np.testing.assert_allclose(other.image, one.image, rtol=1e-5, atol=1e-5)


def test_background_none_keeps_the_zero() -> None:
    flux, variance = sky()
    result = lupton_normalize((flux + 30).astype(np.float32), variance, background="none")
    assert (result.minimum == 0).all()
    assert np.median(result.image) > 0.3
    # The noise is still the scatter about the sky.
    pixels = lupton_normalize((flux + 30).astype(np.float32), background="none")
    np.testing.assert_allclose(pixels.noise, SIGMA, rtol=0.1)


# --- Noise


def test_noise_from_the_variance_plane() -> None:
    flux, variance = sky()
    result = lupton_normalize(flux.astype(np.float32), variance)
    assert result.noise_source == ("variance",) * 3
    np.testing.assert_allclose(result.noise, SIGMA, rtol=0.01)


@pytest.mark.parametrize(
    "plane", ["missing", "zero", "nan", "inf", "negative", "ones", "tiny", "huge", "half"]
)
def test_noise_without_usable_variance(plane: str) -> None:
    """Placeholders give way to the scatter of the pixels."""
    flux, variance = sky()
    fill = {
        "zero": 0.0,
        "nan": np.nan,
        "inf": np.inf,
        "negative": -1.0,
        "ones": 0.1,
        "tiny": 1e-9,
        "huge": 1e8,
    }
    bad = None if plane == "missing" else np.full(flux.shape, fill.get(plane, 0.0))
    if plane == "half":
        bad = variance.copy()
        bad[:, :, : SHAPE[2] * 3 // 5] = np.nan
    result = lupton_normalize(flux.astype(np.float32), bad)
    assert result.noise_source == ("pixels",) * 3
    np.testing.assert_allclose(result.noise, SIGMA, rtol=0.1)


def test_constant_variance_is_believed_when_it_fits() -> None:
    flux, _ = sky()
    constant = np.broadcast_to(1.2 * SIGMA[:, None, None] ** 2, SHAPE)
    result = lupton_normalize(flux.astype(np.float32), constant)
    assert result.noise_source == ("variance",) * 3
    result = lupton_normalize(flux.astype(np.float32), constant, noise_source="pixels")
    assert result.noise_source == ("pixels",) * 3
    result = lupton_normalize(flux.astype(np.float32), 100 * constant, noise_source="variance")
    np.testing.assert_allclose(result.noise, SIGMA * 10 * math.sqrt(1.2), rtol=1e-6)


@pytest.mark.parametrize("kind", ["smooth", "sparse"])
def test_constant_variance_is_believed_for_noiseless_images(kind: str) -> None:
    """Simulated without noise: the plane says what the pixels cannot."""
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    r = np.hypot(y - 50, x - 80)
    flux = np.broadcast_to(1000 * np.exp(-r / 12), SHAPE).astype(np.float32)
    if kind == "sparse":
        flux = np.where(r < 20, flux, 0).astype(np.float32)
    result = lupton_normalize(flux, np.full(SHAPE, 16.0))
    assert result.noise_source == ("variance",) * 3
    np.testing.assert_allclose(result.noise, 4.0)


def test_correlated_noise_is_not_taken_for_a_noiseless_image() -> None:
    rng = np.random.default_rng(8)
    noise = rng.normal(size=(3, 200, 203))
    # The kernel of a bilinear warp by half a pixel, in both axes.
    noise = 0.5 * (noise[:, :, :-1] + noise[:, :, 1:])
    noise = 0.5 * (noise[:, :-1] + noise[:, 1:])
    result = lupton_normalize(noise.astype(np.float32), np.full(noise.shape, 100.0))
    assert result.noise_source == ("pixels",) * 3
    np.testing.assert_allclose(result.noise, 0.5, rtol=0.03)


def test_clipping_against_numpy() -> None:
    rng = np.random.default_rng(9)
    values = np.sort(np.concatenate([rng.normal(10, 2, 20_000), rng.exponential(500, 1500)]))
    statistics = clip_sorted(values)
    assert statistics.median == pytest.approx(10, abs=0.15)
    assert statistics.sigma == pytest.approx(2, rel=0.05)
    plain = clip_sorted(values, iterations=0)
    assert plain.median == pytest.approx(np.median(values), rel=1e-12)
    assert plain.sigma == pytest.approx(np.subtract(*np.percentile(values, [75, 25])) / 1.34898, rel=1e-5)
    assert clip_sorted(np.zeros(0)).sigma == 0.0
    assert clip_sorted(np.array([4.0])).median == 4.0


# --- Local background


def test_local_background_removes_a_gradient() -> None:
    shape = (2, 300, 420)
    rng = np.random.default_rng(10)
    y, x = np.mgrid[: shape[1], : shape[2]]
    ramp = 0.2 * x - 0.1 * y
    flux = (rng.normal(size=shape) + ramp).astype(np.float32)
    valid = np.ones(shape[1:], dtype=bool)
    valid[:70, :70] = False  # a hole larger than a cell
    level = mesh_background(flux[0], valid, 50, 3.0, 10)
    model = level.on_grid(flux.shape[1:], (slice(None), slice(None)))
    # Between the centres of the outermost cells, and not beside the hole.
    error = np.abs(model - ramp)
    error[:130, :130] = 0
    assert error[25:-25, 25:-25].max() < 0.6
    np.testing.assert_array_equal(level.rows(flux.shape[1:], slice(20, 25)), model[20:25])
    result = lupton_normalize(flux, valid=valid, background="local", background_mesh=50)
    np.testing.assert_allclose(result.noise, 1.0, rtol=0.5)  # the corners are steps of the ramp
    # A constant level leaves the ramp in: its scatter dwarfs the noise.
    assert lupton_normalize(flux, valid=valid).noise.min() > 10
    # Fewer than one cell, and cells wider than the image.
    for mesh in (1000, 8):
        narrow = lupton_normalize(flux[:, :40, :3], background="local", background_mesh=mesh)
        assert np.isfinite(narrow.image).all()


# --- Masks and degenerate images


@pytest.mark.parametrize("function", [lupton_normalize, zscore_normalize])
def test_masked_and_non_finite_pixels(function: Any) -> None:
    flux, variance = sky()
    flux = flux.astype(np.float32)
    valid = np.ones(SHAPE[1:], dtype=bool)
    valid[10:20, 30:35] = False
    flux[:, 10:20, 30:35] = 1e6  # must not be seen
    flux[1, 40, 50], flux[0, 41, 51], flux[2, 42, 52] = np.nan, np.inf, -np.inf
    flux[0, 43, 53] = 3e38
    result = function(flux, variance, valid)
    wanted = valid.copy()
    for k in range(4):
        wanted[40 + k, 50 + k] = False
    np.testing.assert_array_equal(result.valid, wanted)
    assert (result.image[:, ~wanted] == 0).all()
    assert np.isfinite(result.image).all() and result.image.dtype == np.float32
    per_band = np.ones(SHAPE, dtype=bool)
    per_band[2] = valid
    np.testing.assert_array_equal(function(flux, variance, per_band).image, result.image)
    flux[:, ~wanted] = 0
    np.testing.assert_array_equal(function(flux, variance, wanted).image, result.image)


def degenerate(kind: str) -> np.ndarray:
    flux = np.zeros(SHAPE, dtype=np.float32)
    if kind == "constant":
        flux += np.float32(123.456)
    elif kind == "nan":
        flux[...] = np.nan
    elif kind == "one pixel":
        flux[...] = np.nan
        flux[:, 5, 7] = 3.0
    elif kind == "one band of nan":
        flux = sky()[0].astype(np.float32)
        flux[1] = np.nan
    elif kind == "saturated star":
        flux = sky()[0].astype(np.float32)
        flux[:, 50:60, 50:60] = 1e12
        flux[:, 30:90, 54] = 1e13
    elif kind == "single spike":
        flux[:, 3, 4] = 1e9
    elif kind == "without pixels":
        flux = flux[:, :0]
    elif kind == "1 x 1":
        flux = flux[:, :1, :1] + 5
    elif kind == "extremes":
        flux[0, 0, 0], flux[1, 0, 0], flux[2, 0, 1], flux[0, 0, 2] = 9e29, -9e29, 9e29, 1e-40
    elif kind == "tiny numbers":
        flux = (sky()[0] * 1e-30).astype(np.float32)
    elif kind == "negative":
        flux = -np.abs(sky()[0]).astype(np.float32) - 100
    return flux


KINDS = (
    "zero",
    "constant",
    "nan",
    "one pixel",
    "one band of nan",
    "saturated star",
    "single spike",
    "without pixels",
    "1 x 1",
    "extremes",
    "tiny numbers",
    "negative",
)


@pytest.mark.parametrize(("function", "settings"), ALL_SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_variance", [False, True])
@pytest.mark.filterwarnings("error")
def test_degenerate_images_stay_finite(
    function: Any, settings: dict[str, Any], kind: str, with_variance: bool
) -> None:
    flux = degenerate(kind)
    result = function(flux, np.abs(flux) if with_variance else None, **settings)
    assert result.image.shape == flux.shape
    assert np.isfinite(result.image).all()
    assert (result.noise > 0).all() and np.isfinite(result.noise).all()
    if kind in ("zero", "constant", "nan", "one band of nan", "1 x 1"):
        assert (result.image == 0).all()
        assert result.valid.all() == ("nan" not in kind)


def test_saturated_star_does_not_move_the_rest() -> None:
    flux, variance = sky()
    before = lupton_normalize(flux.astype(np.float32), variance)
    flux[:, 50:60, 50:60] = 1e9
    after = lupton_normalize(flux.astype(np.float32), variance)
    rest = np.ones(SHAPE[1:], dtype=bool)
    rest[50:60, 50:60] = False
    # The clipped medians move by a few thousandths of the noise at most.
    np.testing.assert_allclose(after.image[:, rest], before.image[:, rest], atol=3e-3)
    assert after.image.max() < 30


# --- z-score


def test_zscore_moments() -> None:
    flux, variance = sky()
    full = zscore_normalize(flux.astype(np.float32), variance, statistics="full", asinh="none")
    np.testing.assert_allclose(full.image.mean(axis=(1, 2), dtype=np.float64), 0.0, atol=1e-6)
    np.testing.assert_allclose(full.image.std(axis=(1, 2), dtype=np.float64), 1.0, rtol=1e-6)
    np.testing.assert_allclose(full.minimum, flux.mean(axis=(1, 2)), rtol=1e-5)
    before = zscore_normalize(flux.astype(np.float32), variance, statistics="full", asinh="before")
    np.testing.assert_allclose(before.image.mean(axis=(1, 2), dtype=np.float64), 0.0, atol=1e-6)
    np.testing.assert_allclose(before.image.std(axis=(1, 2), dtype=np.float64), 1.0, rtol=1e-6)


def test_zscore_clipped_and_asinh() -> None:
    flux, variance = sky()
    flux = flux.astype(np.float32)
    plain = zscore_normalize(flux, variance, asinh="none")
    np.testing.assert_allclose(plain.noise, SIGMA, rtol=0.1)
    np.testing.assert_allclose(
        plain.image,
        (flux.astype(np.float64) - plain.minimum[:, None, None]) / plain.noise[:, None, None],
        rtol=1e-6,
        atol=1e-6,
    )
    after = zscore_normalize(flux, variance, asinh="after", softening=2.0)
    np.testing.assert_allclose(after.image, np.arcsinh(plain.image / 2.0), rtol=1e-6, atol=1e-6)
    before = zscore_normalize(flux, variance, asinh="before", softening=2.0)
    # The same curve, put to zero mean and unit width.
    for a, b in zip(after.image, before.image, strict=True):
        slope, _ = np.polyfit(a.ravel().astype(np.float64), b.ravel().astype(np.float64), 1)
        assert slope > 1
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 1 - 1e-9


# --- Interface


def test_input_is_left_alone_unless_asked() -> None:
    flux, variance = sky()
    flux = flux.astype(np.float32)
    for function in (lupton_normalize, zscore_normalize):
        copy = flux.copy()
        result = function(copy, variance)
        np.testing.assert_array_equal(copy, flux)
        again = function(copy, variance, overwrite=True)
        assert again.image is copy
        np.testing.assert_array_equal(again.image, result.image)
        # Read-only and byte-swapped arrays, as from FITS files, do as well.
        swapped = flux.astype(">f4")
        swapped.setflags(write=False)
        np.testing.assert_array_equal(function(swapped, variance).image, result.image)


def test_repeatable_and_any_number_of_bands() -> None:
    flux, variance = sky()
    flux = flux.astype(np.float32)
    np.testing.assert_array_equal(
        lupton_normalize(flux, variance).image, lupton_normalize(flux, variance).image
    )
    assert lupton_normalize(flux[:1], variance[:1]).image.shape == (1, *SHAPE[1:])
    # The bands may come in any order.
    order = [2, 0, 1]
    np.testing.assert_allclose(
        lupton_normalize(flux[order], variance[order]).image,
        lupton_normalize(flux, variance).image[order],
        rtol=1e-6,
        atol=1e-7,
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"flux": np.zeros((4, 5), dtype=np.float32)}, r"\(4, 5\).*\(band, y, x\)"),
        ({"flux": np.zeros((3, 4, 5), dtype=int)}, "floating-point"),
        ({"variance": np.zeros((3, 5, 4))}, r"\(3, 5, 4\).*\(3, 4, 5\)"),
        ({"valid": np.ones((5, 4), dtype=bool)}, r"\(5, 4\).*\(4, 5\)"),
        ({"overwrite": True, "flux": np.zeros((3, 4, 5))}, "overwrite.*float32"),
    ],
)
@pytest.mark.parametrize("function", [lupton_normalize, zscore_normalize])
def test_wrong_input(function: Any, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        function(**({"flux": np.zeros((3, 4, 5), dtype=np.float32)} | arguments))


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        (LuptonSettings, {"strech": 1.0}, "no setting strech"),
        (ZScoreSettings, {"stretch_unit": "nJy"}, "no setting stretch_unit"),
        (LuptonSettings, {"stretch_unit": "Jy"}, "'noise', 'nJy' or 'percentile'"),
        (LuptonSettings, {"stretch": -1.0}, "stretch is -1"),
        (LuptonSettings, {"q": math.nan}, "q is nan"),
        (LuptonSettings, {"stretch": 101.0, "stretch_unit": "percentile"}, "at most 100"),
        (LuptonSettings, {"scale": 101.0, "scale_unit": "percentile"}, "at most 100"),
        (LuptonSettings, {"background": "mesh"}, "background is 'mesh'"),
        (LuptonSettings, {"background_mesh": 0}, "background_mesh is 0"),
        (LuptonSettings, {"noise_source": "guess"}, "noise_source"),
        (LuptonSettings, {"clip_iterations": -1}, "clip_iterations is -1"),
        (LuptonSettings, {"clip_sigma": 0.0}, "clip_sigma is 0"),
        (ZScoreSettings, {"clip_iterations": -1}, "clip_iterations is -1"),
        (ZScoreSettings, {"statistics": "robust"}, "statistics"),
        (ZScoreSettings, {"asinh": "both"}, "asinh"),
        (ZScoreSettings, {"softening": 0.0}, "softening"),
    ],
)
def test_wrong_settings(kind: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        kind(**settings)


@pytest.mark.parametrize(
    "settings", [{}, {"background": "local"}, {"scale": 99.9, "scale_unit": "percentile"}]
)
@pytest.mark.parametrize("with_variance", [False, True])
def test_memory(settings: dict[str, Any], with_variance: bool) -> None:
    """Input, output and scratch fit into three copies of the input."""
    rng = np.random.default_rng(21)
    flux = rng.standard_normal(size=(3, 2000, 2200), dtype=np.float32)
    variance = np.ones_like(flux) if with_variance else None
    tracemalloc.start()
    lupton_normalize(flux, variance, **settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    lupton_normalize(flux, variance, overwrite=True, **settings)
    in_place = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    copies = 2 if with_variance else 1
    assert copies * flux.nbytes + peak < 3.9 * flux.nbytes
    assert flux.nbytes + in_place < 2.9 * flux.nbytes


def test_decals_without_variance(shared_data: Path) -> None:
    """A real image in another unit, without a variance plane."""
    fits = pytest.importorskip("astropy.io.fits")
    flux = np.stack([fits.getdata(shared_data / "decals" / f"img_{b}.fits") for b in "zrg"])
    # Nanomaggies to nJy.
    flux = (flux * 3631.0).astype(np.float32)
    result = lupton_normalize(flux)
    assert result.noise_source == ("pixels",) * 3
    assert np.isfinite(result.image).all()
    assert abs(np.median(result.image)) < 0.1
    assert 3 < result.image.max() < 30
