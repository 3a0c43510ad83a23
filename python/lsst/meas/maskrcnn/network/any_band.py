# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Mask R-CNN for any bands, whose proposals are the centres of sources.

The first convolution has a bank of filters; a band's own filters are a mixture
of these by its wavelength, PSF and noise. Bands are summed, so neither their
number nor their order matters, and a pixel without data in one band is left out
there. Proposals are the peaks of a map of the centres of sources, with the pixels of
the image (as in CenterNet2, Zhou et al. 2021, arXiv:2103.07461):
one peak is one source, and two sources one FWHM apart are two peaks.
"""

from __future__ import annotations

__all__ = [
    "MASK_WAVELENGTH",
    "AnyBandNetwork",
    "AnyBandSpec",
    "BandProposals",
    "Features",
    "pack_bands",
    "start_from",
]

import math
from typing import Annotated, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from ..images.classes import CLASS_NAMES

_PLANES = 6
"""Planes of a band: pixels, whether they are known, FWHM, noise, wavelength, wings."""

_LINEAR = 3.0
"""Pixels are linear up to about this many sigma, and logarithmic above."""

_WAVELENGTHS = (480.0, 620.0, 880.0)
"""Bands to which the first filters of the bank belong at the start, nm."""

_BUMPS = tuple(np.linspace(-1.2, 2.2, 9).tolist())
_REFINE = 2
"""Cells of the map of centres per cell of the first convolution: the map has those of the image."""

_UNIT = 8.0
"""Distance to a side of a box that the map of centres has 0 for, px."""

_STAMP_CELLS, _STAMP_REACH = 9, 1.75
"""Cells along a side of the stamps of sources, and half of that side in FWHM."""

_USUAL_FWHM = 4.0
"""Stands for a FWHM that is not known, px."""

MASK_WAVELENGTH = 880.0
"""Masks are those of the band that is nearest to this wavelength, nm."""

_MASK_CELLS = 28
_GALAXY_LEVEL, _STAR_LEVEL = 0.08, 0.005
"""Shares of the peak at which the outlines of the training scenes are."""

_Count = Annotated[int, Field(gt=0)]


class AnyBandSpec(BaseModel):
    """Architecture of an `AnyBandNetwork`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["any-band"] = "any-band"
    filters: _Count = 6
    """Filters in the bank for each feature of the first convolution."""

    fpn_channels: _Count = 64
    box_features: _Count = 256
    stamp_features: _Count = 64
    mask_channels: tuple[_Count, ...] = (64, 64)
    proposals: _Count = 1000
    """Largest number of sources in an image."""

    divisor: int = 16

    detection_score: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.35
    """Default for the smallest score that is reported."""


def pack_bands(
    pixels: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    fwhm: npt.ArrayLike,
    noise: npt.ArrayLike,
    wavelength: npt.ArrayLike,
    wings: npt.ArrayLike | None = None,
) -> Tensor:
    """Make the input of an `AnyBandNetwork` from an image.

    Parameters
    ----------
    pixels : `numpy.ndarray`
        Flux without the sky in units of the noise of the band, float32,
        (band, y, x).
    valid : `numpy.ndarray`
        Usable pixels, bool, (band, y, x).
    fwhm : array_like
        Of the PSF, px, (band,); 0 or NaN where it is not known.
    noise : array_like
        Of an empty pixel in one unit of flux density for all bands, (band,);
        only ratios matter.
    wavelength : array_like
        Effective wavelength, nm, (band,).
    wings : array_like, optional
        Radius at which the PSF has 0.02 of its peak, in units of the FWHM,
        (band,); 0 or NaN where it is not known.

    Returns
    -------
    image : `torch.Tensor`
        Planes, float32, (6 band, y, x): the pixels of all bands, with 0 where they are
        not known; whether they are known; and constant planes of FWHM (px),
        log10 of the noise over the median of the bands, wavelength (nm) and wings.
    """
    count, height, width = pixels.shape
    known = valid & np.isfinite(pixels)
    noise_ratio = np.asarray(noise, np.float32)
    noise_ratio = np.log10(noise_ratio / np.median(noise_ratio))
    widths = np.nan_to_num(np.asarray(fwhm, np.float32))
    reach = np.zeros(count, np.float32) if wings is None else np.nan_to_num(np.asarray(wings, np.float32))
    image = np.empty((_PLANES, count, height, width), np.float32)
    image[0] = np.where(known, pixels, 0.0)
    image[1] = known
    for plane, values in enumerate((widths, noise_ratio, np.asarray(wavelength, np.float32), reach), 2):
        image[plane] = values[:, None, None]
    return torch.from_numpy(image.reshape(_PLANES * count, height, width))


class _Bands(NamedTuple):
    """The planes of an input, taken apart."""

    pixels: Tensor
    """(image, band, y, x)."""
    valid: Tensor
    fwhm: Tensor
    """(image, band), px; 0 where it is not known."""
    noise: Tensor
    wavelength: Tensor
    """(image, band); 0 for bands that only fill up."""
    wings: Tensor
    """(image, band); 0 where they are not known."""

    @classmethod
    def of(cls, images: Tensor) -> _Bands:
        planes = images.reshape(len(images), _PLANES, -1, *images.shape[-2:])
        fwhm, noise, wavelength, wings = planes[:, 2:, :, 0, 0].unbind(dim=1)
        return cls(planes[:, 0], planes[:, 1], fwhm, noise, wavelength, wings)

    def side(self) -> Tensor:
        """Features of the bands (image, band, feature)."""
        there = self.wavelength > 0
        color = torch.log(self.wavelength.clamp_min(100.0) / 620.0) / 0.5
        bumps = torch.exp(-(((color[..., None] - color.new_tensor(_BUMPS)) / 0.45) ** 2))
        known = self.fwhm > 0
        width = torch.where(known, torch.log(self.fwhm.clamp_min(0.5) / _USUAL_FWHM), 0.0)
        count = torch.log(there.sum(dim=1, keepdim=True).clamp_min(1).float()).expand_as(width)
        plain = [color, width, known.float(), self.noise.clamp(-2.0, 2.0), count]
        reach = torch.where(self.wings > 0, (self.wings - 1.4) / 0.1, 0.0).clamp(-3.0, 5.0)
        end = torch.stack([reach, (self.wings > 0).float()], dim=-1)
        return torch.cat([torch.stack(plain, dim=-1), bumps, end], dim=-1) * there[..., None]

    def mask_band(self) -> Tensor:
        """Choose the band whose outlines the masks are, (image,)."""
        distance = (self.wavelength - MASK_WAVELENGTH).abs()
        return torch.where(self.wavelength > 0, distance, torch.inf).argmin(dim=1)


_SIDE = 7 + len(_BUMPS)


class _BandStem(nn.Module):
    """The first convolution, for any bands."""

    def __init__(self, filters: int, features: int = 64):
        super().__init__()
        self.bank = nn.Parameter(torch.randn(filters, features, 7, 7) * 0.05)
        self.joint = nn.Parameter(torch.randn(features, 3, 7, 7) * 0.02)
        self.mixture = nn.Sequential(nn.Linear(_SIDE, 48), nn.ReLU(), nn.Linear(48, filters))
        self.shift = nn.Linear(_SIDE, features)
        nn.init.normal_(cast(nn.Linear, self.mixture[2]).weight, std=0.03)
        nn.init.zeros_(cast(nn.Linear, self.mixture[2]).bias)
        nn.init.zeros_(self.shift.weight)
        nn.init.zeros_(self.shift.bias)

    def forward(self, bands: _Bands) -> Tensor:
        side = bands.side()
        there = (bands.wavelength > 0).float()
        count = there.sum(dim=1, keepdim=True).clamp_min(1.0)
        mixture = self.mixture(side) + self._start(bands.wavelength)
        shift = self.shift((side * there[..., None]).sum(dim=1) / count)
        valid = bands.valid * there[:, :, None, None]
        known = valid.sum(dim=1, keepdim=True)
        # So that noise is the same however many bands there are.
        share = known.clamp_min(1.0).rsqrt()
        compressed = torch.asinh(bands.pixels / _LINEAR) * valid
        sum_image = torch.asinh((bands.pixels * valid).sum(dim=1, keepdim=True) * share / _LINEAR)
        best = torch.where(valid > 0, compressed, -10.0).amax(dim=1, keepdim=True) * (known > 0)
        planes = torch.cat([compressed * share, sum_image, best, known / 8.0], dim=1)
        weights = torch.einsum("nbk,kfij->nfbij", mixture * there[..., None], self.bank)
        results = []
        for number in range(len(planes)):
            weight = torch.cat([weights[number], self.joint], dim=1)
            results.append(F.conv2d(planes[number : number + 1], weight, shift[number], stride=2, padding=3))
        return torch.cat(results).contiguous(memory_format=torch.channels_last)

    def _start(self, wavelength: Tensor) -> Tensor:
        """Mixture between the filters of the bands of `_WAVELENGTHS`."""
        low, middle, high = _WAVELENGTHS
        at = wavelength.clamp(low, high)
        first = ((middle - at) / (middle - low)).clamp(0.0, 1.0)
        last = ((at - middle) / (high - middle)).clamp(0.0, 1.0)
        rest = wavelength.new_zeros((*wavelength.shape, len(self.bank) - 3))
        return torch.cat([torch.stack([first, 1.0 - first - last, last], dim=-1), rest], dim=-1)


def _start_at_zero(block: nn.Sequential) -> None:
    """Let the last layer of a residual block give 0 at the start of training."""
    last = cast(nn.Linear, block[-1])
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


class _CentreHead(nn.Module):
    """Map of the centres of sources, at every pixel.

    Channels: logit; offset of the position (x, y) from the pixel; log of the
    distances to the sides of the box (left, top, right, bottom).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.coarse = nn.Conv2d(channels, channels, 3, padding=1)
        self.unfold = nn.Conv2d(channels, 96, 1)
        self.fine = nn.Conv2d(64, 16, 3, padding=1)
        self.join = nn.Conv2d(40, 40, 3, padding=1)
        # Two sources one FWHM apart differ at this resolution only.
        self.refine = nn.Sequential(
            nn.Conv2d(40, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 40, 3, padding=1)
        )
        _start_at_zero(self.refine)
        self.last = nn.Conv2d(40, 7 * _REFINE**2, 1)
        nn.init.normal_(self.last.weight, std=0.01)
        bias = cast(Tensor, self.last.bias)
        nn.init.zeros_(bias)
        with torch.no_grad():
            bias[: _REFINE**2] = -4.6

    def forward(self, level: Tensor, stem: Tensor) -> Tensor:
        coarse = F.relu(self.unfold(F.relu(self.coarse(level))))
        fine = F.relu(self.fine(stem))
        joined = F.relu(self.join(torch.cat([F.pixel_shuffle(coarse, 2), fine], dim=1)))
        return F.pixel_shuffle(self.last(joined + self.refine(joined)), _REFINE)


class _StampHead(nn.Module):
    """Features of the pixels of sources, on a grid that goes by the PSF."""

    def __init__(self, features: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * _STAMP_CELLS**2 + _SIDE, 128), nn.ReLU(), nn.Linear(128, features), nn.ReLU()
        )

    def forward(self, bands: _Bands, positions: list[Tensor]) -> Tensor:
        images, count = bands.fwhm.shape
        lengths = [len(item) for item in positions]
        where = torch.cat(positions)
        number = torch.repeat_interleave(
            torch.arange(images, device=where.device), torch.tensor(lengths, device=where.device)
        )
        fwhm = torch.where(bands.fwhm > 0, bands.fwhm, _USUAL_FWHM)[number]
        reach = _STAMP_REACH * fwhm
        middle = where[:, None, :] + 0.5
        plane = (number[:, None] * count + torch.arange(count, device=where.device)).float()
        rois = torch.stack(
            [
                plane,
                middle[..., 0] - reach,
                middle[..., 1] - reach,
                middle[..., 0] + reach,
                middle[..., 1] + reach,
            ],
            dim=-1,
        ).reshape(-1, 5)
        height, width = bands.pixels.shape[-2:]
        cells = roi_align(
            bands.pixels.reshape(-1, 1, height, width).float(),
            rois,
            _STAMP_CELLS,
            sampling_ratio=2,
            aligned=True,
        ).reshape(len(where), count, _STAMP_CELLS**2)
        shape = cells / (cells.square().mean(dim=-1, keepdim=True).sqrt() + 1.0)
        side = bands.side()[number]
        features = self.layers(torch.cat([torch.asinh(cells / _LINEAR), shape, side], dim=-1))
        there = (bands.wavelength > 0).float()[number]
        mean = (features * there[..., None]).sum(dim=1) / there.sum(dim=1, keepdim=True).clamp_min(1.0)
        return torch.cat([mean, (features * there[..., None]).amax(dim=1)], dim=-1)


class _OutlineHead(nn.Module):
    """Features for masks: of the PSF, and of the pixels of the band that the masks are of."""

    def __init__(self, channels: int):
        super().__init__()
        self.modulation = nn.Linear(_SIDE, 2 * channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.pixels = nn.Sequential(
            nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, channels, 3, padding=1)
        )
        _start_at_zero(self.pixels)

    def forward(self, bands: _Bands, boxes: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return a factor and a summand of pooled features, (source, channel, 1, 1), and features of the
        pixels, (source, channel, cell, cell)."""
        images = torch.arange(len(boxes), device=bands.fwhm.device)
        chosen = bands.mask_band()
        side = bands.side()[images, chosen]
        number = torch.repeat_interleave(images, torch.tensor([len(item) for item in boxes]).to(images))
        factor, summand = self.modulation(side[number])[..., None, None].chunk(2, dim=1)
        rois = torch.cat([number[:, None].to(boxes[0]), torch.cat(boxes)], dim=1)
        planes = torch.stack([bands.pixels[images, chosen], bands.valid[images, chosen]], dim=1).float()
        # Pixel i stands at i, as in the targets.
        cells = roi_align(planes, rois, _MASK_CELLS, sampling_ratio=1, aligned=False)
        pixels, valid = cells[:, :1], cells[:, 1:]
        third = _MASK_CELLS // 3
        peak = pixels[..., third:-third, third:-third].amax(dim=(-2, -1), keepdim=True).clamp_min(1.0)
        share = pixels / peak
        layers = [
            torch.asinh(pixels / _LINEAR),
            torch.asinh(share / _GALAXY_LEVEL),
            torch.asinh(share / _STAR_LEVEL) / 2.0,
            valid,
        ]
        return 1.0 + factor, summand, self.pixels(torch.cat(layers, dim=1))


class BandProposals(NamedTuple):
    """Peaks of the map of centres of an image, the likeliest first."""

    boxes: Tensor
    """[x0, y0, x1, y1], (peak, 4), px."""

    positions: Tensor
    """(x, y), (peak, 2), px; 0 is the middle of the first pixel."""

    scores: Tensor
    """Probability of a source there, (peak,)."""


class Features(NamedTuple):
    """What the heads of a batch look at."""

    bands: _Bands
    levels: dict[str, Tensor]
    centres: Tensor
    """The map of centres, (image, 7, y, x)."""

    sizes: list[tuple[int, int]]


def _pool(cells: int) -> MultiScaleRoIAlign:
    """Pooling of the levels' features at the scales that they have."""
    pool = MultiScaleRoIAlign(["0", "1", "2"], output_size=cells, sampling_ratio=1)
    pool.scales = [0.25, 0.125, 0.0625]
    pool.map_levels = LevelMapper(2, 4, pool.canonical_scale, pool.canonical_level)
    return pool


class AnyBandNetwork(nn.Module):
    """Mask R-CNN for any number of bands.

    Parameters
    ----------
    spec : `AnyBandSpec`
        The architecture.
    """

    def __init__(self, spec: AnyBandSpec):
        super().__init__()
        self.spec = spec
        channels = spec.fpn_channels
        body = resnet.resnet18(weights=None)
        self.stem = _BandStem(spec.filters)
        self.norm = nn.BatchNorm2d(64)
        layers = {name: getattr(body, name) for name in ("layer1", "layer2", "layer3")}
        self.body = nn.ModuleDict(layers)
        self.fpn = FeaturePyramidNetwork([64, 128, 256], channels)
        self.centre_head = _CentreHead(channels)
        self.box_pool = _pool(7)
        self.box_head = TwoMLPHead(channels * 49, spec.box_features)
        self.stamp_head = _StampHead(spec.stamp_features)
        width = spec.box_features + 2 * spec.stamp_features
        classes = 1 + len(CLASS_NAMES)
        self.hidden = nn.Linear(width, spec.box_features)
        self.hidden_block = nn.Sequential(
            nn.Linear(spec.box_features, spec.box_features),
            nn.ReLU(),
            nn.Linear(spec.box_features, spec.box_features),
        )
        _start_at_zero(self.hidden_block)
        self.classes = nn.Linear(spec.box_features, classes)
        self.box_deltas = nn.Linear(spec.box_features, 4 * classes)
        self.blend = nn.Linear(spec.box_features, 1)
        self.mask_pool = _pool(14)
        self.mask_head = MaskRCNNHeads(channels, list(spec.mask_channels), 1)
        self.mask_predictor = MaskRCNNPredictor(spec.mask_channels[-1], spec.mask_channels[-1], classes)
        self.outline_head = _OutlineHead(channels)
        # Boxes are those of the masks, of one band.
        self.mask_band = nn.Linear(_SIDE, spec.box_features)
        nn.init.zeros_(self.mask_band.weight)
        nn.init.zeros_(self.mask_band.bias)
        self.box_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: list[Tensor]) -> Features:
        """Compute the features of images.

        Parameters
        ----------
        images : `list` [`torch.Tensor`]
            As `pack_bands` makes them, of any numbers of bands.

        Returns
        -------
        features : `Features`
        """
        batch, sizes = _stack(images, self.spec.divisor)
        bands = _Bands.of(batch)
        stem = F.relu(self.norm(self.stem(bands)))
        x = F.max_pool2d(stem, 3, stride=2, padding=1)
        levels = {}
        for number, name in enumerate(("layer1", "layer2", "layer3")):
            x = self.body[name](x)
            levels[str(number)] = x
        levels = self.fpn(levels)
        return Features(bands, levels, self.centre_head(levels["0"], stem), sizes)

    def propose(self, features: Features, least: float, most: int) -> list[BandProposals]:
        """Find the peaks of the map of centres.

        Parameters
        ----------
        features : `Features`
            Of `features`.
        least : `float`
            Smallest probability.
        most : `int`
            Largest number of peaks in an image.

        Returns
        -------
        proposals : `list` [`BandProposals`]
            Of each image.
        """
        maps = features.centres.float()
        chance = maps[:, 0].sigmoid()
        peak = (chance == F.max_pool2d(chance[:, None], 3, stride=1, padding=1)[:, 0]) & (chance >= least)
        proposals = []
        for values, is_peak, scores, (height, width) in zip(maps, peak, chance, features.sizes):
            rows, columns = torch.nonzero(is_peak, as_tuple=True)
            inside = (rows < height) & (columns < width)
            rows, columns = rows[inside], columns[inside]
            score, order = scores[rows, columns].sort(descending=True, stable=True)
            order, score = order[:most], score[:most]
            rows, columns = rows[order], columns[order]
            boxes, positions = decode_cells(values[:, rows, columns], rows, columns)
            limit = boxes.new_tensor([width, height, width, height])
            boxes = torch.minimum(boxes.clamp_min(0.0), limit)
            proposals.append(BandProposals(boxes, positions, score))
        return proposals

    def classify(
        self, features: Features, boxes: list[Tensor], positions: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Classify sources.

        Parameters
        ----------
        features : `Features`
            Of `features`.
        boxes, positions : `list` [`torch.Tensor`]
            Of each image, (source, 4) and (source, 2), px.

        Returns
        -------
        classes, deltas, blend : `torch.Tensor`
            Logits of background, star and galaxy, (source, 3); corrections of
            the boxes, (source, 12); logit of being a blend, (source,).
        """
        pooled = self.box_head(self.box_pool(features.levels, boxes, features.sizes))
        stamps = self.stamp_head(features.bands, positions)
        hidden = pooled + self.hidden(torch.cat([pooled, stamps], dim=1))
        side = features.bands.side()[torch.arange(len(boxes)), features.bands.mask_band()]
        lengths = torch.tensor([len(item) for item in boxes], device=side.device)
        hidden = F.relu(hidden + torch.repeat_interleave(self.mask_band(side), lengths, dim=0))
        hidden = F.relu(hidden + self.hidden_block(hidden))
        return self.classes(hidden), self.box_deltas(hidden), self.blend(hidden)[:, 0]

    def masks(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Compute the masks of sources.

        Parameters
        ----------
        features : `Features`
            Of `features`.
        boxes : `list` [`torch.Tensor`]
            Of each image, (source, 4), px.

        Returns
        -------
        masks : `torch.Tensor`
            Logits, (source, class, 28, 28).
        """
        pooled = self.mask_pool(features.levels, boxes, features.sizes)
        factor, summand, pixels = self.outline_head(features.bands, boxes)
        cells = self.mask_predictor.conv5_mask(self.mask_head(pooled * factor + summand))
        return cast(Tensor, self.mask_predictor.mask_fcn_logits(F.relu(cells + pixels)))


def decode_cells(values: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Read boxes and positions from cells of the map of centres.

    Parameters
    ----------
    values : `torch.Tensor`
        The map's channels, (7, cell).
    rows, columns : `torch.Tensor`
        Of the cells.

    Returns
    -------
    boxes, positions : `torch.Tensor`
        (cell, 4) and (x, y), (cell, 2), px.
    """
    middle = torch.stack([columns, rows], dim=1)
    positions = middle + values[1:3].T
    sides = _UNIT * values[3:7].T.clamp(-4.0, 4.0).exp()
    corner = middle + 0.5
    return torch.cat([corner - sides[:, :2], corner + sides[:, 2:]], dim=1), positions


def _stack(images: list[Tensor], divisor: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Pad images, and their bands, to one shape."""
    sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    height, width = (-(-max(size[axis] for size in sizes) // divisor) * divisor for axis in (0, 1))
    count = max(len(image) for image in images) // _PLANES
    batch = images[0].new_zeros((len(images), _PLANES, count, height, width))
    for target, image in zip(batch, images, strict=True):
        planes = image.reshape(_PLANES, -1, *image.shape[-2:])
        own = planes.shape[1]
        target[:2, :own, : image.shape[-2], : image.shape[-1]] = planes[:2]
        target[2:, :own] = planes[2:, :, :1, :1]
    return batch.reshape(len(images), _PLANES * count, height, width), sizes


def start_from(network: AnyBandNetwork, state: dict[str, Tensor], bands: tuple[str, ...]) -> list[str]:
    """Take over the weights of a network of fixed bands.

    Parameters
    ----------
    network : `AnyBandNetwork`
        Changed.
    state : `dict` [`str`, `torch.Tensor`]
        State of a network of `~.spec.NetworkSpec.light`.
    bands : `tuple` [`str`, ...]
        Its bands; g, r and z are among them.

    Returns
    -------
    taken : `list` [`str`]
        Names of the weights that were taken.
    """
    own = network.state_dict()
    names = {
        "backbone.body.bn1": "norm",
        "backbone.body.layer": "body.layer",
        "backbone.fpn": "fpn",
        "rpn.head.conv.0.0": "centre_head.coarse",
        "roi_heads.box_head": "box_head",
        "roi_heads.mask_head": "mask_head",
        "roi_heads.mask_predictor": "mask_predictor",
        "roi_heads.box_predictor.cls_score": "classes",
        "roi_heads.box_predictor.bbox_pred": "box_deltas",
    }
    taken = []
    for old, value in state.items():
        for start, new in names.items():
            name = new + old[len(start) :]
            if old.startswith(start) and name in own and own[name].shape == value.shape:
                own[name] = value
                taken.append(name)
    first = state["backbone.body.conv1.weight"]
    for place, band in enumerate(("g", "r", "z")):
        own["stem.bank"][place] = first[:, bands.index(band)] * math.sqrt(3.0)
    network.load_state_dict(own)
    with torch.no_grad():
        network.hidden.weight.mul_(0.1)
    return taken
