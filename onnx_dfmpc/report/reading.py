"""Read the documents of other runs: what is no document of this version is refused in a line, before anything
is drawn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.report.document import SCHEMA, Json

__all__ = ["COMMANDS", "read_document"]

COMMANDS = ("quantize", "validate", "plan")
"""Commands whose documents make a report."""

NUMBER, TEXT, FLAG = "a number", "text", "true or false"
MOST = 1e18
"""Numbers above it mean nothing here."""

EACH = "*"
"""Stands for every key of an object."""

FILE = {"path": TEXT, "name": TEXT, "sha256": TEXT, "bytes": NUMBER, "opset": NUMBER}
LAYER = {
    **dict.fromkeys(("name", "op", "role", "storage", "source", "reason", "grid", "rounding"), TEXT),
    **dict.fromkeys(
        (
            "bits",
            "proposed_bits",
            "bytes",
            "predicted_bytes",
            "predicted_noise",
            "noise",
            "gain_min",
            "gain_max",
        ),
        NUMBER,
    ),
    **dict.fromkeys(("predicted_sqnr_db", "measured_sqnr_db", "bias_shift_rms", "bias_shift_max"), NUMBER),
    "shape": [NUMBER],
    "gain_quartiles": [NUMBER],
    "notes": [TEXT],
}
OUTPUT = {
    "name": TEXT,
    **dict.fromkeys(
        ("cosine", "sqnr_db", "max_abs", "mean_abs", "kl", "top1_agreement", "top5_agreement"), NUMBER
    ),
}
VALIDATION = {
    **dict.fromkeys(("passed", "synthetic", "weight_only"), FLAG),
    **dict.fromkeys(("data", "command"), TEXT),
    **dict.fromkeys(("samples", "labelled", "cosine", "sqnr_db", "max_abs", "top1_agreement"), NUMBER),
    **dict.fromkeys(("top1_float", "top1_quantized", "top5_float", "top5_quantized"), NUMBER),
    "top1_interval": [NUMBER],
    "gates": [{"name": TEXT, "output": TEXT, "limit": NUMBER, "value": NUMBER, "passed": FLAG}],
    "failures": [TEXT],
    "outputs": [OUTPUT],
    "default_run": {"samples": NUMBER, "max_abs": NUMBER, "sqnr_db": NUMBER},
    "notes": [TEXT],
}
RANKED = {
    **dict.fromkeys(("name", "op"), TEXT),
    **dict.fromkeys(
        ("bits", "bytes", "sqnr_db", "cosine", "own_sqnr_db", "own_top1_agreement", "own_share"), NUMBER
    ),
    "suggestion": {
        "set": TEXT,
        "bits": NUMBER,
        "extra_bytes": NUMBER,
        "own_sqnr_db": NUMBER,
        "gain_db": NUMBER,
    },
}
DOCUMENT = {
    "tool": {"name": TEXT, "version": TEXT},
    "environment": {EACH: TEXT},
    "command_line": TEXT,
    "model": FILE,
    "output": FILE,
    "recipe": {},
    "form": {},
    "predicted": {"bytes": NUMBER, "sqnr_db": NUMBER, "source": TEXT},
    "layers": [LAYER],
    "skipped": [{"name": TEXT, "op": TEXT, "reason": TEXT}],
    "totals": dict.fromkeys(("layers", "skipped", "weights", "nominal_bits", "bytes_ratio"), NUMBER),
    "notes": [TEXT],
    "validation": VALIDATION,
    "per_layer": [RANKED],
    "sweep": [
        dict.fromkeys(
            ("budget", "bytes", "nominal_bits", "predicted_sqnr_db", "measured_sqnr_db", "top1"), NUMBER
        )
    ],
    "histograms": [
        {"name": TEXT, "low": NUMBER, "high": NUMBER, "float_counts": [NUMBER], "quantized_counts": [NUMBER]}
    ],
    "latency": {
        "runs": NUMBER,
        "threads": NUMBER,
        "batch": NUMBER,
        "timings": [
            {"name": TEXT, **dict.fromkeys(("median", "first_quartile", "third_quartile", "least"), NUMBER)}
        ],
    },
    "seconds": {EACH: NUMBER},
}
"""What a report reads. Other keys are let pass, since a version may add some; every value may be null."""


def read_document(path: str | os.PathLike[str]) -> Json:
    """Read a JSON document of ``quantize``, ``validate`` or ``plan``.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict

    Raises
    ------
    RecipeError
        A file that cannot be read, is not JSON, not such a document, of another schema version, or has a
        value of the wrong kind.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: no such file", hint="--json FILE of quantize, validate and plan writes one"
        ) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = "" if isinstance(error, UnicodeDecodeError) else f": {error}"
        raise RecipeError(
            f"{path}: not a JSON file{reason}", hint="--json FILE of quantize, validate and plan writes one"
        ) from None
    check_document(content, str(path))
    return dict(content)


def check_document(content: Any, where: str) -> None:
    """Refuse what is not a document that a report can be made of.

    Raises
    ------
    RecipeError
        See `read_document`.
    """
    if not isinstance(content, dict) or "schema" not in content or "command" not in content:
        raise RecipeError(
            f"{where}: not a document of this tool",
            hint="--json FILE of quantize, validate and plan writes one",
        )
    if content["schema"] != SCHEMA:
        raise RecipeError(
            f"{where}: schema = {content['schema']!r}: expected {SCHEMA}",
            hint="run the command again with this version",
        )
    if content["command"] not in COMMANDS:
        raise RecipeError(
            f"{where}: a document of {content['command']!r}",
            hint="a report shows those of " + ", ".join(COMMANDS),
        )
    _check(content, DOCUMENT, where, "")
    for key in ("layers", "skipped", "per_layer", "histograms"):
        for position, row in enumerate(content.get(key) or (), 1):
            if not isinstance(row, dict) or row.get("name") is None:
                raise RecipeError(f"{where}: {key}, row {position}: there is no name")


def _check(value: Any, expected: Any, where: str, key: str) -> None:
    if value is None:
        return
    if isinstance(expected, Mapping):
        if not isinstance(value, dict):
            _mismatch(where, key, value, "an object")
        wanted = dict.fromkeys(value, expected[EACH]) if EACH in expected else expected
        for name, inner in wanted.items():
            _check(value.get(name), inner, where, f"{key}.{name}" if key else name)
    elif isinstance(expected, list):
        if not isinstance(value, list):
            _mismatch(where, key, value, "a list")
        for position, item in enumerate(value, 1):
            if item is None:
                _mismatch(where, f"{key}[{position}]", item, "a value")
            _check(item, expected[0], where, f"{key}[{position}]")
    elif not _is(value, expected):
        _mismatch(where, key, value, expected)


def _is(value: Any, expected: str) -> bool:
    if expected == NUMBER:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST
    return isinstance(value, bool if expected == FLAG else str)


def _mismatch(where: str, key: str, value: Any, expected: str) -> NoReturn:
    shown = repr(value)
    raise RecipeError(
        f"{where}: {key} = {shown if len(shown) < 60 else shown[:57] + '...'}: expected {expected}"
    )


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
