# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time per tile and what a network of fixed bands finds, for each way to compute.

    python tests/benchmarks/bench_runtime.py MODEL [--repeats 5] [--presets NAME ...]

Every way takes its turn in WAYS round, so that what else the machine does
hits all alike; the times are the best of the rounds. "cpu" is the time of the
process in all threads, "wall" that of the clock, both in ms for a tile of
512 x 512 px; "gain" is the first way's cpu time over this one's. Found and
false are at a score of 0.5 and an IoU of 0.5, of sources with a peak of 3 sigma or more;
"faint" is the share found at a score of 0.05.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection import MaskRCNN

from lsst.meas.maskrcnn.metrics.matching import ImagePairs, match
from lsst.meas.maskrcnn.metrics.spans import SpanMasks
from lsst.meas.maskrcnn.network import runtime
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.network.inference import DetectionSettings, detect
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, read_model
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
from lsst.meas.maskrcnn.train.training_set import to_training_scene
from lsst.meas.maskrcnn.train.validation import ValidationImage, validation_image


@dataclass
class Way:
    """A way to compute, and what came of it."""

    name: str
    prepared: bool = True
    precision: str = "bfloat16"
    min_objectness: float = runtime._MIN_OBJECTNESS
    proposals: int = runtime._PROPOSALS
    network: MaskRCNN | None = None
    started: float = 0.0
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def build(self, model: MaskRcnnModel) -> None:
        """Build the network, with other constants than those of the package."""
        clock = time.perf_counter()
        network = model.build()
        if self.prepared:
            runtime._MIN_OBJECTNESS, runtime._PROPOSALS = self.min_objectness, self.proposals
            network = runtime.prepare_network(network)
        self.network, self.started = network, time.perf_counter() - clock


WAYS = [
    Way("plain, float32", False, "float32"),
    Way("plain, bfloat16", False),
    Way("default, float32", precision="float32"),
    Way("default"),
    Way("default, 1000 proposals", proposals=1000),
    Way("default, 2000 proposals", proposals=2000),
    Way("default, 8000 proposals", proposals=8000),
    Way("default, objectness 0.3", min_objectness=0.3),
]


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


def find(way: Way, image: ValidationImage, score: float = 0.5) -> Detections:
    """Run a network on the tiles of an image."""
    settings = DetectionSettings(
        tile_overlap=0,
        precision=way.precision,  # type: ignore[arg-type]
        score_threshold=score,
    )
    assert way.network is not None
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
    """Add the times of one run."""
    wall, cpu = time.perf_counter(), time.process_time()
    find(way, image)
    way.cpu.append(1e3 * (time.process_time() - cpu) / tiles)
    way.wall.append(1e3 * (time.perf_counter() - wall) / tiles)


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="model of fixed bands")
    parser.add_argument("--presets", nargs="+", default=["hsc-wide", "hsc-deep", "crowded"])
    parser.add_argument("--tiles", type=int, default=4, help="per preset (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=900, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = read_model(arguments.model)
    for way in WAYS:
        way.build(model)
    for preset in arguments.presets:
        image = make_images(model, preset, arguments.tiles, arguments.seed)[1]
        for way in WAYS:
            way.cpu, way.wall = [], []
        for repeat in range(arguments.repeats + 1):
            for way in WAYS:
                timed(way, image, arguments.tiles)
                if not repeat:
                    # The first round warms up.
                    way.cpu, way.wall = [], []
        total = int(image.asked.sum())
        print(f"\n{preset}: {total} sources in {arguments.tiles} tiles, {arguments.threads} thread(s)")
        print(f"{'':28s} {'cpu':>6s} {'wall':>6s} {'gain':>5s} {'found':>6s} {'false':>6s} {'faint':>6s}")
        for way in WAYS:
            hits, false = judge(find(way, image), image)
            faint, _ = judge(find(way, image, 0.05), image)
            cpu, wall = min(way.cpu), min(way.wall)
            print(
                f"{way.name:28s} {cpu:6.0f} {wall:6.0f} {min(WAYS[0].cpu) / cpu:5.2f} "
                f"{hits / max(total, 1):6.3f} {false:6d} {faint / max(total, 1):6.3f}",
                flush=True,
            )
    print("\nSeconds to get ready: " + ", ".join(f"{way.name}: {way.started:.1f}" for way in WAYS[-2:]))


if __name__ == "__main__":
    main()
