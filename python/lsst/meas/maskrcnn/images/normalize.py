# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

r"""Normalisation of multi-band images for the network; numpy only.

`lupton_normalize` follows Lupton et al. 2004 (PASP 116, 133).  With
:math:`x_b = f_b - m_b` the flux of band *b* above its sky level and
:math:`I = \langle x_b \rangle` the mean over the bands,

.. math::

    \mathrm{out}_b = \frac{x_b}{I}\,\frac{1}{Q}\,
        \operatorname{asinh}\!\left(\frac{Q I}{s}\right) \Big/ C ,
    \qquad
    C = \frac{1}{Q} \operatorname{asinh}\!\left(\frac{Q F}{s}\right),

where *s* is the stretch and *F* the flux that is drawn as 1 (the "scale").
The factor of :math:`x_b` is an even, smooth function of *I*, with the limit
1/(s C) at I = 0, and is the same in all bands, so that the ratio of two bands
is that of their fluxes.

The defaults are Q = 10, s = 200 and F = 20 in units of the sky noise of *I*:
linear up to s/Q = F = 20 sigma, logarithmic above.  A grey pixel of 1, 5, 20,
100, 1e3, 1e4, 1e5 sigma becomes 0.057, 0.28, 1, 2.6, 5.2, 7.8, 10.4.  Sky
noise stays visible (six per cent of unity in *I*), the cores of ordinary
sources are of order 1, and stars near saturation reach 5 to 10.

All statistics commute with a change of zero point (a positive factor) and of
the sky level (a constant), and the pixels are offset and divided by the
stretch in float64 before they are rounded, so that the result does not depend
on either to the precision that the float32 input itself holds.
"""

from __future__ import annotations

__all__ = [
    "NormalizedImage",
    "default_settings",
    "lupton_normalize",
    "normalize",
    "settings_keywords",
    "sky_noise",
    "zscore_normalize",
]

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .background import Background, clip_sorted, constant_background, mesh_background

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

# Statistics are taken on a regular grid of about this many pixels: the error
# of the median is then 0.2 per cent of the noise, and sorting stays cheap.
_SAMPLE_SIZE = 500_000
# Pixels per block of rows: the float64 scratch of a block stays in cache.
_BLOCK_SIZE = 131_072
# No flux in nJy is that large; beyond it float32 sums over bands overflow.
_FLUX_LIMIT = 1e30
# asinh(u)/u = 1 - u^2/6 + 3 u^4/40 - ... rounds to 1 in float32 below this.
_SMALL_ARGUMENT = 2e-4
# A noise level under this fraction of the sky level is rounding of float32.
_ROUNDING = 2.0**-22
# Settings that describe where the pixels come from, not what is done to them.
_TASK_SETTINGS = frozenset({"badMaskPlanes"})
_NOT_SETTINGS = frozenset({"flux", "variance", "valid", "overwrite"})


@dataclass(frozen=True)
class NormalizedImage:
    """A normalised image and the numbers that it was made with.

    Attributes
    ----------
    image : `numpy.ndarray`
        Float32 (band, y, x); zero where not valid, finite everywhere.
    valid : `numpy.ndarray`
        Bool (y, x); True where all the bands hold a usable value.
    minimum : `numpy.ndarray`
        Float64 (band,), nJy: the level subtracted from each band (the median
        of the mesh for a local background, the mean for the z-score).
    noise : `numpy.ndarray`
        Float64 (band,), nJy: sky noise of each band (for the z-score, the
        clipped standard deviation).
    noise_source : `tuple` [`str`]
        Where each noise comes from: "variance", "pixels" or "fallback".
    stretch : `float`
        Lupton: the stretch s in nJy.  Z-score: softening of the asinh, in
        standard deviations; NaN without asinh.
    scale : `float`
        Lupton: the number C by which the stretched image was divided.
        Z-score: 1.
    """

    image: npt.NDArray[np.float32]
    valid: BoolArray
    minimum: npt.NDArray[np.float64]
    noise: npt.NDArray[np.float64]
    noise_source: tuple[str, ...]
    stretch: float
    scale: float


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")


def _positive(name: str, value: float, least: float = 0.0) -> None:
    if not (math.isfinite(value) and value > least):
        raise ValueError(f"{name} is {value!r}; it must be a finite number above {least:g}.")


def _check_clipping(clip_sigma: float, clip_iterations: int) -> None:
    _positive("clip_sigma", clip_sigma)
    if clip_iterations < 0:
        raise ValueError(f"clip_iterations is {clip_iterations!r}; it must be 0 (no clipping) or more.")


def _percentile_range(name: str, value: float, unit: str) -> None:
    if unit == "percentile" and value > 100:
        raise ValueError(f"{name} is {value!r} with unit 'percentile'; it must be at most 100.")


def _blocks(height: int, width: int) -> list[slice]:
    rows = max(1, _BLOCK_SIZE // max(1, width))
    return [slice(y, min(y + rows, height)) for y in range(0, height, rows)]


def _check_input(
    flux: FloatArray, variance: FloatArray | None, valid: BoolArray | None, overwrite: bool
) -> tuple[npt.NDArray[np.float32], BoolArray]:
    """Check the shapes; give the output array and the mask of usable pixels.

    The mask is True where ``valid`` is and all bands are finite.
    """
    if flux.ndim != 3 or flux.shape[0] == 0:
        raise ValueError(f"flux has shape {flux.shape}; (band, y, x) with at least one band is needed.")
    if not np.issubdtype(flux.dtype, np.floating):
        raise ValueError(f"flux has dtype {flux.dtype}; a floating-point array in nJy is needed.")
    if variance is not None and variance.shape != flux.shape:
        raise ValueError(f"variance has shape {variance.shape}, but flux has {flux.shape}.")
    if overwrite and flux.dtype != np.dtype(np.float32):
        raise ValueError(f"overwrite needs a native float32 array, but flux is {flux.dtype.str}.")
    good = np.ones(flux.shape[1:], dtype=bool)
    if valid is not None:
        if valid.shape not in (flux.shape, flux.shape[1:]):
            raise ValueError(
                f"valid has shape {valid.shape}; {flux.shape[1:]} or {flux.shape} is needed for flux of "
                f"shape {flux.shape}."
            )
        if valid.ndim == 3:
            np.logical_and.reduce(valid, axis=0, out=good)
        else:
            good[...] = valid
    with np.errstate(invalid="ignore"):
        for rows in _blocks(*flux.shape[1:]):
            for plane in flux[:, rows]:
                # A comparison with NaN is False, so this rejects NaN too.
                good[rows] &= np.abs(plane) < _FLUX_LIMIT
    image = flux if overwrite else np.empty(flux.shape, dtype=np.float32)
    return image, good  # type: ignore[return-value]


def _sample_steps(good: BoolArray) -> tuple[slice, slice]:
    """Slices of the regular grid on which statistics are taken."""
    step = max(1, math.ceil(math.sqrt(good.size / _SAMPLE_SIZE)))
    if step > 1 and np.count_nonzero(good[::step, ::step]) < 1000:
        step = 1  # the few valid pixels may lie between the points of the grid
    return slice(None, None, step), slice(None, None, step)


def _smooth_noise(plane: FloatArray, good: BoolArray) -> float:
    """Noise from second differences along x, which smooth structure passes.

    For white noise it equals the standard deviation; the differences
    a - 2 b + c have 6 times the variance of a pixel.  NaN if too few triples.
    """
    step = max(1, good.size // _SAMPLE_SIZE)
    rows = plane[::step].astype(np.float64)
    ok = good[::step]
    triple = ok[:, 2:] & ok[:, 1:-1] & ok[:, :-2]
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(rows[:, 2:] - 2.0 * rows[:, 1:-1] + rows[:, :-2])[triple]
    if difference.size < 16:
        return math.nan
    return float(np.median(difference)) * 1.482602218505602 / math.sqrt(6.0)


def sky_noise(
    plane: FloatArray,
    variance: FloatArray | None,
    good: BoolArray,
    residual: npt.NDArray[np.float64],
    *,
    source: str = "auto",
    clip_sigma: float = 3.0,
    clip_iterations: int = 10,
) -> tuple[float, str]:
    """Standard deviation of the sky in one band.

    Parameters
    ----------
    plane, variance : `numpy.ndarray`
        Flux (nJy) and its variance (nJy^2), both (y, x); variance may be None.
    good : `numpy.ndarray`
        Bool (y, x), the pixels to use.
    residual : `numpy.ndarray`
        Sorted sample of the usable pixels minus background.
    source : `str`
        "variance": the variance plane wherever it has usable values.
        "pixels": the clipped scatter of the pixels.  "auto": as described
        below.
    clip_sigma, clip_iterations : `float`, `int`
        Of the sigma clipping.

    Returns
    -------
    noise : `float`
        In nJy, positive and finite.
    source : `str`
        "variance", "pixels" or "fallback".

    Notes
    -----
    "auto" takes the median of the variance plane if at least half of the good
    pixels have a finite, positive variance and it is not the same everywhere.
    A constant plane is often a placeholder.  It is believed if its sigma
    agrees with the scatter of the pixels within a factor of 2, or if the
    pixels carry no noise with which it could disagree: their noise on the
    scale of one pixel (second differences) is under 0.3 of their scatter,
    which holds for noiseless simulations, whose pixels are smooth, but not
    for white noise (1) or the correlated noise of coadds (about 0.6).
    Otherwise the scatter of the pixels (normalised interquartile range after
    clipping, which equals the clipped MAD for symmetric noise) is used.
    Should that vanish, a thousandth of the largest deviation from the
    background stands in, and 1 nJy for an image that does not vary at all.
    """
    clipped = clip_sorted(residual, clip_sigma, clip_iterations)
    scatter = clipped.sigma
    variance_sigma, constant = math.nan, False
    if variance is not None and source != "pixels":
        steps = _sample_steps(good)
        values = variance[steps][good[steps]]
        with np.errstate(invalid="ignore"):
            usable = values[np.isfinite(values) & (values > 0)]
        if usable.size and 2 * usable.size >= values.size:
            variance_sigma = math.sqrt(float(np.median(usable.astype(np.float64))))
            constant = bool(usable.max() <= usable.min() * (1 + 1e-6))
    if variance_sigma > 0 and math.isfinite(variance_sigma):
        if source == "variance" or not constant:
            return variance_sigma, "variance"
        if not scatter > 0 or 0.5 <= variance_sigma / scatter <= 2.0:
            return variance_sigma, "variance"
        if _smooth_noise(plane, good) < 0.3 * scatter:
            return variance_sigma, "variance"
    if scatter > 0:
        return scatter, "pixels"
    largest = float(np.max(np.abs(residual[[0, -1]]))) if residual.size else 0.0
    return (1e-3 * largest, "fallback") if largest > 0 else (1.0, "fallback")


def _subtracted_sample(
    plane: FloatArray, background: Background, good: BoolArray, steps: tuple[slice, slice]
) -> npt.NDArray[np.float64]:
    """Pixels minus background on the statistics grid, unsorted."""
    sample = plane[steps][good[steps]].astype(np.float64)
    if background.mesh is None:
        sample -= background.level
    else:
        sample -= background.on_grid(plane.shape, steps)[good[steps]]
    return sample


def lupton_normalize(
    flux: FloatArray,
    variance: FloatArray | None = None,
    valid: BoolArray | None = None,
    *,
    q: float = 10.0,
    stretch: float = 200.0,
    stretch_unit: str = "noise",
    scale: float = 20.0,
    scale_unit: str = "noise",
    background: str = "global",
    background_mesh: int = 256,
    noise_source: str = "auto",
    clip_sigma: float = 3.0,
    clip_iterations: int = 10,
    overwrite: bool = False,
) -> NormalizedImage:
    """Compress the range of a multi-band image and keep its colours.

    See the module's documentation for the equation (Lupton et al. 2004, PASP
    116, 133) and for the choice of the defaults.

    Parameters
    ----------
    flux : `numpy.ndarray`
        Flux (band, y, x) in nJy.
    variance : `numpy.ndarray`, optional
        Variance of ``flux``, same shape, nJy^2.
    valid : `numpy.ndarray`, optional
        Bool (y, x) or (band, y, x); False where a pixel must not be used.  A
        pixel is valid if it is so in all the bands.
    q : `float`
        Q of the equation; the curve turns over at stretch / Q.
    stretch, stretch_unit : `float`, `str`
        The stretch, in multiples of the sky noise of the mean of the bands
        ("noise"), in nJy ("nJy"), or as percentile of that mean over the
        valid pixels ("percentile").
    scale, scale_unit : `float`, `str`
        What is drawn as 1: the flux of this many sigma ("noise"), this flux
        ("nJy"), or this percentile of the output in all bands ("percentile").
    background : `str`
        The minimum of each band: "global" (sigma-clipped median), "local"
        (the same on a coarse mesh, interpolated) or "none" (0).
    background_mesh : `int`
        Side of a mesh cell of the local background, pixels.
    noise_source : `str`
        "auto", "variance" or "pixels"; see `sky_noise`.
    clip_sigma, clip_iterations : `float`, `int`
        Threshold and largest number of rounds of the sigma clipping.
    overwrite : `bool`
        Write the result into ``flux``, which must be float32 then.

    Returns
    -------
    normalized : `NormalizedImage`
        Image, mask and the numbers used.

    Raises
    ------
    ValueError
        If shapes do not match or a setting is out of range.

    Notes
    -----
    A percentile that is not positive gives way to the default of that setting
    in units of noise.  Beside ``flux`` and ``variance`` the memory needed is
    one output array (none with ``overwrite``) and some scratch of fixed size.

    Examples
    --------
    >>> import numpy as np
    >>> flux = np.array([[[0.0, 2.0]], [[0.0, 4.0]]], dtype=np.float32)
    >>> settings = dict(stretch=10.0, stretch_unit="nJy", scale=3.0, scale_unit="nJy")
    >>> result = lupton_normalize(flux, background="none", **settings)
    >>> result.image[:, 0, 1].astype(float).round(4).tolist()
    [0.6667, 1.3333]
    """
    _positive("q", q)
    _positive("stretch", stretch)
    _positive("scale", scale)
    _choice("stretch_unit", stretch_unit, ("noise", "nJy", "percentile"))
    _choice("scale_unit", scale_unit, ("noise", "nJy", "percentile"))
    _percentile_range("stretch", stretch, stretch_unit)
    _percentile_range("scale", scale, scale_unit)
    _choice("background", background, ("global", "local", "none"))
    _choice("noise_source", noise_source, ("auto", "variance", "pixels"))
    _positive("background_mesh", background_mesh)
    _check_clipping(clip_sigma, clip_iterations)
    image, good = _check_input(flux, variance, valid, overwrite)
    n_bands = flux.shape[0]
    steps = _sample_steps(good)

    backgrounds: list[Background] = []
    samples: list[npt.NDArray[np.float64]] = []
    noise = np.ones(n_bands)
    sources = []
    for b, plane in enumerate(flux):
        if background == "local":
            level = mesh_background(plane, good, background_mesh, clip_sigma, clip_iterations)
        elif background == "global":
            level = constant_background(plane[steps][good[steps]], clip_sigma, clip_iterations)
        else:
            level = Background(0.0)
        backgrounds.append(level)
        samples.append(_subtracted_sample(plane, level, good, steps))
        residual = np.sort(samples[b])
        if background == "none" and residual.size:
            # The scatter is about the sky level whether it is subtracted or
            # not.
            residual -= clip_sorted(residual, clip_sigma, clip_iterations).median
        residual[np.abs(residual) <= _ROUNDING * abs(level.level)] = 0.0
        noise[b], source = sky_noise(
            plane,
            None if variance is None else variance[b],
            good,
            residual,
            source=noise_source,
            clip_sigma=clip_sigma,
            clip_iterations=clip_iterations,
        )
        sources.append(source)

    # Noise of the mean of independent bands.
    sigma = math.sqrt(float(np.sum(noise**2))) / n_bands
    intensity = np.mean(samples, axis=0)
    if stretch_unit == "percentile":
        s = float(np.percentile(intensity, stretch)) if intensity.size else 0.0
        s = s if s > _ROUNDING * sigma else 200.0 * sigma
    else:
        s = stretch * sigma if stretch_unit == "noise" else stretch

    if scale_unit == "percentile":
        factor = _asinh_ratio(q * np.abs(intensity) / s) / s
        for x in samples:
            x *= factor
        output = np.concatenate(samples)
        c = float(np.percentile(output, scale, overwrite_input=True)) if output.size else 0.0
        del output, factor
        if not (math.isfinite(c) and c > _ROUNDING * sigma / s):
            c = math.asinh(q * 20.0 * sigma / s) / q
    else:
        c = math.asinh(q * (scale * sigma if scale_unit == "noise" else scale) / s) / q
    del samples, intensity

    scratch = np.empty(0)
    for rows in _blocks(*good.shape):
        ok, out = good[rows], image[:, rows]
        if scratch.shape != ok.shape:
            scratch = np.empty(ok.shape)
        for b in range(n_bands):
            # Offset and unit are changed in float64, so that a high sky or an
            # odd zero point costs no precision beyond that of the input.
            with np.errstate(invalid="ignore", over="ignore"):
                np.subtract(flux[b, rows], backgrounds[b].rows(good.shape, rows), out=scratch)
                np.multiply(scratch, 1.0 / s, out=scratch)
                np.clip(scratch, -_FLUX_LIMIT, _FLUX_LIMIT, out=scratch)
            # NaN must not reach the sum over bands.
            np.copyto(scratch, 0.0, where=~ok)
            out[b] = scratch
        u = np.sum(out, axis=0)
        np.abs(u, out=u)
        u *= np.float32(q / n_bands)
        factor = _asinh_ratio(u)
        factor *= np.float32(1.0 / c)
        out *= factor
    return NormalizedImage(
        image=image,
        valid=good,
        minimum=np.array([level.level for level in backgrounds]),
        noise=noise,
        noise_source=tuple(sources),
        stretch=s,
        scale=c,
    )


def _asinh_ratio(u: FloatArray) -> FloatArray:
    """Compute asinh(u)/u for u >= 0, stable at 0 and for huge u.

    Below `_SMALL_ARGUMENT` the series 1 - u^2/6 + ... differs from 1 by less
    than the rounding of float32, so u is replaced by that bound.
    """
    u = np.clip(u, _SMALL_ARGUMENT, _FLUX_LIMIT)
    return np.arcsinh(u) / u


def zscore_normalize(
    flux: FloatArray,
    variance: FloatArray | None = None,
    valid: BoolArray | None = None,
    *,
    statistics: str = "clipped",
    asinh: str = "after",
    softening: float = 1.0,
    clip_sigma: float = 3.0,
    clip_iterations: int = 10,
    overwrite: bool = False,
) -> NormalizedImage:
    """Shift and divide each band to zero mean and unit standard deviation.

    Parameters
    ----------
    flux : `numpy.ndarray`
        Flux (band, y, x) in nJy.
    variance : `numpy.ndarray`, optional
        Checked for its shape, otherwise not used: the statistics are those of
        the pixels.
    valid : `numpy.ndarray`, optional
        Bool (y, x) or (band, y, x); as for `lupton_normalize`.
    statistics : `str`
        "clipped": median and scatter of the sigma-clipped pixels, so that
        sources do not count.  "full": mean and standard deviation of all
        valid pixels.
    asinh : `str`
        "none"; "before": of the flux above the clipped median, in units of
        ``softening`` times the clipped sigma, then the z-score of that;
        "after": of the z-score divided by ``softening``.
    softening : `float`
        Where the asinh turns over, in standard deviations.
    clip_sigma, clip_iterations : `float`, `int`
        Threshold and largest number of rounds of the sigma clipping.
    overwrite : `bool`
        Write the result into ``flux``, which must be float32 then.

    Returns
    -------
    normalized : `NormalizedImage`
        Image, mask and the numbers used.

    Raises
    ------
    ValueError
        If shapes do not match or a setting is out of range.

    Notes
    -----
    A band that does not vary is 0.  Colours are not kept: each band has its
    own mean and unit.

    Examples
    --------
    >>> import numpy as np
    >>> flux = np.array([[[1.0, 3.0]]], dtype=np.float32)
    >>> zscore_normalize(flux, statistics="full", asinh="none").image.tolist()
    [[[-1.0, 1.0]]]
    """
    _choice("statistics", statistics, ("clipped", "full"))
    _choice("asinh", asinh, ("none", "before", "after"))
    _positive("softening", softening)
    _check_clipping(clip_sigma, clip_iterations)
    image, good = _check_input(flux, variance, valid, overwrite)
    steps = _sample_steps(good)
    n_bands = flux.shape[0]
    minimum, noise, sources = np.zeros(n_bands), np.ones(n_bands), []
    for b, plane in enumerate(flux):
        level = constant_background(plane[steps][good[steps]], clip_sigma, clip_iterations)
        residual = np.sort(_subtracted_sample(plane, level, good, steps))
        residual[np.abs(residual) <= _ROUNDING * abs(level.level)] = 0.0
        clipped_sigma, source = sky_noise(
            plane,
            None,
            good,
            residual,
            source="pixels",
            clip_sigma=clip_sigma,
            clip_iterations=clip_iterations,
        )
        unit = softening * clipped_sigma

        def transform(x: FloatArray, median: float = level.level, unit: float = unit) -> FloatArray:
            # In float64; with asinh="before" the z-score is of asinh(x).
            y = np.subtract(x, median, dtype=np.float64)
            y /= unit
            np.clip(y, -_FLUX_LIMIT, _FLUX_LIMIT, out=y)
            return np.arcsinh(y, out=y) if asinh == "before" else y

        if statistics == "full":
            mean, deviation = _full_statistics(plane, good, transform)
        else:
            np.divide(residual, unit, out=residual)
            if asinh == "before":
                np.arcsinh(residual, out=residual)
            clipped = clip_sorted(residual, clip_sigma, clip_iterations)
            # Both maps keep the order, so the sample is still sorted.
            mean, deviation = clipped.median, clipped.sigma
            if not deviation > 0:
                deviation = clipped_sigma / unit
        minimum[b] = level.level + unit * (math.sinh(mean) if asinh == "before" else mean)
        noise[b] = clipped_sigma
        sources.append(source)
        for rows in _blocks(*good.shape):
            with np.errstate(invalid="ignore", over="ignore"):
                y = transform(plane[rows])
                y -= mean
                y /= deviation
                if asinh == "after":
                    y /= softening
                    np.arcsinh(y, out=y)
                np.copyto(y, 0.0, where=~good[rows])
            image[b, rows] = y
    return NormalizedImage(
        image=image,
        valid=good,
        minimum=minimum,
        noise=noise,
        noise_source=tuple(sources),
        stretch=math.nan if asinh == "none" else softening,
        scale=1.0,
    )


def _full_statistics(
    plane: FloatArray, good: BoolArray, transform: Callable[[FloatArray], FloatArray]
) -> tuple[float, float]:
    """Mean and standard deviation of the transformed good pixels.

    Two passes in float64, by blocks of rows; (0, 1) without pixels, and a
    standard deviation of 1 where it would vanish.
    """
    count, total = int(np.count_nonzero(good)), 0.0
    if count == 0:
        return 0.0, 1.0
    blocks = _blocks(*good.shape)
    for rows in blocks:
        total += float(np.sum(transform(plane[rows][good[rows]])))
    mean, squares = total / count, 0.0
    for rows in blocks:
        squares += float(np.sum((transform(plane[rows][good[rows]]) - mean) ** 2))
    deviation = math.sqrt(squares / count)
    return mean, deviation if deviation > abs(mean) * 1e-12 else 1.0


_FUNCTIONS: dict[str, Callable[..., NormalizedImage]] = {
    "lupton": lupton_normalize,
    "zscore": zscore_normalize,
}


def _setting_defaults(name: str) -> dict[str, Any]:
    """Keywords that are settings, with their defaults."""
    if name not in _FUNCTIONS:
        raise ValueError(f"There is no normalisation {name!r}; known are {', '.join(sorted(_FUNCTIONS))}.")
    parameters = inspect.signature(_FUNCTIONS[name]).parameters
    return {key: p.default for key, p in parameters.items() if key not in _NOT_SETTINGS}


def default_settings(name: str) -> dict[str, Any]:
    """Return what a normalisation does unless told otherwise.

    Parameters
    ----------
    name : `str`
        "lupton" or "zscore".

    Returns
    -------
    settings : `dict`
        Plain values by their names in the configuration (camelCase).

    Raises
    ------
    ValueError
        If the name is not known.

    Examples
    --------
    >>> default_settings("lupton")["stretchUnit"]
    'noise'
    """
    return {
        re.sub("_([a-z])", lambda match: match.group(1).upper(), key): value
        for key, value in _setting_defaults(name).items()
    }


def settings_keywords(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Translate settings of a model file to keywords of the function.

    Parameters
    ----------
    name : `str`
        "lupton" or "zscore".
    settings : mapping
        Plain values by their names in the configuration (camelCase).
        ``badMaskPlanes`` says which pixels are valid and is left out.

    Returns
    -------
    keywords : `dict`
        Keywords of `lupton_normalize` or `zscore_normalize`.

    Raises
    ------
    ValueError
        If the name or one of the settings is not known.
    """
    known = set(_setting_defaults(name))
    keywords = {
        re.sub("[A-Z]", lambda match: "_" + match.group().lower(), key): value
        for key, value in settings.items()
        if key not in _TASK_SETTINGS
    }
    unknown = sorted(set(keywords) - known)
    if unknown:
        raise ValueError(
            f"Normalisation {name!r} has no setting {', '.join(unknown)}; known are "
            f"{', '.join(sorted(known))}. A model file with such settings needs a newer version of this "
            "package."
        )
    return keywords


def normalize(
    name: str,
    flux: FloatArray,
    variance: FloatArray | None,
    valid: BoolArray | None,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> NormalizedImage:
    """Normalise an image as the header of a model file says.

    Parameters
    ----------
    name : `str`
        "lupton" or "zscore".
    flux, variance, valid : `numpy.ndarray`
        Flux (band, y, x) in nJy, its variance or None, and the mask of usable
        pixels or None.
    settings : mapping
        As written by the tasks' ``settings()``; missing ones have their
        defaults.
    overwrite : `bool`
        Write the result into ``flux``.

    Returns
    -------
    normalized : `NormalizedImage`
        Image, mask and the numbers used.

    Raises
    ------
    ValueError
        If the name, a setting or a shape is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> flux = np.random.default_rng(1).normal(size=(3, 50, 40)).astype(np.float32)
    >>> normalize("lupton", flux, None, None, {"stretchUnit": "noise"}).image.shape
    (3, 50, 40)
    """
    keywords = settings_keywords(name, settings)
    return _FUNCTIONS[name](flux, variance, valid, overwrite=overwrite, **keywords)
