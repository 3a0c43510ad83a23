# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of Gaussian sources, whose measurements are known in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lsst.afw.detection import Footprint, GaussianPsf
from lsst.afw.geom import SpanSet, Stencil, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF
from lsst.afw.table import IdFactory, SourceCatalog, SourceTable
from lsst.geom import Box2I, Extent2I, Point2D, Point2I, SpherePoint, arcseconds, degrees
from lsst.meas.base import SingleFrameMeasurementTask

# Neither square nor at the origin, so that swapped axes and a lost xy0 show.
BBOX = Box2I(Point2I(-60, 1300), Extent2I(190, 150))
SIGMA = 2.0


def make_exposure(
    variance: float = 4.0, bbox: Box2I = BBOX, shift: Sequence[float] = (0.0, 0.0)
) -> ExposureF:
    """Return an empty image with a Gaussian PSF and a WCS.

    ``shift`` moves the reference pixel of the WCS.
    """
    exposure = ExposureF(bbox)
    exposure.image.array[:, :] = 0.0
    exposure.variance.array[:, :] = variance
    exposure.setPsf(GaussianPsf(25, 25, SIGMA))
    exposure.setWcs(
        makeSkyWcs(
            crpix=Point2D(20.0 + shift[0], 1370.0 + shift[1]),
            crval=SpherePoint(150.0, 2.0, degrees),
            cdMatrix=makeCdMatrix(scale=0.2 * arcseconds),
        )
    )
    return exposure


def gaussian(
    x: float, y: float, flux: float, moments: Sequence[float] = (SIGMA**2, SIGMA**2, 0.0), bbox: Box2I = BBOX
) -> np.ndarray:
    """Return an elliptical Gaussian (y, x) with moments xx, yy, xy."""
    xx, yy, xy = moments
    det = xx * yy - xy * xy
    dx = np.arange(bbox.getMinX(), bbox.getMaxX() + 1) - x
    dy = (np.arange(bbox.getMinY(), bbox.getMaxY() + 1) - y)[:, None]
    exponent = (yy * dx * dx - 2 * xy * dx * dy + xx * dy * dy) / det
    return flux * np.exp(-0.5 * exponent) / (2 * np.pi * np.sqrt(det))


def make_footprint(x: float, y: float, radius: int = 10, bbox: Box2I = BBOX) -> Footprint:
    """Return a round footprint with its peak at the nearest pixel."""
    center = Point2I(round(x), round(y))
    spans = SpanSet.fromShape(radius, Stencil.CIRCLE, offset=(center.getX(), center.getY()))
    footprint = Footprint(spans.clippedTo(bbox), bbox)
    footprint.addPeak(center.getX(), center.getY(), 1.0)
    return footprint


def make_task(plugins: Iterable[str] | None = None, **slots: str | None) -> SingleFrameMeasurementTask:
    """Return a task; without plugins it is that of the defaults here."""
    config = SingleFrameMeasurementTask.ConfigClass()
    names = {
        "base_PixelFlags",
        "base_SdssCentroid",
        "base_SdssShape",
        "base_GaussianFlux",
        "base_PsfFlux",
        "base_CircularApertureFlux",
        "base_SkyCoord",
        "base_Blendedness",
        "base_LocalBackground",
        "base_ClassificationSizeExtendedness",
    }
    config.plugins.names = names if plugins is None else set(plugins)
    for slot, target in slots.items():
        setattr(config.slots, slot, target)
    return SingleFrameMeasurementTask(schema=SourceTable.makeMinimalSchema(), config=config)


def make_catalog(task: SingleFrameMeasurementTask) -> SourceCatalog:
    """Return an empty catalogue whose sources get ids of their own."""
    return SourceCatalog(SourceTable.make(task.schema, IdFactory.makeSimple()))


def measure(
    exposure: ExposureF, footprints: Iterable[Footprint], task: SingleFrameMeasurementTask | None = None
) -> Any:
    """Measure isolated sources and return their catalogue."""
    task = make_task() if task is None else task
    catalog = make_catalog(task)
    for footprint in footprints:
        catalog.addNew().setFootprint(footprint)
    task.run(catalog, exposure)
    return catalog.copy(deep=True)
