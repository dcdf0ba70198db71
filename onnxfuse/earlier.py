"""The plan of an earlier run, perhaps edited by hand, as wishes: how many channels each group that it names keeps."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .channels import ChannelGroup
from .errors import UsageError, near, one_line


def planned(groups: Sequence[ChannelGroup], path: str | None) -> list[tuple[ChannelGroup, int]]:
    """The groups that a plan file names, and the width of each: the length of its `kept`, or the number there.

    Groups of one name are taken in the order of the graph.

    Raises:
        UsageError: the file is no plan, or does not fit the model.
    """
    if path is None:
        return []
    by_name: dict[str, list[ChannelGroup]] = defaultdict(list)
    for g in groups:
        by_name[g.name].append(g)
    found = []
    for entry in reversed(_entries(path)):  # a plan lists the last group first
        name, where = entry["name"], f"--from-plan {path}: group {entry['name']!r}"
        if not by_name.get(name):
            raise UsageError(f"{where} is not in this model{near(name, [g.name for g in groups])}")
        found.append((group := by_name[name].pop(0), _width(where, group, entry)))
    return found


def _entries(path: str) -> list[dict[str, Any]]:
    try:
        plan = json.loads(Path(path).read_text(encoding="utf-8"))
        entries = [{"name": str(e["name"]), "kept": e["kept"], "channels": e.get("channels")} for e in plan["groups"]]
    except OSError as error:
        raise UsageError(f"--from-plan {path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"--from-plan {path}: is not a plan that --plan wrote ({one_line(error)})") from error
    return entries


def _width(where: str, group: ChannelGroup, entry: dict[str, Any]) -> int:
    """Units that the family of the group keeps."""
    if entry["channels"] not in (None, group.channels):
        raise UsageError(f"{where} has {entry['channels']} channels in the plan, {group.channels} in this model")
    kept = entry["kept"]
    count = kept if isinstance(kept, int) else len(set(kept)) if isinstance(kept, list) else 0
    step = group.channels // group.unit
    if not 0 < count <= group.channels or count % step:
        multiple = f", a multiple of {step}" if step > 1 else ""
        raise UsageError(f"{where} cannot keep {count} channels; give 1 to {group.channels}{multiple}")
    return count // step
