# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files of tensors that are checked before they are believed.

They are safetensors files whose header holds some texts and two checksums: one
of the tensors (names, types, shapes and bytes) and one of the texts. SHA-256
takes about 0.7 ms per MB.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

from ..images.files import one_line, parse_json

_LOG = logging.getLogger(__name__)

_TENSORS, _TEXTS = "sha256", "sha256_texts"

_LARGEST_HEADER = 8_000_000
"""Bytes; those of the largest networks have 100 kB, checkpoints with thousands of rows 2 MB."""

_MOST_AXES, _LARGEST_SIDE = 8, 2**48
"""Of a tensor; so that the number of its elements is quickly found."""

_ITEM_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "F32": 4,
    "I64": 8,
    "F64": 8,
}


class TensorFileError(ValueError):
    """A file is no whole file of tensors; the message begins with what is wrong."""


_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TensorHeader:
    """What the header of a file says."""

    length: int
    """Bytes of the header, without the eight that hold this number."""

    entries: dict[str, Any]
    """Type (``dtype``), shape and place (``data_offsets``) of each tensor."""

    texts: dict[str, str]
    """Texts by key, checksums among them."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors (`dict` [`str`, `tuple`])."""
        return {name: tuple(entry["shape"]) for name, entry in self.entries.items()}

    def check_texts(self) -> None:
        """Raise a `TensorFileError` if the texts have a checksum, and it is that of others."""
        texts = self.texts
        if (_TEXTS in texts or _TENSORS in texts) and texts.get(_TEXTS) != _sha256_of_texts(texts):
            raise TensorFileError("is damaged: the texts of its header have another SHA-256 than it says")
        for key, text in texts.items():
            if key not in (_TEXTS, _TENSORS) and _SHA256.fullmatch(text):
                raise TensorFileError(f"is damaged: a SHA-256 in its header is called {key!r}")

    def pack(self, data: bytes, texts: Mapping[str, str]) -> bytes:
        """Make a file of other texts and of the tensors of a file with this header, bit for bit."""
        signed = {**texts, _TENSORS: _sha256_of_tensors(self, data)}
        content = {"__metadata__": {**signed, _TEXTS: _sha256_of_texts(signed)}, **self.entries}
        raw = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        # Tensors must begin at a multiple of eight bytes.
        raw += b" " * (-len(raw) % 8)
        return b"".join((struct.pack("<Q", len(raw)), raw, memoryview(data)[8 + self.length :]))


def pack_tensors(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> bytes:
    """Make a file of tensors and texts."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    data = safetensors.torch.save(plain)
    length = int(struct.unpack("<Q", data[:8])[0])
    entries = json.loads(data[8 : 8 + length])
    entries.pop("__metadata__", None)
    return TensorHeader(length, entries, {}).pack(data, texts)


def read_tensor_header(stream: BinaryIO, size: int) -> TensorHeader:
    """Read the header of a file at its beginning and check it against the size of the file (bytes).

    The stream is left where the tensors begin. A `TensorFileError` is raised if this is no whole file of
    tensors.
    """
    start = stream.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    raw = stream.read(length) if 2 <= length <= _LARGEST_HEADER else b""
    if not raw.startswith(b"{"):
        raise TensorFileError(f"is not a safetensors file (it begins with {start + raw[:8]!r})")
    if len(raw) < length:
        raise TensorFileError(f"is truncated: its header has {length} bytes, the file has {size}")
    try:
        content = parse_json(raw)
        texts = content.pop("__metadata__", {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("__metadata__ does not hold texts")
        end = _check_places(content)
    except (ValueError, KeyError, TypeError) as error:
        raise TensorFileError(f"has a damaged header ({one_line(error)})") from error
    expected = 8 + length + end
    if size < expected:
        raise TensorFileError(f"is truncated: {size} bytes of {expected}")
    if size > expected:
        raise TensorFileError(f"is damaged: {size} bytes, {expected} according to its header")
    return TensorHeader(length, content, texts)


def read_tensors(header: TensorHeader, data: bytes, name: str) -> dict[str, Tensor]:
    """Read the tensors of a file; a `TensorFileError` is raised if they are not those that were written.

    A file without a checksum, as older versions wrote it, is read with a warning, once in a process.
    """
    if _TENSORS not in header.texts:
        _warn_of_no_checksum(name)
    elif header.texts[_TENSORS] != _sha256_of_tensors(header, data):
        raise TensorFileError("is damaged: its tensors have another SHA-256 than its header says")
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise TensorFileError(f"is damaged: {one_line(error)}") from error


def _check_places(entries: dict[str, Any]) -> int:
    """Check that tensors of known types fill a file without gaps; returns where they end."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda pair: _place(pair[1])):
        start, stop = _place(entry)
        shape = entry["shape"]
        if len(entry) != 3 or not isinstance(shape, list) or len(shape) > _MOST_AXES:
            raise ValueError(f"{name!r} has {entry}, wanted dtype, shape and data_offsets")
        if not all(type(side) is int and 0 <= side <= _LARGEST_SIDE for side in shape):
            raise ValueError(f"{name!r} has the shape {shape}")
        if entry["dtype"] not in _ITEM_SIZES:
            raise ValueError(
                f"{name!r} is of type {entry['dtype']!r}, wanted one of {', '.join(_ITEM_SIZES)}"
            )
        wanted = math.prod(shape) * _ITEM_SIZES[entry["dtype"]]
        if start != end or stop - start != wanted:
            raise ValueError(f"{name!r} is at {start}:{stop}, wanted {end}:{end + wanted}")
        end = stop
    return end


def _place(entry: Any) -> tuple[int, int]:
    start, stop = entry["data_offsets"]
    if type(start) is not int or type(stop) is not int:
        raise ValueError(f"data_offsets are {start} and {stop}, wanted integers")
    return start, stop


def _sha256_of_tensors(header: TensorHeader, data: bytes) -> str:
    """Checksum of names, types, shapes and bytes."""
    layout = json.dumps(header.entries, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(layout.encode())
    digest.update(memoryview(data)[8 + header.length :])
    return digest.hexdigest()


def _sha256_of_texts(texts: Mapping[str, str]) -> str:
    kept = {key: text for key, text in texts.items() if key != _TEXTS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


@cache
def _warn_of_no_checksum(name: str) -> None:
    _LOG.warning(
        "%s has no checksum: an older version of meas_maskrcnn wrote it. A damaged weight is not noticed.",
        name,
    )
