"""What int8 measures, it measures as the targets of the request compute it."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.quantization.simulation import as_computed
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.passes.numerics.quantization.affine import signal_to_noise_db
from onnx_lathe.placement import CANONICAL, Placement
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.int8 import Form, Rows
from tests.support.placement import IMAGES, MOBILE, lowered, network, quantized


def output(model: onnx.ModelProto) -> np.ndarray:
    return ort.run(ort.session(model, integer=False), {"x": IMAGES})["y"]


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def test_the_simulation_computes_what_the_lowered_network_does() -> None:
    canonical, _ = quantized(network(MOBILE))
    simulated, wanted = as_computed(copied(canonical), PLACEMENT), output(lowered(canonical)[0])
    onnx.checker.check_model(simulated, full_check=True)
    assert signal_to_noise_db(wanted, output(simulated)) > 80
    assert signal_to_noise_db(wanted, output(canonical)) < 45


def test_scales_that_training_has_changed_are_simulated_as_the_lowering_writes_them() -> None:
    canonical, _ = quantized(network(MOBILE))
    scales = {node.input[1] for node in canonical.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in canonical.graph.initializer:
        if tensor.name in scales:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(
                    np.float32(0.7) * onnx.numpy_helper.to_array(tensor), tensor.name
                )
            )
    simulated, wanted = as_computed(copied(canonical), PLACEMENT), output(lowered(canonical)[0])
    assert signal_to_noise_db(wanted, output(simulated)) > 80


def test_what_was_lowered_before_stays() -> None:
    before, _ = lowered(quantized(network(MOBILE))[0])
    assert as_computed(copied(before), PLACEMENT) == before


def test_for_the_canonical_form_nothing_changes() -> None:
    canonical, _ = quantized(network(MOBILE))
    before = canonical.SerializeToString()
    assert as_computed(canonical, CANONICAL).SerializeToString() == before
    assert as_computed(canonical, PLACEMENT | CANONICAL).SerializeToString() == before


@pytest.mark.slow
@pytest.mark.parametrize("unsigned", [True, False])
def test_biases_make_up_for_the_errors_of_the_form_that_is_computed(unsigned: bool) -> None:
    """The gain that the report promises is the one in the lowered network if, and only if, the lowering's
    form was measured.
    """
    model, placement = network(MOBILE), dataclasses.replace(PLACEMENT, unsigned=unsigned)
    plain, corrected = (quantized(model, placement, bias_correction=on) for on in (False, True))
    before, after = (
        signal_to_noise_db(output(model), output(lowered(one)[0])) for one, _ in (plain, corrected)
    )
    promised = corrected[1].metrics["bias_correction_gain_db"]
    assert (abs(after - before - promised) < 0.3) == unsigned


class Recorder:
    """Remembers the element types of what QuantizeLinear writes in the candidates."""

    def __init__(self) -> None:
        self.found: list[set[np.dtype]] = []

    def compare(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> Mapping[str, float]:
        form = Form(candidate)
        self.found.append(
            {form.constants[node.input[2]].dtype for node in form.nodes if node.op_type == "QuantizeLinear"}
        )
        return {"sqnr": 30.0}


@pytest.mark.parametrize("placement, kind", [(PLACEMENT, np.uint8), (CANONICAL, np.int8)])
def test_layers_are_compared_in_the_form_that_is_computed(placement: Placement, kind: type) -> None:
    runner = Recorder()
    context = Context(calibrator=StreamingCalibrator(Rows(x=IMAGES)), runner=runner, placement=placement)
    canonical, _ = apply_pass(
        configure(Int8, {"sensitivity": True, "min_sqnr": 20.0}), network(MOBILE), context
    )
    assert len(runner.found) > 5
    assert all(types == {np.dtype(kind)} for types in runner.found)
    assert {np.dtype(np.int8)} == {
        Form(canonical).constants[node.input[2]].dtype
        for node in Form(canonical).nodes
        if node.op_type == "QuantizeLinear"
    }
