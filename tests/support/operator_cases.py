"""Cases of every operator of the bridge."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.support.operator_case import Case, case, floats, ints, positive
from tests.support.recurrent import recurrent_cases

REDUCTIONS = [
    f"Reduce{name}"
    for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
]
UNARY = "Abs Atan Ceil Cos Erf Exp Floor Identity Neg Relu Round Sigmoid Sign Sin Sinh Softplus Softsign Tan Tanh Asinh Elu Celu Selu"
LAYOUT = floats(2, 4, 6, 5)
IMAGE = floats(2, 4, 9, 8)
KERNEL = floats(6, 4, 3, 3, seed=1)
UNEVEN = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}
HALVED = {"kernel_shape": [2, 2], "strides": [2, 2]}
REGION = np.array([0, 0, 0.2, 0.5, 1, 1, 1.3, 0.8], np.float32)
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
    case("BitwiseNot", np.arange(4, dtype=np.uint8)),
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
    case("Shrink", floats(3, 4), lambd=0.3, bias=0.2),
    Case("SwiGLU", [floats(3, 4), floats(3, 4, seed=1)], attributes={"alpha": 1.5}, opset=28, reference=True),
    case("Hardmax", floats(2, 3, 4), axis=1),
    case("Hardmax", floats(2, 3, 4), opset=11),
    case("Clip", floats(3, 4), opset=6, min=-0.5, max=0.5),
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
    case("Mod", floats(3, 4) * 5, positive(4), fmod=1),
    Case("Mod", [floats(3, 4) * 5, floats(4, seed=1)], opset=28, reference=True),
    *[case(op, floats(4) > 0, floats(4, seed=1) > 0) for op in ("And", "Or", "Xor")],
    case("Pow", positive(3, 4), constants=[np.float32(2)]),
    case("Pow", positive(3, 4), floats(4)),
    case("Pow", np.arange(4), constants=[np.float32(2)]),
    *[case(op, floats(3, 4), floats(4, seed=1), floats(3, 1, seed=2)) for op in ("Max", "Min", "Sum", "Mean")],
    case("Where", floats(3, 4) > 0, floats(3, 4), floats(4, seed=1)),
    *[case(op, np.arange(-4, 4), np.full(8, 3)) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")],
    *[
        case("CumSum", floats(3, 4), constants=[ints(1).reshape(())], exclusive=exclusive, reverse=reverse)
        for exclusive in (0, 1) for reverse in (0, 1)
    ],
    *[
        Case("CumProd", [floats(3, 4)], [ints(-1).reshape(())], {"exclusive": exclusive, "reverse": 1}, opset=26, reference=True)
        for exclusive in (0, 1)
    ],
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
    *[
        case("ConvTranspose", floats(2, 3, 7), constants=[floats(3, 2, 2), floats(2)], strides=[3], auto_pad=where, output_shape=[size])
        for where, size in (("NOTSET", 22), ("NOTSET", 19), ("SAME_UPPER", 22), ("SAME_LOWER", 21))
    ],
    case("ConvTranspose", floats(1, 2, 3, 4, 3), constants=[floats(2, 2, 2, 2, 2)], strides=[2, 2, 2]),
    Case("Col2Im", [floats(2, 12, 9)], [ints(5, 4), ints(2, 3)], {"strides": [2, 1], "dilations": [1, 1], "pads": [0, 1, 1, 0]}),
    Case("Col2Im", [floats(1, 8, 9)], [ints(4, 4), ints(2, 2)]),
    Case("DeformConv", [floats(1, 4, 6, 5), floats(6, 2, 3, 3), floats(1, 36, 3, 3), floats(6), positive(1, 18, 3, 3)],
         attributes={"group": 2, "offset_group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]}, reference=True),
    Case("DeformConv", [floats(2, 2, 5, 5), floats(3, 2, 2, 2), floats(2, 8, 4, 4)], attributes={"kernel_shape": [2, 2]}, reference=True),
    # pooling
    *[
        Case("MaxPool", [IMAGE], attributes={**UNEVEN, "storage_order": order}, outputs=2)
        for order in (0, 1)
    ],
    Case("MaxPool", [floats(2, 3, 11)], attributes={"kernel_shape": [3], "dilations": [2]}, outputs=2),
    case("MaxUnpool", positive(1, 2, 2, 2), constants=[ints(1, 6, 8, 15, 17, 22, 26, 31).reshape(1, 2, 2, 2)], **HALVED),
    case("LpPool", IMAGE, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], p=3),
    case("LpPool", floats(2, 3, 11), kernel_shape=[3], strides=[2]),
    case("GlobalLpPool", IMAGE, p=3),
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
    Case("LayerNormalization", [floats(2, 3, 8)], [floats(8), floats(8, seed=1)], outputs=3),
    case("MeanVarianceNormalization", IMAGE, axes=[0, 2, 3], opset=13),
    case("MeanVarianceNormalization", floats(4, 5), axes=[1], opset=13),
    case("InstanceNormalization", floats(1, 4, 1, 1), constants=[floats(4), floats(4, seed=1)], epsilon=0.1),
    case("GroupNormalization", floats(1, 4, 1), constants=[floats(4), floats(4, seed=1)], num_groups=4, epsilon=0.1),
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
    case("Det", floats(2, 3, 3)),
    case("Einsum", floats(2, 3, 4), floats(2, 4, 5), equation="bij,bjk->bik"),
    # moving values
    case("Reshape", LAYOUT, constants=[ints(0, -1, 5)]),
    case("Slice", LAYOUT, opset=9, starts=[1, -3], ends=[9, -1], axes=[1, 3]),
    case("Pad", LAYOUT, opset=10, pads=[0, 0, 1, 2, 0, 0, 0, 1], value=1.5),
    case("CenterCropPad", floats(5, 4, 7), constants=[ints(2, 7)], axes=[0, 1], opset=18),
    case("SpaceToDepth", floats(1, 2, 4, 6), blocksize=2, opset=13),
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
    case("GatherND", floats(2, 3, 4), constants=[ints(1, -1).reshape(2, 1)], batch_dims=1),
    case("GatherND", floats(2, 3, 4), constants=[ints(1, 0, -1, 2).reshape(2, 1, 2)], batch_dims=1),
    *[
        case(op, floats(3, 4), constants=[where, updates], opset=18, reduction=reduction)
        for reduction in ("add", "mul", "max", "min")
        for op, where, updates in (
            ("ScatterElements", ints(0, 1, 0, 2, 0, 1).reshape(2, 3), floats(2, 3, seed=1)),
            ("ScatterND", ints(0, 2, 0).reshape(3, 1), floats(3, 4, seed=1)),
        )
    ],
    case("ScatterND", floats(3, 4), constants=[ints(0, -1, 0, 1).reshape(2, 2), floats(2)], reduction="add", opset=18),
    case("Scatter", floats(3, 4), constants=[ints(0, 1).reshape(1, 2), floats(1, 2)], opset=10),
    case("OneHot", ints(0, -1, 4, 9), constants=[ints(5), np.array([0.5, 2], np.float32)]),
    case("OneHot", ints(0, 1, 2, 3).reshape(2, 2), constants=[ints(4), np.array([0, 1], np.float32)], axis=1),
    case("ReverseSequence", floats(5, 3, 2), constants=[ints(2, 5, 1)]),
    case("ReverseSequence", floats(3, 5, 2), constants=[ints(2, 5, 1)], time_axis=1, batch_axis=0),
    case("NonZero", floats(3, 4) * (floats(3, 4, seed=1) > 0)),
    case("Compress", floats(3, 4), constants=[np.array([True, False, True])], axis=0),
    case("Compress", floats(3, 4), constants=[np.array([False, True, True, False, True])]),
    Case("TopK", [floats(3, 5)], [ints(2)], outputs=2),
    Case("TopK", [floats(3, 5)], attributes={"k": 2}, opset=9, outputs=2),
    Case("TopK", [floats(3, 5)], [ints(2)], {"axis": 0, "largest": 0}, outputs=2),
    case("ArgMax", floats(3, 5), axis=1),
    case("ArgMin", floats(3, 5), axis=0, keepdims=0),
    *[case(op, np.round(floats(3, 5)), axis=1, select_last_index=last) for op in ("ArgMax", "ArgMin") for last in (0, 1)],
    # reductions
    *[case(op, positive(2, 3, 4), axes=[1, -1], opset=11) for op in REDUCTIONS],
    *[case(op, positive(2, 3, 4), constants=[ints(0, 2)], opset=18, keepdims=0) for op in REDUCTIONS],
    case("ReduceMean", floats(2, 3)),
    case("ReduceSum", floats(2, 3), noop_with_empty_axes=1),
    Case("ReduceSumSquare", [floats(2, 3)], attributes={"noop_with_empty_axes": 1}, reference=True),
    case("ReduceMean", np.arange(7, dtype=np.int32), keepdims=0),
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
    case("Range", *[np.array(value, np.float32) for value in (1, 2, 0.3)]),
    *[case("Range", *[ints(value).reshape(()) for value in values]) for values in ((5, 3, 1), (3, 5, -2), (5, 0, -2))],
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
    *[
        case("Resize", floats(1, 2, 9, 8), constants=[None, np.array([1, 1, 0.6, 0.3], np.float32)], mode=mode, antialias=1, opset=18)
        for mode in ("linear", "cubic")
    ],
    case("Resize", floats(1, 2, 5, 4), constants=[None, STRETCH], mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
    *[
        case("Resize", floats(1, 2, 5, 4), constants=[None, None, ints(9, 3)], axes=[2, 3], mode="linear", keep_aspect_ratio_policy=policy)
        for policy in ("not_larger", "not_smaller")
    ],
    case("Resize", floats(1, 2, 5, 4), constants=[REGION, None, ints(1, 2, 4, 6)], mode="linear",
         coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=7.0),
    case("Resize", floats(1, 2, 5, 4), constants=[np.zeros(0, np.float32), STRETCH], opset=11, nearest_mode="floor",
         coordinate_transformation_mode="tf_half_pixel_for_nn"),
    case("Resize", (floats(1, 2, 5, 4) * 50 + 128).astype(np.uint8), constants=[None, STRETCH], mode="linear"),
    case("Resize", (floats(1, 2, 5, 4) * 50).astype(np.int32), constants=[None, STRETCH], mode="linear"),
    *[case("Upsample", floats(1, 2, 5, 4), constants=[STRETCH], mode=mode, opset=9) for mode in ("nearest", "linear")],
    case("Upsample", floats(1, 2, 5, 4), scales=[1.0, 1.0, 2.0, 3.0], opset=8),
    # sampling
    *[
        case("GridSample", floats(2, 3, 5, 4), floats(2, 3, 4, 2), mode=mode, padding_mode=padding, align_corners=corners, opset=16)
        for mode in ("bilinear", "bicubic", "nearest")
        for padding in ("zeros", "border", "reflection")
        for corners in (0, 1)
    ],
    case("GridSample", floats(2, 3, 5, 4, 3), floats(2, 3, 4, 2, 3), mode="linear", opset=20),
    *[case("AffineGrid", floats(2, 2, 3), constants=[ints(2, 3, 4, 5)], align_corners=corners, opset=20) for corners in (0, 1)],
    # attention
    Case("Attention", [floats(2, 3, 4, 8), floats(2, 3, 6, 8, seed=1), floats(2, 3, 6, 5, seed=2)], opset=23, reference=True),
    Case("Attention", [floats(2, 4, 24), floats(2, 6, 8, seed=1), floats(2, 6, 8, seed=2), floats(4, 6)],
         attributes={"q_num_heads": 3, "kv_num_heads": 1, "softcap": 2.0, "scale": 0.3}, opset=23, reference=True),
    Case("Attention", [floats(1, 2, 4, 8), floats(1, 2, 4, 8, seed=1), floats(1, 2, 4, 8, seed=2), floats(4, 4) > 0],
         attributes={"is_causal": 1}, opset=23, reference=True),
    *[
        Case("RotaryEmbedding", [floats(2, 3, 4, 8), floats(9, 4), floats(9, 4, seed=1)], [ints(0, 3, 2, 8, 1, 1, 5, 7).reshape(2, 4)],
             {"interleaved": interleaved}, opset=23, reference=True)
        for interleaved in (0, 1)
    ],
    # recurrent
    *recurrent_cases(),
    # losses
    case("NegativeLogLikelihoodLoss", floats(3, 5, 2), ints(1, 4, 0, 2, 2, 3).reshape(3, 2), ignore_index=2, opset=13),
    case("NegativeLogLikelihoodLoss", floats(3, 5), ints(1, 4, 0), positive(5), reduction="none", opset=13),
    Case("SoftmaxCrossEntropyLoss", [floats(3, 5), ints(1, 4, 0), positive(5)], outputs=2, opset=13),
    case("SoftmaxCrossEntropyLoss", floats(3, 5), ints(1, 4, 0), reduction="sum", opset=13),
    case("Resize", floats(1, 2, 5, 4), constants=[None, None, ints(10, 3)], mode="linear", axes=[2, 3]),
    case("Resize", floats(1, 2, 5, 4), constants=[None, np.array([2.5, 2], np.float32)], axes=[2, 3], mode="linear",
         coordinate_transformation_mode="half_pixel_symmetric"),
    case("Resize", floats(1, 2, 5, 4), constants=[np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], opset=11,
         coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
]  # fmt: skip
