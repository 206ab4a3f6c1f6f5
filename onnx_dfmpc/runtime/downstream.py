"""The part of a model behind one layer, with the layer's weight left open, or behind one tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.runtime.batches import Value

Run = Callable[[Mapping[str, Value]], list[Value]]

WEIGHT, SHIFT, UNSHIFTED = "rest::weight", "rest::shift", "rest::unshifted"


class Rest:
    """A session from a layer to some tensors behind it, and the batches to run it on; made by
    `PartialRun.rest`.

    Parameters
    ----------
    names : sequence of str
        The tensors.
    feeds : sequence of mapping
        Everything else that the session reads, one mapping per batch.
    run : callable
        Feeds to the values of ``names``, in their order.
    """

    def __init__(self, names: Sequence[str], feeds: Sequence[Mapping[str, Value]], run: Run) -> None:
        self.names = tuple(names)
        self._feeds = feeds
        self._run = run

    def __call__(self, weight: Value, shift: Value) -> dict[str, list[Value]]:
        """Run the layer with a weight, its output less ``shift``, and all that is behind it.

        Parameters
        ----------
        weight : array
            Shape and dtype of the layer's own.
        shift : array
            Broadcasts with the layer's output.

        Returns
        -------
        dict
            Values of each tensor, one for each batch.

        Raises
        ------
        ModelError
            If ONNX Runtime cannot run it.
        """
        opened = {WEIGHT: weight, SHIFT: shift}
        return _run_all(self.names, [{**feed, **opened} for feed in self._feeds], self._run)


class Tail:
    """The part of a model behind a tensor; made by `PartialRun.tail`.

    Parameters
    ----------
    tensor : str
    names : sequence of str
        What is asked for: tensors behind it, or itself.
    feeds : sequence of mapping
        Everything else that they depend on, one mapping per batch.
    run : callable
        Feeds to the values of ``names`` behind the tensor, in their order.
    """

    def __init__(
        self, tensor: str, names: Sequence[str], feeds: Sequence[Mapping[str, Value]], run: Run
    ) -> None:
        self.names = tuple(names)
        self._tensor = tensor
        self._feeds = feeds
        self._run = run

    def __call__(self, values: Sequence[Value]) -> dict[str, list[Value]]:
        """Values of ``names`` for values of the tensor, one for each batch.

        Raises
        ------
        ModelError
            If ONNX Runtime cannot run it.
        """
        behind = [name for name in self.names if name != self._tensor]
        found = {self._tensor: list(values)} if self._tensor in self.names else {}
        feeds = [{**feed, self._tensor: value} for feed, value in zip(self._feeds, values, strict=True)]
        return found | (_run_all(behind, feeds, self._run) if behind else {})


def _run_all(names: Sequence[str], feeds: Sequence[Mapping[str, Value]], run: Run) -> dict[str, list[Value]]:
    """Batches side by side."""
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(run, feeds))
    except Exception as error:  # ONNX Runtime has no common base for its errors
        raise ModelError(f"cannot run the float model up to {names[0]!r}: {error}") from error
    return {name: [result[position] for result in results] for position, name in enumerate(names)}
