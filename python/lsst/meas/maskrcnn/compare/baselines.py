# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deblenders that run on the images, as baselines.

`SepDeblender` and `PhotutilsDeblender` divide one image, the smoothed signal
to noise ratio of all bands, at its own contours. Each pixel goes to one
source, so that fluxes are isophotal. The packages that do the work are
optional: ``pip install lsst-meas-maskrcnn[compare]``.
"""

from __future__ import annotations

__all__ = ["BASELINES"]

import abc
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from ..images.classes import UNKNOWN
from ..metrics.spans import SpanMasks
from .deblender import DeblendedField, Deblender, FieldImages, PixelModels, import_optional, make_parents
from .scarlet2 import Scarlet2Deblender


@dataclass(frozen=True)
class _ContourDeblender(Deblender):
    """A deblender that divides an image at its contours; see `PhotutilsDeblender`."""

    threshold: float = 5.0
    min_area: int = 5
    smoothing: float = 1.5
    contrast: float = 0.005

    @abc.abstractmethod
    def _segment(self, image: np.ndarray, unusable: np.ndarray) -> np.ndarray:
        """Label of the source of each pixel, 0 for none, int, (y, x)."""

    def _get_sources(self, images: FieldImages) -> DeblendedField:
        start = time.perf_counter()
        detection = _detection_image(images, self.smoothing)
        segments = np.asarray(self._segment(detection, ~images.usable))
        spans = _spans_of_segments(segments, images.origin)
        ids = np.arange(1, len(spans) + 1, dtype=np.int64)
        # Segments that touch had been one.
        islands, _ = scipy.ndimage.label(segments > 0, structure=np.ones((3, 3)))
        owner, rows, columns = spans.pixels()
        _, first = np.unique(owner, return_index=True)
        island = islands[rows[first] - images.origin[0], columns[first] - images.origin[1]].astype(np.int64)
        members = np.bincount(island, minlength=1)
        parent_ids = np.where(members[island] > 1, len(ids) + island, ids)
        parents, parent_spans = make_parents(ids, parent_ids, spans)
        parents["n_peak"] = np.maximum(parents["n_child"], 1)
        bands = images.images.items()
        models = {band: PixelModels.from_image(spans, image, images.origin) for band, image in bands}
        seconds = time.perf_counter() - start
        x, y = _weighted_centers(np.where(images.usable, detection, 0.0), spans, images.origin)
        return DeblendedField(
            name=self.name,
            ids=ids,
            parent_ids=parent_ids,
            x=x,
            y=y,
            labels=np.full(len(ids), UNKNOWN, dtype=np.int64),
            spans=spans,
            flux={band: one.sums for band, one in models.items()},
            parents=parents,
            parent_spans=parent_spans,
            models=models,
            seconds=seconds,
        )


@dataclass(frozen=True)
class SepDeblender(_ContourDeblender):
    """Deblend as SExtractor does, with contours at ``n_levels`` levels.

    The other settings are those of `PhotutilsDeblender`. Multi-threshold deblending of
    Bertin and Arnouts (1996, A&AS 117, 393), by ``sep`` (Barbary 2016, JOSS 1, 58).
    """

    n_levels: int = 32
    name: str = "sep"

    def _segment(self, image: np.ndarray, unusable: np.ndarray) -> np.ndarray:
        _, segments = import_optional("sep", "compare").extract(
            image,
            self.threshold,
            mask=unusable,
            minarea=self.min_area,
            filter_kernel=None,
            deblend_nthresh=self.n_levels,
            deblend_cont=self.contrast,
            clean=True,
            segmentation_map=True,
        )
        return segments


@dataclass(frozen=True)
class PhotutilsDeblender(_ContourDeblender):
    """Deblend as ``photutils.segmentation.deblend_sources`` does.

    Contours at several levels, and a watershed between the branches (Bradley
    et al., Astropy's photutils).

    Parameters
    ----------
    threshold : `float`
        Lowest signal to noise ratio of a pixel of the smoothed image.
    min_area : `int`
        Fewest pixels of a source.
    smoothing : `float`
        Standard deviation of the Gaussian that smooths (px).
    contrast : `float`
        Share of a parent's flux that a branch must hold to be a source.
    """

    name: str = "photutils"

    def _segment(self, image: np.ndarray, unusable: np.ndarray) -> np.ndarray:
        segmentation = import_optional("photutils.segmentation", "compare")
        # By position: the names of these two have changed between versions.
        nothing = import_optional("photutils.utils.exceptions", "compare").NoDetectionsWarning
        with warnings.catch_warnings():
            # No sources are a result.
            warnings.simplefilter("ignore", nothing)
            found = segmentation.detect_sources(image, self.threshold, self.min_area, mask=unusable)
        if found is None:
            return np.zeros(image.shape, dtype=np.int64)
        parts = segmentation.deblend_sources(
            image, found, self.min_area, contrast=self.contrast, progress_bar=False
        )
        return parts.data


BASELINES: dict[str, Callable[[], Deblender]] = {
    "sep": SepDeblender,
    "photutils": PhotutilsDeblender,
    "scarlet2": lambda: Scarlet2Deblender(SepDeblender()),
}
"""Deblenders that run on images, by name."""


def _spans_of_segments(segments: np.ndarray, origin: tuple[int, int]) -> SpanMasks:
    """Masks of the labels of an image, (y, x), in ascending order; 0 is none."""
    masks, origins = [], []
    for number, box in enumerate(scipy.ndimage.find_objects(segments), 1):
        if box is not None:
            masks.append(segments[box] == number)
            origins.append((box[0].start + origin[0], box[1].start + origin[1]))
    return SpanMasks.from_masks(masks, np.array(origins, dtype=np.int64))


def _weighted_centers(
    image: np.ndarray, spans: SpanMasks, origin: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (x, y) of the masks, each pixel weighted by the image where it is positive."""
    weight = np.maximum(image, 0.0).astype(np.float64)
    total = spans.sum_over(weight, origin)
    centers = []
    for axis in (1, 0):
        position = np.arange(image.shape[axis]).reshape((1, -1) if axis else (-1, 1))
        moment = spans.sum_over(weight * position, origin)
        mean = np.divide(moment, total, out=np.zeros(len(spans)), where=total > 0) + origin[axis]
        centers.append(np.where(total > 0, mean, spans.centroids[:, axis]))
    return centers[0], centers[1]


def _detection_image(images: FieldImages, smoothing: float) -> np.ndarray:
    """Smoothed signal to noise ratio of the sum over bands weighted by the inverse variance."""
    signal, weight = np.zeros((2, *images.shape))
    for band, image in images.images.items():
        inverse = np.divide(1.0, images.variances[band], out=np.zeros(images.shape), where=images.usable)
        signal += np.where(images.usable, image, 0.0) * inverse
        weight += inverse
    norm = 1.0
    if smoothing > 0:
        kernel = np.zeros((2 * int(4 * smoothing + 0.5) + 1,) * 2)
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1.0
        norm = float(np.sum(scipy.ndimage.gaussian_filter(kernel, smoothing) ** 2))
        signal = scipy.ndimage.gaussian_filter(signal, smoothing)
        weight = scipy.ndimage.gaussian_filter(weight, smoothing)
    noise = np.sqrt(np.maximum(weight * norm, 0.0))
    ratio = np.divide(signal, noise, out=np.zeros_like(signal), where=noise > 0)
    return np.ascontiguousarray(ratio, dtype=np.float32)
