"""Attributes of nodes: read alike by the bridge's builders and by ncnn's."""

import onnx
import pytest

from onnx_lathe.runtime.attributes import Attributed
from onnx_lathe.runtime.targets.core import node as ncnn
from onnx_lathe.runtime.torch_bridge import registry as bridge


class Some(Attributed):
    def __init__(self, **values: object) -> None:
        proto = onnx.helper.make_node("Some", [], [], **values)
        self.attributes = {item.name: onnx.helper.get_attribute_value(item) for item in proto.attribute}


def test_values_are_of_the_type_asked_for() -> None:
    given = Some(group=2, alpha=0.5, mode="edge", pads=[1, 2])
    assert given.integer("group") == 2
    assert given.number("alpha", 1.0) == 0.5
    assert given.number("group", 1.0) == 2.0
    assert given.text("mode", "constant") == "edge"
    assert given.integers("pads") == [1, 2]


def test_what_is_absent_has_its_default() -> None:
    given = Some()
    assert (given.integer("group"), given.integer("group", 1)) == (0, 1)
    assert given.number("alpha", 0.01) == 0.01
    assert given.text("mode", "constant") == "constant"
    assert given.integers("pads") is None


@pytest.mark.parametrize("kind", [ncnn.Node, bridge.Node])
def test_both_kinds_of_builders_read_them_so(kind: type[Attributed]) -> None:
    for name in ("integer", "number", "text", "integers"):
        assert getattr(kind, name) is getattr(Attributed, name)
