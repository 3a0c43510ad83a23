# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a Butler stores a trained model."""

from __future__ import annotations

from typing import Any, ClassVar

from lsst.daf.butler import FormatterV2
from lsst.resources import ResourcePath

from ..network.model_file import read_metadata, read_model, write_model


class MaskRcnnModelFormatter(FormatterV2):
    """Formatter of the storage class ``MaskRcnnModel``: one safetensors file.

    The component ``metadata`` is read from the file's header; the weights
    stay where they are.
    """

    default_extension: ClassVar[str | None] = ".safetensors"
    unsupported_parameters: ClassVar[None] = None
    can_read_from_local_file: ClassVar[bool] = True

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        """Read a model, or with the component ``metadata`` its header only."""
        if component is None:
            return read_model(path)
        if component == "metadata":
            return read_metadata(path)
        raise ValueError(
            f"A model has the component 'metadata' and no other, but {component!r} was asked for."
        )

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write a model file."""
        write_model(in_memory_dataset, uri.ospath)
