"""onnxfuse: make a trained ONNX model structurally smaller by merging similar channels.

import onnxfuse
result = onnxfuse.fuse("in.onnx", "out.onnx", sparsity=0.4)
for group in onnxfuse.analyze("in.onnx"):
    print(group)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .api import (
        Analysis,
        ChannelGroup,
        FuseResult,
        GroupView,
        Locked,
        ModelError,
        NothingToMerge,
        OnnxFuseError,
        OutputError,
        Plan,
        Report,
        Slot,
        UsageError,
        VerificationFailed,
        analyze,
        apply_plan,
        ensemble,
        fuse,
    )

__all__ = [
    "Analysis",
    "ChannelGroup",
    "FuseResult",
    "GroupView",
    "Locked",
    "ModelError",
    "NothingToMerge",
    "OnnxFuseError",
    "OutputError",
    "Plan",
    "Report",
    "Slot",
    "UsageError",
    "VerificationFailed",
    "__version__",
    "analyze",
    "apply_plan",
    "ensemble",
    "fuse",
]


def __getattr__(name: str) -> Any:
    """A part, which is imported now (PEP 562): the command line has to be there before, to tell of an interrupt."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".api", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
