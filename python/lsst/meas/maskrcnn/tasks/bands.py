# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bands of the data that a model is given."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import lsst.pipe.base as pipeBase

from ..catalogs.exposures import MissingBandError
from ..deblend.image import usual_reference
from ..network.model_file import ModelMetadata
from ..network.wavelengths import band_wavelength


def choose_bands(config: Any, available: Collection[str], metadata: ModelMetadata) -> list[str]:
    """Choose the bands of the data that are read, by the configuration and the header of the model.

    These are those of the model in its order, by their names in the data, then those of
    ``config.extra_bands`` that are there; for a model that takes any bands, those of ``config.bands`` or all
    there are, by wavelength.

    A `MissingBandError` is raised if a band that is needed is missing, an
    `~lsst.pipe.base.InvalidQuantumError` if ``config.bands`` names a band that the model does not have, a
    wavelength is not known, or ``config`` sets what does not go with a model that takes any bands.
    """
    if not metadata.bands:
        return _choose_any_bands(config, available, metadata)
    unknown = set(config.bands) - set(metadata.bands)
    if unknown:
        raise pipeBase.InvalidQuantumError(
            f"config.bands maps {sorted(unknown)}, but the bands of model {metadata.name!r} are "
            f"{list(metadata.bands)}. Its keys are the model's bands, its values the data's."
        )
    bands = [config.bands.get(band, band) for band in metadata.bands]
    missing = [band for band in bands if band not in available]
    if missing:
        raise MissingBandError(missing, available, metadata)
    return bands + [band for band in config.extra_bands if band in available and band not in bands]


def _choose_any_bands(config: Any, available: Collection[str], metadata: ModelMetadata) -> list[str]:
    if config.extra_bands:
        raise pipeBase.InvalidQuantumError(
            f"config.extra_bands is {list(config.extra_bands)}, but model {metadata.name!r} takes any bands, "
            "and flux is shared in those that it is given. Leave it empty."
        )
    if config.normalize.name is not None:
        raise pipeBase.InvalidQuantumError(
            f"config.normalize is set, but model {metadata.name!r} takes any bands and has a normalisation "
            "of its own. Set it to None."
        )
    bands = list(config.bands.values()) or list(available)
    missing = [band for band in bands if band not in available]
    if missing or not bands:
        raise MissingBandError(missing or ["any"], available, metadata)
    try:
        wavelengths = band_wavelengths(config, bands)
    except ValueError as error:
        raise pipeBase.InvalidQuantumError(
            f"{error}: set config.wavelengths, or name the bands to use in config.bands."
        ) from error
    return [band for _, band in sorted(zip(wavelengths.values(), bands, strict=True))]


def choose_reference(config: Any, bands: list[str], metadata: ModelMetadata) -> str:
    """Choose the band of the data in which sources are measured, out of those in use."""
    wanted: str | None = config.reference_band
    if wanted is None:
        return bands[usual_reference(metadata.bands or bands)]
    if wanted not in bands:
        raise pipeBase.InvalidQuantumError(
            f"config.reference_band is {wanted!r}, but the bands in use are {bands}: those of model "
            f"{metadata.name!r} by the names of the data, and of config.extra_bands. Choose one, or None."
        )
    return wanted


def band_wavelengths(config: Any, bands: Iterable[str]) -> dict[str, float]:
    """Look up the effective wavelengths of bands of the data (nm), by their names in ``config.bands``.

    A ValueError is raised if one is not known.
    """
    names = {data: name for name, data in config.bands.items()}
    given = config.wavelengths
    return {
        names.get(band, band): given[band] if band in given else band_wavelength(names.get(band, band))
        for band in bands
    }
