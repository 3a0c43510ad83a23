# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random numbers in the sequence that the GNU Scientific Library makes."""

from __future__ import annotations

__all__ = ["Random", "randomGaussianImage"]

import enum
import functools
import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lsst.pex.exceptions import InvalidParameterError

if TYPE_CHECKING:
    from lsst.afw.image import ImageF

_N_LAYERS = 128
_TAIL = 3.44428647676
"""Where the lowest layer of the ziggurat ends and the tail begins."""
_SCALE = 2**24
_CHUNK = 2**16
"""The least number of words to make at a time."""


class _Algorithm(enum.Enum):
    """Generators of random words."""

    MT19937 = 0


_Algorithm.__name__, _Algorithm.__qualname__ = "Algorithm", "Random.Algorithm"


@functools.cache
def _ziggurat() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the layers of equal area under exp(-x^2 / 2), from the top.

    The ziggurat of Marsaglia and Tsang (2000, J. Stat. Soft. 5, 8) with 128
    layers and 24 random bits for the position.

    Returns
    -------
    widths : `numpy.ndarray`, (128,)
        Half widths of the layers, per unit of the 24-bit number.
    inside : `numpy.ndarray`, (128,)
        24-bit numbers below this one are under the curve for certain.
    heights : `numpy.ndarray`, (129,)
        Upper edges of the layers; the last one is not used.
    """
    # The tail is drawn from an exponential that touches it at its beginning.
    area = math.exp(-0.5 * _TAIL**2) * (_TAIL + 1 / _TAIL)
    edges = np.empty(_N_LAYERS + 1)
    edges[_N_LAYERS - 1] = _TAIL
    # The width of a box with the area and the height of the lowest layer.
    edges[_N_LAYERS] = _TAIL + 1 / _TAIL
    for i in range(_N_LAYERS - 2, 0, -1):
        edges[i] = math.sqrt(-2 * math.log(area / edges[i + 1] + math.exp(-0.5 * edges[i + 1] ** 2)))
    edges[0] = 0.0
    inside = (_SCALE * edges[:-1] / edges[1:]).astype(np.int64)
    return edges[1:] / _SCALE, inside, np.exp(-0.5 * edges**2)


class Random:
    """A generator of random numbers.

    Parameters
    ----------
    algorithm : `Random.Algorithm` or `str`, optional
        Only the Mersenne twister, "MT19937", is here.
    seed : `int`, optional
        The seed; 0 stands for the largest one.

    Raises
    ------
    lsst.pex.exceptions.InvalidParameterError
        Raised for another algorithm.
    """

    Algorithm: ClassVar = _Algorithm
    MT19937: ClassVar = _Algorithm.MT19937

    def __init__(self, algorithm: _Algorithm | str = _Algorithm.MT19937, seed: int = 1):
        if algorithm not in (_Algorithm.MT19937, _Algorithm.MT19937.name):
            raise InvalidParameterError(f"RNG algorithm {algorithm} is not supported; give MT19937.")
        self._seed = int(seed)
        self._bits = np.random.MT19937()
        # The twister takes the lower half of a seed of 64 bits.
        self._bits._legacy_seeding((self._seed or 2**64 - 1) % 2**32)
        self._words = np.empty(0, np.int64)

    def getAlgorithm(self) -> _Algorithm:
        """Return the algorithm."""
        return _Algorithm.MT19937

    def getAlgorithmName(self) -> str:
        """Return the name of the algorithm."""
        return _Algorithm.MT19937.name

    def getSeed(self) -> int:
        """Return the seed."""
        return self._seed

    def _peek(self, n: int) -> np.ndarray:
        """Return the next random words, at least ``n``."""
        missing = n - self._words.size
        if missing > 0:
            fresh = self._bits.random_raw(max(missing, _CHUNK)).astype(np.int64)
            self._words = np.concatenate([self._words, fresh])
        return self._words

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        word = self._peek(1)[0]
        self._words = self._words[1:]
        return float(word) / 2**32

    def uniformPos(self) -> float:
        """Return a number in (0, 1)."""
        value = 0.0
        while value == 0.0:
            value = self.uniform()
        return value

    def flat(self, a: float, b: float) -> float:
        """Return a number in [a, b)."""
        u = self.uniform()
        return a * (1 - u) + b * u

    def gaussian(self) -> float:
        """Return a number of the normal distribution."""
        return float(self._gaussian(1)[0])

    def _gaussian(self, n: int) -> np.ndarray:
        """Return ``n`` numbers of the normal distribution.

        One word makes one number in 98 % of all cases; what lies at the edge
        of a layer takes one more word to decide, and in the tail two more.
        """
        parts = []
        while n > 0:
            # A little more than is needed mostly; the tail looks two ahead.
            words = self._peek(n + n // 32 + 16)[: n + n // 32 + 16]
            values, used = _gaussians(words, n)
            self._words = self._words[used:]
            parts.append(values)
            n -= values.size
        return np.concatenate(parts) if parts else np.empty(0)


def _gaussians(words: np.ndarray, n: int) -> tuple[np.ndarray, int]:
    """Turn random words into at most ``n`` normal numbers.

    Returns
    -------
    values : `numpy.ndarray`
        The numbers.
    used : `int`
        How many of the words they took.
    """
    widths, inside, heights = _ziggurat()
    usable = words.size - 2
    first = words[:usable]
    layer, position = first & 0x7F, first >> 8
    x = position * widths[layer]
    slow = np.flatnonzero(position >= inside[layer])
    tail = layer[slow] == _N_LAYERS - 1
    u1, u2 = words[slow + 1] / 2.0**32, words[slow + 2] / 2.0**32
    below = layer[slow]
    y = heights[below + 1] + (heights[below] - heights[below + 1]) * u1
    x[slow[tail]] = _TAIL - np.log(1 - u1[tail]) / _TAIL
    far = x[slow[tail]]
    y[tail] = np.exp(-_TAIL * (far - 0.5 * _TAIL)) * u2[tail]
    accepted = y < np.exp(-0.5 * x[slow] ** 2)
    begins = np.ones(usable, dtype=bool)
    next_begin = 0
    # Words that decide about another one do not begin a number themselves.
    for at, extra, good in zip(slow.tolist(), (1 + tail).tolist(), accepted.tolist(), strict=True):
        if at < next_begin:
            continue
        next_begin = at + 1 + extra
        begins[at + 1 : next_begin] = False
        begins[at] = good
    found = np.flatnonzero(begins)[:n]
    sign = np.where(first[found] & 0x80, 1.0, -1.0)
    if found.size < n:
        return sign * x[found], max(usable, next_begin)
    last = int(found[-1])
    at = int(np.searchsorted(slow, last))
    extra = 1 + int(tail[at]) if at < slow.size and slow[at] == last else 0
    return sign * x[found], last + 1 + extra


def randomGaussianImage(image: ImageF, rand: Random) -> None:
    """Fill an image with normal random numbers, row by row.

    Parameters
    ----------
    image : `lsst.afw.image.ImageF`
        Image to fill.
    rand : `Random`
        The generator.
    """
    image.array[:, :] = rand._gaussian(image.array.size).reshape(image.array.shape)
