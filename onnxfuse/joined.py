"""Outputs that are joined of parts of different sizes, such as boxes in pixels and scores from 0 to 1.

As a whole they are as alike as their largest part is: a detector that has lost all of its scores has a cosine of 0.99.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from .protos import attribute
from .tensors import Array

FAINT = 0.1
"""Of the root mean square of the largest part: parts of less are looked at apart."""
RESHAPING = frozenset("Cast Flatten Identity Reshape Squeeze Unsqueeze".split())
"""Operators that leave values in their order."""
Labels = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Faint:
    """The part of an output that counts for nothing beside the rest.

    Attributes:
        name: of the first value it is made of.
        mask: where it is; its first axis is 1 if all samples have it at the same places.
    """

    name: str
    mask: NDArray[np.bool_]

    def fits(self, values: Array) -> bool:
        """Whether an output has the shape that it had, but for the number of samples."""
        return values.shape[1:] == self.mask.shape[1:] and len(self.mask) in (1, len(values))

    def split(self, values: Array) -> tuple[Array, Array]:
        """The rest and this part of an output, samples along the first axis if all have it at the same places."""
        if len(self.mask) > 1:
            return values[~self.mask], values[self.mask]
        rows, mask = values.reshape(len(values), -1), self.mask.ravel()
        return rows[:, ~mask], rows[:, mask]


def faint_parts(
    model: ModelProto, outputs: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Faint]:
    """Output → its faint part, of those that have one.

    Args:
        model: the model.
        outputs: what it makes of some input.
        shapes: of its values, in the same run.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for name, values in outputs.items():
        real = isinstance(values, np.ndarray) and values.dtype.kind == "f" and values.ndim > 0 and values.size > 0
        if real and name in shapes and np.isfinite(values).all():
            parts = list[str]()
            labels = _labels(name, makers, shapes, parts)
            if len(parts) > 1 and (faint := _faint(values, labels, parts)):
                found[name] = faint
    return found


def taken_apart(
    original: Mapping[str, Array], result: Mapping[str, Array], faint: Mapping[str, Faint]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What both make, faint parts beside what is left of their outputs; not where the two have other shapes."""
    found = dict(original), dict(result)
    for name, part in faint.items():
        values = [np.asarray(made[name]) for made in found if name in made]
        if len(values) == len(found) and values[0].shape == values[1].shape and part.fits(values[0]):
            for made, value in zip(found, values, strict=True):
                made[name], made[f"{name} ({part.name})"] = part.split(value)
    return found


def _faint(values: Array, labels: Labels, parts: list[str]) -> Faint | None:
    flat = labels.ravel()
    energy = np.bincount(flat, np.square(values, dtype=np.float64).ravel(), len(parts))
    counts = np.bincount(flat, minlength=len(parts))
    size = np.sqrt(energy / np.maximum(counts, 1))
    little = (size < FAINT * size.max()) & (counts > 0)
    if not little.any():
        return None
    mask = np.asarray(little[labels])
    return Faint(parts[int(np.argmax(little))], mask[:1] if (mask == mask[:1]).all() else mask)


def _labels(
    name: str, makers: Mapping[str, NodeProto], shapes: Mapping[str, tuple[int, ...]], parts: list[str]
) -> Labels:
    """For each number of a value which part it belongs to; a value that nothing joins is a part, added to `parts`."""
    node, shape = makers.get(name), shapes.get(name, ())
    if node is not None and all(n in shapes for n in node.input[: 1 if node.op_type in RESHAPING else None]):
        if node.op_type == "Concat":
            inner = [_labels(n, makers, shapes, parts) for n in node.input]
            return np.concatenate(inner, axis=int(attribute(node, "axis", 0)))
        if node.op_type == "Transpose":
            return np.transpose(_labels(node.input[0], makers, shapes, parts), attribute(node, "perm", None))
        if node.op_type in RESHAPING:
            return _labels(node.input[0], makers, shapes, parts).reshape(shape)
    parts.append(name)
    return np.full(shape, len(parts) - 1, np.int32)
