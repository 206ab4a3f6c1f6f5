"""What every layer costs at every width, in bytes of the file and in noise at the outputs: the table that
allocation spends from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.allocate import candidate_widths, cheapest, require_affordable
from onnx_dfmpc.layerwise import Progress, Range, provider
from onnx_dfmpc.model.files import LoadedModel
from onnx_dfmpc.recipe import Recipe, bit_bounds
from onnx_dfmpc.rewrite.sizes import base_size, predicted_size, stored_sizes
from onnx_dfmpc.sensitivity.feeds import data_feeds, probe_feeds
from onnx_dfmpc.sensitivity.propagation import NoisePropagation, noise_at_outputs
from onnx_dfmpc.sensitivity.table import predict
from onnx_dfmpc.spec import CostTable, Grid, MatchReport, QuantizedLayer, QuantPlan

Feed = Mapping[str, NDArray[Any]]

WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def cost_table(
    source: LoadedModel,
    report: MatchReport,
    recipe: Recipe,
    *,
    plan: QuantPlan | None = None,
    metadata: Mapping[str, str],
    input_range: Callable[[], Range],
    progress: Progress | None,
) -> tuple[CostTable, tuple[str, ...]]:
    """Bytes and predicted noise of every layer at every width that may be of use.

    Parameters
    ----------
    source : LoadedModel
    report : MatchReport
    recipe : Recipe
    plan : QuantPlan, optional
        Predict the noise of its bits alone; by default, of all that the recipe leaves open.
    metadata : mapping
        What will go into the file, for its size.
    input_range : callable
        Range of synthetic inputs; asked only where some are needed.
    progress : callable or None
        Called with ``("predict", layers done, layers)``.

    Returns
    -------
    CostTable
    tuple of str
        Remarks.

    Raises
    ------
    UnsupportedError
        If the recipe's target cannot be met, before anything is predicted.
    """
    proto, found = source.proto, bit_bounds(report, recipe)
    planned = (
        {name for name in found if not found[name].excluded}
        if plan is None
        else {layer.name for layer in plan.layers}
    )
    rows = [row for row, layer in enumerate(report.layers) if layer.name in planned]
    names = tuple(report.layers[row].name for row in rows)
    grid: Grid = "asymmetric" if recipe.method == "dfmpc" else "symmetric"
    widths = WIDTHS if plan is None else tuple(sorted({layer.bits for layer in plan.layers}))
    sizes = stored_sizes(proto, report, widths, recipe.form, grid=grid)[rows]
    base = base_size(
        proto, report, names, widths, recipe.form, grid=grid, corrected=recipe.corrects, metadata=metadata
    )
    nominal = recipe.target_bits is not None
    opened = (
        candidate_widths(names, widths, sizes, found, nominal=nominal)
        if plan is None
        else _given(plan, names, widths)
    )
    fewest = dict(zip(names, np.array(widths)[cheapest(sizes, opened)].tolist(), strict=True))
    least = predicted_size(
        proto, report, fewest, recipe.form, grid=grid, corrected=recipe.corrects, metadata=metadata
    )
    spare = base + int(np.where(opened, sizes, np.iinfo(np.int64).max).min(axis=1).sum()) - least
    table = CostTable(names, widths, np.zeros(sizes.shape), sizes, base, "", spare)
    if plan is None:
        require_affordable(report, recipe, table)
    kind, feeds = _feeds(source, recipe, input_range)
    predicted = predict(
        proto,
        report.layers,
        widths,
        dict(zip(names, opened, strict=True)),
        recipe,
        provider(source, report, recipe, input_range),
        feeds=feeds,
        source=kind,
        progress=progress,
    )
    return replace(table, noise=predicted.noise, provider=predicted.provider), predicted.notes


def with_costs(plan: QuantPlan, table: CostTable) -> QuantPlan:
    """Plan with what the table says about its bits."""
    rows = {name: row for row, name in enumerate(table.layers)}
    at = {layer.name: (rows[layer.name], table.widths.index(layer.bits)) for layer in plan.layers}
    sizes = {name: int(table.sizes[place]) for name, place in at.items()}
    noise = {name: float(table.noise[place]) for name, place in at.items()}
    return _with_noise(_with_sizes(plan, sizes, table.base + sum(sizes.values())), noise, table.provider)


def with_sizes(
    plan: QuantPlan,
    source: LoadedModel,
    report: MatchReport,
    metadata: Mapping[str, str],
    *,
    corrected: Collection[str],
) -> QuantPlan:
    """Plan with the bytes that its bits will take."""
    proto, form = source.proto, plan.form
    grid: Grid = "asymmetric" if any(layer.grid == "asymmetric" for layer in plan.layers) else "symmetric"
    widths = sorted({layer.bits for layer in plan.layers})
    stored = dict(
        zip(
            (layer.name for layer in report.layers),
            stored_sizes(proto, report, widths, form, grid=grid),
            strict=True,
        )
    )
    sizes = {layer.name: int(stored[layer.name][widths.index(layer.bits)]) for layer in plan.layers}
    bits = {layer.name: layer.bits for layer in plan.layers}
    total = predicted_size(proto, report, bits, form, grid=grid, corrected=corrected, metadata=metadata)
    return _with_sizes(plan, sizes, total)


def with_noise(
    plan: QuantPlan, report: MatchReport, solved: Sequence[QuantizedLayer], flow: NoisePropagation
) -> QuantPlan:
    """Plan with the noise that the layers, as quantized, will make at the outputs, in closed form; as it is
    where one says nothing.
    """
    amplified, layers = flow.amplification(), {layer.name: layer for layer in report.layers}
    known = {
        done.name: done.predicted_sqnr_db
        for done in solved
        if done.predicted_sqnr_db is not None and done.provider != "none"
    }
    if len(known) < len(solved):
        return plan
    noise = {
        name: float(noise_at_outputs(amplified, layers[name], 10 ** (-sqnr / 10)))
        for name, sqnr in known.items()
    }
    return _with_noise(plan, noise, "bn")


def _with_sizes(plan: QuantPlan, sizes: Mapping[str, int], total: int) -> QuantPlan:
    return replace(
        plan,
        layers=tuple(replace(layer, bytes=sizes[layer.name]) for layer in plan.layers),
        predicted_bytes=total,
    )


def _with_noise(plan: QuantPlan, noise: Mapping[str, float], provider: str) -> QuantPlan:
    total = sum(noise.values())
    return replace(
        plan,
        layers=tuple(replace(layer, noise=noise[layer.name]) for layer in plan.layers),
        predicted_sqnr_db=-10 * float(np.log10(total)) if total > 0 else None,
        provider=provider,
    )


def _given(plan: QuantPlan, names: Sequence[str], widths: Sequence[int]) -> NDArray[np.bool_]:
    return np.array([[width == plan[name].bits for width in widths] for name in names])


def _feeds(
    source: LoadedModel, recipe: Recipe, input_range: Callable[[], Range]
) -> tuple[str, Sequence[Feed] | None]:
    """What to call the prediction, and the inputs to measure it on."""
    if recipe.calibration_data is not None:
        data = replace(recipe, data=recipe.calibration_data, labels=None)
        return "measured", data_feeds(source.proto, data)
    shapes = dict(recipe.shapes)
    return "probe", probe_feeds(source.proto, seed=recipe.seed, input_range=input_range(), shapes=shapes)
