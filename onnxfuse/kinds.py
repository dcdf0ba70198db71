"""What kind of value the parameters of the public functions take, by their annotations."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar, cast

import numpy as np
from onnx import ModelProto

from .errors import UsageError, shown
from .plan import Plan

F = TypeVar("F", bound=Callable[..., Any])


def _flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not _flag(value)


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not _flag(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _path(value: Any) -> bool:
    return _text(value) or isinstance(value, os.PathLike)


def _each(value: Any, fits: Callable[[Any], bool]) -> bool:
    listed = isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))
    return listed and all(fits(item) for item in value)


def _by_name(value: Any, fits: Callable[[Any], bool] = lambda item: True) -> bool:
    return isinstance(value, Mapping) and all(_text(name) and fits(item) for name, item in value.items())


KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "None": (lambda v: v is None, "None"),
    "bool": (_flag, "True or False"),
    "int": (_whole, "a whole number"),
    "float": (_number, "a number"),
    "str": (_text, "a text"),
    "PathLike": (_path, "a path"),
    "ModelProto": (lambda v: isinstance(v, ModelProto), "a ModelProto"),
    "Plan": (lambda v: isinstance(v, Plan), "a Plan"),
    "Progress": (callable, "a function"),
    "Source": (lambda v: _path(v) or _by_name(v), "a path or a mapping of names to arrays"),
    "Importance": (
        lambda v: _text(v) or _by_name(v) or callable(v),
        "a text, a mapping of names to arrays, a function",
    ),
    "State": (lambda v: _by_name(v) or _each(v, lambda item: True), "weights by name, or a list of them"),
    "Sequence[str]": (lambda v: _text(v) or _each(v, _text), "a text or a list of texts"),
    "Sequence[float]": (lambda v: _each(v, _number), "a list of numbers"),
    "Sequence[PathLike | ModelProto]": (
        lambda v: _each(v, lambda item: _path(item) or isinstance(item, ModelProto)),
        "a list of paths or ModelProtos",
    ),
    "Mapping[str, Sequence[int]]": (
        lambda v: _by_name(v, lambda item: _each(item, _whole)),
        "a mapping of names to lists of whole numbers",
    ),
    "Mapping[str, Sequence[float]]": (
        lambda v: _by_name(v, lambda item: _each(item, _number)),
        "a mapping of names to lists of numbers",
    ),
}
"""What an annotation consists of → whether a value is that, and how a message says it."""


def checked(function: F) -> F:
    """The function, which first checks that every argument is what its annotation says.

    Raises:
        UsageError: one is not; the message says what to give.
    """
    hints = {name: getattr(hint, "__forward_arg__", hint) for name, hint in function.__annotations__.items()}
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if options.keys() <= hints.keys():  # else the function itself says which it has not
            for name, value in [*zip(names, args, strict=False), *options.items()]:
                _check(name, value, str(hints[name]))
        return function(*args, **options)

    return cast(F, call)


def _check(name: str, value: Any, annotation: str) -> None:
    kinds = [KINDS[kind] for kind in re.split(r" \| (?![^\[]*\])", annotation)]
    if not any(fits(value) for fits, _ in kinds):
        raise UsageError(f"{name} is {shown(value)}; give {' or '.join(words for _, words in kinds)}")
