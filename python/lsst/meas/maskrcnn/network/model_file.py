# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The model file: weights and everything needed to use them, in one
safetensors file.

The header of the file holds a `ModelMetadata` as JSON under the key
``meas_maskrcnn``. Floating-point weights may be stored in half precision; they
are read back as float32.
"""

from __future__ import annotations

import importlib.resources
import io
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from ..images.classes import CLASS_NAMES
from ..images.files import write_atomically
from ..images.normalize import BandNoiseSettings, LuptonSettings, NormalizationSettings, ZScoreSettings
from .any_band import AnyBandNetwork, AnyBandSpec
from .build import build_network
from .calibration import Calibration
from .spec import NetworkSpec

__all__ = [
    "MaskRcnnModel",
    "ModelFileError",
    "ModelMetadata",
    "default_model_path",
    "load_model",
    "model_from_bytes",
    "model_to_bytes",
    "read_metadata",
    "read_model",
    "replace_metadata",
    "write_model",
]

FORMAT_VERSION = 3
"""Version of the layout that this code reads and writes."""

_HEADER_KEY = "meas_maskrcnn"
_MAX_HEADER = 100_000_000


class ModelFileError(ValueError):
    """A model file cannot be used; the message says why and what to do."""


class ModelMetadata(BaseModel):
    """The header of a model file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    """Version of the layout."""

    name: str
    """Short name of the model."""

    description: str = ""
    """What the model is for, in a sentence."""

    architecture: NetworkSpec | AnyBandSpec
    """The network."""

    bands: tuple[str, ...]
    """Bands in the order of the input channels; none for a network that takes
    any."""

    normalization: NormalizationSettings
    """How the input is made from fluxes in nJy; `BandNoiseSettings` of networks
    that take any bands, and of no others."""

    class_names: tuple[str, ...] = CLASS_NAMES
    """Classes in the order of the labels 1, 2, ..."""

    pixel_scale: float = Field(gt=0.0, allow_inf_nan=False)
    """Pixel scale of the training images (arcsec)."""

    training: dict[str, Any] = Field(default_factory=dict)
    """Provenance: data, schedule, seeds, software versions, figures."""

    calibration: Calibration | None = None
    """From scores to probabilities; `None` where they were never compared with
    the truth."""

    @property
    def network_spec(self) -> NetworkSpec:
        """Architecture of a network of fixed bands (`NetworkSpec`).

        Raises
        ------
        ModelFileError
            Raised if the network takes any bands.
        """
        if isinstance(self.architecture, AnyBandSpec):
            raise ModelFileError(self._not_fixed())
        return self.architecture

    @property
    def fixed_normalization(self) -> LuptonSettings | ZScoreSettings:
        """Normalisation of a network of fixed bands.

        Raises
        ------
        ModelFileError
            Raised if the network takes any bands.
        """
        if isinstance(self.normalization, BandNoiseSettings):
            raise ModelFileError(self._not_fixed())
        return self.normalization

    def _not_fixed(self) -> str:
        return (
            f"Model '{self.name}' takes any bands, which cannot be used here. Give a model of fixed bands, "
            "such as lite."
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.architecture, AnyBandSpec):
            if self.bands:
                raise ValueError(f"bands are {self.bands} for a network that takes any; wanted none")
            if not isinstance(self.normalization, BandNoiseSettings):
                raise ValueError(
                    f"normalization is {self.normalization.kind}, wanted band_noise for a network that "
                    "takes any bands"
                )
        elif isinstance(self.normalization, BandNoiseSettings):
            raise ValueError("normalization is band_noise, which only networks of any bands take")
        elif len(self.bands) != self.architecture.in_channels:
            raise ValueError(
                f"bands {self.bands} do not fit a network of {self.architecture.in_channels} input channels"
            )
        if len(set(self.bands)) != len(self.bands):
            raise ValueError(f"bands {self.bands} hold a band twice")
        if self.class_names != CLASS_NAMES:
            raise ValueError(f"classes {self.class_names} are not those of this package, {CLASS_NAMES}")
        return self


@dataclass(frozen=True, eq=False)
class MaskRcnnModel:
    """Weights with the metadata that they need.

    Parameters
    ----------
    metadata : `ModelMetadata`
        The header.
    state : `dict` [`str`, `torch.Tensor`]
        The network's state by parameter name.
    """

    metadata: ModelMetadata
    state: dict[str, Tensor]

    @classmethod
    def from_network(cls, network: torch.nn.Module, metadata: ModelMetadata) -> Self:
        """Take the weights of a network.

        Parameters
        ----------
        network : `torch.nn.Module`
            A network as `build_network` makes it.
        metadata : `ModelMetadata`
            The header; its architecture must be the network's.

        Returns
        -------
        model : `MaskRcnnModel`
        """
        state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        return cls(metadata, state)

    @property
    def takes_any_bands(self) -> bool:
        """Whether the network takes any bands (`bool`)."""
        return isinstance(self.metadata.architecture, AnyBandSpec)

    def build(self, device: torch.device | str = "cpu") -> MaskRCNN | AnyBandNetwork:
        """Build the network with these weights.

        Parameters
        ----------
        device : `torch.device` or `str`
            Where to put it.

        Returns
        -------
        network : `torchvision.models.detection.MaskRCNN` or \
                `~.any_band.AnyBandNetwork`
            In evaluation mode.

        Raises
        ------
        ModelFileError
            Raised if the weights do not fit the architecture of the header,
            or are not all finite.
        """
        # A network with such weights finds nothing, without a word.
        broken = [k for k, v in self.state.items() if v.is_floating_point() and not v.isfinite().all()]
        if broken:
            raise ModelFileError(
                f"Model '{self.metadata.name}' has weights that are not finite, in {len(broken)} parameters "
                f"from '{broken[0]}' on; its training failed or the file was altered. Train or fetch it anew."
            )
        architecture = self.metadata.architecture
        network: MaskRCNN | AnyBandNetwork
        if isinstance(architecture, AnyBandSpec):
            network = AnyBandNetwork(architecture)
        else:
            network = build_network(architecture)
        try:
            network.load_state_dict(self.state)
        except RuntimeError as error:
            raise ModelFileError(
                f"The weights of model '{self.metadata.name}' do not fit the architecture in its header "
                f"({_first_line(error)}); the file was altered or written by other code. Fetch it anew."
            ) from error
        return network.to(device).eval()


def load_model(model: str | os.PathLike[str] = "any") -> MaskRcnnModel:
    """Read a model that comes with this package, or a model file.

    Parameters
    ----------
    model : `str` or `os.PathLike`
        Name of a model of this package, or path of a file.

    Returns
    -------
    model : `MaskRcnnModel`
        Weights are float32 on the CPU.

    Raises
    ------
    FileNotFoundError
        Raised if there is neither such a model nor such a file.
    ModelFileError
        Raised if the file is not a model file, is truncated, or has another
        version of the layout.
    """
    folder = default_model_path().parent
    names = sorted(path.stem for path in folder.glob("*.safetensors"))
    if model in names:
        return read_model(folder / f"{model}.safetensors")
    if not Path(model).exists():
        raise FileNotFoundError(
            f"There is neither a model nor a file {os.fspath(model)!r}; the models of this package are "
            f"{', '.join(names)}."
        )
    return read_model(model)


def default_model_path() -> Path:
    """Find the model file that comes with this package.

    Returns
    -------
    path : `pathlib.Path`
        The model ``any``, which takes any bands.
    """
    return Path(str(importlib.resources.files("lsst.meas.maskrcnn") / "models" / "any.safetensors"))


def model_to_bytes(model: MaskRcnnModel, half: bool = False) -> bytes:
    """Serialise a model.

    Parameters
    ----------
    model : `MaskRcnnModel`
        The model.
    half : `bool`
        Store floating-point weights as float16.

    Returns
    -------
    data : `bytes`
        Content of a model file.

    Raises
    ------
    ModelFileError
        Raised if a weight is too large for half precision.
    """
    state = model.state
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        broken = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
        if broken:
            raise ModelFileError(
                f"{broken[0]} of model '{model.metadata.name}' is not finite in half precision; "
                "write it with half=False."
            )
    header = {_HEADER_KEY: model.metadata.model_dump_json()}
    return safetensors.torch.save({k: v.contiguous() for k, v in state.items()}, metadata=header)


def replace_metadata(data: bytes, metadata: ModelMetadata, name: str = "<bytes>") -> bytes:
    """Give a model file another header, and leave its weights bit for bit.

    Parameters
    ----------
    data : `bytes`
        Content of a model file.
    metadata : `ModelMetadata`
        The header to put there, of the same architecture; only its default score
        threshold may be another.
    name : `str`
        What to call the file in error messages.

    Returns
    -------
    data : `bytes`
        Content of the new file.

    Raises
    ------
    ModelFileError
        Raised if this is not a model file, or the architecture is another.
    """
    length, before = _read_header(io.BytesIO(data), len(data), name)
    default = {"detection_score": metadata.architecture.detection_score}
    if before.architecture.model_copy(update=default) != metadata.architecture:
        raise ModelFileError(f"The new header of {name} has another architecture than its weights.")
    content = json.loads(data[8 : 8 + length])
    content["__metadata__"][_HEADER_KEY] = metadata.model_dump_json()
    raw = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    # Weights must begin at a multiple of eight bytes.
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + data[8 + length :]


def write_model(model: MaskRcnnModel, path: str | os.PathLike[str], half: bool = False) -> None:
    """Write a model file; an existing file is replaced whole or not at all.

    Parameters
    ----------
    model : `MaskRcnnModel`
        The model.
    path : `str` or `os.PathLike`
        Where to; the folder must exist.
    half : `bool`
        Store floating-point weights as float16.

    Raises
    ------
    OSError
        Raised if the file cannot be written, for instance on a full disk;
        nothing half-written stays behind.
    """
    write_atomically(Path(path), model_to_bytes(model, half))


def read_metadata(path: str | os.PathLike[str]) -> ModelMetadata:
    """Read the header of a model file, not its weights.

    Parameters
    ----------
    path : `str` or `os.PathLike`
        The file.

    Returns
    -------
    metadata : `ModelMetadata`

    Raises
    ------
    FileNotFoundError
        Raised if there is no such file.
    ModelFileError
        Raised if the file is not a model file, is truncated, or has another
        version of the layout.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        return _read_header(stream, size, str(path))[1]


def read_model(path: str | os.PathLike[str]) -> MaskRcnnModel:
    """Read a model file.

    Parameters
    ----------
    path : `str` or `os.PathLike`
        The file.

    Returns
    -------
    model : `MaskRcnnModel`
        Weights are float32 on the CPU.

    Raises
    ------
    FileNotFoundError
        Raised if there is no such file.
    ModelFileError
        Raised if the file is not a model file, is truncated, or has another
        version of the layout.
    """
    return model_from_bytes(Path(path).read_bytes(), name=str(path))


def model_from_bytes(data: bytes, name: str = "<bytes>") -> MaskRcnnModel:
    """Read a model from the content of a model file.

    Parameters
    ----------
    data : `bytes`
        The content.
    name : `str`
        What to call it in error messages.

    Returns
    -------
    model : `MaskRcnnModel`
        Weights are float32 on the CPU.

    Raises
    ------
    ModelFileError
        Raised if this is not a model file, is truncated, or has another
        version of the layout.
    """
    metadata = _read_header(io.BytesIO(data), len(data), name)[1]
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ModelFileError(f"{name} is damaged: {error}. Copy or download it again.") from error
    return MaskRcnnModel(metadata, {k: v.float() if v.is_floating_point() else v for k, v in state.items()})


def _read_header(stream: BinaryIO, size: int, name: str) -> tuple[int, ModelMetadata]:
    """Read and check the header of a file of some size (bytes); give its length as well."""
    start = stream.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    raw = stream.read(min(length, _MAX_HEADER))
    foreign = (
        f"{name} is not a model file of this package (a safetensors file with '{_HEADER_KEY}' in its header)"
    )
    if not 2 <= length <= _MAX_HEADER or not raw.startswith(b"{"):
        raise ModelFileError(f"{foreign}. Give a file that meas_maskrcnn wrote.")
    if len(raw) < length:
        raise ModelFileError(
            f"{name} is truncated: its header has {length} bytes, the file has {size}. Copy it again."
        )
    try:
        content = json.loads(raw)
        ends = [int(entry["data_offsets"][1]) for key, entry in content.items() if key != "__metadata__"]
        header = content.get("__metadata__", {}).get(_HEADER_KEY)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{foreign}: {error}. Give a file that meas_maskrcnn wrote.") from error
    if header is None:
        raise ModelFileError(f"{foreign}. Give a file that meas_maskrcnn wrote.")
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise ModelFileError(f"{name} is truncated: {size} bytes of {expected}. Copy or download it again.")
    try:
        fields = json.loads(header)
        version = fields["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"The header of {name} is damaged: {error}. Copy it again.") from error
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{name} has format version {version}, this code reads version {FORMAT_VERSION}. Use the version "
            "of meas_maskrcnn that wrote it, or a model that this one wrote."
        )
    try:
        return length, ModelMetadata.model_validate_json(header)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ModelFileError(f"The header of {name} is not valid: {problems}.") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else (lines[0] if lines else type(error).__name__)
