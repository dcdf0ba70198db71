"""Regular expressions that options name nodes, layers and groups by."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from .allocate import kept_count
from .errors import UsageError, near
from .options import Options


def listed(patterns: Sequence[str]) -> tuple[str, ...]:
    """A single pattern is a list of one, not of its letters."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def ratios(o: Options) -> list[tuple[str, float]]:
    """The pattern and the sparsity of each 'REGEX=0.6'.

    Raises:
        UsageError: one is not of that form.
    """
    found = []
    for item in o.ratio:
        pattern, _, number = item.rpartition("=")
        try:
            kept_count(1, float(number if pattern else ""))
        except ValueError as error:  # UsageError is one
            raise UsageError(f"--ratio {item!r} is not REGEX=S with a sparsity 0 ≤ S < 1") from error
        found.append((pattern, float(number)))
    return found


def check_patterns(patterns: Sequence[str]) -> None:
    """Every pattern must be a regular expression, and one that means the same in the next Python.

    Raises:
        UsageError: one is not.
    """
    for pattern in patterns:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                re.compile(pattern)
        except (re.error, OverflowError, Warning) as error:
            raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error


def check_matches(option: str, patterns: Sequence[str], what: str, names: Sequence[str]) -> None:
    """Every pattern must match one of the names; the error suggests near ones."""
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise UsageError(f"--{option} {pattern!r} matches no {what}" + near(pattern, names))
