"""Matching: layers that feed each other, and whether a factor may move between them."""

from itertools import pairwise

import pytest
from onnx import ModelProto

from onnx_dfmpc.matching.match import match
from tests.nets import NORM, VECTORS, C, check_accounts, move_factors, net, outputs_differ


def ints(name: str, *values: int) -> str:
    """Text of a Constant node with a vector of integers."""
    return f"{name} = Constant <value_ints = {list(values)}> ()"


TO_CONV = {
    "Relu": "r = Relu(y)",
    "LeakyRelu": "r = LeakyRelu(y)",
    "PRelu": "r = PRelu(y, slope)",
    "Identity, Dropout": "a = Identity(y) r = Dropout(a)",
    "MaxPool": "a = Relu(y) r = MaxPool <kernel_shape = [2, 2]> (a)",
    "AveragePool": "r = AveragePool <kernel_shape = [2, 2]> (y)",
    "GlobalAveragePool": "r = GlobalAveragePool(y)",
    "ReduceMean": "r = ReduceMean <axes = [2, -1]> (y)",
    "Mul by a constant": "r = Mul(y, k)",
    "Div by a constant": "r = Div(y, k)",
    "Pad": f"{ints('p', 0, 0, 1, 1, 0, 0, 1, 1)} r = Pad(y, p)",
    "Pad by arithmetic": f"{ints('o', 2)} n = ConstantOfShape <value = int64[1] {{0}}> (o)"
    f" {ints('i', 1, 1, 0, 0, 1, 1)} p = Concat <axis = 0> (n, i) r = Pad(y, p)",
    "Pad by reflection": f'{ints("p", 0, 0, 1, 1, 0, 0, 1, 1)} r = Pad <mode = "reflect"> (y, p)',
    "depthwise": "a = Relu(y) r = Conv <group = 4> (a, d)",
    "grouped": "r = Conv <group = 2> (y, h)",
    "transposed": "r = ConvTranspose <group = 2> (y, t)",
}
TO_GEMM = {
    "Flatten of one pixel": "p = GlobalAveragePool(y) r = Flatten(p)",
    "Flatten of one pixel by size": "p = AveragePool <kernel_shape = [8, 8]> (y) r = Flatten(p)",
    "ReduceMean without dimensions": "r = ReduceMean <axes = [2, 3], keepdims = 0> (y)",
    "Squeeze": f"p = GlobalMaxPool(y) {ints('i', 2, 3)} r = Squeeze(p, i)",
    "Reshape [0, -1]": f"p = AveragePool <kernel_shape = [8, 8]> (y) {ints('s', 0, -1)} r = Reshape(p, s)",
    "Reshape [-1, C] of one pixel": f"p = GlobalAveragePool(y) {ints('s', -1, 4)} r = Reshape(p, s)",
    "Reshape as torch writes it": "p = GlobalAveragePool(y) n = Shape(p) i = Constant <value_int = 0> ()"
    f" b = Gather(n, i) {ints('j', 0)} c = Unsqueeze(b, j) {ints('m', -1)} s = Concat <axis = 0> (c, m) r = Reshape(p, s)",
}
MORE = {"h": (4, 2, 1, 1), "t": (4, 2, 1, 1)}
HOMOGENEOUS = {
    **{name: net(f"y = Conv(x, w, g) {body} z = Conv(r, v)", C | MORE) for name, body in TO_CONV.items()},
    **{
        name: net(f"y = Conv(x, w, g) {body} z = Gemm <transB = 1> (r, fc)", C)
        for name, body in TO_GEMM.items()
    },
    "batch norm": net(
        "y = Conv(x, w) n = BatchNormalization(y, g, b, m, v) r = Relu(n) z = Conv(r, u)",
        NORM | {"u": (4, 4, 1, 1)},
    ),
    "several consumers": net("y = Conv(x, w) r = Relu(y) a = Conv(r, v) b = Conv(r, u) z = Add(a, b)", C),
    "Gemm to Gemm": net(
        "y = Gemm <transB = 1> (x, w, b) r = Relu(y) z = Gemm(r, v)",
        {"w": (6, 4), "v": (6, 3), "b": (6,)},
        x=VECTORS,
    ),
    "MatMul to MatMul": net(
        "y = MatMul(x, w) a = Add(y, b) r = Relu(a) z = MatMul(r, v)",
        {"w": (4, 6), "v": (6, 3), "b": (6,)},
        x="float[1, 2, 5, 4] x",
    ),
    "ConvTranspose to ConvTranspose": net(
        "y = ConvTranspose <group = 2> (x, w, b) r = Relu(y) z = ConvTranspose(r, v)",
        {"w": (4, 3, 2, 2), "v": (6, 2, 1, 1), "b": (6,)},
    ),
}


@pytest.mark.parametrize("model", HOMOGENEOUS.values(), ids=HOMOGENEOUS)
def test_homogeneous_chain_lets_a_factor_move(model: ModelProto) -> None:
    matched = match(model)
    check_accounts(model, matched)
    assert matched.chains[0].homogeneous, matched.chains[0].reason
    assert outputs_differ(model, move_factors(model, matched)) < 1e-5


NOT_HOMOGENEOUS = {
    "Clip": (
        "c = Constant <value_float = 6.0> () r = Clip(y, , c) z = Conv(r, v)",
        "Clip 'r' is not positively homogeneous",
    ),
    "SiLU": ("s = Sigmoid(y) r = Mul(y, s) z = Conv(r, v)", "of a SiLU is not positively homogeneous"),
    "HardSwish": ("r = HardSwish(y) z = Conv(r, v)", "HardSwish 'r' is not positively homogeneous"),
    "Sigmoid": ("r = Sigmoid(y) z = Conv(r, v)", "not positively homogeneous"),
    "residual Add": ("a = Add(x, y) r = Relu(a) z = Conv(r, v)", "Add 'a' joins it with another branch"),
    "Add of a constant": ("r = Add(y, k) z = Conv(r, v)", "joins it with a constant"),
    "Add to itself": ("r = Add(y, y) z = Conv(r, v)", "Add 'r' joins it"),
    "square": ("r = Mul(y, y) z = Conv(r, v)", "Mul 'r' multiplies it"),
    "gate": ("s = Sigmoid(x) r = Mul(y, s) z = Conv(r, v)", "Mul 'r' multiplies it with another branch"),
    "under a fraction": ("r = Div(k, y) z = Conv(r, v)", "Div 'r' multiplies it"),
    "Concat": ("r = Concat <axis = 1> (y, x) z = Conv(r, wide)", "Concat 'r' joins it with another branch"),
    "shortcut": ("a = Conv(y, v) r = Add(a, y) z = Conv(r, u)", "shortcut into Add 'r'"),
    "later batch norm": (
        "r = Relu(y) n = BatchNormalization(r, g, g, g, g) z = Conv(n, v)",
        "BatchNormalization 'n' normalizes or shifts it",
    ),
    "Softmax besides": ("q = Softmax(y) z = Conv(y, v)", "Softmax 'q' reads it too"),
    "float layer besides": ("q = Conv(y, x) z = Conv(y, v)", "Conv 'q' stays float"),
    "Slice of channels": (
        f"{ints('s', 0)} {ints('e', 2)} {ints('a', 1)} r = Slice(y, s, e, a) z = Conv(r, half)",
        "Slice 'r' may take a part",
    ),
    "Split of channels": (
        "r, q = Split <axis = 1> (y) z = Conv(r, half) o = Conv(q, half)",
        "Split 'r' may take a part of its channels",
    ),
    "Pad with ones": (
        f"{ints('p', 0, 0, 1, 1, 0, 0, 1, 1)} o = Constant <value_float = 1.0> () r = Pad(y, p, o) z = Conv(r, v)",
        "constant other than zero",
    ),
    "Pad by arithmetic that fails": (
        f"{ints('a', 0, 0, 0, 0)} {ints('b', 0, 0, 0)} p = Add(a, b) r = Pad(y, p) z = Conv(r, v)",
        "by an amount that is not constant",
    ),
    "Pad of channels": (
        f"{ints('p', 0, 2, 0, 0, 0, 2, 0, 0)} r = Pad(y, p) z = Conv(r, wide)",
        "may pad its channels",
    ),
    "channel shuffle": (
        f"{ints('s', 1, 2, 2, 8, 8)} a = Reshape(y, s) b = Transpose <perm = [0, 2, 1, 3, 4]> (a)"
        f" {ints('e', 1, 4, 8, 8)} r = Reshape(b, e) z = Conv(r, v)",
        "Reshape 'a' may move its channels",
    ),
    "swapped axes": (
        "r = Transpose <perm = [0, 2, 1, 3]> (y) z = Conv(r, eight)",
        "Transpose 'r' may move its channels",
    ),
    "Flatten of many pixels": (
        "f = Flatten(y) z = Gemm <transB = 1> (f, fc256)",
        "a channel is a block of its columns",
    ),
    "Reshape that mixes": (
        f"{ints('s', -1, 4)} f = Reshape(y, s) z = Gemm <transB = 1> (f, fc)",
        "Reshape 'f' may move its channels",
    ),
    "Resize of unknown size": ("n = Shape(x) r = Resize(y, , , n) z = Conv(r, v)", "may resize"),
    "pooled channels": ("r = ReduceMean <axes = [1]> (y) z = Conv(r, one)", "may reduce over its channels"),
    "Reshape of one row": (
        f"p = ReduceMean <axes = [2]> (y) {ints('s', -1, 4)} f = Reshape(p, s) z = Gemm <transB = 1> (f, fc)",
        "Reshape 'f' may move its channels",
    ),
    "Reshape by another size": (
        f"n = Shape(x) {ints('i', 0)} b = Gather(n, i) {ints('m', -1)} s = Concat <axis = 0> (b, m)"
        " p = AveragePool <kernel_shape = [8, 8]> (y) f = Reshape(p, s) z = Gemm <transB = 1> (f, fc)",
        "Reshape 'f' may move its channels",
    ),
    "Flatten into rows": (
        "p = MaxPool <kernel_shape = [2, 2], strides = [4, 4]> (y) f = Flatten <axis = 2> (p) z = Gemm <transB = 1> (f, fc)",
        "Flatten 'f' does not keep its channels apart",
    ),
    "MatMul over the width": (
        "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (y) z = MatMul(p, square)",
        "not the input channels of 'z'",
    ),
    "Mul that adds a dimension": (
        "f = Mul(y, five) r = ReduceMean <axes = [0], keepdims = 0> (f) z = Conv(r, v)",
        "to more dimensions",
    ),
    "all axes reduced": (
        "e = Constant <value_ints: ints = []> () r = ReduceMean(y, e) z = Conv(r, one)",
        "may reduce over its channels",
    ),
    "rounded": ("i = Cast <to = 7> (y) r = Cast <to = 1> (i) z = Conv(r, v)", "Cast 'i' may round it"),
}
SHAPES = {
    "square": (4, 4),
    "five": (2, 1, 1, 1, 1),
    "wide": (4, 8, 1, 1),
    "half": (4, 2, 1, 1),
    "eight": (4, 8, 1, 1),
    "one": (4, 1, 1, 1),
}


@pytest.mark.parametrize(("body", "reason"), NOT_HOMOGENEOUS.values(), ids=NOT_HOMOGENEOUS)
def test_chain_through_which_no_factor_moves(body: str, reason: str) -> None:
    model = net(f"y = Conv(x, w) {body}", C | SHAPES)
    matched = match(model)
    check_accounts(model, matched)
    chain = matched.chains[0]
    assert chain.producer == "y"
    assert not chain.homogeneous
    assert reason in chain.reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = MaxPool <kernel_shape = [1, 1]> (y)", "MaxPool 'r' pools over its channels"),
        ("r = ReduceMean <axes = [2]> (y)", "ReduceMean 'r' may reduce over its channels"),
        (f"{ints('a', 0)} r = Squeeze(y, a)", "Squeeze 'r' may remove the dimension of its channels"),
        (f"{ints('s', 0, -1)} r = Reshape(y, s)", "Reshape 'r' may move its channels"),
        ("r = Flatten(y)", "Flatten 'r' does not keep its channels apart"),
    ],
)
def test_channels_that_come_last_are_followed_no_further(body: str, reason: str) -> None:
    model = net(f"y = MatMul(x, w) {body} z = MatMul(r, v)", {"w": (8, 4), "v": (4, 3)})
    assert match(model).chains[0].reason == reason


def test_graph_output_on_the_way() -> None:
    matched = match(net("y = Conv(x, w) r = Relu(y) z = Conv(r, v)", C, z="float[] z, float[] r"))
    assert matched.chains[0].consumers == ("z",)
    assert matched.chains[0].reason == "'r' is a graph output"


def test_path_is_for_the_reader() -> None:
    body = "n = BatchNormalization(y, g, b, m, v) s = Sigmoid(n) a = Mul(s, n) p = MaxPool <kernel_shape = [2, 2]> (a) z = Conv(p, w)"
    matched = match(net(f"y = Conv(x, w) {body}", NORM))
    assert matched.chains[0].path == ("BatchNormalization", "SiLU", "MaxPool")
    assert matched.chains[0].activation == "SiLU"


def test_residual_network_pairs_within_and_between_blocks() -> None:
    block = (
        "{i}1 = Conv({x}, w) {i}2 = Relu({i}1) {i}3 = Conv({i}2, v) {i}4 = Add({i}3, {x}) {o} = Relu({i}4) "
    )
    body = (
        "s = Conv(x, u) a = Relu(s) "
        + block.format(x="a", i="p", o="b")
        + block.format(x="b", i="q", o="c")
        + "z = Conv(c, w)"
    )
    chains = {chain.producer: chain for chain in match(net(body, C)).chains}
    assert {name: chain.consumers for name, chain in chains.items()} == {
        "s": ("p1",),
        "p1": ("p3",),
        "p3": ("q1",),
        "q1": ("q3",),
        "q3": ("z",),
    }
    assert [name for name, chain in chains.items() if chain.homogeneous] == ["p1", "q1"]
    assert chains["p3"].path == ("Add", "Relu")


def test_squeeze_and_excitation_feeds_its_gate_and_the_projection() -> None:
    body = (
        "y = Conv(x, w) p = GlobalAveragePool(y) a = Conv(p, v) s = Sigmoid(a) r = Mul(y, s) z = Conv(r, u)"
    )
    chains = {chain.producer: chain for chain in match(net(body, C)).chains}
    assert chains["y"].consumers == ("a", "z")
    assert chains["a"].consumers == ("z",)
    assert not chains["y"].homogeneous
    assert not chains["a"].homogeneous


def test_long_chains_of_identity_do_not_exhaust_the_stack() -> None:
    def chain(name: str, source: str) -> str:
        names = [source, *(f"{name}{i}" for i in range(1500))]
        return " ".join(f"{b} = Identity({a})" for a, b in pairwise(names))

    body = (
        f"{chain('k', 'w')} c = Conv(x, k1499) {chain('n', 'c')} b = BatchNormalization(n1499, g, g, g, g) "
        f"{chain('a', 'b')} r = Relu(a1499) {ints('s', 1)} o = ConstantOfShape <value = int64[1] {{0}}> (s) "
        f"{ints('p', 0, 0, 0, 0, 0, 0, 0)} q = Concat <axis = 0> (o, p) {chain('f', 'q')} d = Pad(r, f1499) "
        "z = Conv(d, v)"
    )
    matched = match(net(body, C))
    assert [layer.weight for layer in matched.layers] == ["w", "v"]
    assert matched["c"].end == "b"
    assert matched["z"].end == "z"
    assert matched["c"].activation == "Relu"
    assert (matched.chains[0].consumers, matched.chains[0].homogeneous) == (("z",), True)


def test_long_sum_does_not_exhaust_the_stack() -> None:
    adds = " ".join(f"a{i + 1} = Add(a{i}, x)" for i in range(3000))
    matched = match(net(f"a0 = Conv(x, w) {adds} z = Conv(a3000, v)", C))
    assert matched.chains[0].consumers == ("z",)
