"""The networks that `split_data.py` trains, in PyTorch: LeNet-300-100, ResNet-20, a half-width VGG11-BN.

Images are (N, 1, 28, 28). Every width is read from the state that is loaded (`sized_like`), so that a pruned state
dictionary is a network, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


def lenet() -> nn.Module:
    """784-300-100-10."""
    layers = [nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(*layers)


def vgg() -> nn.Module:
    """VGG11-BN with half the channels, one fully connected layer."""
    layers: list[nn.Module] = []
    width = 1
    for item in (32, "M", 64, "M", 128, 128, "M", 256, 256, "M", 256, 256):
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(width, item, 3, padding=1, bias=False), nn.BatchNorm2d(item), nn.ReLU()]
            width = item
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class Block(nn.Module):
    """Two convolutions and a shortcut, a projection where the size changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        projection = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        self.shortcut = projection if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


def resnet() -> nn.Module:
    """ResNet-20 with 16, 32 and 64 channels."""
    blocks, width = [], 16
    for outside in (16, 32, 64):
        for i in range(3):
            blocks.append(Block(width, outside, 2 if i == 0 and outside > 16 else 1))
            width = outside
    stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


NETS: Mapping[str, Callable[[], nn.Module]] = {"lenet": lenet, "resnet20": resnet, "vgg11_half": vgg}


def sized_like(net: nn.Module, state: State) -> nn.Module:
    """The network with this state, each layer as wide as its weights are."""
    for name, layer in net.named_modules():
        weight = state.get(f"{name}.weight")
        if weight is None:
            continue
        sizes: dict[str, Any] = {}
        if isinstance(layer, nn.Conv2d):
            sizes = {"out_channels": weight.shape[0], "in_channels": weight.shape[1] * layer.groups}
        elif isinstance(layer, nn.Linear):
            sizes = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        elif isinstance(layer, nn.BatchNorm2d):
            sizes = {"num_features": weight.shape[0]}
        for key, value in sizes.items():
            setattr(layer, key, value)
        for key in [*dict(layer.named_parameters()), *dict(layer.named_buffers())]:
            value = state[f"{name}.{key}"].clone()
            if isinstance(getattr(layer, key), nn.Parameter):
                setattr(layer, key, nn.Parameter(value))
            else:
                setattr(layer, key, value)
    return net
