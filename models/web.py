"""Build a page that reads drawn digits with the shipped network in 2, 3 and 4 bits, and in float.

    make web-demo      or          python -m models.web

The sources are in ``docs/web``, the page is put into ``build/web-demo``. ONNX Runtime for browsers comes from
npm, once, at the version in ``docs/web/package-lock.json``; the page itself loads nothing from elsewhere.
"""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.demo import DATA, MODEL
from onnx_dfmpc import __version__, cli
from onnx_dfmpc.errors import DfmpcError

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "docs" / "web"
PAGE = ROOT / "build" / "web-demo"
NPM = ROOT / "build" / "web-npm"
RUNTIME = NPM / "node_modules" / "onnxruntime-web" / "dist"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""The build of onnxruntime-web that runs on the processor alone: the smallest."""

PACKAGES = ("package.json", "package-lock.json")


@dataclass(frozen=True)
class Variant:
    """One file beside the float one."""

    bits: int
    activations: bool

    @property
    def name(self) -> str:
        return f"{self.bits}-bits" + ("-a8" if self.activations else "")

    @property
    def flags(self) -> list[str]:
        how = (
            ["--activations", "8"] if self.activations else ["--unpack", "float", "--fold-batch-norm", "yes"]
        )
        return ["--bits", str(self.bits), *how, "--slim"]


VARIANTS = tuple(Variant(bits, activations) for activations in (False, True) for bits in (4, 3, 2))


class BuildError(DfmpcError):
    """The page cannot be built here."""

    exit_code = 2


def fetch_runtime() -> str:
    """Install onnxruntime-web in ``build/web-npm`` where it is missing, and return its version."""
    lock = json.loads((SOURCES / "package-lock.json").read_text(encoding="utf-8"))
    version: str = lock["packages"]["node_modules/onnxruntime-web"]["version"]
    installed = RUNTIME.parent / "package.json"
    if installed.is_file() and json.loads(installed.read_text(encoding="utf-8"))["version"] == version:
        return version
    npm = shutil.which("npm")
    if npm is None:
        raise BuildError("npm is not on PATH", hint="install Node.js with npm (Debian: apt-get install npm)")
    NPM.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        shutil.copy(SOURCES / name, NPM / name)
    print(f"fetching onnxruntime-web {version} from npm (140 MB unpacked)", file=sys.stderr)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    if subprocess.run(command, cwd=NPM, stdout=sys.stderr, check=False).returncode:
        raise BuildError(
            f"npm could not install onnxruntime-web {version}",
            hint="its messages are above; the registry that npm is configured for has to be reachable",
        )
    return version


def quantize(variant: Variant, folder: Path) -> str:
    """Write the file of a variant, and return the command that does so."""
    out = f"{variant.name}.onnx"
    arguments = [str(MODEL), "-o", str(folder / out), *variant.flags, "--overwrite", "-q", "--no-progress"]
    if cli.main(["quantize", *arguments]):
        raise BuildError(f"{MODEL.name} could not be quantized; the message is above")
    return shlex.join(["onnx-dfmpc", "quantize", MODEL.name, "-o", out, *variant.flags])


def held_out() -> bytes:
    """The held-out images as counts 0 to 16, 64 bytes each, and behind them a byte for each label."""
    with np.load(DATA) as data:
        counts = np.rint((data["input"] + 1) * 8).astype(np.uint8)
        labels = data["labels"].astype(np.uint8)
    return bytes(counts.tobytes() + labels.tobytes())


def build(page: Path = PAGE) -> None:
    """Make the page anew."""
    runtime = fetch_runtime()
    shutil.rmtree(page, ignore_errors=True)
    shutil.copytree(SOURCES, page, ignore=shutil.ignore_patterns(*PACKAGES))
    for name in RUNTIME_FILES:
        shutil.copy(RUNTIME / name, page / name)
    shutil.copy(MODEL, page / "float.onnx")
    models: list[dict[str, str | int | None]] = [
        {"name": "float", "file": "float.onnx", "bits": None, "activations": None, "command": None}
    ]
    for variant in VARIANTS:
        print(f"quantizing: {variant.name}", file=sys.stderr)
        models.append(
            {
                "name": variant.name,
                "file": f"{variant.name}.onnx",
                "bits": variant.bits,
                "activations": 8 if variant.activations else None,
                "command": quantize(variant, page),
            }
        )
    (page / "digits.bin").write_bytes(held_out())
    versions = {"onnx_dfmpc": __version__, "onnxruntime-web": runtime}
    text = json.dumps({"models": models, "versions": versions}, indent=1) + "\n"
    (page / "models.json").write_text(text, encoding="utf-8")


def main() -> int:
    """Build, and say how to open the page."""
    try:
        build()
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    print(f"The page is in {PAGE.relative_to(ROOT)}. A browser has to get it from a server, such as:\n")
    print(f"    python3 -m http.server --bind 127.0.0.1 --directory {PAGE.relative_to(ROOT)} 8000\n")
    print("and then http://127.0.0.1:8000/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
