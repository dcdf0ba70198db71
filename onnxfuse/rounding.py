"""The channel counts that kernels like: multiples of the blocks that they work in."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from .channels import ChannelGroup, Channels
from .graph import label
from .options import Options
from .providers import PROVIDERS, provider_list
from .sessions import session_options

TENSOR_CORES = 8
"""Channels that accelerators' matrix units take at a time, in half precision."""
FEW_BLOCKS = 4
"""`auto` leaves groups of fewer blocks alone: a block would be too much of them."""


def multiples(channels: Channels, options: Options) -> dict[ChannelGroup, int]:
    """Of what number each group's channels should be a multiple; 1 for groups too small, or of no such kernel."""
    if options.round_to == "auto":
        provider = provider_list(options.provider)[0]
        on_cpu = provider == PROVIDERS["cpu"]
        block = convolution_block() if on_cpu else TENSOR_CORES
        fits = _convolved(channels) if on_cpu else dict.fromkeys(channels.groups, True)
        return {g: block if fits[g] and g.channels >= FEW_BLOCKS * block else 1 for g in channels.groups}
    block = int(options.round_to)
    return {g: block if g.channels > block else 1 for g in channels.groups}


def _convolved(channels: Channels) -> Mapping[ChannelGroup, bool]:
    """Whether a two-dimensional convolution makes or reads the group's channels: onnxruntime blocks no others."""
    t = channels.tracker
    nodes = {label(n) for n in t.graph.nodes if n.op == "Conv" and len(t.probe.shapes.get(n.outputs[0].name, ())) == 4}
    return {g: any(s.node in nodes for s in g.slots) for g in channels.groups}


def convolution_block() -> int:
    """Channels in a block of onnxruntime's convolutions on this CPU: 8 with AVX2, 16 with AVX-512, 1 without blocks.

    onnxruntime is asked: the optimized form of a convolution with one output channel has its weights padded to a block.
    """
    weight = numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 4, 4]) for n, c in (("x", 3), ("y", 1)))
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "trial", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = session_options(optimized=True)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "trial.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS["cpu"]])
        optimized = onnx.load(options.optimized_model_filepath)
    return max(int(t.dims[0]) for t in optimized.graph.initializer)


def rounding_notes(channels: Channels, kept: Mapping[ChannelGroup, int], options: Options) -> tuple[str, ...]:
    """What rounding did, for the report; nothing if nothing was to be rounded."""
    wanted = {g: m for g, m in multiples(channels, options).items() if m > 1}
    shrunk = [g for g in wanted if kept[g] < g.channels]
    done = sum(kept[g] % wanted[g] == 0 for g in shrunk)
    if not shrunk:
        return ()
    block = max(wanted.values())
    why = "the blocks of this CPU's convolutions" if options.round_to == "auto" else "as asked"
    return (f"widths are multiples of {block} in {done} of {len(shrunk)} groups large enough for it ({why})",)
