"""Quantize the network that ships with the project at 2 and 6 bits, with and without compensation, and
compare.

    make demo          or          python -m models.demo

The quantized models are written to ``out/``.
"""

from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from onnx_dfmpc import QuantizeResult, Recipe, ValidationReport, quantize, validate
from onnx_dfmpc.report.document import nominal_bits

HERE = Path(__file__).resolve().parent
MODEL = HERE / "digits_resnet_bn.onnx"
DATA = HERE / "digits_test.npz"
OUT = HERE.parent / "out"

Runs = dict[str, tuple[QuantizeResult, ValidationReport]]

RECIPES = {
    "uncompensated": Recipe(low_bits=2, high_bits=6, method="paper", repair="none"),
    "paper": Recipe(low_bits=2, high_bits=6, method="paper"),
    "default": Recipe(low_bits=2, high_bits=6),
}


def worst_layer(result: QuantizeResult) -> str:
    """Layer with the lowest signal to quantization noise ratio, measured where it was measured, predicted
    otherwise.
    """
    noise = {
        layer.name: layer.predicted_sqnr_db if layer.measured_sqnr_db is None else layer.measured_sqnr_db
        for layer in result.layers
    }
    known = {name: sqnr for name, sqnr in noise.items() if sqnr is not None}
    if not known:
        return "-"
    name = min(known, key=known.__getitem__)
    return f"{name} ({known[name]:.1f} dB)"


def percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.2f} %"


HEADER = ("model", "top-1", "bytes", "bits per weight", "worst layer (SQNR)")


def run() -> Runs:
    """Quantize by every recipe, and compare with the float model on the test images."""
    OUT.mkdir(exist_ok=True)
    runs = {}
    for name, recipe in track(RECIPES.items(), "quantizing", console=Console(stderr=True), transient=True):
        result = quantize(MODEL, OUT / f"digits_{name}.onnx", recipe, overwrite=True)
        runs[name] = result, validate(MODEL, result.model, DATA)
    return runs


def rows(runs: Runs) -> list[tuple[str, ...]]:
    """One row for the float model and one for every run."""
    result, report = next(iter(runs.values()))
    table: list[tuple[str, ...]] = [
        ("float", percent(report.top1_float), f"{result.source.size:,}", "32.00", "")
    ]
    for name, (result, report) in runs.items():
        bits = f"{nominal_bits(result.layers):.2f}"
        table.append((name, percent(report.top1_quantized), f"{result.size:,}", bits, worst_layer(result)))
    return table


def comparison(runs: Runs) -> Table:
    """The rows for the terminal."""
    report = next(iter(runs.values()))[1]
    table = Table(title=f"{MODEL.name} at 2/6 bits, {report.labelled} held-out images", title_justify="left")
    for header in HEADER:
        table.add_column(
            header, justify="left" if header in (HEADER[0], HEADER[-1]) else "right", overflow="fold"
        )
    for row in rows(runs):
        table.add_row(*row)
    return table


def main() -> None:
    console = Console()
    console.print(comparison(run()))
    console.print(f"The quantized models are in {OUT}.", soft_wrap=True)


if __name__ == "__main__":
    main()
