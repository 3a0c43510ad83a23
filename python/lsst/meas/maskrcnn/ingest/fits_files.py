# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What FITS files of images hold: pixels, headers, and what belongs to them."""

from __future__ import annotations

__all__ = ["BandFiles", "FitsImageError", "assign_bands", "find_fits"]

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from ..images.files import one_line
from .fits_header import BAND_KEYS, PER_SECOND, band_of, is_same_band, known_filter, linear_pixels, number_of
from .fits_layout import check_layout
from .fits_sections import find_overscan

FloatArray = npt.NDArray[np.floating[Any]]
_Plane = tuple[fits.hdu.base._BaseHDU, npt.NDArray[Any]]

FITS_SUFFIXES = ("", ".gz", ".fz")
"""What may follow the name of a FITS file: nothing, or that it is compressed (`tuple` [`str`])."""

# Extensions beside the image, by HDUCLAS3 (of ESO), UTYPE (of astropy), EXTNAME, EXTTYPE or IMTYPE (of the
# Legacy Surveys).
_COMPANIONS = {
    "variance": ("VAR", "VARI", "VARIANCE", "STAT", "MSE", "VARIANCEUNCERTAINTY"),
    "rms": ("ERR", "ERROR", "RMS", "SIGMA", "UNCERT", "UNC", "UNCERTAINTY", "STD", "STDEV", "STDDEV", "NOISE")
    + ("RMSE", "STDDEVUNCERTAINTY"),
    "weight": ("WHT", "WGT", "WT", "WEIGHT", "IVAR", "IVM", "INVVAR", "INVMSE", "INVERSEVARIANCE")
    + ("CONF", "CONFIDENCE"),
    "mask": ("DQ", "MASK", "MSK", "BITMASK", "FLAG", "FLG", "QUAL", "QUALITY", "DATAQUALITY", "BPM", "BADPIX")
    + ("BADPIXEL", "DQMASK"),
    "psf": ("PSF",),
}
_GAPS = "[-_ .]+"
_IMAGE_NAMES = ("SCI", "IMAGE", "SCIENCE", "DATA")
_PLACE = re.compile(r"C(TYPE|UNIT|RVAL|RPIX|DELT|ROTA)\d|(CD|PC|PV)\d_\d+|[AB]P?_(ORDER|\d_\d)|WAT\d_\d+")
_KEYWORD = re.compile(r"[\w .:#/+-]+")
_STRETCHED = re.compile(r"histogram ?transf|asinh ?transf|auto ?stretch|\bGHS\b|\bCLAHE\b", re.IGNORECASE)
"""In the history that programs of amateurs write."""
_LARGEST_COUNT, _SHARES_OF_EXPOSURE = 1e6, (0.1, 1.2)
"""Weights that are whole numbers up to this, or have a median of so many exposure times, are relative."""
_MOST_SPREAD = 1e10
"""Variances of more than so many times their median mean no data; an RMS of 1e16 does in images of Euclid."""
_FEWEST_SHARED = 5
"""Pixels that must have one value for it to be none."""
_TILE = 64
"""Pixels of a row that lossy compression packs together, or fewer."""
_SENTINELS = (-9999.0, -99999.0)
"""Values that stand for no data wherever they are."""


class FitsImageError(ValueError):
    """FITS images cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class BandFiles:
    """The files of one band; at most one of variance, weight and RMS."""

    image: Path
    """The image."""

    variance: Path | None = None
    """Variance of the pixels (counts^2)."""

    weight: Path | None = None
    """Inverse variance (counts^-2) or relative weight, which the noise tells; 0 where there is no data."""

    rms: Path | None = None
    """Standard deviation of the pixels (counts)."""

    mask: Path | None = None
    """Integers; what they mean is `FitsOptions.mask_bits`."""

    def __post_init__(self) -> None:
        given = [name for name in ("variance", "weight", "rms") if getattr(self, name) is not None]
        if len(given) > 1:
            raise FitsImageError(
                f"{self.image.name}: {' and '.join(given)} were given; give one of variance, weight and RMS."
            )


@dataclass(frozen=True)
class FitsContent:
    """What a file holds."""

    path: Path
    """The file."""

    header: fits.Header
    """That of the image, with what the primary one says beside it."""

    pixels: FloatArray
    """The image (y, x), counts, as float64."""

    is_exposure: bool = False
    """Whether afw wrote the file (ExposureF)."""

    companions: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Images of the same shape in other HDUs, by what they are: variance,
    rms, weight or mask; and that of the PSF."""

    mask_header: fits.Header = field(default_factory=fits.Header)
    """That of the mask."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Names of the HDUs of the image and of the companions."""

    notes: tuple[str, ...] = ()
    """What was assumed or left out."""

    def variance(self, files: BandFiles) -> tuple[FloatArray | None, str, bool | None]:
        """Return the variance (y, x), counts^2, where it is from, and whether it is relative; `None` if only
        the noise can tell.

        It is NaN where there is no data, and `None` if it is not known or says nothing.
        """
        # Weights go last: those beside errors are often relative.
        kinds = ("variance", "rms", "weight")
        given = next((kind for kind in kinds if getattr(files, kind) is not None), None)
        kind = given or next((kind for kind in kinds if kind in self.companions), None)
        if kind is None:
            return None, "", False
        source = getattr(files, kind).name if given else f"extension {self.names[kind]}"
        values = self._matching(getattr(files, kind), kind).pixels if given else self.companions[kind]
        values = np.asarray(values, float)
        usable = np.isfinite(values) & (values > 0.0)
        if not usable.any():
            return None, f"{source} has no value above 0 and is not used", False
        result = np.full(self.pixels.shape, np.nan)
        result[usable] = values[usable] ** {"variance": 1, "rms": 2, "weight": -1}[kind]
        result[result > _MOST_SPREAD * np.median(result[usable])] = np.nan
        return result, source, self._is_relative(values[usable], source) if kind == "weight" else False

    def _is_relative(self, weights: FloatArray, source: str) -> bool | None:
        """Whether weights are confidences, numbers of images or exposure times; not so by some names."""
        if re.search(r"iv(ar|m)|inv(var|mse)|inverse", source.lower()):
            return False
        if (weights < _LARGEST_COUNT).all() and (weights == np.rint(weights)).all():
            return True
        # As in drizzled images of Hubble.
        exposure, unit = number_of(self.header, "EXPTIME"), str(self.header.get("BUNIT", "")).lower()
        if self.header.get("TELESCOP") == "HST" and exposure and re.search(PER_SECOND, unit):
            least, most = _SHARES_OF_EXPOSURE
            if least < np.median(weights) / exposure < most:
                return True
        return None

    def flags(self, files: BandFiles) -> tuple[npt.NDArray[np.int64], fits.Header, str]:
        """Return the values of the mask image (y, x), its header and its name; zeros without one."""
        if files.mask is not None:
            mask = self._matching(files.mask, "mask")
            values, header, name = mask.pixels, mask.header, files.mask.name
        elif "mask" in self.companions:
            values, header, name = self.companions["mask"], self.mask_header, self.names["mask"]
        else:
            return np.zeros(self.pixels.shape, dtype=np.int64), fits.Header(), ""
        if values.dtype.kind == "f":
            # Resampled masks have fractions; what is no number has every bit.
            whole = np.ceil(np.abs(values))
            values = np.where(whole < 2.0**63, whole, -1.0)
        return values.astype(np.int64), header, name

    def _matching(self, path: Path, kind: str) -> FitsContent:
        """Read an image of a kind that must have the shape of this one."""
        content, shape = read_fits(path, like=(kind, self.names["image"])), self.pixels.shape
        if content.pixels.shape != shape:
            height, width = content.pixels.shape
            raise FitsImageError(
                f"{path.name} is {width} x {height}, its image {shape[1]} x {shape[0]}; "
                "they must be on one pixel grid."
            )
        return content


def find_fits(path: Path) -> Path | None:
    """Find a FITS file that may be compressed.

    Parameters
    ----------
    path : `pathlib.Path`
        Its name without the suffix of a compressed file.

    Returns
    -------
    found : `pathlib.Path` or `None`
        The first of `FITS_SUFFIXES` with which there is a file.
    """
    paths = [Path(f"{path}{suffix}") for suffix in FITS_SUFFIXES]
    return next((found for found in paths if found.is_file()), None)


def read_fits(
    path: Path,
    hdu: str | int | None = None,
    band: str | None = None,
    cube_bands: Sequence[str] = (),
    like: tuple[str, str | None] = ("image", None),
) -> FitsContent:
    """Read an image and what belongs to it.

    ``hdu`` is the name or number of its HDU, by default SCI or the like, or the
    first one with an image; ``band`` is the one that is wanted of a cube or of
    several HDUs, and ``cube_bands`` are those of a cube whose header does not
    name them. ``like`` is the kind of image that is wanted, and the name of the
    HDU of the image that it belongs to.
    """
    if not path.is_file():
        raise FitsImageError(f"There is no file {path}; check the name.")
    try:
        with warnings.catch_warnings():
            # What is odd about cards is noted below.
            warnings.simplefilter("ignore", AstropyWarning)
            # Files that were cut short are read with zeros and a warning.
            warnings.filterwarnings("error", message=".*truncated.*")
            check_layout(path)
            with fits.open(path, memmap=False) as hdus:
                return _find_image(path, hdus, _Wanted(hdu, band, cube_bands, *like))
    except Warning as warning:
        raise FitsImageError(f"{path} is cut short ({warning}); get the whole file.") from warning
    except FitsImageError:
        raise
    except Exception as error:
        # astropy, numpy and CFITSIO raise errors of a dozen kinds for what is damaged.
        raise FitsImageError(
            f"{path} is not a FITS file that can be read ({one_line(error)}); give a FITS image."
        ) from error


@dataclass(frozen=True)
class _Wanted:
    """What is wanted of a file, as `read_fits` has it."""

    hdu: str | int | None
    band: str | None
    cube_bands: Sequence[str]
    kind: str
    name: str | None


def _find_image(path: Path, hdus: fits.HDUList, wanted: _Wanted) -> FitsContent:
    """Find the image among the HDUs, and what belongs to it."""
    (entry, data), band = _choose_hdu(path, hdus, wanted), wanted.band
    header, skipped = _merged_header(hdus[0].header, entry.header)
    notes = []
    if skipped:
        listed = ", ".join(skipped[:12]) + (" and more" if len(skipped) > 12 else "")
        notes.append(f"header cards that cannot be read, or say another thing again, are left out: {listed}.")
    history = " ".join(str(line) for hdu in (hdus[0], entry) for line in hdu.header.get("HISTORY", ""))
    if _STRETCHED.search(history):
        notes.append("by its history it was stretched for display: its pixels are not linear in flux.")
    companions: dict[str, npt.NDArray[Any]] = {}
    labels, mask_header = {"image": _label(hdus, entry)}, fits.Header()
    said = known_filter(header)
    if said and band and (said.lower() == band != said or not is_same_band(said, band)):
        if np.squeeze(entry.data).ndim == 2:
            notes.append(f"it is taken for {band}, but its header says {said}.")
    if wanted.kind == "mask":
        return FitsContent(path, header, data, names=labels)
    groups: dict[str, list[_Plane]] = {}
    for other in hdus:
        kind = _kind_of(other, band, entry.name)
        values = _image_of(other, band, wanted.cube_bands if kind in _COMPANIONS else ())
        if other is not entry and values is not None and values.size:
            fits_image = _is_psf(values, data.shape) if kind == "psf" else values.shape == data.shape
            belongs = kind in _COMPANIONS and other.ver == entry.ver and fits_image
            groups.setdefault(kind if belongs else "", []).append((other, values))
    unused = groups.pop("", [])
    # The image and those of other detectors or bands.
    kind, others = _kind_of(entry, band), [hdu for hdu, plane in unused if plane.shape == data.shape]
    images = [hdu for hdu in hdus if hdu is entry or (hdu in others and _kind_of(hdu, band) == kind)]
    for kind, group in groups.items():
        # As many are those of the images in their order.
        chosen = group.pop(images.index(entry) if len(group) == len(images) else 0)
        unused += group
        companions[kind], labels[kind] = chosen[1], _label(hdus, chosen[0])
        if kind == "mask":
            # That fpack leaves to the primary HDU nothing but its name.
            mask_header = _merged_header(hdus[0].header, entry.header, chosen[0].header)[0]
    is_exposure = any("ARCHIVE_INDEX" in (entry.name, entry.header.get("EXTTYPE")) for entry in hdus)
    if unused and not is_exposure:
        more = f" and {len(unused) - 8} more" if len(unused) > 9 else ""
        unused = sorted(unused, key=lambda plane: hdus.index(plane[0]))[: 8 if more else None]
        listed = ", ".join(f"{_label(hdus, other)} ({v.shape[1]} x {v.shape[0]})" for other, v in unused)
        notes.append(f"the image is HDU {labels['image']}; not used are {listed}{more}.")
    try:
        pixels, note = linear_pixels(np.asarray(data, dtype=np.float64), header)
    except ValueError as error:
        raise FitsImageError(f"{path.name}: {error}.") from error
    pixels[np.isin(pixels, _SENTINELS) | (np.abs(pixels) > 1e29)] = np.nan
    notes += filter(None, (note, *(_remove_dark(pixels, header) if wanted.kind == "image" else ())))
    return FitsContent(path, header, pixels, is_exposure, companions, mask_header, labels, tuple(notes))


def _is_psf(values: npt.NDArray[Any], shape: tuple[int, int]) -> bool:
    """Whether an image (y, x) can be the PSF of one of a shape: smaller, its peak in the middle pixel."""
    if not np.isfinite(values).all() or max(values.shape) > min(shape) or 0 in values.shape:
        return False
    place = np.unravel_index(np.argmax(values), values.shape)
    middle = [abs(at - (side - 1) / 2) <= 1.0 and side % 2 == 1 for at, side in zip(place, values.shape)]
    return all(middle) and float(values.sum()) > 0.0


def _choose_hdu(
    path: Path, hdus: fits.HDUList, wanted: _Wanted
) -> tuple[fits.hdu.base._BaseHDU, npt.NDArray[Any]]:
    """Find the HDU that is wanted, and its image."""
    # Made to read all headers, or names further on are not known.
    names = [entry.name for entry in hdus]
    band, cube_bands = wanted.band, wanted.cube_bands
    if wanted.hdu is not None:
        key = int(wanted.hdu) if str(wanted.hdu).isdigit() else str(wanted.hdu)
        try:
            candidates = [hdus[key]]
        except LookupError as error:
            listed = ", ".join(map(repr, names))
            raise FitsImageError(f"{path} has no HDU {key!r}; it has {listed}.") from error
    else:
        candidates = [entry for entry in hdus if _kind_of(entry, band) in (wanted.kind, "image", "")]
    images = [(entry, _image_of(entry, band, cube_bands)) for entry in candidates]
    found = [(entry, data) for entry, data in images if data is not None]
    if not found:
        raise FitsImageError(
            f"{path} holds no two-dimensional image; give a FITS image, or the bands of all planes of a cube."
        )
    # The first of the best: by its band, its kind, its name, its world coordinates, its size.
    entry, data = max(
        found,
        key=lambda pair: (
            _is_of_band(pair[0], band),
            _kind_of(pair[0], band) == wanted.kind,
            pair[0].name == wanted.name,
            bool(pair[0].header.get("CTYPE1")),
            pair[1].size,
        ),
    )
    if cube_bands and np.squeeze(entry.data).ndim == 2 and not _is_of_band(entry, band):
        raise FitsImageError(
            f"{path.name} is given for {', '.join(cube_bands)}, and no HDU has the name or filter {band}; "
            "give one file per band."
        )
    return entry, data


def _remove_dark(pixels: FloatArray, header: fits.Header) -> tuple[str, ...]:
    """Set pixels to NaN that saw no light, or have values for no data; returns what was found."""
    dark, key = find_overscan(header, pixels)
    if dark is None:
        return _remove_shared(pixels)
    pixels[dark] = np.nan
    note = f"{dark.mean():.1%} of the pixels are overscan by {key}, no data: it may be a raw frame."
    return (note, *_remove_shared(pixels))


def _remove_shared(pixels: FloatArray) -> tuple[str, ...]:
    """Set pixels to NaN that share a value that is none, wherever they are; returns what was found."""
    finite = pixels[np.isfinite(pixels)]
    if not finite.size:
        return ()
    sample, lowest = finite[:: max(1, finite.size // 100_000)], finite.min()
    low, median = np.quantile(sample, [0.16, 0.5])
    notes = []
    # No noise reaches so far below the sky, and several times to the same value.
    far = 0.0 < 30.0 * (median - low) < median - lowest
    for value, is_none, words in (
        (lowest, far, "far below all others"),
        (0.0, _is_hole(pixels), "in noise that repeats no other value"),
    ):
        filled = pixels == value
        if is_none and np.count_nonzero(filled) >= _FEWEST_SHARED:
            pixels[filled] = np.nan
            notes.append(f"{np.count_nonzero(filled)} pixels are {value:g} exactly, {words}: no data.")
    return tuple(notes)


def _is_hole(pixels: FloatArray) -> bool:
    """Whether 0 is no value of an image (y, x): often there in noise about it that repeats no other."""
    # Lossy compression keeps few values, but others in each of its tiles.
    length = min(_TILE, pixels.shape[1])
    rows = pixels[:, : pixels.shape[1] // length * length].reshape(-1, length)
    rows = np.sort(rows[:: max(1, len(rows) // 2000)], axis=1)
    zeros, below = np.count_nonzero(rows == 0.0), np.count_nonzero(rows < 0.0)
    others = np.count_nonzero(np.isfinite(rows)) - zeros
    repeated = np.count_nonzero((np.diff(rows, axis=1) == 0.0) & (rows[:, 1:] != 0.0))
    return bool(zeros > 10 * repeated and zeros < others and 0.1 * others < below < 0.9 * others)


def _label(hdus: fits.HDUList, entry: fits.hdu.base._BaseHDU) -> str:
    """Name of an HDU, or its number, with what it says that it is."""
    number = f"{hdus.index(entry)} {entry.header.get('IMTYPE', '')}".strip()
    return entry.name or str(entry.header.get("EXTTYPE") or number)


def _kind_of(entry: fits.hdu.base._BaseHDU, band: str | None, image: str = "") -> str:
    """What an HDU is by its type, or its name without the band's: image, a key of `_COMPANIONS`, or empty.

    Beside an image, names may also be that of the image but for one word, as NIR_Y_RMS beside NIR_Y_FLUX,
    ERR2 beside SCI2 or FLUX_VAR beside FLUX; without one, the last word tells what is no image.
    """
    own = _split(image)
    for key in ("HDUCLAS3", "UTYPE", "EXTNAME", "EXTTYPE", "IMTYPE"):
        text = str(entry.header.get(key, ""))
        names = ["".join(word for word in re.split(_GAPS, text.strip().upper()) if word != str(band).upper())]
        words = _split(text)
        others = [word for word, known in zip(words, own) if word != known]
        if not image and len(words) > 1:
            names += [word for word in words if not word.isdigit()][-1:]
        elif len(words) == len(own) > 1 and len(others) == 1:
            names += others
        elif words[:-1] == own:
            names += words[-1:]
        for name, groups in zip(names, ({"image": _IMAGE_NAMES, **_COMPANIONS}, _COMPANIONS)):
            for kind, group in groups.items():
                if {name, name.removesuffix("MAP"), name.removesuffix("S")} & {*group}:
                    return kind
    return ""


def _split(name: str) -> list[str]:
    """Words of a name, and the number at its end."""
    return re.split(rf"{_GAPS}|(?<=[A-Z])(?=\d+$)", name.strip().upper())


def _is_of_band(entry: fits.hdu.base._BaseHDU, band: str | None) -> bool:
    """Whether an HDU says that it is of a band; what the first says is for all."""
    words = re.split(_GAPS, entry.name.upper())
    named = () if isinstance(entry, fits.PrimaryHDU) else (band_of(entry.header), known_filter(entry.header))
    return band is not None and (band.upper() in words or band in named)


def _merged_header(*headers: fits.Header) -> tuple[fits.Header, list[str]]:
    """Put the cards of headers into one, the last first; returns what cannot be read as well.

    World coordinates are those of the last that has any; of cards of one keyword, the first counts.
    """
    merged, skipped = fits.Header(), []
    for number, header in enumerate(headers):
        seen: set[str] = set()
        placed = any("CTYPE1" in other for other in headers[number + 1 :])
        for card in header.cards:
            if card.keyword in ("", "COMMENT", "HISTORY") or (placed and _PLACE.fullmatch(card.keyword)):
                continue
            try:
                # Others would be patterns.
                if not _KEYWORD.fullmatch(card.keyword):
                    raise ValueError("no keyword")
                if " " in card.keyword and not str(card.image).startswith("HIERARCH"):
                    raise ValueError("no keyword")
                if card.keyword not in seen:
                    merged[card.keyword] = (card.value, card.comment)
                    seen.add(card.keyword)
                elif merged[card.keyword] != card.value:
                    skipped.append(card.keyword)
            except (fits.VerifyError, ValueError):
                skipped.append(card.keyword[:8].split(" ")[0])
    return merged, list(dict.fromkeys(skipped))


def _image_of(
    entry: fits.hdu.base._BaseHDU, band: str | None, cube_bands: Sequence[str]
) -> npt.NDArray[Any] | None:
    """Image of an HDU, or nothing."""
    if not getattr(entry, "is_image", False) or entry.data is None:
        return None
    # Drizzled and other images come with axes of length one.
    data = np.squeeze(entry.data)
    if band is not None and data.ndim == 3:
        named = [str(entry.header.get(f"BAND{k}", "")).strip() for k in range(len(data))]
        if not all(named):
            said = str(entry.header.get("BANDS", "")).strip()
            named = re.split("[ ,]+", said) if re.search("[ ,]", said) else list(said)
        if len(named) != len(data):
            if not cube_bands:
                return None
            named = list(cube_bands)
        if len(named) != len(data) or band not in named:
            raise FitsImageError(
                f"A cube of {len(data)} planes has bands {', '.join(named)}, and {band!r} is wanted; "
                "name the bands of all planes in their order."
            )
        data = data[named.index(band)]
    return data if data.ndim == 2 else None


def assign_bands(
    paths: Sequence[Path], bands: Sequence[str], fixed: bool = True
) -> tuple[list[str], list[str]]:
    """Decide the band of each of some files that were given in an order.

    Parameters
    ----------
    paths : `~collections.abc.Sequence` [`pathlib.Path`]
        The files.
    bands : `~collections.abc.Sequence` [`str`]
        Bands in the order of the files; headers that name these bands in
        another order are believed.
    fixed : `bool`
        Whether it has to be these bands; if not, headers that name others are
        believed, ``bands`` are those of as many files of which no header says
        a filter, and may be empty.

    Returns
    -------
    names : `list` [`str`]
        Band of each file.
    notes : `list` [`str`]
        Sentences for the user about headers that disagree with the order.

    Raises
    ------
    FitsImageError
        Raised if a file cannot be read, the numbers of files and bands
        differ, or two headers name the same band.
    """
    planes = len(paths) == len(bands)
    headers = [
        _header_of(path, *((bands[index], tuple(bands)) if planes and paths.count(path) > 1 else ()))
        for index, path in enumerate(paths)
    ]
    if not fixed:
        filters = [known_filter(header) for header in headers]
        if None not in filters and len(set(filters)) == len(filters):
            return [str(band) for band in filters], []
        said = [next((str(header[key]) for key in BAND_KEYS if key in header), "none") for header in headers]
        if set(said) != {"none"} or len(bands) != len(paths):
            listed = ", ".join(f"{path.name} says {text}" for path, text in zip(paths, said))
            raise FitsImageError(
                f"The headers do not tell the bands: {listed}. Give --bands, one for each file."
            )
        named = [_band_in_name(path) for path in paths]
        if None not in named and len(set(named)) == len(named) and named != list(bands):
            listed = ", ".join(f"{path.name} is {band}" for path, band in zip(paths, named))
            return [str(band) for band in named], [f"By the names of the files, {listed}; --bands sets it."]
    named = [band_of(header) for header in headers]
    if len(paths) != len(bands):
        raise FitsImageError(
            f"{len(paths)} images were given, {len(bands)} are wanted, one for each of the bands "
            f"{', '.join(bands)}; name one file per band."
        )
    listed = ", ".join(f"{path.name} says {band}" for path, band in zip(paths, named))
    # One filter for all is of a header that was copied.
    if set(named) <= set(bands) and not len(set(named)) == 1 < len(named):
        if len(set(named)) < len(named):
            raise FitsImageError(
                f"Bands {', '.join(bands)} are wanted, one each, but {listed}; give one file per band."
            )
        notes = [f"The order of the files is not {', '.join(bands)}: {listed}, and is believed."]
        return [str(band) for band in named], notes if named != list(bands) else []
    return list(bands), [
        f"{path.name} says that it is {band}, but is taken for {place} by its position."
        for path, band, place in zip(paths, named, bands)
        if band is not None and band != place
    ]


def _header_of(path: Path, band: str | None = None, cube_bands: Sequence[str] = ()) -> fits.Header:
    """Read the header of an image, which may be one of several in its file; of lsst.images, its band."""
    from .rubin_images import is_rubin_image, read_band

    if not is_rubin_image(path):
        return read_fits(path, None, band, cube_bands).header
    band = read_band(path)
    return fits.Header({"FILTER": band} if band is not None else {})


def _band_in_name(path: Path) -> str | None:
    """Band that the name of a file has as a word, if it is one alone."""
    words = re.split(_GAPS, path.name)
    found = {band for band in (known_filter({"BAND": word}) for word in words) if band is not None}
    return found.pop() if len(found) == 1 else None
