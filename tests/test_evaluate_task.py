# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Evaluation of a catalogue, from patches with known answers to `pipetask run`."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
import unittest
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import lsst.geom as geom
import lsst.pipe.base as pipeBase
import lsst.pipe.base.testUtils as pipelineTests
from lsst.afw.detection import Footprint, HeavyFootprintF
from lsst.afw.geom import SkyWcs, SpanSet, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF, FilterLabel, MaskX, PhotoCalib
from lsst.afw.table import SourceCatalog, SourceTable
from lsst.daf.butler import Config
from lsst.daf.butler.tests import addDatasetType, makeTestCollection, makeTestRepo
from lsst.meas.maskrcnn.catalogs.evaluation import EvaluationPatch
from lsst.meas.maskrcnn.catalogs.exposures import NO_ZERO_POINT
from lsst.meas.maskrcnn.catalogs.schema import make_schema
from lsst.meas.maskrcnn.catalogs.truth import make_truth_catalog
from lsst.meas.maskrcnn.ingest.exposures import gaussian_psf
from lsst.meas.maskrcnn.ingest.repo import SEED_CONFIG, PatchGeometry, register_patches
from lsst.meas.maskrcnn.metrics.average_precision import ap_statistic, compute_ap
from lsst.meas.maskrcnn.metrics.evaluation_metrics import outcomes_from_table
from lsst.meas.maskrcnn.scenes.light import Stamp
from lsst.meas.maskrcnn.tasks.evaluate import (
    EvaluationInputError,
    MaskRcnnEvaluateConfig,
    MaskRcnnEvaluateConnections,
    MaskRcnnEvaluateTask,
)
from lsst.pex.config import FieldValidationError
from lsst.pipe.base.tests.pipelineStepTester import PipelineStepTester

PROJECT = Path(__file__).resolve().parent.parent
PIPELINE = PROJECT / "pipelines" / "MaskRcnnEvaluate.yaml"
BANDS = ("z", "r", "g")
SHAPE = (128, 160)
XY0 = geom.Point2I(12000, 8000)
SCALE = 0.2
RADIUS = 6
# Instrumental flux to nJy, different in each band.
CALIB = {"z": 2.0, "r": 0.5, "g": 4.0}
# Six sources of a patch, far from each other: array pixels y, x, and whether a star.
PLACES = (
    (20, 20, True),
    (20, 70, False),
    (20, 130, False),
    (90, 20, True),
    (90, 70, False),
    (90, 130, False),
)
FLUX = {"z": 4000.0, "r": 2000.0, "g": 1000.0}
PLOTS = (
    "plotPrecisionRecall",
    "plotCompleteness",
    "plotConfusion",
    "plotRoc",
    "plotFluxResidual",
    "plotCalibration",
    "plotBlends",
    "plotGallery",
)
QUICK = {"n_samples": 20}


def disc(radius: float = RADIUS) -> np.ndarray:
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return x**2 + y**2 <= radius**2


@dataclasses.dataclass
class Scene:
    """Uniform discs, as `make_truth_catalog` takes them."""

    places: tuple[tuple[int, int, bool], ...] = PLACES
    flags: dict[int, str] = dataclasses.field(default_factory=dict)
    bands: tuple[str, ...] = BANDS

    @property
    def masks(self) -> list[np.ndarray]:
        return [disc()] * len(self.places)

    @property
    def origins(self) -> np.ndarray:
        return np.array([(y - RADIUS, x - RADIUS) for y, x, _ in self.places]).reshape(-1, 2)

    @property
    def models(self) -> list[Stamp]:
        level = np.array([FLUX[band] for band in self.bands])[:, None, None] / disc().sum()
        return [Stamp((disc() * level).astype(np.float32), int(y0), int(x0)) for y0, x0 in self.origins]

    @property
    def images(self) -> np.ndarray:
        images = np.zeros((len(self.bands), *SHAPE), np.float32)
        for stamp in self.models:
            height, width = stamp.pixels.shape[1:]
            images[:, stamp.y0 : stamp.y0 + height, stamp.x0 : stamp.x0 + width] += stamp.pixels
        return images

    @property
    def light(self) -> np.ndarray:
        return self.images

    @property
    def sources(self) -> np.ndarray:
        names = ("empty", "small", "faint", "masked", "edge")
        columns = [("id", "i8"), ("x", "f8"), ("y", "f8"), ("is_star", "?"), ("blendedness", "f8")]
        columns += [("neighbor_distance", "f8"), *((f"flag_{name}", "?") for name in names)]
        kinds = ("flux", "snr", "peak_snr")
        columns += [(f"{kind}_{band}", "f8") for band in self.bands for kind in kinds]
        sources = np.zeros(len(self.places), dtype=columns)
        sources["id"] = np.arange(len(sources)) + 1
        sources["neighbor_distance"] = 10.0
        for i, (y, x, star) in enumerate(self.places):
            sources[i]["y"], sources[i]["x"], sources[i]["is_star"] = y, x, star
        for i, name in self.flags.items():
            sources[i][f"flag_{name}"] = True
        for band in self.bands:
            sources[f"flux_{band}"], sources[f"snr_{band}"] = FLUX[band], 50.0
            # Lowest for the first; not known for the last.
            sources[f"peak_snr_{band}"] = np.arange(len(sources)) + 1.0
            sources[f"peak_snr_{band}"][-1:] = np.nan
        return sources


def make_wcs() -> SkyWcs:
    return makeSkyWcs(
        geom.Point2D(12080.0, 8060.0),
        geom.SpherePoint(150.0, 2.0, geom.degrees),
        makeCdMatrix(scale=SCALE * geom.arcseconds),
    )


def make_exposures(scene: Scene, xy0: geom.Point2I = XY0) -> dict[str, ExposureF]:
    exposures = {}
    for band, pixels in zip(scene.bands, scene.images):
        exposure = ExposureF(geom.Box2I(xy0, geom.Extent2I(SHAPE[1], SHAPE[0])), make_wcs())
        exposure.image.array[:] = pixels / CALIB[band]
        exposure.variance.array[:] = 1.0
        exposure.setPhotoCalib(PhotoCalib(CALIB[band]))
        exposure.setFilter(FilterLabel.fromBand(band))
        exposure.setPsf(gaussian_psf(4.0))
        exposures[band] = exposure
    return exposures


def make_detections(found: Iterable[tuple[int, int, bool, float]], xy0: geom.Point2I = XY0) -> SourceCatalog:
    """A catalogue of this package: array pixels y, x, whether a star, and score."""
    catalog = SourceCatalog(make_schema())
    for y, x, star, score in found:
        record = catalog.addNew()
        corner = geom.Point2I(xy0.getX() + x - RADIUS, xy0.getY() + y - RADIUS)
        plane = MaskX(geom.Box2I(corner, geom.Extent2I(2 * RADIUS + 1, 2 * RADIUS + 1)))
        plane.array[:] = disc()
        footprint = Footprint(SpanSet.fromMask(plane))
        footprint.addPeak(float(xy0.getX() + x), float(xy0.getY() + y), 1.0)
        record.setFootprint(footprint)
        record["maskrcnn_centroid_x"], record["maskrcnn_centroid_y"] = xy0.getX() + x, xy0.getY() + y
        record["maskrcnn_score"], record["maskrcnn_pStar"] = score, 0.9 if star else 0.1
        record["maskrcnn_star"], record["maskrcnn_galaxy"] = star, not star
    return catalog


def perfect(places: Iterable[tuple[int, int, bool]] = PLACES) -> list[tuple[int, int, bool, float]]:
    return [(y, x, star, 0.95 - 0.01 * i) for i, (y, x, star) in enumerate(places)]


def make_patch(
    number: int,
    found: Iterable[tuple[int, int, bool, float]] | None,
    scene: Scene | None = None,
    exposures: bool = True,
    **changes: Any,
) -> EvaluationPatch:
    scene = Scene() if scene is None else scene
    return EvaluationPatch(
        3,
        number,
        make_truth_catalog(scene, make_wcs(), XY0),
        None if found is None else make_detections(found),
        exposures=make_exposures(scene) if exposures else {},
        **changes,
    )


def make_task(**changes: Any) -> MaskRcnnEvaluateTask:
    config = MaskRcnnEvaluateConfig()
    for name, value in (QUICK | {name.replace("__", "."): value for name, value in changes.items()}).items():
        part: Any = config
        *path, last = name.split(".")
        for step in path:
            part = getattr(part, step)
        setattr(part, last, value)
    config.validate()
    return MaskRcnnEvaluateTask(config=config)


def test_perfect() -> None:
    patches = [make_patch(i, perfect(), seconds=2.0, megapixels=0.5, model="tiny") for i in range(3)]
    outputs = make_task().run(patches=iter(patches), runs=["run/a"], skymap="sky")
    metrics = outputs.metrics

    aps = [value for value in metrics.select(name="ap") if value.n]
    assert {value.definition for value in aps} == {"perImage", "pooled", "coco"}
    assert {value.object_class for value in aps} == {"all", "star", "galaxy"}
    # 113 px: nine of the discs with the width of this PSF.
    assert {value.area for value in aps} == {"all", "small"}
    assert len(aps) == (3 * 3 + 3) * 11
    assert [value.value for value in aps] == [1.0] * len(aps)
    assert [value.error for value in aps] == [0.0] * len(aps)
    for name in ("completeness", "purity", "completeness_same_class", "class_completeness", "class_purity"):
        assert metrics.get(name, object_class="star").value == 1.0
    assert metrics.get("class_accuracy").value == 1.0
    assert metrics.get("roc_area").value == 1.0
    assert metrics.get("truths_isolated").value == 1.0
    assert metrics.get("centroid_separation_median", object_class="all").value == 0.0
    assert metrics.get("centroid_x_median").unit == "arcsec"
    assert metrics.get("seconds_per_patch").value == 2.0
    assert metrics.get("megapixels_per_second").value == 0.25
    assert metrics.get("p_star_brier").value == pytest.approx(0.01)

    assert metrics.names == ("3,0", "3,1", "3,2")
    assert (metrics.runs, metrics.models, metrics.skymap) == (["run/a"], ["tiny"], "sky")
    assert metrics.config["band"] == "r"
    assert metrics.n_truth == {"all": [6] * 3, "star": [2] * 3, "galaxy": [4] * 3}
    matches = outputs.matches
    assert len(matches) == 18
    assert set(matches["outcome"]) == {"matched"}
    assert matches["patch"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    # Positions are those of the parent frame.
    assert (matches["x"][1], matches["y"][1]) == (12070.0, 8020.0)
    for name in PLOTS:
        assert isinstance(getattr(outputs, name), Figure)


def test_blends() -> None:
    """A seventh truth lies within a FWHM of the last: one of six matched sources is a blend."""
    scene = Scene()
    y, x, star = scene.places[-1]
    patch = make_patch(0, perfect(), dataclasses.replace(scene, places=(*scene.places, (y + 3, x, star))))
    given = [0.1, 0.2, 0.1, 0.3, 0.2, 0.8]
    for record, p_blend in zip(patch.catalog, given, strict=True):
        record["maskrcnn_pBlend"] = p_blend
    outputs = make_task().run(patches=[patch])
    metrics = outputs.metrics
    assert metrics.get("clean_share").value == pytest.approx(5 / 6)
    # The tenth of the largest pBlend is the blend.
    assert metrics.get("clean_purity").value == 1.0 and metrics.get("clean_purity").n == 5
    assert metrics.get("blend_roc_area").value == 1.0
    assert metrics.get("p_blend_brier").value == pytest.approx((0.19 + 0.04) / 6)
    blended = outputs.matches["blended"][outputs.matches["truth_id"] > 0]
    assert blended.tolist() == [0.0] * 5 + [1.0] * 2
    without = make_task().run(patches=[make_patch(0, perfect())]).metrics
    assert not without.select(name="clean_purity")


def test_known_answers() -> None:
    """One of six missed in each patch, one false detection, one class swapped, one moved."""
    found = perfect()[:5]
    found[1] = (20, 70, True, 0.94)
    found[4] = (90, 72, False, 0.91)
    found.append((60, 45, False, 0.3))
    outputs = make_task().run(patches=[make_patch(i, found) for i in range(3)])
    metrics = outputs.metrics
    assert metrics.get("completeness").value == pytest.approx(5 / 6)
    assert metrics.get("purity").value == pytest.approx(5 / 6)
    assert metrics.get("completeness_same_class").value == pytest.approx(4 / 6)
    assert metrics.get("class_accuracy").value == pytest.approx(4 / 5)
    assert metrics.get("class_purity", object_class="star").value == pytest.approx(2 / 3)
    assert metrics.get("truths_missed").value == pytest.approx(1 / 6)
    assert metrics.get("detections_spurious").value == pytest.approx(1 / 6)
    # The false one has the lowest score and comes after all that there is to find.
    for definition in ("perImage", "pooled"):
        value = metrics.get("ap", definition=definition, iou=0.5)
        assert value.value == pytest.approx(5 / 6)
        assert value.error == pytest.approx(0.0, abs=1e-12)
    # Moved by 2 px, a disc of 113 px in 13 rows has IoU 89 / 137 = 0.65 - 0.0004.
    assert np.isclose(outputs.matches["iou"], 89 / 137).sum() == 3
    assert metrics.get("ap", definition="pooled", iou=0.6).value == pytest.approx(5 / 6)
    assert metrics.get("ap", definition="pooled", iou=0.65).value == pytest.approx(4 / 6)
    # Stars: two found of two, and a galaxy of a score between them.
    assert metrics.get("ap", definition="pooled", object_class="star", iou=0.5).value == pytest.approx(
        0.5 * 1.0 + 0.5 * 2 / 3
    )
    outcomes = dict(zip(*np.unique(outputs.matches["outcome"], return_counts=True)))
    assert outcomes == {"matched": 15, "missed": 3, "spurious": 3}
    kinds = {(row["outcome"], row["group_kind"]) for row in outputs.matches}
    assert kinds == {("matched", "isolated"), ("missed", "missed"), ("spurious", "spurious")}
    assert outputs.matches["group"].tolist() == [0, 1, 2, 3, 4, 5, 6] * 3
    moved = outputs.matches[(outputs.matches["separation"] > 1) & (outputs.matches["image"] == 0)]
    assert moved["offset_x"].tolist() == [2.0]
    assert moved["separation_arcsec"][0] == pytest.approx(2 * SCALE, rel=1e-4)

    # What is stored is enough to compute the same again, and its errors.
    again = outcomes_from_table(outputs.outcomes, metrics, "star")
    result = compute_ap(again, "pooled")
    assert result.at(0.5) == metrics.get("ap", definition="pooled", object_class="star", iou=0.5).value
    np.testing.assert_allclose(ap_statistic(again, "pooled").value, result.ap)
    curve = outputs.precisionRecall
    chosen = (curve["definition"] == "pooled") & (curve["object_class"] == "all") & (curve["iou"] == 0.5)
    assert curve["recall"][chosen].max() == pytest.approx(5 / 6)


def test_errors_come_from_patches() -> None:
    """Half the patches are perfect and half are empty: the error is that of a coin."""
    patches = [make_patch(i, perfect() if i % 2 else [], exposures=False) for i in range(16)]
    task = make_task(
        do_exposures=False, do_gallery=False, do_plots=False, n_samples=2000, iou_thresholds=[0.5]
    )
    metrics = task.run(patches=patches).metrics
    value = metrics.get("completeness")
    assert value.value == 0.5
    assert value.error == pytest.approx(0.5 / np.sqrt(16), rel=0.1)
    assert value.low < 0.5 < value.high
    ap = metrics.get("ap", definition="perImage", iou=0.5)
    assert (ap.value, ap.error) == (0.5, pytest.approx(value.error))
    # The same seed, the same errors.
    assert task.run(patches=patches).metrics.model_dump_json() == metrics.model_dump_json()
    assert metrics.get("ap", definition="pooled").error > 0


def test_ignored_truth() -> None:
    scene = Scene(flags={4: "faint", 5: "edge"})
    default = make_task(do_plots=False).run(patches=[make_patch(0, perfect(), scene)])
    assert default.metrics.patches[0].n_truth == 5
    assert default.metrics.patches[0].n_truth_ignored == 1
    assert default.metrics.get("completeness").n == 5
    assert default.metrics.get("purity").n == 5
    assert default.matches["outcome"].tolist().count("ignored") == 1
    assert default.matches["group_kind"].tolist().count("ignored") == 1
    # Missed, it costs nothing either.
    missed = make_task(do_plots=False).run(patches=[make_patch(0, [*perfect()[:4], perfect()[5]], scene)])
    assert missed.metrics.get("completeness").value == 1.0
    assert missed.metrics.get("ap", definition="coco").value == 1.0
    # All flags the same way, as the configuration says.
    strict = make_task(do_plots=False, ignore_flags=[]).run(patches=[make_patch(0, perfect(), scene)])
    assert strict.metrics.get("completeness").n == 6
    for changes, number in (({"min_snr": 60.0}, 0), ({"min_snr": 40.0}, 5), ({"min_peak_snr": 3.0}, 3)):
        fewer = make_task(do_plots=False, **changes).run(patches=[make_patch(0, perfect(), scene)])
        assert fewer.metrics.get("completeness").n == number
    edges = make_task(do_plots=False, ignore_flags=["edge"]).run(patches=[make_patch(0, perfect(), scene)])
    assert edges.metrics.get("completeness").n == 5


def test_bad_pixels() -> None:
    """A false detection where there are no data is not counted."""
    patch = make_patch(0, [*perfect(), (60, 45, False, 0.97)])
    mask = patch.exposures["g"].mask
    bit = mask.getPlaneBitMask("NO_DATA")
    mask.array[50:70, 35:55] |= bit
    task = make_task(do_plots=False)
    assert task.run(patches=[patch]).metrics.get("purity").value == 1.0
    mask.array[:] &= ~bit
    assert task.run(patches=[patch]).metrics.get("purity").value == pytest.approx(6 / 7)


def test_fluxes_are_those_that_are_delivered() -> None:
    """Of HeavyFootprints and models in the catalogues of the bands; not sums of the image in a mask."""
    patch = make_patch(0, perfect())
    outputs = make_task(do_plots=False).run(patches=[patch])
    assert (
        np.isnan(outputs.matches["flux_detected"]).all()
        and np.isfinite(outputs.matches["mag_detected"]).all()
    )
    assert not [one for one in outputs.metrics.values if one.name.startswith(("flux_", "model_flux_"))]
    by_band = {}
    for number, band in enumerate(BANDS):
        schema = SourceTable.makeMinimalSchema()
        for name in ("instFlux", "instFluxErr"):
            schema.addField(f"maskrcnn_profile_{name}", type="D", doc="", units="count")
        by_band[band] = SourceCatalog(schema)
        for record in patch.catalog:
            made = by_band[band].addNew()
            made.setId(record.getId())
            heavy = HeavyFootprintF(record.getFootprint())
            heavy.getImageArray()[:] = 2.0 + number
            made.setFootprint(heavy)
            made["maskrcnn_profile_instFlux"] = 10.0
    outputs = make_task(do_plots=False).run(patches=[dataclasses.replace(patch, band_catalogs=by_band)])
    areas = np.array([record.getFootprint().getArea() for record in patch.catalog])
    for number, band in enumerate(BANDS):
        scale = patch.exposures[band].getPhotoCalib().getCalibrationMean()
        sums = np.sort(outputs.matches[f"flux_detected_{band}"])
        np.testing.assert_allclose(sums, np.sort(areas * (2.0 + number) * scale), rtol=1e-5)
        np.testing.assert_allclose(outputs.matches[f"flux_model_{band}"], 10.0 * scale, rtol=1e-5)
    assert {"flux_median", "model_flux_scatter"} <= {one.name for one in outputs.metrics.values}
    by_band["r"] = by_band["r"][:2].copy(deep=True)
    with pytest.raises(EvaluationInputError, match="4 of 6 sources are not in the catalogue of band r"):
        make_task(do_plots=False).run(patches=[dataclasses.replace(patch, band_catalogs=by_band)])


def test_gallery() -> None:
    good = Scene(places=((40, 40, False), (40, 44, True), (90, 120, False)))
    patches = [
        make_patch(0, perfect(good.places), good),
        make_patch(1, [(40, 42, False, 0.9)], good),
        make_patch(2, [(40, 39, False, 0.9), (40, 44, True, 0.8)], good),
    ]
    outputs = make_task().run(patches=patches)
    best, second, worst, *others = outputs.gallery.entries
    failures = [entry.caption for entry in others if entry.kind == "failure"]
    assert any(caption.startswith("missed: ") for caption in failures), failures
    assert others[-1].sky is not None
    assert (second.kind, second.patch) == ("best", 2)
    assert (best.kind, best.patch, worst.kind, worst.patch) == ("best", 0, "worst", 1)
    assert best.quality == 1.0
    assert worst.quality < 0.5
    assert (len(worst.truth_outlines), len(worst.detection_outlines)) == (2, 1)
    assert best.truth_is_star == [False, True]
    # The middle of the blend is the middle of the picture.
    assert best.x0 + 0.5 * best.size == pytest.approx(12042.5, abs=0.6)
    lines = np.array(best.truth_outlines[0][0])
    assert lines.mean(axis=0) + (best.x0, best.y0) == pytest.approx([12040.0, 8040.0], abs=0.6)
    assert outputs.gallery.pixel_scale == pytest.approx(SCALE, rel=1e-4)
    assert outputs.metrics.get("blends_recognized").value == pytest.approx(2 / 3)
    assert outputs.metrics.get("blends_unrecognized").value == pytest.approx(1 / 3)
    # Two masks that share a third of their pixels are a blend because of the truth alone.
    apart = Scene(places=((40, 40, False), (40, 45, True)))
    found = make_task(do_plots=False).run(patches=[make_patch(0, [], apart)])
    assert found.metrics.get("blends_missed").n == 1
    without = make_task(gallery_bands=["y", "r", "g"]).run(patches=patches)
    assert without.gallery.entries == []


def test_no_zero_point() -> None:
    """In bands without one, fluxes are counts and magnitudes not AB."""
    scene = Scene(places=((40, 40, False), (40, 44, True), (90, 120, False)))
    patch = make_patch(0, perfect(scene.places), scene)
    outputs = make_task().run(patches=[patch])
    assert outputs.metrics.instrumental == []
    assert outputs.matches["flux_truth"].unit == outputs.matches["flux_truth_g"].unit == "nJy"
    patch.exposures["r"].getMetadata().set(NO_ZERO_POINT, True)
    outputs = make_task().run(patches=[patch])
    assert outputs.metrics.instrumental == outputs.gallery.instrumental == ["r"]
    assert outputs.matches["flux_truth"].unit == outputs.matches["flux_model_r"].unit == "count"
    assert outputs.matches["flux_truth_g"].unit == "nJy"
    for plot in (outputs.plotCompleteness, outputs.plotConfusion):
        labels = [axis.get_xlabel() for axis in plot.axes]
        assert "True r magnitude (instrumental + 31.4)" in labels and "AB" not in "".join(labels)
    assert "in counts" in outputs.plotGallery.texts[-1].get_text()


@pytest.mark.parametrize("found, exposures", [([], True), ([], False), ([(60, 45, False, 0.3)], False)])
def test_nothing_there(found: list, exposures: bool) -> None:
    """No detections, or no truth, or neither: no figure, but no failure."""
    empty = Scene(places=())
    task = make_task(do_exposures=exposures, do_gallery=exposures)
    both = task.run(patches=[make_patch(i, found, empty, exposures=exposures) for i in range(2)])
    assert np.isnan(both.metrics.get("ap", definition="pooled").value)
    assert np.isnan(both.metrics.get("completeness").value)
    assert len(both.matches) == 2 * len(found)
    one = task.run(
        patches=[make_patch(0, found, exposures=exposures), make_patch(1, perfect(), empty, exposures)]
    )
    assert one.metrics.get("completeness").value == 0.0
    if not found and not exposures:
        # To make a figure is quick, to draw it is not.
        for name in PLOTS[:-1]:
            getattr(one, name).canvas.draw()


def test_missing() -> None:
    patches = [make_patch(0, perfect()), make_patch(1, None)]
    with pytest.raises(EvaluationInputError, match="patch 1 of tract 3 has no catalogue"):
        make_task().run(patches=patches)
    skipped = make_task(missing="skip", do_plots=False).run(patches=patches)
    assert skipped.metrics.names == ("3,0",)
    assert skipped.metrics.get("completeness").value == 1.0
    counted = make_task(missing="empty", do_plots=False).run(patches=patches)
    assert counted.metrics.get("completeness").value == 0.5
    assert counted.metrics.get("class_accuracy").value == 1.0
    lost = [patches[0], dataclasses.replace(patches[0], patch=2, truth=None)]
    with pytest.raises(EvaluationInputError, match="patch 2 of tract 3 has no truth"):
        make_task().run(patches=lost)
    assert make_task(missing="empty", do_plots=False).run(patches=lost).metrics.names == ("3,0",)
    with pytest.raises(EvaluationInputError, match="no patch to evaluate"):
        make_task().run(patches=[])
    with pytest.raises(EvaluationInputError, match="no patch to evaluate"):
        make_task(missing="skip").run(patches=[make_patch(1, None)])


def test_bad_input() -> None:
    patch = make_patch(0, perfect())
    other = dataclasses.replace(patch, catalog=make_detections(perfect(), geom.Point2I(0, 0)), exposures={})
    with pytest.raises(EvaluationInputError, match="do not touch"):
        make_task().run(patches=[other])
    with pytest.raises(EvaluationInputError, match="beyond the exposure") as caught:
        make_task().run(patches=[make_patch(0, [*perfect(), (60, 156, False, 0.9)])])
    assert caught.value.metadata["patch"] == "patch 0 of tract 3"
    moved = {**patch.exposures, "g": make_exposures(Scene(), geom.Point2I(12001, 8000))["g"]}
    with pytest.raises(EvaluationInputError, match="different boxes"):
        make_task().run(patches=[dataclasses.replace(patch, exposures=moved)])
    with pytest.raises(EvaluationInputError, match="no fluxes in .'i'"):
        make_task(band="i").run(patches=[patch])
    with pytest.raises(EvaluationInputError, match="config.bands"):
        make_task().run(patches=[patch, make_patch(1, perfect(), Scene(bands=("r", "g")))])
    with pytest.raises(EvaluationInputError, match="truth_isStar"):
        make_task().run(patches=[dataclasses.replace(patch, truth=patch.catalog)])
    with pytest.raises(EvaluationInputError, match="'deep_score' for the score"):
        make_task(fields__score="deep_score").run(patches=[patch])
    bare = SourceCatalog(make_schema())
    bare.resize(2)
    with pytest.raises(EvaluationInputError, match="None of the 2 records has a footprint"):
        make_task().run(patches=[dataclasses.replace(patch, catalog=bare)])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"do_exposures": False}, "needs the exposures"),
        ({"iou_thresholds": [0.75, 0.5]}, "wanted ascending"),
        ({"iou_thresholds": [0.5, 1.5]}, "up to 1"),
        ({"match_iou": 0.0}, "match_iou"),
        ({"ignore_flags": ["bright"]}, "ignore_flags"),
    ],
)
def test_bad_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldValidationError, match=message):
        make_task(**changes)


def test_other_options(caplog: pytest.LogCaptureFixture) -> None:
    """Options that change figures change them."""
    found = [*perfect(), (60, 45, False, 0.3)]
    patch = make_patch(0, found)
    plain = make_task(do_plots=False).run(patches=[patch]).metrics
    cut = make_task(do_plots=False, score_threshold=0.5).run(patches=[patch]).metrics
    assert plain.get("purity").value == pytest.approx(6 / 7)
    assert cut.get("purity").value == 1.0
    # A second, fainter detection of a source tears it up only if it is looked at.
    torn = make_patch(0, [*perfect(), (20, 72, False, 0.3)])
    for threshold, shredded, outcome in ((None, 1 / 6, "shredded"), (0.5, 0.0, "ignored")):
        outputs = make_task(do_plots=False, score_threshold=threshold).run(patches=[torn])
        assert outputs.metrics.get("truths_shredded").value == pytest.approx(shredded)
        assert outputs.matches["outcome"][-1] == outcome
    moved = make_patch(0, [(20, 23, True, 0.9)])
    assert make_task(do_plots=False, match_iou=0.5).run(patches=[moved]).metrics.get("completeness").value > 0
    assert (
        make_task(do_plots=False, match_iou=0.6).run(patches=[moved]).metrics.get("completeness").value == 0
    )
    # Overlaps by much, so that they are of one group, but not enough to match.
    near = make_task(do_plots=False, match_iou=0.9)
    assert near.run(patches=[moved]).metrics.get("detections_spurious").value == 0.0
    # An image without truth is left out of the published definition.
    none = make_patch(1, [(60, 45, True, 0.9)], Scene(places=()))
    both = make_task(do_plots=False).run(patches=[patch, none]).metrics
    assert both.get("ap", definition="perImage", iou=0.5).value == 1.0
    with caplog.at_level(logging.INFO):
        blind = make_task(do_exposures=False, do_gallery=False)
        outputs = blind.run(patches=[dataclasses.replace(patch, exposures={})])
    assert "AP (perImage, IoU 0.50): all 1.000" in caplog.text
    assert "No ranges of areas" in caplog.text
    assert np.isnan(outputs.matches["flux_detected"]).all()
    assert blind.metadata["completeness_all"] == 1.0
    assert blind.metadata["ap_coco_mean_star"] == 1.0


def test_any_catalog() -> None:
    """A catalogue without classes and scores, with parents."""
    schema = SourceTable.makeMinimalSchema()
    schema.addField("deblend_nChild", type=np.int32, doc="Number of children")
    schema.addField("model_flux", type=np.float64, doc="Flux", units="nJy")
    catalog = SourceCatalog(schema)
    for i, record in enumerate(make_detections(perfect())):
        new = catalog.addNew()
        new.setFootprint(record.getFootprint())
        new["model_flux"] = 1.1 * FLUX["r"]
        if i == 0:
            parent = catalog.addNew()
            parent.setFootprint(record.getFootprint())
            parent["deblend_nChild"] = 1
    empty = catalog.addNew()
    empty.setFootprint(Footprint())
    patch = dataclasses.replace(make_patch(0, []), catalog=catalog)
    with pytest.raises(EvaluationInputError, match="1 of 7 sources of the catalogue have no pixel"):
        make_task().run(patches=[patch])
    task = make_task(fields__flux={"r": "model_flux"}, skip_without_footprint=True)
    outputs = task.run(patches=[patch])
    metrics = outputs.metrics
    assert {value.object_class for value in metrics.values} == {"all"}
    assert (metrics.patches[0].n_detections, metrics.patches[0].n_skipped) == (6, 2)
    assert metrics.get("ap", definition="pooled").value == 1.0
    assert metrics.get("purity").value == 1.0
    assert metrics.get("centroid_separation_median").value == 0.0
    assert metrics.get("flux_median", band="r").value == pytest.approx(0.1)
    with pytest.raises(KeyError, match="class_accuracy"):
        metrics.get("class_accuracy")
    for name in ("plotConfusion", "plotRoc", "plotCalibration"):
        getattr(outputs, name).canvas.draw()


def test_no_simulator_and_no_drawing_is_imported() -> None:
    """What evaluates a catalogue needs neither GalSim nor, without plots, matplotlib."""
    code = """
import sys
import lsst.meas.maskrcnn.tasks.evaluate
found = sorted({"galsim", "matplotlib", "torch"} & set(sys.modules))
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_connections() -> None:
    pipelineTests.lintConnections(MaskRcnnEvaluateConnections)
    config = MaskRcnnEvaluateConfig()
    connections = MaskRcnnEvaluateConnections(config=config)
    assert connections.dimensions == {"skymap"}
    assert connections.catalogs.name == "deepCoadd_maskRcnnCatalog"
    assert connections.taskMetadata.name == "maskRcnnDeblend_metadata"
    assert connections.inputs == {"catalogs", "truth", "bandCatalogs", "exposures", "taskMetadata"}
    config.do_throughput = config.do_plots = False
    config.do_gallery = config.do_exposures = False
    connections = MaskRcnnEvaluateConnections(config=config)
    assert connections.inputs == {"catalogs", "truth"}
    assert connections.outputs == {"metrics", "matches", "precisionRecall", "outcomes"}
    for part in (config, config.fields):
        for name, field in part._fields.items():
            assert field.doc, name
    own = set(config.toDict()) - set(pipeBase.PipelineTaskConfig().toDict())
    assert len(own - {"fields", "connections"}) + len(config.fields.toDict()) <= 25
    for connection in connections.allConnections.values():
        assert connection.doc


@pytest.mark.parametrize(
    "changes, missing",
    [
        ({}, set()),
        ({"do_throughput": False, "do_plots": False}, {"seconds"}),
        ({"do_exposures": False, "do_gallery": False}, {"exposures"}),
        ({"bands": ["g", "r"], "do_gallery": False}, set()),
    ],
)
def test_quantum(tmp_path: Path, changes: dict[str, Any], missing: set[str]) -> None:
    """What each branch of the configuration hands to `run`."""
    repo = makeTestRepo(str(tmp_path), config=Config(SEED_CONFIG))
    bbox = geom.Box2I(XY0, geom.Extent2I(SHAPE[1], SHAPE[0]))
    geometries = [PatchGeometry(3, number, make_wcs(), bbox, (number, 0)) for number in (0, 1)]
    register_patches(repo, "sky", geometries, BANDS, instrument="cam")
    task = make_task(**changes)
    connections = MaskRcnnEvaluateConnections(config=task.config)
    for connection in connections.allConnections.values():
        addDatasetType(repo, connection.name, connection.dimensions, connection.storageClass)
    butler = makeTestCollection(repo)
    scene = Scene()
    patch = make_patch(0, perfect(), scene)
    places = [{"skymap": "sky", "tract": 3, "patch": number} for number in (1, 0)]
    banded = [{**place, "band": band} for place in places for band in BANDS]
    refs: dict[str, Any] = {name: {"skymap": "sky"} for name in connections.outputs}
    for name in connections.inputs:
        refs[name] = banded if "band" in getattr(connections, name).dimensions else places
    metadata = pipeBase.TaskMetadata()
    metadata["maskRcnnDeblend"] = pipeBase.TaskMetadata()
    metadata["maskRcnnDeblend"]["seconds_detect"] = 1.5
    for data_id in places:
        butler.put(patch.catalog, "deepCoadd_maskRcnnCatalog", data_id)
        butler.put(patch.truth, "maskRcnn_truth", data_id)
        if task.config.do_throughput:
            butler.put(metadata, "maskRcnnDeblend_metadata", data_id)
    for data_id in banded:
        band = str(data_id["band"])
        if task.config.do_exposures:
            butler.put(patch.exposures[band], "deepCoadd_calexp", data_id)
            butler.put(patch.catalog, "deepCoadd_maskRcnnDeblended", data_id)
    quantum = pipelineTests.makeQuantum(task, butler, {"skymap": "sky"}, refs)
    run = pipelineTests.runTestQuantum(task, butler, quantum, mockRun=True)
    run.assert_called_once()
    assert not run.call_args.args
    arguments = run.call_args.kwargs
    # The generator may be asked once the quantum is done: the reads are deferred.
    patches = list(arguments["patches"])
    assert [(patch.tract, patch.patch) for patch in patches] == [(3, 0), (3, 1)]
    assert (arguments["skymap"], arguments["n_patches"]) == ("sky", 2)
    assert len(arguments["runs"]) == 1
    for patch in patches:
        assert len(patch.truth) == len(patch.catalog) == 6
        wanted = set() if "exposures" in missing else set(task.config.bands or BANDS)
        assert set(patch.exposures) == wanted
        assert set(patch.band_catalogs) == wanted
        assert np.isnan(patch.seconds) if "seconds" in missing else patch.seconds == 1.5


@pytest.mark.parametrize(
    "overrides, inputs",
    [
        (
            {},
            {
                "deepCoadd_maskRcnnCatalog",
                "deepCoadd_maskRcnnDeblended",
                "maskRcnn_truth",
                "deepCoadd_calexp",
                "maskRcnnDeblend_metadata",
            },
        ),
        (
            {
                "maskRcnnEvaluate:connections.catalogName": "deepCoadd_deblendedCatalog",
                "maskRcnnEvaluate:connections.outputName": "scarletEvaluation",
                "maskRcnnEvaluate:do_throughput": "False",
                "maskRcnnEvaluate:do_exposures": "False",
                "maskRcnnEvaluate:do_gallery": "False",
                "maskRcnnEvaluate:do_plots": "False",
            },
            {"deepCoadd_deblendedCatalog", "maskRcnn_truth"},
        ),
    ],
)
def test_pipeline(tmp_path: Path, overrides: dict[str, str], inputs: set[str]) -> None:
    butler = makeTestRepo(str(tmp_path), config=Config(SEED_CONFIG))
    start = overrides.get("maskRcnnEvaluate:connections.outputName", "maskRcnnEvaluation")
    outputs = {f"{start}_{name}" for name in ("metrics", "matches", "precisionRecall", "outcomes")}
    if not overrides:
        outputs |= {f"{start}_gallery"}
        outputs |= {f"{start}_plot_{name[4].lower()}{name[5:]}" for name in PLOTS}
    kinds = {"deepCoadd_calexp": "ExposureF", "maskRcnnDeblend_metadata": "TaskMetadata"}
    banded = {"deepCoadd_calexp", "deepCoadd_maskRcnnDeblended"}
    tester = PipelineStepTester(
        filename=str(PIPELINE),
        step_suffixes=[""],
        initial_dataset_types=[
            (
                name,
                {"skymap", "tract", "patch"} | ({"band"} if name in banded else set()),
                kinds.get(name, "SourceCatalog"),
                False,
            )
            for name in inputs
        ],
        expected_inputs=inputs,
        expected_outputs=outputs,
        pipeline_patches=overrides,
    )
    tester.run(butler, unittest.TestCase())
