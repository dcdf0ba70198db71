"""Fuse random graphs, and count: python tools/random_graphs.py --count 20000

Graphs are numbered; each is always the same (`tests/random_graphs.py`). What was done is kept in a JSON file, so that
a run that was stopped goes on where it was. The first graph with a wrong result, a crash or something lost ends the run
with its number.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, ToolError, entry

sys.path.insert(0, str(ROOT))
graphs: Any = importlib.import_module("tests.random_graphs")
BATCH = 50
"""Graphs between two writes of the result file."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=20000, help="graphs in all (default: %(default)s)")
    p.add_argument("--seed", type=int, help="one graph only, with its stack trace")
    p.add_argument("--keep-going", action="store_true", help="note failures, and go on")
    p.add_argument("--results", type=Path, default=RESULTS / "random_graphs.json")
    a = p.parse_args()
    if a.seed is not None:
        print(f"graph {a.seed}: {graphs.check(graphs.generate(a.seed), a.seed)}")
        return
    done: dict[str, Any] = {"next": 0, "outcomes": {}, "failed": {}}
    if a.results.exists():
        done = json.loads(a.results.read_text())
    while done["next"] < a.count:
        _run(done, min(a.count, done["next"] + BATCH), a.keep_going, a.results)
    failed = f"; failed: {', '.join(done['failed'])}" if done["failed"] else "; none failed"
    print(f"{done['next']} graphs: " + ", ".join(f"{n} {what}" for what, n in done["outcomes"].items()) + failed)


def _run(done: dict[str, Any], stop: int, keep_going: bool, path: Path) -> None:
    start, outcomes = time.perf_counter(), Counter(done["outcomes"])
    for seed in range(done["next"], stop):
        try:
            outcomes[graphs.check(graphs.generate(seed), seed)] += 1
        except Exception as error:
            outcomes["failed"] += 1
            done["failed"][str(seed)] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"graph {seed}: {done['failed'][str(seed)]}", file=sys.stderr, flush=True)
        done |= {"next": seed + 1, "outcomes": dict(outcomes)}
        if done["failed"] and not keep_going:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(done, indent=1) + "\n")
    print(f"{done['next']} graphs, {(time.perf_counter() - start) / BATCH:.2f} s each", file=sys.stderr, flush=True)
    if done["failed"] and not keep_going:
        raise ToolError(f"graph {next(iter(done['failed']))} failed; see it with --seed")


if __name__ == "__main__":
    entry(main)
