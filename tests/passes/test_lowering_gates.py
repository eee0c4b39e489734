"""HardSwish and HardSigmoid in the ONNX Runtime lowering: an addition that saturates, and a product, on
integers.
"""

import json

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.placement import CANONICAL
from tests.support.int8 import Form
from tests.support.placement import kernels, lowered, network, output, quantized, relative

HEAD = "(float[N, 3, 12, 12] x) => (float[N, 8, 12, 12] y)"
SWISH = "{ a = Conv <pads = [1, 1, 1, 1]> (x, stem, b8)  h = HardSwish (a)  c = Conv (h, point, b8)  y = Relu (c) }"
EXCITE = """{ a = Conv <pads = [1, 1, 1, 1]> (x, stem, b8)  r = Relu (a)  p = GlobalAveragePool (r)  q = Conv (p, point, b8)
    g = HardSigmoid (q)  m = Mul (r, g)  c = Conv (m, point, b8)  y = Relu (c) }"""


@pytest.mark.parametrize("opset", [14, 17, 21, 24])
def test_hard_swish_is_computed_on_integers(opset: int) -> None:
    model = network(f"{HEAD} {SWISH}", opset)
    canonical, report = quantized(model)
    assert "HardSwish" in {edit.what.split()[0] for edit in report.edits}
    assert not report.skips
    result, _ = lowered(canonical)
    counts = kernels(result)
    assert (counts["QLinearConv"], counts["QLinearAdd"], counts["QLinearMul"]) == (1, 1, 1)
    assert not {"HardSigmoid", "HardSwish", "Mul", "Add"} & set(counts)
    assert relative(output(model), output(result)) < 0.03


@pytest.mark.parametrize("alpha, beta", [(0.2, 0.5), (1 / 6, 0.5), (0.5, 0.0), (0.5, -0.25), (1.5, 0.1)])
def test_every_slope_and_offset(alpha: float, beta: float) -> None:
    text = EXCITE.replace("HardSigmoid (", f"HardSigmoid <alpha = {alpha}, beta = {beta}> (")
    model = network(f"{HEAD} {text}")
    canonical, _ = quantized(model)
    result, _ = lowered(canonical)
    counts = kernels(result)
    assert counts["QLinearAdd"] == 1
    assert "HardSigmoid" not in counts
    assert relative(output(canonical), output(result)) < 0.03
    assert relative(output(model), output(result)) < 0.03


def test_a_gate_that_falls_or_is_read_twice_stays() -> None:
    falling = lowered(
        quantized(network(f"{HEAD} {EXCITE.replace('HardSigmoid (', 'HardSigmoid <alpha = -0.2> (')}"))[0]
    )[0]
    assert kernels(falling)["HardSigmoid"] == 1
    head = "(float[N, 3, 12, 12] x) => (float[N, 8, 12, 12] y, float[N, 8, 1, 1] g)"
    seen = lowered(quantized(network(f"{head} {EXCITE}"))[0])[0]
    assert kernels(seen)["HardSigmoid"] == 1


def test_lowering_twice_changes_nothing_more_and_the_gate_is_no_pair() -> None:
    once, _ = lowered(quantized(network(f"{HEAD} {SWISH}"))[0])
    again, _ = lowered(once)
    assert kernels(again) == kernels(once)
    np.testing.assert_array_equal(output(again), output(once))
    gate = next(node for node in Form(once).nodes if node.op_type == "Add")
    quantizer = next(node for node in Form(once).nodes if node.input[0] == gate.output[0])
    assert not [entry for entry in quantizer.metadata_props if entry.key == metadata.RANGE]


def test_the_canonical_form_keeps_hard_swish() -> None:
    model = network(f"{HEAD} {SWISH}")
    assert "HardSwish" in {node.op_type for node in quantized(model, CANONICAL)[0].graph.node}


def test_a_narrow_gate_keeps_its_resolution() -> None:
    """The gate's range is what calibration saw, not 0 to 1."""
    model = network(f"{HEAD} {EXCITE.replace('HardSigmoid (', 'HardSigmoid <beta = 0.1, alpha = 0.01> (')}")
    canonical, _ = quantized(model)
    form = Form(canonical)
    quantizer = next(node for node in form.nodes if node.op_type == "QuantizeLinear" and node.input[0] == "g")
    high = json.loads(next(entry.value for entry in quantizer.metadata_props if entry.key == metadata.RANGE))[
        1
    ]
    assert high < 0.2
    result = lowered(canonical)[0]
    after = Form(result)
    reader = next(
        node
        for node in after.nodes
        if node.op_type == "DequantizeLinear" and node.input[0] == quantizer.output[0]
    )
    assert after.constants[reader.input[1]] == pytest.approx(high / 255, rel=1e-5)
    assert relative(output(model), output(result)) < 0.03
    onnx.checker.check_model(result, full_check=True)
