"""What the inputs are taken for: networks whose batch norms have seen inputs of a known range tell it; and the
mixtures that follow.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, parser

from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import Hypothesis, synthetic, usual_samples
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.spec import Feeds, InputSpec, Mixture
from onnx_dfmpc.statistics import belief as module
from onnx_dfmpc.statistics.belief import DEVIATIONS, RANGES, RAW, Belief, believe
from onnx_dfmpc.statistics.mixing import (
    FEWEST,
    KNOWN,
    MOST_KINDS,
    PLAUSIBLE,
    believed,
    blended,
    mixture_of,
    plausible,
)
from tests.graphs import noise, parse, whole

PICTURE = InputSpec("x", np.dtype(np.float32), ("N", 3, 24, 24))
SIGNAL = InputSpec("x", np.dtype(np.float32), ("N", 4, 32))


def trained(feeds: Feeds, rank: int, *, folded: bool, seed: int = 0) -> ModelProto:
    """Three convolutions with the batch norms that training on such inputs would leave, which expect the
    outputs they got, or with these folded.
    """
    rng = np.random.default_rng(seed)
    channels = [feeds[0]["x"].shape[1], 24, 24, 24]
    shape = ", ".join(["N", *map(str, feeds[0]["x"].shape[1:])])
    arrays: dict[str, np.ndarray] = {}
    body, at = "", "x"
    for place, (i, o) in enumerate(pairwise(channels)):
        arrays[f"w{place}"] = noise(o, i, *[3] * rank, seed=seed + place) / np.float32(np.sqrt(i * 3**rank))
        conv = f"y{place} = Conv <pads = {[1] * 2 * rank}> ({at}, w{place}{{}})"
        norm = f"n{place} = BatchNormalization (y{place}, g{place}, b{place}, m{place}, v{place})"
        before = f"g (float[{shape}] x) => (float[] y{place}) {{ {body} {conv.format('')} }}"
        (outputs,) = whole(parse(before, **arrays), [f"y{place}"], list(feeds))
        seen = np.moveaxis(np.concatenate(outputs), 1, 0).reshape(o, -1).astype(np.float64)
        gamma, beta = rng.uniform(0.5, 1.5, o), rng.standard_normal(o) / 2
        mean, variance = seen.mean(axis=1), seen.var(axis=1)
        if folded:
            factor = gamma / np.sqrt(variance)
            arrays[f"w{place}"] = (arrays[f"w{place}"].T * factor).T.astype(np.float32)
            arrays[f"b{place}"] = (beta - factor * mean).astype(np.float32)
            body += f" {conv.format(f', b{place}')} r{place} = Relu(y{place})"
        else:
            values = {"g": gamma, "b": beta, "m": mean, "v": variance}
            arrays |= {f"{name}{place}": np.float32(value) for name, value in values.items()}
            body += f" {conv.format('')} {norm} r{place} = Relu(n{place})"
        at = f"r{place}"
    arrays["last"] = noise(5, channels[-1], *[1] * rank)
    return parse(f"g (float[{shape}] x) => (float[] y) {{ {body} y = Conv({at}, last) }}", **arrays)


def inputs(spec: InputSpec, low: float, high: float, *, clipped: bool = True) -> Feeds:
    """Noise with the spectrum of photographs in a range: no hypothesis has inputs of this kind."""
    drawn = [feed["x"] for _, _, feed in synthetic([spec], "spectrum", samples=8, seed=7).batches()]
    moved = [values * np.float32((high - low) / 4) + np.float32((low + high) / 2) for values in drawn]
    return [{"x": np.clip(values, low, high) if clipped else values} for values in moved]


def belief_of(proto: ModelProto, **knobs: object) -> Belief:
    return believe(proto, match(proto).layers, model_inputs(proto), **knobs)


def weight_of(found: Belief, low: float, high: float) -> float:
    """Weight of inputs of any kind in a range."""
    pairs = zip(found.weights.tolist(), found.hypotheses, strict=True)
    return sum(weight for weight, one in pairs if (one.low, one.high) == pytest.approx((low, high)))


def deviation(hypothesis: Hypothesis) -> float:
    return (hypothesis.high - hypothesis.low) / 4


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_the_range_of_pictures_is_found(low: float, high: float, folded: bool) -> None:
    """Within a factor of two, which is the next convention; and the right one stays plausible."""
    found = belief_of(trained(inputs(PICTURE, low, high), 2, folded=folded))
    assert found.anchored is not folded
    assert found.weights.sum() == pytest.approx(1)
    assert weight_of(found, low, high) > PLAUSIBLE
    assert 0.5 <= deviation(found.likeliest) / ((high - low) / 4) <= 2
    raw = [weight for weight, one in zip(found.weights, found.hypotheses, strict=True) if one.high >= RAW]
    assert (sum(raw) > 0.99) if high >= RAW else (sum(raw) < 0.01)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("scale", DEVIATIONS[::2])
@pytest.mark.parametrize("centre", [0, -2])
def test_the_scale_of_signals_is_found(scale: float, centre: float, folded: bool) -> None:
    """Where the batch norm is kept; folded, it may be the next one, which is three times as much."""
    low, high = (centre - 2) * scale, (centre + 2) * scale
    found = belief_of(trained(inputs(SIGNAL, low, high, clipped=False), 1, folded=folded))
    assert weight_of(found, low, high) > PLAUSIBLE
    likeliest = found.likeliest
    assert likeliest.low + likeliest.high == pytest.approx(low + high)
    if folded:
        assert 0.29 <= deviation(likeliest) / scale <= 3.4
    else:
        assert (likeliest.low, likeliest.high) == pytest.approx((low, high))


def rescaled(proto: ModelProto, factor: float) -> ModelProto:
    """The same network for inputs that are so many times larger."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    first = match(copy).layers[0]
    for tensor in copy.graph.initializer:
        if tensor.name == first.weight:
            weight = numpy_helper.to_array(tensor) / np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return copy


@pytest.mark.parametrize("network", ["digits_bn", "digits_folded"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 127.5])
def test_the_range_of_the_shipped_network_is_found(
    request: pytest.FixtureRequest, digits_data: Path, network: str, factor: float
) -> None:
    """Its deviation within a factor of two of that of its images, however these are scaled."""
    proto = rescaled(load(request.getfixturevalue(network)).proto, factor)
    actual = factor * float(np.load(digits_data)["input"].std())
    assert 0.5 <= deviation(belief_of(proto).likeliest) / actual <= 2


@pytest.mark.parametrize("kind", ["pictures", "signals"])
@pytest.mark.parametrize("folded", [False, True])
def test_hypotheses_that_are_scaled_with_the_network_are_as_likely(
    monkeypatch: pytest.MonkeyPatch, kind: str, folded: bool
) -> None:
    spec, rank = (PICTURE, 2) if kind == "pictures" else (SIGNAL, 1)
    proto = trained(inputs(spec, -1, 1), rank, folded=folded)
    before = belief_of(proto)
    # By powers of two, which are exact.
    for factor in (2.0, 1 / 64):
        monkeypatch.setattr(module, "RANGES", tuple((factor * low, factor * high) for low, high in RANGES))
        monkeypatch.setattr(module, "DEVIATIONS", tuple(factor * scale for scale in DEVIATIONS))
        after = belief_of(rescaled(proto, factor))
        assert [deviation(one) for one in after.hypotheses] == pytest.approx(
            [factor * deviation(one) for one in before.hypotheses]
        )
        np.testing.assert_allclose(after.weights, before.weights, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_belief() -> None:
    proto = trained(inputs(SIGNAL, -1, 1), 1, folded=True)
    first, again, other = (belief_of(proto, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.weights, again.weights)
    assert (first.weights != other.weights).any()


def test_a_network_that_never_had_a_batch_norm_is_fed_raw_numbers() -> None:
    """Biases that are nothing beside the signal: scales cannot be told apart, so custom decides."""
    proto = trained(inputs(PICTURE, -1, 1), 2, folded=True)
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("b"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0.01, tensor.name))
    found = belief_of(proto)
    assert found.likeliest.high >= RAW


def test_a_range_that_is_given_leaves_only_its_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_evidence", lambda *_: pytest.fail("no evidence is asked for"))
    proto = trained(inputs(PICTURE, -1, 1), 2, folded=True)
    found = belief_of(proto, input_range=(-3.0, 5.0))
    assert found.hypotheses == (Hypothesis("pictures", -3.0, 5.0), Hypothesis("white", -3.0, 5.0))
    np.testing.assert_allclose(found.weights, [10 / 11, 1 / 11])


def test_a_network_in_float16_is_believed_what_it_is_in_float32() -> None:
    """The squares of its numbers leave float16."""
    proto = trained(inputs(PICTURE, 0, 255), 2, folded=True)
    half = ModelProto()
    half.CopyFrom(proto)
    half.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    half.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in half.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    np.testing.assert_allclose(belief_of(half).weights, belief_of(proto).weights, atol=0.02)


def test_where_nothing_can_be_told_all_are_as_likely() -> None:
    whole_numbers = parse(
        "g (uint8[N, 3, 24, 24] x) => (float[] y) { f = Cast <to = 1> (x) y = Conv(f, w) }",
        w=noise(4, 3, 3, 3),
    )
    unknown = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
        g (float[N, 3, 24, 24] x) => (float[] y) { z = other.Mystery(x)  y = Conv(z, w) }""")
    unknown.graph.initializer.append(numpy_helper.from_array(noise(4, 3, 3, 3), "w"))
    for found in (belief_of(whole_numbers), belief_of(unknown), believe(whole_numbers, [], [PICTURE])):
        likely = [
            weight for weight, one in zip(found.weights, found.hypotheses, strict=True) if one.kind != "white"
        ]
        assert found.weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(likely, likely[0])


# ------------------------------------------------------------------------------------------------------
# mixtures

HYPOTHESES = (
    Hypothesis("pictures", -2.0, 2.0),
    Hypothesis("pictures", 0.0, 1.0),
    Hypothesis("pictures", 0.0, 255.0),
    Hypothesis("white", -2.0, 2.0),
)
WEIGHTS = np.array([0.6, 0.35, 0.02, 0.03])
BROAD_PART = 0.3  # of pictures


def of_kind(mixture: Mixture, kind: int) -> np.ndarray:
    feeds = [feed["x"] for feed, its in zip(mixture.feeds, mixture.kinds, strict=True) if its == kind]
    return np.concatenate(feeds)


def test_a_mixture_has_many_of_what_is_likely_and_a_few_of_the_rest() -> None:
    found = believed([PICTURE], HYPOTHESES, WEIGHTS, anchored=False, seed=0)
    flat, even = WEIGHTS**0.1, np.array([1.0, 1.0, 1.0, 0.4])
    shares = (1 - BROAD_PART) * WEIGHTS + BROAD_PART / 2 * (flat / flat.sum() + even / even.sum())
    order = np.argsort(-shares)
    np.testing.assert_allclose(found.shares, shares[order])
    likely = np.where(WEIGHTS >= PLAUSIBLE, WEIGHTS, 0)  # the rest must not move a mean
    np.testing.assert_allclose(found.weights, likely[order] / likely.sum())
    assert not found.real.any()
    for kind, index in enumerate(order):
        values = of_kind(found, kind)
        assert len(values) == max(FEWEST, round(usual_samples([PICTURE]) * shares[index]))
        low, high = HYPOTHESES[index].low, HYPOTHESES[index].high
        assert low <= values.min() < low + (high - low) / 4
        assert high - (high - low) / 4 < values.max() <= high


def test_behind_a_batch_norm_the_likeliest_range_stands_for_all() -> None:
    found = believed([PICTURE], HYPOTHESES, WEIGHTS[[1, 0, 2, 3]], anchored=True, seed=0)
    np.testing.assert_array_equal(found.weights, [1, 0])
    np.testing.assert_allclose(found.shares, [1 - BROAD_PART / 2, BROAD_PART / 2])
    neighbours = []
    for kind in (0, 1):
        values = of_kind(found, kind)
        assert 0 <= values.min() <= values.max() <= 1  # as the likeliest has it
        neighbours.append(np.corrcoef(values[..., 1:].ravel(), values[..., :-1].ravel())[0, 1])
    assert neighbours[0] > 0.5
    assert abs(neighbours[1]) < 0.1


def test_not_more_hypotheses_than_can_be_run() -> None:
    many = [Hypothesis("pictures", -scale, scale, False) for scale in 2.0 ** np.arange(30)]
    weights = np.arange(1.0, 31.0) / np.arange(1.0, 31.0).sum()
    found = believed([SIGNAL], many, weights, anchored=False, seed=0)
    assert len(found.weights) == len(found.shares) == len(set(found.kinds)) == MOST_KINDS
    assert found.weights.sum() == pytest.approx(1)
    assert found.shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.weights, weights[::-1][:MOST_KINDS] / weights[::-1][:MOST_KINDS].sum())


@pytest.mark.parametrize("count", [1, 16, 500])
def test_the_more_real_inputs_there_are_the_less_the_belief_counts(count: int) -> None:
    belief = mixture_of(
        [[{"x": noise(2, 3)}] * 2, [{"x": noise(2, 3)}]], np.array([0.9, 0.1]), np.array([0.5, 0.5])
    )
    real = [{"x": noise(2, 3, seed=9)}] * 3
    found = blended(belief, real, count)
    own = count / (count + KNOWN)
    assert found.kinds == (0, 0, 1, 2, 2, 2)
    assert [found.real[kind] for kind in found.kinds] == [False] * 3 + [True] * 3
    np.testing.assert_allclose(found.weights, [0.9 * (1 - own), 0.1 * (1 - own), own])
    np.testing.assert_allclose(found.shares, [0.5 * (1 - own), 0.5 * (1 - own), own])
    np.testing.assert_array_equal(of_kind(found, 2), np.concatenate([feed["x"] for feed in real]))


def test_predictions_are_made_on_every_plausible_kind_drawn_anew() -> None:
    found = plausible([PICTURE], HYPOTHESES, WEIGHTS, seed=0)
    assert [(name, weight) for name, weight, _ in found] == [
        (f"{kind} in {span}", pytest.approx(weight / 0.95 / 2))
        for span, weight in (("-2 to 2", 0.6), ("0 to 1", 0.35))
        for kind in ("pictures", "1/f images")
    ]
    known = believed([PICTURE], HYPOTHESES, WEIGHTS, anchored=False, seed=0)
    seen = {row.tobytes() for feed in known.feeds for row in feed["x"]}
    for name, _, feeds in found:
        values = np.concatenate([feed["x"] for feed in feeds])
        low, high = (-2, 2) if "-2" in name else (0, 1)
        assert low <= values.min() <= values.max() <= high
        assert seen.isdisjoint(row.tobytes() for row in values)


def test_where_nothing_is_plausible_predictions_are_made_on_the_likeliest() -> None:
    many = [Hypothesis("pictures", -scale, scale, False) for scale in 2.0 ** np.arange(50)]
    weights = np.full(50, 0.98 / 49)
    weights[17] = 0.02 + 1e-3
    found = plausible([SIGNAL], many, weights, seed=0)
    assert [(name, weight) for name, weight, _ in found] == [
        (f"{kind} in -131072 to 131072", 0.5) for kind in ("smooth noise", "noise")
    ]
