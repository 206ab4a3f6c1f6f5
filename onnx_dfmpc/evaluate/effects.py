"""What every layer does to its own output, and alone to the network's: one walk through both networks.

Only the tensors that are still needed are in memory. What a layer does alone is heard by letting the
quantized model's nodes make its output of the float network's tensors, and the float network go on from
there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from onnx_dfmpc.evaluate.classes import class_scores
from onnx_dfmpc.evaluate.metrics import Comparison, is_finite
from onnx_dfmpc.evaluate.segments import Segment
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.spec import LayerEffect

Value = NDArray[Any]
Batches = Sequence[Value]
Progress = Callable[[str, int, int], None]


def effects_of(
    float_model: ModelProto,
    quantized_model: ModelProto,
    segments: Sequence[Segment],
    names: Sequence[str],
    feeds: Sequence[Mapping[str, Value]],
    *,
    disable_qdq: bool,
    progress: Progress | None = None,
) -> list[LayerEffect]:
    """Measure every quantized layer.

    Parameters
    ----------
    float_model, quantized_model : ModelProto
    segments : sequence of Segment
        In topological order.
    names : sequence of str
        Tensors of the float network to listen at.
    feeds : sequence of mapping
        Input arrays by name, one mapping per batch.
    disable_qdq : bool
        Whether the quantized model's activations are float.
    progress : callable, optional
        Called with ``("per layer", layers done, layers)``.

    Returns
    -------
    list of LayerEffect
        In the order of the segments.
    """
    table = ConstantTable(quantized_model)
    reference = PartialRun(float_model, ConstantTable(float_model), feeds)
    quantized = PartialRun(quantized_model, table, feeds, disable_qdq=disable_qdq)
    outputs: dict[str, Batches] = {}
    found = []
    for done, segment in enumerate(segments, 1):
        layer, end = segment.layer, segment.end
        source = reference.value(layer.input)
        alone = PartialRun(
            quantized_model, table, [{layer.input: batch} for batch in source], disable_qdq=disable_qdq
        ).value(end)
        expected = reference.value(end)
        tail = reference.tail(end, names)
        if new := [name for name in tail.names if name not in outputs]:
            known = tail(expected)
            outputs |= {name: known[name] for name in new}
        heard = {name: (outputs[name], values) for name, values in tail(alone).items()}
        here = _compared(expected, quantized.value(end))
        own = [_compared(*pair) for pair in heard.values()]
        effect = LayerEffect(
            name=layer.name,
            op=layer.op_type,
            bits=segment.bits,
            bytes=segment.bytes,
            sqnr_db=None if here is None else here.sqnr_db,
            cosine=None if here is None else here.cosine,
            own_sqnr_db=None
            if None in own
            else min((pair.sqnr_db for pair in own if pair is not None), default=math.inf),
            own_top1_agreement=min(
                (share for pair in heard.values() if (share := _agreement(*pair)) is not None), default=None
            ),
        )
        found.append(effect)
        if progress is not None:
            progress("per layer", done, len(segments))
    return found


def ranked(effects: Sequence[LayerEffect]) -> list[LayerEffect]:
    """Effects with their share of the noise, the largest first; what is not finite comes before everything
    else.
    """
    noises = [noise_of(effect) for effect in effects]
    total = sum(noise for noise in noises if math.isfinite(noise))
    shares = [
        noise / total if total and math.isfinite(noise) else float(math.isinf(noise)) for noise in noises
    ]
    order = sorted(range(len(effects)), key=lambda index: -noises[index])
    return [replace(effects[index], own_share=shares[index]) for index in order]


def noise_of(effect: LayerEffect) -> float:
    """Noise power of a layer alone at the network's worst output, relative to the signal there; infinite
    where it is not finite.
    """
    return math.inf if effect.own_sqnr_db is None else 10 ** (-effect.own_sqnr_db / 10)


def _compared(expected: Batches, actual: Batches) -> Comparison | None:
    """Sums over all batches; None where they cannot be compared."""
    pair = Comparison()
    for a, b in zip(expected, actual, strict=True):
        if a.shape != b.shape or not (is_finite(a) and is_finite(b)):
            return None
        pair.add(a, b)
    return pair


def _agreement(expected: Batches, actual: Batches) -> float | None:
    """Fraction of samples with the same class; None where these are no scores."""
    same = count = 0
    for a, b in zip(expected, actual, strict=True):
        scores, others = (class_scores(side, len(a)) if side.ndim else None for side in (a, b))
        if scores is None or others is None:
            return None
        same += int((scores.argmax(axis=1) == others.argmax(axis=1)).sum())
        count += len(scores)
    return same / count if count else None
