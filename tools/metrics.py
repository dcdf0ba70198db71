"""Metrics of assets that are not plain classifiers, for `--metric module:function`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CENTS = np.linspace(0, 7180, 360) + 1997.3794084376191
"""Pitch of each of CREPE's outputs, in cents above 10 Hz."""


def pitch(outputs: Mapping[str, Array], labels: Array) -> float:
    """The share of samples whose loudest pitch is within 50 cents of the label, a MIDI number."""
    cents = CENTS[next(iter(outputs.values())).argmax(axis=1)]
    found = 69 + 12 * np.log2(10 * 2 ** (cents / 1200) / 440)
    return float((np.abs(found - labels.astype(float)) < 0.5).mean())


def any_of(outputs: Mapping[str, Array], labels: Array) -> float:
    """The share of samples whose best class is among their labels, (N, k) with −1 for none."""
    best = next(iter(outputs.values())).argmax(axis=1)
    return float((best[:, None] == labels).any(axis=1).mean())
