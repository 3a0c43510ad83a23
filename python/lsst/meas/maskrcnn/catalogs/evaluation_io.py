# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an evaluation reads of other tasks, and the form of the match table that it stores."""

from __future__ import annotations

import datetime

import astropy.units as u
import numpy as np
from astropy.table import Table

from lsst.pipe.base import TaskMetadata

from ..metrics.evaluation_metrics import EvaluationMetrics

# Of older versions of the deblender of this package; together they are its "seconds_total".
_STEPS = ("seconds_normalize", "seconds_detect", "seconds_catalog")

_UNITS = {"x": u.pix, "y": u.pix, "offset_x": u.pix, "offset_y": u.pix, "separation": u.pix}
_UNITS |= {"separation_arcsec": u.arcsec, "neighbor_distance": u.arcsec, "mag": u.mag, "mag_detected": u.mag}


def task_timing(metadata: TaskMetadata | None, label: str) -> tuple[float, float, str]:
    """Read from the metadata of a quantum how long the task of a label took.

    Returns the seconds, those of finding and deblending where the task says so, as the deblender of this
    package does, else those of the quantum (NaN if nothing is known); the pixels that it saw, in millions
    (NaN if they are not known); and the name of the network (empty if there is none).
    """
    nan = float("nan")
    if metadata is None:
        return nan, nan, ""
    own = metadata[label] if label in metadata else {}
    if "seconds_total" in own:
        seconds = float(own["seconds_total"])
    elif "seconds_detect" in own:
        seconds = sum(float(own[name]) for name in _STEPS if name in own)
    else:
        seconds = _wall_time(metadata)
    megapixels = float(own["n_valid_pixels"]) / 1e6 if "n_valid_pixels" in own else nan
    return seconds, megapixels, str(own["model"]) if "model" in own else ""


def _wall_time(metadata: TaskMetadata) -> float:
    """Time from the beginning to the end of a quantum, reading and writing included (s)."""
    if "quantum" not in metadata:
        return float("nan")
    quantum = metadata["quantum"]
    if "startUtc" not in quantum or "endUtc" not in quantum:
        return float("nan")
    start, end = (datetime.datetime.fromisoformat(str(quantum[name])) for name in ("startUtc", "endUtc"))
    return (end - start).total_seconds()


def match_output(
    table: np.ndarray, row_group: np.ndarray, group_table: np.ndarray, metrics: EvaluationMetrics
) -> Table:
    """Add to the match table of all patches what makes it readable by itself.

    This is units and the columns ``tract``, ``patch``, ``flux_ratio`` (detected over true), ``group``
    (``row_group``, the number within the patch, or -1) and ``group_kind``, how the group ended, by the groups
    of all patches.
    """
    output = Table(table)
    image = table["image"]
    output["tract"] = np.array([patch.tract for patch in metrics.patches], dtype=np.int64)[image]
    output["patch"] = np.array([patch.patch for patch in metrics.patches], dtype=np.int64)[image]
    with np.errstate(divide="ignore", invalid="ignore"):
        output["flux_ratio"] = np.where(
            table["flux_truth"] > 0, table["flux_detected"] / table["flux_truth"], np.nan
        )
    output["group"] = row_group
    # Groups are numbered from 0 in each patch.
    starts = np.searchsorted(group_table["image"], np.arange(len(metrics.patches)))
    kinds = np.append(group_table["kind"], "ignored")
    output["group_kind"] = kinds[np.where(row_group >= 0, starts[image] + row_group, -1)]
    for name in output.colnames:
        if name in _UNITS:
            output[name].unit = _UNITS[name]
        elif name.startswith(("flux_truth", "flux_detected", "flux_model")):
            # Without a band it is the reference band.
            band = name.split("_", 2)[2:] or [str(metrics.config.get("band"))]
            output[name].unit = u.count if band[0] in metrics.instrumental else u.nJy
    return output
