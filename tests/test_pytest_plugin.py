"""The fixture ``onnx_accuracy`` in test runs of its own, and what the plugin costs those that do not use it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import parser

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ("-p", "pytest_onnx_dfmpc")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with two models and labelled data."""
    monkeypatch.syspath_prepend(str(ROOT))
    for name, factor in (("float", 1.0), ("small", 1.5)):
        model = parser.parse_model(f"""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 3] x) => (float[N, 3] scores) <float[3] w = {{{factor}, 1.0, 1.0}}> {{ scores = Mul(x,
            w) }}""")
        onnx.save(model, pytester.path / f"{name}.onnx")
    pytester.makepyfile(
        prepare="import numpy as np\nnp.savez('data.npz', x=np.eye(3, dtype=np.float32), labels=np.arange(3))"
    )
    pytester.runpython("prepare.py")
    return pytester


def test_gates_that_hold(project: pytest.Pytester) -> None:
    project.makepyfile("""
        def test_small(onnx_accuracy):
            report = onnx_accuracy("float.onnx", "small.onnx", "data.npz", min_cosine=0.9, max_top1_drop=0.0)
            assert report.labelled == 3
    """)
    project.runpytest(*PLUGIN).assert_outcomes(passed=1)


def test_a_gate_that_fails_is_told_without_a_traceback(project: pytest.Pytester) -> None:
    project.makepyfile("""
        from pathlib import Path
        def test_small(onnx_accuracy):
            onnx_accuracy(Path("float.onnx"), Path("small.onnx"), "data.npz", min_cosine=0.999, min_sqnr_db=3)
    """)
    result = project.runpytest(*PLUGIN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([
        "small.onnx is too far from float.onnx (data.npz, 3 samples)",
        "FAILED min_cosine: 0.9*, limit 0.999",
        "PASSED min_sqnr_db: *, limit 3",
        "to repeat: onnx-dfmpc validate float.onnx small.onnx --data data.npz --min-cosine 0.999 --min-sqnr-db 3",
    ])  # fmt: skip
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_onnx_dfmpc.py*")


def test_a_mistake_is_one_line_and_a_hint(project: pytest.Pytester) -> None:
    project.makepyfile("""
        def test_names(onnx_accuracy):
            onnx_accuracy("float.onnx", "small.onnx", "data.npz", min_cosin=0.9)
        def test_arrays(onnx_accuracy):
            import numpy as np
            onnx_accuracy("float.onnx", "small.onnx", np.eye(3, dtype=np.float32), min_cosine=1.0)
    """)
    result = project.runpytest(*PLUGIN)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["*min_cosin*", "hint: did you mean min_cosine?", "*FAILED min_cosine: *, limit 1"]
    )
    result.stdout.no_fnmatch_line("to repeat:*")
    result.stdout.no_fnmatch_line("*another exception*")


def test_other_test_runs_pay_nothing(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile("""
        import sys
        def test_nothing_is_imported():
            assert "pytest_onnx_dfmpc" in sys.modules
            assert not {"onnx_dfmpc", "onnx", "onnxruntime", "numpy"} & set(sys.modules)
    """)
    result = pytester.runpytest_subprocess(
        *PLUGIN, "-W", "error", "-p", "no:hypothesispytest", "-p", "no:cacheprovider"
    )
    result.assert_outcomes(passed=1)
