"""Allocation by a cost table: against an integer program, and every promise about budgets, bounds and
reasons.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from onnx_dfmpc.allocate import knapsack
from onnx_dfmpc.allocate.budget import allocate_budget, budgets, candidate_widths, mean_bits, sweep
from onnx_dfmpc.allocate.knapsack import Choice, frontier
from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.recipe import BitBounds, Recipe
from onnx_dfmpc.spec import CostTable, MatchReport
from tests.arrays import layer

WIDTHS = tuple(range(2, 9))


def table(sizes: np.ndarray, noise: np.ndarray, base: int = 0) -> CostTable:
    names = tuple(f"n{i}" for i in range(len(sizes)))
    return CostTable(names, WIDTHS[: sizes.shape[1]], noise, sizes.astype(np.int64), base, "bn")


def program(costs: np.ndarray, loads: np.ndarray, capacity: float, allowed: np.ndarray) -> float | None:
    """Least cost of one option for each layer, loads within the capacity: the integer program, solved by
    HiGHS.
    """
    count, widths = costs.shape
    one_each = LinearConstraint(np.kron(np.eye(count), np.ones(widths)), 1, 1)
    unit = abs(capacity) or 1
    fits = LinearConstraint(loads.ravel()[None] / unit, -np.inf, capacity / unit)
    scale, bounds = costs.max(), Bounds(0, allowed.ravel().astype(np.float64))
    whole = np.ones(costs.size)
    found = milp(
        costs.ravel() / scale,
        constraints=[one_each, fits],
        integrality=whole,
        bounds=bounds,
        options={"mip_rel_gap": 1e-4},
    )
    return None if found.x is None else float(found.fun * scale)


@st.composite
def problems(draw: st.DrawFn) -> tuple[CostTable, np.ndarray, int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, widths = draw(st.integers(1, 9)), draw(st.integers(1, 7))
    sizes = np.sort(rng.integers(1, 10 ** draw(st.integers(1, 6)), (count, widths)), axis=1)
    noise = 10 ** rng.uniform(-6, 0, (count, 1)) * np.sort(rng.random((count, widths)), axis=1)[:, ::-1]
    if draw(st.booleans()):
        noise = 10 ** rng.uniform(-6, 0, (count, 1)) * 4.0 ** -np.arange(widths)
    allowed = rng.random((count, widths)) < 0.8
    allowed[np.arange(count), rng.integers(0, widths, count)] = True
    base = int(rng.integers(0, 1000))
    return table(sizes, noise, base), allowed, base + int(sizes.sum(axis=0)[0] * rng.uniform(0.8, 3))


def choose(table: CostTable, budget: int, allowed: np.ndarray) -> Choice | None:
    """Widths with the least summed noise in a budget in bytes of the whole file."""
    return frontier(table, allowed, budget - table.base).within(budget - table.base)


def cost(costs: np.ndarray, chosen: np.ndarray) -> float:
    return float(costs[np.arange(len(chosen)), chosen].sum())


@given(problems())
def test_the_choice_is_within_two_percent_of_the_integer_program(problem):
    costs, allowed, budget = problem
    chosen = choose(costs, budget, allowed)
    best = program(costs.noise, costs.sizes, budget - costs.base, allowed)
    least = np.where(allowed, costs.sizes, np.iinfo(np.int64).max).min(axis=1).sum() + costs.base
    assert (chosen is None) == (least > budget)
    if chosen is not None:
        assert best is not None
        assert allowed[np.arange(len(chosen)), chosen].all()
        assert cost(costs.sizes, chosen) + costs.base <= budget
        assert cost(costs.noise, chosen) <= 1.02 * best


@given(problems())
def test_nothing_that_fits_and_helps_is_left_undone(problem):
    costs, allowed, budget = problem
    chosen = choose(costs, budget, allowed)
    if chosen is None:
        return
    left = budget - costs.base - cost(costs.sizes, chosen)
    for row, width in enumerate(chosen):
        for wider in range(width + 1, len(costs.widths)):
            fits = costs.sizes[row, wider] - costs.sizes[row, width] <= left
            assert not (allowed[row, wider] and fits and costs.noise[row, wider] <= costs.noise[row, width])


@given(problems(), st.floats(0.1, 10))
def test_the_fewest_bytes_for_a_noise(problem, factor):
    costs, allowed, _ = problem
    noise = factor * costs.noise.mean(axis=1).sum()
    chosen = frontier(costs, allowed).below(noise)
    best = program(costs.sizes.astype(np.float64), costs.noise, noise, allowed)
    assert (chosen is None) == (best is None)
    if chosen is not None:
        assert best is not None
        assert cost(costs.noise, chosen) <= noise
        assert cost(costs.sizes, chosen) <= 1.02 * best


@pytest.mark.parametrize("share", [0.3, *(pytest.param(one, marks=pytest.mark.slow) for one in (0.45, 0.7))])
def test_a_deep_network_is_solved_as_well(share, monkeypatch):
    rng = np.random.default_rng(0)
    weights = rng.integers(100, 300_000, (160, 1))
    sizes = weights * np.array(WIDTHS) // 8 + rng.integers(100, 400, (160, 1))
    costs = table(sizes, 10 ** rng.uniform(-6, -2, (160, 1)) * 4.0 ** -np.arange(7))
    allowed = np.ones(sizes.shape, bool)
    budget = int(share * sizes[:, -1].sum())
    best = program(costs.noise, sizes, budget, allowed)
    assert best is not None
    for most in (knapsack.MOST_POINTS, knapsack.MOST_POINTS // 4):
        monkeypatch.setattr(knapsack, "MOST_POINTS", most)
        chosen = choose(costs, budget, allowed)
        assert chosen is not None
        assert 0.94 * budget <= cost(sizes, chosen) <= budget
        assert cost(costs.noise, chosen) <= 1.02 * best


def test_the_widest_of_equals():
    costs = table(np.array([[10, 20, 20, 20], [10, 10, 10, 30]]), np.array([[4.0, 1, 1, 1], [2, 2, 2, 1]]))
    chosen = choose(costs, 30, np.ones((2, 4), bool))
    assert chosen is not None
    assert chosen.tolist() == [3, 2]


# A network of layers of many sizes

SIZES = (12, 16, 40, 16, 120, 80)
EDGES = {0: "first", 5: "last"}


@pytest.fixture(scope="module")
def report() -> MatchReport:
    layers = tuple(
        layer(name=f"n{i}", weight=f"w{i}", output=f"y{i}", shape=(size, 16, 3, 3), edge=EDGES.get(i, ""))
        for i, size in enumerate(SIZES)
    )
    return MatchReport(layers, (), (), len(layers))


@pytest.fixture(scope="module")
def costs(report: MatchReport) -> CostTable:
    noise = 10 ** np.random.default_rng(0).uniform(-3, -1, (len(SIZES), 1)) * 4.0 ** -np.arange(7)
    sizes = np.array([[one.size * width // 8 + 200 for width in WIDTHS] for one in report.layers])
    return table(sizes, noise, base=1000)


@pytest.fixture(scope="module")
def native(report: MatchReport, costs: CostTable) -> CostTable:
    stored = np.array([2, 4, 4, 8, 8, 8, 8])
    sizes = np.array([[one.size * width // 8 + 200 for width in stored] for one in report.layers])
    return replace(costs, sizes=sizes)


def test_a_size_is_met_and_not_exceeded(report, costs):
    for budget in range(14_000, 50_000, 1000):
        plan = allocate_budget(report, Recipe(target_size=budget), "sha", costs)
        assert plan.predicted_bytes is not None
        assert plan.predicted_bytes == costs.base + sum(planned.bytes or 0 for planned in plan.layers)
        full = all(planned.bits == 8 for planned in plan.layers)
        assert plan.predicted_bytes <= budget
        assert full or plan.predicted_bytes >= 0.94 * budget
        assert plan.predicted_sqnr_db == pytest.approx(
            -10 * np.log10(sum(planned.noise or 0 for planned in plan.layers))
        )
        assert plan.model_sha256 == "sha"


@pytest.mark.parametrize("target", [2.5, 3, 3.7, 5, 8])
def test_mean_bits_count_every_quantized_weight(report, costs, native, target):
    recipe = Recipe(target_bits=target)
    for one in (costs, native):
        plan = allocate_budget(report, recipe, "sha", one)
        assert 0.94 * target <= mean_bits(plan, report) <= target
    assert {
        planned.bits for planned in allocate_budget(report, Recipe(target_size=25_000), "sha", native).layers
    } <= {2, 4, 8}


def test_the_smallest_file_of_a_quality(report, costs):
    sizes = []
    for wanted in (12.0, 20.0, 30.0):
        plan = allocate_budget(report, Recipe(target_sqnr_db=wanted), "sha", costs)
        assert plan.predicted_sqnr_db is not None
        assert plan.predicted_bytes is not None
        assert plan.predicted_sqnr_db >= wanted
        sizes.append(plan.predicted_bytes)
        smaller = allocate_budget(report, Recipe(target_size=plan.predicted_bytes - 1), "sha", costs)
        assert smaller.predicted_sqnr_db is not None
        assert smaller.predicted_sqnr_db < wanted
    assert sizes == sorted(sizes)


def test_a_preset_is_a_quality(report, costs):
    by_name = allocate_budget(report, Recipe(preset="balanced"), "sha", costs)
    recipe = Recipe(preset="balanced")
    assert (
        by_name.layers
        == allocate_budget(report, Recipe(target_sqnr_db=recipe.target_sqnr_db), "sha", costs).layers
    )


def test_bounds_rules_and_exclusions_hold(report, costs):
    rules = [
        {"node": "n1", "bits": 3},
        {"node": "n2", "min_bits": 5},
        {"node": "n4", "max_bits": 4},
        {"node": "n3", "exclude": True},
    ]
    left = [name for name in costs.layers if name != "n3"]
    rows = [costs.layers.index(name) for name in left]
    part = replace(costs, layers=tuple(left), noise=costs.noise[rows], sizes=costs.sizes[rows])
    for budget in (22_000, 28_000, 34_000):
        plan = allocate_budget(
            report, Recipe(target_size=budget, first_last_bits=6, max_bits=7, rules=rules), "sha", part
        )
        bits = {planned.name: planned.bits for planned in plan.layers}
        assert list(bits) == left
        assert bits["n1"] == 3
        assert 5 <= bits["n2"] <= 7
        assert bits["n4"] <= 4
        assert bits["n0"] == bits["n5"] == 6
        assert plan["n1"].reason == "set by node 'n1'"
        assert [skipped.name for skipped in plan.skipped] == ["n3"]
        assert {planned.name: planned.role for planned in plan.layers} == {
            "n0": "edge",
            "n1": "inner",
            "n2": "inner",
            "n4": "inner",
            "n5": "edge",
        }


@pytest.mark.parametrize(
    ("asked", "pattern", "answer"),
    [
        (
            {"target_size": 3_000},
            r"the file has ([\d,]+) bytes",
            lambda found: {"target_size": int(found.replace(",", ""))},
        ),
        (
            {"target_bits": 2.0, "min_bits": 3},
            r"are ([\d.]+) on average",
            lambda found: {"target_bits": float(found), "min_bits": 3},
        ),
        ({"target_sqnr_db": 90.0}, r"is ([\d.]+) dB", lambda found: {"target_sqnr_db": float(found) - 0.05}),
    ],
)
def test_what_cannot_be_met_is_refused_with_what_can(report, costs, asked, pattern, answer):
    with pytest.raises(UnsupportedError, match="cannot be met") as error:
        allocate_budget(report, Recipe(**asked), "sha", costs)
    found = re.search(pattern, str(error.value))
    assert found
    assert error.value.hint
    allocate_budget(report, Recipe(**answer(found[1])), "sha", costs)
    if "target_size" in asked:
        with pytest.raises(UnsupportedError):
            allocate_budget(report, Recipe(target_size=answer(found[1])["target_size"] - 1), "sha", costs)


def test_reasons_say_what_the_next_code_costs(report, costs):
    plan = allocate_budget(report, Recipe(target_size=18_000), "sha", costs)
    for row, planned in enumerate(plan.layers):
        width = costs.widths.index(planned.bits)
        if planned.bits == 8:
            assert planned.reason.startswith("the most that is allowed")
            continue
        found = re.fullmatch(
            r"(\d) bits would cost ([\d.]+) (bytes|kB) more and gain ([\d.e-]+) dB", planned.reason
        )
        assert found
        extra = float(found[2]) * (1000 if found[3] == "kB" else 1)
        assert int(found[1]) == planned.bits + 1
        assert extra == pytest.approx(costs.sizes[row, width + 1] - costs.sizes[row, width], abs=50)
        total = sum(one.noise or 0 for one in plan.layers)
        better = total - costs.noise[row, width] + costs.noise[row, width + 1]
        assert float(found[4]) == pytest.approx(10 * np.log10(total / better), rel=0.06)


def test_a_sweep_is_the_plans_of_its_budgets(report, costs):
    recipe = Recipe(target_bits=4)
    wanted = [*budgets(report, recipe, costs, 12), 100]
    plans = sweep(report, recipe, "sha", costs, wanted)
    assert plans[-1] is None
    assert all(plan is not None for plan in plans[:-1])
    noise = [sum(planned.noise or 0 for planned in plan.layers) for plan in plans if plan is not None]
    assert noise == sorted(noise, reverse=True)
    for budget, plan in zip(wanted[:-1], plans, strict=False):
        assert plan == allocate_budget(report, Recipe(target_size=budget), "sha", costs)


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_widths_are_closed_only_where_a_wider_one_costs_the_same(count, seed):
    rng = np.random.default_rng(seed)
    sizes = np.sort(rng.integers(1000, 1100, (count, len(WIDTHS))), axis=1)
    names = [f"n{i}" for i in range(count)]
    low = rng.integers(2, 9, count)
    found = {name: BitBounds(int(a), int(rng.integers(a, 9))) for name, a in zip(names, low, strict=True)}
    opened = candidate_widths(names, WIDTHS, sizes, found)
    for row, name in enumerate(names):
        inside = [
            column for column, width in enumerate(WIDTHS) if found[name].low <= width <= found[name].high
        ]
        assert set(np.flatnonzero(opened[row])) <= set(inside)
        assert opened[row, inside[-1]]
        assert opened[row, inside[0]]
        assert candidate_widths(names, WIDTHS, sizes, found, nominal=True)[row].tolist() == [
            width in inside for width in range(len(WIDTHS))
        ]
        for column in inside:
            replaced = any(
                sizes[row, wider] <= 1.05 * sizes[row, column] + 32 for wider in inside if wider > column
            )
            assert opened[row, column] or replaced
