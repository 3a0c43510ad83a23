# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read the models that scarlet stored.

``DeblendCoaddSourcesMultiTask`` stores one model per source, in the seeing of
a narrow model PSF. Three layouts are in use and all of them are read here,
without ``lsst.meas.extensions.scarlet``:

- a zip file (``.scarlet``) with the members ``metadata``, ``version`` and one
  JSON document per blend and per isolated source (since June 2025);
- the same zip file with ``psf`` and ``psf_shape`` instead of the metadata,
  where each blend has its own bands and PSF (from April 2025);
- one JSON document with everything (before that).

An object in memory that has the public attributes of upstream's
``LsstScarletModelData`` (or of the older ``ScarletModelData``) is read, too.

Positions and shapes are (y, x), and positions are in the parent frame (tract
coordinates), as upstream writes them. Cubes are (band, y, x).
"""

from __future__ import annotations

__all__ = ["ScarletBlend", "ScarletModelError", "ScarletModels", "ScarletSource", "read_scarlet_models"]

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..images.archives import ZipReader
from ..images.files import one_line, parse_json

_KNOWN_VERSIONS = ("0.0.0", "1.0.0", "1.0.1")
"""Of models, blends, sources and components; 0.0.0 stands for files without versions."""

_SPECIAL_MEMBERS = ("metadata", "version", "psf", "psf_shape")
_LARGEST_NUMBER, _LARGEST_SIDE = 2**31, 20_000
"""Pixel of a tract, and side of the region of a blend (px); a patch has 4,200."""

_USE_SCARLET = "Read it with lsst.meas.extensions.scarlet and pass the object that it gives"


class ScarletModelError(ValueError):
    """Scarlet's models cannot be used; the message says what to do."""


@dataclass(frozen=True, eq=False)
class ScarletComponent:
    """One component of a source, in the seeing of the model PSF.

    Its first pixel and its peak are (y, x). ``morph`` is the shape of a component that
    looks the same in all bands, (y, x), or the pixels of each band, (band, y, x), and
    ``spectrum`` the amplitude in each band, (band,), ones for a cube; float32.
    """

    origin: tuple[int, int]
    peak: tuple[float, float] | None
    morph: np.ndarray
    spectrum: np.ndarray

    def pixels(self, bands: Sequence[int]) -> np.ndarray:
        """Compute the flux per pixel in bands of some indices, in units of the exposures, (band, y, x)."""
        chosen = list(bands)
        morph = self.morph[None] if self.morph.ndim == 2 else self.morph[chosen]
        return self.spectrum[chosen, None, None] * morph


@dataclass(frozen=True, eq=False)
class ScarletSource:
    """One deblended source."""

    id: int
    """Id of its record in the object catalogue."""
    components: tuple[ScarletComponent, ...]
    """Its components; none if the fit left nothing of it."""

    @property
    def peak(self) -> tuple[int, int] | None:
        """Pixel (y, x) of the first component's peak (`tuple` or `None`)."""
        if not self.components or self.components[0].peak is None:
            return None
        y, x = self.components[0].peak
        return int(np.round(y)), int(np.round(x))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Half-open box (y0, x0, y1, x1) of all components (`tuple`)."""
        return _joint_box(self.components)


@dataclass(frozen=True, eq=False)
class ScarletBlend:
    """One parent and its deblended sources."""

    id: int
    """Id of the parent's record in ``object_parent_patch`` (in the catalogue itself in older runs)."""
    origin: tuple[int, int]
    """(y, x) of the first pixel of the region."""
    shape: tuple[int, int]
    """Height and width of the region."""
    sources: tuple[ScarletSource, ...]
    """The sources."""
    bands: tuple[str, ...]
    """Bands of the spectra and cubes, in their order."""
    model_psf: np.ndarray
    """PSF of the models, float32, (y, x)."""
    psf: np.ndarray | None
    """PSF of the exposures that the fit used, float32, (band, y, x); `None` if it is not stored."""
    spans: np.ndarray | None = None
    """Pixels of the region that belong to the parent's footprint, bool, (y, x); `None` in older files."""
    psf_center: tuple[float, float] | None = None
    """(x, y), in this order, at which that PSF was computed, if stored."""


@dataclass(frozen=True, eq=False)
class ScarletModels:
    """Scarlet's models of the blends of one patch.

    Convergence and time are not among the models, but columns of
    ``object_parent_patch`` (``deblend_runtime``, ``deblend_iterations``, ...).
    """

    bands: tuple[str, ...]
    """Bands in their order. In older files, where each blend has its own, all that occur, in the order of
    their first appearance."""
    blends: dict[int, ScarletBlend]
    """Parents by id."""


def read_scarlet_models(path_or_object: str | os.PathLike[str] | Any) -> ScarletModels:
    """Read scarlet's models of a patch; arrays of an object in memory are not copied.

    Parameters
    ----------
    path_or_object : `str`, `os.PathLike` or `object`
        A ``.scarlet`` file, an older JSON file, `ScarletModels` (which are
        given back as they are), or an object with the public attributes of
        ``lsst.meas.extensions.scarlet.io.LsstScarletModelData``.

    Raises
    ------
    ScarletModelError
        Raised if the file or the object cannot be used.
    FileNotFoundError
        Raised if there is no such file.
    """
    if isinstance(path_or_object, ScarletModels):
        return path_or_object
    if isinstance(path_or_object, str | os.PathLike):
        return _read_file(os.fspath(path_or_object))
    node = _Node(path_or_object, f"the {type(path_or_object).__name__}")
    if not isinstance(node.get("blends"), Mapping):
        kind = type(path_or_object)
        raise ScarletModelError(
            f"Got a {kind.__module__}.{kind.__name__}; expected a path, or an object with 'blends' and "
            "'metadata' such as lsst.meas.extensions.scarlet.io.LsstScarletModelData."
        )
    return _parse_models(node, node.get("blends").items())


class _Node:
    """An object of the JSON document, or one in memory with the same attributes, and where it was found."""

    def __init__(self, stored: Any, where: str) -> None:
        self.stored, self.where = stored, where

    def get(self, name: str, default: Any = None) -> Any:
        if isinstance(self.stored, Mapping):
            return self.stored.get(name, default)
        return getattr(self.stored, name, default)

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            stored = self.stored if isinstance(self.stored, Mapping) else dir(self.stored)
            known = ", ".join(sorted(str(key) for key in stored if not str(key).startswith("_")))
            raise self.error(
                f"no {name!r} among {known}. This is not a layout that scarlet is known to write."
            )
        return value

    def error(self, message: str) -> ScarletModelError:
        return ScarletModelError(f"{self.where}: {message}")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what goes wrong with values of another kind than scarlet's into one kind of error."""
        try:
            yield
        except ScarletModelError:
            raise
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise self.error(
                f"{type(error).__name__}, {one_line(error)}. This is not a layout that scarlet is known to "
                "write, or the file is damaged: copy it again."
            ) from error

    def children(self, name: str, kind: str) -> Iterator[tuple[Any, _Node]]:
        for key, child in self.need(name).items():
            yield key, _Node(child, f"{self.where}, {kind} {key}")

    def pair(self, name: str) -> tuple[int, int]:
        y, x = (int(value) for value in self.need(name)[-2:])
        if max(abs(y), abs(x)) > _LARGEST_NUMBER:
            raise self.error(f"{name} is ({y}, {x}), wanted pixels up to {_LARGEST_NUMBER}.")
        return y, x

    def array(self, name: str, shape: Any = None, dtype: Any = np.float32) -> np.ndarray:
        if np.dtype(dtype).kind not in "biuf":
            raise self.error(f"{name} is of type {one_line(repr(dtype), 40)}, wanted numbers.")
        array = np.asarray(self.need(name), dtype=dtype)
        wanted = array.shape if shape is None else tuple(int(n) for n in shape)
        if array.size != math.prod(wanted) or min(wanted, default=0) < 0:
            raise self.error(
                f"{array.size} values of {name} for the shape {wanted}. The file is damaged: copy it again."
            )
        return array.reshape(wanted)

    def check_kind(self, kind: str, default: str, known: tuple[str, ...]) -> str:
        """Check version and type of a document; objects in memory may be of a newer version."""
        version = self.get("version", _KNOWN_VERSIONS[0])
        if isinstance(self.stored, Mapping) and version not in _KNOWN_VERSIONS:
            raise self.error(
                f"schema version {version!r} of a {kind}; this reader knows {', '.join(_KNOWN_VERSIONS)}. "
                f"{_USE_SCARLET}, or update meas_maskrcnn."
            )
        found = self.get(f"{kind}_type", default)
        if known and found not in known:
            names = " and ".join(map(repr, known))
            raise self.error(f"a {kind} of type {found!r}; this reader knows {names}. {_USE_SCARLET}.")
        return str(found)

    def metadata(self) -> dict[str, Any]:
        """Its metadata, with arrays for the lists that are named in ``array_keys``."""
        decoded = dict(self.get("metadata") or {})
        node = _Node(decoded, f"{self.where}, metadata")
        for key in decoded.pop("array_keys", ()):
            shape = decoded.pop(f"{key}_shape", decoded.pop(f"{key}Shape", None))
            if shape is None:
                raise node.error(f"the array {key!r} has no shape.")
            decoded[key] = node.array(key, shape, decoded.pop(f"{key}_dtype", "float32"))
        return decoded


def _read_file(path: str) -> ScarletModels:
    with open(path, "rb") as stream:
        start = stream.read(4)
    if start.startswith(b"PK"):
        try:
            with ZipReader(path) as archive:
                return _read_zip(archive, path)
        except ScarletModelError:
            raise
        except ValueError as error:
            raise ScarletModelError(
                f"{path} begins as a zip file but cannot be read to its end ({error}). It is cut short or "
                f"damaged ({os.path.getsize(path)} bytes): copy it again from the repository."
            ) from error
    if not start.lstrip().startswith(b"{"):
        raise ScarletModelError(
            f"{path} begins with {start!r}; scarlet's models are a zip file of JSON (.scarlet) or one JSON "
            "document. Give the file of the dataset deepCoadd_scarletModelData or object_scarlet_models."
        )
    with open(path, "rb") as stream:
        document = _parse_object(stream.read(), path)
    if not isinstance(document.get("blends"), dict):
        raise ScarletModelError(
            f"{path} is JSON with the keys {one_line(', '.join(sorted(document)))}, without 'blends': "
            "expected scarlet's models, the dataset deepCoadd_scarletModelData or object_scarlet_models."
        )
    return _parse_models(_Node(document, path), document["blends"].items())


def _read_zip(archive: ZipReader, path: str) -> ScarletModels:
    names = archive.names
    numbers = [name for name in names if name not in _SPECIAL_MEMBERS]
    strange = [name for name in numbers if not name.isdecimal()]
    if strange:
        raise ScarletModelError(
            f"{path} has a member {strange[0]!r:.100}; expected ids of blends and isolated sources beside "
            f"{', '.join(_SPECIAL_MEMBERS)}. Give the file of the dataset deepCoadd_scarletModelData or "
            "object_scarlet_models."
        )
    if "metadata" not in names and not {"psf", "psf_shape"} <= set(names):
        raise ScarletModelError(
            f"{path} has neither a member 'metadata' nor the older 'psf' and 'psf_shape', among {len(names)} "
            "members. It is not a file of scarlet's models, or was not written to its end: copy it again."
        )

    def blends() -> Iterator[tuple[str, Any]]:
        # One member at a time: as Python lists of floats a patch takes ten times the memory of its arrays.
        for name in numbers:
            node = _parse_object(archive.read(name), f"{path}, member {name}")
            # Isolated sources have their pixels in the catalogue.
            if "source_type" not in node or "blend_type" in node:
                yield name, node

    special = [name for name in _SPECIAL_MEMBERS if name in names]
    header = {name: _parse_json(archive.read(name), f"{path}, member {name}") for name in special}
    return _parse_models(_Node(header, path), blends())


def _parse_json(text: bytes, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ScarletModelError(
            f"{where} is not valid JSON ({error}). The file is cut short or damaged: copy it again from the "
            "repository."
        ) from error


def _parse_object(text: bytes, where: str) -> dict[str, Any]:
    node = _parse_json(text, where)
    if not isinstance(node, dict):
        raise ScarletModelError(f"{where} is a JSON {type(node).__name__}; expected an object.")
    return node


def _parse_models(header: _Node, blends: Iterable[tuple[Any, Any]]) -> ScarletModels:
    with header.errors():
        header.check_kind("model", "", ())
        metadata = header.metadata()
        if header.get("psf") is not None:
            shape = header.get("psf_shape", header.get("psfShape"))
            metadata.setdefault("model_psf", header.array("psf", shape))
    parsed = {}
    for key, stored in blends:
        node = _Node(stored, f"{header.where}, blend {key}")
        with node.errors():
            parsed[int(key)] = _parse_blend(int(key), node, metadata)
    with header.errors():
        every = dict.fromkeys(band for blend in parsed.values() for band in blend.bands)
        bands = tuple(metadata.get("bands") or every)
        if not all(isinstance(band, str) for band in bands):
            raise header.error(f"bands are {one_line(bands, 60)}, wanted names.")
    return ScarletModels(bands, parsed)


def _parse_blend(number: int, node: _Node, common: Mapping[str, Any]) -> ScarletBlend:
    sources = _parse_sources(node)
    metadata = {**common, **node.metadata()}
    # Before schema versions, each blend had these itself.
    if node.get("psf") is not None:
        metadata["psf"] = node.array("psf", node.get("psf_shape"))
    metadata |= {name: node.get(name) for name in ("bands", "psf_center") if node.get(name) is not None}
    bands = tuple(metadata.get("bands") or ())
    if not bands or metadata.get("model_psf") is None:
        what = "which PSF" if bands else "which bands"
        raise node.error(f"neither the blend nor the file says {what} the models have.")
    model_psf = np.asarray(metadata["model_psf"], dtype=np.float32)
    psf = metadata.get("psf")
    if psf is not None:
        psf = np.asarray(psf, dtype=np.float32)
        if psf.ndim != 3 or len(psf) != len(bands):
            raise node.error(
                f"PSFs of shape {psf.shape} for the bands {', '.join(bands)}; expected one image per band."
            )
    for source in sources:
        for component in source.components:
            if len(component.spectrum) != len(bands):
                raise node.error(
                    f"source {source.id}: a component in {len(component.spectrum)} bands, but the blend has "
                    f"{len(bands)} ({', '.join(bands)})."
                )
    spans = metadata.get("spans")
    if spans is not None:
        spans = np.asarray(spans, dtype=bool)
        origin, shape = _Node(metadata, f"{node.where}, metadata").pair("origin"), spans.shape
    elif node.get("origin") is not None:
        origin, shape = node.pair("origin"), node.pair("shape")
    else:
        y0, x0, y1, x1 = _joint_box([part for source in sources for part in source.components])
        origin, shape = (y0, x0), (y1 - y0, x1 - x0)
    if len(shape) != 2 or not 0 <= max(shape) <= _LARGEST_SIDE or min(shape) < 0:
        raise node.error(f"its region has the shape {shape}, wanted two sides up to {_LARGEST_SIDE} px.")
    center = metadata.get("psf_center")
    return ScarletBlend(
        id=number,
        origin=origin,
        shape=shape,
        sources=tuple(sources),
        bands=bands,
        model_psf=model_psf.reshape(model_psf.shape[-2:]),
        psf=psf,
        spans=spans,
        psf_center=None if center is None else (float(center[0]), float(center[1])),
    )


def _parse_sources(node: _Node) -> list[ScarletSource]:
    """Sources of a blend, and of its children if it has some."""
    default = "blend" if node.get("children") is None else "hierarchical"
    if node.check_kind("blend", default, ("blend", "hierarchical")) == "hierarchical":
        return [source for _, child in node.children("children", "blend") for source in _parse_sources(child)]
    sources = []
    for key, stored in node.children("sources", "source"):
        stored.check_kind("source", "source", ("source",))
        # Before schema versions, components with a spectrum were in another list.
        parts = stored.get("factorized") or stored.need("components")
        components = [
            _parse_component(_Node(part, f"{stored.where}, component {k}")) for k, part in enumerate(parts)
        ]
        sources.append(ScarletSource(int(stored.metadata().get("id", key)), tuple(components)))
    return sources


def _parse_component(node: _Node) -> ScarletComponent:
    default = "factorized" if node.get("model") is None else "cube"
    kind = node.check_kind("component", default, ("factorized", "cube", "component"))
    shape = node.need("shape")
    if kind == "factorized":
        morph, spectrum = node.array("morph", shape), node.array("spectrum")
    else:
        morph = node.array("model", shape)
        spectrum = np.ones(len(morph), dtype=np.float32)
    peak = node.get("peak")
    place = None if peak is None else (float(peak[0]), float(peak[1]))
    return ScarletComponent(node.pair("origin"), place, morph, spectrum)


def _joint_box(components: Sequence[ScarletComponent]) -> tuple[int, int, int, int]:
    """Half-open box (y0, x0, y1, x1) of components; zeros without any."""
    if not components:
        return 0, 0, 0, 0
    low = np.array([one.origin for one in components])
    high = low + [one.morph.shape[-2:] for one in components]
    y0, x0 = low.min(axis=0).tolist()
    y1, x1 = high.max(axis=0).tolist()
    return y0, x0, y1, x1
