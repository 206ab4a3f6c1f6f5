"""Every shared network, end to end: quantized, checked, accounted for, and loaded with ONNX Runtime's default
options.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import synthetic_feeds
from tests.conftest import networks

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@pytest.mark.parametrize("shared_model", networks("cifar10_shufflenetv2_x0_5_bn"), indirect=True)
def test_every_network_quantizes_and_loads(shared_model: Path, tmp_path: Path):
    source, target = shared_model.read_bytes(), tmp_path / "small.onnx"
    result = quantize(shared_model, target, Recipe(low_bits=4, high_bits=6, samples=4))
    assert shared_model.read_bytes() == source
    assert result.validation, result.validation and result.validation.failures

    # Every weighted node is quantized or skipped for a reason, once.
    graph = result.source.proto.graph
    names = [layer.name for layer in result.layers] + [skipped.name for skipped in result.skipped]
    assert len(names) == len(set(names)) == sum(node.op_type in WEIGHTED for node in graph.node)
    assert all(skipped.reason for skipped in result.skipped)
    assert all(layer.reason and 2 <= layer.bits <= 8 for layer in result.layers)
    assert len(result.layers) >= 0.9 * len(names)

    # The file is a valid model with the same interface, smaller, and it runs.
    small = onnx.load(target)
    onnx.checker.check_model(small, full_check=True)
    assert [value.name for value in small.graph.output] == [value.name for value in graph.output]
    assert sum(node.op_type == "DequantizeLinear" for node in small.graph.node) >= len(result.layers)
    assert target.stat().st_size == result.size < len(source)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    feed = {name: array[:1] for name, array in synthetic_feeds(model_inputs(small), seed=1)[0].items()}
    assert all(np.isfinite(output).all() for output in session.run(None, feed))


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [{}, {"method": "paper"}], ids=["default", "paper"])
def test_resnet56_at_2_and_6_bits_is_small(shared_dir: Path, tmp_path: Path, knobs: dict[str, str]):
    target = tmp_path / "small.onnx"
    result = quantize(
        shared_dir / "models" / "cifar10_resnet56_bn.onnx",
        target,
        Recipe(low_bits=2, high_bits=6, samples=4, **knobs),
    )
    assert result.size == target.stat().st_size < 800_000
    assert {layer.bits for layer in result.layers if layer.role == "low"} == {2}
    assert sum(layer.role == "low" for layer in result.layers) == 27


@pytest.mark.slow
def test_the_paper_on_either_side_of_the_relu(shared_dir: Path):
    """ResNet-20 at 2/8: the two sides are the same network but for the 8-bit grids of the consumers."""
    data = np.load(shared_dir / "data" / "cifar10_test.npz")
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    images = ((data["images"][:256] / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    model = shared_dir / "models" / "cifar10_resnet20_bn.onnx"
    scores = {"float": run(model.read_bytes(), images)}
    for side in ("producer", "consumer"):
        recipe = Recipe(method="paper", low_bits=2, high_bits=8, absorb=side, samples=4)
        scores[side] = run(quantize(model, None, recipe).model.SerializeToString(), images)
    signal = scores["producer"].var()
    between = 10 * np.log10(signal / (scores["producer"] - scores["consumer"]).var())
    lost = 10 * np.log10(signal / (scores["producer"] - scores["float"]).var())
    assert between > lost + 20
    assert between > 20


def run(model: bytes, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]
