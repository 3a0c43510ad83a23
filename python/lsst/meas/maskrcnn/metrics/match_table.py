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
`False`; use `MatchedSources`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..images.classes import IS_STAR
from ..images.units import AB_ZERO_POINT
from .arrays import BoolArray, FloatArray, IntArray
from .binned import BinnedFraction, binned_fraction

OUTCOMES = ("matched", "missed", "unrecognized", "shredded", "mismatched", "spurious", "ignored")
"""How a source can end, see `blends.source_outcomes`."""

_CLEAN = 0.9
"""Share of the sources that is called clean of blends, those of the lowest ``p_blend``."""

_COLUMNS = [
    *((name, "i8") for name in ("image", "truth_id", "detection_id")),
    *((name, "f8") for name in ("x", "y", "iou")),
    *((name, "?") for name in ("truth_is_star", "detected_is_star")),
    *((name, "f8") for name in ("score", "p_star", "p_blend", "mag", "mag_detected", "snr")),
    *((name, "f8") for name in ("flux_truth", "flux_detected", "flux_model")),
    *((name, "f8") for name in ("offset_x", "offset_y", "separation", "separation_arcsec")),
    *((name, "f8") for name in ("blendedness", "neighbor_distance", "blended")),
    ("ignored", "?"),
    ("outcome", "U12"),
]

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

    Columns of both are ``id``, ``x``, ``y``, ``is_star`` and, of the detections, ``score``; where known
    ``flux``, ``flux_<band>``, ``mag`` and ``ignored``, of the truth ``snr``, ``blendedness``,
    ``neighbor_distance`` and ``blended``, of the detections ``p_star``, ``p_blend``, ``model`` and
    ``model_<band>``. ``match`` is the index of the truth of each detection, or -1, and ``iou`` that with it.
    Outcomes are those of `blends.source_outcomes`. The pixel scale is in arcsec; ``bands`` are those of which
    fluxes are kept.

    First come the truths in their order, then the detections without one; see the head of this module for the
    columns.
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


@dataclass(frozen=True, eq=False)
class MatchedSources:
    """The match table of some patches, and which rows of it count for what."""

    table: NDArray[np.void]  # ``image`` is the index into ``names``
    names: tuple[str, ...] = ()  # of the patches
    classes: tuple[str, ...] = ("all",)  # those that are separated, ``all`` first
    # Lowest score of the detections that figures are of, but for the calibration of scores.
    min_score: float | None = None
    band: str = ""  # reference band
    bands: tuple[str, ...] = ()  # of the table, from blue to red

    def truths(self, is_star: bool | None = None) -> BoolArray:
        """Rows with a truth that counts, of all classes or of true stars or galaxies, (row,)."""
        return self._rows("truth_id", "truth_is_star", is_star)

    def detections(self, is_star: bool | None = None) -> BoolArray:
        """Rows with a detection that counts, of all or of what was classed as star or galaxy, (row,)."""
        rows = self._rows("detection_id", "detected_is_star", is_star)
        return rows if self.min_score is None else rows & (self.table["score"] >= self.min_score)

    def matched(self, is_star: bool | None = None) -> BoolArray:
        """Rows with a truth, of all classes or of true stars or galaxies, and its detection, (row,)."""
        return self.truths(is_star) & self.detections()

    def share(self, measure: str, is_star: bool | None = None) -> tuple[BoolArray, BoolArray]:
        """Rows that count for a share, such as completeness, and all of which they are a part, (row,)."""
        true, found, matched = self.truths(is_star), self.detections(is_star), self.matched()
        right = matched & (self.table["truth_is_star"] == self.table["detected_is_star"])
        hits, total = {
            "completeness": (matched, true),
            "completeness_same_class": (right, true),
            "purity": (matched, found),
            "purity_same_class": (right, found),
            "class_accuracy": (right, matched),
            "class_completeness": (right, matched & true),
            "class_purity": (right, matched & found),
        }[measure]
        return hits & total, total

    def binned_share(
        self, measure: str, column: str, edges: ArrayLike, is_star: bool | None = None
    ) -> BinnedFraction:
        """Compute a share in bins of a column."""
        hits, total = self.share(measure, is_star)
        return binned_fraction(self.table[column][total], hits[total], edges)

    def blend_cases(self) -> tuple[BoolArray, BoolArray]:
        """Matched rows with a probability of being a blend and known truth, and the 90 % lowest of them."""
        p_blend = self.table["p_blend"]
        rows = self.matched() & np.isfinite(p_blend) & np.isfinite(self.table["blended"])
        limit = np.quantile(p_blend[rows], _CLEAN) if rows.any() else np.nan
        return rows, rows & (p_blend <= limit)

    def probabilities(self) -> dict[str, tuple[BoolArray, FloatArray, BoolArray]]:
        """Probabilities, and whether each came true, with the rows that they are of.

        They are ``score/<class>`` of all detections whatever ``min_score``, which need not be probabilities
        and are then left out, and ``p_star`` and ``p_blend`` of matched sources, where known.
        """
        everything, several = replace(self, min_score=None), len(self.classes) > 1
        hits, total = everything.share("purity_same_class" if several else "purity")
        cases = {}
        if _are_probabilities(self.table["score"][total]):
            for name in self.classes:
                rows = everything.detections(IS_STAR[name])
                cases[f"score/{name}"] = rows, self.table["score"][rows], hits[rows]
        rows = self.matched() & np.isfinite(self.table["p_star"])
        others = {"p_star": (rows, self.table["truth_is_star"])} if several else {}
        others["p_blend"] = self.blend_cases()[0], self.table["blended"] == 1
        for name, (rows, true) in others.items():
            if _are_probabilities(self.table[name][rows]):
                cases[name] = rows, self.table[name][rows], true[rows]
        return cases

    def _rows(self, number: str, column: str, is_star: bool | None) -> BoolArray:
        rows = (self.table[number] >= 0) & ~self.table["ignored"]
        return rows if is_star is None else rows & (self.table[column] == is_star)


def _are_probabilities(values: FloatArray) -> bool:
    """Whether there are any values, all between 0 and 1."""
    return len(values) > 0 and bool(((values >= 0.0) & (values <= 1.0)).all())


_FLUX_OFF = 0.3
"""Relative error of a model flux from which on it is a failure, if it is also five times its S/N."""


def find_failures(table: NDArray[np.void]) -> dict[int, tuple[float, str]]:
    """Find the sources that were missed, made up, or classed or measured wrongly.

    By row: flux that is lost, made up or off (nJy), and what happened.
    """
    sources = MatchedSources(table)
    true, found = sources.truths(), sources.detections()
    made_up = 0.4 * (AB_ZERO_POINT - table["mag_detected"])
    made_up = np.where(np.isfinite(made_up), 10.0 ** np.nan_to_num(made_up), 0.0)
    flux = np.nan_to_num(table["flux_truth"])
    off = np.abs(table["flux_model"] - flux)
    tolerance = np.maximum(_FLUX_OFF, 5.0 / np.maximum(np.nan_to_num(table["snr"]), 0.1))
    failures = {}
    for row in np.flatnonzero(true | found).tolist():
        outcome, one = str(table["outcome"][row]), table[row]
        kind, given = ("star" if one[name] else "galaxy" for name in ("truth_is_star", "detected_is_star"))
        mag = f"{one['mag']:.1f} mag"
        if true[row] and outcome != "matched":
            failures[row] = float(flux[row]), f"{outcome}: {kind} of {mag}"
        elif not true[row]:
            failures[row] = float(made_up[row]), f"{outcome}: {given} of {one['mag_detected']:.1f} mag"
        elif kind != given:
            failures[row] = float(flux[row]), f"{kind} of {mag} called {given}"
        elif off[row] > tolerance[row] * flux[row]:
            ratio = one["flux_model"] / flux[row]
            failures[row] = float(off[row]), f"{kind} of {mag}: model flux {ratio:.2f} of the true"
    return failures


def ab_magnitude(flux: ArrayLike) -> FloatArray:
    """Convert fluxes (nJy) to AB magnitudes; NaN where the flux is not positive."""
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


def _check_match(match: ArrayLike, n_truth: int, n_found: int) -> IntArray:
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
    row: IntArray,
    bands: Sequence[str],
) -> None:
    """Fill in what is known of truths and of detections alone."""
    suffixes = ["", *(f"_{band}" for band in bands)]
    of_truth = {f"truth_{name}": name for name in ("id", "is_star")} | {name: name for name in _OPTIONAL}
    of_truth |= {f"flux_truth{suffix}": f"flux{suffix}" for suffix in suffixes}
    of_detection = {"detection_id": "id", "detected_is_star": "is_star"}
    of_detection |= {name: name for name in ("score", "p_star", "p_blend")}
    of_detection |= {f"flux_detected{suffix}": f"flux{suffix}" for suffix in suffixes}
    of_detection |= {f"flux_model{suffix}": f"model{suffix}" for suffix in suffixes}
    for columns, given, rows in (
        (of_truth, truth, slice(0, len(np.asarray(truth["id"])))),
        (of_detection, detections, row),
    ):
        for column, name in columns.items():
            if name in given:
                table[column][rows] = given[name]
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
