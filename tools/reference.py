"""Pages of the reference that the code writes: flags, settings of recipes, keys of documents, modules."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from onnx_dfmpc.cli.flags import EXIT_CODES, PROGRAM, _parser
from onnx_dfmpc.recipe import Preprocessing, Recipe, Rule
from onnx_dfmpc.recipe.recipe import SECTIONS
from onnx_dfmpc.recipe.values import settings
from tools import modules
from tools.schemas import Schema, document_schema

NOTE = "<!-- made by `make generated` from the code: change it there -->"


def pages() -> Mapping[str, str]:
    """Path to content."""
    made = {"cli": command_line(), "recipe": recipe(), "document": document(), "modules": modules.page()}
    return {f"docs/reference/{name}.md": _page(text) for name, text in made.items()}


def _page(text: str) -> str:
    title, rest = text.split("\n", 1)
    return f"{title}\n\n{NOTE}\n{rest.rstrip()}\n"


def _markdown(text: str) -> str:
    """Plain text as Markdown: what a reader would type or replace is code."""
    text = re.sub(r"(?<![\w`])(--?[a-z][\w-]*)", r"`\1`", text)
    return text.replace("*", r"\*").replace("<", r"\<").replace("%%", "%")


def _code(text: str) -> str:
    return f"`{text}`"


# ---------------------------------------------------------------------------------------------------
# flags


def command_line() -> str:
    """Every command with its flags."""
    parser, commands = _parser()
    parts = [
        "# Commands and flags",
        f"{parser.description} `{PROGRAM} COMMAND --help` says the same in a terminal.",
    ]
    for name, command in commands.items():
        words = [PROGRAM, name, *(_shown(action) for action in command._actions if not action.option_strings)]
        parts += [f"## {name}", str(command.description), f"    {' '.join(words)} [flags]"]
        for group in command._action_groups:
            flags = [line for action in group._group_actions if (line := _flag(action))]
            title = (
                "" if group.title in ("positional arguments", "options") else str(group.title).capitalize()
            )
            about = f" {_markdown(group.description)}" if group.description else ""
            parts += [f"**{title}.**{about}"] if title and flags else []
            parts += ["\n".join(flags)] if flags else []
    parts += ["## Exit codes", f"{EXIT_CODES.partition(' See ')[0]} [More](../exit-codes.md)."]
    return "\n\n".join(parts)


def _shown(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    return f"{name} [{name} ...]" if action.nargs == "+" else name


def _flag(action: argparse.Action) -> str:
    """A line for an argument; "" for `--help`, which every command has."""
    if action.dest == "help":
        return ""
    names = action.option_strings or [_shown(action)]
    value = ""
    if action.option_strings and action.nargs != 0:
        word = str(action.metavar or ("VALUE" if action.choices else action.dest.upper()))
        value = {"?": f" [{word}]", "+": f" {word} ..."}.get(str(action.nargs), f" {word}")
    about = _about(str(action.help or ""), action.choices if action.option_strings else None)
    return f"* `{', '.join(names)}{value}`: {about}"


def _about(text: str, choices: Iterable[str] | None) -> str:
    """Help, and the choices that it does not name itself."""
    listed = ", ".join(map(_code, choices or ()))
    named = all(re.search(rf"\b{re.escape(choice)}\b", text) for choice in choices or ())
    return _markdown(text) if named else f"{_markdown(text)}: {listed}"


# ---------------------------------------------------------------------------------------------------
# recipes


def recipe() -> str:
    """Every setting, in the sections of a recipe file."""
    parts = [
        "# Settings of a recipe",
        "What a recipe file ([bits.md](../bits.md#recipes)) and the constructor of "
        "[`Recipe`](../python.md) take. From Python, the keys of `[target]` are the names of their flags, "
        "with underscores, and `uniform_bits` is `bits`. "
        "The [JSON Schema](../../onnx_dfmpc/schemas/recipe.schema.json) has the same; "
        "`onnx-dfmpc plan --save-recipe` names it in the file for editors.",
    ]
    known = settings(Recipe)
    for section, keys in SECTIONS.items():
        lines = [_setting(key, known[name]) for key, name in keys.items()]
        parts += [f"## [{section}]", "\n".join(lines)]
    parts += ["## [[rule]]", "Rules come after everything else; the last one that matches a layer wins."]
    parts += ["\n".join(_setting(name, field) for name, field in settings(Rule).items())]
    parts += ["## [set]", 'Regular expressions and bits, a short form of rules: `"fc" = 6`.']
    parts += [
        "## [images]",
        "How pictures become inputs, `(pixel * scale - mean) / std` ([validate.md](../validate.md#images)).",
    ]
    parts += ["\n".join(_setting(name, field) for name, field in settings(Preprocessing).items())]
    return "\n\n".join(parts)


def _setting(key: str, field: Any) -> str:
    value = field.metadata["value"]
    about = _about(field.metadata["help"], value.choices).removeprefix(": ")
    allowed = _markdown(value.allowed)
    flag = f" (`{field.metadata['flag']}`)" if field.metadata["flag"] else ""
    text = ". ".join(part[:1].upper() + part[1:] for part in (about, allowed) if part)
    return f"* `{key}`{flag}: {text}"


# ---------------------------------------------------------------------------------------------------
# documents


def document() -> str:
    """Every key of ``--json``, with its type."""
    schema = document_schema()
    parts = [
        "# Keys of the JSON document",
        "What `--json` writes, by type; keys without *always* may be absent. [json.md](../json.md) says what "
        "the keys mean. The "
        "[JSON Schema](../../onnx_dfmpc/schemas/document.schema.json) has the same for programs.",
        "## The document",
    ]
    parts += ["\n".join(_keys(schema))]
    for name, inner in _objects(schema, ""):
        parts += [f"## {name}", "\n".join(_keys(inner))]
    return "\n\n".join(parts)


def _keys(schema: Schema) -> Iterator[str]:
    required = schema.get("required", ())
    for key, inner in schema["properties"].items():
        yield f"* `{key}`: {_type(inner)}{', always' if key in required else ''}"


def _objects(schema: Schema, name: str) -> Iterator[tuple[str, Schema]]:
    """Objects below a schema, by the path of their key."""
    for key, inner in schema.get("properties", {}).items():
        path = f"{name}.{key}" if name else key
        for one in inner.get("anyOf", [inner]):
            item, mark = (one["items"], "[]") if isinstance(one.get("items"), dict) else (one, "")
            if "properties" in item:
                yield f"{path}{mark}", item
                yield from _objects(item, f"{path}{mark}")


def _type(schema: Schema) -> str:
    if "const" in schema:
        return _code(str(schema["const"]))
    if "enum" in schema:
        return ", ".join(_code(f'"{one}"') for one in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "prefixItems" in schema:
        return f"array of {len(schema['prefixItems'])}: {', '.join(map(_type, schema['prefixItems']))}"
    if schema.get("type") == "array":
        return f"array of {_type(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object with values of {_type(schema['additionalProperties'])}"
    return str(schema.get("type", "anything"))
