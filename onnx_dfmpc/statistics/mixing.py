"""Inputs for statistics and for predictions, as a belief has them, with the user's own where there are some.

The likely hypotheses decide means and gains. A covariance has to be good for the others, too: rounding that
relies on correlations which are not there is worse than plain rounding, while one that does not use some that
are there loses little. So a part of it, `BROAD`, goes to all hypotheses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnx_dfmpc.inputs.synthetic import MAX_SAMPLES, Hypothesis, Kind, draw, hypothetical, usual_samples
from onnx_dfmpc.spec import Array, Feeds, InputSpec, Mixture

BROAD = {True: 0.3, False: 0.5}
"""Part of a covariance that does not follow the weights, for pictures and for anything else, of which less is
known. benchmarks.robustness has what it is worth.
"""

FLATTENED = 0.1
"""Power of the weights in one half of that part; the other half is even."""

MOST_KINDS = 12
"""Hypotheses in a mixture: those with the largest shares."""

FEWEST = 2
"""Samples of a hypothesis."""

KNOWN = 16
"""Real samples that are worth as much as the belief."""

PLAUSIBLE = 0.03
"""Least weight of a hypothesis that a prediction has to hold for."""

TRIAL_SAMPLES = 8
"""Samples of each hypothesis and kind that a prediction is made on; half as many of large inputs."""


def mixture_of(feeds: Sequence[Feeds], weights: Array, shares: Array, real: Sequence[bool] = ()) -> Mixture:
    """Mixture of some kinds of inputs, none of them real unless said so."""
    flat = [feed for one in feeds for feed in one]
    kinds = tuple(kind for kind, one in enumerate(feeds) for _ in one)
    return Mixture(flat, kinds, weights, shares, np.array(real or [False] * len(feeds)))


def believed(
    specs: Sequence[InputSpec],
    hypotheses: Sequence[Hypothesis],
    weights: Array,
    *,
    anchored: bool,
    seed: int,
    input_range: tuple[float, float] | None = None,
) -> Mixture:
    """Inputs as a belief has them: many of what is likely, a few of the rest; the range is that of integers.

    ``anchored``: behind a batch norm the ranges are all alike, so that the likeliest stands for all.
    """
    chosen, likely, shares = _shared(hypotheses, weights, anchored)
    counts = [max(FEWEST, round(usual_samples(specs) * share)) for share in shares]
    units = {
        kind: draw(specs, kind, max(counts[place] for place in places), seed, input_range)
        for kind, places in _by_kind(chosen).items()
    }
    feeds = [hypothetical(units[one.kind], one, count) for one, count in zip(chosen, counts, strict=True)]
    return mixture_of(feeds, likely, shares)


def _by_kind(hypotheses: Sequence[Hypothesis]) -> dict[Kind, list[int]]:
    """Positions of the hypotheses of every kind."""
    places: dict[Kind, list[int]] = {}
    for place, hypothesis in enumerate(hypotheses):
        places.setdefault(hypothesis.kind, []).append(place)
    return places


def _shared(
    hypotheses: Sequence[Hypothesis], weights: Array, anchored: bool
) -> tuple[list[Hypothesis], Array, Array]:
    """Hypotheses of a mixture, their weights and their shares of a covariance."""
    best = int(weights.argmax())
    broad = BROAD[hypotheses[best].picture]
    if anchored:
        shares = np.array([1 - broad / 2, broad / 2])
        return [hypotheses[best], replace(hypotheses[best], kind="white")], np.array([1.0, 0.0]), shares
    flat, even = weights**FLATTENED, np.array([0.4 if one.kind == "white" else 1.0 for one in hypotheses])
    shares = (1 - broad) * weights + broad / 2 * (flat / flat.sum() + even / even.sum())
    chosen = [int(index) for index in np.argsort(-shares, kind="stable")[:MOST_KINDS]]
    # A small scale counts for much in a mean, where noise is relative to the signal: a hypothesis that is not
    # even plausible must not.
    likely = np.where(weights >= min(PLAUSIBLE, weights.max()), weights, 0)[chosen]
    shares = shares[chosen]
    return [hypotheses[index] for index in chosen], likely / likely.sum(), shares / shares.sum()


def blended(mixture: Mixture, real: Feeds, count: int) -> Mixture:
    """Mixture with that many real samples as one more kind: the more there are, the less the belief counts.

    With n samples both weight and share of the real inputs are n / (n + `KNOWN`).
    """
    own = count / (count + KNOWN)
    kinds = len(mixture.weights)
    return Mixture(
        [*mixture.feeds, *real],
        (*mixture.kinds, *[kinds] * len(real)),
        np.append((1 - own) * mixture.weights, own),
        np.append((1 - own) * mixture.shares, own),
        np.append(mixture.real, True),
    )


def plausible(
    specs: Sequence[InputSpec],
    hypotheses: Sequence[Hypothesis],
    weights: Array,
    *,
    seed: int,
    input_range: tuple[float, float] | None = None,
) -> Sequence[tuple[str, float, Feeds]]:
    """Inputs of every plausible hypothesis, with its name and weight, for predictions: drawn anew, half as
    the hypothesis has them and half as noise with the spectrum of photographs, or white where it is no
    picture.
    """
    kept = [
        (hypothesis, float(weight))
        for hypothesis, weight in zip(hypotheses, weights, strict=True)
        if weight >= PLAUSIBLE and hypothesis.kind == "pictures"
    ] or [(hypotheses[int(weights.argmax())], 1.0)]
    total = sum(weight for _, weight in kept)
    samples = TRIAL_SAMPLES if usual_samples(specs) == MAX_SAMPLES else TRIAL_SAMPLES // 2
    kinds: tuple[Kind, ...] = ("pictures", "spectrum")
    units = [draw(specs, kind, samples, seed + 1, input_range) for kind in kinds]
    return [
        (str(other), weight / total / len(units), hypothetical(one, other))
        for hypothesis, weight in kept
        for one in units
        for other in [replace(hypothesis, kind=one.kind)]
    ]
