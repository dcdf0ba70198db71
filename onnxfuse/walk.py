"""Run a graph in pieces, so that what later nodes compute can depend on what was measured before them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from .errors import Unsound, one_line
from .graph import Graph
from .picking import reads
from .protos import constant_tensors
from .sessions import INLINE, memory_stub, native, session_options
from .standin import in_float32
from .tensors import Array, values_of

Chunks = list[Array]
"""One value for each batch of samples."""


class Walk:
    """One pass through a graph, from value to value in the order of its nodes.

    A node runs once, when a value that depends on it is first asked for, with the weights of that moment; a value
    is forgotten when all nodes that read it have run.
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
        self.nodes, self.constants = self.model.graph.node, constant_tensors(self.model.graph)
        self.known: dict[str, Chunks] = {name: [np.asarray(b[name]) for b in batches] for name in batches[0]}
        self.batches = len(batches)
        self.maker = {o: i for i, node in enumerate(self.nodes) for o in node.output if o and o not in self.constants}
        self.waiting = Counter(name for i in self.maker.values() for name in reads(self.nodes[i]))
        self.done: set[int] = set()

    def value(self, name: str) -> Chunks:
        """The value in each batch; what it depends on runs now if it has not yet."""
        if name not in self.known:
            self._run(sorted(self._missing(name)), name)
        return self.known[name]

    def replace(self, name: str, chunks: Chunks) -> None:
        """Nodes that have not run yet shall read these."""
        self.known[name] = chunks

    def _missing(self, name: str) -> set[int]:
        """Nodes that `name` depends on and that have not run."""
        found: set[int] = set()
        stack = [name]
        while stack:
            position = self.maker.get(stack.pop())
            if position is not None and position not in found and position not in self.done:
                found.add(position)
                stack += [n for n in reads(self.nodes[position]) if n not in self.known]
        return found

    def _run(self, positions: Sequence[int], target: str) -> None:
        nodes = [self.nodes[i] for i in positions]
        wanted = Counter(n for i in positions for n in reads(self.nodes[i]))
        made = {o for node in nodes for o in node.output if o}
        inputs = [n for n in wanted if n in self.known and n not in made]
        outputs = [n for n in sorted(made) if n == target or self.waiting[n] > wanted[n]]
        run = self._session(nodes, inputs, outputs, list(wanted))
        try:
            results = [run.run(outputs, {n: self.known[n][b] for n in inputs}) for b in range(self.batches)]
        except Exception as error:  # onnxruntime has no base class for what it raises
            raise Unsound(
                f"onnxruntime cannot run the model on the samples: {one_line(error)}; give others with --calib"
            ) from error
        self.done.update(positions)
        self.waiting -= wanted
        self.known |= {name: [r[i] for r in results] for i, name in enumerate(outputs)}
        for name in inputs:
            if not self.waiting[name]:
                del self.known[name]

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
