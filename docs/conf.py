"""The documentation site: ``make docs`` builds it into build/site from the pages of the repository as they are.

The source folder is the top of the repository, so that a link from page to page is the same file on GitHub and here.
"""

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
html_css_files = ["site.css"]
html_extra_path = ["static/top"]  # the top of the site leads to docs/
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


def commands_are_shell(app: Sphinx, document: nodes.document) -> None:
    """Indented blocks of commands are highlighted as such, and wrap on a phone; other blocks keep their columns."""
    for block in document.findall(nodes.literal_block):
        lines = block.astext().splitlines()
        first = next((line for line in lines if not line.startswith("#")), "").split()
        if block.get("language", "text") in ("text", "default", "none") and first and first[0] in COMMANDS:
            block["language"] = "sh"


def setup(app: Sphinx) -> None:
    """Let Sphinx know."""
    app.connect("doctree-read", commands_are_shell)
