# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Schema of the catalogue of deblended sources, and its columns filled whole arrays at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

import lsst.afw.table as afwTable
from lsst.afw.detection import Footprint
from lsst.afw.geom import SkyWcs

from .deblend_columns import DEBLEND_FIELDS, Fields, add_fields
from .profile_columns import BAND_FIELDS, PREFIX, SHAPE_FIELDS

UNMEASURED = "maskrcnn_flag_unmeasured"
"""Flag of records on which measurement was not run (`str`)."""

_COLUMNS: Fields = (
    ("centroid_x", np.float64, "pixel", "Centroid of the positive part of the mean normalised image "
     "within the footprint, column"),
    ("centroid_y", np.float64, "pixel", "Centroid of the positive part of the mean normalised image "
     "within the footprint, row"),
    ("centroid_flag", "Flag", "", "Set if there is no positive valid pixel in the footprint: the "
     "centroid is the centre of the box"),
    ("bbox_minX", np.int32, "pixel", "Box found by the network, widened to hold the footprint: first "
     "column (inclusive)"),
    ("bbox_minY", np.int32, "pixel", "Box found by the network, widened to hold the footprint: first "
     "row (inclusive)"),
    ("bbox_maxX", np.int32, "pixel", "Box found by the network, widened to hold the footprint: last "
     "column (inclusive)"),
    ("bbox_maxY", np.int32, "pixel", "Box found by the network, widened to hold the footprint: last "
     "row (inclusive)"),
    ("score", np.float32, "", "Calibrated probability that this is a source and not background, from "
     "0 to 1; of a parent, the largest of its sources"),
    ("pStar", np.float32, "", "Calibrated probability that the source is a star, given that it is a "
     "star or a galaxy, from 0 to 1; NaN for parents"),
    ("pBlend", np.float32, "", "Probability that this is more than one source within one FWHM, from 0 to "
     "1; NaN for parents and for models that do not give it"),
    ("star", "Flag", "", "Set if the source is classified as a star; never for parents"),
    ("galaxy", "Flag", "", "Set if the source is classified as a galaxy; never for parents"),
    ("area", np.int32, "pixel", "Number of pixels in the footprint"),
    ("badFraction", np.float32, "", "Fraction of the pixels of the footprint with a bad mask plane "
     "set in any band"),
    ("flag_edge", "Flag", "", "Set if the bounding box touches the edge of the image: the source may "
     "be cut off"),
    ("flag_bad", "Flag", "", "Set if any pixel of the footprint has a bad mask plane set in any "
     "band"),
    ("flag_saturated", "Flag", "", "Set if any pixel of the footprint is saturated in any band"),
    ("flag_invalid", "Flag", "", "Set if the network was given 0 in some pixel of the footprint: "
     "masked out or not finite"),
    ("flag_limited", "Flag", "", "Set if the network found as many sources around this one as it can: "
     "others may be missing there"),
    ("binning", np.int32, "", "Pixels along each side that were summed in the image in which the "
     "source was detected; of a source joined from several detections, that of the one that was kept; 1 for "
     "parents"),
)  # fmt: skip

_UNMEASURED: Fields = (
    ("flag_unmeasured", "Flag", "", "Set if nothing was measured in this band, as its exposure has no PSF or "
     "measurement is off"),
)  # fmt: skip


def make_schema() -> afwTable.Schema:
    """Make the schema of the output catalogue, without measurements.

    It is the minimal one of sources with this package's fields and those of
    `~.deblend_columns.DEBLEND_FIELDS`; ``slot_Centroid`` points to ``maskrcnn_centroid`` and
    ``slot_ModelFlux`` to ``maskrcnn_profile``.
    """
    schema = afwTable.SourceTable.makeMinimalSchema()
    add_fields(schema, "maskrcnn", _COLUMNS)
    extend_band_schema(schema)
    add_fields(schema, PREFIX, SHAPE_FIELDS)
    schema.getAliasMap().set("slot_Centroid", "maskrcnn_centroid")
    return schema


def extend_band_schema(schema: afwTable.Schema) -> None:
    """Add what the catalogues of all bands have to a schema, that of forced measurement or a minimal one."""
    add_fields(schema, "maskrcnn", _UNMEASURED)
    add_fields(schema, "deblend", DEBLEND_FIELDS)
    add_fields(schema, PREFIX, BAND_FIELDS)
    schema.getAliasMap().set("slot_ModelFlux", PREFIX)


def fill_catalog(
    catalog: afwTable.SourceCatalog,
    columns: Mapping[str, np.ndarray],
    footprints: list[Footprint],
    wcs: SkyWcs,
) -> None:
    """Fill an empty catalogue with N sources, column by column; its table's id factory numbers the records.

    It has the schema of `make_schema`; more fields do no harm. ``columns`` are the values, (N,), of each
    ``maskrcnn`` field but ``flag_unmeasured``, by the name that follows the prefix; positions are those of
    the parent frame (xy0 included), boxes are inclusive. A ValueError is raised if the catalogue is not
    empty, a column is missing, or columns and footprints are not of one length.
    """
    n_sources = len(footprints)
    wanted = {name: kind for name, kind, _, _ in _COLUMNS}
    lengths = {name: np.shape(values) for name, values in columns.items()}
    if lengths != dict.fromkeys(wanted, (n_sources,)):
        raise ValueError(
            f"columns have shapes {lengths}; wanted one value for each of {n_sources} footprints in "
            f"{', '.join(wanted)}"
        )
    if len(catalog) != 0:
        raise ValueError(f"The catalogue to fill must be empty, but holds {len(catalog)} records.")
    if n_sources == 0:
        return
    # resize allocates one block for all records, so that columns are views,
    # and takes every id from the table's factory.
    catalog.resize(n_sources)
    for name, kind in wanted.items():
        catalog[f"maskrcnn_{name}"] = np.asarray(columns[name], dtype=bool if kind == "Flag" else kind)
    x, y = (np.ascontiguousarray(columns[f"centroid_{axis}"], dtype=np.float64) for axis in "xy")
    catalog["coord_ra"], catalog["coord_dec"] = wcs.pixelToSkyArray(x, y)
    for record, footprint in zip(catalog, footprints, strict=True):
        record.setFootprint(footprint)
