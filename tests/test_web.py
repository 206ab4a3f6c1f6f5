"""The page of ``make web-demo`` in Chromium: every file loads, drawings and real digits are read."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from models import web
from onnx_dfmpc.errors import DfmpcError
from tests.test_report_page import OVERLAPS, SIZES, TOO_WIDE, browser

__all__ = ["browser"]

Point = tuple[float, float]
Stroke = Sequence[Point]
TIMEOUT = 120_000  # ONNX Runtime has 14 MB to compile, on a machine that may be busy


def arc(x: float, y: float, wide: float, high: float, start: float, end: float) -> list[Point]:
    """Points of an ellipse from one angle to another, in degrees, 0 to the right and 90 down."""
    angles = np.radians(np.linspace(start, end, 24))
    return [(x + wide * math.cos(angle), y + high * math.sin(angle)) for angle in angles]


DRAWN: dict[str, tuple[int, list[Stroke]]] = {
    "0": (0, [arc(0.5, 0.5, 0.2, 0.32, -90, 270)]),
    "0, small in a corner": (0, [arc(0.2, 0.2, 0.08, 0.12, -60, 300)]),
    "1": (1, [[(0.5, 0.15), (0.5, 0.85)]]),
    "1, with a flag": (1, [[(0.38, 0.33), (0.54, 0.15), (0.53, 0.85)]]),
    "1, slanted": (1, [[(0.65, 0.2), (0.4, 0.8)]]),
    "2": (2, [[*arc(0.5, 0.35, 0.2, 0.2, -170, 30), (0.3, 0.85), (0.72, 0.84)]]),
    "3": (3, [[*arc(0.48, 0.32, 0.18, 0.17, -150, 80), *arc(0.48, 0.66, 0.21, 0.19, -80, 150)]]),
    "4": (4, [[(0.45, 0.15), (0.25, 0.58), (0.75, 0.55)], [(0.6, 0.35), (0.57, 0.88)]]),
    "5": (5, [[(0.4, 0.15), (0.36, 0.45), *arc(0.45, 0.63, 0.2, 0.2, -100, 140)], [(0.4, 0.15), (0.7, 0.15)]]),
    "6": (6, [[(0.55, 0.12), (0.4, 0.35), *arc(0.48, 0.68, 0.16, 0.18, -170, 200)]]),
    "7": (7, [[(0.3, 0.18), (0.7, 0.18), (0.45, 0.85)]]),
    "7, crossed": (7, [[(0.3, 0.18), (0.7, 0.18), (0.45, 0.85)], [(0.36, 0.5), (0.66, 0.48)]]),
    "8": (8, [[*arc(0.5, 0.32, 0.15, 0.17, 90, 450), *arc(0.5, 0.68, 0.18, 0.19, -90, 270)]]),
    "9": (9, [[*arc(0.5, 0.33, 0.17, 0.18, 0, 360), (0.66, 0.5), (0.62, 0.85)]]),
}
"""How people write digits, on a square of side 1."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The built page behind a server as a reader would start it."""
    if not (web.PAGE / "models.json").is_file():
        pytest.skip("no page in build/web-demo: make web-demo builds it")
    for source in web.SOURCES.iterdir():
        if source.name not in web.PACKAGES and source.read_bytes() != (web.PAGE / source.name).read_bytes():
            pytest.skip(f"the page in build/web-demo is older than {source.name}: make web-demo builds it anew")
    handler = partial(SimpleHTTPRequestHandler, directory=web.PAGE)
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Demo:
    """The page, loaded and measured, with all that it said and asked for."""

    def __init__(self, browser: Any, address: str) -> None:
        width, height = SIZES["desktop"]
        self.context = browser.new_context(viewport={"width": width, "height": height}, has_touch=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.got: dict[str, int] = {}
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("response", lambda response: self.got.update({response.url: response.status}))
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready], html[data-failed]", state="attached", timeout=TIMEOUT)

    def draw(self, strokes: Sequence[Stroke]) -> None:
        """With the mouse, on an empty sheet."""
        self.page.click("#clear")
        canvas = self.page.locator("#canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        for stroke in strokes:
            for number, (x, y) in enumerate(stroke):
                place = box["x"] + x * box["width"], box["y"] + y * box["height"]
                self.page.mouse.move(*place, steps=1 if number == 0 else 4)
                if number == 0:
                    self.page.mouse.down()
            self.page.mouse.up()

    def read(self) -> dict[str, str]:
        """What every network reads, by name, once it has read."""
        self.page.wait_for_function("reading => !document.documentElement.hasAttribute('data-reading')", arg=None)
        return dict(
            self.page.evaluate(
                "[...document.querySelectorAll('[data-model]')].map((row) => [row.dataset.model, row.dataset.reads])"
            )
        )


@pytest.fixture(scope="module")
def demo(browser: Any, address: str) -> Iterator[Demo]:
    opened = Demo(browser, address)
    yield opened
    opened.context.close()


@pytest.mark.slow
def test_every_file_loads_from_the_page_itself(demo: Demo, address: str) -> None:
    assert demo.said == []
    assert demo.page.locator("#status").inner_text() == ""
    assert {url for url in demo.got if not url.startswith("data:")} == {
        address,
        *(address + path.name for path in web.PAGE.iterdir() if path.name != "index.html"),
    }
    assert set(demo.got.values()) == {200}


@pytest.mark.slow
def test_sizes_and_latencies_stand_beside_float(demo: Demo) -> None:
    rows = demo.page.locator("#models tr")
    models = json.loads((web.PAGE / "models.json").read_text(encoding="utf-8"))["models"]
    assert [row["name"] for row in models] == ["float", *(variant.name for variant in web.VARIANTS)]
    for row, text in zip(models, rows.all_inner_texts(), strict=True):
        size = (web.PAGE / row["file"]).stat().st_size
        assert f"{size / 1000:.0f} kB" in text
        assert " ms" in text


@pytest.mark.slow
def test_accuracy_in_the_browser_is_that_of_python(demo: Demo) -> None:
    """The browser counts what it reads right of all test images; ONNX Runtime on Python does, too."""
    with np.load(web.DATA) as data:
        inputs, labels = data["input"], data["labels"]
    for row in json.loads((web.PAGE / "models.json").read_text(encoding="utf-8"))["models"]:
        session = ort.InferenceSession(web.PAGE / row["file"], providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"input": inputs})
        shown = demo.page.locator(f"[data-model='{row['name']}']").get_attribute("data-right")
        assert abs(int(shown) - int((logits.argmax(1) == labels).sum())) <= 1  # two logits may tie


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_drawn_digits_are_read(demo: Demo, name: str) -> None:
    digit, strokes = DRAWN[name]
    demo.draw(strokes)
    assert demo.read() == dict.fromkeys(demo.read(), str(digit))
    assert demo.page.locator("#answer").inner_text() == str(digit)
