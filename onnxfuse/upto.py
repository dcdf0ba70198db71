"""Run a graph on samples, up to some of its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from onnx import ModelProto

from .errors import Unsound, one_line
from .picking import with_outputs
from .providers import provider_list
from .sessions import session
from .standin import in_float32
from .tensors import Array

Result = TypeVar("Result")


DRAWN = "synthetic samples"
"""What samples of our own are called."""


def up_to(
    model: ModelProto, stand_in: bool, names: Sequence[str], samples: str = DRAWN
) -> Callable[[Mapping[str, Array]], list[Array]]:
    """What makes these values, in this order, of a batch, in one session for all batches.

    Args:
        model: whose main graph has the values.
        stand_in: whether it runs in float32, because onnxruntime has no kernels for its numbers.
        names: of the values.
        samples: what the batches are of, for messages.

    Raises:
        Unsound: onnxruntime cannot open the model so; or, when a batch is run, run it.
    """
    part = with_outputs(in_float32(model) if stand_in else model, list(names))
    opened = _sound(lambda: session(part, provider_list("cpu")), samples)
    return lambda batch: _sound(lambda: opened.run(list(names), dict(batch)), samples)


def _sound(run: Callable[[], Result], samples: str) -> Result:
    try:
        return run()
    except Exception as error:  # onnxruntime has no base class for what it raises
        raise Unsound(f"onnxruntime cannot run the model on {samples}: {one_line(error)}") from error
