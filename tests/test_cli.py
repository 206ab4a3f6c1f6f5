"""The command line from flags to exit code, on the network that ships with the project."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from onnx_dfmpc import cli
from onnx_dfmpc.cli import flags
from onnx_dfmpc.cli.flags import parse, recipe_of
from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.evaluate import latency
from onnx_dfmpc.evaluate.command import repeat_command
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.pipeline import run as pipeline
from onnx_dfmpc.recipe import Data, Gates, Recipe
from onnx_dfmpc.recipe.values import settings
from tests.conftest import ROOT, Run


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "small.onnx"


@pytest.fixture(autouse=True)
def _directory(target: Path) -> None:
    target.parent.mkdir()


FAST = ("-c", ROOT / "tests" / "fast.toml")


def assert_one_line(err: str) -> None:
    lines = err.splitlines()
    assert len(lines) in (1, 2), err
    assert lines[0].startswith("error: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert "Traceback" not in err


def process(*argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"} | environment
    return subprocess.run(
        [sys.executable, "-m", "onnx_dfmpc", *map(str, argv)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )


@pytest.mark.parametrize("columns", [30, 60])
def test_a_narrow_terminal_loses_nothing(
    run: Run, digits_bn: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """A table squeezed into 30 columns had no names, and numbers without their last digits."""
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = run("inspect", digits_bn)
    assert code == 0
    assert max(map(len, out.splitlines())) <= columns
    for layer in match(load(digits_bn).proto).layers:
        assert layer.name in out.replace("\n", "")
        assert "×".join(map(str, layer.shape)) in out.replace("\n", "")


# -------------------------------------------------------------------------------------------------------------------
# end to end


def test_quantize_then_validate(
    run: Run, digits_bn: Path, digits_data: Path, target: Path, tmp_path: Path
) -> None:
    before = digits_bn.read_bytes()
    document = tmp_path / "run.json"
    code, out, err = run(
        "quantize",
        digits_bn,
        "-o",
        target,
        "--bits",
        6,
        "--data",
        digits_data,
        "--min-cosine",
        0.9,
        "--json",
        document,
    )
    assert (code, err) == (0, "")
    assert "PASSED min_cosine" in out
    paths = (str(digits_bn), str(tmp_path))  # which never break
    assert max(len(line) for line in out.splitlines() if not any(path in line for path in paths)) <= 80
    plain = json.loads(document.read_text(encoding="utf-8"))
    assert plain["output"] == {
        "path": str(target),
        "bytes": target.stat().st_size,
        "opset": plain["output"]["opset"],
    }
    assert plain["output"]["bytes"] < plain["model"]["bytes"] / 2
    assert plain["totals"]["layers"] == len(plain["layers"]) > 10
    assert plain["validation"]["labelled"] == plain["validation"]["samples"] > 100
    assert digits_bn.read_bytes() == before
    assert {file.name for file in target.parent.iterdir()} == {"small.onnx"}

    code, out, err = run(
        "validate", digits_bn, target, "--data", digits_data, "--max-top1-drop", 0.5, "--json", "-"
    )
    assert (code, err) == (0, "")
    again = json.loads(out)
    assert again["validation"]["top1_quantized"] == pytest.approx(plain["validation"]["top1_quantized"])
    assert again["output"]["sha256"] != again["model"]["sha256"]


def test_what_broke_and_how_fast_it_is(
    run: Run, digits_bn: Path, digits_data: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    name = "/blocks/blocks.1/conv2/Conv"
    flags = (*FAST, "--set", f"^{name}$=2")
    assert run("quantize", digits_bn, "-o", target, *flags)[0] == 0
    code, out, err = run(
        "validate",
        digits_bn,
        target,
        "--data",
        digits_data,
        "--samples",
        40,
        "--per-layer",
        "--latency",
        "--json",
        "-",
    )
    assert (code, err) == (0, "")
    plain = json.loads(out)
    assert plain["per_layer"][0]["name"] == name
    assert plain["per_layer"][0]["bits"] == 2
    assert [timing["name"] for timing in plain["latency"]["timings"]] == [
        "float",
        "quantized, default",
        "quantized, recommended",
    ]
    assert "per layer: measured on 16 samples" in plain["validation"]["notes"]
    code, out, err = run("validate", digits_bn, target, "--samples", 8, "--per-layer")
    assert (code, err) == (0, "")
    assert "--set" not in out  # of the settings that made the file, nothing is known
    assert "What helps depends on the settings that made the file: onnx-dfmpc quantize tries it" in " ".join(
        out.split()
    )


def test_a_gate_that_fails_leaves_no_output(run: Run, digits_bn: Path, target: Path, tmp_path: Path) -> None:
    document = tmp_path / "run.json"
    code, out, err = run(
        "quantize", digits_bn, "-o", target, "--low-bits", 2, "--min-sqnr-db", 90, *FAST, "--json", document
    )
    assert code == 1
    assert "FAILED min_sqnr_db" in out
    assert "min_sqnr_db = 90 missed" in err
    assert_one_line(err)
    assert not list(target.parent.iterdir())
    plain = json.loads(document.read_text(encoding="utf-8"))
    assert plain["output"]["path"] is None
    assert plain["validation"]["passed"] is False
    assert plain["validation"]["command"].startswith(f"onnx-dfmpc quantize {digits_bn}")


def test_dry_run_writes_nothing(run: Run, digits_bn: Path, target: Path) -> None:
    code, out, _ = run("quantize", digits_bn, "-o", target, "--dry-run", *FAST)
    assert code == 0
    assert "not written" in out
    assert not list(target.parent.iterdir())


def test_external_data_and_overwrite(run: Run, digits_bn: Path, target: Path) -> None:
    assert run("quantize", digits_bn, "-o", target, "--save-as-external-data", *FAST)[0] == 0
    names = sorted(file.name for file in target.parent.iterdir())
    assert [re.sub("[0-9a-f]{16}", "HASH", name) for name in names] == ["small.HASH.onnx.data", "small.onnx"]
    before = target.read_bytes()
    code, out, err = run("quantize", digits_bn, "-o", target, "--save-as-external-data", *FAST)
    assert (code, out) == (2, "")
    assert "--overwrite" in err
    assert target.read_bytes() == before
    assert run(
        "quantize", digits_bn, "-o", target, "--save-as-external-data", "--overwrite", *FAST, "-q"
    ) == (0, "", "")
    assert run("validate", digits_bn, target, "--samples", 8)[0] == 0


def test_flags_reach_the_layers(run: Run, digits_bn: Path, target: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    text = '[target]\nlow_bits = 2\n[defaults]\nmethod = "paper"\nrounding = "nearest"\n[set]\n".*" = 5\n'
    recipe.write_text(text, encoding="utf-8")
    layers = json.loads(run("inspect", digits_bn, "--json", "-")[1])["layers"]
    first, second, last = layers[1]["name"], layers[2]["name"], layers[-1]["name"]
    argv = [
        "--bits",
        4,
        "--set",
        f"{first}=3",
        "--nodes-to-exclude",
        second,
        "--set",
        f"{last}=7",
        "-c",
        recipe,
    ]
    code, out, _ = run("quantize", digits_bn, "-o", target, "--samples", 8, "--json", "-", *argv)
    plain = json.loads(out)
    bits = {layer["name"]: layer["bits"] for layer in plain["layers"]}
    assert code == 0
    assert plain["recipe"]["bits"] == 4
    assert plain["recipe"]["method"] == "paper"
    assert (bits[first], bits[last], bits[layers[3]["name"]]) == (3, 7, 5)
    assert second not in bits
    assert second in [node["name"] for node in plain["skipped"]]


def test_inspect(run: Run, digits_bn: Path) -> None:
    code, out, err = run("inspect", digits_bn)
    assert (code, err) == (0, "")
    assert "Chains" in out
    plain = json.loads(run("inspect", digits_bn, "--json", "-")[1])
    assert plain["command"] == "inspect"
    assert plain["totals"]["weighted_nodes"] == plain["totals"]["layers"] + plain["totals"]["skipped"] == 16
    assert run("inspect", digits_bn, "-q") == (0, "", "")


# --------------------------------------------------------------------------------------------------------------------
# bad input


@pytest.mark.parametrize("command", ["inspect", "plan", "quantize", "validate"])
@pytest.mark.parametrize("content", [b"", b"no model at all", "cut", "missing", "directory"])
def test_bad_models(
    run: Run, digits_bn: Path, target: Path, tmp_path: Path, command: str, content: bytes | str
) -> None:
    model = tmp_path / "model.onnx"
    if content == "directory":
        model.mkdir()
    elif content == "cut":
        model.write_bytes(digits_bn.read_bytes()[:5000])
    elif isinstance(content, bytes):
        model.write_bytes(content)
    rest = {"inspect": [], "plan": ["-o", target], "quantize": ["-o", target], "validate": [digits_bn]}[
        command
    ]
    code, out, err = run(command, model, *rest)
    assert (code, out) == (3, "")
    assert_one_line(err)
    assert "model.onnx" in err
    assert not list(target.parent.iterdir())


def test_nothing_to_quantize(run: Run, target: Path, tmp_path: Path) -> None:
    relu = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    onnx.save(relu, tmp_path / "relu.onnx")
    for command in ("plan", "quantize"):
        code, out, err = run(command, tmp_path / "relu.onnx", "-o", target)
        assert (code, out) == (3, "")
        assert_one_line(err)
        assert not list(target.parent.iterdir())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "COMMAND"),
        (["quantise", "MODEL"], "did you mean quantize?"),
        (["inspect"], "MODEL"),
        (["inspect", "MODEL", "--jsn", "-"], "did you mean --json?"),
        (["inspect", "MODEL", "extra"], "'extra'"),
        (["inspect", "MODEL", "--bits", "4"], "onnx-dfmpc inspect --help"),
        (["inspect", "MODEL", "--json"], "--json"),
        (["inspect", "MODEL", "-q", "-v"], "not allowed"),
        (["inspect", "MODEL", "--json", "MODEL"], "another file"),
        (["inspect", "MODEL", "--json", "no/such/run.json"], "no directory"),
        (["quantize"], "MODEL"),
        (["quantize", "MODEL", "-o", "MODEL", "--overwrite"], "another file"),
        (["quantize", "MODEL", "-o", "no/such/out.onnx"], "no directory"),
        (["quantize", "MODEL", "-o", "."], "a directory"),
        (["quantize", "MODEL", "-o", "OUT", "--low-bit", "2"], "did you mean --low-bits?"),
        (["quantize", "MODEL", "-o", "OUT", "--low-bits", "two"], "'two'"),
        (["quantize", "MODEL", "-o", "OUT", "--low-bits", "1"], "2 to 8"),
        (["quantize", "MODEL", "-o", "OUT", "--bits", "4", "--high-bits", "6"], "exclude each other"),
        (["quantize", "MODEL", "-o", "OUT", "--set", "conv1"], "REGEX=BITS"),
        (["quantize", "MODEL", "-o", "OUT", "--set", "(=4"], "regular expression"),
        (["quantize", "MODEL", "-o", "OUT", "--set", "a=b"], "'a=b'"),
        (["quantize", "MODEL", "-o", "OUT", "--set", "nothing_like_it=4"], "nothing_like_it"),
        (["quantize", "MODEL", "-o", "OUT", "--nodes-to-exclude", "/fc/Gem"], "/fc/Gemm"),
        (["quantize", "MODEL", "-o", "OUT", "--input-range", "5"], "two numbers"),
        (["quantize", "MODEL", "-o", "OUT", "--input-range", "low"], "'low' is not A,B: two numbers"),
        (["quantize", "MODEL", "-o", "OUT", "--input-range", "5,-5"], "smaller one first"),
        (["quantize", "MODEL", "-o", "OUT", "--method", "papr"], "did you mean paper?"),
        (["quantize", "MODEL", "-o", "OUT", "-c", "no.toml"], "no.toml"),
        (["quantize", "MODEL", "-o", "OUT", "--data", "no.npz"], "no.npz"),
        (["quantize", "MODEL", "-o", "OUT", "--max-top1-drop", "0.1"], "labelled"),
        (["quantize", "MODEL", "-o", "OUT", "--max-top1-drop", "1"], "fraction"),
        (
            ["quantize", "MODEL", "-o", "OUT", "--bits", "4", "--target-size", "30KiB"],
            "bits = 4 and target_size = 30720 exclude each other",
        ),
        (["quantize", "MODEL", "-o", "OUT", "--target-size", "3 apples"], "300KiB"),
        (["quantize", "MODEL", "-o", "OUT", "--target-bits", "9"], "1.58 to 8"),
        (["quantize", "MODEL", "-o", "OUT", "--preset", "lossles"], "did you mean lossless?"),
        (["quantize", "MODEL", "-o", "OUT", "--storage", "nativ"], "did you mean native?"),
        (["quantize", "MODEL", "-o", "OUT", "--images", "sizes=3"], "did you mean size?"),
        (["quantize", "MODEL", "-o", "OUT", "--images", "256"], "'256' is not KEY=VALUE"),
        (["quantize", "MODEL", "-o", "OUT", "--shape", "1,3"], "'1,3' is not NAME=SHAPE"),
        (["quantize", "MODEL", "-o", "OUT", "--rounding", "gptq"], "unknown flag --rounding"),
        (["quantize", "MODEL", "-o", "OUT", "--save-recipe", "r.toml"], "unknown flag --save-recipe"),
        (["quantize", "MODEL", "-o", "OUT", "--json", "OUT"], "another file"),
        (["plan", "MODEL", "--save-recipe", "MODEL"], "another file"),
        (["plan", "MODEL", "--save-recipe", "no/such/recipe.toml"], "no directory"),
        (["quantize", "MODEL", "-o", "OUT", "--plan", "no.json"], "no.json: no such plan"),
        (["quantize", "MODEL", "-o", "OUT", "--plan", "MODEL"], "MODEL: not a JSON file"),
        (["plan", "MODEL", "-o", "MODEL"], "another file"),
        (["plan", "MODEL", "-o", "MODEL", "--overwrite"], "another file"),
        (["plan", "MODEL", "-o", "OUT", "--bits", "4", "--preset", "balanced"], "exclude each other"),
        (["plan", "MODEL", "--sweep", "many"], "'many' is neither two budgets or more nor their sizes"),
        (["plan", "MODEL", "--sweep", "100KiB,fast"], "200KiB,300KiB"),
        (["plan", "MODEL", "--sweep", "1"], "'1' is neither two budgets or more"),
        (["plan", "MODEL", "--min-cosine", "0.9"], "onnx-dfmpc plan --help"),
        (["validate", "MODEL", "MODEL", "--labels", "no.txt"], "--data"),
        (
            ["validate", "MODEL", "MODEL", "--min-cosine", "scores=0.9"],
            "'scores=0.9' is not X: a number from -1",
        ),
    ],
)
def test_bad_usage_is_one_line_and_a_hint(
    run: Run, digits_bn: Path, target: Path, argv: list[str], words: str
) -> None:
    names = {"MODEL": str(digits_bn), "OUT": str(target)}
    before = digits_bn.read_bytes()
    code, out, err = run(*(names.get(word, word) for word in argv))
    assert (code, out) == (2, "")
    assert_one_line(err)
    assert words.replace("MODEL:", f"{digits_bn}:") in err
    assert not list(target.parent.iterdir())
    assert digits_bn.read_bytes() == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written(run: Run, digits_bn: Path, target: Path) -> None:
    target.parent.chmod(0o500)
    code, _, err = run("quantize", digits_bn, "-o", target, *FAST)
    assert code == 2
    assert_one_line(err)


def test_a_disk_that_refuses(
    run: Run, digits_bn: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    code, _, err = run("quantize", digits_bn, "-o", target, *FAST)
    assert code == 2
    assert "No space left" in err
    assert_one_line(err)
    assert not list(target.parent.iterdir())


# ---------------------------------------------------------------------------------------------------------
# what should not happen


@pytest.mark.parametrize("flags", [["--data", "no.npz"], ["--max-top1-drop", "0.1"], ["--labels", "no.txt"]])
def test_bad_data_is_found_before_the_work_is_done(
    run: Run, digits_bn: Path, target: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setattr(pipeline, "carry_out", lambda *_, **__: pytest.fail("too late"))
    assert run("quantize", digits_bn, "-o", target, *flags)[0] == 2


def test_labels_of_other_classes_are_found_before_the_work_is_done(
    run: Run, digits_bn: Path, digits_data: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "carry_out", lambda *_, **__: pytest.fail("too late"))
    with np.load(digits_data) as data:
        np.save(target.with_name("labels.npy"), data["labels"] + 1)
    flags = ("--data", digits_data, "--labels", target.with_name("labels.npy"), "--bits", 4)
    code, _, err = run("quantize", digits_bn, "-o", target, *flags)
    assert code == 2
    assert "labels from 1 to 10 for the 10 classes" in err
    assert "subtract 1" in err


def test_an_internal_error_is_one_line(run: Run, digits_bn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(cli, "inspect_result", fail)
    code, out, err = run("inspect", digits_bn)
    assert (code, out) == (4, "")
    assert_one_line(err)
    assert "KeyError" in err
    assert "bug" in err
    assert "Traceback" in run("inspect", digits_bn, "-v")[2]


def test_interrupt(run: Run, digits_bn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "inspect_result", interrupt)
    assert run("inspect", digits_bn) == (130, "", "error: interrupted\n")


def test_a_closed_pipe_is_quiet(digits_bn: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "onnx_dfmpc", "inspect", str(digits_bn)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=env, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# ------------------------------------------------------------------------------------------------------------------
# as a process


def test_the_module_runs_without_colour_or_noise(digits_bn: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.onnx"
    done = process(
        "quantize",
        digits_bn,
        "-o",
        target,
        "--low-bits",
        2,
        "--high-bits",
        6,
        "--samples",
        8,
        NO_COLOR="1",
        TERM="xterm-256color",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert (
        max(len(line) for line in done.stdout.splitlines() if not line.startswith("onnx-dfmpc validate "))
        <= 80
    )
    assert "synthetic" in done.stdout
    assert "a sanity check, not accuracy" in " ".join(done.stdout.split())


def test_version_and_help(run: Run) -> None:
    version = process("--version")
    assert version.returncode == 0
    assert version.stdout.startswith("onnx-dfmpc ")
    for command in ("inspect", "plan", "quantize", "validate", "report"):
        assert f"usage: onnx-dfmpc {command}" in run(command, "--help")[1]


# -----------------------------------------------------------------------------------------------------------------------
# parsing


def test_every_flag_becomes_a_recipe() -> None:
    argv = (
        "quantize m.onnx -o o.onnx --min-bits 2 --max-bits 6 --storage native --unpack int8 --fold-batch-norm no "
        "--low-bits 2 --high-bits 5 --set a=3 --set b=c=4 --nodes-to-exclude x y --nodes-to-exclude z --method paper "
        "--statistics closed_form --data d.npz --labels l.npy --input-range -1,2.5 --samples 9 --seed 4 "
        "--min-cosine 0.9 --min-sqnr-db -3 --max-top1-drop 0.02 --min-top1-agreement 0.5 --shape x=1,3,8,8 --shape a=b=2 "
        "--images size=256 crop=224,200 mean=-1,2,3.5 --images scale=1 channels=bgr"
    )
    assert recipe_of(parse(["quantize", "m.onnx", "--activations", "8"])).activations == 8
    given = recipe_of(parse(argv.split())).to_dict(changed_only=True)
    assert given == {
        "low_bits": 2, "high_bits": 5, "max_bits": 6,
        "rules": [
            {"regex": "a", "bits": 3}, {"regex": "b=c", "bits": 4},
            *({"node": name, "exclude": True} for name in "xyz"),
        ],
        "method": "paper", "statistics": "closed_form",
        "storage": "native", "unpack": "int8", "fold_batch_norm": "no",
        "data": "d.npz", "labels": "l.npy", "input_range": [-1.0, 2.5], "samples": 9, "seed": 4,
        "images": {"size": [256], "crop": [224, 200], "mean": [-1.0, 2.0, 3.5], "scale": 1.0, "channels": "bgr"},
        "shapes": {"x": [1, 3, 8, 8], "a=b": [2]},
        "min_cosine": 0.9, "min_sqnr_db": -3.0, "max_top1_drop": 0.02, "min_top1_agreement": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"data": "my data.npz", "labels": "l.npy", "samples": 9, "seed": 4, "min_cosine": 0.9999999},
        {
            "input_range": (-1, 2.5),
            "shapes": {"x": (1, 3), "a=b": (2,)},
            "min_sqnr_db": -3,
            "max_top1_drop": 0,
        },
        {
            "images": {"size": 256, "crop": 0.875, "mean": (-1, 2, 3.5), "layout": "nhwc"},
            "min_top1_agreement": 1,
        },
    ],
)
def test_the_repeat_command_gives_the_same_data_and_gates(keywords: dict[str, Any]) -> None:
    recipe = Recipe(**keywords)
    program, *argv = shlex.split(repeat_command("a.onnx", Path("b.onnx"), recipe, recipe))
    assert (program, *argv[:3]) == ("onnx-dfmpc", "validate", "a.onnx", "b.onnx")
    assert recipe_of(parse(argv)) == recipe


def test_what_is_in_memory_cannot_be_repeated() -> None:
    assert repeat_command("a.onnx", onnx.ModelProto(), Data(), Gates()) == ""
    assert repeat_command("a.onnx", "b.onnx", Data(data={"x": np.zeros(2)}), Gates()) == ""


def test_every_setting_with_a_flag_is_on_the_command_line(run: Run) -> None:
    parser, commands = flags._parser()
    bases = Recipe.__bases__
    for command, groups in {"plan": bases[:4], "quantize": bases, "validate": bases[3:]}.items():
        known = {name: action for action in commands[command]._actions for name in action.option_strings}
        wanted = [
            key.metadata for group in groups for key in settings(group).values() if key.metadata["flag"]
        ]
        assert all(known[metadata["flag"]].help == metadata["help"] for metadata in wanted)
        assert f"usage: {parser.prog} {command}" in run(command, "--help")[1]
    actions = [action for action in commands["quantize"]._actions if action.option_strings]
    assert len(actions) == 50, "a flag is a promise: a rare setting belongs into the recipe file"


def test_validate_takes_data_and_gates_from_a_recipe(
    run: Run, digits_bn: Path, digits_data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        f"[target]\nbits = 4\n[validate]\ndata = {str(digits_data)!r}\nmin_cosine = 0.99\n", encoding="utf-8"
    )
    code, out, _ = run("validate", digits_bn, digits_bn, "-c", file, "--min-sqnr-db", 10)
    assert code == 0
    assert "PASSED min_cosine" in out
    assert "PASSED min_sqnr_db" in out
    assert f"--data {digits_data}" in out


def test_a_share_of_a_picture() -> None:
    assert recipe_of(parse(["validate", "a", "b", "--images", "crop=0.875"])).images.crop == 0.875
    for wrong in ("1.5", "0", "224,0.5", "half"):
        with pytest.raises(RecipeError, match="images: crop"):
            recipe_of(parse(["validate", "a", "b", "--images", f"crop={wrong}"]))


def test_images_of_the_file_and_of_the_flags_add_up(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[images]\nsize = 256\ncrop = 224\n", encoding="utf-8")
    images = recipe_of(parse(["validate", "a", "b", "-c", str(file), "--images", "crop=200"])).images
    assert (images.size, images.crop) == ((256,), (200,))


@pytest.mark.parametrize(
    ("flags", "knobs"),
    [
        ("--bits 3", {"bits": 3}),
        ("--target-size 1.5MB", {"target_size": 1_500_000}),
        ("--target-bits 3.25", {"target_bits": 3.25}),
        ("--target-sqnr-db 18", {"target_sqnr_db": 18}),
        ("--preset smallest", {"preset": "smallest"}),
    ],
)
def test_each_kind_of_bits_is_a_flag_and_wins_over_the_file(
    tmp_path: Path, flags: str, knobs: dict[str, Any]
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[target]\nlow_bits = 2\n[[rule]]\nnode = 'a'\nbits = 4\n", encoding="utf-8")
    for command in ("plan", "quantize"):
        assert recipe_of(parse([command, "m.onnx", *flags.split()])) == Recipe(**knobs)
        recipe = recipe_of(parse([command, "m.onnx", *flags.split(), "-c", str(file), "--set", "b=5"]))
        assert recipe == Recipe(**knobs, rules=({"node": "a", "bits": 4},), set=(("b", 5),))


@pytest.mark.parametrize(
    ("flag", "sweep"),
    [([], None), (["--sweep"], 12), (["--sweep", "20"], 20), (["--sweep", "2kB,3K"], (2000, 3072))],
)
def test_sweep_is_a_number_or_sizes(flag: list[str], sweep: object) -> None:
    assert parse(["plan", "m.onnx", *flag]).sweep == sweep


def test_flags_may_not_be_shortened() -> None:
    with pytest.raises(RecipeError, match="--overwr"):
        parse(["quantize", "m.onnx", "--overwr"])
