# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a list of sources to afw's catalogue of parents, isolated sources and children."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import lsst.geom as geom
from lsst.afw.detection import Footprint
from lsst.afw.geom import SkyWcs
from lsst.afw.table import SourceCatalog

from ..deblend.sources import SourceList
from .deblend_columns import fill_parent_columns, fill_relations
from .footprints import inclusive_boxes, masks_to_footprints
from .heavy import parent_footprint
from .profile_columns import fill_profile_shapes
from .record_order import RecordOrder
from .schema import fill_catalog


def fill_source_catalog(
    catalog: SourceCatalog, sources: SourceList, order: RecordOrder, wcs: SkyWcs, bbox: geom.Box2I
) -> None:
    """Write the records of sources and their relations to an empty catalogue.

    It has the schema of `~.schema.make_schema`; ``bbox`` is that of the exposures.
    """
    footprints = _footprints(sources, order, bbox)
    fill_catalog(catalog, _columns(sources, order, bbox), footprints, wcs)
    fill_relations(catalog, order)
    if len(catalog):
        peaks = [footprint.getPeaks()[0] for footprint in footprints]
        catalog["deblend_peak_center_x"] = np.array([peak.getIx() for peak in peaks], dtype=np.int32)
        catalog["deblend_peak_center_y"] = np.array([peak.getIy() for peak in peaks], dtype=np.int32)
    fill_parent_columns(catalog, order, sources.statistics, masks_on_edge(sources))
    fill_profile_shapes(catalog, sources, order, bbox)


def _columns(sources: SourceList, order: RecordOrder, bbox: geom.Box2I) -> dict[str, np.ndarray]:
    """Columns of the rows, in the parent frame, by the name that follows ``maskrcnn_``."""
    found, measured, whole = sources.detections, sources.measured, sources.measured_parents
    blends = [parent for parent in sources.parents if len(parent) > 1]
    height, width = sources.image.shape
    x0, y0 = bbox.getMinX(), bbox.getMinY()
    # Rows of parents take from what follows the N sources.
    row = np.where(order.source >= 0, order.source, 0)
    row[order.is_parent] = len(sources) + np.arange(len(blends))

    def both(of_sources: Any, of_parents: Any) -> np.ndarray:
        return np.concatenate([np.asarray(of_sources), np.broadcast_to(of_parents, len(blends))])[row]

    def merged(name: str) -> np.ndarray:
        return both(getattr(measured, name), getattr(whole, name))

    def of_members(values: np.ndarray, reduce: Callable[[np.ndarray], Any]) -> np.ndarray:
        return np.array([reduce(values[parent.members]) for parent in blends], dtype=values.dtype)

    # The pixels of a parent reach beyond those of its sources.
    box = {}
    for side, corner, reduce, further in zip(
        ("min_x", "min_y", "max_x", "max_y"),
        inclusive_boxes(found.boxes, measured, (height, width)),
        (np.min, np.min, np.max, np.max),
        (np.minimum, np.minimum, np.maximum, np.maximum),
        strict=True,
    ):
        box[side] = further(both(corner, of_members(corner, reduce)), merged(f"box_{side}"))
    area, n_bad = merged("area"), merged("n_bad")
    on_edge = (box["min_x"] == 0) | (box["min_y"] == 0)
    on_edge |= (box["max_x"] == width - 1) | (box["max_y"] == height - 1)
    return {
        "centroid_x": merged("centroid_x") + x0,
        "centroid_y": merged("centroid_y") + y0,
        "centroid_flag": merged("centroid_flag"),
        "bbox_minX": box["min_x"] + x0,
        "bbox_minY": box["min_y"] + y0,
        "bbox_maxX": box["max_x"] + x0,
        "bbox_maxY": box["max_y"] + y0,
        "score": both(found.scores, of_members(found.scores, np.max)),
        "pStar": both(found.p_star, np.nan),
        "pBlend": both(found.p_blend, np.nan),
        "area": area,
        "badFraction": n_bad / np.maximum(area, 1),
        "star": both(sources.is_star, False),
        "galaxy": both(~sources.is_star, False),
        "binning": both(found.binning, 1),
        "flag_edge": on_edge,
        "flag_bad": n_bad > 0,
        "flag_saturated": merged("n_saturated") > 0,
        "flag_invalid": merged("n_invalid") > 0,
        "flag_limited": both(found.flag_limited, of_members(found.flag_limited, np.any)),
    }


def _footprints(sources: SourceList, order: RecordOrder, bbox: geom.Box2I) -> list[Footprint]:
    """Footprint of each row: the mask of a source, or the pixels of a parent."""
    found, measured = sources.detections, sources.measured
    of_sources = masks_to_footprints(found.masks, found.origins, measured, bbox)
    rows = []
    for index, source in enumerate(order.source.tolist()):
        if source >= 0:
            footprint = of_sources[source]
            footprint.getPeaks()[0].setId(int(order.peak_id[index]))
        else:
            parent = sources.parents[order.parent[index]]
            numbers = {member: number for number, member in enumerate(parent.members.tolist(), 1)}
            footprint = parent_footprint(parent, measured, numbers, bbox)
        rows.append(footprint)
    return rows


def masks_on_edge(sources: SourceList) -> np.ndarray:
    """Find the masks that reach the edge of their parents, bool, (N,)."""
    on_edge = np.zeros(len(sources), dtype=bool)
    for parent in sources.parents:
        edge = parent.edge
        for index in parent.members.tolist():
            rows, columns = np.nonzero(sources.detections.masks[index])
            y0, x0 = sources.detections.origins[index] - (parent.y0, parent.x0)
            on_edge[index] = edge[rows + y0, columns + x0].any()
    return on_edge
