"""`plan` and `quantize --plan` on the network that ships with the project."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnx_dfmpc import cli
from onnx_dfmpc.recipe import Recipe
from tests.conftest import ROOT, Run

Edit = Callable[[dict[str, Any]], object]

FAST = ("--samples", 4)
NEAREST = ("-c", ROOT / "tests" / "fast.toml")
BITS = ("--low-bits", 2, "--high-bits", 5, "--set", "conv2=4", "--nodes-to-exclude", "/fc/Gemm", *NEAREST)


@pytest.fixture(scope="module")
def made(digits_bn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan, made once."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert cli.main([str(word) for word in ("plan", digits_bn, "-o", path, *BITS)]) == 0
    return path


@pytest.fixture
def plan(made: Path, tmp_path: Path) -> Path:
    """That plan, to be edited."""
    path = tmp_path / "plan.json"
    path.write_bytes(made.read_bytes())
    return path


def edit(path: Path, change: Edit) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_plan_is_the_document_and_writes_nothing_else(run: Run, digits_bn: Path, plan: Path) -> None:
    printed = json.loads(run("plan", digits_bn, *BITS, "--json", "-")[1])
    written = json.loads(plan.read_text(encoding="utf-8"))
    typed = {"seconds": 0, "date": "", "command_line": ""}
    assert {**printed, **typed} == {**written, **typed}
    assert [item.name for item in plan.parent.iterdir()] == ["plan.json"]
    assert run("plan", digits_bn, *NEAREST, "-q") == (0, "", "")
    lines = run("plan", digits_bn, *NEAREST, "-v")[1].splitlines()
    assert max(len(line) for line in lines if str(digits_bn) not in line) <= 80  # paths never break


def test_an_existing_plan_is_kept_unless_asked(run: Run, digits_bn: Path, plan: Path) -> None:
    before = plan.read_bytes()
    code, _, err = run("plan", digits_bn, "-o", plan, "--bits", 4)
    assert (code, plan.read_bytes()) == (2, before)
    assert "--overwrite" in err
    code, out, err = run("plan", digits_bn, "-o", plan, "--bits", 4, "--overwrite")
    assert (code, err) == (0, "")
    assert str(plan) in out.replace("\n", "")
    assert plan.read_bytes() != before


def test_two_steps_give_the_bytes_of_one(run: Run, digits_bn: Path, plan: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    assert run("quantize", digits_bn, "-o", one, *BITS, "-q")[0] == 0
    assert run("quantize", digits_bn, "-o", two, "--plan", plan, "-q")[0] == 0
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("target", [("--target-size", "70kB"), ("--preset", "balanced")])
def test_a_target_is_met_in_one_step_and_in_two(
    run: Run, digits_bn: Path, tmp_path: Path, target: tuple[object, ...]
) -> None:
    one, two, path = tmp_path / "one.onnx", tmp_path / "two.onnx", tmp_path / "plan.json"
    code, out, _ = run("quantize", digits_bn, "-o", one, *target, *NEAREST, "--json", "-")
    assert code == 0
    assert run("plan", digits_bn, "-o", path, *target, *NEAREST, "-q")[0] == 0
    assert run("quantize", digits_bn, "-o", two, "--plan", path, "-q")[0] == 0
    assert one.read_bytes() == two.read_bytes()
    plain, planned = json.loads(out), json.loads(path.read_text(encoding="utf-8"))
    assert plain["predicted"] == planned["predicted"]
    assert one.stat().st_size <= planned["predicted"]["bytes"] < 1.01 * one.stat().st_size
    assert (
        one.stat().st_size <= 70_000 if "--target-size" in target else planned["predicted"]["sqnr_db"] >= 20
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--target-size", "20kB"), "target_size = 20,000 bytes cannot be met"),
        (("--target-size", "80kB", "--min-bits", 7), "relax min_bits = 7"),
        (("--target-bits", 2.5, "--min-bits", 3), "target_bits = 2.5 cannot be met"),
        (("--target-sqnr-db", 200), "target_sqnr_db = 200 cannot be met"),
    ],
)
def test_a_target_that_cannot_be_met(
    run: Run, digits_bn: Path, tmp_path: Path, flags: tuple[object, ...], words: str
) -> None:
    code, out, err = run("quantize", digits_bn, "-o", tmp_path / "small.onnx", *NEAREST, *flags)
    assert (code, out) == (3, "")
    assert words in err
    assert len(err.splitlines()) == 2
    assert not list(tmp_path.iterdir())


def test_sweep(run: Run, digits_bn: Path, tmp_path: Path) -> None:
    path, recipe = tmp_path / "plan.json", tmp_path / "recipe.toml"
    text = '[target]\nuniform_bits = 4\n[defaults]\nfirst_last_bits = 6\nrounding = "nearest"\n'
    recipe.write_text(text, encoding="utf-8")
    code, out, _ = run("plan", digits_bn, "-o", path, "-c", recipe, "--storage", "native", "--sweep", 5)
    assert code == 0
    assert "Size against quality" in out
    assert "measured" not in out
    points = json.loads(path.read_text(encoding="utf-8"))["sweep"]
    assert len(points) == 5
    for key in ("budget", "bytes", "nominal_bits", "predicted_sqnr_db"):
        values = [point[key] for point in points]
        assert values == sorted(values), key
    assert all(0.99 * point["budget"] < point["bytes"] <= point["budget"] for point in points)
    assert {point["top1"] for point in points} == {None}
    assert run("quantize", digits_bn, "--dry-run", "--plan", path, *FAST)[0] == 0


def test_sweep_with_data(run: Run, digits_bn: Path, digits_data: Path, tmp_path: Path) -> None:
    sizes = ("--sweep", "20kB,60kB,90kB")
    data = ("--data", digits_data, "--samples", 200)
    path = tmp_path / "plan.json"
    code, out, _ = run("plan", digits_bn, *sizes, *data, *NEAREST, "-o", path)
    small, middle, large = json.loads(path.read_text(encoding="utf-8"))["sweep"]
    assert code == 0
    assert "too small" in out
    assert "measured" in out
    assert (small["budget"], small["bytes"], small["predicted_sqnr_db"], small["top1"]) == (
        20_000,
        None,
        None,
        None,
    )
    assert middle["measured_sqnr_db"] < large["measured_sqnr_db"]
    assert 0.8 < middle["top1"] <= 1
    assert abs(large["measured_sqnr_db"] - large["predicted_sqnr_db"]) < 10


def test_flags_beside_a_plan(run: Run, digits_bn: Path, plan: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[validate]\nsamples = 3\n[defaults]\nlambda1 = 0.25\n", encoding="utf-8")
    code, out, _ = run(
        "quantize", digits_bn, "--plan", plan, "--dry-run", "-c", recipe, "--seed", 7, "--json", "-"
    )
    plain = json.loads(out)
    assert code == 0
    assert plain["validation"]["samples"] == 3
    used = Recipe.from_dict(plain["recipe"])
    assert (used.seed, used.lambda1, used.rounding, used.low_bits) == (7, 0.25, "nearest", 2)


def test_batch_norm_folds_for_a_target_and_stays_on_demand(run: Run, digits_bn: Path, tmp_path: Path) -> None:
    path, folded, kept = tmp_path / "plan.json", tmp_path / "folded.onnx", tmp_path / "kept.onnx"
    assert run("plan", digits_bn, "-o", path, "--target-bits", 4, *NEAREST, "-q")[0] == 0
    planned = json.loads(path.read_text(encoding="utf-8"))
    form = planned["form"]
    assert 3.8 < planned["totals"]["nominal_bits"] <= 4
    assert form == {
        "target": None,
        "storage": "table",
        "unpack": "none",
        "fold_batch_norm": "yes",
        "activations": None,
        "slim": False,
        "reduce_range": False,
    }
    _, out, _ = run("quantize", digits_bn, "-o", folded, "--plan", path, "--json", "-")
    assert json.loads(out)["predicted"]["bytes"] == folded.stat().st_size
    assert "batch norm of 15 layers folded into scales and biases" in json.loads(out)["notes"]
    _, out, _ = run(
        "quantize", digits_bn, "-o", kept, "--plan", path, "--fold-batch-norm", "no", "--json", "-"
    )
    assert folded.stat().st_size < kept.stat().st_size <= json.loads(out)["predicted"]["bytes"]
    assert json.loads(out)["form"]["fold_batch_norm"] == "no"
    counts = [
        sum(node.op_type == "BatchNormalization" for node in onnx.load(model).graph.node)
        for model in (folded, kept)
    ]
    assert counts == [0, 15]


def test_bits_edited_by_hand(run: Run, digits_bn: Path, plan: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["layers"][1]["bits"] = 7
        content["skipped"].append(content["layers"].pop(2))

    edit(plan, change)
    target = tmp_path / "small.onnx"
    code, out, err = run("quantize", digits_bn, "-o", target, "--plan", plan, *FAST, "--json", "-")
    plain = json.loads(out)
    assert (code, err) == (0, "")
    changed = plain["layers"][1]
    assert (changed["bits"], changed["reason"][:4]) == (7, "plan")
    assert len(plain["layers"]) == 14
    stored = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert json.loads(stored["onnx_dfmpc.bits"])[changed["name"]] == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda content: content["layers"][1].update(name="/blocks/blocks.0/conv1/Con"),
            "did you mean /blocks/blocks.0/conv1/Conv?",
        ),
        (lambda content: content["layers"].pop(1), "layer '/blocks/blocks.0/conv1/Conv' is missing"),
        (lambda content: content["layers"].append(content["layers"][1]), "is there 2 times"),
        (lambda content: content["skipped"].append({"name": "/conv/Cnov"}), "did you mean /conv/Conv?"),
        (lambda content: content["layers"][1].update(bits=1), "2 to 8"),
        (lambda content: content["model"].update(sha256="0"), "another model"),
        (
            lambda content: content.update(layers=[], skipped=content["skipped"] + content["layers"]),
            "nothing to quantize: plan: stays float",
        ),
        (lambda content: content.clear(), "not a plan"),
    ],
)
def test_a_plan_that_does_not_fit(
    run: Run, digits_bn: Path, plan: Path, tmp_path: Path, change: Edit, words: str
) -> None:
    edit(plan, change)
    target = tmp_path / "small.onnx"
    code, out, err = run("quantize", digits_bn, "-o", target, "--plan", plan)
    assert (code, out) == (3 if "nothing" in words else 2, "")
    assert words in err
    assert len(err.splitlines()) in (1, 2)
    assert not target.exists()


def test_a_plan_for_the_folded_network_is_refused(run: Run, digits_folded: Path, plan: Path) -> None:
    code, _, err = run("quantize", digits_folded, "--dry-run", "--plan", plan)
    assert code == 2
    assert "another model" in err


@pytest.mark.parametrize(
    "flags",
    [
        *(
            ["--bits", "4"],
            ["--low-bits", "2"],
            ["--target-size", "30K"],
            ["--target-bits", "4"],
            ["--preset", "smallest"],
        ),
        *(["--set", "a=4"], ["--nodes-to-exclude", "x"], ["--min-bits", "3"], ["--method", "paper"]),
        ["-c", "recipe.toml"],
    ],
)
def test_what_a_plan_has_decided_is_no_flag(
    run: Run, digits_bn: Path, plan: Path, tmp_path: Path, flags: list[str]
) -> None:
    (tmp_path / "recipe.toml").write_text('[defaults]\nrounding = "nearest"\n', encoding="utf-8")
    flags = [str(tmp_path / flag) if flag.endswith(".toml") else flag for flag in flags]
    code, out, err = run("quantize", digits_bn, "--dry-run", "--plan", plan, *flags)
    assert (code, out) == (2, "")
    assert "exclude each other" in err
    assert "edit the plan" in err


def test_a_saved_recipe_does_the_same_again(
    run: Run, digits_bn: Path, digits_data: Path, tmp_path: Path
) -> None:
    recipe, first, second = (tmp_path / name for name in ("recipe.toml", "first.onnx", "second.onnx"))
    argv = (*BITS, "--data", digits_data, *FAST)
    assert run("plan", digits_bn, *argv, "--save-recipe", recipe, "-q") == (0, "", "")
    assert run("quantize", digits_bn, "-o", first, *argv, "-q") == (0, "", "")
    assert run("quantize", digits_bn, "-o", second, "-c", recipe, "-q") == (0, "", "")
    assert first.read_bytes() == second.read_bytes()
    before = recipe.read_bytes()
    assert run("plan", digits_bn, *argv, "--save-recipe", recipe)[0] == 2
    assert recipe.read_bytes() == before
