"""The parts that _graphs.py puts together. Each takes a value and gives the next one; what it needs of an opset, such as
bounds of a Clip that were attributes once, it writes as that opset has it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from torture_parts._graphs import Builder, Value

Parts = Mapping[str, tuple[float, Callable[[Builder, Value], Value]]]


def convolution(build: Builder, value: Value) -> Value:
    batch, channels, height, width = value.shape
    kernel = (
        [build.pick(1, 1, 3, 3, 5, 2), build.pick(1, 3, 3, 5)]
        if build.chance(0.2)
        else [build.pick(1, 3, 3, 5)] * 2
    )
    groups = build.pick(1, 1, 1, channels) if channels > 1 else 1
    out = groups * int(build.random.integers(1, 3)) if groups > 1 else int(build.random.integers(1, 17))
    strides, dilations = [build.pick(1, 1, 1, 2)] * 2, [build.pick(1, 1, 1, 2)] * 2
    pads = [int(pad) for pad in build.random.integers(0, 3, 4)]
    attributes: dict[str, Any] = {}
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    if build.chance(0.2):
        dilations = [1, 1]
        attributes["auto_pad"] = build.pick("SAME_UPPER", "SAME_LOWER")
        sides = [-(-side // stride) for side, stride in zip((height, width), strides, strict=True)]
    else:
        attributes["pads"] = pads
        sides = [
            (side + pads[axis] + pads[axis + 2] - span) // strides[axis] + 1
            for axis, (side, span) in enumerate(zip((height, width), spans, strict=True))
        ]
    if min(sides) < 1 or min(h + pads[a] + pads[a + 2] - spans[a] for a, h in enumerate((height, width))) < 0:
        return activation(build, value)
    inputs = [value.name, shared(build, (out, channels // groups, *kernel))]
    if build.chance(0.6):
        inputs.append(build.weight(out, scale=0.3))
    shape = (batch, out, *sides)
    return build.one(
        "Conv", inputs, shape, kernel_shape=kernel, strides=strides, dilations=dilations, group=groups, **attributes
    )  # fmt: skip


def shared(build: Builder, shape: tuple[int, ...]) -> str:
    """A weight; one of this shape that there is may be shared."""
    alike = [name for name, values in build.weights.items() if values.shape == shape]
    if alike and build.chance(0.6):
        build.parts.add("shared weights")
        return str(build.pick(*alike))
    return build.weight(*shape)


def twice(build: Builder, value: Value) -> Value:
    """The same convolution two times, with one weight."""
    channels = value.shape[1]
    weight = build.weight(channels, channels, 3, 3)
    build.parts.add("shared weights")
    for _ in range(2):
        value = build.one("Conv", [value.name, weight], value.shape, pads=[1] * 4, kernel_shape=[3, 3])
        value = build.one("Relu", [value.name], value.shape)
    return value


def transposed(build: Builder, value: Value) -> Value:
    batch, channels, height, width = value.shape
    if height * width > 300:
        return activation(build, value)
    out, stride, kernel, pad = (
        int(build.random.integers(1, 7)),
        build.pick(1, 2),
        build.pick(2, 3),
        build.pick(0, 1),
    )
    inputs = [value.name, build.weight(channels, out, kernel, kernel)]
    if build.chance(0.5):
        inputs.append(build.weight(out, scale=0.3))
    sides = [(side - 1) * stride - 2 * pad + kernel for side in (height, width)]
    if min(sides) < 1:
        return activation(build, value)
    return build.one(
        "ConvTranspose", inputs, (batch, out, *sides), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
    )  # fmt: skip


def normalization(build: Builder, value: Value) -> Value:
    channels = value.shape[1]
    if len(value.shape) == 4 and min(value.shape[2:]) > 2 and build.chance(0.2):
        affine = [build.positive(channels), build.weight(channels, scale=0.2)]
        return build.one("InstanceNormalization", [value.name, *affine], value.shape)
    if len(value.shape) == 4 and build.chance(0.1):
        return build.one("LRN", [value.name], value.shape, size=3)
    statistics = [build.positive(channels), build.weight(channels, scale=0.3)]
    statistics += [build.weight(channels, scale=0.3), build.positive(channels)]
    return build.one(
        "BatchNormalization", [value.name, *statistics], value.shape, epsilon=build.pick(1e-5, 1e-3)
    )


def activation(build: Builder, value: Value) -> Value:
    shape, name = value.shape, value.name
    choice = build.pick("Relu", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "clip", "HardSigmoid", "prelu",
                        "Softplus", "Selu", "swish", "Identity", "dropout", "Abs", "newer", "Neg", "Softsign")  # fmt: skip
    if choice == "clip":
        low, high = build.pick((0.0, 6.0), (-1.0, 1.0))
        if build.opset < 11:
            return build.one("Clip", [name], shape, min=low, max=high)
        bounds = [build.stored(np.float32(low)), build.stored(np.float32(high))]
        return build.one("Clip", [name, *(bounds if build.chance(0.7) else ["", bounds[1]])], shape)
    if choice == "prelu":
        slope = build.weight(shape[1], *[1] * (len(shape) - 2), scale=0.2)
        return build.one("PRelu", [name, slope], shape)
    if choice == "swish":
        gate = build.node("Sigmoid", [name])[0]
        return build.one("Mul", [name, gate], shape)
    if choice == "dropout":
        return build.one("Dropout", [name], shape)
    if choice == "newer":
        new = [op for op, since in (("HardSwish", 14), ("Mish", 18), ("Gelu", 20)) if build.opset >= since]
        return build.one(build.pick(*new) if new else "Relu", [name], shape)
    return build.one(choice, [name], shape)


def pooling(build: Builder, value: Value) -> Value:
    batch, channels, height, width = value.shape
    kernel, stride, pad = build.pick(2, 3), build.pick(1, 2), build.pick(0, 0, 1)
    if min(height, width) < kernel:
        return build.one("GlobalMaxPool", [value.name], (batch, channels, 1, 1))
    attributes: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    op = build.pick("MaxPool", "AveragePool")
    if op == "AveragePool" and build.chance(0.5):
        attributes["count_include_pad"] = 1
    sides = [(side + 2 * pad - kernel) // stride + 1 for side in (height, width)]
    return build.one(op, [value.name], (batch, channels, *sides), **attributes)


def residual(build: Builder, value: Value) -> Value:
    """Meets an earlier value of the same shape, or a branch that is made for it."""
    alike = [one for one in build.values[-12:] if one.shape == value.shape and one.name != value.name]
    if alike and build.chance(0.7):
        other = build.pick(*alike)
    else:
        other, value = activation(build, value), activation(build, value)
    op = build.pick("Add", "Add", "Add", "Mul", "Sub", "Max", "Sum")
    return build.one(op, [value.name, other.name], value.shape)


def concatenation(build: Builder, value: Value) -> Value:
    alike = [
        one
        for one in build.values[-12:]
        if len(one.shape) == len(value.shape)
        and one.shape[2:] == value.shape[2:]
        and one.shape[0] == value.shape[0]
    ]
    others = [build.pick(*alike) for _ in range(build.pick(1, 2))]
    channels = value.shape[1] + sum(one.shape[1] for one in others)
    if channels > 48:
        return activation(build, value)
    names = [value.name, *(one.name for one in others)]
    return build.one("Concat", names, (value.shape[0], channels, *value.shape[2:]), axis=1)


def split(build: Builder, value: Value) -> Value:
    channels = value.shape[1]
    if channels < 2:
        return activation(build, value)
    first = int(build.random.integers(1, channels))
    sizes = [first, channels - first]
    if build.chance(0.5):
        inputs, attributes = [value.name], {"axis": 1}
        if build.opset < 13:
            attributes["split"] = sizes
        else:
            inputs.append(build.whole(*sizes))
        left, right = build.node("Split", inputs, 2, **attributes)
        build.keep(Value(left, (value.shape[0], first, *value.shape[2:])))
        return build.keep(Value(right, (value.shape[0], channels - first, *value.shape[2:])))
    shape = (value.shape[0], channels - first, *value.shape[2:])
    if build.opset < 10:
        return build.one("Slice", [value.name], shape, starts=[first], ends=[channels], axes=[1])
    return build.one(
        "Slice", [value.name, build.whole(first), build.whole(channels + 3), build.whole(1)], shape
    )


def padding(build: Builder, value: Value) -> Value:
    pads = [0, 0, 1, 0, 0, 0, 0, build.pick(1, 2)]
    mode = build.pick("constant", "reflect", "edge") if min(value.shape[2:]) > 2 else "constant"
    shape = (*value.shape[:2], value.shape[2] + 1, value.shape[3] + pads[-1])
    if build.opset < 11:
        return build.one("Pad", [value.name], shape, pads=pads, mode=mode)
    return build.one("Pad", [value.name, build.whole(*pads)], shape, mode=mode)


def resizing(build: Builder, value: Value) -> Value:
    if max(value.shape[2:]) > 16:
        return activation(build, value)
    shape, scales = (*value.shape[:2], 2 * value.shape[2], 2 * value.shape[3]), [1.0, 1.0, 2.0, 2.0]
    if build.opset < 9:
        return build.one("Upsample", [value.name], shape, scales=scales, mode="nearest")
    wanted = build.stored(np.array(scales, np.float32))
    if build.opset < 11:
        op = "Upsample" if build.opset == 9 else "Resize"
        return build.one(op, [value.name, wanted], shape, mode="nearest")
    region = "" if build.opset > 12 else build.stored(np.zeros(0, np.float32))
    mode = build.pick("nearest", "linear")
    return build.one("Resize", [value.name, region, wanted], shape, mode=mode)


def turned(build: Builder, value: Value) -> Value:
    """Channels last and back, with something between."""
    first = [0, 2, 3, 1] if len(value.shape) == 4 else [1, 0]
    there = build.node("Transpose", [value.name], perm=first)[0]
    between = build.node(build.pick("Relu", "Identity", "Tanh"), [there])[0]
    back = [0, 3, 1, 2] if len(value.shape) == 4 else [1, 0]
    return build.one("Transpose", [between], value.shape, perm=back)


def excitation(build: Builder, value: Value) -> Value:
    batch, channels, *_ = value.shape
    mean = build.one("GlobalAveragePool", [value.name], (batch, channels, 1, 1))
    gate = build.node(
        "Conv", [mean.name, build.weight(channels, channels, 1, 1), build.weight(channels, scale=0.3)]
    )[0]
    return build.one("Mul", [value.name, build.node("Sigmoid", [gate])[0]], value.shape)


def scaled(build: Builder, value: Value) -> Value:
    """Per channel, or as a whole, by constants; with the constant on either side."""
    size = build.pick(value.shape[1], 1)
    factor = build.weight(size, *[1] * (len(value.shape) - 2), scale=0.8)
    inputs = [value.name, factor] if build.chance(0.6) else [factor, value.name]
    return build.one(build.pick("Mul", "Add", "Sub"), inputs, value.shape)


def flatten(build: Builder, value: Value) -> Value:
    batch, channels, height, width = value.shape
    if build.open_sides or channels * height * width > 600 or build.chance(0.3):
        value = build.one("GlobalAveragePool", [value.name], (batch, channels, 1, 1))
        height = width = 1
    shape = (batch, channels * height * width)
    if build.chance(0.5):
        return build.one("Flatten", [value.name], shape)
    return build.one("Reshape", [value.name, build.whole(0 if build.chance(0.5) else -1, shape[1])], shape)


def through_double(build: Builder, value: Value) -> Value:
    wide = build.node("Cast", [value.name], to=TensorProto.DOUBLE)[0]
    wide = build.node(build.pick("Neg", "Relu") if build.opset >= 13 else "Neg", [wide])[0]
    return build.one("Cast", [wide], value.shape, to=TensorProto.FLOAT)


PICTURES: Parts = {
    "convolution": (6, convolution),
    "the same convolution twice": (0.7, twice),
    "transposed convolution": (0.7, transposed),
    "normalization": (3, normalization),
    "activation": (4, activation),
    "pooling": (1.5, pooling),
    "residual": (2.5, residual),
    "concatenation": (1.2, concatenation),
    "split": (1, split),
    "padding": (0.7, padding),
    "resizing": (0.5, resizing),
    "turned": (0.7, turned),
    "excitation": (0.8, excitation),
    "scaled": (1.5, scaled),
    "through double": (0.2, through_double),
}
"""Share, and what makes it, of parts that take [batch, channels, height, width]."""
