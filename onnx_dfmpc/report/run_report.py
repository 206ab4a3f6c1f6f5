"""Report of one run: its sections in their order, and how to do it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx_dfmpc.evaluate.validation import next_steps
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.report import charts
from onnx_dfmpc.report.document import Document
from onnx_dfmpc.report.layers import (
    activation_sections,
    chain_line,
    matched_layers,
    quantized_layers,
    skipped_nodes,
)
from onnx_dfmpc.report.outline import (
    Cell,
    Code,
    Column,
    Line,
    Outline,
    Rows,
    Section,
    Table,
    cell,
    fixed,
    percent,
    plain,
    plural,
    seconds,
    section,
    whole,
)
from onnx_dfmpc.report.quality import kinds_of_inputs, reach
from onnx_dfmpc.report.summary import (
    figures_of,
    footer_of,
    made_with,
    model_name,
    path_of,
    subtitle_of,
    verdict_of,
)
from onnx_dfmpc.report.times import latency_sections
from onnx_dfmpc.report.validated import validation_sections
from onnx_dfmpc.report.worst import worst_layers
from onnx_dfmpc.spec import SweepPoint

NAMED = 3
"""Layers that a note names; a convention, as is the next."""


BAR = 20
"""Characters of the longest bar."""


def run_outline(document: Document) -> Outline:
    """Report of one run."""
    layers = document.layers
    inspected = document.command == "inspect"
    return Outline(
        title=model_name(document),
        subtitle=subtitle_of(document),
        verdict=verdict_of(document),
        figures=tuple(figures_of(document)),
        sections=(
            *section("What now", *_next_steps(document)),
            *validation_sections(document.validation),
            *worst_layers(document),
            *section("Size and bits", charts.sizes(layers), charts.bits(layers)),
            *section("Noise", *charts.noise(layers, document.synthetic)),
            *section("Trade-off", charts.frontier(document), _sweep(document.sweep), reach(document)),
            *kinds_of_inputs(document),
            *section("Weights", *map(charts.histogram, document.histograms)),
            *activation_sections(document),
            *latency_sections(document.latency),
            *section(
                "Layers", matched_layers(document) if inspected else quantized_layers(document), folded=True
            ),
            *section("Chains", *map(chain_line, document.chains if inspected else ()), folded=True),
            *section("Stays float", skipped_nodes(document)),
            *section("Notes", *map(Line, _notes(document))),
            *_reproduce(document),
        ),
        footer=footer_of(document),
    )


def _next_steps(document: Document) -> Iterator[Line]:
    """What now, where the validation has failed."""
    if document.validation is not None:
        alone = None if document.activations is None else document.activations.sqnr_db
        for step in next_steps(document.validation, bool(document.per_layer), alone):
            yield Line(f"{step[0].upper() if not step.startswith('-') else step[0]}{step[1:]}.")


def _sweep(points: Sequence[SweepPoint]) -> Table | None:
    """What other budgets buy, with bars of the predicted SQNR."""
    known = [point.predicted_sqnr_db for point in points if point.predicted_sqnr_db is not None]
    low, high = min(0.0, *known, 0.0), max(known, default=1.0)

    def bar(point: SweepPoint) -> Cell:
        height = point.predicted_sqnr_db
        share = 0.0 if height is None else (height - low) / (high - low) if high > low else 1.0
        return Cell("█" * round(BAR * share))

    return Rows(points).table(
        (Column("budget, bytes", "number"), lambda point: cell(whole, point.budget)),
        (
            Column("bytes", "number"),
            lambda point: Cell("too small") if point.bytes is None else cell(whole, point.bytes),
        ),
        (Column("bits per weight", "number"), lambda point: cell(fixed(2), point.nominal_bits)),
        (Column("predicted SQNR, dB", "number"), lambda point: cell(fixed(1), point.predicted_sqnr_db)),
        (Column("measured SQNR, dB", "number"), lambda point: cell(fixed(1), point.measured_sqnr_db)),
        (Column("top-1", "number"), lambda point: cell(percent(2), point.top1)),
        (Column("longer is better"), bar),
        title="Size against quality",
    )


def _notes(document: Document) -> list[str]:
    """Remarks on the model, then those on layers: what holds for many is said once."""
    layers: dict[str, list[str]] = {}
    for layer in document.layers:
        for note in layer.notes:
            layers.setdefault(note, []).append(layer.name)
    return [*dict.fromkeys(document.notes), *(f"{_some(names)}: {note}" for note, names in layers.items())]


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {plural(more, 'more layer')}" if more > 0 else "")


def _reproduce(document: Document) -> tuple[Section, ...]:
    """Command, files, recipe, time and versions."""
    files = [
        (title, file) for title, file in (("float", document.model), ("quantized", document.output)) if file
    ]
    usual = Recipe().to_dict()
    changed = [
        (key, plain(value))
        for key, value in {**document.recipe, **document.form}.items()
        if value not in ([], None, usual.get(key))
    ]
    stages = ", ".join(f"{stage} {seconds(value)}" for stage, value in document.seconds.items())
    versions = (f"{name} {version}" for name, version in document.environment.items())
    tools = ", ".join([made_with(document), *versions])
    return section(
        "Reproduce",
        Code(document.command_line, "Command") if document.command_line else None,
        Rows(files).table(
            (Column("model"), lambda row: Cell(row[0])),
            (Column("file", "code"), lambda row: Cell(path_of(document, row[1]))),
            (Column("bytes", "number"), lambda row: cell(whole, row[1].bytes)),
            (Column("sha256", "code", "page"), lambda row: Cell(row[1].sha256 or "")),
        ),
        Rows(changed).table(
            (Column("changed in the recipe", "code"), lambda row: Cell(row[0])),
            (Column("value", "code"), lambda row: Cell(row[1])),
        ),
        Line(f"Time: {stages}.") if stages else None,
        Line(f"Made with {tools}."),
        appendix=True,
    )
