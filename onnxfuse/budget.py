"""What a model may cost: budgets as a user writes them, and the widths of all channel groups that keep them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .allocate import cheapest, uniform, uniform_within, use_up
from .calibrate import Study
from .channels import Channels, but_held
from .curves import CURVES, GroupWeights, Squares, cost_curve
from .errors import UsageError
from .families import ROUNDING, Families, Limit
from .files import data_overhead
from .findings import Role
from .linear import linear
from .merge import MIXING
from .options import Options
from .paired import paired
from .resources import RESOURCES, Layout, Resource, Widths

Quantity = str | float
"""What a user gives: 0.5 or '0.5x' or '50%' of the original, or an amount such as '900M', '5MB', '4ms'."""
COUNTS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
UNITS: Mapping[str, Mapping[str, float]] = {"macs": COUNTS, "params": COUNTS, "size": {**BYTES, "": 1.0}}
"""Resource → the units it is given in; `resources.RESOURCES` says how much a model uses of it."""
SAVED_BY: Mapping[str, str] = {"macs": "time"}
"""Resource → what a channel is valued by that goes for it, where that is another: what takes long goes first."""
IN_BLOCKS: Mapping[str, float] = {"local": 0.75, "latency": 0.5}
"""Of the time that fewer multiply-accumulates take so much is had only by whole blocks: where widths are rounded to the
next ones, and where a latency is asked for. Where accuracy at equal multiply-accumulates counts, that would cost some:
at 0, 1/4, 1/2 and 3/4 half of ResNet-20's channels, spread globally, keep 84.2, 85.4, 85.3 and 78.8% without data and
89.0, 88.2, 86.4 and 86.4% with samples, in 47, 42, 42 and 44% of the time."""
CLOSE = 0.98
"""Of a budget must be used: where whole blocks leave more, some families of groups end within a block."""
OVER: Mapping[str, float] = {"macs": 0.001, "params": 0.001}
"""Resource → the share by which its budget may be exceeded where no widths come as close from below: with 32 of its 64
channels magika has 50.01% of its multiply-accumulates, with 31 48.45. A file's size must keep what is asked."""
SHARES = {"x": 1.0, "%": 0.01}


@dataclass(frozen=True)
class Amount:
    """An amount of some resource, or a share of what the original uses."""

    value: float
    relative: bool

    def of(self, original: float) -> float:
        """The amount, given the original's."""
        return self.value * original if self.relative else self.value


def amount(option: str, given: Quantity, units: Mapping[str, float]) -> Amount:
    """Read a quantity: a bare number up to 1 is a share, like one that ends in x or %.

    Raises:
        UsageError: it is none, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z%]*)\s*", str(given))
    valid = [u for u in units if u]
    try:
        value, unit = float(match[1]) if match else math.nan, match[2] if match else ""
    except ValueError:
        value, unit = math.nan, ""
    relative = unit in SHARES or (unit == "" and value <= 1)
    if not 0 < value < math.inf or not (relative or unit in units):
        raise UsageError(
            f"--{option} {given!r} is not an amount; give a share such as 0.5, or one in {', '.join(valid)}"
        )
    return Amount(value * (SHARES.get(unit, 1.0) if relative else units[unit]), relative)


def targets(options: Options) -> dict[str, Amount]:
    """Resource → the budget for it.

    Raises:
        UsageError: a budget cannot be read.
    """
    return {n: amount(f"target-{n}", value, UNITS[n]) for n, value in options.budgets.items()}


def absolute(options: Options, original: Mapping[str, Callable[[], float]]) -> Options:
    """The options with every budget in numbers instead of shares of what the original uses."""
    found: dict[str, Any] = {f"target_{name}": a.of(original[name]()) for name, a in targets(options).items()}
    return replace(options, **{field: max(1.5, value) for field, value in found.items()})  # above 1: not a share


def unmeasured() -> None:
    """No moments: weights have to do."""


def choose(
    channels: Channels,
    families: Families,
    options: Options,
    room: float | None = None,
    measured: Callable[[], Study | None] = unmeasured,
) -> Widths:
    """The width of every family.

    Args:
        channels: the groups.
        families: the widths they may have.
        options: a sparsity, or budgets that must all hold.
        room: how much of the multiply-accumulates that could go may stay, 0 to 1; None: as much as the budgets let.
        measured: gives moments from which to estimate what channels cost, or None: from the weights. It may take long,
            and is asked only once the budgets are known to be within reach.

    Raises:
        UsageError: a budget is out of reach; the message has the smallest value that is not.
    """
    if not families.allowed:
        _limits(Layout(channels, families.places), families, options)  # they may hold as it is
        return families.units
    local = not options.spreads
    exact = None if options.sparsity is None else uniform(families, options.sparsity)
    if local and exact is not None and families.allow(exact):
        return exact
    layout = Layout(channels, families.places)
    if exact is not None:
        choices, main = families.around(exact) if local else families, _main(layout, families)
        costs = _costs(channels, choices, measured(), options.method)
        near = cheapest(families.around(exact), costs, [main.at(exact).in_whole_blocks(IN_BLOCKS["local"])])
        return near if local else cheapest(families, costs, [main.at(near)])
    limits = _limits(layout, families.finest(), options)
    if room is None and all(limit.holds(families.widest) for limit in limits):
        return families.widest  # in parts of blocks, too: nothing is asked for
    if not all(limit.holds(families.narrowest) for limit in limits):
        families = families.finest()  # blocks are too coarse for such a budget
    costs = _costs(channels, families, measured(), options.method)
    if room is not None:
        limits.append(_part_of(layout, families, room))
    if local or options.target_latency is not None:
        limits = [x.in_whole_blocks(IN_BLOCKS["local" if local else "latency"]) for x in limits]
    widths = cheapest(families.around(uniform_within(families, limits)), costs, limits) if local else None
    if widths is None or not all(limit.holds(widths) for limit in limits):
        widths = cheapest(families, costs, limits)
    return widths if room is not None else _close(families, costs, limits, widths)


def _close(families: Families, costs: Sequence[NDArray[np.float64]], limits: Sequence[Limit], widths: Widths) -> Widths:
    """Widths that use up a budget, in parts of blocks if whole ones leave much of it; at last a little more than it."""
    for bounds in (limits, [limit.exceeded() for limit in limits]):
        if limits and all(limit.resource(widths) < CLOSE * limit.most for limit in limits):
            widths = use_up(families, costs, bounds, widths, CLOSE)
    return widths


@dataclass(frozen=True, eq=False)
class _Kind:
    """A resource, what counts as saving it, and by what share a limit on it may be exceeded."""

    resource: Resource
    saved_by: Resource | None
    over: float

    def limit(self, most: float) -> Limit:
        return Limit(self.resource, most, self.saved_by, over=self.over)

    def at(self, widths: Widths) -> Limit:
        return self.limit(self.resource(widths))


def _kind(name: str, layout: Layout) -> _Kind:
    by = SAVED_BY.get(name)
    return _Kind(RESOURCES[name](layout), RESOURCES[by](layout) if by else None, OVER.get(name, 0.0))


def _main(layout: Layout, families: Families) -> _Kind:
    """Multiply-accumulates; parameters where no channels are multiplied."""
    macs = _kind("macs", layout)
    return macs if macs.resource.gradient(families.units).any() else _kind("params", layout)


def _part_of(layout: Layout, families: Families, room: float) -> Limit:
    main = _main(layout, families)
    least, most = main.resource(families.narrowest), main.resource(families.widest)
    return main.limit(least + room * (most - least))


def _limits(layout: Layout, families: Families, options: Options) -> list[Limit]:
    limits = []
    for name, budget in targets(options).items():
        apart = data_overhead(layout.model) if name == "size" and options.external_data else 0
        limit = _kind(name, layout).limit(budget.value - apart)
        if not limit.holds(families.narrowest):
            least, most = limit.resource(families.narrowest) + apart, limit.resource(families.units)
            raise UsageError(
                f"--target-{name} {budget.value:.0f} is out of reach: the smallest possible here is "
                f"{math.ceil(least)}, {_rounded_up(least / most)} of the original's{_limited_by(options)}"
                f"{_less_in_exact_widths(limit, families, least - apart, options)}{but_held(layout.channels.locked)}"
            )
        limits.append(limit)
    return limits


def _rounded_up(share: float) -> str:
    """To three digits, so that asking for what is written is within reach."""
    unit = 10.0 ** (math.floor(math.log10(share)) - 2)
    return f"{math.ceil(share / unit - ROUNDING) * unit:.3g}"


def _less_in_exact_widths(limit: Limit, families: Families, least: float, options: Options) -> str:
    """What is possible where widths need not be what kernels like, if that is less."""
    exact = limit.resource(families.least)
    if options.round_to != "auto" or not exact < least:
        return ""
    return f" ({_rounded_up(exact / limit.resource(families.units))} with --round-to 1)"


def _limited_by(options: Options) -> str:
    """The options that a smaller model would contradict."""
    asked = str(options.round_to)
    names = [f"--round-to {asked}"] * (asked not in ("auto", "1"))
    names += [
        "--" + n.replace("_", "-") for n in ("keep", "only", "ratio", "from_plan", "exclude") if getattr(options, n)
    ]
    return f", with {', '.join(names)}" if names else ""


def _costs(channels: Channels, families: Families, measured: Study | None, method: str) -> list[NDArray[np.float64]]:
    """For each family the costs of its widths 0 … unit, summed over its groups; zeros where it has no choice."""
    mixing = linear(channels) if measured is not None and measured.source in MIXING.get(method, ()) else set()
    costs, squares = [np.zeros(unit + 1) for unit in families.units.tolist()], Squares(channels.tracker.graph)
    pairs = paired(channels)
    for group in channels.groups:
        if len(families.allowed[families.places[group.family]]) == 1:
            continue
        weights = GroupWeights(channels.tracker.graph, group, squares, paired=group in pairs)
        if measured is not None:
            rows = {s: weights.rows(s) for s in group.slots if s.role is Role.CONSUMES}
            views = measured.views(rows, costs=True)
            mixes = group in mixing and len(views) == len(rows)
            weights = replace(weights, views=views, mixes=mixes, source=measured.source)
        curve = cost_curve(CURVES["measured"], weights)
        costs[families.places[group.family]] += curve[:: group.channels // group.unit]
    return costs
