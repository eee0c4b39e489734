"""The lowering for LiteRT: image operators in sandwiches, as few Transposes as can be, equal outputs."""

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.lowering import find_lowering
from onnx_lathe.passes.lowering.litert_layout.layout import lay_out
from tests.support.builders import build, random
from tests.support.channels_last import assert_same, lower, transposes
from tests.support.random_images import RandomNetwork

CNN = """(float[n,3,8,8] x) => (float[n,5] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    b = Relu(a)
    c = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)
    d = Conv<pads = [1, 1, 1, 1]>(c, w2)
    e = Add(c, d)
    f = Flatten(e)
    y = Gemm<transB = 1>(f, w3)
}"""


def cnn() -> onnx.ModelProto:
    return build(CNN, w1=random(4, 3, 3, 3), b1=random(4), w2=random(4, 4, 3, 3), w3=random(5, 64))


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in values
    }


def test_a_plain_network_is_transposed_once_where_it_begins() -> None:
    model = cnn()
    lowered = lower(model)
    (entry,) = transposes(lowered)
    assert entry.input == ["x"]
    assert not metadata.read_channels_last(lowered.metadata_props)
    assert_same(model, lowered, {"x": random(2, 3, 8, 8)})


def test_a_plain_network_with_channels_last_is_not_transposed_at_all() -> None:
    model = cnn()
    lowered = lower(model, "nhwc")
    assert not transposes(lowered)
    assert shapes(lowered)["x"] == ["n", 8, 8, 3]
    assert metadata.read_channels_last(lowered.metadata_props) == ["x"]
    assert_same(model, lowered, {"x": random(2, 3, 8, 8)}, last=True)


def test_tensors_keep_their_names_in_the_shape_that_is_stored() -> None:
    lowered = shapes(lower(cnn()))
    assert [lowered[name] for name in "bce"] == [["n", 8, 8, 4], ["n", 4, 4, 4], ["n", 4, 4, 4]]


def test_the_rectifier_stays_in_the_sandwich() -> None:
    operators = [node.op_type for node in lower(cnn()).graph.node]
    place = operators.index("Relu")
    assert operators[place - 2 : place + 2] == ["Transpose", "Conv", "Relu", "Transpose"]


@pytest.mark.parametrize(("low", "high", "inside"), [(0, 6, True), (-1, 1, True), (0, 20, False)])
def test_only_activations_that_litert_fuses_stay_in_the_sandwich(low: int, high: int, inside: bool) -> None:
    model = build(
        "(float[n,3,4,4] x) => (float[n,2,4,4] y) { a = Conv(x, w) y = Clip(a, low, high) }",
        w=random(2, 3, 1, 1), low=np.float32(low), high=np.float32(high),
    )  # fmt: skip
    lowered = lower(model)
    clip = next(node for node in lowered.graph.node if node.op_type == "Clip")
    conv = next(node for node in lowered.graph.node if node.op_type == "Conv")
    assert (clip.input[0] == conv.output[0]) is inside
    assert_same(model, lowered, {"x": random(2, 3, 4, 4) * 10})


def test_weights_stay_as_onnx_has_them_and_columns_follow_the_image() -> None:
    model = cnn()
    before, after = stored(model), stored(lower(model))
    np.testing.assert_array_equal(after["w1"], before["w1"])
    columns = before["w3"].reshape(5, 4, 4, 4).transpose(0, 2, 3, 1).reshape(5, 64)
    np.testing.assert_array_equal(after["w3"], columns)


def test_columns_of_an_integer_weight_follow_the_image() -> None:
    model = build(
        "(float[n,3,4,4] x) => (float[n,5] y) {"
        "a = Conv(x, w1) f = Flatten(a) w = DequantizeLinear<axis = 0>(q, s, z) y = Gemm<transB = 1>(f, w) }",
        opset=21, w1=random(2, 3, 1, 1), q=(random(5, 32) * 40).astype(np.int8),
        s=np.abs(random(5)) + 0.1, z=np.zeros(5, np.int8),
    )  # fmt: skip
    lowered = lower(model)
    assert len(transposes(lowered)) == 1
    assert [node.op_type for node in lowered.graph.node].count("DequantizeLinear") == 1
    assert_same(model, lowered, {"x": random(2, 3, 4, 4)})


def test_a_codebook_is_decoded_before_its_columns_move() -> None:
    model = build(
        "(float[n,3,4,4] x) => (float[n,5] y) {"
        "a = Conv(x, w1) f = Flatten(a) i = Cast<to = 6>(codes) w = Gather(book, i) y = Gemm<transB = 1>(f, w) }",
        w1=random(2, 3, 1, 1), book=random(16), codes=np.arange(160).reshape(5, 32).astype(np.uint8) % 16,
    )  # fmt: skip
    lowered = lower(model)
    assert "Gather" not in [node.op_type for node in lowered.graph.node]
    assert_same(model, lowered, {"x": random(2, 3, 4, 4)})


def test_pairs_stand_outside_of_sandwiches() -> None:
    model = build(
        "(float[n,3,4,4] x) => (float[n,2,4,4] y) {"
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear<axis = 0>(wq, ws, wz)"
        "a = Conv(d, w) b = Relu(a) p = QuantizeLinear(b, s, z) y = DequantizeLinear(p, s, z) }",
        opset=21, s=np.float32(0.05), z=np.int8(-3), wq=(random(2, 3, 1, 1) * 40).astype(np.int8),
        ws=np.float32([0.01, 0.02]), wz=np.zeros(2, np.int8),
    )  # fmt: skip
    graph = import_model(model)
    lay_out(graph, PassReport(), keep_ends=True)
    lowered = export_model(graph)
    operators = [node.op_type for node in lowered.graph.node if node.name]
    assert operators.count("Transpose") == 4
    place = operators.index("Conv")
    assert operators[place : place + 4] == ["Conv", "Relu", "Transpose", "QuantizeLinear"]
    moved_first = next(node for node in transposes(lowered) if "x" not in node.input)
    assert moved_first.input[0] in {"q", "p", "p_nhwc"}  # one byte an element is moved, not four
    assert_same(model, lowered, {"x": random(2, 3, 4, 4)}, tolerance=0)


def test_one_transpose_serves_all_readers_in_the_other_layout() -> None:
    model = build(
        "(float[n,3,4,4] x) => (float[n,2,4,4] y, float[n,2,4,4] z) {"
        "a = Conv(x, w) y = MatMul(a, k) z = MatMul(a, l) }",
        w=random(2, 3, 1, 1), k=random(4, 4), l=random(4, 4),
    )  # fmt: skip
    lowered = lower(model)
    assert len(transposes(lowered)) == 2
    assert_same(model, lowered, {"x": random(2, 3, 4, 4)})


def test_what_a_body_reads_keeps_its_layout_and_name() -> None:
    model = build(
        """(float[n,3,4,4] x) => (float[n,2,4,4] y) {
        a = Conv(x, w) m = ReduceMean<keepdims = 0>(a) t = Greater(m, zero)
        c = If<then_branch = first () => (float[n,2,4,4] p) { p = MatMul(a, k) },
               else_branch = second () => (float[n,2,4,4] q) { q = Neg(a) }>(t)
        y = Conv(c, v) }""",
        w=random(2, 3, 1, 1), v=random(2, 2, 1, 1), k=random(4, 4), zero=np.float32(0),
    )  # fmt: skip
    lowered = lower(model)
    maker = next(node for node in lowered.graph.node if "a" in node.output)
    assert maker.op_type == "Transpose"
    assert shapes(lowered)["a"] == ["n", 2, 4, 4]
    for sign in (1, -1):
        assert_same(model, lowered, {"x": sign * np.abs(random(2, 3, 4, 4))})


def test_open_sizes_stay_open() -> None:
    model = build(
        """(float[n,4,h,w] x) => (float[n,l,4] y, float[n,4,i,j] z) {
        a = Conv<pads = [1, 1, 1, 1]>(x, k) s = Shape(a) hw = Slice(s, two, four)
        r = Reshape(a, flat) y = Transpose<perm = [0, 2, 1]>(r)
        d = Mul(hw, two) nc = Slice(s, zero, two) t = Concat<axis = 0>(nc, d)
        u = Resize<mode = "nearest">(a, , , t) z = Conv<pads = [1, 1, 1, 1]>(u, k) }""",
        k=random(4, 4, 3, 3), flat=np.array([0, 4, -1]), two=np.array([2]), four=np.array([4]), zero=np.array([0]),
    )  # fmt: skip
    lowered = lower(model)
    for size in ((1, 4, 5, 7), (3, 4, 9, 4)):
        assert_same(model, lowered, {"x": random(*size)})
    assert len(transposes(lowered)) == 2


def test_sizes_that_a_converter_names_alike_are_not_taken_for_equal() -> None:
    text = "(float[n,2,q,q] x) => (float[n,2,r] y) { a = Conv(x, k) y = Reshape(a, s) }"
    model = build(text, k=random(2, 2, 1, 1), s=np.array([0, 2, -1]))
    for dim in list(model.graph.input[0].type.tensor_type.shape.dim)[2:]:
        dim.dim_param = "?"
    assert_same(model, lower(model), {"x": random(2, 2, 3, 5)})


def test_one_dimension() -> None:
    model = build(
        "(float[n,4,12] x) => (float[n,3,5] y) {"
        "a = Conv<pads = [1, 1]>(x, w) b = MaxPool<kernel_shape = [2], strides = [2]>(a) y = Conv(b, v) }",
        w=random(4, 4, 3), v=random(3, 4, 2),
    )  # fmt: skip
    lowered = lower(model)
    assert [list(node.attribute[0].ints) for node in transposes(lowered)] == [[0, 2, 1], [0, 2, 1]]
    assert_same(model, lowered, {"x": random(2, 4, 12)})


def test_three_dimensions_are_left_as_they_are() -> None:
    model = build(
        "(float[n,2,4,5,6] x) => (float[n,3,3,4,5] y) { a = Conv(x, w) y = Relu(a) }", w=random(3, 2, 2, 2, 2)
    )
    lowered = lower(model)
    assert [node.op_type for node in lowered.graph.node] == ["Conv", "Relu"]
    assert_same(model, lowered, {"x": random(2, 2, 4, 5, 6)})


def test_a_pool_that_says_where_is_left_as_it_is() -> None:
    model = build(
        "(float[n,2,4,4] x) => (float[n,2,2,2] y, int64[n,2,2,2] i) {"
        "y, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) }"
    )
    lowered = lower(model)
    assert [node.op_type for node in lowered.graph.node] == ["MaxPool"]
    assert_same(model, lowered, {"x": random(2, 2, 4, 4)})


def test_the_order_of_depth_is_that_of_the_convolution() -> None:
    model = build(
        'CRD'.join(('(float[n,3,4,4] x) => (float[n,2,8,8] y) { a = Conv(x, w, b) r = Relu(a)'
        'y = DepthToSpace<blocksize = 2, mode = "', '">(r) }')),
        w=random(8, 3, 1, 1), b=random(8),
    )  # fmt: skip
    lowered = lower(model)
    (node,) = [one for one in lowered.graph.node if one.op_type == "DepthToSpace"]
    assert {one.name: one.s for one in node.attribute if one.name == "mode"} == {"mode": b"DCR"}
    assert_same(model, lowered, {"x": random(2, 3, 4, 4)})


def test_half_precision_computes_in_single() -> None:
    model = build(
        "(float16[n,3,4,4] x) => (float16[n,2,4,4] y) { y = Conv(x, w) }",
        w=random(2, 3, 1, 1).astype(np.float16),
    )
    lowered = lower(model)
    assert stored(lowered)["w"].dtype == np.float32
    assert_same(model, lowered, {"x": random(2, 3, 4, 4).astype(np.float16)}, tolerance=1e-3)


def test_another_layout_is_refused() -> None:
    with pytest.raises(UsageError, match="layout"):
        configure(find_lowering("litert"), {"layout": "nchw"})


@pytest.mark.parametrize(
    ("name", "left"), [("lenet300-mnist", 0), ("lenet5-mnist", 0), ("resnet20-cifar10", 1)]
)
def test_models_of_this_repository(name: str, left: int) -> None:
    """Images of one channel need no Transpose: only an axis of size 1 moves."""
    model = onnx.load(f"models/{name}/model.onnx")
    lowered = lower(model)
    assert len(transposes(lowered)) == left
    image = model.graph.input[0]
    sizes = [dim.dim_value for dim in image.type.tensor_type.shape.dim][1:]
    assert_same(model, lowered, {image.name: random(2, *sizes)})


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int) -> None:
    network = RandomNetwork(seed)
    model = network.grow(6 + seed % 16)
    assert_same(model, lower(model), network.feeds(), tolerance=1e-4)
    lower(model, "nhwc")
