"""How a file holds constants that are real numbers: as integers, with a scale and a zero point."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from .protos import attribute, copies
from .tensors import Array


@dataclass(frozen=True, eq=False)
class Scheme:
    """How one constant of real numbers is held in the file.

    Attributes:
        tensor: name of the constant, in real numbers.
        stored, scale, zero: names of the initializers that hold it; '' for one that there is not.
        integers, scales, zeros: their values; `scales` and `zeros` are scalar, or vectors along `axis`.
        axis: of a scale per channel.
        nodes: the nodes that make real numbers of it, taken out of the graph; none if an operator reads integers.
        follows: the weight in whose scale, times `factor`, it counts; '' if it has a scale of its own.
        order: of the axes in the file, if the last of the nodes transposes them.
        floats: whether the file holds real numbers that its nodes quantize.
    """

    tensor: str
    stored: str
    scale: str
    zero: str
    integers: Array
    scales: Array
    zeros: Array
    axis: int
    nodes: tuple[NodeProto, ...] = ()
    follows: str = ""
    factor: Array | None = None
    order: tuple[int, ...] = ()
    floats: bool = False

    def agrees(self, other: Scheme | None) -> bool:
        """Whether another scheme of the same constant, if there is one, says the same."""
        return other is None or (self.scale, self.zero, self.axis) == (other.scale, other.zero, other.axis)

    def real(self) -> Array:
        """The constant's values."""
        return self.values(self.integers, self.scales, self.zeros)

    def values(self, integers: Array, scales: Array, zeros: Array) -> Array:
        """What the integers stand for, in the type of the scales."""
        return np.asarray((integers.astype(np.float64) - self.along(zeros)) * self.along(scales)).astype(scales.dtype)

    def held(self, integers: Array, scales: Array, zeros: Array) -> Array:
        """What the file holds of it: the integers, or the real numbers that its nodes quantize."""
        stored = self.values(integers, scales, zeros) if self.floats else integers
        return np.transpose(stored, np.argsort(self.order)) if self.order else stored

    def transposed(self, node: NodeProto) -> Scheme:
        """The same constant as a Transpose that follows makes it."""
        order = tuple(attribute(node, "perm") or reversed(range(self.integers.ndim)))
        axis = order.index(self.axis) if self.scales.size > 1 else self.axis
        nodes, integers = (*self.nodes, *copies(node)), np.transpose(self.integers, order)
        return replace(self, tensor=node.output[0], integers=integers, axis=axis, nodes=nodes, order=order)

    def along(self, vector: Array) -> NDArray[np.float64]:
        """A vector along `axis`, or a scalar, so that it broadcasts to the constant."""
        form = [-1 if a == self.axis else 1 for a in range(self.integers.ndim)]
        return vector.astype(np.float64).reshape(form if vector.size > 1 else [1] * len(form))


def in_steps(values: Array, scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values over scales; a scale of 0, which a channel of zeros may have, represents nothing but 0."""
    scales = np.broadcast_to(scales, values.shape)
    return np.divide(values, scales, out=np.zeros(values.shape), where=scales != 0)


@dataclass(frozen=True, eq=False)
class Layer:
    """The nodes of a dynamically quantized layer.

    Attributes:
        scaled_by: the weight's scale.
        quantize: makes integers, their scale and zero point of what is read.
        integer: multiplies them by a weight.
        cast: makes real numbers of the result.
        scale: multiplies both scales.
        product: multiplies the two before.
    """

    scaled_by: str
    quantize: NodeProto
    integer: NodeProto
    cast: NodeProto
    scale: NodeProto
    product: NodeProto


@dataclass
class Lowered:
    """What `lower` changed.

    Attributes:
        schemes: constant of real numbers → how the file holds it.
        operators: output of the node in its place → an integer operator as it was.
        like: value that there was not → the one whose shape it has.
        idle: what nothing read before.
        layers: output of a node that stands for a whole layer → the layer.
    """

    schemes: dict[str, Scheme] = field(default_factory=dict)
    operators: dict[str, NodeProto] = field(default_factory=dict)
    like: dict[str, str] = field(default_factory=dict)
    idle: set[str] = field(default_factory=set)
    layers: dict[str, Layer] = field(default_factory=dict)

    def element_bytes(self) -> dict[str, int]:
        """Constant of real numbers → bytes that one of its elements takes in the file."""
        return {n: (s.scales if s.floats else s.integers).dtype.itemsize for n, s in self.schemes.items()}
