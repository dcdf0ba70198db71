"""Groups that no weight reads: a product of two values sums over their channels, as queries and keys do.

No `expand` tells such a product that one channel stands for N. But both of its operands carry the channel, and they
are merged alike: with √N times the mean on either side N equal channels become one that counts N times. For that the
factor must reach the product as it is, so each operator on the way is to be homogeneous (`conduct`), and no norm may
run over the channels: it would take the factor away again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .channels import ChannelGroup, Channels, Slot
from .conduct import Conduct, verdicts
from .findings import Role
from .ids import Ids


def paired(channels: Channels) -> frozenset[ChannelGroup]:
    """The groups that products of two values sum over, where a factor reaches these, and that nothing else reads."""
    t = channels.tracker
    summed = {p.node: channels.classes[p.ids] for p in t.pairs}
    found = {g for g in channels.groups if _all_in(g, list(summed.values())) and _is_unread(g)}
    normed = [channels.classes[n.ids.ravel()] for n in t.norms]
    for v in verdicts(channels) if found else ():
        ends = v.node in summed and _all_in(v.group, [summed[v.node]]) and not _passes(channels, v.group, v.node)
        if (v.conduct is not Conduct.HOMOGENEOUS and not ends) or _any_in(v.group, normed):
            found.discard(v.group)
    return frozenset(found)


def sides(group: ChannelGroup) -> tuple[Slot, ...]:
    """Where each operand of the product is made: in two weights, or at two places of one; () if it cannot be told."""
    made = [s for s in group.slots if s.role is Role.PRODUCES]
    if len(made) == 1:
        made = [replace(made[0], positions=place[:, None]) for place in made[0].positions.T]
    return tuple(made) if len(made) == 2 else ()


def _is_unread(group: ChannelGroup) -> bool:
    return not any(s.role is Role.CONSUMES for s in group.slots)


def _all_in(group: ChannelGroup, classes: list[Ids]) -> bool:
    return bool(classes) and bool(np.isin(group.classes, np.concatenate(classes)).all())


def _any_in(group: ChannelGroup, classes: list[Ids]) -> bool:
    return bool(classes) and bool(np.isin(group.classes, np.concatenate(classes)).any())


def _passes(channels: Channels, group: ChannelGroup, position: int) -> bool:
    """Whether what a node makes carries the group, too."""
    t = channels.tracker
    made = [t.ids[o.name] for o in t.graph.nodes[position].outputs if o.name in t.ids]
    return _any_in(group, [channels.classes[ids.ravel()] for ids in made])
