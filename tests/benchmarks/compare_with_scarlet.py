# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""This package, baselines and scarlet on the patch that the real pipeline deblended, with its truth.

    python tests/benchmarks/compare_with_scarlet.py DATA [--model MODEL] [--plots FOLDER]

DATA holds ``exposure_<band>.fits``, ``deblendedCatalog.fits``, ``object_parent_patch.fits``,
``scarletModelData.scarlet``, ``truth.fits`` and ``timing.json``. Printed is the table of the documentation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.meas.maskrcnn import CompareDeblendersTask, MaskRcnnDeblendTask
from lsst.meas.maskrcnn.compare.baselines import PhotutilsDeblender, SepDeblender
from lsst.meas.maskrcnn.compare.deblender import DeblendedField, make_parents
from lsst.meas.maskrcnn.compare.scarlet_models import read_scarlet_models
from lsst.meas.maskrcnn.compare.summary import DIFFERENCE
from lsst.meas.maskrcnn.metrics.spans import SpanMasks
from lsst.meas.maskrcnn.network.model_file import default_model_path, read_model

BANDS = ("g", "r", "z")


def drawn_truth(folder: Path, exposures: dict[str, ExposureF]) -> DeblendedField:
    """Positions and fluxes of what was drawn; masks are not known."""
    drawn = Table.read(folder / "truth.fits")
    ids = np.arange(1, len(drawn) + 1, dtype=np.int64)
    parents, spans = make_parents(ids, ids, SpanMasks(np.zeros(len(ids) + 1, int), *np.zeros((3, 0), int)))
    flux = {
        band: np.array(drawn[f"flux_{band}"]) * exposure.getPhotoCalib().getCalibrationMean()
        for band, exposure in exposures.items()
    }
    x, y, labels = np.array(drawn["x"]), np.array(drawn["y"]), np.where(drawn["is_star"], 1, 2)
    return DeblendedField("truth", ids, ids, x, y, labels, spans, flux, parents, spans)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=default_model_path())
    parser.add_argument("--plots", type=Path, help="where to put the plots")
    arguments = parser.parse_args()
    folder = arguments.data
    exposures = {band: ExposureF.readFits(str(folder / f"exposure_{band}.fits")) for band in BANDS}
    truth = drawn_truth(folder, exposures)
    model = read_model(arguments.model)
    deblend = MaskRcnnDeblendTask()
    deblend.run(exposures=exposures, model=model)  # the first call is slower
    start = time.perf_counter()
    found = deblend.run(exposures=exposures, model=model)
    seconds = time.perf_counter() - start
    scarlet: dict[str, Any] = {
        "otherCatalog": SourceCatalog.readFits(str(folder / "deblendedCatalog.fits")),
        "otherParents": SourceCatalog.readFits(str(folder / "object_parent_patch.fits")),
        "otherModels": read_scarlet_models(folder / "scarletModelData.scarlet"),
    }
    task = CompareDeblendersTask()
    inputs = task.read(
        exposures=exposures,
        catalog=found.catalog,
        bandCatalogs=getattr(found, "bandCatalogs", None),
        blendStatistics=getattr(found, "blendStatistics", None),
        seconds=seconds,
        **scarlet,
    )
    columns: dict[str, dict[tuple[str, str, str], Any]] = {}
    baselines = [one.deblend(inputs.images) for one in (SepDeblender(), PhotutilsDeblender())]
    for field in (inputs.first, *baselines):
        results = task.run(first=field, second=inputs.second, images=inputs.images, truth=truth)
        columns[field.name] = {(one.name, one.definition, one.band): one for one in results.metrics.values}
        if field is inputs.first:
            first = results
            print(len(results.sources), "rows;", results.metrics.tables.keys())
            if arguments.plots is not None:
                for name in ("Flux", "Residual", "Gallery"):
                    getattr(results, f"plot{name}").savefig(
                        arguments.plots / f"deblenders-{name.lower()}.png"
                    )
    timing = json.loads((folder / "timing.json").read_text())
    names = [*columns, "scarlet"]
    columns["scarlet"] = columns[inputs.first.name]
    took = {name: columns[name]["seconds", name, ""].value for name in names}
    took["scarlet"] = timing["deconvolve_s"] + timing["deblend_s"]

    def row(title: str, cells: list[str]) -> None:
        print(f"   * - {title}")
        for cell in cells:
            print(f"     - {cell}")

    print(".. list-table::\n   :header-rows: 1\n")
    row("", names)
    row("Sources", [f"{columns[name]['sources', name, ''].value:.0f}" for name in names])
    row("Parents taken apart", [f"{columns[name]['parents_blended', name, ''].value:.0f}" for name in names])
    for title, what, band in (
        ("Completeness", "completeness", ""),
        ("Purity", "purity", ""),
        *((f"Flux residual, {band}", "flux_residual", band) for band in BANDS),
        *((f"Its scatter, {band}", "flux_scatter", band) for band in BANDS),
    ):
        row(title, [f"{columns[name][what, name, band].value:.3f}" for name in names])
        cells = []
        for name in names[:-1]:
            difference = columns[name][what, DIFFERENCE, band]
            p_value = columns[name][f"{what}_p_value", DIFFERENCE, band].value
            cells.append(f"{difference.value:+.3f} ± {difference.error:.3f} (p = {p_value:.3f})")
        row("minus scarlet's", [*cells, ""])
    row("Time", [f"{took[name]:.2f} s" for name in names])
    print()
    for name, table in sorted(first.metrics.tables.items()):
        print(name, {key: np.round(table[key], 3).tolist() for key in table if key in
              ("low", "high", "total", "fraction", "n", "median", "scatter")})  # fmt: skip
    for one in first.metrics.values:
        if one.definition in ("", *names) and one.name not in ("completeness", "purity"):
            print(f"{one.name:28s} {one.definition:10s} {one.band:4s} {one.value:10.4f} {one.n:5d}")
    alone = first.sources[first.sources["outcome"] != "matched"]
    for line in alone["outcome", "x", "y", "snr_maskRcnn", "snr_scarlet", "class_maskRcnn"].pformat():
        print(line)


if __name__ == "__main__":
    main()
