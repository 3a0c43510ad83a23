# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The architecture of a network as plain, validated data.

A `NetworkSpec` lives in the header of every model file, so that a file is
enough to rebuild its network.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
_Count = Annotated[int, Field(gt=0, le=20_000)]
"""Ten times the largest of any known network."""
_Side = Annotated[int, Field(gt=0, le=64)]
"""Of pooled features: memory grows with its square."""
_Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
_Few = Annotated[tuple[_Positive, ...], Field(max_length=16)]


class NetworkSpec(BaseModel):
    """Architecture and detection limits of a Mask R-CNN.

    The defaults of `published` are those of Astro R-CNN (Burke et al. 2019,
    MNRAS 490, 3952); `light` is the small variant that trains on a CPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: _Count
    """Number of bands."""

    psf_channels: bool = False
    """Whether the width of the PSF is an input too: one constant plane per band
    follows the bands, see `~.psf.add_psf_planes`."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    """Residual network under the feature pyramid."""

    returned_layers: tuple[int, ...] = (1, 2, 3, 4)
    """Residual stages that feed the pyramid, ascending and consecutive from 1;
    stages after the last one are not built. Stage k has a stride of 2^(k+1)
    pixels."""

    fpn_channels: _Count = 256
    """Channels of every pyramid level."""

    anchor_sizes: tuple[_Few, ...] = ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
    """Anchor sizes in pixels; one tuple per pyramid level, of which there is
    one more than there are returned layers. All levels have the same number
    of sizes, because they share the head that proposes."""

    anchor_ratios: _Few = (0.5, 1.0, 2.0)
    """Height over width of the anchors."""

    rpn_batch: _Count = 512
    """Anchors per image in the loss of the proposals."""

    rpn_nms: _Fraction = 0.7
    """Box IoU over which the weaker of two proposals is dropped."""

    proposals_train: _Count = 2000
    """Proposals kept per image in training."""

    proposals_test: _Count = 1000
    """Proposals kept per image in inference."""

    roi_batch: _Count = 250
    """Proposals per image in the losses of the heads."""

    roi_positive: _Fraction = 0.33
    """Share of those that match a true source."""

    roi_sampling: _Side = 2
    """Points per side of a cell at which features are sampled for the heads."""

    box_features: _Count = 1024
    """Width of the two hidden layers of the box head."""

    box_pool: _Side = 7
    """Side of the pooled features of the box head."""

    mask_channels: Annotated[tuple[_Count, ...], Field(max_length=16)] = (256, 256, 256, 256)
    """Channels of the convolutions of the mask head, one per convolution."""

    mask_pool: _Side = 14
    """Side of the pooled features of the mask head; masks have twice that."""

    detection_score: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Default for the smallest score that is reported."""

    detection_nms: _Fraction = 0.3
    """Default for the box IoU over which the weaker of two detections is
    dropped, whatever their classes."""

    detections_per_image: _Count = 300
    """Default for the largest number of detections in a tile."""

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if self.returned_layers != tuple(range(1, len(self.returned_layers) + 1)):
            raise ValueError(
                f"returned_layers must be consecutive stages from 1, given {self.returned_layers}"
            )
        if not 1 <= len(self.returned_layers) <= 4:
            raise ValueError(f"a ResNet has stages 1 to 4, returned_layers asks for {self.returned_layers}")
        levels = len(self.returned_layers) + 1
        if len(self.anchor_sizes) != levels:
            raise ValueError(
                f"anchor_sizes has {len(self.anchor_sizes)} levels, the pyramid of returned_layers "
                f"{self.returned_layers} has {levels}"
            )
        if len({len(sizes) for sizes in self.anchor_sizes}) != 1:
            raise ValueError(
                f"the levels of anchor_sizes {self.anchor_sizes} differ in their number of sizes"
            )
        if not self.anchor_sizes[0] or not self.anchor_ratios:
            raise ValueError(
                f"anchor_sizes {self.anchor_sizes} and anchor_ratios {self.anchor_ratios} must not be empty; "
                "every level needs at least one anchor"
            )
        if not self.mask_channels:
            raise ValueError("mask_channels is empty; the mask head needs at least one convolution")
        return self

    @property
    def input_planes(self) -> int:
        """Number of planes of an input, bands and PSF planes (`int`)."""
        return self.in_channels * (2 if self.psf_channels else 1)

    @property
    def divisor(self) -> int:
        """Multiple of which the sides of an input should be (`int`, px)."""
        return 2 ** (len(self.returned_layers) + 2)

    @classmethod
    def published(cls, in_channels: int = 3, backbone: str = "resnet50") -> Self:
        """Make the architecture of Astro R-CNN."""
        return cls.model_validate({"in_channels": in_channels, "backbone": backbone})

    @classmethod
    def light(cls, in_channels: int = 3, psf_channels: bool = False) -> Self:
        """Make the small architecture that trains and runs on a CPU.

        It has ResNet-18 up to its third stage (stride 16; the sources of a ground-based image are small), a
        64-channel pyramid and small heads.
        """
        return cls(
            in_channels=in_channels,
            psf_channels=psf_channels,
            backbone="resnet18",
            returned_layers=(1, 2, 3),
            fpn_channels=64,
            anchor_sizes=((10.0,), (20.0,), (40.0,), (90.0,)),
            rpn_batch=256,
            proposals_train=400,
            proposals_test=1500,
            roi_batch=128,
            roi_sampling=1,
            box_features=256,
            mask_channels=(64, 64),
            detection_nms=0.5,
            detections_per_image=800,
        )
