"""An end for runs that take too long or too much memory, or that are told to stop: soon, and with nothing
left behind.

A signal handler of Python waits until the main thread leaves native code, where a hostile model can keep it
for ever. So a thread watches: it asks the main thread to stop, and where that does not, ends the process.
"""

from __future__ import annotations

import _thread
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

TIMEOUT = 3600.0
"""Seconds that a run may take, unless told otherwise: sixty times what the tool promises."""

SHARE = 0.9
"""Part of the memory of the machine, or of the container, that a run may take, unless told otherwise: the
rest of the system needs some, and it ends processes without a word.
"""

GRACE = 3.0
"""Seconds that the main thread gets to stop by itself; it needs milliseconds, unless it is in native code."""

TICK = 0.1
"""Seconds between two looks at the memory; a process can fill a few hundred megabytes in that time."""

LIMIT_EXCEEDED = 3
"""Exit code, that of a model which cannot be quantized."""

Say = Callable[[str, str], None]


class Stopped(BaseException):
    """The run has to end now. Not an Exception, so that nobody takes it for a failure and goes on."""

    def __init__(self, exit_code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.exit_code, self.hint = exit_code, hint


def default_memory() -> int | None:
    """`SHARE` of the memory that this process can have, in bytes; None where the system does not tell."""
    found = []
    with suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup 2 and 1
        with suppress(ValueError, OSError):
            found.append(int(Path("/sys/fs/cgroup", limit).read_text()))
    return int(SHARE * min(found)) if found else None


def memory_used() -> int:
    """Bytes of this process alone; mapped files do not count, the system takes them back as it likes."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class _Watch:
    """What has to stop the run, once something has."""

    def __init__(self, timeout: float | None, memory: int | None, say: Say) -> None:
        self.done = threading.Event()
        self._stop: Stopped | None = None
        self._raised = False
        self._end = None if timeout is None else time.monotonic() + timeout
        self._timeout, self._memory, self._say = timeout, memory, say

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """Raise in the main thread what stops it; once, so that nothing interrupts its cleaning up."""
        if not self._raised:
            self._raised = True
            raise self._stop or _told(number)

    def run(self, signals: socket.socket) -> None:
        """Watch, in a thread of its own, until the run is over. Numbers of signals come as bytes."""
        while self._stop is None and not self.done.wait(TICK):
            with suppress(BlockingIOError):
                self._stop = _told(signals.recv(1)[0])
                break
            self._stop = self._exceeded()
            if self._stop is not None:
                _thread.interrupt_main(signal.SIGTERM)
        if self._stop is not None and not self.done.wait(GRACE):
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h")  # the progress bar has hidden the cursor
            self._say(str(self._stop), self._stop.hint)
            sys.stderr.flush()
            os._exit(self._stop.exit_code)

    def _exceeded(self) -> Stopped | None:
        if self._end is not None and time.monotonic() > self._end:
            message = f"not done after {self._timeout:g} s"
            hint = "--timeout SECONDS allows more; fewer --samples or inputs of a smaller --shape take less"
            return Stopped(LIMIT_EXCEEDED, message, hint)
        if self._memory is not None and memory_used() > self._memory:
            message = f"takes more than {self._memory / 2**20:,.0f} MiB of memory"
            hint = "--max-memory SIZE allows more; inputs of a smaller --shape take less"
            return Stopped(LIMIT_EXCEEDED, message, hint)
        return None


def _told(number: int) -> Stopped:
    return Stopped(128 + number, "interrupted" if number == signal.SIGINT else "terminated")


@contextmanager
def limited(timeout: float | None, memory: int | None, say: Say) -> Iterator[None]:
    """Stop the block with `Stopped` after a time, above a size, or when the process is told to end; where it
    does not stop, end the process after ``say(message, hint)``.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    watch = _Watch(timeout, memory, say)
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # nohup and shells have signals ignored that are not meant for the process.
    heard = {number: old for number in numbers if (old := signal.getsignal(number)) is not signal.SIG_IGN}
    reading, writing = socket.socketpair()  # Windows takes no pipe here
    with reading, writing:
        reading.setblocking(False)
        writing.setblocking(False)
        old_descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        for number in heard:
            signal.signal(number, watch.on_signal)
        thread = threading.Thread(target=watch.run, args=(reading,), name="limits", daemon=True)
        thread.start()
        try:
            yield
        finally:
            watch.done.set()
            thread.join()
            for number, old in heard.items():
                signal.signal(number, old)
            signal.set_wakeup_fd(old_descriptor)
