"""What runtimes read: limits that were tried, version by version, and the storage that suits each.

`python -m benchmarks.runtimes` runs our files in all of them, and docs/runtimes.md has what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

NEWEST_OPSET = 27
"""Highest opset for which ONNX Runtime implements DequantizeLinear."""


@dataclass(frozen=True)
class Runtime:
    """A runtime as a target.

    Attributes
    ----------
    title : str
    opset, ir : int
        The highest that it reads; those of the newest ONNX Runtime where it does not say no.
    native : bool
        Whether it knows 2- and 4-bit types, which take the fewest bytes.
    unpack : {"none", "float"}
        What codes are unpacked to for float activations.
    no_activations : str
        Why quantized activations are refused; "" where they are not.
    """

    title: str
    opset: int = NEWEST_OPSET
    ir: int = 14
    native: bool = False
    unpack: Literal["none", "float"] = "none"
    no_activations: str = ""


ANY = Runtime("any runtime")

RUNTIMES: Mapping[str, Runtime] = {
    "ort": Runtime("ONNX Runtime 1.24 and newer", 25, 13, native=True),
    "ort-1.16": Runtime("ONNX Runtime 1.16", 19, 9),
    "ort-1.17": Runtime("ONNX Runtime 1.17", 20, 9),
    "ort-1.18": Runtime("ONNX Runtime 1.18", 21, 10),
    "ort-1.19": Runtime("ONNX Runtime 1.19", 21, 10),
    "ort-1.20": Runtime("ONNX Runtime 1.20", 21, 10),
    "ort-1.21": Runtime("ONNX Runtime 1.21", 22, 10),
    "ort-1.22": Runtime("ONNX Runtime 1.22", 22, 10),
    "ort-web": Runtime("onnxruntime-web 1.30", 25, 13, native=True),
    "openvino": Runtime("OpenVINO"),
    "opencv": Runtime(
        "OpenCV", unpack="float", no_activations="OpenCV 5.0 does not load every network that has them"
    ),
    "tract": Runtime("tract", unpack="float"),
    "tvm": Runtime("TVM", unpack="float"),
}
"""Targets by name."""
