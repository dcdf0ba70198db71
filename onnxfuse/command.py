"""What all commands share: usage errors in one line, values of options, exceptions → exit codes."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from .errors import OnnxFuseError, UsageError, one_line

log = logging.getLogger("onnxfuse")
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Usage errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"onnxfuse: {message}; see {self.prog} --help\n")


def shapes(items: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Input name → shape, from items such as `x:1,3,224,224`.

    Raises:
        UsageError: an item is not of that form.
    """
    found = {}
    for item in items:
        name, _, dims = item.rpartition(":")
        if not name or not all(d.strip().isascii() and d.strip().isdigit() for d in dims.split(",")):
            raise UsageError(f"--input-shape {item!r} is not NAME:1,3,224,224")
        found[name] = tuple(int(d) for d in dims.split(","))
    return found


def permissions(p: Any) -> None:
    """Arguments that allow more than what leaves every layer's arithmetic as it was."""
    p.add_argument("--allow-norm", action="store_true", help="channels that a norm or mean runs over may go, too")
    p.add_argument("--prune-heads", action="store_true", help="whole attention heads, not channels in every head")


def dump(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


def failed(message: str, code: int, as_json: bool) -> int:
    """Say on stderr, and in JSON on stdout if the result would have been JSON there, what went wrong."""
    print(f"onnxfuse: {message}", file=sys.stderr)
    if as_json:
        print(dump({"status": "failed", "error": message, "exit_code": code}), end="")
    return code


def start(verbose: bool) -> None:
    """Log to stderr, print what a terminal cannot show as '?', and end on SIGTERM as on Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.DEBUG if verbose else logging.WARNING)
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def guarded(run: Callable[[], None], fail: Callable[[str, int], int], a: argparse.Namespace) -> int:
    """Run a command on the model `a.input`; returns the exit code. With `a.debug`, exceptions pass.

    Args:
        run: the command.
        fail: reports a message and an exit code, and returns the code.
        a: the command's arguments.
    """
    try:
        run()
        return 0
    except OnnxFuseError as error:
        if a.debug:
            raise
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except Exception as error:
        if a.debug:
            raise
        return fail(f"{a.input}: internal error ({one_line(error)}); run again with --debug and report it", 1)
