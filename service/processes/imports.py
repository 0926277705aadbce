"""Imports libraries without what they would load for features of their own that nobody here uses."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType


class _Unused(ModuleType):
    """Has every name, so that whoever imports it finds what it asks for."""

    def __getattr__(self, name: str) -> type:
        return object


def import_without(library: str, module: str) -> None:
    """Import a library with a stand-in for this module of others: 6 to 8 MB of each process for metrics or dashboards.

    The module itself can be imported afterwards.
    """
    sys.modules[module] = _Unused(module)
    try:
        import_module(library)
    finally:
        del sys.modules[module]
