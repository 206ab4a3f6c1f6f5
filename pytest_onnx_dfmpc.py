"""Plugin for pytest: the fixture ``onnx_accuracy`` fails a test where a quantized model is too far from its
float original.

It stands outside of the package, so that a test run that does not use the fixture does not import onnx and
ONNX Runtime either.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onnx_dfmpc import ValidationReport

__all__ = ["onnx_accuracy"]


@pytest.fixture(scope="session")
def onnx_accuracy() -> Callable[..., ValidationReport]:
    """Compare a quantized model with its float original; the test fails where a gate does not hold.

    ``onnx_accuracy(float_path, quantized_path, data=None, **gates)``, with the data and the gates of
    `onnx_dfmpc.validate`, such as ``min_cosine=0.99, max_top1_drop=0.01``. Returns the `ValidationReport`.
    """
    return _compare


def _compare(
    float_path: str | os.PathLike[str],
    quantized_path: str | os.PathLike[str],
    data: Any = None,
    **gates: float,
) -> ValidationReport:
    __tracebackhide__ = True
    from onnx_dfmpc import DfmpcError, validate

    report, problem = None, ""
    try:
        report = validate(float_path, quantized_path, data, gates=gates)
    except DfmpcError as error:
        problem = f"{error}\nhint: {error.hint}" if error.hint else str(error)
    if report is None:  # not from the handler, where pytest shows both
        pytest.fail(problem, pytrace=False)
    if not report:
        pytest.fail(_message(float_path, quantized_path, report), pytrace=False)
    return report


def _message(float_path: Any, quantized_path: Any, report: ValidationReport) -> str:
    lines = [f"{_name(quantized_path)} is too far from {_name(float_path)} ({report.data})"]
    lines += [f"FAILED {failure}" for failure in report.failures]
    lines += map(str, report.gates)
    if report.command:
        lines.append(f"to repeat: {report.command}")
    return "\n".join(lines)


def _name(model: Any) -> str:
    return os.fspath(model) if isinstance(model, str | os.PathLike) else "the given model"
