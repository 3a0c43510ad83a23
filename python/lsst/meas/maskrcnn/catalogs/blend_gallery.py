# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pictures of the blends of several patches."""

from __future__ import annotations

__all__ = ["BlendGallery", "cut_group"]

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsst.afw.image import ExposureF
from lsst.geom import Box2I, Extent2I, Point2I

from ..metrics.evaluation_metrics import GalleryEntry, make_gallery_entry
from ..report.gallery import GalleryPanel, cut_panel
from .compare import EvaluationPatch, PatchComparison, calibration


class BlendGallery:
    """The best and the worst blends of the patches seen so far.

    Parameters
    ----------
    number : `int`
        Number of blends of each sort.
    bands : `~collections.abc.Sequence` [`str`]
        Three bands, the reddest first.
    """

    def __init__(self, number: int, bands: Sequence[str]) -> None:
        self.number = number
        self.bands = list(bands)
        self.n_blends = 0
        # By how extreme, the smallest first: rank, place, panel and entry.
        self._kept: dict[str, list[tuple[tuple[float, int], tuple[int, ...], GalleryPanel, GalleryEntry]]] = {
            "best": [],
            "worst": [],
        }

    def add(self, patch: EvaluationPatch, comparison: PatchComparison) -> None:
        """Look at the blends of a patch.

        Parameters
        ----------
        patch : `EvaluationPatch`
            The patch; one without exposures in the bands is passed over.
        comparison : `PatchComparison`
            What came of it.
        """
        if not set(self.bands) <= set(patch.exposures):
            return
        members = comparison.groups.n_truth
        blends = np.flatnonzero(members > 1)
        self.n_blends += len(blends)
        # What is among the best is not shown among the worst, so that twice as many of those are kept.
        for kind, sign, number in (("best", -1.0, self.number), ("worst", 1.0, 2 * self.number)):
            kept = self._kept[kind]
            order = np.lexsort((blends, -members[blends], sign * comparison.quality[blends]))
            for group in blends[order].tolist():
                quality = float(comparison.quality[group])
                rank = (sign * quality, -int(members[group]))
                if len(kept) == number and rank >= kept[-1][0]:
                    break
                panel, corner = cut_group(patch, comparison, group, self.bands)
                entry = make_gallery_entry(
                    panel, kind=kind, tract=patch.tract, patch=patch.patch, quality=quality, corner=corner
                )
                kept.append((rank, (patch.tract, patch.patch, group), panel, entry))
                kept.sort(key=lambda item: item[0])
                del kept[number:]

    def _chosen(self, kind: str) -> list[tuple[GalleryPanel, GalleryEntry]]:
        best = self._kept["best"][: min(self.number, (self.n_blends + 1) // 2)]
        places = {item[1] for item in best}
        chosen = best if kind == "best" else [item for item in self._kept[kind] if item[1] not in places]
        return [(panel, entry) for _, _, panel, entry in chosen[: self.number]]

    def panels(self, kind: str) -> list[GalleryPanel]:
        """Give the pictures of a sort.

        Parameters
        ----------
        kind : `str`
            ``best`` or ``worst``.

        Returns
        -------
        panels : `list` [`GalleryPanel`]
            The most extreme first; none of the best is among the worst.
        """
        return [panel for panel, _ in self._chosen(kind)]

    def entries(self) -> list[GalleryEntry]:
        """Give the blends for a file.

        Returns
        -------
        entries : `list` [`GalleryEntry`]
            The best, then the worst.
        """
        return [entry for kind in self._kept for _, entry in self._chosen(kind)]


def cut_group(
    patch: EvaluationPatch, comparison: PatchComparison, group: int, bands: Sequence[str]
) -> tuple[GalleryPanel, tuple[int, int]]:
    """Cut a group of sources out of the exposures.

    Parameters
    ----------
    patch : `EvaluationPatch`
        A patch with exposures in these bands.
    comparison : `PatchComparison`
        What came of it.
    group : `int`
        Number of the group.
    bands : `~collections.abc.Sequence` [`str`]
        Three bands, the reddest first.

    Returns
    -------
    panel : `~lsst.meas.maskrcnn.report.gallery.GalleryPanel`
        Its residual is the image in the middle band without what was found:
        minus the pixels of the heavy footprints where the catalogue has them,
        else without the pixels of all footprints; in units of the noise.
    corner : `tuple` [`int`, `int`]
        (x0, y0) of the cut-out in the parent frame.
    """
    x0, y0, x1, y1 = (int(side) for side in comparison.boxes[group])
    margin, least = 8, 40
    size = max(x1 - x0 + 2 * margin, y1 - y0 + 2 * margin, least)
    corner = ((x0 + x1 - size) // 2, (y0 + y1 - size) // 2)
    # Statistics of the noise and sources that reach in need some of the surroundings.
    box = Box2I(Point2I(corner[0] - size, corner[1] - size), Extent2I(3 * size, 3 * size))
    box.clip(patch.exposures[bands[0]].getBBox())
    left, bottom = box.getMinX(), box.getMinY()
    parts = [patch.exposures[band][box] for band in bands]
    scales = [calibration(part) for part in parts]
    # Colours need relative calibrations; without any, electrons have to do.
    scales = scales if np.isfinite(scales).all() else [1.0] * len(parts)
    image = np.stack([part.image.array * scale for part, scale in zip(parts, scales)])
    noise = np.array([_noise(part) * scale for part, scale in zip(parts, scales)])
    truth, found = comparison.truth, comparison.detections
    near = np.flatnonzero(_reach_in(found.spans.boxes, box))
    found_masks, found_origins = found.spans.select(near).to_masks()
    shapes = np.array([mask.shape for mask in truth.masks], dtype=np.int64).reshape(-1, 2)
    truth_boxes = np.concatenate([truth.origins[:, ::-1], (truth.origins + shapes)[:, ::-1]], axis=1)
    true = np.flatnonzero(_reach_in(truth_boxes, box) & (shapes.prod(axis=1) > 0))
    residual = _residual(parts[len(parts) // 2], [found.footprints[i] for i in near.tolist()])
    n_truth, n_found = comparison.groups.n_truth[group], comparison.groups.n_detection[group]
    panel = cut_panel(
        image,
        (x0 - left, y0 - bottom, x1 - left, y1 - bottom),
        [truth.masks[i] for i in true.tolist()],
        truth.origins[true] - (bottom, left),
        truth.is_star[true],
        found_masks,
        found_origins - (bottom, left),
        found.is_star[near],
        noise=noise if np.isfinite(noise).all() and (noise > 0).all() else None,
        residual=residual,
        caption=f"{n_truth} true, {n_found} found\nquality {comparison.quality[group]:.2f}",
        margin=margin,
        min_size=least,
    )
    return panel, corner


def _noise(exposure: ExposureF) -> float:
    variance = exposure.variance.array
    usable = np.isfinite(variance) & (variance > 0)
    return float(np.sqrt(np.median(variance[usable]))) if usable.any() else float("nan")


def _reach_in(boxes: np.ndarray, box: Box2I) -> np.ndarray:
    return (
        (boxes[:, 0] <= box.getMaxX())
        & (boxes[:, 1] <= box.getMaxY())
        & (boxes[:, 2] > box.getMinX())
        & (boxes[:, 3] > box.getMinY())
    )


def _residual(exposure: ExposureF, footprints: Sequence[Any]) -> np.ndarray:
    """Image without what was found, in units of the noise."""
    box = exposure.getBBox()
    image = exposure.image.clone()
    for footprint in footprints:
        spans = footprint.getSpans().clippedTo(box)
        if footprint.isHeavy():
            model = footprint.extractImage(fill=0.0)
            inner = model.getBBox()
            inner.clip(box)
            if not inner.isEmpty():
                image[inner].array[:] -= model[inner].array
        else:
            spans.setImage(image, 0.0)
    variance = exposure.variance.array
    sigma = np.sqrt(np.where(variance > 0, variance, np.nan))
    return np.where(np.isfinite(sigma), image.array / sigma, np.nan)
