"""Where the taps of a convolution or of a pooling lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, helper


@dataclass(frozen=True)
class Window:
    """Where the taps of a convolution lie: one entry per spatial axis, pads before and after."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def window_of(attributes: Mapping[str, Any], kernel: Sequence[int], size: Sequence[int]) -> Window:
    """Window on an input of a given spatial shape, ``auto_pad`` and ``ceil_mode`` resolved."""
    rank = len(kernel)
    strides = tuple(attributes.get("strides", (1,) * rank))
    dilations = tuple(attributes.get("dilations", (1,) * rank))
    pads = tuple(attributes.get("pads", (0,) * 2 * rank))
    before, after = pads[:rank], pads[rank:]
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    auto = attributes.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(size, strides, reach, strict=True)]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        before, after = (small, large) if auto == b"SAME_UPPER" else (large, small)
    if attributes.get("ceil_mode", 0):
        missing = [
            -(n + b + a - r) % s for n, b, a, r, s in zip(size, before, after, reach, strides, strict=True)
        ]
        after = tuple(a + m for a, m in zip(after, missing, strict=True))
    return Window(tuple(kernel), strides, dilations, before, after)
