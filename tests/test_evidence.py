"""What a report shows of a layer."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnx_dfmpc.evaluate.evidence import histogram, most_changed

numbers = st.floats(-1e3, 1e3)


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=8))
def test_every_weight_is_in_a_bin(rows: list[list[float]]) -> None:
    weight = np.array(rows)
    quantized = np.rint(weight)
    found = histogram("layer", weight, quantized, 0)
    assert sum(found.float_counts) == sum(found.quantized_counts) == weight.size
    assert found.low == -found.high <= -1


@given(st.lists(st.one_of(st.none(), st.floats(0, 60)), min_size=1, max_size=20), st.integers(2, 8))
def test_shown_layers_are_the_ends_and_the_worst(sqnr: list[float | None], count: int) -> None:
    shown = most_changed(sqnr, count)
    assert {0, len(sqnr) - 1} <= set(shown)
    assert len(shown) <= max(count, 2)
    assert list(shown) == sorted(set(shown))
    chosen = [value for place in shown[1:-1] if (value := sqnr[place]) is not None]
    left = [value for place, value in enumerate(sqnr[1:-1], 1) if value is not None and place not in shown]
    assert not chosen or not left or max(chosen) <= min(left)
