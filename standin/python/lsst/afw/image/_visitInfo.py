# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts about the observation that an image comes from."""

from __future__ import annotations

__all__ = ["RotType", "VisitInfo", "setVisitInfoMetadata", "stripVisitInfoKeywords"]

import enum
import math
from typing import Any

from lsst.afw.coord import Observatory, Weather
from lsst.afw.typehandling import Storable
from lsst.daf.base import DateTime
from lsst.geom import Angle, SpherePoint, degrees, radians
from lsst.pex.exceptions import RuntimeError

_NAN = float("nan")


class RotType(enum.Enum):
    """What a rotation angle refers to."""

    UNKNOWN = 0
    SKY = 1
    HORIZON = 2
    MOUNT = 3

    def __int__(self) -> int:
        return int(self.value)


def _nan_angle() -> Angle:
    return _NAN * radians


def _nan_point() -> SpherePoint:
    return SpherePoint(_nan_angle(), _nan_angle())


_STRINGS = {
    "instrumentLabel": "INSTRUMENT",
    "observationType": "OBSTYPE",
    "scienceProgram": "PROGRAM",
    "observationReason": "REASON",
    "object": "OBJECT",
}

_KEYWORDS = (
    "EXPTIME",
    "DARKTIME",
    "DATE-AVG",
    "TIMESYS",
    "TIME-MID",
    "MJD-AVG-UT1",
    "AVG-ERA",
    "BORE-RA",
    "BORE-DEC",
    "BORE-AZ",
    "BORE-ALT",
    "BORE-AIRMASS",
    "BORE-ROTANG",
    "ROTTYPE",
    "OBS-LONG",
    "OBS-LAT",
    "OBS-ELEV",
    "AIRTEMP",
    "AIRPRESS",
    "HUMIDITY",
    "INSTRUMENT",
    "IDNUM",
    "FOCUSZ",
    "OBSTYPE",
    "PROGRAM",
    "REASON",
    "OBJECT",
    "HAS-SIMULATED-CONTENT",
)

_FIELDS = (
    "exposureTime",
    "darkTime",
    "date",
    "ut1",
    "era",
    "boresightRaDec",
    "boresightAzAlt",
    "boresightAirmass",
    "boresightRotAngle",
    "rotType",
    "observatory",
    "weather",
    "instrumentLabel",
    "id",
    "focusZ",
    "observationType",
    "scienceProgram",
    "observationReason",
    "object",
    "hasSimulatedContent",
)


class VisitInfo(Storable):
    """Facts about the observation that an image comes from.

    Parameters
    ----------
    exposureTime, darkTime : `float`, optional
        Exposure time and time from flush to readout (s).
    date : `lsst.daf.base.DateTime`, optional
        TAI date of the middle of the observation.
    ut1 : `float`, optional
        UT1 date of the middle of the observation (MJD).
    era : `lsst.geom.Angle`, optional
        Earth rotation angle.
    boresightRaDec, boresightAzAlt : `lsst.geom.SpherePoint`, optional
        ICRS and refracted apparent topocentric position of the boresight.
    boresightAirmass : `float`, optional
        Airmass at the boresight.
    boresightRotAngle : `lsst.geom.Angle`, optional
        Rotation angle.
    rotType : `RotType`, optional
        What the rotation angle refers to.
    observatory : `lsst.afw.coord.Observatory`, optional
        Position of the telescope.
    weather : `lsst.afw.coord.Weather`, optional
        The weather.
    instrumentLabel : `str`, optional
        Short name of the instrument.
    id : `int`, optional
        Identifier of the observation.
    focusZ : `float`, optional
        Defocal distance (mm).
    observationType, scienceProgram, observationReason, object : `str`, \
            optional
        Kind, programme, reason and target.
    hasSimulatedContent : `bool`, optional
        Whether any part was simulated.

    Notes
    -----
    ``VisitInfo(metadata)`` reads a `lsst.daf.base.PropertySet`, and
    ``VisitInfo(visitInfo)`` copies.
    """

    _values: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any):
        if args and len(args) + len(kwargs) == 1 and hasattr(args[0], "paramNames"):
            kwargs, args = _values_from_metadata(args[0]), ()
        elif len(kwargs) == 1 and not args and "metadata" in kwargs:
            kwargs = _values_from_metadata(kwargs["metadata"])
        elif len(args) == 1 and isinstance(args[0], VisitInfo):
            kwargs, args = dict(args[0]._values), ()
        if len(args) > len(_FIELDS):
            raise TypeError(f"VisitInfo takes at most {len(_FIELDS)} arguments, got {len(args)}.")
        values: dict[str, Any] = {
            "exposureTime": _NAN,
            "darkTime": _NAN,
            "date": DateTime(),
            "ut1": _NAN,
            "era": _nan_angle(),
            "boresightRaDec": _nan_point(),
            "boresightAzAlt": _nan_point(),
            "boresightAirmass": _NAN,
            "boresightRotAngle": _nan_angle(),
            "rotType": RotType.UNKNOWN,
            "observatory": Observatory(_nan_angle(), _nan_angle(), _NAN),
            "weather": Weather(_NAN, _NAN, _NAN),
            "id": 0,
            "focusZ": _NAN,
            "hasSimulatedContent": False,
            **{name: "" for name in _STRINGS},
        }
        given = dict(zip(_FIELDS, args, strict=False))
        unknown = (set(kwargs) - set(_FIELDS)) | (set(kwargs) & set(given))
        if unknown:
            raise TypeError(f"VisitInfo got unknown or repeated arguments: {sorted(unknown)}.")
        values.update(given, **kwargs)
        self._values = values

    # --------------------------------------------------------------- getters

    def getExposureTime(self) -> float:
        """Return the exposure time (s)."""
        return self._values["exposureTime"]

    def getDarkTime(self) -> float:
        """Return the time from flush to readout (s)."""
        return self._values["darkTime"]

    def getDate(self) -> DateTime:
        """Return the date of the middle of the observation."""
        return self._values["date"]

    def getUt1(self) -> float:
        """Return the UT1 date (MJD)."""
        return self._values["ut1"]

    def getEra(self) -> Angle:
        """Return the Earth rotation angle."""
        return self._values["era"]

    def getBoresightRaDec(self) -> SpherePoint:
        """Return the ICRS position of the boresight."""
        return self._values["boresightRaDec"]

    def getBoresightAzAlt(self) -> SpherePoint:
        """Return azimuth and altitude of the boresight."""
        return self._values["boresightAzAlt"]

    def getBoresightAirmass(self) -> float:
        """Return the airmass at the boresight."""
        return self._values["boresightAirmass"]

    def getBoresightRotAngle(self) -> Angle:
        """Return the rotation angle."""
        return self._values["boresightRotAngle"]

    def getRotType(self) -> RotType:
        """Return what the rotation angle refers to."""
        return self._values["rotType"]

    def getObservatory(self) -> Observatory:
        """Return the position of the telescope."""
        return self._values["observatory"]

    def getWeather(self) -> Weather:
        """Return the weather."""
        return self._values["weather"]

    def getInstrumentLabel(self) -> str:
        """Return the short name of the instrument."""
        return self._values["instrumentLabel"]

    def getId(self) -> int:
        """Return the identifier of the observation."""
        return self._values["id"]

    def getFocusZ(self) -> float:
        """Return the defocal distance (mm)."""
        return self._values["focusZ"]

    def getObservationType(self) -> str:
        """Return the kind of observation."""
        return self._values["observationType"]

    def getScienceProgram(self) -> str:
        """Return the programme."""
        return self._values["scienceProgram"]

    def getObservationReason(self) -> str:
        """Return the reason of the observation."""
        return self._values["observationReason"]

    def getObject(self) -> str:
        """Return the target."""
        return self._values["object"]

    def getHasSimulatedContent(self) -> bool:
        """Tell whether any part was simulated."""
        return self._values["hasSimulatedContent"]

    def getLocalEra(self) -> Angle:
        """Return the Earth rotation angle at the telescope."""
        return self.getEra() + self.getObservatory().getLongitude()

    def getBoresightHourAngle(self) -> Angle:
        """Return the hour angle of the boresight."""
        return self.getLocalEra() - self.getBoresightRaDec()[0]

    def getBoresightParAngle(self) -> Angle:
        """Return the parallactic angle of the boresight.

        The angle between the celestial pole and the zenith, from the hour
        angle, declination and latitude (Meeus 1998, eq. 14.1).
        """
        hour = self.getBoresightHourAngle().asRadians()
        dec = self.getBoresightRaDec()[1].asRadians()
        latitude = self.getObservatory().getLatitude().asRadians()
        x = math.cos(dec) * math.tan(latitude) - math.sin(dec) * math.cos(hour)
        return math.atan2(math.sin(hour), x) * radians

    exposureTime = property(getExposureTime)
    darkTime = property(getDarkTime)
    date = property(getDate)
    ut1 = property(getUt1)
    era = property(getEra)
    boresightRaDec = property(getBoresightRaDec)
    boresightAzAlt = property(getBoresightAzAlt)
    boresightAirmass = property(getBoresightAirmass)
    boresightRotAngle = property(getBoresightRotAngle)
    boresightParAngle = property(getBoresightParAngle)
    boresightHourAngle = property(getBoresightHourAngle)
    localEra = property(getLocalEra)
    rotType = property(getRotType)
    observatory = property(getObservatory)
    weather = property(getWeather)
    instrumentLabel = property(getInstrumentLabel)
    id = property(getId)
    focusZ = property(getFocusZ)
    observationType = property(getObservationType)
    scienceProgram = property(getScienceProgram)
    observationReason = property(getObservationReason)
    object = property(getObject)
    hasSimulatedContent = property(getHasSimulatedContent)

    # --------------------------------------------------------------- general

    def copyWith(self, **kwargs: Any) -> VisitInfo:
        """Return a copy with some values replaced.

        Parameters
        ----------
        **kwargs
            Arguments of the constructor; `None` keeps the present value.

        Returns
        -------
        visitInfo : `VisitInfo`
            The copy.
        """
        unknown = set(kwargs) - set(_FIELDS)
        if unknown:
            raise TypeError(f"copyWith got unknown arguments: {sorted(unknown)}.")
        new = {name: value for name, value in kwargs.items() if value is not None}
        return VisitInfo(**{**self._values, **new})

    def isPersistable(self) -> bool:
        """Tell whether it can be written to FITS (always)."""
        return True

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, VisitInfo):
            return NotImplemented
        return all(_same(self._values[name], other._values[name]) for name in _FIELDS)

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> VisitInfo:
        return self

    def __deepcopy__(self, memo: Any = None) -> VisitInfo:
        return self

    def __repr__(self) -> str:
        v = self._values
        date = v["date"].toString(DateTime.TAI) if v["date"].isValid() else "<invalid>"
        return (
            f"VisitInfo(exposureTime={v['exposureTime']:g}, darkTime={v['darkTime']:g}, date={date}, "
            f"UT1={v['ut1']:g}, ERA={v['era']}, boresightRaDec={v['boresightRaDec']}, "
            f"boresightAzAlt={v['boresightAzAlt']}, boresightAirmass={v['boresightAirmass']:g}, "
            f"boresightRotAngle={v['boresightRotAngle']}, rotType={int(v['rotType'])}, "
            f"observatory={v['observatory']}, weather={v['weather']}, "
            f"instrumentLabel='{v['instrumentLabel']}', id={v['id']}, focusZ={v['focusZ']:g}, "
            f"observationType='{v['observationType']}', scienceProgram='{v['scienceProgram']}', "
            f"observationReason='{v['observationReason']}', object='{v['object']}', "
            f"hasSimulatedContent={'true' if v['hasSimulatedContent'] else 'false'})"
        )

    __str__ = __repr__


def _same(a: Any, b: Any) -> bool:
    """Compare two values; those that are not finite are equal."""
    if isinstance(a, SpherePoint):
        return (not a.isFinite() and not b.isFinite()) or a == b
    if isinstance(a, Angle):
        a, b = a.asRadians(), b.asRadians()
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return bool(a == b)


def _values_from_metadata(metadata: Any) -> dict[str, Any]:
    """Read the constructor's arguments from FITS keys."""

    def raw(key: str) -> Any:
        return metadata.getScalar(key) if key in metadata else None

    def number(key: str) -> float:
        value = raw(key)
        return float(value) if isinstance(value, int | float) else _NAN

    def angle(key: str) -> Angle:
        return number(key) * degrees

    values: dict[str, Any] = {
        "darkTime": number("DARKTIME"),
        "ut1": number("MJD-AVG-UT1"),
        "era": angle("AVG-ERA"),
        "boresightRaDec": SpherePoint(angle("BORE-RA"), angle("BORE-DEC")),
        "boresightAzAlt": SpherePoint(angle("BORE-AZ"), angle("BORE-ALT")),
        "boresightAirmass": number("BORE-AIRMASS"),
        "boresightRotAngle": angle("BORE-ROTANG"),
        "observatory": Observatory(angle("OBS-LONG"), angle("OBS-LAT"), number("OBS-ELEV")),
        "weather": Weather(number("AIRTEMP"), number("AIRPRESS"), number("HUMIDITY")),
        "focusZ": number("FOCUSZ"),
    }
    for name, key in _STRINGS.items():
        value = raw(key)
        values[name] = "" if value is None else str(value)
    if raw("IDNUM") is not None:
        values["id"] = int(raw("IDNUM"))
    if raw("EXPTIME") is not None:
        # Some old exposures hold the exposure time as a string.
        values["exposureTime"] = float(raw("EXPTIME"))
    if raw("HAS-SIMULATED-CONTENT") is not None:
        values["hasSimulatedContent"] = bool(raw("HAS-SIMULATED-CONTENT"))
    if raw("ROTTYPE") is not None:
        name = str(raw("ROTTYPE")).strip()
        if name not in RotType.__members__:
            raise RuntimeError(f'Unknown RotType name: "{name}"')
        values["rotType"] = RotType[name]
    if raw("DATE-AVG") is not None:
        system = raw("TIMESYS")
        if system is None or str(system).rstrip() != "TAI":
            raise RuntimeError(
                f'TIMESYS = "{system}"; VisitInfo requires TIMESYS to exist and to equal "TAI"'
            )
        values["date"] = DateTime(str(raw("DATE-AVG")).rstrip(), DateTime.TAI)
    elif raw("TIME-MID") is not None:
        # The key's comment in old files says TAI; the values were UTC.
        values["date"] = DateTime(str(raw("TIME-MID")).rstrip(), DateTime.UTC)
    return values


def setVisitInfoMetadata(metadata: Any, visitInfo: VisitInfo) -> None:
    """Write a VisitInfo as FITS keys.

    Parameters
    ----------
    metadata : `lsst.daf.base.PropertyList`
        Header to fill. Values that are not finite or empty are left out.
    visitInfo : `VisitInfo`
        What to write.
    """

    def number(key: str, value: float) -> None:
        if math.isfinite(value):
            metadata.set(key, float(value))

    def angle(key: str, value: Angle) -> None:
        number(key, value.asDegrees())

    def string(key: str, value: str) -> None:
        if value:
            metadata.set(key, value)

    number("EXPTIME", visitInfo.exposureTime)
    number("DARKTIME", visitInfo.darkTime)
    if visitInfo.date.isValid():
        metadata.set(
            "DATE-AVG", visitInfo.date.toString(DateTime.TAI), comment="TAI date at middle of observation"
        )
        metadata.set("TIMESYS", "TAI")
    number("MJD-AVG-UT1", visitInfo.ut1)
    angle("AVG-ERA", visitInfo.era)
    angle("BORE-RA", visitInfo.boresightRaDec[0])
    angle("BORE-DEC", visitInfo.boresightRaDec[1])
    angle("BORE-AZ", visitInfo.boresightAzAlt[0])
    angle("BORE-ALT", visitInfo.boresightAzAlt[1])
    number("BORE-AIRMASS", visitInfo.boresightAirmass)
    angle("BORE-ROTANG", visitInfo.boresightRotAngle)
    metadata.set("ROTTYPE", visitInfo.rotType.name, comment="Type of rotation angle")
    angle("OBS-LONG", visitInfo.observatory.getLongitude())
    angle("OBS-LAT", visitInfo.observatory.getLatitude())
    number("OBS-ELEV", visitInfo.observatory.getElevation())
    number("AIRTEMP", visitInfo.weather.getAirTemperature())
    number("AIRPRESS", visitInfo.weather.getAirPressure())
    number("HUMIDITY", visitInfo.weather.getHumidity())
    string("INSTRUMENT", visitInfo.instrumentLabel)
    if visitInfo.id != 0:
        metadata.set("IDNUM", int(visitInfo.id), comment="identifier of this full focal plane exposure")
    number("FOCUSZ", visitInfo.focusZ)
    string("OBSTYPE", visitInfo.observationType)
    string("PROGRAM", visitInfo.scienceProgram)
    string("REASON", visitInfo.observationReason)
    string("OBJECT", visitInfo.object)
    metadata.set(
        "HAS-SIMULATED-CONTENT",
        bool(visitInfo.hasSimulatedContent),
        comment="Was any part of this observation simulated?",
    )


def stripVisitInfoKeywords(metadata: Any) -> int:
    """Remove the keys of a VisitInfo from a header.

    Parameters
    ----------
    metadata : `lsst.daf.base.PropertySet`
        Header to change.

    Returns
    -------
    count : `int`
        How many keys were removed.
    """
    present = [key for key in _KEYWORDS if key in metadata]
    for key in present:
        metadata.remove(key)
    return len(present)
