# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of the normalisation subtasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lsst.pex.config as pexConfig
import lsst.pipe.base as pipeBase
from lsst.meas.maskrcnn.images.normalize import LuptonSettings, ZScoreSettings, normalize
from lsst.meas.maskrcnn.tasks.normalize import (
    LuptonNormalizeConfig,
    LuptonNormalizeTask,
    ZScoreNormalizeConfig,
    ZScoreNormalizeTask,
    normalizeRegistry,
)


@pytest.mark.parametrize(
    ("task_class", "settings"),
    [
        (LuptonNormalizeTask, LuptonSettings(stretch=150.0, background="local", background_mesh=40)),
        (ZScoreNormalizeTask, ZScoreSettings(softening=2.0, clip_sigma=4.0)),
    ],
)
def test_run_does_what_the_settings_say(task_class: Any, settings: Any) -> None:
    rng = np.random.default_rng(3)
    flux = (7.0 + 3.0 * rng.normal(size=(3, 90, 130))).astype(np.float32)
    variance, valid = np.full_like(flux, 9.0), rng.random((90, 130)) < 0.9
    config = task_class.ConfigClass()
    config.set_from(settings)
    config.validate()
    assert config.settings() == settings
    result = task_class(config=config).run(flux=flux, variance=variance, valid=valid)
    wanted = normalize(settings, flux, variance, valid)
    np.testing.assert_array_equal(result.image, wanted.image)
    np.testing.assert_array_equal(result.valid, valid)
    assert task_class(config=config).run(flux=flux, overwrite=True).image is flux


@pytest.mark.parametrize("task_class", [LuptonNormalizeTask, ZScoreNormalizeTask])
@pytest.mark.parametrize("value", [0.0, 42.0, np.nan])
def test_images_without_structure(task_class: Any, value: float, caplog: pytest.LogCaptureFixture) -> None:
    result = task_class().run(flux=np.full((3, 90, 130), value, dtype=np.float32))
    assert (result.image == 0).all()
    assert result.valid.all() == np.isfinite(value)
    assert ("No pixel is valid in all of the 3 bands" in caplog.text) == bool(np.isnan(value))


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
    assert OwnerTask(config=config).normalize.config.settings() == LuptonSettings(stretch=321.0)
    config.normalize.name = "zscore"
    config.normalize.active.asinh = "none"
    task = OwnerTask(config=config)
    assert type(task.normalize) is ZScoreNormalizeTask
    assert task.normalize.config.settings() == ZScoreSettings(asinh="none")


@pytest.mark.parametrize("config_class", [LuptonNormalizeConfig, ZScoreNormalizeConfig])
def test_every_field_has_a_doc(config_class: type[pexConfig.Config]) -> None:
    config_class().validate()
    for name, field in config_class._fields.items():
        assert len(field.doc) > 10, name


def test_saved_configurations_can_be_read(tmp_path: Any) -> None:
    config = LuptonNormalizeConfig()
    config.stretch = 321.0
    config.save(str(tmp_path / "config.py"))
    again = LuptonNormalizeConfig()
    again.load(str(tmp_path / "config.py"))
    assert again == config


@pytest.mark.parametrize("field", ["stretch", "scale"])
def test_percentile_above_100(field: str) -> None:
    config = LuptonNormalizeConfig()
    config.update(**{field: 100.5, f"{field}_unit": "percentile"})
    with pytest.raises(pexConfig.FieldValidationError, match=f"{field} is 100.5 with {field}_unit"):
        config.validate()
    config.update(**{field: 99.95})
    config.validate()
