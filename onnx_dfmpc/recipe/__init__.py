"""What the user wants: settings in groups, rules for single layers, recipe files.

recipe    the groups (`Bits`, `Method`, `Storage`, `Data`, `Gates`) and the `Recipe` that has them all
rules     bits, bounds and exclusion by node, regex or op_type; the bounds of every layer that follow
toml      recipe files
values    checks of single values, and the fields that carry them
"""

from onnx_dfmpc.recipe.recipe import (
    PRESETS,
    Bits,
    Data,
    DataSource,
    Gates,
    LabelSource,
    Preprocessing,
    Recipe,
)
from onnx_dfmpc.recipe.rules import BitBounds, Rule, bit_bounds, nearest_layer
from onnx_dfmpc.recipe.values import nearest, parse_size

__all__ = [
    "PRESETS", "BitBounds", "Bits", "Data", "DataSource", "Gates", "LabelSource", "Preprocessing", "Recipe",
    "Rule", "bit_bounds", "nearest", "nearest_layer", "parse_size",
]  # fmt: skip
