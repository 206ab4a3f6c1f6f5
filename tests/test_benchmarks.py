"""The benchmark scripts run on the shipped network, and what they compare is what they say it is."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser
from rich.console import Console

from benchmarks import (
    accuracy,
    belief,
    broken,
    calibration,
    cost,
    methods,
    networks,
    package,
    packaged,
    predictions,
    readme,
    robustness,
    sensitivity,
)
from benchmarks.baselines import Unavailable, dfq
from benchmarks.evaluate import reference
from benchmarks.ledger import Ledger
from benchmarks.methods import Task
from benchmarks.variants import folded, rescaled, variants
from onnx_dfmpc import Recipe, validate
from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import synthetic
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import load
from onnx_dfmpc.spec.ops import taps, to_rows

PAIR = methods.settings("2/6")[0]


def outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, feeds
    )


def same_function(model: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Equal on synthetic inputs; scores behind a sigmoid lie between 0 and 1, so that tiny ones are compared
    as they are.
    """
    found = synthetic(model_inputs(model), samples=2, seed=0)
    _, _, feeds = next(found.batches())
    pairs = zip(outputs(model, feeds), outputs(other, feeds), strict=True)
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(a).max()))) for a, b in pairs)


def storage(model: onnx.ModelProto) -> list[int]:
    """Element types of the codes behind every DequantizeLinear."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return [types[node.input[0]] for node in model.graph.node if node.op_type == "DequantizeLinear"]


class TestEqualization:
    def test_keeps_the_function_of_the_shipped_networks(self, digits_bn, digits_folded):
        for path in (digits_bn, digits_folded):
            model = onnx.load(path)
            before = model.SerializeToString()
            assert same_function(model, dfq.equalize(model))
            assert model.SerializeToString() == before

    def test_keeps_the_function_of_every_shared_network(self, shared_model):
        model = onnx.load(shared_model)
        assert same_function(model, dfq.equalize(model))

    def test_balances_both_sides_of_every_chain(self, digits_folded):
        model = onnx.load(digits_folded)
        chains = [chain for chain in match(model).chains if chain.homogeneous]
        assert chains
        assert max(imbalance(model)) > 1.5
        assert max(imbalance(dfq.equalize(model))) < 1.01

    def test_moves_the_scale_of_batch_norm_into_the_weights(self, digits_bn):
        for layer in match(dfq.equalize(onnx.load(digits_bn))).layers:
            if layer.batch_norm is not None:
                np.testing.assert_allclose(layer.batch_norm.gamma, layer.batch_norm.sigma, rtol=1e-4)

    def test_takes_negative_and_vanishing_gammas(self):
        model = parser.parse_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 2, 5, 5] x) => (float[N, 1, 5, 5] y)
            <float[3, 2, 1, 1] w = {1, -2, 0.5, 4, 3, 1}, float[3] b = {1, -1, 2},
             float[3] gamma = {-2, 0, 0.5}, float[3] beta = {3, 0.5, -0.1}, float[3] mean = {0.1, 0.2, -3},
             float[3] var = {2, 1, 0.3}, float[1, 3, 1, 1] v = {0.1, 7, -2}>
            { a = Conv(x, w, b)  n = BatchNormalization(a, gamma, beta, mean, var)  r = Relu(n)  y = Conv(r, v) }""")
        equalized = dfq.equalize(model)
        assert same_function(model, equalized)
        assert not {"w", "v", "gamma"} & {tensor.name for tensor in equalized.graph.initializer}


def imbalance(model: onnx.ModelProto) -> list[float]:
    """Largest ratio between the range of a channel at its producer and at its consumers, either way, for
    every chain.
    """
    report, table = match(model), ConstantTable(model)
    layers = {layer.name: layer for layer in report.layers}
    rows = {name: np.abs(to_rows(np.asarray(table[layer.weight]), layer)) for name, layer in layers.items()}
    found = []
    for chain in report.chains:
        if chain.homogeneous:
            mine = rows[chain.producer].max(axis=2).ravel()
            sides = [
                rows[name].reshape(*rows[name].shape[:2], -1, taps(layers[name])).max(axis=(1, 3)).ravel()
                for name in chain.consumers
            ]
            theirs = np.max(sides, axis=0)
            alive = (mine > 0) & (theirs > 0)
            found.append(float(np.exp(np.abs(np.log(mine[alive] / theirs[alive])).max())))
    return found


class TestMethods:
    def test_settings(self):
        found = methods.settings("2/6, 3")
        assert [setting.label for setting in found] == ["2/6", "3"]
        assert (found[0].recipe().low_bits, found[0].recipe().high_bits) == (2, 6)
        assert found[1].recipe(rounding="squant").bits == 3

    @pytest.mark.parametrize("text", ["", "2/", "2/4/6", "two", "6/2", "1"])
    def test_settings_that_are_none(self, text):
        with pytest.raises(RecipeError):
            methods.settings(text)

    def test_groups_and_names(self):
        assert {method.name for method in methods.methods("paper:,paper,squant")} == {
            *(method.name for method in methods.GROUPS["paper"]),
            "squant",
        }
        with pytest.raises(RecipeError, match="no method is named 'squawk'"):
            methods.methods("squawk")

    def test_ablation_changes_one_ingredient_at_a_time(self):
        names = [method.name for method in methods.ablation()]
        assert len(names) == len(set(names)) == 2 + 2 * len(methods.INGREDIENTS)

    @pytest.mark.parametrize("name", ["nearest", "squant", "squant-bias", "dfq-channel", "dfmpc"])
    def test_per_channel_files(self, name, digits_bn):
        model = methods.METHODS[name].run(Task(digits_bn, PAIR)).model
        layers = match(onnx.load(digits_bn)).layers
        assert len(scale_sizes(model)) == len(layers)
        tables = {node.input[0].rstrip("s") for node in model.graph.node if node.op_type == "Gather"}
        assert tables >= {"q_1v4" if name == "dfmpc" else "q_4", "q_64"}  # 2 and 6 bits
        assert all(size > 1 for size in scale_sizes(model))

    def test_dfq_as_published_has_one_scale_per_tensor(self, digits_bn):
        model = methods.METHODS["dfq"].run(Task(digits_bn, PAIR)).model
        assert set(scale_sizes(model)) == {1}

    def test_unknown_provider_is_not_passed_off_as_another(self, digits_bn):
        with pytest.raises(Unavailable, match="no real calibration inputs"):
            methods.METHODS["statistics-calibration"].run(Task(digits_bn, PAIR))

    def test_calibration_inputs_are_used(self, digits_bn, digits_data, tmp_path):
        with np.load(digits_data) as arrays:
            np.savez(tmp_path / "some.npz", input=arrays["input"][:32])
        outcome = methods.METHODS["statistics-calibration"].run(Task(digits_bn, PAIR, tmp_path / "some.npz"))
        assert outcome.providers == ("calibration",)

    def test_validation_is_left_out(self, digits_bn):
        result = package.quantize(digits_bn, Recipe(bits=8, rounding="nearest"))
        assert result.validation is None
        assert {layer.measured_sqnr_db for layer in result.layers} == {None}


def scale_sizes(model: onnx.ModelProto) -> list[int]:
    sizes = {tensor.name: numpy_helper.to_array(tensor).size for tensor in model.graph.initializer}
    return [sizes[node.input[1]] for node in model.graph.node if node.op_type == "DequantizeLinear"]


class TestAccuracy:
    def test_scores_agree_with_validate(self, digits_bn, digits_data):
        model = methods.METHODS["nearest"].run(Task(digits_bn, methods.settings("2")[0])).model
        score = reference(networks.network("digits_resnet_bn"), "digits_test").score(model)
        report = validate(digits_bn, model, digits_data)
        assert (score.n, score.top1, score.agreement) == (
            report.samples,
            report.top1_quantized,
            report.top1_agreement,
        )
        assert score.sqnr_db == pytest.approx(report.sqnr_db, abs=1e-3)

    def test_command(self, tmp_path, capsys):
        output = tmp_path / "out.json"
        arguments = [
            "--networks",
            "digits_resnet_bn",
            "--settings",
            "2",
            "--methods",
            "nearest,squant,statistics-calibration",
        ]
        assert accuracy.main([*arguments, "--json", str(output)]) == 0
        shown = capsys.readouterr().out
        assert "squant" in shown
        assert "n = 597" in shown
        assert "without statistics-calibration:" in shown
        plain = json.loads(output.read_text())
        (result,) = plain["results"]
        assert result["float_scores"]["digits_test"]["agreement"] == 1
        nearest, squant, missing = result["rows"]
        assert nearest["bytes"] == squant["bytes"] < result["float_bytes"]
        assert squant["scores"]["digits_test"]["sqnr_db"] > nearest["scores"]["digits_test"]["sqnr_db"]
        assert missing["unavailable"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--methods", "squawk"],
            ["--settings", "x"],
            ["--networks", "digits_resnet_bn", "--data", "elsewhere"],
            ["--networks", "resnet_21"],
        ],
    )
    def test_wrong_usage(self, arguments, capsys):
        assert accuracy.main(arguments) == 2
        assert capsys.readouterr().err.startswith("error: ")


class TestNetworks:
    def test_large_network(self):
        model = networks.resnet50(np.random.default_rng(0))
        onnx.checker.check_model(model, full_check=True)
        assert sum(np.prod(tensor.dims) for tensor in model.graph.initializer) == pytest.approx(
            25.6e6, rel=0.01
        )
        assert len(match(model).layers) == 54


class TestSensitivity:
    def test_predictions_stand_beside_the_truth(self, tmp_path, capsys):
        path = tmp_path / "sensitivity.json"
        assert (
            sensitivity.main(
                [
                    "--networks",
                    "digits_resnet_bn",
                    "--images",
                    "32",
                    "--bits",
                    "2",
                    "--per-layer",
                    "--json",
                    str(path),
                ]
            )
            == 0
        )
        found = json.loads(path.read_text())
        assert [one["prediction"] for one in found["summaries"]] == [
            "raw",
            "local",
            "bn",
            "probe",
            "measured",
        ]
        assert {row["layer"] for row in found["layers"]} == {
            layer.name for layer in match(load(networks.network("digits_resnet_folded").path).proto).layers
        }
        for row in found["layers"]:
            assert row["true"]["noise"] > 0
            assert row["true"]["kl"] > 0
            assert set(row["predicted"]) == {"raw", "local", "bn", "probe", "measured"}
        assert "Spearman with the truth" in capsys.readouterr().out


class TestReadme:
    def test_targets_in_the_tables_are_those_that_were_asked_for(self, monkeypatch, tmp_path):
        monkeypatch.setattr(readme, "SHOWN", (("digits_resnet_bn", ("2/6",), "digits_test"),))
        monkeypatch.setattr(readme, "SIZED", "digits_resnet_bn")
        monkeypatch.setattr(readme, "SIZES", ("20kB", "70kB"))
        monkeypatch.setattr(readme, "PRESETS", dict.fromkeys(["balanced"]))
        monkeypatch.setattr(readme, "RESULTS", tmp_path)
        sizes, presets = (text.splitlines() for text in readme.targets_tables(Console(quiet=True)))
        *_, small, large = ([cell.strip() for cell in line.strip("|").split("|")] for line in sizes)
        least = int(small[1].removeprefix("refused: ").removesuffix(" at least").replace(",", ""))
        assert 20_000 < least < int(large[1].replace(",", "")) <= 70_000
        assert len(presets) == 3
        kept = json.loads((tmp_path / "targets.json").read_text(encoding="utf-8"))
        assert [row["setting"] for row in kept["rows"]] == ["70kB", "balanced"]
        assert f"{kept['rows'][-1]['bytes']:,}" in presets[-1]


class TestBroken:
    def test_a_broken_layer_is_found_and_repaired(self, capsys):
        assert broken.main(["--network", "digits_resnet_bn", "--choices", "1"]) == 0
        assert "$=" in capsys.readouterr().out

    def test_mistakes_are_one_line(self, capsys):
        assert broken.main(["--network", "nothing"]) != 0
        assert capsys.readouterr().err.startswith("error: ")


class TestVariants:
    def test_folded_is_the_same_function(self, digits_bn):
        model = onnx.load(digits_bn)
        flat = folded(model)
        assert flat is not None
        assert not [node for node in flat.graph.node if node.op_type == "BatchNormalization"]
        assert same_function(model, flat)
        assert folded(flat) is None

    @pytest.mark.parametrize("form", ["bn", "folded"])
    def test_rescaled_is_the_same_function_of_the_picture(self, form, digits_bn, digits_folded):
        model = onnx.load(digits_bn if form == "bn" else digits_folded)
        other = rescaled(model, 127.5, 0.0)
        assert other is not None
        _, _, feeds = next(synthetic(model_inputs(model), samples=2, seed=0).batches())
        moved = {name: np.float32(127.5) * array for name, array in feeds.items()}
        for a, b in zip(outputs(model, feeds), outputs(other, moved), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())

    def test_factors_alone_add_no_bias(self):
        model = parser.parse_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 2, 5, 5] x) => (float[N, 1, 3, 3] y)
            <float[1, 2, 3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9}>
            { y = Conv(x, w) }""")
        other = rescaled(model, 2.0, 0.0)
        assert other is not None
        assert len(other.graph.node[0].input) == 2

    def test_names(self):
        found = list(variants(networks.network("digits_resnet_bn"), ranges=("0..255",)))
        assert [variant.name for variant in found] == ["digits_resnet_bn", "digits_resnet_bn 0..255"]


class TestCases:
    def test_robustness_and_predictions_share_a_file(self, tmp_path, capsys):
        path = tmp_path / "cases.json"
        arguments = ["--networks", "digits_resnet_bn", "--json", str(path)]
        assert robustness.main([*arguments, "--bits", "2", "--as-given"]) == 0
        assert "1 cases, 0 below plain rounding, 0 below SQuant" in capsys.readouterr().out
        before = path.read_bytes()
        assert predictions.main([*arguments, "--settings", "2", "--ranges", "own"]) == 0
        assert path.read_bytes() == before, "measured again"
        shown = capsys.readouterr().out
        assert "| all | 1 |" in shown
        assert "hold, the bar is 90 %" in shown
        assert len(json.loads(before)["rows"]) == 3

    def test_files_of_another_benchmark_are_refused(self, tmp_path, capsys):
        path = tmp_path / "other.json"
        path.write_text(json.dumps({"rows": [{"network": "x"}]}))
        assert robustness.main(["--networks", "--json", str(path)]) != 0
        assert "results of another benchmark" in capsys.readouterr().err

    def test_rows_of_several_files(self, tmp_path):
        rows = [cost.Row("a", "nearest", "this", repeat, 1.0, 2.0, 3) for repeat in range(2)]
        for row in rows:
            Ledger(cost.Row, tmp_path / f"{row.repeat}.json").add(row)
        joined = Ledger(cost.Row, tmp_path / "0.json", [tmp_path / "1.json"])
        assert list(joined) == rows
        assert ("a", "nearest", "this", 1) in joined


class TestCalibration:
    def test_parts_are_disjoint(self):
        pool, (test, labels) = calibration.parted(networks.network("digits_resnet_bn"))
        assert labels is not None
        assert len(test) == len(labels)
        assert len(pool) + len(test) == 597
        assert not {one.tobytes() for one in pool[:50]} & {one.tobytes() for one in test}

    def test_alone_leaves_the_constant_as_it_was(self):
        usual = calibration.mixing.KNOWN
        with calibration.alone():
            assert calibration.mixing.KNOWN == 0
        assert usual == calibration.mixing.KNOWN


class TestBelief:
    def test_command(self, capsys):
        usual = belief.belief.WHITE_PRIOR
        assert belief.main(["--networks", "digits_resnet_bn", "--used"]) == 0
        assert "| digits_resnet_bn | 0..255 |" in capsys.readouterr().out
        assert usual == belief.belief.WHITE_PRIOR


class TestCost:
    def test_command(self, tmp_path, capsys):
        path = tmp_path / "cost.json"
        arguments = ["--networks", "digits_resnet_bn", "--steps", "load+save", "nearest", "--repeats", "1"]
        assert cost.main([*arguments, "--json", str(path)]) == 0
        shown = capsys.readouterr().out
        assert "| digits_resnet_bn | load+save | 1 |" in shown
        assert "| digits_resnet_bn | nearest | 1 |" in shown
        rows = list(Ledger(cost.Row, path))
        assert all(row.cpu > 0 and row.wall > 0 and row.peak >= 0 for row in rows)

    def test_every_step_asks_for_something_that_there_is(self):
        calls = []
        names = {"quantize": lambda *arguments, **_: calls.append(arguments), "Recipe": Recipe}
        for step, code in cost.STEPS.items():
            if step != "load+save":
                exec(code, names | {"model": "model", "output": "output"})
        recipes = [json.dumps(recipe.to_dict()) for _, _, recipe in calls]
        assert len(set(recipes)) == len(recipes) == len(cost.STEPS) - 1

    def test_another_directory_is_refused(self, tmp_path, capsys):
        arguments = ["--networks", "digits_resnet_bn", "--steps", "load+save", "--repeats", "1"]
        assert cost.main([*arguments, "--other", str(tmp_path)]) != 0
        assert capsys.readouterr().err.startswith("error: ")


def test_characters_are_read_and_counted() -> None:
    scores = np.eye(4)[[[0, 1, 1, 0, 1, 2, 2, 3], [3, 3, 0, 0, 0, 0, 0, 0]]]
    assert packaged.read(scores) == [(1, 1, 2, 3), (3,)]
    assert packaged.edits(b"kitten", b"sitting") == packaged.edits(b"sitting", b"kitten") == 3
    other = np.eye(4)[[[0, 1, 0, 0, 1, 2, 2, 2], [3, 3, 0, 0, 0, 0, 0, 0]]]
    assert packaged.same_characters(scores, scores) == 1
    assert packaged.same_characters(scores, other) == 1 - 1 / 5
    assert packaged.overlap(np.array([0.9, 0.9, 0.1]), np.array([0.2, 0.9, 0.1])) == 0.5
