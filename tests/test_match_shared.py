"""Matching: weights that layers share, initializers that are listed as inputs, names and order."""

import onnx
import onnx.parser
import pytest

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.matching.match import match
from tests.nets import NORM, W, check_accounts, list_inputs, net


def test_shared_weight_says_so() -> None:
    matched = match(net("y = Conv(x, w) v = Identity(w) z = Conv(y, v) u = Conv(z, w)", W))
    assert [layer.weight for layer in matched.layers] == ["w", "w", "w"]
    notes = [layer.notes for layer in matched.layers]
    assert notes == [("weight shared with 'z', 'u'",), *[("weight shared with 'y'",)] * 2]


def test_layers_share_codes_where_weight_rows_and_widths_are_the_same() -> None:
    text = "y = Conv(x, w) z = Conv(y, w) t = ConvTranspose(z, w) u = Conv(t, w)"
    matched = match(net(text, W))
    assert matched.sharing(dict.fromkeys("yztu", 4)) == {"z": "y", "u": "y"}
    assert matched.sharing({"y": 4, "z": 3, "t": 4, "u": 3}) == {"u": "z"}
    assert matched.sharing({"z": 4, "u": 4}) == {"u": "z"}


def test_weight_shared_with_a_float_layer_stays_float() -> None:
    model = net(
        "y = Conv(x, w, c) b = ReduceMax <axes = [0, 2, 3], keepdims = 0> (x) z = Conv(y, w, b)",
        W | {"c": (4,)},
    )
    matched = match(model)
    check_accounts(model, matched)
    assert [(s.name, "stays float" in s.reason) for s in matched.skipped] == [("y", True), ("z", False)]


@pytest.mark.parametrize("ir", [3, 8])
def test_every_initializer_listed_is_a_habit(ir: int) -> None:
    model = list_inputs(net("y = Conv(x, w, b) z = BatchNormalization(y, g, b, m, v)", NORM, ir=ir), NORM)
    (layer,) = match(model).layers
    assert layer.batch_norm is not None
    assert "the entry will be dropped" in layer.notes[0]


def test_overridable_batch_norm_is_left_alone() -> None:
    (layer,) = match(
        list_inputs(net("y = Conv(x, w) z = BatchNormalization(y, g, b, m, v)", NORM), ["g"])
    ).layers
    assert layer.batch_norm is None
    assert "left as it is" in layer.notes[0]


def test_names() -> None:
    model = net("a = Conv(x, w) b = Conv(a, w) c = Conv(b, w) d = Conv(c, w) z = Conv(d, w)", W)
    for node, name in zip(model.graph.node, ["twin", "twin", "", "c", "own"], strict=True):
        node.name = name
    matched = match(model)
    check_accounts(model, matched)
    assert [layer.name for layer in matched.layers] == ["a", "b", "c_1", "c", "own"]


def test_weights_are_not_decoded() -> None:
    model = net("y = Conv(x, w) z = BatchNormalization(y, g, b, m, v)", NORM)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    onnx.external_data_helper.set_external_data(tensors["w"], "nowhere.bin")
    tensors["w"].ClearField("raw_data")
    assert match(model, read_mapped=False).layers[0].shape == (4, 4, 1, 1)


def test_graph_that_cannot_be_read() -> None:
    model = net("z = Relu(x)")
    model.graph.initializer.add(name="broken", data_type=99)
    with pytest.raises(ModelError, match="cannot be read"):
        match(model)


def test_no_nodes() -> None:
    matched = match(onnx.ModelProto())
    assert (matched.layers, matched.chains, matched.skipped, matched.weighted_nodes) == ((), (), (), 0)
