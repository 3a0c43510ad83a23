# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The object table: one row for each source.

Names follow the object tables of the LSST pipelines (``Object.yaml`` of pipe_tasks, DP2 of sdm_schemas).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np
import numpy.typing as npt
from astropy.table import QTable, Table

from ..images.units import AB_ZERO_POINT
from .image import MultibandImage, usual_reference
from .shares import measure_overlap

if TYPE_CHECKING:
    from .sources import SourceList

FloatArray = npt.NDArray[np.float64]
_Columns = Iterator[tuple[str, Any, str, u.UnitBase | None]]
"""Name, values, description and unit of each column."""

_MAG_PER_RATIO = 2.5 / np.log(10.0)
"""Magnitudes of a small relative change of the flux."""


_WHOLE_ONLY = frozenset(
    {"coord_raErr", "coord_decErr", "footprintArea", "refExtendedness", "flag_fallback", "flag_samePlace"}
)
"""Columns that tasks read, and few people."""


def make_object_table(sources: SourceList) -> QTable:
    """Make the whole object table, of which `~.sources.SourceList.to_table` gives the `short_columns`."""
    table = QTable()
    with np.errstate(invalid="ignore", divide="ignore"):
        for columns in (_positions(sources), _classes(sources), _flags(sources), _fluxes(sources)):
            for name, values, doc, unit in columns:
                table[name] = np.asarray(values) if unit is None else np.asarray(values) * unit
                table[name].info.description = doc
    return table


def short_columns(table: Table, bands: Sequence[str]) -> list[str]:
    """Choose the columns that are for people.

    Blendedness is that of one band. The flux of the deblended pixels is only of bands whose PSF is not known,
    where there is no other.

    Parameters
    ----------
    table : `astropy.table.Table`
        The whole object table.
    bands : `~collections.abc.Sequence` [`str`]
        Its bands.

    Returns
    -------
    names : `list` [`str`]
        The columns, in the order of the table.
    """
    unwanted = set(_WHOLE_ONLY)
    for number, band in enumerate(bands):
        if number != usual_reference(bands):
            unwanted.add(f"{band}_deblend_blendedness")
        if not len(table) or np.isfinite(np.asarray(table[f"{band}_sersicFlux"])).any():
            unwanted |= {f"{band}_deblendedFlux", f"{band}_deblendedFluxErr"}
    return [name for name in table.colnames if name not in unwanted]


def _positions(sources: SourceList) -> _Columns:
    """Ids, positions and shapes, which share the orientation of the pixels on the sky."""
    count = len(sources)
    x, y = sources.peaks[:, ::-1].T.copy()
    values, covariance = np.full((count, 6), np.nan), np.full((count, 6, 6), np.nan)
    if sources.models is not None:
        values, covariance = sources.models.shapes()
        # A fit that has stopped on its way tells less of the position than the peak.
        fitted = sources.models.converged & np.isfinite(values[:, :2]).all(axis=1)
        x[fitted], y[fitted] = values[fitted, :2].T
        covariance[~fitted] = np.nan
    jacobian = _sky_jacobian(sources.image, x, y)
    on_sky = jacobian @ covariance[:, :2, :2] @ jacobian.transpose(0, 2, 1) / 3600.0**2
    ra, dec = sources.image.to_sky(x, y)
    parent = np.where(sources.is_isolated, 0, count + 1 + sources.parent)
    yield "objectId", np.arange(1, count + 1), "Id of the source, unique with those of parents", None
    yield "parentObjectId", parent, "Id of the parent, one for sources that share flux; 0: isolated", None
    yield "coord_ra", ra, "Right ascension (ICRS) of the model, or of the peak where no fit converged", u.deg
    yield "coord_dec", dec, "Declination (ICRS) of the same", u.deg
    yield "coord_raErr", np.sqrt(on_sky[:, 0, 0]), "Error of coord_ra times cos(coord_dec)", u.deg
    yield "coord_decErr", np.sqrt(on_sky[:, 1, 1]), "Error of coord_dec", u.deg
    yield "x", x, "Column of the same position", u.pixel
    yield "y", y, "Row of the same position", u.pixel
    yield from _shapes(values, covariance, jacobian)


def _sky_jacobian(image: MultibandImage, x: FloatArray, y: FloatArray) -> FloatArray:
    """Change of (east, north) with (x, y), arcsec/px, (N, 2, 2); without a WCS that of square pixels."""
    jacobian = np.empty((len(x), 2, 2))
    across = 3600.0 * np.cos(np.radians(image.to_sky(x, y)[1]))
    for axis, (dx, dy) in enumerate(((0.5, 0.0), (0.0, 0.5))):
        (ra1, dec1), (ra0, dec0) = image.to_sky(x + dx, y + dy), image.to_sky(x - dx, y - dy)
        jacobian[:, 0, axis] = across * ((ra1 - ra0 + 180.0) % 360.0 - 180.0)
        jacobian[:, 1, axis] = 3600.0 * (dec1 - dec0)
    jacobian[~np.isfinite(jacobian).all(axis=(1, 2))] = image.pixel_scale * np.eye(2)
    return jacobian


def _shapes(values: FloatArray, covariance: FloatArray, jacobian: FloatArray) -> _Columns:
    """Half-light ellipses on the sky from `~lsst.meas.maskrcnn.profiles.model.ProfileFit.shapes`."""
    _, _, radius, e1, e2, index = values.T
    length = np.hypot(e1, e2)
    ratio = (1.0 + length) / (1.0 - length)
    # Second moments in pixels, then on the sky.
    size, flat = 0.5 * radius**2 * (ratio + 1.0 / ratio), 0.5 * radius**2 * (ratio - 1.0 / ratio)
    along, across = (flat * part / np.maximum(length, 1e-9) for part in (e1, e2))
    moments = np.stack([size + along, across, across, size - along], axis=-1).reshape(-1, 2, 2)
    moments = jacobian @ moments @ jacobian.transpose(0, 2, 1)
    uu, vv, uv = moments[:, 0, 0], moments[:, 1, 1], moments[:, 0, 1]
    mean, half = 0.5 * (uu + vv), np.hypot(0.5 * (uu - vv), uv)
    theta = np.degrees(0.5 * np.arctan2(2.0 * uv, uu - vv))
    # ln a = ln r50 + artanh |e|, and ln b has the other sign.
    slope = 1.0 / (1.0 - length**2) / np.maximum(length, 1e-9)
    for name, words, sign in (("major", "major", 1.0), ("minor", "minor", -1.0)):
        axis = np.sqrt(np.maximum(mean + sign * half, 0.0))
        gradient = np.stack([1.0 / radius, sign * slope * e1, sign * slope * e2], axis=-1)
        error = axis * np.sqrt(np.einsum("ni,nij,nj->n", gradient, covariance[:, 2:5, 2:5], gradient))
        key = f"sersic_reff_{name}"
        yield key, axis, f"Half-light radius before the PSF along the {words} axis; 0 for stars", u.arcsec
        yield f"{key}Err", error, f"Error of {key}", u.arcsec
    where = "Position angle of the major axis, from east to north (without a WCS, from x to y); NaN if round"
    yield "sersic_theta", np.where(half > 0, theta, np.nan), where, u.deg
    yield "sersic_index", index, "Sersic index, from 0.6 to 6; NaN for stars", None
    yield "sersic_indexErr", np.sqrt(covariance[:, 5, 5]), "Error of sersic_index", None


def _classes(sources: SourceList) -> _Columns:
    models, found = sources.models, sources.detections
    nan = np.full(len(sources), np.nan)
    chi2 = nan if models is None else models.chi2 / models.dof
    yield "sersic_chi2_reduced", chi2, "Chi squared of the model over its degrees of freedom", None
    yield "footprintArea", sources.measured.area, "Pixels of the mask", u.pixel
    yield "class", np.where(sources.is_star, "star", "galaxy"), "The likelier class", None
    yield "pStar", found.p_star, "Probability that the source is a star", None
    yield "refExtendedness", 1.0 - found.p_star, "1 - pStar, for code that selects by it at 0.5", None
    yield "score", found.scores, "Probability that this is a source and not background", None
    yield "pBlend", found.p_blend, "Probability that it is more than one; NaN if the model does not say", None


def _flags(sources: SourceList) -> _Columns:
    measured, (height, width), models = sources.measured, sources.image.shape, sources.models
    edge = (measured.box_min_x == 0) | (measured.box_min_y == 0)
    edge |= (measured.box_max_x == width - 1) | (measured.box_max_y == height - 1)
    saturated, invalid = measured.n_saturated > 0, measured.n_invalid > 0
    no = np.zeros(len(sources), bool)
    unfitted = sources.is_model_flagged[:, sources.has_model_flux].any(axis=1)
    fallback = sources.statistics.fallback[sources.parent]
    for name, values, doc in (
        ("detect_isPrimary", ~no, "Set, as there are no parents here; inner regions are not considered"),
        ("detect_isIsolated", sources.is_isolated, "It shares its flux with no other source"),
        ("flag", edge | saturated | invalid | unfitted, "A reason not to trust fluxes or shape"),
        ("flag_edge", edge, "The mask touches the edge of the image"),
        ("flag_bad", measured.n_bad > 0, "A pixel of the mask is bad in some band; not part of flag"),
        ("flag_saturated", saturated, "A pixel of the mask is saturated in some band"),
        ("flag_invalid", invalid, "A pixel of the mask holds no data in some band"),
        ("flag_fallback", fallback, "Pixels of the parent were shared by masks alone; not part of flag"),
        ("flag_limited", sources.detections.flag_limited, "Crowded: other sources may be missing"),
        ("flag_notConverged", no if models is None else ~models.converged, "The fit did not converge"),
        ("flag_samePlace", no if models is None else models.shared, "It shares its model with another one"),
    ):
        yield name, values, doc, None


def flux_unit(image: MultibandImage, number: int) -> u.UnitBase:
    """Return the unit of fluxes in a band, counts where its zero point is not known."""
    return u.nJy if np.asarray(image.calibrated)[number] else u.count


def _fluxes(sources: SourceList) -> _Columns:
    models, blendedness = sources.models, _blendedness(sources)
    for number, band in enumerate(sources.image.bands):
        unit, mag_unit, zero_point = flux_unit(sources.image, number), u.ABmag, AB_ZERO_POINT
        kind, note = "AB magnitude", ""
        if unit == u.count:
            mag_unit, zero_point, kind = u.mag(u.count), 0.0, "Instrumental magnitude, -2.5 log10"
            note = " (counts of the image, whose zero point is not known)"
        flux, error = np.full((2, len(sources)), np.nan)
        if models is not None:
            flux, error = models.flux[:, number], models.flux_errors[:, number]
        positive = np.where(flux > 0, flux, np.nan)
        mag, key = zero_point - 2.5 * np.log10(positive), f"{band}_sersicFlux"
        doc = f"Total flux in {band}{note}: of the PSF for stars, a Sersic profile for galaxies"
        yield key, flux, doc, unit
        yield f"{key}Err", error, f"Error of {key}, all other sources of the parent marginalised over", unit
        yield f"{key}_flag", sources.is_model_flagged[:, number], f"A reason not to trust {key}", None
        yield f"{band}_sersicMag", mag, f"{kind} of {key}; NaN where that is not above 0", mag_unit
        yield f"{band}_sersicMagErr", _MAG_PER_RATIO * error / positive, f"Error of {band}_sersicMag", u.mag
        share, key = sources.fluxes[:, number], f"{band}_deblendedFlux"
        doc = f"Flux of the deblended pixels (HeavyFootprint) in {band}{note}, no wings"
        yield key, share, doc, unit
        yield f"{key}Err", sources.flux_errors[:, number], f"Error of {key}", unit
        doc = f"1 - sum(m^2) / sum(B m) over the mask, m its share of the image B in {band}"
        yield f"{band}_deblend_blendedness", blendedness[:, number], doc, None


def _blendedness(sources: SourceList) -> FloatArray:
    """Part of each source in others' flux (Bosch et al. 2018), (N, band)."""
    values = np.full((len(sources), len(sources.image.bands)), np.nan)
    found = sources.detections
    for row, mask, origin, share in zip(values, found.masks, found.origins, sources.shares, strict=True):
        pixels = tuple(np.nonzero(mask) + origin[:, None])
        whole = sources.image.flux[:, pixels[0], pixels[1]]
        weights = share.at(*pixels)
        row[:] = [measure_overlap(image, image * weight)[3] for image, weight in zip(whole, weights)]
    return values
