# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The catalogue of one patch compared with its truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.geom import Box2I, Extent2I, Point2I

from ..images.classes import GALAXY, STAR
from ..images.settings import settings
from ..metrics.blends import (
    BLEND_DTYPE,
    BlendGroups,
    blended_truths,
    classify_groups,
    friends_of_friends,
    group_boxes,
    group_quality,
    overlap_links,
    source_outcomes,
)
from ..metrics.evaluation_metrics import PatchSummary
from ..metrics.match_table import ab_magnitude, make_match_table
from ..metrics.matching import IOU_THRESHOLDS, ImagePairs, match, psf_area
from ..metrics.spans import SpanMasks, mask_iou
from ..scenes.truth import FLAGS
from .detections import (
    DetectionArrays,
    DetectionFields,
    catalog_pixel_scale,
    heavy_flux,
    no_detections,
    photo_calibs,
    read_detections,
)
from .exposures import flagged_pixels, psf_fwhm
from .truth import TruthArrays, read_truth

BAD_PLANES = ("BAD", "NO_DATA")
"""Mask planes of pixels in which a detection without truth is not false."""

MAX_BAD_FRACTION = 0.5
"""Detections with more of their mask on such pixels are ignored."""

# Bands of the Rubin Observatory from blue to red.
_KNOWN_BANDS = "ugrizy"


class MismatchedPatchError(ValueError):
    """Two inputs of one patch do not fit each other."""


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationPatch:
    """What is known of one patch of a sky map."""

    tract: int
    patch: int
    truth: SourceCatalog | None
    """Truth catalogue; `None` if there is none."""
    catalog: SourceCatalog | None
    """Catalogue to evaluate; `None` if there is none."""
    band_catalogs: Mapping[str, SourceCatalog] = dataclasses.field(default_factory=dict)
    """Catalogues of the bands, with HeavyFootprints, of the records of ``catalog``."""
    exposures: Mapping[str, ExposureF] = dataclasses.field(default_factory=dict)
    seconds: float = float("nan")
    """Time that the detection took; NaN where it is not known."""
    megapixels: float = float("nan")
    """Its pixels, in millions; NaN where the number is not known."""
    model: str = ""
    """Name of the network; empty where it is not known."""

    @property
    def name(self) -> str:
        """Name of the patch in errors (`str`)."""
        return f"patch {self.patch} of tract {self.tract}"


@settings
class EvaluationSettings:
    """How catalogues are compared with their truth."""

    band: Annotated[
        str,
        Field(description="Reference band: magnitudes, signal to noise ratios and fluxes are those in it."),
    ] = "r"
    bands: Annotated[
        tuple[str, ...] | None,
        Field(
            description="Bands of which fluxes are compared, from blue to red; None takes all of the truth."
        ),
    ] = None
    injected: Annotated[
        bool,
        Field(
            description="Is the truth the catalogues of source_injection? The sky has sources of its own "
            "then: detections that match no truth are neither hit nor false, and there is no purity."
        ),
    ] = False
    ignore_flags: Annotated[
        tuple[str, ...],
        Field(description="Flags of the truth (truth_flag_...) that make a source neither hit nor miss."),
    ] = ("empty", "small", "faint", "masked")
    min_snr: Annotated[
        float,
        Field(
            ge=0.0,
            description="Truths with a lower signal to noise ratio in every band are neither hit nor miss.",
        ),
    ] = 0.0
    min_peak_snr: Annotated[
        float,
        Field(
            ge=0.0,
            description="Truths of which the brightest pixel has a lower signal to noise ratio in every band "
            "are neither hit nor miss.",
        ),
    ] = 0.0
    match_iou: Annotated[
        float,
        Field(gt=0.0, le=1.0, description="Smallest intersection over union of a match of the match table."),
    ] = 0.5
    iou_thresholds: Annotated[
        tuple[float, ...],
        Field(description="Smallest intersection over union of a match for average precision, ascending."),
    ] = IOU_THRESHOLDS
    score_threshold: Annotated[
        float | None,
        Field(
            ge=0.0,
            description="Lowest score of the detections that completeness, purity, classes, blends and "
            "residuals are of; None takes all. Average precision and calibration are of all in any case.",
        ),
    ] = None
    n_samples: Annotated[
        int, Field(ge=2, description="Resamplings of the patches, from which errors come.")
    ] = 1000
    seed: Annotated[int, Field(ge=0, description="Random seed of the resamplings.")] = 1
    fields: Annotated[DetectionFields, Field(description="Names of the fields of the catalogue.")] = (
        dataclasses.field(default_factory=DetectionFields)
    )

    def __post_init__(self) -> None:
        unknown = sorted(set(self.ignore_flags) - set(FLAGS))
        if unknown:
            raise ValueError(f"ignore_flags has {unknown}, wanted some of {list(FLAGS)}")
        steps = list(self.iou_thresholds)
        if not steps or sorted(set(steps)) != steps or not (0.0 < steps[0] and steps[-1] <= 1.0):
            raise ValueError(f"iou_thresholds are {steps}, wanted ascending numbers above 0 and up to 1")


@dataclasses.dataclass(frozen=True, eq=False)
class PatchResult:
    """What the figures of all patches need of one; it holds no masks."""

    summary: PatchSummary
    pairs: ImagePairs
    """From which average precision is computed."""
    table: np.ndarray
    """Match table."""
    row_group: np.ndarray
    """Number of the group of the truth, or else of the detection, of each row of the match table; -1 for
    none.
    """
    groups: np.ndarray
    """Groups of truths and detections, of `~lsst.meas.maskrcnn.metrics.blends.BLEND_DTYPE`."""
    has_class: bool
    """Whether the catalogue separates stars from galaxies."""
    psf_fwhm: float
    """Width of the PSF (px); NaN where it is not known."""
    pixel_scale: float
    """Side of a pixel (arcsec); NaN where it is not known."""
    bands: tuple[str, ...]
    """Bands of the fluxes of the table."""


@dataclasses.dataclass(frozen=True, eq=False)
class PatchComparison:
    """A patch compared with its truth."""

    result: PatchResult
    members: BlendGroups
    """Groups of truths and detections."""
    boxes: np.ndarray
    """Box of each group [x0, y0, x1, y1], half open, in the parent frame."""
    truth: TruthArrays
    detections: DetectionArrays
    """The sources, in the parent frame."""


def compare_patch(patch: EvaluationPatch, settings: EvaluationSettings, image: int = 0) -> PatchComparison:
    """Compare a patch, of number ``image`` in the match table, with its truth.

    Without a catalogue nothing was found. The result keeps masks but no images. A `MismatchedPatchError` is
    raised if catalogue, truth and exposures are not of one patch, the truth lacks a band, or a catalogue
    cannot be read.
    """
    truth, detections, scale = _read(patch, settings)
    bands = _bands(patch, truth, settings)
    truth_spans = SpanMasks.from_masks(truth.masks, truth.origins)
    _check_frame(patch, truth_spans, detections.spans)
    ignored = _ignored(truth, settings)
    exposure = patch.exposures.get(settings.band)
    fwhm = float("nan") if exposure is None else float(psf_fwhm({settings.band: exposure})[0])
    pairs = ImagePairs.from_spans(
        detections.spans,
        detections.score,
        detections.labels,
        truth_spans,
        np.where(truth.is_star, STAR, GALAXY),
        name=f"{patch.tract},{patch.patch}",
        class_scores=detections.class_score,
        ignored=_spared(patch, detections.spans, settings),
        truth_ignored=ignored,
        pixel_area=1.0 / psf_area(fwhm) if np.isfinite(fwhm) else 1.0,
    )
    matches = match(pairs, (settings.match_iou,))
    matched, not_counted = matches.truth[0], matches.ignored[0]
    # Matching goes by descending score, so that detections below the threshold take no truth from others.
    no_group = not_counted | (
        detections.score < (-np.inf if settings.score_threshold is None else settings.score_threshold)
    )
    groups = _blend_groups(pairs, truth_spans, detections.spans, ignored, no_group)
    # What has found an ignored truth is in no group, and so matches none there.
    counted = np.where(no_group, -1, matched)
    truth_outcome, detection_outcome = source_outcomes(groups, counted)
    iou = _matched_iou(pairs, matched)
    table = make_match_table(
        _truth_columns(truth, ignored, settings.band, bands, fwhm),
        _detection_columns(patch, detections, not_counted, settings, bands),
        matched,
        iou=iou,
        image=image,
        pixel_scale=scale if np.isfinite(scale) else None,
        bands=bands,
        truth_outcome=truth_outcome,
        detection_outcome=detection_outcome,
    )
    # Below the lowest threshold nothing matches, and crowded fields have many such pairs.
    lowest = min(*settings.iou_thresholds, settings.match_iou)
    result = PatchResult(
        summary=_summary(patch, ignored, detections),
        pairs=dataclasses.replace(pairs, pairs=pairs.pairs.select(pairs.pairs.iou >= lowest)),
        table=table,
        # Its rows are the truths, then the detections without one.
        row_group=np.concatenate([groups.truth_group, groups.detection_group[matched < 0]]),
        groups=_group_rows(groups, counted, iou, image),
        has_class=detections.has_class,
        psf_fwhm=fwhm,
        pixel_scale=scale,
        bands=bands,
    )
    boxes = group_boxes(groups, truth_spans.boxes, detections.spans.boxes)
    return PatchComparison(result, groups, boxes, truth, detections)


def _matched_iou(pairs: ImagePairs, matched: np.ndarray) -> np.ndarray:
    iou = np.full(len(matched), np.nan)
    of_match = matched[pairs.pairs.first] == pairs.pairs.second
    iou[pairs.pairs.first[of_match]] = pairs.pairs.iou[of_match]
    return iou


def _group_rows(groups: BlendGroups, match: np.ndarray, iou: np.ndarray, image: int) -> np.ndarray:
    rows = np.zeros(groups.n_groups, dtype=BLEND_DTYPE)
    rows["image"], rows["kind"] = image, classify_groups(groups, match)
    rows["quality"] = group_quality(groups, match, np.where(match >= 0, iou, 0.0))
    rows["n_truth"], rows["n_detection"] = groups.n_truth, groups.n_detection
    return rows


def _read(patch: EvaluationPatch, settings: EvaluationSettings) -> tuple[TruthArrays, DetectionArrays, float]:
    if patch.truth is None:
        raise MismatchedPatchError(f"{patch.name} has no truth catalogue to be compared with; give one.")
    try:
        truth = read_truth(patch.truth, Box2I(Point2I(0, 0), Extent2I(1, 1)))
        detections = no_detections()
        if patch.catalog is not None:
            calibs = photo_calibs(patch.exposures)
            detections = read_detections(patch.catalog, settings.fields, photo_calibs=calibs)
    except ValueError as error:
        raise MismatchedPatchError(f"{patch.name}: {error}") from error
    return truth, detections, catalog_pixel_scale(patch.truth, truth.x, truth.y)


def _summary(patch: EvaluationPatch, ignored: np.ndarray, detections: DetectionArrays) -> PatchSummary:
    megapixels = patch.megapixels
    if not np.isfinite(megapixels) and patch.exposures:
        megapixels = next(iter(patch.exposures.values())).getBBox().getArea() / 1e6
    return PatchSummary(
        tract=patch.tract,
        patch=patch.patch,
        n_truth=int(np.count_nonzero(~ignored)),
        n_truth_ignored=int(np.count_nonzero(ignored)),
        n_detections=len(detections),
        n_skipped=0 if patch.catalog is None else len(patch.catalog) - len(detections),
        seconds=patch.seconds,
        megapixels=megapixels,
    )


def _blend_groups(
    pairs: ImagePairs,
    truth: SpanMasks,
    found: SpanMasks,
    ignored_truth: np.ndarray,
    ignored_detection: np.ndarray,
) -> BlendGroups:
    """Group by overlap; truths are linked too, so that a blend does not depend on what was found."""
    overlap = pairs.pairs
    within = mask_iou(truth, truth)
    within = within.select(within.first < within.second)
    return friends_of_friends(
        len(truth),
        len(found),
        overlap_links(overlap.second, overlap.first, overlap.iou, truth.areas, found.areas),
        truth_links=overlap_links(within.first, within.second, within.iou, truth.areas, truth.areas),
        ignored_truth=ignored_truth,
        ignored_detection=ignored_detection,
    )


def _bands(patch: EvaluationPatch, truth: TruthArrays, settings: EvaluationSettings) -> tuple[str, ...]:
    wanted = truth.bands if settings.bands is None else settings.bands
    if settings.bands is None and all(len(band) == 1 and band in _KNOWN_BANDS for band in wanted):
        wanted = tuple(sorted(wanted, key=_KNOWN_BANDS.index))
    missing = sorted({settings.band, *wanted} - set(truth.bands))
    if missing and len(truth.bands):
        raise MismatchedPatchError(
            f"{patch.name}: the truth has no fluxes in {missing}; it has the bands {list(truth.bands)}. "
            "Choose others with config.band and config.bands."
        )
    return tuple(band for band in wanted if band in truth.bands)


def _ignored(truth: TruthArrays, settings: EvaluationSettings) -> np.ndarray:
    """Find the truths that are neither hits nor misses."""
    ignored = np.zeros(len(truth), dtype=bool)
    for flag in settings.ignore_flags:
        ignored |= truth.flags[flag]
    for ratios, least in ((truth.snr, settings.min_snr), (truth.peak_snr, settings.min_peak_snr)):
        if ratios and least > 0:
            # A comparison with NaN is false.
            ignored |= np.all([ratio < least for ratio in ratios.values()], axis=0)
    return ignored


def _check_frame(patch: EvaluationPatch, truth: SpanMasks, found: SpanMasks) -> None:
    """Refuse catalogues that are not of one pixel grid."""
    hulls = {what: _hull(spans) for what, spans in (("truth", truth), ("catalogue", found)) if len(spans.y)}
    if len(hulls) == 2:
        first, second = hulls.values()
        low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
        if (high <= low).any():
            raise MismatchedPatchError(
                f"{patch.name}: the truth fills [x0, y0, x1, y1] = {first} and the catalogue {second}, which "
                "do not touch; both must be on the pixel grid of the same patch."
            )
    boxes = {band: exposure.getBBox() for band, exposure in patch.exposures.items()}
    for band, box in boxes.items():
        if box != next(iter(boxes.values())):
            raise MismatchedPatchError(
                f"{patch.name}: the exposures have different boxes, {boxes}; give those of one patch."
            )
        corner, end = (box.getMinX(), box.getMinY()), (box.getMaxX() + 1, box.getMaxY() + 1)
        for what, hull in hulls.items():
            if np.less(hull[:2], corner).any() or np.greater(hull[2:], end).any():
                raise MismatchedPatchError(
                    f"{patch.name}: footprints of the {what} fill [x0, y0, x1, y1] = {hull}, beyond the "
                    f"exposure in {band}, {box}; both must be of the same patch."
                )


def _hull(spans: SpanMasks) -> tuple[int, int, int, int]:
    return int(spans.x0.min()), int(spans.y.min()), int(spans.x1.max()), int(spans.y.max()) + 1


def _spared(patch: EvaluationPatch, spans: SpanMasks, settings: EvaluationSettings) -> np.ndarray | None:
    """Find the detections that are not false if they have no truth."""
    if settings.injected:
        return np.ones(len(spans), bool)
    exposures = list(patch.exposures.values())
    if not exposures:
        return None
    bad = np.any([flagged_pixels(exposure, BAD_PLANES) for exposure in exposures], axis=0)
    if not bad.any():
        return None
    origin = exposures[0].getXY0()
    return spans.share_in(bad, (origin.getY(), origin.getX())) > MAX_BAD_FRACTION


def _truth_columns(
    truth: TruthArrays, ignored: np.ndarray, band: str, bands: tuple[str, ...], fwhm: float
) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "id": truth.ids,
        "x": truth.x,
        "y": truth.y,
        "is_star": truth.is_star,
        "ignored": ignored,
        "blendedness": truth.columns["blendedness"],
        "neighbor_distance": truth.columns["neighbor_distance"],
    }
    if band in truth.bands:
        columns |= {"mag": truth.mag[band], "snr": truth.snr[band]}
        if np.isfinite(fwhm):
            flux_snr = truth.flux[band], truth.snr[band]
            columns["blended"] = blended_truths(truth.x, truth.y, *flux_snr, fwhm).astype(float)
    flux = {name: truth.flux[name] for name in {band, *bands} if name in truth.bands}
    columns |= {f"flux_{name}": flux[name] for name in bands}
    if band in flux:
        columns["flux"] = flux[band]
    return columns


def _detection_columns(
    patch: EvaluationPatch,
    found: DetectionArrays,
    ignored: np.ndarray,
    settings: EvaluationSettings,
    bands: tuple[str, ...],
) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "id": found.ids,
        "x": found.x,
        "y": found.y,
        "is_star": found.is_star,
        "score": found.score,
        "p_star": found.p_star,
        "p_blend": found.p_blend,
        "ignored": ignored,
    }
    sums = {}
    for band, exposure in patch.exposures.items():
        origin = exposure.getXY0()
        inside = found.spans.sum_over(exposure.image.array, (origin.getY(), origin.getX()))
        sums[band] = inside * calibration(exposure)
    flux, models = dict(found.flux), {}
    heavy = settings.fields.heavy_band
    if heavy in sums:
        # Isolated sources of a deblender's catalogue are not heavy: all of the image there is theirs.
        flux[heavy] = np.where(np.isfinite(flux[heavy]), flux[heavy], sums[heavy])
    for band, catalog in patch.band_catalogs.items():
        flux[band], models[band] = _band_fluxes(patch, found, catalog, band)
    for kind, by_band in (("flux", flux), ("model", models)):
        columns |= {f"{kind}_{band}": by_band[band] for band in bands if band in by_band}
        if settings.band in by_band:
            columns[kind] = by_band[settings.band]
    if settings.band in sums:
        # For bins of magnitude a sum within the mask will do where no flux was measured.
        measured = flux.get(settings.band, np.full(len(found), np.nan))
        columns["mag"] = ab_magnitude(np.where(np.isfinite(measured), measured, sums[settings.band]))
    return columns


def _band_fluxes(
    patch: EvaluationPatch, found: DetectionArrays, catalog: SourceCatalog, band: str
) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes (nJy) of the HeavyFootprints and of the models of a band, NaN where there are none."""
    rows = {record.getId(): record for record in catalog}
    missing = set(found.ids.tolist()) - set(rows)
    if missing:
        raise MismatchedPatchError(
            f"{patch.name}: {len(missing)} of {len(found)} sources are not in the catalogue of band {band}; "
            "give catalogues of one run."
        )
    records = [rows[one] for one in found.ids.tolist()]
    scale = calibration(patch.exposures[band]) if band in patch.exposures else float("nan")
    heavy = heavy_flux([record.getFootprint() for record in records]) * scale
    name = "maskrcnn_profile_instFlux"
    models = np.full(len(records), np.nan)
    if name in catalog.schema:
        models = np.array([record[name] for record in records], dtype=np.float64) * scale
    return heavy, models


def calibration(exposure: ExposureF) -> float:
    """Return the mean calibration of an exposure, the factor from counts to nJy; NaN without a PhotoCalib."""
    calib = exposure.getPhotoCalib()
    return float("nan") if calib is None else float(calib.getCalibrationMean())
