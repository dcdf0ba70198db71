"""Model files in and out, with external data."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, numpy_helper

from .errors import ModelError, OutputError, UsageError, one_line
from .external import read_external
from .tensors import byte_size, refer, values_of

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes above which protobuf cannot serialize a model in one piece."""
BESIDE, ALIGNMENT = 1024, 4096
"""Bytes from which on a tensor goes into the data file, and a page, of which its place there is a multiple."""
REFERENCE = 256
"""Bytes in the model, at most, that say where in the data file a tensor lies."""
VALUES = "raw_data float_data int32_data int64_data double_data uint64_data external_data data_location".split()


# --- reading --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Loaded:
    """A model read from a file.

    Attributes:
        model: with its external data.
        beside: the files of its external data.
        file_bytes: of the file and its external data.
    """

    model: ModelProto
    beside: tuple[Path, ...]
    file_bytes: int


def load(path: Path) -> Loaded:
    """Read an ONNX file with its external data.

    Raises:
        ModelError: no such file, not an ONNX model, truncated, an empty graph, or external data missing.
    """
    try:
        if not path.is_file():
            raise ModelError(f"{path}: {_no_file(path)}; give an .onnx file")
        model = onnx.load(os.fspath(path), format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path}: {_not_onnx(path)}") from error
    if not model.graph.node:
        raise ModelError(f"{path}: {'empty graph: no nodes' if model.ir_version else _not_onnx(path)}")
    try:
        beside = read_external(model, path)
        size = sum(file.stat().st_size for file in [path, *beside])
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: external data is missing or unreadable ({one_line(error)}); "
            "put the data file beside the model, or where the model's own link leads to"
        ) from error
    return Loaded(model, beside, size)


def _no_file(path: Path) -> str:
    return "is a directory" if path.is_dir() else "is not a file" if path.exists() else "no such file"


def _not_onnx(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:8] == b"ORTM":
        return "is an ORT-format model; convert the .onnx file it was made from"
    return "is not an ONNX model, or is truncated; check it with onnx.checker"


# --- writing --------------------------------------------------------------------------------------------------------
def same(a: Path, b: Path) -> bool:
    """Whether two paths are one file, through links of both kinds; neither need exist."""
    return os.path.realpath(a) == os.path.realpath(b) or (a.exists() and b.exists() and a.samefile(b))


def check_writable(destination: Path) -> None:
    """Refuse what cannot become a file, through symbolic links; a directory beside it, gone again, shows that.

    Raises:
        OutputError: it is a directory, a device or a pipe, is read-only, its directory does not exist or is not
            writable, its name is too long, or its links lead in a circle.
    """
    place = resolved(destination)
    try:
        if place.is_dir():
            raise OutputError(f"{destination}: is a directory; give a file name")
        if place.is_symlink():
            raise OutputError(f"{destination}: is a symbolic link that leads in a circle; give a file name")
        if place.exists() and not place.is_file():
            raise OutputError(f"{destination}: is a device or a pipe, not a file; give a file name, or --dry-run")
        if place.exists() and not os.access(place, os.W_OK):
            raise OutputError(f"{destination}: is read-only; give another file name, or make it writable")
        if not place.parent.is_dir():
            raise OutputError(f"{destination}: the directory {destination.parent} does not exist; create it first")
    except OSError as error:
        raise OutputError(f"{destination}: cannot be written: {error.strerror or one_line(error)}") from error
    with staged(place):
        pass


def check_results(results: Sequence[Path], read: Sequence[Path]) -> None:
    """All that a run will write must be writable, and each a file of its own that the run does not read.

    Raises:
        OutputError: one cannot be written.
        UsageError: two are one file, or one of them is read.
    """
    for path in results:
        check_writable(path)
    for path, other in combinations(results, 2):
        if same(path, other):
            raise UsageError(f"{other} is named for two files; give each its own")
    check_unread(results, read)


def check_unread(results: Sequence[Path], read: Sequence[Path]) -> None:
    """Refuse to write over what a run reads.

    Raises:
        UsageError: a result is one of the files that are read.
    """
    for path in results:
        if any(same(path, other) for other in read):
            raise UsageError(f"{path}: this run reads that file; give another one to write to")


def check_distinct(path: Path, destination: Path, beside: Sequence[Path]) -> None:
    """Refuse to write over the external data of the model at `path`, unless the model itself is replaced, too.

    Raises:
        OutputError: `destination` or its data file is a data file of another model that was read.
    """
    for target in with_data(destination):
        if any(same(target, file) for file in beside) and (target == destination or not same(path, destination)):
            raise OutputError(f"{target}: holds the weights of {path}; give another output file")


def check_data_place(destination: Path) -> None:
    """Refuse a symbolic link into another folder for a model with a data file, which is looked for beside the link.

    Raises:
        OutputError: it is such a link.
    """
    place = resolved(destination)
    if place.parent != resolved(destination.parent):
        raise OutputError(
            f"{destination}: is a link into another folder, and the file that holds the weights would not be found "
            f"there; write to {place}, or to a new file"
        )


def with_data(destination: Path | None) -> list[Path]:
    """A model's file, if there is one, and the one beside it for large weights."""
    return [] if destination is None else [destination, Path(f"{resolved(destination)}.data")]


def resolved(destination: Path) -> Path:
    """Where a file is, through symbolic links; `Path.resolve` raises RuntimeError where they lead in a circle."""
    return Path(os.path.realpath(destination))


@contextlib.contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """A new directory beside `destination` to build the result in; it is gone afterwards, whatever happens.

    Raises:
        OutputError: the directory of the destination does not exist or is not writable.
    """
    try:
        directory = tempfile.TemporaryDirectory(prefix=".onnxfuse.", dir=destination.parent)
    except OSError as error:
        raise OutputError(f"{destination}: cannot be written: {error.strerror or one_line(error)}") from error
    with directory as name:
        yield Path(name)


def save(model: ModelProto, path: Path, external: bool) -> None:
    """Write `model`, its large tensors to `<name>.data` beside it if `external` or if protobuf's 2 GB demand it.

    Raises:
        OutputError: the disk is full or the place is not writable.
    """
    try:
        if external or too_large(model):
            path.write_bytes(_with_data_beside(model, path).SerializeToString())
        else:
            path.write_bytes(model.SerializeToString())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or one_line(error)}") from error


def _with_data_beside(model: ModelProto, path: Path) -> ModelProto:
    """The model without its large tensors, which go to `<name>.data` one by one."""
    bare = ModelProto()
    _copy_fields(model, bare, "graph")
    _copy_fields(model.graph, bare.graph, "initializer")
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for tensor in model.graph.initializer:
            new = bare.graph.initializer.add()
            if tensor.data_type == TensorProto.STRING or byte_size(tensor) < BESIDE:
                new.CopyFrom(tensor)
                continue
            _copy_fields(tensor, new, *VALUES)
            file.write(bytes(-file.tell() % ALIGNMENT))
            offset = file.tell()
            file.write(tensor.raw_data or numpy_helper.from_array(values_of(tensor)).raw_data)
            refer(new, data.name, offset, file.tell() - offset)
    return bare


def _copy_fields(source: Any, target: Any, *skip: str) -> None:
    """Copy all fields of a protobuf message but those named."""
    for descriptor, value in source.ListFields():
        if descriptor.name in skip:
            continue
        field = getattr(target, descriptor.name)
        if hasattr(field, "extend"):
            field.extend(value)
        elif hasattr(field, "CopyFrom"):
            field.CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)


def data_overhead(model: ModelProto) -> int:
    """Bytes that a data file takes at most besides the tensors: what aligns them, and where the model says they are."""
    sizes = (byte_size(t) for t in model.graph.initializer if t.data_type != TensorProto.STRING)
    return (ALIGNMENT + REFERENCE) * sum(size >= BESIDE for size in sizes)


def too_large(model: ModelProto) -> bool:
    """Whether protobuf cannot serialize the model in one piece; a quick estimate from the shapes of its weights."""
    sizes = (byte_size(t) for t in model.graph.initializer if t.data_type != TensorProto.STRING)
    return bool(sum(sizes) > PROTOBUF_LIMIT - (1 << 26))


def file_bytes(path: Path) -> int:
    """Of a model that `save` wrote, with its data file."""
    files = path, path.with_name(f"{path.name}.data")
    return sum(file.stat().st_size for file in files if file.exists())


def move(staged_file: Path, destination: Path) -> None:
    """Move a staged model and its data file, if any, into place; each replaces its predecessor in one step.

    A file that is replaced passes its permissions on.

    Raises:
        OutputError: the destination cannot be replaced.
    """
    try:
        for suffix in (".data", ""):
            source = staged_file.with_name(staged_file.name + suffix)
            target = destination.with_name(destination.name + suffix)
            if source.exists():
                if target.exists():
                    shutil.copymode(target, source)
                os.replace(source, target)
    except OSError as error:
        raise OutputError(f"{destination}: cannot be written: {error.strerror or one_line(error)}") from error
