"""Nodes that PyTorch does not run: ONNX Runtime computes them, what lies before them stays, the rest is trained."""

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import ModelError, PassError
from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random, run

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule, kept, unsupported  # noqa: E402

WEIGHTS = {"w": (8, 8), "v": (8, 3)}
BRANCH = """
    s = ReduceSum <keepdims = 0> (h)  zero = Constant <value_float = 0.0> ()  c = Greater (s, zero)
    [choice] b = If (c) <then_branch = yes () => (float[N, 8] p) { p = Abs (h) },
                         else_branch = no () => (float[N, 8] q) { q = Neg (h) }>"""
NETWORKS = {
    "control flow": (f"h = MatMul (x, w) {BRANCH} y = MatMul (b, v)", ["v"]),
    "a front end": (
        "[front] t = Unsqueeze (x, two) d = DFT (t, , one) r = ReduceMean <keepdims = 0> (d, two) h = MatMul (r, w) y = MatMul (h, v)",
        ["w", "v"],
    ),
    "a sequence": (
        "h = MatMul (x, w) [parts] q = SplitToSequence <axis = 1> (h, four) [pick] b = SequenceAt (q, zero) z = Concat <axis = 1> (b, b) y = MatMul (z, v)",
        ["v"],
    ),
    "a way around": (f"h = MatMul (x, w) {BRANCH} g = Add (h, b) y = MatMul (g, v)", ["v"]),
}
"""Nodes between x [N, 8] and y [N, 3], and which weights are trained."""
NUMBERS = {"one": np.array(1), "two": np.array([2]), "four": np.array(4), "zero": np.array(0)}


def network(name: str) -> onnx.ModelProto:
    body = NETWORKS[name][0]
    stored = {key: random(*shape) for key, shape in WEIGHTS.items()}
    numbers = {
        key: value for key, value in NUMBERS.items() if f", {key})" in body and f"{key} = " not in body
    }
    return build(f"(float[N, 8] x) => (float[N, 3] y) {{ {body} }}", 20, **stored, **numbers)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_rest_is_trained_and_computes_the_same(name: str) -> None:
    model, x = network(name), random(5, 8)
    assert unsupported(model)
    assert unsupported(model, freeze=True) == []
    with pytest.raises(ModelError, match="PyTorch cannot run"):
        GraphModule(model)
    module = GraphModule(model, freeze=True)
    output = module(torch.from_numpy(x))
    np.testing.assert_allclose(output.detach().numpy(), run(model, {"x": x})["y"], rtol=1e-5, atol=1e-5)
    output.square().mean().backward()
    trained = [key for key, parameter in module.weights().items() if parameter.grad is not None]
    assert trained == NETWORKS[name][1]
    assert [key for key, parameter in module.weights().items() if parameter.requires_grad] == trained


def test_gradients_behind_a_frozen_node_are_those_of_finite_differences() -> None:
    module = GraphModule(network("control flow"), freeze=True)
    x, weight = torch.from_numpy(random(5, 8)), module.weights()["v"]

    def loss() -> torch.Tensor:
        return module(x).square().sum()

    loss().backward()
    step = torch.zeros_like(weight)
    step[3, 1] = 0.5  # the loss is a parabola of each weight
    with torch.no_grad():
        weight += step
        above = loss()
        weight -= 2 * step
        below = loss()
    torch.testing.assert_close(weight.grad[3, 1], (above - below) / 1.0, rtol=1e-4, atol=1e-3)


def test_what_stays_is_named_with_the_reason() -> None:
    assert kept(network("control flow")) == [
        ("choice", "If runs in ONNX Runtime, without a gradient"),
        ("MatMul", "w is not trained: choice behind it has no gradient"),
    ]
    assert [item.node for item in kept(network("a front end"))] == ["DFT_1"]
    plain = build("(float[N, 8] x) => (float[N, 3] y) { y = MatMul (x, v) }", v=random(8, 3))
    assert kept(plain) == []


def test_what_gives_whole_numbers_has_no_gradient_to_lose() -> None:
    """A detector whose boxes are chosen by non-maximum suppression trains as it is."""
    model = build(
        """(float[1, 6, 8] x) => (float[K, 4] y) {
            boxes = MatMul (x, w)  s = MatMul (x, v)  t = Transpose <perm = [0, 2, 1]> (s)
            [nms] chosen = NonMaxSuppression (boxes, t, most)
            i = Slice (chosen, two, three, one)  j = Squeeze (i, one)  b = Squeeze (boxes, zero)  y = Gather (b, j)
        }""",
        18, w=random(8, 4), v=random(8, 2), most=np.array([3]), zero=np.array([0]), one=np.array([1]), two=np.array([2]), three=np.array([3]),
    )  # fmt: skip
    module, x = GraphModule(model, freeze=True), random(1, 6, 8)
    output = module(torch.from_numpy(x))
    np.testing.assert_allclose(output.detach().numpy(), run(model, {"x": x})["y"], rtol=1e-5)
    output.sum().backward()
    assert module.weights()["w"].grad is not None
    assert kept(model) == [("nms", "NonMaxSuppression runs in ONNX Runtime, without a gradient")]


def test_a_network_whose_every_weight_lies_before_is_refused() -> None:
    text = f"(float[N, 8] x) => (float[N, 8] b) {{ h = MatMul (x, w) {BRANCH} }}"
    with pytest.raises(ModelError, match=r"choice \(If, opset 20: control flow"):
        GraphModule(build(text, 20, w=random(8, 8)), freeze=True)


@pytest.mark.parametrize(
    "body, op",
    [
        ("h = RandomNormalLike (x) g = Add (x, h)", "RandomNormalLike"),
        (
            "s = ReduceSum <keepdims = 0> (x)  zero = Constant <value_float = 0.0> ()  c = Greater (s, zero) "
            "g = If (c) <then_branch = yes () => (float[N, 8] p) { p = RandomNormalLike (x) }, else_branch = no () => (float[N, 8] q) { q = Neg (x) }>",
            "If",
        ),
    ],
)
def test_what_depends_on_chance_is_refused_all_the_same(body: str, op: str) -> None:
    model = build(f"(float[N, 8] x) => (float[N, 3] y) {{ {body} y = MatMul (g, v) }}", 20, v=random(8, 3))
    assert [item.op for item in unsupported(model, freeze=True)] == [op]


def test_an_operator_that_onnx_runtime_lacks_is_named_when_it_runs() -> None:
    model = build(
        "(float[N, 8] x) => (float[N, 3] y) { [own] g = Abs (x)  y = MatMul (g, v) }", v=random(8, 3)
    )
    model.graph.node[0].domain = "mine"
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    module = GraphModule(model, freeze=True)
    with pytest.raises((PassError, ModelError)) as caught:
        module(torch.ones(2, 8))
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_precision_around_a_frozen_node_stays_half_precision() -> None:
    model = network("control flow")
    module = GraphModule(model, freeze=True)
    x = random(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(torch.from_numpy(x))
    exact = ort.run(ort.session(model), {"x": x})["y"]
    assert np.abs(output.detach().float().numpy() - exact).max() < 0.1 * np.abs(exact).max()
