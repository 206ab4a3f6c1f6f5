"""Matching: factors really moved, in generated networks and in the shared ones."""

from pathlib import Path

import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_dfmpc.matching.match import match
from onnx_dfmpc.spec import MatchReport
from tests.nets import C, check_accounts, move_factors, net, outputs_differ


def test_the_oracle_sees_a_factor_that_may_not_move() -> None:
    model = net("y = Conv(x, w) r = Sigmoid(y) z = Conv(r, v)", C)
    matched = match(model)
    (chain,) = matched.chains
    pretended = MatchReport(
        matched.layers, (type(chain)(chain.producer, chain.consumers, "", (), True),), (), 2
    )
    assert outputs_differ(model, move_factors(model, pretended)) > 1e-2


# --- Generated networks
# -----------------------------------------------------------------------------------------------------------------

PIECES = {
    "conv": "{o} = Conv({i}, {o}_w, {o}_b)",
    "depthwise": "{o} = Conv <group = 4> ({i}, {o}_d)",
    "norm": "{o} = BatchNormalization({i}, {o}_g, {o}_b, {o}_m, {o}_v)",
    "relu": "{o} = Relu({i})",
    "clip": "{o}_6 = Constant <value_float = 6.0> () {o} = Clip({i}, , {o}_6)",
    "silu": "{o}_s = Sigmoid({i}) {o} = Mul({i}, {o}_s)",
    "pool": "{o} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({i})",
    "identity": "{o} = Identity({i})",
    "block": "{o}_1 = Conv({i}, {o}_w) {o}_2 = Relu({o}_1) {o}_3 = Conv({o}_2, {o}_u) {o} = Add({o}_3, {i})",
    "fork": "{o}_1 = Conv({i}, {o}_w) {o}_2 = Conv({i}, {o}_u) {o} = Add({o}_1, {o}_2)",
    "tied": "{o}_1 = Conv({i}, shared) {o} = Conv({o}_1, shared)",
    "float": "{o}_c = ReduceMax <axes = [0, 2, 3], keepdims = 0> ({i}) {o} = Conv({i}, {o}_w, {o}_c)",
}
PIECE_SHAPES = {
    "w": (4, 4, 1, 1),
    "u": (4, 4, 1, 1),
    "d": (4, 1, 1, 1),
    "g": (4,),
    "b": (4,),
    "m": (4,),
    "v": (4,),
}


@settings(max_examples=60)
@given(st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=9))
def test_generated_chains(pieces: list[str]) -> None:
    names = ["x", *(f"t{i}" for i in range(len(pieces)))]
    body = " ".join(
        PIECES[piece].format(i=i, o=o) for piece, i, o in zip(pieces, names, names[1:], strict=False)
    )
    weights = {
        f"{o}_{key}": shape for o in names[1:] for key, shape in PIECE_SHAPES.items() if f"{o}_{key}" in body
    }
    model = net(
        f"{body} z = Identity({names[-1]})", weights | {"shared": (4, 4, 1, 1)}, x="float[1, 4, 5, 5] x"
    )
    before = model.SerializeToString()
    matched = match(model)
    assert model.SerializeToString() == before
    check_accounts(model, matched)
    if "tied" not in pieces:  # one array cannot take the factors of two layers
        assert outputs_differ(model, move_factors(model, matched)) < 1e-4


# --- Real networks
# ----------------------------------------------------------------------------------------------------------------------


def test_shared_model_is_accounted_for(shared_model: Path) -> None:
    model = onnx.load(shared_model)
    before = model.SerializeToString()
    matched = match(model)
    check_accounts(model, matched)
    assert model.SerializeToString() == before
    assert matched.skipped == ()
    norms = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert sum(layer.batch_norm is not None for layer in matched.layers) == norms
    assert outputs_differ(model, move_factors(model, matched)) < 1e-4


@pytest.mark.parametrize(("name", "blocks"), [("cifar10_resnet20_bn", 9), ("cifar10_resnet56_folded", 27)])
def test_resnet_pairs_the_convolutions_of_each_block(shared_dir: Path, name: str, blocks: int) -> None:
    matched = match(onnx.load(shared_dir / "models" / f"{name}.onnx"))
    pairs = [(chain.producer, chain.consumers) for chain in matched.chains if chain.homogeneous]
    assert len(pairs) == blocks
    for producer, consumers in pairs:
        assert producer.endswith("conv1/Conv")
        assert consumers == (producer.replace("conv1", "conv2"),)
