"""The Dockerfile without Docker: its steps in an empty root directory, and a newcomer's first minutes in it.

    python -m tools.container_check [--model MODEL.onnx] [--write]          (make container-check)

Needs Linux, root, `debootstrap` and `unshare`. The root directory is Debian's, whose Python stands in for the
image's; everything else is what the Dockerfile says, read from it. The newcomer is its user, and makes a file
8 times smaller, one for integer kernels, and runs both. Seconds of every step are printed; `--write` puts
them into docs/tutorial.md.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import readme
from benchmarks.tables import markdown

ROOT = Path(__file__).parents[1]
MIRROR, RELEASE = "http://deb.debian.org/debian", "trixie"
"""Debian 13, whose Python is the 3.13 of the image."""

OF_THIS_MACHINE = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
"""Without these two a root directory reaches no index."""

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
RUN = """
import sys, time
import numpy as np, onnxruntime as ort, onnx_dfmpc
for name in sys.argv[1:]:
    session = ort.InferenceSession(name, onnx_dfmpc.session_options(name))
    (spec,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    inputs = {spec.name: np.zeros(shape, np.float32)}
    print(name, [output.shape for output in session.run(None, inputs)])
"""


@dataclass(frozen=True)
class Step:
    """What took how long: seconds on the clock, and of the processors."""

    what: str
    seconds: float
    cpu: float


class Stopwatch:
    """Steps as they are done."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, what: str, *command: str | Path, **options: object) -> str:
        """Run a command, keep its time, and give back what it printed."""
        print("$", what, flush=True)
        before, start = _cpu(), time.perf_counter()
        done = subprocess.run(
            [str(word) for word in command], check=False, stdout=subprocess.PIPE, text=True, **options
        )  # type: ignore[call-overload]
        self.steps.append(Step(what, time.perf_counter() - start, _cpu() - before))
        if done.returncode:
            sys.exit(f"{done.stdout}\n{what}: exit code {done.returncode}")
        return str(done.stdout)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass
class Stage:
    """A root directory on its way through the Dockerfile."""

    root: Path
    user: str = "root"
    folder: str = "/"
    entry: tuple[str, ...] = ()

    def command(self, *words: str) -> list[str]:
        """The words of a command inside; its mounts go with it."""
        inside = " ".join(map(shlex.quote, ("cd", self.folder))) + " && exec " + shlex.join(words)
        root = shlex.quote(str(self.root))
        script = f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev && exec chroot"
        script += "" if self.user == "root" else f" --userspec={self.user}:{self.user}"
        script += f" {root} /bin/sh -c {shlex.quote(inside)}"
        return ["unshare", "--mount", "--pid", "--fork", "sh", "-c", script]


ENVIRONMENT = {"PATH": PATH, "HOME": "/tmp", "LANG": "C.UTF-8", "COLUMNS": "100"}


def base(folder: Path, watch: Stopwatch) -> Path:
    """Debian with a Python that may install into /usr/local, as in the image; made once.

    Packages are unpacked and not set up: nothing but the two files of users is made by their scripts here.
    """
    root = folder / "base"
    if (root / "usr/local/bin/pip").exists():
        return root
    archives = root / "var/cache/apt/archives"
    include = "--include=python3,python3-venv,ca-certificates"
    fetch = ("--download-only", "--variant=minbase", include, RELEASE, root, MIRROR)
    watch("debootstrap", "debootstrap", *fetch)
    # base-files first: it has the links from /bin to /usr/bin that others go through.
    for package in sorted(archives.glob("*.deb"), key=lambda path: (path.name[:10] != "base-files", path)):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    for name in ("passwd", "group"):
        shutil.copyfile(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    for file in OF_THIS_MACHINE:
        Path(f"{root}{file}").parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, f"{root}{file}")
    watch("python", *Stage(root).command("python3", "-m", "venv", "/usr/local"), env=ENVIRONMENT)
    return root


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Name and rest of every instruction."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip() and not line.startswith("#"):
            name, rest = line.split(None, 1)
            yield name, rest


def build(folder: Path, watch: Stopwatch) -> Stage:
    """The last stage of the Dockerfile."""
    fresh, stages, stage = base(folder, watch), dict[str, Stage](), Stage(folder)
    for name, rest in instructions((ROOT / "Dockerfile").read_text(encoding="utf-8")):
        if name == "FROM":
            label = rest.split(" AS ")[1] if " AS " in rest else "final"
            root = folder / label
            shutil.rmtree(root, ignore_errors=True)
            subprocess.run(["cp", "-a", fresh, root], check=True)
            stage = stages[label] = Stage(root)
        elif name == "COPY":
            _copy(rest.split(), stage, stages)
        elif name == "RUN":
            title = next((part for part in rest.split("&&") if " pip " in part), rest).strip()
            watch(title, *stage.command("sh", "-c", rest), env=ENVIRONMENT)
        elif name == "USER":
            stage.user = rest
        elif name == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(exist_ok=True)
        elif name == "ENTRYPOINT":
            stage.entry = tuple(re.findall(r'"([^"]*)"', rest))
        elif name != "CMD":
            sys.exit(f"{name}: not known here")
    return stage


def _copy(words: list[str], stage: Stage, stages: Mapping[str, Stage]) -> None:
    target = stage.root / words[-1].lstrip("/")
    if words[0].startswith("--from="):
        source = stages[words[0].removeprefix("--from=")].root / words[1].lstrip("/")
        shutil.copytree(source, target)
        return
    # What .dockerignore lets through.
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line.startswith("!"):
            found = ROOT / line[1:]
            copy = shutil.copytree if found.is_dir() else shutil.copyfile
            target.mkdir(parents=True, exist_ok=True)
            copy(found, target / found.name)


def newcomer(stage: Stage, model: Path, watch: Stopwatch) -> str:
    """What the first commands say last: a small file, a fast one, both run."""
    work = stage.root / "work"
    shutil.copyfile(model, work / "model.onnx")
    identity = subprocess.run(
        stage.command("id", "-u"), check=True, capture_output=True, text=True, env=ENVIRONMENT
    ).stdout.strip()
    if identity == "0":
        sys.exit("the image runs as root")
    for path in (work, work / "model.onnx"):
        os.chown(path, int(identity), int(identity))
    typed = (
        "quantize model.onnx --target-ratio 8",
        "quantize model.onnx -o fast.onnx --activations 8 --latency",
    )
    said = [
        watch(f"onnx-dfmpc {line}", *stage.command(*stage.entry, *line.split()), env=ENVIRONMENT)
        for line in typed
    ]
    files = ("model.quantized.onnx", "fast.onnx")
    said.append(watch("run both", *stage.command("python", "-c", RUN, *files), env=ENVIRONMENT))
    sizes = [f"{name} {(work / name).stat().st_size:,} bytes" for name in ("model.onnx", *files)]
    speed = re.search(r"An inference takes (\S+) of the float", said[1])
    return "; ".join([*sizes, f"time of float {speed[1]}" if speed else ""])


def table(steps: list[Step]) -> str:
    """Steps and what they took."""
    lines = [(f"`{step.what}`", f"{step.seconds:.0f}", f"{step.cpu:.1f}") for step in steps]
    lines.append(
        ("all", f"{sum(step.seconds for step in steps):.0f}", f"{sum(step.cpu for step in steps):.1f}")
    )
    return markdown(("step", "s", "CPU s"), lines)


def main() -> None:
    """Check, and print."""
    parser = argparse.ArgumentParser(prog="python -m tools.container_check")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "container")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "digits_resnet_bn.onnx")
    parser.add_argument("--write", action="store_true", help="put the table into docs/tutorial.md")
    options = parser.parse_args()
    for program in ("debootstrap", "unshare", "chroot"):
        if os.geteuid() or shutil.which(program) is None:
            sys.exit(f"needs root and {program} (Debian: apt-get install debootstrap)")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch()
    stage = build(folder, watch)
    outcome = newcomer(stage, options.model, watch)
    steps = [step for step in watch.steps if re.search("pip install|onnx-dfmpc|run both", step.what)]
    print(f"{table(steps)}\n\n{outcome}")
    if options.write:
        readme.write("newcomer", f"{table(steps)}\n\n{options.model.name}: {outcome}.")


if __name__ == "__main__":
    main()
