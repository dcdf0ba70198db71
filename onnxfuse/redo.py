"""Do again what a plan recorded, on arrays alone: no graph is needed. `plan.py` has the recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .channels import Slot
from .errors import UsageError, one_line
from .findings import Role
from .merge import Merge
from .plan import Plan
from .producers import shifted
from .rewrite import shrink
from .sources import arrays_of
from .tensors import Array
from .weights import front, matrix, others

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Record:
    """A plan as it lies in its two files.

    Attributes:
        json: the plan without its arrays.
        arrays: by the names of the .npz file.
    """

    json: Mapping[str, Any]
    arrays: Mapping[str, Array]

    def merges(self) -> Iterator[tuple[Merge, list[Slot]]]:
        """Every group's merge and slots, first to last."""
        for g in self.json["groups"]:
            number = g["group"]
            compress, expand = (self._matrix(f"group_{number}_{name}") for name in ("compress", "expand"))
            slots = [
                Slot(
                    s["initializer"], s["node"], tuple(map(int, s["axes"])), int(s["split"]), Role(s["role"]),
                    self.arrays[f"group_{number}_slot_{k}_positions"],
                )
                for k, s in enumerate(g["slots"])
            ]  # fmt: skip
            yield Merge(np.array(g["kept"], np.int64), compress, expand), slots

    def _matrix(self, name: str) -> csr_array:
        shape, row, column, value = (self.arrays[f"{name}_{part}"] for part in ("shape", "row", "column", "value"))
        return csr_array((value, (row, column)), shape=tuple(shape))

    def repair(self, number: int) -> dict[str, Array]:
        """The arrays of a repair."""
        names = ("layout", "kept", "expand", "shift", "gain", "offset")
        found = {name: self.arrays[f"repair_{number}_{name}"] for name in names}
        added = self.arrays.get(f"repair_{number}_refitted")
        return found if added is None else found | {"refitted": added}

    def check(self) -> None:
        """Both files are there in full, and of one run.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: they are not.
        """
        if missing := {"clones", "folded_batch_norms", "groups", "repairs"} - self.json.keys():
            raise KeyError(*missing)
        for g, (merge, _) in zip(self.json["groups"], self.merges(), strict=True):
            if merge.kept.shape != merge.compress.shape[:1]:
                raise ValueError(
                    f"{g['name']!r} keeps other channels than the .npz has: use the plan of a run --from-plan this one"
                )
        for r in self.json["repairs"]:
            self.repair(r["repair"])

    def initializers(self) -> list[str]:
        """Names of all constants that it changes, those that are copied first by the name of what they copy."""
        names = [s["initializer"] for g in self.json["groups"] for s in g["slots"]]
        names += [n for r in self.json["repairs"] for n in (r["initializer"], r["bias"]) if n]
        names += [k.removeprefix("shift_") for k in self.arrays if k.startswith("shift_")]
        return list(dict.fromkeys(names))


def record(plan: Plan | str | Path) -> Record:
    """A plan, or the files that `--plan` wrote.

    Raises:
        UsageError: they cannot be read.
    """
    if isinstance(plan, Plan):
        return Record(plan.as_json(), plan.arrays())
    path = Path(plan)
    arrays = arrays_of(f"{path}.npz", "the plan's matrices:")
    try:
        found = Record(json.loads(path.read_text(encoding="utf-8-sig")), arrays)  # editors begin a file with a mark
        found.check()
    except OSError as error:
        raise UsageError(f"{error.filename or path}: cannot be read: {error.strerror or one_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: is not a plan that --plan wrote ({one_line(error)})") from error
    return found


def redo(plan: Record, values: MutableMapping[str, Array]) -> dict[str, dict[tuple[tuple[int, ...], int], Mask]]:
    """Make the weights small, in place.

    Args:
        plan: what was done.
        values: every initializer that it changes, BatchNormalization folded.

    Returns:
        Initializer → (axes, split) → which of the positions there are left.
    """
    for key in (k for k in plan.arrays if k.startswith("shift_")):
        values[key.removeprefix("shift_")] = values[key.removeprefix("shift_")] + plan.arrays[key]
    later = {(r["initializer"], tuple(r["axes"]), r["split"]) for r in plan.json["repairs"]}
    kept: dict[str, dict[tuple[tuple[int, ...], int], Mask]] = {}
    places: dict[tuple[str, tuple[int, ...], int], Slot] = {}
    for merge, slots in plan.merges():
        for slot in slots:
            if slot.role is not Role.CONSUMES or (slot.tensor, slot.axes, slot.split) not in later:
                values[slot.tensor] = _merged(values[slot.tensor], slot, merge)
            extents = front(values[slot.tensor], slot).shape[: len(slot.axes)]
            mask = kept.setdefault(slot.tensor, {}).setdefault((slot.axes, slot.split), np.ones(extents, bool))
            mask.reshape(-1)[slot.positions[others(merge.kept, len(slot.positions))].ravel()] = False
            places[slot.tensor, slot.axes, slot.split] = slot
    for r in plan.json["repairs"]:
        _refit(values, r, plan.repair(r["repair"]))
    for name, masks in kept.items():
        for (axes, split), mask in masks.items():
            values[name] = shrink(values[name], places[name, axes, split], mask)
    return kept


def _merged(array: Array, slot: Slot, merge: Merge) -> Array:
    """The array with the places of the kept channels merged into, those of the others zero."""
    array = np.array(array)
    view = front(array, slot)
    index = np.unravel_index(slot.positions, view.shape[: len(slot.axes)])
    rows = view[index]
    made = matrix(merge, slot.role, array.dtype) @ rows.reshape(len(rows), -1)
    new = np.zeros_like(rows)
    new[merge.kept] = made.reshape(len(merge.kept), *rows.shape[1:])
    view[index] = new
    return array


def _refit(values: MutableMapping[str, Array], repair: Mapping[str, Any], r: Mapping[str, Array]) -> None:
    """A consumer's columns combined and corrected, its bias shifted, what it makes scaled and shifted.

    Plans of earlier versions mark a bias in a node of its own, `bias_apart`, which the gain did not reach, and have no
    `taps`.
    """
    name, bias, split = repair["initializer"], repair["bias"], repair["split"]
    array = np.array(values[name])
    slot = Slot(name, "", tuple(repair["axes"]), split, Role.CONSUMES, r["layout"])
    view = front(array, slot)
    index = np.unravel_index(slot.positions, view.shape[: len(slot.axes)])
    columns = view[index]
    if bias:
        parts = zip(np.split(r["shift"], split), np.split(columns, split), strict=True)
        made = [np.tensordot(shift, part, 1) for shift, part in parts]
        taps = [repair.get("taps", math.prod(m.shape[2:])) for m in made]
        outputs = [m.reshape(len(m), -1, t).sum(axis=(0, 2)) for m, t in zip(made, taps, strict=True)]
        values[bias] = shifted(values[bias], np.concatenate(outputs))
    new = np.zeros_like(columns)
    new[r["kept"]] = np.tensordot(r["expand"].T, columns, 1)
    if "refitted" in r:
        new[r["kept"]] += r["refitted"]
    view[index] = new
    if bias and len(r["gain"]):
        array = scaled(array, r["gain"], repair["outputs_axis"], split)
        gain, offset = (r[part].reshape(values[bias].shape) for part in ("gain", "offset"))
        values[bias] = values[bias] * (1 if repair.get("bias_apart") else gain) + offset
    values[name] = array


def scaled(array: Array, gain: Array, axis: int, split: int = 1) -> Array:
    """What makes each output times its gain; a grouped transposed convolution counts its outputs in each group."""
    if split > 1 and array.shape[axis] * split == len(gain):
        blocks = array.reshape(split, -1, *array.shape[1:])
        return np.asarray(blocks * gain.reshape(split, 1, -1, *(1,) * (array.ndim - 2))).reshape(array.shape)
    return np.asarray(array * np.expand_dims(gain, [a for a in range(array.ndim) if a != axis]))
