"""Run a graph in pieces, so that what later nodes compute can depend on what was measured before them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from .errors import Unsound, one_line
from .graph import Graph
from .picking import reads
from .protos import attribute, constant_tensors, every_constant, graphs, nodes_of, proto_label, subgraphs
from .sessions import INLINE, memory_stub, native, session_options
from .standin import in_float32
from .tensors import Array, values_of

Chunks = list[Array]
"""One value for each batch of samples."""


class Walk:
    """One pass through a graph, from value to value in the order of its nodes.

    A node runs once, when a value that depends on it is first asked for, with the weights of that moment; a value
    is forgotten when all nodes that read it have run.

    The nodes of branches of If are run like others, and what the If makes is taken from the branch that each batch
    takes; only branches without weights run as a whole, with their If. What is in a branch that no batch takes runs if
    it is asked for.

    Attributes:
        nodes: those of the graph, in the order of `Graph.protos`.
        whole: numbers of those in branches that run as a whole, whose values cannot be asked for.
        constants: by name, but for those in such branches.
        returned: names of what the graph, and its branches, return.
    """

    def __init__(
        self, graph: Graph, stand_in: bool, weights: Mapping[str, Array], batches: Sequence[Mapping[str, Array]]
    ) -> None:
        """Args:
        graph: whose nodes run.
        stand_in: whether they run in float32, because onnxruntime has no kernels for the graph's numbers.
        weights: constants that have other values than the graph's.
        batches: the inputs, by name; one mapping for each run.
        """
        self.model, self.weights = in_float32(graph.model) if stand_in else graph.model, weights
        self.nodes, self.constants = list(nodes_of(self.model.graph)), every_constant(self.model)
        self.whole = _whole(self.nodes, {n for n, tensor in self.constants.items() if len(tensor.dims) > 1})
        for name in _held(self.nodes, self.whole):
            del self.constants[name]
        self.known: dict[str, Chunks] = {name: [np.asarray(b[name]) for b in batches] for name in batches[0]}
        self.batches = len(batches)
        run = [i for i in range(len(self.nodes)) if i not in self.whole]
        self.reads = {i: self._read_by(i) for i in run}
        self.maker = {o: i for i in run for o in self.nodes[i].output if o and o not in self.constants}
        self.waiting = Counter(name for i in set(self.maker.values()) for name in self.reads[i])
        self.done: set[int] = set()
        self.taken: dict[int, set[str]] = {}
        self.returned = {value.name for graph in graphs(self.model) for value in graph.output}

    def value(self, name: str) -> Chunks:
        """The value in each batch; what it depends on runs now if it has not yet."""
        if name not in self.known and (missing := self._missing(name)):
            self._run(sorted(missing), name)
        return self.known[name]

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read a value."""
        return [self.nodes[i] for i, names in self.reads.items() if name in names]

    def replace(self, name: str, chunks: Chunks) -> None:
        """Nodes that have not run yet shall read these."""
        self.known[name] = chunks

    def _missing(self, name: str) -> set[int]:
        """Nodes that `name` depends on and that have not run."""
        found: set[int] = set()
        stack = [name]
        while stack:
            position = self.maker.get(stack.pop())
            if position is None or position in found or position in self.done:
                continue
            if self._is_open(position):
                self._choose(position)
            else:
                found.add(position)
                stack += [n for n in self.reads[position] if n not in self.known]
        return found - self.done

    def _is_open(self, position: int) -> bool:
        """Whether this is an If whose branches do not run as a whole."""
        return self.nodes[position].op_type == "If" and position - 1 not in self.whole

    def _read_by(self, position: int) -> set[str]:
        """The names of the values that a node waits for."""
        node = self.nodes[position]
        if not self._is_open(position):
            return reads(node)
        return {*node.input, *(value.name for branch in subgraphs(node) for value in branch.output)}

    def _choose(self, position: int) -> None:
        """Take what an If makes from the branch that each batch takes."""
        node = self.nodes[position]
        taken = self._sides(position)
        made = {side: [self._given(v.name) for v in attribute(node, side).output] for side in set(taken)}
        for number, name in enumerate(node.output):
            self.known[name] = [made[side][number][b] for b, side in enumerate(taken)]
        self._have_run([position])

    def _sides(self, position: int) -> list[str]:
        """Which branch of an If each batch takes."""
        chosen = self._given(self.nodes[position].input[0])
        taken = ["then_branch" if c.all() else "else_branch" for c in chosen]
        self.taken[position] = set(taken)
        return taken

    def one_sided(self, among: Iterable[int]) -> list[str]:
        """Labels of those of these nodes that are an If with weights in a branch, and take one in all batches."""
        sides = {i: self.taken.get(i) or set(self._sides(i)) for i in among if i in self.reads and self._is_open(i)}
        return [proto_label(self.nodes[i]) for i, taken in sides.items() if len(taken) == 1]

    def _given(self, name: str) -> Chunks:
        if name not in self.constants:
            return self.value(name)
        return [np.asarray(self.weights.get(name, values_of(self.constants[name])))] * self.batches

    def _have_run(self, positions: Sequence[int]) -> None:
        """Forget what nothing else waits for."""
        self.done.update(positions)
        wanted = Counter(n for i in positions for n in self.reads[i])
        self.waiting -= wanted
        for name in wanted:
            if not self.waiting[name]:
                self.known.pop(name, None)

    def _run(self, positions: Sequence[int], target: str) -> None:
        nodes = [self.nodes[i] for i in positions]
        wanted = Counter(n for i in positions for n in self.reads[i])
        made = {o for node in nodes for o in node.output if o}
        inputs = [n for n in wanted if n in self.known and n not in made]
        outputs = [n for n in sorted(made) if n == target or self.waiting[n] > wanted[n]]
        try:
            run = self._session(nodes, inputs, outputs, list(wanted))
            results = [run.run(outputs, {n: self.known[n][b] for n in inputs}) for b in range(self.batches)]
        except Exception as error:  # onnxruntime has no base class for what it raises
            raise Unsound(
                f"onnxruntime cannot run the model on the samples: {one_line(error)}; give others with --calib"
            ) from error
        self.known |= {name: [r[i] for r in results] for i, name in enumerate(outputs)}
        self._have_run(positions)

    def _session(
        self, nodes: Sequence[NodeProto], inputs: Sequence[str], outputs: Sequence[str], names: Sequence[str]
    ) -> ort.InferenceSession:
        values = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(self.known[n][0].dtype), None)
            for n in inputs
        ]
        results = [helper.make_empty_tensor_value_info(n) for n in outputs]
        part = helper.make_graph(nodes, "part", values, results)
        options = session_options(optimized=True)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_mem_reuse, options.enable_cpu_mem_arena = True, False  # few nodes, many runs of many samples
        external = self._constants(part, names)
        options.add_external_initializers(list(external), list(external.values()))
        model = ModelProto(ir_version=max(self.model.ir_version, 4), graph=part)
        model.opset_import.extend(self.model.opset_import)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _constants(self, part: GraphProto, names: Sequence[str]) -> dict[str, ort.OrtValue]:
        """Add the constants of these names to the graph; large ones by reference."""
        external = {}
        for name in [n for n in names if n in self.constants]:
            tensor, changed = self.constants[name], name in self.weights
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if math.prod(tensor.dims) > INLINE and native(dtype):
                values = self.weights[name] if changed else values_of(tensor)
                part.initializer.append(memory_stub(tensor, name))
                external[name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values, dtype=dtype))
            elif changed:
                part.initializer.append(numpy_helper.from_array(np.asarray(self.weights[name], dtype), name))
            else:
                part.initializer.append(tensor)
                part.initializer[-1].name = name
        return external


def _held(nodes: Sequence[NodeProto], whole: Container[int]) -> set[str]:
    """The constants of branches that run as a whole."""
    found = (node for i, node in enumerate(nodes) if node.op_type == "If" and i - 1 in whole)
    return {name for node in found for branch in subgraphs(node) for name in constant_tensors(branch)}


def _whole(nodes: Sequence[NodeProto], weights: Container[str]) -> frozenset[int]:
    """The numbers of nodes in branches that read none of the weights."""
    found = set[int]()
    for i in reversed(range(len(nodes))):
        if nodes[i].op_type == "If" and i not in found:
            inner = range(i - sum(1 for branch in subgraphs(nodes[i]) for _ in nodes_of(branch)), i)
            if not any(name in weights for k in inner for name in nodes[k].input):
                found.update(inner)
    return frozenset(found)
