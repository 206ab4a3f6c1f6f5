"""Whether every byte is accounted for: ``python -m benchmarks.accounting [--nearest] [--only TEXT] [--output FILE]``.

Every network of the shared models at 2/6, 3/6, 4 and mean 3 bits: does it run, how many bytes were predicted and
how many are in the file, and are all bytes of the float model in the report, as quantized or by reason as left?
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from benchmarks.random_networks import accounted, float_bytes
from benchmarks.tables import markdown
from models.zoo import shared_dir
from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import DfmpcError

SETTINGS: dict[str, dict[str, Any]] = {
    "2/6": {"low_bits": 2, "high_bits": 6},
    "3/6": {"low_bits": 3, "high_bits": 6},
    "4": {"bits": 4},
    "mean 3": {"target_bits": 3},
}
HEADER = (
    "network", "bits", "exit code", "output SQNR (dB)", "predicted bytes", "bytes", "float bytes", "not in the report",
)  # fmt: skip


def row(path: Path, setting: str, keywords: Mapping[str, Any]) -> tuple[str, ...]:
    """One run."""
    try:
        made = quantize(path, None, Recipe(**SETTINGS[setting], **keywords))
    except DfmpcError as error:
        return (path.stem, setting, f"{error.exit_code}: {error}", "", "", "", "", "")
    with tempfile.TemporaryDirectory() as folder:  # also where a gate does not hold: the bytes are there
        size = made.save(Path(folder) / "out.onnx").size
    whole = float_bytes(onnx.load(path))
    sqnr = (
        "" if made.validation is None or made.validation.sqnr_db is None else f"{made.validation.sqnr_db:.1f}"
    )
    numbers = (made.plan.predicted_bytes or 0, size, whole, whole - accounted(made))
    code = "0" if made.passed else "1, a gate"
    return (path.stem, setting, code, sqnr, *(f"{number:,}" for number in numbers))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, line by line, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument(
        "--nearest", action="store_true", help="round to nearest, without repair: the same bytes, sooner"
    )
    parser.add_argument("--output", type=Path, help="file for the table")
    given = parser.parse_args(arguments)
    keywords = {"rounding": "nearest", "repair": "none", "samples": 4} if given.nearest else {}
    rows = []
    for path in sorted((shared_dir() / "models").glob("*.onnx"), key=lambda path: path.stat().st_size):
        if given.only not in path.stem:
            continue
        for setting in SETTINGS:
            rows.append(row(path, setting, keywords))
            sys.stderr.write(f"{' | '.join(rows[-1])}\n")
            if given.output:
                given.output.write_text(markdown(HEADER, rows) + "\n", encoding="utf-8")
    sys.stdout.write(markdown(HEADER, rows) + "\n")
    return int(any(one[-1] != "0" for one in rows))


if __name__ == "__main__":
    sys.exit(main())
