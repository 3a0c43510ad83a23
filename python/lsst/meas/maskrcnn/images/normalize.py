# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

r"""Normalisation of multi-band images for the network; numpy only.

`LuptonSettings` follow Lupton et al. 2004 (PASP 116, 133). With
:math:`x_b = f_b - m_b` the flux of band *b* above its sky level and
:math:`I = \langle x_b \rangle` the mean over the bands,

.. math::

    \mathrm{out}_b = \frac{x_b}{I}\,\frac{1}{Q}\,
        \operatorname{asinh}\!\left(\frac{Q I}{s}\right) \Big/ C ,
    \qquad
    C = \frac{1}{Q} \operatorname{asinh}\!\left(\frac{Q F}{s}\right),

where *s* is the stretch and *F* the flux that becomes 1 (the "scale"). The
factor of :math:`x_b` is an even, smooth function of *I*, with the limit
1/(s C) at I = 0, and is the same in all bands, so that the ratio of two bands
is that of their fluxes.

The defaults are Q = 10, s = 200 and F = 20 in units of the sky noise of *I*:
linear up to s/Q = F = 20 sigma, logarithmic above. A grey pixel of 1, 5, 20,
100, 1e3, 1e4, 1e5 sigma becomes 0.057, 0.28, 1, 2.6, 5.2, 7.8, 10.4. Sky
noise stays visible (six per cent of unity in *I*), the cores of ordinary
sources are of order 1, and stars near saturation reach 5 to 10.

All statistics follow a change of zero point (a positive factor) and of the sky
level (a constant), and the pixels are offset and divided by the stretch in
float64 before they are rounded, so that the result does not depend on either
to the precision of the float32 input.
"""

from __future__ import annotations

__all__ = [
    "BandNoiseSettings",
    "LuptonSettings",
    "NormalizationSettings",
    "NormalizedImage",
    "ZScoreSettings",
    "normalize",
]

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from .background import Background, clip_sorted, constant_background, mesh_background, sample_grid, sky_noise
from .settings import settings

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

# Pixels per block of rows: the float64 scratch of a block stays in cache.
_BLOCK_SIZE = 131_072
# No flux in nJy is that large; beyond it float32 sums over bands overflow.
_FLUX_LIMIT = 1e30
# asinh(u)/u = 1 - u^2/6 + 3 u^4/40 - ... rounds to 1 in float32 below this.
_SMALL_ARGUMENT = 2e-4
# A noise level under this fraction of the sky level is rounding of float32.
_ROUNDING = 2.0**-22

_ClipSigma = Annotated[
    float,
    Field(
        ge=1.0, description="Threshold of the sigma clipping for sky level and noise, in standard deviations."
    ),
]
_ClipIterations = Annotated[
    int, Field(ge=0, description="Largest number of rounds of the sigma clipping; 0 for no clipping.")
]


@settings
class LuptonSettings:
    """Compress the range with an asinh of the mean band, which keeps colours."""

    kind: Literal["lupton"] = "lupton"
    q: Annotated[
        float,
        Field(gt=0.0, description="Q of Lupton et al. (2004): linear below stretch / Q, logarithmic above."),
    ] = 10.0
    stretch: Annotated[float, Field(gt=0.0, description="The stretch, in the unit stretch_unit.")] = 200.0
    stretch_unit: Annotated[
        Literal["noise", "nJy", "percentile"],
        Field(
            description="Unit of stretch.",
            json_schema_extra={
                "noise": "Multiples of the sky noise of the mean of the bands.",
                "nJy": "Flux in nJy.",
                "percentile": "Percentile (0 to 100) of the mean of the bands over the valid pixels; if that "
                "is not positive, the default stretch in units of noise.",
            },
        ),
    ] = "noise"
    scale: Annotated[
        float, Field(gt=0.0, description="What becomes 1 in the output, in the unit scale_unit.")
    ] = 20.0
    scale_unit: Annotated[
        Literal["noise", "nJy", "percentile"],
        Field(
            description="Unit of scale.",
            json_schema_extra={
                "noise": "A grey pixel of this many times the sky noise of the mean of the bands.",
                "nJy": "A grey pixel of this flux in nJy.",
                "percentile": "This percentile (0 to 100) of the output over the valid pixels of all bands; "
                "if that is not positive, the default scale in units of noise.",
            },
        ),
    ] = "noise"
    background: Annotated[
        Literal["global", "local", "none"],
        Field(
            description="The level that is subtracted from each band.",
            json_schema_extra={
                "global": "Sigma-clipped median of the valid pixels.",
                "local": "The same in the cells of a coarse mesh, interpolated linearly.",
                "none": "Zero: the sky has been subtracted.",
            },
        ),
    ] = "global"
    background_mesh: Annotated[
        int,
        Field(
            ge=8, description="Side of a cell of the local background (px); well above the largest galaxy."
        ),
    ] = 256
    noise_source: Annotated[
        Literal["auto", "variance", "pixels"],
        Field(
            description="Where the sky noise is taken from.",
            json_schema_extra={
                "auto": "The variance plane, or the pixels where it is missing, unusable, or constant and at "
                "odds with the pixels.",
                "variance": "The variance plane, or the pixels where it is missing or unusable.",
                "pixels": "The clipped scatter of the pixels.",
            },
        ),
    ] = "auto"
    clip_sigma: _ClipSigma = 3.0
    clip_iterations: _ClipIterations = 10

    def __post_init__(self) -> None:
        for name in ("stretch", "scale"):
            value, unit = getattr(self, name), getattr(self, f"{name}_unit")
            if unit == "percentile" and value > 100:
                raise ValueError(
                    f"{name} is {value} with {name}_unit 'percentile', wanted at most 100; lower it or "
                    "choose another unit"
                )


@settings
class ZScoreSettings:
    """Bring each band to zero mean and unit standard deviation."""

    kind: Literal["zscore"] = "zscore"
    statistics: Annotated[
        Literal["clipped", "full"],
        Field(
            description="Which mean and standard deviation are used.",
            json_schema_extra={
                "clipped": "Median and scatter after sigma clipping: those of the sky.",
                "full": "Mean and standard deviation of all the valid pixels.",
            },
        ),
    ] = "clipped"
    asinh: Annotated[
        Literal["none", "before", "after"],
        Field(
            description="Whether the range is compressed with an asinh.",
            json_schema_extra={
                "none": "It is not.",
                "before": "Before the z-score: asinh of the flux above the sky in units of softening times "
                "the clipped standard deviation.",
                "after": "After it: asinh of the z-score divided by softening.",
            },
        ),
    ] = "after"
    softening: Annotated[
        float,
        Field(
            gt=0.0, description="Where the asinh turns from linear to logarithmic, in standard deviations."
        ),
    ] = 1.0
    clip_sigma: _ClipSigma = 3.0
    clip_iterations: _ClipIterations = 10


@settings
class BandNoiseSettings:
    """Give each band in units of its sky noise, above its sky level.

    Of networks that take any bands, which compress the range themselves
    (`lsst.meas.maskrcnn.network.any_band_detect.normalize_bands`).
    """

    kind: Literal["band_noise"] = "band_noise"


NormalizationSettings = Annotated[
    LuptonSettings | ZScoreSettings | BandNoiseSettings, Field(discriminator="kind")
]
"""How images are normalised; ``kind`` tells in a model file which it is."""


@dataclass(frozen=True)
class NormalizedImage:
    """A normalised image and the numbers that it was made with."""

    image: npt.NDArray[np.float32]
    """(band, y, x); zero where not valid, finite everywhere."""
    valid: BoolArray
    """(y, x); True where all the bands hold a usable value."""
    minimum: npt.NDArray[np.float64]
    """(band,), nJy: the level subtracted from each band (the median of the mesh for a local background, the
    mean for the z-score).
    """
    noise: npt.NDArray[np.float64]
    """(band,), nJy: sky noise of each band (for the z-score, the clipped standard deviation)."""
    noise_source: tuple[str, ...]
    """Where each noise comes from: "variance", "pixels" or "fallback"."""
    stretch: float
    """Lupton: the stretch s in nJy. Z-score: softening of the asinh, in standard deviations; NaN without
    asinh.
    """
    scale: float
    """Lupton: the number C by which the stretched image was divided. Z-score: 1."""


def normalize(
    how: LuptonSettings | ZScoreSettings,
    flux: FloatArray,
    variance: FloatArray | None = None,
    valid: BoolArray | None = None,
    *,
    overwrite: bool = False,
) -> NormalizedImage:
    """Normalise an image of several bands.

    Parameters
    ----------
    how : `LuptonSettings` or `ZScoreSettings`
        The settings, for instance those in the header of a model file.
    flux : `numpy.ndarray`
        Flux (band, y, x) in nJy.
    variance : `numpy.ndarray`, optional
        Variance of ``flux``, same shape, nJy^2. The z-score does not use it.
    valid : `numpy.ndarray`, optional
        Bool (y, x) or (band, y, x); False where a pixel must not be used. A
        pixel is valid if it is so, and has a finite flux, in all the bands.
    overwrite : `bool`, optional
        Write the result into ``flux``, which must be float32 then.

    Returns
    -------
    normalized : `NormalizedImage`
        Image, mask and the numbers used.

    Raises
    ------
    ValueError
        Raised if the shapes do not match.

    Notes
    -----
    Beside ``flux`` and ``variance`` the memory needed is one output array
    (none with ``overwrite``) and some scratch of fixed size.

    Examples
    --------
    >>> import numpy as np
    >>> flux = np.array([[[0.0, 2.0]], [[0.0, 4.0]]], dtype=np.float32)
    >>> how = LuptonSettings(
    ...     stretch=10.0, stretch_unit="nJy", scale=3.0, scale_unit="nJy", background="none"
    ... )
    >>> normalize(how, flux).image[:, 0, 1].astype(float).round(4).tolist()
    [0.6667, 1.3333]
    >>> normalize(ZScoreSettings(statistics="full", asinh="none"), flux).image.tolist()
    [[[-1.0, 1.0]], [[-1.0, 1.0]]]
    """
    image, good = _check_input(flux, variance, valid, overwrite)
    if isinstance(how, LuptonSettings):
        return _lupton(how, flux, variance, image, good)
    return _zscore(how, flux, image, good)


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


def _blocks(height: int, width: int) -> list[slice]:
    rows = max(1, _BLOCK_SIZE // max(1, width))
    return [slice(y, min(y + rows, height)) for y in range(0, height, rows)]


def _lupton(
    how: LuptonSettings,
    flux: FloatArray,
    variance: FloatArray | None,
    image: npt.NDArray[np.float32],
    good: BoolArray,
) -> NormalizedImage:
    steps, clipping = sample_grid(good), (how.clip_sigma, how.clip_iterations)
    levels: list[Background] = []
    samples: list[npt.NDArray[np.float64]] = []
    noise, sources = np.ones(len(flux)), []
    for b, plane in enumerate(flux):
        levels.append(_background(how, plane, good, steps))
        samples.append(_subtracted_sample(plane, levels[b], good, steps))
        residual = _sorted_residual(samples[b], levels[b])
        if how.background == "none" and residual.size:
            # The noise is the scatter about the sky level, though that is not
            # subtracted.
            residual -= clip_sorted(residual, *clipping).median
        given = None if variance is None else variance[b]
        noise[b], source = sky_noise(plane, given, good, residual, how.noise_source, *clipping)
        sources.append(source)

    stretch, scale = _stretch_and_scale(how, samples, noise)
    del samples
    _apply_lupton(flux, levels, how.q, stretch, scale, image, good)
    return NormalizedImage(
        image=image,
        valid=good,
        minimum=np.array([level.level for level in levels]),
        noise=noise,
        noise_source=tuple(sources),
        stretch=stretch,
        scale=scale,
    )


def _background(
    how: LuptonSettings, plane: FloatArray, good: BoolArray, steps: tuple[slice, slice]
) -> Background:
    """Level to subtract from a band."""
    clipping = how.clip_sigma, how.clip_iterations
    if how.background == "local":
        return mesh_background(plane, good, how.background_mesh, *clipping)
    if how.background == "global":
        return constant_background(plane[steps][good[steps]], *clipping)
    return Background(0.0)


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


def _sorted_residual(sample: npt.NDArray[np.float64], level: Background) -> npt.NDArray[np.float64]:
    """Sort a sample above its background, with 0 for what is mere rounding."""
    residual = np.sort(sample)
    residual[np.abs(residual) <= _ROUNDING * abs(level.level)] = 0.0
    return residual


def _stretch_and_scale(
    how: LuptonSettings, samples: list[npt.NDArray[np.float64]], noise: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """The stretch s, nJy, and the divisor C; ``samples`` may be changed."""
    default = LuptonSettings()
    # Noise of the mean of independent bands.
    sigma = math.sqrt(float(np.sum(noise**2))) / len(noise)
    intensity = np.mean(samples, axis=0)
    if how.stretch_unit == "percentile":
        s = float(np.percentile(intensity, how.stretch)) if intensity.size else 0.0
        s = s if s > _ROUNDING * sigma else default.stretch * sigma
    else:
        s = how.stretch * sigma if how.stretch_unit == "noise" else how.stretch

    if how.scale_unit == "percentile":
        factor = _asinh_ratio(how.q * np.abs(intensity) / s) / s
        for x in samples:
            x *= factor
        output = np.concatenate(samples)
        c = float(np.percentile(output, how.scale, overwrite_input=True)) if output.size else 0.0
        if not (math.isfinite(c) and c > _ROUNDING * sigma / s):
            c = math.asinh(how.q * default.scale * sigma / s) / how.q
    else:
        unit = sigma if how.scale_unit == "noise" else 1.0
        c = math.asinh(how.q * (how.scale * unit) / s) / how.q
    return s, c


def _apply_lupton(
    flux: FloatArray,
    levels: list[Background],
    q: float,
    stretch: float,
    scale: float,
    image: npt.NDArray[np.float32],
    good: BoolArray,
) -> None:
    """Write the result into ``image``, which may be ``flux``."""
    scratch = np.empty(0)
    for rows in _blocks(*good.shape):
        ok, out = good[rows], image[:, rows]
        if scratch.shape != ok.shape:
            scratch = np.empty(ok.shape)
        for b, level in enumerate(levels):
            # Offset and unit are changed in float64, so that a high sky or an
            # odd zero point costs no precision beyond that of the input.
            with np.errstate(invalid="ignore", over="ignore"):
                np.subtract(flux[b, rows], level.rows(good.shape, rows), out=scratch)
                np.multiply(scratch, 1.0 / stretch, out=scratch)
                np.clip(scratch, -_FLUX_LIMIT, _FLUX_LIMIT, out=scratch)
            # NaN must not reach the sum over bands.
            np.copyto(scratch, 0.0, where=~ok)
            out[b] = scratch
        lupton_compress(out, q, scale, len(levels))


def lupton_compress(x: npt.NDArray[np.float32], q: float, scale: float, n_bands: int) -> None:
    """Multiply an image by asinh(Q I) / (Q I C) of the module's equation, in place.

    It is the flux above the sky in units of the stretch, (band, y, x). I is the mean of ``n_bands`` bands;
    those beyond are 0.
    """
    u = np.sum(x, axis=0)
    np.abs(u, out=u)
    u *= np.float32(q / n_bands)
    factor = _asinh_ratio(u)
    factor *= np.float32(1.0 / scale)
    x *= factor


def _asinh_ratio(u: FloatArray) -> FloatArray:
    """Compute asinh(u)/u for u >= 0, stable at 0 and for huge u.

    Below `_SMALL_ARGUMENT` the series 1 - u^2/6 + ... differs from 1 by less
    than the rounding of float32, so u is replaced by that bound.
    """
    u = np.clip(u, _SMALL_ARGUMENT, _FLUX_LIMIT)
    return np.arcsinh(u) / u


def _zscore(
    how: ZScoreSettings, flux: FloatArray, image: npt.NDArray[np.float32], good: BoolArray
) -> NormalizedImage:
    steps, clipping = sample_grid(good), (how.clip_sigma, how.clip_iterations)
    minimum, noise, sources = np.zeros(len(flux)), np.ones(len(flux)), []
    for b, plane in enumerate(flux):
        level = constant_background(plane[steps][good[steps]], *clipping)
        residual = _sorted_residual(_subtracted_sample(plane, level, good, steps), level)
        noise[b], source = sky_noise(plane, None, good, residual, "pixels", *clipping)
        sources.append(source)
        unit = how.softening * noise[b]
        transform = partial(_in_units, level=level.level, unit=unit, asinh=how.asinh == "before")
        if how.statistics == "full":
            mean, deviation = _full_statistics(plane, good, transform)
        else:
            np.divide(residual, unit, out=residual)
            if how.asinh == "before":
                np.arcsinh(residual, out=residual)
            clipped = clip_sorted(residual, *clipping)
            # Both maps keep the order, so the sample is still sorted.
            mean, deviation = clipped.median, clipped.sigma
            if not deviation > 0:
                deviation = noise[b] / unit
        minimum[b] = level.level + unit * (math.sinh(mean) if how.asinh == "before" else mean)
        for rows in _blocks(*good.shape):
            with np.errstate(invalid="ignore", over="ignore"):
                y = transform(plane[rows])
                y -= mean
                y /= deviation
                if how.asinh == "after":
                    y /= how.softening
                    np.arcsinh(y, out=y)
                np.copyto(y, 0.0, where=~good[rows])
            image[b, rows] = y
    return NormalizedImage(
        image=image,
        valid=good,
        minimum=minimum,
        noise=noise,
        noise_source=tuple(sources),
        stretch=math.nan if how.asinh == "none" else how.softening,
        scale=1.0,
    )


def _in_units(x: FloatArray, level: float, unit: float, asinh: bool) -> FloatArray:
    """Flux above the sky in some unit, and its asinh if wanted, in float64."""
    y = np.subtract(x, level, dtype=np.float64)
    y /= unit
    np.clip(y, -_FLUX_LIMIT, _FLUX_LIMIT, out=y)
    return np.arcsinh(y, out=y) if asinh else y


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
