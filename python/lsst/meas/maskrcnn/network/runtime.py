# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What makes a network quicker at detecting, without another result."""

from __future__ import annotations

import weakref
from typing import Any, cast

from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import BoxCoder

from .any_band import AnyBandNetwork
from .model_file import MaskRcnnModel

_MIN_OBJECTNESS = 0.05
"""Smallest objectness of a proposal; in a tile of few sources nearly all have
less. Chosen by ``tests/benchmarks/bench_runtime.py``: no detection of a score of
0.05 or more is lost."""

_PROPOSALS = 4000
"""Largest number of proposals in a tile, and of those of each level that enter
their non-maximum suppression. A crowded tile needs several for each source:
1500 find 0.48 of the stars of the preset ``crowded``, 4000 find 0.53."""

_PREPARED: weakref.WeakKeyDictionary[MaskRcnnModel, dict[str, MaskRCNN | AnyBandNetwork]] = (
    weakref.WeakKeyDictionary()
)


def prepared_network(model: MaskRcnnModel, device: str) -> MaskRCNN | AnyBandNetwork:
    """Build the network of a model, made quick at detecting, once for each device.

    It is in evaluation mode, and not to be changed; it is kept as long as the model lives.
    """
    networks = _PREPARED.setdefault(model, {})
    if device not in networks:
        network = model.build(device)
        networks[device] = network if isinstance(network, AnyBandNetwork) else prepare_network(network)
    return networks[device]


def prepare_network(network: MaskRCNN) -> MaskRCNN:
    """Make a network in evaluation mode quick at detecting, and return the same object.

    It can no longer be trained nor take the weights of a model file.
    """
    if network.training:
        raise ValueError("the network is in training mode; only one in evaluation mode can be prepared")
    rpn = cast(Any, network.rpn)
    rpn.score_thresh = _MIN_OBJECTNESS
    rpn._pre_nms_top_n = {**rpn._pre_nms_top_n, "testing": _PROPOSALS}
    rpn._post_nms_top_n = {**rpn._post_nms_top_n, "testing": _PROPOSALS}
    heads = cast(Any, network.roi_heads)
    heads.box_coder = _BoxCoder(heads.box_coder.weights, heads.box_coder.bbox_xform_clip)
    return network


class _BoxCoder(BoxCoder):
    """torchvision's, whose boxes have a shape of their own where there are none."""

    def decode(self, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        decoded = cast(Tensor, super().decode(rel_codes, boxes))
        return decoded.reshape(len(rel_codes), rel_codes.shape[1] // 4, 4)
