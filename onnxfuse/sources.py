"""Arrays by name that a user gives: an .npz file, or a mapping in Python."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .errors import UsageError, one_line
from .tensors import Array

LABELS = "y"
IMAGES = "x"
LAYOUTS = {"NCHW": (0, 3, 1, 2), "NHWC": (0, 1, 2, 3)}
"""Layout of the model's input → the order of axes that makes it from (N, H, W, C)."""
Source = str | os.PathLike[str] | Mapping[str, Array]


def arrays_of(source: Source, option: str = "") -> dict[str, Array]:
    """All arrays of a source.

    Raises:
        UsageError: no such file, or no .npz file, or a value that is no array; the message starts with `option`.
    """
    if not isinstance(source, Mapping):
        return _read(Path(source), option)
    return {name: _array(f"{option} {name!r}".strip(), value) for name, value in source.items()}


def _array(named: str, value: object) -> Array:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:  # lists of unequal lengths, say
        raise UsageError(f"{named}: is no array: {one_line(error)}") from error


def by_input(arrays: Mapping[str, Array], names: Sequence[str], origin: str) -> dict[str, Array]:
    """The arrays for a model with inputs of these names: `x` is its only one, whatever its name.

    Images `x` (N, H, W) or (N, H, W, C) with `mean` and `std` per channel in units of x, and `layout`, are normalised.

    Raises:
        UsageError: mean, std and layout do not fit; the message starts with `origin`.
    """
    found = dict(arrays)
    if IMAGES in found and len(names) == 1 and IMAGES not in names:
        found[names[0]] = found.pop(IMAGES)
    if len(names) == 1 and {names[0], "mean", "std", "layout"} <= found.keys():
        how = (found.pop("mean"), found.pop("std"), str(found.pop("layout")))
        found[names[0]] = _normalized(found[names[0]], *how, origin)
    return found


def _normalized(x: Array, mean: Array, std: Array, layout: str, origin: str) -> Array:
    x = x[..., None] if x.ndim == 3 else x
    numbers = mean.shape == std.shape == x.shape[3:] and all(v.dtype.kind in "fiu" for v in (x, mean, std))
    if layout not in LAYOUTS or x.ndim != 4 or not numbers or not (std > 0).all():
        raise UsageError(
            f"{origin}: x {x.shape} with mean {mean.shape}, std {std.shape} and layout {layout!r} are not images "
            f"(N, H, W, C), a number for each of C, std above 0, and one of {', '.join(LAYOUTS)}"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # looked at below
        values = ((x.astype(np.float32) - mean) / std).astype(np.float32)
    if not np.isfinite(values).all():
        raise UsageError(f"{origin}: x has values that are not finite, or that float32 cannot hold with mean and std")
    return np.ascontiguousarray(values.transpose(LAYOUTS[layout]))


def _read(path: Path, option: str) -> dict[str, Array]:
    named = f"{option} {path}".strip()
    if not path.exists():
        raise UsageError(f"{named}: no such file")
    if not path.is_file():  # a pipe cannot be read out of order, and one that nobody writes to is waited for
        raise UsageError(f"{named}: is not a file; give an .npz file")
    if os.access(path, os.R_OK) and not zipfile.is_zipfile(path):
        raise UsageError(f"{named}: is not an .npz file; write one with numpy.savez, each array under its name")
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{named}: cannot be read: {one_line(error)}") from error
