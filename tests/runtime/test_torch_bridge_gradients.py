"""Gradients of every differentiable operator against finite differences, in float64, at the points of the
forward cases.
"""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.support.operator_case import Case, build, floats
from tests.support.operator_cases import CASES

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import (  # noqa: E402
    GraphModule,
    registry,
)

WITHOUT_GRADIENT = {
    **dict.fromkeys(
        ("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"),
        "gives booleans",
    ),
    **dict.fromkeys(("IsInf", "IsNaN"), "gives booleans"),
    **dict.fromkeys(("ArgMax", "ArgMin", "NonZero"), "gives indices"),
    **dict.fromkeys(("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"), "takes integers"),
    **dict.fromkeys(
        ("Constant", "ConstantOfShape", "EyeLike", "Range", "Shape", "Size"),
        "does not depend on its input's values",
    ),
    "Hardmax": "is constant wherever it is differentiable",
    "QuantizeLinear": "is trained straight through, not by its gradient, which is 0: test_torch_bridge_quantized.py",
}
"""Operator -> why it has no gradient to check."""
ZERO = {"Ceil", "Floor", "Round", "Sign"}
"""Gradient 0 wherever they have one: compared all the same."""


NOT_TRAINED = {
    "BatchNormalization": (3, 4),
    "NegativeLogLikelihoodLoss": (2,),
    "SoftmaxCrossEntropyLoss": (2,),
}
"""Operator -> inputs that PyTorch gives no gradient: stored statistics, and the weight of each class."""


def double(value: np.ndarray | None) -> np.ndarray | None:
    return value if value is None or value.dtype != np.float32 else value.astype(np.float64)


def differentiated(item: Case) -> list[int]:
    """Positions of the float inputs whose gradient is checked: not those read as numbers (bounds, scales),
    nor constants of rank 0.
    """
    without = (*registry.find("", item.op, item.opset).numbers, *NOT_TRAINED.get(item.op, ()))
    values = [*item.inputs, *item.constants]
    return [
        position for position, value in enumerate(values)
        if value is not None and value.dtype == np.float32 and position not in without and (value.ndim > 0 or position < len(item.inputs))
    ]  # fmt: skip


def has_gradient(item: Case) -> bool:
    if item.op in WITHOUT_GRADIENT or item.opset > onnx.defs.onnx_opset_version():
        return False
    if item.op in ("Cast", "CastLike") and item.attributes.get("to", 0) != TensorProto.DOUBLE:
        return False
    return bool(differentiated(item))


SCALE = floats(3)
CHECKED = [item for item in CASES if has_gradient(item)] + [
    Case("CastLike", [floats(3, 4), floats(1)]),
    Case(
        "DequantizeLinear",
        [np.round(floats(2, 3, 4) * 9), np.abs(SCALE) + np.float32(0.1)],
        attributes={"axis": 1},
    ),
]


@pytest.mark.parametrize("item", CHECKED, ids=str)
def test_gradient_agrees_with_finite_differences(item: Case) -> None:
    """Of every float output for every float input, each projected on random directions
    (torch.autograd.gradcheck, fast mode).
    """
    positions, given = differentiated(item), len(item.inputs)
    as_numbers = registry.find("", item.op, item.opset).numbers
    constants = [
        value if given + index in as_numbers else double(value) for index, value in enumerate(item.constants)
    ]
    item = dataclasses.replace(item, inputs=[*map(double, item.inputs)], constants=constants)
    model = build(item)
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:  # shape inference knew no type, see `build`
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    stored = {f"c{position - given}" for position in positions if position >= given}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name in stored]:
        model.graph.initializer.remove(tensor)
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, TensorProto.DOUBLE, tensor.dims)
        )
    module = GraphModule(model)
    values = [*item.inputs, *item.constants]
    fed = [*range(given), *(position for position in positions if position >= given)]
    tensors = [
        torch.from_numpy(np.array(values[position])).requires_grad_(position in positions) for position in fed
    ]

    def outputs(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = module(*inputs)
        return tuple(
            result
            for result in (results if isinstance(results, tuple) else (results,))
            if result.dtype == torch.float64
        )

    assert outputs(*tensors)
    assert torch.autograd.gradcheck(outputs, tensors, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)


def test_gradients_of_trained_weights_agree_too() -> None:
    """A weight that the module holds gets the gradient that it would get as an input."""
    weight = floats(4, 3, 3, 3).astype(np.float64)
    item = Case("Conv", [floats(2, 3, 5, 5).astype(np.float64)], [weight], {"pads": [1, 1, 1, 1]})
    module = GraphModule(build(item))
    x = torch.from_numpy(item.inputs[0])
    name, parameter = next(iter(module.weights().items()))
    module(x).square().sum().backward()
    step = torch.zeros_like(parameter)
    step[1, 2, 0, 1] = 1e-5
    with torch.no_grad():
        sums = []
        for direction in (1, -1):
            parameter += direction * step
            sums.append(module(x).square().sum())
            parameter -= direction * step
    assert name == "c0"
    torch.testing.assert_close(parameter.grad[1, 2, 0, 1], (sums[0] - sums[1]) / 2e-5, rtol=1e-6, atol=1e-6)


def test_every_operator_is_checked_or_says_why_not() -> None:
    registered = {
        name
        for _, name in registry.operators()
        if registry.find("", name, onnx.defs.onnx_opset_version()) is not None
    }
    checked = {item.op for item in CHECKED}
    newer = {item.op for item in CASES if item.opset > onnx.defs.onnx_opset_version()}
    assert registered - newer - checked - WITHOUT_GRADIENT.keys() == set(), (
        "add a forward case of floats, or say why there is no gradient"
    )
    assert checked & WITHOUT_GRADIENT.keys() == set()
    assert WITHOUT_GRADIENT.keys() <= registered


@pytest.mark.parametrize("op", sorted(ZERO))
def test_steps_have_gradient_zero(op: str) -> None:
    x = torch.from_numpy(floats(3, 4)).requires_grad_()
    GraphModule(build(Case(op, [floats(3, 4)])))(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize(
    "op, attributes",
    [("ReduceL2", {}), ("LpNormalization", {}), ("LpPool", {"kernel_shape": [2]}), ("GlobalLpPool", {})],
)
def test_a_norm_of_zeros_has_a_finite_gradient(op: str, attributes: dict[str, object]) -> None:
    zeros = np.zeros((1, 2, 4), np.float32)
    x = torch.from_numpy(zeros).requires_grad_()
    GraphModule(build(Case(op, [zeros], attributes=attributes)))(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_query_that_sees_no_key_has_a_finite_gradient() -> None:
    parts = [floats(1, 1, 3, 4, seed=seed) for seed in range(3)]
    mask = np.array([[True, False, False], [False, False, False], [True, True, True]])
    if onnx.defs.onnx_opset_version() < 23:
        pytest.skip("this onnx has no Attention")
    tensors = [torch.from_numpy(part).requires_grad_() for part in parts]
    result = GraphModule(build(Case("Attention", [*parts, mask], opset=23)))(*tensors, torch.from_numpy(mask))
    result.sum().backward()
    assert torch.equal(result[0, 0, 1], torch.zeros(4))
    assert all(torch.isfinite(tensor.grad).all() for tensor in tensors)
