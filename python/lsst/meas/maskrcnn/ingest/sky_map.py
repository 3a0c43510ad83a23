# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sky maps of simulated and imported patches, for the pipeline's own tasks; needs all of ``lsst.skymap``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lsst.afw.geom import SkyWcs
from lsst.daf.butler import Butler, DatasetType
from lsst.geom import Angle, Box2D, Box2I, Extent2I, Point2I
from lsst.skymap import BaseSkyMap  # type: ignore[attr-defined]
from lsst.skymap.tractBuilder import LegacyTractBuilder  # type: ignore[import-not-found]
from lsst.skymap.tractInfo import TractInfo  # type: ignore[import-not-found]

_Tract = tuple[SkyWcs, tuple[int, int], tuple[int, int]]


class _TractOfPatches(TractInfo):  # type: ignore[misc]
    """A tract of which projection and size are given, in place of being made to cover a region."""

    def __init__(self, number: int, wcs: SkyWcs, size: tuple[int, int], count: tuple[int, int]) -> None:
        config = LegacyTractBuilder.ConfigClass(patchInnerDimensions=list(size), patchBorder=0)
        self._whole = Box2I(Point2I(0, 0), Extent2I(size[0] * count[0], size[1] * count[1]))
        box = Box2D(self._whole)
        corners = [wcs.pixelToSky(corner) for corner in box.getCorners()]
        center = wcs.pixelToSky(box.getCenter())
        super().__init__(number, LegacyTractBuilder(config), center, corners, Angle(0.0), wcs)

    def _minimumBoundingBox(self, wcs: SkyWcs) -> Box2I:
        return self._whole


class PatchSkyMap(BaseSkyMap):  # type: ignore[misc]
    """Sky map of tracts that need not touch, in patches that abut row by row.

    Tracts, by number, are a projection, width and height of a patch (px), and number of patches along x and
    y. Pixel (0, 0) is the tract's first.
    """

    def __init__(self, tracts: Mapping[int, _Tract]) -> None:
        super().__init__()
        self.tracts = dict(sorted(tracts.items()))
        self._tractInfoList = [_TractOfPatches(number, *tract) for number, tract in self.tracts.items()]

    def __getitem__(self, number: int) -> Any:
        return dict(zip(self.tracts, self._tractInfoList))[number]

    def __reduce__(self) -> Any:
        return type(self), (self.tracts,)

    def generateTract(self, number: int) -> Any:
        """Return a tract by its number, as sky maps that make theirs on request do."""
        return self[number]

    def updateSha1(self, sha1: Any) -> None:
        """Add what makes this sky map another than others to a hash."""
        for number, (wcs, *sizes) in self.tracts.items():
            sha1.update(f"{number} {wcs.writeString()} {sizes}".encode())


def put_sky_map(butler: Butler, name: str, tracts: Mapping[int, _Tract]) -> None:
    """Store a sky map with these tracts and those that it has already, in the collection ``skymaps``."""
    kind = DatasetType("skyMap", ("skymap",), "SkyMap", universe=butler.dimensions)
    butler.registry.registerDatasetType(kind)
    run = BaseSkyMap.SKYMAP_RUN_COLLECTION_NAME
    butler.collections.register(run)
    found = butler.find_dataset(kind, skymap=name, collections=run)
    known = {} if found is None else butler.get(found).tracts
    if set(tracts) <= set(known):
        return
    with butler.transaction():
        if found is not None:
            butler.pruneDatasets([found], disassociate=True, unstore=True, purge=True)
        butler.put(PatchSkyMap({**known, **tracts}), kind, skymap=name, run=run)
