"""ONNX Runtime sessions that are quiet, and whose errors are ours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_dfmpc.errors import ModelError, RecipeError, UnsupportedError
from onnx_dfmpc.inputs.specs import InputSpec
from onnx_dfmpc.recipe import nearest

Model = str | os.PathLike[str] | onnx.ModelProto
Output = NDArray[Any]

CPU = "CPUExecutionProvider"
DISABLE_QDQ = "session.disable_quant_qdq"
SILENT = 4

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    **{
        f"tensor({name})": getattr(np, name)
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
}


def session_options() -> ort.SessionOptions:
    """Session options that run a weight-only quantized model at float speed.

    Without them ONNX Runtime dequantizes the weights at every run, and multiplies some with int8 activations.
    Not for models whose activations are quantized.

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


def runtime_version() -> str:
    """Version of ONNX Runtime, whichever of its packages is installed."""
    return str(ort.__version__)


def check_providers(providers: Sequence[str]) -> list[str]:
    """Execution providers to run on; without any, the CPU's.

    Raises
    ------
    RecipeError
        One that this ONNX Runtime does not have.
    """
    available = ort.get_available_providers()
    for name in providers:
        if name not in available:
            guess = nearest(name, available)
            raise RecipeError(
                f"this ONNX Runtime has no execution provider {name!r}",
                hint=(guess + " " if guess else "") + "available: " + ", ".join(available),
            )
    return list(providers) or [CPU]


class Session:
    """A model that can be run.

    Parameters
    ----------
    model : path or onnx.ModelProto
    what : str
        What to call a model that has no path.
    disable_qdq : bool
        Whether to fold dequantized weights when it is loaded.
    providers : sequence of str
    threads : int
        0 leaves it to ONNX Runtime.

    Raises
    ------
    ModelError
        If it cannot be loaded.
    """

    def __init__(
        self,
        model: Model,
        what: str,
        *,
        disable_qdq: bool = False,
        providers: Sequence[str] = (CPU,),
        threads: int = 0,
    ) -> None:
        self.title = title(model, what)
        options = session_options() if disable_qdq else ort.SessionOptions()
        options.log_severity_level = SILENT
        options.intra_op_num_threads = threads
        if not isinstance(model, onnx.ModelProto) and not Path(model).is_file():
            raise ModelError(f"{model}: not a file" if Path(model).exists() else f"{model}: no such file")
        try:
            source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else os.fspath(model)
            self.session = ort.InferenceSession(source, options, providers=list(providers))
        except Exception as error:  # ONNX Runtime's own exceptions derive from Exception only
            raise ModelError(f"{self.title}: ONNX Runtime cannot load it: {first_line(error)}") from error
        self.outputs = [output.name for output in self.session.get_outputs()]

    def specs(self) -> list[InputSpec]:
        """Inputs of the model.

        Raises
        ------
        UnsupportedError
            If one of them is not a tensor of numbers.
        """
        specs = []
        for node in self.session.get_inputs():
            if node.type not in DTYPES:
                raise UnsupportedError(
                    f"{self.title}: input {node.name!r} is a {node.type}, which validation cannot feed"
                )
            shape = tuple(size if isinstance(size, int) else str(size or "?") for size in node.shape)
            specs.append(InputSpec(node.name, np.dtype(DTYPES[node.type]), shape))
        return specs

    def run(self, feeds: Mapping[str, Output], outputs: Sequence[str] | None = None) -> list[Any]:
        """Outputs for some inputs.

        Raises
        ------
        ModelError
            If ONNX Runtime refuses.
        """
        options = ort.RunOptions()
        options.log_severity_level = SILENT
        try:
            return list(
                self.session.run(list(outputs) if outputs is not None else self.outputs, dict(feeds), options)
            )
        except Exception as error:
            shapes = ", ".join(f"{name} {value.dtype}{value.shape}" for name, value in feeds.items())
            raise ModelError(
                f"{self.title}: ONNX Runtime cannot run it on {shapes}: {first_line(error)}",
                hint="give it inputs that it takes with --data (--image-size for images), or another --shape",
            ) from error


def title(model: Model, what: str) -> str:
    """What to call a model in a message."""
    return what if isinstance(model, onnx.ModelProto) else str(Path(model))


def first_line(error: BaseException) -> str:
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


def check_same_interface(reference: Session, other: Session) -> None:
    """Raise ModelError unless two models have outputs of the same names, and inputs that take the same
    arrays.
    """
    hint = "compare a model with the one it was made from"
    inputs, taken = ({spec.name: spec for spec in session.specs()} for session in (reference, other))
    for what, mine, theirs in (
        ("inputs", list(inputs), list(taken)),
        ("outputs", reference.outputs, other.outputs),
    ):
        if set(mine) != set(theirs):
            names = f"its {what} are {', '.join(theirs)}, those of {reference.title} are {', '.join(mine)}"
            raise ModelError(f"{other.title}: {names}", hint=hint)
    for name, spec in inputs.items():
        if not _alike(spec, taken[name]):
            raise ModelError(
                f"{other.title}: its input is {taken[name]}, that of {reference.title} is {spec}", hint=hint
            )


def _alike(first: InputSpec, second: InputSpec) -> bool:
    """Whether there are arrays that both inputs take."""
    sizes = zip(first.shape, second.shape, strict=False)
    fixed = all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))
    return first.dtype == second.dtype and len(first.shape) == len(second.shape) and fixed
