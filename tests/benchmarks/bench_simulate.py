# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Speed and memory of the scene simulator.

Run as ``python tests/benchmarks/bench_simulate.py [--presets hsc-wide ...]``.
Set ``OMP_NUM_THREADS=1`` for times of one core.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import re
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from lsst.meas.maskrcnn.scenes.config import SceneConfig
from lsst.meas.maskrcnn.scenes.presets import PRESETS, preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene

_GROUPS = {
    "stars": ("draw_star", "_draw_bright_star"),
    "galaxies": ("draw_galaxy",),
    "truth": ("source_mask", "_crop_mask", "measure_blending", "measure_neighbors", "flag_sources"),
    "noise": ("correlated_noise", "_counted_noise"),
    "artefacts": (
        "saturate",
        "add_cosmic_rays",
        "add_stray_light",
        "background",
        "draw_dead_columns",
        "draw_chip_gaps",
    ),
}
"""Functions whose time, with what they call, makes up each group."""


def with_sources(config: SceneConfig, count: float) -> SceneConfig:
    """Scale the densities of stars and galaxies to an expected number of sources."""
    population = config.population
    margin = 8.0 / config.pixel_scale
    area = (config.shape[0] + margin) * (config.shape[1] + margin) * (config.pixel_scale / 60.0) ** 2
    names = ("galaxy_density", "star_density", "bright_star_density", "large_galaxy_density")
    factor = count / (area * sum(getattr(population, name) for name in names))
    densities = {name: factor * getattr(population, name) for name in names}
    return replace(config, population=replace(population, **densities))


def measure(config: SceneConfig, seconds: float, seed: int = 1) -> tuple[float, float]:
    """Return scenes per second of one core and sources per scene."""
    rng = np.random.default_rng(seed)
    # Tables are made once per process.
    simulate_scene(config, rng)
    scenes = sources = 0
    start = time.process_time()
    while time.process_time() - start < seconds:
        sources += len(simulate_scene(config, rng).sources)
        scenes += 1
    return scenes / (time.process_time() - start), sources / scenes


def shares(config: SceneConfig, scenes: int = 8, seed: int = 1) -> dict[str, float]:
    """Return the share of the time that goes into each group of functions."""
    rng = np.random.default_rng(seed)
    simulate_scene(config, rng)
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(scenes):
        simulate_scene(config, rng)
    profile.disable()
    stats = pstats.Stats(profile)
    functions = stats.get_stats_profile().func_profiles
    found = {}
    for group, names in _GROUPS.items():
        found[group] = sum(functions[name].cumtime for name in names if name in functions)
    # Bright stars are drawn by way of the function for stars.
    if "_draw_bright_star" in functions:
        found["stars"] = functions["_draw_bright_star"].cumtime + sum(
            row[3]
            for key, (_, _, _, _, callers) in stats.stats.items()
            if key[2] == "draw_star"
            for caller, row in callers.items()
            if caller[2] != "_draw_bright_star"
        )
    whole = stats.total_tt
    result = {name: value / whole for name, value in found.items()}
    result["rest"] = max(0.0, 1.0 - sum(result.values()))
    return result


def peak_memory() -> int:
    """Return the most memory that this process had, bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike getrusage's, this number does not begin with that of the parent.
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def one_scene(preset: str, count: float, keep_models: bool) -> None:
    """Make one scene and print its number of sources, time and peak memory."""
    config = preset_config(preset, keep_models=keep_models)
    if count > 0:
        config = with_sources(config, count)
    start = time.process_time()
    scene = simulate_scene(config, np.random.default_rng(1))
    seconds = time.process_time() - start
    peak = peak_memory()
    spooled = scene.models.spooled if keep_models else 0
    print(
        f"{preset:20s} {len(scene.sources):6d} sources{' with models' if keep_models else '':12s}"
        f" {seconds:7.2f} s  {peak / 1e6:6.0f} MB at most, {spooled / 1e6:6.0f} MB of stamps in a file"
    )


def main() -> None:
    """Run all the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), help="presets to measure")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each speed")
    parser.add_argument("--sources", type=float, default=20_000, help="sources of the crowded scene")
    parser.add_argument("--one", nargs=3, metavar=("PRESET", "COUNT", "MODELS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one_scene(args.one[0], float(args.one[1]), args.one[2] == "yes")
        return

    print("Scenes a second and core, 512 x 512 px in 3 bands; share of the time by what is done")
    header = "".join(f"{name:>11s}" for name in (*_GROUPS, "rest"))
    print(f"{'preset':20s} {'100 sources':>12s} {'own number':>18s} {header}")
    for name in args.presets:
        config = preset_config(name)
        hundred = replace(config.population, cluster_probability=0.0)
        speed, _ = measure(with_sources(replace(config, population=hundred), 100.0), args.seconds)
        own, sources = measure(config, args.seconds)
        parts = "".join(f"{100 * share:10.0f}%" for share in shares(config).values())
        print(f"{name:20s} {speed:12.1f} {own:8.1f} of {sources:6.0f} {parts}")

    print("\nPeak memory of a process that makes one scene")
    for name in args.presets:
        subprocess.run([sys.executable, __file__, "--one", name, "0", "yes"], check=True)
    for models in ("no", "yes"):
        for name in ("hsc-wide", "crowded"):
            arguments = ["--one", name, str(args.sources), models]
            subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    main()
