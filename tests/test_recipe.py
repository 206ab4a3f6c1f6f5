"""Recipes: defaults, checks, dict and TOML."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import Recipe, nearest

BITS = st.integers(2, 8)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    kind = draw(st.sampled_from(["none", "uniform", "paired"]))
    values: dict[str, Any] = {}
    if kind == "uniform":
        values["bits"] = draw(BITS)
    if kind == "paired":
        values["low_bits"], values["high_bits"] = sorted((draw(BITS), draw(BITS)))
    values["set"] = draw(st.lists(st.tuples(st.sampled_from(["a.*", "^conv1$", ""]), BITS)))
    values["nodes_to_exclude"] = draw(st.lists(st.text(min_size=1)))
    values["lambda1"] = draw(st.floats(0, 1e6))
    values["method"] = draw(st.sampled_from(["dfmpc", "paper"]))
    values["rounding"] = draw(st.sampled_from([None, "nearest", "squant"]))
    values["input_range"] = draw(st.sampled_from([None, (0, 255), [-1.0, 1.0]]))
    values["min_cosine"] = draw(st.none() | st.floats(-1, 1))
    return Recipe(**values)


@given(recipes())
def test_dict_round_trip_is_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("given_bits", "expected"),
    [
        ({}, (3, 6, None)),
        ({"low_bits": 2}, (2, 6, None)),
        ({"high_bits": 8}, (3, 8, None)),
        ({"low_bits": 4, "high_bits": 4}, (4, 4, None)),
        ({"bits": 4}, (None, None, 4)),
    ],
)
def test_one_kind_of_bits(given_bits: dict[str, int], expected: tuple[int | None, ...]) -> None:
    recipe = Recipe(**given_bits)
    assert (recipe.low_bits, recipe.high_bits, recipe.bits) == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bits": 4, "low_bits": 2}, ["bits = 4", "low_bits = 2", "exclude each other"]),
        ({"bits": 4, "low_bits": 2, "high_bits": 6}, ["low_bits = 2 and high_bits = 6"]),
        ({"low_bits": 6, "high_bits": 3}, ["low_bits = 6", "high_bits = 3"]),
        ({"high_bits": 2}, ["low_bits = 3", "high_bits = 2", "by default"]),
        ({"low_bits": 1}, ["low_bits = 1", "2 to 8"]),
        ({"bits": 9}, ["bits = 9", "2 to 8"]),
        ({"bits": 4.0}, ["bits = 4.0", "integer"]),
        ({"bits": True}, ["bits = True", "integer"]),
        ({"first_last_bits": None}, ["first_last_bits = None"]),
        ({"low_position": "last"}, ["low_position = 'last'", "auto, first, second"]),
        ({"method": "gptq"}, ["method = 'gptq'", "dfmpc, paper"]),
        ({"rounding": "up"}, ["rounding = 'up'", "nearest, squant, covariance"]),
        ({"lambda1": -0.5}, ["lambda1 = -0.5", "0 or more"]),
        ({"lambda2": float("nan")}, ["lambda2 = nan"]),
        ({"compensate": "no"}, ["compensate = 'no'", "true or false"]),
        ({"set": [("(", 4)]}, ["set", "'('", "regular expression"]),
        ({"set": [("a", 9)]}, ["set", "2 to 8"]),
        ({"set": "a=4"}, ["set = 'a=4'"]),
        ({"nodes_to_exclude": "conv1"}, ["nodes_to_exclude = 'conv1'", "list"]),
        ({"input_range": (1, 0)}, ["input_range = (1, 0)", "smaller one first"]),
        ({"samples": 0}, ["samples = 0", "1 or more"]),
        ({"max_top1_drop": 1.0}, ["max_top1_drop = 1.0", "fraction"]),
        ({"min_top1_agreement": 98}, ["min_top1_agreement = 98", "fraction"]),
        ({"data": ""}, ["data = ''", "path"]),
        ({"statistics": "calibration"}, ["calibration_data"]),
        ({"statistics": "probe", "calibration_data": "x.npz"}, ["calibration_data", "probe"]),
    ],
)
def test_a_bad_value_names_key_value_and_what_is_allowed(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(values)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(RecipeError, match="low_bit") as caught:
        Recipe.from_dict({"low_bit": 2})
    assert caught.value.hint == "did you mean low_bits?"
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({"qqqq": 2})
    assert "low_bits" in caught.value.hint


def test_values_become_immutable_and_equal() -> None:
    recipe = Recipe(set={"a": 2}, nodes_to_exclude=["x"], data=Path("d.npz"), lambda1=1)  # type: ignore[arg-type]
    assert recipe.set == (("a", 2),)
    assert recipe.nodes_to_exclude == ("x",)
    assert recipe.data == "d.npz"
    assert hash(recipe) == hash(Recipe.from_dict(recipe.to_dict()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 1  # type: ignore[misc]


def test_gates_are_those_that_are_set() -> None:
    assert Recipe().gates == {}
    assert Recipe(min_cosine=0.9, max_top1_drop=0).gates == {"min_cosine": 0.9, "max_top1_drop": 0.0}


def test_toml_with_overrides(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('low_bits = 2\nhigh_bits = 5\ndata = "test.npz"\n[set]\n"layer1.*" = 4\n', encoding="utf-8")
    recipe = Recipe.from_toml(file)
    assert (recipe.low_bits, recipe.high_bits, recipe.set) == (2, 5, (("layer1.*", 4),))
    assert recipe.data == str(tmp_path / "test.npz")
    assert Recipe.from_toml(file, {"low_bits": 3}).high_bits == 5
    assert Recipe.from_toml(file, {"bits": 4}).low_bits is None
    assert Recipe.from_toml(file, {"set": [("fc", 8)]}).set == (("layer1.*", 4), ("fc", 8))
    file.write_text("bits = 4\n", encoding="utf-8")
    assert Recipe.from_toml(file, {"low_bits": 2}).bits is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"bits = x\n", ["not a TOML file", "line 1"]),
        (b"\xff\xfe", ["not a TOML file"]),
        (b"bit = 4", ["unknown key 'bit'"]),
        (b"bits = 99", ["bits = 99"]),
        (None, ["no such recipe"]),
    ],
)
def test_bad_toml_names_the_file(tmp_path: Path, content: bytes | None, words: list[str]) -> None:
    file = tmp_path / "recipe.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml(file)
    assert all(word in str(caught.value) for word in [str(file), *words]), str(caught.value)


def test_nearest_stays_silent_where_nothing_is_near() -> None:
    assert nearest("conv1", ["conv10", "fc"]) == "did you mean conv10?"
    assert nearest("zzz", ["conv10", "fc"]) == ""
