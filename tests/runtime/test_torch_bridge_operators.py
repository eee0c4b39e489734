"""Every operator of the bridge against ONNX Runtime (against onnx.reference where ONNX Runtime lacks the operator)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

torch = pytest.importorskip("torch")
from runtime.torch_bridge import GraphModule, registry  # noqa: E402

I64 = np.int64


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(floats(*shape)) + np.float32(0.1)


def ints(*values: int) -> np.ndarray:
    return np.array(values, I64)


@dataclass
class Case:
    """One node. `inputs` are fed; `constants` follow them as initializers (None is an omitted input)."""

    op: str
    inputs: Sequence[np.ndarray]
    constants: Sequence[np.ndarray | None] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 21
    outputs: int = 1
    reference: bool = False

    def __str__(self) -> str:
        detail = "-".join(f"{key}={value}" for key, value in self.attributes.items() if not isinstance(value, TensorProto))
        return f"{self.op}-{self.opset}-{'x'.join(map(str, self.inputs[0].shape)) if self.inputs else ''}-{detail}"[:90]


def case(op: str, *inputs: np.ndarray, constants: Sequence[np.ndarray | None] = (), opset: int = 21, **attributes: Any) -> Case:
    return Case(op, inputs, constants, attributes, opset)


def build(item: Case) -> onnx.ModelProto:
    fed = [f"x{index}" for index in range(len(item.inputs))]
    stored = [f"c{index}" if value is not None else "" for index, value in enumerate(item.constants)]
    node = helper.make_node(item.op, fed + stored, [f"y{index}" for index in range(item.outputs)], name="node", **item.attributes)
    typed = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)
        for name, x in zip(fed, item.inputs, strict=True)
    ]
    graph = helper.make_graph(
        [node], "case", typed, [onnx.ValueInfoProto(name=name) for name in node.output],
        [numpy_helper.from_array(value, name) for value, name in zip(item.constants, stored, strict=True) if value is not None],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", item.opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    for value in inferred.graph.output:
        if not value.type.tensor_type.elem_type:  # shape inference knows nothing of operators that are functions
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return inferred


def expected(item: Case, model: onnx.ModelProto) -> list[np.ndarray]:
    feeds = {f"x{index}": value for index, value in enumerate(item.inputs)}
    if item.reference:
        return ReferenceEvaluator(model).run(None, feeds)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


REDUCTIONS = [f"Reduce{name}" for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")]
UNARY = "Abs Atan Ceil Cos Erf Exp Floor Identity Neg Relu Round Sigmoid Sign Sin Sinh Softplus Softsign Tan Tanh Asinh Elu Celu Selu"
LAYOUT = floats(2, 4, 6, 5)
IMAGE = floats(2, 4, 9, 8)
KERNEL = floats(6, 4, 3, 3, seed=1)
STRETCH = np.array([1, 1, 2, 1.7], np.float32)
SCALES = np.array([0.02, 0.05, 0.01, 0.03], np.float32)

CASES = [
    *[case(op, floats(3, 4) * 2) for op in UNARY.split()],
    *[case(op, positive(3, 4)) for op in ("Log", "Sqrt", "Reciprocal")],
    *[case(op, np.tanh(floats(3, 4))) for op in ("Acos", "Asin", "Atanh")],
    case("Acosh", positive(3, 4) + 1),
    case("Cosh", floats(3, 4)),
    case("Not", floats(3) > 0),
    case("BitwiseNot", np.arange(4, dtype=np.int32)),
    case("IsNaN", np.array([1, np.nan], np.float32)),
    *[case("IsInf", np.array([1, np.inf, -np.inf], np.float32), detect_negative=n, detect_positive=p) for n in (0, 1) for p in (0, 1)],
    case("HardSwish", floats(3, 4) * 4),
    case("HardSigmoid", floats(3, 4) * 4),
    case("HardSigmoid", floats(3, 4) * 4, alpha=1 / 6, beta=0.5),
    case("Mish", floats(3, 4)),
    case("Gelu", floats(3, 4)),
    case("Gelu", floats(3, 4), approximate="tanh"),
    Case("Swish", [floats(3, 4)], attributes={"alpha": 1.5}, opset=24, reference=True),
    case("LeakyRelu", floats(3, 4)),
    case("LeakyRelu", floats(3, 4), alpha=0.2),
    case("ThresholdedRelu", floats(3, 4), alpha=0.3),
    case("Elu", floats(3, 4), alpha=0.7),
    case("Celu", floats(3, 4), alpha=0.7),
    case("PRelu", IMAGE, constants=[floats(4, 1, 1)]),
    case("Clip", floats(3, 4), constants=[np.float32(-0.5), np.float32(0.5)]),
    case("Clip", floats(3, 4), constants=[None, np.float32(0.5)]),
    case("Clip", floats(3, 4), constants=[np.float32(0.0)], opset=11),
    case("Clip", floats(3, 4)),
    case("Softmax", floats(2, 3, 4)),
    case("Softmax", floats(2, 3, 4), axis=1),
    case("Softmax", floats(2, 3, 4), opset=11),
    case("Softmax", floats(2, 3, 4), opset=11, axis=0),
    case("Softmax", floats(2, 3, 4), opset=11, axis=-1),
    case("LogSoftmax", floats(2, 3, 4), axis=-2),
    case("LogSoftmax", floats(2, 3, 4), opset=12),
    *[case(op, floats(2, 3, 4), floats(3, 1, seed=1)) for op in ("Add", "Sub", "Mul", "Div", "Greater", "Less", "GreaterOrEqual")],
    *[case(op, np.arange(-4, 4), np.full(8, 3)) for op in ("Add", "Sub", "Mul", "Div", "Mod", "Equal", "LessOrEqual")],
    case("Mod", np.arange(-4, 4), np.full(8, 3), fmod=1),
    *[case(op, floats(4) > 0, floats(4, seed=1) > 0) for op in ("And", "Or", "Xor")],
    case("Pow", positive(3, 4), constants=[np.float32(2)]),
    case("Pow", positive(3, 4), floats(4)),
    case("Pow", np.arange(4), constants=[np.float32(2)]),
    *[case(op, floats(3, 4), floats(4, seed=1), floats(3, 1, seed=2)) for op in ("Max", "Min", "Sum", "Mean")],
    case("Where", floats(3, 4) > 0, floats(3, 4), floats(4, seed=1)),
    case("CumSum", floats(3, 4), constants=[ints(1).reshape(())]),
    # convolution
    case("Conv", IMAGE, constants=[KERNEL, floats(6)]),
    case("Conv", IMAGE, constants=[KERNEL], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
    case("Conv", IMAGE, constants=[KERNEL, floats(6)], pads=[0, 1, 2, 0], dilations=[2, 1]),
    case("Conv", IMAGE, constants=[floats(6, 2, 3, 3)], group=2),
    case("Conv", IMAGE, constants=[floats(4, 1, 3, 3)], group=4, auto_pad="VALID"),
    case("Conv", IMAGE, constants=[KERNEL], auto_pad="SAME_UPPER", strides=[2, 3]),
    case("Conv", IMAGE, constants=[floats(6, 4, 2, 4)], auto_pad="SAME_LOWER", strides=[2, 2]),
    case("Conv", floats(2, 3, 11), constants=[floats(5, 3, 4)], pads=[2, 1], strides=[3]),
    case("Conv", floats(1, 2, 5, 6, 7), constants=[floats(3, 2, 2, 3, 3), floats(3)], pads=[1, 1, 0, 1, 0, 0]),
    case("Conv", floats(1, 2, 5, 6, 7), constants=[floats(3, 2, 2, 3, 3), floats(3)], opset=11),
    case("ConvTranspose", IMAGE, constants=[floats(4, 3, 3, 3), floats(3)]),
    case("ConvTranspose", IMAGE, constants=[floats(4, 3, 4, 4)], strides=[2, 2], pads=[1, 0, 2, 1]),
    case("ConvTranspose", IMAGE, constants=[floats(4, 2, 3, 3)], group=2, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    case("ConvTranspose", IMAGE, constants=[floats(4, 3, 3, 3)], strides=[2, 2], dilations=[2, 1], auto_pad="SAME_UPPER"),
    case("ConvTranspose", IMAGE, constants=[floats(4, 3, 3, 3)], strides=[2, 2], auto_pad="SAME_LOWER"),
    case("ConvTranspose", IMAGE, constants=[floats(4, 3, 3, 3)], strides=[2, 2], output_shape=[18, 16]),
    case("ConvTranspose", floats(2, 3, 7), constants=[floats(3, 2, 4)], strides=[3], pads=[1, 2]),
    case("ConvTranspose", floats(1, 2, 3, 4, 3), constants=[floats(2, 2, 2, 2, 2)], strides=[2, 2, 2]),
    # pooling
    case("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 2, 1]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[2, 2, 2, 2]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1, pads=[0, 0, 1, 1]),
    case("MaxPool", IMAGE, kernel_shape=[3, 2], dilations=[2, 3]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("MaxPool", IMAGE, kernel_shape=[4, 3], strides=[3, 2], auto_pad="SAME_LOWER"),
    case("MaxPool", floats(2, 3, 11), kernel_shape=[3], strides=[2]),
    case("MaxPool", floats(2, 3, 5, 6, 7), kernel_shape=[2, 3, 2]),
    case("AveragePool", IMAGE, kernel_shape=[2, 2]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[0, 1, 2, 1], strides=[2, 2]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[0, 1, 2, 1], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1, pads=[1, 1, 1, 1]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1, pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("AveragePool", IMAGE, kernel_shape=[2, 3], dilations=[3, 2], pads=[1, 1, 1, 1]),
    case("AveragePool", floats(2, 3, 11), kernel_shape=[3], strides=[2], opset=11),
    case("AveragePool", floats(2, 3, 5, 6, 7), kernel_shape=[2, 3, 2]),
    case("GlobalAveragePool", IMAGE),
    case("GlobalMaxPool", IMAGE),
    # normalization
    case("BatchNormalization", IMAGE, constants=[floats(4), floats(4, seed=1), floats(4, seed=2), positive(4)], epsilon=1e-3),
    case("BatchNormalization", floats(5, 4), constants=[floats(4), floats(4, seed=1), floats(4, seed=2), positive(4)], opset=11),
    case("InstanceNormalization", IMAGE, constants=[floats(4), floats(4, seed=1)]),
    case("LayerNormalization", floats(2, 3, 8), constants=[floats(8), floats(8, seed=1)]),
    case("LayerNormalization", floats(2, 3, 8), constants=[floats(3, 8)], axis=1, epsilon=1e-2),
    case("GroupNormalization", IMAGE, constants=[floats(4), floats(4, seed=1)], num_groups=2),
    case("GroupNormalization", IMAGE, constants=[floats(2), floats(2, seed=1)], num_groups=2, opset=18),
    Case("RMSNormalization", [floats(2, 3, 8)], [floats(8)], opset=23, reference=True),
    case("LRN", floats(2, 7, 4, 4), size=5, alpha=0.1, beta=0.6, bias=2.0),
    case("LRN", floats(2, 7, 4, 4), size=3),
    case("LpNormalization", floats(3, 4), p=1, axis=0),
    case("LpNormalization", floats(3, 4)),
    case("Dropout", floats(3, 4)),
    # products
    case("MatMul", floats(2, 3, 4), constants=[floats(4, 5)]),
    case("MatMul", floats(2, 3, 4), floats(2, 4, 5)),
    case("Gemm", floats(3, 4), constants=[floats(4, 5), floats(5)]),
    case("Gemm", floats(3, 4), constants=[floats(5, 4)], transB=1),
    case("Gemm", floats(4, 3), constants=[floats(5, 4), floats(3, 1)], transA=1, transB=1, alpha=0.5, beta=2.0),
    case("Gemm", floats(3, 4), constants=[floats(4, 5)], alpha=0.5),
    case("Gemm", floats(3, 4), constants=[floats(4, 5), np.float32(3)]),
    case("Einsum", floats(2, 3, 4), floats(2, 4, 5), equation="bij,bjk->bik"),
    # moving values
    case("Reshape", LAYOUT, constants=[ints(0, -1, 5)]),
    case("Reshape", LAYOUT, constants=[ints(-1, 12)], allowzero=1),
    *[case("Flatten", LAYOUT, axis=axis) for axis in (0, 1, 2, 4, -1)],
    case("Transpose", LAYOUT),
    case("Transpose", LAYOUT, perm=[0, 2, 3, 1]),
    case("Squeeze", floats(1, 3, 1)),
    case("Squeeze", floats(1, 3, 1), constants=[ints(-1)]),
    case("Squeeze", floats(1, 3, 1), opset=11, axes=[0]),
    case("Unsqueeze", floats(3, 4), constants=[ints(-1, 0)]),
    case("Unsqueeze", floats(3, 4), opset=11, axes=[1, 3]),
    case("Concat", floats(2, 3), floats(2, 4), axis=-1),
    Case("Split", [floats(2, 7)], [ints(3, 4)], {"axis": 1}, outputs=2),
    Case("Split", [floats(2, 7)], attributes={"axis": 1, "num_outputs": 3}, outputs=3),
    Case("Split", [floats(2, 6)], attributes={"axis": -1, "split": [2, 4]}, opset=11, outputs=2),
    Case("Split", [floats(2, 6)], attributes={"axis": 1}, opset=13, outputs=3),
    case("Slice", LAYOUT, constants=[ints(1, -3), ints(9, -1), ints(1, -1)]),
    case("Slice", LAYOUT, constants=[ints(-1, 1), ints(-100, 5), ints(2, 3), ints(-2, 2)]),
    case("Slice", LAYOUT, constants=[ints(0, 1), ints(1, 3)]),
    case("Pad", LAYOUT, constants=[ints(0, 0, 1, 2, 0, 0, 0, -1), np.float32(1.5)]),
    case("Pad", LAYOUT, constants=[ints(1, 2), None, ints(-1)]),
    *[case("Pad", LAYOUT, constants=[ints(0, 1, 2, 2, 0, 2, 1, 0)], mode=mode) for mode in ("reflect", "edge", "wrap")],
    case("Expand", floats(3, 1), constants=[ints(2, 1, 4)]),
    case("Tile", floats(2, 3), constants=[ints(2, 3)]),
    case("DepthToSpace", floats(1, 8, 2, 3), blocksize=2),
    case("DepthToSpace", floats(1, 8, 2, 3), blocksize=2, mode="CRD"),
    case("SpaceToDepth", floats(1, 2, 4, 6), blocksize=2),
    # indices
    case("Gather", floats(5, 3), constants=[ints(4, 0, 2).reshape(3, 1)]),
    case("Gather", floats(5, 3), constants=[ints(-1, 0)], axis=1),
    case("Gather", floats(5, 3), ints(-1, 4), axis=0),
    case("Gather", floats(5, 3), constants=[ints(2).reshape(())], axis=-1),
    case("GatherElements", floats(3, 4), constants=[ints(0, -1, 2).reshape(3, 1)], axis=1),
    case("GatherND", floats(3, 4), constants=[ints(0, 1, 2, -1).reshape(2, 2)]),
    case("ScatterElements", floats(3, 4), constants=[ints(0, -1, 2).reshape(3, 1), floats(3, 1)], axis=1),
    case("ScatterND", floats(3, 4), constants=[ints(0, 2).reshape(2, 1), floats(2, 4)]),
    Case("TopK", [floats(3, 5)], [ints(2)], outputs=2),
    Case("TopK", [floats(3, 5)], [ints(2)], {"axis": 0, "largest": 0}, outputs=2),
    case("ArgMax", floats(3, 5), axis=1),
    case("ArgMin", floats(3, 5), axis=0, keepdims=0),
    # reductions
    *[case(op, positive(2, 3, 4), axes=[1, -1], opset=11) for op in REDUCTIONS],
    *[case(op, positive(2, 3, 4), constants=[ints(0, 2)], opset=18, keepdims=0) for op in REDUCTIONS],
    case("ReduceMean", floats(2, 3)),
    case("ReduceSum", floats(2, 3), noop_with_empty_axes=1),
    case("ReduceSum", np.arange(6), constants=[ints(0)], opset=13),
    # types and constants
    *[case("Cast", floats(3, 4) * 5, to=to) for to in (TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE, TensorProto.FLOAT16)],
    case("CastLike", floats(3, 4), ints(1)),
    case("Shape", floats(3, 4)),
    case("Shape", floats(3, 4), start=-1),
    case("Size", floats(3, 4)),
    case("ConstantOfShape", ints(2, 3)),
    case("ConstantOfShape", ints(2, 3), value=helper.make_tensor("v", TensorProto.INT64, [1], [7])),
    case("Constant", value_floats=[1.0, 2.0]),
    case("Constant", value_int=3),
    case("Constant", value=numpy_helper.from_array(floats(2, 3))),
    case("Range", ints(1).reshape(()), ints(9).reshape(()), ints(3).reshape(())),
    case("Trilu", floats(4, 5), upper=0),
    case("Trilu", floats(4, 5), constants=[ints(1).reshape(())]),
    case("EyeLike", floats(4, 5), k=1),
    # quantization
    case("QuantizeLinear", floats(50) * 3, constants=[np.float32(0.02), np.int8(0)]),
    case("QuantizeLinear", floats(50) * 3, constants=[np.float32(0.02), np.uint8(131)]),
    case("QuantizeLinear", floats(50) * 3, constants=[np.float32(0.02)]),
    case("QuantizeLinear", IMAGE, constants=[SCALES, np.zeros(4, np.int8)], axis=1),
    case("QuantizeLinear", IMAGE, constants=[SCALES, np.arange(4, dtype=np.int8)], axis=-3, opset=13),
    case("QuantizeLinear", np.arange(-8, 8, dtype=np.float32) / 2, constants=[np.float32(1), np.int8(1)]),
    case("QuantizeLinear", floats(4, 6), constants=[positive(4, 2) / 10], axis=1, block_size=3, output_dtype=TensorProto.INT8),
    case("DequantizeLinear", np.arange(-8, 8, dtype=np.int8), constants=[np.float32(0.3), np.int8(2)]),
    case("DequantizeLinear", np.arange(24, dtype=np.uint8).reshape(4, 6), constants=[SCALES, np.full(4, 3, np.uint8)], axis=0),
    case("DequantizeLinear", np.arange(24, dtype=np.int8).reshape(4, 6), constants=[positive(4, 2)], axis=1, block_size=3),
    case("DequantizeLinear", np.arange(5, dtype=np.int32), constants=[np.float32(0.3)]),
    # resize
    *[
        case("Resize", floats(1, 2, 5, 4), constants=[None, STRETCH], mode=mode, coordinate_transformation_mode=where)
        for mode in ("nearest", "linear", "cubic")
        for where in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ],
    *[
        case("Resize", floats(1, 2, 5, 4), constants=[None, np.array([1, 1, 0.6, 2], np.float32)], nearest_mode=mode)
        for mode in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ],
    case("Resize", floats(1, 2, 5, 4), constants=[None, None, ints(1, 2, 10, 3)], mode="linear"),
    case("Resize", floats(1, 2, 5, 4), constants=[None, None, ints(10, 3)], mode="linear", axes=[2, 3]),
    case("Resize", floats(1, 2, 5, 4), constants=[None, np.array([2.5, 2], np.float32)], axes=[2, 3], mode="linear",
         coordinate_transformation_mode="half_pixel_symmetric"),
    case("Resize", floats(1, 2, 5, 4), constants=[np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], opset=11,
         coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
]  # fmt: skip


@pytest.mark.parametrize("item", CASES, ids=str)
def test_operator_agrees_with_onnx_runtime(item: Case) -> None:
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


def test_every_registered_operator_has_a_case() -> None:
    registry.find("", "Conv", 21)
    assert {name for _, name in registry._TABLE} == {item.op for item in CASES}
