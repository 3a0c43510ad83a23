# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time by part and peak memory of whole patches, and how both grow.

    python tests/benchmarks/bench_patch.py                      # one patch of 3400 x 3400 px
    python tests/benchmarks/bench_patch.py --sizes 850 1700 3400 --densities 0.5 1 2
    python tests/benchmarks/bench_patch.py --sizes 128 --patches 200   # memory of many in one process

A patch is put together from simulated scenes of 850 x 850 px with different
seeds; ``--densities`` multiplies the number of sources. Each run is a process of
its own, so that its peak memory is its own. The last line compares the CPU time
with what scarlet takes for such a patch in production, 970 s.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SCARLET_CPU_SECONDS = 970.0
"""CPU time of scarlet for a patch of 3400 x 3400 px in production (s)."""

PATCH_SIDE = 3400
"""Side of a patch with its border (px)."""

CELL = 850
"""Side of a simulated scene (px)."""

ENGINE = ("forward", "merge", "masks", "profiles", "shares")
"""Parts of the engine, by their names in the metadata of the task."""


def scene_config(preset: str, density: float, bands: Sequence[str], shape: tuple[int, int]) -> Any:
    """Configure the scenes of a patch: all have one PSF."""
    from lsst.meas.maskrcnn.scenes.presets import preset_config

    config = preset_config(preset, bands=tuple(bands), shape=shape)
    population = replace(
        config.population,
        galaxy_density=config.population.galaxy_density * density,
        star_density=config.population.star_density * density,
    )
    psf = replace(config.psf, beta=(3.0, 3.0), ellipticity=0.0, seeing_scatter=0.0, band_scatter=0.0)
    return replace(config, population=population, psf=psf)


def write_patch(size: int, density: float, preset: str, seed: int, bands: Sequence[str], folder: str) -> None:
    """Put scenes together to one image, and write it into a folder."""
    import numpy as np

    from lsst.meas.maskrcnn.scenes.simulate import simulate_scene

    images = np.zeros((len(bands), size, size), np.float32)
    variance, flags = np.zeros_like(images), np.zeros(images.shape, np.uint8)
    drawn = 0
    for y in range(0, size, CELL):
        for x in range(0, size, CELL):
            shape = min(CELL, size - y), min(CELL, size - x)
            config = scene_config(preset, density, bands, shape)
            scene = simulate_scene(config, np.random.default_rng([seed, y, x]))
            window = slice(y, y + shape[0]), slice(x, x + shape[1])
            images[:, window[0], window[1]] = scene.images
            variance[:, window[0], window[1]] = scene.variance
            flags[:, window[0], window[1]] = scene.mask
            drawn += len(scene.sources)
    arrays = {"images": images, "variance": variance, "mask": flags, "drawn": np.array(drawn)}
    for name, array in arrays.items():
        np.save(Path(folder) / f"{name}.npy", array)


def read_patch(folder: Path, preset: str, bands: Sequence[str]) -> SimpleNamespace:
    """Read what `write_patch` wrote, as `scene_to_exposures` takes it."""
    import numpy as np

    from lsst.meas.maskrcnn.scenes.simulate import simulate_scene

    # The PSF is always the same, and need not be written.
    scene = simulate_scene(scene_config(preset, 0.0, bands, (32, 32)), np.random.default_rng(0))
    patch = SimpleNamespace(
        bands=scene.bands, psfs=scene.psfs, psf_fwhm=scene.psf_fwhm, pixel_scale=scene.pixel_scale
    )
    for name in ("images", "variance", "mask", "drawn"):
        setattr(patch, name, np.load(folder / f"{name}.npy"))
    return patch


def measure(arguments: argparse.Namespace, size: int, density: float, output: str) -> None:
    """Deblend one patch, and write what it took to a file."""
    import torch

    from lsst.meas.maskrcnn import MaskRcnnDeblendTask
    from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
    from lsst.meas.maskrcnn.network.model_file import default_model_path, read_model

    torch.set_num_threads(arguments.threads)
    model = read_model(arguments.model or default_model_path())
    bands = model.metadata.bands or ("z", "r", "g")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        # Simulated in a process of its own: its memory is not the task's.
        context = multiprocessing.get_context("spawn")
        process = context.Process(
            target=write_patch, args=(size, density, arguments.preset, arguments.seed, bands, folder)
        )
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"the simulation ended with code {process.exitcode}")
        clock = time.perf_counter()
        patch = read_patch(path, arguments.preset, bands)
        exposures = scene_to_exposures(patch)
        n_drawn = int(patch.drawn)
        del patch
        config = MaskRcnnDeblendTask.ConfigClass()
        config.doMeasure = not arguments.no_measurement
        task = MaskRcnnDeblendTask(config=config)
        loaded = time.perf_counter() - clock
        before = resident_memory()
        cpu, wall = os.times(), time.perf_counter()
        results = task.run(exposures=exposures, model=model)
        wall = time.perf_counter() - wall
        after = os.times()
        peak = peak_memory()
        clock = time.perf_counter()
        if not arguments.no_io:
            results.catalog.writeFits(str(path / "catalog.fits"))
            for band, catalog in results.bandCatalogs.items():
                catalog.writeFits(str(path / f"{band}.fits"))
        written = time.perf_counter() - clock
    metadata = task.metadata
    seconds = {
        name.removeprefix("seconds_"): float(metadata[name])
        for name in metadata
        if name.startswith("seconds_") and name != "seconds_total"
    }
    summary = {
        "size": size,
        "density": density,
        "n_drawn": n_drawn,
        "n_sources": int(metadata["n_sources"]),
        "wall": wall,
        "cpu": after.user + after.system - cpu.user - cpu.system,
        "memory_before": before,
        "memory": peak,
        "seconds": seconds,
        "read": loaded,
        "write": written,
    }
    Path(output).write_text(json.dumps(summary))


def watch_memory(arguments: argparse.Namespace, size: int) -> None:
    """Deblend many patches in this process, and print how its memory grows after the tenth."""
    import gc

    import torch

    from lsst.meas.maskrcnn import MaskRcnnDeblendTask
    from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
    from lsst.meas.maskrcnn.network.model_file import default_model_path, read_model

    torch.set_num_threads(arguments.threads)
    model = read_model(arguments.model or default_model_path())
    bands = model.metadata.bands or ("z", "r", "g")
    task = MaskRcnnDeblendTask(config=MaskRcnnDeblendTask.ConfigClass())
    memory, start = [], time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        for seed in range(1, 6):
            (Path(folder) / str(seed)).mkdir()
            given = size, 1.0, arguments.preset, seed, bands, f"{folder}/{seed}"
            process = context.Process(target=write_patch, args=given)
            process.start()
            process.join()
        for number in range(arguments.patches):
            patch = read_patch(Path(folder) / str(1 + number % 5), arguments.preset, bands)
            task.run(exposures=scene_to_exposures(patch), model=model)
            gc.collect()
            memory.append(resident_memory())
    tenth = memory[min(9, len(memory) - 1)]
    growth, seconds = 100.0 * (memory[-1] / tenth - 1), (time.process_time() - start) / len(memory)
    print(
        f"{len(memory)} patches of {size} px: {tenth:.0f} MB after the tenth, {memory[-1]:.0f} MB at the end "
        f"({growth:+.1f} %), {seconds:.2f} CPU s each",
        flush=True,
    )


def resident_memory() -> float:
    """Resident memory of this process now (MB)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_memory() -> float:
    """Largest resident memory of this process so far (MB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def report(summary: dict[str, Any]) -> None:
    """Print the parts of one run."""
    size, seconds = summary["size"], summary["seconds"]
    print(
        f"{size} x {size} px, {summary['density']:g} times the density: {summary['n_drawn']} drawn, "
        f"{summary['n_sources']} found"
    )
    print(f"  wall {summary['wall']:.1f} s, CPU {summary['cpu']:.1f} s")
    before = sum(seconds.get(name, 0.0) for name in ENGINE)
    parts = {name: seconds.get(name, 0.0) for name in ENGINE}
    parts["the rest"] = summary["wall"] - before
    for name, value in parts.items():
        print(f"    {name:12s} {value:8.2f} s {100.0 * value / summary['wall']:5.1f} %")
    print(f"    {'reading':12s} {summary['read']:8.2f} s (not in the wall time)")
    print(f"    {'writing':12s} {summary['write']:8.2f} s (not in the wall time)")
    print(f"  forward pass: {100.0 * seconds.get('forward', 0.0) / max(before, 1e-9):.0f} % of the engine")
    print(
        f"  memory: {summary['memory']:.0f} MB at the peak, "
        f"{summary['memory_before']:.0f} MB with the exposures",
        flush=True,
    )


def main() -> None:
    """Run the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[PATCH_SIDE])
    parser.add_argument("--densities", type=float, nargs="+", default=[1.0])
    parser.add_argument("--preset", default="hsc-wide")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--no-measurement", action="store_true")
    parser.add_argument("--no-io", action="store_true")
    parser.add_argument("--patches", type=int, help="deblend so many in one process, and show its memory")
    arguments = parser.parse_args()
    if arguments.patches:
        watch_memory(arguments, arguments.sizes[0])
        return
    summaries = []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            for density in arguments.densities:
                output = Path(folder) / f"{size}-{density}.json"
                process = context.Process(target=measure, args=(arguments, size, density, str(output)))
                process.start()
                process.join()
                if process.exitcode:
                    sys.exit(f"the run of {size} px at {density:g} times the density failed")
                summaries.append(json.loads(output.read_text()))
                report(summaries[-1])
    if len(summaries) > 1:
        titles = ("px", "sources", "wall s", "CPU s", "s/Mpx", "ms/source", "MB")
        print("{:>6s} {:>8s} {:>8s} {:>8s} {:>8s} {:>10s} {:>6s}".format(*titles))
        for row in summaries:
            print(
                f"{row['size']:6d} {row['n_sources']:8d} {row['wall']:8.1f} {row['cpu']:8.1f} "
                f"{row['wall'] / row['size'] ** 2 * 1e6:8.2f} "
                f"{1e3 * row['wall'] / max(row['n_sources'], 1):10.1f} {row['memory']:6.0f}"
            )
    largest = max(summaries, key=lambda row: row["size"])
    scaled = largest["cpu"] * (PATCH_SIDE / largest["size"]) ** 2
    print(
        f"CPU time of a patch of {PATCH_SIDE} x {PATCH_SIDE} px: {scaled:.0f} s"
        f"{'' if largest['size'] == PATCH_SIDE else ' (scaled by area)'}; "
        f"scarlet's: {SCARLET_CPU_SECONDS:.0f} s"
    )


if __name__ == "__main__":
    main()
