# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The deblending task: connections, configuration, quanta, and `run` with a known detector.

The network is replaced by a threshold here, so that every expected number
follows from the pixels; with a network it runs in test_deblend_pipetask.py.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.table import Table
from quanta import make_quantum
from scipy import ndimage

import lsst.geom as geom
import lsst.pipe.base as pipeBase
import lsst.pipe.base.testUtils as pipelineTests
from lsst.afw.detection import GaussianPsf
from lsst.afw.geom import makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF, FilterLabel, PhotoCalib
from lsst.afw.table import SourceCatalog
from lsst.daf.butler import Butler, Config, DataCoordinate
from lsst.daf.butler.tests import addDatasetType, makeTestCollection, makeTestRepo
from lsst.meas.base import IdGenerator
from lsst.meas.maskrcnn.catalogs.evaluation_io import task_timing
from lsst.meas.maskrcnn.catalogs.exposures import (
    IncompatibleExposuresError,
    MissingBandError,
    UncalibratedExposureError,
    UnusableExposureError,
)
from lsst.meas.maskrcnn.deblend import detection
from lsst.meas.maskrcnn.images.normalize import LuptonSettings, ZScoreSettings
from lsst.meas.maskrcnn.ingest.repo import (
    SEED_CONFIG,
    PatchGeometry,
    create_repo,
    put_exposures,
    register_patches,
)
from lsst.meas.maskrcnn.network.build import build_network
from lsst.meas.maskrcnn.network.detections import Detections
from lsst.meas.maskrcnn.network.inference import DetectionSettings
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel, ModelMetadata, load_model, write_model
from lsst.meas.maskrcnn.network.spec import NetworkSpec
from lsst.meas.maskrcnn.tasks.deblend import (
    MaskRcnnDeblendConfig,
    MaskRcnnDeblendConnections,
    MaskRcnnDeblendTask,
)
from lsst.pex.config import FieldValidationError

BANDS = ("z", "r", "g")
XY0 = (12000, -300)
WIDTH, HEIGHT = 90, 60
SIGMA = 5.0
# x, y, flux at the peak in units of the noise, width
SOURCES = ((20, 15, 300.0, 1.5), (60, 40, 150.0, 2.0), (88, 30, 200.0, 1.5))


@pytest.fixture(scope="module")
def model() -> MaskRcnnModel:
    spec = NetworkSpec(
        in_channels=3,
        backbone="resnet18",
        returned_layers=(1,),
        fpn_channels=8,
        anchor_sizes=((8.0,), (16.0,)),
        box_features=16,
        mask_channels=(8,),
        detection_score=0.4,
        detection_nms=0.6,
        detections_per_image=123,
    )
    metadata = ModelMetadata(
        name="tiny", architecture=spec, bands=BANDS, normalization=LuptonSettings(), pixel_scale=0.168
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MaskRcnnModel.from_network(build_network(spec), metadata)


def make_wcs(scale: float = 0.168, shift: float = 0.0):
    return makeSkyWcs(
        geom.Point2D(XY0[0] + WIDTH / 2 + shift, XY0[1] + HEIGHT / 2),
        geom.SpherePoint(150.0, 2.0, geom.degrees),
        makeCdMatrix(scale=scale * geom.arcseconds),
    )


def make_exposures(bands: tuple[str, ...] = BANDS, scale: float = 0.168) -> dict[str, ExposureF]:
    """Round sources on noise, in nJy, the same in all bands but for a colour."""
    rng = np.random.default_rng(42)
    yy, xx = np.mgrid[:HEIGHT, :WIDTH]
    truth = np.zeros((HEIGHT, WIDTH))
    for x, y, peak, sigma in SOURCES:
        truth += SIGMA * peak * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))
    exposures = {}
    for index, band in enumerate(bands):
        exposure = ExposureF(geom.Box2I(geom.Point2I(*XY0), geom.Extent2I(WIDTH, HEIGHT)), make_wcs(scale))
        exposure.image.array[:] = truth * (1 + 0.2 * index) + rng.normal(0, SIGMA, truth.shape)
        exposure.variance.array[:] = SIGMA**2
        exposure.setPhotoCalib(PhotoCalib(1.0))
        exposure.setFilter(FilterLabel.fromBand(band))
        exposures[band] = exposure
    return exposures


def threshold(image: np.ndarray, progress: Any) -> Detections:
    """Pixels above a threshold, the brightest source a star with score 0.9, the others galaxies."""
    mean = image.mean(axis=0)
    labels, n = ndimage.label(mean > 0.25 * mean.max())
    slices = ndimage.find_objects(labels)
    flux = ndimage.maximum(mean, labels, np.arange(1, n + 1))
    order = np.argsort(-np.asarray(flux), kind="stable")
    masks = [labels[slices[i]] == i + 1 for i in order]
    progress(1, 1)
    boxes = [[slices[i][1].start, slices[i][0].start, slices[i][1].stop, slices[i][0].stop] for i in order]
    return Detections(
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.6, n, dtype=np.float32),
        p_star=np.resize(np.array([0.8, 0.1, 0.3], dtype=np.float32), n),
        origins=np.array([[slices[i][0].start, slices[i][1].start] for i in order], dtype=np.int32),
        masks=masks,
        timings={"forward": 0.25, "masks": 0.5, "seams": 0.0},
    )


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the network; returns the arguments of every call."""
    calls: list[dict[str, Any]] = []

    def fake(
        network: torch.nn.Module, image: np.ndarray, valid: np.ndarray, settings: Any, **kwargs: Any
    ) -> Detections:
        calls.append({"image": image.copy(), "valid": valid.copy(), "settings": settings, **kwargs})
        return threshold(image, kwargs["progress"])

    monkeypatch.setattr(detection, "detect", fake)
    return calls


def make_task(**fields: Any) -> MaskRcnnDeblendTask:
    config = MaskRcnnDeblendConfig()
    config.update(**fields)
    config.validate()
    return MaskRcnnDeblendTask(config=config)


# --- connections and configuration


def test_connections() -> None:
    pipelineTests.lintConnections(MaskRcnnDeblendConnections)
    config = MaskRcnnDeblendConfig()
    connections = MaskRcnnDeblendConnections(config=config)
    assert connections.dimensions == {"skymap", "tract", "patch"}
    assert connections.prerequisiteInputs == {"model"}
    assert connections.skyMap.name == "skyMap"
    assert connections.skyMap.minimum == 0
    assert connections.skyMap.deferGraphConstraint
    assert connections.exposures.name == "deepCoadd_calexp"
    assert connections.catalog.name == "deepCoadd_maskRcnnCatalog"
    assert connections.bandCatalogs.name == "deepCoadd_maskRcnnDeblended"
    assert set(connections.bandCatalogs.dimensions) == {"skymap", "tract", "patch", "band"}
    assert connections.blendStatistics.name == "deepCoadd_maskRcnnBlends"
    assert connections.outputSchema.name == "deepCoadd_maskRcnnCatalog_schema"
    config.connections.coaddName = "goodSeeing"
    assert MaskRcnnDeblendConnections(config=config).exposures.name == "goodSeeingCoadd_calexp"
    config.model_uri = "model.safetensors"
    assert not MaskRcnnDeblendConnections(config=config).prerequisiteInputs


def test_everything_is_documented() -> None:
    config = MaskRcnnDeblendConfig()
    for part in (config, config.detection, config.shares):
        for name, field in part._fields.items():
            assert field.doc, name
    for connection in MaskRcnnDeblendConnections(config=config).allConnections.values():
        assert connection.doc


def test_validate() -> None:
    config = MaskRcnnDeblendConfig()
    config.detection.tile_size, config.detection.tile_overlap = 256, 300
    with pytest.raises(FieldValidationError, match="tile_overlap is 300 px.*less than tile_size, 256 px"):
        config.validate()
    with pytest.raises(FieldValidationError, match="a band of its own"):
        make_task(bands={"z": "r", "g": "r"})
    for name, value in (("score_threshold", 1.5), ("min_area", 0)):
        with pytest.raises(FieldValidationError):
            setattr(MaskRcnnDeblendConfig().detection, name, value)
    config = MaskRcnnDeblendConfig()
    config.detection.device = "tpu"
    with pytest.raises(FieldValidationError, match="device"):
        config.validate()


def test_init_output() -> None:
    task = make_task()
    pipelineTests.assertValidInitOutput(task)
    assert isinstance(task.outputSchema, SourceCatalog)
    assert len(task.outputSchema) == 0
    assert "maskrcnn_star" in task.outputSchema.schema


# --- run


def test_the_network_is_told_the_width_of_the_psf(
    model: MaskRcnnModel, detector: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """In the order of the model's bands; NaN where an exposure has no PSF."""
    exposures = make_exposures(("g", "r", "z"))
    exposures["z"].setPsf(GaussianPsf(25, 25, 2.0))
    exposures["g"].setPsf(GaussianPsf(25, 25, 1.5))
    task = make_task()
    task.run(exposures=exposures, model=model)
    fwhm = 2.0 * np.sqrt(2.0 * np.log(2.0))
    np.testing.assert_allclose(detector[0]["psf_fwhm"], [2.0 * fwhm, np.nan, 1.5 * fwhm], rtol=1e-3)
    assert "'r' has no PSF" in caplog.text


def test_run_by_hand(model: MaskRcnnModel, detector: list[dict[str, Any]]) -> None:
    exposures = make_exposures()
    exposures["r"].mask.array[14:17, 19] |= exposures["r"].mask.getPlaneBitMask("SAT")
    exposures["g"].mask.array[40, 60] |= exposures["g"].mask.getPlaneBitMask("CR")
    before = {band: exposure.clone() for band, exposure in exposures.items()}
    task = make_task()
    catalog = task.run(exposures=exposures, model=model).catalog

    assert catalog.schema == task.outputSchema.schema
    assert catalog["id"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(np.diff(catalog["maskrcnn_score"]) < 0, True)
    assert catalog["maskrcnn_star"].tolist() == [True, False, False]
    assert catalog["maskrcnn_galaxy"].tolist() == [False, True, True]
    np.testing.assert_allclose(catalog["maskrcnn_pStar"], [0.8, 0.1, 0.3], rtol=1e-6)
    assert catalog["deblend_nChild"].tolist() == [0, 0, 0]
    positions = {(x, y) for x, y, _, _ in SOURCES}
    bbox = exposures["z"].getBBox()
    for record in catalog:
        x, y = record.getX() - XY0[0], record.getY() - XY0[1]
        nearest = min(positions, key=lambda p: np.hypot(p[0] - x, p[1] - y))
        positions.remove(nearest)
        edge = nearest == (88, 30)
        # Half of the source at the edge is missing.
        assert np.hypot(nearest[0] - x, nearest[1] - y) < (1.5 if edge else 0.3)
        assert record["maskrcnn_flag_edge"] == edge
        assert record["maskrcnn_flag_saturated"] == (nearest == (20, 15))
        assert record["maskrcnn_flag_bad"] == (nearest in ((20, 15), (60, 40)))
        assert not record["maskrcnn_centroid_flag"]
        footprint = record.getFootprint()
        assert record["maskrcnn_area"] == footprint.getArea()
        assert bbox.contains(footprint.getBBox())
        box = geom.Box2I(
            geom.Point2I(record["maskrcnn_bbox_minX"], record["maskrcnn_bbox_minY"]),
            geom.Point2I(record["maskrcnn_bbox_maxX"], record["maskrcnn_bbox_maxY"]),
        )
        assert box == footprint.getBBox()
        if nearest == (60, 40):
            assert record["maskrcnn_badFraction"] == pytest.approx(1 / footprint.getArea())
        peak = footprint.getPeaks()[0]
        assert np.hypot(peak.getIx() - nearest[0] - XY0[0], peak.getIy() - nearest[1] - XY0[1]) < 2
        sky = exposures["z"].getWcs().pixelToSky(record.getCentroid())
        assert record.getCoord().separation(sky).asArcseconds() < 1e-6

    for band in BANDS:
        np.testing.assert_array_equal(exposures[band].image.array, before[band].image.array)
        np.testing.assert_array_equal(exposures[band].mask.array, before[band].mask.array)
    for key in ("seconds_normalize", "seconds_forward", "seconds_masks", "seconds_shares"):
        assert task.metadata[key] >= 0
    assert task_timing(task.getFullMetadata(), "maskRcnnDeblend")[0] == task.metadata["seconds_total"] > 0
    gc.collect()
    assert task.getFullMetadata()["maskRcnnDeblend"]["model"] == "tiny"
    np.testing.assert_allclose(task.metadata.getArray("noise_nJy"), SIGMA, rtol=0.1)
    assert task.metadata["n_sources"] == 3
    assert task.metadata["n_stars"] == 1
    assert detector[0]["settings"] == DetectionSettings()


def test_channels_follow_the_model(model: MaskRcnnModel, detector: list[dict[str, Any]]) -> None:
    """Neither the order of the mapping nor bands beside the model's matter."""
    exposures = make_exposures((*BANDS, "y"))
    task = make_task()
    first = task.run(exposures=exposures, model=model).catalog
    swapped = {band: exposures[band] for band in ("y", "g", "z", "r")}
    second = task.run(exposures=swapped, model=model).catalog
    np.testing.assert_array_equal(detector[0]["image"], detector[1]["image"])
    assert first["maskrcnn_centroid_x"].tolist() == second["maskrcnn_centroid_x"].tolist()
    # g is brightest in this scene and the model's last channel.
    x, y, _, _ = SOURCES[0]
    values = detector[0]["image"][:, y, x]
    assert values[0] < values[1] < values[2]


def test_bands_by_another_name(model: MaskRcnnModel, detector: list[dict[str, Any]]) -> None:
    exposures = make_exposures()
    make_task().run(exposures=exposures, model=model)
    renamed = {"z": exposures["z"], "R": exposures["r"], "g": exposures["g"]}
    make_task(bands={"r": "R"}).run(exposures=renamed, model=model)
    np.testing.assert_array_equal(detector[0]["image"], detector[1]["image"])
    with pytest.raises(pipeBase.InvalidQuantumError, match=r"maps \['i'\]"):
        make_task(bands={"i": "I"}).run(exposures=exposures, model=model)


def test_ids(model: MaskRcnnModel, detector: list[dict[str, Any]]) -> None:
    class Hundreds(IdGenerator):
        def make_table_id_factory(self):
            factory = super().make_table_id_factory()
            factory.notify(100)
            return factory

    catalog = make_task().run(exposures=make_exposures(), model=model, idGenerator=Hundreds()).catalog
    assert catalog["id"].tolist() == [101, 102, 103]


def test_settings_reach_the_engine(model: MaskRcnnModel, detector: list[dict[str, Any]]) -> None:
    config = MaskRcnnDeblendConfig()
    values = {
        "min_area": 3,
        "tile_size": 128,
        "tile_overlap": 32,
        "score_threshold": 0.0,
        "precision": "float32",
        "device": "cpu",
    }
    assert set(values) == set(config.detection.toDict())
    config.detection.update(**values)
    MaskRcnnDeblendTask(config=config).run(exposures=make_exposures(), model=model)
    assert dataclasses.asdict(detector[0]["settings"]) == values


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_named(model: MaskRcnnModel) -> None:
    config = MaskRcnnDeblendConfig()
    config.detection.device = "cuda"
    with pytest.raises(pipeBase.InvalidQuantumError, match="detection.device.*no GPU"):
        MaskRcnnDeblendTask(config=config).run(exposures=make_exposures(), model=model)


def test_small_footprints_go(model: MaskRcnnModel, detector: list[dict[str, Any]]) -> None:
    exposures = make_exposures()
    areas = make_task().run(exposures=exposures, model=model).catalog["maskrcnn_area"]
    config = MaskRcnnDeblendConfig()
    config.detection.min_area = int(areas.max())
    kept = MaskRcnnDeblendTask(config=config).run(exposures=exposures, model=model).catalog
    assert kept["maskrcnn_area"].tolist() == [areas.max()]
    assert kept["id"].tolist() == [1]


def test_mask_planes(
    model: MaskRcnnModel, detector: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    exposures = make_exposures()
    exposures["z"].mask.array[:] |= exposures["z"].mask.getPlaneBitMask("SUSPECT")
    catalog = make_task().run(exposures=exposures, model=model).catalog
    assert not catalog["maskrcnn_flag_bad"].any()
    task = make_task(bad_planes=["SUSPECT", "NO_SUCH_PLANE"], saturated_planes=["SUSPECT"])
    catalog = task.run(exposures=exposures, model=model).catalog
    assert catalog["maskrcnn_flag_bad"].all()
    assert catalog["maskrcnn_flag_saturated"].all()
    assert (catalog["maskrcnn_badFraction"] == 1).all()


def test_normalization_of_the_model_or_of_the_config(
    model: MaskRcnnModel, detector: list[dict[str, Any]]
) -> None:
    exposures = make_exposures()
    make_task().run(exposures=exposures, model=model)
    config = MaskRcnnDeblendConfig()
    config.normalize = "zscore"
    MaskRcnnDeblendTask(config=config).run(exposures=exposures, model=model)
    header = model.metadata.model_copy(update={"normalization": ZScoreSettings()})
    make_task().run(exposures=exposures, model=MaskRcnnModel(header, model.state))
    assert not np.allclose(detector[0]["image"], detector[1]["image"])
    np.testing.assert_array_equal(detector[1]["image"], detector[2]["image"])


def test_field_without_valid_pixels(
    model: MaskRcnnModel, detector: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    for value in (np.nan, np.inf):
        exposures = make_exposures()
        for exposure in exposures.values():
            exposure.image.array[:] = value
        task = make_task()
        with caplog.at_level(logging.INFO):
            catalog = task.run(exposures=exposures, model=model).catalog
        assert len(catalog) == 0
        assert catalog.schema == task.outputSchema.schema
        assert "No valid pixel of any band" in caplog.text
        assert task.metadata["n_valid_pixels"] == 0
    assert not any(call["valid"].any() for call in detector)
    config = MaskRcnnDeblendConfig()
    config.fail_without_pixels = True
    with pytest.raises(UnusableExposureError, match="any band"):
        MaskRcnnDeblendTask(config=config).run(exposures=exposures, model=model)


def test_bands_that_were_swapped(model: MaskRcnnModel) -> None:
    exposures = make_exposures()
    exposures["r"], exposures["g"] = exposures["g"], exposures["r"]
    with pytest.raises(UnusableExposureError, match="band 'r' has the filter 'g'.*swapped"):
        make_task().run(exposures=exposures, model=model)


def test_planes_that_no_exposure_has(
    model: MaskRcnnModel, detector: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    config = MaskRcnnDeblendConfig()
    config.bad_planes = ["SAT", "COSMIC_RAY", "SATURATION"]
    for _ in range(2):
        MaskRcnnDeblendTask(config=config).run(exposures=make_exposures(), model=model)
    (said,) = (record.getMessage() for record in caplog.records if "mask planes" in record.getMessage())
    assert "mask planes SATURATION of" in said


def test_field_without_sources(model: MaskRcnnModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "detect", lambda *args, **kwargs: Detections.empty())
    exposures = make_exposures()
    for exposure in exposures.values():
        exposure.image.array[:] = 0.0
    task = make_task()
    catalog = task.run(exposures=exposures, model=model).catalog
    assert len(catalog) == 0
    assert catalog.schema == task.outputSchema.schema
    assert task.metadata["n_sources"] == 0


def test_missing_band(model: MaskRcnnModel) -> None:
    exposures = make_exposures(("z", "g", "i"))
    with pytest.raises(MissingBandError, match=r"No exposure in band 'r'.*\['g', 'i', 'z'\]") as caught:
        make_task().run(exposures=exposures, model=model)
    assert caught.value.metadata == {"missing": "r", "available": "g i z", "model": "tiny"}
    assert isinstance(caught.value, pipeBase.AlgorithmError)


def test_boxes_that_disagree(model: MaskRcnnModel) -> None:
    exposures = make_exposures()
    box = exposures["g"].getBBox()
    exposures["g"] = exposures["g"][
        geom.Box2I(box.getMin(), geom.Extent2I(box.getWidth() - 1, box.getHeight()))
    ]
    with pytest.raises(IncompatibleExposuresError, match="bounding box.*'z'.*'g'") as caught:
        make_task().run(exposures=exposures, model=model)
    assert caught.value.metadata["bands"] == "z g"

    exposures = make_exposures()
    exposures["r"].setXY0(geom.Point2I(0, 0))
    with pytest.raises(IncompatibleExposuresError, match="bounding box"):
        make_task().run(exposures=exposures, model=model)


def test_wcs_that_disagree(model: MaskRcnnModel, detector: list[dict[str, Any]]) -> None:
    exposures = make_exposures()
    exposures["r"].setWcs(make_wcs(shift=0.02))
    make_task().run(exposures=exposures, model=model)
    with pytest.raises(IncompatibleExposuresError, match="0.01 pixel"):
        make_task(max_wcs_offset=0.01).run(exposures=exposures, model=model)
    exposures["r"].setWcs(make_wcs(shift=0.5))
    with pytest.raises(IncompatibleExposuresError, match="WCS.*'z'.*'r'"):
        make_task().run(exposures=exposures, model=model)
    # The same centre, but another scale: only the corners show it.
    exposures["r"].setWcs(make_wcs(scale=0.168 * 1.01))
    with pytest.raises(IncompatibleExposuresError, match="WCS"):
        make_task().run(exposures=exposures, model=model)


def test_missing_calibration(model: MaskRcnnModel) -> None:
    exposures = make_exposures()
    exposures["r"].setPhotoCalib(None)
    with pytest.raises(UncalibratedExposureError, match="'r' has no PhotoCalib") as caught:
        make_task().run(exposures=exposures, model=model)
    assert caught.value.metadata == {"band": "r", "component": "PhotoCalib"}
    exposures["r"].setPhotoCalib(PhotoCalib(0.0))
    with pytest.raises(UncalibratedExposureError, match="'r' has no usable PhotoCalib"):
        make_task().run(exposures=exposures, model=model)
    exposures = make_exposures()
    exposures["g"].setWcs(None)
    with pytest.raises(UncalibratedExposureError, match="'g' has no WCS"):
        make_task().run(exposures=exposures, model=model)


def test_pixel_scale_is_compared(
    model: MaskRcnnModel, detector: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    for scale, warned in ((0.2, False), (0.3, True), (0.1, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            make_task().run(exposures=make_exposures(scale=scale), model=model)
        assert ("was trained on 0.168 arcsec" in caplog.text) == warned


def test_exposures_of_the_real_pipeline(
    model: MaskRcnnModel, detector: list[dict[str, Any]], shared_data: Path
) -> None:
    """Files that the Science Pipelines wrote: positions agree with what was drawn."""
    exposures = {
        band: ExposureF.readFits(str(shared_data / "scarlet" / f"exposure_{band}.fits")) for band in "grz"
    }
    catalog = make_task().run(exposures=exposures, model=model).catalog
    truth = Table.read(shared_data / "scarlet" / "truth.fits")
    assert len(catalog) >= 5
    distance = np.hypot(
        catalog.getX()[:, None] - np.asarray(truth["x"]), catalog.getY()[:, None] - np.asarray(truth["y"])
    )
    assert np.median(distance.min(axis=1)) < 0.5
    wcs = exposures["z"].getWcs()
    for record in catalog:
        assert wcs.skyToPixel(record.getCoord()).getX() == pytest.approx(record.getX(), abs=1e-3)


# --- quanta

PATCH = {"skymap": "sky", "tract": 0, "patch": 3}


def add_outputs(butler: Butler) -> None:
    patch = {"skymap", "tract", "patch"}
    addDatasetType(butler, "deepCoadd_maskRcnnCatalog", patch, "SourceCatalog")
    addDatasetType(butler, "deepCoadd_maskRcnnDeblended", {*patch, "band"}, "SourceCatalog")
    for name in ("Blends", "Object"):
        addDatasetType(butler, f"deepCoadd_maskRcnn{name}", patch, "ArrowAstropy")
    for name in ("Catalog", "Deblended"):
        addDatasetType(butler, f"deepCoadd_maskRcnn{name}_schema", set(), "SourceCatalog")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Butler:
    return register_all(makeTestRepo(str(tmp_path_factory.mktemp("memory")), config=Config(SEED_CONFIG)))


def register_all(butler: Butler) -> Butler:
    box = geom.Box2I(geom.Point2I(*XY0), geom.Extent2I(WIDTH, HEIGHT))
    patch = PatchGeometry(0, 3, make_wcs(), box, (3, 0))
    register_patches(butler, "sky", [patch], (*BANDS, "i"), instrument="cam")
    addDatasetType(butler, "deepCoadd_calexp", {"skymap", "tract", "patch", "band"}, "ExposureF")
    addDatasetType(butler, "maskRcnnModel", set(), "MaskRcnnModel")
    add_outputs(butler)
    return butler


def run_quantum(
    repo: Butler,
    task: MaskRcnnDeblendTask,
    model: MaskRcnnModel | None,
    bands: tuple[str, ...],
    stored_as: Mapping[str, str] = {},
    physical: str | None = None,
) -> Mapping[str, Any]:
    """Run a quantum with `run` replaced; returns its arguments."""
    butler = makeTestCollection(repo)
    for band, exposure in make_exposures(bands).items():
        if physical is not None:
            exposure.setFilter(FilterLabel(band=band, physical=physical))
        butler.put(exposure, "deepCoadd_calexp", {**PATCH, "band": stored_as.get(band, band)})
    data_id = butler.registry.expandDataId(PATCH)
    refs: dict[str, Any] = {
        "exposures": [{**PATCH, "band": band} for band in bands],
        "catalog": data_id,
        "bandCatalogs": [{**PATCH, "band": band} for band in bands],
        "blendStatistics": data_id,
        "objectTable": data_id,
    }
    if model is not None:
        butler.put(model, "maskRcnnModel")
        refs["model"] = DataCoordinate.make_empty(butler.dimensions)
    quantum = make_quantum(task, butler, data_id, refs)
    run = pipelineTests.runTestQuantum(task, butler, quantum, mockRun=True)
    run.assert_called_once()
    assert not run.call_args.args
    return run.call_args.kwargs


def test_quantum(repo: Butler, model: MaskRcnnModel) -> None:
    """There is no sky map."""
    arguments = run_quantum(repo, make_task(), model, ("g", "i", "r", "z"))
    assert list(arguments["exposures"]) == list(BANDS)
    assert all(isinstance(exposure, ExposureF) for exposure in arguments["exposures"].values())
    assert arguments["model"].metadata == model.metadata
    ids = arguments["idGenerator"].arange(1, 3)
    assert ids.dtype.kind == "i"
    assert ids[1] - ids[0] == 1
    assert arguments["skyInfo"] is None


def test_quantum_with_model_uri(repo: Butler, model: MaskRcnnModel, tmp_path: Path) -> None:
    path = tmp_path / "a model.safetensors"
    write_model(model, path)
    for uri in (str(path), path.as_uri()):
        arguments = run_quantum(repo, make_task(model_uri=uri), None, BANDS)
        assert arguments["model"].metadata == model.metadata
    with pytest.raises(FileNotFoundError):
        run_quantum(repo, make_task(model_uri=str(tmp_path / "none.safetensors")), None, BANDS)


def test_quantum_with_mapped_bands(repo: Butler, model: MaskRcnnModel) -> None:
    arguments = run_quantum(repo, make_task(bands={"z": "i"}), model, ("g", "i", "r", "z"))
    assert list(arguments["exposures"]) == ["i", "r", "g"]


def test_quantum_without_a_band(repo: Butler, model: MaskRcnnModel) -> None:
    with pytest.raises(MissingBandError, match="'r'") as caught:
        run_quantum(repo, make_task(), model, ("g", "z"))
    assert f"maskRcnnDeblend failed on {{skymap: '{PATCH['skymap']}'" in caught.value.__notes__[-1]
    with pytest.raises(pipeBase.NoWorkFound, match="'r'"):
        run_quantum(repo, make_task(skip_incomplete=True), model, ("g", "z"))


def test_quantum_with_swapped_bands(tmp_path: Path, model: MaskRcnnModel) -> None:
    """Of files, the Butler gives an exposure the filter of its data id, and only warns."""
    repo = register_all(create_repo(tmp_path / "repo"))
    with pytest.raises(ValueError, match="filter label mismatch"):
        run_quantum(repo, make_task(), model, BANDS, {"g": "r", "r": "g"})
    # The name of a filter in the right band is only worth a warning.
    with pytest.warns(UserWarning, match="filter label mismatch"):
        assert run_quantum(repo, make_task(), model, BANDS, physical="HSC-R")


def test_quantum_with_own_normalization(repo: Butler, model: MaskRcnnModel) -> None:
    assert run_quantum(repo, make_task(normalize="lupton"), model, BANDS)


def test_threads_are_those_of_the_quantum(
    repo: Butler, model: MaskRcnnModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    run_quantum(repo, make_task(), model, BANDS)
    assert seen == [1, before]


def test_real_quantum(
    model: MaskRcnnModel, detector: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From exposures on disk to a catalogue on disk."""
    butler = create_repo(tmp_path / "repo")
    exposures = make_exposures()
    patch = PatchGeometry(0, 3, make_wcs(), exposures["z"].getBBox(), (3, 0))
    register_patches(butler, "sky", [patch], BANDS, instrument="cam")
    put_exposures(butler, "run", PATCH, exposures)
    addDatasetType(butler, "maskRcnnModel", set(), "MaskRcnnModel")
    add_outputs(butler)
    butler = Butler.from_config(butler=butler, run="run")
    butler.put(model, "maskRcnnModel")
    data_id = butler.registry.expandDataId(PATCH)
    task = make_task()
    quantum = make_quantum(
        task,
        butler,
        data_id,
        {
            "exposures": [{**PATCH, "band": band} for band in BANDS],
            "model": DataCoordinate.make_empty(butler.dimensions),
            "catalog": data_id,
            "bandCatalogs": [{**PATCH, "band": band} for band in BANDS],
            "blendStatistics": data_id,
            "objectTable": data_id,
        },
    )
    pipelineTests.runTestQuantum(task, butler, quantum, mockRun=False)

    stored = butler.get("deepCoadd_maskRcnnCatalog", PATCH)
    expected = task.run(
        exposures=exposures, model=model, idGenerator=task.config.idGenerator.apply(data_id)
    ).catalog
    assert stored.schema == expected.schema
    assert len(stored) == 3
    for name in ("id", "coord_ra", "maskrcnn_centroid_y", "maskrcnn_area", "maskrcnn_flag_edge"):
        np.testing.assert_array_equal(stored[name], expected[name])
    assert stored[0].getCentroid() == expected[0].getCentroid()
    for first, second in zip(stored, expected, strict=True):
        assert first.getFootprint().getSpans() == second.getFootprint().getSpans()
        assert first.getFootprint().getPeaks()[0].getPeakValue() == pytest.approx(
            second.getFootprint().getPeaks()[0].getPeakValue()
        )


# --- models that take any bands


@pytest.fixture(scope="module")
def any_model() -> MaskRcnnModel:
    return load_model()


def test_any_bands_are_taken_by_wavelength(any_model: MaskRcnnModel) -> None:
    task = make_task(doMeasure=False, wavelengths={"odd": 540.0})
    results = task.run(exposures=make_exposures(("y", "odd", "g")), model=any_model)
    assert list(results.bandCatalogs) == ["g", "odd", "y"]
    assert task.metadata["reference_band"] == "odd"
    blend = np.asarray(results.catalog["maskrcnn_pBlend"])
    is_source = np.asarray(results.catalog["deblend_nChild"]) == 0
    assert (blend[is_source] > 0).all() and (blend[is_source] < 1).all()
    assert np.isnan(blend[~is_source]).all()
    peaks = [record.getFootprint().getPeaks()[0] for record in results.catalog[is_source]]
    places = np.array([(peak.getFx() - XY0[0], peak.getFy() - XY0[1]) for peak in peaks])
    for x, y, *_ in SOURCES[:2]:
        assert np.hypot(*(places - (x, y)).T).min() < 1.0


def test_bands_can_be_narrowed_and_renamed(any_model: MaskRcnnModel) -> None:
    task = make_task(doMeasure=False, bands={"r": "odd"})
    results = task.run(exposures=make_exposures(("odd", "g")), model=any_model)
    assert list(results.bandCatalogs) == ["odd"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "wavelength of band 'odd' is not known.*config.wavelengths"),
        ({"wavelengths": {"odd": 540.0}, "extra_bands": ["g"]}, "config.extra_bands"),
        ({"wavelengths": {"odd": 540.0}, "normalize": "lupton"}, "config.normalize is set"),
    ],
)
def test_what_any_bands_do_not_go_with(any_model: MaskRcnnModel, fields: Any, problem: str) -> None:
    with pytest.raises(pipeBase.InvalidQuantumError, match=problem):
        make_task(doMeasure=False, **fields).run(exposures=make_exposures(("odd", "g")), model=any_model)


def test_band_that_is_named_and_missing(any_model: MaskRcnnModel) -> None:
    with pytest.raises(MissingBandError, match="'i'"):
        make_task(bands={"i": "i"}).run(exposures=make_exposures(("g",)), model=any_model)
