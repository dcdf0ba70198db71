"""The channel counts that kernels like: multiples of the blocks that they work in."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .channels import ChannelGroup, Channels, Slot
from .graph import label
from .options import Options
from .providers import PROVIDERS, provider_list
from .resources import Widths
from .sessions import session_options

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
        least: below this number they take longer, so that only a budget which needs it goes there.
        places: that each of a group's channels has where the kernel counts them, as behind a Reshape.
        block: what the kernel takes at a time, whatever is asked of the channels.
        pooled: parts of a block are put back in their order first, for an operator of `WHOLE`.
    """

    whole: int
    padded: int
    few: int = 1
    least: int = 1
    places: int = 1
    block: int = 1
    pooled: bool = False

    def billed(self, channels: Widths) -> NDArray[np.float64]:
        """Numbers of channels that take as long as these: a part of a block takes as long as all of it.

        Where it has to be put in order first that takes longer still.
        """
        blocks = channels * self.places / self.block
        whole = np.ceil(blocks) * self.block / self.places
        return np.where(self.pooled & (blocks % 1 > 0), ORDERED * whole, whole)

    def fill(self, channels: Widths) -> NDArray[np.bool_]:
        """Which of these numbers of channels fill blocks."""
        return self._multiple(channels * self.places, self.whole) & (channels * self.places >= self.least)

    def suit(self, channels: Widths) -> NDArray[np.bool_]:
        """Which of these numbers of channels the kernel takes."""
        return self._multiple(channels * self.places, self.padded)

    def _multiple(self, count: Widths, of: int) -> NDArray[np.bool_]:
        fits: NDArray[np.bool_] = (count % of == 0) | (count < self.few)
        return fits


SHORT = 0.75
"""Of a block: so many channels take no longer without blocks than a whole one does, more take up to a tenth longer."""
WHOLE = ("MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
"""Operators that onnxruntime has for whole blocks only: before others it puts the channels back in their order."""
ORDERED = 1.5
"""Times as much as whole blocks counts a part of one that is to be put in order: it takes a tenth longer than they do,
and is to be the last resort."""
FREE = Blocks(1, 1)
TENSOR_CORES = Blocks(8, 4, few=4)
"""What accelerators' matrix units take at a time. On an H200 convolutions of 121 to 127 channels take up to 1.6 times
as long as of 128, multiples of 4 up to 1.3 times, multiples of 8 about as long as they should."""
INTEGERS = Blocks(16, 4, least=16)
"""What convolutions of 8-bit integers by fixed scales take. On a CPU with AVX-512 and VNNI those of 4 to 12 channels
took up to 1.5 times as long as of 16, other numbers up to 1.6 times as long as the next multiple of 4, and a part of a
block nearly as long as all of it. Those that quantize as they go take as many channels as there are."""
DEPTHWISE = Blocks(16, 8, least=16)
"""The same of depthwise ones: 56 channels took 1.4 times as long as 64, 60 twice as long."""


def blocks(channels: Channels, options: Options) -> dict[ChannelGroup, Blocks]:
    """What each group's channels should be a multiple of; `FREE` for groups too small, or of no such kernel."""
    if options.round_to != "auto":
        asked = int(options.round_to)
        return {g: Blocks(asked, asked) if g.channels > asked else FREE for g in channels.groups}
    if not on_cpu(options):
        return {g: _enough(g.channels, TENSOR_CORES) for g in channels.groups}
    kernels, whole = _kernels(channels), _taken_whole(channels)
    found = {g: _blocked([s for s in g.slots if s.node in kernels], g.channels, kernels) for g in channels.groups}
    return {g: replace(b, pooled=bool(whole[g.classes].any())) for g, b in found.items()}


def on_cpu(options: Options) -> bool:
    """Whether the model will run on the CPU."""
    return provider_list(options.provider)[0] == PROVIDERS["cpu"]


def _enough(count: int, kernel: Blocks) -> Blocks:
    """Whole blocks for so many channels, padded ones for fewer."""
    if count < kernel.whole:
        return FREE
    kernel = replace(kernel, block=kernel.whole)
    return kernel if count >= FEW_BLOCKS * kernel.whole else replace(kernel, whole=kernel.padded)


def _blocked(slots: Sequence[Slot], count: int, kernels: Mapping[str, Blocks]) -> Blocks:
    """What kernels want of the channels that have these slots in convolutions: the one that wants most.

    Of a grouped convolution onnxruntime pads nothing, so a part of a group's blocks is no gain over the other kernel,
    unless it is half of them.
    """
    if not slots:
        return FREE
    kernel = max((kernels[s.node] for s in slots), key=lambda k: (k.padded, k.least))
    if any(s.split > 1 for s in slots):
        return replace(kernel, padded=kernel.whole, few=count // 2 + 1) if count % kernel.whole == 0 else FREE
    places = math.gcd(*(s.positions.shape[1] for s in slots))
    return replace(_enough(count * places, kernel), places=places)


def _kernels(channels: Channels) -> dict[str, Blocks]:
    """For each convolution what it takes; none for those that onnxruntime does not block.

    Of real numbers it blocks two-dimensional ones, of integers by fixed scales those without groups.
    """
    t, of_reals = channels.tracker, convolution_blocks()
    rounded = {o.name for n in t.graph.nodes if n.op == "DequantizeLinear" for o in n.outputs}
    found: dict[str, Blocks] = {}
    for node in (n for n in t.graph.nodes if n.op == "Conv" and t.is_constant(n, 1)):
        dims, groups = t.in_shape(node, 1), int(node.attrs.get("group", 1))
        if node.outputs[0].name in t.graph.dynamic:
            continue
        if t.name(node, 1) in t.graph.held and t.name(node, 0) in rounded:
            if groups == 1 or dims[1] == 1:
                found[label(node)] = INTEGERS if groups == 1 else DEPTHWISE
        elif len(t.out_shape(node)) == 4:
            found[label(node)] = of_reals
    return found


def _taken_whole(channels: Channels) -> NDArray[np.bool_]:
    """For each class whether an operator of `WHOLE` reads it."""
    t = channels.tracker
    taken = np.zeros(int(channels.classes.max(initial=-1)) + 1, np.bool_)
    for n in (n for n in t.graph.nodes if n.op in WHOLE and len(t.out_shape(n)) == 4):
        for i in range(len(n.inputs)):
            taken[channels.classes[t.of(n, i)]] = True
    return taken


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
    few = int(numbers[~taken].min(initial=block))
    return Blocks(block, padded, min(few, int(SHORT * block) + 1))


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
    sizes = {g: b for g, b in blocks(channels, options).items() if b.whole > 1}
    smaller = {g: b for g, b in sizes.items() if kept[g] < g.channels}
    shrunk = {g: b for g, b in smaller.items() if kept[g] * b.places >= b.few}  # fewer need no blocks
    told: list[str] = []
    for block in sorted({b.whole for b in shrunk.values()}, reverse=True):
        filled = [kept[g] * b.places % block == 0 for g, b in shrunk.items() if b.whole == block]
        told.append(f"of {block} in {sum(filled)} of {len(filled)} {'groups' if not told else 'smaller groups'}")
    kernels = "this CPU's convolutions" if on_cpu(options) else "accelerators' matrix units"
    why = f"what {kernels} take at a time" if options.round_to == "auto" else "as asked"
    notes = (f"widths are multiples {', '.join(told)} ({why})",) if told else ()
    return notes + (_whole(sizes, kept) if options.round_to == "auto" else _too_small(kept, int(options.round_to)))


def _whole(sizes: Mapping[ChannelGroup, Blocks], kept: Mapping[ChannelGroup, int]) -> tuple[str, ...]:
    """That groups keep all of the few channels that they have."""
    few = [g for g, b in sizes.items() if kept[g] == g.channels and g.channels * b.places <= b.least]
    stay = "1 group stays" if len(few) == 1 else f"{len(few)} groups stay"
    why = "with fewer channels convolutions of integers take longer; --round-to 1 makes them smaller all the same"
    return (f"{stay} whole: {why}",) if few else ()


def _too_small(kept: Mapping[ChannelGroup, int], asked: int) -> tuple[str, ...]:
    """That groups have no more channels than their number should be a multiple of."""
    small = [g for g, width in kept.items() if width < g.channels <= asked] if asked > 1 else []
    groups = "1 group has" if len(small) == 1 else f"{len(small)} groups have"
    return (f"{groups} at most {asked} channels: no multiple of that is less, so widths are exact",) if small else ()
