# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs code in a Python that finds no package of the LSST Science Pipelines but this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_WALL = """
import sys
from importlib.abc import MetaPathFinder

class Wall(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        own = ("lsst", "lsst.meas", "lsst.meas.maskrcnn")
        if name.startswith("lsst") and name not in own and not name.startswith("lsst.meas.maskrcnn."):
            raise ImportError(f"{name} is not here")
        return None

sys.meta_path.insert(0, Wall())
"""


def run_without_lsst(project: Path, code: str, *arguments: Path) -> None:
    """Run code with the package of a project alone."""
    environment = {**os.environ, "PYTHONPATH": str(project / "python")}
    command = [sys.executable, "-c", _WALL + code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
