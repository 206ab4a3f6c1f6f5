"""The shipped network is what its README says; the zoo finds, downloads, verifies and prepares, or says why
not.
"""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from models import zoo
from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import Preprocessing
from tests.conftest import MODELS, SHARED_MODELS

CONTENT = b"not really a network" * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def outputs(model: str | bytes, inputs: NDArray[np.float32], batch: int = 64) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate(
        [session.run(None, {name: inputs[i : i + batch]})[0] for i in range(0, len(inputs), batch)]
    )


def top1(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float((logits.argmax(1) == labels).mean())


# The network that ships with the project


def test_digits_networks_are_as_good_as_their_json_says(
    digits_bn: Path, digits_folded: Path, digits_data: Path
) -> None:
    facts = json.loads((MODELS / "digits.json").read_text())
    data = np.load(digits_data)
    kept, folded = (outputs(str(path), data["input"]) for path in (digits_bn, digits_folded))
    assert len(data["labels"]) == facts["test_images"]
    assert (
        top1(kept, data["labels"]) == top1(folded, data["labels"]) == pytest.approx(facts["top1"], abs=1e-4)
    )
    assert facts["top1"] >= 0.97
    np.testing.assert_allclose(kept, folded, atol=1e-3)


def test_digits_networks_keep_and_fold_batch_norm(digits_bn: Path, digits_folded: Path) -> None:
    kept, folded = (
        [node.op_type for node in onnx.load(path).graph.node] for path in (digits_bn, digits_folded)
    )
    assert kept.count("BatchNormalization") == kept.count("Conv") == folded.count("Conv")
    assert 12 <= kept.count("Conv") <= 20
    assert "BatchNormalization" not in folded


def test_digits_files_are_small(digits_bn: Path, digits_folded: Path, digits_data: Path) -> None:
    assert sum(path.stat().st_size for path in (digits_bn, digits_folded, digits_data)) < 1_000_000


def test_digits_network_breaks_without_compensation(digits_bn: Path, digits_data: Path) -> None:
    model, data = onnx.load(digits_bn), np.load(digits_data)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and "conv1" in node.name:
            tensor = weights[node.input[1]]
            w = numpy_helper.to_array(tensor)
            kept = np.abs(w) > 0.7 * np.abs(w).mean()
            ternary = np.sign(w) * kept * np.abs(w[kept]).mean()
            tensor.CopyFrom(numpy_helper.from_array(ternary.astype(np.float32), tensor.name))
    assert top1(outputs(model.SerializeToString(), data["input"]), data["labels"]) < 0.5


# The manifest


def test_manifest_describes_every_shared_network() -> None:
    assert set(SHARED_MODELS) <= set(zoo.manifest())


@pytest.mark.parametrize("network", zoo.manifest().values(), ids=lambda network: network.name)
def test_manifest_entry_is_complete(network: zoo.Entry) -> None:
    assert len(network.sha256) == 64
    assert int(network.sha256, 16)
    assert network.licence
    assert network.origin
    assert network.url.startswith("https://") or network.name in SHARED_MODELS


def test_shared_network_is_the_file_of_the_manifest(shared_model: Path) -> None:
    network = zoo.entry(shared_model.stem)
    assert zoo.fetch(network) == shared_model
    graph = onnx.load(shared_model).graph
    initializers = {tensor.name for tensor in graph.initializer}
    assert [value.name for value in graph.input if value.name not in initializers] == [network.input]


def test_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(zoo.ZooError, match="resnet20: no such network") as error:
        zoo.fetch("resnet20")
    assert "cifar10_resnet20" in error.value.hint


# Downloading


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty shared directory and an empty cache; returns the latter."""
    monkeypatch.setenv("DFMPC_SHARED", str(tmp_path / "shared"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache" / "onnx_dfmpc"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in ("/good.onnx", "/short.onnx") else 404)
        if self.path.startswith(("/good", "/short")):
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT if self.path == "/good.onnx" else CONTENT[:1000])
        else:
            self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a server on localhost that has ``good.onnx``, and ``short.onnx``, which ends half-way."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def network_at(url: str, sha256: str = SHA256) -> zoo.Entry:
    return zoo.Entry(name="good", url=url, sha256=sha256, licence="MIT", origin="this test", input="input")


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_download_lands_in_the_cache_and_is_not_repeated(server: str, elsewhere: Path) -> None:
    path = zoo.fetch(network_at(f"{server}/good.onnx"))
    assert path == elsewhere / "good.onnx"
    assert path.read_bytes() == CONTENT
    assert leftovers(elsewhere) == ["good.onnx"]
    assert zoo.fetch(network_at(f"{server}/gone.onnx")) == path


def test_shared_file_wins_over_a_download(server: str, elsewhere: Path, tmp_path: Path) -> None:
    placed = tmp_path / "shared" / "models" / "good.onnx"
    placed.parent.mkdir(parents=True)
    placed.write_bytes(CONTENT)
    assert zoo.fetch(network_at(f"{server}/good.onnx")) == placed
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("path", "sha256", "message"),
    [
        ("missing.onnx", SHA256, "HTTP 404"),
        ("good.onnx", "0" * 64, "the manifest says 0000"),
        ("short.onnx", SHA256, "ended after 1,000 of 200,000 bytes"),
    ],
)
def test_failed_download_says_why_and_leaves_nothing(
    path: str, sha256: str, message: str, server: str, elsewhere: Path
) -> None:
    with pytest.raises(zoo.ZooError, match=message) as error:
        zoo.fetch(network_at(f"{server}/{path}", sha256))
    assert path in str(error.value)
    assert error.value.hint
    assert leftovers(elsewhere) == []


def test_no_connection_says_where_to_place_the_file(elsewhere: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(zoo.ZooError, match=r"[Cc]onnection refused") as error:
        zoo.fetch(network_at(f"http://127.0.0.1:{port}/good.onnx"))
    assert str(tmp_path / "shared" / "models" / "good.onnx") in error.value.hint
    assert leftovers(elsewhere) == []


def test_network_without_address_has_to_be_placed(elsewhere: Path, tmp_path: Path) -> None:
    with pytest.raises(zoo.ZooError, match="no public file") as error:
        zoo.fetch("cifar10_resnet20_bn")
    assert str(tmp_path / "shared" / "models" / "cifar10_resnet20_bn.onnx") in error.value.hint


def test_damaged_cache_is_noticed(elsewhere: Path) -> None:
    elsewhere.mkdir(parents=True)
    (elsewhere / "good.onnx").write_bytes(CONTENT[:-1])
    with pytest.raises(zoo.ZooError, match="sha256") as error:
        zoo.fetch(network_at("http://127.0.0.1/good.onnx"))
    assert "delete" in error.value.hint


def test_command_lists_and_fails_in_one_line(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in zoo.manifest())
    assert zoo.main(["fetch", "nothing_like_it"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: nothing_like_it: no such network\nhint: ")


# Preparing inputs


def prepared(**steps: object) -> zoo.Entry:
    return replace(network_at(""), preprocessing=Preprocessing(**steps))  # type: ignore[arg-type]


def test_preprocess_is_the_documented_formula() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    x = zoo.preprocess(images, prepared(crop=4, channels="bgr", mean=mean, std=std))
    assert x.shape == (2, 3, 4, 4)
    assert x.dtype == np.float32
    for c in range(3):
        expected = (images[:, 1:5, 0:4, 2 - c] / 255 - mean[c]) / std[c]
        np.testing.assert_allclose(x[:, c], expected, rtol=1e-6)


def test_preprocess_keeps_a_constant_image_constant_through_resizing_and_grey() -> None:
    images = np.full((1, 12, 10, 3), 200, np.uint8)
    x = zoo.preprocess(images, prepared(size=(6, 4), channels="gray", scale=1 / 200, layout="nhwc"))
    assert x.shape == (1, 6, 4, 1)
    np.testing.assert_allclose(x, 1, rtol=1e-6)


def test_preprocess_refuses_images_smaller_than_the_crop() -> None:
    with pytest.raises(RecipeError, match="crop 8,8: the picture has only 4,4"):
        zoo.preprocess(np.zeros((1, 4, 4, 3), np.uint8), prepared(crop=8))


@pytest.mark.parametrize(
    ("name", "data", "count", "expected"),
    [
        ("cifar10_resnet20_bn", "cifar10_test", 1017, 91.64),
        ("cifar10_shufflenetv2_x0_5_bn", "cifar10_test", 1017, 90.46),
        ("cifar10_resnet8_keras_bn", "cifar10_test", 1017, 88.00),
        ("imagenet_mobilenet_v1_025_128_folded", "imagenet_500", 500, 42.4),
        ("imagenet_squeezenet1_1", "imagenet_500", 100, 76.0),  # 60.8 on all 500, which take 5 s
        ("har_conv1d_bn", "har_test", 950, 94.0),
        ("wakeword_bn", "wakeword_samples", 45, 100 * 41 / 45),
    ],
)
def test_samples_reproduce_the_published_accuracy(
    name: str, data: str, count: int, expected: float, shared_dir: Path
) -> None:
    inputs, labels = zoo.samples(zoo.entry(name), data)
    assert labels is not None
    assert len(labels) >= count
    assert 100 * top1(outputs(str(zoo.fetch(name)), inputs[:count]), labels[:count]) == pytest.approx(
        expected, abs=0.1
    )


@pytest.mark.parametrize("name", ["ultraface_rfb_320_bn", "yunet_s_dynamic"])
def test_face_photos_run_through_the_detectors(name: str, shared_dir: Path) -> None:
    inputs, labels = zoo.samples(zoo.entry(name))
    assert labels is None
    assert np.isfinite(outputs(str(zoo.fetch(name)), inputs[:2], batch=1)).all()
