"""Model files in and out, and a read view of a graph.

The `ModelProto` is the one source of truth and the only thing that is ever edited, by tensor name and node
position, so nothing that an edit does not touch can be lost: metadata, doc strings, opsets, node attributes
of any type. graphsurgeon parses it into connected nodes for the stages that only read.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from .errors import ModelError, OutputError, one_line

log = logging.getLogger("onnxfuse")
Array = NDArray[Any]
PROTOBUF_LIMIT = 2**31 - 1
"""Bytes above which protobuf cannot serialize a model in one piece."""


MAPPED = 1 << 20
"""External tensors of at least this many bytes are mapped instead of read."""
BESIDE, ALIGNMENT = 1024, 4096
"""Bytes from which on a tensor goes into the data file, and a page, of which its place there is a multiple."""
PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""Bits of an element of the types of which a byte holds several."""
TYPED = "float_data int32_data int64_data double_data uint64_data string_data".split()
VALUES = "raw_data float_data int32_data int64_data double_data uint64_data external_data data_location".split()


class Tensor(Protocol):
    """What is read of a graphsurgeon tensor."""

    name: str


class Node(Protocol):
    """What is read of a graphsurgeon node."""

    op: str
    name: str
    domain: str | None
    attrs: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]


@dataclass(frozen=True)
class Edge:
    """One use of a tensor: input `slot` of the main graph's node number `node`; −1 for any use elsewhere."""

    node: int
    slot: int


# --- files ----------------------------------------------------------------------------------------------------------
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
            raise ModelError(f"{path}: {'is a directory' if path.is_dir() else 'no such file'}; give an .onnx file")
        model = onnx.load(os.fspath(path), format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path}: {_not_onnx(path)}") from error
    if not model.graph.node:
        raise ModelError(f"{path}: {'empty graph: no nodes' if model.ir_version else _not_onnx(path)}")
    names = {ExternalDataInfo(t).location for t in model.graph.initializer if uses_external_data(t)}
    beside = tuple(path.parent / name for name in sorted(names))
    try:
        large = [t for t in model.graph.initializer if uses_external_data(t) and byte_size(t) >= MAPPED]
        places = [_place(t, path.parent) for t in large]
        for tensor in large:
            tensor.data_location = TensorProto.DEFAULT  # so that the next line leaves it where it is
        load_external_data_for_model(model, os.fspath(path.parent))
        for tensor, place in zip(large, places, strict=True):
            _refer(tensor, *place)
        size = sum(file.stat().st_size for file in [path, *beside])
    except (OSError, onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(
            f"{path}: external data is missing or unreadable ({one_line(error)}); put the data file beside the model"
        ) from error
    return Loaded(model, beside, size)


def _place(tensor: TensorProto, folder: Path) -> tuple[str, int, int]:
    """File, offset and length of a tensor's external data.

    Raises:
        ValueError: they lie outside of the model's folder, or the file is too short.
    """
    info, length = ExternalDataInfo(tensor), byte_size(tensor)
    file, offset = (folder / info.location).resolve(), info.offset or 0
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"{info.location} is not in the folder of the model")
    if file.stat().st_size < offset + length or (info.length or length) != length:
        raise ValueError(f"{info.location} does not hold the {length} bytes of {tensor.name!r}")
    return str(file), offset, length


def _refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Say that a tensor's values lie in a file."""
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def byte_size(tensor: TensorProto) -> int:
    """Bytes of a tensor's values, from its shape and type."""
    name = TensorProto.DataType.Name(tensor.data_type)
    bits = PACKED.get(name) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims) * bits + 7) // 8


def values_of(tensor: TensorProto) -> Array:
    """The values of a tensor, read-only or copied; large external ones are mapped from their file, not read."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    info, dtype = ExternalDataInfo(tensor), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    flat = np.memmap(info.location, np.uint8, "r", info.offset or 0, (byte_size(tensor),))
    return np.asarray(flat).view(dtype).reshape(tuple(tensor.dims))


def check_values(model: ModelProto) -> None:
    """Every initializer holds as many values as its shape says.

    Raises:
        ModelError: one does not: its weights were stripped, say.
    """
    for tensor in (
        t for t in model.graph.initializer if t.data_type not in (TensorProto.UNDEFINED, TensorProto.STRING)
    ):
        if tensor.HasField("raw_data") or not any(len(getattr(tensor, field)) for field in TYPED):
            held = byte_size(tensor) if tensor.data_location == TensorProto.EXTERNAL else len(tensor.raw_data)
            if held != byte_size(tensor):
                count = f"{held} of its {byte_size(tensor)} bytes"
                raise ModelError(f"initializer {tensor.name!r} holds {count}; export the model anew, with its weights")


def read_in(model: ModelProto) -> None:
    """Read what is still mapped from a file, in place, so that the model is whole and its file may be replaced."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = values_of(tensor).tobytes()
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def _not_onnx(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:8] == b"ORTM":
        return "is an ORT-format model; convert the .onnx file it was made from"
    return "is not an ONNX model, or is truncated; check it with onnx.checker"


def check_writable(destination: Path) -> None:
    """Refuse what cannot be a file to write.

    Raises:
        OutputError: it is a directory, its directory does not exist, or its name is too long.
    """
    try:
        if destination.is_dir():
            raise OutputError(f"{destination}: is a directory; give a file name")
        if not destination.parent.is_dir():
            raise OutputError(f"{destination}: the directory {destination.parent} does not exist; create it first")
    except OSError as error:
        raise OutputError(f"{destination}: cannot be written: {error.strerror or one_line(error)}") from error


def check_distinct(path: Path, destination: Path, beside: Sequence[Path]) -> None:
    """Refuse to write over the external data of the model at `path`, unless the model itself is replaced, too.

    Raises:
        OutputError: `destination` or its data file is a data file of another model that was read.
    """
    for target in (destination, destination.with_name(destination.name + ".data")):
        if target in [file.resolve() for file in beside] and (target == destination or path.resolve() != destination):
            raise OutputError(f"{target}: holds the weights of {path}; give another output file")


@contextlib.contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """A new directory beside `destination` to build the result in; it is gone afterwards, whatever happens.

    Raises:
        OutputError: the directory of the destination does not exist or is not writable.
    """
    check_writable(destination)
    try:
        directory = tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent)
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
            _refer(new, data.name, offset, file.tell() - offset)
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


# --- nodes and constants --------------------------------------------------------------------------------------------
def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of one attribute of a NodeProto, or `default`."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Replace or add one attribute of a NodeProto."""
    drop_attribute(node, name)
    node.attribute.append(onnx.helper.make_attribute(name, value))


def drop_attribute(node: NodeProto, name: str) -> None:
    """Remove one attribute of a NodeProto, if it is there."""
    for i in reversed(range(len(node.attribute))):
        if node.attribute[i].name == name:
            del node.attribute[i]


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs a control-flow node holds."""
    for a in node.attribute:
        if a.type == onnx.AttributeProto.GRAPH:
            yield a.g
        yield from a.graphs


def branches(graph: GraphProto) -> Iterator[GraphProto]:
    """The branches of every If, those within a branch after the one that holds them. Bodies of loops are none."""
    for node in graph.node:
        if node.op_type == "If":
            for branch in subgraphs(node):
                yield branch
                yield from branches(branch)


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The main graph, and the branches of every If."""
    yield model.graph
    yield from branches(model.graph)


def outer_names(graph: GraphProto) -> Iterator[str]:
    """Names that `graph` may take from the graph around it (all it reads; a superset does no harm)."""
    for node in graph.node:
        yield from node.input
        for inner in subgraphs(node):
            yield from outer_names(inner)
    for value in graph.output:
        yield value.name


def constant_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    """Name → tensor of every constant: initializers and the `value` of Constant nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for a in node.attribute:
                if a.name == "value":
                    found[node.output[0]] = a.t
    return found


def every_constant(model: ModelProto) -> dict[str, TensorProto]:
    """`constant_tensors` of the main graph and of the branches of every If."""
    return {name: tensor for graph in graphs(model) for name, tensor in constant_tensors(graph).items()}


def consumers(graph: GraphProto) -> dict[str, list[Edge]]:
    """Name → every use of that tensor, with one `Edge(-1, 0)` for each use by a subgraph or as a graph output."""
    edges: dict[str, list[Edge]] = defaultdict(list)
    for i, node in enumerate(graph.node):
        for k, name in enumerate(node.input):
            if name:
                edges[name].append(Edge(i, k))
        for inner in subgraphs(node):
            for name in set(outer_names(inner)):
                edges[name].append(Edge(-1, 0))
    for value in graph.output:
        edges[value.name].append(Edge(-1, 0))
    return edges


def add_initializer(model: ModelProto, tensor: TensorProto, name: str) -> TensorProto:
    """Add a copy of `tensor`; up to IR version 3 an initializer must be listed as an input, too."""
    new: TensorProto = model.graph.initializer.add()
    new.CopyFrom(tensor)
    new.name = name
    if model.ir_version < 4:
        model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return new


def free_name(stem: str, taken: Container[str]) -> str:
    """A name like `stem` that is not among `taken`."""
    return next(n for i in itertools.count(1) if (n := f"{stem}_fuse{i}") not in taken)


def set_values(tensor: TensorProto, array: Array) -> None:
    """Replace a tensor's values and dims, keeping its name, type and doc string; integers are rounded to."""
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    whole = dtype.kind in "iu" and array.dtype.kind == "f"
    values = np.asarray(np.rint(array) if whole else array, dtype, order="C")
    new = numpy_helper.from_array(values, tensor.name)
    new.doc_string = tensor.doc_string
    tensor.CopyFrom(new)


class Graph:
    """A read view of a model's main graph and the branches of its If nodes: connected nodes, constants, who uses what.

    Attributes:
        model: the proto behind the view.
        nodes: graphsurgeon's nodes, in the model's (topological) order, those of branches after the main graph's.
        protos: the same nodes in `model`; edits go there.
        main: how many of them are the main graph's.
        constants: name → TensorProto, initializers and Constant nodes alike.
        edges: name → its uses.
        clones: name of a copy → the constant it copies.
        held: constant → bytes of an element in the file, where that is not its own type's.
        runs: whether onnxruntime can run the model as it is now.
    """

    def __init__(self, model: ModelProto, held: Mapping[str, int] | None = None, runs: bool = True) -> None:
        self.model, self.held, self.runs = model, held or {}, runs
        gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR
        self.nodes: list[Node] = list(_with_branches(gs.import_onnx(model)))
        self.protos = [node for graph in graphs(model) for node in graph.node]
        self.main = len(model.graph.node)
        self.constants = every_constant(model)
        self.edges = self._uses()
        self.clones: dict[str, str] = {}
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)

    def _uses(self) -> dict[str, list[Edge]]:
        """Name → its uses. Of what the main graph computes those in a branch count as uses elsewhere."""
        edges: dict[str, list[Edge]] = defaultdict(list)
        for i, node in enumerate(self.protos):
            for k, name in enumerate(node.input):
                if name:
                    known = i < self.main or name in self.constants
                    edges[name].append(Edge(i, k) if known else Edge(-1, 0))
            for inner in subgraphs(node) if node.op_type != "If" else ():
                for name in set(outer_names(inner)):
                    edges[name].append(Edge(-1, 0))
        for value in (value for graph in graphs(self.model) for value in graph.output):
            edges[value.name].append(Edge(-1, 0))
        return edges

    def array(self, name: str) -> Array:
        """The values of a constant, read-only or copied."""
        return values_of(self.constants[name])

    def clone(self, name: str, edges: list[Edge]) -> str:
        """Give `edges` their own copy of the constant `name`; returns the copy's name."""
        new = self._register(name, self.constants[name], edges)
        self.clones[new] = name
        self.edges[name] = [e for e in self.edges[name] if e not in edges]
        for edge in edges:
            self.protos[edge.node].input[edge.slot] = new
            self.nodes[edge.node].inputs[edge.slot] = gs.Variable(new)
        return new

    def add(self, values: Array, stem: str, edge: Edge) -> str:
        """A new initializer for `edge`, named after `stem`; returns its name."""
        return self._register(stem, numpy_helper.from_array(values), [edge])

    def _register(self, stem: str, tensor: TensorProto, edges: list[Edge]) -> str:
        taken = self.constants.keys() | self.edges.keys()
        name = free_name(stem, taken)
        self.constants[name] = add_initializer(self.model, tensor, name)
        self.edges[name] = list(edges)
        return name


def _with_branches(graph: gs.Graph) -> Iterator[Node]:
    """The nodes of a graph, and after them those of the branches of its If nodes, in the order of `graphs`."""
    yield from graph.nodes
    yield from _branch_nodes(graph)


def _branch_nodes(graph: gs.Graph) -> Iterator[Node]:
    for node in graph.nodes:
        if node.op == "If":
            for branch in (value for value in node.attrs.values() if isinstance(value, gs.Graph)):
                yield from _with_branches(branch)


def proto_label(node: NodeProto) -> str:
    """`label` of a node that is still a proto."""
    return node.name or f"{node.op_type} → {next(iter(node.output), '?')}"


def label(node: Node) -> str:
    """How messages name a node: its name, or its operator and first output."""
    return node.name or f"{node.op} → {next((t.name for t in node.outputs if t.name), '?')}"
