"""Plans as files: what is written is read back, edits by hand hold, and mistakes are said in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.report.document import dumps
from onnx_dfmpc.report.plans import load_plan, plan_document, save_plan
from onnx_dfmpc.spec import LayerPlan, QuantPlan, Skipped, StorageFormat

TEXTS = st.text(st.characters(codec="utf-8"))
NUMBERS = st.floats(0, 1e9)

layer_plans = st.builds(
    LayerPlan,
    name=TEXTS.filter(bool),
    bits=st.integers(2, 8),
    role=st.sampled_from(["low", "high", "edge", "inner"]),
    grid=st.sampled_from(["symmetric", "asymmetric"]),
    rounding=st.sampled_from(["nearest", "squant", "gptq"]),
    per_channel=st.booleans(),
    reason=TEXTS,
    noise=st.none() | NUMBERS,
    bytes=st.none() | st.integers(0, 10**12),
)
quant_plans = st.builds(
    QuantPlan,
    model_sha256=TEXTS,
    layers=st.lists(layer_plans).map(tuple),
    skipped=st.lists(st.builds(Skipped, TEXTS.filter(bool), TEXTS, TEXTS)).map(tuple),
    model_name=TEXTS,
    form=st.sampled_from(
        [
            StorageFormat(),
            StorageFormat("native", "int8"),
            StorageFormat("table", "float"),
            StorageFormat(fold_batch_norm="yes"),
        ]
    ),
    recipe=st.sampled_from(
        [{}, Recipe(target_size="30KiB", data="x.npz").to_dict(), Recipe(bits=3, set={"a": 2}).to_dict()]
    ),
    predicted_bytes=st.none() | st.integers(0, 10**12),
    predicted_sqnr_db=st.none() | st.floats(-100, 100),
    predicted_low_db=st.none() | st.floats(-100, 100),
    predicted_high_db=st.none() | st.floats(-100, 100),
    source=st.sampled_from(["", "bn", "probe"]),
)

PLAN = QuantPlan(
    "0" * 64,
    (
        LayerPlan("conv1", 8, "edge", "asymmetric", "gptq", True, "the first layer", 1e-6, 1000),
        LayerPlan("conv2", 2, "inner", "ternary", "nearest", False, "cheap here", 1e-3, 300),
    ),
    (Skipped("gru", "GRU", "computed at run time"),),
    "net.onnx",
    predicted_bytes=1500,
    predicted_sqnr_db=29.5,
    predicted_low_db=25.5,
    predicted_high_db=32.5,
    source="probe",
)

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    save_plan(PLAN, path)
    return path


def edited(path: Path, edit: Edit) -> QuantPlan:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return load_plan(path)


@given(quant_plans)
@settings(max_examples=50)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, plan: QuantPlan) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    save_plan(plan, path)
    assert load_plan(path) == plan
    save_plan(load_plan(path), path, overwrite=True)
    assert path.read_text(encoding="utf-8") == dumps(plan_document(plan))


def test_an_existing_file_is_refused_unless_asked(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(RecipeError, match="exists"):
        save_plan(PLAN, file)
    with pytest.raises(RecipeError, match="there is no directory"):
        save_plan(PLAN, file.parent / "no" / "plan.json")
    assert file.read_bytes() == before
    assert [item.name for item in file.parent.iterdir()] == ["plan.json"]


def test_bits_edited_by_hand(file: Path) -> None:
    plan = edited(file, lambda content: content["layers"][0].update(bits=5))
    assert (plan["conv1"].bits, plan["conv1"].noise, plan["conv1"].bytes) == (5, None, None)
    assert plan["conv1"].reason == "plan: 5 bits instead of 8"
    assert plan["conv2"] == PLAN["conv2"]
    assert (plan.predicted_bytes, plan.predicted_sqnr_db, plan.source) == (None, None, "")
    assert (plan.predicted_low_db, plan.predicted_high_db) == (None, None)
    again = file.with_name("again.json")
    save_plan(plan, again)
    assert load_plan(again) == plan


def test_a_plan_without_an_interval_is_read(file: Path) -> None:
    """As versions made it that did not have it."""
    keys = ("low_db", "high_db", "kinds")
    plan = edited(file, lambda content: [content["predicted"].pop(key) for key in keys])
    assert plan == replace(PLAN, predicted_low_db=None, predicted_high_db=None)


def test_more_bits_than_ternary(file: Path) -> None:
    assert edited(file, lambda content: content["layers"][1].update(bits=3))["conv2"].grid == "symmetric"
    assert load_plan(file)["conv1"].grid == "asymmetric"


def test_a_layer_moved_to_the_skipped_ones(file: Path) -> None:
    plan = edited(file, lambda content: content["skipped"].append(content["layers"].pop(1)))
    assert [layer.name for layer in plan.layers] == ["conv1"]
    assert plan.skipped == (*PLAN.skipped, Skipped("conv2", "", "plan: stays float"))


def test_a_plan_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    rows = '[{"name": "a", "bits": 4}, {"name": "b", "bits": 2}]'
    path.write_text(
        f'{{"schema": 2, "command": "plan", "model": {{"sha256": "0"}}, "layers": {rows}}}', encoding="utf-8"
    )
    plan = load_plan(path)
    assert [(layer.name, layer.bits, layer.reason) for layer in plan.layers] == [
        ("a", 4, "plan"),
        ("b", 2, "plan"),
    ]
    assert (plan.form, plan.recipe, plan.skipped) == (StorageFormat(), {}, ())


def test_a_plan_from_before_batch_norm_could_be_folded(file: Path) -> None:
    """Its bytes were predicted for a file that keeps it, whatever the recipe would choose today."""

    def age(content: dict[str, Any]) -> None:
        del content["form"]["fold_batch_norm"]
        content["recipe"] = {"target_bits": 4.0}

    assert edited(file, age).form == PLAN.form == StorageFormat(fold_batch_norm="no")


def row(key: str, value: Any) -> Edit:
    return lambda content: content["layers"][1].update({key: value})


@pytest.mark.parametrize(
    ("edit", "words", "hint"),
    [
        (
            row("bits", 9),
            "layers, row 2 (conv2): bits = 9: expected 1.58, 2.58, or an integer from 2 to 8",
            "",
        ),
        (row("bits", 4.0), "bits = 4.0", ""),
        (row("bits", "4"), "bits = '4'", ""),
        (row("bits", None), "bits = None", ""),
        (row("bit", 4), "unknown key 'bit'", "did you mean bits?"),
        (row("qqqq", 4), "unknown key 'qqqq'", "per_channel"),
        (row("name", ""), "name = ''", ""),
        (row("name", 7), "layers, row 2: name = 7: expected a name", ""),
        (row("role", "middle"), "role = 'middle': expected one of low, high, edge, inner", ""),
        (row("role", []), "role = []", ""),
        (row("grid", "log"), "grid = 'log'", ""),
        (row("rounding", "up"), "rounding = 'up'", ""),
        (row("per_channel", 1), "per_channel = 1", ""),
        (row("noise", -1), "noise = -1", ""),
        (row("bytes", 1.5), "bytes = 1.5", ""),
        (lambda content: content["layers"][0].pop("bits"), "layers, row 1 (conv1): there is no bits", ""),
        (lambda content: content["layers"][0].pop("name"), "layers, row 1: there is no name", ""),
        (lambda content: content["layers"].append(3), "layers, row 3: expected an object", ""),
        (lambda content: content["skipped"][0].pop("name"), "skipped, row 1: there is no name", ""),
        (lambda content: content.update(layers={}), "layers = {}: expected a list", ""),
        (lambda content: content.update(predicted=3), "predicted = 3: expected an object", ""),
        (
            lambda content: content["predicted"].update(bytes=-1),
            "predicted: bytes = -1: expected an integer, 0",
            "",
        ),
        (
            lambda content: content.update(recipe={"bit": 3}),
            "recipe: unknown key 'bit'",
            "did you mean bits?",
        ),
        (lambda content: content.update(form={"storage": "dense"}), "form: storage = 'dense'", ""),
        (lambda content: content.update(schema=1), "schema = 1: expected 2", "onnx-dfmpc plan"),
        (lambda content: content.pop("schema"), "schema = None", "onnx-dfmpc plan"),
        (lambda content: content.update(command="quantize"), "not a plan", "onnx-dfmpc plan"),
        (lambda content: content["model"].pop("sha256"), "model: there is no sha256", ""),
    ],
)
def test_a_mistake_is_found_and_said_where(file: Path, edit: Edit, words: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        edited(file, edit)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"command": "plan"', None]
)
def test_what_is_no_plan(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"plan\.json: (not a|no such)"):
        load_plan(path)
    with pytest.raises(RecipeError, match="cannot read"):
        load_plan(tmp_path)
