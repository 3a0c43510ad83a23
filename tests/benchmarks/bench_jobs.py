# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Wall time of ``pipetask run -j`` on the patches of one repository.

    python tests/benchmarks/bench_jobs.py                         # four patches of 3400 x 3400 px, -j 1 and 2
    python tests/benchmarks/bench_jobs.py --size 1700 --jobs 1 2 4

The patches are those of ``bench_patch.py`` with other seeds, side by side in a
tract. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_patch import PATCH_SIDE, read_patch, write_patch

BANDS = ("g", "r", "z")
ROOT = Path(__file__).resolve().parents[2]


def fill_repository(root: str, preset: str, size: int, seeds: list[int], density: float) -> None:
    """Simulate a patch for each seed, and put all into a new repository with a model."""
    from lsst.afw.geom import makeCdMatrix, makeSkyWcs
    from lsst.geom import Box2I, Extent2I, Point2D, Point2I, SpherePoint, arcseconds, degrees
    from lsst.meas.maskrcnn.cli.main import main as maskrcnn
    from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
    from lsst.meas.maskrcnn.ingest.repo import (
        PatchGeometry,
        open_repo,
        patch_data_id,
        put_exposures,
        register_patches,
    )
    from lsst.meas.maskrcnn.scenes.presets import preset_config

    scale = preset_config(preset, bands=BANDS).pixel_scale * arcseconds
    wcs = makeSkyWcs(Point2D(0.0, 0.0), SpherePoint(150.1, 2.2, degrees), makeCdMatrix(scale=scale))
    patches = [
        PatchGeometry(0, number, wcs, Box2I(Point2I(number * size, 0), Extent2I(size, size)), (number, 0))
        for number in range(len(seeds))
    ]
    with open_repo(root) as butler:
        register_patches(butler, "bench", patches, BANDS)
        for number, seed in enumerate(seeds):
            with tempfile.TemporaryDirectory() as folder:
                write_patch(size, density, preset, seed, BANDS, folder)
                scene = read_patch(Path(folder), preset, BANDS)
            exposures = scene_to_exposures(scene, xy0=(number * size, 0), wcs=wcs)
            put_exposures(butler, "coadds", patch_data_id("bench", 0, number), exposures)
    if maskrcnn("ingest-model", [root]) != 0:
        sys.exit("the model could not be ingested")


def run(root: str, jobs: int) -> float:
    """Run the pipeline on all patches; wall time (s)."""
    program = Path(sys.executable).with_name("pipetask")
    command = [str(program), "run", "-b", root, "-i", "coadds,models/maskRcnn", "-o", f"run/{jobs}"]
    command += ["-p", str(ROOT / "pipelines" / "MaskRcnnDeblend.yaml"), "-d", "skymap='bench'"]
    command += ["--register-dataset-types", "-j", str(jobs), "--start-method", "forkserver"]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            log.seek(0)
            sys.exit(log.read().decode(errors="replace")[-3000:])
    return time.perf_counter() - start


def main() -> None:
    """Run the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=PATCH_SIDE)
    parser.add_argument("--patches", type=int, default=4)
    parser.add_argument("--density", type=float, default=1.0)
    parser.add_argument("--preset", default="hsc-wide")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, seeds = str(Path(folder) / "repo"), list(range(1, arguments.patches + 1))
        process = multiprocessing.get_context("spawn").Process(
            target=fill_repository, args=(root, arguments.preset, arguments.size, seeds, arguments.density)
        )
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"the simulation ended with code {process.exitcode}")
        first = None
        for jobs in arguments.jobs:
            wall = run(root, jobs)
            first = first or wall
            print(
                f"{arguments.patches} patches of {arguments.size} px with -j {jobs}: {wall:.0f} s, "
                f"{first / wall:.2f} times as fast as the first",
                flush=True,
            )


if __name__ == "__main__":
    main()
