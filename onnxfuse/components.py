"""Connected components, in NumPy: SciPy's take longer to import than this takes on any model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Nodes = NDArray[np.int64]


def components(a: Nodes, b: Nodes, count: int) -> Nodes:
    """(count,) the component of each of the nodes 0 … count − 1, numbered in the order of their first nodes.

    Every round hooks each tree onto the lowest one that an edge leads to, and makes every tree flat.

    Args:
        a, b: (edges,) the ends of each edge.
        count: of nodes.
    """
    root = np.arange(count)
    while not np.array_equal(from_a := root[a], from_b := root[b]):
        lower = np.minimum(from_a, from_b)
        np.minimum.at(root, from_a, lower)
        np.minimum.at(root, from_b, lower)
        while not np.array_equal(above := root[root], root):
            root = above
    return np.asarray(np.unique(root, return_inverse=True)[1], np.int64).reshape(count)
