"""First and second moments of what a layer sees and gives."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_dfmpc.linalg.matrices import Covariance
from onnx_dfmpc.spec.arrays import Array

STATISTICS: dict[str, bool] = {"probe": True, "closed_form": False}
"""Sources of statistics, and whether they run the network on inputs; `pipeline.sources` has what they do."""


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Second-order statistics of what an output channel of a layer sees.

    Attributes
    ----------
    mean : float64 array, shape (g, n)
        Mean of the ``n`` inputs (input channels times kernel taps, taps innermost) in each of the ``g``
        groups; zero padding counts.
    covariance : float32 array, shape (g, n, n), or Kronecker
        See ``linalg.matrices``: of many inputs, only the factors are kept.
    samples : int
        Number of patches it was measured on, or of pictures, where the patches of one count as one sample; 0
        where it was computed in closed form.
    source : str
        Where it comes from, for the report: "probe", "calibration", "closed form", or "none".
    chance : float
        Share of the squared correlations between channels that is not in the inputs but in the choice of a
        few of them, 0 to 1; 0 where it is not known.
    """

    mean: Array
    covariance: Covariance
    samples: int
    source: str
    chance: float = 0.0


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance of a layer's output per channel, without its own bias, for each kind of inputs:
    float64, shape (kinds, o).
    """

    mean: Array
    variance: Array


@dataclass(frozen=True, eq=False)
class Anchor:
    """What re-anchoring to batch norm does to a layer's output, ``scale y + offset``, for each kind of
    inputs: shape (kinds, o).
    """

    scale: Array
    offset: Array


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """One layer in the float network: measured once, and used by prediction and rounding alike.

    Attributes
    ----------
    input : InputStatistics or None
        None for a layer that stays float.
    output : Moments or None
        Before re-anchoring; None where no run told them.
    anchor : Anchor or None
        None where there is no batch norm, or where the inputs are real ones.
    """

    input: InputStatistics | None = None
    output: Moments | None = None
    anchor: Anchor | None = None


@dataclass(frozen=True, eq=False)
class Outputs:
    """Moments of a layer's output in the float network, and in the network quantized up to and including the
    layer, and the weight of each kind of inputs.

    Arrays of shape (kinds, o), float64, for the same inputs of the network and before any correction of this
    layer; ``weights`` (kinds,) add up to 1.
    """

    weights: Array
    mean: Array
    variance: Array
    quantized_mean: Array
    quantized_variance: Array
