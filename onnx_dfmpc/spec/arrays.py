"""Types without a room of their own: arrays, and the callback that hears of progress."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

Progress = Callable[[str, int, int], None]
"""``progress(step, done, total)``: ``done`` of ``total`` parts of a step are ready."""
