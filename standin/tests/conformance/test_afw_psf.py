# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Point spread functions as lsst.afw.detection defines them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from lsst.afw.detection import (
    GaussianPsf,
    Psf,
)
from lsst.afw.image import ExposureF, ImageD
from lsst.afw.math import FixedKernel
from lsst.geom import Box2I, Extent2I, Point2D, Point2I
from lsst.meas.algorithms import KernelPsf
from lsst.pex.exceptions import InvalidParameterError

# Neither square nor at the origin, so that swapped axes and a lost xy0 show.
BBOX = Box2I(Point2I(-40, 300), Extent2I(64, 48))


def pixel_grid(bbox: Box2I) -> tuple[np.ndarray, np.ndarray]:
    """Return the parent x and y of each pixel."""
    y, x = np.mgrid[bbox.getMinY() : bbox.getMaxY() + 1, bbox.getMinX() : bbox.getMaxX() + 1]
    return x, y


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, Any]:
    """What the files of the real afw hold."""
    return json.loads((shared_data / "afw" / "golden.json").read_text())


def archive_layout(path: Path | str) -> list[dict[str, Any]]:
    """Return the names, columns and data of the tables of an archive."""
    result = []
    with fits.open(path) as hdus:
        for hdu in hdus:
            if hdu.header.get("EXTTYPE") != "ARCHIVE_DATA":
                continue
            keys = ("TTYPE", "TFORM", "TUNIT", "TDOC", "TCCLS", "TFLAG", "EXTVER", "AR_NAME", "EXTNAME")
            cards = {key: value for key, value in hdu.header.items() if key.startswith(keys)}
            columns = {name: [np.asarray(v).tolist() for v in hdu.data[name]] for name in hdu.data.names}
            result.append(cards | {"columns": columns})
    return result


def check_golden_psf(psf: GaussianPsf, wanted: dict[str, Any]) -> None:
    """Compare a PSF with what golden.json says of it."""
    position = psf.getAveragePosition()
    assert [psf.getDimensions().getX(), psf.getDimensions().getY()] == wanted["dims"]
    assert psf.getSigma() == wanted["sigma"]
    kernel = psf.computeKernelImage(position)
    assert kernel.array.dtype == np.float64
    assert kernel.array.sum() == pytest.approx(wanted["kernel_sum"], abs=1e-14)
    box = kernel.getBBox()
    assert [box.getMinX(), box.getMinY(), box.getWidth(), box.getHeight()] == wanted["kernel_bbox"]
    assert kernel[0, 0] == pytest.approx(wanted["kernel_center"], rel=1e-12)
    box = psf.computeImage(Point2D(120.3, 220.7)).getBBox()
    assert [box.getMinX(), box.getMinY(), box.getWidth(), box.getHeight()] == wanted[
        "psf_image_bbox_at_120.3_220.7"
    ]
    shape = psf.computeShape(position)
    assert shape.getDeterminantRadius() == pytest.approx(wanted["determinant_radius"])
    assert psf.computePeak(position) == pytest.approx(wanted["peak"], rel=1e-12)
    assert psf.computeApertureFlux(3, position) == pytest.approx(wanted["aperture_flux_r3"], rel=1e-12)


class TestGolden:
    """The PSF in a file of the real afw."""

    def test_psf(self, golden: dict[str, Any], shared_data: Path) -> None:
        wanted = golden["exposure"]["psf"]
        psf = ExposureF.readFits(str(shared_data / "afw" / golden["exposure"]["file"])).getPsf()
        assert type(psf).__name__ == wanted["class"]
        check_golden_psf(psf, wanted)

    def test_made_psf(self, golden: dict[str, Any]) -> None:
        wanted = golden["exposure"]["psf"]
        check_golden_psf(GaussianPsf(*wanted["dims"], wanted["sigma"]), wanted)

    def test_layout_of_the_psf(self, golden: dict[str, Any], shared_data: Path, tmp_path: Path) -> None:
        original = str(shared_data / "afw" / golden["exposure"]["file"])
        path = str(tmp_path / "again.fits")
        exposure = ExposureF.readFits(original)
        exposure.setPsf(GaussianPsf(21, 21, 2.0))
        exposure.writeFits(path)
        (wanted,) = [hdu for hdu in archive_layout(original) if hdu["AR_NAME"] == "GaussianPsf"]
        (found,) = [hdu for hdu in archive_layout(path) if hdu["AR_NAME"] == "GaussianPsf"]
        assert found == wanted


def gaussian(bbox: Box2I, x0: float, y0: float, sigma: float) -> np.ndarray:
    """Return a Gaussian of sum 1 on the pixels of a box."""
    x, y = pixel_grid(bbox)
    return np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / sigma**2) / (2 * np.pi * sigma**2)


class TestGaussianPsf:
    def test_image_is_shifted(self) -> None:
        psf = GaussianPsf(25, 21, 2.0)
        for x, y in ((120.3, 220.7), (-3.5, 7.25), (1000.0, -2000.0), (0.499, 0.501)):
            image = psf.computeImage(Point2D(x, y))
            assert image.getDimensions() == Extent2I(25, 21)
            np.testing.assert_allclose(image.array, gaussian(image.getBBox(), x, y, 2.0), atol=1e-4)
            px, py = pixel_grid(image.getBBox())
            assert image.array.sum() == pytest.approx(1, abs=1e-4)
            # The first moment of Lanczos weights is off by about 0.01 pixels.
            assert (image.array * px).sum() / image.array.sum() == pytest.approx(x, abs=0.02)
            assert (image.array * py).sum() / image.array.sum() == pytest.approx(y, abs=0.02)

    def test_images_are_copies(self) -> None:
        psf = GaussianPsf(Extent2I(11, 13), 1.5)
        psf.computeKernelImage(Point2D(1, 2)).array[:, :] = 0
        assert psf.computePeak(Point2D(1, 2)) > 0
        psf.computeImage(Point2D(1, 2)).array[:, :] = 0
        assert psf.computeImage(Point2D(1, 2)).array.sum() == pytest.approx(1, abs=1e-3)

    def test_boxes(self) -> None:
        psf = GaussianPsf(11, 13, 1.5)
        assert psf.computeBBox(Point2D(50, 60)) == Box2I(Point2I(-5, -6), Extent2I(11, 13))
        assert psf.computeKernelBBox(Point2D(50, 60)) == psf.computeBBox(Point2D(50, 60))
        assert psf.computeImageBBox(Point2D(50.75, 60.25)) == Box2I(Point2I(46, 54), Extent2I(11, 13))

    def test_numbers(self) -> None:
        psf = GaussianPsf(41, 41, 3.0)
        position = psf.getAveragePosition()
        assert position == Point2D(0, 0)
        shape = psf.computeShape(position)
        assert (shape.getIxx(), shape.getIyy(), shape.getIxy()) == (9, 9, 0)
        assert psf.computeApertureFlux(3.0, position) == pytest.approx(1 - math.exp(-0.5))

    def test_changes(self) -> None:
        psf = GaussianPsf(11, 13, 1.5)
        assert psf.resized(21, 23).getDimensions() == Extent2I(21, 23)
        assert psf.resized(21, 23).getSigma() == 1.5
        clone = psf.clone()
        assert isinstance(clone, GaussianPsf)
        assert clone is not psf
        assert clone.getDimensions() == psf.getDimensions()
        with pytest.raises(InvalidParameterError):
            GaussianPsf(10, 11, 1.0)

    def test_position_is_needed(self) -> None:
        with pytest.raises(TypeError):
            GaussianPsf(11, 13, 1.5).computeKernelImage()
        with pytest.raises(TypeError):
            GaussianPsf(11, 13, 1.5).computeShape()

    def test_local_kernel(self) -> None:
        kernel = GaussianPsf(11, 13, 1.5).getLocalKernel(Point2D(3, 4))
        assert kernel.getDimensions() == Extent2I(11, 13)


class TestKernelPsf:
    @pytest.fixture
    def psf(self) -> KernelPsf:
        image = ImageD(Extent2I(31, 27))
        x, y = np.meshgrid(np.arange(31) - 15, np.arange(27) - 13)
        # Ixx 6, Iyy 4, Ixy 1; scaled by 10, as a kernel need not have sum 1.
        determinant = 6 * 4 - 1
        image.array[:, :] = 10 * np.exp(-0.5 * (4 * x**2 - 2 * x * y + 6 * y**2) / determinant)
        return KernelPsf(FixedKernel(image), Point2D(40.0, 50.0))

    def test_kernel_image(self, psf: KernelPsf) -> None:
        image = psf.computeKernelImage(Point2D(3, 4))
        assert image.getBBox() == Box2I(Point2I(-15, -13), Extent2I(31, 27))
        assert psf.computeBBox(Point2D(3, 4)) == image.getBBox()
        assert image.array.sum() == pytest.approx(1)
        assert image[0, 0] == image.array.max() == psf.computePeak(Point2D(3, 4))
        assert image[0, 0] == pytest.approx(1 / (2 * np.pi * math.sqrt(23)), rel=1e-4)
        assert psf.getAveragePosition() == Point2D(40, 50)

    def test_measured(self, psf: KernelPsf) -> None:
        shape = psf.computeShape(psf.getAveragePosition())
        assert shape.getIxx() == pytest.approx(6, rel=1e-3)
        assert shape.getIyy() == pytest.approx(4, rel=1e-3)
        assert shape.getIxy() == pytest.approx(1, rel=2e-3)
        position = psf.getAveragePosition()
        assert psf.computeApertureFlux(12, position) == pytest.approx(1, abs=0.02)

    def test_aperture_flux_of_a_gaussian(self) -> None:
        exact = GaussianPsf(41, 41, 2.0)
        position = Point2D(0, 0)
        psf = KernelPsf(FixedKernel(exact.computeKernelImage(position)))
        for radius in (2.0, 3.0, 5.5):
            assert psf.computeApertureFlux(radius, position) == pytest.approx(
                exact.computeApertureFlux(radius, position), abs=1e-3
            )
        image = psf.computeImage(Point2D(7.3, 9.6))
        np.testing.assert_allclose(image.array, exact.computeImage(Point2D(7.3, 9.6)).array, atol=1e-12)

    def test_resized(self, psf: KernelPsf) -> None:
        small = psf.resized(11, 9)
        image = small.computeKernelImage(Point2D(0, 0))
        assert image.getBBox() == Box2I(Point2I(-5, -4), Extent2I(11, 9))
        assert image.array.sum() == pytest.approx(1)
        large = psf.resized(41, 41).computeKernelImage(Point2D(0, 0))
        np.testing.assert_allclose(large.array[7:-7, 5:-5], psf.computeKernelImage(Point2D(0, 0)).array)

    def test_in_an_exposure(self, psf: KernelPsf, tmp_path: Path) -> None:
        exposure = ExposureF(BBOX)
        exposure.setPsf(psf)
        path = str(tmp_path / "exposure.fits")
        exposure.writeFits(path)
        back = ExposureF.readFits(path).getPsf()
        assert isinstance(back, KernelPsf)
        assert back.getAveragePosition() == Point2D(40, 50)
        np.testing.assert_array_equal(
            back.computeKernelImage(Point2D(1, 2)).array, psf.computeKernelImage(Point2D(1, 2)).array
        )


def test_gaussian_psf_in_an_exposure(tmp_path: Path) -> None:
    exposure = ExposureF(BBOX)
    exposure.setPsf(GaussianPsf(15, 17, 2.25))
    path = str(tmp_path / "exposure.fits")
    exposure.writeFits(path)
    back = ExposureF.readFits(path).getPsf()
    assert isinstance(back, GaussianPsf)
    assert back.getDimensions() == Extent2I(15, 17)
    assert back.getSigma() == 2.25


class WedgePsf(Psf):
    """A PSF in Python that is brighter on the right of the image."""

    def __init__(self) -> None:
        Psf.__init__(self, isFixed=False)

    def _doComputeKernelImage(self, position: Point2D, color: Any) -> ImageD:
        image = ImageD(self._doComputeBBox(position, color))
        image.array[1, 1] = position.getX()
        return image

    def _doComputeBBox(self, position: Point2D, color: Any) -> Box2I:
        return Box2I(Point2I(-1, -1), Extent2I(3, 3))

    def getAveragePosition(self) -> Point2D:
        return Point2D(5.0, 6.0)


def test_psf_in_python() -> None:
    psf = WedgePsf()
    assert psf.computePeak(Point2D(8, 3)) == 8
    assert psf.computePeak(Point2D(9, 3)) == 9
    # NaN stands for the average position.
    assert psf.computePeak(Point2D(math.nan, math.nan)) == 5
    assert psf.computeImage(Point2D(8, 3)).getBBox() == Box2I(Point2I(7, 2), Extent2I(3, 3))
