# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Answers that upstream's own tests of afw ask for and that differed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lsst.afw.fits
import lsst.afw.image as afwImage
import lsst.afw.math as afwMath
import lsst.afw.table as afwTable
import lsst.geom as geom
import lsst.pex.exceptions as pexExceptions


def test_columns_and_catalogs(tmp_path: Path) -> None:
    schema = afwTable.SourceTable.makeMinimalSchema()
    # Units of functor keys are not checked.
    key = afwTable.Point2DKey.addFields(schema, "center", "center", "pixels")
    catalog = afwTable.SourceCatalog(schema)
    catalog.addNew().set(key, geom.Point2D(1.0, 2.0))
    assert catalog.getColumnView() is catalog.columns
    with pytest.raises(pexExceptions.LogicError):
        catalog.get(afwTable.KeyD())
    for empty in (afwTable.SourceCatalog(), afwTable.SourceCatalog(None)):
        empty.addNew()
        assert len(empty) == 1
    small = afwTable.BaseCatalog(afwTable.Schema())
    schema = afwTable.Schema()
    schema.addField("d", type=np.float64, doc="number")
    small.append(afwTable.BaseTable.make(schema).makeRecord())
    with pytest.raises(pexExceptions.LogicError):
        small.writeFits(str(tmp_path / "mixed.fits"))


def test_statistics_of_masks() -> None:
    """The sum of a mask is all bits that are set."""
    mask = afwImage.Mask(geom.Extent2I(10, 10))
    mask.array[1, 1], mask.array[1, 3], mask.array[4, 5] = 0x10, 0x08, 0x02
    statistics = afwMath.makeStatistics(mask, afwMath.SUM | afwMath.NPOINT)
    assert statistics.getValue(afwMath.SUM) == 0x1A
    assert statistics.getValue(afwMath.NPOINT) == 100
    with pytest.raises(pexExceptions.InvalidParameterError):
        afwMath.makeStatistics(mask, afwMath.MEAN)


def test_shallow_copies_of_pixels_share_their_place() -> None:
    image = afwImage.MultibandImage.fromImages(["g", "r"], [afwImage.ImageF(5, 5), afwImage.ImageF(5, 5)])
    pixel = image[:, 2, 3]
    shallow, deep = pixel.clone(False), pixel.clone()
    pixel.getBBox().shift(geom.Extent2I(9, -2))
    assert shallow.getBBox() == pixel.getBBox() != deep.getBBox()


def test_comments_go_on_where_a_card_ends(tmp_path: Path) -> None:
    """A word that fills a card is not cut in two."""
    path = tmp_path / "long.fits"
    afwImage.ImageF(2, 2).writeFits(str(path))
    first = "LONG    = 'value&' / ellipse used to set the pixel region for the aperture fi".ljust(80, "x")
    cards = first + "CONTINUE  '' / nal fit (before the mask)".ljust(80)
    data = path.read_bytes()
    end = data.index(b"END" + b" " * 77)
    path.write_bytes(data[:end] + cards.encode() + data[end : -len(cards)] if end + 240 <= 2880 else data)
    comment = lsst.afw.fits.readMetadata(str(path)).getComment("LONG")
    assert comment == first[first.index("/") + 2 :] + "nal fit (before the mask)"


def test_steps_of_lossy_compression_can_be_given(tmp_path: Path) -> None:
    image = afwImage.ImageF(40, 30)
    image.array[:] = np.random.default_rng(1).normal(100.0, 15.0, image.array.shape)
    options = {"algorithm": "RICE_1", "quantization": {"seed": 1, "scaling": "MANUAL", "level": 0.25}}
    image.writeFitsWithOptions(str(tmp_path / "steps.fits"), {"image": options})
    back = afwImage.ImageF(str(tmp_path / "steps.fits"))
    difference = np.abs(back.array - image.array).max()
    assert 0.05 < difference <= 0.126
