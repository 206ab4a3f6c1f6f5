"""Models as users have them, and as nobody should: does each quantize, and is it still the float model?

python -m benchmarks.odd_models [--only TEXT] [--output FILE]

Every case is a small network. It is quantized at 8 bits, where rounding hardly moves the outputs, and both
models run under ONNX Runtime on the same inputs; or it is refused with an error that says why. Anything else
is a bug, and the exit code is 1. A float model that ONNX Runtime does not run is no case.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from benchmarks.odd_graphs import MORE, Edit
from benchmarks.random_networks import outputs
from benchmarks.tables import markdown
from onnx_dfmpc import Recipe, quantize, validate
from onnx_dfmpc.errors import DfmpcError

LEAST_DB = 20.0
"""SQNR at 8 bits that only a wrong model misses."""

OPSETS, IRS = range(7, 28), range(3, 15)
STRUCTURE_OPSETS = (11, 13, 17, 21, 24)
N = helper.make_node


@dataclass(frozen=True)
class Case:
    """A model with the family that it stands for in the table."""

    family: str
    name: str
    model: ModelProto


@dataclass(frozen=True)
class Outcome:
    """What became of a case: SQNR in dB where it was quantized, else why not."""

    case: Case
    sqnr_db: float | None = None
    refused: str = ""
    wrong: str = ""


def weight(name: str, *shape: int, kind: int = TensorProto.FLOAT, seed: int = 0) -> TensorProto:
    """A random weight."""
    values = np.random.default_rng(seed).normal(size=shape) / max(1, math.prod(shape[1:])) ** 0.5
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), name)


def network(
    opset: int = 17,
    ir: int | None = None,
    *,
    kind: int = TensorProto.FLOAT,
    batch: int | str = "n",
    nodes: Sequence[NodeProto] | None = None,
    extra: Sequence[TensorProto] = (),
) -> ModelProto:
    """Conv, batch norm, Relu, a depthwise Conv, a pooling and Gemm; or other nodes from x to y."""
    chain = nodes or (
        N("Conv", ["x", "w1"], ["a"], name="first", pads=[1] * 4),
        N("BatchNormalization", ["a", "s", "o", "m", "v"], ["b"], name="norm"),
        N("Relu", ["b"], ["c"], name="relu"),
        N("Conv", ["c", "w2"], ["d"], name="depthwise", group=8, pads=[1] * 4),
        N("GlobalAveragePool", ["d"], ["e"], name="pool"),
        N("Flatten", ["e"], ["f"], name="flatten"),
        N("Gemm", ["f", "w3", "b3"], ["y"], name="last", transB=1),
    )
    every = (
        weight("w1", 8, 3, 3, 3, kind=kind, seed=1),
        weight("w2", 8, 1, 3, 3, kind=kind, seed=2),
        weight("w3", 10, 8, kind=kind, seed=3),
        weight("b3", 10, kind=kind, seed=4),
        *(weight(name, 8, kind=kind, seed=5) for name in ("o", "m")),
        *(numpy_helper.from_array(np.ones(8, helper.tensor_dtype_to_np_dtype(kind)), name) for name in "sv"),
        *extra,
    )
    read = {name for node in chain for name in node.input}
    stored = [tensor for tensor in every if tensor.name in read]
    graph = helper.make_graph(
        chain,
        "odd",
        [helper.make_tensor_value_info("x", kind, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [batch, 10])],
        stored,
    )
    imports = [helper.make_opsetid("", opset)]
    needed = helper.find_min_ir_version_for(imports)
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir or max(needed, 3))
    if model.ir_version < 4:
        model.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in stored
        )
    return model


OPERATORS = ("Conv", "depthwise", "ConvTranspose", "Gemm", "Gemm transB", "MatMul")


def single(operator: str, kind: int = TensorProto.FLOAT, opset: int = 17) -> ModelProto:
    """One weighted operator of some float type between x and y."""
    pool = [
        N("GlobalAveragePool", ["a"], ["e"]),
        N("Flatten", ["e"], ["f"]),
        N("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
    ]
    flat = N("Flatten", ["x"], ["a"])
    chains: dict[str, tuple[list[NodeProto], list[TensorProto]]] = {
        "Conv": ([N("Conv", ["x", "w"], ["a"]), *pool], [weight("w", 8, 3, 3, 3, kind=kind)]),
        "depthwise": (
            [N("Conv", ["x", "w"], ["p"]), N("Conv", ["p", "u"], ["a"], group=8), *pool],
            [weight("w", 8, 3, 1, 1, kind=kind), weight("u", 8, 1, 3, 3, kind=kind)],
        ),
        "ConvTranspose": (
            [N("ConvTranspose", ["x", "w"], ["a"]), *pool],
            [weight("w", 3, 8, 2, 2, kind=kind)],
        ),
        "Gemm": ([flat, N("Gemm", ["a", "w", "b3"], ["y"])], [weight("w", 192, 10, kind=kind)]),
        "Gemm transB": (
            [flat, N("Gemm", ["a", "w", "b3"], ["y"], transB=1)],
            [weight("w", 10, 192, kind=kind)],
        ),
        "MatMul": ([flat, N("MatMul", ["a", "w"], ["y"])], [weight("w", 192, 10, kind=kind)]),
    }
    nodes, extra = chains[operator]
    return network(opset, kind=kind, nodes=nodes, extra=extra)


def _unsorted(model: ModelProto, opset: int) -> None:
    nodes = list(model.graph.node)[::-1]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _rename(names: Callable[[int], str]) -> Edit:
    def edit(model: ModelProto, opset: int) -> None:
        for index, node in enumerate(model.graph.node):
            node.name = names(index)

    return edit


def _sparse(model: ModelProto, opset: int) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == "w1")
    dense = numpy_helper.to_array(tensor).ravel()
    places = np.arange(0, dense.size, 2)
    values = numpy_helper.from_array(dense[places], "w1")
    indices = numpy_helper.from_array(places.astype(np.int64), "w1_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(tensor.dims)))
    model.graph.initializer.remove(tensor)


def _shared(model: ModelProto, opset: int) -> None:
    model.graph.node.insert(4, N("Conv", ["d", "w2"], ["d2"], name="again", group=8, pads=[1] * 4))
    model.graph.node[5].input[0] = "d2"


def _weight_output(model: ModelProto, opset: int) -> None:
    model.graph.output.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [8, 3, 3, 3]))


def _overridable(model: ModelProto, opset: int) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [8, 3, 3, 3]))


def _weight_input(model: ModelProto, opset: int) -> None:
    _overridable(model, opset)
    model.graph.initializer.remove(next(one for one in model.graph.initializer if one.name == "w1"))


def _constants(model: ModelProto, opset: int) -> None:
    nodes = [N("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    for node in nodes:
        model.graph.node.insert(0, node)


def _on_constant(model: ModelProto, opset: int) -> None:
    model.graph.initializer.append(weight("k", 1, 8, 8, 8))
    model.graph.node.insert(3, N("Conv", ["k", "w2"], ["kc"], name="constant", group=8, pads=[1] * 4))
    model.graph.node.insert(4, N("Add", ["c", "kc"], ["cc"], name="add"))
    model.graph.node[5].input[0] = "cc"


def _dead(model: ModelProto, opset: int) -> None:
    model.graph.node.append(N("Conv", ["c", "w2"], ["dead"], name="dead", group=8))


def _untyped(model: ModelProto, opset: int) -> None:
    model.graph.output[0].CopyFrom(helper.make_empty_tensor_value_info("y"))


def _no_shape(model: ModelProto, opset: int) -> None:
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))


def _no_channel(model: ModelProto, opset: int) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 8), np.float32), "none"))
    model.graph.node.append(N("Gemm", ["f", "none"], ["z"], name="empty", transB=1))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 0]))


def _huge_weight(model: ModelProto, opset: int) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == "w2")
    values = numpy_helper.to_array(tensor).copy()
    values[0] = 1e30
    tensor.CopyFrom(numpy_helper.from_array(values, "w2"))
    model.graph.node.insert(4, N("Clip", ["d0", "low", "high"], ["d"], name="clip"))
    model.graph.node[3].output[0] = "d0"
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("low", -9), ("high", 9))
    )


def _identities(model: ModelProto, opset: int) -> None:
    names = ["w2", *(f"i{index}" for index in range(300))]
    for index, (before, after) in enumerate(pairwise(names)):
        model.graph.node.insert(index, N("Identity", [before], [after]))
    next(node for node in model.graph.node if node.name == "depthwise").input[1] = names[-1]


def _long_names(model: ModelProto, opset: int) -> None:
    _rename(lambda index: "/".join(["scope"] * 60) + str(index))(model, opset)


def _two_inputs(model: ModelProto, opset: int) -> None:
    model.graph.input.append(helper.make_tensor_value_info("x2", TensorProto.FLOAT, ["n", 8, 8, 8]))
    model.graph.node.insert(3, N("Add", ["c", "x2"], ["cc"], name="join"))
    model.graph.node[4].input[0] = "cc"


def _state(model: ModelProto, opset: int) -> None:
    model.graph.input.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 1, 10]))
    model.graph.node[-1].output[0] = "g"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    model.graph.node.extend([N("Gather", ["state", "zero"], ["h"], axis=0), N("Add", ["g", "h"], ["y"])])


def _already(model: ModelProto, opset: int) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == "w1")
    codes = np.clip(np.rint(numpy_helper.to_array(tensor) * 100), -127, 127).astype(np.int8)
    tensor.CopyFrom(numpy_helper.from_array(codes, "w1q"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "scale"))
    model.graph.node.insert(0, N("DequantizeLinear", ["w1q", "scale"], ["w1"]))


def _microsoft(model: ModelProto, opset: int) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[2].op_type, model.graph.node[2].domain = "QuickGelu", "com.microsoft"


def _fixed(batch: int) -> Edit:
    def edit(model: ModelProto, opset: int) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch

    return edit


EDITS: dict[str, Edit] = {
    "unsorted": _unsorted,
    "nodes without names": _rename(lambda index: ""),
    "nodes of one name": _rename(lambda index: "same"),
    "names of 360 characters": _long_names,
    "batch fixed to 1": _fixed(1),
    "batch fixed to 3": _fixed(3),
    "two inputs": _two_inputs,
    "an input that is a state": _state,
    "a sparse weight": _sparse,
    "a shared weight": _shared,
    "a weight that is an output": _weight_output,
    "a weight with a default": _overridable,
    "a weight that is an input": _weight_input,
    "weights in Constant nodes": _constants,
    "a weight behind 300 Identity nodes": _identities,
    "a Conv on a constant": _on_constant,
    "a Conv that nobody reads": _dead,
    "an output without a type": _untyped,
    "an output without a shape": _no_shape,
    "a layer without a channel": _no_channel,
    "a weight of 1e30": _huge_weight,
    "a layer already in 8 bits": _already,
    "an operator of com.microsoft": _microsoft,
}


def cases() -> Iterator[Case]:
    """All cases."""
    for opset in OPSETS:
        yield Case("opset 7 to 27, its own IR version", f"opset {opset}", network(opset))
        yield Case("opset 7 to 27, IR version 14", f"opset {opset} IR 14", network(opset, 14))
    for ir in IRS:
        yield Case("IR version 3 to 14", f"IR {ir}", network(7 if ir < 4 else 8, ir))
    for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        for operator in OPERATORS:
            name = TensorProto.DataType.Name(kind).lower()
            yield Case(f"weights of type {name}", f"{operator} {name}", single(operator, kind))
    for operator in OPERATORS:
        for opset in (8, 10, 14, 20, 26):
            yield Case(f"{operator} alone", f"{operator} alone, opset {opset}", single(operator, opset=opset))
    for what, edit in (EDITS | MORE).items():
        for opset in STRUCTURE_OPSETS:
            model = network(opset)
            edit(model, opset)
            yield Case(what, f"{what}, opset {opset}", model)


def runs(model: ModelProto) -> bool:
    """Whether ONNX Runtime runs it on some input."""
    try:
        outputs(model, "float")
    except DfmpcError:
        return False
    return True


def outcome(case: Case, recipe: Recipe) -> Outcome:
    """Quantize one case, and compare."""
    try:
        made = quantize(case.model, None, recipe, validated=False)
        report = validate(case.model, made.model, recipe)
    except DfmpcError as error:
        return Outcome(case, refused=str(error))
    except Exception as error:  # what this script is for
        return Outcome(case, wrong=f"{type(error).__name__}: {error}")
    if report.failures:
        return Outcome(case, wrong="; ".join(report.failures))
    if report.sqnr_db is None or report.sqnr_db < LEAST_DB:
        return Outcome(case, wrong=f"{report.sqnr_db} dB")
    return Outcome(case, sqnr_db=report.sqnr_db)


def rows(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, ...]]:
    """Rows of the table, a family each."""
    for family in dict.fromkeys(one.case.family for one in outcomes):
        some = [one for one in outcomes if one.case.family == family]
        done = [one.sqnr_db for one in some if one.sqnr_db is not None]
        refused = sorted({one.refused for one in some if one.refused})
        wrong = sum(bool(one.wrong) for one in some)
        worst = f"{min(done):.1f}" if done else ""
        yield (family, str(len(some)), str(len(done)), worst, str(wrong), "; ".join(refused)[:200])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--output", type=Path, help="file for the table")
    given = parser.parse_args(arguments)
    recipe = Recipe(bits=8, samples=3, input_range=(-2, 2))
    outcomes, others = [], []
    for case in cases():
        if given.only not in case.name:
            continue
        if not runs(case.model):
            others.append(case.name)
            continue
        outcomes.append(outcome(case, recipe))
        if outcomes[-1].wrong:
            sys.stderr.write(f"{case.name}: {outcomes[-1].wrong}\n")
    header = ("models", "cases", "quantized", "lowest SQNR at 8 bits (dB)", "wrong", "refused, since")
    text = markdown(header, list(rows(outcomes))) + "\n\n" + summary(outcomes, others) + "\n"
    if given.output:
        given.output.write_text(f"# Odd models\n\n{text}")
    sys.stdout.write(text)
    return int(any(one.wrong for one in outcomes))


def summary(outcomes: Sequence[Outcome], others: Sequence[str]) -> str:
    """The counts, and what is no case."""
    quantized = sum(one.sqnr_db is not None for one in outcomes)
    refused = sum(bool(one.refused) for one in outcomes)
    text = f"{len(outcomes)} models that ONNX Runtime runs: {quantized} quantized, {refused} refused"
    return f"{text}. {len(others)} that it does not run are no cases: {', '.join(others) or 'none'}."


if __name__ == "__main__":
    sys.exit(main())
