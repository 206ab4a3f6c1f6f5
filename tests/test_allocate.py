"""Bits per layer: who is paired with whom, whose rule wins, and that nobody is forgotten or named twice."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper, parser

from onnx_dfmpc.allocate.fixed import allocate_fixed, pairs
from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.spec import Chain, Layer, MatchReport, QuantPlan, Skipped
from tests.arrays import layer

# Two residual blocks between a stem and two heads.
RESNET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 8, 8] x) => (float[N, 5] scores, float[N, 2] boxes) {
    [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0)
    s1 = Relu(s)
    [a1] a = Conv <pads = [1, 1, 1, 1]> (s1, w1)
    a_ = Relu(a)
    [a2] b = Conv <pads = [1, 1, 1, 1]> (a_, w2)
    b_ = Add(b, s1)
    b1 = Relu(b_)
    [b1] c = Conv <pads = [1, 1, 1, 1]> (b1, w3)
    c_ = Relu(c)
    [b2] d = Conv <pads = [1, 1, 1, 1]> (c_, w4)
    d_ = Add(d, b1)
    d1 = Relu(d_)
    p = GlobalAveragePool(d1)
    f = Flatten(p)
    [scores] scores = Gemm <transB = 1> (f, w5)
    [boxes] boxes = Gemm <transB = 1> (f, w6)
}"""


@pytest.fixture(scope="module")
def resnet() -> MatchReport:
    model = parser.parse_model(RESNET)
    shapes = {"w0": (4, 3, 3, 3), **{f"w{i}": (4, 4, 3, 3) for i in range(1, 5)}, "w5": (5, 4), "w6": (2, 4)}
    return match(with_weights(model, shapes))


def with_weights(model: ModelProto, shapes: dict[str, tuple[int, ...]]) -> ModelProto:
    rng = np.random.default_rng(0)
    model.graph.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    )
    return model


def plan(report: MatchReport, **knobs: Any) -> QuantPlan:
    """Plan of the paper's method, which puts the low layer first, unless another is named."""
    bits = {} if {"bits", "low_bits"} & set(knobs) else {"low_bits": 3, "high_bits": 6}
    return allocate_fixed(
        report, Recipe(**{"method": "paper"} | bits | knobs), "sha", lambda layer, bits: 4.0**-bits
    )


def bits(plan: QuantPlan) -> dict[str, int]:
    return {layer.name: layer.bits for layer in plan.layers}


def roles(plan: QuantPlan) -> dict[str, str]:
    return {layer.name: layer.role for layer in plan.layers}


def test_the_blocks_of_a_residual_network_are_the_pairs(resnet):
    assert pairs(resnet.layers, resnet) == [("a1", ("a2",)), ("b1", ("b2",))]


def test_paired_bits(resnet):
    found = plan(resnet, low_bits=2, high_bits=6)
    assert bits(found) == {"stem": 8, "a1": 2, "a2": 6, "b1": 2, "b2": 6, "scores": 8, "boxes": 8}
    assert roles(found) == {
        "stem": "edge",
        "a1": "low",
        "a2": "high",
        "b1": "low",
        "b2": "high",
        "scores": "edge",
        "boxes": "edge",
    }
    assert found["a1"].reason == "paired with a2"
    assert found["stem"].reason == "the first layer"
    assert found["boxes"].reason == "the last layer"
    assert found.model_sha256 == "sha"


def test_uniform_bits(resnet):
    found = plan(resnet, bits=4, first_last_bits=7)
    assert bits(found) == {"stem": 7, "a1": 4, "a2": 4, "b1": 4, "b2": 4, "scores": 7, "boxes": 7}
    assert {role for name, role in roles(found).items() if name not in ("stem", "scores", "boxes")} == {
        "inner"
    }


def test_the_last_rule_that_matches_wins_even_at_the_edges(resnet):
    found = bits(plan(resnet, set=[("^a", 5), ("1$", 7), ("stem|boxes", 3), ("boxes", 4)]))
    assert found == {"stem": 3, "a1": 7, "a2": 5, "b1": 7, "b2": 6, "scores": 8, "boxes": 4}
    assert plan(resnet, set=[("^a", 5), ("1$", 7)])["a1"].reason == "set by '1$'"


def test_excluded_layers_are_skipped_and_leave_no_pair(resnet):
    found = plan(resnet, low_bits=2, high_bits=6, nodes_to_exclude=["a2", "boxes"])
    assert bits(found) == {"stem": 8, "a1": 6, "b1": 2, "b2": 6, "scores": 8}
    assert found["a1"].reason == "in no pair"
    assert {skipped.name: skipped.reason for skipped in found.skipped} == {
        "a2": "left out by node 'a2'",
        "boxes": "left out by node 'boxes'",
    }


def test_a_name_that_is_not_there(resnet):
    with pytest.raises(RecipeError, match="rule for node 'score' matches no layer") as error:
        plan(resnet, nodes_to_exclude=["score"])
    assert "scores" in error.value.hint


def test_a_rule_that_matches_nothing(resnet):
    with pytest.raises(RecipeError, match="'boxs' matches no layer") as error:
        plan(resnet, set=[("boxs", 4)])
    assert "boxes" in error.value.hint


def test_a_skipped_layer_may_be_excluded(resnet):
    report = MatchReport(
        resnet.layers,
        resnet.chains,
        (Skipped("odd", "Conv", "its weight is computed"),),
        resnet.weighted_nodes + 1,
    )
    found = plan(report, nodes_to_exclude=["odd"])
    assert len(found.layers) == len(resnet.layers)
    assert [skipped.reason for skipped in found.skipped] == ["its weight is computed"]


def test_methods_choose_grid_and_rounding(resnet):
    paper, ours = (plan(resnet, low_bits=2, high_bits=6, method=method) for method in ("paper", "dfmpc"))
    assert [(x.grid, x.rounding, x.per_channel) for x in (paper["a1"], paper["a2"])] == [
        ("ternary", "nearest", False),
        ("symmetric", "nearest", False),
    ]
    assert {(x.grid, x.rounding, x.per_channel) for x in ours.layers} == {("asymmetric", "gptq", True)}
    assert plan(resnet, rounding="squant")["a1"].rounding == "squant"


def test_a_producer_of_several_consumers_is_one_pair():
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
            [first] a = Conv(x, w0)
            [squeeze] b = Conv(a, w1)
            r = Relu(b)
            [left] c = Conv(r, w4)
            [right] d = Conv(r, w2)
            e = Concat <axis = 1> (c, d)
            [last] y = Conv(e, w3)
        }""")
    report = match(
        with_weights(
            model, {"w0": (4, 3, 1, 1), "w3": (4, 8, 1, 1)} | dict.fromkeys(("w1", "w2", "w4"), (4, 4, 1, 1))
        )
    )
    assert pairs(report.layers, report) == [("squeeze", ("left", "right"))]
    found = bits(plan(report, low_bits=2, high_bits=6))
    assert found == {"first": 8, "squeeze": 2, "left": 6, "right": 6, "last": 8}
    recipe = Recipe(low_bits=2, high_bits=6)
    second = bits(
        allocate_fixed(report, recipe, "sha", lambda layer, bits: (layer.name == "squeeze") * 4.0**-bits)
    )
    assert (second["squeeze"], second["left"], second["right"]) == (6, 2, 2)


# Any network at all

networks = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from(["", "", "", "first", "last"]), min_size=n, max_size=n),
        st.lists(st.sets(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n),
        st.sets(st.integers(0, n - 1)),
    )
)


def build(network) -> tuple[list[Layer], MatchReport, list[str]]:
    edges, targets, excluded = network
    layers = [layer(name=f"n{i}", weight=f"w{i}", edge=edge) for i, edge in enumerate(edges)]
    chains = [
        Chain(f"n{i}", tuple(f"n{j}" for j in sorted(t)), "Relu", ("Relu",), True)
        for i, t in enumerate(targets)
        if t
    ]
    return layers, MatchReport(tuple(layers), tuple(chains), (), len(layers)), [f"n{i}" for i in excluded]


@given(networks)
def test_no_layer_is_in_two_pairs_and_none_at_the_edges_in_any(network):
    layers, report, _ = build(network)
    found = pairs(layers, report)
    named = [name for producer, consumers in found for name in (producer, *consumers)]
    assert len(set(named)) == len(named)
    assert not {layer.name for layer in layers if layer.edge} & set(named)
    chains = {chain.producer: chain for chain in report.chains}
    assert all(consumers and consumers == chains[producer].consumers for producer, consumers in found)


@given(networks, st.booleans(), st.sampled_from(["dfmpc", "paper"]))
def test_every_layer_is_planned_or_skipped_once_and_in_order(network, uniform, method):
    layers, report, excluded = build(network)
    knobs = {"bits": 4} if uniform else {"low_bits": 2, "high_bits": 6}
    found = plan(report, nodes_to_exclude=excluded, method=method, **knobs)
    planned, skipped = [x.name for x in found.layers], [x.name for x in found.skipped]
    assert sorted(planned + skipped) == sorted(x.name for x in layers)
    assert set(skipped) == set(excluded)
    assert planned == [x.name for x in layers if x.name in planned]
    for done in found.layers:
        assert done.reason
        allowed = {"low": 2, "high": 6, "inner": 4, "edge": 8}
        assert done.bits == allowed[done.role]


def test_the_default_takes_the_position_that_makes_less_noise(resnet):
    (producer, (consumer,)), *_ = pairs(resnet.layers, resnet)
    for loud, low in ((producer, consumer), (consumer, producer)):
        found = allocate_fixed(
            resnet,
            Recipe(low_bits=2, high_bits=6),
            "sha",
            lambda layer, bits, loud=loud: (9 if layer.name == loud else 1) / bits,
        )
        assert bits(found)[low] == 2
        assert bits(found)[loud] == 6


def test_the_paper_puts_the_low_layer_first(resnet):
    recipe = Recipe(low_bits=2, high_bits=6, method="paper")
    found = bits(allocate_fixed(resnet, recipe, "sha", lambda layer, bits: 4.0**-bits))
    for producer, consumers in pairs(resnet.layers, resnet):
        assert (found[producer], {found[name] for name in consumers}) == (2, {6})


def test_noise_that_enters_a_residual_stream_counts_half(resnet):
    summed = {chain.producer for chain in resnet.chains if "Add" in chain.path}
    found = bits(plan(resnet, low_bits=2, high_bits=6, method="dfmpc"))
    in_pairs = [
        pair for pair in pairs(resnet.layers, resnet) if pair[0] not in summed and summed >= set(pair[1])
    ]
    assert in_pairs
    for producer, consumers in in_pairs:
        assert found[producer] == 6
        assert {found[name] for name in consumers} == {2}
