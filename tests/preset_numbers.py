# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The numbers of the presets, as the documentation lists them.

Run as a script, it prints the table of the page on simulated scenes::

    python tests/preset_numbers.py
"""

from __future__ import annotations

import math
from dataclasses import replace

from lsst.meas.maskrcnn.images.units import AB_ZERO_POINT
from lsst.meas.maskrcnn.scenes import presets
from lsst.meas.maskrcnn.scenes.config import BandConditions, PsfConfig
from lsst.meas.maskrcnn.scenes.presets import PRESETS, expected_sources


def preset_exposure_times(name: str) -> dict[str, float]:
    """Return the total exposure time of each band of a preset, s."""
    # Others are hsc-wide with other sources.
    observed = presets._OBSERVED
    return presets._times(observed.get(name.removesuffix("-noiseless"), observed["hsc-wide"]))


def _psf_area(fwhm: float, psf: PsfConfig) -> float:
    """Return the noise-equivalent area of a PSF, 1 / integral p^2, arcsec^2."""
    if psf.profile == "moffat":
        beta = 0.5 * (psf.beta[0] + psf.beta[1])
        scale = 0.5 * fwhm / math.sqrt(2.0 ** (1.0 / beta) - 1.0)
        return math.pi * scale**2 * (2.0 * beta - 1.0) / (beta - 1.0) ** 2
    # The transform is exp(-(k / k0)^(5/3)); GalSim has k0 FWHM = 2.92.
    k0 = 2.992934 * 0.975865 / fwhm
    return 2.0 * math.pi / (0.6 * math.gamma(1.2) * 2.0**-1.2 * k0**2)


def point_source_depth(conditions: BandConditions, pixel_scale: float, psf: PsfConfig) -> float:
    """Return the AB magnitude of a star that stands out by 5 sigma.

    For PSF photometry of faint stars on the noise of an empty sky, in the
    median seeing.
    """
    pixels = _psf_area(conditions.fwhm, psf) / pixel_scale**2
    return AB_ZERO_POINT - 2.5 * math.log10(5.0 * conditions.noise_sigma * math.sqrt(pixels))


def presets_table(bands: tuple[str, ...] = ("z", "r", "g")) -> str:
    """Return the numbers of all presets as a table in reStructuredText."""
    label = ", ".join(bands)
    rows = [
        (
            "preset",
            "pixel",
            f"exposure {label}",
            f"seeing {label}",
            f"noise per pixel {label}",
            f"depth {label}",
            "galaxies",
            "stars",
            "sources",
        ),
        ("", "arcsec", "s", "arcsec", "nJy", "AB mag", "per arcmin^2", "per arcmin^2", "per scene"),
    ]
    for name in PRESETS:
        config = replace(PRESETS[name], bands=bands)
        conditions = config.band_conditions()
        depths = [point_source_depth(c, config.pixel_scale, config.psf) for c in conditions]
        population = config.population
        rows.append(
            (
                f"``{name}``",
                f"{config.pixel_scale:g}",
                ", ".join(f"{preset_exposure_times(name)[band]:.0f}" for band in bands),
                ", ".join(f"{c.fwhm:.2f}" for c in conditions),
                ", ".join(f"{c.noise_sigma:.3g}" for c in conditions),
                ", ".join(f"{depth:.1f}" for depth in depths),
                f"{population.galaxy_density:g} to {population.mag_limit:g}",
                f"{population.star_density:g} to {population.star_mag_range[1]:g}",
                f"{expected_sources(config):.0f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = " ".join("=" * width for width in widths)
    lines = [" ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([rule, *lines[:2], rule, *lines[2:], rule])


if __name__ == "__main__":
    print(presets_table())
