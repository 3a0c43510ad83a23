# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The match table: one row per true source and per detection without one.

All figures of an evaluation but average precision and blends are computed from
it: completeness and purity, classes, residuals, calibration. Its columns are

- ``image``: number of the image or patch;
- ``truth_id``, ``detection_id``: ids, -1 for none;
- ``x``, ``y``: position of the truth, or of the detection where there is no
  truth (px);
- ``iou``: intersection over union of the two masks;
- ``truth_is_star``, ``detected_is_star``: classes;
- ``score``: of the detection; ``p_star``: its probability of being a star;
- ``mag``, ``mag_detected``: magnitudes (AB) of truth and detection;
- ``snr``: signal-to-noise ratio of the truth;
- ``flux_truth``, ``flux_detected``, ``flux_model``: fluxes in the reference band
  (nJy): true, of the HeavyFootprint or of a field of the catalogue, and of the
  fitted model; ``flux_truth_<band>`` and so on likewise;
- ``offset_x``, ``offset_y``: detection minus truth (px); ``separation``,
  ``separation_arcsec``: its length (px, arcsec);
- ``blendedness``: 1 - sum m^2 / sum B m of the truth;
- ``neighbor_distance``: from the truth to the nearest other (arcsec);
- ``p_blend``: probability of the detection that it is a blend; ``blended``: whether
  its truth is one, see `blends.blended_truths`; 1, 0 or NaN where it is not known;
- ``ignored``: neither hit nor miss: the truth is too faint, too small or
  masked, or the detection lies on such a one;
- ``outcome``: one of `OUTCOMES`.

Quantities of a source that a row lacks are NaN and the missing class is
`False`; use `truth_rows` and `detection_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..images.units import AB_ZERO_POINT

__all__ = [
    "MatchTable",
    "ab_magnitude",
    "detection_rows",
    "find_failures",
    "make_match_table",
    "matched_rows",
    "truth_rows",
]

OUTCOMES = ("matched", "missed", "unrecognized", "shredded", "mismatched", "spurious", "ignored")
"""How a source can end, see `blends.source_outcomes`."""

MatchTable = NDArray[np.void] | Mapping[str, Any]
"""A structured array, or anything that gives its columns by name."""

_COLUMNS: tuple[tuple[str, str], ...] = (
    ("image", "i8"),
    ("truth_id", "i8"),
    ("detection_id", "i8"),
    ("x", "f8"),
    ("y", "f8"),
    ("iou", "f8"),
    ("truth_is_star", "?"),
    ("detected_is_star", "?"),
    ("score", "f8"),
    ("p_star", "f8"),
    ("p_blend", "f8"),
    ("mag", "f8"),
    ("mag_detected", "f8"),
    ("snr", "f8"),
    ("flux_truth", "f8"),
    ("flux_detected", "f8"),
    ("flux_model", "f8"),
    ("offset_x", "f8"),
    ("offset_y", "f8"),
    ("separation", "f8"),
    ("separation_arcsec", "f8"),
    ("blendedness", "f8"),
    ("neighbor_distance", "f8"),
    ("blended", "f8"),
    ("ignored", "?"),
    ("outcome", "U12"),
)

# Quantities of the truth that may be unknown.
_OPTIONAL = ("mag", "snr", "blendedness", "neighbor_distance", "blended")


def make_match_table(
    truth: Mapping[str, ArrayLike],
    detections: Mapping[str, ArrayLike],
    match: ArrayLike,
    *,
    iou: ArrayLike | None = None,
    image: int = 0,
    pixel_scale: float | None = None,
    bands: Sequence[str] = (),
    truth_outcome: ArrayLike | None = None,
    detection_outcome: ArrayLike | None = None,
) -> NDArray[np.void]:
    """Join the true sources of an image with what was found of them.

    Parameters
    ----------
    truth, detections : `~collections.abc.Mapping` [`str`, array_like]
        Columns ``id``, ``x``, ``y``, ``is_star`` and, of the detections,
        ``score``; where known ``flux``, ``flux_<band>``, ``mag`` and
        ``ignored``, of the truth ``snr``, ``blendedness``, ``neighbor_distance``
        and ``blended``, of the detections ``p_star``, ``p_blend``, ``model``
        and ``model_<band>``.
    match : array_like
        Index of the truth of each detection, or -1, (detection,).
    iou : array_like, optional
        IoU of each detection with its truth, (detection,).
    image, pixel_scale : `int`, `float`
        Number of the image, and its pixel scale (arcsec), if known.
    bands : `~collections.abc.Sequence` [`str`]
        Bands of which fluxes are kept.
    truth_outcome, detection_outcome : array_like, optional
        How each source ended, from `blends.source_outcomes`.

    Returns
    -------
    table : `numpy.ndarray`
        Structured array: first the truths in their order, then the detections
        without one; see the head of this module for its columns.

    Raises
    ------
    ValueError
        Raised if a column is missing, lengths differ, an id is negative, a
        match points nowhere, or a truth is matched twice.
    """
    n_truth = _check_columns(truth, ("id", "x", "y", "is_star"), "truth")
    n_found = _check_columns(detections, ("id", "x", "y", "is_star", "score"), "detections")
    match = _check_match(match, n_truth, n_found)
    found, alone = np.flatnonzero(match >= 0), np.flatnonzero(match < 0)
    table = _empty_table(n_truth + len(alone), bands)
    table["image"] = image
    of_truth = slice(0, n_truth)
    row = np.where(match >= 0, match, 0)
    row[alone] = n_truth + np.arange(len(alone))

    _fill_sources(table, truth, detections, row, bands)
    for name in ("x", "y"):
        position = np.asarray(detections[name], dtype=float)
        table[name][row[alone]] = position[alone]
        table[name][of_truth] = truth[name]
        table[f"offset_{name}"][row[found]] = position[found] - table[name][row[found]]
    table["separation"] = np.hypot(table["offset_x"], table["offset_y"])
    if pixel_scale is not None:
        table["separation_arcsec"] = pixel_scale * table["separation"]
    if iou is not None:
        table["iou"][row[found]] = _of_length(iou, n_found, "IoU per detection")[found]

    if "ignored" in detections:
        table["ignored"][row] = detections["ignored"]
    # What is found of an ignored truth is neither right nor wrong; what is found of a counted one counts.
    table["ignored"][of_truth] = truth.get("ignored", False)
    table["outcome"][row] = "spurious"
    table["outcome"][of_truth] = "missed"
    table["outcome"][row[found]] = "matched"
    if detection_outcome is not None:
        table["outcome"][row[alone]] = _of_length(detection_outcome, n_found, "outcome per detection")[alone]
    if truth_outcome is not None:
        table["outcome"][of_truth] = _of_length(truth_outcome, n_truth, "outcome per truth")
    table["outcome"][table["ignored"]] = "ignored"
    return table


def truth_rows(table: MatchTable, is_star: bool | None = None) -> NDArray[np.bool_]:
    """Select the rows that have a truth that counts.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    is_star : `bool`, optional
        Only true stars (`True`) or galaxies (`False`).

    Returns
    -------
    selected : `numpy.ndarray`
        `bool`, (row,).
    """
    selected = (np.asarray(table["truth_id"]) >= 0) & ~np.asarray(table["ignored"], dtype=bool)
    if is_star is not None:
        selected &= np.asarray(table["truth_is_star"], dtype=bool) == is_star
    return selected


def detection_rows(
    table: MatchTable, is_star: bool | None = None, *, min_score: float | None = None
) -> NDArray[np.bool_]:
    """Select the rows that have a detection that counts.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    is_star : `bool`, optional
        Only what was classed as star (`True`) or galaxy (`False`).
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    selected : `numpy.ndarray`
        `bool`, (row,).
    """
    selected = (np.asarray(table["detection_id"]) >= 0) & ~np.asarray(table["ignored"], dtype=bool)
    if is_star is not None:
        selected &= np.asarray(table["detected_is_star"], dtype=bool) == is_star
    if min_score is not None:
        selected &= np.asarray(table["score"]) >= min_score
    return selected


def matched_rows(
    table: MatchTable,
    is_star: bool | None = None,
    *,
    same_class: bool = False,
    min_score: float | None = None,
) -> NDArray[np.bool_]:
    """Select the rows that have a truth and its detection.

    Parameters
    ----------
    table : `MatchTable`
        The match table.
    is_star : `bool`, optional
        Only true stars (`True`) or galaxies (`False`).
    same_class : `bool`
        Only those of which the class is right too.
    min_score : `float`, optional
        Only detections of at least this score.

    Returns
    -------
    selected : `numpy.ndarray`
        `bool`, (row,).
    """
    selected = truth_rows(table, is_star) & detection_rows(table, min_score=min_score)
    if same_class:
        selected &= np.asarray(table["truth_is_star"]) == np.asarray(table["detected_is_star"])
    return selected


_FLUX_OFF = 0.3
"""Relative error of a model flux from which on it is a failure, if it is also five times its S/N."""


def find_failures(table: MatchTable) -> dict[int, tuple[float, str]]:
    """Find the sources that were missed, made up, or classed or measured wrongly.

    Parameters
    ----------
    table : `MatchTable`
        The match table.

    Returns
    -------
    failures : `dict` [`int`, `tuple` [`float`, `str`]]
        By row: flux that is lost, made up or off (nJy), and what happened.
    """
    true, found = truth_rows(table), detection_rows(table)
    made_up = AB_ZERO_POINT - np.asarray(table["mag_detected"])
    made_up = np.where(np.isfinite(made_up), 10.0 ** (0.4 * np.nan_to_num(made_up)), 0.0)
    flux, model = np.nan_to_num(table["flux_truth"]), np.asarray(table["flux_model"])
    off = np.abs(model - flux)
    outcome = np.asarray(table["outcome"]).astype(str)
    failures = {}
    for row in np.flatnonzero(true | found).tolist():
        kind = "star" if table["truth_is_star"][row] else "galaxy"
        given = "star" if table["detected_is_star"][row] else "galaxy"
        mag = f"{table['mag'][row]:.1f} mag"
        if true[row] and outcome[row] != "matched":
            failures[row] = float(flux[row]), f"{outcome[row]}: {kind} of {mag}"
        elif not true[row]:
            failures[row] = (
                float(made_up[row]),
                f"{outcome[row]}: {given} of {table['mag_detected'][row]:.1f} mag",
            )
        elif kind != given:
            failures[row] = float(flux[row]), f"{kind} of {mag} called {given}"
        elif off[row] > max(_FLUX_OFF, 5.0 / max(float(np.nan_to_num(table["snr"][row])), 0.1)) * flux[row]:
            failures[row] = (
                float(off[row]),
                f"{kind} of {mag}: model flux {model[row] / flux[row]:.2f} of the true",
            )
    return failures


def ab_magnitude(flux: ArrayLike) -> NDArray[np.float64]:
    """Convert fluxes to magnitudes.

    Parameters
    ----------
    flux : array_like
        Fluxes (nJy).

    Returns
    -------
    magnitude : `numpy.ndarray`
        AB magnitudes; NaN where the flux is not positive.

    Examples
    --------
    >>> round(float(ab_magnitude(3631e9)), 3)
    -0.0
    """
    flux = np.asarray(flux, dtype=float)
    magnitude = np.full(flux.shape, np.nan)
    np.log10(flux, out=magnitude, where=flux > 0.0)
    return AB_ZERO_POINT - 2.5 * magnitude


def _check_columns(columns: Mapping[str, ArrayLike], needed: tuple[str, ...], what: str) -> int:
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ValueError(f"The {what} lack the columns {', '.join(missing)}.")
    lengths = {name: len(np.asarray(column)) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"The columns of the {what} must be of one length; given were {lengths}.")
    if np.any(np.asarray(columns["id"]) < 0):
        raise ValueError(f"The ids of the {what} must not be negative; -1 stands for no source.")
    return lengths["id"]


def _check_match(match: ArrayLike, n_truth: int, n_found: int) -> NDArray[np.int64]:
    checked = _of_length(match, n_found, "match per detection").astype(np.int64)
    if np.any(checked < -1) or np.any(checked >= n_truth):
        raise ValueError(f"Matches must lie between -1 and {n_truth - 1}, the last truth.")
    if np.any(np.bincount(checked[checked >= 0]) > 1):
        raise ValueError("A truth has more than one detection; matches must be one to one.")
    return checked


def _fill_sources(
    table: NDArray[np.void],
    truth: Mapping[str, ArrayLike],
    detections: Mapping[str, ArrayLike],
    row: NDArray[np.int64],
    bands: Sequence[str],
) -> None:
    """Fill in what is known of truths and of detections alone."""
    of_truth = slice(0, len(np.asarray(truth["id"])))
    for name in ("id", "is_star"):
        table[f"truth_{name}"][of_truth] = truth[name]
    for name in _OPTIONAL:
        if name in truth:
            table[name][of_truth] = truth[name]
    table["detection_id"][row], table["detected_is_star"][row] = detections["id"], detections["is_star"]
    table["score"][row] = detections["score"]
    for name in ("p_star", "p_blend"):
        if name in detections:
            table[name][row] = detections[name]
    for suffix in ("", *(f"_{band}" for band in bands)):
        if f"flux{suffix}" in truth:
            table[f"flux_truth{suffix}"][of_truth] = truth[f"flux{suffix}"]
        for name, column in (("flux", "flux_detected"), ("model", "flux_model")):
            if f"{name}{suffix}" in detections:
                table[f"{column}{suffix}"][row] = detections[f"{name}{suffix}"]
    if "mag" not in truth:
        table["mag"] = ab_magnitude(table["flux_truth"])
    table["mag_detected"] = ab_magnitude(table["flux_detected"])
    if "mag" in detections:
        table["mag_detected"][row] = detections["mag"]


def _empty_table(length: int, bands: Sequence[str]) -> NDArray[np.void]:
    per_band = [(f"flux_{kind}_{band}", "f8") for band in bands for kind in ("truth", "detected", "model")]
    table = np.zeros(length, dtype=np.dtype([*_COLUMNS, *per_band]))
    for name in table.dtype.names or ():
        if table.dtype[name].kind == "f":
            table[name] = np.nan
    table["truth_id"] = table["detection_id"] = -1
    return table


def _of_length(values: ArrayLike, length: int, what: str) -> NDArray[Any]:
    given = np.asarray(values).reshape(-1)
    if len(given) != length:
        raise ValueError(f"One {what} is needed, {length} in all; given were {len(given)}.")
    return given
