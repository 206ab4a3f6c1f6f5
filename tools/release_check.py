"""What a release does, rehearsed against an index on this machine: build, compare, upload, install, run.

    python -m tools.release_check          (make release-check)

Builds wheel and sdist twice and compares their bytes, checks their metadata, uploads them to a pypiserver
with twine, and installs from there into an empty environment, in which the shipped network is quantized.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command, and stop at the first that fails."""
    print("$", *command, flush=True)
    subprocess.run([str(word) for word in command], cwd=cwd, check=True)


def built(folder: Path) -> dict[str, str]:
    """Build into a folder: hashes by name."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def main() -> None:
    """Rehearse."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hashes = built(ROOT / "dist")
        time.sleep(2)  # a time stamp in the files would differ now
        again = built(folder / "again")
        if hashes != again:
            sys.exit(f"two builds differ: {hashes} and {again}")
        files = [ROOT / "dist" / file for file in hashes]
        run(sys.executable, "-m", "twine", "check", "--strict", *files)
        _install_from_an_index(folder, files)
    for file, digest in hashes.items():
        print(digest, file)


def _install_from_an_index(folder: Path, files: list[Path]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    packages = folder / "packages"
    packages.mkdir()
    words = ["run", "-i", "127.0.0.1", "-p", url.rsplit(":", 1)[1], "-P", ".", "-a", ".", str(packages)]
    server = subprocess.Popen([sys.executable, "-m", "pypiserver", *words], stderr=subprocess.DEVNULL)
    try:
        _wait_for(url)
        run(sys.executable, "-m", "twine", "upload", "--non-interactive", "-u", "-", "-p", "-",
            "--repository-url", url, *files)  # fmt: skip
        run(sys.executable, "-m", "venv", folder / "venv")
        python = folder / "venv" / "bin" / "python"
        # The first line proves that the file comes from the index; the second brings the dependencies.
        quiet = ("--quiet", "--disable-pip-version-check")
        run(python, "-m", "pip", "install", *quiet, "--no-deps", "--index-url", f"{url}/simple", "onnx-dfmpc")
        run(python, "-m", "pip", "install", *quiet, "onnx-dfmpc", "--find-links", packages)
        run(python, "-m", "onnx_dfmpc", "--version", cwd=folder)
        model = ROOT / "models" / "digits_resnet_bn.onnx"
        run(
            python.with_name("onnx-dfmpc"),
            "quantize",
            model,
            "-o",
            folder / "small.onnx",
            "-q",
            "--bits",
            "4",
        )
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    sys.exit("the index does not answer")


if __name__ == "__main__":
    main()
