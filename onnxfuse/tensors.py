"""The values of a TensorProto: read, mapped from the file that holds them, or replaced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from .errors import ModelError

Array = NDArray[Any]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
"""Element types of real numbers."""
PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""Bits of an element of the types of which a byte holds several."""
TYPED = "float_data int32_data int64_data double_data uint64_data string_data".split()


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


def set_values(tensor: TensorProto, array: Array) -> None:
    """Replace a tensor's values and dims, keeping its name, type and doc string; integers are rounded to."""
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    whole = dtype.kind in "iu" and array.dtype.kind == "f"
    values = np.asarray(np.rint(array) if whole else array, dtype, order="C")
    new = numpy_helper.from_array(values, tensor.name)
    new.doc_string = tensor.doc_string
    tensor.CopyFrom(new)


def check_values(constants: Mapping[str, TensorProto]) -> None:
    """Every constant, by name, holds as many values as its shape says.

    Raises:
        ModelError: one does not: its weights were stripped, say.
    """
    for name, tensor in constants.items():
        if tensor.data_type not in (TensorProto.UNDEFINED, TensorProto.STRING):
            held, needed, unit = _held(tensor)
            if held != needed:
                count = f"{held} of its {needed} {unit}"
                raise ModelError(f"initializer {name!r} holds {count}; export the model anew, with its weights")


def _held(tensor: TensorProto) -> tuple[int, int, str]:
    """How much of its values a tensor has, how much it should have, and in what this is counted."""
    numbers = sum(len(getattr(tensor, field)) for field in TYPED)
    if numbers and not tensor.HasField("raw_data"):
        parts = 2 if "COMPLEX" in TensorProto.DataType.Name(tensor.data_type) else 1
        packed = TensorProto.DataType.Name(tensor.data_type) in PACKED
        return numbers, byte_size(tensor) if packed else parts * math.prod(tensor.dims), "numbers"
    needed = byte_size(tensor)
    return needed if tensor.data_location == TensorProto.EXTERNAL else len(tensor.raw_data), needed, "bytes"


def read_in(model: ModelProto) -> None:
    """Read what is still mapped from a file, in place, so that the model is whole and its file may be replaced."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = values_of(tensor).tobytes()
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Say that a tensor's values lie in a file."""
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
