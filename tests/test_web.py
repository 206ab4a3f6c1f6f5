"""The page of ``make web-demo`` in Chromium: every file loads, drawings and real digits are read."""

from __future__ import annotations

import itertools
import json
import math
import re
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

from benchmarks.browser import SIZES
from models import web
from onnx_dfmpc.errors import DfmpcError
from tests.test_report_page import OVERLAPS, TOO_WIDE

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
    "5": (
        5,
        [[(0.4, 0.15), (0.36, 0.45), *arc(0.45, 0.63, 0.2, 0.2, -100, 140)], [(0.4, 0.15), (0.7, 0.15)]],
    ),
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
            pytest.skip(
                f"the page in build/web-demo is older than {source.name}: make web-demo builds it anew"
            )
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
        self.page.wait_for_selector("html:not([data-reading])", state="attached")
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


@pytest.mark.slow
def test_nothing_is_read_where_nothing_is_drawn(demo: Demo) -> None:
    demo.draw(DRAWN["3"][1])
    demo.page.click("#clear")
    demo.page.wait_for_selector("html:not([data-reading])", state="attached")
    assert demo.page.locator("#answer").inner_text() == "–"
    assert demo.page.locator("[data-reads]").count() == 0


@pytest.mark.slow
def test_a_finger_draws_and_a_second_one_does_not(demo: Demo) -> None:
    """A seven by touch; another finger that rests on the sheet adds nothing."""
    demo.page.click("#clear")
    canvas = demo.page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    session = demo.context.new_cdp_session(demo.page)

    def fingers(*points: Point) -> list[dict[str, float]]:
        return [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "id": number}
            for number, (x, y) in enumerate(points)
        ]

    corners = DRAWN["7"][1][0]
    between = [
        (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]))
        for a, b in itertools.pairwise(corners)
        for t in (0.25, 0.5, 0.75, 1)
    ]
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": fingers(corners[0])})
    rest = (0.05, 0.95)
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": fingers(corners[0], rest)})
    for point in between:
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": fingers(point, rest)})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert set(demo.read().values()) == {"7"}


@pytest.mark.slow
def test_test_images_are_read(demo: Demo) -> None:
    """Real samples, at random: 3 in 100 may be read wrong by one of seven networks, 20 hardly more than 3."""
    wrong = 0
    for _ in range(20):
        demo.page.click("#sample")
        read = set(demo.read().values())
        label = re.search(r"a test image of a (\d)", demo.page.locator("#agreement").inner_text())
        assert label is not None
        wrong += read != {label[1]}
    assert wrong <= 4


@pytest.mark.slow
def test_one_can_draw_while_it_measures(demo: Demo) -> None:
    demo.page.click("#again")
    demo.draw(DRAWN["5"][1])
    assert set(demo.read().values()) == {"5"}
    demo.page.wait_for_selector("#again:enabled", timeout=TIMEOUT)
    assert demo.said == []


@pytest.mark.slow
def test_a_drawing_is_counted_as_a_training_image(demo: Demo) -> None:
    """As much ink as a digit of the data has, in all eight rows, whatever its size and place: but for rows of
    the bitmap that round to the next column, at most four in a count.
    """
    with np.load(web.DATA) as data:
        images = np.rint((data["input"][:, 0] + 1) * 8)
    ink = images.sum((1, 2))
    for _, strokes in DRAWN.values():
        moved = [[(0.1 + 0.3 * x, 0.5 + 0.3 * y) for x, y in stroke] for stroke in strokes]
        first, second = (
            np.array(
                demo.page.evaluate(
                    "async (strokes) => [...(await import('./digit.js')).counts(strokes)]", drawn
                )
            ).reshape(8, 8)
            for drawn in ([[list(p) for p in stroke] for stroke in found] for found in (strokes, moved))
        )
        assert np.abs(first - second).max() <= 4
        assert np.quantile(ink, 0.1) < first.sum() < np.quantile(ink, 0.9)
        assert first.max() <= 16
        assert (first.sum(1) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_layout_is_sound(demo: Demo, size: str) -> None:
    width, height = SIZES[size]
    demo.page.set_viewport_size({"width": width, "height": height})
    paper = {}
    for scheme in ("light", "dark"):
        demo.page.emulate_media(color_scheme=scheme)
        assert demo.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert demo.page.evaluate(TOO_WIDE) == []
        assert demo.page.evaluate(OVERLAPS) == []
        paper[scheme] = demo.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper["light"] != paper["dark"]


@pytest.mark.slow
def test_a_missing_file_is_named(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.route("**/3-bits.onnx", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.wait_for_selector("html[data-failed]", state="attached", timeout=TIMEOUT)
    assert "3-bits.onnx: 404" in page.locator("#status").inner_text()
    page.close()


# ---------------------------------------------------------------------------------------------------------------
# without a browser


def test_npm_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(web, "RUNTIME", tmp_path / "dist")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DfmpcError, match="npm") as caught:
        web.build(tmp_path / "page")
    assert "apt-get install npm" in str(caught.value.hint)
    assert not (tmp_path / "page").exists()


def test_the_lower_bound_is_the_version_that_is_tested() -> None:
    wanted, locked = (json.loads((web.SOURCES / name).read_text(encoding="utf-8")) for name in web.PACKAGES)
    assert locked["packages"][""]["dependencies"] == wanted["dependencies"]
    for name, bound in wanted["dependencies"].items():
        assert bound == f">={locked['packages'][f'node_modules/{name}']['version']}"


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for source in web.SOURCES.iterdir():
        if source.name not in web.PACKAGES:
            found = re.findall(r"https?://[^\s\"')]+", source.read_text(encoding="utf-8"))
            assert set(found) <= {"http://www.w3.org/2000/svg"}, source.name
