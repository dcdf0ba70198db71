"""Arrays by name that a user gives: an .npz file, or a mapping in Python."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .errors import UsageError, one_line
from .tensors import Array

Source = str | os.PathLike[str] | Mapping[str, Array]


def arrays_of(source: Source) -> dict[str, Array]:
    """All arrays of a source.

    Raises:
        UsageError: there is no such file, or it is no .npz file.
    """
    return {k: np.asarray(v) for k, v in source.items()} if isinstance(source, Mapping) else _read(Path(source))


def _read(path: Path) -> dict[str, Array]:
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    try:
        if not zipfile.is_zipfile(path):
            raise UsageError(f"{path}: not an .npz file; write one with numpy.savez, each array under its name")
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read: {one_line(error)}") from error
