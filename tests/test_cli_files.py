"""What is read is never written over, and files of a run appear together: through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import faults
from onnx_dfmpc import cli, quantize
from onnx_dfmpc.errors import RecipeError

Run = Callable[..., tuple[int, str, str]]
FAST = ("--bits", "8", "-q")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path, digits_bn: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The digits network with external data, data beside it, and a copy in one file."""
    model = onnx.load(digits_bn)
    onnx.save(model, tmp_path / "plain.onnx")
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "x.npy", np.zeros((2, 1, 16, 16), np.float32))
    np.savez(tmp_path / "x.npz", input=np.zeros((2, 1, 16, 16), np.float32))
    (tmp_path / "recipe.toml").write_text('[validate]\ndata = "x.npz"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "typed",
    [
        "inspect a.onnx --json a.bin",
        "inspect a.onnx --json a.onnx",
        "inspect plain.onnx --json a.bin",  # not of the input, and no report either
        "plan a.onnx --bits 8 -o a.bin --overwrite",
        "plan a.onnx --bits 8 --save-recipe a.bin --overwrite",
        "plan a.onnx --bits 8 -o p.json --json p.json",
        "quantize a.onnx --bits 8 -o a.bin --overwrite",
        "quantize a.onnx --bits 8 -o hard.bin --overwrite",
        "quantize a.onnx --bits 8 -o link.bin --overwrite",
        "quantize a.onnx --bits 8 -o a.onnx --overwrite --save-as-external-data",
        "quantize a.onnx --bits 8 -o o.onnx --json a.bin",
        "quantize a.onnx --bits 8 --data data -o o.onnx --json data/x.npy",
        "quantize a.onnx --bits 8 -c recipe.toml -o x.npz --overwrite",
        "quantize a.onnx --bits 8 -c recipe.toml -o recipe.toml --overwrite",
        "quantize a.onnx --bits 8 -o report.md --report report.md",
        "validate plain.onnx a.onnx --json a.bin",
        "validate a.onnx plain.onnx --json a.bin",
        "validate plain.onnx plain.onnx --json plain.onnx",
    ],
)
def test_what_is_read_is_never_written_over(run: Run, folder: Path, typed: str) -> None:
    os.link("a.bin", "hard.bin")
    os.symlink("a.bin", "link.bin")
    before = contents(folder)
    code, out, err = run(*typed.split())
    assert (code, out) == (2, ""), err
    assert contents(folder) == before


def test_the_same_from_python(folder: Path) -> None:
    before = contents(folder)
    for target in ("a.onnx", "a.bin"):
        with pytest.raises(RecipeError, match="belongs to the input"):
            quantize("a.onnx", target, overwrite=True)
    assert contents(folder) == before


def test_data_files_of_input_and_output_do_not_meet(run: Run, folder: Path) -> None:
    """small.onnx.data belongs to the input, and the output is small.onnx."""
    onnx.save(onnx.load("plain.onnx"), "in.onnx", save_as_external_data=True, location="small.onnx.data")
    before = contents(folder)
    output = ("-o", "small.onnx", "--save-as-external-data", "--overwrite")
    assert run("quantize", "in.onnx", *output, *FAST)[0] == 0
    assert contents(folder).items() > before.items()
    assert run("validate", "in.onnx", "small.onnx", "-q")[0] == 0


def test_reports_are_replaced_without_being_asked(run: Run, folder: Path) -> None:
    typed = ("inspect", "plain.onnx", "--json", "run.json", "--report", "run.md", "-q")
    assert run(*typed)[0] == run(*typed)[0] == 0


@pytest.mark.parametrize("position", ["model", "--data", "--labels", "-c", "--plan"])
def test_a_pipe_is_refused_instead_of_waiting_for_it(run: Run, folder: Path, position: str) -> None:
    os.mkfifo("pipe")
    typed = ("quantize", "pipe") if position == "model" else ("quantize", "plain.onnx", position, "pipe")
    code, _, err = run(*typed, "-o", "o.onnx")
    assert code in (2, 3)
    assert "pipe: a device or a pipe, not a regular file" in err


def test_external_data_that_is_a_pipe(run: Run, folder: Path) -> None:
    os.unlink("a.bin")
    os.mkfifo("a.bin")
    code, _, err = run("inspect", "a.onnx")
    assert code == 3
    assert "a.bin" in err


def test_a_report_that_cannot_be_written_leaves_no_model(run: Run, folder: Path, monkeypatch) -> None:
    before = contents(folder)
    real = cli.draft

    def full(target: Path, *arguments: object, **keywords: object):
        if target.suffix == ".md":
            raise RecipeError(f"{target}: cannot write: No space left on device")
        return real(target, *arguments, **keywords)

    monkeypatch.setattr(cli, "draft", full)
    code, _, err = run(
        "quantize", "plain.onnx", "-o", "o.onnx", "--report", "o.md", "--json", "o.json", *FAST
    )
    assert code == 2
    assert "No space left" in err
    assert contents(folder) == before


START = "import sys; from onnx_dfmpc_cli import main; sys.exit(main())"


def shell(line: str) -> tuple[int, str]:
    """A line for the shell, in which the command is $RUN."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "RUN": f"{sys.executable} -c '{START}'"}
    done = subprocess.run(["bash", "-c", line.replace("$RUN", env["RUN"])], capture_output=True, env=env)
    return done.returncode, done.stderr.decode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_standard_output_is_full(folder: Path) -> None:
    before = contents(folder)
    code, err = shell("$RUN quantize plain.onnx --bits 8 -o o.onnx > /dev/full")
    assert code == 2
    assert err.startswith("error: cannot write to standard output: No space left on device")
    assert contents(folder) == before


def test_standard_output_is_closed(folder: Path) -> None:
    assert shell("$RUN quantize plain.onnx --bits 8 -o o.onnx >&-") == (0, "")
    assert Path("o.onnx").exists()


def test_the_reader_of_a_pipe_goes_away(folder: Path) -> None:
    code, err = shell("set -o pipefail; $RUN inspect plain.onnx -v | true")
    assert (code, err) == (141, "")


def test_damaged_external_data(run: Run, folder: Path) -> None:
    for key, value in [
        ("offset", "abc"),
        ("offset", "-5"),
        ("length", "9" * 30),
        ("length", "x"),
        ("location", ""),
    ]:
        model = onnx.load("a.onnx", load_external_data=False)
        tensor = model.graph.initializer[0]
        for entry in list(tensor.external_data):
            if entry.key == key:
                tensor.external_data.remove(entry)
        tensor.external_data.add(key=key, value=value)
        Path("b.onnx").write_bytes(model.SerializeToString())
        code, _, err = run("inspect", "b.onnx", "-q")
        assert code == 3, err
        assert tensor.name in err


def test_small_tensor_with_too_much_data(run: Run, folder: Path) -> None:
    model = onnx.load("plain.onnx")
    tensor = next(one for one in model.graph.initializer if 100 < len(one.raw_data) < 1000)
    tensor.raw_data += b"\0" * 40
    onnx.save(model, "b.onnx")
    code, _, err = run("inspect", "b.onnx", "-q")
    assert code == 3
    assert tensor.name in err


def test_names_that_are_not_utf_8(run: Run, folder: Path) -> None:
    raw = Path("plain.onnx").read_bytes()
    for old in (b"/conv/Conv", b"blocks.0.conv1.weight", b"logits"):
        if old in raw:
            Path("b.onnx").write_bytes(raw.replace(old, b"\xff\xfe" + old[2:]))
            code, _, err = run("quantize", "b.onnx", "-o", "o.onnx", *FAST)
            assert code == 3
            assert "UTF-8" in err


@pytest.mark.slow
def test_faults(capsys: pytest.CaptureFixture[str]) -> None:
    """Every fault once; `python -m benchmarks.faults` tries each twenty times."""
    assert faults.main(["--trials", "1"]) == 0, capsys.readouterr().err
