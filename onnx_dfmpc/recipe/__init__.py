"""What the user wants: every knob and its default, rules for single layers, TOML in and out.

checks    one check for each kind of value
rules     bits, bounds and exclusion by node, regex or op_type
files     recipe files, with sections or flat
knobs     the `Recipe`
limits    what a recipe leaves open for each layer
"""

from onnx_dfmpc.recipe.checks import nearest, parse_size
from onnx_dfmpc.recipe.files import read_recipe
from onnx_dfmpc.recipe.knobs import DEFAULT_BITS, GATE_KEYS, KINDS, PRESETS, Recipe
from onnx_dfmpc.recipe.limits import Limits, limits, nearest_layer
from onnx_dfmpc.recipe.rules import Rule

__all__ = [
    "DEFAULT_BITS",
    "GATE_KEYS",
    "KINDS",
    "PRESETS",
    "Limits",
    "Recipe",
    "Rule",
    "limits",
    "nearest",
    "nearest_layer",
    "parse_size",
    "read_recipe",
]
