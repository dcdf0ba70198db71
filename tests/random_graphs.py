"""Random valid graphs: `generate(seed)` makes one, `check(model, seed)` fuses it and says what is wrong.

A graph grows step by step: each step takes values that are there (images (N, C, H, W), sequences (N, T, C) or vectors
(N, C)), and adds a few nodes and one or more values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import onnxfuse
from onnxfuse.oracle import oracle_error

from .graphs import runs

Array = NDArray[Any]
Shape = tuple[int, ...]
BATCH = 2
TOLERANCE = 1e-4
METHODS = ("drop", "intra-fusion", "fold", "barycentric")
ACTIVATIONS = "Relu Sigmoid Tanh LeakyRelu Elu HardSigmoid Abs Softplus Clip".split()
ODD = (" ", "/", "::", "é", "日本", '"', "\\", "%s", "{0}", "\t", "(")
"""What names hold besides letters and digits."""


@dataclass
class Builder:
    """A graph under construction: `values` are what later steps may read, with shapes for a batch of `BATCH`."""

    rng: np.random.Generator
    opset: int
    odd: bool
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    values: dict[str, Shape] = field(default_factory=dict)
    count: int = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.rng.choice(ODD)}{self.count}" if self.odd else f"{stem}{self.count}"

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """A node, named or not; returns the names of its outputs."""
        made = [self.name(op.lower()) for _ in range(outputs)]
        label = "" if self.chance(0.2) else self.name("node")
        self.nodes.append(helper.make_node(op, inputs, made, name=label, **attributes))
        return made

    def constant(self, values: Array, stem: str = "k") -> str:
        """An initializer or a Constant node; equal ones are shared at times."""
        for name, other in self.constants.items():
            alike = other.shape == values.shape and other.dtype == values.dtype
            shared = values.ndim > 1 and values.dtype == np.float32 and self.chance(0.1)
            if alike and (shared or (np.array_equal(other, values) and self.chance(0.5))):
                return name
        if self.chance(0.1):
            return self.add("Constant", [], value=numpy_helper.from_array(values))[0]
        name = self.name(stem)
        self.constants[name] = values
        return name

    def weight(self, *shape: int) -> str:
        size = float(np.sqrt(np.prod(shape[1:]) or 1))
        return self.constant((self.rng.standard_normal(shape) / size * 1.4).astype(np.float32), "w")

    def vector(self, n: int, low: float = -0.5, high: float = 0.5) -> str:
        return self.constant(self.rng.uniform(low, high, n).astype(np.float32), "b")

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), "i")

    def of_rank(self, rank: int) -> list[str]:
        return [n for n, s in self.values.items() if len(s) == rank]

    def some(self, rank: int) -> tuple[str, Shape]:
        """A value of this rank, late ones more often."""
        names = self.of_rank(rank)
        name = names[-1] if self.chance(0.6) else self.pick(names)
        return name, self.values[name]

    def put(self, name: str, shape: Shape) -> str:
        self.values[name] = shape
        return name

    def mean(self, x: str, *axes: int, keepdims: int) -> str:
        """ReduceMean, with the axes where the opset wants them."""
        if self.opset < 18:
            return self.add("ReduceMean", [x], axes=list(axes), keepdims=keepdims)[0]
        return self.add("ReduceMean", [x, self.ints(*axes)], keepdims=keepdims)[0]

    def sized(self, inputs: Sequence[str], sizes: Sequence[int], axis: int) -> list[str]:
        """Split, with the sizes where the opset wants them."""
        return self.add("Split", [*inputs, self.ints(*sizes)], len(sizes), axis=axis)


# --- images ---------------------------------------------------------------------------------------------------------
def conv(b: Builder) -> None:
    x, (n, c, h, w) = b.some(4)
    groups = b.pick([g for g in (1, 1, 1, 2, 4, c) if c % g == 0])
    out = (
        groups * b.pick([1, 2])
        if groups == c
        else groups * b.pick([2, 3, 4])
        if groups > 1
        else b.pick([3, 4, 6, 8, 12])
    )
    k = b.pick([1, 3])
    inputs = [x, b.weight(out, c // groups, k, k)]
    inputs += [b.vector(out)] if b.chance(0.5) else []
    (y,) = b.add("Conv", inputs, group=groups, pads=[k // 2] * 4)
    b.put(normalised(b, y, out) if b.chance(0.4) else y, (n, out, h, w))


def normalised(b: Builder, x: str, n: int) -> str:
    if b.chance(0.2):
        return b.add("InstanceNormalization", [x, b.vector(n, 0.5, 1.5), b.vector(n)])[0]
    inputs = [x, b.vector(n, 0.5, 1.5), b.vector(n), b.vector(n), b.vector(n, 0.5, 2)]
    return b.add("BatchNormalization", inputs)[0]


def conv_transpose(b: Builder) -> None:
    x, (n, c, h, w) = b.some(4)
    if h > 8:
        return
    groups = b.pick([g for g in (1, 1, 2, c) if c % g == 0])
    out = b.pick([1, 2, 3])
    (y,) = b.add("ConvTranspose", [x, b.weight(c, out, 2, 2)], group=groups, strides=[2, 2])
    b.put(y, (n, out * groups, 2 * h, 2 * w))


def pool(b: Builder) -> None:
    x, (n, c, h, w) = b.some(4)
    op = b.pick(["MaxPool", "AveragePool"])
    if h % 2 or b.chance(0.5):
        b.put(b.add(op, [x], kernel_shape=[3, 3], pads=[1] * 4)[0], (n, c, h, w))
    else:
        b.put(b.add(op, [x], kernel_shape=[2, 2], strides=[2, 2])[0], (n, c, h // 2, w // 2))


def concat(b: Builder) -> None:
    rank = b.pick([r for r in (2, 3, 4) if b.of_rank(r)])
    x, shape = b.some(rank)
    axis = 1 if rank < 4 and rank == 2 else (2 if rank == 3 else 1)
    fits = [
        n
        for n in b.of_rank(rank)
        if all(a == c for i, (a, c) in enumerate(zip(b.values[n], shape, strict=True)) if i != axis)
    ]
    parts = [x, *(b.pick(fits) for _ in range(b.pick([1, 1, 2])))]
    total = sum(b.values[p][axis] for p in parts)
    if total <= 32:
        b.put(b.add("Concat", parts, axis=b.pick([axis, axis - rank]))[0], (*shape[:axis], total, *shape[axis + 1 :]))


def split(b: Builder) -> None:
    rank = b.pick([r for r in (2, 3, 4) if b.of_rank(r)])
    x, shape = b.some(rank)
    axis = 1 if rank != 3 else 2
    n = shape[axis]
    if n < 4:
        return
    sizes = [n // 2] * 2 if n % 2 == 0 and b.chance(0.6) else [a := int(b.rng.integers(1, n)), n - a]
    for y, size in zip(b.sized([x], sizes, axis), sizes, strict=True):
        b.put(y, (*shape[:axis], size, *shape[axis + 1 :]))


def cut(b: Builder) -> None:
    x, (n, c, h, w) = b.some(4)
    if c < 3:
        return
    lo = int(b.rng.integers(0, c - 1))
    hi = int(b.rng.integers(lo + 1, c + 1))
    end = hi if b.chance(0.6) else (hi - c if hi < c else 2**31)
    b.put(b.add("Slice", [x, b.ints(lo), b.ints(end), b.ints(1)])[0], (n, hi - lo, h, w))


def take(b: Builder) -> None:
    x, (n, c, h, w) = b.some(4)
    order = b.rng.permutation(c)[: b.pick([c, max(1, c - 1)])]
    b.put(b.add("Gather", [x, b.ints(*order.tolist())], axis=1)[0], (n, len(order), h, w))


def shuffle(b: Builder) -> None:
    x, (n, c, h, w) = b.some(4)
    groups = [g for g in (2, 3, 4) if c % g == 0]
    if not groups:
        return
    g = b.pick(groups)
    (r,) = b.add("Reshape", [x, b.ints(b.pick([0, -1]), g, c // g, h, w)])
    (t,) = b.add("Transpose", [r], perm=[0, 2, 1, 3, 4])
    b.put(b.add("Reshape", [t, b.ints(0, b.pick([c, -1]), h, w)])[0], (n, c, h, w))


def excite(b: Builder) -> None:
    x, (n, c, h, w) = b.some(4)
    (g,) = b.add("GlobalAveragePool", [x])
    r = b.pick([2, 4])
    (s,) = b.add("Conv", [g, b.weight(r, c, 1, 1)])
    (a,) = b.add("Relu", [s])
    (e,) = b.add("Conv", [a, b.weight(c, r, 1, 1), b.vector(c)])
    (q,) = b.add("Sigmoid", [e])
    b.put(b.add("Mul", [x, q])[0], (n, c, h, w))


def rearrange(b: Builder) -> None:
    x, (n, c, h, w) = b.some(4)
    if c % 4 == 0 and h <= 8 and b.chance(0.6):
        y = b.add("DepthToSpace", [x], blocksize=2, mode=b.pick(["DCR", "CRD"]))[0]
        b.put(y, (n, c // 4, 2 * h, 2 * w))
    elif h % 2 == 0 and w % 2 == 0 and c <= 6:
        b.put(b.add("SpaceToDepth", [x], blocksize=2)[0], (n, 4 * c, h // 2, w // 2))


def enlarge(b: Builder) -> None:
    x, (n, c, h, w) = b.some(4)
    if b.chance(0.5) and h <= 8:
        scales = b.constant(np.array([1, 1, 2, 2], np.float32))
        b.put(b.add("Resize", [x, "", scales], mode="nearest")[0], (n, c, 2 * h, 2 * w))
    else:
        pads = b.ints(0, a := b.pick([0, 1]), 1, 0, 0, z := b.pick([0, 2]), 0, 1)
        b.put(b.add("Pad", [x, pads])[0], (n, c + a + z, h + 1, w + 1))


def last_axis(b: Builder) -> None:
    """Channels last, a MatMul there, and back."""
    x, (n, c, h, w) = b.some(4)
    out = b.pick([c, 6, 8])
    (t,) = b.add("Transpose", [x], perm=[0, 2, 3, 1])
    (m,) = b.add("MatMul", [t, b.weight(c, out)])
    (a,) = b.add("Add", [m, b.vector(out)])
    b.put(b.add("Transpose", [a], perm=[0, 3, 1, 2])[0], (n, out, h, w))


def to_vector(b: Builder) -> None:
    x, (n, c, h, w) = b.some(4)
    if b.chance(0.5) and c * h * w <= 400:
        b.put(b.add("Flatten", [x])[0], (n, c * h * w))
        return
    if b.chance(0.5):
        (g,) = b.add("GlobalAveragePool", [x])
    else:
        g = b.mean(x, 2, 3, keepdims=1)
    how = b.pick(["Flatten", "Reshape", "Squeeze"])
    inputs = {"Flatten": [g], "Reshape": [g, b.ints(0, b.pick([c, -1]))], "Squeeze": [g, b.ints(2, 3)]}[how]
    b.put(b.add(how, inputs)[0], (n, c))


def to_sequence(b: Builder) -> None:
    x, (n, c, h, w) = b.some(4)
    (r,) = b.add("Reshape", [x, b.ints(0, b.pick([0, c]), h * w)])
    b.put(b.add("Transpose", [r], perm=[0, 2, 1])[0], (n, h * w, c))


# --- vectors and sequences ------------------------------------------------------------------------------------------
def dense(b: Builder) -> None:
    rank = b.pick([r for r in (2, 3) if b.of_rank(r)] or [0])
    if not rank:
        return
    x, shape = b.some(rank)
    c, out = shape[-1], b.pick([4, 6, 8, 12])
    if rank == 2 and b.chance(0.6):
        trans = b.pick([0, 1])
        inputs = [x, b.weight(*((out, c) if trans else (c, out)))]
        y = b.add("Gemm", [*inputs, b.vector(out)] if b.chance(0.7) else inputs, transB=trans)[0]
    else:
        y = b.add("MatMul", [x, b.weight(c, out)])[0]
        y = b.add("Add", [y, b.vector(out)] if b.chance(0.5) else [b.vector(out), y])[0] if b.chance(0.7) else y
    b.put(y, (*shape[:-1], out))


def normal(b: Builder) -> None:
    if b.of_rank(3) and b.opset >= 17:
        x, shape = b.some(3)
        b.put(b.add("LayerNormalization", [x, b.vector(shape[-1], 0.5, 1.5), b.vector(shape[-1])])[0], shape)


def gate(b: Builder) -> None:
    """GLU: one half of the channels times the sigmoid of the other."""
    rank = b.pick([r for r in (2, 3, 4) if b.of_rank(r)])
    x, shape = b.some(rank)
    axis = 1 if rank == 4 else rank - 1
    if shape[axis] % 2:
        return
    half = shape[axis] // 2
    u, v = b.sized([x], [half, half], axis)
    (s,) = b.add("Sigmoid", [v])
    b.put(b.add("Mul", [u, s])[0], (*shape[:axis], half, *shape[axis + 1 :]))


def attention(b: Builder) -> None:
    """Heads of self-attention, from separate or fused projections, with an output projection and a residual sum."""
    if not b.of_rank(3):
        return
    x, (n, t, c) = b.some(3)
    if t > 40:
        return
    heads, d = b.pick([1, 2, 3]), b.pick([2, 4])
    size = heads * d
    if b.chance(0.5):
        (joint,) = b.add("MatMul", [x, b.weight(c, 3 * size)])
        (joint,) = b.add("Add", [joint, b.vector(3 * size)])
        parts = b.sized([joint], [size] * 3, 2)
    else:
        parts = [b.add("MatMul", [x, b.weight(c, size)])[0] for _ in range(3)]
    split = [b.add("Reshape", [p, b.ints(0, t if b.chance(0.5) else 0, heads, d)])[0] for p in parts]
    q, v = (b.add("Transpose", [split[i]], perm=[0, 2, 1, 3])[0] for i in (0, 2))
    (k,) = b.add("Transpose", [split[1]], perm=[0, 2, 3, 1])
    (scores,) = b.add("MatMul", [q, k])
    (p,) = b.add("Softmax", [scores], axis=-1)
    (o,) = b.add("MatMul", [p, v])
    (back,) = b.add("Transpose", [o], perm=[0, 2, 1, 3])
    (merged,) = b.add("Reshape", [back, b.ints(0, 0, b.pick([size, -1]))])
    (y,) = b.add("MatMul", [merged, b.weight(size, c)])
    b.put(b.add("Add", [x, y])[0] if b.chance(0.7) else y, (n, t, c))


def mean_over_time(b: Builder) -> None:
    if b.of_rank(3):
        x, (n, _, c) = b.some(3)
        b.put(b.mean(x, 1, keepdims=0), (n, c))


def recurrent(b: Builder) -> None:
    if not b.of_rank(3):
        return
    x, (n, t, c) = b.some(3)
    op, gates = b.pick([("LSTM", 4), ("GRU", 3)])
    hidden = b.pick([4, 6])
    (s,) = b.add("Transpose", [x], perm=[1, 0, 2])
    inputs = [s, b.weight(1, gates * hidden, c), b.weight(1, gates * hidden, hidden)]
    (y,) = b.add(op, inputs, hidden_size=hidden)
    (q,) = b.add("Squeeze", [y, b.ints(1)])
    b.put(b.add("Transpose", [q], perm=[1, 0, 2])[0], (n, t, hidden))


# --- any ------------------------------------------------------------------------------------------------------------
def activate(b: Builder) -> None:
    x, shape = b.some(b.pick([r for r in (2, 3, 4) if b.of_rank(r)]))
    channels = shape[1] if len(shape) != 3 else shape[-1]
    if b.chance(0.15):
        slope = b.rng.uniform(0.1, 0.5, (channels, 1, 1) if len(shape) == 4 else (channels,)).astype(np.float32)
        y = b.add("PRelu", [x, b.constant(slope)])[0]
    else:
        y = b.add(b.pick(ACTIVATIONS), [x])[0]
    b.put(y, shape)


def join(b: Builder) -> None:
    """A sum, product or maximum of two values of one shape, or with a constant."""
    x, shape = b.some(b.pick([r for r in (2, 3, 4) if b.of_rank(r)]))
    fits = [n for n, s in b.values.items() if s == shape]
    op = b.pick(["Add", "Add", "Add", "Mul", "Max", "Sub"])
    if b.chance(0.15):
        other = b.constant(b.rng.uniform(0.5, 1.5, b.pick([(1,), shape[1:]])).astype(np.float32))
    else:
        other = b.pick(fits)
    b.put(b.add(op, [x, other])[0], shape)


IMAGE = [
    conv, conv, conv, conv, conv_transpose, pool, concat, split, cut, take, shuffle, excite, rearrange, enlarge,
    last_axis, to_vector, to_sequence,
]  # fmt: skip
OTHER = [dense, dense, dense, normal, gate, attention, mean_over_time, recurrent, concat, split]
ANY = [activate, activate, join, join]
STEPS: Mapping[str, Sequence[Callable[[Builder], None]]] = {
    "images": [*IMAGE, *IMAGE, *ANY, dense, gate],
    "all": [*IMAGE, *OTHER, *ANY, *ANY],
    "sequences": [*OTHER, *OTHER, *ANY, *ANY],
}


def generate(seed: int) -> ModelProto:
    """The graph of this number, always the same."""
    rng = np.random.default_rng(seed)
    b = Builder(rng, int(rng.choice([13, 15, 17, 18, 20, 21])), bool(rng.random() < 0.2))
    kind = b.pick(list(STEPS))
    start: Shape = (BATCH, int(rng.choice([5, 6, 8])), 6) if kind == "sequences" else (BATCH, 3, 8, 8)
    inputs = [b.put(b.name("x"), start)]
    if b.chance(0.2):
        inputs.append(b.put(b.name("x"), start))
    for _ in range(int(rng.integers(4, 16))):
        (conv if b.values[inputs[0]] == start and len(b.values) == 1 and kind != "sequences" else b.pick(STEPS[kind]))(
            b
        )
    made = [n for n in b.values if n not in inputs]
    if not made:
        dense(b) if kind == "sequences" else conv(b)
        made = [n for n in b.values if n not in inputs]
    outputs = [made[-1], *(n for n in made[:-1] if b.chance(0.08))]
    return _model(b, inputs, outputs)


def _model(b: Builder, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
    batch: Any = "N" if b.chance(0.5) else BATCH
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, *b.values[n][1:]]) for n in b.values}
    constants = [numpy_helper.from_array(a, n) for n, a in b.constants.items()]
    graph = helper.make_graph(
        b.nodes, "random", [values[n] for n in inputs], [values[n] for n in outputs], constants, "doc"
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=8)
    model.producer_name, model.doc_string = "generator", "what it is"
    model.metadata_props.add(key="seed", value="kept")
    return onnx.shape_inference.infer_shapes(model) if b.chance(0.3) else model


# --- checks ---------------------------------------------------------------------------------------------------------
def feeds(model: ModelProto, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed + 1)
    return {
        v.name: rng.standard_normal([d.dim_value or BATCH for d in v.type.tensor_type.shape.dim]).astype(np.float32)
        for v in model.graph.input
    }


def check(model: ModelProto, seed: int) -> str:
    """Fuse a graph by a method and sparsity that depend on the seed.

    Returns 'merged', 'nothing to merge', or 'not run' if the installed onnxruntime cannot run the graph itself.

    Raises:
        AssertionError: a wrong result, or something lost.
        Exception: a crash.
    """
    onnx.checker.check_model(model, full_check=True)
    if not runs(model, feeds(model, seed)):
        return "not run"
    same = onnxfuse.fuse(model, sparsity=0).model
    assert same.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True), "sparsity 0"
    try:
        result = onnxfuse.fuse(model, sparsity=(0.25, 0.5, 0.75)[seed % 3], method=METHODS[seed % 4], seed=seed)
    except onnxfuse.NothingToMerge:
        return "nothing to merge"
    error = oracle_error(model, result, feeds(model, seed))
    assert error < TOLERANCE, f"oracle: {error}"
    small = result.model
    onnx.checker.check_model(small, full_check=True)
    for name in ("producer_name", "doc_string", "ir_version", "metadata_props", "opset_import"):
        assert getattr(small, name) == getattr(model, name), name
    assert list(small.graph.input) == list(model.graph.input), "inputs"
    assert list(small.graph.output) == list(model.graph.output), "outputs"
    assert small.graph.doc_string == model.graph.doc_string, "doc string"
    assert result.report.after.parameters <= result.report.before.parameters + _copied(result), "grew"
    return "merged"


def _copied(result: onnxfuse.FuseResult) -> int:
    """A folded BatchNormalization may add a bias and need a weight of its own; a shared constant may be copied."""
    copies = {*result.plan.clones, *(f.weight for f in result.plan.folded if f.weight != f.source)}
    return sum(len(f.mean) for f in result.plan.folded) + sum(
        int(np.prod(t.dims)) for t in result.model.graph.initializer if t.name in copies
    )
