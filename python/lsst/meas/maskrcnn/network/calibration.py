# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calibration of a network's scores to probabilities.

Scores of a network are in the right order, but are no probabilities. A
`Calibration` holds, for the scores and for P(star), a rising curve from one to
the other. It is fitted on scenes that the network was not trained on and is
part of the header of the model file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

_Probability = Annotated[float, Field(ge=0.0, le=1.0)]

_FLOOR = 0.05
# Beyond the outermost cases a curve keeps rising a little, so that no two scores become one.
_RISE = 0.1
_MIN_CASES = 40


class CalibrationCurve(BaseModel):
    """A rising curve through a few points, straight between them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    given: tuple[_Probability, ...]
    """Values of the network, ascending from 0 to 1."""

    probability: tuple[_Probability, ...]
    """Probabilities, ascending; one per ``given``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.given) != len(self.probability) or len(self.given) < 2:
            raise ValueError(
                f"a curve needs two points or more; there are {len(self.given)} in 'given' and "
                f"{len(self.probability)} in 'probability'"
            )
        if self.given[0] != 0.0 or self.given[-1] != 1.0:
            raise ValueError(f"'given' goes from {self.given[0]} to {self.given[-1]}, it must go from 0 to 1")
        for name in ("given", "probability"):
            if (np.diff(getattr(self, name)) <= 0.0).any():
                raise ValueError(f"'{name}' must rise from each point to the next: {getattr(self, name)}")
        return self

    def apply(self, given: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Turn values of the network into probabilities, float32, of the same shape; NaN stays NaN."""
        values = np.interp(np.asarray(given, dtype=np.float64), self.given, self.probability)
        return np.asarray(values, dtype=np.float32)


class Calibration(BaseModel):
    """From the scores, P(star) and P(blend) of a model to probabilities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: CalibrationCurve
    """From the score to the probability that the detection is a source."""

    p_star: CalibrationCurve
    """From P(star) to the probability that a source is a star."""

    p_blend: CalibrationCurve | None = None
    """From P(blend) to the probability that a detection holds more than one source;
    `None` for networks that do not give it."""

    provenance: dict[str, Any] = Field(default_factory=dict)
    """Scenes, rules, and figures before and after."""


def calibrate(
    values: npt.ArrayLike, calibration: Calibration | None, quantity: Literal["score", "p_star", "p_blend"]
) -> npt.NDArray[np.float32]:
    """Turn values of a network into probabilities.

    Values, of any shape, are between 0 and 1 or NaN: ``score``, of being a source; ``p_star``, of being a
    star; ``p_blend``, of being more than one source. Probabilities are float32, of the same shape and in the
    same order of size. Without a calibration, or a curve of the quantity in it, nothing changes.
    """
    curve: CalibrationCurve | None = getattr(calibration, quantity, None)
    return np.asarray(values, dtype=np.float32) if curve is None else curve.apply(values)


def fit_curve(given: npt.ArrayLike, true: npt.ArrayLike, *, n_points: int = 28) -> CalibrationCurve:
    """Fit a curve from a value of the network to how often it is true.

    Cases are values between 0 and 1, (case,), and whether each is true. The curve
    has at most ``n_points`` points, the two ends not among them. A ValueError is raised
    if the lengths differ, something is not between 0 and 1, there are fewer than 40
    cases or they are all of one kind, or the network does not put them in order at all.

    It is centred isotonic regression (Oron & Flournoy 2017,
    Stat. Biopharm. Res. 9, 258) of bins of about equal uncertainty: the
    pool-adjacent-violators solution with each pooled block as one point, in
    its middle; that of scikit-learn, one more dependency, has no such points.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> given = rng.random(20_000)
    >>> curve = fit_curve(given, rng.random(20_000) < given**2)
    >>> bool(abs(curve.apply(0.6) - 0.36) < 0.03)
    True
    """
    x, outcome = np.asarray(given, dtype=np.float64), np.asarray(true, dtype=bool)
    if x.ndim != 1 or x.shape != outcome.shape:
        raise ValueError(f"One outcome per case is needed; given were {x.shape} and {outcome.shape}.")
    if not ((x >= 0.0) & (x <= 1.0)).all():
        raise ValueError("Values to calibrate must lie between 0 and 1.")
    if len(x) < _MIN_CASES or outcome.all() or not outcome.any():
        raise ValueError(
            f"Of {len(x)} cases {int(outcome.sum())} are true; a calibration needs {_MIN_CASES} cases, of "
            "both kinds. Give more scenes."
        )
    return _make_curve(*_fit_isotonic(x, outcome, n_points))


def _make_curve(points: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> CalibrationCurve:
    """Round the points, and go on to 0 and 1."""
    points, values = np.round(points, 8), np.round(values, 6)
    kept = (points > 0.0) & (points < 1.0) & (values > 0.0) & (values < 1.0)
    points, values = points[kept], values[kept]
    kept = np.append(True, np.diff(points) > 0.0) & np.append(True, np.diff(values) > 0.0)
    points, values = points[kept], values[kept]
    if len(points) < 2:
        raise ValueError(
            "The values to calibrate do not rise with the share that is true; they cannot be calibrated."
        )
    low = float((1.0 - _RISE) * values[0])
    high = float(values[-1] + _RISE * (1.0 - values[-1]))
    return CalibrationCurve(given=(0.0, *points.tolist(), 1.0), probability=(low, *values.tolist(), high))


def _fit_isotonic(
    x: npt.NDArray[np.float64], true: npt.NDArray[np.bool_], n_points: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    order = np.argsort(x, kind="stable")
    x, true = x[order], true[order]
    # Most cases are all but certain; more points are wanted where they are not.
    weight = np.cumsum(_FLOOR + x * (1.0 - x))
    bins = np.minimum((weight / weight[-1] * n_points).astype(int), n_points - 1)
    # Equal values belong into one bin, the first of them.
    first = np.unique(x, return_index=True, return_inverse=True)
    bins = bins[first[1]][first[2]]
    count = np.bincount(bins, minlength=n_points).astype(float)
    total = np.bincount(bins, weights=x, minlength=n_points)
    hits = np.bincount(bins, weights=true, minlength=n_points)
    # scipy's isotonic_regression pools shares without the prior, with which they may fall again.
    blocks: list[list[float]] = []
    for block in zip(count, total, hits, strict=True):
        if not block[0]:
            continue
        blocks.append(list(block))
        while len(blocks) > 1 and _share(blocks[-2]) >= _share(blocks[-1]):
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return np.array([b[1] / b[0] for b in blocks]), np.array([_share(b) for b in blocks])


def _share(block: list[float]) -> float:
    # Never quite 0 or 1: some case would prove it wrong (Jeffreys' prior).
    return (block[2] + 0.5) / (block[0] + 1.0)
