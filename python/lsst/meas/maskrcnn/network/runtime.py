# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a network computes: what makes it quicker without another result.

`prepare_network` changes a network that is only to detect. The defaults were
chosen by ``tests/benchmarks/bench_runtime.py``, on a CPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.resnet import BasicBlock, Bottleneck

from .model_file import MaskRcnnModel

__all__ = ["RuntimeSettings", "prepare_network", "prepared_network", "torch_threads"]

# Of torch.compile.
_BACKEND = "inductor"


@dataclass(frozen=True)
class RuntimeSettings:
    """How a network computes.

    Parameters
    ----------
    fuse_norms : `bool`
        Take the batch normalisations into the convolutions before them. The
        same but for rounding.
    min_objectness : `float`
        Smallest objectness of a proposal; weaker ones are not looked at. In a
        tile of few sources nearly all are.
    proposals : `int`
        Largest number of proposals in a tile; 0 for that of the model. As
        many of each level enter their non-maximum suppression. Tiles of few
        sources have fewer in any case, crowded ones need several for each
        source.
    compile : `bool`
        Translate the backbone and the head of the proposals with
        `torch.compile`. This wants a C++ compiler and half a minute, for
        each shape of tiles, and gains little on a CPU.
    threads : `int`
        Threads of torch while it detects; 0 for those that it has, which the
        environment variable ``OMP_NUM_THREADS`` limits.

    Raises
    ------
    ValueError
        Raised if a number is out of its range.
    """

    fuse_norms: bool = True
    min_objectness: float = 0.05
    proposals: int = 4000
    compile: bool = False
    threads: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_objectness < 1.0:
            raise ValueError(f"min_objectness is {self.min_objectness}, wanted at least 0 and below 1")
        for name in ("proposals", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted 0 or more")


def prepare_network(network: MaskRCNN, settings: RuntimeSettings | None = None) -> MaskRCNN:
    """Make a network quick at detecting.

    Parameters
    ----------
    network : `torchvision.models.detection.MaskRCNN`
        A network in evaluation mode, as `~.model_file.MaskRcnnModel.build`
        returns it. It is changed, and can no longer be trained nor take the
        weights of a model file.
    settings : `RuntimeSettings`, optional
        How it computes.

    Returns
    -------
    network : `torchvision.models.detection.MaskRCNN`
        The same object.

    Raises
    ------
    ValueError
        Raised if the network is in training mode.
    """
    settings = settings or RuntimeSettings()
    if network.training:
        raise ValueError("the network is in training mode; only one in evaluation mode can be prepared")
    if settings.fuse_norms:
        _fuse_norms(network.backbone)
    # Fused weights are new, and as quick as the others only in their layout.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rpn = cast(Any, network.rpn)
    rpn.score_thresh = settings.min_objectness
    heads = cast(Any, network.roi_heads)
    heads.box_coder = _BoxCoder(heads.box_coder.weights, heads.box_coder.bbox_xform_clip)
    if settings.proposals:
        rpn._pre_nms_top_n = {**rpn._pre_nms_top_n, "testing": settings.proposals}
        rpn._post_nms_top_n = {**rpn._post_nms_top_n, "testing": settings.proposals}
    if settings.compile:
        for module in (network.backbone, rpn.head):
            module.compile(backend=_BACKEND, dynamic=False)
    return network


_PREPARED: weakref.WeakKeyDictionary[MaskRcnnModel, dict[str, MaskRCNN]] = weakref.WeakKeyDictionary()


def prepared_network(model: MaskRcnnModel, device: str = "cpu") -> MaskRCNN:
    """Build the network of a model, made quick at detecting, once for each device.

    Parameters
    ----------
    model : `~.model_file.MaskRcnnModel`
        The model; as long as it lives the network is kept.
    device : `str`
        Where it computes.

    Returns
    -------
    network : `torchvision.models.detection.MaskRCNN`
        In evaluation mode; not to be changed.
    """
    networks = _PREPARED.setdefault(model, {})
    if device not in networks:
        networks[device] = prepare_network(model.build(device))
    return networks[device]


class _BoxCoder(BoxCoder):
    """torchvision's, whose boxes have a shape of their own where there are none."""

    def decode(self, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        decoded = cast(Tensor, super().decode(rel_codes, boxes))
        return decoded.reshape(len(rel_codes), rel_codes.shape[1] // 4, 4)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give torch some number of threads for a while.

    Parameters
    ----------
    count : `int`
        Threads; 0 changes nothing.

    Yields
    ------
    nothing : `None`
        Afterwards torch has as many as before.
    """
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count:
            torch.set_num_threads(before)


def _fuse_norms(backbone: nn.Module) -> None:
    """Take the normalisations of a residual network into its convolutions."""
    body = cast(nn.ModuleDict, backbone.body)
    _fuse(body, "conv1", "bn1")
    for block in body.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            for number in ("1", "2", "3")[: 3 if isinstance(block, Bottleneck) else 2]:
                _fuse(block, f"conv{number}", f"bn{number}")
            if block.downsample is not None:
                _fuse(block.downsample, "0", "1")


def _fuse(parent: nn.Module, convolution: str, norm: str) -> None:
    layers = dict(parent.named_children())
    # Prepared before.
    if not isinstance(layers[norm], nn.BatchNorm2d):
        return
    fused = fuse_conv_bn_eval(cast(nn.Conv2d, layers[convolution]), cast(nn.BatchNorm2d, layers[norm]))
    setattr(parent, convolution, fused)
    setattr(parent, norm, nn.Identity())
