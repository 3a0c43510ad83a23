# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Scenes as the outputs of a task: configuration, exposures, truth."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lsst.daf.butler import Butler
from lsst.geom import Box2D, Point2D, SpherePoint, radians
from lsst.meas.maskrcnn.ingest.repo import create_repo
from lsst.meas.maskrcnn.ingest.scenes import SceneGrid
from lsst.meas.maskrcnn.scenes.presets import PRESETS, preset_config
from lsst.meas.maskrcnn.tasks.simulate import SimulateScenesConfig, SimulateScenesTask
from lsst.pex.config import Config, FieldValidationError
from lsst.pipe.base.configOverrides import ConfigOverrides
from lsst.pipe.base.testUtils import lintConnections

SHAPE = (150, 210)


def make_config(**changes) -> SimulateScenesConfig:
    config = SimulateScenesConfig()
    config.preset = "hsc-500s"
    config.shape = list(SHAPE)
    config.update(**changes)
    return config


@pytest.fixture(scope="module")
def noisy():
    """A scene with noise, in a tract far from the origin."""
    return SimulateScenesTask(config=make_config()).run(tract=5, patch=203)


def test_unchanged_config_is_the_preset():
    for name in PRESETS:
        config = SimulateScenesConfig()
        config.preset = name
        assert config.scene() == dataclasses.replace(preset_config(name), keep_models=True)


def test_settings_that_can_be_changed():
    """Each comes from a dataclass of the simulator, with its documentation, and is not set by default."""
    config, scene = SimulateScenesConfig(), preset_config("hsc-wide")
    for part, source in (
        (config, scene),
        (config.population, scene.population),
        (config.artefacts, scene.artefacts),
        (config.psf, scene.psf),
        (config.mask_rule, scene.mask_rule),
    ):
        names = {field.name for field in dataclasses.fields(source)} & set(part._fields)
        plain = {name for name in names if not isinstance(getattr(part, name), Config)} - {"seed"}
        assert len(plain) >= 3
        for name in plain:
            assert getattr(part, name) is None
            assert part._fields[name].doc.endswith("None takes the preset's.")
        if part is not config:
            assert names == set(part._fields)
    assert "Stars in star_mag_range" in config.population._fields["star_density"].doc


def test_changes_from_the_command_line():
    config = SimulateScenesConfig()
    overrides = ConfigOverrides()
    for name, value in (
        ("population.star_density", "40"),
        ("population.star_mag_range", "[18, 20.5]"),
        ("artefacts.saturation", "False"),
        ("artefacts.bleed", "False"),
        ("mask_rule.kind", "isophote"),
        ("psf.beta", "(2.5, 3.5)"),
        ("conditions.fwhm", "{'g': 0.9}"),
        ("bands", "['r', 'g']"),
        ("exposure_factor", "2"),
    ):
        overrides.addValueOverride(name, value)
    overrides.applyTo(config)
    config.validate()
    scene = config.scene()
    preset = preset_config("hsc-wide")
    assert scene.population == dataclasses.replace(
        preset.population, star_density=40.0, star_mag_range=(18.0, 20.5)
    )
    assert not scene.artefacts.saturation and scene.artefacts.halo == preset.artefacts.halo
    assert scene.mask_rule.kind == "isophote" and scene.psf.beta == (2.5, 3.5)
    assert scene.bands == ("r", "g") and scene.exposure_factor == 2.0
    before = {c.band: c for c in preset.conditions}
    after = {c.band: c for c in scene.conditions}
    assert after["g"] == dataclasses.replace(before["g"], fwhm=0.9) and after["r"] == before["r"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"psf.beta": [1.5, 3.0]}, "psf.beta is"),
        ({"shape": [8, 8]}, "16 px or more"),
        ({"bands": ["r", "q"]}, "q"),
        ({"population.mag_limit": 12.5}, r"population\.mag_bright is 17.0"),
        ({"conditions.fwhm": {"Q": 1.0}}, "conditions.fwhm"),
    ],
)
def test_bad_settings_are_named(change, message):
    config = SimulateScenesConfig()
    for name, value in change.items():
        part, _, field = name.rpartition(".")
        setattr(getattr(config, part) if part else config, field, value)
    with pytest.raises(FieldValidationError, match=message):
        config.validate()


def test_expanded_config_holds_the_numbers():
    config = make_config(bands=["r", "z"])
    config.population.star_density = 17.0
    expanded = config.expanded()
    assert expanded.scene() == config.scene()
    # What can be changed is not left to the preset.
    assert expanded.population.star_density == 17.0
    assert expanded.population.mag_limit == preset_config("hsc-500s").population.mag_limit
    assert list(expanded.psf.beta) == list(preset_config("hsc-500s").psf.beta)
    assert set(expanded.conditions.fwhm) == set("grizy")
    for part in (expanded.population, expanded.artefacts, expanded.psf, expanded.mask_rule):
        assert None not in part.toDict().values()
    stream = io.StringIO()
    expanded.saveToStream(stream)
    back = SimulateScenesConfig()
    back.loadFromString(stream.getvalue())
    assert back.toDict() == expanded.toDict()


def test_connections():
    lintConnections(SimulateScenesConfig.ConnectionsClass)
    config = make_config(doTruthFlux=False)
    assert "truthFlux" not in SimulateScenesConfig.ConnectionsClass(config=config).outputs
    assert "truthFlux" in SimulateScenesConfig.ConnectionsClass(config=make_config()).outputs


def test_exposures(noisy):
    grid = make_config().grid("sky")
    geometry = grid.patch(5, 203)
    assert geometry.bbox.getMinX() == 3 * SHAPE[1] and geometry.bbox.getMinY() == 2 * SHAPE[0]
    assert list(noisy.exposures) == list(noisy.truthImages) == list(noisy.truthFlux) == ["z", "r", "g"]
    for band, exposure in noisy.exposures.items():
        assert exposure.getBBox() == geometry.bbox
        assert exposure.getFilter().bandLabel == band
        assert exposure.getPhotoCalib().getCalibrationMean() == 1.0
        assert exposure.getWcs() == geometry.wcs
        light = noisy.truthImages[band]
        valid = np.isfinite(exposure.image.array)
        no_data = exposure.mask.array & exposure.mask.getPlaneBitMask("NO_DATA") != 0
        np.testing.assert_array_equal(valid, ~no_data)
        # What is not light is noise, as the variance has it.
        bad = exposure.mask.getPlaneBitMask(["SAT", "CR", "BAD", "NO_DATA"])
        clean = exposure.mask.array & bad == 0
        pull = (exposure.image.array - light.image.array)[clean] / np.sqrt(exposure.variance.array[clean])
        assert 1.4826 * np.median(np.abs(pull - np.median(pull))) == pytest.approx(1.0, abs=0.05)
        assert light.getBBox() == geometry.bbox and light.getWcs() == geometry.wcs
        assert not light.mask.array.any() and not light.variance.array.any()


def test_truth_lies_in_the_patch(noisy):
    geometry = make_config().grid("sky").patch(5, 203)
    region = geometry.region()
    inner = Box2D(geometry.bbox)
    assert len(noisy.truth) > 5
    inside = 0
    for record in noisy.truth:
        centroid = record.getCentroid()
        if inner.contains(centroid):
            inside += 1
            assert region.contains(record.getCoord().getVector())
        assert geometry.bbox.contains(record.getFootprint().getBBox())
    assert inside > 5


def test_sources_add_up(noisy):
    for band, catalog in noisy.truthFlux.items():
        assert catalog["id"].tolist() == noisy.truth["id"].tolist()
        total = noisy.truthImages[band].image.clone()
        light = total.array.copy()
        total.array[:] = 0
        for record in catalog:
            footprint = record.getFootprint()
            if footprint.getArea():
                part = total.Factory(footprint.getBBox(), 0.0)
                footprint.insert(part)
                total[footprint.getBBox()] += part
        np.testing.assert_allclose(total.array, light, rtol=1e-5, atol=1e-5 * light.max())


def windowed_centroid(image: np.ndarray, x: float, y: float, sigma: float) -> tuple[float, float]:
    """Centre of light under a round Gaussian window that follows it."""
    y0, x0 = int(y) - 15, int(x) - 15
    image = image[y0 : y0 + 31, x0 : x0 + 31]
    yy, xx = np.mgrid[y0 : y0 + 31, x0 : x0 + 31]
    for _ in range(100):
        weight = image * np.exp(-0.5 * ((xx - x) ** 2 + (yy - y) ** 2) / sigma**2)
        dx, dy = ((weight * (xx - x)).sum(), (weight * (yy - y)).sum()) / weight.sum()
        x, y = x + 1.5 * dx, y + 1.5 * dy
    return x, y


def test_drawn_stars_are_where_the_catalogue_says():
    """From pixels through the WCS of the exposure to the sky, within 0.01 px."""
    height, width = 400, 520
    config = make_config(preset="hsc-500s-noiseless", shape=[height, width])
    config.population.galaxy_density = 0.0
    config.population.large_galaxy_density = 0.0
    config.population.cluster_probability = 0.0
    config.population.pair_fraction = 0.0
    config.population.star_density = 20.0
    config.population.star_mag_range = [20.0, 22.0]
    config.population.bright_star_density = 0.0
    result = SimulateScenesTask(config=config).run(tract=9, patch=1234)
    exposure = result.exposures["z"]
    wcs, xy0 = exposure.getWcs(), exposure.getXY0()
    tested = 0
    for record in result.truth:
        x, y = record.getX() - xy0.getX(), record.getY() - xy0.getY()
        border = min(x, y, width - 1 - x, height - 1 - y)
        if record["truth_neighborDistance"] < 6.0 or border < 17 or not record["truth_isStar"]:
            continue
        # Its first guess is off on purpose.
        found = windowed_centroid(exposure.image.array, x + 0.4, y - 0.3, 2.0)
        sky = wcs.pixelToSky(Point2D(found[0] + xy0.getX(), found[1] + xy0.getY()))
        off = sky.separation(record.getCoord()).asArcseconds() / wcs.getPixelScale().asArcseconds()
        assert off < 0.01
        tested += 1
    assert tested >= 5


def test_psf_is_that_of_the_stars(noisy):
    """Area above half the peak: pi / 4 FWHM^2, with the preset's seeing."""
    conditions = {c.band: c for c in make_config().scene().conditions}
    for band, exposure in noisy.exposures.items():
        image = exposure.getPsf().computeKernelImage(Box2D(exposure.getBBox()).getCenter())
        assert image.array.sum() == pytest.approx(1.0)
        # Interpolated by Fourier transform: there are but some twenty pixels above half the peak.
        spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image.array)))
        fine = np.fft.ifft2(np.fft.ifftshift(np.pad(spectrum, 4 * len(image.array)))).real
        step = len(image.array) / len(fine)
        fwhm = 2 * step * np.sqrt((fine > 0.5 * fine.max()).sum() / np.pi) * 0.168
        # Seeing scatters from scene to scene by some ten percent.
        assert fwhm == pytest.approx(conditions[band].fwhm, rel=0.35)


def test_truth_does_not_depend_on_what_is_stored(noisy):
    bare = SimulateScenesTask(config=make_config(doTruthFlux=False)).run(tract=5, patch=203)
    assert bare.truthFlux is None
    for one, two in zip(bare.truth, noisy.truth, strict=True):
        assert one.getFootprint().getSpans() == two.getFootprint().getSpans()
        assert [(p.getIx(), p.getIy()) for p in one.getFootprint().getPeaks()] == [
            (p.getIx(), p.getIy()) for p in two.getFootprint().getPeaks()
        ]


def test_same_numbers_same_scene(noisy):
    again = SimulateScenesTask(config=make_config()).run(tract=5, patch=203)
    np.testing.assert_array_equal(again.exposures["r"].image.array, noisy.exposures["r"].image.array)
    assert again.truth["truth_r_flux"].tolist() == noisy.truth["truth_r_flux"].tolist()
    peaks = [peak.getId() for record in again.truth for peak in record.getFootprint().getPeaks()]
    assert peaks == list(range(1, len(peaks) + 1))
    # The seed in place of the tract: same scene elsewhere.
    moved = SimulateScenesTask(config=make_config(seed=5)).run(tract=6, patch=203)
    np.testing.assert_array_equal(moved.exposures["r"].image.array, noisy.exposures["r"].image.array)
    assert moved.truth[0].getCoord().separation(noisy.truth[0].getCoord()).asDegrees() > 5
    # Another number, another scene.
    other = SimulateScenesTask(config=make_config()).run(tract=5, patch=204)
    assert not np.array_equal(other.truth["truth_mag"], noisy.truth["truth_mag"])


PIPELINE = """
description: Simulated scenes
tasks:
  simulate:
    class: lsst.meas.maskrcnn.tasks.simulate.SimulateScenesTask
    config:
      preset: hsc-500s
      shape: [64, 80]
      doTruthFlux: false
"""


def test_pipetask(tmp_path: Path):
    """As part of a pipeline, from the dimension records alone."""
    root = tmp_path / "repo"
    butler = create_repo(root)
    SceneGrid("sky", (64, 80), 0.168).register(butler, 3, [0, 4], "zrgi")
    SceneGrid("coarse", (64, 80), 0.3).register(butler, 3, [0], "zrgi")
    butler.collections.register("nothing")
    (tmp_path / "simulate.yaml").write_text(PIPELINE)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("pipetask", path=path)
    assert program is not None
    command = [program, "run", "-b", str(root), "-p", str(tmp_path / "simulate.yaml"), "-i", "nothing"]
    command += ["--register-dataset-types", "-o"]
    done = subprocess.run(
        [*command, "u/coarse", "-d", "tract=3 AND skymap='coarse'"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert "in sky map 'coarse' was not made for scenes of 80 x 64 px" in done.stderr
    done = subprocess.run(
        [*command, "u/scenes", "-d", "tract=3 AND skymap='sky'"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr

    butler = Butler.from_config(str(root))
    found = butler.query_datasets("deepCoadd_calexp", collections="u/scenes")
    assert {(ref.dataId["skymap"], ref.dataId["patch"], ref.dataId["band"]) for ref in found} == {
        ("sky", patch, band) for patch in (0, 4) for band in "zrg"
    }
    truth = butler.get("maskRcnn_truth", skymap="sky", tract=3, patch=4, collections="u/scenes")
    config = butler.get("simulate_config", collections="u/scenes")
    direct = SimulateScenesTask(config=config).run(tract=3, patch=4)
    assert direct.truthFlux is None
    assert truth["truth_r_flux"].tolist() == direct.truth["truth_r_flux"].tolist()
    # The ids hold the patch.
    ids = butler.get("maskRcnn_truth", skymap="sky", tract=3, patch=0, collections="u/scenes")["id"]
    assert not set(ids.tolist()) & set(truth["id"].tolist())
    record = truth[0]
    assert record.getCoord().separation(
        SpherePoint(direct.truth["coord_ra"][0], direct.truth["coord_dec"][0], radians)
    ).asArcseconds() == pytest.approx(0.0, abs=1e-6)
