"""The table that allocation spends from, against the files and the outputs that come of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_dfmpc import Recipe, apply, plan, quantize, validate
from onnx_dfmpc.allocate.budget import allocate_budget, budgets, candidate_widths
from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.pipeline.job import Job, prepare
from onnx_dfmpc.pipeline.run import plan_result
from onnx_dfmpc.pipeline.steps import Adjustment, adjustment_of, allocate, cost_table, measure, sweep_point
from onnx_dfmpc.recipe import bit_bounds
from onnx_dfmpc.rewrite.sizes import base_size, stored_sizes
from onnx_dfmpc.spec import CostTable


def prepared(path: Path, recipe: Recipe) -> Job:
    return prepare(path, recipe, None, {}, statistics=True, predicted=False)


def costs_of(path: Path, recipe: Recipe) -> CostTable:
    job = prepared(path, recipe)
    table, _ = cost_table(job, measure(job, job.planned, {}), {})
    assert table is not None
    return table


FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"storage": "native"},
    {"storage": "native", "unpack": "int8"},
    {"unpack": "int8"},
    {"unpack": "float"},
    {"slim": True},
    {"activations": 8},
    {"activations": 8, "slim": False},
)
BITS: tuple[dict[str, Any], ...] = (
    {"bits": 2},
    {"bits": 5},
    {"low_bits": 3, "high_bits": 6},
    {"target_bits": 3.5},
    {"bits": 3, "method": "paper"},
)


# Every second cell of the matrix is quick: all forms and all bits are among them, the other pairs are for
# `make test-all`.
@pytest.mark.parametrize(
    ("bits", "form"),
    [
        pytest.param(bits, form, marks=pytest.mark.slow if (row + column) % 2 else ())
        for row, bits in enumerate(BITS)
        for column, form in enumerate(FORMS)
    ],
    ids=lambda knobs: "-".join(map(str, knobs.values())) or "native",
)
def test_the_bytes_of_the_file_are_predicted(
    digits_bn: Path, bits: dict[str, Any], form: dict[str, Any]
) -> None:
    recipe = Recipe(**bits, **form, rounding="nearest", statistics="closed_form", input_range=(0, 1))
    result = quantize(digits_bn, None, recipe, validated=False)
    predicted = result.plan.predicted_bytes
    assert predicted is not None
    assert result.size <= predicted
    assert predicted == result.size or (
        "method" in bits and predicted < 1.05 * result.size
    )  # the paper's grids are of whole tensors
    planned = {layer.name: layer.bytes for layer in result.plan.layers}
    assert all(layer.bytes <= planned[layer.name] for layer in result.layers)


@pytest.mark.parametrize("bits", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_a_plan_knows_what_quantize_finds(digits_bn: Path, digits_data: Path, bits: int) -> None:
    made = plan(digits_bn, Recipe(bits=bits))
    result = quantize(digits_bn, None, Recipe(bits=bits))
    assert made == result.plan
    assert result.expectation is not None
    low, point, high = made.predicted_low_db, made.predicted_sqnr_db, made.predicted_high_db
    assert (low, point, high) == (
        result.expectation.low_db,
        result.expectation.sqnr_db,
        result.expectation.high_db,
    )
    assert low <= point <= high
    real = validate(digits_bn, result.model, digits_data)
    assert abs(point - real.sqnr_db) < 6


def test_the_closed_form_comes_where_the_result_is_not_run(digits_bn: Path) -> None:
    recipes = [Recipe(bits=bits, input_range=(0, 1)) for bits in (2, 4)]
    closed = quantize(digits_bn, None, recipes[0], validated=False)
    assert (closed.expectation, closed.plan.predicted_low_db) == (None, None)
    noise = sum(layer.noise or 0 for layer in closed.plan.layers)
    assert closed.plan.predicted_sqnr_db == pytest.approx(-10 * np.log10(noise))
    found = [quantize(digits_bn, None, recipe) for recipe in recipes]
    assert [layer.noise for layer in found[0].plan.layers] == [layer.noise for layer in closed.plan.layers]
    predicted = [result.plan.predicted_sqnr_db for result in found]
    measured = [result.validation.sqnr_db for result in found if result.validation is not None]
    assert predicted[0] + 6 < predicted[1]
    assert measured[0] + 6 < measured[1]


def test_plain_rounding_predicts_bytes_alone(digits_bn: Path) -> None:
    result = quantize(digits_bn, None, Recipe(bits=4, rounding="nearest", repair="none"), validated=False)
    assert result.plan.predicted_bytes is not None
    assert (result.plan.predicted_sqnr_db, result.plan.source) == (None, "")


def test_a_plan_whose_predictions_were_dropped_is_predicted_again(digits_bn: Path) -> None:
    made = allocate(prepared(digits_bn, Recipe(bits=4)), None, {})
    assert (made.predicted_bytes, made.predicted_sqnr_db) == (None, None)
    result = apply(digits_bn, made, validated=False)
    assert result.plan == quantize(digits_bn, None, Recipe(bits=4), validated=False).plan


def test_rows_are_the_layers_that_are_not_excluded(digits_bn: Path) -> None:
    recipe = Recipe(
        target_bits=4,
        statistics="closed_form",
        nodes_to_exclude=["/conv/Conv"],
        rules=({"regex": "fc", "bits": 3},),
        input_range=(0, 1),
    )
    table = costs_of(digits_bn, recipe)
    found = bit_bounds(match(load(digits_bn).proto), recipe)
    assert list(table.layers) == [name for name in found if not found[name].excluded]
    assert table.noise.shape == table.sizes.shape == (15, len(table.widths))
    assert (np.diff(table.noise, axis=1) <= 0).all()
    assert (
        table.sizes[:, :-1] <= table.sizes[:, -1:]
    ).all()  # between, a zero point may cost more than a bit


@pytest.mark.parametrize(
    ("knobs", "source"),
    [({"statistics": "closed_form"}, "bn"), ({"statistics": "probe"}, "probe"), ({}, "probe")],
)
def test_where_the_noise_comes_from(digits_bn: Path, knobs: dict[str, Any], source: str) -> None:
    assert costs_of(digits_bn, Recipe(target_bits=4, input_range=(0, 1), **knobs)).source == source


def test_noise_on_the_data_of_the_user(digits_bn: Path, digits_data: Path) -> None:
    images = str(digits_data)
    assert costs_of(digits_bn, Recipe(target_bits=4, calibration_data=images)).source == "measured"


@pytest.mark.parametrize(
    ("network", "size"),
    [
        ("har_conv1d_bn", "30KiB"),
        pytest.param("cifar10_resnet20_bn", "190KiB", marks=pytest.mark.slow),
        pytest.param("imagenet_mobilenet_v1_025_128_folded", "240KiB", marks=pytest.mark.slow),
    ],
)
def test_a_size_is_used_up_and_never_exceeded(
    shared_dir: Path, tmp_path: Path, network: str, size: str
) -> None:
    target, recipe = tmp_path / "small.onnx", Recipe(target_size=size, samples=4)  # type: ignore[arg-type]
    result = quantize(shared_dir / "models" / f"{network}.onnx", target, recipe)
    assert recipe.target_size is not None
    assert 0.94 * recipe.target_size <= target.stat().st_size == result.size <= recipe.target_size
    assert len({layer.bits for layer in result.layers}) > 1
    assert all(layer.reason for layer in result.layers)


@pytest.mark.parametrize("target", [{"target_size": "20kB"}, {"target_bits": 2.5, "min_bits": 3}])
def test_what_cannot_be_met_is_refused_before_anything_is_predicted(
    digits_bn: Path, monkeypatch: pytest.MonkeyPatch, target: dict[str, Any]
) -> None:
    monkeypatch.setattr("onnx_dfmpc.pipeline.run.measure", lambda *_, **__: pytest.fail("predicted"))
    with pytest.raises(UnsupportedError, match="cannot be met"):
        plan(digits_bn, Recipe(**target))


def test_the_smallest_file_is_named_to_the_byte(digits_bn: Path, tmp_path: Path) -> None:
    fast: dict[str, Any] = {"statistics": "closed_form", "rounding": "nearest"}
    with pytest.raises(UnsupportedError, match="cannot be met") as refused:
        plan(digits_bn, Recipe(target_size=1000, **fast))
    least = int(refused.value.hint.split()[2])
    with pytest.raises(UnsupportedError):
        plan(digits_bn, Recipe(target_size=least - 1, **fast))
    target = tmp_path / "small.onnx"
    quantize(digits_bn, target, Recipe(target_size=least, **fast), validated=False)
    assert target.stat().st_size == least
    smallest, *_ = plan_result(digits_bn, Recipe(target_bits=4, slim=True, **fast), sweep=3).sweep
    assert (smallest.budget, smallest.bytes) == (least, least)


def test_any_size_is_used_up(shared_model: Path) -> None:
    """Whatever the layers' noise is, and for every budget from the smallest file to the largest: what is left
    of it is too little for more bits in any layer.
    """
    model = load(shared_model).proto
    report, recipe, widths = match(model), Recipe(target_bits=4), tuple(range(2, 9))
    names = tuple(layer.name for layer in report.layers)
    sizes, base = (
        stored_sizes(model, report, widths, recipe.form),
        base_size(model, report, names, widths, recipe.form),
    )
    noise = 10 ** np.random.default_rng(0).uniform(-6, -3, (len(names), 1)) * 4.0 ** -np.arange(len(widths))
    table = CostTable(names, widths, noise, sizes, base, "bn")
    for budget in budgets(report, recipe, table, 20):
        made = allocate_budget(report, Recipe(target_size=budget), "", table)
        assert made.predicted_bytes is not None
        assert made.predicted_bytes <= budget
        chosen = np.array([widths.index(layer.bits) for layer in made.layers])
        now = np.take_along_axis(sizes, chosen[:, None], 1)
        allowed = candidate_widths(names, widths, sizes, bit_bounds(report, Recipe(target_size=budget)))
        steps = (sizes - now)[allowed & (np.arange(len(widths)) > chosen[:, None])]
        assert min(steps, default=math.inf) > budget - base - now.sum()


def test_what_is_expected_shifts_what_a_table_adds_up_to(digits_bn: Path) -> None:
    """Budgets are compared with one another by the table, and with the result by what the result was found
    to do: the plan that was made lies on its own curve.
    """
    recipe = Recipe(target_bits=4)
    job = prepare(digits_bn, recipe, None, {}, statistics=True, predicted=False)
    costs, _ = cost_table(job, measure(job, job.planned, {}), {})
    assert costs is not None
    made = allocate(job, costs, {})
    assert made.predicted_sqnr_db is not None
    assert made.predicted_bytes is not None
    assert adjustment_of(made, costs).offset_db == pytest.approx(0)
    worse = replace(made, predicted_sqnr_db=made.predicted_sqnr_db - 3)
    adjust = adjustment_of(worse, costs)
    assert adjust.offset_db == pytest.approx(-3)
    assert sweep_point(job, made.predicted_bytes, made, adjust).predicted_sqnr_db == pytest.approx(
        worse.predicted_sqnr_db
    )
    assert adjustment_of(replace(made, predicted_sqnr_db=None), costs) == Adjustment()
