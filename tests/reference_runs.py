"""Pairs of model and recipe whose output files are known, so that a change of the code that should change
nothing can be seen to.

    python -m tests.reference_runs bytes FILE [--only TEXT]          hashes of the output bytes, for this machine alone
    python -m tests.reference_runs compare BEFORE AFTER              which of two such files' hashes differ
    python -m tests.reference_runs record                            what holds on any machine, into reference_runs.json

Bytes are compared before and after a change, on one machine: sums in float arithmetic differ between
processors. What is recorded is what a processor may not change: sizes, bits, element types, and, with a
tolerance, scales and histograms of codes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from onnx_dfmpc import Recipe, apply, plan, quantize

ROOT = Path(__file__).resolve().parents[1]
RECORDED = Path(__file__).with_suffix(".json")
VOLATILE = ("onnx_dfmpc.recipe_sha256", "onnx_dfmpc.version")
"""Metadata that a new knob or a new version changes; no weight depends on it."""

DIGITS = str(ROOT / "models" / "digits_test.npz")


@dataclass(frozen=True)
class Pair:
    """A model, a recipe, and what is done between plan and file."""

    name: str
    model: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    edit: Mapping[str, int] = field(default_factory=dict)
    data: str = ""

    @property
    def shared(self) -> bool:
        """Whether the model is a third party's."""
        return not self.model.startswith("digits")

    @property
    def exact(self) -> bool:
        """Whether codes do not depend on sums in float arithmetic, and so on the processor."""
        return self.recipe.get("rounding") in ("nearest", "squant")


def _pairs() -> list[Pair]:
    bn, folded = "digits_resnet_bn", "digits_resnet_folded"
    found: list[Pair] = []

    def add(model: str, data: str = "", edit: Mapping[str, int] | None = None, **recipe: Any) -> None:
        short = model.replace("digits_resnet_", "")
        words = [f"{key}={value}" for key, value in recipe.items() if key not in ("data", "calibration_data")]
        words += [key for key in ("data", "calibration_data") if key in recipe] + (
            ["calibrated"] if data else []
        )
        words += [f"edited {edit}"] if edit else []
        found.append(Pair(f"{short}: {', '.join(words) or 'default'}", model, recipe, edit or {}, data))

    for bits in range(2, 9):
        add(bn, bits=bits)
    for bits in (2, 3, 4):
        add(folded, bits=bits)
    for low, high in ((2, 6), (3, 6), (2, 4)):
        add(bn, low_bits=low, high_bits=high)
    add(bn, low_bits=2, high_bits=6, first_last_bits=4)
    add(folded, low_bits=2, high_bits=6)
    plain = {"rounding": "nearest", "repair": "none"}
    for storage, bits, unpack in (
        ("table", 2, "none"), ("table", 1.58, "float"), ("table", 2.58, "int8"),
        ("native", 2, "int8"), ("native", 3, "int8"), ("native", 4, "float"), ("native", 6, "int8"), ("native", 2, "float"),
        ("table", 3, "none"), ("table", 5, "none"), ("table", 6, "none"), ("table", 7, "none"),
        ("table", 3, "int8"), ("table", 6, "float"), ("table", 5, "int8"), ("table", 7, "float"),
    ):  # fmt: skip
        add(bn, bits=bits, storage=storage, unpack=unpack, **plain)
    add(bn, bits=2, fold_batch_norm="yes")
    add(bn, low_bits=2, high_bits=6, fold_batch_norm="yes", storage="native")
    add(bn, target_bits=3.0, fold_batch_norm="no")
    for rounding in ("nearest", "squant"):
        for bits in (2, 4):
            add(bn, bits=bits, rounding=rounding)
    add(folded, bits=3, rounding="squant")
    add(bn, bits=2, repair="mean")
    add(bn, bits=2, repair="gain")
    add(bn, bits=3, repair="none")
    for absorb in ("producer", "consumer"):
        add(bn, method="paper", low_bits=2, high_bits=6, absorb=absorb)
    add(bn, method="paper", low_bits=3, high_bits=6, lambda1=0.1, lambda2=0.2)
    add(bn, method="paper", low_bits=2, high_bits=6, repair="mean")
    add(bn, method="paper", low_bits=2, high_bits=6, repair="gain")
    add(folded, method="paper", low_bits=2, high_bits=6)
    add(bn, method="paper", bits=4, rounding="squant")
    add(bn, target_size="60KiB")
    add(bn, target_bits=3.5)
    add(bn)
    add(folded)
    add(bn, target_sqnr_db=22.0)
    for preset in ("smallest", "balanced", "lossless"):
        add(bn, preset=preset)
    add(bn, target_bits=4.0, min_bits=3, max_bits=6)
    add(bn, target_bits=3.0, storage="native", first_last_bits=8)
    add(bn, bits=4, set={"conv2": 6, "fc": 8}, nodes_to_exclude=["/blocks/blocks.0/conv1/Conv"])
    add(
        bn,
        target_size="60KiB",
        rules=[{"op_type": "Gemm", "min_bits": 4}, {"regex": "blocks.1", "max_bits": 3}],
    )
    add(bn, edit={"/blocks/blocks.1/conv1/Conv": 5}, low_bits=2, high_bits=6)
    add(bn, edit={"/fc/Gemm": 6}, target_bits=3.0)
    add(bn, bits=3, calibration_data=DIGITS)
    add(bn, target_bits=3.0, calibration_data=DIGITS)
    add(bn, bits=3, seed=3)
    add(bn, bits=3, input_range=(0.0, 1.0))
    for model in (
        "cifar10_resnet20_bn", "cifar10_resnet20_folded", "cifar10_resnet56_bn", "cifar10_resnet56_folded",
        "cifar10_resnet8_keras_bn", "cifar10_shufflenetv2_x0_5_bn", "cifar10_shufflenetv2_x0_5_folded",
        "fastestdet_folded", "fer_xception_bn", "har_conv1d_bn", "har_conv1d_folded",
        "imagenet_mobilenet_v1_025_128_folded", "imagenet_squeezenet1_1", "ultraface_rfb_320_bn", "wakeword_bn", "yunet_s_dynamic",
    ):  # fmt: skip
        add(model, low_bits=3, high_bits=6)
    for model in (
        "cifar10_resnet20_bn",
        "cifar10_resnet8_keras_bn",
        "cifar10_shufflenetv2_x0_5_folded",
        "har_conv1d_folded",
    ):
        add(model, target_bits=3.0)
    add("cifar10_resnet56_bn", low_bits=2, high_bits=6, method="paper")
    add("har_conv1d_bn", data="har_test", bits=3)
    return found


PAIRS = _pairs()


def shared_dir() -> Path:
    """Where the third-party networks are."""
    return Path(os.environ.get("DFMPC_SHARED") or ROOT.parent / "shared")


def run(pair: Pair) -> ModelProto:
    """Quantized model of a pair; nothing is validated."""
    path = (
        shared_dir() / "models" / f"{pair.model}.onnx"
        if pair.shared
        else ROOT / "models" / f"{pair.model}.onnx"
    )
    knobs = dict(pair.recipe)
    if pair.data:
        knobs["calibration_data"] = str(shared_dir() / "data" / f"{pair.data}.npz")
    recipe = Recipe(**knobs)
    if not pair.edit:
        return quantize(path, None, recipe, validated=False).model
    made = plan(path, recipe)
    layers = tuple(replace(layer, bits=pair.edit.get(layer.name, layer.bits)) for layer in made.layers)
    edited = replace(made, layers=layers, predicted_bytes=None, predicted_sqnr_db=None)
    return apply(path, edited, validated=False).model


def bytes_hash(model: ModelProto) -> str:
    """Hash of a model's bytes, the volatile metadata left out."""
    copy = ModelProto()
    copy.CopyFrom(model)
    kept = [entry for entry in copy.metadata_props if entry.key not in VOLATILE]
    del copy.metadata_props[:]
    copy.metadata_props.extend(kept)
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()


INTEGERS = {
    getattr(TensorProto, name): name
    for name in ("INT2", "UINT2", "INT4", "UINT4", "INT8", "UINT8")
    if hasattr(TensorProto, name)
}


def fingerprint(model: ModelProto, *, exact: bool) -> dict[str, Any]:
    """What holds on any machine: size, bits, element types, mean codes and scales of every stored tensor."""
    bits = next(json.loads(entry.value) for entry in model.metadata_props if entry.key == "onnx_dfmpc.bits")
    new = [tensor for tensor in model.graph.initializer if tensor.name.startswith("q")]
    codes, scales = {}, {}
    for tensor in new:
        array = numpy_helper.to_array(tensor)
        if tensor.data_type in INTEGERS and array.size > 1:
            values = array.astype(np.int16).ravel()
            plain = (
                hashlib.sha256(values.tobytes()).hexdigest()[:16] if exact else round(float(values.mean()), 3)
            )
            codes[tensor.name] = [INTEGERS[tensor.data_type], list(tensor.dims), plain]
        elif array.dtype.kind == "f" and tensor.name.endswith("s"):
            scales[tensor.name] = float(f"{float(np.abs(array.astype(np.float64)).mean()):.5g}")
    return {"bytes": model.ByteSize(), "bits": sorted(bits.items()), "codes": codes, "scales": scales}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.reference_runs", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    hashes = commands.add_parser("bytes")
    hashes.add_argument("file", type=Path)
    hashes.add_argument("--only", default="", help="pairs whose name has this in it")
    hashes.add_argument("--part", default="0/1", help="K/N: every Nth pair from the Kth on")
    compare = commands.add_parser("compare")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    commands.add_parser("record")
    options = parser.parse_args(arguments)
    if options.command == "compare":
        return _compare(json.loads(options.before.read_text()), json.loads(options.after.read_text()))
    if options.command == "record":
        found = {pair.name: fingerprint(run(pair), exact=pair.exact) for pair in PAIRS}
        RECORDED.write_text(
            "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()) + "\n}\n",
            encoding="utf-8",
        )
        return 0
    part, parts = map(int, options.part.split("/"))
    found = {}
    for pair in [pair for pair in PAIRS if options.only in pair.name][part::parts]:
        start = time.process_time()
        try:
            found[pair.name] = bytes_hash(run(pair))
        except Exception as error:  # a pair that fails is a result too
            found[pair.name] = f"{type(error).__name__}: {error}"
        print(f"{time.process_time() - start:7.1f} s  {found[pair.name][:12]}  {pair.name}", flush=True)
        options.file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


def _compare(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    shared = [name for name in before if name in after]
    differ = [name for name in shared if before[name] != after[name]]
    print(f"{len(shared)} pairs, {len(differ)} differ")
    for name in differ:
        print(f"  {name}: {before[name][:60]} -> {after[name][:60]}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
