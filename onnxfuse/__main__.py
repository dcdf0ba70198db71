"""python -m onnxfuse, and the console script: the command line in a process of its own."""

from __future__ import annotations

import os
import sys
import warnings
from typing import NoReturn

from .heap import collect_seldom, uncollected
from .lazy import UNUSED, put_off
from .streams import INTERRUPTED, end_on_signals, failed, open_streams, wants_json


def entry() -> NoReturn:
    """Run the command line and end at once, since to free every object before takes a tenth of a short run."""
    open_streams()
    if not sys.warnoptions:  # of libraries, to whoever calls them: what matters to a user of ours is an error or logged
        warnings.simplefilter("ignore")
    end_on_signals()
    try:
        code = _run()
        sys.stdout.flush()
    except OSError as error:
        code = failed(f"stdout: cannot be written: {error.strerror}", 1, False)
    os._exit(code)


def _run() -> int:
    try:
        with uncollected():  # nearly half a second, in which Ctrl-C may come
            put_off(UNUSED)
            from .cli import main
        collect_seldom()
        return main(alone=True)
    except SystemExit as stop:  # --help, --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return failed("interrupted", INTERRUPTED, wants_json(sys.argv[1:]))


if __name__ == "__main__":
    entry()
