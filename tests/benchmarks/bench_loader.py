# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many training crops a second the loader makes.

Run as ``python tests/benchmarks/bench_loader.py [--scenes FOLDER]``.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import queue
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from lsst.meas.maskrcnn.images.normalize import LuptonSettings
from lsst.meas.maskrcnn.train.augment import AugmentSettings
from lsst.meas.maskrcnn.train.dataset import CropSettings, CropSource
from lsst.meas.maskrcnn.train.scene_sources import SceneFiles
from lsst.meas.maskrcnn.train.training_set import make_training_set

_AUGMENTATIONS = {
    "flips and turns": AugmentSettings(),
    "published": AugmentSettings.published(),
    "published, all blurred": AugmentSettings(
        **{**vars(AugmentSettings.published()), "blur_probability": 1.0}
    ),
}


def run(source: CropSource, first: int, count: int, size: int) -> tuple[float, float]:
    """Return crops per second and per second of one core, made one batch after another."""
    start, used = time.perf_counter(), time.process_time()
    for number in range(first, first + count):
        source.crops(range(number * size, (number + 1) * size))
    return count * size / (time.perf_counter() - start), count * size / (time.process_time() - used)


def run_ahead(source: CropSource, first: int, count: int, size: int, threads: int, step: float) -> float:
    """Return the time of a step with crops made ahead by threads, over that without any crops.

    A step sleeps, as a step on a GPU does, for this time.
    """
    waiting: queue.Queue[int] = queue.Queue()
    made: dict[int, queue.Queue] = {number: queue.Queue() for number in range(first, first + count)}
    slots = threading.Semaphore(2 * threads)
    for number in made:
        waiting.put(number)

    def work() -> None:
        while True:
            slots.acquire()
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            made[number].put(source.crops(range(number * size, (number + 1) * size)))

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    made[first].get()
    start = time.perf_counter()
    for number in range(first + 1, first + count):
        made[number].get()
        slots.release()
        time.sleep(step)
    elapsed = time.perf_counter() - start
    for _ in workers:
        slots.release()
    return elapsed / ((count - 1) * step)


def main() -> None:
    """Run all the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=Path, help="folder with scene files; some are made without")
    parser.add_argument("--count", type=int, default=40, help="number of scenes")
    parser.add_argument("--size", type=int, default=256, help="side of a crop (px)")
    parser.add_argument("--batch", type=int, default=4, help="crops in a batch")
    parser.add_argument("--batches", type=int, default=40, help="batches to time")
    parser.add_argument("--threads", type=int, default=1, help="threads that make crops ahead")
    parser.add_argument("--step", type=float, default=0.25, help="time of a step that crops are made for (s)")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.scenes is None:
            paths = list(make_training_set(folder, args.count, 1))
        else:
            paths = sorted(args.scenes.glob("*.npz"))[: args.count]
        scenes = SceneFiles(paths)
        start = time.perf_counter()
        sources = [len(scenes.scene(k).labels) for k in range(len(scenes))]
        read = (time.perf_counter() - start) / len(scenes)
        size = sum(path.stat().st_size for path in paths) / len(paths)
        print(
            f"{len(scenes)} scenes of {np.median(sources):.0f} sources and {size / 1e6:.1f} MB on disk: "
            f"{1e3 * read:.1f} ms to read one"
        )
        for per_scene in (1, 2):
            for cache in (0.0, 4096.0):
                for name, augment in _AUGMENTATIONS.items():
                    source = CropSource(
                        scenes,
                        LuptonSettings(),
                        CropSettings(size=args.size, crops_per_scene=per_scene, cache_mb=cache),
                        1,
                        True,
                        augment,
                    )
                    if cache:
                        # An epoch, so that all that is kept is there.
                        source.crops(range(source.n_images))
                    rate, per_core = run(source, source.n_images, args.batches, args.batch)
                    kept = "scenes kept" if cache else "from disk"
                    label = f"{per_scene} crop(s) a scene, {kept:11s}, {name:20s}"
                    print(f"{label} {rate:7.1f} crops/s, {per_core:7.1f} a core")
        ratio = run_ahead(source, 0, args.batches, args.batch, args.threads, args.step)
        print(
            f"{args.threads} thread(s) ahead of steps of {args.step} s: {ratio:.3f} of the time without crops"
        )
        if args.profile:
            profile = cProfile.Profile()
            profile.runcall(run, source, 0, args.batches, args.batch)
            pstats.Stats(profile).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
