# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The interface of all deblenders: what they are given and what they return.

A `Deblender` runs a program on the images, or reads what a program has stored;
either way the result is a `DeblendedField`. Positions are pixels of the parent
frame, fluxes are nJy.
"""

from __future__ import annotations

import abc
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics.arrays import BoolArray, Float32Array, FloatArray, IntArray
from ..metrics.spans import SpanMasks

__all__ = ["PARENT_DTYPE", "DeblendedField", "Deblender", "FieldImages", "PixelModels", "make_parents"]

PARENT_DTYPE = np.dtype(
    [
        ("id", np.int64),
        ("n_child", np.int64),
        ("n_peak", np.int64),
        ("runtime_ms", np.float64),
        ("chi2", np.float64),
        ("skipped", bool),
        ("failed", bool),
        ("not_converged", bool),
    ]
)
"""Columns of parents: ``runtime_ms`` and ``chi2``, the residual per pixel and
band that the deblender itself reports, are NaN and ``n_peak`` is -1 where they
are not known. ``skipped`` parents were not deblended at all."""


@dataclass(frozen=True, eq=False)
class PixelModels:
    """The pixels of N sources in one band."""

    spans: SpanMasks
    """Pixels of each source; none where there is no model."""
    values: Float32Array
    """Flux (nJy) of each of these pixels, source by source and row by row, float32, (pixel,)."""

    def __post_init__(self) -> None:
        number = int(self.spans.areas.sum())
        if self.values.shape != (number,):
            raise ValueError(f"values have the shape {self.values.shape}; the spans hold {number} pixels.")

    def __len__(self) -> int:
        return len(self.spans)

    @classmethod
    def from_parts(cls, spans: SpanMasks, parts: Sequence[npt.ArrayLike]) -> PixelModels:
        """Make models of the pixels of each source.

        Parameters
        ----------
        spans : `~lsst.meas.maskrcnn.metrics.spans.SpanMasks`
            N masks.
        parts : `~collections.abc.Sequence` [`numpy.ndarray`]
            Flux of the pixels of each mask, row by row, N of (pixel,).
        """
        return cls(spans, np.concatenate([np.zeros(0), *parts]).astype(np.float32))

    @classmethod
    def from_image(
        cls, spans: SpanMasks, image: npt.NDArray[np.floating], origin: tuple[int, int]
    ) -> PixelModels:
        """Take the pixels of an image within masks; a pixel of several masks is in the model of each.

        Parameters
        ----------
        spans : `~lsst.meas.maskrcnn.metrics.spans.SpanMasks`
            N masks.
        image : `numpy.ndarray`
            The image, (y, x). Pixels that are not finite, or off the image, are 0.
        origin : `tuple` [`int`, `int`]
            (y0, x0) of its first pixel.
        """
        place, inside = _places(spans, image.shape, origin)
        values = np.zeros(len(inside), dtype=np.float32)
        values[inside] = image.ravel()[place]
        return cls(spans, np.where(np.isfinite(values), values, np.float32(0)))

    @property
    def sums(self) -> FloatArray:
        """Sum of each model (nJy); NaN where there is none, float64, (N,)."""
        areas = self.spans.areas
        owner = np.repeat(np.arange(len(self)), areas)
        total = np.bincount(owner, weights=self.values, minlength=len(self))
        return np.where(areas > 0, total, np.nan)

    def filled(self, other: PixelModels) -> PixelModels:
        """Take the models of another set where there are none.

        Parameters
        ----------
        other : `PixelModels`
            As many models.
        """
        missing = self.spans.areas == 0
        spans = SpanMasks.concatenate([self.spans, other.spans])
        own, others = (np.split(one.values, np.cumsum(one.spans.areas)[:-1]) for one in (self, other))
        parts = [b if lacks else a for a, b, lacks in zip(own, others, missing)]
        return self.from_parts(spans.select(np.arange(len(self)) + len(self) * missing), parts)

    def paint(self, shape: tuple[int, int], origin: tuple[int, int]) -> FloatArray:
        """Add all models up to an image (nJy), float64, (y, x), without pixels off it.

        Parameters
        ----------
        shape, origin : `tuple` [`int`, `int`]
            Height and width of the image, and (y0, x0) of its first pixel.
        """
        place, inside = _places(self.spans, shape, origin)
        total = np.bincount(place, weights=self.values[inside], minlength=shape[0] * shape[1])
        return total.astype(np.float64).reshape(shape)


@dataclass(frozen=True, eq=False)
class FieldImages:
    """The images that deblenders are given and compared on; `ValueError` is raised if their shapes differ.

    Parameters
    ----------
    images, variances : `~collections.abc.Mapping` [`str`, `numpy.ndarray`]
        Flux (nJy) per pixel and its variance (nJy^2) by band, (y, x).
    usable : `numpy.ndarray`
        Pixels that count, bool, (y, x).
    origin : `tuple` [`int`, `int`]
        (y0, x0) of the first pixel in the parent frame.
    exposures : `~collections.abc.Mapping` [`str`, \
            `lsst.afw.image.ExposureF`], optional
        The exposures by band, for deblenders that need their PSF or work in
        their units.
    """

    images: Mapping[str, npt.NDArray[np.floating]]
    variances: Mapping[str, npt.NDArray[np.floating]]
    usable: BoolArray
    origin: tuple[int, int]
    exposures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.images) != set(self.variances):
            raise ValueError(
                f"Images are in {sorted(self.images)}, variances in {sorted(self.variances)}; "
                "give both in the same bands."
            )
        for band, image in self.images.items():
            shapes = [image.shape, self.variances[band].shape, self.usable.shape]
            if len(set(shapes)) > 1:
                raise ValueError(
                    f"Image, variance and mask in {band} have the shapes {shapes}; give one box."
                )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width (`tuple` [`int`, `int`])."""
        return self.usable.shape[0], self.usable.shape[1]

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands (`tuple` [`str`])."""
        return tuple(self.images)

    def paint_masks(self, spans: SpanMasks) -> BoolArray:
        """Find the pixels that any mask holds, bool, (y, x).

        Parameters
        ----------
        spans : `~lsst.meas.maskrcnn.metrics.spans.SpanMasks`
            The masks.
        """
        pixels = np.zeros(self.usable.size, dtype=bool)
        pixels[_places(spans, self.shape, self.origin)[0]] = True
        return pixels.reshape(self.shape)


@dataclass(frozen=True, eq=False)
class DeblendedField:
    """The sources that a deblender made of an image.

    `ValueError` is raised if the lengths do not fit each other, or a source has a
    parent that is not listed.

    Parameters
    ----------
    name : `str`
        Of the deblender; a part of column names.
    ids, parent_ids : `numpy.ndarray`
        Ids of N sources, those that have no children, and of their parents;
        an isolated source is its own, int64, (N,).
    x, y : `numpy.ndarray`
        Positions in the parent frame (px), float64, (N,).
    labels : `numpy.ndarray`
        Classes, see `lsst.meas.maskrcnn.images.classes`, int64, (N,).
    spans : `~lsst.meas.maskrcnn.metrics.spans.SpanMasks`
        Masks; empty where the deblender kept none.
    flux : `~collections.abc.Mapping` [`str`, `numpy.ndarray`]
        Fluxes (nJy) by band, float64, (N,); NaN where they are not known.
    parents : `numpy.ndarray`
        Parents and isolated sources, of `PARENT_DTYPE`, (P,).
    parent_spans : `~lsst.meas.maskrcnn.metrics.spans.SpanMasks`
        Their footprints.
    models : `~collections.abc.Mapping` [`str`, `PixelModels`], optional
        Deblended pixels of each source by band, on which fluxes are measured.
        May lack bands, or all.
    templates : `~collections.abc.Mapping` [`str`, `PixelModels`], optional
        Model of each source by band, where the deblender fits one. Shares of
        the image add up to the image by construction, so that residuals need
        templates.
    seconds : `float`, optional
        Time that it took; NaN where it is not known.
    ignored : `numpy.ndarray`, optional
        For the truth: sources that count neither as found nor as missed,
        bool, (N,). By default none.
    columns : `~collections.abc.Mapping` [`str`, `numpy.ndarray`], optional
        More columns, (N,) each, such as the true ``blendedness``.
    """

    name: str
    ids: IntArray
    parent_ids: IntArray
    x: FloatArray
    y: FloatArray
    labels: IntArray
    spans: SpanMasks
    flux: Mapping[str, FloatArray]
    parents: npt.NDArray[Any]
    parent_spans: SpanMasks
    models: Mapping[str, PixelModels] = field(default_factory=dict)
    templates: Mapping[str, PixelModels] = field(default_factory=dict)
    seconds: float = float("nan")
    ignored: BoolArray | None = None
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sized: dict[str, Any] = {name: getattr(self, name) for name in ("parent_ids", "x", "y", "labels")}
        sized |= {"spans": self.spans, "ignored": self.ids if self.ignored is None else self.ignored}
        for name in ("flux", "models", "templates", "columns"):
            sized |= {f"{name} in {key}": values for key, values in getattr(self, name).items()}
        for what, values in sized.items():
            if len(values) != len(self):
                raise ValueError(f"{self.name}: {len(values)} {what} for {len(self)} sources.")
        if len(self.parents) != len(self.parent_spans):
            raise ValueError(
                f"{self.name}: {len(self.parent_spans)} footprints for {len(self.parents)} parents."
            )
        lost = ~np.isin(self.parent_ids, self.parents["id"])
        if lost.any():
            raise ValueError(
                f"{self.name}: {int(lost.sum())} of {len(self)} sources have a parent that is not among the "
                f"{len(self.parents)} parents, such as {int(self.parent_ids[lost][0])}."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def parent(self) -> IntArray:
        """Index of the parent of each source, int64, (N,)."""
        order = np.argsort(self.parents["id"], kind="stable")
        return order[np.searchsorted(self.parents["id"][order], self.parent_ids)]

    @property
    def positions(self) -> FloatArray:
        """Positions (x, y) (px), float64, (N, 2)."""
        return np.stack([self.x, self.y], axis=1)

    @property
    def n_without_mask(self) -> int:
        """Number of sources without mask (`int`)."""
        return int(np.count_nonzero(self.spans.areas == 0))

    @property
    def is_blend(self) -> BoolArray:
        """Parents of several children or peaks, and skipped ones, bool, (P,)."""
        return (self.parents["n_child"] > 1) | (self.parents["n_peak"] > 1) | self.parents["skipped"]


class Deblender(abc.ABC):
    """A program that deblends images, or a reader of its results."""

    name: str
    """Name of the deblender; a part of column names."""

    def deblend(self, images: FieldImages) -> DeblendedField:
        """Deblend the images, or read what was made of them.

        Parameters
        ----------
        images : `FieldImages`
            The images, without background.

        Raises
        ------
        ImportError
            Raised if a package that the deblender needs is not installed.
        ValueError
            Raised if the images lack something that is needed, or do not fit
            what was stored.
        """
        field = self._get_sources(images)
        (y0, x0), (height, width) = images.origin, images.shape
        x_inside = (field.x >= x0 - 1) & (field.x <= x0 + width)
        if len(field) and not (x_inside & (field.y >= y0 - 1) & (field.y <= y0 + height)).any():
            raise ValueError(
                f"None of the {len(field)} sources of {self.name} lies on the exposures, which begin at "
                f"(x, y) = ({x0}, {y0}) and are {width} x {height} pixels; the first source is at "
                f"({field.x[0]:.0f}, {field.y[0]:.0f}). Give both of one patch."
            )
        return field

    @abc.abstractmethod
    def _get_sources(self, images: FieldImages) -> DeblendedField:
        """The sources without children."""


def import_optional(name: str, extra: str) -> Any:
    """Import a module of a package that an extra of this one brings; `ImportError` where it is missing."""
    root = name.partition(".")[0]
    if importlib.util.find_spec(root) is None:
        raise ImportError(
            f"This deblender needs the package {root!r}, which is not installed; install it with "
            f"pip install 'lsst-meas-maskrcnn[{extra}]', or choose another deblender."
        )
    return importlib.import_module(name)


def make_parents(ids: IntArray, parent_ids: IntArray, spans: SpanMasks) -> tuple[npt.NDArray[Any], SpanMasks]:
    """Make parents, of `PARENT_DTYPE` and by id, out of their children, whose pixels are their footprints.

    An isolated source, its own parent, has no children.

    Parameters
    ----------
    ids, parent_ids : `numpy.ndarray`
        Ids of the sources and of their parents, int64, (N,).
    spans : `~lsst.meas.maskrcnn.metrics.spans.SpanMasks`
        Masks of the sources.
    """
    unique, index = np.unique(parent_ids, return_inverse=True)
    parents = np.zeros(len(unique), dtype=PARENT_DTYPE)
    parents["id"], parents["n_peak"] = unique, -1
    parents["runtime_ms"] = parents["chi2"] = np.nan
    parents["n_child"] = np.bincount(index[ids != parent_ids], minlength=len(unique))
    return parents, spans.unite(index, len(unique))


def _places(spans: SpanMasks, shape: tuple[int, ...], origin: tuple[int, int]) -> tuple[IntArray, BoolArray]:
    """Flat index of each pixel of the masks that is on an image, and which pixels of the masks these are."""
    _, rows, columns = spans.pixels()
    rows, columns = rows - origin[0], columns - origin[1]
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    return rows[inside] * shape[1] + columns[inside], inside
