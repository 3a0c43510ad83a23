# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Footprints in a file of the real afw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from lsst.afw.table import SourceCatalog
from lsst.geom import Box2I, Point2I


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, Any]:
    """What the files of the real afw hold."""
    return json.loads((shared_data / "afw" / "golden.json").read_text())


class TestGolden:
    """The footprints in a file of the real afw."""

    @pytest.fixture
    def catalog(self, shared_data: Path, golden: dict[str, Any]) -> SourceCatalog:
        return SourceCatalog.readFits(str(shared_data / "afw" / golden["catalog"]["file"]))

    def test_footprints(self, golden: dict[str, Any], catalog: SourceCatalog) -> None:
        for record, wanted in zip(catalog, golden["catalog"]["records"], strict=True):
            footprint, wanted = record.getFootprint(), wanted["footprint"]
            assert type(footprint).__name__ == wanted["class"]
            assert footprint.getArea() == wanted["area"]
            box = footprint.getBBox()
            assert [box.getMinX(), box.getMinY(), box.getWidth(), box.getHeight()] == wanted["bbox"]
            assert footprint.getRegion().isEmpty()
            spans = [[span.getY(), span.getX0(), span.getX1()] for span in footprint.spans]
            assert spans == wanted["spans_y_x0_x1"]
            centroid = footprint.getCentroid()
            assert [centroid.getX(), centroid.getY()] == pytest.approx(wanted["centroid"], rel=1e-14)
            assert footprint.isHeavy() == wanted["isHeavy"]

    def test_peaks(self, golden: dict[str, Any], catalog: SourceCatalog) -> None:
        for record, wanted in zip(catalog, golden["catalog"]["records"], strict=True):
            peaks, wanted = record.getFootprint().peaks, wanted["footprint"]
            assert [{name: peak[name] for name in wanted["peaks"][0]} for peak in peaks] == wanted["peaks"]
            schema = [
                [
                    item.field.getName(),
                    item.field.getTypeString(),
                    item.field.getUnits(),
                    item.field.getDoc(),
                ]
                for item in peaks.schema
            ]
            assert schema == wanted["peak_schema"]
        # The calls of api_probe.txt.
        assert catalog[3].getFootprint().peaks["f_x"].tolist() == [134.0]
        assert repr(catalog[3].getFootprint().peaks[0]) == "7: (134,225)  (134.000,225.000)"

    def test_heavy_pixels(self, golden: dict[str, Any], catalog: SourceCatalog) -> None:
        heavy = catalog[3].getFootprint()
        wanted = golden["catalog"]["records"][3]["footprint"]
        assert heavy.getImageArray().tolist() == wanted["heavy_image"]
        assert heavy.getMaskArray().tolist() == wanted["heavy_mask"]
        assert heavy.getVarianceArray().tolist() == wanted["heavy_variance"]
        image = heavy.extractImage()
        assert image.getBBox() == Box2I(Point2I(132, 224), Point2I(142, 226))
        assert np.isnan(image.array[0, 0])

    def test_layout_of_the_archive(
        self, golden: dict[str, Any], catalog: SourceCatalog, shared_data: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "again.fits"
        catalog.writeFits(str(path))
        original = shared_data / "afw" / golden["catalog"]["file"]
        assert archive_layout(path) == archive_layout(original)

    def test_split(self, catalog: SourceCatalog) -> None:
        parts = catalog[0].getFootprint().split()
        assert [part.getArea() for part in parts] == [10, 1]
        assert [len(part.peaks) for part in parts] == [1, 0]

    def test_shared_footprint_is_the_same_object(self, catalog: SourceCatalog) -> None:
        assert catalog[2].getFootprint() is catalog[2].getFootprint()


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
