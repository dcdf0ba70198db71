"""The command line: arguments → `fuse` → table → exit code. `COMMANDS` has the others.

Table and result line go to stdout, errors, log and progress to stderr. Exit codes: 0 done, 1 unreadable,
unsupported, unwritable or nothing to merge, 2 usage, 3 verification failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import __version__
from .checks import CHOICES
from .command import (
    RANGES,
    Parser,
    Progress,
    guarded,
    not_written,
    permissions,
    present,
    ranges,
    shapes,
    side_files,
    start,
)
from .config import config_arguments
from .errors import UsageError
from .heap import keep_freed
from .images import KEYS
from .importance import METRICS
from .merge import METHODS
from .options import Options
from .pipeline import FuseResult, fuse_with
from .streams import failed, wants_json


def parser() -> Parser:
    """The arguments of `onnxfuse`."""
    p = Parser(
        prog="onnxfuse",
        description="Make a trained ONNX model structurally smaller by merging similar channels, and prove it.",
        epilog="exit codes: 0 done; 1 unreadable, unsupported, unwritable, nothing to merge; 2 usage; "
        "3 verification failed, nothing written; 130 interrupted",
    )
    p.add_argument("input", type=Path, help="trained model, .onnx")
    p.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.toml",
        help="options by name; those of later files, and those given here, come after",
    )
    p.add_argument("output", type=Path, nargs="?", help="where to write; may be the input; left out with --dry-run")
    _amount(p.add_argument_group("how small", "--sparsity, --lossless, or one or more budgets that must all hold"))
    _merging(p.add_argument_group("merging"))
    _running(p.add_argument_group("running and checking"))
    _output(p.add_argument_group("output"))
    return p


def _amount(g: Any) -> None:
    g.add_argument("--sparsity", type=float, metavar="S", help="fraction of channels to remove from each group")
    g.add_argument("--lossless", action="store_true", help="remove dead, constant and duplicate channels only")
    g.add_argument("--target-macs", metavar="0.5|900M", help="multiply-accumulates, as a share or a number")
    g.add_argument("--target-params", metavar="0.5|3M", help="parameters")
    g.add_argument("--target-size", metavar="0.5|5MB", help="of the file, with --external-data of both")
    g.add_argument("--target-latency", metavar="0.5x|4ms", help="in onnxruntime on this machine; see --threads")
    g.add_argument("--max-drop", type=float, metavar="D", help="the smallest model that loses no more on --eval")
    g.add_argument("--eval", metavar="DATA.npz", help="labelled data: inputs by name (or x), labels y")
    g.add_argument("--metric", metavar="MODULE:FUNCTION", help="of outputs and labels (default: top-1 accuracy)")
    g.add_argument("--min-cosine", type=float, metavar="C", help="smallest cosine similarity allowed in any output")
    g.add_argument("--max-error", type=float, metavar="E", help="largest absolute difference allowed in any output")
    g.add_argument("--from-plan", metavar="FILE", help="how many channels groups keep, as an earlier run's --plan says")
    g.add_argument(
        "--round-to", default="auto", metavar="auto|1|8|16", help="multiples that widths should be; auto: what the "
        "provider's kernels like; 1: exact widths (default: %(default)s)"
    )  # fmt: skip
    g.add_argument(
        "--scope", choices=CHOICES["scope"], help="the same sparsity everywhere (default for --sparsity), or what "
        "costs least, at equal MACs (default for budgets)"
    )  # fmt: skip
    g.add_argument("--ratio", action="append", default=[], metavar="REGEX=S", help="sparsity of layers; repeatable")
    g.add_argument("--keep", action="append", default=[], metavar="REGEX", help="layers not to narrow; repeatable")


def _merging(g: Any) -> None:
    g.add_argument("--method", choices=METHODS, default="auto", help="default: %(default)s")
    g.add_argument(
        "--importance", default="l1", metavar="NAME|FILE.npz",
        help=f"which channels survive: {', '.join(METRICS)}, or your own scores by layer (default: %(default)s)",
    )  # fmt: skip
    g.add_argument(
        "--repair", action=argparse.BooleanOptionalAction, help="refit consumers (auto, surgeon, --calib: on)"
    )
    g.add_argument("--gradients", type=Path, metavar="FILE.npz", help="∂L/∂w by initializer name, for taylor")
    g.add_argument("--calib", type=Path, metavar="FILE.npz|FOLDER", help="64 to 512 unlabelled samples")
    g.add_argument("--calib-preprocess", metavar="mean=…,std=…", help=f"of a folder of images: {KEYS}")
    g.add_argument("--source-mass", choices=CHOICES["source_mass"], help="transport: mass of the old channels")
    g.add_argument("--target-mass", choices=CHOICES["target_mass"], help="transport: mass of the new channels")
    g.add_argument("--target", choices=CHOICES["target"], help="transport: what the new channels are")
    g.add_argument("--cost-norm", type=int, choices=CHOICES["cost_norm"], help="transport: p of the Lp ground cost")
    g.add_argument("--exclude", action="append", default=[], metavar="REGEX", help="nodes to leave alone; repeatable")
    g.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="REGEX",
        help="groups to merge, whatever else is asked for; repeatable",
    )
    permissions(g)


def _running(g: Any) -> None:
    g.add_argument("--input-shape", action="append", default=[], metavar="NAME:1,3,224,224", help="for open dimensions")
    g.add_argument("--input-range", action="append", default=[], metavar="NAME:0,255", help=RANGES)
    g.add_argument("--provider", default="cpu", help="onnxruntime provider: cpu, cuda, … (default: %(default)s)")
    g.add_argument("--seed", type=int, default=0, help="of the test input and random importance (default: %(default)s)")
    g.add_argument("--latency", action="store_true", help="time the original and the result")
    g.add_argument("--threads", type=int, metavar="N", help="of onnxruntime, for the timing")
    g.add_argument("--dry-run", action="store_true", help="merge and verify, but write no model")


def _output(g: Any) -> None:
    g.add_argument("--json", metavar="FILE|-", help="the report as JSON; - for stdout, in place of the table")
    g.add_argument("--plan", type=Path, metavar="FILE", help="every merge as JSON, its matrices beside it in FILE.npz")
    g.add_argument(
        "--external-data", action="store_true", help="large weights in OUTPUT.data, as if the input had them so"
    )
    volume = g.add_mutually_exclusive_group()
    volume.add_argument("--quiet", action="store_true", help="the result line only")
    volume.add_argument("--verbose", action="store_true", help="every group and every locked layer, and a log")
    g.add_argument("--debug", action="store_true", help="stack traces and a full log")
    g.add_argument("--version", action="version", version=f"onnxfuse {__version__}")


def _options(a: argparse.Namespace) -> Options:
    given = {f.name: getattr(a, f.name) for f in fields(Options) if f.name in a}
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    named = {"input_shapes": shapes(a.input_shape), "input_ranges": ranges(a.input_range)}
    return Options(**{**given, **lists, **named})


COMMANDS = {"ensemble": "cli_ensemble", "inspect": "cli_inspect"}
"""First argument → the module of its `main`; all else is the plain command, whose first argument is a model."""


def _with_files(argv: Sequence[str], p: Parser) -> list[str]:
    """The command line, after the options of its --config files."""
    first = Parser(prog="onnxfuse", add_help=False)
    first.add_argument("--config", type=Path, action="append", default=[])
    configs = first.parse_known_args(argv)[0].config
    return [*(argument for config in configs for argument in config_arguments(config, p)), *argv]


def main(argv: Sequence[str] | None = None, alone: bool = False) -> int:
    """Run the command line, and nothing else in its process if it is `alone`; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        if arguments and arguments[0] in COMMANDS:
            command = importlib.import_module(f".{COMMANDS[arguments[0]]}", __package__)
            return int(command.main(arguments[1:]))
        p = parser()
        arguments = _with_files(arguments, p)
        return _fuse(p.parse_args(arguments), alone)
    except UsageError as error:  # the command line itself is wrong
        return failed(str(error), error.exit_code, wants_json(arguments))


def _fuse(a: argparse.Namespace, alone: bool) -> int:
    start(verbose=a.debug or a.verbose)
    progress = Progress()

    def run() -> FuseResult:
        with progress:
            if a.output is None and not a.dry_run:
                raise UsageError("no output file; give one, or --dry-run")
            if alone:
                keep_freed(Path(a.input))
            beside = side_files(a, *a.config)
            return fuse_with(a.input, None if a.dry_run else a.output, _options(a), progress, beside)

    return guarded(run, lambda result: present(a, result), lambda message, code: not_written(a, message, code), a)
