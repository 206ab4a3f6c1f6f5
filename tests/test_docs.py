"""The pages say what is so: links lead somewhere, the map has every room, and what a reader would paste runs
on the shipped network: README and tutorial here, the others with `make test-all`.
"""

import re
import shlex
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import readme
from onnx_dfmpc.cli.flags import parse
from onnx_dfmpc.recipe import Recipe
from tests.conftest import ROOT, Run

FIRST = ("README.md",)
LATER = (
    "docs/tutorial.md",
    "docs/bits.md",
    "docs/python.md",
    "docs/report.md",
    "docs/storage.md",
    "docs/validate.md",
    "docs/runtimes/onnxruntime.md",
    *(f"docs/howto/{path.name}" for path in sorted((ROOT / "docs" / "howto").glob("*.md"))),
)
PAGES = (*FIRST, *LATER)
EVERY_PAGE = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "models/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
ELSEWHERE = ("torch", "spectrogram", "options.add_session_config_entry", "def test_")
"""What a block of Python says that needs more than the shipped network."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def commands(page: Path | str) -> list[list[str]]:
    """What follows ``onnx-dfmpc``, where it begins a line of an indented block, or of a block of shell."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = re.findall(r"^ {4}onnx-dfmpc (.*)$", text, re.MULTILINE)
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines += re.findall(r"^onnx-dfmpc (.*)$", block, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines if " [flags]" not in line]


def anchors(path: Path) -> set[str]:
    """Names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


def test_every_page_is_found_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"(docs/{page.name})" in text, page.name
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name == "index" or name.startswith("runtimes/") or f"\n{name}\n" in index, name


def test_every_measured_table_has_one_place() -> None:
    found = [
        marker
        for page in EVERY_PAGE
        for marker in re.findall(r"<!-- (\w+):begin -->", page.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == [
        "activations",
        "demo",
        "fast",
        "large",
        "latency",
        "networks",
        "newcomer",
        "presets",
        "ranges",
        "sizes",
        "sweep_log",
        "sweep_networks",
        "sweep_settings",
        "web",
    ]
    text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb"
    assert readme.replace(text, "x", "new") == text.replace("old", "new")
    assert {page for page in EVERY_PAGE if ":begin -->" in page.read_text(encoding="utf-8")} == set(
        readme.PAGES
    )


def test_the_map_has_every_room() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {name.strip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    rooms = {
        path.stem
        for path in (ROOT / "onnx_dfmpc").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__", "__main__"} <= named


def test_the_map_is_the_order_of_the_arrows() -> None:
    """A room stands below those that import it, in the map as in the contract."""
    rows = re.findall(
        r"^\| (`[^|]*`) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    place = {
        name.strip("/"): number for number, row in enumerate(rows) for name in re.findall(r"`([^`]+)`", row)
    }
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    layers = [
        [name for name in layer.replace("|", " ").split() if name in place] for layer in contract["layers"]
    ]
    for above, below in pairwise(layers):
        assert (
            not above or not below or max(place[name] for name in above) <= min(place[name] for name in below)
        ), (above, below)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader follows the pages, with a model, labelled data, and the recipe of a page."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(ROOT / "models" / "digits_resnet_bn.onnx", folder / "model.onnx")
    shutil.copy(ROOT / "models" / "digits_test.npz", folder / "test.npz")
    (folder / "zoo").mkdir()
    shutil.copy(folder / "model.onnx", folder / "zoo")
    np.savez(folder / "inputs.npz", input=np.load(folder / "test.npz")["input"][:4])
    (folder / "page").mkdir()
    return folder


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_the_pages_are_understood(page: Path) -> None:
    """Every flag there is one, and every value is allowed."""
    for words in commands(page):
        if words[0] not in ("--version", "--help"):
            parse(words)


@pytest.mark.parametrize("page", [*FIRST, *(pytest.param(page, marks=pytest.mark.slow) for page in LATER)])
def test_what_a_reader_would_paste_runs(
    page: str, desk: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for extra in ("jinja2", "vl_convert"):
        pytest.importorskip(extra, reason="the extra 'report' is not installed")
    monkeypatch.chdir(desk)
    recipes = [block for block in blocks(page, "toml") if "[target]" in block]
    recipes += [block for block in blocks("docs/bits.md", "toml") if "[target]" in block]
    (desk / "recipe.toml").write_text(recipes[0], encoding="utf-8")
    for block in blocks(page, "toml"):
        if "[setting." in block:
            (desk / "grid.toml").write_text(block, encoding="utf-8")
    if not (desk / "small.onnx").exists():
        assert run("quantize", "model.onnx", "-o", "small.onnx", "--bits", 4)[0] == 0
    for words in commands(page):
        overwrite = ["--overwrite"] if words[0] in ("quantize", "plan") else []
        code, _, err = run(*words, *overwrite)
        assert code == 0, (words, err)
    for block in blocks(page, "python"):
        if not any(word in block for word in ELSEWHERE):
            exec(compile(block, page, "exec"), {})


def test_recipes_of_the_pages_are_recipes(tmp_path: Path) -> None:
    found = [block for page in PAGES for block in blocks(page, "toml") if "[setting." not in block]
    assert found
    for number, block in enumerate(found):
        path = tmp_path / f"{number}.toml"
        path.write_text(block, encoding="utf-8")
        Recipe.from_toml(path)
