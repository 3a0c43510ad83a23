# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sources that source_injection has put into an image, each drawn alone, and their truth."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import galsim
import numpy as np

from .config import MaskRule
from .light import Stamp
from .simulate import draw_sources, measure_blending
from .truth import flag_sources, measure_neighbors

_SHEAR = ("g1", "g2", "g", "e1", "e2", "e", "eta1", "eta2", "eta", "q", "beta", "shear")


class Component(NamedTuple):
    """A row of the catalogue of a band."""

    band: int
    row: Mapping[str, Any]
    flux: float


@dataclass(frozen=True)
class InjectedScene:
    """Injected sources in the form of a scene, without the images that they are in."""

    bands: tuple[str, ...]  # bands in the order of the arrays
    # What the sources are in, and their own light, nJy, (band, y, x).
    images: np.ndarray
    light: np.ndarray
    sources: np.ndarray  # the columns of `Scene.sources`; what is not known is NaN, (N,)
    # As of `Scene`.
    masks: list[np.ndarray]
    origins: np.ndarray
    config: Any
    models: None = None


@dataclass(frozen=True)
class _Painter:
    """Draws sources as source_injection does, but without noise."""

    components: Sequence[Sequence[Component]]
    sources: np.ndarray
    flux: np.ndarray
    sky_sigma: np.ndarray
    psf: Callable[[int, float, float], np.ndarray | None]
    jacobian: Callable[[float, float], np.ndarray]
    largest: int

    def draw(self, i: int) -> Stamp:
        x, y = float(self.sources["x"][i]), float(self.sources["y"][i])
        wcs = galsim.JacobianWCS(*np.asarray(self.jacobian(y, x)).ravel())
        profiles = []
        for band, row, flux in self.components[i]:
            pixels = self.psf(band, y, x)
            if pixels is not None:
                psf = galsim.InterpolatedImage(galsim.Image(np.array(pixels, np.float64)), wcs=wcs)
                profiles.append((band, galsim.Convolve(_profile(row).withFlux(flux), psf)))
        sizes = [profile.getGoodImageSize(wcs.minLinearScale()) for _, profile in profiles]
        half = min(max(sizes, default=0), self.largest) // 2
        x0, y0, center = round(x) - half, round(y) - half, galsim.PositionD(x, y)
        pixels = np.zeros((self.flux.shape[1], 2 * half + 1, 2 * half + 1))
        for band, profile in profiles:
            image = galsim.Image(pixels[band], xmin=x0, ymin=y0)
            # The PSF of a coadd holds the pixel.
            profile.drawImage(image, wcs=wcs, method="no_pixel", add_to_image=True, center=center)
        return Stamp(pixels, y0, x0)


def draw_injected(
    components: Sequence[Sequence[Component]],
    sources: np.ndarray,
    images: np.ndarray,
    unusable: np.ndarray,
    sky_sigma: np.ndarray,
    rule: MaskRule,
    pixel_scale: float,
    psf: Callable[[int, float, float], np.ndarray | None],
    jacobian: Callable[[float, float], np.ndarray],
) -> InjectedScene:
    """Draw N injected sources one by one, and work out their truth.

    Of each source there are its rows in the catalogues of the bands, and the columns of `Scene.sources`;
    positions, classes and fluxes are given, masks and what follows from them are filled in. Images hold the
    sources, nJy, (band, y, x); ``unusable`` pixels, bool, (y, x), are without data; ``sky_sigma``, (band,),
    is the noise of an empty pixel, nJy. The band of the rule for masks is one of the sources'. ``psf`` gives
    the image of the PSF of a band (number) at (y, x), ``jacobian`` the derivatives of sky (arcsec) by pixels
    at (y, x), (2, 2).

    Blendedness is with all light of the images, that of sources that were there before included.
    """
    bands = tuple(name[5:] for name in sources.dtype.names or () if name.startswith("flux_"))
    flux = np.array([sources[f"flux_{band}"] for band in bands]).T
    config = types.SimpleNamespace(shape=unusable.shape, bands=bands, mask_rule=rule, keep_models=False)
    painter = _Painter(components, sources, flux, sky_sigma, psf, jacobian, 2 * max(unusable.shape))
    light, stamps, masks, origins = draw_sources(config, painter, sources)
    measure_blending(sources, stamps, np.nan_to_num(images[bands.index(rule.band)]), 0)
    sources["neighbor_distance"], sources["neighbor_flux_ratio"] = measure_neighbors(
        sources["x"], sources["y"], sources[f"flux_{rule.band}"], pixel_scale
    )
    flag_sources(sources, masks, origins, unusable, rule, noise=True)
    return InjectedScene(bands, images, light, sources, masks, origins, config)


def _profile(row: Mapping[str, Any]) -> galsim.GSObject:
    """Make the profile of a row: a class of GalSim, what it takes by name, and a shear (beta in degrees)."""
    kind = getattr(galsim, str(row["source_type"]))
    single = [name for names in getattr(kind, "_single_params", ()) for name in names]
    names = {*getattr(kind, "_req_params", ()), *getattr(kind, "_opt_params", ()), *single}
    profile = kind(**{name: row[name] for name in names & set(row)})
    shear = {name: row[name] for name in _SHEAR if name in row}
    if "beta" in shear:
        shear["beta"] = shear["beta"] * galsim.degrees
    return profile.shear(**shear) if shear else profile
