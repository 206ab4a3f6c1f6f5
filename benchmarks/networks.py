"""The networks that benchmarks run on: the shipped one, the public ones of the manifest, and a large one with
random weights.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from rich.console import Console

from models import zoo

MODELS = Path(zoo.__file__).parent
DIGITS = ("digits_resnet_bn", "digits_resnet_folded")
DIGITS_DATA = "digits_test"

LABELLED = (
    "cifar10_resnet20_bn",
    "cifar10_resnet56_bn",
    "cifar10_resnet20_folded",
    "cifar10_resnet56_folded",
    "cifar10_shufflenetv2_x0_5_bn",
    "cifar10_shufflenetv2_x0_5_folded",
    "cifar10_resnet8_keras_bn",
    "imagenet_squeezenet1_1",
    "imagenet_mobilenet_v1_025_128_folded",
    "har_conv1d_bn",
    "har_conv1d_folded",
    "wakeword_bn",
    *DIGITS,
)
"""Networks whose top-1 can be measured."""

SHIPPED = Path(__file__).with_name("trained")
TRAINED = Path(os.environ.get("DFMPC_TRAINED") or MODELS.parent / "build" / "trained")
"""Where `make train-cifar`, `train-words` and `train-qat` put networks of our own."""

CIFAR_LIKE = "cifar10_resnet20_bn"
"""Network of the manifest whose inputs those trained on CIFAR-10 take."""

ACTIVATIONS = tuple(
    f"activation_{name}" for name in ("relu", "relu6", "leakyrelu", "prelu", "silu", "hardswish")
)
FINETUNED = ("resnet20_float", "resnet20_qat_2_6", "resnet20_qat_w4a8")
WORDS, WORDS_DATA = "words", "words_test"
OWN = {
    **dict.fromkeys(("vgg16", "resnet18", *ACTIVATIONS), "train-cifar"),
    **dict.fromkeys(FINETUNED, "train-qat"),
    WORDS: "train-words",
}
"""Networks that are trained on this machine, and the target of the Makefile that does it."""

UNLABELLED = ("ultraface_rfb_320_bn", "fastestdet_folded", "fer_xception_bn", "yunet_s_dynamic")
"""Networks with real inputs, but no labels."""

FACES, FACE_CROPS = "face_photos_320x240", "face_crops_160x160"
CROPS, SIDE = ((0, 40), (30, 80), (60, 120)), 160
"""Upper left corners and side of the squares that are cut from every photograph, for a network that reads
faces.
"""

STAND_INS = {"fastestdet_folded": (FACES,), "fer_xception_bn": (FACE_CROPS,)}
"""Inputs of networks for which the manifest names none."""

MOST_SAMPLES, FEWEST_SAMPLES, POSITIONS = 192, 24, 1 << 21
"""Bounds on the real inputs that a comparison without labels takes, and about how many pixels they have."""

RESNET50 = "resnet50_shape"
RESNET50_BLOCKS = ((3, 64), (4, 128), (6, 256), (3, 512))


@dataclass(frozen=True)
class Network:
    """A float network on this machine, the names of the data that fit it, and of its real calibration inputs."""

    name: str
    path: Path
    data: tuple[str, ...]
    calibration: str | None = None
    like: str = ""  # network of the manifest that takes the same inputs; "": itself

    def inputs(self, data: str) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Inputs, ready to run, and class indices, where there are any."""
        if data == DIGITS_DATA:
            with np.load(MODELS / f"{data}.npz") as arrays:
                return arrays["input"], arrays["labels"].astype(np.int64)
        if data == WORDS_DATA:
            with np.load(self.path.with_name(f"{data}.npz")) as arrays:
                return arrays["input"], arrays["labels"]
        if data == FACE_CROPS:
            photographs, _ = zoo.dataset(FACES)
            cut = [image[y : y + SIDE, x : x + SIDE] for image in photographs for y, x in CROPS]
            return zoo.preprocess(np.stack(cut), zoo.entry(self.name)), None
        return zoo.samples(zoo.entry(self.like or self.name), data)

    def some_inputs(self) -> NDArray[Any]:
        """A few dozen real inputs, or more where they are small: enough to tell an SQNR."""
        arrays, _ = self.inputs(self.data[0])
        positions = max(1, int(np.prod(arrays.shape[2:])))
        return arrays[: int(np.clip(POSITIONS // positions, FEWEST_SAMPLES, MOST_SAMPLES))]


def network(name: str) -> Network:
    """Look a network up by name.

    Raises
    ------
    models.zoo.ZooError
        There is none of that name, or its file cannot be had.
    """
    if name in DIGITS:
        return Network(name, MODELS / f"{name}.onnx", (DIGITS_DATA,))
    if name == RESNET50:
        return Network(name, resnet50_shape(), ())
    if name in OWN:
        return _own(name)
    entry = zoo.entry(name)
    calibration = "cifar10_calibration" if name.startswith("cifar10_") else None
    return Network(name, zoo.fetch(entry), entry.data or STAND_INS.get(name, ()), calibration)


def _own(name: str) -> Network:
    path = next((p for p in (TRAINED / f"{name}.onnx", SHIPPED / f"{name}.onnx") if p.is_file()), None)
    if path is None:
        raise zoo.ZooError(f"{name}: not trained on this machine", hint=f"make {OWN[name]}")
    if name == WORDS:
        return Network(name, path, (WORDS_DATA,))
    data = zoo.entry(CIFAR_LIKE).data[::-1]  # the larger first
    return Network(name, path, data, "cifar10_calibration", CIFAR_LIKE)


def resnet50_shape() -> Path:
    """A network of the shape of ResNet-50, 25.5 M random weights with batch norm: it has a cost, but no
    accuracy. Made once per machine.
    """
    path = Path(tempfile.gettempdir()) / "onnx_dfmpc_benchmarks" / f"{RESNET50}.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        onnx.save(resnet50(np.random.default_rng(0)), partial)
        partial.replace(path)
    return path


def available(names: Iterable[str], console: Console) -> Iterator[Network]:
    """Networks by name; those that are not on this machine are left out, and said to be."""
    for name in names:
        try:
            found = network(name)
        except zoo.ZooError as error:
            console.print(f"{name}: left out: {error}")
        else:
            yield found


class _Builder:
    """Nodes and initializers of a network, one layer after the other."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def constant(self, name: str, values: NDArray[np.floating]) -> str:
        self.initializers.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(
        self,
        x: str,
        name: str,
        shape: tuple[int, int, int],
        *,
        stride: int = 1,
        gamma: float = 1.0,
        relu: bool = True,
    ) -> str:
        """Convolution and batch norm whose outputs have about mean beta and deviation gamma, and ReLU."""
        o, i, k = shape
        weight = self.constant(
            f"{name}.weight", self.rng.standard_normal((o, i, k, k)) * np.sqrt(2 / (i * k * k))
        )
        y = self.node(
            "Conv", name, [x, weight], kernel_shape=[k, k], strides=[stride, stride], pads=[k // 2] * 4
        )
        parameters = {
            "gamma": gamma * self.rng.uniform(0.5, 1.5, o),
            "beta": 0.2 * self.rng.standard_normal(o),
            "mean": 0.1 * self.rng.standard_normal(o),
            "var": self.rng.uniform(0.7, 1.3, o),
        }
        norm = [self.constant(f"{name}.{key}", values) for key, values in parameters.items()]
        y = self.node("BatchNormalization", f"{name}_norm", [y, *norm])
        return self.node("Relu", f"{name}_relu", [y]) if relu else y


def resnet50(rng: np.random.Generator) -> ModelProto:
    """Bottleneck blocks, batch norm kept, random weights of such size that signals neither grow nor fade."""
    b = _Builder(rng)
    x = b.conv("input", "stem", (64, 3, 7), stride=2)
    x = b.node("MaxPool", "pool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    width = 64
    for stage, (blocks, channels) in enumerate(RESNET50_BLOCKS):
        for block in range(blocks):
            name, stride = f"s{stage}b{block}", 2 if stage and not block else 1
            y = b.conv(x, f"{name}c1", (channels, width, 1))
            y = b.conv(y, f"{name}c2", (channels, channels, 3), stride=stride)
            y = b.conv(y, f"{name}c3", (4 * channels, channels, 1), gamma=0.3, relu=False)
            if not block:
                x = b.conv(x, f"{name}shortcut", (4 * channels, width, 1), stride=stride, relu=False)
            x = b.node("Relu", f"{name}_relu", [b.node("Add", f"{name}_add", [x, y])])
            width = 4 * channels
    x = b.node("Flatten", "flatten", [b.node("GlobalAveragePool", "mean", [x])])
    weight = b.constant("fc.weight", rng.standard_normal((1000, width)) / np.sqrt(width))
    b.nodes.append(
        helper.make_node(
            "Gemm", [x, weight, b.constant("fc.bias", np.zeros(1000))], ["scores"], name="fc", transB=1
        )
    )
    graph = helper.make_graph(
        b.nodes,
        RESNET50,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 1000])],
        b.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
