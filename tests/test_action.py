"""The composite GitHub Action: its steps as the runner would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def moved(digits_bn: Path, tmp_path: Path) -> Path:
    """The shipped network with one bias shifted: another model of the same inputs and outputs."""
    proto = onnx.load(digits_bn)
    weight = next(tensor for tensor in proto.graph.initializer if numpy_helper.to_array(tensor).ndim == 4)
    weight.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(weight), weight.name))
    target = tmp_path / "moved model.onnx"
    onnx.save(proto, target)
    return target


def run(action: dict[str, Any], directory: Path, **inputs: object) -> tuple[int, str, dict[str, str], str]:
    """Exit code, step summary, outputs and standard error of the step that validates."""
    step = next(step for step in action["runs"]["steps"] if step.get("id") == "validate")
    given = {
        name: str(inputs.get(name.replace("-", "_"), entry.get("default", "")))
        for name, entry in action["inputs"].items()
    }
    env = {
        key: given[value.removeprefix("${{ inputs.").removesuffix(" }}")]
        for key, value in step["env"].items()
    }
    summary, outputs = directory / "summary.md", directory / "outputs.txt"
    env |= {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(outputs), "RUNNER_TEMP": str(directory)}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    script = directory / "step.sh"
    script.write_text(step["run"], encoding="utf-8")
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    done = subprocess.run(
        command, env=os.environ | env, capture_output=True, text=True, check=False, cwd=directory
    )
    said = (
        dict(line.split("=", 1) for line in outputs.read_text(encoding="utf-8").splitlines())
        if outputs.exists()
        else {}
    )
    return done.returncode, summary.read_text(encoding="utf-8") if summary.exists() else "", said, done.stderr


def test_a_gate_that_holds(action: dict[str, Any], digits_bn: Path, moved: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    args = "--samples 4 --min-cosine 0.5"
    code, summary, outputs, err = run(
        action, tmp_path, float_model=digits_bn, quantized_model=moved, args=args, html=page
    )
    assert (code, err, outputs["exit-code"]) == (0, "", "0")
    assert "**✅ Passed.**" in summary
    assert Path(outputs["report"]).read_text(encoding="utf-8") == summary
    assert Path(outputs["json"]).is_file()
    assert page.is_file()


def test_a_gate_that_fails(action: dict[str, Any], digits_bn: Path, moved: Path, tmp_path: Path) -> None:
    args = "--samples 4 --min-sqnr-db '200'"
    code, summary, outputs, err = run(
        action, tmp_path, float_model=digits_bn, quantized_model=moved, args=args
    )
    assert (code, outputs["exit-code"]) == (1, "1")
    assert "**❌ Failed.**" in summary
    assert "min_sqnr_db = 200 missed" in err


@pytest.mark.parametrize(("args", "code"), [("--smaples 4", 2), ("--samples 4", 3)])
def test_what_cannot_be_compared(
    action: dict[str, Any], digits_bn: Path, tmp_path: Path, args: str, code: int
) -> None:
    found, summary, outputs, err = run(
        action, tmp_path, float_model=digits_bn, quantized_model="no such.onnx", args=args
    )
    assert (found, outputs) == (code, {"exit-code": str(code)})
    assert err.startswith("error: ")
    assert err.splitlines()[0] in summary


def test_arguments_that_cannot_be_read_do_not_drop_a_gate(
    action: dict[str, Any], digits_bn: Path, moved: Path, tmp_path: Path
) -> None:
    code, _, outputs, err = run(
        action, tmp_path, float_model=digits_bn, quantized_model=moved, args="--min-sqnr-db 200 'open"
    )
    assert (code, outputs) == (2, {"exit-code": "2"})
    assert "No closing quotation" in err


def test_inputs_are_never_pasted_into_a_script(action: dict[str, Any]) -> None:
    for step in action["runs"]["steps"]:
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"


@pytest.mark.parametrize(("html", "extras"), [("", "[images]"), ("page.html", "[images,report]")])
def test_what_is_installed_reads_images(
    action: dict[str, Any], html: str, extras: str, tmp_path: Path
) -> None:
    step = next(step for step in action["runs"]["steps"] if "pip install" in step["run"])
    script = 'python() { echo "${@: -1}"; }\n' + step["run"]
    env = os.environ | {"HTML": html, "GITHUB_ACTION_PATH": "/action"}
    done = subprocess.run(
        ["bash", "-ec", script], env=env, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == f"/action{extras}\n"
