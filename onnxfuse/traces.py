"""What the channels of every group carry on some samples, as features of unit length to tell them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from .activations import Place, place
from .calibdata import Batches
from .channels import ChannelGroup, Channels
from .findings import Role
from .protos import constant_tensors
from .segments import Segments
from .sessions import session
from .standin import in_float32
from .tensors import Array, set_values

COLUMNS = 4096
"""Numbers of each channel that are looked at in one value, at random places: the same in all models."""


@dataclass(frozen=True, eq=False)
class Traces:
    """Of one model.

    Attributes:
        features: for each group (n, d), centred and of unit length in each value that carries it, side by side.
        sizes: for each group segment → (n,) root mean squares, where channels may be rescaled.
    """

    features: tuple[NDArray[np.float32], ...]
    sizes: tuple[Mapping[int, NDArray[np.float64]], ...]


def traces(
    channels: Channels,
    segments: Sequence[Segments],
    batches: Batches,
    twin: Mapping[str, Array],
    providers: Sequence[str],
) -> Traces:
    """Run a model once.

    Args:
        channels: of the model.
        segments: of its groups, in their order.
        batches: the samples.
        twin: constants that have other values for this.
        providers: of onnxruntime.
    """
    groups = channels.groups
    found = {(i, name): at for i, g in enumerate(groups) for name, at in _places(channels, g).items()}
    names = list(dict.fromkeys(name for _, name in found))
    model = ModelProto()
    model.CopyFrom(channels.tracker.graph.model)
    constants, have = constant_tensors(model.graph), {o.name for o in model.graph.output}
    for name, new in twin.items():
        set_values(constants[name], new)
    model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in have)
    run = session(in_float32(model) if channels.tracker.probe.stand_in else model, providers)
    seen: dict[tuple[int, str], list[Array]] = {key: [] for key in found}
    for batch in batches:
        values = dict(zip(names, run.run(names, batch) if names else (), strict=True))
        for (i, name), at in found.items():
            seen[i, name].append(_columns(values[name], at, len(batches)))
    rows = {key: np.concatenate(parts, axis=1) for key, parts in seen.items()}
    own = [{name: rows[i, name] for j, name in rows if j == i} for i in range(len(groups))]
    return Traces(tuple(map(_features, own)), tuple(map(_sizes, own, segments)))


def _places(channels: Channels, group: ChannelGroup) -> dict[str, Place]:
    """What weights make of the group, and what they read of it: value → where."""
    graph, found = channels.tracker.graph, {}
    for slot in channels.slots:
        in_branch = slot.edge.node in graph.inner  # what a branch computes is no output
        if not in_branch and np.isin(channels.classes[slot.ids], group.classes).any():
            node = graph.nodes[slot.edge.node]
            values = {Role.PRODUCES: node.outputs[:1], Role.SCALE: node.outputs[:1]}.get(slot.role, node.inputs)
            for value in values:
                at = None if value.name in graph.constants else place(channels, group, value.name)
                if at is not None:
                    found[value.name] = Place(0, *at)
    return found


def _columns(value: Array, at: Place, batches: int) -> NDArray[np.float32]:
    """(n, some) what the channels carry in one batch."""
    moved = np.moveaxis(value, at.axis, 0)[at.positions]  # (n, q, samples, …)
    flat = moved.reshape(len(moved), -1)
    most = COLUMNS // batches + 1
    if flat.shape[1] > most:
        flat = flat[:, np.random.default_rng(flat.shape[1]).choice(flat.shape[1], most, replace=False)]
    return np.asarray(flat, np.float32)


def _features(rows: Mapping[str, Array]) -> NDArray[np.float32]:
    parts = []
    for values in rows.values():
        centred = values - values.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(centred, axis=1, keepdims=True)
        parts.append(centred / np.where(norm > 1e-6 * norm.max(initial=0), norm, np.inf))
    if not parts:
        return np.zeros((0, 0), np.float32)
    return np.asarray(np.concatenate(parts, axis=1) / np.sqrt(len(parts)), np.float32)


def _sizes(rows: Mapping[str, Array], segments: Segments) -> dict[int, NDArray[np.float64]]:
    squares: dict[int, list[NDArray[np.float64]]] = {}
    for name, values in rows.items():
        squares.setdefault(segments.values[name], []).append(np.mean(values.astype(np.float64) ** 2, axis=1))
    return {s: np.sqrt(np.sum(parts, axis=0)) for s, parts in squares.items() if s in segments.free}
