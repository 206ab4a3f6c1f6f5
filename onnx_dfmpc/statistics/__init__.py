"""Second-order statistics of every layer's input, from the model alone or from real inputs.

A `Provider` walks the network once, in the order of its layers, and holds the activations of one place in the network at a time.

    Probe      runs the model on synthetic inputs (wherever there is a batch norm, what it expects replaces what was measured), or on
               real ones, measured as they are
    Analytic   closed form from the initializers; nothing is run but where an operator is unknown
"""

from onnx_dfmpc.statistics.feeds import model_inputs, real_feeds
from onnx_dfmpc.statistics.probe import Probe
from onnx_dfmpc.statistics.providers import Analytic, Provider, White
from onnx_dfmpc.statistics.ranges import infer_range
from onnx_dfmpc.statistics.stream import Stream
from onnx_dfmpc.statistics.synthetic import synthetic_feeds

__all__ = ["Analytic", "Probe", "Provider", "Stream", "White", "infer_range", "model_inputs", "real_feeds", "synthetic_feeds"]
