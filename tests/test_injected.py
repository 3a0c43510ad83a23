# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Coadds that source_injection has put sources into: the truth of these, and how many are found."""

from __future__ import annotations

import logging
from pathlib import Path

import galsim
import numpy as np
import pytest
from astropy.table import Table

import lsst.geom as geom
from lsst.afw.geom import SkyWcs, makeCdMatrix, makeSkyWcs
from lsst.afw.image import ExposureF, FilterLabel, PhotoCalib
from lsst.daf.butler import DatasetType
from lsst.meas.maskrcnn.catalogs.injected import injected_truth
from lsst.meas.maskrcnn.catalogs.truth import read_truth
from lsst.meas.maskrcnn.ingest.exposures import gaussian_psf
from lsst.meas.maskrcnn.ingest.ingest_model import ingest_model
from lsst.meas.maskrcnn.ingest.repo import PatchGeometry, create_repo, register_patches
from lsst.meas.maskrcnn.network.model_file import default_model_path
from lsst.pipe.base import Pipeline
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

PROJECT = Path(__file__).resolve().parent.parent
BANDS = ("g", "r", "z")
XY0 = geom.Point2I(5000, 7000)
BOX = geom.Box2I(XY0, geom.Extent2I(180, 130))
NOISE, FWHM = 20.0, 4.0


def make_wcs() -> SkyWcs:
    """Turned and mirrored, so that angles on the sky are not those of the pixels."""
    return makeSkyWcs(
        geom.Point2D(5090.0, 7060.0),
        geom.SpherePoint(150.0, 2.0, geom.degrees),
        makeCdMatrix(0.2 * geom.arcseconds, 30.0 * geom.degrees, True),
    )


def make_catalogs() -> dict[str, Table]:
    """What CoaddInjectTask writes: a star, three galaxies, and rows that were not injected."""
    x = np.array([5040.3, 5120.0, 5090.6, 5150.0, 5100.0, 5020.0])
    y = np.array([7030.8, 7040.2, 7100.1, 7095.0, 7060.0, 7100.0])
    ra, dec = make_wcs().pixelToSkyArray(x, y, degrees=True)
    tables = {}
    for band, color in zip(BANDS, (0.5, 0.0, -0.5)):
        tables[band] = Table(
            {
                "injection_id": np.arange(10, 16),
                "injection_flag": [0, 0, 0, 0, 8, 0],
                "injection_draw_size": np.full(6, 50),
                "ra": ra,
                "dec": dec,
                "source_type": ["DeltaFunction", "Sersic", "Exponential", "Sersic", "Sersic", "Trail"],
                "mag": np.array([20.5, 20.5, 20.6, 20.2, 20.0, 20.0]) + color,
                "n": np.ma.masked_invalid([np.nan, 1.0, np.nan, 4.0, 1.0, np.nan]),
                "half_light_radius": np.ma.masked_invalid([np.nan, 0.7, 0.6, 0.8, 0.5, np.nan]),
                "q": np.ma.masked_invalid([np.nan, 0.4, np.nan, 0.7, 0.5, np.nan]),
                "beta": np.ma.masked_invalid([np.nan, 20.0, np.nan, 80.0, 0.0, np.nan]),
            }
        )
    return tables


def make_exposures(tables: dict[str, Table], noise: float = NOISE) -> dict[str, ExposureF]:
    """Coadds in which the rows without flags are, each band with a zero point of its own."""
    rng = np.random.default_rng(4)
    exposures = {}
    wcs = make_wcs()
    for number, (band, table) in enumerate(tables.items()):
        image = galsim.Image(BOX.getWidth(), BOX.getHeight(), xmin=XY0.getX(), ymin=XY0.getY(), dtype=float)
        for row in table[table["injection_flag"] == 0]:
            place = wcs.skyToPixel(geom.SpherePoint(row["ra"], row["dec"], geom.degrees))
            flux = 10.0 ** (0.4 * (31.4 - row["mag"]))
            psf = galsim.Gaussian(fwhm=FWHM * 0.2)
            if row["source_type"] == "DeltaFunction":
                profile = psf.withFlux(flux)
            elif row["source_type"] == "Trail":
                continue
            else:
                index = 1.0 if row["n"] is np.ma.masked else float(row["n"])
                galaxy = galsim.Sersic(index, half_light_radius=row["half_light_radius"], flux=flux)
                if row["q"] is not np.ma.masked:
                    galaxy = galaxy.shear(q=row["q"], beta=row["beta"] * galsim.degrees)
                profile = galsim.Convolve(galaxy, psf)
            matrix = wcs.linearizePixelToSky(place, geom.arcseconds).getLinear().getMatrix()
            profile.drawImage(
                image,
                wcs=galsim.JacobianWCS(*matrix.ravel()),
                center=galsim.PositionD(place.getX(), place.getY()),
                method="no_pixel",
                add_to_image=True,
            )
        exposure = ExposureF(BOX, wcs)
        scale = 1.0 + number
        exposure.image.array[:] = (image.array + rng.normal(0.0, noise, image.array.shape)) / scale
        exposure.variance.array[:] = (NOISE / scale) ** 2
        exposure.setPhotoCalib(PhotoCalib(scale))
        exposure.setFilter(FilterLabel.fromBand(band))
        exposure.setPsf(gaussian_psf(FWHM))
        exposures[band] = exposure
    return exposures


def test_truth_is_what_was_injected(caplog: pytest.LogCaptureFixture) -> None:
    tables = make_catalogs()
    # Rows of two bands are one source by place, whatever their numbers and order.
    tables["g"] = tables["g"][::-1]
    tables["g"]["injection_id"] += 100
    exposures = make_exposures(tables, noise=0.0)
    with caplog.at_level(logging.WARNING):
        catalog = injected_truth(tables, {band: exposures[band] for band in reversed(BANDS)})
    assert "1 injected sources in g are of the types Stamp and Trail" in caplog.text
    truth = read_truth(catalog, BOX)
    assert truth.bands == ("z", "r", "g")
    assert truth.ids.tolist() == [10, 11, 12, 13]
    assert truth.is_star.tolist() == [True, False, False, False]
    for band in BANDS:
        expected = 10.0 ** (0.4 * (31.4 - np.asarray(make_catalogs()[band]["mag"][:4])))
        np.testing.assert_allclose(truth.flux[band], expected)
    np.testing.assert_allclose(truth.x, [40.3, 120.0, 90.6, 150.0], atol=1e-3)
    np.testing.assert_allclose(truth.y, [30.8, 40.2, 100.1, 95.0], atol=1e-3)
    assert not truth.flagged.any()
    np.testing.assert_allclose(truth.columns["sersic_index"], [np.nan, 1.0, np.nan, 4.0])
    np.testing.assert_allclose(truth.columns["axis_ratio"], [np.nan, 0.4, np.nan, 0.7])
    # Each is far from the others: its mask is what is above a share of its peak in z.
    image = exposures["z"].image.array
    for mask, (y0, x0), share in zip(truth.masks, truth.origins, (0.005, 0.08, 0.08, 0.08)):
        own = image[y0 - 3 : y0 + mask.shape[0] + 3, x0 - 3 : x0 + mask.shape[1] + 3]
        expected = own > share * own[3:-3, 3:-3].max()
        assert np.mean(np.pad(mask, 3) != expected) < 0.01
    # Signal to noise ratio of a matched filter, of the star: flux / (noise * sqrt(4 pi sigma^2)).
    width = np.sqrt(4 * np.pi) * FWHM / 2.3548
    assert truth.snr["r"][0] == pytest.approx(truth.flux["r"][0] / (NOISE * width), rel=0.01)
    np.testing.assert_allclose(truth.columns["blendedness"], 0.0, atol=0.02)


def test_components_in_one_place_are_one_source() -> None:
    """A bulge and a disc are two rows; light that was there before counts as a neighbour."""
    tables = {"r": make_catalogs()["r"][[1, 3]]}
    for name in ("ra", "dec"):
        tables["r"][name][1] = tables["r"][name][0]
    exposures = make_exposures(tables, noise=0.0)
    exposures["r"].image.array[35:50, 110:130] += 100.0
    (record,) = injected_truth(tables, exposures)
    assert record["truth_r_flux"] == pytest.approx(sum(10.0 ** (0.4 * (31.4 - tables["r"]["mag"]))))
    assert record["truth_blendedness"] > 0.1


def test_bad_catalogs() -> None:
    tables = make_catalogs()
    exposures = make_exposures(tables)
    with pytest.raises(ValueError, match=r"no band has both a coadd .*'z'.* and a catalogue"):
        injected_truth({"i": tables["r"]}, exposures)
    tables["r"].remove_column("mag")
    with pytest.raises(ValueError, match=r"in r lacks the columns \['mag'\]"):
        injected_truth(tables, exposures)
    empty = {band: table[:0] for band, table in make_catalogs().items()}
    assert len(injected_truth(empty, exposures)) == 0


def test_pipeline(tmp_path: Path) -> None:
    """Run on a repository of one patch: three of four injected sources are found, one is below the noise."""
    injected = make_catalogs()
    exposures = make_exposures(injected)
    for band, exposure in exposures.items():
        # A source of the sky's own, which is in no catalogue.
        y, x = np.indices(exposure.image.array.shape)
        sky = 400.0 * np.exp(-0.5 * ((x - 20) ** 2 + (y - 65) ** 2) / 1.7**2)
        exposure.image.array[:] += sky / exposure.getPhotoCalib().getCalibrationMean()
        # Said to be injected, but not there: missed.
        injected[band]["injection_flag"][4] = 0
    butler = create_repo(tmp_path / "repo")
    place = {"skymap": "sky", "tract": 0, "patch": 0}
    register_patches(butler, "sky", [PatchGeometry(0, 0, make_wcs(), BOX, (0, 0))], BANDS, instrument="cam")
    butler.collections.register("injected")
    for name, datasets in (("", exposures), ("_catalog", injected)):
        name = f"injected_deep_coadd_predetection{name}"
        storage = "ArrowAstropy" if name.endswith("catalog") else "ExposureF"
        kind = DatasetType(name, (*place, "band"), storage, universe=butler.dimensions)
        butler.registry.registerDatasetType(kind)
        for band, dataset in datasets.items():
            butler.put(dataset, kind, {**place, "band": band}, run="injected")
    ingest_model(butler, default_model_path())
    pipeline = Pipeline.from_uri(str(PROJECT / "pipelines" / "MaskRcnnInjected.yaml"))
    for option, value in (("doMeasure", False), ("reference_band", "r")):
        pipeline.addConfigOverride("maskRcnnDeblend", option, value)
    for option, value in (("n_samples", 20), ("gallery_bands", ["z", "r", "g"])):
        pipeline.addConfigOverride("maskRcnnEvaluate", option, value)
    inputs = ["injected", "models/maskRcnn"]
    writable = SimplePipelineExecutor.prep_butler(str(tmp_path / "repo"), inputs, "u/me/injected")
    quanta = SimplePipelineExecutor.from_pipeline(pipeline, butler=writable).run(register_dataset_types=True)
    assert len(quanta) == 2
    metrics = writable.get("injected_maskrcnn_evaluation_metrics", skymap="sky")
    assert metrics.get("completeness").n == 5
    assert metrics.get("completeness").value == pytest.approx(0.8)
    # The sky's own source is not a false detection, and nothing is said of purity.
    assert not metrics.select(name="purity")
    assert not [key for key in metrics.tables if key.startswith("purity")]
    catalog = writable.get("injected_object_maskrcnn", skymap="sky", tract=0, patch=0)
    assert len(catalog) >= 5
    matches = writable.get("injected_maskrcnn_evaluation_matches", skymap="sky")
    ratio = matches["flux_ratio"][np.isfinite(matches["flux_ratio"])]
    assert len(ratio) == 4
    assert np.abs(ratio - 1.0).max() < 0.3
