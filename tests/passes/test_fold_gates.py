"""fold: HardSigmoid and HardSwish, spelled as additions, Clips and divisions, become HardSigmoid."""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.fold.fold import Fold
from onnx_lathe.passes.graph.model import export_model, import_model
from tests.support.builders import build, run

NUMBERS = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6), "sixth": np.float32(1 / 6)}
X = (np.random.default_rng(0).standard_normal((2, 3, 5, 5)) * 4).astype(np.float32)
HEAD = "(float[N, 3, 5, 5] x) => (float[N, 3, 5, 5] y)"


def folded(
    text: str, head: str = HEAD, opset: int = 17, **numbers: np.ndarray
) -> tuple[onnx.ModelProto, PassReport, onnx.ModelProto]:
    model = build(f"{head} {{ {text} }}", opset, **(NUMBERS | numbers))
    graph = import_model(model)
    report = configure(Fold, {}).apply(graph, Context())
    result = export_model(graph)
    onnx.checker.check_model(result, full_check=True)
    return result, report, model


def ops(model: onnx.ModelProto) -> list[str]:
    return sorted(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("opset", [11, 14, 21])
@pytest.mark.parametrize(
    "text, found",
    [
        (
            "a = Add (x, three)  c = Clip (a, zero, six)  m = Mul (x, c)  y = Div (m, six)",
            ["HardSigmoid", "Mul"],
        ),
        (
            "a = Add (three, x)  c = Clip (a, zero, six)  m = Mul (c, x)  y = Mul (sixth, m)",
            ["HardSigmoid", "Mul"],
        ),
        (
            "a = Add (x, three)  c = Clip (a, zero, six)  d = Div (c, six)  y = Mul (d, x)",
            ["HardSigmoid", "Mul"],
        ),
        ("a = Add (x, three)  c = Clip (a, zero, six)  y = Mul (c, sixth)", ["HardSigmoid"]),
        (
            "r = Relu (x)  a = Add (x, three)  c = Clip (a, zero, six)  m = Mul (r, c)  y = Div (m, six)",
            ["HardSigmoid", "Mul", "Relu"],
        ),
    ],
)
def test_gates_become_hard_sigmoids(text: str, found: list[str], opset: int) -> None:
    result, report, model = folded(text, opset=opset)
    assert ops(result) == found
    assert report.edits[0].what.startswith("became a HardSigmoid")
    np.testing.assert_allclose(run(result, {"x": X})["y"], run(model, {"x": X})["y"], rtol=1e-6, atol=1e-6)


def test_the_addition_is_not_merged_into_the_layer_in_front() -> None:
    text = "h = Conv (x, w)  a = Add (h, three)  c = Clip (a, zero, six)  d = Div (c, six)  y = Mul (d, x)"
    result, _, model = folded(text, w=np.ones((3, 3, 1, 1), np.float32))
    assert ops(result) == ["Conv", "HardSigmoid", "Mul"]
    np.testing.assert_allclose(run(result, {"x": X})["y"], run(model, {"x": X})["y"], rtol=1e-6, atol=1e-6)


GATE = "a = Add (x, three)  c = Clip (a, zero, six)  m = Mul (x, c)  y = Div (m, six)"


@pytest.mark.parametrize(
    "text, numbers",
    [
        (GATE, {"six": np.float32(5), "zero": np.float32(1)}),  # not from zero
        ("a = Add (x, three)  c = Clip (a, zero, six)  m = Mul (x, c)  y = Div (m, three)", {}),  # ends at 2
        ("a = Add (x, three)  c = Clip (a, zero, six)  m = Mul (x, c)  y = Div (six, m)", {}),
        (GATE, {"three": np.ones((3, 1, 1), np.float32)}),
        (GATE, {"three": np.ones((1, 1, 1, 1, 1), np.float32)}),  # a dimension more
        (GATE, {"six": np.float32(-6)}),
        (
            "a = Add (x, three)  c = Clip (a, zero, six)  m = Mul (a, c)  y = Div (m, six)",
            {},
        ),  # a has another reader
        ("a = Sub (x, three)  c = Clip (a, zero, six)  m = Mul (x, c)  y = Div (m, six)", {}),
    ],
)
def test_what_is_no_gate_stays(text: str, numbers: dict[str, np.ndarray]) -> None:
    head = (
        HEAD
        if numbers.get("three", np.float32(0)).ndim < 5
        else HEAD.replace("=> (float[N, 3, 5, 5]", "=> (float[A, B, C, D, E]")
    )
    result, report, model = folded(text, head, **numbers)
    assert ops(result) == ops(model)
    assert not report.edits


def test_a_step_that_is_an_output_stays() -> None:
    head = "(float[N, 3, 5, 5] x) => (float[N, 3, 5, 5] y, float[N, 3, 5, 5] c)"
    result, _, model = folded(GATE, head)
    assert ops(result) == ops(model)


def test_half_precision_stays() -> None:
    """ONNX Runtime has no HardSigmoid for it on the CPU."""
    half = {name: value.astype(np.float16) for name, value in NUMBERS.items()}
    result, _, model = folded(GATE, HEAD.replace("float", "float16"), **half)
    assert ops(result) == ops(model)


def test_below_opset_7_gates_stay() -> None:
    text = "a = Add <broadcast = 1> (x, three)  c = Clip <min = 0.0, max = 6.0> (a)  m = Mul (x, c)  y = Div <broadcast = 1> (m, six)"
    result, _, model = folded(text, opset=6)
    assert ops(result) == ops(model)
