# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Scarlet's stored models: reading, rendering and what upstream makes of the same file."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal

import lsst.afw.image as afwImage
import lsst.afw.table as afwTable
import lsst.geom as geom
from lsst.afw.detection import Footprint, GaussianPsf
from lsst.afw.geom import SpanSet
from lsst.daf.butler import Butler, DatasetRef, DatasetType, FileDataset
from lsst.meas.extensions.scarlet.io.utils import read_scarlet_model
from lsst.meas.maskrcnn.compare.scarlet import _difference_kernel, attach_scarlet, render_blend
from lsst.meas.maskrcnn.compare.scarlet_models import ScarletModelError, read_scarlet_models

BANDS = ("g", "r")
ORIGIN = (8000, 12000)
"""(y, x) of the parent's first pixel."""
SHAPE = (30, 44)
PARENT, BRIGHT, FAINT, ALONE = 7, 71, 72, 8
BBOX = geom.Box2I(geom.Point2I(11990, 7995), geom.Extent2I(80, 50))


def gaussian(side: int, sigma: float) -> np.ndarray:
    """A centred Gaussian that sums to one."""
    r = np.arange(side) - side // 2
    image = np.exp(-(r[:, None] ** 2 + r[None, :] ** 2) / (2 * sigma**2))
    return image / image.sum()


def encode(name: str, array: np.ndarray) -> dict[str, Any]:
    """An array in upstream's metadata, less its name in ``array_keys``."""
    return {
        name: array.ravel().tolist(),
        f"{name}_shape": list(array.shape),
        f"{name}_dtype": str(array.dtype),
    }


def point(y: int, x: int, spectrum: list[float]) -> dict[str, Any]:
    """A component of 3 x 5 pixels with light in the middle one only."""
    morph = np.zeros((3, 5))
    morph[1, 2] = 1
    return {
        "origin": [y - 1, x - 2],
        "shape": [3, 5],
        "peak": [y, x],
        "spectrum": spectrum,
        "morph": morph.ravel().tolist(),
        "component_type": "factorized",
        "version": "1.0.0",
    }


def source(number: int, components: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "source_type": "source",
        "components": components,
        "version": "1.0.0",
        "metadata": {"id": number, "peak_id": number + 1000},
    }


def make_document() -> dict[str, Any]:
    """Two point sources in one parent, fitted apart, and an isolated one.

    The model PSF is one pixel, so that a rendered source is the observed PSF.
    """
    spans = np.ones(SHAPE, dtype=bool)
    spans[:2, :3] = False
    delta = np.zeros((3, 3), dtype=np.float32)
    delta[1, 1] = 1
    psf = np.array([gaussian(9, 1.2), gaussian(9, 1.7)], dtype=np.float32)

    def blend(number: int, component: dict[str, Any]) -> dict[str, Any]:
        return {
            "blend_type": "blend",
            "origin": component["origin"],
            "shape": component["shape"],
            "sources": {str(number): source(number, [component])},
            "version": "1.0.0",
        }

    return {
        "version": "1.0.1",
        "metadata": encode("model_psf", delta)
        | encode("psf", psf)
        | {"bands": list(BANDS), "array_keys": ["model_psf", "psf"]},
        "blends": {
            str(PARENT): {
                "blend_type": "hierarchical",
                "children": {
                    "17": blend(BRIGHT, point(8010, 12012, [3000.0, 900.0])),
                    "18": blend(FAINT, point(8010, 12018, [1000.0, 300.0])),
                },
                "version": "1.0.0",
                "metadata": encode("spans", spans) | {"origin": list(ORIGIN), "array_keys": ["spans"]},
            }
        },
        "isolated": {
            str(ALONE): {
                "source_type": "isolated",
                "origin": [8020, 12050],
                "shape": [2, 3],
                "peak": [8020.0, 12051.0],
                "span_array": [1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
                "version": "1.0.0",
            }
        },
    }


def write_zip(document: dict[str, Any], path: Path) -> Path:
    """Write a document as upstream's zip file."""
    with zipfile.ZipFile(path, "w") as archive:
        for kind in ("blends", "isolated"):
            for key, node in document[kind].items():
                archive.writestr(key, json.dumps(node))
        for name in ("metadata", "version"):
            archive.writestr(name, json.dumps(document[name]))
    return path


@pytest.fixture
def document() -> dict[str, Any]:
    return make_document()


@pytest.fixture
def model_file(tmp_path: Path, document: dict[str, Any]) -> Path:
    return write_zip(document, tmp_path / "models.scarlet")


@pytest.fixture
def exposures(rng: np.random.Generator) -> dict[str, afwImage.ExposureF]:
    """Exposures in another order than the model's bands."""
    made = {}
    for band in reversed(BANDS):
        exposure = afwImage.ExposureF(BBOX)
        exposure.image.array[:] = rng.uniform(10, 20, exposure.image.array.shape)
        exposure.variance.array[:] = 1
        exposure.setPsf(GaussianPsf(9, 9, 1.5))
        made[band] = exposure
    return made


def make_catalog(ids: dict[int, int]) -> afwTable.SourceCatalog:
    """Records of given ids and parents, with scarlet's columns."""
    schema = afwTable.SourceTable.makeMinimalSchema()
    for name in ("scarletFlux", "peak_instFlux", "dataCoverage"):
        schema.addField(f"deblend_{name}", type=np.float32, doc=name)
    schema.addField("deblend_zeroFlux", type="Flag", doc="no flux")
    schema.addField("deblend_nChild", type=np.int32, doc="children")
    catalog = afwTable.SourceCatalog(schema)
    for number, parent in ids.items():
        record = catalog.addNew()
        record.setId(number)
        record.setParent(parent)
        footprint = Footprint(SpanSet(geom.Box2I(geom.Point2I(12050, 8020), geom.Extent2I(3, 2))))
        footprint.addPeak(12051, 8020, 1.0)
        record.setFootprint(footprint)
    return catalog


@pytest.fixture
def catalog() -> afwTable.SourceCatalog:
    return make_catalog({ALONE: 0, BRIGHT: PARENT, FAINT: PARENT})


def test_read_zip(model_file: Path) -> None:
    models = read_scarlet_models(model_file)
    assert models.bands == BANDS and list(models.blends) == [PARENT]
    blend = models.blends[PARENT]
    assert blend.bands == BANDS and blend.psf is not None and blend.psf.shape == (2, 9, 9)
    assert blend.origin == ORIGIN and blend.shape == SHAPE
    assert blend.spans is not None and np.count_nonzero(~blend.spans) == 6
    assert [(s.id, s.peak) for s in blend.sources] == [(BRIGHT, (8010, 12012)), (FAINT, (8010, 12018))]


def test_render_is_the_psf(model_file: Path) -> None:
    """A point behind a one-pixel model PSF is the observed PSF of its band, in the band's flux."""
    models = read_scarlet_models(model_file)
    rendered = render_blend(models.blends[PARENT])
    box, pixels = rendered[BRIGHT]
    # The component's box of 3 x 5, grown by 4 on each side.
    assert box == geom.Box2I(geom.Point2I(12006, 8005), geom.Extent2I(13, 11))
    assert pixels.dtype == np.float32
    expected = np.zeros((2, 11, 13))
    expected[0, 1:10, 2:11] = 3000 * gaussian(9, 1.2)
    expected[1, 1:10, 2:11] = 900 * gaussian(9, 1.7)
    assert np.allclose(pixels, expected, atol=3000 * 1e-6)
    one = render_blend(models.blends[PARENT], ["r"])[BRIGHT]
    assert one.box == box and np.array_equal(one.pixels[0], pixels[1])
    turned = render_blend(models.blends[PARENT], ["r", "g"])[BRIGHT]
    assert np.array_equal(turned.pixels, pixels[::-1])


@pytest.mark.parametrize("shape", [(5, 7), (20, 24)])
def test_render_is_a_convolution(
    shape: tuple[int, int], document: dict[str, Any], rng: np.random.Generator, tmp_path: Path
) -> None:
    """Models with fewer pixels than the kernel of 9 x 9, and with more."""
    component = document["blends"][str(PARENT)]["children"]["17"]["sources"][str(BRIGHT)]["components"][0]
    morph = rng.uniform(0, 1, shape)
    component.update(origin=[8006, 12010], shape=shape, morph=morph.ravel().tolist(), spectrum=[2.0, 3.0])
    models = read_scarlet_models(write_zip(document, tmp_path / "m.scarlet"))
    box, pixels = render_blend(models.blends[PARENT])[BRIGHT]
    # Grown by 4 on each side, and cut at the parent's last row and column.
    bottom, right = min(8006 + shape[0] + 4, 8030), min(12010 + shape[1] + 4, 12044)
    assert box == geom.Box2I(geom.Point2I(12006, 8002), geom.Point2I(right - 1, bottom - 1))
    for plane, flux, sigma in zip(pixels, (2, 3), (1.2, 1.7), strict=True):
        expected = flux * scipy.signal.convolve2d(morph, gaussian(9, sigma), mode="full")
        assert np.allclose(plane, expected[: bottom - 8002, : right - 12006], rtol=1e-4, atol=1e-5)


def test_difference_of_gaussians() -> None:
    """From a Gaussian of sigma 1 to one of 2.5 takes one of sqrt(2.5^2 - 1)."""
    kernel = _difference_kernel(
        np.array([gaussian(35, 2.5)], dtype=np.float32), gaussian(15, 1.0).astype(np.float32)
    )
    assert kernel.shape == (1, 35, 35)
    assert np.allclose(kernel[0], gaussian(35, np.sqrt(2.5**2 - 1)), atol=2e-6)
    with pytest.raises(ScarletModelError, match="odd sides"):
        _difference_kernel(np.ones((1, 4, 5), dtype=np.float32), np.ones((3, 3), dtype=np.float32))


def test_redistribute_conserves_flux(
    model_file: Path, exposures: dict[str, afwImage.ExposureF], catalog: afwTable.SourceCatalog
) -> None:
    models = read_scarlet_models(model_file)
    blend = models.blends[PARENT]
    exposures["r"].mask[geom.Point2I(12012, 8010)] = afwImage.Mask.getPlaneBitMask("NO_DATA")
    for band in BANDS:
        attached = attach_scarlet(catalog, models, exposures, band)
        added = afwImage.ImageF(BBOX)
        for record in attached:
            if record.getParent():
                record.getFootprint().addTo(added)
        lit = added.array != 0
        # Where the PSFs reach: 9 rows, and 9 columns about each of 12012 and 12018.
        y, x = np.nonzero(lit)
        assert (y.min(), y.max()) == (8006 - 7995, 8014 - 7995)
        assert (x.min(), x.max()) == (12008 - 11990, 12022 - 11990)
        assert np.allclose(added.array[lit], exposures[band].image.array[lit], rtol=1e-6)
        bright, faint = attached[1], attached[2]
        at = geom.Point2I(12015, 8010)
        # Half way between both, they share as their fluxes, 3 to 1.
        image = exposures[band].image[at]
        assert bright.getFootprint().extractImage(fill=0)[at] == pytest.approx(0.75 * image, rel=1e-4)
        assert faint.getFootprint().extractImage(fill=0)[at] == pytest.approx(0.25 * image, rel=1e-4)
        index = BANDS.index(band)
        assert bright["deblend_scarletFlux"] == pytest.approx((3000.0, 900.0)[index])
        assert not bright["deblend_zeroFlux"]
        area = bright.getFootprint().getArea()
        missing = 1 if band == "r" else 0
        assert bright["deblend_dataCoverage"] == pytest.approx(1 - missing / area)
        peak = bright.getFootprint().getPeaks()[0]
        assert (peak.getIx(), peak.getIy()) == (12012, 8010)
        expected = bright.getFootprint().extractImage(fill=0)[geom.Point2I(12012, 8010)]
        assert bright["deblend_peak_instFlux"] == pytest.approx(expected)
    assert not attached[0].getFootprint().isHeavy()
    # The catalogue that was given is as it was.
    assert not any(record.getFootprint().isHeavy() for record in catalog)
    assert np.isnan(catalog[1]["deblend_scarletFlux"])
    assert blend.spans is not None


def test_attach_models_without_redistribution(
    model_file: Path, exposures: dict[str, afwImage.ExposureF], catalog: afwTable.SourceCatalog
) -> None:
    models = read_scarlet_models(model_file)
    attached = attach_scarlet(catalog, models, exposures, "g", redistribute=False)
    assert attached[1].getFootprint().getImageArray().sum() == pytest.approx(3000, rel=1e-5)
    assert attached[2].getFootprint().getImageArray().sum() == pytest.approx(1000, rel=1e-5)
    assert attached[1]["deblend_scarletFlux"] == pytest.approx(3000)
    assert np.isnan(attached[1]["deblend_dataCoverage"])


def test_spans_and_nan_pixels(document: dict[str, Any], exposures: dict[str, Any], tmp_path: Path) -> None:
    """Pixels outside the parent are zero even where the image is NaN; inside, NaN stays."""
    blend = document["blends"][str(PARENT)]
    spans = np.ones(SHAPE, dtype=bool)
    spans[:, 12014 - ORIGIN[1] :] = False
    blend["metadata"]["spans"] = spans.ravel().tolist()
    models = read_scarlet_models(write_zip(document, tmp_path / "m.scarlet"))
    exposures["g"].image.array[:, 12014 - 11990 :] = np.nan
    exposures["g"].image[geom.Point2I(12011, 8010)] = np.nan
    box, pixels = render_blend(models.blends[PARENT], ["g"], exposures, redistribute=True)[BRIGHT]
    assert np.argwhere(np.isnan(pixels[0])).tolist() == [[8010 - box.getMinY(), 12011 - box.getMinX()]]
    assert not pixels[0, :, 12014 - box.getMinX() :].any()


def test_cubes_and_sources_of_several_components(document: dict[str, Any], tmp_path: Path) -> None:
    sources = document["blends"][str(PARENT)]["children"]["17"]["sources"]
    cube = np.zeros((2, 2, 3))
    cube[0, 1, 2], cube[1, 0, 0] = 50, 70
    sources[str(BRIGHT)]["components"].append(
        {
            "origin": [8020, 12030],
            "shape": [2, 2, 3],
            "peak": [8021, 12032],
            "model": cube.ravel().tolist(),
            "component_type": "component",
            "version": "1.0.0",
        }
    )
    models = read_scarlet_models(write_zip(document, tmp_path / "m.scarlet"))
    bright = models.blends[PARENT].sources[0]
    assert bright.box == (8009, 12010, 8022, 12033) and bright.peak == (8010, 12012)
    box, pixels = render_blend(models.blends[PARENT])[BRIGHT]
    assert pixels.sum(axis=(1, 2)) == pytest.approx([3050, 970], rel=1e-5)
    assert pixels[0, 8021 - box.getMinY(), 12032 - box.getMinX()] == pytest.approx(
        50 * gaussian(9, 1.2).max(), rel=1e-4
    )
    assert pixels[1, 8020 - box.getMinY(), 12030 - box.getMinX()] == pytest.approx(
        70 * gaussian(9, 1.7).max(), rel=1e-4
    )


def test_sources_without_light(
    document: dict[str, Any], exposures: dict[str, Any], catalog: afwTable.SourceCatalog, tmp_path: Path
) -> None:
    """No component, no flux in a band, or nothing inside the parent's box."""
    children = document["blends"][str(PARENT)]["children"]
    children["17"]["sources"][str(BRIGHT)]["components"] = []
    children["18"]["sources"][str(FAINT)]["components"][0]["spectrum"] = [0.0, 300.0]
    models = read_scarlet_models(write_zip(document, tmp_path / "m.scarlet"))
    assert render_blend(models.blends[PARENT])[BRIGHT].box.isEmpty()
    attached = attach_scarlet(catalog, models, exposures, "g")
    assert attached[1]["deblend_zeroFlux"] and attached[2]["deblend_zeroFlux"]
    assert not attached[1].getFootprint().isHeavy()
    faint = attached[2].getFootprint()
    assert faint.getBBox() == geom.Box2I(geom.Point2I(12018, 8010), geom.Extent2I(1, 1))
    assert faint.getImageArray().tolist() == [0]
    assert attached[2]["deblend_peak_instFlux"] == 0
    children["18"]["sources"][str(FAINT)]["components"] = [point(9000, 12018, [5.0, 5.0])]
    models = read_scarlet_models(write_zip(document, tmp_path / "m.scarlet"))
    assert render_blend(models.blends[PARENT])[FAINT].box.isEmpty()


def legacy_document() -> dict[str, Any]:
    """The same sources as two blends of one parent, each with a PSF, as before schema versions."""
    new = make_document()
    blends = {}
    for key, child in new["blends"][str(PARENT)]["children"].items():
        sources = {
            number: {
                "components": [],
                "factorized": [{k: v for k, v in c.items() if k not in ("version", "component_type")}
                               for c in stored["components"]],
                "peak_id": 3,
            }
            for number, stored in child["sources"].items()
        }  # fmt: skip
        blends[key] = {
            "origin": child["origin"],
            "shape": child["shape"],
            "psf_center": [12012.5, 8010.0],
            "psf_shape": new["metadata"]["psf_shape"],
            "psf": new["metadata"]["psf"],
            "bands": list(BANDS),
            "sources": sources,
        }
    return {
        "psfShape": new["metadata"]["model_psf_shape"],
        "psf": new["metadata"]["model_psf"],
        "blends": blends,
    }


@pytest.mark.parametrize("layout", ["json", "zip"])
def test_legacy_layouts(
    layout: str, model_file: Path, tmp_path: Path, exposures: dict[str, afwImage.ExposureF]
) -> None:
    """Blends of one parent share its flux within the footprint of the parent's record."""
    stored = legacy_document()
    path = tmp_path / f"legacy.{layout}"
    if layout == "json":
        path.write_text(json.dumps(stored))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("psf", json.dumps(stored["psf"]))
            archive.writestr("psf_shape", json.dumps(stored["psfShape"]))
            for key, node in stored["blends"].items():
                archive.writestr(key, json.dumps(node))
    models = read_scarlet_models(path)
    assert models.bands == BANDS
    assert models.blends[17].psf_center == (12012.5, 8010.0)
    catalog = make_catalog({PARENT: 0, 17: PARENT, 18: PARENT, BRIGHT: 17, FAINT: 18})
    current = read_scarlet_models(model_file)
    spans = SpanSet(geom.Box2I(geom.Point2I(12000, 8000), geom.Extent2I(44, 30)))
    catalog[0].setFootprint(Footprint(spans))
    attached = attach_scarlet(catalog, models, exposures, "r")
    expected = attach_scarlet(make_catalog({BRIGHT: PARENT, FAINT: PARENT}), current, exposures, "r")
    for record, wanted in zip((attached[3], attached[4]), expected, strict=True):
        got, want = record.getFootprint(), wanted.getFootprint()
        assert got.getSpans() == want.getSpans()
        assert np.array_equal(got.getImageArray(), want.getImageArray())
    # A blend of an older file without its parent stands for itself.
    alone = render_blend(models.blends[17])[BRIGHT]
    assert alone.box == geom.Box2I(geom.Point2I(12010, 8009), geom.Extent2I(5, 3))


def test_psf_of_the_exposures(
    document: dict[str, Any], exposures: dict[str, afwImage.ExposureF], tmp_path: Path
) -> None:
    """Without a stored PSF, that of the exposures is used."""
    for name in ("psf", "psf_shape", "psf_dtype"):
        del document["metadata"][name]
    document["metadata"]["array_keys"] = ["model_psf"]
    exposures["g"].setPsf(GaussianPsf(7, 11, 1.3))
    models = read_scarlet_models(write_zip(document, tmp_path / "m.scarlet"))
    with pytest.raises(ScarletModelError, match="'g' is needed for its PSF.*got none"):
        render_blend(models.blends[PARENT])
    pixels = render_blend(models.blends[PARENT], exposures=exposures)[BRIGHT].pixels
    kernel = exposures["g"].getPsf().computeKernelImage(geom.Point2D(12030, 8020)).array
    assert pixels[0].max() == pytest.approx(3000 * kernel.max(), rel=1e-4)
    assert pixels[0].sum() == pytest.approx(3000, rel=1e-4)


def test_objects_in_memory(model_file: Path) -> None:
    """The Science Pipelines' object gives the same models as the file."""
    stored = read_scarlet_model(str(model_file))
    models, reference = read_scarlet_models(stored), read_scarlet_models(model_file)
    assert models.bands == BANDS
    got, want = render_blend(models.blends[PARENT]), render_blend(reference.blends[PARENT])
    assert list(got) == list(want)
    for number, (box, pixels) in want.items():
        assert got[number].box == box and np.array_equal(got[number].pixels, pixels)
    assert read_scarlet_models(models) is models
    with pytest.raises(ScarletModelError, match=r"Got a builtins\.list; expected a path"):
        read_scarlet_models([1, 2])


def test_butler_stores_the_object(tmp_path: Path, model_file: Path) -> None:
    """A repository with the default configuration gives an object that can be read."""
    root = tmp_path / "repo"
    Butler.makeRepo(str(root))
    with Butler.from_config(str(root), writeable=True, run="run") as butler:
        skymap = {"name": "map", "hash": b"x", "tract_max": 9, "patch_nx_max": 9, "patch_ny_max": 9}
        butler.registry.insertDimensionData("skymap", skymap)
        butler.registry.insertDimensionData("tract", {"skymap": "map", "id": 3})
        butler.registry.insertDimensionData(
            "patch", {"skymap": "map", "tract": 3, "id": 7, "cell_x": 1, "cell_y": 1}
        )
        dataset_type = DatasetType(
            "deepCoadd_scarletModelData",
            ("skymap", "tract", "patch"),
            "LsstScarletModelData",
            universe=butler.dimensions,
        )
        butler.registry.registerDatasetType(dataset_type)
        data_id = butler.registry.expandDataId(skymap="map", tract=3, patch=7)
        ref = DatasetRef(dataset_type, data_id, run="run")
        butler.ingest(FileDataset(path=str(model_file), refs=[ref]), transfer="copy")
        models = read_scarlet_models(butler.get(ref))
        assert list(models.blends) == [PARENT]
        butler.collections.register("second")
        again = butler.put(butler.get(ref), "deepCoadd_scarletModelData", data_id, run="second")
        twice = read_scarlet_models(butler.get(again))
    for number, (box, pixels) in render_blend(models.blends[PARENT]).items():
        other = render_blend(twice.blends[PARENT])[number]
        assert other.box == box and np.array_equal(other.pixels, pixels)


def test_missing_models(model_file: Path, exposures: dict[str, Any], catalog: afwTable.SourceCatalog) -> None:
    models = read_scarlet_models(model_file)
    more = make_catalog({ALONE: 0, BRIGHT: PARENT, FAINT: PARENT, 99: 9})
    with pytest.raises(ScarletModelError, match=r"1 of 3 children .*\(such as 99\).*allow_missing"):
        attach_scarlet(more, models, exposures, "r")
    attached = attach_scarlet(more, models, exposures, "r", allow_missing=True)
    assert [record.getFootprint().isHeavy() for record in attached] == [False, True, True, False]
    with pytest.raises(ScarletModelError, match="0 sources are in both"):
        attach_scarlet(make_catalog({5: 0}), models, exposures, "r")
    # Some records of a patch are enough.
    part = attach_scarlet(make_catalog({FAINT: PARENT}), models, exposures, "r")
    whole = attach_scarlet(catalog, models, exposures, "r")
    assert np.array_equal(part[0].getFootprint().getImageArray(), whole[2].getFootprint().getImageArray())


def test_missing_bands_and_pixels(
    model_file: Path, exposures: dict[str, Any], catalog: afwTable.SourceCatalog
) -> None:
    models = read_scarlet_models(model_file)
    with pytest.raises(
        ScarletModelError, match="Band 'i' was asked for, but the bands of the models are g, r"
    ):
        attach_scarlet(catalog, models, exposures, "i")
    with pytest.raises(ScarletModelError, match="exposure in 'r' is needed to redistribute.*got g; pass it"):
        attach_scarlet(catalog, models, {"g": exposures["g"]}, "r")
    small = {"r": exposures["r"][geom.Box2I(geom.Point2I(12002, 8000), geom.Extent2I(40, 30))]}
    with pytest.raises(ScarletModelError, match="Blend 7 covers .* not inside the r exposure"):
        attach_scarlet(catalog, models, small, "r")


def test_truncated_zip(model_file: Path) -> None:
    content = model_file.read_bytes()
    model_file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ScarletModelError, match=f"cut short or damaged .{len(content) // 2} bytes.: copy it"):
        read_scarlet_models(model_file)


def test_damaged_member(model_file: Path) -> None:
    content = bytearray(model_file.read_bytes())
    content[200] ^= 0xFF
    model_file.write_bytes(content)
    with pytest.raises(ScarletModelError, match="CRC"):
        read_scarlet_models(model_file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_scarlet_models(tmp_path / "none.scarlet")


def _component(document: dict[str, Any]) -> dict[str, Any]:
    child = document["blends"][str(PARENT)]["children"]["17"]
    return child["sources"][str(BRIGHT)]["components"][0]


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        node = document
        *parts, last = path.split("/")
        for part in parts:
            node = node[part]
        node[last] = value

    return change


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (
        _set("version", "2.0.0"),
        r"version '2\.0\.0' of a model; this reader knows 0\.0\.0, 1\.0\.0",
    ),
    "blend version": (
        _set("blends/7/version", "1.3.0"),
        r"blend 7: schema version '1\.3\.0' of a blend.*Read it with lsst\.meas\.extensions\.scarlet",
    ),
    "blend type": (_set("blends/7/blend_type", "tree"), "type 'tree'; this reader knows 'blend' and"),
    "component type": (lambda d: _component(d).update(component_type="spline"), "type 'spline'"),
    "spectrum": (
        lambda d: _component(d).update(spectrum=[1.0]),
        r"blend 7: source 71: a component in 1 bands, but the blend has 2 \(g, r\)",
    ),
    "morph": (lambda d: _component(d).update(morph=[1.0] * 14), r"14 values of morph for the shape \(3, 5\)"),
    "no morph": (lambda d: _component(d).pop("morph"), "source 71, component 0: no 'morph' among"),
    "psf": (_set("metadata/bands", ["g"]), r"PSFs of shape \(2, 9, 9\) for the bands g"),
    "no bands": (lambda d: d["metadata"].pop("bands"), "says which bands"),
    "stranger": (lambda d: d["isolated"].update(picture={}), "member 'picture'; expected ids"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_unusable_files(name: str, document: dict[str, Any], tmp_path: Path) -> None:
    change, message = DAMAGES[name]
    damaged = copy.deepcopy(document)
    change(damaged)
    with pytest.raises(ScarletModelError, match=message):
        read_scarlet_models(write_zip(damaged, tmp_path / "m.scarlet"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"SIMPLE  =", "begins with b'SIMP'"),
        (b'{"blends": {', "not valid JSON"),
        (b'{"other": 1}', "with the keys other, without 'blends'"),
    ],
)
def test_other_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ScarletModelError, match=message):
        read_scarlet_models(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("7", "{}")
    with pytest.raises(ScarletModelError, match="neither a member 'metadata' nor the older"):
        read_scarlet_models(path)


@pytest.mark.parametrize("band", ["g", "r", "z"])
def test_pixels_are_upstreams(shared_data: Path, band: str) -> None:
    """The footprints that the Science Pipelines attached, from the same models and exposures."""
    folder = shared_data / "scarlet"
    models = read_scarlet_models(folder / "scarletModelData.scarlet")
    exposures = {band: afwImage.ExposureF(str(folder / f"exposure_{band}.fits"))}
    catalog = afwTable.SourceCatalog.readFits(str(folder / "deblendedCatalog.fits"))
    theirs = afwTable.SourceCatalog.readFits(str(folder / f"deblended_{band}.fits"))
    ours = attach_scarlet(catalog, models, exposures, band)
    n_heavy = 0
    for want, got in zip(theirs, ours, strict=True):
        expected, footprint = want.getFootprint(), got.getFootprint()
        assert footprint.isHeavy() == expected.isHeavy()
        if not expected.isHeavy():
            assert footprint.getSpans() == expected.getSpans()
            continue
        n_heavy += 1
        box = geom.Box2I(expected.getBBox())
        box.include(footprint.getBBox())
        pixels = footprint.extractImage(fill=0, bbox=box).array
        reference = expected.extractImage(fill=0, bbox=box).array
        assert np.abs(pixels - reference).max() <= 1e-4 * np.abs(reference).max()
        # Rounding may put a pixel of hardly any light in or out.
        assert abs(footprint.getArea() - expected.getArea()) <= 0.01 * expected.getArea()
        peak, wanted = footprint.getPeaks()[0], expected.getPeaks()[0]
        assert (peak.getIx(), peak.getIy()) == (wanted.getIx(), wanted.getIy())
        for name in ("deblend_scarletFlux", "deblend_peak_instFlux"):
            assert got[name] == pytest.approx(want[name], rel=1e-4, abs=1e-3)
        assert got["deblend_dataCoverage"] == pytest.approx(want["deblend_dataCoverage"], abs=1e-2)
        assert got["deblend_zeroFlux"] == want["deblend_zeroFlux"]
    assert n_heavy == 38
