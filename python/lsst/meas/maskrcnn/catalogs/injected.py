# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Truth from the catalogues of source_injection."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from astropy.table import Table
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

import lsst.geom as geom
from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog

from ..images.units import AB_ZERO_POINT
from ..network.wavelengths import MASK_WAVELENGTH, band_wavelength
from ..scenes.config import MaskRule
from ..scenes.truth import empty_sources
from .exposures import check_exposures, flagged_pixels, to_multiband_image
from .truth import make_truth_catalog

if TYPE_CHECKING:
    from ..scenes.injected import Component

_LOG = logging.getLogger(__name__)

_RADIUS = 0.1
"""Rows of all bands within it are one source (px), as in source_injection's own table of tracts."""

_STARS = ("DeltaFunction", "Star")
_UNKNOWN = ("Stamp", "Trail")
"""Types that the catalogue alone does not draw: it has no pixels of theirs."""


def injected_truth(tables: Mapping[str, Table], exposures: Mapping[str, ExposureF]) -> SourceCatalog:
    """Make a truth catalogue of what source_injection has put into the coadds of a patch.

    ``tables`` are by band the catalogues that its ``CoaddInjectTask`` has written: columns ``injection_id``,
    ``injection_flag``, ``ra``, ``dec`` (deg), ``mag`` (AB), ``source_type`` and what a profile of GalSim
    takes by name. Rows that were not injected are left out. ``exposures`` are the coadds with the sources. A
    ValueError is raised if no band has both, or a table lacks a column.

    Rows within 0.1 px of each other, of one band or several, are one source. Ids are those of the injection,
    where these are unique. The masks are those of simulated scenes: pixels above a share of the peak of the
    source, drawn alone with the PSF of the coadd, in the band nearest to 880 nm.
    """
    # Drawing needs GalSim, which an evaluation of other truths does not import.
    from ..scenes.injected import Component, draw_injected

    bands = tuple(band for band in exposures if band in tables)
    if not bands:
        raise ValueError(
            f"no band has both a coadd ({sorted(exposures)}) and a catalogue of injected sources "
            f"({sorted(tables)}); give those of the bands that sources were injected into"
        )
    exposures = {band: exposures[band] for band in bands}
    image, wcs = to_multiband_image(exposures), check_exposures(exposures)
    origin = next(iter(exposures.values())).getXY0()
    components, positions = [], []
    for index, band in enumerate(bands):
        table = _injected_rows(tables[band], band)
        flux = 10.0 ** (0.4 * (AB_ZERO_POINT - np.asarray(table["mag"], np.float64)))
        for row, value in zip(table, flux.tolist()):
            given = {name: row[name] for name in table.colnames if row[name] is not np.ma.masked}
            components.append(Component(index, given, value))
        ra, dec = (np.array(table[name], np.float64) for name in ("ra", "dec"))
        positions.append(np.stack(wcs.skyToPixelArray(ra, dec, degrees=True), axis=1))
    places = np.concatenate(positions) - (origin.getX(), origin.getY())
    rows = _groups(places)
    members = [[components[row] for row in one] for one in rows]

    def jacobian(y: float, x: float) -> np.ndarray:
        here = geom.Point2D(x + origin.getX(), y + origin.getY())
        return np.asarray(wcs.linearizePixelToSky(here, geom.arcseconds).getLinear().getMatrix())

    variance = np.full_like(image.flux, np.nan) if image.variance is None else image.variance
    usable = np.asarray(image.usable)
    scene = draw_injected(
        members,
        _source_table(members, places[[one[0] for one in rows]], bands),
        image.flux,
        np.any([flagged_pixels(exposure, ("BAD", "NO_DATA")) for exposure in exposures.values()], axis=0),
        np.sqrt([np.median(plane[good]) for plane, good in zip(variance, usable)]),
        MaskRule(band=min(bands, key=lambda band: abs(band_wavelength(band) - MASK_WAVELENGTH))),
        image.pixel_scale,
        image.psf_image,
        jacobian,
    )
    return make_truth_catalog(scene, wcs, origin)


def _source_table(
    members: Sequence[Sequence[Component]], places: np.ndarray, bands: Sequence[str]
) -> np.ndarray:
    """Fill what the catalogues say of each source, of which the rows are given."""
    sources = empty_sources(len(members), bands)
    for band in bands:
        sources[f"flux_{band}"] = 0.0
    sources["x"], sources["y"] = places.reshape(-1, 2).T
    for source, own in zip(sources, members):
        source["id"] = own[0].row["injection_id"]
        source["is_star"] = all(one.row["source_type"] in _STARS for one in own)
        for one in own:
            source[f"flux_{bands[one.band]}"] += one.flux
        if len({one.row["source_type"] for one in own}) == 1:
            source["half_light_radius"] = own[0].row.get("half_light_radius", np.nan)
            source["sersic_index"] = own[0].row.get("n", np.nan)
            source["axis_ratio"] = own[0].row.get("q", np.nan)
    if len(np.unique(sources["id"])) < len(sources):
        sources["id"] = np.arange(1, len(sources) + 1)
    return sources


def _injected_rows(table: Table, band: str) -> Table:
    """Take the rows of a catalogue that are in the image."""
    wanted = ("injection_id", "injection_flag", "ra", "dec", "mag", "source_type")
    missing = [name for name in wanted if name not in table.colnames]
    if missing:
        raise ValueError(
            f"the catalogue of injected sources in {band} lacks the columns {missing}; that of "
            f"source_injection's CoaddInjectTask is wanted, and this one has {table.colnames[:8]} and so on"
        )
    done = np.asarray(table["injection_flag"]) == 0
    unknown = done & np.isin(np.asarray(table["source_type"]).astype(str), _UNKNOWN)
    if unknown.any():
        _LOG.warning(
            "%d injected sources in %s are of the types %s, which the catalogue alone does not draw; they "
            "are left out.",
            np.count_nonzero(unknown),
            band,
            " and ".join(_UNKNOWN),
        )
    return table[done & ~unknown]


def _groups(places: np.ndarray) -> list[np.ndarray]:
    """Group the rows that are in one place; returns the numbers of the rows of each, in order."""
    if not len(places):
        return []
    pairs = cKDTree(places).query_pairs(_RADIUS, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(len(places), len(places)))
    labels = connected_components(graph, directed=False)[1]
    return [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
