"""Inputs distilled from batch norm (torch): noise, changed until the network sees in it what it saw in training.

After ZeroQ (Cai et al., arXiv 2001.00281): inputs are parameters, and Adam makes the mean and the deviation of
what enters every batch norm those that it has stored. As in DGH (Dikstein et al., arXiv 2410.22110) all inputs
are one batch, since the stored statistics are those of many images, not of each. Differences are in units of the
stored deviation, so that layers, and networks that take pixels from 0 to 255, count alike; ZeroQ has them as they
are.

torch has no reader of ONNX files. `OPERATORS` are those that the networks of benchmarks/sources.py need, after
ONNX Runtime has folded their shape arithmetic.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch.nn import functional as F

from onnx_dfmpc.errors import UnsupportedError

STEPS = 100
"""Of Adam. ZeroQ takes up to 500; after 100 the mismatch of ResNet-20 is 0.013, and that of real images 0.024."""

RATE = 0.1
"""Of Adam, in deviations of the noise; falls to 0 as a cosine."""

Tensor = Any
Attributes = Mapping[str, Any]


def _convolution(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    spatial = weight.ndim - 2
    pads = attributes.get("pads", [0] * 2 * spatial)
    function = (F.conv1d, F.conv2d)[spatial - 1]
    return function(
        F.pad(x, _torch_pads(pads)),
        weight,
        bias,
        attributes.get("strides", [1] * spatial),
        0,
        attributes.get("dilations", [1] * spatial),
        attributes.get("group", 1),
    )


def _torch_pads(pads: list[int]) -> list[int]:
    """All begins, then all ends, as ONNX has them; torch wants pairs, the last axis first."""
    axes = len(pads) // 2
    return [pads[axis + side] for axis in reversed(range(axes)) for side in (0, axes)]


def _pool(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda attributes, x: function(
        x, attributes["kernel_shape"], attributes["strides"], attributes.get("pads", [0, 0])[0]
    )


def _slice(_: Attributes, x: Tensor, *bounds: Tensor) -> Tensor:
    starts, ends = (bound.tolist() for bound in bounds[:2])
    axes = bounds[2].tolist() if len(bounds) > 2 else list(range(len(starts)))
    steps = bounds[3].tolist() if len(bounds) > 3 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = x.index_select(axis, torch.arange(x.shape[axis])[start:end:step])
    return x


def _mean(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = attributes["axes"] if axes is None else axes.tolist()
    return x.mean(over, keepdim=bool(attributes.get("keepdims", 1)))


OPERATORS: Mapping[str, Callable[..., Tensor]] = {
    "Add": lambda _, x, y: x + y,
    "AveragePool": _pool(F.avg_pool2d),
    "Concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "Conv": _convolution,
    "Flatten": lambda attributes, x: x.flatten(attributes.get("axis", 1)),
    "Gemm": lambda attributes, x, weight, bias: F.linear(
        x, weight if attributes.get("transB") else weight.T, bias
    ),
    "GlobalAveragePool": lambda _, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "MaxPool": _pool(F.max_pool2d),
    "Pad": lambda _, x, pads, *value: F.pad(x, _torch_pads(pads.tolist())),
    "ReduceMean": _mean,
    "Relu": lambda _, x: F.relu(x),
    "Reshape": lambda _, x, shape: x.reshape(shape.tolist()),
    "Slice": _slice,
    "Transpose": lambda attributes, x: x.permute(attributes["perm"]),
}


@dataclass(frozen=True, eq=False)
class Program:
    """A network for one batch size: its nodes, and its constants in torch."""

    nodes: tuple[NodeProto, ...]
    constants: Mapping[str, Tensor]
    input_name: str

    def mismatch(self, x: Tensor) -> Tensor:
        """How far the inputs of every batch norm are from what it has stored: the mean over batch norms, and over
        their channels, of the squared differences of mean and deviation, in units of the stored deviation.
        """
        values, losses = {**self.constants, self.input_name: x}, []
        last = max(place for place, node in enumerate(self.nodes) if node.op_type == "BatchNormalization")
        for node in self.nodes[: last + 1]:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            inputs = [values[name] if name else None for name in node.input]
            if node.op_type == "BatchNormalization":
                x, gamma, beta, mean, variance = inputs
                losses.append(_distance(x, mean, variance))
                found = F.batch_norm(x, mean, variance, gamma, beta, eps=attributes.get("epsilon", 1e-5))
            else:
                found = OPERATORS[node.op_type](attributes, *inputs)
            values[node.output[0]] = found
        return torch.stack(losses).mean()


def _distance(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    axes, floor = (0, *range(2, x.ndim)), 1e-5  # a channel that is always 0 has nothing to match
    deviation = (variance + floor).sqrt()
    means, deviations = x.mean(axes), (x.var(axes, correction=0) + floor).sqrt()
    return (((means - mean) / deviation) ** 2 + (deviations / deviation - 1) ** 2).mean()


def program(proto: ModelProto, samples: int) -> Program:
    """Read a network for that many inputs at once; ONNX Runtime folds what depends on shapes alone."""
    graph = _folded(proto, samples).graph
    unknown = {node.op_type for node in graph.node} - {*OPERATORS, "BatchNormalization", "Constant"}
    if unknown:
        raise UnsupportedError(f"no torch for {', '.join(sorted(unknown))}")
    kept = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    kept |= {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"
    }
    constants = {name: torch.from_numpy(np.array(value)) for name, value in kept.items()}
    nodes = tuple(node for node in graph.node if node.op_type != "Constant")
    return Program(nodes, constants, graph.input[0].name)


def _folded(proto: ModelProto, samples: int) -> ModelProto:
    fixed = ModelProto()
    fixed.CopyFrom(proto)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = samples
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        fused = ["ConvBNFusion", "ConvAddFusion", "ConvMulFusion"]
        ort.InferenceSession(
            fixed.SerializeToString(), options, ["CPUExecutionProvider"], disabled_optimizers=fused
        )
        return onnx.load(path)


@dataclass(frozen=True, eq=False)
class Distilled:
    """Inputs, the mismatch before and after, and what they cost."""

    inputs: NDArray[np.float32]
    before: float
    after: float
    cpu_seconds: float


def distil(proto: ModelProto, start: NDArray[Any], steps: int = STEPS, rate: float = RATE) -> Distilled:
    """Change inputs until the batch norms of a network see in them what they have stored."""
    torch.set_num_threads(1)
    began = time.process_time()
    network = program(proto, len(start))
    scale, shift = float(start.std()), float(start.mean())
    x = torch.tensor((start - shift) / scale, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([x], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = network.mismatch(x * scale + shift)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    inputs = (x * scale + shift).detach()
    seconds = time.process_time() - began
    return Distilled(inputs.numpy(), mismatch(proto, start), mismatch(proto, inputs.numpy()), seconds)


def mismatch(proto: ModelProto, inputs: NDArray[Any]) -> float:
    """`Program.mismatch` of any inputs."""
    with torch.no_grad():
        return float(program(proto, len(inputs)).mismatch(torch.from_numpy(inputs.astype(np.float32))))
