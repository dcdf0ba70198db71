"""What all commands share: usage errors in one line, values of options, exceptions → exit codes."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .errors import OnnxFuseError, UsageError, near, one_line
from .pipeline import FuseResult
from .report import result_line
from .sidefiles import SideFiles
from .streams import INTERRUPTED, dumped, failed

if TYPE_CHECKING:
    from rich.status import Status

Result = TypeVar("Result")
log = logging.getLogger("onnxfuse")
RANGES = "values of images, where the graph does not tell: x:0,1 or x:-1,1, say"
"""The help of the option that `ranges` reads."""
DELAY = 1.0
"""Seconds before progress is shown."""


class Parser(argparse.ArgumentParser):
    """Usage errors in one line, and options by their whole names: what is short for one may be short for two later.

    No argument may be empty: that comes of a script's variable which is not set.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        for before, argument in zip(["", *given], given, strict=False):
            flag, equals, value = argument.partition("=") if argument.startswith("--") else (before, "=", argument)
            if equals and not value:  # Path("") would be the current directory
                self.error(f"{flag if flag.startswith('--') else 'an argument'} is empty; give a value or leave it out")
        return super().parse_known_args(given, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:  # options may stand between the files; names such as -m.onnx, after --, only the other way takes
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        if unknown:
            names = [flag for action in self._actions for flag in action.option_strings]
            like = near(unknown[0].partition("=")[0], names) if unknown[0].startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{like}")
        return found

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


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


def ranges(items: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Input name → least and greatest value, from items such as `x:0,255`.

    Raises:
        UsageError: an item is not of that form.
    """
    found = dict[str, tuple[float, ...]]()
    for item in items:
        name, _, ends = item.rpartition(":")
        try:
            low, high = map(float, ends.split(",") if name else ())
        except ValueError as error:
            raise UsageError(f"--input-range {item!r} is not NAME:LOW,HIGH, such as x:0,255") from error
        found[name] = (low, high)
    return found


def permissions(p: Any) -> None:
    """Arguments that allow more than what leaves every layer's arithmetic as it was."""
    p.add_argument("--allow-norm", action="store_true", help="channels that a norm or mean runs over may go, too")
    p.add_argument("--prune-heads", action="store_true", help="whole attention heads, not channels in every head")


def start(verbose: bool) -> None:
    """Log to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.DEBUG if verbose else logging.WARNING)


def side_files(a: argparse.Namespace, *read: Path) -> SideFiles:
    """What is to be written besides the model; the command itself reads the files `read`."""
    return SideFiles(None if a.json in (None, "", "-") else Path(a.json), a.plan, read)


class Progress:
    """A status line on a terminal's stderr, once the run has taken a second."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.start = time.perf_counter()
        self.status: Status | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        text = f"{stage} {done + 1}/{total}" if total > 1 else stage
        if self._log(text) > DELAY and self.terminal:
            if self.status is None:
                from rich.console import Console  # dear to import, and seldom needed

                self.status = Console(stderr=True).status(text)
                self.status.start()
            self.status.update(text)

    def __enter__(self) -> None:
        pass

    def __exit__(self, failed: object, *_: object) -> None:
        if self.status is not None:
            self.status.stop()
        if not failed:
            self._log("done")

    def _log(self, text: str) -> float:
        """Seconds since the start, written where --verbose writes."""
        seconds = time.perf_counter() - self.start
        log.debug("%6.2f s  %s", seconds, text)
        return seconds


def present(a: argparse.Namespace, result: FuseResult) -> None:
    """Print what there is to say."""
    report = result.report
    if a.json == "-":
        print(dumped(report.as_json()), end="")
        return
    if not a.quiet:
        from rich.console import Console  # as above

        from .tables import print_report

        print_report(report, Console(), a.verbose)
    print(result_line(report))


def not_written(a: argparse.Namespace, message: str, code: int) -> int:
    """Say what went wrong, and that the destination `a.output` is as it was."""
    if a.json != "-":
        print(f"FAILED (exit code {code})" + ("" if a.output is None else f": {a.output} is as it was"))
    return failed(message, code, a.json == "-")


def guarded(
    run: Callable[[], Result], tell: Callable[[Result], None], fail: Callable[[str, int], int], a: argparse.Namespace
) -> int:
    """Run a command on the model `a.input`; returns the exit code. With `a.debug`, stack traces are shown, too.

    Args:
        run: the command.
        tell: prints what it returns.
        fail: reports a message and an exit code, and returns the code.
        a: the command's arguments.
    """
    try:
        result = run()
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except Exception as error:
        if a.debug:
            traceback.print_exc()
        if isinstance(error, OnnxFuseError):
            return fail(str(error), error.exit_code)
        return fail(f"{a.input}: internal error ({one_line(error)}); run again with --debug and report it", 1)
    tell(result)
    return 0
