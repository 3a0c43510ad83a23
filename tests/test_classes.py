# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stars and galaxies by the widths that the joint fit finds."""

from __future__ import annotations

import numpy as np
import pytest

from lsst.meas.maskrcnn.deblend.outlines import redraw_masks
from lsst.meas.maskrcnn.deblend.parents import Parent
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.profiles.classes import width_evidence, with_width
from lsst.meas.maskrcnn.profiles.fit import fit_profiles
from lsst.meas.maskrcnn.profiles.model import FitSources, ProfileFit
from lsst.meas.maskrcnn.profiles.psf import fit_psf

galsim = pytest.importorskip("galsim")

CELL, FWHM = 48, 4.0
PSF = galsim.Moffat(beta=3.0, fwhm=FWHM)
MIXTURE = fit_psf(PSF.drawImage(nx=47, ny=47, scale=1.0, method="no_pixel").array)
STAR = galsim.DeltaFunction()


def draw(
    parts: list[list[tuple[galsim.GSObject, float, float]]], seed: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw groups of (profile, flux, offset in x) side by side with noise of 1; (y, x) and group of each."""
    images = np.random.default_rng(seed).normal(size=(1, CELL, CELL * len(parts))).astype(np.float32)
    positions, groups = [], []
    for group, members in enumerate(parts):
        for profile, flux, offset in members:
            stamp = galsim.Convolve(profile, PSF).drawImage(
                nx=47, ny=47, scale=1.0, method="no_pixel", offset=(offset, 0.0)
            )
            images[0, :47, CELL * group : CELL * group + 47] += flux * stamp.array
            positions.append((23.0, CELL * group + 23.0 + offset))
            groups.append(group)
    return images, np.array(positions), np.array(groups)


def fit(
    images: np.ndarray,
    positions: np.ndarray,
    groups: np.ndarray,
    p_star: np.ndarray | None,
    is_star: bool | np.ndarray = False,
    weight: np.ndarray | None = None,
    noise_factor: float = 1.0,
) -> ProfileFit:
    count = len(positions)
    sources = FitSources(positions, np.full(count, is_star), np.full(count, 2.0), np.full(count, 18), groups)
    weight = np.ones_like(images) if weight is None else weight
    fwhm = None if p_star is None else FWHM
    return fit_profiles(
        images.copy(),
        weight,
        sources,
        lambda y, x: [MIXTURE],
        0.2,
        p_star,
        fwhm,
        noise_factors=lambda models: np.array([noise_factor]),
    )


def snr_flux(profile: galsim.GSObject, snr: float) -> float:
    """Flux of a matched-filter S/N."""
    stamp = galsim.Convolve(profile, PSF).drawImage(nx=47, ny=47, scale=1.0, method="no_pixel").array
    return snr / float(np.sqrt((stamp**2).sum()))


def test_widths_tell_what_the_network_cannot() -> None:
    disc = galsim.Exponential(half_light_radius=2.0)
    parts = [[(profile, snr_flux(profile, 25.0), 0.0)] for profile in 40 * [STAR] + 40 * [disc]]
    parts += [[(profile, snr_flux(profile, 100.0), 0.0)] for profile in 5 * [STAR] + 5 * [disc]]
    p_star = np.concatenate([np.full(80, 0.5), np.full(5, 0.99), np.full(5, 0.01)])
    found = fit(*draw(parts), p_star, p_star > 0.98)
    p = with_width(p_star, found.evidence)[:80]
    assert (p[:40] > 0.5).mean() > 0.8 and (p[40:] < 0.5).mean() > 0.9
    assert (p[:40, None] > p[40:]).mean() > 0.97
    # The models follow.
    assert found.is_star[:40].mean() > 0.8 and found.is_star[40:80].mean() < 0.1


def test_more_stars_are_likely_among_bright_stars() -> None:
    disc = galsim.Exponential(half_light_radius=1.2)
    bright = snr_flux(STAR, 200.0)
    faint = [[(disc, snr_flux(disc, 12.0), 0.0)]] * 5
    images, positions, groups = draw(faint + 12 * [[(STAR, bright, 0.0)]])
    p_star = np.append(np.full(5, 0.5), np.full(12, 0.99))
    among_stars = fit(images, positions, groups, p_star, np.append(np.zeros(5, bool), np.ones(12, bool)))
    p_star[5:] = 0.01
    among_galaxies = fit(images, positions, groups, p_star)
    np.testing.assert_array_less(among_galaxies.evidence[:5] + 1.0, among_stars.evidence[:5])


def test_a_pair_starts_again_as_what_it_is() -> None:
    """Models of two stars that the network took for galaxies are those of a fit that knows them."""
    flux = snr_flux(STAR, 150.0)
    drawn = draw([[(STAR, flux, -2.2), (STAR, flux, 2.2)]] * 4)
    known, found = fit(*drawn, None, True), fit(*drawn, np.full(8, 0.3))
    assert found.is_star.all()
    np.testing.assert_allclose(found.flux, known.flux, rtol=2e-3)
    np.testing.assert_allclose(known.flux, flux, rtol=0.05)


def test_a_core_without_pixels_tells_no_width() -> None:
    images, positions, groups = draw([[(STAR, 1000.0, 0.0)], [(STAR, 1000.0, 0.0)]])
    weight = np.ones_like(images)
    weight[0, 21:26, 21:26] = 0.0
    found = fit(images, positions, groups, np.array([0.3, 0.3]), weight=weight)
    assert np.isnan(found.evidence).tolist() == [True, False]
    p = with_width(np.array([0.3, 0.3]), found.evidence)
    assert p[0] == 0.3 and p[1] > 0.5


def test_evidence_falls_with_the_size_and_is_stronger_with_a_small_error() -> None:
    sizes = np.geomspace(0.3, 2.5, 30)

    def evidence(error: float) -> np.ndarray:
        covariance = np.zeros((30, 7, 7))
        covariance[:, 2, 2], covariance[:, 6, 6] = (error / sizes) ** 2, 1.0
        parameters = np.zeros((30, 6))
        parameters[:, 2] = np.log(sizes)
        zeros, no = np.zeros(30, int), np.zeros(30, bool)
        some = ProfileFit(parameters, np.full((30, 1), 20.0), covariance, no, np.zeros(30), zeros, zeros, ~no)
        return width_evidence(some, np.full(30, 0.5), FWHM)

    small, large = evidence(0.1), evidence(0.6)
    assert (np.diff(small) < 0).all() and (np.diff(large) < 0).all()
    assert np.ptp(small) > np.ptp(large)
    np.testing.assert_array_equal(with_width(np.full(30, 0.3), np.full(30, np.nan)), 0.3)


def test_errors_of_widths_are_no_larger_than_the_measured_noise() -> None:
    """As if the weights, which are 16 times too small, were right."""
    disc = galsim.Exponential(half_light_radius=3.0)
    drawn = draw(10 * [[(disc, snr_flux(disc, 25.0), 0.0)]])
    p_star, light = np.full(10, 0.001), np.full_like(drawn[0], 1.0 / 16.0)
    right = fit(*drawn, p_star).evidence
    believed = fit(*drawn, p_star, weight=light).evidence
    measured = fit(*drawn, p_star, weight=light, noise_factor=1.0 / 16.0).evidence
    assert np.abs(measured - right).mean() < 0.5 * np.abs(believed - right).mean()
    np.testing.assert_array_equal(fit(*drawn, p_star, noise_factor=16.0).evidence, right)


def test_masks_are_outlines_of_the_class_within_the_parent() -> None:
    y, x = np.mgrid[:41, :41] - 20
    plane = np.exp(-0.5 * (y**2 + x**2) / 4.0**2).astype(np.float32)[None]
    models = fit(*draw(3 * [[(STAR, 3000.0, 0.0)]]), None, True)
    models.windows = [(30, 60, plane), (-10, 8, plane), (30, 160, -plane)]
    masks = [np.ones((3, 3), bool)] * 3
    found = Detections(
        np.zeros((3, 4), np.float32),
        np.ones(3, np.float32),
        np.array([0.9, 0.2, 0.9], np.float32),
        np.array([[49, 79], [9, 27], [49, 179]], np.int32),
        masks,
    )
    pixels = np.ones((60, 100), bool)
    # The parent of the first ends to the right of its peak.
    pixels[:, 85:] = False
    parents = [Parent(np.array([0, 1]), 0, 0, pixels), Parent(np.array([2]), 0, 150, np.ones((60, 60), bool))]
    drawn = redraw_masks(found, np.arange(3), models, 0, parents, 4)
    for row, (level, y0, x0) in enumerate([(0.005, 30, 60), (0.08, -10, 8)]):
        expected = np.zeros((100, 220), bool)
        rows, columns = np.nonzero(plane[0] >= level)
        inside = (rows + y0 >= 0) & (rows + y0 < 60) & (columns + x0 < 85)
        expected[rows[inside] + y0, columns[inside] + x0] = True
        mask = np.zeros_like(expected)
        top, left = drawn.origins[row]
        height, width = drawn.masks[row].shape
        mask[top : top + height, left : left + width] = drawn.masks[row]
        np.testing.assert_array_equal(mask, expected)
        assert drawn.boxes[row].tolist() == [left, top, left + width, top + height]
    # A model without light says nothing of the outline.
    assert drawn.masks[2] is masks[2] and drawn.origins[2].tolist() == [49, 179]


def test_a_psf_that_is_too_narrow_does_no_harm() -> None:
    """Where bright stars show that it is."""
    narrow = fit_psf(
        galsim.Moffat(beta=3.0, fwhm=0.9 * FWHM).drawImage(nx=47, ny=47, scale=1.0, method="no_pixel").array
    )
    images, positions, groups = draw(20 * [[(STAR, snr_flux(STAR, 25.0), 0.0)]] + 8 * [[(STAR, 1000.0, 0.0)]])

    def evidence(bright: float) -> np.ndarray:
        p_star = np.append(np.full(20, 0.5), np.full(8, bright))
        sources = FitSources(positions, np.zeros(28, bool), np.full(28, 2.0), np.full(28, 18), groups)
        weight, psf = np.ones_like(images), (lambda y, x: [narrow])
        return fit_profiles(images.copy(), weight, sources, psf, 0.2, p_star, FWHM).evidence[:20]

    # At 0.9 they count alike for the frequency of stars, but not for their width.
    assert np.median(evidence(0.91) - evidence(0.89)) > 0.4
