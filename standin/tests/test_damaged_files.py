# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Damaged catalogues and exposures: one kind of error, at once, and no Footprint is lost without a word."""

import re
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from lsst.afw.detection import Footprint, GaussianPsf
from lsst.afw.fits import CompressionOptions, FitsError
from lsst.afw.geom import SpanSet
from lsst.afw.image import ExposureF, Mask, PhotoCalib
from lsst.afw.table import SOURCE_IO_NO_FOOTPRINTS, SOURCE_IO_NO_HEAVY_FOOTPRINTS, SourceCatalog, SourceTable
from lsst.geom import Box2I, Extent2I, Point2I
from lsst.pex.exceptions import Exception as PexException

HOSTILE = Path(__file__).parents[2] / ".." / "shared" / "data" / "hostile"


def hostile(name: str) -> str:
    if not (HOSTILE / name).exists():
        pytest.skip(f"there is no {HOSTILE / name}")
    return str(HOSTILE / name)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Path:
    catalog = SourceCatalog(SourceTable.makeMinimalSchema())
    for number in range(4):
        record = catalog.addNew()
        footprint = Footprint(SpanSet(Box2I(Point2I(9 * number, 3), Extent2I(5, 4))))
        footprint.addPeak(9 * number + 2, 4, 7.0)
        record.setFootprint(footprint)
    path = tmp_path_factory.mktemp("good") / "catalogue.fits"
    catalog.writeFits(str(path))
    return path


@pytest.fixture(scope="module")
def exposure(tmp_path_factory) -> Path:
    made = ExposureF(Box2I(Point2I(3, 5), Extent2I(24, 20)))
    made.image.array[:] = np.random.default_rng(1).normal(size=(20, 24))
    made.setPsf(GaussianPsf(11, 11, 1.5))
    made.setPhotoCalib(PhotoCalib(2.0))
    path = tmp_path_factory.mktemp("good") / "exposure.fits"
    made.writeFits(str(path))
    return path


@pytest.mark.parametrize(
    "damage", [(b"", b""), (b"AR_HDU  ", b"AR\xc8HDU  "), (b"= 'footprint'", b"= 'footprind'")]
)
def test_catalogue_without_its_archive(catalogue, tmp_path, damage):
    data = catalogue.read_bytes()
    end = data.index(b"ARCHIVE_INDEX")
    path = tmp_path / "cut.fits"
    path.write_bytes(data[: data.rindex(b"XTENSION", 0, end)].replace(*damage))
    with pytest.raises(FitsError, match=r"cut\.fits.* has no archive"):
        SourceCatalog.readFits(str(path))
    assert len(SourceCatalog.readFits(str(path), flags=SOURCE_IO_NO_FOOTPRINTS)) == 4


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"= 'footprint'", b"= 'footprind'", "4 of its Footprints belong to no record"),
        (b"\1Footprint", b"\1Fooxprint", "is no Footprint that is known"),
        (b"'ARCHIVE_DATA'", b"'ARCHIVE\nDATA'", "Wrong value for archive data EXTTYPE: '?ARCHIVE DATA"),
        (b"XTENSION= 'BINTABLE'", b"XTENSOIN= 'BINTABLE'", "what follows HDU 1 is no HDU"),
    ],
)
def test_no_footprint_is_lost_without_a_word(catalogue, tmp_path, old, new, words):
    data = catalogue.read_bytes()
    # The first HDU is the table itself.
    start = data.index(old) if b"footprint" in old else data.index(old, data.index(b"AR_HDU"))
    path = tmp_path / "damaged.fits"
    path.write_bytes(data[:start] + data[start:].replace(old, new))
    with pytest.raises(FitsError, match=words) as error:
        SourceCatalog.readFits(str(path))
    assert "damaged.fits" in str(error.value)


def test_what_crashes_upstream_is_refused(catalogue, tmp_path):
    found = SourceCatalog.readFits(str(catalogue))
    found.addNew()
    path = str(tmp_path / "without.fits")
    found.writeFits(path)
    assert SourceCatalog.readFits(path)[-1].getFootprint() is None
    with pytest.raises(FitsError, match="Record 4 has no Footprint"):
        SourceCatalog.readFits(path, flags=SOURCE_IO_NO_HEAVY_FOOTPRINTS)
    with pytest.raises(PexException):
        SourceCatalog.readFits(path, hdu=2)


@pytest.mark.parametrize("name", ["catalogue_without_archive", "hang_catalogue_NAXIS"])
def test_hostile_catalogues(name):
    start = time.process_time()
    with pytest.raises(FitsError):
        SourceCatalog.readFits(hostile(f"{name}.fits"))
    assert time.process_time() - start < 5.0


def test_hostile_exposures():
    start = time.process_time()
    with pytest.raises(FitsError):
        ExposureF.readFits(hostile("hang_exposure_readFits.fits"))
    assert time.process_time() - start < 5.0


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a value of a header, flip bits, or cut a file."""
    place, kind = int(rng.integers(len(data))), rng.integers(4)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + rng.bytes(8) + data[place + 8 :]
    cards = [start for start in range(0, len(data), 80) if data[start + 8 : start + 10] == b"= "]
    card = int(rng.choice(cards)) + 10
    value = [b"-1", b"9223372036854775807", b"1E400", b"'x'", b"0", b"99999"][int(rng.integers(6))]
    return data[:card] + value.rjust(20) + data[card + 20 :]


@pytest.mark.parametrize("kind", ["catalogue", "exposure"])
def test_damaged_files(kind, catalogue, exposure, tmp_path):
    good, read = {"catalogue": (catalogue, SourceCatalog), "exposure": (exposure, ExposureF)}[kind]
    data, rng, refused = good.read_bytes(), np.random.default_rng(18), 0
    path = tmp_path / "damaged.fits"
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(150):
            path.write_bytes(damage(data, rng))
            try:
                found = read.readFits(str(path))
            except PexException:
                refused += 1
                continue
            if kind == "catalogue" and len(found) and "footprint" not in found.schema.getNames():
                assert all(record.getFootprint() is not None for record in found)
    assert refused > 20
    assert time.process_time() - start < 15.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_parameters_of_no_compression(tmp_path):
    """They could crash what unpacks the pixels."""
    path = tmp_path / "rice.fits"
    Mask(60, 40).writeFits(str(path), CompressionOptions.from_mapping({"algorithm": "RICE_1"}))
    data = path.read_bytes()
    bad = re.sub(rb"(ZVAL2 +=) {20}4", rb"\1                   -1", data)
    assert bad != data and len(bad) == len(data)
    path.write_bytes(bad)
    with pytest.raises(FitsError, match="BYTEPIX"):
        Mask.readFits(str(path))
