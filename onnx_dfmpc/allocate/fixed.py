"""Bits per layer: pairs of a low and a high layer along the chains, or the same bits everywhere, and rules on
top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnx_dfmpc.allocate.plain import plain_plans
from onnx_dfmpc.allocate.together import with_reasons
from onnx_dfmpc.methods import METHODS
from onnx_dfmpc.recipe import BitBounds, Recipe, bit_bounds
from onnx_dfmpc.spec import Layer, LayerPlan, MatchReport, QuantPlan, Role, Skipped

Noise = Callable[[Layer, float], float]

RESIDUAL_SHARE = 0.5
"""Noise that enters a residual stream counts against the stream's variance, of which the branch is about
half.
"""


def allocate_fixed(matched: MatchReport, recipe: Recipe, model_sha256: str, noise: Noise) -> QuantPlan:
    """Bits of every matched layer, and why, where the recipe gives them itself.

    ``noise(layer, bits)`` predicts a layer's noise relative to its output. The layers that the recipe leaves
    out are skipped, after those that matching skipped.

    Raises
    ------
    RecipeError
        If the recipe names a layer that is not there.
    """
    bounds = bit_bounds(matched, recipe)
    layers = [layer for layer in matched.layers if not bounds[layer.name].excluded]
    roles = _roles(layers, matched, recipe, noise)
    plans = tuple(_bounded(layer, *roles[layer.name], recipe, bounds[layer.name]) for layer in layers)
    skipped = matched.skipped + left_out(matched, bounds)
    return QuantPlan(model_sha256, with_reasons(plans, matched), skipped, plain=plain_plans(matched, recipe))


def selected_layers(matched: MatchReport, recipe: Recipe) -> tuple[tuple[Layer, ...], tuple[Skipped, ...]]:
    """Layers that the recipe wants quantized, and everything that stays float."""
    bounds = bit_bounds(matched, recipe)
    layers = tuple(layer for layer in matched.layers if not bounds[layer.name].excluded)
    return layers, matched.skipped + left_out(matched, bounds)


def left_out(matched: MatchReport, bounds: Mapping[str, BitBounds]) -> tuple[Skipped, ...]:
    """The matched layers, and other weights, that the recipe excludes, with its reason."""
    return tuple(
        Skipped(one.name, one.op_type, bounds[one.name].reason)
        for one in matched.weights
        if bounds[one.name].excluded
    )


def pairs(layers: Sequence[Layer], matched: MatchReport) -> list[tuple[str, tuple[str, ...]]]:
    """Producers with their consumers along the chains, by name.

    Each layer is in at most one pair, and the first and the last layers are in none, nor those that read the
    weight of an earlier one.
    """
    sharing = matched.sharing(dict.fromkeys(layer.name for layer in layers))
    free = {layer.name for layer in layers if not layer.edge and layer.name not in sharing}
    paired = []
    chains = {chain.producer: chain for chain in matched.chains}
    for layer in layers:
        chain = chains.get(layer.name)
        if chain is None or layer.name not in free:
            continue
        consumers = tuple(name for name in chain.consumers if name in free and name != layer.name)
        if consumers and len(consumers) == len(chain.consumers):
            paired.append((layer.name, consumers))
            free -= {layer.name, *consumers}
    return paired


def _roles(
    layers: Sequence[Layer], matched: MatchReport, recipe: Recipe, noise: Noise
) -> dict[str, tuple[Role, float, str]]:
    """Role, bits and reason of each layer."""
    roles: dict[str, tuple[Role, float, str]] = {}
    if not layers:  # there is no pair, and a target is no matter of bits
        return roles
    if recipe.bits is not None:
        roles = {
            layer.name: ("inner", recipe.bits, f"{recipe.bits} bits for every layer") for layer in layers
        }
    else:
        assert recipe.low_bits is not None
        assert recipe.high_bits is not None
        by_name = {layer.name: layer for layer in layers}
        roles = {layer.name: ("high", recipe.high_bits, "in no pair") for layer in layers}
        for producer, consumers in pairs(layers, matched):
            first = _low_comes_first(
                by_name[producer], [by_name[name] for name in consumers], matched, recipe, noise
            )
            low, high = ((producer,), consumers) if first else (consumers, (producer,))
            for name in low:
                roles[name] = ("low", recipe.low_bits, f"paired with {', '.join(high)}")
            for name in high:
                roles[name] = ("high", recipe.high_bits, f"paired with {', '.join(low)}")
        sharing = matched.sharing(dict.fromkeys(by_name))
        roles |= {name: roles[first] for name, first in sharing.items()}
    for layer in layers:
        if layer.edge and recipe.edge_bits is not None:
            roles[layer.name] = ("edge", recipe.edge_bits, "")
    return roles


def _low_comes_first(
    producer: Layer, consumers: Sequence[Layer], matched: MatchReport, recipe: Recipe, noise: Noise
) -> bool:
    """Whether the producer of a pair takes the low bits: as published, or where that makes less noise."""
    if METHODS[recipe.method].low_first:
        return True
    low, high = recipe.low_bits, recipe.high_bits
    assert low is not None
    assert high is not None
    summed = {chain.producer for chain in matched.chains if "Add" in chain.path}

    def weighted(layer: Layer, bits: float) -> float:
        return noise(layer, bits) * (RESIDUAL_SHARE if layer.name in summed else 1.0)

    first = weighted(producer, low) + max(weighted(layer, high) for layer in consumers)
    second = weighted(producer, high) + max(weighted(layer, low) for layer in consumers)
    return first < second


def layer_plan(layer: Layer, role: Role, bits: float, reason: str, recipe: Recipe) -> LayerPlan:
    """Plan of one layer at some bits: grid and rounding are the method's."""
    method = METHODS[recipe.method]
    rounding = recipe.rounding or method.rounding
    grid = recipe.form.grid(method.grid(bits), bits, layer)
    return LayerPlan(layer.name, bits, role, grid, rounding, method.per_channel, reason)


def _bounded(
    layer: Layer, role: Role, bits: float, reason: str, recipe: Recipe, bound: BitBounds
) -> LayerPlan:
    """Plan within what the recipe allows."""
    within = min(max(bits, bound.low), bound.high)
    if within != bits or bound.bits is not None:
        reason, bits = bound.reason, within
    return layer_plan(layer, role, bits, reason, recipe)
