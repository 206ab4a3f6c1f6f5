"""Covariance between two tensors that share an ancestor: what a residual Add or a Concat needs (NumPy).

Every field remembers how it came about. From the younger of two fields the walk goes back, operator by
operator, to the field where both began, whose own covariance is known; on the way forth linear operators act
on the covariance exactly, and an activation by Stein's lemma, Cov(z, f(x)) = E[f'(x)] Cov(z, x), or by its
whole series where both sides are activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array
from onnx_dfmpc.statistics import rectified
from onnx_dfmpc.statistics.field import (
    TINY,
    Field,
    Kernel,
    Lags,
    Origin,
    apply_right,
    back,
    resample,
    torus_of,
    transform,
    transposed,
)


@dataclass(frozen=True, eq=False)
class Filtered(Origin):
    """A convolution of the parent."""

    parent: Field
    kernel: Kernel


@dataclass(frozen=True, eq=False)
class Scaled(Origin):
    """The parent times a factor per channel, up to what is independent of everything else."""

    parent: Field
    gain: Array


@dataclass(frozen=True, eq=False)
class Activated(Origin):
    """An activation of the parent."""

    parent: Field
    expansion: rectified.Expansion
    activation: rectified.Activation

    @property
    def gain(self) -> Array:
        """E[f'(x)] of every channel."""
        gain: Array = self.expansion.coefficients[0] / np.sqrt(np.maximum(self.parent.variance, TINY))
        return gain


@dataclass(frozen=True, eq=False)
class Selected(Origin):
    """Channels of the parent, -1 for zeros, and at which of its places the first place lies."""

    parent: Field
    channels: NDArray[np.int64]
    start: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Joined(Origin):
    """Channels of several fields, one after the other."""

    parts: tuple[Field, ...]


@dataclass(frozen=True, eq=False)
class Summed(Origin):
    """Sum of fields with factors."""

    parts: tuple[Field, ...]
    factors: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Relation:
    """Covariance of two fields at displacements of ``step`` places of the network's input; ``lags[l, i, j]``
    = Cov(A_i(p), B_j(p + l)).
    """

    lags: Lags
    step: tuple[float, ...]


Known = dict[tuple[int, int], Relation | None]


def cross_covariance(a: Field, b: Field) -> Lags | None:
    """Covariance of two fields of the same shape, or None where they have no common ancestor.

    Parameters
    ----------
    a, b : Field

    Returns
    -------
    float32 array, shape (*torus, c_a, c_b), or None
        On the torus of a field with as many channels as both together.
    """
    relation = _relate(a, b, {})
    if relation is None:
        return None
    return resample(relation.lags, torus_of(a.channels + b.channels, a.size), _ratio(a.step, relation.step))


def _relate(a: Field, b: Field, known: Known) -> Relation | None:
    """Walk back from the younger field; None where there is no common ancestor."""
    if a.birth == b.birth:
        return Relation(a.lags, a.step)
    if a.birth > b.birth and not _activated(a, b):
        mirrored = _relate(b, a, known)
        return mirrored and Relation(transposed(mirrored.lags), mirrored.step)
    key = (a.birth, b.birth)
    if key not in known:
        known[key] = _walk(a, b, known)
    return known[key]


def _activated(a: Field, b: Field) -> bool:
    return isinstance(a.origin, Activated) and isinstance(b.origin, Activated)


def _walk(a: Field, b: Field, known: Known) -> Relation | None:
    if isinstance(a.origin, Activated) and isinstance(b.origin, Activated):
        return _both_activated(a.origin, b.origin, _relate(a.origin.parent, b.origin.parent, known))
    match b.origin:
        case Joined(parts):
            return _joined(parts, [_relate(a, part, known) for part in parts])
        case Summed(parts, factors):
            return _summed(factors, [_relate(a, part, known) for part in parts])
        case Filtered(parent) | Scaled(parent) | Activated(parent) | Selected(parent):
            relation = _relate(a, parent, known)
            return relation and _forth(relation, b.origin)
    return None


def _forth(relation: Relation, origin: Origin) -> Relation:
    """Follow one operator with one parent."""
    lags = relation.lags
    match origin:
        case Filtered(kernel=kernel) if kernel.pointwise:
            lags = lags @ kernel.matrix.T
        case Filtered(parent, kernel):
            torus = torus_of(max(*lags.shape[-2:], len(kernel.weight)), lags.shape[:-2])
            response = kernel.spectrum(torus, _ratio(parent.step, relation.step))
            lags = back(apply_right(kernel, transform(resample(lags, torus)), response), torus)
        case Scaled(gain=gain) | Activated(gain=gain):
            lags = lags * gain.astype(np.float32)
        case Selected(parent, channels, start):
            shift = [
                -first * ratio for first, ratio in zip(start, _ratio(parent.step, relation.step), strict=True)
            ]
            lags = np.roll(lags[..., channels], shift, tuple(range(len(shift)))) * (channels >= 0).astype(
                np.float32
            )
    return Relation(lags, relation.step)


def _both_activated(a: Activated, b: Activated, relation: Relation | None) -> Relation | None:
    if relation is None:
        return None
    deviations = [np.sqrt(np.maximum(origin.parent.variance, TINY)).astype(np.float32) for origin in (a, b)]
    correlation = np.clip(relation.lags / np.outer(*deviations), -1, 1)
    return Relation(rectified.covariance(a.expansion, b.expansion, correlation), relation.step)


def _joined(parts: tuple[Field, ...], relations: list[Relation | None]) -> Relation | None:
    relations = _on_one_grid(relations)
    known = next((relation for relation in relations if relation is not None), None)
    if known is None:
        return None
    blocks = [
        np.zeros((*known.lags.shape[:-1], part.channels), np.float32) if relation is None else relation.lags
        for relation, part in zip(relations, parts, strict=True)
    ]
    return Relation(np.concatenate(blocks, axis=-1), known.step)


def _summed(factors: tuple[float, ...], relations: list[Relation | None]) -> Relation | None:
    terms = [
        (relation, factor)
        for relation, factor in zip(_on_one_grid(relations), factors, strict=True)
        if relation is not None
    ]
    if not terms:
        return None
    return Relation(
        np.sum([relation.lags * np.float32(factor) for relation, factor in terms], axis=0), terms[0][0].step
    )


def _on_one_grid(relations: list[Relation | None]) -> list[Relation | None]:
    """The same relations on the coarsest of their grids, and the smallest of their tori."""
    known = [relation for relation in relations if relation is not None]
    if not known:
        return relations
    step = tuple(max(steps) for steps in zip(*(relation.step for relation in known), strict=True))
    tori = [
        [max(1, round(t * s / c)) for t, s, c in zip(r.lags.shape[:-2], r.step, step, strict=True)]
        for r in known
    ]
    torus = tuple(min(sides) for sides in zip(*tori, strict=True))
    return [
        relation and Relation(resample(relation.lags, torus, _ratio(step, relation.step)), step)
        for relation in relations
    ]


def _ratio(step: tuple[float, ...], unit: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(max(1, round(s / u)) for s, u in zip(step, unit, strict=True))
