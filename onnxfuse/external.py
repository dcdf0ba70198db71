"""External data, read: weights in files of their own beside a model.

As onnxruntime does it, and so as a model is sure to run: a data file may be a symbolic link, if what it leads to lies
in the folder of the model, or of what the model's own link leads to. A download cache that keeps all files under other
names and links to them is such a case, which onnx's reader refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from onnx import FunctionProto, GraphProto, ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from .tensors import byte_size, refer

MAPPED = 1 << 20
"""Initializers of at least this many bytes are mapped instead of read."""


def read_external(model: ModelProto, path: Path) -> tuple[Path, ...]:
    """Fill in the external data of the model that was read from `path`; the files that hold it.

    Raises:
        OSError, ValueError: one is missing, elsewhere, or too short.
    """
    graphs = [model.graph, *model.functions]
    names = {ExternalDataInfo(t).location for t in _external(graphs)}
    large = [t for t in model.graph.initializer if uses_external_data(t) and byte_size(t) >= MAPPED]
    places = [_place(t, path) for t in large]
    for tensor in large:
        tensor.data_location = TensorProto.DEFAULT  # so that the next lines leave it where it is
    for tensor in _external(graphs):
        _read(tensor, *_place(tensor, path))
    for tensor, place in zip(large, places, strict=True):
        refer(tensor, *place)
    return tuple(path.parent / name for name in sorted(names))


def _external(graphs: Iterable[GraphProto | FunctionProto]) -> Iterator[TensorProto]:
    """What lies in other files, of all that graphs and functions hold, in their nodes and bodies, too."""
    for graph in graphs:
        attributes = [a for node in graph.node for a in node.attribute]
        held = [*(graph.initializer if isinstance(graph, GraphProto) else ()), *(a.t for a in attributes)]
        yield from (t for t in held if uses_external_data(t))
        yield from _external(g for a in attributes for g in (a.g, *a.graphs))


def _place(tensor: TensorProto, path: Path) -> tuple[str, int, int]:
    """File, offset and length of the external data of a tensor of the model at `path`.

    Raises:
        OSError, ValueError: see `read_external`.
    """
    info, length = ExternalDataInfo(tensor), byte_size(tensor)
    file, offset = (path.parent / info.location).resolve(), info.offset or 0
    if not any(file.is_relative_to(folder) for folder in (path.parent.resolve(), path.resolve().parent)):
        raise ValueError(f"{info.location} is not in the folder of the model")
    if file.exists() and not file.is_file():
        raise ValueError(f"{info.location} is not a file")
    if offset < 0 or file.stat().st_size < offset + length or (info.length or length) != length:
        raise ValueError(f"{info.location} does not hold the {length} bytes of {tensor.name!r}")
    return str(file), offset, length


def _read(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    with open(location, "rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
