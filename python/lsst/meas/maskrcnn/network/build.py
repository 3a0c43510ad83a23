# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a `NetworkSpec` to torchvision's Mask R-CNN."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from ..images.classes import CLASS_NAMES
from .spec import NetworkSpec


class _ArrayTransform(nn.Module):
    """Stack images and pad them to a multiple of the network's stride.

    Stands where torchvision resizes and applies ImageNet statistics: pixels
    of a sky image keep their scale, and the normalisation is done before.
    """

    def __init__(self, divisor: int):
        super().__init__()
        self.divisor = divisor

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        height, width = (
            -(-max(size[axis] for size in sizes) // self.divisor) * self.divisor for axis in (0, 1)
        )
        batch = images[0].new_zeros((len(images), images[0].shape[0], height, width))
        for target, image in zip(batch, images, strict=True):
            target[:, : image.shape[-2], : image.shape[-1]] = image
        batch = batch.contiguous(memory_format=torch.channels_last)
        return ImageList(batch, sizes), targets

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        return result


class _PyramidBackbone(nn.Module):
    """Residual stages and the feature pyramid on them."""

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        body = getattr(resnet, spec.backbone)(weights=None)
        if spec.input_planes != 3:
            body.conv1 = nn.Conv2d(spec.input_planes, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
        stages = {f"layer{k}": str(k - 1) for k in spec.returned_layers}
        expansion = int(body.layer1[0].expansion)
        widths = [expansion * getattr(body, name)[-1].conv2.out_channels for name in stages]
        self.body = IntermediateLayerGetter(body, return_layers=stages)
        self.fpn = FeaturePyramidNetwork(widths, spec.fpn_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = spec.fpn_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.fpn(self.body(x)))


class _StridedRoIAlign(MultiScaleRoIAlign):
    """Pooling of features with the scales of the architecture.

    torchvision takes them from the sizes of the first images, which are those
    before padding: narrow images are padded to more than sqrt(2) times their
    size, and would be pooled at twice their scale or more.
    """

    def __init__(self, spec: NetworkSpec, output_size: int):
        names = [str(k - 1) for k in spec.returned_layers]
        super().__init__(names, output_size, spec.roi_sampling)
        self.scales = [2.0 ** -(k + 1) for k in spec.returned_layers]
        self.map_levels = LevelMapper(
            spec.returned_layers[0] + 1,
            spec.returned_layers[-1] + 1,
            self.canonical_scale,
            self.canonical_level,
        )


def build_network(spec: NetworkSpec) -> MaskRCNN:
    """Build torchvision's Mask R-CNN for any number of bands, randomly initialised, in training mode.

    Inputs are a list of float tensors (band, y, x) that are normalised already, followed by PSF planes if the
    architecture has them: nothing is resized and no image statistics are applied. Boxes are [x0, y0, x1, y1],
    half open, in pixels of the input.
    """
    backbone = _PyramidBackbone(spec)
    n_classes = 1 + len(CLASS_NAMES)
    network = MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(
            sizes=spec.anchor_sizes, aspect_ratios=(spec.anchor_ratios,) * len(spec.anchor_sizes)
        ),
        rpn_pre_nms_top_n_train=2 * spec.proposals_train,
        rpn_pre_nms_top_n_test=2 * spec.proposals_test,
        rpn_post_nms_top_n_train=spec.proposals_train,
        rpn_post_nms_top_n_test=spec.proposals_test,
        rpn_nms_thresh=spec.rpn_nms,
        rpn_batch_size_per_image=spec.rpn_batch,
        box_roi_pool=_StridedRoIAlign(spec, spec.box_pool),
        box_head=TwoMLPHead(spec.fpn_channels * spec.box_pool**2, spec.box_features),
        box_predictor=FastRCNNPredictor(spec.box_features, n_classes),
        box_batch_size_per_image=spec.roi_batch,
        box_positive_fraction=spec.roi_positive,
        box_score_thresh=spec.detection_score,
        box_nms_thresh=spec.detection_nms,
        box_detections_per_img=spec.detections_per_image,
        mask_roi_pool=_StridedRoIAlign(spec, spec.mask_pool),
        mask_head=MaskRCNNHeads(spec.fpn_channels, list(spec.mask_channels), 1),
        mask_predictor=MaskRCNNPredictor(spec.mask_channels[-1], spec.mask_channels[-1], n_classes),
    )
    network.transform = _ArrayTransform(spec.divisor)
    network.psf_channels = spec.psf_channels
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
