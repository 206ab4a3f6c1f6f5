"""JSON Schemas of recipe files and of documents, from the types that read them.

What JSON does not have (functions, arrays of NumPy) is left out; checks beyond the type are words in the
descriptions.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, InitVar, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from onnx_dfmpc.recipe import Preprocessing, Recipe, Rule
from onnx_dfmpc.recipe.recipe import SECTIONS
from onnx_dfmpc.recipe.values import settings
from onnx_dfmpc.report.document import SCHEMA, Document

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

SCALARS: Mapping[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    types.NoneType: {"type": "null"},
    Any: {},
}


def schema_of(hint: Any) -> Schema | None:
    """Schema of a type; None for a type that JSON does not have."""
    if isinstance(hint, InitVar):
        hint = hint.type
    origin, args = get_origin(hint), get_args(hint)
    hint = getattr(hint, "__supertype__", hint)  # of a NewType
    if hint in SCALARS:
        return SCALARS[hint]
    if origin is Annotated:
        inner = schema_of(args[0])
        return None if inner is None else inner | {"description": args[1].words}
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in map(schema_of, args) if kind is not None]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple and args[-1] is not ...:
        return {"type": "array", "prefixItems": [schema_of(arg) for arg in args], "items": False}
    if origin in (tuple, Iterable) and (items := schema_of(args[0])) is not None:
        return {"type": "array", "items": items}
    if origin is Mapping and (values := schema_of(args[1])) is not None:
        return {"type": "object", "additionalProperties": values}
    return _object(hint) if is_dataclass(hint) else None


def _object(kind: Any) -> Schema:
    """Schema of a dataclass that `from_json` reads: other keys are passed over."""
    hints = get_type_hints(kind, include_extras=True)
    required = [
        field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING
    ]
    properties = {field.name: schema_of(hints[field.name]) for field in fields(kind)}
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def document_schema() -> Schema:
    """Schema of ``--json``."""
    schema = _object(Document)
    schema["properties"] = {"schema": {"const": SCHEMA}, **schema["properties"]}
    schema["required"] = ["schema", *schema["required"]]
    return {"$schema": DRAFT, "title": "Document of onnx-dfmpc", **schema}


def _settings(kind: type, names: Mapping[str, str]) -> Schema:
    """Schema of a section: its keys, and the settings that they are."""
    hints, known = get_type_hints(kind), settings(kind)
    properties = {}
    for key, name in names.items():
        value = known[name].metadata["value"]
        schema = schema_of(hints[name]) or {}
        kinds = [one for one in schema.get("anyOf", [schema]) if one != {"type": "null"}]
        if kind is Preprocessing and any(one.get("type") == "array" for one in kinds):
            kinds.append({"type": "number"})  # one number for all
        if name == "target_size":
            kinds.append({"type": "string"})  # with a unit
        if value.choices is not None:
            kinds = [{"enum": sorted(value.choices)}]
        about = "; ".join(filter(None, (known[name].metadata["help"], value.allowed)))
        properties[key] = (kinds[0] if len(kinds) == 1 else {"anyOf": kinds}) | {"description": about}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def recipe_schema() -> Schema:
    """Schema of recipe files."""
    sections = {section: _settings(Recipe, keys) for section, keys in SECTIONS.items()}
    rule = _settings(Rule, {name: name for name in settings(Rule)})
    images = _settings(Preprocessing, {name: name for name in settings(Preprocessing)})
    by_regex = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 2, "maximum": 8}}
    return {
        "$schema": DRAFT,
        "title": "Recipe of onnx-dfmpc",
        "type": "object",
        "properties": sections
        | {"rule": {"type": "array", "items": rule}, "images": images, "set": by_regex},
        "additionalProperties": False,
    }
