"""Runs that take too long or too much, or are told to stop, end soon and with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnx_dfmpc import cli
from onnx_dfmpc.cli import limits
from onnx_dfmpc.cli.flags import parse

ROOT = Path(__file__).resolve().parents[1]
START = "import sys; from onnx_dfmpc_cli import main; sys.exit(main())"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

ENDLESS = """
    trip = Constant<value = int64 {9223372036854775807}>()
    yes = Constant<value = bool {1}>()
    y = Loop(trip, yes, c) <body = b (int64 i, bool go, float[N, 8, 8, 8] v) => (bool go2, float[N, 8, 8, 8] v2) {
        go2 = Identity(go) v2 = Relu(v) }>"""


def save(path: Path, size: int, tail: str = "y = Relu(c)") -> Path:
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, {size}, {size}] x) => (float[N, 8, {size}, {size}] y) {{
            c = Conv<pads = [1, 1, 1, 1]>(x, w) {tail} }}""")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w"))
    onnx.save(model, path)
    return path


def start(folder: Path, *typed: object, **keywords: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", START, *map(str, typed)],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, **keywords,
    )  # fmt: skip


def ended(run: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = run.communicate(timeout=60)
    finally:
        run.kill()
    return run.returncode, out, err


def compute(run: subprocess.Popen[str], seconds: float) -> None:
    """Wait until a run has had so much time of a processor; without /proc, until it could have had it."""
    stat = Path(f"/proc/{run.pid}/stat")
    for _ in range(600):
        time.sleep(0.1)
        if not stat.exists():
            time.sleep(seconds)
            return
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        if int(user) + int(system) >= seconds * os.sysconf("SC_CLK_TCK"):
            return


def test_an_endless_model_ends(tmp_path: Path) -> None:
    save(tmp_path / "endless.onnx", 8, ENDLESS)
    code, out, err = ended(start(tmp_path, "quantize", "endless.onnx", "-o", "o.onnx", "--timeout", 2))
    assert (code, out) == (3, "")
    said, helps = err.splitlines()
    assert said == "error: not done after 2 s"
    assert "--timeout" in helps
    assert os.listdir(tmp_path) == ["endless.onnx"]


def test_a_model_that_takes_too_much_memory_ends(tmp_path: Path) -> None:
    save(tmp_path / "large.onnx", 2000)
    typed = ("quantize", "large.onnx", "-o", "o.onnx", "--bits", 8, "--max-memory", "300MiB")
    code, out, err = ended(start(tmp_path, *typed))
    assert (code, out) == (3, "")
    assert err.startswith("error: takes more than 300 MiB of memory\nhint: --max-memory")
    assert os.listdir(tmp_path) == ["large.onnx"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_while_native_code_runs(tmp_path: Path, name: str) -> None:
    save(tmp_path / "endless.onnx", 8, ENDLESS)
    number = getattr(signal, name)
    # Not ignored, as it is where a shell started the tests in the background.
    run = start(
        tmp_path, "quantize", "endless.onnx", "-o", "o.onnx",
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    compute(run, 3)  # by then it is in the loop, which nothing leaves
    run.send_signal(number)
    code, out, err = ended(run)
    assert (code, out) == (128 + number, "")
    assert err == f"error: {'interrupted' if name == 'SIGINT' else 'terminated'}\n"


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6, 1.0])
def test_an_interrupt_while_it_starts(tmp_path: Path, delay: float, digits_bn: Path) -> None:
    run = start(tmp_path, "inspect", digits_bn)
    time.sleep(delay)
    run.send_signal(signal.SIGINT)
    code, _, err = ended(run)
    # Before the first line of ours, Python has its own way; after the last one there is nothing to stop.
    assert code in (0, 130, -signal.SIGINT) or (code == 1 and "onnx_dfmpc" not in err)
    if code == 130:
        assert err == "error: interrupted\n"


def test_signals_that_are_ignored_stay_so(tmp_path: Path, digits_bn: Path) -> None:
    """As with nohup."""
    run = start(
        tmp_path, "inspect", digits_bn, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    for _ in range(10):
        time.sleep(0.1)
        run.send_signal(signal.SIGHUP)
    assert ended(run)[0] == 0


def test_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(ZeroDivisionError), limits.limited(None, None, lambda *_: None):
        1 / 0  # noqa: B018
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_defaults_and_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    args = parse(["inspect", "m.onnx"])
    assert args.timeout == 3600
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < args.max_memory <= 0.9 * total
    args = parse(["inspect", "m.onnx", "--timeout", "none", "--max-memory", "none"])
    assert (args.timeout, args.max_memory) == (None, None)
    assert parse(["inspect", "m.onnx", "--max-memory", "4GiB"]).max_memory == 4 * 2**30
    for typed in (["--timeout", "-1"], ["--timeout", "soon"], ["--timeout", "nan"], ["--max-memory", "all"]):
        assert cli.main(["inspect", "m.onnx", *typed]) == 2
        assert "or none" in capsys.readouterr().err

    def exhausted(*_: object) -> None:
        raise MemoryError("Unable to allocate 1.00 TiB")

    monkeypatch.setattr(cli, "_inspect", exhausted)
    monkeypatch.setattr(cli, "require_files", lambda _: ())
    assert cli.main(["inspect", "m.onnx"]) == 3
    assert capsys.readouterr().err.startswith("error: out of memory: Unable to allocate 1.00 TiB")
