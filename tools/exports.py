"""Export architectures of timm and of transformers with random weights, for `coverage.py` to try.

python tools/exports.py FOLDER [--only REGEX] [--seconds 150]
python tools/coverage.py FOLDER --method drop --option round-to=1

It needs PyTorch: pip install torch torchvision timm transformers onnxscript. One network of each of timm's modules is
exported, a small one, by the TorchScript exporter; transformers' in sizes of two layers, by both exporters. What is
there already is not exported again; what an exporter refuses is told and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common import ToolError, entry

SMALL = "test_ atto femto pico nano xxxs xxs micro _xs tiny _t0 _t_ mini _s_ small lite _s _b0 10 18 26 14 50".split()
"""What small networks have in their names, the smallest first."""
MOST = 45_000_000
"""Parameters of a network that is taken if a module has a smaller one."""
TRIED, LARGEST = 6, 95_000_000
"""Networks of a module that are tried, and parameters that the last of them may have."""
NEEDED = "torch torchvision timm transformers onnxscript"
Sizes = Mapping[str, Any]
ENCODER: Sizes = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 500,
}  # fmt: skip
DECODER: Sizes = {**ENCODER, "num_key_value_heads": 2, "head_dim": 16}
IMAGE: Sizes = {**ENCODER, "image_size": 64, "patch_size": 16}
OLDER: Sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500}
SPEECH: Sizes = {**ENCODER, "conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
STAGES: Sizes = {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}
WINDOWS: Sizes = {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4],
                  "window_size": 4}  # fmt: skip
TOKENS, PIXELS, PHOTO, SOUND = (1, 16), (1, 3, 64, 64), (1, 3, 224, 224), (1, 4000)
KINDS: tuple[tuple[str, Sizes, tuple[int, ...]], ...] = (
    (
        """bert roberta xlm-roberta electra camembert mpnet roformer layoutlm ernie nystromformer mobilebert convbert
        deberta deberta-v2 albert data2vec-text megatron-bert rembert ibert splinter bert-generation big_bird mra yoso
        gpt_neox""",
        ENCODER,
        TOKENS,
    ),
    (
        """llama mistral qwen2 qwen3 gemma gemma2 phi olmo olmo2 cohere stablelm starcoder2 granite persimmon nemotron
        exaone4""",
        DECODER,
        TOKENS,
    ),
    ("gpt2 gptj codegen", {**OLDER, "rotary_dim": 8}, TOKENS),
    ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500}, TOKENS),
    ("opt", {**ENCODER, "ffn_dim": 128, "word_embed_proj_dim": 64}, TOKENS),
    ("mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 500}, TOKENS),
    ("xlnet", {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "vocab_size": 500}, TOKENS),
    ("distilbert", {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 500}, TOKENS),
    ("mamba", {**ENCODER, "state_size": 8}, TOKENS),
    (
        """vit deit beit dinov2 vit_msn data2vec-vision dinov2_with_registers dinov3_vit ijepa
        siglip_vision_model clip_vision_model""",
        IMAGE,
        PIXELS,
    ),
    ("swin swinv2", WINDOWS, PIXELS),
    ("convnext convnextv2", STAGES, PIXELS),
    ("resnet regnet", {**STAGES, "embedding_size": 16, "groups_width": 16}, PIXELS),
    (
        """mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 efficientnet levit poolformer pvt pvt_v2 segformer bit cvt
        glpn focalnet swiftformer hiera textnet hgnet_v2""",
        {},
        PHOTO,
    ),
    ("wav2vec2 hubert wavlm unispeech-sat", SPEECH, SOUND),
    ("sew", {**SPEECH, "conv_dim": [32] * 13}, SOUND),
    ("audio-spectrogram-transformer", {**ENCODER, "max_length": 128, "num_mel_bins": 64}, (1, 128, 64)),
)
"""Names of transformers, their sizes, and the shape of their input."""


def imported(name: str) -> Any:
    """A package that only this tool needs."""
    try:
        return __import__(name)
    except ModuleNotFoundError as missing:
        raise ToolError(
            f"{missing.name} is not installed; pip install torch torchvision timm transformers"
        ) from missing


def randomize(torch: Any, network: Any) -> None:
    """Numbers as trained networks have them where untrained ones have zeros and ones, which hide what goes wrong."""
    drawn = torch.Generator().manual_seed(0)

    def normal(of: Any, size: float) -> Any:
        return torch.randn(of.shape, generator=drawn) * size

    with torch.no_grad():
        for name, value in network.named_buffers():
            if "running_var" in name:
                value.copy_(torch.rand(value.shape, generator=drawn) + 0.5)
            elif "running_mean" in name:
                value.copy_(normal(value, 0.1))
        for name, value in network.named_parameters():
            if value.ndim <= 1:
                factor = torch.rand(value.shape, generator=drawn) * 0.6 + 0.7
                value.copy_(normal(value, 0.1) if name.endswith("bias") else factor)
            elif not value.any():
                value.copy_(normal(value, 0.05))


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- timm -----------------------------------------------------------------------------------------------------------
def of_timm(timm: Any, module: str) -> tuple[str, Any] | None:
    """A small network of one of timm's modules, and its name; None if there is none."""
    names = sorted(timm.list_models(module=module), key=_size_told)[:TRIED]
    for name in names:
        network = timm.create_model(name, pretrained=False)
        count = sum(p.numel() for p in network.parameters())
        if count <= (LARGEST if name == names[-1] else MOST):
            return name, network.eval()
    return None


def _size_told(name: str) -> int:
    return next((i for i, part in enumerate(SMALL) if part in name), len(SMALL))


def export_timm(torch: Any, timm: Any, module: str, folder: Path) -> None:
    """Write one network of a module, unless there is a file of that module."""
    if list(folder.glob(f"{module}.*.onnx")) or (found := of_timm(timm, module)) is None:
        return
    name, network = found
    randomize(torch, network)
    image = torch.randn(1, *network.default_cfg.get("input_size", PHOTO[1:]))
    write(torch, network, image, folder / f"{module}.{name}.onnx", dynamo=False)


# --- transformers ---------------------------------------------------------------------------------------------------
def export_transformers(torch: Any, transformers: Any, kind: int, name: str, dynamo: bool, folder: Path) -> None:
    """Write one network of transformers, unless it is there."""
    path = folder / f"{name}.{'dynamo' if dynamo else 'ts'}.onnx"
    if path.exists():
        return
    _, sizes, shape = KINDS[kind]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **sizes)
    network = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for value in (p for p in network.parameters() if p.ndim <= 1):
            value.add_(torch.randn(value.shape) * 0.1)

    class First(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Any) -> Any:
            """The first output; the others are caches and copies."""
            return self.inner(x)[0]

    given = torch.randint(0, 499, shape) if shape == TOKENS else torch.randn(shape)
    write(torch, First().eval(), given, path, dynamo)


def write(torch: Any, network: Any, given: Any, path: Path, dynamo: bool) -> None:
    """Export, and only then give the file its name."""
    how: dict[str, Any] = {"opset_version": 18, "external_data": False} if dynamo else {"opset_version": 17}
    part = path.with_suffix(".part")
    torch.onnx.export(network, (given,), part, dynamo=dynamo, input_names=["x"], output_names=["y"], **how)
    part.rename(path)


def tasks(torch: Any, timm: Any, transformers: Any, folder: Path) -> dict[str, Callable[[], None]]:
    """What is to be exported, by label."""
    found: dict[str, Callable[[], None]] = {
        f"timm {module}": partial(export_timm, torch, timm, module, folder) for module in timm.list_modules()
    }
    for kind, (names, _, _) in enumerate(KINDS):
        for name in names.split():
            for exporter in ("TorchScript", "dynamo"):
                how = (torch, transformers, kind, name, exporter == "dynamo", folder)
                found[f"transformers {name} {exporter}"] = partial(export_transformers, *how)
    return found


def main() -> None:
    """Read the arguments, export one network after the other, say what was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--only", default="", metavar="REGEX", help="names that match")
    parser.add_argument("--seconds", type=int, default=150, help="a network may take (default: 150)")
    args = parser.parse_args()
    torch, timm, transformers = map(imported, ("torch", "timm", "transformers"))
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    args.folder.mkdir(parents=True, exist_ok=True)
    for label, task in tasks(torch, timm, transformers, args.folder).items():
        if re.search(args.only, label):
            _tried(label, task, args.seconds)


def _tried(label: str, task: Callable[[], None], seconds: int) -> None:
    try:
        with contextlib.redirect_stdout(None), within(seconds):
            task()
    except Exception as error:  # exporters raise whatever they like
        print(f"{label}: not exported: {type(error).__name__}: {' '.join(str(error).split())[:120]}", flush=True)
    else:
        print(f"{label}: exported", flush=True)


if __name__ == "__main__":
    entry(main)
