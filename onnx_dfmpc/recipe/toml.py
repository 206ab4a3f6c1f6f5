"""Recipe files: TOML with sections, to and from the plain data of a recipe.

    [target]    one kind of bits: size, ratio, bits (mean), sqnr_db, preset, uniform_bits, or a pair
    [defaults]  method, statistics, storage, bounds on bits ...
    [[rule]]    node, regex or op_type, with bits, min_bits, max_bits or exclude; the last match wins
    [set]       "regex" = bits, for short; after the rules
    [validate]  data, labels, samples, gates ...
    [images]    how pictures become inputs: size, crop, mean, std, scale, layout, channels

`Sections` says which keys a section has, and which keyword of a recipe each of them is.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe.values import nearest

Sections = Mapping[str, Mapping[str, str]]

WHOLE = {"rule": "rules", "set": "set", "images": "images"}
"""Sections that are the value of one keyword."""


REMOVED = {
    "compensate": 'repair = "mean" in [defaults] is what compensate = false was',
    "bias_correction": 'repair = "gain" in [defaults] is what bias_correction = false was',
    "nodes_to_quantize": "nodes_to_exclude, or [[rule]] with exclude = true",
    "cost": "the noise is predicted from the statistics: leave it out",
    "low_position": "the layer of a pair that makes less noise gets the few bits: leave it out",
    "weight_format": "weights are codes with DequantizeLinear: leave it out",
    "providers": "models run on the CPU: leave it out",
    "batch_size": "batches are chosen: leave it out",
}
"""Keys of earlier versions, and what to write now."""


def read(path: str | os.PathLike[str], sections: Sections, paths: Collection[str]) -> dict[str, Any]:
    """Keywords and values that a file gives, not yet checked; its `paths` are relative to it. A RecipeError
    for a file that cannot be read, is not TOML, or has an unknown section or key.
    """
    file = Path(path)
    try:
        keywords = _keywords(_parse(file), sections)
        for key in keywords.keys() & paths:
            if not isinstance(keywords[key], str):
                raise RecipeError(f"{key} = {keywords[key]!r}: expected a path")
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}", hint=error.hint) from None
    for key in keywords.keys() & paths:
        if keywords[key]:
            keywords[key] = str(file.parent / keywords[key])
    return keywords


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("no such recipe file", hint="-c takes a recipe, a TOML file") from None
    except OSError as error:
        raise RecipeError(f"cannot read the recipe: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not a TOML file: {error}", hint="-c takes a recipe, a TOML file") from None


def _keywords(content: Mapping[str, Any], sections: Sections) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    for section, value in content.items():
        if section in WHOLE:
            keywords[WHOLE[section]] = value
        elif section in sections:
            if not isinstance(value, dict):
                raise RecipeError(
                    f"{section} = {value!r}: expected a section",
                    hint=f"write [{section}] on a line of its own",
                )
            for key, item in value.items():
                if key not in sections[section]:
                    hint = REMOVED.get(key) or _home(key, sections) or nearest(key, sections[section])
                    hint = hint or _near_home(key, sections)
                    known = "known keys: " + ", ".join(sections[section])
                    raise RecipeError(f"unknown key {key!r} in [{section}]", hint=hint or known)
                keywords[sections[section][key]] = item
        else:
            names = (*sections, *WHOLE)
            hint = (
                REMOVED.get(section)
                or _home(section, sections)
                or nearest(section, names)
                or "sections: " + ", ".join(names)
            )
            where = (
                f"section [{section}]" if isinstance(value, dict) else f"key {section!r} outside a section"
            )
            raise RecipeError(f"unknown {where}", hint=hint)
    return keywords


def _home(key: str, sections: Sections) -> str:
    """Hint with the section that a keyword belongs into, and its name there; "" where it is no keyword."""
    for section, keys in sections.items():
        for short, keyword in keys.items():
            if key == keyword:
                return f"write {short} in [{section}]"
    return ""


def _near_home(key: str, sections: Sections) -> str:
    """Hint with the key that a typing error stands for, and its section; "" where there is none like it."""
    for section, keys in sections.items():
        if hint := nearest(key, keys):
            return f"{hint.removesuffix('?')} in [{section}]?"
    return ""


def write(plain: Mapping[str, Any], sections: Sections, paths: Collection[str]) -> str:
    """Text of a recipe file that `read` reads back, wherever it lies: `paths` become absolute."""
    plain = {key: os.path.abspath(value) if key in paths else value for key, value in plain.items()}
    blocks = []
    for section, keys in sections.items():
        content = {short: plain[keyword] for short, keyword in keys.items() if keyword in plain}
        blocks += [_block(f"[{section}]", content)] if content else []
    blocks += [_block("[[rule]]", rule) for rule in plain.get("rules", ())]
    blocks += [_block("[images]", plain["images"])] if "images" in plain else []
    return "\n".join(blocks)


def schema_line() -> str:
    """First line of a recipe file, by which editors find the schema that is installed with the package."""
    return f"#:schema {(Path(__file__).parents[1] / 'schemas' / 'recipe.schema.json').as_uri()}\n"


def _block(head: str, content: Mapping[str, Any]) -> str:
    return "\n".join([head, *(f"{_key(key)} = {_literal(value)}" for key, value in content.items()), ""])


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _literal(key)


def _literal(value: Any) -> str:
    """Value as TOML, whose strings and arrays are those of JSON, but for one control character."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_literal(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
