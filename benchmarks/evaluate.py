"""How good a quantized model is: the float model's outputs are computed once and kept, every
quantized model is compared with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto

from benchmarks.networks import Network
from onnx_dfmpc import session_options
from onnx_dfmpc.evaluate.metrics import Tally
from onnx_dfmpc.inputs.samples import Samples, from_data
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.model.files import load
from onnx_dfmpc.runtime.session import is_weight_only

SILENT = 4


@dataclass(frozen=True)
class Score:
    """Fractions and dB, against labels (``top1``) and against the float model; None where the network is no
    classifier or has no labels.
    """

    n: int
    top1: float | None
    agreement: float | None
    sqnr_db: float | None
    failures: tuple[str, ...] = ()
    top1_interval: tuple[float, float] | None = None  # 95 %, of the difference to float, paired


@dataclass(frozen=True, eq=False)
class Reference:
    """The float model on one data set: the samples, and its outputs batch by batch."""

    samples: Samples
    names: tuple[str, ...]
    outputs: tuple[list[NDArray[Any]], ...]

    def score(self, model: ModelProto) -> Score:
        """Compare a model with the float model, and with the labels."""
        session = _session(model)
        tally = Tally(self.names, self.samples.labels)
        for (start, stop, feeds), expected in zip(self.samples.batches(), self.outputs, strict=True):
            tally.add(start, stop, expected, session.run(list(self.names), feeds))
        report = tally.report(samples=self.samples.count, data=self.samples.description, synthetic=False)
        return Score(
            report.samples,
            report.top1_quantized,
            report.top1_agreement,
            report.sqnr_db,
            report.failures,
            report.top1_interval,
        )


def reference(network: Network, data: str) -> Reference:
    """Run the float model of a network on one of its data sets."""
    return reference_of(load(network.path).proto, *network.inputs(data))


def reference_of(
    proto: ModelProto, arrays: NDArray[Any], labels: NDArray[np.int64] | None = None
) -> Reference:
    """Run a float model on inputs for its only input."""
    specs = model_inputs(proto)
    samples = from_data(specs, {specs[0].name: arrays}, labels)
    session = _session(proto)
    names = tuple(output.name for output in session.get_outputs())
    return Reference(
        samples, names, tuple(session.run(list(names), feeds) for _, _, feeds in samples.batches())
    )


def standard_error(fraction: float, n: int) -> float:
    """Standard error of a fraction of n samples."""
    return float(np.sqrt(fraction * (1 - fraction) / n))


def _session(model: ModelProto) -> ort.InferenceSession:
    options = session_options() if is_weight_only(model) else ort.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = 1  # the same sums in the same order on every machine
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
