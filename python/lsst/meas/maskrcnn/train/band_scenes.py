# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Scenes and crops for networks that take any bands.

Simulated scenes are kept without noise, in units of the noise. Every use draws
the bands, their depths and new noise, so what is bright enough to be found
differs too. To images of a survey, noise is only added.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..images.archives import read_arrays
from ..images.files import write_atomically
from ..images.pixels import tight
from ..metrics.arrays import BoolArray, Float32Array, IntArray
from ..network.band_layers import Field, pack_bands
from ..network.psf import USUAL_FWHM
from ..network.wavelengths import MASK_WAVELENGTH, band_wavelength
from ..scenes.artefacts import BAD, NO_DATA, SATURATED, correlated_noise
from ..scenes.light import BandPsf
from ..scenes.presets import PRESETS, preset_config
from ..scenes.simulate import Scene, simulate_scene
from ..scenes.survey_mixture import draw_survey_scene, random_survey_config
from ..scenes.truth import source_mask
from .targets import cut_mask
from .training_scene import pack_masks, scene_errors, unpack_bits, unpack_masks

_FAINTEST_FOUND, _FAINTEST_IGNORED = 5.0, 3.0
"""S/N in all bands together from which sources are to be found, and below which
they are background."""

_PRESETS_SHARE = 0.25
"""Of the scenes, those of the presets; the others are of surveys that do not exist."""

_LEAST_SHARE = 0.05
"""Sources with less of the light at their own peak are ignored."""

_RESOLVED = 0.5
"""Distance in FWHM below which two sources are asked for as one."""

_BLEND_RADIUS, _BLEND_SHARE = 1.0, 0.1
"""Distance in FWHM and share of the flux that make a detection a blend."""


@dataclass(frozen=True, eq=False)
class BandScene:
    """A scene and the truth of its sources."""

    pixels: Float32Array  # flux in units of ``sigma``, (band, y, x)
    sigma: Float32Array  # noise of an empty pixel, nJy, (band,)
    gain: Float32Array  # photons per ``sigma``, (band,): the variance of a pixel is 1 + flux / gain
    fwhm: Float32Array  # FWHM of the PSF by its moments, px, (band,)
    wavelength: Float32Array  # effective wavelength of each band, nm, (band,)
    wings: Float32Array  # radius at which the PSF has 0.02 of its peak, in units of the FWHM, (band,)
    pixel_scale: Float32Array  # side of a pixel, arcsec, (1,)
    # Pixels, (band, y, x).
    unusable: BoolArray
    saturated: BoolArray
    positions: Float32Array  # (y, x) of each source, (source, 2)
    labels: IntArray  # 1 for stars, 2 for galaxies, (source,)
    snr: Float32Array  # of a matched filter against the noise of the sky, (source, band)
    peak_share: Float32Array  # of the light at the brightest pixel that is its own, (source,)
    origins: npt.NDArray[np.int32]  # (y0, x0) of each mask, (source, 2)
    masks: list[BoolArray]  # truth masks in each band, (band, y, x)
    noisy: bool = False  # whether the pixels hold noise, to which crops can only add


def to_band_scene(scene: Scene) -> BandScene:
    """Keep what training needs of a scene that was simulated with ``keep_models``."""
    drawn = np.flatnonzero(scene.sources["area"] >= 1)
    sources = scene.sources[drawn]
    sigma = np.asarray(scene.sky_sigma, np.float32)
    fwhm = np.array([_moments_fwhm(psf, scene.pixel_scale) for psf in scene.psfs])
    wings = np.array([_wing_radius(psf) for psf in scene.psfs]) / scene.pixel_scale / fwhm
    outlines = [_band_masks(scene, index) for index in drawn.tolist()]
    return BandScene(
        pixels=(scene.noiseless / sigma[:, None, None]).astype(np.float32),
        sigma=sigma,
        gain=(scene.electrons_per_njy * sigma).astype(np.float32),
        fwhm=fwhm.astype(np.float32),
        wavelength=np.array([band_wavelength(band) for band in scene.bands], np.float32),
        wings=wings.astype(np.float32),
        pixel_scale=np.array([scene.pixel_scale], np.float32),
        unusable=(scene.mask & (BAD | NO_DATA)) != 0,
        saturated=(scene.mask & SATURATED) != 0,
        positions=np.stack([sources["y"], sources["x"]], axis=1).astype(np.float32),
        labels=np.where(sources["is_star"], 1, 2).astype(np.int64),
        snr=np.stack([sources[f"snr_{band}"] for band in scene.bands], axis=1).astype(np.float32),
        peak_share=sources["peak_share"].astype(np.float32),
        origins=np.array([origin for _, origin in outlines], np.int32).reshape(-1, 2),
        masks=[mask for mask, _ in outlines],
    )


def _band_masks(scene: Scene, index: int) -> tuple[BoolArray, tuple[int, int]]:
    """Make the masks of a source in all bands, in one box, and its corner (y0, x0)."""
    if scene.models is None:
        raise ValueError("the scene has no models; simulate it with keep_models=True")
    stamp, source = scene.models[index], scene.sources[index]
    masks = np.zeros(stamp.pixels.shape, bool)
    for number, (band, pixels) in enumerate(zip(scene.bands, stamp.pixels)):
        flux, sigma = float(source[f"flux_{band}"]), float(scene.sky_sigma[number])
        if flux > 0:
            part, y0, x0 = source_mask(pixels, scene.config.mask_rule, bool(source["is_star"]), sigma, flux)
            masks[number, y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
    any_band, y0, x0 = tight(np.logical_or.reduce(masks, axis=0))
    height, width = any_band.shape
    return masks[:, y0 : y0 + height, x0 : x0 + width], (stamp.y0 + y0, stamp.x0 + x0)


def _wing_radius(psf: BandPsf) -> float:
    """Return the radius at which a PSF has 0.02 of its peak, arcsec."""
    radii = np.linspace(0.0, 8.0 * psf.fwhm, 4000)
    profile = psf.surface_brightness(radii)
    return float(np.interp(-0.02 * profile[0], -profile, radii))


def _moments_fwhm(psf: BandPsf, pixel_scale: float) -> float:
    # Moments of a PSF near the limit of sampling do not always converge.
    times = max(1, math.ceil(3.0 * pixel_scale / psf.fwhm))
    return psf.moments_fwhm(pixel_scale / times) / times


_PER_BAND = ("sigma", "gain", "fwhm", "wavelength", "wings")
_PLAIN = (*_PER_BAND, "pixel_scale", "positions", "labels", "snr", "peak_share", "origins")
_BITS = ("unusable", "saturated")

_STEPS = 200.0
"""Steps of a file per unit of arcsinh(pixel): 0.005 sigma in the sky, 0.5 % of bright pixels."""


def write_band_scene(scene: BandScene, path: str | os.PathLike[str]) -> None:
    """Write a scene as an ``.npz`` file, whole or not at all.

    Pixels are rounded to a small part of their noise: 400 scenes of 288 px have 50 MB.
    """
    arrays = {name: getattr(scene, name) for name in _PLAIN}
    arrays["pixels"] = np.rint(_STEPS * np.arcsinh(scene.pixels)).astype(np.int16)
    arrays.update({name: np.packbits(getattr(scene, name)) for name in _BITS})
    arrays.update(pack_masks(scene.masks, 3))
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(Path(path), buffer.getvalue())


def read_band_scene(path: str | os.PathLike[str]) -> BandScene:
    """Read a scene that `write_band_scene` wrote."""
    with scene_errors(path):
        data = read_arrays(path)
        arrays = {name: data[name] for name in _PLAIN}
        arrays["pixels"] = np.sinh(data["pixels"] / np.float32(_STEPS))
        shape = arrays["pixels"].shape
        if len(shape) != 3 or any(len(arrays[name]) != shape[0] for name in _PER_BAND):
            raise ValueError(f"the pixels have the shape {shape}, {len(arrays['sigma'])} bands have a noise")
        arrays.update({name: unpack_bits(data[name], shape) for name in _BITS})
        return BandScene(masks=unpack_masks(data, len(arrays["labels"])), noisy=False, **arrays)


def simulate_band_scene(rng: np.random.Generator, shape: tuple[int, int]) -> BandScene:
    """Simulate a scene (y, x) of the mixture: of a survey that does not exist, or of a preset."""
    if rng.random() >= _PRESETS_SHARE:
        return to_band_scene(draw_survey_scene(random_survey_config(rng, shape), rng))
    name = str(rng.choice(sorted(PRESETS)))
    bands = tuple(rng.permutation([condition.band for condition in PRESETS[name].conditions]).tolist())
    config = preset_config(name, shape=shape, bands=bands, noise=False, keep_models=True)
    return to_band_scene(simulate_scene(config, rng))


def make_scenes(
    folder: str | os.PathLike[str], numbers: Sequence[int], seed: int, shape: tuple[int, int]
) -> Iterator[Path]:
    """Simulate scenes of the mixture of surveys, and yield their files as they get ready.

    The seed and the number of a scene decide everything in it. Scenes that are
    there already stay. The shape is (y, x).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = folder / f"bands_{seed}_{number:05d}.npz"
        if not path.exists():
            write_band_scene(simulate_band_scene(np.random.default_rng([seed, number]), shape), path)
        yield path


def _draw_bands(scene: BandScene, rng: np.random.Generator) -> tuple[IntArray, Float32Array]:
    """Choose bands and how much noisier each is than in the scene."""
    there = len(scene.sigma)
    count = min(int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.14, 0.14, 0.4, 0.1, 0.08, 0.14])), there)
    bands = rng.permutation(there)[:count]
    noise = 10.0 ** (rng.uniform(-0.35, 0.3) + rng.normal(0.0, 0.08, count))
    if count > 1 and rng.random() < 0.3:
        noise[rng.integers(count)] *= rng.uniform(1.5, 6.0)
    return bands, noise.astype(np.float32)


def draw_crop(
    scene: BandScene, rng: np.random.Generator, size: int, *, plain: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cut a crop of ``size`` px and add noise.

    Returns an image as `~lsst.meas.maskrcnn.network.band_layers.pack_bands` makes it,
    and its target: ``boxes``, ``labels`` and ``masks`` as torchvision wants them;
    ``centres`` (x, y), float32, (source, 2); ``blended``, bool, (source,);
    ``ignore_boxes``, float32, (region, 4); and ``ignore_centres``, float32,
    (region, 2). With ``plain`` it has all bands at the depth of the scene, the
    middle of the scene, and white noise.
    """
    height, width = scene.pixels.shape[1:]
    size_y, size_x = min(size, height), min(size, width)
    if plain:
        bands, noise = np.arange(len(scene.sigma)), np.ones(len(scene.sigma), np.float32)
        y0, x0, turns, flip, kernel, share = (height - size_y) // 2, (width - size_x) // 2, 0, False, 0.0, 1.0
    else:
        bands, noise = _draw_bands(scene, rng)
        y0, x0 = int(rng.integers(height - size_y + 1)), int(rng.integers(width - size_x + 1))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        kernel = float(rng.choice([0.0, rng.uniform(0.35, 0.95)]))
        share = float(rng.uniform(0.0, 0.5)) if rng.random() < 0.1 else 1.0
    window = np.s_[bands, y0 : y0 + size_y, x0 : x0 + size_x]
    if scene.noisy:
        noise, share = np.maximum(noise, np.float32(1.0)), 1.0
    light = scene.pixels[window] / noise[:, None, None]
    # Longer exposures have more photons for each sigma.
    variance = 1.0 + np.maximum(light, 0.0) * (noise / scene.gain[bands])[:, None, None]
    if scene.noisy:
        variance -= 1.0 / noise[:, None, None] ** 2
    light += share * np.sqrt(variance) * correlated_noise(light.shape, kernel, rng)
    bad = scene.unusable[window].copy()
    if not plain:
        if rng.random() < 0.4:
            bad |= scene.saturated[window]
        _mask_parts(bad, rng)
    fwhm, wings = scene.fwhm[bands].copy(), scene.wings[bands].copy()
    wavelength = scene.wavelength[bands].copy()
    field = Field.of(scene.sigma[bands] * noise, fwhm, float(scene.pixel_scale[0]))
    if not plain:
        fwhm *= rng.normal(1.0, 0.02, len(fwhm)).astype(np.float32)
        wavelength *= rng.normal(1.0, 0.015, len(fwhm)).astype(np.float32)
        if rng.random() < 0.08:
            # Images whose PSF is not known.
            fwhm[:] = 0.0
            field = Field()
        wings *= rng.normal(1.0, 0.02, len(wings)).astype(np.float32)
        if rng.random() < 0.2:
            wings[:] = 0.0
        if rng.random() < 0.2:
            # Images without a zero point.
            field = field._replace(depth=0.0)
    image = pack_bands(light, ~bad, fwhm, scene.sigma[bands] * noise, wavelength, wings, field)
    effective = noise * _correlation_loss(kernel, scene.fwhm[bands])
    target = _cut_truth(scene, bands, effective, (y0, x0), ~bad, 0.5 if share < 1.0 else _FAINTEST_IGNORED)
    return _turn(image, target, turns, flip)


def _correlation_loss(kernel: float, fwhm: Float32Array) -> Float32Array:
    """Return how much noisier a matched filter is with noise that is correlated."""
    if kernel <= 0:
        return np.ones(len(fwhm), np.float32)
    weights = np.exp(-0.5 * (np.arange(-3, 4) / kernel) ** 2)
    slow = weights.sum() ** 2 / (weights**2).sum()
    width = fwhm / 2.355
    return np.maximum(slow * width / np.sqrt(width**2 + kernel**2), 1.0).astype(np.float32)


def _mask_parts(bad: BoolArray, rng: np.random.Generator) -> None:
    """Take data away from some bands in part of a crop, in place."""
    height, width = bad.shape[1:]
    if rng.random() < 0.15:
        # The end of the coverage of some of the bands.
        some = rng.random(len(bad)) < 0.5
        edge = int(rng.integers(1, height))
        bad[some, :edge] = True
    if rng.random() < 0.1:
        x, y = int(rng.integers(width)), int(rng.integers(height))
        radius = float(rng.uniform(4.0, 25.0))
        disc = (np.arange(height)[:, None] - y) ** 2 + (np.arange(width) - x) ** 2 < radius**2
        bad[rng.random(len(bad)) < 0.7] |= disc


def _cut_truth(
    scene: BandScene,
    bands: IntArray,
    noise: Float32Array,
    corner: tuple[int, int],
    valid: BoolArray,
    faintest: float,
) -> dict[str, Tensor]:
    """Find what is to be found and what is to be ignored in a crop."""
    height, width = valid.shape[1:]
    known: BoolArray = np.logical_or.reduce(valid, axis=0)
    fwhm = float(np.median(scene.fwhm[bands])) or USUAL_FWHM
    outline = bands[np.argmin(np.abs(scene.wavelength[bands] - MASK_WAVELENGTH))]
    positions = scene.positions - np.array(corner, np.float32)
    # A source counts by the bands that have data where it is.
    at = np.clip(np.rint(positions).astype(int), 0, (height - 1, width - 1))
    there = valid[:, at[:, 0], at[:, 1]].T
    snr: Float32Array = np.sqrt(((scene.snr[:, bands] / noise) ** 2 * there).sum(axis=1))
    inside = np.all((positions >= -0.5) & (positions < np.array([height, width]) - 0.5), axis=1)
    boxes, masks, kept, ignored = [], [], [], []
    for index in np.flatnonzero(snr >= faintest).tolist():
        y, x = (scene.origins[index] - np.array(corner)).tolist()
        part, y0, x0 = cut_mask(scene.masks[index][outline], y, x, (height, width))
        if not part.size:
            continue
        box = (x0, y0, x0 + part.shape[1], y0 + part.shape[0])
        here = np.s_[y0 : box[3], x0 : box[2]]
        whole = np.zeros((height, width), bool)
        whole[here] = part
        usable = known[here][part].mean() >= 0.5
        bright = snr[index] >= _FAINTEST_FOUND and scene.peak_share[index] >= _LEAST_SHARE
        if inside[index] and usable and bright:
            kept.append(index)
            boxes.append(box)
            masks.append(whole)
        else:
            ignored.append((index, box))
    keep = np.array(kept, int)
    apart = np.hypot(*(positions[keep, None] - positions[keep]).transpose(2, 0, 1)) / fwhm
    flux = snr[keep]
    brighter = flux > flux[:, None]
    merged: BoolArray = np.logical_or.reduce((apart < _RESOLVED) & brighter, axis=1)
    least = np.minimum(flux, flux[:, None]) / (flux + flux[:, None] + 1e-9)
    mixed = (apart < _BLEND_RADIUS) & (least >= _BLEND_SHARE) & ~np.eye(len(keep), dtype=bool)
    blended = mixed.any(axis=1)
    rows = np.flatnonzero(~merged)
    return {
        "boxes": torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)[rows]),
        "labels": torch.tensor(scene.labels[keep[rows]], dtype=torch.int64),
        "masks": torch.tensor(np.array(masks, np.uint8).reshape(-1, height, width)[rows]),
        "centres": torch.tensor(positions[keep[rows], ::-1].copy(), dtype=torch.float32).reshape(-1, 2),
        "blended": torch.tensor(blended[rows]),
        "snr": torch.tensor(flux[rows], dtype=torch.float32),
        "ignore_boxes": torch.tensor(
            np.array([box for _, box in ignored] + _cover(~known), np.float32).reshape(-1, 4)
        ),
        "ignore_centres": torch.tensor(
            np.array([positions[index, ::-1] for index, _ in ignored], np.float32).reshape(-1, 2)
        ),
        "known": torch.tensor(known),
        "fwhm": torch.tensor(fwhm),
    }


def _cover(bad: BoolArray) -> list[tuple[int, int, int, int]]:
    """Cover pixels without data by boxes [x0, y0, x1, y1] of 8 px."""
    if not bad.any():
        return []
    height, width = bad.shape
    return [
        (x, y, min(x + 8, width), min(y + 8, height))
        for y in range(0, height, 8)
        for x in range(0, width, 8)
        if bad[y : y + 8, x : x + 8].mean() > 0.5
    ]


def _turn(
    image: Tensor, target: dict[str, Tensor], turns: int, flip: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Flip along x, then turn by quarters from x towards y."""
    boxes = {name: target[name] for name in ("boxes", "ignore_boxes")}
    points = {name: target[name] for name in ("centres", "ignore_centres")}
    planes = {"masks": target["masks"], "known": target["known"]}
    if flip:
        width = image.shape[-1]
        image = image.flip(-1)
        planes = {name: value.flip(-1) for name, value in planes.items()}
        boxes = {
            n: torch.stack([width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]], 1) for n, b in boxes.items()
        }
        points = {n: torch.stack([width - 1 - p[:, 0], p[:, 1]], 1) for n, p in points.items()}
    for _ in range(turns):
        # A point (x, y) goes to (y, width - 1 - x).
        width = image.shape[-1]
        image = torch.rot90(image, 1, (-2, -1))
        planes = {name: torch.rot90(value, 1, (-2, -1)) for name, value in planes.items()}
        boxes = {
            n: torch.stack([b[:, 1], width - b[:, 2], b[:, 3], width - b[:, 0]], 1) for n, b in boxes.items()
        }
        points = {n: torch.stack([p[:, 1], width - 1 - p[:, 0]], 1) for n, p in points.items()}
    return image.contiguous(), {**target, **boxes, **points, **planes}
