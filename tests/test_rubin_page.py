# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cells of the page on the Rubin Science Platform, run on a simulated patch."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.parquet
import pytest

import lsst.daf.butler
from lsst.daf.butler import DatasetType
from lsst.geom import Box2I, Extent2I, Point2I
from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
from lsst.meas.maskrcnn.ingest.repo import PatchGeometry, create_repo, register_patches
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene

PAGE = Path(__file__).resolve().parent.parent / "doc" / "lsst.meas.maskrcnn" / "rubin-science-platform.rst"
WHERE = {"skymap": "lsst_cells_v2", "tract": 2877, "patch": 34}


def test_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset_config("lsst-1yr", shape=(120, 160), bands=("g", "r", "i", "z"))
    exposures = scene_to_exposures(simulate_scene(config, np.random.default_rng(5)), xy0=(3000, 4000))
    butler = create_repo(tmp_path / "repo")
    box = Box2I(Point2I(3000, 4000), Extent2I(160, 120))
    geometry = PatchGeometry(2877, 34, exposures["r"].getWcs(), box)
    register_patches(butler, "lsst_cells_v2", [geometry], exposures, instrument="LSSTCam")
    kind = DatasetType("deep_coadd", (*WHERE, "band"), "ExposureF", universe=butler.dimensions)
    butler.registry.registerDatasetType(kind)
    butler.collections.register("dp2")
    for band, exposure in exposures.items():
        butler.put(exposure, kind, {**WHERE, "band": band}, run="dp2")

    def open_butler(name: str, collections: str) -> lsst.daf.butler.Butler:
        assert name == "dp2"
        return lsst.daf.butler.Butler.from_config(str(tmp_path / "repo"), collections=collections)

    text = PAGE.read_text()
    cells = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", text)
    install, *run = (textwrap.dedent(cell) for cell in cells)
    assert install.startswith("%pip install")
    assert len(run) == 2
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    names: dict = {"Butler": open_butler}
    for cell in run:
        exec(cell.replace("from lsst.daf.butler import Butler\n", ""), names)
    table = pyarrow.parquet.read_table("sources.parquet")
    assert len(table) == len(names["sources"]) > 5
    assert names["axes"].get_legend() is not None
