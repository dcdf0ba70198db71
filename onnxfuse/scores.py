"""`--importance FILE.npz`: the user's own scores, an array for each layer's or group's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .channels import ChannelGroup, Channels, Slot
from .errors import UsageError, near
from .features import Feature
from .findings import Role
from .importance import METRICS, Function, GroupView, Scores
from .sources import Source, arrays_of
from .tensors import Array

Importance = str | Mapping[str, Array] | Callable[[GroupView], Scores]
"""A metric's name, an .npz file, its arrays, or a function."""


def check_importance(importance: Importance, given: Mapping[str, Source | None], alone: Sequence[str]) -> None:
    """What can be known to be wrong before there are groups.

    Args:
        given: the options that metrics may need, by name.
        alone: those of them that nothing else uses.

    Raises:
        UsageError: no such metric, or it lacks an option, or an option is given that nothing uses.
    """
    needs = None
    if isinstance(importance, str) and not importance.endswith(".npz"):
        if importance not in METRICS:
            raise UsageError(
                f"importance {importance!r} is not known; choose from {', '.join(METRICS)}, or give an .npz file"
            )
        needs = METRICS[importance].needs
        if needs is not None and given[needs] is None:
            raise UsageError(f"importance {importance!r} needs --{needs}")
    for name in alone:
        users = [m for m, metric in METRICS.items() if metric.needs == name]
        if given[name] is not None and name != needs:
            raise UsageError(f"--{name} is for --importance {' or '.join(users)}")


def function_of(importance: Importance, channels: Channels) -> Function:
    """The metric's function.

    Raises:
        UsageError: the user's file cannot be read, or names what the groups do not have.
    """
    if isinstance(importance, str) and importance in METRICS:
        return METRICS[importance].function
    return own_scores(arrays_of(importance), channels) if isinstance(importance, (str, Mapping)) else importance


def feature_of(importance: Importance) -> Feature | None:
    """What the metric wants to have measured."""
    known = isinstance(importance, str) and importance in METRICS
    return METRICS[str(importance)].feature if known else None


def own_scores(arrays: Mapping[str, Array], channels: Channels) -> Function:
    """A metric that looks scores up.

    An array for a layer has a score for each of its outputs; a group that several layers make takes the mean of
    theirs. An array for a group (by the name that the report shows) has a score for each of its channels.

    Raises:
        UsageError: a name that makes no channels of any group, or what are no real numbers.
    """
    known = dict.fromkeys(name for g in channels.groups for name in (g.name, *(s.node for s in _made(g))))
    for name in arrays:
        if name not in known:
            raise UsageError(f"--importance: {name!r} makes no channels that may shrink{near(name, known)}")
        if arrays[name].dtype.kind not in "fiub":
            raise UsageError(f"--importance: {name!r} is {arrays[name].dtype}; give numbers from 0 up")

    def look_up(view: GroupView) -> Scores:
        group = view.group
        layers = {s.node: s for s in _made(group) if s.node in arrays}
        found = [_scores(arrays[s.node], s, _outputs(s, channels)) for s in layers.values()]
        if not found and group.name in arrays and arrays[group.name].shape == (group.channels,):
            found = [arrays[group.name]]
        if not found:
            raise UsageError(
                f"--importance: has no {group.channels} scores for {group.name}; add them, or --exclude it"
            )
        return np.asarray(np.mean(found, axis=0))

    return look_up


def _made(group: ChannelGroup) -> list[Slot]:
    return [s for s in group.slots if s.role is Role.PRODUCES]


def _outputs(slot: Slot, channels: Channels) -> int:
    """How many channels the layer makes in all: some may belong to other groups, or be locked."""
    shape = channels.tracker.shape(slot.tensor)
    split = (slot.split, shape[0] // slot.split, *shape[1:]) if slot.split > 1 else shape
    return int(np.prod([split[a] for a in slot.axes]))


def _scores(array: Array, slot: Slot, outputs: int) -> Array:
    """(n,) of the slot's channels: one number for each output of the layer, or for each channel of the group."""
    if array.shape == (outputs,):
        return np.asarray(array[slot.positions].mean(axis=1))
    if array.shape == (len(slot.positions),):
        return array
    raise UsageError(f"--importance: {slot.node!r} has {outputs} outputs, its scores have shape {list(array.shape)}")
