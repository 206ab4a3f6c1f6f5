"""ONNX's elementwise activations as functions that `rectified` can expand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array
from onnx_dfmpc.statistics.rectified import Activation, PiecewiseLinear, normal_cdf


def _sigmoid(x: Array) -> Array:
    result: Array = 0.5 * (1 + np.tanh(x / 2))
    return result


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


SMOOTH: dict[str, Activation] = {
    "Exp": np.exp,
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "Sigmoid": _sigmoid,
    "Softplus": _softplus,
    "Tanh": np.tanh,
}
ACTIVATIONS = frozenset(
    {*SMOOTH, "Clip", "Elu", "Gelu", "HardSigmoid", "LeakyRelu", "PRelu", "Relu", "Swish"}
)


def activation(
    op_type: str, attributes: Mapping[str, Any], constants: Sequence[NDArray[Any] | None], channels: int
) -> Activation | None:
    """Elementwise function of a node, or None where this form of it is not covered.

    Parameters
    ----------
    op_type : str
    attributes : mapping
    constants : sequence of array or None
        The inputs behind the first one: slope of PRelu, bounds of Clip.
    channels : int

    Examples
    --------
    >>> activation("Clip", {"min": 0.0, "max": 6.0}, [], 1)(np.array([-1.0, 3.0, 7.0]))
    array([0., 3., 6.])
    """
    match op_type:
        case "Relu":
            return PiecewiseLinear(0.0, 0.0, (0.0,), (1.0,))
        case "LeakyRelu":
            slope = attributes.get("alpha", 0.01)
            return PiecewiseLinear(0.0, slope, (0.0,), (1 - slope,))
        case "PRelu":
            slopes = (
                np.ravel(constants[0]).astype(np.float64)
                if constants and constants[0] is not None
                else np.zeros(0)
            )
            return (
                PiecewiseLinear(0.0, slopes, (0.0,), (1 - slopes,)) if slopes.size in (1, channels) else None
            )
        case "Clip":
            low, high = (
                constants[i] if len(constants) > i and constants[i] is not None else attributes.get(n)
                for i, n in ((0, "min"), (1, "max"))
            )
            return _clip(
                -np.inf if low is None else np.asarray(low).item(),
                np.inf if high is None else np.asarray(high).item(),
            )
        case "HardSigmoid":
            alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
            return PiecewiseLinear(0.0, 0.0, (-beta / alpha, (1 - beta) / alpha), (alpha, -alpha))
        case "Elu":
            a = attributes.get("alpha", 1.0)
            return lambda x: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0)))
        case "Gelu":
            return lambda x: x * normal_cdf(x)
        case "Swish":
            a = attributes.get("alpha", 1.0)
            return lambda x: x * _sigmoid(a * x)
    return SMOOTH.get(op_type)


def _clip(low: float, high: float) -> PiecewiseLinear:
    finite_low, finite_high = np.isfinite(low) and low > -1e30, np.isfinite(high) and high < 1e30
    knots = ((low,) if finite_low else ()) + ((high,) if finite_high else ())
    bends = ((1.0,) if finite_low else ()) + ((-1.0,) if finite_high else ())
    return PiecewiseLinear(low if finite_low else 0.0, 0.0 if finite_low else 1.0, knots, bends)
