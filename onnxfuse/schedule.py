"""What runs at the same time: tasks that depend on each other, work that is done ahead, the threads of BLAS."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from heapq import heappop, heappush
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from .tensors import Array

T = TypeVar("T")
S = TypeVar("S")
WORKERS = min(4, os.cpu_count() or 1)
"""As many as there are cores; not more, for each holds its group's weights."""


def in_order(
    task: Callable[[int], T], before: Sequence[set[int]], tell: Callable[[int], None], workers: int = WORKERS
) -> list[T]:
    """[task(0), task(1), …], each run when the tasks of `before[i]`, all of smaller number, are done.

    Args:
        task: what to run; NumPy releases Python's lock, so threads do.
        before: for each task the ones it must wait for.
        tell: called with the number of tasks done, in the calling thread.
        workers: how many run at the same time; one runs in the calling thread.

    Raises:
        Exception: the first one that a task raised.
    """
    if workers == 1:
        return [_told(task, i, tell) for i in range(len(before))]
    results: dict[int, T] = {}
    running: dict[Future[T], int] = {}
    missing = [len(others) for others in before]
    waiting: dict[int, list[int]] = {}  # task → the ones that wait for it
    for i, others in enumerate(before):
        for other in others:
            waiting.setdefault(other, []).append(i)
    ready = [i for i, count in enumerate(missing) if not count]
    with ThreadPoolExecutor(workers) as pool:
        while ready or running:
            while ready and len(running) < workers:
                i = heappop(ready)
                running[pool.submit(task, i)] = i
            tell(len(results))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                i = running.pop(future)
                results[i] = future.result()
                for other in waiting.get(i, []):
                    missing[other] -= 1
                    if not missing[other]:
                        heappush(ready, other)
    return [results[i] for i in range(len(before))]


def _told(task: Callable[[int], T], number: int, tell: Callable[[int], None]) -> T:
    tell(number)
    return task(number)


def ahead(task: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """task(item) of each item, in order; the next one is worked on in a thread while this one is used.

    Raises:
        Exception: the first one that a task raised.
    """
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(task, item) for item in items[:1]]
        for item in items[1:]:
            result = coming.pop().result()
            coming.append(pool.submit(task, item))
            yield result
            del result  # it may be large
        yield from (future.result() for future in coming)


def in_halves(pool: Executor, task: Callable[[Array], Array], columns: Array) -> Array:
    """task(columns) for a task that treats every column by itself: half of them by another thread."""
    middle = columns.shape[1] // 2
    other = pool.submit(task, columns[:, middle:])
    return np.concatenate([task(columns[:, :middle]), other.result()], axis=1)


def blas_for_one_of_two() -> AbstractContextManager[object]:
    """NumPy's and SciPy's products leave half of the cores to others.

    Their workers wait for the next product in a busy loop, and so slow down whatever runs between two products. Only
    what is loaded is limited: SciPy has a BLAS of its own, which comes with `scipy.linalg`.
    """
    limit: AbstractContextManager[object] = threadpool_limits(max(1, (os.cpu_count() or 1) // 2), "blas")
    return limit
