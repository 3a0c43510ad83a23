# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lists of flags, and what sets them in records."""

from __future__ import annotations

__all__ = ["FlagDefinition", "FlagDefinitionList", "FlagHandler"]

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from lsst.afw.table import Key

if TYPE_CHECKING:
    from lsst.afw.table import BaseRecord, Schema

    from ._exceptions import MeasurementError


class FlagDefinition:
    """Name and meaning of a flag.

    Parameters
    ----------
    name : `str`
        Name without that of the algorithm.
    doc : `str`
        What it means if the flag is set.
    number : `int`, optional
        Its place in the list of flags.
    """

    number_undefined: ClassVar = 2**64 - 1

    def __init__(self, name: str, doc: str, number: int = number_undefined):
        self.name = name
        self.doc = doc
        self.number = number

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FlagDefinition):
            return NotImplemented
        return (self.name, self.number) == (other.name, other.number)

    __hash__ = None  # type: ignore[assignment]


class FlagDefinitionList:
    """The flags of an algorithm, in order.

    Parameters
    ----------
    flags : iterable of `FlagDefinition`, optional
        Flags to begin with.
    """

    def __init__(self, flags: Iterable[FlagDefinition] = ()):
        self._flags = list(flags)

    @staticmethod
    def getEmptyList() -> FlagDefinitionList:
        """Return a list without flags."""
        return FlagDefinitionList()

    def add(self, name: str, doc: str) -> FlagDefinition:
        """Add a flag and return it."""
        flag = FlagDefinition(name, doc, len(self._flags))
        self._flags.append(flag)
        return flag

    def addFailureFlag(self, doc: str = "General Failure Flag") -> FlagDefinition:
        """Add the flag that is set for every failure."""
        return self.add(FlagHandler.getFailureFlagName(), doc)

    def getDefinition(self, index: int | str) -> FlagDefinition:
        """Return a flag by number or name."""
        if isinstance(index, str):
            for flag in self._flags:
                if flag.name == index:
                    return flag
            raise RuntimeError(f"No Flag Definition for {index}")
        if not 0 <= index < len(self._flags):
            raise IndexError(
                f"Cannot access index {index} of length={len(self._flags)} flag definition list."
            )
        return self._flags[index]

    __getitem__ = getDefinition

    def hasDefinition(self, name: str) -> bool:
        """Tell whether there is a flag of a name."""
        return any(flag.name == name for flag in self._flags)

    def __len__(self) -> int:
        return len(self._flags)

    def __iter__(self) -> Iterator[FlagDefinition]:
        return iter(self._flags)


class FlagHandler:
    """The keys of the flags of an algorithm."""

    def __init__(self) -> None:
        self._keys: list[tuple[str, Any]] = []
        self.failureFlagNumber = FlagDefinition.number_undefined

    @staticmethod
    def getFailureFlagName() -> str:
        """Return the name of the flag that is set for every failure."""
        return "flag"

    @staticmethod
    def addFields(
        schema: Schema,
        prefix: str,
        flagDefs: FlagDefinitionList,
        exclDefs: FlagDefinitionList | None = None,
    ) -> FlagHandler:
        """Add the fields of flags to a schema.

        Parameters
        ----------
        schema : `lsst.afw.table.Schema`
            Schema to add to.
        prefix : `str`
            Name of the algorithm.
        flagDefs : `FlagDefinitionList`
            The flags.
        exclDefs : `FlagDefinitionList`, optional
            Flags to leave out.

        Returns
        -------
        handler : `FlagHandler`
            The keys.
        """
        handler = FlagHandler()
        for i, flag in enumerate(flagDefs):
            if exclDefs is not None and exclDefs.hasDefinition(flag.name):
                handler._keys.append((flag.name, Key["Flag"]()))
                continue
            key = schema.addField(schema.join(prefix, flag.name), type="Flag", doc=flag.doc)
            handler._keys.append((flag.name, key))
            if flag.name == FlagHandler.getFailureFlagName():
                handler.failureFlagNumber = i
        return handler

    def _key(self, i: int | str) -> Any:
        if isinstance(i, str):
            for name, key in self._keys:
                if name == i:
                    return key
            raise RuntimeError(f"No flag named {i}")
        return self._keys[i][1]

    def getFailureFlagNumber(self) -> int:
        """Return the number of the flag that is set for every failure."""
        return self.failureFlagNumber

    def getFlagNumber(self, flagName: str) -> int:
        """Return the number of the flag of a name."""
        for i, (name, key) in enumerate(self._keys):
            if name == flagName and key.isValid():
                return i
        raise RuntimeError(f"No FlagHandler entry for {flagName}")

    def getValue(self, record: BaseRecord, i: int | str) -> bool:
        """Return whether a flag is set."""
        return self._key(i).get(record)

    def setValue(self, record: BaseRecord, i: int | str, value: bool) -> None:
        """Set or clear a flag."""
        self._key(i).set(record, value)

    def handleFailure(self, record: BaseRecord, error: MeasurementError | None = None) -> None:
        """Set the general flag, and the one that an error names."""
        if self.failureFlagNumber != FlagDefinition.number_undefined:
            self.setValue(record, self.failureFlagNumber, True)
        if error is not None and error.getFlagBit() != FlagDefinition.number_undefined:
            self.setValue(record, error.getFlagBit(), True)
