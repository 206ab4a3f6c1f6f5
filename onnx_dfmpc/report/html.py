"""An outline as one page that needs nothing else: charts, style and script are inside, and the page may load
nothing.

Needs the extra ``report``: Jinja2 for the page, vl-convert for Vega-Lite and what it takes to draw its
charts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources, util
from typing import Any

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.report.outline import Block, Chart, Outline, Table

EXTRA = {"jinja2": "Jinja2", "vl_convert": "vl-convert-python"}
DRAW = "window.vegaEmbed = vegaEmbed;"
"""All that the page uses of the bundle."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
CONFIG = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        **dict.fromkeys(("labelColor", "titleColor"), "var(--ink-soft)"),
        **dict.fromkeys(("gridColor", "domainColor", "tickColor"), "var(--rule)"),
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "legend": {
        "orient": "top",
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "symbolSize": 70,
        "symbolStrokeWidth": 0,
        "columnPadding": 16,
        "offset": 6,
    },
}


def require_extra() -> None:
    """RecipeError where what makes a page is not installed: what is missing, and the extra to install."""
    missing = [name for module, name in EXTRA.items() if util.find_spec(module) is None]
    if missing:
        raise RecipeError(
            f"an HTML report needs {' and '.join(missing)}",
            hint="pip install 'onnx-dfmpc[report]', or write a .md file",
        )


def html_page(outline: Outline, wide: bool = True) -> str:
    """An outline as a complete page of about 1 MB, most of which is the library that draws the charts."""
    require_extra()
    import jinja2

    room = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    charts = [block for section in outline.sections for block in section.blocks if isinstance(block, Chart)]
    drawn = {"config": CONFIG, "specs": [chart.spec | {"description": chart.description} for chart in charts]}
    return room.get_template("page.html.j2").render(
        outline=outline,
        groups=_groups,
        kind=_kind,
        breakable=_breakable,
        position=charts.index,
        drawn=_embedded(drawn),
        bundle=_bundle() if charts else "",
        style=_template("page.css"),
        script=_template("page.js"),
    )


def _groups(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Charts that follow each other stand side by side, and so do short tables."""
    group: list[Block] = []
    for block in blocks:
        if group and not (_kind(block) == _kind(group[-1]) in ("chart", "table")):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _kind(block: Block) -> str:
    """Name of the macro that shows it."""
    return "long" if isinstance(block, Table) and block.long else type(block).__name__.lower()


def _breakable(text: str) -> Any:
    """Name that may break after its separators, and nowhere else unless it must."""
    import markupsafe

    return markupsafe.Markup("<wbr>").join(re.split(r"(?<=[/.:=])(?=\w)", text))


def _template(name: str) -> str:
    return resources.files("onnx_dfmpc.report").joinpath("templates", name).read_text(encoding="utf-8")


def _embedded(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    return str(vl_convert.javascript_bundle(DRAW)).replace("</script", "<\\/script")
