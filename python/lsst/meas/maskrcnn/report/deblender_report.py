# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The part of a report that sets two deblenders side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..compare.summary import DIFFERENCE
from ..metrics.bootstrap import paired_bootstrap, ratio_statistic
from ..metrics.evaluation_metrics import EvaluationMetrics, MetricValue
from .report_page import Paragraph, Part, Table, Value

_COUNTS = frozenset(
    "sources parents parents_blended only_here without_mask skipped failed not_converged matched blends "
    "blends_split_same blends_split_more blends_split_less".split()
)
_SUMS = _COUNTS | {"seconds"}


def deblender_parts(comparisons: Sequence[EvaluationMetrics], n_samples: int = 1000) -> list[Part]:
    """Lay out comparisons of the same two deblenders in some patches, which are resampled if several."""
    if not comparisons:
        return []
    kinds = sorted({one.catalog for one in comparisons})
    if len(kinds) != 1 or kinds[0].count(",") != 1:
        raise ValueError(
            f"The comparisons are of {kinds}; put those of one pair of deblenders on a page, such as by "
            "another connections.outputName for each pair."
        )
    first, second = kinds[0].split(",")
    values = [{one.key: one for one in comparison.values} for comparison in comparisons]
    # In the order in which they were computed.
    keys = list(dict.fromkeys(key for found in values for key in found))
    rows, shared = [], []
    for key in keys:
        name, _, definition, _, _, band = key
        if definition == first:
            pair = [key, (*key[:2], second, *key[3:])]
            both = [[found[one] for found in values if one in found] for one in pair]
            difference, p_value = _difference(values, key, second, n_samples)
            rows.append([_title(name), band, *(_total(name, part) for part in both), difference, p_value])
        elif definition == "":
            every = [found[key] for found in values if key in found]
            shared.append([_title(name), band, _total(name, every)])
    several = len(comparisons) > 1
    how = "Means over patches weighted by the number of sources, and errors by resampling patches."
    how = how if several else "One patch: errors by resampling its blends."
    return [
        Paragraph(
            f"{first} and {second} on {len(comparisons)} patch{'es' if several else ''}. Differences are "
            f"{first} minus {second}; p is the probability of one as large by chance."
        ),
        Table("Each deblender", ["Figure", "Band", first, second, "Difference", "p"], rows, note=how),
        Table("Sources and blends of both", ["Figure", "Band", f"{first} to {second}"], shared),
    ]


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize().replace("Iou", "IoU").replace("snr", "S/N")


def _total(name: str, parts: Sequence[MetricValue]) -> Value | str:
    """Sum of counts, else the mean of the patches."""
    known = [one for one in parts if math.isfinite(one.value)]
    if not known:
        return ""
    if name in _SUMS:
        total = sum(one.value for one in known)
        return Value(total, digits=0 if name in _COUNTS else 1)
    weight = np.array([max(one.n, 1) for one in known], dtype=np.float64)
    mean = float(np.average([one.value for one in known], weights=weight))
    return Value(mean, error=known[0].error) if len(known) == 1 else Value(mean)


def _difference(
    values: Sequence[dict[tuple, MetricValue]], key: tuple, second: str, n_samples: int
) -> tuple[Value | str, Value | str]:
    """Difference of a figure and how likely it is by chance."""
    own = (*key[:2], DIFFERENCE, *key[3:])
    if len(values) == 1:
        found, p_value = values[0].get(own), values[0].get((f"{key[0]}_p_value", *own[1:]))
        if found is None or not math.isfinite(found.value):
            return "", ""
        p = "" if p_value is None or not math.isfinite(p_value.value) else Value(p_value.value)
        return Value(found.value, error=found.error), p
    other = (*key[:2], second, *key[3:])
    used = [found for found in values if own in found and key in found and other in found]
    pairs = [(found[key], found[other]) for found in used]
    pairs = [pair for pair in pairs if all(math.isfinite(one.value) for one in pair)]
    if len(pairs) < 2:
        return "", ""
    names = tuple(str(number) for number in range(len(pairs)))
    sides = []
    for side in (1, 0):
        weight = np.array([max(pair[side].n, 1) for pair in pairs], dtype=np.float64)
        sides.append(ratio_statistic(names, weight * np.array([pair[side].value for pair in pairs]), weight))
    result = paired_bootstrap(sides[0], sides[1], np.random.default_rng(1), n_samples)
    difference = result.difference
    value = Value(float(difference.value[0]), error=float(difference.error[0]))
    return value, Value(float(result.p_value[0]))
