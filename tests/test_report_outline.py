"""Reports from documents alone: what is refused, what an outline says, how Markdown and the terminal say it,
and two runs compared.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.report import renderers
from onnx_dfmpc.report.document import parse, read_document
from onnx_dfmpc.report.markdown import markdown
from onnx_dfmpc.report.outline import Chart, Code, Line, Outline, Table
from onnx_dfmpc.report.renderers import RENDERERS, Renderer, format_of, render
from onnx_dfmpc.report.terminal import terminal
from tests.documents import LONG, NASTY, Json, quantized, validation


def run_outline(document: Json) -> Outline:
    return renderers.outline([document])


def diff_outline(first: Json, second: Json, names: tuple[str, str] = ("A", "B")) -> Outline:
    return renderers.outline([first, second], names)


def shown(outline: Outline, width: int = 80, *, wide: bool = False) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        return terminal(outline, wide)


def tables(outline: Outline, section: str) -> list[Table]:
    return [
        block
        for part in outline.sections
        if part.title == section
        for block in part.blocks
        if isinstance(block, Table)
    ]


def column(table: Table, title: str) -> list[str]:
    position = [column.title for column in table.columns].index(title)
    return [row[position].text for row in table.rows]


# ------------------------------------------------------------------------------------------------------------------------
# reading


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document."""
    if prefix:
        yield prefix
    for key, item in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from paths(item, (*prefix, key))


def refusal(document: Json) -> str:
    try:
        parse(document, "run.json")
    except RecipeError as error:
        return str(error)
    return ""


PLACES = list(paths(quantized()))
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@given(st.sampled_from(PLACES), ANYTHING | st.just(...))
@settings(max_examples=100)
def test_a_document_is_refused_or_shown(place: tuple[Any, ...], value: Any) -> None:
    """Whatever stands in one place, or is missing there: a line that says where, or a report."""
    document = copy.deepcopy(quantized())
    inner: Any = document
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    complaint = refusal(document)
    if complaint:
        assert complaint.startswith("run.json: ")
        assert "\n" not in complaint
        return
    for outline in (
        run_outline(document),
        diff_outline(document, quantized()),
        diff_outline(quantized(), document),
    ):
        assert markdown(outline)
        assert shown(outline)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a JSON file"),
        (b"\xff\xfe\x00", "not a JSON file"),
        (b"[1, 2]", "not a document of this tool"),
        (b'{"schema": 2, "rows": []}', "not a document of this tool"),
        (b'{"schema": 1, "command": "quantize"}', "schema = 1: expected 2"),
        (b'{"schema": 2, "command": "report"}', "command = 'report': expected one of inspect, plan"),
        (b'{"schema": 2, "command": "quantize", "layers": [{"bits": 2}]}', "layers, row 1: there is no name"),
        (b'{"schema": 2, "command": "quantize", "layers": 2}', "layers = 2: expected a list"),
        (
            json.dumps(quantized(validation=validation() | {"top1_interval": [0.1]})).encode(),
            "validation: top1_interval = [0.1]: expected a list of 2",
        ),
        (
            b'{"schema": 2, "command": "quantize", "layers": [{"name": "a", "bits": "2"}]}',
            "layers, row 1 (a): bits = '2': expected 1.58, 2.58, or an integer from 2 to 8, or null",
        ),
        (
            b'{"schema": 2, "command": "quantize", "layers": [{"name": "a", "shape": [1, 1e3]}]}',
            "layers, row 1 (a): shape[2] = 1000.0: expected an integer",
        ),
        (
            b'{"schema": 2, "command": "quantize", "seconds": {"load": "long"}}',
            "seconds.load = 'long': expected a number",
        ),
        (b'{"schema": 2, "command": "quantize", "model": {"bytes": NaN}}', "NaN"),
        (b"[" * 100_000, "not a JSON file"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=re.escape(words)) as caught:
        read_document(path)
    assert str(path) in str(caught.value)


def test_a_document_survives_reading(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(quantized()), encoding="utf-8")
    assert read_document(path) == quantized()


# ------------------------------------------------------------------------------------------------------------------------
# one run


def test_the_first_things_to_see() -> None:
    outline = run_outline(quantized())
    values = {figure.label: figure.value for figure in outline.figures}
    size = quantized()["output"]["bytes"]
    assert values == {
        "File size": f"{size / 1000:.1f} kB",
        "Bits per weight": "5.00",
        "Top-1": "90.0 %",
        "Output SQNR": "17.5 dB",
    }
    assert (outline.title, outline.verdict.word, outline.verdict.tone) == ("net", "Passed", "good")
    assert "opset 17 → 25" in outline.subtitle


@pytest.mark.parametrize(
    ("changes", "word", "tone"),
    [
        ({"validation": validation(drop=0.05)}, "Failed", "bad"),
        ({"validation": validation() | {"failures": ["NaN in output 'y'"]}}, "Failed", "bad"),
        ({"validation": validation() | {"gates": []}}, "Measured", "muted"),
        ({"validation": validation() | {"gates": [], "synthetic": True}}, "Tried", "muted"),
        ({"validation": None}, "Not validated", "warn"),
        ({"validation": None, "command": "plan"}, "Planned", "muted"),
    ],
)
def test_verdicts(changes: Json, word: str, tone: str) -> None:
    verdict = run_outline(quantized(**changes)).verdict
    assert (verdict.word, verdict.tone) == (word, tone)


def test_synthetic_inputs_are_no_accuracy() -> None:
    """They are never called measured, whatever the report shows of them."""
    outline = run_outline(quantized(validation=tried()))
    assert outline.verdict.text == "The gate holds on 200 synthetic inputs: a sanity check, not accuracy."
    figures = {figure.label: figure.value for figure in outline.figures}
    assert figures["SQNR on synthetic inputs"] == "17.5 dB"
    assert "Output SQNR" not in figures
    assert not any("top-1" in label for label in figures)
    assert "Validation on synthetic inputs" in [part.title for part in outline.sections]
    (table,) = tables(outline, "Layers")
    assert "synthetic SQNR, dB" in [column.title for column in table.columns]
    drawn = json.dumps(
        [asdict(block) for part in outline.sections for block in part.blocks if isinstance(block, Chart)]
    )
    assert "easured" not in drawn.replace("measured_sqnr_db", "")
    assert "on synthetic inputs" in drawn


def tried() -> Json:
    """Validation on synthetic inputs."""
    found = validation()
    classes = dict.fromkeys(("top1_agreement", "top5_agreement", "kl"))
    found |= {key: None for key in found if key.startswith("top")}
    outputs = [output | classes for output in found["outputs"]]
    return found | {"synthetic": True, "labelled": 0, "outputs": outputs}


def test_a_prediction_has_its_interval() -> None:
    outline = run_outline(quantized())
    notes = {figure.label: figure.note for figure in outline.figures}
    assert notes["Output SQNR"] == "worst output, 18.2 dB predicted, 12.5 to 22.0"
    for changes in ({"validation": None}, {"validation": None, "command": "plan"}, {"validation": tried()}):
        figures = {f.label: f for f in run_outline(quantized(**changes)).figures}
        assert figures["Predicted SQNR"].value == "18.2 dB"
        assert figures["Predicted SQNR"].note == "12.5 to 22.0: worst output, on 2 kinds of inputs"
    assert "from 5.8 dB below to 3.8 dB above" in " ".join(shown(outline).split())
    (table,) = tables(outline, "What the inputs may be")
    assert column(table, "inputs") == [NASTY, "1/f images in -0.6 to 0.6"]
    assert column(table, "weight") == ["75 %", "25 %"]
    assert column(table, "predicted SQNR, dB") == ["22.0", "12.5"]


def test_documents_without_an_interval_have_reports() -> None:
    """Those of versions that did not have it."""
    predicted = {"bytes": 9000, "sqnr_db": 18.25, "source": "probe"}
    outline = run_outline(quantized(predicted=predicted))
    notes = {figure.label: figure.note for figure in outline.figures}
    assert notes["Output SQNR"] == "worst output, 18.2 dB predicted (on synthetic inputs)"
    assert "What the inputs may be" not in [part.title for part in outline.sections]


def test_synthetic_and_real_inputs_are_not_compared() -> None:
    real, synthetic = quantized(), quantized(validation=tried() | {"sqnr_db": 15.0})
    assert "dB" not in diff_outline(real, synthetic).verdict.text
    better = diff_outline(synthetic, quantized(validation=tried()))
    assert "+2.5 dB of output SQNR on synthetic inputs" in better.verdict.text


def test_worst_layers_come_with_the_line_to_paste() -> None:
    outline = run_outline(quantized())
    codes = [
        block.text
        for part in outline.sections
        if part.title == "Worst layers"
        for block in part.blocks
        if isinstance(block, Code)
    ]
    assert [shlex.split(code) for code in codes] == [["--set", f"^{NASTY}$=6"]]
    (table,) = tables(outline, "Worst layers")
    assert column(table, "share of noise") == ["41.0 %", "41.0 %"]


def test_without_classes_the_worst_cosine_is_what_counts() -> None:
    unknown = dict.fromkeys(("top1_float", "top1_quantized", "top1_agreement", "default_run"))
    outline = run_outline(quantized(validation=validation() | unknown))
    assert ("Cosine with float", "0.99120") in [(figure.label, figure.value) for figure in outline.figures]
    assert "Default session options" not in shown(outline)


def test_every_layer_is_there_with_its_numbers() -> None:
    (table,) = tables(run_outline(quantized()), "Layers")
    layers = quantized()["layers"]
    assert column(table, "layer") == [row["name"] for row in layers]
    assert column(table, "bits") == [str(row["bits"]) for row in layers]
    assert column(table, "alone, dB") == [f"{-10 * math.log10(row['predicted_noise']):.1f}" for row in layers]
    assert column(table, "why") == [row["reason"] for row in layers]


def test_nothing_is_made_up_where_nothing_is_known() -> None:
    bare = {
        "schema": 2,
        "command": "validate",
        "model": {"path": "net.onnx", "sha256": "0" * 64, "bytes": 5, "opset": 17},
    }
    outline = run_outline(bare)
    assert outline.figures == ()
    assert [part.title for part in outline.sections] == ["Reproduce"]
    assert not [block for part in outline.sections for block in part.blocks if isinstance(block, Chart)]


def test_what_it_was_made_with() -> None:
    (part,) = (part for part in run_outline(quantized()).sections if part.title == "Reproduce")
    lines = [block.text for block in part.blocks if isinstance(block, Line)]
    assert lines == [
        "Time: load 250 ms, quantize 1.5 s.",
        "Made with onnx-dfmpc 0.2.0, python 3.11.9, onnxruntime 1.32.0, platform Linux-x86_64.",
    ]
    changed = tables(run_outline(quantized()), "Reproduce")[1]
    assert ("target_size", "10240") in zip(
        column(changed, "changed in the recipe"), column(changed, "value"), strict=True
    )
    assert "method" not in column(changed, "changed in the recipe")


# ------------------------------------------------------------------------------------------------------------------------
# formats


def test_terminal_fits_and_loses_no_name() -> None:
    for outline in (run_outline(quantized()), diff_outline(quantized(), quantized((8, 3, 3, 4, 6, 3, 8)))):
        narrow = [
            line for line in shown(outline).splitlines() if not line.startswith(("--set ", "onnx-dfmpc "))
        ]
        assert max(map(len, narrow)) <= 80
        assert all(name in shown(outline, 400) for name in (LONG, NASTY))
    assert "one bit more would cost" in shown(run_outline(quantized()), 200, wide=True)
    assert "one bit more would cost" not in shown(run_outline(quantized()), 200)


def tokens(text: str) -> list[Any]:
    """What an independent parser of Markdown makes of a text."""
    found = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        found += [token, *(token.children or ())]
    return found


def test_markdown_says_what_it_means() -> None:
    """Names keep every character, and none of them becomes HTML or a link."""
    for outline in (run_outline(quantized()), diff_outline(quantized(), quantized((8, 3, 3, 4, 6, 3, 8)))):
        found = tokens(markdown(outline))
        html = {token.content.strip() for token in found if token.type.startswith("html")}
        assert all(
            re.fullmatch(r"</?(details|summary|sub)>|<details><summary>[\w ]+</summary>", line)
            for line in html
        ), html
        assert not [token for token in found if token.type in ("link_open", "image")]
        cells = [token.children for before, token in itertools.pairwise(found) if before.type == "td_open"]
        texts = ["".join(child.content for child in children) for children in cells]
        assert NASTY in texts
        assert LONG in texts


def test_markdown_has_a_row_for_every_layer_and_every_cell_in_its_column() -> None:
    found = [token.type for token in tokens(markdown(run_outline(quantized())))]
    rows = " ".join(found).split("tr_open")[1:]
    widths = [row.count("td_open") + row.count("th_open") for row in rows]
    outline = run_outline(quantized())
    expected = [[3] * (len(outline.figures) + 1)]
    every = [block for part in outline.sections for block in part.blocks if isinstance(block, Table)]
    expected += [[len(table.columns)] * (len(table.rows) + 1) for table in every]
    assert widths == [width for table in expected for width in table]


def test_a_long_ranking_folds_and_loses_nothing() -> None:
    row = quantized()["per_layer"][1]
    names = [f"/block.{position}/Conv" for position in range(40)]
    outline = run_outline(quantized(per_layer=[row | {"name": name} for name in names]))
    text = markdown(outline)
    visible, _, folded = text.partition("<details><summary>30 more rows</summary>")
    assert [name for name in names if f"`{name}`" in visible] == names[:10]
    assert [name for name in names if f"`{name}`" in folded] == names[10:]
    assert "and 30 more: -v" in shown(outline, 200)
    assert all(name in shown(outline, 400, wide=True) for name in names)


def test_long_networks_stay_within_a_step_summary() -> None:
    text = markdown(run_outline(quantized((4,) * 2000)))
    assert len(text.encode()) < 2**20
    assert "1800 more rows" in text


# -----------------------------------------------------------------------------------------------------------------------
# two runs


def test_a_run_does_not_differ_from_itself() -> None:
    outline = diff_outline(quantized(), quantized())
    (totals,) = tables(outline, "At a glance")
    assert set(column(totals, "change")) == {"the same"}
    assert not {"Recipe", "Environment", "Bits that changed", "In one run only"} & {
        part.title for part in outline.sections
    }


def test_what_differs() -> None:
    bits = (8, 3, 2, 4, 6, 4, 8)
    other = quantized(bits, recipe={"target_size": 9000, "method": "dfmpc", "rounding": "nearest"})
    outline = diff_outline(quantized(), other, ("a.json", "b.json"))
    (recipe,) = tables(outline, "Recipe")
    assert {row[0].text: (row[1].text, row[2].text) for row in recipe.rows} == {
        "target_size": ("10240", "9000"),
        "set": ('[["^a$", 4]]', "not set"),
        "nodes_to_exclude": ("[]", "not set"),
        "rounding": ("not set", "nearest"),
    }
    assert not tables(outline, "Environment")
    (changed,) = tables(outline, "Bits that changed")
    assert column(changed, "layer") == [LONG, "/layer5/conv/Conv"]
    assert (column(changed, "bits A"), column(changed, "bits B"), column(changed, "bytes")) == (
        ["4", "3"],
        ["3", "4"],
        ["−288", "+288"],
    )
    assert "a.json" in outline.subtitle


def test_sizes_are_compared_in_words() -> None:
    small, large = (quantized(output={"path": "a", "bytes": count, "opset": 17}) for count in (1000, 1100))
    pairs = ((small, large), (large, small), (small, small), (small, quantized(output={"bytes": None})))
    texts = [diff_outline(*pair).verdict.text for pair in pairs]
    assert [text.removeprefix("B against A: ").split(" of output")[0] for text in texts] == [
        "100 bytes larger (+10.0 %), 0.0 dB",
        "100 bytes smaller (−9.1 %), 0.0 dB",
        "the same size, 0.0 dB",
        "0.0 dB",
    ]


def test_another_environment_is_pointed_out() -> None:
    newer = quantized(environment=quantized()["environment"] | {"onnxruntime": "1.33.0"})
    (versions,) = tables(diff_outline(quantized(), newer), "Environment")
    assert [[cell.text for cell in row] for row in versions.rows] == [["onnxruntime", "1.32.0", "1.33.0"]]


@given(
    st.lists(st.integers(2, 8), min_size=3, max_size=6), st.lists(st.integers(2, 8), min_size=3, max_size=6)
)
@settings(max_examples=40)
def test_the_other_way_round_the_signs_change(first: list[int], second: list[int]) -> None:
    runs = quantized(tuple(first)), quantized(tuple(second))
    (there,), (back,) = (tables(diff_outline(*pair), "At a glance") for pair in (runs, runs[::-1]))
    assert column(there, "A") == column(back, "B")
    changes = [[row[3].value for row in table.rows] for table in (there, back)]
    assert changes[0] == [None if value is None else -value for value in changes[1]]


def test_layers_of_one_run_only() -> None:
    less = quantized()
    moved = less["layers"].pop(3)
    less["skipped"].append({"name": moved["name"], "op": "Conv", "reason": "excluded by name"})
    (alone,) = tables(diff_outline(quantized(), less), "In one run only")
    assert [tuple(cell.text for cell in row) for row in alone.rows] == [
        (moved["name"], "A", "excluded by name")
    ]


def test_other_models_and_other_data_are_pointed_out() -> None:
    other = quantized(model={"path": "other.onnx", "sha256": "cd" * 32, "bytes": 66_000, "opset": 17})
    assert diff_outline(quantized(), other).verdict.word == "Different models"
    outline = diff_outline(quantized(), quantized(validation=validation() | {"data": "synthetic"}))
    assert "different data" in shown(outline)
    assert "different data" not in shown(diff_outline(quantized(), quantized()))


def test_a_gate_that_fails_now_is_said_first() -> None:
    outline = diff_outline(quantized(), quantized(validation=validation(drop=0.05)))
    assert (outline.verdict.word, outline.verdict.tone) == ("Passed → failed", "bad")


# --------------------------------------------------------------------------------------------------------------------
# what is made


def test_format_by_suffix() -> None:
    names = ("a.html", "b.MD", "c.htm", "d.markdown")
    assert [format_of(name) for name in names] == ["html", "markdown", "html", "markdown"]
    for name in ("a.pdf", "a", "html", "a.json"):
        with pytest.raises(RecipeError, match=re.escape(name)):
            format_of(name)


def test_another_package_adds_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RENDERERS, "word", Renderer(lambda outline, wide: outline.verdict.word, (".txt",)))
    assert format_of("run.txt") == "word"
    assert render([quantized()], "word") == "Passed"


def test_gates_of_outputs_that_are_the_same() -> None:
    """Their SQNR is infinite, for which JSON has no number."""
    gates = [
        {"name": "min_sqnr_db", "limit": 40, "value": None, "passed": passed} for passed in (True, False)
    ]
    document = quantized() | {"validation": validation() | {"gates": gates}}
    (part,) = (part for part in run_outline(document).sections if part.title == "Validation")
    assert [block.text for block in part.blocks[:2] if isinstance(block, Line)] == [
        "PASSED min_sqnr_db: ∞, limit 40",
        "FAILED min_sqnr_db: not measured, limit 40",
    ]
