# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images, masks, exposures and their FITS files, against the real afw."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import pytest

import lsst.afw.image as afwImage
import lsst.geom as geom
import lsst.pex.exceptions as pexExceptions
from lsst.afw.detection import GaussianPsf
from lsst.afw.fits import CompressionOptions, FitsError, readMetadata
from lsst.afw.geom import makeCdMatrix, makeSkyWcs
from lsst.pex.exceptions import InvalidParameterError, LengthError

BBOX = geom.Box2I(geom.Point2I(100, 200), geom.Extent2I(64, 48))


@pytest.fixture(scope="session")
def golden(shared_data: Path) -> dict[str, Any]:
    """What the real afw says that its files hold."""
    return json.loads((shared_data / "afw" / "golden.json").read_text())


@pytest.fixture
def image() -> afwImage.ImageF:
    """An image of 7 x 5 pixels at (100, 200); values are 10 x + y."""
    result = afwImage.ImageF(geom.Box2I(geom.Point2I(100, 200), geom.Extent2I(7, 5)))
    result.array[:] = 10 * np.arange(7) + np.arange(5)[:, None]
    return result


def reduced(obj: Any) -> Any:
    """Take an object apart and put it together as pickling does."""
    function, args = obj.__reduce__()[:2]
    return function(*args)


def make_exposure() -> afwImage.ExposureF:
    """The exposure that ``exposure.fits`` holds, from its description."""
    wcs = makeSkyWcs(
        crpix=geom.Point2D(131.5, 223.25),
        crval=geom.SpherePoint(150.25, -2.5, geom.degrees),
        cdMatrix=makeCdMatrix(scale=0.2 * geom.arcseconds, orientation=30 * geom.degrees, flipX=True),
    )
    exposure = afwImage.ExposureF(BBOX, wcs)
    y, x = np.mgrid[200:248, 100:164]
    exposure.image.array[:] = (
        10
        + 0.25 * (x - 100)
        - 0.125 * (y - 200)
        + 100 * np.exp(-((x - 120) ** 2 + (y - 220) ** 2) / (2 * 2.0**2))
    )
    exposure.variance.array[:] = 4 + (x + y) % 7
    exposure.setPsf(GaussianPsf(21, 21, 2.0))
    exposure.setPhotoCalib(afwImage.PhotoCalib(57.5, 0.25))
    exposure.setFilter(afwImage.FilterLabel.fromBandPhysical("r", "r_03"))
    metadata = exposure.metadata
    metadata.set("GOLDINT", 42)
    metadata.set("GOLDFLT", 1.25)
    metadata.set("GOLDSTR", "hello world")
    metadata.set("GOLDBOOL", True)
    metadata.set("LONGER_THAN_EIGHT", "hierarch")
    return exposure


# ---------------------------------------------------------------- in memory


class TestImage:
    """Single planes."""

    def test_constructors(self) -> None:
        assert afwImage.ImageF(4, 3).getBBox() == geom.Box2I(geom.Point2I(0, 0), geom.Extent2I(4, 3))
        assert afwImage.ImageF(geom.Extent2I(4, 3), 2.5).array.tolist() == [[2.5] * 4] * 3
        box = geom.Box2I(geom.Point2I(5, 6), geom.Extent2I(4, 3))
        assert afwImage.ImageD(box).getBBox() == box
        array = np.zeros((3, 4), dtype=np.float32)
        assert afwImage.ImageF(array).getBBox() == geom.Box2I(geom.Point2I(0, 0), geom.Extent2I(4, 3))
        assert afwImage.ImageF(array, xy0=geom.Point2I(5, 6)).getBBox() == box
        assert isinstance(afwImage.Image(array, dtype=np.float32), afwImage.ImageF)
        with pytest.raises(TypeError):
            afwImage.ImageF(np.zeros((3, 4)))

    def test_array_is_a_view(self, image: afwImage.ImageF) -> None:
        array = image.array
        array[2, 3] = -1
        assert image[103, 202] == -1
        image.array = np.ones((5, 7))
        assert array[2, 3] == 1
        with pytest.raises(ValueError):
            image.array = np.ones((4, 7))
        with pytest.raises(TypeError):
            image.array = None
        shared = afwImage.ImageF(array)
        shared[0, 0] = 9
        assert image[100, 200] == 9

    def test_copies(self, image: afwImage.ImageF) -> None:
        shallow = afwImage.ImageF(image)
        deep = afwImage.ImageF(image, deep=True)
        image[100, 200] = 77
        assert shallow[100, 200] == 77
        assert deep[100, 200] == 0
        for other in (image.clone(), copy.deepcopy(image), reduced(image)):
            assert other.getBBox() == image.getBBox()
            np.testing.assert_array_equal(other.array, image.array)
            assert not np.shares_memory(other.array, image.array)
        assert image.convertD().array.dtype == np.float64

    def test_indexing(self, image: afwImage.ImageF) -> None:
        assert image[103, 202] == 32.0
        assert isinstance(image[103, 202], float)
        assert image[geom.Point2I(103, 202)] == 32.0
        assert image[3, 2, afwImage.LOCAL] == 32.0
        assert image[-1, -1, afwImage.LOCAL] == 64.0
        with pytest.raises(
            IndexError, match=r"Index \(0, 0\) outside image bounds \(100, 200\) to \(106, 204\)"
        ):
            image[0, 0]
        with pytest.raises(IndexError):
            image[-1, 0]
        image[103, 202] = 5
        assert image.array[2, 3] == 5

    def test_subset(self, image: afwImage.ImageF) -> None:
        box = geom.Box2I(geom.Point2I(102, 201), geom.Extent2I(3, 2))
        for part in (
            image[box],
            image.subset(box),
            image[102:105, 201:203],
            image[2:5, 1:3, afwImage.LOCAL],
            afwImage.ImageF(image, box),
            image.Factory(image, box, afwImage.PARENT),
        ):
            assert part.getBBox() == box
            np.testing.assert_array_equal(part.array, image.array[1:3, 2:5])
            assert np.shares_memory(part.array, image.array)
        with pytest.raises(LengthError):
            image[geom.Box2I(geom.Point2I(0, 0), geom.Extent2I(3, 3))]
        image[box] = 3
        assert np.all(image.array[1:3, 2:5] == 3)
        image[box] = afwImage.ImageF(3, 2, 4)
        assert image.array.sum() == 24 + image.array[0].sum() + image.array[3:].sum() + (
            image.array[1:3, :2].sum() + image.array[1:3, 5:].sum()
        )
        with pytest.raises(LengthError):
            image.assign(afwImage.ImageF(2, 2), box)

    def test_arithmetic(self, image: afwImage.ImageF) -> None:
        expected = image.array.copy()
        image += 2
        image *= 3.0
        image -= afwImage.ImageF(image.getDimensions(), 1)
        image /= 2
        np.testing.assert_allclose(image.array, ((expected + 2) * 3 - 1) / 2)
        with pytest.raises(NotImplementedError):
            image + image
        with pytest.raises(LengthError):
            image += afwImage.ImageF(2, 2)
        counts = afwImage.ImageI(2, 2, 7)
        counts *= 3
        assert counts.array.tolist() == [[21, 21], [21, 21]]

    def test_xy0(self, image: afwImage.ImageF) -> None:
        image.setXY0(geom.Point2I(-3, 4))
        assert (image.getX0(), image.y0) == (-3, 4)
        image.setXY0(1, 2)
        assert image.getXY0() == geom.Point2I(1, 2)
        assert image.getBBox(afwImage.LOCAL).getMin() == geom.Point2I(0, 0)


class TestMask:
    """Mask planes."""

    def test_default_planes(self) -> None:
        planes = afwImage.Mask(2, 2).getMaskPlaneDict()
        names = ["BAD", "SAT", "INTRP", "CR", "EDGE", "DETECTED", "DETECTED_NEGATIVE", "SUSPECT", "NO_DATA"]
        assert [planes[name] for name in names] == list(range(9))
        assert (planes["VIGNETTED"], planes["STREAK"]) == (9, 10)
        assert afwImage.Mask.getNumPlanesMax() == 32

    def test_bits(self) -> None:
        mask = afwImage.Mask(4, 3)
        assert mask.getPlaneBitMask("SAT") == 2
        assert mask.getPlaneBitMask(["SAT", "CR"]) == 10
        assert afwImage.Mask.getPlaneBitMask("SAT") == afwImage.MaskX.getPlaneBitMask("SAT") == 2
        assert afwImage.Mask.interpret(3) == "BAD,SAT"
        mask[1, 2] = 3
        assert isinstance(mask[1, 2], int)
        assert mask.getAsString(1, 2) == "BAD,SAT"
        with pytest.raises(InvalidParameterError, match="Invalid mask plane name: NOPE"):
            mask.getPlaneBitMask("NOPE")

    def test_operators(self) -> None:
        mask = afwImage.Mask(4, 3)
        mask |= 6
        mask &= ~mask.getPlaneBitMask("SAT")
        assert np.all(mask.array == 4)
        other = afwImage.Mask(4, 3)
        other.array[1] = 5
        mask ^= other
        np.testing.assert_array_equal(mask.array[:, 0], [4, 1, 4])
        mask.clearMaskPlane(mask.getMaskPlane("INTRP"))
        np.testing.assert_array_equal(mask.array[:, 0], [0, 1, 0])
        mask.clearAllMaskPlanes()
        assert not mask.array.any()
        with pytest.raises(NotImplementedError):
            mask | mask

    def test_new_plane_is_known_to_all(self) -> None:
        before = afwImage.Mask(2, 2)
        bit = afwImage.Mask.addMaskPlane("TEST_NEW_PLANE")
        assert afwImage.Mask.addMaskPlane("TEST_NEW_PLANE") == bit
        assert before.getMaskPlaneDict()["TEST_NEW_PLANE"] == bit
        assert afwImage.Mask(2, 2).getMaskPlaneDict()["TEST_NEW_PLANE"] == bit
        before.array[:] = afwImage.Mask.getPlaneBitMask(["TEST_NEW_PLANE", "BAD"])
        before.removeAndClearMaskPlane("TEST_NEW_PLANE", removeFromDefault=True)
        assert np.all(before.array == 1)
        assert "TEST_NEW_PLANE" not in before.getMaskPlaneDict()
        assert "TEST_NEW_PLANE" not in afwImage.Mask(2, 2).getMaskPlaneDict()

    def test_planes_of_a_file_are_remapped(self, tmp_path: Path) -> None:
        path = tmp_path / "mask.fits"
        mask = afwImage.Mask(4, 3)
        mask.array[:] = np.arange(12).reshape(3, 4)
        mask.writeFits(str(path))
        with astropy.io.fits.open(path, mode="update") as hdus:
            header = hdus[0].header
            # The file swaps two planes and has a third where ours has CR.
            header["MP_BAD"], header["MP_SAT"] = 1, 0
            header.rename_keyword("MP_CR", "MP_OTHER")
        found = afwImage.Mask.readFits(str(path))
        planes = found.getMaskPlaneDict()
        assert (planes["BAD"], planes["SAT"], planes["CR"]) == (0, 1, 3)
        bits = {name: found.getPlaneBitMask(name) for name in ("BAD", "SAT", "INTRP", "CR", "OTHER")}
        old = mask.array
        np.testing.assert_array_equal(found.array & bits["BAD"] != 0, old & 2 != 0)
        np.testing.assert_array_equal(found.array & bits["SAT"] != 0, old & 1 != 0)
        np.testing.assert_array_equal(found.array & bits["INTRP"] != 0, old & 4 != 0)
        np.testing.assert_array_equal(found.array & bits["OTHER"] != 0, old & 8 != 0)
        assert not np.any(found.array & bits["CR"])
        found.removeAndClearMaskPlane("OTHER", removeFromDefault=True)


class TestMaskedImage:
    """Three planes together."""

    def test_planes(self, image: afwImage.ImageF) -> None:
        masked = afwImage.makeMaskedImage(image)
        assert isinstance(masked, afwImage.MaskedImageF)
        assert masked.mask.getBBox() == masked.variance.getBBox() == image.getBBox()
        masked.image[100, 200] = 4
        assert image[100, 200] == 4
        masked.image = afwImage.ImageF(image.getBBox(), 2)
        assert np.all(image.array == 2)
        masked.set(1, 2, 3)
        assert masked[101, 201] == (1, 2, 3)
        with pytest.raises(LengthError):
            afwImage.MaskedImageF(image, afwImage.Mask(2, 2))

    def test_errors_propagate(self) -> None:
        def make(value: float, mask: int, variance: float) -> afwImage.MaskedImageF:
            result = afwImage.MaskedImageF(2, 2)
            result.set(value, mask, variance)
            return result

        total = make(6, 1, 4)
        total += make(2, 2, 1)
        assert total[0, 0] == (8, 3, 5)
        total -= make(2, 0, 1)
        assert total[0, 0] == (6, 3, 6)
        total *= 2.0
        assert total[0, 0] == (12, 3, 24)
        total /= 4
        assert total[0, 0] == (3, 3, 1.5)
        product = make(6, 1, 4)
        product *= make(2, 0, 1)
        assert product[0, 0] == (12, 1, 36 * 1 + 4 * 4)
        ratio = make(6, 1, 4)
        ratio /= make(2, 0, 1)
        assert ratio[0, 0] == pytest.approx((3, 1, (4 * 4 + 1 * 36) / 16))


class TestExposure:
    """Everything together."""

    def test_components_default(self) -> None:
        exposure = afwImage.ExposureF(BBOX)
        for name in ("wcs", "psf", "photoCalib", "filter", "visitInfo", "detector", "apCorrMap"):
            assert getattr(exposure, name) is None
        assert exposure.info.id is None
        assert not exposure.hasWcs() and not exposure.hasPsf()
        assert exposure.variance[100, 200] == 0.0
        assert len(exposure.metadata) == 0
        assert not hasattr(exposure, "getFilterLabel")

    def test_subset_shares_pixels(self) -> None:
        exposure = make_exposure()
        box = geom.Box2I(geom.Point2I(110, 210), geom.Extent2I(5, 4))
        part = exposure[box]
        assert part.getBBox() == box
        part.image.array[:] = -1
        assert exposure.image[112, 211] == -1
        assert part.wcs == exposure.wcs
        part.setPsf(None)
        assert exposure.hasPsf()
        with pytest.raises(LengthError):
            exposure[geom.Box2I(geom.Point2I(0, 0), geom.Extent2I(3, 3))]

    def test_clone(self) -> None:
        exposure = make_exposure()
        other = exposure.clone()
        other.image.array[:] = 0
        other.metadata.set("GOLDINT", 1)
        assert exposure.image.array.sum() != 0
        assert exposure.metadata["GOLDINT"] == 42
        assert other.photoCalib == exposure.photoCalib

    def test_pickle(self) -> None:
        exposure = make_exposure()
        other = reduced(exposure)
        assert type(other) is afwImage.ExposureF
        np.testing.assert_array_equal(other.image.array, exposure.image.array)
        assert other.getBBox() == BBOX
        assert other.getFilter() == exposure.getFilter()

    def test_set_xy0_moves_the_wcs(self) -> None:
        exposure = make_exposure()
        sky = exposure.wcs.pixelToSky(geom.Point2D(120, 220))
        exposure.setXY0(geom.Point2I(0, 0))
        moved = exposure.wcs.pixelToSky(geom.Point2D(20, 20))
        assert moved.separation(sky).asArcseconds() < 1e-8

    def test_cutout(self) -> None:
        exposure = make_exposure()
        cutout = exposure.getCutout(geom.Point2D(131.5, 223.5), geom.Extent2I(10, 10))
        assert cutout.getBBox() == geom.Box2I(geom.Point2I(127, 219), geom.Extent2I(10, 10))
        assert not np.shares_memory(cutout.image.array, exposure.image.array)
        sky = exposure.wcs.pixelToSky(geom.Point2D(132, 224))
        assert exposure.getCutout(sky, geom.Extent2I(11, 11)).getDimensions() == geom.Extent2I(11, 11)
        edge = exposure.getCutout(geom.Point2D(100, 200), geom.Extent2I(11, 11))
        assert edge.getBBox().getMin() == geom.Point2I(95, 195)
        assert np.isnan(edge.image.array[0, 0])
        assert edge.mask.array[0, 0] == afwImage.Mask.getPlaneBitMask("NO_DATA")
        assert edge.image[100, 200] == exposure.image[100, 200]
        with pytest.raises(InvalidParameterError):
            exposure.getCutout(geom.Point2D(0, 0), geom.Extent2I(10, 10))

    def test_sky_outline(self) -> None:
        import astropy.units as u

        exposure = make_exposure()
        inside = exposure.wcs.pixelToSky(geom.Point2D(130, 230))
        outside = exposure.wcs.pixelToSky(geom.Point2D(90, 230))
        ra = np.array([inside.getRa().asRadians(), outside.getRa().asRadians()]) * u.rad
        dec = np.array([inside.getDec().asRadians(), outside.getDec().asRadians()]) * u.rad
        np.testing.assert_array_equal(exposure.containsSkyCoords(ra, dec), [True, False])
        assert exposure.convex_polygon.contains(inside.getVector())


class TestMultiband:
    """Several bands."""

    def test_exposures(self) -> None:
        singles = [make_exposure() for _ in "gri"]
        for i, single in enumerate(singles):
            single.image.array[:] += 100 * i
        multi = afwImage.MultibandExposure.fromExposures("gri", singles)
        assert multi.bands == ("g", "r", "i")
        assert multi.getBBox() == BBOX
        assert multi.image.array.shape == multi.mask.array.shape == (3, 48, 64)
        np.testing.assert_array_equal(multi["i"].image.array, singles[2].image.array)
        multi["r"].image.array[0, 0] = -5
        assert multi.image.array[1, 0, 0] == -5
        assert singles[1].image.array[0, 0] != -5
        box = geom.Box2I(geom.Point2I(110, 210), geom.Extent2I(5, 4))
        part = multi[:, box]
        assert part.getBBox() == box
        assert part.image.array.shape == (3, 4, 5)
        assert np.shares_memory(part.image.array, multi.image.array)
        pair = multi["g":"i"]
        assert pair.bands == ("g", "r")
        assert [single.getBBox() for single in multi] == [BBOX] * 3
        assert [psf.getSigma() for psf in multi.getPsfs().values()] == [2.0] * 3
        psf = multi.computePsfKernelImage(geom.Point2D(120, 220))
        assert psf.array.shape == (3, 21, 21)

    def test_from_arrays(self) -> None:
        image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        mask = np.zeros((2, 3, 4), dtype=np.int32)
        box = geom.Box2I(geom.Point2I(5, 6), geom.Extent2I(4, 3))
        multi = afwImage.MultibandMaskedImage.fromArrays(["a", "b"], image, mask, image.copy(), box)
        assert multi["b"].image[5, 6] == 12
        assert multi["a", 6, 7][0] == 5
        picture = afwImage.MultibandImage(["a", "b"], image, box)
        picture["a"].array[:] = 0
        assert image[0].sum() == 0
        with pytest.raises(ValueError):
            afwImage.MultibandImage(["a"], image)


class TestPhotoCalib:
    """Counts, nJy and magnitudes."""

    def test_golden(self, golden: dict[str, Any]) -> None:
        expected = golden["exposure"]["photoCalib"]
        calib = afwImage.PhotoCalib(57.5, 0.25)
        assert calib.getCalibrationMean() == expected["mean"]
        assert calib.getCalibrationErr() == expected["err"]
        zero = calib.getInstFluxAtZeroMagnitude()
        assert zero == pytest.approx(expected["instFluxAtZeroMagnitude"], rel=1e-14)
        assert calib.instFluxToMagnitude(100) == pytest.approx(
            expected["instFluxToMagnitude(100)"], rel=1e-14
        )
        assert calib.instFluxToNanojansky(100) == expected["instFluxToNanojansky(100)"]
        measured = calib.instFluxToNanojansky(100, 5)
        assert [measured.value, measured.error] == expected["instFluxToNanojansky(100,5)"]
        assert str(calib) == expected["str"]

    def test_round_trip(self) -> None:
        calib = afwImage.makePhotoCalibFromCalibZeroPoint(1e12, 1e9)
        assert calib.getInstFluxAtZeroMagnitude() == pytest.approx(1e12)
        assert calib.instFluxToMagnitude(1e12) == pytest.approx(0, abs=1e-12)
        assert calib.magnitudeToInstFlux(2.5) == pytest.approx(1e11)
        assert calib.nanojanskyToInstFlux(calib.instFluxToNanojansky(12.5)) == pytest.approx(12.5)
        assert calib.getCalibrationErr() == pytest.approx(calib.getCalibrationMean() * 1e-3)
        measured = calib.instFluxToMagnitude(100.0, 1.0)
        assert measured.error == pytest.approx(2.5 / math.log(10) * 0.01)

    def test_images(self) -> None:
        masked = afwImage.MaskedImageF(4, 3)
        masked.set(2, 1, 3)
        calib = afwImage.PhotoCalib(10.0)
        assert calib.calibrateImage(masked)[0, 0] == (20, 1, 300)
        assert calib.uncalibrateImage(calib.calibrateImage(masked))[0, 0] == (2, 1, 3)
        assert masked[0, 0] == (2, 1, 3)

    def test_comparison_and_errors(self) -> None:
        assert afwImage.PhotoCalib(2.0) == afwImage.PhotoCalib(2.0)
        assert afwImage.PhotoCalib(2.0) != afwImage.PhotoCalib(2.0, 0.1)
        with pytest.raises(InvalidParameterError):
            afwImage.PhotoCalib(-1.0)

    def test_field(self) -> None:
        from lsst.afw.math import ChebyshevBoundedField

        box = geom.Box2I(geom.Point2I(0, 0), geom.Extent2I(11, 11))
        field = ChebyshevBoundedField(box, np.array([[10.0, 2.0]]))
        calib = afwImage.PhotoCalib(field, 0.5)
        assert calib.getCalibrationMean() == pytest.approx(10)
        assert calib.instFluxToNanojansky(1.0, geom.Point2D(5, 3)) == pytest.approx(10)
        # The domain ends half a pixel beyond the centre of its last pixel.
        assert calib.instFluxToNanojansky(1.0, geom.Point2D(10, 3)) == pytest.approx(10 + 2 * 10 / 11)
        masked = afwImage.MaskedImageF(11, 11)
        masked.set(1, 0, 1)
        scaled = calib.calibrateImage(masked)
        assert scaled[5, 5] == pytest.approx((10, 0, 100))


def test_filter_label() -> None:
    label = afwImage.FilterLabel.fromBandPhysical("r", "r_03")
    assert repr(label) == 'FilterLabel(band="r", physical="r_03")'
    assert label == afwImage.FilterLabel(band="r", physical="r_03")
    assert hash(label) == hash(afwImage.FilterLabel(band="r", physical="r_03"))
    band = afwImage.FilterLabel.fromBand("r")
    assert band != label and band.hasBandLabel() and not band.hasPhysicalLabel()
    with pytest.raises(RuntimeError):
        _ = band.physicalLabel
    with pytest.raises(ValueError):
        afwImage.FilterLabel()


# -------------------------------------------------------------------- files


def check_pixels(exposure: afwImage.ExposureF, golden: dict[str, Any]) -> None:
    """Compare an exposure's pixels to their description."""
    y, x = np.mgrid[200:248, 100:164]
    np.testing.assert_array_equal(exposure.image.array, make_exposure().image.array)
    np.testing.assert_array_equal(exposure.variance.array, 4 + (x + y) % 7)
    assert exposure.image.array.sum(dtype=float) == pytest.approx(golden["image_sum"], rel=1e-12)
    assert exposure.variance.array.sum(dtype=float) == golden["variance_sum"]
    for key, value in golden["image_samples"].items():
        assert exposure.image[geom.Point2I(*map(int, key.split(",")))] == value
    # Planes are where this process has them.
    for name, bit in golden["mask_plane_dict"].items():
        found = exposure.mask.array & exposure.mask.getPlaneBitMask(name) != 0
        np.testing.assert_array_equal(found, (3 * x + 5 * y) % (17 + bit) == 0, err_msg=name)


def test_golden_exposure(shared_data: Path, golden: dict[str, Any]) -> None:
    expected = golden["exposure"]
    exposure = afwImage.ExposureF.readFits(str(shared_data / "afw" / "exposure.fits"))
    assert exposure.getBBox() == BBOX
    check_pixels(exposure, expected)
    calib, label = exposure.photoCalib, exposure.getFilter()
    assert (calib.getCalibrationMean(), calib.getCalibrationErr()) == (57.5, 0.25)
    assert str(calib) == expected["photoCalib"]["str"]
    assert (label.bandLabel, label.physicalLabel) == ("r", "r_03")
    assert repr(label) == expected["filterLabel"]["repr"]
    assert exposure.metadata.toDict() == expected["metadata_dict"]
    assert list(exposure.metadata.toDict()) == list(expected["metadata_dict"])
    assert exposure.visitInfo is not None
    assert exposure.info.id is None
    for name, has in expected["components_has"].items():
        assert getattr(exposure.info, f"has{name}")() is has, name
    for key, (ra, dec) in expected["wcs"]["pixelToSky_deg"].items():
        sky = exposure.wcs.pixelToSky(geom.Point2D(*map(float, key.split(","))))
        assert sky.separation(geom.SpherePoint(ra, dec, geom.degrees)).asArcseconds() < 1e-7
    assert exposure.psf.getSigma() == expected["psf"]["sigma"]


def test_golden_exposure_full(shared_data: Path, golden: dict[str, Any]) -> None:
    expected = golden["exposure_full"]
    exposure = afwImage.ExposureF.readFits(str(shared_data / "afw" / "exposure_full.fits"))
    check_pixels(exposure, golden["exposure"])
    assert exposure.info.id == expected["id"]
    visit, wanted = exposure.visitInfo, expected["visitInfo"]
    for name in (
        "exposureTime",
        "darkTime",
        "ut1",
        "boresightAirmass",
        "instrumentLabel",
        "id",
        "focusZ",
        "observationType",
        "scienceProgram",
        "observationReason",
        "object",
        "hasSimulatedContent",
    ):
        assert getattr(visit, name) == wanted[name], name
    assert visit.rotType.name == wanted["rotType"]
    assert visit.era.asDegrees() == pytest.approx(wanted["era_deg"])
    assert visit.boresightRotAngle.asDegrees() == pytest.approx(wanted["boresightRotAngle_deg"])
    assert visit.boresightParAngle.asDegrees() == pytest.approx(wanted["boresightParAngle_deg"])
    for name, key in (("boresightRaDec", "boresightRaDec_deg"), ("boresightAzAlt", "boresightAzAlt_deg")):
        angles = [angle.asDegrees() for angle in getattr(visit, name)]
        assert angles == pytest.approx(wanted[key])
    assert visit.date.toString(visit.date.TAI) == wanted["date_tai_iso"]
    place = visit.observatory
    found = [place.getLongitude().asDegrees(), place.getLatitude().asDegrees(), place.getElevation()]
    assert found == pytest.approx(wanted["observatory"])
    weather = visit.weather
    found = [weather.getAirTemperature(), weather.getAirPressure(), weather.getHumidity()]
    assert found == wanted["weather"]
    assert repr(visit) == wanted["repr"]

    corrections = exposure.info.getApCorrMap()
    assert set(corrections.keys()) == set(expected["apCorrMap"])
    for name, wanted in expected["apCorrMap"].items():
        field = corrections[name]
        assert field.getCoefficients().tolist() == wanted["coefficients"]
        x0, y0, width, height = wanted["bbox"]
        assert field.getBBox() == geom.Box2I(geom.Point2I(x0, y0), geom.Extent2I(width, height))
        assert field.evaluate(geom.Point2D(120, 220)) == pytest.approx(wanted["at_120_220"], rel=1e-14)
    curve = exposure.info.getTransmissionCurve()
    wavelengths = np.array(expected["transmissionCurve"]["wavelengths"])
    values = curve.sampleAt(geom.Point2D(0, 0), wavelengths)
    assert values.tolist() == expected["transmissionCurve"]["values"]
    stats = exposure.info.getSummaryStats()
    for name, value in expected["summaryStats"].items():
        assert getattr(stats, name) == value
    polygon = exposure.info.getValidPolygon()
    vertices = [list(point) for point in polygon.getVertices()]
    assert vertices[: len(expected["validPolygon"]) - 1] == expected["validPolygon"][:-1]


@pytest.mark.parametrize(
    "name",
    [
        "afw/hsc_calexp_small.fits",
        "afw/exposure_version_2.fits",
        "scarlet/exposure_g.fits",
        "scarlet/exposure_r.fits",
        "scarlet/exposure_z.fits",
    ],
)
def test_real_files_open(shared_data: Path, name: str) -> None:
    exposure = afwImage.ExposureF.readFits(str(shared_data / name))
    with astropy.io.fits.open(shared_data / name) as hdus:
        np.testing.assert_array_equal(exposure.image.array, hdus[1].data)
        np.testing.assert_array_equal(exposure.variance.array, hdus[3].data)
        for key, bit in hdus[2].header["MP_*"].items():
            plane = exposure.mask.getPlaneBitMask(key.removeprefix("MP_"))
            np.testing.assert_array_equal(exposure.mask.array & plane != 0, hdus[2].data >> bit & 1 != 0)
        assert exposure.getX0() == hdus[1].header["CRVAL1A"]
    assert exposure.wcs is not None
    assert exposure.photoCalib is not None
    if name.startswith("scarlet"):
        assert exposure.psf is not None
        assert exposure.getXY0() == geom.Point2I(12000, 8000)
    if "version_2" in name:
        assert exposure.getFilter() == afwImage.FilterLabel.fromBandPhysical("N656", "ha")
        assert exposure.info.id == 12345


@pytest.mark.parametrize("origin", [afwImage.PARENT, afwImage.LOCAL])
def test_parts(shared_data: Path, origin: afwImage.ImageOrigin) -> None:
    path = str(shared_data / "afw" / "exposure.fits")
    corner = geom.Point2I(110, 210) if origin == afwImage.PARENT else geom.Point2I(10, 10)
    box = geom.Box2I(corner, geom.Extent2I(4, 3))
    found = geom.Box2I(geom.Point2I(110, 210), geom.Extent2I(4, 3))
    full = make_exposure()
    exposure = afwImage.ExposureF(path, bbox=box, origin=origin)
    assert exposure.getBBox() == found
    np.testing.assert_array_equal(exposure.image.array, full.image[found].array)
    reader = afwImage.ExposureFitsReader(path)
    assert reader.readBBox() == BBOX
    assert reader.readBBox(afwImage.LOCAL).getMin() == geom.Point2I(0, 0)
    assert reader.readXY0() == BBOX.getMin()
    assert reader.readImage(box, origin).getBBox() == found
    assert reader.readMask(box, origin).getBBox() == found
    assert reader.readVariance(box, origin).getBBox() == found
    assert reader.readImageDType() == np.float32
    assert reader.readMaskDType() == np.int32
    assert reader.readPhotoCalib() == full.photoCalib
    assert reader.readFilter() == full.getFilter()
    assert reader.readPsf().getSigma() == 2.0
    assert reader.readWcs().getPixelScale().asArcseconds() == pytest.approx(0.2)
    assert reader.readSerializationVersion() == 2
    assert reader.readMetadata()["GOLDINT"] == 42
    assert reader.readExposureInfo().getFilter() == full.getFilter()
    assert reader.readMaskedImage(box, origin).getBBox() == found
    assert afwImage.ImageF(path, bbox=box, origin=origin).getBBox() == found
    assert afwImage.ImageD.readFits(path).array.dtype == np.float64
    with pytest.raises(LengthError):
        reader.readImage(geom.Box2I(geom.Point2I(-500, 0), geom.Extent2I(3, 3)), origin)
    assert readMetadata(path)["GOLDSTR"] == "hello world"


def column_keys(header: astropy.io.fits.Header) -> dict[str, Any]:
    """The keys that describe the columns of a table."""
    names = ("TTYPE", "TFORM", "TUNIT", "TDOC", "TCCLS", "TFLAG", "TFDOC")
    return {card.keyword: card.value for card in header.cards if card.keyword.startswith(names)}


def test_layout_is_that_of_the_real_file(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "written.fits"
    make_exposure().writeFits(str(path))
    with (
        astropy.io.fits.open(shared_data / "afw" / "exposure.fits") as real,
        astropy.io.fits.open(path) as mine,
    ):
        assert [hdu.name for hdu in mine] == [hdu.name for hdu in real]
        assert [type(hdu) for hdu in mine] == [type(hdu) for hdu in real]
        for a, b in zip(real, mine, strict=True):
            # Other tests may have added mask planes.
            wanted = [key for key in a.header if not key.startswith("MP_")]
            found = [key for key in b.header if not key.startswith("MP_")]
            assert sorted(set(found)) == sorted(set(wanted)), a.name
            for key in wanted:
                # The length of the text of a WCS depends on its digits.
                text = a.name == "SkyWcs" and key in ("PCOUNT", "TFORM1")
                if key not in ("COMMENT", "CONTINUE") and not text:
                    value = a.header[key]
                    close = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
                    assert b.header[key] == close, (a.name, key)
            if a.name != "SkyWcs":
                assert column_keys(a.header) == column_keys(b.header)
        for key in real[0].header["*_ID"]:
            assert mine[0].header.comments[key] == real[0].header.comments[key]
        assert mine["ARCHIVE_INDEX"].data.tolist() == real["ARCHIVE_INDEX"].data.tolist()
        for name in ("FilterLabel", "PhotoCalib", "ChebyshevBoundedField", "GaussianPsf"):
            for a, b in zip(real[name].data, mine[name].data, strict=True):
                for x, y in zip(a, b, strict=True):
                    np.testing.assert_array_equal(x, y, err_msg=name)
        for key, bit in real["MASK"].header["MP_*"].items():
            if bit < 11:
                assert mine["MASK"].header[key] == bit


@pytest.mark.parametrize("name", ["afw/exposure_full.fits", "scarlet/exposure_r.fits"])
def test_written_again(shared_data: Path, tmp_path: Path, name: str) -> None:
    first = afwImage.ExposureF(str(shared_data / name))
    path = tmp_path / "again.fits"
    first.writeFits(str(path))
    second = afwImage.ExposureF(str(path))
    assert second.getBBox() == first.getBBox()
    for plane in ("image", "mask", "variance"):
        np.testing.assert_array_equal(getattr(second, plane).array, getattr(first, plane).array)
    assert second.photoCalib == first.photoCalib
    assert second.getFilter() == first.getFilter()
    assert second.visitInfo == first.visitInfo
    assert second.wcs == first.wcs
    assert second.info.id == first.info.id
    assert second.metadata.toDict() == first.metadata.toDict()
    with astropy.io.fits.open(shared_data / name) as real, astropy.io.fits.open(path) as mine:
        for hdu in mine[5:]:
            # The same class has the same columns, wherever it is.
            wanted = [column_keys(a.header) for a in real if a.name == hdu.name]
            # Columns of bytes are shared between classes, with the first one's texts.
            if "TTYPE1" in hdu.header and hdu.header["TTYPE1"] not in ("bytes", "wcs"):
                assert column_keys(hdu.header) in wanted, hdu.name


@pytest.mark.parametrize("algorithm", ["GZIP_1", "GZIP_2"])
@pytest.mark.parametrize("tile_height", [1, 3])
def test_lossless_compression(tmp_path: Path, algorithm: str, tile_height: int) -> None:
    path = str(tmp_path / "small.fits")
    exposure = make_exposure()
    exposure.image[101, 201] = np.nan
    exposure.mask.array[:] = np.arange(48)[:, None] % 2**11
    options = CompressionOptions.from_mapping({"algorithm": algorithm, "tile_height": tile_height})
    exposure.writeFits(path, options, options, options)
    found = afwImage.ExposureF(path)
    for plane in ("image", "mask", "variance"):
        np.testing.assert_array_equal(getattr(found, plane).array, getattr(exposure, plane).array)
    box = geom.Box2I(geom.Point2I(110, 217), geom.Extent2I(6, 5))
    part = afwImage.ExposureF(path, bbox=box)
    np.testing.assert_array_equal(part.image.array, exposure.image[box].array)
    np.testing.assert_array_equal(part.mask.array, exposure.mask[box].array)
    assert found.metadata["GOLDINT"] == 42
    # An independent reader finds the same pixels.
    with astropy.io.fits.open(path) as hdus:
        np.testing.assert_array_equal(hdus["IMAGE"].data, exposure.image.array)
        np.testing.assert_array_equal(hdus["MASK"].data, exposure.mask.array)


def test_rice_compression(tmp_path: Path, rng: np.random.Generator) -> None:
    path = str(tmp_path / "rice.fits")
    image = afwImage.ImageF(60, 40)
    image.array[:] = rng.normal(size=(40, 60))
    pixels = astropy.io.fits.CompImageHDU(image.array, compression_type="RICE_1", quantize_level=32)
    pixels.writeto(path)
    found = afwImage.ImageF(path)
    assert abs(found.array - image.array).max() < 1.0 / 32
    box = geom.Box2I(geom.Point2I(3, 5), geom.Extent2I(6, 7))
    np.testing.assert_array_equal(afwImage.ImageF(path, bbox=box).array, found[box].array)
    mask = afwImage.Mask(60, 40)
    mask.array[:] = rng.integers(0, 2**11, size=(40, 60))
    mask.writeFits(path, CompressionOptions.from_mapping({"algorithm": "RICE_1"}))
    np.testing.assert_array_equal(afwImage.Mask.readFits(path).array, mask.array)


@pytest.mark.parametrize("kind", ["F", "D", "I", "U"])
@pytest.mark.parametrize("compressed", [False, True])
def test_single_planes(tmp_path: Path, kind: str, compressed: bool) -> None:
    path = str(tmp_path / "plane.fits")
    image = afwImage.Image[kind](geom.Box2I(geom.Point2I(5, -6), geom.Extent2I(7, 4)))
    image.array[:] = 1000 * np.arange(28).reshape(4, 7)
    if compressed:
        image.writeFits(path, CompressionOptions())
    else:
        image.writeFits(path)
    found = type(image).readFits(path)
    assert found.getBBox() == image.getBBox()
    np.testing.assert_array_equal(found.array, image.array)
    assert afwImage.ImageFitsReader(path).readDType() == image.array.dtype


def test_append(tmp_path: Path, image: afwImage.ImageF) -> None:
    path = str(tmp_path / "two.fits")
    image.writeFits(path)
    image += 1
    image.writeFits(path, mode="a")
    first, second = afwImage.ImageF.readFits(path), afwImage.ImageF.readFits(path, 1)
    np.testing.assert_array_equal(first.array + 1, second.array)
    assert second.getBBox() == image.getBBox()


def test_unknown_component(shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "foreign.fits"
    shutil.copy(shared_data / "scarlet" / "exposure_g.fits", path)
    path.chmod(0o644)
    with astropy.io.fits.open(path, mode="update") as hdus:
        index = hdus["ARCHIVE_INDEX"].data
        index["name"][index["name"] == "KernelPsf"] = "ForeignPsf"
        # A class whose module cannot be imported: a package that is not set up.
        index["module"][index["name"] == "ForeignPsf"] = "lsst.foreign"
    with caplog.at_level(logging.WARNING):
        exposure = afwImage.ExposureF(str(path))
    assert exposure.psf is None
    assert exposure.wcs is not None
    assert exposure.photoCalib is not None


def test_damaged_files(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(FitsError):
        afwImage.ExposureF.readFits(str(tmp_path / "missing.fits"))
    text = tmp_path / "text.fits"
    text.write_text("this is no FITS file")
    with pytest.raises(FitsError):
        afwImage.ExposureF.readFits(str(text))
    short = tmp_path / "short.fits"
    short.write_bytes((shared_data / "afw" / "exposure.fits").read_bytes()[: 2880 * 6])
    with warnings.catch_warnings(), pytest.raises(FitsError):
        warnings.simplefilter("ignore")
        afwImage.ExposureF.readFits(str(short))


def test_wrong_type(tmp_path: Path, image: afwImage.ImageF) -> None:
    path = str(tmp_path / "float.fits")
    image.writeFits(path)
    # The C++ class of this error has none of its own in Python.
    with pytest.raises(pexExceptions.Exception):
        afwImage.ImageI.readFits(path)


def test_units_move_to_the_planes(tmp_path: Path) -> None:
    path = tmp_path / "units.fits"
    exposure = make_exposure()
    exposure.metadata.set("BUNIT", "nJy")
    exposure.writeFits(str(path))
    with astropy.io.fits.open(path) as hdus:
        assert "BUNIT" not in hdus[0].header
        assert hdus["IMAGE"].header["BUNIT"] == "nJy"
        assert hdus["VARIANCE"].header["BUNIT"] == "nJy**2"
