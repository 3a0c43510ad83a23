# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Truth from an image of labels (FITS) or from annotations in the format of COCO (JSON)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from scipy import ndimage

from ..images.files import one_line, parse_json
from ..images.pixels import tight
from ..scenes.artefacts import BAD, NO_DATA
from ..scenes.truth import empty_sources, flag_sources, measure_neighbors
from .fits_files import FitsImageError
from .fits_layout import check_layout
from .imported import ImportedScene

_STAR = ("star", "stars")
_GALAXY = ("galaxy", "galaxies", "gal")


def add_label_truth(scene: ImportedScene, path: Path) -> None:
    """Add the sources of a file to a scene. Fluxes of a source are sums of the images over its mask.

    FITS: an image on the grid of the scene, 0 where there is no source, and an integer for each source; a
    table with the columns ``label`` and ``class`` (star or galaxy) may follow, without which all are
    galaxies. JSON: annotations of COCO, whose categories are star and galaxy, with polygons or runs of
    pixels; its first row is the first row of the FITS images. Of several images that one counts which has the
    size and, if there are several, the file name of an image without its ending. A FitsImageError is raised
    if the file cannot be used.
    """
    shape = scene.images.shape[1:]
    read = _read_coco if path.suffix.lower() == ".json" else _read_labels
    try:
        found = [(star, *tight(mask)) for star, mask in read(path, shape, scene)]
    except FitsImageError:
        raise
    except Exception as error:
        # astropy, numpy and what is not of the format raise errors of a dozen kinds.
        raise FitsImageError(
            f"{path} cannot be read as truth ({type(error).__name__}: {one_line(error)}); give a FITS image "
            "of labels, or COCO annotations."
        ) from error
    found = [item for item in found if item[1].size]
    sources = empty_sources(len(found), scene.bands)
    scene.masks = [mask for _, mask, _, _ in found]
    scene.origins = np.array([(y0, x0) for _, _, y0, x0 in found], np.int32).reshape(-1, 2)
    for row, (star, mask, y0, x0) in zip(sources, found):
        part = scene.images[:, y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]]
        light = np.where(mask & np.isfinite(part), part, 0.0)
        weights = np.maximum((light / scene.sky_sigma[:, None, None]).sum(axis=0), 0.0)
        y, x = ndimage.center_of_mass(weights if weights.any() else mask)
        row["is_star"], row["area"], row["x"], row["y"] = star, np.count_nonzero(mask), x0 + x, y0 + y
        for band, plane, sigma in zip(scene.bands, light, scene.sky_sigma):
            row[f"flux_{band}"] = plane.sum()
            row[f"snr_{band}"] = plane.sum() / (sigma * np.sqrt(row["area"]))
            row[f"peak_snr_{band}"] = plane.max() / sigma
    scene.sources = sources
    if len(sources):
        flux = sources[f"flux_{scene.bands[0]}"]
        sources["neighbor_distance"], sources["neighbor_flux_ratio"] = measure_neighbors(
            sources["x"], sources["y"], flux, scene.pixel_scale
        )
        unusable = (scene.mask & (NO_DATA | BAD) != 0).any(axis=0)
        flag_sources(sources, scene.masks, scene.origins, unusable, scene.config.mask_rule, noise=True)


def _read_labels(
    path: Path, shape: tuple[int, ...], scene: ImportedScene
) -> Iterator[tuple[bool, np.ndarray]]:
    """Yield class and mask of each source of an image of labels."""
    check_layout(path)
    with fits.open(path, memmap=False) as hdus:
        images = [hdu.data for hdu in hdus if getattr(hdu, "is_image", False) and hdu.data is not None]
        tables = [hdu.data for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
        if not images or images[0].dtype.kind not in "iu" or images[0].shape != shape:
            given = f"{images[0].dtype} {images[0].shape}" if images else "no image"
            raise FitsImageError(f"{path} has {given}; an image of integers of the shape {shape} is wanted.")
        labels = images[0].astype(np.int64)
        classes = {int(row["label"]): _is_star(row["class"], path) for table in tables for row in table}
    if not classes:
        scene.notes.append(f"{path.name} has no table of classes: all sources are taken for galaxies.")
    for label in np.unique(labels[labels > 0]):
        if classes and int(label) not in classes:
            raise FitsImageError(f"{path} has label {label} in its image but not in its table.")
        yield classes.get(int(label), False), labels == label


def _read_coco(path: Path, shape: tuple[int, ...], scene: ImportedScene) -> Iterator[tuple[bool, np.ndarray]]:
    """Yield class and mask of each annotation of an image."""
    content = parse_json(path.read_bytes())
    images = [image for image in content["images"] if (image["height"], image["width"]) == shape]
    if len(images) > 1:
        names = {name.partition(".")[0] for name in scene.config.name.split(", ")}
        images = [image for image in images if Path(str(image["file_name"])).stem in names]
    if len(images) != 1:
        raise FitsImageError(
            f"{path} has {len(images)} images of {shape[1]} x {shape[0]} pixels and the name of one of "
            f"{scene.config.name}; one is wanted."
        )
    classes = {entry["id"]: _is_star(entry["name"], path) for entry in content["categories"]}
    for entry in content["annotations"]:
        if entry["image_id"] == images[0]["id"]:
            yield classes[entry["category_id"]], _coco_mask(entry["segmentation"], shape)


def _is_star(name: Any, path: Path) -> bool:
    text = str(name).strip().lower()
    if text not in _STAR + _GALAXY:
        raise FitsImageError(f"{path} has the class {text!r}; star and galaxy are wanted.")
    return text in _STAR


def _coco_mask(segmentation: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Draw polygons, or runs of pixels that go down the columns."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        runs = _unpack(counts) if isinstance(counts, str) else [int(count) for count in counts]
        if sum(runs) != shape[0] * shape[1] or min(runs) < 0:
            raise ValueError(f"runs of {sum(runs)} pixels for an image of {shape[1]} x {shape[0]}")
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape[::-1]).T
    mask = np.zeros(shape, bool)
    for polygon in segmentation:
        points = np.array(polygon, float).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise ValueError("a polygon has points that are not finite")
        # Pixels whose centre is inside; 0 is the edge of the first one.
        low = np.clip(np.floor(points.min(axis=0)).astype(int), 0, shape[::-1])
        high = np.clip(np.ceil(points.max(axis=0)).astype(int), 0, shape[::-1])
        y, x = np.mgrid[low[1] : high[1], low[0] : high[0]] + 0.5
        inside = np.zeros(y.shape, bool)
        for (x0, y0), (x1, y1) in itertools.pairwise([*points, points[0]]):
            if y0 != y1:
                inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        mask[low[1] : high[1], low[0] : high[0]] |= inside
    return mask


def _unpack(text: str) -> list[int]:
    """Read the runs that pycocotools packs into a text, five bits a letter."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a run has more than 60 bits")
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
