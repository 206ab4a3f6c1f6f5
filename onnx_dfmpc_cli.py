"""Start of the command line ``onnx-dfmpc``, on one thread of linear algebra.

Its matrix products are many and small: on two threads a run takes twice as long, because they mostly wait
for each other. The number of threads has to be set before NumPy is imported, and the package imports it at
once; so it is set here, unless the user has set it. The output has the same bytes either way.
"""

import os

THREADS = "OMP_NUM_THREADS"


def main() -> int:
    """Run the command line and return its exit code."""
    os.environ.setdefault(THREADS, "1")
    from onnx_dfmpc.cli import main as run

    return run()
