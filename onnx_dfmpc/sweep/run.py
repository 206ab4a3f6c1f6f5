"""A sweep from its arguments to its page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.model.paths import model_files
from onnx_dfmpc.model.writing import write_whole
from onnx_dfmpc.recipe.values import require_known
from onnx_dfmpc.report.html import require_extra
from onnx_dfmpc.report.renderers import RENDERERS
from onnx_dfmpc.spec import Progress
from onnx_dfmpc.sweep.executors import EXECUTORS
from onnx_dfmpc.sweep.grid import jobs_of, read_grid
from onnx_dfmpc.sweep.job import Job, Row
from onnx_dfmpc.sweep.store import append_row, read_rows
from onnx_dfmpc.sweep.summary import summary

RESULTS, MODELS, PAGE = "results.jsonl", "models", "index.html"


def sweep(
    models: Sequence[str | os.PathLike[str]],
    settings: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    executor: str = "processes",
    workers: int | None = None,
    scheduler: str | None = None,
    save_models: bool = True,
    progress: Progress | None = None,
) -> tuple[Row, ...]:
    """Quantize every model in every setting, going on from what `output` has already.

    Parameters
    ----------
    models : sequence of path
        Files, folders or patterns.
    settings : path
        A TOML file: ``[all]``, ``[model."GLOB"]`` and ``[setting."NAME"]``, with keywords of a `Recipe`.
    output : path
        A folder, which is made: ``results.jsonl``, ``models/``, and ``results.md`` with ``index.html`` (where
        the extra ``report`` is installed) once every job has a row.
    executor : {"processes", "dask"}
    workers : int, optional
        Of this machine; by default one for each processor that may be used.
    scheduler : str, optional
        Address of a Dask scheduler.
    save_models : bool
        Whether to write the quantized models.
    progress : callable, optional
        Called with ``("sweep", done, total)``.

    Returns
    -------
    tuple of Row
        One for each job, models in order. A model that cannot be read is a row with an error.

    Raises
    ------
    RecipeError
        Settings that make no sense, a folder that cannot be written, Dask that is not there.
    """
    require_known([executor], list(EXECUTORS))
    folder = Path(output)
    try:
        (folder / MODELS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{folder}: cannot make the folder: {error.strerror}") from error
    grid = read_grid(Path(settings))
    files = model_files(str(Path(model)) for model in models)
    jobs = jobs_of(files, grid, folder / MODELS if save_models else None)
    rows = read_rows(folder / RESULTS)
    todo = [job for job in {job.key: job for job in jobs}.values() if not _is_done(job, rows)]
    total = len(jobs)
    if progress is not None:
        progress("sweep", total - len(todo), total)
    if todo:
        for number, row in enumerate(EXECUTORS[executor](todo, workers or _processors(), scheduler), 1):
            append_row(folder / RESULTS, row)
            rows[row.key] = row
            if progress is not None:
                progress("sweep", total - len(todo) + number, total)
    result = tuple(rows[job.key] for job in jobs)
    _write_page(folder, result)
    return result


def _is_done(job: Job, rows: dict[str, Row]) -> bool:
    row = rows.get(job.key)
    if row is None or row.status == "lost":
        return False
    return row.status != "done" or job.output is None or Path(job.output).exists()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_page(folder: Path, rows: Sequence[Row]) -> None:
    outline = summary(rows)
    write_whole(folder / "results.md", RENDERERS["markdown"].render(outline, True).encode())
    try:
        require_extra()
    except RecipeError:
        return
    write_whole(folder / PAGE, RENDERERS["html"].render(outline, True).encode())
