"""What the constants of rounding and repair are worth: output SQNR on training images, one constant changed.

    python -m benchmarks.constants SHRINKAGE 0.05 0.1 0.2
    python -m benchmarks.constants RATIOS "{2: (0.75,)}" --networks cifar10_shufflenetv2_x0_5_bn --bits 2

Training images where a network has some, so that its test images stay unseen; first and last layer in 8 bits, mean over two seeds.
"""

from __future__ import annotations

import argparse
import ast
from types import ModuleType

import numpy as np

from benchmarks import package
from benchmarks.evaluate import Reference, reference
from benchmarks.networks import network
from onnx_dfmpc import Recipe, compensate
from onnx_dfmpc.rounding import gptq, regularize

CONSTANTS: dict[str, ModuleType] = {
    **dict.fromkeys(("DAMPING", "RATIOS", "ZERO_POINT_STEPS", "SWEEPS"), gptq),
    **dict.fromkeys(
        ("SHRINKAGE", "SAMPLES_PER_INPUT", "LEAST_PATTERN", "MEAN_RELATIVE_VARIANCE"), regularize
    ),
    "MAX_GAIN": compensate,
}
NETWORKS = ("cifar10_resnet20_bn",)
SEEDS = (0, 1)


def sqnr_db(images: Reference, name: str, bits: int) -> float:
    """Mean output SQNR of a network in that many bits."""
    recipes = (Recipe(bits=bits, first_last_bits=8, seed=seed) for seed in SEEDS)
    scores = [images.score(package.quantize(network(name).path, recipe).model) for recipe in recipes]
    return float(np.mean([score.sqnr_db for score in scores]))


def main() -> None:
    """Print one line for each value, one number for each network and number of bits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.constants")
    parser.add_argument("constant", choices=CONSTANTS)
    parser.add_argument("values", nargs="+", help="as Python writes them")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--bits", nargs="+", type=int, default=(2, 3))
    options = parser.parse_args()
    sources = [network(name) for name in options.networks]
    data = {one.name: reference(one, one.calibration or one.data[0]) for one in sources}
    runs = [(name, bits) for name in options.networks for bits in options.bits]
    print(options.constant, *(f"{name}/{bits}" for name, bits in runs), sep="\t")
    for value in options.values:
        setattr(CONSTANTS[options.constant], options.constant, ast.literal_eval(value))
        print(value, *(f"{sqnr_db(data[name], name, bits):.2f}" for name, bits in runs), sep="\t", flush=True)


if __name__ == "__main__":
    main()
