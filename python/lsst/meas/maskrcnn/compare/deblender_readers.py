# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Catalogues of deblenders, and the truth, as `DeblendedField`.

A deblender's catalogue holds isolated sources (``parent`` is 0) and children
(``parent`` is the id of their parent). The parents are in the same catalogue,
as with this package, or in one of their own, as with scarlet.
"""

from __future__ import annotations

__all__ = ["field_images", "read_scarlet_field", "read_source_catalog", "read_truth_field"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from astropy.table import Table

from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.geom import Box2I, Extent2I, Point2I

from ..catalogs.detections import DetectionFields, catalog_labels, catalog_positions
from ..catalogs.footprints import footprints_to_masks
from ..catalogs.mask_planes import defined_plane_bits
from ..catalogs.truth import read_truth
from ..images.classes import GALAXY, STAR
from ..metrics.spans import SpanMasks
from .deblended_field import (
    PARENT_DTYPE,
    DeblendedField,
    FieldImages,
    PixelModels,
    make_parents,
    no_spans,
)

_REASONS = (
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
    """Take the pixels of exposures.

    Parameters
    ----------
    exposures : `~collections.abc.Mapping` [`str`, `lsst.afw.image.ExposureF`]
        Exposures of one box by band.
    bad_planes : `~collections.abc.Sequence` [`str`]
        Mask planes of pixels that do not count.

    Returns
    -------
    images : `~lsst.meas.maskrcnn.compare.deblended_field.FieldImages`
        Their pixels in nJy.

    Raises
    ------
    ValueError
        Raised if there are none, their boxes differ or one has no PhotoCalib.
    """
    if not exposures:
        raise ValueError("There are no exposures; give at least one.")
    boxes = {band: exposure.getBBox() for band, exposure in exposures.items()}
    box = next(iter(boxes.values()))
    if any(other != box for other in boxes.values()):
        raise ValueError(f"The exposures have different boxes, {boxes}; give those of one patch.")
    usable = np.ones((box.getHeight(), box.getWidth()), dtype=bool)
    images, variances = {}, {}
    for band, exposure in exposures.items():
        calib = exposure.getPhotoCalib()
        if calib is None:
            raise ValueError(f"The exposure in {band} has no PhotoCalib; fluxes are compared in nJy.")
        scale = np.float32(calib.getCalibrationMean())
        images[band] = exposure.image.array * scale
        variances[band] = exposure.variance.array * scale**2
        bits = defined_plane_bits(exposure.mask, tuple(bad_planes))
        usable &= (exposure.mask.array & bits) == 0
        usable &= np.isfinite(images[band]) & (variances[band] > 0)
    return FieldImages(images, variances, usable, (box.getMinY(), box.getMinX()))


def read_source_catalog(
    catalog: SourceCatalog,
    name: str,
    *,
    band_catalogs: Mapping[str, SourceCatalog] | None = None,
    template_catalogs: Mapping[str, SourceCatalog] | None = None,
    parent_catalog: SourceCatalog | None = None,
    parent_statistics: Table | None = None,
    images: FieldImages | None = None,
    calibrations: Mapping[str, float] | None = None,
    fields: DetectionFields | None = None,
    convergence_inverted: bool = False,
    seconds: float = float("nan"),
) -> DeblendedField:
    """Read any catalogue with parents.

    Parameters
    ----------
    catalog : `lsst.afw.table.SourceCatalog`
        Children and isolated sources, and parents if they are not in a
        catalogue of their own. Without ``parent`` all are isolated.
    name : `str`
        Name of the deblender.
    band_catalogs : `~collections.abc.Mapping` [`str`, \
            `lsst.afw.table.SourceCatalog`], optional
        By band, catalogues with HeavyFootprints, of instrumental fluxes, for
        some or all of the same ids.
    template_catalogs : `~collections.abc.Mapping` [`str`, \
            `lsst.afw.table.SourceCatalog`], optional
        The same of the models from which those pixels were made.
    parent_catalog : `lsst.afw.table.SourceCatalog`, optional
        Catalogue of parents. Of those, records that have a parent themselves
        are passed over: pieces in which scarlet works.
    parent_statistics : `astropy.table.Table`, optional
        Residuals ``<band>_chi2`` of parents by ``id``, as the task of this
        package stores them.
    images : `~lsst.meas.maskrcnn.compare.deblended_field.FieldImages`, \
            optional
        Images. A source with a mask but without HeavyFootprint has what is in
        its mask.
    calibrations : `~collections.abc.Mapping` [`str`, `float`], optional
        Calibration to nJy by band, for HeavyFootprints.
    fields : `~lsst.meas.maskrcnn.catalogs.detections.DetectionFields`, \
            optional
        Fields of class and position.
    convergence_inverted : `bool`
        Whether ``deblend_blendConvergenceFailedFlag`` is set where a blend
        did converge, as upstream does.
    seconds : `float`
        How long the deblender took, if it is known.

    Returns
    -------
    field : `~lsst.meas.maskrcnn.compare.deblended_field.DeblendedField`
        The sources without children, in the catalogue's order.

    Raises
    ------
    ValueError
        Raised if a band lacks its calibration.
    """
    fields = fields or DetectionFields()
    catalog = _contiguous(catalog)
    names = catalog.schema.getNames()
    number = len(catalog)
    ids = np.array(catalog["id"], dtype=np.int64) if number else np.zeros(0, dtype=np.int64)
    parent = np.array(catalog["parent"], dtype=np.int64) if number else ids
    leaf = np.ones(number, dtype=bool)
    if number and "deblend_nChild" in names:
        leaf = np.asarray(catalog["deblend_nChild"]) == 0
    # A parent of which nothing came is no source.
    leaf &= ~_given_up(catalog, names)
    keep = np.flatnonzero(leaf)
    footprints = [record.getFootprint() for record in catalog]
    heavies: dict[str, list[Any]] = {}
    for band, one in (band_catalogs or {}).items():
        heavies[band] = _footprints_by_id(one, ids[keep])
    chosen = [footprints[i] for i in keep.tolist()]
    for found in heavies.values():
        # The footprint of a child that is not with the catalogue is with its pixels.
        chosen = [
            own if _filled(own) else other if _filled(other) else None
            for own, other in zip(chosen, found, strict=True)
        ]
    spans = _spans(chosen)
    x, y = catalog_positions(catalog, fields, footprints)
    labels, _ = catalog_labels(catalog, fields)
    own_ids = np.where(parent == 0, ids, parent)[keep]
    models = _models(heavies, calibrations)
    if images is not None:
        for band in images.bands:
            within = PixelModels.from_image(spans, images.images[band], images.origin)
            models[band] = models[band].filled(within) if band in models else within
        # Colours are of neighbours in the order of the images.
        models = {band: models.pop(band) for band in images.bands} | models
    templates = _models(
        {band: _footprints_by_id(one, ids[keep]) for band, one in (template_catalogs or {}).items()},
        calibrations,
    )
    parents, parent_spans = _read_parents(
        catalog, footprints, ids[keep], own_ids, spans, parent_catalog, convergence_inverted
    )
    if parent_statistics is not None:
        _add_statistics(parents, parent_statistics)
    return DeblendedField(
        name=name,
        ids=ids[keep],
        parent_ids=own_ids,
        x=x[keep],
        y=y[keep],
        labels=labels[keep],
        spans=spans,
        flux={band: one.sums for band, one in models.items()},
        parents=parents,
        parent_spans=parent_spans,
        models=models,
        templates=templates,
        seconds=seconds,
    )


def read_scarlet_field(
    catalog: SourceCatalog,
    *,
    parent_catalog: SourceCatalog | None = None,
    attach: Callable[[str, bool], SourceCatalog] | None = None,
    images: FieldImages | None = None,
    calibrations: Mapping[str, float] | None = None,
    name: str = "scarlet",
    convergence_inverted: bool = True,
    seconds: float = float("nan"),
) -> DeblendedField:
    """Read what scarlet left in a Butler.

    Parameters
    ----------
    catalog : `lsst.afw.table.SourceCatalog`
        ``deepCoadd_deblendedCatalog``, in newer names ``object_deblend``.
    parent_catalog : `lsst.afw.table.SourceCatalog`, optional
        ``object_parent_patch``. Without it parents are what their children
        make up, and times and failures are not known.
    attach : `~collections.abc.Callable`, optional
        From a band and whether the flux is redistributed, to the catalogue
        with HeavyFootprints, made from the models. Without models, children
        have positions only: no mask, no flux.
    images : `~lsst.meas.maskrcnn.compare.deblended_field.FieldImages`, \
            optional
        Images, in the bands that are wanted.
    calibrations : `~collections.abc.Mapping` [`str`, `float`], optional
        Calibration to nJy by band.
    name : `str`
        Name of the deblender.
    convergence_inverted : `bool`
        Whether ``deblend_blendConvergenceFailedFlag`` is set where a blend
        did converge, as upstream does.
    seconds : `float`
        How long it took, if it is known.

    Returns
    -------
    field : `~lsst.meas.maskrcnn.compare.deblended_field.DeblendedField`
        The sources.
    """
    bands = () if attach is None or images is None else images.bands
    return read_source_catalog(
        catalog,
        name,
        band_catalogs={band: attach(band, True) for band in bands} if attach is not None else {},
        template_catalogs={band: attach(band, False) for band in bands} if attach is not None else {},
        parent_catalog=parent_catalog,
        images=images,
        calibrations=calibrations,
        convergence_inverted=convergence_inverted,
        seconds=seconds,
    )


def read_truth_field(
    catalog: SourceCatalog, truth_flux: Mapping[str, SourceCatalog] | None = None, name: str = "truth"
) -> DeblendedField:
    """Read the truth as if a perfect deblender had made it.

    Parameters
    ----------
    catalog : `lsst.afw.table.SourceCatalog`
        A ``maskRcnn_truth``.
    truth_flux : `~collections.abc.Mapping` [`str`, \
            `lsst.afw.table.SourceCatalog`], optional
        By band, each source's own pixels without noise (nJy), as
        ``maskRcnn_truthFlux`` has them.
    name : `str`
        Name of it.

    Returns
    -------
    field : `~lsst.meas.maskrcnn.compare.deblended_field.DeblendedField`
        The true sources, blended where the truth says so. Fluxes are total
        ones.
    """
    truth = read_truth(catalog, Box2I(Point2I(0, 0), Extent2I(1, 1)))
    group = np.asarray(truth.columns["group"], dtype=np.int64)
    # The parent of a group is the first of its members.
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    parent_ids = truth.ids[first][inverse] if len(group) else truth.ids
    spans = SpanMasks.from_masks(truth.masks, truth.origins)
    parents, parent_spans = make_parents(truth.ids, parent_ids, spans)
    heavies = {
        band: _footprints_by_id(_contiguous(one), truth.ids) for band, one in (truth_flux or {}).items()
    }
    return DeblendedField(
        name=name,
        ids=truth.ids,
        parent_ids=parent_ids,
        x=np.asarray(truth.x, dtype=np.float64),
        y=np.asarray(truth.y, dtype=np.float64),
        labels=np.where(truth.is_star, STAR, GALAXY),
        spans=spans,
        flux={band: np.asarray(flux, dtype=np.float64) for band, flux in truth.flux.items()},
        parents=parents,
        parent_spans=parent_spans,
        models=_models(heavies, {band: 1.0 for band in heavies}),
    )


def _contiguous(catalog: SourceCatalog) -> SourceCatalog:
    return catalog if not len(catalog) or catalog.isContiguous() else catalog.copy(deep=True)


def _filled(footprint: Any) -> bool:
    return footprint is not None and footprint.getArea() > 0


def _spans(footprints: Sequence[Any]) -> SpanMasks:
    masks = [np.zeros((0, 0), dtype=bool)] * len(footprints)
    origins = np.zeros((len(footprints), 2), dtype=np.int64)
    filled = [i for i, footprint in enumerate(footprints) if _filled(footprint)]
    found, origins[filled] = footprints_to_masks([footprints[i] for i in filled])
    for i, mask in zip(filled, found, strict=True):
        masks[i] = mask
    return SpanMasks.from_masks(masks, origins)


def _footprints_by_id(catalog: SourceCatalog, ids: np.ndarray) -> list[Any]:
    """Footprints of some ids; None where there is none."""
    known = {int(record.getId()): record.getFootprint() for record in catalog}
    return [known.get(number) for number in ids.tolist()]


def _models(
    heavies: Mapping[str, Sequence[Any]], calibrations: Mapping[str, float] | None
) -> dict[str, PixelModels]:
    models = {}
    for band, footprints in heavies.items():
        scale = (calibrations or {}).get(band, float("nan"))
        if not np.isfinite(scale):
            raise ValueError(
                f"There are HeavyFootprints in {band}, but no calibration of that band; give the exposure "
                f"in {band} too. Known are {sorted(calibrations or {})}."
            )
        heavy = [one if _filled(one) and one.isHeavy() else None for one in footprints]
        parts = [np.asarray(one.getImageArray(), dtype=np.float32) for one in heavy if one is not None]
        values = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
        values = np.where(np.isfinite(values), values, 0.0) * np.float32(scale)
        models[band] = PixelModels(_spans(heavy), values.astype(np.float32))
    return models


def _given_up(catalog: SourceCatalog, names: Any) -> np.ndarray:
    """Parents that were skipped or that failed, with several peaks and no child."""
    given_up = np.zeros(len(catalog), dtype=bool)
    if not len(catalog) or "deblend_nChild" not in names or "deblend_nPeaks" not in names:
        return given_up
    for flag in ("deblend_skipped", "deblend_failed", *_REASONS):
        if flag in names:
            given_up |= np.asarray(catalog[flag], dtype=bool)
    several = np.asarray(catalog["deblend_nPeaks"]) > 1
    none = np.asarray(catalog["deblend_nChild"]) == 0
    return given_up & several & none & (np.asarray(catalog["parent"]) == 0)


def _read_parents(
    catalog: SourceCatalog,
    footprints: Sequence[Any],
    ids: np.ndarray,
    parent_ids: np.ndarray,
    spans: SpanMasks,
    parent_catalog: SourceCatalog | None,
    inverted: bool,
) -> tuple[np.ndarray, SpanMasks]:
    """Parents as they are listed, and what children make up where they are not."""
    made, made_spans = make_parents(ids, parent_ids, spans)
    if parent_catalog is None:
        source, shapes = catalog, list(footprints)
    else:
        source = _contiguous(parent_catalog)
        shapes = [record.getFootprint() for record in source]
    if not len(source):
        return made, made_spans
    names = source.schema.getNames()
    listed = np.array(source["parent"], dtype=np.int64) == 0
    table = np.zeros(len(source), dtype=PARENT_DTYPE)
    table["id"] = source["id"]
    table["runtime_ms"] = table["chi2"] = np.nan
    table["n_peak"] = -1
    for column, field in (("n_child", "deblend_nChild"), ("n_peak", "deblend_nPeaks")):
        if field in names:
            table[column] = source[field]
    if "deblend_runtime" in names:
        # It stays 0 where there was nothing to do.
        runtime = np.array(source["deblend_runtime"], dtype=np.float64)
        table["runtime_ms"] = np.where(runtime > 0, runtime, np.nan)
    if "deblend_chi2" in names:
        table["chi2"] = np.array(source["deblend_chi2"], dtype=np.float64)
    for flag in ("deblend_skipped", *_REASONS):
        if flag in names:
            table["skipped"] |= np.asarray(source[flag], dtype=bool)
    if "deblend_skipped_isolatedParent" in names:
        # There is nothing to take apart, which is no failure.
        alone = np.asarray(source["deblend_skipped_isolatedParent"], dtype=bool)
        table["skipped"] &= ~(alone & (table["n_peak"] <= 1))
    if "deblend_failed" in names:
        table["failed"] = np.asarray(source["deblend_failed"], dtype=bool)
    if "deblend_blendConvergenceFailedFlag" in names:
        is_set = np.asarray(source["deblend_blendConvergenceFailedFlag"], dtype=bool)
        tried = table["n_child"] > 0
        table["not_converged"] = tried & (~is_set if inverted else is_set)
    # What the listed parents hold is kept as it is; the rest comes from the children.
    rest = ~np.isin(made["id"], table["id"][listed])
    if parent_catalog is None:
        # The catalogue lists its isolated sources too.
        listed &= np.isin(table["id"], made["id"]) | table["skipped"] | table["failed"]
        rest = ~np.isin(made["id"], table["id"][listed])
    # A parent that the catalogue lists may still lack its footprint.
    chosen = np.flatnonzero(listed)
    known = _spans([shapes[i] for i in chosen.tolist()])
    parents = np.concatenate([table[chosen], made[rest]])
    all_spans = SpanMasks.concatenate([known, made_spans.select(np.flatnonzero(rest))])
    empty = np.flatnonzero(all_spans.areas == 0)
    if len(empty) and len(made):
        place = np.searchsorted(made["id"], parents["id"][empty])
        place = np.minimum(place, len(made) - 1)
        same = made["id"][place] == parents["id"][empty]
        picks = np.arange(len(parents))
        picks[empty[same]] = len(parents) + place[same]
        all_spans = SpanMasks.concatenate([all_spans, made_spans]).select(picks)
    return parents, all_spans if len(parents) else no_spans(0)


def _add_statistics(parents: np.ndarray, statistics: Table) -> None:
    """Take the mean residual over bands from a table of blends."""
    columns = [name for name in statistics.colnames if name.endswith("_chi2")]
    if "id" not in statistics.colnames or not columns:
        return
    known = np.array([np.asarray(statistics[name], dtype=np.float64) for name in columns])
    finite = np.isfinite(known)
    mean = np.full(known.shape[1], np.nan)
    np.divide(
        np.where(finite, known, 0.0).sum(axis=0), finite.sum(axis=0), out=mean, where=finite.any(axis=0)
    )
    by_id = dict(zip(np.asarray(statistics["id"]).tolist(), mean.tolist()))
    parents["chi2"] = [by_id.get(number, float("nan")) for number in parents["id"].tolist()]
