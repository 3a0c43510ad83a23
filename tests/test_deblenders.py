# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Readers of deblenders' catalogues, and the baselines."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from lsst.afw.detection import Footprint, GaussianPsf, HeavyFootprintF, makeHeavyFootprint
from lsst.afw.geom import SpanSet, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF, MaskedImageF, PhotoCalib
from lsst.afw.table import SourceCatalog, SourceTable
from lsst.geom import Box2I, Extent2I, Point2D, Point2I, SpherePoint, arcseconds, degrees
from lsst.meas.maskrcnn.catalogs.exposures import IncompatibleExposuresError, UncalibratedExposureError
from lsst.meas.maskrcnn.catalogs.truth import make_truth_catalog, make_truth_flux
from lsst.meas.maskrcnn.compare.baselines import (
    BASELINES,
    PhotutilsDeblender,
    SepDeblender,
    _spans_of_segments,
)
from lsst.meas.maskrcnn.compare.readers import CatalogReader, TruthReader, field_images
from lsst.meas.maskrcnn.compare.scarlet2 import Scarlet2Deblender
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene

BOX = Box2I(Point2I(12000, 8000), Extent2I(80, 50))
CALIBRATION = {"g": 2.0, "r": 0.5}
WCS = makeSkyWcs(
    Point2D(12000, 8000), SpherePoint(150.0, 2.0, degrees), makeCdMatrix(scale=0.168 * arcseconds)
)


def make_exposure(band: str, level: float = 3.0, box: Box2I = BOX) -> ExposureF:
    exposure = ExposureF(box, WCS)
    exposure.image.array[:] = level
    exposure.variance.array[:] = 4.0
    exposure.setPhotoCalib(PhotoCalib(CALIBRATION[band]))
    return exposure


def box_footprint(x: int, y: int, width: int, height: int) -> Footprint:
    box = Box2I(Point2I(12000 + x, 8000 + y), Extent2I(width, height))
    footprint = Footprint(SpanSet(box), BOX)
    footprint.addPeak(float(box.getMinX() + 1), float(box.getMinY() + 1), 5.0)
    return footprint


def heavy_footprint(x: int, y: int, width: int, height: int, level: float) -> HeavyFootprintF:
    image = MaskedImageF(BOX)
    image.image.array[:] = level
    return makeHeavyFootprint(box_footprint(x, y, width, height), image)


def new_catalog(*flags: str) -> SourceCatalog:
    schema = SourceTable.makeMinimalSchema()
    for name in ("deblend_nChild", "deblend_nPeaks", "deblend_iterations"):
        schema.addField(name, type=np.int32, doc=name)
    schema.addField("deblend_runtime", type=np.float32, doc="time", units="ms")
    for name in ("deblend_peak_center_x", "deblend_peak_center_y"):
        schema.addField(name, type=np.float64, doc=name, units="pixel")
    for name in flags:
        schema.addField(name, type="Flag", doc=name)
    return SourceCatalog(SourceTable.make(schema))


def add(
    catalog: SourceCatalog,
    number: int,
    parent: int = 0,
    n_child: int = 0,
    n_peak: int = 1,
    footprint: Footprint | None = None,
    **more: float,
) -> None:
    record = catalog.addNew()
    record.setId(number)
    record.setParent(parent)
    record["deblend_nChild"], record["deblend_nPeaks"] = n_child, n_peak
    for name, value in more.items():
        record[name] = value
    if footprint is not None:
        record.setFootprint(footprint)


def test_field_images() -> None:
    exposures = {band: make_exposure(band) for band in ("g", "r")}
    exposures["r"].mask.array[3, 4] = exposures["r"].mask.getPlaneBitMask("SAT")
    exposures["g"].image.array[5, 6] = np.nan
    images = field_images(exposures)
    assert images.bands == ("g", "r") and images.origin == (8000, 12000) and images.shape == (50, 80)
    assert images.images["g"][0, 0] == 6.0 and images.variances["r"][0, 0] == 1.0
    assert np.argwhere(~images.usable).tolist() == [[3, 4], [5, 6]]
    exposures["r"] = make_exposure("r", box=Box2I(Point2I(12000, 8000), Extent2I(50, 80)))
    with pytest.raises(IncompatibleExposuresError, match="bounding box"):
        field_images(exposures)
    exposures["r"] = make_exposure("r")
    exposures["r"].setPhotoCalib(None)
    with pytest.raises(UncalibratedExposureError, match="no PhotoCalib"):
        field_images(exposures)


def test_one_catalogue_with_parents() -> None:
    """Parents, children and an isolated source in one catalogue, their pixels in others."""
    catalog = new_catalog()
    add(catalog, 1, n_child=2, n_peak=2, footprint=box_footprint(3, 4, 10, 6), deblend_runtime=12.5)
    add(catalog, 2, footprint=box_footprint(40, 20, 4, 5))
    add(catalog, 3, parent=1, footprint=box_footprint(3, 4, 6, 6))
    add(catalog, 4, parent=1, footprint=box_footprint(7, 4, 6, 6))
    bands = {}
    for band, level in (("g", 1.0), ("r", 4.0)):
        bands[band] = new_catalog()
        add(bands[band], 3, parent=1, footprint=heavy_footprint(3, 4, 6, 6, level))
        add(bands[band], 4, parent=1, footprint=heavy_footprint(7, 4, 6, 6, 2 * level))
    images = field_images({band: make_exposure(band) for band in ("g", "r")})
    statistics = Table({"objectId": [1, 2], "deblend_nChild": [2, 1], "deblend_chi2": [1.0, 9.0]})
    reader = CatalogReader("ours", catalog, bands, parent_statistics=statistics, seconds=3.0)
    field = reader.deblend(images)
    assert field.parents["chi2"][0] == 1.0 and np.isnan(field.parents["chi2"][1])
    assert field.ids.tolist() == [2, 3, 4] and field.parent_ids.tolist() == [2, 1, 1]
    assert field.x.tolist() == [12041.0, 12004.0, 12008.0] and field.y[0] == 8021.0
    # The isolated source has the pixels of the image in its mask: 3 counts each.
    assert field.flux["g"].tolist() == [20 * 6.0, 36 * 2.0, 36 * 4.0]
    assert field.flux["r"].tolist() == [20 * 1.5, 36 * 2.0, 36 * 4.0]
    assert field.parents["id"].tolist() == [1, 2] and field.parents["n_child"].tolist() == [2, 0]
    assert field.parents["runtime_ms"][0] == 12.5 and np.isnan(field.parents["runtime_ms"][1])
    assert field.parent_spans.areas.tolist() == [60, 20]
    assert field.is_blend.tolist() == [True, False]
    assert not field.templates and field.seconds == 3.0
    with pytest.raises(ValueError, match=r"HeavyFootprints in \['r'\], but no exposures"):
        reader.deblend(field_images({"g": make_exposure("g")}))


def test_catalogue_of_leaves() -> None:
    """Without parents, children or fields of a deblender all sources are isolated."""
    catalog = SourceCatalog(SourceTable.make(SourceTable.makeMinimalSchema()))
    for number, x in enumerate((3, 30)):
        record = catalog.addNew()
        record.setId(number + 5)
        record.setFootprint(box_footprint(x, 4, 5, 5))
    images = field_images({"g": make_exposure("g")})
    field = CatalogReader("leaves", catalog).deblend(images)
    assert field.parent_ids.tolist() == [5, 6] and field.parents["n_child"].tolist() == [0, 0]
    assert field.flux["g"].tolist() == [150.0, 150.0]
    nothing = CatalogReader("none", SourceCatalog(catalog.getTable())).deblend(images)
    assert len(nothing) == len(nothing.parents) == 0


@pytest.mark.parametrize(("inverted", "told"), [(True, True), (False, False), (True, None), (False, None)])
def test_parents_of_their_own(inverted: bool, told: bool | None) -> None:
    """As scarlet has it: without models, one blend skipped, one failed, one without convergence."""
    catalog = new_catalog()
    add(catalog, 1, footprint=box_footprint(40, 20, 4, 5), deblend_peak_center_x=12041)
    catalog[0]["deblend_peak_center_y"] = 8021
    for number, parent in ((10, 2), (11, 2), (12, 5), (13, 5)):
        add(
            catalog,
            number,
            parent=parent,
            deblend_peak_center_x=12000.0 + number,
            deblend_peak_center_y=8005.0,
        )
    parents = new_catalog(
        "deblend_skipped",
        "deblend_skipped_isolatedParent",
        "deblend_skipped_parentTooBig",
        "deblend_failed",
        "deblend_blendConvergenceFailedFlag",
    )
    add(parents, 1, footprint=box_footprint(40, 20, 4, 5), deblend_skipped_isolatedParent=True)
    add(parents, 2, n_child=2, n_peak=2, footprint=box_footprint(3, 2, 14, 6), deblend_runtime=80.0)
    add(parents, 3, n_peak=900, footprint=box_footprint(50, 5, 20, 9), deblend_skipped_parentTooBig=True)
    add(parents, 4, n_peak=2, footprint=box_footprint(50, 30, 9, 9), deblend_failed=True)
    add(parents, 5, n_child=2, n_peak=2, footprint=box_footprint(3, 20, 14, 6), deblend_runtime=20.0)
    # A piece in which scarlet works is no parent of its own.
    add(parents, 90, parent=2, n_child=1, footprint=box_footprint(3, 2, 5, 5), deblend_iterations=20)
    parents[5]["deblend_blendConvergenceFailedFlag"] = inverted
    parents[1]["deblend_blendConvergenceFailedFlag"] = inverted
    parents[4]["deblend_blendConvergenceFailedFlag"] = not inverted
    # It ran to the limit.
    parents[1]["deblend_iterations"], parents[4]["deblend_iterations"] = 40, 300
    images = field_images({"g": make_exposure("g")})
    reader = CatalogReader("scarlet", catalog, parent_catalog=parents, convergence_inverted=told)
    field = reader.deblend(images)
    assert field.ids.tolist() == [1, 10, 11, 12, 13] and field.n_without_mask == 4
    assert field.x.tolist() == [12041.0, 12010.0, 12011.0, 12012.0, 12013.0]
    assert field.flux["g"][0] == 120.0 and np.isnan(field.flux["g"][1:]).all()
    assert field.parents["id"].tolist() == [1, 2, 3, 4, 5]
    assert field.parents["skipped"].tolist() == [False, False, True, False, False]
    assert field.parents["failed"].tolist() == [False, False, False, True, False]
    assert field.parents["not_converged"].tolist() == [False, False, False, False, True]
    assert field.parent_spans.areas.tolist() == [20, 84, 180, 81, 84]
    without = CatalogReader("scarlet", catalog).deblend(images)
    assert without.parents["id"].tolist() == [1, 2, 5]
    assert without.parents["n_child"].tolist() == [0, 2, 2]


def test_truth() -> None:
    config = preset_config("hsc-wide", shape=(60, 90), keep_models=True)
    scene = simulate_scene(config, np.random.default_rng(4))
    catalog = make_truth_catalog(scene, WCS, BOX.getMin())
    flux = {"r": make_truth_flux(scene, "r", BOX.getMin())}
    field = TruthReader(catalog, flux, ["faint"]).deblend(field_images({"r": make_exposure("r")}))
    assert len(field) == len(scene.sources) > 5
    np.testing.assert_allclose(field.x, scene.sources["x"] + 12000)
    np.testing.assert_allclose(field.flux["r"], scene.sources["flux_r"])
    # Members of a group have one parent.
    for group in np.unique(scene.sources["group"]):
        assert len(np.unique(field.parent_ids[scene.sources["group"] == group])) == 1
    assert len(np.unique(field.parent_ids)) == len(np.unique(scene.sources["group"]))
    np.testing.assert_array_equal(field.ignored, catalog["truth_flag_faint"])
    np.testing.assert_array_equal(field.columns["blendedness"], catalog["truth_blendedness"])
    painted = field.models["r"].paint((60, 90), (8000, 12000))
    light = scene.light[scene.bands.index("r")]
    np.testing.assert_allclose(painted, light, atol=1e-4 * light.max())


def test_scarlet_data(shared_data: Path) -> None:
    """The real pipeline's catalogues: its own HeavyFootprints as they are."""
    folder = shared_data / "scarlet"
    catalog = SourceCatalog.readFits(str(folder / "deblendedCatalog.fits"))
    parents = SourceCatalog.readFits(str(folder / "object_parent_patch.fits"))
    heavy = SourceCatalog.readFits(str(folder / "deblended_r.fits"))
    exposure = ExposureF.readFits(str(folder / "exposure_r.fits"))
    factor = exposure.getPhotoCalib().getCalibrationMean()
    reader = CatalogReader("scarlet", catalog, {"r": heavy}, parent_catalog=parents)
    field = reader.deblend(field_images({"r": exposure}))
    assert len(field) == 65 and len(field.parents) == 41 and field.n_without_mask == 0
    assert int(field.is_blend.sum()) == 14
    assert int(np.sum(field.parents["not_converged"])) == int(np.sum(field.parents["skipped"])) == 0
    child = 30
    pixels = heavy[child].getFootprint().getImageArray().sum(dtype=np.float64)
    assert field.flux["r"][child] == pytest.approx(pixels * factor, rel=1e-5)


def test_segments_to_spans() -> None:
    segments = np.zeros((4, 6), dtype=np.int32)
    segments[0, :2], segments[1, 4:], segments[2] = 3, 7, [0, 3, 3, 7, 0, 3]
    segments[3, 5] = 9
    masks, origins = _spans_of_segments(segments, (10, 20)).to_masks()
    for label, mask, (y0, x0) in zip((3, 7, 9), masks, origins.tolist(), strict=True):
        again = np.zeros(segments.shape, dtype=bool)
        again[y0 - 10 : y0 - 10 + mask.shape[0], x0 - 20 : x0 - 20 + mask.shape[1]] = mask
        np.testing.assert_array_equal(again, segments == label)
    assert len(_spans_of_segments(np.zeros((3, 5), dtype=int), (0, 0))) == 0


@pytest.mark.parametrize("name", ["sep", "photutils"])
def test_baseline(name: str) -> None:
    """A pair that touches, a source alone, and a bad column that hides another."""
    packages = {"sep": ["sep"], "photutils": ["photutils", "skimage"]}[name]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[8000:8050, 12000:12080]
    sources = [(12020.0, 8015.0, 4000.0), (12031.0, 8017.0, 2000.0), (12060.0, 8033.0, 3000.0)]
    hidden = (12045.0, 8040.0, 3000.0)
    exposures = {}
    for band, color in (("g", 1.0), ("r", 4.0)):
        exposure = make_exposure(band, 0.0)
        for x, y, flux in (*sources, hidden):
            shape = np.exp(-0.5 * ((xx - x) ** 2 + (yy - y) ** 2) / 2.5**2) / (2 * np.pi * 2.5**2)
            exposure.image.array[:] += color * flux * shape
        exposure.image.array[:] += rng.normal(0.0, 2.0, size=xx.shape)
        exposure.mask.array[32:48, 37:53] |= exposure.mask.getPlaneBitMask("BAD")
        exposures[band] = exposure
    field = BASELINES[name]().deblend(field_images(exposures))
    assert len(field) == 3
    order = np.argsort(field.x)
    for index, (x, y, _) in zip(order, sources):
        assert np.hypot(field.x[index] - x, field.y[index] - y) < 1.0
    parents = field.parent_ids[order]
    assert parents[0] == parents[1] != parents[2]
    assert sorted(field.parents["n_child"].tolist()) == [0, 2]
    # Light within the isophote, in nJy.
    for band, color in (("g", 2.0), ("r", 2.0)):
        ratio = field.flux[band][order] / (np.array([flux for _, _, flux in sources]) * color)
        assert (ratio > 0.75).all() and (ratio < 1.15).all()
    assert np.isfinite(field.seconds)
    kind = {"sep": SepDeblender, "photutils": PhotutilsDeblender}[name]
    nothing = kind(threshold=8.0).deblend(field_images({"g": make_exposure("g", 0.0)}))
    assert len(nothing) == 0 and len(nothing.parents) == 0


@pytest.mark.slow
def test_scarlet2() -> None:
    """A pair whose isophotes touch, and a source alone; fluxes are shared by models."""
    if importlib.util.find_spec("scarlet2") is None:
        pytest.skip("scarlet2 is not installed: pip install 'lsst-meas-maskrcnn[scarlet2]'")
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[8000:8050, 12000:12080]
    sources = [(12020.0, 8015.0, 4000.0, 1.0), (12030.0, 8017.0, 2000.0, 3.0), (12060.0, 8033.0, 3000.0, 2.0)]
    exposures = {}
    for index, band in enumerate("gr"):
        exposure = make_exposure(band, 0.0)
        for x, y, flux, color in sources:
            shape = np.exp(-0.5 * ((xx - x) ** 2 + (yy - y) ** 2) / 3.0**2) / (2 * np.pi * 3.0**2)
            exposure.image.array[:] += flux * color**index * shape
        exposure.image.array[:] += rng.normal(0.0, 1.0, size=xx.shape)
        exposure.variance.array[:] = 1.0
        exposure.setPsf(GaussianPsf(21, 21, 2.0))
        exposures[band] = exposure
    images = field_images(exposures)
    start = SepDeblender().deblend(images)
    field = Scarlet2Deblender(SepDeblender()).deblend(images)
    order = np.argsort(field.x)
    assert len(field) == 3 and not field.parents["failed"].any() and not field.parents["skipped"].any()
    assert np.count_nonzero(np.isfinite(field.parents["runtime_ms"])) == 1
    for index, band in enumerate("gr"):
        scale = exposures[band].getPhotoCalib().getCalibrationMean()
        # What the pair has is shared anew, and nothing of it is lost.
        pair, alone = order[:2], order[2]
        assert field.flux[band][pair].sum() == pytest.approx(start.flux[band][pair].sum(), rel=2e-3)
        assert field.flux[band][alone] == start.flux[band][alone]
        true = np.array([flux * color**index for _, _, flux, color in sources[:2]]) * scale
        assert (np.abs(field.flux[band][pair] / true - 1.0) < 0.1).all()
    few = Scarlet2Deblender(SepDeblender(), max_sources=1).deblend(images)
    assert few.parents["skipped"].sum() == 1
    np.testing.assert_array_equal(few.flux["r"], start.flux["r"])
    exposures["g"].setPsf(None)
    with pytest.raises(ValueError, match="no PSF"):
        Scarlet2Deblender(SepDeblender()).deblend(field_images(exposures))


def test_baseline_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lsst-meas-maskrcnn\[compare\]"):
        SepDeblender().deblend(field_images({"g": make_exposure("g")}))
