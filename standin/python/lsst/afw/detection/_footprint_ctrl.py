# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Settings of growing footprints and of taking pixels into them."""

from __future__ import annotations

__all__ = ["FootprintControl", "HeavyFootprintCtrl"]

import enum
from typing import Any, ClassVar


class FootprintControl:
    """Which way footprints grow.

    Parameters
    ----------
    circular : `bool`, optional
        Grow in all directions.
    isotropic : `bool`, optional
        If circular, grow by a disc and not by a diamond.
    left, right, up, down : `bool`, optional
        Grow in these directions only; all four are given, or none.
    """

    _NAMES = ("circular", "isotropic", "left", "right", "up", "down")

    def __init__(self, *args: bool, **kwargs: bool):
        for names, required in (
            ((), 0),
            (("circular", "isotropic"), 1),
            (("left", "right", "up", "down"), 4),
        ):
            given = dict(zip(names, args, strict=False))
            if len(args) > len(names) or set(kwargs) - set(names) or set(kwargs) & set(given):
                continue
            given |= kwargs
            if len(given) < required or (not names and given):
                continue
            break
        else:
            raise TypeError(
                "FootprintControl takes no arguments, (circular, isotropic=False) or "
                f"(left, right, up, down); got {args}, {kwargs}."
            )
        if "circular" in given:
            given.setdefault("isotropic", False)
        # None is "not set", which counts as False.
        self._values: dict[str, bool | None] = dict.fromkeys(self._NAMES)
        self._values.update({name: bool(value) for name, value in given.items()})

    def _get(self, name: str) -> tuple[bool, bool]:
        value = self._values[name]
        return value is not None, bool(value)

    def growCircular(self, val: bool) -> None:
        """Set whether to grow in all directions."""
        self._values["circular"] = bool(val)

    def growIsotropic(self, val: bool) -> None:
        """Set whether to grow by a disc; this also sets circular."""
        self._values["circular"] = True
        self._values["isotropic"] = bool(val)

    def growLeft(self, val: bool) -> None:
        """Set whether to grow towards smaller x."""
        self._values["left"] = bool(val)

    def growRight(self, val: bool) -> None:
        """Set whether to grow towards larger x."""
        self._values["right"] = bool(val)

    def growUp(self, val: bool) -> None:
        """Set whether to grow towards larger y."""
        self._values["up"] = bool(val)

    def growDown(self, val: bool) -> None:
        """Set whether to grow towards smaller y."""
        self._values["down"] = bool(val)

    def isCircular(self) -> tuple[bool, bool]:
        """Return whether it is set, and its value."""
        return self._get("circular")

    def isIsotropic(self) -> tuple[bool, bool]:
        """Return whether it is set, and its value."""
        return self._get("isotropic")

    def isLeft(self) -> tuple[bool, bool]:
        """Return whether it is set, and its value."""
        return self._get("left")

    def isRight(self) -> tuple[bool, bool]:
        """Return whether it is set, and its value."""
        return self._get("right")

    def isUp(self) -> tuple[bool, bool]:
        """Return whether it is set, and its value."""
        return self._get("up")

    def isDown(self) -> tuple[bool, bool]:
        """Return whether it is set, and its value."""
        return self._get("down")


class ModifySource(enum.Enum):
    """What happens to the image that a heavy footprint is taken from."""

    NONE = 0
    SET = 1


ModifySource.__qualname__ = "HeavyFootprintCtrl.ModifySource"


class HeavyFootprintCtrl:
    """What happens to the image that a heavy footprint is taken from.

    Parameters
    ----------
    modifySource : `HeavyFootprintCtrl.ModifySource`, optional
        ``NONE`` leaves the image alone. ``SET`` sets the image and variance
        pixels to `getImageVal` and `getVarianceVal` and clears the mask bits
        `getMaskVal`.
    """

    ModifySource: ClassVar = ModifySource
    NONE: ClassVar = ModifySource.NONE
    SET: ClassVar = ModifySource.SET

    def __init__(self, modifySource: Any = ModifySource.NONE):
        self._modifySource = modifySource
        self._imageVal = 0.0
        self._maskVal = 0
        self._varianceVal = 0.0

    def getModifySource(self) -> Any:
        """Return what happens to the image."""
        return self._modifySource

    def setModifySource(self, modifySource: Any) -> None:
        """Set what happens to the image."""
        self._modifySource = modifySource

    def getImageVal(self) -> float:
        """Return the value left in the image plane."""
        return self._imageVal

    def setImageVal(self, imageVal: float) -> None:
        """Set the value left in the image plane."""
        self._imageVal = float(imageVal)

    def getMaskVal(self) -> int:
        """Return the bits that are cleared in the mask plane."""
        return self._maskVal

    def setMaskVal(self, maskVal: int) -> None:
        """Set the bits that are cleared in the mask plane."""
        self._maskVal = int(maskVal)

    def getVarianceVal(self) -> float:
        """Return the value left in the variance plane."""
        return self._varianceVal

    def setVarianceVal(self, varianceVal: float) -> None:
        """Set the value left in the variance plane."""
        self._varianceVal = float(varianceVal)
