# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the stand-in share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of the test data; the test is skipped without it."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("MASKRCNN_TESTDATA", default))
    if not path.is_dir():
        pytest.skip(f"no test data at {path}; set MASKRCNN_TESTDATA")
    return path
