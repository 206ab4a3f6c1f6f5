"""Studies go on where they stopped, leave out what is not there, and the page shows what was measured."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import networks, studies
from benchmarks.ledger import Ledger
from benchmarks.readme import RESULTS
from models.zoo import ZooError


def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    cases = [studies.Case("digits_resnet_bn", "2/6", method) for method in ("paper-neither", "dfmpc")]
    path, quiet = tmp_path / "studies.json", Console(quiet=True)
    studies.complete(Ledger(studies.Row, path), cases[:1], quiet)
    before = path.read_text(encoding="utf-8")
    ledger = Ledger(studies.Row, path)
    studies.complete(ledger, cases, quiet)
    first, second = ledger
    assert json.loads(before)["rows"] == json.loads(path.read_text(encoding="utf-8"))["rows"][:1]
    assert first.n == second.n == 597
    assert (first.top1 or 0.0) < (second.top1 or 0.0)  # the paper's first experiment, in small
    low, high = second.low or 0.0, second.high or 0.0
    assert low <= (second.top1 or 0.0) - second.float_top1 <= high
    assert "commit" in second.versions
    assert "onnxruntime" in second.versions


def test_results_page_is_what_the_ledger_says(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    studies.write(Ledger(studies.Row, RESULTS / "studies.json"), page, tmp_path)
    assert page.read_text(encoding="utf-8") == studies.PAGE.read_text(encoding="utf-8")


def test_networks_that_nobody_has_trained_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(networks, "TRAINED", tmp_path)
    with pytest.raises(ZooError, match="not trained on this machine") as raised:
        networks.network("words")
    assert raised.value.hint == "make train-words"
