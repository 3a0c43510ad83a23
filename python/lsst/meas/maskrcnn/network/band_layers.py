# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Input and layers of an `~.any_band.AnyBandNetwork`."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ..images.units import AB_ZERO_POINT
from .wavelengths import MASK_WAVELENGTH

PLANES = 8
"""Planes of a band: pixels, whether they are known, FWHM, noise, wavelength, wings, depth, seeing."""

_LINEAR = 3.0
"""Pixels are linear up to about this many sigma, and logarithmic above."""

_WAVELENGTHS = (480.0, 620.0, 880.0)
"""Bands to which the first filters of the bank belong at the start, nm."""

_BUMPS = tuple(np.linspace(-1.2, 2.2, 9).tolist())
REFINE = 2
"""Cells of the map of centres per cell of the first convolution: the map has those of the image."""

UNIT = 8.0
"""Distance to a side of a box that the map of centres has 0 for, px."""

_STAMP_CELLS, _STAMP_REACH = 9, 1.75
"""Cells along a side of the stamps of sources, and half of that side in FWHM."""

_USUAL_FWHM = 4.0
"""Stands for a FWHM that is not known, px."""

_DEPTHS, _SEEING = (18.0, 32.0), (0.03, 5.0)
"""Depths (mag) and widths of a PSF (arcsec) outside of which the unit of an image is not what it says."""

FIELD = 4
_MASK_CELLS = 28
_GALAXY_LEVEL, _STAR_LEVEL = 0.08, 0.005
"""Shares of the peak at which the outlines of the training scenes are."""


class Field(NamedTuple):
    """How deep and how sharp an image is: how many stars there are for each galaxy goes by it."""

    depth: float = 0.0
    """AB magnitude of a point source of S/N 5 in the middle one of the bands; 0 where it is not known."""
    seeing: float = 0.0
    """FWHM of the PSF, arcsec; 0 where it is not known."""

    @classmethod
    def of(cls, noise: npt.ArrayLike, fwhm: npt.ArrayLike, pixel_scale: float | None) -> Field:
        """Compute depth and seeing.

        The noise of a pixel (nJy; NaN where the unit is not known) and the FWHM of the PSF (px; 0 or NaN
        where it is not known) are by band, the side of a pixel is in arcsec.
        """
        sigma, width = np.asarray(noise, np.float64), np.asarray(fwhm, np.float64)
        good = (sigma > 0) & (width > 0)
        depth, seeing = 0.0, 0.0
        if good.any():
            area = 4.0 * math.pi * (width[good] / 2.355) ** 2
            depth = float(np.median(AB_ZERO_POINT - 2.5 * np.log10(5.0 * sigma[good] * np.sqrt(area))))
        if pixel_scale and (width > 0).any():
            seeing = pixel_scale * float(np.median(width[width > 0]))
        return cls(
            depth if _DEPTHS[0] < depth < _DEPTHS[1] else 0.0,
            seeing if _SEEING[0] < seeing < _SEEING[1] else 0.0,
        )


_UNKNOWN = Field()


def pack_bands(
    pixels: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    fwhm: npt.ArrayLike,
    noise: npt.ArrayLike,
    wavelength: npt.ArrayLike,
    wings: npt.ArrayLike | None = None,
    field: Field = _UNKNOWN,
) -> Tensor:
    """Make the input of an `AnyBandNetwork` from an image.

    Pixels, (band, y, x), are without the sky and in units of the noise of the band. By band there are the
    FWHM of the PSF (px), the noise of an empty pixel in one unit of flux density for all, of which only
    ratios matter, the effective wavelength (nm), and the radius at which the PSF has 0.02 of its peak (FWHM);
    widths that are not known are 0 or NaN.

    Returns planes, float32, (8 band, y, x): the pixels of all bands, with 0 where they are not known; whether
    they are known; and constant planes of FWHM (px), log10 of the noise over the median of the bands,
    wavelength (nm), wings, depth (mag) and seeing (arcsec).
    """
    count, height, width = pixels.shape
    known = valid & np.isfinite(pixels)
    noise_ratio = np.asarray(noise, np.float32)
    # A constant band without a variance has none.
    noisy = noise_ratio > 0
    unit = np.median(noise_ratio[noisy]) if noisy.any() else 1.0
    noise_ratio = np.log10(np.where(noisy, noise_ratio / unit, 1.0), dtype=np.float32)
    widths = np.nan_to_num(np.asarray(fwhm, np.float32))
    reach = np.zeros(count, np.float32) if wings is None else np.nan_to_num(np.asarray(wings, np.float32))
    image = np.empty((PLANES, count, height, width), np.float32)
    image[0] = np.where(known, pixels, 0.0)
    image[1] = known
    for plane, values in enumerate((widths, noise_ratio, np.asarray(wavelength, np.float32), reach), 2):
        image[plane] = values[:, None, None]
    image[6], image[7] = field
    return torch.from_numpy(image.reshape(PLANES * count, height, width))


class Bands(NamedTuple):
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
    depth: Tensor
    seeing: Tensor
    """(image,), mag and arcsec; 0 where they are not known."""

    @classmethod
    def of(cls, images: Tensor) -> Bands:
        """Take the planes of images apart."""
        planes = images.reshape(len(images), PLANES, -1, *images.shape[-2:])
        fwhm, noise, wavelength, wings, depth, seeing = planes[:, 2:, :, 0, 0].unbind(dim=1)
        return cls(planes[:, 0], planes[:, 1], fwhm, noise, wavelength, wings, depth[:, 0], seeing[:, 0])

    def field(self) -> Tensor:
        """Features of depth and seeing (image, feature)."""
        deep, sharp = self.depth > 0, self.seeing > 0
        return torch.stack(
            [
                torch.where(deep, (self.depth - 25.0) / 2.0, 0.0),
                deep.float(),
                torch.where(sharp, torch.log(self.seeing.clamp_min(0.01) / 0.8), 0.0),
                sharp.float(),
            ],
            dim=-1,
        )

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


SIDE = 7 + len(_BUMPS)


class BandStem(nn.Module):
    """The first convolution, for any bands."""

    def __init__(self, filters: int):
        super().__init__()
        features = 64
        self.bank = nn.Parameter(torch.empty(filters, features, 7, 7).normal_(std=0.05))
        self.joint = nn.Parameter(torch.empty(features, 3, 7, 7).normal_(std=0.02))
        self.mixture = nn.Sequential(nn.Linear(SIDE, 48), nn.ReLU(), nn.Linear(48, filters))
        self.shift = nn.Linear(SIDE, features)
        nn.init.normal_(cast(nn.Linear, self.mixture[2]).weight, std=0.03)
        nn.init.zeros_(cast(nn.Linear, self.mixture[2]).bias)
        start_at_zero(self.shift)

    def forward(self, bands: Bands) -> Tensor:
        """Return features (image, feature, y, x) of half the pixels."""
        side = bands.side()
        there = (bands.wavelength > 0).float()
        count = there.sum(dim=1, keepdim=True).clamp_min(1.0)
        mixture = self.mixture(side) + self._start(bands.wavelength)
        shift = self.shift((side * there[..., None]).sum(dim=1) / count)
        valid = bands.valid * there[:, :, None, None]
        known = valid.sum(dim=1, keepdim=True)
        # So that noise is the same however many bands there are.
        share = known.clamp_min(1.0).rsqrt()
        compressed = _asinh(bands.pixels / _LINEAR) * valid
        sum_image = _asinh((bands.pixels * valid).sum(dim=1, keepdim=True) * share / _LINEAR)
        best = torch.where(valid > 0, compressed, -10.0).amax(dim=1, keepdim=True) * (known > 0)
        planes = torch.cat([compressed * share, sum_image, best, known / 8.0], dim=1)
        # On a CPU a third of the time of the order of the planes.
        planes = planes.contiguous(memory_format=torch.channels_last)
        weights = torch.einsum("nbk,kfij->nfbij", mixture * there[..., None], self.bank)
        results = []
        for number in range(len(planes)):
            weight = torch.cat([weights[number], self.joint], dim=1)
            weight = weight.contiguous(memory_format=torch.channels_last)
            results.append(F.conv2d(planes[number : number + 1], weight, shift[number], stride=2, padding=3))
        return torch.cat(results)

    def _start(self, wavelength: Tensor) -> Tensor:
        """Mixture between the filters of the bands of `_WAVELENGTHS`."""
        low, middle, high = _WAVELENGTHS
        at = wavelength.clamp(low, high)
        first = ((middle - at) / (middle - low)).clamp(0.0, 1.0)
        last = ((at - middle) / (high - middle)).clamp(0.0, 1.0)
        rest = wavelength.new_zeros((*wavelength.shape, len(self.bank) - 3))
        return torch.cat([torch.stack([first, 1.0 - first - last, last], dim=-1), rest], dim=-1)


def _asinh(values: Tensor) -> Tensor:
    """Take the inverse hyperbolic sine, right to 1e-6, in a third of the time of torch's."""
    size = values.square().add_(1.0).sqrt_().add_(values.abs()).log_()
    return torch.copysign(size, values)


def start_at_zero(block: nn.Linear | nn.Sequential) -> None:
    """Let a layer, or the last one of a residual block, give 0 at the start of training."""
    last = cast(nn.Linear, block[-1]) if isinstance(block, nn.Sequential) else block
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


class CentreHead(nn.Module):
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
        start_at_zero(self.refine)
        self.last = nn.Conv2d(40, 7 * REFINE**2, 1)
        nn.init.normal_(self.last.weight, std=0.01)
        bias = cast(Tensor, self.last.bias)
        nn.init.zeros_(bias)
        with torch.no_grad():
            bias[: REFINE**2] = -4.6

    def forward(self, level: Tensor, stem: Tensor) -> Tensor:
        """Return the map, (image, 7, y, x)."""
        coarse = F.relu(self.unfold(F.relu(self.coarse(level))))
        fine = F.relu(self.fine(stem))
        joined = F.relu(self.join(torch.cat([F.pixel_shuffle(coarse, 2), fine], dim=1)))
        return F.pixel_shuffle(self.last(joined + self.refine(joined)), REFINE)


class StampHead(nn.Module):
    """Features of the pixels of sources, on a grid that goes by the PSF."""

    def __init__(self, features: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * _STAMP_CELLS**2 + SIDE, 128), nn.ReLU(), nn.Linear(128, features), nn.ReLU()
        )

    def forward(self, bands: Bands, positions: list[Tensor]) -> Tensor:
        """Return features, (source, 2 feature), at positions (x, y), (source, 2), in each image."""
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


class OutlineHead(nn.Module):
    """Features for masks: of the PSF, and of the pixels of the band that the masks are of."""

    def __init__(self, channels: int):
        super().__init__()
        self.modulation = nn.Linear(SIDE, 2 * channels)
        start_at_zero(self.modulation)
        self.pixels = nn.Sequential(
            nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, channels, 3, padding=1)
        )
        start_at_zero(self.pixels)

    def forward(self, bands: Bands, boxes: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return a factor, a summand (source, channel, 1, 1) and the cells (source, 4, cell, cell).

        The first two are for the pooled features; what ``pixels`` makes of the last, which takes 16 times
        the memory, for the mask head's result.
        """
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
        return 1.0 + factor, summand, torch.cat(layers, dim=1)
