"""`apply_plan`: do to the weights of a training framework what a run did to the ONNX file exported from them.

A plan folds BatchNormalization before it merges. Frameworks keep it apart, so the merged weights W′, b′ are unfolded
again: the normalization keeps γ, β and σ² of the channel whose place each new one takes, and

    s = γ/√(σ²+ε)    W = W′/s    μ = b₀ − (b′ − β)/s

makes the two of them compute the same (b₀ is the convolution's own bias, if it has one). A channel that was only kept
keeps its numbers. In training, where batches replace μ and σ², each channel has the mean β and the deviation |γ| that
repair gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from onnx import ModelProto

from .errors import UsageError
from .kinds import checked
from .matching import Match, NormKeys, by_name, by_product, by_value, complain, orders, same
from .origin import ModelSource, PathLike
from .plan import Plan
from .prepare import prepare
from .producers import out_axis
from .protos import attribute, constant_tensors
from .redo import Mask, Record, record, redo, scaled
from .tensors import Array, values_of

State = TypeVar("State", bound="Mapping[str, Any] | Sequence[Any]")


@dataclass(frozen=True, eq=False)
class _Fold:
    """A layer and its normalization, which the plan knows as one.

    Attributes:
        weight, bias: initializers of the folded layer.
        kernel: where its weight lies in the state.
        own_bias: where its bias does, if it has one.
        norm: the normalization.
        axis, split: of the weight, that counts outputs; the groups of a transposed convolution.
    """

    weight: str
    bias: str
    kernel: Match
    own_bias: Match | None
    norm: NormKeys
    axis: int
    split: int


@checked
def apply_plan(state: State, plan: Plan | PathLike, model: PathLike | ModelProto | None = None) -> State:
    """The small weights of a model in the framework it was trained with.

    Args:
        state: weights by name (PyTorch's state_dict, a dict of arrays) or a list of them (Keras's get_weights()). They
            are left alone. Names may differ from the file's in separators and prefixes.
        plan: `FuseResult.plan`, or the file that `--plan` wrote, its .npz beside it.
        model: the file that the plan was made for. It is needed where names tell nothing: initializers called
            onnx::MatMul_42, transposed kernels, BatchNormalization folded by the exporter. Then values decide.

    Returns:
        The same names or order, with small arrays where the plan changed them; tensors where `state` has tensors
        (what has a `new_tensor`), NumPy arrays otherwise. What the plan does not mention stays.

    Raises:
        UsageError: the plan or model cannot be read, or arrays do not answer to it; the message names them.
    """
    named: Mapping[str, Any] = state if isinstance(state, Mapping) else {str(i): v for i, v in enumerate(state)}
    arrays = {key: _array(value) for key, value in named.items()}
    todo = _Applied(record(plan if isinstance(plan, Plan) else Path(plan)), arrays, _original(model))
    new = {key: _like(named[key], array) for key, array in todo.small().items()}
    small = {key: new.get(key, value) for key, value in named.items()}
    result: Any = small if isinstance(state, Mapping) else list(small.values())
    return cast(State, result)


def _array(value: Any) -> Array:
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    return array.astype(np.float32) if array.dtype == np.float16 else array  # SciPy multiplies none in half precision


def _like(old: Any, array: Array) -> Any:
    if hasattr(old, "new_tensor"):
        return old.new_tensor(array)
    return array.astype(getattr(old, "dtype", array.dtype)) if isinstance(old, np.ndarray) else array


def _original(model: PathLike | ModelProto | None) -> ModelProto | None:
    if model is None:
        return None
    original = ModelSource(model).load()
    prepare(original, exclude=[""])  # everything but the folding of BatchNormalization
    return original


class _Applied:
    """One plan and the arrays it is applied to."""

    def __init__(self, plan: Record, state: Mapping[str, Array], original: ModelProto | None) -> None:
        self.plan, self.state, self.original = plan, state, original
        self.file = {n: values_of(t) for n, t in constant_tensors(original.graph).items()} if original else {}
        self.clones: Mapping[str, str] = plan.json["clones"]
        self.folded = {name: f for f in plan.json["folded_batch_norms"] for name in (f["weight"], f["bias"])}
        self.changed = list(dict.fromkeys(self._source(n) for n in plan.initializers()))
        self.matches: dict[str, Match] = {}
        self.folds: dict[str, _Fold] = {}
        self._match()

    def _source(self, name: str) -> str:
        """The initializer that a copy was made of."""
        while name in self.clones:
            name = self.clones[name]
        return name

    # --- matching -----------------------------------------------------------------------------------------------
    def _match(self) -> None:
        """Find every initializer that the plan changes.

        Raises:
            UsageError: there are some that cannot be found.
        """
        folds = list({id(f): f for n in self.changed if (f := self.folded.get(n))}.values())
        direct = [n for n in self.changed if n not in self.folded]
        names = [*direct, *(n for f in folds for n in (_unfolded(f), *f["norm"]))]
        self._match_all(names)
        layers = self._exported_folded([n for n in direct if n not in self.matches])
        missing = [n for n in names if n not in self.matches and n not in layers]
        if missing:
            raise complain(missing, self.state, self.original is not None)
        for f in folds:
            self._match_all([f["bias"]])
            keys = tuple(self.matches[n].key for n in f["norm"])
            kernel, bias = self.matches.pop(_unfolded(f)), self.matches.pop(f["bias"], None)
            norm = NormKeys(keys, f["epsilon"])
            self.folds[f["weight"]] = _Fold(f["weight"], f["bias"], kernel, bias, norm, *self._outputs(f["weight"]))

    def _match_all(self, names: Sequence[str]) -> None:
        """By name, and by values where the file is known."""
        named = by_name(names, self.state)
        wrong = []
        for name in names:
            taken = {m.key for m in self.matches.values()}
            match = self._named(name, named[name]) if name in named else None
            if match is None and name in self.file:
                match = by_value(name, self.file[name], self.state, [k for k in self.state if k not in taken])
            if match is not None:
                self.matches[name] = match
            elif name in named:
                wrong.append(f"{named[name]!r} has shape {list(self.state[named[name]].shape)}, the file's {name!r} "
                             f"{list(self.file[name].shape)}")  # fmt: skip
        if wrong:
            raise UsageError(f"the weights do not fit the model: {'; '.join(wrong)}; give those it was exported from")

    def _named(self, name: str, key: str) -> Match | None:
        """The array of that name, in the order of axes that gives the file's values, or else its shape."""
        array = self.state[key]
        if name not in self.file:
            return Match(key, tuple(range(array.ndim)))
        fitting = list(orders(array.shape, self.file[name].shape))
        equal = [axes for axes in fitting if same(np.transpose(array, axes), self.file[name])]
        return Match(key, (equal or fitting)[0]) if fitting else None

    def _exported_folded(self, names: Sequence[str]) -> set[str]:
        """Names that are products of a layer and a normalization that the exporter folded."""
        found: set[str] = set()
        for node in self.original.graph.node if self.original else ():
            if len(node.input) < 3 or not {node.input[1], node.input[2]} & set(names) or node.input[1] in self.matches:
                continue
            weight, bias = node.input[1:3]
            taken = {m.key for m in self.matches.values()} | {f.kernel.key for f in self.folds.values()}
            free = [k for k in self.state if k not in taken]
            pair = by_product(self.file[weight], self.file[bias], out_axis(node), self.state, free)
            if pair is not None:
                split = attribute(node, "group", 1) if node.op_type == "ConvTranspose" else 1
                self.folds[weight] = _Fold(weight, bias, *pair, out_axis(node), split)
                found |= {weight, bias}
        return found

    def _outputs(self, weight: str) -> tuple[int, int]:
        """The axis of a weight that counts outputs, and the groups of a transposed convolution."""
        for g in self.plan.json["groups"]:
            for s in g["slots"]:
                if s["initializer"] == weight and s["role"] in ("produces", "scale"):
                    split, axis = s["split"], s["axes"][-1]
                    return (0, 1) if split > 1 and axis == 1 else (max(axis - 1, 0), split) if split > 1 else (axis, 1)
        return next((r["outputs_axis"] for r in self.plan.json["repairs"] if r["initializer"] == weight), 0), 1

    # --- applying -----------------------------------------------------------------------------------------------
    def small(self) -> dict[str, Array]:
        """Key → the new array, for everything that changes."""
        values: dict[str, Array] = {n: np.array(m.read(self.state)) for n, m in self.matches.items()}
        for fold in self.folds.values():
            values[fold.weight], values[fold.bias] = self._folded(fold)
        for copy in self.clones:
            if self._source(copy) in values:
                values[copy] = np.array(values[self._source(copy)])
        try:
            kept = redo(self.plan, values)
        except (IndexError, ValueError) as error:
            message = "the weights have other sizes than those the plan is for; give the ones it was exported from"
            raise UsageError(message) from error
        result = {m.key: m.back(values[n]) for n, m in self.matches.items() if n in self.changed}
        for fold in self.folds.values():
            result |= self._unfolded(fold, values, kept.get(fold.bias, {}).get(((0,), 1)))
        return result | self._copies(values, result)

    def _norm(self, fold: _Fold) -> list[Array]:
        return [np.asarray(self.state[key], np.float64) for key in fold.norm.keys]

    def _folded(self, fold: _Fold) -> tuple[Array, Array]:
        gamma, beta, mean, variance = self._norm(fold)
        scale = gamma / np.sqrt(variance + fold.norm.epsilon)
        own = np.zeros(1) if fold.own_bias is None else fold.own_bias.read(self.state).ravel()
        weight = scaled(fold.kernel.read(self.state), scale, fold.axis, fold.split)
        return weight, (own - mean) * scale + beta

    def _unfolded(self, fold: _Fold, values: Mapping[str, Array], kept: Mask | None) -> dict[str, Array]:
        """The layer and its normalization, apart again."""
        gamma, beta, _, variance = (v if kept is None else v[kept] for v in self._norm(fold))
        scale = gamma / np.sqrt(variance + fold.norm.epsilon)
        gamma = np.where(scale == 0, np.sqrt(variance + fold.norm.epsilon), gamma)
        scale = np.where(scale == 0, 1, scale)
        own = np.zeros_like(beta)
        result = {fold.kernel.key: fold.kernel.back(scaled(values[fold.weight], 1 / scale, fold.axis, fold.split))}
        if fold.own_bias is not None:
            held = fold.own_bias.read(self.state)  # a Gemm's may have one number for all channels, or one row
            own = held if kept is None or held.size == 1 else held[..., kept]
            result[fold.own_bias.key] = own
        mean = own.ravel() - (values[fold.bias] - beta) / scale
        return result | dict(zip(fold.norm.keys, (gamma, beta, mean, variance), strict=True))

    def _copies(self, values: Mapping[str, Array], done: Mapping[str, Array]) -> dict[str, Array]:
        """What copies of a shared initializer became: the exporter had merged equal arrays of several layers.

        Raises:
            UsageError: the weights have one array where the small model needs several.
        """
        found: dict[str, Array] = {}
        for copy in (c for c in self.clones if c in values):
            source = self._source(copy)
            match = self.matches.get(source)
            if match is None or np.array_equal(values[copy], values[source]):
                continue
            equal = [
                k for k in self.state
                if k not in done and k not in found and same(self.state[k], self.state[match.key])
            ]  # fmt: skip
            stem = self._layer_of(copy)
            near = [k for k in equal if stem is not None and words_before(k) == stem]
            if not near:
                raise UsageError(
                    f"{match.key!r} is shared by several layers, which the plan changes in different ways; give each "
                    "layer an array of its own, and export and fuse the model again"
                )
            found[near[0]] = match.back(values[copy])
        return found

    def _layer_of(self, copy: str) -> str | None:
        """The stem of the key of another initializer that the same node uses."""
        slots = [s for g in self.plan.json["groups"] for s in g["slots"]]
        nodes = {s["node"] for s in slots if s["initializer"] == copy}
        others = [s["initializer"] for s in slots if s["node"] in nodes and s["initializer"] != copy]
        keys = [self.matches[n].key for n in others if n in self.matches]
        keys += [self.folds[n].kernel.key for n in others if n in self.folds]
        return words_before(keys[0]) if keys else None


def words_before(key: str) -> str:
    """A key without its last part."""
    return key.rpartition(".")[0] or key.rpartition("/")[0]


def _unfolded(folded: Mapping[str, Any]) -> str:
    """The initializer of a layer's weight before its normalization was folded."""
    return str(folded.get("source") or folded["weight"])
