"""The paper's split-data experiment at small scale: train on halves of Fashion-MNIST, fuse, prune, fine-tune.

python tools/split_data.py [--nets lenet resnet20 vgg11_half] [--data /usr/share/datasets/fashion-mnist] [--work DIR]

It needs PyTorch (pip install '.[torch]') and Debian's dataset-fashion-mnist. For each network it trains one model on
all data and two on halves of them, and writes

    results/split_data_fused.csv     the two fused in several ways, nothing trained afterwards
    results/split_data.csv           whole data, fuse-and-prune, prune-and-fuse with fine-tuning: accuracy and seconds
    results/split_data.md, .png      the same as tables and as a plot, the paper's figures beside them

Trained states are kept in --work, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ToolError, entry, markdown, write_csv

try:
    import torch
    from nets import State
    from split_data_plot import plot
    from training import Trained, accuracy, export, load_images, parameters, state_of, train
except ModuleNotFoundError as missing:
    raise SystemExit(f"split_data.py: {missing.name} is not installed; pip install '.[torch]' matplotlib") from missing

import onnxfuse

CALIBRATION = 256
DATA = Path("/usr/share/datasets/fashion-mnist")
PAPER = (
    ("VGG11-BN, whole data", 89.0, 87.6, 85.3),
    ("VGG11-BN, FaP", 88.7, 87.4, 85.1),
    ("VGG11-BN, PaF", 88.3, 87.5, 85.2),
    ("ResNet18, whole data", 91.1, 89.7, 88.4),
    ("ResNet18, FaP", 91.3, 89.9, 88.6),
    ("ResNet18, PaF", 91.2, 89.8, 88.5),
)
"""CIFAR-10 accuracy at 65, 90 and 95% weight sparsity, read off the chart of the paper (ICLR 2024)."""


@dataclass(frozen=True)
class Scale:
    """How much of the experiment is done.

    Attributes:
        images: training images of both halves together.
        epochs: of each first training.
        after_fusing, after_pruning: epochs of fine-tuning.
        sparsity: of channels, so that about 65% of the weights go.
    """

    images: int
    epochs: int
    after_fusing: int
    after_pruning: int
    sparsity: float = 0.4


SCALES = {
    "lenet": Scale(60000, 8, 3, 3, 0.63),
    "resnet20": Scale(30000, 5, 1, 2),
    "vgg11_half": Scale(20000, 4, 1, 2),
}
"""What a machine with two cores does in two hours."""
FUSED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plain average", {"align": "none", "restore": False}),
    ("plain average, restored", {"align": "none"}),
    ("by weights", {"align": "weights", "restore": False}),
    ("by weights, restored", {"align": "weights"}),
    ("by activations", {"restore": False}),
    ("by activations, restored (default)", {}),
)


@dataclass(frozen=True)
class Row:
    """One way to a small network.

    Attributes:
        net, way: which.
        before: accuracy before the last fine-tuning.
        after: at the end, in percent.
        alone: seconds of all training and fusing, one after another.
        together: the same if the two halves are trained at the same time.
        share: of the weights that is left.
    """

    net: str
    way: str
    before: float
    after: float
    alone: float
    together: float
    share: float


class Experiment:
    """One network: its data, its trained states, what is made of them."""

    def __init__(self, name: str, data: Path, work: Path) -> None:
        self.name, self.scale, self.work = name, SCALES[name], work
        order = np.random.default_rng(0).permutation(60000)[: self.scale.images]
        train_images, half = load_images(data, "train"), len(order) // 2
        chosen = {"a": order[:half], "b": order[half:], "whole": order}
        self.parts = {k: train_images.part(np.sort(v)) for k, v in chosen.items()}
        self.test = load_images(data, "t10k")
        sample = np.random.default_rng(5).choice(len(order), CALIBRATION, replace=False)
        self.calib = {"input": self.parts["whole"].x[np.sort(sample)].numpy()}

    def kept(self, key: str, make: Callable[[], Trained]) -> Trained:
        """What `make` gives, or gave in an earlier run."""
        path = self.work / f"{self.name}_{key}.pt"
        if path.exists():
            return Trained(**torch.load(path))
        made = make()
        torch.save({"state": made.state, "seconds": made.seconds}, path)
        print(
            f"{self.name} {key}: {accuracy(self.name, made.state, self.test):.2f} %, {made.seconds:.0f} s", flush=True
        )
        return made

    def dense(self, part: str) -> Trained:
        seed = ("a", "b", "whole").index(part) + 1
        return self.kept(part, lambda: train(self.name, self.parts[part], self.scale.epochs, seed))

    def tuned(self, key: str, state: State, part: str, epochs: int) -> Trained:
        return self.kept(key, lambda: train(self.name, self.parts[part], epochs, 7, state))

    def right(self, state: State) -> float:
        return accuracy(self.name, state, self.test)

    def file(self, state: State, folder: str, key: str) -> Path:
        path = Path(folder) / f"{self.name}_{key}.onnx"
        export(self.name, state, path)
        return path

    def pruned(self, state: State) -> State:
        """Exported, pruned, and the same done to the state."""
        with tempfile.TemporaryDirectory() as folder:
            path = self.file(state, folder, "in")
            result = onnxfuse.fuse(path, sparsity=self.scale.sparsity, calib=self.calib, round_to=1)
            return onnxfuse.apply_plan(state, result.plan, path)

    def fused(self, states: Sequence[State], **options: Any) -> State:
        """Exported, fused, and read back."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [self.file(s, folder, str(i)) for i, s in enumerate(states)]
            measured = "align" not in options or options.get("restore", True)
            calib = self.calib if measured else None
            return state_of(onnxfuse.ensemble(paths, calib=calib, **options).model, states[0])

    # --- the experiments --------------------------------------------------------------------------------------------
    def fusions(self) -> list[tuple[str, str, float]]:
        """Accuracy of the two halves' models, and of what is made of them without training."""
        states = [self.dense(part).state for part in "ab"]
        rows = [(self.name, f"model {part}", self.right(s)) for part, s in zip("ab", states, strict=True)]
        for way, options in FUSED:
            rows.append((self.name, way, self.right(self.fused(states, **options))))
            print(*rows[-1], flush=True)
        return rows

    def whole(self) -> Row:
        dense = self.dense("whole")
        small = self.pruned(dense.state)
        tuned = self.tuned("whole_pruned", small, "whole", self.scale.after_fusing + self.scale.after_pruning)
        total = dense.seconds + tuned.seconds
        return self._row("whole data, pruned", small, tuned, total, total)

    def fuse_and_prune(self) -> Row:
        halves = [self.dense(part) for part in "ab"]
        fused = self.fused([h.state for h in halves])
        first = self.tuned("fap_fused", fused, "whole", self.scale.after_fusing)
        small = self.pruned(first.state)
        tuned = self.tuned("fap_pruned", small, "whole", self.scale.after_pruning)
        seconds = [h.seconds for h in halves]
        rest = first.seconds + tuned.seconds
        return self._row("fuse and prune", small, tuned, sum(seconds) + rest, max(seconds) + rest)

    def prune_and_fuse(self) -> Row:
        seconds, states = [], []
        for part in "ab":
            dense = self.dense(part)
            tuned = self.tuned(f"paf_{part}", self.pruned(dense.state), part, self.scale.after_pruning)
            states.append(tuned.state)
            seconds.append(dense.seconds + tuned.seconds)
        fused = self.fused(states)
        last = self.tuned("paf_fused", fused, "whole", self.scale.after_fusing + 1)
        return self._row("prune and fuse", fused, last, sum(seconds) + last.seconds, max(seconds) + last.seconds)

    def _row(self, way: str, before: State, tuned: Trained, alone: float, together: float) -> Row:
        share = parameters(tuned.state) / parameters(self.dense("a").state)
        row = Row(self.name, way, self.right(before), self.right(tuned.state), alone, together, share)
        print(row, flush=True)
        return row


def _scales(rows: Sequence[Row]) -> str:
    """Images and epochs of each network."""
    nets = dict.fromkeys(r.net for r in rows)
    return "; ".join(f"{n}: {SCALES[n].images} images, {SCALES[n].epochs} epochs" for n in nets)


def report(fusions: Sequence[tuple[str, str, float]], rows: Sequence[Row], out: Path) -> None:
    """Write the tables and the plot."""
    write_csv(out / "split_data_fused.csv", ["net", "model", "accuracy"], [(n, w, f"{a:.2f}") for n, w, a in fusions])
    header = ["net", "way", "weights left", "before fine-tuning", "after", "seconds", "halves at once"]
    cells = [
        [
            r.net,
            r.way,
            f"{100 * r.share:.1f}%",
            f"{r.before:.2f}",
            f"{r.after:.2f}",
            f"{r.alone:.0f}",
            f"{r.together:.0f}",
        ]
        for r in rows
    ]
    write_csv(out / "split_data.csv", header, cells)
    nets = list(dict.fromkeys(n for n, _, _ in fusions))
    ways = list(dict.fromkeys(w for _, w, _ in fusions))
    found = {(n, w): f"{a:.2f}" for n, w, a in fusions}
    parts = [
        "Test accuracy in % on Fashion-MNIST's 10,000 test images; two models trained on halves are fused, and nothing "
        "is trained afterwards:",
        markdown(["", *nets], [[w, *(found.get((n, w), "–") for n in nets)] for w in ways]),
        f"With fine-tuning, at the scale of `SCALES` in split_data.py ({_scales(rows)}); seconds are of the clock on a "
        "machine that may have had other work:",
        markdown(header, cells),
        "The paper's, CIFAR-10, whole training runs, at 65, 90 and 95% weight sparsity:",
        markdown(["", "65%", "90%", "95%"], [[w, *map(str, v)] for w, *v in PAPER]),
    ]
    (out / "split_data.md").write_text("\n\n".join(parts) + "\n")
    if rows:
        plot([(r.net, r.way, r.after) for r in rows], PAPER, out / "split_data.png")


def main() -> None:
    """Read the arguments, run the experiments, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=SCALES, default=list(SCALES), help="default: all")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--work", type=Path, default=Path("split_data_work"), help="folder for trained states")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for tables and plot")
    parser.add_argument("--fused-only", nargs="*", default=[], choices=SCALES, help="nets without fine-tuning")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    fusions, rows = [], []
    for name in args.nets:
        experiment = Experiment(name, args.data, args.work)
        fusions += experiment.fusions()
        if name not in args.fused_only:
            rows += [experiment.whole(), experiment.fuse_and_prune(), experiment.prune_and_fuse()]
    report(fusions, rows, args.out)


if __name__ == "__main__":
    entry(main, ToolError, onnxfuse.OnnxFuseError)
