"""How many bits do weights need that are rounded to nearest? Tables of Gather, matrices of LSTM and GRU.

    python -m benchmarks.plain train DIRECTORY    where torch is installed: trains two small networks
    python -m benchmarks.plain DIRECTORY          quantizes them, and prints a table

``text`` reads characters of this project's pages (embedding, LSTM, linear) and says which comes next; the
last tenth of the pages is not trained on. ``har`` reads nine signals of a telephone (GRU, linear) and says
what its owner does: 700 of the 950 windows of har_test.npz in $DFMPC_SHARED are trained on. All other
layers are left at 8 bits, so that only these weights make noise.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

ROOT = Path(__file__).parents[1]
LENGTH = 64
"""Characters that `text` reads at once."""
HIDDEN = 128
TRAINED = 700
"""Windows of `har` that are trained on."""
BITS = (8, 6, 5, 4, 3, 2)


def pages() -> tuple[NDArray[np.int64], int]:
    """Characters of the pages as numbers, and how many there are."""
    text = "".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
    letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
    return np.array([letters[letter] for letter in text], np.int64), len(letters)


def pieces() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of characters, to train on and to test on."""
    text = pages()[0]
    rows = text[: len(text) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    split = len(rows) * 9 // 10
    return rows[:split], rows[split:]


def windows() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Signals (n, time, 9) and what they mean."""
    with np.load(Path(os.environ["DFMPC_SHARED"]) / "data" / "har_test.npz") as data:
        order = np.random.default_rng(0).permutation(len(data["labels"]))
        return data["inputs"][order].transpose(0, 2, 1), data["labels"][order]


def train(directory: Path) -> None:
    """Train both networks, a minute each on one thread."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)

    class Text(nn.Module):  # type: ignore[misc]
        def __init__(self, letters: int) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(letters, 48), nn.Linear(HIDDEN, letters)
            self.lstm = nn.LSTM(48, HIDDEN, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.last(self.lstm(self.table(x))[0])

    class Har(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.last = nn.GRU(9, 64, batch_first=True, bidirectional=True), nn.Linear(128, 6)

        def forward(self, x: Any) -> Any:
            return self.last(self.gru(x)[0].mean(1))

    def fit(model: Any, x: Any, y: Any, steps: int) -> None:
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps)
        for _ in range(steps):
            some = torch.randint(len(x), (32,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[some]).flatten(0, -2), y[some].flatten()).backward()
            optimizer.step()
            schedule.step()

    directory.mkdir(parents=True, exist_ok=True)
    rows = torch.from_numpy(pieces()[0])
    signals, labels = (torch.from_numpy(np.ascontiguousarray(one)) for one in windows())
    for name, model, x, y, steps in (
        ("text", Text(pages()[1]), rows[:, :-1], rows[:, 1:], 1500),
        ("har", Har(), signals[:TRAINED], labels[:TRAINED], 400),
    ):
        fit(model, x, y, steps)
        file = directory / f"{name}.onnx"
        axes = {"x": {0: "N"}, "y": {0: "N"}}
        torch.onnx.export(
            model.eval(),
            (x[:2],),
            file,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
            dynamo=False,
        )


def right(model: Any, x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
    """Share of right answers, in percent, and mean cross entropy in bits."""
    from onnx_dfmpc.runtime.session import Session

    scores = Session(model, "model").run({"x": x})[0].astype(np.float64).reshape(y.size, -1)
    scores -= scores.max(axis=1, keepdims=True)
    logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    true = y.ravel()
    return 100 * float((scores.argmax(1) == true).mean()), -float(
        logs[np.arange(y.size), true].mean()
    ) / np.log(2)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Bits of weights that are rounded to nearest.")
    parser.add_argument("command", nargs="?", default="measure", choices=("measure", "train"))
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    if options.command == "train":
        train(options.directory)
        return
    from benchmarks.tables import markdown
    from onnx_dfmpc import Recipe, quantize
    from onnx_dfmpc.model.files import load

    rows, (signals, labels) = pieces()[1], windows()
    tests: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "text": (rows[:, :-1], rows[:, 1:], {"input_range": (0, pages()[1] - 1)}),
        "har": (signals[TRAINED:], labels[TRAINED:], {}),
    }
    lines = []
    for name, (x, y, given) in tests.items():
        file = options.directory / f"{name}.onnx"
        size = file.stat().st_size
        lines.append((name, "float", f"{size:,}", *(f"{one:.2f}" for one in right(load(file).proto, x, y))))
        for bits in BITS:
            rules = {"^.*(LSTM|GRU|Gather).*$": bits}
            result = quantize(file, None, Recipe(bits=8, set=rules, **given), validated=False)
            measured = (f"{one:.2f}" for one in right(result.model, x, y))
            lines.append((name, str(bits), f"{result.size:,}", *measured))
    Console().print(markdown(("network", "bits", "bytes", "right, %", "bits a symbol"), lines))


if __name__ == "__main__":
    main()
