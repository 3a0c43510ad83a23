# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Schema of the catalogue of deblended sources, and its columns filled whole arrays at a time."""

from __future__ import annotations

__all__ = [
    "UNMEASURED",
    "CatalogColumns",
    "extend_band_schema",
    "fill_catalog",
    "make_band_schema",
    "make_schema",
]

import dataclasses

import numpy as np

import lsst.afw.table as afwTable
from lsst.afw.detection import Footprint
from lsst.afw.geom import SkyWcs

from .deblend_columns import add_deblend_fields

PREFIX = "maskrcnn"
"""First part of the name of every field that this package adds (`str`)."""

_FLOATS = ("score", "pStar", "badFraction")
_INTS = ("bbox_minX", "bbox_minY", "bbox_maxX", "bbox_maxY", "area", "binning")
_FLAGS = ("star", "galaxy", "flag_edge", "flag_bad", "flag_saturated", "flag_invalid", "flag_limited")

UNMEASURED = f"{PREFIX}_flag_unmeasured"
"""Flag of records on which measurement was not run (`str`)."""


@dataclasses.dataclass(frozen=True, eq=False)
class CatalogColumns:
    """Properties of N records, one array per column of the schema.

    Pixel positions are in the parent frame of the exposure (xy0 included),
    boxes inclusive on both sides, as afw has them.

    Parameters
    ----------
    centroid_x, centroid_y : `numpy.ndarray`, (N,), float64
        Centroid, in pixels.
    centroid_flag : `numpy.ndarray`, (N,), bool
        The centroid is the centre of the box for want of positive flux.
    bbox_minX, bbox_minY, bbox_maxX, bbox_maxY : `numpy.ndarray`, (N,), int
        Bounding box, inclusive, in pixels.
    score, pStar : `numpy.ndarray`, (N,), float32
        Probabilities of being a source, and a star if so, each in [0, 1].
    area : `numpy.ndarray`, (N,), int
        Pixels in the footprint.
    badFraction : `numpy.ndarray`, (N,), float32
        Fraction of the footprint on bad mask planes, in [0, 1].
    star, galaxy : `numpy.ndarray`, (N,), bool
        The class; exactly one is set for every source, none for parents.
    binning : `numpy.ndarray`, (N,), int
        Binning of the image in which the source was found.
    flag_edge, flag_bad, flag_saturated, flag_invalid, flag_limited : \
            `numpy.ndarray`
        Boolean flags, (N,); see the doc strings of the schema.

    Raises
    ------
    ValueError
        Raised if an array is not one-dimensional or their lengths differ.
    """

    centroid_x: np.ndarray
    centroid_y: np.ndarray
    centroid_flag: np.ndarray
    bbox_minX: np.ndarray
    bbox_minY: np.ndarray
    bbox_maxX: np.ndarray
    bbox_maxY: np.ndarray
    score: np.ndarray
    pStar: np.ndarray
    area: np.ndarray
    badFraction: np.ndarray
    star: np.ndarray
    galaxy: np.ndarray
    binning: np.ndarray
    flag_edge: np.ndarray
    flag_bad: np.ndarray
    flag_saturated: np.ndarray
    flag_invalid: np.ndarray
    flag_limited: np.ndarray

    def __post_init__(self) -> None:
        shapes = {field.name: np.shape(getattr(self, field.name)) for field in dataclasses.fields(self)}
        expected = shapes["score"]
        if len(expected) != 1 or any(shape != expected for shape in shapes.values()):
            raise ValueError(f"Columns must be one-dimensional and of one length, got shapes {shapes}.")

    def __len__(self) -> int:
        return len(self.score)


def make_schema() -> afwTable.Schema:
    """Make the schema of the output catalogue, without measurements.

    Returns
    -------
    schema : `lsst.afw.table.Schema`
        The minimal schema of a `lsst.afw.table.SourceTable`, this package's
        fields and those of `~.deblend_columns.add_deblend_fields`, with
        ``slot_Centroid`` pointing to ``maskrcnn_centroid``.
    """
    schema = afwTable.SourceTable.makeMinimalSchema()
    schema.addField(
        f"{PREFIX}_centroid_x",
        type=np.float64,
        doc="Centroid of the positive part of the mean normalised image within the footprint, column",
        units="pixel",
    )
    schema.addField(
        f"{PREFIX}_centroid_y",
        type=np.float64,
        doc="Centroid of the positive part of the mean normalised image within the footprint, row",
        units="pixel",
    )
    schema.addField(
        f"{PREFIX}_centroid_flag",
        type="Flag",
        doc="Set if there is no positive valid pixel in the footprint: the centroid is the centre of the box",
    )
    for corner, axis, word in (
        ("minX", "column", "first"),
        ("minY", "row", "first"),
        ("maxX", "column", "last"),
        ("maxY", "row", "last"),
    ):
        schema.addField(
            f"{PREFIX}_bbox_{corner}",
            type=np.int32,
            doc=f"Box found by the network, widened to hold the footprint: {word} {axis} (inclusive)",
            units="pixel",
        )
    schema.addField(
        f"{PREFIX}_score",
        type=np.float32,
        doc="Probability that this is a source and not background, from 0 to 1; of a parent, the largest of "
        "its sources",
    )
    schema.addField(
        f"{PREFIX}_pStar",
        type=np.float32,
        doc="Probability that the source is a star, given that it is a star or a galaxy, from 0 to 1; "
        "NaN for parents",
    )
    schema.addField(f"{PREFIX}_star", type="Flag", doc="Set if the source is classified as a star")
    schema.addField(f"{PREFIX}_galaxy", type="Flag", doc="Set if the source is classified as a galaxy")
    schema.addField(f"{PREFIX}_area", type=np.int32, doc="Number of pixels in the footprint", units="pixel")
    schema.addField(
        f"{PREFIX}_badFraction",
        type=np.float32,
        doc="Fraction of the pixels of the footprint with a bad mask plane set in any band",
    )
    schema.addField(
        f"{PREFIX}_flag_edge",
        type="Flag",
        doc="Set if the bounding box touches the edge of the image: the source may be cut off",
    )
    schema.addField(
        f"{PREFIX}_flag_bad",
        type="Flag",
        doc="Set if any pixel of the footprint has a bad mask plane set in any band",
    )
    schema.addField(
        f"{PREFIX}_flag_saturated",
        type="Flag",
        doc="Set if any pixel of the footprint is saturated in any band",
    )
    schema.addField(
        f"{PREFIX}_flag_invalid",
        type="Flag",
        doc="Set if the network did not see some pixel of the footprint: masked out or not finite",
    )
    schema.addField(
        f"{PREFIX}_flag_limited",
        type="Flag",
        doc="Set if so many sources were found around this one that the network looked at smaller parts of "
        "the image",
    )
    schema.addField(
        f"{PREFIX}_binning",
        type=np.int32,
        doc="Pixels along each side that were averaged in the image in which the source was found",
    )
    _add_unmeasured(schema)
    add_deblend_fields(schema)
    schema.getAliasMap().set("slot_Centroid", f"{PREFIX}_centroid")
    return schema


def make_band_schema() -> afwTable.Schema:
    """Make the schema of the catalogues of single bands, without measurements.

    Returns
    -------
    schema : `lsst.afw.table.Schema`
        The minimal schema of a `lsst.afw.table.SourceTable` and the fields
        of `extend_band_schema`.
    """
    schema = afwTable.SourceTable.makeMinimalSchema()
    extend_band_schema(schema)
    return schema


def extend_band_schema(schema: afwTable.Schema) -> None:
    """Add the fields of the deblender.

    Parameters
    ----------
    schema : `lsst.afw.table.Schema`
        Schema of forced measurement, for instance; changed in place.
    """
    _add_unmeasured(schema)
    add_deblend_fields(schema)


def _add_unmeasured(schema: afwTable.Schema) -> None:
    schema.addField(
        UNMEASURED,
        type="Flag",
        doc="Set if nothing was measured in this band, as its exposure has no PSF or measurement is off",
    )


def fill_catalog(
    catalog: afwTable.SourceCatalog,
    columns: CatalogColumns,
    footprints: list[Footprint],
    wcs: SkyWcs,
) -> None:
    """Fill an empty catalogue with sources, column by column.

    Parameters
    ----------
    catalog : `lsst.afw.table.SourceCatalog`
        Empty catalogue with the schema of `make_schema` (more fields do no
        harm); its table's id factory numbers the records. Changed in place.
    columns : `CatalogColumns`
        Columns of N sources.
    footprints : `list` [`lsst.afw.detection.Footprint`]
        The N footprints.
    wcs : `lsst.afw.geom.SkyWcs`
        Takes centroids to ``coord_ra`` and ``coord_dec``.

    Raises
    ------
    ValueError
        Raised if the catalogue is not empty or the numbers of sources and
        footprints differ.
    """
    n_sources = len(columns)
    if len(catalog) != 0:
        raise ValueError(f"The catalogue to fill must be empty, but holds {len(catalog)} records.")
    if len(footprints) != n_sources:
        raise ValueError(f"Got {len(footprints)} footprints for {n_sources} sources.")
    if n_sources == 0:
        return
    # resize allocates one block for all records, so that columns are views,
    # and takes every id from the table's factory.
    catalog.resize(n_sources)
    x = np.ascontiguousarray(columns.centroid_x, dtype=np.float64)
    y = np.ascontiguousarray(columns.centroid_y, dtype=np.float64)
    catalog["coord_ra"], catalog["coord_dec"] = wcs.pixelToSkyArray(x, y)
    catalog[f"{PREFIX}_centroid_x"] = x
    catalog[f"{PREFIX}_centroid_y"] = y
    catalog[f"{PREFIX}_centroid_flag"] = columns.centroid_flag
    for name in _FLOATS:
        catalog[f"{PREFIX}_{name}"] = np.asarray(getattr(columns, name), dtype=np.float32)
    for name in _INTS:
        catalog[f"{PREFIX}_{name}"] = np.asarray(getattr(columns, name), dtype=np.int32)
    for name in _FLAGS:
        catalog[f"{PREFIX}_{name}"] = np.asarray(getattr(columns, name), dtype=bool)
    for record, footprint in zip(catalog, footprints, strict=True):
        record.setFootprint(footprint)
