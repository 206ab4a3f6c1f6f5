"""The page in a real browser: nothing loaded, nothing said on the console, nothing too wide or on top of
something else.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from benchmarks.browser import SIZES
from onnx_dfmpc import cli, report
from onnx_dfmpc.report.html import html_page
from onnx_dfmpc.report.outline import Chart
from onnx_dfmpc.report.renderers import outline, render
from tests.documents import LONG, NASTY, Json, quantized, validation

MOST_BYTES = 5_000_000
TOO_WIDE = """() => [...document.querySelectorAll("body *")]
  .filter((element) => !element.closest(".scroll, #vg-tooltip-element, .skip"))
  .filter((element) => element.getBoundingClientRect().right > innerWidth + 1 ||
  element.getBoundingClientRect().left < -1)
  .map((element) => `${element.tagName} ${element.textContent.slice(0, 40)}`)"""

CUT_OFF = """() => [...document.querySelectorAll("body *:not(svg *)")]
  .filter((element) => element.checkVisibility() && !element.matches(".scroll, .scroll *, .skip, .skip *"))
  .filter((element) => element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1)
  .map((element) => `${element.tagName} ${element.textContent.slice(0, 40)}`)"""

COMMON = """(boxes) => boxes.flatMap(([one, a], i) => boxes.slice(i + 1)
  .filter(([other, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1)
  .filter(([other, b]) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1)
  .map(([other, b]) => `${one.tagName} ${one.textContent.slice(0, 40)} / ${other.tagName}
  ${other.textContent.slice(0, 40)}`))"""

OVERLAPS = f"""() => [...document.querySelectorAll(
  "body, main, section, .charts, .tables, .figures, .caption, figure, .codes > div, header .inner"
)].flatMap((parent) => ({COMMON})([...parent.children]
  .filter((child) => child.checkVisibility() && !["fixed", "absolute",
  "sticky"].includes(getComputedStyle(child).position))
  .map((child) => [child, child.getBoundingClientRect()])))"""

LABELS_OVERLAP = f"""() => [...document.querySelectorAll(".role-axis-label")].flatMap((axis) =>
({COMMON})([...axis.children]
  .filter((text) => text.getAttribute("opacity") !== "0")
  .map((text) => [text, text.getBoundingClientRect()])))"""


class Opened:
    """A page in the browser, with everything it said and asked for."""

    def __init__(self, browser: Any, path: Path, size: str = "desktop") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on(
            "dialog", lambda dialog: (self.said.append(f"dialog {dialog.message}"), dialog.dismiss())
        )
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def column(self, title: str) -> list[str]:
        """Texts of a column of the table of all layers, as shown."""
        rows = self.page.locator("section", has=self.page.get_by_role("heading", name="Layers", exact=True))
        heads = [text.strip() for text in rows.locator("th").all_inner_texts()]
        return [
            text.strip()
            for text in rows.locator(
                f"tbody tr:visible td:nth-child({heads.index(title) + 1})"
            ).all_inner_texts()
        ]


@pytest.fixture(scope="module")
def document() -> Json:
    return quantized(validation=validation(drop=0.05))


@pytest.fixture(scope="module")
def path(document: Json, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("page") / "report.html"
    target.write_text(render([document], "html"), encoding="utf-8")
    return target


def require_sound(opened: Opened, path: Path) -> None:
    assert opened.said == []
    assert {url for url in opened.asked if not url.startswith("data:")} == {path.as_uri()}
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.page.evaluate(TOO_WIDE) == []
    assert opened.page.evaluate(CUT_OFF) == []
    assert opened.page.evaluate(OVERLAPS) == []
    assert opened.page.evaluate(LABELS_OVERLAP) == []


def test_page_says_when_and_what_now(browser: Any, path: Path, document: Json) -> None:
    with Opened(browser, path) as opened:
        assert "2026-01-31 12:34:56+01:00" in opened.page.locator("footer").inner_text()
        assert opened.page.get_by_role("heading", name="What now").count() == 1
        assert "--per-layer" in opened.page.inner_text("main") or "--set NAME=8" in opened.page.inner_text(
            "main"
        )


@pytest.mark.parametrize("size", SIZES)
def test_page_is_sound(browser: Any, path: Path, document: Json, size: str) -> None:
    charts = [
        block for part in outline([document]).sections for block in part.blocks if isinstance(block, Chart)
    ]
    drawn = {}
    with Opened(browser, path, size) as opened:
        for scheme in ("light", "dark"):
            opened.page.emulate_media(color_scheme=scheme)
            require_sound(opened, path)
            paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", paper)[:3])) / 3 > 200) == (scheme == "light")
            bar = opened.page.locator(".mark-rect path").first
            drawn[scheme] = bar.evaluate("(element) => getComputedStyle(element).fill")
        assert drawn["light"] != drawn["dark"]
        assert opened.page.locator("[data-chart] svg").count() == len(charts) == 9
        opened.page.set_viewport_size({"width": 740, "height": 1000})
        opened.page.emulate_media(media="print")
        assert not opened.page.locator("nav").is_visible()
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 740


def test_names_are_text(browser: Any, path: Path, document: Json) -> None:
    with Opened(browser, path) as opened:
        assert opened.said == []
        assert opened.column("layer") == [" ".join(row["name"].split()) for row in document["layers"]]
        assert opened.page.locator("main script").count() == 0


def test_hovering_names_the_layer_and_its_numbers(browser: Any, path: Path, document: Json) -> None:
    with Opened(browser, path) as opened:
        chart = opened.page.locator("figure", has_text="Bits of every layer")
        for bar, row in ((1, document["layers"][1]), (4, document["layers"][4])):
            chart.locator(".mark-rect path").nth(bar).hover()
            tooltip = opened.page.locator("#vg-tooltip-element.visible")
            tooltip.wait_for()
            text = tooltip.inner_text()
            assert row["name"] in text
            assert re.search(rf"bits\s+{row['bits']}\b", text)


def test_tables_sort_by_click_and_by_key(browser: Any, path: Path, document: Json) -> None:
    bits = sorted(str(row["bits"]) for row in document["layers"])
    sizes = sorted(row["bytes"] for row in document["layers"])
    with Opened(browser, path) as opened:
        rows = opened.page.locator(
            "section", has=opened.page.get_by_role("heading", name="Layers", exact=True)
        )
        head = rows.locator("th", has_text="bits")
        head.locator("button").click()
        assert (opened.column("bits"), head.get_attribute("aria-sort")) == (bits, "ascending")
        head.locator("button").focus()
        opened.page.keyboard.press("Enter")
        assert (opened.column("bits"), head.get_attribute("aria-sort")) == (bits[::-1], "descending")
        rows.locator("th", has_text="bytes").locator("button").click()
        assert opened.column("bytes") == [f"{size:,}" for size in sizes]
        assert head.get_attribute("aria-sort") is None


def test_tables_filter(browser: Any, path: Path, document: Json) -> None:
    with Opened(browser, path) as opened:
        rows = opened.page.locator(
            "section", has=opened.page.get_by_role("heading", name="Layers", exact=True)
        )
        rows.locator("input").fill("LAYER3 conv")
        assert opened.column("layer") == ["/layer3/conv/Conv"]
        assert rows.locator("output").inner_text() == f"1 of {len(document['layers'])} rows"
        rows.locator("input").fill("")
        assert len(opened.column("layer")) == len(document["layers"])


def test_everything_to_act_on_is_reached_by_key(browser: Any, path: Path) -> None:
    with Opened(browser, path) as opened:
        wanted = opened.page.locator("a:visible, button:visible, input:visible, .scroll, pre").count()
        reached = set()
        for _ in range(wanted + 20):
            opened.page.keyboard.press("Tab")
            reached.add(
                opened.page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)")
            )
        assert len(reached) >= wanted


def test_two_runs_as_a_page(browser: Any, tmp_path: Path) -> None:
    target = tmp_path / "diff.html"
    target.write_text(
        render([quantized(), quantized((8, 3, 3, 4, 6, 3, 8))], "html", ("a.json", "b.json")),
        encoding="utf-8",
    )
    with Opened(browser, target, "phone") as opened:
        require_sound(opened, target)
        assert opened.page.locator("[data-chart] svg").count() == 2


@pytest.mark.parametrize(
    "network", ["cifar10_resnet20_bn", pytest.param("cifar10_resnet56_bn", marks=pytest.mark.slow)]
)
def test_real_networks(browser: Any, shared_dir: Path, tmp_path: Path, network: str) -> None:
    model, target = shared_dir / "models" / f"{network}.onnx", tmp_path / "report.html"
    flags = ["--bits", "4", "-c", str(Path(__file__).with_name("fast.toml"))]
    flags += ["--samples", "2", "--dry-run", "-q", "--report", str(target)]
    assert cli.main(["quantize", str(model), *flags]) == 0
    assert target.stat().st_size < MOST_BYTES
    for size in SIZES:
        with Opened(browser, target, size) as opened:
            require_sound(opened, target)


# ---------------------------------------------------------------------------------------------------------------
# without a browser


def test_page_holds_all_it_needs(document: Json) -> None:
    page = render([document], "html")
    assert len(page.encode()) < MOST_BYTES
    assert NASTY not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert not re.search(r"unsafe-eval|https?:", policy[1])
    outside = page.partition('<script type="module">')[0]
    assert "</main>" in outside
    assert not re.search(r'(?:src|href)="(?!#|data:)', outside)


def marks(chart: Chart) -> str:
    return str(vl_convert.vegalite_to_svg(json.dumps(chart.spec)))


def test_every_chart_is_one(document: Json) -> None:
    """Another program than the browser draws each of them, with a mark for every layer."""
    charts = {
        block.title: marks(block)
        for part in outline([document]).sections
        for block in part.blocks
        if isinstance(block, Chart)
    }
    count = len(document["layers"])
    labels = {title: svg.count('aria-roledescription="') for title, svg in charts.items()}
    assert charts["Bits of every layer"].count('aria-roledescription="rect mark"') == count
    assert charts["Size of every layer"].count('aria-roledescription="rect mark"') == 2 * count
    assert charts["SQNR of every layer's output"].count('aria-roledescription="point"') == 2 * count
    assert charts["Predicted against measured"].count('aria-roledescription="point"') == count
    assert charts[LONG].count('aria-roledescription="rect mark"') == 10
    assert charts["Predicted SQNR by inputs"].count('aria-roledescription="point"') == 2
    assert charts["File size against output quality"].count('aria-roledescription="rule mark"') == 1
    assert all(labels.values()), labels


def luminance(colour: str) -> float:
    """Relative luminance of a colour, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_stands_out_from_what_it_stands_on(scheme: int) -> None:
    """At least 4.5 to 1, and 3 to 1 for what is drawn: WCAG 2, level AA."""
    style = Path(report.__file__).with_name("templates") / "page.css"
    blocks = re.findall(r":root \{(.*?)\n\s*\}", style.read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    text = [
        ("ink", "paper"),
        ("ink", "card"),
        ("ink-soft", "paper"),
        ("ink-soft", "card"),
        ("ink-soft", "shade"),
    ]
    text += [(tone, back) for tone in ("good", "bad", "warn") for back in ("card", f"{tone}-back")]
    for front, back in text:
        assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
    for drawn in ("now", "other", "mark"):
        assert contrast(colours[drawn], colours["card"]) >= 3, drawn


def test_a_page_without_charts() -> None:
    bare = {"schema": 2, "command": "validate", "model": {"path": "net.onnx", "sha256": "0" * 64}}
    page = html_page(outline([bare]))
    assert len(page) < 30_000
