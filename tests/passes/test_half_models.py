"""Models in float16 and bfloat16: every pass takes them, and gives them back in their own type."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnx_lathe import ModelError, PassReport, optimize
from onnx_lathe.optimizer.build import lower
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.float16.lifting import lift
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.running.evaluate import OutputComparer
from onnx_lathe.runtime.targets.core.registry import find as find_target
from tests.support.builders import build, random, run
from tests.support.int8 import Rows

HALF, BRAIN, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
NET = """({type}[N,4,10,10] x) => ({type}[N,12] y) {{
    a = Conv(x, w1, b1) n = BatchNormalization(a, scale, shift, mean, var) r = Relu(n)
    c = Conv(r, w2) s = Relu(c) p = GlobalAveragePool(s) f = Flatten(p) g = Gemm(f, w3, b3) m = MatMul(g, w4) y = Softmax(m)
}}"""
TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
X = random(4, 4, 10, 10)


def network(kind: str = "float16", opset: int = 21) -> onnx.ModelProto:
    values = {
        "w1": random(16, 4, 3, 3) / 4,
        "b1": random(16) / 4,
        "scale": np.abs(random(16)) + 0.5,
        "shift": random(16) / 4,
        "mean": random(16) / 4,
        "var": np.abs(random(16)) + 0.5,
        "w2": random(24, 16, 3, 3) / 8,
        "w3": random(24, 32) / 4,
        "b3": random(32) / 4,
        "w4": random(32, 12) / 4,
    }
    return build(
        NET.format(type=kind), opset, **{name: np.asarray(v, TYPES[kind]) for name, v in values.items()}
    )


def elements(model: onnx.ModelProto) -> set[int]:
    return {t.data_type for t in model.graph.initializer} & {HALF, BRAIN, FLOAT}


def apply(name: str, model: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, PassReport]:
    data = Rows(x=X.astype(np.float16))
    given = Context(calibrator=StreamingCalibrator(data), runner=OutputComparer(data, 8))
    after, report = apply_pass(configure(find(name), options), model, given)
    assert report.edits, report.skips
    contract.check_structure(model, after, name)
    return after, report


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    wanted, error = expected.astype(np.float64), expected.astype(np.float64) - found
    return float(10 * np.log10(np.square(wanted).sum() / max(np.square(error).sum(), 1e-30)))


PASSES = {
    "fold": ({}, 45.0),
    "prune": ({"sparsity": 0.3}, 10.0),
    "prune_nm": ({}, 3.0),
    "prune_channels": ({"sparsity": 0.2}, 3.0),
    "codebook": ({"bits": 6}, 20.0),
    "int8": ({}, 20.0),
    "int4": ({}, 8.0),
    "svd": ({"energy": 0.98}, 8.0),
    "tucker": ({"macs": 0.8, "multiple": 1}, 8.0),
    "equalize": ({"min_scale": 1.01}, 45.0),
}


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_takes_float16(name: str) -> None:
    model = network()
    options, floor = PASSES[name]
    after, _ = apply(name, model, **options)
    assert elements(after) == {HALF}
    assert not [node for node in after.graph.node if node.op_type == "Cast" and node.attribute[0].i == FLOAT]
    feeds = {"x": X.astype(np.float16)}
    assert sqnr(run(model, feeds)["y"], run(after, feeds)["y"]) > floor


def test_a_weight_that_nothing_touched_keeps_its_bits() -> None:
    model = network()
    after, _ = apply("prune", model, sparsity=0.5, layers={"*": 0.0, "w3": 0.5})
    before = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    now = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    assert [name for name in before if before[name].tobytes() != now[name].tobytes()] == ["w3"]
    kept = now["w3"] != 0
    np.testing.assert_array_equal(now["w3"][kept], before["w3"][kept])


def test_pairs_below_opset_19_raise_it() -> None:
    after, _ = apply("int8", network(opset=17))
    assert after.opset_import[0].version >= 19
    assert elements(after) == {HALF}


def test_what_was_float32_stays() -> None:
    model = build(
        """(float[2,32] x) => (float[2,64] y) {
            h = Cast<to=10>(x) a = MatMul(h, w1) c = Cast<to=1>(a) y = MatMul(c, w2)
        }""",
        w1=random(32, 64).astype(np.float16),
        w2=random(64, 64),
    )
    after, report = apply("codebook", model, bits=4)
    assert {edit.node for edit in report.edits} == {"MatMul_1", "MatMul_3"}
    kinds = {t.data_type: t.name for t in after.graph.initializer if t.data_type in (HALF, FLOAT)}
    assert set(kinds) == {HALF, FLOAT}
    inferred = onnx.shape_inference.infer_shapes(after, strict_mode=True).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    assert (types["w1"], types["a"], types["w2"]) == (HALF, HALF, FLOAT)


@pytest.mark.parametrize("name", ["prune", "codebook", "fold"])
def test_passes_take_bfloat16(name: str) -> None:
    model = network("bfloat16", 22)  # the first opset with Conv in bfloat16
    after, _ = apply(name, model, **PASSES[name][0])
    assert elements(after) == {BRAIN}
    outputs = [run(in_float32(one), {"x": X}) for one in (model, after)]
    first, second = (next(iter(values.values())) for values in outputs)
    assert sqnr(first, second) > 10


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The lifted model between the Casts at its ends."""
    graph = import_model(model)
    assert lift(graph) is not None
    (start,) = [node for node in graph.nodes if node.op == "Cast" and node.inputs[0] is graph.inputs[0]]
    end = graph.outputs[0].inputs[0]
    start.outputs[0].name, wide = "x", start.outputs[0]
    graph.inputs, graph.outputs = [wide], [end.inputs[0]]
    start.outputs.clear()
    end.outputs.clear()
    graph.cleanup()
    return export_model(graph)


def test_int8_of_a_half_model_is_lowered_for_onnx_runtime() -> None:
    model = network()
    quantized, _ = apply("int8", model)
    target = find_target("ort")()
    after, report = lower(target, target.Config(), quantized, Context())
    assert any("float32" in warning for warning in report.warnings)
    feeds = {"x": X.astype(np.float16)}
    assert run(after, feeds)["y"].dtype == np.float16
    assert sqnr(run(model, feeds)["y"], run(after, feeds)["y"]) > 20


def test_a_layer_that_tensorrt_gets_in_float_again_stays_in_half_precision() -> None:
    """Of few channels, it gains nothing from INT8; beside a float16 input its weight must be float16."""
    model = network()
    quantized, _ = apply("int8", model)
    target = find_target("tensorrt")()
    after, report = lower(target, target.Config(), quantized, Context())
    assert "its weight is float again" in [edit.what for edit in report.edits]
    assert elements(after) == {HALF}
    feeds = {"x": X.astype(np.float16)}
    assert sqnr(run(model, feeds)["y"], run(after, feeds)["y"]) > 20


def test_a_bfloat16_model_that_cannot_run_says_why(tmp_path: Path) -> None:
    path = tmp_path / "brain.onnx"
    onnx.save(network("bfloat16", 22), path)
    with pytest.raises(ModelError, match=r"the model is in bfloat16.*give it in float16 or float32"):
        optimize(path, "prune", out=tmp_path / "out")
