# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a Butler stores scarlet's models: a zip file with a JSON member per blend."""

from __future__ import annotations

__all__ = ["ScarletModelDelegate", "ScarletModelFormatter", "read_scarlet_model", "write_scarlet_model"]

import json
import zipfile
from collections.abc import Mapping
from io import BytesIO
from typing import Any, BinaryIO

from lsst.daf.butler import FormatterV2, StorageClassDelegate
from lsst.utils.iteration import ensure_iterable

from ._data import LsstScarletModelData


def read_scarlet_model(path_or_stream: Any, blend_ids: list[int] | None = None) -> LsstScarletModelData:
    """Read a zip file, or some of its blends.

    Parameters
    ----------
    path_or_stream : `str` or file object
        The file.
    blend_ids : `list` [`int`], optional
        Blends to read; all by default.

    Returns
    -------
    model : `LsstScarletModelData`
        What it holds.
    """
    with zipfile.ZipFile(path_or_stream) as archive:
        names = [str(i) for i in blend_ids] if blend_ids is not None else archive.namelist()
        nodes = {
            name: json.loads(archive.read(name)) for name in names if name not in ("metadata", "version")
        }
        data = {name: json.loads(archive.read(name)) for name in ("metadata", "version")}
    data["blends"] = {name: node for name, node in nodes.items() if "blend_type" in node}
    data["isolated"] = {name: node for name, node in nodes.items() if "blend_type" not in node}
    return LsstScarletModelData.from_dict(data)


def write_scarlet_model(path_or_stream: str | BinaryIO, model_data: LsstScarletModelData) -> None:
    """Write a zip file.

    Parameters
    ----------
    path_or_stream : `str` or file object
        The file.
    model_data : `LsstScarletModelData`
        What to write.
    """
    data = model_data.as_dict()
    with zipfile.ZipFile(path_or_stream, "w") as archive:
        for key, node in (data["blends"] | data["isolated"]).items():
            archive.writestr(str(key), json.dumps(node))
        for name in ("metadata", "version"):
            archive.writestr(name, json.dumps(data[name]))


class ScarletModelFormatter(FormatterV2):
    """Formatter of the storage class ``LsstScarletModelData``."""

    default_extension = ".scarlet"
    unsupported_parameters = frozenset()
    can_read_from_stream = True
    can_read_from_local_file = True

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        # Docstring inherited.
        return read_scarlet_model(path)

    def read_from_stream(self, stream: Any, component: str | None = None, expected_size: int = -1) -> Any:
        # Docstring inherited.
        parameters = self.file_descriptor.parameters
        if parameters is None or "blend_id" not in parameters:
            return NotImplemented
        return read_scarlet_model(stream, blend_ids=list(ensure_iterable(parameters["blend_id"])))

    def to_bytes(self, in_memory_dataset: Any) -> bytes:
        # Docstring inherited.
        stream = BytesIO()
        write_scarlet_model(stream, in_memory_dataset)
        return stream.getvalue()


class ScarletModelDelegate(StorageClassDelegate):
    """Delegate of the storage class ``LsstScarletModelData``."""

    def can_accept(self, inMemoryDataset: Any) -> bool:
        # Docstring inherited.
        return isinstance(inMemoryDataset, LsstScarletModelData)

    def getComponent(self, composite: Any, componentName: str) -> Any:
        # Docstring inherited.
        raise AttributeError(f"Unsupported component: {componentName}")

    def handleParameters(self, inMemoryDataset: Any, parameters: Mapping[str, Any] | None = None) -> Any:
        # Docstring inherited.
        if parameters is not None and "blend_id" in parameters:
            blends = {i: inMemoryDataset.blends[i] for i in ensure_iterable(parameters["blend_id"])}
            inMemoryDataset.blends = blends
        elif parameters is not None:
            raise ValueError(f"Unsupported parameters: {parameters}")
        return inMemoryDataset
