"""Files made from the code are those that the code makes; schemas accept what we write and refuse the rest."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks import runtimes
from onnx_dfmpc.recipe import Recipe
from tests.conftest import ROOT, Run
from tools import generated, reference
from tools.schemas import document_schema, recipe_schema


def assert_in_step(made: Any) -> None:
    for path, content in made.items():
        assert (ROOT / path).read_text(encoding="utf-8") == content, f"{path}: make generated"


def test_schemas_are_in_step() -> None:
    assert_in_step(generated.schemas())


def test_the_reference_is_in_step() -> None:
    assert_in_step(reference.pages())


def test_pages_of_runtimes_are_in_step() -> None:
    for path, content in runtimes.pages(runtimes.kept()).items():
        assert (ROOT / path).read_text(encoding="utf-8") == content, "python -m benchmarks.runtimes --render"


def test_completion_is_in_step() -> None:
    pytest.importorskip("shtab", reason="shtab is not installed: the extra dev")
    assert_in_step(generated.completions())


def test_the_manual_is_in_step() -> None:
    pytest.importorskip("argparse_manpage", reason="argparse-manpage is not installed: the extra dev")
    assert_in_step(generated.manual())


def refused(schema: Any, content: Any) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: the extra test")
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    return [error.message for error in validator.iter_errors(content)]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(target_size="300KiB", set={"conv": 4}, nodes_to_exclude=["a"], min_cosine=0.9),
        Recipe(low_bits=2, images={"size": 256, "mean": (0.1, 0.2, 0.3), "crop": 0.875}, activations=8),
        Recipe(
            target_ratio=8,
            shapes={"x": (1, 3, 8, 8)},
            input_range=(0, 1),
            rules=[{"op_type": "Gemm", "bits": 8}],
        ),
    ],
)
def test_recipes_that_are_written_fit(recipe: Recipe) -> None:
    assert refused(recipe_schema(), tomllib.loads(recipe.to_toml())) == []


def test_recipes_of_the_pages_fit() -> None:
    blocks = re.findall(
        r"^```toml\n(.*?)^```", (ROOT / "docs/bits.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert blocks
    for block in blocks:
        assert refused(recipe_schema(), tomllib.loads(block)) == []


@pytest.mark.parametrize(
    "text",
    [
        "[target]\nbit = 4",
        "[targets]\nbits = 4",
        "[target]\npreset = 'tiny'",
        "[set]\na = 9",
        "[[rule]]\nbits = 'x'",
    ],
)
def test_recipes_that_are_wrong_do_not_fit(text: str) -> None:
    assert refused(recipe_schema(), tomllib.loads(text))


def test_documents_fit(digits_bn: Path, run: Run) -> None:
    for words in (
        ("inspect", digits_bn),
        ("quantize", digits_bn, "--bits", 4, "--dry-run", "--samples", 8),
        ("validate", digits_bn, digits_bn, "--samples", 8),
    ):
        code, out, err = run(*words, "--json", "-")
        assert code == 0, err
        assert refused(document_schema(), json.loads(out)) == []
    assert refused(document_schema(), {"schema": 2})
    assert refused(document_schema(), {"schema": 2, "command": "quantize", "layers": [{"name": 3}]})


def test_a_saved_recipe_names_its_schema(digits_bn: Path, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "recipe.toml"
    assert run("plan", digits_bn, "--bits", 4, "--save-recipe", path)[0] == 0
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("#:schema file://")
    schema = Path(first.removeprefix("#:schema file://"))
    assert json.loads(schema.read_text(encoding="utf-8"))["title"] == "Recipe of onnx-dfmpc"
    assert Recipe.from_toml(path).bits == 4
