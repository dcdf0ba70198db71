"""An options file in TOML: every option of the command line under its own name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import UsageError, near, one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


ALONE = frozenset({"config", "help", "version"})
"""Options that only make sense on the command line."""
TABLES: Mapping[str, str] = {"ratio": "=", "input-shape": ":", "input-range": ":"}
"""Options whose values may be a table → what stands between its keys and its values on the command line."""


def config_arguments(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The file as command-line arguments, which the parser then checks like any others.

        sparsity = 0.4                  --sparsity=0.4
        dry-run = true                  --dry-run (underscores do, too)
        repair = false                  --no-repair
        exclude = ["head", "stem"]      --exclude=head --exclude=stem
        ratio = {"layer1" = 0.6}        --ratio=layer1=0.6
        input-shape = {x = [1, 3]}      --input-shape=x:1,3
        input-range = {x = [0, 255]}    --input-range=x:0,255

    Args:
        path: the file.
        parser: of the command line.

    Raises:
        UsageError: it cannot be read, has an option that does not exist, or a value of another kind than that takes.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: is not TOML: {one_line(error)}") from error
    options = _options(parser)
    arguments = []
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in options:
            raise UsageError(f"--config {path}: {key!r} is no option{near(name, options)}")
        found = list(_arguments(name, value, options[name]))
        if None in found:
            raise UsageError(f"--config {path}: {key} is {_shown(value)}; give {_expected(name, options[name])}")
        arguments += [argument for argument in found if argument]
    return arguments


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Name, without dashes → option."""
    names = {flag[2:]: a for a in parser._actions for flag in a.option_strings if flag.startswith("--")}
    return {name: action for name, action in names.items() if name not in ALONE}


def _arguments(name: str, value: Any, action: argparse.Action) -> Iterator[str | None]:
    """What stands for a value on the command line; None for one that the option does not take."""
    if action.nargs == 0:
        yield _flag(f"--{name}", value, action)
    elif isinstance(value, list) and _repeatable(action):
        yield from (_assigned(name, item) for item in value)
    elif isinstance(value, dict) and name in TABLES:
        yield from (_entry(name, key, item) for key, item in value.items())
    else:
        yield _assigned(name, value)


def _flag(flag: str, value: Any, action: argparse.Action) -> str | None:
    if not isinstance(value, bool):
        return None
    others = [other for other in action.option_strings if other != flag]
    return flag if value else "".join(others)  # --no-repair is the other name of --repair


def _assigned(name: str, value: Any) -> str | None:
    return f"--{name}={value}" if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None


def _entry(name: str, key: str, value: Any) -> str | None:
    parts = value if isinstance(value, list) and TABLES[name] == ":" else [value]
    plain = all(isinstance(part, (str, int, float)) and not isinstance(part, bool) for part in parts)
    return f"--{name}={key}{TABLES[name]}{','.join(map(str, parts))}" if plain else None


def _repeatable(action: argparse.Action) -> bool:
    return isinstance(action.default, list)


def _shown(value: Any) -> str:
    """A value as TOML has it, if that is short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a table"
    return repr(value) if isinstance(value, str) else str(value)


def _expected(name: str, action: argparse.Action) -> str:
    """What the option takes."""
    if action.nargs == 0:
        return "true or false"
    one = "a whole number" if action.type is int else "a number" if action.type is float else "a text or a number"
    table = ", or a table of them by name" if name in TABLES else ""
    return f"{one}, or a list of them{table}" if _repeatable(action) else f"{one}, only one"
