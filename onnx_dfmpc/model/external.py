"""Weights that stay in their file: read through a memory map when somebody asks for their numbers.

A large model is held without the numbers of its large tensors. Each of these keeps what ONNX calls external
data (file, offset, length), also where they are inside the .onnx file itself, and is an array over the file
for as long as somebody uses it. So copies of the model are cheap, and one layer's weights are in memory at a
time.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from onnx_dfmpc.model.protobuf import copy_fields, framed, framed_size, tensors, without_initializers

MAPPED = 1 << 28
"""Bytes of weights from which on a model's large tensors stay in their file. A convention: twice a
ResNet-101, half a VGG. Several copies of what is smaller fit anywhere.
"""

ONE_FILE = (1 << 31) - (1 << 20)
"""Bytes of a file: protobuf's 2 GiB, and room for what a rewritten model may still get."""

LEAST = 1 << 20
"""Bytes of a tensor from which on it is mapped: biases and what batch norm holds are much smaller."""

PLAIN = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16})
"""Element types that lie in a file as NumPy has them in memory; of others, no model has many."""

_HEAD = 64
"""Bytes of a tensor that are looked for in a file before all of it is compared."""


def is_mapped(tensor: TensorProto) -> bool:
    """Whether the numbers of a tensor are in a file."""
    return bool(uses_external_data(tensor))


def load_external(tensor: TensorProto, folder: Path) -> None:
    """Read the numbers of a tensor into it; onnx refuses absolute paths, links and ways out of it."""
    load_external_data_for_tensor(tensor, str(folder))
    tensor.ClearField("data_location")
    del tensor.external_data[:]  # which onnx 1.23.0 leaves


def map_tensor(tensor: TensorProto, path: Path, offset: int, length: int) -> None:
    """Let a tensor point into a file instead of holding its numbers."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    for key, value in (("location", path.absolute()), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = TensorProto.EXTERNAL


def can_map(tensor: TensorProto, length: int) -> bool:
    """Whether a tensor is a large weight, and so many bytes are its numbers as NumPy has them."""
    if tensor.data_type not in PLAIN or length < LEAST:
        return False
    return bool(length == prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def map_inline(proto: ModelProto, content: bytes, path: Path) -> None:
    """Let the large initializers of a large model point into the file that it was just read from."""
    found = [tensor for tensor in proto.graph.initializer if can_map(tensor, len(tensor.raw_data))]
    if sum(len(tensor.raw_data) for tensor in found) < MAPPED:
        return
    start = 0
    for tensor in found:
        raw = tensor.raw_data
        # Length and content follow each other in the file; tensors come in their order.
        head = _varint(len(raw)) + raw[:_HEAD]
        offset = content.find(head, start)
        if offset < 0:
            continue
        offset += len(head) - len(raw[:_HEAD])
        if memoryview(content)[offset : offset + len(raw)] == memoryview(raw):
            start = offset + len(raw)
            map_tensor(tensor, path, offset, len(raw))


def _varint(number: int) -> bytes:
    """A length as protobuf writes it: 7 bits to a byte, the lowest first."""
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def entry(tensor: TensorProto, key: str) -> str:
    """What external data says of a tensor: location, offset or length; "" where it says nothing."""
    return next((str(one.value) for one in tensor.external_data if one.key == key), "")


def length_of(tensor: TensorProto) -> int:
    """Bytes of a mapped tensor."""
    return int(entry(tensor, "length") or 0)


def array_of(tensor: TensorProto) -> NDArray[np.generic]:
    """Numbers of a tensor; of a mapped one an array over the file, read-only."""
    if not is_mapped(tensor):
        return numpy_helper.to_array(tensor)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<")
    shape, offset = tuple(tensor.dims), int(entry(tensor, "offset") or 0)
    mapped: NDArray[np.generic] = np.memmap(
        entry(tensor, "location"), dtype=dtype, mode="r", offset=offset, shape=shape
    )
    return mapped.view(np.ndarray)


def bytes_of(tensor: TensorProto) -> bytes:
    """Numbers of a tensor as they lie in a file."""
    return tensor.raw_data or numpy_helper.from_array(np.asarray(array_of(tensor))).raw_data


def mapped_bytes(proto: ModelProto) -> int:
    """Bytes of a model that are not in it but in files."""
    return sum(length_of(tensor) for tensor in mapped_tensors(proto))


def mapped_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Tensors of a model whose numbers are in files."""
    return (tensor for tensor in proto.graph.initializer if is_mapped(tensor))


def full_size(proto: ModelProto) -> int:
    """Bytes of a model with all its numbers."""
    if any(map(is_mapped, proto.graph.initializer)) or not fits_one_file(proto):
        rest = without_initializers(proto)
        graph = rest.graph.ByteSize() + sum(framed(size_of(tensor)) for tensor in proto.graph.initializer)
        return int(rest.ByteSize()) - framed_size(rest.graph) + framed(graph)
    return int(proto.ByteSize())


def size_of(tensor: TensorProto) -> int:
    """Bytes of a tensor with its numbers."""
    if not is_mapped(tensor):
        return int(tensor.ByteSize())
    plain = TensorProto()
    copy_fields(tensor, plain, without=("external_data", "data_location"))
    return int(plain.ByteSize()) + framed(length_of(tensor))


def fits_one_file(proto: ModelProto) -> bool:
    """Whether a model, with all its numbers, is within what protobuf allows a file."""
    large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer if not is_mapped(tensor))
    if large >= ONE_FILE:  # protobuf cannot even count what it cannot write
        return False
    return int(proto.ByteSize()) + mapped_bytes(proto) < ONE_FILE


def inlined(proto: ModelProto) -> ModelProto:
    """Copy of a model with all numbers in it, for those who can take nothing else."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    for tensor in tensors(copy):
        if is_mapped(tensor):
            location = Path(entry(tensor, "location"))
            next(one for one in tensor.external_data if one.key == "location").value = location.name
            load_external(tensor, location.parent)
    return copy
