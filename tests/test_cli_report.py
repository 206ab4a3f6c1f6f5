"""``onnx-dfmpc report`` and ``--report``, from flags to files."""

from __future__ import annotations

import json
import shlex
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from onnx_dfmpc.cli.flags import PROGRAM
from onnx_dfmpc.pipeline import run as pipeline
from onnx_dfmpc.report.renderers import render
from tests.conftest import Run
from tests.documents import quantized

FAST = ("-c", Path(__file__).with_name("fast.toml"), "--samples", 4)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(quantized()), encoding="utf-8")
    return path


def test_reports_of_a_run_are_those_of_its_document(run: Run, digits_bn: Path, tmp_path: Path) -> None:
    document, page, text = tmp_path / "run.json", tmp_path / "run.html", tmp_path / "run.md"
    shown = ["--min-cosine", 0.1, "--per-layer", "--latency"]
    argv = [
        "quantize",
        digits_bn,
        "--dry-run",
        *FAST,
        *shown,
        "--json",
        document,
        "--report",
        page,
        "--report",
        text,
    ]
    code, _, err = run(*argv)
    assert (code, err) == (0, "")
    for made in (page, text):
        again = tmp_path / f"again{made.suffix}"
        assert run("report", document, "-o", again) == (0, f"{document} -> {again}\n", "")
        assert again.read_bytes() == made.read_bytes()
    assert run("report", document, "--format", "markdown") == (0, text.read_text(encoding="utf-8"), "")
    written = text.read_text(encoding="utf-8")
    assert all(f"### {title}\n" in written for title in ("Validation", "Worst layers", "Latency"))
    assert "\n--set '^" in written
    assert json.loads(document.read_text(encoding="utf-8"))["command_line"] == shlex.join(
        [PROGRAM, *map(str, argv)]
    )


def test_a_gate_that_fails_leaves_its_report(run: Run, digits_bn: Path, tmp_path: Path) -> None:
    text = tmp_path / "run.md"
    code, _, _ = run(
        "quantize", digits_bn, "-o", tmp_path / "small.onnx", *FAST, "--min-sqnr-db", 90, "--report", text
    )
    assert code == 1
    assert "**❌ Failed.** min\\_sqnr\\_db = 90 missed." in text.read_text(encoding="utf-8")
    assert not (tmp_path / "small.onnx").exists()


def test_plans_and_validations_have_reports_too(run: Run, digits_bn: Path, tmp_path: Path) -> None:
    plan, text = tmp_path / "plan.json", tmp_path / "report.md"
    assert run("plan", digits_bn, "-o", plan, "--bits", 4, "-q", "--report", text)[0] == 0
    assert "**Planned.**" in text.read_text(encoding="utf-8")
    assert "Planned" in run("report", plan, "--format", "markdown")[1]
    assert "command_line" in json.loads(plan.read_text(encoding="utf-8"))
    assert run("validate", digits_bn, digits_bn, "--samples", 4, "-q", "--report", text)[0] == 0
    assert "the outputs are the same" in text.read_text(encoding="utf-8")


def test_terminal_and_two_runs(run: Run, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(quantized((8, 3, 3, 4, 6, 3, 8))), encoding="utf-8")
    code, out, err = run("report", saved)
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines() if not line.startswith("--set ")) <= 80
    assert "PASSED: The gate holds." in out
    code, out, err = run("report", saved, other)
    assert (code, err) == (0, "")
    assert "2 of 7 layers" in out
    page = tmp_path / "diff.html"
    assert run("report", saved, other, "-o", page, "-q") == (0, "", "")
    assert "B against A" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["report"], "RUN.json"),
        (["report", "no.json"], "no.json: no such file"),
        (["report", "MODEL"], "not a JSON file"),
        (["report", "RUN", "RUN", "RUN"], "3 runs"),
        (["report", "RUN", "-o", "OUT.pdf"], ".pdf"),
        (["report", "RUN", "-o", "OUT"], "without a suffix"),
        (["report", "RUN", "-o", "RUN"], "another file"),
        (["report", "RUN", "-o", "no/such/run.md"], "no directory"),
        (["report", "RUN", "--format", "htm"], "did you mean html?"),
        (["report", "RUN", "--json", "x.json"], "unknown flag --json"),
        (["validate", "MODEL", "MODEL", "--report", "OUT.json"], ".json"),
        (["validate", "MODEL", "MODEL", "--report", "OUT.md", "--report", "OUT.md"], "another file"),
        (["quantize", "MODEL", "-o", "OUT.md", "--report", "OUT.md"], "another file"),
        (["quantize", "MODEL", "--dry-run", "--report", "no/such/run.md"], "no directory"),
        (["inspect", "MODEL", "--report", "OUT.json"], ".json"),
    ],
)
def test_bad_usage_is_one_line_and_a_hint(
    run: Run,
    saved: Path,
    digits_bn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(pipeline, "carry_out", lambda *_, **__: pytest.fail("too late"))
    before = set(tmp_path.iterdir())
    code, out, err = run(
        *(
            word.replace("RUN", str(saved))
            .replace("MODEL", str(digits_bn))
            .replace("OUT", str(tmp_path / "out"))
            for word in argv
        )
    )
    assert (code, out) == (2, "")
    assert words in err
    assert [line.split(":")[0] for line in err.splitlines()] in (["error"], ["error", "hint"])
    assert set(tmp_path.iterdir()) == before


def test_a_missing_extra_is_named_before_the_work_is_done(
    run: Run, saved: Path, digits_bn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = util.find_spec
    missing: Any = lambda name, *rest: None if name in ("jinja2", "vl_convert") else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(util, "find_spec", missing)
    monkeypatch.setattr(pipeline, "carry_out", lambda *_, **__: pytest.fail("too late"))
    page = tmp_path / "run.html"
    for argv in (
        ["report", saved, "-o", page],
        ["report", saved, "--format", "html"],
        ["quantize", digits_bn, "--dry-run", "--report", page],
    ):
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert "Jinja2 and vl-convert-python" in err
        assert "pip install 'onnx-dfmpc[report]'" in err
    assert run("report", saved, "-o", tmp_path / "run.md", "-q") == (0, "", "")


def test_without_the_extra_nothing_of_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jinja2", "vl_convert", "markupsafe"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "## net" in render([quantized()], "markdown")


def test_what_there_is_to_quantize_as_a_report(run: Run, digits_bn: Path, tmp_path: Path) -> None:
    text = tmp_path / "inspected.md"
    assert run("inspect", digits_bn, "-q", "--report", text) == (0, "", "")
    assert "/fc/Gemm" in text.read_text(encoding="utf-8")
