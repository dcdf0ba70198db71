"""The input of a run, a file or a model in memory."""

from __future__ import annotations

import os
from pathlib import Path

from onnx import ModelProto
from onnx.external_data_helper import uses_external_data

from . import files
from .errors import ModelError
from .prepare import inline
from .protos import every_constant
from .tensors import check_values

PathLike = str | os.PathLike[str]


class ModelSource:
    """The input, which can be loaded again when a late check needs the original."""

    def __init__(self, model: PathLike | ModelProto) -> None:
        self.given = model
        self.name = None if isinstance(model, ModelProto) else str(model)
        self.beside: tuple[Path, ...] = ()
        self.bytes = 0

    @property
    def files(self) -> list[Path]:
        """The model's file, if it is in one."""
        return [] if self.name is None else [Path(self.name)]

    def load(self) -> ModelProto:
        """A copy of the model that may be changed, its functions inlined."""
        model = inline(self.as_it_is())
        check_values(every_constant(model))
        return model

    def as_it_is(self) -> ModelProto:
        """A copy of the model that may be changed."""
        if isinstance(self.given, ModelProto):
            if any(uses_external_data(t) for t in self.given.graph.initializer):
                raise ModelError(
                    "the model's external data is not loaded; load it with onnx.load(path), or give the path"
                )
            copy = ModelProto()
            copy.CopyFrom(self.given)
            self.bytes = copy.ByteSize()
            return copy
        loaded = files.load(Path(self.given))
        self.beside, self.bytes = loaded.beside, loaded.file_bytes
        return loaded.model
