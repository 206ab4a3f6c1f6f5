"""Hand-made JSON documents of runs, with every key that a report shows and names that would break a careless
one.
"""

from __future__ import annotations

import math
from typing import Any

Json = dict[str, Any]

NASTY = "</script><script>alert(1)</script>|`x`_[a](b) & 'q' \"d\""
LONG = "/model/backbone/stages.3/blocks.11/very_long_submodule_name/attention_like_thing/depthwise_separable/conv_pointwise_expanded/Conv"


def layer_name(position: int) -> str:
    return {1: LONG, 2: NASTY}.get(position, f"/layer{position}/conv/Conv")


def layer(position: int, bits: int, count: int) -> Json:
    return {
        "name": layer_name(position),
        "op": "Conv",
        "shape": [16, 16, 3, 3],
        "role": "edge" if position in (0, count - 1) else "inner",
        "bits": bits,
        "storage": {2: "UINT2", 4: "UINT4"}.get(bits, "UINT8"),
        "bytes": 2304 * bits // 8 + 40,
        "predicted_bytes": 2304 * bits // 8 + 40,
        "predicted_noise": 10 ** -(2 + bits / 2),
        "source": "probe",
        "gain_min": 0.9,
        "gain_max": 1.2,
        "predicted_sqnr_db": 6.0 * bits,
        "measured_sqnr_db": 6.0 * bits - 1 + math.sin(position),
        "reason": f"layer {position}: one bit more would cost 288 bytes and gain too little, which is said here at some length",
        "notes": ["its weight is shared: copied"] if position % 2 else [],
    }


def ranked(row: Json) -> Json:
    return {
        "name": row["name"],
        "op": "Conv",
        "bits": row["bits"],
        "bytes": row["bytes"],
        "sqnr_db": 12.3,
        "cosine": 0.97,
        "own_sqnr_db": 14.5,
        "own_top1_agreement": 0.83,
        "own_share": 0.41,
    }


def validation(*, drop: float = 0.01, limit: float = 0.02) -> Json:
    return {
        "passed": drop <= limit,
        "samples": 200,
        "data": "test.npz, 200 samples",
        "synthetic": False,
        "cosine": 0.9912,
        "sqnr_db": 17.5,
        "max_abs": 0.31,
        "top1_agreement": 0.955,
        "top1_float": 0.91,
        "top1_quantized": 0.91 - drop,
        "top5_float": 0.99,
        "top5_quantized": 0.985,
        "top1_interval": [-0.035, 0.015],
        "labelled": 200,
        "gates": [{"name": "max_top1_drop", "limit": limit, "value": drop, "passed": drop <= limit}],
        "failures": [],
        "outputs": [
            {
                "name": "scores",
                "cosine": 0.9912,
                "sqnr_db": 17.5,
                "max_abs": 0.31,
                "mean_abs": 0.02,
                "kl": 0.0123,
                "top1_agreement": 0.955,
                "top5_agreement": 0.99,
            },
            {
                "name": "boxes",
                "cosine": 1.0,
                "sqnr_db": None,
                "max_abs": 0.0,
                "mean_abs": 0.0,
                "kl": None,
                "top1_agreement": None,
            },
        ],
        "weight_only": True,
        "default_run": {"samples": 64, "max_abs": 1e-5, "sqnr_db": 120.0},
        "command": "onnx-dfmpc validate net.onnx small.onnx --data test.npz",
        "notes": ["x: cast from float64 to float32"],
    }


def timing(name: str, median: float) -> Json:
    return {
        "name": name,
        "median": median,
        "first_quartile": 0.95 * median,
        "third_quartile": 1.1 * median,
        "least": 0.9 * median,
    }


def kind(name: str, weight: float, sqnr_db: float) -> Json:
    return {"name": name, "weight": weight, "sqnr_db": sqnr_db}


def quantized(bits: tuple[int, ...] = (8, 4, 2, 4, 6, 3, 8), **changes: Any) -> Json:
    """Document of ``quantize`` with every key there is."""
    layers = [layer(position, width, len(bits)) for position, width in enumerate(bits)]
    size = sum(row["bytes"] for row in layers) + 1000
    document = {
        "schema": 2,
        "tool": {"name": "onnx-dfmpc", "version": "0.2.0"},
        "environment": {"python": "3.11.9", "onnxruntime": "1.32.0", "platform": "Linux-x86_64"},
        "command": "quantize",
        "date": "2026-01-31T12:34:56+01:00",
        "command_line": "onnx-dfmpc quantize net.onnx -o small.onnx --target-size 10KiB --data test.npz",
        "model": {"path": "models/net.onnx", "sha256": "ab" * 32, "bytes": 66_000, "opset": 17},
        "output": {"path": "small.onnx", "bytes": size, "opset": 25},
        "recipe": {"target_size": 10240, "method": "dfmpc", "set": [["^a$", 4]], "nodes_to_exclude": []},
        "form": {"storage": "native", "unpack": "none"},
        "predicted": {
            "bytes": size - 7,
            "sqnr_db": 18.25,
            "source": "probe",
            "low_db": 12.5,
            "high_db": 22.0,
            "kinds": [kind("1/f images in -0.6 to 0.6", 0.25, 12.5), kind(NASTY, 0.75, 22.0)],
        },
        "layers": layers,
        "chains": [],
        "skipped": [{"name": "gru", "op": "GRU", "reason": "its weight is used inside a subgraph"}],
        "totals": {
            "layers": len(bits),
            "skipped": 1,
            "weights": 2304 * len(bits),
            "nominal_bits": sum(bits) / len(bits),
            "bytes_ratio": size / 66_000,
        },
        "notes": ["opset 17 -> 25 because of UINT2 weights"],
        "validation": validation(),
        "per_layer": [ranked(layers[2]), ranked(layers[1])],
        "advice": [{"flag": "--set", "value": f"^{NASTY}$=6", "extra_bytes": 1152, "gain_db": 2.25}],
        "sweep": [
            {
                "budget": size * n,
                "bytes": size * n - 5,
                "nominal_bits": 2.0 * n,
                "predicted_sqnr_db": 9.0 * n,
                "measured_sqnr_db": None,
                "top1": None,
            }
            for n in (1, 2, 3)
        ],
        "histograms": [
            {
                "name": LONG,
                "low": -1.0,
                "high": 1.0,
                "float_counts": [1, 5, 9, 5, 1],
                "quantized_counts": [0, 7, 7, 7, 0],
            }
        ],
        "latency": {
            "runs": 30,
            "threads": 1,
            "batch": 1,
            "timings": [timing("float", 2e-3), timing("quantized, default", 3e-3)],
        },
        "seconds": {"load": 0.25, "quantize": 1.5},
    }
    return document | changes
