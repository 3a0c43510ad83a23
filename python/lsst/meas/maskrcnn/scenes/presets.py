# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Named kinds of scenes, and a mixture of all of them to train on.

Pixel scales, seeing, zero points and the brightness of the sky are those of
``surveycodex``; read noise, saturation and the length of an exposure are the
cameras' published ones. The documentation of the package lists the numbers.
"""

from __future__ import annotations

__all__ = ["PRESETS", "expected_sources", "preset_config"]

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..images.units import AB_ZERO_POINT
from .config import ArtefactConfig, BandConditions, PopulationConfig, PsfConfig, SceneConfig

_CAMERA = ArtefactConfig(
    saturation=True, bleed=True, bleed_level=0.3, spikes=0.015, halo=0.015, gradient=0.1, correlation=0.4
)
"""Artefacts of an ordinary coadd."""

_SINGLE = replace(
    _CAMERA,
    correlation=0.0,
    bleed_level=1.0,
    cosmic_rays=0.5,
    dead_columns=0.5,
    chip_gaps=0.1,
    chip_gap_width=(40.0, 53.0),
)
"""Artefacts of a single exposure.

About twice the muons that reach sea level in two minutes (1 per cm^2 and
minute) leave tracks; 0.05 % of DECam's pixels are bad, and 153 or 201 px lie
between its detectors.
"""


@dataclass(frozen=True)
class _Observed:
    """How the images of a preset came about, beyond what surveycodex says."""

    survey: str
    read_noise: float
    full_well: float
    single: Mapping[str, float]
    """Length of one exposure, s."""
    times: Mapping[str, float] | None = None
    """Length of all of them, s; None for the survey's."""
    share: float = 1.0
    """Of that time."""


# Read noise and saturation: subarutelescope.org, HSC instrument parameters.
# Exposures of the Wide layer of HSC-SSP, and the plan for its UltraDeep one:
# Aihara et al. 2018, PASJ 70, S4.
_HSC = _Observed("HSC", 4.5, 1.5e5, {"g": 150.0, "r": 150.0, "i": 200.0, "z": 200.0, "y": 200.0})
_ULTRA_DEEP = {"g": 25200.0, "r": 25200.0, "i": 50400.0, "z": 68040.0, "y": 68040.0}
# Read noise: noirlab.edu, DECam characteristics; the least full well of its
# detectors: Flaugher et al. 2015, AJ 150, 150.
_DECAM = _Observed("DES", 7.0, 1.3e5, dict.fromkeys("grizy", 120.0), dict.fromkeys("grizy", 120.0))
# Visits of 30 s: Ivezic et al. 2019, ApJ 873, 111; read noise and saturation
# of typical amplifiers: the camera description in lsst/obs_lsst.
_LSST = _Observed("LSST", 6.0, 1.3e5, dict.fromkeys("ugrizy", 30.0))

_OBSERVED = {
    "hsc-wide": _HSC,
    "hsc-500s": replace(_HSC, times=dict.fromkeys("grizy", 500.0)),
    "hsc-deep": replace(_HSC, single=dict.fromkeys("grizy", 300.0), times=_ULTRA_DEEP),
    "decam-120s": _DECAM,
    "lsst-1yr": replace(_LSST, share=0.1),
    "lsst-10yr": _LSST,
}


def survey_pixel_scale(survey: str) -> float:
    """Return the pixel size (arcsec) of a survey that surveycodex knows."""
    # Brings astropy's units along, which most users of the package need not
    # wait for.
    from surveycodex import get_survey

    return float(get_survey(survey).pixel_scale.to_value("arcsec"))


def survey_conditions(
    survey: str,
    exposure_times: Mapping[str, float] | None = None,
    *,
    read_noise: float = 0.0,
    full_well: float = math.inf,
    single_exposures: Mapping[str, float] | None = None,
) -> tuple[BandConditions, ...]:
    """Return the observing conditions of the bands of a survey that surveycodex knows.

    A source of AB magnitude m leaves ``t 10^(0.4 (ZP - m))`` electrons in
    ``t`` seconds, and so does an arcsec^2 of sky of that surface brightness.
    Exposure times of the stack by band (s) are the survey's by default; it holds
    the nearest whole number of ``single_exposures`` (s), by default one.
    ``read_noise`` and ``full_well`` are electrons in a pixel of one exposure.
    """
    from surveycodex import get_survey

    description = get_survey(survey)
    pixel_area = survey_pixel_scale(survey) ** 2
    times = _survey_exposure_times(survey) | dict(exposure_times or {})
    result = []
    for name in description.available_filters:
        band = name.lower()
        info = description.get_filter(name)
        time = times[band]
        count = max(1, round(time / (single_exposures or {}).get(band, time)))
        # As plain numbers, because the units of zero points are logarithmic.
        zero_point = float(info.zeropoint.value)
        electrons_per_njy = time * 10.0 ** (0.4 * (zero_point - AB_ZERO_POINT))
        sky = time * 10.0 ** (0.4 * (zero_point - float(info.sky_brightness.value))) * pixel_area
        result.append(
            BandConditions(
                band,
                fwhm=float(info.psf_fwhm.to_value("arcsec")),
                sky_sigma=math.sqrt(sky) / electrons_per_njy,
                electrons_per_njy=electrons_per_njy,
                saturation=full_well * count / electrons_per_njy,
                read_noise=read_noise,
                exposures=count,
            )
        )
    return tuple(result)


def _survey_exposure_times(survey: str) -> dict[str, float]:
    """Return a survey's exposure time per band, s."""
    from surveycodex import get_survey

    filters = [get_survey(survey).get_filter(name) for name in get_survey(survey).available_filters]
    return {info.name.lower(): float(info.full_exposure_time.to_value("s")) for info in filters}


def _times(observed: _Observed) -> dict[str, float]:
    whole = _survey_exposure_times(observed.survey) | dict(observed.times or {})
    return {band: observed.share * time for band, time in whole.items()}


def _conditions(name: str) -> tuple[BandConditions, ...]:
    observed = _OBSERVED[name]
    return survey_conditions(
        observed.survey,
        _times(observed),
        read_noise=observed.read_noise,
        full_well=observed.full_well,
        single_exposures=observed.single,
    )


# Galaxies per arcmin^2 brighter than r: N(<i) = 46 x 10^(0.31 (i - 25)) of
# the LSST Science Book (Abell et al. 2009, section 3.7) with r - i = 0.4, and
# from r = 25.5 on the flatter counts of the Hubble Deep Fields (Metcalfe et
# al. 2001, MNRAS 323, 795).
_TO_24 = PopulationConfig(galaxy_density=16.0, mag_limit=24.0, star_density=2.8, star_mag_range=(17.0, 24.0))
_TO_25_5 = PopulationConfig(galaxy_density=51.0, mag_limit=25.5, star_density=4.0)
_TO_26_5 = PopulationConfig(
    galaxy_density=97.0,
    mag_limit=26.5,
    counts_slope_bright=0.35,
    counts_slope_faint=0.23,
    counts_break=25.5,
    star_density=5.0,
    star_mag_range=(17.0, 26.0),
)
_TO_28 = replace(
    _TO_26_5,
    galaxy_density=240.0,
    mag_limit=28.0,
    counts_slope_faint=0.2,
    star_density=6.0,
    star_mag_range=(17.0, 27.0),
)


# The density of the DECam Plane Survey, 3.3e9 objects on 2700 deg^2 (Saydjari et
# al. 2023), in HSC's deeper images.
_CROWDED = replace(
    _TO_25_5,
    galaxy_density=30.0,
    star_density=340.0,
    star_mag_range=(16.0, 25.0),
    star_counts_slope=0.22,
    bright_star_density=0.3,
    cluster_probability=0.0,
    dust_reddening=0.6,
)
# Compact ones, of which most members are on the image.
_CLUSTER = replace(_TO_25_5, cluster_probability=1.0, cluster_richness=(60, 150), cluster_core=(6.0, 18.0))


def _observed(name: str, **settings: Any) -> SceneConfig:
    """Make a preset of images that were, or will be, taken."""
    pixel_scale = survey_pixel_scale(_OBSERVED[name].survey)
    return SceneConfig(pixel_scale=pixel_scale, conditions=_conditions(name), name=name, **settings)


def _variant(preset: str, name: str, **changes: Any) -> SceneConfig:
    """Make a preset of another one, with observing conditions of its own if it has any."""
    if name in _OBSERVED:
        changes["conditions"] = _conditions(name)
    return replace(PRESETS[preset], name=name, **changes)


def _noiseless(preset: str) -> SceneConfig:
    """Make a preset without noise, artefacts and misregistration."""
    plain: dict[str, Any] = {"noise": False, "artefacts": ArtefactConfig(), "misregistration": 0.0}
    return _variant(preset, f"{preset}-noiseless", **plain)


class _Presets(Mapping[str, SceneConfig]):
    """The named configurations, each made when it is first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], SceneConfig]]) -> None:
        self._makers = dict(makers)
        self._made: dict[str, SceneConfig] = {}

    def __getitem__(self, name: str) -> SceneConfig:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


PRESETS: Mapping[str, SceneConfig] = _Presets(
    {
        "hsc-500s-noiseless": lambda: _noiseless("hsc-500s"),
        "hsc-500s": lambda: _variant("hsc-wide", "hsc-500s"),
        "hsc-deep-noiseless": lambda: _noiseless("hsc-deep"),
        "hsc-deep": lambda: _variant("hsc-wide", "hsc-deep", population=_TO_28),
        "hsc-wide": lambda: _observed(
            "hsc-wide", population=_TO_25_5, artefacts=_CAMERA, misregistration=0.05
        ),
        "decam-120s": lambda: _observed(
            "decam-120s",
            psf=PsfConfig(beta=(2.5, 3.5), seeing_scatter=0.12, band_scatter=0.08),
            population=_TO_24,
            artefacts=_SINGLE,
            misregistration=0.1,
        ),
        "lsst-1yr": lambda: _variant("lsst-10yr", "lsst-1yr", population=_TO_25_5),
        "lsst-10yr": lambda: _observed(
            "lsst-10yr",
            psf=PsfConfig(profile="kolmogorov", seeing_scatter=0.05),
            population=_TO_26_5,
            artefacts=_CAMERA,
            misregistration=0.05,
        ),
        "crowded": lambda: _variant("hsc-wide", "crowded", population=_CROWDED),
        "cluster": lambda: _variant("hsc-wide", "cluster", population=_CLUSTER),
    }
)
"""The named configurations. Listing the names costs nothing."""


def preset_config(name: str, **changes: Any) -> SceneConfig:
    """Return a named configuration, with some fields changed.

    Parameters
    ----------
    name : `str`
        A key of `PRESETS`; `ValueError` is raised if there is none of that name.
    **changes
        Fields of `SceneConfig` and their new values.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; choose one of {sorted(PRESETS)}.")
    return replace(PRESETS[name], **changes)


def expected_sources(config: SceneConfig) -> float:
    """Return the expected number of sources on the image of a scene.

    Members of clusters and sources too faint to be seen count.

    Parameters
    ----------
    config : `SceneConfig`
        The kind of scene.
    """
    population = config.population
    area = config.shape[0] * config.shape[1] * (config.pixel_scale / 60.0) ** 2
    density = (
        population.galaxy_density
        + population.star_density
        + population.large_galaxy_density
        + population.bright_star_density
    )
    return density * area + population.cluster_probability * 0.5 * sum(population.cluster_richness)
