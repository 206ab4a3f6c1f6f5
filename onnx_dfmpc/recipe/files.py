"""Recipe files: TOML with sections, or flat, to and from the plain data of a recipe.

    [target]      one kind of bits: size, bits (mean), sqnr_db, preset, low_bits and high_bits, or uniform_bits
    [defaults]    how: method, statistics, storage, bounds ...
    [[rule]]      node, regex or op_type, with bits, min_bits, max_bits or exclude; the last match wins
    [validate]    data, labels, samples, gates
    [images]      how pictures become inputs: size, crop, mean, std, scale, layout, channels
    [set]         "regex" = bits, for short; behind the rules

The flat form has every key at the top. In ``[target]`` the keys have short names; those of the flat form are
understood too.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe.checks import nearest

TARGET = {
    "low_bits": "low_bits",
    "high_bits": "high_bits",
    "uniform_bits": "bits",
    "size": "target_size",
    "bits": "target_bits",
    "sqnr_db": "target_sqnr_db",
    "preset": "preset",
}
"""Keys of ``[target]``, and the knobs that they are."""

VALIDATE = (
    *("data", "labels", "images", "samples", "shapes", "batch_size", "providers", "input_range", "seed"),
    *(
        "min_cosine",
        "min_sqnr_db",
        "max_top1_drop",
        "min_top1_agreement",
        "output_gates",
        "per_layer",
        "latency",
    ),
)
"""Knobs of ``[validate]``."""

EITHER = ("input_range", "seed", "images", "shapes")
"""Those that the statistics share, and that ``[defaults]`` may hold as well."""

PATHS = ("calibration_data", "data", "labels")
"""Knobs that are paths, in a file relative to it."""

TABLES = {"rule": "rules", "rules": "rules", "set": "set"}
SECTIONS = ("target", "defaults", "rule", "validate", "set", "images", "shapes", "output_gates")


def read_recipe(path: str | os.PathLike[str], knobs: Iterable[str]) -> dict[str, Any]:
    """Values of the knobs that a recipe file gives, not yet checked.

    Parameters
    ----------
    path : path
    knobs : iterable of str
        All knobs that there are.

    Raises
    ------
    RecipeError
        A file that cannot be read, is not TOML, or has an unknown section or key.
    """
    file = Path(path)
    try:
        values = _flat(_parse(file), tuple(knobs))
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}", hint=error.hint) from None
    for key in PATHS:
        if isinstance(values.get(key), str) and values[key]:
            values[key] = str(file.parent / values[key])
    return values


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("no such recipe file") from None
    except OSError as error:
        raise RecipeError(f"cannot read the recipe: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not a TOML file: {error}") from None


def _flat(content: Mapping[str, Any], knobs: tuple[str, ...]) -> dict[str, Any]:
    """Sections and keys at the top to knobs."""
    homes = _homes(knobs)
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key in homes:
            _require_table(key, value)
            for short, item in value.items():
                _put(values, _knob_of(key, short, homes), item, f"{key}.{short}")
        elif key in TABLES or key in knobs:
            _put(values, TABLES.get(key, key), value, key)
        elif isinstance(value, dict):
            raise RecipeError(
                f"unknown section [{key}]", hint=nearest(key, SECTIONS) or "sections: " + ", ".join(SECTIONS)
            )
        else:
            raise RecipeError(
                f"unknown key {key!r}",
                hint=nearest(key, (*knobs, *SECTIONS)) or "known keys: " + ", ".join(knobs),
            )
    return values


def _homes(knobs: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Keys of each section, and the knobs that they are."""
    elsewhere = {*TARGET.values(), *TABLES.values(), *VALIDATE} - set(EITHER)
    return {
        "target": TARGET | {knob: knob for knob in TARGET.values() if knob not in TARGET},
        "defaults": {knob: knob for knob in knobs if knob not in elsewhere},
        "validate": {knob: knob for knob in VALIDATE},
    }


def _knob_of(section: str, key: str, homes: Mapping[str, Mapping[str, str]]) -> str:
    if key in homes[section]:
        return homes[section][key]
    others = [name for name, keys in homes.items() if key in keys]
    hint = (
        f"it belongs into [{others[0]}]"
        if others
        else nearest(key, homes[section]) or "known keys: " + ", ".join(homes[section])
    )
    raise RecipeError(f"unknown key {key!r} in [{section}]", hint=hint)


def _put(values: dict[str, Any], knob: str, value: Any, where: str) -> None:
    if knob in values:
        raise RecipeError(f"{where} is given twice", hint="keep it in its section, or at the top of the file")
    values[knob] = value


def _require_table(key: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise RecipeError(
            f"{key} = {value!r}: expected a section", hint=f"write [{key}] on a line of its own"
        )


def write_recipe(values: Mapping[str, Any]) -> str:
    """Recipe file with sections that `read_recipe` reads back, wherever it lies: paths become absolute.

    Parameters
    ----------
    values : mapping
        Plain data of a recipe.
    """
    values = {
        key: os.path.abspath(value) if key in PATHS else value for key, value in values.items() if value != []
    }
    short = {knob: key for key, knob in TARGET.items()}
    homes = _homes(tuple(values))
    sections = {
        "target": {short[knob]: value for knob, value in values.items() if knob in short},
        "defaults": {knob: value for knob, value in values.items() if knob in homes["defaults"]},
        "validate": {
            knob: value for knob, value in values.items() if knob in VALIDATE and knob not in EITHER
        },
    }
    blocks = [_lines({"set": values["set"]})] if values.get("set") else []
    blocks += [f"[{name}]\n{_lines(content)}" for name, content in sections.items() if content]
    blocks += [f"[[rule]]\n{_lines(rule)}" for rule in values.get("rules", ())]
    return "\n".join(blocks)


def _lines(content: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_literal(value)}\n" for key, value in content.items())


def _literal(value: Any) -> str:
    """Value as TOML, whose strings and arrays are those of JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)} = {_literal(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
