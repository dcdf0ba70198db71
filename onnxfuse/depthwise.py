"""Refit depthwise kernels: each channel's own taps, so that it is what it was, in the small network's activations.

A depthwise kernel w reads one channel y of the small network, tap by tap. It becomes the w′ that brings w′·y closest to
what the channel's merge makes of the original's outputs t (covariances C of y's patches, and c of these with t):

    w′ = (C + λ D)⁻¹ (c + λ D w),    D = diag(tr C)

λ is p/n for p taps and patches worth n independent ones, as in `refit`; half of a patch's covariance lies in one
direction, so that a ridge on each tap's own variance would leave the others free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from .likeness import Likeness
from .patches import patches, window
from .readers import Reader
from .refit import Made
from .tensors import Array
from .walk import Chunks

AT_ONCE = 64
"""Channels whose patches are held together."""


def correction(
    reader: Reader, node: NodeProto, weight: Array, seen: Chunks, wanted: Sequence[Made], kept: NDArray[np.int64],
    alike: Likeness, least: float,
) -> Array:  # fmt: skip
    """(k, *taps) w′ − w.

    Args:
        reader: of the kernels.
        node: the convolution.
        weight: (n, 1, *taps) the kernels after merging.
        seen: what arrives in the small network.
        wanted: what should be made.
        kept: (k,) channels that are left.
        alike: what is seen at the places of one sample.
        least: the least λ.
    """
    kernel, found = weight.shape[2:], []
    for own in np.split(kept, range(AT_ONCE, len(kept), AT_ONCE)):
        parts = [patches(c, own, m.at, window(node, kernel), m.size) for c, m in zip(seen, wanted, strict=True)]
        t = np.concatenate([m.values[:, own] for m in wanted]).T[:, None]
        y = _by_channel(parts, len(own), math.prod(kernel), t.dtype)
        found.append(_nearer(y, t, weight[own].reshape(len(own), -1), bool(reader.bias), alike, least))
    change = np.concatenate(found) - weight[kept].reshape(len(kept), -1)
    return change.reshape(len(kept), *kernel).astype(weight.dtype)


def _by_channel(parts: Sequence[Array], channels: int, taps: int, dtype: np.dtype[Any]) -> Array:
    """(k, taps, P) of all (p, taps·k) parts, each turned while it is in the cache: BLAS wants rows of memory.

    Of the type of what should be made: sums of squares are beyond float16.
    """
    y = np.empty((channels, taps, sum(map(len, parts))), dtype)
    start = 0
    for part in parts:
        y[:, :, start : start + len(part)] = part.reshape(-1, taps, channels).transpose(2, 1, 0)
        start += len(part)
    return y


def _nearer(y: Array, t: Array, kernels: Array, centred: bool, alike: Likeness, least: float) -> Array:
    """(k, taps) w′ of k channels, from (k, taps, P) patches, which change, and (k, 1, P) targets."""
    t = np.array(t, order="C")
    if centred:
        y -= y.mean(axis=2, keepdims=True)
        t -= t.mean(axis=2, keepdims=True)
    taps, count = y.shape[1:]
    square = (y @ y.transpose(0, 2, 1)).astype(np.float64) / count
    product = (y @ t.transpose(0, 2, 1)).astype(np.float64) / count
    power = np.einsum("ktt->k", square)[:, None, None]
    ridge = max(least, taps / alike.worth(count)) * np.where(power > 0, power, 1)
    return np.linalg.solve(square + ridge * np.eye(taps), product + ridge * kernels[:, :, None])[..., 0]
