# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read the models that scarlet left behind.

``DeblendCoaddSourcesMultiTask`` stores one model per source, in the seeing of
a narrow model PSF. Three layouts are in use and all of them are read here,
without ``lsst.meas.extensions.scarlet``:

- a zip file (``.scarlet``) with the members ``metadata``, ``version`` and one
  JSON document per blend and per isolated source (since June 2025);
- the same zip file with ``psf`` and ``psf_shape`` instead of the metadata,
  where each blend has its own bands and PSF (from April 2025);
- one JSON document with everything (before that).

An object in memory that has the public attributes of upstream's
``LsstScarletModelData`` (or of the older ``ScarletModelData``) does as well.

Positions and shapes are (y, x), and positions are in the parent frame (tract
coordinates), as upstream writes them. Cubes are (band, y, x).
"""

from __future__ import annotations

__all__ = [
    "ScarletBlend",
    "ScarletComponent",
    "ScarletIsolated",
    "ScarletModelError",
    "ScarletModels",
    "ScarletSource",
    "read_scarlet_models",
]

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_UNVERSIONED = "0.0.0"
_KNOWN_VERSIONS = {
    "model": (_UNVERSIONED, "1.0.0", "1.0.1"),
    "blend": (_UNVERSIONED, "1.0.0"),
    "source": (_UNVERSIONED, "1.0.0"),
    "component": (_UNVERSIONED, "1.0.0"),
}
_SPECIAL_MEMBERS = ("metadata", "version", "psf", "psf_shape")


class ScarletModelError(ValueError):
    """Scarlet's models cannot be used; the message says what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScarletComponent:
    """One component of a source, in the seeing of the model PSF.

    Parameters
    ----------
    origin : `tuple` [`int`, `int`]
        (y, x) of the first pixel.
    peak : `tuple` [`float`, `float`] or `None`
        (y, x) of the peak.
    morph : `numpy.ndarray`, (y, x), float32, or `None`
        Shape of a component that looks the same in all bands; `None` if it
        is a cube.
    spectrum : `numpy.ndarray`, (band,), float32, or `None`
        Its amplitude in each band.
    cube : `numpy.ndarray`, (band, y, x), float32, or `None`
        Pixels of a component that has no such shape.
    """

    origin: tuple[int, int]
    peak: tuple[float, float] | None
    morph: np.ndarray | None = None
    spectrum: np.ndarray | None = None
    cube: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width (`tuple` [`int`, `int`])."""
        pixels = self.cube if self.morph is None else self.morph
        if pixels is None:
            return 0, 0
        return int(pixels.shape[-2]), int(pixels.shape[-1])

    def pixels(self, bands: Sequence[int]) -> np.ndarray:
        """Model in some bands.

        Parameters
        ----------
        bands : `~collections.abc.Sequence` [`int`]
            Positions of the bands in the blend's ``bands``.

        Returns
        -------
        pixels : `numpy.ndarray`, (band, y, x), float32
            Flux per pixel, in the units of the exposures.
        """
        chosen = list(bands)
        if self.morph is not None and self.spectrum is not None:
            return self.spectrum[chosen, None, None] * self.morph[None]
        if self.cube is not None:
            return self.cube[chosen]
        return np.zeros((len(chosen), 0, 0), dtype=np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class ScarletSource:
    """One deblended source.

    Parameters
    ----------
    id : `int`
        Id of its record in the object catalogue.
    blend_id : `int`
        Id of the deconvolved blend it was fitted in, a child of the parent
        (the parent itself in older files).
    components : `tuple` [`ScarletComponent`]
        What it consists of; empty if the fit left nothing of it.
    peak_id : `int` or `None`, optional
        Id of its peak in the parent's footprint.
    metadata : `dict`, optional
        What else is stored with it.
    """

    id: int
    blend_id: int
    components: tuple[ScarletComponent, ...]
    peak_id: int | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

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
        if not self.components:
            return 0, 0, 0, 0
        low = np.array([c.origin for c in self.components])
        high = low + [c.shape for c in self.components]
        y0, x0 = low.min(axis=0).tolist()
        y1, x1 = high.max(axis=0).tolist()
        return y0, x0, y1, x1


@dataclasses.dataclass(frozen=True, eq=False)
class ScarletBlend:
    """One parent and its deblended sources.

    Parameters
    ----------
    id : `int`
        Id of the parent's record in ``object_parent_patch`` (in the catalogue
        itself in older runs).
    origin : `tuple` [`int`, `int`]
        (y, x) of the first pixel of the region.
    shape : `tuple` [`int`, `int`]
        Height and width of the region.
    sources : `tuple` [`ScarletSource`]
        The sources.
    bands : `tuple` [`str`]
        Bands of the spectra and cubes, in their order.
    model_psf : `numpy.ndarray`, (y, x), float32
        PSF of the models.
    psf : `numpy.ndarray`, (band, y, x), float32, or `None`
        PSF of the exposures that the fit used; `None` if it is not stored.
    spans : `numpy.ndarray`, (y, x), bool, or `None`, optional
        Pixels of the region that belong to the parent's footprint; `None` in
        older files.
    psf_center : `tuple` [`float`, `float`] or `None`, optional
        (x, y), in this order, at which that PSF was computed, if stored.
    metadata : `dict`, optional
        What else is stored with it.
    """

    id: int
    origin: tuple[int, int]
    shape: tuple[int, int]
    sources: tuple[ScarletSource, ...]
    bands: tuple[str, ...]
    model_psf: np.ndarray
    psf: np.ndarray | None
    spans: np.ndarray | None = None
    psf_center: tuple[float, float] | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class ScarletIsolated:
    """A source that was alone in its parent and not fitted.

    Parameters
    ----------
    id : `int`
        Id of its record in the object catalogue.
    origin : `tuple` [`int`, `int`]
        (y, x) of the first pixel of its footprint's box.
    spans : `numpy.ndarray`, (y, x), bool
        Pixels of its footprint.
    peak : `tuple` [`int`, `int`]
        (y, x) of its peak.
    """

    id: int
    origin: tuple[int, int]
    spans: np.ndarray
    peak: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class ScarletModels:
    """Scarlet's models of one patch.

    The models say nothing about convergence or time: those are columns of
    ``object_parent_patch`` (``deblend_runtime``, ``deblend_iterations``, ...).

    Parameters
    ----------
    bands : `tuple` [`str`]
        Bands in their order. In older files, where each blend has its own,
        all that occur, in the order of their first appearance.
    model_psf : `numpy.ndarray`, (y, x), float32, or `None`
        PSF of the models; `None` where nothing was deblended.
    psf : `numpy.ndarray`, (band, y, x), float32, or `None`
        PSF of the exposures; `None` where each blend has its own.
    blends : `dict` [`int`, `ScarletBlend`]
        Parents by id.
    isolated : `dict` [`int`, `ScarletIsolated`]
        Sources that needed no deblending, by id.
    version : `str`
        Schema version of the file, "0.0.0" if it has none.
    metadata : `dict`
        What else is stored.
    """

    bands: tuple[str, ...]
    model_psf: np.ndarray | None
    psf: np.ndarray | None
    blends: dict[int, ScarletBlend]
    isolated: dict[int, ScarletIsolated]
    version: str
    metadata: dict[str, Any]


def read_scarlet_models(
    path_or_object: str | os.PathLike[str] | Any, blend_ids: Iterable[int] | None = None
) -> ScarletModels:
    """Read scarlet's models of a patch.

    Parameters
    ----------
    path_or_object : `str`, `os.PathLike` or `object`
        A ``.scarlet`` file, an older JSON file, `ScarletModels` (which are
        given back as they are), or an object with the public attributes of
        ``lsst.meas.extensions.scarlet.io.LsstScarletModelData``.
    blend_ids : `~collections.abc.Iterable` [`int`], optional
        Parents to read; all by default. From a zip file nothing else is read
        then, isolated sources neither.

    Returns
    -------
    models : `ScarletModels`
        The models. Arrays of an object in memory are not copied.

    Raises
    ------
    ScarletModelError
        Raised if the file or the object cannot be used, or lacks a parent
        that was asked for.
    FileNotFoundError
        Raised if there is no such file.
    """
    wanted = None if blend_ids is None else [int(i) for i in blend_ids]
    if isinstance(path_or_object, ScarletModels):
        models = path_or_object
    elif isinstance(path_or_object, str | os.PathLike):
        return _read_file(os.fspath(path_or_object), wanted)
    else:
        models = _from_object(path_or_object)
    if wanted is None:
        return models
    where = f"the {type(path_or_object).__name__}"
    chosen = {i: models.blends[i] for i in _check_wanted(wanted, models.blends, where)}
    return dataclasses.replace(models, blends=chosen, isolated={})


# Files


def _read_file(path: str, wanted: list[int] | None) -> ScarletModels:
    with open(path, "rb") as stream:
        start = stream.read(4)
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                return _read_zip(archive, path, wanted)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
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
        document = _parse_json(stream.read(), path)
    if not isinstance(document.get("blends"), dict):
        raise ScarletModelError(
            f"{path} is JSON with the keys {', '.join(sorted(document))}, without 'blends': expected "
            "scarlet's models, the dataset deepCoadd_scarletModelData or object_scarlet_models."
        )
    isolated = document.get("isolated") or {}
    blends = document["blends"]
    if wanted is not None:
        present = {int(key): key for key in blends}
        blends = {present[i]: blends[present[i]] for i in _check_wanted(wanted, present, path)}
        isolated = {}
    version = _check_version(document, "model", path)
    common = _Common(
        _decode(document.get("metadata"), f"{path}, metadata"),
        _legacy_psf(document.get("psf"), document.get("psfShape", document.get("psf_shape")), path),
        path,
    )
    return common.models(
        {int(k): _parse_blend(int(k), v, common, f"{path}, blend {k}") for k, v in blends.items()},
        {int(k): _parse_isolated(int(k), v, f"{path}, isolated source {k}") for k, v in isolated.items()},
        version,
    )


def _read_zip(archive: zipfile.ZipFile, path: str, wanted: list[int] | None) -> ScarletModels:
    names = archive.namelist()
    members: dict[int, str] = {}
    for name in names:
        if name in _SPECIAL_MEMBERS:
            continue
        if not name.isdecimal():
            raise ScarletModelError(
                f"{path} has a member {name!r}; expected ids of blends and isolated sources beside "
                f"{', '.join(_SPECIAL_MEMBERS)}. Give the file of the dataset deepCoadd_scarletModelData or "
                "object_scarlet_models."
            )
        members[int(name)] = name
    has_metadata = "metadata" in names
    if not has_metadata and not {"psf", "psf_shape"} <= set(names):
        raise ScarletModelError(
            f"{path} has neither a member 'metadata' nor the older 'psf' and 'psf_shape', among {len(names)} "
            "members. It is not a file of scarlet's models, or was not written to its end: copy it again."
        )

    def load(name: str) -> Any:
        return _parse_json(archive.read(name), f"{path}, member {name}")

    version = _UNVERSIONED
    if "version" in names:
        version = _check_version({"version": load("version")}, "model", path)
    common = _Common(
        _decode(load("metadata"), f"{path}, member metadata") if has_metadata else {},
        None if has_metadata else _legacy_psf(load("psf"), load("psf_shape"), path),
        path,
    )
    chosen = members if wanted is None else _check_wanted(wanted, members, path)
    blends: dict[int, ScarletBlend] = {}
    isolated: dict[int, ScarletIsolated] = {}
    # One member at a time: as Python lists of floats a patch takes ten times
    # the memory of its arrays.
    for number in chosen:
        where = f"{path}, member {number}"
        node = load(members[number])
        if not isinstance(node, dict):
            raise ScarletModelError(f"{where} is a JSON {type(node).__name__}; expected an object.")
        if "source_type" in node and "blend_type" not in node:
            isolated[number] = _parse_isolated(number, node, where)
        else:
            blends[number] = _parse_blend(number, node, common, where)
    return common.models(blends, isolated, version)


def _parse_json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ScarletModelError(
            f"{where} is not valid JSON ({error}). The file is cut short or damaged: copy it again from the "
            "repository."
        ) from error


def _check_wanted(wanted: list[int], present: Mapping[int, Any], where: str) -> list[int]:
    missing = [i for i in wanted if i not in present]
    if missing:
        raise ScarletModelError(
            f"{where} has no blend {', '.join(map(str, missing[:5]))}{' ...' if len(missing) > 5 else ''}; "
            f"it has {len(present)}, such as {', '.join(map(str, list(present)[:5])) or 'none'}. Parents "
            "that scarlet skipped have no model: look at deblend_skipped in object_parent_patch."
        )
    return wanted


def _check_version(node: Mapping[str, Any], kind: str, where: str) -> str:
    version = node.get("version", _UNVERSIONED)
    if version not in _KNOWN_VERSIONS[kind]:
        raise ScarletModelError(
            f"{where}: schema version {version!r} of a {kind}; this reader knows "
            f"{', '.join(_KNOWN_VERSIONS[kind])}. Read it with lsst.meas.extensions.scarlet and pass the "
            "object that it gives, or update meas_maskrcnn."
        )
    return str(version)


def _get(node: Mapping[str, Any], key: str, where: str) -> Any:
    try:
        return node[key]
    except KeyError:
        raise ScarletModelError(
            f"{where}: no {key!r} among {', '.join(sorted(map(str, node)))}. This is not a layout that "
            "scarlet is known to write."
        ) from None


def _array(values: Any, shape: Sequence[int] | None, where: str, dtype: Any = np.float32) -> np.ndarray:
    if shape is None:
        raise ScarletModelError(f"{where}: an array without its shape.")
    array = np.asarray(values, dtype=dtype)
    wanted = tuple(int(n) for n in shape)
    if array.size != int(np.prod(wanted)):
        raise ScarletModelError(
            f"{where}: {array.size} values for the shape {wanted}. The file is damaged: copy it again."
        )
    return array.reshape(wanted)


def _legacy_psf(values: Any, shape: Any, where: str) -> np.ndarray | None:
    return None if values is None else _array(values, shape, f"{where}, psf")


def _decode(metadata: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Make arrays of the lists that are named in ``array_keys``."""
    if metadata is None:
        return {}
    decoded = dict(metadata)
    for key in decoded.pop("array_keys", ()):
        dtype = decoded.pop(f"{key}_dtype", "float32")
        shape = decoded.pop(f"{key}_shape", None)
        if shape is None:
            shape = decoded.pop(f"{key}Shape", None)
        decoded[key] = _array(_get(decoded, key, where), shape, f"{where}, {key}", dtype)
    return decoded


@dataclasses.dataclass
class _Common:
    """What the blends of a patch share."""

    metadata: dict[str, Any]
    legacy_psf: np.ndarray | None
    where: str

    @property
    def model_psf(self) -> np.ndarray | None:
        return self.metadata.get("model_psf", self.legacy_psf)

    def blend(
        self,
        number: int,
        sources: Sequence[ScarletSource],
        metadata: dict[str, Any],
        box: tuple[Sequence[int], Sequence[int]] | None,
        where: str,
    ) -> ScarletBlend:
        bands = tuple(metadata.get("bands") or self.metadata.get("bands") or ())
        psf = metadata.get("psf", self.metadata.get("psf"))
        model_psf = metadata.get("model_psf", self.model_psf)
        if model_psf is None or not bands:
            raise ScarletModelError(
                f"{where}: neither the blend nor {self.where} says "
                f"{'which bands' if not bands else 'which PSF'} the models have."
            )
        model_psf = np.asarray(model_psf, dtype=np.float32)
        if psf is not None:
            psf = np.asarray(psf, dtype=np.float32)
            if psf.ndim != 3 or len(psf) != len(bands):
                raise ScarletModelError(
                    f"{where}: PSFs of shape {psf.shape} for the bands {', '.join(bands)}; expected one "
                    "image per band."
                )
        spans = metadata.get("spans")
        origin: Any
        shape: Any
        if spans is not None:
            spans = np.asarray(spans, dtype=bool)
            origin, shape = _get(metadata, "origin", where), spans.shape
        elif box is not None:
            origin, shape = box
        else:
            boxes = np.array([source.box for source in sources if source.components]).reshape(-1, 4)
            boxes = boxes if len(boxes) else np.zeros((1, 4), dtype=np.int64)
            origin = boxes[:, :2].min(axis=0)
            shape = boxes[:, 2:].max(axis=0) - origin
        for source in sources:
            for component in source.components:
                stored = component.spectrum if component.cube is None else component.cube
                if stored is None or len(stored) != len(bands):
                    raise ScarletModelError(
                        f"{where}, source {source.id}: a component in {0 if stored is None else len(stored)} "
                        f"bands, but the blend has {len(bands)} ({', '.join(bands)})."
                    )
        center = metadata.get("psf_center")
        return ScarletBlend(
            id=number,
            origin=(int(origin[0]), int(origin[1])),
            shape=(int(shape[0]), int(shape[1])),
            sources=tuple(sources),
            bands=bands,
            model_psf=model_psf.reshape(model_psf.shape[-2:]),
            psf=psf,
            spans=spans,
            psf_center=None if center is None else (float(center[0]), float(center[1])),
            metadata={
                k: v for k, v in metadata.items() if k not in ("spans", "origin", "psf", "model_psf", "bands")
            },
        )

    def models(
        self, blends: dict[int, ScarletBlend], isolated: dict[int, ScarletIsolated], version: str
    ) -> ScarletModels:
        bands = tuple(self.metadata.get("bands") or ())
        if not bands:
            bands = tuple(dict.fromkeys(band for blend in blends.values() for band in blend.bands))
        psf = self.metadata.get("psf")
        return ScarletModels(
            bands=bands,
            model_psf=None if self.model_psf is None else np.asarray(self.model_psf, dtype=np.float32),
            psf=None if psf is None else np.asarray(psf, dtype=np.float32),
            blends=blends,
            isolated=isolated,
            version=version,
            metadata={k: v for k, v in self.metadata.items() if k not in ("bands", "psf", "model_psf")},
        )


def _parse_blend(number: int, node: Mapping[str, Any], common: _Common, where: str) -> ScarletBlend:
    metadata = _decode(node.get("metadata"), f"{where}, metadata")
    if "metadata" not in node and "psf" in node:
        metadata = {
            "psf": _array(node["psf"], _get(node, "psf_shape", where), f"{where}, psf"),
            "bands": _get(node, "bands", where),
            "psf_center": node.get("psf_center"),
        }
    box = None
    if node.get("blend_type", "blend") == "blend":
        box = (_get(node, "origin", where), _get(node, "shape", where))
    return common.blend(number, _parse_sources(number, node, where), metadata, box, where)


def _parse_sources(number: int, node: Mapping[str, Any], where: str) -> list[ScarletSource]:
    """Sources of a blend, and of its children if it has some."""
    _check_version(node, "blend", where)
    kind = node.get("blend_type", "blend")
    if kind == "hierarchical":
        return [
            source
            for key, child in _get(node, "children", where).items()
            for source in _parse_sources(int(key), child, f"{where}, blend {key}")
        ]
    if kind != "blend":
        raise ScarletModelError(
            f"{where}: a blend of type {kind!r}; this reader knows 'blend' and 'hierarchical'. Read it with "
            "lsst.meas.extensions.scarlet and pass the object that it gives."
        )
    sources = []
    for key, stored in _get(node, "sources", where).items():
        here = f"{where}, source {key}"
        _check_version(stored, "source", here)
        if stored.get("source_type", "source") != "source":
            raise ScarletModelError(
                f"{here}: a source of type {stored['source_type']!r} in a blend; expected 'source'."
            )
        metadata = _decode(stored.get("metadata"), f"{here}, metadata")
        # Before schema versions, components with a spectrum stood apart and
        # the other list was empty.
        parts = stored["factorized"] if "factorized" in stored else _get(stored, "components", here)
        sources.append(
            _make_source(
                key,
                number,
                [_parse_component(part, f"{here}, component {i}") for i, part in enumerate(parts)],
                metadata,
                stored.get("peak_id"),
            )
        )
    return sources


def _make_source(
    key: Any, blend_id: int, components: Sequence[ScarletComponent], metadata: dict[str, Any], peak_id: Any
) -> ScarletSource:
    peak_id = metadata.get("peak_id", peak_id)
    return ScarletSource(
        id=int(metadata.get("id", key)),
        blend_id=blend_id,
        components=tuple(components),
        peak_id=None if peak_id is None else int(peak_id),
        metadata={k: v for k, v in metadata.items() if k not in ("id", "peak_id")},
    )


def _parse_component(node: Mapping[str, Any], where: str) -> ScarletComponent:
    _check_version(node, "component", where)
    kind = node.get("component_type", "factorized")
    shape = _get(node, "shape", where)
    if kind == "factorized":
        return _make_component(
            _get(node, "origin", where),
            node.get("peak"),
            morph=_array(_get(node, "morph", where), shape, f"{where}, morph"),
            spectrum=np.asarray(_get(node, "spectrum", where), dtype=np.float32),
        )
    if kind in ("component", "cube"):
        cube = _array(_get(node, "model", where), shape, f"{where}, model")
        return _make_component(_get(node, "origin", where), node.get("peak"), cube=cube)
    raise ScarletModelError(
        f"{where}: a component of type {kind!r}; this reader knows 'factorized' and 'cube'. Read it with "
        "lsst.meas.extensions.scarlet and pass the object that it gives."
    )


def _make_component(origin: Any, peak: Any, **pixels: np.ndarray) -> ScarletComponent:
    return ScarletComponent(
        origin=(int(origin[-2]), int(origin[-1])),
        peak=None if peak is None else (float(peak[0]), float(peak[1])),
        **pixels,
    )


def _parse_isolated(number: int, node: Mapping[str, Any], where: str) -> ScarletIsolated:
    _check_version(node, "source", where)
    if node.get("source_type") != "isolated":
        raise ScarletModelError(
            f"{where}: a source of type {node.get('source_type')!r} outside a blend; expected 'isolated'."
        )
    spans = _array(_get(node, "span_array", where), _get(node, "shape", where), f"{where}, span_array")
    return _make_isolated(number, _get(node, "origin", where), spans, _get(node, "peak", where))


def _make_isolated(number: int, origin: Any, spans: Any, peak: Any) -> ScarletIsolated:
    return ScarletIsolated(
        id=number,
        origin=(int(origin[0]), int(origin[1])),
        spans=np.asarray(spans) != 0,
        peak=(int(peak[0]), int(peak[1])),
    )


# Objects in memory


def _from_object(data: Any) -> ScarletModels:
    stored_blends = getattr(data, "blends", None)
    if not isinstance(stored_blends, Mapping):
        raise ScarletModelError(
            f"Got a {type(data).__module__}.{type(data).__name__}; expected a path, or an object with "
            "'blends' and 'metadata' such as lsst.meas.extensions.scarlet.io.LsstScarletModelData."
        )
    where = f"the {type(data).__name__}"
    metadata = dict(getattr(data, "metadata", None) or {})
    common = _Common(metadata, getattr(data, "psf", None), where)
    blends = {}
    for key, stored in stored_blends.items():
        here = f"{where}, blend {key}"
        own = dict(getattr(stored, "metadata", None) or {})
        for name in ("psf", "bands", "psf_center"):
            if name not in own and getattr(stored, name, None) is not None:
                own[name] = getattr(stored, name)
        box = None
        if hasattr(stored, "origin") and hasattr(stored, "shape"):
            box = (stored.origin, stored.shape)
        blends[int(key)] = common.blend(int(key), _object_sources(int(key), stored, here), own, box, here)
    isolated = {
        int(key): _make_isolated(int(key), source.origin, source.span_array, source.peak)
        for key, source in (getattr(data, "isolated", None) or {}).items()
    }
    return common.models(blends, isolated, str(getattr(data, "version", _UNVERSIONED)))


def _object_sources(number: int, stored: Any, where: str) -> list[ScarletSource]:
    if hasattr(stored, "children"):
        return [
            source
            for key, child in stored.children.items()
            for source in _object_sources(int(key), child, f"{where}, blend {key}")
        ]
    if not hasattr(stored, "sources"):
        raise ScarletModelError(
            f"{where}: a {type(stored).__name__} without 'children' or 'sources'. Update meas_maskrcnn if "
            "the Science Pipelines have a new kind of blend."
        )
    sources = []
    for key, source in stored.sources.items():
        components = []
        for index, part in enumerate(source.components):
            if hasattr(part, "morph"):
                pixels = {
                    "morph": np.asarray(part.morph, dtype=np.float32),
                    "spectrum": np.asarray(part.spectrum, dtype=np.float32),
                }
            elif hasattr(part, "model"):
                pixels = {"cube": np.asarray(part.model, dtype=np.float32)}
            else:
                raise ScarletModelError(
                    f"{where}, source {key}, component {index}: a {type(part).__name__} without 'morph' or "
                    "'model'. Update meas_maskrcnn if the Science Pipelines have a new kind of component."
                )
            components.append(_make_component(part.origin, part.peak, **pixels))
        metadata = dict(getattr(source, "metadata", None) or {})
        sources.append(_make_source(key, number, components, metadata, getattr(source, "peak_id", None)))
    return sources
