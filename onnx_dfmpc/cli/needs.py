"""Refuse what cannot be done within the limits before the work begins, where shapes alone tell."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import onnx

from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.model.needs import needs

FASTEST = 1e12
"""Float32 products per second and core: several times what processors have today."""

INFERENCES = 2
"""At least: one of the float model, one of the quantized."""


def require_within(
    path: str | os.PathLike[str],
    shapes: Mapping[str, Sequence[int]],
    memory: int | None,
    timeout: float | None,
) -> None:
    """UnsupportedError if a single inference of a model takes more memory, or two more time, than is allowed.

    What cannot be read or inferred passes: others say what is wrong, and the limits hold while it runs.
    """
    try:
        found = needs(onnx.load(os.fspath(path), load_external_data=False), shapes)
    except Exception:  # not a model; loading says so
        return
    smaller = "an open input takes a smaller --shape, a fixed one is exported with a smaller batch or size"
    if memory is not None and found.memory > memory:
        raise UnsupportedError(
            f"{path}: one inference takes at least {found.memory / 2**20:,.0f} MiB of memory, for "
            f"{found.where}; the limit is {memory / 2**20:,.0f} MiB",
            hint=f"--max-memory SIZE allows more, where the machine has it; {smaller}",
        )
    seconds = INFERENCES * found.products / (FASTEST * (os.cpu_count() or 1))
    if timeout is not None and seconds > timeout:
        raise UnsupportedError(
            f"{path}: {INFERENCES} inferences of {found.products:.2g} multiplications each take at least "
            f"{seconds:,.0f} s; the limit is {timeout:g} s",
            hint=f"--timeout SECONDS allows more; {smaller}",
        )
