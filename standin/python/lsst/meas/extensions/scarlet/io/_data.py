# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data classes of scarlet's models, schema 1.0.1 (1.0.0 within), without migration of older ones."""

from __future__ import annotations

__all__ = [
    "HierarchicalBlendData",
    "IsolatedSourceData",
    "LsstScarletModelData",
    "ScarletBlendData",
    "ScarletCubeComponentData",
    "ScarletFactorizedComponentData",
    "ScarletSourceData",
]

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np


def _encode(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    if metadata is None:
        return None
    encoded: dict[str, Any] = {}
    arrays = [key for key, value in metadata.items() if isinstance(value, np.ndarray)]
    for key, value in metadata.items():
        encoded[key] = value.ravel().tolist() if key in arrays else value
        if key in arrays:
            encoded[f"{key}_shape"], encoded[f"{key}_dtype"] = value.shape, str(value.dtype)
    return encoded | ({"array_keys": arrays} if arrays else {})


def _decode(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    if metadata is None:
        return None
    decoded = dict(metadata)
    for key in decoded.pop("array_keys", ()):
        dtype, shape = decoded.pop(f"{key}_dtype", "float32"), decoded.pop(f"{key}_shape")
        decoded[key] = np.array(decoded[key], dtype=dtype).reshape(shape)
    return decoded


def _pair(values: Any) -> tuple[Any, Any]:
    first, second = values
    return first, second


@dataclass(kw_only=True)
class ScarletFactorizedComponentData:
    """Component with the same shape, (y, x), in all bands."""

    origin: tuple[int, int]
    peak: tuple[float, float]
    spectrum: np.ndarray
    morph: np.ndarray
    component_type: ClassVar[str] = "factorized"
    version: str = "1.0.0"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``morph``."""
        return self.morph.shape

    def as_dict(self) -> dict[str, Any]:
        """Make what is stored as JSON."""
        return {
            "origin": tuple(int(o) for o in self.origin),
            "shape": self.morph.shape,
            "peak": tuple(int(p) for p in self.peak),
            "spectrum": self.spectrum.astype(float).tolist(),
            "morph": self.morph.astype(float).ravel().tolist(),
            "component_type": self.component_type,
            "version": self.version,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], dtype: Any = np.float32) -> ScarletFactorizedComponentData:
        """Make it from what was stored as JSON."""
        return cls(
            origin=_pair(data["origin"]),
            peak=data["peak"],
            spectrum=np.array(data["spectrum"], dtype=dtype),
            morph=np.array(data["morph"], dtype=dtype).reshape(data["shape"]),
        )


@dataclass(kw_only=True)
class ScarletCubeComponentData:
    """Component with pixels of its own, (band, y, x), in each band."""

    origin: tuple[int, int]
    peak: tuple[float, float]
    model: np.ndarray
    component_type: str = "cube"
    version: str = "1.0.0"

    @property
    def shape(self) -> tuple[int, ...]:
        """Height and width."""
        return self.model.shape[-2:]

    def as_dict(self) -> dict[str, Any]:
        """Make what is stored as JSON."""
        return {
            "origin": self.origin,
            "shape": self.model.shape,
            "peak": self.peak,
            "model": self.model.astype(float).ravel().tolist(),
            "component_type": "component",
            "version": self.version,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], dtype: Any = np.float32) -> ScarletCubeComponentData:
        """Make it from what was stored as JSON."""
        return cls(
            origin=_pair(data["origin"]),
            peak=data["peak"],
            model=np.array(data["model"], dtype=dtype).reshape(data["shape"]),
        )


@dataclass(kw_only=True)
class ScarletSourceData:
    """Components of one source; its id is in ``metadata``."""

    components: list[Any]
    metadata: dict[str, Any] | None = None
    source_type: ClassVar[str] = "source"
    version: str = "1.0.0"

    def as_dict(self) -> dict[str, Any]:
        """Make what is stored as JSON."""
        result = {
            "source_type": self.source_type,
            "components": [component.as_dict() for component in self.components],
            "version": self.version,
        }
        return result if self.metadata is None else result | {"metadata": _encode(self.metadata)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], dtype: Any = np.float32) -> ScarletSourceData:
        """Make it from what was stored as JSON."""
        components = [
            (
                ScarletFactorizedComponentData
                if part.get("component_type", "factorized") == "factorized"
                else ScarletCubeComponentData
            ).from_dict(part, dtype=dtype)
            for part in data["components"]
        ]
        return cls(components=components, metadata=_decode(data.get("metadata")))


@dataclass(kw_only=True)
class ScarletBlendData:
    """Sources that were fitted together."""

    origin: tuple[int, int]
    shape: tuple[int, int]
    sources: dict[Any, ScarletSourceData]
    metadata: dict[str, Any] | None = None
    blend_type: ClassVar[str] = "blend"
    version: str = "1.0.0"

    def as_dict(self) -> dict[str, Any]:
        """Make what is stored as JSON."""
        result = {
            "blend_type": self.blend_type,
            "origin": self.origin,
            "shape": self.shape,
            "sources": {key: source.as_dict() for key, source in self.sources.items()},
            "version": self.version,
        }
        return result if self.metadata is None else result | {"metadata": _encode(self.metadata)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], dtype: Any = np.float32) -> ScarletBlendData:
        """Make it from what was stored as JSON."""
        return cls(
            origin=_pair(data["origin"]),
            shape=_pair(data["shape"]),
            sources={
                key: ScarletSourceData.from_dict(source, dtype=dtype)
                for key, source in data["sources"].items()
            },
            metadata=_decode(data.get("metadata")),
        )


@dataclass(kw_only=True)
class HierarchicalBlendData:
    """Blends of one parent."""

    children: dict[int, Any]
    metadata: dict[str, Any] | None = None
    blend_type: ClassVar[str] = "hierarchical"
    version: str = "1.0.0"

    def as_dict(self) -> dict[str, Any]:
        """Make what is stored as JSON."""
        result = {
            "blend_type": self.blend_type,
            "children": {key: child.as_dict() for key, child in self.children.items()},
            "version": self.version,
        }
        return result if self.metadata is None else result | {"metadata": _encode(self.metadata)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], dtype: Any = np.float32) -> HierarchicalBlendData:
        """Make it from what was stored as JSON."""
        return cls(
            children={int(key): _blend(child, dtype) for key, child in data["children"].items()},
            metadata=_decode(data.get("metadata")),
        )


def _blend(data: dict[str, Any], dtype: Any) -> HierarchicalBlendData | ScarletBlendData:
    kind = data.get("blend_type", "blend")
    if kind not in ("blend", "hierarchical"):
        raise ValueError(f"Unknown blend type: {kind}")
    return (HierarchicalBlendData if kind == "hierarchical" else ScarletBlendData).from_dict(
        data, dtype=dtype
    )


@dataclass(kw_only=True)
class IsolatedSourceData:
    """Footprint of a source that was alone in its parent."""

    span_array: np.ndarray
    origin: tuple[int, int]
    peak: tuple[int, int]
    metadata: dict[str, Any] | None = None
    source_type: ClassVar[str] = "isolated"
    version: str = "1.0.0"

    def as_dict(self) -> dict[str, Any]:
        """Make what is stored as JSON."""
        result = {
            "origin": tuple(int(o) for o in self.origin),
            "shape": self.span_array.shape,
            "peak": tuple(float(p) for p in self.peak),
            "span_array": self.span_array.astype(float).ravel().tolist(),
            "source_type": self.source_type,
            "version": self.version,
        }
        return result if self.metadata is None else result | {"metadata": _encode(self.metadata)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], dtype: Any = np.float32) -> IsolatedSourceData:
        """Make it from what was stored as JSON."""
        y, x = data["peak"]
        return cls(
            span_array=np.array(data["span_array"], dtype=dtype).reshape(data["shape"]),
            origin=_pair(data["origin"]),
            peak=(int(y), int(x)),
            metadata=_decode(data.get("metadata")),
        )


@dataclass
class LsstScarletModelData:
    """Models of a patch."""

    isolated: dict[int, IsolatedSourceData] = field(default_factory=dict)
    blends: dict[int, Any] = field(default_factory=dict)
    metadata: dict[str, Any] | None = None
    version: ClassVar[str] = "1.0.1"
    model_type: ClassVar[str] = "lsst"

    def as_dict(self) -> dict[str, Any]:
        """Make what is stored as JSON."""
        return {
            "model_type": self.model_type,
            "blends": {key: blend.as_dict() for key, blend in self.blends.items()},
            "metadata": _encode(self.metadata),
            "isolated": {key: source.as_dict() for key, source in self.isolated.items()},
            "version": self.version,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], dtype: Any = np.float32) -> LsstScarletModelData:
        """Make it from what was stored as JSON."""
        if data.get("version") not in ("1.0.0", cls.version):
            raise ValueError(f"No migration path from version {data.get('version')!r} for type 'lsst'.")
        return cls(
            isolated={
                int(key): IsolatedSourceData.from_dict(source, dtype=dtype)
                for key, source in data.get("isolated", {}).items()
            },
            blends={int(key): _blend(blend, dtype) for key, blend in data["blends"].items()},
            metadata=_decode(data.get("metadata")),
        )
