# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images in the files of ``lsst.images``, such as the cell coadds of Rubin's data releases."""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.units import nJy
from astropy.wcs import WCS

from ..catalogs.cell_coadds import noise_realization, subtract_background
from ..deblend.image import gaussian_fwhm
from ..images.files import one_line
from ..images.pixels import PLANES_OF_IMAGES
from .fits_files import FitsImageError
from .fits_images import FitsField, FitsOptions, PlainImage
from .fits_wcs import pixel_scale_of

_SCHEMA_CARD = re.compile(rb"DATAMODL= *'[^']*images\.lsst\.io/schemas/")
_HEAD = 100 * 2880
"""Bytes at the beginning of a file that may hold its first header."""


def is_rubin_image(path: Path) -> bool:
    """Tell whether ``lsst.images`` wrote a file (FITS or JSON)."""
    if path.suffix.lower() == ".json":
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        # Said by the reader of plain images.
        return False
    # As text: what is damaged in the other cards is for the reader to say.
    return head.startswith(b"SIMPLE") and _SCHEMA_CARD.search(head) is not None


def are_rubin_images(paths: Sequence[Path]) -> bool:
    """Tell whether ``lsst.images`` wrote all of some files, or none; others are refused."""
    kinds = {is_rubin_image(path) for path in paths}
    if len(kinds) > 1:
        raise FitsImageError("lsst.images wrote some of the files, and not the others; give one kind.")
    return kinds == {True}


def read_band(path: Path) -> str | None:
    """Read the band of an image of ``lsst.images``; `None` where it has none."""
    band = getattr(_open(path), "band", None)
    return None if band is None else str(band)


def read_rubin_field(files: Mapping[str, Path], options: FitsOptions) -> FitsField:
    """Read images of ``lsst.images`` (CellCoadd or MaskedImage), on one pixel grid.

    Parameters
    ----------
    files : `~collections.abc.Mapping` [`str`, `pathlib.Path`]
        Files by band.
    options : `~.fits_images.FitsOptions`
        Only ``background`` applies.

    Returns
    -------
    field : `~.fits_images.FitsField`
        In nJy. Mask planes are named as in ``lsst.afw.image``.

    Raises
    ------
    FitsImageError
        Raised if a file cannot be read, is of another band, or has another pixel grid
        than the first.
    """
    opened = {band: _open(path) for band, path in files.items()}
    first_band, first = next(iter(opened.items()))
    notes: list[str] = []
    for band, image in opened.items():
        name = files[band].name
        own = getattr(image, "band", None)
        if own is not None and own != band:
            raise FitsImageError(f"{name} is of band {own}, and is given for {band}; give it for {own}.")
        if image.bbox != first.bbox or image.sky_projection != first.sky_projection:
            raise FitsImageError(
                f"The images must be on one pixel grid, but that of {name} ({image.bbox}) differs from "
                f"that of {files[first_band].name} ({first.bbox}) in box or projection; give one patch."
            )
    wcs, note = _wcs_of(first)
    notes += note
    shape = (int(first.bbox.y.size), int(first.bbox.x.size))
    scale = pixel_scale_of(wcs, shape)
    images = {
        band: _plain_image(image, files[band].name, options.background, scale, notes)
        for band, image in opened.items()
    }
    return FitsField(images, {}, tuple(files), shape, wcs, notes=notes)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FitsImageError(f"There is no file {path}; check the name.")
    if importlib.util.find_spec("lsst.images") is None:
        python = "" if sys.version_info >= (3, 12) else ", with Python 3.12 or newer"
        raise FitsImageError(
            f"{path.name} is in the format of lsst.images, which is not installed: "
            f"pip install 'lsst-meas-maskrcnn[rubin]'{python}."
        )
    from lsst.images import MaskedImage  # type: ignore[import-not-found,unused-ignore]
    from lsst.images.serialization import read_archive  # type: ignore[import-not-found,unused-ignore]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = read_archive(str(path))
    # Readers of archives raise what their layers raise: pydantic, astropy, json, their own.
    except Exception as error:
        raise FitsImageError(
            f"{path} cannot be read by lsst.images ({type(error).__name__}: {one_line(error)}); "
            "get the whole file, or a newer lsst-images."
        ) from error
    if not isinstance(image, MaskedImage):
        raise FitsImageError(f"{path.name} holds a {type(image).__name__}; give a CellCoadd or MaskedImage.")
    if image.unit is None or not image.unit.is_equivalent(nJy):
        raise FitsImageError(f"{path.name} is in {image.unit or 'no unit'}; wanted a flux density, as nJy.")
    if image.sky_projection is None:
        raise FitsImageError(f"{path.name} has no sky projection; give a file with one.")
    return image


def _wcs_of(image: Any) -> tuple[WCS, list[str]]:
    """World coordinates of the array, and notes."""
    exact = image.sky_projection.as_fits_wcs(image.bbox)
    if exact is not None:
        return exact, []
    nearly = image.sky_projection.as_fits_wcs(image.bbox, allow_approximation=True)
    if nearly is None:
        raise FitsImageError("The sky projection cannot be written as a FITS WCS; convert the file.")
    return nearly, ["World coordinates are a FITS approximation of the projection in the file."]


def _plain_image(
    image: Any, name: str, background: str | None, pixel_scale: float, notes: list[str]
) -> PlainImage:
    from lsst.images.cells import CellCoadd  # type: ignore[import-not-found,unused-ignore]

    if background is not None:
        try:
            subtract_background(image, background)
        except ValueError as error:
            raise FitsImageError(f"{name} {error}.") from error
    factor = image.unit.to(nJy)
    pixels = image.image.array.astype(float) * factor
    variance = image.variance.array.astype(float) * factor**2
    planes = {}
    for plane in image.mask.schema:
        if plane is not None:
            planes[PLANES_OF_IMAGES.get(plane.name, plane.name)] = image.mask.get(plane.name)
    if isinstance(image, CellCoadd) and {"CR", "INTRP"} <= planes.keys():
        # It is set where one of the visits had a cosmic ray, which was interpolated there.
        planes["CR"] = planes["CR"] & ~planes["INTRP"]
    missing = ~np.isfinite(pixels) | ~np.isfinite(variance) | planes.get("NO_DATA", np.False_)
    pixels[missing] = variance[missing] = np.nan
    empty = variance[~missing]
    sigma = float(np.sqrt(np.median(empty))) if empty.size else float("nan")
    local_psf = _CellPsf(image)
    psf = local_psf.usual()
    fwhm = gaussian_fwhm(psf) * pixel_scale if psf is not None else float("nan")
    subtracted = getattr(getattr(image, "backgrounds", None), "subtracted", None)
    notes.append(
        f"{name}: {type(image).__name__} in {image.unit}, noise {sigma:.3g} nJy a pixel, PSF "
        + (f"{fwhm:.2f} arcsec" if psf is not None else "not known")
        + (f", background {subtracted.name} subtracted." if subtracted is not None else ".")
    )
    noise = noise_realization(image)
    return PlainImage(pixels, variance, planes, 1.0, sigma, fwhm, psf, local_psf, noise=noise)


class _CellPsf:
    """The PSF of an image by position in its array."""

    def __init__(self, image: Any):
        self._psf = getattr(image, "psf", None)
        box = image.bbox
        self._corner = (int(box.y.min), int(box.x.min))
        self._shape = (int(box.y.size), int(box.x.size))
        self._usual: npt.NDArray[np.float64] | None = None
        self._searched = False

    def __call__(self, y: float, x: float) -> npt.NDArray[np.float64] | None:
        if self._psf is None:
            return None
        from lsst.images import BoundsError  # type: ignore[import-not-found,unused-ignore]

        try:
            kernel = self._psf.compute_kernel_image(x=x + self._corner[1], y=y + self._corner[0])
        except (BoundsError, IndexError):
            return self.usual()
        pixels = np.asarray(kernel.array, float)
        return pixels if np.isfinite(pixels).all() and pixels.sum() > 0 else self.usual()

    def usual(self) -> npt.NDArray[np.float64] | None:
        """PSF of the cell with data that is nearest to the middle; `None` if there is none."""
        if not self._searched and self._psf is not None:
            self._searched = True
            steps = [np.linspace(0.0, side - 1.0, 25) for side in self._shape]
            places = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 2)
            middle = (np.array(self._shape) - 1) / 2.0
            for y, x in places[np.argsort(np.hypot(*(places - middle).T), kind="stable")].tolist():
                self._usual = self(y, x)
                if self._usual is not None:
                    break
        return self._usual
