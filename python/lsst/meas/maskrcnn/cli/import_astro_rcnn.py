# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn import-astro-rcnn``: training sets of Astro R-CNN, with their truth,
in a Butler repository.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lsst.daf.butler import DataCoordinate
from lsst.geom import Box2I, Extent2I, Point2I
from lsst.meas.base import SkyMapIdGeneratorConfig

from ..catalogs.truth import make_truth_catalog, make_truth_flux
from ..ingest.astro_rcnn import AstroRcnnOptions, SetFolder, choose_mask_band, find_sets, read_set, set_files
from ..ingest.exposures import scene_to_exposures, truth_to_exposures
from ..ingest.fits_images import FitsOptions
from ..ingest.import_repo import digest_files
from ..ingest.imported import ImportedScene
from ..ingest.repo import PatchGeometry
from ..scenes.config import MaskRule
from .command import Arguments, CommandError
from .importing import Field, FieldJob, by_band, import_command, made_up_center, parse_split, split_of

# Sets of one folder of sets have tracts from a multiple of this.
_SETS_PER_FOLDER = 10_000


@import_command
def run(arguments: Arguments) -> list[FieldJob]:
    """Find the sets and settle how they are read."""
    split = parse_split(arguments.split)
    sets = find_sets(arguments.folder, arguments.bands)
    options = _options(arguments)
    if not options.mask_rule.band:
        band, note = choose_mask_band(sets, options)
        if note:
            print(note)
        options = dataclasses.replace(options, mask_rule=dataclasses.replace(options.mask_rule, band=band))
    jobs = []
    for entry in sets:
        if entry.number >= _SETS_PER_FOLDER:
            raise CommandError(
                f"{entry.path} has a number above {_SETS_PER_FOLDER - 1}; rename it, or import it by itself."
            )
        jobs.append(_job(entry, arguments, options, split_of(split, entry.number, entry.split)))
    return jobs


def _options(arguments: Arguments) -> AstroRcnnOptions:
    bands = tuple(arguments.bands)
    if arguments.mask_band is not None and arguments.mask_band not in bands:
        raise CommandError(f"--mask-band {arguments.mask_band} is not one of the bands {', '.join(bands)}.")
    try:
        names = ("star_fraction", "galaxy_fraction", "isophote", "flux_fraction", "min_area", "min_snr")
        given = {name: getattr(arguments, name) for name in names} | {"kind": arguments.mask_rule}
        given = {name: value for name, value in given.items() if value is not None}
        rule = MaskRule(band=arguments.mask_band or "", **given)
    except ValueError as error:
        raise CommandError(str(error)) from error
    fits = FitsOptions(
        zero_points=by_band(arguments.zeropoint, bands, "--zeropoint"),
        pixel_scale=arguments.pixel_scale,
        psf_fwhm=by_band(arguments.psf_fwhm, bands, "--psf-fwhm"),
        saturation=by_band(arguments.saturation, bands, "--saturation"),
        gain=arguments.gain,
        common_saturation=True,
        noise=by_band(arguments.noise, bands, "--noise"),
        sky=arguments.sky,
        mesh_size=arguments.sky_mesh,
    )
    return AstroRcnnOptions(bands, fits, rule, arguments.smooth, arguments.skip_bad)


def _job(entry: SetFolder, arguments: Arguments, options: AstroRcnnOptions, split: str) -> FieldJob:
    images, masks = set_files(entry.path, options.bands)
    tract = arguments.tract + entry.parent * _SETS_PER_FOLDER + entry.number
    paths = [*images.values(), *([masks] if masks is not None else [])]

    def read() -> Field:
        fits = dataclasses.replace(options.fits, sky_center=made_up_center(tract))
        scene = read_set(entry.path, dataclasses.replace(options, fits=fits))
        height, width = scene.images.shape[1:]
        bbox = Box2I(Point2I(0, 0), Extent2I(width, height))
        geometry = PatchGeometry(tract, 0, scene.wcs, bbox)
        return Field(geometry, lambda data_id: _products(scene, data_id), scene.notes, scene.sources)

    return FieldJob(
        label=str(entry.path),
        tract=tract,
        patch=0,
        split=split,
        bands=options.bands,
        has_truth=masks is not None,
        paths=paths,
        digest=lambda: digest_files(paths, options),
        read=read,
    )


def _products(scene: ImportedScene, data_id: DataCoordinate) -> Mapping[str, Any]:
    """Make what is stored of a set."""
    exposures = scene_to_exposures(scene, wcs=scene.wcs)
    products: dict[str, Any] = {"exposures": exposures}
    if scene.sources is None:
        return products
    xy0 = Point2I(0, 0)
    generator = SkyMapIdGeneratorConfig().apply(data_id)
    truth = make_truth_catalog(scene, scene.wcs, xy0, generator.make_table_id_factory())
    images = truth_to_exposures(scene, exposures)
    products["truth"] = truth
    products["truthFlux"] = {
        band: make_truth_flux(scene, band, xy0, truth["id"]) for band in scene.model_bands
    }
    products["truthImages"] = {band: images[band] for band in scene.model_bands}
    return products
