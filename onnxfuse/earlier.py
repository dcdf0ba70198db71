"""The plan of an earlier run, perhaps edited by hand, as wishes: how many channels each group that it names keeps."""

from __future__ import annotations

import json
import reprlib
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
        if name not in by_name:
            raise UsageError(f"{where} is not in this model{near(name, list(by_name))}")
        if not by_name[name]:
            raise UsageError(f"{where} is in the plan more often than in this model; leave one entry of each")
        found.append((group := by_name[name].pop(0), _width(where, group, entry)))
    _check_families(path, found)
    return found


def _entries(path: str) -> list[dict[str, Any]]:
    try:
        plan = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # editors begin a file with a mark
    except OSError as error:
        raise UsageError(f"--from-plan {path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--from-plan {path}: is not a plan that --plan wrote ({one_line(error)})") from error
    entries = plan.get("groups") if isinstance(plan, dict) else None
    if not isinstance(entries, list):
        raise UsageError(f"--from-plan {path}: is not a plan that --plan wrote (it has no list 'groups')")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or "kept" not in entry:
            raise UsageError(
                f"--from-plan {path}: is not a plan that --plan wrote (entry {number} of its groups has no text 'name' "
                "and a 'kept')"
            )
    return entries


def _width(where: str, group: ChannelGroup, entry: dict[str, Any]) -> int:
    """Units that the family of the group keeps."""
    if entry.get("channels") not in (None, group.channels):
        raise UsageError(f"{where} has {entry['channels']!r} channels in the plan, {group.channels} in this model")
    count = _count(entry["kept"], group.channels)
    step = group.channels // group.unit
    if count is None or not 0 < count <= group.channels or count % step:
        multiple = f", a multiple of {step}" if step > 1 else ""
        shown = reprlib.repr(entry["kept"]) if count is None else count
        raise UsageError(
            f"{where} cannot keep {shown} channels; give 1 to {group.channels}{multiple}, or a list of different ones"
        )
    return count // step


def _count(kept: Any, channels: int) -> int | None:
    """How many channels are kept, by their number or a list of them; None if it is neither."""
    if isinstance(kept, list):
        numbers = [i for i in kept if type(i) is int and 0 <= i < channels]  # True is none
        return len(kept) if len(numbers) == len(kept) == len(set(numbers)) else None
    return kept if type(kept) is int else None


def _check_families(path: str, found: Sequence[tuple[ChannelGroup, int]]) -> None:
    """What shrinks together must be asked for the same.

    Raises:
        UsageError: it is not.
    """
    first: dict[int, tuple[ChannelGroup, int]] = {}
    for group, width in found:
        other, before = first.setdefault(group.family, (group, width))
        if width != before:
            wanted = group.channels // group.unit * before
            raise UsageError(
                f"--from-plan {path}: groups {other.name!r} and {group.name!r} shrink together: with "
                f"{other.channels // other.unit * before} channels of the first give {wanted} of the second"
            )
