"""Results as the versioned JSON document (described in docs/json.md): plain data, no NaN, None where there is
no number.
"""

from __future__ import annotations

import json
import math
import os
import platform
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.evaluate.validation import ValidationReport
from onnx_dfmpc.model.files import LoadedModel
from onnx_dfmpc.model.opset import opset_of
from onnx_dfmpc.pipeline.results import ComparisonResult, QuantizeResult
from onnx_dfmpc.runtime.session import runtime_version
from onnx_dfmpc.spec import (
    Chain,
    Latency,
    Layer,
    LayerPlan,
    LayerReport,
    MatchReport,
    QuantPlan,
    Skipped,
    WeightHistogram,
)

SCHEMA = 1

Json = dict[str, Any]


def tool_version() -> str:
    """Version of the installed package, "unknown" in a checkout that is not installed."""
    try:
        return metadata.version("onnx-dfmpc")
    except metadata.PackageNotFoundError:
        return "unknown"


def mean_bits(layers: Iterable[tuple[int, int]]) -> float | None:
    """Mean bits per weight of layers of so many weights and bits, None where there is none."""
    counted = list(layers)
    weights = sum(count for count, _ in counted)
    return sum(count * bits for count, bits in counted) / weights if weights else None


def nominal_bits(layers: Iterable[LayerReport]) -> float | None:
    """Bits per quantized weight on average, None where nothing is quantized."""
    return mean_bits((math.prod(layer.shape), layer.bits) for layer in layers)


def environment() -> Json:
    """What the numbers were computed with: versions of Python and the libraries, and the machine."""
    return {
        "python": platform.python_version(),
        "onnx": onnx.__version__,
        "onnxruntime": runtime_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def head(command: str) -> Json:
    """What every document begins with."""
    tool = {"name": "onnx-dfmpc", "version": tool_version()}
    return {"schema": SCHEMA, "tool": tool, "environment": environment(), "command": command}


def model_row(source: LoadedModel) -> Json:
    """What a document says about a file."""
    path = None if source.path is None else str(source.path)
    return {"path": path, "sha256": source.sha256, "bytes": source.size, "opset": source.opset}


def _output(result: QuantizeResult) -> Json:
    path = None if result.output is None else str(result.output)
    return {"path": path, "bytes": result.size, "opset": opset_of(result.model)}


def predicted_row(plan: QuantPlan) -> Json:
    """What a plan predicts."""
    return {
        "bytes": plan.predicted_bytes,
        "sqnr_db": plan.predicted_sqnr_db,
        "source": plan.source or None,
    }


def skipped_rows(skipped: Sequence[Skipped]) -> list[Json]:
    """Nodes that stay float."""
    return [{"name": node.name, "op": node.op_type, "reason": node.reason} for node in skipped]


def _matched_layer(layer: Layer) -> Json:
    return {
        "name": layer.name,
        "op": layer.op_type,
        "shape": list(layer.shape),
        "weights": layer.size,
        "group": layer.group,
        "batch_norm": None if layer.batch_norm is None else layer.batch_norm.node,
        "bias": layer.bias is not None,
        "activation": layer.activation or None,
        "notes": list(layer.notes),
    }


def _chain(chain: Chain) -> Json:
    return {
        "producer": chain.producer,
        "consumers": list(chain.consumers),
        "activation": chain.activation or None,
        "path": list(chain.path),
        "homogeneous": chain.homogeneous,
        "reason": chain.reason,
    }


def _quantized_layer(layer: LayerReport, planned: LayerPlan) -> Json:
    return {
        "name": layer.name,
        "op": layer.op,
        "shape": list(layer.shape),
        "role": layer.role,
        "bits": layer.bits,
        "storage": layer.storage,
        "bytes": layer.bytes,
        "predicted_bytes": planned.bytes,
        "predicted_noise": planned.noise,
        "source": layer.source or None,
        "gain_min": layer.gain_min,
        "gain_max": layer.gain_max,
        "predicted_sqnr_db": layer.predicted_sqnr_db,
        "measured_sqnr_db": layer.measured_sqnr_db,
        "reason": layer.reason,
        "notes": list(layer.notes),
        "gain_quartiles": layer.gain_quartiles,
        "bias_shift_rms": layer.bias_shift_rms,
        "bias_shift_max": layer.bias_shift_max,
    }


def _validation(report: ValidationReport) -> Json:
    run = report.default_run
    return {
        "passed": bool(report),
        "samples": report.samples,
        "data": report.data,
        "synthetic": report.synthetic,
        "cosine": report.cosine,
        "sqnr_db": report.sqnr_db,
        "max_abs": report.max_abs,
        "top1_agreement": report.top1_agreement,
        "top1_float": report.top1_float,
        "top1_quantized": report.top1_quantized,
        "top1_interval": report.top1_interval,
        "top5_float": report.top5_float,
        "top5_quantized": report.top5_quantized,
        "labelled": report.labelled,
        "gates": [asdict(gate) for gate in report.gates],
        "failures": list(report.failures),
        "outputs": [asdict(output) for output in report.outputs],
        "weight_only": report.weight_only,
        "default_run": None
        if run is None
        else {"samples": run.samples, "max_abs": run.max_abs, "sqnr_db": run.sqnr_db},
        "notes": list(report.notes),
        "command": report.command or None,
    }


def inspect_document(source: LoadedModel, report: MatchReport) -> Json:
    """Document of ``inspect``: what there is to quantize."""
    return head("inspect") | {
        "model": model_row(source),
        "layers": [_matched_layer(layer) for layer in report.layers],
        "chains": [_chain(chain) for chain in report.chains],
        "skipped": skipped_rows(report.skipped),
        "totals": {
            "weighted_nodes": report.weighted_nodes,
            "layers": len(report.layers),
            "skipped": len(report.skipped),
            "chains": len(report.chains),
            "weights": sum(layer.size for layer in report.layers),
        },
    }


def quantize_document(result: QuantizeResult) -> Json:
    """Document of ``quantize``: what was done to every layer, what it cost, how far the outputs moved."""
    return head("quantize") | {
        "model": model_row(result.source),
        "output": _output(result),
        "recipe": result.recipe.to_dict(),
        "form": asdict(result.plan.form),
        "predicted": predicted_row(result.plan),
        "layers": [_quantized_layer(layer, result.plan[layer.name]) for layer in result.layers],
        "chains": [_chain(chain) for chain in result.chains],
        "skipped": skipped_rows(result.skipped),
        "totals": {
            "layers": len(result.layers),
            "skipped": len(result.skipped),
            "weights": sum(math.prod(layer.shape) for layer in result.layers),
            "nominal_bits": nominal_bits(result.layers),
            "bytes_ratio": result.size / result.source.size if result.source.size else None,
        },
        "notes": list(result.notes),
        "validation": None if result.validation is None else _validation(result.validation),
        "sweep": [asdict(point) for point in result.sweep],
        "histograms": [_histogram(shown) for shown in result.histograms],
        "per_layer": [asdict(effect) for effect in result.per_layer],
        "latency": latency_row(result.latency),
        "seconds": dict(result.seconds),
    }


def _histogram(shown: WeightHistogram) -> Json:
    return {
        "name": shown.name,
        "low": shown.low,
        "high": shown.high,
        "float_counts": list(shown.float_counts),
        "quantized_counts": list(shown.quantized_counts),
    }


def latency_row(latency: Latency | None) -> Json | None:
    """Inference in seconds, None where it was not measured."""
    if latency is None:
        return None
    return {
        "runs": latency.runs,
        "threads": latency.threads,
        "batch": latency.batch,
        "timings": [asdict(timing) for timing in latency.timings],
    }


def validate_document(result: ComparisonResult) -> Json:
    """Document of ``validate``: ``model`` is the float model, ``output`` the quantized one."""
    return head("validate") | {
        "model": model_row(result.source),
        "output": model_row(result.quantized),
        "validation": _validation(result.validation),
        "per_layer": [asdict(effect) for effect in result.per_layer],
        "latency": latency_row(result.latency),
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dumps(document: Json) -> str:
    """Document as JSON text; infinity and NaN, which JSON does not have, become null.

    Examples
    --------
    >>> print(dumps({"sqnr_db": float("inf")}))
    {
      "sqnr_db": null
    }
    """
    return json.dumps(_without_nan(document), indent=2, allow_nan=False, ensure_ascii=False)


def write_text(target: Path, text: str) -> None:
    """Write a file, whole or not at all.

    Raises
    ------
    RecipeError
        If it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        raise RecipeError(
            f"{target}: cannot write: {error.strerror}", hint="choose another output path"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
