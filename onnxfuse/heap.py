"""How a process of its own gets memory from the system, and frees it."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Numbers of glibc's malloc.h."""
LARGE = 1 << 30
"""Bytes of a model that is worked on piece by piece, so that memory that is free must go back."""
WITHIN = 1 << 24
"""Bytes of a file that holds weights: a graph alone has less."""
LOCATION = b"\n\x08location"
"""What a protobuf with external data has in it."""


SELDOM = (50_000, 20, 100)
"""Thresholds of the garbage collector: a graph and its groups are some 100,000 objects, hardly any in cycles."""


@contextmanager
def uncollected() -> Iterator[None]:
    """For imports, which leave hardly any garbage: to look for some takes a tenth of their time.

    Nor is there a round when they are done: what they made counts as old then, as it would after a few rounds.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # else what others have frozen would thaw
            gc.freeze()
            gc.unfreeze()
        gc.enable()


def collect_seldom() -> None:
    """Spare the garbage collector what is imported, and most of its rounds: they took 4% of RegNetX-400MF's 1.4 s."""
    gc.freeze()
    gc.set_threshold(*SELDOM)


def keep_freed(path: Path) -> bool:
    """Let glibc keep what is freed for what comes next, unless the model is large; returns whether it does.

    Every array of some size would else be new memory, which the system fills with zeros a page at a time: a third
    of VGG-11's 16 seconds. One heap for all threads, so that each can take what another gave back. Another C library,
    and a file that cannot be read, are left alone.
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if change is None or not _is_moderate(path):
        return False
    change(ARENA_MAX, 1)
    change(TRIM_THRESHOLD, -1)
    return bool(change(MMAP_MAX, 0))


def _is_moderate(path: Path) -> bool:
    """Whether a model is not large, whose weights are in the file: one of some size has them there."""
    try:
        size = path.stat().st_size
        whole = WITHIN <= size < LARGE
        return whole or (size < WITHIN and path.is_file() and LOCATION not in path.read_bytes())  # a pipe may be silent
    except OSError:
        return False
