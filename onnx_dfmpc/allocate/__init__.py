"""Bits per layer: as the recipe gives them, or as a cost table makes them worth their bytes (NumPy alone).

fixed      the same bits everywhere, or pairs of a low and a high layer along the chains
knapsack   the least noise for every number of bytes
budget     a target or a preset to a plan, with reasons
"""

from onnx_dfmpc.allocate.budget import (
    allocate_budget,
    budgets,
    candidate_widths,
    cheapest,
    mean_bits,
    require_affordable,
    sweep,
)
from onnx_dfmpc.allocate.fixed import allocate, layer_plan, pairs, selected_layers
from onnx_dfmpc.allocate.knapsack import Frontier, choose, frontier

__all__ = [
    "Frontier",
    "allocate",
    "allocate_budget",
    "budgets",
    "candidate_widths",
    "cheapest",
    "choose",
    "frontier",
    "layer_plan",
    "mean_bits",
    "pairs",
    "require_affordable",
    "selected_layers",
    "sweep",
]
