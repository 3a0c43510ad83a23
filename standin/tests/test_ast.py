# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text form of coordinate systems."""

from __future__ import annotations

import numpy as np
import pytest

import lsst.pex.exceptions
from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF
from lsst.daf.base import PropertyList
from lsst.geom import Point2D, SpherePoint, arcseconds, degrees

GOLDEN = (Point2D(131.5, 223.25), SpherePoint(150.25, -2.5, degrees))


def skeleton(text: str) -> list[str]:
    """Return the lines of a dump without numbers, and the numbers."""
    return [
        line.split("=")[0].rstrip() if "= " in line and '"' not in line else line
        for line in text.splitlines()
    ]


def numbers(text: str) -> list[float]:
    """Return the values of a dump."""
    lines = [line.split("= ")[1] for line in text.splitlines() if "= " in line and '"' not in line]
    return [float(v) for v in lines]


@pytest.mark.parametrize("name", ["afw/exposure.fits", "scarlet/exposure_r.fits"])
def test_text_is_upstreams(shared_data, name):
    real = ExposureF.readFits(str(shared_data / name)).getWcs()
    cd = real.getCdMatrix()
    ours = makeSkyWcs(real.getPixelOrigin(), real.getSkyOrigin(), cd)
    assert skeleton(ours.writeString()) == skeleton(real.writeString())
    np.testing.assert_allclose(numbers(ours.writeString()), numbers(real.writeString()), rtol=0, atol=1e-14)


@pytest.mark.parametrize("projection", ["TAN", "STG", "SIN", "ARC", "ZEA"])
def test_projections_survive(projection):
    from astropy.io.fits import Header
    from astropy.wcs import WCS

    wcs = makeSkyWcs(*GOLDEN, makeCdMatrix(20 * arcseconds, 30 * degrees), projection)
    header = Header(list(wcs.getFitsMetadata().toDict().items()))
    x, y = np.random.default_rng(1).uniform(-1000, 1000, (2, 40))
    sky = wcs.pixelToSkyArray(x, y)
    np.testing.assert_allclose(np.rad2deg(sky), WCS(header).all_pix2world(x, y, 0), rtol=0, atol=1e-10)
    again = SkyWcs.readString(wcs.writeString())
    np.testing.assert_allclose(again.pixelToSkyArray(x, y), sky, rtol=0, atol=1e-14)
    np.testing.assert_allclose(again.skyToPixelArray(*sky), [x, y], atol=1e-7)


def test_old_equatorial_system_becomes_icrs():
    from astropy.coordinates import FK5, ICRS, SkyCoord

    metadata = makeSkyWcs(*GOLDEN, makeCdMatrix(0.2 * arcseconds)).getFitsMetadata()
    metadata.set("RADESYS", "FK5")
    wcs = makeSkyWcs(metadata)
    expected = SkyCoord(150.25, -2.5, unit="deg", frame=FK5(equinox="J2000")).transform_to(ICRS())
    sky = wcs.pixelToSky(GOLDEN[0])
    assert sky.getRa().asDegrees() == pytest.approx(expected.ra.deg, abs=1e-10)
    assert sky.getDec().asDegrees() == pytest.approx(expected.dec.deg, abs=1e-10)
    assert wcs.isFits


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: "",
        lambda t: t[: len(t) // 2],
        lambda t: t.replace("1 SkyWcs", "2 SkyWcs"),
        lambda t: t.replace("SkyWcs 0", "Transform 0"),
        lambda t: t.replace("WcsMap", "OddMap"),
        lambda t: t.replace('"TAN"', '"CAR"'),
        lambda t: t.replace('"PIXELS"', '"OTHER"'),
    ],
)
def test_damaged_text_is_refused(damage):
    text = makeSkyWcs(*GOLDEN, makeCdMatrix(0.2 * arcseconds)).writeString()
    with pytest.raises(lsst.pex.exceptions.TypeError):
        SkyWcs.readString(damage(text))


def test_unknown_projection_is_refused():
    metadata = PropertyList()
    for key, value in (("CTYPE1", "RA---AIT"), ("CTYPE2", "DEC--AIT"), ("CRPIX1", 1.0), ("CRPIX2", 1.0)):
        metadata.set(key, value)
    with pytest.raises(lsst.pex.exceptions.TypeError, match="AIT"):
        makeSkyWcs(metadata)
