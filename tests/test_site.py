"""The site that ``make docs`` built: every link leads somewhere, every page looks well on a desktop and on a
phone, and the search finds what one would type.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from benchmarks.browser import SIZES
from tests.conftest import ROOT

SITE = ROOT / "build" / "site"
pytestmark = pytest.mark.slow

WIDE = """() => [...document.querySelectorAll("article *")]
  .filter((element) => !element.closest(".table-wrapper, pre, .headerlink, .visually-hidden"))
  .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
  .map((element) => `${element.tagName} ${element.textContent.slice(0, 40)}`)"""
CUT_CODE = """() => [...document.querySelectorAll("article .highlight pre")]
  .filter((element) => !element.closest(".highlight-text, .highlight-none"))
  .filter((element) => element.scrollWidth > element.clientWidth + 1)
  .map((element) => element.textContent.slice(0, 60))"""
BROKEN_PICTURES = (
    """() => [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src)"""
)


class Page(HTMLParser):
    """What a page links to, and what of it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        found = dict(attributes)
        self.links |= {found[key] for key in ("href", "src") if found.get(key)}
        self.names |= {found[key] for key in ("id", "name") if found.get(key)}


@cache
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def paths() -> list[Path]:
    return sorted(SITE.rglob("*.html"))


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if not (SITE / "docs" / "index.html").is_file():
        pytest.skip("no site in build/site: make docs builds it")


def test_links_inside_lead_somewhere() -> None:
    broken = []
    for path in paths():
        for link in page(path).links:
            address, anchor = urldefrag(link)
            if urlsplit(address).scheme or address.startswith("//"):
                continue
            target = (path.parent / unquote(address.partition("?")[0])).resolve() if address else path
            if not target.is_file() or (
                anchor and target.suffix == ".html" and unquote(anchor) not in page(target).names
            ):
                broken.append((path.relative_to(SITE), link))
    assert broken == []


def test_every_page_of_the_repository_is_there() -> None:
    sources = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert [one for one in sources if not (SITE / one.relative_to(ROOT)).with_suffix(".html").is_file()] == []


def test_links_outside_lead_somewhere() -> None:
    """Where there is a network: only what a server says is not there is broken."""
    links = {link for path in paths() for link in page(path).links if link.startswith("http")}
    links = {urldefrag(link)[0] for link in links if "127.0.0.1" not in link and "localhost" not in link}
    answers = {link: _status(link) for link in sorted(links)}
    reached = {link: status for link, status in answers.items() if status is not None}
    assert [link for link, status in reached.items() if status in (404, 410)] == []
    if len(reached) < len(answers):
        pytest.skip(f"{len(reached)} of {len(answers)} addresses outside were reached, and are there")


def _status(link: str) -> int | None:
    request = urllib.request.Request(link, method="HEAD", headers={"User-Agent": "onnx-dfmpc docs"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The site behind a server: the search asks for files, which a page opened as a file may not."""
    handler = partial(SimpleHTTPRequestHandler, directory=SITE)
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Window:
    """A window of the browser that takes down what pages say, and what they ask of others."""

    def __init__(self, browser: Any, address: str, size: str) -> None:
        width, height = SIZES[size]
        self.address = address
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:")):
            self.said.append(f"asked {request.url}")

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize("size", SIZES)
def test_every_page_looks_well(browser: Any, address: str, size: str) -> None:
    faults = []
    with Window(browser, address, size) as window:
        for path in paths():
            name = path.relative_to(SITE).as_posix()
            if name in ("index.html", "genindex.html", "py-modindex.html"):
                continue
            window.page.goto(address + name)
            wide = window.page.evaluate("document.documentElement.scrollWidth > innerWidth")
            for found in (WIDE, CUT_CODE, BROKEN_PICTURES):
                faults += [(name, fault) for fault in window.page.evaluate(found)]
            faults += [(name, "scrolls sideways")] if wide else []
        assert window.said == []
    assert not faults, "\n".join(map(str, faults))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("target ratio", "docs/howto/smaller"),
        ("max_top1_drop", "docs/reference/recipe"),
        ("openvino", "docs/runtimes/openvino"),
        ("per-layer", "docs/howto/broken-layer"),
        ("load_plan", "docs/reference/api"),
    ],
)
def test_the_search_finds(browser: Any, address: str, words: str, found: str) -> None:
    with Window(browser, address, "desktop") as window:
        window.page.goto(f"{address}docs/index.html")
        window.page.locator("input[name=q]").first.fill(words)
        window.page.keyboard.press("Enter")
        window.page.wait_for_selector(".search li a")
        window.page.wait_for_function(
            "!document.querySelector('.search-summary').textContent.includes('...')"
        )
        links = window.page.locator(".search li a").evaluate_all("links => links.map((link) => link.href)")
        assert any(found in link for link in links[:15]), links
        assert window.said == []


def test_the_top_leads_to_the_pages_and_a_phone_has_a_menu(browser: Any, address: str) -> None:
    with Window(browser, address, "phone") as window:
        window.page.goto(address)
        window.page.wait_for_url("**/docs/index.html")
        entry = window.page.locator(".sidebar-tree a", has_text="Tutorial").first
        assert not entry.is_visible() or entry.bounding_box()["x"] < 0
        window.page.locator(".mobile-header label[for=__navigation]").click()
        window.page.wait_for_timeout(500)
        assert entry.bounding_box()["x"] >= 0
        entry.click()
        window.page.wait_for_url("**/docs/tutorial.html")
