# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The part of a report that sets two deblenders side by side."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import lsst.geom as geom
from lsst.afw.geom import makeCdMatrix, makeSkyWcs
from lsst.daf.butler import DatasetType
from lsst.meas.maskrcnn.cli import report
from lsst.meas.maskrcnn.ingest.repo import PatchGeometry, create_repo, register_patches
from lsst.meas.maskrcnn.metrics.evaluation_metrics import EvaluationMetrics, MetricValue, PatchSummary
from lsst.meas.maskrcnn.report.deblender_report import deblender_parts
from lsst.meas.maskrcnn.report.report_page import Page, Section, Table, Value, render_page


def make_metrics(
    patch: int, share: float, other: float, n: int, catalog: str = "ours,theirs"
) -> EvaluationMetrics:
    return EvaluationMetrics(
        package_version="1",
        software={},
        name="deblenderComparison",
        catalog=catalog,
        skymap="sky",
        patches=[PatchSummary(tract=3, patch=patch, n_truth=n, n_detections=n)],
        level=0.68,
        n_samples=10,
        values=[
            MetricValue(name="sources", definition="ours", value=n, n=n),
            MetricValue(name="sources", definition="theirs", value=n - 1, n=n - 1),
            MetricValue(name="completeness", definition="ours", value=share, n=n),
            MetricValue(name="completeness", definition="theirs", value=other, n=n),
            MetricValue(name="completeness", definition="difference", value=share - other, error=0.02, n=n),
            MetricValue(name="completeness_p_value", definition="difference", value=0.25, n=n),
            MetricValue(name="flux_ratio", band="r", value=1.0 + 0.1 * patch, error=0.01, n=n),
        ],
    )


def rows_of(part: Any) -> dict[str, list[Any]]:
    assert isinstance(part, Table)
    return {str(row[0]): list(row) for row in part.rows}


def number(cell: Any) -> float:
    return cast(Value, cell).value


def test_one_patch() -> None:
    _, own, shared = deblender_parts([make_metrics(0, 0.8, 0.6, 10)])
    row = rows_of(own)["Completeness"]
    assert [number(cell) for cell in row[2:]] == [0.8, 0.6, pytest.approx(0.2), 0.25]
    assert row[4].error == 0.02
    assert number(rows_of(shared)["Flux ratio"][2]) == 1.0


def test_several_patches() -> None:
    parts = deblender_parts([make_metrics(k, 0.8, 0.6, n) for k, n in enumerate((10, 30, 20))], 100)
    rows = rows_of(parts[1])
    assert [number(cell) for cell in rows["Sources"][2:4]] == [60.0, 57.0]
    assert number(rows["Completeness"][4]) == pytest.approx(0.2)
    # The same difference in each patch has no error.
    assert rows["Completeness"][4].error == pytest.approx(0.0, abs=1e-12)
    assert number(rows["Completeness"][5]) == pytest.approx(1 / 101)
    assert number(rows_of(parts[2])["Flux ratio"][2]) == pytest.approx((10 * 1.0 + 30 * 1.1 + 20 * 1.2) / 60)
    page = render_page(Page("title", sections=[Section("deblenders", "Beside", parts)]))
    assert "ours and theirs on 3 patches" in page


def test_of_different_deblenders() -> None:
    assert deblender_parts([]) == []
    with pytest.raises(ValueError, match="one pair of deblenders"):
        deblender_parts([make_metrics(0, 1, 1, 5), make_metrics(1, 1, 1, 5, "ours,sep")])


def test_found_in_a_repository(tmp_path: Path) -> None:
    butler = create_repo(tmp_path / "repo")
    butler.collections.register("run")
    wcs = makeSkyWcs(
        geom.Point2D(0, 0),
        geom.SpherePoint(150.0, 2.0, geom.degrees),
        makeCdMatrix(scale=0.2 * geom.arcseconds),
    )
    box = geom.Box2I(geom.Point2I(0, 0), geom.Extent2I(60, 40))
    register_patches(
        butler, "sky", [PatchGeometry(3, k, wcs, box, (k, 0)) for k in range(2)], ("r",), instrument="cam"
    )
    stored = SimpleNamespace(
        butler=butler, collection="run", run=SimpleNamespace(metrics=Namespace(skymap="sky"))
    )
    arguments = Namespace(deblenders="deblenderComparison", samples=50)
    assert report._deblenders(cast(Any, stored), arguments) == []
    dataset_type = DatasetType(
        "deblenderComparison_metrics",
        ("skymap", "tract", "patch"),
        "MaskRcnnMetrics",
        universe=butler.dimensions,
    )
    butler.registry.registerDatasetType(dataset_type)
    assert report._deblenders(cast(Any, stored), arguments) == []
    for patch in (1, 0):
        place = {"skymap": "sky", "tract": 3, "patch": patch}
        butler.put(make_metrics(patch, 0.9, 0.7, 10 + patch), dataset_type, place, run="run")
    parts = report._deblenders(cast(Any, stored), arguments)
    assert number(rows_of(parts[1])["Sources"][2]) == 21.0
