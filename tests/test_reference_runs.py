"""Sizes, bits, codes and scales of known runs are what was recorded: see `tests.reference_runs`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.reference_runs import PAIRS, RECORDED, Pair, fingerprint, run

KNOWN: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))


def marked(pair: Pair, place: int) -> Any:
    """Every fourth run of our own networks at fixed bits is quick; all others are for `make test-all`."""
    fixed = not pair.edit and {"bits", "low_bits"} & pair.recipe.keys()
    quick = fixed and not pair.shared and place % 4 == 0
    return pytest.param(pair, id=pair.name, marks=() if quick else pytest.mark.slow)


def test_every_pair_is_recorded() -> None:
    assert list(KNOWN) == [pair.name for pair in PAIRS]


@pytest.mark.parametrize("pair", [marked(pair, place) for place, pair in enumerate(PAIRS)])
def test_a_run_gives_what_it_gave(pair: Pair, request: pytest.FixtureRequest) -> None:
    if pair.shared:
        request.getfixturevalue("shared_dir")
    found, known = json.loads(json.dumps(fingerprint(run(pair), exact=pair.exact))), KNOWN[pair.name]
    assert found["bits"] == known["bits"]
    # A zero point that is 0 for all channels is left out, and whether it is may depend on the processor.
    assert found["bytes"] == pytest.approx(known["bytes"], rel=1e-3)
    assert found["scales"] == pytest.approx(known["scales"], rel=0.02)
    assert found["codes"].keys() == known["codes"].keys()
    for name, (kind, dims, values) in known["codes"].items():
        assert found["codes"][name][:2] == [kind, dims], name
        if pair.exact:
            assert found["codes"][name][2] == values, name
        else:
            assert found["codes"][name][2] == pytest.approx(values, abs=0.1), name
