# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a GPU makes of a patch: tiles a second, the part of the transfer, and all of `find_sources`.

    python tests/benchmarks/bench_gpu.py [--device cuda] [--size 3400] [--sources 4600] [--together 1 4 16]

Needs no LSST package and no other data: the patch has Gaussian sources in three bands. For each number of
tiles that the network takes together: tiles/s, s a patch for the forward pass (with masks and seams), and
the part of it in which tiles are packed and copied to the device; then s a patch of `find_sources`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from lsst.meas.maskrcnn import MultibandImage, find_sources, load_model
from lsst.meas.maskrcnn.deblend.deblend import DeblendSettings
from lsst.meas.maskrcnn.images.tiles import make_tiles
from lsst.meas.maskrcnn.network.any_band import AnyBandNetwork
from lsst.meas.maskrcnn.network.any_band_detect import find_in_bands, normalize_bands
from lsst.meas.maskrcnn.network.band_layers import pack_bands
from lsst.meas.maskrcnn.network.runtime import prepared_network

TILE, OVERLAP = 512, 128
WAVELENGTH = (480.0, 620.0, 880.0)


def make_patch(size: int, count: int, seed: int = 1) -> MultibandImage:
    """Gaussian sources from below the noise to a S/N of some hundreds."""
    rng = np.random.default_rng(seed)
    flux = rng.normal(size=(3, size, size)).astype(np.float32)
    y, x = np.mgrid[-20:21, -20:21]
    places = rng.integers(20, size - 20, (count, 2))
    for (row, column), total, width in zip(
        places, 40.0 * rng.pareto(1.0, count).clip(0.0, 300.0) + 30.0, rng.uniform(1.7, 3.5, count)
    ):
        stamp = np.exp(-0.5 * (x**2 + y**2) / width**2)
        window = np.s_[:, row - 20 : row + 21, column - 20 : column + 21]
        flux[window] += (total / stamp.sum() * stamp).astype(np.float32)
    radius = 0.5 * (x**2 + y**2) / 1.7**2
    psf = np.exp(-radius) / np.exp(-radius).sum()
    return MultibandImage(flux, ["g", "r", "z"], 0.2, np.ones_like(flux), psf=[psf] * 3)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=3400, help="side of the patch, px (default: %(default)s)")
    parser.add_argument("--sources", type=int, default=4600, help="in the patch (default: %(default)s)")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 4, 16])
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    print(f"{device} ({name}), patch of {arguments.size} px with {arguments.sources} sources")
    patch, model = make_patch(arguments.size, arguments.sources), load_model()
    network = prepared_network(model, str(device))
    assert isinstance(network, AnyBandNetwork)
    bands = normalize_bands(
        patch.flux, patch.usable, patch.psf_fwhm, WAVELENGTH, patch.variance, calibrated=True, pixel_scale=0.2
    )
    tiles = make_tiles(*patch.shape, TILE, OVERLAP, network.spec.divisor)
    for together in arguments.together:
        find_in_bands(
            network, replace(bands, pixels=bands.pixels[:, :TILE, :TILE], valid=bands.valid[:, :TILE, :TILE])
        )
        began = clock(device)
        found = find_in_bands(network, bands, tile_size=TILE, tile_overlap=OVERLAP, together=together)
        forward = clock(device) - began
        began = clock(device)
        for tile in tiles:
            window = np.s_[:, tile.y0 : tile.y1, tile.x0 : tile.x1]
            planes = bands.fwhm, bands.noise, bands.wavelength, bands.wings, bands.field
            pack_bands(bands.pixels[window], bands.valid[window], *planes).to(device)
        transfer = clock(device) - began
        print(
            f"{together:3d} tiles together: {len(tiles) / forward:6.1f} tiles/s, {forward:6.2f} s a patch, "
            f"{transfer / forward:.0%} of it the transfer, {len(found.scores)} sources",
            flush=True,
        )
    settings = DeblendSettings()
    settings = replace(settings, detection=replace(settings.detection, device=str(device)))
    began = clock(device)
    sources = find_sources(patch, model, settings)
    print(f"find_sources with models: {clock(device) - began:.1f} s a patch, {len(sources)} sources")
    print(", ".join(f"{part} {seconds:.1f} s" for part, seconds in sources.timings.items()))


if __name__ == "__main__":
    main()
