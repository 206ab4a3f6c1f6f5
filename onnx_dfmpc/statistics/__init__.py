"""Second-order statistics of every layer's input, from the model alone or from real inputs.

A provider walks the network once, in the order of its layers, and yields each layer with the `InputStatistics` of its input. Nothing is
kept: memory holds the activations of one place in the network at a time.

    probe         the float model runs on synthetic inputs; wherever there is a batch norm, what it expects replaces what was measured
    calibration   the same on inputs that the user has, without replacing anything
"""

from onnx_dfmpc.statistics.feeds import model_inputs, real_feeds
from onnx_dfmpc.statistics.probe import calibrate, probe
from onnx_dfmpc.statistics.synthetic import synthetic_feeds

__all__ = ["calibrate", "model_inputs", "probe", "real_feeds", "synthetic_feeds"]
