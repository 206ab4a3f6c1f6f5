"""The command that repeats a validation."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import Any

from onnx_dfmpc.recipe import Data, Gates
from onnx_dfmpc.recipe.values import plain, settings

PROGRAM = "onnx-dfmpc"


def repeat_command(float_model: Any, quantized_model: Any, data: Data, gates: Gates) -> str:
    """Command line for a shell; "" where a model, the data or the labels are not files.

    >>> data, gates = Data(data="my data.npz", samples=9), Gates(min_cosine=0.99)
    >>> repeat_command("a.onnx", "b.onnx", data, gates)
    "onnx-dfmpc validate a.onnx b.onnx --data 'my data.npz' --samples 9 --min-cosine 0.99"
    """
    sources = [float_model, quantized_model, data.data, data.labels]
    if not all(source is None or isinstance(source, str | os.PathLike) for source in sources):
        return ""
    models = [os.fspath(float_model), os.fspath(quantized_model)]
    return shlex.join([PROGRAM, "validate", *models, *_flags(data, Data), *_flags(gates, Gates)])


def _flags(instance: Data | Gates, group: type) -> Iterator[str]:
    """Flags and words for the settings of a group that differ from their defaults."""
    keys = settings(group)
    for name, value in plain(instance, group, changed_only=True).items():
        flag, action = keys[name].metadata["flag"], keys[name].metadata["value"].action
        if action == "store_true":
            yield flag
            continue
        if not isinstance(value, dict):
            yield from (flag, _word(value))
            continue
        pairs = [f"{key}={_word(item)}" for key, item in value.items()]
        if action == "extend":
            yield from (flag, *pairs)
        else:
            yield from (word for pair in pairs for word in (flag, pair))


def _word(value: Any) -> str:
    """A value as it is typed: 12 digits tell any limit from its neighbour."""
    if isinstance(value, list):
        return ",".join(map(_word, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)
