"""What every test may ask for: the shared networks and data, the small network that ships with the project."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from benchmarks.browser import chromium, find
from onnx_dfmpc import cli

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"

Run = Callable[..., tuple[int, str, str]]

SHARED_MODELS = (
    "cifar10_resnet20_bn",
    "cifar10_resnet20_folded",
    "cifar10_resnet56_bn",
    "cifar10_resnet56_folded",
    "cifar10_resnet8_keras_bn",
    "cifar10_shufflenetv2_x0_5_bn",
    "cifar10_shufflenetv2_x0_5_folded",
    "fastestdet_folded",
    "fer_xception_bn",
    "har_conv1d_bn",
    "har_conv1d_folded",
    "imagenet_mobilenet_v1_025_128_folded",
    "imagenet_squeezenet1_1",
    "ultraface_rfb_320_bn",
    "wakeword_bn",
    "yunet_s_dynamic",
)

# Shared processors make single examples slow now and then, which is not what the properties are about.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven over its DevTools protocol; the test skips where there is none."""
    program = find()
    if program is None:
        pytest.skip("no Chromium on PATH")
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with chromium(program) as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Directory with the third-party networks (``models/``) and inputs (``data/``); the test skips where
    there is none.
    """
    path = Path(os.environ.get("DFMPC_SHARED") or ROOT.parent / "shared")
    if not (path / "models").is_dir():
        pytest.skip(
            f"no shared models in {path}; set DFMPC_SHARED to the directory that holds models/ and data/"
        )
    return path


LARGE = ("cifar10_resnet56", "fastestdet", "fer_xception", "imagenet", "ultraface", "yunet")
"""Networks that take seconds each: `make test` runs the others, `make test-all` these too."""


def networks(*large: str) -> list[Any]:
    """Names of the shared networks, those in `LARGE` and those that start so for `make test-all` alone."""
    return [
        pytest.param(name, marks=pytest.mark.slow if name.startswith((*LARGE, *large)) else ())
        for name in SHARED_MODELS
    ]


@pytest.fixture(params=networks())
def shared_model(request: pytest.FixtureRequest, shared_dir: Path) -> Path:
    """Each of the shared networks in turn, as a path."""
    path: Path = shared_dir / "models" / f"{request.param}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return path


@pytest.fixture(scope="session")
def digits_bn() -> Path:
    """The shipped residual network, batch norm kept."""
    return MODELS / "digits_resnet_bn.onnx"


@pytest.fixture(scope="session")
def digits_folded() -> Path:
    """The same network, batch norm folded into the convolutions."""
    return MODELS / "digits_resnet_folded.onnx"


@pytest.fixture(scope="session")
def digits_data() -> Path:
    """Its test images (key ``input``, float32, as the network wants them) and ``labels``."""
    return MODELS / "digits_test.npz"


SETTINGS = """
[all]
rounding = "nearest"
repair = "none"
samples = 8
no_gate = true

[setting."4 bits"]
bits = 4

[setting.2]
bits = 2
"""
"""Two settings for a sweep, quick ones."""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A settings file of a sweep."""
    path = tmp_path / "grid.toml"
    path.write_text(SETTINGS, encoding="utf-8")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: exit code, stdout, stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
