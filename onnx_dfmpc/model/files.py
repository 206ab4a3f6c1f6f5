"""Read models from files and write them so that a target is either complete or untouched."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, external_data_helper, numpy_helper
from onnx.checker import ValidationError

from onnx_dfmpc.errors import ModelError, RecipeError
from onnx_dfmpc.model.checks import require_graph, verify
from onnx_dfmpc.model.opset import opset_of
from onnx_dfmpc.model.protobuf import copy_fields, is_large, tensors, without_initializers

DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
"""Fields of TensorProto that can hold numbers."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that passed every check of ``load``.

    Attributes
    ----------
    proto : ModelProto
        The model with external data in memory; ours, not the caller's. Treat it as read-only.
    path : Path or None
        File that it came from; None for a ModelProto.
    sha256 : str
        Of the bytes of the file (weights in external data not included), or of the serialized ModelProto.
    size : int
        Bytes on disk, external data included; for a ModelProto, the bytes it would take.
    """

    proto: ModelProto
    path: Path | None
    sha256: str
    size: int

    @property
    def label(self) -> str:
        """What to call the model in a message."""
        return "the given model" if self.path is None else str(self.path)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return opset_of(self.proto)


def load(model: str | os.PathLike[str] | ModelProto) -> LoadedModel:
    """Load a model and make sure that it is one.

    Parameters
    ----------
    model : path or ModelProto
        A binary ``.onnx`` file, with its external data next to it, or a model in memory. Neither is ever
        changed.

    Returns
    -------
    LoadedModel

    Raises
    ------
    ModelError
        If the file is missing, unreadable, empty or not a model; if external data is missing, short or
        outside of the model's directory; if the graph is empty, defines a name twice, has an unknown opset, a
        weight that is not finite, a batch norm with ``var + epsilon <= 0``, or does not pass ``onnx.checker``
        with full shape inference.
    """
    return _load_proto(model) if isinstance(model, ModelProto) else _load_file(Path(model))


def _load_file(path: Path) -> LoadedModel:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file", hint="check the path of the model") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path}: a directory, not a model", hint="pass the .onnx file inside it") from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot read: {_reason(error)}", hint="check the path and its permissions"
        ) from error
    if not data:
        raise ModelError(f"{path}: the file is empty", hint="export or download the model again")
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        other = "export the network to ONNX first, such as with torch.onnx.export"
        hint = "pass a complete binary .onnx file" if path.suffix == ".onnx" else other
        raise ModelError(f"{path}: not an ONNX model, or only a part of one", hint=hint) from error
    require_graph(proto, str(path))
    size = len(data) + _load_external_data(proto, path)
    verify(proto, str(path))
    return LoadedModel(proto, path, hashlib.sha256(data).hexdigest(), size)


def _load_proto(model: ModelProto) -> LoadedModel:
    label = "the given model"
    require_graph(model, label)
    for tensor in tensors(model):
        if external_data_helper.uses_external_data(tensor):
            raise ModelError(
                f"{label}: the external data of tensor {tensor.name!r} is not loaded",
                hint="pass the path of the model instead",
            )
    proto = ModelProto()
    proto.CopyFrom(model)
    verify(proto, label)
    digest, size = hashlib.sha256(), 0
    for part in _parts(proto):
        digest.update(part)
        size += len(part)
    return LoadedModel(proto, None, digest.hexdigest(), size)


def _parts(proto: ModelProto) -> Iterator[bytes]:
    """Serialize in one piece or, where protobuf's 2 GB do not allow it, initializer by initializer."""
    try:
        yield proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError):
        yield without_initializers(proto).SerializeToString(deterministic=True)
        for tensor in proto.graph.initializer:
            yield tensor.SerializeToString(deterministic=True)


def _load_external_data(proto: ModelProto, path: Path) -> int:
    """Load external data into ``proto`` and return the size of the files that it came from."""
    files: set[Path] = set()
    for tensor in tensors(proto):
        if not external_data_helper.uses_external_data(tensor):
            continue
        location = external_data_helper.ExternalDataInfo(tensor).location
        try:
            # onnx refuses absolute paths, links and paths that leave the directory.
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (ValidationError, ValueError, OSError) as error:
            raise ModelError(
                f"{path}: external data {location!r} of tensor {tensor.name!r}: {_reason(error)}",
                hint="keep the data file next to the model, complete and under the name it was written with",
            ) from error
        tensor.ClearField("data_location")
        files.add(path.parent / location)
    return sum(file.stat().st_size for file in files)


def save(
    proto: ModelProto, path: str | os.PathLike[str], *, external_data: bool = False, overwrite: bool = False
) -> int:
    """Write a model so that the target is either complete or untouched.

    Everything goes to temporary files beside the target, which then take its place. The same model gives the
    same bytes.

    Parameters
    ----------
    proto : ModelProto
        Model with its external data loaded; never changed.
    path : path
        Target file.
    external_data : bool
        Put large initializers into ``<name>.data`` beside the target. Necessary above 2 GB.
    overwrite : bool
        Allow the target, and its ``.data`` file, to exist.

    Returns
    -------
    int
        Bytes on disk, external data included.

    Raises
    ------
    RecipeError
        If the target exists and ``overwrite`` is False, if it cannot be written, or if a model above 2 GB is
        to go into one file.
    """
    require_writable(path, external_data=external_data, overwrite=overwrite)
    target = Path(path)
    data_target = _data_target(target)
    temporary = [_temporary(target)]
    try:
        if not external_data:
            _write(temporary[0], lambda file: file.write(_serialize(proto, target)))
            os.replace(temporary[0], target)
            return target.stat().st_size
        temporary.append(_temporary(data_target))
        slim = _without_data(proto, data_target.name)
        _write(temporary[1], lambda file: file.writelines(_large_data(proto)))
        _write(temporary[0], lambda file: file.write(_serialize(slim, target)))
        _replace_pair((temporary[1], data_target), (temporary[0], target))
        return target.stat().st_size + data_target.stat().st_size
    except OSError as error:
        raise RecipeError(
            f"{target}: cannot write: {_reason(error)}", hint="choose another output path"
        ) from error
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)


def require_writable(
    path: str | os.PathLike[str], *, external_data: bool = False, overwrite: bool = False
) -> None:
    """Refuse a target of `save` before the work is done.

    Raises
    ------
    RecipeError
        If the target, or with `external_data` its ``.data`` file, is a directory, has no directory that can
        be written, or exists and ``overwrite`` is False.
    """
    target = Path(path)
    for file in (target, _data_target(target)) if external_data else (target,):
        if file.is_dir():
            raise RecipeError(
                f"{file}: a directory, not a file name", hint="name the file to write inside it"
            )
        if not file.parent.is_dir():
            raise RecipeError(f"{file}: there is no directory {file.parent}", hint="create it first")
        if not os.access(file.parent, os.W_OK):
            raise RecipeError(f"{file}: cannot write into {file.parent}", hint="choose another output path")
        if os.path.lexists(file) and not overwrite:
            raise RecipeError(
                f"{file}: exists already",
                hint="choose another output path, or allow overwriting it (--overwrite)",
            )


def _data_target(target: Path) -> Path:
    return target.with_name(target.name + ".data")


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def _write(path: Path, content: Callable[[BinaryIO], object]) -> None:
    with path.open("xb") as file:
        content(file)
        file.flush()
        os.fsync(file.fileno())


def _serialize(proto: ModelProto, target: Path) -> bytes:
    try:
        data: bytes = proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise RecipeError(
            f"{target}: the model does not fit the 2 GB of one file",
            hint="write the weights as external data (--save-as-external-data)",
        ) from error
    return data


def _is_external(tensor: TensorProto) -> bool:
    return is_large(tensor) and tensor.data_type != TensorProto.STRING


def _large_data(proto: ModelProto) -> Iterator[bytes]:
    """Yield the bytes of every initializer that goes into the data file, in order."""
    for tensor in proto.graph.initializer:
        if _is_external(tensor):
            yield tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


def _without_data(proto: ModelProto, location: str) -> ModelProto:
    """Copy of a model whose large initializers point into the file ``location``."""
    slim, data, offset = without_initializers(proto), _large_data(proto), 0
    for tensor in proto.graph.initializer:
        stored = slim.graph.initializer.add()
        if not _is_external(tensor):
            stored.CopyFrom(tensor)
            continue
        copy_fields(tensor, stored, without=DATA_FIELDS)
        length = len(next(data))
        stored.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            stored.external_data.add(key=key, value=str(value))
        offset += length
    return slim


def _replace_pair(data: tuple[Path, Path], model: tuple[Path, Path]) -> None:
    """Put data and model in place together: if the model cannot follow, the data that was there before comes
    back.
    """
    backup = _temporary(data[1])
    existed = data[1].exists()
    if existed:
        os.replace(data[1], backup)
    try:
        os.replace(*data)
        os.replace(*model)
    except BaseException:
        data[1].unlink(missing_ok=True)
        if existed:
            os.replace(backup, data[1])
        raise
    backup.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
