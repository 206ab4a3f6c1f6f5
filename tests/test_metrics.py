"""What classifiers are compared by, against SciPy, plain loops and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import ModelProto, parser
from scipy import special, stats

from onnx_dfmpc.evaluate.classes import among_best, divergence, paired_interval
from onnx_dfmpc.evaluate.command import repeat_command
from onnx_dfmpc.evaluate.compare import validate
from onnx_dfmpc.evaluate.gates import gate_results
from onnx_dfmpc.evaluate.validation import OutputMetrics, ValidationReport
from onnx_dfmpc.recipe import Data, Gates

SCORES = hnp.arrays(np.float32, (3, 7), elements=st.floats(-30, 30, width=32))


@given(SCORES, SCORES)
def test_divergence_of_logits_and_of_probabilities(a: np.ndarray, b: np.ndarray) -> None:
    p, q = (special.softmax(side.astype(np.float64), axis=1) for side in (a, b))
    expected = [stats.entropy(*pair) for pair in zip(p, q, strict=True)]
    np.testing.assert_allclose(divergence(a, b), expected, atol=1e-9)
    np.testing.assert_allclose(divergence(p, q), expected, atol=1e-6)


@given(SCORES, st.lists(st.integers(0, 6), min_size=3, max_size=3), st.integers(1, 6))
def test_among_the_best_against_sorting(scores: np.ndarray, classes: list[int], count: int) -> None:
    expected = [row[label] >= np.sort(row)[-count] for row, label in zip(scores, classes, strict=True)]
    assert among_best(scores, np.array(classes), count).tolist() == expected


@pytest.mark.parametrize("shares", [(0.02, 0.01), (0.05, 0.05), (0.10, 0.02), (0.0, 0.005)])
def test_the_interval_covers_the_truth(shares: tuple[float, float]) -> None:
    """Discordant samples drawn with known shares: 95 % of the intervals hold the true difference, and hardly
    more.
    """
    rng, samples, draws = np.random.default_rng(0), 500, 4000
    only_first, only_second, _ = rng.multinomial(samples, [*shares, 1 - sum(shares)], draws).T
    intervals = np.array(
        [paired_interval(b, c, samples) for b, c in zip(only_first, only_second, strict=True)]
    )
    truth = shares[1] - shares[0]
    covered = ((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean()
    assert covered >= 0.94
    wald = 2 * 1.96 * np.sqrt((sum(shares) - truth**2) / samples)
    assert np.median(intervals[:, 1] - intervals[:, 0]) <= wald + 2 * 4 / samples


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 1000))
def test_the_interval_is_one(only_first: int, only_second: int, both: int) -> None:
    samples = only_first + only_second + both + 1
    low, high = paired_interval(only_first, only_second, samples)
    assert -1 <= low < high <= 1
    mirrored = paired_interval(only_second, only_first, samples)
    assert mirrored == pytest.approx((-high, -low))


def test_a_drop_that_is_the_limit_meets_it() -> None:
    """In binary, 0.92 - 0.91 is more than 0.01."""
    report = ValidationReport(100, "", False, (), top1_float=0.92, top1_quantized=0.91)
    assert [gate.passed for gate in gate_results(Gates(max_top1_drop=0.01), report)] == [True]
    assert [gate.passed for gate in gate_results(Gates(max_top1_drop=0.0099), report)] == [False]


def test_what_is_printed_tells_a_value_from_its_limit() -> None:
    report = ValidationReport(100, "", False, (OutputMetrics("y", 0.98999999, 20.0, 0.1, 0.1),))
    (failed,) = gate_results(Gates(min_cosine=0.99), report)
    (passed,) = gate_results(Gates(min_cosine=0.9), report)
    assert str(failed) == "FAILED min_cosine: 0.98999999, limit 0.99"
    assert str(passed) == "PASSED min_cosine: 0.99, limit 0.9"
    feeding = Data(data="data.npz")
    assert "--min-cosine 0.9999999" in repeat_command(
        "a.onnx", "b.onnx", feeding, Gates(min_cosine=0.9999999)
    )


# ------------------------------------------------------------------------------------------------------
# two outputs


def network(classes: int = 8, scale: float = 1.0) -> ModelProto:
    """Scores of so many classes, and a box."""
    return parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, {classes}] x) => (float[N, {classes}] scores, float[N, 2, 2] box) <float s = {{{scale}}},
        int64[3] shape = {{-1, 2, 2}},
            int64[1] first = {{0}}, int64[1] last = {{4}}, int64[1] one = {{1}}> {{
            square = Mul(x, x)
            scaled = Mul(square, s)
            scores = Add(x, scaled)
            part = Slice(scores, first, last, one)
            box = Reshape(part, shape)
        }}""")


def test_top5_and_labels_against_numpy() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((300, 8)).astype(np.float32), rng.integers(0, 8, 300)
    report = validate(network(), network(scale=-1.0), {"x": x, "labels": labels})
    a, b = x + x * x, x - x * x
    best = np.argsort(-b, axis=1)[:, :5]
    assert report.outputs[0].top5_agreement == np.mean(
        [top in row for top, row in zip(a.argmax(1), best, strict=True)]
    )
    assert report.top5_quantized == np.mean([label in row for label, row in zip(labels, best, strict=True)])
    assert report.outputs[0].kl == pytest.approx(np.mean(divergence(a, b)), rel=1e-5)
    right = a.argmax(1) == labels, b.argmax(1) == labels
    assert report.top1_interval == paired_interval(
        int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()), 300
    )
    box = report.outputs[1]
    assert (box.kl, box.top1_agreement, box.top5_agreement) == (None, None, None)
    few = validate(network(5), network(5, -1.0), {"x": x[:, :5], "labels": labels % 5})
    assert (few.outputs[0].top5_agreement, few.top5_float, few.top5_quantized) == (None, None, None)
    assert few.top1_interval is not None
