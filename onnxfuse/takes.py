"""What a model has to be given, and whether arrays of samples are that.

Nothing is guessed that could be wrong without a sound: what does not fit the model is refused, with what it expects. A
state that is not given starts at zero, and what chooses a branch is what it is compared with; that is told.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from .errors import UsageError, near
from .probe import Probe
from .states import compared_with, is_state
from .tensors import Array

log = logging.getLogger("onnxfuse")


@dataclass(frozen=True)
class Input:
    """An input of the model.

    Attributes:
        name: of the input.
        dtype: of its elements.
        dims: its declared sizes; 0 where the model leaves one open.
        probed: the sizes it was run with.
        axis: that counts the samples: the first, or of a recurrent state the open one.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]
    probed: tuple[int, ...]
    axis: int

    @property
    def each(self) -> int:
        """Samples in a run, if the model fixes that, else 0."""
        return self.dims[self.axis] if self.dims else 0

    def alone(self) -> Input:
        """The same, with one sample in a run if the model leaves that open."""
        return replace(self, dims=tuple(d or int(a == self.axis) for a, d in enumerate(self.dims)))

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} [{', '.join(str(d or '?') for d in self.dims)}]"


def inputs_of(model: ModelProto, reference: Probe) -> list[Input]:
    """What a model has to be given."""
    found = []
    for value in model.graph.input:
        if value.name in reference.inputs:
            tensor, probed = value.type.tensor_type, reference.inputs[value.name]
            dims = tuple(max(d.dim_value, 0) for d in tensor.shape.dim)
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type or TensorProto.FLOAT))
            dims = dims if tensor.HasField("shape") else probed.shape
            is_open = [axis for axis, d in enumerate(dims) if not d] if is_state(model, value.name) else []
            found.append(Input(value.name, dtype, dims, probed.shape, is_open[0] if len(is_open) == 1 else 0))
    return found


def listed_inputs(expected: Sequence[Input]) -> str:
    """For a message."""
    return ", ".join(map(str, expected))


def filled_in(arrays: Mapping[str, Array], model: ModelProto, expected: Sequence[Input]) -> dict[str, Array]:
    """The arrays, and what they leave out that a first call would have: states of zeros, and single numbers that the
    model compares with a constant."""
    found, compared = dict(arrays), compared_with(model)
    for i in expected:
        if i.name in found:
            continue
        if is_state(model, i.name):
            sizes = (
                i.each or 1 if axis == i.axis else d or p
                for axis, (d, p) in enumerate(zip(i.dims, i.probed, strict=True))
            )
            found[i.name] = np.zeros(tuple(sizes), i.dtype)
            log.warning("calibration data: has no array for %s: it starts at zero", i)
        elif i.name in compared:
            found[i.name] = np.full(i.probed, compared[i.name], i.dtype)
            log.warning("calibration data: has no array for %s: it is %d, as in the model", i, compared[i.name])
    return found


def as_taken(arrays: Mapping[str, Array], expected: Sequence[Input]) -> dict[str, Array]:
    """The arrays of calibration data by input, in the model's types.

    Raises:
        UsageError: they are not what the model expects; the message says what that is.
    """
    names = [i.name for i in expected]
    for name in arrays:
        if name not in names:
            taken = f"the model takes {listed_inputs(expected)}"
            raise UsageError(f"calibration data: {name!r} is no input; {taken}{near(name, names)}")
    for i in expected:
        if i.name not in arrays:
            raise UsageError(f"calibration data: has no array for input {i}")
    return {i.name: _cast(_fitting(arrays[i.name], i), i) for i in expected}


def _fitting(a: Array, i: Input) -> Array:
    """The array, if its rank and sizes are the input's."""
    free = a.ndim == len(i.dims) and all(
        axis == i.axis or d in (0, s) for axis, (d, s) in enumerate(zip(i.dims, a.shape, strict=True))
    )
    if not free or (i.dims and (not a.shape[i.axis] or a.shape[i.axis] % (i.each or 1))):
        raise UsageError(f"calibration data: {i.name!r} has shape {list(a.shape)}, the model takes {i}{_hint(a, i)}")
    return a


def _hint(a: Array, i: Input) -> str:
    """What may have gone wrong with a shape."""
    if a.ndim == len(i.dims) - 1 and _suits(a.shape, i.dims[1:]):
        return "; the first axis counts the samples"
    if a.ndim == len(i.dims) == 4:
        for order, name in (((0, 3, 1, 2), "channels last"), ((0, 2, 3, 1), "channels first")):
            if _suits([a.shape[k] for k in order[1:]], i.dims[1:]):
                return f"; the array has its {name}, transpose it by {order}"
    return ""


def _suits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return all(d in (0, s) for d, s in zip(dims, shape, strict=True))


def _cast(a: Array, i: Input) -> Array:
    """The array in the input's type, if no value changes its meaning."""
    a = a.astype(np.float32) if a.dtype.name == "bfloat16" else a  # NumPy itself takes it for bytes
    kinds = a.dtype.kind + i.dtype.kind
    integers = kinds in ("ii", "iu", "ui", "uu")
    if a.dtype.kind == "f" and not np.isfinite(a).all():
        raise UsageError(f"calibration data: {i.name!r} has values that are NaN or infinite; leave such samples out")
    if a.dtype != i.dtype and kinds != "ff" and not integers:
        hint = "; normalise it as in training" if i.dtype.kind == "f" and a.dtype.kind in "iu" else ""
        raise UsageError(f"calibration data: {i.name!r} is {a.dtype}, the model takes {i}{hint}")
    with np.errstate(over="ignore"):  # looked at below
        cast = a.astype(i.dtype)
    if (integers and not np.array_equal(cast, a)) or (kinds == "ff" and not np.isfinite(cast).all()):
        raise UsageError(f"calibration data: {i.name!r} has values that {i.dtype} cannot hold; the model takes {i}")
    return cast
