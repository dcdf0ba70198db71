"""Whether a network reads what is written, or finds where something is: samples of it are like what it will see then.

What other networks look for is not known, and hardly to be drawn. Of those that read it is: they say so of writing that
was drawn for it, where it is, or how much, so what is measured on such is worth what is measured on the user's samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
from onnx import ModelProto

from .calibdata import Batches
from .errors import Unsound
from .feeds import free_axes
from .heldout import samples_in
from .pages import SIDE, has_room, marked_page
from .probe import Probe
from .samples import FLOATING, Scenes, all_writing, pictures, planes, synthetic
from .tensors import Array
from .upto import up_to
from .writing import counted_line

log = logging.getLogger("onnxfuse")
LINES, PAGES = 32, 8
"""That are looked at."""
TOLD = 0.7
"""Correlation, over lines, of how many signs an output tells with how many were written, from which on it reads."""
FOUND = 0.5
"""Mean correlation, over the places of pages, of a channel of an output with where lines are, from which it finds
them."""
COARSE = 8
"""Rows and columns of an image for each one of a map of it, at most."""
Truth = TypeVar("Truth")
Size = tuple[int, int]


def reads(model: ModelProto, probe: Probe, seed: int) -> bool:
    """Whether all that is drawn for a network is lines of writing, and it tells how many signs each has.

    Raises:
        Unsound: onnxruntime cannot run the model on them.
    """
    names = [n for n, a in probe.outputs.items() if _is_real(a) and a.ndim == 3]
    if not names or not all_writing(model, probe):
        return False
    noted = _Noted(counted_line)
    batches = synthetic(model, probe, LINES, (seed, 2), Scenes(line=noted))
    signs, counts = np.array(noted.truths), [samples_in(batch) for batch in batches]
    told = [np.concatenate(list(map(_emitted, made, counts))) for made in _made(model, probe, names, batches)]
    return any(len(own) == len(signs) and _alike(own[signs > 0], signs[signs > 0]) > TOLD for own in told)


def finds(model: ModelProto, probe: Probe, seed: int) -> bool:
    """Whether a network takes one image, and an output is a map of it that tells where lines of writing are.

    Raises:
        Unsound: onnxruntime cannot run the model on them.
    """
    images = pictures(model, probe)
    shapes = [planes(probe.inputs[n].shape) for n in probe.inputs.keys() & images]
    if len(probe.inputs) != 1 or not shapes or not has_room(shapes[0]):
        return False
    size = shapes[0][1:]
    names = [n for n, a in probe.outputs.items() if _is_real(a) and any(True for _ in _maps(a, size))]
    if not names:
        return False
    noted = _Noted(marked_page)
    batches = synthetic(model, probe, PAGES, (seed, 2), Scenes(picture=noted))
    made = _made(model, probe, names, batches)
    maps = (m for output in made for m in zip(*(_maps(batch, size) for batch in output), strict=True))
    return any(_found(np.concatenate(m), noted.truths) > FOUND for m in maps)


def with_room(model: ModelProto, probe: Probe) -> Probe:
    """The probe as if its only input had `SIDE` rows and columns, if the model leaves both open, it had fewer, and the
    model runs so."""
    ((name, like),) = probe.inputs.items()
    axes = next([i for i in free_axes(v) if i > 0] for v in model.graph.input if v.name == name)
    if len(axes) < 2 or max(like.shape[i] for i in axes) >= SIDE:
        return probe
    large = replace(
        probe, inputs={name: np.zeros([SIDE if i in axes else n for i, n in enumerate(like.shape)], like.dtype)}
    )
    try:
        up_to(model, probe.stand_in, list(probe.outputs)[:1])(synthetic(model, large, 1, 0)[0])
    except Unsound as error:
        log.debug("pages stay small: %s", error)
        return probe
    return large


class _Noted(Generic[Truth]):
    """A scene, and what is to be told of each image that shows it."""

    def __init__(self, draw: Callable[[tuple[int, int, int], np.random.Generator], tuple[Array, Truth]]) -> None:
        self.draw = draw
        self.truths: list[Truth] = []

    def __call__(self, shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
        image, truth = self.draw(shape, rng)
        self.truths.append(truth)
        return image


def _is_real(values: object) -> bool:
    return isinstance(values, np.ndarray) and values.dtype in FLOATING


def _made(model: ModelProto, probe: Probe, names: Sequence[str], batches: Batches) -> Iterator[Sequence[Array]]:
    """Of each output what it is for every batch."""
    run = up_to(model, probe.stand_in, names)
    return zip(*map(run, batches), strict=True)


# --- how many signs -------------------------------------------------------------------------------------------------
def _emitted(scores: Array, samples: int) -> Array:
    """(samples,) how many signs are told, by scores of them for every step.

    Steps follow each other in lines of connectionist temporal classification: a sign may take several, and between
    signs there is a blank, which is what is told most often (Graves et al., ICML 2006).
    """
    codes = scores.argmax(axis=-1)
    codes = codes if len(codes) == samples else codes.T
    blank = np.bincount(codes.ravel()).argmax()
    before = np.pad(codes, ((0, 0), (1, 0)), constant_values=blank)[:, :-1]
    return np.asarray(((codes != before) & (codes != blank)).sum(axis=1))


# --- where lines are ------------------------------------------------------------------------------------------------
def _maps(values: Array, size: Size) -> Iterator[Array]:
    """(samples, h, w) every channel of an output that is a map of images of this size, which may have its channels
    first or last, or none; each place for as many rows as columns."""
    found = [values[:, None]] if values.ndim == 3 else [values, np.moveaxis(values, 3, 1)] if values.ndim == 4 else []
    for one in found:
        (h, w), (rows, columns) = one.shape[2:], size
        if h and w and rows % h == 0 == columns % w and rows // h == columns // w <= COARSE:
            yield from np.moveaxis(one, 1, 0)
            return


def _found(maps: Array, where: Sequence[Array]) -> float:
    """Mean correlation of (samples, h, w) maps with (H, W) masks."""
    step = where[0].shape[0] // maps.shape[1]
    coarse = (w.reshape(maps.shape[1], step, maps.shape[2], step).mean(axis=(1, 3)) for w in where)
    return float(np.mean([_alike(m.ravel(), w.ravel()) for m, w in zip(maps, coarse, strict=True)]))


def _alike(a: Array, b: Array) -> float:
    """Pearson's correlation; 0 of what does not vary, or is not finite."""
    x, y = (np.asarray(v, np.float64) - np.mean(v, dtype=np.float64) for v in (a, b))
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if np.isfinite(size) and size > 0 else 0.0
