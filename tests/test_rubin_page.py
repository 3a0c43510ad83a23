# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cells of the page on the Rubin Science Platform, run on a simulated patch."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import matplotlib
import pyarrow.parquet
import pytest
from coadd_repo import make_coadd_repo

import lsst.daf.butler

PAGE = Path(__file__).resolve().parent.parent / "doc" / "lsst.meas.maskrcnn" / "rubin-science-platform.rst"
WHERE = {"skymap": "lsst_cells_v2", "tract": 2877, "patch": 34}


def test_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_coadd_repo(tmp_path / "repo", WHERE, "griz", "dp2")

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
