"""Microsoft Olive: ``olive run`` with our pass beside its own, offline, on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnx_dfmpc import Recipe, quantize

pytest.importorskip("olive", reason="Olive is not installed: make check-olive")

ENVIRONMENT = os.environ | {"OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
CPU = {
    "type": "LocalSystem",
    "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
}
FAST: dict[str, Any] = {"bits": 4, "rounding": "nearest", "repair": "none"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("olive") / "packages.json"
    command = [sys.executable, "-m", "onnx_dfmpc.integrations.olive"]
    path.write_text(
        subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    )
    return path


def run(folder: Path, packages: Path, *passes: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": "model.onnx"},
        "systems": {"local": CPU},
        "target": "local",
        "passes": {str(number): one for number, one in enumerate(passes)},
        "output_dir": "out",
        "cache_dir": "cache",
    }
    (folder / "workflow.json").write_text(json.dumps(workflow))
    command = shutil.which("olive", path=str(Path(sys.executable).parent))
    assert command is not None
    words = [command, "run", "--config", "workflow.json", "--package-config", str(packages)]
    return subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def test_our_pass_runs_before_one_of_olives(
    packages: Path, digits_bn: Path, digits_data: Path, tmp_path: Path
) -> None:
    shutil.copy(digits_bn, tmp_path / "model.onnx")
    done = run(
        tmp_path,
        packages,
        {"type": "DfmpcQuantization", **FAST, "set": {"conv2": 6}},
        {"type": "AddOliveMetadata", "graph_name": "digits"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (small,) = (tmp_path / "out").rglob("*.onnx")
    proto = onnx.load(small)
    assert proto.graph.name == "digits"  # theirs
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert set(json.loads(metadata["onnx_dfmpc.bits"]).values()) == {4, 6, 8}  # and ours
    alone = quantize(digits_bn, tmp_path / "alone.onnx", Recipe(**FAST, set={"conv2": 6}), validated=False)
    assert alone.output is not None
    x = np.load(digits_data)["input"][:16]
    np.testing.assert_array_equal(outputs(small, x), outputs(alone.output, x))
    assert small.stat().st_size < digits_bn.stat().st_size / 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bits": 9}, "bits = 9: expected 1.58, 2.58, or an integer from 2 to 8"),
        ({**FAST, "min_sqnr_db": 90}, "min_sqnr_db"),
    ],
)
def test_what_fails_says_why_and_leaves_no_model(
    config: dict[str, Any], message: str, packages: Path, digits_bn: Path, tmp_path: Path
) -> None:
    shutil.copy(digits_bn, tmp_path / "model.onnx")
    done = run(tmp_path, packages, {"type": "DfmpcQuantization", **config})
    assert message in done.stdout + done.stderr
    assert not [path for path in (tmp_path / "out").rglob("*.onnx") if "input" not in str(path)]
