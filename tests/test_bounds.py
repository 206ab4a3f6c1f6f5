"""What a recipe leaves open for every layer: the order of rules, bounds on what is fixed, and names that are
not there.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import BitBounds, Recipe, bit_bounds
from onnx_dfmpc.spec import MatchReport, Skipped
from tests.arrays import layer

LAYERS = (
    layer(name="stem", edge="first"),
    layer(name="block1.conv1"),
    layer(name="block1.conv2"),
    layer("MatMul", (7, 4), axis=1, name="block2.mix"),
    layer("Gemm", (4, 7), name="fc", edge="last"),
)
MATCHED = MatchReport(LAYERS, (), (Skipped("gru", "GRU", "its weight is computed at run time"),), 6)
BITS = st.integers(2, 8)


def found(*rules: dict[str, Any], **knobs: Any) -> dict[str, BitBounds]:
    return bit_bounds(MATCHED, Recipe(**{"rules": rules, "target_bits": 4} | knobs))


def bounds(*rules: dict[str, Any], **knobs: Any) -> dict[str, tuple[int, int]]:
    return {name: (limit.low, limit.high) for name, limit in found(*rules, **knobs).items()}


def test_without_rules_a_target_decides_for_every_layer() -> None:
    assert set(bounds(min_bits=3, max_bits=7).values()) == {(3, 7)}
    open_ = found()["stem"]
    assert (open_.bits, open_.excluded, open_.reason) == (None, False, "")


def test_the_edges_are_fixed_where_bits_are_given_for_them_or_no_target_decides() -> None:
    assert bounds(min_bits=3, max_bits=7, first_last_bits=6) == {
        "stem": (6, 6), "block1.conv1": (3, 7), "block1.conv2": (3, 7), "block2.mix": (3, 7), "fc": (6, 6)
    }  # fmt: skip
    for knobs in ({"bits": 4}, {"low_bits": 2}):
        uniform = found(target_bits=None, **knobs)
        assert uniform["stem"].bits == uniform["fc"].bits == 8
        assert "first" in uniform["stem"].reason


def test_each_selector() -> None:
    assert [name for name, limit in found({"regex": "conv[12]", "bits": 3}).items() if limit.bits == 3] == [
        "block1.conv1",
        "block1.conv2",
    ]
    assert [name for name, limit in found({"node": "fc", "bits": 3}).items() if limit.bits == 3] == ["fc"]
    assert [name for name, limit in found({"op_type": "MatMul", "bits": 3}).items() if limit.bits == 3] == [
        "block2.mix"
    ]


@given(st.lists(st.tuples(st.sampled_from(["stem", "block1", "conv1", "."]), BITS), min_size=1, max_size=5))
def test_the_last_match_wins(pairs: list[tuple[str, int]]) -> None:
    as_rules = found(*({"regex": pattern, "bits": bits} for pattern, bits in pairs))
    for name, limit in as_rules.items():
        matching = [bits for pattern, bits in pairs if pattern == "." or pattern in name]
        assert limit.bits == (matching[-1] if matching else None)
    assert as_rules == found(set=pairs)
    assert as_rules == found(
        *({"regex": pattern, "bits": bits} for pattern, bits in pairs[:-1]), set=pairs[-1:]
    )


@given(BITS, BITS, BITS)
def test_bounds_move_what_was_fixed_before_and_yield_to_what_is_fixed_later(
    low: int, high: int, bits: int
) -> None:
    low, high = min(low, high), max(low, high)
    rule = {"regex": ".", "min_bits": low, "max_bits": high}
    moved = bounds({"regex": "conv1", "bits": bits}, rule, first_last_bits=bits)
    assert moved["block1.conv1"] == moved["stem"] == (min(max(bits, low), high),) * 2
    assert moved["block1.conv2"] == (low, high)
    assert bounds(rule, {"regex": "conv1", "bits": bits})["block1.conv1"] == (bits, bits)


def test_each_bound_alone_keeps_the_other() -> None:
    chosen = bounds(
        {"op_type": "Conv", "min_bits": 4}, {"regex": "conv2", "max_bits": 5}, min_bits=3, max_bits=6
    )
    assert (chosen["block1.conv1"], chosen["block1.conv2"], chosen["block2.mix"]) == ((4, 6), (4, 5), (3, 6))
    assert chosen["stem"] == (4, 6)


def test_bounds_that_leave_nothing() -> None:
    with pytest.raises(RecipeError, match=r"block1.conv2.*min_bits = 6.*max_bits = 4") as caught:
        found({"regex": "conv", "max_bits": 4}, {"node": "block1.conv2", "min_bits": 6})
    assert "last rule" in caught.value.hint


def test_exclusion() -> None:
    excluded = found(
        {"regex": "block1", "exclude": True}, {"regex": "conv2", "exclude": False}, nodes_to_exclude=["fc"]
    )
    assert {name for name, limit in excluded.items() if limit.excluded} == {"block1.conv1", "fc"}
    assert "'block1'" in excluded["block1.conv1"].reason
    assert excluded["fc"].reason == "left out by node 'fc'"


def test_what_stays_float_may_be_excluded_but_not_given_bits() -> None:
    assert found({"node": "gru", "exclude": True}, nodes_to_exclude=["gru"]) == found()
    with pytest.raises(RecipeError, match=r"'gru' stays float: its weight is computed at run time"):
        found({"op_type": "GRU", "bits": 4})


@pytest.mark.parametrize(
    ("rule", "words", "hint"),
    [
        (
            {"node": "block1.conv3", "bits": 4},
            "node 'block1.conv3' matches no layer",
            "did you mean block1.conv",
        ),
        ({"regex": "^blok2.mix$", "bits": 4}, "'^blok2.mix$' matches no layer", "did you mean block2.mix?"),
        ({"node": "qqqq", "bits": 4}, "matches no layer", "inspect lists the layers"),
        ({"op_type": "Cnov", "bits": 4}, "op_type 'Cnov'", "there are Conv, Gemm, MatMul"),
    ],
)
def test_a_rule_for_nobody(rule: dict[str, Any], words: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        found(rule)
    assert words in str(caught.value)
    assert hint in caught.value.hint


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match=r"'block2\.mxi'") as caught:
        found(nodes_to_exclude=["fc", "block2.mxi"])
    assert caught.value.hint == "did you mean block2.mix?"
