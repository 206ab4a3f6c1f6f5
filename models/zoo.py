"""Public networks and their data: find or download a file, check its hash, prepare its inputs.

    python -m models.zoo list
    python -m models.zoo fetch NAME

``manifest.toml`` describes every network. A file is taken from ``$DFMPC_SHARED/models`` (or
``../shared/models`` beside the checkout), else from the cache (``$XDG_CACHE_HOME/onnx_dfmpc``), else
downloaded into the cache.
"""

import argparse
import difflib
import hashlib
import http.client
import os
import re
import sys
import tarfile
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.inputs.images import preprocess as prepared
from onnx_dfmpc.recipe import Preprocessing

HERE = Path(__file__).resolve().parent
CHUNK = 1 << 16
TIMEOUT_SECONDS = 30

Images = NDArray[np.uint8]
Inputs = NDArray[np.float32]
Labels = NDArray[np.int64]


class ZooError(DfmpcError):
    """A network that is unknown, cannot be had, or is not the file that the manifest describes."""

    exit_code = 2


@dataclass(frozen=True)
class Entry:
    """One network of the manifest; ``manifest.toml`` explains the fields."""

    name: str
    url: str
    sha256: str
    licence: str
    origin: str
    input: str
    data: tuple[str, ...] = ()
    label_offset: int = 0
    preprocessing: Preprocessing | None = None


def read_manifest(path: Path) -> Mapping[str, Entry]:
    """Every network of a manifest, by name."""
    return MappingProxyType(
        {name: _entry(name, table) for name, table in tomllib.loads(path.read_text("utf-8")).items()}
    )


@cache
def manifest() -> Mapping[str, Entry]:
    """Every network of the manifest that ships with the project."""
    return read_manifest(HERE / "manifest.toml")


def entry(name: str) -> Entry:
    """Look a network up by name.

    Raises
    ------
    ZooError
        There is none of that name; the hint has the nearest one.
    """
    try:
        return manifest()[name]
    except KeyError:
        near = difflib.get_close_matches(name, manifest(), n=1, cutoff=0.0)[0]
        raise ZooError(
            f"{name}: no such network", hint=f"did you mean {near}? `python -m models.zoo list` shows all"
        ) from None


def shared_dir() -> Path:
    """Directory of the files that were placed by hand, ``models/`` and ``data/``."""
    return Path(os.environ.get("DFMPC_SHARED") or HERE.parents[1] / "shared")


def cache_dir() -> Path:
    """Directory of the files that were downloaded."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnx_dfmpc"


def find(network: Entry) -> Path | None:
    """Where the file of a network is on this machine, if anywhere; its content is not looked at."""
    candidates = (shared_dir() / "models" / f"{network.name}.onnx", cache_dir() / f"{network.name}.onnx")
    return next((path for path in candidates if path.is_file()), None)


def fetch(name: str | Entry) -> Path:
    """Path of a network's file, downloaded into the cache if it is not on this machine, its sha256 verified.

    Raises
    ------
    ZooError
        Unknown name, no public address, no connection, or a file with another hash.
    """
    network = name if isinstance(name, Entry) else entry(name)
    path = find(network)
    if path is not None:
        _verify(path, network.sha256, str(path), hint=f"delete {path} and fetch it again")
        return path
    if not network.url:
        raise ZooError(
            f"{network.name}: not on this machine, and no public file to download ({network.origin})",
            hint=f"place it at {shared_dir() / 'models' / f'{network.name}.onnx'}, or set DFMPC_SHARED",
        )
    target = cache_dir() / f"{network.name}.onnx"
    download(network.url, target, network.sha256)
    return target


def download(url: str, target: Path, sha256: str) -> None:
    """Download a file beside its target, verify it, and only then rename it; a failure leaves nothing behind.

    Raises
    ------
    ZooError
        The server does not answer, has no such file, stops half-way, or has another file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        partial = Path(file.name)
        try:
            _stream(url, partial, title=target.name)
            _verify(
                partial,
                sha256,
                url,
                hint="the file at this address has changed: check where it comes from before you trust it",
            )
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def preprocess(images: Images, network: Entry) -> Inputs:
    """Turn images into the input of a network, as ``onnx-dfmpc validate`` does (needs Pillow).

    Parameters
    ----------
    images : uint8 array, shape (N, height, width, 3)
        RGB. Anything else is returned as it is when the network has no preprocessing.
    network : Entry

    Returns
    -------
    float32 array, shape (N, channels, height, width), or (N, height, width, channels) for layout nhwc
    """
    recipe = network.preprocessing
    if recipe is None:
        return images.astype(np.float32, copy=False)
    from PIL import Image

    mode, last = "L" if recipe.channels == "gray" else "RGB", recipe.layout == "nhwc"
    pictures = (Image.fromarray(image).convert(mode) for image in images)
    dtype = np.dtype(np.float32)
    return np.stack([prepared(picture, recipe, dtype, channels_last=last) for picture in pictures])


def dataset(name: str) -> tuple[NDArray[Any], Labels | None]:
    """Inputs and labels of one of the shared data files.

    Images are uint8 (N, height, width, 3) RGB, everything else is float32 as the network wants it; labels are
    int64 (N,) or None. ``imagenet_500`` needs Pillow.

    Raises
    ------
    ZooError
        The file is not there.
    """
    directory = shared_dir() / "data"
    path = next((p for p in (directory / f"{name}.npz", directory / f"{name}.tar") if p.is_file()), None)
    if path is None:
        raise ZooError(
            f"{name}: no such data in {directory}",
            hint="set DFMPC_SHARED to the directory that holds models/ and data/",
        )
    if path.suffix == ".tar":
        return _images_of_tar(path)
    with np.load(path) as arrays:
        labels = arrays["labels"].astype(np.int64) if "labels" in arrays else None
        if "specs" in arrays:
            return np.ascontiguousarray(arrays["specs"].transpose(0, 3, 1, 2), dtype=np.float32), labels
        return arrays["inputs" if "inputs" in arrays else "images"], labels


def samples(network: Entry, data: str | None = None) -> tuple[Inputs, Labels | None]:
    """Inputs and class indices of a network, ready to run, from `data` or else from the first data that the
    manifest names.
    """
    if data is None and not network.data:
        raise ZooError(
            f"{network.name}: the manifest names no data for it", hint="pass the name of a data file"
        )
    inputs, labels = dataset(data or network.data[0])
    return preprocess(inputs, network), None if labels is None else labels + network.label_offset


def main(arguments: list[str] | None = None) -> int:
    """Run ``list`` or ``fetch NAME`` and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m models.zoo", description="Public networks for tests and benchmarks."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show every network and where it is")
    commands.add_parser("fetch", help="download a network and print its path").add_argument("name")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            Console().print(_table())
        else:
            print(fetch(options.name))
    except DfmpcError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    return 0


def _entry(name: str, table: dict[str, Any]) -> Entry:
    fields: dict[str, Any] = {**table, "data": tuple(table.get("data", ()))}
    if "preprocessing" in fields:
        fields["preprocessing"] = Preprocessing(**fields["preprocessing"])
    return Entry(name=name, **fields)


def _verify(path: Path, sha256: str, source: str, *, hint: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ZooError(f"{source}: sha256 is {found}, the manifest says {sha256}", hint=hint)


def _stream(url: str, target: Path, *, title: str) -> None:
    offline = f"no connection? download {url} elsewhere and place it at {shared_dir() / 'models' / title}"
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
            target.open("wb") as file,
            _progress() as progress,
        ):
            total = int(response.headers.get("Content-Length") or 0) or None
            task = progress.add_task(title, total=total)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
            received = file.tell()
    except urllib.error.HTTPError as error:
        raise ZooError(
            f"{url}: HTTP {error.code} {error.reason}",
            hint="the file has moved; the manifest needs its new address",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ZooError(f"{url}: {getattr(error, 'reason', error)}", hint=offline) from error
    if total is not None and received != total:
        raise ZooError(f"{url}: the connection ended after {received:,} of {total:,} bytes", hint="try again")


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _images_of_tar(path: Path) -> tuple[Images, Labels]:
    """Images of a tar; the name of each ends in its class index, as in ``0001_class042.jpg``."""
    from PIL import Image

    images, labels = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            index = re.search(r"class(\d+)\.\w+$", member.name)
            content = tar.extractfile(member)
            if index and content:
                images.append(np.asarray(Image.open(content).convert("RGB")))
                labels.append(int(index[1]))
    return np.stack(images), np.array(labels, np.int64)


def _table() -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("network", no_wrap=True)
    table.add_column("where", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("origin")
    for network in manifest().values():
        table.add_row(network.name, _where(network), network.licence, network.origin)
    return table


def _where(network: Entry) -> str:
    path = find(network)
    if path is None:
        return "to download" if network.url else "to place"
    return "cache" if path.parent == cache_dir() else "shared"


if __name__ == "__main__":
    sys.exit(main())
