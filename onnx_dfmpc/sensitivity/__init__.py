"""How much noise each layer makes at the network's outputs, at each width: what allocation spends bytes on.

local   what quantizing a layer does to its own output, by the statistics of its input
flow    the closed form from there to the outputs
heard   the same measured: one layer quantized, the rest of the float network run
table   one walk over the layers
"""

from onnx_dfmpc.sensitivity.feeds import data_feeds, few, probe_feeds, some_samples
from onnx_dfmpc.sensitivity.flow import Flow, noise_at_outputs
from onnx_dfmpc.sensitivity.heard import scores
from onnx_dfmpc.sensitivity.local import Candidate, candidates
from onnx_dfmpc.sensitivity.table import Prediction, predict

__all__ = [
    "Candidate",
    "Flow",
    "Prediction",
    "candidates",
    "data_feeds",
    "few",
    "noise_at_outputs",
    "predict",
    "probe_feeds",
    "scores",
    "some_samples",
]
