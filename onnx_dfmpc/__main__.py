"""``python -m onnx_dfmpc``: the command line."""

import sys

from onnx_dfmpc_cli import main

if __name__ == "__main__":
    sys.exit(main())
