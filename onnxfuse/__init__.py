"""onnxfuse: make a trained ONNX model structurally smaller by merging similar channels.

import onnxfuse
result = onnxfuse.fuse("in.onnx", "out.onnx", sparsity=0.4)
for group in onnxfuse.analyze("in.onnx"):
    print(group)
"""

import gc

_collecting = gc.isenabled()
gc.disable()  # nothing that is imported is garbage, and to look for some takes a tenth of the time
try:
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
finally:
    if _collecting:
        gc.enable()

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
