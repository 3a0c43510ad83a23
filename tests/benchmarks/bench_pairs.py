# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How well the flux of simulated pairs is shared.

    python tests/benchmarks/bench_pairs.py [--count 12] [--seed 7] [--grow 6] [--figures FOLDER]
    python tests/benchmarks/bench_pairs.py --masks network [--model FILE]
    python tests/benchmarks/bench_pairs.py --speed

Pairs of stars and galaxies in the images of HSC-Wide (0.168 arcsec a pixel, Moffat PSF of
about 0.65 arcsec FWHM), 1 to 3 FWHM apart, flux ratio 1 to 10, S/N 50 and 200 of the source
that has less of it (matched filter, in r). The masks are the true ones, smoothed, or those that
a network finds. ``perfect`` shares each pixel of the same parent as the noise-free light does, and
so has the errors that no sharing can avoid: noise, and light outside of the parent. ``nearest``
gives each pixel to the nearest peak.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pair_experiment import PairErrors, PairExample, draw_errors, draw_examples, format_table, median_error
from scipy.ndimage import distance_transform_edt, gaussian_filter

from lsst.meas.maskrcnn.deblend.deblend import DeblendSettings, find_sources
from lsst.meas.maskrcnn.deblend.image import MultibandImage
from lsst.meas.maskrcnn.deblend.shares import BlendSource, ShareSettings, share_flux
from lsst.meas.maskrcnn.network.model_file import default_model_path, read_model
from lsst.meas.maskrcnn.profiles.blend import mask_centers
from lsst.meas.maskrcnn.scenes.config import ArtefactConfig, PsfConfig, SceneConfig
from lsst.meas.maskrcnn.scenes.populations import POPULATION_DTYPE
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import Scene, draw_scene, simulate_scene
from lsst.meas.maskrcnn.scenes.truth import peak_fraction_mask

KINDS = ("star-star", "star-galaxy", "galaxy-galaxy")
SNRS = (50.0, 200.0)
SEPARATIONS = (1.0, 1.5, 2.0, 2.5, 3.0)
RATIOS = (1.0, 2.0, 3.0, 10.0)
METHODS = ("perfect", "profile", "symmetric", "nearest", "mask")
CELL, COLUMNS = 100, 10
FWHM = 0.65
MATCH_RADIUS = 2.5  # px


@dataclass(frozen=True)
class Design:
    """What a pair should be."""

    kind: str
    snr: float
    separation: float
    ratio: float


@dataclass
class Cutout:
    """A pair in its cell of a scene; fluxes are (2, band)."""

    design: Design
    images: np.ndarray
    variances: np.ndarray
    models: np.ndarray
    flux: np.ndarray
    peaks: np.ndarray
    is_star: np.ndarray
    psfs: list[np.ndarray]
    sky_sigma: np.ndarray


def draw_source(rng: np.random.Generator, is_star: bool) -> np.ndarray:
    source = np.zeros(1, POPULATION_DTYPE)
    source["is_star"] = is_star
    source["mag"] = 23.0
    source["locus"] = rng.uniform(0.1, 0.7)
    source["disc_axis_ratio"] = source["bulge_axis_ratio"] = 1.0
    if not is_star:
        source["redshift"] = rng.uniform(0.2, 1.0)
        source["is_red"] = rng.random() < 0.25
        source["old_fraction"] = rng.uniform(0.1, 0.5)
        source["bulge_fraction"] = rng.choice([0.0, 0.1, 0.3, 0.8])
        source["disc_radius"] = rng.uniform(0.3, 0.8)
        source["bulge_radius"] = source["disc_radius"] * rng.uniform(0.3, 0.6)
        source["disc_axis_ratio"] = rng.uniform(0.3, 1.0)
        source["bulge_axis_ratio"] = rng.uniform(0.6, 1.0)
        source["position_angle"] = rng.uniform(0.0, np.pi)
    return source


def pair_config(n_pairs: int, bands: tuple[str, ...]) -> SceneConfig:
    conditions = tuple(replace(c, fwhm=FWHM) for c in preset_config("hsc-wide").conditions)
    return preset_config(
        "hsc-wide",
        shape=(-(-n_pairs // COLUMNS) * CELL, COLUMNS * CELL),
        bands=bands,
        conditions=conditions,
        psf=PsfConfig(seeing_scatter=0.04, band_scatter=0.02),
        artefacts=ArtefactConfig(),
        misregistration=0.0,
        keep_models=True,
    )


def draw_pairs(designs: Sequence[Design], bands: tuple[str, ...], seed: Sequence[int]) -> Scene:
    """A scene with one pair in each cell; sources 2 n and 2 n + 1 are those of cell n."""
    rng = np.random.default_rng(seed)
    config = pair_config(len(designs), bands)
    population = []
    for number, design in enumerate(designs):
        angle = rng.uniform(0.0, 2.0 * np.pi)
        middle = (np.array(divmod(number, COLUMNS)) + 0.5) * CELL + rng.uniform(-1.0, 1.0, 2)
        step = 0.5 * design.separation * FWHM / config.pixel_scale * np.array([np.sin(angle), np.cos(angle)])
        bright = int(rng.integers(2))
        for place, kind in enumerate(design.kind.split("-")):
            source = draw_source(rng, kind == "star")
            source["y"], source["x"] = middle + (step if place else -step)
            if place == bright:
                source["mag"] -= 2.5 * np.log10(design.ratio)
            population.append(source)
    sources = np.concatenate(population)
    first = draw_scene(config, sources, np.random.default_rng([*seed, 1]))
    lower = first.sources["snr_r"].reshape(-1, 2).min(axis=1)
    wanted = np.array([design.snr for design in designs])
    sources["mag"] -= np.repeat(2.5 * np.log10(wanted / lower), 2)
    return draw_scene(config, sources, np.random.default_rng([*seed, 1]))


def cell_of(number: int) -> tuple[slice, slice]:
    row, column = divmod(number, COLUMNS)
    return slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)


def cut_out(scene: Scene, designs: Sequence[Design]) -> Iterator[Cutout]:
    psfs = [psf.image(41, scene.pixel_scale) for psf in scene.psfs]
    for number, design in enumerate(designs):
        rows, columns = cell_of(number)
        models = np.zeros((2, len(scene.bands), CELL, CELL), np.float32)
        pair = scene.sources[2 * number : 2 * number + 2]
        for place in range(2):
            stamp = scene.models[2 * number + place]
            wide = np.zeros((len(scene.bands), *scene.config.shape), np.float32)
            height, width = stamp.pixels.shape[1:]
            wide[:, stamp.y0 : stamp.y0 + height, stamp.x0 : stamp.x0 + width] = stamp.pixels
            models[place] = wide[:, rows, columns]
        yield Cutout(
            design,
            scene.images[:, rows, columns],
            scene.variance[:, rows, columns],
            models,
            np.array([pair[f"flux_{band}"] for band in scene.bands]).T,
            np.column_stack([pair["y"] - rows.start, pair["x"] - columns.start]),
            pair["is_star"].copy(),
            psfs,
            scene.sky_sigma,
        )


def true_sources(cutout: Cutout, scene: Scene) -> tuple[np.ndarray, list[BlendSource], np.ndarray]:
    """Hard masks together, soft masks, and which source is which."""
    rule = scene.config.mask_rule
    hard = np.zeros((CELL, CELL), bool)
    sources = []
    for model, peak, is_star in zip(cutout.models, cutout.peaks.tolist(), cutout.is_star.tolist()):
        mask, y0, x0 = peak_fraction_mask(model[0], rule.star_fraction if is_star else rule.galaxy_fraction)
        hard[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] |= mask
        soft = np.rint(255.0 * gaussian_filter(np.pad(mask, 4).astype(np.float32), 1.0)).astype(np.uint8)
        soft[soft < 13] = 0
        sources.append(BlendSource(soft, y0 - 4, x0 - 4, *peak, is_star))
    return hard, sources, np.arange(2)


class Finder:
    """Sources as a network finds them."""

    def __init__(self, path: Path) -> None:
        self.model = read_model(path)

    def find(self, scene: Scene) -> None:
        """Find the sources of a scene."""
        psf = [item.image(41, scene.pixel_scale) for item in scene.psfs]
        image = MultibandImage(scene.images, scene.bands, scene.pixel_scale, scene.variance, psf=psf)
        # Flux is shared by this script.
        settings = DeblendSettings(shares=ShareSettings(template="mask"))
        found = find_sources(image, self.model, settings)
        self.found, self.peaks = found.detections, found.peaks
        self.centers = mask_centers(self.found.soft, self.found.soft_origins)

    def sources(self, cutout: Cutout, number: int) -> tuple[np.ndarray, list[BlendSource], np.ndarray | None]:
        rows, columns = cell_of(number)
        corner = np.array([rows.start, columns.start])
        inside = ((self.centers >= corner) & (self.centers < corner + CELL)).all(axis=1)
        hard = np.zeros((CELL, CELL), bool)
        sources = []
        members = np.flatnonzero(inside)
        for index in members.tolist():
            y, x = np.nonzero(self.found.masks[index])
            y, x = y + self.found.origins[index][0] - corner[0], x + self.found.origins[index][1] - corner[1]
            here = (y >= 0) & (y < CELL) & (x >= 0) & (x < CELL)
            hard[y[here], x[here]] = True
            y0, x0 = (self.found.soft_origins[index] - corner).tolist()
            star = bool(self.found.p_star[index] > 0.5)
            peak = (self.peaks[index] - corner).tolist()
            sources.append(BlendSource(self.found.soft[index], y0, x0, *peak, star))
        if not len(members):
            return hard, sources, None
        distance = np.hypot(*(self.centers[members][:, None] - corner - cutout.peaks).transpose(2, 0, 1))
        match = distance.argmin(axis=0)
        if match[0] == match[1] or distance.min(axis=0).max() > MATCH_RADIUS:
            return hard, sources, None
        return hard, sources, match


def nearest_shares(sources: Sequence[BlendSource], parent: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[: parent.shape[0], : parent.shape[1]]
    distance = [np.hypot(rows - source.peak_y, columns - source.peak_x) for source in sources]
    owner = np.argmin(distance, axis=0)
    return (owner == np.arange(len(sources))[:, None, None]) & parent


def children(
    method: str, cutout: Cutout, parent: np.ndarray, sources: Sequence[BlendSource], match: np.ndarray
) -> np.ndarray:
    """Pixels of either source, (2, band, y, x)."""
    if method == "perfect":
        light = np.maximum(cutout.models, 0.0) + 1e-9
        return cutout.images * parent * light / light.sum(axis=0)
    if method == "nearest":
        return cutout.images * nearest_shares(sources, parent)[match][:, None]
    shares = share_flux(cutout.images, cutout.variances, parent, sources, cutout.psfs, template=method)
    result = np.zeros((2, *cutout.images.shape), np.float32)
    for place, index in enumerate(match.tolist()):
        share = shares.sources[index]
        result[(place, slice(None), *share.box)] = share.pixels(cutout.images)
    return result


def all_designs(count: int) -> list[Design]:
    # Each scene, which has one PSF, holds pairs of all sorts.
    grid = list(itertools.product(KINDS, SNRS, SEPARATIONS, RATIOS))
    return [Design(*values) for _ in range(count) for values in grid]


def measure(
    designs: Sequence[Design],
    bands: tuple[str, ...],
    seed: int,
    grows: Sequence[float],
    finder: Finder | None,
    methods: Sequence[str],
) -> tuple[dict[float, PairErrors], list[PairExample]]:
    errors = {grow: {name: np.full((len(designs), 2), np.nan) for name in methods} for grow in grows}
    r = bands.index("r")
    examples: list[PairExample] = []
    n_found = np.zeros(len(designs), np.int64)
    seconds = dict.fromkeys(methods, 0.0)
    wanted = {(kind, 200.0, 1.5, 3.0) for kind in KINDS}
    for first in range(0, len(designs), COLUMNS**2):
        chosen = designs[first : first + COLUMNS**2]
        scene = draw_pairs(chosen, bands, [seed, first])
        if finder is not None:
            finder.find(scene)
        for number, cutout in enumerate(cut_out(scene, chosen)):
            found = true_sources(cutout, scene) if finder is None else finder.sources(cutout, number)
            hard, sources, match = found
            n_found[first + number] = len(sources)
            if match is None:
                continue
            distance = distance_transform_edt(~hard)
            for grow in grows:
                shown = {}
                for name in methods:
                    clock = time.perf_counter()
                    pixels = children(name, cutout, distance <= grow, sources, match)
                    seconds[name] += time.perf_counter() - clock
                    flux = pixels[:, r].sum(axis=(1, 2), dtype=np.float64)
                    errors[grow][name][first + number] = flux / cutout.flux[:, r] - 1.0
                    shown[name] = pixels[:, r, 26:74, 26:74].copy()
            d = cutout.design
            key = (d.kind, d.snr, d.separation, d.ratio)
            if key in wanted:
                wanted.remove(key)
                image, truth = cutout.images[r, 26:74, 26:74], cutout.models[:, r, 26:74, 26:74]
                sigma = float(cutout.sky_sigma[r])
                examples.append(PairExample(d.kind, image.copy(), sigma, truth.copy(), shown))
    for name, total in seconds.items():
        print(f"{name}: {1e3 * total / len(designs) / len(grows):.1f} ms a pair")
    columns = [
        np.array([getattr(d, name) for d in designs]) for name in ("kind", "snr", "separation", "ratio")
    ]
    return {grow: PairErrors(*columns, n_found, errors[grow]) for grow in grows}, examples


def print_verdict(pairs: PairErrors, rng: np.random.Generator) -> None:
    near = pairs.choose(separation=1.5, largest_ratio=3.0)
    for name in pairs.errors:
        parts = [f"all {100 * median_error(pairs.errors[name][near], rng)[0]:.1f}"]
        for snr, kind in itertools.product(SNRS, KINDS):
            chosen = pairs.choose(separation=1.5, largest_ratio=3.0, snr=snr, kind=kind)
            parts.append(f"S/N {snr:g} {kind} {100 * median_error(pairs.errors[name][chosen], rng)[0]:.1f}")
        clean = pairs.choose(separation=1.5, largest_ratio=3.0, n_found=2)
        share = np.count_nonzero(clean) / np.count_nonzero(near)
        alone = 100 * median_error(pairs.errors[name][clean], rng)[0]
        parts.append(f"found as exactly two ({100 * share:.0f} % of the pairs) {alone:.1f}")
        print(f"1.5 FWHM, ratio <= 3, {name}: " + ", ".join(parts))
    found = np.isfinite(next(iter(pairs.errors.values()))).all(axis=1)
    for separation in SEPARATIONS:
        chosen = pairs.choose(separation=separation, largest_ratio=3.0)
        print(
            f"{separation:g} FWHM, ratio <= 3: both found {100 * found[chosen].mean():.0f} %, "
            f"more than two {100 * (pairs.n_found[chosen] > 2).mean():.0f} %, "
            f"both and nothing else {100 * (found & (pairs.n_found == 2))[chosen].mean():.0f} %"
        )
    for name in ("profile", "symmetric", "mask"):
        if name not in pairs.errors or "nearest" not in pairs.errors:
            continue
        worse = []
        for snr, separation, ratio in itertools.product(SNRS, SEPARATIONS, RATIOS):
            chosen = pairs.choose(snr=snr, separation=separation, ratio=ratio)
            ours, theirs = (median_error(pairs.errors[n][chosen], rng)[0] for n in (name, "nearest"))
            if not ours < theirs:
                worse.append(f"({snr:g}, {separation:g}, {ratio:g}): {100 * ours:.1f} > {100 * theirs:.1f}")
        print(f"{name} not better than nearest at (S/N, separation, ratio): {'; '.join(worse) or 'none'}")


def measure_speed(seed: int) -> None:
    """Parents of 500 sources on 1500 x 1500 px."""
    for preset in ("crowded", "cluster"):
        config = preset_config(preset, shape=(1500, 1500))
        scene = simulate_scene(config, np.random.default_rng(seed))
        drawn = np.flatnonzero([mask.size > 0 for mask in scene.masks])
        chosen = drawn[np.argsort(-scene.sources["area"][drawn], kind="stable")[:500]]
        hard = np.zeros(scene.config.shape, bool)
        sources = []
        for index in chosen.tolist():
            mask, (y0, x0), row = scene.masks[index], scene.origins[index].tolist(), scene.sources[index]
            hard[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] |= mask
            soft = np.where(mask, 255, 0).astype(np.uint8)
            sources.append(BlendSource(soft, y0, x0, row["y"], row["x"], bool(row["is_star"])))
        parent = distance_transform_edt(~hard) <= 6.0
        psfs = [psf.image(41, scene.pixel_scale) for psf in scene.psfs]
        for template in ("mask", "symmetric", "profile"):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            clock = time.perf_counter()
            shares = share_flux(scene.images, scene.variance, parent, sources, psfs, template=template)
            wall = time.perf_counter() - clock
            size = sum(share.weights.nbytes for share in shares.sources) / 1e6
            more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
            print(
                f"{preset}, {template}: {len(sources)} sources, {wall:.2f} s, shares {size:.0f} MB, "
                f"peak memory grew by {more:.0f} MB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", choices=["truth", "network"], default="truth")
    parser.add_argument("--model", type=Path, default=default_model_path())
    parser.add_argument("--count", type=int, default=12, help="pairs of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--grow", type=float, nargs="+", default=[6.0], help="px (default: 6)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--figures", type=Path, help="folder for figures and table")
    parser.add_argument("--speed", action="store_true", help="measure time and memory only")
    arguments = parser.parse_args()
    if arguments.speed:
        measure_speed(arguments.seed)
        return
    rng = np.random.default_rng(arguments.seed)
    finder = Finder(arguments.model) if arguments.masks == "network" else None
    bands = (tuple(finder.model.metadata.bands) if finder else ()) or ("z", "r", "g")
    designs = all_designs(arguments.count)
    results, examples = measure(designs, bands, arguments.seed, arguments.grow, finder, arguments.methods)
    for grow, pairs in results.items():
        print(f"--- {arguments.masks} masks, grown by {grow:g} px")
        print_verdict(pairs, rng)
        if len(results) > 1:
            for snr in SNRS:
                values = [
                    f"{name} {100 * median_error(pairs.errors[name][pairs.choose(snr=snr)], rng)[0]:.2f}"
                    for name in arguments.methods
                ]
                print(f"S/N {snr:g}, all pairs: " + ", ".join(values))
    pairs = results[arguments.grow[0]]
    table = format_table(pairs, arguments.methods, rng)
    if arguments.figures is None:
        print(table)
        return
    arguments.figures.mkdir(parents=True, exist_ok=True)
    stem = f"pairs_{arguments.masks}"
    (arguments.figures / f"{stem}.txt").write_text(table, encoding="utf-8")
    draw_errors(pairs, arguments.methods, rng).savefig(arguments.figures / f"{stem}.png")
    shown = [name for name in ("nearest", "mask", "symmetric", "profile") if name in arguments.methods]
    draw_examples(examples, shown).savefig(arguments.figures / f"{stem}_examples.png")


if __name__ == "__main__":
    main()
