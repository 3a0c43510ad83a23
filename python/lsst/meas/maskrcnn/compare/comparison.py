# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compare two deblenders on one image, source by source and blend by blend.

Sources are matched by position, one to one. Sources that are near each other,
directly or through others, are found by friends of friends. Parents of the
two deblenders that overlap make one blend, in which both are compared on the
same pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import astropy.units as u
import numpy as np
import numpy.typing as npt
import scipy.spatial
from astropy.table import Table
from pydantic import Field

from ..catalogs.truth import FLAGS
from ..images.classes import CLASS_NAMES
from ..images.settings import settings
from ..metrics.arrays import BoolArray, FloatArray, IntArray
from ..metrics.binned import divide
from ..metrics.blends import BlendGroups, friends_of_friends, overlap_links, peak_links
from ..metrics.match_table import ab_magnitude
from ..metrics.matching import greedy_match
from ..metrics.spans import MaskPairs, SpanMasks, mask_iou
from .deblender import DeblendedField, FieldImages, PixelModels

__all__ = ["ComparisonSettings", "FieldComparison", "compare_fields", "compare_with_truth"]

Columns = dict[str, npt.NDArray[Any]]
Numbers = npt.NDArray[Any]
_UNITS = {
    "flux": u.nJy,
    "x": u.pix,
    "y": u.pix,
    "separation": u.pix,
    "neighbor_distance": u.pix,
    "runtime_ms": u.ms,
    "color_difference": u.mag,
}
_NO_UNIT = ("flux_ratio", "flux_residual", "flux_overlap_fraction")


@settings
class ComparisonSettings:
    """How two deblenders are compared."""

    band: Annotated[str, Field(description="Reference band, of signal to noise ratios and blendedness.")] = (
        "r"
    )
    bands: Annotated[
        tuple[str, ...] | None,
        Field(description="Bands to compare, from blue to red; None takes all that there are."),
    ] = None
    match_radius: Annotated[float, Field(gt=0.0, description="Largest distance of a match (pixels).")] = 3.0
    friend_radius: Annotated[
        float, Field(gt=0.0, description="Largest distance of friends, whose friends make a group (pixels).")
    ] = 5.0
    ignore_flags: Annotated[
        tuple[str, ...],
        Field(description="Flags of the truth (truth_flag_...) that make a source neither hit nor miss."),
    ] = ("empty", "small", "faint", "masked")
    n_samples: Annotated[
        int, Field(ge=2, description="Resamplings of the blends, from which errors come.")
    ] = 1000
    seed: Annotated[int, Field(ge=0, description="Random seed of the resamplings.")] = 1

    def __post_init__(self) -> None:
        unknown = sorted(set(self.ignore_flags) - set(FLAGS))
        if unknown:
            raise ValueError(f"ignore_flags are {unknown}; the flags of a truth are {list(FLAGS)}")


@dataclass(frozen=True, eq=False)
class FieldComparison:
    """What two deblenders have in common, and what not."""

    fields: tuple[DeblendedField, DeblendedField]
    """The two."""
    match: IntArray
    """Index of the source of the second for each of the first, or -1, int64, (first,)."""
    groups: tuple[IntArray, IntArray]
    """Blend of each source of either, int64."""
    regions: SpanMasks
    """Pixels of each blend: those of all its parents."""
    sources: Columns
    """Columns of one row for each source of the first, then for each of the second without match."""
    blends: Columns
    """Columns of one row for each blend."""

    @property
    def names(self) -> tuple[str, str]:
        """Names of the deblenders (`tuple` [`str`, `str`])."""
        return self.fields[0].name, self.fields[1].name

    @property
    def matched(self) -> BoolArray:
        """Rows of ``sources`` that both have, bool."""
        return self.sources["outcome"] == "matched"


class _SourceRows:
    """Rows of the table of sources: the first's, then those that only the second has."""

    def __init__(self, match: IntArray, n_second: int) -> None:
        alone = np.setdiff1d(np.arange(n_second), match)
        own = np.arange(len(match))
        # Index of the source of each side in each row, or -1.
        self.index = np.append(own, np.full(len(alone), -1)), np.append(match, alone)

    def of(self, side: int, values: npt.NDArray[Any], empty: Any) -> npt.NDArray[Any]:
        """Values of the sources of one side, or ``empty``."""
        return np.append(values, np.full(1, empty, dtype=values.dtype))[self.index[side]]

    def either(self, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values of the first's sources, or else of the second's."""
        n_first = int(np.count_nonzero(self.index[0] >= 0))
        return np.append(first, second[self.index[1][n_first:]])


def compare_fields(
    first: DeblendedField,
    second: DeblendedField,
    images: FieldImages,
    settings: ComparisonSettings | None = None,
) -> FieldComparison:
    """Compare the sources of two deblenders.

    Ratios and differences are the first's to, or minus, the second's.

    Parameters
    ----------
    first, second : `~lsst.meas.maskrcnn.compare.deblender.DeblendedField`
        The two; `ValueError` is raised if both have one name.
    images : `~lsst.meas.maskrcnn.compare.deblender.FieldImages`
        The images.
    settings : `ComparisonSettings`, optional
        Bands and distances.
    """
    if first.name == second.name:
        raise ValueError(f"Both deblenders are called {first.name!r}; give them different names.")
    how = settings or ComparisonSettings()
    fields = (first, second)
    match, separation = match_positions(first.positions, second.positions, how.match_radius)
    parents = _link_parents(first, second, match)
    groups = parents.truth_group[first.parent], parents.detection_group[second.parent]
    regions = SpanMasks.concatenate([first.parent_spans, second.parent_spans]).unite(
        np.append(parents.truth_group, parents.detection_group), parents.n_groups
    )
    rows = _SourceRows(match, len(second))
    sources: Columns = {"group": rows.either(*groups)}
    noise = []
    for side, field in enumerate(fields):
        own = {
            "id": field.ids,
            "parent": np.where(field.parent_ids == field.ids, 0, field.parent_ids),
            "x": field.x,
            "y": field.y,
            "class": _class_names(field.labels),
            "area": field.spans.areas,
        } | _measure(field, images, how.band)
        noise.append(rows.of(side, own.pop("noise"), np.nan))
        for name, values in own.items():
            empty = {"id": -1, "parent": -1, "class": "", "area": 0}.get(name, np.nan)
            sources[f"{name}_{field.name}"] = rows.of(side, values, empty)
    sources["x"] = rows.either(first.x, second.x)
    sources["y"] = rows.either(first.y, second.y)
    sources["separation"] = rows.of(0, separation, np.nan)
    sources["iou"] = rows.of(0, _matched_iou(first.spans, second.spans, match), np.nan)
    sources |= _friends(first, second, rows, how.friend_radius) | _fluxes(first, second, rows)
    alone = [index < 0 for index in rows.index]
    sources["significance"] = _significance(sources, fields, noise, alone, how.band)
    sources["outcome"] = np.select(alone, [f"only {second.name}", f"only {first.name}"], "matched")
    blends = _blend_columns(fields, parents, groups, regions, images)
    blends["n_matched"] = np.bincount(groups[0][match >= 0], minlength=parents.n_groups)
    blends["significance"] = np.zeros(parents.n_groups)
    np.maximum.at(blends["significance"], sources["group"], np.nan_to_num(sources["significance"]))
    return FieldComparison(fields, match, groups, regions, sources, blends)


def compare_with_truth(
    comparison: FieldComparison,
    truth: DeblendedField,
    images: FieldImages,
    settings: ComparisonSettings | None = None,
) -> tuple[FieldComparison, Columns]:
    """Find which true sources either deblender found, and how well.

    Parameters
    ----------
    comparison : `FieldComparison`
        Both deblenders.
    truth : `~lsst.meas.maskrcnn.compare.deblender.DeblendedField`
        The truth, T sources.
    images : `~lsst.meas.maskrcnn.compare.deblender.FieldImages`
        The images, for signal to noise ratios.
    settings : `ComparisonSettings`, optional
        Bands and distances.

    Returns
    -------
    comparison : `FieldComparison`
        The same with the columns ``truth_<name>`` of sources: the id of the
        true source of each, -1 without, -2 for an ignored one.
    truths : `dict` [`str`, `numpy.ndarray`]
        Columns of one row for each true source. ``counted`` ones are hits or
        misses. ``unit`` is the blend in which it lies, or a number of its
        own, for resampling.
    """
    how = settings or ComparisonSettings()
    counted = np.ones(len(truth), dtype=bool) if truth.ignored is None else ~truth.ignored
    table: Columns = {
        "id": truth.ids,
        "x": truth.x,
        "y": truth.y,
        "class": _class_names(truth.labels),
        "counted": counted,
        "neighbor_distance": _nearest(truth.positions),
    }
    measured = _measure(truth, images, how.band)
    table |= {name: measured[name] for name in ("blendedness", "flux_overlap_fraction", "snr")}
    table |= {f"flux_{band}": flux for band, flux in truth.flux.items()}
    table |= truth.columns
    unit = np.full(len(truth), -1, dtype=np.int64)
    rows = _SourceRows(comparison.match, len(comparison.fields[1]))
    columns: Columns = {}
    for side, field in enumerate(comparison.fields):
        match, separation = match_positions(truth.positions, field.positions, how.match_radius)
        found = match >= 0
        table[f"found_{field.name}"] = found
        table[f"id_{field.name}"] = np.append(field.ids, -1)[match]
        table[f"separation_{field.name}"] = separation
        table[f"iou_{field.name}"] = _matched_iou(truth.spans, field.spans, match)
        for band, flux in truth.flux.items():
            own = np.append(field.flux.get(band, np.full(len(field), np.nan)), np.nan)[match]
            table[f"flux_{band}_{field.name}"] = own
            table[f"flux_residual_{band}_{field.name}"] = divide(own, flux) - 1.0
        unit = np.where(unit < 0, np.append(comparison.groups[side], -1)[match], unit)
        truth_id = np.full(len(field), -1, dtype=np.int64)
        truth_id[match[found]] = np.where(counted, truth.ids, -2)[found]
        columns[f"truth_{field.name}"] = rows.of(side, truth_id, -1)
    # A source that neither found belongs to the blend on which it lies.
    lost = unit < 0
    unit[lost] = _region_at(comparison.regions, truth.x[lost], truth.y[lost])
    lost = unit < 0
    unit[lost] = len(comparison.regions) + np.arange(int(lost.sum()))
    table["unit"] = unit
    return replace(comparison, sources=comparison.sources | columns), table


def comparison_table(columns: Mapping[str, npt.NDArray[Any]], instrumental: Collection[str] = ()) -> Table:
    """Make a table with units of columns by name; fluxes in ``instrumental`` bands are counts."""
    table = Table(dict(columns))
    for name in table.colnames:
        for start, unit in _UNITS.items():
            if f"{name}_".startswith(f"{start}_") and not name.startswith(_NO_UNIT):
                counts = unit == u.nJy and name.startswith(tuple(f"flux_{band}_" for band in instrumental))
                table[name].unit = u.count if counts else unit
    return table


def match_positions(
    first: npt.ArrayLike, second: npt.ArrayLike, radius: float
) -> tuple[IntArray, FloatArray]:
    """Match positions (x, y), (source, 2), within a radius one to one, the closest first.

    Those that are not finite match nothing. Returns the index of the second for
    each of the first, or -1, and their distance, or NaN, (first,).
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


def _matched_iou(first: SpanMasks, second: SpanMasks, match: IntArray) -> FloatArray:
    """Intersection over union of matched masks; NaN without match or where one has no mask."""
    both = (match >= 0) & (first.areas > 0)
    both[both] = second.areas[match[both]] > 0
    iou = np.where(both, 0.0, np.nan)
    pairs = mask_iou(first, second)
    of_match = match[pairs.first] == pairs.second
    iou[pairs.first[of_match]] = pairs.iou[of_match]
    return iou


def _blend_measures(
    models: PixelModels, spans: SpanMasks, parent: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Measure how much the light of neighbours, children of the same parent, overlaps with each source.

    Returns the blendedness, 1 - sum(m^2) / sum(B m), m the model of the source
    and B the sum of the models of its blend (Bosch et al. 2018, PASJ 70, S5,
    as scarlet has it), NaN without light; the light of neighbours within the
    mask; and the same over the light of the source.
    """
    owner, y, x = (np.append(a, b) for a, b in zip(models.spans.pixels(), spans.pixels()))
    number, n_model = len(models), len(models.values)
    if not n_model:
        return (np.full(number, np.nan),) * 3
    width = int(np.ptp(x)) + 1
    cell = (y - y.min()) * width + x - x.min()
    n_cells = int(cell.max()) + 1
    # Light of all sources of the parent in each pixel.
    values = np.append(models.values.astype(np.float64), np.zeros(len(owner) - n_model))
    _, place = np.unique(parent[owner] * n_cells + cell, return_inverse=True)
    blend = np.bincount(place, weights=values)[place]
    key = owner * n_cells + cell
    in_own_mask = np.isin(key[:n_model], key[n_model:])

    def per_source(weights: Numbers, part: slice) -> FloatArray:
        return np.bincount(owner[part], weights=weights[part], minlength=number).astype(np.float64)

    of_model, of_mask = slice(n_model), slice(n_model, None)
    blendedness = 1.0 - divide(per_source(values**2, of_model), per_source(blend * values, of_model))
    own = np.bincount(owner[of_model], weights=values[of_model] * in_own_mask, minlength=number)
    overlap = np.where(models.spans.areas > 0, per_source(blend, of_mask) - own, np.nan)
    return blendedness, overlap, divide(overlap, models.sums)


def _reduced_chi2(
    field: DeblendedField, regions: SpanMasks, images: FieldImages, usable: BoolArray
) -> dict[str, FloatArray]:
    """Mean of (image - templates)^2 / variance over the usable pixels of regions, by band with templates."""
    n_pixels = regions.sum_over(usable, images.origin)
    chi2 = {}
    for band in images.bands:
        if band in field.templates:
            residual = images.images[band] - field.templates[band].paint(images.shape, images.origin)
            square = np.zeros(images.shape)
            np.divide(residual**2, images.variances[band], out=square, where=usable)
            chi2[band] = divide(regions.sum_over(square, images.origin), n_pixels)
    return chi2


def _class_names(labels: IntArray) -> npt.NDArray[np.str_]:
    # Labels are 0, 1 and 2.
    return np.array(["unknown", *CLASS_NAMES])[labels.astype(np.int64)]


def _nearest(positions: FloatArray) -> FloatArray:
    """Distance of the nearest other position; NaN of one alone."""
    if len(positions) < 2:
        return np.full(len(positions), np.nan)
    distance, _ = scipy.spatial.cKDTree(positions).query(positions, k=2)
    return distance[:, 1]


def _link_parents(first: DeblendedField, second: DeblendedField, match: IntArray) -> BlendGroups:
    """Join parents of the first (as truths) and the second that overlap, or whose sources match."""
    pairs = mask_iou(first.parent_spans, second.parent_spans)
    areas = first.parent_spans.areas, second.parent_spans.areas
    links = overlap_links(pairs.first, pairs.second, pairs.iou, *areas)
    both = match >= 0
    by_source = np.stack([first.parent[both], second.parent[match[both]]], axis=1)
    return friends_of_friends(len(first.parents), len(second.parents), np.concatenate([links, by_source]))


def _region_at(regions: SpanMasks, x: FloatArray, y: FloatArray) -> IntArray:
    """Region that holds each position, or -1."""
    column, row = np.rint(x).astype(np.int32), np.rint(y).astype(np.int32)
    pairs = mask_iou(SpanMasks(np.arange(len(x) + 1), row, column, column + np.int32(1)), regions)
    found = np.full(len(x), -1, dtype=np.int64)
    found[pairs.first[::-1]] = pairs.second[::-1]
    return found


def _measure(field: DeblendedField, images: FieldImages, band: str) -> Columns:
    """Noise within the masks, signal to noise ratios and blendedness; NaN where not known."""
    nothing = np.full(len(field), np.nan)
    noise = nothing
    if band in images.bands:
        noise = np.sqrt(field.spans.sum_over(images.variances[band], images.origin))
        noise = np.where(noise > 0, noise, np.nan)
    measures = (nothing,) * 3
    if band in field.models:
        measures = _blend_measures(field.models[band], field.spans, field.parent)
    names = ("blendedness", "flux_overlap", "flux_overlap_fraction")
    snr = field.flux.get(band, nothing) / noise
    return {"noise": noise, "snr": snr} | dict(zip(names, measures))


def _friends(first: DeblendedField, second: DeblendedField, rows: _SourceRows, radius: float) -> Columns:
    """Number of sources of each that are near, directly or through others."""
    links = peak_links(first.positions, second.positions, radius)
    groups = friends_of_friends(len(first), len(second), links)
    group = rows.either(groups.truth_group, groups.detection_group)
    return {
        "friends": group,
        f"n_friends_{first.name}": groups.n_truth[group],
        f"n_friends_{second.name}": groups.n_detection[group],
    }


def _fluxes(first: DeblendedField, second: DeblendedField, rows: _SourceRows) -> Columns:
    """Fluxes of both, their ratios and the differences of colours of adjacent bands."""
    columns: Columns = {}
    for side, field in enumerate((first, second)):
        for band, flux in field.flux.items():
            columns[f"flux_{band}_{field.name}"] = rows.of(side, flux, np.nan)
    both = [band for band in first.flux if band in second.flux]
    mag_difference = {}
    for band in both:
        a, b = columns[f"flux_{band}_{first.name}"], columns[f"flux_{band}_{second.name}"]
        columns[f"flux_ratio_{band}"] = divide(a, b)
        mag_difference[band] = ab_magnitude(a) - ab_magnitude(b)
    for blue, red in zip(both[:-1], both[1:]):
        columns[f"color_difference_{blue}_{red}"] = mag_difference[blue] - mag_difference[red]
    return columns


def _significance(
    sources: Columns,
    fields: tuple[DeblendedField, DeblendedField],
    noise: list[FloatArray],
    alone: list[BoolArray],
    band: str,
) -> FloatArray:
    """Difference of the fluxes over the noise; of a source that only one has, all of its flux."""
    unknown = np.full(len(noise[0]), np.nan)
    first, second = (sources.get(f"flux_{band}_{field.name}", unknown) for field in fields)
    snr_first, snr_second = (sources[f"snr_{field.name}"] for field in fields)
    difference = np.abs(first - second) / np.fmax(*noise)
    return np.select(alone, [snr_second, snr_first], difference)


def _blend_columns(
    fields: tuple[DeblendedField, DeblendedField],
    parents: BlendGroups,
    groups: tuple[IntArray, IntArray],
    regions: SpanMasks,
    images: FieldImages,
) -> Columns:
    number = len(regions)
    table: Columns = {"group": np.arange(number)}
    table |= dict(zip(("x0", "y0", "x1", "y1"), regions.boxes.T))
    table["n_pixels"] = regions.areas
    # Both are compared on the same pixels.
    usable = images.usable & ~np.any([_without_template(field, images) for field in fields], axis=0)
    for field, parent_group, group in zip(fields, (parents.truth_group, parents.detection_group), groups):
        name = field.name
        table[f"n_parents_{name}"] = np.bincount(parent_group, minlength=number)
        table[f"n_children_{name}"] = np.bincount(group, minlength=number)
        for what in ("skipped", "failed", "not_converged"):
            table[f"n_{what}_{name}"] = np.bincount(parent_group[field.parents[what]], minlength=number)
        runtime, chi2 = field.parents["runtime_ms"], field.parents["chi2"]
        known, area = np.isfinite(chi2), field.parent_spans.areas

        def total(values: Numbers, known: Numbers, of: IntArray = parent_group) -> Numbers:
            return np.bincount(of[known], weights=values[known], minlength=number)

        timed = np.bincount(parent_group[np.isfinite(runtime)], minlength=number) > 0
        table[f"runtime_ms_{name}"] = np.where(timed, total(runtime, np.isfinite(runtime)), np.nan)
        table[f"chi2_reported_{name}"] = divide(total(area * chi2, known), total(area, known))
        table |= _residuals(field, regions, images, usable)
    return table


def _without_template(field: DeblendedField, images: FieldImages) -> BoolArray:
    """Pixels of sources that lack a template, such as scarlet's isolated ones, if there are any at all."""
    if not field.templates:
        return np.zeros(images.shape, dtype=bool)
    bare = np.any([one.spans.areas == 0 for one in field.templates.values()], axis=0)
    # Where a child has no mask either, all pixels of its parent are taken.
    lost = np.unique(field.parent[bare & (field.spans.areas == 0)])
    parts = [field.spans.select(np.flatnonzero(bare)), field.parent_spans.select(lost)]
    return images.paint_masks(SpanMasks.concatenate(parts))


def _residuals(field: DeblendedField, regions: SpanMasks, images: FieldImages, usable: BoolArray) -> Columns:
    """Residuals of the templates, and the share of the light that no source was given."""
    name = field.name
    chi2 = _reduced_chi2(field, regions, images, usable)
    columns: Columns = {f"chi2_{band}_{name}": values for band, values in chi2.items()}
    columns[f"chi2_{name}"] = np.mean(list(chi2.values()), axis=0) if chi2 else np.full(len(regions), np.nan)
    for band in images.bands:
        if band not in field.models:
            continue
        image = np.where(images.usable, images.images[band], 0.0)
        given = np.where(images.usable, field.models[band].paint(images.shape, images.origin), 0.0)
        total = regions.sum_over(image, images.origin)
        columns[f"unassigned_{band}_{name}"] = divide(total - regions.sum_over(given, images.origin), total)
    return columns
