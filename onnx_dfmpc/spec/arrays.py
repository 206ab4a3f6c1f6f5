"""Types and small functions that every room uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Value = NDArray[Any]
"""Value of a tensor, of whatever type."""

Progress = Callable[[str, int, int], None]
"""Called with a stage, steps done, and steps in all."""
