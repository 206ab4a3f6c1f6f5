"""Float rows -> integer codes, scale and zero point (pure NumPy, arrays in and arrays out).

``grids`` places the levels, ``squant`` and ``covariance`` decide which level each weight takes, and `quantize_rows` puts them together.
"""

from onnx_dfmpc.quantize.grids import Codes, dequantize, min_max, nearest, ternary
from onnx_dfmpc.quantize.rows import quantize_rows
from onnx_dfmpc.quantize.trust import doubted, regularize

__all__ = ["Codes", "dequantize", "doubted", "min_max", "nearest", "quantize_rows", "regularize", "ternary"]
