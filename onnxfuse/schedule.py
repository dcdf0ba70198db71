"""Run tasks that depend on each other, as many at a time as there are workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
WORKERS = min(4, os.cpu_count() or 1)
"""As many as there are cores; not more, for each holds its group's weights."""


def in_order(task: Callable[[int], T], before: Sequence[set[int]], tell: Callable[[int], None]) -> list[T]:
    """[task(0), task(1), …], each run when the tasks of `before[i]`, all of smaller number, are done.

    Args:
        task: what to run; NumPy releases Python's lock, so threads do.
        before: for each task the ones it must wait for.
        tell: called with the number of tasks done, in the calling thread.

    Raises:
        Exception: the first one that a task raised.
    """
    results: dict[int, T] = {}
    running: dict[Future[T], int] = {}
    waiting = list(range(len(before)))
    with ThreadPoolExecutor(WORKERS) as pool:
        while waiting or running:
            ready = [i for i in waiting if before[i] <= results.keys()][: WORKERS - len(running)]
            waiting = [i for i in waiting if i not in ready]
            running |= {pool.submit(task, i): i for i in ready}
            tell(len(results))
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            results |= {running.pop(future): future.result() for future in done}
    return [results[i] for i in range(len(before))]
