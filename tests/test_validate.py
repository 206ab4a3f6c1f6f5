"""Metrics against plain formulas, data checks, gates, failures, sessions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper, parser

from onnx_dfmpc.errors import ModelError, RecipeError, UnsupportedError
from onnx_dfmpc.evaluate import latency
from onnx_dfmpc.evaluate.compare import validate
from onnx_dfmpc.evaluate.latency import measure_latency
from onnx_dfmpc.evaluate.metrics import Comparison
from onnx_dfmpc.inputs.samples import from_data
from onnx_dfmpc.inputs.synthetic import natural_spectrum, synthetic
from onnx_dfmpc.recipe import Data
from onnx_dfmpc.runtime.session import session_options
from onnx_dfmpc.spec import InputSpec

FINITE = st.floats(-1e6, 1e6, width=32)


def classifier(
    weight: float = 1.0, batch: str = "N", bias: str = "0, 0, 0", extra: str = ""
) -> onnx.ModelProto:
    """Scores of three classes: the mean of each of three colours, times `weight` for the first."""
    return parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[{batch}, 3, 8, 8] x) => (float[{batch}, 3] scores)
        <float[3] w = {{{weight}, 1.0, 1.0}}, float[3] b = {{{bias}}}> {{
            mean = GlobalAveragePool(x)
            flat = Flatten(mean)
            scaled = Mul(flat, w)
            {extra}
            scores = Add(scaled, b)
        }}""")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------
# metrics


@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=FINITE), st.integers(0, 2**32 - 1), st.integers(1, 7)
)
def test_metrics_do_not_depend_on_the_batches(a: np.ndarray, seed: int, step: int) -> None:
    b = a + np.random.default_rng(seed).standard_normal(a.shape).astype(np.float32)
    pair = Comparison()
    for start in range(0, len(a), step):
        pair.add(a[start : start + step], b[start : start + step])
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert pair.max_abs == np.abs(x - y).max()
    assert pair.mean_abs == pytest.approx(np.abs(x - y).mean())
    if x.any() and y.any():
        assert pair.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-9)
        assert pair.sqnr_db == pytest.approx(10 * math.log10((x**2).sum() / ((x - y) ** 2).sum()), abs=1e-6)


def test_metrics_of_zeros() -> None:
    zero, one = np.zeros(3), np.ones(3)
    same, lost, noise = Comparison(), Comparison(), Comparison()
    same.add(zero, zero)
    lost.add(one, zero)
    noise.add(zero, one)
    assert (same.cosine, same.sqnr_db) == (1.0, math.inf)
    assert (lost.cosine, lost.sqnr_db) == (0.0, 0.0)
    assert (noise.cosine, noise.sqnr_db) == (0.0, -math.inf)


# ------------------------------------------------------------------------------------------------------
# validate


def test_labelled_top1_and_agreement_against_numpy() -> None:
    x, labels = images(200), np.random.default_rng(1).integers(0, 3, 200)
    report = validate(classifier(), classifier(-1.0), {"x": x, "labels": labels})
    means = x.mean(axis=(2, 3))
    first, second = means.argmax(1), (means * [-1, 1, 1]).argmax(1)
    assert report.top1_float == pytest.approx((first == labels).mean())
    assert report.top1_quantized == pytest.approx((second == labels).mean())
    assert report.top1_agreement == pytest.approx((first == second).mean())
    assert report.labelled == report.samples == 200
    assert report.top1_agreement < 1
    assert not report.synthetic


def test_a_fixed_batch_runs_one_by_one_with_the_same_result() -> None:
    x = images(20)
    dynamic = validate(classifier(), classifier(1.1), x)
    fixed = validate(classifier(batch="1"), classifier(1.1, batch="1"), x)
    assert fixed.samples == 20
    assert fixed.cosine == pytest.approx(dynamic.cosine)
    assert fixed.top1_agreement == dynamic.top1_agreement


def test_a_batch_that_is_fixed_at_four_takes_multiples() -> None:
    report = validate(classifier(batch="4"), classifier(batch="4"), images(10))
    assert report.samples == 8
    assert any("4 at a time" in note for note in report.notes)
    with pytest.raises(RecipeError, match="4 samples at a time"):
        validate(classifier(batch="4"), classifier(batch="4"), images(3))


def test_a_model_that_only_claims_a_dynamic_batch() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 8, 8] x) => (float[M, 192] y) <int64[2] shape = {1, 192}> { y = Reshape(x, shape) }""")
    report = validate(model, model, images(5))
    assert report
    assert report.samples == 5
    assert any("one by one" in note for note in report.notes)


def test_synthetic_inputs_are_said_seeded_and_in_range() -> None:
    spec = InputSpec("x", np.dtype(np.float32), ("N", 3, 16, 16))
    first, again, other = (
        synthetic([spec], samples=20, seed=seed, input_range=(0, 255)).make(0, 20)["x"] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 255
    assert first.max() > 200
    report = validate(classifier(), classifier(), Data(seed=3))
    assert report.synthetic
    assert "synthetic" in report.data
    assert "seed 3" in report.data
    assert report.top1_float is None


def test_natural_spectrum_falls_with_frequency() -> None:
    rng = np.random.default_rng(0)
    draws = np.stack([natural_spectrum((3, 32, 32), rng) for _ in range(64)])
    assert np.var(draws) == pytest.approx(1, abs=0.2)
    power = (np.abs(np.fft.fft2(draws)) ** 2).mean(axis=(0, 1))
    assert power[0, 2] / power[0, 8] == pytest.approx(16, rel=0.5)  # 1/f amplitude is 1/f^2 power
    assert np.corrcoef(draws[:, 0].ravel(), draws[:, 1].ravel())[0, 1] > 0.5


@pytest.mark.parametrize(
    ("dtype", "shape", "low", "high"),
    [
        ("uint8", ("N", 8, 8, 3), 0, 255),
        ("int64", (1, 16), 0, 1),
        ("bool", ("N", 4), 0, 1),
        ("float16", ("?", 1, "h", "w"), -20, 20),
    ],
)
def test_synthetic_inputs_of_every_kind(
    dtype: str, shape: tuple[int | str, ...], low: float, high: float
) -> None:
    spec = InputSpec("x", np.dtype(dtype), shape)
    _, _, feeds = next(synthetic([spec], samples=2).batches())
    assert feeds["x"].dtype == dtype
    assert feeds["x"].ndim == len(shape)
    assert all(size in (want, 224, 64, 2) for size, want in zip(feeds["x"].shape, shape, strict=True))
    assert low <= feeds["x"].min()
    assert feeds["x"].max() <= high


def test_several_inputs_and_constants() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4] a, float[N, 4] b, float scale) => (float[N, 4] y) { s = Add(a, b) y = Mul(s, scale)
        }""")
    a = np.ones((6, 4), np.float32)
    assert validate(model, model, {"a": a, "b": a, "scale": np.float32(2)}).samples == 6
    assert validate(model, model)
    with pytest.raises(RecipeError, match="a has 6, b has 5"):
        validate(model, model, {"a": a, "b": a[:5], "scale": np.float32(2)})
    with pytest.raises(RecipeError, match="a, bb") as caught:
        validate(model, model, {"a": a, "bb": a})
    assert "scale: float32 ()" in caught.value.hint


def test_samples_are_drawn_with_the_seed() -> None:
    x, labels = images(50), np.arange(50) % 3
    reports = [
        validate(classifier(), classifier(0.5), Data(data=x, labels=labels, samples=20, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert reports[0] == reports[1]
    assert reports[0].max_abs != reports[2].max_abs
    assert reports[0].labelled == 20
    assert "20 of 50" in reports[0].data


# ------------------------------------------------------------------------------------------------------
# data


def test_casts_are_said() -> None:
    report = validate(classifier(), classifier(), images(4).astype(np.float64))
    assert report.notes == ("x: cast from float64 to float32",)
    report = validate(classifier(), classifier(), np.full((4, 3, 8, 8), 7, np.uint8))
    assert "uint8 to float32, values 7 to 7" in report.notes[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), ["'x'", "float32 (n, 3, 8, 8)", "(4, 8, 8, 3)"]),
        (np.zeros((3, 8, 8), np.float32), ["(3, 8, 8)"]),
        (np.zeros((4, 3, 8, 8), np.int64), ["expects float32", "int64"]),
        (np.full((4, 3, 8, 8), 1e300), ["expects float32", "float64"]),
        (np.full((4, 3, 8, 8), np.nan, np.float32), ["NaN"]),
        (np.zeros((0, 3, 8, 8), np.float32), ["no samples"]),
        ({"a": np.zeros(1), "b": np.zeros(1)}, ["named x, found a, b"]),
        ({"labels": np.zeros(1)}, ["nothing but labels"]),
    ],
)
def test_data_that_does_not_fit(data: Any, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        validate(classifier(), classifier(), data)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not numpy", b"PK\x03\x04broken", None, "pickle", "directory"])
def test_data_files_that_cannot_be_read(tmp_path: Path, content: bytes | str | None) -> None:
    file = tmp_path / "data.npz"
    if content == "pickle":
        np.savez(file, x=np.array([{}], dtype=object))
    elif content == "directory":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"data\.npz"):
        validate(classifier(), classifier(), file)


def test_data_and_labels_from_files(tmp_path: Path) -> None:
    x, labels = images(9), np.arange(9) % 3
    np.savez(tmp_path / "named.npz", anything=x, labels=labels)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", labels)
    np.savez(tmp_path / "y.npz", whatever=labels)
    expected = validate(classifier(), classifier(), {"x": x, "labels": labels})
    for data, targets in (("named.npz", None), ("x.npy", "y.npy"), ("x.npy", "y.npz")):
        source = Data(data=tmp_path / data, labels=None if targets is None else tmp_path / targets)
        report = validate(classifier(), classifier(), source)
        assert (report.top1_float, report.labelled) == (expected.top1_float, 9)


@pytest.mark.parametrize(
    "labels",
    [np.zeros(5, int), np.full(4, 0.5), np.full(4, 3), np.full(4, -1), np.zeros((4, 3), int)],
    ids=["n", "float", "high", "negative", "one-hot"],
)
def test_bad_labels(labels: np.ndarray) -> None:
    with pytest.raises(RecipeError, match="labels"):
        validate(classifier(), classifier(), Data(data=images(4), labels=labels))


def test_a_float_model_that_only_guesses_is_said() -> None:
    """An identity of five classes: with the labels as they are, and shuffled as if others had numbered them."""
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 5] x) => (float[N, 5] y) { y = Identity(x) }'
    model, labels = parser.parse_model(text), np.arange(100) % 5
    scores = np.eye(5, dtype=np.float32)[labels]
    notes = {
        name: validate(model, model, {"x": scores, "labels": given}).notes
        for name, given in (("same", labels), ("other", (labels + 1) % 5))
    }
    assert notes["same"] == ()
    assert "by chance" in notes["other"][0]
    assert validate(model, model, {"x": scores[:20], "labels": (labels[:20] + 1) % 5}).notes == ()


@pytest.mark.parametrize(
    "labels",
    [np.array([0.0, 1.0, 2.0, 0.0]), np.array([[0], [1], [2], [0]], np.uint8)],
    ids=["float", "column"],
)
def test_labels_as_others_save_them(labels: np.ndarray) -> None:
    x = images(4)
    expected = validate(classifier(), classifier(), {"x": x, "labels": np.array([0, 1, 2, 0])})
    report = validate(classifier(), classifier(), Data(data=x, labels=labels))
    assert report.top1_float == expected.top1_float


@pytest.mark.parametrize(
    ("labels", "hint"),
    [(np.array([1, 2, 3, 3]), "subtract 1"), (np.eye(4, 3), "argmax")],
    ids=["from 1", "one-hot"],
)
def test_labels_of_another_kind_are_recognised(labels: np.ndarray, hint: str) -> None:
    with pytest.raises(RecipeError, match="labels") as caught:
        validate(classifier(), classifier(), Data(data=images(4), labels=labels))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((4, 8, 8, 3), "array.transpose(0, 3, 1, 2)"),
        ((3, 8, 8), "array[None]"),
        ((4, 3, 9, 8), "preprocess"),
        ((4, 192), "preprocess"),
    ],
)
def test_how_data_would_fit(shape: tuple[int, ...], hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        validate(classifier(), classifier(), np.zeros(shape, np.float32))
    assert hint in caught.value.hint


def test_labels_need_data() -> None:
    with pytest.raises(RecipeError, match="labels without data"):
        validate(classifier(), classifier(), Data(labels=np.zeros(4, int)))


# ------------------------------------------------------------------------------------------------------
# gates


def test_gates_hold_or_do_not() -> None:
    x, labels = images(100), np.arange(100) % 3
    limits = {"min_cosine": 0.99, "min_sqnr_db": 5.0, "max_top1_drop": 0.5, "min_top1_agreement": 0.999}
    data = {"x": x, "labels": labels}
    report = validate(classifier(), classifier(0.5), data, gates=limits)
    verdicts = {gate.name: gate.passed for gate in report.gates}
    assert report.cosine is not None
    assert report.top1_drop is not None
    assert verdicts["min_cosine"] == (report.cosine >= 0.99)
    assert verdicts["max_top1_drop"]
    assert not verdicts["min_top1_agreement"]
    assert not report
    assert validate(classifier(), classifier(), data, gates=limits)


def test_a_gate_at_its_limit_holds() -> None:
    gates = {"min_cosine": 1.0, "min_top1_agreement": 1.0}
    assert validate(classifier(), classifier(), images(4), gates=gates)


def test_classes_of_synthetic_inputs_are_not_compared() -> None:
    report = validate(classifier(), classifier())
    found = [(out.top1_agreement, out.top5_agreement, out.kl) for out in report.outputs]
    assert found == [(None, None, None)] * len(report.outputs)
    assert report.top1_agreement is None
    assert report.cosine == 1
    with pytest.raises(RecipeError, match="min_top1_agreement needs real inputs") as raised:
        validate(classifier(), classifier(), gates={"min_top1_agreement": 0.9})
    assert "--data" in raised.value.hint


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"min_cosin": 0.9}, "min_cosin"),
        ({"min_cosine": 2}, "min_cosine = 2"),
        ({"bits": 4}, "unknown key"),
        ({"max_top1_drop": 0.1}, "labelled"),
    ],
)
def test_gates_that_make_no_sense(limits: dict[str, float], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        validate(classifier(), classifier(), images(4), gates=limits)


def test_top1_gates_need_classes() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu(x) }'
    )
    with pytest.raises(RecipeError, match="min_top1_agreement"):
        validate(model, model, images(4), gates={"min_top1_agreement": 0.9})
    with pytest.raises(RecipeError, match="labels"):
        validate(model, model, Data(data=images(4), labels=np.zeros(4, int)))


# ------------------------------------------------------------------------------------------------------
# failures


@pytest.mark.parametrize(("bad", "word"), [("nan", "NaN"), ("inf", "infinity")])
@pytest.mark.parametrize("side", ["float", "quantized"])
def test_nan_and_infinity_fail(bad: str, word: str, side: str) -> None:
    broken = classifier()
    broken.graph.initializer[1].CopyFrom(
        numpy_helper.from_array(np.array([float(bad), 0, 0], np.float32), "b")
    )
    models = (broken, classifier()) if side == "float" else (classifier(), broken)
    report = validate(*models, images(4), gates={"min_cosine": 0.5, "min_top1_agreement": 0.5})
    assert not report
    assert any(
        f"{side} model" in failure and word in failure and "scores" in failure for failure in report.failures
    )
    assert report.cosine is None
    assert not any(gate.passed for gate in report.gates)


def test_other_names_are_an_error() -> None:
    other = classifier()
    other.graph.output[0].name = "logits"
    other.graph.node[-1].output[0] = "logits"
    with pytest.raises(ModelError, match="outputs are logits, those of float model are scores"):
        validate(classifier(), other)


@pytest.mark.parametrize(
    ("kind", "shape"), [("float16", "N, 3, 8, 8"), ("float", "N, 9, 8"), ("float", "N, 3, 8, 9")]
)
def test_other_inputs_are_an_error(kind: str, shape: str) -> None:
    other = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g ({kind}[{shape}] x) => (float[N, K] scores) {{ flat = Flatten(x) scores = Cast<to = 1>(flat) }}""")
    with pytest.raises(
        ModelError,
        match=rf"its input is x: \w+ \({shape}\), that of float model is x: float32 \(N, 3, 8, 8\)",
    ):
        validate(classifier(), other)


def test_shapes_that_differ_fail() -> None:
    wide = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 192] scores) { scores = Flatten(x) }""")
    report = validate(classifier(), wide, images(4))
    assert not report
    assert any("(4, 3)" in failure and "(4, 192)" in failure for failure in report.failures)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_files_that_are_not_models(
    tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx") as caught:
        validate(classifier(), file)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_model_that_cannot_run_says_on_what() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, "n"] x) => (float[1, "m"] y) <int64[2] shape = {1, 7}> { y = Reshape(x, shape) }""")
    with pytest.raises(ModelError, match=r"float model: .*x float32\(1, 64\)") as caught:
        validate(model, model)
    assert "--data" in caught.value.hint


# ------------------------------------------------------------------------------------------------------
# sessions


def quantized_matmul(activations: bool = False) -> onnx.ModelProto:
    """MatMul with an INT8 weight behind DequantizeLinear, which default sessions run with int8 activations."""
    quantize = "q = QuantizeLinear(x, s) r = DequantizeLinear(q, s)" if activations else "r = Identity(x)"
    rng = np.random.default_rng(0)
    model = parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 64] x) => (float[N, 32] y) <float s = {{0.05}}> {{
            {quantize}
            w = DequantizeLinear <axis = 1> (codes, scale)
            y = MatMul(r, w)
        }}""")
    model.graph.initializer.append(
        numpy_helper.from_array(rng.integers(-8, 8, (64, 32)).astype(np.int8), "codes")
    )
    model.graph.initializer.append(
        numpy_helper.from_array(rng.uniform(0.1, 0.2, 32).astype(np.float32), "scale")
    )
    return model


def float_matmul() -> onnx.ModelProto:
    model = quantized_matmul()
    codes, scale = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer[-2:])
    del model.graph.initializer[-2:], model.graph.node[1]
    model.graph.initializer.append(numpy_helper.from_array((codes * scale).astype(np.float32), "w"))
    return model


def test_weight_only_models_run_folded_and_once_by_default() -> None:
    report = validate(float_matmul(), quantized_matmul())
    assert report.weight_only
    assert report.max_abs == pytest.approx(0, abs=1e-4)
    assert report.default_run is not None
    assert report.default_run.max_abs is not None


def test_quantized_activations_keep_the_default_options() -> None:
    report = validate(float_matmul(), quantized_matmul(activations=True))
    assert not report.weight_only
    assert report.default_run is None
    assert report.max_abs is not None
    assert (
        report.max_abs > 1e-3
    )  # with disable_quant_qdq the activations would come out float, and this near 0


def test_a_default_session_that_cannot_be_created_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnxruntime.InferenceSession

    def refuse(source: Any, options: Any, **rest: Any) -> Any:
        try:
            options.get_session_config_entry("session.disable_quant_qdq")
        except RuntimeError:
            if b"DequantizeLinear" in source:
                raise RuntimeError("no kernel") from None
        return real(source, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    report = validate(float_matmul(), quantized_matmul())
    assert not report
    assert any("default session options" in failure and "no kernel" in failure for failure in report.failures)


def test_session_options_are_fresh() -> None:
    assert session_options() is not session_options()


def test_inputs_that_cannot_be_fed() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (string[N] x) => (string[N] y) { y = Identity(x) }'
    )
    with pytest.raises(UnsupportedError, match="'x'"):
        validate(model, model)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.sampled_from([None, 1, 3, 100]))
def test_every_sample_is_seen_once(count: int, limit: int | None) -> None:
    spec = InputSpec("x", np.dtype(np.float32), ("N", 2))
    data = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    samples = from_data([spec], data, samples=limit)
    seen = np.concatenate([feeds["x"] for _, _, feeds in samples.batches()])
    assert len(seen) == samples.count == min(count, limit or count)
    assert len(np.unique(seen[:, 0])) == samples.count


# ------------------------------------------------------------------------------------------------------
# latency


def test_latency_of_models_that_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    calls: list[int] = []
    found = measure_latency(
        float_matmul(),
        quantized_matmul(),
        Data(samples=1),
        threads=2,
        progress=lambda *step: calls.append(step[1]),
    )
    assert [timing.name for timing in found.timings] == [
        "float",
        "quantized, default",
        "quantized, recommended",
    ]
    assert (found.runs, found.threads, found.batch) == (latency.FEWEST, 2, 1)
    assert calls == list(range(1, found.runs + 1))
    for timing in found.timings:
        assert 0 < timing.least <= timing.first_quartile <= timing.median <= timing.third_quartile


def test_latency_of_quantized_activations_has_no_recommended_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    found = measure_latency(float_matmul(), quantized_matmul(activations=True), Data())
    assert [timing.name for timing in found.timings] == ["float", "quantized, default"]


def test_latency_of_a_fixed_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    assert measure_latency(classifier(batch="4"), classifier(batch="4"), Data()).batch == 4
    assert (
        measure_latency(classifier(), classifier(), Data(data=images(3), shapes={"x": (3, 3, 8, 8)})).batch
        == 3
    )
