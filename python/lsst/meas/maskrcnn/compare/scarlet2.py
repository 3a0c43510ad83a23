# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Models by scarlet2 of the parents that another deblender has found.

The package is optional: ``pip install lsst-meas-maskrcnn[scarlet2]``.
"""

from __future__ import annotations

__all__ = ["Scarlet2Settings", "deblend_with_scarlet2"]

import importlib
import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lsst.afw.image import ExposureF
from lsst.geom import Point2D

from ..metrics.spans import SpanMasks
from .baselines import deblend_with_sep
from .deblended_field import DeblendedField, PixelModels
from .deblender_readers import field_images


@dataclass(frozen=True)
class Scarlet2Settings:
    """How parents are modelled.

    Parameters
    ----------
    max_iterations : `int`
        Most iterations of a fit.
    relative_error : `float`
        Relative change of the parameters at which it ends.
    size : `float`
        Standard deviation of the Gaussian that a source starts from (px).
    margin : `int`
        Pixels around a parent, and around the mask of a source, that are
        modelled with it.
    max_sources : `int`
        Parents of more sources are left as they were.
    """

    max_iterations: int = 200
    relative_error: float = 1e-3
    size: float = 1.5
    margin: int = 10
    max_sources: int = 30


def deblend_with_scarlet2(
    exposures: Mapping[str, ExposureF],
    start: DeblendedField | None = None,
    settings: Scarlet2Settings | None = None,
) -> DeblendedField:
    """Model the sources of each parent with scarlet2.

    Parameters
    ----------
    exposures : `~collections.abc.Mapping` [`str`, \
            `lsst.afw.image.ExposureF`]
        Exposures of one box by band, without background, with a PSF each.
    start : `~lsst.meas.maskrcnn.compare.deblended_field.DeblendedField`, \
            optional
        Whose parents and positions are taken; by default those of
        `~.baselines.deblend_with_sep`.
    settings : `Scarlet2Settings`, optional
        How.

    Returns
    -------
    field : `~lsst.meas.maskrcnn.compare.deblended_field.DeblendedField`
        The same sources. Those of parents with children have the flux of each
        pixel of the parent in proportion to their models; isolated sources,
        and parents that cannot be modelled, are as they were, and such parents
        have ``failed`` or ``skipped`` set.

    Raises
    ------
    ImportError
        Raised if ``scarlet2`` is not installed.
    ValueError
        Raised if an exposure has no PSF.

    Notes
    -----
    Each source has one spectrum and one free morphology (Melchior et al. 2026,
    JOSS 11, 9646), which start from the colours of its centre and a small
    Gaussian: moments, the other way to start, fail in blends.
    """
    if importlib.util.find_spec("scarlet2") is None:
        raise ImportError(
            "This deblender needs the package 'scarlet2', which is not installed; install it with "
            "pip install 'lsst-meas-maskrcnn[scarlet2]', or choose another deblender."
        )
    for band, exposure in exposures.items():
        if exposure.getPsf() is None:
            raise ValueError(f"The exposure in {band} has no PSF, which scarlet2 needs; attach one.")
    how = settings or Scarlet2Settings()
    images = field_images(exposures)
    field = start if start is not None else deblend_with_sep(images)
    clock = time.perf_counter()
    y0, x0 = images.origin
    data = np.stack([np.where(images.usable, images.images[band], 0.0) for band in images.bands])
    weights = np.stack([np.where(images.usable, 1.0 / images.variances[band], 0.0) for band in images.bands])
    masks, origins = field.spans.to_masks()
    stamps: dict[str, list[np.ndarray]] = {}
    for index, band in enumerate(images.bands):
        stamps[band] = [
            data[index][_window(mask, origin, images.origin)]
            for mask, origin in zip(masks, origins, strict=True)
        ]
    parents = field.parents.copy()
    parent_masks, parent_origins = field.parent_spans.to_masks()
    for row, (pixels, corner) in enumerate(zip(parent_masks, parent_origins, strict=True)):
        members = np.flatnonzero(field.parent_ids == parents["id"][row])
        if len(members) < 2:
            continue
        if len(members) > how.max_sources:
            parents["skipped"][row] = True
            continue
        begun = time.perf_counter()
        low = np.maximum(np.asarray(corner) - (y0, x0) - how.margin, 0)
        high = np.minimum(np.asarray(corner) - (y0, x0) + pixels.shape + how.margin, images.shape)
        window = (slice(None), slice(low[0], high[0]), slice(low[1], high[1]))
        middle = Point2D(0.5 * (low[1] + high[1] - 1) + x0, 0.5 * (low[0] + high[0] - 1) + y0)
        psf = _stack([exposures[band].getPsf().computeKernelImage(middle).array for band in images.bands])
        centers = np.stack([field.y[members] - y0 - low[0], field.x[members] - x0 - low[1]], axis=1)
        sides = [2 * (max(masks[member].shape) // 2 + how.margin) + 1 for member in members.tolist()]
        try:
            models = _fit(data[window], weights[window], psf, centers, sides, images.bands, how)
        except (ArithmeticError, AssertionError, RuntimeError, ValueError):
            parents["failed"][row] = True
            continue
        parents["runtime_ms"][row] = 1000.0 * (time.perf_counter() - begun)
        inside = np.zeros(models.shape[2:], dtype=bool)
        first = np.asarray(corner) - (y0, x0) - low
        inside[first[0] : first[0] + pixels.shape[0], first[1] : first[1] + pixels.shape[1]] = pixels
        total = models.sum(axis=0)
        share = np.divide(models, total, out=np.zeros_like(models), where=(total > 0) & inside)
        for number, member in enumerate(members.tolist()):
            kept = (share[number] > 1e-3).any(axis=0)
            if not kept.any():
                continue
            rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
            part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            masks[member] = kept[part]
            origins[member] = (rows[0] + low[0] + y0, columns[0] + low[1] + x0)
            for index, band in enumerate(images.bands):
                stamps[band][member] = (share[number, index] * data[window][index])[part]
    spans = SpanMasks.from_masks(masks, origins)
    by_band = {band: PixelModels.from_stamps(masks, stamps[band], origins) for band in images.bands}
    return replace(
        field,
        name="scarlet2",
        spans=spans,
        flux={band: one.sums for band, one in by_band.items()},
        parents=parents,
        models=by_band,
        seconds=time.perf_counter() - clock,
    )


def _window(mask: np.ndarray, origin: Sequence[int], first: tuple[int, int]) -> tuple[slice, slice]:
    y, x = int(origin[0]) - first[0], int(origin[1]) - first[1]
    return slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])


def _stack(images: Sequence[np.ndarray]) -> np.ndarray:
    """Put PSFs of different odd sides into one array."""
    side = max(max(image.shape) for image in images)
    stack = np.zeros((len(images), side, side))
    for plane, image in zip(stack, images, strict=True):
        y, x = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
        plane[y : y + image.shape[0], x : x + image.shape[1]] = image / image.sum()
    return stack


def _fit(
    data: np.ndarray,
    weights: np.ndarray,
    psf: np.ndarray,
    centers: np.ndarray,
    sides: Sequence[int],
    bands: Sequence[str],
    settings: Scarlet2Settings,
) -> np.ndarray:
    """Fit the sources of a box; their models as observed, (source, band, y, x)."""
    scarlet2: Any = importlib.import_module("scarlet2")
    # It prints what is right, too.
    importlib.import_module("scarlet2.validation_utils").set_validation(False)
    constraints: Any = importlib.import_module("numpyro.distributions").constraints
    jnp: Any = importlib.import_module("jax.numpy")
    # Numbers of order 1, which single precision likes.
    unit = float(np.median(1.0 / np.sqrt(weights[weights > 0])))
    observation = scarlet2.Observation(
        data / unit, weights * unit**2, psf=scarlet2.ArrayPSF(jnp.asarray(psf)), channels=list(bands)
    )
    frame = scarlet2.Frame.from_observations(observation)
    observation.match(frame)
    with scarlet2.Scene(frame) as scene:
        for center, side in zip(centers, sides, strict=True):
            y, x = (
                int(np.clip(round(value), 0, length - 1)) for value, length in zip(center, data.shape[1:])
            )
            spectrum = data[:, y, x] / unit / psf.max(axis=(1, 2))
            offset = np.arange(side) - side // 2
            radius2 = (offset[:, None] + y - center[0]) ** 2 + (offset + x - center[1]) ** 2
            morphology = np.exp(-0.5 * radius2 / settings.size**2)
            # As if it were a point: the fit begins near the flux.
            spectrum = spectrum / morphology.sum()
            scarlet2.Source(
                jnp.asarray(center),
                jnp.asarray(np.maximum(spectrum, 1e-2)),
                jnp.asarray(np.clip(morphology, 1e-6, 1.0 - 1e-6)),
            )
    step = partial(scarlet2.relative_step, factor=0.1)
    with scarlet2.Parameters(scene):
        for number, source in enumerate(scene.sources):
            scarlet2.Parameter(
                source.spectrum, name=f"spectrum:{number}", constraint=constraints.positive, stepsize=step
            )
            scarlet2.Parameter(
                source.morphology,
                name=f"morphology:{number}",
                constraint=constraints.unit_interval,
                stepsize=0.1,
            )
    fitted = scene.fit(
        observation,
        max_iter=settings.max_iterations,
        e_rel=settings.relative_error,
        progress_bar=False,
    )
    models = [np.asarray(observation.render(fitted.evaluate_source(source))) for source in fitted.sources]
    result = np.maximum(np.stack(models), 0.0) * unit
    if not np.isfinite(result).all():
        raise ArithmeticError("the models are not finite")
    return result
