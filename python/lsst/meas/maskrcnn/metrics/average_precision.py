# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Average precision in three definitions.

Images are compared with `ImagePairs.from_spans`, one at a time; what became of
their detections is gathered by `collect_outcomes`, for a class or for all
classes as one; `compute_ap` makes figures and curves of that, and
`ap_statistic` gives them their errors by way of
`~lsst.meas.maskrcnn.metrics.bootstrap.bootstrap`.

The definitions are

- ``perImage``, that of Astro R-CNN (Burke et al. 2019, MNRAS 490, 3952) and of
  what follows it: the unweighted mean over images of their all-point AP, from
  detections of a score of at least `MIN_SCORE`. An image without truths of the
  class is left out, where the published definition makes a NaN of it;
- ``pooled``: all-point interpolated AP of the detections of all images
  together: precision at a recall is the largest one at that recall or beyond
  (Everingham et al. 2010, IJCV 88, 303, section 4.2, with every recall instead
  of eleven);
- ``coco``: the mean of the interpolated precision at `COCO_RECALLS`, as
  ``pycocotools`` and ``faster-coco-eval`` compute it, without their limit on
  the number of detections of an image.

Detections of equal score enter together. There is no AP (NaN) without truths;
without detections it is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .arrays import BoolArray, FloatArray, IntArray
from .binned import divide
from .bootstrap import ImageStatistic
from .matching import IOU_THRESHOLDS, AreaRange, ImagePairs, match

__all__ = [
    "AveragePrecision",
    "Definition",
    "Outcomes",
    "ap_statistic",
    "average_precision",
    "collect_outcomes",
    "compute_ap",
]

Definition = Literal["perImage", "pooled", "coco"]
COCO_RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which the definition ``coco`` reads the precision."""

MIN_SCORE = 0.5
"""Lowest score that ``perImage`` takes in, as it was published."""

# More steps than this in a curve are thinned for the bootstrap, which bounds its time; limits shift by about
# one part in this number.
_MAX_STEPS = 5000


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What became of the detections of several images, at T thresholds."""

    label: int | None
    """The class; `None` for all classes as one."""
    area: AreaRange | None
    """The sizes that count; `None` for all."""
    thresholds: FloatArray
    """Smallest IoU of a match, float64, (T,)."""
    names: tuple[str, ...]
    """Of the images."""
    n_truth: IntArray
    """Truths of each image that count, int64, (image,)."""
    image: IntArray
    """Image of each detection, int64, (detection,)."""
    scores: FloatArray
    """Score of each detection, float64, (detection,)."""
    hit: BoolArray
    """Detections with a truth, bool, (T, detection)."""
    false: BoolArray
    """Detections without, bool, (T, detection). What is neither is ignored."""

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def concatenate(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """Join the outcomes of different images; `ValueError` is raised if they are not of one kind.

        Parameters
        ----------
        parts : `~collections.abc.Sequence` [`Outcomes`]
            At least one; all of one class, area range and set of thresholds.
        """
        if not parts:
            raise ValueError("No outcomes to join: at least one image is needed.")
        first = parts[0]
        for part in parts:
            same_steps = np.array_equal(part.thresholds, first.thresholds)
            if (part.label, part.area) != (first.label, first.area) or not same_steps:
                raise ValueError(
                    f"Outcomes of class {first.label}, {first.area}, thresholds {first.thresholds} and of "
                    f"class {part.label}, {part.area}, thresholds {part.thresholds} cannot be joined."
                )
        starts = np.cumsum([0] + [len(part) for part in parts[:-1]])
        names = tuple(name for part in parts for name in part.names)
        image = np.concatenate([part.image + start for part, start in zip(parts, starts)])
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts], axis=-1)
            for name in ("n_truth", "scores", "hit", "false")
        }
        return cls(first.label, first.area, first.thresholds, names, image=image, **joined)


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """A precision-recall curve, from the highest score to the lowest."""

    recall: FloatArray  # hits over truths, (point,), not falling
    precision: FloatArray  # hits over detections that count, (point,)
    interpolated: FloatArray  # the largest precision at this recall or beyond, (point,)
    scores: FloatArray  # lowest score that is taken in, (point,); NaN where none is


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """Average precision of a class at T thresholds of IoU."""

    definition: Definition
    """``"perImage"``, ``"pooled"`` or ``"coco"``."""
    label: int | None
    """The class; `None` for all classes as one."""
    area: AreaRange | None
    """The sizes that count; `None` for all."""
    thresholds: FloatArray
    """Smallest IoU of a match, float64, (T,)."""
    ap: FloatArray
    """Between 0 and 1, float64, (T,); NaN without truths."""
    recall: FloatArray
    """That of all the detections taken in, float64, (T,); NaN without truths."""
    n_truth: int
    """Number of truths that count."""
    curves: tuple[PrecisionRecall, ...]
    """One for each threshold. Those of ``coco`` and ``perImage`` are given at `COCO_RECALLS`; that of
    ``perImage`` is the mean of the images' interpolated ones."""

    @property
    def mean(self) -> float:
        """Mean over the thresholds, as in AP[.5:.95]."""
        return float(np.mean(self.ap))

    def at(self, threshold: float) -> float:
        """Give the average precision at one threshold; `ValueError` is raised if it was not computed there.

        Parameters
        ----------
        threshold : `float`
            One of ``thresholds``, to a thousandth.
        """
        near = np.flatnonzero(np.abs(self.thresholds - threshold) < 1e-3)
        if not len(near):
            raise ValueError(f"No AP at IoU {threshold}; there is one at {self.thresholds.tolist()}.")
        return float(self.ap[near[0]])


def collect_outcomes(
    images: Iterable[ImagePairs],
    label: int | None = None,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    area: AreaRange | None = None,
) -> Outcomes:
    """Match the detections of images, and gather what became of them, in the order of the images.

    Parameters
    ----------
    images : `~collections.abc.Iterable` [`ImagePairs`]
        The images; at least one. They are looked at one at a time, so a
        generator will do.
    label : `int`, optional
        The class; by default all classes as one.
    thresholds : `~collections.abc.Sequence` [`float`]
        Smallest IoU of a match.
    area : `AreaRange`, optional
        The sizes that count; by default all.

    Examples
    --------
    Two sources, of which one is found, and a false detection of a lower score:

    >>> from lsst.meas.maskrcnn.metrics.spans import SpanMasks
    >>> masks, origins = [np.ones((3, 5), dtype=bool)] * 2, np.array([[7, 0], [20, 9]])
    >>> truths = SpanMasks.from_masks(masks, origins)
    >>> found = SpanMasks.from_masks(masks, origins + [[0, 0], [30, 0]])
    >>> image = ImagePairs.from_spans(found, [0.9, 0.8], [1, 1], truths, [1, 1])
    >>> compute_ap(collect_outcomes([image], label=1), "pooled").at(0.5)
    0.5
    """
    parts = []
    for image in images:
        matches = match(image, thresholds, label, area)
        # What is ignored at every threshold says nothing.
        kept = np.flatnonzero(~matches.ignored.all(axis=0))
        parts.append(
            Outcomes(
                label,
                area,
                matches.thresholds,
                (image.name,),
                np.array([matches.counted.sum()], dtype=np.int64),
                np.zeros(len(kept), dtype=np.int64),
                matches.scores[kept],
                matches.hit[:, kept],
                matches.false[:, kept],
            )
        )
    return Outcomes.concatenate(parts)


def average_precision(scores: npt.ArrayLike, hit: npt.ArrayLike, n_truth: int) -> float:
    """Compute the all-point interpolated average precision, between 0 and 1; NaN without truths.

    Parameters
    ----------
    scores, hit : `numpy.ndarray`
        Scores of all detections, pooled over images, and whether each has a
        truth, (detection,).
    n_truth : `int`
        Number of truths.
    """
    hits = np.asarray(hit, dtype=bool)
    return _area(_curve(np.asarray(scores, dtype=np.float64), hits, ~hits, n_truth), n_truth)


def compute_ap(outcomes: Outcomes, definition: Definition) -> AveragePrecision:
    """Compute the average precision at each threshold.

    Parameters
    ----------
    outcomes : `Outcomes`
        What became of the detections.
    definition : `str`
        ``"perImage"``, ``"pooled"`` or ``"coco"``; `ValueError` is raised for
        any other.
    """
    _check(definition)
    n_truth = int(outcomes.n_truth.sum())
    found = outcomes.hit
    if definition == "perImage":
        found = found[:, outcomes.scores >= MIN_SCORE]
        ap, curves = _mean_of_images(outcomes)
    else:
        curves = [_curve(outcomes.scores, *one, n_truth) for one in zip(outcomes.hit, outcomes.false)]
        ap = np.array([_area(curve, n_truth) for curve in curves])
        if definition == "coco":
            curves = [_at_recalls(curve) for curve in curves]
            ap = np.array([curve.interpolated.mean() if n_truth else np.nan for curve in curves])
    kind = outcomes.label, outcomes.area, outcomes.thresholds
    return AveragePrecision(definition, *kind, ap, divide(found.sum(axis=1), n_truth), n_truth, tuple(curves))


def ap_statistic(outcomes: Outcomes, definition: Definition = "pooled") -> ImageStatistic:
    """Make the average precision at each threshold, (B, T), a function of how often each image counts.

    Parameters
    ----------
    outcomes : `Outcomes`
        What became of the detections; nothing is matched again.
    definition : `str`
        ``"perImage"``, ``"pooled"`` or ``"coco"``.
    """
    _check(definition)
    if definition == "perImage":
        image_ap = np.array([[_area(*curve) for curve in curves] for curves in _image_curves(outcomes)])
        known = np.isfinite(image_ap)
        values = np.where(known, image_ap, 0.0)

        def per_image(weights: FloatArray) -> FloatArray:
            return divide(weights @ values.T, weights @ known.T.astype(np.float64))

        return ImageStatistic(outcomes.names, per_image)

    order = np.argsort(-outcomes.scores, kind="stable")
    scores, image = outcomes.scores[order], outcomes.image[order]
    hits, false = outcomes.hit[:, order], outcomes.false[:, order]

    def pooled(weights: FloatArray) -> FloatArray:
        n_truth = weights @ outcomes.n_truth.astype(np.float64)
        ap = np.empty((len(weights), len(hits)))
        for t in range(len(hits)):
            table = _step_table(scores, image, hits[t], false[t], len(outcomes))
            rows = max(1, 4_000_000 // max(table.shape[-1], 1))
            for start in range(0, len(weights), rows):
                part = slice(start, start + rows)
                ap[part, t] = _weighted_ap(weights[part], table, n_truth[part], definition == "coco")
        return ap

    return ImageStatistic(outcomes.names, pooled)


def _check(definition: str) -> None:
    if definition not in get_args(Definition):
        raise ValueError(f"definition is {definition!r}; it must be 'perImage', 'pooled' or 'coco'.")


def _curve(scores: FloatArray, hit: BoolArray, false: BoolArray, n_truth: int) -> PrecisionRecall:
    """Follow precision and recall down to each score at which the recall grows."""
    counts = np.flatnonzero(hit | false)
    order = counts[np.argsort(-scores[counts], kind="stable")]
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(order) else order
    hits = np.cumsum(hit[order], dtype=np.int64)[last]
    grows = np.diff(hits, prepend=0) > 0
    last, hits = last[grows], hits[grows]
    precision = hits / (last + 1.0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return PrecisionRecall(hits / max(n_truth, 1), precision, envelope, ranked[last])


def _area(curve: PrecisionRecall, n_truth: int) -> float:
    if n_truth == 0:
        return float("nan")
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * curve.interpolated))


def _at_recalls(curve: PrecisionRecall) -> PrecisionRecall:
    """Read a curve at the recalls of COCO; no precision beyond its end."""
    index = np.searchsorted(curve.recall, COCO_RECALLS, side="left")
    precision, scores = np.append(curve.interpolated, 0.0)[index], np.append(curve.scores, np.nan)[index]
    return PrecisionRecall(COCO_RECALLS, precision, precision, scores)


def _image_curves(outcomes: Outcomes) -> list[list[tuple[PrecisionRecall, int]]]:
    """Curve and number of truths of each image at each threshold, from scores of at least `MIN_SCORE`."""
    indices = np.flatnonzero(outcomes.scores >= MIN_SCORE)
    indices = indices[np.argsort(outcomes.image[indices], kind="stable")]
    ends = np.cumsum(np.bincount(outcomes.image[indices], minlength=len(outcomes)))
    parts = np.split(indices, ends[:-1])
    return [
        [
            (_curve(outcomes.scores[part], hit[part], false[part], int(n)), int(n))
            for part, n in zip(parts, outcomes.n_truth)
        ]
        for hit, false in zip(outcomes.hit, outcomes.false)
    ]


def _mean_of_images(outcomes: Outcomes) -> tuple[FloatArray, list[PrecisionRecall]]:
    """Mean AP over the images with truths, (T,), and mean curves."""
    ap, curves = [], []
    nothing = np.full(len(COCO_RECALLS), np.nan)
    for of_images in _image_curves(outcomes):
        known = [(curve, n) for curve, n in of_images if n]
        ap.append(np.mean([_area(curve, n) for curve, n in known]) if known else np.nan)
        grids = [_at_recalls(curve).interpolated for curve, _ in known]
        mean = np.mean(grids, axis=0) if grids else nothing
        curves.append(PrecisionRecall(COCO_RECALLS, mean, mean, nothing))
    return np.array(ap), curves


def _step_table(
    scores: FloatArray, image: IntArray, hit: BoolArray, false: BoolArray, n_images: int
) -> FloatArray:
    """Count hits and detections of each image between the scores at which there is a hit.

    Returns (2, image, step); the detections are sorted by descending score.
    Those below the last hit are left out: they change no precision that counts.
    """
    # Detections of one score end at the last one of them.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else image[:0]
    tie = np.searchsorted(last, np.arange(len(scores)))
    steps = np.unique(tie[hit])
    if len(steps) > _MAX_STEPS:
        steps = steps[np.linspace(0, len(steps) - 1, _MAX_STEPS).round().astype(np.int64)]
    step = np.searchsorted(steps, tie)
    table = np.zeros((2, n_images, len(steps)))
    for k, chosen in enumerate((hit, hit | false)):
        inside = chosen & (step < len(steps))
        code = image[inside] * len(steps) + step[inside]
        table[k] = np.bincount(code, minlength=n_images * len(steps)).reshape(n_images, len(steps))
    return table


def _weighted_ap(weights: FloatArray, table: FloatArray, n_truth: FloatArray, at_recalls: bool) -> FloatArray:
    """Average precision of B sets of images, (B,), from the counts of each image."""
    hits = np.cumsum(weights @ table[0], axis=1)
    precision = np.cumsum(weights @ table[1], axis=1)
    np.divide(hits, precision, out=precision, where=precision > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    if not at_recalls:
        return divide(np.sum(np.diff(hits, axis=1, prepend=0.0) * envelope, axis=1), n_truth)
    ap = np.full(len(weights), np.nan)
    for b in np.flatnonzero(n_truth > 0):
        index = np.searchsorted(hits[b] / n_truth[b], COCO_RECALLS, side="left")
        ap[b] = np.append(envelope[b], 0.0)[index].mean()
    return ap
