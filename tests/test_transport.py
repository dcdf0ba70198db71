"""Scores, ground costs, plans and clusters against numbers worked out by hand, SciPy and POT."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from scipy.spatial.distance import cdist

import onnxfuse
from onnxfuse import groundcost, nearplan
from onnxfuse.groundcost import ground_cost
from onnxfuse.transport import clusters, full_plan, kept_plan, normalized

from .graphs import Array, build, from_text, weights
from .texts import TEXTS

# --- ground cost ----------------------------------------------------------------------------------------------------
SHAPES = [(1, 1, 1), (4, 2, 3), (7, 5, 13), (33, 17, 100), (3, 2, 4095), (5, 3, 4096), (5, 3, 4097), (2, 9, 30000)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("p", "metric"), [(1, "cityblock"), (2, "euclidean")])
@pytest.mark.parametrize("shape", SHAPES)
def test_ground_cost(shape: tuple[int, int, int], p: int, metric: str, dtype: type) -> None:
    s, t, d = shape
    rng = np.random.default_rng(d)
    sources, targets = (normalized(rng.standard_normal((n, d)).astype(dtype)) for n in (s, t))
    cost = ground_cost(sources, targets, p)
    assert cost.dtype == np.float64
    tolerance = 1e-3 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(cost, cdist(sources, targets, metric), rtol=tolerance, atol=tolerance)


def test_ground_cost_of_a_row_to_itself() -> None:
    rows = np.random.default_rng(1).standard_normal((6, 50))
    for p in (1, 2):
        np.testing.assert_allclose(np.diag(ground_cost(rows, rows, p)), 0, atol=1e-6)


# --- plans ----------------------------------------------------------------------------------------------------------
@st.composite
def kept_problems(draw: st.DrawFn) -> tuple[Array, Array, int]:
    n, d = draw(st.integers(2, 9)), draw(st.integers(1, 4))
    numbers = st.lists(st.integers(-4, 4), min_size=n * d, max_size=n * d)
    kept = draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n))
    return np.array(draw(numbers), np.float64).reshape(n, d), np.array(sorted(kept)), draw(st.sampled_from([1, 2]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(kept_problems())
def test_kept_plan_is_optimal(problem: tuple[Array, Array, int]) -> None:
    """Survivors that keep themselves cost no more than the optimum of the whole problem, and all masses fit."""
    features, kept, p = problem
    n, m = len(features), len(kept)
    plan = kept_plan(features, kept, p).toarray()
    np.testing.assert_allclose(plan.sum(axis=1), np.full(n, 1 / n), atol=1e-12)
    np.testing.assert_allclose(plan.sum(axis=0), np.full(m, 1 / m), atol=1e-12)
    np.testing.assert_allclose(plan[kept], np.eye(m) / n, atol=1e-12)
    cost = cdist(features, features[kept], "minkowski", p=p)
    best = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), cost)
    whole = full_plan(features, features[kept], np.ones(n), np.ones(m), p).toarray()
    assert (plan * cost).sum() == pytest.approx(best, abs=1e-9)
    assert (whole * cost).sum() == pytest.approx(best, abs=1e-9)


def test_full_plan_by_hand() -> None:
    """Masses 3 : 1 on a line at 0 and 10, targets 1 : 1 at 1 and 9: half of the mass at 0 goes a third of the way."""
    points = np.array([[0.0], [10.0]]), np.array([[1.0], [9.0]])
    plan = full_plan(*points, np.array([3.0, 1.0]), np.array([1.0, 1.0])).toarray()
    np.testing.assert_allclose(plan, [[0.5, 0.25], [0, 0.25]], atol=1e-12)


POT_AFTERWARDS = """
import numpy as np
from onnxfuse.transport import solve
assert solve(np.eye(2), np.ones(2), np.ones(2)).tolist() == [[0, 1], [1, 0]]
import ot, sys
assert not {"ot.gromov", "ot.backend", "scipy.linalg"} & set(sys.modules)
assert ot.utils.dist(np.zeros((1, 1)), np.full((1, 1), 3.0)).tolist() == [[9]]
assert ot.utils.dist.__module__ == "ot.utils" and "ot.gromov" not in sys.modules
assert ot.lp.emd is ot.emd and ot.gromov.gromov_wasserstein and not hasattr(ot, "nothing")
from ot import sinkhorn
"""


def test_only_the_solver_of_pot_is_loaded_and_the_rest_when_asked_for() -> None:
    subprocess.run([sys.executable, "-c", POT_AFTERWARDS], check=True)


TOGETHER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from onnxfuse.lazy import network_simplex
network_simplex()
package, start = sys.modules["ot.lp"], Barrier(4)
def ask(_):
    start.wait()
    return package.emd
with ThreadPoolExecutor(4) as pool:
    assert len(set(pool.map(ask, range(4)))) == 1
"""


def test_threads_that_start_the_rest_of_pot_wait_for_each_other() -> None:
    subprocess.run([sys.executable, "-c", TOGETHER], check=True)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_costs_are_the_same_bits_whatever_the_number_of_workers(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = normalized(np.random.default_rng(2).standard_normal((50, 300)).astype(np.float32))
    expected = ground_cost(rows[:33], rows[33:])
    monkeypatch.setattr(groundcost, "WORKERS", workers)
    np.testing.assert_array_equal(ground_cost(rows[:33], rows[33:]), expected)


# --- clusters -------------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_duplicates_share_a_cluster(different: int, copies: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.repeat(np.arange(different), copies))
    labels = clusters(rng.standard_normal((different, 7))[kind], different)
    assert len({(a, b) for a, b in zip(kind.tolist(), labels.tolist(), strict=True)}) == different
    assert sorted(set(labels.tolist())) == list(range(different))


@pytest.mark.parametrize("m", [1, 2, 17, 63, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_many_clusters_as_asked(m: int, dtype: type) -> None:
    rows: Array = np.random.default_rng(m).standard_normal((64, 5)).astype(dtype)
    assert sorted(set(clusters(rows, m).tolist())) == list(range(m))


@pytest.mark.parametrize("seed", range(5))
def test_no_row_is_nearer_to_another_cluster(seed: int) -> None:
    """What k-means ends with; the hierarchy that it starts from does not have it."""
    rows = np.random.default_rng(seed).standard_normal((60, 2))
    labels = clusters(rows, 5)
    means = np.array([rows[labels == k].mean(axis=0) for k in range(5)])
    np.testing.assert_array_equal(cdist(rows, means).argmin(axis=1), labels)


def test_clusters_when_rows_repeat_more_often_than_there_are_clusters() -> None:
    """Two different rows, three clusters asked for: still exactly three."""
    rows = np.repeat(np.array([[0.0, 1.0], [1.0, 0.0]]), 3, axis=0)
    assert sorted(set(clusters(rows, 3).tolist())) == [0, 1, 2]


# --- dead channels and ties -----------------------------------------------------------------------------------------
ABLATIONS: list[dict[str, Any]] = [
    {"method": method, "source_mass": mass, "target_mass": mass, "target": target}
    for method, mass, target in product(
        ("intra-fusion", "barycentric"), ("uniform", "importance"), ("important", "cluster")
    )
]


@pytest.mark.parametrize(
    "options", [{"method": "drop"}, {"method": "fold"}, *ABLATIONS], ids=lambda o: "-".join(o.values())
)
@pytest.mark.parametrize("dead", [slice(0, 6), slice(0, None)], ids=["six of eight", "all"])
def test_dead_channels(dead: slice, options: dict[str, Any]) -> None:
    """Channels without any weight make no NaN, whether or not some of them must survive."""
    model = build("mlp")
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        values[dead] = 0
        if tensor.name in ("w1", "w2"):
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    result = onnxfuse.fuse(model, sparsity=0.5, **options)
    assert weights(result.model)["w1"].shape == (4, 6)
    assert all(np.isfinite(values).all() for values in weights(result.model).values())


@pytest.mark.parametrize(
    ("method", "metric"),
    [*product(["drop", "intra-fusion", "barycentric"], ["l1", "l2", "lamp"]), ("fold", "l1")],
)
def test_a_weight_whose_square_overflows(method: str, metric: str) -> None:
    """1e30 is a float32, 1e60 is none."""
    values = weights(build("mlp"))["w1"].copy()
    values[2, 3] = 1e30
    result = onnxfuse.fuse(from_text(TEXTS["mlp"], {"w1": values}), sparsity=0.5, method=method, importance=metric)
    assert np.abs(weights(result.model)["w1"]).max() >= 0.2e30
    assert all(np.isfinite(array).all() for array in weights(result.model).values())


EQUAL = """(float[N,2] x) => (float[N,1] y)
    <float[6,2] w1 = {1,1, 1,-1, 1,1, -1,-1, 1,1, -1,1}, float[1,6] w2 = {1, 1, -1, 1, 1, 1}> {
    h = Gemm<transB=1>(x, w1)
    y = Gemm<transB=1>(h, w2)
}"""


@pytest.mark.parametrize("metric", ["l1", "l2"])
@pytest.mark.parametrize("method", ["drop", "intra-fusion"])
def test_of_equal_channels_the_first_survive(method: str, metric: str) -> None:
    result = onnxfuse.fuse(from_text(EQUAL), sparsity=0.5, method=method, importance=metric)
    ((_, merge),) = result.plan.merges
    assert merge.kept.tolist() == [0, 1, 2]


# --- near pairs -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("s", "t"), [(60, 60), (90, 40), (40, 90)])
@pytest.mark.parametrize("p", [1, 2])
def test_a_plan_over_near_pairs_keeps_its_bound(s: int, t: int, p: int) -> None:
    """It moves all mass, costs no less than the optimum, and no more than it says."""
    rng = np.random.default_rng(s)
    sources, targets = (normalized(rng.standard_normal((n, 12))) for n in (s, t))
    a, b = rng.uniform(1, 2, s), rng.uniform(1, 2, t)
    a, b = a / a.sum(), b / b.sum()
    near = nearplan.near_plan(sources, targets, a, b, p, sample=s)
    cost = cdist(sources, targets, "minkowski", p=p)
    best = ot.emd2(a, b, cost)
    np.testing.assert_allclose(near.plan.sum(axis=1), a, atol=1e-9)
    np.testing.assert_allclose(near.plan.sum(axis=0), b, atol=1e-9)
    assert (near.plan.toarray() * cost).sum() == pytest.approx(near.cost, rel=1e-6)
    assert best - 1e-9 <= near.cost <= best + near.gap * near.cost + 1e-9
    assert near.gap < 0.03


def test_near_pairs_are_found_by_fewer_features_if_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearplan, "SKETCH", 32)  # so few that guesses are poor: the bound must still hold
    rng = np.random.default_rng(3)
    sources, targets = (normalized(rng.standard_normal((n, 200)) + rng.standard_normal((n, 1))) for n in (70, 60))
    a, b = np.full(70, 1 / 70), np.full(60, 1 / 60)
    near = nearplan.near_plan(sources, targets, a, b, 1, sample=70)
    best = ot.emd2(a, b, cdist(sources, targets, "cityblock"))
    assert best - 1e-9 <= near.cost <= best * 1.03
    assert near.pairs < 70 * 60
