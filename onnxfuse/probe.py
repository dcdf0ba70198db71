"""Run a graph once in onnxruntime and note the shape of every value and the value of the small integer ones.

Intermediate tensors are never kept: a Shape node hangs on each, so memory stays that of a plain run. Weights are
handed to onnxruntime by reference (`add_external_initializers`) instead of being serialized.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from .errors import ModelError, UsageError, one_line
from .protos import consumers, outer_names, proto_label, subgraphs
from .standin import in_float32, needs_stand_in
from .tensors import Array, values_of

log = logging.getLogger("onnxfuse")
INLINE = 128
"""Initializers of at most this many elements stay in the proto: shape inference wants to see their values."""
PREFIX = "__onnxfuse_"
INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
SPATIAL_GUESSES = (224, 256, 64, 32, 512, 16)
"""Sizes tried, in this order, for dynamic dimensions other than the batch."""


@dataclass(frozen=True)
class Probe:
    """One run of a model.

    Attributes:
        inputs: the feeds of the run, by input name.
        outputs: the model's outputs, by name.
        shapes: the concrete shape of every tensor of the main graph.
        integers: value of each int or bool tensor of rank 0 or 1.
        stand_in: whether the model ran as `in_float32` makes it, because onnxruntime has no kernels for its numbers.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]
    integers: Mapping[str, Array]
    stand_in: bool = False


def provider_list(name: str) -> list[str]:
    """onnxruntime's provider list for a short or full provider name, CPU last.

    Raises:
        UsageError: this onnxruntime has no such provider, or the provider cannot start on this machine.
    """
    full = PROVIDERS.get(name.lower(), name)
    available = ort.get_available_providers()
    if full not in available:
        short = [k for k, v in PROVIDERS.items() if v in available]
        raise UsageError(f"provider {name!r} is not in this onnxruntime; choose from {', '.join(short)}")
    if full == PROVIDERS["cpu"]:
        return [full]
    if (reason := _refuses(full)) is not None:
        raise UsageError(f"provider {name!r} cannot start here ({reason}); use --provider cpu")
    return [full, PROVIDERS["cpu"]]


def _refuses(provider: str) -> str | None:
    """Why a session does not get the provider, if it does not: onnxruntime falls back to the CPU, and only logs it."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "trial", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    ort.set_default_logger_severity(4)
    try:
        options = session_options(optimized=True)
        trial = ort.InferenceSession(model.SerializeToString(), options, providers=[provider], enable_fallback=0)
    except Exception as error:  # onnxruntime has no base class for what it raises
        return one_line(error, 160)
    finally:
        ort.set_default_logger_severity(2)  # onnxruntime's own default
    return None if trial.get_providers()[0] == provider else "its libraries or device are missing"


def session_options(optimized: bool, large: bool = False) -> ort.SessionOptions:
    """Options for a session that runs once: no memory kept for a second run, no weights copied into another layout.

    Its threads wait without spinning, which would take the cores from everything else that runs meanwhile.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
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
    return ort.InferenceSession(skeleton.SerializeToString(), options, providers=list(providers))


def without_weights(model: ModelProto) -> tuple[ModelProto, dict[str, ort.OrtValue]]:
    """A copy of `model` whose large initializers are external, and these initializers as OrtValues."""
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
    weights, used = {}, consumers(source)
    for tensor in source.initializer:
        if not used.get(tensor.name) and all(v.name != tensor.name for v in source.input):
            continue  # onnxruntime drops it before it looks for its values
        if int(np.prod(tensor.dims)) <= INLINE or tensor.data_type == TensorProto.STRING:
            graph.initializer.append(tensor)
            continue
        graph.initializer.append(memory_stub(tensor, tensor.name))
        weights[tensor.name] = _ort_value(tensor)
    return skeleton, weights


def memory_stub(tensor: TensorProto, name: str) -> TensorProto:
    """What stands in a graph for an initializer that is handed to onnxruntime by reference."""
    stub = TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
    stub.data_location = TensorProto.EXTERNAL
    stub.external_data.add(key="location", value="memory")
    return stub


def _ort_value(tensor: TensorProto) -> ort.OrtValue:
    array = values_of(tensor)
    if array.dtype.kind in "fiub" and array.dtype.isbuiltin:
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.data_type)


@dataclass(frozen=True, eq=False)
class _Opened:
    """A session that is fed `mapped` weights, and returns more than the model's outputs.

    Attributes:
        asked: shapes, and integers of rank 0 or 1.
        captured: values that branches of If take from outside.
    """

    model: ModelProto
    session: ort.InferenceSession
    mapped: Mapping[str, Array]
    asked: Sequence[str]
    captured: Sequence[str]
    providers: Sequence[str]


def _open(model: ModelProto, providers: Sequence[str]) -> _Opened:
    """An unoptimized session that notes shapes and small integers.

    Raises:
        ModelError: onnxruntime refuses the model, whatever its inputs are.
    """
    options = session_options(optimized=False)
    skeleton, weights = without_weights(model)
    mapped = _as_inputs(model, skeleton, weights)
    options.add_external_initializers(list(weights), list(weights.values()))
    asked, captured = _ask_for_shapes(skeleton), _ask_for_captured(model, skeleton)
    try:
        session = ort.InferenceSession(skeleton.SerializeToString(), options, providers=list(providers))
    except Exception as error:  # onnxruntime has no base class for what it raises
        raise ModelError(f"onnxruntime cannot run the model: {one_line(error)}; repair the model first") from error
    return _Opened(model, session, mapped, asked, captured, providers)


def _run(opened: _Opened, feeds: Mapping[str, Array]) -> Probe:
    model, asked = opened.model, opened.asked
    names = [o.name for o in model.graph.output]
    results = opened.session.run([*names, *asked, *opened.captured], {**feeds, **opened.mapped})
    outputs = dict(zip(names, results[: len(names)], strict=True))
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer} | {k: v.shape for k, v in feeds.items()}
    integers = {}
    for name, value in zip(asked, results[len(names) :], strict=False):
        if name.startswith(PREFIX):
            shapes[name.removeprefix(PREFIX)] = tuple(int(d) for d in value)
        else:
            integers[name] = value
    integers |= {k: v for k, v in outputs.items() if isinstance(v, np.ndarray) and v.dtype.kind in "ib" and v.ndim < 2}
    captured = dict(zip(opened.captured, results[len(names) + len(asked) :], strict=True))
    for inner in _branch_runs(opened, {**feeds, **outputs, **integers, **captured}):
        shapes, integers = {**inner.shapes, **shapes}, {**inner.integers, **integers}
    return Probe(feeds, outputs, shapes, integers)


def _ask_for_captured(model: ModelProto, skeleton: ModelProto) -> list[str]:
    """Expose the values that branches of If take from outside; returns the names of the added outputs."""
    have = {o.name for o in skeleton.graph.output}
    made = {name for node in model.graph.node for name in node.output if name} - have
    taken = {
        name for node in model.graph.node if node.op_type == "If" for b in subgraphs(node) for name in outer_names(b)
    }
    found = sorted(made & taken)
    skeleton.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in found)
    return found


def _branch_runs(opened: _Opened, values: Mapping[str, Array]) -> Iterator[Probe]:
    """Runs of the branches of every If, as models of their own, on what they take from outside: whichever was taken."""
    model = opened.model
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for branch in subgraphs(node) if node.op_type == "If" else ():
            read = sorted(set(outer_names(branch)))
            feeds = {name: values[name] for name in read if name in values}
            feeds |= {name: values_of(constants[name]) for name in read if name in constants}
            try:
                yield _run(_open(_as_model(model, branch, feeds), opened.providers), feeds)
            except Exception as error:  # onnxruntime has no base class for what it raises
                log.info(
                    "%s: %s does not run on the probing input: %s", proto_label(node), branch.name, one_line(error)
                )


def _as_model(model: ModelProto, branch: GraphProto, feeds: Mapping[str, Array]) -> ModelProto:
    """A branch as a model whose inputs are these values."""
    part = ModelProto(ir_version=max(model.ir_version, 4), graph=branch)
    part.opset_import.extend(model.opset_import)
    part.graph.input.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    )
    return part


def _as_inputs(model: ModelProto, skeleton: ModelProto, weights: dict[str, ort.OrtValue]) -> dict[str, Array]:
    """Make inputs of the weights that are mapped from a file: onnxruntime copies initializers, but not inputs."""
    external = [t for t in model.graph.initializer if t.name in weights and t.data_location == TensorProto.EXTERNAL]
    mapped = {t.name: values_of(t) for t in external}
    mapped = {name: array for name, array in mapped.items() if array.dtype.kind in "fiub" and array.dtype.isbuiltin}
    graph, listed = skeleton.graph, {v.name for v in skeleton.graph.input}
    for i in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[i]
        if tensor.name in mapped:
            if tensor.name not in listed:
                graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            del weights[tensor.name], graph.initializer[i]
    return mapped


def _ask_for_shapes(skeleton: ModelProto) -> list[str]:
    """Add a Shape node for every tensor and expose small integers; returns the names of the added outputs."""
    inferred = onnx.shape_inference.infer_shapes(skeleton).graph
    types = {v.name: v.type for v in [*inferred.value_info, *inferred.output]}
    graph, asked = skeleton.graph, []
    outputs = {o.name for o in graph.output}
    for name in [n for node in skeleton.graph.node for n in node.output if n]:
        kind = types[name].WhichOneof("value") if name in types else "tensor_type"
        if kind not in ("tensor_type", None):
            continue
        shape = graph.node.add(op_type="Shape", output=[PREFIX + name])
        shape.input.append(name)
        graph.output.append(helper.make_tensor_value_info(PREFIX + name, TensorProto.INT64, None))
        asked.append(PREFIX + name)
        tensor = types[name].tensor_type if name in types else None
        small = tensor is not None and (not tensor.HasField("shape") or len(tensor.shape.dim) < 2)
        if tensor is not None and small and tensor.elem_type in INTEGERS and name not in outputs:
            graph.output.append(helper.make_tensor_value_info(name, tensor.elem_type, None))
            asked.append(name)
    return asked


# --- inputs ---------------------------------------------------------------------------------------------------------
def probe(
    model: ModelProto, providers: Sequence[str], overrides: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> Probe:
    """Run `model` on made-up inputs, trying sizes for its dynamic dimensions until onnxruntime accepts them.

    Args:
        model: the model, external data loaded.
        providers: onnxruntime execution providers.
        overrides: input name → shape, for inputs whose dynamic dimensions cannot be guessed.
        seed: of the random inputs.

    Raises:
        ModelError: onnxruntime cannot run the model on any of the sizes tried.
        UsageError: `overrides` names an unknown input, or a shape that contradicts the model.
    """
    initializers = {t.name for t in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    _check_overrides(inputs, overrides or {})
    if not needs_stand_in(model):
        return _first_that_runs(model, inputs, providers, overrides or {}, seed)
    try:
        return _first_that_runs(model, inputs, providers, overrides or {}, seed)
    except ModelError:
        return replace(probe(in_float32(model), providers, overrides, seed), stand_in=True)


def _first_that_runs(
    model: ModelProto,
    inputs: Sequence[ValueInfoProto],
    providers: Sequence[str],
    overrides: Mapping[str, Sequence[int]],
    seed: int,
) -> Probe:
    error: Exception = RuntimeError("no inputs could be made")
    opened = _open(model, providers)
    for batch, size in _candidates(inputs, overrides):
        try:
            return _run(opened, _feeds(inputs, overrides, batch, size, seed))
        except ModelError:
            raise
        except Exception as failure:  # onnxruntime has no base class for what it raises
            error = failure
    dynamic = any(_free(v) for v in inputs)
    advice = "give the right shapes with --input-shape NAME:1,3,224,224" if dynamic else "repair the model first"
    raise ModelError(f"onnxruntime cannot run the model: {one_line(error)}; {advice}") from error


def _candidates(inputs: Sequence[ValueInfoProto], given: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, int]]:
    """(batch, other size) pairs to try: two samples first, so that the batch cannot be mistaken for a channel."""
    free = [v for v in inputs if v.name not in given and _free(v)]
    sizes = SPATIAL_GUESSES if any(i > 0 for v in free for i in _free(v)) else SPATIAL_GUESSES[:1]
    batches = (2, 1) if any(0 in _free(v) for v in free) else (1,)
    return iter(itertools.product(batches, sizes))


def _free(value: ValueInfoProto) -> list[int]:
    """Axes of a graph input whose size the model leaves open."""
    return [i for i, d in enumerate(value.type.tensor_type.shape.dim) if d.dim_value <= 0]


def _feeds(
    inputs: Sequence[ValueInfoProto], given: Mapping[str, Sequence[int]], batch: int, size: int, seed: int
) -> dict[str, Array]:
    rng, named, feeds = np.random.default_rng(seed), _named(inputs, given, batch), {}
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        open_sizes = [named.get(d.dim_param, size if i else batch) for i, d in enumerate(dims)]
        guess = [d.dim_value if d.dim_value > 0 else n for d, n in zip(dims, open_sizes, strict=True)]
        feeds[value.name] = make_input(value, tuple(given.get(value.name, guess)), rng)
    return feeds


def _named(inputs: Sequence[ValueInfoProto], given: Mapping[str, Sequence[int]], batch: int) -> dict[str, int]:
    """Sizes of open dimensions that have a name: `batch` where it leads an input, what is given where it is given."""
    dims = {v.name: v.type.tensor_type.shape.dim for v in inputs}
    named = {d[0].dim_param: batch for d in dims.values() if d and d[0].dim_param}
    for name in given:
        named |= {d.dim_param: size for d, size in zip(dims.get(name, ()), given[name], strict=False) if d.dim_param}
    return named


def make_input(value: ValueInfoProto, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A random array for one graph input: normal for floats, 0 or 1 for integers, true for booleans.

    Raises:
        ModelError: the input is not a numeric tensor.
    """
    kind = value.type.WhichOneof("value")
    element = value.type.tensor_type.elem_type
    if kind != "tensor_type" or element == TensorProto.STRING:
        raise ModelError(f"input {value.name!r} is not a numeric tensor; onnxfuse cannot make data for it")
    dtype = helper.tensor_dtype_to_np_dtype(element)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _check_overrides(inputs: Sequence[ValueInfoProto], given: Mapping[str, Sequence[int]]) -> None:
    known = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inputs}
    for name, shape in given.items():
        if name not in known:
            raise UsageError(f"--input-shape names {name!r}, but the model's inputs are {', '.join(known) or 'none'}")
        dims = known[name]
        wrong = len(dims) != len(shape) or any(d > 0 and d != s for d, s in zip(dims, shape, strict=True))
        if any(s < 1 for s in shape) or wrong:
            raise UsageError(f"--input-shape {name}:{','.join(map(str, shape))} does not fit the model's {dims}")
