"""Float model against quantized model under ONNX Runtime: the proof of how far the outputs moved.

Weight-only models run with ``session.disable_quant_qdq=1``, which folds the dequantized weights at load: float speed, and exact arithmetic.
One batch runs with default session options too, because that is what a user who sets nothing gets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_dfmpc import inputs
from onnx_dfmpc.errors import ModelError, RecipeError, UnsupportedError
from onnx_dfmpc.inputs import DataSource, InputSpec, LabelSource, Samples
from onnx_dfmpc.metrics import Comparison, DefaultRun, Gate, OutputMetrics, Tally, ValidationReport, check_gates, is_finite

__all__ = ["DefaultRun", "Gate", "OutputMetrics", "ValidationReport", "check_data", "layer_sqnr", "session_options", "validate"]

Model = str | os.PathLike[str] | onnx.ModelProto
Progress = Callable[[str, int, int], None]
Output = NDArray[Any]

DISABLE_QDQ = "session.disable_quant_qdq"
SILENT = 4

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    **{f"tensor({name})": getattr(np, name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}


def session_options() -> ort.SessionOptions:
    """Session options that run a weight-only quantized model at float speed.

    Without them ONNX Runtime dequantizes the weights at every run, and multiplies some with int8 activations. Not for models whose
    activations are quantized.

    Returns
    -------
    onnxruntime.SessionOptions

    Examples
    --------
    >>> options = session_options()
    >>> options.get_session_config_entry("session.disable_quant_qdq")
    '1'
    """
    options = ort.SessionOptions()
    options.add_session_config_entry(DISABLE_QDQ, "1")
    return options


def validate(
    float_model: Model,
    quantized_model: Model,
    data: DataSource | None = None,
    labels: LabelSource | None = None,
    *,
    gates: Mapping[str, float] | None = None,
    samples: int | None = None,
    seed: int = 0,
    input_range: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> ValidationReport:
    """Compare a quantized model with the float model it comes from, under ONNX Runtime.

    Parameters
    ----------
    float_model, quantized_model : path or onnx.ModelProto
        Inputs and outputs have the same names.
    data : path of an .npz or .npy, mapping of arrays, or array, optional
        Real inputs by name, and ``labels``; see `onnx_dfmpc.inputs.from_data`. None takes seeded synthetic inputs: a sanity check,
        not accuracy.
    labels : path or int array of shape (n,), optional
        Class indices, counted from 0.
    gates : mapping, optional
        Limits by name: ``min_cosine``, ``min_sqnr_db`` (dB), ``max_top1_drop``, ``min_top1_agreement`` (fractions). They bind the worst
        output.
    samples : int, optional
        At most so many samples of `data`, or so many synthetic ones.
    seed : int
        Seed of the choice of samples and of synthetic inputs.
    input_range : (float, float), optional
        Range of synthetic inputs.
    progress : callable, optional
        Called with ``("validate", samples done, samples)``.

    Returns
    -------
    ValidationReport

    Raises
    ------
    RecipeError
        Data that does not fit the model, or a gate that cannot be evaluated.
    ModelError
        A model that cannot be loaded or run, or models whose inputs or outputs do not correspond.
    """
    weight_only = _is_weight_only(quantized_model)
    float_session = _Session(float_model, "float model")
    quantized_session = _Session(quantized_model, "quantized model", disable_qdq=weight_only)
    _check_same_interface(float_session, quantized_session)
    feeds = _samples(float_session.specs(), data, labels, samples=samples, seed=seed, input_range=input_range)
    limits = check_gates(gates, labelled=feeds.labels is not None)
    feeds = _runnable(float_session, feeds)

    tally = Tally(float_session.outputs, feeds.labels)
    default_run = None
    for start, stop, batch in feeds.batches():
        actual = quantized_session.run(batch, float_session.outputs)
        tally.add(start, stop, float_session.run(batch), actual)
        if start == 0 and weight_only:
            default_run = _run_default(quantized_model, batch, actual, float_session.outputs, stop)
        if progress is not None:
            progress("validate", stop, feeds.count)
    if isinstance(default_run, str):
        tally.failures["default options"] = default_run
        default_run = None
    return tally.report(
        limits,
        samples=feeds.count,
        data=feeds.description,
        synthetic=feeds.synthetic,
        weight_only=weight_only,
        default_run=default_run,
        notes=feeds.notes,
    )


def _run_default(
    model: Model, batch: Mapping[str, Output], expected: Sequence[Any], names: Sequence[str], samples: int
) -> DefaultRun | str:
    """Run one batch with default session options; a reason in words where that is not possible."""
    try:
        actual = _Session(model, "quantized model").run(batch, names)
    except ModelError as error:
        return f"with default session options: {error}"
    pair = Comparison()
    for name, a, b in zip(names, expected, actual, strict=True):
        if not isinstance(b, np.ndarray) or b.dtype.kind not in "biuf":
            continue
        if not is_finite(b):
            return f"with default session options: quantized model: NaN or infinity in output {name!r}"
        if is_finite(a):
            pair.add(a, b)
    return DefaultRun(samples, pair.max_abs, pair.sqnr_db) if pair.elements else DefaultRun(samples, None, None)


def check_data(
    float_model: Model, data: DataSource | None, labels: LabelSource | None = None, *, gates: Mapping[str, float] | None = None
) -> None:
    """Raise now, before a model is quantized, what `validate` would say to data and gates afterwards.

    Raises
    ------
    RecipeError
        Data that does not fit the model, or a gate that cannot be evaluated without labels.
    """
    feeds = _samples(_Session(float_model, "float model").specs(), data, labels, samples=None, seed=0, input_range=None)
    check_gates(gates, labelled=feeds.labels is not None)


def layer_sqnr(
    float_model: Model,
    quantized_model: Model,
    names: Mapping[str, tuple[str, str]],
    feeds: Samples | Iterable[Mapping[str, Output]],
) -> dict[str, float | None]:
    """Signal-to-quantization-noise ratio of tensors inside the two graphs.

    Parameters
    ----------
    float_model, quantized_model : path or onnx.ModelProto
        Neither is changed.
    names : mapping of str to (str, str)
        Layer name -> name of its tensor in the float graph and in the quantized graph.
    feeds : Samples, or iterable of mappings
        Inputs by name, one mapping per run; one batch is in memory at a time.

    Returns
    -------
    dict
        SQNR in dB by layer name; infinite where nothing differs, None where a value is not finite or the shapes differ.

    Raises
    ------
    ModelError
        A model that cannot be loaded or run, or a tensor that is not in its graph.
    """
    sides = []
    for model, title, side in ((float_model, "float model", 0), (quantized_model, "quantized model", 1)):
        tensors = [pair[side] for pair in names.values()]
        sides.append((_Session(_with_outputs(model, tensors, title), title, disable_qdq=bool(side) and _is_weight_only(model)), tensors))
    comparisons = {name: Comparison() for name in names}
    broken: set[str] = set()
    batches = (batch for _, _, batch in feeds.batches()) if isinstance(feeds, Samples) else feeds
    for batch in batches:
        expected, actual = (dict(zip(tensors, session.run(batch, tensors), strict=True)) for session, tensors in sides)
        for name, (float_tensor, quantized_tensor) in names.items():
            a, b = expected[float_tensor], actual[quantized_tensor]
            if a.shape != b.shape or not (is_finite(a) and is_finite(b)):
                broken.add(name)
            else:
                comparisons[name].add(a, b)
    return {name: None if name in broken or not pair.elements else pair.sqnr_db for name, pair in comparisons.items()}


# --------------------------------------------------------------------------------------------------------------------- sessions


def _title(model: Model, what: str) -> str:
    return what if isinstance(model, onnx.ModelProto) else str(Path(model))


def _first_line(error: BaseException) -> str:
    """Cause in one line, without ONNX Runtime's status code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text.rsplit("] : ", 1)[-1].split(" : ", 2)[-1] if text.startswith("[ONNXRuntimeError]") else text


class _Session:
    """An ONNX Runtime session that is quiet, and whose errors are ours."""

    def __init__(self, model: Model, what: str, *, disable_qdq: bool = False) -> None:
        self.title = _title(model, what)
        options = session_options() if disable_qdq else ort.SessionOptions()
        options.log_severity_level = SILENT
        if not isinstance(model, onnx.ModelProto) and not Path(model).is_file():
            raise ModelError(f"{model}: not a file" if Path(model).exists() else f"{model}: no such file")
        try:
            source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else os.fspath(model)
            self.session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions derive from Exception only
            raise ModelError(f"{self.title}: ONNX Runtime cannot load it: {_first_line(error)}") from error
        self.outputs = [output.name for output in self.session.get_outputs()]

    def specs(self) -> list[InputSpec]:
        specs = []
        for node in self.session.get_inputs():
            if node.type not in DTYPES:
                raise UnsupportedError(f"{self.title}: input {node.name!r} is a {node.type}, which validation cannot feed")
            shape = tuple(size if isinstance(size, int) else str(size or "?") for size in node.shape)
            specs.append(InputSpec(node.name, np.dtype(DTYPES[node.type]), shape))
        return specs

    def run(self, feeds: Mapping[str, Output], outputs: Sequence[str] | None = None) -> list[Any]:
        options = ort.RunOptions()
        options.log_severity_level = SILENT
        try:
            return list(self.session.run(list(outputs) if outputs is not None else self.outputs, dict(feeds), options))
        except Exception as error:
            shapes = ", ".join(f"{name} {value.dtype}{value.shape}" for name, value in feeds.items())
            raise ModelError(
                f"{self.title}: ONNX Runtime cannot run it on {shapes}: {_first_line(error)}",
                hint="give it inputs that it takes with --data",
            ) from error


def _is_weight_only(model: Model) -> bool:
    """Whether no QuantizeLinear works on activations, which ``disable_quant_qdq`` would silently take out."""
    try:
        proto = model if isinstance(model, onnx.ModelProto) else onnx.load(os.fspath(model), load_external_data=False)
    except Exception:  # unreadable: the session says so, with the cause
        return True
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {name for node in proto.graph.node if node.op_type == "Constant" for name in node.output}
    return not any(
        node.op_type in ("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
        or (node.op_type == "QuantizeLinear" and node.input[0] not in constants)
        for node in proto.graph.node
    )


def _with_outputs(model: Model, tensors: Sequence[str], what: str) -> onnx.ModelProto:
    """Copy of a model whose graph outputs include `tensors`."""
    title = _title(model, what)
    copy = onnx.ModelProto()
    try:
        copy.CopyFrom(model if isinstance(model, onnx.ModelProto) else onnx.load(os.fspath(model)))
    except Exception as error:
        raise ModelError(f"{title}: cannot be read: {_first_line(error)}") from error
    known = {name for node in copy.graph.node for name in node.output}
    outputs = {output.name for output in copy.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in known:
            raise ModelError(f"{title}: no node computes a tensor {name!r}")
        if name not in outputs:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


def _check_same_interface(reference: _Session, other: _Session) -> None:
    for what, mine, theirs in (
        ("inputs", [spec.name for spec in reference.specs()], [spec.name for spec in other.specs()]),
        ("outputs", reference.outputs, other.outputs),
    ):
        if set(mine) != set(theirs):
            raise ModelError(
                f"{other.title}: its {what} are {', '.join(theirs)}, those of {reference.title} are {', '.join(mine)}",
                hint="compare a model with the one it was made from",
            )


def _samples(
    specs: Sequence[InputSpec],
    data: DataSource | None,
    labels: LabelSource | None,
    *,
    samples: int | None,
    seed: int,
    input_range: tuple[float, float] | None,
) -> Samples:
    if data is not None:
        return inputs.from_data(specs, data, labels, samples=samples, seed=seed)
    if labels is not None:
        raise RecipeError("labels without data", hint="name the inputs they belong to with --data")
    return inputs.synthetic(specs, samples=samples, seed=seed, input_range=input_range)


def _runnable(session: _Session, feeds: Samples) -> Samples:
    """Choose batches, or one by one for a model that calls its batch dynamic and is not."""
    start, stop, batch = next(feeds.batches())
    try:
        session.run(batch)
    except ModelError:
        if stop - start == 1:
            raise
        feeds = replace(feeds, batch=1, notes=(*feeds.notes, "run one by one: the model does not take batches"))
        session.run(next(feeds.batches())[2])
    return feeds
