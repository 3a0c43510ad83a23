# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables of objects and of parents, with the names of ``object_patch`` and ``object_parent_patch``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Column, Table

from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.pipe.base import Struct

from ..deblend.image import MultibandImage
from ..deblend.object_table import flux_unit, short_columns
from ..deblend.sources import SourceList
from .deblend_columns import ParentFluxes
from .record_order import RecordOrder


def object_table(
    of_sources: Table,
    image: MultibandImage,
    order: RecordOrder,
    catalog: SourceCatalog,
    band_catalogs: Mapping[str, SourceCatalog],
    exposures: Mapping[str, ExposureF],
) -> Table:
    """Make the table of the objects.

    That of the sources of an image, `~lsst.meas.maskrcnn.deblend.object_table.make_object_table`, in the
    order of the catalogue, without parents, with its ids, positions with xy0, and by band the ``psfFlux``
    that was measured by force.
    """
    rows = np.flatnonzero(order.source >= 0)
    table = Table(of_sources[order.source[rows]])
    if len(rows):
        table["objectId"][:] = np.asarray(catalog["id"])[rows]
        table["parentObjectId"][:] = np.asarray(catalog["parent"])[rows]
    for number, (band, exposure) in enumerate(exposures.items()):
        measured, key = band_catalogs[band], f"{band}_psfFlux"
        if "slot_PsfFlux_instFlux" not in measured.schema:
            continue
        names = ("instFlux", "instFluxErr", "flag")
        flux, error, flag = (_column(measured, f"slot_PsfFlux_{name}")[rows] for name in names)
        x, y = np.asarray(table["x"]), np.asarray(table["y"])
        corner = exposure.getXY0()
        scale = exposure.getPhotoCalib().getLocalCalibrationArray(x + corner.getX(), y + corner.getY())
        flag |= _column(measured, "maskrcnn_flag_unmeasured")[rows]
        unit = flux_unit(image, number)
        table[key] = Column(flux * scale, unit=unit, description=f"Forced flux of the PSF in {band}")
        table[f"{key}Err"] = Column(error * scale, unit=unit, description=f"Error of {key}")
        table[f"{key}_flag"] = Column(flag, description=f"{key} could not be measured")
    table["x"] += next(iter(exposures.values())).getX0()
    table["y"] += next(iter(exposures.values())).getY0()
    return table


def short_object_columns(table: Table, bands: Sequence[str]) -> list[str]:
    """Choose the columns of the table of the task that `SourceList.to_table` has as well."""
    added = {"tract", "patch", "detect_isPatchInner", "detect_isTractInner"}
    added |= {f"{band}_psfFlux{end}" for band in bands for end in ("", "Err", "_flag")}
    return [name for name in short_columns(table, bands) if name not in added]


def select_primary(table: Table, sky_info: Struct) -> None:
    """Set ``detect_isPrimary`` of the objects that lie in the inner regions of their patch and tract alone.

    By the rules of ``lsst.meas.algorithms.SetPrimaryFlagsTask`` for positions that are good: a source in the
    overlap of patches or tracts is primary in one of them. The `object_table` gets ``detect_isPatchInner``
    and ``detect_isTractInner`` as well; ``sky_info`` is that of ``makeSkyInfo`` of pipe_tasks.
    """
    box = sky_info.patchInfo.getInnerBBox()
    # The middle of a pixel has a whole number, so that patches meet at half ones.
    x, y = np.asarray(table["x"]) + 0.5, np.asarray(table["y"]) + 0.5
    in_patch = (x >= box.getMinX()) & (x < box.getMaxX() + 1) & (y >= box.getMinY()) & (y < box.getMaxY() + 1)
    in_tract = np.zeros(len(table), bool)
    known = np.isfinite(table["coord_ra"]) & np.isfinite(table["coord_dec"])
    if known.any():
        where = (np.asarray(table[name])[known] for name in ("coord_ra", "coord_dec"))
        in_tract[known] = sky_info.skyMap.findTractIdArray(*where, degrees=True) == sky_info.tractInfo.getId()
    primary = table["detect_isPrimary"]
    primary &= in_patch & in_tract
    primary.description = "It is in the inner regions of patch and tract; there are no parents here"
    place = table.index_column("detect_isPrimary")
    for name, inner in (("Tract", in_tract), ("Patch", in_patch)):
        column = Column(inner, description=f"It is in the inner region of the {name.lower()}")
        table.add_column(column, name=f"detect_is{name}Inner", index=place)


def _column(catalog: SourceCatalog, name: str) -> np.ndarray:
    """Copy of a column, of an empty catalogue as well."""
    return np.array(catalog[name]) if len(catalog) else np.zeros(0, bool if "flag" in name else float)


def parent_table(
    catalog: SourceCatalog, order: RecordOrder, sources: SourceList, fluxes: Mapping[str, ParentFluxes]
) -> Table:
    """Make the table of the parents and isolated sources, in the order of the catalogue.

    It has what the deblender metrics of analysis_tools read.
    """
    rows = np.flatnonzero(~order.is_child)
    own, statistics = order.parent[rows], sources.statistics
    members = [sources.parents[index].members for index in own.tolist()]
    models, none = sources.models, np.zeros(len(rows), bool)
    iterations, chi2 = np.zeros(len(rows), np.int32), np.full(len(rows), np.nan)
    known = np.isfinite(statistics.chi2[own])
    if models is not None:
        iterations = np.array([models.n_iter[one].max() for one in members], np.int32)
        chi2 = np.array([models.chi2[one[0]] / models.dof[one[0]] for one in members])
    blended = known.any(axis=1)
    chi2[blended] = np.nanmean(statistics.chi2[own][blended], axis=1)
    chi2[~blended & order.is_parent[rows]] = np.nan
    table = Table()

    def add(name: str, values: Any, doc: str, unit: u.UnitBase | None = None) -> None:
        table[name] = Column(values, description=doc, unit=unit)

    n_child = order.n_member[rows].astype(np.int32)
    area = np.array([np.count_nonzero(sources.parents[index].pixels) for index in own], dtype=np.int64)
    add("objectId", _column(catalog, "id").astype(np.int64)[rows], "Id of the record in the catalogue")
    add("parentObjectId", np.zeros(len(rows), np.int64), "0, as these have no parents")
    add("sky_object", none, "Never set: there are no sky objects")
    add("deblend_nPeaks", n_child, "Number of sources; 1 for isolated ones")
    add("deblend_nChild", n_child, "The same: no peak is dropped, and isolated sources are modelled as well")
    add("deblend_chi2", chi2, "Mean of (image - models)^2 / variance over pixels and bands, as {band}_chi2")
    add("deblend_iterations", iterations, "Steps of the fit, of the source that took most")
    add("deblend_failed", statistics.failed[own], "The templates could not be made, as in the catalogue")
    for reason in ("", "_isolatedParent", "_parentTooBig", "_tooManyPeaks", "_masked"):
        add(f"deblend_skipped{reason}", none, "Never set: nothing is skipped, see deblend_fallback")
    incomplete = none | (not sources.has_model_flux.all())
    add("deblend_incompleteData", incomplete, "Some band has no PSF, and so no models")
    add("deblend_fallback", statistics.fallback[own], "Its flux was shared by masks alone")
    add("deblend_runtime", statistics.runtime[own], "Time that sharing its flux took", u.ms)
    add("footprintArea", area, "Pixels of the parent", u.pixel)
    for number, (band, in_band) in enumerate(fluxes.items()):
        add(f"{band}_instFlux", in_band.flux[own], "Sum of its pixels", u.count)
        add(f"{band}_outsideFraction", in_band.outside[own], "Part of that outside the masks of all children")
        doc = "Mean over the pixels of (image - models)^2 / variance; NaN for isolated sources"
        add(f"{band}_chi2", statistics.chi2[own, number], doc)
    return table


def with_bands(table: Table, bands: Sequence[str], wanted: Sequence[str]) -> Table:
    """Give a table the columns of other bands, so that those of all patches of a tract have the same.

    The columns of each band of ``wanted`` follow those of no band. Where it is not among ``bands``, which the
    table is of, they are NaN, and flags are set; columns of bands that are not wanted are left out.
    """
    first = [f"{band}_" for band in bands]
    ends = [name.removeprefix(first[0]) for name in table.colnames if name.startswith(first[0])]
    made = table[[name for name in table.colnames if not name.startswith(tuple(first))]]
    for band in wanted:
        for end in ends:
            like = table[first[0] + end]
            column = table[f"{band}_{end}"] if band in bands else like.copy()
            if band not in bands:
                column[:] = True if column.dtype == bool else np.nan
                column.description = f"As {like.name}; there are no data of {band}"
            made[f"{band}_{end}"] = column
    return made
