"""The execution providers of onnxruntime: their names, and whether they start on this machine."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout

import onnxruntime as ort
from onnx import TensorProto, helper

from .errors import UsageError, one_line
from .sessions import session_options

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}

WHEELS: Mapping[str, str] = {
    "CUDAExecutionProvider": "pip install 'onnxruntime-gpu[cuda,cudnn]', or ",
    "TensorrtExecutionProvider": "",
}
"""Provider whose libraries may come as wheels → how to get all of them; TensorRT says itself what it misses."""


def provider_list(name: str) -> list[str]:
    """onnxruntime's provider list for a short or full provider name, CPU last.

    Raises:
        UsageError: this onnxruntime has no such provider, or the provider cannot start on this machine.
    """
    full = PROVIDERS.get(name.lower(), name)
    available = ort.get_available_providers()
    if full not in available:
        short = [k for k, v in PROVIDERS.items() if v in available]
        raise UsageError(f"provider {name!r} is not in this onnxruntime; choose from {', '.join(short)}")
    if full == PROVIDERS["cpu"]:
        return [full]
    if (reason := _refuses(full)) is not None:
        remedy = WHEELS.get(full, "")
        raise UsageError(f"provider {name!r} cannot start here ({reason}); {remedy}use --provider cpu")
    return [full, PROVIDERS["cpu"]]


def _refuses(provider: str) -> str | None:
    """Why a session does not get the provider, if it does not: onnxruntime falls back to the CPU, and only logs it."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "trial", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    ort.set_default_logger_severity(4)
    if provider in WHEELS and hasattr(ort, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it tells there what it misses; the trial tells whether that matters
            ort.preload_dlls()
    try:
        options = session_options(optimized=True)
        trial = ort.InferenceSession(model.SerializeToString(), options, providers=[provider], enable_fallback=0)
    except Exception as error:  # onnxruntime has no base class for what it raises
        return one_line(error, 160)
    finally:
        ort.set_default_logger_severity(2)  # onnxruntime's own default
    return None if trial.get_providers()[0] == provider else "its libraries or device are missing"
