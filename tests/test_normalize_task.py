# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of the normalisation subtasks."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lsst.afw.image as afwImage
import lsst.geom as geom
import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
from lsst.meas.maskrcnn.images.normalize import (
    default_settings,
    lupton_normalize,
    normalize,
    zscore_normalize,
)
from lsst.meas.maskrcnn.tasks.normalize import (
    LuptonNormalizeConfig,
    LuptonNormalizeTask,
    NormalizeBaseTask,
    ZScoreNormalizeConfig,
    ZScoreNormalizeTask,
    config_from_settings,
    normalizeRegistry,
)

BOX = geom.Box2I(geom.Point2I(12000, 8000), geom.Extent2I(130, 90))
BANDS = ("z", "r", "g")
TASKS = [LuptonNormalizeTask, ZScoreNormalizeTask]


def make_sky(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Flux and variance (band, y, x), nJy and nJy^2, float64."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:90, :130]
    flux = np.zeros((3, 90, 130))
    for y0, x0, peak in ((20, 30, 300.0), (50, 100, 5000.0), (70, 60, 80.0)):
        flux += peak * np.array([1.5, 1.0, 0.4])[:, None, None] * np.exp(-((y - y0) ** 2 + (x - x0) ** 2) / 8)
    variance = np.array([9.0, 4.0, 2.0])[:, None, None] + 0.02 * flux
    return flux + rng.normal(size=flux.shape) * np.sqrt(variance), variance


def make_exposure(flux: np.ndarray, variance: np.ndarray, njy_per_count: float = 1.0) -> Any:
    """Give an exposure whose pixels are counts."""
    exposure = afwImage.ExposureF(BOX)
    exposure.image.array[:, :] = flux / njy_per_count
    exposure.variance.array[:, :] = variance / njy_per_count**2
    exposure.setPhotoCalib(afwImage.PhotoCalib(njy_per_count))
    return exposure


@pytest.fixture
def exposures() -> dict[str, Any]:
    """Exposures with calibrations that differ."""
    flux, variance = make_sky()
    return {
        band: make_exposure(flux[n], variance[n], calibration)
        for n, (band, calibration) in enumerate(zip(BANDS, (1.0, 57.0, 0.003), strict=True))
    }


@pytest.mark.parametrize("task_class", TASKS)
def test_run_gives_the_array_of_the_function(task_class: type[NormalizeBaseTask], exposures: Any) -> None:
    task = task_class()
    copies = {band: exposure.image.array.copy() for band, exposure in exposures.items()}
    result = task.run(exposures=exposures)
    flux, variance = (a.astype(np.float32) for a in make_sky())
    function = {"lupton": lupton_normalize, "zscore": zscore_normalize}[task.normalization]
    wanted = function(flux, variance)
    assert result.image.dtype == np.float32 and result.image.shape == (3, 90, 130)
    np.testing.assert_allclose(result.image, wanted.image, rtol=1e-5, atol=1e-5)
    assert result.valid.dtype == bool and result.valid.all()
    assert result.bands == BANDS
    np.testing.assert_allclose(result.noise, wanted.noise, rtol=1e-5)
    np.testing.assert_allclose(result.minimum, wanted.minimum, atol=1e-4)
    assert result.noiseSource == wanted.noise_source
    for band, exposure in exposures.items():
        np.testing.assert_array_equal(exposure.image.array, copies[band])


@pytest.mark.parametrize("task_class", TASKS)
def test_settings_reproduce_the_array_bit_for_bit(
    task_class: type[NormalizeBaseTask], exposures: Any
) -> None:
    """What training does without LSST packages is what the task does."""
    config = task_class.ConfigClass()
    config.clipSigma = 4.0
    if task_class is LuptonNormalizeTask:
        config.stretch = 150
        config.background = "local"
        config.backgroundMesh = 40
    task = task_class(config=config)
    settings = json.loads(json.dumps(task.settings()))
    assert set(settings) == set(config.keys())
    rebuilt = config_from_settings(task.normalization, settings)
    assert type(rebuilt) is task_class.ConfigClass and rebuilt.compare(config)
    assert normalizeRegistry[task.normalization](config=rebuilt).settings() == task.settings()
    for exposure in exposures.values():
        exposure.setPhotoCalib(afwImage.PhotoCalib(1.0))
    flux = np.stack([exposure.image.array for exposure in exposures.values()])
    variance = np.stack([exposure.variance.array for exposure in exposures.values()])
    wanted = normalize(task.normalization, flux, variance, None, settings)
    np.testing.assert_array_equal(task.run(exposures=exposures).image, wanted.image)


def test_every_setting_of_the_function_has_a_field_with_its_default() -> None:
    for name, function in (("lupton", lupton_normalize), ("zscore", zscore_normalize)):
        config = normalizeRegistry[name].ConfigClass()
        parameters = inspect.signature(function).parameters
        names = {
            parameter.replace("_", " ").title().replace(" ", "")[0].lower()
            + parameter.replace("_", " ").title().replace(" ", "")[1:]: parameter
            for parameter in parameters
            if parameter not in ("flux", "variance", "valid", "overwrite")
        }
        assert set(config.keys()) == set(names) | {"badMaskPlanes"}
        for field, parameter in names.items():
            assert getattr(config, field) == parameters[parameter].default, field


@pytest.mark.parametrize("task_class", TASKS)
def test_zero_point_exposure_time_and_background(task_class: type[NormalizeBaseTask]) -> None:
    flux, variance = make_sky()
    flux = np.round(flux * 256) / 256
    results = []
    for calibrations, level in (((1, 1, 1), 0.0), ((0.02, 57.0, 3630.0), 0.0), ((1, 2, 0.5), 64.0)):
        exposures = {
            band: make_exposure(flux[n] + level, variance[n], calibrations[n]) for n, band in enumerate(BANDS)
        }
        results.append(task_class().run(exposures=exposures).image)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-5, atol=1e-5)


def test_the_order_is_that_of_the_mapping(exposures: Any) -> None:
    result = LuptonNormalizeTask().run(exposures=exposures)
    swapped = LuptonNormalizeTask().run(exposures={band: exposures[band] for band in ("g", "z", "r")})
    assert swapped.bands == ("g", "z", "r")
    np.testing.assert_allclose(swapped.image, result.image[[2, 0, 1]], rtol=1e-6, atol=1e-7)


def test_photo_calib_that_varies(exposures: Any) -> None:
    """Exact with a calibration that is not the same everywhere."""
    math = pytest.importorskip("lsst.afw.math")
    if not hasattr(math, "ChebyshevBoundedField"):
        pytest.skip("lsst.afw.math has no ChebyshevBoundedField here")
    coefficients = np.array([[1.0, 0.2], [-0.3, 0.0]])
    field = math.ChebyshevBoundedField(BOX, coefficients)
    varying = afwImage.PhotoCalib(field)
    flux, variance = make_sky()
    wanted = LuptonNormalizeTask().run(exposures=exposures)
    x, y = np.meshgrid(np.arange(12000.0, 12130.0), np.arange(8000.0, 8090.0))
    factor = varying.getLocalCalibrationArray(x.ravel(), y.ravel()).reshape(90, 130)
    assert factor.max() > 1.2 * factor.min()
    for n, band in enumerate(BANDS):
        exposures[band] = make_exposure(flux[n] / factor, variance[n] / factor**2)
        exposures[band].setPhotoCalib(varying)
    result = LuptonNormalizeTask().run(exposures=exposures)
    np.testing.assert_allclose(result.image, wanted.image, rtol=1e-5, atol=1e-5)


class VaryingCalib:
    """A calibration with a gradient, by PhotoCalib's methods."""

    def getCalibrationMean(self) -> float:
        return 2.0

    def getLocalCalibrationArray(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 2.0 * (1 + (x - 12000) / 500 - (y - 8000) / 900)


class VaryingExposure:
    """An exposure whose calibration is a `VaryingCalib`."""

    def __init__(self, exposure: Any) -> None:
        self._exposure = exposure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exposure, name)

    def getPhotoCalib(self) -> VaryingCalib:
        return VaryingCalib()


def test_calibration_is_evaluated_at_each_pixel(exposures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parent coordinates, with x and y in their places, over all blocks."""
    wanted = LuptonNormalizeTask().run(exposures=exposures)
    monkeypatch.setattr("lsst.meas.maskrcnn.tasks.normalize._BLOCK_SIZE", 130 * 7)
    flux, variance = make_sky()
    x, y = np.meshgrid(np.arange(12000.0, 12130.0), np.arange(8000.0, 8090.0))
    factor = VaryingCalib().getLocalCalibrationArray(x, y)
    varying = {
        band: VaryingExposure(make_exposure(flux[n] / factor, variance[n] / factor**2))
        for n, band in enumerate(BANDS)
    }
    result = LuptonNormalizeTask().run(exposures=varying)  # type: ignore[arg-type]
    np.testing.assert_allclose(result.image, wanted.image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task_class", TASKS)
def test_mask_planes(task_class: type[NormalizeBaseTask], exposures: Any) -> None:
    wanted = np.ones((90, 130), dtype=bool)
    for k, (band, plane) in enumerate((("z", "BAD"), ("r", "NO_DATA"), ("g", "SAT"), ("g", "CR"))):
        mask = exposures[band].mask
        mask.array[10 + k, 20:25] |= mask.getPlaneBitMask(plane)
        wanted[10 + k, 20:25] = plane not in ("BAD", "NO_DATA")
    exposures["r"].image.array[40, 41] = np.nan
    exposures["g"].image.array[42, 43] = np.inf
    wanted[40, 41] = wanted[42, 43] = False
    result = task_class().run(exposures=exposures)
    np.testing.assert_array_equal(result.valid, wanted)
    assert (result.image[:, ~wanted] == 0).all() and np.isfinite(result.image).all()
    assert (result.image[:, 12, 20:25] != 0).all()

    config = task_class.ConfigClass()
    config.badMaskPlanes = ["SAT", "A_PLANE_THAT_IS_NOT_THERE"]
    wanted[10:12, 20:25] = True
    wanted[12, 20:25] = False
    np.testing.assert_array_equal(task_class(config=config).run(exposures=exposures).valid, wanted)
    config.badMaskPlanes = []
    wanted[12, 20:25] = True
    np.testing.assert_array_equal(task_class(config=config).run(exposures=exposures).valid, wanted)


@pytest.mark.parametrize("task_class", TASKS)
@pytest.mark.parametrize("value", [0.0, 42.0, np.nan])
def test_degenerate_exposures(
    task_class: type[NormalizeBaseTask], value: float, caplog: pytest.LogCaptureFixture
) -> None:
    exposures = {band: make_exposure(np.full((90, 130), value), np.full((90, 130), value)) for band in BANDS}
    result = task_class().run(exposures=exposures)
    assert (result.image == 0).all()
    assert result.valid.all() == np.isfinite(value)
    assert ("No pixel is valid in all of the bands z, r, g" in caplog.text) == bool(np.isnan(value))


def test_noise_from_pixels_does_not_read_the_variance(exposures: Any) -> None:
    config = LuptonNormalizeConfig()
    config.noiseSource = "pixels"
    task = LuptonNormalizeTask(config=config)
    assert not task.uses_variance() and LuptonNormalizeTask().uses_variance()
    result = task.run(exposures=exposures)
    assert result.noiseSource == ("pixels",) * 3
    for exposure in exposures.values():
        exposure.variance.array[:, :] = 1e9
    np.testing.assert_array_equal(task.run(exposures=exposures).image, result.image)


@pytest.mark.parametrize("task_class", TASKS)
def test_missing_photo_calib(task_class: type[NormalizeBaseTask], exposures: Any) -> None:
    exposures["r"].setPhotoCalib(None)
    with pytest.raises(ValueError, match="band 'r' has no PhotoCalib.*setPhotoCalib"):
        task_class().run(exposures=exposures)


def test_useless_photo_calib(exposures: Any) -> None:
    exposures["g"].setPhotoCalib(afwImage.PhotoCalib(0.0))
    with pytest.raises(ValueError, match="band 'g' has a calibration mean of 0"):
        LuptonNormalizeTask().run(exposures=exposures)


@pytest.mark.parametrize("task_class", TASKS)
def test_boxes_that_disagree(task_class: type[NormalizeBaseTask], exposures: Any) -> None:
    other = afwImage.ExposureF(geom.Box2I(geom.Point2I(12001, 8000), geom.Extent2I(130, 90)))
    other.setPhotoCalib(afwImage.PhotoCalib(1.0))
    exposures["g"] = other
    with pytest.raises(ValueError, match=r"band 'z' has .*12000.*band 'g' has .*12001"):
        task_class().run(exposures=exposures)


def test_no_exposures() -> None:
    with pytest.raises(ValueError, match="No exposure"):
        LuptonNormalizeTask().run(exposures={})


def test_registry() -> None:
    assert set(normalizeRegistry) == {"lupton", "zscore"}

    class OwnerConfig(pexConfig.Config):
        normalize = normalizeRegistry.makeField(doc="Normalisation.", default="lupton")

    class OwnerTask(pipeBase.Task):
        ConfigClass = OwnerConfig
        _DefaultName = "owner"

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.makeSubtask("normalize")

    assert type(OwnerTask().normalize) is LuptonNormalizeTask
    config = OwnerConfig()
    config.normalize["lupton"].stretch = 321.0
    assert OwnerTask(config=config).normalize.settings()["stretch"] == 321.0
    config.normalize.name = "zscore"
    config.normalize.active.asinh = "none"
    task = OwnerTask(config=config)
    assert type(task.normalize) is ZScoreNormalizeTask
    assert task.normalize.settings()["asinh"] == "none"


@pytest.mark.parametrize("config_class", [LuptonNormalizeConfig, ZScoreNormalizeConfig])
def test_every_field_has_a_doc(config_class: type[pexConfig.Config]) -> None:
    config_class().validate()
    for name, field in config_class._fields.items():
        assert len(field.doc) > 10, name


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("lupton", "q", 0.0),
        ("lupton", "q", float("inf")),
        ("lupton", "stretch", -1.0),
        ("lupton", "stretch", float("nan")),
        ("lupton", "scale", float("inf")),
        ("lupton", "stretchUnit", "Jy"),
        ("lupton", "background", "mesh"),
        ("lupton", "backgroundMesh", 1),
        ("lupton", "noiseSource", "guess"),
        ("lupton", "clipSigma", 0.5),
        ("zscore", "clipIterations", -1),
        ("zscore", "statistics", "robust"),
        ("zscore", "asinh", "both"),
        ("zscore", "softening", 0.0),
        ("zscore", "softening", float("inf")),
    ],
)
def test_values_that_are_not_allowed(name: str, field: str, value: Any) -> None:
    with pytest.raises(pexConfig.FieldValidationError, match=field):
        config_from_settings(name, {field: value})


@pytest.mark.parametrize("field", ["stretch", "scale"])
def test_percentile_above_100(field: str) -> None:
    with pytest.raises(pexConfig.FieldValidationError, match=f"{field}=100.5 with {field}Unit='percentile'"):
        config_from_settings("lupton", {field: 100.5, f"{field}Unit": "percentile"})
    config_from_settings("lupton", {field: 99.95, f"{field}Unit": "percentile"})


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="no setting asinh, strech; known are .*stretchUnit"):
        config_from_settings("lupton", {"strech": 1.0, "asinh": "none"})
    with pytest.raises(ValueError, match="no normalisation 'histogram'; known are lupton, zscore"):
        config_from_settings("histogram", {})


def test_scarlet_exposures(shared_data: Path) -> None:
    """An HSC-like patch far from the origin, in electrons."""
    exposures = {
        band: afwImage.ExposureF(str(shared_data / "scarlet" / f"exposure_{band}.fits")) for band in BANDS
    }
    result = LuptonNormalizeTask().run(exposures=exposures)
    assert result.image.shape == (3, 512, 512)
    assert result.valid.mean() > 0.9 and np.isfinite(result.image).all()
    assert 0.02 < np.median(np.abs(result.image)) < 0.3
    assert 2 < result.image.max() < 30


@pytest.mark.parametrize("name", ["lupton", "zscore"])
def test_defaults_of_the_task_are_those_of_the_function(name: str) -> None:
    """A model that was trained without the tasks is normalised alike by them."""
    task = normalizeRegistry[name](config=normalizeRegistry[name].ConfigClass())
    settings = dict(task.settings())
    del settings["badMaskPlanes"]
    assert settings == default_settings(name)
