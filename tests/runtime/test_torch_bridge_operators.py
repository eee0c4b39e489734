"""Every operator of the bridge against ONNX Runtime (against onnx.reference where ONNX Runtime lacks the
operator).
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.operator_case import Case, build, case, expected, floats, positive
from tests.support.operator_cases import CASES, LAYOUT

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import (  # noqa: E402
    GraphModule,
    registry,
    unsupported,
)


@pytest.mark.parametrize("item", CASES, ids=str)
def test_operator_agrees_with_onnx_runtime(item: Case) -> None:
    if item.opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"this onnx ends at opset {onnx.defs.onnx_opset_version()}")
    model = build(item)
    wanted = expected(item, model)
    results = GraphModule(model)(*[torch.from_numpy(np.array(value)) for value in item.inputs])
    results = results if isinstance(results, tuple) else (results,)
    assert len(results) == len(wanted)
    for result, want in zip(results, wanted, strict=True):
        assert tuple(result.shape) == np.shape(want)
        assert result.numpy(force=True).dtype == want.dtype
        scale = max(1.0, float(np.abs(want.astype(np.float64)).max(initial=0))) if want.dtype != bool else 1.0
        np.testing.assert_allclose(result.numpy(force=True), want, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize(
    "op, other, attributes, expected",
    [
        ("Add", floats(3), {"broadcast": 1, "axis": 1}, LAYOUT[:, :3] + floats(3)[:, None, None]),
        ("Sub", floats(6), {"broadcast": 1, "axis": -2}, LAYOUT[:, :3] - floats(6)[:, None]),
        ("Mul", floats(3, 6), {"broadcast": 1, "axis": 1}, LAYOUT[:, :3] * floats(3, 6)[:, :, None]),
        ("Div", positive(5), {"broadcast": 1}, LAYOUT[:, :3] / positive(5)),
        (
            "Greater",
            positive(2),
            {"broadcast": 1, "axis": 0},
            LAYOUT[:, :3] > positive(2)[:, None, None, None],
        ),
        (
            "PRelu",
            floats(3),
            {},
            np.where(LAYOUT[:, :3] < 0, LAYOUT[:, :3] * floats(3)[:, None, None], LAYOUT[:, :3]),
        ),
    ],
)
def test_before_opset_7_an_axis_aligns_the_second_operand(
    op: str, other: np.ndarray, attributes: dict, expected: np.ndarray
) -> None:
    """ONNX Runtime does not run these versions."""
    result = GraphModule(build(case(op, LAYOUT[:, :3], constants=[other], opset=6, **attributes)))(
        torch.from_numpy(LAYOUT[:, :3])
    )
    np.testing.assert_allclose(result.numpy(force=True), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "op, attributes, what",
    [
        ("Resize", {"mode": "area"}, "with mode area"),
        ("Resize", {"coordinate_transformation_mode": "polar"}, "with coordinates polar"),
        ("Resize", {"antialias": 1}, "with antialias and mode nearest"),
        ("Resize", {"exclude_outside": 1, "mode": "linear"}, "with exclude_outside and mode linear"),
        ("MaxPool", {"kernel_shape": [2] * 4}, "in 4 dimensions"),
        ("Cast", {"to": TensorProto.FLOAT8E5M2}, "FLOAT8E5M2"),
        ("ScatterElements", {"reduction": "mean"}, "with reduction mean"),
    ],
)
def test_what_has_no_counterpart_is_refused_before_anything_runs(
    op: str, attributes: dict, what: str
) -> None:
    node = helper.make_node(op, ["x"], ["y"], name="node", **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 6) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 18)]
    )
    assert unsupported(model) == [("node", f"{op} {what}", 18, "")]


def test_squares_beyond_half_precision_do_not_overflow() -> None:
    x, scale = 400 * floats(2, 8), positive(8)
    if onnx.defs.onnx_opset_version() < 23:
        pytest.skip("this onnx has no RMSNormalization")
    model = build(
        case("RMSNormalization", x.astype(np.float16), constants=[scale.astype(np.float16)], opset=23)
    )
    result = GraphModule(model)(torch.from_numpy(x.astype(np.float16)))
    want = x / np.sqrt(np.square(x).mean(1, keepdims=True)) * scale
    np.testing.assert_allclose(result.numpy(force=True).astype(np.float32), want, rtol=5e-3)


def test_cubic_sampling_needs_a_declared_rank() -> None:
    image, grid = floats(2, 3, 5, 4), floats(2, 3, 4, 2)
    model = build(case("GridSample", image, grid, mode="cubic", opset=20))
    assert unsupported(model) == []
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert [item.op for item in unsupported(model)] == [
        "GridSample cubic, unless the model declares its input to have four dimensions"
    ]


def test_every_registered_operator_has_a_case() -> None:
    assert {name for _, name in registry.operators()} == {item.op for item in CASES}
