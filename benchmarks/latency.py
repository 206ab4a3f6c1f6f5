"""Size, load time, memory and latency of every storage form, next to the float model.

The command: ``python -m benchmarks.latency --networks cifar10_resnet56_bn --setting 3/6 --json out.json``.
Every measurement is a process of its own, in which the form and the float model run in turn; forms take turns
as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import networks
from benchmarks.methods import BARE, Setting, settings
from benchmarks.networks import Network
from benchmarks.session import OPTIONS
from benchmarks.tables import markdown
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import synthetic
from onnx_dfmpc.model.files import load, save
from onnx_dfmpc.pipeline.run import apply, plan
from onnx_dfmpc.spec import StorageFormat

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("cifar10_resnet56_bn", "imagenet_squeezenet1_1")
MEGABYTE = 1e6
FLOAT = "float"

FORMS: Mapping[str, StorageFormat] = {
    "table": StorageFormat("table"),
    "table, int8": StorageFormat("table", "int8"),
    "table, float": StorageFormat("table", "float"),
    "table, folded": StorageFormat("table", fold_batch_norm="yes"),
    "native": StorageFormat("native"),
    "native, int8": StorageFormat("native", "int8"),
    "native, float": StorageFormat("native", "float"),
    "table, 8-bit activations": StorageFormat("table", "int8", "yes", activations=8),
}


@dataclass(frozen=True)
class Cost:
    """One form with one set of session options: numbers for every process; for latencies, for every run of
    every process.

    ``relative`` is the latency relative to the float model, the ratio of the medians in each process.
    """

    form: str
    options: str
    bytes: int
    load: tuple[float, ...]
    resident: tuple[int, ...]
    peak: tuple[int, ...]
    latency: tuple[float, ...]
    relative: tuple[float, ...]


def store(
    network: Network, setting: Setting, forms: Sequence[str], directory: Path, batch: int = 1
) -> dict[str, Path]:
    """Files of a network by form, and inputs; weights are rounded to nearest, since only their places
    matter.
    """
    made = plan(network.path, setting.recipe(rounding="nearest", **BARE))
    files = {}
    for number, name in enumerate(forms):
        files[name] = directory / f"{number}.onnx"
        form = FORMS[name]
        recipe = setting.recipe(rounding="nearest", activations=form.activations, **BARE)
        save(apply(network.path, replace(made, form=form), recipe, validated=False).model, files[name])
    specs = model_inputs(load(network.path).proto)
    _, _, feeds = next(synthetic(specs, samples=batch, seed=0).batches())
    first: dict[str, Any] = {name: array[:batch] for name, array in feeds.items()}
    np.savez(directory / "input.npz", **first)
    return files


def measure(
    network: Network,
    setting: Setting,
    forms: Sequence[str],
    threads: int,
    runs: int,
    repeats: int,
    batch: int = 1,
) -> list[Cost]:
    """Measure the float model and every form, with every set of session options, in ``repeats`` processes
    each.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        files = {FLOAT: network.path} | store(network, setting, forms, directory, batch)
        cases = [
            (form, options)
            for form in files
            for options in OPTIONS
            if options == "default" or (form != FLOAT and FORMS[form].activations is None)
        ]
        found: dict[tuple[str, str], list[dict[str, Any]]] = {case: [] for case in cases}
        for repeat in range(repeats):
            for form, options in cases:
                paths = map(str, (files[form], network.path, directory / "input.npz"))
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.session",
                    *paths,
                    options,
                    str(threads),
                    str(runs),
                ]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise DfmpcError(f"{network.name}, {form}: {done.stderr.strip().splitlines()[-1]}")
                found[form, options].append(json.loads(done.stdout))
                Console(stderr=True).print(
                    f"{network.name}: {form}, {options}, {repeat + 1} of {repeats}", style="dim"
                )
        return [
            _cost(form, options, files[form].stat().st_size, processes)
            for (form, options), processes in found.items()
        ]


def _cost(form: str, options: str, size: int, processes: Sequence[Mapping[str, Any]]) -> Cost:
    forward_only = {key: tuple(process[key] for process in processes) for key in ("load", "resident", "peak")}
    latency = tuple(seconds for process in processes for seconds in process["latency"])
    relative = tuple(
        statistics.median(process["latency"]) / statistics.median(process["float"]) for process in processes
    )
    return Cost(form, options, size, **forward_only, latency=latency, relative=relative)


def table(network: Network, setting: Setting, costs: Sequence[Cost], threads: int, batch: int = 1) -> Table:
    """Costs for the reader."""
    runs, processes = len(costs[0].latency), len(costs[0].load)
    clock = "CPU time, one thread" if threads == 1 else f"wall time, {threads} threads"
    shown = Table(
        title=f"{network.name}, {setting.label} bits, batch {batch}, {clock}",
        caption=f"medians of {processes} processes, latencies of {runs} runs with their quartiles; memory above the imports, "
        "after the first run and at the peak until then",
        title_justify="left",
        caption_justify="left",
    )
    for header in (
        "form",
        "options",
        "kB",
        "% of float",
        "load ms",
        "MB",
        "peak MB",
        "ms",
        "quartiles",
        "x float",
    ):
        shown.add_column(header, justify="left" if header in ("form", "options") else "right", no_wrap=True)
    for cost in costs:
        low, middle, high = (1e3 * seconds for seconds in statistics.quantiles(cost.latency, n=4))
        shown.add_row(
            cost.form,
            cost.options,
            f"{cost.bytes / 1e3:,.0f}",
            f"{100 * cost.bytes / costs[0].bytes:.1f}",
            f"{1e3 * statistics.median(cost.load):.0f}",
            f"{statistics.median(cost.resident) / MEGABYTE:.1f}",
            f"{statistics.median(cost.peak) / MEGABYTE:.1f}",
            f"{middle:.2f}",
            f"{low:.2f} - {high:.2f}",
            f"{statistics.median(cost.relative):.2f}",
        )
    return shown


def summary(paths: Iterable[Path]) -> str:
    """A line for each network, batch and number of threads in some files that ``--json`` wrote: the first
    form beside the float model.
    """
    rows = []
    for path in paths:
        document = json.loads(path.read_text(encoding="utf-8"))
        for result in document["results"]:
            float_model, form = result["costs"][:2]
            times, loads, memory = (
                [statistics.median(cost[key]) for cost in (float_model, form)]
                for key in ("latency", "load", "resident")
            )
            ratios = form["relative"]
            rows.append(
                (
                    result["network"],
                    str(document["threads"]),
                    str(document["batch"]),
                    f"{form['bytes']:,}",
                    f"{float_model['bytes'] / form['bytes']:.1f}",
                    *(f"{1e3 * time:.2f}" for time in times),
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    " / ".join(f"{1e3 * load:.0f}" for load in loads),
                    " / ".join(f"{size / MEGABYTE:.1f}" for size in memory),
                )
            )
    header = (
        "network", "threads", "batch", "bytes", "times smaller", "float, ms", "integers, ms", "of float",
        "load, ms", "memory, MB",
    )  # fmt: skip
    return markdown(header, sorted(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency",
        description="Size, load time, memory and latency of storage forms.",
    )
    add = parser.add_argument
    add("--networks", nargs="+", default=NETWORKS, metavar="NAME", help=f"default: {' '.join(NETWORKS)}")
    add(
        "--setting",
        default="3/6",
        help="low/high bits of pairs, or bits of every layer (default: %(default)s)",
    )
    add(
        "--forms",
        nargs="+",
        default=list(FORMS),
        choices=list(FORMS),
        metavar="FORM",
        help=f"default: {', '.join(FORMS)}",
    )
    add("--threads", type=int, default=1, metavar="N", help="of a session (default: %(default)s)")
    add("--batch", type=int, default=1, metavar="N", help="inputs at a time (default: %(default)s)")
    add("--runs", type=int, default=50, metavar="N", help="in every process (default: %(default)s)")
    add(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="processes for every form and options (default: %(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="write the numbers there too")
    options = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    results = []
    try:
        (setting, *_) = settings(options.setting)
        for name in options.networks:
            network = networks.network(name)
            costs = measure(
                network,
                setting,
                options.forms,
                options.threads,
                max(2, options.runs),
                max(1, options.repeats),
                options.batch,
            )
            console.print(table(network, setting, costs, options.threads, options.batch))
            results.append({"network": name, "costs": [asdict(cost) for cost in costs]})
            if options.json is not None:
                plain = {
                    "schema": SCHEMA,
                    "setting": setting.label,
                    "cpus": os.cpu_count(),
                    "threads": options.threads,
                    "batch": options.batch,
                    "results": results,
                }
                options.json.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
