"""The contract of docs/exit-codes.md: one clear line, the right code, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnx_dfmpc import cli

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., tuple[int, str, str]]


def classifier(
    output: str = "scores", factor: float = 1.0, channels: int = 3, root: bool = False
) -> onnx.ModelProto:
    """Three scores; with ``root`` they are NaN, which no constant shows."""
    last = f"root = Sqrt(minus) {output} = Add(scaled, root)" if root else f"{output} = Identity(scaled)"
    return parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, {channels}, 8, 8] x) => (float[N, 3] {output}) <float[3] f = {{{factor}, 1.0, 1.0}},
        float[1] minus = {{-1.0}}> {{
            mean = GlobalAveragePool(x)
            flat = Flatten(mean)
            scores_ = MatMul(flat, w)
            scaled = Mul(scores_, f)
            {last}
        }}""")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models and data, good and bad, where the command runs."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 3)).astype(np.float32)
    models = {
        "float": classifier(),
        "near": classifier(factor=1.001),
        "far": classifier(factor=-3),
        "renamed": classifier("logits"),
        "nan_inside": classifier(root=True),
        "nan_weight": classifier(),
    }
    for name, model in models.items():
        values = (
            weight if name != "nan_weight" else np.where(np.eye(3) > 0, np.nan, weight).astype(np.float32)
        )
        model.graph.initializer.append(numpy_helper.from_array(values, "w"))
        onnx.save(model, tmp_path / f"{name}.onnx")
    x = rng.standard_normal((20, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(20) % 3)
    np.savez(tmp_path / "wrong.npz", x=x.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "nan.npz", x=np.where(x > 2, np.nan, x))
    np.save(tmp_path / "few.npy", np.zeros(19, np.int64))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def typed(*argv: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return typed


CASES: Sequence[tuple[str, int, str]] = (
    ("float near --min-cosine 0.99 --min-top1-agreement 0.9 --max-top1-drop 0", 0, ""),
    ("float far --min-cosine 0.99", 1, "min_cosine = 0.99 missed"),
    ("nan_inside near", 1, "float model: NaN in output 'scores'"),
    ("float nan_inside --min-cosine 0.9", 1, "quantized model: NaN in output 'scores'"),
    ("nan_weight near", 3, "nan_weight.onnx: node 'scores_': tensor 'w' holds NaN"),
    ("float nan_weight", 3, "nan_weight.onnx: node 'scores_': tensor 'w' holds NaN"),
    ("float renamed", 3, "its outputs are logits, those of float.onnx are scores"),
    ("float nothing", 3, "nothing.onnx: no such file"),
    (
        "float near --data wrong.npz",
        2,
        "input 'x' expects float32 (n, 3, 8, 8), the data has float32 (20, 8, 8, 3)",
    ),
    ("float near --data nan.npz", 2, "input 'x' has NaN"),
    ("float near --labels few.npy", 2, "few.npy: expected 20 integers, one per sample, got int64 (19,)"),
    ("float near --data no.npz", 2, "no.npz: no such data file"),
    ("float near --min-cosine scores=0.9", 2, "is not X: a number from -1 to 1"),
    ("float near --providers Nothing", 2, "unknown flag --providers"),
    ("float near --shape x=1,3", 2, "shape (1, 3) does not fit the input x"),
    ("float near --shape 1,3", 2, "is not NAME=SHAPE"),
    ("float near --min-cosine 2", 2, "min_cosine = 2.0: expected a number from -1 to 1"),
    ("float near --data no.py:load", 2, "no.py: no such loader script"),
    ("float near --images mean=1,2", 2, "images: mean"),
)


@pytest.mark.parametrize(("typed", "code", "words"), CASES, ids=[typed for typed, _, _ in CASES])
def test_validate(run: Run, folder: Path, typed: str, code: int, words: str) -> None:
    first, second, *flags = typed.split()
    data = [] if "--data" in flags else ["--data", "data.npz"]
    found, out, err = run(
        "validate", f"{first}.onnx", f"{second}.onnx", *data, *flags, "--json", "report.json"
    )
    assert found == code, err
    assert words in err
    if code == 0:
        assert err == ""
    else:
        first_line, *rest = err.splitlines()
        assert first_line.startswith("error: ")
        assert not rest or (len(rest) == 1 and rest[0].startswith("hint: "))
    reported = (folder / "report.json").exists()
    assert reported == (out != "") == (code in (0, 1))
    if reported:
        assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["validation"]["passed"] is (
            code == 0
        )


def test_the_command_repeats_the_run(run: Run, folder: Path) -> None:
    flags = ("--data", "data.npz", "--samples", 10, "--seed", 3, "--min-cosine", 0.5, "--min-sqnr-db", -90)
    run("validate", "float.onnx", "near.onnx", *flags, "--json", "first.json")
    first = json.loads((folder / "first.json").read_text(encoding="utf-8"))["validation"]
    program, *again = first["command"].split()
    assert program == "onnx-dfmpc"
    assert run(*again, "--json", "second.json")[0] == 0
    second = json.loads((folder / "second.json").read_text(encoding="utf-8"))["validation"]
    assert first == second
    assert [gate["name"] for gate in first["gates"]] == ["min_cosine", "min_sqnr_db"]


def test_help_and_documentation_name_every_code(capsys: pytest.CaptureFixture[str]) -> None:
    documented = re.findall(
        r"^\| (\d) \|", (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert documented == list("01234")
    for command in ([], ["validate"], ["quantize"]):
        assert cli.main([*command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert re.findall(r"[:;] (\d) ", " ".join(shown[shown.index("Exit codes") :].split())) == documented


MEASURE = """
import resource, sys
from onnx_dfmpc.cli import main
code = main(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""


def test_memory_does_not_grow_with_the_data(folder: Path) -> None:
    """3,000 samples of 12 kB in an .npz, and the same compressed, against the first 100 of them."""
    model = classifier(channels=48)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((48, 3), np.float32), "w"))
    onnx.save(model, folder / "wide.onnx")
    x = np.resize(np.arange(7, dtype=np.float32), (3000, 48, 8, 8))
    np.savez(folder / "many.npz", x=x)
    np.savez_compressed(folder / "packed.npz", x=x)
    np.savez(folder / "some.npz", x=x[:100])
    peaks = {}
    for name in ("some", "many", "packed"):
        argv = [
            sys.executable,
            "-c",
            MEASURE,
            "validate",
            "wide.onnx",
            "wide.onnx",
            "--data",
            f"{name}.npz",
            "-q",
        ]
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            cwd=folder,
        )
        code, peaks[name] = map(int, done.stderr.split())
        assert code == 0
    half = x.nbytes // 2 // 2**20
    assert peaks["many"] - peaks["some"] < half
    assert peaks["packed"] - peaks["some"] < half
