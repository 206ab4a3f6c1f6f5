"""What to feed a model: the user's data, checked against its inputs, or seeded synthetic ones.

specs      what a model takes
stored     arrays in files, read row by row
pieces     samples that come file by file, or feed by feed
images     folders of pictures, preprocessed
sources    which of these a data source is; Polygraphy's JSON, loader scripts
table      the arrays of a source by input name, checked
labels     class indices from files
samples    some of them, cast, batch by batch
synthetic  inputs that nobody had to collect
feeding    all that a user can say about it
"""

from onnx_dfmpc.inputs.feeding import Feeding, calibration_feeding, feeding_of, samples_of
from onnx_dfmpc.inputs.labels import LabelSource
from onnx_dfmpc.inputs.samples import Samples, from_data
from onnx_dfmpc.inputs.sources import DataSource
from onnx_dfmpc.inputs.specs import InputSpec, fixed_batch, with_shapes
from onnx_dfmpc.inputs.synthetic import DYNAMIC_LENGTH, DYNAMIC_PIXELS, natural_spectrum, synthetic

__all__ = [
    "DYNAMIC_LENGTH",
    "DYNAMIC_PIXELS",
    "DataSource",
    "Feeding",
    "InputSpec",
    "LabelSource",
    "Samples",
    "calibration_feeding",
    "feeding_of",
    "fixed_batch",
    "from_data",
    "natural_spectrum",
    "samples_of",
    "synthetic",
    "with_shapes",
]
