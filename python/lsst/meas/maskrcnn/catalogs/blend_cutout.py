# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Blends cut out of exposures, with what is there and what was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.geom import Box2I, Extent2I, Point2D, Point2I

from ..images.pixels import cut_square
from ..metrics.cutouts import BlendCutout, add_models, child_label
from .evaluation import EvaluationPatch, PatchComparison, calibration

# Margin around a blend and smallest side of its cut-out (px).
_MARGIN, _LEAST_SIZE = 8, 40
_FEW = 100
"""Sources near a blend that are drawn at most."""


def cut_group(
    patch: EvaluationPatch, comparison: PatchComparison, group: int, bands: Sequence[str]
) -> BlendCutout:
    """Cut a group of sources out of the exposures in three bands, the reddest first.

    The cut-out is a square, inside of the image as far as it fits. Its residual is that of the models in the
    middle band where the catalogue has models; else the image minus the pixels of the heavy footprints, or
    without the pixels of all footprints; in units of the noise.
    """
    row = comparison.result.groups[group]
    caption = f"{row['n_truth']} true, {row['n_detection']} found\nquality {row['quality']:.2f}"
    children = comparison.members.detection_group == group
    return _cut_box(patch, comparison, comparison.boxes[group], children, bands, caption)


def cut_source(
    patch: EvaluationPatch, comparison: PatchComparison, row: int, bands: Sequence[str], caption: str
) -> BlendCutout:
    """Cut the surroundings of a row of the match table out of the exposures, as `cut_group` does."""
    source = comparison.result.table[row]
    place = np.array([source["x"], source["y"]])
    box = np.concatenate([place - 0.5 * _LEAST_SIZE + _MARGIN, place + 0.5 * _LEAST_SIZE - _MARGIN])
    children = comparison.detections.ids == source["detection_id"]
    return _cut_box(patch, comparison, box, children, bands, caption)


def _cut_box(
    patch: EvaluationPatch,
    comparison: PatchComparison,
    sides: np.ndarray,
    children: np.ndarray,
    bands: Sequence[str],
    caption: str,
) -> BlendCutout:
    """Cut out a square around a box [x0, y0, x1, y1], with the models of the chosen detections."""
    x0, y0, x1, y1 = (int(side) for side in sides)
    size = max(x1 - x0 + 2 * _MARGIN, y1 - y0 + 2 * _MARGIN, _LEAST_SIZE)
    whole = patch.exposures[bands[0]].getBBox()
    corner = (
        _shift((x0 + x1 - size) // 2, size, whole.getMinX(), whole.getMaxX()),
        _shift((y0 + y1 - size) // 2, size, whole.getMinY(), whole.getMaxY()),
    )
    box = Box2I(Point2I(*corner), Extent2I(size, size))
    inner = Box2I(box)
    inner.clip(whole)
    exposures = {band: patch.exposures[band][inner] for band in bands}
    parts = list(exposures.values())
    scales = [calibration(part) for part in parts]
    # Colours need relative calibrations; without any, counts have to do.
    scales = scales if np.isfinite(scales).all() else [1.0] * len(parts)
    noise = np.array([_noise(part) * scale for part, scale in zip(parts, scales)])
    truth, found = comparison.truth, comparison.detections
    near = np.flatnonzero(_reach_in(found.spans.boxes, box))
    found_masks, found_origins = found.spans.select(near).to_masks()
    shapes = np.array([mask.shape for mask in truth.masks], dtype=np.int64).reshape(-1, 2)
    truth_boxes = np.concatenate([truth.origins[:, ::-1], (truth.origins + shapes)[:, ::-1]], axis=1)
    true = np.flatnonzero(_reach_in(truth_boxes, box) & (shapes.prod(axis=1) > 0))

    def padded(pixels: np.ndarray) -> np.ndarray:
        left, bottom = corner[0] - inner.getMinX(), corner[1] - inner.getMinY()
        return cut_square(pixels[None], left, bottom, size)[0]

    wcs = parts[0].getWcs()
    sky = wcs.pixelToSky(Point2D(corner[0] + 0.5 * size, corner[1] + 0.5 * size)) if wcs is not None else None
    cutout = BlendCutout(
        image=np.stack([padded(part.image.array * scale) for part, scale in zip(parts, scales)]),
        noise=noise if (noise > 0).all() else None,
        residual=None,
        corner=corner,
        truth_masks=[truth.masks[i] for i in true.tolist()],
        truth_origins=truth.origins[true] - corner[::-1],
        truth_is_star=truth.is_star[true],
        detection_masks=found_masks,
        detection_origins=found_origins - corner[::-1],
        detection_is_star=found.is_star[near],
        caption=caption,
        sky=None if sky is None else (sky.getRa().asDegrees(), sky.getDec().asDegrees()),
    )
    middle = parts[len(parts) // 2]
    variance = middle.variance.array
    if patch.catalog is not None and _has_models(patch, patch.catalog, bands) and len(near) <= _FEW:
        sigma = padded(np.sqrt(np.where(variance > 0, variance, np.nan))) * scales[len(parts) // 2]
        return _with_models(patch, patch.catalog, comparison, cutout, exposures, near, children, sigma)
    residual = padded(_residual(middle, [found.footprints[i] for i in near.tolist()]))
    return dataclasses.replace(cutout, residual=residual)


def _shift(first: int, size: int, low: int, high: int) -> int:
    """Move a side of a box into the image, if it is not longer."""
    return first if size > high - low + 1 else min(max(first, low), high + 1 - size)


def _has_models(patch: EvaluationPatch, catalog: SourceCatalog, bands: Sequence[str]) -> bool:
    return (
        "maskrcnn_profile_r50" in catalog.schema
        and set(bands) <= set(patch.band_catalogs)
        and all("maskrcnn_profile_instFlux" in patch.band_catalogs[band].schema for band in bands)
        and all(patch.exposures[band].getPsf() is not None for band in bands)
    )


def _with_models(
    patch: EvaluationPatch,
    catalog: SourceCatalog,
    comparison: PatchComparison,
    cutout: BlendCutout,
    exposures: dict[str, ExposureF],
    near: np.ndarray,
    children: np.ndarray,
    sigma: np.ndarray,
) -> BlendCutout:
    """Add the models of the sources near a blend to its cut-out, and labels of its children."""
    # Models are drawn with torch, which evaluations without pictures do not import.
    from .model_images import draw_models, model_fluxes

    found, table = comparison.detections, comparison.result.table
    band, middle = list(exposures)[len(exposures) // 2], len(exposures) // 2
    flux, error = (model_fluxes(patch.band_catalogs, exposures, name) for name in ("instFlux", "instFluxErr"))
    row_of = {int(one): row for row, one in enumerate(np.asarray(catalog["id"]))}
    stamps = draw_models(catalog, [row_of[one] for one in found.ids[near].tolist()], flux, exposures)
    truth = dict(zip(table["detection_id"].tolist(), table[f"flux_truth_{band}"].tolist()))
    labels = {}
    for index in np.flatnonzero(children).tolist():
        name = int(found.ids[index])
        row = row_of[name]
        true = truth.get(name, np.nan)
        measured = float(flux[row, middle]), float(error[row, middle])
        labels[row] = child_label(name, bool(found.is_star[index]), *measured, true if true > 0 else None)
    ordered = sorted(labels, key=lambda row: -np.nan_to_num(flux[row, middle]))
    return add_models(cutout, sigma, stamps, {row: labels[row] for row in ordered})


def _noise(exposure: ExposureF) -> float:
    variance = exposure.variance.array
    usable = np.isfinite(variance) & (variance > 0)
    return float(np.sqrt(np.median(variance[usable]))) if usable.any() else float("nan")


def _reach_in(boxes: np.ndarray, box: Box2I) -> np.ndarray:
    low, high = (box.getMinX(), box.getMinY()), (box.getMaxX(), box.getMaxY())
    return np.asarray((boxes[:, :2] <= high).all(axis=1) & (boxes[:, 2:] > low).all(axis=1))


def _residual(exposure: ExposureF, footprints: Sequence[Any]) -> np.ndarray:
    """Image without what was found, in units of the noise."""
    box = exposure.getBBox()
    image = exposure.image.clone()
    for footprint in footprints:
        if footprint.isHeavy():
            model = footprint.extractImage(fill=0.0)
            inner = model.getBBox()
            inner.clip(box)
            if not inner.isEmpty():
                image[inner].array[:] -= model[inner].array
        else:
            footprint.getSpans().clippedTo(box).setImage(image, 0.0)
    variance = exposure.variance.array
    sigma = np.sqrt(np.where(variance > 0, variance, np.nan))
    return np.where(np.isfinite(sigma), image.array / sigma, np.nan)
