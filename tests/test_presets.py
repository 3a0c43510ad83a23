# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The presets against what is published of the surveys they stand for."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import re
import subprocess
import sys
from pathlib import Path

import galsim
import numpy as np
import pytest
from preset_numbers import point_source_depth, preset_exposure_times, presets_table
from surveycodex import get_survey

from lsst.meas.maskrcnn.scenes.artefacts import MASK_BITS
from lsst.meas.maskrcnn.scenes.config import ArtefactConfig, BandConditions, PsfConfig, SceneConfig
from lsst.meas.maskrcnn.scenes.populations import draw_population
from lsst.meas.maskrcnn.scenes.presets import (
    PRESETS,
    expected_sources,
    preset_config,
    survey_conditions,
    survey_pixel_scale,
)
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene

DOC = Path(__file__).parents[1] / "doc" / "lsst.meas.maskrcnn" / "simulated-scenes.rst"
SURVEYS = {"hsc": "HSC", "dec": "DES", "lss": "LSST", "cro": "HSC", "clu": "HSC"}
NAMES = [
    "hsc-500s-noiseless",
    "hsc-500s",
    "hsc-deep-noiseless",
    "hsc-deep",
    "hsc-wide",
    "decam-120s",
    "lsst-1yr",
    "lsst-10yr",
    "crowded",
    "cluster",
]


def depths(name: str) -> dict[str, float]:
    config = PRESETS[name]
    return {c.band: point_source_depth(c, config.pixel_scale, config.psf) for c in config.conditions}


def conditions(name: str) -> dict[str, BandConditions]:
    return {c.band: c for c in PRESETS[name].conditions}


def test_names():
    assert list(PRESETS) == NAMES
    assert len(PRESETS) == len(NAMES)
    assert "hsc-wide" in PRESETS and "hsc_wide" not in PRESETS
    with pytest.raises(KeyError):
        PRESETS["hsc_wide"]
    with pytest.raises(ValueError, match="no preset 'hsc_wide'; choose one of .*'hsc-wide'"):
        preset_config("hsc_wide")
    for name in NAMES:
        config = PRESETS[name]
        assert config.name == name
        assert config is PRESETS[name]
        assert config.shape == (512, 512)
        assert config.bands == ("z", "r", "g")


def test_listing_names_needs_no_survey():
    """What is slow to import waits until a preset is asked for."""
    code = (
        "import sys; from lsst.meas.maskrcnn.scenes.presets import PRESETS; list(PRESETS); "
        "assert 'surveycodex' not in sys.modules and 'astropy' not in sys.modules; "
        "PRESETS['hsc-wide']; assert 'surveycodex' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_surveycodex(name):
    config = PRESETS[name]
    survey = get_survey(SURVEYS[name[:3]])
    assert config.pixel_scale == survey.pixel_scale.value
    assert {c.band for c in config.conditions} == {f.lower() for f in survey.available_filters}
    times = preset_exposure_times(name)
    for c in config.conditions:
        info = survey.get_filter("Y" if c.band == "y" and "Y" in survey.available_filters else c.band)
        assert c.fwhm == info.psf_fwhm.value
        # A source as bright as the zero point leaves an electron per second.
        at_zero_point = 10.0 ** (0.4 * (31.4 - info.zeropoint.value))
        assert c.electrons_per_njy * at_zero_point == pytest.approx(times[c.band], rel=1e-9)
        sky = 10.0 ** (0.4 * (31.4 - info.sky_brightness.value)) * config.pixel_scale**2
        assert c.sky_level == pytest.approx(sky, rel=1e-9)
        electrons = math.sqrt(c.sky_level * c.electrons_per_njy)
        assert c.sky_sigma * c.electrons_per_njy == pytest.approx(electrons, rel=1e-9)


def test_exposure_times():
    for name in ("hsc-deep", "hsc-deep-noiseless"):
        times = preset_exposure_times(name)
        assert (times["g"], times["r"], times["z"]) == (25200.0, 25200.0, 68040.0)
    assert set(preset_exposure_times("hsc-500s-noiseless").values()) == {500.0}
    assert set(preset_exposure_times("decam-120s").values()) == {120.0}
    one, ten = conditions("lsst-1yr"), conditions("lsst-10yr")
    for band in "ugrizy":
        assert one[band].electrons_per_njy == pytest.approx(0.1 * ten[band].electrons_per_njy)
        assert ten[band].exposures == round(preset_exposure_times("lsst-10yr")[band] / 30.0)
        # A tenth of the visits: read noise and sky grow alike.
        assert one[band].noise_sigma == pytest.approx(math.sqrt(10.0) * ten[band].noise_sigma, rel=0.04)
        # Each visit saturates where it did, however many there are.
        assert one[band].saturation == pytest.approx(ten[band].saturation, rel=0.1)
    wide = conditions("hsc-wide")
    assert [wide[band].exposures for band in "grizy"] == [4, 4, 6, 6, 6]
    assert {c.exposures for c in PRESETS["decam-120s"].conditions} == {1}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # HSC-SSP, 5 sigma, Aihara et al. 2018.
        ("hsc-wide", {"g": 26.5, "r": 26.1, "i": 25.9, "z": 25.1, "y": 24.4}),
        ("hsc-deep", {"g": 28.1, "r": 27.7, "z": 26.8, "y": 26.3}),
        # DES DR1, single exposures of 90 s, 10 sigma; Abbott et al. 2018.
        (
            "decam-120s",
            {
                band: depth + 2.5 * math.log10(2.0 * math.sqrt(120.0 / 90.0))
                for band, depth in {"g": 23.57, "r": 23.34, "i": 22.78, "z": 22.10}.items()
            },
        ),
        # LSST, Ivezic et al. 2019, table 1; a tenth of the time is 1.25 mag.
        ("lsst-10yr", {"u": 26.1, "g": 27.4, "r": 27.5, "i": 26.8, "z": 26.1, "y": 24.9}),
        ("lsst-1yr", {"u": 24.85, "g": 26.15, "r": 26.25, "i": 25.55, "z": 24.85, "y": 23.65}),
    ],
)
def test_depths_are_the_published_ones(name, published):
    here = depths(name)
    for band, depth in published.items():
        assert here[band] == pytest.approx(depth, abs=0.45), band
    # Not a constant error either.
    assert abs(np.mean([here[band] - depth for band, depth in published.items()])) < 0.4


@pytest.mark.parametrize(
    ("psf", "profile"),
    [
        (PsfConfig(beta=(3.0, 3.6)), galsim.Moffat(beta=3.3, fwhm=0.8)),
        (PsfConfig(profile="kolmogorov"), galsim.Kolmogorov(fwhm=0.8)),
    ],
)
def test_depth_is_that_of_a_matched_filter(psf, profile):
    c = BandConditions("r", 0.8, 3.0, 2.0, read_noise=6.0, exposures=4)
    pixels = profile.drawImage(nx=201, ny=201, scale=0.15, method="no_pixel").array
    # Signal to noise of a matched filter: flux sqrt(sum p^2) / sigma.
    flux = 5.0 * c.noise_sigma / math.sqrt((pixels.astype(float) ** 2).sum())
    assert point_source_depth(c, 0.15, psf) == pytest.approx(31.4 - 2.5 * math.log10(flux), abs=0.005)


def test_bright_stars_saturate_where_they_do():
    """Point sources in good seeing: 17.5 to 18 in HSC's 150 s, about 16 in LSST's 30 s."""
    for name, low, high in (("hsc-wide", 17.3, 18.4), ("lsst-10yr", 15.4, 16.4), ("decam-120s", 15.8, 16.8)):
        config, c = PRESETS[name], conditions(name)["r"]
        star = galsim.Moffat(beta=3.5, fwhm=c.fwhm).drawImage(
            nx=65, ny=65, scale=config.pixel_scale, method="no_pixel"
        )
        limit = 31.4 - 2.5 * math.log10(c.saturation / star.array.max())
        assert low < limit < high, name


def test_noiseless_presets_are_clean():
    for name in ("hsc-500s", "hsc-deep"):
        noisy, clean = PRESETS[name], PRESETS[f"{name}-noiseless"]
        assert not clean.noise
        assert clean.artefacts == ArtefactConfig()
        assert clean.misregistration == 0.0
        assert clean.conditions == noisy.conditions
        assert clean.population == noisy.population
    for name in NAMES:
        config = PRESETS[name]
        if not name.endswith("-noiseless"):
            assert config.noise and config.artefacts.saturation
            assert 0.0 < config.misregistration <= 0.1


@pytest.mark.skipif(
    importlib.metadata.version("surveycodex").startswith("1.2."),
    reason="the table was made with surveycodex 1.3",
)
def test_documented_table():
    text = DOC.read_text(encoding="utf-8")
    assert presets_table() in text, f"Put what 'python tests/preset_numbers.py' prints into {DOC.name}."
    # The comparison with published depths repeats those of the table.
    for name in ("hsc-wide", "hsc-deep", "decam-120s", "lsst-10yr"):
        here = ", ".join(f"{depths(name)[band]:.1f}" for band in "zrg")
        assert re.search(rf"^``{name}`` +{here} ", text, re.MULTILINE), name
    # They are described above the table; other lists follow it.
    described = re.findall(r"^``[\w, `-]+``$", text[: text.index(presets_table())], re.MULTILINE)
    assert set(re.findall(r"``([\w-]+)``", " ".join(described))) == set(NAMES)


def test_table_of_other_bands():
    header, _, *rows = presets_table(("i", "r")).splitlines()[1:-1]
    assert "depth i, r" in header
    wide = next(row for row in rows if "``hsc-wide``" in row)
    assert wide.split() == [
        "``hsc-wide``",
        "0.168",
        "1200,",
        "600",
        "0.61,",
        "0.75",
        "3.84,",
        "3.2",
        "26.1,",
        "26.1",
        "51",
        "to",
        "25.5",
        "4",
        "to",
        "25",
        "116",
    ]


@pytest.mark.parametrize("name", ["decam-120s", "hsc-wide", "lsst-10yr", "hsc-deep"])
def test_number_counts(name):
    """Galaxies and stars on 400 arcmin^2 without clusters and extra bright sources."""
    population = dataclasses.replace(
        PRESETS[name].population, cluster_probability=0.0, bright_star_density=0.0, large_galaxy_density=0.0
    )
    drawn = draw_population(population, (1500, 1500), 0.8, np.random.default_rng(5), margin=0.0)
    galaxies = np.sort(drawn["mag"][~drawn["is_star"]])
    stars = np.sort(drawn["mag"][drawn["is_star"]])
    # LSST Science Book, section 3.7, with r - i = 0.4.
    for limit in (23.0, 24.0, 25.0, 25.5):
        if limit <= population.mag_limit:
            published = 46.0 * 10.0 ** (0.31 * (limit - 0.4 - 25.0))
            assert np.searchsorted(galaxies, limit) / 400.0 == pytest.approx(published, rel=0.3), limit
    # 60 to 100 galaxies to 26, 150 to 250 to 28.
    for limit, low, high in ((26.0, 60.0, 100.0), (28.0, 150.0, 250.0)):
        if limit <= population.mag_limit:
            assert low < np.searchsorted(galaxies, limit) / 400.0 < high
    # 2 to 4 stars at high latitude to r = 24, two thirds of a star to 20.
    assert 2.0 < np.searchsorted(stars, 24.0) / 400.0 < 4.0
    assert 0.4 < np.searchsorted(stars, 20.0) / 400.0 < 0.9


def test_expected_sources():
    rng = np.random.default_rng(8)

    def counts(config: SceneConfig, draws: int) -> tuple[np.ndarray, np.ndarray]:
        scenes = [
            draw_population(config.population, config.shape, config.pixel_scale, rng, margin=0.0)
            for _ in range(draws)
        ]
        return np.array([s.size for s in scenes]), np.array([(s["group"] > 0).sum() for s in scenes])

    crowded = dataclasses.replace(PRESETS["crowded"], shape=(300, 400))
    assert np.mean(counts(crowded, 20)[0]) == pytest.approx(expected_sources(crowded), rel=0.05)
    assert 200.0 < crowded.population.star_density < 1000.0
    # Clusters may reach beyond the edge of the scene.
    cluster = PRESETS["cluster"]
    total, members = counts(cluster, 60)
    assert 0.75 * expected_sources(cluster) < total.mean() < 1.02 * expected_sources(cluster)
    assert members.min() >= 15
    assert expected_sources(PRESETS["hsc-wide"]) == pytest.approx(115.0, abs=15.0)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_draws(name):
    config = preset_config(name, shape=(64, 96))
    scene = simulate_scene(config, np.random.default_rng(3))
    assert scene.images.shape == (3, 64, 96)
    assert len(scene.sources) > 0
    missing = (scene.mask & MASK_BITS["NO_DATA"]) != 0
    assert np.isfinite(scene.images[~missing]).all()
    assert missing.mean() < 0.5
    expected = [c.noise_sigma for c in config.band_conditions()]
    np.testing.assert_allclose(scene.sky_sigma, expected, rtol=1e-6)


def test_other_bands():
    scene = simulate_scene(
        preset_config("lsst-10yr", shape=(64, 96), bands=("u", "i", "y")), np.random.default_rng(4)
    )
    assert scene.bands == ("u", "i", "y")
    with pytest.raises(ValueError, match=r"not for u"):
        preset_config("hsc-wide", bands=("u", "g"))


def test_survey_conditions():
    plain = {c.band: c for c in survey_conditions("CFHTLS")}
    assert set(plain) == {"u", "g", "r", "i", "z"}
    assert survey_pixel_scale("CFHTLS") == get_survey("CFHTLS").pixel_scale.value
    assert plain["r"].saturation == math.inf and plain["r"].read_noise == 0.0
    assert plain["r"].exposures == 1
    changed = {
        c.band: c
        for c in survey_conditions(
            "CFHTLS", {"r": 400.0}, read_noise=5.0, full_well=1e5, single_exposures={"r": 100.0}
        )
    }
    assert changed["g"].sky_sigma == plain["g"].sky_sigma
    assert changed["r"].exposures == 4
    # Four exposures, each of which holds 1e5 electrons.
    assert changed["r"].saturation * changed["r"].electrons_per_njy == pytest.approx(4e5)
    factor = changed["r"].electrons_per_njy / plain["r"].electrons_per_njy
    assert changed["r"].sky_sigma == pytest.approx(plain["r"].sky_sigma / math.sqrt(factor))
    with pytest.raises(ValueError, match="f814w"):
        survey_conditions("COSMOS")


def test_default_conditions_are_those_of_hsc_wide():
    config = SceneConfig()
    assert config.conditions == PRESETS["hsc-wide"].conditions
    assert config.pixel_scale == PRESETS["hsc-wide"].pixel_scale
    assert config.artefacts == ArtefactConfig()
    assert config.name not in PRESETS
