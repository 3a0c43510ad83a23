# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Populations of no source and of one."""

from __future__ import annotations

import numpy as np

from lsst.meas.maskrcnn.scenes.config import PopulationConfig
from lsst.meas.maskrcnn.scenes.populations import POPULATION_DTYPE

EMPTY = PopulationConfig(
    galaxy_density=0.0,
    star_density=0.0,
    bright_star_density=0.0,
    large_galaxy_density=0.0,
    cluster_probability=0.0,
)


def star(x: float, y: float, mag: float) -> np.ndarray:
    """Return a population of one star."""
    population = np.zeros(1, POPULATION_DTYPE)
    population["x"], population["y"], population["mag"] = x, y, mag
    population["is_star"] = True
    population["locus"] = 0.5
    population["disc_axis_ratio"] = population["bulge_axis_ratio"] = 1.0
    return population
