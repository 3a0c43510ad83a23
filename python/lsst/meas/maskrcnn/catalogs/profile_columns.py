# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Columns of the fitted models.

Names follow those of CModel and of meas_extensions_multiprofit: total flux by
band, and in the reference catalogue centre and shape, the same in all bands.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

import lsst.geom as geom
from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog

from ..deblend.sources import SourceList
from ..profiles.model import SHAPE_NAMES
from .deblend_columns import Fields
from .record_order import RecordOrder

PREFIX = "maskrcnn_profile"

BAND_FIELDS: Fields = (
    ("instFlux", np.float64, "count", "Total flux of the model that is fitted in all bands together: the "
     "PSF for stars, a Sersic profile for galaxies"),
    ("instFluxErr", np.float64, "count", "Standard deviation of maskrcnn_profile_instFlux, the shape and "
     "all other sources of the parent marginalised over"),
    ("flag", "Flag", "", "Set if there is no model, or a reason not to trust it: one of the other flags"),
    ("flag_parent", "Flag", "", "Set for parents, which have no model"),
    ("flag_noPsf", "Flag", "", "Set if there is no PSF in this band"),
    ("flag_noPixels", "Flag", "", "Set if no pixel of this band tells the flux: all are masked, NaN or "
     "have no variance"),
    ("flag_core", "Flag", "", "Set if one of the 3 x 3 pixels at the peak was not fitted in this band, as it "
     "is saturated, masked, NaN, has no variance or is outside the image"),
    ("flag_edge", "Flag", "", "Set if the peak is nearer to the edge of the image than a FWHM of the PSF"),
    ("flag_samePlace", "Flag", "", "Set if it shares its model with another source at the same place"),
    ("flag_notConverged", "Flag", "", "Set if the fit stopped before it converged"),
    ("flag_misfit", "Flag", "", "Set if what is left over around it is too large for its flux: in the window "
     "chi squared for each degree of freedom is above 2 and above 2 times the median of all sources, and the "
     "S/N below 20 times that"),
)  # fmt: skip
"""Fields of every band."""

_SHAPE_DOCS = (
    ("pixel", "Centre of the model, column"),
    ("pixel", "Centre of the model, row"),
    ("pixel", "Half-light radius of the model before the PSF, geometric mean of the axes; 0 for stars"),
    ("", "Ellipticity (a - b) / (a + b) times the cosine of twice the position angle; 0 for stars"),
    ("", "Ellipticity (a - b) / (a + b) times the sine of twice the position angle; 0 for stars"),
    ("", "Sersic index, from 0.6 to 6; NaN for stars"),
)
_STATISTICS: Fields = (
    ("isStar", "Flag", "", "Set if the model is the PSF"),
    ("chi2", np.float64, "", "Chi squared in the window of the model, all bands"),
    ("dof", np.int32, "", "Number of pixels there, all bands, less that of the parameters"),
    ("nIter", np.int32, "", "Steps of the fit"),
    ("deltaChi2", np.float64, "", "Chi squared as a star less that as a galaxy; NaN where only one was "
     "fitted, as pStar is below 0.1 or above 0.9"),
)  # fmt: skip

SHAPE_FIELDS: Fields = (
    *((name, np.float64, unit, doc) for name, (unit, doc) in zip(SHAPE_NAMES, _SHAPE_DOCS, strict=True)),
    *(
        (f"{name}Err", np.float32, unit, f"Standard deviation of maskrcnn_profile_{name}")
        for name, (unit, _) in zip(SHAPE_NAMES, _SHAPE_DOCS, strict=True)
    ),
    *(
        (
            f"{SHAPE_NAMES[i]}_{SHAPE_NAMES[j]}_Cov",
            np.float32,
            " ".join(_SHAPE_DOCS[k][0] for k in (i, j) if _SHAPE_DOCS[k][0]).replace("pixel pixel", "pixel2"),
            f"Covariance of maskrcnn_profile_{SHAPE_NAMES[i]} and maskrcnn_profile_{SHAPE_NAMES[j]}",
        )
        for i, j in combinations(range(len(SHAPE_NAMES)), 2)
    ),
    *_STATISTICS,
)
"""Fields of the reference catalogue alone."""


def fill_profile_shapes(
    catalog: SourceCatalog, sources: SourceList, order: RecordOrder, bbox: geom.Box2I
) -> None:
    """Write centres, with the xy0 of ``bbox``, and shapes to a contiguous catalogue with `SHAPE_FIELDS`."""
    models = sources.models
    if models is None or not len(catalog):
        return
    values, covariance = models.shapes()
    values[:, 0] += bbox.getMinX()
    values[:, 1] += bbox.getMinY()
    columns = dict(zip(SHAPE_NAMES, values.T, strict=True))
    for i, name in enumerate(SHAPE_NAMES):
        columns[f"{name}Err"] = np.sqrt(covariance[:, i, i])
    for i, j in combinations(range(len(SHAPE_NAMES)), 2):
        columns[f"{SHAPE_NAMES[i]}_{SHAPE_NAMES[j]}_Cov"] = covariance[:, i, j]
    columns |= {"chi2": models.chi2, "deltaChi2": models.delta_chi2}
    kinds = {name: kind for name, kind, _, _ in SHAPE_FIELDS}
    for name, column in columns.items():
        catalog[f"{PREFIX}_{name}"] = order.spread(column, np.nan).astype(kinds[name])
    catalog[f"{PREFIX}_isStar"] = order.spread(models.is_star, False)
    for name, counts in (("dof", models.dof), ("nIter", models.n_iter)):
        catalog[f"{PREFIX}_{name}"] = order.spread(counts.astype(np.int32), 0)


def nanojansky_per_count(sources: SourceList, exposure: ExposureF) -> npt.NDArray[np.float64]:
    """Calibration at the centre of each model, (source,); empty without models."""
    if sources.models is None:
        return np.zeros(0)
    corner, calibration = exposure.getXY0(), exposure.getPhotoCalib()
    y, x = sources.models.parameters[:, :2].T
    return np.asarray(calibration.getLocalCalibrationArray(x + corner.getX(), y + corner.getY()))


def fill_profile_fluxes(
    catalog: SourceCatalog, sources: SourceList, order: RecordOrder, exposure: ExposureF, band: int
) -> None:
    """Write the fluxes of band number ``band`` to a contiguous catalogue with `BAND_FIELDS`.

    The PhotoCalib of the band's exposure takes nJy to counts.
    """
    if not len(catalog):
        return
    models, n_sources = sources.models, len(sources)
    flux, error = np.full((2, n_sources), np.nan)
    core, edge, shared = np.zeros((3, n_sources), bool)
    converged, misfit = np.ones(n_sources, bool), np.zeros(n_sources, bool)
    if models is not None:
        scale = nanojansky_per_count(sources, exposure)
        flux, error = models.flux[:, band] / scale, models.flux_errors[:, band] / scale
        core, edge, shared, converged = models.core[:, band], models.edge, models.shared, models.converged
        misfit = models.misfit
    no_psf = models is None or not sources.has_model_flux[band]
    no_pixels = ~np.isfinite(flux) & (not no_psf)
    for name, values, of_parents in (
        ("instFlux", flux, np.nan),
        ("instFluxErr", error, np.nan),
        ("flag", sources.is_model_flagged[:, band], True),
        ("flag_parent", np.zeros(n_sources, bool), True),
        ("flag_noPsf", np.full(n_sources, no_psf), False),
        ("flag_noPixels", no_pixels, False),
        ("flag_core", core, False),
        ("flag_edge", edge, False),
        ("flag_samePlace", shared, False),
        ("flag_notConverged", ~converged, False),
        ("flag_misfit", misfit, False),
    ):
        catalog[f"{PREFIX}_{name}"] = order.spread(values, of_parents)
