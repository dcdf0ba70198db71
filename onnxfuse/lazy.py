"""Packages whose own start is put off until something of it is needed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from threading import Lock
from types import ModuleType
from typing import Any

_LOADING = Lock()


def part_of(package: str, module: str) -> ModuleType:
    """The module `package.module`, without what the package itself imports when it starts.

    The package is there all the same, for anybody: it starts when something that it lacks is asked of it (PEP 562).

    Raises:
        ModuleNotFoundError: not installed.
    """
    with _LOADING:
        if package not in sys.modules:
            sys.modules[package] = _not_started(package)
        return importlib.import_module(f"{package}.{module}")


def _not_started(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def attribute(wanted: str) -> Any:
        if vars(package).pop("__getattr__", None):
            loader.exec_module(package)
        return getattr(package, wanted)

    vars(package)["__getattr__"] = attribute
    return package
