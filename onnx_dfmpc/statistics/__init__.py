"""Second-order statistics of every layer's input, from the model alone or from real inputs.

A `Probe` walks the network once, in the order of its layers, and holds the activations of one place in the network at a time.

    synthetic inputs   the model alone; wherever there is a batch norm, what it expects replaces what was measured
    real inputs        calibration: measured as they are
"""

from onnx_dfmpc.statistics.feeds import model_inputs, real_feeds
from onnx_dfmpc.statistics.probe import Probe
from onnx_dfmpc.statistics.ranges import infer_range
from onnx_dfmpc.statistics.synthetic import synthetic_feeds

__all__ = ["Probe", "infer_range", "model_inputs", "real_feeds", "synthetic_feeds"]
