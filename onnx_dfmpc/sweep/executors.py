"""Jobs to rows as they are finished, wherever that is computed. A place to compute is a row of `EXECUTORS`.

A worker may die at any time: the kernel kills it for its memory, or somebody does. Then its job runs again,
in another worker, and only a job that loses `ATTEMPTS` of them is given up.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from importlib import util

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.report.document import tool_version
from onnx_dfmpc.sweep.job import Job, Row, empty_row, run_job

ATTEMPTS = 2
"""Workers that a job may lose; by convention. Dask has a number of its own, 3 by default."""

Executor = Callable[[Sequence[Job], int, str | None], Iterator[Row]]
"""``(jobs, workers, scheduler)`` to rows, in the order in which they are finished."""


def processes(jobs: Sequence[Job], workers: int, scheduler: str | None) -> Iterator[Row]:
    """In worker processes of this machine."""
    if scheduler is not None:
        raise RecipeError("a scheduler is Dask's", hint="add --executor dask, or leave --scheduler out")
    waiting, lost = deque(jobs), Counter[str]()
    # One pool for each worker: a pool breaks as a whole, and this way it says which job was its last.
    idle = [_worker() for _ in range(min(workers, len(jobs)))]
    running: dict[Future[Row], tuple[ProcessPoolExecutor, Job]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                job = waiting.popleft()
                worker, future = _submit(idle.pop(), job)
                running[future] = worker, job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, job = running.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    worker = _worker()
                    lost[job.key] += 1
                    if lost[job.key] < ATTEMPTS:
                        waiting.append(job)
                    else:
                        yield _lost(job, f"its worker was killed {ATTEMPTS} times")
                idle.append(worker)
    finally:
        for worker in (*idle, *(worker for worker, _ in running.values())):
            worker.shutdown(wait=False, cancel_futures=True)


def _worker() -> ProcessPoolExecutor:
    # "spawn", since ONNX Runtime has threads, and a fork would copy their locks.
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent)


def _end_with_parent() -> None:
    """Let a worker end when the process that started it does, even by SIGKILL: it would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _submit(worker: ProcessPoolExecutor, job: Job) -> tuple[ProcessPoolExecutor, Future[Row]]:
    try:
        return worker, worker.submit(run_job, job)
    except BrokenProcessPool:  # killed while it was idle
        worker = _worker()
        return worker, worker.submit(run_job, job)


def dask(jobs: Sequence[Job], workers: int, scheduler: str | None) -> Iterator[Row]:
    """On a Dask cluster: that of `scheduler`, else one on this machine."""
    if util.find_spec("distributed") is None:
        raise RecipeError("--executor dask needs Dask", hint="pip install 'onnx-dfmpc[dask]'")
    from distributed import Client, LocalCluster, as_completed

    with ExitStack() as stack:
        try:
            if scheduler is None:
                local = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
                scheduler = stack.enter_context(local).scheduler_address
            client = stack.enter_context(Client(scheduler))
        except (OSError, ValueError) as error:
            hint = "pass the address that dask-scheduler prints, such as tcp://host:8786"
            raise RecipeError(f"{scheduler}: no Dask scheduler answers: {error}", hint=hint) from error
        _require_same_version(client.run(tool_version))
        futures = {client.submit(run_job, job, key=job.key): job for job in jobs}
        for future in as_completed(list(futures)):
            job = futures.pop(future)  # so that the cluster forgets the result
            try:
                yield future.result()
            except Exception as error:  # KilledWorker, or what a worker without its packages raises
                yield _lost(job, f"{type(error).__name__}: {error}")


def _require_same_version(found: dict[str, str]) -> None:
    ours = tool_version()
    for address, version in found.items():
        if version != ours:
            raise RecipeError(
                f"worker {address} has onnx-dfmpc {version}, this is {ours}",
                hint="install the same version everywhere",
            )


def _lost(job: Job, why: str) -> Row:
    return empty_row(job, "lost", why, "it may need more memory; the same command tries again")


EXECUTORS: dict[str, Executor] = {"processes": processes, "dask": dask}
"""Places to compute; other packages may add theirs."""
