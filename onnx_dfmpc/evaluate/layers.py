"""Tensors inside two graphs, compared by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import onnx

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.evaluate.metrics import Comparison, is_finite
from onnx_dfmpc.inputs.samples import Samples
from onnx_dfmpc.runtime.session import Model, Output, Session, first_line, is_weight_only, title


def layer_sqnr(
    float_model: Model,
    quantized_model: Model,
    names: Mapping[str, tuple[str, str]],
    feeds: Samples | Iterable[Mapping[str, Output]],
) -> dict[str, float | None]:
    """Signal-to-quantization-noise ratio of tensors inside the two graphs.

    Parameters
    ----------
    float_model, quantized_model : path or onnx.ModelProto
        Neither is changed.
    names : mapping of str to (str, str)
        Layer name -> name of its tensor in the float graph and in the quantized graph.
    feeds : Samples, or iterable of mappings
        Inputs by name, one mapping per run; one batch is in memory at a time.

    Returns
    -------
    dict
        SQNR in dB by layer name; infinite where nothing differs, None where a value is not finite or the
        shapes differ.

    Raises
    ------
    ModelError
        A model that cannot be loaded or run, or a tensor that is not in its graph.
    """
    sides = []
    for model, what, side in ((float_model, "float model", 0), (quantized_model, "quantized model", 1)):
        tensors = [pair[side] for pair in names.values()]
        sides.append(
            (
                Session(
                    _with_outputs(model, tensors, what),
                    what,
                    disable_qdq=bool(side) and is_weight_only(model),
                ),
                tensors,
            )
        )
    comparisons = {name: Comparison() for name in names}
    broken: set[str] = set()
    batches = (batch for _, _, batch in feeds.batches()) if isinstance(feeds, Samples) else feeds
    for batch in batches:
        expected, actual = (
            dict(zip(tensors, session.run(batch, tensors), strict=True)) for session, tensors in sides
        )
        for name, (float_tensor, quantized_tensor) in names.items():
            a, b = expected[float_tensor], actual[quantized_tensor]
            if a.shape != b.shape or not (is_finite(a) and is_finite(b)):
                broken.add(name)
            else:
                comparisons[name].add(a, b)
    return {
        name: None if name in broken or not pair.elements else pair.sqnr_db
        for name, pair in comparisons.items()
    }


def _with_outputs(model: Model, tensors: Sequence[str], what: str) -> onnx.ModelProto:
    """Copy of a model whose graph outputs include `tensors`."""
    label = title(model, what)
    copy = onnx.ModelProto()
    try:
        copy.CopyFrom(model if isinstance(model, onnx.ModelProto) else onnx.load(os.fspath(model)))
    except Exception as error:
        raise ModelError(f"{label}: cannot be read: {first_line(error)}") from error
    known = {name for node in copy.graph.node for name in node.output}
    outputs = {output.name for output in copy.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in known:
            raise ModelError(f"{label}: no node computes a tensor {name!r}")
        if name not in outputs:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy
