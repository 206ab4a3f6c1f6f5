"""Other tools without data, one function for each: ``python benchmarks/baselines/tools.py TOOL SETTING MODEL
NOISE.npz OUTPUT DONE.json`` quantizes a model with a tool that is installed in this environment.

Every tool has an environment of its own (``make rivals``), so this file needs only NumPy, onnx and the tool. A
setting is what the tool itself offers and recommends for convolutional networks; where it can calibrate on random
data of its own, there is a setting for that, too. ``NOISE.npz`` holds samples of noise in the range of
the input. ``DONE.json`` gets the versions at once, and the seconds without imports at the end.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

LIBRARIES = ("onnx", "onnxruntime", "onnxruntime-gpu", "torch")
"""Packages whose versions matter beside that of the tool."""

Feeds = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """A copy of the model, which the tool may ruin, noise sample by sample, and where the result goes."""

    model: Path
    noise: Feeds
    output: Path

    @property
    def folder(self) -> Path:
        """For what the tool keeps meanwhile."""
        return self.output.parent


Run = Callable[[Task], object]
Prepare = Callable[[], Run]


@dataclass(frozen=True)
class Setting:
    """``kind`` is what a reader compares by; ``about`` says which calls make it. ``prepare`` imports the tool."""

    kind: str
    about: str
    prepare: Prepare = field(repr=False)


class _Reader:
    """ONNX Runtime's interface of calibration data."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _static(method: str, weights: str = "QInt8") -> Prepare:
    """ONNX Runtime's static quantization, with its own preprocessing before."""

    def prepare() -> Run:
        tool = importlib.import_module("onnxruntime.quantization")
        shapes = importlib.import_module("onnxruntime.quantization.shape_inference")

        def run(task: Task) -> None:
            folded = task.folder / "folded.onnx"
            shapes.quant_pre_process(str(task.model), str(folded), skip_symbolic_shape=True)
            tool.quantize_static(
                str(folded),
                str(task.output),
                _Reader(task.noise),
                per_channel=True,
                activation_type=tool.QuantType.QUInt8,
                weight_type=tool.QuantType[weights],
                calibrate_method=tool.CalibrationMethod[method],
            )

        return run

    return prepare


def _dynamic() -> Run:
    tool = importlib.import_module("onnxruntime.quantization")
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")

    def run(task: Task) -> None:
        folded = task.folder / "folded.onnx"
        shapes.quant_pre_process(str(task.model), str(folded), skip_symbolic_shape=True)
        # ConvInteger on the CPU takes no signed weights.
        tool.quantize_dynamic(str(folded), str(task.output), weight_type=tool.QuantType.QUInt8)

    return run


def _nncf(preset: str = "PERFORMANCE", *, folded: bool = False) -> Prepare:
    """It leaves batch norm behind a quantized convolution; ``folded`` takes it out before."""

    def prepare() -> Run:
        tool = importlib.import_module("nncf")
        shapes = importlib.import_module("onnxruntime.quantization.shape_inference")

        def run(task: Task) -> None:
            source = task.model
            if folded:
                source = task.folder / "folded.onnx"
                shapes.quant_pre_process(str(task.model), str(source), skip_symbolic_shape=True)
            made = tool.quantize(
                onnx.load(source),
                tool.Dataset(task.noise),
                subset_size=len(task.noise),
                preset=tool.QuantizationPreset[preset],
            )
            onnx.save(made, task.output)

        return run

    return prepare


def _nncf_weights(mode: str) -> Prepare:
    def prepare() -> Run:
        tool = importlib.import_module("nncf")

        def run(task: Task) -> None:
            made = tool.compress_weights(onnx.load(task.model), mode=tool.CompressWeightsMode[mode])
            onnx.save(made, task.output)

        return run

    return prepare


def _quantization_rs(bits: int, *, opset: int | None = None) -> Prepare:
    """It writes opset 21 over a model with 4-bit weights without converting its nodes, so that some are invalid;
    ``opset`` converts them before.
    """

    def prepare() -> Run:
        tool = importlib.import_module("quantize_rs")
        converter = importlib.import_module("onnx.version_converter")

        def run(task: Task) -> None:
            source = task.model
            if opset is not None:
                source = task.folder / "raised.onnx"
                onnx.save(converter.convert_version(onnx.load(task.model), opset), source)
            tool.quantize(str(source), str(task.output), bits=bits, per_channel=True, native_int4=True)

        return run

    return prepare


def _quantization_rs_static() -> Run:
    """It wants a batch of one in the file; the file gets its open batch back afterwards."""
    tool = importlib.import_module("quantize_rs")

    def run(task: Task) -> None:
        model = onnx.load(task.model)
        batches = [value.type.tensor_type.shape.dim[0] for value in (*model.graph.input, *model.graph.output)]
        name = batches[0].dim_param
        for batch in batches:
            batch.dim_value = 1
        fixed, data = task.folder / "fixed.onnx", task.folder / "noise.npy"
        onnx.save(model, fixed)
        np.save(data, np.concatenate([next(iter(feed.values())) for feed in task.noise]))
        tool.quantize_with_calibration(str(fixed), str(task.output), str(data), per_channel=True)
        made = onnx.load(task.output)
        for value in (*made.graph.input, *made.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = name
        del made.graph.value_info[:]
        onnx.save(made, task.output)

    return run


def _onnxsim(function: str, *, calibrated: bool = False, opset: int | None = None, **options: Any) -> Prepare:
    """``simplify`` before folds batch norm, and after takes out the float weights that are left in the file; its
    documentation suggests both.
    """

    def prepare() -> Run:
        tool = importlib.import_module("onnxsim")

        def run(task: Task) -> None:
            simple, _ = tool.simplify(onnx.load(task.model), target_opset_version=opset)
            data = {"calibration_data": task.noise} if calibrated else {}
            if function:
                simple, _ = tool.simplify(getattr(tool, function)(simple, **data, **options))
            onnx.save(simple, task.output)

        return run

    return prepare


def _aimet(weights: str = "int8", *, equalized: bool = False, activations: bool = True) -> Prepare:
    def prepare() -> Run:
        tool = importlib.import_module("aimet_onnx")
        equalize = importlib.import_module("aimet_onnx.cross_layer_equalization").equalize_model

        def run(task: Task) -> None:
            model = onnx.load(task.model)
            if equalized:
                equalize(model)
            sim = tool.QuantizationSimModel(
                model,
                param_type=weights,
                activation_type="int8",
                dummy_input=task.noise[0],
                providers=["CPUExecutionProvider"],
            )
            for name in () if activations else sim.activation_names:
                if name in sim.qc_quantize_op_dict:
                    sim.qc_quantize_op_dict[name].enabled = False
            sim.compute_encodings(task.noise)
            onnx.save(sim.to_onnx_qdq(prequantize_constants=True), task.output)

        return run

    return prepare


def _quark(preset: str, *, own: bool = False, per_channel: bool = False) -> Prepare:
    def prepare() -> Run:
        tool = importlib.import_module("quark.onnx")
        config = importlib.import_module("quark.onnx.quantization.config")

        def run(task: Task) -> None:
            chosen = config.get_default_config(preset)
            chosen.per_channel = chosen.per_channel or per_channel
            if own:
                chosen.extra_options["UseRandomData"] = True
            quantizer = tool.ModelQuantizer(config.Config(global_quant_config=chosen))
            quantizer.quantize_model(str(task.model), str(task.output), None if own else _Reader(task.noise))

        return run

    return prepare


def _modelopt(method: str = "entropy", *, own: bool = False, simplify: bool = False) -> Prepare:
    """Floats stay float: its default would be FP16, which TensorRT runs and ONNX Runtime on a CPU converts."""

    def prepare() -> Run:
        tool = importlib.import_module("modelopt.onnx.quantization")

        def run(task: Task) -> None:
            (name,) = task.noise[0]
            noise = {name: np.concatenate([feed[name] for feed in task.noise])}
            tool.quantize(
                str(task.model),
                quantize_mode="int8",
                calibration_data=None if own else noise,
                calibration_method=method,
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                simplify=simplify,
                output_path=str(task.output),
            )

        return run

    return prepare


def _onnxslim() -> Run:
    tool = importlib.import_module("onnxslim")
    return lambda task: tool.slim(str(task.model), str(task.output))


W8A8, W4A8, DYNAMIC, W8, W4, SIZE = (
    "W8A8", "W4A8", "W8, activations on the fly", "W8, float activations", "W4, float activations", "float"
)  # fmt: skip

TOOLS: Mapping[str, Mapping[str, Setting]] = {
    "onnxruntime": {
        "static, min-max": Setting(W8A8, "quant_pre_process; quantize_static(per_channel, U8S8), MinMax", _static("MinMax")),
        "static, entropy": Setting(W8A8, "the same, CalibrationMethod.Entropy", _static("Entropy")),
        "static, QInt4": Setting(W4A8, "the same as min-max, weight_type=QInt4", _static("MinMax", "QInt4")),
        "dynamic": Setting(DYNAMIC, "quant_pre_process; quantize_dynamic(weight_type=QUInt8)", lambda: _dynamic()),
    },
    "nncf": {
        "quantize": Setting(W8A8, "quantize(), defaults: performance preset, fast bias correction", _nncf()),
        "quantize, mixed": Setting(W8A8, "quantize(preset=MIXED): asymmetric activations", _nncf("MIXED")),
        "quantize, folded": Setting(W8A8, "onnxruntime's quant_pre_process, then quantize() with its defaults", _nncf(folded=True)),
        "compress_weights": Setting(W8, "compress_weights(INT8_ASYM)", _nncf_weights("INT8_ASYM")),
    },
    "quantization-rs": {
        "8 bits": Setting(W8, "quantize(bits=8, per_channel)", _quantization_rs(8)),
        "4 bits": Setting(W4, "quantize(bits=4, per_channel, native_int4) after onnx.version_converter to opset 21, without which ReduceMean is invalid", _quantization_rs(4, opset=21)),
        "calibrated": Setting(W8A8, "quantize_with_calibration(per_channel) on a copy with a batch of one", lambda: _quantization_rs_static()),
    },
    "onnxsim": {
        "static": Setting(W8A8, "simplify(), quantize_static(per_channel), simplify(); min-max", _onnxsim("quantize_static", calibrated=True)),
        "static, own random data": Setting(W8A8, "the same without calibration_data: 8 samples of its own", _onnxsim("quantize_static")),
        "static, full graph": Setting(W8A8, "the same with noise, full_graph=True", _onnxsim("quantize_static", calibrated=True, full_graph=True)),
        "weight only": Setting(W8, "simplify(), quantize_weight_only(), simplify()", _onnxsim("quantize_weight_only")),
        "weight only, int4": Setting(W4, "the same with opset 21 and quantize_weight_only_int4(): blocks of 32", _onnxsim("quantize_weight_only_int4", opset=21)),
        "simplify": Setting(SIZE, "simplify(): float, only the graph", _onnxsim("")),
    },
    "aimet-onnx": {
        "sim": Setting(W8A8, "QuantizationSimModel(int8, int8), its defaults; to_onnx_qdq()", _aimet()),
        "equalized": Setting(W8A8, "the same after equalize_model()", _aimet(equalized=True)),
        "equalized, int4": Setting(W4A8, "the same with param_type int4", _aimet("int4", equalized=True)),
        "equalized, int4, weights only": Setting(W4, "the same with its activation quantizers switched off", _aimet("int4", equalized=True, activations=False)),
    },
    "amd-quark": {
        "A8W8": Setting(W8A8, 'ModelQuantizer, get_default_config("A8W8")', _quark("A8W8")),
        "A8W8, own random data": Setting(W8A8, "the same with UseRandomData", _quark("A8W8", own=True)),
        "U8S8_AAWS, per channel": Setting(W8A8, "the same with U8S8_AAWS, its preset for CPUs, and per_channel", _quark("U8S8_AAWS", per_channel=True)),
        "XINT8": Setting(W8A8, 'the same with get_default_config("XINT8"): powers of two', _quark("XINT8")),
    },
    "nvidia-modelopt": {
        "int8": Setting(W8A8, "quantize(quantize_mode=int8, high_precision_dtype=fp32), entropy", _modelopt()),
        "int8, own random data": Setting(W8A8, "the same without calibration_data", _modelopt(own=True)),
        "int8, max": Setting(W8A8, "the same with noise, calibration_method=max", _modelopt("max")),
        "int8, max, simplified": Setting(W8A8, "the same with simplify=True, which folds batch norm", _modelopt("max", simplify=True)),
    },
    "onnxslim": {"slim": Setting(SIZE, "slim(): float, only the graph", lambda: _onnxslim())},
}  # fmt: skip
"""Settings of every tool, by the name of its package."""


def versions(tool: str) -> dict[str, str]:
    """Versions of a tool and of what it stands on, where they are installed here."""
    found = {}
    for package in (tool, *LIBRARIES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def noise(path: Path) -> Feeds:
    """Feeds of one sample each."""
    with np.load(path) as arrays:
        return [
            {name: arrays[name][i : i + 1] for name in arrays} for i in range(len(arrays[arrays.files[0]]))
        ]


def main(arguments: Sequence[str]) -> int:
    """Quantize one model; the last line of what a tool raises is its reason."""
    tool, setting, model, samples, output, done = arguments
    told: dict[str, Any] = {"versions": versions(tool)}
    Path(done).write_text(json.dumps(told), encoding="utf-8")
    run = TOOLS[tool][setting].prepare()
    task = Task(Path(model), noise(Path(samples)), Path(output))
    start = time.process_time()
    run(task)
    told["seconds"] = time.process_time() - start
    Path(done).write_text(json.dumps(told), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
