# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the files lie that come with the package but are no modules."""

from __future__ import annotations

import os
import site
import sysconfig
from pathlib import Path

_ENVIRONMENT = "MEAS_MASKRCNN_DIR"


def package_dir() -> Path:
    """Find the folder that holds ``pipelines/`` and ``config/``.

    It is ``$MEAS_MASKRCNN_DIR`` where that is set (EUPS sets it), else the
    checkout that this module runs from, else the folder
    ``share/meas_maskrcnn`` of the Python installation.
    """
    given = os.environ.get(_ENVIRONMENT)
    # python/lsst/meas/maskrcnn/cli/paths.py is five levels below the root of a checkout.
    candidates = [Path(given)] if given else [Path(__file__).resolve().parents[5]]
    if not given:
        prefixes = [sysconfig.get_path("data"), site.getuserbase()]
        candidates += [Path(prefix) / "share" / "meas_maskrcnn" for prefix in prefixes]
    for candidate in candidates:
        if (candidate / "pipelines" / "MaskRcnnDeblend.yaml").is_file():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(
        f"The pipelines of meas_maskrcnn were not found (looked in {looked}). "
        f"Install the package again, or set {_ENVIRONMENT} to its root folder."
    )


def pipeline_path(name: str) -> Path:
    """Find a pipeline that comes with the package by its file name, such as ``MaskRcnnDeblend.yaml``."""
    folder = package_dir() / "pipelines"
    path = folder / name
    if not path.is_file():
        known = ", ".join(sorted(p.name for p in folder.glob("*.yaml")))
        raise FileNotFoundError(f"There is no pipeline {name} in {folder}; there are: {known}.")
    return path
