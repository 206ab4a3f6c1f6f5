"""What do the inputs of a network look like? A weight for every hypothesis, by what training left in the
file.

Exporters do not write down how inputs were prepared. There are a few conventions for pictures, and they
differ by factors; of anything else not even the order of magnitude is known. But a batch norm has measured
what the layer in front of it makes of the right inputs, also where it is folded. A channel that responds to
inputs of hypothesis h with mean m and deviation s got by training

    batch norm kept     mu ~ m, sigma ~ s      log p = log T((m - mu) / (sigma / 2)) + log N(2 log(s / sigma))
    batch norm folded   m / s ~ beta / gamma   log p = log T(m / s) - log s        (m includes the bias)

with T Student's density of 3 degrees of freedom: trained ratios beta / gamma are of the order of 1. The term
log s is what makes it a density of b, and keeps the largest scale from winning always. With log p averaged
over the channels and added up over the layers, the weights are

    w_h = prior_h exp(sum_l log p_hl) / sum

The formula has no constant that was fitted to a network. Networks that never had a batch norm do not follow
it: they behave as if fed raw numbers (see `NEGLIGIBLE`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from onnx import ModelProto

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.inputs.specs import has_floats, is_image
from onnx_dfmpc.inputs.synthetic import Hypothesis, draw, hypothetical
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.spec import Array, InputSpec, Layer
from onnx_dfmpc.statistics.mixing import mixture_of
from onnx_dfmpc.statistics.probe import affine, anchor_of, moments, own_bias

RANGES = ((-2.0, 2.0), (-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-128.0, 127.0))
"""Conventions for pictures: mean and deviation of the data set taken out, and four that need no data."""

DEVIATIONS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Deviations of what is no picture; its mean is 0, or two deviations to either side."""

WHITE_PRIOR = 0.1
"""Inputs without any correlation are rare."""

EVIDENCE_SAMPLES = 4
"""Samples of each hypothesis that the evidence is taken on: the densities are wide."""

NEGLIGIBLE = 0.2
"""Median ratio of bias to deviation, over channels and layers, under the best hypothesis, below which a
network never had a batch norm: SqueezeNet has 0.04, folded networks have 0.5 to 1.4.
"""

RAW = 100.0
"""Largest value of a range from which on it is raw numbers, with their mean or without. A network without
batch norm is homogeneous over a wide range of scales, so that nothing but custom tells them apart.
"""


@dataclass(frozen=True, eq=False)
class Belief:
    """Hypotheses on the inputs, and how likely each is, shape (hypotheses,); they add up to 1.

    ``anchored``: every layer that sees the inputs first has a batch norm, behind which they are all alike.
    """

    hypotheses: tuple[Hypothesis, ...]
    weights: Array
    anchored: bool

    @property
    def likeliest(self) -> Hypothesis:
        """The hypothesis of the largest weight."""
        return self.hypotheses[int(self.weights.argmax())]


def believe(
    proto: ModelProto,
    layers: Sequence[Layer],
    specs: Sequence[InputSpec],
    *,
    input_range: tuple[float, float] | None = None,
    seed: int = 0,
) -> Belief:
    """Belief about the inputs of a network; a range that is given leaves no doubt of it."""
    floats = has_floats(specs)
    # Integers are what they are: hypotheses do not move them.
    hypotheses = tuple(_hypotheses(specs, input_range or (None if floats else (0.0, 255.0))))
    first = [layer for layer in layers if layer.edge == "first"]
    anchored = bool(first) and all(layer.batch_norm is not None for layer in first)
    prior = np.array([WHITE_PRIOR if one.kind == "white" else 1.0 for one in hypotheses])
    if not floats or not layers or input_range is not None:
        return Belief(hypotheses, prior / prior.sum(), anchored)
    try:
        # Behind a batch norm all hypotheses look alike: what its layers say is all there is.
        with np.errstate(over="ignore", invalid="ignore"):
            evidence = _evidence(proto, first if anchored else layers, specs, hypotheses, seed)
    except ModelError:  # no runtime runs it; the closed form does without
        return Belief(hypotheses, prior / prior.sum(), anchored)
    # A hypothesis under which numbers overflow is wrong, and would spoil what is measured on the others.
    fits = np.isfinite(evidence.density)
    if not fits.any():
        return Belief(hypotheses, prior / prior.sum(), anchored)
    hypotheses, prior = tuple(compress(hypotheses, fits)), prior[fits]
    evidence = _Evidence(evidence.density[fits], evidence.shape[fits], evidence.ratio[fits])
    found = evidence.density
    never = all(layer.batch_norm is None for layer in layers)
    if never and evidence.ratio[evidence.density.argmax()] < NEGLIGIBLE:
        found = evidence.shape
        prior *= [1.0 if one.high >= RAW else np.exp(-2) for one in hypotheses]
    likelihood = prior * np.exp(found - found.max())
    return Belief(hypotheses, likelihood / likelihood.sum(), anchored)


def _hypotheses(specs: Sequence[InputSpec], input_range: tuple[float, float] | None) -> Iterator[Hypothesis]:
    """What the inputs may be, by their shapes."""
    picture = all(is_image(spec.shape[1:]) for spec in specs)
    if input_range is not None:
        ranges: Sequence[tuple[float, float]] = (input_range,)
    elif picture:
        ranges = RANGES
    else:
        ranges = [
            (float(centre * s - 2 * s), float(centre * s + 2 * s))
            for s in DEVIATIONS
            for centre in (-2, 0, 2)
        ]
    for low, high in ranges:
        yield Hypothesis("pictures", low, high, picture)
    for low, high in (
        ranges if input_range is not None else [span for span in ranges if span[0] < 0 < span[1]]
    ):
        yield Hypothesis("white", low, high, picture)


@dataclass(frozen=True, eq=False)
class _Evidence:
    """By hypothesis: log density, the part of it that does not depend on scales, and the median ratio of bias
    to deviation.
    """

    density: Array
    shape: Array
    ratio: Array


def _evidence(
    proto: ModelProto,
    layers: Sequence[Layer],
    specs: Sequence[InputSpec],
    hypotheses: Sequence[Hypothesis],
    seed: int,
) -> _Evidence:
    count = len(hypotheses)
    units = {kind: draw(specs, kind, EVIDENCE_SAMPLES, seed) for kind in {one.kind for one in hypotheses}}
    feeds = [hypothetical(units[one.kind], one) for one in hypotheses]
    mixture = mixture_of(feeds, np.full(count, 1 / count), np.full(count, 1 / count))
    table = ConstantTable(proto)
    run = PartialRun(proto, table, mixture.feeds)
    density, shape, ratios = np.zeros(count), np.zeros(count), []
    for layer in layers:
        values = run.value(layer.output)
        mean, variance = moments(values, mixture, layer)
        density[~(np.isfinite(mean) & np.isfinite(variance)).all(axis=1)] = -np.inf
        deviation = np.sqrt(variance)
        if layer.batch_norm is not None:
            norm = layer.batch_norm
            off = (mean - norm.mean) / (norm.sigma / 2)
            spread = 2 * np.log(np.maximum(deviation, 1e-6 * norm.sigma) / norm.sigma)
            density += (_student(off) - np.minimum(spread**2, 100) / 2).mean(axis=1)
            anchor = anchor_of(norm, mean, variance, mixture)
            run.put(layer.output, affine(values, mixture, anchor.scale, anchor.offset, layer))
        elif layer.edge != "last":
            floor = 1e-6 * deviation.max(axis=1, keepdims=True)
            live = deviation > np.maximum(floor, 1e-30)
            safe = np.where(live, deviation, 1)
            alive = np.maximum(live.sum(axis=1), 1)
            ratio = np.where(live, _student(mean / safe), 0).sum(axis=1) / alive
            shape += ratio
            density += ratio - np.where(live, np.log(safe), 0).sum(axis=1) / alive
            bias = np.abs(own_bias(layer, table))
            if bias.any():  # zeros say nothing about scales
                ratios.append(np.median(bias / np.maximum(deviation, 1e-30), axis=1))
    return _Evidence(density, shape, np.median(ratios, axis=0) if ratios else np.ones(count))


def _student(t: Array) -> Array:
    """Log density of Student's distribution with 3 degrees of freedom, without its constant."""
    density: Array = -2 * np.log1p(np.square(t) / 3)
    return density
