# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Damaged files: each reader has one kind of error, of one line, and is quick to raise it.

``tests/benchmarks/stress_fuzz.py`` reads many more.
"""

import pytest
from fuzzing import formats, fuzz


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return formats(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("model", 60),
        ("checkpoint", 200),
        ("scene", 200),
        ("scarlet zip", 200),
        ("scarlet JSON", 200),
        ("FITS image", 60),
        ("FITS image, packed", 60),
    ],
)
def test_damaged_files(known, name, count, tmp_path):
    result = fuzz(known[name], count, 18, tmp_path)
    assert not result.raw
    assert result.refused + result.read == count
    assert result.refused > 0.1 * count
    assert result.lost == result.slow == 0
    assert result.memory < 200
