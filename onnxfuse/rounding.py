"""The channel counts that kernels like: multiples of the blocks that they work in."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .channels import ChannelGroup, Channels
from .graph import label
from .options import Options
from .providers import PROVIDERS, provider_list
from .resources import Widths
from .sessions import session_options

TENSOR_CORES = 8
"""Channels that accelerators' matrix units take at a time, in half precision."""
FEW_BLOCKS = 4
"""`auto` does not ask groups of fewer blocks for whole ones: a block would be too much of them."""


@dataclass(frozen=True)
class Blocks:
    """How many channels a kernel takes at a time.

    Attributes:
        whole: multiples of it waste no work.
        padded: multiples of it are padded to whole blocks; other numbers are left to a kernel that can take
            several times as long, so that a smaller model is slower than its original.
        few: below this number no blocks are needed.
    """

    whole: int
    padded: int
    few: int = 1

    def fill(self, channels: Widths) -> NDArray[np.bool_]:
        """Which of these numbers of channels fill blocks."""
        return _multiple(channels, self.whole, self.few)

    def suit(self, channels: Widths) -> NDArray[np.bool_]:
        """Which of these numbers of channels the kernel takes."""
        return _multiple(channels, self.padded, self.few)


FREE = Blocks(1, 1)


def _multiple(channels: Widths, of: int, few: int) -> NDArray[np.bool_]:
    fits: NDArray[np.bool_] = (channels % of == 0) | (channels < few)
    return fits


def blocks(channels: Channels, options: Options) -> dict[ChannelGroup, Blocks]:
    """What each group's channels should be a multiple of; `FREE` for groups too small, or of no such kernel."""
    if options.round_to != "auto":
        asked = int(options.round_to)
        return {g: Blocks(asked, asked) if g.channels > asked else FREE for g in channels.groups}
    provider = provider_list(options.provider)[0]
    if provider != PROVIDERS["cpu"]:
        return _by_size(channels.groups, Blocks(TENSOR_CORES, 1))
    convolved = _convolved(channels)
    return dict.fromkeys(channels.groups, FREE) | _by_size(convolved, convolution_blocks())


def _by_size(groups: Sequence[ChannelGroup], kernel: Blocks) -> dict[ChannelGroup, Blocks]:
    part = replace(kernel, whole=kernel.padded)
    enough = [(g, FEW_BLOCKS * kernel.whole <= g.channels) for g in groups if g.channels > kernel.whole]
    return {g: kernel if whole else part for g, whole in enough}


def _convolved(channels: Channels) -> list[ChannelGroup]:
    """Groups that a two-dimensional convolution makes or reads: onnxruntime blocks no others."""
    t = channels.tracker
    nodes = {label(n) for n in t.graph.nodes if n.op == "Conv" and len(t.probe.shapes.get(n.outputs[0].name, ())) == 4}
    return [g for g in channels.groups if any(s.node in nodes for s in g.slots)]


def convolution_blocks() -> Blocks:
    """Blocks of onnxruntime's convolutions on this CPU: 8 with AVX2, 16 with AVX-512, 1 where it has none.

    onnxruntime is asked: it pads the weights of a convolution with one output channel to a block, and where it takes
    the input's channels in blocks, or needs none for so few, it puts another operator in the convolution's place.
    """
    block = max(int(t.dims[0]) for t in _optimized([1]).initializer)
    if block == 1:
        return FREE
    numbers = np.arange(1, 2 * block + 1)
    plain = {n.name for n in _optimized(numbers.tolist()).node if not n.domain}
    taken = np.array([str(n) not in plain for n in numbers])
    padded = min(d for d in numbers[:block].tolist() if block % d == 0 and (taken[d - 1 :: d].all() or d == block))
    return Blocks(block, padded, int(numbers[~taken].min(initial=block)))


def _optimized(channels: Sequence[int]) -> onnx.GraphProto:
    """What onnxruntime makes of convolutions that read so many channels and make one."""
    weights = [numpy_helper.from_array(np.ones((1, c, 1, 1), np.float32), f"w{c}") for c in channels]
    x, y = (
        [helper.make_tensor_value_info(f"{name}{c}", TensorProto.FLOAT, [1, n, 4, 4]) for c, n in sizes]
        for name, sizes in (("x", [(c, c) for c in channels]), ("y", [(c, 1) for c in channels]))
    )
    nodes = [helper.make_node("Conv", [f"x{c}", f"w{c}"], [f"y{c}"], f"{c}") for c in channels]
    graph = helper.make_graph(nodes, "trial", x, y, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = session_options(optimized=True)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "trial.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS["cpu"]])
        return onnx.load(options.optimized_model_filepath).graph


def rounding_notes(channels: Channels, kept: Mapping[ChannelGroup, int], options: Options) -> tuple[str, ...]:
    """What rounding did, for the report; nothing if nothing was to be rounded."""
    shrunk = {g: b for g, b in blocks(channels, options).items() if b.whole > 1 and kept[g] < g.channels}
    told: list[str] = []
    for block in sorted({b.whole for b in shrunk.values()}, reverse=True):
        filled = [kept[g] % block == 0 for g, b in shrunk.items() if b.whole == block]
        told.append(f"of {block} in {sum(filled)} of {len(filled)} {'groups' if not told else 'smaller groups'}")
    why = "what this CPU's convolutions take at a time" if options.round_to == "auto" else "as asked"
    return (f"widths are multiples {', '.join(told)} ({why})",) if told else ()
