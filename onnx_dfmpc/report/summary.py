"""The head of a report: what it is about, the verdict, and the figures to remember."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from onnx_dfmpc.evaluate.validation import typed
from onnx_dfmpc.report.document import Document, File
from onnx_dfmpc.report.outline import Figure, Verdict, fixed, percent, plural, size, whole
from onnx_dfmpc.report.quality import accuracy, quality, samples


def model_name(document: Document) -> str:
    """File name without its suffix, else what the graph calls itself."""
    return PurePath(document.model.path or document.model.name or "model").stem


def path_of(document: Document, file: File) -> str:
    """Path of a model, or in words why there is none."""
    absent = "not written" if file is document.output and document.command == "quantize" else "in memory"
    return file.path or file.name or absent


def subtitle_of(document: Document) -> str:
    """Command, files, operator sets, and the hash of the float model."""
    model, output = document.model, document.output
    files = path_of(document, model)
    if output is not None:
        files += f" {'against' if document.command == 'validate' else '→'} {path_of(document, output)}"
    before, after = model.opset, None if output is None else output.opset
    opset = f"opset {before}" + ("" if after in (None, before) else f" → {after}")
    sha256 = f"sha256 {model.sha256[:12]}" if model.sha256 else ""
    parts = (f"{document.command} {files}", "" if before is None else opset, sha256)
    return " · ".join(filter(None, parts))


def made_with(document: Document) -> str:
    """Name and version of the tool that wrote the document."""
    return f"{document.tool.get('name', 'onnx-dfmpc')} {document.tool.get('version', '')}".strip()


def footer_of(document: Document) -> str:
    """Tool and date."""
    date = (document.date or "").replace("T", " ")
    return " · ".join(filter(None, (made_with(document), date)))


def measured_sqnr(document: Document) -> float | None:
    """SQNR of the worst output on real inputs, in dB; None where it was not measured, or nothing differs."""
    return None if document.validation is None or document.synthetic else document.validation.sqnr_db


def tried_sqnr(document: Document) -> float | None:
    """The same on synthetic inputs."""
    return None if document.validation is None or not document.synthetic else document.validation.sqnr_db


def verdict_of(document: Document) -> Verdict:
    """The answer to "can I ship it?"."""
    validation = document.validation
    if document.command == "inspect":
        return _inspected(document)
    if validation is None:
        if document.command == "plan":
            return Verdict("Planned", "Sizes and quality are predictions: no weight was touched.", "muted")
        return Verdict("Not validated", "Nothing was compared with the float model.", "warn")
    gates = validation.gates
    where = f" on {samples(validation)}" if validation.synthetic else ""
    caveat = ": a sanity check, not accuracy." if validation.synthetic else "."
    if not validation:
        missed = [f"{gate.name} = {typed(gate.limit)} missed" for gate in gates if not gate.passed]
        return Verdict("Failed", "; ".join([*validation.failures, *missed]) + where + caveat, "bad")
    if not gates:
        word = "Tried" if validation.synthetic else "Measured"
        return Verdict(word, f"Nothing failed{where}, and no gate was set{caveat}", "muted")
    held = {1: "The gate holds", 2: "Both gates hold"}.get(len(gates), f"All {len(gates)} gates hold")
    return Verdict("Passed", held + where + caveat, "good")


def _inspected(document: Document) -> Verdict:
    totals, kept = document.totals, sum(layer.batch_norm is not None for layer in document.layers)
    plain = sum(layer.role == "plain" for layer in document.layers)
    more = f" and {plural(plain, 'other weight')}" if plain else ""
    text = (
        f"{plural(totals.weighted_nodes or 0, 'weighted node')}: "
        f"{plural((totals.layers or 0) - plain, 'layer')}{more} to "
        f"quantize, {totals.skipped or 0} skipped. {plural(totals.chains or 0, 'chain')}, "
        f"{plural(totals.weights or 0, 'weight')}, batch norm kept after {plural(kept, 'layer')}."
    )
    return Verdict("Inspected", text, "muted" if document.layers else "warn")


def figures_of(document: Document) -> Iterator[Figure]:
    """Size, bits, accuracy and noise; what is not known is left out."""
    validation, totals = document.validation, document.totals
    before, after = document.model.bytes, document.written_bytes
    if after is not None:
        yield Figure("File size" if document.output else "Predicted size", size(after), _shrunk(document))
    elif document.command == "inspect":
        yield Figure("File size", size(before), f"{whole(before)} bytes")
    if totals.nominal_bits is not None:
        note = f"mean of {plural(totals.weights or 0, 'weight')} in {plural(totals.layers or 0, 'layer')}"
        skipped = totals.skipped or 0
        note += f", {skipped} {'stays' if skipped == 1 else 'stay'} float" if skipped else ""
        yield Figure("Bits per weight", fixed(2)(totals.nominal_bits), note)
    if validation is not None:
        yield from accuracy(validation)
    yield from quality(document)


def _shrunk(document: Document) -> str:
    """How much smaller the file became, to the byte."""
    before, after, predicted = document.model.bytes, document.written_bytes, document.predicted.bytes
    note = f"{whole(after)} bytes"
    if before and after:
        times = (
            f"{before / after:.1f} times smaller" if before >= after else f"{after / before:.1f} times larger"
        )
        note = f"{times}: {whole(before)} → {note} ({percent()(after / before)})"
    return note + (f", {whole(predicted)} predicted" if document.output and predicted is not None else "")
