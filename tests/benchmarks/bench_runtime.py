# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time per tile and what is found, for each way to compute.

    python tests/benchmarks/bench_runtime.py [MODEL] [--repeats 5] [--compile] [--presets NAME ...]

Every way takes its turn in every round, so that what else the machine does
hits all alike; the times are the best of the rounds. "cpu" is the time of the
process in all threads, "wall" that of the clock, both in ms for a tile of
512 x 512 px; "gain" is the first way's cpu time over this one's. Found and
false are at a score of 0.5 and an IoU of 0.5, of sources with a peak of 3 sigma or more;
"faint" is the share found at a score of 0.05.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection import MaskRCNN

from lsst.meas.maskrcnn.metrics.matching import ImagePairs, match
from lsst.meas.maskrcnn.metrics.spans import SpanMasks
from lsst.meas.maskrcnn.network.inference import Detections, InferenceSettings, detect
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, default_model_path, read_model
from lsst.meas.maskrcnn.network.runtime import RuntimeSettings, prepare_network, torch_threads
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
from lsst.meas.maskrcnn.train.training_set import to_training_scene
from lsst.meas.maskrcnn.train.validation import ValidationImage, validation_image

PLAIN = RuntimeSettings(fuse_norms=False, min_objectness=0.0, proposals=0)


@dataclass
class Way:
    """A way to compute, and what came of it."""

    name: str
    runtime: RuntimeSettings
    precision: str = "float32"
    batch_size: int = 1
    network: MaskRCNN | None = None
    started: float = 0.0
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def ways(with_compile: bool) -> list[Way]:
    """One change after the other, then those beside the default."""
    fused = replace(PLAIN, fuse_norms=True)
    default = RuntimeSettings()
    result = [
        Way("plain, float32", PLAIN),
        Way("+ fused norms", fused),
        Way("+ bfloat16", fused, "bfloat16"),
        Way("+ objectness 0.05", replace(fused, min_objectness=0.05), "bfloat16"),
        Way("+ 4000 proposals (default)", default, "bfloat16"),
        Way("default, 1000 proposals", replace(default, proposals=1000), "bfloat16"),
        Way("default, 2000 proposals", replace(default, proposals=2000), "bfloat16"),
        Way("default, 8000 proposals", replace(default, proposals=8000), "bfloat16"),
        Way("default, objectness 0.3", replace(default, min_objectness=0.3), "bfloat16"),
        Way("default, batches of 2", default, "bfloat16", 2),
        Way("default, batches of 4", default, "bfloat16", 4),
    ]
    if with_compile:
        result.append(Way("default, compiled", replace(default, compile=True), "bfloat16"))
    return result


def make_images(
    model: MaskRcnnModel, preset: str, count: int, seed: int
) -> tuple[list[ValidationImage], ValidationImage]:
    """Simulate scenes, and join them side by side into one image of as many tiles."""
    images = []
    normalization = model.metadata.normalization
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        config = preset_config(preset, shape=(512, 512), bands=model.metadata.bands)
        scene = to_training_scene(simulate_scene(config, rng))
        images.append(validation_image(scene, normalization, rng, min_peak_snr=3.0))
    joined = ValidationImage(
        image=np.concatenate([item.image for item in images], axis=2),
        valid=np.concatenate([item.valid for item in images], axis=1),
        labels=np.concatenate([item.labels for item in images]),
        masks=[mask for item in images for mask in item.masks],
        origins=np.concatenate([item.origins + [0, 512 * i] for i, item in enumerate(images)]),
        asked=np.concatenate([item.asked for item in images]),
        psf_fwhm=np.mean([item.psf_fwhm for item in images], axis=0),
    )
    return images, joined


def look(way: Way, image: ValidationImage, score: float = 0.5) -> Detections:
    """Run a network on the tiles of an image."""
    settings = InferenceSettings(
        tile_overlap=0,
        batch_size=way.batch_size,
        precision=way.precision,  # type: ignore[arg-type]
        score_threshold=score,
        max_detections_per_tile=2000,
    )
    assert way.network is not None
    with torch_threads(way.runtime.threads):
        return detect(way.network, image.image, image.valid, settings, psf_fwhm=image.psf_fwhm)


def judge(found: Detections, image: ValidationImage) -> tuple[int, int]:
    """Count what is found and what is false."""
    pairs = ImagePairs.from_spans(
        SpanMasks.from_masks(found.masks, found.origins),
        found.scores,
        np.where(found.p_star > 0.5, 1, 2),
        SpanMasks.from_masks(image.masks, image.origins),
        image.labels,
        truth_ignored=~image.asked,
    )
    matches = match(pairs, [0.5])
    return int(matches.hit[0].sum()), int(matches.false[0].sum())


def timed(way: Way, image: ValidationImage, tiles: int) -> None:
    """Add the times of a look."""
    wall, cpu = time.perf_counter(), time.process_time()
    look(way, image)
    way.cpu.append(1e3 * (time.process_time() - cpu) / tiles)
    way.wall.append(1e3 * (time.perf_counter() - wall) / tiles)


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, default=default_model_path())
    parser.add_argument("--presets", nargs="+", default=["hsc-wide", "hsc-deep", "crowded"])
    parser.add_argument("--tiles", type=int, default=4, help="per preset (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=900, help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="try torch.compile too, which takes a minute")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = read_model(arguments.model)
    every = ways(arguments.compile)
    for way in every:
        clock = time.perf_counter()
        way.network = prepare_network(model.build(), way.runtime)
        if way.runtime.compile:
            look(way, make_images(model, "hsc-wide", 1, 1)[1])
        way.started = time.perf_counter() - clock
    for preset in arguments.presets:
        image = make_images(model, preset, arguments.tiles, arguments.seed)[1]
        for way in every:
            way.cpu, way.wall = [], []
        for repeat in range(arguments.repeats + 1):
            for way in every:
                timed(way, image, arguments.tiles)
                if not repeat:
                    # The first round warms up.
                    way.cpu, way.wall = [], []
        total = int(image.asked.sum())
        print(f"\n{preset}: {total} sources in {arguments.tiles} tiles, {arguments.threads} thread(s)")
        print(f"{'':28s} {'cpu':>6s} {'wall':>6s} {'gain':>5s} {'found':>6s} {'false':>6s} {'faint':>6s}")
        for way in every:
            hits, false = judge(look(way, image), image)
            faint, _ = judge(look(way, image, 0.05), image)
            cpu, wall = min(way.cpu), min(way.wall)
            print(
                f"{way.name:28s} {cpu:6.0f} {wall:6.0f} {min(every[0].cpu) / cpu:5.2f} "
                f"{hits / max(total, 1):6.3f} {false:6d} {faint / max(total, 1):6.3f}",
                flush=True,
            )
    print("\nSeconds to get ready: " + ", ".join(f"{way.name}: {way.started:.1f}" for way in every[-2:]))


if __name__ == "__main__":
    main()
