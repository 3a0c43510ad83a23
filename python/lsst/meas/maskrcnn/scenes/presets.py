# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Named kinds of scenes, and a mixture of all of them to train on.

Sky noise comes from published 5-sigma point-source depths, spread over the
noise-equivalent area of the PSF; electrons per nJy from the cameras' zero
points and exposure times.

========== ======= ======== ================= ==========================
preset     px ["]  seeing   sky sigma z,r,g   what it is like
                   z,r,g    [nJy per px]
========== ======= ======== ================= ==========================
hsc_wide   0.168   .68-.77  10, 3.6, 2.5      HSC-SSP Wide
hsc_500s   0.168   .68-.77  16, 4.0, 2.7      HSC, 500 s
shallow    0.262   1.0-1.3  47, 19, 11        DECaLS DR7 / DES
deep       0.168   .68-.77  1.3, .55, .39     HSC-SSP UltraDeep
lsst10     0.2     .83-.87  4.0, 1.1, 1.2     LSST after ten years
========== ======= ======== ================= ==========================

``hsc_noiseless`` is ``hsc_500s`` without noise in the pixels.
"""

from __future__ import annotations

__all__ = ["CAMERA", "PRESETS", "preset_config", "random_scene_config"]

import math
from dataclasses import replace
from typing import Any

import numpy as np

from .config import ArtefactConfig, BandConditions, PopulationConfig, PsfConfig, SceneConfig

_WIDE = SceneConfig()
CAMERA = ArtefactConfig(
    saturation=True, bleed=True, bleed_level=0.3, spikes=0.015, halo=0.015, gradient=0.1, correlation=0.4
)
"""Artefacts of an ordinary survey image; presets are without."""


def _hsc_500s() -> SceneConfig:
    exposure = {"g": 600.0, "r": 600.0, "i": 1200.0, "z": 1200.0, "y": 1200.0}
    conditions = tuple(
        replace(
            c,
            sky_sigma=c.sky_sigma * math.sqrt(exposure[c.band] / 500.0),
            electrons_per_njy=c.electrons_per_njy * 500.0 / exposure[c.band],
        )
        for c in _WIDE.conditions
    )
    return replace(_WIDE, conditions=conditions, name="hsc_500s")


def _shallow() -> SceneConfig:
    return SceneConfig(
        pixel_scale=0.262,
        conditions=(
            BandConditions("g", 1.3, 11.0, 3.0, 8.0e4),
            BandConditions("r", 1.15, 19.0, 3.0, 8.0e4),
            BandConditions("i", 1.1, 25.0, 3.0, 8.0e4),
            BandConditions("z", 1.05, 47.0, 3.5, 1.2e5),
        ),
        psf=PsfConfig(beta=(2.5, 3.5)),
        population=PopulationConfig(galaxy_density=22.0, star_density=3.0, mag_limit=24.0),
        name="shallow",
    )


def _deep() -> SceneConfig:
    factor = {"g": 42.0, "r": 42.0, "i": 50.0, "z": 57.0, "y": 57.0}
    conditions = tuple(
        replace(
            c,
            sky_sigma=c.sky_sigma / math.sqrt(factor[c.band]),
            electrons_per_njy=c.electrons_per_njy * factor[c.band],
        )
        for c in _WIDE.conditions
    )
    population = PopulationConfig(galaxy_density=120.0, mag_limit=27.0)
    return replace(_WIDE, conditions=conditions, population=population, name="deep")


def _lsst10() -> SceneConfig:
    return SceneConfig(
        pixel_scale=0.2,
        conditions=(
            BandConditions("u", 0.92, 2.6, 25.0, 7.0e4),
            BandConditions("g", 0.87, 1.2, 140.0, 7.0e4),
            BandConditions("r", 0.83, 1.1, 290.0, 7.0e4),
            BandConditions("i", 0.80, 1.8, 240.0, 7.0e4),
            BandConditions("z", 0.80, 4.0, 180.0, 1.0e5),
            BandConditions("y", 0.80, 9.0, 90.0, 1.5e5),
        ),
        population=PopulationConfig(galaxy_density=85.0, mag_limit=26.5),
        name="lsst10",
    )


PRESETS: dict[str, SceneConfig] = {
    "hsc_wide": _WIDE,
    "hsc_500s": _hsc_500s(),
    "hsc_noiseless": replace(_hsc_500s(), noise=False, name="hsc_noiseless"),
    "shallow": _shallow(),
    "deep": _deep(),
    "lsst10": _lsst10(),
}
"""The named configurations."""


def preset_config(name: str, **changes: Any) -> SceneConfig:
    """Return a named configuration, with some fields changed.

    Parameters
    ----------
    name : `str`
        A key of `PRESETS`.
    **changes
        Fields of `SceneConfig` and their new values.

    Raises
    ------
    ValueError
        If there is no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; choose one of {sorted(PRESETS)}.")
    return replace(PRESETS[name], **changes)


def random_scene_config(
    rng: np.random.Generator,
    shape: tuple[int, int] = (512, 512),
    bands: tuple[str, ...] = ("z", "r", "g"),
) -> SceneConfig:
    """Draw a kind of scene, for training sets that hold all kinds.

    Preset, depth, seeing, number of sources (about 30 to 250 in
    512 x 512 px), stars among them, pairs, clusters and artefacts vary.

    Parameters
    ----------
    rng : `numpy.random.Generator`
        Source of chance.
    shape : `tuple` [`int`, `int`]
        Height and width, px.
    bands : `tuple` [`str`, ...]
        Band order of the arrays.

    Returns
    -------
    config : `SceneConfig`
        Give it to `simulate_scene` with the same or another generator.
    """
    names = ("hsc_wide", "hsc_500s", "hsc_noiseless", "shallow", "deep", "lsst10")
    name = str(rng.choice(names, p=(0.25, 0.1, 0.3, 0.2, 0.05, 0.1)))
    base = PRESETS[name]
    factor = float(10.0 ** rng.uniform(-0.4, 0.5))
    seeing = float(rng.lognormal(0.0, 0.1))
    area = 512.0 * 512.0 * (base.pixel_scale / 60.0) ** 2
    count = float(10.0 ** rng.uniform(math.log10(30.0), math.log10(250.0)))
    star_share = float(rng.choice([0.1, 0.25, 0.6], p=(0.5, 0.35, 0.15)) * rng.uniform(0.6, 1.4))
    population = replace(
        base.population,
        galaxy_density=count * (1.0 - star_share) / area,
        star_density=count * star_share / area,
        mag_limit=base.population.mag_limit + float(rng.uniform(-1.0, 0.3)) + 0.6 * math.log10(factor),
        pair_fraction=float(rng.uniform(0.0, 0.4)),
        cluster_probability=0.25,
        size_at_22=base.population.size_at_22 * float(rng.lognormal(0.0, 0.1)),
        bright_star_density=float(rng.choice([0.0, 0.1, 0.5], p=(0.3, 0.5, 0.2))),
        large_galaxy_density=float(rng.choice([0.02, 0.1, 0.5], p=(0.4, 0.4, 0.2))),
    )
    artefacts = ArtefactConfig()
    if name != "hsc_noiseless" or rng.random() < 0.4:
        artefacts = replace(
            CAMERA,
            bleed=bool(rng.random() < 0.5),
            bleed_axis=str(rng.choice(["x", "y"])),
            bleed_level=float(10.0 ** rng.uniform(-2.5, 0.0)),
            saturation_fill=float(rng.choice([1.0, rng.uniform(0.0, 1.0)])),
            spikes=float(rng.uniform(0.0, 0.03)),
            halo=float(rng.uniform(0.0, 0.03)),
            gradient=float(rng.exponential(0.1)) if base.noise else 0.0,
            correlation=float(rng.choice([0.0, rng.uniform(0.35, 0.7)])),
        )
    return replace(
        base,
        shape=shape,
        bands=bands,
        exposure_factor=factor,
        conditions=tuple(replace(c, fwhm=c.fwhm * seeing) for c in base.conditions),
        population=population,
        artefacts=artefacts,
    )
