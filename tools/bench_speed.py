"""Time and peak memory of onnxfuse against a floor that any tool has: load, check, run once, save.

python tools/bench_speed.py MODEL [--sparsity 0.4] [--runs 5] [--method NAME] [--calib FILE.npz]
python tools/bench_speed.py FOLDER [--only REGEX] [--out FILE.csv]      all of its graphs, a row each

Both run in fresh processes, in turn, after one run of each that is not counted; one more run of onnxfuse, not counted
either, says what its stages take. A graph of the zoo without weights is refilled first.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from common import RESULTS, ZOO, ToolError, entry, markdown, write_csv
from floors import Run, Subject, apart, commands, interleaved, parse_shapes, run

LARGE = 5e6
"""Parameters above which a model may take so many times the floor; smaller ones so much longer than it."""
TIMES, SECONDS = 3.0, 1.5
STAGE = re.compile(r"^ *([0-9.]+) s  (.*?)(?: [0-9]+/[0-9]+)?$", re.MULTILINE)
"""A line of --verbose: seconds since the start, and what begins."""
HEADER = (
    "graph", "parameters M", "onnxfuse s", "floor s", "times", "over s", "peak MB", "× file", "within", "stages",
)  # fmt: skip
Row = list[str]


@dataclass(frozen=True)
class Measured:
    """The runs of both programs on one graph, and the seconds of onnxfuse's stages in one more."""

    subject: Subject
    fuse: Sequence[Run]
    floor: Sequence[Run]
    stages: Mapping[str, float]

    @property
    def seconds(self) -> tuple[float, float]:
        """Medians of onnxfuse and of the floor."""
        return median(r.seconds for r in self.fuse), median(r.seconds for r in self.floor)

    @property
    def peak(self) -> int:
        """Bytes of memory onnxfuse takes at most."""
        return max(r.peak for r in self.fuse)

    @property
    def within(self) -> bool:
        """Whether it is `TIMES` the floor at most, or `SECONDS` over it where the model is small."""
        fuse, floor = self.seconds
        return fuse <= TIMES * floor if self.subject.parameters > LARGE else fuse <= SECONDS + floor


def measured(subject: Subject, options: Sequence[str], runs: int, directory: Path) -> Measured:
    """Run both programs on a graph.

    Raises:
        ToolError: one of them failed.
    """
    fuse, base = commands(subject, options, directory)
    talking = [*(x for x in fuse if x != "--quiet"), "--verbose"]
    return Measured(subject, *interleaved(fuse, base, runs), stages(talking))


def stages(command: Sequence[str]) -> dict[str, float]:
    """The seconds of each stage of one run, what comes before them first; a stage that comes again is added up."""
    whole = run(command)
    begins = [(float(at), name) for at, name in STAGE.findall(whole.log)]
    found = {"start": whole.seconds - begins[-1][0]}  # imports; the last line is "done"
    for (begin, name), (end, _) in pairwise(begins):
        found[name] = found.get(name, 0.0) + end - begin
    return found


def in_words(seconds: Mapping[str, float]) -> str:
    """Stages that take a hundredth of a second or more."""
    return ", ".join(f"{name} {t:.2f}" for name, t in seconds.items() if t >= 0.01)


# --- tables ---------------------------------------------------------------------------------------------------------
def summary(found: Measured) -> str:
    """The table of both programs on one graph, the ratios of their times, and the stages."""
    fuse, base = found.fuse, found.floor
    rows = [_row(name, runs, found.subject.file_bytes) for name, runs in (("onnxfuse", fuse), ("floor", base))]
    pairs = [a.seconds / b.seconds for a, b in zip(fuse, base, strict=True)]
    of_medians = found.seconds[0] / found.seconds[1]
    return "\n".join(
        [
            f"{found.subject.path.name}, {found.subject.file_bytes / 1e6:.2f} MB, {len(fuse)} runs of each, A B A B",
            markdown(["", "min s", "median s", "max s", "peak RSS MB", "× file"], rows),
            f"time, onnxfuse / floor: {of_medians:.2f} of medians; pair by pair {' '.join(f'{p:.2f}' for p in pairs)}",
            f"stages, in seconds: {in_words(found.stages)}",
        ]
    )


def _row(name: str, runs: Sequence[Run], file_bytes: int) -> Row:
    seconds, peak = [r.seconds for r in runs], max(r.peak for r in runs)
    times = [f"{t:.2f}" for t in (min(seconds), median(seconds), max(seconds))]
    return [name, *times, f"{peak / 1e6:.0f}", f"{peak / file_bytes:.1f}"]


def as_row(found: Measured) -> Row:
    """One graph of many."""
    (fuse, floor), subject = found.seconds, found.subject
    times = [f"{fuse:.2f}", f"{floor:.2f}", f"{fuse / floor:.2f}", f"{fuse - floor:.2f}"]
    memory = [f"{found.peak / 1e6:.0f}", f"{found.peak / subject.file_bytes:.1f}"]
    verdict = "yes" if found.within else "no"
    return [subject.path.name, f"{subject.parameters / 1e6:.2f}", *times, *memory, verdict, in_words(found.stages)]


def rows(folder: Path, args: argparse.Namespace) -> Iterator[Row]:
    """A row for each graph of a folder, at any depth; what fails says so in its last column."""
    for path in sorted(p for p in folder.rglob("*.onnx") if re.search(args.only, p.name)):
        try:
            yield as_row(_measure(path, args))
        except ToolError as error:
            yield [path.name, *[""] * (len(HEADER) - 2), str(error).rpartition("exit code")[2].strip()]


# --- command line ---------------------------------------------------------------------------------------------------
def _measure(path: Path, args: argparse.Namespace) -> Measured:
    options = [f"--sparsity={args.sparsity}", f"--method={args.method}"]
    options += [f"--calib={args.calib.resolve()}"] if args.calib else []
    with tempfile.TemporaryDirectory() as name:
        subject = apart(path, parse_shapes(args.input_shape), Path(name), args.zoo)
        return measured(subject, options, args.runs, Path(name))


def _all(args: argparse.Namespace) -> None:
    done: list[Row] = []
    for row in rows(args.model, args):
        done.append(row)
        print("  ".join(row), file=sys.stderr, flush=True)
        write_csv(args.out, HEADER, done)
    if not done:
        raise ToolError(f"{args.model}: no .onnx file matches")
    print(markdown(HEADER, done))


def main() -> None:
    """Read the arguments; measure one graph or many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help=".onnx, or a folder of them")
    parser.add_argument("--only", default="", metavar="REGEX", help="of a folder: files whose name matches")
    parser.add_argument("--sparsity", type=float, default=0.4, help="default: %(default)s")
    parser.add_argument("--method", default="auto", help="default: %(default)s")
    parser.add_argument("--calib", type=Path, help="samples to measure on")
    parser.add_argument("--runs", type=int, default=5, help="of each program (default: %(default)s)")
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME:1,3,224,224", help="for open ones")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder with refill.py")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.csv", help="CSV file, of a folder")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("there must be a run")
    if args.model.is_dir():
        _all(args)
    else:
        print(summary(_measure(args.model, args)))


if __name__ == "__main__":
    entry(main)
