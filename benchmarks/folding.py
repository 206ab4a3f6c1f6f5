"""Memory and time that ONNX Runtime takes to load stored weights, and what is left afterwards.

``python -m benchmarks.folding`` makes the dense and convolution weights of VGG-16 (138 million), or a tenth of
them with ``--width``, with random codes, loads each file in a process of its own, and prints rows for
docs/storage.md: bytes per weight above an empty session. Memory is anonymous memory: pages of mapped files
that the system takes back are not in it.
"""

from __future__ import annotations

import argparse
import itertools
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import save
from onnx_dfmpc.rewrite.apply import rewrite
from onnx_dfmpc.spec import QuantizedLayer, QuantizedWeight, StorageFormat
from onnx_dfmpc.spec.planned import Unpack
from onnx_dfmpc.spec.vectors import VECTORS
from onnx_dfmpc.spec.widths import code_limits

CHILD = """
import sys, time
import onnxruntime as ort
path, disable = sys.argv[1:]
def memory():
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon"))
def session(source):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    if disable == "1":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
empty = session(path.replace(".onnx", ".empty.onnx"))
print(memory(), flush=True)
sys.stdin.readline()
start = time.process_time()
whole = session(path)
print(memory(), time.process_time() - start, flush=True)
sys.stdin.readline()
"""


def layers(width: float) -> Iterator[tuple[int, ...]]:
    """Weights of VGG-16, the dense ones first as large as they are with pictures of 224 x 224."""
    before = 3
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            now = max(8, round(channels * width / 8) * 8)
            yield (now, before, 3, 3)
            before = now
    hidden = max(8, round(4096 * width / 8) * 8)
    yield (hidden, before * 49)
    yield (hidden, hidden)
    yield (1000, hidden)


def network(shapes: Sequence[tuple[int, ...]]) -> ModelProto:
    """Every weight read by a layer of its own, since the graph between them costs nothing at load."""
    nodes, inputs, outputs, tensors = [], [], [], []
    for index, shape in enumerate(shapes):
        x, y, w = f"x{index}", f"y{index}", f"w{index}"
        dims: list[str | int | None] = ["N", shape[1], *[8] * (len(shape) - 2)]
        inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, dims))
        outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, None))
        tensors.append(
            TensorProto(name=w, data_type=TensorProto.FLOAT, dims=shape, raw_data=bytes(4 * prod(shape)))
        )
        if len(shape) == 2:
            nodes.append(helper.make_node("Gemm", [x, w], [y], name=y, transB=1))
        else:
            nodes.append(helper.make_node("Conv", [x, w], [y], name=y))
    graph = helper.make_graph(nodes, "weights", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantized(proto: ModelProto, bits: float, unpack: Unpack, zero_points: bool, storage: str) -> ModelProto:
    """The network with random codes."""
    rng, matched = np.random.default_rng(0), match(proto)
    low, high = code_limits(bits, signed=False)

    def layer(name: str, shape: tuple[int, ...]) -> QuantizedLayer:
        if storage == "vector":
            table, rest = VECTORS[bits], shape[1:]
            chosen = table.rows[rng.integers(0, table.count, (-(-shape[0] // table.length), *rest))]
            rows = np.moveaxis(chosen, -1, 0).reshape(-1, *rest)[: shape[0]]
            ones = np.ones(shape[0], np.float32)
            return QuantizedLayer(name, QuantizedWeight(rows, ones, None, bits, True, 0, vector=True))
        codes = rng.integers(low, high + 1, shape, np.uint8)
        zeros = rng.integers(1, high + 1, shape[0]).astype(np.uint8) if zero_points else None
        weight = QuantizedWeight(codes, np.ones(shape[0], np.float32), zeros, bits, signed=False, axis=0)
        return QuantizedLayer(name, weight)

    done = [layer(one.name, one.shape) for one in matched.layers]
    return rewrite(proto, matched, done, form=StorageFormat(storage=storage, unpack=unpack)).proto


def load(path: Path, disable_qdq: bool) -> tuple[int, int, float]:
    """Bytes at the peak and afterwards, more than with an empty session, and CPU seconds."""
    command = [sys.executable, "-c", CHILD, str(path), str(int(disable_qdq))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        before = int(child.stdout.readline())
        child.stdin.write("\n")
        child.stdin.flush()
        peak, waiting = 0, True

        while waiting:
            status = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii")
            peak = max(peak, int(status.partition("RssAnon:")[2].split()[0]))
            waiting = not select.select([child.stdout], [], [], 0.002)[0]
        after, seconds = child.stdout.readline().split()
        child.stdin.write("\n")
        child.stdin.flush()
    return 1024 * (max(peak, int(after)) - before), 1024 * (int(after) - before), float(seconds)


def main() -> None:
    """Print a row for every form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=float, default=1.0, help="times the channels of VGG-16 (1)")
    parser.add_argument("--bits", nargs="+", type=float, default=[2, 3, 4, 6])
    parser.add_argument("--unpack", nargs="+", default=["none", "int8", "float"])
    parser.add_argument("--storage", nargs="+", default=["vector", "table"])
    arguments = parser.parse_args()
    shapes = list(layers(arguments.width))
    weights = sum(map(prod, shapes))
    print(f"{weights:,} weights; bytes per weight at the peak / afterwards; CPU s")
    proto = network(shapes)
    with tempfile.TemporaryDirectory() as folder:
        path, empty = Path(folder) / "m.onnx", Path(folder) / "m.empty.onnx"
        save(network([(8, 8)]), empty)
        save(proto, path)
        peak, after, seconds = load(path, False)
        print(f"float: {peak / weights:.2f} / {after / weights:.2f}; {seconds:.2f}", flush=True)
        cases = itertools.product(arguments.storage, arguments.bits, arguments.unpack, (False, True))
        for storage, bits, unpack, zeros in cases:
            if storage == "vector" and (zeros or bits not in VECTORS):
                continue
            save(quantized(proto, bits, unpack, zeros, storage), path, overwrite=True)
            size = path.stat().st_size / weights
            for disable in (False, True) if unpack == "none" else (False,):
                peak, after, seconds = load(path, disable)
                shown = f"{storage} {bits:g} bits {unpack}{' folded' if disable else ''} {'zero points' if zeros else '-'}"
                print(
                    f"{shown}: {peak / weights:.2f} / {after / weights:.2f}; {seconds:.2f}; file {size:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
