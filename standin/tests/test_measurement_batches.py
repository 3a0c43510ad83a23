# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sources measured together get the values of sources measured one at a time, bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsst.afw.detection import makeHeavyFootprint
from lsst.afw.image import ExposureF
from lsst.afw.math import FixedKernel
from lsst.afw.table import SourceCatalog
from lsst.meas.algorithms import KernelPsf
from lsst.meas.base import ForcedMeasurementTask, sfm

sys.path.insert(0, str(Path(__file__).parent / "conformance"))
import meas_base_images as images

PLACES = [
    (-56, 1303),
    (-20, 1330),
    (-12.4, 1333.6),
    (30, 1370),
    (33, 1378),
    (34.4, 1373.7),
    (60, 1400),
    (90, 1420),
]


@pytest.fixture(params=["alone", "blended", "noiseless"])
def field(request: pytest.FixtureRequest) -> tuple[ExposureF, list[Any], list[int]]:
    """An image, and footprints of sources, some of which overlap, with the numbers of their parents."""
    rng = np.random.default_rng(5)
    exposure = images.make_exposure()
    array = exposure.image.array
    for number, (x, y) in enumerate(PLACES):
        width = images.SIGMA**2 * (1 + number % 4) ** 2
        array += images.gaussian(x, y, 2000.0 * (1 + number), (width, 0.6 * width, 0.3 * width))
    if request.param != "noiseless":
        array += rng.normal(0, 2.0, array.shape)
    array[120, 153] = np.nan
    exposure.mask.array[68:72, 88:92] |= exposure.mask.getPlaneBitMask(["SAT", "CR"])
    # A kernel that is neither round nor symmetric.
    kernel = images.gaussian(
        0.3, -0.2, 1.0, (4.0, 5.0, 0.5), images.Box2I(images.Point2I(-12, -12), images.Extent2I(25, 25))
    )
    plane = type(exposure.getPsf().computeKernelImage(images.Point2D(0, 0)))(np.array(kernel), False)
    exposure.setPsf(KernelPsf(FixedKernel(plane)))
    footprints = [images.make_footprint(x, y, 6 + 2 * (i % 4)) for i, (x, y) in enumerate(PLACES)]
    parents = [0] * len(PLACES)
    if request.param == "blended":
        whole = images.make_footprint(32, 1374, 22)
        children = [makeHeavyFootprint(one, exposure.getMaskedImage()) for one in footprints[3:6]]
        for child in children:
            child.getImageArray()[:] *= 0.6
        footprints, parents = (
            [whole, *footprints[:3], *children, *footprints[6:]],
            [0] * 4 + [1] * 3 + [0] * 2,
        )
    return exposure, footprints, parents


def fill(catalog: SourceCatalog, footprints: list[Any], parents: list[int]) -> SourceCatalog:
    for footprint, parent in zip(footprints, parents, strict=True):
        record = catalog.addNew()
        record.setFootprint(footprint)
        record.setParent(parent)
    return catalog


def measure_singly(
    task: Any, catalog: SourceCatalog, exposure: ExposureF, reference: Any = None, wcs: Any = None
) -> None:
    """Do as `run`, one source at a time."""
    footprints = task.getFootprintsFromCatalog(catalog)
    replacer = task.initNoiseReplacer(exposure, catalog, footprints, 7)
    for index, record in enumerate(catalog):
        replacer.insertSource(record.getId())
        task.callMeasure(record, exposure, *(() if reference is None else (reference[index], wcs)))
        if getattr(task, "doBlendedness", False):
            task.blendPlugin.cpp.measureChildPixels(exposure.getMaskedImage(), record)
        replacer.removeSource(record.getId())
    replacer.end()
    if getattr(task, "doBlendedness", False):
        for record in catalog:
            task.blendPlugin.cpp.measureParentPixels(exposure.getMaskedImage(), record)


def assert_same(one: SourceCatalog, other: SourceCatalog) -> None:
    for item in one.schema:
        name = item.field.getName()
        a, b = np.asarray(one[name]), np.asarray(other[name])
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("size", [512, 2])
def test_single_frame(field: Any, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All plugins, in batches of two as well."""
    monkeypatch.setattr(sfm, "BATCH", size)
    exposure, footprints, parents = field
    task = images.make_task()
    before = exposure.image.array.copy()
    together, singly = (fill(images.make_catalog(task), footprints, parents) for _ in range(2))
    task.run(together, exposure, exposureId=7)
    np.testing.assert_array_equal(exposure.image.array, before)
    measure_singly(task, singly, exposure)
    assert_same(together, singly)
    # Most of them are measured together indeed.
    assert np.count_nonzero(np.isfinite(together["base_PsfFlux_instFlux"])) >= len(footprints) - 2
    names = ("base_SdssCentroid", "base_SdssShape", "base_PsfFlux", "base_CircularApertureFlux")
    assert all(task.plugins[name].getBatchMethod() is not None for name in names)


def test_batches_measure_the_ordinary_ones(field: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time are only those near an edge or with something odd."""
    exposure, footprints, parents = field
    task = images.make_task()
    alone: list[str] = []
    measure = task.doMeasurement

    def count(plugin: Any, *args: Any) -> None:
        alone.append(plugin.name)
        measure(plugin, *args)

    monkeypatch.setattr(task, "doMeasurement", count)
    task.run(fill(images.make_catalog(task), footprints, parents), exposure)
    for name in ("base_SdssCentroid", "base_PsfFlux", "base_PixelFlags", "base_SkyCoord"):
        assert alone.count(name) <= 3


def test_forced(field: Any) -> None:
    """The plugins of forced measurement, at the positions of another catalogue."""
    exposure, footprints, parents = field
    single = images.make_task()
    reference = fill(images.make_catalog(single), footprints, parents)
    single.run(reference, exposure)
    config = ForcedMeasurementTask.ConfigClass()
    config.copyColumns = {"id": "objectId", "parent": "parentObjectId"}
    config.plugins.names = [
        "base_PixelFlags",
        "base_TransformedCentroid",
        "base_TransformedShape",
        "base_PsfFlux",
        "base_CircularApertureFlux",
    ]
    task = ForcedMeasurementTask(reference.schema, config=config)
    made = []
    for run in (task.run, None):
        catalog = task.generateMeasCat(exposure, reference, exposure.getWcs())
        for record, given in zip(catalog, reference, strict=True):
            record.setFootprint(given.getFootprint())
            record.setId(given.getId())
            record.setParent(given.getParent())
        if run is not None:
            run(catalog, exposure, reference, exposure.getWcs(), exposureId=7)
        else:
            measure_singly(task, catalog, exposure, reference, exposure.getWcs())
        made.append(catalog)
    assert_same(*made)


def test_sources_can_be_left_out(field: Any) -> None:
    """Replacing ``callMeasure`` leaves out sources, whose pixels are noise all the same."""
    exposure, footprints, parents = field
    task = images.make_task()
    every, some = (fill(images.make_catalog(task), footprints, parents) for _ in range(2))
    task.run(every, exposure, exposureId=7)
    measure = task.callMeasure
    task.callMeasure = lambda record, *args, **kwargs: (
        record.getId() != 2 and measure(record, *args, **kwargs)
    )
    task.run(some, exposure, exposureId=7)
    keep = np.asarray(every["id"]) != 2
    assert np.isnan(some["base_PsfFlux_instFlux"][1])
    np.testing.assert_array_equal(some["base_PsfFlux_instFlux"][keep], every["base_PsfFlux_instFlux"][keep])
