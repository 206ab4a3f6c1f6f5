"""Start of the command line ``onnx-dfmpc``.

Its matrix products are many and small: on more threads they mostly wait for each other, and take twice as
long. How many there are has to be said before NumPy is loaded, which the package does at once; so it is said
here, unless the user has. The result is the same bytes.
"""

import os

THREADS = "OMP_NUM_THREADS"


def main() -> int:
    """Run the command line and return its exit code."""
    os.environ.setdefault(THREADS, "1")
    from onnx_dfmpc.cli import main as run

    return run()
