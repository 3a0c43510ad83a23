# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``bin/ingest_model``: put a model file into a Butler repository."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lsst.daf.butler import Butler

from ..ingest.ingest_model import DATASET_TYPE, IngestModelError, ingest_model
from ..network.model_file import ModelFileError, default_model_path, read_metadata
from .command import run_command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ingest_model",
        description="Check a model file and copy it into a Butler repository, where pipelines find it by "
        "collection.",
    )
    parser.add_argument("repo", help="path, URI or alias of the repository")
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="model file, .safetensors (default: the model that comes with the package)",
    )
    parser.add_argument(
        "--collection", default="models/maskRcnn", help="RUN collection to put it in (default: %(default)s)"
    )
    parser.add_argument(
        "--bands",
        nargs="+",
        metavar="BAND",
        help="bands that the model must have, in this order; otherwise it is refused",
    )
    parser.add_argument(
        "--dataset-type",
        default=DATASET_TYPE,
        metavar="NAME",
        help="dataset type of the model, such as maskRcnnInitialModel for a training to start from (default: "
        "%(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Put a model file into a repository; return the exit status."""
    arguments = _parser().parse_args(argv)
    return run_command("ingest_model", lambda: _run(arguments), (ModelFileError, IngestModelError))


def _run(arguments: argparse.Namespace) -> None:
    path = arguments.file if arguments.file is not None else default_model_path()
    butler = Butler.from_config(arguments.repo, writeable=True)
    ref = ingest_model(
        butler, path, arguments.collection, bands=arguments.bands, dataset_type=arguments.dataset_type
    )
    metadata = read_metadata(path)
    bands = ", ".join(metadata.bands) or "any"
    print(
        f"Model {metadata.name!r} (bands {bands}) is {ref.datasetType.name} in collection {ref.run!r} of "
        f"{arguments.repo}."
    )
