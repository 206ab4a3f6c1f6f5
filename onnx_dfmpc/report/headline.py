"""The first things to see: what the model is, whether it passed, how much smaller it got, and how close it
stayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from onnx_dfmpc.evaluate.validation import typed
from onnx_dfmpc.report import words
from onnx_dfmpc.report.document import Json
from onnx_dfmpc.report.outline import Figure, Verdict

__all__ = [
    "accuracy",
    "figures",
    "footer",
    "gate_label",
    "measured_sqnr",
    "model_name",
    "subtitle",
    "verdict",
    "written_bytes",
]


def model_name(document: Json) -> str:
    """Name of the model's file, without directory and suffix."""
    model = document.get("model") or {}
    return PurePath(model.get("path") or model.get("name") or "model").stem


def subtitle(document: Json) -> str:
    """Operator set, what became of it, and the hash of the float model."""
    model, output = document.get("model") or {}, document.get("output") or {}
    before, after = model.get("opset"), output.get("opset")
    opset = (
        ""
        if before is None
        else f"opset {before}"
        if after in (None, before)
        else f"opset {before} → {after}"
    )
    sha256 = model.get("sha256")
    return " · ".join(
        part for part in (document["command"], opset, f"sha256 {sha256[:12]}" if sha256 else "") if part
    )


def footer(document: Json) -> str:
    """Tool and version."""
    tool = document.get("tool") or {}
    return f"{tool.get('name') or 'onnx-dfmpc'} {tool.get('version') or ''}".strip()


def written_bytes(document: Json) -> Any:
    """Size of the quantized model: as written, else as predicted; None where neither is known."""
    return (document.get("output") or document.get("predicted") or {}).get("bytes")


def measured_sqnr(document: Json) -> Any:
    """SQNR of the worst output, in dB; None where it was not measured, or nothing differs."""
    return (document.get("validation") or {}).get("sqnr_db")


def verdict(document: Json) -> Verdict:
    """The answer to "can I ship it?"."""
    validation = document.get("validation")
    if validation is None:
        if document["command"] == "plan":
            return Verdict("Planned", "Sizes and quality are predictions: no weight was touched.", "muted")
        return Verdict("Not validated", "Nothing was compared with the float model.", "warn")
    gates = validation.get("gates") or []
    missed = [gate for gate in gates if not gate.get("passed")]
    failures = validation.get("failures") or []
    caveat = " Synthetic inputs: a sanity check, not accuracy." if validation.get("synthetic") else ""
    if failures or missed or validation.get("passed") is False:
        reasons = [*failures, *(f"{gate_label(gate)} = {typed(gate.get('limit'))} missed" for gate in missed)]
        return Verdict("Failed", ("; ".join(reasons) or "validation failed") + "." + caveat, "bad")
    if not gates:
        return Verdict("Measured", "Nothing failed, and no gate was set." + caveat, "muted")
    held = {1: "The gate holds.", 2: "Both gates hold."}.get(len(gates), f"All {len(gates)} gates hold.")
    return Verdict("Passed", held + caveat, "good")


def gate_label(gate: Mapping[str, Any]) -> str:
    """Name of a gate, and the output that it is for."""
    return str(gate.get("name")) + (f" of {gate['output']}" if gate.get("output") else "")


def figures(document: Json) -> tuple[Figure, ...]:
    """Size, bits, accuracy and noise; what is not known is left out."""
    found = (_size(document), _bits(document), accuracy(document), _noise(document))
    return tuple(figure for figure in found if figure is not None)


def _size(document: Json) -> Figure | None:
    before, after = (document.get("model") or {}).get("bytes"), written_bytes(document)
    if after is None:
        return None
    guess = " predicted" if not document.get("output") else ""
    note = (
        f"{words.times(before, after)}: {words.whole(before)} → {words.whole(after)} bytes"
        if before
        else f"{words.whole(after)} bytes"
    )
    return Figure("File size" + guess, words.size(after), note)


def _bits(document: Json) -> Figure | None:
    totals = document.get("totals") or {}
    if totals.get("nominal_bits") is None:
        return None
    note = f"mean of {words.plural(totals.get('weights') or 0, 'weight')} in {words.plural(totals.get('layers') or 0, 'layer')}"
    skipped = totals.get("skipped")
    return Figure(
        "Bits per weight",
        words.digits(totals["nominal_bits"], 2),
        note + (f", {skipped} {'stays' if skipped == 1 else 'stay'} float" if skipped else ""),
    )


def accuracy(document: Json) -> Figure | None:
    """The best there is: labelled top-1, else agreement with the float model, else the cosine of the worst
    output.
    """
    validation = document.get("validation")
    if validation is None:
        return None
    before, after = validation.get("top1_float"), validation.get("top1_quantized")
    samples = words.plural(
        validation.get("samples") or 0, "synthetic input" if validation.get("synthetic") else "input"
    )
    if before is not None and after is not None:
        note = f"float {words.percent(before)}: {_points(after - before)} on {words.plural(validation.get('labelled') or 0, 'labelled input')}"
        return Figure("Top-1", words.percent(after), note)
    if validation.get("top1_agreement") is not None:
        return Figure("Same top-1 as float", words.percent(validation["top1_agreement"]), f"on {samples}")
    if validation.get("cosine") is not None:
        return Figure(
            "Cosine with float", words.digits(validation["cosine"], 5), f"worst output, on {samples}"
        )
    return None


def _points(change: float) -> str:
    return words.signed(100 * change, 1) + " points"


def _noise(document: Json) -> Figure | None:
    validation, predicted = document.get("validation"), (document.get("predicted") or {}).get("sqnr_db")
    if validation is None:
        return (
            None
            if predicted is None
            else Figure("Output SQNR predicted", words.decibels(predicted), "signal to quantization noise")
        )
    measured = validation.get("sqnr_db")
    note = "worst output" + ("" if predicted is None else f", {words.decibels(predicted)} predicted")
    if measured is None:
        return (
            Figure("Output SQNR", "∞", "the outputs are the same") if validation.get("max_abs") == 0 else None
        )
    return Figure("Output SQNR", words.decibels(measured), note)
