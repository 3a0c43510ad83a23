# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time and memory of the normalisation of a full patch.

Run as ``python tests/benchmarks/bench_normalize.py [--size 3400]``.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from lsst.meas.maskrcnn.images.normalize import LuptonSettings, ZScoreSettings, normalize


def measure(label: str, function: Callable[..., Any], *args: Any, repeat: int = 3, **kwargs: Any) -> None:
    """Print the best wall time of a call and the memory that it takes."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        function(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    function(*args, **kwargs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{label:45s} {min(seconds):7.2f} s  {peak / 1e6:8.0f} MB beside the input")


def main() -> None:
    """Run all the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=3400, help="side of the image in pixels")
    parser.add_argument("--bands", type=int, default=3, help="number of bands")
    args = parser.parse_args()

    rng = np.random.default_rng(1)
    flux = rng.standard_normal(size=(args.bands, args.size, args.size), dtype=np.float32)
    variance = rng.uniform(0.9, 1.1, size=flux.shape).astype(np.float32)
    print(f"{args.bands} x {args.size} x {args.size}: one copy is {flux.nbytes / 1e6:.0f} MB")
    measure("lupton", normalize, LuptonSettings(), flux, variance)
    measure("lupton, in place", normalize, LuptonSettings(), flux.copy(), variance, overwrite=True)
    measure("lupton, no variance", normalize, LuptonSettings(), flux)
    measure("lupton, local background", normalize, LuptonSettings(background="local"), flux, variance)
    percentiles = {"stretch": 99.0, "stretch_unit": "percentile", "scale": 99.95, "scale_unit": "percentile"}
    measure("lupton, percentiles", normalize, LuptonSettings(**percentiles), flux, variance)
    measure("z-score, clipped", normalize, ZScoreSettings(), flux)
    measure("z-score, full, asinh before", normalize, ZScoreSettings(statistics="full", asinh="before"), flux)


if __name__ == "__main__":
    main()
