"""Sizes of open dimensions with which a model runs.

Files call dimensions open that are not: a state is one of a batch that is always 1, a waveform has to be as
long as a window, branches stand in the way of two samples. What does not run on inputs of the usual sizes is
tried with one sample at a time, then with longer signals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.inputs.data import samples_of
from onnx_dfmpc.inputs.specs import fixed_batch, with_shapes
from onnx_dfmpc.inputs.synthetic import open_sizes, synthetic
from onnx_dfmpc.recipe import Data
from onnx_dfmpc.runtime.pieces import Pieces
from onnx_dfmpc.runtime.session import Session
from onnx_dfmpc.spec import InputSpec
from onnx_dfmpc.spec.arrays import shape_text

LENGTHS = (512, 1024, 4096, 16384)
"""Lengths of signals that are tried: windows of speech models, up to a second of sound at 16 kHz."""

SIDES = ((48, 320), (32, 320), (320, 320), (640, 640))
"""Heights and widths of pictures that are tried: lines of text, and what detectors are made for."""

Shapes = Mapping[str, tuple[int, ...]]


def runnable_shapes(
    session: Session | Pieces, specs: Sequence[InputSpec], data: Data
) -> tuple[Shapes, tuple[str, ...]]:
    """Shapes of inputs, and a remark, where a model runs on these and not on the usual ones; else none."""
    if data.shapes or not specs or _runs(session, specs, fixed_batch(specs) or 2):
        return data.shapes, ()
    for shapes in _candidates(specs, data):
        if _runs(session, with_shapes(specs, shapes), fixed_batch(specs) or 1):
            shown = ", ".join(f"{name} {shape_text(shape)}" for name, shape in shapes.items())
            return shapes, (f"samples are run one by one, since two, or other sizes, do not fit: {shown}",)
    return {}, ()  # the steps to come say what is wrong


def _candidates(specs: Sequence[InputSpec], data: Data) -> Iterator[Shapes]:
    """Whole shapes for one sample: of the user's inputs where there are any, else with every length, and
    states as long as the signal or of one sequence.
    """
    if data.data is not None:
        given = replace(samples_of(specs, replace(data, labels=None, samples=1)), batch=1)
        yield {name: array.shape for name, array in next(given.batches())[2].items() if array.ndim}
        return
    pictures = any(len(spec.shape) == 4 for spec in specs)
    for size in ((), *(SIDES if pictures else ((length,) for length in LENGTHS))):
        for state in (size, (1,)):
            yield {spec.name: _shape(spec, fixed_batch(specs), size, state) for spec in specs if spec.shape}


def _shape(
    spec: InputSpec, fixed: int | None, size: tuple[int, ...], state: tuple[int, ...]
) -> tuple[int, ...]:
    batch = spec.shape[0]
    if isinstance(batch, int) and batch != fixed:  # a state, of layers or directions
        return open_sizes(spec, state)
    return (fixed or 1, *open_sizes(spec, size)[1:])


def _runs(session: Session | Pieces, specs: Sequence[InputSpec], count: int) -> bool:
    with suppress(ModelError):
        session.run(synthetic(specs, "white", samples=count, batch=count).make(0, count))
        return True
    return False
