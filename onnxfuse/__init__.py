"""onnxfuse: make a trained ONNX model structurally smaller by merging similar channels.

import onnxfuse
result = onnxfuse.fuse("in.onnx", "out.onnx", sparsity=0.4)
for group in onnxfuse.analyze("in.onnx"):
    print(group)
"""

from .heap import uncollected

with uncollected():
    from .applying import apply_plan
    from .channels import ChannelGroup, Locked, Slot
    from .ensembling import ensemble
    from .errors import ModelError, NothingToMerge, OnnxFuseError, OutputError, UsageError, VerificationFailed
    from .importance import GroupView
    from .inspection import Analysis
    from .pipeline import FuseResult, analyze, fuse
    from .plan import Plan
    from .report import Report
    from .version import __version__

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
