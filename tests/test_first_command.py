"""What somebody types first: no output named, a ratio, many models at once, a narrow or a wide terminal."""

import shutil
from pathlib import Path

import onnx
import pytest

from onnx_dfmpc import Recipe, plan, quantize
from onnx_dfmpc.errors import RecipeError, UnsupportedError
from tests.conftest import Run

FAST = ("--bits", 4, "-c", "fast.toml", "--samples", 8)


@pytest.fixture
def desk(digits_bn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(digits_bn, "model.onnx")
    Path("fast.toml").write_text('[defaults]\nrounding = "nearest"\nrepair = "none"\n')
    return tmp_path


def test_without_a_name_it_goes_beside_the_model(desk: Path, run: Run) -> None:
    code, out, _ = run("quantize", "model.onnx", *FAST)
    assert code == 0
    assert out.splitlines()[-1] == "Written: model.quantized.onnx"
    assert (desk / "model.quantized.onnx").stat().st_size < (desk / "model.onnx").stat().st_size / 3
    code, _, err = run("quantize", "model.onnx", *FAST)
    assert code == 2
    assert "model.quantized.onnx: exists already" in err
    assert run("quantize", "model.onnx", *FAST, "--overwrite")[0] == 0
    assert run("quantize", "model.onnx", *FAST, "--dry-run")[0] == 0


def test_a_model_that_is_not_there_is_said_first(desk: Path, run: Run) -> None:
    for name in ("no/such.onnx", "no.onnx"):
        code, _, err = run("quantize", name)
        assert code == 3
        assert f"{name}: no such file" in err


def test_many_models_have_a_line_each(desk: Path, run: Run, digits_folded: Path) -> None:
    (desk / "zoo" / "deep").mkdir(parents=True)
    shutil.copy("model.onnx", "zoo/a.onnx")
    shutil.copy(digits_folded, "zoo/deep/b.onnx")
    (desk / "zoo" / "bad.onnx").write_text("no model")
    code, out, err = run("quantize", "zoo", *FAST)
    assert code == 3
    assert [line.split(":")[0] for line in out.splitlines()] == ["zoo/a.onnx", "zoo/deep/b.onnx"]
    assert all(f"written: {line.split(':')[0][:-5]}.quantized.onnx" in line for line in out.splitlines())
    assert "zoo/bad.onnx: not an ONNX model" in err
    code, out, _ = run("quantize", "zoo/*.onnx", "zoo/deep", *FAST, "-o", "small")  # not what was just made
    assert sorted(path.name for path in (desk / "small").iterdir()) == ["a.onnx", "b.onnx"]
    code, _, err = run("quantize", "zoo", *FAST, "--json", "run.json")
    assert code == 2
    assert "onnx-dfmpc sweep" in err


def test_a_ratio_is_a_size(desk: Path, run: Run) -> None:
    before = (desk / "model.onnx").stat().st_size
    code, _, _ = run("quantize", "model.onnx", "-o", "small.onnx", "--target-ratio", 6, "-c", "fast.toml")
    assert code == 0
    assert (desk / "small.onnx").stat().st_size <= before / 6
    common = {"rounding": "nearest", "repair": "none"}
    asked = quantize("model.onnx", recipe=Recipe(target_size=int(before / 6), **common), validated=False)
    assert onnx.load("small.onnx").graph == asked.model.graph


def test_a_ratio_counts_external_data(desk: Path) -> None:
    onnx.save(onnx.load("model.onnx"), "external.onnx", save_as_external_data=True, location="external.data")
    total = Path("external.onnx").stat().st_size + Path("external.data").stat().st_size
    found = plan("external.onnx", Recipe(target_ratio=6, rounding="nearest", repair="none"))
    assert found.recipe["target_size"] == int(total / 6)


def test_a_ratio_that_cannot_be(desk: Path) -> None:
    with pytest.raises(RecipeError, match="target_ratio = 1: expected a number above 1"):
        Recipe(target_ratio=1)
    with pytest.raises(RecipeError, match="exclude each other"):
        Recipe(target_ratio=8, bits=4)
    with pytest.raises(UnsupportedError, match="cannot be met"):
        quantize("model.onnx", recipe=Recipe(target_ratio=100))


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_terminals_of_every_width(
    columns: int, desk: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = run("quantize", "model.onnx", *FAST, "--dry-run")
    assert code == 0
    copied = [
        line for line in out.splitlines() if line.startswith("onnx-dfmpc ")
    ]  # on one line, to be copied
    lines = [line for line in out.splitlines() if line not in copied]
    assert max(map(len, lines)) <= columns
    assert any("times smaller" in line or "smaller" in line for line in lines)
    assert "…" not in out
    for command in ([], ["quantize"]):
        code, out, _ = run(*command, "--help")
        assert max(map(len, out.splitlines())) <= max(columns, 68)  # argparse breaks no choices
