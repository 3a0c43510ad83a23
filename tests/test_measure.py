# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is measured in the catalogues of a patch, and what is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lsst.afw.image import ApCorrMap, ExposureF
from lsst.afw.math import ChebyshevBoundedField
from lsst.meas.maskrcnn import load_model
from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendConfig, MaskRcnnDeblendTask

UNMEASURED = "maskrcnn_flag_unmeasured"
FLUX = "base_PsfFlux_instFlux"


@pytest.fixture(scope="module")
def exposures() -> dict[str, ExposureF]:
    scene = simulate_scene(preset_config("hsc-wide", shape=(180, 200)), np.random.default_rng(3))
    return scene_to_exposures(scene)


def run(exposures: dict[str, ExposureF], **fields: Any) -> Any:
    config = MaskRcnnDeblendConfig()
    config.detection.precision = "float32"
    for name, value in fields.items():
        setattr(config, name, value)
    return MaskRcnnDeblendTask(config=config).run(exposures=exposures, model=load_model())


@pytest.fixture(scope="module")
def measured(exposures: dict[str, ExposureF]) -> Any:
    return run(exposures)


def test_columns_copied_in_the_reference_band_are_those_measured(
    exposures: dict[str, ExposureF], measured: Any
) -> None:
    config = MaskRcnnDeblendConfig()
    config.detection.precision = "float32"
    # Other settings, so that nothing is copied; the apertures that remain are the same.
    config.forcedMeasurement.plugins["base_CircularApertureFlux"].radii = [6.0, 12.0]
    again = MaskRcnnDeblendTask(config=config).run(exposures=exposures, model=load_model())
    copied, forced = measured.bandCatalogs["r"], again.bandCatalogs["r"]
    assert len(copied) == len(forced) > 10
    names = [name for name in forced.schema.getNames() if name.startswith("base_") and name in copied.schema]
    assert FLUX in names and "base_CircularApertureFlux_12_0_instFlux" in names
    for name in names:
        np.testing.assert_allclose(
            np.asarray(copied[name], float), np.asarray(forced[name], float), rtol=1e-5, err_msg=name
        )
    assert np.isfinite(copied[FLUX]).sum() > 10


def test_parents_are_measured_when_asked_for(exposures: dict[str, ExposureF], measured: Any) -> None:
    is_parent = np.asarray(measured.catalog["deblend_nChild"]) > 0
    assert is_parent.any() and not is_parent.all()
    for catalog in (measured.catalog, *measured.bandCatalogs.values()):
        np.testing.assert_array_equal(catalog[UNMEASURED], is_parent)
        np.testing.assert_array_equal(np.isnan(catalog[FLUX]) & is_parent, is_parent)
        assert np.isfinite([record.getX() for record in catalog]).all()
    parents = {record.getId() for record in measured.catalog} | {0}
    assert {record.getParent() for record in measured.catalog} <= parents
    assert any(record.getParent() for record in measured.catalog)
    everything = run(exposures, doMeasureParents=True)
    assert not np.any(everything.catalog[UNMEASURED])
    assert np.isfinite(np.asarray(everything.catalog[FLUX])[is_parent]).any()
    # Sources do not change by it, but for the noise that others are replaced with.
    one, other = (np.asarray(result.bandCatalogs["g"][FLUX])[~is_parent] for result in (measured, everything))
    error = np.asarray(measured.bandCatalogs["g"]["base_PsfFlux_instFluxErr"])[~is_parent]
    assert np.nanmax(np.abs(one - other) / error) < 1.0


def test_aperture_corrections_of_an_exposure_are_applied(
    exposures: dict[str, ExposureF], measured: Any
) -> None:
    corrected = {band: exposure.clone() for band, exposure in exposures.items()}
    for number, band in enumerate("gr"):
        corrections = ApCorrMap()
        for suffix, value in (("instFlux", 1.25 + 0.25 * number), ("instFluxErr", 0.0)):
            field = ChebyshevBoundedField(corrected[band].getBBox(), np.array([[value]]))
            corrections.set(f"base_PsfFlux_{suffix}", field)
        info: Any = corrected[band].getInfo()
        info.setApCorrMap(corrections)
    result = run(corrected)
    sources = np.asarray(result.catalog["deblend_nChild"]) == 0
    for band, factor in (("g", 1.25), ("r", 1.5), ("z", 1.0)):
        catalog, before = result.bandCatalogs[band], measured.bandCatalogs[band]
        for name in (FLUX, "base_PsfFlux_instFluxErr"):
            np.testing.assert_allclose(catalog[name][sources], factor * before[name][sources], rtol=1e-6)
        name = "maskrcnn_profile_instFlux"
        np.testing.assert_allclose(catalog[name][sources], before[name][sources], rtol=1e-6)
    np.testing.assert_allclose(result.catalog[FLUX], result.bandCatalogs["r"][FLUX])


def test_model_images_are_those_of_the_catalogue(exposures: dict[str, ExposureF], measured: Any) -> None:
    assert measured.modelImages == {}
    result = run(exposures, doModelImages=True)
    assert set(result.modelImages) == set(exposures)
    for band, image in result.modelImages.items():
        catalog, exposure = result.bandCatalogs[band], exposures[band]
        assert image.getBBox() == exposure.getBBox()
        total = np.nansum(catalog["maskrcnn_profile_instFlux"])
        # Light of the bright star is outside of its window and of the image.
        assert 0.5 * total < image.array.sum() < 1.02 * total
        # The models go on where stars are saturated.
        good = exposure.mask.array & exposure.mask.getPlaneBitMask(["SAT"]) == 0
        residual = (exposure.image.array - image.array)[good]
        sigma = np.sqrt(np.median(exposure.variance.array))
        assert np.std(residual) < 0.5 * np.std(exposure.image.array[good])
        assert np.median(np.abs(residual)) < 1.2 * sigma
