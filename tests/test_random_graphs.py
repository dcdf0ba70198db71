"""Random valid graphs: no wrong result, no crash, nothing lost. tools/random_graphs.py does many more."""

from __future__ import annotations

from collections import Counter

import pytest

from .random_graphs import check, generate

BLOCKS, EACH = 10, 15


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_graphs(block: int) -> None:
    seeds = range(block * EACH, (block + 1) * EACH)
    outcomes = Counter(check(generate(seed), seed) for seed in seeds)
    assert outcomes["merged"] > EACH // 2


def test_a_graph_is_always_the_same() -> None:
    assert [generate(7) == generate(7), generate(7) == generate(8)] == [True, False]
