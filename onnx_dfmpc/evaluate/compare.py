"""Float model against quantized model under ONNX Runtime: the proof of how far the outputs moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.evaluate.classes import check_classes
from onnx_dfmpc.evaluate.command import repeat_command
from onnx_dfmpc.evaluate.gates import check_gates
from onnx_dfmpc.evaluate.metrics import Comparison, is_finite
from onnx_dfmpc.evaluate.tally import Tally
from onnx_dfmpc.evaluate.validation import DefaultRun, ValidationReport
from onnx_dfmpc.inputs.data import samples_of
from onnx_dfmpc.inputs.samples import Samples
from onnx_dfmpc.inputs.specs import fixed_batch
from onnx_dfmpc.recipe import Data, DataSource, Gates, LabelSource, Preprocessing
from onnx_dfmpc.recipe.values import from_mapping
from onnx_dfmpc.runtime.session import (
    Model,
    Output,
    Session,
    check_providers,
    check_same_interface,
    is_weight_only,
)

Progress = Callable[[str, int, int], None]


def validate(
    float_model: Model,
    quantized_model: Model,
    data: DataSource | None = None,
    labels: LabelSource | None = None,
    *,
    gates: Gates | Mapping[str, float] | None = None,
    samples: int | None = None,
    seed: int = 0,
    input_range: tuple[float, float] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    images: Preprocessing | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> ValidationReport:
    """Compare a quantized model with the float model it comes from, under ONNX Runtime.

    Parameters
    ----------
    float_model, quantized_model : path or onnx.ModelProto
        Inputs and outputs have the same names.
    data : path, mapping of arrays, array, or callable, optional
        Real inputs, and labels; see `Recipe`. None takes seeded synthetic inputs: a sanity
        check, not accuracy.
    labels : path or int array of shape (n,), optional
        Class indices, counted from 0.
    gates : Gates or mapping, optional
        Limits by name: ``min_cosine``, ``min_sqnr_db`` (dB), ``max_top1_drop``, ``min_top1_agreement``
        (fractions), for the worst output.
    samples : int, optional
        At most so many samples of `data`, or so many synthetic ones.
    seed : int
        Seed of the choice of samples and of synthetic inputs.
    input_range : (float, float), optional
        Range of synthetic inputs.
    shapes : mapping, optional
        Shapes of inputs with open dimensions, by name.
    images : Preprocessing or mapping, optional
        How pictures become inputs, where `data` is a folder of them, such as ``{"size": 256, "crop": 224,
        "mean": 127, "scale": 1}``.
    progress : callable, optional
        Called with ``("validate", samples done, samples)``.

    Returns
    -------
    ValidationReport

    Raises
    ------
    RecipeError
        Data that does not fit the model, a setting that makes no sense, or a gate that cannot be evaluated.
    ModelError
        A model that cannot be loaded or run, or models whose inputs or outputs do not correspond.
    """
    given = {
        "samples": samples,
        "seed": seed,
        "input_range": input_range,
        "shapes": shapes or {},
        "images": images or {},
    }
    asked = Data(data=data, labels=labels, **given)  # type: ignore[arg-type]
    return compare(
        float_model, quantized_model, asked, gates=from_mapping(Gates, gates or {}), progress=progress
    )


def compare(
    float_model: Model,
    quantized_model: Model,
    feeding: Data,
    *,
    gates: Gates | None = None,
    providers: Sequence[str] = (),
    progress: Progress | None = None,
) -> ValidationReport:
    """`validate`, with all that there is to say about inputs in one `Data`.

    Weight-only models run with ``session.disable_quant_qdq=1``, which folds the dequantized weights at load:
    float speed, and exact arithmetic. One batch runs with default session options too, because that is what a
    user who sets nothing gets.
    """
    weight_only, on = is_weight_only(quantized_model), check_providers(providers)
    float_session = Session(float_model, "float model", providers=on)
    quantized_session = Session(quantized_model, "quantized model", disable_qdq=weight_only, providers=on)
    check_same_interface(float_session, quantized_session)
    feeds = samples_of(float_session.specs(), feeding)
    gates = gates or Gates()
    check_gates(gates, labelled=feeds.labels is not None)
    feeds = _runnable(float_session, feeds)

    tally = Tally(float_session.outputs, feeds.labels)
    default_run = None
    for start, stop, batch in feeds.batches():
        actual = quantized_session.run(batch, float_session.outputs)
        tally.add(start, stop, float_session.run(batch), actual)
        if start == 0 and weight_only:
            default_run = _run_default(quantized_model, batch, actual, float_session.outputs, stop, on)
        if progress is not None:
            progress("validate", stop, feeds.count)
    if isinstance(default_run, str):
        tally.failures["default options"] = default_run
        default_run = None
    return tally.report(
        gates,
        samples=feeds.count,
        data=feeds.description,
        synthetic=feeds.synthetic,
        weight_only=weight_only,
        default_run=default_run,
        notes=feeds.notes,
        command=repeat_command(float_model, quantized_model, feeding, gates),
    )


def _run_default(
    model: Model,
    batch: Mapping[str, Output],
    expected: Sequence[Any],
    names: Sequence[str],
    samples: int,
    providers: Sequence[str],
) -> DefaultRun | str:
    """Run one batch with default session options; a reason in words where that is not possible."""
    try:
        actual = Session(model, "quantized model", providers=providers).run(batch, names)
    except ModelError as error:
        return f"with default session options: {error}"
    pair = Comparison()
    for name, a, b in zip(names, expected, actual, strict=True):
        if not isinstance(b, np.ndarray) or b.dtype.kind not in "biuf":
            continue
        if not is_finite(b):
            return f"with default session options: quantized model: NaN or infinity in output {name!r}"
        if is_finite(a):
            pair.add(a, b)
    return (
        DefaultRun(samples, pair.max_abs, pair.sqnr_db) if pair.elements else DefaultRun(samples, None, None)
    )


def check_data(
    float_model: Model, feeding: Data, *, gates: Gates | None = None, providers: Sequence[str] = ()
) -> None:
    """Raise now, before a model is quantized, what `compare` would say to data and gates afterwards.

    Raises
    ------
    RecipeError
        Data or labels that do not fit the model, a gate that cannot be evaluated, or an execution provider
        that is not there.
    ModelError
        A float model that cannot run on the data.
    """
    session = Session(float_model, "float model", providers=check_providers(providers))
    feeds = samples_of(session.specs(), feeding)
    check_gates(gates or Gates(), labelled=feeds.labels is not None)
    if not feeds.synthetic:
        _runnable(session, feeds if fixed_batch(session.specs()) else replace(feeds, batch=1))


def _runnable(session: Session, feeds: Samples) -> Samples:
    """Choose batches, or one by one for a model that calls its batch dynamic and is not; look at what the
    labels are for.
    """
    _, count, batch = next(feeds.batches())
    try:
        outputs = session.run(batch)
    except ModelError:
        if count == 1:
            raise
        count, feeds = (
            1,
            replace(feeds, batch=1, notes=(*feeds.notes, "run one by one: the model does not take batches")),
        )
        outputs = session.run(next(feeds.batches())[2])
    if feeds.labels is not None:
        check_classes(feeds.labels, zip(session.outputs, outputs, strict=True), count)
    return feeds
