"""Every line that is printed to be pasted is pasted: what it promises is what the next run shows."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onnx_dfmpc.pipeline.advice import RAISED, Change, Trial, advise, changes, remarks
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.recipe.recipe import KINDS
from onnx_dfmpc.spec import LayerEffect
from tests.conftest import Run

PROMISE = re.compile(
    r"(?P<bytes>\S+) bytes, output SQNR (?P<gain>\S+) dB(?: on synthetic inputs)?:\n(?P<line>--.+)\n"
)

WITHIN_DB = 1.5

FAST = """
[defaults]
rounding = "nearest"
repair = "none"
statistics = "closed_form"

[validate]
samples = 8
"""
"""Recipe of a test that needs no good network."""


@dataclass(frozen=True)
class Shown:
    """What a run shows: bytes of its file, output SQNR in dB, and the whole document and its text."""

    size: int
    sqnr_db: float
    document: dict[str, Any]
    text: str


def quantize(run: Run, folder: Path, model: Path, *flags: object) -> Shown:
    """Run the command, and read what it wrote and printed."""
    output, written = folder / "out.onnx", folder / "out.json"
    code, text, err = run("quantize", model, "-o", output, "--overwrite", "--json", written, *flags)
    assert (code, err) == (0, "")
    document = json.loads(written.read_text(encoding="utf-8"))
    size = output.stat().st_size
    assert document["output"]["bytes"] == size
    return Shown(size, document["validation"]["sqnr_db"], document, text)


def pasted(flags: Sequence[str], line: Sequence[str]) -> list[str]:
    """A command line with a printed line: added, or, where it is a target, in place of the present one."""
    if line[0] == "--set":
        return [*flags, *line]
    targets = {"--preset", *("--" + kind.replace("_", "-") for kind in KINDS)}
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [*(word for pair in pairs if pair[0] not in targets for word in pair), *line]


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def paste_all(run: Run, folder: Path, model: Path, flags: Sequence[str]) -> list[str]:
    """Try every line of a run; the first words of all of them."""
    before = quantize(run, folder, model, *flags, "--per-layer")
    promises = list(PROMISE.finditer(before.text))
    assert len(promises) == len(before.document["advice"]) > 0
    for promise, advice in zip(promises, before.document["advice"], strict=True):
        line = shlex.split(promise["line"])
        assert line == [advice["flag"], advice["value"]]
        after = quantize(run, folder, model, *pasted(flags, line))
        assert after.size - before.size == advice["extra_bytes"] == number(promise["bytes"]), line
        gain = after.sqnr_db - before.sqnr_db
        assert gain == pytest.approx(number(promise["gain"]), abs=WITHIN_DB), line
        assert gain == pytest.approx(advice["gain_db"], abs=WITHIN_DB), line
        assert gain > 0, line
    return [shlex.split(promise["line"])[0] for promise in promises]


FIXED = ("--bits 3", "--low-bits 2 --high-bits 6", "--bits 3 --storage native", "--method paper")
TARGETS = (
    "",
    "--target-size 60KiB",
    "--target-bits 3.3 --set fc=8",
    "--target-sqnr-db 21",
    "--preset smallest",
)
QUICK = ("--bits 3", "--target-size 60KiB", "--target-bits 3.3 --set fc=8", "--target-sqnr-db 21")
"""One of each kind of line: for a layer, and for each target. The default and presets are targets in mean bits
and in dB.
"""

SLOW = ("--bits 3", "--low-bits 2 --high-bits 6", "", "--target-size 60KiB")
"""With the default method."""


@pytest.mark.parametrize(
    "flags",
    [
        *(f"-c FAST {flags}" for flags in QUICK),
        *(
            pytest.param(f"-c FAST {flags}", marks=pytest.mark.slow)
            for flags in (*FIXED, *TARGETS)
            if flags not in QUICK
        ),
        *(pytest.param(flags, marks=pytest.mark.slow) for flags in SLOW),
    ],
)
def test_every_line_holds(run: Run, digits_bn: Path, tmp_path: Path, flags: str) -> None:
    fast = tmp_path / "fast.toml"
    fast.write_text(FAST, encoding="utf-8")
    words = [str(fast) if word == "FAST" else word for word in shlex.split(flags)]
    printed = paste_all(run, tmp_path, digits_bn, words)
    assert ("--set" in printed) == (flags.removeprefix("-c FAST ") in FIXED)


@pytest.mark.parametrize(
    "flags",
    [
        "--target-size 30KiB",
        *(pytest.param(flags, marks=pytest.mark.slow) for flags in ("--bits 3", "", "--preset lossless")),
    ],
)
def test_every_line_holds_on_a_network_of_others(
    run: Run, shared_dir: Path, tmp_path: Path, flags: str
) -> None:
    """A line for one layer, under a target, cost this network 9 dB."""
    path = shared_dir / "models" / "har_conv1d_bn.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    found = paste_all(run, tmp_path, path, shlex.split(flags))
    assert ("--set" in found) == (flags == "--bits 3")


# ------------------------------------------------------------------------------------------------------
# which lines


def effect(name: str, bits: int, own_sqnr_db: float, share: float) -> LayerEffect:
    return LayerEffect(name, "Conv", bits, 100, 9.0, 0.9, own_sqnr_db, None, share)


def test_fixed_bits_get_more_for_the_worst_three() -> None:
    effects = [effect(f"/a.{n}", 2, 10.0 + n, 0.5 - n / 10) for n in range(5)]
    sizes = {layer.name: {width: 100 * width for width in range(2, 9)} for layer in effects}
    for recipe in (Recipe(bits=2), Recipe(low_bits=2)):
        found = changes(recipe, effects, sizes)
        assert [change.flag for change in found] == ["--set"] * 3
        assert found[0].value == r"^/a\.0$=3"
        assert found[0].recipe.rules[-1].regex == r"^/a\.0$"


def test_a_target_is_raised_and_rules_stay() -> None:
    given: list[tuple[dict[str, Any], list[str]]] = [
        ({"target_size": 60_000}, ["66000", "75000"]),
        ({"target_size": 4_321_987}, ["4760000", "5410000"]),
        ({"target_size": 4_321_987_654}, ["4760000000", "5410000000"]),
        ({"target_bits": 3.3}, ["3.8", "4.3"]),
        ({"target_bits": 7.75}, ["8"]),
        ({"target_bits": 8}, []),
        ({"target_sqnr_db": 20.1}, ["23.1", "26.1"]),
        ({"preset": "balanced"}, ["23", "26"]),
        ({}, ["4.5", "5"]),
    ]
    for keywords, values in given:
        recipe = Recipe(set={"fc": 8}, seed=3, **keywords)
        found = changes(recipe, [effect("fc", 2, 1.0, 1.0)], {})
        assert [change.value for change in found] == values
        for change in found:
            kind = recipe.kind
            assert change.flag == "--" + kind.replace("_", "-")
            assert getattr(change.recipe, kind) == float(change.value)
            assert (change.recipe.rules, change.recipe.seed) == (recipe.rules, 3)


def test_all_targets_can_be_raised() -> None:
    """But a ratio, which is a size as soon as the model is known."""
    assert set(RAISED) | {"pairs", "bits", "preset", "target_ratio"} == set(KINDS)


def test_only_what_helps_is_told() -> None:
    recipe = Recipe()
    wanted = [Change(flag, str(n), recipe) for flag in ("--set", "--target-bits") for n in range(3)]
    steps: list[tuple[str, int, int]] = []

    def told(*decibels: float | None, before: float | None = 20.0) -> list[tuple[str, str, int]]:
        trials = iter([*(Trial(120, found) for found in decibels), *[None] * 3])
        advice = advise(
            wanted, lambda _: next(trials), Trial(100, before), progress=lambda *step: steps.append(step)
        )
        return [(one.flag, one.value, one.extra_bytes) for one in advice]

    assert told(23.0, 19.0, None) == [("--set", "0", 20)]
    assert steps == [("what helps", step, 6) for step in range(1, 7)]
    assert told(before=None) == []
    # A line for a layer does not exclude the others; of targets, the cheaper one that brings as much is enough.
    assert told(23.0, 22.0, 21.0) == [("--set", str(n), 20) for n in range(3)]
    wanted.reverse()
    assert told(23.0, 22.0, 24.0) == [("--target-bits", "2", 20), ("--target-bits", "0", 20)]
    assert remarks(wanted[:1], []) == ("tried, and not better by 0.1 dB: --target-bits 2",)
    assert remarks([], []) == ()


@pytest.mark.slow
def test_what_cannot_be_met_is_not_told(run: Run, digits_bn: Path, tmp_path: Path) -> None:
    """No more than 3 bits, and all layers have them: no target brings more."""
    fast = tmp_path / "fast.toml"
    fast.write_text(FAST, encoding="utf-8")
    shown = quantize(run, tmp_path, digits_bn, "-c", fast, "--max-bits", 3, "--target-bits", 3, "--per-layer")
    assert shown.document["advice"] == []
    assert "tried, and not better by 0.1 dB: --target-bits 3.5, --target-bits 4" in shown.document["notes"]


# ------------------------------------------------------------------------------------------------------
# other lines


def test_a_plan_has_no_line_that_it_would_refuse(run: Run, digits_bn: Path, tmp_path: Path) -> None:
    fast, plan = tmp_path / "fast.toml", tmp_path / "plan.json"
    fast.write_text(FAST, encoding="utf-8")
    assert run("plan", digits_bn, "-c", fast, "--bits", 3, "-o", plan)[0] == 0
    shown = quantize(run, tmp_path, digits_bn, "--plan", plan, "--per-layer")
    assert shown.document["advice"] == []
    assert "--set" not in shown.text
    assert "nothing was tried to improve on a plan" in shown.text


def test_the_commands_of_a_report_repeat_it(run: Run, digits_bn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my nets"
    folder.mkdir()
    fast = folder / "fast.toml"
    fast.write_text(FAST, encoding="utf-8")
    shown = quantize(run, folder, digits_bn, "-c", fast, "--bits", 3, "--samples", 9)
    program, *validate = shlex.split(shown.document["validation"]["command"])
    assert program == "onnx-dfmpc"
    assert shlex.join([program, *validate]) in shown.text
    code, out, err = run(*validate, "--json", "-")
    assert (code, err) == (0, "")
    assert json.loads(out)["validation"]["sqnr_db"] == pytest.approx(shown.sqnr_db, abs=1e-9)
    before = (folder / "out.onnx").read_bytes()
    program, *again = shlex.split(shown.document["command_line"])
    assert run(*again)[0] == 0
    assert (folder / "out.onnx").read_bytes() == before


def hint_of(run: Run, *words: object) -> tuple[str, str]:
    """Message and hint of a command that is refused."""
    code, _, err = run(*words)
    assert code != 0
    message, hint = err.splitlines()
    return message, hint.removeprefix("hint: ")


def test_the_command_of_a_hint_works(
    run: Run, digits_bn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "my net.onnx"
    model.write_bytes(digits_bn.read_bytes())
    fast = tmp_path / "fast.toml"
    fast.write_text(FAST + "[target]\nuniform_bits = 6\n", encoding="utf-8")
    # "onnx-dfmpc inspect shows what was found", "make it again with: onnx-dfmpc plan MODEL -o plan.json"
    assert run("inspect", model)[0] == 0
    made = hint_of(run, "quantize", model, "--dry-run", "--plan", fast)[1]
    words = shlex.split(made.partition("onnx-dfmpc ")[2].replace("MODEL", shlex.quote(str(model))))
    assert run(*words, "-c", fast)[0] == 0
    assert (tmp_path / "plan.json").is_file()
    for words in (["plan", model, "--bogus"], ["report", "a", "b", "c"], ["quantize"]):
        program, *asked = shlex.split(hint_of(run, *words)[1])
        assert (program, asked[-1], run(*asked)[0]) == ("onnx-dfmpc", "--help", 0)


@pytest.mark.parametrize(
    ("flags", "least", "least_in"),
    [
        (("--target-size", "1KiB"), r"ask for (\d+) bytes or more", "hint"),
        (("--target-bits", "2", "--set", "conv1=5"), r"allowed are (\S+) on average", "message"),
        (("--target-sqnr-db", "90"), r"the predicted output SQNR is (\S+) dB", "message"),
    ],
)
def test_the_least_that_a_refusal_names_can_be_had(
    run: Run, digits_bn: Path, tmp_path: Path, flags: tuple[str, ...], least: str, least_in: str
) -> None:
    fast = tmp_path / "fast.toml"
    fast.write_text(FAST, encoding="utf-8")
    words = ("plan", digits_bn, "-c", fast, *flags[2:])
    message, hint = hint_of(run, *words, *flags[:2])
    found = re.search(least, hint if least_in == "hint" else message)
    assert found is not None
    assert run(*words, flags[0], found[1])[0] == 0
