# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A repository that holds ``deep_coadd`` of a small simulated patch, as Rubin's have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsst.afw.image import ExposureF
from lsst.daf.butler import Butler, DatasetType
from lsst.geom import Box2I, Extent2I, Point2I
from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
from lsst.meas.maskrcnn.ingest.repo import PatchGeometry, create_repo, register_patches
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene


def make_coadd_repo(
    root: Path, where: Mapping[str, Any], bands: Sequence[str], run: str
) -> tuple[Butler, dict[str, ExposureF]]:
    """Simulate a patch of 160 x 120 px, and put it into a new repository as the patch ``where``."""
    config = preset_config("lsst-1yr", shape=(120, 160), bands=tuple(bands))
    exposures = scene_to_exposures(simulate_scene(config, np.random.default_rng(5)), xy0=(3000, 4000))
    butler = create_repo(root)
    box = Box2I(Point2I(3000, 4000), Extent2I(160, 120))
    geometry = PatchGeometry(where["tract"], where["patch"], exposures["r"].getWcs(), box)
    register_patches(butler, where["skymap"], [geometry], exposures, instrument="LSSTCam")
    kind = DatasetType("deep_coadd", (*where, "band"), "ExposureF", universe=butler.dimensions)
    butler.registry.registerDatasetType(kind)
    butler.collections.register(run)
    for band, exposure in exposures.items():
        butler.put(exposure, kind, {**where, "band": band}, run=run)
    return butler, exposures
