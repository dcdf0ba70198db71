"""`onnxfuse inspect in.onnx`: what could shrink, and what is left alone and why."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .channels import ChannelGroup
from .command import Parser, guarded, permissions, shapes, start
from .errors import UsageError, near
from .inspection import Analysis
from .pipeline import analyze
from .streams import dumped, failed
from .tables import print_analysis, print_slots


def parser() -> argparse.ArgumentParser:
    """The arguments of `onnxfuse inspect`."""
    p = Parser(
        prog="onnxfuse inspect",
        description="Show every channel group and every part left alone, with the reason. (A model file that is "
        "called inspect is given to the plain command as ./inspect.)",
    )
    p.add_argument("input", type=Path, help="model, .onnx")
    p.add_argument("--group", metavar="NAME", help="the slots of this group: where in which constant its channels lie")
    p.add_argument("--exclude", action="append", default=[], metavar="REGEX", help="nodes to leave alone; repeatable")
    p.add_argument("--input-shape", action="append", default=[], metavar="NAME:1,3,224,224", help="for open dimensions")
    p.add_argument("--provider", default="cpu", help="onnxruntime provider: cpu, cuda, … (default: %(default)s)")
    permissions(p)
    p.add_argument("--json", action="store_true", help="as JSON")
    p.add_argument("--debug", action="store_true", help="stack traces and a full log")
    return p


def main(argv: Sequence[str]) -> int:
    """Run `onnxfuse inspect`; returns the exit code."""
    a = parser().parse_args(argv)
    start(verbose=a.debug)

    def run() -> tuple[Analysis, list[ChannelGroup] | None]:
        found = _analyzed(a)
        return found, None if a.group is None else _named(found, a.group)

    return guarded(run, lambda found: _show(a, *found), lambda message, code: failed(message, code, a.json), a)


def _analyzed(a: argparse.Namespace) -> Analysis:
    return analyze(
        a.input, exclude=a.exclude, input_shapes=shapes(a.input_shape), provider=a.provider,
        allow_norm=a.allow_norm, prune_heads=a.prune_heads,
    )  # fmt: skip


def _show(a: argparse.Namespace, found: Analysis, chosen: list[ChannelGroup] | None) -> None:
    console = Console()
    if a.json:
        report = found.as_json()
        if chosen is not None:
            report = {"groups": [row for row in report["groups"] if row["name"] == a.group]}
        print(dumped(report), end="")
    elif chosen is None:
        console.print(f"{a.input}", soft_wrap=True, markup=False, highlight=False)
        print_analysis(found, console)
    else:
        for group in chosen:
            print_slots(found, group, console)


def _named(found: Analysis, name: str) -> list[ChannelGroup]:
    """All groups of that name: a node may make several."""
    groups = [g for g in found.groups if g.name == name]
    if not groups:
        raise UsageError(f"--group {name!r} is no group" + near(name, [g.name for g in found.groups]))
    return groups
