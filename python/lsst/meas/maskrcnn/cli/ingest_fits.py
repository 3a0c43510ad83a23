# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn ingest-fits``: any FITS images, one per band, in a Butler repository."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lsst.afw.geom import SkyWcs
from lsst.daf.butler import DataCoordinate
from lsst.geom import Point2I
from lsst.meas.base import SkyMapIdGeneratorConfig

from ..catalogs.truth import make_truth_catalog
from ..ingest.exposures import field_to_exposures
from ..ingest.fits_files import BandFiles, find_fits
from ..ingest.fits_images import FitsOptions, read_field
from ..ingest.import_repo import digest_files
from ..ingest.imported import import_field
from ..ingest.label_truth import add_label_truth
from ..ingest.repo import PatchGeometry
from .command import Arguments, CommandError, check_bands
from .importing import SPLITS, Field, FieldJob, by_band, import_command, made_up_center, parse_split, split_of

_COMPANIONS = ("variance", "weight", "rms", "mask")
_PLACES = ("name", "tract", "patch", "split", "zeropoint", "truth")


@dataclass
class _Entry:
    """A field and where it goes."""

    label: str
    files: dict[str, BandFiles]
    tract: int
    patch: int
    split: str = ""
    zero_points: dict[str, float] = field(default_factory=dict)
    truth: Path | None = None


@import_command
def run(arguments: Arguments) -> list[FieldJob]:
    """Sort the arguments into fields."""
    given = [name for name in ("band", "fits", "table", "dirs") if getattr(arguments, name)]
    if len(given) != 1:
        listed = " and ".join(f"--{name}" for name in given)
        listed = f"{listed} do not go together" if given else "There are no images"
        raise CommandError(f"{listed}; give one of --band, --fits, --table and --dirs.")
    if given[0] in ("table", "dirs") and any(getattr(arguments, name) for name in _COMPANIONS):
        raise CommandError(
            f"--variance, --weight, --rms and --mask go with --band or --fits, not with --{given[0]}; "
            "use columns of a --table."
        )
    if given[0] in ("table", "dirs") and arguments.truth:
        raise CommandError(f"--truth goes with --band or --fits, not with --{given[0]}; use a --table.")
    bands = tuple(arguments.bands or ("g", "r", "z"))
    check_bands(bands)
    split = parse_split(arguments.split)
    if given[0] == "table":
        entries = _from_table(arguments)
    elif given[0] == "dirs":
        entries = _from_folders(arguments, bands)
    else:
        entries = [_from_options(arguments, bands)]
    jobs = []
    for index, entry in enumerate(entries):
        named = entry.split or split_of(split, index, "")
        options = fits_options(arguments, tuple(entry.files), entry.zero_points)
        jobs.append(_job(entry, options, named))
    return jobs


def _pairs(words: Sequence[str], option: str) -> dict[str, Path]:
    """Read BAND=FILE."""
    result: dict[str, Path] = {}
    for word in words:
        band, separator, name = word.partition("=")
        if not separator or not band or not name:
            raise CommandError(f"{option} {word} is not understood; write it like g=image_g.fits.")
        if band in result:
            raise CommandError(f"{option} names band {band!r} twice; give one file per band.")
        result[band] = Path(name)
    return result


def _from_options(arguments: Arguments, bands: tuple[str, ...]) -> _Entry:
    """One field, from --band or --fits."""
    if arguments.band:
        images = _pairs(arguments.band, "--band")
    elif len(arguments.fits) == 1:
        images = dict.fromkeys(bands, Path(arguments.fits[0]))
    elif len(arguments.fits) == len(bands):
        images = {band: Path(name) for band, name in zip(bands, arguments.fits)}
    else:
        raise CommandError(
            f"--fits has {len(arguments.fits)} files for the bands {', '.join(bands)}; give one per "
            "band, or a cube, and name the bands with --bands."
        )
    extra = {name: _pairs(getattr(arguments, name), f"--{name}") for name in _COMPANIONS}
    for name, files in extra.items():
        unknown = [band for band in files if band not in images]
        if unknown:
            raise CommandError(f"--{name} is given for {', '.join(unknown)}, of which there is no image.")
    fields = {
        band: BandFiles(path, **{name: extra[name].get(band) for name in _COMPANIONS})
        for band, path in images.items()
    }
    label = ", ".join(dict.fromkeys(path.name for path in images.values()))
    truth = Path(arguments.truth) if arguments.truth else None
    return _Entry(label, fields, arguments.tract, arguments.patch, truth=truth)


def _from_folders(arguments: Arguments, bands: tuple[str, ...]) -> list[_Entry]:
    """A field per folder."""
    if "{band}" not in arguments.pattern:
        raise CommandError(f"--pattern {arguments.pattern} must hold {{band}}, like img_{{band}}.fits.")
    entries = []
    for index, folder in enumerate(map(Path, arguments.dirs)):
        files = {}
        for band in bands:
            name = folder / arguments.pattern.replace("{band}", band)
            path = find_fits(name)
            if path is None:
                raise CommandError(
                    f"There is no {name} (nor .gz, .fz); check the folder, --pattern and --bands."
                )
            files[band] = BandFiles(path)
        entries.append(_Entry(str(folder), files, arguments.tract + index, arguments.patch))
    return entries


def _from_table(arguments: Arguments) -> list[_Entry]:
    """A field per row of a table."""
    path = Path(arguments.table)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = names
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CommandError(f"The table {path} cannot be read: {error}") from error
    bands = arguments.bands or [
        name
        for name in names
        if name not in _PLACES and not re.match(r"(variance|weight|rms|mask|zeropoint)_", name)
    ]
    known = {*_PLACES, *bands, *(f"{kind}_{band}" for kind in (*_COMPANIONS, "zeropoint") for band in bands)}
    missing, odd = (
        [band for band in bands if band not in names],
        [name for name in names if name not in known],
    )
    if not bands or missing or odd:
        raise CommandError(
            f"{path} has the columns {', '.join(names)}; columns named after bands are wanted"
            f"{', missing: ' + ', '.join(missing) if missing else ''}"
            f"{', not understood: ' + ', '.join(odd) if odd else ''}."
        )
    entries = []
    for index, row in enumerate(rows):
        where = f"{path}, row {index + 1}"
        entries.append(_from_row(arguments, row, bands, path.parent, where, index))
    return entries


def _from_row(
    arguments: Arguments, row: dict[str, Any], bands: Sequence[str], base: Path, where: str, index: int
) -> _Entry:
    """Read a row of a table."""
    if None in row or None in row.values():
        raise CommandError(f"{where} has not as many values as there are columns.")
    values = {name: value.strip() for name, value in row.items() if value.strip()}
    files = {}
    for band in bands:
        if band not in values:
            raise CommandError(f"{where} has no image in {band}; every field needs all bands.")
        extra = {kind: base / values[f"{kind}_{band}"] for kind in _COMPANIONS if f"{kind}_{band}" in values}
        files[band] = BandFiles(base / values[band], **extra)
    try:
        tract = int(values.get("tract", arguments.tract + index))
        patch = int(values.get("patch", arguments.patch))
        zero_points = {
            band: float(values.get(f"zeropoint_{band}", values.get("zeropoint", "nan"))) for band in bands
        }
    except ValueError as error:
        raise CommandError(f"{where}: {error}; tract and patch are integers.") from error
    split = values.get("split", "")
    if split and split not in SPLITS:
        raise CommandError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}.")
    known = {band: value for band, value in zero_points.items() if value == value}
    truth = base / values["truth"] if "truth" in values else None
    return _Entry(values.get("name", where), files, tract, patch, split, known, truth)


def fits_options(
    arguments: Arguments, bands: Sequence[str], zero_points: dict[str, float] | None = None
) -> FitsOptions:
    """Say how the images of some bands are read."""
    magnitudes = {**(by_band(arguments.zeropoint, bands, "--zeropoint") or {}), **(zero_points or {})}
    return FitsOptions(
        zero_points=magnitudes or None,
        pixel_scale=arguments.pixel_scale,
        psf_fwhm=by_band(arguments.psf_fwhm, bands, "--psf-fwhm"),
        hdu=arguments.hdu,
        mask_bits=_mask_bits(arguments.mask_bits),
        saturation=by_band(arguments.saturation, bands, "--saturation"),
        gain=by_band(arguments.gain, bands, "--gain"),
        noise=by_band(arguments.noise, bands, "--noise"),
        sky=arguments.sky,
        mesh_size=arguments.sky_mesh,
        rescale=arguments.rescale,
        resample=arguments.resample,
        background=arguments.background,
    )


def _mask_bits(words: Sequence[str] | None) -> dict[str, int] | None:
    """Read PLANE=BIT[,BIT]."""
    if not words:
        return None
    result: dict[str, int] = {}
    for word in words:
        plane, _, numbers = word.partition("=")
        bits = numbers.split(",")
        if not plane or not all(bit.isdecimal() and int(bit) < 63 for bit in bits):
            raise CommandError(f"--mask-bits {word} is not understood; write it like BAD=0,5.")
        for bit in bits:
            result[plane] = result.get(plane, 0) | 1 << int(bit)
    return result


def _job(entry: _Entry, options: FitsOptions, split: str) -> FieldJob:
    paths = [
        path for files in entry.files.values() for path in dataclasses.astuple(files) if path is not None
    ]

    if entry.truth is not None:
        paths.append(entry.truth)

    def digest() -> str:
        names = [
            (band, [name for name, path in dataclasses.asdict(files).items() if path is not None])
            for band, files in entry.files.items()
        ]
        return digest_files(paths, (names, options))

    def read() -> Field:
        images = read_field(entry.files, dataclasses.replace(options, sky_center=made_up_center(entry.tract)))
        exposures = field_to_exposures(images)
        exposure = next(iter(exposures.values()))
        wcs = cast(SkyWcs, exposure.getWcs())
        geometry = PatchGeometry(entry.tract, entry.patch, wcs, exposure.getBBox())
        if entry.truth is None:
            return Field(geometry, lambda data_id: {"exposures": exposures}, images.notes)
        scene = import_field(", ".join(path.name for path in paths), images)
        add_label_truth(scene, entry.truth)

        def products(data_id: DataCoordinate) -> dict[str, Any]:
            ids = SkyMapIdGeneratorConfig().apply(data_id).make_table_id_factory()
            return {"exposures": exposures, "truth": make_truth_catalog(scene, wcs, Point2I(0, 0), ids)}

        return Field(geometry, products, scene.notes, scene.sources)

    return FieldJob(
        label=entry.label,
        tract=entry.tract,
        patch=entry.patch,
        split=split,
        bands=tuple(entry.files),
        has_truth=entry.truth is not None,
        paths=paths,
        digest=digest,
        read=read,
    )
