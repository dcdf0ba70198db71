"""What the tools share: paths, modules loaded from a file, tables, and errors in one line."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
RESULTS = ROOT / "tools" / "results"
ASSETS = ROOT.parent / "shared" / "assets"
ZOO = ROOT.parent / "shared" / "zoo"


class ToolError(Exception):
    """Bad input; the message is one line for the user."""


def module(path: Path) -> ModuleType:
    """The Python file at `path` as a module, under a name that hides none of the tools.

    Raises:
        ToolError: there is no such file.
    """
    if not path.is_file():
        raise ToolError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"_shared_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ToolError(f"{path}: is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def digest(*parts: bytes) -> str:
    """A short name of these bytes."""
    joined = hashlib.sha256()
    for part in parts:
        joined.update(hashlib.sha256(part).digest())
    return joined.hexdigest()[:16]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table, all columns but the first right-aligned and padded to one width."""
    table = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    head, *body = (
        "| " + " | ".join(_cell(c, w, i) for i, (c, w) in enumerate(zip(r, widths, strict=True))) + " |" for r in table
    )
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([head, rule, *body])


def _cell(text: str, width: int, column: int) -> str:
    return text.rjust(width) if column else text.ljust(width)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, its directory made first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def entry(main: Callable[[], None], *expected: type[Exception]) -> NoReturn:
    """Run a tool. Errors of an expected kind become one line on stderr and exit code 1."""
    kinds: tuple[type[Exception], ...] = (ToolError, OSError, *expected)
    try:
        main()
    except kinds as error:
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
