"""What a convolution reads at a place: the values of its channels under each tap of its kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from .protos import attribute
from .tensors import Array

Places = tuple[NDArray[np.int64], ...]
"""(P,) sample and (P,) position on each spatial axis of a convolution's output."""


@dataclass(frozen=True)
class Window:
    """How a convolution moves over its input; one number for each spatial axis.

    Attributes:
        kernel, strides, dilations: of the node.
        pads: before each axis, then behind each.
        same: b"SAME_UPPER" or b"SAME_LOWER", where the pads follow from the sizes, else empty.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    same: bytes


def window(node: NodeProto, kernel: Sequence[int]) -> Window:
    """Of a Conv whose weights have this kernel."""
    n, auto = len(kernel), attribute(node, "auto_pad", b"NOTSET")
    pads = attribute(node, "pads", [0] * 2 * n) if auto == b"NOTSET" else [0] * 2 * n
    strides, dilations = (tuple(attribute(node, name, [1] * n)) for name in ("strides", "dilations"))
    return Window(tuple(kernel), strides, dilations, tuple(pads), auto if auto.startswith(b"SAME") else b"")


def places(shape: Sequence[int], wanted: int) -> Places:
    """At random in an (N, C, …) output if it has more than wanted; the same on every call for the same sizes."""
    grid = (shape[0], *shape[2:])
    total = math.prod(grid)
    if total <= wanted:
        return np.unravel_index(np.arange(total), grid)
    return np.unravel_index(np.sort(np.random.default_rng(total).choice(total, wanted, replace=False)), grid)


def patches(chunk: Array, channels: NDArray[np.int64], at: Places, moves: Window, size: Sequence[int]) -> Array:
    """(P, taps·c) what is read at P places of an output of this spatial size, from c channels of an (N, C, …) input."""
    padded = np.pad(chunk[:, channels], [(0, 0), (0, 0), *_pads(moves, chunk.shape[2:], size)])
    last = np.ascontiguousarray(np.moveaxis(padded, 1, -1))  # so that each tap reads rows of memory
    found = np.empty((len(at[0]), math.prod(moves.kernel), len(channels)), last.dtype)
    for i, tap in enumerate(np.ndindex(moves.kernel)):
        steps = zip(at[1:], moves.strides, moves.dilations, tap, strict=True)
        found[:, i] = last[(at[0], *(place * stride + dilation * t for place, stride, dilation, t in steps))]
    return found.reshape(len(found), -1)


def _pads(moves: Window, given: Sequence[int], size: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and behind each axis of an input of this spatial size."""
    n = len(size)
    if not moves.same:
        return list(zip(moves.pads[:n], moves.pads[n:], strict=True))
    need = [
        max((o - 1) * s + (k - 1) * d + 1 - i, 0)
        for o, s, k, d, i in zip(size, moves.strides, moves.kernel, moves.dilations, given, strict=True)
    ]
    fewer = [n // 2 for n in need]
    upper = moves.same == b"SAME_UPPER"
    return [(f, n - f) if upper else (n - f, f) for f, n in zip(fewer, need, strict=True)]
