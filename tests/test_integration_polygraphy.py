"""Polygraphy: the plugin as ``polygraphy run`` finds it, and outputs that are saved and compared."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import onnx_dfmpc
from onnx_dfmpc import Recipe, quantize

pytest.importorskip("polygraphy", reason="Polygraphy is not installed: make check-polygraphy")

from onnx_dfmpc.integrations.polygraphy import DfmpcSession

FAST = {"rounding": "nearest", "repair": "none"}
DISABLE = "session.disable_quant_qdq"


def polygraphy(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = shutil.which("polygraphy", path=str(Path(sys.executable).parent))
    assert command is not None
    return subprocess.run([command, *words], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(Path(__file__).parents[1] / "models" / "digits_resnet_bn.onnx", folder / "model.onnx")
    quantize(folder / "model.onnx", folder / "small.onnx", Recipe(bits=8, **FAST))
    quantize(folder / "model.onnx", folder / "fast.onnx", Recipe(bits=8, activations=8, **FAST))
    (folder / "recipe.toml").write_text('[target]\nuniform_bits = 8\n[defaults]\nrounding = "nearest"\n')
    return folder


@pytest.mark.parametrize(("name", "value"), [("small.onnx", "1"), ("fast.onnx", None)])
def test_the_session_has_the_option_that_fits(desk: Path, name: str, value: str | None) -> None:
    for model in (str(desk / name), (desk / name).read_bytes(), lambda: str(desk / name)):
        options = DfmpcSession(model)().get_session_options()
        if value is None:
            with pytest.raises(RuntimeError):
                options.get_session_config_entry(DISABLE)
        else:
            assert options.get_session_config_entry(DISABLE) == value


def test_outputs_saved_from_one_are_compared_with_the_other(desk: Path) -> None:
    """As the page says: float outputs saved, ours loaded against them; and a tolerance that cannot hold."""
    saved = polygraphy(desk, "run", "model.onnx", "--onnxrt", "--save-outputs", "float.json")
    assert saved.returncode == 0, saved.stderr
    check = ("run", "small.onnx", "--dfmpc", "--load-outputs", "float.json", "--atol")
    near = polygraphy(desk, *check, "0.5")
    assert near.returncode == 0, near.stdout + near.stderr
    assert "PASSED" in near.stdout
    far = polygraphy(desk, *check, "1e-9", "--rtol", "0")
    assert far.returncode == 1
    assert "FAILED" in far.stdout + far.stderr


def test_a_float_model_against_its_quantized_self(desk: Path) -> None:
    done = polygraphy(
        desk, "run", "model.onnx", "--onnxrt", "--dfmpc", "--dfmpc-recipe", "recipe.toml", "--atol", "0.5"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "onnx-dfmpc" in done.stdout
    assert "PASSED" in done.stdout


def test_the_script_that_polygraphy_generates_runs(desk: Path) -> None:
    done = polygraphy(desk, "run", "small.onnx", "--dfmpc", "--gen-script", "run.py")
    assert done.returncode == 0, done.stderr
    ran = subprocess.run([sys.executable, "run.py"], cwd=desk, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_bad_recipe_is_polygraphys_error_with_our_hint(desk: Path) -> None:
    (desk / "bad.toml").write_text("[target]\nbitz = 4\n")
    done = polygraphy(desk, "run", "model.onnx", "--dfmpc", "--dfmpc-recipe", "bad.toml")
    assert done.returncode == 1
    assert "unknown key 'bitz'" in done.stdout + done.stderr


def test_session_options_follow_the_model(desk: Path) -> None:
    assert onnx_dfmpc.session_options(desk / "small.onnx").get_session_config_entry(DISABLE) == "1"
    with pytest.raises(RuntimeError):
        onnx_dfmpc.session_options(desk / "fast.onnx").get_session_config_entry(DISABLE)
