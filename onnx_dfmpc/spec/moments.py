"""What a layer sees and gives: first and second moments of its input, and of its output before and after
quantization.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_dfmpc.linalg.matrices import Covariance
from onnx_dfmpc.spec.arrays import Array


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Second-order statistics of what an output channel of a layer sees.

    Attributes
    ----------
    mean : float64 array, shape (g, n)
        Mean of the ``n`` inputs (input channels times kernel taps, taps innermost) in each of the ``g``
        groups; zero padding counts.
    covariance : float32 array, shape (g, n, n), or Kronecker
        See ``matrices``: of many inputs, only the factors are known.
    samples : int
        Number of input patches it was measured on; 0 where it was computed in closed form.
    provider : str
        Where it comes from, for the report.
    """

    mean: Array
    covariance: Covariance
    samples: int
    provider: str


@dataclass(frozen=True, eq=False)
class Outputs:
    """Mean and variance of a layer's output (without its bias) in the float network, and in the network
    quantized up to and including it.

    Arrays of shape (o,), float64, for the same inputs of the network and before any correction of this layer.
    """

    mean: Array
    variance: Array
    quantized_mean: Array
    quantized_variance: Array
