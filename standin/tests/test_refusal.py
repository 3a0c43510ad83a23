# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The distribution does not load beside a real lsst.afw."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from meas_maskrcnn_standin import find_real_afw

PACKAGES = (
    "lsst.geom",
    "lsst.pex.exceptions",
    "lsst.daf.base",
    "lsst.afw",
    "lsst.afw.image",
    "lsst.afw.geom",
    "lsst.afw.detection",
    "lsst.afw.table",
    "lsst.afw.math",
    "lsst.obs.base",
    "lsst.meas.base",
    "lsst.meas.extensions.scarlet",
    "lsst.skymap",
)

PYTHON = Path(__file__).resolve().parents[1] / "python"


def make_fake_afw(root: Path) -> Path:
    """Make what an installed afw looks like on disk."""
    package = root / "lsst" / "afw"
    package.mkdir(parents=True)
    (root / "lsst" / "__init__.py").write_text(
        "import pkgutil\n__path__ = pkgutil.extend_path(__path__, __name__)\n"
    )
    (package / "__init__.py").write_text("from .version import *\n")
    return package


def run_import(package: str, path: list[Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Import a package in a fresh interpreter."""
    old = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    env = {k: v for k, v in os.environ.items() if k != "AFW_DIR"} | environment
    env["PYTHONPATH"] = os.pathsep.join([*(str(p) for p in path), *old])
    return subprocess.run(
        [sys.executable, "-c", f"import {package}"], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_refuses_beside_real_afw(package: str, tmp_path: Path) -> None:
    real = make_fake_afw(tmp_path / "stack with space")
    result = run_import(package, [PYTHON, tmp_path / "stack with space"])
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError:")
    assert str(real) in last
    assert "uninstall meas-maskrcnn-standin" in last


def test_refuses_with_eups_afw(tmp_path: Path) -> None:
    real = make_fake_afw(tmp_path / "afw" / "python")
    result = run_import("lsst.geom", [PYTHON], AFW_DIR=str(tmp_path / "afw"))
    assert result.returncode != 0
    assert str(real) in result.stderr.strip().splitlines()[-1]


def test_loads_alone() -> None:
    result = run_import("lsst.geom", [PYTHON])
    assert result.returncode == 0, result.stderr


def test_loads_beside_a_copy_of_itself(tmp_path: Path) -> None:
    package = make_fake_afw(tmp_path)
    package.joinpath("__init__.py").write_text((PYTHON / "lsst/afw/__init__.py").read_text())
    assert find_real_afw([str(tmp_path), str(PYTHON)]) is None


def test_stale_afw_dir_is_no_afw(tmp_path: Path) -> None:
    assert find_real_afw([str(PYTHON)], str(tmp_path / "gone")) is None


def test_finds_the_first(tmp_path: Path) -> None:
    real = make_fake_afw(tmp_path)
    assert find_real_afw([str(PYTHON), str(tmp_path)]) == real
    assert find_real_afw([str(tmp_path / "nothing")]) is None
