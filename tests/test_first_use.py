"""What goes wrong the first time gets the sentence that helps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnx_dfmpc import DfmpcError, Recipe, quantize, validate
from onnx_dfmpc.evaluate.validation import Gate, OutputMetrics, ValidationReport, next_steps
from tests.graphs import parse

Run = Callable[..., tuple[int, str, str]]
FAST = ("--bits", "6", "-q")


@pytest.mark.parametrize(
    ("content", "words", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "pointer of Git LFS", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html>", "web page", "download"),
        (b"<html><body>404", "web page", "download"),
        (b'{"error": "not found"}', "JSON", "download"),
        (b"\x1c\0\0\0TFL3\x14\0", "TensorFlow Lite", "torch.onnx.export"),
        (b"\x89HDF\r\n", "Keras", "ONNX first"),
        (b"PK\x03\x04\0\0", "PyTorch", "torch.onnx.export"),
        (b"PK\x03\x04\0\0", "archive", "unzip it"),
        (b"", "empty", "export or download"),
        (b"\x1f\x8b\x08\0", "compressed", "gunzip"),
    ],
)  # fmt: skip
def test_files_that_are_no_models(run: Run, tmp_path: Path, content: bytes, words: str, hint: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    code, _, err = run("inspect", tmp_path / "m.onnx")
    said, helps = err.splitlines()
    assert code == 3
    assert words in said
    assert hint in helps


@pytest.mark.parametrize("suffix", ["tflite", "pt", "engine"])
def test_outputs_in_other_formats(run: Run, digits_bn: Path, tmp_path: Path, suffix: str) -> None:
    code, _, err = run("quantize", digits_bn, "-o", tmp_path / f"out.{suffix}")
    assert code == 2
    assert "an ONNX model" in err
    assert f"-o {tmp_path / 'out.onnx'}" in err


@pytest.mark.parametrize(
    ("typed", "code", "words", "hint"),
    [
        ("quantize m.onnx -o m.onnx", 2, "m.onnx: would replace another file, which this run reads", "another output path"),
        ("quantize m.onnx -o m.onnx --overwrite", 2, "would replace", "another output path"),
        ("quantize m.onnx o.onnx", 3, "o.onnx: no such file", "quantize m.onnx -o o.onnx"),
        ("quantize m.onnx -o nowhere/o.onnx", 2, "no directory nowhere", "create it first"),
        ("quantize m.onnx -o folder", 2, "a directory", "name the file"),
        ("quantize weights.onnx.data -o o.onnx", 3, "not an ONNX model", "pass the .onnx file beside it"),
        ("quantize small.onnx -o o.onnx", 3, "small.onnx: onnx-dfmpc has quantized it already", "the float model"),
        ("quantize relu.onnx -o o.onnx", 3, "it has no Conv", "inspect"),
        ("m.onnx", 2, "'m.onnx'", "onnx-dfmpc quantize m.onnx"),
        ("quantize m.onnx -o o.onnx --bits 32", 2, "expected 1.58, 2.58, or an integer from 2 to 8", ""),
        ("quantize m.onnx -o o.onnx --target-size -5MB", 2, "'-5MB' is not a size", "300KiB"),
        ("quantize m.onnx -o o.onnx --target-size 50%", 2, "'50%' is not a size", "300KiB"),
        ("quantize m.onnx -o o.onnx -c old.toml", 2, "old.toml: unknown key 'compensate'", 'repair = "mean"'),
        ("quantize m.onnx -o o.onnx -c typo.toml", 2, "unknown key 'bit'", "did you mean bits in [target]?"),
        ("quantize m.onnx -o o.onnx -c m.onnx", 2, "m.onnx: not a TOML file", "-c takes a recipe"),
        ("quantize m.onnx -o o.onnx -c none.toml", 2, "none.toml: no such recipe file", "-c takes a recipe"),
        ("quantize m.onnx -o o.onnx --data wrong.npz", 2, "expects float32 (n, 1, 8, 8)", "numpy.savez"),
        ("quantize m.onnx -o o.onnx --data m.onnx", 2, "not an .npz or .npy file", "numpy.savez"),
    ],
)  # fmt: skip
def test_what_newcomers_type(run: Run, newcomer: Path, typed: str, code: int, words: str, hint: str) -> None:
    before = {file: file.stat().st_mtime_ns for file in newcomer.iterdir()}
    found, out, err = run(*typed.split())
    said, *helps = err.splitlines()
    assert (found, out) == (code, "")
    assert words in said
    assert hint in "".join(helps)
    assert {file: file.stat().st_mtime_ns for file in newcomer.iterdir()} == before


@pytest.fixture(scope="module")
def quantized_digits(tmp_path_factory: pytest.TempPathFactory, digits_bn: Path) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "small.onnx"
    quantize(digits_bn, path, Recipe(bits=6, rounding="nearest", repair="none", samples=2))
    return path


@pytest.fixture
def newcomer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits_bn: Path, quantized_digits: Path
) -> Path:
    """A folder of somebody who is here for the first time."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load(digits_bn)
    Path("folder").mkdir()
    shutil.copy(digits_bn, "m.onnx")
    shutil.copy(quantized_digits, "small.onnx")
    onnx.save(
        model, "weights.onnx", save_as_external_data=True, location="weights.onnx.data", size_threshold=0
    )
    onnx.save(parse("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"), "relu.onnx")
    np.savez("wrong.npz", input=np.zeros((4, 3, 5, 5), np.float32))
    Path("old.toml").write_text("[defaults]\ncompensate = false\n")
    Path("typo.toml").write_text("[defaults]\nbit = 4\n")
    return tmp_path


@pytest.mark.parametrize("flag", ["--bits", "--low-bits", "--high-bits"])
def test_bits_with_a_fraction(run: Run, digits_bn: Path, flag: str) -> None:
    code, _, err = run("quantize", digits_bn, "-o", "o.onnx", flag, "4.5")
    assert code == 2
    assert "--target-bits 4.5" in err


def test_swapped_models(run: Run, digits_bn: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    assert run("quantize", digits_bn, "-o", small, *FAST)[0] == 0
    code, out, err = run("validate", small, digits_bn)
    assert (code, out) == (3, "")
    assert "swapped" in err
    assert f"validate {digits_bn} {small}" in err
    assert run("validate", digits_bn, small, "-q")[0] == 0


def test_a_model_may_be_bytes_or_a_graph(digits_bn: Path) -> None:
    data, graph = digits_bn.read_bytes(), gs.import_onnx(onnx.load(digits_bn))
    assert validate(data, graph).sqnr_db == float("inf")
    assert quantize(graph, None).passed
    with pytest.raises(DfmpcError, match="a int is not a model"):
        validate(7, data)  # type: ignore[arg-type]


def report(**changes: object) -> ValidationReport:
    output = OutputMetrics("y", 0.9, 3.0, 1.0, 1.0)
    return ValidationReport(8, "noise", **({"synthetic": True, "outputs": (output,)} | changes))


def test_what_now() -> None:
    assert next_steps(report()) == ()
    failed = "; ".join(next_steps(report(failures=("output 'y': 3.0 dB, below 6 dB",))))
    assert "--per-layer says" in failed
    assert "--no-gate" in failed
    assert "--data" in failed
    known = "; ".join(next_steps(report(failures=("output 'y': 3.0 dB, below 6 dB",)), per_layer=True))
    assert "--set NAME=8" in known
    gate = Gate("min_sqnr_db", 9.0, 3.0, False)
    assert "--no-gate" not in "; ".join(next_steps(report(gates=(gate,), synthetic=False)))
    noisy = next_steps(report(failures=("output 'y': 3.0 dB, below 6 dB",)), activations_db=5.94)
    assert "alone are expected to leave 5.9 dB" in noisy[0]
    assert "--nodes-to-exclude" in noisy[0]
    (fed,) = next_steps(report(failures=("float model: NaN in output 'y' (samples 0 to 7)",)))
    assert "--input-range" in fed


def test_a_failed_run_says_what_now_in_its_reports(run: Run, digits_bn: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "quantize", digits_bn, "-o", tmp_path / "o.onnx", "--bits", 4, "--min-sqnr-db", 90,
        "--report", tmp_path / "o.md", "--report", tmp_path / "o.html",
    )  # fmt: skip
    assert code == 1
    assert "--per-layer" in err.splitlines()[1]
    for text in (out, *((tmp_path / f"o.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))):
        assert "What now" in text
        assert "--per-layer says which layers did it." in text
    assert not (tmp_path / "o.onnx").exists()
