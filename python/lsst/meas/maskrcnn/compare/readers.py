# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read catalogues of deblenders, and the truth.

A deblender's catalogue holds isolated sources (``parent`` is 0) and children
(``parent`` is the id of their parent). The parents are in the same catalogue,
as with this package, or in one of their own, as with scarlet.
"""

from __future__ import annotations

__all__ = ["CatalogReader", "TruthReader", "field_images"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from astropy.table import Table

from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.geom import Box2I, Extent2I, Point2I

from ..catalogs.detections import DetectionFields, catalog_labels, catalog_positions
from ..catalogs.exposures import check_exposures, flagged_pixels, to_nanojansky
from ..catalogs.footprints import footprints_to_masks
from ..catalogs.truth import read_truth
from ..images.classes import GALAXY, STAR
from ..metrics.spans import SpanMasks
from .deblender import PARENT_DTYPE, DeblendedField, Deblender, FieldImages, PixelModels, make_parents
from .scarlet import attach_scarlet
from .scarlet_models import ScarletModels

_SKIPPED = (
    "deblend_skipped",
    "deblend_skipped_isPseudo",
    "deblend_skipped_tooManyPeaks",
    "deblend_skipped_parentTooBig",
    "deblend_skipped_masked",
    # Names of older versions.
    "deblend_parentTooBig",
    "deblend_tooManyPeaks",
    "deblend_masked",
)


def field_images(
    exposures: Mapping[str, ExposureF], bad_planes: Sequence[str] = ("BAD", "NO_DATA", "SAT")
) -> FieldImages:
    """Take the pixels of exposures, in nJy.

    Parameters
    ----------
    exposures : `~collections.abc.Mapping` [`str`, `lsst.afw.image.ExposureF`]
        Exposures by band, at least one, that pass
        `~lsst.meas.maskrcnn.catalogs.exposures.check_exposures`.
    bad_planes : `~collections.abc.Sequence` [`str`]
        Mask planes of pixels that do not count.
    """
    check_exposures(exposures)
    box = next(iter(exposures.values())).getBBox()
    usable = np.ones((box.getHeight(), box.getWidth()), dtype=bool)
    images, variances = {}, {}
    for band, exposure in exposures.items():
        images[band], variances[band] = to_nanojansky(exposure)
        usable &= ~flagged_pixels(exposure, bad_planes)
        usable &= np.isfinite(images[band]) & (variances[band] > 0)
    return FieldImages(images, variances, usable, (box.getMinY(), box.getMinX()), exposures)


@dataclass(frozen=True, eq=False)
class CatalogReader(Deblender):
    """Reader of any catalogue with parents, such as this package's or scarlet's.

    Sources have their deblended pixels, or else the pixels of the image in
    their mask. Without models, scarlet's children have neither: they have
    positions only.

    Parameters
    ----------
    name : `str`
        Name of the deblender.
    catalog : `lsst.afw.table.SourceCatalog`
        Children and isolated sources, and parents if they are not in a
        catalogue of their own, such as ``object_deblend``. Without ``parent``
        all are isolated.
    band_catalogs : `~collections.abc.Mapping` [`str`, \
            `lsst.afw.table.SourceCatalog`], optional
        By band, catalogues with HeavyFootprints of the deblended pixels, for
        some or all of the same ids.
    scarlet_models : `~lsst.meas.maskrcnn.compare.scarlet_models.\
ScarletModels`, optional
        Scarlet's models, from which the deblended pixels are made instead.
    parent_catalog : `lsst.afw.table.SourceCatalog`, optional
        Catalogue of parents, such as ``object_parent_patch``. Records that have
        a parent themselves are pieces in which scarlet works, and not used.
        Without it, parents that are not in the catalogue are the union of their
        children.
    parent_statistics : `astropy.table.Table`, optional
        Residuals ``<band>_chi2`` of parents by ``id``, as the task of this
        package stores them.
    convergence_inverted : `bool`, optional
        Whether ``deblend_blendConvergenceFailedFlag`` is set where a blend
        did converge, as scarlet's task did until 2026. By default
        ``deblend_iterations`` tell it.
    seconds : `float`
        Time that the deblender took, if it is known.
    """

    name: str
    catalog: SourceCatalog
    band_catalogs: Mapping[str, SourceCatalog] = field(default_factory=dict)
    scarlet_models: ScarletModels | None = None
    parent_catalog: SourceCatalog | None = None
    parent_statistics: Table | None = None
    convergence_inverted: bool | None = None
    seconds: float = float("nan")

    def _get_sources(self, images: FieldImages) -> DeblendedField:
        catalog = _contiguous(self.catalog)
        keep = np.flatnonzero(_is_source(catalog))
        ids, parent = _column(catalog, "id")[keep], _column(catalog, "parent")[keep]
        parent_ids = np.where(parent == 0, ids, parent)
        footprints = [record.getFootprint() for record in catalog]
        deblended = self._attach(images, redistribute=True) or self.band_catalogs
        heavy = {band: _footprints_by_id(one, ids) for band, one in deblended.items()}
        chosen = [footprints[i] for i in keep.tolist()]
        for found in heavy.values():
            # The footprint of a child that is not in the catalogue is that of its pixels.
            chosen = [own if _filled(own) else other for own, other in zip(chosen, found, strict=True)]
        spans = _spans(chosen)
        models = self._attach(images, redistribute=False)
        templates = {band: _footprints_by_id(one, ids) for band, one in models.items()}
        stored = _read_models(heavy, _calibrations(heavy, images))
        pixels = {}
        for band in images.bands:
            within = PixelModels.from_image(spans, images.images[band], images.origin)
            pixels[band] = stored[band].filled(within) if band in stored else within
        fields = DetectionFields()
        x, y = catalog_positions(catalog, fields, footprints)
        parents, parent_spans = self._read_parents(catalog, ids, parent_ids, spans)
        if self.parent_statistics is not None:
            _set_chi2(parents, self.parent_statistics)
        return DeblendedField(
            name=self.name,
            ids=ids,
            parent_ids=parent_ids,
            x=x[keep],
            y=y[keep],
            labels=catalog_labels(catalog, fields)[0][keep],
            spans=spans,
            flux={band: one.sums for band, one in pixels.items()},
            parents=parents,
            parent_spans=parent_spans,
            models=pixels,
            templates=_read_models(templates, _calibrations(templates, images)),
            seconds=self.seconds,
        )

    def _attach(self, images: FieldImages, redistribute: bool) -> dict[str, SourceCatalog]:
        """The catalogue with HeavyFootprints in each band, if there are models."""
        models = self.scarlet_models
        if models is None:
            return {}
        return {
            band: attach_scarlet(
                self.catalog, models, images.exposures, band, redistribute, allow_missing=True
            )
            for band in images.bands
        }

    def _read_parents(
        self, catalog: SourceCatalog, ids: np.ndarray, parent_ids: np.ndarray, spans: SpanMasks
    ) -> tuple[np.ndarray, SpanMasks]:
        """Parents that are listed, and the union of the children where they are not."""
        made, made_spans = make_parents(ids, parent_ids, spans)
        source = catalog if self.parent_catalog is None else _contiguous(self.parent_catalog)
        table = _parent_table(source, self.convergence_inverted)
        listed = _column(source, "parent") == 0
        if self.parent_catalog is None:
            # The other records without parent are no parents, either.
            listed &= np.isin(table["id"], made["id"]) | table["skipped"] | table["failed"]
        chosen = np.flatnonzero(listed)
        listed_spans = _spans([source[i].getFootprint() for i in chosen.tolist()])
        rest = np.flatnonzero(~np.isin(made["id"], table["id"][listed]))
        parents = np.concatenate([table[chosen], made[rest]])
        # A parent that the catalogue lists may lack its footprint.
        row = {number: len(parents) + k for k, number in enumerate(made["id"].tolist())}
        all_spans = SpanMasks.concatenate([listed_spans, made_spans.select(rest), made_spans])
        picks = [
            row.get(number, k) if area == 0 else k
            for k, (number, area) in enumerate(zip(parents["id"].tolist(), all_spans.areas.tolist()))
        ]
        return parents, all_spans.select(np.array(picks, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class TruthReader(Deblender):
    """Reader of the truth, as if a perfect deblender had made it.

    Fluxes are total ones. The truth says which sources are blended.

    Parameters
    ----------
    catalog : `lsst.afw.table.SourceCatalog`
        A ``maskRcnn_truth``.
    flux_catalogs : `~collections.abc.Mapping` [`str`, \
            `lsst.afw.table.SourceCatalog`], optional
        By band, each source's own pixels without noise (nJy), as
        ``maskRcnn_truthFlux`` has them.
    ignore_flags : `~collections.abc.Sequence` [`str`], optional
        Flags of the truth that make a source neither found nor missed.
    name : `str`
        Name of it.
    """

    catalog: SourceCatalog
    flux_catalogs: Mapping[str, SourceCatalog] = field(default_factory=dict)
    ignore_flags: Sequence[str] = ()
    name: str = "truth"

    def _get_sources(self, images: FieldImages) -> DeblendedField:
        truth = read_truth(self.catalog, Box2I(Point2I(0, 0), Extent2I(1, 1)))
        # The parent of a group is the first of its members.
        group = np.asarray(truth.columns["group"], dtype=np.int64)
        _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
        parent_ids = truth.ids[first[inverse]]
        spans = SpanMasks.from_masks(truth.masks, truth.origins)
        parents, parent_spans = make_parents(truth.ids, parent_ids, spans)
        heavy = {band: _footprints_by_id(one, truth.ids) for band, one in self.flux_catalogs.items()}
        ignored = np.zeros(len(truth), dtype=bool)
        for flag in self.ignore_flags:
            ignored |= truth.flags[flag]
        return DeblendedField(
            name=self.name,
            ids=truth.ids,
            parent_ids=parent_ids,
            x=np.asarray(truth.x, dtype=np.float64),
            y=np.asarray(truth.y, dtype=np.float64),
            labels=np.where(truth.is_star, STAR, GALAXY),
            spans=spans,
            flux={band: np.asarray(flux, dtype=np.float64) for band, flux in truth.flux.items()},
            parents=parents,
            parent_spans=parent_spans,
            models=_read_models(heavy, dict.fromkeys(heavy, 1.0)),
            ignored=ignored,
            columns={"blendedness": np.asarray(truth.columns["blendedness"], dtype=np.float64)},
        )


def _contiguous(catalog: SourceCatalog) -> SourceCatalog:
    return catalog if not len(catalog) or catalog.isContiguous() else catalog.copy(deep=True)


def _column(catalog: SourceCatalog, name: str, default: Any = 0) -> np.ndarray:
    """Copy of a column; the default where the catalogue has no records or no such field."""
    if not len(catalog) or name not in catalog.schema.getNames():
        return np.full(len(catalog), default, dtype=np.int64 if isinstance(default, int) else None)
    return np.array(catalog[name])


def _any_flag(catalog: SourceCatalog, names: Sequence[str]) -> np.ndarray:
    return np.any([_column(catalog, name) for name in names], axis=0)


def _is_source(catalog: SourceCatalog) -> np.ndarray:
    """Records without children, but for parents of several peaks that were skipped or failed."""
    leaf = _column(catalog, "deblend_nChild") == 0
    if "deblend_nChild" not in catalog.schema.getNames():
        return leaf
    given_up = _any_flag(catalog, (*_SKIPPED, "deblend_failed"))
    several = _column(catalog, "deblend_nPeaks") > 1
    return leaf & ~(given_up & several & (_column(catalog, "parent") == 0))


def _filled(footprint: Any) -> bool:
    return footprint is not None and footprint.getArea() > 0


def _spans(footprints: Sequence[Any]) -> SpanMasks:
    return SpanMasks.from_masks(*footprints_to_masks(footprints))


def _footprints_by_id(catalog: SourceCatalog, ids: np.ndarray) -> list[Any]:
    """Footprints of some ids; None where there is none."""
    known = {int(record.getId()): record.getFootprint() for record in catalog}
    return [known.get(number) for number in ids.tolist()]


def _calibrations(bands: Mapping[str, Any], images: FieldImages) -> dict[str, float]:
    """Flux of one count by band (nJy)."""
    lost = sorted(set(bands) - set(images.exposures))
    if lost:
        raise ValueError(
            f"There are HeavyFootprints in {lost}, but no exposures, whose calibration they need; give the "
            f"exposures in {lost} too. Given were {sorted(images.exposures)}."
        )
    return {band: images.exposures[band].getPhotoCalib().getCalibrationMean() for band in bands}


def _read_models(
    heavy: Mapping[str, Sequence[Any]], calibrations: Mapping[str, float]
) -> dict[str, PixelModels]:
    models = {}
    for band, footprints in heavy.items():
        known = [one if _filled(one) and one.isHeavy() else None for one in footprints]
        parts = [np.nan_to_num(one.getImageArray(), posinf=0, neginf=0) for one in known if one is not None]
        scale = np.float32(calibrations[band])
        models[band] = PixelModels.from_parts(_spans(known), [part * scale for part in parts])
    return models


def _parent_table(catalog: SourceCatalog, inverted: bool | None) -> np.ndarray:
    """The records of a catalogue as parents."""
    table = np.zeros(len(catalog), dtype=PARENT_DTYPE)
    table["id"] = _column(catalog, "id")
    table["n_child"] = _column(catalog, "deblend_nChild")
    table["n_peak"] = _column(catalog, "deblend_nPeaks", -1)
    # It stays 0 where there was nothing to do.
    runtime = _column(catalog, "deblend_runtime", np.nan)
    table["runtime_ms"] = np.where(runtime > 0, runtime, np.nan)
    table["chi2"] = _column(catalog, "deblend_chi2", np.nan)
    # A lone peak needs no deblending: that is no failure.
    alone = _column(catalog, "deblend_skipped_isolatedParent").astype(bool) & (table["n_peak"] <= 1)
    table["skipped"] = _any_flag(catalog, _SKIPPED) & ~alone
    table["failed"] = _column(catalog, "deblend_failed").astype(bool)
    failed_flag = "deblend_blendConvergenceFailedFlag"
    if failed_flag in catalog.schema.getNames():
        deblended, is_set = table["n_child"] > 0, _column(catalog, failed_flag).astype(bool)
        if inverted is None:
            inverted = _set_where_converged(
                is_set[deblended], _column(catalog, "deblend_iterations", 0)[deblended]
            )
        table["not_converged"] = deblended & (is_set != inverted)
    return table


def _set_where_converged(is_set: np.ndarray, iterations: np.ndarray) -> bool:
    """Tell whether the flag of blends that did not converge is set on those that did.

    Those that did not have run to the limit: all for the same number of iterations, which is the largest.
    """
    if is_set.all() or not is_set.any():
        return bool(is_set.any() and np.ptp(iterations) > 0)
    return bool(np.median(iterations[is_set]) < np.median(iterations[~is_set]))


def _set_chi2(parents: np.ndarray, statistics: Table) -> None:
    """Take the mean residual of blends from the table of parents."""
    blends = statistics[np.asarray(statistics["deblend_nChild"]) > 1]
    by_id = dict(zip(np.asarray(blends["objectId"]).tolist(), np.asarray(blends["deblend_chi2"]).tolist()))
    parents["chi2"] = [by_id.get(number, float("nan")) for number in parents["id"].tolist()]
