"""Packages whose own start is put off until something of it is needed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from threading import Lock, RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec

_LOADING = Lock()
_POT = {"ot": (), "ot.lp": (), "ot.utils": ("dist",)}
UNUSED = dict.fromkeys(("numpy.f2py", "numpy.ma", "numpy.polynomial", "numpy.testing"), ())
"""What SciPy takes from NumPy with all the rest of it, and nothing here needs: a tenth of a second."""


def network_simplex() -> ModuleType:
    """POT's compiled solver, by which the rest of POT, and what that takes of SciPy, need not be imported: a tenth of a
    second. Small problems are solved in half the time without POT's own look at the arguments."""
    return part_of("ot.lp.emd_wrap", _POT)


def part_of(module: str, later: Mapping[str, Sequence[str]]) -> ModuleType:
    """`module`, without what the modules named in `later` (packages before what is in them) do when they start.

    They are there all the same, for anybody: each starts when something that it lacks is asked of it (PEP 562), or when
    one of the functions that are named with it is called, which a module that starts may take from it without a need.

    Raises:
        ModuleNotFoundError: not installed.
    """
    with _LOADING:
        put_off(later)
        return importlib.import_module(module)


def put_off(later: Mapping[str, Sequence[str]]) -> None:
    """Let modules start when something of them is needed, as in `part_of`; those that are not installed are not there.

    Their packages are imported, since `find_spec` does so.
    """
    for name, functions in later.items():
        spec = None if name in sys.modules else importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            sys.modules[name] = _not_started(spec, spec.loader, functions)
            package, _, last = name.rpartition(".")
            if package:  # a module is an attribute of its package
                setattr(sys.modules[package], last, sys.modules[name])


def _not_started(spec: ModuleSpec, loader: Loader, functions: Sequence[str]) -> ModuleType:
    module, name = importlib.util.module_from_spec(spec), spec.name
    lock, begun = RLock(), False  # a second thread waits until the first has started it

    def attribute(wanted: str) -> Any:
        nonlocal begun
        with lock:
            if not begun:
                begun = True
                loader.exec_module(module)
                if vars(module).get("__getattr__") is attribute:
                    del vars(module)["__getattr__"]
        if wanted in vars(module) or vars(module).get("__getattr__") is not attribute:
            return getattr(module, wanted)
        raise AttributeError(f"module {name!r} has no attribute {wanted!r}")

    vars(module).update({function: _when_called(function, attribute) for function in functions})
    vars(module)["__getattr__"] = attribute
    return module


def _when_called(function: str, attribute: Callable[[str], Any]) -> Callable[..., Any]:
    def started(*values: Any, **named: Any) -> Any:
        return attribute(function)(*values, **named)

    return started
