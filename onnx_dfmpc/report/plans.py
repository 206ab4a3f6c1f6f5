"""Plans as files: the document of ``plan`` (docs/json.md), written, edited by hand, and read back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.model.writing import require_writable, write_whole
from onnx_dfmpc.pipeline.results import PlanResult
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.report.document import (
    SCHEMA,
    Count,
    Json,
    Name,
    Predicted,
    dumps,
    head,
    mean_bits,
    model_row,
    predicted_row,
    skipped_rows,
)
from onnx_dfmpc.report.schema import Expected, from_json, read_json, to_json
from onnx_dfmpc.rounding.rounding import ROUNDINGS
from onnx_dfmpc.spec import Grid, LayerPlan, QuantPlan, Role, Skipped, StorageFormat
from onnx_dfmpc.spec.widths import Width

RoundingName = Annotated[str, Expected("the name of a rounding method", lambda name: name in ROUNDINGS)]
Noise = Annotated[float, Expected("a number, 0 or more", lambda noise: noise >= 0)]

MAKE = "make it again with: onnx-dfmpc plan MODEL -o plan.json"


@dataclass(frozen=True)
class PlanRow:
    """A layer of a plan. Where `bits` differs from `proposed_bits`, somebody edited it; `op` and `shape` are
    for the reader alone.
    """

    name: Name
    bits: Width
    proposed_bits: Width | None = None
    op: str = ""
    shape: tuple[Count, ...] = ()
    role: Role = "inner"
    grid: Grid = "asymmetric"
    rounding: RoundingName = "gptq"
    per_channel: bool = True
    reason: str = "plan"
    noise: Noise | None = None
    bytes: Count | None = None

    other_keys: ClassVar[frozenset[str]] = frozenset()
    """None: a misspelled key would change nothing, silently."""


@dataclass(frozen=True)
class SkippedPlanRow:
    """A node that stays float; a row that was moved here from the layers keeps what it had."""

    name: Name
    op: str = ""
    reason: str | None = None
    bits: Width | None = None

    other_keys: ClassVar[frozenset[str]] = frozenset(key.name for key in fields(PlanRow))


@dataclass(frozen=True)
class PlannedModel:
    """The model that a plan is for."""

    sha256: str
    name: str = ""


@dataclass(frozen=True)
class PlanFile:
    """What is read of a plan; the rest of the document is for the reader."""

    model: PlannedModel
    layers: tuple[PlanRow, ...] = ()
    skipped: tuple[SkippedPlanRow, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    form: StorageFormat = field(default_factory=StorageFormat)
    predicted: Predicted = field(default_factory=Predicted)


def plan_document(plan: QuantPlan, result: PlanResult | None = None) -> Json:
    """Document of a plan, from which `load_plan` makes it again; of a `result` also what it is for and what
    other budgets buy.
    """
    report = None if result is None else result.report
    matched = {} if report is None else {one.name: one for one in report.weights}
    model = {"name": plan.model_name, "sha256": plan.model_sha256}
    rows = []
    for layer in plan.weights:
        row = PlanRow(
            proposed_bits=Width(layer.bits), **{key.name: getattr(layer, key.name) for key in fields(layer)}
        )
        found = matched.get(layer.name)
        rows.append(row if found is None else replace(row, op=found.op_type, shape=found.shape))
    document = head("plan", model if result is None else model | model_row(result.source)) | {
        "recipe": plan.recipe,
        "form": plan.form,
        "predicted": predicted_row(plan, None if result is None else result.expectation),
        "layers": rows,
        "skipped": skipped_rows(plan.skipped),
    }
    if result is not None:
        sharing = result.report.sharing(plan.bits)
        planned = [(matched[name].size, bits) for name, bits in plan.bits.items() if name not in sharing]
        document |= {
            "totals": {
                "layers": len(plan.bits),
                "skipped": len(plan.skipped),
                "weights": sum(count for count, _ in planned),
                "nominal_bits": mean_bits(planned),
            },
            "sweep": result.sweep,
            "notes": result.notes,
            "seconds": result.seconds,
        }
    return to_json(document)


def save_plan(plan: QuantPlan, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a plan as JSON, whole or not at all.

    Parameters
    ----------
    plan : QuantPlan
    path : path
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    RecipeError
        If the file exists and may not be overwritten, or cannot be written.
    """
    require_writable(path, overwrite=overwrite)
    write_whole(Path(path), dumps(plan_document(plan)).encode(), overwrite=overwrite)


def load_plan(path: str | os.PathLike[str]) -> QuantPlan:
    """Read a plan, edited or not.

    Where ``bits`` was edited, the reason says so, and the predictions, which do not hold any more, are
    dropped.

    Parameters
    ----------
    path : path

    Returns
    -------
    QuantPlan

    Raises
    ------
    RecipeError
        A file that cannot be read, is not a plan of this version, or has a value that is not allowed: the
        message says where.
    """
    content = read_json(path, MAKE, "plan")
    if not isinstance(content, dict) or content.get("command") != "plan":
        raise RecipeError(f"{path}: not a plan", hint=MAKE)
    if content.get("schema") != SCHEMA:
        raise RecipeError(f"{path}: schema = {content.get('schema')!r}: expected {SCHEMA}", hint=MAKE)
    plan = from_json(PlanFile, content, str(path))
    untouched = all(row.bits == (row.proposed_bits or row.bits) for row in plan.layers)
    predicted = plan.predicted if untouched else Predicted()
    return QuantPlan(
        model_sha256=plan.model.sha256,
        layers=tuple(_layer(row) for row in plan.layers if row.role != "plain"),
        plain=tuple(_layer(row) for row in plan.layers if row.role == "plain"),
        skipped=tuple(map(_skipped, plan.skipped)),
        model_name=plan.model.name,
        form=_recipe(f"{path}: form", to_json(plan.form)).form,
        recipe=_recipe(f"{path}: recipe", plan.recipe).to_dict() if plan.recipe else {},
        predicted_bytes=predicted.bytes,
        predicted_sqnr_db=predicted.sqnr_db,
        predicted_low_db=predicted.low_db,
        predicted_high_db=predicted.high_db,
        source=predicted.source or "",
    )


def _layer(row: PlanRow) -> LayerPlan:
    layer = LayerPlan(**{key.name: getattr(row, key.name) for key in fields(LayerPlan)})
    if layer.grid == "ternary" and layer.bits > 2:
        layer = replace(layer, grid="symmetric")
    if row.proposed_bits in (None, row.bits):
        return layer
    reason = f"plan: {row.bits} bits instead of {row.proposed_bits}"
    return replace(layer, reason=reason, noise=None, bytes=None)


def _skipped(row: SkippedPlanRow) -> Skipped:
    moved = row.bits is not None or row.reason is None
    return Skipped(row.name, row.op, "plan: stays float" if moved else row.reason or "")


def _recipe(where: str, values: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.from_dict(values)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}", hint=error.hint) from None
