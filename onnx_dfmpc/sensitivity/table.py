"""What every layer costs at every width: bytes of the file, known in advance, and noise at the network's
outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_dfmpc.allocate.budget import candidate_widths, cheapest, require_affordable
from onnx_dfmpc.allocate.plain import plain_plans
from onnx_dfmpc.allocate.together import Together, sharing_within
from onnx_dfmpc.errors import ModelError, UnsupportedError
from onnx_dfmpc.methods import METHODS, TOGETHER
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.recipe import Recipe, bit_bounds
from onnx_dfmpc.rewrite.sizes import base_size, predicted_size, shared_sizes, stored_sizes
from onnx_dfmpc.sensitivity.candidates import Candidate, candidates
from onnx_dfmpc.sensitivity.outputs import OutputNoise
from onnx_dfmpc.sensitivity.propagation import amplification, noise_at_outputs
from onnx_dfmpc.spec import (
    Array,
    CostTable,
    Grid,
    Layer,
    LayerStatistics,
    MatchReport,
    Progress,
    QuantizedLayer,
    QuantPlan,
    Value,
)
from onnx_dfmpc.spec.widths import LEVELS, WIDTHS

WIDEST_TRIED = 4
"""Wider codes are not tried: their noise falls with the square of their step. Between the narrowest and this
one it falls by equal factors.
"""

SCALAR_NOISE = 1.3
"""Noise of a scalar grid over what vectors of the same bits would make: 1.1 dB, between 3 and 5 bits on
ResNet-20, ResNet-8, MobileNetV1 and ShuffleNetV2 0 to 1.9.
"""

MOST_SKETCHED = 1 << 22
"""Weights of a layer that are rounded for a prediction; of more, some channels are."""

PROBED = 16
"""Layers, about, from which the way to the outputs is measured; a prediction costs as much as there are."""


@dataclass(frozen=True, eq=False)
class Sizes:
    """A cost table that has no noise yet, and which of its widths are worth a thought, shape (layers,
    widths).
    """

    table: CostTable
    allowed: NDArray[np.bool_]


def size_table(
    proto: ModelProto,
    matched: MatchReport,
    recipe: Recipe,
    metadata: Mapping[str, str],
    plan: QuantPlan | None = None,
) -> Sizes:
    """Bytes of every layer at every width that the recipe leaves open, or at the bits of a plan.

    ``metadata`` is what will go into the file, for its size.

    Raises
    ------
    UnsupportedError
        If the recipe's target cannot be met.
    """
    bounds = bit_bounds(matched, recipe)
    if plan is None:
        planned = {name for name, bound in bounds.items() if not bound.excluded}
    else:
        planned = {layer.name for layer in plan.layers}
    rows = [row for row, layer in enumerate(matched.layers) if layer.name in planned]
    names = tuple(matched.layers[row].name for row in rows)
    sharing = sharing_within(matched, bounds) if plan is None else matched.sharing(plan.bits)
    together = Together.of(names, sharing)
    grid: Grid = METHODS[recipe.method].grid(8)
    widths = WIDTHS if plan is None else tuple(sorted({layer.bits for layer in plan.layers}))
    sizes = stored_sizes(proto, matched, widths, recipe.form, grid=grid, half=recipe.half, sharing=sharing)[
        rows
    ]
    plain = plain_plans(matched, recipe) if plan is None else plan.plain
    fixed = {one.name: one.bits for one in plain}
    base = base_size(
        proto,
        matched,
        names,
        widths,
        recipe.form,
        fixed=fixed,
        grid=grid,
        corrected=recipe.corrects,
        metadata=metadata,
        half=recipe.half,
        sharing=sharing,
    )
    if plan is None:
        nominal = recipe.target_bits is not None
        chosen = candidate_widths(together.names, widths, together.summed(sizes), bounds, nominal=nominal)
        allowed = chosen[together.rows]
    else:
        allowed = np.array([[width == plan[name].bits for width in widths] for name in names])
    shared = shared_sizes(proto, matched, names, widths, recipe.form, grid=grid)
    # Widths share some of what they bring. What that is, is known only for given bits: here for the fewest.
    columns = cheapest(together.summed(sizes)[together.rows], allowed)
    fewest = dict(zip(names, np.array(widths)[columns].tolist(), strict=True))
    least = predicted_size(
        proto,
        matched,
        fewest | fixed,
        recipe.form,
        grid=grid,
        corrected=recipe.corrects,
        metadata=metadata,
        half=recipe.half,
    )
    smallest = int(sizes[np.arange(len(names)), columns].sum())
    brought = int(shared[np.unique(columns)].sum())
    spare = base + smallest + brought - least
    table = CostTable(names, widths, np.zeros(sizes.shape), sizes, base, "", shared, spare)
    if plan is None:
        require_affordable(matched, recipe, table)
    return Sizes(table, allowed)


def predict(
    proto: ModelProto,
    matched: MatchReport,
    sizes: Sizes,
    recipe: Recipe,
    statistics: Mapping[str, LayerStatistics],
    *,
    feeds: Sequence[Mapping[str, Value]] | None,
    source: str,
    progress: Progress | None = None,
) -> tuple[CostTable, tuple[str, ...]]:
    """Cost table with the noise at the network's outputs when one layer alone is quantized, and remarks.

    What a layer's noise becomes on its way to the outputs is a factor that hardly depends on how much of it
    there is. It is measured on ``feeds`` at the narrowest width, and multiplies the noise at the layer's own
    output at every width; or it is computed in closed form, where ``feeds`` are None or the model cannot be
    run from the middle. ``source`` names where it comes from: "bn", "probe" or "measured".
    """
    constants = ConstantTable(proto)
    widths = sizes.table.widths
    allowed = dict(zip(sizes.table.layers, sizes.allowed, strict=True))
    layers = [
        layer
        for layer in matched.layers
        if layer.name in allowed and statistics[layer.name].input is not None
    ]
    probed = set() if feeds is None else _probed(layers)
    measured = None if feeds is None else OutputNoise(proto, constants, matched.layers, feeds)
    local: dict[str, Array] = {}
    factors: dict[str, float] = {}
    notes: tuple[str, ...] = ()

    def rounded(some: Sequence[Layer]) -> list[dict[float, Candidate]]:
        return candidates(
            some,
            [constants[layer.weight].astype(np.float32, copy=False) for layer in some],
            [seen for layer in some if (seen := statistics[layer.name].input) is not None],
            [_tried(widths, allowed[layer.name]) for layer in some],
            recipe,
        )

    def sketched(layer: Layer) -> dict[float, Candidate]:
        fewer, weight = _some_channels(layer, constants[layer.weight])
        seen = statistics[layer.name].input
        assert seen is not None
        return candidates([fewer], [weight], [seen], [_tried(widths, allowed[layer.name])], recipe)[0]

    small = [layer for layer in layers if layer.size <= TOGETHER]
    every = dict(zip([layer.name for layer in small], rounded(small), strict=True))
    for layer in layers:
        tried = every.pop(layer.name, None)
        if tried is None and layer.size > MOST_SKETCHED and layer.name not in probed and layer.group == 1:
            tried = sketched(layer)
        tried = tried or rounded([layer])[0]  # a large one is in memory by itself
        vectors = [_is_vector(recipe, width, layer) for width in widths]
        local[layer.name] = spread({width: one.noise for width, one in tried.items()}, widths, vectors)
        narrowest = min(tried)
        if measured is not None and layer.name in probed and tried[narrowest].noise > 0:
            try:
                at_outputs = measured.noise(layer, {narrowest: tried[narrowest]})[narrowest]
                factors[layer.name] = at_outputs / tried[narrowest].noise
            except (ModelError, UnsupportedError) as error:
                measured, source, notes = None, "bn", (f"noise at the outputs in closed form: {error}",)
        if progress is not None:
            progress("predict", len(local), len(layers))
    amplified = amplification(proto, matched.layers, statistics)
    computed = {layer.name: noise_at_outputs(amplified, layer, 1.0) for layer in layers}
    found = computed if measured is None else _interpolated(layers, factors, computed)
    noise = np.stack([found[layer.name] * local[layer.name] for layer in layers])
    return replace(sizes.table, noise=noise, source=source), notes


def _some_channels(layer: Layer, weight: NDArray[Any]) -> tuple[Layer, NDArray[np.float32]]:
    """Some of the output channels of a layer, evenly spread, and their weight: noise is a mean over them."""
    keep = slice(None, None, -(-layer.size // MOST_SKETCHED))
    kept = np.ascontiguousarray(weight[keep] if layer.axis == 0 else weight[:, keep], np.float32)
    norm = layer.batch_norm
    if norm is not None:
        parts = {name: getattr(norm, name)[keep] for name in ("gamma", "beta", "mean", "var")}
        norm = replace(norm, **parts)
    fewer = replace(layer, shape=kept.shape, channels=kept.shape[layer.axis], batch_norm=norm)
    return fewer, kept


def _probed(layers: Sequence[Layer]) -> set[str]:
    """Layers whose way to the outputs is measured: all of a small network, and some of a large one, evenly
    spread over the depth, depthwise layers and others each.
    """
    chosen: set[str] = set()
    for some in _classes(layers):
        count = max(2, round(PROBED * len(some) / len(layers)))
        places = np.unique(np.rint(np.linspace(0, len(some) - 1, min(count, len(some)))).astype(int))
        chosen |= {some[place].name for place in places}
    return chosen


def _interpolated(
    layers: Sequence[Layer], factors: Mapping[str, float], computed: Mapping[str, float]
) -> dict[str, float]:
    """Factor of every layer: as measured, or as computed times what measured and computed ones differ by at
    the layers before and after it, by powers.
    """
    found: dict[str, float] = dict(computed)
    for some in _classes(layers):
        known = [
            index
            for index, layer in enumerate(some)
            if factors.get(layer.name, 0) > 0 and computed[layer.name] > 0
        ]
        if known:
            ratios = np.log([factors[some[index].name] / computed[some[index].name] for index in known])
            every = np.exp(np.interp(np.arange(len(some)), known, ratios))
            found |= {
                layer.name: computed[layer.name] * each for layer, each in zip(some, every, strict=True)
            }
        found |= {layer.name: factors[layer.name] for layer in some if layer.name in factors}
    return found


def _classes(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers of one group, and of several: noise passes these in other ways."""
    split = [[layer for layer in layers if (layer.group > 1) is grouped] for grouped in (False, True)]
    return [some for some in split if some]


def _is_vector(recipe: Recipe, width: float, layer: Layer) -> bool:
    return recipe.form.grid(METHODS[recipe.method].grid(width), width, layer) == "vector"


def spread(measured: Mapping[float, float], widths: Sequence[float], vectors: Sequence[bool] = ()) -> Array:
    """Noise at every width from that at some: by powers between two of them, beyond them by the square of the
    step.

    ``measured`` maps bits to noise; ``widths`` are ascending, and ``vectors`` says where codes are vectors.
    The result, shape (widths,), never rises with the bits.

    Examples
    --------
    >>> spread({2: 0.09, 4: 0.01}, (2, 3, 4, 5)).round(4).tolist()
    [0.09, 0.03, 0.01, 0.0023]
    """
    tried = np.array(sorted(measured))
    noise = np.array([measured[width] for width in tried])
    at = np.array(widths)
    # Along the widths noise falls as that of vectors does; that of scalars is so much higher.
    above = np.where(vectors, 1, SCALAR_NOISE) if any(vectors) else np.ones(len(at))
    noise = noise / above[np.searchsorted(at, tried)]
    floor = np.finfo(np.float64).tiny
    between = np.exp(np.interp(at, tried, np.log(np.maximum(noise, floor))))
    nearest = np.clip(at, tried[0], tried[-1])
    everywhere: Array = above * between * (_steps(nearest) / _steps(at)) ** 2
    return np.minimum.accumulate(everywhere)


def _steps(widths: Array) -> Array:
    """Steps between the levels of each width."""
    return np.array([LEVELS[float(width)] - 1.0 for width in widths])


def _tried(widths: Sequence[float], allowed: NDArray[np.bool_]) -> list[float]:
    """Widths to quantize at: the narrowest that is allowed, and the widest of those to go on from."""
    wanted = [min(width, WIDEST_TRIED) for width, yes in zip(widths, allowed, strict=True) if yes]
    return sorted({wanted[0], wanted[-1]})


# ------------------------------------------------------------------------------------------ what a plan will
# cost


def with_sizes(
    plan: QuantPlan, proto: ModelProto, matched: MatchReport, recipe: Recipe, metadata: Mapping[str, str]
) -> QuantPlan:
    """Plan with the bytes that its bits will take."""
    zeros = any(layer.grid in ("asymmetric", "vector") for layer in plan.layers)
    grid: Grid = "asymmetric" if zeros else "symmetric"
    widths = sorted(set(plan.bits.values()))
    stored = stored_sizes(
        proto,
        matched,
        widths,
        plan.form,
        grid=grid,
        half=recipe.half,
        sharing=matched.sharing({layer.name: layer.bits for layer in plan.layers}),
    )
    rows = {one.name: row for row, one in enumerate(matched.weights)}
    sizes = {name: int(stored[rows[name], widths.index(bits)]) for name, bits in plan.bits.items()}
    total = predicted_size(
        proto,
        matched,
        plan.bits,
        plan.form,
        grid=grid,
        corrected=recipe.corrects,
        metadata=metadata,
        half=recipe.half,
    )
    return _with_sizes(plan, sizes, total)


def with_noise(
    plan: QuantPlan,
    proto: ModelProto,
    matched: MatchReport,
    solved: Sequence[QuantizedLayer],
    statistics: Mapping[str, LayerStatistics],
) -> QuantPlan:
    """Plan with the noise that the layers, as quantized, make at the outputs, in closed form.

    The plan stays as it is where a layer's own noise is not known.
    """
    local = {done.name: done.predicted_sqnr_db for done in solved if done.source != "none"}
    if len(local) < len(solved) or None in local.values():
        return plan
    amplified = amplification(proto, matched.layers, statistics)
    layers = {layer.name: layer for layer in matched.layers}
    noise = {
        name: noise_at_outputs(amplified, layers[name], 10 ** (-sqnr / 10))
        for name, sqnr in local.items()
        if sqnr is not None
    }
    return _with_noise(plan, noise, "bn")


def _with_sizes(plan: QuantPlan, sizes: Mapping[str, int], total: int) -> QuantPlan:
    layers = tuple(replace(layer, bytes=sizes[layer.name]) for layer in plan.layers)
    plain = tuple(replace(one, bytes=sizes[one.name]) for one in plan.plain)
    return replace(plan, layers=layers, plain=plain, predicted_bytes=total)


def _with_noise(plan: QuantPlan, noise: Mapping[str, float], source: str) -> QuantPlan:
    total = sum(noise.values())
    return replace(
        plan,
        layers=tuple(replace(layer, noise=noise[layer.name]) for layer in plan.layers),
        predicted_sqnr_db=-10 * float(np.log10(total)) if total > 0 else None,
        source=source,
    )
