"""What two models say about classes, and how sure one can be that they differ (pure NumPy)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError

TOP = 5
"""Classes in a top-5."""

NORMAL_95 = 1.959964
"""Two-sided 95 % quantile of the standard normal distribution."""

ENOUGH = 30
"""Labelled samples from which a share that is no better than chance means something: a convention."""


def class_scores(output: NDArray[np.generic], count: int) -> NDArray[np.generic] | None:
    """Class scores of an output for ``count`` samples, shape (count, classes); None for anything that is not
    a classification, of shape (count, classes) or (count, classes, 1, 1).

    >>> class_scores(np.zeros((2, 10, 1, 1)), 2).shape, class_scores(np.zeros((2, 10, 4)), 2)
    ((2, 10), None)
    """
    if output.ndim < 2 or output.shape[2:] not in ((), (1, 1)):
        return None
    return output.reshape(output.shape[:2]) if output.shape[0] == count and output.shape[1] > 1 else None


def log_probabilities(scores: NDArray[np.generic]) -> NDArray[np.float64]:
    """Logarithms of class probabilities, shape (N, classes): of scores that are probabilities already, or of
    the softmax of others.

    >>> [np.exp(log_probabilities(np.array([row]))).round(6).tolist() for row in ([0.25, 0.75], [5.0, 5.0])]
    [[[0.25, 0.75]], [[0.5, 0.5]]]
    """
    values = scores.astype(np.float64)
    if values.size and values.min() >= 0 and np.abs(values.sum(axis=1) - 1).max() < 1e-3:
        given: NDArray[np.float64] = np.log(np.maximum(values, np.finfo(np.float32).tiny))
        return given
    shifted = values - values.max(axis=1, keepdims=True)
    logarithms: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms


def divergence(reference: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of every row, ``sum_k p_k (log p_k - log q_k)``, in nats, shape (N,); p are
    the probabilities of the first, q those of the second.
    """
    p, q = log_probabilities(reference), log_probabilities(other)
    nats: NDArray[np.float64] = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
    return nats


def among_best(
    scores: NDArray[np.generic], classes: NDArray[np.integer], count: int = TOP
) -> NDArray[np.bool_]:
    """Whether fewer than ``count`` classes have a higher score than the given one, for every row."""
    own = np.take_along_axis(scores, classes[:, None], axis=1)
    among: NDArray[np.bool_] = np.greater(scores, own).sum(axis=1) < count
    return among


def paired_interval(only_first: int, only_second: int, samples: int) -> tuple[float, float]:
    """95 % confidence interval, low and high, of the difference of two shares that were measured on the same
    samples, second minus first.

    The adjusted Wald interval of Bonett and Price (2012, British Journal of Mathematical and Statistical
    Psychology 65, 479-488), which Fagerland, Lydersen and Laake (2014, Statistics in Medicine 33, 2850-2875)
    recommend. With b and c the samples that only the first and only the second gets right, ``p1 = (b + 1) /
    (n + 2)`` and ``p2 = (c + 1) / (n + 2)``,

        p2 - p1 -+ z sqrt((p1 + p2 - (p2 - p1)^2) / (n + 2)).

    Samples on which both agree say nothing about the difference: models that err on the same samples are told
    apart by far fewer of them than two independent shares would need.

    >>> [round(limit, 4) for limit in paired_interval(12, 4, 1000)]
    [-0.0163, 0.0003]
    """
    first, second = (only_first + 1) / (samples + 2), (only_second + 1) / (samples + 2)
    centre = second - first
    half = NORMAL_95 * math.sqrt((first + second - centre**2) / (samples + 2))
    return max(-1.0, centre - half), min(1.0, centre + half)


def check_classes(labels: NDArray[np.int64], outputs: Iterable[tuple[str, Any]], count: int) -> None:
    """Raise RecipeError unless labels are classes of the first output, of a run of ``count`` samples, that is
    a classification.
    """
    for name, output in outputs:
        scores = class_scores(output, count) if isinstance(output, np.ndarray) else None
        if scores is None:
            continue
        classes, low, high = scores.shape[1], labels.min(), labels.max()
        if low < 0 or high >= classes:
            from_one = ": subtract 1" if low > 0 and high == classes else ""
            raise RecipeError(
                f"labels from {low} to {high} for the {classes} classes of output {name!r}",
                hint=f"labels are class indices, counted from 0{from_one}",
            )
        return
    raise RecipeError(
        "there are labels, but no output has the shape (N, classes)", hint="leave the labels out"
    )


class LabelTally:
    """Counts of samples that both models get right, added up batch by batch."""

    def __init__(self) -> None:
        self._labelled = self._only_float = self._only_quantized = self._classes = 0
        self._top1 = np.zeros(2, np.int64)  # of the float model, of the quantized one
        self._top5: NDArray[np.int64] | None = np.zeros(2, np.int64)

    def add(self, scores: NDArray[np.generic], other: NDArray[np.generic], labels: NDArray[np.int64]) -> None:
        """Add the scores of both models, shape (N, classes), for labels of shape (N,)."""
        right = np.stack([side.argmax(axis=1) == labels for side in (scores, other)])
        self._classes = scores.shape[1]
        self._labelled += len(labels)
        self._top1 += right.sum(axis=1)
        self._only_float += int((right[0] & ~right[1]).sum())
        self._only_quantized += int((right[1] & ~right[0]).sum())
        if self._classes > TOP and self._top5 is not None:
            self._top5 += np.array([among_best(side, labels).sum() for side in (scores, other)])
        else:
            self._top5 = None

    def remarks(self) -> tuple[str, ...]:
        """Whether the float model looks as if it got something else than it was made for."""
        if self._labelled < ENOUGH:
            return ()
        expected = self._labelled / self._classes
        chance = expected + NORMAL_95 * math.sqrt(expected * (1 - 1 / self._classes))
        if self._top1[0] > chance:
            return ()
        return (
            "the float model is right hardly more often than by chance: check that these are the data and "
            "labels that it was trained for",
        )

    def scores(self) -> dict[str, Any]:
        """Attributes of the `ValidationReport`; none where nothing was added."""
        count = self._labelled
        if not count:
            return {}
        top1, top5 = (self._top1 / count).tolist(), [None, None]
        if self._top5 is not None:
            top5 = (self._top5 / count).tolist()
        return {
            "labelled": count,
            "top1_float": top1[0],
            "top1_quantized": top1[1],
            "top1_interval": paired_interval(self._only_float, self._only_quantized, count),
            "top5_float": top5[0],
            "top5_quantized": top5[1],
        }
