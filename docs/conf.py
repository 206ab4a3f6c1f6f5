"""The documentation site: ``make docs`` builds it into build/site from the pages of the repository.

Its source folder is the top of the repository, so that a link is the same on GitHub and on the site.
"""

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import onnx_dfmpc  # noqa: E402

project = "onnx_dfmpc"
copyright = "the authors of onnx_dfmpc, Apache-2.0"  # noqa: A001
version = release = onnx_dfmpc.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "models/*.md", "benchmarks/README.md", "benchmarks/results/*.md"]
exclude_patterns = [".*", "build", "dist", "**/node_modules"]

myst_heading_anchors = 4  # with the names that GitHub gives to headings
highlight_language = "text"
smartquotes = False  # -- is a flag, and quotes are typed

default_role = "py:obj"  # `Recipe` in a docstring
autodoc_typehints = "none"  # the docstrings name types in words
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["torch"]
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"onnx_dfmpc {release}"
html_static_path = ["static"]
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_extra_path = ["top"]  # the top of the site leads to docs/
html_copy_source = False
html_show_sphinx = False

COMMANDS = (
    "onnx-dfmpc",
    "pip",
    "pipx",
    "uv",
    "make",
    "python",
    "python3",
    "npm",
    "cp",
    "docker",
    "polygraphy",
    "export",
)
"""Programs that begin a block of commands."""

WIDTH = 84
"""Columns that a block has on a desktop."""


def shell_blocks(app: Sphinx, document: nodes.document) -> None:
    """Blocks of commands: highlighted as such, comments above their line, long lines continued."""
    for block in document.findall(nodes.literal_block):
        lines = block.astext().splitlines()
        first = next((line for line in lines if not line.startswith("#")), "").split()
        if block.get("language") in ("none", "text", "sh") and first and first[0] in COMMANDS:
            shown = "\n".join(part for line in lines for part in _shell(line))
            block["language"] = "sh"
            block.rawsource, block.children = shown, [nodes.Text(shown)]


def _shell(line: str) -> list[str]:
    command, comment = re.match(r"(.*?)\s*(# .*)?$", line).groups()
    rows = [""]
    for word in re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", command):
        if len(rows[-1]) + len(word) > WIDTH - 3:
            rows.append("   ")
        rows[-1] += f" {word}" if rows[-1] else word
    if len(command) <= WIDTH:
        rows = [command]
    return [part for part in (comment, " \\\n".join(rows)) if part] or [""]


def setup(app: Sphinx) -> None:
    """Let Sphinx know."""
    app.connect("doctree-read", shell_blocks)
