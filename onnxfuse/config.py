"""An options file in TOML: every option of the command line under its own name."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import UsageError, near, one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def config_arguments(path: Path, flags: Sequence[str]) -> list[str]:
    """The file as command-line arguments, which the parser then checks like any others.

        sparsity = 0.4                  --sparsity=0.4
        dry-run = true                  --dry-run (underscores do, too)
        exclude = ["head", "stem"]      --exclude=head --exclude=stem
        ratio = {"layer1" = 0.6}        --ratio=layer1=0.6
        input-shape = {x = [1, 3]}      --input-shape=x:1,3

    Args:
        path: the file.
        flags: names of all options, without dashes.

    Raises:
        UsageError: it cannot be read, or has an option that does not exist.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: is not TOML: {one_line(error)}") from error
    arguments = []
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in flags or name == "config":
            raise UsageError(f"--config {path}: {key!r} is no option{near(name, flags)}")
        arguments += list(_arguments(name, value))
    return arguments


def _arguments(name: str, value: Any) -> Iterator[str]:
    if value is True:
        yield f"--{name}"
    elif isinstance(value, list):
        for item in value:
            yield from _arguments(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            text = f"{key}:{','.join(map(str, item))}" if isinstance(item, list) else f"{key}={item}"
            yield f"--{name}={text}"
    elif value is not False:
        yield f"--{name}={value}"
