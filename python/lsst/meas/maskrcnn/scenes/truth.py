# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Truth masks of single sources, what is said of them, and which of them to learn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from ..images.pixels import tight
from .config import MaskRule

FLAGS = ("empty", "small", "faint", "masked", "edge")
"""Flags of a source; ``flag_sources`` fills the column ``flag_<name>`` of each."""


def source_dtype(bands: Sequence[str]) -> np.dtype:
    """Return the columns of `Scene.sources`."""
    kinds = {"id": "i8", "is_star": "?", "group": "i4", "area": "i4"}
    kinds |= dict.fromkeys(("visible", "peak_share", "blendedness"), "f4")
    names = (
        "id x y is_star group mag redshift half_light_radius bulge_fraction axis_ratio position_angle "
        "sersic_index area visible peak_share blendedness neighbor_distance neighbor_flux_ratio"
    ).split()
    columns = [(name, kinds.get(name, "f8")) for name in names]
    columns += [(f"flag_{name}", "?") for name in FLAGS]
    columns += [(f"{kind}_{band}", "f8") for band in bands for kind in ("flux", "snr", "peak_snr")]
    return np.dtype(columns)


def empty_sources(number: int, bands: Sequence[str]) -> np.ndarray:
    """Make a table like `Scene.sources`: floats are NaN, integers 0, flags not set, ids count from 1."""
    sources = np.zeros(number, source_dtype(bands))
    for name in sources.dtype.names or ():
        if sources.dtype[name].kind == "f":
            sources[name] = np.nan
    sources["id"] = np.arange(1, number + 1)
    return sources


def source_mask(
    image: np.ndarray, rule: MaskRule, is_star: bool, sky_sigma: float, flux: float
) -> tuple[np.ndarray, int, int]:
    """Cut out the pixels of a source that a rule says are its own.

    The image, (h, w), is that of the single source in the rule's band without noise, nJy a pixel. It should
    reach beyond the edge of the scene where the source does, for the peak and the flux to be the source's.
    ``isophote`` asks for the sky noise of a pixel in that band, nJy, known for scenes without noise as well,
    ``fluxFraction`` for the flux of the source, nJy, and ``peakFraction`` for its class. ``fluxFraction``
    takes the smallest number of pixels that will do, brightest first; an image that holds less than that
    fraction of the flux is all mask, as far as it is above 0.

    Returns the mask in its own bounding box, bool, (0, 0) where no pixel qualifies, and the row and column of
    its first pixel in the image. Pieces that are not connected to the peak (clumps, arms) belong to it.
    `ValueError` is raised if noise or flux is asked for and not above 0.
    """
    if rule.kind == "peakFraction":
        return peak_fraction_mask(image, rule.star_fraction if is_star else rule.galaxy_fraction)
    if rule.kind == "isophote":
        if not sky_sigma > 0:
            raise ValueError(f"sky_sigma is {sky_sigma!r}; masks by isophote need the sky noise, above 0.")
        return tight(image > rule.isophote * sky_sigma)
    if not flux > 0:
        raise ValueError(f"flux is {flux!r}; masks by flux fraction need a flux above 0.")
    values = np.asarray(image).ravel()
    positive = np.flatnonzero(values > 0)
    # Stable, so that pixels of one value come in row order everywhere.
    brightest = positive[np.argsort(-values[positive], kind="stable")]
    held = np.cumsum(values[brightest], dtype=np.float64)
    count = int(np.searchsorted(held, rule.flux_fraction * flux)) + 1
    mask = np.zeros(values.size, bool)
    mask[brightest[:count]] = True
    return tight(mask.reshape(np.shape(image)))


def measure_neighbors(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, pixel_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest other source of each source.

    Positions are px, (N,), fluxes in any unit, (N,), the pixel scale arcsec. Returns the distance (arcsec),
    NaN where there is no other, and the neighbour's flux over the source's own, NaN where there is no other
    or the own flux is not above 0, (N,) each.
    """
    x, y, flux = (np.asarray(values, np.float64) for values in (x, y, flux))
    if not x.shape == y.shape == flux.shape or x.ndim != 1:
        raise ValueError(
            f"x, y and flux must be of one length, got shapes {x.shape}, {y.shape}, {flux.shape}."
        )
    distance = np.full(x.size, np.nan)
    ratio = np.full(x.size, np.nan)
    if x.size < 2:
        return distance, ratio
    positions = np.column_stack([x, y])
    distances, indices = cKDTree(positions).query(positions, k=2)
    # Of sources in one place, any may come first.
    column = (indices[:, 0] == np.arange(x.size)).astype(int)
    rows = np.arange(x.size)
    distance = distances[rows, column] * pixel_scale
    np.divide(flux[indices[rows, column]], flux, out=ratio, where=flux > 0)
    return distance, ratio


def flag_sources(
    sources: np.ndarray,
    masks: Sequence[np.ndarray],
    origins: np.ndarray,
    unusable: np.ndarray,
    rule: MaskRule,
    noise: bool,
) -> None:
    """Fill the flags of sources.

    ``flag_empty``
        No pixel of the mask is on the image.
    ``flag_small``
        The mask has fewer than ``rule.min_area`` pixels on the image, an
        empty one among them.
    ``flag_faint``
        The signal to noise ratio of the best band is below ``rule.min_snr``.
        Never set without noise, nor where no ratio is known.
    ``flag_masked``
        The pixel at the source's position, or more than half of its mask, is
        unusable.
    ``flag_edge``
        The image's edge cuts the mask: part of it is on the image and part
        is not. A mask that ends at the last pixel of its own accord is not
        cut. Where ``visible`` is NaN, that cannot be known, and any mask that
        touches the edge carries the flag.

    The sources, (N,), have ``x``, ``y``, ``area``, ``visible``, columns that start with ``snr_``, and the
    flags, which are changed in place. Their masks are as far as they are on the image, with (y0, x0) as
    origins, (N, 2); ``unusable`` are pixels without data, bool, (y, x).
    """
    origins = np.asarray(origins, np.int64).reshape(-1, 2)
    if not len(sources) == len(masks) == len(origins):
        raise ValueError(f"Got {len(sources)} sources, {len(masks)} masks and {len(origins)} origins.")
    height, width = unusable.shape
    empty = sources["area"] <= 0
    sources["flag_empty"] = empty
    sources["flag_small"] = sources["area"] < rule.min_area
    sources["flag_faint"] = _faint(sources, rule.min_snr) if noise else False
    sources["flag_masked"] = _masked(sources, masks, origins, unusable)
    shapes = np.array([mask.shape for mask in masks], np.int64).reshape(-1, 2)
    touches = ((origins <= 0) | (origins + shapes >= (height, width))).any(axis=1)
    visible = sources["visible"]
    sources["flag_edge"] = ~empty & ((visible < 1) | (np.isnan(visible) & touches))


def _faint(sources: np.ndarray, min_snr: float) -> np.ndarray:
    names = [name for name in sources.dtype.names or () if name.startswith("snr_")]
    if not names:
        return np.zeros(len(sources), bool)
    # fmax ignores NaN, and a comparison with NaN is false.
    return np.fmax.reduce([sources[name] for name in names]) < min_snr


def _masked(
    sources: np.ndarray, masks: Sequence[np.ndarray], origins: np.ndarray, unusable: np.ndarray
) -> np.ndarray:
    result = np.zeros(len(sources), bool)
    if not unusable.any():
        return result
    height, width = unusable.shape
    with np.errstate(invalid="ignore"):
        on_image = (np.abs(sources["x"] - 0.5 * (width - 1)) < 0.5 * width) & (
            np.abs(sources["y"] - 0.5 * (height - 1)) < 0.5 * height
        )
    columns = np.rint(sources["x"][on_image]).astype(np.int64)
    rows = np.rint(sources["y"][on_image]).astype(np.int64)
    result[on_image] = unusable[rows, columns]
    for i in np.flatnonzero(~result).tolist():
        mask, (y0, x0) = masks[i], origins[i]
        if mask.size:
            lost = np.count_nonzero(mask & unusable[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]])
            result[i] = 2 * lost > np.count_nonzero(mask)
    return result


def peak_fraction_mask(image: np.ndarray, fraction: float) -> tuple[np.ndarray, int, int]:
    """Cut out the pixels above a fraction of the peak of an image of a single source.

    Returns mask and first pixel, as `tight`.
    """
    peak = image.max() if image.size else 0.0
    if not peak > 0:
        return np.zeros((0, 0), bool), 0, 0
    return tight(image > fraction * peak)
