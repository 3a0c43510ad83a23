# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the pixels of an image HDU are compressed."""

from __future__ import annotations

__all__ = [
    "CompressionAlgorithm",
    "CompressionOptions",
    "DitherAlgorithm",
    "QuantizationOptions",
    "ScalingAlgorithm",
]

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any


class CompressionAlgorithm(enum.Enum):
    """Algorithms of the FITS standard that can be written."""

    GZIP_1 = 0
    GZIP_2 = 1
    RICE_1 = 2


class DitherAlgorithm(enum.Enum):
    """Dithering of quantized floats, as in the FITS standard."""

    NO_DITHER = 0
    SUBTRACTIVE_DITHER_1 = 1
    SUBTRACTIVE_DITHER_2 = 2


class ScalingAlgorithm(enum.Enum):
    """How the step of quantized floats is chosen."""

    RANGE = 0
    STDEV_MASKED = 1
    STDEV_CFITSIO = 2
    MANUAL = 3


def _check_fields(cls: Any, values: Mapping[str, Any], kind: str) -> None:
    """Raise `ValueError` where a value belongs to no field of a class."""
    unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(f"Unrecognized {kind} options: {sorted(unknown)}.")


@dataclasses.dataclass
class QuantizationOptions:
    """Quantization of floats before (lossy) compression."""

    dither: DitherAlgorithm = DitherAlgorithm.NO_DITHER
    """Dithering method."""

    scaling: ScalingAlgorithm = ScalingAlgorithm.STDEV_MASKED
    """How the step is chosen."""

    mask_planes: list[str] = dataclasses.field(default_factory=lambda: ["NO_DATA"])
    """Planes of the pixels that the noise estimate leaves out."""

    level: float = 0.0
    """Steps per standard deviation."""

    seed: int = 0
    """Seed of the dither (1 to 10000; 0 takes the clock)."""

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> QuantizationOptions:
        """Make options from a mapping with the attributes' names.

        Parameters
        ----------
        mapping : `~collections.abc.Mapping`
            Values; enumerations by name.

        Returns
        -------
        options : `QuantizationOptions`
            The options.

        Raises
        ------
        ValueError
            Raised for unknown keys.
        """
        values = dict(mapping)
        if "dither" in values:
            values["dither"] = DitherAlgorithm[values["dither"]]
        if "scaling" in values:
            values["scaling"] = ScalingAlgorithm[values["scaling"]]
        _check_fields(cls, values, "quantization")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping that `from_mapping` reads."""
        return {
            "dither": self.dither.name,
            "scaling": self.scaling.name,
            "mask_planes": list(self.mask_planes),
            "level": self.level,
            "seed": self.seed,
        }


@dataclasses.dataclass
class CompressionOptions:
    """Compression of an image HDU; lossless unless quantized."""

    algorithm: CompressionAlgorithm = CompressionAlgorithm.GZIP_2
    """The algorithm."""

    tile_width: int = 0
    """Columns of a tile; 0 takes whole rows."""

    tile_height: int = 1
    """Rows of a tile; 0 takes whole columns."""

    quantization: QuantizationOptions | None = None
    """Quantization of floats; `None` keeps them exactly."""

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> CompressionOptions:
        """Make options from a mapping with the attributes' names.

        Parameters
        ----------
        mapping : `~collections.abc.Mapping`
            Values; enumerations by name, ``quantization`` as a mapping.

        Returns
        -------
        options : `CompressionOptions`
            The options.

        Raises
        ------
        ValueError
            Raised for unknown keys.
        """
        values = dict(mapping)
        if "algorithm" in values:
            values["algorithm"] = CompressionAlgorithm[values["algorithm"]]
        if values.get("quantization") is not None:
            values["quantization"] = QuantizationOptions.from_mapping(values["quantization"])
        _check_fields(cls, values, "compression")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping that `from_mapping` reads."""
        return {
            "algorithm": self.algorithm.name,
            "tile_width": self.tile_width,
            "tile_height": self.tile_height,
            "quantization": None if self.quantization is None else self.quantization.to_dict(),
        }
