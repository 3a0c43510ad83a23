# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The joint fit against sources that GalSim drew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import gammainc, gammaincinv

from lsst.meas.maskrcnn.profiles import fit as module
from lsst.meas.maskrcnn.profiles.fit import fit_profiles
from lsst.meas.maskrcnn.profiles.mixtures import sersic_mixture
from lsst.meas.maskrcnn.profiles.model import FitSources, ProfileFit, add_stamp
from lsst.meas.maskrcnn.profiles.psf import PsfStack, fit_psf
from lsst.meas.maskrcnn.profiles.render import render_windows, shape_matrix, window_pixels

galsim = pytest.importorskip("galsim")

COLORS = np.array([1.0, 2.0, 1.5])
CELL = 60
PSF = galsim.Moffat(beta=3.0, fwhm=4.0).shear(g1=0.03, g2=-0.02)
STAMP = PSF.drawImage(nx=61, ny=61, scale=1.0, method="no_pixel").array
MIXTURES = [fit_psf(STAMP)] * 3


def fit_copies(
    source: galsim.GSObject,
    snr: float,
    n_copies: int,
    seed: int = 0,
    half: int = 24,
    is_star: bool = False,
    neighbor: galsim.GSObject | None = None,
    apart: float = 0.0,
) -> tuple[ProfileFit, np.ndarray, np.ndarray]:
    """Fit a source, or a pair, drawn many times with noise of 1; the fit, and the true positions and fluxes.

    The S/N is that of a matched filter in all bands together.
    """
    rng = np.random.default_rng([seed, 11])
    parts = [source] if neighbor is None else [source, neighbor]
    rows = -(-n_copies // 8)
    images = rng.normal(size=(3, rows * CELL, 8 * CELL))
    alone = galsim.Convolve(source, PSF).drawImage(nx=59, ny=59, scale=1.0, method="no_pixel").array
    flux = snr / np.sqrt((alone**2).sum() * (COLORS**2).sum())
    positions = []
    for copy in range(n_copies):
        corner = CELL * np.array(divmod(copy, 8))
        angle = rng.uniform(0.0, 2.0 * np.pi)
        middle = 29.0 + rng.uniform(-0.5, 0.5, 2)
        for number, part in enumerate(parts):
            place = middle + apart * (number - 0.5) * np.array([np.sin(angle), np.cos(angle)])
            stamp = galsim.Convolve(part, PSF).drawImage(
                nx=59, ny=59, scale=1.0, method="no_pixel", offset=tuple((place - 29.0)[::-1])
            )
            window = (slice(None), *(slice(c, c + 59) for c in corner.tolist()))
            images[window] += flux * COLORS[:, None, None] * stamp.array
            positions.append(corner + place)
    truth = np.array(positions)
    sources = FitSources(
        truth + 0.2 * rng.normal(size=truth.shape),
        np.full(len(truth), is_star),
        np.full(len(truth), 2.5),
        np.full(len(truth), half),
        np.repeat(np.arange(n_copies), len(parts)),
    )
    images = images.astype(np.float32)
    fit = fit_profiles(images, np.ones_like(images), sources, lambda y, x: MIXTURES, 0.2)
    return fit, truth, np.tile(flux * COLORS, (len(truth), 1))


def galaxy(index: float, radius: float = 3.0, eta1: float = 0.4, eta2: float = -0.3) -> galsim.GSObject:
    return galsim.Sersic(n=index, half_light_radius=radius).shear(eta1=eta1, eta2=eta2)


@pytest.mark.parametrize("fwhm", [3.0, 5.0])
@pytest.mark.parametrize("beta", [2.5, 4.0])
def test_psfs_are_sums_of_gaussians(fwhm: float, beta: float) -> None:
    psf = galsim.Moffat(beta=beta, fwhm=fwhm).shear(g1=0.05, g2=0.03).shift(0.2, -0.1)
    found = fit_psf(psf.drawImage(nx=61, ny=61, scale=1.0).array)
    np.testing.assert_allclose(found.center, [-0.1, 0.2], atol=0.01)
    assert found.weight.sum() == pytest.approx(1.0, abs=1e-3)
    assert abs(found.flux_error) < 1e-3
    with pytest.raises(ValueError, match="odd sides"):
        fit_psf(np.ones((4, 5)))
    with pytest.raises(ValueError, match="not finite"):
        fit_psf(np.full((5, 5), np.nan))


@pytest.mark.parametrize("sigma", [0.7, 1.5, 2.0, 4.0])
def test_a_psf_of_one_gaussian(sigma: float) -> None:
    """The others stay harmless."""
    dy, dx = np.mgrid[-12:13, -12:13]
    image = np.exp(-(dy**2 + dx**2) / (2.0 * sigma**2))
    found = fit_psf(image)
    assert abs(found.flux_error) < 5e-3
    with np.errstate(divide="raise", invalid="raise"):
        again = fit_psf(image, replace(found, weight=np.array([1.0, 0.0, 0.0, 0.0])))
    assert abs(again.flux_error) < 5e-3
    assert (np.abs(found.covariance) < 1e5).all() and np.linalg.det(found.covariance).min() > 0


@pytest.mark.parametrize("index", [0.6, 1.0, 2.3, 4.0, 6.0])
def test_profiles_are_sums_of_gaussians(index: float) -> None:
    """The flux within some radii, of indices in the table and between."""
    variance, weight, _, _ = sersic_mixture(np.log([index]))
    scale = gammaincinv(2.0 * index, 0.5)
    for radius in (0.3, 0.6, 1.0, 2.0, 4.0):
        within = float((weight * -np.expm1(-0.5 * radius**2 / variance)).sum())
        # Of an index of 6, a hundredth of the flux is nearer to the centre than any Gaussian.
        accuracy = 6e-3 if index <= 4.0 else 12e-3
        assert within == pytest.approx(gammainc(2.0 * index, scale * radius ** (1.0 / index)), abs=accuracy)


@pytest.mark.parametrize("is_star", [False, True])
def test_derivatives(is_star: bool) -> None:
    parameters = np.array([[30.2, 31.3, np.log(3.0), 0.4, -0.3, np.log(1.7)]])
    origin = np.array([[18, 19]])

    def draw(values: np.ndarray) -> np.ndarray:
        ((_, pixels),) = render_windows(values, origin, 25, PsfStack.make([MIXTURES[:1]]), is_star)
        return pixels[0, 0].T.numpy().astype(float)

    exact = draw(parameters)
    for number in range(2 if is_star else 6):
        step = np.zeros_like(parameters)
        step[0, number] = 0.02
        numeric = (draw(parameters + step) - draw(parameters - step))[:, 0] / 0.04
        np.testing.assert_allclose(
            numeric, exact[:, 1 + number], atol=5e-3 * np.abs(exact[:, 1 + number]).max()
        )


def test_templates_are_those_of_galsim() -> None:
    parameters = np.array([[30.0, 31.0, np.log(3.0), 0.4, -0.3, 0.0]])
    psfs = PsfStack.make([MIXTURES[:1]])
    ((_, pixels),) = render_windows(parameters, np.array([[6, 7]]), 49, psfs, False)
    drawn = galsim.Convolve(galaxy(1.0), PSF).drawImage(nx=49, ny=49, scale=1.0, method="no_pixel").array
    np.testing.assert_allclose(pixels[0, 0, 0], drawn[window_pixels(49)], atol=3e-3 * drawn.max())
    matrix, _ = shape_matrix(np.array([[0.0, 0.5, 0.0]]))
    assert matrix[0, 1, 1] == pytest.approx(np.exp(0.5)) and matrix[0, 0, 0] == pytest.approx(np.exp(-0.5))


@pytest.mark.parametrize(
    ("source", "is_star"), [(galsim.DeltaFunction(), True), (galaxy(1.0), False), (galaxy(4.0, 2.5), False)]
)
def test_fluxes_of_bright_sources(source: galsim.GSObject, is_star: bool) -> None:
    """To 0.2 % in the mean of 16, whose noise is 0.02 to 0.1 %."""
    fit, _, flux = fit_copies(source, 4000.0, 16, is_star=is_star, half=28)
    assert fit.converged.all()
    assert abs(np.mean(fit.flux / flux) - 1.0) < 2e-3


@pytest.mark.parametrize("snr", [50.0, 200.0])
def test_errors_hold(snr: float) -> None:
    """Differences from the truth, in units of their errors, scatter by 1."""
    fit, positions, flux = fit_copies(galaxy(1.0), snr, 96)
    values, covariance = fit.shapes()
    errors = np.sqrt(np.einsum("nii->ni", covariance))
    e = np.tanh(0.25) * np.array([0.4, -0.3]) / 0.5
    truth = np.column_stack(
        [positions[:, ::-1], np.full(len(positions), 3.0), np.tile(e, (len(positions), 1))]
    )
    pulls = np.column_stack([(values[:, :5] - truth) / errors[:, :5], (fit.flux - flux) / fit.flux_errors])
    # 96 draws tell a mean to 0.1 and a width to 0.07; sizes and fluxes have the bias of the prior.
    assert (np.abs(pulls.mean(axis=0)) < 0.4).all()
    assert ((pulls.std(axis=0) > 0.75) & (pulls.std(axis=0) < 1.25)).all()
    assert 0.98 < np.mean(fit.chi2 / fit.dof) < 1.02


@pytest.mark.parametrize("neighbor", [galsim.DeltaFunction(), galaxy(2.0, 2.0, -0.3, 0.2)])
def test_blended_pairs(neighbor: galsim.GSObject) -> None:
    """1.5 FWHM apart, fitted as galaxies: fluxes are right, and errors know of the neighbour."""
    fit, _, flux = fit_copies(galaxy(1.0), 400.0, 32, neighbor=neighbor, apart=6.0)
    alone, _, _ = fit_copies(galaxy(1.0), 400.0, 8)
    first = slice(0, None, 2)
    assert abs(np.median(fit.flux[first] / flux[first]) - 1.0) < 0.02
    pulls = (fit.flux - flux) / fit.flux_errors
    assert np.median(np.abs(pulls)) < 1.2
    assert np.median(fit.flux_errors[first]) > np.median(alone.flux_errors)


def test_large_groups_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fitted in parts is what is fitted at once, and no block is large."""
    rng = np.random.default_rng(3)
    places = np.stack(np.mgrid[:5, :6], axis=-1).reshape(-1, 2) * 9.0 + 20.0 + rng.uniform(-1, 1, (30, 2))
    parameters = np.column_stack([places, np.tile([np.log(2.0), 0.2, 0.1, 0.0], (30, 1))])
    images = rng.normal(0.0, 0.01, (1, 80, 90)).astype(np.float32)
    origins = np.rint(places).astype(np.int64) - 16
    rows, columns = window_pixels(33)
    for chosen, pixels in render_windows(parameters, origins, 33, PsfStack.make([MIXTURES[:1]] * 30), False):
        for drawn, (y0, x0) in zip(pixels, origins[chosen].tolist(), strict=True):
            images[0, y0 + rows, x0 + columns] += 100.0 * drawn[0, 0].numpy()
    sources = FitSources(
        places, np.zeros(30, bool), np.full(30, 2.5), np.full(30, 16), np.zeros(30, np.int64)
    )
    weight = np.full_like(images, 1e4)
    blocks: list[int] = []
    whole = module.Block

    def counted(images: object, is_star: np.ndarray, *args: object) -> object:
        blocks.append(len(is_star))
        return whole(images, is_star, *args)

    monkeypatch.setattr(module, "Block", counted)
    monkeypatch.setattr(module, "_GROUP_SOURCES", 15)
    monkeypatch.setattr(module, "_BLOCK_SOURCES", 15)
    fit = fit_profiles(images, weight, sources, lambda y, x: MIXTURES[:1], 0.2)
    assert max(blocks) <= 15
    np.testing.assert_allclose(fit.flux, 100.0, rtol=0.03)


def test_doubtful_sources_are_fitted_both_ways() -> None:
    """Bright ones come out as what they are, whatever the network thinks of them."""
    rng = np.random.default_rng(5)
    images = rng.normal(size=(1, 60, 120))
    for x, part in ((30, galsim.DeltaFunction()), (90, galaxy(1.0))):
        stamp = galsim.Convolve(part, PSF).drawImage(nx=59, ny=59, scale=1.0, method="no_pixel").array
        images[0, :59, x - 29 : x + 30] += 3000.0 * stamp
    images = images.astype(np.float32)
    for called in ([True, True], [False, False]):
        sources = FitSources(
            np.array([[29.0, 30.0], [29.0, 90.0]]), np.array(called), np.ones(2), np.full(2, 20), np.arange(2)
        )
        weight, p_star = np.ones_like(images), np.array([0.57, 0.43])
        fit = fit_profiles(images.copy(), weight, sources, lambda y, x: MIXTURES[:1], 0.2, p_star)
        assert fit.is_star.tolist() == [True, False]
        assert abs(fit.delta_chi2[0]) < 20.0 and fit.delta_chi2[1] > 100.0
        np.testing.assert_allclose(fit.flux[:, 0], 3000.0, rtol=0.03)


def test_what_cannot_be_fitted_stays_finite() -> None:
    """No pixels, two sources at one place, one outside, fluxes below 0."""
    rng = np.random.default_rng(7)
    images = rng.normal(size=(2, 50, 70)).astype(np.float32)
    images[:, 20:30, 30:40] -= 5.0
    weight = np.ones_like(images)
    weight[:, :, 50:] = 0.0
    weight[1, :, 40:] = 0.0
    images[:, :, 50:] = np.nan
    places = np.array([[25.0, 35.0], [25.0, 35.0], [25.0, 65.0], [-5.0, 10.0], [25.0, 12.0]])
    sources = FitSources(
        places,
        np.array([False, False, False, True, True]),
        np.full(5, 2.0),
        np.full(5, 12),
        np.array([0, 0, 1, 2, 3]),
    )
    fit = fit_profiles(images, weight, sources, lambda y, x: MIXTURES[:2], 0.2)
    assert np.isfinite(fit.flux).all() and np.isfinite(fit.parameters).all()
    assert np.isfinite(fit.covariance).all()
    assert fit.flux[0, 0] + fit.flux[1, 0] < 0
    assert fit.dof[2] == 0 and (fit.flux_errors[2] > 1e12).all()


def test_pixels_count_once_in_the_sky_of_a_group() -> None:
    """In windows that overlap with those of the same and of other groups."""
    places, halves = np.array([[30.0, 30.0], [34.0, 37.0], [36.0, 26.0]]), np.array([14, 10, 18])
    images, weight = np.zeros((1, 70, 70), np.float32), np.full((1, 70, 70), 0.25, np.float32)
    origins, groups = places.astype(int) - halves[:, None], np.array([0, 0, 1])
    prior = np.column_stack([places, np.zeros((3, 4))])
    block = module.Block(
        (images, weight),
        np.zeros(3, bool),
        halves,
        origins,
        prior,
        groups,
        PsfStack.make([MIXTURES[:1]] * 3),
        "cpu",
        np.full((3, 1), np.inf),
    )
    covered = np.zeros((2, 70, 70), bool)
    for group, (y0, x0), half in zip(groups, origins, halves, strict=True):
        rows, columns = window_pixels(2 * half + 1)
        covered[group, y0 + rows, x0 + columns] = True
    np.testing.assert_allclose(1.0 / block.sky_variance[:, 0], 0.25 * covered.sum(axis=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize("light", ["sky", "line", "hole"])
def test_what_is_no_source_has_not_converged(light: str) -> None:
    """A pedestal of the sky is larger than the window, a row of pixels thinner than any galaxy."""
    images = np.random.default_rng(3).normal(size=(3, 61, 61)).astype(np.float32)
    images += {"sky": 6.0, "line": 200.0 * (np.arange(61) == 30)[:, None], "hole": -500.0 * STAMP}[light]
    sources = FitSources(
        np.array([[30.0, 30.0]]), np.zeros(1, bool), np.array([2.5]), np.array([14]), np.zeros(1, int)
    )
    fit = fit_profiles(images.copy(), np.ones_like(images), sources, lambda y, x: MIXTURES, 0.2)
    assert not fit.converged[0]
    assert np.exp(fit.parameters[0, 2]) < 14.0 + 1e-6 and np.isfinite(fit.flux).all()
    assert (np.abs(fit.flux) < 4.0 * np.abs(images.sum(axis=(1, 2)))).all()


def test_devices_agree() -> None:
    """The same code on a GPU, where there is one."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    images = np.zeros((1, 60, 60), np.float32)
    images[0, :59, :59] = 1000.0 * galsim.Convolve(galaxy(1.0), PSF).drawImage(nx=59, ny=59, scale=1.0).array
    sources = FitSources(
        np.array([[29.0, 29.0]]), np.zeros(1, bool), np.ones(1), np.full(1, 24), np.zeros(1, np.int64)
    )
    weight = np.ones_like(images)
    fits = [
        fit_profiles(images.copy(), weight, sources, lambda y, x: MIXTURES[:1], 0.2, device=device)
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(fits[1].flux, fits[0].flux, rtol=1e-4)


def test_the_image_becomes_the_residual() -> None:
    images = np.full((1, 61, 61), np.nan, np.float32)
    images[0, :59, :59] = 1000.0 * galsim.Convolve(galaxy(1.0), PSF).drawImage(nx=59, ny=59, scale=1.0).array
    weight = np.isfinite(images).astype(np.float32)
    sources = FitSources(
        np.array([[29.0, 29.0]]), np.zeros(1, bool), np.full(1, 3.0), np.full(1, 24), np.zeros(1, np.int64)
    )
    before = images.copy()
    fit = fit_profiles(images, weight, sources, lambda y, x: MIXTURES[:1], 0.2)
    # It is 0 where nothing is known.
    fit.add_to(images, 0)
    np.testing.assert_allclose(images, np.where(weight > 0, before, 0.0), atol=1e-3)


def test_a_block_holds_the_pixels_of_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that are fitted as both kinds may be in opposite corners of the image, or beyond it."""
    images = np.zeros((2, 900, 1200), np.float32)
    sources = FitSources(
        np.array([[20.0, 30.0], [24.0, 36.0], [899.0, 1190.0]]),
        np.array([True, True, True]),
        np.full(3, 2.0),
        np.array([10, 10, 14]),
        np.array([0, 0, 1]),
    )
    for (y, x), half in zip(sources.positions.astype(int).tolist(), (10, 10, 14), strict=True):
        drawn = 1000.0 * STAMP[30 - half : 31 + half, 30 - half : 31 + half]
        add_stamp(images, y - half, x - half, np.stack([drawn, drawn]).astype(np.float32), 1.0)
    whole, pixels = module.Block, []

    def counted(*args: object) -> object:
        block = whole(*args)
        pixels.append(block.residual.numel())
        return block

    monkeypatch.setattr(module, "Block", counted)
    fit = fit_profiles(images, np.ones_like(images), sources, lambda y, x: MIXTURES[:2], 0.2, np.full(3, 0.5))
    assert max(pixels) <= 2 * (21**2 + 21**2 + 29**2)
    np.testing.assert_allclose(fit.flux[:2], 1000.0, rtol=0.01)
