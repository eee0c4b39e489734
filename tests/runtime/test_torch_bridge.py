"""The module as a whole: what is refused, what is constant, batch sizes, types, and that nothing changes
without training.
"""

import copy
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.metadata import SPARSE, format_sparse
from tests.support import quantized
from tests.support.builders import build, random

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import (  # noqa: E402
    GraphModule,
    registry,
    unsupported,
)


def classifier(opset: int = 17) -> onnx.ModelProto:
    text = """(float[n, 2, 6, 6] x) => (float[n, 5] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        r = Relu(c)
        g = GlobalAveragePool(r)
        f = Flatten(g)
        y = Gemm <transB = 1> (f, v, d)
    }"""
    return build(text, opset, w=random(3, 2, 3, 3), b=random(3), v=random(5, 3), d=random(5))


def assert_agrees(model: onnx.ModelProto, feeds: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    results = GraphModule(model)(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    results = results if isinstance(results, tuple) else (results,)
    for result, want in zip(results, quantized.run(model, feeds), strict=True):
        assert tuple(result.shape) == want.shape
        np.testing.assert_allclose(
            result.numpy(force=True), want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max())
        )


@pytest.mark.parametrize("opset", range(11, 25))
def test_a_convolution_network_runs_at_every_opset(opset: int) -> None:
    model = classifier()
    model.opset_import[0].version = opset
    model.ir_version = 10
    assert_agrees(model, {"x": random(4, 2, 6, 6)})


@pytest.mark.parametrize("codebook", [False, True])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("opset", [20, 21])
def test_canonical_forms_agree_with_onnx_runtime(codebook: bool, int8: bool, opset: int) -> None:
    assert_agrees(quantized.lenet(opset, codebook, int8), quantized.IMAGES)


def test_without_training_every_bit_stays() -> None:
    values = np.array([[-0.0, 0.0, 1e-42, -1e-45], [np.nan, np.inf, 1 / 3, 3e38]], np.float32)
    model = build("(float[n, 2] x) => (float[n, 4] y) { y = MatMul(x, w) }", w=values)
    model.metadata_props.add(key=SPARSE, value=format_sparse({"w": "unstructured"}))
    given = GraphModule(model).values()["w"]
    assert given.dtype == values.dtype
    assert given.shape == values.shape
    assert given.tobytes() == values.tobytes()


def test_every_node_that_cannot_run_is_named_at_once() -> None:
    text = """(float[n, 4] x, bool c) => (float[n, 4] y, float[n, 4] z) {
        a = Relu(x)
        [first] d = Det(m)
        [branch] y = If <then_branch = one () => (float[n, 4] p) { p = Identity(a) },
                         else_branch = two () => (float[n, 4] q) { q = Neg(a) }> (c)
        [last] z = RandomNormalLike(a)
    }"""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17, "com.acme": 3]> g {text}')
    model.graph.node.append(helper.make_node("Fuse", ["y"], ["w"], name="custom", domain="com.acme"))
    model.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["n", 4]))
    del model.graph.node[1]
    assert unsupported(model) == [
        ("branch", "If", 17, ""),
        ("last", "RandomNormalLike", 17, ""),
        ("custom", "Fuse", 3, "com.acme"),
    ]
    with pytest.raises(ModelError) as caught:
        GraphModule(model)
    assert str(caught.value) == (
        "PyTorch cannot run 3 of the model's nodes: branch (If, opset 17: control flow: export the model with its branches decided and its "
        "loops unrolled), last (RandomNormalLike, opset 17: random numbers: a result could not be compared with the original's), "
        "custom (com.acme.Fuse, opset 3)"
    )


def test_a_restriction_is_told_with_the_operator() -> None:
    pool = build(
        "(float[1, 1, 2, 2, 2, 2] x) => (float[1, 1, 1, 1, 1, 1] y) { y = MaxPool <kernel_shape = [2, 2, 2, 2]> (x) }"
    )
    assert unsupported(pool)[0].op == "MaxPool in 4 dimensions"
    float8 = np.zeros((), np.float32)
    cast = build(
        "(float[n] x) => (float[n] y) { q = Cast <to = 17> (x)  y = Cast <to = 1> (q) }", 19, unused=float8
    )
    assert unsupported(cast)[0].op == "Cast FLOAT8E4M3FN"


def test_indices_that_nothing_reads_are_no_obstacle() -> None:
    model = build(
        "(float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) { y, i = MaxPool <kernel_shape = [3, 3]> (x) }"
    )
    assert_agrees(model, {"x": random(1, 1, 4, 4)})


def test_an_operator_changed_after_the_newest_known_opset_is_unsupported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "NEWEST_OPSET", 12)
    assert registry.find("", "Softmax", 13) is None  # its meaning changed at 13
    assert registry.find("", "LRN", 12) is not None
    assert registry.find("", "Mish", 17) is None  # came at 18


def test_nodes_that_no_output_needs_do_not_matter() -> None:
    model = build("(float[n, 4] x) => (float[n, 4] y) { y = Relu(x)  z = RandomNormalLike(x) }")
    assert unsupported(model) == []
    assert_agrees(model, {"x": random(3, 4)})


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_batch_size_is_free(batch: int) -> None:
    text = """(float[n, 2, 3, 4] x) => (float[n, 24] y, float[n, 2, 12] z, float[n, 6, 4] u) {
        s = Shape(x)
        n = Gather <axis = 0> (s, zero)
        n1 = Unsqueeze(n, first)
        target = Concat <axis = 0> (n1, minus)
        y = Reshape(x, target)
        z = Reshape(x, keep)
        halves = Mul(sizes, two)
        wide = Concat <axis = 0> (n1, halves, minus)
        u = Reshape(x, wide)
    }"""
    stored = {"zero": 0, "first": [0], "minus": [-1], "keep": [0, 2, -1], "sizes": [3], "two": [2]}
    model = build(text, **{name: np.array(value, np.int64) for name, value in stored.items()})
    assert_agrees(model, {"x": random(batch, 2, 3, 4)}, 0)


def test_constants_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = GraphModule(quantized.lenet(21, codebook=True, int8=True))
    run_each_step = {step.node.op_type for step in module._plan.steps}
    assert "Cast" not in run_each_step
    module = GraphModule(quantized.lenet(21, codebook=False, int8=True))
    weights_decoded = [step.node.name for step in module._plan.steps if step.node.name.startswith("w")]
    assert weights_decoded == []


def test_a_fixed_batch_is_run_piece_by_piece() -> None:
    model = build(
        "(float[2, 3] x) => (float[2, 4] y) { s = Reshape(x, shape)  y = MatMul(s, w) }",
        shape=np.array([2, 3]),
        w=random(3, 4),
    )
    module = GraphModule(model)
    x = random(5, 3)
    with pytest.raises(RuntimeError):
        module(torch.from_numpy(x))
    module.fixed_batch = 2
    result = module(torch.from_numpy(x))
    np.testing.assert_allclose(
        result.numpy(force=True), x @ numpy_helper.to_array(model.graph.initializer[1]), atol=1e-5
    )
    result.sum().backward()
    np.testing.assert_allclose(
        module.weights()["w"].grad.numpy(), np.tile(x.sum(0)[:, None], (1, 4)), atol=1e-5
    )


def test_half_precision_is_trained_in_single_and_given_back_in_half() -> None:
    w = random(3, 4).astype(np.float16)
    model = build("(float16[n, 3] x) => (float16[n, 4] y) { y = MatMul(x, w) }", w=w)
    module = GraphModule(model)
    assert module.weights()["w"].dtype == torch.float32
    result = module(torch.ones(2, 3, dtype=torch.float16))
    assert result.dtype == torch.float16
    result.float().sum().backward()
    assert module.weights()["w"].grad.abs().sum() > 0
    assert module.values()["w"].dtype == np.float16
    assert module.values()["w"].tobytes() == w.tobytes()


def test_initializers_listed_as_inputs_are_weights() -> None:
    model = classifier()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2, 3, 3]))
    module = GraphModule(model)
    assert module.inputs == ("x",)
    assert set(module.weights()) == {"b", "v", "d"}  # a caller may feed another w
    model.ir_version = 3
    assert set(GraphModule(model).weights()) == {"w", "b", "v", "d"}


def test_functions_of_the_model_are_expanded() -> None:
    text = """<ir_version: 9, opset_import: ["": 17, "local": 1]>
        g (float[n, 3] x) => (float[n, 3] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["": 17]> twice (a) => (b) { b = Add(a, a) }"""
    assert_agrees(onnx.parser.parse_model(text), {"x": random(2, 3)}, 0)


def test_an_initializer_may_be_an_output() -> None:
    model = build("(float[n, 3] x) => (float[n, 3] y, float[3] c) { y = Add(x, c) }", c=random(3))
    assert_agrees(model, {"x": random(2, 3)}, 0)


def test_wrong_inputs_are_told() -> None:
    module = GraphModule(classifier())
    with pytest.raises(TypeError, match="the model's inputs are x; given were image"):
        module(image=torch.zeros(1, 2, 6, 6))
    with pytest.raises(TypeError, match="given were none"):
        module()
    with pytest.raises(TypeError, match="number 1, x"):
        module(torch.zeros(1, 2, 6, 6), x=torch.zeros(1, 2, 6, 6))


def test_a_copy_trains_alone() -> None:
    module = GraphModule(quantized.lenet(int8=False))
    image = torch.from_numpy(quantized.IMAGES["image"])
    before = module(image)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.weights()["w1_codebook"].mul_(2)
    assert torch.equal(module(image), before)
    assert not torch.equal(other(image), before)
    module.load_state_dict(other.state_dict())
    assert torch.equal(module(image), other(image))


def test_memory_layout_changes_no_value() -> None:
    module = GraphModule(classifier())
    x = torch.from_numpy(random(3, 2, 6, 6))
    before, values = module(x), module.values()
    module.to(memory_format=torch.channels_last)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), before)
    assert all(value.tobytes() == values[name].tobytes() for name, value in module.values().items())


def test_trace_gives_every_tensor_in_order() -> None:
    module = GraphModule(classifier())
    seen = {name: value for _, name, value in module.trace(x=torch.ones(1, 2, 6, 6))}
    assert list(seen) == ["c", "r", "g", "f", "y"]
    assert torch.equal(seen["r"], seen["c"].relu())


@pytest.mark.parametrize(
    "tail, operator",
    [
        ("y = Softmax(a)", "Softmax"),
        ("s = LogSoftmax(a)  y = Identity(s)", "LogSoftmax"),
        ("y = Relu(a)", "Relu"),
        ("y = Identity(x)", ""),
    ],
)
def test_the_operator_behind_each_output_is_known(tail: str, operator: str) -> None:
    model = build(f"(float[n, 3] x) => (float[n, 3] y) {{ a = Neg(x)  {tail} }}")
    assert GraphModule(model).output_ops == (operator,)


def test_without_pytorch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("onnx_lathe.runtime.torch_bridge")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"retrain needs PyTorch; pip install 'onnx-lathe\[train\]'"):
        import onnx_lathe.runtime.torch_bridge  # noqa: F401
