"""Sessions of onnxruntime on models in memory.

Weights are handed to onnxruntime by reference (`add_external_initializers`) instead of being serialized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto

from .protos import outer_names
from .tensors import values_of

INLINE = 128
"""Initializers of at most this many elements stay in the proto: shape inference wants to see their values."""

EXACT: Mapping[str, Mapping[str, str]] = {
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}
"""Provider → options with which it computes float32 as such, and tries no algorithms out for a session's few runs."""


def session_options(optimized: bool, large: bool = False) -> ort.SessionOptions:
    """Options for a session that runs once: no weights are copied into another layout.

    Which result takes whose memory is left to the allocator: to plan it takes onnxruntime the square of how many there
    are, 1.3 of 1.5 seconds on a graph of 3,400 nodes. Threads wait without spinning, which would take the cores from
    everything else that runs meanwhile.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_mem_reuse = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if large or not optimized:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def session(model: ModelProto, providers: Sequence[str], optimized: bool = True) -> ort.InferenceSession:
    """An onnxruntime session on a model in memory, its weights shared with the proto."""
    options = session_options(optimized)
    skeleton, weights = without_weights(model)
    options.add_external_initializers(list(weights), list(weights.values()))
    return exact_session(skeleton.SerializeToString(), options, providers)


def exact_session(
    model: str | bytes, options: ort.SessionOptions, providers: Sequence[str], **more: Any
) -> ort.InferenceSession:
    """A session, of a path or of bytes, that computes as exactly as its providers can: for all but the clock."""
    how = [dict(EXACT.get(name, {})) for name in providers]
    return ort.InferenceSession(model, options, providers=list(providers), provider_options=how, **more)


def without_weights(model: ModelProto) -> tuple[ModelProto, dict[str, ort.OrtValue]]:
    """A copy of `model` whose large initializers are external, and these initializers as OrtValues."""
    skeleton, weights = skeleton_of(model)
    return skeleton, {tensor.name: _ort_value(tensor) for tensor in weights}


def skeleton_of(model: ModelProto) -> tuple[ModelProto, list[TensorProto]]:
    """A copy of `model` whose large initializers are external, and these initializers."""
    skeleton = ModelProto(ir_version=max(model.ir_version, 4))
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    graph, source = skeleton.graph, model.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.sparse_initializer.extend(source.sparse_initializer)
    graph.value_info.extend(source.value_info)
    weights, used = list[TensorProto](), set(outer_names(source))
    for tensor in source.initializer:
        if tensor.name not in used and all(v.name != tensor.name for v in source.input):
            continue  # onnxruntime drops it before it looks for its values
        if int(np.prod(tensor.dims)) <= INLINE or tensor.data_type == TensorProto.STRING:
            graph.initializer.append(tensor)
            continue
        graph.initializer.append(memory_stub(tensor, tensor.name))
        weights.append(tensor)
    return skeleton, weights


def memory_stub(tensor: TensorProto, name: str) -> TensorProto:
    """What stands in a graph for an initializer that is handed to onnxruntime by reference."""
    stub = TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
    stub.data_location = TensorProto.EXTERNAL
    stub.external_data.add(key="location", value="memory")
    return stub


def _ort_value(tensor: TensorProto) -> ort.OrtValue:
    array = values_of(tensor)
    if native(array.dtype):
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.data_type)


def native(dtype: np.dtype[Any]) -> bool:
    """Whether onnxruntime takes NumPy's arrays of this type as they are."""
    return dtype.kind in "fiub" and bool(dtype.isbuiltin)
