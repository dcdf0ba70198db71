"""Other providers than the CPU's, as seen by an onnxruntime that notes what it is asked for and runs on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest

import onnxfuse
from onnxfuse import latency, providers

from .graphs import build, from_text
from .test_wishes import WIDE

CUDA = "CUDAExecutionProvider"
Asked = list[dict[str, str]]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Sessions on CUDA run on the CPU; their provider options, None for those that onnxruntime is left to choose."""
    asked: Asked = []
    real = ort.InferenceSession

    def opened(*args: Any, providers: list[str], provider_options: Any = None, **more: Any) -> Any:
        session = real(*args, providers=["CPUExecutionProvider"], **more)
        if providers[0] == CUDA:
            asked.append((provider_options or [{}])[0])
            session.get_providers = lambda: providers
        return session

    monkeypatch.setattr(ort, "InferenceSession", opened)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(latency, "DEVICES", {CUDA: "cpu"})
    return asked


def test_proofs_are_exact_and_the_clock_runs_as_deployed(cuda: Asked) -> None:
    onnxfuse.fuse(build("residual"), sparsity=0.4, provider="cuda")
    exact = [o for o in cuda if o]
    assert exact
    assert all(o["use_tf32"] == "0" for o in exact)
    trials = len(cuda) - len(exact)
    cuda.clear()
    report = onnxfuse.fuse(build("residual"), sparsity=0.4, provider="cuda", latency=True).report
    assert report.latency is not None
    assert report.latency.provider == CUDA
    assert len([o for o in cuda if not o]) == trials + 2  # the original and the result


def test_widths_suit_matrix_units(cuda: Asked) -> None:
    report = onnxfuse.fuse(from_text(WIDE), sparsity=0.3, provider="cuda").report
    assert all(g.after % 8 == 0 for g in report.groups)
    assert "accelerators' matrix units" in " ".join(report.notes)


def test_a_provider_that_does_not_start_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(providers, "_refuses", lambda provider: "no such library")
    onnx.save(build("residual"), tmp_path / "m.onnx")
    with pytest.raises(
        onnxfuse.UsageError, match=r"pip install 'onnxruntime-gpu\[cuda,cudnn\]', or use --provider cpu"
    ):
        onnxfuse.fuse(tmp_path / "m.onnx", sparsity=0.4, provider="cuda")


def test_what_a_provider_misses_is_said_without_onnxruntimes_source_line(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt = "TensorrtExecutionProvider"
    place = "/onnxruntime_src/onnxruntime/python/state.cc:729 void onnxruntime::Register(Session&, const Options&) "

    def missing(*args: Any, **options: Any) -> Any:
        raise RuntimeError(place + "Please install TensorRT libraries")

    monkeypatch.setattr(ort, "get_available_providers", lambda: [tensorrt, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", missing)
    with pytest.raises(onnxfuse.UsageError) as failed:
        providers.provider_list("tensorrt")
    assert str(failed.value) == (
        "provider 'tensorrt' cannot start here (Please install TensorRT libraries); use --provider cpu"
    )


def test_small_groups_get_half_of_what_matrix_units_take(cuda: Asked) -> None:
    small = from_text(
        WIDE.replace("96,3,3,3", "20,3,3,3").replace("64,96,1,1", "28,20,1,1").replace("[64,50]", "[28,50]")
    )
    kept = {g.name: g.after for g in onnxfuse.fuse(small, sparsity=0.3, provider="cuda").report.groups}
    assert kept["c1"] % 4 == kept["c2"] % 4 == 0
    assert kept["c1"] < 20
