"""An attribute that no builder knows is a reason to refuse the node: the operator may have changed."""

import onnx
import pytest

from onnx_lathe.runtime.targets.core.facts import gather
from onnx_lathe.runtime.targets.core.node import NO_MATTER, Unsupported
from onnx_lathe.runtime.targets.ncnn.network import Network
from tests.support.builders import build, random
from tests.support.ncnn import agree, refusals


def with_attribute(name: str, value: object) -> onnx.ModelProto:
    text = "(float[1, 3, 6, 6] x) => (float[1, 4, 4, 4] y) { [layer] y = Conv (x, w) }"
    model = build(text, w=random(4, 3, 3, 3))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute(name, value))
    return model


def test_what_nobody_reads_is_refused() -> None:
    model = build("(float[1, 3] x) => (float[1, 3] y) { [layer] y = Relu (x) }")
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("threshold", 0.5))
    from onnx_lathe.runtime.targets.core.node import overlooked, view

    node = view(model.graph.node[0], 0, 21)
    assert overlooked(node, "") == "threshold"
    node.number("threshold", 0.0)
    assert overlooked(node, "") is None


def test_defaults_and_what_says_nothing_new_are_taken() -> None:
    agree(with_attribute("kernel_shape", [3, 3]))
    agree(with_attribute("auto_pad", "NOTSET"))
    assert "kernel_shape" in NO_MATTER


@pytest.mark.parametrize("attribute", ["storage_order = 1"])
def test_order_of_indices_that_nobody_reads(attribute: str) -> None:
    text = f"(float[1, 3, 6, 6] x) => (float[1, 3, 3, 3] y) {{ y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], {attribute}> (x) }}"
    agree(build(text))


def test_a_mask_that_hides_everything_is_refused() -> None:
    text = """(float[1, 2, 3, 4] q, float[1, 2, 3, 4] k, float[1, 2, 3, 4] v) => (float[1, 2, 3, 4] y) {
        m = Constant <value = bool[3, 3] {1, 1, 1, 0, 0, 0, 1, 0, 1}> ()
        [layer] y = Attention (q, k, v, m)
    }"""
    model = build(text, opset=23)
    ((node, _, reason),) = refusals(model)
    assert (node, reason) == ("layer", "its mask hides all keys from a query")


def test_a_formula_that_ncnn_cannot_read_is_refused() -> None:
    model = build("(float[1, 3] x) => (float[1, 3] y) { y = Relu (x) }")
    facts = gather(model, {"x": (1, 3)}, {"x": (1, 3)})
    net = Network(facts, {})
    net.add("Reshape", "short", ["a"], ["b"], {6: "0w"})
    with pytest.raises(Unsupported, match="more than 240 characters"):
        net.add("Reshape", "long", ["b"], ["c"], {6: "+(0w," * 60})
