# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fit isolated galaxies here and with AstroPhot (Stone et al. 2023; `pip install astrophot`).

    python tests/benchmarks/fit_with_astrophot.py [--count 10] [--seed 1] [--snr 100]

GalSim draws one band with noise of 1 through a Moffat PSF of FWHM 4 px. For each galaxy: flux, half-light
radius (geometric mean of the axes, px), axis ratio and Sersic index, true and by either fit with its errors.
Below: how far the fits are from each other in units of the error of the latter, and CPU s a galaxy.
"""

from __future__ import annotations

import argparse
import time

import astrophot
import galsim
import numpy as np
import torch

from lsst.meas.maskrcnn.profiles.fit import fit_profiles
from lsst.meas.maskrcnn.profiles.model import FitSources
from lsst.meas.maskrcnn.profiles.psf import fit_psf

SIDE, NAMES = 71, ("flux", "r50", "axis ratio", "index")
PSF = galsim.Moffat(beta=3.0, fwhm=4.0)
MIXTURE = fit_psf(PSF.drawImage(nx=61, ny=61, scale=1.0, method="no_pixel").array)


def draw(truth: np.ndarray, angle: float, offset: np.ndarray) -> np.ndarray:
    flux, radius, ratio, index = truth
    galaxy = galsim.Sersic(n=index, half_light_radius=radius, flux=flux)
    source = galsim.Convolve(galaxy.shear(q=ratio, beta=angle * galsim.radians), PSF)
    return source.drawImage(nx=SIDE, ny=SIDE, scale=1.0, method="no_pixel", offset=offset).array


def fit_here(image: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and errors by `NAMES`."""
    sources = FitSources(
        position[None, ::-1], np.zeros(1, bool), np.full(1, 3.0), np.full(1, 30), np.zeros(1, int)
    )
    pixels = image[None].astype(np.float32)
    fit = fit_profiles(pixels, np.ones_like(pixels), sources, lambda y, x: [MIXTURE], 0.2)
    values, covariance = (item[0] for item in fit.shapes())
    length = np.hypot(*values[3:5])
    along = values[3:5] / length
    error = np.sqrt(along @ covariance[3:5, 3:5] @ along) * 2.0 / (1.0 + length) ** 2
    return (
        np.array([fit.flux[0, 0], values[2], (1.0 - length) / (1.0 + length), values[5]]),
        np.array([fit.flux_errors[0, 0], covariance[2, 2] ** 0.5, error, covariance[5, 5] ** 0.5]),
    )


def fit_there(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and errors by `NAMES`."""
    psf = PSF.drawImage(nx=41, ny=41, scale=1.0, method="no_pixel").array.astype(float)
    target = astrophot.TargetImage(
        data=image.astype(float),
        pixelscale=1.0,
        zeropoint=0.0,
        psf=psf / psf.sum(),
        variance=np.ones_like(image),
    )
    model = astrophot.Model(name="galaxy", model_type="sersic galaxy model", target=target, psf_convolve=True)
    model.initialize()
    astrophot.fit.LM(model, verbose=0).fit()
    found = {
        item.name: (float(item.value.max()), float(item.uncertainty.max())) for item in model.dynamic_params
    }
    (ratio, ratio_error), (major, major_error), (index, index_error) = (
        found[key] for key in ("q", "Re", "n")
    )
    values = np.array([float(model.total_flux()), major * np.sqrt(ratio), ratio, index])
    # Of the flux it has no error of its own.
    return values, np.array([np.nan, major_error * np.sqrt(ratio), ratio_error, index_error])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--snr", type=float, default=100.0, help="of a matched filter (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(arguments.seed)
    apart, cost, pulls = [], [], []
    for number in range(arguments.count):
        truth = np.array([1.0, rng.uniform(2.0, 5.0), rng.uniform(0.35, 0.9), rng.uniform(0.8, 3.0)])
        angle, offset = rng.uniform(0.0, np.pi), rng.uniform(-0.5, 0.5, 2)
        plain = draw(truth, angle, offset)
        truth[0] = arguments.snr / np.sqrt((plain**2).sum())
        image = truth[0] * plain + rng.normal(size=plain.shape)
        clock = [time.process_time()]
        ours, our_errors = fit_here(image, SIDE // 2 + offset)
        clock.append(time.process_time())
        theirs, their_errors = fit_there(image)
        clock.append(time.process_time())
        print(f"galaxy {number + 1}")
        for name, *row in zip(NAMES, truth, ours, our_errors, theirs, their_errors):
            values = "{:9.3f}   {:9.3f} +- {:.3f}   {:9.3f} +- {:.3f}".format(*row)
            print(f"  {name:10s} {values}")
        apart.append((ours - theirs) / our_errors)
        pulls.append((ours - truth) / our_errors)
        cost.append(np.diff(clock))
    for name, far, pull in zip(NAMES, np.abs(apart).T, np.array(pulls).T):
        print(
            f"{name:10s} apart: median {np.median(far):.2f}, most {far.max():.2f} errors; "
            f"here less truth: mean {pull.mean():+.2f}, most {np.abs(pull).max():.2f} errors"
        )
    here, there = np.median(cost, axis=0)
    print(f"CPU s a galaxy: {here:.3f} here, {there:.2f} with AstroPhot")


if __name__ == "__main__":
    main()
