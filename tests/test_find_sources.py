# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The engine: its input, its output, and the same sources by every door; the BTK's is in test_btk."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as parquet
import pytest
from astropy.table import QTable
from astropy.wcs import WCS
from matplotlib.figure import Figure
from scipy.special import erf

from lsst.afw.image import ExposureF
from lsst.afw.table import SourceCatalog
from lsst.meas.maskrcnn import MultibandImage, find_sources, load_model, read_images
from lsst.meas.maskrcnn.catalogs.exposures import to_multiband_image
from lsst.meas.maskrcnn.catalogs.model_images import cut_blends, draw_models, model_fluxes
from lsst.meas.maskrcnn.cli import demo
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.deblend import object_table
from lsst.meas.maskrcnn.deblend.any_band import detect_any_band, image_wavelengths
from lsst.meas.maskrcnn.deblend.deblend import DeblendSettings
from lsst.meas.maskrcnn.deblend.image import gaussian_fwhm
from lsst.meas.maskrcnn.deblend.sources import SourceList
from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
from lsst.meas.maskrcnn.metrics.cutouts import BlendCutout
from lsst.meas.maskrcnn.network.any_band import AnyBandNetwork
from lsst.meas.maskrcnn.network.inference import DetectionSettings
from lsst.meas.maskrcnn.network.model_file import MaskRcnnModel
from lsst.meas.maskrcnn.profiles.model import add_stamp
from lsst.meas.maskrcnn.report.model_gallery import plot_field, plot_models
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import Scene, simulate_scene
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendConfig, MaskRcnnDeblendTask

BANDS = ("g", "r", "z")
FLOAT32 = DeblendSettings(detection=DetectionSettings(precision="float32"))


@pytest.fixture(scope="module")
def model() -> MaskRcnnModel:
    return load_model()


@pytest.fixture(scope="module")
def scene() -> Scene:
    return simulate_scene(preset_config("hsc-wide", shape=(180, 210)), np.random.default_rng(2))


@pytest.fixture(scope="module")
def exposures(scene: Scene) -> dict[str, ExposureF]:
    made = scene_to_exposures(scene)
    return {band: made[band] for band in BANDS}


@pytest.fixture(scope="module")
def image(exposures: dict[str, ExposureF]) -> MultibandImage:
    return to_multiband_image(exposures)


@pytest.fixture(scope="module")
def sources(image: MultibandImage, model: MaskRcnnModel) -> SourceList:
    found = find_sources(image, model, FLOAT32)
    assert len(found) > 10
    assert 0 < found.is_star.sum() < len(found)
    assert 0 < found.is_isolated.sum() < len(found)
    return found


# --- doors


def check_catalog(catalog: SourceCatalog, bands: dict[str, SourceCatalog], sources: SourceList) -> None:
    """Sources of a catalogue are those of the engine, to the bit."""
    rows = np.flatnonzero(np.asarray(catalog["deblend_nChild"]) == 0)
    assert len(rows) == len(sources)
    # The catalogue's order is that of parents and children.
    key = np.asarray(catalog["maskrcnn_score"])[rows]
    rows = rows[np.argsort(-key, kind="stable")]
    np.testing.assert_array_equal(np.asarray(catalog["maskrcnn_score"])[rows], sources.scores)
    np.testing.assert_array_equal(np.asarray(catalog["maskrcnn_pStar"])[rows], sources.p_star)
    np.testing.assert_array_equal(np.asarray(catalog["maskrcnn_area"])[rows], sources.measured.area)
    for number, band in enumerate(sources.image.bands):
        pixels = [bands[band][int(row)].getFootprint().getImageArray() for row in rows]
        for own, share in zip(pixels, sources.shares, strict=True):
            expected = share.pixels(sources.image.flux)[number][share.footprint]
            np.testing.assert_array_equal(own, expected)


def check_models(
    catalog: SourceCatalog,
    bands: dict[str, SourceCatalog],
    exposures: dict[str, ExposureF],
    sources: SourceList,
) -> None:
    """Models that are drawn from a catalogue are those that were fitted."""
    flux = model_fluxes(bands, exposures)
    stamps = draw_models(catalog, range(len(catalog)), flux, exposures)
    assert len(stamps) == len(sources)
    drawn = np.zeros_like(sources.image.flux)
    corner = exposures["r"].getXY0()
    for y0, x0, pixels in stamps.values():
        add_stamp(drawn, y0 - corner.getY(), x0 - corner.getX(), pixels, 1.0)
    fitted = sources.image.flux - sources.residual(model=True)
    # Windows in the catalogue are larger, and faint stars have the PSF in place of its Gaussians.
    difference = np.abs(drawn - fitted) / sources.noise[:, None, None]
    assert np.quantile(difference, 0.99) < 0.2 and difference.max() < 0.05 * (
        fitted.max() / sources.noise.min()
    )
    three = {band: exposures[band] for band in "zrg"}
    cutouts = cut_blends(catalog, bands, three, 3, dict.fromkeys(range(len(catalog)), 7.0))
    counts = [len(cutout.children) for cutout in cutouts]
    assert counts == sorted(counts, reverse=True) and counts[0] > 1
    for cutout in cutouts:
        assert cutout.residual is not None and 0.7 < np.nanstd(cutout.residual) < 1.5
        assert cutout.model is not None and cutout.model.shape == cutout.image.shape
        brightest, *others = [pixels[1].sum() for _, pixels in cutout.children]
        assert all(brightest >= other for other in others)
        assert all("true 7" in label for label, _ in cutout.children)
    assert len(plot_field(cutouts, "r", {"g": flux[:, 0], "r": flux[:, 1]}, flux[:, 0], flux[:, 1]).axes) > 10


@pytest.mark.parametrize("missing", ["z", "rz"])
def test_the_demo_draws_bands_with_models(
    missing: str,
    exposures: dict[str, ExposureF],
    model: MaskRcnnModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the PSF of some bands is not known, pictures and the list of the brightest are of the others."""
    given = {band: exposure.clone() for band, exposure in exposures.items()}
    for band in missing:
        given[band].setPsf(None)
    config = MaskRcnnDeblendConfig()
    config.doMeasure = False
    found = MaskRcnnDeblendTask(config=config).run(exposures=given, model=model)
    is_source = found.catalog["deblend_nChild"] == 0
    catalog, *of_bands = (
        one[is_source].copy(deep=True) for one in (found.catalog, *found.bandCatalogs.values())
    )
    bands = dict(zip(found.bandCatalogs, of_bands))
    drawn: list[list[BlendCutout]] = []

    def draw(
        blends: list[BlendCutout], band: str, magnitudes: dict[str, np.ndarray], *others: object
    ) -> Figure:
        assert set(missing).isdisjoint({band, *magnitudes})
        drawn.append(blends)
        return Figure()

    monkeypatch.setattr(demo, "plot_field", draw)
    field, image = demo.Field("name", "a field", given), to_multiband_image(given)
    demo._draw_blends(tmp_path, field, image, catalog, bands, found.objectTable)
    assert (tmp_path / "blends.png").is_file()
    assert drawn[0] and all(len(cutout.children) > 1 for cutout in drawn[0])
    middle = "r" if missing == "z" else "g"
    magnitudes = np.asarray(found.objectTable[f"{middle}_sersicMag"])
    brightest = np.nanmin(magnitudes[~np.asarray(found.objectTable["flag_notConverged"])])
    first = demo._brightest(found.objectTable, BANDS)[3].split()
    assert first[5 + BANDS.index(middle)] == f"{brightest:.2f}"


def test_the_task_and_files_give_what_the_engine_gives(
    exposures: dict[str, ExposureF], model: MaskRcnnModel, sources: SourceList, tmp_path: Path
) -> None:
    config = MaskRcnnDeblendConfig()
    config.doMeasure = False
    config.detection.precision = "float32"
    found = MaskRcnnDeblendTask(config=config).run(exposures=exposures, model=model)
    check_catalog(found.catalog, found.bandCatalogs, sources)
    check_models(found.catalog, found.bandCatalogs, exposures, sources)

    files = {}
    for band, exposure in exposures.items():
        files[band] = tmp_path / f"{band}.fits"
        exposure.writeFits(str(files[band]))
    again = find_sources(read_images(files), model, FLOAT32)
    np.testing.assert_array_equal(again.scores, sources.scores)
    np.testing.assert_array_equal(again.fluxes, sources.fluxes)

    status = maskrcnn(
        "demo",
        [
            *("--fits", *map(str, files.values())),
            *("--out", str(tmp_path / "demo")),
            *("--config", "maskRcnnDeblend:detection.precision=float32"),
        ],
    )
    assert status == 0
    catalog = SourceCatalog.readFits(str(tmp_path / "demo" / "catalog.fits"))
    leaf = np.asarray(catalog["deblend_nChild"]) == 0
    # Another number of threads adds up in another order.
    np.testing.assert_allclose(
        np.sort(np.asarray(catalog["maskrcnn_score"])[leaf]), np.sort(sources.scores), rtol=1e-5
    )


def test_models_are_drawn(sources: SourceList) -> None:
    assert sources.models is not None
    figure = plot_models(sources, "r", 2, {0: 5.0})
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == ["image", "models", "residual"] and any("±" in title for title in titles)
    drawn = sources.image.flux - sources.residual(model=True)
    children = sum(sources.child_image(index, "r", model=True) for index in range(len(sources)))
    np.testing.assert_allclose(drawn[1], children, atol=1e-3 * children.max())
    with pytest.raises(ValueError, match="there are no models"):
        plot_models(dataclasses.replace(sources, models=None))


def test_plain_fits_needs_the_core_alone(tmp_path: Path) -> None:
    """No LSST package and none of the extras."""
    code = """
import sys
extras = "galsim surveycodex matplotlib contourpy tqdm lightning_fabric pyarrow photutils sep skimage pandas"
packages = "daf afw pex geom utils pipe resources sphgeom obs skymap ctrl images meas.base meas.algorithms"
for name in [*extras.split(), *("lsst." + part for part in packages.split())]:
    sys.modules[name] = None
import numpy as np
from astropy.io import fits
from lsst.meas.maskrcnn import find_sources, load_model, read_images
y, x = np.mgrid[:64, :80]
light = 500 * np.exp(-((y - 30) ** 2 + (x - 40) ** 2) / (2 * 1.7**2))
for band in "grz":
    noise = np.random.default_rng(ord(band)).normal(size=light.shape)
    header = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CD1_1": -4.7e-5, "CD2_2": 4.7e-5, "MAGZERO": 27.0}
    fits.PrimaryHDU(light + noise, fits.Header(header)).writeto(band + ".fits")
image = read_images({band: band + ".fits" for band in "grz"})
table = find_sources(image, load_model()).to_table()
table.write("table.ecsv")
print(len(table), round(float(table["x"][0].value)), round(float(table["y"][0].value)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "40", "30"]


def test_the_order_of_the_bands_does_not_matter(
    image: MultibandImage, model: MaskRcnnModel, sources: SourceList
) -> None:
    turned = find_sources(image.select(["z", "g", "r"]), model, FLOAT32)
    np.testing.assert_allclose(turned.scores, sources.scores, rtol=1e-5)
    np.testing.assert_allclose(turned.fluxes[:, [1, 2, 0]], sources.fluxes, rtol=1e-4, atol=1e-2)


def test_no_source_below_the_threshold(image: MultibandImage, model: MaskRcnnModel) -> None:
    """And a lower threshold finds those of a higher one again."""
    previous: set[float] = set()
    for threshold in (0.95, 0.8, 0.5, 0.2):
        settings = DeblendSettings(
            detection=DetectionSettings(score_threshold=threshold, precision="float32")
        )
        scores = find_sources(image, model, settings).scores
        assert (scores >= threshold).all()
        found = {score for score in scores.tolist() if score >= 0.95}
        assert previous <= found
        previous = found


def test_a_crowded_tile_is_flagged(image: MultibandImage, model: MaskRcnnModel, sources: SourceList) -> None:
    """Where the network has no room for more, others may be missing."""
    assert not sources.detections.flag_limited.any()
    network = cast(AnyBandNetwork, model.build())
    network.spec = network.spec.model_copy(update={"proposals": 8})
    found, _ = detect_any_band(network, image, image_wavelengths(image), FLOAT32.detection)
    assert 0 < len(found) <= 8 and found.flag_limited.all()


def test_nothing_to_see(model: MaskRcnnModel) -> None:
    for flux in (np.full((3, 40, 50), np.nan), np.zeros((3, 40, 50))):
        found = find_sources(MultibandImage(flux, "grz", 0.168), model)
        assert len(found) == 0
        assert found.n_valid_pixels == (0 if np.isnan(flux).any() else 2000)
        table = found.to_table()
        assert len(table) == 0 and "r_sersicFlux" in table.colnames
        assert not found.segmentation().any()


def test_a_constant_band_hides_nothing(image: MultibandImage, model: MaskRcnnModel) -> None:
    """It has no noise; the others still have."""
    constant = MultibandImage(
        np.concatenate([image.flux, np.zeros_like(image.flux[:1])]),
        [*image.bands, "i"],
        image.pixel_scale,
        psf_fwhm=[*image.psf_fwhm, image.psf_fwhm[0]],
    )
    without = MultibandImage(image.flux, image.bands, image.pixel_scale, psf_fwhm=image.psf_fwhm)
    assert len(find_sources(constant, model)) >= 0.7 * len(find_sources(without, model)) > 5


def test_pixels_without_a_variance_hold_no_data(
    image: MultibandImage, model: MaskRcnnModel, sources: SourceList
) -> None:
    """As in training; where a band has data there are some."""
    y, x = np.rint(sources.peaks[0]).astype(int)
    variance = image.variance.copy()
    variance[:, y, x] = np.nan, 0.0, -1.0
    variance[0, y, x + 1] = np.nan
    changed = MultibandImage(image.flux, image.bands, image.pixel_scale, variance, psf_fwhm=image.psf_fwhm)
    found = find_sources(changed, model, FLOAT32)
    assert found.n_valid_pixels == image.flux[0].size - 1
    nearest = np.argmin(np.hypot(*(found.peaks - (y, x)).T))
    assert found.measured.n_invalid[nearest] == 1
    assert found.to_table()["flag_invalid"][nearest]


# --- image


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flux": np.zeros((5, 8))}, r"flux has shape \(5, 8\), wanted \(band, y, x\)"),
        ({"bands": ["g"]}, r"bands are \['g'\] for flux of shape \(2, 5, 8\)"),
        ({"bands": ["g", "g"]}, "no name twice"),
        ({"pixel_scale": 0.0}, "pixel_scale is 0.0 arcsec"),
        ({"pixel_scale": np.nan}, "pixel_scale is nan arcsec"),
        ({"variance": np.zeros((5, 8))}, r"variance has shape \(5, 8\), but flux has \(2, 5, 8\)"),
        ({"variance": np.zeros((2, 5, 8))}, "the variance of band g is nowhere above 0"),
        ({"usable": np.zeros((5, 9))}, r"usable has shape \(5, 9\), wanted \(2, 5, 8\) or \(5, 8\)"),
        ({"psf": [np.ones((3, 3))]}, "psf has 1 images for 2 bands"),
        ({"psf_fwhm": [4.0]}, r"psf_fwhm has shape \(1,\), wanted one width for 2 bands"),
    ],
)
def test_images_are_checked_at_once(changes: dict[str, Any], message: str) -> None:
    fields = {"flux": np.zeros((2, 5, 8)), "bands": ["g", "r"], "pixel_scale": 0.2} | changes
    with pytest.raises(ValueError, match=message):
        MultibandImage(**fields)


def test_width_of_a_psf() -> None:
    """That of a Gaussian is its own, wherever its centre is within the pixel."""
    y, x = np.mgrid[-15:16, -15:16]
    for sigma, ratio, shift in ((1.2, 1.0, 0.0), (2.0, 0.8, 0.3), (3.0, 1.0, 0.0)):
        psf = np.exp(-0.5 * ((y - shift) ** 2 * ratio + (x**2) / ratio) / sigma**2)
        assert gaussian_fwhm(psf) == pytest.approx(2.3548 * sigma, rel=2e-3)
    assert np.isnan(gaussian_fwhm(np.zeros((9, 9))))
    # The light of PSFs that are hardly sampled is in few pixels, whose moments vanish.
    edges = np.arange(-8, 10) - 0.5
    for width in (0.8, 1.2, 1.5):
        light = np.diff(erf(edges * np.sqrt(4.0 * np.log(2.0)) / width))
        assert gaussian_fwhm(np.outer(light, light)) == pytest.approx(np.hypot(width, 0.8), rel=0.2)
    image = MultibandImage(np.zeros((2, 5, 8)), "gr", 0.2, psf=[np.exp(-(y**2 + x**2) / 8.0)] * 2)
    np.testing.assert_allclose(image.psf_fwhm, 2.3548 * 2.0, rtol=2e-3)
    assert np.isnan(MultibandImage(np.zeros((2, 5, 8)), "gr", 0.2).fwhm)


def test_bands_are_selected_whole() -> None:
    flux = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    image = MultibandImage(
        flux, "grz", 0.2, flux + 1.0, bad=flux > 30.0, psf=lambda band, y, x: np.full((3, 3), band + 1.0)
    )
    turned = image.select(["z", "g"])
    np.testing.assert_array_equal(turned.flux, flux[[2, 0]])
    np.testing.assert_array_equal(turned.variance, flux[[2, 0]] + 1.0)
    np.testing.assert_array_equal(turned.bad, flux[[2, 0]] > 30.0)
    assert [turned.psf_image(band, 0.0, 0.0)[0, 0] for band in (0, 1)] == [3.0, 1.0]
    with pytest.raises(ValueError, match="no band y; the image has g, r, z"):
        image.select(["y"])


def test_pixels_can_be_forgotten(sources: SourceList) -> None:
    light = sources.without_pixels()
    assert light.image.shape == sources.image.shape and light.image.bands == sources.image.bands
    assert np.isnan(light.image.flux).all() and np.isfinite(sources.image.flux).any()
    assert light.image.variance is None and not np.any(light.image.usable)
    np.testing.assert_array_equal(light.image.to_sky([3.0], [4.0]), sources.image.to_sky([3.0], [4.0]))
    assert light.require_models().flux is sources.require_models().flux
    assert not light.require_models().windows and sources.require_models().windows


# --- sources


def test_children_add_up_to_the_image(sources: SourceList) -> None:
    image = sources.image
    total = sources.residual()
    for index in range(len(sources)):
        for number in range(3):
            total[number] += sources.child_image(index, number)
    np.testing.assert_allclose(total, image.flux, rtol=1e-4, atol=1e-3)
    # Inside the parents nothing is left, outside nothing is taken.
    inside = np.zeros(image.shape, dtype=bool)
    for parent in sources.parents:
        inside[parent.box] |= parent.pixels
    np.testing.assert_array_equal(sources.residual()[:, ~inside], image.flux[:, ~inside])
    assert np.abs(sources.residual()[:, inside]).max() < 1e-3


def test_neighbors_are_removed(sources: SourceList) -> None:
    index = int(np.flatnonzero(~sources.is_isolated)[0])
    alone = sources.neighbors_removed(index)
    np.testing.assert_allclose(
        alone - sources.residual(), np.stack([sources.child_image(index, band) for band in BANDS]), atol=1e-3
    )
    with pytest.raises(ValueError, match="no band 'y'"):
        sources.child_image(index, "y")


def test_labels_are_rows(sources: SourceList) -> None:
    labels = sources.segmentation()
    union = np.zeros(sources.image.shape, dtype=bool)
    for index, (mask, (y0, x0)) in enumerate(
        zip(sources.detections.masks, sources.detections.origins.tolist(), strict=True)
    ):
        window = slice(y0, y0 + mask.shape[0]), slice(x0, x0 + mask.shape[1])
        union[window] |= mask
        own = labels[window] == index + 1
        assert not (own & ~mask).any()
        if sources.is_isolated[index]:
            assert (own == mask).all()
    np.testing.assert_array_equal(labels > 0, union)


def test_table(sources: SourceList, scene: Scene, tmp_path: Path) -> None:
    """Units, and positions and fluxes near those that were drawn; it can be written and read."""
    table = sources.to_table()
    assert all(table[name].info.description for name in table.colnames)
    assert str(table["r_sersicFlux"].unit) == "nJy" and str(table["coord_ra"].unit) == "deg"
    truth = scene.sources
    distance = np.hypot(table["x"].value[:, None] - truth["x"], table["y"].value[:, None] - truth["y"])
    assert np.median(distance.min(axis=1)) < 0.5
    magnitude, flux = table["r_sersicMag"].value, table["r_sersicFlux"].value
    np.testing.assert_allclose(magnitude[flux > 0], 31.4 - 2.5 * np.log10(flux[flux > 0]), rtol=1e-6)
    table.write(tmp_path / "sources.parquet")
    stored = parquet.read_table(tmp_path / "sources.parquet")
    assert stored.column_names == table.colnames
    np.testing.assert_array_equal(stored["r_sersicFlux"].to_numpy(), flux)
    table.write(tmp_path / "sources.ecsv")
    assert QTable.read(tmp_path / "sources.ecsv")["r_sersicFlux"].unit == table["r_sersicFlux"].unit


OF_SOURCES = """
objectId parentObjectId coord_ra coord_dec x y sersic_reff_major sersic_reff_majorErr sersic_reff_minor
sersic_reff_minorErr sersic_theta sersic_index sersic_indexErr sersic_chi2_reduced class pStar score pBlend
detect_isPrimary detect_isIsolated flag flag_edge flag_bad flag_saturated flag_invalid flag_limited
flag_notConverged
""".split()
OF_BANDS = ("sersicFlux", "sersicFluxErr", "sersicFlux_flag", "sersicMag", "sersicMagErr")


@pytest.mark.parametrize(("bands", "reference"), [("z", "z"), ("gri", "r"), ("ugizy", "i"), ("ugrizy", "r")])
def test_columns_of_the_table(model: MaskRcnnModel, bands: str, reference: str) -> None:
    """Those for people, about 40 of three bands, in one order."""
    table = find_sources(MultibandImage(np.zeros((len(bands), 40, 50)), bands, 0.168), model).to_table()
    of_bands = [f"{band}_{name}" for band in bands for name in OF_BANDS]
    place = of_bands.index(f"{reference}_sersicMagErr") + 1
    of_bands.insert(place, f"{reference}_deblend_blendedness")
    assert table.colnames == [*OF_SOURCES, *of_bands]
    assert len(table.colnames) == 28 + 5 * len(bands)


def test_columns_of_the_whole_table(sources: SourceList) -> None:
    """They have the values of the short one; the flux of pixels takes its place where there is no model."""
    whole, short = object_table.make_object_table(sources), sources.to_table()
    assert (len(whole.colnames), len(short.colnames)) == (57, 43)
    assert short.colnames == [name for name in whole.colnames if name in short.colnames]
    for name in short.colnames:
        np.testing.assert_array_equal(short[name], whole[name], err_msg=name)
        assert short[name].info.description == whole[name].info.description
    fit = sources.require_models()
    flux = fit.flux.copy()
    flux[:, 2] = np.nan
    blind = dataclasses.replace(sources, models=dataclasses.replace(fit, flux=flux)).to_table()
    assert set(blind.colnames) - set(short.colnames) == {"z_deblendedFlux", "z_deblendedFluxErr"}
    np.testing.assert_array_equal(blind["z_deblendedFlux"].value, sources.fluxes[:, 2])
    np.testing.assert_array_equal(blind["z_deblendedFluxErr"].value, sources.flux_errors[:, 2])


def test_table_of_bands_without_a_zero_point(sources: SourceList, tmp_path: Path) -> None:
    """No AB magnitudes and no nJy there; the other bands stay as they are."""
    known = sources.to_table()
    image = dataclasses.replace(sources.image, calibrated=[True, False, True])
    counts = dataclasses.replace(sources, image=image)
    table = counts.to_table()
    assert table.colnames == known.colnames
    assert {
        str(object_table.make_object_table(counts)[f"r_deblendedFlux{end}"].unit) for end in ("", "Err")
    } == {"ct"}
    for name in ("r_sersicFlux", "r_sersicFluxErr"):
        assert table[name].unit == "ct"
        np.testing.assert_array_equal(table[name].value, known[name].value)
    assert str(table["r_sersicMag"].unit) == "mag(ct)"
    np.testing.assert_allclose(table["r_sersicMag"].value, known["r_sersicMag"].value - 31.4)
    assert "Instrumental" in table["r_sersicMag"].info.description
    assert "zero point is not known" in table["r_sersicFlux"].info.description
    for name in table.colnames:
        words = f"{table[name].unit} {table[name].info.description}"
        assert not (name.startswith("r_") and ("AB" in words or "nJy" in words)), name
        if not name.startswith("r_"):
            assert table[name].info.description == known[name].info.description
            assert table[name].unit == known[name].unit
    table.write(tmp_path / "sources.parquet")
    assert b"mag(ct)" in parquet.read_table(tmp_path / "sources.parquet").schema.metadata[b"table_meta_yaml"]
    table.write(tmp_path / "sources.ecsv")
    assert QTable.read(tmp_path / "sources.ecsv")["r_sersicMag"].unit == table["r_sersicMag"].unit
    assert any("(counts)" in text.get_text() for text in plot_models(counts, "r", 2).texts)
    magnitudes = {band: table[f"{band}_sersicMag"].value for band in "gr"}
    for instrumental, labels in (
        ((), {"r (AB magnitude of the model)", "g \N{MINUS SIGN} r (mag)"}),
        (("r",), {"r (instrumental magnitude of the model)", "g \N{MINUS SIGN} r (instrumental mag)"}),
    ):
        figure = plot_field([], "r", magnitudes, table["pStar"].value, instrumental=instrumental)
        assert labels <= {axis.get_xlabel() for axis in figure.axes}


def test_pages_name_columns_of_the_table(sources: SourceList, project_dir: Path) -> None:
    columns, short = (
        set(table.colnames) for table in (object_table.make_object_table(sources), sources.to_table())
    )
    pages = project_dir / "doc" / "lsst.meas.maskrcnn"
    for page in ("user-guide", "columns", "profiles"):
        text = (pages / f"{page}.rst").read_text(encoding="utf-8")
        # Forced fluxes are in the Butler's alone.
        named = {f"r_{name}" for name in re.findall(r"``<band>_(\w+)", text)} - {"r_psfFlux"}
        for sentence in re.findall(r"``SourceList.to_table`` has the same as(.*?);", text, re.S):
            assert set(re.findall(r"``(\w+)``", sentence.replace("<band>", "r"))) <= short
        assert named and named <= columns, (page, named - columns)


def test_ellipses_on_the_sky() -> None:
    """By hand, on pixels whose x points west; errors by small steps."""
    axis = np.radians(30.0)
    values = np.zeros((2, 6))
    values[0] = 0.0, 0.0, 3.0, 0.5 * np.cos(2 * axis), 0.5 * np.sin(2 * axis), 1.5
    values[1, 5] = np.nan
    west = np.array([[-0.2, 0.0], [0.0, 0.2]])
    spread = np.diag([1.0, 1.0, 0.1, 0.02, 0.03, 0.4]) ** 2

    def ellipse(changed: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(divide="ignore", invalid="ignore"):
            covariance = np.stack([spread, np.nan * spread])
            columns = object_table._shapes(changed, covariance, np.stack([west, west]))
            return {name: column for name, column, _, _ in columns}

    found = ellipse(values)
    # (1 - q) / (1 + q) = 0.5 is an axis ratio of 1/3.
    np.testing.assert_allclose(found["sersic_reff_major"], [0.2 * 3.0 * np.sqrt(3.0), 0.0])
    np.testing.assert_allclose(found["sersic_reff_minor"], [0.2 * 3.0 / np.sqrt(3.0), 0.0], atol=1e-7)
    np.testing.assert_allclose(found["sersic_theta"], [-30.0, np.nan])
    np.testing.assert_allclose(found["sersic_indexErr"], [0.4, np.nan])
    for name in ("sersic_reff_major", "sersic_reff_minor"):
        variance = 0.0
        for column, sigma in ((2, 0.1), (3, 0.02), (4, 0.03)):
            step = values.copy()
            step[0, column] += 1e-6
            variance += (sigma * (ellipse(step)[name][0] - found[name][0]) / 1e-6) ** 2
        np.testing.assert_allclose(found[f"{name}Err"], [np.sqrt(variance), np.nan], rtol=1e-4)


def test_any_wcs(image: MultibandImage) -> None:
    """One of astropy and that of an exposure agree."""
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.cdelt = [96.0, 76.0], [-0.168 / 3600, 0.168 / 3600]
    wcs.wcs.crval, wcs.wcs.ctype = [150.0, 2.0], ["RA---TAN", "DEC--TAN"]
    plain = MultibandImage(np.zeros((1, 150, 190)), "r", 0.168, wcs=wcs)
    ra, dec = plain.to_sky([95.0], [75.0])
    np.testing.assert_allclose([ra[0], dec[0]], [150.0, 2.0], atol=1e-9)
    x = np.array([0.0, 100.0])
    first, second = image.to_sky(x, x)
    assert np.hypot((first[0] - first[1]) * np.cos(np.radians(second[0])), second[0] - second[1]) * 3600 == (
        pytest.approx(np.hypot(100, 100) * image.pixel_scale, rel=1e-4)
    )
    assert np.isnan(MultibandImage(np.zeros((1, 5, 5)), "r", 0.168).to_sky(x, x)).all()
