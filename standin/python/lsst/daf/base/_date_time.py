# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""A moment in time, kept as TAI nanoseconds since 1970."""

from __future__ import annotations

import datetime
import enum
import functools
import re
import time
from typing import Any, ClassVar

from lsst.pex.exceptions import DomainError, RuntimeError

__all__ = ["DateTime"]

_NSEC_PER_SEC = 1_000_000_000
_NSEC_PER_DAY = 86.4e12
_EPOCH_IN_MJD = 40587.0
_MJD_TO_JD = 2400000.5
_JD2000 = 2451545.0
_MAX_DAYS = 106751.99
_TT_MINUS_TAI = 32_184_000_000
_ISO = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})T(\d{2}):?(\d{2}):?(\d{2})(?:[.,](\d*))?")


@functools.cache
def _leap_seconds() -> tuple[tuple[int, int], ...]:
    """Return (UTC seconds since 1970, TAI minus UTC in s) from 1972 on."""
    import erfa

    table = erfa.leap_seconds.get()
    result = []
    for year, month, offset in zip(table["year"], table["month"], table["tai_utc"], strict=True):
        if year >= 1972:
            start = datetime.datetime(int(year), int(month), 1, tzinfo=datetime.UTC)
            result.append((int(start.timestamp()), round(float(offset))))
    return tuple(result)


def _tai_minus_utc(nsecs: int, scale_is_utc: bool) -> int:
    """Return TAI minus UTC in nanoseconds at a moment in one of the scales."""
    offset = None
    for start, leap in _leap_seconds():
        if nsecs < (start + (0 if scale_is_utc else leap)) * _NSEC_PER_SEC:
            break
        offset = leap
    if offset is not None:
        return offset * _NSEC_PER_SEC
    drifting = _drifting_offset(nsecs)
    # The offset depends on UTC, which two steps from TAI find to a nanosecond.
    for _ in range(0 if scale_is_utc else 2):
        drifting = _drifting_offset(nsecs - drifting)
    return drifting


def _drifting_offset(nsecs: int) -> int:
    """Return TAI minus UTC in nanoseconds before 1972, when it drifted."""
    import erfa

    # A moment of that day may be rounded to just before it.
    first = -9 * 365 * int(_NSEC_PER_DAY) - 2 * int(_NSEC_PER_DAY)
    days, rest = divmod(max(nsecs, first) if nsecs > first - 1000 else nsecs, int(_NSEC_PER_DAY))
    date = datetime.date(1970, 1, 1) + datetime.timedelta(days=days)
    if date.year < 1961:
        raise DomainError(f"DateTime value too early for UTC-TAI conversion: {nsecs}")
    return int(float(erfa.dat(date.year, date.month, date.day, rest / _NSEC_PER_DAY)) * 1e9 + 0.5)


@functools.total_ordering
class DateTime:
    """A moment in time.

    Can be made of nanoseconds since 1970 (`int`), of a date (`float`) in a
    system, of an ISO 8601 string, or of six integers year to second. Without
    arguments it is invalid.
    """

    class Timescale(enum.Enum):
        """How time runs."""

        TAI = 5
        UTC = 6
        TT = 7

    class DateSystem(enum.Enum):
        """How a date is counted."""

        JD = 0
        MJD = 1
        EPOCH = 2

    TAI = Timescale.TAI
    UTC = Timescale.UTC
    TT = Timescale.TT
    JD = DateSystem.JD
    MJD = DateSystem.MJD
    EPOCH = DateSystem.EPOCH
    invalid_nsecs: ClassVar[int] = -(2**63)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._nsecs = self.invalid_nsecs
        if not args and not kwargs:
            return
        if "nsecs" in kwargs:
            args = (kwargs.pop("nsecs"),)
        elif "date" in kwargs:
            args = (float(kwargs.pop("date")),)
        (first, *rest) = args
        if isinstance(first, float):
            system = rest.pop(0) if rest else kwargs.pop("system", self.MJD)
            scale = rest.pop(0) if rest else kwargs.pop("scale", self.TAI)
            self._set_from_date(first, system, scale)
        elif isinstance(first, str):
            self._set_from_iso(first, rest.pop(0) if rest else kwargs.pop("scale"))
        elif len(rest) >= 5:
            scale = rest.pop() if len(rest) == 6 else kwargs.pop("scale")
            moment = datetime.datetime(*(int(v) for v in args[:6])).replace(tzinfo=datetime.UTC)  # type: ignore[arg-type]
            rest = []
            self._nsecs = self._to_tai(round(moment.timestamp()) * _NSEC_PER_SEC, scale)
        else:
            scale = rest.pop(0) if rest else kwargs.pop("scale", self.TAI)
            nsecs = int(first)
            self._nsecs = nsecs if nsecs == self.invalid_nsecs else self._to_tai(nsecs, scale)
        if rest or kwargs:
            raise TypeError(f"DateTime got arguments that it does not know: {rest} {kwargs}.")

    def _set_from_date(self, date: float, system: DateTime.DateSystem, scale: DateTime.Timescale) -> None:
        if system is self.EPOCH:
            mjd = 365.25 * (date - 2000.0) + _JD2000 - _MJD_TO_JD
        else:
            mjd = date - _MJD_TO_JD if system is self.JD else date
        if not abs(mjd - _EPOCH_IN_MJD) <= _MAX_DAYS:
            raise DomainError(f"MJD too far in the past or future: {mjd}")
        self._nsecs = self._to_tai(int((mjd - _EPOCH_IN_MJD) * _NSEC_PER_DAY), scale)

    def _set_from_iso(self, text: str, scale: DateTime.Timescale) -> None:
        body = text[:-1] if scale is self.UTC and text.endswith("Z") else text
        match = _ISO.fullmatch(body)
        if match is None or (scale is self.UTC) != text.endswith("Z"):
            raise DomainError("Not in acceptable ISO8601 format: " + text)
        year, month, day, hour, minute, second = (int(v) for v in match.groups()[:6])
        moment = datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.UTC)
        fraction = int(((match[7] or "") + "000000000")[:9])
        self._nsecs = self._to_tai(round(moment.timestamp()) * _NSEC_PER_SEC, scale) + fraction

    @classmethod
    def _to_tai(cls, nsecs: int, scale: DateTime.Timescale) -> int:
        if scale is cls.TT:
            return nsecs - _TT_MINUS_TAI
        return nsecs + _tai_minus_utc(nsecs, True) if scale is cls.UTC else nsecs

    def _from_tai(self, scale: DateTime.Timescale) -> int:
        if not self.isValid():
            raise RuntimeError("DateTime not valid")
        if scale is self.TT:
            return self._nsecs + _TT_MINUS_TAI
        return self._nsecs - _tai_minus_utc(self._nsecs, False) if scale is self.UTC else self._nsecs

    @staticmethod
    def now() -> DateTime:
        """Return the present moment."""
        return DateTime(time.time_ns(), DateTime.UTC)

    def isValid(self) -> bool:
        """Tell whether the moment has been set."""
        return self._nsecs != self.invalid_nsecs

    def nsecs(self, scale: DateTime.Timescale = Timescale.TAI) -> int:
        """Return nanoseconds since 1970."""
        return self._from_tai(scale) if self.isValid() else self.invalid_nsecs

    def get(
        self, system: DateTime.DateSystem = DateSystem.MJD, scale: DateTime.Timescale = Timescale.TAI
    ) -> float:
        """Return the date as a number."""
        mjd = self._from_tai(scale) / _NSEC_PER_DAY + _EPOCH_IN_MJD
        if system is self.MJD:
            return mjd
        jd = mjd + _MJD_TO_JD
        return jd if system is self.JD else 2000.0 + (jd - _JD2000) / 365.25

    def toString(self, scale: DateTime.Timescale) -> str:
        """Return the date in ISO 8601 form, with nanoseconds."""
        seconds, fraction = divmod(self._from_tai(scale), _NSEC_PER_SEC)
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:09d}" + ("Z" if scale is self.UTC else "")

    def toPython(self, timescale: DateTime.Timescale | None = None) -> datetime.datetime:
        """Return a naive `datetime.datetime`."""
        nsecs = self._from_tai(self.TAI if timescale is None else timescale)
        return datetime.datetime.fromtimestamp(nsecs / 10**9, datetime.UTC).replace(tzinfo=None)

    def toAstropy(self, timescale: DateTime.Timescale | None = None) -> Any:
        """Return an `astropy.time.Time` in TAI."""
        import astropy.time

        return astropy.time.Time(self.get(self.MJD, self.TAI), scale="tai", format="mjd")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DateTime):
            return NotImplemented
        return self._nsecs == other._nsecs

    def __lt__(self, other: Any) -> bool:
        if not isinstance(other, DateTime):
            return NotImplemented
        return self._nsecs < other._nsecs

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f'DateTime("{self.toString(self.TAI)}", TAI)' if self.isValid() else "DateTime()"

    def __reduce__(self) -> tuple[Any, ...]:
        return DateTime, (self._nsecs,)
