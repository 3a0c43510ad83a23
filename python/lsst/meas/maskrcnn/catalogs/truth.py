# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Truth of a scene as afw catalogues, and back to arrays.

A scene speaks of array coordinates, a catalogue of the parent frame: a pixel
(y, x) of the scene lies at ``Point2I(x + xy0.x, y + xy0.y)``.
"""

from __future__ import annotations

__all__ = ["TruthArrays", "make_truth_catalog", "make_truth_flux", "read_truth"]

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

import lsst.afw.table as afwTable
import lsst.geom as geom
from lsst.afw.detection import Footprint, HeavyFootprintF, PeakTable
from lsst.afw.geom import SkyWcs, SpanSet

from ..deblend.masks import measure_masks
from ..images.pixels import tight
from ..metrics.match_table import ab_magnitude
from ..scenes.truth import FLAGS
from .deblend_columns import Fields, add_fields
from .footprints import footprints_to_masks, make_footprint, masks_to_footprints

if TYPE_CHECKING:
    from ..scenes.light import Stamp

PREFIX = "truth"
"""First part of the name of every field of a truth catalogue (`str`)."""

_COLUMNS: tuple[tuple[str, str, type, str, str], ...] = (
    ("group", "group", np.int32, "", "Group that the source belongs to: 1 for a cluster's members, else 0"),
    ("mag", "mag", np.float64, "mag", "AB magnitude in the r band"),
    ("redshift", "redshift", np.float64, "", "Redshift; 0 for stars"),
    ("half_light_radius", "halfLightRadius", np.float64, "arcsec", "Half-light radius along the major axis "
     "before the PSF, mean of disc and bulge by flux"),
    ("bulge_fraction", "bulgeFraction", np.float64, "", "Share of the r-band flux in the bulge, from 0 to 1"),
    ("sersic_index", "sersicIndex", np.float64, "", "Sersic index of the brighter component; 0 for stars"),
    ("axis_ratio", "axisRatio", np.float64, "", "Minor over major axis before the PSF, of the brighter "
     "component"),
    ("position_angle", "positionAngle", np.float64, "rad", "Angle of the major axis from +x towards +y"),
    ("area", "area", np.int32, "pixel", "Number of pixels of the truth mask on the image"),
    ("visible", "visibleFraction", np.float32, "", "Share of the truth mask's pixels that is on the image"),
    ("peak_share", "peakShare", np.float32, "", "The source's own share of the light at its brightest pixel"),
    ("blendedness", "blendedness", np.float32, "", "1 - sum(m m) / sum(m B) of the source's own light m and "
     "the light B of all; 0 if alone"),
    ("neighbor_distance", "neighborDistance", np.float64, "arcsec", "Distance to the nearest other source of "
     "the catalogue; NaN if there is none"),
    ("neighbor_flux_ratio", "neighborFluxRatio", np.float64, "", "Flux of the nearest other source over the "
     "source's own, in the band of the truth mask"),
)  # fmt: skip
"""Column of Scene.sources, and the field: last part of its name, type, unit and documentation."""

_FLAG_DOCS = {
    "empty": "Set if no pixel of the truth mask is on the image; the footprint is empty then",
    "small": "Set if the truth mask has fewer pixels on the image than the mask rule asks for",
    "faint": "Set if the signal to noise ratio of the best band is below what the mask rule asks for",
    "masked": "Set if the source's own pixel or more than half of its mask has no data in some band",
    "edge": "Set if the image's edge cuts the truth mask; not counted in truth_flag",
}

_BAND_COLUMNS: tuple[tuple[str, str, type, str, str], ...] = (
    ("flux", "flux", np.float64, "nJy", "Total flux in {band}, light beyond the image included"),
    ("", "mag", np.float64, "mag", "Total AB magnitude in {band}; NaN without a flux above 0"),
    ("snr", "snr", np.float64, "", "Signal to noise ratio in {band} of a matched filter against the sky "
     "noise"),
    ("peak_snr", "peakSnr", np.float64, "", "Brightest pixel in {band} over the sky noise of a pixel"),
)  # fmt: skip
"""The same for what there is once per band."""


class _Scene(Protocol):
    """What is used of a scene."""

    @property
    def bands(self) -> tuple[str, ...]: ...

    @property
    def images(self) -> np.ndarray: ...

    @property
    def sources(self) -> np.ndarray | None: ...

    @property
    def masks(self) -> Sequence[np.ndarray]: ...

    @property
    def origins(self) -> np.ndarray: ...

    @property
    def models(self) -> Sequence[Stamp | None] | None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class TruthArrays:
    """Truth of N sources as arrays (N,), in array coordinates."""

    bands: tuple[str, ...]
    """Bands of the fluxes."""
    ids: np.ndarray
    """Ids of the records."""
    x: np.ndarray
    y: np.ndarray
    """Positions, px; 0 is the centre of the first pixel."""
    is_star: np.ndarray
    masks: list[np.ndarray]
    """Truth masks, bool, each in its own bounding box; (0, 0) where empty."""
    origins: np.ndarray
    """(y0, x0) of each mask's first pixel, int64, (N, 2); (0, 0) where empty."""
    flagged: np.ndarray
    """Any of the flags but ``edge``: not fit to be asked for."""
    flags: Mapping[str, np.ndarray]
    """``empty``, ``small``, ``faint``, ``masked`` and ``edge``."""
    flux: Mapping[str, np.ndarray]
    mag: Mapping[str, np.ndarray]
    snr: Mapping[str, np.ndarray]
    peak_snr: Mapping[str, np.ndarray]
    """By band: flux in nJy, AB magnitude and signal to noise ratios."""
    columns: Mapping[str, np.ndarray]
    """The rest, by the names that ``Scene.sources`` has: ``group``, ``mag``, ``redshift``,
    ``half_light_radius`` (arcsec), ``bulge_fraction``, ``sersic_index``, ``axis_ratio``,
    ``position_angle`` (rad), ``area`` (px), ``visible``, ``peak_share``, ``blendedness``,
    ``neighbor_distance`` (arcsec) and ``neighbor_flux_ratio``.
    """

    def __len__(self) -> int:
        return len(self.ids)


def make_truth_schema(bands: Sequence[str]) -> afwTable.Schema:
    """Make the schema of the truth catalogue: the minimal one and the truth.

    ``slot_Centroid`` points to ``truth_centroid``.

    Parameters
    ----------
    bands : `~collections.abc.Sequence` [`str`]
        Bands with fluxes.
    """
    schema = afwTable.SourceTable.makeMinimalSchema()
    fields: list[tuple[str, Any, str, str]] = [
        ("centroid_x", np.float64, "pixel", "True position, column"),
        ("centroid_y", np.float64, "pixel", "True position, row"),
        ("isStar", "Flag", "", "Set for stars, not set for galaxies"),
        *(column[1:] for column in _COLUMNS),
        ("flag", "Flag", "", "Set if there is too little of the source to ask for it: empty, small, faint or "
         "masked"),
        *((f"flag_{name}", "Flag", "", _FLAG_DOCS[name]) for name in FLAGS),
    ]  # fmt: skip
    add_fields(schema, PREFIX, fields)
    for band in bands:
        add_fields(schema, PREFIX, _band_fields(band))
    schema.getAliasMap().set("slot_Centroid", f"{PREFIX}_centroid")
    return schema


def _band_fields(band: str) -> Fields:
    return tuple(
        (f"{band}_{name}", kind, units, doc.format(band=band)) for _, name, kind, units, doc in _BAND_COLUMNS
    )


def make_truth_catalog(
    scene: _Scene, wcs: SkyWcs, xy0: geom.Point2I, id_factory: afwTable.IdFactory | None = None
) -> afwTable.SourceCatalog:
    """Make the truth catalogue of a scene.

    Parameters
    ----------
    scene : `Scene` or `ImportedScene`
        The scene. What its table of sources does not have becomes NaN (0 for
        integers, not set for flags).
    wcs : `lsst.afw.geom.SkyWcs`
        Takes pixel positions in the parent frame to the sky.
    xy0 : `lsst.geom.Point2I`
        The scene's first pixel in the parent frame.
    id_factory : `lsst.afw.table.IdFactory`, optional
        Numbers the records. By default they keep the ids of the scene.

    Returns
    -------
    catalog : `lsst.afw.table.SourceCatalog`
        One record for each source, in the scene's order. Its footprint is
        the truth mask; its peak is the brightest pixel of the source's own
        light within the mask, in the band of the mask rule. Where that is not
        known, it is the brightest pixel of all light there, or of the image.
        An empty mask makes an empty footprint. Peaks count from 1.

    Raises
    ------
    ValueError
        Raised if the scene has no truth, if its table lacks ``id``, ``x``,
        ``y`` or ``is_star``, or if the numbers of sources and masks differ.
    """
    sources = _sources(scene)
    names = sources.dtype.names or ()
    missing = [name for name in ("id", "x", "y", "is_star") if name not in names]
    if missing:
        raise ValueError(f"The scene's sources lack the columns {missing}; they have {list(names)}.")
    if not len(sources) == len(scene.masks) == len(scene.origins):
        raise ValueError(
            f"Got {len(sources)} sources, {len(scene.masks)} masks and {len(scene.origins)} origins."
        )
    catalog = _new_catalog(make_truth_schema(scene.bands), sources["id"], id_factory)
    if len(sources) == 0:
        return catalog
    x = sources["x"].astype(np.float64) + xy0.getX()
    y = sources["y"].astype(np.float64) + xy0.getY()
    catalog["coord_ra"], catalog["coord_dec"] = wcs.pixelToSkyArray(x, y)
    catalog[f"{PREFIX}_centroid_x"] = x
    catalog[f"{PREFIX}_centroid_y"] = y
    catalog[f"{PREFIX}_isStar"] = sources["is_star"]
    for column, name, kind, *_ in _COLUMNS:
        if column in names:
            catalog[f"{PREFIX}_{name}"] = sources[column].astype(kind)
        elif column == "area":
            catalog[f"{PREFIX}_{name}"] = np.array([np.count_nonzero(mask) for mask in scene.masks], np.int32)
    unfit = np.zeros(len(sources), bool)
    for name in FLAGS:
        if f"flag_{name}" in names:
            catalog[f"{PREFIX}_flag_{name}"] = sources[f"flag_{name}"]
            if name != "edge":
                unfit |= sources[f"flag_{name}"]
    catalog[f"{PREFIX}_flag"] = unfit
    for band in scene.bands:
        for column, name, *_ in _BAND_COLUMNS:
            if f"{column}_{band}" in names:
                catalog[f"{PREFIX}_{band}_{name}"] = sources[f"{column}_{band}"].astype(np.float64)
        if f"flux_{band}" in names:
            catalog[f"{PREFIX}_{band}_mag"] = ab_magnitude(sources[f"flux_{band}"])
    for record, footprint in zip(catalog, _mask_footprints(scene, xy0), strict=True):
        record.setFootprint(footprint)
    _number_peaks(catalog)
    return catalog


def make_truth_flux(
    scene: _Scene, band: str, xy0: geom.Point2I, ids: np.ndarray | None = None
) -> afwTable.SourceCatalog:
    """Make the catalogue of each source's own pixels in one band.

    Parameters
    ----------
    scene : `Scene` or `ImportedScene`
        A scene with models.
    band : `str`
        One of the scene's bands.
    xy0 : `lsst.geom.Point2I`
        The scene's first pixel in the parent frame.
    ids : `numpy.ndarray`, (N,), int, optional
        Ids of the truth catalogue, if they are not those of the scene.

    Returns
    -------
    catalog : `lsst.afw.table.SourceCatalog`
        One record for each source, in the scene's order. Its
        `~lsst.afw.detection.HeavyFootprintF` holds all pixels of the image
        with light of the source, nJy, without noise; mask and variance are
        0. The sum over all sources is the scene's noise-free light. A source
        without light on the image has an empty footprint. Peaks count from 1.

    Raises
    ------
    ValueError
        Raised if the scene has no truth, or no models in this band, or if the
        number of ids is not that of the sources.
    """
    if scene.models is None:
        raise ValueError("The scene has no models of its sources; simulate it with keep_models=True.")
    if band not in _model_bands(scene):
        raise ValueError(
            f"There are no models in the band {band!r}; the scene has them in {list(_model_bands(scene))}."
        )
    sources = _sources(scene)
    ids = sources["id"] if ids is None else np.asarray(ids)
    if not len(sources) == len(scene.models) == len(ids):
        raise ValueError(f"Got {len(sources)} sources, {len(scene.models)} models and {len(ids)} ids.")
    index = scene.bands.index(band)
    bbox = _bounding_box(scene, xy0)
    schema = afwTable.SourceTable.makeMinimalSchema()
    add_fields(schema, PREFIX, _band_fields(band)[:1])
    catalog = _new_catalog(schema, ids)
    if len(sources) == 0:
        return catalog
    if f"flux_{band}" in (sources.dtype.names or ()):
        catalog[f"{PREFIX}_{band}_flux"] = sources[f"flux_{band}"].astype(np.float64)
    for record, stamp in zip(catalog, scene.models, strict=True):
        record.setFootprint(_heavy_footprint(stamp, index, bbox))
    _number_peaks(catalog)
    return catalog


def read_truth(catalog: afwTable.SourceCatalog, bbox: geom.Box2I) -> TruthArrays:
    """Read a truth catalogue into arrays.

    Parameters
    ----------
    catalog : `lsst.afw.table.SourceCatalog`
        A catalogue of `make_truth_catalog`.
    bbox : `lsst.geom.Box2I`
        Box of the exposure; its minimum is the origin of the array
        coordinates. Masks are not cut at it (see
        `~lsst.meas.maskrcnn.deblend.masks.clean_masks`).

    Returns
    -------
    truth : `TruthArrays`
        The truth, in the catalogue's order.

    Raises
    ------
    ValueError
        Raised if the catalogue is not a truth catalogue, or no record has a
        footprint.
    """
    names = catalog.schema.getNames()
    if f"{PREFIX}_isStar" not in names:
        raise ValueError(
            f"The catalogue has no field {PREFIX}_isStar; a truth catalogue is wanted, such as the dataset "
            f"maskRcnn_truth. Its fields are {sorted(names)[:8]} and so on."
        )
    if not catalog.isContiguous():
        catalog = catalog.copy(deep=True)
    start, end = f"{PREFIX}_", "_peakSnr"
    ordered = catalog.schema.getOrderedNames()
    bands = tuple(name[len(start) : -len(end)] for name in ordered if name.endswith(end))

    def column(name: str) -> np.ndarray:
        # A copy, which does not hold on to the whole table.
        return np.array(catalog[f"{PREFIX}_{name}"])

    def by_band(name: str) -> dict[str, np.ndarray]:
        return {band: column(f"{band}_{name}") for band in bands}

    footprints = [record.getFootprint() for record in catalog]
    if footprints and all(footprint is None for footprint in footprints):
        raise ValueError(
            f"None of the {len(catalog)} true sources has a footprint: the truth was read without them, or "
            "its file has lost them. Store it anew."
        )
    masks, origins = footprints_to_masks(footprints, bbox)
    return TruthArrays(
        bands=bands,
        ids=np.array(catalog["id"]),
        x=column("centroid_x") - bbox.getMinX(),
        y=column("centroid_y") - bbox.getMinY(),
        is_star=column("isStar"),
        masks=masks,
        origins=origins,
        flagged=column("flag"),
        flags={name: column(f"flag_{name}") for name in FLAGS},
        flux=by_band("flux"),
        mag=by_band("mag"),
        snr=by_band("snr"),
        peak_snr=by_band("peakSnr"),
        columns={name: column(field) for name, field, *_ in _COLUMNS},
    )


def _new_catalog(
    schema: afwTable.Schema, ids: np.ndarray, id_factory: afwTable.IdFactory | None = None
) -> afwTable.SourceCatalog:
    """Make a catalogue with as many records as there are ids."""
    table = afwTable.SourceTable.make(schema, id_factory or afwTable.IdFactory.makeSimple())
    catalog = afwTable.SourceCatalog(table)
    # resize allocates one block for all records, so that columns are views.
    catalog.resize(len(ids))
    if id_factory is None and len(ids):
        catalog["id"] = np.asarray(ids, np.int64)
    return catalog


def _number_peaks(catalog: afwTable.SourceCatalog) -> None:
    """Number the peaks of a catalogue from 1.

    By default they count on from one catalogue of a process to the next, so
    that the files would depend on which process made which scene.
    """
    number = 0
    for record in catalog:
        for peak in record.getFootprint().getPeaks():
            number += 1
            peak.setId(number)


def _sources(scene: _Scene) -> np.ndarray:
    if scene.sources is None:
        raise ValueError("The scene has no truth: it was imported without.")
    return scene.sources


def _bounding_box(scene: _Scene, xy0: geom.Point2I) -> geom.Box2I:
    height, width = scene.images.shape[1:]
    return geom.Box2I(xy0, geom.Extent2I(width, height))


def _mask_footprints(scene: _Scene, xy0: geom.Point2I) -> list[Footprint]:
    """Make a footprint with a peak from each truth mask."""
    bbox = _bounding_box(scene, xy0)
    band = _mask_band(scene)
    filled = [i for i, mask in enumerate(scene.masks) if mask.any()]
    masks = [scene.masks[i] for i in filled]
    origins = np.asarray(scene.origins, np.int64).reshape(-1, 2)[filled]
    known = scene.models is not None and scene.bands[band] in _model_bands(scene)
    # With models the light is their sum: no better than they are, and slow.
    light = getattr(scene, "light", None) if scene.models is None else None
    detection = (scene.images if light is None else light)[band]
    measurements = measure_masks(masks, origins, detection, valid=np.isfinite(detection))
    if scene.models is not None and known:
        # The arrays are new, and of no use but for the footprints below.
        for k, i in enumerate(filled):
            stamp = scene.models[i]
            if stamp is None:
                continue
            y0, x0 = origins[k].tolist()
            peak = _brightest(stamp.pixels[band], masks[k], y0 - stamp.y0, x0 - stamp.x0)
            if peak is not None:
                y, x, measurements.peak_value[k] = peak
                measurements.peak_y[k] = y + stamp.y0
                measurements.peak_x[k] = x + stamp.x0
    schema = PeakTable.makeMinimalSchema()
    made = dict(zip(filled, masks_to_footprints(masks, origins, measurements, bbox), strict=True))
    return [made[i] if i in made else Footprint(SpanSet(), schema, bbox) for i in range(len(scene.masks))]


def _model_bands(scene: _Scene) -> tuple[str, ...]:
    """Return the bands in which the sources' own light is known."""
    return tuple(getattr(scene, "model_bands", scene.bands))


def _mask_band(scene: _Scene) -> int:
    """Return which band the masks were made in, the first if none is named."""
    rule: Any = getattr(getattr(scene, "config", None), "mask_rule", None)
    name = "" if rule is None else rule.band
    return scene.bands.index(name) if name else 0


def _brightest(plane: np.ndarray, mask: np.ndarray, y0: int, x0: int) -> tuple[int, int, float] | None:
    """Find the brightest pixel of a plane within a mask that starts at (y0, x0)."""
    top, left = max(y0, 0), max(x0, 0)
    part = plane[top : max(y0 + mask.shape[0], 0), left : max(x0 + mask.shape[1], 0)]
    inside = mask[top - y0 :, left - x0 :][: part.shape[0], : part.shape[1]]
    if not inside.any():
        return None
    values = np.where(inside, part, -np.inf)
    y, x = divmod(int(values.argmax()), values.shape[1])
    return top + y, left + x, float(values[y, x])


def _heavy_footprint(stamp: Stamp | None, band: int, bbox: geom.Box2I) -> HeavyFootprintF:
    """Make a footprint of the pixels of a stamp that have light and are on the image."""
    values = np.zeros(0, np.float32)
    footprint = Footprint(SpanSet(), PeakTable.makeMinimalSchema(), bbox)
    if stamp is not None:
        top, left = max(-stamp.y0, 0), max(-stamp.x0, 0)
        plane = stamp.pixels[band][
            top : max(bbox.getHeight() - stamp.y0, 0), left : max(bbox.getWidth() - stamp.x0, 0)
        ]
        mask, dy, dx = tight(plane != 0)
        if mask.size:
            plane = plane[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
            y0, x0 = stamp.y0 + top + dy, stamp.x0 + left + dx
            footprint = make_footprint(mask, y0, x0, bbox)
            y, x = divmod(int(plane.argmax()), plane.shape[1])
            peak = float(x0 + x + bbox.getMinX()), float(y0 + y + bbox.getMinY())
            footprint.addPeak(*peak, float(plane[y, x]))
            # Spans are in row order, and so are the pixels that a mask picks.
            values = plane[mask]
    heavy = HeavyFootprintF(footprint)
    # afw does not set the values of a footprint without an image.
    heavy.getImageArray()[:] = values
    heavy.getMaskArray()[:] = 0
    heavy.getVarianceArray()[:] = 0.0
    return heavy
