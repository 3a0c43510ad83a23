# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The stored forms of an evaluation: figures, pictures and outcomes."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, model_validator

from ..images.classes import GALAXY, STAR
from .arrays import BoolArray
from .average_precision import Outcomes

__all__ = [
    "CLASS_LABELS",
    "EvaluationGallery",
    "EvaluationMetrics",
    "GalleryEntry",
    "MetricValue",
    "PatchSummary",
    "outcomes_from_table",
    "outcomes_table",
    "software_versions",
]

FORMAT_VERSION = 1
"""Version of the file format that is written (`int`)."""

_DISTRIBUTIONS = (
    *("lsst-meas-maskrcnn", "numpy", "scipy", "matplotlib", "astropy", "torch", "torchvision"),
    *("lsst-pipe-base", "lsst-daf-butler"),
)

CLASS_LABELS: dict[str, int | None] = {"all": None, "star": STAR, "galaxy": GALAXY}
"""Labels of the classes by the names that figures have (`dict`)."""


def _from_json(value: Any) -> Any:
    return math.nan if value is None else value


def _to_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


# JSON has no NaN; what is not known is null there.
Float = Annotated[float, BeforeValidator(_from_json), PlainSerializer(_to_json, when_used="json")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Stored(_Model):
    """What is stored with the version of its format, which is checked first."""

    format_version: int = FORMAT_VERSION
    """Version of the format."""

    @model_validator(mode="before")
    @classmethod
    def _check_version(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and "format_version" in fields:
            version = fields["format_version"]
            if not isinstance(version, int) or version > FORMAT_VERSION:
                what = cls.__name__.removeprefix("Evaluation").lower()
                raise ValueError(
                    f"The {what} have format version {version}, but this code reads up to {FORMAT_VERSION}; "
                    "update meas_maskrcnn."
                )
        return fields


class MetricValue(_Model):
    """One figure with its error."""

    name: str
    """What it is, such as ``ap`` or ``completeness``."""
    object_class: str = "all"
    """``all``, ``star`` or ``galaxy``."""
    definition: str = ""
    """Definition of an average precision, else empty."""
    area: str = "all"
    """Name of the range of areas, or ``all``."""
    iou: float | None = None
    """Smallest IoU of a match; `None` for the mean over all thresholds or where there is no such thing."""
    band: str = ""
    """Band or colour; empty where there is none."""
    unit: str = ""
    """Unit; empty for shares."""
    value: Float
    """The figure; NaN where there is none."""
    error: Float = math.nan
    """Its standard error, from the bootstrap over patches; NaN for fewer than two patches."""
    low: Float = math.nan
    high: Float = math.nan
    """Limits of the confidence interval, from the bootstrap."""
    n: int = 0
    """Number of sources, patches or cases behind it."""

    @property
    def key(self) -> tuple[str, str, str, str, float | None, str]:
        """What distinguishes this figure from all others of a run (`tuple`)."""
        return (self.name, self.object_class, self.definition, self.area, self.iou, self.band)


class PatchSummary(_Model):
    """A patch that was evaluated."""

    tract: int
    patch: int
    """Where it is in the sky map."""
    n_truth: int
    """Truths that count."""
    n_truth_ignored: int = 0
    """Truths that are neither hit nor miss."""
    n_detections: int
    """Detections with a footprint."""
    n_skipped: int = 0
    """Records left out: parents, and those without a footprint or a score."""
    seconds: Float = math.nan
    """Time that the detection took; NaN where it is not known."""
    megapixels: Float = math.nan
    """Pixels of the patch, in millions; NaN where it is not known."""

    @property
    def name(self) -> str:
        """Name of the patch in tables and errors (`str`)."""
        return f"{self.tract},{self.patch}"


class EvaluationMetrics(_Stored):
    """All figures of an evaluation."""

    package_version: str
    """Version of this package."""
    software: dict[str, str]
    """Versions of Python and of the packages that matter."""
    name: str
    """Name of the evaluation."""
    catalog: str = ""
    """Dataset type of the catalogue that was judged."""
    runs: list[str] = []
    """Collections that the catalogues came from."""
    models: list[str] = []
    """Names of the networks that made them, where known."""
    config: dict[str, Any] = {}
    """Configuration of the evaluation."""
    skymap: str = ""
    """Name of the sky map."""
    instrumental: list[str] = []
    """Bands of images whose zero point is not known: fluxes are counts, and magnitudes 31.4 - 2.5 log10 of
    these."""
    patches: list[PatchSummary]
    """The patches, in the order that the number ``image`` of the match table and of the outcomes refers
    to."""
    n_truth: dict[str, list[int]] = {}
    """Truths that count of each patch, by class."""
    iou_thresholds: list[float] = []
    """Thresholds of the average precision."""
    level: float
    """Probability between the limits of the figures."""
    n_samples: int
    """Resamplings of the bootstrap."""
    values: list[MetricValue]
    """The figures."""
    tables: dict[str, dict[str, list[Float]]] = {}
    """Figures in bins: columns by name, by the name of the table, such as ``completeness/mag/star``."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the patches (`tuple` [`str`])."""
        return tuple(patch.name for patch in self.patches)

    def select(self, **wanted: Any) -> list[MetricValue]:
        """Give the figures with some properties, in their order.

        Parameters
        ----------
        **wanted
            Fields of `MetricValue` and their values.
        """
        return [value for value in self.values if all(getattr(value, k) == v for k, v in wanted.items())]

    def get(self, name: str, **wanted: Any) -> MetricValue:
        """Give one figure; `KeyError` is raised if there is no such one.

        Parameters
        ----------
        name : `str`
            Its name.
        **wanted
            Fields of `MetricValue`; those not given have their defaults.
        """
        defaults = {"object_class": "all", "definition": "", "area": "all", "iou": None, "band": ""}
        found = self.select(name=name, **(defaults | wanted))
        if len(found) != 1:
            known = sorted({value.name for value in self.values})
            raise KeyError(f"There are {len(found)} figures {name!r} with {wanted}; the names are {known}.")
        return found[0]


class GalleryEntry(_Model):
    """A blend and what was made of it, for a page."""

    kind: str
    """``busiest``, ``best`` or ``worst`` for blends, ``failure`` for a source."""
    tract: int
    patch: int
    """Where it is."""
    caption: str
    """What to write under it."""
    quality: float
    """Panoptic quality of the blend, from 0 to 1; of a source its flux (nJy)."""
    size: int
    """Side of the square cut-out (px)."""
    x0: int
    y0: int
    """First pixel of the cut-out in the frame of the tract."""
    image: str
    """Picture, PNG in base64, first row at the top."""
    residual: str = ""
    """Picture of the residual, or empty."""
    model: str = ""
    """Picture of the models, or empty."""
    children: list[tuple[str, str]] = []
    """What to write above the model of each child, and its picture."""
    sky: tuple[float, float] | None = None
    """Right ascension and declination of its middle (deg)."""
    truth_outlines: list[list[list[tuple[float, float]]]]
    detection_outlines: list[list[list[tuple[float, float]]]]
    """For each source its closed lines, each a list of (x, y) in pixels of the cut-out, the first at the
    bottom left; its centre is (0, 0)."""
    truth_is_star: list[bool]
    detection_is_star: list[bool]
    """Their classes."""


class EvaluationGallery(_Stored):
    """The best and the worst blends of an evaluation."""

    bands: list[str] = []
    """Bands of the pictures, the reddest first."""
    instrumental: list[str] = []
    """Those of them in which fluxes are counts."""
    pixel_scale: Float = math.nan
    """Pixel scale (arcsec); NaN where it is not known."""
    residual_range: float = 10.0
    """Residual at the ends of the colour scale, in units of the noise."""
    entries: list[GalleryEntry] = []
    """The blends, the most extreme first."""


def outcomes_table(outcomes: Iterable[Outcomes]) -> NDArray[np.void]:
    """Put the outcomes of several classes into one table.

    Parameters
    ----------
    outcomes : `~collections.abc.Iterable` [`Outcomes`]
        Of the same images and thresholds, of different classes.

    Returns
    -------
    table : `numpy.ndarray`
        Structured array, one row per detection and class: ``label`` (-1 for
        all classes as one), ``image``, ``score``, and ``hit`` and ``false``,
        whose bit t stands for the threshold t, of which there are 31 at most.
    """
    dtype = np.dtype([("label", "i4"), ("image", "i4"), ("score", "f8"), ("hit", "i4"), ("false", "i4")])
    parts = [np.zeros(0, dtype=dtype)]
    for one in outcomes:
        if len(one.thresholds) > 31:
            raise ValueError(
                f"{len(one.thresholds)} thresholds do not fit into the 31 bits of the table; give fewer."
            )
        bits = np.left_shift(1, np.arange(len(one.thresholds)), dtype=np.int32)
        part = np.zeros(len(one.scores), dtype=dtype)
        part["label"] = -1 if one.label is None else one.label
        part["image"], part["score"] = one.image, one.scores
        part["hit"], part["false"] = bits @ one.hit, bits @ one.false
        parts.append(part)
    return np.concatenate(parts)


def outcomes_from_table(
    table: Mapping[str, Any] | NDArray[np.void], metrics: EvaluationMetrics, object_class: str = "all"
) -> Outcomes:
    """Read the outcomes of a class, such as for a paired bootstrap, of all sizes.

    Parameters
    ----------
    table : `numpy.ndarray` or `astropy.table.Table`
        Table of `outcomes_table`.
    metrics : `EvaluationMetrics`
        The figures that were computed with it.
    object_class : `str`
        ``all``, ``star`` or ``galaxy``; `ValueError` is raised if the
        evaluation did not separate classes.
    """
    if object_class not in metrics.n_truth:
        raise ValueError(
            f"There are no outcomes of the class {object_class!r}; known are {sorted(metrics.n_truth)}."
        )
    label = CLASS_LABELS[object_class]
    rows = np.asarray(table["label"]) == (-1 if label is None else label)
    shift = np.arange(len(metrics.iou_thresholds))[:, None]

    def unpack(name: str) -> BoolArray:
        return (np.asarray(table[name])[rows].astype(np.int64) >> shift & 1).astype(bool)

    return Outcomes(
        label,
        None,
        np.asarray(metrics.iou_thresholds, dtype=np.float64),
        metrics.names,
        np.asarray(metrics.n_truth[object_class], dtype=np.int64),
        np.asarray(table["image"])[rows].astype(np.int64),
        np.asarray(table["score"], dtype=np.float64)[rows],
        unpack("hit"),
        unpack("false"),
    )


def software_versions() -> dict[str, str]:
    """Give the versions of what the figures depend on, by name.

    They are ``unknown`` for what is not installed as a distribution. Of this
    package run from a checkout, it is the version that stands there.
    """
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = _checkout_version() if name == _DISTRIBUTIONS[0] else "unknown"
    return versions


def _checkout_version() -> str:
    # This module is five levels below the root of a checkout.
    path = Path(__file__).resolve().parents[5] / "pyproject.toml"
    if not path.is_file():
        return "unknown"
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    if project.get("name") != _DISTRIBUTIONS[0]:
        return "unknown"
    return f"{project.get('version', 'unknown')} (checkout)"
