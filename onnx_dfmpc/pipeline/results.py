"""What a run leaves: a quantized model, or a plan for one, with the account of how it came about."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from onnx_dfmpc.evaluate.command import repeat_command
from onnx_dfmpc.evaluate.compare import ComparisonResult as ComparisonResult
from onnx_dfmpc.evaluate.validation import ValidationReport
from onnx_dfmpc.model.files import LoadedModel, drafted
from onnx_dfmpc.model.ir import from_proto
from onnx_dfmpc.model.writing import Draft, publish
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.spec import (
    Advice,
    Chain,
    Expectation,
    IntegerActivations,
    Latency,
    LayerEffect,
    LayerReport,
    MatchReport,
    QuantPlan,
    Skipped,
    SweepPoint,
    WeightHistogram,
)
from onnx_dfmpc.statistics.belief import Belief

if TYPE_CHECKING:
    import onnx_ir


@dataclass(frozen=True, eq=False)
class QuantizeResult:
    """A quantized model and the account of how it came about.

    Attributes
    ----------
    model : ModelProto
    source : LoadedModel
        The float model it comes from.
    plan : QuantPlan
    recipe : Recipe
    layers : tuple of LayerReport
        One for each quantized layer, in topological order.
    chains : tuple of Chain
    skipped : tuple of Skipped
        Every weighted node that stayed float, and why.
    size : int
        Bytes on disk: of the file once it is saved, of the serialized model before.
    notes : tuple of str
        Remarks on the model as a whole, such as a raised opset.
    seconds : dict
        Wall time of each stage.
    names : dict
        Short names in the model, and what tensors were called before; empty where it is not slim.
    expectation : Expectation or None
        What the output SQNR on real inputs is expected to be, from synthetic ones of every plausible kind;
        None where the model was not run.
    activations : IntegerActivations or None
        Which activations are in 8 bits, and what ONNX Runtime makes of them; None where they are float.
    validation : ValidationReport or None
        None where it was left out.
    output : Path or None
        Where it was saved.
    histograms : tuple of WeightHistogram
        Weights of a few layers before and after: the first, the last, those that changed most.
    sweep : tuple of SweepPoint
        What other budgets would have bought, as predicted, where bits were chosen for a target.
    latency : Latency or None
        None where it was not asked for.
    per_layer : tuple of LayerEffect
        What every layer alone does to the outputs, the worst first; empty where it was not asked for.
    advice : tuple of Advice
        Changes to the recipe that were tried and help; empty where ``per_layer`` is.
    """

    model: ModelProto
    source: LoadedModel
    plan: QuantPlan
    recipe: Recipe
    layers: tuple[LayerReport, ...]
    chains: tuple[Chain, ...]
    skipped: tuple[Skipped, ...]
    size: int
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    names: Mapping[str, str] = field(default_factory=dict)
    expectation: Expectation | None = None
    activations: IntegerActivations | None = None
    validation: ValidationReport | None = None
    output: Path | None = None
    histograms: tuple[WeightHistogram, ...] = ()
    sweep: tuple[SweepPoint, ...] = ()
    latency: Latency | None = None
    per_layer: tuple[LayerEffect, ...] = ()
    advice: tuple[Advice, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it: no validation failed."""
        return self.validation is None or bool(self.validation)

    def to_ir(self) -> onnx_ir.Model:
        """Return the model as an ``onnx_ir.Model``; needs onnx-ir."""
        return from_proto(self.model)

    def save(
        self, path: str | os.PathLike[str], *, external_data: bool = False, overwrite: bool = False
    ) -> QuantizeResult:
        """Write the model, whole or not at all.

        Parameters
        ----------
        path : path
        external_data : bool
            Put the weights into a file beside it.
        overwrite : bool
            Replace an existing file.

        Returns
        -------
        QuantizeResult
            The same result, knowing where it lies and how large it is.

        Raises
        ------
        RecipeError
            If the file exists and may not be overwritten, is the input or its external data, or cannot be
            written.
        """
        with self.drafted(path, external_data=external_data, overwrite=overwrite) as drafts:
            publish(drafts)
            return self.saved_as(path, drafts)

    def drafted(
        self, path: str | os.PathLike[str], *, external_data: bool = False, overwrite: bool = False
    ) -> AbstractContextManager[tuple[Draft, ...]]:
        """The files of `save`, complete and not yet in place."""
        return drafted(
            self.model, path, external_data=external_data, overwrite=overwrite, protected=self.source.files
        )

    def saved_as(self, path: str | os.PathLike[str], drafts: Sequence[Draft]) -> QuantizeResult:
        """The same result, knowing where it will lie, and how large."""
        size = sum(one.size for one in drafts)
        return replace(self, size=size, output=Path(path), validation=self._repeatable(path))

    def _repeatable(self, path: str | os.PathLike[str]) -> ValidationReport | None:
        """Validation with the command that repeats it on the file."""
        if self.validation is None or self.source.path is None:
            return self.validation
        command = repeat_command(self.source.path, path, self.recipe, self.recipe)
        return replace(self.validation, command=command)


@dataclass(frozen=True, eq=False)
class PlanResult:
    """A plan and the account of how it came about.

    Attributes
    ----------
    source : LoadedModel
        The float model that it is for.
    report : MatchReport
    plan : QuantPlan
    recipe : Recipe
    sweep : tuple of SweepPoint
        Size against quality for other budgets, where they were asked for.
    notes : tuple of str
    seconds : dict
        Wall time of each stage.
    expectation : Expectation or None
        As in `QuantizeResult`.
    """

    source: LoadedModel
    report: MatchReport
    plan: QuantPlan
    recipe: Recipe
    sweep: tuple[SweepPoint, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    expectation: Expectation | None = None


@dataclass(frozen=True, eq=False)
class InspectResult:
    """What there is to quantize, and what the inputs are taken for.

    Attributes
    ----------
    source : LoadedModel
    report : MatchReport
    belief : Belief or None
        None where nobody can tell: there is no layer, or an input is no tensor of numbers.
    notes : tuple of str
    """

    source: LoadedModel
    report: MatchReport
    belief: Belief | None
    notes: tuple[str, ...]
