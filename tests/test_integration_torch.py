"""torch: batch norm is kept on the way, every layer is found, and outputs are those of the module."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnx_dfmpc
from onnx_dfmpc import Recipe
from onnx_dfmpc.errors import ModelError, RecipeError

torch = pytest.importorskip("torch", reason="torch is not installed: make check-torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from onnx_dfmpc.integrations.torch import export  # noqa: E402

NEAREST = {"rounding": "nearest", "repair": "none"}
EIGHT = Recipe(bits=8, **NEAREST)


class Conv(nn.Module):
    """Convolution, batch norm, SiLU, as in YOLO."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Any) -> Any:
        return F.silu(self.bn(self.conv(x)))


class C2f(nn.Module):
    """Two halves, one through residual convolutions, all put together."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.half = outputs // 2
        self.first, self.last = Conv(inputs, outputs), Conv(3 * self.half, outputs)
        self.inner = nn.Sequential(Conv(self.half, self.half, 3), Conv(self.half, self.half, 3))

    def forward(self, x: Any) -> Any:
        a, b = self.first(x).split((self.half, self.half), 1)
        return self.last(torch.cat((a, b, b + self.inner(b)), 1))


class SPPF(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = Conv(channels, channels // 2), Conv(2 * channels, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Any) -> Any:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Detect(nn.Module):
    """Boxes as distributions over distances, and classes, of two scales; decoded when it is exported."""

    export = False

    def __init__(self, channels: tuple[int, ...], classes: int, bins: int = 8) -> None:
        super().__init__()
        self.bins = bins
        self.boxes = nn.ModuleList(
            nn.Sequential(Conv(c, 16, 3), nn.Conv2d(16, 4 * bins, 1)) for c in channels
        )
        self.kinds = nn.ModuleList(nn.Sequential(Conv(c, 16, 3), nn.Conv2d(16, classes, 1)) for c in channels)

    def forward(self, features: list[Any]) -> Any:
        raw = [
            torch.cat((box(x), kind(x)), 1)
            for x, box, kind in zip(features, self.boxes, self.kinds, strict=True)
        ]
        if not self.export:
            return raw
        joined = torch.cat([x.flatten(2) for x in raw], 2)
        boxes, kinds = joined.split((4 * self.bins, joined.shape[1] - 4 * self.bins), 1)
        shares = boxes.view(boxes.shape[0], 4, self.bins, -1).softmax(2)
        distances = (shares * torch.arange(self.bins, dtype=torch.float32).view(1, 1, -1, 1)).sum(2)
        return torch.cat((distances, kinds.sigmoid()), 1)


class Yolo(nn.Module):
    """Backbone, feature pyramid and head of a YOLO, in small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 8, 3, 2), Conv(8, 16, 3, 2), C2f(16, 16))
        self.down = nn.Sequential(Conv(16, 32, 3, 2), C2f(32, 32), SPPF(32))
        self.up = nn.Upsample(scale_factor=2)
        self.join = C2f(48, 16)
        self.detect = Detect((16, 32), 5)

    def forward(self, x: Any) -> Any:
        fine = self.stem(x)
        coarse = self.down(fine)
        return self.detect([self.join(torch.cat((self.up(coarse), fine), 1)), coarse])


class Block(nn.Module):
    """Of a ConvNeXt: a depthwise convolution, and two linear layers over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Any) -> Any:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.narrow(F.gelu(self.wide(y))).permute(0, 3, 1, 2)


class Oddly(nn.Module):
    """Pools 8 pixels to 3, which the exporter of TorchScript refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = Conv(3, 8, 3), nn.Linear(72, 4)

    def forward(self, x: Any) -> Any:
        return self.last(F.adaptive_avg_pool2d(self.conv(x), 3).flatten(1))


def seen(network: nn.Module, size: int) -> nn.Module:
    """Network whose batch norms have seen some inputs."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(4, 3, size, size))
    return network


def near(path: Path, network: nn.Module, x: Any) -> float:
    """SQNR in dB of a file's outputs against those of the module."""
    session = ort.InferenceSession(
        str(path), onnx_dfmpc.session_options(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        wanted = network.eval()(x).numpy()
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


def batch_norms(path: Path) -> int:
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)


def test_a_yolo_keeps_every_batch_norm_and_every_layer(tmp_path: Path) -> None:
    """The recipe of the page: the head is told that it is exported, nothing is fused."""
    network = seen(Yolo(), 64)
    network.detect.export = True
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.detect.eval()  # each part has a mode of its own
    x = torch.rand(2, 3, 64, 64)
    axes = {"images": {0: "batch"}, "output0": {0: "batch"}}
    names = {"input_names": ["images"], "output_names": ["output0"], "dynamic_axes": axes}
    result = export(network, x, tmp_path / "small.onnx", EIGHT, float_path=tmp_path / "yolo.onnx", **names)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert batch_norms(tmp_path / "yolo.onnx") == convolutions - 4  # the last ones of the head have none
    assert len(result.layers) == convolutions
    assert not result.skipped
    assert network.training
    assert not network.detect.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert near(tmp_path / "yolo.onnx", network, x) > 90
    assert near(tmp_path / "small.onnx", network, x) > 25
    assert near(tmp_path / "small.onnx", network, torch.rand(5, 3, 64, 64)) > 25  # another batch


def test_the_recipe_of_the_page_on_a_real_yolo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YOLOv8n as Ultralytics builds it, with random weights: nothing is downloaded."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    network = seen(ultralytics.YOLO("yolov8n.yaml").model.float(), 64).eval()
    head = network.model[-1]
    head.export, head.format = True, "onnx"
    x = torch.rand(1, 3, 64, 64)
    names = {"input_names": ["images"], "output_names": ["output0"]}
    result = export(network, x, tmp_path / "small.onnx", EIGHT, float_path=tmp_path / "yolo.onnx", **names)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert (batch_norms(tmp_path / "yolo.onnx"), len(result.layers)) == (norms, convolutions)
    assert near(tmp_path / "yolo.onnx", network, x) > 90
    assert near(tmp_path / "small.onnx", network, x) > 25


def test_linear_layers_are_found_too(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 4, 4), Block(16), Block(16))
    result = export(network, torch.rand(1, 3, 32, 32), tmp_path / "small.onnx", EIGHT)
    assert (len(result.layers), len(result.skipped)) == (7, 0)


def test_where_torchscript_fails_the_newer_exporter_keeps_batch_norm(tmp_path: Path) -> None:
    network = seen(Oddly(), 8)
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(torch.onnx.errors.OnnxExporterError):
        torch.onnx.export(network.eval(), (x,), str(tmp_path / "no.onnx"), dynamo=False)
    result = export(network, x, tmp_path / "small.onnx", EIGHT, float_path=tmp_path / "float.onnx")
    assert batch_norms(tmp_path / "float.onnx") == 1
    assert len(result.layers) == 2
    assert near(tmp_path / "small.onnx", network, x) > 25


def test_what_nothing_can_export_is_a_model_error(tmp_path: Path) -> None:
    class Strange(nn.Module):
        def forward(self, x: Any) -> Any:
            raise ValueError("no such weather")

    with pytest.raises(ModelError, match="TorchScript: ValueError: no such weather; dynamo:") as caught:
        export(Strange(), torch.rand(1, 3, 8, 8), tmp_path / "small.onnx")
    assert "torch.onnx.export alone" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_existing_files_stay(tmp_path: Path) -> None:
    network = seen(Oddly(), 8)
    (tmp_path / "float.onnx").write_text("mine")
    (tmp_path / "small.onnx").write_text("mine")
    for kept in ({"float_path": tmp_path / "float.onnx"}, {}):
        with pytest.raises(RecipeError, match="exists already"):
            export(network, torch.rand(1, 3, 8, 8), tmp_path / "small.onnx", EIGHT, **kept)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


def test_what_the_pages_say_about_exports(tmp_path: Path) -> None:
    """PRESERVE alone keeps batch norm; without constant folding linear layers are lost."""
    network = nn.Sequential(Conv(3, 16, 4, 4), Block(16)).eval()
    x = (torch.rand(1, 3, 32, 32),)
    keep = {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE}
    found = {}
    for name, how in {
        "default": {},
        "keep": keep,
        "unfolded": keep | {"do_constant_folding": False},
        "unoptimized": {"dynamo": True, "optimize": False},
    }.items():
        path = tmp_path / f"{name}.onnx"
        torch.onnx.export(network, x, str(path), **how)
        found[name] = batch_norms(path), len(onnx_dfmpc.inspect(path).layers)
    assert found == {"default": (0, 4), "keep": (1, 4), "unfolded": (1, 2), "unoptimized": (1, 2)}
