"""Our files in every runtime that pip and npm can install.

python -m benchmarks.runtimes              (make runtimes)
python -m benchmarks.runtimes --render     writes the pages again from benchmarks/results/runtimes.json

Each runtime gets an environment of its own. It runs files with quantized weights (every width, as `--target`
stores them for it, and natively in 2 and in 4 bits) and files with quantized activations as well. Outputs are
compared with those of the ONNX Runtime that this package runs with, on the same file, and times (one thread,
process CPU) with those of the float model in the same runtime. The result is docs/runtimes.md and a page for
each runtime in docs/runtimes/; their words are in benchmarks/runners/.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.networks import Network, available
from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.spec.widths import WIDTHS

ROOT = Path(__file__).resolve().parents[1]
RUNNERS = ROOT / "benchmarks" / "runners"
KEPT = ROOT / "benchmarks" / "results" / "runtimes.json"
NETWORKS = ("cifar10_resnet20_folded", "imagenet_mobilenet_v1_025_128_folded")
PLAIN: Mapping[str, Any] = {"repair": "none", "samples": 2, "slim": True}

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Settings with which OpenVINO calculates in float32."""


@dataclass(frozen=True)
class Environment:
    """A runtime to try. ``target`` is what `--target` calls it; ``package`` is on PyPI, for "web" on npm;
    ``page`` is that of docs/runtimes/ which it is on.
    """

    name: str
    title: str
    page: str
    target: str
    package: str
    requirements: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


ORT = "onnxruntime"
OPENVINO, OPENCV = ("openvino", "numpy"), ("opencv-python-headless", "numpy")


def _ort(version: str, patch: int) -> Environment:
    old = ("numpy<2",) if version < "1.19" else ()
    target = "ort" if version == "1.24" else f"ort-{version}"
    requirements = (f"onnxruntime=={version}.{patch}", "numpy", *old)
    return Environment(f"ort-{version}", "ONNX Runtime", ORT, target, "onnxruntime", requirements)


ENVIRONMENTS = (
    *(_ort(*version) for version in (("1.16", 3), ("1.17", 3), ("1.18", 1), ("1.19", 2))),
    *(_ort(*version) for version in (("1.20", 1), ("1.21", 1), ("1.22", 1), ("1.24", 1))),
    Environment("web", "onnxruntime-web (wasm, node)", "ort-web", "ort-web", "onnxruntime-web", ()),
    Environment("openvino", "OpenVINO, as it comes", "openvino", "openvino", "openvino", OPENVINO),
    Environment("openvino", "OpenVINO, in float32", "openvino", "openvino", "openvino", OPENVINO, EXACT),
    Environment("opencv", "OpenCV", "opencv", "opencv", "opencv-python-headless", OPENCV),
    Environment("tract", "tract", "tract", "tract", "tract", ("tract", "numpy")),
    Environment("tvm", "TVM", "tvm", "tvm", "apache-tvm", ("apache-tvm", "onnx", "numpy")),
)

CASES = ("float", "weights", "scalar", "native 2", "native 4", "activations")
"""Columns: the float model; all widths as for the target, and on scalar grids; 2 and 4 bits in native types;
8-bit activations.
"""


@dataclass(frozen=True)
class Outcome:
    """One file in one runtime."""

    error: str = ""
    difference: float = 0.0
    ms: float = 0.0


def recipes(target: str) -> dict[str, Recipe]:
    """Recipe of every case but the float model; activations are tried where a target refuses them, too."""
    return {
        "weights": Recipe(bits=4, target=target, **PLAIN),
        "scalar": Recipe(bits=4, target=target, storage="table", **PLAIN),
        "native 2": Recipe(bits=2, first_last_bits=2, storage="native", **PLAIN),
        "native 4": Recipe(bits=4, first_last_bits=4, storage="native", **PLAIN),
        "activations": Recipe(bits=4, activations=8, **PLAIN),
    }


def store(network: Network, target: str, folder: Path) -> dict[str, Path]:
    """Files of every case for a target; the float model as it is."""
    names = [layer.name for layer in match(load(network.path).proto).layers]
    widths = {f"^{re.escape(name)}$": WIDTHS[i % len(WIDTHS)] for i, name in enumerate(names)}
    files = {"float": network.path}
    for case, recipe in recipes(target).items():
        path = folder / f"{network.name}-{target}-{case.replace(' ', '')}.onnx"
        if not path.exists():
            mixed = Recipe(**recipe.to_dict() | ({} if case.startswith("native") else {"set": widths}))
            onnx.save(quantize(network.path, None, mixed, validated=False).model, path)
        files[case] = path
    return files


def prepare(environment: Environment, folder: Path) -> list[str]:
    """Command that starts the runner in an environment, which is made where there is none."""
    home = folder / environment.name
    if environment.name == "web":
        if not (home / "node_modules").is_dir():
            home.mkdir(parents=True, exist_ok=True)
            subprocess.run(["npm", "install", "--silent", environment.package], cwd=home, check=True)
        return ["node", str(RUNNERS / "run.mjs")]
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        quiet = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([python, "-m", "pip", "install", *quiet, *environment.requirements], check=True)
    return [str(python), str(RUNNERS / "run.py"), environment.package]


def start(command: Sequence[str], home: Path, jobs: Sequence[Mapping[str, Any]]) -> tuple[str, list[Any]]:
    """Version of the runtime, and what came of every job; a job that kills the process does so alone."""
    version, rows = "", list[Any]()
    for one in jobs:
        path = home / "jobs.json"
        path.write_text(json.dumps([one]))
        done = subprocess.run([*command, str(path)], cwd=home, capture_output=True, text=True)
        try:
            found = json.loads(done.stdout.strip().splitlines()[-1])
        except (IndexError, ValueError):
            rows.append({"error": f"the process ended with {done.returncode}"})
            continue
        version = found["version"]
        rows += found["rows"]
    return version, rows


def outcomes(
    environment: Environment | None,
    files: Mapping[str, Path],
    expected: Mapping[str, NDArray[Any]],
    feed: Path,
    folder: Path,
) -> tuple[str, dict[str, Outcome], dict[str, NDArray[Any]]]:
    """Version, outcome and outputs of every file; None is the ONNX Runtime of this process."""
    if environment is None:
        command, home, settings = [sys.executable, str(RUNNERS / "run.py"), "onnxruntime"], folder, {}
    else:
        command, settings = prepare(environment, folder), dict(environment.settings)
        home = folder / environment.name
    jobs = [
        {"model": str(path), "input": str(feed), "output": str(home / f"{case}.npy"), "settings": settings}
        for case, path in files.items()
    ]
    version, rows = start(command, home, jobs)
    found: dict[str, Outcome] = {}
    outputs: dict[str, NDArray[Any]] = {}
    for case, job, row in zip(files, jobs, rows, strict=True):
        if "error" in row:
            said = row["error"].replace(f"{folder}/", "").replace("`", "'")
            found[case] = Outcome(error=said[:160])
            continue
        outputs[case] = np.load(str(job["output"]))
        wanted = expected.get(case, outputs[case])
        difference = float(np.abs(outputs[case] - wanted).max() / np.abs(wanted).max())
        found[case] = Outcome(difference=difference, ms=row["ms"])
    return version, found, outputs


def cell(case: str, found: Mapping[str, Outcome]) -> str:
    """An outcome in a few words."""
    one = found[case]
    if one.error:
        return "no"
    if case == "float":
        return f"{one.ms:.2f} ms"
    before = found["float"]
    time = f", {one.ms / before.ms:.2f}" if not before.error else f", {one.ms:.2f} ms"
    return f"{one.difference:.0e}{time}"


@dataclass(frozen=True)
class Row:
    """One runtime on one network."""

    network: str
    runtime: str
    version: str
    outcomes: Mapping[str, Outcome]

    @property
    def title(self) -> str:
        """Runtime with its version."""
        return f"{self.runtime} {self.version}"

    @property
    def page(self) -> str:
        """Name of the page that it is on."""
        return next((one.page for one in ENVIRONMENTS if one.title == self.runtime), ORT)


def keep(rows: Sequence[Row]) -> None:
    """The numbers, for the pages to be written again."""
    KEPT.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def kept() -> list[Row]:
    """The numbers of the last run."""
    rows = json.loads(KEPT.read_text(encoding="utf-8"))
    return [
        Row(**row | {"outcomes": {case: Outcome(**one) for case, one in row["outcomes"].items()}})
        for row in rows
    ]


def pages(rows: Sequence[Row]) -> dict[str, str]:
    """Path to content: the page of all runtimes, and one for each."""
    made = {"docs/runtimes.md": _words("runtimes") + "\n\n" + _overview(rows) + "\n"}
    for name in dict.fromkeys(one.page for one in ENVIRONMENTS):
        mine = [row for row in rows if row.page == name]
        made[f"docs/runtimes/{name}.md"] = f"{_words(name)}\n\n{_measured(mine)}\n"
    return made


def _words(name: str) -> str:
    return (RUNNERS / "pages" / f"{name}.md").read_text(encoding="utf-8").rstrip()


def _overview(rows: Sequence[Row]) -> str:
    """What runs where: yes on every network, on some, or no."""
    lines = []
    for title in dict.fromkeys(row.title for row in rows):
        mine = [row for row in rows if row.title == title]
        cells = [_runs([not row.outcomes[case].error for row in mine]) for case in CASES]
        lines.append((f"[{title}](runtimes/{mine[0].page}.md)", *cells))
    return _table(("runtime", *CASES), lines)


def _runs(found: Sequence[bool]) -> str:
    return "yes" if all(found) else f"{sum(found)} of {len(found)}" if any(found) else "no"


def _measured(rows: Sequence[Row]) -> str:
    """Tables of one page, a network each, and what was said where something does not run."""
    parts = []
    for network in dict.fromkeys(row.network for row in rows):
        lines = [
            (row.title, *(cell(case, row.outcomes) for case in CASES))
            for row in rows
            if row.network == network
        ]
        parts += [f"### {network}", _table(("runtime", *CASES), lines)]
    said: dict[str, str] = {}
    for row in rows:
        for case, one in row.outcomes.items():
            if one.error:
                said.setdefault(f"{row.title}, {case}", one.error)
    if said:
        parts += ["### What it says where it does not run"]
        parts += ["\n".join(f"* {what}: `{error}`" for what, error in said.items())]
    return "\n\n".join(parts)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    shown = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in shown)


def write(rows: Sequence[Row]) -> None:
    """Every page."""
    for path, content in pages(rows).items():
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_text(content, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all runtimes, or some, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "runtimes")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--only", nargs="+", help="names of environments")
    parser.add_argument("--render", action="store_true", help="write the pages from what was measured before")
    given = parser.parse_args(arguments)
    if given.render:
        write(kept())
        return 0
    folder = given.environments.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for network in available(given.networks, Console(stderr=True)):
        spec = load(network.path).proto.graph.input[0].type.tensor_type.shape.dim
        x = np.random.default_rng(0).standard_normal([1, *(dim.dim_value for dim in spec[1:])])
        feed = folder / "x.npy"
        np.save(feed, x.astype(np.float32))
        reference: dict[str, dict[str, NDArray[Any]]] = {}
        for environment in (None, *ENVIRONMENTS):
            if environment is not None and given.only and environment.name not in given.only:
                continue
            target = "ort" if environment is None else environment.target
            files = store(network, target, folder)
            if target not in reference:
                version, here, reference[target] = outcomes(None, files, {}, feed, folder)
                if environment is None:
                    rows.append(Row(network.name, "ONNX Runtime", version, here))
                    continue
            version, found, _ = outcomes(environment, files, reference[target], feed, folder)
            rows.append(Row(network.name, environment.title if environment else "", version, found))
            print(rows[-1].title, *(cell(case, found) for case in CASES), sep="\t", flush=True)
    if not given.only:
        keep(rows)
        write(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
