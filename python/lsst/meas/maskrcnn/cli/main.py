# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command ``maskrcnn``: its subcommands and their options.

What a subcommand does is in a module of its own, which is imported when it
runs, so that help and completion need no second.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from .command import Arguments, Command, Several

_FOLDER = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, dir_okay=False)


def _several(*names: str, **options: Any) -> Callable[[Any], Any]:
    return click.option(*names, cls=Several, multiple=True, **options)


def _together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make one decorator of several options."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _repo(help: str = "path, URI or alias of the Butler repository", required: bool = True) -> Any:
    return click.option("-b", "--butler-config", "repo", metavar="REPO", required=required, help=help)


def _output(collection: str | None, help: str) -> Any:
    return click.option(
        "-o", "--output", "--collection", "collection", metavar="COLLECTION", default=collection, help=help
    )


def _jobs(default: int, help: str = "processes") -> Any:
    return click.option("-j", "--jobs", type=int, default=default, help=help)


_NEW_REPO = "folder of the repository; made if it is not there"

_CONFIG = _together(
    click.option(
        "-c", "--config", multiple=True, metavar="[LABEL:]FIELD=VALUE", help="change to the configuration"
    ),
    click.option("-C", "--config-file", multiple=True, metavar="FILE", help="file of changes in Python"),
)

_READING = _together(
    _several(
        "--zeropoint",
        metavar="MAG",
        show_default="from the headers",
        help="AB magnitude of one count, one for all bands or BAND=MAG for each",
    ),
    click.option(
        "--pixel-scale", type=float, metavar="ARCSEC", help="where headers have no usable world coordinates"
    ),
    _several(
        "--psf-fwhm",
        metavar="ARCSEC",
        show_default="measured on stars, or of the header",
        help="width of the PSF, one or BAND=ARCSEC",
    ),
    _several(
        "--saturation",
        metavar="COUNTS",
        show_default="from the header, or a plateau",
        help="level of saturation, one or BAND=COUNTS",
    ),
    _several(
        "--noise",
        metavar="COUNTS",
        show_default="measured",
        help="standard deviation of an empty pixel, one or BAND=COUNTS, for simulated images without noise",
    ),
    click.option(
        "--sky",
        type=click.Choice(["auto", "subtract", "none"]),
        default="auto",
        help="subtract the sky; auto: if it is over one sigma from zero",
    ),
    click.option(
        "--sky-mesh", type=int, default=128, metavar="PX", help="size of a cell; larger for larger galaxies"
    ),
)

_FITS = _together(
    click.option(
        "--hdu",
        show_default="SCI, or the one with world coordinates",
        help="name or number of the HDU with the image",
    ),
    _several(
        "--mask-bits",
        metavar="PLANE=BIT[,BIT]",
        show_default="as the header or the telescope has it, else every pixel that is not 0 is BAD",
        help="which bits (from 0) of a mask image become which mask plane, such as SAT=1 BAD=0,5",
    ),
    _several(
        "--gain",
        metavar="ELECTRONS",
        help="electrons per count, one or BAND=ELECTRONS: adds the Poisson noise of sources to an estimated "
        "variance",
    ),
    click.option("--rescale", is_flag=True, help="scale given variances to the noise in the sky"),
    click.option("--resample", is_flag=True, help="bring all bands to the pixel grid of the first one"),
    click.option(
        "--background",
        metavar="NAME",
        help="background to subtract of those that a CellCoadd carries, in place of the stored one, or none",
    ),
)

_TRACT = click.option("--tract", type=int, default=0, help="of the first field; each has its own")
_COLLECTION_OF_FIELDS = (
    "collection of all images; those of a split come into COLLECTION/SPLIT, others into COLLECTION/all"
)

_EVALUATION = _together(
    click.option("--skymap", metavar="NAME", help="where a collection has evaluations on several sky maps"),
    click.option(
        "--evaluation",
        default="maskRcnnEvaluation",
        metavar="NAME",
        help="first part of the names of the datasets, connections.outputName of the task",
    ),
    click.option("--samples", type=int, default=1000, help="bootstrap resamplings of the patches"),
)


def _start(module: str, options: dict[str, Any], function: str = "run") -> int:
    """Run a command with its options; return the exit status."""
    try:
        work = importlib.import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"There is no package {error.name} here; install what this command needs with pip install "
            "'lsst-meas-maskrcnn[all]', or set up the LSST Science Pipelines."
        ) from error
    return getattr(work, function)(Arguments(**options))


def _version() -> str:
    try:
        return metadata.version("lsst-meas-maskrcnn")
    except metadata.PackageNotFoundError:
        return "(not installed: run from a checkout)"


@click.group(
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(_version(), prog_name="maskrcnn")
def maskrcnn() -> None:
    """Find, classify and deblend sources on coadded images with Mask R-CNN."""


maskrcnn.command_class = Command


@maskrcnn.command(short_help="Find sources in a simulated field or in FITS images.")
@click.option("-o", "--out", type=_FOLDER, default=Path("maskrcnn_demo"), help="folder for all that is made")
@_several("--fits", type=_FILE, help="images of one field, one for each band")
@_several(
    "--bands",
    show_default="of the headers; g r z if three images do not say",
    help="of the images in their order, or of the simulated field",
)
@_READING
@_FITS
@click.option(
    "--size", nargs=2, type=int, default=(1024, 768), help="width and height of the simulated field (px)"
)
@click.option("--seed", type=int, default=4, help="random seed of the simulated field")
@click.option("--model", type=_FILE, show_default="the package's own", help="model file")
@click.option(
    "-c",
    "--config",
    multiple=True,
    metavar="[LABEL:]FIELD=VALUE",
    help="change to the configuration of the pipeline",
)
@click.option("-j", "--cores", type=int, show_default="all cores", help="threads for the network")
def demo(**options: Any) -> int:
    """Find, outline and classify the sources of a simulated field or of FITS images."""
    return _start("demo", options)


@maskrcnn.command(words=["repo"], short_help="Simulate scenes with their truth.")
@_repo(_NEW_REPO, required=False)
@_several("--preset", default=["hsc-wide"], help="kinds of scenes")
@click.option("--count", type=int, default=70, help="scenes of each preset")
@click.option("--seed", type=int, default=1, help="random seed, and number of the tract")
@_jobs(1)
@click.option(
    "--shape", nargs=2, type=int, show_default="the preset's", help="height and width of a scene (px)"
)
@_several("--bands", show_default="the preset's")
@click.option(
    "--split",
    default="train=7,validation=1,test=2",
    help="how many of every ten scenes go to which collection",
)
@_output("simulated", "start of the collections' names")
@click.option("--skymap", show_default="maskRcnnSim-PRESET", help="name of the sky map")
@_CONFIG
@click.option("--no-flux", is_flag=True, help="leave out the pixels of the single sources")
@click.option("--list", is_flag=True, help="list the presets and stop")
def simulate(**options: Any) -> int:
    """Simulate scenes of stars and galaxies with their truth in a Butler repository.

    They are the patches of a sky map. Scenes that are there already are not made again: an interrupted
    command goes on when it is repeated, and a larger --count adds scenes.
    """
    return _start("simulate_scenes", options)


@maskrcnn.command(words=["repo"], short_help="Store FITS images in a Butler repository.")
@_repo(_NEW_REPO)
@_several("--band", metavar="BAND=FILE", help="images of one field")
@_several("--variance", metavar="BAND=FILE", help="their variances (counts^2)")
@_several("--weight", metavar="BAND=FILE", help="their inverse variances, or relative weights")
@_several("--rms", metavar="BAND=FILE", help="their standard deviations")
@_several("--mask", metavar="BAND=FILE", help="their mask images, see --mask-bits")
@_several("--fits", metavar="FILE", help="images of one field in the order of --bands, or one cube")
@click.option(
    "--truth",
    metavar="FILE",
    help="their sources: a FITS image of labels with a table of label and class, or COCO annotations (.json)",
)
@_several("--bands", show_default="g r z", help="bands for --fits, --dirs and --table")
@click.option(
    "--table",
    metavar="CSV",
    help="a field per row: columns with the name of a band hold its image, variance_BAND, weight_BAND, "
    "rms_BAND, mask_BAND what belongs to it, zeropoint or zeropoint_BAND, truth, name, tract, patch and "
    "split the rest; only images are needed",
)
@_several("--dirs", metavar="DIR", help="a field per folder")
@click.option(
    "--pattern", default="img_{band}.fits", help="name of the images in --dirs; they may be compressed"
)
@_FITS
@click.option("--patch", type=int, default=0, help="number of the patch")
@click.option(
    "--split",
    default="none",
    help="none, train, validation, test, or shares by the number of the field such as "
    "train=7,validation=1,test=2",
)
@_output("imported/fits", _COLLECTION_OF_FIELDS)
@click.option("--skymap", default="maskRcnnFits", help="name of the sky map")
@_TRACT
@_READING
def ingest_fits(**options: Any) -> int:
    """Store FITS images, one per band, as calibrated coadds in a Butler repository.

    Give the images of one or many fields with --band, with --fits and --bands, with --table or with
    --dirs. What is there already is kept: an interrupted command goes on when it is repeated.
    """
    return _start("ingest_fits", options)


@maskrcnn.command(words=["repo", "model"], short_help="Store a model in a Butler repository.")
@_repo()
@click.option(
    "--model", type=_FILE, show_default="the one that comes with the package", help=".safetensors file"
)
@_output("models/maskRcnn", "RUN collection to put it in")
@_several("--bands", help="bands that the model must have, in this order; otherwise it is refused")
@click.option(
    "--dataset-type",
    metavar="NAME",
    default="maskRcnnModel",
    help="of the model, such as maskRcnnInitialModel for a training to start from",
)
def ingest_model(**options: Any) -> int:
    """Check a model file and copy it into a Butler repository, where pipelines find it by collection."""
    return _start("ingest_model", options)


@maskrcnn.command(words=["repo", "folder"], short_help="Import training sets of Astro R-CNN.")
@_repo(_NEW_REPO)
@_several(
    "--folder", required=True, help="a set, a folder of sets, or one with training, validation and test"
)
@_several("--bands", default=["z", "r", "g"])
@click.option(
    "--mask-band", show_default="the one whose images have the same flux", help="of the images in masks.fits"
)
@click.option(
    "--mask-rule",
    type=click.Choice(["peakFraction", "isophote", "fluxFraction"]),
    help="which pixels of a source are its mask; this and what follows is by default as in simulated scenes",
)
@click.option("--star-fraction", type=float, help="of the peak")
@click.option("--galaxy-fraction", type=float, help="of the peak")
@click.option("--isophote", type=float, help="in sky sigma")
@click.option("--flux-fraction", type=float, help="of the flux")
@click.option("--min-area", type=int, help="pixels below which a source is flagged")
@click.option("--min-snr", type=float, help="S/N below which a source is flagged")
@click.option(
    "--smooth",
    type=float,
    default=0.0,
    metavar="PX",
    help="smooth the masks with a Gaussian; Astro R-CNN has 2",
)
@click.option("--gain", type=float, default=1.0, help="electrons per count, for the variance")
@click.option(
    "--split",
    default="auto",
    help="auto (by the folders' names), none, train, validation, test, or shares by the sets' numbers such "
    "as train=7,validation=1,test=2",
)
@click.option("--skip-bad", is_flag=True, help="leave out sources that cannot be read")
@_output("imported/astro_rcnn", _COLLECTION_OF_FIELDS)
@click.option("--skymap", default="maskRcnnAstroRcnn", help="name of the sky map")
@_TRACT
@_READING
def import_astro_rcnn(**options: Any) -> int:
    """Import training sets of Astro R-CNN into a Butler repository.

    These are folders set_N with img_BAND.fits and masks.fits. They become coadds, truth catalogues and
    each source's own pixels. What is there already is kept.
    """
    return _start("import_astro_rcnn", options)


@maskrcnn.command(words=["repo"], short_help="Draw pages of pictures of the coadds.")
@_repo()
@_several(
    "-i",
    "--input",
    "--collection",
    "collection",
    metavar="COLLECTION",
    show_default="all that hold deepCoadd_calexp, splits and seeds put together",
    help="collections to show",
)
@click.option("--count", type=int, default=6, help="pictures on a page")
@click.option("-o", "--out", type=_FOLDER, default=Path("pictures"), help="folder for the pages")
@click.option(
    "--bands", nargs=3, show_default="z r g, or three of what is there", help="shown as red, green and blue"
)
@click.option("--stretch", type=float, default=6.0, help="of the asinh scale, in sigma of a pixel's noise")
@click.option("--Q", "softening", type=float, default=4.3, help="how strongly bright parts are compressed")
@click.option(
    "--cutout", type=int, default=1024, metavar="PX", help="of larger images only the middle is shown"
)
@click.option("--panel", type=int, default=512, metavar="PX", help="longest side of a picture on the page")
@click.option("--no-outlines", is_flag=True, help="plain pictures only")
@click.option("--colors", type=int, help="reduce the pages to so many colours, for small files")
def preview(**options: Any) -> int:
    """Draw pages of colour pictures of the coadds in a Butler repository.

    A page for each collection, such as one per preset of simulated scenes; beside each picture the same
    with the outlines of the true sources, where these are known.
    """
    return _start("preview_scenes", options)


@maskrcnn.command(words=["repo"], short_help="Train a model.")
@_repo(required=False)
@click.option("-i", "--input", multiple=True, metavar="COLLECTION", help="where the patches are")
@click.option(
    "-o",
    "--output",
    metavar="COLLECTION|FILE",
    help="RUN collection for the model; with --scenes the model file to write",
)
@click.option("-d", "--data-query", default="", show_default="all", metavar="WHERE", help="patches to use")
@click.option(
    "--checkpoints", type=_FOLDER, show_default="in the repository", help="for the state of the training"
)
@click.option("--scenes", type=_FOLDER, help="train on simulated scenes, kept in this folder")
@click.option("--count", type=int, default=600, help="number of scenes")
@_several("--presets", show_default="all in turn", help="kinds of scenes")
@click.option("--validate", type=int, default=0, help="number of further scenes for validation")
@click.option(
    "--schedule",
    type=click.Choice(["published", "four-stages", "fine-tune"]),
    show_default="published; fine-tune with --scenes",
    help="the stages of Astro R-CNN; four from random weights; few images of a new survey, from lite",
)
@_CONFIG
@click.option("--initial", metavar="MODEL", help="path or URI of a model file to start from")
@click.option("--dry-run", is_flag=True, help="say what the data hold and how long it takes, and stop")
@click.option("--name", show_default="that of the file to write", help="name of the model")
@click.option("--minutes", type=float, help="end after this wall time at the latest")
@click.option("--seed", type=int, show_default="1", help="random seed")
@_jobs(2, "processes and threads")
@click.option("--device", show_default="auto", help="auto, cpu or cuda")
@click.option("--steps", type=int, help="steps of the stage, where there is one")
@click.option("--batch-size", type=int, help="crops per step of the stage, where there is one")
@click.option("--learning-rate", type=float, help="of the stage, where there is one")
def train(**options: Any) -> int:
    """Train a model on patches of a Butler repository, or on simulated scenes.

    The model is put into the repository; with --scenes it is written to a file. Interrupted, the same
    command goes on where it was. Under torchrun the work is shared among its processes.
    """
    return _start("train", options)


@maskrcnn.command(words=["model", "output"], short_help="Calibrate the scores of a model.")
@click.option("--model", type=_FILE, required=True, help="model file")
@click.option("-o", "--output", type=_FILE, required=True, help="model file to write; may be the same")
@click.option(
    "--scenes",
    type=_FOLDER,
    help="scenes (.npz) to use, made by maskrcnn train, or for models of any bands by maskrcnn "
    "train-any-band; not those of the training",
)
@click.option("--count", type=int, show_default="200", help="scenes to simulate, or the most of --scenes")
@click.option("--seed", type=int, default=770_000, help="of the scenes; not that of the training")
@_several("--presets", show_default="all in turn", help="kinds of scenes (models of fixed bands)")
@click.option("--iou", type=float, default=0.5, help="from which a mask is right (models of fixed bands)")
@click.option("--min-area", type=int, default=12, help="smaller truths do not count (px; fixed bands)")
@click.option("--min-peak-snr", type=float, default=3.0, help="nor do fainter ones (fixed bands)")
@click.option("--figure", type=_FILE, help="write reliability diagrams, .png or .pdf")
@_jobs(1)
@click.option("--device", default="auto", help="auto, cpu or cuda")
def calibrate(**options: Any) -> int:
    """Calibrate the scores and star probabilities of a model file.

    Sources are found in scenes that the model was not trained on and compared with the truth. A copy of
    the model file with a calibration is written; weights stay as they are. What is printed as 'after' is
    for scenes that were not used in the fit; probabilities whose log loss would not be lower there are
    left as they were.
    """
    return _start("calibrate", options)


@maskrcnn.command(words=["repo", "collection"], short_help="Write a page on an evaluation.")
@_repo()
@click.option("-i", "--input", "collection", metavar="COLLECTION", required=True, help="with the evaluation")
@_several("--compare", metavar="COLLECTION", help="other evaluations of the same patches, to compare with")
@click.option("-o", "--out", type=_FOLDER, show_default="the collection's name, .html", help="file to write")
@click.option(
    "--gallery",
    type=int,
    default=8,
    help="show up to so many of the worst and of the best blends; an evaluation stores gallerySize of them",
)
@_EVALUATION
@click.option(
    "--deblenders",
    default="deblenderComparison",
    metavar="NAME",
    help="first part of the names of the datasets of CompareDeblendersTask, which get a section if they are "
    "in the collection",
)
def evaluate_report(**options: Any) -> int:
    """Write a page on an evaluation of MaskRcnnEvaluateTask.

    Figures, tables, plots, a gallery of blends, configuration and software, in one HTML file that opens
    without a network.
    """
    return _start("report", options)


@maskrcnn.command(words=["repo", "collections"], short_help="Compare evaluations.")
@_repo()
@_several("-i", "--input", "collections", metavar="COLLECTION", required=True, help="with evaluations")
@click.option("--reference", metavar="COLLECTION", show_default="the first", help="the one to compare with")
@click.option("-o", "--out", type=_FILE, help="write the table too: .csv, .ecsv or .html")
@_EVALUATION
def compare_runs(**options: Any) -> int:
    """Compare evaluations of MaskRcnnEvaluateTask on the patches that all of them have.

    Differences to the reference come with their standard error and significance from the paired bootstrap
    over patches.
    """
    return _start("compare_runs", options)


@maskrcnn.group()
def train_any_band() -> None:
    """Train a network that takes any bands."""


train_any_band.command_class = Command


@train_any_band.command(words=["folder"])
@click.option("--folder", type=_FOLDER, required=True, help="where to put the scenes")
@click.option("--count", type=int, default=2000)
@click.option("--seed", type=int, default=1, help="random seed")
@click.option("--size", type=int, default=288, help="side of a scene (px)")
def scenes(**options: Any) -> int:
    """Simulate scenes; those that are there are kept."""
    return _start("train_any_band", options, "run_scenes")


@train_any_band.command(name="train")
@click.option("--scenes", type=_FOLDER, required=True, help="folder of scenes to train on")
@click.option("--valid", type=_FOLDER, required=True, help="folder of scenes to validate on")
@click.option("-o", "--out", type=_FOLDER, required=True, help="folder for the model and its losses")
@click.option("--initial", default="lite", help="model to start from")
@click.option("--steps", type=click.IntRange(1), default=30_000)
@click.option("--batch-size", type=click.IntRange(1), default=4, help="crops in a step")
@click.option("--crop-size", type=click.IntRange(32), default=192, help="side of a crop (px)")
@click.option("--learning-rate", type=float, default=5e-4, help="the largest; it rises, then falls to 0")
@click.option("--seed", type=int, default=1, help="random seed of crops, noise and samples")
@click.option("--device", default="auto", help="auto, cpu or cuda")
@click.option("--workers", type=int, default=0, help="processes that draw crops; 0: a thread does")
@click.option("--threads", type=int, default=1, help="of torch")
def train_bands(**options: Any) -> int:
    """Train, or go on with an interrupted training."""
    return _start("train_any_band", options)


def main(command: str = "", argv: Sequence[str] | None = None) -> int:
    """Run the command ``maskrcnn``, or one of its subcommands, for a script of its own.

    Arguments are by default those of the command line. Returns the exit status: 1 after an error, 2 if the
    options are wrong.
    """
    words = [*command.split(), *(sys.argv[1:] if argv is None else argv)]
    try:
        return int(maskrcnn.main(words, "maskrcnn", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130


if __name__ == "__main__":
    sys.exit(main())
