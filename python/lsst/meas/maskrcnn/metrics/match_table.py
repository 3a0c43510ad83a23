# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The match table: one row per true source and per detection without one.

Everything that is said of an evaluation beside average precision is read from
it: completeness and purity, classes, blends, residuals, calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "AB_ZERO_POINT",
    "OUTCOMES",
    "MatchTable",
    "ab_magnitude",
    "detection_rows",
    "make_match_table",
    "match_table_dtype",
    "matched_rows",
    "truth_rows",
]

AB_ZERO_POINT = 31.4
"""AB magnitude of 1 nJy, to 7e-5 mag (3631 Jy is magnitude 0)."""

OUTCOMES = ("matched", "missed", "unrecognized", "shredded", "mismatched", "spurious", "ignored")
"""How a source can end; `blends.source_outcomes` tells them apart."""

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
    ("mag", "f8"),
    ("mag_detected", "f8"),
    ("snr", "f8"),
    ("flux_truth", "f8"),
    ("flux_detected", "f8"),
    ("offset_x", "f8"),
    ("offset_y", "f8"),
    ("separation", "f8"),
    ("separation_arcsec", "f8"),
    ("blendedness", "f8"),
    ("neighbor_distance", "f8"),
    ("ignored", "?"),
    ("outcome", "U12"),
)

_TRUTH_OPTIONAL = ("mag", "snr", "blendedness", "neighbor_distance")


def match_table_dtype(bands: Sequence[str] = ()) -> np.dtype:
    """Give the columns of a match table.

    Parameters
    ----------
    bands : `~collections.abc.Sequence` [`str`]
        Bands of which the fluxes are kept one by one, for colours.

    Returns
    -------
    dtype : `numpy.dtype`
        The type of a row.

    Notes
    -----
    Quantities of a source that a row lacks are NaN, the missing id is -1 and
    the missing class `False`; use `truth_rows` and `detection_rows`.

    - ``image``: number of the image or patch;
    - ``truth_id``, ``detection_id``: ids, -1 for none;
    - ``x``, ``y``: position of the truth, or of the detection where there is
      no truth (px);
    - ``iou``: intersection over union of the two masks;
    - ``truth_is_star``, ``detected_is_star``: classes;
    - ``score``: of the detection; ``p_star``: its probability of being a
      star;
    - ``mag``, ``mag_detected``: magnitudes (AB) of truth and detection;
    - ``snr``: signal-to-noise ratio of the truth;
    - ``flux_truth``, ``flux_detected``: fluxes in the reference band (nJy);
      ``flux_truth_<band>``, ``flux_detected_<band>`` likewise per band;
    - ``offset_x``, ``offset_y``: detection minus truth (px);
      ``separation``, ``separation_arcsec``: its length (px, arcsec);
    - ``blendedness``: 1 - sum m^2 / sum B m of the truth;
    - ``neighbor_distance``: from the truth to the nearest other (arcsec);
    - ``ignored``: neither hit nor miss: the truth is too faint, too small or
      masked, or the detection lies on such a one;
    - ``outcome``: one of `OUTCOMES`.
    """
    per_band = [(f"flux_{kind}_{band}", "f8") for band in bands for kind in ("truth", "detected")]
    return np.dtype([*_COLUMNS, *per_band])


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
    truth : `~collections.abc.Mapping` [`str`, array_like]
        Columns of the truth: ``id``, ``x``, ``y``, ``is_star``, and where
        known ``mag``, ``snr``, ``flux``, ``blendedness``,
        ``neighbor_distance``, ``ignored`` and ``flux_<band>``.
    detections : `~collections.abc.Mapping` [`str`, array_like]
        Columns of the detections: ``id``, ``x``, ``y``, ``is_star``,
        ``score``, and where known ``p_star``, ``flux``, ``ignored`` and
        ``flux_<band>``.
    match : array_like
        Index of the truth of each detection, or -1, (detection,). Only an
        ignored truth may have more than one.
    iou : array_like, optional
        Intersection over union of each detection with its truth,
        (detection,).
    image : `int`
        Number of the image.
    pixel_scale : `float`, optional
        Pixel scale (arcsec).
    bands : `~collections.abc.Sequence` [`str`]
        Bands of which the fluxes are kept one by one.
    truth_outcome, detection_outcome : array_like, optional
        How each source ended, from `blends.source_outcomes`. Without them
        only matched, missed, spurious and ignored are told apart.

    Returns
    -------
    table : `numpy.ndarray`
        Structured array of `match_table_dtype`: first the truths in their
        order, then the detections without one. Tables of several images are
        joined by `numpy.concatenate`.

    Raises
    ------
    ValueError
        Raised if a needed column is missing, lengths differ, an id is
        negative, a match points nowhere, or a truth that counts is matched
        twice.

    Examples
    --------
    >>> truth = {"id": [7, 8], "x": [1.0, 5.0], "y": [2.0, 2.0], "is_star": [True, False]}
    >>> found = {"id": [1], "x": [5.5], "y": [2.0], "is_star": [False], "score": [0.9]}
    >>> table = make_match_table(truth, found, [1])
    >>> table["outcome"].tolist(), table["offset_x"].tolist()
    (['missed', 'matched'], [nan, 0.5])
    """
    n_truth = _check_columns(truth, ("id", "x", "y", "is_star"), "truth")
    n_found = _check_columns(detections, ("id", "x", "y", "is_star", "score"), "detections")
    match = np.asarray(match, dtype=np.int64).reshape(-1)
    if len(match) != n_found:
        raise ValueError(f"One match per detection is needed: {len(match)} for {n_found} detections.")
    if np.any(match < -1) or np.any(match >= n_truth):
        raise ValueError(f"Matches must lie between -1 and {n_truth - 1}, the last truth.")
    match, in_crowd = _one_to_one(match, truth.get("ignored"))
    found, alone = np.flatnonzero(match >= 0), np.flatnonzero(match < 0)

    table = np.zeros(n_truth + len(alone), dtype=match_table_dtype(bands))
    for name in table.dtype.names or ():
        if table.dtype[name].kind == "f":
            table[name] = np.nan
    table["image"] = image
    table["truth_id"] = table["detection_id"] = -1
    of_truth = slice(0, n_truth)
    # The row of each detection.
    row = np.empty(n_found, dtype=np.int64)
    row[found] = match[found]
    row[alone] = n_truth + np.arange(len(alone))

    table["truth_id"][of_truth] = truth["id"]
    table["truth_is_star"][of_truth] = truth["is_star"]
    for name in ("x", "y"):
        table[name][row[alone]] = np.asarray(detections[name], dtype=float)[alone]
        table[name][of_truth] = truth[name]
        offset = np.asarray(detections[name], dtype=float)[found] - table[name][row[found]]
        table[f"offset_{name}"][row[found]] = offset
    for name in _TRUTH_OPTIONAL:
        if name in truth:
            table[name][of_truth] = truth[name]
    table["detection_id"][row] = detections["id"]
    table["detected_is_star"][row] = detections["is_star"]
    table["score"][row] = detections["score"]
    if "p_star" in detections:
        table["p_star"][row] = detections["p_star"]
    for suffix in ("", *(f"_{band}" for band in bands)):
        if f"flux{suffix}" in truth:
            table[f"flux_truth{suffix}"][of_truth] = truth[f"flux{suffix}"]
        if f"flux{suffix}" in detections:
            table[f"flux_detected{suffix}"][row] = detections[f"flux{suffix}"]
    if "mag" not in truth:
        table["mag"] = ab_magnitude(table["flux_truth"])
    table["mag_detected"] = ab_magnitude(table["flux_detected"])
    if iou is not None:
        given = np.asarray(iou, dtype=float).reshape(-1)
        if len(given) != n_found:
            raise ValueError(f"One IoU per detection is needed: {len(given)} for {n_found} detections.")
        table["iou"][row[found]] = given[found]
    table["separation"] = np.hypot(table["offset_x"], table["offset_y"])
    if pixel_scale is not None:
        table["separation_arcsec"] = pixel_scale * table["separation"]

    if "ignored" in detections:
        table["ignored"][row] = detections["ignored"]
    table["ignored"][row[in_crowd]] = True
    if "ignored" in truth:
        # What is found of an ignored truth is neither right nor wrong; what is found of a counted one counts.
        table["ignored"][of_truth] = truth["ignored"]
    else:
        table["ignored"][of_truth] = False
    _set_outcomes(table, n_truth, row, truth_outcome, detection_outcome)
    return table


def truth_rows(table: MatchTable, is_star: bool | None = None) -> NDArray[np.bool_]:
    """Tell which rows have a truth that counts.

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
    """Tell which rows have a detection that counts.

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
    """Tell which rows have a truth and its detection.

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


def _one_to_one(
    match: NDArray[np.int64], truth_ignored: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # A row holds one detection; further ones of an ignored truth, such as a crowd, get rows of their own.
    found = np.flatnonzero(match >= 0)
    further = np.ones(len(match), dtype=bool)
    further[found[np.unique(match[found], return_index=True)[1]]] = False
    in_crowd = np.flatnonzero(further & (match >= 0))
    if len(in_crowd) and (truth_ignored is None or not np.asarray(truth_ignored)[match[in_crowd]].all()):
        raise ValueError("A truth that counts has more than one detection; matches must be one to one.")
    single = match.copy()
    single[in_crowd] = -1
    return single, in_crowd


def _set_outcomes(
    table: NDArray[np.void],
    n_truth: int,
    row: NDArray[np.int64],
    truth_outcome: ArrayLike | None,
    detection_outcome: ArrayLike | None,
) -> None:
    has_truth, has_found = table["truth_id"] >= 0, table["detection_id"] >= 0
    table["outcome"] = np.where(has_truth, np.where(has_found, "matched", "missed"), "spurious")
    if detection_outcome is not None:
        given = np.asarray(detection_outcome)
        if given.shape != row.shape:
            raise ValueError(f"One outcome per detection is needed: {given.shape} for {row.shape}.")
        alone = row >= n_truth
        table["outcome"][row[alone]] = given[alone]
    if truth_outcome is not None:
        given = np.asarray(truth_outcome)
        if given.shape != (n_truth,):
            raise ValueError(f"One outcome per truth is needed: {given.shape} for {n_truth} truths.")
        table["outcome"][:n_truth] = given
    table["outcome"][table["ignored"]] = "ignored"
    unknown = set(np.unique(table["outcome"]).tolist()) - set(OUTCOMES)
    if unknown:
        raise ValueError(f"Outcomes must be among {OUTCOMES}; given were also {sorted(unknown)}.")
