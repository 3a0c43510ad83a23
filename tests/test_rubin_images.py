# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Cell coadds of lsst.images, read without a Butler."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.wcs import WCS

from lsst.afw.detection import InvalidPsfError
from lsst.afw.image import ExposureF, PhotoCalib
from lsst.daf.butler import Butler
from lsst.daf.butler.tests import addDatasetType
from lsst.geom import Box2I, Extent2I, Point2D, Point2I
from lsst.meas.maskrcnn.cli.main import main as maskrcnn
from lsst.meas.maskrcnn.images.pixels import PLANES_OF_IMAGES
from lsst.meas.maskrcnn.ingest.fits_files import BandFiles, FitsImageError, assign_bands
from lsst.meas.maskrcnn.ingest.fits_images import FitsOptions, read_field
from lsst.meas.maskrcnn.ingest.read_images import read_images
from lsst.meas.maskrcnn.ingest.repo import PatchGeometry, create_repo, register_patches
from lsst.meas.maskrcnn.network.model_file import default_model_path, load_model
from lsst.meas.maskrcnn.tasks.deblend import MaskRcnnDeblendConfig, MaskRcnnDeblendTask
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

PROJECT = Path(__file__).resolve().parent.parent

needs_images = pytest.mark.skipif(
    importlib.util.find_spec("lsst.images") is None,
    reason="lsst.images is not installed: pip install 'lsst-meas-maskrcnn[rubin]' (Python 3.12 or newer)",
)
CELL = 20


def gaussian(fwhm: float) -> np.ndarray:
    y, x = np.mgrid[-12:13, -12:13]
    kernel = np.exp(-4.0 * np.log(2.0) * (x**2 + y**2) / fwhm**2)
    return kernel / kernel.sum()


def make_coadd(
    cells: int, band: str = "r", missing: tuple[tuple[int, int], ...] = (), shift: float = 0.0
) -> Any:
    """A coadd of cells x cells, far from the origin, with a wider PSF in each next column of cells."""
    from astropy.units import nJy

    from lsst.images import Box, Image, Mask, MaskPlane, MaskSchema, SkyProjection, TractFrame
    from lsst.images.cells import CellCoadd, CellGrid, CellGridBounds, CellIJ, CellPointSpreadFunction

    side = cells * CELL
    box = Box.factory[8000 : 8000 + side, 12000 : 12000 + side]
    header = WCS(naxis=2)
    header.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    header.wcs.crval, header.wcs.crpix = [150.0 + shift, 2.2], [side / 2, side / 2]
    header.wcs.cd = np.diag([-0.2, 0.2]) / 3600.0
    projection = SkyProjection.from_fits_wcs(
        header, TractFrame(skymap="sky", tract=3, bbox=box), x0=12000, y0=8000
    )
    schema = MaskSchema(
        [MaskPlane(name, name) for name in ("NO_DATA", "SATURATED", "COSMIC_RAY", "INTERPOLATED")]
    )
    mask = Mask(0, schema=schema, bbox=box)
    mask.set("SATURATED", np.indices((side, side))[0] == 3)
    pixels = np.random.default_rng(cells).normal(0.0, 2.0, (side, side)).astype(np.float32)
    grid = CellGrid(bbox=box, cell_shape={"y": CELL, "x": CELL})
    gone = frozenset(CellIJ(i=i, j=j) for i, j in missing)
    for i, j in missing:
        cut = np.s_[i * CELL : (i + 1) * CELL, j * CELL : (j + 1) * CELL]
        pixels[cut] = np.nan
    bounds = CellGridBounds(grid=grid, bbox=box, missing=gone)
    kernels = np.array([[gaussian(3.0 + 0.4 * j) for j in range(cells)] for _ in range(cells)])
    return CellCoadd(
        Image(pixels, bbox=box, unit=nJy),
        mask=mask,
        variance=Image(np.full((side, side), 4.0, np.float32), bbox=box, unit=nJy**2),
        sky_projection=projection,
        band=band,
        psf=CellPointSpreadFunction(kernels, bounds),
    )


def with_extras(coadd: Any) -> Any:
    """The same coadd with another background that is not subtracted, and noise three times as large."""
    from lsst.images import Image
    from lsst.images.cells import CellCoadd
    from lsst.images.fields import ChebyshevField

    rng = np.random.default_rng(99)
    noise = rng.normal(0.0, 6.0, coadd.image.array.shape).astype(np.float32)
    made = CellCoadd(
        coadd.image,
        mask=coadd.mask,
        variance=coadd.variance,
        noise_realizations=[Image(noise, bbox=coadd.bbox)],
        band=coadd.band,
        psf=coadd.psf,
    )
    made.backgrounds.add(
        "wide", ChebyshevField(coadd.bbox, np.array([[20.0, 3.0], [1.0, 0.0]]), unit=coadd.unit)
    )
    made.apply_background("wide")
    made.backgrounds.add("none of it", ChebyshevField(coadd.bbox, np.array([[0.0]]), unit=coadd.unit))
    return made


def write(coadd: Any, path: Path) -> Path:
    from lsst.images.serialization import write_archive

    write_archive(coadd, path)
    return path


@needs_images
@pytest.mark.parametrize(("cells", "suffix"), [(2, "fits"), (3, "fits"), (2, "json")])
def test_pixels_and_psf_are_those_of_the_cells(cells, suffix, tmp_path):
    coadd = make_coadd(cells)
    path = write(coadd, tmp_path / f"r.{suffix}")
    image = read_images({"r": path})
    np.testing.assert_allclose(image.flux[0], coadd.image.array, atol=0.02)
    np.testing.assert_allclose(image.variance[0], 4.0, rtol=1e-3)
    assert image.saturated[0, 3].all() and image.bad[0, 3].all() and not image.saturated[0, 4].any()
    assert image.pixel_scale == pytest.approx(0.2, rel=1e-6)
    for column in range(cells):
        psf = image.psf_image(0, 5.0, column * CELL + 7.0)
        np.testing.assert_allclose(psf, gaussian(3.0 + 0.4 * column), atol=1e-6)
    ra, dec = image.to_sky([4.0, 30.0], [7.0, 21.0])
    sky = coadd.sky_projection.pixel_to_sky(x=np.array([12004.0, 12030.0]), y=np.array([8007.0, 8021.0]))
    np.testing.assert_allclose(ra, sky.ra.deg, atol=1e-9)
    np.testing.assert_allclose(dec, sky.dec.deg, atol=1e-9)


@needs_images
def test_cells_that_are_missing_have_no_data_and_the_usual_psf(tmp_path):
    image = read_images({"r": write(make_coadd(3, missing=((1, 1), (0, 2))), tmp_path / "r.fits")})
    assert not image.usable[0, 20:40, 20:40].any() and image.usable[0, :20, :40].all()
    inside, beside = image.psf_image(0, 30.0, 30.0), image.psf_image(0, 30.0, 10.0)
    assert np.isfinite(inside).all() and inside.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(beside, gaussian(3.0), atol=1e-6)


@needs_images
@pytest.mark.parametrize("suffix", ["fits", "json"])
def test_backgrounds_and_realisations_of_the_noise(suffix, tmp_path):
    plain = make_coadd(3, missing=((1, 1),))
    expected = plain.image.array.copy()
    coadd = with_extras(plain)
    path = write(coadd, tmp_path / f"r.{suffix}")
    wide = coadd.backgrounds["wide"].field.render(coadd.bbox).array
    stored = read_images({"r": path})
    np.testing.assert_allclose(stored.flux[0], expected - wide, atol=0.02)
    for name in ("none", "none of it"):
        image = read_images({"r": path}, FitsOptions(background=name))
        np.testing.assert_allclose(image.flux[0], expected, atol=0.02)
    np.testing.assert_allclose(stored.noise[0], coadd.noise_realizations[0].array, atol=0.1)
    assert read_images({"r": write(make_coadd(2), tmp_path / f"r2.{suffix}")}).noise is None


@needs_images
def test_command_chooses_the_background(tmp_path, capsys):
    plain = make_coadd(3, missing=((1, 1),))
    expected = plain.image.array.copy()
    path = write(with_extras(plain), tmp_path / "r.fits")
    command = [str(tmp_path / "repo"), "--band", f"r={path}", "--background"]
    assert maskrcnn("ingest-fits", [*command, "narrow"]) != 0
    assert "has no background 'narrow'; it has wide, none of it" in capsys.readouterr().err
    assert maskrcnn("ingest-fits", [*command, "none"]) == 0
    butler = Butler.from_config(str(tmp_path / "repo"))
    (ref,) = butler.query_datasets("deepCoadd_calexp", collections="*", find_first=False)
    np.testing.assert_allclose(butler.get(ref).image.array, expected, atol=0.02)


@needs_images
def test_cosmic_rays_of_single_visits_are_no_bad_pixels(tmp_path):
    coadd = make_coadd(2)
    column = np.indices((40, 40))[1] == 7
    coadd.mask.set("COSMIC_RAY", column)
    assert read_images({"r": write(coadd, tmp_path / "not.fits")}).bad[0, :, 7].all()
    coadd.mask.set("INTERPOLATED", column)
    image = read_images({"r": write(coadd, tmp_path / "r.fits")})
    assert image.bad[0, 3].all() and image.bad.sum() == 40


@needs_images
def test_names_of_mask_planes():
    from lsst.images import get_legacy_non_cell_coadd_mask_planes, get_legacy_visit_image_mask_planes

    old = {**get_legacy_visit_image_mask_planes(), **get_legacy_non_cell_coadd_mask_planes()}
    assert {plane.name: name for name, plane in old.items() if plane.name != name} == PLANES_OF_IMAGES


@needs_images
def test_coadds_that_do_not_fit_are_refused(tmp_path):
    r, g = write(make_coadd(2), tmp_path / "r.fits"), write(make_coadd(2, "g"), tmp_path / "g.fits")
    assert read_images({"g": g, "r": r}).bands == ("g", "r")
    with pytest.raises(FitsImageError, match="is of band r, and is given for g"):
        read_images({"g": r})
    assert assign_bands([r, g], [], fixed=False) == (["r", "g"], [])
    moved = write(make_coadd(2, "g", shift=1e-4), tmp_path / "moved.fits")
    with pytest.raises(FitsImageError, match="one pixel grid"):
        read_images({"r": r, "g": moved})
    with pytest.raises(FitsImageError, match="has no background 'wide'; it has none"):
        read_images({"r": r}, FitsOptions(background="wide"))
    cut = tmp_path / "cut.fits"
    cut.write_bytes(r.read_bytes()[:20000])
    with pytest.raises(FitsImageError, match="cut.fits"):
        read_images({"r": cut})


@needs_images
@pytest.mark.parametrize("form", ["as_shipped", "canonical"])
def test_public_coadds(form, shared_data: Path):
    path = shared_data / "cell_coadd" / f"cc-{form}.json"
    field = read_field({"r": BandFiles(path)})
    image = field.images["r"]
    assert field.shape == (12, 12) and image.psf.shape == (5, 5)
    # One of its four cells is missing.
    assert np.isnan(image.pixels).sum() == 36
    assert {"CR", "SAT", "INTRP", "EDGE", "NO_DATA"} <= set(image.planes)


@needs_images
@pytest.mark.parametrize("form", ["as_shipped", "canonical"])
def test_exposures_of_public_coadds(form, shared_data: Path):
    """What a Butler makes of them for a task that asks for ExposureF."""
    from lsst.images import BoundsError
    from lsst.images.serialization import read_archive

    coadd = read_archive(str(shared_data / "cell_coadd" / f"cc-{form}.json"))
    exposure = coadd.to_legacy()
    assert isinstance(exposure, ExposureF)
    assert exposure.getFilter().bandLabel == "r" and exposure.getPhotoCalib().getCalibrationMean() == 1.0
    assert exposure.getXY0() == Point2I(coadd.bbox.x.min, coadd.bbox.y.min)
    np.testing.assert_array_equal(exposure.image.array, coadd.image.array)
    np.testing.assert_array_equal(exposure.variance.array, coadd.variance.array)
    for old, new in (("SAT", "SATURATED"), ("INTRP", "INTERPOLATED"), ("NO_DATA", "NO_DATA")):
        flagged = (exposure.mask.array & exposure.mask.getPlaneBitMask(old)) != 0
        np.testing.assert_array_equal(flagged, coadd.mask.get(new))
    y, x = (np.ravel(axis).astype(float) for axis in np.mgrid[48:60:3, 36:48:3])
    sky = coadd.sky_projection.pixel_to_sky(x=x, y=y)
    ra, dec = exposure.getWcs().pixelToSkyArray(x, y, degrees=True)
    np.testing.assert_allclose((ra, dec), (sky.ra.deg, sky.dec.deg), atol=1e-10)
    psf, missing = exposure.getPsf(), 0
    for here in zip(x.tolist(), y.tolist()):
        try:
            expected = coadd.psf.compute_kernel_image(x=here[0], y=here[1])
        except BoundsError:
            missing += 1
            with pytest.raises(InvalidPsfError):
                psf.computeKernelImage(Point2D(*here))
            continue
        np.testing.assert_array_equal(psf.computeKernelImage(Point2D(*here)).array, expected.array)
    assert missing == 4
    with pytest.raises(InvalidPsfError):
        psf.computeKernelImage(Point2D(1000.0, 50.0))
    assert psf.computeKernelImage(psf.getAveragePosition()).array.shape == (5, 5)


def sky_with_sources(band: str) -> Any:
    """A coadd with stars and a pair that overlaps."""
    coadd = make_coadd(8, band, missing=((0, 7),))
    y, x = np.indices(coadd.image.array.shape)
    for at_y, at_x, flux in ((40, 50, 9e3), (100, 90, 5e3), (104, 97, 6e3), (130, 30, 4e3)):
        fwhm = 3.0 + 0.4 * (at_x // CELL)
        profile = np.exp(-4.0 * np.log(2.0) * ((x - at_x) ** 2 + (y - at_y) ** 2) / fwhm**2)
        coadd.image.array[:] += (flux / profile.sum() * profile).astype(np.float32)
    return coadd


def run_task(root: Path, coadds: dict[str, Any], **settings: Any) -> tuple[Any, Any, Any]:
    """Put coadds into a repository and run the task on them: its config, the Butler, the data id."""
    create_repo(root)
    wcs = coadds["g"].to_legacy().getWcs()
    box = Box2I(Point2I(12000, 8000), Extent2I(160, 160))
    patch = {"skymap": "sky", "tract": 0, "patch": 3}
    butler = Butler.from_config(str(root), run="coadds")
    register_patches(butler, "sky", [PatchGeometry(0, 3, wcs, box, (3, 0))], coadds, instrument="cam")
    addDatasetType(butler, "deep_coadd", {*patch, "band"}, "CellCoadd")
    for band, coadd in coadds.items():
        butler.put(coadd, "deep_coadd", {**patch, "band": band})
    config = MaskRcnnDeblendConfig()
    config.load(str(PROJECT / "config" / "LSSTCam.py"))
    config.model_uri = str(default_model_path())
    config.update(**settings)
    butler = SimplePipelineExecutor.prep_butler(str(root), ["coadds"], "out")
    SimplePipelineExecutor.from_task_class(MaskRcnnDeblendTask, config, butler=butler).run(
        register_dataset_types=True
    )
    return config, butler, patch


@needs_images
def test_the_task_takes_backgrounds_and_noise_of_cell_coadds(tmp_path: Path) -> None:
    coadds = {band: sky_with_sources(band) for band in "grz"}
    _, butler, patch = run_task(tmp_path / "a", coadds)
    plain = butler.get("object_maskrcnn_patch", patch)
    coadds = {band: with_extras(coadd) for band, coadd in coadds.items()}
    settings = {"background": "none", "noise_realizations": True}
    _, butler, patch = run_task(tmp_path / "b", coadds, **settings)
    found = butler.get("object_maskrcnn_patch", patch)
    assert len(found) == len(plain) >= 4
    np.testing.assert_allclose(found["r_psfFlux"], plain["r_psfFlux"], rtol=1e-3)
    # The realisation has three times the noise of the pixels.
    ratio = np.asarray(found["r_sersicFluxErr"]) / np.asarray(plain["r_sersicFluxErr"])
    np.testing.assert_allclose(ratio, 3.0, rtol=0.15)
    with pytest.raises(ValueError, match="has no background 'narrow'; it has wide, none of it"):
        run_task(tmp_path / "c", coadds, background="narrow")


@needs_images
def test_the_task_takes_cell_coadds_from_a_butler(tmp_path: Path) -> None:
    """The sources are those of an ExposureF of the same pixels, to the bit."""
    coadds = {band: sky_with_sources(band) for band in "grz"}
    config, butler, patch = run_task(tmp_path / "repo", coadds)
    found = butler.get("object_maskrcnn_patch", patch)

    wcs, box = coadds["g"].to_legacy().getWcs(), Box2I(Point2I(12000, 8000), Extent2I(160, 160))
    task = MaskRcnnDeblendTask(config=config)
    exposures = {}
    for band in coadds:
        # Pixels are rounded where they are written.
        coadd = butler.get("deep_coadd", {**patch, "band": band}, storageClass="CellCoadd")
        exposure = ExposureF(box, wcs)
        exposure.image.array[:], exposure.variance.array[:] = coadd.image.array, coadd.variance.array
        for old, new in (("SAT", "SATURATED"), ("CR", "COSMIC_RAY"), ("NO_DATA", "NO_DATA")):
            exposure.mask.array[coadd.mask.get(new)] |= exposure.mask.getPlaneBitMask(old)
        exposure.setPsf(coadd.psf.to_legacy())
        exposure.setPhotoCalib(PhotoCalib(1.0))
        exposures[band] = exposure
    ids = config.idGenerator.apply(butler.registry.expandDataId(patch))
    model = load_model()
    made = task.run(exposures=exposures, model=model, idGenerator=ids).objectTable
    assert len(found) >= 4
    for name in made.colnames:
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(made[name]), err_msg=name)
    star = np.hypot(np.asarray(found["x"]) - 12050, np.asarray(found["y"]) - 8040).argmin()
    assert found["r_psfFlux"][star] == pytest.approx(9e3, rel=0.03)


@pytest.mark.skipif(importlib.util.find_spec("lsst.images") is not None, reason="lsst.images is installed")
def test_what_to_install_is_said(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("{}")
    with pytest.raises(FitsImageError, match="pip install 'lsst-meas-maskrcnn"):
        read_images({"r": path})
