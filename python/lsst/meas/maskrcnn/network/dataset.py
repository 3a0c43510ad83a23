# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training scenes on disk and the crops that are cut from them.

A scene is kept without its noise, so that every use can draw new noise at
another depth. A batch is a pure function of the seed and its number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..imaging.normalize import normalize
from .model_file import write_atomically
from .psf import add_psf_planes

__all__ = ["CropSettings", "CropSource", "TrainingScene", "read_scene", "write_scene"]


@dataclass(frozen=True)
class TrainingScene:
    """A noise-free multi-band scene with the truth of its sources.

    Parameters
    ----------
    noiseless : `numpy.ndarray`
        Flux per pixel without noise, float32, (band, y, x), nJy.
    variance : `numpy.ndarray`
        Variance per pixel at the scene's own depth, float32, (band, y, x),
        nJy^2.
    valid : `numpy.ndarray`
        Usable pixels, bool, (y, x).
    labels : `numpy.ndarray`
        Classes, int64, (source,): 1 is a star, 2 a galaxy.
    peak_flux : `numpy.ndarray`
        Brightest pixel of each source alone, float32, (source, band), nJy.
    origins : `numpy.ndarray`
        (y0, x0) of each mask, int32, (source, 2).
    masks : `list` [`numpy.ndarray`]
        Truth masks, bool, (y, x) each, tight around the source.
    noisy : `bool`
        Whether noise belongs to this scene; without it the variance still
        gives the scale of the normalisation.
    psf_fwhm : `numpy.ndarray` or `None`
        Full width at half maximum of the Gaussian with the adaptive moments
        of the PSF, float32, (band,), px; `None` where it is not known.
    """

    noiseless: npt.NDArray[np.float32]
    variance: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    peak_flux: npt.NDArray[np.float32]
    origins: npt.NDArray[np.int32]
    masks: list[npt.NDArray[np.bool_]]
    noisy: bool = True
    psf_fwhm: npt.NDArray[np.float32] | None = None


def write_scene(scene: TrainingScene, path: str | os.PathLike[str]) -> None:
    """Write a scene as an ``.npz`` file, whole or not at all.

    Parameters
    ----------
    scene : `TrainingScene`
        The scene.
    path : `str` or `os.PathLike`
        Where to.
    """
    shapes = np.array([mask.shape for mask in scene.masks], dtype=np.int32).reshape(-1, 2)
    bits = np.concatenate([mask.ravel() for mask in scene.masks]) if scene.masks else np.zeros(0, dtype=bool)
    buffer = BytesIO()
    np.savez(
        buffer,
        noiseless=scene.noiseless,
        variance=scene.variance,
        valid=np.packbits(scene.valid),
        labels=scene.labels,
        peak_flux=scene.peak_flux,
        origins=scene.origins,
        shapes=shapes,
        bits=np.packbits(bits),
        noisy=np.array(scene.noisy),
        psf_fwhm=np.zeros(0, np.float32) if scene.psf_fwhm is None else scene.psf_fwhm,
    )
    write_atomically(Path(path), buffer.getvalue())


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
        noiseless = data["noiseless"]
        height, width = noiseless.shape[1:]
        return TrainingScene(
            noiseless=noiseless,
            variance=data["variance"],
            valid=np.unpackbits(data["valid"], count=height * width).astype(bool).reshape(height, width),
            labels=data["labels"],
            peak_flux=data["peak_flux"],
            origins=data["origins"],
            masks=[
                bits[end - area : end].reshape(shape)
                for end, area, shape in zip(ends, areas, shapes, strict=True)
            ],
            noisy=bool(data["noisy"]),
            psf_fwhm=data["psf_fwhm"] if "psf_fwhm" in data and data["psf_fwhm"].size else None,
        )


@dataclass(frozen=True)
class CropSettings:
    """How crops are cut and changed."""

    size: int = 256
    """Side of a crop (px)."""

    crops_per_scene: int = 2
    """Crops that share one realisation of a scene's noise."""

    depth_range: tuple[float, float] = (0.5, 2.0)
    """Range of the factor on the noise, drawn log-uniformly."""

    noiseless_fraction: float = 0.2
    """Share of the realisations of noisy scenes that get no noise."""

    correlated_fraction: float = 0.5
    """Share of the realisations whose noise is correlated between
    neighbours, as in a resampled image."""

    gain_jitter: float = 0.1
    """Scatter (natural logarithm) of a factor on each band's flux."""

    min_area: int = 12
    """Sources with fewer pixels in the crop are left out."""

    min_peak_snr: float = 3.0
    """Sources whose peak is fainter in every band are left out, in units of
    the noise of a pixel, where there is noise."""

    psf_known_fraction: float = 0.9
    """Share of the crops whose PSF the network is told, if it takes it."""

    psf_jitter: float = 0.03
    """Scatter (natural logarithm) of the widths of the PSF that it is told."""


class CropSource:
    """Draws batches of training crops from scenes on disk.

    Parameters
    ----------
    paths : `~collections.abc.Sequence` [`os.PathLike`]
        Scene files.
    normalization : `str`
        Registry name of the normalisation.
    normalization_settings : `~collections.abc.Mapping`
        Its settings.
    settings : `CropSettings`
        How to cut.
    seed : `int`
        With the number of a batch, decides everything that is random in it.
    psf_channels : `bool`
        Whether the network takes PSF planes.

    Raises
    ------
    ValueError
        Raised if there are no scenes.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        normalization: str,
        normalization_settings: Mapping[str, Any],
        settings: CropSettings,
        seed: int,
        psf_channels: bool = False,
    ):
        if not paths:
            raise ValueError("no training scenes were given; make some first")
        self.paths = sorted(Path(path) for path in paths)
        self.normalization = normalization
        self.normalization_settings = dict(normalization_settings)
        self.settings = settings
        self.seed = seed
        self.psf_channels = psf_channels

    def batch(self, number: int, size: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Make a batch.

        Parameters
        ----------
        number : `int`
            Number of the batch; the same number gives the same batch.
        size : `int`
            Number of crops.

        Returns
        -------
        images : `list` [`torch.Tensor`]
            Normalised crops, float32, (band, y, x), with PSF planes behind
            the bands if the network takes them.
        targets : `list` [`dict`]
            Per crop ``boxes`` (float32, (source, 4), [x0, y0, x1, y1] half
            open), ``labels`` (int64) and ``masks`` (uint8, (source, y, x)).
        """
        rng = np.random.default_rng([self.seed, number])
        images: list[Tensor] = []
        targets: list[dict[str, Tensor]] = []
        while len(images) < size:
            scene = read_scene(self.paths[rng.integers(len(self.paths))])
            pixels, valid, keep = self._realise(scene, rng)
            for _ in range(min(self.settings.crops_per_scene, size - len(images))):
                image, target = self._crop(scene, pixels, keep, rng)
                if self.psf_channels:
                    image = add_psf_planes(image, self._told_psf(scene, rng))
                images.append(image)
                targets.append(target)
        return images, targets

    def _realise(
        self, scene: TrainingScene, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Draw noise at some depth and normalise the whole scene."""
        settings = self.settings
        n_bands = len(scene.noiseless)
        depth = float(np.exp(rng.uniform(*np.log(settings.depth_range))))
        gain = np.exp(rng.normal(0.0, settings.gain_jitter, n_bands)).astype(np.float32)[:, None, None]
        noisy = scene.noisy and rng.random() >= settings.noiseless_fraction
        flux = scene.noiseless * gain
        variance = scene.variance * np.float32(depth**2)
        if noisy:
            noise = rng.standard_normal(flux.shape, dtype=np.float32)
            if rng.random() < settings.correlated_fraction:
                noise = _correlate(noise, float(rng.uniform(0.1, 0.5)))
            flux += np.sqrt(variance) * noise
        result = normalize(self.normalization, flux, variance, scene.valid, self.normalization_settings)
        keep = np.ones(len(scene.labels), dtype=bool)
        if noisy:
            sigma = np.sqrt(np.median(variance[:, ::8, ::8], axis=(1, 2)))
            keep = (scene.peak_flux * gain[:, 0, 0] >= settings.min_peak_snr * sigma).any(axis=1)
        return result.image, result.valid, keep

    def _told_psf(self, scene: TrainingScene, rng: np.random.Generator) -> npt.NDArray[Any] | None:
        """Widths of the PSF as a pipeline would know them, if at all."""
        known = rng.random() < self.settings.psf_known_fraction
        scatter = np.exp(rng.normal(0.0, self.settings.psf_jitter, len(scene.noiseless)))
        return None if scene.psf_fwhm is None or not known else scene.psf_fwhm * scatter

    def _crop(
        self,
        scene: TrainingScene,
        pixels: npt.NDArray[np.float32],
        keep: npt.NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cut, turn and flip one crop with its targets."""
        size = self.settings.size
        height, width = pixels.shape[1:]
        y0 = int(rng.integers(max(height - size, 0) + 1))
        x0 = int(rng.integers(max(width - size, 0) + 1))
        shape = (min(size, height), min(size, width))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))

        masks, labels = [], []
        for index in np.flatnonzero(keep):
            mask = scene.masks[index]
            my, mx = scene.origins[index] - (y0, x0)
            ys = slice(max(my, 0), min(my + mask.shape[0], shape[0]))
            xs = slice(max(mx, 0), min(mx + mask.shape[1], shape[1]))
            if ys.start >= ys.stop or xs.start >= xs.stop:
                continue
            part = mask[ys.start - my : ys.stop - my, xs.start - mx : xs.stop - mx]
            if np.count_nonzero(part) < self.settings.min_area:
                continue
            painted = np.zeros(shape, dtype=np.uint8)
            painted[ys, xs] = part
            masks.append(_turn(painted, turns, flip))
            labels.append(scene.labels[index])

        image = _turn(pixels[:, y0 : y0 + shape[0], x0 : x0 + shape[1]], turns, flip)
        stack = np.stack(masks) if masks else np.zeros((0, *image.shape[1:]), dtype=np.uint8)
        return torch.from_numpy(np.ascontiguousarray(image)), {
            "boxes": torch.from_numpy(boxes_of(stack)),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": torch.from_numpy(stack),
        }


def _correlate(noise: npt.NDArray[np.float32], weight: float) -> npt.NDArray[np.float32]:
    """Mix each pixel with its neighbours at this weight, at unit variance."""
    for axis in (1, 2):
        noise = noise + weight * (np.roll(noise, 1, axis) + np.roll(noise, -1, axis))
    return noise / np.float32(1.0 + 2.0 * weight**2)


def _turn(array: npt.NDArray[Any], turns: int, flip: bool) -> npt.NDArray[Any]:
    turned = np.rot90(array, turns, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if flip else turned)


def boxes_of(masks: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Find the boxes around masks.

    Parameters
    ----------
    masks : `numpy.ndarray`
        Masks, (source, y, x), none of them empty.

    Returns
    -------
    boxes : `numpy.ndarray`
        [x0, y0, x1, y1], half open, float32, (source, 4).
    """
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for axis in (0, 1):
        profile = np.any(masks, axis=1 + axis)
        length = profile.shape[1]
        boxes[:, axis] = profile.argmax(axis=1)
        boxes[:, axis + 2] = length - profile[:, ::-1].argmax(axis=1)
    return boxes
