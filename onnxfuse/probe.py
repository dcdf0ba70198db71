"""Run a graph once in onnxruntime and note the shape of every value and the value of the small integer ones.

Intermediate tensors are never kept: a Shape node hangs on each, so memory stays that of a plain run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from .errors import ModelError, one_line
from .feeds import candidates, check_overrides, free_axes, made_up
from .protos import outer_names, proto_label, subgraphs
from .sessions import exact_session, native, session_options, without_weights
from .standin import in_float32, needs_stand_in
from .tensors import Array, values_of

log = logging.getLogger("onnxfuse")
PREFIX = "__onnxfuse_"
INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)


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
        session = exact_session(skeleton.SerializeToString(), options, providers)
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
    mapped = {name: array for name, array in mapped.items() if native(array.dtype)}
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
    check_overrides(inputs, overrides or {})
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
    for batch, size in candidates(inputs, overrides):
        try:
            return _run(opened, made_up(inputs, overrides, batch, size, seed))
        except ModelError:
            raise
        except Exception as failure:  # onnxruntime has no base class for what it raises
            error = failure
    dynamic = any(free_axes(v) for v in inputs)
    advice = "give the right shapes with --input-shape NAME:1,3,224,224" if dynamic else "repair the model first"
    raise ModelError(f"onnxruntime cannot run the model: {one_line(error)}; {advice}") from error
