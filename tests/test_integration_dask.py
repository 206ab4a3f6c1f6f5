"""Sweeps on a Dask cluster: one that is started, one that is there, workers that are killed."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.sweep import sweep
from onnx_dfmpc.sweep.executors import _require_same_version
from onnx_dfmpc.sweep.store import read_rows
from tests.conftest import MODELS

distributed = pytest.importorskip("distributed", reason="Dask is not installed: make check-dask")

import dask  # noqa: E402


def test_without_a_scheduler_it_starts_a_cluster(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_text("no model")
    models = [MODELS / "digits_resnet_bn.onnx", tmp_path / "bad.onnx"]
    rows = sweep(models, settings, tmp_path / "out", executor="dask", workers=1)
    assert [row.status for row in rows] == ["done", "done", "error", "error"]
    alone = sweep(models, settings, tmp_path / "alone", workers=1)
    for there, here in zip(rows[:2], alone[:2], strict=True):
        assert (tmp_path / "out" / there.output).read_bytes() == (
            tmp_path / "alone" / here.output
        ).read_bytes()


def test_a_worker_of_a_cluster_that_is_killed_loses_nothing(settings: Path, tmp_path: Path) -> None:
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        killed = []

        def kill_one() -> None:
            while not client.processing() or not all(client.processing().values()):
                time.sleep(0.02)  # until both are at work
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

        killer = threading.Thread(target=kill_one, daemon=True)
        killer.start()
        address = cluster.scheduler_address
        rows = sweep([MODELS], settings, tmp_path / "out", executor="dask", scheduler=address)
        killer.join(10)
        assert killed
        assert pids[0] not in client.run(os.getpid).values()
    assert [row.status for row in rows] == ["done"] * 4
    assert len(read_rows(tmp_path / "out" / "results.jsonl")) == 4


def test_a_scheduler_that_is_not_there(settings: Path, tmp_path: Path) -> None:
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(RecipeError, match="no Dask scheduler answers") as caught,
    ):
        sweep([MODELS], settings, tmp_path / "out", executor="dask", scheduler="tcp://127.0.0.1:1")
    assert "tcp://host:8786" in caught.value.hint


def test_workers_of_another_version_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"worker a has onnx-dfmpc 0\.0\.0, this is"):
        _require_same_version({"a": "0.0.0"})
