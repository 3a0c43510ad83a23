# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Scenes to train on: what they hold, how they are kept, and where they come from.

A scene is kept without its noise where that is known, so that every use can
draw new noise at another depth.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..images.binning import bin_psf_fwhm, sum_squares
from ..images.files import write_atomically

__all__ = [
    "SceneFiles",
    "SceneList",
    "SceneSource",
    "TrainingScene",
    "bin_psf_fwhm",
    "bin_scene",
    "masked_boxes",
    "read_scene",
    "split_scene",
    "write_scene",
]


@dataclass(frozen=True, eq=False)
class TrainingScene:
    """A multi-band scene with the truth of its sources.

    Parameters
    ----------
    noiseless : `numpy.ndarray` or `None`
        Flux per pixel without noise, float32, (band, y, x), nJy; `None` where
        it is not known.
    variance : `numpy.ndarray`
        Variance per pixel at the scene's own depth, float32, (band, y, x),
        nJy^2, above 0.
    valid : `numpy.ndarray`
        Usable pixels, bool, (y, x).
    labels : `numpy.ndarray`
        Classes, int64, (source,): 1 is a star, 2 a galaxy.
    peak_flux : `numpy.ndarray`
        Brightest pixel of each source alone, float32, (source, band), nJy.
    origins : `numpy.ndarray`
        (y0, x0) of each mask, int32, (source, 2).
    masks : `list` [`numpy.ndarray`]
        Truth masks, bool, (y, x) each, tight around the source, on the image
        and not empty.
    noisy : `bool`
        Whether noise belongs to this scene; without it the variance still
        gives the scale of the normalisation.
    psf_fwhm : `numpy.ndarray` or `None`
        Full width at half maximum of the Gaussian with the adaptive moments
        of the PSF, float32, (band,), px; `None` where it is not known.
    image : `numpy.ndarray` or `None`
        Flux per pixel with the scene's own noise, float32, (band, y, x), nJy.
    ignore : `numpy.ndarray` or `None`
        Sources that are neither to be found nor to be called wrong, bool,
        (source,); `None` for none.
    positions : `numpy.ndarray` or `None`
        (y, x) of each source, float32, (source, 2); `None` for the middles
        of the masks.
    mask_levels : `tuple` [`float`, `float`] or `None`
        Share of a star's and of a galaxy's peak at the edge of its mask, by
        which masks grow with a blur; `None` where they do not go by the peak.

    Raises
    ------
    ValueError
        Raised if there are no pixels, if shapes disagree, or if an image
        without noise has an image with noise.
    """

    noiseless: npt.NDArray[np.float32] | None
    variance: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    peak_flux: npt.NDArray[np.float32]
    origins: npt.NDArray[np.int32]
    masks: list[npt.NDArray[np.bool_]]
    noisy: bool = True
    psf_fwhm: npt.NDArray[np.float32] | None = None
    image: npt.NDArray[np.float32] | None = None
    ignore: npt.NDArray[np.bool_] | None = None
    positions: npt.NDArray[np.float32] | None = None
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


def bin_scene(scene: TrainingScene, factor: int) -> TrainingScene:
    """Sum the pixels of a scene in squares.

    Parameters
    ----------
    scene : `TrainingScene`
        The scene. Rows and columns that do not fill a square are left out.
    factor : `int`
        Pixels per square and axis.

    Returns
    -------
    binned : `TrainingScene`
        Fluxes and variances are sums, so that the noise is that of
        uncorrelated pixels. A square is usable if half of its pixels are, and
        belongs to a source if half of them do; a source that has none of them
        keeps the one at its position. Peaks are those of Gaussian sources of
        the size of their masks, averaged over their places in a square.

    Raises
    ------
    ValueError
        Raised if the factor is below 1, or the scene smaller than a square.
    """
    if factor < 1:
        raise ValueError(f"factor is {factor}, wanted 1 or more")
    if factor == 1:
        return scene
    height, width = (side // factor for side in scene.valid.shape)
    if not (height and width):
        raise ValueError(f"a scene of {scene.valid.shape} px cannot be binned by {factor}")

    boxes = np.array([mask.shape for mask in scene.masks]).reshape(-1, 2) / 2.0 + scene.origins - 0.5
    positions = (boxes if scene.positions is None else scene.positions).astype(np.float64)
    positions = (positions + 0.5) / factor - 0.5
    kept, masks, origins = [], [], []
    for index, (mask, origin) in enumerate(zip(scene.masks, scene.origins, strict=True)):
        low = origin // factor
        high = np.minimum(-(-(origin + mask.shape) // factor), (height, width))
        if (low >= high).any():
            continue
        padded = np.zeros((high - low) * factor, dtype=bool)
        start = origin - low * factor
        part = mask[: padded.shape[0] - start[0], : padded.shape[1] - start[1]]
        padded[start[0] : start[0] + part.shape[0], start[1] : start[1] + part.shape[1]] = part
        counts = padded.reshape(high[0] - low[0], factor, high[1] - low[1], factor).sum(axis=(1, 3))
        small = 2 * counts >= factor**2
        if not small.any():
            inside = np.clip(np.rint(positions[index]).astype(int) - low, 0, high - low - 1)
            small[tuple(inside)] = True
        rows, columns = np.flatnonzero(small.any(axis=1)), np.flatnonzero(small.any(axis=0))
        kept.append(index)
        masks.append(small[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        origins.append(low + (rows[0], columns[0]))

    peaks = scene.peak_flux[kept] * np.float32(factor**2)
    if scene.mask_levels is not None:
        # Area and level of a Gaussian's mask tell its variance.
        area = np.array([np.count_nonzero(scene.masks[index]) for index in kept])
        level = np.where(scene.labels[kept] == 1, *scene.mask_levels)
        size = area / (-2.0 * math.pi * np.log(level))
        peaks = peaks * (size / (size + (factor**2 - 1) / 12.0)).astype(np.float32)[:, None]
    psf_fwhm = scene.psf_fwhm
    return TrainingScene(
        noiseless=None if scene.noiseless is None else sum_squares(scene.noiseless, factor),
        variance=sum_squares(scene.variance, factor),
        valid=2 * sum_squares(scene.valid, factor) >= factor**2,
        labels=scene.labels[kept],
        peak_flux=peaks.astype(np.float32),
        origins=np.array(origins, dtype=np.int32).reshape(-1, 2),
        masks=masks,
        noisy=scene.noisy,
        psf_fwhm=None if psf_fwhm is None else bin_psf_fwhm(psf_fwhm, factor).astype(np.float32),
        image=None if scene.image is None else sum_squares(scene.image, factor),
        ignore=None if scene.ignore is None else scene.ignore[kept],
        positions=positions[kept].astype(np.float32),
        mask_levels=scene.mask_levels,
    )


def split_scene(scene: TrainingScene, size: int) -> list[TrainingScene]:
    """Cut a scene into pieces of equal size, so that crops can be made of a
    part of it.

    Parameters
    ----------
    scene : `TrainingScene`
        The scene.
    size : `int`
        Longest side of a piece, px.

    Returns
    -------
    pieces : `list` [`TrainingScene`]
        By rows; the scene itself if it is no larger. A source that is cut
        belongs to the piece that its position is on; on the others what is
        left of it is to be ignored.

    Raises
    ------
    ValueError
        Raised if the size is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}, wanted 1 or more")
    if max(scene.valid.shape) <= size:
        return [scene]
    shapes = np.array([mask.shape for mask in scene.masks], dtype=np.int64).reshape(-1, 2)
    low = scene.origins.astype(np.int64).reshape(-1, 2)
    high = low + shapes
    positions = 0.5 * (low + high - 1.0) if scene.positions is None else scene.positions.astype(float)
    ignore = np.zeros(len(shapes), bool) if scene.ignore is None else scene.ignore
    rows, columns = (
        np.linspace(0, side, -(-side // size) + 1).round().astype(int) for side in scene.valid.shape
    )
    pieces = []
    for start in ((y, x) for y in zip(rows, rows[1:]) for x in zip(columns, columns[1:])):
        (y0, y1), (x0, x1) = start
        first, last = np.array([y0, x0]), np.array([y1, x1])
        there = np.flatnonzero(((low < last) & (high > first)).all(axis=1))
        kept, masks, origins = [], [], []
        for index in there.tolist():
            a, b = np.maximum(low[index], first), np.minimum(high[index], last)
            part = scene.masks[index][
                a[0] - low[index, 0] : b[0] - low[index, 0], a[1] - low[index, 1] : b[1] - low[index, 1]
            ]
            if not part.any():
                continue
            inside_y, inside_x = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
            kept.append(index)
            masks.append(part[inside_y[0] : inside_y[-1] + 1, inside_x[0] : inside_x[-1] + 1])
            origins.append(a - first + (inside_y[0], inside_x[0]))
        whole = ((low[kept] >= first) & (high[kept] <= last)).all(axis=1)
        own = ((positions[kept] >= first - 0.5) & (positions[kept] < last - 0.5)).all(axis=1)
        window = (slice(None), slice(y0, y1), slice(x0, x1))
        pieces.append(
            TrainingScene(
                noiseless=None if scene.noiseless is None else scene.noiseless[window],
                variance=scene.variance[window],
                valid=scene.valid[window[1:]],
                labels=scene.labels[kept],
                peak_flux=scene.peak_flux[kept],
                origins=np.array(origins, dtype=np.int32).reshape(-1, 2),
                masks=masks,
                noisy=scene.noisy,
                psf_fwhm=scene.psf_fwhm,
                image=None if scene.image is None else scene.image[window],
                ignore=ignore[kept] | ~(whole | own),
                positions=(positions[kept] - first).astype(np.float32),
                mask_levels=scene.mask_levels,
            )
        )
    return pieces


def write_scene(scene: TrainingScene, path: str | os.PathLike[str]) -> None:
    """Write a scene as an ``.npz`` file, whole or not at all.

    Parameters
    ----------
    scene : `TrainingScene`
        The scene.
    path : `str` or `os.PathLike`
        Where to.

    Notes
    -----
    Pixels are kept in half precision, in units of the noise, where that
    costs less than a hundredth of the noise on the sky and a part in 2000 of
    a source.
    """
    shapes = np.array([mask.shape for mask in scene.masks], dtype=np.int32).reshape(-1, 2)
    bits = np.concatenate([mask.ravel() for mask in scene.masks]) if scene.masks else np.zeros(0, dtype=bool)
    noise = np.sqrt(np.median(scene.variance[:, ::4, ::4], axis=(1, 2))).astype(np.float32)
    optional: dict[str, Any] = {
        "psf_fwhm": scene.psf_fwhm,
        "ignore": scene.ignore,
        "positions": scene.positions,
        "mask_levels": scene.mask_levels,
    }
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
        shapes=shapes,
        bits=np.packbits(bits),
        noisy=np.array(scene.noisy),
        **arrays,
    )
    write_atomically(Path(path), buffer.getvalue())


def _pack(
    pixels: npt.NDArray[np.float32], unit: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
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
    """Read a scene that `write_scene` wrote.

    Parameters
    ----------
    path : `str` or `os.PathLike`
        The file.

    Returns
    -------
    scene : `TrainingScene`
    """
    with np.load(path, allow_pickle=False) as data:
        shapes = data["shapes"]
        areas = shapes.prod(axis=1)
        ends = np.cumsum(areas)
        bits = np.unpackbits(data["bits"], count=int(areas.sum())).astype(bool)

        def optional(name: str) -> npt.NDArray[Any] | None:
            # An empty array stood for nothing once.
            return data[name] if name in data and data[name].size else None

        def planes(name: str) -> npt.NDArray[np.float32] | None:
            if name not in data:
                return None
            pixels = data[name].astype(np.float32, copy=False)
            if f"{name}_unit" in data:
                unit = data[f"{name}_unit"]
                if (unit != 1.0).any():
                    pixels *= unit[:, None, None]
            return pixels

        variance = planes("variance")
        if variance is None:
            raise ValueError(f"{path} holds no training scene: there is no variance in it")
        height, width = variance.shape[1:]
        levels = optional("mask_levels")
        return TrainingScene(
            noiseless=planes("noiseless"),
            variance=variance,
            valid=np.unpackbits(data["valid"], count=height * width).astype(bool).reshape(height, width),
            labels=data["labels"],
            peak_flux=data["peak_flux"],
            origins=data["origins"],
            masks=[
                bits[end - area : end].reshape(shape)
                for end, area, shape in zip(ends, areas, shapes, strict=True)
            ],
            noisy=bool(data["noisy"]),
            psf_fwhm=optional("psf_fwhm"),
            image=planes("image"),
            ignore=optional("ignore"),
            positions=optional("positions"),
            mask_levels=None if levels is None else (float(levels[0]), float(levels[1])),
        )


@runtime_checkable
class SceneSource(Protocol):
    """Where scenes come from, by number."""

    @property
    def endless(self) -> bool:
        """Whether every number has a scene of its own (`bool`).

        Otherwise there are as many as the length says.
        """

    def __len__(self) -> int:
        """Return the number of scenes in an epoch."""

    def scene(self, number: int) -> TrainingScene:
        """Return a scene, always the same for a number.

        Parameters
        ----------
        number : `int`
            From 0.

        Returns
        -------
        scene : `TrainingScene`
        """

    def expect(self, numbers: Sequence[int]) -> None:
        """Take notice of the scenes that will be wanted soon.

        Parameters
        ----------
        numbers : `~collections.abc.Sequence` [`int`]
            Their numbers.
        """

    def name(self, number: int) -> str:
        """Return what to call a scene in a message.

        Parameters
        ----------
        number : `int`
            Of the scene.

        Returns
        -------
        name : `str`
        """

    def describe(self) -> dict[str, Any]:
        """Say what decides the scenes.

        Returns
        -------
        description : `dict`
            Plain values.
        """


class SceneFiles:
    """Scenes on disk.

    Parameters
    ----------
    paths : `~collections.abc.Iterable` [`os.PathLike`]
        Files of `write_scene`; their order does not matter.

    Raises
    ------
    ValueError
        Raised if there are none.
    """

    endless = False
    """There are as many as there are files (`bool`)."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]]):
        self.paths = sorted(Path(path) for path in paths)
        if not self.paths:
            raise ValueError("no training scenes were given; make some first")

    def __len__(self) -> int:
        return len(self.paths)

    def scene(self, number: int) -> TrainingScene:
        """Read a scene.

        Parameters
        ----------
        number : `int`
            Of the file.

        Returns
        -------
        scene : `TrainingScene`
        """
        return read_scene(self.paths[number])

    def expect(self, numbers: Sequence[int]) -> None:
        """Do nothing: the disk is quick enough.

        Parameters
        ----------
        numbers : `~collections.abc.Sequence` [`int`]
            Not used.
        """

    def name(self, number: int) -> str:
        """Return what to call a scene in a message.

        Parameters
        ----------
        number : `int`
            Of the scene.

        Returns
        -------
        name : `str`
        """
        return self.paths[number].stem

    def describe(self) -> dict[str, Any]:
        """Say which files these are.

        Returns
        -------
        description : `dict`
            Their number and a digest of names and sizes.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        return {"kind": "files", "count": len(self.paths), "digest": digest.hexdigest()[:16]}


class SceneList:
    """Scenes in memory.

    Parameters
    ----------
    scenes : `~collections.abc.Sequence` [`TrainingScene`]
        The scenes.

    Raises
    ------
    ValueError
        Raised if there are none.
    """

    endless = False
    """There are as many as were given (`bool`)."""

    def __init__(self, scenes: Sequence[TrainingScene]):
        self.scenes = list(scenes)
        if not self.scenes:
            raise ValueError("no training scenes were given; make some first")

    def __len__(self) -> int:
        return len(self.scenes)

    def scene(self, number: int) -> TrainingScene:
        """Return a scene.

        Parameters
        ----------
        number : `int`
            Its place in the list.

        Returns
        -------
        scene : `TrainingScene`
        """
        return self.scenes[number]

    def expect(self, numbers: Sequence[int]) -> None:
        """Do nothing: the scenes are there.

        Parameters
        ----------
        numbers : `~collections.abc.Sequence` [`int`]
            Not used.
        """

    def name(self, number: int) -> str:
        """Return what to call a scene in a message.

        Parameters
        ----------
        number : `int`
            Of the scene.

        Returns
        -------
        name : `str`
        """
        return f"scene {number}"

    def describe(self) -> dict[str, Any]:
        """Say which scenes these are.

        Returns
        -------
        description : `dict`
            Their number and a digest of pixels and truth.
        """
        digest = hashlib.sha256()
        for scene in self.scenes:
            pixels = scene.image if scene.noiseless is None else scene.noiseless
            for array in (pixels, scene.labels, scene.origins):
                digest.update(np.ascontiguousarray(array).tobytes())
        return {"kind": "memory", "count": len(self.scenes), "digest": digest.hexdigest()[:16]}


def masked_boxes(valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Cover the unusable pixels of an image with boxes.

    Parameters
    ----------
    valid : `numpy.ndarray`
        Usable pixels, bool, (y, x).

    Returns
    -------
    boxes : `numpy.ndarray`
        Boxes that share no pixel and hold all unusable ones and no other,
        (y0, x0, y1, x1), half open, int64, (box, 4): runs along rows, those of
        neighbouring rows joined where they are alike.
    """
    if valid.all():
        return np.zeros((0, 4), np.int64)
    padded = np.zeros((valid.shape[0], valid.shape[1] + 2), np.int8)
    padded[:, 1:-1] = ~valid
    step = np.diff(padded, axis=1)
    rows, starts = np.nonzero(step == 1)
    ends = np.nonzero(step == -1)[1]
    order = np.lexsort((rows, ends, starts))
    rows, starts, ends = rows[order], starts[order], ends[order]
    new = np.ones(len(rows), bool)
    new[1:] = (np.diff(rows) != 1) | (np.diff(starts) != 0) | (np.diff(ends) != 0)
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(rows)) - 1
    return np.stack([rows[first], starts[first], rows[last] + 1, ends[first]], axis=1).astype(np.int64)
