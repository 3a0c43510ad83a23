# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time by part and peak memory of the deblending of a large field.

Run as ``python tests/benchmarks/bench_deblend.py [--size 2048]``. The field is
simulated in three bands at the depth and density of the preset.
"""

from __future__ import annotations

import argparse
import resource
import threading
import time
from pathlib import Path

import numpy as np
import torch

from lsst.meas.maskrcnn import MaskRcnnDeblendTask
from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
from lsst.meas.maskrcnn.network.model_file import default_model_path, read_model
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene


def resident() -> float:
    """Resident memory of this process (MB)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class PeakMemory:
    """Largest resident memory while it watches (MB)."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, resident())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--preset", default="hsc-wide")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=default_model_path())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    config = preset_config(arguments.preset, shape=(arguments.size, arguments.size))
    scene = simulate_scene(config, np.random.default_rng(arguments.seed))
    exposures = scene_to_exposures(scene)
    n_drawn = len(scene.sources)
    del scene
    model = read_model(arguments.model)
    task = MaskRcnnDeblendTask()
    with PeakMemory() as memory:
        started = time.perf_counter()
        task.run(exposures=exposures, model=model)
        wall = time.perf_counter() - started

    print(
        f"{arguments.size} x {arguments.size} px, {len(exposures)} bands, "
        f"{n_drawn} drawn, {task.metadata['n_sources']} found, {task.metadata['n_parents']} parents"
    )
    print(f"wall time {wall:.2f} s with {arguments.threads} threads")
    parts = [name for name in task.metadata if name.startswith("seconds_") and name != "seconds_total"]
    for name in parts:
        seconds = float(task.metadata[name])
        print(f"  {name.removeprefix('seconds_'):12s} {seconds:7.2f} s  {100 * seconds / wall:5.1f} %")
    print(
        f"resident memory {memory.start:.0f} MB before (with the exposures), {memory.peak:.0f} MB at the peak"
    )


if __name__ == "__main__":
    main()
