"""What a process says on stdout and stderr, whoever listens, and how it is told to end."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130
GONE = (errno.EPIPE, errno.EIO)
"""What a write fails with when nobody reads a pipe any more, or a terminal is closed."""
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Stream(io.FileIO):
    """A descriptor whose reader may go: what is said then is lost, and the run goes on. Of stderr any loss is borne."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == 1 and error.errno not in GONE:
                raise
            return len(data)


def open_streams() -> None:
    """For a process of its own: stdout and stderr that take whatever is printed, '?' for what they cannot show."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file would take its place, and what is printed would go there
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _opened(1, sys.stdout), _opened(2, sys.stderr)


def _opened(descriptor: int, before: Any) -> io.TextIOWrapper:
    raw = _Stream(descriptor, "wb", closefd=False)
    lines = descriptor == 2 or raw.isatty()
    encoding = "utf-8" if before is None else before.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="replace", line_buffering=lines)


def end_on_signals() -> None:
    """On SIGTERM and SIGHUP as on Ctrl-C, but for those that whoever started the process has it ignore (nohup)."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    for other in ENDING:  # one often follows the other, and would break off what the first has cleaned up
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON on stdout, be it otherwise right or wrong."""
    inspects = arguments[:1] == ["inspect"] and "--json" in arguments
    return inspects or "--json=-" in arguments or ("--json", "-") in pairwise(arguments)


def dumped(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


def failed(message: str, code: int, as_json: bool) -> int:
    """Say on stderr, and in JSON on stdout if the result would have been JSON there, what went wrong."""
    print(f"onnxfuse: {message}", file=sys.stderr)
    if as_json:
        print(dumped({"status": "failed", "error": message, "exit_code": code}), end="")
    return code
