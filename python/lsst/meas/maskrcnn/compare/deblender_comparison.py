# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two deblenders on one image, source by source and blend by blend.

Sources are matched by position, one to one; who else is near is told by
friends of friends. Parents of the two that cover the same light make a blend,
in which both are judged on the same pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.spatial

from ..images.classes import CLASS_NAMES
from ..metrics.blends import BlendGroups, friends_of_friends, overlap_links, peak_links
from ..metrics.match_table import ab_magnitude
from ..metrics.matching import greedy_match
from ..metrics.spans import MaskPairs, SpanMasks, mask_iou
from ..report.gallery import group_boxes
from .deblended_field import (
    DeblendedField,
    FieldImages,
    PixelModels,
    span_pixels,
    sum_over_spans,
)

__all__ = [
    "Columns",
    "ComparisonSettings",
    "FieldComparison",
    "blend_measures",
    "compare_fields",
    "link_parents",
    "match_positions",
    "matched_iou",
    "reduced_chi2",
    "truth_columns",
    "without_template",
]

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ComparisonSettings:
    """How two deblenders are compared.

    Parameters
    ----------
    band : `str`
        Reference band, of signal to noise ratios and blendedness.
    match_radius : `float`
        Largest distance of a match (px).
    friend_radius : `float`
        Largest distance of friends (px).
    link_iou, link_containment : `float`
        From which overlap parents of the two belong to one blend, see
        `~lsst.meas.maskrcnn.metrics.blends.overlap_links`.
    """

    band: str = "r"
    match_radius: float = 3.0
    friend_radius: float = 5.0
    link_iou: float = 0.3
    link_containment: float = 0.5


@dataclass(frozen=True, eq=False)
class FieldComparison:
    """What two deblenders have in common, and what not.

    Parameters
    ----------
    fields : `tuple` [`DeblendedField`, `DeblendedField`]
        The two.
    match : `numpy.ndarray`
        Index of the source of the second for each of the first, or -1, int64,
        (first,).
    blends : `BlendGroups`
        Parents of the first (as truths) and of the second (as detections)
        that make a blend together.
    groups : `tuple` [`numpy.ndarray`, `numpy.ndarray`]
        Blend of each source of either, int64.
    regions : `SpanMasks`
        Pixels of each blend: those of all its parents.
    sources : `dict` [`str`, `numpy.ndarray`]
        Columns of one row for each source of the first, then for each of the
        second without match.
    table : `dict` [`str`, `numpy.ndarray`]
        Columns of one row for each blend.
    """

    fields: tuple[DeblendedField, DeblendedField]
    match: npt.NDArray[np.int64]
    blends: BlendGroups
    groups: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    regions: SpanMasks
    sources: Columns
    table: Columns

    @property
    def names(self) -> tuple[str, str]:
        """Names of the deblenders (`tuple` [`str`, `str`])."""
        return self.fields[0].name, self.fields[1].name

    @property
    def matched(self) -> npt.NDArray[np.bool_]:
        """Rows of ``sources`` that both have, bool."""
        row = np.arange(len(self.sources["group"]))
        return (row < len(self.match)) & (np.append(self.match, -1)[np.minimum(row, len(self.match))] >= 0)


def match_positions(
    first: npt.ArrayLike, second: npt.ArrayLike, radius: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Match positions one to one, the closest first.

    Parameters
    ----------
    first, second : array_like
        Positions (x, y), (source, 2); those that are not finite match
        nothing.
    radius : `float`
        Largest distance, in their unit.

    Returns
    -------
    match : `numpy.ndarray`
        Index of the second for each of the first, or -1, int64, (first,).
    separation : `numpy.ndarray`
        Their distance; NaN without match, float64, (first,).
    """
    a, b = np.asarray(first, dtype=float).reshape(-1, 2), np.asarray(second, dtype=float).reshape(-1, 2)
    links = peak_links(a, b, radius)
    distance = np.hypot(*(a[links[:, 0]] - b[links[:, 1]]).T)
    nearness = 1.0 - 0.5 * distance / radius
    pairs = MaskPairs(links[:, 0], links[:, 1], np.zeros(len(links), dtype=np.int64), nearness)
    match = greedy_match(pairs, np.ones(len(a)), len(b))
    separation = np.full(len(a), np.nan)
    found = match >= 0
    separation[found] = np.hypot(*(a[found] - b[match[found]]).T)
    return match, separation


def matched_iou(first: SpanMasks, second: SpanMasks, match: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute the overlap of matched masks.

    Parameters
    ----------
    first, second : `SpanMasks`
        Masks of the sources.
    match : `numpy.ndarray`
        Index of the second for each of the first, or -1, (first,).

    Returns
    -------
    iou : `numpy.ndarray`
        Intersection over union; NaN without match or where one has no mask,
        float64, (first,).
    """
    iou = np.full(len(first), np.nan)
    both = match >= 0
    both[both] = (first.areas[both] > 0) & (second.areas[match[both]] > 0)
    iou[both] = 0.0
    pairs = mask_iou(first, second)
    of_match = match[pairs.first] == pairs.second
    iou[pairs.first[of_match]] = pairs.iou[of_match]
    return iou


def blend_measures(
    models: PixelModels, spans: SpanMasks, parent: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Say how much the light of neighbours overlaps with each source.

    Parameters
    ----------
    models : `PixelModels`
        Light of N sources.
    spans : `SpanMasks`
        Masks within which overlap is counted.
    parent : `numpy.ndarray`
        Parent of each source; only children of one parent are neighbours,
        int64, (N,).

    Returns
    -------
    blendedness : `numpy.ndarray`
        1 - sum(m^2) / sum(B m), m the model of the source and B the sum of
        the models of its blend (Bosch et al. 2018, PASJ 70, S5, as scarlet
        has it); NaN without light, float64, (N,).
    flux_overlap : `numpy.ndarray`
        Light of neighbours within the mask, (N,).
    flux_overlap_fraction : `numpy.ndarray`
        The same over the light of the source, (N,).
    """
    number = len(models)
    own_owner, own_rows, own_columns = span_pixels(models.spans)
    owner, rows, columns = span_pixels(spans)
    if not len(own_rows):
        return (np.full(number, np.nan),) * 3
    # A pixel of a parent has one code, and the models that share it are summed up there.
    top, left = (
        int(min(own_rows.min(), rows.min(initial=0))),
        int(min(own_columns.min(), columns.min(initial=0))),
    )
    height = int(max(own_rows.max(), rows.max(initial=0))) - top + 1
    width = int(max(own_columns.max(), columns.max(initial=0))) - left + 1

    def code(who: Any, y: Any, x: Any) -> npt.NDArray[np.int64]:
        return (parent[who] * height + y - top) * width + x - left

    own_code = code(own_owner, own_rows, own_columns)
    places, index = np.unique(own_code, return_inverse=True)
    values = models.values.astype(np.float64)
    total = np.bincount(index, weights=values)

    def per_source(who: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.bincount(who, weights=weights, minlength=number).astype(np.float64)

    square, mixed = per_source(own_owner, values**2), per_source(own_owner, total[index] * values)
    blendedness = np.full(number, np.nan)
    np.divide(square, mixed, out=blendedness, where=mixed > 0)
    # Light of the blend within the mask, minus that of the source itself there.
    mask_code = code(owner, rows, columns)
    place = np.minimum(np.searchsorted(places, mask_code), len(places) - 1)
    light = np.where(places[place] == mask_code, total[place], 0.0)
    in_mask = per_source(owner, light)
    # Pixels are in order of source, row and column, so that what is in both can be bisected.
    cells = height * width
    own_key = own_owner * cells + (own_rows - top) * width + own_columns - left
    mask_key = np.append(owner * cells + (rows - top) * width + columns - left, -1)
    inside = mask_key[np.searchsorted(mask_key[:-1], own_key)] == own_key
    overlap = in_mask - per_source(own_owner, np.where(inside, values, 0.0))
    sums = models.sums
    overlap = np.where(models.spans.areas > 0, overlap, np.nan)
    share = np.full(number, np.nan)
    np.divide(overlap, sums, out=share, where=sums > 0)
    return 1.0 - blendedness, overlap, share


def link_parents(
    first: DeblendedField, second: DeblendedField, match: npt.NDArray[np.int64], settings: ComparisonSettings
) -> BlendGroups:
    """Join parents of two deblenders that cover the same light.

    Parameters
    ----------
    first, second : `DeblendedField`
        The two.
    match : `numpy.ndarray`
        Index of the source of the second for each of the first, or -1.
    settings : `ComparisonSettings`
        How.

    Returns
    -------
    groups : `BlendGroups`
        Parents of the first as truths, of the second as detections. Parents
        are joined by much overlap, and by sources that match.
    """
    pairs = mask_iou(first.parent_spans, second.parent_spans)
    links = overlap_links(
        pairs.first,
        pairs.second,
        pairs.iou,
        first.parent_spans.areas,
        second.parent_spans.areas,
        min_iou=settings.link_iou,
        min_containment=settings.link_containment,
    )
    both = match >= 0
    by_source = np.stack([first.parent[both], second.parent[match[both]]], axis=1)
    return friends_of_friends(len(first.parents), len(second.parents), np.concatenate([links, by_source]))


def reduced_chi2(
    field: DeblendedField,
    regions: SpanMasks,
    images: FieldImages,
    outside: npt.NDArray[np.bool_] | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Compute what a deblender's templates leave over in regions.

    Parameters
    ----------
    field : `DeblendedField`
        The deblender.
    regions : `SpanMasks`
        R regions.
    images : `FieldImages`
        The images.
    outside : `numpy.ndarray`, optional
        Pixels that do not count, bool, (y, x); by default those of
        `without_template`.

    Returns
    -------
    chi2 : `dict` [`str`, `numpy.ndarray`]
        Mean of (image - templates)^2 / variance over the pixels that count,
        by band, float64, (R,); NaN without pixels. Bands without templates
        are missing.
    """
    counts = images.usable & ~(without_template(field, images) if outside is None else outside)
    n_pixels = sum_over_spans(regions, counts.astype(np.float64), images.origin)
    chi2 = {}
    for band in images.bands:
        if band not in field.templates:
            continue
        model = field.templates[band].paint(images.shape, images.origin)
        variance = np.where(counts, images.variances[band], 1.0)
        square = np.where(counts, (images.images[band] - model) ** 2 / variance, 0.0)
        sums = sum_over_spans(regions, square, images.origin)
        chi2[band] = np.divide(sums, n_pixels, out=np.full(len(regions), np.nan), where=n_pixels > 0)
    return chi2


def without_template(field: DeblendedField, images: FieldImages) -> npt.NDArray[np.bool_]:
    """Find where a deblender has sources, but no idea of what they look like.

    Parameters
    ----------
    field : `DeblendedField`
        The deblender.
    images : `FieldImages`
        The images.

    Returns
    -------
    pixels : `numpy.ndarray`
        Masks of sources without template in some band, such as scarlet's
        isolated ones, bool, (y, x); none if it has no templates at all.
    """
    pixels = np.zeros(images.shape, dtype=bool)
    if not field.templates:
        return pixels
    bare = np.any([one.spans.areas == 0 for one in field.templates.values()], axis=0)
    spans = SpanMasks.concatenate(
        [
            field.spans.select(np.flatnonzero(bare)),
            # Where a child lost its mask too, its parent's pixels say nothing.
            field.parent_spans.select(np.unique(field.parent[bare & (field.spans.areas == 0)])),
        ]
    )
    _, rows, columns = span_pixels(spans)
    rows, columns = rows - images.origin[0], columns - images.origin[1]
    inside = (rows >= 0) & (rows < images.shape[0]) & (columns >= 0) & (columns < images.shape[1])
    pixels[rows[inside], columns[inside]] = True
    return pixels


def compare_fields(
    first: DeblendedField,
    second: DeblendedField,
    images: FieldImages | None = None,
    settings: ComparisonSettings | None = None,
) -> FieldComparison:
    """Compare what two deblenders made of one image.

    Parameters
    ----------
    first, second : `DeblendedField`
        The two; their names must differ.
    images : `FieldImages`, optional
        The images; without them there are no residuals and no signal to
        noise ratios.
    settings : `ComparisonSettings`, optional
        How.

    Returns
    -------
    comparison : `FieldComparison`
        Tables of sources and blends. Ratios and differences are the first's
        to, or minus, the second's.

    Raises
    ------
    ValueError
        Raised if both have one name.
    """
    if first.name == second.name:
        raise ValueError(f"Both deblenders are called {first.name!r}; give them different names.")
    how = settings or ComparisonSettings()
    match, separation = match_positions(first.positions, second.positions, how.match_radius)
    blends = link_parents(first, second, match, how)
    groups = _group_of(blends.truth_group, first), _group_of(blends.detection_group, second)
    regions = _regions(first, second, blends)
    rows = _Rows(len(first), len(second), match)
    measured = [_measure(field, images, how) for field in (first, second)]
    sources: Columns = {"group": rows.either(*groups)}
    for side, (field, own) in enumerate(zip((first, second), measured)):
        for name, values, empty in (
            ("id", field.ids, -1),
            ("parent", np.where(field.parent_ids == field.ids, 0, field.parent_ids), -1),
            ("x", field.x, np.nan),
            ("y", field.y, np.nan),
            ("class", _class_names(field.labels), ""),
            ("area", field.spans.areas, 0),
            *((name, values, np.nan) for name, values in own.items()),
        ):
            sources[f"{name}_{field.name}"] = rows.of(side, values, empty)
    sources["x"] = rows.either(first.x, second.x)
    sources["y"] = rows.either(first.y, second.y)
    sources["separation"] = rows.of(0, separation, np.nan)
    sources["iou"] = rows.of(0, matched_iou(first.spans, second.spans, match), np.nan)
    sources |= _friends(first, second, rows, how)
    sources |= _fluxes(first, second, rows)
    sources["significance"] = _significance(sources, (first.name, second.name), how.band)
    sources["outcome"] = np.where(
        rows.matched,
        "matched",
        np.where(rows.index[0] >= 0, f"only {first.name}", f"only {second.name}"),
    )
    table = _blend_table((first, second), match, blends, groups, regions, images, sources)
    return FieldComparison((first, second), match, blends, groups, regions, sources, table)


def truth_columns(
    truth: DeblendedField,
    comparison: FieldComparison,
    counted: npt.NDArray[np.bool_] | None = None,
    images: FieldImages | None = None,
    settings: ComparisonSettings | None = None,
    extra: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Columns:
    """Say which truths either deblender found, and how well.

    Parameters
    ----------
    truth : `DeblendedField`
        The truth, T sources.
    comparison : `FieldComparison`
        Both deblenders. Columns ``truth_<name>`` are added to its sources:
        the id of the truth of each, -1 without, -2 for an ignored one.
    counted : `numpy.ndarray`, optional
        Truths that are hits or misses, bool, (T,); by default all.
    images : `FieldImages`, optional
        The images, for signal to noise ratios.
    settings : `ComparisonSettings`, optional
        How.
    extra : `~collections.abc.Mapping` [`str`, `numpy.ndarray`], optional
        More columns of the truth, (T,), such as its own ``blendedness``.

    Returns
    -------
    table : `dict` [`str`, `numpy.ndarray`]
        Columns of one row for each truth. ``unit`` is the blend that it lies
        in, or a number of its own: what resampling draws.
    """
    how = settings or ComparisonSettings()
    number = len(truth)
    keep = np.ones(number, dtype=bool) if counted is None else np.asarray(counted, dtype=bool)
    table: Columns = {
        "id": truth.ids,
        "x": truth.x,
        "y": truth.y,
        "class": _class_names(truth.labels),
        "counted": keep,
        "neighbor_distance": _nearest(truth.positions),
    }
    measured = _measure(truth, images, how)
    table |= {name: measured[name] for name in ("blendedness", "flux_overlap_fraction") if name in measured}
    table |= {f"flux_{band}": flux for band, flux in truth.flux.items()}
    if images is not None and how.band in truth.flux and how.band in images.bands:
        table["snr"] = _snr(truth.flux[how.band], truth.spans, images, how.band)
    table |= {name: np.asarray(values) for name, values in (extra or {}).items()}
    unit = np.full(number, -1, dtype=np.int64)
    n_first = len(comparison.match)
    for side, field in enumerate(comparison.fields):
        match, separation = match_positions(truth.positions, field.positions, how.match_radius)
        found = match >= 0
        table[f"found_{field.name}"] = found
        table[f"id_{field.name}"] = np.where(found, np.append(field.ids, -1)[match], -1)
        table[f"separation_{field.name}"] = separation
        table[f"iou_{field.name}"] = matched_iou(truth.spans, field.spans, match)
        for band, flux in truth.flux.items():
            own = np.append(field.flux.get(band, np.full(len(field), np.nan)), np.nan)[match]
            table[f"flux_{band}_{field.name}"] = own
            residual = np.full(number, np.nan)
            np.divide(own, flux, out=residual, where=flux > 0)
            table[f"flux_residual_{band}_{field.name}"] = residual - 1.0
        group = np.append(comparison.groups[side], -1)[match]
        unit = np.where(unit < 0, group, unit)
        of_source = np.full(len(field), -1, dtype=np.int64)
        of_source[match[found]] = np.where(keep[found], truth.ids[found], -2)
        if side == 0:
            rows = np.concatenate([of_source, np.full(len(comparison.sources["group"]) - n_first, -1)])
        else:
            alone = np.setdiff1d(np.arange(len(field)), comparison.match)
            rows = np.concatenate([np.append(of_source, -1)[comparison.match], of_source[alone]])
        comparison.sources[f"truth_{field.name}"] = rows
    # What nobody found belongs to the blend on which it lies.
    lost = unit < 0
    unit[lost] = _region_at(comparison.regions, truth.x[lost], truth.y[lost])
    lost = unit < 0
    unit[lost] = comparison.blends.n_groups + np.arange(int(lost.sum()))
    table["unit"] = unit
    return table


class _Rows:
    """Rows of the table of sources: the first's, then those that only the second has."""

    def __init__(self, n_first: int, n_second: int, match: npt.NDArray[np.int64]) -> None:
        alone = np.setdiff1d(np.arange(n_second), match)
        self.index = (
            np.concatenate([np.arange(n_first), np.full(len(alone), -1)]),
            np.concatenate([match, alone]),
        )
        self.matched = (self.index[0] >= 0) & (self.index[1] >= 0)

    def of(self, side: int, values: npt.NDArray[Any], empty: Any) -> npt.NDArray[Any]:
        index = self.index[side]
        padded = np.concatenate([values, np.full(1, empty, dtype=values.dtype)])
        return padded[index]

    def either(self, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
        own = self.index[0] >= 0
        result = np.empty(len(own), dtype=np.result_type(first, second))
        result[own] = first[self.index[0][own]]
        result[~own] = second[self.index[1][~own]]
        return result


def _class_names(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
    names = np.full(len(labels), "unknown", dtype="U7")
    for label, name in enumerate(CLASS_NAMES, 1):
        names[labels == label] = name
    return names


def _group_of(groups: npt.NDArray[np.int64], field: DeblendedField) -> npt.NDArray[np.int64]:
    return groups[field.parent] if len(field) else np.zeros(0, dtype=np.int64)


def _regions(first: DeblendedField, second: DeblendedField, blends: BlendGroups) -> SpanMasks:
    """Pixels of each blend, each once."""
    spans = SpanMasks.concatenate([first.parent_spans, second.parent_spans])
    group = np.concatenate([blends.truth_group, blends.detection_group])
    owner, rows, columns = span_pixels(spans)
    if not len(rows):
        return SpanMasks(np.zeros(blends.n_groups + 1, dtype=np.int64), *(np.zeros(0, np.int32),) * 3)
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 2
    code = np.unique((group[owner] * height + rows - top) * width + columns - left)
    begins = np.append(True, np.diff(code) != 1)
    begin, last = code[begins], code[np.append(begins[1:], True)]
    line, x0 = np.divmod(begin, width)
    member, y = np.divmod(line, height)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(member, minlength=blends.n_groups))])
    return SpanMasks(
        offsets,
        (y + top).astype(np.int32),
        (x0 + left).astype(np.int32),
        (last - begin + x0 + left + 1).astype(np.int32),
    )


def _region_at(
    regions: SpanMasks, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Region that holds each position, or -1."""
    pixels = SpanMasks(
        np.arange(len(x) + 1),
        np.rint(y).astype(np.int32),
        np.rint(x).astype(np.int32),
        np.rint(x).astype(np.int32) + 1,
    )
    pairs = mask_iou(pixels, regions)
    found = np.full(len(x), -1, dtype=np.int64)
    found[pairs.first[::-1]] = pairs.second[::-1]
    return found


def _snr(
    flux: npt.NDArray[np.float64], spans: SpanMasks, images: FieldImages, band: str
) -> npt.NDArray[np.float64]:
    noise = np.sqrt(sum_over_spans(spans, images.variances[band], images.origin))
    return np.divide(flux, noise, out=np.full(len(flux), np.nan), where=noise > 0)


def _measure(field: DeblendedField, images: FieldImages | None, settings: ComparisonSettings) -> Columns:
    band = settings.band
    nothing = np.full(len(field), np.nan)
    measured: Columns = {"snr": nothing}
    if images is not None and band in images.bands and band in field.flux:
        measured["snr"] = _snr(field.flux[band], field.spans, images, band)
    names = ("blendedness", "flux_overlap", "flux_overlap_fraction")
    if band in field.models:
        values = blend_measures(field.models[band], field.spans, field.parent)
    else:
        values = (nothing,) * 3
    return measured | dict(zip(names, values))


def _friends(
    first: DeblendedField, second: DeblendedField, rows: _Rows, settings: ComparisonSettings
) -> Columns:
    """How many sources of each are near, directly or through others."""
    links = peak_links(first.positions, second.positions, settings.friend_radius)
    groups = friends_of_friends(len(first), len(second), links)
    group = rows.either(groups.truth_group, groups.detection_group)
    return {
        "friends": group,
        f"n_friends_{first.name}": groups.n_truth[group] if len(group) else group,
        f"n_friends_{second.name}": groups.n_detection[group] if len(group) else group,
    }


def _fluxes(first: DeblendedField, second: DeblendedField, rows: _Rows) -> Columns:
    columns: Columns = {}
    both = [band for band in first.flux if band in second.flux]
    for side, field in enumerate((first, second)):
        for band, flux in field.flux.items():
            columns[f"flux_{band}_{field.name}"] = rows.of(side, flux, np.nan)
    mags = {}
    for band in both:
        a, b = columns[f"flux_{band}_{first.name}"], columns[f"flux_{band}_{second.name}"]
        ratio = np.full(len(a), np.nan)
        np.divide(a, b, out=ratio, where=b > 0)
        columns[f"flux_ratio_{band}"] = ratio
        mags[band] = ab_magnitude(a), ab_magnitude(b)
    for blue, red in zip(both[:-1], both[1:]):
        columns[f"color_difference_{blue}_{red}"] = (mags[blue][0] - mags[red][0]) - (
            mags[blue][1] - mags[red][1]
        )
    return columns


def _significance(sources: Columns, names: tuple[str, str], band: str) -> npt.NDArray[np.float64]:
    """How far fluxes differ in units of the noise; of a source that only one has, all of its flux."""
    first, second = (sources[f"snr_{name}"] for name in names)
    flux = [sources.get(f"flux_{band}_{name}", np.full(len(first), np.nan)) for name in names]
    noise = [
        np.divide(f, s, out=np.full(len(first), np.nan), where=np.isfinite(s) & (s != 0))
        for f, s in zip(flux, (first, second))
    ]
    matched = (sources[f"id_{names[0]}"] >= 0) & (sources[f"id_{names[1]}"] >= 0)
    alone = np.where(sources[f"id_{names[0]}"] >= 0, first, second)
    with np.errstate(invalid="ignore", divide="ignore"):
        differs = np.abs(flux[0] - flux[1]) / np.fmax(noise[0], noise[1])
    return np.where(matched, differs, alone)


def _blend_table(
    fields: tuple[DeblendedField, DeblendedField],
    match: npt.NDArray[np.int64],
    blends: BlendGroups,
    groups: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    regions: SpanMasks,
    images: FieldImages | None,
    sources: Columns,
) -> Columns:
    number = blends.n_groups
    boxes = group_boxes(blends, fields[0].parent_spans.boxes, fields[1].parent_spans.boxes)
    # A parent without pixels has no box to add.
    boxes = np.where((regions.areas > 0)[:, None], regions.boxes, boxes)
    table: Columns = {"group": np.arange(number)}
    table |= {name: boxes[:, k] for k, name in enumerate(("x0", "y0", "x1", "y1"))}
    table["n_pixels"] = regions.areas
    significance = np.nan_to_num(sources["significance"], nan=0.0)
    largest = np.zeros(number)
    np.maximum.at(largest, sources["group"], significance)
    outside = np.zeros(0, dtype=bool)
    if images is not None:
        # Both are judged on the same pixels.
        outside = without_template(fields[0], images) | without_template(fields[1], images)
    table["n_matched"] = np.bincount(groups[0][match >= 0], minlength=number)
    for field, parent_group, group in zip(fields, (blends.truth_group, blends.detection_group), groups):
        name = field.name

        def count(chosen: Any, of: npt.NDArray[np.int64] = parent_group) -> npt.NDArray[np.int64]:
            return np.bincount(of[chosen], minlength=number)

        parents = field.parents
        table[f"n_parents_{name}"] = count(slice(None))
        table[f"n_children_{name}"] = np.bincount(group, minlength=number)
        for what in ("skipped", "failed", "not_converged"):
            table[f"n_{what}_{name}"] = count(parents[what])
        known = np.isfinite(parents["runtime_ms"])
        time = np.bincount(parent_group[known], weights=parents["runtime_ms"][known], minlength=number)
        table[f"runtime_ms_{name}"] = np.where(count(known) > 0, time, np.nan)
        counts = np.isfinite(parents["chi2"])
        weight = field.parent_spans.areas[counts].astype(np.float64)
        above = np.bincount(parent_group[counts], weights=weight * parents["chi2"][counts], minlength=number)
        below = np.bincount(parent_group[counts], weights=weight, minlength=number)
        table[f"chi2_reported_{name}"] = np.divide(above, below, out=np.full(number, np.nan), where=below > 0)
        if images is not None:
            table |= _residuals(field, regions, images, outside)
    table["significance"] = largest
    return table


def _residuals(
    field: DeblendedField, regions: SpanMasks, images: FieldImages, outside: npt.NDArray[np.bool_]
) -> Columns:
    """Residual of the templates, and the share of the light that no source was given."""
    name = field.name
    chi2 = reduced_chi2(field, regions, images, outside)
    columns: Columns = {f"chi2_{band}_{name}": values for band, values in chi2.items()}
    columns[f"chi2_{name}"] = np.mean(list(chi2.values()), axis=0) if chi2 else np.full(len(regions), np.nan)
    for band in images.bands:
        if band not in field.models:
            continue
        image = np.where(images.usable, images.images[band], 0.0)
        given = np.where(images.usable, field.models[band].paint(images.shape, images.origin), 0.0)
        total = sum_over_spans(regions, image, images.origin)
        left = total - sum_over_spans(regions, given, images.origin)
        columns[f"unassigned_{band}_{name}"] = np.divide(
            left, total, out=np.full(len(regions), np.nan), where=total > 0
        )
    return columns


def _nearest(positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distance of the nearest other position; NaN of one alone."""
    if len(positions) < 2:
        return np.full(len(positions), np.nan)
    distance, _ = scipy.spatial.cKDTree(positions).query(positions, k=2)
    return distance[:, 1]
