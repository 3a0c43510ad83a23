# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Models by scarlet2 of the parents that another deblender has found.

The package is optional: ``pip install lsst-meas-maskrcnn[scarlet2]``.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lsst.geom import Point2D

from ..metrics.spans import SpanMasks
from .deblender import DeblendedField, Deblender, FieldImages, PixelModels, import_optional

_MIN_SHARE = 1e-3
"""Share of a pixel from which it belongs to a source."""
_MAX_ITERATIONS, _RELATIVE_ERROR = 200, 1e-3
"""Most iterations of a fit, and the relative change of the parameters at which it ends."""
_SIZE, _MARGIN = 1.5, 10
"""Standard deviation of the Gaussian that a source starts from, and margin of parents and sources (px)."""


@dataclass(frozen=True)
class Scarlet2Deblender(Deblender):
    """Model the sources of each parent with scarlet2.

    The sources are those of another deblender. The flux of each pixel of a
    parent is shared in proportion to the models. Isolated sources, and parents
    that cannot be modelled, are as they were, and such parents have ``failed``
    or ``skipped`` set.

    Each source has one spectrum and one free morphology (Melchior et al. 2026,
    JOSS 11, 9646), which start from the colours of its centre and a small
    Gaussian: moments, the other way to start, fail in blends.
    """

    start: Deblender  # whose parents and positions are used
    max_sources: int = 30  # parents of more sources are left as they were
    name: str = "scarlet2"

    def _get_sources(self, images: FieldImages) -> DeblendedField:
        import_optional("scarlet2", "scarlet2")
        for band in images.bands:
            if band not in images.exposures or images.exposures[band].getPsf() is None:
                raise ValueError(f"The exposure in {band} has no PSF, which scarlet2 needs; attach one.")
        field = self.start.deblend(images)
        clock = time.perf_counter()
        data = np.stack([np.where(images.usable, images.images[band], 0.0) for band in images.bands])
        masks, origins = field.spans.to_masks()
        shared: dict[int, np.ndarray] = {}
        parents = field.parents.copy()
        # Boxes (y0, x0, y1, x1) in the images.
        boxes = field.parent_spans.boxes[:, [1, 0, 3, 2]] - np.tile(images.origin, 2)
        for row, box in enumerate(boxes):
            members = np.flatnonzero(field.parent_ids == parents["id"][row])
            if len(members) < 2:
                continue
            if len(members) > self.max_sources:
                parents["skipped"][row] = True
                continue
            begun = time.perf_counter()
            low = np.maximum(box[:2] - _MARGIN, 0)
            high = np.minimum(box[2:] + _MARGIN, images.shape)
            here = slice(low[0], high[0]), slice(low[1], high[1])
            corner = low + images.origin
            sides = [2 * (max(masks[member].shape) // 2 + _MARGIN) + 1 for member in members.tolist()]
            centers = np.stack([field.y[members], field.x[members]], axis=1) - corner
            try:
                models = self._fit(images, here, centers, sides)
            except (ArithmeticError, AssertionError, RuntimeError, ValueError):
                parents["failed"][row] = True
                continue
            parents["runtime_ms"][row] = 1000.0 * (time.perf_counter() - begun)
            inside = images.paint_masks(field.parent_spans.select([row]))[here]
            total = np.where(inside, models.sum(axis=0), 0.0)
            share = np.divide(models, total, out=np.zeros_like(models), where=total > 0)
            for member, own in zip(members.tolist(), share, strict=True):
                mask = (own > _MIN_SHARE).any(axis=0)
                if mask.any():
                    masks[member], origins[member] = mask, corner
                    shared[member] = (own * data[:, here[0], here[1]])[:, mask]
        spans = SpanMasks.from_masks(masks, origins)
        models_by_band = {}
        for index, band in enumerate(images.bands):
            # The shared pixels where there are some, else those of the image in the masks from before.
            whole = PixelModels.from_image(field.spans, data[index], images.origin)
            parts = np.split(whole.values, np.cumsum(field.spans.areas)[:-1])
            own = [shared[k][index] if k in shared else part for k, part in enumerate(parts)]
            models_by_band[band] = PixelModels.from_parts(spans, own)
        return replace(
            field,
            name=self.name,
            spans=spans,
            flux={band: one.sums for band, one in models_by_band.items()},
            parents=parents,
            models=models_by_band,
            seconds=time.perf_counter() - clock,
        )

    def _fit(
        self, images: FieldImages, here: tuple[slice, slice], centers: np.ndarray, sides: list[int]
    ) -> np.ndarray:
        """Models of the sources of a box in the seeing of the images, (source, band, y, x)."""
        scarlet2: Any = importlib.import_module("scarlet2")
        # Its validation prints what is right, too.
        importlib.import_module("scarlet2.validation_utils").set_validation(False)
        constraints: Any = importlib.import_module("numpyro.distributions").constraints
        jnp: Any = importlib.import_module("jax.numpy")
        data, weights, psf = _observe(images, here)
        # Numbers of order 1, which single precision likes.
        unit = float(np.median(1.0 / np.sqrt(weights[weights > 0])))
        observation = scarlet2.Observation(
            data / unit, weights * unit**2, psf=scarlet2.ArrayPSF(jnp.asarray(psf)), channels=[*images.bands]
        )
        frame = scarlet2.Frame.from_observations(observation)
        observation.match(frame)
        with scarlet2.Scene(frame) as scene:
            for center, side in zip(centers, sides, strict=True):
                spectrum, morphology = _start_of_source(data / unit, psf, center, side)
                scarlet2.Source(
                    jnp.asarray(center),
                    jnp.asarray(np.maximum(spectrum, 1e-2)),
                    jnp.asarray(np.clip(morphology, 1e-6, 1.0 - 1e-6)),
                )
        step = partial(scarlet2.relative_step, factor=0.1)
        with scarlet2.Parameters(scene):
            for number, source in enumerate(scene.sources):
                for what, constraint, size in (
                    ("spectrum", constraints.positive, step),
                    ("morphology", constraints.unit_interval, 0.1),
                ):
                    name = f"{what}:{number}"
                    values = getattr(source, what)
                    scarlet2.Parameter(values, name=name, constraint=constraint, stepsize=size)
        limits = {"max_iter": _MAX_ITERATIONS, "e_rel": _RELATIVE_ERROR}
        fitted = scene.fit(observation, progress_bar=False, **limits)
        models = [np.asarray(observation.render(fitted.evaluate_source(source))) for source in fitted.sources]
        result = np.maximum(np.stack(models), 0.0) * unit
        if not np.isfinite(result).all():
            raise ArithmeticError("the models are not finite")
        return result


def _observe(images: FieldImages, here: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux, inverse variance and PSF of a part of the images, (band, y, x)."""
    usable = images.usable[here]
    data = np.stack([np.where(usable, images.images[band][here], 0.0) for band in images.bands])
    weights = np.stack([np.where(usable, 1.0 / images.variances[band][here], 0.0) for band in images.bands])
    y, x = (o + 0.5 * (part.start + part.stop - 1) for o, part in zip(images.origin, here))
    psfs = (images.exposures[band].getPsf() for band in images.bands)
    kernels = [psf.computeKernelImage(Point2D(x, y)).array for psf in psfs]
    # PSFs of different odd sides in one array.
    side = max(max(kernel.shape) for kernel in kernels)
    margins = [[((side - n) // 2,) * 2 for n in kernel.shape] for kernel in kernels]
    return data, weights, np.stack([np.pad(one / one.sum(), sides) for one, sides in zip(kernels, margins)])


def _start_of_source(
    data: np.ndarray, psf: np.ndarray, center: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Spectrum, (band,), and morphology, (y, x), from which the fit of a source starts."""
    y, x = (int(np.clip(round(value), 0, length - 1)) for value, length in zip(center, data.shape[1:]))
    offset = np.arange(side) - side // 2
    radius2 = (offset[:, None] + y - center[0]) ** 2 + (offset + x - center[1]) ** 2
    morphology = np.exp(-0.5 * radius2 / _SIZE**2)
    # As if it were a point: the fit begins near the flux.
    return data[:, y, x] / psf.max(axis=(1, 2)) / morphology.sum(), morphology
