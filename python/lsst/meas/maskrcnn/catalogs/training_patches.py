# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Patches of a Butler repository to train on, or for validation."""

from __future__ import annotations

__all__ = ["TrainingDataError", "TrainingPatch"]

import dataclasses
import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsst.afw.table import SourceCatalog
from lsst.daf.butler import DatasetRef
from lsst.geom import Box2D

from ..network.any_band_detect import LEARNED_FWHM
from ..train.scene_cuts import split_scene
from ..train.training_scene import write_scene
from .exposures import InputError
from .training_data import make_training_scene

_PIECE_SIZE = 512
"""Longest side of what the training reads, and a validation finds sources in, at once (px)."""


class TrainingDataError(InputError):
    """There is nothing to train on, or something about it, or about some patches, is missing."""

    def __init__(self, message: str, patches: Iterable[str] = ()) -> None:
        self.patches = list(patches)
        super().__init__(message, message=message, patches=" ".join(self.patches))


@dataclasses.dataclass(frozen=True)
class TrainingPatch:
    """Images and truth of a patch, or how to get them."""

    name: str
    """What to call it; no two patches have the same name."""
    exposures: Mapping[str, Any]
    """By band, `lsst.afw.image.ExposureF` or something with a method ``get()`` that returns one, such as a
    `lsst.pipe.base.InMemoryDatasetHandle`.
    """
    truth: Any
    """Catalogue like the dataset ``maskRcnn_truth``, or something that gives one in the same way."""
    truth_images: Mapping[str, Any] | None = None
    """As ``exposures``: the light of the sources without noise."""

    def missing(self, bands: Sequence[str], truth_images: bool) -> str:
        """Describe what is missing, such as "exposure in band 'r'"; empty if the patch is complete.

        Parameters
        ----------
        bands : `~collections.abc.Sequence` [`str`]
            Bands that are needed.
        truth_images : `bool`
            Whether truth images are needed, even if there are none at all.
        """
        wanted = [("exposure", self.exposures)]
        if truth_images or self.truth_images is not None:
            wanted.append(("truth image", self.truth_images or {}))
        for what, images in wanted:
            missing = [repr(band) for band in bands if band not in images]
            if missing:
                return f"{what} in band {', '.join(missing)}"
        return ""


@dataclasses.dataclass(frozen=True)
class PatchDatasets:
    """References to the datasets of a patch, named by its sky map, tract and patch; images are by band."""

    name: str
    run: str
    """RUN collection of the truth."""
    exposures: dict[str, Any]
    truth: Any
    truth_images: dict[str, Any]

    def load(self, get: Callable[[Any], Any]) -> TrainingPatch:
        """Get the datasets, or handles that load them later; ``get`` is called with each reference."""
        return TrainingPatch(
            self.name,
            {band: get(ref) for band, ref in self.exposures.items()},
            get(self.truth),
            {band: get(ref) for band, ref in self.truth_images.items()} or None,
        )


@dataclasses.dataclass(frozen=True)
class SceneSummary:
    """A patch, or a piece of a large one, as the training reads it."""

    name: str
    path: str
    """File with its pixels and truth."""
    n_pixels: int
    n_sources: int
    """Number of sources that are not to be ignored."""
    pixel_scale: float
    """Side of a pixel (arcsec)."""
    psf_fwhm: float
    """Median of the widths of the PSF over the bands (px); NaN where it is not known."""


def write_patch(
    patch: TrainingPatch, folder: Path, bands: Sequence[str], bad_mask_planes: Sequence[str]
) -> list[SceneSummary]:
    """Write a patch as the training reads it, in the bands of the network's input in their order.

    A patch that is larger than 512 px gets several files, because a crop is cut from one piece, and costs
    reading it; there is a summary of each. Errors are those of `~.training_data.make_training_scene`.
    """
    exposures = {band: _load(patch.exposures[band]) for band in bands}
    light = patch.truth_images
    scene = make_training_scene(
        exposures,
        _load(patch.truth),
        bands,
        truth_images=None if light is None else {band: _load(light[band]) for band in bands},
        bad_mask_planes=bad_mask_planes,
    )
    first = exposures[bands[0]]
    pixel_scale = first.getWcs().getPixelScale(Box2D(first.getBBox()).getCenter()).asArcseconds()
    pieces = split_scene(scene, _PIECE_SIZE)
    summaries = []
    for number, piece in enumerate(pieces, 1):
        path = folder / f"{file_name(patch.name)}{f'.{number}' if len(pieces) > 1 else ''}.npz"
        write_scene(piece, path)
        n_sources = len(piece.labels) if piece.ignore is None else np.count_nonzero(~piece.ignore)
        fwhm = np.nan if piece.psf_fwhm is None else float(np.nanmedian(piece.psf_fwhm))
        summaries.append(
            SceneSummary(patch.name, str(path), piece.valid.size, int(n_sources), float(pixel_scale), fwhm)
        )
    return summaries


def check_scenes(training: Sequence[SceneSummary], bands: Sequence[str]) -> None:
    """Refuse, by a `TrainingDataError`, to train without patches, or without a source in any of them."""
    if not training:
        raise TrainingDataError(
            "There are no patches to train on; give patches with coadds in the bands "
            f"{', '.join(bands)} and with a truth."
        )
    names = list(dict.fromkeys(item.name for item in training))
    if not any(item.n_sources for item in training):
        raise TrainingDataError(
            f"There is no true source in any of the {len(names)} patches to train on, of those that "
            "are not flagged; check the truth catalogues.",
            names,
        )


def check_widths(scenes: Sequence[SceneSummary]) -> None:
    """Refuse patches whose PSF has a width to which networks of any bands do not bring images."""
    low, high = LEARNED_FWHM
    for item in scenes:
        if not (np.isnan(item.psf_fwhm) or low <= item.psf_fwhm <= high):
            raise TrainingDataError(
                f"The PSF of patch {item.name} has a FWHM of {item.psf_fwhm:.2f} px, wanted {low:g} to "
                f"{high:g} px: bin or resample the coadds first, as detection does by itself.",
                [item.name],
            )


def _load(item: Any) -> Any:
    """Load an item unless it is loaded already."""
    return item.get() if hasattr(item, "get") and not isinstance(item, SourceCatalog) else item


def file_name(name: str) -> str:
    """Make a name that files can have, with underscores for unusual characters."""
    return re.sub(r"[^\w.+-]+", "_", name)


def _dataset(ref: Any) -> DatasetRef:
    """Return the reference itself where its loading is deferred."""
    return getattr(ref, "datasetRef", ref)


def group_datasets(
    exposures: Iterable[Any], truth: Iterable[Any], truth_images: Iterable[Any] = ()
) -> list[PatchDatasets]:
    """Sort references, deferred or not, by patch: those that have a truth, by sky map, tract and patch."""

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
    fraction: float,
    max_validation: int | None = None,
) -> tuple[list[PatchDatasets], list[PatchDatasets]]:
    """Choose which patches are for training and which for validation.

    Runs are patterns of RUN collections, as the shell has them, whose patches are for validation or not used
    at all; if no collection is for validation, a fraction of the patches is. What is over ``max_validation``
    is not used.

    Which one a patch belongs to depends on its own name and collection, not on the others, but for one
    exception: of two patches or more, one is always for validation if a fraction is wanted.
    """

    def matches(patch: PatchDatasets, patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(patch.run, pattern) for pattern in patterns)

    patches = [patch for patch in patches if not matches(patch, excluded_runs)]
    validation = [patch for patch in patches if matches(patch, validation_runs)]
    if not validation and fraction > 0 and len(patches) > 1:
        shares = {patch.name: _place_of_name(patch.name) for patch in patches}
        validation = [patch for patch in patches if shares[patch.name] < fraction]
        if not validation or len(validation) == len(patches):
            validation = [min(patches, key=lambda patch: shares[patch.name])]
    chosen = {patch.name for patch in validation}
    training = [patch for patch in patches if patch.name not in chosen]
    if max_validation is not None and len(validation) > max_validation:
        validation = sorted(validation, key=lambda patch: _place_of_name(patch.name))
        validation = sorted(validation[:max_validation], key=lambda patch: patch.name)
    return training, validation


def _place_of_name(name: str) -> float:
    """Return a number from 0 to 1 that depends on a name alone."""
    digest = hashlib.sha1(f"0:{name}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
