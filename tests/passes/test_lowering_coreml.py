"""What the lowering for Core ML changes, and what it leaves as it is."""

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.lowering.coreml import Lowering
from tests.support.builders import build, random, run

TEXT = """(float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y) {
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
    w = DequantizeLinear <axis = 0> (codes, scale) c = Conv(d, w) y = Relu(c)
}"""


def lowered(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    graph = import_model(model)
    Lowering(Lowering.Config(**options)).apply(graph, Context())  # type: ignore[arg-type]
    made = export_model(graph)
    onnx.checker.check_model(made, full_check=True)
    return made


def quantized(ours: bool = True) -> onnx.ModelProto:
    codes = np.random.default_rng(0).integers(-127, 128, (3, 2, 1, 1)).astype(np.int8)
    model = build(TEXT, codes=codes, scale=np.abs(random(3)), s=np.float32(0.01), z=np.int8(0))
    if ours:
        entry = model.graph.node[0].metadata_props.add()
        entry.key, entry.value = metadata.RANGE, "[-1.27, 1.27]"
    return model


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_pairs_and_weights_stay() -> None:
    assert sorted(ops(lowered(quantized()))) == [
        "Conv",
        "DequantizeLinear",
        "DequantizeLinear",
        "QuantizeLinear",
        "Relu",
    ]


def test_without_pairs_activations_are_float_and_the_weight_stays() -> None:
    made = lowered(quantized(), pairs=False)
    assert ops(made) == ["DequantizeLinear", "Conv", "Relu"]
    conv = next(node for node in made.graph.node if node.op_type == "Conv")
    assert conv.input[0] == "x"


def test_another_tools_pair_leaves_the_clip_that_it_is() -> None:
    """Exporters leave a ReLU out in front of a quantizer that does its work."""
    model = quantized(ours=False)
    made = lowered(model, pairs=False)
    assert sorted(ops(made)) == ["Clip", "Conv", "DequantizeLinear", "Relu"]
    feeds = {"x": random(1, 2, 4, 4) * 3}
    got, wanted = run(made, feeds)["y"], run(model, feeds)["y"]
    np.testing.assert_allclose(got, wanted, atol=0.05 * np.abs(wanted).max())


def test_half_precision_is_lifted() -> None:
    text = "(float16[1, 4] x) => (float16[1, 4] y) { y = MatMul(x, w) }"
    made = lowered(build(text, w=random(4, 4).astype(np.float16)))
    assert "float16" not in {
        onnx.helper.tensor_dtype_to_np_dtype(one.data_type).name for one in made.graph.initializer
    }


def test_a_known_branch_is_taken() -> None:
    text = """(float[1, 4] x) => (float[1, 4] y) {
        y = If (c) <then_branch = one () => (float[1, 4] a) { a = Relu(x) }, else_branch = two () => (float[1, 4] b) { b = Neg(x) }>
    }"""
    assert ops(lowered(build(text, c=np.array(True)), branches={"c": True}))[0] == "Relu"
