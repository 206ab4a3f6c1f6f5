"""The sources of statistics by name. A new one is one more entry of `SOURCES`, and its name in
`spec.moments.STATISTICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnx_dfmpc.pipeline.job import Job
from onnx_dfmpc.solve import wants_outputs
from onnx_dfmpc.spec import LayerStatistics
from onnx_dfmpc.statistics.closed_form import closed_form
from onnx_dfmpc.statistics.probe import probe

Source = Callable[[Job, Sequence[str]], Mapping[str, LayerStatistics]]
"""A job, and the layers whose inputs matter, to statistics by layer; a layer that is left out has none."""


def measured(job: Job, names: Sequence[str]) -> dict[str, LayerStatistics]:
    """The float network run on the inputs of the job."""
    recipe = job.recipe
    assert job.mixture is not None
    return probe(
        job.source.proto,
        job.matched.layers,
        names,
        job.mixture,
        source="probe" if recipe.calibration_data is None else "calibration",
        seed=recipe.seed,
        with_outputs=wants_outputs(recipe),
        progress=job.progress,
    )


def computed(job: Job, names: Sequence[str]) -> dict[str, LayerStatistics]:
    """In closed form: nothing is run."""
    found = closed_form(job.source.proto, job.matched.layers, input_range=job.input_range)
    return {name: LayerStatistics(seen) for name, seen in found.items()}


SOURCES: dict[str, Source] = {"probe": measured, "closed_form": computed}
