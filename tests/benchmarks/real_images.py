# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real images: pictures with outlines, and the share of sep's detections that is found.

    python tests/benchmarks/real_images.py --model lite --out pictures
    python tests/benchmarks/real_images.py --scenes doc/lsst.meas.maskrcnn/any-band/scenes.png

The images are ``decals`` (g r z) and ``hsc_cosmos`` (g r i z y) of the test data, in ``../shared/data`` or
``$MASKRCNN_TESTDATA``. The list is of
``sep`` in r, 5 sigma, five connected pixels, default deblending. With ``--scenes`` a page
of 12 random scenes that networks for any bands learn from, and these images, is drawn instead.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import sep
from tqdm import tqdm

from lsst.meas.maskrcnn import MultibandImage, SourceList, find_sources, load_model, read_images
from lsst.meas.maskrcnn.compare.comparison import match_positions
from lsst.meas.maskrcnn.ingest.fits_images import FitsOptions
from lsst.meas.maskrcnn.report.overlay import lupton_rgb, save_overlay
from lsst.meas.maskrcnn.report.picture_book import PageField, save_page
from lsst.meas.maskrcnn.scenes.survey_mixture import draw_survey_scene, random_survey_config
from lsst.meas.maskrcnn.train.band_scenes import draw_crop, to_band_scene

DATA = Path(os.environ.get("MASKRCNN_TESTDATA", Path(__file__).resolve().parents[3] / "shared/data"))
REACH = 5.0
"""Largest distance of a detection of sep from a source, px."""


def read_fields() -> dict[str, MultibandImage]:
    """Read the images, by name."""
    files = {band: DATA / f"decals/img_{band}.fits" for band in "grz"}
    fields = {"decals": read_images(files, FitsOptions(zero_points=dict.fromkeys("grz", 22.5)))}
    with np.load(DATA / "hsc_cosmos/hsc_cosmos.npz") as data:
        bands, psf = data["filters"].tolist(), list(data["psfs"])
        fields["hsc_cosmos"] = MultibandImage(data["images"], bands, 0.168, psf=psf)
    return fields


def missed(image: MultibandImage, sources: SourceList) -> tuple[np.ndarray, np.ndarray]:
    """Positions (x, y) of sep's detections, and whether they are no source."""
    plane = np.where(image.usable, image.flux, 0.0)[image.bands.index("r")].astype(np.float32)
    size = max(64, min(image.shape) // 4)
    sky = sep.Background(plane, bw=size, bh=size)
    found = sep.extract(plane - sky, 5.0, err=sky.globalrms)
    places = np.stack([found["x"], found["y"]], axis=1)
    return places, match_positions(places, sources.peaks[:, ::-1], REACH)[0] < 0


def scenes_page(path: Path, seed: int) -> None:
    """Draw a page of training scenes and real images."""
    fields = []
    for number in tqdm(range(12), unit="scene"):
        rng = np.random.default_rng([seed, number])
        config = random_survey_config(rng)
        scene = to_band_scene(draw_survey_scene(config, rng))
        pixels = draw_crop(scene, rng, 288, plain=True)[0].numpy()[: len(scene.sigma)]
        three = np.argsort(-scene.wavelength)[np.linspace(0, len(pixels) - 1, 3).astype(int)]
        scale, width = config.pixel_scale, np.median(scene.fwhm)
        about = f"Scene: {''.join(config.bands)}, {scale:.2f} arcsec/px, FWHM {width:.1f} px"
        flux = (pixels * scene.sigma[:, None, None])[three]
        fields.append(PageField(lupton_rgb(flux, scene.sigma[three]), scale, about))
    for name, image in read_fields().items():
        red = [image.bands.index(band) for band in ("z", "r", "g")]
        noise = np.array([np.nanmedian(np.abs(np.diff(plane))) for plane in image.flux[red]]) / 0.954
        rgb = lupton_rgb(image.flux[red], noise)
        for corner in ((0, 0), (224, 200)) if name == "decals" else ((0, 0),):
            part = np.ascontiguousarray(rgb[corner[0] : corner[0] + 288, corner[1] : corner[1] + 288])
            fields.append(PageField(part, image.pixel_scale, f"Real: {name}"))
    save_page(path, fields, title="Training scenes and real images", panel=300, colors=96)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="lite")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--scenes", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=12)
    arguments = parser.parse_args()
    if arguments.scenes is not None:
        scenes_page(arguments.scenes, arguments.seed)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = load_model(arguments.model)
    for name, image in read_fields().items():
        sources = find_sources(image, model)
        places, lost = missed(image, sources)
        print(f"{name}: {len(sources)} sources, {sources.is_star.sum()} stars; of sep's {len(places)}")
        print(f"    {np.mean(~lost):.1%} are found; not: {np.round(places[lost], 1).tolist()}")
        found = sources.detections
        red = [image.bands.index(band) for band in ("z", "r", "g")]
        save_overlay(
            arguments.out / f"{name}.png",
            image.flux[red],
            found.masks,
            found.origins,
            sources.is_star,
            np.arange(1, len(sources) + 1),
            noise=sources.noise[red],
            pixel_scale=image.pixel_scale,
            title=f"{name}, model {model.metadata.name}",
        )


if __name__ == "__main__":
    main()
