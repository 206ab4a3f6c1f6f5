"""Samples that come in pieces, each with one or several of them: files of a folder, feeds of a script. One
piece is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.dataset import LABELS, Table, assign, check_shapes, misfit
from onnx_dfmpc.inputs.specs import InputSpec, fixed_batch, is_batched, listing, shape_text
from onnx_dfmpc.inputs.stored import Anything, Rows


@dataclass(frozen=True, eq=False)
class Piece:
    """What is known of a piece before it is loaded.

    Attributes
    ----------
    source : str
        Where it comes from, for messages.
    arrays : mapping of (shape, dtype)
        By name, the labels left out.
    labels : array or None
        One number for every sample, or a single one.
    """

    source: str
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
    labels: Anything | None = None


def outline(source: str, arrays: Mapping[str, Rows], labels: Anything | None = None) -> Piece:
    """What to remember of some arrays."""
    return Piece(
        source,
        {name: (tuple(rows.shape), rows.dtype) for name, rows in arrays.items() if name != LABELS},
        labels,
    )


class _Loader:
    """Loads pieces, and keeps the last one for the next question."""

    def __init__(self, load: Callable[[int], Mapping[str, Anything]]) -> None:
        self._load = load
        self._last: tuple[int, Mapping[str, Anything]] = (-1, {})

    def __call__(self, index: int) -> Mapping[str, Anything]:
        if self._last[0] != index:
            self._last = (-1, {})  # not two at a time
            self._last = (index, self._load(index))
        return self._last[1]


class _PieceRows:
    """One array of all pieces."""

    def __init__(
        self, load: _Loader, key: str, counts: Sequence[int], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._load, self._key = load, key
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.shape, self.dtype = (int(self._starts[-1]), *shape), dtype

    def __getitem__(self, indices: NDArray[np.intp]) -> Anything:
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        parts = []
        for index in dict.fromkeys(owner.tolist()):
            array = self._load(index)[self._key]
            array = array if array.ndim == len(self.shape) else array[None]
            parts.append(array[indices[owner == index] - self._starts[index]])
        return np.concatenate(parts) if parts else np.zeros((0, *self.shape[1:]), self.dtype)


def pieces_table(
    specs: Sequence[InputSpec],
    pieces: Sequence[Piece],
    load: Callable[[int], Mapping[str, Anything]],
    source: str,
) -> Table:
    """Table of the samples of all pieces, in order.

    An array with as many dimensions as the input is a batch; with one less it is a single sample. Samples may
    differ in the dimensions that the model leaves open.

    Parameters
    ----------
    specs : sequence of InputSpec
    pieces : sequence of Piece
    load : callable
        Arrays of a piece, by its index.
    source : str
        Where they come from.

    Raises
    ------
    RecipeError
        Pieces that do not fit the model, or each other.
    """
    if not pieces:
        raise RecipeError(f"{source}: no samples")
    assigned, notes = assign(list(pieces[0].arrays), specs, pieces[0].source)
    for piece in pieces:
        for key in assigned.values():
            if key not in piece.arrays:
                raise RecipeError(
                    f"{piece.source}: there is no array {key!r}, as in {pieces[0].source}",
                    hint=listing(specs),
                )
    fixed, loader = fixed_batch(specs), _Loader(load)
    counts = [_count(piece, assigned, specs, fixed) for piece in pieces]
    batched, constant = {}, {}
    for spec in specs:
        key = assigned[spec.name]
        if is_batched(spec, fixed):
            shape = _common([_sample(piece, key, spec) for piece in pieces])
            batched[spec.name] = _PieceRows(loader, key, counts, shape, pieces[0].arrays[key][1])
        else:
            constant[spec.name] = loader(0)[key]
    table = Table(batched, constant, source, _labels(pieces, counts), notes=notes)
    check_shapes(specs, table)
    return table


def samples_in(piece: Piece, specs: Sequence[InputSpec]) -> int:
    """Number of samples of a piece.

    Raises
    ------
    RecipeError
        If it does not fit the model.
    """
    return _count(piece, assign(list(piece.arrays), specs, piece.source)[0], specs, fixed_batch(specs))


def _count(piece: Piece, assigned: Mapping[str, str], specs: Sequence[InputSpec], fixed: int | None) -> int:
    """Samples of a piece."""
    counts = {}
    for spec in specs:
        if is_batched(spec, fixed):
            shape, dtype = piece.arrays[assigned[spec.name]]
            if len(shape) not in (len(spec.shape), len(spec.shape) - 1):
                raise misfit(shape, dtype, spec, piece.source, batched=True)
            counts[spec.name] = shape[0] if len(shape) == len(spec.shape) else 1
    if len(set(counts.values())) > 1:
        raise RecipeError(
            f"{piece.source}: inputs differ in samples: "
            + ", ".join(f"{name} has {n}" for name, n in counts.items())
        )
    return next(iter(counts.values()), 1)


def _sample(piece: Piece, key: str, spec: InputSpec) -> tuple[int, ...]:
    """Shape of one sample."""
    shape, _ = piece.arrays[key]
    return shape[len(shape) - len(spec.shape) + 1 :]


def _common(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Shape with -1 where the samples differ."""
    return tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))


def _labels(pieces: Sequence[Piece], counts: Sequence[int]) -> Anything | None:
    known = [np.asarray(piece.labels) for piece in pieces if piece.labels is not None]
    if not known:
        return None
    if len(known) < len(pieces):
        missing = next(piece for piece in pieces if piece.labels is None)
        raise RecipeError(
            f"{missing.source}: has no labels, others have some", hint="give all of them labels, or none"
        )
    for piece, labels, count in zip(pieces, known, counts, strict=True):
        if labels.shape != (count,) and not (count == 1 and labels.shape == ()):
            raise RecipeError(
                f"{piece.source}: expected {count} labels, one per sample, got shape {shape_text(labels.shape)}"
            )
    return np.concatenate([labels.ravel() for labels in known])
