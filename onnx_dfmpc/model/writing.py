"""Files that appear whole or not at all, together, and over nothing that was not asked for.

A file is drafted beside its target under a name of its own (`draft`) and takes the target's place once every
file of the run is complete (`publish`). So a full disk, an interrupt or a kill leaves what was there before;
a kill leaves a draft as well, which the next run in that directory removes.

A model with external data is two files, and no moment may hold one of them with the other of before. So the
data file is named by its content: the model that is in place always finds its own, and the last step, which
puts the new model there, is a single rename.
"""

from __future__ import annotations

import filecmp
import glob
import hashlib
import mmap
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from onnx_dfmpc.errors import RecipeError

LOCKS = os.name == "posix"
"""Elsewhere runs do not see each other, and drafts of killed ones stay."""

if LOCKS:
    import fcntl

DRAFT = ".onnx-dfmpc-{}.tmp"
"""Name of a draft; as short for the longest target."""

PATIENCE = 10.0
"""Seconds to wait for another run that puts files into the same directory, which takes it milliseconds."""

ELSEWHERE = "choose another output path"


@dataclass(frozen=True)
class Draft:
    """A complete file, and where it belongs.

    ``protected`` are files that its target must not be, ``overwrite`` whether it may be there. ``by_content``
    says that the name of the target tells the content: the same content may be there already.
    """

    file: Path
    target: Path
    size: int
    overwrite: bool = False
    protected: tuple[Path, ...] = ()
    by_content: bool = False


def require_writable(
    path: str | os.PathLike[str],
    *,
    external_data: bool = False,
    overwrite: bool = False,
    protected: Collection[Path] = (),
) -> None:
    """Refuse a target, and with ``external_data`` the file beside it, before the work is done.

    RecipeError if it is a ``protected`` file under whatever name, is there and not a regular file, has no
    directory that can be written, or is there and ``overwrite`` is False.
    """
    target = Path(path)
    _refuse(target, overwrite, protected)
    if external_data:
        _refuse(data_path(target, "0" * DIGITS), True, protected)


def _refuse(file: Path, overwrite: bool, protected: Collection[Path]) -> None:
    try:
        mode = _mode(file)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file}: cannot write: {reason(error)}", hint=ELSEWHERE) from error
    if mode is not None and stat.S_ISDIR(mode):
        raise RecipeError(f"{file}: a directory, not a file name", hint="name the file to write inside it")
    if not file.parent.is_dir():
        raise RecipeError(f"{file}: there is no directory {file.parent}", hint="create it first")
    if not os.access(file.parent, os.W_OK):
        raise RecipeError(f"{file}: cannot write into {file.parent}", hint=ELSEWHERE)
    if mode is not None and not stat.S_ISREG(mode):
        raise RecipeError(f"{file}: a device or a pipe, not a regular file", hint=ELSEWHERE)
    if any(same_file(file, other) for other in protected):
        raise RecipeError(f"{file}: belongs to the input, which is never written over", hint=ELSEWHERE)
    if os.path.lexists(file) and not overwrite:
        hint = f"{ELSEWHERE}, or allow overwriting it (--overwrite)"
        raise RecipeError(f"{file}: exists already", hint=hint)


def _mode(file: Path) -> int | None:
    """Kind of a file, links followed; None where there is none."""
    try:
        return file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def same_file(one: Path, other: Path) -> bool:
    """Whether two names are one file: through links, hard links, and names that differ in case only."""
    with suppress(OSError):
        return os.path.samefile(one, other)
    return one.resolve() == other.resolve()


# Drafts


@contextmanager
def draft(
    target: Path,
    content: bytes | Iterable[bytes],
    *,
    overwrite: bool = False,
    protected: Collection[Path] = (),
) -> Iterator[Draft]:
    """A complete file beside its target, gone at the end unless it has been published."""
    with _draft_file(target) as file:
        _write(target, file, [content] if isinstance(content, bytes) else content)
        yield Draft(Path(file.name), target, file.tell(), overwrite, tuple(protected))


@contextmanager
def draft_pair(
    target: Path,
    data: Iterable[bytes],
    model: Callable[[str], bytes],
    *,
    overwrite: bool = False,
    protected: Collection[Path] = (),
) -> Iterator[tuple[Draft, Draft]]:
    """A data file and the model that reads it; ``model`` makes the latter from the name of the former."""
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for part in data:
            digest.update(part)
            yield part

    with _draft_file(target) as file:
        _write(target, file, hashed())
        beside = data_path(target, digest.hexdigest()[:DIGITS])
        first = Draft(Path(file.name), beside, file.tell(), overwrite, tuple(protected), by_content=True)
        with draft(target, model(beside.name), overwrite=overwrite, protected=protected) as second:
            yield first, second


DIGITS = 16
"""Hexadecimal digits of the content in the name of a data file."""


def data_path(target: Path, digest: str) -> Path:
    """File of the external data of a model.

    >>> data_path(Path("small.onnx"), "0123456789abcdef").name
    'small.0123456789abcdef.onnx.data'
    """
    return target.with_name(f"{target.stem}.{digest}{target.suffix}.data")


@contextmanager
def _draft_file(target: Path) -> Iterator[IO[bytes]]:
    """A new file beside the target, locked while it is ours, so that no other run removes it."""
    path = target.with_name(DRAFT.format(secrets.token_hex(8)))
    with ExitStack() as stack:
        stack.callback(path.unlink, missing_ok=True)
        try:
            with _locked(target.parent):
                _remove_abandoned(target.parent)
                file = stack.enter_context(path.open("xb"))
                _try_lock(file.fileno())
        except OSError as error:
            raise _cannot_write(target, error) from error
        yield file


def _write(target: Path, file: IO[bytes], parts: Iterable[bytes]) -> None:
    try:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())  # else a crash after the rename could leave an empty file under its name
        if not LOCKS:
            file.close()  # Windows renames no open file
    except OSError as error:
        with suppress(OSError):  # what is still in its buffer fails once more
            file.close()
        raise _cannot_write(target, error) from error


def _remove_abandoned(directory: Path) -> None:
    """Remove the drafts of runs that were killed: nobody holds the locks of these."""
    for path in directory.glob(DRAFT.format("?" * 16)):
        with suppress(OSError), path.open("rb") as file:
            if _try_lock(file.fileno()):
                path.unlink()


def _try_lock(descriptor: int) -> bool:
    """Whether a file could be locked, until it is closed; False where there are no locks."""
    if not LOCKS:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One run at a time. The directory itself is locked, so that there is no lock file to be left over."""
    if not LOCKS:
        yield
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # a directory that can be written and not read
        yield
        return
    try:
        end = time.monotonic() + PATIENCE  # a run that was stopped in the middle must not hold everyone up
        with suppress(OSError):  # there are file systems without locks
            while time.monotonic() < end:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


# In place


def publish(drafts: Sequence[Draft]) -> None:
    """Put drafts in place, in their order; all or, where one cannot, none that is new.

    RecipeError where a target has become one that must not be written.
    """
    with ExitStack() as stack:
        for directory in sorted({one.target.parent.resolve() for one in drafts}):
            stack.enter_context(_locked(directory))
        new: list[Draft] = []
        try:
            for one in drafts:
                if one.by_content and _holds(one):
                    continue
                _refuse(one.target, one.overwrite, one.protected)
                if not os.path.lexists(one.target):
                    new.append(one)
                _put(one)
        except BaseException:
            for one in new:
                # An interrupt may come when the model has taken the place of another: then it needs its data.
                if not one.by_content:
                    one.target.unlink(missing_ok=True)
            raise
        finally:
            for one in drafts:
                _remove_obsolete(one)


def _holds(one: Draft) -> bool:
    """Whether the target has the content of the draft already."""
    with suppress(OSError):
        return stat.S_ISREG(one.target.lstat().st_mode) and filecmp.cmp(one.file, one.target, shallow=False)
    return False


def _put(one: Draft) -> None:
    try:
        if one.overwrite:
            os.replace(one.file, one.target)
        else:
            _put_new(one)
        _sync(one.target.parent)
    except OSError as error:
        raise _cannot_write(one.target, error) from error


def _put_new(one: Draft) -> None:
    """Give a draft its name, unless somebody has taken that in the meantime."""
    try:
        os.link(one.file, one.target)
    except FileExistsError:
        _refuse(one.target, False, one.protected)
    except OSError:  # a file system without hard links; our own runs wait for each other
        os.rename(one.file, one.target)


def _sync(directory: Path) -> None:
    """Make renames last through a crash, in their order."""
    with suppress(OSError):  # Windows opens no directories
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_obsolete(one: Draft) -> None:
    """Remove data files that models of this name have left: those that no file beside them names.

    So the data of a model that was copied or renamed stays, and so does what only looks like such a file.
    """
    directory, own = one.target.parent, one.target
    name = re.compile(rf"{re.escape(own.stem)}\.([0-9a-f]{{{DIGITS}}}){re.escape(own.suffix)}\.data")
    for file in directory.glob(f"{glob.escape(own.stem)}.*.data"):
        found = name.fullmatch(file.name)
        if found is None or any(same_file(file, other) for other in one.protected):
            continue
        with suppress(OSError):
            if not _is_mentioned(file) and _digest(file) == found[1]:
                file.unlink()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:DIGITS]


def _is_mentioned(data: Path) -> bool:
    """Whether a file beside a data file has its name in it; True where nobody can tell. A draft does not
    count: its data is a draft as well.
    """
    drafts = set(data.parent.glob(DRAFT.format("?" * 16)))
    try:
        return any(_holds_text(file, data.name.encode()) for file in {*data.parent.iterdir()} - drafts)
    except OSError:
        return True


def _holds_text(file: Path, text: bytes) -> bool:
    if file.suffix == ".data" or not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def write_whole(target: Path, content: bytes | Iterable[bytes], *, overwrite: bool = True) -> None:
    """Write one file, whole or not at all; RecipeError if it cannot be written."""
    with draft(target, content, overwrite=overwrite) as complete:
        publish([complete])


def reason(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())


def _cannot_write(target: Path, error: OSError) -> RecipeError:
    return RecipeError(f"{target}: cannot write: {reason(error)}", hint=ELSEWHERE)
