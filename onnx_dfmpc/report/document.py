"""The document of a run: plain data, versioned, described in docs/json.md. It is written from results, and
read back as a `Document`, which is all that a report looks at.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata
from typing import Annotated, Any, Literal, get_args

import numpy as np
import onnx

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.evaluate.validation import ValidationReport
from onnx_dfmpc.model.files import LoadedModel
from onnx_dfmpc.model.opset import opset_of
from onnx_dfmpc.pipeline.results import ComparisonResult, InspectResult, QuantizeResult
from onnx_dfmpc.report.schema import Expected, from_json, read_json, to_json
from onnx_dfmpc.runtime.session import runtime_version
from onnx_dfmpc.spec import (
    Advice,
    Chain,
    Expectation,
    IntegerActivations,
    KindNoise,
    Latency,
    Layer,
    LayerEffect,
    LayerPlan,
    LayerReport,
    PlainWeight,
    QuantPlan,
    Skipped,
    SweepPoint,
    WeightHistogram,
)
from onnx_dfmpc.spec.widths import Width
from onnx_dfmpc.statistics.belief import Belief

SCHEMA = 2

Json = dict[str, Any]
Command = Literal["inspect", "plan", "quantize", "validate"]
WRITE = f"--json FILE of {', '.join(get_args(Command))} writes one"
Name = Annotated[str, Expected("a name", bool)]
Count = Annotated[int, Expected("an integer, 0 or more", lambda count: count >= 0)]


@dataclass(frozen=True)
class File:
    """A model; `path` is None in memory, `name` is what a plan keeps of it."""

    path: str | None = None
    name: str = ""
    sha256: str | None = None
    bytes: Count | None = None
    opset: int | None = None


@dataclass(frozen=True)
class Predicted:
    """What is predicted of the file and of the network's worst output: a point, and the interval that the
    `kinds` of inputs span on which the quantized model was tried. `source` says where the noise of the layers
    comes from.
    """

    bytes: Count | None = None
    sqnr_db: float | None = None
    source: str | None = None
    low_db: float | None = None
    high_db: float | None = None
    kinds: tuple[KindNoise, ...] = ()


@dataclass(frozen=True)
class InputRow:
    """What the inputs may be, and how likely that is."""

    name: str
    weight: float


@dataclass(frozen=True)
class SkippedRow:
    """A weighted node that stays float."""

    name: Name
    op: str = ""
    reason: str = ""


@dataclass(frozen=True)
class LayerRow:
    """What the commands say of a layer; each says a part of it."""

    name: Name
    op: str = ""
    shape: tuple[int, ...] = ()
    group: int = 1
    batch_norm: str | None = None
    bias: bool = False
    activation: str = ""
    role: str = ""
    bits: Width | None = None
    storage: str = ""
    bytes: Count | None = None
    noise: float | None = None
    predicted_noise: float | None = None
    source: str | None = None
    gain_min: float | None = None
    gain_max: float | None = None
    predicted_sqnr_db: float | None = None
    measured_sqnr_db: float | None = None
    reason: str = ""
    kernel: str = ""
    notes: tuple[str, ...] = ()
    codes_of: str = ""

    @property
    def sqnr_db(self) -> float | None:
        """SQNR of the layer's output: measured, else predicted."""
        return self.predicted_sqnr_db if self.measured_sqnr_db is None else self.measured_sqnr_db

    @property
    def alone_db(self) -> float | None:
        """Predicted SQNR of the network's output when this layer alone is quantized."""
        noise = self.predicted_noise if self.noise is None else self.noise
        return -10 * math.log10(noise) if noise is not None and noise > 0 else None


@dataclass(frozen=True)
class Totals:
    """Counts; `weights` are those of the layers."""

    weighted_nodes: int | None = None
    layers: int | None = None
    skipped: int | None = None
    chains: int | None = None
    weights: int | None = None
    nominal_bits: float | None = None
    bytes_ratio: float | None = None


@dataclass(frozen=True)
class Validation(ValidationReport):
    """A validation with what follows from its outputs: that cannot be computed again from JSON, where an
    infinite SQNR is null.
    """

    passed: bool = False
    cosine: float | None = None
    sqnr_db: float | None = None
    max_abs: float | None = None
    top1_agreement: float | None = None


@dataclass(frozen=True)
class Document:
    """What a report reads; what a command does not have is None or empty."""

    command: Command
    tool: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    date: str | None = None
    command_line: str | None = None
    model: File = field(default_factory=File)
    output: File | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)
    predicted: Predicted = field(default_factory=Predicted)
    layers: tuple[LayerRow, ...] = ()
    chains: tuple[Chain, ...] = ()
    skipped: tuple[SkippedRow, ...] = ()
    totals: Totals = field(default_factory=Totals)
    notes: tuple[str, ...] = ()
    activations: IntegerActivations | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    validation: Validation | None = None
    per_layer: tuple[LayerEffect, ...] = ()
    advice: tuple[Advice, ...] = ()
    sweep: tuple[SweepPoint, ...] = ()
    histograms: tuple[WeightHistogram, ...] = ()
    latency: Latency | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    inputs: tuple[InputRow, ...] = ()

    @property
    def synthetic(self) -> bool:
        """Whether outputs were compared on generated inputs."""
        return self.validation is not None and self.validation.synthetic

    @property
    def written_bytes(self) -> int | None:
        """Size of the quantized model: as written, else as predicted."""
        return self.predicted.bytes if self.output is None else self.output.bytes


# ----------------------------------------------------------------------------
# from results


def tool_version() -> str:
    """Version of the installed package, "unknown" in a checkout that is not installed."""
    try:
        return metadata.version("onnx-dfmpc")
    except metadata.PackageNotFoundError:
        return "unknown"


def mean_bits(layers: Iterable[tuple[int, float]]) -> float | None:
    """Mean bits per weight of (number of weights, bits) of layers, None where there is no weight."""
    counted = list(layers)
    weights = sum(count for count, _ in counted)
    return sum(count * bits for count, bits in counted) / weights if weights else None


def nominal_bits(layers: Iterable[LayerReport]) -> float | None:
    """Mean bits per quantized weight, None where nothing is quantized."""
    return mean_bits((math.prod(layer.shape), layer.bits) for layer in _stored(layers))


def _stored(layers: Iterable[LayerReport]) -> Iterator[LayerReport]:
    """Layers without those that share the codes of others: weights are counted once."""
    return (layer for layer in layers if not layer.codes_of)


def head(command: Command, model: Json) -> Json:
    """What every document begins with; date and command line are put in by the command line."""
    return {
        "schema": SCHEMA,
        "tool": {"name": "onnx-dfmpc", "version": tool_version()},
        "environment": {
            "python": platform.python_version(),
            "onnx": onnx.__version__,
            "onnxruntime": runtime_version(),
            "numpy": np.__version__,
            "platform": platform.platform(),
        },
        "command": command,
        "date": None,
        "command_line": None,
        "model": model,
    }


def model_row(source: LoadedModel) -> Json:
    """What a document says of a file."""
    return {"path": source.path, "sha256": source.sha256, "bytes": source.size, "opset": source.opset}


def skipped_rows(skipped: Iterable[Skipped]) -> list[SkippedRow]:
    """Nodes that stay float."""
    return [SkippedRow(node.name, node.op_type, node.reason) for node in skipped]


def inspect_document(result: InspectResult) -> Json:
    """Document of ``inspect``: what there is to quantize, and what the inputs may be."""
    matched = result.report
    return to_json(
        head("inspect", model_row(result.source))
        | {
            "layers": [*map(_matched_layer, matched.layers), *map(_matched_weight, matched.plain)],
            "chains": matched.chains,
            "skipped": skipped_rows(matched.skipped),
            "totals": {
                "weighted_nodes": matched.weighted_nodes,
                "layers": len(matched.layers) + len(matched.plain),
                "skipped": len(matched.skipped),
                "chains": len(matched.chains),
                "weights": sum({one.weight: one.size for one in matched.weights}.values()),
            },
            "inputs": _inputs(result.belief),
            "notes": result.notes,
        }
    )


def _inputs(belief: Belief | None) -> list[Json]:
    """Hypotheses on the inputs, the likeliest first."""
    if belief is None:
        return []
    rows = [
        {"name": str(one), "kind": one.kind, "low": one.low, "high": one.high, "weight": weight}
        for one, weight in zip(belief.hypotheses, belief.weights.tolist(), strict=True)
    ]
    return sorted(rows, key=lambda row: -row["weight"])


def _matched_layer(layer: Layer) -> Json:
    return {
        "name": layer.name,
        "op": layer.op_type,
        "shape": layer.shape,
        "weights": layer.size,
        "group": layer.group,
        "batch_norm": None if layer.batch_norm is None else layer.batch_norm.node,
        "bias": layer.bias is not None,
        "activation": layer.activation,
        "notes": layer.notes,
    }


def _matched_weight(weight: PlainWeight) -> Json:
    return {
        "name": weight.name,
        "op": weight.op_type,
        "shape": weight.shape,
        "weights": weight.size,
        "group": 1,
        "batch_norm": None,
        "bias": False,
        "activation": "",
        "role": "plain",
        "notes": weight.notes,
    }


def quantize_document(result: QuantizeResult) -> Json:
    """Document of ``quantize``: what was done to every layer, what it cost, how far the outputs moved."""
    return to_json(
        head("quantize", model_row(result.source))
        | {
            "output": {"path": result.output, "bytes": result.size, "opset": opset_of(result.model)},
            "recipe": result.recipe.to_dict(),
            "form": result.plan.form,
            "predicted": predicted_row(result.plan, result.expectation),
            "layers": [_quantized_layer(layer, result.plan[layer.name]) for layer in result.layers],
            "chains": result.chains,
            "skipped": skipped_rows(result.skipped),
            "totals": {
                "layers": len(result.layers),
                "skipped": len(result.skipped),
                "weights": sum(math.prod(layer.shape) for layer in _stored(result.layers)),
                "nominal_bits": nominal_bits(result.layers),
                "bytes_ratio": result.size / result.source.size if result.source.size else None,
            },
            "notes": result.notes,
            "activations": result.activations,
            "names": result.names,
            "validation": _validation(result.validation),
            "sweep": result.sweep,
            "histograms": result.histograms,
            "per_layer": result.per_layer,
            "advice": result.advice,
            "latency": result.latency,
            "seconds": result.seconds,
        }
    )


def validate_document(result: ComparisonResult) -> Json:
    """Document of ``validate``: ``model`` is the float model, ``output`` the quantized one."""
    return to_json(
        head("validate", model_row(result.source))
        | {
            "output": model_row(result.quantized),
            "validation": _validation(result.validation),
            "per_layer": result.per_layer,
            "latency": result.latency,
        }
    )


def predicted_row(plan: QuantPlan, expectation: Expectation | None = None) -> Predicted:
    """What a plan predicts, with the kinds of inputs that its interval comes from."""
    return Predicted(
        plan.predicted_bytes,
        plan.predicted_sqnr_db,
        plan.source or None,
        plan.predicted_low_db,
        plan.predicted_high_db,
        () if expectation is None else expectation.kinds,
    )


def _quantized_layer(layer: LayerReport, planned: LayerPlan) -> Json:
    more = {"predicted_bytes": planned.bytes, "predicted_noise": planned.noise}
    row: Json = to_json(layer)
    return row | more


def _validation(report: ValidationReport | None) -> Validation | None:
    if report is None:
        return None
    kept = {key.name: getattr(report, key.name) for key in fields(Validation) if key.name != "passed"}
    return Validation(passed=bool(report), **kept)


# ----------------------------------------------------------------------------
# text and files


def dumps(document: Json) -> str:
    """Document as JSON text."""
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    if text.replace("\n", "").isprintable():
        return text
    # What is not seen must do nothing to a terminal either.
    return "".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)


def parse(document: Any, where: str = "document") -> Document:
    """A document as reports read it; RecipeError where it is none, or of another schema version."""
    if not isinstance(document, Mapping) or "schema" not in document or "command" not in document:
        raise RecipeError(f"{where}: not a document of this tool", hint=WRITE)
    if document["schema"] != SCHEMA:
        message = f"{where}: schema = {document['schema']!r}: expected {SCHEMA}"
        raise RecipeError(message, hint="run the command again with this version")
    return from_json(Document, document, where)


def read_document(path: str | os.PathLike[str]) -> Json:
    """Content of a file that `parse` accepts."""
    content = read_json(path, WRITE)
    parse(content, str(path))
    return dict(content)
