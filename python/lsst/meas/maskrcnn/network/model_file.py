# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The model file: weights and everything needed to use them, in one
safetensors file.

The header of the file holds a `ModelMetadata` as JSON under the key
``meas_maskrcnn``, and checksums, see `~lsst.meas.maskrcnn.network.tensor_file`.
Floating-point weights may be stored in half precision; they are read back as
float32.
"""

from __future__ import annotations

from . import torch_import  # noqa: F401, before what imports torch

# isort: split

import importlib.resources
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.detection import MaskRCNN

from ..images.classes import CLASS_NAMES
from ..images.files import one_line, parse_json, write_atomically
from ..images.normalize import BandNoiseSettings, LuptonSettings, NormalizationSettings, ZScoreSettings
from .any_band import AnyBandNetwork, AnyBandSpec
from .build import build_network
from .calibration import Calibration
from .spec import NetworkSpec
from .tensor_file import TensorFileError, TensorHeader, pack_tensors, read_tensor_header, read_tensors

__all__ = [
    "MaskRcnnModel",
    "ModelFileError",
    "ModelMetadata",
    "default_model_path",
    "load_model",
    "make_network",
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

_LARGEST_COUNT = 20_000
"""Of an architecture: its widths, sides and limits have 2000 at most, its lists four members or so (which
count 1000 each)."""


_Text = Annotated[str, Field(max_length=2000, pattern=r"^[^\x00-\x1f]*$")]
_Band = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}$")]


class ModelFileError(ValueError):
    """A model file cannot be used; the message says why and what to do."""


class ModelMetadata(BaseModel):
    """The header of a model file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    """Version of the layout."""

    name: _Text
    """Short name of the model."""

    description: _Text = ""
    """What the model is for, in a sentence."""

    architecture: NetworkSpec | AnyBandSpec
    """The network."""

    bands: tuple[_Band, ...]
    """Bands in the order of the input channels; none for a network that takes
    any."""

    normalization: NormalizationSettings
    """How the input is made from fluxes in nJy; `BandNoiseSettings` of networks
    that take any bands, and of no others."""

    class_names: tuple[str, ...] = CLASS_NAMES
    """Classes in the order of the labels 1, 2, ..."""

    pixel_scale: float = Field(ge=1e-3, le=60.0)
    """Pixel scale of the training images (arcsec); of images that are read it has the same limits."""

    training: dict[str, Any] = Field(default_factory=dict)
    """Provenance: data, schedule, seeds, software versions, figures."""

    calibration: Calibration | None = None
    """From scores to probabilities; `None` where they were never compared with
    the truth."""

    @property
    def network_spec(self) -> NetworkSpec:
        """Architecture of a network of fixed bands (`NetworkSpec`); a ModelFileError for any bands."""
        if isinstance(self.architecture, AnyBandSpec):
            raise ModelFileError(self._not_fixed())
        return self.architecture

    @property
    def fixed_normalization(self) -> LuptonSettings | ZScoreSettings:
        """Normalisation of a network of fixed bands; a ModelFileError for any bands."""
        if isinstance(self.normalization, BandNoiseSettings):
            raise ModelFileError(self._not_fixed())
        return self.normalization

    def _not_fixed(self) -> str:
        return f"Model '{self.name}' takes any bands, which cannot be used here. Give a model of fixed bands."

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
        broken = _not_finite(self.state)
        if broken:
            raise ModelFileError(
                f"Model '{self.metadata.name}' has weights that are not finite, in {len(broken)} parameters "
                f"from '{broken[0]}' on; its training failed or the file was altered. Train or fetch it anew."
            )
        shapes = {key: tuple(value.shape) for key, value in self.state.items()}
        _check_shapes(self.metadata.architecture, shapes, f"model '{self.metadata.name}'")
        network = make_network(self.metadata.architecture)
        network.load_state_dict(self.state)
        return network.to(device).eval()


def _not_finite(state: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]


def load_model(model: str | os.PathLike[str] = "lite") -> MaskRcnnModel:
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
            f"There is neither a model nor a file {os.fspath(model)!r}; models of this package: "
            f"{', '.join(names)}."
        )
    return read_model(model)


def default_model_path() -> Path:
    """Find the model file that comes with this package, of the model ``lite``, which takes any bands."""
    return Path(str(importlib.resources.files("lsst.meas.maskrcnn") / "models" / "lite.safetensors"))


def model_to_bytes(model: MaskRcnnModel, half: bool = False) -> bytes:
    """Make the content of a model file.

    Parameters
    ----------
    model : `MaskRcnnModel`
        The model.
    half : `bool`
        Store floating-point weights as float16.

    Raises
    ------
    ModelFileError
        Raised if a weight is too large for half precision.
    """
    state = model.state
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        broken = _not_finite(state)
        if broken:
            raise ModelFileError(
                f"{broken[0]} of model '{model.metadata.name}' is not finite in half precision; "
                "write it with half=False."
            )
    return pack_tensors(state, {_HEADER_KEY: model.metadata.model_dump_json()})


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
    header, before = _read_header(io.BytesIO(data), len(data), name)
    default = {"detection_score": metadata.architecture.detection_score}
    if before.architecture.model_copy(update=default) != metadata.architecture:
        raise ModelFileError(f"The new header of {name} has another architecture than its weights.")
    _read_weights(header, data, name)
    return header.pack(data, {_HEADER_KEY: metadata.model_dump_json()})


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
    # The header first: a file that is none is not read whole.
    read_metadata(path)
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
    header, metadata = _read_header(io.BytesIO(data), len(data), name)
    state = _read_weights(header, data, name)
    return MaskRcnnModel(metadata, {k: v.float() if v.is_floating_point() else v for k, v in state.items()})


def _read_weights(header: TensorHeader, data: bytes, name: str) -> dict[str, Tensor]:
    try:
        return read_tensors(header, data, name)
    except TensorFileError as error:
        raise ModelFileError(f"{name} {error}. Copy or download it again.") from error


def _read_header(stream: BinaryIO, size: int, name: str) -> tuple[TensorHeader, ModelMetadata]:
    """Read and check the header of a file of some size (bytes), before anything is made of it."""
    advice = "Give a file that meas_maskrcnn wrote, or copy it again: this is not a model file"
    try:
        header = read_tensor_header(stream, size)
    except TensorFileError as error:
        raise ModelFileError(f"{name} {error}. {advice}.") from error
    text = header.texts.get(_HEADER_KEY)
    if text is None:
        raise ModelFileError(f"{name} has no '{_HEADER_KEY}' in its header. {advice} of this package.")
    try:
        version = parse_json(text.encode())["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"The header of {name} is damaged: {one_line(error)}. Copy it again.") from error
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{name} has format version {version!r:.20}, this code reads version {FORMAT_VERSION}. Use the "
            "version of meas_maskrcnn that wrote it, or a model that this one wrote."
        )
    try:
        metadata = ModelMetadata.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise ModelFileError(f"The header of {name} is not valid: {one_line(problems)}.") from error
    _check_shapes(metadata.architecture, header.shapes, name)
    try:
        header.check_texts()
    except TensorFileError as error:
        raise ModelFileError(f"{name} {error}. Copy or download it again.") from error
    return header, metadata


def make_network(architecture: NetworkSpec | AnyBandSpec) -> MaskRCNN | AnyBandNetwork:
    """Make a network of random weights.

    Parameters
    ----------
    architecture : `~.spec.NetworkSpec` or `~.any_band.AnyBandSpec`
        The architecture.

    Returns
    -------
    network : `torchvision.models.detection.MaskRCNN` or `~.any_band.AnyBandNetwork`
        In training mode.
    """
    if isinstance(architecture, AnyBandSpec):
        return AnyBandNetwork(architecture)
    return build_network(architecture)


class _WithoutInitialization(TorchFunctionMode):
    """Draw no random weights, for which torch would import its compiler where there is no memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@lru_cache(maxsize=32)
def _wanted_shapes(architecture: NetworkSpec | AnyBandSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a network, for which no memory is taken."""
    large = [f"{name} {value}" for name, value in architecture if _largest(value) > _LARGEST_COUNT]
    if large:
        raise ValueError(f"{one_line(', '.join(large))} is more than {_LARGEST_COUNT}")
    with torch.device("meta"), _WithoutInitialization():
        return {name: tuple(value.shape) for name, value in make_network(architecture).state_dict().items()}


def _largest(value: Any) -> float:
    """Return the largest of the numbers in a field of an architecture, and of the lengths."""
    if isinstance(value, tuple):
        return max([1000.0 * len(value), *map(_largest, value)])
    return value if isinstance(value, int | float) else 0.0


def _check_shapes(
    architecture: NetworkSpec | AnyBandSpec, shapes: Mapping[str, tuple[int, ...]], name: str
) -> None:
    """Refuse weights that are not those of an architecture, before memory is taken for it."""
    try:
        wanted = _wanted_shapes(architecture)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ModelFileError(
            f"The architecture in the header of {name} cannot be built ({one_line(error)}); the file was "
            "altered. Fetch it anew."
        ) from error
    for key in (*wanted, *shapes):
        if shapes.get(key) != wanted.get(key):
            raise ModelFileError(
                f"The weights of {name} do not fit the architecture in its header ('{key:.100}' has shape "
                f"{shapes.get(key, 'none')}, wanted {wanted.get(key, 'none')}); the file was altered or "
                "written by other code. Fetch it anew."
            )
