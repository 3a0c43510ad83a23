# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What each way of suppression finds of close pairs, and what it costs.

    python tests/benchmarks/bench_suppression.py [MODEL] [--figure pair-recall.png]

Pairs of stars and galaxies of known separation and flux ratio are drawn on a
jittered grid, a scene at a time, with the seeing, depth and noise of the
preset hsc-wide. The signal to noise ratio is that of the fainter source in r.
Surplus detections are counted on the pairs and on single sources; average
precision (mask IoU 0.5) on ordinary scenes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pair_recall import PairOutcomes, match_pairs, plot_pair_recall

from lsst.meas.maskrcnn.deblend.detection import detect
from lsst.meas.maskrcnn.images.normalize import normalize
from lsst.meas.maskrcnn.network.inference import DetectionSettings
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, default_model_path, read_model
from lsst.meas.maskrcnn.network.runtime import prepare_network
from lsst.meas.maskrcnn.scenes.artefacts import MASK_BITS
from lsst.meas.maskrcnn.scenes.config import ArtefactConfig
from lsst.meas.maskrcnn.scenes.populations import POPULATION_DTYPE
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import Scene, draw_scene, simulate_scene
from lsst.meas.maskrcnn.scenes.truth import truth_selection
from lsst.meas.maskrcnn.train.validation import ValidationImage, validation_precision

KINDS = {"star, star": (True, True), "star, galaxy": (True, False), "galaxy, galaxy": (False, False)}
SEPARATIONS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
FLUX_RATIOS = (1.0, 2.0, 3.0, 5.0, 10.0, 30.0)
CELL = 64
SIDE = 512
OPTIONS = {"hard": DetectionSettings(suppression="hard"), "mask": DetectionSettings(suppression="mask")}


def draw_sources(is_star: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw stars and small galaxies of random colours and shapes."""
    sources = np.zeros(len(is_star), POPULATION_DTYPE)
    count = len(sources)
    sources["is_star"] = is_star
    sources["mag"] = 22.0
    sources["redshift"] = rng.uniform(0.2, 1.1, count)
    sources["locus"] = rng.uniform(0.05, 0.9, count)
    sources["is_red"] = rng.uniform(size=count) < 0.3
    sources["old_fraction"] = np.where(sources["is_red"], 1.0, rng.uniform(0.0, 0.4, count))
    bulge = np.where(sources["is_red"], rng.uniform(0.4, 1.0, count), rng.uniform(0.0, 0.4, count))
    sources["bulge_fraction"] = np.where(is_star, 0.0, bulge)
    radius = rng.uniform(0.3, 0.7, count)
    sources["disc_radius"], sources["bulge_radius"] = radius, 0.6 * radius
    sources["disc_axis_ratio"] = rng.uniform(0.4, 1.0, count)
    sources["bulge_axis_ratio"] = rng.uniform(0.6, 1.0, count)
    sources["position_angle"] = rng.uniform(0.0, np.pi, count)
    return sources


@dataclass
class PairScene:
    """A scene of pairs, or of the brighter source of each."""

    scene: Scene
    first: np.ndarray
    second: np.ndarray
    flux_ratio: np.ndarray
    fwhm: float


def pair_scene(
    stars: tuple[bool, bool],
    separation: np.ndarray,
    flux_ratio: np.ndarray,
    snr: float,
    bands: tuple[str, ...],
    rng: np.random.Generator,
    *,
    alone: bool = False,
) -> PairScene:
    """Draw a pair in each cell of a grid."""
    base = preset_config("hsc-wide", bands=bands)
    config = replace(
        base,
        shape=(SIDE, SIDE),
        artefacts=ArtefactConfig(correlation=base.artefacts.correlation),
        psf=replace(base.psf, seeing_scatter=0.0, band_scatter=0.0),
    )
    count = (SIDE // CELL) ** 2
    rows, columns = np.divmod(np.arange(count), SIDE // CELL)
    middle = (np.stack([columns, rows], axis=1) + 0.5) * CELL + rng.uniform(-4.0, 4.0, (count, 2))
    conditions = {item.band: item for item in config.band_conditions()}
    fwhm = conditions["r"].fwhm / config.pixel_scale
    angle = rng.uniform(0.0, 2.0 * np.pi, count)
    step = 0.5 * separation[:, None] * fwhm * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    # Either of a star and a galaxy may be the brighter one.
    swapped = rng.uniform(size=count) < 0.5
    bright = draw_sources(np.where(swapped, stars[1], stars[0]), rng)
    faint = draw_sources(np.where(swapped, stars[0], stars[1]), rng)
    first, second = middle + step, middle - step
    for table, place in ((bright, first), (faint, second)):
        table["x"], table["y"] = place.T
    table = np.concatenate([bright, faint])
    seed = int(rng.integers(2**31))
    # The ratio is linear in the flux, so that one scene without noise tells it.
    probe = draw_scene(replace(config, noise=False), table, np.random.default_rng(seed))
    table["mag"] += 2.5 * np.log10(
        probe.sources["snr_r"] / np.concatenate([snr * flux_ratio, snr + 0 * flux_ratio])
    )
    scene = draw_scene(config, table[:count] if alone else table, np.random.default_rng(seed))
    return PairScene(scene, first, second, flux_ratio, fwhm)


def balanced(repeats: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield separations and flux ratios of scenes, all of them equally often."""
    grid = np.array([(s, r) for s in SEPARATIONS for r in FLUX_RATIOS])
    count = (SIDE // CELL) ** 2
    every = np.concatenate([rng.permutation(grid) for _ in range(repeats)])
    for start in range(0, len(every) - count + 1, count):
        part = every[start : start + count]
        yield part[:, 0], part[:, 1]


def prepare(model: MaskRcnnModel, scene: Scene) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Normalise a scene; its usable pixels and the widths of its PSF as well."""
    unusable = MASK_BITS["BAD"] | MASK_BITS["CR"] | MASK_BITS["NO_DATA"]
    valid = ~((scene.mask & unusable) != 0).any(axis=0)
    how = model.metadata.normalization
    image = normalize(how, scene.images, scene.variance, valid).image
    return image, valid, [psf.moments_fwhm(scene.pixel_scale) for psf in scene.psfs]


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", type=Path, default=default_model_path().with_name("lite.safetensors")
    )
    parser.add_argument("--repeats", type=int, default=12, help="pairs of each kind (default: %(default)s)")
    parser.add_argument("--snr", type=float, nargs="+", default=[20.0, 100.0])
    parser.add_argument("--scenes", type=int, default=4, help="scenes per preset (default: %(default)s)")
    parser.add_argument("--presets", nargs="*", default=["hsc-wide", "hsc-deep", "crowded"])
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="where to write the figure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = read_model(arguments.model)
    network = prepare_network(model.build())
    bands = model.metadata.bands
    outcomes: dict[str, dict[str, list[PairOutcomes]]] = {
        kind: {name: [] for name in OPTIONS} for kind in KINDS
    }
    alone: dict[str, list[float]] = {name: [] for name in OPTIONS}
    seconds = {name: np.zeros(2) for name in OPTIONS}
    for number, (kind, stars) in enumerate(KINDS.items()):
        for snr in arguments.snr:
            rng = np.random.default_rng([arguments.seed, number, round(snr)])
            for index, (separation, ratio) in enumerate(balanced(arguments.repeats, rng)):
                single = index % 4 == 3
                pairs = pair_scene(stars, separation, ratio, snr, bands, rng, alone=single)
                image, valid, widths = prepare(model, pairs.scene)
                for name, settings in OPTIONS.items():
                    found = detect(
                        network,
                        image,
                        valid,
                        settings,
                        calibration=model.metadata.calibration,
                        psf_fwhm=widths,
                    )
                    seconds[name] += found.timings["suppression"], found.timings["forward"]
                    if single:
                        alone[name].append(len(found) / len(pairs.scene.sources) - 1.0)
                        continue
                    centers = (found.boxes[:, :2] + found.boxes[:, 2:] - 1.0) / 2
                    outcomes[kind][name].append(
                        match_pairs(centers, pairs.first, pairs.second, pairs.fwhm, pairs.flux_ratio)
                    )
    joined = {
        kind: {name: PairOutcomes.concatenate(parts) for name, parts in by_name.items()}
        for kind, by_name in outcomes.items()
    }
    report_pairs(joined, alone, seconds)
    if arguments.figure is not None:
        figure = plot_pair_recall(joined, SEPARATIONS, FLUX_RATIOS)
        figure.savefig(arguments.figure)
        print(f"wrote {arguments.figure}")
    for preset in arguments.presets:
        report_precision(model, network, preset, arguments)


def report_pairs(
    joined: dict[str, dict[str, PairOutcomes]], alone: dict[str, list[float]], seconds: dict[str, np.ndarray]
) -> None:
    """Print the share of pairs of which both were found, and the price."""
    grid = np.array(SEPARATIONS)
    print("Share of pairs of which both are found, by separation (FWHM), flux ratios up to 10:")
    print(f"{'kind':15s} {'option':15s} " + " ".join(f"{value:5g}" for value in grid) + "  surplus")
    for kind, by_name in joined.items():
        for name, item in by_name.items():
            at = np.abs(item.separation[:, None] - grid).argmin(axis=1)
            use = item.flux_ratio <= 10.0
            shares = [item.recall(use & (at == k)).value for k in range(len(grid))]
            print(
                f"{kind:15s} {name:15s} "
                + " ".join(f"{share:5.2f}" for share in shares)
                + f"  {item.surplus():7.3f}"
            )
    print("Share by flux ratio, 1 to 2 FWHM, all kinds; surplus detections of single sources; time:")
    print(f"{'option':15s} " + " ".join(f"{value:5g}" for value in FLUX_RATIOS) + "  single   time/forward")
    for name in alone:
        item = PairOutcomes.concatenate([by_name[name] for by_name in joined.values()])
        use = (item.separation > 0.9) & (item.separation < 2.1)
        shares = [item.recall(use & (item.flux_ratio == ratio)).value for ratio in FLUX_RATIOS]
        print(
            f"{name:15s} "
            + " ".join(f"{share:5.2f}" for share in shares)
            + f"  {np.mean(alone[name]) if alone[name] else np.nan:6.4f}"
            + f"   {seconds[name][0] / seconds[name][1]:6.3f}",
            flush=True,
        )


def report_precision(
    model: MaskRcnnModel, network: torch.nn.Module, preset: str, arguments: argparse.Namespace
) -> None:
    """Print the average precision of each option on scenes of a preset."""
    images = []
    for number in range(arguments.scenes):
        config = preset_config(preset, bands=model.metadata.bands)
        scene = simulate_scene(config, np.random.default_rng([arguments.seed, 100, number]))
        image, valid, widths = prepare(model, scene)
        images.append(
            ValidationImage(
                image=image,
                valid=valid,
                labels=np.where(scene.sources["is_star"], 1, 2),
                masks=scene.masks,
                origins=scene.origins,
                asked=truth_selection(scene, min_peak_share=0.05),
                psf_fwhm=np.array(widths),
            )
        )
    for name, settings in OPTIONS.items():
        figures = validation_precision(network, images, replace(settings, score_threshold=0.05))
        print(
            f"{preset:10s} {name:15s} AP50 star {figures['ap50_star']:.3f} galaxy "
            f"{figures['ap50_galaxy']:.3f}, {figures['n_detections']:.0f} detections",
            flush=True,
        )


if __name__ == "__main__":
    main()
