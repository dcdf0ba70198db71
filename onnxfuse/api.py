"""The parts of the public API, for `__init__` to import when one of them is asked for."""

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
    "analyze",
    "apply_plan",
    "ensemble",
    "fuse",
]
