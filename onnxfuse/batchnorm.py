"""Put BatchNormalizations back that were folded, so that an averaged model can be trained and pruned like its parents.

γ and β are the parents' averages, the deviation and mean that each channel has on training data; weights and
running mean follow from the folded ones, so that nothing changes:

    s = γ/√(σ²+ε)    W = W′/s    μ = (β − b′)/s
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from .folding import FOLDABLE, Folded
from .producers import scaled_rows
from .protos import add_initializer, constant_tensors, free_name
from .tensors import set_values, values_of

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Norm:
    """One normalization to put back.

    Attributes:
        folded: what it was, in the first model.
        gamma, mean, variance: (n,) averages of the parents' |γ|, β, σ².
        biased: whether its producer had a bias before.
    """

    folded: Folded
    gamma: Vector
    mean: Vector
    variance: Vector
    biased: bool


def unfold(model: ModelProto, norms: Mapping[str, Norm]) -> None:
    """Put them back, in place. `norms` are by the output of the normalization, which its producer makes now."""
    constants = constant_tensors(model.graph)
    for i in reversed(range(len(model.graph.node))):
        node = model.graph.node[i]
        norm = norms.get(node.output[0]) if node.op_type in FOLDABLE else None
        if norm is None:
            continue
        weight, bias, f = constants[node.input[1]], constants[node.input[2]], norm.folded
        scale = norm.gamma / np.sqrt(norm.variance + f.epsilon)
        dead = ~(scale > 0)
        gamma, scale = np.where(dead, np.sqrt(norm.variance + f.epsilon), norm.gamma), np.where(dead, 1, scale)
        shift = np.array(values_of(bias), np.float64)
        values = gamma, norm.mean, (norm.mean - shift) / scale, norm.variance
        set_values(weight, scaled_rows(node, values_of(weight), 1 / scale))
        set_values(bias, np.zeros_like(shift))
        dtype = values_of(weight).dtype
        names = [name if name not in constants else free_name(name, constants) for name in f.norm]
        for name, vector in zip(names, values, strict=True):
            constants[name] = add_initializer(model, numpy_helper.from_array(vector.astype(dtype)), name)
        result, node.output[0] = node.output[0], f"{node.output[0]}_before_norm"
        made = helper.make_node("BatchNormalization", [node.output[0], *names], [result], epsilon=f.epsilon)
        made.name = f"{node.name}/BatchNormalization" if node.name else ""
        if not norm.biased:
            _drop_bias(model, node.input[2])
            del node.input[2:]
        model.graph.node.insert(i + 1, made)


def _drop_bias(model: ModelProto, name: str) -> None:
    for values in (model.graph.initializer, model.graph.input):
        for i in reversed(range(len(values))):
            if values[i].name == name:
                del values[i]
