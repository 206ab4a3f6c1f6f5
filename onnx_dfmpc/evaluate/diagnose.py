"""Which layer broke it, and what to change: the effect of every quantized layer, and suggestions for the
worst.

segments  the layers of the float model in the quantized one
effects   what each of them does, among the others and alone
suggest   bits for those that stand out
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from onnx import ModelProto

from onnx_dfmpc.evaluate.effects import Progress, effects_of, ranked
from onnx_dfmpc.evaluate.segments import find_segments
from onnx_dfmpc.evaluate.suggest import with_suggestions
from onnx_dfmpc.recipe import Data
from onnx_dfmpc.rewrite.apply import PREFIX
from onnx_dfmpc.runtime.session import is_weight_only
from onnx_dfmpc.sensitivity.feeds import few, some_samples
from onnx_dfmpc.sensitivity.outputs import scores
from onnx_dfmpc.spec import LayerEffect, MatchReport, StorageFormat

__all__ = ["diagnose", "stored_bits"]

NAMED = 3
"""Names that a note gives, at most."""


def diagnose(
    float_model: ModelProto,
    quantized_model: ModelProto,
    report: MatchReport,
    feeding: Data,
    *,
    form: StorageFormat | None = None,
    progress: Progress | None = None,
) -> tuple[tuple[LayerEffect, ...], tuple[str, ...]]:
    """Measure what every quantized layer does, among the others and alone.

    Parameters
    ----------
    float_model, quantized_model : ModelProto
    report : MatchReport
        Of the float model.
    feeding : Data
        Few of its samples are taken: 32, and down to 8 of large inputs.
    form : StorageFormat, optional
        How codes are put into the file, for the price of a suggestion; by default it is found out.
    progress : callable, optional
        Called with ``("per layer", layers done, layers)``.

    Returns
    -------
    tuple of LayerEffect
        What adds most noise to the network's outputs comes first. Outputs that only squash scores (a softmax)
        are listened to in front of that.
    tuple of str
        Remarks.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot run a part of a model.
    """
    segments, lost = find_segments(float_model, quantized_model, report.layers, stored_bits(quantized_model))
    notes = (
        [f"per layer: not in the quantized model by the names of their tensors: {_some(lost)}"]
        if lost
        else []
    )
    if not segments:
        return (), (*notes, "per layer: no layer of the quantized model is quantized")
    samples = some_samples(float_model, feeding, few(float_model, feeding))
    effects = effects_of(
        float_model,
        quantized_model,
        segments,
        scores(float_model, report.layers),
        [feed for _, _, feed in samples.batches()],
        disable_qdq=is_weight_only(quantized_model),
        progress=progress,
    )
    notes.append(f"per layer: measured on {samples.count} samples")
    return tuple(with_suggestions(ranked(effects), float_model, report, form)), tuple(notes)


def _some(names: Sequence[str]) -> str:
    """The first few of some names, and how many there are more."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def stored_bits(proto: ModelProto) -> Mapping[str, int]:
    """Nominal bits by layer name, as this tool writes them into a file; empty for files of others."""
    for entry in proto.metadata_props:
        if entry.key == f"{PREFIX}bits":
            try:
                found = json.loads(entry.value)
            except ValueError:
                return {}
            return (
                {name: bits for name, bits in found.items() if isinstance(bits, int)}
                if isinstance(found, dict)
                else {}
            )
    return {}
