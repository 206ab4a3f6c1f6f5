"""The benchmark of storage forms: it runs, and compares what it says it compares."""

import json

import numpy as np
import pytest

from benchmarks import latency, networks
from benchmarks.latency import FORMS
from benchmarks.methods import settings
from benchmarks.session import OPTIONS, measure


def test_every_form_is_stored(tmp_path):
    (setting,) = settings("3")
    files = latency.store(networks.network("digits_resnet_bn"), setting, list(FORMS), tmp_path)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    assert sizes.keys() == FORMS.keys()
    assert sizes["native"] <= sizes["table"]


@pytest.mark.parametrize("options", OPTIONS)
def test_one_session(options, digits_bn, digits_data):
    with np.load(digits_data) as arrays:
        found = measure(digits_bn, digits_bn, {"input": arrays["input"][:1]}, options, threads=1, runs=3)
    assert found["load"] > 0
    assert len(found["latency"]) == len(found["float"]) == 3
    assert found["peak"] >= 0


def test_command(tmp_path, capsys):
    output = tmp_path / "out.json"
    arguments = [
        "--networks",
        "digits_resnet_bn",
        "--forms",
        "native",
        "table, float",
        "--repeats",
        "1",
        "--runs",
        "2",
    ]
    assert latency.main([*arguments, "--json", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "table, float" in shown
    (result,) = json.loads(output.read_text())["results"]
    cases = [
        ("float", "default"),
        *((form, options) for form in ("native", "table, float") for options in ("default", "recommended")),
    ]
    assert [(cost["form"], cost["options"]) for cost in result["costs"]] == cases
    assert all(len(cost["latency"]) == 2 for cost in result["costs"])


def test_mistakes_are_one_line(capsys):
    assert latency.main(["--setting", "9"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
