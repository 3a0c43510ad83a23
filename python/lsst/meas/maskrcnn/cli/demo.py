# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``bin/demo``: the whole line, from three images to a catalogue and a
picture, in a Butler repository of its own.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from lsst.daf.butler import Butler
from lsst.geom import Box2D

from ..catalogs.exposures import to_multiband_image
from ..catalogs.footprints import footprints_to_masks
from ..catalogs.model_images import cut_blends
from ..catalogs.tables import short_object_columns
from ..deblend.image import MultibandImage
from ..images.files import locked
from ..images.units import AB_ZERO_POINT
from ..ingest.exposures import field_to_exposures, scene_to_exposures
from ..ingest.fits_files import BandFiles, FitsImageError, assign_bands
from ..ingest.fits_images import read_field
from ..ingest.ingest_model import IngestModelError, ingest_model
from ..ingest.repo import PatchGeometry, open_repo, patch_data_id, put_exposures, register_patches
from ..network.model_file import ModelFileError, ModelMetadata, default_model_path, read_metadata
from ..network.wavelengths import band_wavelength
from ..report.model_gallery import plot_field
from ..report.overlay import mask_outlines, save_overlay, write_regions
from ..scenes.presets import preset_config
from ..scenes.simulate import simulate_scene
from .command import Arguments, CommandError, check_bands, check_limits, command
from .ingest_fits import fits_options
from .paths import package_dir, pipeline_path

if TYPE_CHECKING:
    from astropy.table import Table

    from lsst.afw.geom import SkyWcs
    from lsst.afw.image import ExposureF
    from lsst.afw.table import SourceCatalog

_MARKER = "made_by_meas_maskrcnn_demo"
_XY0 = (12000, 8000)

_CHILD = """
import os, runpy, signal, sys, threading

def end_with_parent():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=end_with_parent, daemon=True).start()
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script until it ends, or until the process that holds the other end of its standard input does."""

_CAUSE = re.compile(r"(ERROR|CRITICAL)\b(?!.*\btraceback:)|^[\w.]*(Error|Exception)\b")
"""A line of the log that says why pipetask failed."""

_USUAL_BANDS = ("g", "r", "z")
"""Bands of the simulated field, and of three images that do not say theirs."""


@dataclass
class Field:
    """A field of sky, ready for the repository."""

    name: str
    """A name that is different for different contents."""

    description: str
    """What to call it in the title."""

    exposures: dict[str, ExposureF]
    truth: np.ndarray | None = None
    """Sources that were drawn, for a simulated field."""

    has_sky: bool = True
    """Whether its world coordinates are those of the images, and not made up."""


class _Steps:
    """Prints the six steps with the time that has passed."""

    def __init__(self) -> None:
        self._number = 0
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        self._number += 1
        passed = time.monotonic() - self._start
        print(f"[{self._number}/6] {passed:5.1f} s  {text}", flush=True)


@command(FitsImageError, ModelFileError, IngestModelError, advice="; run it again to go on")
def run(arguments: Arguments) -> None:
    """Run the demonstration."""
    # Refuse what cannot work before anything is made.
    arguments.model = arguments.model if arguments.model is not None else default_model_path()
    if not arguments.model.is_file():
        raise CommandError(f"There is no model file {arguments.model}; name one with --model.")
    metadata = read_metadata(arguments.model)
    check_limits(arguments, cores=(1, math.inf), seed=(0, math.inf))
    check_bands(arguments.bands)
    arguments.config = [_with_label(text) for text in arguments.config]

    out = arguments.out.absolute()
    steps = _Steps()
    if arguments.fits:
        steps(f"reading {len(arguments.fits)} FITS images")
        field = _fits_field(arguments, metadata)
    else:
        steps(f"simulating a field of {arguments.size[0]} x {arguments.size[1]} pixels")
        field = _simulated_field(arguments, metadata)
    missing = set(metadata.bands) - set(field.exposures)
    # A change to the configuration may map them.
    if missing and not arguments.config:
        raise CommandError(
            f"Model {metadata.name} needs bands {', '.join(metadata.bands)}, but there are "
            f"{', '.join(field.exposures)}; give others, or another --model."
        )

    _make_folder(out)
    try:
        with locked(out / ".demo.lock", wait=False):
            _find_sources(arguments, metadata, field, out, steps)
    except BlockingIOError as error:
        raise CommandError(
            f"Another demo is working in {out}; wait for it, or give another --out."
        ) from error


def _with_label(text: str) -> str:
    """Put the label of the task before a change to its configuration that has none."""
    field, equals, _ = text.partition("=")
    if not equals:
        raise CommandError(f"--config {text} is not understood; write it like detection.score_threshold=0.3.")
    return text if ":" in field else f"maskRcnnDeblend:{text}"


def _find_sources(
    arguments: Arguments, metadata: ModelMetadata, field: Field, out: Path, steps: _Steps
) -> None:
    """Find the sources of a field, and lay them out in the folder."""
    steps(f"Butler repository {out / 'repo'}")
    butler = open_repo(out / "repo")
    inputs, data_id = _put_field(butler, field)
    steps(f"model {metadata.name} (bands {', '.join(metadata.bands or field.exposures)})")
    model_digest = _digest(arguments.model.read_bytes())
    models = f"models/{metadata.name}/{model_digest}"
    # pipetask wants the same inputs whenever it adds a run to an output collection.
    output = f"demo/outputs/{field.name}/{model_digest}"
    ingest_model(butler, arguments.model, models)

    words = {
        "--butler-config": str(out / "repo"),
        "--pipeline": str(pipeline_path("MaskRcnnDeblend.yaml")),
        "--input": f"{inputs},{models}",
        "--output": output,
        "--data-query": " AND ".join(f"{key}={value!r}" for key, value in data_id.items()),
        "--cores-per-quantum": str(arguments.cores or _usable_cores()),
    }
    options = ["run", *(word for pair in words.items() for word in pair), "--register-dataset-types"]
    for override in arguments.config:
        options += ["--config", override]
    steps("pipetask:")
    print("    " + shlex.join(["pipetask", *options]), flush=True)
    _run_pipetask([_pipetask(), *options], out / "pipetask.log")

    steps("catalogue, picture, regions")
    catalog: SourceCatalog = butler.get("deepCoadd_maskRcnnCatalog", data_id, collections=output)
    _replace(out / "catalog.fits", lambda path: catalog.writeFits(str(path)))
    # Tables can also be read with pandas, which is not needed.
    logging.getLogger("lsst.daf.butler._storage_class").setLevel(logging.ERROR)
    objects: Table = butler.get("deepCoadd_maskRcnnObject", data_id, collections=output)
    short = objects[short_object_columns(objects, list(field.exposures))]
    _replace(out / "objects.parquet", lambda path: short.write(path, format="parquet"))
    by_band = {
        band: butler.get("deepCoadd_maskRcnnDeblended", data_id, band=band, collections=output)
        for band in field.exposures
    }
    # Parents are in the tables; what follows is about sources.
    is_source = np.asarray(catalog["deblend_nChild"]) == 0
    catalog = catalog[is_source].copy(deep=True)
    by_band = {band: one[is_source].copy(deep=True) for band, one in by_band.items()}
    image = to_multiband_image(field.exposures)
    _draw_blends(out, field, image, catalog, by_band, objects)
    _write_pictures(out, field, image, catalog)
    run = butler.find_dataset("deepCoadd_maskRcnnCatalog", data_id, collections=output)
    steps("done")
    print()
    print("\n".join([*_summarize(field, image, catalog), "", *_brightest(objects, image.bands), ""]))
    print(f"Picture          {out / 'overlay.png'}")
    print(f"Blends, counts   {out / 'blends.png'}")
    print(f"DS9 regions      {out / 'regions.reg'}")
    print(f"Object table     {out / 'objects.parquet'}")
    print(f"Catalogue, FITS  {out / 'catalog.fits'}")
    print(f"In the Butler    {out / 'repo'}, deepCoadd_maskRcnnCatalog")
    print(f"  collection     {run.run if run is not None else output}")
    print(f"Log of pipetask  {out / 'pipetask.log'}")


def _usable_cores() -> int:
    # macOS has no affinity.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:10]


def _simulated_field(arguments: Arguments, metadata: ModelMetadata) -> Field:
    """Simulate a field."""
    width, height = arguments.size
    if min(width, height) < 64 or max(width, height) > 8192:
        raise CommandError(f"A field of {width} x {height} pixels is not possible; give sides of 64 to 8192.")
    bands = tuple(arguments.bands or metadata.bands or _USUAL_BANDS)
    try:
        config = preset_config("hsc-wide", shape=(height, width), bands=bands)
    except (KeyError, ValueError) as error:
        raise CommandError(f"--bands {' '.join(bands)} is not possible: {error}") from error
    scene = simulate_scene(config, np.random.default_rng(arguments.seed))
    exposures = scene_to_exposures(scene, xy0=_XY0)
    # The pixels go into the name, so that a changed simulator does not meet its older fields.
    digest = _digest(np.ascontiguousarray(scene.images).tobytes())
    return Field(
        f"sim_{width}x{height}_{arguments.seed}_{digest}",
        f"simulated field, seed {arguments.seed}",
        exposures,
        scene.sources,
    )


def _fits_field(arguments: Arguments, metadata: ModelMetadata) -> Field:
    """Read the user's images."""
    # By convention the shortest wavelength comes first.
    paths = list(arguments.fits if arguments.bands else dict.fromkeys(arguments.fits))
    if len(paths) == 1 and arguments.bands:
        # All bands are in one file.
        paths *= len(arguments.bands)
    wanted = arguments.bands or sorted(metadata.bands, key="ugrizy".find)
    if not wanted and len(arguments.fits) == len(_USUAL_BANDS):
        wanted = _USUAL_BANDS if len(paths) == len(_USUAL_BANDS) else ()
    bands, notes = assign_bands(paths, wanted, fixed=bool(arguments.bands or metadata.bands))
    if len(paths) < len(arguments.fits):
        notes.append("A file that was given several times is used once.")
    if not metadata.bands and not arguments.config:
        # Where the configuration is changed, wavelengths and bands may be as well: the task checks them.
        _check_wavelengths(bands)
    options = fits_options(arguments, bands)
    images = read_field({band: BandFiles(path) for band, path in zip(bands, paths)}, options)
    for note in [*notes, *images.notes]:
        print(f"    {note}")
    contents = [path.read_bytes() for path in paths]
    digest = _digest(b"".join([*contents, repr((bands, options)).encode()]))
    names = ", ".join(dict.fromkeys(path.name for path in paths))
    return Field(f"fits_{digest}", names, field_to_exposures(images), has_sky=images.has_sky)


def _check_wavelengths(bands: Sequence[str]) -> None:
    """Refuse bands that no model can take, before anything is made."""
    for band in bands:
        try:
            band_wavelength(band)
        except ValueError as error:
            words = f"maskRcnnDeblend:wavelengths={{'{band}': 620.0}}"
            raise CommandError(f'{error}; --config "{words}" gives one.') from error


def _make_folder(out: Path) -> None:
    """Make the folder, unless an earlier run did."""
    repo = out / "repo"
    marker = out / _MARKER
    if out.exists() and not out.is_dir():
        raise CommandError(f"{out} is a file; give a folder with --out.")
    if marker.exists():
        return
    if repo.exists() and any(repo.iterdir()):
        raise CommandError(f"{repo} was not made by bin/demo and is left alone; give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    # First the mark: a repository without one would be taken for the user's.
    marker.write_text(
        "This folder was made by bin/demo of meas_maskrcnn and can be removed.\n", encoding="utf-8"
    )


def _put_field(butler: Butler, field: Field) -> tuple[str, dict[str, str | int]]:
    """Put a field into the repository, unless it is there."""
    skymap = f"demo_{field.name}"
    exposure = next(iter(field.exposures.values()))
    patch = PatchGeometry(0, 0, cast("SkyWcs", exposure.getWcs()), exposure.getBBox())
    register_patches(butler, skymap, [patch], field.exposures, instrument="MaskRcnnDemo")
    run = f"demo/inputs/{field.name}"
    data_id = patch_data_id(skymap, 0, 0)
    put_exposures(butler, run, data_id, field.exposures)
    return run, data_id


def _pipetask() -> str:
    """Find the command ``pipetask`` of this Python."""
    beside = Path(sys.executable).parent / "pipetask"
    found = str(beside) if beside.is_file() else shutil.which("pipetask")
    if found is None:
        raise CommandError("The command pipetask was not found; install lsst-ctrl-mpexec.")
    return found


def _run_pipetask(command: Sequence[str], log: Path) -> None:
    """Run pipetask, showing and keeping what it says."""
    environment = {**os.environ, "MEAS_MASKRCNN_DIR": str(package_dir()), "PYTHONUNBUFFERED": "1"}
    last, cause = "it said nothing", ""
    with (
        log.open("w", encoding="utf-8") as stream,
        subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        ) as process,
    ):
        if process.stdout is not None:
            for line in process.stdout:
                stream.write(line)
                stream.flush()
                last = line.strip() or last
                # The first error is the cause; those after it only say that something failed.
                if not cause and _CAUSE.search(line):
                    cause = last
                print("    " + line, end="", flush=True)
    if process.returncode != 0:
        raise CommandError(
            f"pipetask failed (status {process.returncode}): {cause or last}; the whole log is {log}"
        )


def _write_pictures(out: Path, field: Field, image: MultibandImage, catalog: SourceCatalog) -> None:
    """Write the picture and the regions."""
    exposure = next(iter(field.exposures.values()))
    masks, origins = footprints_to_masks([record.getFootprint() for record in catalog], exposure.getBBox())
    is_star = np.asarray(catalog["maskrcnn_star"], dtype=bool)
    ids = np.asarray(catalog["id"])
    wcs = _astropy_wcs(exposure) if field.has_sky else None
    shown = _shown_bands(image.bands)
    planes = [image.bands.index(band) for band in shown]
    noise = _noise(image)[planes]
    names = ", ".join(f"{band} {name}" for band, name in zip(shown, ("red", "green", "blue")))
    if len(image.bands) == 1:
        names = shown[0]
    calibrated = set(shown).isdisjoint(_without_zero_point(image))
    if not calibrated:
        names += ", each in units of its noise"
    title = f"{_shorten(field.description)}: {len(catalog)} sources ({names})"
    _replace(
        out / "overlay.png",
        lambda path: save_overlay(
            path,
            image.flux[planes],
            masks,
            origins,
            is_star,
            ids,
            noise=noise if (noise > 0).all() else None,
            wcs=wcs,
            pixel_scale=image.pixel_scale,
            title=title,
            # One band is grey.
            calibrated=calibrated and len(image.bands) > 1,
        ),
    )
    comment = "sources found by meas_maskrcnn: stars yellow, galaxies blue"
    outlines = mask_outlines(masks, origins)
    _replace(
        out / "regions.reg", lambda path: write_regions(path, outlines, is_star, ids, wcs, comment=comment)
    )


def _shown_bands(bands: Sequence[str]) -> list[str]:
    """Three bands for a picture, the reddest first; fewer are shown twice."""
    order = sorted(bands, key=_place_in_spectrum, reverse=True)
    return [order[index] for index in np.rint(np.linspace(0, len(order) - 1, 3)).astype(int)]


def _with_models(objects: Table, bands: Sequence[str]) -> list[str]:
    """Bands that have fluxes of models, as their PSF is known; all where none has."""
    modelled = [band for band in bands if np.isfinite(np.asarray(objects[f"{band}_sersicFlux"])).any()]
    return modelled or list(bands)


def _draw_blends(
    out: Path,
    field: Field,
    image: MultibandImage,
    catalog: SourceCatalog,
    by_band: dict[str, SourceCatalog],
    objects: Table,
) -> None:
    """Draw the blends of the most sources, number counts and colours, in bands with models."""
    shown = _shown_bands(_with_models(objects, image.bands))
    band = shown[1]
    bands = shown if len(set(shown)) == 3 else [band]
    true, truth, true_magnitudes = {}, field.truth, None
    if truth is not None:
        _, found, drawn = _pair_with_truth(field, truth, catalog, 5.0)
        true = dict(zip(found.tolist(), truth[f"flux_{band}"][drawn].tolist()))
        true_magnitudes = AB_ZERO_POINT - 2.5 * np.log10(truth[f"flux_{band}"])
    figure = plot_field(
        cut_blends(catalog, by_band, {one: field.exposures[one] for one in bands}, 6, true),
        band,
        {one: np.asarray(objects[f"{one}_sersicMag"]) for one in dict.fromkeys(reversed(shown))},
        np.asarray(objects["pStar"]),
        true_magnitudes,
        _without_zero_point(image),
    )
    _replace(out / "blends.png", lambda path: figure.savefig(path, format="png"))


def _brightest(objects: Table, bands: Sequence[str]) -> list[str]:
    """Ten lines of the object table, of fits that converged."""
    objects = objects[~np.asarray(objects["flag_notConverged"])]
    middle = _shown_bands(_with_models(objects, bands))[1]
    order = np.argsort(np.asarray(objects[f"{middle}_sersicMag"]), kind="stable")[:10]
    formats = {"objectId": "d", "coord_ra": ".5f", "coord_dec": "+.5f", "class": "s", "pStar": ".2f"}
    formats |= {f"{band}_sersicMag": ".2f" for band in bands} | {"sersic_reff_major": ".2f"}
    chosen = objects[list(formats)][order]
    for name, how in formats.items():
        chosen[name].info.format = how
    return list(chosen.pformat(max_lines=-1, max_width=-1, show_unit=True))


def _place_in_spectrum(band: str) -> float:
    """Wavelength of a band (nm); 0 if it is not known."""
    try:
        return band_wavelength(band)
    except ValueError:
        return 0.0


def _summarize(field: Field, image: MultibandImage, catalog: SourceCatalog) -> list[str]:
    """Say in three lines what was found."""
    n_star = int(np.asarray(catalog["maskrcnn_star"]).sum())
    edge = int(np.asarray(catalog["maskrcnn_flag_edge"]).sum())
    scores = np.asarray(catalog["maskrcnn_score"])
    quantiles = np.percentile(scores, [10, 50]) if len(scores) else (np.nan, np.nan)
    height, width = image.shape
    area = f"{width * image.pixel_scale / 60:.2f}' x {height * image.pixel_scale / 60:.2f}'"
    return [
        f"Found {len(catalog)} sources in {width} x {height} pixels ({area}): "
        f"{n_star} stars, {len(catalog) - n_star} galaxies.",
        f"Scores: median {quantiles[1]:.2f}, nine in ten above {quantiles[0]:.2f}; "
        f"{edge} sources touch an edge.",
        _say_depth(image) if field.truth is None else _compare_with_truth(field, field.truth, catalog),
    ]


def _without_zero_point(image: MultibandImage) -> list[str]:
    """Bands whose fluxes are in counts."""
    return [band for band, known in zip(image.bands, np.asarray(image.calibrated)) if not known]


def _noise(image: MultibandImage) -> np.ndarray:
    """Standard deviation of an empty pixel in each band, nJy or counts."""
    return np.sqrt(np.nanmedian(np.asarray(image.variance), axis=(1, 2)))


def _say_depth(image: MultibandImage) -> str:
    noise, uncalibrated = dict(zip(image.bands, _noise(image))), _without_zero_point(image)
    depths, counts = [], []
    for band, sigma in noise.items():
        if band in uncalibrated:
            counts.append(f"{band} {sigma:.3g}")
        else:
            depths.append(f"{band} {AB_ZERO_POINT - 2.5 * np.log10(5.0 * sigma):.1f}")
    said = [f"Sky noise of one pixel in AB magnitudes, 5 sigma: {', '.join(depths)}."] * bool(depths)
    if counts:
        said.append(
            f"Sky noise of one pixel in counts: {', '.join(counts)}; without a zero point magnitudes are "
            "instrumental, -2.5 log10 of the counts (--zeropoint sets it)."
        )
    return " ".join(said)


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and move it there when it is complete."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _astropy_wcs(exposure: ExposureF) -> WCS:
    """World coordinates of the pixel array of an exposure, for plots."""
    # The tangent plane at the centre is near enough for axes.
    center = Box2D(exposure.getBBox()).getCenter()
    metadata = cast("SkyWcs", exposure.getWcs()).getTanWcs(center).getFitsMetadata(True)
    header = {name: metadata.getScalar(name) for name in metadata.names()}
    wcs = WCS(header)
    wcs.wcs.crpix = np.asarray(wcs.wcs.crpix) - np.array(exposure.getXY0())
    return wcs


def _pair_with_truth(
    field: Field, truth: np.ndarray, catalog: SourceCatalog, min_snr: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pair sources with those that were drawn inside of the image, of a S/N in r or more.

    Rows of the drawn sources, and of the pairs, each the other's nearest within 5 pixels:
    rows of the catalogue and of the drawn sources.
    """
    bbox = next(iter(field.exposures.values())).getBBox()
    wanted = np.ones(len(truth), bool)
    if "snr_r" in (truth.dtype.names or ()):
        wanted = truth["snr_r"] >= min_snr
    drawn = np.stack([truth["x"], truth["y"]], axis=1)
    wanted &= ((drawn >= 0) & (drawn <= (bbox.getWidth() - 1, bbox.getHeight() - 1))).all(axis=1)
    rows = np.flatnonzero(wanted)
    if not len(rows) or not len(catalog):
        return rows, rows[:0], rows[:0]
    found = np.stack([catalog.getX() - bbox.getMinX(), catalog.getY() - bbox.getMinY()], axis=1)
    distance, nearest = cKDTree(found).query(drawn[rows])
    back = cKDTree(drawn[rows]).query(found)[1]
    paired = (back[nearest] == np.arange(len(rows))) & (distance <= 5.0)
    return rows, nearest[paired], rows[paired]


def _compare_with_truth(field: Field, truth: np.ndarray, catalog: SourceCatalog) -> str:
    """Say how many of the drawn sources were found."""
    drawn, found, true = _pair_with_truth(field, truth, catalog, 10.0)
    right = int((truth["is_star"][true] == np.asarray(catalog["maskrcnn_star"], dtype=bool)[found]).sum())
    share = 100.0 * len(found) / max(len(drawn), 1)
    return (
        f"Of {len(drawn)} drawn sources with S/N > 10 in r, {len(found)} ({share:.0f} %) have a detection "
        f"within 5 pixels, {right} of them in the right class."
    )
