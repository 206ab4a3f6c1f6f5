"""What a run promises about its outputs, and what real inputs change: bits until the lower end of the prediction
holds, calibration on a few samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnx_dfmpc import Recipe, plan, quantize, validate
from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.pipeline import run as running
from onnx_dfmpc.pipeline import steps
from onnx_dfmpc.pipeline.results import PlanResult
from onnx_dfmpc.spec import Expectation
from tests.graphs import FAST, chain, noise

NOT_PROMISED = "the prediction does not promise"


def planned(target: float, **knobs: Any) -> PlanResult:
    return running.plan_result(chain(), Recipe(target_sqnr_db=target, storage="native", **FAST, **knobs))


@pytest.mark.parametrize("target", [8, 15, 20, 30])
def test_the_lower_end_of_a_prediction_holds_what_was_asked_for(target: float) -> None:
    """The chain has 38 dB at 8 bits."""
    made = planned(target)
    assert made.plan.predicted_low_db is not None
    assert made.plan.predicted_low_db >= target
    assert not any(NOT_PROMISED in note for note in made.notes)
    assert made.recipe.target_sqnr_db == made.plan.recipe["target_sqnr_db"] == target  # not the raised one


def test_what_is_not_promised_is_said() -> None:
    """The layers one at a time add up to 39.6 dB, all together have less."""
    made = planned(39.2)
    low = made.plan.predicted_low_db
    assert low is not None
    assert low < 39.2
    assert f"{NOT_PROMISED} 39.2 dB: its lower end is {low:.1f} dB" in made.notes
    with pytest.raises(UnsupportedError, match="cannot be met"):
        planned(60)


@pytest.mark.parametrize("network", ["digits_bn", "digits_folded"])
def test_a_promise_holds_on_real_images(
    request: pytest.FixtureRequest, digits_data: Path, network: str
) -> None:
    path = request.getfixturevalue(network)
    result = quantize(path, None, Recipe(target_sqnr_db=20))
    assert result.plan.predicted_low_db is not None
    assert result.plan.predicted_low_db >= 20
    assert validate(path, result.model, digits_data).sqnr_db >= 20


def missing(monkeypatch: pytest.MonkeyPatch, by: float, attempts: int) -> list[float]:
    """Let the first attempts miss what they were asked for; the targets they were given."""
    asked: list[float] = []
    allocate = running.allocate

    def recorded(job: Any, costs: Any, seconds: Any, *, target_sqnr_db: float | None = None) -> Any:
        asked.append(job.recipe.target_sqnr_db if target_sqnr_db is None else target_sqnr_db)
        return allocate(job, costs, seconds, target_sqnr_db=target_sqnr_db)

    def expected(*_: Any) -> Expectation:
        low = 12 - by if len(asked) <= attempts else 12.5
        return Expectation(low + 1, low, low + 2)

    monkeypatch.setattr(running, "allocate", recorded)
    monkeypatch.setattr(steps, "expect", expected)
    return asked


def test_a_target_is_raised_by_what_it_was_missed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = missing(monkeypatch, 4.0, 1)
    made = planned(12)
    assert asked == pytest.approx([12, 16 + running.MARGIN_DB])
    assert (made.plan.predicted_low_db, made.plan.predicted_sqnr_db) == (12.5, 13.5)


def test_a_target_is_not_raised_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = missing(monkeypatch, 4.0, 100)
    made = planned(12)
    step = 4 + running.MARGIN_DB
    assert asked == pytest.approx([12 + step * i for i in range(1 + running.ATTEMPTS)])
    assert f"{NOT_PROMISED} 12 dB: its lower end is 8.0 dB" in made.notes


def test_what_is_met_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = missing(monkeypatch, 0.0, 100)
    planned(12)
    assert asked == [12]


def test_a_size_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = missing(monkeypatch, 100.0, 100)
    made = running.plan_result(chain(), Recipe(target_bits=4, **FAST))
    assert len(asked) == 1
    assert not any(NOT_PROMISED in note for note in made.notes)


# ------------------------------------------------------------------------------------------------------
# real inputs


def saved(tmp_path: Path, images: np.ndarray, name: str = "input") -> str:
    np.savez(tmp_path / "calibration.npz", **{name: images})
    return str(tmp_path / "calibration.npz")


@pytest.fixture(scope="module")
def blind(digits_folded: Path, digits_data: Path) -> float:
    """SQNR on real images of the network that was quantized without any."""
    model = quantize(digits_folded, None, Recipe(bits=3), validated=False).model
    found = validate(digits_folded, model, {"input": np.load(digits_data)["input"][500:]}).sqnr_db
    assert found is not None
    return found


@pytest.mark.parametrize("count", [1, 40])
def test_a_few_real_samples_are_enough(
    tmp_path: Path, digits_folded: Path, digits_data: Path, blind: float, count: int
) -> None:
    """One sample tells the range, which a folded network does not say for sure."""
    images = np.load(digits_data)["input"]
    recipe = Recipe(bits=3, calibration_data=saved(tmp_path, images[100 : 100 + count]))
    result = quantize(digits_folded, None, recipe)
    assert {layer.source for layer in result.layers} == {"calibration"}
    assert not any("not known" in note for note in result.notes)
    assert result.expectation is not None
    names = [kind.name for kind in result.expectation.kinds]
    assert ("calibration data that were held out" in names) is (count >= 16)
    assert sum(kind.weight for kind in result.expectation.kinds) == pytest.approx(1)
    # One sample tells the range and little else: it may lose what the pictures of the project knew.
    measured = validate(digits_folded, result.model, {"input": images[500:]}).sqnr_db
    assert measured > blind - (2 if count == 1 else 0)


def test_many_real_samples_are_better_than_one(tmp_path: Path, digits_bn: Path, digits_data: Path) -> None:
    images, real = np.load(digits_data)["input"], []
    for count in (1, 400):
        recipe = Recipe(bits=2, calibration_data=saved(tmp_path, images[:count]))
        model = quantize(digits_bn, None, recipe, validated=False).model
        real.append(validate(digits_bn, model, {"input": images[500:]}).sqnr_db)
    assert real[1] > real[0]


def test_a_sample_without_any_contrast_does_no_harm(tmp_path: Path) -> None:
    blank = saved(tmp_path, np.full((1, 3, 8, 8), 0.5, np.float32), "x")
    made = plan(chain(), Recipe(bits=4, calibration_data=blank))
    assert made.predicted_sqnr_db is not None
    assert np.isfinite(made.predicted_sqnr_db)


# ------------------------------------------------------------------------------------------------------
# inputs that are no floats between the usual numbers

BYTES = """<ir_version: 8, opset_import: ["" : 17]>
g (uint8[N, 3, 12, 12] x) => (float[N, 4, 10, 10] y) {
    f = Cast <to = 1> (x)  a = Conv(f, w)  r = Relu(a)  y = Conv(r, v)
}"""


def test_of_whole_numbers_there_is_no_doubt() -> None:
    """Bytes are what they are: no hypothesis about floats moves or squeezes them."""
    model = parser.parse_model(BYTES)
    for name, values in (("w", noise(8, 3, 3, 3)), ("v", noise(4, 8, 1, 1, seed=1))):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    result = quantize(model, None, Recipe(bits=4))
    assert not any("not known" in note for note in result.notes)
    assert result.expectation is not None
    assert all("0 to 255" in kind.name for kind in result.expectation.kinds)
    assert result.validation is not None
    assert " in -" not in result.validation.data


EXPONENTIAL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 16, 16] x) => (float[N, 4, 16, 16] y) {
    a = Conv(x, w, b)  e = Exp(a)  c = Conv(e, v, b)  r = Relu(c)  y = Conv(r, u)
}"""


def test_a_hypothesis_that_overflows_the_network_is_not_tried_on_it() -> None:
    """e to the power of a raw pixel is no number, so that raw pixels are not what it was made for."""
    model = parser.parse_model(EXPONENTIAL)
    shapes = {"w": (16, 3, 1, 1), "v": (16, 16, 1, 1), "u": (4, 16, 1, 1), "b": (16,)}
    for place, (name, shape) in enumerate(shapes.items()):
        values = noise(*shape, seed=place) / np.float32(np.sqrt(np.prod(shape[1:])))
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    result = quantize(model, None, Recipe(bits=8))
    assert result.validation is not None
    assert result.validation.sqnr_db > 20


TOKENS = """<ir_version: 8, opset_import: ["" : 17]>
g (int64[N, 16] x) => (float[N, 16, 3] y) { e = Gather(table, x)  a = MatMul(e, w)  r = Relu(a)  y = MatMul(r, v) }"""


def test_a_range_of_whole_numbers_is_kept() -> None:
    model = parser.parse_model(TOKENS)
    for name, shape in (("table", (40, 8)), ("w", (8, 12)), ("v", (12, 3))):
        model.graph.initializer.append(numpy_helper.from_array(noise(*shape), name))
    result = quantize(model, None, Recipe(bits=4, input_range=(0, 39)))
    assert {layer.source for layer in result.layers} == {"probe", "none"}  # none for the table
    assert result.expectation is not None
