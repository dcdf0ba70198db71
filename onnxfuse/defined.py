"""Whether a model's own outputs are numbers that results can be compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import ModelProto

from .calibdata import Batches
from .errors import VerificationFailed
from .probe import Probe, probe_on
from .protos import constant_tensors
from .tensors import FLOATS, Array, values_of

UNDEFINED = (
    "output {!r} is NaN or infinite on the input that is tried{}, so nothing can be compared; give samples with "
    "--calib on which the model makes numbers"
)


def defined(reference: Probe, model: ModelProto, samples: Callable[[], Batches], providers: Sequence[str]) -> Probe:
    """A run of the model that results can be compared with.

    Args:
        reference: on made-up inputs, which it stays on if all outputs are finite.
        model: that was run.
        samples: reads the user's, if there are any; else the model runs on the first of them.
        providers: of onnxruntime.

    Raises:
        VerificationFailed: all that it makes is NaN or infinite, and no weight of it is.
    """
    if all(np.isfinite(a).all() for a in reference.outputs.values() if is_real(a)):
        return reference
    if batches := samples():
        reference = probe_on(reference, model, providers, batches[0])
    weights = [values_of(t) for t in constant_tensors(model.graph).values() if t.data_type in FLOATS]
    if all(np.isfinite(w).all() for w in weights):  # else it is the weight that is named, where it is merged
        check_defined(reference)
    return reference


def check_defined(reference: Probe) -> None:
    """Refuse a run that makes no number at all.

    Raises:
        VerificationFailed: all that it makes is NaN or infinite.
    """
    made = {n: a for n, a in reference.outputs.items() if is_real(a) and a.size}
    if made and not any(np.isfinite(a).any() for a in made.values()):
        raise VerificationFailed(UNDEFINED.format(next(iter(made)), ""))


def is_real(value: Array) -> bool:
    """Whether it is an array of real numbers."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"
