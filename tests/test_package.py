"""What is installed is what the project says: metadata, public names, entry points, the content of the wheel."""

import pkgutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import onnx_dfmpc
from tests.conftest import ROOT

PUBLIC = {
    "DfmpcError",
    "__version__",
    "QuantPlan",
    "QuantizeResult",
    "Recipe",
    "ValidationReport",
    "apply",
    "load_plan",
    "inspect",
    "plan",
    "quantize",
    "save_plan",
    "session_options",
    "validate",
}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_public_names_are_those_of_the_contract() -> None:
    assert {*onnx_dfmpc.__all__, "__version__"} == PUBLIC
    assert all(hasattr(onnx_dfmpc, name) for name in PUBLIC)


def test_core_dependencies_are_few(project: dict[str, Any]) -> None:
    names = {requirement.split(">=")[0] for requirement in project["dependencies"]}
    assert names == {"numpy", "onnx", "onnx-graphsurgeon", "onnxruntime", "rich"}


def test_console_script_is_the_command_line(project: dict[str, Any]) -> None:
    module, function = project["scripts"]["onnx-dfmpc"].split(":")
    assert callable(getattr(import_module(module), function))


def test_importing_the_package_needs_core_dependencies_only() -> None:
    heavy = "{'torch', 'sklearn', 'scipy', 'PIL', 'pytest', 'hypothesis'}"
    done = python("-c", f"import sys, onnx_dfmpc.cli; print(sorted({heavy} & set(sys.modules)))")
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_module_runs_as_a_program() -> None:
    done = python("-m", "onnx_dfmpc", "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("onnx-dfmpc ")


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("3", "3")])
def test_the_command_runs_on_one_thread_of_blas_unless_told(given: str | None, used: str) -> None:
    program = f"""
import os, sys
os.environ.pop("OMP_NUM_THREADS", None)
os.environ.update({{"OMP_NUM_THREADS": {given!r}}} if {given!r} else {{}})
import onnx_dfmpc_cli
assert "numpy" not in sys.modules
sys.argv = ["onnx-dfmpc", "--version"]
code = onnx_dfmpc_cli.main()
print(code, os.environ["OMP_NUM_THREADS"], "numpy" in sys.modules)
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"0 {used} True"


def test_wheel_holds_the_package_and_nothing_else(project: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("build", reason="the dev extra is not installed")
    pytest.importorskip("hatchling", reason="the dev extra is not installed")
    done = python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"onnx_dfmpc-{project['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        files = {Path(name) for name in archive.namelist()}
    beside = {"onnx_dfmpc_cli.py", "pytest_onnx_dfmpc.py"}
    shared = {path for path in files if path.parts[0].endswith(".data")}
    assert {path.parts[2] for path in shared} == {"share"}  # completion and the manual page
    files -= shared
    assert {path.parts[0] for path in files} == {
        "onnx_dfmpc",
        f"onnx_dfmpc-{project['version']}.dist-info",
    } | beside
    package = [path for path in (ROOT / "onnx_dfmpc").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    sources = {path.relative_to(ROOT) for path in package} | set(map(Path, beside))
    assert {path for path in files if not path.parts[0].endswith(".dist-info")} == sources
    assert {Path("onnx_dfmpc/py.typed"), Path("onnx_dfmpc/report/templates/page.html.j2")} <= files
    assert any(path.name == "LICENSE" for path in files)


def test_no_module_has_the_name_of_a_public_function() -> None:
    """Else the module would take the place of the function as soon as somebody imports it."""
    modules = {info.name for info in pkgutil.iter_modules(onnx_dfmpc.__path__)}
    assert not modules & PUBLIC
