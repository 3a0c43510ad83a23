# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Columns in which the pipeline has the results of a deblender.

Names and types are those of ``lsst.meas.extensions.scarlet`` (with
``deblend_skipped`` and the other fields of parents, which it keeps in a
catalogue of their own), and mean the same here but for what the documentation
of a field says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

import lsst.afw.table as afwTable

from .record_order import RecordOrder

if TYPE_CHECKING:
    # It brings torch, which an evaluation does not import.
    from ..deblend.shares import ParentStatistics

Fields = tuple[tuple[str, Any, str, str], ...]
"""Name (without its prefix), type, unit and documentation of some fields."""

_RELATIONS: Fields = (
    ("peak_center_x", np.int32, "pixel", "Column of the peak of the source: a maximum of the detection "
     "image near the centre of its mask, or that centre, moved into the mask; of a parent, that of its "
     "brightest source"),
    ("peak_center_y", np.int32, "pixel", "Row of the peak of the source: a maximum of the detection "
     "image near the centre of its mask, or that centre, moved into the mask; of a parent, that of its "
     "brightest source"),
    ("peakId", np.int32, "", "Id of the peak in the footprint of the parent; unique together with parent. "
     "0 for parents, 1 for isolated sources"),
    ("nChild", np.int32, "", "Number of children; 0 for isolated sources and for children"),
    ("nPeaks", np.int32, "", "Number of peaks in the footprint, one for each source that was found "
     "in it"),
    ("parentNPeaks", np.int32, "", "deblend_nPeaks of the parent; 0 without a parent"),
    ("parentNChild", np.int32, "", "deblend_nChild of the parent; 0 without a parent"),
    ("blendId", np.int64, "", "Id of the record whose flux was shared with others to make this one: "
     "that of the parent; 0 without a parent"),
    ("blendNChild", np.int32, "", "Number of sources that share the flux of that record; 0 without a "
     "parent"),
    ("edgePixels", "Flag", "", "Set if the mask reaches the edge of the footprint of the parent, "
     "as at the edge of the image, so that some of its flux may be missing"),
    ("skipped", "Flag", "", "Set if the parent was not deblended. Never set: parents over the limits "
     "are deblended in a cheaper way, see deblend_fallback"),
    ("fallback", "Flag", "", "Set if flux was shared by the masks alone because the parent is over a "
     "limit or its templates failed; on the parent and its children"),
    ("fallback_tooManyPeaks", "Flag", "", "Set if that is because the parent has too many sources"),
    ("fallback_parentTooBig", "Flag", "", "Set if that is because the parent has too many pixels"),
    ("failed", "Flag", "", "Set if the templates of the parent could not be made; on the parent and "
     "its children, whose flux was shared by the masks alone"),
    ("runtime", np.float32, "ms", "Time that sharing the flux of this parent took; 0 for others"),
)  # fmt: skip

_BAND: Fields = (
    ("peak_instFlux", np.float64, "count", "Value of the share of the image at the peak"),
    ("zeroFlux", "Flag", "", "Set if the source has no share of any pixel: its HeavyFootprint is one "
     "pixel of value 0"),
    ("dataCoverage", np.float32, "", "Fraction of the pixels of the HeavyFootprint, or of the "
     "footprint of the parent, without NO_DATA"),
    ("maxOverlap", np.float32, "count", "Largest flux of other sources in one pixel of the source "
     "mask"),
    ("fluxOverlap", np.float32, "count", "Flux of other sources in the pixels of the mask"),
    ("fluxOverlapFraction", np.float32, "", "deblend_fluxOverlap over the flux of the source itself; 0 where "
     "that is not positive"),
    ("blendedness", np.float32, "", "1 - sum(m^2) / sum(B m) over the mask, m its share of "
     "the image and B the image (Bosch et al. 2018): 0 if nothing else is there"),
)  # fmt: skip


PRIMARY_FIELDS: Fields = (
    ("isPrimary", "Flag", "", "Set if the source has no children. The inner regions of patches and "
     "tracts are not considered"),
    ("isDeblendedSource", "Flag", "", "Set if the source has no children: it is isolated or a "
     "deblended child"),
    ("fromBlend", "Flag", "", "Set if the source is a deblended child"),
    ("isIsolated", "Flag", "", "Set if the source is not part of a blend"),
)  # fmt: skip
"""Flags by which the pipeline chooses records; their prefix is ``detect``."""

DEBLEND_FIELDS = _RELATIONS + _BAND
"""Fields of the deblender; their prefix is ``deblend``."""


class ParentFluxes(NamedTuple):
    """Fluxes of M parents in one band, isolated sources included."""

    flux: npt.NDArray[np.float64]
    """Sum of the image, (M,)."""
    outside: npt.NDArray[np.float64]
    """Fraction of it outside all masks, (M,)."""
    data_coverage: npt.NDArray[np.float64]
    """Fraction of pixels without NO_DATA, (M,)."""


def add_fields(schema: afwTable.Schema, prefix: str, fields: Iterable[tuple[str, Any, str, str]]) -> None:
    """Add fields to a schema, with a prefix before their names; those that are there already stay."""
    for name, kind, units, doc in fields:
        if f"{prefix}_{name}" not in schema:
            schema.addField(f"{prefix}_{name}", type=kind, doc=doc, units=units)


def fill_primary_flags(catalog: afwTable.SourceCatalog) -> None:
    """Set the flags of `PRIMARY_FIELDS` of a contiguous catalogue with ``deblend_nChild``.

    By the rules of ``lsst.meas.algorithms.SetPrimaryFlagsTask`` for catalogues without
    ``deblend_scarletFlux``; like that for single images, it does not ask whether a source lies in the inner
    region of a patch.
    """
    if not len(catalog):
        return
    leaf = np.asarray(catalog["deblend_nChild"]) == 0
    child = np.asarray(catalog["parent"]) != 0
    catalog["detect_isPrimary"] = leaf
    catalog["detect_isDeblendedSource"] = leaf
    catalog["detect_fromBlend"] = child
    catalog["detect_isIsolated"] = leaf & ~child


def fill_relations(catalog: afwTable.SourceCatalog, order: RecordOrder) -> None:
    """Set the relations of parents and children in a contiguous catalogue.

    A ValueError is raised if ids do not ascend, so that the catalogue would not be sorted by parent, or their
    number is not that of the rows.
    """
    if not len(catalog):
        return
    ids = np.asarray(catalog["id"])
    if len(ids) != len(order) or (np.diff(ids) <= 0).any() or ids[0] <= 0:
        raise ValueError(
            f"Children are found by the ids of their parents, which must be positive and ascend; the "
            f"{len(ids)} ids given for {len(order)} rows do not. Give a table with an id factory that counts."
        )
    child = order.is_child
    parent_id = np.where(child, ids[np.maximum(order.parent_row, 0)], 0)
    n_child = np.where(child, order.n_member, 0)
    catalog["parent"] = parent_id
    catalog["deblend_blendId"] = parent_id
    for name, values in (
        ("peakId", order.peak_id),
        ("nChild", order.n_child),
        ("nPeaks", np.where(child, 1, order.n_member)),
        ("parentNPeaks", n_child),
        ("parentNChild", n_child),
        ("blendNChild", n_child),
    ):
        catalog[f"deblend_{name}"] = values.astype(np.int32)


def band_columns(rows: Sequence[Sequence[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Make columns (N,) of the values of N sources, ordered as `_BAND`, by names without ``deblend_``."""
    return {
        name: np.array([row[number] for row in rows], dtype=bool if kind == "Flag" else kind)
        for number, (name, kind, _, _) in enumerate(_BAND)
    }


def fill_band_columns(
    catalog: afwTable.SourceCatalog,
    order: RecordOrder,
    columns: Mapping[str, npt.NDArray[Any]],
    parent_coverage: npt.NDArray[np.float64],
    given: afwTable.SourceCatalog | None = None,
) -> None:
    """Set the fields of one band in a contiguous catalogue.

    Parents have ``dataCoverage`` alone, (M,). ``given``, with the same rows, has the fields that are the
    same in all bands.
    """
    if not len(catalog):
        return
    if given is not None:
        for name, *_ in _RELATIONS:
            catalog[f"deblend_{name}"] = given[f"deblend_{name}"]
    for name, kind, _, _ in _BAND:
        values = order.spread(columns[name], False if kind == "Flag" else np.nan)
        if name == "dataCoverage":
            values[order.is_parent] = parent_coverage[order.parent[order.is_parent]]
        catalog[f"deblend_{name}"] = values


def fill_parent_columns(
    catalog: afwTable.SourceCatalog,
    order: RecordOrder,
    statistics: ParentStatistics,
    on_edge: npt.NDArray[np.bool_],
) -> None:
    """Set what was found when flux was shared, in a contiguous catalogue.

    ``on_edge``, bool, (N,), tells whether the mask of a source reaches the edge of its parent.
    """
    if not len(catalog):
        return
    own = order.parent
    for name, values in (
        ("fallback", statistics.fallback),
        ("fallback_tooManyPeaks", statistics.too_many),
        ("fallback_parentTooBig", statistics.too_big),
        ("failed", statistics.failed),
    ):
        catalog[f"deblend_{name}"] = values[own]
    catalog["deblend_runtime"] = np.where(order.is_parent, statistics.runtime[own], 0).astype(np.float32)
    catalog["deblend_edgePixels"] = order.spread(on_edge, False)
