"""What can go wrong, and the exit code the command line gives it.

    OnnxFuseError            1
    ├── ModelError           1  the file cannot be read, or onnxruntime cannot run it
    ├── NothingToMerge       1  the model is fine, but no channel group may shrink
    ├── OutputError          1  the result cannot be written where it should go
    ├── UsageError           2  an option has a value that makes no sense
    └── VerificationFailed   3  the result is not what it should be; nothing was written

Every message is one line: what is wrong, where, and what to do next.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from numbers import Real


class OnnxFuseError(Exception):
    """Base of everything onnxfuse raises on purpose."""

    exit_code = 1


class ModelError(OnnxFuseError):
    """The input model cannot be read, is malformed, or does not run in onnxruntime."""


class NothingToMerge(OnnxFuseError):
    """No channel group may shrink; the message lists the reasons."""


class OutputError(OnnxFuseError):
    """The result cannot be written to its destination."""


class UsageError(OnnxFuseError, ValueError):
    """An option has an impossible value; the message names the valid ones."""

    exit_code = 2


class VerificationFailed(OnnxFuseError):
    """The result did not pass a check; the destination was left as it was."""

    exit_code = 3


class Unsound(VerificationFailed):
    """The result does not run, or not the same way twice, whatever was asked of its quality."""


SOURCE_LINE = re.compile(r"/onnxruntime_src/\S+:\d+ [^()]*\([^()]*\) ?")
"""Where onnxruntime's own source raised what it says next: `/onnxruntime_src/….cc:729 void f(const Options&) `."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of any exception as a single line of at most `limit` characters."""
    text = SOURCE_LINE.sub("", " ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shown(value: object, limit: int = 60) -> str:
    """A value in a message: what is short as Python writes it, else its type."""
    text = repr(value) if value is None or isinstance(value, (str, bytes, Real)) else ""
    return text if 0 < len(text) <= limit else f"a value of type {type(value).__name__}"


def near(wanted: str, names: Iterable[str]) -> str:
    """What ends a message about a name that does not exist: names like it, if there are none some others."""
    known = list(dict.fromkeys(names))
    if found := difflib.get_close_matches(wanted, known, 3, 0.3):
        return f"; near: {', '.join(found)}"
    return f"; there is {', '.join(known[:3])}{', …' if len(known) > 3 else ''}" if known else ""
