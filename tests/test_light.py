# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Noise-free galaxies: Sersic profiles, structure, stamp sizes."""

from __future__ import annotations

import math

import galsim
import numpy as np
import pytest

from lsst.meas.maskrcnn.scenes.light import BandPsf, Painter

NOTHING = np.array([0.0])
LIGHT = np.array([100.0])
SCALE = 0.168


def reference(profile, stamp, x, y):
    """Draw a GalSim profile on the pixels of a stamp."""
    size = stamp.pixels.shape[1]
    image = galsim.Image(size, size, xmin=stamp.x0, ymin=stamp.y0, scale=SCALE)
    return profile.drawImage(image=image, method="no_pixel", center=galsim.PositionD(x, y)).array


def sheared_psf(g1=0.03, g2=-0.02):
    psf = BandPsf(0.7, "moffat", 3.1, g1, g2)
    return psf, galsim.Moffat(beta=3.1, fwhm=0.7).shear(g1=g1, g2=g2)


@pytest.mark.parametrize("index", [0.5, 0.8, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("component", ["disc", "bulge"])
def test_sersic_pixels_as_galsim_draws_them(index, component):
    """Profiles that do not fade are GalSim's to 5e-4 of the peak."""
    psf, galsim_psf = sheared_psf()
    painter = Painter([psf], SCALE, np.array([1.0]))
    x, y, radius, ratio, angle = 90.4, 87.7, 0.9, 0.4, 0.6
    shapes = [(radius, ratio), (0.3, 1.0)]
    fluxes = [LIGHT, NOTHING]
    if component == "bulge":
        shapes.reverse()
        fluxes.reverse()
    stamp = painter.draw_galaxy(x, y, *fluxes, *shapes, angle, 160, **{f"{component}_sersic": index})
    # The half-light radius is the major axis's, GalSim's that of the circle.
    profile = galsim.Sersic(index, half_light_radius=radius * math.sqrt(ratio), flux=100.0)
    profile = profile.shear(q=ratio, beta=angle * galsim.radians)
    expected = reference(galsim.Convolve(profile, galsim_psf), stamp, x, y)
    np.testing.assert_allclose(stamp.pixels[0], expected, atol=5e-4 * expected.max())


@pytest.mark.parametrize("index", [2.5, 4.0])
def test_faded_profiles(index):
    """Beyond an index of 2 a profile fades linearly from 4.5 to 9.5 radii of the endless one."""
    psf, galsim_psf = sheared_psf()
    painter = Painter([psf], SCALE, np.array([1.0]))
    radius = 1.2
    stamp = painter.draw_galaxy(
        130.4, 127.7, NOTHING, LIGHT, (1.0, 1.0), (radius, 1.0), 0.0, 320, bulge_sersic=index
    )
    # A mean of sharp edges is a linear fading. Where half of the light is comes from the same sum in
    # one dimension.
    r = np.linspace(0.0, 9.5, 200_001)[1:]
    endless = galsim.Sersic(index, half_light_radius=1.0)
    scale = (r / endless.scale_radius) ** (1 / index)
    light = np.exp(-scale) * np.clip((9.5 - r) / 5.0, 0.0, 1.0) * r
    cumulative = np.cumsum(light)
    half = np.interp(0.5 * cumulative[-1], cumulative, r)
    edges = np.linspace(4.5, 9.5, 21)
    params = galsim.GSParams(maximum_fft_size=16384)
    parts = [
        galsim.Sersic(
            index,
            half_light_radius=radius / half,
            trunc=edge * radius / half,
            flux_untruncated=True,
            gsparams=params,
        )
        for edge in 0.5 * (edges[1:] + edges[:-1])
    ]
    total = galsim.Sum(parts).withFlux(100.0)
    expected = reference(galsim.Convolve(total, galsim_psf), stamp, 130.4, 127.7)
    np.testing.assert_allclose(stamp.pixels[0], expected, atol=3e-4 * expected.max())


@pytest.mark.parametrize("index", [0.5, 0.8, 1.3, 2.5, 4.0, 6.0])
def test_half_light_radius(index):
    """Half the flux lies inside the ellipse of the half-light radius."""
    painter = Painter([BandPsf(0.3, beta=6.0)], 0.2, np.array([1.0]))
    stamp = painter.draw_galaxy(300, 260, LIGHT, NOTHING, (4.0, 0.6), (1.0, 1.0), 0.0, 512, disc_sersic=index)
    y, x = np.mgrid[:512, :512]
    inside = np.hypot(x + stamp.x0 - 300, (y + stamp.y0 - 260) / 0.6) * 0.2 < 4.0
    assert stamp.pixels[0].sum() == pytest.approx(100.0, rel=1e-6)
    assert stamp.pixels[0][inside].sum() == pytest.approx(50.0, abs=0.6)


@pytest.mark.parametrize("index", [0.4, 6.2])
def test_indices_out_of_range(index):
    painter = Painter([BandPsf(0.7)], SCALE, np.array([1.0]))
    with pytest.raises(ValueError, match=rf"{index}.*\[0.5, 6\]"):
        painter.draw_galaxy(30, 30, LIGHT, NOTHING, (1.0, 1.0), (1.0, 1.0), 0.0, 64, disc_sersic=index)


@pytest.mark.parametrize("beta", [2.0, 2.7, 4.5])
def test_psf_transform(beta):
    psf = BandPsf(0.8, "moffat", beta, 0.05, 0.02)
    expected = galsim.Moffat(beta=beta, fwhm=0.8).shear(g1=0.05, g2=0.02)
    k = np.linspace(-15.0, 15.0, 41)
    got = psf.transform(k, k[:, None])
    values = [[expected.kValue(kx, ky).real for kx in k] for ky in k]
    np.testing.assert_allclose(got, values, atol=5e-5)


@pytest.mark.parametrize(("disc", "bulge"), [(0.8, 2.0), (1.3, 4.0), (1.0, 5.5)])
def test_stamps_end_where_a_galaxy_is_faint(disc, bulge):
    """At the edge of its stamp a galaxy is below the tolerance."""
    sigma = np.array([3.0, 5.0])
    psfs = [BandPsf(0.7, beta=3.0), BandPsf(0.6, beta=2.8)]
    painter = Painter(psfs, SCALE, sigma, tolerance=0.02)
    rng = np.random.default_rng(8)
    count = 30
    disc_flux = 10.0 ** rng.uniform(2.0, 4.5, (count, 1)) * np.array([1.0, 1.5])
    bulge_flux = disc_flux * rng.uniform(0.0, 0.6, (count, 1))
    radii = rng.uniform(0.3, 2.0, (2, count))
    ratios = rng.uniform(0.3, 1.0, (2, count))
    indices = (np.full(count, disc), np.full(count, bulge))
    sizes = painter.galaxy_stamp_sizes(disc_flux, bulge_flux, *radii, *ratios, *indices)
    assert len(set(sizes.tolist())) >= 4
    for i in range(count):
        # Drawn on twice the size, so that nothing folds back.
        big = int(2 * sizes[i])
        stamp = painter.draw_galaxy(
            big // 2,
            big // 2,
            disc_flux[i],
            bulge_flux[i],
            (radii[0, i], ratios[0, i]),
            (radii[1, i], ratios[1, i]),
            0.0,
            big,
            None,
            disc,
            bulge,
        )
        edge = stamp.pixels[:, big // 2, big // 2 + sizes[i] // 2]
        assert (edge < 1.5 * 0.02 * sigma).all()


def structured(seed, ratio, irregular, size=224):
    """Draw a galaxy smooth and structured, with the same light."""
    psfs = [BandPsf(0.7, beta=3.0), BandPsf(0.7, beta=3.0)]
    painter = Painter(psfs, SCALE, np.ones(2), clump_boost=np.array([0.9, 1.4]))
    arguments = (
        112.2,
        111.6,
        np.array([100.0, 50.0]),
        np.array([5.0, 1.0]),
        (3.0, ratio),
        (0.5, 0.8),
        0.3,
        size,
    )
    smooth = painter.draw_galaxy(*arguments, None, 1.1, 2.5)
    stamp = painter.draw_galaxy(*arguments, np.random.default_rng(seed), 1.1, 2.5, irregular)
    return smooth.pixels, stamp.pixels


@pytest.mark.parametrize(("ratio", "irregular"), [(0.9, False), (0.5, False), (0.3, False), (0.7, True)])
def test_structure_conserves_flux(ratio, irregular):
    differences = []
    for seed in range(20):
        smooth, pixels = structured(seed, ratio, irregular)
        np.testing.assert_allclose(pixels.sum(axis=(1, 2)), [105.0, 51.0], rtol=1e-5)
        # Float32 leaves a few 1e-7 of the peak.
        assert pixels.min() > -3e-6 * pixels.max()
        differences.append(np.abs(pixels - smooth).sum() / smooth.sum())
    assert np.median(differences) > 0.05


def test_structure_takes_chance_from_its_generator_alone():
    first, again, other = (structured(seed, 0.7, False)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01 * first.max()


def test_irregular_galaxies_are_lopsided():
    """The centroid of their light is further from the disc's centre than that of spirals."""

    def lopsidedness(irregular):
        shares = []
        for seed in range(40):
            _, pixels = structured(seed, 0.7, irregular)
            y, x = np.mgrid[:224, :224]
            plane = pixels[0].astype(float)
            dx = (plane * (x - 112.2)).sum() / plane.sum()
            dy = (plane * (y - 111.6)).sum() / plane.sum()
            shares.append(math.hypot(dx, dy) * SCALE / 3.0)
        return np.array(shares)

    spirals, irregulars = lopsidedness(False), lopsidedness(True)
    assert np.median(irregulars) > 2.0 * np.median(spirals)
    assert np.median(spirals) < 0.15
    assert irregulars.max() < 0.7


def test_young_light_is_blue():
    """What structure adds to a smooth galaxy is stronger in the band with the higher boost."""
    ratios = []
    for seed in range(10):
        smooth, pixels = structured(seed, 0.8, False)
        contrast = np.abs(pixels - smooth).sum(axis=(1, 2)) / smooth.sum(axis=(1, 2))
        ratios.append(contrast[1] / contrast[0])
    assert np.median(ratios) > 1.05
