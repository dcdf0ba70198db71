"""Einsum of one activation and one constant, or of two activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..findings import Role
from ..graph import Node
from ..ids import Ids, varying
from ..tracker import Tracker


def einsum(node: Node, t: Tracker) -> None:
    """Labels that end are contracted, labels only a constant has are made; others pass on."""
    terms, result = einsum_terms(
        str(node.attrs["equation"]), [len(t.in_shape(node, i)) for i in range(len(node.inputs))]
    )
    constants = [i for i in range(len(node.inputs)) if t.is_constant(node, i)]
    if not result or len(terms) != 2 or len(constants) == 2 or any(len(set(x)) < len(x) for x in terms):
        for i in range(len(node.inputs)):
            t.lock(t.of(node, i), "Einsum of this form has no rule")
        t.put(node, t.fixed(len(t.out_shape(node))))
    elif constants:
        _with_constant(node, t, constants[0], terms, result)
    else:
        _of_activations(node, t, terms, result)


def einsum_terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """One letter per axis of each operand and of the result: an ellipsis becomes capital letters."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:  # what stands once, in order
        result = "..." * ("..." in left) + "".join(sorted(c for c in set(left) - {",", "."} if left.count(c) == 1))
    sizes = [rank - len(x) + 3 for rank, x in zip(ranks, terms, strict=True)]
    longest = max((n for n, x in zip(sizes, terms, strict=True) if "..." in x), default=0)
    letters = "ABCDEFGHIJ"[:longest]
    full = [x.replace("...", letters[longest - n :] if n > 0 else "") for x, n in zip(terms, sizes, strict=True)]
    return full, result.replace("...", letters)


def _with_constant(node: Node, t: Tracker, w: int, terms: list[str], result: str) -> None:
    x = t.of(node, 1 - w)
    ids, weight, shape = terms[1 - w], terms[w], t.in_shape(node, w)
    shared = [c for c in weight if c in ids and c in result]
    ended = [c for c in weight if c in ids and c not in result]
    made = [c for c in weight if c not in ids and c in result]
    differ = [ids[a] for a in varying(x)]
    if any(c in shared for c in differ) or any(c not in result and c not in weight for c in differ):
        t.lock(x, "Einsum over blocks of channels")
        x = t.fixed(x.ndim)
    consumed = t.collapse(x, [ids.index(c) for c in ended])
    full = [c for c in ids if c in ended]
    extents = [shape[weight.index(c)] if c in ended else 1 for c in ids]
    vector = np.broadcast_to(consumed, extents).reshape([shape[weight.index(c)] for c in full] or [1])
    data = (1 - w, ids.index(full[0])) if len(full) == 1 else None
    t.slot(node, w, [weight.index(c) for c in full], vector, Role.CONSUMES, data=data) if full else None
    if shared:
        t.put(node, t.fixed(len(result)))
        return
    out = [shape[weight.index(c)] if c in made else 1 for c in result]
    fresh = t.fresh(int(np.prod(out))).reshape(out)
    axes = [weight.index(c) for c in result if c in made]
    t.slot(node, w, axes, fresh.reshape([shape[a] for a in axes]), Role.PRODUCES) if axes else None
    t.put(node, fresh if axes else t.fixed(len(result)))


def _of_activations(node: Node, t: Tracker, terms: list[str], result: str) -> None:
    """Labels of both operands unite; those not in the result end; on the others at most one operand may differ."""
    labels = "".join(dict.fromkeys("".join(terms)))
    x, y = (_spread(t.of(node, i), terms[i], labels) for i in (0, 1))
    ended = [a for a, c in enumerate(labels) if c not in result]
    if any(ids.shape[a] > 1 for ids in (x, y) for a in ended):
        both = [a for a, c in enumerate(labels) if c in terms[0] and c in terms[1]]
        t.unite(t.collapse(x, both), t.collapse(y, both))
        t.pair(x, y)
        for ids in (x, y):
            for axis in varying(ids):
                if axis not in ended:
                    t.pin(ids, axis)
    kept = [t.fixed(len(labels)) if any(ids.shape[a] > 1 for a in ended) else ids for ids in (x, y)]
    if kept[0].any() and kept[1].any():
        for ids in kept:
            t.lock(ids, "Einsum of two activations that both keep channels")
        kept = [t.fixed(len(labels))] * 2
    else:
        for ids, term in zip(kept, reversed(terms), strict=True):
            for axis in varying(ids):
                if labels[axis] in term:
                    t.pin(ids, axis)
    out = kept[0] if kept[0].any() else kept[1]
    order = [labels.index(c) for c in result]
    t.put(node, np.transpose(out, order + ended).reshape([out.shape[a] for a in order]))


def _spread(ids: Ids, term: str, labels: str) -> Ids:
    """The ids with one axis for each of `labels`."""
    order = [term.index(c) for c in labels if c in term]
    shape = [ids.shape[term.index(c)] if c in term else 1 for c in labels]
    return np.transpose(ids, order).reshape(shape)


RULES: dict[str, Callable[[Node, Tracker], None]] = {"Einsum": einsum}
