# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Folders in the layout of Astro R-CNN (Burke et al. 2019, MNRAS 490, 3952).

Each folder ``set_N`` holds ``img_<band>.fits``, usually from PhoSim, and
``masks.fits`` with an image HDU per source: that source alone, without sky,
and CLASS_ID 1 for a star, 2 for a galaxy in its header. Files may be
compressed.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from ..images.classes import CLASS_NAMES
from ..images.files import one_line
from ..images.pixels import tight
from ..images.sky import blur
from ..images.units import AB_ZERO_POINT
from ..scenes.artefacts import BAD, NO_DATA
from ..scenes.config import MaskRule
from ..scenes.light import Stamp
from ..scenes.truth import empty_sources, flag_sources, measure_neighbors, source_mask
from .fits_files import FITS_SUFFIXES, BandFiles, FitsImageError, find_fits
from .fits_images import FitsOptions, read_field
from .fits_layout import check_layout
from .imported import ImportedConfig, ImportedScene, import_field

_CLASSES = dict(enumerate(CLASS_NAMES, 1))
_SPLITS = {
    "training": "train",
    "train": "train",
    "trainingset": "train",
    "validation": "validation",
    "val": "validation",
    "validationset": "validation",
    "testing": "test",
    "test": "test",
    "testset": "test",
}
_SPLIT_ORDER = ("train", "validation", "test", "")
# Sets that are looked at to find the band of the masks, and sources of each.
_MOST_SOURCES = 20_000
"""HDUs of ``masks.fits``; published sets have some hundred."""

_SAMPLE_SETS = 5
_SAMPLE_SOURCES = 200


@dataclass(frozen=True)
class SetFolder:
    """One set."""

    path: Path
    """Its folder."""

    parent: int
    """Number of the folder that holds it, from 0 in the order given; training
    comes before validation before test."""

    number: int
    """The N of ``set_N``, or its place among its neighbours."""

    split: str
    """``"train"``, ``"validation"``, ``"test"``, or empty, from the names of
    the folders above."""


@dataclass(frozen=True)
class AstroRcnnOptions:
    """How sets are read."""

    bands: tuple[str, ...] = ("z", "r", "g")
    """Bands, in the order wanted."""

    fits: FitsOptions = FitsOptions(gain=1.0, common_saturation=True)
    """How the images are read; PhoSim's count electrons."""

    mask_rule: MaskRule = MaskRule()
    """Which pixels of a source's image are its mask. Its band is that of the
    images in ``masks.fits``, the first one if it is empty."""

    smooth: float = 0.0
    """Standard deviation (px) of the Gaussian with which masks are smoothed;
    pixels of 0.5 and more are kept. The code of Astro R-CNN has 2."""

    skip_bad: bool = False
    """Leave out sources that cannot be read, instead of giving up."""

    def __post_init__(self) -> None:
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise FitsImageError(f"The bands are {self.bands}; name each once, and at least one.")
        if self.mask_rule.band and self.mask_rule.band not in self.bands:
            raise FitsImageError(
                f"The masks' band {self.mask_rule.band!r} is not one of {', '.join(self.bands)}."
            )
        if not (math.isfinite(self.smooth) and 0 <= self.smooth <= 20):
            raise FitsImageError(f"smooth is {self.smooth}; it must lie between 0 and 20 px.")

    @property
    def mask_band(self) -> str:
        """Band of the images in ``masks.fits``."""
        return self.mask_rule.band or self.bands[0]


def find_sets(paths: Sequence[str | os.PathLike[str]], bands: Sequence[str]) -> list[SetFolder]:
    """Find the sets in some folders, which are sets or hold sets at any depth, in natural order, each once.

    A folder with an image in any of the bands is a set. A FitsImageError is raised if a folder is missing or
    holds none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise FitsImageError(f"There is no folder {path}; check the name.")
        here = [
            Path(folder).resolve()
            for folder, _, files in os.walk(path, followlinks=True)
            if any(f"img_{band}.fits{suffix}" in files for band in bands for suffix in FITS_SUFFIXES)
        ]
        if not here:
            raise FitsImageError(
                f"{path} holds no set: no folder with images img_{bands[0]}.fits and so on; "
                "give a folder set_N, or one that holds such folders."
            )
        found += sorted(here, key=_natural)
    found = list(dict.fromkeys(found))
    parents = list(dict.fromkeys(path.parent for path in found))
    parents.sort(key=lambda parent: _SPLIT_ORDER.index(_split(parent)))
    sets = []
    for index, parent in enumerate(parents):
        children = [path for path in found if path.parent == parent]
        matches = [re.fullmatch(r"\D*?(\d+)", path.name) for path in children]
        numbers = [int(match.group(1)) if match else -1 for match in matches]
        if min(numbers) < 0 or len(set(numbers)) < len(numbers):
            numbers = list(range(len(children)))
        for path, number in sorted(zip(children, numbers), key=lambda pair: pair[1]):
            sets.append(SetFolder(path, index, number, _split(path)))
    return sets


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _split(path: Path) -> str:
    """Split that the names of a folder and of those above say."""
    for name in (path.name, path.parent.name):
        split = _SPLITS.get(re.sub(r"[^a-z]", "", name.lower()))
        if split:
            return split
    return ""


def set_files(folder: Path, bands: Sequence[str]) -> tuple[dict[str, Path], Path | None]:
    """Find the images of a set by band, and ``masks.fits``, if there is one."""
    images = {}
    for band in bands:
        path = find_fits(folder / f"img_{band}.fits")
        if path is None:
            have = sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("img_"))
            raise FitsImageError(
                f"{folder} has no img_{band}.fits (nor .gz, .fz); it has {', '.join(have)}. "
                "Get the file, or name the bands with --bands."
            )
        images[band] = path
    return images, find_fits(folder / "masks.fits")


def read_set(folder: Path, options: AstroRcnnOptions) -> ImportedScene:
    """Read the images of a set and its truth; there is none if there is no ``masks.fits``.

    A FitsImageError with the file and the HDU is raised if a file is missing or damaged.
    """
    paths, masks_path = set_files(folder, options.bands)
    field = read_field({band: BandFiles(path) for band, path in paths.items()}, options.fits)
    scene = import_field(folder.name, field)
    if masks_path is None:
        scene.notes.append("There is no masks.fits: the images are imported without truth.")
        return scene
    rule = dataclasses.replace(options.mask_rule, band=options.mask_band)
    scene.config = ImportedConfig(folder.name, rule)
    _add_truth(scene, masks_path, field.images[options.mask_band].nanojansky_per_count, options)
    return scene


def choose_mask_band(sets: Sequence[SetFolder], options: AstroRcnnOptions) -> tuple[str, str]:
    """Find out in which band the single-source images were made.

    Returns the band in which the image has the flux of the sources, the first one if several have, or none;
    and a sentence for the user, which is empty if there are no masks. The first few sets with masks are
    looked at.

    By default the code of Astro R-CNN makes them in the first band that it is given, and its published data
    sets differ in which one that is. So they are compared: the median over the sources of the flux in the
    image over the flux of the source alone, within its mask.
    """
    ratios: dict[str, list[float]] = {band: [] for band in options.bands}
    looked = 0
    for entry in sets:
        paths, masks_path = set_files(entry.path, options.bands)
        if masks_path is None:
            continue
        try:
            images = read_field({band: BandFiles(path) for band, path in paths.items()}, options.fits)
        except FitsImageError as error:
            text = str(error)
            raise FitsImageError(text if str(entry.path) in text else f"{entry.path}: {text}") from error
        planes = {band: image.pixels for band, image in images.images.items()}
        shape = next(iter(planes.values())).shape
        for count, (_, is_star, plane, y0, x0) in enumerate(
            _read_models(masks_path, shape, dataclasses.replace(options, skip_bad=True), [])
        ):
            if count >= _SAMPLE_SOURCES:
                break
            if not plane.size:
                continue
            # Smoothed, or the mask would choose the pixels to which chance sent photons.
            smooth = blur(plane.astype(np.float64), 1.5)
            inside = smooth > (0.05 if is_star else 0.08) * smooth.max()
            for band, image in planes.items():
                part = image[y0 : y0 + plane.shape[0], x0 : x0 + plane.shape[1]]
                values = part[inside]
                if np.isfinite(values).all():
                    ratios[band].append(float(values.sum() / plane[inside].sum()))
        looked += 1
        if looked == _SAMPLE_SETS:
            break
    medians = {band: float(np.median(values)) if values else math.nan for band, values in ratios.items()}
    distance = {band: abs(math.log(value)) for band, value in medians.items() if value > 0}
    first = options.bands[0]
    if not distance:
        return first, "" if not looked else f"The masks are taken for those of band {first}."
    best = min(distance.values())
    band = next(name for name in options.bands if distance.get(name, math.inf) <= best + 0.05)
    listed = ", ".join(f"{name} {value:.2f}" for name, value in medians.items())
    note = f"The single-source images belong to band {band} (flux in the images over theirs: {listed})."
    if best > math.log(2.0):
        note += " None agrees well; --mask-band sets it."
    return band, note


def _add_truth(scene: ImportedScene, path: Path, calibration: float, options: AstroRcnnOptions) -> None:
    """Fill in the truth of a scene."""
    shape = scene.images.shape[1:]
    index = scene.bands.index(options.mask_band)
    rule = scene.config.mask_rule
    sigma = float(scene.sky_sigma[index])
    stamps: list[Stamp] = []
    scene.models, scene.model_bands = stamps, (options.mask_band,)
    rows = []
    origins = []
    total = np.zeros(shape)
    for _, is_star, plane, y0, x0 in _read_models(path, shape, options, scene.notes):
        light = plane * calibration
        flux = float(light.sum())
        mask, top, left = np.zeros((0, 0), bool), 0, 0
        if flux > 0:
            mask, top, left = source_mask(light, rule, is_star, sigma, flux)
            mask, top, left = _smooth_mask(mask, y0 + top, x0 + left, options.smooth, shape)
        scene.masks.append(mask)
        origins.append((top, left))
        pixels = np.full((len(scene.bands), *light.shape), np.nan, np.float32)
        pixels[index] = light
        stamps.append(Stamp(pixels, y0, x0))
        total[y0 : y0 + light.shape[0], x0 : x0 + light.shape[1]] += light
        x = y = math.nan
        if flux > 0:
            x = x0 + float((light.sum(axis=0) * np.arange(light.shape[1])).sum()) / flux
            y = y0 + float((light.sum(axis=1) * np.arange(light.shape[0])).sum()) / flux
        squares = float(np.vdot(light, light))
        rows.append((is_star, x, y, flux, math.sqrt(squares) / sigma, light.max(initial=0.0) / sigma))
    sources = empty_sources(len(rows), scene.bands)
    scene.origins = np.array(origins, np.int32).reshape(-1, 2)
    scene.sources = sources
    if not rows:
        scene.notes.append(f"{path.name} holds no source.")
        return
    band = options.mask_band
    for name, values in zip(
        ("is_star", "x", "y", f"flux_{band}", f"snr_{band}", f"peak_snr_{band}"), zip(*rows)
    ):
        sources[name] = values
    if band == "r":
        positive = sources["flux_r"] > 0
        sources["mag"][positive] = AB_ZERO_POINT - 2.5 * np.log10(sources["flux_r"][positive])
    sources["area"] = [np.count_nonzero(mask) for mask in scene.masks]
    for row, stamp in zip(sources, stamps):
        plane = stamp.pixels[index]
        if not row[f"flux_{band}"] > 0:
            continue
        blend = total[stamp.y0 : stamp.y0 + plane.shape[0], stamp.x0 : stamp.x0 + plane.shape[1]]
        peak = np.unravel_index(np.argmax(plane), plane.shape)
        row["peak_share"] = plane[peak] / blend[peak]
        row["blendedness"] = max(0.0, 1.0 - float(np.sum(plane * plane)) / float(np.sum(plane * blend)))
    known = np.isfinite(sources["x"])
    sources["neighbor_distance"][known], sources["neighbor_flux_ratio"][known] = measure_neighbors(
        sources["x"][known], sources["y"][known], sources[f"flux_{band}"][known], scene.pixel_scale
    )
    unusable = (scene.mask & (NO_DATA | BAD) != 0).any(axis=0)
    flag_sources(sources, scene.masks, scene.origins, unusable, rule, noise=True)


def _smooth_mask(
    mask: np.ndarray, y0: int, x0: int, sigma: float, shape: tuple[int, ...]
) -> tuple[np.ndarray, int, int]:
    """Majority of the pixels around each, weighted with a Gaussian."""
    if sigma == 0 or not mask.size:
        return mask, y0, x0
    reach = math.ceil(3.0 * sigma)
    grown = blur(np.pad(mask.astype(np.float64), reach), sigma) >= 0.5
    y0, x0 = y0 - reach, x0 - reach
    top, left = max(-y0, 0), max(-x0, 0)
    part, dy, dx = tight(grown[top : shape[0] - y0, left : shape[1] - x0])
    return part, y0 + top + dy, x0 + left + dx


def _read_models(
    path: Path, shape: tuple[int, ...], options: AstroRcnnOptions, notes: list[str]
) -> Iterator[tuple[int, bool, np.ndarray, int, int]]:
    """Read the sources of ``masks.fits`` one by one.

    Yields the number of the HDU, whether it is a star, the part of its image with
    light (y, x), counts, (0, 0) without any, and the y0 and x0 of that.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*truncated.*")
            check_layout(path, _MOST_SOURCES)
            with fits.open(path, memmap=False) as hdus:
                number = -1
                while True:
                    number += 1
                    try:
                        hdu = hdus[number]
                    except IndexError:
                        return
                    try:
                        source = _read_model(hdu, number, path, shape)
                    except FitsImageError as error:
                        if not options.skip_bad:
                            raise FitsImageError(f"{error} --skip-bad leaves the source out.") from error
                        notes.append(f"Left out: {error}")
                        continue
                    # The pixels of hundreds of sources need not be in memory at a time.
                    del hdu.data
                    if source is not None:
                        yield (number, *source)
    except FitsImageError:
        raise
    except Exception as error:
        # astropy raises errors of a dozen kinds for what is damaged.
        raise FitsImageError(
            f"{path} cannot be read ({one_line(error)}); get the whole file again."
        ) from error


def _read_model(
    hdu: fits.hdu.base._BaseHDU, number: int, path: Path, shape: tuple[int, ...]
) -> tuple[bool, np.ndarray, int, int] | None:
    """Read one source, or nothing from an HDU that need not hold one."""
    where = f"{path}, HDU {number}"
    if not getattr(hdu, "is_image", False):
        raise FitsImageError(f"{where} is a table; an image of a source is wanted.")
    class_id = hdu.header.get("CLASS_ID")
    if hdu.data is None and class_id is None and number == 0:
        return None
    if class_id is None:
        raise FitsImageError(
            f"{where} has no CLASS_ID; set it to 1 for a star or 2 for a galaxy in the header."
        )
    if class_id not in _CLASSES:
        raise FitsImageError(f"{where} has CLASS_ID {class_id!r}; it must be 1 (star) or 2 (galaxy).")
    is_star = int(class_id) == 1
    if hdu.data is None:
        return is_star, np.zeros((0, 0)), 0, 0
    data = np.asarray(hdu.data)
    if data.shape != tuple(shape):
        wanted = f"{shape[1]} x {shape[0]}"
        given = " x ".join(map(str, data.shape[::-1]))
        raise FitsImageError(f"{where} is {given} pixels, the images are {wanted}; they must be alike.")
    if not np.isfinite(data).all():
        raise FitsImageError(f"{where} has pixels that are not finite; a source without noise is wanted.")
    if not data.max() > 0:
        return is_star, np.zeros((0, 0)), 0, 0
    lit, y0, x0 = tight(data != 0)
    pixels = data[y0 : y0 + lit.shape[0], x0 : x0 + lit.shape[1]].astype(np.float64)
    return is_star, pixels, y0, x0
