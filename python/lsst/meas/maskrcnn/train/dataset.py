# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Crops to train on, cut from scenes.

A crop is a pure function of the seed and its number, whatever process asks for
it.
"""

from __future__ import annotations

import copy
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, Self, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..images.background import constant_background
from ..images.normalize import LuptonSettings, ZScoreSettings, lupton_compress, normalize
from ..network.psf import add_psf_planes
from .augment import (
    AugmentSettings,
    Realization,
    Window,
    added_mask_area,
    draw_realization,
    grow_mask,
    realize,
)
from .training_scene import (
    SceneFiles,
    SceneList,
    SceneSource,
    TrainingScene,
    masked_boxes,
    read_scene,
    write_scene,
)

__all__ = [
    "BatchSource",
    "CropSettings",
    "CropSource",
    "TrainingScene",
    "boxes_of",
    "read_scene",
    "write_scene",
]

Crops = tuple[list[Tensor], list[dict[str, Tensor]]]
"""Images, and a target for each."""


@dataclass(frozen=True)
class CropSettings:
    """How crops are cut, and which sources are asked for."""

    size: int = 256
    """Side of a crop (px)."""

    crops_per_scene: int = 2
    """Crops that come from one realisation of a scene."""

    scenes_at_once: int = 4
    """Scenes from which crops come in turn, until each has given its number;
    so many different ones are in a batch."""

    min_area: int = 12
    """Sources with fewer pixels in the crop are ignored."""

    min_peak_snr: float = 3.0
    """Sources whose peak is fainter in every band are ignored, in units of
    the noise of a pixel, where there is noise."""

    min_visible: float = 0.3
    """Share of its mask that must be in the crop for a source that the edge
    cuts, unless its position is; else it is ignored."""

    psf_known_fraction: float = 0.9
    """Share of the crops whose PSF the network is told, if it takes it."""

    psf_jitter: float = 0.03
    """Scatter (natural logarithm) of the widths of the PSF that it is told."""

    def __post_init__(self) -> None:
        for name in ("size", "crops_per_scene", "scenes_at_once", "min_area"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted 1 or more")
        for name in ("min_peak_snr", "psf_jitter"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted a number not below 0")
        for name in ("min_visible", "psf_known_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted a share from 0 to 1")


@runtime_checkable
class BatchSource(Protocol):
    """Where crops to train on come from."""

    @property
    def n_images(self) -> int:
        """Number of crops in an epoch (`int`)."""

    def crops(self, numbers: Sequence[int]) -> Crops:
        """Make crops; each is a pure function of its number.

        Parameters
        ----------
        numbers : `~collections.abc.Sequence` [`int`]
            Numbers of the crops.

        Returns
        -------
        images, targets : `list`
            See `CropSource.crops`.
        """

    def batch(self, number: int, size: int) -> Crops:
        """Make the crops of a batch.

        Parameters
        ----------
        number : `int`
            Number of the batch.
        size : `int`
            Number of crops.

        Returns
        -------
        images, targets : `list`
            See `CropSource.crops`.
        """

    def with_augmentations(self, augment: AugmentSettings) -> Self:
        """Return the same source with other augmentations.

        Parameters
        ----------
        augment : `~.augment.AugmentSettings`
            These.

        Returns
        -------
        source : `BatchSource`
        """

    def describe(self) -> dict[str, Any]:
        """Say what decides the crops.

        Returns
        -------
        description : `dict`
            Plain values.
        """


class _Store:
    """The last things that were used, up to a number of bytes."""

    def __init__(self, limit: int):
        self.limit = limit
        self._lock = threading.Lock()
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._size = 0

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key][0]
        # Two threads may make the same thing; that is cheaper than waiting.
        value = make()
        amount = size(value)
        with self._lock:
            if key not in self._items and amount <= self.limit:
                self._items[key] = (value, amount)
                self._size += amount
                while self._size > self.limit:
                    self._size -= self._items.popitem(last=False)[1][1]
        return value

    def __getstate__(self) -> dict[str, Any]:
        # Another process starts with an empty store.
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit"])  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class _Truth:
    """Sources and masked pixels of a scene."""

    valid: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    wanted: npt.NDArray[np.bool_]
    peak_flux: npt.NDArray[np.float32]
    masks: list[npt.NDArray[np.bool_]]
    boxes: npt.NDArray[np.int64]
    areas: npt.NDArray[np.int64]
    positions: npt.NDArray[np.float64]
    masked: npt.NDArray[np.int64]
    mask_levels: tuple[float, float] | None
    psf_fwhm: npt.NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A scene with what every crop of it needs.

    Boxes are (y0, x0, y1, x1), half open. Either the pixels are there, or
    ``image``, the normalised scene, and how it came about.
    """

    truth: _Truth
    sky_sigma: npt.NDArray[np.float64]
    scene: TrainingScene | None
    constant_variance: bool = False
    image: npt.NDArray[np.floating[Any]] | None = None
    realization: Realization | None = None

    @property
    def nbytes(self) -> int:
        arrays = [self.image]
        if self.scene is not None:
            arrays += [self.scene.noiseless, self.scene.image, self.scene.variance]
        pixels = sum(array.nbytes for array in arrays if array is not None)
        # A mask is an array of its own, which costs more than its pixels.
        return pixels + self.truth.valid.nbytes + sum(mask.size + 200 for mask in self.truth.masks)


def _prepare(scene: TrainingScene) -> _Prepared:
    shapes = np.array([mask.shape for mask in scene.masks], dtype=np.int64).reshape(-1, 2)
    origins = scene.origins.astype(np.int64).reshape(-1, 2)
    boxes = np.concatenate([origins, origins + shapes], axis=1)
    positions = 0.5 * (boxes[:, :2] + boxes[:, 2:] - 1.0) if scene.positions is None else scene.positions
    truth = _Truth(
        valid=scene.valid,
        labels=scene.labels.astype(np.int64),
        wanted=np.ones(len(scene.labels), bool) if scene.ignore is None else ~scene.ignore,
        peak_flux=scene.peak_flux,
        masks=scene.masks,
        boxes=boxes,
        areas=np.array([np.count_nonzero(mask) for mask in scene.masks], dtype=np.int64),
        positions=np.asarray(positions, dtype=np.float64),
        masked=masked_boxes(scene.valid),
        mask_levels=scene.mask_levels,
        psf_fwhm=scene.psf_fwhm,
    )
    coarse = scene.variance[:, ::4, ::4]
    known = scene.valid[::4, ::4]
    values = coarse[:, known] if known.any() else coarse.reshape(len(coarse), -1)
    lowest, highest = values.min(axis=1), values.max(axis=1)
    constant = bool((highest <= lowest * (1 + 1e-6)).any() or (lowest <= 0).any())
    sky_sigma = np.sqrt(np.median(values, axis=1).astype(np.float64))
    return _Prepared(truth, sky_sigma, scene, constant)


@dataclass(frozen=True, eq=False)
class _View:
    """A scene in one realisation, from which crops are cut.

    Either ``image`` is there, the normalised scene, or the pixels and the
    numbers with which parts of them can be normalised on their own.
    """

    truth: _Truth
    scene: TrainingScene | None
    sky_sigma: npt.NDArray[np.float64]
    realization: Realization
    wanted: npt.NDArray[np.bool_]
    image: npt.NDArray[np.floating[Any]] | None = None
    level: npt.NDArray[np.float32] | None = None
    stretch: float = 1.0
    scale: float = 1.0


# Words that keep the streams of random numbers apart.
_ORDER, _REALIZATION, _CROP, _OWN_NOISE = range(4)

_FEWEST_SAMPLES = 16_000
"""Pixels per band from which the level of the sky is taken: its error is one
per cent of the noise."""

_HALF_PRECISION = 1e4
"""Values up to which a normalised image is kept in half precision, to a part
in 2000."""

_FEWEST_VALID = 0.25
"""Share of usable pixels for which a crop is drawn anew, a few times."""


class CropSource:
    """Cuts training crops from scenes.

    Parameters
    ----------
    scenes : `SceneSource`, or `~collections.abc.Sequence`
        The scenes, or a sequence of scene files or of `TrainingScene`.
    normalization : `~lsst.meas.maskrcnn.images.normalize.LuptonSettings` or \
            `~lsst.meas.maskrcnn.images.normalize.ZScoreSettings`
        How images are normalised.
    settings : `CropSettings`, optional
        How to cut.
    seed : `int`
        With the number of a crop, decides everything that is random in it.
    psf_channels : `bool`
        Whether the network takes PSF planes.
    augment : `~.augment.AugmentSettings`, optional
        How the images are changed.
    cache_mb : `float`
        Memory for scenes that were read or normalised, MB.

    Raises
    ------
    ValueError
        Raised if there are no scenes, or if the normalisation is not known.

    Notes
    -----
    If no augmentation changes pixels, every scene is normalised once, with
    one realisation of its noise, and kept in half precision. Otherwise groups
    of ``crops_per_scene`` crops share a realisation. Where the normalisation
    only needs the level of the sky and the noise (Lupton with a global
    background and units of noise or flux), these come from a sample of the
    scene, and noise is drawn for the crop alone.

    A source can be used by several threads, and sent to other processes.
    """

    def __init__(
        self,
        scenes: SceneSource | Sequence[str | os.PathLike[str]] | Sequence[TrainingScene],
        normalization: LuptonSettings | ZScoreSettings,
        settings: CropSettings | None = None,
        seed: int = 1,
        psf_channels: bool = False,
        augment: AugmentSettings | None = None,
        cache_mb: float = 1024.0,
    ):
        if isinstance(scenes, SceneSource):
            self.scenes: SceneSource = scenes
        elif scenes and all(isinstance(item, TrainingScene) for item in scenes):
            self.scenes = SceneList(cast(Sequence[TrainingScene], scenes))
        else:
            self.scenes = SceneFiles(cast(Sequence[str], scenes))
        self.normalization = normalization
        self.settings = settings or CropSettings()
        self.seed = seed
        self.psf_channels = psf_channels
        self.augment = augment or AugmentSettings()
        self._store = _Store(int(cache_mb * 1e6))
        # What the crops of a group share is needed again soon, or never.
        self._views = _Store(self.settings.scenes_at_once)
        self._last: list[int] = []

    @property
    def n_images(self) -> int:
        """Number of crops in which every scene comes once (`int`)."""
        return len(self.scenes) * self.settings.crops_per_scene

    def with_augmentations(self, augment: AugmentSettings) -> Self:
        """Return the same source with other augmentations.

        Parameters
        ----------
        augment : `~.augment.AugmentSettings`
            These.

        Returns
        -------
        source : `CropSource`
            Shares the memory for scenes with this one.
        """
        other = copy.copy(self)
        other.augment = augment
        other._views = _Store(self._views.limit)
        return other

    def describe(self) -> dict[str, Any]:
        """Say what decides the crops.

        Returns
        -------
        description : `dict`
            Plain values, for checkpoints and the header of a model.
        """
        return {
            "scenes": self.scenes.describe(),
            "normalization": asdict(self.normalization),
            "crops": asdict(self.settings),
            "augment": asdict(self.augment),
            "psf_channels": self.psf_channels,
            "seed": self.seed,
        }

    def batch(self, number: int, size: int) -> Crops:
        """Make the crops of a batch.

        Parameters
        ----------
        number : `int`
            Number of the batch; the same number gives the same batch.
        size : `int`
            Number of crops.

        Returns
        -------
        images, targets : `list`
            As `crops` has them.
        """
        return self.crops(range(number * size, (number + 1) * size))

    def crops(self, numbers: Sequence[int]) -> Crops:
        """Make crops.

        Parameters
        ----------
        numbers : `~collections.abc.Sequence` [`int`]
            Numbers of the crops, not below 0; the same number gives the same
            crop.

        Returns
        -------
        images : `list` [`torch.Tensor`]
            Normalised crops, float32, (band, y, x), with PSF planes behind
            the bands if the network takes them.
        targets : `list` [`dict`]
            Per crop ``boxes`` (float32, (source, 4), [x0, y0, x1, y1] half
            open), ``labels`` (int64), ``masks`` (uint8, (source, y, x)) and
            ``ignore_boxes`` (float32, (region, 4)): what is neither to be
            found nor to be called wrong.
        """
        self._announce([int(number) for number in numbers])
        made = [self._crop(int(number)) for number in numbers]
        return [image for image, _ in made], [target for _, target in made]

    def names(self, numbers: Sequence[int]) -> list[str]:
        """Return the names of the scenes that crops are cut from.

        Parameters
        ----------
        numbers : `~collections.abc.Sequence` [`int`]
            Numbers of the crops.

        Returns
        -------
        names : `list` [`str`]
            One for each.
        """
        return [self.scenes.name(self._scene_number(self._group(int(number)))) for number in numbers]

    def _announce(self, numbers: list[int]) -> None:
        """Tell the scenes what will be wanted, if calls go on as they did."""
        last, self._last = self._last, numbers
        if not self.scenes.endless or not numbers:
            return
        wanted = [self._scene_number(self._group(number)) for number in numbers]
        if last and numbers[0] > last[0]:
            ahead = [number + k * (numbers[0] - last[0]) for k in range(1, 5) for number in numbers]
            wanted += [self._scene_number(self._group(number)) for number in ahead]
        self.scenes.expect(list(dict.fromkeys(wanted)))

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, number])

    def _group(self, number: int) -> int:
        """Return which realisation a crop comes from, counted from the first epoch on."""
        settings, scenes = self.settings, len(self.scenes)
        epoch, rest = divmod(number, scenes * settings.crops_per_scene)
        block, rest = divmod(rest, settings.scenes_at_once * settings.crops_per_scene)
        first = block * settings.scenes_at_once
        # The last scenes of an epoch may be fewer.
        return epoch * scenes + first + rest % min(settings.scenes_at_once, scenes - first)

    def _scene_number(self, group: int) -> int:
        """Go through the scenes in another order in every epoch."""
        if self.scenes.endless:
            return group
        epoch, place = divmod(group, len(self.scenes))
        return int(self._rng(_ORDER, epoch).permutation(len(self.scenes))[place])

    def _prepared(self, number: int, normalized: bool) -> _Prepared:
        """Get a scene ready, with its pixels or normalised."""

        def make() -> _Prepared:
            scene = self.scenes.scene(number)
            prepared = _prepare(scene)
            if not normalized:
                return prepared
            rng = self._rng(_OWN_NOISE, number)
            realization = draw_realization(AugmentSettings(), rng, scene)
            image = self._whole(scene, prepared.sky_sigma, realization, rng)
            if np.abs(image).max(initial=0.0) < _HALF_PRECISION:
                image = image.astype(np.float16)
            return _Prepared(prepared.truth, prepared.sky_sigma, None, image=image, realization=realization)

        prepared: _Prepared = self._store.get((number, normalized), make, lambda value: value.nbytes)
        return prepared

    def _whole(
        self,
        scene: TrainingScene,
        sky_sigma: npt.NDArray[np.float64],
        realization: Realization,
        rng: np.random.Generator,
    ) -> npt.NDArray[np.float32]:
        """Realise and normalise a whole scene."""
        flux, variance = realize(scene, sky_sigma, realization, (0, 0, *scene.valid.shape), rng)
        bands = realization.kept_bands()
        if len(bands) == len(flux):
            return self._normalize(flux, variance, scene.valid)
        # A lost band has no part in the normalisation.
        flux[bands] = self._normalize(flux[bands], variance[bands], scene.valid)
        flux[realization.dropped] = 0.0
        return flux

    def _normalize(
        self,
        flux: npt.NDArray[np.float32],
        variance: npt.NDArray[np.float32],
        valid: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.float32]:
        return normalize(self.normalization, flux, variance, valid, overwrite=True).image

    def _view(self, group: int) -> _View:
        view: _View = self._views.get(group, lambda: self._make_view(group), lambda _: 1)
        return view

    def _make_view(self, group: int) -> _View:
        changes = self.augment.changes_pixels
        prepared = self._prepared(self._scene_number(group), normalized=not changes)
        truth, scene = prepared.truth, prepared.scene
        if scene is None:
            realization = cast(Realization, prepared.realization)
            wanted = self._wanted(prepared, realization)
            return _View(truth, None, prepared.sky_sigma, realization, wanted, prepared.image)
        rng = self._rng(_REALIZATION, group)
        realization = draw_realization(self.augment, rng, scene)
        view = _View(truth, scene, prepared.sky_sigma, realization, self._wanted(prepared, realization))
        if prepared.constant_variance or not self._in_parts():
            return replace(view, image=self._whole(scene, prepared.sky_sigma, realization, rng))
        level, stretch, scale = self._statistics(view, scene, rng)
        return replace(view, level=level, stretch=stretch, scale=scale)

    def _in_parts(self) -> bool:
        """Say whether parts of a scene can be normalised on their own."""
        how = self.normalization
        return (
            isinstance(how, LuptonSettings)
            and how.background in ("global", "none")
            and "percentile" not in (how.stretch_unit, how.scale_unit)
            # A variance that is not constant is used.
            and how.noise_source in ("auto", "variance")
        )

    def _statistics(
        self, view: _View, scene: TrainingScene, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.float32], float, float]:
        """Find sky levels, stretch and scale as the normalisation does, from a sample."""
        how, realization = cast(LuptonSettings, self.normalization), view.realization
        height, width = scene.valid.shape
        step = max(1, math.isqrt(height * width // _FEWEST_SAMPLES))
        flux, variance = realize(scene, view.sky_sigma, realization, (0, 0, height, width), rng, step)
        good = scene.valid[::step, ::step]
        level = np.zeros(len(flux), np.float32)
        if how.background == "global":
            for k, plane in enumerate(flux):
                level[k] = constant_background(plane[good], how.clip_sigma, how.clip_iterations).level
        noise = np.array([np.median(plane[good]) if good.any() else 1.0 for plane in variance])
        bands = realization.kept_bands()
        sigma = math.sqrt(float(noise[bands].sum())) / len(bands)
        stretch = how.stretch * (sigma if how.stretch_unit == "noise" else 1.0)
        flux_of_one = how.scale * (sigma if how.scale_unit == "noise" else 1.0)
        return level, stretch, math.asinh(how.q * flux_of_one / stretch) / how.q

    def _wanted(self, prepared: _Prepared, realization: Realization) -> npt.NDArray[np.bool_]:
        """Say which sources are bright enough in an image."""
        truth = prepared.truth
        if realization.noise == 0.0 or not len(truth.wanted):
            return truth.wanted
        bands = realization.kept_bands()
        peaks = truth.peak_flux[:, bands] * realization.gain[bands]
        sigma = prepared.sky_sigma[bands] * realization.noise
        if realization.blur > 0:
            # The larger the area over which the flux is spread, the lower the peak.
            area = np.maximum(truth.areas, 1)
            peaks = peaks * (area / (area + self._growth(truth, realization)))[:, None]
        if realization.own:
            sigma = sigma * realization.gain[bands]
        bright = (peaks >= self.settings.min_peak_snr * sigma).any(axis=1)
        return truth.wanted & bright

    @staticmethod
    def _growth(truth: _Truth, realization: Realization) -> npt.NDArray[np.float64]:
        """Return by how many pixels each mask grows."""
        if truth.mask_levels is None or realization.blur == 0:
            return np.zeros(len(truth.labels))
        star, galaxy = (added_mask_area(realization.kernel_variance, level) for level in truth.mask_levels)
        return np.where(truth.labels == 1, star, galaxy)

    def _crop(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        view = self._view(self._group(number))
        rng = self._rng(_CROP, number)
        valid = view.truth.valid
        height, width = valid.shape
        shape = (min(self.settings.size, height), min(self.settings.size, width))
        for _ in range(5):
            y0 = int(rng.integers(height - shape[0] + 1))
            x0 = int(rng.integers(width - shape[1] + 1))
            window = (y0, x0, *shape)
            good = valid[y0 : y0 + shape[0], x0 : x0 + shape[1]]
            if np.count_nonzero(good) >= _FEWEST_VALID * good.size:
                break
        turns = int(rng.integers(4)) if self.augment.turns else 0
        flip = bool(rng.integers(2)) if self.augment.flips else False
        pixels = self._pixels(view, window, rng)
        image = torch.from_numpy(_turn(pixels, turns, flip))
        if self.psf_channels:
            image = add_psf_planes(image, self._told_psf(view, rng))
        return image, self._target(view, window, turns, flip)

    def _pixels(self, view: _View, window: Window, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        y0, x0, height, width = window
        inside = (slice(y0, y0 + height), slice(x0, x0 + width))
        if view.image is not None:
            return view.image[:, inside[0], inside[1]].astype(np.float32)
        scene, level = cast(TrainingScene, view.scene), cast(npt.NDArray[np.float32], view.level)
        flux, _ = realize(scene, view.sky_sigma, view.realization, window, rng)
        flux -= level[:, None, None]
        if view.realization.dropped is not None:
            flux[view.realization.dropped] = 0.0
        bad = ~scene.valid[inside]
        if bad.any():
            flux[:, bad] = 0.0
        flux *= np.float32(1.0 / view.stretch)
        how = cast(LuptonSettings, self.normalization)
        lupton_compress(flux, how.q, view.scale, len(view.realization.kept_bands()))
        return flux

    def _told_psf(self, view: _View, rng: np.random.Generator) -> npt.NDArray[Any] | None:
        """Widths of the PSF as a pipeline would know them, if at all."""
        known = rng.random() < self.settings.psf_known_fraction
        scatter = np.exp(rng.normal(0.0, self.settings.psf_jitter, len(view.realization.gain)))
        fwhm = view.truth.psf_fwhm
        return view.realization.psf_fwhm(fwhm) * scatter if known and fwhm is not None else None

    def _target(self, view: _View, window: Window, turns: int, flip: bool) -> dict[str, Tensor]:
        """Sources of a crop, and what is to be ignored in it."""
        truth, settings = view.truth, self.settings
        y0, x0, height, width = window
        limit = np.array([height, width, height, width])
        corner = np.array([y0, x0, y0, x0])
        growth = self._growth(truth, view.realization)
        reach = np.zeros(len(growth))
        if growth.any():
            radius = np.sqrt(np.maximum(truth.areas, 1) / np.pi)
            reach = np.ceil(2.0 * (np.sqrt(radius**2 + growth / np.pi) - radius)) + 1.0
        boxes = truth.boxes - corner
        near = ((boxes[:, :2] - reach[:, None] < limit[:2]) & (boxes[:, 2:] + reach[:, None] > 0)).all(axis=1)
        relative = truth.positions - corner[:2] + 0.5
        inside = ((relative >= 0) & (relative < limit[:2])).all(axis=1).tolist()

        kept: list[tuple[npt.NDArray[np.bool_], int]] = []
        places: list[tuple[int, int, int, int]] = []
        ignored: list[tuple[int, int, int, int]] = []
        for index in np.flatnonzero(near).tolist():
            mask, area = truth.masks[index], int(truth.areas[index])
            top, left = boxes[index, :2].tolist()
            if growth[index] > 0:
                mask, margin = grow_mask(mask, float(growth[index]))
                top, left = top - margin, left - margin
                area = int(np.count_nonzero(mask))
            part, top, left = _inside(mask, top, left, height, width, tight=growth[index] == 0)
            visible = area if part is mask and growth[index] == 0 else int(np.count_nonzero(part))
            if visible == 0:
                continue
            place = (top, left, top + part.shape[0], left + part.shape[1])
            seen = visible >= settings.min_area and (visible >= settings.min_visible * area or inside[index])
            if view.wanted[index] and seen:
                kept.append((part, index))
                places.append(place)
            else:
                ignored.append(place)
        masked = np.clip(truth.masked - corner, 0, limit)
        masked = masked[(masked[:, :2] < masked[:, 2:]).all(axis=1)]
        turned = _turn_boxes(np.array(places, np.int64).reshape(-1, 4), (height, width), turns, flip)
        regions = np.concatenate([np.array(ignored, np.int64).reshape(-1, 4), masked])
        regions = _turn_boxes(regions, (height, width), turns, flip)
        shape = (height, width) if turns % 2 == 0 else (width, height)
        masks = np.zeros((len(kept), *shape), np.uint8)
        for painted, (top, left, bottom, right), (part, _) in zip(masks, turned.tolist(), kept, strict=True):
            part = np.rot90(part, turns)
            painted[top:bottom, left:right] = part[:, ::-1] if flip else part
        return {
            "boxes": torch.from_numpy(turned[:, [1, 0, 3, 2]].astype(np.float32)),
            "labels": torch.from_numpy(truth.labels[[index for _, index in kept]]),
            "masks": torch.from_numpy(masks),
            "ignore_boxes": torch.from_numpy(regions[:, [1, 0, 3, 2]].astype(np.float32)),
        }


def _inside(
    mask: npt.NDArray[np.bool_], top: int, left: int, height: int, width: int, tight: bool
) -> tuple[npt.NDArray[np.bool_], int, int]:
    """Cut a mask at the edge of a crop, tightly; the mask itself if nothing is cut."""
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    if top >= 0 and left >= 0 and bottom <= height and right <= width:
        if tight:
            return mask, top, left
        part = mask
    else:
        part = mask[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
        top, left = max(top, 0), max(left, 0)
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    if not len(rows):
        return part[:0, :0], top, left
    part = part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return part, top + int(rows[0]), left + int(columns[0])


def _turn(array: npt.NDArray[Any], turns: int, flip: bool) -> npt.NDArray[Any]:
    turned = np.rot90(array, turns, axes=(-2, -1))
    return np.array(turned[..., ::-1] if flip else turned, order="C")


def _turn_boxes(
    boxes: npt.NDArray[np.int64], shape: tuple[int, int], turns: int, flip: bool
) -> npt.NDArray[np.int64]:
    """Turn boxes (y0, x0, y1, x1) as `_turn` turns an image of this shape."""
    height, width = shape
    for _ in range(turns):
        y0, x0, y1, x1 = boxes.T
        boxes = np.stack([width - x1, y0, width - x0, y1], axis=1)
        height, width = width, height
    if flip:
        y0, x0, y1, x1 = boxes.T
        boxes = np.stack([y0, width - x1, y1, width - x0], axis=1)
    return boxes


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
