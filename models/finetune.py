"""Train the shared ResNet-20 further on CIFAR-10: in float, and with its rounding (quantization-aware).

    make train-qat          or          python -m models.finetune [NAME ...] [--output build/trained]

Weights come from ``cifar10_resnet20_bn.onnx`` and go back into a copy of it, already rounded, with batch
norm; 8-bit activations become QuantizeLinear and DequantizeLinear in front of every convolution. Rounding is
LSQ (arXiv 1902.08153): the step of every output channel, and of every rounded activation, is learned with
the weights. Which layer has how many bits is what ``onnx_dfmpc.plan`` says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from models import zoo
from models.cifar import SEED, TEST, Crops, top1, train, training_images
from onnx_dfmpc import Recipe, plan

NETWORK = "cifar10_resnet20_bn"
STAGES = (16, 32, 64)
BLOCKS = 3
RATE = 0.01  # a tenth of what a training from scratch has
EPOCHS = 5


@dataclass(frozen=True)
class Rounding:
    """Settings of the recipe that name the bits of every layer, and bits of activations; none: float."""

    bits: Mapping[str, Any] = field(default_factory=dict)
    activation_bits: int | None = None


VARIANTS: Mapping[str, Rounding] = {
    "resnet20_float": Rounding(),
    "resnet20_qat_2_6": Rounding({"low_bits": 2, "high_bits": 6}),
    "resnet20_qat_w4a8": Rounding({"bits": 4}, activation_bits=8),
}


class Rounded(torch.autograd.Function):
    """Round to the nearest, and pass the gradient as if nothing had happened."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient


def lsq(x: Any, step: Any, low: int, high: int) -> Any:
    """Round x to the grid step * (low ... high); the gradient of the step is scaled down as LSQ has it."""
    scale = 1 / (x.numel() / step.numel() * high) ** 0.5
    step = step.abs() * scale + (step.abs() * (1 - scale)).detach()  # the value is |step|
    return Rounded.apply((x / step).clamp(low, high)) * step


class Rounding2d(nn.Module):
    """8-bit activations, per tensor: unsigned behind a ReLU, signed at the input of the network."""

    def __init__(self, bits: int, *, signed: bool) -> None:
        super().__init__()
        self.low, self.high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        self.step = nn.Parameter(torch.zeros(1))

    def forward(self, x: Any) -> Any:
        if not self.step.item():  # the first batch tells how large they are
            self.step.data.fill_(float(x.detach().abs().max()) / self.high)
        return lsq(x.float(), self.step, self.low, self.high)


class RoundedWeight(nn.Module):
    """Weights rounded by output channel, as a parametrization of the layer."""

    def __init__(self, weight: Any, bits: int) -> None:
        super().__init__()
        self.low, self.high = -(1 << bits - 1), (1 << bits - 1) - 1
        self.step = nn.Parameter(2 * weight.detach().abs().flatten(1).mean(1) / self.high**0.5)

    def forward(self, weight: Any) -> Any:
        step = self.step.reshape(-1, *[1] * (weight.ndim - 1))
        return lsq(weight, step, self.low, self.high)


class Block(nn.Module):
    """Two convolutions; where the shape changes, the shortcut takes every other pixel and pads channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, (outputs - inputs) // 2

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """The network of the manifest, under its own names of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STAGES[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STAGES[0])
        channels = STAGES[0]
        for number, outputs in enumerate(STAGES, 1):
            strides = [2 if number > 1 else 1, *[1] * (BLOCKS - 1)]
            blocks = [Block(channels if not i else outputs, outputs, s) for i, s in enumerate(strides)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            channels = outputs
        self.linear = nn.Linear(channels, 10)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.bn1(self.conv1(x)))
        for number in range(1, len(STAGES) + 1):
            x = getattr(self, f"layer{number}")(x)
        return self.linear(x.mean((2, 3)))


def imported(proto: ModelProto) -> ResNet20:
    """The network with the weights of the file."""
    weights = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in proto.graph.initializer}
    network = ResNet20()
    wanted = network.state_dict()
    network.load_state_dict({k: weights.get(k, wanted[k]) for k in wanted})
    missing = [k for k in wanted if k not in weights and not k.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"{NETWORK}: no weights {', '.join(missing)}")
    return network


def prepare(network: ResNet20, path: Path, rounding: Rounding) -> None:
    """Round weights and activations in place."""
    if not rounding.bits:
        return
    modules = dict(network.named_modules())
    for layer in plan(path, Recipe(**rounding.bits)).layers:
        name = _module(layer.name, modules)
        module = modules[name]
        nn.utils.parametrize.register_parametrization(
            module, "weight", RoundedWeight(module.weight, int(layer.bits))
        )
        if rounding.activation_bits and isinstance(module, nn.Conv2d):
            module.reads = Rounding2d(rounding.activation_bits, signed=module is network.conv1)
            module.register_forward_pre_hook(lambda m, inputs: (m.reads(inputs[0]),))


def _module(node: str, modules: Mapping[str, Any]) -> str:
    """The module that a node comes from: ``/layer1/layer1.0/conv1/Conv`` is ``layer1.0.conv1``."""
    parts = [part for part in node.split("/") if part]
    return next(name for name in (parts[-2], ".".join(parts[-3:-1])) if name in modules)


def exported(network: ResNet20, proto: ModelProto) -> ModelProto:
    """A copy of the file with the trained weights, rounded where they are, and activations."""
    made = ModelProto()
    made.CopyFrom(proto)
    values = {name: tensor.numpy(force=True) for name, tensor in network.state_dict().items()}
    modules = dict(network.named_modules())
    for initializer in made.graph.initializer:
        module, _, kind = initializer.name.rpartition(".")
        if module in modules:
            array = values.get(initializer.name)
            if array is None:  # rounded
                array = getattr(modules[module], kind).numpy(force=True)
            initializer.CopyFrom(numpy_helper.from_array(array.astype(np.float32), initializer.name))
    nodes = []
    for node in made.graph.node:
        module = modules.get(node.input[1].rpartition(".")[0]) if node.op_type == "Conv" else None
        if module is not None and hasattr(module, "reads"):
            nodes += _rounded_input(made, node, module.reads)
        nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    onnx.checker.check_model(made, full_check=True)
    return made


def _rounded_input(made: ModelProto, node: onnx.NodeProto, reads: Rounding2d) -> list[onnx.NodeProto]:
    dtype = np.int8 if reads.low else np.uint8
    step = abs(reads.step.item())
    names = [f"{node.name}_{part}" for part in ("step", "zero", "codes", "rounded")]
    made.graph.initializer.append(numpy_helper.from_array(np.array(step, np.float32), names[0]))
    made.graph.initializer.append(numpy_helper.from_array(np.array(0, dtype), names[1]))
    quantize = helper.make_node("QuantizeLinear", [node.input[0], *names[:2]], [names[2]], names[2])
    dequantize = helper.make_node("DequantizeLinear", [names[2], *names[:2]], [names[3]], names[3])
    node.input[0] = names[3]
    return [quantize, dequantize]


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(prog="python -m models.finetune", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(VARIANTS)}; default: all")
    parser.add_argument("--output", type=Path, default=Path("build/trained"), metavar="DIRECTORY")
    options = parser.parse_args()
    unknown = set(options.names) - set(VARIANTS)
    if unknown:
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    options.output.mkdir(parents=True, exist_ok=True)
    names = [n for n in options.names or VARIANTS if not (options.output / f"{n}.onnx").is_file()]
    data = Crops(*training_images()) if names else None
    path = zoo.fetch(NETWORK)
    for name in names:
        assert data is not None
        torch.manual_seed(SEED)
        proto = onnx.load(path)
        network = imported(proto)
        before = {data: round(top1(network.eval(), data), 4) for data in TEST}
        prepare(network, path, VARIANTS[name])
        cost = train(network, data, EPOCHS, options.output / f"{name}.checkpoint", highest=RATE)
        network.to(memory_format=torch.contiguous_format)
        after = {data: round(top1(network, data), 4) for data in TEST}
        facts = {"float_top1": before, "top1": after, **cost, "seed": SEED, "torch": torch.__version__}
        (options.output / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
        onnx.save(exported(network, proto), options.output / f"{name}.onnx")
        print(name, json.dumps(facts))


if __name__ == "__main__":
    main()
