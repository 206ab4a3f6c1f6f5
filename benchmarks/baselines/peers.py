"""Other tools that write weight-only ONNX files, through one interface; each is optional, and what it cannot
do it says.

    onnxruntime       quantize_static on noise, INT4 and INT8 weights per channel; its activation quantizers are taken out again
    quantization-rs   INT4 and INT8 weights per channel, asymmetric
    onnxsim           4-bit weights in blocks, every layer or none
    aimet-onnx        cross-layer equalization, INT4 and INT8 weights per channel; its activation quantizers are switched off

A peer gets the bits per layer of the package's own plan, so that first and last layers are treated alike.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from benchmarks.baselines import Unavailable
from onnx_dfmpc import Recipe, plan
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import synthetic
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import load
from onnx_dfmpc.model.opset import raise_opset

NOISE_SAMPLES = 8

Peer = Callable[[Path, Recipe], ModelProto]


def onnxruntime(path: Path, recipe: Recipe) -> ModelProto:
    """ONNX Runtime's static quantization after its own preprocessing."""
    quantization = _require("onnxruntime.quantization", "onnxruntime")
    preprocess = _require("onnxruntime.quantization.shape_inference", "onnxruntime").quant_pre_process
    types: dict[float, Any] = {4: quantization.QuantType.QInt4, 8: quantization.QuantType.QInt8}
    with _files() as (folded, output):
        preprocess(str(path), str(folded), skip_symbolic_shape=True)
        bits = _bits_by_weight(onnx.load(folded), recipe)
        common = min(bits.values())
        # A weight's override says type and axis; without the axis it would be one grid per tensor.
        axes = {layer.weight: layer.axis for layer in match(load(folded).proto).layers}
        overrides = {
            name: [{"quant_type": types[b], "axis": axes[name], "symmetric": True}]
            for name, b in bits.items()
            if b != common
        }
        quantization.quantize_static(
            folded,
            output,
            _Noise(onnx.load(folded)),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=types[common],
            # It takes out the Relu in front of a quantizer, which would go missing once the quantizer is
            # taken out too.
            extra_options={"TensorQuantOverrides": overrides, "QDQKeepRemovableActivations": True},
        )
        return _without_activation_quantizers(onnx.load(output))


def quantization_rs(path: Path, recipe: Recipe) -> ModelProto:
    """Asymmetric, per channel, native INT4."""
    tool = _require("quantize_rs", "quantization-rs")
    bits = _bits_by_weight(onnx.load(path), recipe)
    with _files() as (_, output):
        options = {"per_channel": True, "layer_bits": bits, "native_int4": True, "symmetric": False}
        tool.quantize(str(path), str(output), bits=min(bits.values()), **options)
        return onnx.load(output)


def onnxsim(path: Path, recipe: Recipe) -> ModelProto:
    """Blocks of 4-bit weights; which layers, it decides itself."""
    tool = _require("onnxsim", "onnxsim")
    if recipe.bits != 4:
        raise Unavailable("4 bits everywhere, or nothing")
    folded, _ = tool.simplify(raise_opset(onnx.load(path), 21))
    return tool.quantize_weight_only_int4(folded)  # type: ignore[no-any-return]


def aimet_onnx(path: Path, recipe: Recipe) -> ModelProto:
    """Cross-layer equalization, then rounding to the nearest level."""
    tool = _require("aimet_onnx", "aimet-onnx")
    equalize = _require("aimet_onnx.cross_layer_equalization", "aimet-onnx").equalize_model
    model = onnx.load(path)
    bits = _bits_by_weight(model, recipe)
    feeds = next(iter(_Noise(model)))
    equalize(model)
    sim = tool.QuantizationSimModel(
        model, param_type=f"int{min(bits.values())}", dummy_input=feeds, providers=["CPUExecutionProvider"]
    )
    for name, quantizer in sim.qc_quantize_op_dict.items():
        if name in sim.activation_names:
            quantizer.enabled = False
        elif name in bits:
            quantizer.set_bitwidth(bits[name])
    sim.compute_encodings([feeds])
    return sim.to_onnx_qdq(prequantize_constants=True)  # type: ignore[no-any-return]


PEERS: Mapping[str, Peer] = {
    "onnxruntime": onnxruntime,
    "quantization-rs": quantization_rs,
    "onnxsim": onnxsim,
    "aimet-onnx": aimet_onnx,
}


def _require(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{package} is not installed ({error})") from None


def _bits_by_weight(model: ModelProto, recipe: Recipe) -> dict[str, float]:
    """Bits of every weight, by the name of its initializer."""
    weights = {layer.name: layer.weight for layer in match(load(model).proto).layers}
    bits = {weights[layer.name]: layer.bits for layer in plan(model, recipe).layers}
    if others := sorted(set(bits.values()) - {4, 8}):
        raise Unavailable(f"stores 4 and 8 bits, not {', '.join(map(str, others))}")
    return bits


class _Noise:
    """Calibration inputs for tools that will not do without: ``get_next`` is ONNX Runtime's interface."""

    def __init__(self, model: ModelProto) -> None:
        found = synthetic(model_inputs(model), samples=NOISE_SAMPLES, seed=0)
        self._feeds = [feeds for _, _, feeds in found.batches()]
        self._left = iter(self._feeds)

    def __iter__(self) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        return iter(self._feeds)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self._left, None)


@contextmanager
def _files() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "in.onnx", Path(directory) / "out.onnx"


def _without_activation_quantizers(model: ModelProto) -> ModelProto:
    """Let whoever reads a dequantized activation read the activation itself."""
    table = ConstantTable(model)
    source = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in table
    }
    through = {
        node.output[0]: source[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in source
    }
    outputs = {value.name for value in model.graph.output}
    kept = []
    for node in model.graph.node:
        if node.output[0] in outputs & through.keys():
            kept.append(helper.make_node("Identity", [_origin(node.output[0], through)], list(node.output)))
        elif node.output[0] not in through and node.output[0] not in source:
            node.input[:] = [_origin(name, through) for name in node.input]
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
    return model


def _origin(name: str, through: Mapping[str, str]) -> str:
    while name in through:
        name = through[name]
    return name
