# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a deblender made of an image, in a form that is the same for all of them.

Positions are pixels of the parent frame, fluxes are nJy. A deblender plugs in
by giving a `DeblendedField`; nothing else here knows which one it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics.spans import SpanMasks

__all__ = [
    "PARENT_DTYPE",
    "DeblendedField",
    "FieldImages",
    "PixelModels",
    "make_parents",
    "no_spans",
    "span_pixels",
    "sum_over_spans",
]

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
"""Columns of parents: ``runtime_ms`` and ``chi2``, the residual that the
deblender itself reports per pixel and band, are NaN where they are not known,
``n_peak`` is -1; ``skipped`` ones were given up before they were tried."""


@dataclass(frozen=True, eq=False)
class PixelModels:
    """The light of N sources in one band, pixel by pixel.

    Parameters
    ----------
    spans : `SpanMasks`
        Pixels of each source; none where there is no model.
    values : `numpy.ndarray`
        Flux (nJy) of each of these pixels, source by source and row by row,
        float32, (pixel,).

    Raises
    ------
    ValueError
        Raised if there is not one value for each pixel.
    """

    spans: SpanMasks
    values: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        number = int(self.spans.areas.sum())
        if self.values.shape != (number,):
            raise ValueError(f"values have the shape {self.values.shape}; the spans hold {number} pixels.")

    def __len__(self) -> int:
        return len(self.spans)

    @classmethod
    def from_stamps(
        cls,
        masks: Sequence[npt.NDArray[np.bool_]],
        stamps: Sequence[npt.NDArray[np.floating]],
        origins: npt.ArrayLike,
    ) -> PixelModels:
        """Take models that are small images.

        Parameters
        ----------
        masks : `~collections.abc.Sequence` [`numpy.ndarray`]
            N masks, bool, (y, x) each.
        stamps : `~collections.abc.Sequence` [`numpy.ndarray`]
            Their pixels, of the same shapes.
        origins : `numpy.ndarray`
            (y0, x0) of each, (N, 2).

        Returns
        -------
        models : `PixelModels`
            The pixels within the masks.
        """
        parts = [np.asarray(stamp, dtype=np.float32)[mask] for mask, stamp in zip(masks, stamps, strict=True)]
        values = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
        return cls(SpanMasks.from_masks(masks, origins), values)

    @classmethod
    def from_image(
        cls, spans: SpanMasks, image: npt.NDArray[np.floating], origin: tuple[int, int]
    ) -> PixelModels:
        """Take the pixels of an image within masks.

        Parameters
        ----------
        spans : `SpanMasks`
            N masks.
        image : `numpy.ndarray`
            The image, (y, x); what is not finite, or off the image, is 0.
        origin : `tuple` [`int`, `int`]
            (y0, x0) of its first pixel.

        Returns
        -------
        models : `PixelModels`
            The image within each mask. A pixel of several masks is in the
            model of each.
        """
        _, rows, columns = span_pixels(spans)
        values, inside = _gather(image, rows - origin[0], columns - origin[1])
        return cls(spans, np.where(inside & np.isfinite(values), values, 0.0).astype(np.float32))

    @property
    def sums(self) -> npt.NDArray[np.float64]:
        """Sum of each model (nJy); NaN where there is none, float64, (N,)."""
        areas = self.spans.areas
        total = np.bincount(
            np.repeat(np.arange(len(self)), areas), weights=self.values, minlength=len(self)
        ).astype(np.float64)
        return np.where(areas > 0, total, np.nan)

    def select(self, chosen: npt.ArrayLike) -> PixelModels:
        """Take some of the models.

        Parameters
        ----------
        chosen : `numpy.ndarray`
            Indices, or one bool for each.

        Returns
        -------
        models : `PixelModels`
            Those models.
        """
        picked = np.asarray(chosen)
        indices = np.arange(len(self))[picked if picked.size else picked.astype(np.int64)]
        areas = self.spans.areas
        starts = np.cumsum(areas) - areas
        counts = areas[indices]
        ends = np.cumsum(counts)
        places = np.arange(int(counts.sum())) + np.repeat(starts[indices] - (ends - counts), counts)
        return PixelModels(self.spans.select(indices), self.values[places])

    def filled(self, other: PixelModels) -> PixelModels:
        """Take the models of another set where there are none.

        Parameters
        ----------
        other : `PixelModels`
            As many models.

        Returns
        -------
        models : `PixelModels`
            Own models, or else those of the other set.
        """
        missing = self.spans.areas == 0
        both = PixelModels(
            SpanMasks.concatenate([self.spans, other.spans]), np.concatenate([self.values, other.values])
        )
        return both.select(np.arange(len(self)) + len(self) * missing)

    def paint(self, shape: tuple[int, int], origin: tuple[int, int]) -> npt.NDArray[np.float64]:
        """Add all models up to an image.

        Parameters
        ----------
        shape : `tuple` [`int`, `int`]
            Height and width of the image.
        origin : `tuple` [`int`, `int`]
            (y0, x0) of its first pixel.

        Returns
        -------
        image : `numpy.ndarray`
            Their sum (nJy), float64, (y, x); pixels beyond it are lost.
        """
        _, rows, columns = span_pixels(self.spans)
        rows, columns = rows - origin[0], columns - origin[1]
        inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        flat = rows[inside] * shape[1] + columns[inside]
        total = np.bincount(flat, weights=self.values[inside], minlength=shape[0] * shape[1])
        return total.astype(np.float64).reshape(shape)


@dataclass(frozen=True, eq=False)
class FieldImages:
    """The images that deblenders are judged on.

    Parameters
    ----------
    images : `~collections.abc.Mapping` [`str`, `numpy.ndarray`]
        Flux (nJy) per pixel by band, (y, x).
    variances : `~collections.abc.Mapping` [`str`, `numpy.ndarray`]
        Variance (nJy^2) by band, (y, x).
    usable : `numpy.ndarray`
        Pixels that count, bool, (y, x).
    origin : `tuple` [`int`, `int`]
        (y0, x0) of the first pixel in the parent frame.

    Raises
    ------
    ValueError
        Raised if the shapes differ.
    """

    images: Mapping[str, npt.NDArray[np.floating]]
    variances: Mapping[str, npt.NDArray[np.floating]]
    usable: npt.NDArray[np.bool_]
    origin: tuple[int, int]

    def __post_init__(self) -> None:
        for what in (self.images, self.variances):
            for band, image in what.items():
                if image.shape != self.usable.shape:
                    raise ValueError(
                        f"An image in {band} has the shape {image.shape}, the mask {self.usable.shape}; "
                        "all must be of one box."
                    )
        if set(self.images) != set(self.variances):
            raise ValueError(
                f"Images are in {sorted(self.images)}, variances in {sorted(self.variances)}; "
                "give both in the same bands."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width (`tuple` [`int`, `int`])."""
        return self.usable.shape[0], self.usable.shape[1]

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands (`tuple` [`str`])."""
        return tuple(self.images)


@dataclass(frozen=True, eq=False)
class DeblendedField:
    """What a deblender made of an image.

    Parameters
    ----------
    name : `str`
        Of the deblender; a part of column names.
    ids : `numpy.ndarray`
        Of N sources, those that have no children, int64, (N,).
    parent_ids : `numpy.ndarray`
        Parent of each; an isolated source is its own, int64, (N,).
    x, y : `numpy.ndarray`
        Positions in the parent frame (px), float64, (N,).
    labels : `numpy.ndarray`
        `STAR`, `GALAXY` or `UNKNOWN`, int64, (N,).
    spans : `SpanMasks`
        Masks; empty where the deblender kept none.
    flux : `~collections.abc.Mapping` [`str`, `numpy.ndarray`]
        Fluxes (nJy) by band, float64, (N,); NaN where they are not known.
    parents : `numpy.ndarray`
        Parents and isolated sources, of `PARENT_DTYPE`, (P,).
    parent_spans : `SpanMasks`
        Their footprints.
    models : `~collections.abc.Mapping` [`str`, `PixelModels`]
        What each source is given of the light, by band; what fluxes are
        measured on. May lack bands, or all.
    templates : `~collections.abc.Mapping` [`str`, `PixelModels`]
        What the deblender thought that each source looks like, where it did
        so. Shares of the image add up to the image by construction, so that
        only templates leave a residual that says something.
    seconds : `float`
        How long it took, all told; NaN where it is not known.

    Raises
    ------
    ValueError
        Raised if the lengths do not fit each other, or a source has a parent
        that is not there.
    """

    name: str
    ids: npt.NDArray[np.int64]
    parent_ids: npt.NDArray[np.int64]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    spans: SpanMasks
    flux: Mapping[str, npt.NDArray[np.float64]]
    parents: npt.NDArray[Any]
    parent_spans: SpanMasks
    models: Mapping[str, PixelModels] = field(default_factory=dict)
    templates: Mapping[str, PixelModels] = field(default_factory=dict)
    seconds: float = float("nan")

    def __post_init__(self) -> None:
        number = len(self.ids)
        sizes = {"parent_ids": self.parent_ids, "x": self.x, "y": self.y, "labels": self.labels}
        sizes |= {"spans": self.spans}  # type: ignore[dict-item]
        sizes |= {f"flux in {band}": flux for band, flux in self.flux.items()}
        sizes |= {f"models in {band}": one for band, one in self.models.items()}  # type: ignore[misc]
        sizes |= {f"templates in {band}": one for band, one in self.templates.items()}  # type: ignore[misc]
        for what, given in sizes.items():
            if len(given) != number:
                raise ValueError(f"{self.name}: {len(given)} {what} for {number} sources.")
        if len(self.parents) != len(self.parent_spans):
            raise ValueError(
                f"{self.name}: {len(self.parent_spans)} footprints for {len(self.parents)} parents."
            )
        lost = ~np.isin(self.parent_ids, self.parents["id"])
        if lost.any():
            raise ValueError(
                f"{self.name}: {int(lost.sum())} of {number} sources have a parent that is not among the "
                f"{len(self.parents)} parents, such as {int(self.parent_ids[lost][0])}."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def parent(self) -> npt.NDArray[np.int64]:
        """Index of the parent of each source, int64, (N,)."""
        order = np.argsort(self.parents["id"], kind="stable")
        return order[np.searchsorted(self.parents["id"][order], self.parent_ids)]

    @property
    def positions(self) -> npt.NDArray[np.float64]:
        """Positions (x, y) (px), float64, (N, 2)."""
        return np.stack([self.x, self.y], axis=1)

    @property
    def n_without_mask(self) -> int:
        """Number of sources without mask (`int`)."""
        return int(np.count_nonzero(self.spans.areas == 0))

    @property
    def is_blend(self) -> npt.NDArray[np.bool_]:
        """Parents that were, or had to be, taken apart, bool, (P,)."""
        return (self.parents["n_child"] > 1) | (self.parents["n_peak"] > 1) | self.parents["skipped"]


def span_pixels(
    spans: SpanMasks,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """List the pixels of masks.

    Parameters
    ----------
    spans : `SpanMasks`
        N masks.

    Returns
    -------
    owner, rows, columns : `numpy.ndarray`
        Mask, row and column of each pixel, mask by mask and row by row,
        int64, (pixel,).
    """
    lengths = (spans.x1 - spans.x0).astype(np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    columns = np.arange(total) + np.repeat(spans.x0.astype(np.int64) - (ends - lengths), lengths)
    return np.repeat(spans.owner, lengths), np.repeat(spans.y.astype(np.int64), lengths), columns


def sum_over_spans(
    spans: SpanMasks, image: npt.NDArray[Any], origin: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Sum an image over each mask.

    Parameters
    ----------
    spans : `SpanMasks`
        N masks.
    image : `numpy.ndarray`
        The image, (y, x); what is not finite, or off the image, counts as 0.
    origin : `tuple` [`int`, `int`]
        (y0, x0) of its first pixel.

    Returns
    -------
    sums : `numpy.ndarray`
        The sums, float64, (N,).
    """
    owner, rows, columns = span_pixels(spans)
    values, inside = _gather(image, rows - origin[0], columns - origin[1])
    good = inside & np.isfinite(values)
    return np.bincount(owner[good], weights=values[good], minlength=len(spans)).astype(np.float64)


def no_spans(number: int) -> SpanMasks:
    """Make empty masks.

    Parameters
    ----------
    number : `int`
        How many.

    Returns
    -------
    spans : `SpanMasks`
        Masks without pixels.
    """
    nothing = np.zeros(0, dtype=np.int32)
    return SpanMasks(np.zeros(number + 1, dtype=np.int64), nothing, nothing, nothing)


def make_parents(
    ids: npt.NDArray[np.int64], parent_ids: npt.NDArray[np.int64], spans: SpanMasks
) -> tuple[npt.NDArray[Any], SpanMasks]:
    """Make parents out of their children.

    Parameters
    ----------
    ids, parent_ids : `numpy.ndarray`
        Ids of the sources and of their parents, int64, (N,).
    spans : `SpanMasks`
        Masks of the sources.

    Returns
    -------
    parents : `numpy.ndarray`
        One of `PARENT_DTYPE` for each parent, by id. An isolated source, its
        own parent, has no children.
    parent_spans : `SpanMasks`
        The pixels of all children of each.
    """
    unique, index = np.unique(parent_ids, return_inverse=True)
    parents = np.zeros(len(unique), dtype=PARENT_DTYPE)
    parents["id"], parents["n_peak"] = unique, -1
    parents["runtime_ms"] = parents["chi2"] = np.nan
    own = ids == parent_ids
    parents["n_child"] = np.bincount(index[~own], minlength=len(unique))
    owner, rows, columns = span_pixels(spans)
    if not len(rows):
        return parents, no_spans(len(unique))
    # Each pixel of a parent once, in order; consecutive columns of a row are a span.
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 2
    code = np.unique((index[owner] * height + rows - top) * width + columns - left)
    begins = np.append(True, np.diff(code) != 1)
    first, last = code[begins], code[np.append(begins[1:], True)]
    line, x0 = np.divmod(first, width)
    of_parent, y = np.divmod(line, height)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(of_parent, minlength=len(unique)))])
    joined = SpanMasks(
        offsets,
        (y + top).astype(np.int32),
        (x0 + left).astype(np.int32),
        (last - first + x0 + left + 1).astype(np.int32),
    )
    return parents, joined


def _gather(
    image: npt.NDArray[Any], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Values at pixels, 0 off the image, and which are on it."""
    height, width = image.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    values = np.zeros(len(rows))
    values[inside] = image[rows[inside], columns[inside]]
    return values, inside
