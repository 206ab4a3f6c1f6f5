"""Comparison with other tools: what is measured, and what is said of it. No other tool is needed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from benchmarks import launch, rivals
from benchmarks.baselines import tools
from benchmarks.evaluate import reference
from benchmarks.networks import Network, network
from benchmarks.rivals import OURS, Row, Subject
from models import zoo


@pytest.fixture(scope="module")
def digits() -> Subject:
    source = network("digits_resnet_bn")
    reads, proto = reference(source, "digits_test"), onnx.load(source.path)
    inputs, _ = source.inputs("digits_test")
    # Noise would ruin it: calibrated on images, a file that is right can be told from one that is not.
    return Subject(source, proto, reads, reads.score(proto), inputs[:8], {"input": inputs[:16]})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the tests has onnxruntime, so it can stand for that of a tool."""
    monkeypatch.setattr(rivals, "interpreter", lambda tool: Path(sys.executable))
    monkeypatch.setattr(rivals, "RUNS", 6)


def row(tool: str, setting: str, size: int | None, top1: float | None, kind: str = tools.W8A8) -> Row:
    return Row("har_conv1d_bn", tool, setting, kind, {tool: "1.0"}, 100, 1000, 0.9, bytes=size, top1=top1)


class TestLaunch:
    def test_cost_is_that_of_the_command(self, tmp_path: Path) -> None:
        cost, script = tmp_path / "cost.json", "held = bytearray(b'x') * 200_000_000; sum(range(3_000_000))"
        assert launch.main([str(cost), "60", sys.executable, "-c", script]) == 0
        found = json.loads(cost.read_text())
        assert found["code"] == 0
        assert found["cpu"] > 0.02
        assert found["peak"] > 200_000_000

    def test_what_takes_too_long_is_ended(self, tmp_path: Path) -> None:
        cost = tmp_path / "cost.json"
        launch.main([str(cost), "0.3", sys.executable, "-c", "import time; time.sleep(60)"])
        assert json.loads(cost.read_text())["code"] is None


class TestMeasure:
    @pytest.mark.usefixtures("here")
    def test_a_tool_in_a_process_of_its_own(self, digits: Subject) -> None:
        found = rivals.measure(digits, "onnxruntime", "static, min-max")
        assert (found.failed, found.refused, found.changed) == ("", "", "")
        assert found.top1 is not None
        assert found.top1 > 0.9
        assert found.bytes is not None
        assert found.bytes < found.float_bytes / 2
        assert found.seconds is not None
        assert found.cpu_seconds is not None
        assert found.cpu_seconds > found.seconds > 0
        assert found.versions["onnxruntime"] == tools.versions("onnxruntime")["onnxruntime"]

    @pytest.mark.usefixtures("here")
    def test_this_tool_through_its_command_line(self, digits: Subject) -> None:
        found = rivals.measure(digits, OURS, "8")
        assert (found.failed, found.refused, found.changed) == ("", "", "")
        assert found.top1 == pytest.approx(digits.score.top1, abs=0.01)
        assert OURS in found.versions

    @pytest.mark.usefixtures("here")
    def test_why_there_is_no_file(self, digits: Subject) -> None:
        found = rivals.measure(digits, "nncf", "quantize")
        assert "nncf" in found.failed
        assert found.bytes is None

    def test_a_file_that_does_not_run(self, digits: Subject) -> None:
        model = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 1, 8, 8] input) => (float[N, 3] y) { y = Nonsense(input) }'
        )
        found = rivals.judged(row("nncf", "quantize", 10, None), model, digits)
        assert "Nonsense" in found.refused
        assert found.top1 is None

    def test_what_became_of_the_input(self, tmp_path: Path) -> None:
        original, folder = tmp_path / "original.onnx", tmp_path / "input"
        folder.mkdir()
        original.write_bytes(b"model")
        copy = folder / "model.onnx"
        copy.write_bytes(b"model")
        assert rivals.changes(folder, original) == ""
        (folder / "model_named.onnx").write_bytes(b"")
        assert rivals.changes(folder, original) == "left model_named.onnx beside it"
        copy.write_bytes(b"other")
        assert rivals.changes(folder, original).startswith("changed its input, left")
        copy.unlink()
        assert rivals.changes(folder, original) == "removed its input"


def test_noise_fills_the_range_of_real_inputs() -> None:
    entry = zoo.entry("cifar10_resnet20_bn")
    black, white = (zoo.preprocess(np.full((1, 32, 32, 3), level, np.uint8), entry) for level in (0, 255))
    drawn = rivals.noise(Network(entry.name, Path(), ()), (3, 32, 32))[entry.input]
    assert drawn.shape == (rivals.NOISE_SAMPLES, 3, 32, 32)
    np.testing.assert_allclose(drawn.min((0, 2, 3)), black[0, :, 0, 0])
    np.testing.assert_allclose(drawn.max((0, 2, 3)), white[0, :, 0, 0])


class TestPage:
    def test_ahead_is_better_in_no_more_bytes(self) -> None:
        ours = row(OURS, "mean 4", 100, 0.80, tools.W4)
        error = 0.03  # of 0.9 on 100 samples
        others = {
            "smaller": row("nncf", "smaller", 90, 0.5),
            "as good": row("nncf", "as good", 110, 0.80 + error / 2),
            "better": row("nncf", "better", 110, 0.80 + 2 * error),
            "worse": row("nncf", "worse", 110, 0.7),
            "refused": replace(row("nncf", "refused", 90, None), refused="no"),
            "float": row("onnxslim", "slim", 900, 0.9, tools.SIZE),
        }
        assert {found.setting for found in rivals.ahead([ours, *others.values()])} == {"smaller", "better"}

    def test_largest_loss_is_that_of_the_worst_network(self) -> None:
        rows = [
            row("nncf", "quantize", 10, 0.85),
            replace(row("nncf", "quantize", 10, 0.6), network="cifar10_resnet20_bn"),
        ]
        assert (
            rivals.accuracy(rows, tools.W8A8).splitlines()[-1]
            == "| nncf: quantize | 60.0 | 85.0 | 30.0 | 100.0 | - |"
        )

    def test_page_and_charts(self, tmp_path: Path) -> None:
        pytest.importorskip("vl_convert")
        page = tmp_path / "rivals.md"
        rows = [
            row(OURS, "8 + A8", 100, 0.85),
            row("nncf", "quantize", 120, 0.2),
            replace(row("nncf", "compress_weights", 90, None, tools.W8), refused="has no kernel"),
            replace(row("quantization-rs", "calibrated", None, None), failed="wants four dimensions"),
        ]
        rivals.write(rows, page, tmp_path)
        text = page.read_text(encoding="utf-8")
        assert "| nncf: quantize | 20.0 | 70.0 |" in text
        assert "does not run: has no kernel" in text
        assert "no file: wants four dimensions" in text
        assert (tmp_path / "rivals-har_conv1d_bn.svg").read_text().startswith("<svg")

    def test_every_tool_has_what_make_installs(self) -> None:
        listed = next(
            line
            for line in (rivals.ROOT / "Makefile").read_text().splitlines()
            if line.startswith("RIVALS :=")
        )
        files = {path.stem for path in (rivals.ROOT / "benchmarks" / "baselines" / "requirements").iterdir()}
        assert set(listed.split()[2:]) == files == set(tools.TOOLS) <= set(rivals.COLOURS)
