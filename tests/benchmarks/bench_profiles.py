# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How well the joint fit measures sources that GalSim drew, and what it costs.

    python tests/benchmarks/bench_profiles.py [--count 400] [--seed 1] [--snr 20 50 200] [--figure FILE]
    python tests/benchmarks/bench_profiles.py --scenes hsc-wide lsst-1yr decam-120s hsc-deep [--bright]

Sources alone in cells of 60 px with noise of 1, in three bands, S/N of a matched filter in all of
them; a Moffat PSF of FWHM 4 px. For each kind: median error of the flux (%), mean and width of the pulls
of flux, colour, half-light radius, ellipticity and position, the part that converged, and CPU ms a source.
``--figure`` draws the brightest blends of a scene, deblended by the default network. With ``--scenes``:
median error of the flux in r, that in units of its own error, and the part that is more than 20 % off, of the
galaxies that the default network finds in three scenes of 1000 x 1000 px of each preset, more than 4 FWHM
from any other truth of S/N 3 in r. ``--bright``: scenes with more bright stars and large galaxies, and
galaxies in the halo of a source that is ten times as bright or more, 0.02 times the square of the distance
(px), with no other of a tenth of their own flux within 10 px.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import galsim
import numpy as np
import torch
from bench_bright import with_bright
from scipy.spatial import cKDTree

from lsst.meas.maskrcnn import find_sources, load_model
from lsst.meas.maskrcnn.catalogs.exposures import to_multiband_image
from lsst.meas.maskrcnn.ingest.exposures import scene_to_exposures
from lsst.meas.maskrcnn.profiles.fit import fit_profiles
from lsst.meas.maskrcnn.profiles.model import N_SHAPE, FitSources
from lsst.meas.maskrcnn.profiles.psf import PsfMixture, fit_psf
from lsst.meas.maskrcnn.report.model_gallery import plot_models
from lsst.meas.maskrcnn.scenes.presets import preset_config
from lsst.meas.maskrcnn.scenes.simulate import simulate_scene

CELL, COLUMNS = 60, 10
COLORS = np.array([1.0, 2.0, 1.5])
ETA = 0.4, -0.3
KINDS = {
    "star": None,
    "exponential, r50 0.5 FWHM": (1.0, 2.0),
    "exponential, r50 0.75 FWHM": (1.0, 3.0),
    "de Vaucouleurs, r50 0.5 FWHM": (4.0, 2.0),
}


def measure(name: str, snr: float, count: int, seed: int, mixtures: list[PsfMixture]) -> str:
    rng = np.random.default_rng([seed, 3])
    shape = KINDS[name]
    psf = galsim.Moffat(beta=3.0, fwhm=4.0).shear(g1=0.03, g2=-0.02)
    source = psf
    if shape is not None:
        galaxy = galsim.Sersic(n=shape[0], half_light_radius=shape[1]).shear(eta1=ETA[0], eta2=ETA[1])
        source = galsim.Convolve(galaxy, psf)

    def draw(y: float, x: float) -> np.ndarray:
        return source.drawImage(nx=59, ny=59, scale=1.0, method="no_pixel", offset=(x, y)).array

    flux = snr / np.sqrt((draw(0.0, 0.0) ** 2).sum() * (COLORS**2).sum())
    images = rng.normal(size=(3, -(-count // COLUMNS) * CELL, COLUMNS * CELL))
    places = []
    for number in range(count):
        y0, x0 = CELL * np.array(divmod(number, COLUMNS))
        y, x = rng.uniform(-0.5, 0.5, 2)
        images[:, y0 : y0 + 59, x0 : x0 + 59] += flux * COLORS[:, None, None] * draw(y, x)
        places.append((y0 + 29.0 + y, x0 + 29.0 + x))
    truth, images = np.array(places), images.astype(np.float32)
    sources = FitSources(
        truth + 0.2 * rng.normal(size=truth.shape),
        np.full(count, shape is None),
        np.full(count, 2.5),
        np.full(count, 16 if shape is None or shape[1] < 3.0 else 20),
        np.arange(count),
    )
    clock = time.process_time()
    fit = fit_profiles(images, np.ones_like(images), sources, lambda y, x: mixtures, 0.2)
    cost = 1e3 * (time.process_time() - clock) / count
    values, covariance = fit.shapes()
    errors = np.sqrt(np.einsum("nii->ni", covariance))
    pulls = {"flux": (fit.flux - flux * COLORS) / fit.flux_errors}
    pulls["position"] = (values[:, :2] - truth[:, ::-1]) / errors[:, :2]
    variances = fit.covariance[:, N_SHAPE:, N_SHAPE:]
    relative = variances / (fit.flux[:, :, None] * fit.flux[:, None])
    bound = np.sqrt(relative[:, 0, 0] + relative[:, 1, 1] - 2.0 * relative[:, 0, 1])
    with np.errstate(invalid="ignore"):
        pulls["colour"] = (np.log(fit.flux[:, 0] / fit.flux[:, 1]) - np.log(COLORS[0] / COLORS[1])) / bound
    if shape is not None:
        length = np.hypot(*ETA)
        pulls["r50"] = (values[:, 2] - shape[1]) / errors[:, 2]
        pulls["e"] = (values[:, 3:5] - np.tanh(0.5 * length) * np.array(ETA) / length) / errors[:, 3:5]
    told = ", ".join(f"{key} {value.mean():+.2f} {value.std():.2f}" for key, value in pulls.items())
    bias = 100.0 * (np.median(fit.flux / (flux * COLORS)) - 1.0)
    converged = 100.0 * fit.converged.mean()
    return f"{name}, S/N {snr:g}: flux {bias:+.2f} %; {told}; {converged:.0f} % converged; {cost:.1f} ms"


def draw_blends(path: str, seed: int) -> None:
    scene = simulate_scene(preset_config("hsc-wide", shape=(420, 420)), np.random.default_rng(seed))
    exposures = scene_to_exposures(scene)
    image = to_multiband_image({band: exposures[band] for band in "grz"})
    sources = find_sources(image, load_model())
    truth, known = scene.sources, {}
    for index, (y, x) in enumerate(sources.peaks):
        apart = np.hypot(truth["x"] - x, truth["y"] - y)
        apart[truth["flux_r"] < 0.2 * sources.fluxes[index, 1]] = np.inf
        if apart.min() < 2.5:
            known[index] = float(truth["flux_r"][apart.argmin()])
    plot_models(sources, "r", 5, known).savefig(path, dpi=130)


def alone(truth: np.ndarray, fwhm: float) -> np.ndarray:
    places = np.column_stack([truth["y"], truth["x"]])
    return np.asarray(cKDTree(places).query(places, k=2)[0][:, 1] > 4.0 * fwhm)


def in_a_halo(truth: np.ndarray) -> np.ndarray:
    distance = np.hypot(*(truth[name][:, None] - truth[name] for name in ("y", "x")))
    np.fill_diagonal(distance, np.inf)
    ratio = truth["flux_r"] / truth["flux_r"][:, None]
    halo = np.where(ratio >= 10.0, ratio / distance**2, 0.0).max(axis=1)
    return np.asarray((halo > 0.02) & ~((distance < 10.0) & (ratio > 0.1)).any(axis=1))


def measure_scenes(preset: str, seed: int, bright: bool) -> str:
    model, config = load_model(), preset_config(preset, shape=(1000, 1000))
    if bright:
        config = replace(config, population=with_bright(config.population))
    parts = []
    for number in range(3):
        scene = simulate_scene(config, np.random.default_rng([seed, number]))
        exposures, truth = scene_to_exposures(scene), scene.sources[scene.sources["snr_r"] > 3.0]
        found = find_sources(to_multiband_image(exposures), model)
        apart, nearest = cKDTree(np.column_stack([truth["y"], truth["x"]])).query(found.peaks)
        chosen = in_a_halo(truth) if bright else alone(truth, found.image.fwhm)
        fit, band = found.models, found.image.bands.index("r")
        galaxy = (apart < 1.5) & (chosen & ~truth["is_star"])[nearest] & ~found.is_model_flagged[:, band]
        true = truth["flux_r"][nearest]
        error = fit.flux[:, band] - true
        parts.append(
            np.column_stack([truth["snr_r"][nearest], error / true, error / fit.flux_errors[:, band]])[galaxy]
        )
    snr, relative, pull = np.concatenate(parts).T
    row = f"{preset:12s}"
    for low, high in ((10.0, 20.0), (20.0, 50.0), (50.0, 1000.0)):
        chosen = (snr >= low) & (snr < high)
        bias, pulls = np.median(relative[chosen]), np.median(pull[chosen])
        far = np.mean(np.abs(relative[chosen]) > 0.2)
        row += (
            f"  S/N {low:g} to {high:g}: {100.0 * bias:+.1f} %, {pulls:+.2f}, {100.0 * far:.0f} %, "
            f"{np.count_nonzero(chosen)}"
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=400, help="sources of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--snr", type=float, nargs="+", default=[20.0, 50.0, 200.0, 2000.0])
    parser.add_argument("--figure", help="file of the figure of blends")
    parser.add_argument("--scenes", metavar="PRESET", nargs="+", help="measure on scenes instead")
    parser.add_argument("--bright", action="store_true", help="near bright sources, see above")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for preset in arguments.scenes or ():
        print(measure_scenes(preset, arguments.seed, arguments.bright), flush=True)
    if arguments.scenes:
        return
    if arguments.figure:
        draw_blends(arguments.figure, 5)
    stamp = galsim.Moffat(beta=3.0, fwhm=4.0).shear(g1=0.03, g2=-0.02)
    mixture = fit_psf(stamp.drawImage(nx=61, ny=61, scale=1.0, method="no_pixel").array)
    print(f"Flux of a star with the mixture for the PSF: {100.0 * mixture.flux_error:+.3f} %")
    for name in KINDS:
        for snr in arguments.snr:
            print(measure(name, snr, arguments.count, arguments.seed, [mixture] * 3), flush=True)


if __name__ == "__main__":
    main()
