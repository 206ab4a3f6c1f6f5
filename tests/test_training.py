"""The trainings of models/: an interrupted one ends as one that was not, and what is exported computes the same.

Needs torch and Pillow (the extra ``train``).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models import zoo

torch = pytest.importorskip("torch", reason="trainings need torch: pip install '.[train]'")
pytest.importorskip("PIL", reason="trainings need Pillow: pip install '.[train]'")

from models import architectures, cifar, finetune  # noqa: E402


def pictures(n: int = 2 * cifar.BATCH) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n)


def network() -> Any:
    torch.manual_seed(0)
    layers = [*architectures.convolution(3, 4, stride=4), torch.nn.ReLU(), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(256, 10))


class Interrupted(cifar.Crops):
    """Stops in the second epoch."""

    def batches(self, seed: int) -> Iterator[Any]:
        if seed != cifar.SEED + 1000:
            raise KeyboardInterrupt
        yield from super().batches(seed)


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, resumed = network(), network()
    cifar.train(whole, cifar.Crops(*pictures()), 2, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cifar.train(resumed, Interrupted(*pictures()), 2, tmp_path / "resumed")
    again = network()  # a new process has new weights
    cifar.train(again, cifar.Crops(*pictures()), 2, tmp_path / "resumed")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_crops_are_shifted_and_flipped_parts_of_the_padded_picture() -> None:
    images, labels = pictures(cifar.BATCH)
    inputs, found = next(cifar.Crops(images, labels).batches(0))
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    ways = {}  # of every crop of every picture: the class of the picture
    for picture, label in zip(padded, labels, strict=True):
        for y in range(9):
            for x in range(9):
                cut = picture[y : y + 32, x : x + 32]
                ways[cut.tobytes()] = ways[cut[:, ::-1].tobytes()] = label
    mean, deviation = (np.float32(values)[:, None, None] for values in (cifar.MEAN, cifar.DEVIATION))
    for array, label in zip(inputs.numpy(), found, strict=True):
        pixels = np.rint((array * deviation + mean) * 255).astype(np.uint8).transpose(1, 2, 0)
        assert ways[pixels.tobytes()] == label


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "activation_prelu", "activation_silu"])
def test_exported_networks_keep_batch_norm_and_compute_the_same(name: str, tmp_path: Path) -> None:
    made = architectures.ARCHITECTURES[name].make().eval()
    cifar.export(made, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in made.modules())
    assert [node.op_type for node in proto.graph.node].count("BatchNormalization") == norms
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    (found,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"input": x})
    np.testing.assert_allclose(found, made(torch.from_numpy(x)).numpy(force=True), atol=1e-4)
    assert name != "vgg16" or proto.ByteSize() < 4_000_000  # it ships


def test_learned_steps_round_to_the_grid_and_get_gradients() -> None:
    x = torch.linspace(-3.03, 2.97, 61, requires_grad=True)  # no value on an edge
    step = torch.tensor([0.5], requires_grad=True)
    y = finetune.lsq(x, step, -2, 1)
    assert set(y.tolist()) == {-1.0, -0.5, 0.0, 0.5}
    y.sum().backward()
    inside = (x > -1) & (x < 0.5)
    assert torch.equal(x.grad != 0, inside)
    # derivative of the rounded value by the step: the code where clipped, else the rounding error
    codes = (x / 0.5).detach()
    expected = torch.where(inside, codes.round() - codes, codes.clamp(-2, 1)).sum() / (61 * 1) ** 0.5
    torch.testing.assert_close(step.grad, expected.reshape(1))


@pytest.fixture(scope="module")
def shared() -> Path:
    try:
        return zoo.fetch(finetune.NETWORK)
    except zoo.ZooError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", list(finetune.VARIANTS))
def test_the_rounded_network_computes_the_same_in_its_file(name: str, shared: Path) -> None:
    proto = onnx.load(shared)
    made = finetune.imported(proto).eval()
    x = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    if name == "resnet20_float":
        (before,) = ort.InferenceSession(str(shared)).run(None, {"input": x})
        np.testing.assert_allclose(made(torch.from_numpy(x)).numpy(force=True), before, atol=1e-3)
    finetune.prepare(made, shared, finetune.VARIANTS[name])
    expected = made(torch.from_numpy(x)).numpy(force=True)
    (found,) = ort.InferenceSession(finetune.exported(made, proto).SerializeToString()).run(
        None, {"input": x}
    )
    noise = np.square(found - expected).mean() / np.square(expected).mean()
    assert noise < (1e-3 if "a8" in name else 1e-9)  # a tie may be rounded up in one and down in the other
