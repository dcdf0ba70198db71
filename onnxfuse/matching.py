"""Which array of a training framework's weights is which initializer of an ONNX file, and how it lies there.

by name      the same name, or one that ends in it, path separators aside
by value     the same numbers, axes in another order (Gemm and MatMul kernels, HWIO convolutions)
by product   a convolution and a BatchNormalization that the exporter folded into one
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .errors import UsageError
from .tensors import Array

CLOSE = 1e-5
"""Relative difference of arrays that count as equal."""
EPSILONS = (1e-3, 1e-5, 1e-6, 1e-8)
"""What frameworks add to a variance; which it was is told by the numbers."""
NORMS = (
    ("weight", "bias", "running_mean", "running_var"),
    ("gamma", "beta", "moving_mean", "moving_variance"),
    ("gamma", "beta", "moving_mean", "moving_var"),
    ("scale", "bias", "mean", "var"),
)
"""How frameworks name γ, β, mean and variance of one normalization."""


@dataclass(frozen=True)
class Match:
    """Where an initializer lies in the state: initializer = transpose(state[key], axes)."""

    key: str
    axes: tuple[int, ...]

    def read(self, state: Mapping[str, Array]) -> Array:
        return np.transpose(state[self.key], self.axes)

    def back(self, values: Array) -> Array:
        """The initializer as it lies in the state."""
        return np.ascontiguousarray(np.transpose(values, np.argsort(self.axes)))


@dataclass(frozen=True)
class NormKeys:
    """A normalization in the state: keys of γ, β, mean, variance, and its ε."""

    keys: tuple[str, ...]
    epsilon: float


def words(name: str) -> list[str]:
    """A name's parts, whatever separates them."""
    return [w for w in re.split(r"[./:]+", name.removesuffix(":0")) if w]


def by_name(names: Sequence[str], state: Mapping[str, Array]) -> dict[str, str]:
    """Initializer → key, where a name tells."""
    found = {n: n for n in names if n in state}
    for name in (n for n in names if n not in found):
        tail = words(name)
        ends = [k for k in state if k not in found.values() and _ends_alike(words(k), tail)]
        if len(ends) == 1:
            found[name] = ends[0]
    return found


def _ends_alike(a: Sequence[str], b: Sequence[str]) -> bool:
    short = min(len(a), len(b))
    return short > 1 and list(a[-short:]) == list(b[-short:])


def orders(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Orders of axes that give the wanted shape; as they are first."""
    for axes in itertools.permutations(range(len(shape))):
        if [shape[a] for a in axes] == list(wanted):
            yield axes


def same(a: Array, b: Array) -> bool:
    """Whether two arrays are equal but for rounding."""
    size = float(np.abs(b).max(initial=0)) or 1.0
    return a.shape == b.shape and bool(np.abs(a - b).max(initial=0) <= CLOSE * size)


def by_value(name: str, values: Array, state: Mapping[str, Array], keys: Sequence[str]) -> Match | None:
    """The array among `keys` that holds these values, the one with the most similar name first."""
    for key in sorted(keys, key=lambda k: -difflib.SequenceMatcher(None, name, k).ratio()):
        if state[key].ndim == values.ndim:
            for axes in orders(state[key].shape, values.shape):
                if same(np.transpose(state[key], axes), values):
                    return Match(key, axes)
    return None


def norms(state: Mapping[str, Array]) -> Iterator[tuple[str, ...]]:
    """Keys of γ, β, mean and variance of every normalization in the state."""
    for last in NORMS:
        for key in state:
            stem = key.removesuffix(last[3])
            keys = tuple(stem + end for end in last)
            if stem != key and all(k in state for k in keys):
                yield keys


def by_product(
    weight: Array, bias: Array, axis: int, state: Mapping[str, Array], keys: Sequence[str]
) -> tuple[Match, Match | None, NormKeys] | None:
    """The kernel, its own bias if it has one, and the normalization whose product an exporter's layer is.

    W = K·s, b = β + (b₀ − μ)·s, s = γ/√(σ²+ε).
    """
    for key in (k for k in keys if state[k].ndim == weight.ndim):
        for axes in orders(state[key].shape, weight.shape):
            scale = _row_factors(np.transpose(state[key], axes), weight, axis)
            if scale is None:
                continue
            for norm in norms(state):
                parameters = [np.asarray(state[k], np.float64) for k in norm]
                epsilon = _epsilon(scale, parameters)
                if epsilon is None:
                    continue
                alive = scale != 0
                own = np.where(alive, (bias - parameters[1]) / np.where(alive, scale, 1) + parameters[2], 0)
                found = _own_bias(own, parameters[2], state, [k for k in keys if k not in (key, *norm)])
                if found is not False:
                    return Match(key, axes), found, NormKeys(norm, epsilon)
    return None


def _own_bias(
    own: Array, mean: Array, state: Mapping[str, Array], keys: Sequence[str]
) -> Match | Literal[False] | None:
    """The array that holds this bias; None if it is but rounding, False if there is none such."""
    slack = 1e-3 * (np.abs(own).max(initial=0) + np.abs(mean).max(initial=0) + 1)
    if np.abs(own).max(initial=0) <= slack:
        return None
    near = [k for k in keys if state[k].shape == own.shape and np.abs(state[k] - own).max() <= slack]
    return Match(near[0], (0,)) if near else False


def _row_factors(kernel: Array, weight: Array, axis: int) -> Array | None:
    """s with weight = kernel·s along an axis; None if there is none."""
    k, w = (np.moveaxis(np.asarray(a, np.float64), axis, 0).reshape(a.shape[axis], -1) for a in (kernel, weight))
    size = np.einsum("nd,nd->n", k, k)
    scale = np.einsum("nd,nd->n", k, w) / np.where(size > 0, size, 1)
    return scale if same(k * scale[:, None], w) else None


def _epsilon(scale: Array, norm: Sequence[Array]) -> float | None:
    """ε of the normalization that gave this scale; None if it is another one."""
    gamma, _, _, variance = norm
    if gamma.shape != scale.shape or not np.array_equal(np.sign(gamma), np.sign(scale)):
        return None
    alive = scale != 0
    epsilon = float(np.median((gamma[alive] / scale[alive]) ** 2 - variance[alive])) if alive.any() else 0.0
    usual = min(EPSILONS, key=lambda e: abs(e - epsilon))
    close = np.abs(gamma / np.sqrt(variance + usual) - scale).max() <= 1e-3 * np.abs(scale).max()
    return usual if close else None


def complain(missing: Sequence[str], state: Mapping[str, Array], given: bool) -> UsageError:
    """That these initializers have no counterpart."""
    listed = ", ".join(repr(n) for n in missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    keys = ", ".join(list(state)[:5]) + (", …" if len(state) > 5 else "")
    advice = "export the model from these weights" if given else "give the original file as model=, to match by values"
    return UsageError(f"the plan changes {listed}, which no array of the weights ({keys}) answers to; {advice}")
