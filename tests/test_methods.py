"""One layer solved: what is stored computes what was meant, and the repairs do what they say on simulated
inputs.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from onnx_dfmpc.compensate import MAX_GAIN
from onnx_dfmpc.linalg.matrices import Diagonal
from onnx_dfmpc.methods import METHODS, Repair, Repaired, Rounded, alike, round_layer, round_layers
from onnx_dfmpc.rounding.grids import Codes, GridSpec, min_max
from onnx_dfmpc.rounding.rounding import ROUNDINGS, RoundingMethod
from onnx_dfmpc.spec import BatchNorm, InputStatistics, Layer, LayerPlan, Outputs, QuantizedLayer
from onnx_dfmpc.spec.ops import shares_grid, to_rows
from tests.arrays import FORMS, batch_norm, forms, layer, seeds, statistics

NOTHING = Repair(gain=False, mean=False)


def plan(bits: int = 2, *, paper: bool = False, role: str = "low", rounding: str = "nearest") -> LayerPlan:
    method = METHODS["paper" if paper else "dfmpc"]
    return LayerPlan("conv", bits, role, method.grid(bits), rounding, method.per_channel)


def repair(
    rounded: Rounded,
    switches: Repair | None = None,
    bias: np.ndarray | None = None,
    *,
    method: str = "dfmpc",
    to_consumers: bool = False,
) -> Repaired:
    return METHODS[method].repair(rounded, switches or Repair(), None, bias, to_consumers)


def known(at: Layer, seed: int) -> InputStatistics:
    return statistics(at.group, at.size // at.channels, np.random.default_rng(seed))


def weight_of(at: Layer, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(at.shape).astype(np.float32)


def outputs(rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Responses (channels, samples) of rows (g, r, n) to inputs (g, n, samples)."""
    return np.einsum("grn,gns->grs", rows.astype(np.float64), x).reshape(-1, x.shape[-1])


def inputs(found: InputStatistics, samples: int = 20_000, seed: int = 0) -> np.ndarray:
    """Inputs whose sample mean and covariance are exactly the given ones."""
    g, n = found.mean.shape
    white = np.random.default_rng(seed).standard_normal((g, n, samples))
    white -= white.mean(axis=2, keepdims=True)
    covariance = white @ white.transpose(0, 2, 1) / samples
    colour = np.linalg.cholesky(found.covariance.astype(np.float64)) @ np.linalg.inv(
        np.linalg.cholesky(covariance)
    )
    return colour @ white + found.mean[..., None]


def normalised(y: np.ndarray, norm: BatchNorm) -> np.ndarray:
    column = (slice(None), None)
    return norm.gamma[column] * (y - norm.mean[column]) / norm.sigma[column] + norm.beta[column]


def stored_rows(done: QuantizedLayer, at: Layer) -> np.ndarray:
    return to_rows(done.weight.dequantize(), at)


@given(forms, seeds, st.integers(2, 8), st.sampled_from(["nearest", "squant", "gptq"]))
def test_what_is_stored_is_what_was_rounded(form, seed, bits, rounding):
    at = layer(*form)
    rounded = round_layer(at, plan(bits, rounding=rounding), weight_of(at, seed), known(at, seed))
    done = repair(rounded, NOTHING).quantized
    weight = done.weight
    np.testing.assert_allclose(weight.dequantize(), rounded.weight(), rtol=1e-6)
    assert weight.codes.shape == at.shape
    assert weight.codes.dtype == (np.int8 if weight.signed else np.uint8)
    assert weight.axis == (None if shares_grid(at) else at.axis)
    assert weight.scale.dtype == np.float32
    assert weight.scale.shape == (() if shares_grid(at) else (at.shape[at.axis],))
    assert weight.zero_point is None or (
        weight.zero_point.shape == weight.scale.shape and weight.zero_point.dtype == weight.codes.dtype
    )
    assert done.bias is None
    assert done.batch_norm is None
    np.testing.assert_array_equal(done.gain, 1)


@given(forms, seeds, st.booleans())
def test_bias_correction_keeps_the_mean_of_every_output(form, seed, has_norm):
    at = layer(*form)
    rng = np.random.default_rng(seed)
    at = replace(at, batch_norm=batch_norm(at.channels, rng)) if has_norm else at
    weight, found, bias = weight_of(at, seed), known(at, seed), rng.standard_normal(at.channels)
    rounded = round_layer(at, plan(), weight, found)
    done = repair(rounded, bias=bias).quantized
    before, after = (
        np.einsum("grn,gn->gr", rows.astype(np.float64), found.mean).ravel()
        for rows in (rounded.rows, stored_rows(done, at))
    )
    if has_norm:
        assert done.bias is None
        np.testing.assert_allclose(after - done.batch_norm.mean, before - at.batch_norm.mean, atol=1e-3)
        for field in ("gamma", "beta", "var"):
            np.testing.assert_array_equal(getattr(done.batch_norm, field), getattr(at.batch_norm, field))
    else:
        assert done.batch_norm is None
        np.testing.assert_allclose(after + done.bias, before + bias, atol=1e-3)


@settings(max_examples=20)
@given(forms, seeds)
def test_the_gain_keeps_the_signal(form, seed):
    at = layer(*form)
    found = known(at, seed)
    rounded = round_layer(at, plan(), weight_of(at, seed), found)
    done = repair(rounded).quantized
    if shares_grid(at):
        np.testing.assert_array_equal(done.gain, 1)
        return
    x = inputs(found)
    float_, quantized = outputs(rounded.rows, x), outputs(stored_rows(done, at), x)
    for y, yq, gain in zip(float_, quantized, done.gain, strict=True):
        if 1 / MAX_GAIN < gain < MAX_GAIN and gain != 1:
            assert np.polyfit(y, yq, 1)[0] == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("has_norm", [True, False])
def test_predicted_sqnr_is_what_simulated_inputs_show(form, has_norm):
    at = layer(*form)
    at = replace(at, batch_norm=batch_norm(at.channels, np.random.default_rng(0))) if has_norm else at
    found = known(at, 0)
    rounded = round_layer(at, plan(3), weight_of(at, 0), found)
    done = repair(rounded).quantized
    x = inputs(found)
    y, yq = (
        normalised(z, at.batch_norm) if has_norm else z
        for z in (outputs(rounded.rows, x), outputs(stored_rows(done, at), x))
    )
    noise = (yq - y).var(axis=1).sum()
    assert done.predicted_sqnr_db == pytest.approx(10 * np.log10(y.var(axis=1).sum() / noise), abs=0.05)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("has_norm", [True, False])
def test_the_paper_gives_every_output_its_mean_and_variance_back_and_then_c(form, bits, has_norm):
    """Re-estimated statistics restore mean and deviation; c scales what comes out, deviation and mean alike."""
    at = layer(*form)
    rng = np.random.default_rng(0)
    weight, found, bias = weight_of(at, 0) * 3, known(at, 0), rng.standard_normal(at.channels)
    x = inputs(found)
    y = outputs(to_rows(weight, at), x)
    if has_norm:  # as training leaves it: with the statistics of the output
        trained = replace(batch_norm(at.channels, rng), mean=y.mean(axis=1), var=y.var(axis=1))
        at = replace(at, batch_norm=trained)
        expected = normalised(y, trained)
    else:
        expected = y + bias[:, None]
    rounded = round_layer(at, plan(bits, paper=True), weight, found)
    repaired = repair(rounded, bias=bias, method="paper")
    done = repaired.quantized
    assert repaired.input_factors is None
    yq = outputs(stored_rows(done, at), x)
    actual = normalised(yq, done.batch_norm) if has_norm else yq + done.bias[:, None]
    if (
        shares_grid(at) and not has_norm
    ):  # one scale for all groups: there is no place for a factor per channel
        np.testing.assert_allclose(actual.mean(axis=1), expected.mean(axis=1), atol=1e-2)
        return
    kept = repair(rounded, bias=bias, method="paper", to_consumers=True)
    c = kept.input_factors[:, None]
    assert (c >= 0).all()
    np.testing.assert_allclose(actual.mean(axis=1), (c * expected).mean(axis=1), atol=1e-2)
    alive = yq.std(axis=1) > 0  # a row that is zero everywhere has no deviation to give back
    assert alive.any()
    np.testing.assert_allclose(actual.std(axis=1)[alive], (c * expected).std(axis=1)[alive], rtol=1e-3)
    # Consumer side: the same, but for c.
    yk = outputs(stored_rows(kept.quantized, at), x)
    without = normalised(yk, kept.quantized.batch_norm) if has_norm else yk + kept.quantized.bias[:, None]
    np.testing.assert_allclose(c * without, actual, rtol=1e-4, atol=1e-4)


@given(
    st.sampled_from([form for form in FORMS if form[0] != "ConvTranspose"]),
    seeds,
    st.booleans(),
    st.sampled_from([0.0, 0.5, 5.0]),
)
def test_producer_side_and_consumer_side_agree_before_a_homogeneous_activation(form, seed, has_norm, lambda1):
    """sum_j V_j c_j act(y_j) = sum_j V_j act(c_j y_j) for Relu, c = 0 included."""
    at = layer(*form)
    rng = np.random.default_rng(seed)
    at = replace(at, batch_norm=batch_norm(at.channels, rng)) if has_norm else at
    found, switches = known(at, seed), Repair(lambda1=lambda1)
    rounded = round_layer(at, plan(paper=True), weight_of(at, seed), found)
    bias = rng.standard_normal(at.channels)
    here, there = (repair(rounded, switches, bias, method="paper", to_consumers=to) for to in (False, True))
    assert here.input_factors is None
    x = inputs(found, 200)
    consumer = rng.standard_normal((3, at.channels))

    def activated(done: QuantizedLayer) -> np.ndarray:
        y = outputs(stored_rows(done, at), x)
        return np.maximum(normalised(y, done.batch_norm) if has_norm else y + done.bias[:, None], 0)

    producer_side, consumer_side = (
        consumer @ activated(here.quantized),
        (consumer * there.input_factors) @ activated(there.quantized),
    )
    np.testing.assert_allclose(
        producer_side, consumer_side, rtol=1e-3, atol=1e-3 * max(1, np.abs(producer_side).max())
    )
    np.testing.assert_allclose(here.quantized.gain, there.quantized.gain)


def test_a_coefficient_of_zero_silences_its_channel_on_either_side():
    at = layer("Conv", (2, 1, 1, 1))
    norm = BatchNorm(
        "bn", "b", np.array([1.0, 1.0]), np.array([2.0, 2.0]), np.array([0.0, -4.0]), np.ones(2), 0.0
    )
    at = replace(at, batch_norm=norm)
    # The mean of the input is such that correcting the second channel's mean turns the sign of its bias.
    found = InputStatistics(np.array([[100.0]]), np.ones((1, 1, 1), np.float32), 0, "test")
    weight = np.array([1.0, 1.2], np.float32).reshape(2, 1, 1, 1)
    rounded = round_layer(at, plan(paper=True), weight, found)
    here, there = (
        repair(rounded, Repair(lambda1=1e4), method="paper", to_consumers=to) for to in (False, True)
    )
    c = there.input_factors
    assert 0 in c
    assert c.max() > 0
    x = inputs(found, 100)
    silent = normalised(outputs(stored_rows(here.quantized, at), x), here.quantized.batch_norm)[c == 0]
    np.testing.assert_array_equal(silent, 0)


@pytest.mark.parametrize("role", ["high", "edge", "inner"])
def test_only_low_layers_get_coefficients(role):
    at = layer(batch_norm=batch_norm(4, np.random.default_rng(0)))
    rounded = round_layer(at, plan(6, paper=True, role=role), weight_of(at, 0), known(at, 0))
    done = repair(rounded, method="paper").quantized
    np.testing.assert_array_equal(done.batch_norm.gamma, at.batch_norm.gamma)
    np.testing.assert_array_equal(done.batch_norm.beta, at.batch_norm.beta)


@pytest.mark.parametrize("method", ["paper", "dfmpc"])
@pytest.mark.parametrize("has_norm", [True, False])
def test_switches_switch_off_what_they_say(method, has_norm):
    at = layer(batch_norm=batch_norm(4, np.random.default_rng(0)) if has_norm else None)
    bias = np.arange(4.0)
    rounded = round_layer(at, plan(paper=method == "paper"), weight_of(at, 0), known(at, 0))

    def run(switches: Repair) -> QuantizedLayer:
        return repair(rounded, switches, bias, method=method).quantized

    nothing = run(NOTHING)
    np.testing.assert_array_equal(nothing.weight.dequantize(), rounded.weight())
    assert nothing.bias is None
    assert nothing.batch_norm is None
    shift_only = run(Repair(gain=False))
    np.testing.assert_array_equal(shift_only.weight.dequantize(), rounded.weight())
    if has_norm:
        for field in ("gamma", "beta", "var"):
            np.testing.assert_array_equal(
                getattr(shift_only.batch_norm, field), getattr(at.batch_norm, field)
            )
        assert (shift_only.batch_norm.mean != at.batch_norm.mean).all()
    else:
        assert (shift_only.bias != bias).all()
    gain_only = run(Repair(mean=False))
    assert (gain_only.gain != 1).any()
    if method == "dfmpc":
        assert gain_only.bias is None
        assert gain_only.batch_norm is None


def test_no_statistics_no_signal():
    """Inputs that never move: nothing to keep, nothing to predict, nothing to divide by."""
    at = layer()
    still = InputStatistics(np.zeros((1, 27)), np.zeros((1, 27, 27), np.float32), 0, "test")
    for rounding in ("nearest", "gptq"):
        rounded = round_layer(at, plan(rounding=rounding), weight_of(at, 0), still)
        for done in (repair(rounded).quantized, repair(rounded, method="paper").quantized):
            assert done.predicted_sqnr_db is None
            assert np.isfinite(done.weight.dequantize()).all()
            assert np.isfinite(done.bias).all()


def test_a_rounding_from_outside_needs_nothing_but_its_entry(monkeypatch):
    def down(rows: np.ndarray, grid: GridSpec, taps: int, covariance: None) -> Codes:
        assert (taps, covariance) == (9, None)  # what it does not need is not computed
        scale, zero_point = min_max(rows, grid)
        codes = np.clip(np.floor(rows / scale[..., None] + zero_point[..., None]), *grid.limits)
        return Codes(codes, scale, zero_point, grid.limits)

    monkeypatch.setitem(ROUNDINGS, "toy", RoundingMethod(down))
    at = layer()
    rounded = round_layer(at, plan(4, rounding="toy"), weight_of(at, 0), known(at, 0))
    assert ((rounded.weight() - weight_of(at, 0)) / rounded.codes.scale.max() < 0.5 + 1e-6).all()
    assert np.mean(rounded.weight() < weight_of(at, 0)) > 0.9
    assert (repair(rounded).correction.shift != 0).all()


def test_what_is_corrected_is_what_the_method_says():
    at = layer(batch_norm=batch_norm(4, np.random.default_rng(0)))
    for name, method in METHODS.items():
        rounded = round_layer(at, plan(paper=name == "paper"), weight_of(at, 0), known(at, 0))
        for switches in (Repair(), Repair(gain=False), Repair(mean=False), NOTHING):
            norm = repair(rounded, switches, method=name).quantized.batch_norm or at.batch_norm
            changed = {
                field
                for field in ("gamma", "beta", "mean", "var")
                if (getattr(norm, field) != getattr(at.batch_norm, field)).any()
            }
            assert changed <= set(method.corrects(switches.gain, switches.mean))
            assert switches != Repair() or changed == set(method.corrects(True, True))


def test_measured_outputs_count_the_noise_of_the_layers_before():
    """Outputs of the network quantized so far: they come out with the float mean, and halfway to its deviation."""
    at = layer()
    rng = np.random.default_rng(0)
    rounded = round_layer(at, plan(), weight_of(at, 0), known(at, 0))
    signal = repair(rounded).correction.gain
    measured = Outputs(
        np.ones(1),
        rng.standard_normal((1, 4)),
        np.full((1, 4), 2.0),
        rng.standard_normal((1, 4)),
        np.full((1, 4), 2.5),
    )
    correction = METHODS["dfmpc"].repair(rounded, Repair(), measured, None, False).correction
    np.testing.assert_allclose(correction.gain, np.sqrt(signal * np.sqrt(2.0 / 2.5)))
    np.testing.assert_allclose(
        correction.gain * measured.quantized_mean[0] - correction.shift, measured.mean[0], atol=1e-12
    )
    silent = replace(
        measured, variance=np.zeros((1, 4))
    )  # nothing to keep the size of: the signal gain alone
    correction = METHODS["dfmpc"].repair(rounded, Repair(), silent, None, False).correction
    np.testing.assert_allclose(correction.gain, signal)


def test_the_shift_is_the_best_one_for_all_kinds_of_inputs():
    """It minimises the error of the mean relative to the power of each kind, by how likely the kind is."""
    at, rng = layer(), np.random.default_rng(0)
    rounded = round_layer(at, plan(), weight_of(at, 0), known(at, 0))
    scale = np.array([[1.0], [300.0], [0.05]])
    measured = Outputs(
        np.array([0.5, 0.3, 0.2]),
        scale * rng.standard_normal((3, 4)),
        scale**2 * rng.uniform(1, 2, (3, 4)),
        scale * rng.standard_normal((3, 4)),
        scale**2 * rng.uniform(1, 2, (3, 4)),
    )
    correction = METHODS["dfmpc"].repair(rounded, Repair(), measured, None, False).correction

    def error(shift: np.ndarray) -> float:
        total = 0.0
        for kind in range(3):
            off = correction.gain * measured.quantized_mean[kind] - shift - measured.mean[kind]
            total += measured.weights[kind] * np.square(off).sum() / measured.variance[kind].sum()
        return total

    found = optimize.minimize(error, np.zeros(4), tol=1e-12)
    np.testing.assert_allclose(correction.shift, found.x, atol=1e-5)
    # A kind that is not likely has no say, whatever it measured.
    sure = replace(measured, weights=np.array([0.0, 1.0, 0.0]))
    alone = replace(sure, **{f: getattr(sure, f)[1:2] for f in FIELDS}, weights=np.ones(1))
    one, other = (
        METHODS["dfmpc"].repair(rounded, Repair(), m, None, False).correction for m in (sure, alone)
    )
    np.testing.assert_allclose(one.gain, other.gain)
    np.testing.assert_allclose(one.shift, other.shift)


FIELDS = ("mean", "variance", "quantized_mean", "quantized_variance")


@pytest.mark.parametrize("rounding", ["nearest", "squant", "gptq"])
@pytest.mark.parametrize("paper", [False, True])
def test_layers_that_are_rounded_at_once_get_the_codes_that_each_gets_alone(monkeypatch, rounding, paper):
    forms = [FORMS[i] for i in (0, 1, 0, 5, 2, 1, 0, 8, 5, 2, 9, 9, 0)]
    layers = [layer(*form, name=f"l{place}") for place, form in enumerate(forms)]
    bits = [2 + place % 2 for place in range(len(layers))]
    plans = [plan(width, paper=paper, rounding=rounding) for width in bits]
    weights = [weight_of(at, place) for place, at in enumerate(layers)]
    seen = [known(at, place) for place, at in enumerate(layers)]
    seen[0] = replace(seen[0], covariance=Diagonal(np.diagonal(seen[0].covariance, axis1=1, axis2=2)))
    alone = [round_layer(*each) for each in zip(layers, plans, weights, seen, strict=True)]
    for together in (1 << 17, 300, 1):
        monkeypatch.setattr("onnx_dfmpc.methods.TOGETHER", together)
        found = round_layers(layers, plans, weights, seen)
        assert [one.layer for one in found] == layers
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_array_equal(one.codes.codes, other.codes.codes)
            np.testing.assert_array_equal(one.codes.scale, other.codes.scale)
            np.testing.assert_array_equal(one.codes.zero_point, other.codes.zero_point)
            np.testing.assert_allclose(one.response.own, other.response.own)


def test_layers_are_alike_by_shape_and_settings_and_not_too_many_at_once(monkeypatch):
    layers = [layer(*FORMS[i]) for i in (0, 0, 1, 0, 1, 0)]
    seen = [known(at, 0) for at in layers]
    keys = ["a", "a", "a", "b", "a", "a"]
    assert list(alike(layers, seen, keys)) == [[0, 1, 5], [2, 4], [3]]
    monkeypatch.setattr("onnx_dfmpc.methods.TOGETHER", 2 * layers[0].size)
    assert list(alike(layers, seen, keys)) == [[0, 1], [5], [2, 4], [3]]
    seen[1] = replace(seen[1], covariance=Diagonal(np.ones((1, 27))))
    assert list(alike(layers, seen, keys)) == [[0, 5], [1], [2, 4], [3]]
