"""Sweeps: rows of a grid, kills, resumption, the front; small networks, rounding to nearest."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_dfmpc.errors import ModelError, RecipeError
from onnx_dfmpc.model.paths import model_files
from onnx_dfmpc.sweep import executors, sweep
from onnx_dfmpc.sweep.executors import processes
from onnx_dfmpc.sweep.grid import digest, jobs_of, read_grid
from onnx_dfmpc.sweep.job import Job, Row, empty_row
from onnx_dfmpc.sweep.store import append_row, read_rows
from onnx_dfmpc.sweep.summary import front, summary
from tests.conftest import MODELS, ROOT, SETTINGS, Run

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find workers")


def job(key: str, model: str = "m.onnx", setting: str = "s") -> Job:
    return Job(key, model, setting, {}, None)


def row(key: str, **given: Any) -> Row:
    return Row(**{**vars(empty_row(job(key), "done")), **given})


def test_every_model_in_every_setting_is_a_row(settings: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "bad.onnx").write_text("no model")
    out = tmp_path / "out"
    words = (MODELS, tmp_path / "bad.onnx", "--settings", settings, "-o", out, "--workers", 2)
    code, shown, err = run("sweep", *words)
    assert code == 1
    assert "2 of 6 jobs have no file; the first: 4 bits" in err
    assert "not an ONNX model" in shown
    rows = read_rows(out / "results.jsonl").values()
    assert sorted((Path(one.model).stem, one.setting, one.status) for one in rows) == [
        ("bad", "2", "error"),
        ("bad", "4 bits", "error"),
        ("digits_resnet_bn", "2", "done"),
        ("digits_resnet_bn", "4 bits", "done"),
        ("digits_resnet_folded", "2", "done"),
        ("digits_resnet_folded", "4 bits", "done"),
    ]
    for one in rows:
        if one.status == "done":
            assert one.output is not None
            assert (out / one.output).stat().st_size == one.bytes
            assert one.float_bytes == Path(one.model).stat().st_size
    assert "not an ONNX model" in (out / "results.md").read_text(encoding="utf-8")

    before = (out / "results.jsonl").read_bytes()
    code, again, _ = run("sweep", *words)  # nothing is left to do
    assert (code, again) == (1, shown)
    assert (out / "results.jsonl").read_bytes() == before


@needs_proc
def test_a_worker_that_is_killed_loses_nothing(settings: Path, tmp_path: Path) -> None:
    """SIGKILL to a worker in the middle of its job: the job runs again, and every job has one row."""
    killed: list[int] = []

    def kill_one() -> None:
        while not killed:
            time.sleep(0.05)
            for pid in _workers(os.getpid()):
                if (tmp_path / "first").exists():  # a row is there, so the others are at work
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return

    def progress(_: str, done: int, total: int) -> None:
        if done:
            (tmp_path / "first").touch()

    killer = threading.Thread(target=kill_one)
    killer.start()
    rows = sweep([MODELS], settings, tmp_path / "out", workers=2, progress=progress)
    killer.join(10)
    assert killed
    assert [one.status for one in rows] == ["done"] * 4
    lines = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["key"] for line in lines if line) == sorted(one.key for one in rows)


def _workers(parent: int) -> list[int]:
    """Processes that multiprocessing spawned, but not its resource tracker."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(stat.rsplit(")", 1)[1].split()[1]) == parent and b"spawn_main" in command:
            found.append(int(folder.name))
    return found


def test_a_job_that_kills_its_workers_is_given_up_and_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executors, "run_job", _deadly)
    rows = list(processes([job("deadly"), *(job(f"job {n}") for n in range(5))], 2, None))
    assert sorted((one.key, one.status) for one in rows) == [
        ("deadly", "lost"),
        *((f"job {n}", "done") for n in range(5)),
    ]
    (lost,) = (one for one in rows if one.status == "lost")
    assert "killed 2 times" in lost.error


def _deadly(one: Job) -> Row:
    if one.key == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return empty_row(one, "done")


@needs_proc
def test_a_run_that_is_killed_goes_on_and_leaves_no_worker(settings: Path, tmp_path: Path) -> None:
    words = ["sweep", MODELS, "--settings", settings, "-o", tmp_path / "out", "--workers", 1, "--no-progress"]
    command = [sys.executable, "-m", "onnx_dfmpc", *map(str, words)]
    results = tmp_path / "out" / "results.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (results.exists() and len(read_rows(results)) >= 1):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (worker,) = _workers(process.pid)
    process.kill()
    process.wait()
    before = read_rows(results)
    assert 1 <= len(before) < 4
    while Path(f"/proc/{worker}/exe").exists() and _is_alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    rows = sweep([MODELS], settings, tmp_path / "out", workers=1)
    assert [one.status for one in rows] == ["done"] * 4
    kept = [one for one in rows if one.key in before]
    assert kept == [before[one.key] for one in kept]  # not computed again


def _is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_line_that_was_cut_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, row("a"))
    append_row(path, row("b"))
    whole = path.read_bytes()
    for cut in range(len(whole) - 40, len(whole)):
        path.write_bytes(whole[:cut])
        assert set(read_rows(path)) == {"a"}
        append_row(path, row("c"))
        assert set(read_rows(path)) == {"a", "c"}
    append_row(path, row("a", status="error"))
    assert read_rows(path)["a"].status == "error"  # the last one counts


def test_a_row_that_is_no_row_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"key": 3}\n')
    with pytest.raises(RecipeError, match=r"results\.jsonl, line 1: key = 3: expected text"):
        read_rows(path)


def test_keys_follow_bytes_and_recipe(settings: Path, tmp_path: Path, digits_bn: Path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(digits_bn.read_bytes())
    grid = read_grid(settings)
    keys = [[one.key for one in jobs_of([model], grid, None)] for model in (digits_bn, copy)]
    assert keys[0] == keys[1]
    assert len({*keys[0]}) == 2
    copy.write_bytes(digits_bn.read_bytes() + b"\x42\x00")  # an empty field more
    assert not {*keys[0]} & {one.key for one in jobs_of([copy], grid, None)}
    settings.write_text(SETTINGS.replace("samples = 8", "samples = 9"))
    assert not {*keys[0]} & {one.key for one in jobs_of([digits_bn], read_grid(settings), None)}


def test_external_data_counts(digits_bn: Path, tmp_path: Path) -> None:
    import onnx

    onnx.save(onnx.load(digits_bn), tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    first = digest(tmp_path / "m.onnx")
    data = bytearray((tmp_path / "m.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "m.data").write_bytes(data)
    assert digest(tmp_path / "m.onnx") != first


def test_keywords_of_models_and_paths(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        '[all]\nsamples = 1\n[model."*a.onnx"]\ndata = "a.npz"\nsamples = 2\n[setting.s]\nsamples = 3\nbits = 4'
    )
    grid = read_grid(path)
    recipe = grid.recipe(Path("x/a.onnx"), "s")
    assert (recipe.samples, recipe.bits, recipe.data) == (3, 4, str(tmp_path / "a.npz"))
    assert grid.recipe(Path("b.onnx"), "s").data is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no setting"),
        ("[settings.a]\nbits = 4", "unknown key 'settings'"),
        ("[setting]\na = 4", "expected a section"),
        ("[setting.a", "not a TOML file"),
        ("[setting.a]\nbit = 4", "setting 'a'.*unknown key 'bit'"),
        ("[all]\nbits = 4\n[setting.a]\ntarget_bits = 4", "exclude each other"),
    ],
)
def test_settings_that_make_no_sense(text: str, message: str, tmp_path: Path, digits_bn: Path) -> None:
    (tmp_path / "grid.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        sweep([digits_bn], tmp_path / "grid.toml", tmp_path / "out")


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "b/c.onnx", "b/d/e.onnx", "b/x.txt", "a.quantized.onnx", "[z].onnx"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert model_files(["b", "a.onnx", "a.*", "missing.onnx"]) == [
        Path(name) for name in ("b/c.onnx", "b/d/e.onnx", "a.onnx", "missing.onnx")
    ]
    assert model_files(["[z].onnx"]) == [Path("[z].onnx")]
    assert model_files(["a.quantized.onnx"]) == [Path("a.quantized.onnx")]
    for name in ("b/*.txt2", "b/d/nothing*"):
        with pytest.raises(ModelError, match=r"no \.onnx file there"):
            model_files([name])


POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    rows = [row(str(n), bytes=count, sqnr_db=float(db)) for n, (count, db) in enumerate(points)]
    best = front(rows)
    for one in rows:
        beaten = any(
            (a, -b) != (one.bytes, -(one.sqnr_db or 0)) and a <= one.bytes and b >= (one.sqnr_db or 0)
            for a, b in points
        )
        assert (one.key in best) is not beaten


def test_a_page_of_many_models_has_a_few_charts() -> None:
    rows = [
        row(f"{n}-{m}", model=f"{n}.onnx", setting=str(m), bytes=100 + m, float_bytes=400, sqnr_db=10.0 + m)
        for n in range(200)
        for m in range(3)
    ]
    outline = summary(rows)
    (charts,) = (part.blocks for part in outline.sections if part.title == "Size against quality")
    assert len(charts) == 16
    assert outline.verdict.tone == "good"
    assert json.dumps([chart.spec for chart in charts])  # type: ignore[union-attr]


def test_dask_and_its_scheduler_are_named(settings: Path, tmp_path: Path, run: Run) -> None:
    words = ("sweep", MODELS, "--settings", settings, "-o", tmp_path / "out")
    code, _, err = run(*words, "--scheduler", "tcp://127.0.0.1:1")
    assert code == 2
    assert "--executor dask" in err
    code, _, err = run(*words, "--executor", "desk")
    assert code == 2
    assert "did you mean dask?" in err
