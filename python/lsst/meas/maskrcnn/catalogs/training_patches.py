# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Patches of a Butler repository that a network learns from, or is judged by."""

from __future__ import annotations

__all__ = [
    "PatchCropSource",
    "PatchDatasets",
    "SceneSummary",
    "TrainingPatch",
    "group_datasets",
    "split_patches",
    "write_patch",
]

import dataclasses
import fnmatch
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsst.daf.butler import DatasetRef

from ..train.dataset import CropSource
from ..train.training_scene import TrainingScene, split_scene, write_scene

PIECE_SIZE = 1024
"""Longest side of what the training reads at once (px); patches are cut into
pieces of it (`int`)."""


@dataclasses.dataclass(frozen=True)
class TrainingPatch:
    """Images and truth of a patch, or how to get them.

    Parameters
    ----------
    name : `str`
        What to call it; no two patches have the same name.
    exposures : `~collections.abc.Mapping` [`str`, `object`]
        By band, `lsst.afw.image.ExposureF` or something with a method
        ``get()`` that returns one, such as a
        `lsst.pipe.base.InMemoryDatasetHandle`.
    truth : `lsst.afw.table.SourceCatalog`
        Catalogue like the dataset ``maskRcnn_truth``, or something with a
        method ``get()`` that returns one.
    truth_images : `~collections.abc.Mapping` [`str`, `object`], optional
        As ``exposures``: the light of the sources without noise.
    """

    name: str
    exposures: Mapping[str, Any]
    truth: Any
    truth_images: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class PatchDatasets:
    """Datasets of a patch.

    Parameters
    ----------
    name : `str`
        Sky map, tract and patch.
    run : `str`
        RUN collection of the truth.
    exposures, truth_images : `dict` [`str`, `object`]
        References by band.
    truth : `object`
        Reference to the truth.
    """

    name: str
    run: str
    exposures: dict[str, Any]
    truth: Any
    truth_images: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SceneSummary:
    """A patch, or a piece of a large one, as the training reads it.

    Parameters
    ----------
    name : `str`
        Name of the patch.
    path : `str`
        File with its pixels and truth.
    n_pixels : `int`
        Number of its pixels.
    n_sources : `int`
        Number of sources that are not to be ignored.
    pixel_scale : `float`
        Size of a pixel (arcsec); NaN if it is not known.
    """

    name: str
    path: str
    n_pixels: int
    n_sources: int
    pixel_scale: float


def write_patch(
    scene: TrainingScene, name: str, path: Path, pixel_scale: float, size: int = PIECE_SIZE
) -> list[SceneSummary]:
    """Write a patch as the training reads it.

    Parameters
    ----------
    scene : `~lsst.meas.maskrcnn.train.training_scene.TrainingScene`
        The patch.
    name : `str`
        Its name.
    path : `pathlib.Path`
        File to write, ``.npz``. A patch that is larger than ``size`` gets
        several, with ``.1``, ``.2``, ... before the extension.
    pixel_scale : `float`
        Size of a pixel (arcsec).
    size : `int`
        Longest side of a piece (px). A crop is cut from one piece, and costs
        reading it.

    Returns
    -------
    summaries : `list` [`SceneSummary`]
        One for each file.
    """
    pieces = split_scene(scene, size)
    summaries = []
    for number, piece in enumerate(pieces, 1):
        file = path if len(pieces) == 1 else path.with_suffix(f".{number}{path.suffix}")
        write_scene(piece, file)
        n_sources = len(piece.labels) if piece.ignore is None else np.count_nonzero(~piece.ignore)
        summaries.append(SceneSummary(name, str(file), piece.valid.size, int(n_sources), pixel_scale))
    return summaries


def _dataset(ref: Any) -> DatasetRef:
    """Return the reference itself where its loading is deferred."""
    return getattr(ref, "datasetRef", ref)


def group_datasets(
    exposures: Iterable[Any],
    truth: Iterable[Any],
    truth_images: Iterable[Any] = (),
) -> list[PatchDatasets]:
    """Sort datasets by patch.

    Parameters
    ----------
    exposures, truth, truth_images : `~collections.abc.Iterable`
        References, or deferred references, in any order.

    Returns
    -------
    patches : `list` [`PatchDatasets`]
        Patches that have a truth, by sky map, tract and patch.
    """

    def key(ref: Any) -> tuple[str, int, int]:
        data_id = _dataset(ref).dataId
        return str(data_id["skymap"]), int(data_id["tract"]), int(data_id["patch"])

    def by_band(refs: Iterable[Any]) -> dict[tuple[str, int, int], dict[str, Any]]:
        grouped: dict[tuple[str, int, int], dict[str, Any]] = {}
        for ref in refs:
            grouped.setdefault(key(ref), {})[str(_dataset(ref).dataId["band"])] = ref
        return grouped

    images, light = by_band(exposures), by_band(truth_images)
    return [
        PatchDatasets(
            "-".join(map(str, key(ref))),
            _dataset(ref).run,
            images.get(key(ref), {}),
            ref,
            light.get(key(ref), {}),
        )
        for ref in sorted(truth, key=key)
    ]


def split_patches(
    patches: Sequence[PatchDatasets],
    *,
    validation_runs: Sequence[str] = (),
    excluded_runs: Sequence[str] = (),
    fraction: float = 0.0,
    seed: int = 0,
    max_validation: int | None = None,
) -> tuple[list[PatchDatasets], list[PatchDatasets]]:
    """Choose which patches are for training and which for validation.

    Parameters
    ----------
    patches : `~collections.abc.Sequence` [`PatchDatasets`]
        All patches.
    validation_runs : `~collections.abc.Sequence` [`str`]
        Patterns of RUN collections, as the shell has them, whose patches are
        for validation.
    excluded_runs : `~collections.abc.Sequence` [`str`]
        Those of collections that are not used.
    fraction : `float`
        Share of the patches that is for validation if no collection is.
    seed : `int`
        Chooses other patches.
    max_validation : `int`, optional
        Most patches for validation; the rest of them is not used.

    Returns
    -------
    training, validation : `list` [`PatchDatasets`]
        The patches. Which one a patch belongs to depends on its own name and
        collection, not on the others, but for one exception: of two patches
        or more, one is always for validation if a fraction is wanted.
    """

    def matches(patch: PatchDatasets, patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(patch.run, pattern) for pattern in patterns)

    patches = [patch for patch in patches if not matches(patch, excluded_runs)]
    validation = [patch for patch in patches if matches(patch, validation_runs)]
    if not validation and fraction > 0 and len(patches) > 1:
        shares = {patch.name: _share(patch.name, seed) for patch in patches}
        validation = [patch for patch in patches if shares[patch.name] < fraction]
        if not validation or len(validation) == len(patches):
            validation = [min(patches, key=lambda patch: shares[patch.name])]
    chosen = {patch.name for patch in validation}
    training = [patch for patch in patches if patch.name not in chosen]
    if max_validation is not None and len(validation) > max_validation:
        validation = sorted(validation, key=lambda patch: _share(patch.name, seed))
        validation = sorted(validation[:max_validation], key=lambda patch: patch.name)
    return training, validation


def _share(name: str, seed: int) -> float:
    """A number from 0 to 1 that belongs to a name."""
    digest = hashlib.sha1(f"{seed}:{name}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class PatchCropSource(CropSource):
    """A source of crops in whose epochs every part of a patch is seen.

    Parameters
    ----------
    n_pixels : `float`
        Number of pixels of a patch.
    *args, **kwargs
        Forwarded to `~lsst.meas.maskrcnn.train.dataset.CropSource`, whose
        epochs have no more than a few crops of each scene.
    """

    def __init__(self, n_pixels: float, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.n_pixels = n_pixels

    @property
    def n_images(self) -> int:
        """Number of crops that have the area of all patches (`int`)."""
        return max(1, round(len(self.scenes) * self.n_pixels / self.settings.size**2))
