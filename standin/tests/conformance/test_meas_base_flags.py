# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What happens to sources that cannot be measured well, or not at all."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lsst.afw.detection import Footprint, GaussianPsf, InvalidPsfError, Psf
from lsst.afw.geom import SpanSet
from lsst.afw.image import ExposureF, Mask
from lsst.afw.table import SourceTable
from lsst.geom import Box2I, Extent2I, Point2I
from lsst.meas.base import (
    FatalAlgorithmError,
    MeasurementError,
    PsfFluxAlgorithm,
    SdssCentroidAlgorithm,
    SingleFrameMeasurementTask,
    SingleFramePlugin,
    SingleFramePluginConfig,
    generateAlgorithmName,
)
from lsst.pex.config import FieldValidationError
from lsst.pex.exceptions import LogicError

sys.path.append(str(Path(__file__).parent))
from meas_base_images import BBOX, gaussian, make_catalog, make_exposure, make_footprint, make_task, measure

FLUX = 1e5


@pytest.fixture(autouse=True)
def forget_planes() -> Iterator[None]:
    """Drop the mask planes that a measurement leaves that did not end."""
    yield
    for name in ("THISDET", "OTHERDET"):
        if name in Mask().getMaskPlaneDict():
            Mask.removeMaskPlane(name)


def make_star(x: float, y: float) -> ExposureF:
    """Return an image of a star."""
    exposure = make_exposure()
    exposure.image.array += gaussian(x, y, FLUX).astype(np.float32)
    return exposure


def set_bits(exposure: ExposureF, plane: str, box: Box2I) -> None:
    """Set a bit of the mask in a box."""
    exposure.mask[box].array[:, :] |= exposure.mask.getPlaneBitMask(plane)


def test_star_at_the_edge() -> None:
    x, y = BBOX.getMaxX() - 5.2, 1370.4
    (record,) = measure(make_star(x, y), [make_footprint(x, y)])
    # The PSF's image does not fit, a small kernel does.
    assert record["base_SdssCentroid_flag_near_edge"]
    assert record["base_SdssCentroid_flag"]
    assert not record["base_SdssCentroid_flag_edge"]
    assert record.getX() == pytest.approx(x, abs=0.05)
    assert record.getY() == pytest.approx(y, abs=0.05)
    assert record["base_PsfFlux_flag_edge"]
    assert record["base_PsfFlux_flag"]
    assert record["base_PsfFlux_instFlux"] == pytest.approx(FLUX, rel=0.01)
    assert 0 < record["base_PsfFlux_npixels"] < 25 * 25
    assert not record["base_CircularApertureFlux_3_0_flag_apertureTruncated"]
    assert record["base_CircularApertureFlux_4_5_flag_sincCoeffsTruncated"]
    assert not record["base_CircularApertureFlux_4_5_flag_apertureTruncated"]
    for radius in ("6_0", "9_0", "12_0", "70_0"):
        assert record[f"base_CircularApertureFlux_{radius}_flag_apertureTruncated"]
        assert record[f"base_CircularApertureFlux_{radius}_flag"]
        assert math.isnan(record[f"base_CircularApertureFlux_{radius}_instFlux"])
    # These know that the centroid is flagged, except where upstream forgets.
    assert record["base_LocalBackground_flag"]
    assert record["base_LocalBackground_flag_badCentroid"]
    assert not record["base_GaussianFlux_flag"]


def test_source_in_the_corner_keeps_its_peak() -> None:
    x, y = BBOX.getMinX() + 1.0, BBOX.getMinY() + 1.0
    (record,) = measure(make_star(x, y), [make_footprint(x, y)])
    assert record["base_SdssCentroid_flag_edge"]
    assert record["base_SdssCentroid_flag"]
    assert (record.getX(), record.getY()) == (x, y)
    assert math.isnan(record["base_SdssCentroid_xErr"])


def test_mask_bits() -> None:
    x, y = 30.0, 1370.0
    exposure = make_star(x, y)
    set_bits(exposure, "SAT", Box2I(Point2I(30, 1370), Extent2I(1, 1)))
    set_bits(exposure, "INTRP", Box2I(Point2I(29, 1369), Extent2I(3, 3)))
    set_bits(exposure, "CR", Box2I(Point2I(36, 1370), Extent2I(1, 1)))
    # Out of the footprint.
    set_bits(exposure, "BAD", Box2I(Point2I(50, 1370), Extent2I(5, 5)))
    (record,) = measure(exposure, [make_footprint(x, y)])
    expected = {
        "saturated",
        "saturatedCenter",
        "interpolated",
        "interpolatedCenter",
        "interpolatedCenterAll",
        "cr",
    }
    names = ("edge", "nodata", "interpolated", "saturated", "cr", "bad", "suspect")
    flags = {f"{name}{where}" for name in names for where in ("", "Center", "CenterAll")}
    assert {name for name in flags if record[f"base_PixelFlags_flag_{name}"]} == expected
    assert not record["base_PixelFlags_flag"]
    assert not record["base_PixelFlags_flag_offimage"]


def test_more_mask_planes() -> None:
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = ["base_PixelFlags", "base_PeakCentroid"]
    for slot in ("shape", "apFlux", "modelFlux", "psfFlux", "gaussianFlux", "calibFlux"):
        setattr(config.slots, slot, None)
    config.slots.centroid = "base_PeakCentroid"
    config.plugins["base_PixelFlags"].masksFpAnywhere = ["STREAK"]
    config.plugins["base_PixelFlags"].masksFpCenter = ["STREAK"]
    task = SingleFrameMeasurementTask(schema=SourceTable.makeMinimalSchema(), config=config)
    exposure = make_exposure()
    exposure.mask.addMaskPlane("STREAK")
    set_bits(exposure, "STREAK", Box2I(Point2I(25, 1370), Extent2I(5, 1)))
    near, far, on = measure(
        exposure, [make_footprint(30, 1372), make_footprint(80, 1372), make_footprint(28, 1370)], task
    )
    assert near["base_PixelFlags_flag_streak"]
    assert not near["base_PixelFlags_flag_streakCenter"]
    assert not far["base_PixelFlags_flag_streak"]
    assert on["base_PixelFlags_flag_streakCenter"]
    assert not on["base_PixelFlags_flag_streakCenterAll"]
    assert (near.getX(), near.getY()) == (30.0, 1372.0)


def test_missing_mask_plane_ends_the_measurement() -> None:
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = ["base_PixelFlags", "base_PeakCentroid"]
    for slot in ("shape", "apFlux", "modelFlux", "psfFlux", "gaussianFlux", "calibFlux"):
        setattr(config.slots, slot, None)
    config.slots.centroid = "base_PeakCentroid"
    config.plugins["base_PixelFlags"].masksFpAnywhere = ["NO_SUCH_PLANE"]
    task = SingleFrameMeasurementTask(schema=SourceTable.makeMinimalSchema(), config=config)
    with pytest.raises(FatalAlgorithmError):
        measure(make_exposure(), [make_footprint(30, 1372)], task)


def test_no_psf_ends_the_measurement() -> None:
    exposure = make_star(30.0, 1370.0)
    exposure.setPsf(None)
    with pytest.raises(FatalAlgorithmError, match="requires a Psf"):
        measure(exposure, [make_footprint(30.0, 1370.0)])


class EmptyPsf(Psf):
    """A PSF that has no value beyond x = 50."""

    def __init__(self) -> None:
        super().__init__(isFixed=False)
        self._inner = GaussianPsf(25, 25, 2.0)

    def _doComputeKernelImage(self, position=None, color=None):
        if position.getX() > 50:
            raise InvalidPsfError("No image covers this position.")
        return self._inner.computeKernelImage(position)

    def _doComputeBBox(self, position=None, color=None):
        return self._inner.computeBBox(position)

    def _doComputeShape(self, position=None, color=None):
        return self._inner.computeShape(position)


def test_psf_without_a_value() -> None:
    exposure = make_star(30.0, 1370.0)
    exposure.setPsf(EmptyPsf())
    task = make_task(
        {"base_PeakCentroid", "base_PsfFlux"},
        centroid="base_PeakCentroid",
        shape=None,
        apFlux=None,
        modelFlux=None,
        gaussianFlux=None,
        calibFlux=None,
    )
    good, bad = measure(exposure, [make_footprint(30.0, 1370.0), make_footprint(80.0, 1370.0)], task)
    assert not good["base_InvalidPsf_flag"]
    assert good["base_PsfFlux_instFlux"] == pytest.approx(FLUX, rel=1e-3)
    assert bad["base_InvalidPsf_flag"]
    assert bad["base_PsfFlux_flag"]
    assert math.isnan(bad["base_PsfFlux_instFlux"])


def test_no_psf_where_it_is_not_needed() -> None:
    exposure = make_star(30.0, 1370.0)
    exposure.setPsf(None)
    task = make_task(
        {"base_PeakCentroid", "base_SdssShape", "base_LocalBackground", "base_GaussianFlux"},
        centroid="base_PeakCentroid",
        psfFlux=None,
        apFlux=None,
        calibFlux=None,
    )
    (record,) = measure(exposure, [make_footprint(30.0, 1370.0)], task)
    assert record["base_LocalBackground_flag_noPsf"]
    assert record["base_LocalBackground_flag"]
    assert record["base_SdssShape_flag_psf"]
    assert not record["base_SdssShape_flag"]
    assert record["base_GaussianFlux_instFlux"] == pytest.approx(FLUX, rel=1e-3)


def test_pixels_that_are_nan() -> None:
    exposure = make_star(30.0, 1370.0)
    exposure.image[Point2I(30, 1370)] = np.nan
    good, bad = measure(exposure, [make_footprint(90.0, 1330.0), make_footprint(30.0, 1370.0)])
    assert bad["base_PsfFlux_flag"]
    assert math.isnan(bad["base_PsfFlux_instFlux"])
    assert bad["base_SdssShape_flag"]
    assert bad["base_GaussianFlux_flag"]
    assert math.isnan(bad["base_CircularApertureFlux_12_0_instFlux"])
    # The other one is none the worse for it.
    assert math.isfinite(good["base_PsfFlux_instFlux"])
    assert good["base_PsfFlux_instFlux"] == pytest.approx(0.0, abs=1e-3)


def test_nothing_there() -> None:
    """Without curvature there is no maximum."""
    exposure = make_exposure()
    (record,) = measure(exposure, [make_footprint(30.0, 1370.0)])
    assert record["base_SdssCentroid_flag_noSecondDerivative"]
    assert record["base_SdssCentroid_flag"]
    assert (record.getX(), record.getY()) == (30.0, 1370.0)
    assert record["base_SdssShape_flag_unweightedBad"]
    assert record["base_SdssShape_flag"]
    assert math.isnan(record["base_SdssShape_xx"])
    assert record["base_GaussianFlux_flag"]
    assert record["base_ClassificationSizeExtendedness_flag"]
    assert record["base_Blendedness_flag_noShape"]
    assert record["base_Blendedness_flag"]


def test_hole() -> None:
    exposure = make_star(30.0, 1370.0)
    exposure.image.array *= -1
    (record,) = measure(exposure, [make_footprint(30.0, 1370.0)])
    assert record["base_SdssCentroid_flag_notAtMaximum"]
    assert record["base_SdssShape_flag"]
    assert record["base_PsfFlux_instFlux"] == pytest.approx(-FLUX, rel=1e-3)


def test_centroid_that_strays_goes_back_to_the_peak() -> None:
    footprint = make_footprint(31.0, 1370.0)
    (record,) = measure(make_star(29.8, 1370.0), [footprint])
    assert record["base_SdssCentroid_flag_resetToPeak"]
    assert record["base_SdssCentroid_flag"]
    assert (record.getX(), record.getY()) == (31.0, 1370.0)
    # Outside its footprint, though near its peak.
    box = Box2I(Point2I(31, 1360), Extent2I(9, 21))
    footprint = Footprint(SpanSet(box), BBOX)
    footprint.addPeak(31.0, 1370.0, 1.0)
    (record,) = measure(make_star(30.2, 1370.0), [footprint])
    assert record["base_SdssCentroid_flag_resetToPeak"]
    assert record.getX() == 31.0


def test_shape_that_shifts() -> None:
    exposure = make_star(30.0, 1370.0)
    task = make_task(
        {"base_PeakCentroid", "base_SdssShape"},
        centroid="base_PeakCentroid",
        psfFlux=None,
        apFlux=None,
        modelFlux=None,
        gaussianFlux=None,
        calibFlux=None,
    )
    (record,) = measure(exposure, [make_footprint(38.0, 1370.0)], task)
    assert record["base_SdssShape_flag_shift"]
    assert record["base_SdssShape_flag"]


def test_task_without_a_wcs() -> None:
    exposure = make_star(30.0, 1370.0)
    exposure.setWcs(None)
    (record,) = measure(exposure, [make_footprint(30.0, 1370.0)])
    # A warning, and no position; the rest is measured.
    assert math.isnan(record.getCoord().getLongitude().asRadians())
    assert record["base_PsfFlux_instFlux"] == pytest.approx(FLUX, rel=1e-3)


def test_slots_need_their_plugins() -> None:
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = ["base_PixelFlags"]
    with pytest.raises(FieldValidationError, match="centroid"):
        config.validate()
    config.slots.centroid = None
    with pytest.raises(FieldValidationError, match="shape"):
        config.validate()
    config.slots.shape = None
    with pytest.raises(FieldValidationError, match="instFlux"):
        config.validate()
    for slot in ("apFlux", "modelFlux", "psfFlux", "gaussianFlux", "calibFlux"):
        setattr(config.slots, slot, None)
    config.validate()


def test_config_survives_text() -> None:
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = list(make_task().plugins)
    config.plugins["base_CircularApertureFlux"].radii = [3.0, 12.0]
    config.plugins["base_PsfFlux"].badMaskPlanes = ["BAD"]
    config.noiseReplacer.noiseSource = "variance_median"
    text = io.StringIO()
    config.saveToStream(text)
    loaded = SingleFrameMeasurementTask.ConfigClass()
    loaded.loadFromString(text.getvalue())
    assert loaded.compare(config)
    assert list(loaded.plugins["base_CircularApertureFlux"].radii) == [3.0, 12.0]
    task = SingleFrameMeasurementTask(schema=SourceTable.makeMinimalSchema(), config=loaded)
    assert "base_CircularApertureFlux_3_0_instFlux" in task.schema
    assert "base_CircularApertureFlux_4_5_instFlux" not in task.schema


def test_bad_pixels_are_left_out_of_the_fit() -> None:
    exposure = make_star(30.0, 1370.0)
    exposure.image[Point2I(33, 1372)] = 1e6
    set_bits(exposure, "BAD", Box2I(Point2I(33, 1372), Extent2I(1, 1)))
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = ["base_PeakCentroid", "base_PsfFlux"]
    config.slots.centroid = "base_PeakCentroid"
    for slot in ("shape", "apFlux", "modelFlux", "gaussianFlux", "calibFlux"):
        setattr(config.slots, slot, None)
    config.plugins["base_PsfFlux"].badMaskPlanes = ["BAD"]
    task = SingleFrameMeasurementTask(schema=SourceTable.makeMinimalSchema(), config=config)
    (record,) = measure(exposure, [make_footprint(30.0, 1370.0)], task)
    assert record["base_PsfFlux_npixels"] == 25 * 25 - 1
    assert record["base_PsfFlux_instFlux"] == pytest.approx(FLUX, rel=1e-3)
    set_bits(exposure, "BAD", BBOX)
    (record,) = measure(exposure, [make_footprint(30.0, 1370.0)], task)
    assert record["base_PsfFlux_flag_noGoodPixels"]
    assert record["base_PsfFlux_flag"]


def test_flux_needs_a_centroid_slot() -> None:
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = ["base_PsfFlux"]
    for slot in ("centroid", "shape", "apFlux", "modelFlux", "gaussianFlux", "calibFlux"):
        setattr(config.slots, slot, None)
    with pytest.raises(LogicError, match="slot_Centroid_flag"):
        SingleFrameMeasurementTask(schema=SourceTable.makeMinimalSchema(), config=config)


def test_names_of_algorithms() -> None:
    assert generateAlgorithmName(PsfFluxAlgorithm) == "base_PsfFlux"
    assert generateAlgorithmName(SdssCentroidAlgorithm) == "base_SdssCentroid"


def test_execution_orders() -> None:
    x, y = 30.0, 1370.0
    task = make_task()
    assert next(iter(task.plugins)) == "base_SdssCentroid"
    orders = [plugin.getExecutionOrder() for plugin in task.plugins.values()]
    assert orders == sorted(orders)
    catalog = make_catalog(task)
    catalog.addNew().setFootprint(make_footprint(x, y))
    exposure = make_star(x, y)
    task.run(catalog, exposure, endOrder=SingleFramePlugin.FLUX_ORDER)
    assert math.isfinite(catalog[0]["base_SdssShape_xx"])
    assert math.isnan(catalog[0]["base_PsfFlux_instFlux"])
    task.run(catalog, exposure, beginOrder=SingleFramePlugin.FLUX_ORDER)
    assert catalog[0]["base_PsfFlux_instFlux"] == pytest.approx(FLUX, rel=1e-3)


class FailingConfig(SingleFramePluginConfig):
    """Settings of `FailingPlugin`."""


class FailingPlugin(SingleFramePlugin):
    """Fails in one of two ways."""

    ConfigClass = FailingConfig
    TOO_FAR = 3

    @classmethod
    def getExecutionOrder(cls) -> float:
        return cls.FLUX_ORDER

    def __init__(self, config, name, schema, metadata):
        super().__init__(config, name, schema, metadata)
        self.key_known = schema.addField(f"{name}_flag_known", type="Flag", doc="failed as expected")
        self.key_unknown = schema.addField(f"{name}_flag_unknown", type="Flag", doc="failed otherwise")

    def measure(self, measRecord, exposure):
        if measRecord.getX() > 50:
            raise MeasurementError("too far", self.TOO_FAR)
        raise ValueError("not far enough")

    def fail(self, measRecord, error=None):
        if error is None:
            measRecord.set(self.key_unknown, True)
        else:
            assert error.getFlagBit() == self.TOO_FAR
            measRecord.set(self.key_known, True)


def test_failing_plugin(caplog: pytest.LogCaptureFixture) -> None:
    if "testMaskRcnn_Failing" not in SingleFramePlugin.registry:
        SingleFramePlugin.registry.register("testMaskRcnn_Failing", FailingPlugin)
    exposure = make_exposure()
    for x in (30.0, 80.0):
        exposure.image.array += gaussian(x, 1370.0, FLUX).astype(np.float32)
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = [*make_task().plugins, "testMaskRcnn_Failing"]
    task = SingleFrameMeasurementTask(schema=SourceTable.makeMinimalSchema(), config=config)
    near, far = measure(exposure, [make_footprint(30.0, 1370.0), make_footprint(80.0, 1370.0)], task)
    assert near["testMaskRcnn_Failing_flag_unknown"]
    assert not near["testMaskRcnn_Failing_flag_known"]
    assert far["testMaskRcnn_Failing_flag_known"]
    assert not far["testMaskRcnn_Failing_flag_unknown"]
    assert "not far enough" in caplog.text
    assert near["base_PsfFlux_instFlux"] == pytest.approx(FLUX, rel=2e-3)


def test_without_replacing() -> None:
    """Neighbours stay in the image if that is wanted."""
    exposure = make_star(30.0, 1370.0)
    exposure.image.array += gaussian(38.0, 1370.0, FLUX).astype(np.float32)
    footprints = [make_footprint(30.0, 1370.0, 4), make_footprint(38.0, 1370.0, 3)]
    with_noise = measure(exposure, footprints)[0]["base_CircularApertureFlux_12_0_instFlux"]
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = list(make_task().plugins)
    config.doReplaceWithNoise = False
    task = SingleFrameMeasurementTask(schema=SourceTable.makeMinimalSchema(), config=config)
    without = measure(exposure, footprints, task)[0]["base_CircularApertureFlux_12_0_instFlux"]
    assert without == pytest.approx(2 * FLUX, rel=0.02)
    assert with_noise < 1.5 * FLUX


def test_undeblended_plugins() -> None:
    exposure = make_star(30.0, 1370.0)
    exposure.image.array += gaussian(38.0, 1370.0, FLUX).astype(np.float32)
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = list(make_task().plugins)
    config.undeblended.names = ["base_PsfFlux"]
    task = SingleFrameMeasurementTask(schema=SourceTable.makeMinimalSchema(), config=config)
    footprints = [make_footprint(30.0, 1370.0, 4), make_footprint(38.0, 1370.0, 3)]
    record = measure(exposure, footprints, task)[0]
    overlap = math.exp(-(8.0**2) / 16.0)
    assert record["undeblended_base_PsfFlux_instFlux"] == pytest.approx(FLUX * (1 + overlap), rel=5e-3)


def test_metadata_say_how_it_was_done() -> None:
    from lsst.daf.base import PropertyList

    task = make_task()
    catalog = make_catalog(task)
    catalog.table.setMetadata(PropertyList())
    catalog.addNew().setFootprint(make_footprint(30.0, 1370.0))
    task.run(catalog, make_star(30.0, 1370.0), exposureId=77)
    metadata = catalog.table.getMetadata()
    assert metadata.getScalar("NOISE_EXPOSURE_ID") == 77
    assert metadata.getScalar("NOISE_SOURCE") == "measure"
    assert list(task.algMetadata.getArray("BASE_CIRCULARAPERTUREFLUX_RADII")) == [
        3.0,
        4.5,
        6.0,
        9.0,
        12.0,
        17.0,
        25.0,
        35.0,
        50.0,
        70.0,
    ]


def test_wrong_schema() -> None:
    task = make_task()
    from lsst.afw.table import SourceCatalog

    with pytest.raises(AssertionError):
        task.run(SourceCatalog(SourceTable.makeMinimalSchema()), make_exposure())
