# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Statistics that are computed in parts are those of whole arrays."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from lsst.afw.math import (
    MEAN,
    MEANCLIP,
    MEDIAN,
    NCLIPPED,
    STDEVCLIP,
    SUM,
    VARIANCE,
    _statistics,
    makeStatistics,
)

FLAGS = MEAN | VARIANCE | SUM | MEDIAN | MEANCLIP | STDEVCLIP | NCLIPPED


@pytest.mark.parametrize("size", [1, 2, 129, 1000, 20_011])
@pytest.mark.parametrize("kind", ["f4", "f8", "i4"])
def test_parts_do_not_matter(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what numpy makes of the pixels in double precision."""
    monkeypatch.setattr(_statistics, "_PART", 1000)
    rng = np.random.default_rng(size)
    values = 30.0 * rng.normal(size=size) + 5.0 + 1000.0 * (rng.random(size) < 0.05)
    found = makeStatistics(values.astype(kind), FLAGS)
    pixels = values.astype(kind).astype(np.float64)
    assert found.getValue(SUM) == pixels.sum()
    assert found.getValue(MEAN) == pixels.mean()
    if size > 1:
        assert found.getValue(VARIANCE) == pixels.var(ddof=1)
    if kind == "i4":
        return
    low, median, high = np.percentile(pixels, (25.0, 50.0, 75.0))
    assert found.getValue(MEDIAN) == median
    center, width = median, 0.741301109252802 * (high - low)
    for _ in range(3):
        kept = pixels[np.abs(pixels - center) <= 3.0 * width]
        center = kept.mean()
        if size > 1:
            width = math.sqrt(kept.var(ddof=1))
    assert found.getValue(MEANCLIP) == center
    assert found.getValue(NCLIPPED) == size - len(kept)
    if size > 1:
        assert found.getValue(STDEVCLIP) == width


def test_memory_is_that_of_single_precision() -> None:
    values = np.random.default_rng(1).normal(size=4_000_000).astype(np.float32)
    tracemalloc.start()
    makeStatistics(values, MEANCLIP | STDEVCLIP)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * values.nbytes
