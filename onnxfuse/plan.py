"""What a run did, in a form from which NumPy alone can do it again.

`PLAN.json` lists the BatchNormalizations folded first, the initializers cloned, and for every group its slots;
`PLAN.json.npz` holds the matrices. To redo a group g in a slot of initializer W:

    V = W.reshape(split, -1, *W.shape[1:]) if split > 1 else W
    V = np.moveaxis(V, axes, range(len(axes)))          # the slot's axes in front
    rows = V.reshape(-1, *rest)[positions]              # (n, q, …): each channel's places
    new = np.tensordot(M, rows, 1)                      # M: compress; for role consumes expand.T;
                                                        #    for role scale compress with rows of sum 1
    V.reshape(-1, *rest)[positions[kept]] = new         # and the places of the others are dropped at the end

First of all, each array under `shift_NAME` is added to initializer NAME, a bias that takes up what constants gave.
If `repairs` is not empty, a slot that a repair names (same initializer, axes and split, role consumes) is left out
there, and when all groups are done the repairs follow in their order, each on initializer W:

    V as above; columns = V.reshape(-1, *rest)[layout]      # (n, q, outputs, …)
    bias += Σ over all axes but the outputs of np.tensordot(shift, columns, 1)   # if there is a bias
    new = zeros like columns; new[kept] = np.tensordot(expand.T, columns, 1)
    new[kept] += refitted                                   # if there is one
    V.reshape(-1, *rest)[layout] = new
    W's rows that make output i are multiplied by gain[i]; bias = bias · gain + offset   # if there is a bias

With a split of b > 1 the n channels are b equal blocks that make the outputs block by block. The bias may be what an
Add behind the node adds, with axes of length 1 besides the outputs'.

The matrices are in coordinate form: `M = np.zeros(shape); M[row, column] = value`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array

from .channels import ChannelGroup
from .folding import Folded
from .merge import Merge
from .repair import Repair
from .tensors import Array


@dataclass(frozen=True, eq=False)
class Plan:
    """The merges of one run, in the order they were made.

    Attributes:
        options: what the run was asked for.
        folded: BatchNormalizations that went into weights before anything was merged.
        clones: name of a new initializer → the one it copies.
        merges: group and merge, first to last.
        shifts: bias → what was added to it before.
        repairs: what replaced the merges' expand at single consumers, first to last.
    """

    options: dict[str, Any]
    folded: tuple[Folded, ...] = ()
    clones: dict[str, str] = field(default_factory=dict)
    merges: tuple[tuple[ChannelGroup, Merge], ...] = ()
    shifts: Mapping[str, Array] = field(default_factory=dict)
    repairs: tuple[Repair, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The plan without its matrices, as JSON values."""
        return {
            "options": self.options,
            "folded_batch_norms": [_folded_json(f) for f in self.folded],
            "clones": self.clones,
            "groups": [_group_json(i, g, m) for i, (g, m) in enumerate(self.merges)],
            "repairs": [_repair_json(i, r) for i, r in enumerate(self.repairs)],
        }

    def arrays(self) -> dict[str, Array]:
        """The shifts, the matrices of group number i, as group_i_compress_row and so on, and its slots' positions."""
        found: dict[str, Array] = {f"shift_{name}": shift for name, shift in self.shifts.items()}
        for i, (group, merge) in enumerate(self.merges):
            for name, matrix in (("compress", merge.compress), ("expand", merge.expand)):
                found |= {f"group_{i}_{name}_{part}": a for part, a in _coordinates(matrix).items()}
            found |= {f"group_{i}_slot_{k}_positions": s.positions for k, s in enumerate(group.slots)}
        for i, r in enumerate(self.repairs):
            found |= {f"repair_{i}_{name}": getattr(r, name) for name in ("kept", "expand", "shift", "gain", "offset")}
            found[f"repair_{i}_layout"] = r.reader.layout
            if r.refitted is not None:
                found[f"repair_{i}_refitted"] = r.refitted
        return found

    def save(self, path: Path) -> None:
        """Write `path` (JSON) and `path`.npz.

        Raises:
            OSError: the place is not writable.
        """
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n")
        arrays: Any = self.arrays()
        np.savez_compressed(path.with_name(path.name + ".npz"), **arrays)


def _folded_json(folded: Folded) -> dict[str, Any]:
    return {name: getattr(folded, name) for name in ("node", "weight", "bias", "source", "norm", "epsilon")}


def _coordinates(matrix: csr_array) -> dict[str, Array]:
    entries = coo_array(matrix)
    return {"shape": np.array(matrix.shape), "row": entries.row, "column": entries.col, "value": entries.data}


def _repair_json(number: int, repair: Repair) -> dict[str, Any]:
    reader = repair.reader
    return {
        "repair": number,
        "initializer": reader.slot.tensor,
        "axes": list(reader.slot.axes),
        "split": reader.slot.split,
        "taps": reader.taps,
        "bias": reader.bias,
        "outputs_axis": repair.outputs_axis,
    }


def _group_json(number: int, group: ChannelGroup, merge: Merge) -> dict[str, Any]:
    slots = [
        {
            "initializer": s.tensor,
            "node": s.node,
            "role": s.role.value,
            "axes": list(s.axes),
            "split": s.split,
            "kept": np.sort(s.positions[merge.kept].ravel()).tolist(),
        }
        for s in group.slots
    ]
    return {
        "group": number,
        "name": group.name,
        "channels": group.channels,
        "kept": merge.kept.tolist(),
        "slots": slots,
    }
