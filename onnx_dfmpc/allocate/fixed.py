"""Bits per layer: pairs of a low and a high layer along the chains, or the same bits everywhere, and the
user's own rules on top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnx_dfmpc.recipe import BitBounds, Recipe, bit_bounds
from onnx_dfmpc.spec import Grid, Layer, LayerPlan, MatchReport, QuantPlan, Role, Rounding, Skipped

Noise = Callable[[Layer, int], float]

RESIDUAL_SHARE = 0.5
"""Noise that enters a residual stream counts against the stream's variance, of which the branch is about
half.
"""


def allocate(report: MatchReport, recipe: Recipe, model_sha256: str, noise: Noise) -> QuantPlan:
    """Decide for every matched layer how many bits it gets, and why.

    Parameters
    ----------
    report : MatchReport
    recipe : Recipe
    model_sha256 : str
        Of the model that the plan is for.
    noise : callable
        ``noise(layer, bits)`` predicts a layer's noise relative to its output.

    Returns
    -------
    QuantPlan
        ``skipped`` holds the layers that the recipe leaves out, behind those that matching skipped.

    Raises
    ------
    RecipeError
        If the recipe names a layer that is not there.
    """
    found = bit_bounds(report, recipe)
    layers = [layer for layer in report.layers if not found[layer.name].excluded]
    roles = _roles(layers, report, recipe, noise)
    plans = tuple(_within(layer, *roles[layer.name], recipe, found[layer.name]) for layer in layers)
    return QuantPlan(model_sha256, plans, report.skipped + left_out(report, found))


def selected_layers(report: MatchReport, recipe: Recipe) -> tuple[tuple[Layer, ...], tuple[Skipped, ...]]:
    """Layers that the recipe wants quantized, and everything that stays float."""
    found = bit_bounds(report, recipe)
    return tuple(
        layer for layer in report.layers if not found[layer.name].excluded
    ), report.skipped + left_out(report, found)


def left_out(report: MatchReport, found: Mapping[str, BitBounds]) -> tuple[Skipped, ...]:
    """The matched layers that the recipe excludes, with its reason."""
    return tuple(
        Skipped(layer.name, layer.op_type, found[layer.name].reason)
        for layer in report.layers
        if found[layer.name].excluded
    )


def pairs(layers: Sequence[Layer], report: MatchReport) -> list[tuple[str, tuple[str, ...]]]:
    """Pair producers with their consumers along the chains, each layer in at most one pair, the layers at the
    edges in none.

    Returns
    -------
    list of (producer, consumers)
    """
    free = {layer.name for layer in layers if not layer.edge}
    found = []
    chains = {chain.producer: chain for chain in report.chains}
    for layer in layers:
        chain = chains.get(layer.name)
        if chain is None or layer.name not in free:
            continue
        consumers = tuple(name for name in chain.consumers if name in free and name != layer.name)
        if consumers and len(consumers) == len(chain.consumers):
            found.append((layer.name, consumers))
            free -= {layer.name, *consumers}
    return found


def _roles(
    layers: Sequence[Layer], report: MatchReport, recipe: Recipe, noise: Noise
) -> dict[str, tuple[Role, int, str]]:
    """Role, bits and reason of each layer."""
    roles: dict[str, tuple[Role, int, str]] = {}
    if recipe.bits is not None:
        roles = {
            layer.name: ("inner", recipe.bits, f"{recipe.bits} bits for every layer") for layer in layers
        }
    else:
        assert recipe.low_bits is not None
        assert recipe.high_bits is not None
        by_name = {layer.name: layer for layer in layers}
        for layer in layers:
            roles[layer.name] = ("high", recipe.high_bits, "in no pair")
        for producer, consumers in pairs(layers, report):
            first = _low_comes_first(
                by_name[producer], [by_name[name] for name in consumers], report, recipe, noise
            )
            low, high = ((producer,), consumers) if first else (consumers, (producer,))
            for name in low:
                roles[name] = ("low", recipe.low_bits, f"paired with {', '.join(high)}")
            for name in high:
                roles[name] = ("high", recipe.high_bits, f"paired with {', '.join(low)}")
    for layer in layers:
        if layer.edge and recipe.edge_bits is not None:
            roles[layer.name] = ("edge", recipe.edge_bits, "")
    return roles


def _low_comes_first(
    producer: Layer, consumers: Sequence[Layer], report: MatchReport, recipe: Recipe, noise: Noise
) -> bool:
    """Whether the producer of a pair takes the low bits: as published, or where that makes less noise."""
    if recipe.method == "paper":
        return True
    low, high = recipe.low_bits, recipe.high_bits
    assert low is not None
    assert high is not None
    summed = {chain.producer for chain in report.chains if "Add" in chain.path}

    def heard(layer: Layer, bits: int) -> float:
        return noise(layer, bits) * (RESIDUAL_SHARE if layer.name in summed else 1.0)

    first = heard(producer, low) + max(heard(layer, high) for layer in consumers)
    second = heard(producer, high) + max(heard(layer, low) for layer in consumers)
    return first < second


def layer_plan(layer: Layer, role: Role, bits: int, reason: str, recipe: Recipe) -> LayerPlan:
    """Plan of one layer at some bits: grid and rounding are the method's."""
    paper = recipe.method == "paper"
    grid: Grid = "asymmetric"
    if paper:
        grid = "ternary" if bits == 2 else "symmetric"
    rounding: Rounding = recipe.rounding or ("nearest" if paper else "gptq")
    return LayerPlan(layer.name, bits, role, grid, rounding, not paper, reason)


def _within(
    layer: Layer, role: Role, bits: int, reason: str, recipe: Recipe, allowed: BitBounds
) -> LayerPlan:
    """Plan within what the recipe allows."""
    within = min(max(bits, allowed.low), allowed.high)
    if within != bits or allowed.bits is not None:
        reason, bits = allowed.reason, within
    return layer_plan(layer, role, bits, reason, recipe)
