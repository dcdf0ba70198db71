"""Run a graph once in onnxruntime and note the shape of every value and the value of the small integer ones.

Intermediate tensors are never kept (`questions`), so memory stays that of a plain run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnxruntime as ort
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from .errors import ModelError, UsageError, one_line
from .feeds import candidates, check_overrides, made_up, suggested
from .intake import told
from .joined import Faint, faint_parts
from .picking import picks
from .protos import every_constant, outer_names, proto_label, subgraphs
from .questions import PREFIX, Questions, ask
from .ranges import Range, in_ranges
from .sessions import exact_session, native, session_options, without_weights
from .standin import in_float32, needs_stand_in
from .states import cast_to_integers, compared_with, reads_lines
from .tensors import Array, values_of

log = logging.getLogger("onnxfuse")


@dataclass(frozen=True)
class Probe:
    """One run of a model.

    Attributes:
        inputs: the feeds of the run, by input name.
        outputs: the model's outputs, by name.
        shapes: the concrete shape of every tensor of the main graph.
        integers: value of each int or bool tensor of rank 0 or 1.
        noted: what was picked by value, and what picks read, by name.
        stand_in: whether the model ran as `in_float32` makes it, because onnxruntime has no kernels for its numbers.
        ranges: of inputs that are not of mean 0 and deviation 1, as far as anything tells.
        faint: parts of outputs that count for nothing beside the rest of these.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]
    integers: Mapping[str, Array]
    noted: Mapping[str, Array]
    stand_in: bool = False
    ranges: Mapping[str, Range] = field(default_factory=dict)
    faint: Mapping[str, Faint] = field(default_factory=dict)

    def with_shapes(self, like: Mapping[str, str]) -> Probe:
        """The run with more values: name → the one that has its shape."""
        return replace(self, shapes={**self.shapes, **{n: self.shapes[o] for n, o in like.items() if o in self.shapes}})


@dataclass(frozen=True, eq=False)
class _Opened:
    """A session that is fed `mapped` weights, and answers questions beside the model's outputs."""

    model: ModelProto
    session: ort.InferenceSession
    mapped: Mapping[str, Array]
    questions: Questions
    providers: Sequence[str]


def _open(model: ModelProto, providers: Sequence[str], trusting: bool) -> _Opened:
    """An unoptimized session that notes shapes and small integers.

    Raises:
        ModelError: onnxruntime refuses the model, whatever its inputs are.
    """
    options = session_options(optimized=False)
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # Shape at once: all would be kept for it else
    skeleton, weights = without_weights(model)
    mapped = _as_inputs(model, skeleton, weights)
    options.add_external_initializers(list(weights), list(weights.values()))
    questions = ask(model, skeleton, trusting)
    try:
        session = exact_session(skeleton.SerializeToString(), options, providers)
    except Exception as error:  # onnxruntime has no base class for what it raises
        raise ModelError(f"onnxruntime cannot run the model: {one_line(error)}; repair the model first") from error
    return _Opened(model, session, mapped, questions, providers)


def _run(opened: _Opened, feeds: Mapping[str, Array]) -> Probe:
    model, asked = opened.model, opened.questions
    names = [o.name for o in opened.session.get_outputs()]
    values = dict(zip(names, opened.session.run(names, {**feeds, **opened.mapped}), strict=True))
    outputs = {o.name: values[o.name] for o in model.graph.output}
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer} | {k: v.shape for k, v in feeds.items()}
    shapes |= {**asked.proved} | {name: tuple(values[PREFIX + name].tolist()) for name in asked.shapes}
    integers = {name: values[name] for name in asked.integers}
    integers |= {k: v for k, v in outputs.items() if isinstance(v, np.ndarray) and v.dtype.kind in "ib" and v.ndim < 2}
    captured = {name: values[name] for name in asked.captured}
    for inner in _branch_runs(opened, {**feeds, **outputs, **integers, **captured}):
        shapes, integers = {**inner.shapes, **shapes}, {**inner.integers, **integers}
    return Probe(feeds, outputs, shapes, integers, {name: values[name] for name in asked.noted})


def _branch_runs(opened: _Opened, values: Mapping[str, Array]) -> Iterator[Probe]:
    """Runs of the branches of every If, as models of their own, on what they take from outside: whichever was taken.

    Of one that picks by value and has no weights nothing could shrink: to suppress boxes once more may take as long as
    all the rest.
    """
    model = opened.model
    constants = {t.name: t for t in model.graph.initializer}
    weights = {name for name, tensor in every_constant(model).items() if len(tensor.dims) > 1}
    for node in model.graph.node:
        for branch in subgraphs(node) if node.op_type == "If" else ():
            if any(picks(inner) for inner in branch.node) and weights.isdisjoint(outer_names(branch)):
                continue
            read = sorted(set(outer_names(branch)))
            feeds = {name: values[name] for name in read if name in values}
            feeds |= {name: values_of(constants[name]) for name in read if name in constants}
            try:
                yield _run(_open(_as_model(model, branch, feeds), opened.providers, trusting=False), feeds)
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


def probe(
    model: ModelProto,
    providers: Sequence[str],
    overrides: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    ends: Mapping[str, Sequence[float]] | None = None,
) -> Probe:
    """Run `model` on made-up inputs, trying sizes for its dynamic dimensions until onnxruntime accepts them.

    Args:
        model: the model, external data loaded.
        providers: onnxruntime execution providers.
        overrides: input name → shape, for inputs whose dynamic dimensions cannot be guessed.
        seed: of the random inputs.
        ends: input name → least and greatest value, where the model does not tell.

    Raises:
        ModelError: onnxruntime cannot run the model on any of the sizes tried.
        UsageError: `overrides` or `ends` name an unknown input, or a shape or range that cannot be.
    """
    initializers = {t.name for t in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    check_overrides(inputs, overrides or {})
    if not needs_stand_in(model):
        return _first_that_runs(model, inputs, providers, overrides or {}, seed, ends or {})
    try:
        return _first_that_runs(model, inputs, providers, overrides or {}, seed, ends or {})
    except ModelError:
        return replace(probe(in_float32(model), providers, overrides, seed, ends), stand_in=True)


def probe_on(reference: Probe, model: ModelProto, providers: Sequence[str], feeds: Mapping[str, Array]) -> Probe:
    """The `reference`, a run of the model, with these inputs in place of made-up ones, and what it makes of them."""
    opened = _open(in_float32(model) if reference.stand_in else model, providers, trusting=False)
    found = _run(opened, feeds)
    return replace(reference, inputs=found.inputs, outputs=found.outputs, noted=found.noted)


def _first_that_runs(
    model: ModelProto,
    inputs: Sequence[ValueInfoProto],
    providers: Sequence[str],
    overrides: Mapping[str, Sequence[int]],
    seed: int,
    ends: Mapping[str, Sequence[float]],
) -> Probe:
    error: Exception = RuntimeError("no inputs could be made")
    opened, chosen = _open(model, providers, trusting=True), compared_with(model)
    codes = cast_to_integers(model)
    for guess in candidates(inputs, overrides, reads_lines(model)):
        try:
            feeds = made_up(inputs, overrides, guess, seed, chosen, codes)
            ranges = told(model, feeds, ends)
            feeds = in_ranges(feeds, ranges, seed)
            found = _run(opened, feeds)
            found = found if _bears_out(found, opened.questions) else _run(_open(model, providers, False), feeds)
        except (ModelError, UsageError):
            raise
        except Exception as failure:  # onnxruntime has no base class for what it raises
            error = failure
        else:
            return replace(found, ranges=ranges, faint=faint_parts(model, found.outputs, found.shapes))
    options = suggested(inputs, overrides)
    advice = f"give the right shapes, as in {options}" if options else "repair the model first"
    raise ModelError(f"onnxruntime cannot run the model: {one_line(error)}; {advice}") from error


def _bears_out(found: Probe, questions: Questions) -> bool:
    """Whether a run made what inference proves, where both are known."""
    seen = {name: found.shapes[name] for name in questions.shapes}
    seen |= {name: v.shape for name, v in found.outputs.items() if isinstance(v, np.ndarray)}
    return all(questions.proved.get(name, shape) == shape for name, shape in seen.items())
