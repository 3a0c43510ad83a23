# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Registries of plugins."""

from __future__ import annotations

__all__ = ("PluginMap", "PluginRegistry", "generateAlgorithmName", "register")

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lsst.pex.config import Registry, RegistryField

from .apCorrRegistry import addApCorrName


def generateAlgorithmName(AlgClass: type) -> str:
    """Return the name of an algorithm's plugin: its package and class.

    Parameters
    ----------
    AlgClass : `type`
        Class of the algorithm; ``lsst.meas.base.PsfFluxAlgorithm`` is called
        ``base_PsfFlux``.
    """
    name = AlgClass.__name__.replace("Algorithm", "")
    terms = AlgClass.__module__.split(".")
    # Private modules are no part of the name.
    if len(terms) > 1 and terms[-1].startswith("_"):
        terms.pop()
    if len(terms) > 1 and terms[-1].endswith("Lib"):
        terms.pop()
    for prefix in ("lsst", "meas"):
        if terms[0] == prefix:
            terms.pop(0)
    if name.lower().startswith(terms[-1].lower()):
        terms.pop()
    return f"{'_'.join(terms)}_{name}"


class _Configurable:
    """What a registry holds; calling it tells when a plugin runs.

    Parameters
    ----------
    name : `str`
        Name of the plugin.
    PluginClass : `type`
        Class of the plugin.
    """

    __slots__ = ("PluginClass", "name")

    def __init__(self, name: str, PluginClass: Any):
        self.name = name
        self.PluginClass = PluginClass

    @property
    def ConfigClass(self) -> Any:
        return self.PluginClass.ConfigClass

    def __call__(self, config: Any) -> tuple[float, str, Any, Any]:
        return (self.PluginClass.getExecutionOrder(), self.name, config, self.PluginClass)


class PluginRegistry(Registry):
    """Plugins of one kind by name.

    ``apply`` of its config field returns tuples (execution order, name,
    config, class), which can be sorted before the plugins are made.
    """

    Configurable = _Configurable

    def register(
        self, name: str, PluginClass: Any, shouldApCorr: bool = False, apCorrList: Iterable[str] = ()
    ) -> None:
        """Add a class of plugins.

        Parameters
        ----------
        name : `str`
            Name of the plugin, with which the names of its fields begin.
        PluginClass : `type`
            Class of the plugin.
        shouldApCorr : `bool`, optional
            Whether aperture corrections are made for its flux.
        apCorrList : iterable of `str`, optional
            Prefixes of the fluxes that they are made for; ``shouldApCorr``
            then counts no more.
        """
        Registry.register(self, name, self.Configurable(name, PluginClass))
        prefixes = list(apCorrList)
        if shouldApCorr and not prefixes:
            prefixes = [name]
        for prefix in prefixes:
            addApCorrName(prefix)

    def makeField(  # type: ignore[override]
        self, doc: str, default: Any = None, optional: bool = False, multi: bool = False
    ) -> Any:
        """Return a config field that chooses plugins."""
        return RegistryField(doc, self, default, optional, multi)


def register(name: str, shouldApCorr: bool = False, apCorrList: Iterable[str] = ()) -> Callable[[type], type]:
    """Decorate a class of plugins to add it to its registry.

    Parameters
    ----------
    name : `str`
        Name of the plugin.
    shouldApCorr, apCorrList
        See `PluginRegistry.register`.
    """

    def decorate(PluginClass: Any) -> Any:
        PluginClass.registry.register(name, PluginClass, shouldApCorr=shouldApCorr, apCorrList=apCorrList)
        return PluginClass

    return decorate


class PluginMap(OrderedDict):
    """The plugins of a task by name, in the order in which they run."""

    def iter(self) -> Iterator[Any]:
        """Return the plugins that measure sources one by one."""
        return (plugin for plugin in self.values() if plugin.config.doMeasure)

    def iterN(self) -> Iterator[Any]:
        """Return the plugins that measure several sources together."""
        return (plugin for plugin in self.values() if plugin.config.doMeasureN)
