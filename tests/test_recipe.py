"""Recipes: defaults, checks, dict and TOML."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import Bits, Data, Gates, Recipe, Rule, nearest, parse_size
from onnx_dfmpc.recipe.recipe import DEFAULT_BITS, KEYWORDS, KINDS
from onnx_dfmpc.recipe.values import settings as settings_of
from onnx_dfmpc.spec import StorageFormat

BITS = st.integers(2, 8)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1)


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    selector = draw(st.sampled_from(["node", "regex", "op_type"]))
    low, high = sorted((draw(BITS), draw(BITS)))
    effect = draw(
        st.sampled_from(
            [{"bits": low}, {"min_bits": low}, {"min_bits": low, "max_bits": high}, {"exclude": True}]
        )
    )
    return {selector: draw(st.sampled_from(["a.*", "^conv1$"]) if selector == "regex" else NAMES), **effect}


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    low, high = sorted((draw(BITS), draw(BITS)))
    kinds = (
        {},
        {"bits": low},
        {"low_bits": low, "high_bits": high},
        {"target_size": 1000 * low},
        {"target_bits": low * 0.75 + 1.5},
    )
    values: dict[str, Any] = dict(
        draw(st.sampled_from([*kinds, {"target_sqnr_db": 12.5}, {"preset": "balanced"}]))
    )
    values["rules"] = draw(st.lists(rules(), max_size=3))
    values["set"] = draw(st.lists(st.tuples(st.sampled_from(["a.*", "^conv1$", ""]), BITS), max_size=3))
    values["nodes_to_exclude"] = draw(st.lists(NAMES, max_size=3))
    values["lambda1"] = draw(st.floats(0, 1e6))
    values["method"] = draw(st.sampled_from(["dfmpc", "paper"]))
    values["rounding"] = draw(st.sampled_from([None, "nearest", "squant"]))
    values["repair"] = draw(st.sampled_from(["both", "none"]))
    values["storage"] = draw(st.sampled_from(["table", "native"]))
    values["fold_batch_norm"] = draw(st.sampled_from(["auto", "no", "yes"]))
    values["input_range"] = draw(st.sampled_from([None, (0, 255), [-1.0, 1.0]]))
    values["min_cosine"] = draw(st.none() | st.floats(-1, 1))
    values["shapes"] = draw(st.sampled_from([(), {"x": [1, 3, 8, 8], 'a "b"=c': []}]))
    values["images"] = draw(
        st.sampled_from(
            [
                {},
                {"size": 256, "crop": [224, 200], "mean": (1, 2, 3), "channels": "bgr"},
                {"scale": 2, "crop": 0.5},
            ]
        )
    )
    return Recipe(**values)


BITS_OF_EACH_KIND: dict[str, Any] = {
    "low_bits": 2,
    "bits": 4,
    "target_size": "300KiB",
    "target_bits": 3.5,
    "target_sqnr_db": 20,
    "preset": "balanced",
}


@given(recipes())
def test_dict_round_trip_is_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@given(recipes())
@settings(max_examples=50)
def test_toml_round_trip(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    file.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(file) == recipe


@pytest.mark.parametrize("kinds", list(itertools.combinations(BITS_OF_EACH_KIND, 2)))
def test_two_kinds_of_bits_exclude_each_other(kinds: tuple[str, str]) -> None:
    with pytest.raises(RecipeError, match="exclude each other") as caught:
        Recipe(**{kind: BITS_OF_EACH_KIND[kind] for kind in kinds})
    assert all(f"{kind} = " in str(caught.value) for kind in kinds)


@pytest.mark.parametrize("kind", BITS_OF_EACH_KIND)
def test_each_kind_of_bits_alone(kind: str) -> None:
    recipe = Recipe(**{kind: BITS_OF_EACH_KIND[kind]})
    assert recipe.kind == "target_sqnr_db" if kind == "preset" else kind in KINDS[recipe.kind]
    others = [key for name, keys in KINDS.items() if name != recipe.kind for key in keys]
    assert [getattr(recipe, key) for key in others] == [None] * len(others)


def test_without_bits_there_is_one_kind_and_it_is_shown() -> None:
    assert Recipe().to_dict().items() >= dict(DEFAULT_BITS).items()
    assert (Recipe(min_bits=5).target_bits, Bits(max_bits=3).target_bits) == (5, 3)
    assert (Recipe(method="paper").low_bits, Recipe(method="paper").high_bits) == (3, 6)
    assert all(key in Recipe().to_text() for key in DEFAULT_BITS)


def test_presets_are_predicted_qualities_in_order() -> None:
    wanted = [Recipe(preset=name).target_sqnr_db for name in ("smallest", "balanced", "lossless")]  # type: ignore[arg-type]
    assert None not in wanted
    assert wanted == sorted(set(wanted))  # type: ignore[type-var]


@given(st.integers(0, 10**6), st.sampled_from(["", "B", "b"]), st.sampled_from(["", " "]))
def test_sizes_in_bytes(number: int, unit: str, space: str) -> None:
    assert parse_size(f"{number}{space}{unit}") == number


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(
            ("300KiB", 300 * 2**10),
            ("300kB", 300_000),
            ("300 KB", 300_000),
            ("300K", 300 * 2**10),
            ("300k", 300 * 2**10),
        ),
        *(
            ("1.5MB", 1_500_000),
            ("2 MiB", 2 * 2**20),
            ("0.1M", 2**20 // 10),
            ("1GiB", 2**30),
            ("1GB", 10**9),
            (" .5kib ", 512),
        ),
    ],
)
def test_sizes_with_units(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert Recipe(target_size=text).target_size == size  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "KiB", "-1kB", "1e3", "3,5MB", "300 Kib/s", "1.2.3", "12 TB", "300KiB 2", "nan", "\u0663kB"]
)
def test_what_is_no_size_is_answered_with_an_example(text: str) -> None:
    with pytest.raises(RecipeError, match=r"target_size: .* is not a size") as caught:
        Recipe(target_size=text)  # type: ignore[arg-type]
    assert "300KiB" in caught.value.hint


@pytest.mark.parametrize(
    ("given_bits", "expected"),
    [
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
        ({"bits": 4, "low_bits": 2, "high_bits": 6}, ["low_bits = 2 and high_bits = 6"]),
        ({"low_bits": 6, "high_bits": 3}, ["low_bits = 6", "high_bits = 3"]),
        ({"high_bits": 2}, ["low_bits = 3", "high_bits = 2", "by default"]),
        ({"bits": 2, "min_bits": 3}, ["bits = 2", "min_bits = 3"]),
        ({"min_bits": 5, "max_bits": 4}, ["min_bits = 5", "max_bits = 4"]),
        ({"target_size": 0}, ["target_size = 0", "1 or more"]),
        ({"target_size": 1.5}, ["target_size = 1.5", "bytes"]),
        ({"target_bits": 1.5}, ["target_bits = 1.5", "1.58 to 8"]),
        ({"preset": "tiny"}, ["preset = 'tiny'", "smallest, balanced, lossless"]),
        ({"storage": "dense"}, ["storage = 'dense'", "table, native"]),
        ({"bits": 2.5}, ["bits: ", "not 2.5", "1.58, 2.58"]),
        ({"target": "ort-1.15"}, ["target = 'ort-1.15'", "ort-1.16"]),
        ({"target": "ort-1.18", "storage": "native"}, ["storage = 'native'", "1.18", "2- and 4-bit"]),
        ({"target": "opencv", "activations": 8}, ["activations = 8", "OpenCV", "does not load"]),
        ({"fold_batch_norm": True}, ["fold_batch_norm = True", "auto, no, yes"]),
        ({"unpack": "int4"}, ["unpack = 'int4'", "none, int8, float"]),
        ({"low_bits": 1}, ["low_bits = 1", "2 to 8"]),
        ({"bits": 9}, ["bits = 9", "2 to 8"]),
        ({"bits": 4.5}, ["bits: ", "not 4.5", "1.58, 2.58"]),
        ({"bits": True}, ["bits = True", "integer"]),
        ({"first_last_bits": 1}, ["first_last_bits = 1", "2 to 8"]),
        ({"method": "gptq"}, ["method = 'gptq'", "dfmpc, paper"]),
        ({"rounding": "up"}, ["rounding = 'up'", "nearest, squant, gptq"]),
        ({"lambda1": -0.5}, ["lambda1 = -0.5", "0 or more"]),
        ({"lambda2": float("nan")}, ["lambda2 = nan"]),
        ({"repair": "no"}, ["repair = 'no'", "both, gain, mean, none"]),
        ({"rules": [{"node": "a", "exclude": "no"}]}, ["rule 1: exclude = 'no'", "true or false"]),
        ({"rules": [{"op_type": "", "bits": 4}]}, ["rule 1: op_type = ''", "name of an operator"]),
        ({"set": [("(", 4)]}, ["set", "'('", "regular expression"]),
        ({"set": [("a", 9)]}, ["set", "2 to 8"]),
        ({"set": "a=4"}, ["set = 'a=4'"]),
        ({"rules": [{"bits": 4}]}, ["rule 1", "exactly one of node, regex, op_type"]),
        ({"rules": [{"node": "a", "regex": "b", "bits": 4}]}, ["rule 1", "exactly one"]),
        ({"rules": [{"node": "a", "bits": 4}, {"node": "a"}]}, ["rule 2", "node 'a'", "has no effect"]),
        ({"rules": [{"node": "a", "bits": 9}]}, ["rule 1", "bits = 9", "2 to 8"]),
        ({"rules": [{"node": "a", "bits": 4, "min_bits": 3}]}, ["bits and min_bits exclude each other"]),
        ({"rules": [{"node": "a", "exclude": True, "bits": 3}]}, ["exclude and bits exclude each other"]),
        (
            {"rules": [{"op_type": "Conv", "min_bits": 5, "max_bits": 4}]},
            ["op_type 'Conv'", "min_bits = 5", "max_bits = 4"],
        ),
        ({"rules": [{"regex": "(", "bits": 4}]}, ["rule 1", "regular expression"]),
        ({"rules": {"node": "a", "bits": 4}}, ["rules = ", "list of rules"]),
        ({"rules": [4]}, ["rules = [4]"]),
        ({"nodes_to_exclude": "conv1"}, ["nodes_to_exclude = 'conv1'", "list"]),
        ({"input_range": (1, 0)}, ["input_range = (1, 0)", "smaller one first"]),
        ({"samples": 0}, ["samples = 0", "1 or more"]),
        ({"max_top1_drop": 1.0}, ["max_top1_drop = 1.0", "fraction"]),
        ({"min_top1_agreement": 98}, ["min_top1_agreement = 98", "fraction"]),
        ({"data": ""}, ["data = ''", "path"]),
        ({"data": 3}, ["data = 3", "arrays by input name"]),
        ({"labels": {"x": 3}}, ["labels = {'x': 3}", "class indices"]),
        ({"calibration_data": 3}, ["calibration_data = 3", "path of a file"]),
        ({"statistics": "analytic"}, ["statistics = 'analytic'", "auto, probe, closed_form"]),
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
    with pytest.raises(RecipeError, match="rule 1: unknown key 'bit'") as caught:
        Recipe.from_dict({"rules": [{"node": "a", "bit": 2}]})
    assert caught.value.hint == "did you mean bits?"


def test_values_become_immutable_and_equal() -> None:
    recipe = Recipe(set={"a": 2}, nodes_to_exclude=["x"], data=Path("d.npz"), lambda1=1)
    assert recipe.rules == (Rule(regex="a", bits=2), Rule(node="x", exclude=True))
    assert recipe.data == "d.npz"
    assert recipe == Recipe.from_dict(recipe.to_dict())
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 1  # type: ignore[misc]


@given(recipes())
@settings(max_examples=30)
def test_replace_appends_nothing_again(recipe: Recipe) -> None:
    changed = dataclasses.replace(recipe, seed=3)
    assert changed.rules == recipe.rules
    assert dataclasses.replace(changed, seed=recipe.seed) == recipe
    more = dataclasses.replace(recipe, nodes_to_exclude=["y"])
    assert more.rules == (*recipe.rules, Rule(node="y", exclude=True))


def test_a_recipe_is_its_groups() -> None:
    """Each setting is a field of exactly one group, and a group can be had alone."""
    own = [key.name for group in Recipe.__bases__ for key in dataclasses.fields(group)]
    assert sorted(own) == sorted(key.name for key in dataclasses.fields(Recipe))
    assert len(own) == len(set(own)) == 38
    assert sorted({*KEYWORDS} - {*own}) == ["nodes_to_exclude", "preset", "set"]
    for group in Recipe.__bases__:
        assert (
            dataclasses.replace(
                Recipe(), **{key.name: getattr(group(), key.name) for key in dataclasses.fields(group)}
            )
            == Recipe()
        )
    assert all(
        key.metadata["help"] for name in KEYWORDS if (key := settings_of(Recipe)[name]).metadata["flag"]
    )


def test_arrays_and_functions_are_data_too() -> None:
    arrays, labels = {"x": np.zeros((2, 3))}, np.zeros(2, int)
    for source in (arrays, arrays["x"], lambda: iter([arrays]), [1.0]):
        recipe = Recipe(data=source, labels=labels)  # type: ignore[arg-type]
        assert recipe.data is source
        assert recipe.to_dict().keys().isdisjoint({"data", "labels"})
        assert dataclasses.replace(recipe, samples=1).labels is labels
    assert Data(data=Path("a.npz"), labels=[1, 2]).data == "a.npz"  # type: ignore[arg-type]


def test_gates_are_those_that_are_set() -> None:
    assert Recipe().limits == {}
    assert Gates(min_cosine=0.9, max_top1_drop=0).limits == {"min_cosine": 0.9, "max_top1_drop": 0.0}


@pytest.mark.parametrize(
    ("repair", "method", "corrects"),
    [
        ("both", "dfmpc", ("mean",)),
        ("gain", "dfmpc", ()),
        ("mean", "paper", ("mean",)),
        ("gain", "paper", ("gamma", "beta", "mean", "var")),
        ("none", "paper", ()),
    ],
)
def test_what_a_repair_changes(repair: Any, method: Any, corrects: tuple[str, ...]) -> None:
    recipe = Recipe(repair=repair, method=method)
    assert recipe.corrects == corrects
    assert (recipe.repairs_gain, recipe.repairs_mean) == (
        repair in ("both", "gain"),
        repair in ("both", "mean"),
    )


def test_storage_and_folding_follow_the_kind_of_bits() -> None:
    assert Recipe().form == StorageFormat("vector", fold_batch_norm="yes")
    assert Recipe(bits=4).form == StorageFormat("vector", fold_batch_norm="no")
    for how in ({"rounding": "nearest"}, {"rounding": "squant"}, {"method": "paper"}):
        assert Recipe(bits=4, **how).form.storage == "table"
    asked: dict[str, Any] = {"storage": "native", "unpack": "int8", "fold_batch_norm": "yes"}
    assert Recipe(bits=4, **asked).form == Recipe(**asked).form == StorageFormat(**asked)


def test_images_and_shapes_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    text = "[images]\nsize = 256\nmean = 127.5\n[validate]\nshapes = {x = [1, 3, 8, 8]}\n"
    file.write_text(text, encoding="utf-8")
    recipe = Recipe.from_toml(file, {"images": [("crop", 224)]})
    assert (recipe.images.size, recipe.images.mean, recipe.images.crop) == ((256,), (127.5,), (224,))
    assert recipe.shapes == {"x": (1, 3, 8, 8)}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"images": {"sizes": 3}}, "images: unknown key 'sizes'"),
        ({"images": {"size": (1, 2, 3)}}, r"size = \(1, 2, 3\)"),
        ({"images": {"std": 0}}, "std = 0"),
        ({"images": 3}, "images = 3"),
        ({"shapes": {"x": (0, 3)}}, "shapes = "),
    ],
)
def test_images_and_shapes_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe(**values)


def test_toml_with_overrides(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    text = '[target]\nlow_bits = 2\nhigh_bits = 5\n[validate]\ndata = "test.npz"\n[set]\n"layer1.*" = 4\n'
    file.write_text(text, encoding="utf-8")
    recipe = Recipe.from_toml(file)
    assert (recipe.low_bits, recipe.high_bits, recipe.rules) == (2, 5, (Rule(regex="layer1.*", bits=4),))
    assert recipe.data == str(tmp_path / "test.npz")
    assert Recipe.from_toml(file, {"low_bits": 3}).high_bits == 5
    assert Recipe.from_toml(file, {"bits": 4}).low_bits is None
    assert Recipe.from_toml(file, {"set": [("fc", 8)]}).rules == (*recipe.rules, Rule(regex="fc", bits=8))
    file.write_text("[target]\nuniform_bits = 4\n", encoding="utf-8")
    assert Recipe.from_toml(file, {"low_bits": 2}).bits is None
    assert Recipe.from_toml(file, {"preset": "smallest"}).target_sqnr_db == 15


SECTIONS = """
[target]
size = "300KiB"
[defaults]
method = "paper"
min_bits = 3
calibration_data = "images.npz"
[[rule]]
op_type = "Gemm"
min_bits = 4
[[rule]]
node = "conv1"
exclude = true
[validate]
data = "test.npz"
samples = 100
seed = 3
min_cosine = 0.9
[set]
"layer1.*" = 4
"""


def test_sections(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(SECTIONS, encoding="utf-8")
    assert Recipe.from_toml(file) == Recipe(
        seed=3,
        target_size=300 * 1024,
        method="paper",
        min_bits=3,
        calibration_data=str(tmp_path / "images.npz"),
        rules=(Rule(op_type="Gemm", min_bits=4), Rule(node="conv1", exclude=True)),
        set=(("layer1.*", 4),),
        data=str(tmp_path / "test.npz"),
        samples=100,
        min_cosine=0.9,
    )
    over = Recipe.from_toml(file, {"target_bits": 3.5, "set": [("fc", 8)], "min_bits": 2})
    assert (over.target_size, over.target_bits, over.min_bits) == (None, 3.5, 2)
    assert over.rules[-2:] == (Rule(regex="layer1.*", bits=4), Rule(regex="fc", bits=8))


@pytest.mark.parametrize(
    ("target", "knobs"),
    [
        ("bits = 3.5", {"target_bits": 3.5}),
        ("uniform_bits = 4", {"bits": 4}),
        ("sqnr_db = 20", {"target_sqnr_db": 20}),
        ('preset = "smallest"', {"preset": "smallest"}),
        ("low_bits = 2\nhigh_bits = 5", {"low_bits": 2, "high_bits": 5}),
    ],
)
def test_each_target(tmp_path: Path, target: str, knobs: dict[str, Any]) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(f"[target]\n{target}\n", encoding="utf-8")
    assert Recipe.from_toml(file) == Recipe(**knobs)


@pytest.mark.parametrize(
    ("content", "words", "hint"),
    [
        ("[targets]\nsize = 3", "unknown section [targets]", "did you mean target?"),
        ("[qqqq]\nsize = 3", "unknown section [qqqq]", "target, defaults"),
        ("[target]\nsiez = 3", "unknown key 'siez' in [target]", "did you mean size?"),
        ("[target]\nmethod = 'paper'", "unknown key 'method' in [target]", "write method in [defaults]"),
        ("[defaults]\ndata = 'a.npz'", "unknown key 'data' in [defaults]", "write data in [validate]"),
        ("[defaults]\ntarget_bits = 2", "unknown key 'target_bits' in [defaults]", "write bits in [target]"),
        ("[defaults]\nqqqq = 2", "unknown key 'qqqq' in [defaults]", "known keys: min_bits"),
        ("bits = 4", "unknown key 'bits' outside a section", "write uniform_bits in [target]"),
        ("nodes_to_exlude = ['a']", "unknown key 'nodes_to_exlude' outside a section", "sections: target"),
        ("target = 4", "target = 4: expected a section", "[target]"),
        ("[rule]\nnode = 'a'\nbits = 4", "rules = {", ""),
        ("[[rule]]\nnode = 'a'\nbit = 4", "rule 1: unknown key 'bit'", "did you mean bits?"),
        ("[target]\nsize = '3 apples'", "'3 apples' is not a size", "300KiB"),
        ("[target]\nuniform_bits = 4\nsize = 400", "exclude each other", ""),
        ("[validate]\ndata = [1, 2]", "data = [1, 2]: expected a path", ""),
    ],
)
def test_a_mistake_in_a_section(tmp_path: Path, content: str, words: str, hint: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)
    assert hint in caught.value.hint


def test_a_saved_recipe_keeps_its_files_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipes" / "recipe.toml"
    file.write_text(Recipe(data="test.npz").to_toml(), encoding="utf-8")
    assert Recipe.from_toml(file).data == str(tmp_path / "test.npz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"bits = x\n", ["not a TOML file", "line 1"]),
        (b"\xff\xfe", ["not a TOML file"]),
        (b"[target]\nuniform_bits = 99", ["bits = 99"]),
        (b"[validate]\ndata = ''", ["data = ''"]),
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


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        Recipe.from_toml(tmp_path)


def test_nearest_stays_silent_where_nothing_is_near() -> None:
    assert nearest("conv1", ["conv10", "fc"]) == "did you mean conv10?"
    assert nearest("zzz", ["conv10", "fc"]) == ""
