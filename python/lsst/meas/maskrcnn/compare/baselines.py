# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deblenders that cut an image up by its own contours, as baselines.

Both see one image, the signal of all bands to noise, smoothed. Each pixel
goes to one source, so that fluxes are those within isophotes. The packages
that do the work are optional: ``pip install lsst-meas-maskrcnn[compare]``.
"""

from __future__ import annotations

__all__ = ["BASELINES", "BaselineSettings", "deblend_with_photutils", "deblend_with_sep", "segments_to_spans"]

import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage

from lsst.afw.image import ExposureF

from ..images.classes import UNKNOWN
from ..metrics.spans import SpanMasks
from .deblended_field import (
    DeblendedField,
    FieldImages,
    PixelModels,
    make_parents,
    span_pixels,
    sum_over_spans,
)
from .deblender_readers import field_images


@dataclass(frozen=True)
class BaselineSettings:
    """How contours are cut.

    Parameters
    ----------
    threshold : `float`
        Lowest signal to noise ratio of a pixel of the smoothed image.
    min_area : `int`
        Fewest pixels of a source.
    smoothing : `float`
        Standard deviation of the Gaussian that smooths (px).
    n_levels : `int`
        Levels between the threshold and the peak at which contours are
        compared.
    contrast : `float`
        Share of a parent's flux that a branch must hold to be a source.
    """

    threshold: float = 5.0
    min_area: int = 5
    smoothing: float = 1.5
    n_levels: int = 32
    contrast: float = 0.005


def deblend_with_sep(
    exposures: Mapping[str, ExposureF] | FieldImages, settings: BaselineSettings | None = None
) -> DeblendedField:
    """Deblend as SExtractor does.

    Parameters
    ----------
    exposures : `~collections.abc.Mapping` [`str`, \
            `lsst.afw.image.ExposureF`] or `FieldImages`
        Exposures of one box by band, without background.
    settings : `BaselineSettings`, optional
        How.

    Returns
    -------
    field : `~lsst.meas.maskrcnn.compare.deblended_field.DeblendedField`
        Its sources, without classes.

    Raises
    ------
    ImportError
        Raised if ``sep`` is not installed.

    Notes
    -----
    Multi-threshold deblending of Bertin and Arnouts (1996, A&AS 117, 393), by
    ``sep`` (Barbary 2016, JOSS 1, 58).
    """
    sep = _module("sep")
    how = settings or BaselineSettings()

    def segment(image: np.ndarray, unusable: np.ndarray) -> np.ndarray:
        objects, segments = sep.extract(
            image,
            how.threshold,
            mask=unusable,
            minarea=how.min_area,
            filter_kernel=None,
            deblend_nthresh=how.n_levels,
            deblend_cont=how.contrast,
            clean=True,
            segmentation_map=True,
        )
        return segments

    return _deblend("sep", exposures, how, segment)


def deblend_with_photutils(
    exposures: Mapping[str, ExposureF] | FieldImages, settings: BaselineSettings | None = None
) -> DeblendedField:
    """Deblend as ``photutils.segmentation.deblend_sources`` does.

    Parameters
    ----------
    exposures : `~collections.abc.Mapping` [`str`, \
            `lsst.afw.image.ExposureF`] or `FieldImages`
        Exposures of one box by band, without background.
    settings : `BaselineSettings`, optional
        How.

    Returns
    -------
    field : `~lsst.meas.maskrcnn.compare.deblended_field.DeblendedField`
        Its sources, without classes.

    Raises
    ------
    ImportError
        Raised if ``photutils`` is not installed.

    Notes
    -----
    Contours at several levels, and a watershed between the branches (Bradley
    et al., Astropy's photutils).
    """
    segmentation = _module("photutils.segmentation")
    how = settings or BaselineSettings()

    def segment(image: np.ndarray, unusable: np.ndarray) -> np.ndarray:
        # By position: the names of these two have changed between versions.
        with warnings.catch_warnings():
            # That there is nothing is a result.
            warnings.simplefilter("ignore", _module("photutils.utils.exceptions").NoDetectionsWarning)
            found = segmentation.detect_sources(image, how.threshold, how.min_area, mask=unusable)
        if found is None:
            return np.zeros(image.shape, dtype=np.int64)
        parts = segmentation.deblend_sources(
            image, found, how.min_area, contrast=how.contrast, progress_bar=False
        )
        return np.asarray(parts.data)

    return _deblend("photutils", exposures, how, segment)


BASELINES: dict[str, Callable[..., DeblendedField]] = {
    "sep": deblend_with_sep,
    "photutils": deblend_with_photutils,
}
"""Deblenders that run on exposures, by name."""


def segments_to_spans(segments: np.ndarray, origin: tuple[int, int]) -> tuple[SpanMasks, np.ndarray]:
    """Take masks out of an image of labels.

    Parameters
    ----------
    segments : `numpy.ndarray`, (y, x), int
        Label of each pixel; 0 for none.
    origin : `tuple` [`int`, `int`]
        (y0, x0) of its first pixel.

    Returns
    -------
    spans : `~lsst.meas.maskrcnn.metrics.spans.SpanMasks`
        Masks of the N labels, in ascending order.
    labels : `numpy.ndarray`, (N,), int64
        The labels.
    """
    height, width = segments.shape
    # A column of zeros on either side ends each row's last span.
    padded = np.zeros((height, width + 2), dtype=np.int64)
    padded[:, 1:-1] = segments
    flat = padded.ravel()
    change = np.flatnonzero(np.diff(flat) != 0) + 1
    begins = change[flat[change] > 0]
    ends = change[flat[change - 1] > 0]
    y, x0 = np.divmod(begins, width + 2)
    owner = flat[begins]
    labels, index = np.unique(owner, return_inverse=True)
    order = np.argsort(index, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(index, minlength=len(labels)))])
    return (
        SpanMasks(
            offsets,
            (y[order] + origin[0]).astype(np.int32),
            (x0[order] - 1 + origin[1]).astype(np.int32),
            (x0[order] - 1 + origin[1] + (ends - begins)[order]).astype(np.int32),
        ),
        labels,
    )


def _module(name: str) -> Any:
    root = name.partition(".")[0]
    if importlib.util.find_spec(root) is None:
        raise ImportError(
            f"This deblender needs the package {root!r}, which is not installed; install it with "
            "pip install 'lsst-meas-maskrcnn[compare]', or choose another deblender."
        )
    return importlib.import_module(name)


def _deblend(
    name: str,
    exposures: Mapping[str, ExposureF] | FieldImages,
    settings: BaselineSettings,
    segment: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> DeblendedField:
    images = exposures if isinstance(exposures, FieldImages) else field_images(exposures)
    start = time.perf_counter()
    detection, unusable = _detection_image(images, settings.smoothing)
    segments = segment(detection, unusable)
    spans, labels = segments_to_spans(np.asarray(segments), images.origin)
    ids = np.arange(1, len(labels) + 1, dtype=np.int64)
    # Segments that touch were one before they were cut.
    islands, _ = scipy.ndimage.label(segments > 0, structure=np.ones((3, 3)))
    owner, rows, columns = span_pixels(spans)
    _, first = np.unique(owner, return_index=True)
    island = islands[rows[first] - images.origin[0], columns[first] - images.origin[1]].astype(np.int64)
    members = np.bincount(island, minlength=1)
    parent_ids = np.where(members[island] > 1, len(ids) + island, ids)
    parents, parent_spans = make_parents(ids, parent_ids, spans)
    parents["n_peak"] = np.maximum(parents["n_child"], 1)
    weight = np.where(unusable, 0.0, np.maximum(detection, 0.0)).astype(np.float64)
    models = {
        band: PixelModels.from_image(spans, image, images.origin) for band, image in images.images.items()
    }
    seconds = time.perf_counter() - start
    total = sum_over_spans(spans, weight, images.origin)
    y, x = np.ogrid[: detection.shape[0], : detection.shape[1]]
    with np.errstate(invalid="ignore", divide="ignore"):
        x_mean = sum_over_spans(spans, weight * x, images.origin) / total + images.origin[1]
        y_mean = sum_over_spans(spans, weight * y, images.origin) / total + images.origin[0]
    middle = spans.centroids
    return DeblendedField(
        name=name,
        ids=ids,
        parent_ids=parent_ids,
        x=np.where(total > 0, x_mean, middle[:, 1]),
        y=np.where(total > 0, y_mean, middle[:, 0]),
        labels=np.full(len(ids), UNKNOWN, dtype=np.int64),
        spans=spans,
        flux={band: one.sums for band, one in models.items()},
        parents=parents,
        parent_spans=parent_spans,
        models=models,
        seconds=seconds,
    )


def _detection_image(images: FieldImages, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed signal to noise ratio of the sum over bands weighted by the inverse variance."""
    signal = np.zeros(images.shape, dtype=np.float64)
    weight = np.zeros(images.shape, dtype=np.float64)
    for band, image in images.images.items():
        inverse = np.where(images.usable, 1.0 / np.where(images.usable, images.variances[band], 1.0), 0.0)
        signal += np.where(images.usable, image, 0.0) * inverse
        weight += inverse
    kernel = np.zeros((2 * int(4 * smoothing + 0.5) + 1,) * 2)
    kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1.0
    norm = float(np.sum(scipy.ndimage.gaussian_filter(kernel, smoothing) ** 2)) if smoothing > 0 else 1.0
    if smoothing > 0:
        signal = scipy.ndimage.gaussian_filter(signal, smoothing)
        weight = scipy.ndimage.gaussian_filter(weight, smoothing)
    noise = np.sqrt(np.maximum(weight * norm, 0.0))
    ratio = np.divide(signal, noise, out=np.zeros_like(signal), where=noise > 0)
    return np.ascontiguousarray(ratio, dtype=np.float32), ~images.usable
