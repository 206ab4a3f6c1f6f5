"""One walk over the layers: what each of them costs at each width, in noise at the network's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_dfmpc.errors import ModelError, UnsupportedError
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.sensitivity.candidates import candidates
from onnx_dfmpc.sensitivity.outputs import OutputNoise
from onnx_dfmpc.sensitivity.propagation import NoisePropagation, noise_at_outputs
from onnx_dfmpc.spec import Array, Layer
from onnx_dfmpc.statistics.providers import Provider

Progress = Callable[[str, int, int], None]
Feeds = Sequence[Mapping[str, NDArray[Any]]]

WIDEST = 4
"""Wider codes are not tried: their noise falls with the square of their step."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Noise of each layer at each width, shape (layers, widths), where it comes from, and remarks."""

    noise: Array
    provider: str
    notes: tuple[str, ...] = ()


def predict(
    proto: ModelProto,
    layers: Sequence[Layer],
    widths: Sequence[int],
    allowed: Mapping[str, NDArray[np.bool_]],
    recipe: Recipe,
    provider: Provider,
    *,
    feeds: Feeds | None,
    source: str,
    progress: Progress | None = None,
) -> Prediction:
    """Predict the noise at the network's outputs when one layer alone is quantized.

    Parameters
    ----------
    proto : ModelProto
        The float model.
    layers : sequence of Layer
        All of them, in topological order.
    widths : sequence of int
        Columns of the result.
    allowed : mapping of str to bool array, shape (widths,)
        Rows of the result, and which widths matter in them; layers without an entry stay float.
    recipe : Recipe
    provider : Provider
        Of the statistics of the layers' inputs.
    feeds : sequence of mapping, or None
        Inputs to measure with; None is the closed form.
    source : str
        What to call the result: "bn", "probe" or "measured".
    progress : callable, optional
        Called with ``("predict", layers done, layers)``.

    Returns
    -------
    Prediction
        The closed form, with a remark, where measuring is not possible.
    """
    table, flow = ConstantTable(proto), NoisePropagation(proto)
    listener = None if feeds is None else OutputNoise(proto, table, layers, feeds)
    local: dict[str, Array] = {}
    heard: dict[str, Array] = {}
    notes: tuple[str, ...] = ()
    for layer in layers:
        if layer.name not in allowed:
            provider.skip(layer)
            continue
        known = provider.measure(layer)
        flow.see(layer, known)
        found = candidates(
            layer, table[layer.weight].astype(np.float32), known, _tried(widths, allowed[layer.name]), recipe
        )
        provider.skip(layer)
        local[layer.name] = spread({width: one.noise for width, one in found.items()}, widths)
        if listener is not None:
            try:
                heard[layer.name] = spread(listener.noise(layer, found), widths)
            except (ModelError, UnsupportedError) as error:
                listener, source, notes = None, "bn", (f"noise at the outputs in closed form: {error}",)
        if progress is not None:
            progress("predict", len(local), len(allowed))
    if listener is None:
        amplified = flow.amplification()
        heard = {
            layer.name: noise_at_outputs(amplified, layer, 1.0) * local[layer.name]
            for layer in layers
            if layer.name in local
        }
    return Prediction(np.stack([heard[name] for name in local]), source, notes)


def spread(measured: Mapping[int, float], widths: Sequence[int]) -> Array:
    """Noise at every width from that at some: by powers between two of them, beyond them by the square of the
    step.

    Parameters
    ----------
    measured : mapping of int to float
        Bits to noise.
    widths : sequence of int
        Ascending.

    Returns
    -------
    float64 array, shape (widths,)
        Never more at more bits.

    Examples
    --------
    >>> spread({2: 0.09, 4: 0.01}, (2, 3, 4, 5)).round(4).tolist()
    [0.09, 0.03, 0.01, 0.0023]
    """
    known = np.array(sorted(measured))
    noise = np.array([measured[width] for width in known])
    at = np.array(widths)
    floor = np.finfo(np.float64).tiny
    between = np.exp(np.interp(at, known, np.log(np.maximum(noise, floor))))
    nearest = np.clip(at, known[0], known[-1])
    everywhere: Array = between * ((2.0**nearest - 1) / (2.0**at - 1)) ** 2
    return np.minimum.accumulate(everywhere)


def _tried(widths: Sequence[int], allowed: NDArray[np.bool_]) -> list[int]:
    """Widths to quantize at: the narrow ones that are allowed, and the widest of those to go on from."""
    wanted = [width for width, yes in zip(widths, allowed, strict=True) if yes]
    return sorted({min(width, WIDEST) for width in wanted})
