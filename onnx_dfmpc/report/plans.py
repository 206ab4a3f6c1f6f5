"""Plans as files: the JSON document of ``plan`` (described in docs/json.md), written, edited by hand, and
read back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.recipe import values as checks
from onnx_dfmpc.recipe.recipe import Storage
from onnx_dfmpc.report.document import (
    SCHEMA,
    Json,
    dumps,
    head,
    mean_bits,
    model_row,
    predicted_row,
    skipped_rows,
    write_text,
)
from onnx_dfmpc.result import PlanResult
from onnx_dfmpc.spec import Grid, Layer, LayerPlan, QuantPlan, Role, Rounding, Skipped, StorageFormat

__all__ = ["load_plan", "plan_document", "plan_result_document", "save_plan"]

PROPOSED = "proposed_bits"
"""What the tool chose: where the bits differ, somebody edited them."""

Check = tuple[str, Callable[[Any], Any]]


def _one_of(allowed: tuple[str, ...]) -> Check:
    return "one of " + ", ".join(allowed), checks.choice(*allowed)


def _optional(what: str, check: Callable[[Any], Any]) -> Check:
    return f"{what}, or null", lambda value: None if value is None else check(value)


TEXT: Check = ("text", checks.text)
NAME: Check = ("the name of a node", checks.name)
BITS: Check = ("an integer from 2 to 8", checks.integer(2, 8))
BYTES = _optional("an integer, 0 or more", checks.integer(0))
LAYER: Mapping[str, Check] = {
    "name": NAME,
    "bits": BITS,
    PROPOSED: BITS,
    "role": _one_of(get_args(Role)),
    "grid": _one_of(get_args(Grid)),
    "rounding": _one_of(get_args(Rounding)),
    "per_channel": ("true or false", checks.flag),
    "reason": TEXT,
    "noise": _optional("a number, 0 or more", checks.number(0)),
    "bytes": BYTES,
}
SHAPE: Mapping[str, Check] = {
    "op": TEXT,
    "shape": ("a list of integers", lambda value: [checks.integer(0)(size) for size in value]),
}
"""What a row says for the reader alone."""

LAYER_DEFAULTS: Json = {
    "role": "inner",
    "grid": "asymmetric",
    "rounding": "gptq",
    "per_channel": True,
    "reason": "plan",
}
SKIPPED: Mapping[str, Check] = {**LAYER, **SHAPE}
"""A row that was moved here from the layers keeps what it had."""

PREDICTED: Mapping[str, Check] = {
    "bytes": BYTES,
    "sqnr_db": _optional("a number of decibels", checks.number()),
    "provider": _optional("text", checks.text),
}


def plan_document(plan: QuantPlan) -> Json:
    """Document of a plan, from which `load_plan` makes it again."""
    return head("plan") | {
        "model": {"name": plan.model_name, "sha256": plan.model_sha256},
        "recipe": dict(plan.recipe),
        "form": asdict(plan.form),
        "predicted": predicted_row(plan),
        "layers": [
            {"name": layer.name, "bits": layer.bits, PROPOSED: layer.bits} | asdict(layer)
            for layer in plan.layers
        ],
        "skipped": skipped_rows(plan.skipped),
    }


def plan_result_document(result: PlanResult) -> Json:
    """Document of ``plan``: the plan, what it is for, and what other budgets buy."""
    document = plan_document(result.plan)
    matched = {layer.name: layer for layer in result.report.layers}
    planned = [(matched[layer.name].size, layer.bits) for layer in result.plan.layers]
    return document | {
        "model": document["model"] | model_row(result.source),
        "layers": [_with_shape(row, matched[row["name"]]) for row in document["layers"]],
        "totals": {
            "layers": len(planned),
            "skipped": len(result.plan.skipped),
            "weights": sum(count for count, _ in planned),
            "nominal_bits": mean_bits(planned),
        },
        "sweep": [asdict(point) for point in result.sweep],
        "notes": list(result.notes),
        "seconds": dict(result.seconds),
    }


def _with_shape(row: Json, layer: Layer) -> Json:
    return {"name": layer.name, "op": layer.op_type, "shape": list(layer.shape)} | row


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
    if not overwrite and os.path.lexists(path):
        raise RecipeError(
            f"{path}: exists already", hint="choose another output path, or overwrite it on purpose"
        )
    write_text(Path(path), dumps(plan_document(plan)) + "\n")


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
    try:
        return _plan(_parse(Path(path)))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}", hint=error.hint) from None


def _parse(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("no such plan", hint="make one with: onnx-dfmpc plan MODEL -o plan.json") from None
    except OSError as error:
        raise RecipeError(f"cannot read the plan: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"not a JSON file: {error}", hint="make it again with: onnx-dfmpc plan") from None
    if not isinstance(content, dict) or content.get("command") != "plan":
        raise RecipeError("not a plan", hint="make one with: onnx-dfmpc plan MODEL -o plan.json")
    if content.get("schema") != SCHEMA:
        raise RecipeError(
            f"schema = {content.get('schema')!r}: expected {SCHEMA}",
            hint="make it again with: onnx-dfmpc plan",
        )
    return content


def _plan(content: Json) -> QuantPlan:
    model = _table(content, "model")
    if not isinstance(model.get("sha256"), str):
        raise RecipeError("model: there is no sha256", hint="make the plan again with: onnx-dfmpc plan")
    rows = [_layer(position, row) for position, row in enumerate(_rows(content, "layers"), 1)]
    recipe = _table(content, "recipe")
    predicted = _checked("predicted", _table(content, "predicted"), PREDICTED)
    intact = all(proposed == layer.bits for layer, proposed in rows)
    return QuantPlan(
        model_sha256=model["sha256"],
        layers=tuple(layer for layer, _ in rows),
        skipped=tuple(_skipped(position, row) for position, row in enumerate(_rows(content, "skipped"), 1)),
        model_name=str(model.get("name", "")),
        form=_form(_table(content, "form")),
        recipe=_recipe_of("recipe", recipe).to_dict() if recipe else {},
        predicted_bytes=predicted.get("bytes") if intact else None,
        predicted_sqnr_db=predicted.get("sqnr_db") if intact else None,
        provider=(predicted.get("provider") or "") if intact else "",
    )


def _layer(position: int, row: Any) -> tuple[LayerPlan, int]:
    """Plan of a layer, and the bits that were proposed for it."""
    values = LAYER_DEFAULTS | _row(
        f"layers, row {position}", row, {**LAYER, **SHAPE}, required=("name", "bits")
    )
    proposed = values.pop(PROPOSED, values["bits"])
    layer = LayerPlan(**{key.name: values[key.name] for key in fields(LayerPlan) if key.name in values})
    if layer.grid == "ternary" and layer.bits != 2:
        layer = replace(layer, grid="symmetric")
    if layer.bits != proposed:
        layer = replace(
            layer, reason=f"plan: {layer.bits} bits instead of {proposed}", noise=None, bytes=None
        )
    return layer, proposed


def _skipped(position: int, row: Any) -> Skipped:
    values = _row(f"skipped, row {position}", row, SKIPPED, required=("name",))
    moved = "bits" in values or "reason" not in values
    return Skipped(values["name"], values.get("op", ""), "plan: stays float" if moved else values["reason"])


def _form(values: Mapping[str, Any]) -> StorageFormat:
    known = checks.settings(Storage)
    form = {key: value for key, value in (asdict(StorageFormat()) | dict(values)).items() if key in known}
    return _recipe_of("form", form).form


def _recipe_of(where: str, values: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.from_dict(values)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}", hint=error.hint) from None


def _table(content: Json, key: str) -> Mapping[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise RecipeError(f"{key} = {value!r}: expected an object")
    return value


def _rows(content: Json, key: str) -> list[Any]:
    value = content.get(key, [])
    if not isinstance(value, list):
        raise RecipeError(f"{key} = {value!r}: expected a list")
    return value


def _row(where: str, row: Any, known: Mapping[str, Check], *, required: tuple[str, ...]) -> dict[str, Any]:
    """Checked values of a row, whose name makes an error easier to find."""
    if not isinstance(row, dict):
        raise RecipeError(f"{where}: expected an object")
    where = f"{where} ({row['name']})" if isinstance(row.get("name"), str) else where
    try:
        checks.require_known(row, list(known))
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}", hint=error.hint) from None
    for key in required:
        if key not in row:
            raise RecipeError(f"{where}: there is no {key}")
    return _checked(where, row, known)


def _checked(where: str, values: Mapping[str, Any], known: Mapping[str, Check]) -> dict[str, Any]:
    found = {}
    for key, (allowed, check) in known.items():
        if key in values:
            try:
                found[key] = check(values[key])
            except (TypeError, ValueError):
                raise RecipeError(f"{where}: {key} = {values[key]!r}: expected {allowed}") from None
    return found
