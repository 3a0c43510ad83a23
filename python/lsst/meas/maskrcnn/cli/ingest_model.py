# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""``maskrcnn ingest-model``: put a model file into a Butler repository."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ..ingest.ingest_model import IngestModelError, ingest_model
from ..network.model_file import ModelFileError, default_model_path, read_metadata
from .command import Arguments, command
from .evaluation_runs import open_butler


@command(ModelFileError, IngestModelError)
def run(arguments: Arguments) -> None:
    """Put a model file into a repository."""
    path = arguments.model or default_model_path()
    butler = open_butler(arguments.repo, writeable=True)
    ref = ingest_model(
        butler, path, arguments.collection, bands=arguments.bands or None, dataset_type=arguments.dataset_type
    )
    metadata = read_metadata(path)
    bands = ", ".join(metadata.bands) or "any"
    figures = _validation_figures(metadata.training)
    print(f"Validation: {', '.join(figures) or 'no figures in the file'}.")
    for is_missing, what, advice in (
        (not figures, "was not validated", "maskrcnn train --validate N"),
        (metadata.calibration is None, "is not calibrated", "maskrcnn calibrate"),
    ):
        if is_missing:
            print(f"maskrcnn ingest-model: warning: the model {what} ({advice}).", file=sys.stderr)
    print(
        f"Model {metadata.name!r} (bands {bands}) is {ref.datasetType.name} in collection {ref.run!r} of "
        f"{arguments.repo}."
    )


def _validation_figures(training: Mapping[str, Any]) -> list[str]:
    """Return the figures of the validation in the header of a model."""
    wanted = ("ap50", "completeness")
    rows = [training, *(value for value in training.values() if isinstance(value, Mapping))]
    found = {name: value for row in rows for name, value in row.items() if name.startswith(wanted)}
    return [f"{name} {value:.3f}" for name, value in found.items() if isinstance(value, float)]
