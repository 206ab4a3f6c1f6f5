"""Bits per layer: as the recipe gives them, or as a cost table makes them worth their bytes (NumPy alone).

fixed      the same bits everywhere, or pairs of a low and a high layer along the chains
knapsack   the least noise for every number of bytes
budget     a target or a preset to a plan, with reasons
"""

from onnx_dfmpc.allocate.budget import budgets, mean_bits, open_widths, require_affordable, smallest, spend, sweep
from onnx_dfmpc.allocate.fixed import allocate, chosen, layer_plan, pairs
from onnx_dfmpc.allocate.knapsack import Frontier, choose, frontier

__all__ = [
    "Frontier",
    "allocate",
    "budgets",
    "choose",
    "chosen",
    "frontier",
    "layer_plan",
    "mean_bits",
    "open_widths",
    "pairs",
    "require_affordable",
    "smallest",
    "spend",
    "sweep",
]
