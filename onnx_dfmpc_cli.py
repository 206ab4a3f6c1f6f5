"""Start of the command line ``onnx-dfmpc``, on one thread of linear algebra.

Its matrix products are many and small: on two threads a run takes twice as long, because they mostly wait
for each other. The number of threads has to be set before NumPy is imported, and the package imports it at
once; so it is set here, unless the user has set it. The output has the same bytes either way.
"""

import os
import signal
import warnings

THREADS = "OMP_NUM_THREADS"


def main() -> int:
    """Run the command line and return its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)
    warnings.simplefilter("ignore")  # standard error is for errors, of which there is one
    os.environ.setdefault(THREADS, "1")
    from onnx_dfmpc.cli import main as run

    return run()


def _quit(*_: object) -> None:
    """End at once: an import that is interrupted may take that for its own failure, and nothing is open."""
    os.write(2, b"error: interrupted\n")
    os._exit(130)
