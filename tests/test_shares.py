# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shares of the flux of overlapping sources."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from lsst.meas.maskrcnn.deblend.peaks import find_peaks
from lsst.meas.maskrcnn.deblend.shares import BlendSource, Shares, ShareSettings, share_flux
from lsst.meas.maskrcnn.profiles import block, fit, symmetry
from lsst.meas.maskrcnn.profiles.blend import Blend, mask_centers

TEMPLATES = ("mask", "profile", "symmetric")
PSF_SIGMA = 1.7
PSF_FWHM = PSF_SIGMA * 2.3548


def gaussian(
    shape: tuple[int, int],
    y: float,
    x: float,
    flux: float = 1.0,
    sigma: float = PSF_SIGMA,
    axis_ratio: float = 1.0,
    angle: float = 0.0,
) -> np.ndarray:
    """An elliptical Gaussian of some flux; sigma is the geometric mean of its axes."""
    dy, dx = np.mgrid[: shape[0], : shape[1]] - np.array([y, x])[:, None, None]
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = dy * np.cos(angle) - dx * np.sin(angle)
    radius = along**2 * axis_ratio + across**2 / axis_ratio
    return flux * np.exp(-0.5 * radius / sigma**2) / (2.0 * np.pi * sigma**2)


PSF = gaussian((25, 25), 12, 12)


def source_of(model: np.ndarray, y: float, x: float, is_star: bool, fraction: float = 0.05) -> BlendSource:
    """A source with the mask of its own light above a fraction of its peak."""
    mask = model > fraction * model.max()
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    soft = np.where(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 255, 0).astype(np.uint8)
    return BlendSource(soft, int(rows[0]), int(columns[0]), y, x, is_star)


def grown(masks: list[np.ndarray], by: float) -> np.ndarray:
    return distance_transform_edt(~np.logical_or.reduce(masks)) <= by


def check_shares(shares: Shares, images: np.ndarray) -> None:
    """Shares are from 0 to 1, add up to 1, and the children's pixels to the image."""
    total = np.zeros(images.shape)
    pixels = np.zeros(images.shape, np.float32)
    lost = np.zeros(images.shape, bool)
    for share in shares.sources:
        box = (slice(None), *share.box)
        weights = share.weights
        assert weights.dtype == np.float32
        assert weights.min() >= -1e-6 and weights.max() <= 1.0 + 1e-6
        assert not weights[:, ~shares.parent[share.box]].any()
        total[box] += weights
        child = share.pixels(images)
        assert child.dtype == np.float32
        # A child has no value exactly where it has a share of a pixel without one.
        np.testing.assert_array_equal(np.isnan(child), np.isnan(images[box]) & (weights > 0))
        lost[box] |= np.isnan(child)
        pixels[box] += np.nan_to_num(child)
    np.testing.assert_allclose(total, np.broadcast_to(shares.parent, total.shape), atol=2e-6)
    there = shares.parent & np.isfinite(images)
    np.testing.assert_array_equal(lost, shares.parent & np.isnan(images))
    scale = np.abs(np.where(there, images, 0.0))
    assert (np.abs(pixels - np.where(there, images, 0.0)) <= 4e-6 * scale).all()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("seed", range(8))
def test_children_add_up(template, seed):
    """Whatever comes in: negative pixels, holes, bad pixels, sources on top of each other or outside."""
    rng = np.random.default_rng([seed, 5])
    n_bands = int(rng.integers(1, 4))
    shape = (int(rng.integers(12, 50)), int(rng.integers(51, 90)))
    images = rng.normal(0.0, 1.0, (n_bands, *shape))
    sources = []
    for number in range(int(rng.integers(2, 9))):
        y, x = rng.uniform(-3.0, shape[0] + 2.0), rng.uniform(-3.0, shape[1] + 2.0)
        images += rng.uniform(0.0, 3000.0, n_bands)[:, None, None] * gaussian(shape, y, x)
        side = rng.integers(1, 15, 2)
        soft = rng.integers(0, 256, side).astype(np.uint8)
        if number == 1:
            soft = np.zeros((0, 0), np.uint8)
        if number == 2:
            y, x = sources[0].peak_y, sources[0].peak_x
            soft = sources[0].soft
            side = np.array(soft.shape)
        corner = np.rint([y, x] - side / 2).astype(int).tolist()
        sources.append(BlendSource(soft, *corner, y, x, bool(rng.integers(2))))
    images = images.astype(np.float32)
    variances = np.ones_like(images)
    images[rng.random(images.shape) < 0.03] = np.nan
    variances[rng.random(images.shape) < 0.03] = np.nan
    variances[rng.random(images.shape) < 0.03] = 0.0
    if seed % 2:
        images[0] = 0.0 if seed % 4 == 1 else -np.abs(images[0])
    parent = rng.random(shape) < (1.0 if seed < 3 else 0.7)
    good = rng.random(shape) < 0.9
    psfs = [PSF] * n_bands if seed % 3 else None
    shares = share_flux(images, variances, parent, sources, psfs, good, template=template)
    assert len(shares) == len(sources)
    check_shares(shares, images)


@pytest.mark.parametrize("template", TEMPLATES)
def test_one_source_takes_all(template, rng):
    images = rng.normal(size=(2, 11, 17)).astype(np.float32)
    images[1, 3, 4] = np.nan
    parent = rng.random((11, 17)) < 0.6
    source = BlendSource(np.full((2, 2), 255, np.uint8), 4, 5, 4.5, 5.5)
    shares = share_flux(images, np.ones_like(images), parent, [source], template=template)
    check_shares(shares, images)
    np.testing.assert_array_equal(shares.sources[0].weights[1], parent)
    np.testing.assert_allclose(
        shares.fluxes(images)[0], np.nansum(np.where(parent, images, 0.0), axis=(1, 2)), rtol=1e-5
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_many_sources(template, rng):
    """300 in one parent: boxes stay small, and each keeps its flux."""
    shape = (300, 240)
    y, x = (part.ravel() * 15.0 + 7.0 for part in np.mgrid[:20, :16])
    keep = slice(0, 300)
    y, x = y[keep] + rng.uniform(-2, 2, 300), x[keep] + rng.uniform(-2, 2, 300)
    flux = rng.uniform(500.0, 2000.0, 300)
    image = np.zeros(shape)
    sources = []
    for one_y, one_x, one_flux in zip(y.tolist(), x.tolist(), flux.tolist()):
        model = gaussian((31, 31), one_y - int(one_y) + 15, one_x - int(one_x) + 15, one_flux)
        top, left = int(one_y) - 15, int(one_x) - 15
        rows = slice(max(top, 0), min(top + 31, shape[0]))
        columns = slice(max(left, 0), min(left + 31, shape[1]))
        image[rows, columns] += model[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        local = source_of(model, one_y, one_x, True)
        sources.append(dataclasses.replace(local, y0=local.y0 + top, x0=local.x0 + left))
    images = (image + rng.normal(0.0, 0.5, shape))[None].astype(np.float32)
    parent = np.ones(shape, bool)
    variances = np.full_like(images, 0.25)
    shares = share_flux(images, variances, parent, sources, [PSF], template=template, reach=4.0)
    check_shares(shares, images)
    claimed = sum(share.weights.size for share in shares.sources)
    assert claimed < 300 * 26 * 26
    error = np.abs(shares.fluxes(images)[:, 0] / flux - 1.0)
    assert np.median(error) < 0.02


@pytest.mark.parametrize("template", TEMPLATES)
def test_place_in_the_parent_does_not_matter(template, rng):
    """Not square, and moved by whole pixels: lost or swapped axes would show."""
    shape = (33, 50)
    models = [gaussian(shape, 12, 20, 900.0), gaussian(shape, 17, 26, 400.0, 2.5, 0.6, 0.4)]
    images = (np.sum(models, axis=0) + rng.normal(0.0, 0.1, shape))[None].astype(np.float32)
    variances = np.full_like(images, 0.01)
    sources = [source_of(models[0], 12, 20, True), source_of(models[1], 17, 26, False)]
    parent = grown([model > 0.05 * model.max() for model in models], 3.0)
    here = share_flux(images, variances, parent, sources, [PSF], template=template)
    dy, dx = 14, 3
    moved = [
        dataclasses.replace(s, y0=s.y0 + dy, x0=s.x0 + dx, peak_y=s.peak_y + dy, peak_x=s.peak_x + dx)
        for s in sources
    ]

    def pad(pixels: np.ndarray, value: float) -> np.ndarray:
        wide = np.full((*pixels.shape[:-2], shape[0] + 20, shape[1] + 9), value, pixels.dtype)
        wide[..., dy : dy + shape[0], dx : dx + shape[1]] = pixels
        return wide

    wide_images = pad(images, 0.0)
    there = share_flux(wide_images, pad(variances, 0.01), pad(parent, False), moved, [PSF], template=template)
    np.testing.assert_allclose(there.fluxes(wide_images), here.fluxes(images), rtol=2e-3)
    turned = [
        BlendSource(np.ascontiguousarray(s.soft.T), s.x0, s.y0, s.peak_x, s.peak_y, s.is_star)
        for s in sources
    ]
    other = share_flux(
        images.transpose(0, 2, 1), variances.transpose(0, 2, 1), parent.T, turned, [PSF], template=template
    )
    np.testing.assert_allclose(
        other.fluxes(images.transpose(0, 2, 1)), here.fluxes(images), rtol=1e-4, atol=1e-3
    )


def test_order_does_not_matter(rng):
    shape = (40, 60)
    places = [(18.0, 20.0), (20.0, 26.5), (23.0, 33.0)]
    models = [gaussian(shape, *place, 1000.0 / (n + 1), 2.0 + 0.3 * n) for n, place in enumerate(places)]
    images = (np.sum(models, axis=0) + rng.normal(0.0, 0.1, shape))[None].astype(np.float32)
    variances = np.full_like(images, 0.01)
    sources = [source_of(model, *place, n == 1) for n, (model, place) in enumerate(zip(models, places))]
    parent = grown([model > 0.02 * model.max() for model in models], 3.0)
    one = share_flux(images, variances, parent, sources, [PSF]).fluxes(images)
    two = share_flux(images, variances, parent, sources[::-1], [PSF]).fluxes(images)
    np.testing.assert_allclose(two[::-1], one, rtol=1e-5)


@pytest.mark.parametrize(("separation", "tolerance"), [(2.0, 0.15), (4.0, 0.01), (8.0, 0.01)])
def test_stars_are_psfs(separation, tolerance):
    """Without noise the shares of two stars are those of their PSFs, in each band on its own."""
    shape = (41, 60)
    y, x = (20.3, 20.3), (25.2, 25.2 + separation)
    fluxes = np.array([[1000.0, 100.0], [300.0, 600.0]])
    psfs = [gaussian((31, 31), 15, 15), gaussian((31, 31), 15, 15, sigma=2.2)]
    models = np.stack(
        [
            np.stack([gaussian(shape, y[n], x[n], fluxes[n, b], (PSF_SIGMA, 2.2)[b]) for b in range(2)])
            for n in range(2)
        ]
    )
    images = models.sum(axis=0).astype(np.float32)
    sources = [source_of(models[n, 0], round(y[n]), round(x[n]), True, 0.005) for n in range(2)]
    parent = np.ones(shape, bool)
    shares = share_flux(images, np.full_like(images, 0.01), parent, sources, psfs)
    check_shares(shares, images)
    np.testing.assert_allclose(shares.fluxes(images), fluxes, rtol=tolerance)


def test_wings_beyond_the_image_of_the_psf():
    """A bright star's light is its own far beyond the stamp of the PSF."""
    shape = (91, 101)

    def moffat(y: float, x: float, shape: tuple[int, int] = shape) -> np.ndarray:
        dy, dx = np.mgrid[: shape[0], : shape[1]] - np.array([y, x])[:, None, None]
        return (1.0 + (dy**2 + dx**2) / 9.0) ** -1.5 / (18.0 * np.pi)

    star, faint = 1e5 * moffat(45, 40), 300.0 * moffat(45, 75)
    images = (star + faint)[None].astype(np.float32)
    sources = [source_of(star, 45, 40, True, 5e-4), source_of(faint, 45, 75, True)]
    psf = moffat(12, 12, (25, 25))
    shares = share_flux(images, np.full_like(images, 0.01), np.ones(shape, bool), sources, [psf], reach=30.0)
    right = shares.sources[1]
    at_star_side = right.weights[0, 45 - right.y0, 62 - right.x0]
    assert at_star_side < 0.05
    assert shares.fluxes(images)[1, 0] == pytest.approx(300.0, rel=0.15)


def test_galaxies_are_ellipses():
    """Two ellipses of noise-free light, their axes crossed, are told apart."""
    shape = (60, 75)
    models = [
        gaussian(shape, 30.2, 30.1, 2000.0, 3.0, 0.5, 0.3),
        gaussian(shape, 33.0, 38.4, 800.0, 2.4, 0.6, -0.9),
    ]
    images = np.sum(models, axis=0)[None].astype(np.float32)
    sources = [source_of(models[0], 30, 30, False), source_of(models[1], 33, 38, False)]
    parent = np.ones(shape, bool)
    shares = share_flux(images, np.full_like(images, 0.01), parent, sources, [PSF])
    np.testing.assert_allclose(shares.fluxes(images)[:, 0], [2000.0, 800.0], rtol=0.02)
    nearest = np.hypot(*np.mgrid[:60, :75] - np.array([30.2, 30.1])[:, None, None]) < np.hypot(
        *np.mgrid[:60, :75] - np.array([33.0, 38.4])[:, None, None]
    )
    assert abs(images[0][~nearest].sum() / 800.0 - 1.0) > 0.05


def test_mirror_images_by_hand(monkeypatch):
    """The smaller of a pixel and its mirror, pixel by pixel."""
    images = np.array([[[1.0, 5.0, 4.0, 2.0, 7.0, 9.0, 3.0]]], np.float32)
    source = BlendSource(np.full((1, 5), 255, np.uint8), 0, 0, 0.0, 2.0)
    other = BlendSource(np.full((1, 5), 255, np.uint8), 0, 2, 0.0, 4.5)
    monkeypatch.setattr(symmetry, "_SMOOTH", 0.0)
    good = np.ones((1, 7), bool)
    good[0, 3] = False
    blend = Blend.make(
        images, np.ones_like(images), np.ones((1, 7), bool), [source, other], None, good, reach=0.0
    )
    first, second = (symmetry.symmetric_part(blend, index) for index in range(2))
    # About pixel 2; pixel 3 is bad, so that its partner 1 takes its place.
    np.testing.assert_allclose(first[0, 0], [1.0, 5.0, 4.0, 5.0, 1.0])
    # About the edge of pixels 4 and 5: 2 has its partner outside and stands for itself.
    np.testing.assert_allclose(second[0, 0], [4.0, 3.0, 7.0, 7.0, 3.0])


def test_light_outside_all_masks_goes_by_distance():
    """Nothing is known of it but where it is."""
    images = np.ones((1, 9, 40), np.float32)
    soft = np.full((3, 3), 255, np.uint8)
    sources = [BlendSource(soft, 3, 5, 4.0, 6.0), BlendSource(soft, 3, 29, 4.0, 30.0)]
    parent = np.ones((9, 40), bool)
    shares = share_flux(images, images, parent, sources, template="mask", reach=20.0)
    left = np.zeros((9, 40))
    left[shares.sources[0].box] = shares.sources[0].weights[0]
    assert (np.diff(left[4, 7:30]) <= 1e-7).all()
    assert left[4, 12] > 0.95 and left[4, 24] < 0.05
    assert left[4, 18] == pytest.approx(0.5, abs=1e-5)
    check_shares(shares, images)


def test_sources_of_one_place_share_evenly(rng):
    shape = (31, 41)
    model = gaussian(shape, 15, 20, 500.0)
    images = np.stack([model, 2.0 * model]).astype(np.float32)
    source = source_of(model, 15, 20, False)
    parent = grown([model > 0.05 * model.max()], 2.0)
    for template in TEMPLATES:
        shares = share_flux(
            images, np.ones_like(images), parent, [source, source], [PSF, PSF], template=template
        )
        flux = shares.fluxes(images)
        np.testing.assert_allclose(flux.sum(axis=0), images[:, parent].sum(axis=1), rtol=1e-5)
        np.testing.assert_allclose(flux[0], flux[1], rtol=0.02)


def test_band_without_light():
    """A band in which nothing is seen is shared all the same, and changes nothing in the others."""
    shape = (41, 60)
    models = [gaussian(shape, 20, 25, 1000.0), gaussian(shape, 20, 31, 500.0)]
    light = np.sum(models, axis=0)
    parent = grown([model > 0.02 * model.max() for model in models], 2.0)
    sources = [source_of(models[0], 20, 25, True), source_of(models[1], 20, 31, True)]
    alone = light[None].astype(np.float32)
    with_dark = np.stack([light, np.zeros(shape)]).astype(np.float32)
    one = share_flux(alone, np.full_like(alone, 0.01), parent, sources, [PSF])
    two = share_flux(with_dark, np.full_like(with_dark, 0.01), parent, sources, [PSF, PSF])
    check_shares(two, with_dark)
    np.testing.assert_allclose(two.fluxes(with_dark)[:, 0], one.fluxes(alone)[:, 0], rtol=1e-3)
    np.testing.assert_array_equal(two.fluxes(with_dark)[:, 1], 0.0)


def test_bad_pixels_make_no_template(rng, monkeypatch):
    """A cosmic ray that is known as one changes no other pixel's shares."""
    shape = (41, 60)
    models = [gaussian(shape, 20, 25, 1000.0), gaussian(shape, 22, 31, 500.0, 2.5)]
    images = (np.sum(models, axis=0) + rng.normal(0.0, 0.1, shape))[None].astype(np.float32)
    parent = grown([model > 0.02 * model.max() for model in models], 2.0)
    sources = [source_of(models[0], 20, 25, True), source_of(models[1], 22, 31, False)]
    good = np.ones(shape, bool)
    good[19:21, 28] = False
    variances = np.full_like(images, 0.01)
    monkeypatch.setattr(symmetry, "_SMOOTH", 0.0)
    for template in ("symmetric", "profile"):
        clean = share_flux(images, variances, parent, sources, [PSF], good, template=template)
        hit = images.copy()
        hit[0, 19:21, 28] = 1e5
        struck = share_flux(hit, variances, parent, sources, [PSF], good, template=template)
        for a, b in zip(clean.sources, struck.sources):
            np.testing.assert_array_equal(a.weights, b.weights)
        check_shares(struck, hit)


def test_peak_in_the_neighbour_is_not_believed():
    """The brightest pixel of a faint star's mask is often its neighbour's."""
    shape = (41, 60)
    models = [gaussian(shape, 20, 25, 3000.0), gaussian(shape, 20, 31, 300.0)]
    images = np.sum(models, axis=0)[None].astype(np.float32)
    parent = np.ones(shape, bool)
    right = [source_of(models[0], 20, 25, True, 0.005), source_of(models[1], 20, 31, True, 0.005)]
    wrong = [right[0], dataclasses.replace(right[1], peak_y=20.0, peak_x=26.0)]
    unknown = [right[0], dataclasses.replace(right[1], peak_y=np.nan, peak_x=np.nan)]
    variances = np.full_like(images, 0.01)
    expected = share_flux(images, variances, parent, right, [PSF]).fluxes(images)
    np.testing.assert_allclose(expected[:, 0], [3000.0, 300.0], rtol=0.01)
    for sources in (wrong, unknown):
        flux = share_flux(images, variances, parent, sources, [PSF]).fluxes(images)
        np.testing.assert_allclose(flux, expected, rtol=0.01)


def test_peaks_of_blends(rng):
    """Each source's own maximum, the middle of the mask where it has none."""
    shape = (50, 70)
    places = [(20.0, 20.3), (21.0, 25.8), (30.4, 50.0)]
    models = [gaussian(shape, *place, flux) for place, flux in zip(places, (3000.0, 250.0, 800.0))]
    image = np.sum(models, axis=0) + rng.normal(0.0, 0.05, shape)
    image[2, 3] = np.nan
    sources = [source_of(model, *place, True, 0.005) for model, place in zip(models, places)]
    soft = [source.soft for source in sources]
    origins = np.array([(source.y0, source.x0) for source in sources])
    assert (image * (models[1] > 0.005 * models[1].max()))[~np.isnan(image)].max() > 100
    np.testing.assert_allclose(mask_centers(soft, origins), places, atol=0.5)
    peaks = find_peaks(image, soft, origins, PSF_FWHM)
    np.testing.assert_allclose(peaks, places, atol=0.5)
    np.testing.assert_allclose(peaks[2], places[2], atol=0.1)
    np.testing.assert_array_equal(
        find_peaks(np.zeros(shape), soft, origins, PSF_FWHM), mask_centers(soft, origins)
    )
    assert find_peaks(image, [], np.zeros((0, 2)), PSF_FWHM).shape == (0, 2)
    with pytest.raises(ValueError, match="3 masks and 2 origins"):
        find_peaks(image, soft, origins[:2], PSF_FWHM)


def test_peaks_of_a_close_pair():
    """The maxima of two equal stars are drawn together by their sum; the peaks are not."""
    shape, apart = (50, 60), 1.05 * PSF_FWHM
    places = np.array([(24.3, 25.2), (24.3, 25.2 + apart)])
    models = [gaussian(shape, *place, 1000.0) for place in places]
    sources = [source_of(model, *place, True, 0.02) for model, place in zip(models, places, strict=True)]
    corners = [(source.y0, source.x0) for source in sources]
    peaks = find_peaks(np.sum(models, axis=0), [source.soft for source in sources], corners, PSF_FWHM)
    assert np.hypot(*(peaks - places).T).max() < 0.35


def galaxy_pair() -> tuple[np.ndarray, np.ndarray, list[BlendSource]]:
    """Two galaxies of fluxes 3000 and 1000 at 1.5 FWHM of the PSF, without noise."""
    shape, first, second = (61, 76), (30.2, 34.1), (30.2, 34.1 + 1.5 * PSF_FWHM)
    models = [
        gaussian(shape, *first, 3000.0, 2.3, 0.7, 0.4),
        gaussian(shape, *second, 1000.0, 2.1, 0.8, -0.8),
    ]
    images = np.sum(models, axis=0)[None].astype(np.float32)
    sources = [source_of(models[0], *first, False), source_of(models[1], *second, False)]
    return images, np.ones_like(images), sources


def test_the_fit_converges(monkeypatch):
    images, variances, sources = galaxy_pair()
    parent = np.ones(images.shape[1:], bool)
    fluxes = share_flux(images, variances, parent, sources, [PSF]).fluxes(images)
    # They are Gaussians; the models have indices from 0.6 on.
    np.testing.assert_allclose(fluxes[:, 0], [3000.0, 1000.0], rtol=0.02)
    monkeypatch.setattr(fit, "MAX_STEPS", 10 * fit.MAX_STEPS)
    for name in ("_SETTLED", "_STILL"):
        monkeypatch.setattr(block, name, 0.01 * getattr(block, name))
    more = share_flux(images, variances, parent, sources, [PSF]).fluxes(images)
    # By less than the standard deviations, which are 10.
    np.testing.assert_allclose(more, fluxes, atol=0.5)


@pytest.mark.parametrize(
    "changes", [{"template": "scarlet"}, {"parent_grow": -1.0}, {"max_parent_sources": 0}]
)
def test_settings_are_checked(changes):
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        ShareSettings(**changes)


def test_inputs_are_checked():
    image = np.ones((1, 4, 6), np.float32)
    parent = np.ones((4, 6), bool)
    source = BlendSource(np.full((2, 2), 255, np.uint8), 1, 1, 1.5, 1.5)
    with pytest.raises(ValueError, match="give at least one"):
        share_flux(image, image, parent, [])
    with pytest.raises(ValueError, match=r"the parent \(6, 4\)"):
        share_flux(image, image, parent.T, [source])
    with pytest.raises(ValueError, match="2 PSFs for 1 bands"):
        share_flux(image, image, parent, [source], [PSF, PSF])
    with pytest.raises(ValueError, match="odd sides"):
        share_flux(image, image, parent, [source], [PSF[1:]])
    with pytest.raises(ValueError, match="its sum is not above 0"):
        share_flux(image, image, parent, [source], [-PSF])
    with pytest.raises(ValueError, match="good has shape"):
        share_flux(image, image, parent, [source], good=parent.T)
    with pytest.raises(ValueError, match="source 0 is float64"):
        share_flux(image, image, parent, [dataclasses.replace(source, soft=np.ones((2, 2)))])
    nowhere = BlendSource(np.zeros((0, 0), np.uint8), 0, 0, np.nan, 1.0)
    with pytest.raises(ValueError, match="source 1 has neither a mask nor a finite peak"):
        share_flux(image, image, parent, [source, nowhere])
