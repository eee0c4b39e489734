"""The lowering for LiteRT: image operators in sandwiches, no Transpose inside a plain CNN, equal outputs."""

from tests.support.builders import build, random
from tests.support.channels_last import assert_same, lower, transposes

CNN = """(float[n,3,8,8] x) => (float[n,5] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    b = Relu(a)
    c = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)
    d = Conv<pads = [1, 1, 1, 1]>(c, w2)
    e = Add(c, d)
    f = Flatten(e)
    y = Gemm<transB = 1>(f, w3)
}"""


def cnn():
    return build(
        CNN, w1=random(4, 3, 3, 3), b1=random(4), w2=random(4, 4, 3, 3), w3=random(5, 64)
    )  # fmt: skip


def test_a_plain_network_is_transposed_once_where_it_begins() -> None:
    model = cnn()
    lowered = lower(model)
    (entry,) = transposes(lowered)
    assert entry.input == ["x"]
    assert_same(model, lowered, {"x": random(2, 3, 8, 8)})


def test_the_rectifier_stays_in_the_sandwich() -> None:
    lowered = lower(cnn())
    operators = [node.op_type for node in lowered.graph.node]
    place = operators.index("Relu")
    assert operators[place - 2 : place + 2] == ["Transpose", "Conv", "Relu", "Transpose"]
