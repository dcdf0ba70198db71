"""Connected components: by hand, and as SciPy finds them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxfuse.classes import shrinking_axis
from onnxfuse.components import components
from onnxfuse.ids import counted


def test_by_hand() -> None:
    a, b = np.array([5, 0, 3]), np.array([1, 2, 3])
    assert components(a, b, 6).tolist() == [0, 1, 0, 2, 3, 1]


def test_without_edges() -> None:
    none = np.zeros(0, np.int64)
    assert components(none, none, 3).tolist() == [0, 1, 2]
    assert components(none, none, 0).tolist() == []


def test_a_long_chain_in_any_order() -> None:
    order = np.random.default_rng(0).permutation(10_000)
    assert not components(order[:-1], order[1:], 10_000).any()


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_as_scipy(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = case
    a, b = np.array(edges, np.int64).reshape(-1, 2).T
    links = coo_array((np.ones(len(a)), (a, b)), shape=(count, count))
    assert components(a, b, count).tolist() == connected_components(links, directed=False)[1].tolist()


@given(st.lists(st.integers(0, 9)), st.sampled_from([1, 7, 1000]))
def test_counting_is_sorting(numbers: list[int], step: int) -> None:
    ids = np.array(numbers, np.int64) * step
    for ours, numpys in zip(counted(ids), np.unique(ids, return_counts=True), strict=True):
        assert ours.tolist() == numpys.tolist()


def test_the_axis_that_shrinks_is_the_last_one_along_which_classes_differ_however_far_in() -> None:
    rows, columns = np.zeros((2, 300), np.int64), np.zeros((300, 2), np.int64)
    rows[:, 200:], columns[200:] = 1, 1
    assert (shrinking_axis(rows), shrinking_axis(columns), shrinking_axis(columns * 0)) == (1, 0, None)
