"""Train the networks of `nets.py` on Fashion-MNIST, test them, and carry them to ONNX."""

from __future__ import annotations

import gzip
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import ToolError
from nets import NETS, State, sized_like
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

MEAN, DEVIATION = 0.2860, 0.3530
BATCH = 64
RATES = {"lenet": 0.05, "resnet20": 0.1, "vgg11_half": 0.05}
"""Peak learning rates."""


@dataclass(frozen=True, eq=False)
class Images:
    """Normalised (N, 1, 28, 28) images and their classes."""

    x: Tensor
    y: Tensor

    def part(self, chosen: NDArray[np.int64]) -> Images:
        return Images(self.x[chosen], self.y[chosen])


@dataclass(frozen=True, eq=False)
class Trained:
    """A network's state, and the seconds that its training took."""

    state: State
    seconds: float


def load_images(folder: Path, kind: str) -> Images:
    """Fashion-MNIST's 'train' or 't10k' images, as Debian's package dataset-fashion-mnist has them.

    Raises:
        ToolError: they are not in the folder.
    """
    paths = [folder / f"{kind}-images-idx3-ubyte.gz", folder / f"{kind}-labels-idx1-ubyte.gz"]
    for path in paths:
        if not path.is_file():
            raise ToolError(f"{path}: no such file; install Debian's dataset-fashion-mnist, or give --data")
    x, y = (
        np.frombuffer(gzip.decompress(p.read_bytes()), np.uint8, offset=o) for p, o in zip(paths, (16, 8), strict=True)
    )
    pixels = (x.reshape(-1, 1, 28, 28).astype(np.float32) / 255 - MEAN) / DEVIATION
    return Images(torch.from_numpy(pixels), torch.from_numpy(y.astype(np.int64)))


def train(name: str, images: Images, epochs: int, seed: int, start: State | None = None) -> Trained:
    """Train a network, from `start` with a tenth of the learning rate if that is given: SGD, one cycle."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    net = NETS[name]() if start is None else sized_like(NETS[name](), start)
    net = net.to(memory_format=torch.channels_last).train()
    rate = RATES[name] if start is None else RATES[name] / 10
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(images.y) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    for epoch in range(epochs):
        order = torch.randperm(len(images.y))
        for i in range(len(images.y) // BATCH):
            chosen = order[i * BATCH : (i + 1) * BATCH]
            loss = nn.functional.cross_entropy(net(images.x[chosen]), images.y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"  {name} epoch {epoch + 1}/{epochs}  {time.perf_counter() - began:.0f} s", flush=True)
    state = {k: v.detach().clone().contiguous() for k, v in net.state_dict().items()}
    return Trained(state, time.perf_counter() - began)


def _batches(images: Images, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(images.x.split(size), images.y.split(size), strict=True)


def accuracy(name: str, state: State, images: Images) -> float:
    """Share of the images that the network classifies correctly, in percent."""
    net = sized_like(NETS[name](), state).eval()
    with torch.inference_mode():
        right = sum(int((net(x).argmax(1) == y).sum()) for x, y in _batches(images, 500))
    return 100 * right / len(images.y)


def export(name: str, state: State, path: Path, folded: bool = False) -> None:
    """Write the network as ONNX, BatchNormalization kept, or folded as exporters do by themselves."""
    net = sized_like(NETS[name](), state).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(2, 1, 28, 28),), str(path), dynamo=False, opset_version=17,
            training=torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE,
            input_names=["input"], output_names=["logits"],
            dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}},
        )  # fmt: skip


def state_of(model: ModelProto, like: State) -> State:
    """What an ONNX file that `export` wrote holds, under the state's names.

    Raises:
        ToolError: a weight is not there.
    """
    found = {t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in model.graph.initializer}
    missing = [k for k, v in like.items() if k not in found and v.is_floating_point()]
    if missing:
        raise ToolError(f"the model has no initializer {missing[0]!r}")
    return {k: found.get(k, v) for k, v in like.items()}


def parameters(state: State) -> int:
    """Elements of all weights."""
    return sum(v.numel() for v in state.values() if v.is_floating_point())
