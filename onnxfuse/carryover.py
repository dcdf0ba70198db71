"""Synthetic samples of a recurrent network as it is used: each starts from the state that the one before it has left.

From a state of zeros, as on the first call, a network sees in every sample what it sees once. Silero's VAD (as PyPI has
it) without 30% of its channels has an AUC of 0.899 when it is fitted to first calls only, of 0.953, as before, when it
is fitted to calls that follow each other, although what these hear has nothing to do with what was heard before.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from .calibdata import Batches
from .probe import Probe
from .states import is_state
from .tensors import Array
from .upto import DRAWN, up_to


def next_states(model: ModelProto, probe: Probe) -> dict[str, str]:
    """State → the output that has its next value: of its type and shape, with a name that begins with its own.

    Or in the model's order, if as many outputs as states have that shape.
    """
    states = [v.name for v in model.graph.input if v.name in probe.inputs and is_state(model, v.name)]
    found = dict[str, str]()
    for name in states:
        like = _kind(probe.inputs[name])
        same = [n for n, a in probe.outputs.items() if isinstance(a, np.ndarray) and _kind(a) == like]
        alike = [n for n in states if _kind(probe.inputs[n]) == like]
        named = [n for n in same if n.startswith(name)]
        if named or len(same) == len(alike):
            found[name] = named[0] if named else same[alike.index(name)]
    return found


def _kind(values: Array) -> tuple[object, ...]:
    return values.dtype, values.shape


def carried_over(model: ModelProto, probe: Probe, batches: Batches, samples: str = DRAWN) -> Batches:
    """Batches that start from the states that the one before has left; from their own, if any of these is not zero.

    Raises:
        Unsound: onnxruntime cannot run the model on them.
    """
    following = next_states(model, probe)
    if not following or any(batch[name].any() for batch in batches for name in following):
        return batches
    run, found, states = up_to(model, probe.stand_in, list(following.values()), samples), Batches(), dict[str, Array]()
    for batch in batches:
        found.append({**batch, **{n: v for n, v in states.items() if v.shape == batch[n].shape}})
        states = {n: v.astype(batch[n].dtype) for n, v in zip(following, run(found[-1]), strict=True)}
    return found
