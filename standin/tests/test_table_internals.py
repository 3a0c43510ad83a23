# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Archives, and what the tables do with files that are not as expected."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import lsst.pex.exceptions as pexExceptions
from lsst.afw.detection import Footprint
from lsst.afw.fits import FitsError, MemFileManager
from lsst.afw.geom import SpanSet
from lsst.afw.table import BaseCatalog, Schema, SourceCatalog, SourceTable
from lsst.afw.table import _fits_bytes as raw_fits
from lsst.afw.table.io import (
    InputArchive,
    MalformedArchiveError,
    OutputArchive,
    OutputArchiveHandle,
    Persistable,
    register_persistable,
)


@register_persistable("TestPair", module="")
class Pair(Persistable):
    """Two objects."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first = first
        self.second = second

    def _persist(self, handle: OutputArchiveHandle) -> None:
        schema = Schema()
        keys = [schema.addField(name, type=np.int32, doc="archive ID") for name in ("first", "second")]
        catalog = handle.makeCatalog(schema)
        record = catalog.addNew()
        for key, value in zip(keys, (self.first, self.second), strict=True):
            record.set(key, handle.put(value))
        handle.saveCatalog(catalog)

    @classmethod
    def _factory(cls, archive: InputArchive, catalogs: list[BaseCatalog]) -> Pair:
        record = catalogs[0][0]
        return cls(archive.get(record["first"]), archive.get(record["second"]))


def test_nested_objects_through_astropy(tmp_path: Path) -> None:
    spans = SpanSet.fromShape(3, offset=(10, 20))
    pair = Pair(spans, Pair(spans, None))
    archive = OutputArchive()
    number = archive.put(pair)
    assert archive.put(pair) == number and archive.put(None) == 0
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((3, 4))), *archive.to_hdus()])
    path = tmp_path / "archive.fits"
    hdus.writeto(path)
    with fits.open(path) as opened:
        assert opened[2].header["EXTTYPE"] == "ARCHIVE_INDEX" and opened[2].header["AR_NCAT"] == 3
        back = InputArchive.from_hdus(opened, 2).get(number)
    assert back.first == spans and back.second.first is back.first and back.second.second is None
    # HDUs that were never in a file, and those that were written.
    assert InputArchive.from_hdus(hdus, 2).get(number).first == spans
    assert InputArchive.from_hdus(fits.HDUList([*archive.to_hdus()]), 0).get(number).first == spans


def test_hdus_that_astropy_has_parsed_are_written_as_they_are(tmp_path: Path) -> None:
    archive = OutputArchive()
    archive.put(SpanSet.fromShape(3))
    hdus = fits.HDUList([fits.PrimaryHDU(), *archive.to_hdus()])
    path = tmp_path / "archive.fits"
    hdus.writeto(path)
    assert path.read_bytes().endswith(archive.to_bytes())


def test_objects_of_unknown_classes_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    archive = OutputArchive()
    number = archive.put(Pair(SpanSet.fromShape(2), None))
    raw = archive.to_bytes().replace(b"TestPair" + b" " * 8, b"CoaddPsf" + b" " * 8)
    hdus = raw_fits.scan(raw_fits.primary_bytes() + raw)
    with caplog.at_level(logging.WARNING, logger="lsst.afw.table.io"):
        found = InputArchive._from_raw(hdus, 1)
        assert found.get(number) is None
        assert found.get(number) is None
    assert len(caplog.records) == 1 and "CoaddPsf" in caplog.text
    assert [type(value).__name__ for value in found.getAll().values()] == ["SpanSet"]


def test_what_cannot_be_saved() -> None:
    with pytest.raises(pexExceptions.NotFoundError):
        OutputArchive().put(object())
    assert OutputArchive().put(object(), permissive=True) == 0


def test_malformed_archives() -> None:
    archive = OutputArchive()
    number = archive.put(SpanSet.fromShape(2))
    hdus = raw_fits.scan(raw_fits.primary_bytes() + archive.to_bytes())
    found = InputArchive._from_raw(hdus, 1)
    with pytest.raises(MalformedArchiveError):
        found.get(99)
    found._entries[number] = [(0, 1, 3, 100)]
    with pytest.raises(MalformedArchiveError):
        found.get(number)
    with pytest.raises(FitsError):
        InputArchive._from_raw(hdus, 2)
    with pytest.raises(FitsError):
        InputArchive._from_raw(hdus[:2], 1)


def test_object_in_a_file_of_its_own(tmp_path: Path) -> None:
    path = str(tmp_path / "pair.fits")
    Pair(SpanSet.fromShape(2), None).writeFits(path)
    assert Pair.readFits(path).first == SpanSet.fromShape(2)


def make_sources() -> SourceCatalog:
    catalog = SourceCatalog(SourceTable.makeMinimalSchema())
    for i in range(3):
        record = catalog.addNew()
        record.setId(i)
        record.setFootprint(Footprint(SpanSet.fromShape(i + 1)))
    return catalog


def test_catalog_in_memory() -> None:
    manager = MemFileManager()
    make_sources().writeFits(manager)
    back = SourceCatalog.readFits(manager)
    assert [record.getFootprint().getArea() for record in back] == [5, 13, 29]


@pytest.mark.parametrize("kept", [100, 2880, 5000, 10000])
def test_files_cut_short_are_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cat.fits"
    make_sources().writeFits(str(path))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FitsError):
        SourceCatalog.readFits(str(path))


def test_string_without_size_makes_no_table() -> None:
    schema = Schema()
    schema.addField("text", type=str)
    with pytest.raises(pexExceptions.LengthError, match="text"):
        BaseCatalog(schema).addNew()


@pytest.mark.parametrize(
    ("key", "value", "comment"),
    [
        ("SHORT", "text", "a comment"),
        ("EMPTY", "", ""),
        ("QUOTE", "it's 'quoted'", "c"),
        ("NUMBER", -17, ""),
        ("FLOAT", 1.5e-12, ""),
        ("TRUTH", True, "yes"),
        ("NOTHING", None, ""),
        ("A_LONG_KEYWORD", 3, ""),
        ("LONG", "word " * 60 + "end", "c"),
        ("QUOTES", "'" * 150, ""),
    ],
)
def test_cards(key: str, value: Any, comment: str) -> None:
    text = raw_fits.format_card(key, value, comment)
    assert len(text) % 80 == 0
    assert raw_fits.parse_header(text) == [(key, value, comment)] or len(text) > 80
    assert raw_fits.parse_header(text)[0][:2] == (key, value)
    card = fits.Card.fromstring(text)
    if value is not None:
        assert card.value == value
