# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Models of the sources of an image, where something is wrong with it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lsst.meas.maskrcnn import MultibandImage
from lsst.meas.maskrcnn.deblend.models import fit_models
from lsst.meas.maskrcnn.deblend.parents import Parent
from lsst.meas.maskrcnn.profiles.blend import BlendSource
from lsst.meas.maskrcnn.profiles.model import ProfileFit

SHAPE = (70, 90)
PLACES = np.array([[20.0, 20.0], [21.0, 27.0], [50.0, 60.0]])
FLUX = np.array([4000.0, 2000.0, 3000.0])
SIGMA = 1.8


def gaussian(shape: tuple[int, int], y: float, x: float) -> np.ndarray:
    dy, dx = np.mgrid[: shape[0], : shape[1]] - np.array([y, x])[:, None, None]
    return np.exp(-(dy**2 + dx**2) / (2.0 * SIGMA**2)) / (2.0 * np.pi * SIGMA**2)


PSF = gaussian((25, 25), 12.0, 12.0)


def make(
    places: np.ndarray = PLACES, flux: np.ndarray = FLUX, shape: tuple[int, int] = SHAPE, stars: bool = True
) -> tuple[dict, list[Parent], list[BlendSource]]:
    """Arguments of an image of two bands with noise of 1, one parent and its sources."""
    rng = np.random.default_rng(4)
    image = rng.normal(size=(2, *shape))
    sources = []
    for (y, x), value in zip(places, flux, strict=True):
        image += value * gaussian(shape, y, x)
        soft = np.full((11, 11), 255, np.uint8)
        sources.append(BlendSource(soft, round(y) - 5, round(x) - 5, float(y), float(x), stars))
    arguments = {"flux": image.astype(np.float32), "variance": np.ones((2, *shape), np.float32)}
    parent = Parent(np.arange(len(places)), 0, 0, np.ones(shape, bool))
    return arguments, [parent], sources


def fit(
    arguments: dict,
    parents: list[Parent],
    sources: list[BlendSource],
    psf: object = None,
    local_sky: bool = False,
) -> ProfileFit:
    images = dict(arguments)
    image = MultibandImage(
        images.pop("flux"),
        "gr",
        0.2,
        images.pop("variance"),
        psf=[PSF, PSF] if psf is None else psf,
        **images,
    )
    found = fit_models(image, parents, sources, local_sky=local_sky)
    assert found is not None
    assert np.isfinite(found.parameters).all()
    return found


def test_nothing_is_wrong() -> None:
    found = fit(*make())
    np.testing.assert_allclose(found.flux, np.column_stack([FLUX, FLUX]), rtol=0.03)
    assert not (found.core.any() or found.edge.any() or found.shared.any()) and found.converged.all()


@pytest.mark.parametrize("kind", ["nan", "bad", "saturated", "variance"])
def test_core_without_pixels(kind: str) -> None:
    """The flux comes from the pixels around it."""
    arguments, parents, sources = make()
    core = (0, slice(19, 22), slice(19, 22))
    if kind == "nan":
        arguments["flux"][core] = np.nan
    elif kind == "variance":
        arguments["variance"][core] = 0.0
        arguments["flux"][core] = 1e6
    else:
        arguments[kind] = np.zeros((2, *SHAPE), bool)
        arguments[kind][core] = True
        arguments["flux"][core] = 1e6
    found = fit(arguments, parents, sources)
    assert found.core.tolist() == [[True, False], [False, False], [False, False]]
    np.testing.assert_allclose(found.flux, np.column_stack([FLUX, FLUX]), rtol=0.06)


def test_what_no_model_describes_makes_faint_sources_doubtful() -> None:
    """Stripes of six times the noise around a faint and a bright source, and around none."""
    places = np.array([[20.0, 20.0], [50.0, 60.0], [20.0, 65.0], [52.0, 20.0]])
    arguments, parents, sources = make(places, np.array([400.0, 400.0, 40000.0, 400.0]))
    stripes = 6.0 * np.where(np.arange(21) % 4 < 2, 1.0, -1.0)
    for y, x in places[1:3].astype(int):
        arguments["flux"][:, y - 10 : y + 11, x - 10 : x + 11] += stripes.astype(np.float32)
    found = fit(arguments, parents, sources)
    assert found.misfit.tolist() == [False, True, False, False]
    np.testing.assert_allclose(found.flux[2], 40000.0, rtol=0.02)


def test_variances_that_are_too_small_are_no_misfit() -> None:
    arguments, parents, sources = make()
    arguments["variance"] *= np.float32(0.2)
    assert not fit(arguments, parents, sources).misfit.any()


def test_band_without_data() -> None:
    arguments, parents, sources = make()
    arguments["flux"][1] = np.nan
    found = fit(arguments, parents, sources)
    assert np.isnan(found.flux[:, 1]).all() and found.core[:, 1].all()
    np.testing.assert_allclose(found.flux[:, 0], FLUX, rtol=0.03)


def test_hole_in_the_bands_with_data() -> None:
    arguments, parents, sources = make(flux=FLUX * np.array([1.0, -1.0, 1.0]))
    for _ in range(2):
        assert fit(arguments, parents, sources).converged.tolist() == [True, False, True]
        arguments["flux"][1] = np.nan


@pytest.mark.parametrize("psf", [[PSF, None], [PSF, np.full((5, 5), np.nan)], [PSF, np.zeros((5, 5))]])
def test_band_without_a_psf(psf: list) -> None:
    def known(band: int, y: float, x: float) -> np.ndarray | None:
        value: np.ndarray | None = psf[band]
        return value

    found = fit(*make(), psf=known)
    assert np.isnan(found.flux[:, 1]).all()
    np.testing.assert_allclose(found.flux[:, 0], FLUX, rtol=0.03)
    arguments, parents, sources = make()
    image = MultibandImage(arguments["flux"], "gr", 0.2, arguments["variance"], psf=lambda band, y, x: None)
    assert fit_models(image, parents, sources) is None


def test_edge() -> None:
    places = np.array([[1.0, 40.0], [40.0, 88.5], [35.0, 35.0]])
    found = fit(*make(places))
    assert found.edge.tolist() == [True, True, False]
    np.testing.assert_allclose(found.flux, np.column_stack([FLUX, FLUX]), rtol=0.06)


def test_sources_at_one_place() -> None:
    """They share what is there."""
    places = np.array([[20.0, 20.0], [20.0, 20.1], [50.0, 60.0]])
    found = fit(*make(places))
    assert found.shared.tolist() == [True, True, False]
    np.testing.assert_allclose(found.flux[:, 0], [3000.0, 3000.0, 3000.0], rtol=0.03)
    assert len(found.windows) == 3


def test_two_thousand_in_a_parent() -> None:
    rng = np.random.default_rng(8)
    places = np.stack(np.mgrid[:40, :50], axis=-1).reshape(-1, 2) * 9.0 + 8.0 + rng.uniform(-1, 1, (2000, 2))
    flux = rng.uniform(200.0, 600.0, 2000)
    found = fit(*make(places, flux, (370, 460)))
    assert np.isfinite(found.flux).all() and found.converged.mean() > 0.98
    errors = (found.flux - flux[:, None]) / found.flux_errors
    assert 0.8 < np.median(np.abs(errors)) / 0.674 < 1.3


@pytest.mark.parametrize("stars", [True, False])
def test_local_sky(stars: bool) -> None:
    """A constant on the image changes nothing, if it is asked for."""
    arguments, parents, sources = make(stars=stars)
    before = fit(arguments, parents, sources, local_sky=True)
    arguments["flux"] = arguments["flux"] + np.array([1.0, -2.0], np.float32)[:, None, None]
    after = fit(arguments, parents, sources, local_sky=True)
    np.testing.assert_allclose(after.flux, before.flux, rtol=5e-3)
    assert (np.abs(after.flux - FLUX[:, None]) < 4.0 * after.flux_errors).all()
    plain = fit(arguments, parents, sources)
    assert (plain.flux[:, 0] > after.flux[:, 0]).all() and (plain.flux[:, 1] < after.flux[:, 1]).all()
    assert (after.flux_errors > 0).all()


def apart(places: np.ndarray) -> list[Parent]:
    """A parent of 17 x 17 px for each source."""
    corners = np.rint(places).astype(int) - 8
    return [Parent(np.array([n]), y, x, np.ones((17, 17), bool)) for n, (y, x) in enumerate(corners.tolist())]


@pytest.mark.parametrize("side", [300, 90])
def test_sky_that_is_left_is_taken_off(side: int) -> None:
    """If there is enough of it to tell its level."""
    places = np.stack(np.mgrid[:2, :2], axis=-1).reshape(-1, 2) * (side - 50.0) + 25.0
    arguments, _, sources = make(places, np.full(4, 400.0), (side, side), stars=False)
    before = fit(arguments, apart(places), sources)
    arguments["flux"] = arguments["flux"] + np.array([0.5, -0.25], np.float32)[:, None, None]
    after = fit(arguments, apart(places), sources)
    shift = np.median((after.flux - before.flux) / before.flux_errors, axis=0)
    if side == 300:
        np.testing.assert_allclose(shift, 0.0, atol=0.02)
    else:
        assert shift[0] > 1.0 and shift[1] < -0.5


def test_light_of_a_large_galaxy_is_no_sky() -> None:
    y, x = np.mgrid[:300, :300] - 150.0
    profile = np.exp(-np.hypot(y, x) / 25.0)
    image = np.random.default_rng(2).normal(size=(2, 300, 300)) + 40.0 * profile
    arguments = {"flux": image.astype(np.float32), "variance": np.ones((2, 300, 300), np.float32)}
    mask = (np.hypot(y, x) < 60.0)[90:211, 90:211]
    galaxy = BlendSource(np.where(mask, np.uint8(255), np.uint8(0)), 90, 90, 150.0, 150.0, False)
    found = fit(arguments, [Parent(np.array([0]), 90, 90, mask)], [galaxy])
    np.testing.assert_allclose(found.flux[0], 40.0 * 2.0 * np.pi * 25.0**2, rtol=0.02)


def shift_by_halo(halo: np.ndarray, large: BlendSource, light: np.ndarray, radius: float) -> np.ndarray:
    """Change of the fluxes of 8 faint galaxies around a bright source by a halo of it, in errors, (8, 2)."""
    middle, angles = len(halo) // 2, np.arange(8) * np.pi / 4.0 + 0.2
    places = middle + radius * np.column_stack([np.sin(angles), np.cos(angles)]).round(2)
    arguments, _, sources = make(places, np.full(8, 400.0), halo.shape, stars=False)
    parents = [*apart(places), Parent(np.array([8]), large.y0, large.x0, large.soft > 0)]
    arguments["flux"] = (arguments["flux"] + light).astype(np.float32)
    before = fit(arguments, parents, [*sources, large])
    arguments["flux"] = (arguments["flux"] + halo).astype(np.float32)
    after = fit(arguments, parents, [*sources, large])
    return ((after.flux - before.flux) / before.flux_errors)[:8]


def test_halo_of_a_bright_star() -> None:
    """What its model does not have is not taken for wings of faint galaxies around it."""
    y, x = np.mgrid[:201, :201] - 100.0
    star = BlendSource(np.full((31, 31), 255, np.uint8), 85, 85, 100.0, 100.0, True)
    halo = 900.0 / (y**2 + x**2 + 100.0)
    shift = shift_by_halo(halo, star, 5e5 * gaussian((201, 201), 100.0, 100.0), 45.0)
    assert np.abs(np.median(shift, axis=0)).max() < 1.0, shift


def test_light_beyond_the_window_of_a_large_galaxy() -> None:
    y, x = np.mgrid[:501, :501] - 250.0
    mask = (np.hypot(y, x) < 30.0)[215:286, 215:286]
    galaxy = BlendSource(np.where(mask, np.uint8(255), np.uint8(0)), 215, 215, 250.0, 250.0, False)
    halo = 4.0 * np.exp(-np.hypot(y, x) / 60.0)
    shift = shift_by_halo(halo, galaxy, 60.0 * np.exp(-np.hypot(y, x) / 10.0), 140.0)
    assert np.abs(np.median(shift, axis=0)).max() < 1.0, shift


def test_correlated_noise_is_in_the_errors() -> None:
    """Errors are those of the scatter, whether the noise of pixels is independent or not."""
    rng = np.random.default_rng(9)
    places = np.stack(np.mgrid[:9, :9], axis=-1).reshape(-1, 2) * 40.0 + 25.0
    sources = make(places, np.full(81, 300.0), (370, 370))[2]
    parents = apart(places)
    for blur in (0.0, 0.8):
        noise = gaussian_filter(rng.normal(size=(2, 370, 370)), (0, blur, blur))
        image = noise / noise.std()
        for y, x in places:
            image += 300.0 * gaussian((370, 370), y, x)
        arguments = {"flux": image.astype(np.float32), "variance": np.ones_like(image, dtype=np.float32)}
        found = fit(arguments, parents, sources)
        pulls = (found.flux - 300.0) / found.flux_errors
        assert 0.85 < pulls.std() < 1.15
        if not blur:
            assert found.flux_errors.mean() == pytest.approx(2.0 * np.sqrt(np.pi) * SIGMA, rel=0.05)


def test_realisations_of_the_noise_give_the_errors() -> None:
    """They take the place of the pixels, and say the same of the noise that the pixels have."""
    rng = np.random.default_rng(10)
    places = np.stack(np.mgrid[:5, :5], axis=-1).reshape(-1, 2) * 40.0 + 25.0
    arguments, _, sources = make(places, np.full(25, 300.0), (210, 210))
    drawn = gaussian_filter(rng.normal(size=(4, 210, 210)), (0, 0.8, 0.8))
    drawn /= drawn.std()
    light = 300.0 * sum(gaussian((210, 210), y, x) for y, x in places)
    arguments["flux"] = drawn[:2] + light
    measured = fit(arguments, apart(places), sources).flux_errors
    noise = drawn[2:].copy()
    # Outside of the data there is none; a band without keeps its pixels.
    noise[0, :5] = np.nan
    found = fit({**arguments, "noise": noise}, apart(places), sources)
    np.testing.assert_allclose(found.flux_errors.mean(axis=0), measured.mean(axis=0), rtol=0.08)
    noise[0] *= 3.0
    noise[1] = np.nan
    larger = fit({**arguments, "noise": noise}, apart(places), sources).flux_errors
    np.testing.assert_allclose(larger[:, 0], 3.0 * found.flux_errors[:, 0], rtol=1e-5)
    np.testing.assert_allclose(larger[:, 1], measured[:, 1], rtol=1e-5)
    with pytest.raises(ValueError, match="noise has shape"):
        fit({**arguments, "noise": noise[:1]}, apart(places), sources)
