"""Weights that are rounded to nearest, since nobody knows what they are multiplied by: tables of Gather,
matrices of recurrent networks (`PLAIN`), and weights in bodies of If, Loop and Scan.

Whoever reads such a weight reads what its codes stand for, under the same name: it may have many readers, in
the main graph and in bodies. But each of them has to use it as a weight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx_graphsurgeon as gs
from onnx import helper

from onnx_dfmpc.matching.walk import Walk, op, reads_shape, why_numbers
from onnx_dfmpc.spec import PlainWeight
from onnx_dfmpc.spec.ops import LEAST_WEIGHTS, OPS, PLAIN, why_type

LEAST_ROW = 8
"""Numbers that share a scale, at least: of fewer, it takes as much room as their codes."""


@dataclass(frozen=True)
class Found:
    """Weights that are rounded to nearest, why others that could be are not, by the name of the initializer,
    the identities of the nodes that read a found one, and how many of these are products.
    """

    weights: list[PlainWeight]
    left: Mapping[str, str]
    readers: frozenset[int]
    products: int


@dataclass(frozen=True)
class _Use:
    """One input of one node: the node, which of its inputs, and the body it is in, in words."""

    node: gs.Node
    position: int
    place: str


def find_plain(walk: Walk, taken: Collection[str]) -> Found:
    """Weights that are rounded to nearest; those that are ``taken`` by layers are not among them."""
    uses: dict[str, list[_Use]] = {}
    for node, place in (*((node, "") for node in walk.nodes), *walk.bodies):
        for position, tensor in enumerate(node.inputs):
            if tensor.name in walk.constants and not reads_shape(node):
                source = walk.constants.source(tensor.name)
                uses.setdefault(source, []).append(_Use(node, position, place))
    weights: list[PlainWeight] = []
    left: dict[str, str] = {}
    readers: dict[int, str] = {}
    for name, found in uses.items():
        first = next((use for use in found if _holds_weights(use)), None)
        if first is None or name in taken:
            continue
        axis = _axis(first, len(walk.constants.shape(name)))
        if why := _why_float(walk, name, axis, first, found):
            left[name] = why
            continue
        weights.append(_plain(walk, name, axis, first, found))
        readers |= {id(node): op(node) for use in found for node in _nodes(walk, use)}
    products = sum(operator in OPS for operator in readers.values())
    return Found(weights, left, frozenset(readers), products)


def _plain(walk: Walk, name: str, axis: int, first: _Use, found: list[_Use]) -> PlainWeight:
    operator = op(first.node)
    suffix = PLAIN[operator][first.position].suffix if operator in PLAIN else ""
    notes = [f"it is in {first.place}"] if first.place else []
    others = {walk.name(node) for use in found for node in _nodes(walk, use)} - {walk.name(first.node)}
    if others:
        notes.append("also read by " + ", ".join(f"'{other}'" for other in sorted(others)))
    full = walk.name(first.node) + suffix
    return PlainWeight(full, operator, name, walk.constants.shape(name), axis, tuple(notes))


def _holds_weights(use: _Use) -> bool:
    """Whether a use makes a constant a weight that is rounded to nearest."""
    if use.place and _is_product(use):
        return True
    return use.position in PLAIN.get(op(use.node), {})


def _is_product(use: _Use) -> bool:
    return op(use.node) in OPS and use.position == 1


def _axis(use: _Use, rank: int) -> int:
    operator = op(use.node)
    axis = (
        PLAIN[operator][use.position].axis(use.node.attrs)
        if operator in PLAIN
        else OPS[operator].axis(use.node.attrs)
    )
    return axis % max(rank, 1)


def _nodes(walk: Walk, use: _Use) -> Iterator[gs.Node]:
    """The node of a use, or the products behind it where it transposes."""
    if op(use.node) == "Transpose":
        yield from walk.readers(use.node.outputs[0])
    elif op(use.node) != "Identity":
        yield use.node


def _why_float(walk: Walk, name: str, axis: int, first: _Use, uses: list[_Use]) -> str:
    """Why a weight cannot be quantized, or is not worth it, in words; empty if it can."""
    shape, data_type = walk.constants.shape(name), walk.constants.data_type(name)
    size = prod(shape)
    operator = op(first.node)
    types = PLAIN[operator][first.position].types if operator in PLAIN else OPS[operator].types
    if why := why_type(str(helper.tensor_dtype_to_np_dtype(data_type)), operator, types):
        return why
    if size < LEAST_WEIGHTS:
        return f"{size} numbers: codes would hardly be smaller"
    if size < LEAST_ROW * shape[axis]:
        return f"{size // shape[axis]} numbers to a scale: codes would hardly be smaller"
    if any(op(use.node) == "Gather" and _axis(use, len(shape)) != 0 for use in uses):
        # OpenVINO 2026.4 unpacks the columns that it gathers with the wrong scales.
        return "columns are gathered, not rows"
    for use in uses:
        if why := _why_no_weight(walk, use):
            return why
    names = {alias for alias in walk.constants if walk.constants.source(alias) == name}
    if not names.isdisjoint(walk.outputs):
        return "it is a graph output"
    if not names.isdisjoint(walk.local):
        return "a body has another tensor of that name"
    return why_numbers(walk, "weight", name)


def _why_no_weight(walk: Walk, use: _Use) -> str:
    """Why a reader does not use a constant as a weight."""
    node, operator = use.node, op(use.node)
    if operator == "Identity" and not use.place:
        return ""
    behind = walk.readers(node.outputs[0]) if operator == "Transpose" and not use.place else []
    if behind and all(op(one) in OPS and one.inputs[1] is node.outputs[0] for one in behind):
        return "" if not walk.leaves(node.outputs[0]) else f"also used by Transpose '{walk.name(node)}'"
    if use.position in PLAIN.get(operator, {}) or _is_product(use):
        return ""
    return f"also used by {operator} '{walk.name(node)}', not as a weight"
