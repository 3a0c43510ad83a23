# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Any catalogue of sources with footprints as arrays.

Positions are in pixels of the parent frame, as the catalogue has them, so that
catalogues of one patch fit each other without its box.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

import lsst.afw.table as afwTable
from lsst.afw.detection import Footprint, HeavyFootprintF
from lsst.afw.image import ExposureF, PhotoCalib

from ..images.classes import GALAXY, STAR, UNKNOWN
from ..images.settings import settings
from ..metrics.spans import SpanMasks
from .footprints import footprints_to_masks


@settings
class DetectionFields:
    """Names of the fields of a catalogue.

    A field that is `None` is looked for under the names that this package and
    the Science Pipelines use; one that is given must be there.
    """

    star: Annotated[
        str | None,
        Field(description="Flag that is set for stars; None takes maskrcnn_star where it is there."),
    ] = None
    extendedness: Annotated[
        str | None,
        Field(
            description="Number that is below 0.5 for stars, used where there is no flag; None takes "
            "base_ClassificationExtendedness_value where it is there. Without either, there are no classes."
        ),
    ] = None
    score: Annotated[
        str | None, Field(description="Score of a detection; None takes maskrcnn_score, or else 1 for all.")
    ] = None
    p_star: Annotated[
        str | None,
        Field(description="Probability of being a star; None takes maskrcnn_pStar where it is there."),
    ] = None
    centroid: Annotated[
        str | None,
        Field(
            description="Name of the position, without _x and _y; None takes the slot Centroid, "
            "deblend_peak_center, or the first peak of the footprint."
        ),
    ] = None
    flux: Annotated[
        dict[str, str],
        Field(
            description="Field of the flux for a band; in nJy, or else instrumental with the PhotoCalib of "
            "the exposure."
        ),
    ] = dataclasses.field(default_factory=dict)
    heavy_band: Annotated[
        str | None,
        Field(
            description="Band of which heavy footprints hold the pixels, whose sum is the flux; None if none."
        ),
    ] = None


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionArrays:
    """N sources as arrays (N,), in pixels of the parent frame."""

    ids: np.ndarray
    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray
    """`STAR`, `GALAXY`, or `UNKNOWN` where the catalogue does not say, int64."""
    score: np.ndarray
    """Scores; 1 where the catalogue has none."""
    p_star: np.ndarray
    p_blend: np.ndarray
    """Probabilities of being a star and a blend; NaN where the catalogue has none."""
    spans: SpanMasks
    flux: Mapping[str, np.ndarray]
    """Fluxes (nJy) by band; empty where they are not known."""
    footprints: list[Footprint]
    has_class: bool
    """Whether the catalogue separates stars from galaxies."""
    n_parents: int = 0
    n_without_footprint: int = 0
    n_without_score: int = 0
    """Records left out since they have children, no pixel, or a score that is NaN."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_star(self) -> np.ndarray:
        """Whether each was classed as star, bool, (N,)."""
        return self.labels == STAR

    @property
    def class_score(self) -> np.ndarray:
        """Score times the probability of the class, float64, (N,).

        The score alone where that is not known.
        """
        share = np.where(self.is_star, self.p_star, 1.0 - self.p_star)
        return np.where(np.isfinite(share), self.score * share, self.score)


def read_detections(
    catalog: afwTable.SourceCatalog,
    fields: DetectionFields | None = None,
    *,
    photo_calibs: Mapping[str, PhotoCalib] | None = None,
) -> DetectionArrays:
    """Read a catalogue of sources with footprints, in its order; of a deblender's only what has no children.

    ``photo_calibs``, by band, calibrate instrumental fluxes. A ValueError is raised if a field that was asked
    for is missing, an instrumental flux lacks its calibration, or no record has a footprint: then the
    catalogue was read or written without.
    """
    fields = fields or DetectionFields()
    names = catalog.schema.getNames()
    if len(catalog) and not catalog.isContiguous():
        catalog = catalog.copy(deep=True)
    leaf = np.ones(len(catalog), dtype=bool)
    if "deblend_nChild" in names and len(catalog):
        leaf = np.asarray(catalog["deblend_nChild"]) == 0
    footprints = [record.getFootprint() for record in catalog]
    filled = np.array([one is not None and one.getArea() > 0 for one in footprints], dtype=bool)
    if len(catalog) and all(one is None for one in footprints):
        raise ValueError(
            f"None of the {len(catalog)} records has a footprint; masks are compared, so the catalogue must "
            "be stored with its footprints (SourceCatalog, not a table of measurements)."
        )
    score = _optional(catalog, names, fields.score, "maskrcnn_score", "score", 1.0)
    known = ~np.isnan(score)
    keep = np.flatnonzero(leaf & filled & known)
    chosen = [footprints[i] for i in keep.tolist()]
    masks, origins = footprints_to_masks(chosen)
    labels, has_class = catalog_labels(catalog, fields)
    x, y = catalog_positions(catalog, fields, footprints)
    flux = {
        band: _calibrated(catalog, names, band, name, photo_calibs or {})[keep]
        for band, name in fields.flux.items()
    }
    if fields.heavy_band is not None:
        calib = (photo_calibs or {}).get(fields.heavy_band)
        flux[fields.heavy_band] = heavy_flux(chosen) * (1.0 if calib is None else calib.getCalibrationMean())
    return DetectionArrays(
        ids=np.array(catalog["id"])[keep] if len(catalog) else np.zeros(0, dtype=np.int64),
        x=x[keep],
        y=y[keep],
        labels=labels[keep],
        score=score[keep],
        p_star=_optional(catalog, names, fields.p_star, "maskrcnn_pStar", "p_star", np.nan)[keep],
        p_blend=_optional(catalog, names, None, "maskrcnn_pBlend", "p_blend", np.nan)[keep],
        spans=SpanMasks.from_masks(masks, origins),
        flux=flux,
        footprints=chosen,
        has_class=has_class,
        n_parents=int(np.count_nonzero(~leaf)),
        n_without_footprint=int(np.count_nonzero(leaf & ~filled)),
        n_without_score=int(np.count_nonzero(leaf & filled & ~known)),
    )


def no_detections() -> DetectionArrays:
    """Make the arrays of a catalogue without sources; with classes, since none is missing."""
    nothing, number = np.zeros(0), np.zeros(0, dtype=np.int64)
    spans = SpanMasks.from_masks([], np.zeros((0, 2), dtype=np.int64))
    return DetectionArrays(number, nothing, nothing, number, nothing, nothing, nothing, spans, {}, [], True)


def catalog_pixel_scale(catalog: afwTable.SourceCatalog, x: np.ndarray, y: np.ndarray) -> float:
    """Estimate the pixel scale (arcsec) from the positions of records in pixels, (N,), and on the sky.

    It is the median over pairs of records; NaN without two of them that are 10 px apart.
    """
    if len(catalog) < 2:
        return float("nan")
    ra, dec = np.array(catalog["coord_ra"]), np.array(catalog["coord_dec"])
    half = len(ra) // 2
    first, second = np.arange(half), np.arange(half) + len(ra) - half
    pixels = np.hypot(x[first] - x[second], y[first] - y[second])
    sine = (
        np.sin(0.5 * (dec[first] - dec[second])) ** 2
        + np.cos(dec[first]) * np.cos(dec[second]) * np.sin(0.5 * (ra[first] - ra[second])) ** 2
    )
    arcsec = np.degrees(2.0 * np.arcsin(np.sqrt(sine))) * 3600.0
    far = np.isfinite(arcsec) & (pixels > 10.0)
    return float(np.median(arcsec[far] / pixels[far])) if far.any() else float("nan")


def _need(names: Any, name: str, what: str) -> None:
    if name not in names:
        raise ValueError(
            f"The catalogue has no field {name!r} for the {what}; it has {sorted(names)[:12]} and so on. "
            "Name a field that it has, or none."
        )


def _choose(names: Any, given: str | None, usual: str, what: str) -> str | None:
    """Return the field that is given, which must be there, or else the usual one if it is."""
    if given is not None:
        _need(names, given, what)
        return given
    return usual if usual in names else None


def _optional(
    catalog: afwTable.SourceCatalog, names: Any, given: str | None, usual: str, what: str, default: float
) -> np.ndarray:
    name = _choose(names, given, usual, what)
    if name is None or not len(catalog):
        return np.full(len(catalog), default)
    return np.array(catalog[name], dtype=np.float64)


def catalog_labels(catalog: afwTable.SourceCatalog, fields: DetectionFields) -> tuple[np.ndarray, bool]:
    """Read the classes of a catalogue, and say whether it has any.

    They are int64, (N,): `STAR`, `GALAXY`, or `UNKNOWN` where the catalogue does not say.
    """
    names = catalog.schema.getNames()
    flag = None
    if fields.star is not None or fields.extendedness is None:
        flag = _choose(names, fields.star, "maskrcnn_star", "stars")
    extendedness = "base_ClassificationExtendedness_value"
    name = flag or _choose(names, fields.extendedness, extendedness, "extendedness")
    if name is None:
        return np.full(len(catalog), UNKNOWN, dtype=np.int64), False
    if not len(catalog):
        return np.zeros(0, dtype=np.int64), True
    values = np.array(catalog[name])
    # Where the extendedness could not be measured (NaN), the source is not known to be a star.
    star = values.astype(bool) if flag else values < 0.5
    return np.where(star, STAR, GALAXY).astype(np.int64), True


def catalog_positions(
    catalog: afwTable.SourceCatalog, fields: DetectionFields, footprints: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Read the positions x and y, (N,), px of the parent frame.

    A source without any has that of its footprint.
    """
    names = catalog.schema.getNames()
    if not len(catalog):
        return np.zeros(0), np.zeros(0)
    prefix = fields.centroid
    if prefix is not None:
        _need(names, f"{prefix}_x", "position")
    elif catalog.getTable().getCentroidSlot().isValid():
        return np.array(catalog.getX(), dtype=np.float64), np.array(catalog.getY(), dtype=np.float64)
    elif "deblend_peak_center_x" in names:
        prefix = "deblend_peak_center"
    if prefix is not None:
        x = np.array(catalog[f"{prefix}_x"], dtype=np.float64)
        y = np.array(catalog[f"{prefix}_y"], dtype=np.float64)
    else:
        x, y = np.full(len(catalog), np.nan), np.full(len(catalog), np.nan)
    # Isolated sources of a deblender's catalogue were not given what their neighbours were.
    for i, footprint in enumerate(footprints):
        lost = not np.isfinite(x[i] + y[i]) or (x[i] == 0 and y[i] == 0)
        if (prefix is None or lost) and footprint is not None:
            if len(footprint.getPeaks()):
                peak = footprint.getPeaks()[0]
                x[i], y[i] = peak.getFx(), peak.getFy()
            elif footprint.getArea():
                point = footprint.getCentroid()
                x[i], y[i] = point.getX(), point.getY()
    return x, y


def _calibrated(
    catalog: afwTable.SourceCatalog, names: Any, band: str, name: str, photo_calibs: Mapping[str, PhotoCalib]
) -> np.ndarray:
    _need(names, name, f"flux in band {band}")
    values = np.array(catalog[name], dtype=np.float64) if len(catalog) else np.zeros(0)
    if catalog.schema.find(name).field.getUnits() == "nJy":
        return values
    if band not in photo_calibs:
        raise ValueError(
            f"The field {name!r} is not in nJy; its PhotoCalib comes with the exposure of band {band!r}, "
            f"and there are exposures of {sorted(photo_calibs)}."
        )
    return values * photo_calibs[band].getCalibrationMean()


def heavy_flux(footprints: Sequence[Any]) -> np.ndarray:
    """Sum the pixels of HeavyFootprints, in their unit; NaN for other footprints."""
    sums = np.full(len(footprints), np.nan)
    for i, footprint in enumerate(footprints):
        if isinstance(footprint, HeavyFootprintF):
            sums[i] = float(np.sum(footprint.getImageArray(), dtype=np.float64))
    return sums


def photo_calibs(exposures: Mapping[str, ExposureF]) -> dict[str, PhotoCalib]:
    """Take the calibrations of exposures by band, of those that have one."""
    calibs = {band: exposure.getPhotoCalib() for band, exposure in exposures.items()}
    return {band: calib for band, calib in calibs.items() if calib is not None}
