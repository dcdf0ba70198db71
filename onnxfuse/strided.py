"""What torch.as_strided becomes in an export with an open batch, as what it is: a Reshape.

    Reshape(x, [−1]) → Gather by row · a + (0 … a − 1), with row of Range(0, batch)   →   Reshape(x, [−1, …])

The Gather's indices are computed, so no channel behind it could go. They are followed as rows · scale + offsets, and
the Gather is rewritten only if the rows are proved to be all rows of x, and the offsets all places of a row in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TypeProto, helper, numpy_helper

from .protos import add_initializer, attribute, constant_tensors, free_name
from .sessions import skeleton_of
from .tensors import Array, values_of

Dims = Sequence[int | str]
"""Sizes of a value; names of open dimensions, '' for those without one."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Indices row · scale + offsets, where row runs over Range(0, `limit`) along axis 0.

    Attributes:
        limit: the value's name.
        scale: a factor.
        offsets: size 1 along axis 0.
    """

    limit: str
    scale: int
    offsets: Array


class _Reader:
    """Follows the computation of an index, and of a size."""

    def __init__(self, model: ModelProto) -> None:
        self.constants = constant_tensors(model.graph)
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.dims = _dims(model)

    def constant(self, name: str) -> Array | None:
        return values_of(self.constants[name]) if name in self.constants else None

    def rows(self, name: str) -> Rows | None:
        """What an index is, if it is of this form."""
        node = self.makers.get(name)
        if node is None:
            return None
        if node.op_type == "Range":
            start, step = self.constant(node.input[0]), self.constant(node.input[2])
            plain = start is not None and step is not None and (int(start), int(step)) == (0, 1)
            return Rows(node.input[1], 1, np.zeros(1, np.int64)) if plain else None
        if node.op_type not in ("Add", "Mul", "Unsqueeze", "Cast"):
            return None
        inner, other = self.rows(node.input[0]), self.constant(node.input[1]) if len(node.input) > 1 else None
        if inner is None and node.op_type in ("Add", "Mul"):
            inner, other = self.rows(node.input[1]), self.constant(node.input[0])
        return inner if inner is None or node.op_type == "Cast" else _changed(node, inner, other)

    def size(self, name: str) -> int | str:
        """The dimension that a scalar holds: its name or size; '' if that is not known."""
        node = self.makers.get(name)
        if node is None:
            return ""
        if node.op_type in ("Squeeze", "Cast", "Reshape"):
            return self.size(node.input[0])
        if node.op_type == "Gather" and (index := self.constant(node.input[1])) is not None and index.size == 1:
            return self._shape(node.input[0], int(index.ravel()[0]), None)
        return self._shape(name, 0, 1)

    def _shape(self, name: str, at: int, only: int | None) -> int | str:
        node = self.makers.get(name)
        if node is None or node.op_type != "Shape" or node.input[0] not in self.dims:
            return ""
        dims = self.dims[node.input[0]]
        dims = dims[attribute(node, "start", 0) : attribute(node, "end", len(dims))]
        return dims[at] if at < len(dims) and only in (None, len(dims)) else ""


def _changed(node: NodeProto, rows: Rows, other: Array | None) -> Rows | None:
    """What Add, Mul or Unsqueeze with a constant makes of rows; None if they do not stay rows along axis 0."""
    rank = rows.offsets.ndim
    if node.op_type == "Unsqueeze":
        axes = [int(a) for a in (attribute(node, "axes", []) if other is None else other.ravel())]
        placed = sorted(a % (rank + len(axes)) for a in axes)
        return (
            None if not axes or placed[0] == 0 else replace(rows, offsets=np.expand_dims(rows.offsets, tuple(placed)))
        )
    if other is None or other.dtype.kind not in "iu":
        return None
    if node.op_type == "Mul":
        scalar = other.size == 1 and other.ndim <= rank
        return replace(rows, scale=rows.scale * int(other.ravel()[0]), offsets=rows.offsets * other) if scalar else None
    fits = other.ndim < rank or (other.ndim == rank and other.shape[0] == 1)
    return replace(rows, offsets=rows.offsets + other) if fits else None


def _dims(model: ModelProto) -> Mapping[str, Dims]:
    """Every value's dimensions as far as inference proves them."""
    skeleton = skeleton_of(model)[0]
    skeleton.graph.ClearField("value_info")
    graph = onnx.shape_inference.infer_shapes(skeleton).graph
    return {v.name: _of(v.type) for v in [*graph.input, *graph.value_info] if v.type.tensor_type.HasField("shape")}


def _of(kind: TypeProto) -> Dims:
    return [d.dim_value or d.dim_param for d in kind.tensor_type.shape.dim]


def fold_strided(model: ModelProto) -> None:
    """Make a Reshape of every such Gather, in place."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = [node for node in model.graph.node if _gathers_flat(node, makers)]
    if not found or not any(node.op_type == "Range" for node in model.graph.node):
        return
    reader, taken = _Reader(model), {*makers, *constant_tensors(model.graph), *(v.name for v in model.graph.input)}
    for node in found:
        flat = makers[node.input[0]]
        rows, target = reader.rows(node.input[1]), reader.constant(flat.input[1])
        if rows is None or target is None or target.tolist() != [-1] or not _all_rows(reader, flat.input[0], rows):
            continue
        shape = np.array([-1, *rows.offsets.shape[1:]], np.int64)
        name = free_name(f"{node.output[0]}_shape", taken)
        add_initializer(model, numpy_helper.from_array(shape), name)
        taken.add(name)
        node.CopyFrom(helper.make_node("Reshape", [flat.input[0], name], list(node.output), node.name))


def _gathers_flat(node: NodeProto, makers: Mapping[str, NodeProto]) -> bool:
    flat = makers.get(node.input[0]) if node.op_type == "Gather" and not attribute(node, "axis", 0) else None
    return flat is not None and flat.op_type == "Reshape"


def _all_rows(reader: _Reader, name: str, rows: Rows) -> bool:
    """Whether rows are all elements of a value, in order."""
    dims = reader.dims.get(name, [""])
    inner = [d for d in dims[1:] if isinstance(d, int)]
    whole = len(inner) == len(dims) - 1 and math.prod(inner) == rows.scale == rows.offsets.size
    in_order = np.array_equal(rows.offsets.ravel(), np.arange(rows.offsets.size))
    return whole and in_order and dims[0] != "" and reader.size(rows.limit) == dims[0]


__all__ = ["fold_strided"]
