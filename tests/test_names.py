"""Names from hostile files do nothing to a terminal, a page or a document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from onnx_dfmpc.errors import DfmpcError, printable

Run = Callable[..., tuple[int, str, str]]
HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\u202egpj.\x7f\x00<script>"
ACTIVE = "\x1b\x07\x9b\u202e\x7f\x00\r"


@pytest.fixture
def hostile(digits_bn: Path, tmp_path: Path) -> Path:
    """The digits network with hostile names wherever there is one."""
    model = onnx.load(digits_bn)
    graph, names = model.graph, {}

    def rename(name: str) -> str:
        return names.setdefault(name, f"{HOSTILE}{len(names)}") if name else name

    for node in graph.node:
        node.name = rename(node.name)
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = rename(value.name)
    graph.name = model.producer_name = model.doc_string = HOSTILE
    path = tmp_path / f"{'hostile'}\x1b[31m.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("command", ["inspect", "plan", "quantize", "validate"])
def test_hostile_names(run: Run, hostile: Path, tmp_path: Path, command: str) -> None:
    flags: list[object] = ["--json", tmp_path / "run.json", "--report", tmp_path / "run.md", "-v"]
    flags += ["--report", tmp_path / "run.html"]
    if command == "quantize":
        flags += ["-o", tmp_path / "small.onnx", "--bits", 8]
    models = [hostile, hostile] if command == "validate" else [hostile]
    code, out, err = run(command, *models, *flags)
    assert code == 0, err
    for text in (out, *((tmp_path / f"run.{kind}").read_text(encoding="utf-8") for kind in ("md", "json"))):
        assert not set(text) & set(ACTIVE)
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    # The library that draws the charts has some of these characters in its tables.
    assert "\x1b" not in page
    assert f"{HOSTILE[-8:]}0" not in page
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["model"]["path"] == str(hostile)


def test_hostile_names_in_errors(run: Run, hostile: Path, tmp_path: Path) -> None:
    model = onnx.load(hostile)
    del model.graph.initializer[3:]
    onnx.save(model, hostile)
    for typed in (("inspect", hostile), ("inspect", tmp_path / HOSTILE[:-9]), ("inspect", hostile, HOSTILE)):
        code, out, err = run(*typed)
        assert code in (2, 3)
        assert out == ""
        assert not set(err) & set(ACTIVE)


def test_what_is_seen_stays() -> None:
    for text in ("", "conv/1:0", "größe → 層", "two\nlines"):
        assert printable(text) == str(DfmpcError(text)) == text
