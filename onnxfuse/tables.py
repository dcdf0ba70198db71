"""Reports and inspections as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .channels import ChannelGroup, Locked
from .inspection import Analysis, layers
from .report import (
    GroupRow,
    Report,
    blindness,
    count,
    doubt,
    fidelity_lines,
    in_bytes,
    latency_notes,
    merged_line,
    slowness,
    stiffness,
    verification_line,
)


# --- a report -------------------------------------------------------------------------------------------------------
def print_report(report: Report, console: Console, verbose: bool = False) -> None:
    """Print the before/after table, what was left alone with the reasons counted, and the verification line."""
    console.print(
        f"{report.source or 'model'} → {report.destination or 'nothing written'}", soft_wrap=True, markup=False
    )
    console.print(_size_table(report))
    if report.groups or not report.notes:  # an ensemble that is not pruned has notes only
        console.print(merged_line(report.groups), highlight=False)
    for note in (*report.notes, *latency_notes(report.latency)):
        console.print(note, soft_wrap=True, highlight=False)
    if report.free is not None:
        console.print(
            "nothing was lost with " + ", ".join(f"{n} {kind}" for kind, n in report.free.items()) + " channels"
        )
    if verbose and report.groups:
        console.print(_group_table(report.groups))
    if report.locked:
        console.print(locked_table(report.locked) if verbose else _reason_table(report))
    console.print(verification_line(report), soft_wrap=True, highlight=False)
    for line in fidelity_lines(report):
        console.print(line, soft_wrap=True, highlight=False)
    for warning in [*doubt(report), *blindness(report), *slowness(report.latency), *stiffness(report)]:
        console.print(warning, style="bold yellow", soft_wrap=True, highlight=False)


def table(*headings: str, title: str = "") -> Table:
    """An empty table whose columns but the first are right-aligned."""
    table = Table(title=title or None, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", overflow="fold")
    return table


def _size_table(report: Report) -> Table:
    rows, b, a = table("", "before", "after", "change"), report.before, report.after
    for name, x, y, show in (
        ("channels", b.channels, a.channels, count),
        ("parameters", b.parameters, a.parameters, count),
        ("MACs", b.macs, a.macs, count),
        ("file size", b.file_bytes, a.file_bytes, in_bytes),
    ):
        rows.add_row(name, show(x), show(y), f"{100 * (y / x - 1):+.1f}%" if x else "–")
    if (t := report.latency) is not None:
        rows.add_row("latency", f"{t.before:.3g} ms", f"{t.after:.3g} ms", f"{100 * t.change:+.1f}%")
    if (q := report.quality) is not None:
        rows.add_row(q.metric, f"{q.before:.4f}", f"{q.after:.4f}", f"{q.after - q.before:+.4f}")
    return rows


def _group_table(groups: Sequence[GroupRow]) -> Table:
    rows = table("group, by the node that makes it", "before", "after", "nodes", "method", title="channel groups")
    for g in groups:
        rows.add_row(Text(g.name), str(g.before), str(g.after), str(len(g.nodes)), g.method)
    return rows


def _reason_table(report: Report) -> Table:
    rows = table("left alone because", "layers", "channels")
    for reason, places, channels in report.reasons():
        rows.add_row(Text(reason), str(places), str(channels))
    return rows


def locked_table(locked: Sequence[Locked]) -> Table:
    """A row for every part left alone."""
    rows = table("left alone", "channels", "because", "at")
    for row in locked:
        rows.add_row(Text(row.name), str(row.channels), Text(row.reason), Text(row.node))
    return rows


# --- an inspection ----------------------------------------------------------------------------------------------------
def print_analysis(found: Analysis, console: Console) -> None:
    """Print a row for every group and a row for every part left alone."""
    groups = table("may shrink", "layers", "channels", "nodes", "MACs", "share", "constraint")
    for group, n in zip(found.groups, found.macs, strict=True):
        share = f"{100 * n / found.total_macs:.1f}%" if found.total_macs else "–"
        shown = (str(len(layers(group))), str(group.channels), str(len(group.nodes)), count(n), share)
        groups.add_row(Text(group.name), *shown, Text(found.constraint(group)))
    for rows in (groups, locked_table(found.locked)):
        if rows.row_count:
            console.print(rows)


def print_slots(found: Analysis, group: ChannelGroup, console: Console) -> None:
    """Print one group's slots: where in which constant its channels lie, and what each does there."""
    slots = table("initializer", "axis", "role", "node", title=f"{group.name}: {group.channels} channels")
    for s in group.slots:
        axes = ", ".join(map(str, s.axes)) + (f" of {s.split} blocks" if s.split > 1 else "")
        slots.add_row(Text(s.tensor), axes, s.role.value, Text(s.node))
    console.print(slots)
    console.print(f"may keep: {found.constraint(group)}", markup=False, highlight=False)
