"""Random networks keep every promise, and what fuzzing has found stays mended. `make fuzz` tries thousands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.mutations import CHANGES, mutated
from benchmarks.random_networks import LOW_BITS, accounted, check, float_bytes, random_network
from onnx_dfmpc import Recipe, quantize, validate
from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.inputs import synthetic
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.rewrite.sizes import predicted_size
from onnx_dfmpc.statistics import mixing
from tests.graphs import noise, parse
from tests.test_sizes import METADATA, rewritten

CHEAP = {"samples": 2, "input_range": (-2.0, 2.0)}


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "MAX_SAMPLES", 6)
    monkeypatch.setattr(synthetic, "MIN_SAMPLES", 3)
    monkeypatch.setattr(mixing, "TRIAL_SAMPLES", 2)


@settings(
    max_examples=3,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_random_networks_keep_every_promise(data: st.DataObject) -> None:
    model = random_network(lambda options: data.draw(st.sampled_from(options)))
    check(model, data.draw(st.sampled_from(LOW_BITS)), lambda **more: Recipe(**CHEAP, **more))


def test_mutated_files_are_quantized_or_refused() -> None:
    rng = np.random.default_rng(0)
    files = [random_network(lambda options: options[int(rng.integers(len(options)))]) for _ in range(2)]
    changes = [(file.SerializeToString(), change) for file in files for change in CHANGES[:4]]
    jobs = [(mutated(*one, rng), fuzz.flags_of(rng)) for one in changes]
    results = [fuzz.attempt(*job) for job in jobs]
    assert not [result for result in results if result.startswith("wrong")]
    assert len(set(results)) > 1


def test_what_was_found_is_tried_again_and_counts_of_all_runs_make_a_table(tmp_path: Path) -> None:
    for name, job in (("file", (b"broken", ("--bits", "4"))), ("seed", (7,))):
        fuzz.keep(tmp_path, name, job)
        assert fuzz.kept(tmp_path / f"{name}.txt") == tuple(
            list(one) if len(job) > 1 and n else one for n, one in enumerate(job)
        )
    for seed, count in ((0, 3), (1, 4), (1, 5)):
        fuzz.recorded(tmp_path / "counts.json", seed, {"odd": {fuzz.REFUSED: count, fuzz.WRONG: 1}})
    lines = fuzz.page(json.loads((tmp_path / "counts.json").read_text())).splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    (row,) = (dict(zip(cells[0], line, strict=True)) for line in cells if line[0] == "odd")
    assert (row["inputs"], row[fuzz.REFUSED], row[fuzz.WRONG], row[fuzz.QUANTIZED]) == ("10", "8", "2", "0")


BIAS_BEHIND_A_NODE = """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y) {
    b = Constant <value = float[4] {0.1, 0.2, 0.3, 0.4}> ()  c = Identity(b)
    y = Conv <kernel_shape = [1, 1]> (x, w, c) }"""


def test_predicted_size_holds_where_a_bias_behind_a_node_stays() -> None:
    model = parse(BIAS_BEHIND_A_NODE, w=noise(4, 3, 1, 1))
    report = match(model)
    bits = {layer.name: 4.0 for layer in report.layers}
    form = Recipe().form
    real = rewritten(model, report, bits, form, "asymmetric", corrected=False).proto.ByteSize()
    assert predicted_size(model, report, bits, form, metadata=METADATA) >= real


def test_closed_form_statistics_of_a_matrix_that_reads_a_flattened_tensor() -> None:
    text = """g (float[N, 3, 6, 6] x) => (float[N, 5] y) {
        a = Conv(x, w) b = Relu(a) c = Flatten(b) y = MatMul(c, v) }"""
    model = parse(text, w=noise(4, 3, 3, 3), v=noise(64, 5))
    assert quantize(model, None, Recipe(statistics="closed_form", bits=4, **CHEAP)).passed


def test_folded_batch_norms_without_a_name_are_not_float_any_more() -> None:
    text = """g (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y) {
        a = Conv(x, w) t = Identity(s) b = BatchNormalization(a, t, o, o, s) y = Relu(b) }"""
    model = parse(text, w=noise(4, 3, 3, 3), s=np.ones(4, np.float32), o=noise(4))
    made = quantize(model, None, Recipe(fold_batch_norm="yes", bits=8, **CHEAP))
    assert made.notes[0].startswith("float bytes left: 0 of")
    assert accounted(made) == float_bytes(model)


def test_outputs_that_are_named_twice() -> None:
    text = "g (float[N, 8] x) => (float[N, 4] y, float[N, 4] y) { y = MatMul(x, w) }"
    assert quantize(parse(text, w=noise(8, 4)), None, Recipe(bits=8, **CHEAP)).passed


def test_outputs_that_are_sequences_are_compared() -> None:
    text = "g (float[N, 8] x) => (seq(float[N, 4]) all) { y = MatMul(x, w) all = SequenceConstruct(y, y) }"
    model = parse(text, w=noise(8, 4))
    made = quantize(model, None, Recipe(bits=8, **CHEAP))
    assert made.validation is not None
    assert made.validation.sqnr_db is not None
    assert 30 < made.validation.sqnr_db < 80
    other = quantize(parse(text, w=noise(8, 4, seed=1)), None, Recipe(bits=8, **CHEAP)).model
    assert not validate(model, other)


def test_outputs_of_text_are_not_compared() -> None:
    text = """g (float[N, 8] x) => (float[N, 4] y, string[1] words) {
        y = MatMul(x, w) words = Constant <value_strings = ["a"]> () }"""
    validation = quantize(parse(text, w=noise(8, 4)), None, Recipe(bits=8, **CHEAP)).validation
    assert validation
    assert any("'words' is not a tensor of numbers: not compared" in note for note in validation.notes)


def test_outputs_that_no_layer_reaches() -> None:
    text = """g (float[N, 8] x) => (float[N, 8] y) { z = MatMul(x, w) y = Relu(x) }"""
    made = quantize(parse(text, w=noise(8, 4)), None, Recipe(target_bits=4, **CHEAP))
    assert made.passed


def test_a_layer_whose_input_has_other_channels() -> None:
    text = "g (float[N, 64, 5, 8] x) => (float[N, 4, H, W] y) { y = Conv <group = 3> (x, w) }"
    with pytest.raises(ModelError, match="Conv"):
        quantize(parse(text, w=noise(6, 1, 1, 1)), None, Recipe(bits=4, rounding="nearest", **CHEAP))
