"""ONNX Runtime sessions that are quiet, and whose errors are ours."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort

from onnx_dfmpc.errors import ModelError, UnsupportedError
from onnx_dfmpc.model.external import inlined, mapped_tensors
from onnx_dfmpc.runtime.batches import Value
from onnx_dfmpc.spec import InputSpec

Model = str | os.PathLike[str] | onnx.ModelProto

DISABLE_QDQ = "session.disable_quant_qdq"
BLOCKS = "NchwcTransformer"
"""The optimizer that puts channels of convolutions together. It takes 20 bytes a weight while it works."""

SILENT = 4
"""Log level. The log goes to stderr past Python, several lines for each error; the first line of the
exception is in our own message.
"""

NUMPY = {"float": "float32", "double": "float64"}
"""Names of NumPy for those of ONNX Runtime, where they differ."""


def session_options(model: Model | None = None) -> ort.SessionOptions:
    """Session options that run a weight-only quantized model at float speed.

    Without them ONNX Runtime dequantizes the weights at every run, and multiplies some with int8 activations.

    Parameters
    ----------
    model : path or onnx.ModelProto, optional
        Where its activations are quantized, the options are the default ones, which it needs.

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
    if model is not None and not is_weight_only(model):
        return options
    # Kept as pairs, DequantizeLinear nodes wait for integer kernels; disabled, they are constants to be
    # folded.
    options.add_session_config_entry(DISABLE_QDQ, "1")
    return options


def runtime_version() -> str:
    """Version of ONNX Runtime, whichever of its packages is installed."""
    return str(ort.__version__)


class Runnable(Protocol):
    """What can be asked for its interface."""

    title: str
    outputs: list[str]

    def specs(self) -> list[InputSpec]:
        """Inputs of the model."""


class Session:
    """A model that can be run on the CPU.

    ``model`` may also be serialized; ``what`` is its name in messages where it has no path. ``disable_qdq``
    folds dequantized weights at load. ``threads=0`` leaves the number of threads to ONNX Runtime;
    ``arena=False`` gives memory back after every run; ``blocks=False`` leaves weights of convolutions in
    their layout. ``arrays`` are inputs that are the same in every run: large weights, which are not copied.
    """

    def __init__(
        self,
        model: Model | bytes,
        what: str,
        *,
        disable_qdq: bool = False,
        threads: int = 0,
        arena: bool = True,
        blocks: bool = True,
        arrays: Mapping[str, Value] | None = None,
    ) -> None:
        self.title = what if isinstance(model, onnx.ModelProto | bytes) else str(Path(model))
        options = session_options() if disable_qdq else ort.SessionOptions()
        options.log_severity_level = SILENT
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.enable_cpu_mem_arena = arena
        if (
            threads == 0
        ):  # a thread that waits for work in a loop is faster, and costs as much as one that works
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if isinstance(model, str | os.PathLike) and not Path(model).is_file():
            raise ModelError(f"{model}: not a file" if Path(model).exists() else f"{model}: no such file")
        try:
            source = _serialized(model) if isinstance(model, onnx.ModelProto) else model
            source = source if isinstance(source, bytes) else os.fspath(source)
            self._arrays = dict(arrays or {})
            self._session = ort.InferenceSession(
                source,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=[] if blocks else [BLOCKS],
            )
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise ModelError(f"{self.title}: ONNX Runtime cannot load it: {_first_line(error)}") from error
        # ONNX Runtime lets a model name an output twice.
        self.outputs = list(dict.fromkeys(output.name for output in self._session.get_outputs()))

    def specs(self) -> list[InputSpec]:
        """Inputs of the model; UnsupportedError if one of them is not a tensor of numbers."""
        specs = []
        for node in self._session.get_inputs():
            kind = node.type.removeprefix("tensor(").removesuffix(")")
            try:
                dtype = np.dtype(NUMPY.get(kind, kind))
            except TypeError:
                what = f"input {node.name!r} is a {node.type}, which validation cannot feed"
                raise UnsupportedError(f"{self.title}: {what}") from None
            shape = tuple(size if isinstance(size, int) else str(size or "?") for size in node.shape)
            specs.append(InputSpec(node.name, dtype, shape))
        return specs

    def run(self, feeds: Mapping[str, Value], outputs: Sequence[str] | None = None) -> list[Any]:
        """Outputs, by default all, for some inputs."""
        options = ort.RunOptions()
        options.log_severity_level = SILENT
        names = self.outputs if outputs is None else list(outputs)
        try:
            return list(self._session.run(names, {**feeds, **self._arrays}, options))
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {value.dtype}{value.shape}" for name, value in feeds.items())
            raise ModelError(
                f"{self.title}: ONNX Runtime cannot run it on {shapes}: {_first_line(error)}",
                hint="give it inputs that it takes: --data (with --images size=N for images), or --shape",
            ) from error

    def run_each(
        self, feeds: Sequence[Mapping[str, Value]], outputs: Sequence[str] | None = None
    ) -> list[list[Any]]:
        """Outputs, by default all, for each of some inputs."""
        return [self.run(feed, outputs) for feed in feeds]


def _serialized(model: onnx.ModelProto) -> bytes:
    """Bytes of a model with all its numbers: ONNX Runtime takes no files outside of the working directory."""
    whole = inlined(model) if any(mapped_tensors(model)) else model
    return bytes(whole.SerializeToString())


def _first_line(error: BaseException) -> str:
    """Cause in one line, without ONNX Runtime's status code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text.rsplit("] : ", 1)[-1].split(" : ", 2)[-1] if text.startswith("[ONNXRuntimeError]") else text


def is_weight_only(model: Model) -> bool:
    """Whether no QuantizeLinear works on activations, which ``disable_quant_qdq`` would silently take out."""
    try:
        proto = (
            model
            if isinstance(model, onnx.ModelProto)
            else onnx.load(os.fspath(model), load_external_data=False)
        )
    except Exception:  # unreadable: the session says so, with the cause
        return True
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {name for node in proto.graph.node if node.op_type == "Constant" for name in node.output}
    return not any(
        node.op_type
        in ("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
        or (node.op_type == "QuantizeLinear" and node.input[0] not in constants)
        for node in proto.graph.node
    )


def optimized_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes that ONNX Runtime makes of a model when it loads it with default options."""
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(_serialized(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as above
            raise ModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error
        optimized = onnx.load(path, load_external_data=False)
    return list(optimized.graph.node)


def check_same_interface(reference: Runnable, other: Runnable) -> None:
    """Raise ModelError unless two models have inputs and outputs of the same names, and inputs that take the
    same arrays.
    """
    hint = "compare a model with the one it was made from"
    inputs, other_inputs = ({spec.name: spec for spec in session.specs()} for session in (reference, other))
    for what, mine, theirs in (
        ("inputs", list(inputs), list(other_inputs)),
        ("outputs", reference.outputs, other.outputs),
    ):
        if set(mine) != set(theirs):
            names = f"its {what} are {', '.join(theirs)}, those of {reference.title} are {', '.join(mine)}"
            raise ModelError(f"{other.title}: {names}", hint=hint)
    for name, spec in inputs.items():
        if not _compatible(spec, other_inputs[name]):
            raise ModelError(
                f"{other.title}: its input is {other_inputs[name]}, that of {reference.title} is {spec}",
                hint=hint,
            )


def _compatible(first: InputSpec, second: InputSpec) -> bool:
    """Whether there are arrays that both inputs take: open dimensions take anything."""
    sizes = zip(first.shape, second.shape, strict=False)
    fixed = all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))
    return first.dtype == second.dtype and len(first.shape) == len(second.shape) and fixed
