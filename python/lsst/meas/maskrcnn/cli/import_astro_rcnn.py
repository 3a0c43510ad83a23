# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``bin/import_astro_rcnn``: training sets of Astro R-CNN, with their truth,
in a Butler repository.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
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
from .command import CommandError
from .importing import (
    Field,
    FieldJob,
    add_common_options,
    by_band,
    made_up_center,
    parse_split,
    run_import,
    split_of,
)

# Sets of one folder of sets have tracts from a multiple of this.
_SETS_PER_FOLDER = 10_000


def _parser() -> argparse.ArgumentParser:
    rule = MaskRule()
    parser = argparse.ArgumentParser(
        prog="import_astro_rcnn",
        description="Import folders set_N with img_BAND.fits and masks.fits, as for Astro R-CNN, into a "
        "Butler repository: coadds, truth catalogues and each source's own pixels. What is there already is "
        "kept, so that an interrupted command goes on when it is repeated.",
    )
    parser.add_argument("repo", help="folder of the repository; made if it is not there")
    parser.add_argument(
        "folder", nargs="+", help="a set, a folder of sets, or one with training, validation and test folders"
    )
    parser.add_argument("--bands", nargs="+", default=["z", "r", "g"], help="default: z r g")
    parser.add_argument(
        "--mask-band",
        help="band of the images in masks.fits (default: the one whose images have the same flux)",
    )
    parser.add_argument(
        "--mask-rule",
        choices=("peakFraction", "isophote", "fluxFraction"),
        default=rule.kind,
        help="which pixels of a source are its mask (default: %(default)s)",
    )
    parser.add_argument(
        "--star-fraction", type=float, default=rule.star_fraction, help="of the peak (default: %(default)s)"
    )
    parser.add_argument(
        "--galaxy-fraction",
        type=float,
        default=rule.galaxy_fraction,
        help="of the peak (default: %(default)s)",
    )
    parser.add_argument(
        "--isophote", type=float, default=rule.isophote, help="in sky sigma (default: %(default)s)"
    )
    parser.add_argument(
        "--flux-fraction", type=float, default=rule.flux_fraction, help="of the flux (default: %(default)s)"
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="PX",
        help="smooth the masks with a Gaussian; Astro R-CNN has 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--min-area",
        type=int,
        default=rule.min_area,
        help="pixels below which a source is flagged (default: %(default)s)",
    )
    parser.add_argument(
        "--min-snr",
        type=float,
        default=rule.min_snr,
        help="S/N below which a source is flagged (default: %(default)s)",
    )
    parser.add_argument(
        "--gain", type=float, default=1.0, help="electrons per count, for the variance (default: %(default)s)"
    )
    parser.add_argument(
        "--split",
        default="auto",
        help="auto (by the folders' names), none, train, validation, test, or shares by the sets' numbers "
        "such as train=7,validation=1,test=2 (default: %(default)s)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out sources that cannot be read")
    add_common_options(parser, "imported/astro_rcnn", "maskRcnnAstroRcnn")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Import sets into a repository; return the exit status."""
    arguments = _parser().parse_args(argv)
    return run_import("import_astro_rcnn", arguments, lambda: _make_jobs(arguments))


def _make_jobs(arguments: argparse.Namespace) -> list[FieldJob]:
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


def _options(arguments: argparse.Namespace) -> AstroRcnnOptions:
    bands = tuple(arguments.bands)
    if arguments.mask_band is not None and arguments.mask_band not in bands:
        raise CommandError(f"--mask-band {arguments.mask_band} is not one of the bands {', '.join(bands)}.")
    try:
        rule = MaskRule(
            kind=arguments.mask_rule,
            band=arguments.mask_band or "",
            star_fraction=arguments.star_fraction,
            galaxy_fraction=arguments.galaxy_fraction,
            isophote=arguments.isophote,
            flux_fraction=arguments.flux_fraction,
            min_area=arguments.min_area,
            min_snr=arguments.min_snr,
        )
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


def _job(entry: SetFolder, arguments: argparse.Namespace, options: AstroRcnnOptions, split: str) -> FieldJob:
    images, masks = set_files(entry.path, options.bands)
    tract = arguments.tract + entry.parent * _SETS_PER_FOLDER + entry.number
    paths = [*images.values(), *([masks] if masks is not None else [])]

    def read() -> Field:
        fits = dataclasses.replace(options.fits, sky_center=made_up_center(tract))
        scene = read_set(entry.path, dataclasses.replace(options, fits=fits))
        height, width = scene.images.shape[1:]
        bbox = Box2I(Point2I(0, 0), Extent2I(width, height))
        stars = 0 if scene.sources is None else int(scene.sources["is_star"].sum())
        total = 0 if scene.sources is None else len(scene.sources)
        return Field(
            PatchGeometry(tract, 0, scene.wcs, bbox),
            lambda data_id: _products(scene, data_id),
            scene.notes,
            stars,
            total - stars,
        )

    return FieldJob(
        label=str(entry.path),
        tract=tract,
        patch=0,
        split=split,
        bands=options.bands,
        has_truth=masks is not None,
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
