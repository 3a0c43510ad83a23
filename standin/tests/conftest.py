# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the stand-in's tests and of those in ``conformance``.

Nothing here imports the stand-in: the tests in ``conformance`` run beside the
real lsst.afw as well.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the test data; the test is skipped without it."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("MASKRCNN_TESTDATA", default))
    if not (path / "afw" / "golden.json").is_file():
        pytest.skip(f"test data not found in {path}; set MASKRCNN_TESTDATA")
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20260417)
