# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Matching of masks and average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["MaskPairs", "average_precision", "greedy_match", "mask_pairs"]

Masks = Sequence[npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class MaskPairs:
    """The pairs of masks that share pixels.

    Parameters
    ----------
    first, second : `numpy.ndarray`
        Indices into the two sets, int64, (pair,).
    iou : `numpy.ndarray`
        Intersection over union, float64, (pair,).
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]


def mask_pairs(
    first: Masks, first_origins: npt.NDArray[np.int32], second: Masks, second_origins: npt.NDArray[np.int32]
) -> MaskPairs:
    """Find which masks of two sets overlap, and by how much.

    Parameters
    ----------
    first : `~collections.abc.Sequence` [`numpy.ndarray`]
        Masks, bool, (y, x) each.
    first_origins : `numpy.ndarray`
        (y0, x0) of each mask, (mask, 2), pixels.
    second, second_origins : as above
        Those of the other set.

    Returns
    -------
    pairs : `MaskPairs`
        Only pairs that share at least a pixel, by first, then second index.
    """
    box_a, box_b = _boxes(first, first_origins), _boxes(second, second_origins)
    area_a = [int(np.count_nonzero(mask)) for mask in first]
    area_b = [int(np.count_nonzero(mask)) for mask in second]
    rows: list[tuple[int, int, float]] = []
    for i, mask in enumerate(first):
        y0, x0, y1, x1 = box_a[i]
        near = (box_b[:, 0] < y1) & (box_b[:, 2] > y0) & (box_b[:, 1] < x1) & (box_b[:, 3] > x0)
        for j in np.flatnonzero(near).tolist():
            v0, u0, v1, u1 = box_b[j]
            top, left, bottom, right = max(y0, v0), max(x0, u0), min(y1, v1), min(x1, u1)
            mine = mask[top - y0 : bottom - y0, left - x0 : right - x0]
            other = second[j][top - v0 : bottom - v0, left - u0 : right - u0]
            shared = int(np.count_nonzero(mine & other))
            if shared:
                rows.append((i, j, shared / (area_a[i] + area_b[j] - shared)))
    return MaskPairs(
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=np.float64),
    )


def greedy_match(
    pairs: MaskPairs, scores: npt.NDArray[np.float32], n_truth: int, threshold: float = 0.5
) -> npt.NDArray[np.int64]:
    """Give each detection, by descending score, its best free truth.

    Parameters
    ----------
    pairs : `MaskPairs`
        Pairs of detections (first) and truths (second).
    scores : `numpy.ndarray`
        Scores of the detections, (detection,).
    n_truth : `int`
        Number of truths.
    threshold : `float`
        Smallest IoU of a match.

    Returns
    -------
    match : `numpy.ndarray`
        Index of the truth of each detection, or -1, int64, (detection,).
        Among equal scores the pair of the larger IoU goes first, so that the
        order of the input does not matter.
    """
    match = np.full(len(scores), -1, dtype=np.int64)
    free = np.ones(n_truth, dtype=bool)
    good = pairs.iou >= threshold
    first, second, iou = pairs.first[good], pairs.second[good], pairs.iou[good]
    for k in np.lexsort((-iou, -np.asarray(scores)[first])):
        if match[first[k]] < 0 and free[second[k]]:
            match[first[k]] = second[k]
            free[second[k]] = False
    return match


def average_precision(scores: npt.NDArray[np.float32], hit: npt.NDArray[np.bool_], n_truth: int) -> float:
    """Compute the area under the interpolated precision-recall curve.

    Parameters
    ----------
    scores : `numpy.ndarray`
        Scores of all detections, pooled over images, (detection,).
    hit : `numpy.ndarray`
        Whether each has a truth, bool, (detection,).
    n_truth : `int`
        Number of truths.

    Returns
    -------
    ap : `float`
        Between 0 and 1; NaN without truths.

    Notes
    -----
    All-point interpolation: precision at a recall is the largest one at that
    recall or beyond (Everingham et al. 2010, IJCV 88, 303, section 4.2, with
    every recall instead of eleven). Detections of equal score enter together.
    """
    if n_truth == 0:
        return float("nan")
    scores = np.asarray(scores)
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(np.asarray(hit, dtype=np.float64)[order])
    if not len(hits):
        return 0.0
    last = np.append(np.diff(scores[order]) != 0, True)
    recall = hits[last] / n_truth
    precision = hits[last] / (np.flatnonzero(last) + 1.0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _boxes(masks: Masks, origins: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    shapes = np.array([mask.shape for mask in masks], dtype=np.int64).reshape(-1, 2)
    corners = np.asarray(origins, dtype=np.int64).reshape(-1, 2)
    return np.concatenate([corners, corners + shapes], axis=1)
