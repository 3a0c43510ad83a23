# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""`Observatory` and `Weather`."""

from __future__ import annotations

__all__ = ["Observatory", "Weather"]

import math

from lsst.geom import Angle
from lsst.pex.exceptions import InvalidParameterError


def _same(a: float, b: float) -> bool:
    """Compare two numbers; not-a-number equals itself."""
    return a == b or (math.isnan(a) and math.isnan(b))


class Observatory:
    """Position of a telescope.

    Parameters
    ----------
    longitude : `lsst.geom.Angle`
        Longitude, positive to the east.
    latitude : `lsst.geom.Angle`
        Latitude.
    elevation : `float`
        Elevation (m).
    """

    def __init__(self, longitude: Angle, latitude: Angle, elevation: float):
        self._longitude, self._latitude, self._elevation = longitude, latitude, float(elevation)

    def getLongitude(self) -> Angle:
        """Return the longitude, positive to the east."""
        return self._longitude

    def getLatitude(self) -> Angle:
        """Return the latitude."""
        return self._latitude

    def getElevation(self) -> float:
        """Return the elevation (m)."""
        return self._elevation

    def setLongitude(self, longitude: Angle) -> None:
        """Set the longitude, positive to the east."""
        self._longitude = longitude

    def setLatitude(self, latitude: Angle) -> None:
        """Set the latitude."""
        self._latitude = latitude

    def setElevation(self, elevation: float) -> None:
        """Set the elevation (m)."""
        self._elevation = float(elevation)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Observatory):
            return NotImplemented
        return (
            _same(self._longitude.asRadians(), other._longitude.asRadians())
            and _same(self._latitude.asRadians(), other._latitude.asRadians())
            and _same(self._elevation, other._elevation)
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        latitude, longitude = self._latitude.asDegrees(), self._longitude.asDegrees()
        return f"{latitude:g}N, {longitude:g}E  {self._elevation:g}"

    __repr__ = __str__


class Weather:
    """Weather during an observation.

    Parameters
    ----------
    airTemperature : `float`
        Temperature of the air outside (degrees Celsius).
    airPressure : `float`
        Pressure of the air outside (Pa).
    humidity : `float`
        Relative humidity (percent).

    Raises
    ------
    lsst.pex.exceptions.InvalidParameterError
        Raised if the humidity is negative.
    """

    def __init__(self, airTemperature: float, airPressure: float, humidity: float):
        if humidity < 0:
            raise InvalidParameterError(f"Relative humidity = {humidity} must not be negative")
        self._temperature = float(airTemperature)
        self._pressure = float(airPressure)
        self._humidity = float(humidity)

    def getAirTemperature(self) -> float:
        """Return the temperature of the air (degrees Celsius)."""
        return self._temperature

    def getAirPressure(self) -> float:
        """Return the pressure of the air (Pa)."""
        return self._pressure

    def getHumidity(self) -> float:
        """Return the relative humidity (percent)."""
        return self._humidity

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Weather):
            return NotImplemented
        return (
            _same(self._temperature, other._temperature)
            and _same(self._pressure, other._pressure)
            and _same(self._humidity, other._humidity)
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"Weather({self._temperature:g}, {self._pressure:g}, {self._humidity:g})"

    __repr__ = __str__
