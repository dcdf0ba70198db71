"""`--gradients`: ∂L/∂w by initializer name, from any training framework, as products w · ∂L/∂w for the Taylor metric.

The gradients are those of the file as it is. Folding a BatchNormalization into a producer makes its weights s·w and
their gradients ∂L/∂w / s, so the products stay what they are; that is why only they are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto

from .errors import UsageError, near
from .folding import Folded
from .protos import constant_tensors
from .sources import Source, arrays_of
from .tensors import Array, values_of


class Salience:
    """Products w · ∂L/∂w by the name that a weight has in the prepared graph."""

    def __init__(self, products: Mapping[str, Array], folded: Sequence[Folded], clones: Mapping[str, str]) -> None:
        self.products = products
        self.origin = {f.weight: f.source for f in folded if f.weight != f.source} | dict(clones)

    def __getitem__(self, tensor: str) -> Array:
        """The products of one weight.

        Raises:
            UsageError: it has no gradient.
        """
        name = tensor
        while name not in self.products and name in self.origin:
            name = self.origin[name]
        if name not in self.products:
            raise UsageError(
                f"--gradients: has none for weight {name!r}; give one (of a weight that the graph computes from "
                "constants, those of the file with constants folded), or leave its channels alone with --exclude"
            )
        return self.products[name]


def products(model: ModelProto, source: Source) -> dict[str, Array]:
    """Initializer → w · ∂L/∂w. Gradients of biases and normalizations may be there; they are not used.

    Args:
        model: as it was read.
        source: an array for each weight's name.

    Raises:
        UsageError: an array that belongs to no initializer, or does not fit it, or is not finite.
    """
    constants, found = constant_tensors(model.graph), dict[str, Array]()
    for name, gradient in arrays_of(source).items():
        if name not in constants:
            raise UsageError(f"--gradients: {name!r} is no initializer of the model{near(name, constants)}")
        weight = values_of(constants[name])
        if gradient.shape != weight.shape:
            shapes = f"{list(gradient.shape)}, its weight has {list(weight.shape)}"
            hint = "; transpose it" if gradient.shape == weight.shape[::-1] else ""
            raise UsageError(f"--gradients: {name!r} has shape {shapes}{hint}")
        if gradient.dtype.kind != "f" or not np.isfinite(gradient).all():
            raise UsageError(f"--gradients: {name!r} has values that are no finite floats")
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            found[name] = weight.astype(np.float32) * gradient.astype(np.float32)
        if not np.isfinite(found[name]).all():
            raise UsageError(f"--gradients: {name!r} times its weight is more than float32 holds; scale all down")
    return found
