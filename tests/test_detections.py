# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Catalogues of any origin as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import lsst.geom as geom
from lsst.afw.detection import Footprint, HeavyFootprintF
from lsst.afw.geom import SpanSet
from lsst.afw.image import ExposureF, PhotoCalib
from lsst.afw.table import SourceCatalog, SourceTable
from lsst.meas.maskrcnn.catalogs.detections import (
    DetectionFields,
    catalog_pixel_scale,
    photo_calibs,
    read_detections,
)
from lsst.meas.maskrcnn.catalogs.evaluation import EvaluationPatch, EvaluationSettings, compare_patch
from lsst.meas.maskrcnn.catalogs.evaluation_io import task_timing
from lsst.meas.maskrcnn.catalogs.truth import make_truth_schema
from lsst.meas.maskrcnn.images.classes import GALAXY, STAR, UNKNOWN
from lsst.meas.maskrcnn.metrics.spans import SpanMasks
from lsst.pipe.base import TaskMetadata


def rectangle(x0: int, y0: int, width: int, height: int) -> Footprint:
    footprint = Footprint(SpanSet(geom.Box2I(geom.Point2I(x0, y0), geom.Extent2I(width, height))))
    footprint.addPeak(x0 + 1.0, y0 + 2.0, 5.0)
    return footprint


def make_catalog(fields: dict[str, tuple[object, str]], number: int) -> SourceCatalog:
    schema = SourceTable.makeMinimalSchema()
    for name, (kind, units) in fields.items():
        schema.addField(name, type=kind, doc=name, units=units)
    catalog = SourceCatalog(schema)
    for i in range(number):
        catalog.addNew().setFootprint(rectangle(1000 + 20 * i, 500, 6, 4))
    return catalog


def test_minimal() -> None:
    catalog = make_catalog({}, 3)
    found = read_detections(catalog)
    assert found.ids.tolist() == catalog["id"].tolist()
    assert found.labels.tolist() == [UNKNOWN] * 3
    assert not found.has_class
    assert found.score.tolist() == [1.0] * 3
    assert np.isnan(found.p_star).all()
    assert found.class_score.tolist() == [1.0] * 3
    # The peaks, in the parent frame.
    assert found.x.tolist() == [1001.0, 1021.0, 1041.0]
    assert found.y.tolist() == [502.0] * 3
    assert found.spans.boxes[1].tolist() == [1020, 500, 1026, 504]
    nothing = read_detections(make_catalog({}, 0))
    assert len(nothing) == len(nothing.spans) == 0


def test_columns() -> None:
    catalog = make_catalog(
        {
            "base_ClassificationExtendedness_value": (np.float64, ""),
            "maskrcnn_score": (np.float32, ""),
            "maskrcnn_pStar": (np.float32, ""),
            "other_x": (np.float64, "pixel"),
            "other_y": (np.float64, "pixel"),
            "flux": (np.float64, "nJy"),
            "inst": (np.float64, "count"),
        },
        4,
    )
    catalog["base_ClassificationExtendedness_value"] = np.array([0.0, 1.0, np.nan, 0.2])
    catalog["maskrcnn_score"] = np.array([0.5, 0.5, 1.0, np.nan], np.float32)
    catalog["maskrcnn_pStar"] = np.array([0.75, 0.25, 0.5, 0.5], np.float32)
    catalog["other_x"] = np.arange(4.0)
    catalog["other_y"] = np.arange(4.0) + 10.0
    catalog["flux"] = np.full(4, 3.0)
    catalog["inst"] = np.full(4, 5.0)
    fields = DetectionFields(centroid="other", flux={"r": "flux", "g": "inst"})
    found = read_detections(catalog, fields, photo_calibs={"g": PhotoCalib(2.0)})
    # Without a score there is no rank; the rest keeps its order.
    assert found.n_without_score == 1
    assert found.labels.tolist() == [STAR, GALAXY, GALAXY]
    assert found.class_score.tolist() == [0.375, 0.375, 0.5]
    assert (found.x.tolist(), found.y.tolist()) == ([0.0, 1.0, 2.0], [10.0, 11.0, 12.0])
    assert found.flux["r"].tolist() == [3.0] * 3
    assert found.flux["g"].tolist() == [10.0] * 3
    with pytest.raises(ValueError, match="'inst' is not in nJy.*band 'g'"):
        read_detections(catalog, fields)
    for wrong in (
        DetectionFields(score="none"),
        DetectionFields(star="none"),
        DetectionFields(extendedness="none"),
        DetectionFields(centroid="none"),
        DetectionFields(flux={"r": "none"}),
    ):
        with pytest.raises(ValueError, match="no field 'none"):
            read_detections(catalog, wrong)
    # Columns of a part of a catalogue need it to be copied.
    part = read_detections(
        catalog[np.array([True, False, True, False])], fields, photo_calibs={"g": PhotoCalib(2.0)}
    )
    assert part.x.tolist() == [0.0, 2.0]


def test_left_out() -> None:
    catalog = make_catalog({"deblend_nChild": (np.int32, "")}, 4)
    catalog[0]["deblend_nChild"] = 2
    catalog[1].setFootprint(Footprint())
    catalog[2].setFootprint(None)
    found = read_detections(catalog)
    assert found.ids.tolist() == [catalog[3].getId()]
    assert (found.n_parents, found.n_without_footprint) == (1, 2)
    for record in catalog:
        record.setFootprint(None)
    with pytest.raises(ValueError, match="None of the 4 records has a footprint"):
        read_detections(catalog)


def test_heavy() -> None:
    catalog = make_catalog({}, 2)
    heavy = HeavyFootprintF(rectangle(1000, 500, 6, 4))
    heavy.getImageArray()[:] = 0.5
    catalog[0].setFootprint(heavy)
    flux = read_detections(catalog, DetectionFields(heavy_band="r")).flux["r"]
    np.testing.assert_array_equal(flux, [12.0, np.nan])
    calibrated = read_detections(
        catalog, DetectionFields(heavy_band="r"), photo_calibs={"r": PhotoCalib(3.0)}
    )
    assert calibrated.flux["r"][0] == 36.0
    exposures = {"r": ExposureF(3, 4), "g": ExposureF(3, 4)}
    exposures["g"].setPhotoCalib(PhotoCalib(3.0))
    assert photo_calibs(exposures)["g"].getCalibrationMean() == 3.0


def test_sum_over_spans(rng: np.random.Generator) -> None:
    image = rng.normal(size=(40, 70)).astype(np.float32)
    image[3, 4] = np.nan
    masks = [rng.random((int(h), int(w))) < 0.6 for h, w in rng.integers(1, 12, (30, 2))]
    origins = rng.integers(-5, 75, (30, 2)) + (500, 1000)
    spans = SpanMasks.from_masks([*masks, np.zeros((0, 0), bool)], [*origins, (0, 0)])
    sums = spans.sum_over(image, (500, 1000))
    for i, (mask, (y0, x0)) in enumerate(zip(masks, origins - (500, 1000))):
        painted = np.zeros((200, 200), bool)
        painted[y0 + 20 : y0 + 20 + mask.shape[0], x0 + 20 : x0 + 20 + mask.shape[1]] = mask
        inside = painted[20:60, 20:90]
        assert sums[i] == pytest.approx(np.nansum(image[inside], dtype=float), abs=1e-9)
    assert sums[30] == 0.0


def test_pixel_scale() -> None:
    catalog = make_catalog({}, 9)
    x, y = np.arange(9.0) * 30.0, np.arange(9.0) ** 2
    dec = np.radians(60.0 + 0.2 * y / 3600)
    catalog["coord_dec"] = dec
    catalog["coord_ra"] = np.radians(10.0) + np.radians(0.2 * x / 3600) / np.cos(np.radians(60.0))
    assert catalog_pixel_scale(catalog, x, y) == pytest.approx(0.2, rel=1e-4)
    assert np.isnan(catalog_pixel_scale(catalog[:1].copy(deep=True), x[:1], y[:1]))


def test_timing() -> None:
    assert np.isnan(task_timing(None, "deblend")[0])
    metadata = TaskMetadata()
    assert np.isnan(task_timing(metadata, "deblend")[0])
    metadata["quantum"] = TaskMetadata()
    metadata["quantum"]["startUtc"] = "2026-05-01T12:00:00.250000+00:00"
    assert np.isnan(task_timing(metadata, "deblend")[0])
    metadata["quantum"]["endUtc"] = "2026-05-01T12:01:00.750000+00:00"
    # Any task will do.
    seconds, megapixels, model = task_timing(metadata, "deblend")
    assert (seconds, model) == (60.5, "")
    assert np.isnan(megapixels)
    metadata["deblend"] = TaskMetadata()
    metadata["deblend"]["seconds_detect"], metadata["deblend"]["seconds_forward"] = 2.0, 1.5
    metadata["deblend"]["n_valid_pixels"], metadata["deblend"]["model"] = 4_000_000, "tiny"
    assert task_timing(metadata, "deblend") == (2.0, 4.0, "tiny")
    metadata["deblend"]["seconds_total"] = 3.0
    assert task_timing(metadata, "deblend") == (3.0, 4.0, "tiny")


@pytest.mark.parametrize("name", ["deblendedCatalog", "deblended_r", "mergeDet"])
def test_scarlet(shared_data: Path, name: str) -> None:
    """What the real pipeline found on a simulated patch, against what was drawn there."""
    folder = shared_data / "scarlet"
    catalog = SourceCatalog.readFits(str(folder / f"{name}.fits"))
    exposure = ExposureF.readFits(str(folder / "exposure_r.fits"))
    true = fits.getdata(folder / "truth.fits", 1)
    bands = ("g", "r", "z")
    truth = SourceCatalog(make_truth_schema(bands))
    # The data have no truth masks: discs that grow with the flux stand for them.
    radius = 9.0 + 8.0 * np.log10(np.maximum(true["flux_r"], 2e4) / 2e4)
    for row, reach in zip(true, radius):
        record = truth.addNew()
        spans = SpanSet.fromShape(int(reach), offset=geom.Point2I(round(row["x"]), round(row["y"])))
        footprint = Footprint(spans, exposure.getBBox())
        footprint.clipTo(exposure.getBBox())
        record.setFootprint(footprint)
        record["truth_centroid_x"], record["truth_centroid_y"] = row["x"], row["y"]
        record["coord_ra"] = geom.Angle(0.0)
        record["coord_dec"] = geom.Angle(0.0)
        for band in bands:
            calibration = exposure.getPhotoCalib().getCalibrationMean() if band == "r" else 1.0
            record[f"truth_{band}_flux"] = row[f"flux_{band}"] * calibration
    heavy = name == "deblended_r"
    settings = EvaluationSettings(fields=DetectionFields(heavy_band="r" if heavy else None), match_iou=0.2)
    patch = EvaluationPatch(0, 0, truth, catalog, exposures={"r": exposure})
    comparison = compare_patch(patch, settings)
    found = comparison.detections
    assert not found.has_class
    assert found.n_parents == 0
    # On disk, the children of blends have no footprints until their models are turned into some.
    children = int(np.count_nonzero(catalog["parent"]))
    assert found.n_without_footprint == (children if name == "deblendedCatalog" else 0)
    assert len(found) == len(catalog) - found.n_without_footprint
    # Each is one of the sources, where it says.
    distance = np.hypot(found.x[:, None] - true["x"], found.y[:, None] - true["y"])
    assert np.mean(distance.min(axis=1) < 2.0) > 0.95
    matched = comparison.result.table[comparison.result.table["outcome"] == "matched"]
    assert len(matched) >= 0.95 * len(found)
    assert np.median(matched["separation"]) < 1.0
    if heavy:
        # Isolated sources are not heavy; their flux is that of the image.
        assert np.isfinite(matched["flux_detected"]).all()
        assert np.median(matched["flux_detected"] / matched["flux_truth"]) == pytest.approx(1.0, abs=0.1)
    if name == "mergeDet":
        # Parents only: blends remain blends.
        assert (comparison.result.table["outcome"] == "unrecognized").any()
