# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Scenes to train on: what they hold, and how they are kept.

A scene is kept without its noise where that is known, so that every use can
draw new noise at another depth.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..images.archives import read_arrays
from ..images.files import one_line, write_atomically
from ..metrics.arrays import BoolArray, Float32Array, IntArray

_LARGEST_SIDE = 100_000
"""Of a mask, px; a patch has 4,200."""


class SceneFileError(ValueError):
    """The file of a scene cannot be used; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class TrainingScene:
    """A multi-band scene with the truth of its sources."""

    # Flux per pixel without noise, (band, y, x), nJy; `None` where it is not known.
    noiseless: Float32Array | None
    variance: Float32Array  # variance per pixel at the scene's own depth, (band, y, x), nJy^2, above 0
    valid: BoolArray  # usable pixels, (y, x)
    labels: IntArray  # classes, (source,): 1 is a star, 2 a galaxy
    peak_flux: Float32Array  # brightest pixel of each source alone, (source, band), nJy
    origins: npt.NDArray[np.int32]  # (y0, x0) of each mask, (source, 2)
    masks: list[BoolArray]  # truth masks, (y, x) each, tight around the source, on the image and not empty
    # Whether noise belongs to this scene; without it the variance still gives the scale of the normalisation.
    noisy: bool = True
    # Full width at half maximum of the Gaussian with the adaptive moments of the PSF, (band,), px; `None`
    # where it is not known.
    psf_fwhm: Float32Array | None = None
    image: Float32Array | None = None  # flux per pixel with the scene's own noise, (band, y, x), nJy
    ignore: BoolArray | None = None  # sources that are ignored in the loss, (source,); `None` for none
    # (y, x) of each source, (source, 2); `None` for the middles of the masks.
    positions: Float32Array | None = None
    # Share of a star's and of a galaxy's peak at the edge of its mask, by which masks grow with a blur.
    mask_levels: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.noiseless is None and self.image is None:
            raise ValueError("a training scene needs an image, with noise or without")
        if self.image is not None and not self.noisy:
            raise ValueError("a scene that is not noisy has its image in 'noiseless', not in 'image'")
        if self.variance.ndim != 3:
            raise ValueError(f"variance has shape {self.variance.shape}, wanted (band, y, x)")
        count, bands = len(self.labels), len(self.variance)
        wanted: dict[str, tuple[int, ...]] = {
            "noiseless": self.variance.shape,
            "image": self.variance.shape,
            "valid": self.variance.shape[1:],
            "peak_flux": (count, bands),
            "origins": (count, 2),
            "psf_fwhm": (bands,),
            "ignore": (count,),
            "positions": (count, 2),
        }
        for name, shape in wanted.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, wanted {shape}")
        if len(self.masks) != count:
            raise ValueError(f"there are {len(self.masks)} masks for {count} labels")


def write_scene(scene: TrainingScene, path: str | os.PathLike[str]) -> None:
    """Write a scene as an ``.npz`` file, whole or not at all.

    Pixels are kept in half precision, in units of the noise, where that costs less than a
    hundredth of the noise on the sky and a part in 2000 of a source.
    """
    noise = np.sqrt(np.median(scene.variance[:, ::4, ::4], axis=(1, 2))).astype(np.float32)
    optional = {name: getattr(scene, name) for name in ("psf_fwhm", "ignore", "positions", "mask_levels")}
    planes = {"noiseless": scene.noiseless, "image": scene.image, "variance": scene.variance}
    arrays: dict[str, Any] = {key: value for key, value in optional.items() if value is not None}
    for name, pixels in planes.items():
        if pixels is not None:
            # A variance far below that of the sky is odd, and must not become 0.
            odd = name == "variance" and (pixels < 1e-3 * noise[:, None, None] ** 2).any()
            unit = np.full(len(noise), np.nan) if odd else noise**2 if name == "variance" else noise
            arrays[name], arrays[f"{name}_unit"] = _pack(pixels, unit)
    buffer = BytesIO()
    np.savez(
        buffer,
        valid=np.packbits(scene.valid),
        labels=scene.labels,
        peak_flux=scene.peak_flux,
        origins=scene.origins,
        **pack_masks(scene.masks, 2),
        noisy=np.array(scene.noisy),
        **arrays,
    )
    write_atomically(Path(path), buffer.getvalue())


def _pack(pixels: Float32Array, unit: Float32Array) -> tuple[npt.NDArray[Any], Float32Array]:
    """Halve the precision where that is safe; float32 in units of 1 elsewhere."""
    plain = pixels.astype(np.float32, copy=False), np.ones(len(pixels), np.float32)
    if not (np.isfinite(unit).all() and (unit > 0).all()):
        return plain
    scaled = pixels / unit[:, None, None]
    sky = np.abs(np.median(scaled[:, ::4, ::4], axis=(1, 2)))
    # float16 ends at 65504 and has 11 bits.
    if not np.isfinite(scaled).all() or np.abs(scaled).max() > 6e4 or sky.max() > 8.0:
        return plain
    return scaled.astype(np.float16), unit


def read_scene(path: str | os.PathLike[str]) -> TrainingScene:
    """Read a scene that `write_scene` wrote."""
    with scene_errors(path):
        data = read_arrays(path)

        def planes(name: str) -> Float32Array:
            pixels, unit = data[name].astype(np.float32, copy=False), data[f"{name}_unit"]
            if pixels.ndim != 3 or unit.shape != pixels.shape[:1]:
                raise ValueError(f"{name} has the shape {pixels.shape}, its unit {unit.shape}")
            if (unit != 1.0).any():
                pixels *= unit[:, None, None]
            return pixels

        variance = planes("variance")
        levels = data.get("mask_levels")
        return TrainingScene(
            noiseless=planes("noiseless") if "noiseless" in data else None,
            variance=variance,
            valid=unpack_bits(data["valid"], variance.shape[1:]),
            labels=data["labels"],
            peak_flux=data["peak_flux"],
            origins=data["origins"],
            masks=unpack_masks(data, len(data["labels"])),
            noisy=bool(data["noisy"]),
            psf_fwhm=data.get("psf_fwhm"),
            image=planes("image") if "image" in data else None,
            ignore=data.get("ignore"),
            positions=data.get("positions"),
            mask_levels=None if levels is None else (float(levels[0]), float(levels[1])),
        )


@contextmanager
def scene_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong with the file of a scene into one kind of error."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError) as error:
        text = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise SceneFileError(
            f"{os.fspath(path)} holds no training scene, or is damaged ({text}); make it anew."
        ) from error


def unpack_bits(bits: npt.NDArray[Any], shape: Sequence[int]) -> BoolArray:
    """Unpack the bits of a mask of a shape, of which there must be enough and not more."""
    count = math.prod(shape)
    if bits.dtype != np.uint8 or bits.shape != (-(-count // 8),):
        raise ValueError(f"{bits.size} bytes of {bits.dtype} for the bits of a mask of shape {tuple(shape)}")
    return np.unpackbits(bits, count=count).view(bool).reshape(tuple(shape))


def pack_masks(masks: Sequence[BoolArray], axes: int) -> dict[str, Any]:
    """Pack masks of so many axes into ``shapes`` (source, axis) and ``bits``."""
    bits = np.concatenate([np.zeros(0, bool), *(mask.ravel() for mask in masks)])
    shapes = np.array([mask.shape for mask in masks], dtype=np.int32).reshape(-1, axes)
    return {"shapes": shapes, "bits": np.packbits(bits)}


def unpack_masks(data: Mapping[str, npt.NDArray[Any]], count: int) -> list[BoolArray]:
    """Unpack the masks of sources from the ``shapes`` (source, axis) and ``bits`` of a scene."""
    shapes, origins = data["shapes"], data["origins"]
    if shapes.ndim != 2 or len(shapes) != count or origins.shape != (count, 2):
        raise ValueError(f"{count} sources have shapes {shapes.shape} and origins {origins.shape}")
    if shapes.dtype.kind not in "iu" or ((shapes < 0) | (shapes > _LARGEST_SIDE)).any():
        raise ValueError(f"masks have sides of {shapes.min()} to {shapes.max()} px")
    ends = np.cumsum(shapes.astype(np.int64).prod(axis=1))
    bits = unpack_bits(data["bits"], (int(ends[-1]) if count else 0,))
    starts = [0, *ends[:-1]] if count else []
    return [bits[start:end].reshape(shape) for start, end, shape in zip(starts, ends, shapes, strict=True)]


def masked_boxes(valid: BoolArray) -> IntArray:
    """Cover the unusable pixels of an image (y, x), and no other, with boxes that share no pixel.

    They are (y0, x0, y1, x1), half open, int64, (box, 4): runs along rows, those of
    neighbouring rows joined where they are alike.
    """
    if valid.all():
        return np.zeros((0, 4), np.int64)
    step = np.diff((~valid).astype(np.int8), axis=1, prepend=0, append=0)
    rows, starts = np.nonzero(step == 1)
    ends = np.nonzero(step == -1)[1]
    order = np.lexsort((rows, ends, starts))
    rows, starts, ends = rows[order], starts[order], ends[order]
    new = np.ones(len(rows), bool)
    new[1:] = (np.diff(rows) != 1) | (np.diff(starts) != 0) | (np.diff(ends) != 0)
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(rows)) - 1
    return np.stack([rows[first], starts[first], rows[last] + 1, ends[first]], axis=1).astype(np.int64)
