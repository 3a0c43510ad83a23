# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The catalogue of one patch against its truth."""

from __future__ import annotations

__all__ = [
    "CompareSettings",
    "EvaluationPatch",
    "MismatchedPatchError",
    "PatchComparison",
    "calibration",
    "compare_patch",
]

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.geom import Box2I, Extent2I, Point2D, Point2I

from ..images.units import FWHM_PER_SIGMA
from ..metrics.blends import (
    BlendGroups,
    classify_groups,
    friends_of_friends,
    group_quality,
    overlap_links,
    source_outcomes,
)
from ..metrics.evaluation_metrics import PatchSummary
from ..metrics.match_table import make_match_table
from ..metrics.matching import ImagePairs, Method, match, psf_area
from ..metrics.spans import SpanMasks, mask_iou
from ..metrics.summary import BLEND_DTYPE
from ..report.gallery import group_boxes
from .detections import (
    DetectionArrays,
    DetectionFields,
    catalog_pixel_scale,
    photo_calibs,
    read_detections,
    sum_in_spans,
)
from .mask_planes import defined_plane_bits
from .truth import TruthArrays, read_truth


class MismatchedPatchError(ValueError):
    """Two inputs of one patch do not fit each other."""


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationPatch:
    """What is known of one patch.

    Parameters
    ----------
    tract, patch : `int`
        Where it is in the sky map.
    truth : `lsst.afw.table.SourceCatalog` or `None`
        Truth catalogue; `None` if there is none.
    catalog : `lsst.afw.table.SourceCatalog` or `None`
        Catalogue to judge; `None` if there is none.
    truth_flux : `~collections.abc.Mapping` [`str`, \
            `lsst.afw.table.SourceCatalog`]
        Catalogues of each source's own pixels by band.
    exposures : `~collections.abc.Mapping` [`str`, `lsst.afw.image.ExposureF`]
        Exposures by band.
    seconds : `float`
        Time that the detection took; NaN where it is not known.
    megapixels : `float`
        Pixels that it saw, in millions; NaN where they are not known.
    model : `str`
        Name of the network; empty where it is not known.
    """

    tract: int
    patch: int
    truth: SourceCatalog | None
    catalog: SourceCatalog | None
    truth_flux: Mapping[str, SourceCatalog] = dataclasses.field(default_factory=dict)
    exposures: Mapping[str, ExposureF] = dataclasses.field(default_factory=dict)
    seconds: float = float("nan")
    megapixels: float = float("nan")
    model: str = ""

    @property
    def name(self) -> str:
        """Name of the patch in errors (`str`)."""
        return f"patch {self.patch} of tract {self.tract}"


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """How a patch is compared.

    Parameters
    ----------
    fields : `DetectionFields`
        Fields of the catalogue.
    band : `str`
        Reference band, for magnitudes, signal to noise ratios and fluxes.
    bands : `tuple` [`str`] or `None`
        Bands of which fluxes are kept, from blue to red; `None` for all of
        the truth, as they are ordered there.
    ignore_flags : `tuple` [`str`]
        Truths with any of these flags are neither hits nor misses.
    min_snr, min_peak_snr : `float`
        Truths of which the signal to noise ratio, or that of the brightest
        pixel, is lower in every band are ignored too. Where it is not known,
        as without noise, the truth counts.
    match_iou : `float`
        Smallest IoU of a match of the match table.
    iou_thresholds : `tuple` [`float`]
        Thresholds of the average precision.
    method : `str`
        How detections and truths are matched.
    score_threshold : `float` or `None`
        Detections of a lower score are in no group and end nowhere: their
        ``outcome`` is ``ignored``, that of their truths as if they were not
        there. They are in the match table all the same.
    link_iou, link_containment : `float`
        See `~lsst.meas.maskrcnn.metrics.blends.overlap_links`.
    link_truth : `bool`
        Link truths to each other too, so that what is a blend does not depend
        on what was found.
    bad_planes : `tuple` [`str`]
        Mask planes of pixels in which a detection is not false.
    max_bad_fraction : `float`
        Largest share of such pixels of a detection that can be false.
    image_flux : `bool`
        Measure fluxes on the exposures within the footprints, in bands for
        which no field is given; within those that are not heavy, if others
        are.
    psf_fwhm : `float` or `None`
        Width of the PSF (px); `None` takes that of the exposure in the
        reference band.
    """

    fields: DetectionFields = dataclasses.field(default_factory=DetectionFields)
    band: str = "r"
    bands: tuple[str, ...] | None = None
    ignore_flags: tuple[str, ...] = ("empty", "small", "faint", "masked")
    min_snr: float = 0.0
    min_peak_snr: float = 0.0
    match_iou: float = 0.5
    iou_thresholds: tuple[float, ...] = (0.5,)
    method: Method = "greedy"
    score_threshold: float | None = None
    link_iou: float = 0.3
    link_containment: float = 0.5
    link_truth: bool = True
    bad_planes: tuple[str, ...] = ("BAD", "NO_DATA")
    max_bad_fraction: float = 0.5
    image_flux: bool = True
    psf_fwhm: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class PatchComparison:
    """What came of a patch.

    Parameters
    ----------
    summary : `~lsst.meas.maskrcnn.metrics.evaluation_metrics.PatchSummary`
        Its numbers.
    pairs : `~lsst.meas.maskrcnn.metrics.matching.ImagePairs`
        From which average precision is computed.
    table : `numpy.ndarray`
        Match table.
    row_group : `numpy.ndarray`
        Number of the group of the truth, or else of the detection, of each
        row of the match table; -1 for none.
    groups : `~lsst.meas.maskrcnn.metrics.blends.BlendGroups`
        Groups of truths and detections.
    kinds : `numpy.ndarray`
        How each group ended.
    quality : `numpy.ndarray`
        Quality of each group.
    boxes : `numpy.ndarray`
        Box of each group [x0, y0, x1, y1], half open, in the parent frame.
    truth, detections : `TruthArrays`, `DetectionArrays`
        The sources, in the parent frame.
    pixel_scale : `float`
        Pixel scale (arcsec); NaN where it is not known.
    psf_fwhm : `float`
        Width of the PSF (px); NaN where it is not known.
    bands : `tuple` [`str`]
        Bands of the fluxes of the table.
    """

    summary: PatchSummary
    pairs: ImagePairs
    table: np.ndarray
    row_group: np.ndarray
    groups: BlendGroups
    kinds: np.ndarray
    quality: np.ndarray
    boxes: np.ndarray
    truth: TruthArrays
    detections: DetectionArrays
    pixel_scale: float
    psf_fwhm: float
    bands: tuple[str, ...]

    def group_table(self, image: int) -> np.ndarray:
        """Give the groups as rows.

        Parameters
        ----------
        image : `int`
            Number of the patch.

        Returns
        -------
        table : `numpy.ndarray`
            Structured array of `BLEND_DTYPE`.
        """
        rows = np.zeros(self.groups.n_groups, dtype=BLEND_DTYPE)
        rows["image"], rows["kind"], rows["quality"] = image, self.kinds, self.quality
        rows["n_truth"], rows["n_detection"] = self.groups.n_truth, self.groups.n_detection
        return rows


def compare_patch(patch: EvaluationPatch, settings: CompareSettings, image: int = 0) -> PatchComparison:
    """Compare a patch with its truth.

    Parameters
    ----------
    patch : `EvaluationPatch`
        The patch, with its truth; without a catalogue nothing was found.
    settings : `CompareSettings`
        How.
    image : `int`
        Number of the patch, for the match table.

    Returns
    -------
    comparison : `PatchComparison`
        What came of it; it holds on to masks but not to images.

    Raises
    ------
    MismatchedPatchError
        Raised if catalogue, truth and exposures are not of one patch, if the
        truth has not the bands that are asked for, or if a catalogue cannot
        be read.
    """
    if patch.truth is None:
        raise MismatchedPatchError(f"{patch.name} has no truth catalogue to be compared with.")
    frame = Box2I(Point2I(0, 0), Extent2I(1, 1))
    try:
        truth = read_truth(patch.truth, frame)
        catalog = patch.catalog
        if catalog is None:
            detections = _no_detections()
        else:
            detections = read_detections(catalog, settings.fields, photo_calibs=photo_calibs(patch.exposures))
    except ValueError as error:
        raise MismatchedPatchError(f"{patch.name}: {error}") from error
    unknown = set(settings.ignore_flags) - set(truth.flags)
    if unknown:
        raise MismatchedPatchError(
            f"{patch.name}: the truth has no flags {sorted(unknown)}; it has {sorted(truth.flags)}."
        )
    bands = _bands(patch, truth, settings)
    truth_spans = SpanMasks.from_masks(truth.masks, truth.origins)
    _check_frame(patch, truth_spans, detections.spans)
    ignored = _ignored(truth, settings)
    fwhm = _psf_fwhm(patch, settings)
    labels = np.where(truth.is_star, 1, 2)
    pairs = ImagePairs.from_spans(
        detections.spans,
        detections.score,
        detections.labels,
        truth_spans,
        labels,
        name=f"{patch.tract},{patch.patch}",
        class_scores=detections.class_score,
        ignored=_in_bad_pixels(patch, detections.spans, settings),
        truth_ignored=ignored,
        pixel_area=1.0 / psf_area(fwhm) if np.isfinite(fwhm) else 1.0,
    )
    matches = match(pairs, (settings.match_iou,), method=settings.method)
    matched = matches.truth[0]
    iou = _pair_iou(pairs, matched)
    found_ignored = matches.ignored[0]
    no_group = found_ignored
    if settings.score_threshold is not None:
        # Matching goes by descending score, so that they have taken no truth from any that is left.
        no_group = found_ignored | (detections.score < settings.score_threshold)
    links = overlap_links(
        pairs.pairs.second,
        pairs.pairs.first,
        pairs.pairs.iou,
        truth_spans.areas,
        detections.spans.areas,
        min_iou=settings.link_iou,
        min_containment=settings.link_containment,
    )
    groups = friends_of_friends(
        len(truth),
        len(detections),
        links,
        truth_links=_truth_links(truth_spans, settings),
        ignored_truth=ignored,
        ignored_detection=no_group,
    )
    # What has found an ignored truth is in no group, and so is nobody's match there.
    counted = np.where(no_group, -1, matched)
    kinds = classify_groups(groups, counted)
    truth_outcome, detection_outcome = source_outcomes(groups, counted)
    scale = catalog_pixel_scale(patch.truth, truth.x, truth.y)
    table = make_match_table(
        _truth_columns(patch, truth, ignored, settings.band, bands, detections, matched),
        _detection_columns(patch, detections, found_ignored, settings, bands),
        matched,
        iou=iou,
        image=image,
        pixel_scale=scale if np.isfinite(scale) else None,
        bands=bands,
        truth_outcome=truth_outcome,
        detection_outcome=detection_outcome,
    )
    lowest = min(*settings.iou_thresholds, settings.match_iou)
    megapixels = patch.megapixels
    if not np.isfinite(megapixels) and patch.exposures:
        megapixels = next(iter(patch.exposures.values())).getBBox().getArea() / 1e6
    return PatchComparison(
        PatchSummary(
            tract=patch.tract,
            patch=patch.patch,
            n_truth=int(np.count_nonzero(~ignored)),
            n_truth_ignored=int(np.count_nonzero(ignored)),
            n_detections=len(detections),
            n_skipped=0 if catalog is None else len(catalog) - len(detections),
            seconds=patch.seconds,
            megapixels=megapixels,
        ),
        # Below the lowest threshold nothing matches, and crowded fields have many such pairs.
        dataclasses.replace(pairs, pairs=pairs.pairs.select(pairs.pairs.iou >= lowest)),
        table,
        # Its rows are the truths, then the detections without one.
        np.concatenate([groups.truth_group, groups.detection_group[matched < 0]]),
        groups,
        kinds,
        group_quality(groups, counted, np.where(counted >= 0, iou, 0.0)),
        group_boxes(groups, truth_spans.boxes, detections.spans.boxes),
        truth,
        detections,
        scale,
        fwhm,
        bands,
    )


def _no_detections() -> DetectionArrays:
    nothing, number = np.zeros(0), np.zeros(0, dtype=np.int64)
    spans = SpanMasks.from_masks([], np.zeros((0, 2), dtype=np.int64))
    # It does not say that it knows no classes either.
    return DetectionArrays(number, nothing, nothing, number, nothing, nothing, spans, {}, [], True)


def _bands(patch: EvaluationPatch, truth: TruthArrays, settings: CompareSettings) -> tuple[str, ...]:
    wanted = _blue_to_red(truth.bands) if settings.bands is None else settings.bands
    missing = sorted({settings.band, *wanted} - set(truth.bands))
    if missing and len(truth.bands):
        raise MismatchedPatchError(
            f"{patch.name}: the truth has no fluxes in {missing}; it has the bands {list(truth.bands)}. "
            "Choose others with config.band and config.bands."
        )
    return tuple(band for band in wanted if band in truth.bands)


def _ignored(truth: TruthArrays, settings: CompareSettings) -> np.ndarray:
    """Say which truths are neither hits nor misses."""
    ignored = np.zeros(len(truth), dtype=bool)
    for flag in settings.ignore_flags:
        ignored |= truth.flags[flag]
    for ratios, least in ((truth.snr, settings.min_snr), (truth.peak_snr, settings.min_peak_snr)):
        if ratios and least > 0:
            # A comparison with NaN is false.
            ignored |= np.all([ratio < least for ratio in ratios.values()], axis=0)
    return ignored


def _blue_to_red(bands: tuple[str, ...]) -> tuple[str, ...]:
    known = "ugrizy"
    if all(len(band) == 1 and band in known for band in bands):
        return tuple(sorted(bands, key=known.index))
    return bands


def _check_frame(patch: EvaluationPatch, truth: SpanMasks, found: SpanMasks) -> None:
    """Refuse catalogues that are not of one pixel grid."""
    hulls = [_hull(spans) for spans in (truth, found)]
    first, second = hulls
    if (
        first is not None
        and second is not None
        and (
            min(first[2], second[2]) <= max(first[0], second[0])
            or min(first[3], second[3]) <= max(first[1], second[1])
        )
    ):
        raise MismatchedPatchError(
            f"{patch.name}: the truth fills [x0, y0, x1, y1] = {first} and the catalogue {second}, which do "
            "not touch; both must be on the pixel grid of the same patch."
        )
    boxes = {band: exposure.getBBox() for band, exposure in patch.exposures.items()}
    for band, box in boxes.items():
        if box != next(iter(boxes.values())):
            raise MismatchedPatchError(
                f"{patch.name}: the exposures have different boxes, {boxes}; give those of one patch."
            )
        for what, hull in zip(("truth", "catalogue"), hulls):
            if hull is not None and (
                hull[0] < box.getMinX()
                or hull[1] < box.getMinY()
                or hull[2] > box.getMaxX() + 1
                or hull[3] > box.getMaxY() + 1
            ):
                raise MismatchedPatchError(
                    f"{patch.name}: footprints of the {what} fill [x0, y0, x1, y1] = {hull}, beyond the "
                    f"exposure in {band}, {box}; both must be of the same patch."
                )


def _hull(spans: SpanMasks) -> tuple[int, int, int, int] | None:
    if not len(spans.y):
        return None
    return int(spans.x0.min()), int(spans.y.min()), int(spans.x1.max()), int(spans.y.max()) + 1


def _truth_links(spans: SpanMasks, settings: CompareSettings) -> np.ndarray | None:
    if not settings.link_truth:
        return None
    pairs = mask_iou(spans, spans)
    pairs = pairs.select(pairs.first < pairs.second)
    return overlap_links(
        pairs.first,
        pairs.second,
        pairs.iou,
        spans.areas,
        spans.areas,
        min_iou=settings.link_iou,
        min_containment=settings.link_containment,
    )


def _psf_fwhm(patch: EvaluationPatch, settings: CompareSettings) -> float:
    if settings.psf_fwhm is not None:
        return settings.psf_fwhm
    exposure = patch.exposures.get(settings.band)
    psf = None if exposure is None else exposure.getPsf()
    if exposure is None or psf is None:
        return float("nan")
    box = exposure.getBBox()
    center = Point2D(0.5 * (box.getMinX() + box.getMaxX()), 0.5 * (box.getMinY() + box.getMaxY()))
    return float(FWHM_PER_SIGMA * psf.computeShape(center).getDeterminantRadius())


def _in_bad_pixels(patch: EvaluationPatch, spans: SpanMasks, settings: CompareSettings) -> np.ndarray | None:
    if not patch.exposures or not settings.bad_planes:
        return None
    bad: np.ndarray | None = None
    for exposure in patch.exposures.values():
        bits = defined_plane_bits(exposure.mask, settings.bad_planes)
        here = (exposure.mask.array & bits) != 0
        bad = here if bad is None else bad | here
    if bad is None or not bad.any():
        return None
    origin = next(iter(patch.exposures.values())).getXY0()
    return spans.share_in(bad, (origin.getY(), origin.getX())) > settings.max_bad_fraction


def _pair_iou(pairs: ImagePairs, matched: np.ndarray) -> np.ndarray:
    iou = np.full(len(matched), np.nan)
    of_match = matched[pairs.pairs.first] == pairs.pairs.second
    iou[pairs.pairs.first[of_match]] = pairs.pairs.iou[of_match]
    return iou


def _truth_columns(
    patch: EvaluationPatch,
    truth: TruthArrays,
    ignored: np.ndarray,
    band: str,
    bands: tuple[str, ...],
    detections: DetectionArrays,
    matched: np.ndarray,
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
    flux = {name: truth.flux[name] for name in {band, *bands} if name in truth.bands}
    for name, catalog in patch.truth_flux.items():
        if name in flux:
            flux[name] = _flux_within(patch, catalog, truth, detections, matched, flux[name], name)
    columns |= {f"flux_{name}": flux[name] for name in bands}
    if band in flux:
        columns["flux"] = flux[band]
    return columns


def _flux_within(
    patch: EvaluationPatch,
    catalog: SourceCatalog,
    truth: TruthArrays,
    detections: DetectionArrays,
    matched: np.ndarray,
    total: np.ndarray,
    band: str,
) -> np.ndarray:
    """Sum each truth's own light in the footprint of its detection, or leave its total."""
    ids = np.array(catalog["id"]) if len(catalog) else np.zeros(0, dtype=np.int64)
    if not np.array_equal(ids, truth.ids):
        raise MismatchedPatchError(
            f"{patch.name}: the truth's own pixels in {band} have {len(ids)} ids that are not the "
            f"{len(truth)} of the truth catalogue; both must come from the same run of the simulator."
        )
    flux = np.array(total, dtype=np.float64)
    for i in np.flatnonzero(matched >= 0).tolist():
        own = catalog[int(matched[i])].getFootprint()
        if own is None or not own.getArea():
            flux[matched[i]] = 0.0
            continue
        box = own.getBBox()
        pixels = own.extractImage(fill=0.0).array
        one = detections.spans.select([i])
        flux[matched[i]] = sum_in_spans(pixels, one, (box.getMinY(), box.getMinX()))[0]
    return flux


def _detection_columns(
    patch: EvaluationPatch,
    found: DetectionArrays,
    ignored: np.ndarray,
    settings: CompareSettings,
    bands: tuple[str, ...],
) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "id": found.ids,
        "x": found.x,
        "y": found.y,
        "is_star": found.is_star,
        "score": found.score,
        "p_star": found.p_star,
        "ignored": ignored,
    }
    flux = dict(found.flux)
    if settings.image_flux:
        for band, exposure in patch.exposures.items():
            # Isolated sources of a deblender's catalogue are not heavy.
            partly = band == settings.fields.heavy_band
            if (partly or band not in flux) and band in {settings.band, *bands}:
                origin = exposure.getXY0()
                sums = sum_in_spans(exposure.image.array, found.spans, (origin.getY(), origin.getX()))
                sums *= calibration(exposure)
                flux[band] = np.where(np.isfinite(flux[band]), flux[band], sums) if partly else sums
    columns |= {f"flux_{band}": flux[band] for band in bands if band in flux}
    if settings.band in flux:
        columns["flux"] = flux[settings.band]
    return columns


def calibration(exposure: ExposureF) -> float:
    """Give the mean calibration of an exposure.

    Parameters
    ----------
    exposure : `lsst.afw.image.ExposureF`
        The exposure.

    Returns
    -------
    calibration : `float`
        Factor to nJy; NaN without a PhotoCalib.
    """
    calib = exposure.getPhotoCalib()
    return float("nan") if calib is None else float(calib.getCalibrationMean())
