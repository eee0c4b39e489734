"""Models of opset 7 to 10 compute the same at opset 17: every rule against ONNX Runtime on the old model."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, defs, helper

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.loading.modern import MODERN, NEWEST_OLD, OLDEST
from onnx_lathe.passes.loading.old_operators import RULES
from onnx_lathe.passes.loading.preparing import prepare
from onnx_lathe.passes.loading.walk import graphs
from tests.support.builders import random

IMAGE = {"x": (2, 3, 4, 5)}


def old(
    node: str,
    opset: int,
    inputs: Mapping[str, tuple[int | str, ...]] = IMAGE,
    output: str = "float y",
    ir_version: int = 3,
    **initializers: np.ndarray,
) -> onnx.ModelProto:
    """A model of one or more nodes in onnx.parser's syntax, with its initializers among the inputs."""
    sizes = {name: f"[{', '.join(map(str, shape))}]" if shape else "" for name, shape in inputs.items()}
    shapes = ", ".join(f"float{size} {name}" for name, size in sizes.items())
    model = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]> g ({shapes}) => ({output}) {{ {node} }}'
    )
    for graph in graphs(model.graph):  # the syntax has no unknown rank
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
            if graph is not model.graph:
                value.ClearField("type")
    for name, array in initializers.items():
        tensor = onnx.numpy_helper.from_array(np.asarray(array), name)
        model.graph.initializer.append(tensor)
        model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return model


def computed(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    found: list[np.ndarray] = session.run(None, dict(feeds))
    return found


def assert_same(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], tolerance: float = 1e-6
) -> onnx.ModelProto:
    expected = computed(model, feeds)
    for value, array in zip(model.graph.output, expected, strict=True):
        value.type.CopyFrom(helper.make_tensor_type_proto(value.type.tensor_type.elem_type, array.shape))
    done = prepare(model)
    assert done.rewritten
    assert "converted to 17" in done.notes[-1]
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == MODERN
    onnx.checker.check_model(model)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)
    for before, after in zip(expected, computed(model, feeds), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=tolerance)
    return model


NODES = {
    "Clip": ("y = Clip <min = -0.5, max = 0.25> (x)", 9),
    "Clip without a lower bound": ("y = Clip <max = 0.25> (x)", 7),
    "Clip without bounds": ("y = Clip (x)", 9),
    "Dropout": ("y = Dropout <ratio = 0.3> (x)", 7),
    "Dropout of opset 10": ("y = Dropout (x)", 10),
    "Pad": ("y = Pad <pads = [0, 0, 1, 2, 0, 0, 1, 0]> (x)", 9),
    "Pad with a value": ("y = Pad <pads = [0, 0, 1, 2, 0, 0, 1, 0], value = 1.5> (x)", 7),
    "Pad that reflects": ('y = Pad <mode = "reflect", pads = [0, 0, 1, 2, 0, 0, 1, 0]> (x)', 10),
    "Pad that cuts": ("y = Pad <pads = [0, 0, -1, 0, 0, 0, 0, 1]> (x)", 9),
    "Slice": ("y = Slice <starts = [1, -3], ends = [2, 9223372036854775807], axes = [1, 3]> (x)", 9),
    "Slice without axes": ("y = Slice <starts = [0, 1], ends = [1, 3]> (x)", 7),
    "Squeeze and Unsqueeze": ("a = Unsqueeze <axes = [0, 2]> (x) y = Squeeze <axes = [0]> (a)", 9),
    "Split": ("y, b, c = Split <axis = 3, split = [2, 2, 1]> (x)", 9),
    "Split into equal parts": ("y, b, c = Split <axis = 1> (x)", 7),
    "ReduceSum": ("y = ReduceSum <axes = [1, 3], keepdims = 0> (x)", 9),
    "ReduceSum of all": ("y = ReduceSum (x)", 9),
    "TopK": ("y, i = TopK <axis = 3, k = 2> (x)", 9),
    "Softmax over all that follows": ("y = Softmax (x)", 9),
    "Softmax of the last axis": ("y = Softmax <axis = 3> (x)", 10),
    "LogSoftmax from axis 2": ("y = LogSoftmax <axis = 2> (x)", 9),
    "Hardmax": ("y = Hardmax <axis = 2> (x)", 7),
    "Softmax behind pooling": ("a = GlobalAveragePool(x) y = Softmax <axis = 1> (a)", 9),
    "Upsample": ('y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 3.0]> (x)', 7),
    "Upsample, linear": ('y = Upsample <mode = "linear", scales = [1.0, 1.0, 2.0, 2.0]> (x)', 8),
    "LeakyRelu": ("a = LeakyRelu <alpha = 0.2> (x) b = Sigmoid(a) y = Add(b, x)", 7),
    "mean of an average": ("y = ReduceMean <axes = [2, 3]> (x)", 8),
}


@pytest.mark.parametrize("case", NODES)
def test_a_node(case: str) -> None:
    text, opset = NODES[case]
    model = old(text, opset)
    model.graph.node[0].name = "the node"
    model.graph.node[0].metadata_props.add(key="mine", value="stays")
    after = assert_same(model, {"x": random(2, 3, 4, 5)})
    assert any(node.name == "the node" for node in after.graph.node)
    assert any(entry.value == "stays" for node in after.graph.node for entry in node.metadata_props)


def test_softmax_stays_one_node_where_it_can() -> None:
    for text in ("y = Softmax <axis = 3> (x)", "a = GlobalAveragePool(x) y = Softmax <axis = 1> (a)"):
        after = assert_same(old(text, 9), {"x": random(2, 3, 4, 5)})
        assert [node.op_type for node in after.graph.node].count("Reshape") == 0


@pytest.mark.parametrize("scale", [2.0, 1.5, 0.5, 0.6])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_scales_as_an_input(op: str, opset: int, mode: str, scale: float) -> None:
    if op == "Upsample" and scale < 1:
        return  # it only enlarges
    scales = np.array([1, 1, scale, scale], np.float32)
    model = old(f'y = {op} <mode = "{mode}"> (x, scales)', opset, {"x": (1, 2, 7, 9)}, scales=scales)
    assert_same(model, {"x": random(1, 2, 7, 9)})


@pytest.mark.parametrize("opset", [7, 9])
def test_batch_normalization(opset: int) -> None:
    values = {name: np.abs(random(3)) + 0.5 for name in ("s", "b", "m", "v")}
    spatial = ", spatial = 1" if opset < 9 else ""
    model = old(f"y = BatchNormalization <epsilon = 0.01{spatial}> (x, s, b, m, v)", opset, **values)
    after = assert_same(model, {"x": random(2, 3, 4, 5)})
    assert len(after.graph.node[0].output) == 1


def test_batch_normalization_of_every_position() -> None:
    """ONNX Runtime has no such kernel any more, so the formula is compared."""
    shape = (3, 4, 5)
    scale, bias, mean = (random(*shape) for _ in range(3))
    variance = np.abs(random(*shape))
    values = {"s": scale, "b": bias, "m": mean, "v": variance}
    model = old("y = BatchNormalization <spatial = 0, epsilon = 0.01> (x, s, b, m, v)", 7, **values)
    prepare(model)
    x = random(2, *shape)
    expected = scale * (x - mean) / np.sqrt(variance + np.float32(0.01)) + bias
    np.testing.assert_allclose(computed(model, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)


def test_scatter_is_scatter_elements() -> None:
    indices = np.array([[0, 2, 1, 0, 1]], np.int64)
    model = old("y = Scatter <axis = 0> (x, i, u)", 9, {"x": (3, 5), "u": (1, 5)}, i=indices)
    after = assert_same(model, {"x": random(3, 5), "u": random(1, 5)})
    assert after.graph.node[0].op_type == "ScatterElements"


def test_roi_align_keeps_its_coordinates() -> None:
    rois, batches = np.array([[0.3, 0.6, 5.2, 4.1]], np.float32), np.array([0], np.int64)
    text = "y = RoiAlign <output_height = 2, output_width = 3, sampling_ratio = 2> (x, rois, batches)"
    model = old(text, 10, {"x": (1, 2, 8, 8)}, rois=rois, batches=batches)
    assert_same(model, {"x": random(1, 2, 8, 8)})


def test_bounds_have_the_type_of_what_they_bound() -> None:
    model = old("h = Cast <to = 10> (x) a = Pad <pads = [1, 1], value = 0.5> (h) "
                "c = Clip <min = 0.0, max = 0.75> (a) y = Cast <to = 1> (c)", 9, {"x": (6,)})  # fmt: skip
    after = assert_same(model, {"x": random(6)}, tolerance=5e-4)  # fused casts round otherwise
    halves = [t for t in after.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert len(halves) == 3


def test_bodies_are_rewritten_too() -> None:
    model = old(
        "c = Greater(s, zero) y = If (c) <then_branch = t () => (float p) "
        "{ q = Clip <min = 0.0> (x) p = Softmax <axis = 1> (q) }, "
        "else_branch = e () => (float r) { r = Pad <pads = [0, 0, 1, 0, 0, 0, -1, 0]> (x) }>",
        9,
        {"x": (2, 3, 4, 5), "s": ()},
        zero=np.zeros((), np.float32),
    )
    for sign in (-1, 1):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        assert_same(copy, {"x": random(2, 3, 4, 5), "s": np.array(sign, np.float32)})


def test_new_names_are_nobodys() -> None:
    model = old("a_max = Neg(x) a = Clip <max = 0.5> (a_max) b = Clip <max = 0.25> (a) y = Add(a, b)", 9)
    assert_same(model, {"x": random(2, 3, 4, 5)})


def test_every_operator_of_old_opsets_has_a_rule_or_needs_none() -> None:
    """Without one, an old node must be valid and the same now: attributes and inputs that are still there,
    and no default of an attribute that changed.
    """
    found = {schema.name for schema in defs.get_all_schemas_with_history() if schema.domain == ""}
    for name in sorted(found - RULES.keys()):
        for opset in range(OLDEST, NEWEST_OLD + 1):
            try:
                before, after = (defs.get_schema(name, version, "") for version in (opset, MODERN))
            except defs.SchemaError:
                continue
            assert not after.deprecated or before.deprecated, name
            assert before.attributes.keys() <= after.attributes.keys(), name
            for key, attribute in before.attributes.items():
                assert attribute.default_value == after.attributes[key].default_value, (name, key)
            assert len(before.inputs) <= len(after.inputs), name
            assert before.min_input >= after.min_input, name


def test_what_cannot_be_said_is_refused_by_name() -> None:
    scan = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["": 8]> g (float[1, 3, 2] x, float[1, 2] s) => (float a, float y) '
        "{ [step] a, y = Scan <num_scan_inputs = 1, body = b (float[2] i, float[2] j) => (float[2] k, float[2] l) "
        "{ k = Add(i, j) l = Identity(k) }> (, s, x) }"
    )
    with pytest.raises(ModelError, match="node 'step' is a Scan of opset 8"):
        prepare(scan)
    with pytest.raises(ModelError, match="opset 6 is older than 7"):
        prepare(old("y = Relu(x)", 6))


def test_opset_11_stays() -> None:
    model = old("y = Relu(x)", 11)
    assert not prepare(model).notes
    assert model.opset_import[0].version == 11
