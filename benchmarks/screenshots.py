"""Quantize two networks and photograph their reports: the pictures of README.md.

python -m benchmarks.screenshots [--chromium PROGRAM]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from playwright.sync_api import Browser

from benchmarks import browser
from models import zoo
from onnx_dfmpc import cli

DOCS = Path(__file__).resolve().parent.parent / "docs"


@dataclass(frozen=True)
class Shot:
    """A network, what is done to it, and how its report is photographed."""

    network: str
    flags: tuple[str, ...]
    target: str
    scheme: Literal["light", "dark"]
    width: int
    height: int


SHOTS = (
    Shot(
        "cifar10_resnet56_bn",
        ("--target-size", "400KiB", "--max-top1-drop", "0.01"),
        "report-resnet56.png",
        "light",
        1280,
        1400,
    ),
    Shot(
        "ultraface_rfb_320_bn",
        ("--target-size", "320KiB", "--min-cosine", "0.999"),
        "report-ultraface.png",
        "dark",
        1280,
        1400,
    ),
)


def report_of(shot: Shot) -> Path:
    """Page of a run in the current directory, so that no path of this machine is on it."""
    network = zoo.entry(shot.network)
    inputs, labels = zoo.samples(network)
    shutil.copyfile(zoo.fetch(network), f"{shot.network}.onnx")
    arrays: dict[str, Any] = {network.input: inputs} | ({} if labels is None else {"labels": labels})
    np.savez("test.npz", allow_pickle=False, **arrays)
    page = Path(f"{shot.network}.html")
    flags = [
        "-o",
        "small.onnx",
        "--overwrite",
        "--data",
        "test.npz",
        *shot.flags,
        "-q",
        "--report",
        str(page),
    ]
    code = cli.main(["quantize", f"{shot.network}.onnx", *flags])
    if code:
        sys.exit(code)
    return page.resolve()


def photograph(opened: Browser, page: Path, shot: Shot) -> None:
    """Upper part of a page as a PNG."""
    context = opened.new_context(
        viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.scheme, offline=True
    )
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-ready]", state="attached")
    Image.open(io.BytesIO(tab.screenshot())).convert("RGB").save(DOCS / shot.target, optimize=True)
    context.close()
    print(
        f"{shot.target}: {(DOCS / shot.target).stat().st_size:,} bytes, of a page of {page.stat().st_size:,}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Make all pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.screenshots", description=__doc__.split("\n", 1)[0] if __doc__ else None
    )
    parser.add_argument("--chromium", default=browser.find(), help="the browser (chromium on PATH)")
    args = parser.parse_args(arguments)
    if args.chromium is None:
        parser.error("no chromium on PATH")
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.chdir(directory),
        browser.chromium(args.chromium) as opened,
    ):
        for shot in SHOTS:
            photograph(opened, report_of(shot), shot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
