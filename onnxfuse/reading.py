"""Whether a network reads what is written, or finds where something is: samples of it are like what it will see then.

What other networks look for is not known, and hardly to be drawn. Those that read can be asked: of writing that is
drawn for them they tell how much it is, where it is, or which way up. What is measured on such is worth what is
measured on the user's samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto

from .errors import Unsound
from .feeds import free_axes
from .heldout import samples_in
from .pages import SIDE, SMALLEST, TURNS, has_room, marked_page, turned_page
from .probe import Probe
from .samples import FLOATING, MANY, Scenes, Shape, all_writing, pictures, planes, synthetic, written
from .tensors import Array
from .upto import up_to
from .writing import counted_line, turned_line

log = logging.getLogger("onnxfuse")
QUIET = 0.1
"""Of what a map is on pages, in the mean: on random input one that finds writing is less, in five of PP-OCR 0.003."""
COARSE = 8
"""Rows and columns of an image for each one of a map of it, at most."""


@dataclass(frozen=True)
class Question:
    """What is shown to a network, and how it tells that it reads it.

    Attributes:
        draw: an image (C, H, W), and what is to be told of it.
        outputs: those that may tell, by name.
        told: how surely one output tells it, 1 at most: of what it is for each batch, how many samples these have, what
            is to be told of each sample, and what it is on random input.
        enough: from where on it does.
        count: of images.
        most: as many are enough to be measured on.
        lines: whether these are as low and long as lines of writing.
        side: rows and columns of images where the model leaves them open, if that is more than were probed.
    """

    draw: Callable[[Shape, np.random.Generator], tuple[Array, Any]]
    outputs: Callable[[ModelProto, Probe], list[str]]
    told: Callable[[Sequence[Array], Sequence[int], Sequence[Any], Array], float]
    enough: float
    count: int
    most: int = MANY
    lines: bool = False
    side: int = 0

    def scenes(self, truths: list[Any] | None = None) -> Scenes:
        """Images that show it; what is to be told of each is added to `truths`."""

        def scene(shape: Shape, rng: np.random.Generator) -> Array:
            image, truth = self.draw(shape, rng)
            if truths is not None:
                truths.append(truth)
            return image

        return Scenes(line=scene) if self.lines else Scenes(picture=scene)

    def is_answered(self, model: ModelProto, probe: Probe, seed: int) -> bool:
        """Whether one of the outputs tells what is shown.

        Raises:
            Unsound: onnxruntime cannot run the model on it.
        """
        names, truths = self.outputs(model, probe), list[Any]()
        if not names:
            return False
        batches = synthetic(model, probe, self.count, (seed, 2), self.scenes(truths))
        run, sizes = up_to(model, probe.stand_in, names), [samples_in(batch) for batch in batches]
        outputs = zip(*map(run, batches), strict=True)
        seen = zip(outputs, (probe.outputs[n] for n in names), strict=True)
        return any(self.told(made, sizes, truths, noise) > self.enough for made, noise in seen)


def what_it_reads(model: ModelProto, probe: Probe, seed: int) -> Question | None:
    """What a network proves to read, or to find, of what is drawn for it.

    Raises:
        Unsound: onnxruntime cannot run the model on it.
    """
    return next((question for question in QUESTIONS if question.is_answered(model, probe, seed)), None)


def with_room(model: ModelProto, probe: Probe, side: int) -> Probe:
    """The probe as if its only input had so many rows and columns, if the model leaves both open, it had fewer, and the
    model runs so."""
    ((name, like),) = probe.inputs.items()
    free = next(free_axes(v) for v in model.graph.input if v.name == name)
    axes = [i for i in free if like.shape[i] >= SMALLEST]
    if len(axes) < 2 or max(like.shape[i] for i in axes) >= side:
        return probe
    shape = [side if i in axes else n for i, n in enumerate(like.shape)]
    large = replace(probe, inputs={name: np.zeros(shape, like.dtype)})
    try:
        up_to(model, probe.stand_in, list(probe.outputs)[:1])(synthetic(model, large, 1, 0)[0])
    except Unsound as error:
        log.debug("pages stay small: %s", error)
        return probe
    return large


def _of_rank(probe: Probe, rank: int) -> list[str]:
    """Outputs of real numbers."""
    real = {n: a for n, a in probe.outputs.items() if isinstance(a, np.ndarray) and a.dtype in FLOATING}
    return [n for n, a in real.items() if a.ndim == rank and a.size]


def _of_a_page(model: ModelProto, probe: Probe) -> Shape | None:
    """(C, H, W) of the only input, if that is an image with room for a page."""
    shapes = [planes(probe.inputs[n].shape) for n in pictures(model, probe)]
    return shapes[0] if len(probe.inputs) == 1 and shapes and has_room(shapes[0]) else None


def _is_a_line(model: ModelProto, probe: Probe) -> bool:
    """Whether all that is drawn for it is one line of writing."""
    return all_writing(model, probe) and len(written(model, probe)) == 1


# --- how many signs -------------------------------------------------------------------------------------------------
def _steps(model: ModelProto, probe: Probe) -> list[str]:
    return _of_rank(probe, 3) if _is_a_line(model, probe) else []


def _counted(made: Sequence[Array], sizes: Sequence[int], signs: Sequence[int], noise: Array) -> float:
    """Correlation, over upright lines, of how many signs are told with how many were written."""
    told, drawn = np.concatenate(list(map(_emitted, made, sizes))), np.array(signs)
    return _alike(told[drawn > 0], drawn[drawn > 0]) if len(told) == len(drawn) else 0.0


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
def _maps(model: ModelProto, probe: Probe) -> list[str]:
    shape = _of_a_page(model, probe)
    names = [] if shape is None else [*_of_rank(probe, 3), *_of_rank(probe, 4)]
    return [n for n in names if shape is not None and any(True for _ in _planes(probe.outputs[n], shape[1:]))]


def _placed(made: Sequence[Array], sizes: Sequence[int], where: Sequence[Array], noise: Array) -> float:
    """Mean correlation, over the places of a page, of a channel of maps with where lines are: of the best channel that
    says nothing of random input, of which edges, and what stands out, are full."""
    channels = zip(*(_planes(batch, where[0].shape) for batch in made), strict=True)
    found = [np.concatenate(channel) for channel in channels]
    if len(found[0]) != len(where):
        return 0.0
    silent = (np.abs(own).mean() for own in _planes(noise, where[0].shape))
    told = [_found(maps, where) for maps, own in zip(found, silent, strict=True) if own < QUIET * np.abs(maps).mean()]
    return max(told, default=0.0)


def _planes(values: Array, size: Sequence[int]) -> Iterator[Array]:
    """(samples, h, w) every channel of an output that is a map of images of this size, which may have its channels
    first or last, or none; each place for as many rows as columns."""
    found = [values[:, None]] if values.ndim == 3 else [values, np.moveaxis(values, 3, 1)]
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


# --- which way up ---------------------------------------------------------------------------------------------------
def _quarters(model: ModelProto, probe: Probe) -> list[str]:
    """Classes, as many as there are quarter turns, of square images."""
    shape = _of_a_page(model, probe)
    square = shape is not None and shape[1] == shape[2]
    return [n for n in _of_rank(probe, 2) if square and probe.outputs[n].shape[1] == TURNS]


def _halves(model: ModelProto, probe: Probe) -> list[str]:
    """Two classes of lines."""
    two = [n for n in _of_rank(probe, 2) if probe.outputs[n].shape[1] == 2]
    return two if _is_a_line(model, probe) else []


def _upright(made: Sequence[Array], sizes: Sequence[int], turns: Sequence[int], noise: Array) -> float:
    """Share of images that have the class which most of their turn have; 0 if turns share a class."""
    scores = np.concatenate(made)
    if len(scores) != len(turns):
        return 0.0
    table = np.zeros((scores.shape[1], scores.shape[1]))
    np.add.at(table, (np.array(turns), scores.argmax(axis=1)), 1)
    return float(table.max(axis=1).sum() / table.sum()) if len(set(table.argmax(axis=1))) == len(table) else 0.0


QUESTIONS = (
    Question(counted_line, _steps, _counted, enough=0.7, count=32, lines=True),
    Question(marked_page, _maps, _placed, enough=0.5, count=8, most=96, side=SIDE),
    Question(turned_page, _quarters, _upright, enough=0.75, count=32),
    Question(turned_line, _halves, _upright, enough=0.75, count=64, lines=True),
)
"""What networks are asked, until they answer."""
