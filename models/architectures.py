"""The networks that `models.cifar` trains, for 32x32 pictures in ten classes; small enough for a CPU.

Those called ``activation_NAME`` differ in nothing but their activation function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn import functional as F

CLASSES = 10

VGG16: tuple[int | str, ...] = (
    64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool"
)  # fmt: skip
"""Channels of the convolutions of VGG-16 (arXiv 1409.1556, configuration D)."""

ACTIVATIONS: Mapping[str, Callable[[int], nn.Module]] = {
    "relu": lambda _: nn.ReLU(),
    "relu6": lambda _: nn.ReLU6(),
    "leakyrelu": lambda _: nn.LeakyReLU(0.1),
    "prelu": lambda channels: nn.PReLU(channels),
    "silu": lambda _: nn.SiLU(),
    "hardswish": lambda _: nn.Hardswish(),
}
"""Activation functions that are compared, for a number of channels."""


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution and its batch norm."""
    padding = kernel // 2
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs)]


def vgg16(width: float) -> nn.Module:
    """VGG-16 with batch norm; as usual on CIFAR-10, one linear layer takes the place of three."""
    layers: list[nn.Module] = []
    channels = 3
    for entry in VGG16:
        if entry == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            outputs = int(width * int(entry))
            layers += [*convolution(channels, outputs), nn.ReLU()]
            channels = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, CLASSES))


class Block(nn.Module):
    """The basic block of ResNet-18: the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, outputs, 3, stride)
        self.conv2, self.bn2 = convolution(outputs, outputs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Sequential(*convolution(inputs, outputs, 1, stride)) if changes else nn.Identity()

    def forward(self, x: Any) -> Any:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(width: int) -> nn.Module:
    """ResNet-18 (arXiv 1512.03385), four stages of two blocks; for 32x32 pictures its first convolution is
    3x3, and no pooling follows.
    """
    blocks: list[nn.Module] = []
    channels = width
    for stage in range(4):
        outputs = width << stage
        blocks += [Block(channels, outputs, 2 if stage else 1), Block(outputs, outputs, 1)]
        channels = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]
    return nn.Sequential(*convolution(3, width), nn.ReLU(), *blocks, *head)


def plain(activation: str) -> nn.Module:
    """Six 3x3 convolutions in a row, each with batch norm and the activation: pairs as in the paper, and
    no branches.
    """
    layers: list[nn.Module] = []
    channels = 3
    for outputs, stride in ((24, 2), (24, 1), (48, 2), (48, 1), (96, 2), (96, 1)):
        layers += [*convolution(channels, outputs, 3, stride), ACTIVATIONS[activation](outputs)]
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


@dataclass(frozen=True)
class Architecture:
    """How a network is made, and for how many epochs it is trained."""

    make: Callable[[], nn.Module]
    epochs: int


ARCHITECTURES: Mapping[str, Architecture] = {
    "vgg16": Architecture(lambda: vgg16(0.25), 12),
    "resnet18": Architecture(lambda: resnet18(16), 10),
    **{
        f"activation_{name}": Architecture(lambda name=name: plain(name), 6)  # type: ignore[misc]
        for name in ACTIVATIONS
    },
}
