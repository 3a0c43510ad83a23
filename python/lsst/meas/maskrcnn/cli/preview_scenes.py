# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn preview``: pages of pictures of what is in a Butler
repository, for a person to judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lsst.afw.image import ExposureF
from lsst.daf.butler import Butler, CollectionType, MissingCollectionError
from lsst.geom import Box2D, Box2I, Extent2I, Point2I

from ..catalogs.exposures import psf_image
from ..catalogs.truth import read_truth
from ..deblend.image import gaussian_fwhm
from ..report.overlay import lupton_rgb
from ..report.picture_book import PageField, save_page
from .command import Arguments, CommandError, check_limits, command, first_line
from .evaluation_runs import open_butler

_IMAGE = "deepCoadd_calexp"
_TRUTH = "maskRcnn_truth"
_SPECTRUM = "yzirgu"
"""Bands from red to blue."""


@dataclass(frozen=True)
class _Patch:
    """A patch of a collection that has images."""

    skymap: str
    tract: int
    patch: int
    bands: frozenset[str]

    @property
    def data_id(self) -> dict[str, str | int]:
        return {"skymap": self.skymap, "tract": self.tract, "patch": self.patch}


@dataclass(frozen=True)
class _Band:
    """One band of the middle of a patch, nJy."""

    image: np.ndarray
    noise: float
    fwhm: float
    pixel_scale: float
    box: Box2I


@command()
def run(arguments: Arguments) -> None:
    """Write pages of pictures of a repository, and print their paths."""
    _check(arguments)
    butler = open_butler(arguments.repo)
    collections = _collections(butler, arguments.repo, arguments.collection)
    chosen = {name: _spread(_patches(butler, name), arguments.count) for name in collections}
    empty = [name for name, patches in chosen.items() if not patches]
    if empty:
        raise CommandError(
            f"Collection {empty[0]!r} of {arguments.repo} has no {_IMAGE}; put scenes into it, for instance "
            "with maskrcnn simulate, or name another --collection."
        )
    bands = {name: _bands(name, patches, arguments.bands) for name, patches in chosen.items()}
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"The folder {arguments.out} cannot be made: {first_line(error)} Give another --out."
        ) from error
    paths: list[Path] = []
    total = sum(map(len, chosen.values()))
    with tqdm(total=total, unit="scene", disable=None) as progress:
        for name, patches in chosen.items():
            progress.set_description(name)
            fields = []
            for patch in patches:
                fields.append(_read_field(butler, name, patch, bands[name], arguments))
                progress.update()
            path = arguments.out / _file_name(name, paths)
            _save(path, fields, name, bands[name], arguments)
            paths.append(path)
    for path in paths:
        print(path)


def _check(arguments: Arguments) -> None:
    """Refuse numbers that cannot work."""
    check_limits(arguments, count=(1, math.inf), cutout=(16, math.inf), panel=(64, 8192), colors=(2, 256))
    for option, value in (("stretch", arguments.stretch), ("Q", arguments.softening)):
        if not (math.isfinite(value) and value > 0):
            raise CommandError(f"--{option} {value} is not possible; give a number above 0.")


def _collections(butler: Butler, repo: str, names: Sequence[str] | None) -> list[str]:
    """Return the collections to show.

    These are RUN collections with images; but those whose names begin alike
    are shown as one where there is a CHAINED collection of that name.
    """
    if names:
        for name in names:
            try:
                butler.collections.get_info(name)
            except MissingCollectionError as error:
                known = ", ".join(_collections(butler, repo, None))
                raise CommandError(
                    f"{repo} has no collection {name!r}; with images it has {known}."
                ) from error
        return list(dict.fromkeys(names))
    result: dict[str, None] = {}
    if butler.registry.queryDatasetTypes(_IMAGE):
        infos = butler.collections.query_info(
            "*", include_summary=True, collection_types={CollectionType.RUN}
        )
        for info in sorted(infos, key=lambda info: info.name):
            if info.dataset_types is None or _IMAGE in info.dataset_types:
                result[_chain_of(butler, info.name)] = None
    # What was deleted stays in a summary.
    filled = [name for name in result if _patches(butler, name)]
    if not filled:
        raise CommandError(
            f"{repo} has no {_IMAGE}; put scenes into it with maskrcnn simulate, maskrcnn ingest-fits or "
            "maskrcnn import-astro-rcnn."
        )
    return filled


def _chain_of(butler: Butler, run: str) -> str:
    """Return the CHAINED collection that a run belongs to by its name, or the run."""
    parts = run.split("/")
    for number in range(1, len(parts)):
        name = "/".join(parts[:number])
        try:
            kind = butler.collections.get_info(name).type
        except MissingCollectionError:
            continue
        if kind is CollectionType.CHAINED and run in butler.collections.query(name, flatten_chains=True):
            return name
    return run


def _patches(butler: Butler, collection: str) -> list[_Patch]:
    """Return the patches of a collection that have images, in order."""
    if not butler.registry.queryDatasetTypes(_IMAGE):
        return []
    refs = butler.query_datasets(_IMAGE, collections=collection, explain=False, limit=None)
    found: dict[tuple[str, int, int], set[str]] = {}
    for ref in refs:
        key = str(ref.dataId["skymap"]), int(ref.dataId["tract"]), int(ref.dataId["patch"])
        found.setdefault(key, set()).add(str(ref.dataId["band"]))
    return [_Patch(*key, frozenset(found[key])) for key in sorted(found)]


def _spread(patches: Sequence[_Patch], count: int) -> list[_Patch]:
    """Return so many of the patches, from all over."""
    if len(patches) <= count:
        return list(patches)
    return [patches[round(index)] for index in np.linspace(0, len(patches) - 1, count)]


def _bands(collection: str, patches: Sequence[_Patch], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Choose the bands of a collection: three from red to blue, or one."""
    common = set(patches[0].bands).intersection(*(patch.bands for patch in patches))
    if wanted is not None:
        lacking = [band for band in wanted if band not in common]
        if lacking:
            raise CommandError(
                f"Not all images of {collection!r} are there in {', '.join(lacking)}; give three of "
                f"{', '.join(_by_colour(common)) or 'none'} with --bands, or other collections."
            )
        return tuple(wanted)
    if not common:
        raise CommandError(f"The images of {collection!r} have no band in common; name it with --bands.")
    if {"z", "r", "g"} <= common:
        return ("z", "r", "g")
    ordered = _by_colour(common)
    if len(ordered) < 3:
        return (ordered[0],)
    # The reddest first, since few instruments see much at the other end.
    return tuple(ordered[index] for index in ((0, 1, 2) if len(ordered) == 3 else (0, len(ordered) // 2, -1)))


def _by_colour(bands: set[str]) -> list[str]:
    return sorted(bands, key=lambda band: (_SPECTRUM.find(band) % 99, band))


def _read_field(
    butler: Butler, collection: str, patch: _Patch, bands: Sequence[str], arguments: Arguments
) -> PageField:
    """Read a patch and make its picture."""
    try:
        planes = [_read_band(butler, collection, patch, band, arguments.cutout) for band in bands]
        box, pixel_scale = planes[0].box, planes[0].pixel_scale
        if any(plane.box != box for plane in planes):
            raise ValueError("its bands differ in size or place.")
        catalog = None
        if butler.registry.queryDatasetTypes(_TRUTH):
            ref = butler.find_dataset(_TRUTH, patch.data_id, collections=collection)
            catalog = None if ref is None else butler.get(ref)
        truth = None if catalog is None else read_truth(catalog, box)
    except Exception as error:
        where = ", ".join(f"{key} {value}" for key, value in patch.data_id.items())
        raise CommandError(
            f"The images at {where} of {collection!r} cannot be read: {first_line(error)}"
        ) from error
    image = np.stack([plane.image for plane in planes])
    noise = np.array([plane.noise for plane in planes])
    options: dict[str, Any] = {"stretch_sigma": arguments.stretch, "softening": arguments.softening}
    if len(planes) == 1:
        image, noise = np.repeat(image, 3, axis=0), np.repeat(noise, 3)
        options["balance"] = (1.0, 1.0, 1.0)
    rgb = lupton_rgb(image, noise if np.isfinite(noise).all() else None, **options)
    words = [f"tract {patch.tract}, patch {patch.patch}"]
    if truth is None:
        known: Mapping[str, Any] = {}
    else:
        height, width = rgb.shape[:2]
        inside = (np.abs(truth.x - 0.5 * (width - 1)) <= 0.5 * width) & (
            np.abs(truth.y - 0.5 * (height - 1)) <= 0.5 * height
        )
        words.append(
            f"{inside.sum()} sources, {(inside & truth.is_star).sum()} stars among them, "
            f"{(inside & truth.flagged).sum()} flagged"
        )
        known = {
            "masks": truth.masks,
            "origins": truth.origins,
            "is_star": truth.is_star,
            "flagged": truth.flagged,
            "has_truth": True,
        }
    names = ", ".join(bands)
    if all(np.isfinite(plane.fwhm) for plane in planes):
        words.append(f"seeing {', '.join(f'{plane.fwhm:.2f}' for plane in planes)} arcsec in {names}")
    if np.isfinite(noise).all():
        words.append(f"noise {', '.join(f'{plane.noise:.3g}' for plane in planes)} nJy per pixel")
    return PageField(rgb, pixel_scale, "; ".join(words), **known)


def _read_band(butler: Butler, collection: str, patch: _Patch, band: str, cutout: int) -> _Band:
    """Read the middle of a coadd and what the caption says of it."""
    exposure: ExposureF = butler.get(_IMAGE, patch.data_id, band=band, collections=collection)
    whole = exposure.getBBox()
    width, height = min(whole.getWidth(), cutout), min(whole.getHeight(), cutout)
    start = Point2I(
        whole.getMinX() + (whole.getWidth() - width) // 2, whole.getMinY() + (whole.getHeight() - height) // 2
    )
    box = Box2I(start, Extent2I(width, height))
    part = exposure[box]
    calib = exposure.getPhotoCalib()
    to_njy = 1.0 if calib is None else calib.getCalibrationMean()
    variance = part.variance.array
    valid = np.isfinite(variance) & (variance > 0)
    noise = to_njy * math.sqrt(float(np.median(variance[valid]))) if valid.any() else math.nan
    wcs = exposure.getWcs()
    center = Box2D(box).getCenter()
    scale = 1.0 if wcs is None else wcs.getPixelScale(center).asArcseconds()
    psf = psf_image(part, 0.5 * (height - 1), 0.5 * (width - 1))
    return _Band(
        # Nothing of the whole coadd is kept.
        image=(to_njy * part.image.array).astype(np.float32),
        noise=noise,
        fwhm=math.nan if psf is None else scale * gaussian_fwhm(psf),
        pixel_scale=scale,
        box=box,
    )


def _file_name(collection: str, taken: Sequence[Path]) -> str:
    """Name a page after its collection, unlike all others."""
    stem = name = collection.replace("/", "_")
    number = 1
    while any(path.stem == name for path in taken):
        number += 1
        name = f"{stem}-{number}"
    return f"{name}.png"


def _save(
    path: Path, fields: Sequence[PageField], collection: str, bands: Sequence[str], arguments: Arguments
) -> None:
    """Write a page."""
    shown = f"{bands[0]} in grey" if len(bands) == 1 else f"{', '.join(bands)} as red, green, blue"
    try:
        save_page(
            path,
            fields,
            title=collection,
            subtitle=f"{shown}; asinh scale, stretch {arguments.stretch:g} sigma, Q {arguments.softening:g}",
            outlines=not arguments.no_outlines,
            panel=arguments.panel,
            colors=arguments.colors,
        )
    except OSError as error:
        raise CommandError(f"The page {path} cannot be written: {first_line(error)}") from error
