# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time the tables: ``python tests/benchmarks/bench_afw_table.py``.

Prints one line per step; sizes are those of a deep patch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

import lsst.afw.detection as afwDetection
import lsst.afw.geom as afwGeom
import lsst.afw.image as afwImage
import lsst.afw.table as afwTable
import lsst.geom


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a block takes."""
    start = time.perf_counter()
    yield
    print(f"{what:<62s} {time.perf_counter() - start:8.3f} s")


def make_schema(n_fields: int) -> tuple[afwTable.Schema, list[str]]:
    """Return a source schema with ``n_fields`` floats and a few flags."""
    schema = afwTable.SourceTable.makeMinimalSchema()
    names = [f"bench_field_{i}" for i in range(n_fields)]
    for name in names:
        schema.addField(name, type=np.float64, doc="a number", units="nJy")
    for i in range(8):
        schema.addField(f"bench_flag_{i}", type="Flag", doc="a flag")
    return schema, names


def make_footprints(n: int, heavy: bool, rng: np.random.Generator) -> list[afwDetection.Footprint]:
    """Return round footprints of 3 to 9 pixels radius, each with a peak."""
    footprints = []
    masked_image = afwImage.MaskedImageF(
        lsst.geom.Box2I(lsst.geom.Point2I(0, 0), lsst.geom.Extent2I(3400, 3400))
    )
    masked_image.image.array[:] = 1.0
    for radius, x, y in zip(
        rng.integers(3, 10, n).tolist(),
        rng.integers(20, 3380, n).tolist(),
        rng.integers(20, 3380, n).tolist(),
        strict=True,
    ):
        spans = afwGeom.SpanSet.fromShape(radius, offset=(x, y))
        footprint = afwDetection.Footprint(spans)
        footprint.addPeak(x, y, 100.0)
        if heavy:
            footprint = afwDetection.makeHeavyFootprint(footprint, masked_image)
        footprints.append(footprint)
    return footprints


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20000, help="records of the bare catalogue")
    parser.add_argument("--footprints", type=int, default=4000, help="sources with footprints")
    args = parser.parse_args()
    rng = np.random.default_rng(1)

    with timed("schema of 300 fields"):
        schema, names = make_schema(300)
    catalog = afwTable.SourceCatalog(schema)
    with timed(f"{args.records} records by addNew"):
        catalog.reserve(args.records)
        for _ in range(args.records):
            catalog.addNew()
    with timed("fill 300 columns"):
        for name in names:
            catalog[name] = rng.normal(size=args.records)
        catalog["id"] = rng.permutation(args.records)
    with timed("set one field record by record"):
        key = schema.find(names[0]).key
        for record in catalog:
            record.set(key, 1.0)
    with timed("sort by id and copy deep"):
        catalog.sort()
        catalog = catalog.copy(deep=True)
    with timed("boolean subset and extend with a mapper"):
        mapper = afwTable.SchemaMapper(catalog.schema)
        mapper.addMinimalSchema(afwTable.SourceTable.makeMinimalSchema())
        mapper.addMapping(schema.find(names[1]).key)
        output = afwTable.SourceCatalog(mapper.getOutputSchema())
        output.extend(catalog[catalog[names[1]] > 0], mapper=mapper)
    with timed("asAstropy"):
        catalog.asAstropy()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bare.fits")
        with timed("write without footprints"):
            catalog.writeFits(path, flags=afwTable.SOURCE_IO_NO_FOOTPRINTS)
        with timed(f"read without footprints ({os.path.getsize(path) / 1e6:.0f} MB)"):
            afwTable.SourceCatalog.readFits(path, flags=afwTable.SOURCE_IO_NO_FOOTPRINTS)
        for heavy in (False, True):
            kind = "heavy footprints" if heavy else "footprints"
            with timed(f"make {args.footprints} {kind}"):
                footprints = make_footprints(args.footprints, heavy, rng)
            sources = afwTable.SourceCatalog(schema)
            sources.resize(args.footprints)
            for record, footprint in zip(sources, footprints, strict=True):
                record.setFootprint(footprint)
            path = os.path.join(folder, "sources.fits")
            with timed(f"write {args.footprints} sources with {kind}"):
                sources.writeFits(path)
            with timed(f"read them ({os.path.getsize(path) / 1e6:.0f} MB)"):
                back = afwTable.SourceCatalog.readFits(path)
            with timed("visit their peaks and spans"):
                area = sum(r.getFootprint().getArea() + len(r.getFootprint().peaks) for r in back)
            print(f"    {area} pixels and peaks")


if __name__ == "__main__":
    main()
