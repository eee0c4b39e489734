"""What every layer of ncnn takes: the kinds of its parameters, and what it loads from `.bin`.

Written from ncnn's `load_param` and `load_model` (src/layer/*.cpp, version 1.0.20261020) alone: it shares no
code with the target that writes such files.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

PARAMS = {
    "AbsVal": "",
    "ArgMax": "0-1",
    "BNLL": "",
    "BatchNorm": "0 1f",
    "Bias": "0",
    "BinaryOp": "0-1 2f",
    "CELU": "0f",
    "Cast": "0-1",
    "Clip": "0-1f",
    "Concat": "0",
    "Convolution": "0-6 8-9 10a 11-16 18f 19",
    "Convolution1D": "0-6 9 10a 15 18f 19",
    "Convolution3D": "0-6 9 10a 11-17 18f 21-24",
    "ConvolutionDepthWise": "0-9 10a 11-16 18f 19",
    "ConvolutionDepthWise1D": "0-7 9 10a 15 18f 19",
    "ConvolutionDepthWise3D": "0-7 9 10a 11-17 18f 21-24",
    "CopyTo": "0-2 9a 11a 13",
    "Crop": "0-8 9-11a 13-15 19-21s",
    "CumulativeSum": "0",
    "Deconvolution": "0-6 9 10a 11-16 18-21 28",
    "Deconvolution1D": "0-6 9 10a 15 18 20 28",
    "Deconvolution3D": "0-6 9 10a 11-27",
    "DeconvolutionDepthWise": "0-7 9 10a 11-16 18-21 28",
    "DeconvolutionDepthWise1D": "0-7 9 10a 15 18 20 28",
    "DeconvolutionDepthWise3D": "0-7 9 10a 11-27",
    "DeepCopy": "",
    "DeformableConv2D": "0-6 9 10a 11-16",
    "Dequantize": "0-1",
    "DetectionOutput": "0 1f 2-3 4-8f",
    "Diag": "0",
    "Dropout": "0f",
    "ELU": "0f",
    "Einsum": "0a",
    "Eltwise": "0 1a",
    "Embed": "0-3 18",
    "Erf": "",
    "Exp": "0-2f",
    "ExpandDims": "3a",
    "Flatten": "",
    "Flip": "0a",
    "Fold": "1-4 11-16 20-21",
    "GELU": "0",
    "GLU": "0",
    "GRU": "0-2 8",
    "Gemm": "0-1f 2-14 18 20-22",
    "GridSample": "0-3",
    "GroupNorm": "0-1 2f 3",
    "HardSigmoid": "0-1f",
    "HardSwish": "0-1f",
    "InnerProduct": "0-2 8-9 10a",
    "Input": "0-2 11",
    "InstanceNorm": "0 1f 2",
    "Interp": "0 1-2f 3-6 9s",
    "InverseSpectrogram": "0-5 7",
    "LRN": "0-1 2-4f",
    "LSTM": "0-3 8",
    "LayerNorm": "0 1f 2",
    "Log": "0-2f",
    "MVN": "0-1 2f",
    "MatMul": "0",
    "MemoryData": "0-2 11 21",
    "Mish": "",
    "MultiHeadAttention": "0-5 6f 7 18",
    "Noop": "",
    "Normalize": "0-1 2f 3-4 9",
    "PReLU": "0",
    "PSROIPooling": "0-1 2f 3",
    "Packing": "0-3",
    "Padding": "0-4 5f 6-8",
    "Permute": "0",
    "PixelShuffle": "0-1",
    "Pooling": "0-8 11-15 18",
    "Pooling1D": "0-8 14",
    "Pooling3D": "0-8 11-16 18 21-23 28",
    "Power": "0-2f",
    "PriorBox": "0-2a 3-6f 7-10 11-13f 14-15",
    "Proposal": "0-3 4f 5",
    "Quantize": "0",
    "RMSNorm": "0 1f 2",
    "RNN": "0-2 8",
    "ROIAlign": "0-1 2f 3-5",
    "ROIPooling": "0-1 2f",
    "ReLU": "0f",
    "Reduction": "0-1 2f 3a 4-5",
    "Reorg": "0-1",
    "Requantize": "0-3 4a",
    "Reshape": "0-2 6s 11-13",
    "RotaryEmbed": "0",
    "SDPA": "5 6f 7 18",
    "SELU": "0-1f",
    "SPP": "0-1",
    "Scale": "0-1",
    "Shrink": "0-1f",
    "ShuffleChannel": "0-1",
    "Sigmoid": "",
    "Slice": "0a 1 2a",
    "Softmax": "0-1",
    "Softplus": "",
    "Spectrogram": "0-8",
    "Split": "",
    "Squeeze": "0-2 3a 11",
    "StatisticsPooling": "0",
    "Swish": "",
    "TanH": "",
    "Threshold": "0f",
    "Tile": "0-1 2a",
    "UnaryOp": "0",
    "Unfold": "1-4 11-16 18f",
    "YoloDetectionOutput": "0-1 2-3f 4a",
    "Yolov3DetectionOutput": "0-1 2-3f 4-6a",
}
"""Type -> ids that it reads: integers, floats (f), arrays (a), strings (s). ncnn reads the bits of an integer
as a float and the other way round, so a wrong kind is a wrong number.
"""

EVERY = "30a 31"
"""Of every layer: shapes of its outputs, and the mask of features that it does without."""


def kinds(layer_type: str) -> dict[int, str]:
    """Id -> "", "f", "a" or "s"."""
    found = {}
    for word in f"{PARAMS[layer_type]} {EVERY}".split():
        ids, kind = (word[:-1], word[-1]) if word[-1].isalpha() else (word, "")
        first, _, last = ids.partition("-")
        found.update(dict.fromkeys(range(int(first), int(last or first) + 1), kind))
    return found


@dataclass(frozen=True)
class Blob:
    """One `ModelBin::load`. `tagged`: a tag of four bytes says how it is stored; else it is plain float32."""

    name: str
    shape: tuple[int, ...]
    tagged: bool = True


Params = Callable[..., int]
"""Id and default (0) -> integer."""


def _raw(name: str, *shape: int) -> Blob:
    return Blob(name, shape, tagged=False)


def _filled(size: int, first: int, *rest: int) -> tuple[int, ...]:
    """`size` values as (first, what is left, *rest)."""
    known = first * math.prod(rest)
    if known <= 0 or size <= 0 or size % known:
        shape = " x ".join(map(str, (first, "?", *rest)))
        raise ValueError(f"{size} weights do not fill {shape}")
    return first, size // known, *rest


def _convolution(
    axes: int, dynamic: int = 0, groups: bool = False, scales: bool = False
) -> Callable[[Params], list[Blob]]:
    """dynamic: id that says that the weights are an input."""

    def blobs(param: Params) -> list[Blob]:
        if dynamic and param(dynamic):
            return []
        outputs, width = param(0), param(1)
        kernel = (param(21, width), param(11, width), width)[3 - axes :]
        group = param(7, 1) if groups else 1
        if group <= 0 or outputs % group:
            raise ValueError(f"{outputs} outputs in {group} groups")
        found = [Blob("weight", _filled(param(6), outputs, *kernel)), *_if(param(5), _raw("bias", outputs))]
        return found + (_conv_scales(param(8), outputs, group, groups) if scales else [])

    return blobs


def _conv_scales(term: int, outputs: int, group: int, groups: bool) -> list[Blob]:
    if not term:
        return []
    if groups and term not in (1, 2, 101, 102):
        raise ValueError(f"int8_scale_term {term}: a grouped convolution has 1, 2, 101 or 102")
    count = outputs if not groups else group if term % 100 == 1 else 1
    top = _if(term > 100, _raw("top_int8_scale", 1))
    return [_raw("weight_int8_scales", count), _raw("bottom_int8_scale", 1), *top]


def _if(condition: object, *blobs: Blob) -> list[Blob]:
    return list(blobs) if condition else []


def _inner_product(param: Params) -> list[Blob]:
    outputs = param(0)
    scales = (_raw("weight_int8_scales", outputs), _raw("bottom_int8_scale", 1))
    return [
        Blob("weight", _filled(param(2), outputs)),
        *_if(param(1), _raw("bias", outputs)),
        *_if(param(8), *scales),
    ]


def _embed(param: Params) -> list[Blob]:
    outputs, words = param(0), param(1)
    if param(3) != outputs * words:
        raise ValueError(f"{param(3)} weights do not fill {words} x {outputs}")
    scale = _if(param(18), _raw("weight_int8_scale", 1))
    return [Blob("weight", (words, outputs)), *_if(param(2), _raw("bias", outputs)), *scale]


def _recurrent(gates: int, biases: int) -> Callable[[Params], list[Blob]]:
    """RNN, GRU and LSTM; an LSTM alone may project its hidden state."""

    def blobs(param: Params) -> list[Blob]:
        outputs, ways = param(0), 2 if param(2) == 2 else 1
        hidden = param(3, outputs) if gates == 4 else outputs
        rows = hidden * gates
        scales = (_raw("weight_xc_int8_scales", ways, rows), _raw("weight_hc_int8_scales", ways, rows))
        return [
            Blob("weight_xc", (ways, rows, _filled(param(1), ways * rows)[1])),
            Blob("bias_c", (ways, biases, hidden)),
            Blob("weight_hc", (ways, rows, outputs)),
            *_if(hidden != outputs, Blob("weight_hr", (ways, outputs, hidden))),
            *_if(param(8), *scales),
        ]

    return blobs


def _gemm(param: Params) -> list[Blob]:
    rows, columns, depth, term = param(7), param(8), param(9), param(18)
    if term >= 400:
        raise ValueError("weights in blocks are not read here")
    bias = {0: (1,), 1: (rows,), 2: (rows, 1), 3: (rows, columns), 4: (1, columns)}
    if param(6) and param(10) not in (-1, *bias):
        raise ValueError(f"constant_broadcast_type_C is {param(10)}")
    return [
        *_if(param(4), Blob("A", (depth, rows) if param(2) else (rows, depth))),
        *_if(param(5), Blob("B", (columns, depth) if param(3) else (depth, columns))),
        *_if(param(6) and param(10) != -1, Blob("C", bias.get(param(10), ()))),
        *_if(term and param(4), _raw("A_int8_scales", rows)),
        *_if(term and param(5), _raw("B_int8_scale", 1)),
    ]


def _attention(param: Params) -> list[Blob]:
    width, term = param(0), param(18)
    if term >= 400:
        raise ValueError("weights in blocks are not read here")
    query = _filled(param(2), width)[1]
    shapes = {
        "q": (width, query),
        "k": (width, param(3, width)),
        "v": (width, param(4, width)),
        "out": (query, width),
    }
    found = []
    for name, shape in shapes.items():
        found += [Blob(f"{name}_weight", shape), _raw(f"{name}_bias", shape[0])]
    scales = [_raw(f"{name}_int8_scales", 1 if name == "out" else width) for name in shapes]
    return found + (scales if term else [])


def _memory(param: Params) -> list[Blob]:
    """A scalar without a size loads nothing."""
    width, height, depth, channels = param(0), param(1), param(11), param(2)
    shape = (channels, depth, height, width) if depth else (channels, height, width)
    shape = shape if depth or channels else (height, width) if height else (width,)
    if param(21, 1) not in (0, 1):
        raise ValueError(f"load_type is {param(21, 1)}")
    return _if(any(shape), Blob("data", shape, tagged=param(21, 1) == 0))


def _affine(size: int, condition: int, *names: str) -> Callable[[Params], list[Blob]]:
    """Plain arrays of param(size) values where param(condition, 1) is not 0."""
    return lambda param: _if(param(condition, 1), *(_raw(name, param(size)) for name in names))


def _plain(*names: str) -> Callable[[Params], list[Blob]]:
    return lambda param: [_raw(name, param(0)) for name in names]


def _scale(param: Params) -> list[Blob]:
    """-233: the scale is an input."""
    if param(0) == -233:
        return []
    return [_raw("scale", param(0)), *_if(param(1), _raw("bias", param(0)))]


def _requantize(param: Params) -> list[Blob]:
    scales = [_raw("scale_in", param(0, 1)), _raw("scale_out", param(1, 1))]
    return scales + _if(param(2), _raw("bias", param(2)))


LOADS: Mapping[str, Callable[[Params], Iterable[Blob]]] = {
    "BatchNorm": _plain("slope", "mean", "variance", "bias"),
    "Bias": _plain("bias"),
    "Convolution": _convolution(2, dynamic=19, scales=True),
    "Convolution1D": _convolution(1, dynamic=19),
    "Convolution3D": _convolution(3),
    "ConvolutionDepthWise": _convolution(2, dynamic=19, groups=True, scales=True),
    "ConvolutionDepthWise1D": _convolution(1, dynamic=19, groups=True),
    "ConvolutionDepthWise3D": _convolution(3, groups=True),
    "Deconvolution": _convolution(2, dynamic=28),
    "Deconvolution1D": _convolution(1, dynamic=28),
    "Deconvolution3D": _convolution(3),
    "DeconvolutionDepthWise": _convolution(2, dynamic=28, groups=True),
    "DeconvolutionDepthWise1D": _convolution(1, dynamic=28, groups=True),
    "DeconvolutionDepthWise3D": _convolution(3, groups=True),
    "DeformableConv2D": _convolution(2),
    "Dequantize": lambda param: [_raw("scale", param(0, 1)), *_if(param(1), _raw("bias", param(1)))],
    "Embed": _embed,
    "GRU": _recurrent(3, 4),
    "Gemm": _gemm,
    "GroupNorm": _affine(1, 3, "gamma", "beta"),
    "InnerProduct": _inner_product,
    "InstanceNorm": _affine(0, 2, "gamma", "beta"),
    "LSTM": _recurrent(4, 4),
    "LayerNorm": _affine(0, 2, "gamma", "beta"),
    "MemoryData": _memory,
    "MultiHeadAttention": _attention,
    "Normalize": lambda param: [_raw("scale", param(3))],
    "PReLU": _plain("slope"),
    "Padding": lambda param: _if(param(6), _raw("value", param(6))),
    "Quantize": lambda param: [_raw("scale", param(0, 1))],
    "RMSNorm": _affine(0, 2, "gamma"),
    "RNN": _recurrent(1, 1),
    "Requantize": _requantize,
    "Scale": _scale,
}
"""Types that load something."""
