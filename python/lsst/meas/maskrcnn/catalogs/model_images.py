# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pictures of models, as they were fitted and as a catalogue holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from lsst.afw.image import ExposureF, ImageF
from lsst.afw.table import SourceCatalog

from ..deblend.models import MARGIN, PSF_CELL
from ..deblend.sources import SourceList
from ..images.pixels import cut_square
from ..metrics.cutouts import BlendCutout, Stamp, add_models, blend_square, busiest_blends, child_label
from ..profiles.fit import WINDOW_HALVES
from ..profiles.psf import PsfMixture, PsfStack, draw_psf, fit_psf
from ..profiles.render import render_windows, window_pixels
from .exposures import psf_image
from .profile_columns import PREFIX, nanojansky_per_count

_REACH = 60.0
"""How far beyond a picture sources matter (px)."""
_RADII = 8.0
"""Half-light radii to which models are drawn at least."""


def model_image(sources: SourceList, exposure: ExposureF, band: int) -> ImageF:
    """Draw all models of a band, number ``band`` of the sources, in box and units of its exposure."""
    image = ImageF(exposure.getBBox())
    for index, scale in enumerate(nanojansky_per_count(sources, exposure).tolist()):
        sources.require_models().add_to(image.array[None], index, 1.0 / scale, [band])
    return image


def model_fluxes(
    catalogs: Mapping[str, SourceCatalog], exposures: Mapping[str, ExposureF], name: str = "instFlux"
) -> npt.NDArray[np.float64]:
    """Read the fluxes of the models, or with ``instFluxErr`` their errors, (record, band), nJy."""
    columns = [
        np.asarray(catalogs[band][f"{PREFIX}_{name}"]) * exposure.getPhotoCalib().getCalibrationMean()
        for band, exposure in exposures.items()
    ]
    return np.stack(columns, axis=1)


def draw_models(
    catalog: SourceCatalog,
    rows: Iterable[int],
    flux: npt.NDArray[np.float64],
    exposures: Mapping[str, ExposureF],
) -> dict[int, Stamp]:
    """Draw the fitted models of some records of the catalogue of the reference band.

    ``flux`` are those of all records, (record, band), of `model_fluxes`; the exposures have PSFs. Returns by
    row the first row and column in the parent frame, and pixels (band, y, x), nJy, NaN in a band without a
    flux; those without a model are left out. The sum, subtracted from the images, leaves the residuals.
    """
    names = ("x", "y", "r50", "e1", "e2", "index")
    columns = {name: np.asarray(catalog[f"{PREFIX}_{name}"]) for name in names}
    is_star = np.asarray(catalog[f"{PREFIX}_isStar"])
    fitted: dict[bytes, PsfMixture] = {}
    stamps = {}
    for row in rows:
        y, x = float(columns["y"][row]), float(columns["x"][row])
        if not (np.isfinite([x, y]).all() and np.isfinite(flux[row]).any()):
            continue
        psfs = [_mixture(exposure, y, x, fitted) for exposure in exposures.values()]
        box = catalog[int(row)].getFootprint().getBBox()
        reach = max(x - box.getMinX(), box.getMaxX() - x, y - box.getMinY(), box.getMaxY() - y) + MARGIN
        reach = max(reach, _RADII * columns["r50"][row])
        half = min((half for half in WINDOW_HALVES if half >= reach), default=WINDOW_HALVES[-1])
        y0, x0 = round(y) - half, round(x) - half
        if is_star[row]:
            axis = np.arange(2.0 * half + 1.0)
            pixels = np.stack([draw_psf(psf.spline, axis + y0 - y, axis + x0 - x) for psf in psfs])
        else:
            pixels = _draw_galaxy({name: float(column[row]) for name, column in columns.items()}, half, psfs)
        stamps[int(row)] = y0, x0, pixels * flux[row].astype(np.float32)[:, None, None]
    return stamps


def _mixture(exposure: ExposureF, y: float, x: float, fitted: dict[bytes, PsfMixture]) -> PsfMixture:
    """Fit the PSF in the middle of a cell, once for each image of it."""
    corner = exposure.getXY0()
    image = psf_image(
        exposure, *((place // PSF_CELL + 0.5) * PSF_CELL for place in (y - corner.getY(), x - corner.getX()))
    )
    if image is None:
        raise ValueError("a model cannot be drawn, as the exposure has no PSF")
    key = image.tobytes()
    if key not in fitted:
        fitted[key] = fit_psf(image)
    return fitted[key]


def _draw_galaxy(model: Mapping[str, float], half: int, psfs: list[PsfMixture]) -> npt.NDArray[np.float32]:
    """Draw a galaxy of unit flux in the middle of a square, (band, y, x)."""
    ellipticity = np.hypot(model["e1"], model["e2"])
    shear = 2.0 * np.arctanh(min(ellipticity, 0.999)) / max(ellipticity, 1e-6)
    shape = np.log(model["r50"]), shear * model["e1"], shear * model["e2"], np.log(model["index"])
    parameters = np.array([[model["y"], model["x"], *shape]])
    origin = np.rint(parameters[:, :2]).astype(np.int64) - half
    side = 2 * half + 1
    pixels = np.zeros((len(psfs), side, side), np.float32)
    for _, drawn in render_windows(parameters, origin, side, PsfStack.make([psfs]), False):
        pixels[(slice(None), *window_pixels(side))] = drawn[0, :, 0].numpy()
    return pixels


def cut_blends(
    catalog: SourceCatalog,
    band_catalogs: Mapping[str, SourceCatalog],
    exposures: Mapping[str, ExposureF],
    n_blends: int,
    truth: Mapping[int, float] | None,
) -> list[BlendCutout]:
    """Cut the ``n_blends`` blends of the most sources out of exposures, with their models, the largest first.

    The catalogues, that of the reference band and those of the bands, have the same records. Exposures are of
    one band, or of three with the reddest first; fluxes are those of the middle one. ``truth`` holds true
    fluxes (nJy) by row.
    """
    middle, truth = len(exposures) // 2, truth or {}
    flux, error = (model_fluxes(band_catalogs, exposures, name) for name in ("instFlux", "instFluxErr"))
    x, y = (np.asarray(catalog[f"{PREFIX}_{axis}"]) for axis in "xy")
    parent, p_star = np.asarray(catalog["parent"]), np.asarray(catalog["maskrcnn_pStar"])
    usable = (parent != 0) & np.isfinite(x + y + flux[:, middle])
    groups = [np.flatnonzero(usable & (parent == one)) for one in np.unique(parent[usable])]
    scale = np.array([exposure.getPhotoCalib().getCalibrationMean() for exposure in exposures.values()])
    corner = next(iter(exposures.values())).getXY0()
    cutouts = []
    for members in busiest_blends(groups, flux[:, middle], n_blends):
        x0, y0, side = blend_square(x[members], y[members])
        place = x0 - corner.getX(), y0 - corner.getY(), side
        planes = [cut_square(one.image.array[None], *place)[0] for one in exposures.values()]
        variances = np.stack([cut_square(one.variance.array[None], *place)[0] for one in exposures.values()])
        variances = np.where(variances > 0, variances, np.nan) * scale[:, None, None] ** 2
        near = np.hypot(x - x0 - 0.5 * side, y - y0 - 0.5 * side) < side + _REACH
        stamps = draw_models(catalog, np.flatnonzero(near).tolist(), flux, exposures)
        labels = {}
        for row in members.tolist():
            measured = float(flux[row, middle]), float(error[row, middle])
            labels[row] = child_label(int(catalog["id"][row]), p_star[row] >= 0.5, *measured, truth.get(row))
        cutout = BlendCutout(
            image=np.stack(planes) * scale[:, None, None],
            noise=np.sqrt([np.nanmedian(one) if np.isfinite(one).any() else np.nan for one in variances]),
            residual=None,
            corner=(x0, y0),
            caption=f"parent {parent[members[0]]}: {len(members)} sources",
        )
        cutouts.append(add_models(cutout, np.sqrt(variances[middle]), stamps, labels))
    return cutouts
