"""The command that repeats a validation."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx

from onnx_dfmpc.evaluate.gates import Limit
from onnx_dfmpc.evaluate.validation import typed
from onnx_dfmpc.inputs.data import Feeding
from onnx_dfmpc.recipe import Preprocessing

PROGRAM = "onnx-dfmpc"


def repeat_command(
    float_model: Any,
    quantized_model: Any,
    feeding: Feeding,
    limits: Sequence[Limit],
    providers: Sequence[str] = (),
) -> str:
    """Command line for a shell; "" where a model, the data or the labels are not files.

    Parameters
    ----------
    float_model, quantized_model : path or onnx.ModelProto
    feeding : Feeding
    limits : sequence of Limit
    providers : sequence of str

    Examples
    --------
    >>> repeat_command("a.onnx", "b.onnx", Feeding("my data.npz", samples=9), [Limit("min_cosine", "scores", 0.99)])
    "onnx-dfmpc validate a.onnx b.onnx --data 'my data.npz' --samples 9 --min-cosine scores=0.99"
    """
    files = [
        float_model,
        quantized_model,
        *(source for source in (feeding.data, feeding.labels) if source is not None),
    ]
    if not all(
        isinstance(file, str | os.PathLike) and not isinstance(file, onnx.ModelProto) for file in files
    ):
        return ""
    words = [
        PROGRAM,
        "validate",
        os.fspath(float_model),
        os.fspath(quantized_model),
        *_inputs(feeding),
        *_pictures(feeding.images),
    ]
    for limit in limits:
        words += [
            f"--{limit.gate.replace('_', '-')}",
            ("" if limit.output is None else f"{limit.output}=") + typed(limit.limit),
        ]
    return shlex.join([*words, *(["--providers", *providers] if providers else [])])


def _inputs(feeding: Feeding) -> Iterator[str]:
    plain: Mapping[str, Any] = {
        "--data": feeding.data,
        "--labels": feeding.labels,
        "--samples": feeding.samples,
        "--seed": feeding.seed or None,
        "--batch-size": feeding.batch_size,
    }
    for flag, value in plain.items():
        if value is not None:
            yield from (flag, str(value))
    if feeding.input_range is not None:
        yield from ("--input-range", _numbers(feeding.input_range))
    for name, shape in feeding.shapes.items():
        yield from ("--shape", f"{name}={_numbers(shape)}")


def _pictures(images: Preprocessing) -> Iterator[str]:
    for key, value in images.to_dict().items():
        yield from (
            f"--image-{key}",
            value if isinstance(value, str) else _numbers(value if isinstance(value, list) else [value]),
        )


def _numbers(values: Sequence[float]) -> str:
    return ",".join(map(typed, values))
