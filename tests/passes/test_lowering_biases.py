"""Biases that make up for the canonical form's errors are made for ort's form, where that brings outputs nearer."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.passes.lowering.onnxruntime import Lowering
from onnx_lathe.passes.numerics.quantization.affine import signal_to_noise_db
from onnx_lathe.placement import CANONICAL, Placement
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.builders import build, random
from tests.support.int8 import Rows

BOTH = PLACEMENT | CANONICAL
"""What a request for ort and TensorRT quantizes, in a form that is TensorRT's."""
PROBES = 64


def samples(count: int, seed: int) -> np.ndarray:
    """Images whose channels hardly vary, but for one that makes all steps wide: rounding has a mean error."""
    rng = np.random.default_rng(seed)
    levels = np.array([0.131, 0.207, -0.118, 0.262, 0.093, -0.171], np.float32)[:, None, None]
    images = levels + 0.02 * rng.standard_normal((count, 6, 6, 6))
    images[:, 0] += rng.uniform(-1, 40, (count, 6, 6)) * (rng.random((count, 6, 6)) < 0.02)
    return images.astype(np.float32)


CALIBRATION, JUDGED = samples(PROBES, 1), samples(PROBES, 2)

TWO = """(float[N, 6, 6, 6] x) => (float[N, 8, 6, 6] y) {
    a = Conv (x, first)  l = LeakyRelu <alpha = 0.2> (a)  b = Conv (l, second)  m = LeakyRelu <alpha = 0.2> (b)
    y = Conv (m, third) }"""
LAST = "(float[N, 6, 6, 6] x) => (float[N, 8, 6, 6] y) { y = Conv (x, first) }"


def network(text: str) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    weights = {
        name: (0.5 * rng.standard_normal((8, channels, 1, 1))).astype(np.float32)
        for name, channels in (("first", 6), ("second", 8), ("third", 8))
        if name in text
    }
    return build(text, **weights)


class Nearness:
    """Compares with one network on the calibration samples, and remembers what it was asked."""

    def __init__(self, original: onnx.ModelProto) -> None:
        self.original = original

    def sqnr(self, model: onnx.ModelProto, plain: bool = False) -> float:
        return sqnr(self.original, model, CALIBRATION)


def sqnr(original: onnx.ModelProto, model: onnx.ModelProto, images: np.ndarray) -> float:
    wanted, found = (ort.run(ort.session(one), {"x": images})["y"] for one in (original, model))
    return signal_to_noise_db(wanted, found)


def context(placement: Placement, fidelity: Nearness | None = None) -> Context:
    calibrator = StreamingCalibrator(Rows(x=CALIBRATION))
    return Context(calibrator=calibrator, placement=placement, fidelity=fidelity)


def canonical(model: onnx.ModelProto, placement: Placement, correction: bool = True) -> onnx.ModelProto:
    int8 = configure(Int8, {"method": "minmax", "bias_correction": correction})
    return apply_pass(int8, model, context(placement))[0]


def lowered(model: onnx.ModelProto, fidelity: Nearness | None) -> tuple[onnx.ModelProto, PassReport]:
    return apply_pass(configure(Lowering, {}), model, context(PLACEMENT, fidelity))


def biases(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    return {
        node.output[0]: constants[node.input[2]]
        for node in model.graph.node
        if node.op_type == "Conv" and len(node.input) > 2
    }


@pytest.mark.parametrize("text", [TWO, LAST], ids=["chain", "float"])
def test_the_form_for_ort_is_not_less_exact_than_the_canonical_one(text: str) -> None:
    """`float`: the layer writes an output, so ort leaves it in float, where its bias is an error alone."""
    original = network(text)
    model = canonical(original, BOTH)
    before, wanted = (sqnr(original, one, JUDGED) for one in (lowered(model, None)[0], model))
    after, report = lowered(model, Nearness(original))
    assert before < wanted - 1  # the loss is there
    assert sqnr(original, after, JUDGED) > max(wanted, before + 3)
    assert sum("bias moved" in edit.what for edit in report.edits) == text.count("Conv")


def test_biases_that_are_right_for_ort_already_stay() -> None:
    original = network(TWO)
    model = canonical(original, PLACEMENT)
    after, report = lowered(model, Nearness(original))
    assert not any("bias moved" in edit.what for edit in report.edits)
    np.testing.assert_equal(biases(after), biases(lowered(model, None)[0]))


def test_biases_that_nothing_corrected_do_not_take_over_the_canonical_error() -> None:
    original = network(TWO)
    model = canonical(original, BOTH, correction=False)
    after, _ = lowered(model, Nearness(original))
    assert not biases(after)
    assert sqnr(original, after, JUDGED) > sqnr(original, model, JUDGED)


def test_without_calibration_data_biases_stay() -> None:
    original = network(TWO)
    model = canonical(original, BOTH)
    alone = replace(context(PLACEMENT, Nearness(original)), calibrator=None)
    after, _ = apply_pass(configure(Lowering, {}), model, alone)
    np.testing.assert_equal(biases(after), biases(lowered(model, None)[0]))


@pytest.mark.parametrize("op", ["Neg", "Relu"])
@pytest.mark.parametrize(
    "vector, shape, rank", [("[32]", "[1, 8]", 1), ("[4, 32]", "[4, 8]", 2), ("[2, 4, 32]", "[2, 4, 8]", 3)]
)
def test_a_bias_with_an_axis_more_keeps_the_rank_of_the_result(
    vector: str, shape: str, rank: int, op: str
) -> None:
    """The ReLU is out of the graph when ranks are asked for: it is the end of a range."""
    text = f"""(float{vector} x) => (float{shape} y) {{
        r = {op} (x)  q = QuantizeLinear (r, s, z)  d = DequantizeLinear (q, s, z)  v = DequantizeLinear <axis = 1> (w, ws, wz)
        p = MatMul (d, v)  y = Add (p, b) }}"""
    constants = {
        "s": np.float32(0.02),
        "z": np.int8(0),
        "ws": np.full(8, 0.01, np.float32),
        "wz": np.zeros(8, np.int8),
    }
    model = build(text, w=np.arange(256).astype(np.int8).reshape(32, 8), b=random(1, 8), **constants)
    written, _ = lowered(model, None)
    x = random(*[2, 4, 32][-rank:])
    wanted, found = (ort.run(ort.session(one, threads=1), {"x": x})["y"] for one in (model, written))
    assert found.shape == wanted.shape
    assert (op in {node.op_type for node in written.graph.node}) is (op == "Neg")
    np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
