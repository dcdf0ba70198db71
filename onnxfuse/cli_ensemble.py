"""`onnxfuse ensemble a.onnx b.onnx [c.onnx …] out.onnx`: several trained models become one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .command import RANGES, Parser, Progress, guarded, not_written, present, ranges, shapes, side_files, start
from .ensemble_options import ORDERS, EnsembleOptions
from .ensembling import ensemble_with
from .errors import UsageError
from .fusion import ALIGNMENTS
from .images import KEYS
from .importance import METRICS
from .merge import METHODS
from .options import Options
from .pipeline import FuseResult


def parser() -> argparse.ArgumentParser:
    """The arguments of `onnxfuse ensemble`."""
    p = Parser(
        prog="onnxfuse ensemble",
        description="Make one model of several trained ones of the same architecture (other seeds, data, folds). (A "
        "model file that is called ensemble is given to the plain command as ./ensemble.)",
        epilog="exit codes: as of onnxfuse",
    )
    p.add_argument("files", type=Path, nargs="+", metavar="FILE", help="two or more models, .onnx, and last the output")
    p.add_argument("--weights", metavar="0.5,0.5", help="a share for each model, their sum is 1 (default: equal ones)")
    p.add_argument(
        "--align", choices=ALIGNMENTS, default=ALIGNMENTS[0],
        help="what channels are matched by; none: each keeps its place (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--restore", action=argparse.BooleanOptionalAction, default=True,
        help="give channels the mean and deviation they have in the models (default: on)",
    )  # fmt: skip
    p.add_argument("--calib", type=Path, metavar="FILE.npz|FOLDER", help="64 to 512 unlabelled samples to run them on")
    p.add_argument("--calib-preprocess", metavar="mean=…,std=…", help=f"of a folder of images: {KEYS}")
    _pruning(p.add_argument_group("pruning"))
    _running(p.add_argument_group("running, checking, output"))
    return p


def _pruning(g: argparse._ArgumentGroup) -> None:
    g.add_argument("--sparsity", type=float, metavar="S", help="fraction of channels to remove from each group")
    g.add_argument(
        "--order", choices=ORDERS, default=ORDERS[0], help="fuse and prune (default), or prune each and fuse"
    )
    g.add_argument("--method", choices=METHODS, default="auto", help="default: %(default)s")
    g.add_argument("--importance", default="l1", metavar="NAME|FILE.npz", help=", ".join(METRICS))
    g.add_argument(
        "--repair", action=argparse.BooleanOptionalAction, help="refit consumers (auto, surgeon, --calib: on)"
    )
    g.add_argument("--exclude", action="append", default=[], metavar="REGEX", help="nodes not to prune; repeatable")
    g.add_argument("--round-to", default="auto", metavar="auto|1|8|16", help="multiples that widths should be")


def _running(g: argparse._ArgumentGroup) -> None:
    g.add_argument("--input-shape", action="append", default=[], metavar="NAME:1,3,224,224", help="for open dimensions")
    g.add_argument("--input-range", action="append", default=[], metavar="NAME:0,255", help=RANGES)
    g.add_argument("--provider", default="cpu", help="onnxruntime provider: cpu, cuda, … (default: %(default)s)")
    g.add_argument("--seed", type=int, default=0, help="of the test input and synthetic samples (default: %(default)s)")
    g.add_argument("--min-cosine", type=float, metavar="C", help="smallest similarity to the first model's outputs")
    g.add_argument("--external-data", action="store_true", help="large weights in OUTPUT.data")
    g.add_argument("--plan", type=Path, metavar="FILE", help="of the pruning after the fusion, for apply_plan")
    g.add_argument("--json", metavar="FILE|-", help="the report as JSON; - for stdout, in place of the table")
    volume = g.add_mutually_exclusive_group()
    volume.add_argument("--quiet", action="store_true", help="the result line only")
    volume.add_argument("--verbose", action="store_true", help="every group and every locked layer, and a log")
    g.add_argument("--debug", action="store_true", help="stack traces and a full log")


def _options(a: argparse.Namespace) -> EnsembleOptions:
    prune = Options(
        a.sparsity, a.method, a.importance, exclude=tuple(a.exclude), round_to=a.round_to, repair=a.repair,
        calib=a.calib, calib_preprocess=a.calib_preprocess, input_shapes=shapes(a.input_shape),
        input_ranges=ranges(a.input_range), provider=a.provider, seed=a.seed, min_cosine=a.min_cosine,
        external_data=a.external_data,
    )  # fmt: skip
    return EnsembleOptions(prune, a.order, _numbers(a.weights), a.align, a.restore)


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--weights {text!r} are no numbers with commas between, such as 0.5,0.5") from error


def _check(a: argparse.Namespace) -> None:
    """A plan needs a pruning that it is of."""
    if a.plan is not None and (a.sparsity is None or a.order != ORDERS[0]):
        raise UsageError("--plan is of a pruning after the fusion; give --sparsity and --order fap")


def main(argv: Sequence[str]) -> int:
    """Run `onnxfuse ensemble`; returns the exit code."""
    a = parser().parse_args(argv)
    start(verbose=a.debug or a.verbose)
    *models, a.output = a.files
    a.input = a.files[0]
    progress = Progress()

    def run() -> FuseResult:
        with progress:
            _check(a)
            return ensemble_with(models, a.output, _options(a), progress, side_files(a))

    return guarded(run, lambda result: present(a, result), lambda message, code: not_written(a, message, code), a)
