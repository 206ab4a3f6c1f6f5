"""Integers whose value their name tells: lengths of signals, sample rates, masks.

Exports of speech models take the length of every signal beside it; drawn at random it would be 0 or 1, and
all that comes after would be masked. Nothing in the file but the name says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from onnx_dfmpc.spec import InputSpec

LENGTH = re.compile(r"(^|_)(lens?|lengths?)(_|$)|length")
RATE = re.compile(r"^(sr|fs|sample_?rate|sampling_?rate)$")
MASK = re.compile(r"mask")

HERTZ = 16_000
"""Sample rate of most speech models."""


def value_by_name(
    spec: InputSpec, specs: Sequence[InputSpec], shapes: Sequence[tuple[int, ...]]
) -> int | None:
    """Value that all elements of an input have by convention; None where its name tells nothing. ``shapes``
    are those of all inputs, ``specs``, with a number for every dimension.

    Examples
    --------
    >>> import numpy as np
    >>> wave = InputSpec("audio", np.dtype("float32"), ("N", 80, "T"))
    >>> lengths = InputSpec("audio_lens", np.dtype("int64"), ("N",))
    >>> value_by_name(lengths, [wave, lengths], [(1, 80, 64), (1,)])
    64
    """
    name = spec.name.lower()
    if spec.dtype.kind not in "iub" or spec.rows:
        return None
    if MASK.search(name):
        return 1
    if spec.dtype.kind == "b" or any(size != 1 for size in spec.shape[1:]):
        return None
    if RATE.match(name):
        return HERTZ
    if not LENGTH.search(name):
        return None
    signal = next(
        (index for index, one in enumerate(specs) if one.dtype.kind == "f" and len(one.shape) > 1), None
    )
    if signal is None:
        return None
    open_axes = [axis for axis, size in enumerate(specs[signal].shape) if axis and not isinstance(size, int)]
    return shapes[signal][open_axes[-1] if open_axes else -1]
