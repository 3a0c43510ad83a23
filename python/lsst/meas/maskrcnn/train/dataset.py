# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Crops to train on, cut from scenes.

A crop is a pure function of the seed and its number, whatever process asks for
it.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from ..images.background import constant_background
from ..images.normalize import LuptonSettings, ZScoreSettings, lupton_compress, normalize
from ..images.settings import settings as checked_settings
from ..metrics.arrays import BoolArray, Float32Array, FloatArray
from ..network.psf import add_psf_planes
from .augment import AugmentSettings, Realization, Window, draw_realization, realize
from .scene_sources import SceneSource
from .targets import SceneTruth, make_target, turn_image
from .training_scene import TrainingScene

Crops = tuple[list[Tensor], list[dict[str, Tensor]]]
"""Images, and a target for each."""

_SCENES_AT_ONCE = 4
"""Scenes from which crops come in turn, until each has given its number: so many
different ones are in a batch of four, the smallest of the schedules."""

_PSF_KNOWN, _PSF_JITTER = 0.9, 0.03
"""Share of the crops for which the network gets the widths of the PSF, so that
it can do without, and their scatter (natural logarithm): about what widths that
are measured on stars of a coadd differ by."""


@checked_settings
class CropSettings:
    """How crops are cut, and which sources the network should find."""

    size: Annotated[int, Field(ge=1, description="Side of a crop (px).")] = 256
    crops_per_scene: Annotated[
        int | None,
        Field(
            ge=1,
            description="Crops in a row from one scene, with one realisation of what the augmentations "
            "change. The fewer, the more varied a batch; the more, the less often scenes are read. None "
            "takes two, or a sixteenth of a patch where that is more.",
        ),
    ] = None
    min_area: Annotated[
        int, Field(ge=1, description="Sources with fewer pixels in the crop are ignored.")
    ] = 12
    min_peak_snr: Annotated[
        float,
        Field(
            ge=0,
            description="Sources whose peak is fainter in every band are ignored, in units of the noise of "
            "a pixel, where there is noise.",
        ),
    ] = 3.0
    cache_mb: Annotated[
        float, Field(ge=0, description="Memory for scenes that were read or normalised (MB).")
    ] = 1024.0


@runtime_checkable
class BatchSource(Protocol):
    """Where crops to train on come from."""

    @property
    def n_images(self) -> int:
        """Number of crops in an epoch (`int`)."""

    def crops(self, numbers: Sequence[int]) -> Crops:
        """Make crops; each is a pure function of its number. See `SceneCrops.crops`."""

    def describe(self) -> dict[str, Any]:
        """Describe by plain values what decides the crops."""


class SceneCache:
    """Keeps the items that were used last, up to a number of bytes."""

    def __init__(self, limit: int):
        self.limit = limit
        self._lock = threading.Lock()
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._size = 0

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """Return an item, made if it is not there, and its size found."""
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
        # Another process starts with an empty cache.
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit"])  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class _PreparedScene:
    """A scene with what every crop of it needs.

    Either the pixels are there, or ``image``, the normalised scene, and how it
    was made.
    """

    truth: SceneTruth
    sky_sigma: FloatArray
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


def _prepare(scene: TrainingScene) -> _PreparedScene:
    coarse = scene.variance[:, ::4, ::4]
    known = scene.valid[::4, ::4]
    values = coarse[:, known] if known.any() else coarse.reshape(len(coarse), -1)
    lowest, highest = values.min(axis=1), values.max(axis=1)
    constant = bool((highest <= lowest * (1 + 1e-6)).any() or (lowest <= 0).any())
    sky_sigma = np.sqrt(np.median(values, axis=1).astype(np.float64))
    return _PreparedScene(SceneTruth.from_scene(scene), sky_sigma, scene, constant)


@dataclass(frozen=True, eq=False)
class _RealizedScene:
    """A scene in one realisation, from which crops are cut.

    Either ``image`` is there, the normalised scene, or the pixels and the
    numbers with which parts of them can be normalised on their own.
    """

    truth: SceneTruth
    scene: TrainingScene | None
    sky_sigma: FloatArray
    realization: Realization
    wanted: BoolArray
    growth: FloatArray
    image: npt.NDArray[np.floating[Any]] | None = None
    level: Float32Array | None = None
    stretch: float = 1.0
    scale: float = 1.0


# Streams of random numbers.
_ORDER, _REALIZATION, CROP_STREAM, _OWN_NOISE = range(4)

_FEWEST_SAMPLES = 16_000
"""Pixels per band from which the level of the sky is taken: its error is one
per cent of the noise."""

_HALF_PRECISION = 1e4
"""Values up to which a normalised image is kept in half precision, to a part
in 2000."""

_FEWEST_VALID = 0.25
"""Share of usable pixels for which a crop is drawn anew, a few times."""


class SceneCrops(ABC):
    """Crops by number, cut from scenes.

    Groups of ``crops_per_scene`` crops come from one scene; every scene comes
    once in an epoch. The seed, with the number of a crop, decides everything that
    is random in it. With the mean number of pixels of a scene, ``n_pixels``, an epoch
    has the area of all; without it, ``crops_per_scene`` crops of each scene.
    """

    def __init__(self, scenes: SceneSource, settings: CropSettings, seed: int, n_pixels: float | None):
        self.scenes = scenes
        self.settings = settings
        self.n_pixels = n_pixels
        most = 2 if n_pixels is None else max(2, round(n_pixels / (16 * self.settings.size**2)))
        self.crops_per_scene = self.settings.crops_per_scene or most
        self.seed = seed

    @property
    def n_images(self) -> int:
        """Number of crops in an epoch (`int`)."""
        if self.n_pixels is None:
            return len(self.scenes) * self.crops_per_scene
        return max(1, round(len(self.scenes) * self.n_pixels / self.settings.size**2))

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe by plain values what decides the crops, for checkpoints and the header of a model."""

    @abstractmethod
    def _crop(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Make a crop and its target."""

    def crops(self, numbers: Sequence[int]) -> Crops:
        """Make the crops of some numbers, not below 0; the same number gives the same crop.

        Images are normalised, float32, (band, y, x), with PSF planes behind the bands if the network takes
        them. Targets are per crop ``boxes`` (float32, (source, 4), [x0, y0, x1, y1] half open), ``labels``
        (int64), ``masks`` (uint8, (source, y, x)) and ``ignore_boxes`` (float32, (region, 4)), ignored in the
        loss.
        """
        made = [self._crop(int(number)) for number in numbers]
        return [image for image, _ in made], [target for _, target in made]

    def names(self, numbers: Sequence[int]) -> list[str]:
        """Return the names of the scenes that crops are cut from."""
        return [self.scenes.name(self._scene_number(self._group(int(number)))) for number in numbers]

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, number])

    def _group(self, number: int) -> int:
        """Return the number of the realisation that a crop comes from, over all epochs."""
        scenes = len(self.scenes)
        epoch, rest = divmod(number, scenes * self.crops_per_scene)
        block, rest = divmod(rest, _SCENES_AT_ONCE * self.crops_per_scene)
        first = block * _SCENES_AT_ONCE
        # The last scenes of an epoch may be fewer.
        return epoch * scenes + first + rest % min(_SCENES_AT_ONCE, scenes - first)

    def _scene_number(self, group: int) -> int:
        """Go through the scenes in another order in every epoch."""
        epoch, place = divmod(group, len(self.scenes))
        return int(self._rng(_ORDER, epoch).permutation(len(self.scenes))[place])


class CropSource(SceneCrops):
    """Cuts crops for networks of fixed bands, with PSF planes if the network takes them.

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
        scenes: SceneSource,
        normalization: LuptonSettings | ZScoreSettings,
        settings: CropSettings,
        seed: int = 1,
        psf_channels: bool = False,
        augment: AugmentSettings | None = None,
        n_pixels: float | None = None,
    ):
        super().__init__(scenes, settings, seed, n_pixels)
        self.normalization = normalization
        self.psf_channels = psf_channels
        self.augment = augment or AugmentSettings()
        self._prepared_scenes = SceneCache(int(self.settings.cache_mb * 1e6))
        # What the crops of a group share is needed again soon, or never.
        self._realized_scenes = SceneCache(_SCENES_AT_ONCE)

    def describe(self) -> dict[str, Any]:
        """Describe by plain values what decides the crops, for checkpoints and the header of a model."""
        crops = {**asdict(self.settings), "crops_per_scene": self.crops_per_scene}
        del crops["cache_mb"]
        return {
            "scenes": self.scenes.describe(),
            "normalization": asdict(self.normalization),
            "crops": crops,
            "augment": asdict(self.augment),
            "psf_channels": self.psf_channels,
            "seed": self.seed,
        }

    def _prepared(self, number: int, normalized: bool) -> _PreparedScene:
        """Get a scene ready, with its pixels or normalised."""

        def make() -> _PreparedScene:
            scene = self.scenes.scene(number)
            prepared = _prepare(scene)
            if not normalized:
                return prepared
            rng = self._rng(_OWN_NOISE, number)
            realization = draw_realization(AugmentSettings(), rng, scene)
            image = self._normalized_scene(scene, prepared.sky_sigma, realization, rng)
            if np.abs(image).max(initial=0.0) < _HALF_PRECISION:
                image = image.astype(np.float16)
            return replace(prepared, scene=None, image=image, realization=realization)

        key = (number, normalized)
        prepared: _PreparedScene = self._prepared_scenes.get(key, make, lambda value: value.nbytes)
        return prepared

    def _normalized_scene(
        self, scene: TrainingScene, sky_sigma: FloatArray, realization: Realization, rng: np.random.Generator
    ) -> Float32Array:
        """Realise and normalise a whole scene."""
        flux, variance = realize(scene, sky_sigma, realization, (0, 0, *scene.valid.shape), rng)
        return normalize(self.normalization, flux, variance, scene.valid, overwrite=True).image

    def _realize(self, group: int) -> _RealizedScene:
        """Make the scene that the crops of a group are cut from."""
        changes = self.augment.changes_pixels
        prepared = self._prepared(self._scene_number(group), normalized=not changes)
        truth, scene, sky_sigma = prepared.truth, prepared.scene, prepared.sky_sigma
        rng = self._rng(_REALIZATION, group)
        if scene is None:
            realization = cast(Realization, prepared.realization)
        else:
            realization = draw_realization(self.augment, rng, scene)
        wanted = truth.bright_enough(realization, sky_sigma, self.settings.min_peak_snr)
        growth = truth.mask_growth(realization)
        realized = _RealizedScene(truth, scene, sky_sigma, realization, wanted, growth, prepared.image)
        if scene is None:
            return realized
        if prepared.constant_variance or not self._in_parts():
            return replace(realized, image=self._normalized_scene(scene, sky_sigma, realization, rng))
        level, stretch, scale = self._statistics(realized, scene, rng)
        return replace(realized, level=level, stretch=stretch, scale=scale)

    def _in_parts(self) -> bool:
        """Return whether parts of a scene can be normalised on their own."""
        how = self.normalization
        return (
            isinstance(how, LuptonSettings)
            and how.background in ("global", "none")
            and "percentile" not in (how.stretch_unit, how.scale_unit)
            # A variance that is not constant is used.
            and how.noise_source in ("auto", "variance")
        )

    def _statistics(
        self, realized: _RealizedScene, scene: TrainingScene, rng: np.random.Generator
    ) -> tuple[Float32Array, float, float]:
        """Find sky levels, stretch and scale as the normalisation does, from a sample."""
        how, realization = cast(LuptonSettings, self.normalization), realized.realization
        height, width = scene.valid.shape
        step = max(1, math.isqrt(height * width // _FEWEST_SAMPLES))
        flux, variance = realize(scene, realized.sky_sigma, realization, (0, 0, height, width), rng, step)
        good = scene.valid[::step, ::step]
        level = np.zeros(len(flux), np.float32)
        if how.background == "global":
            for k, plane in enumerate(flux):
                level[k] = constant_background(plane[good], how.clip_sigma, how.clip_iterations).level
        noise = np.array([np.median(plane[good]) if good.any() else 1.0 for plane in variance])
        sigma = math.sqrt(float(noise.sum())) / len(noise)
        stretch = how.stretch * (sigma if how.stretch_unit == "noise" else 1.0)
        flux_of_one = how.scale * (sigma if how.scale_unit == "noise" else 1.0)
        return level, stretch, math.asinh(how.q * flux_of_one / stretch) / how.q

    def _crop(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        group = self._group(number)
        realized: _RealizedScene = self._realized_scenes.get(group, lambda: self._realize(group), lambda _: 1)
        rng = self._rng(CROP_STREAM, number)
        valid = realized.truth.valid
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
        flip = bool(rng.integers(2)) if self.augment.turns else False
        pixels = self._pixels(realized, window, rng)
        image = torch.from_numpy(turn_image(pixels, turns, flip))
        if self.psf_channels:
            image = add_psf_planes(image, self._known_psf_widths(realized, rng))
        sources = realized.truth, realized.wanted, realized.growth
        return image, make_target(*sources, window, turns, flip, self.settings.min_area)

    def _pixels(self, realized: _RealizedScene, window: Window, rng: np.random.Generator) -> Float32Array:
        """Cut out and normalise the pixels of a crop."""
        y0, x0, height, width = window
        inside = (slice(y0, y0 + height), slice(x0, x0 + width))
        if realized.image is not None:
            return realized.image[:, inside[0], inside[1]].astype(np.float32)
        realization = realized.realization
        scene, level = cast(TrainingScene, realized.scene), cast(Float32Array, realized.level)
        flux, _ = realize(scene, realized.sky_sigma, realization, window, rng)
        flux -= level[:, None, None]
        bad = ~scene.valid[inside]
        if bad.any():
            flux[:, bad] = 0.0
        flux *= np.float32(1.0 / realized.stretch)
        how = cast(LuptonSettings, self.normalization)
        lupton_compress(flux, how.q, realized.scale, len(flux))
        return flux

    @staticmethod
    def _known_psf_widths(realized: _RealizedScene, rng: np.random.Generator) -> npt.NDArray[Any] | None:
        """Widths of the PSF as a pipeline would measure them, or `None`."""
        known = rng.random() < _PSF_KNOWN
        scatter = np.exp(rng.normal(0.0, _PSF_JITTER, len(realized.realization.gain)))
        fwhm = realized.truth.psf_fwhm
        return realized.realization.psf_fwhm(fwhm) * scatter if known and fwhm is not None else None
