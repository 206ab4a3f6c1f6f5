"""What the user wants: every knob and its default, rules for single layers, TOML in and out.

checks    one check for each kind of value
rules     bits, bounds and exclusion by node, regex or op_type
images    how pictures become inputs
gates     limits on how far outputs may move
files     recipe files, with sections or flat
knobs     the `Recipe`
limits    what a recipe leaves open for each layer
"""

from onnx_dfmpc.recipe.checks import nearest, parse_size
from onnx_dfmpc.recipe.files import read_recipe
from onnx_dfmpc.recipe.gates import GATE_KEYS, OUTPUT_GATE_KEYS, Gates
from onnx_dfmpc.recipe.images import Preprocessing
from onnx_dfmpc.recipe.knobs import DEFAULT_BITS, KINDS, PRESETS, Recipe
from onnx_dfmpc.recipe.limits import BitBounds, limits, nearest_layer
from onnx_dfmpc.recipe.rules import Rule

__all__ = [
    "DEFAULT_BITS",
    "GATE_KEYS",
    "KINDS",
    "OUTPUT_GATE_KEYS",
    "PRESETS",
    "BitBounds",
    "Gates",
    "Preprocessing",
    "Recipe",
    "Rule",
    "limits",
    "nearest",
    "nearest_layer",
    "parse_size",
    "read_recipe",
]
