# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Blends: groups of true sources and detections that touch each other.

Matching one truth to one detection does not say why a source is missing. Here
truths and detections are joined by friends of friends without a main
catalogue (as by Mao et al. 2021, ApJ 907, 85, for sky positions), and each
group is judged by how many of each it holds. A blend whose members were all
found is *recognized*; one of which fewer objects were made than it has
members is *unrecognized* (Melchior et al. 2021, Nat. Rev. Phys. 3, 712; Liang
et al. 2025, arXiv:2503.16680; SITCOMTN-128 of the Rubin Observatory).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import scipy.spatial
from numpy.typing import ArrayLike, NDArray

from .arrays import BoolArray, FloatArray, IntArray

BLEND_KINDS = ("recognized", "unrecognized", "shredded", "mismatched", "missed")
"""How a group of two truths or more can end; see `classify_groups`."""

GROUP_KINDS = ("isolated", *BLEND_KINDS, "spurious")
"""How any group of truths and detections can end."""

BLEND_DTYPE = np.dtype(
    [("image", "i8"), ("kind", "U12"), ("n_truth", "i8"), ("n_detection", "i8"), ("quality", "f8")]
)
"""One row per group of truths and detections of several images."""

_BLEND_SHARE, _BLEND_SNR = 0.1, 5.0
"""Share of the flux of two sources that each must have, and S/N, to blend with the other."""

_LINK_IOU, _LINK_SHARE = 0.3, 0.5
"""IoU from which masks are linked, or share of the smaller that lies in the other: a faint source within a
bright one's detection has a small IoU."""


def blended_truths(x: ArrayLike, y: ArrayLike, flux: ArrayLike, snr: ArrayLike, fwhm: float) -> BoolArray:
    """Find the true sources that are within one FWHM of another that counts, bool, (truth,).

    ``maskrcnn_pBlend`` is the probability of it. Positions and the FWHM of the PSF
    are in px. Both of two sources must have a tenth of their flux and a S/N of 5.

    Examples
    --------
    >>> blended_truths([0.0, 3.0, 9.0], [0.0, 0.0, 0.0], [9.0, 2.0, 9.0], [90, 20, 90], fwhm=4.0).tolist()
    [True, True, False]
    """
    places = np.stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)], axis=1)
    light, bright = np.asarray(flux, dtype=float), np.asarray(snr, dtype=float) >= _BLEND_SNR
    blended = np.zeros(len(places), bool)
    one, other = scipy.spatial.cKDTree(places).query_pairs(fwhm, output_type="ndarray").T
    least = np.minimum(light[one], light[other]) >= _BLEND_SHARE * (light[one] + light[other])
    both = least & bright[one] & bright[other]
    blended[one[both]] = blended[other[both]] = True
    return blended


@dataclass(frozen=True)
class BlendGroups:
    """Groups of true sources and detections."""

    truth_group: IntArray  # number of the group of each truth; -1 for an ignored one, (truth,)
    detection_group: IntArray  # number of the group of each detection; -1 for an ignored one, (detection,)
    # Members of each group, (group,).
    n_truth: IntArray
    n_detection: IntArray

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.n_truth)


def overlap_links(
    first: ArrayLike, second: ArrayLike, iou: ArrayLike, first_area: ArrayLike, second_area: ArrayLike
) -> IntArray:
    """Link masks that overlap by much: pairs (first, second), int64, (link, 2).

    Given are the indices of pairs of masks that share pixels and their IoU, (pair,), and
    the areas (px) of all masks of the two sets.
    """
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    iou = np.asarray(iou, dtype=float)
    a, b = np.asarray(first_area)[first], np.asarray(second_area)[second]
    # IoU = I / (A + B - I), so that the intersection I = IoU (A + B) / (1 + IoU).
    shared = iou * (a + b) / (1.0 + iou)
    linked = (iou >= _LINK_IOU) | (shared >= _LINK_SHARE * np.minimum(a, b))
    return np.stack([first[linked], second[linked]], axis=1)


def peak_links(first: ArrayLike, second: ArrayLike, length: float) -> IntArray:
    """Link positions (x, y), (source, 2), within a length: sorted pairs (first, second), int64, (link, 2).

    Positions that are not finite are linked to nothing. One FWHM of the PSF is
    a common length; in a crowded field a large one joins everything (percolation).
    """
    if not length > 0.0:
        raise ValueError(f"The linking length must be positive; given was {length}.")
    a, b = np.asarray(first, dtype=float).reshape(-1, 2), np.asarray(second, dtype=float).reshape(-1, 2)
    of_a, of_b = np.flatnonzero(np.isfinite(a).all(axis=1)), np.flatnonzero(np.isfinite(b).all(axis=1))
    if not len(of_a) or not len(of_b):
        return np.zeros((0, 2), dtype=np.int64)
    tree_a, tree_b = scipy.spatial.cKDTree(a[of_a]), scipy.spatial.cKDTree(b[of_b])
    near = tree_a.sparse_distance_matrix(tree_b, length, output_type="ndarray")
    links = np.stack([of_a[near["i"]], of_b[near["j"]]], axis=1).astype(np.int64)
    return links[np.lexsort((links[:, 1], links[:, 0]))]


def friends_of_friends(
    n_truth: int,
    n_detection: int,
    links: ArrayLike,
    *,
    truth_links: ArrayLike | None = None,
    ignored_truth: ArrayLike | None = None,
    ignored_detection: ArrayLike | None = None,
) -> BlendGroups:
    """Join truths and detections that are linked, directly or through others.

    Pairs (truth, detection), (link, 2), are those of `overlap_links` or `peak_links`.
    With links between truths, (link, 2), a blend is defined by the truth alone, also
    where nothing was found; masks with wide wings join much of a crowded field.
    Ignored truths and detections, bool, such as those matched to an ignored truth,
    belong to no group and link nothing; a detection whose only links are to ignored
    truths belongs to none either. Groups are numbered by their first truth, then first
    detection; every source that is not ignored is in one.

    Examples
    --------
    >>> groups = friends_of_friends(3, 2, [[0, 0], [1, 0], [2, 1]])
    >>> groups.truth_group.tolist(), groups.n_truth.tolist()
    ([0, 0, 1], [2, 1])
    """
    links = _check_links(links, n_truth, n_detection)
    within = _check_links([] if truth_links is None else truth_links, n_truth, n_truth)
    no_truth = _flags(ignored_truth, n_truth, "truth")
    no_detection = _flags(ignored_detection, n_detection, "detection")
    counted = np.zeros(n_detection, dtype=bool)
    counted[links[~no_truth[links[:, 0]], 1]] = True
    linked = np.zeros(n_detection, dtype=bool)
    linked[links[:, 1]] = True
    no_detection |= linked & ~counted

    links = links[~no_truth[links[:, 0]] & ~no_detection[links[:, 1]]]
    within = within[~no_truth[within].any(axis=1)]
    n = n_truth + n_detection
    rows = np.concatenate([links[:, 0], within[:, 0]])
    columns = np.concatenate([links[:, 1] + n_truth, within[:, 1]])
    graph = scipy.sparse.coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(n, n))
    _, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    kept = ~np.concatenate([no_truth, no_detection])
    group = np.full(n, -1, dtype=np.int64)
    if kept.any():
        _, first, inverse = np.unique(label[kept], return_index=True, return_inverse=True)
        group[kept] = np.argsort(np.argsort(first))[inverse]
    truth_group, detection_group = group[:n_truth], group[n_truth:]
    n_groups = int(group.max(initial=-1)) + 1
    return BlendGroups(
        truth_group,
        detection_group,
        np.bincount(truth_group[truth_group >= 0], minlength=n_groups),
        np.bincount(detection_group[detection_group >= 0], minlength=n_groups),
    )


def classify_groups(groups: BlendGroups, match: ArrayLike) -> NDArray[np.str_]:
    """Classify how each group ended, one of `GROUP_KINDS`, (group,).

    ``match`` is the index of the truth of each detection, or -1, (detection,).
    With t truths and d detections in the group:

    - ``isolated``: t = d = 1 and they match;
    - ``recognized``: t = d > 1 and each truth has its match;
    - ``unrecognized``: 0 < d < t: several sources were taken for fewer;
    - ``shredded``: d > t > 0: a source was split into several;
    - ``mismatched``: t = d, but not all match: the number is right, the
      masks are not;
    - ``missed``: d = 0;
    - ``spurious``: t = 0.
    """
    match = _check_match(groups, match)
    t, d = groups.n_truth, groups.n_detection
    found = (match >= 0) & (groups.detection_group >= 0)
    # A match across groups, possible where links are by position, does not make its group right.
    found[found] = groups.truth_group[match[found]] == groups.detection_group[found]
    hits = np.bincount(groups.detection_group[found], minlength=groups.n_groups)
    right = (t == d) & (hits == t)
    return np.select(
        [t == 0, d == 0, d < t, d > t, right & (t == 1), right],
        ["spurious", "missed", "unrecognized", "shredded", "isolated", "recognized"],
        "mismatched",
    )


def source_outcomes(groups: BlendGroups, match: ArrayLike) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Classify how each truth and each detection ended, (truth,) and (detection,).

    ``match`` is the index of the truth of each detection, or -1. Outcomes are
    among `match_table.OUTCOMES`: ``matched``, ``ignored``, and for those
    without partner ``missed`` or ``spurious`` where their group has none of the
    other kind, else the kind of their group.
    """
    match = _check_match(groups, match)
    # Last, so that the -1 of the ignored leads there.
    kinds = np.append(classify_groups(groups, match), "ignored").astype("U12")
    truth, detection = kinds[groups.truth_group], kinds[groups.detection_group]
    # A piece without partner is what became of its group; in one with too few detections it fits no member.
    detection[detection == "unrecognized"] = "mismatched"
    matched_truth = np.zeros(len(truth), dtype=bool)
    matched_truth[match[match >= 0]] = True
    # Links stricter than the match can leave matched sources in groups of their own.
    truth[matched_truth & (truth != "ignored")] = "matched"
    detection[(match >= 0) & (detection != "ignored")] = "matched"
    return truth, detection


def group_quality(groups: BlendGroups, match: ArrayLike, iou: ArrayLike) -> FloatArray:
    """Rate each group by the overlap of its masks, between 0 and 1, (group,).

    ``match`` and ``iou`` are the index of the truth of each detection, or -1,
    and its intersection over union with it, (detection,). The figure is the
    panoptic quality of Kirillov et al. (2019, CVPR, 9404) of each group: the sum
    of the IoU of matched pairs over their number plus half the numbers of truths
    and of detections without partner.
    """
    match = _check_match(groups, match)
    found = np.flatnonzero((match >= 0) & (groups.detection_group >= 0))
    overlap = np.asarray(iou, dtype=float)[found]
    total = np.bincount(groups.detection_group[found], weights=overlap, minlength=groups.n_groups)
    # Pairs + (t - pairs) / 2 + (d - pairs) / 2.
    return total / (0.5 * (groups.n_truth + groups.n_detection))


def group_boxes(groups: BlendGroups, truth_boxes: ArrayLike, detection_boxes: ArrayLike) -> IntArray:
    """Join the boxes of masks, [x0, y0, x1, y1], half open (px), to those of groups, int64, (group, 4)."""
    truth, found = np.asarray(truth_boxes).reshape(-1, 4), np.asarray(detection_boxes).reshape(-1, 4)
    group = np.concatenate([groups.truth_group, groups.detection_group])
    boxes = np.concatenate([truth, found]).astype(np.int64)
    boxes, group = boxes[group >= 0], group[group >= 0]
    result = np.empty((groups.n_groups, 4), dtype=np.int64)
    result[:, :2], result[:, 2:] = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    np.minimum.at(result[:, :2], group, boxes[:, :2])
    np.maximum.at(result[:, 2:], group, boxes[:, 2:])
    return result


def _check_links(links: ArrayLike, n_first: int, n_second: int) -> IntArray:
    checked = np.asarray(links, dtype=np.int64).reshape(-1, 2)
    if np.any(checked < 0) or np.any(checked >= (n_first, n_second)):
        raise ValueError(f"Links must point to one of {n_first} and one of {n_second} sources, from 0 on.")
    return checked


def _check_match(groups: BlendGroups, match: ArrayLike) -> IntArray:
    checked = np.asarray(match, dtype=np.int64).reshape(-1)
    if len(checked) != len(groups.detection_group):
        raise ValueError(
            f"One match per detection is needed; given were {len(checked)} for {len(groups.detection_group)}."
        )
    return checked


def _flags(given: ArrayLike | None, n: int, what: str) -> BoolArray:
    if given is None:
        return np.zeros(n, dtype=bool)
    flags = np.array(given, dtype=bool)
    if flags.shape != (n,):
        raise ValueError(f"One flag per {what} is needed; given was the shape {flags.shape} for {n}.")
    return flags
