"""Operators between two convolutions, or behind one, for tests of the layout for LiteRT.

`BETWEEN`: nodes from `a` [n,4,6,8], which a convolution writes, to `b`, which another one reads. `BEHIND`: nodes from
`a` to the output `b`. Each is (nodes, opset, channels of b or type of b, constants, Transposes that are left).
"""

from typing import Any

import numpy as np
import onnx

from tests.support.builders import build

Case = tuple[str, int, Any, dict[str, np.ndarray], int | None]
UNARY = [
    "Abs",
    "Ceil",
    "Elu",
    "Erf",
    "Exp",
    "HardSwish",
    "LeakyRelu",
    "Neg",
    "Relu",
    "Round",
    "Sigmoid",
    "Sign",
    "Softplus",
    "Tanh",
    "Identity",
    "Dropout",
]
REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd")


def normal(*shape: int) -> np.ndarray:
    """The same values at every call with the same shape."""
    return np.random.default_rng([5, *shape]).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def number(value: int) -> np.ndarray:
    return np.array(value, np.int64)


def between(
    nodes: str, opset: int = 17, channels: int = 4, left: int | None = 2, **constants: np.ndarray
) -> Case:
    return nodes, opset, channels, constants, left


def behind(nodes: str, kind: str, left: int | None = None, opset: int = 17, **constants: np.ndarray) -> Case:
    return nodes, opset, kind, constants, left


def model(case: Case) -> onnx.ModelProto:
    """The network around the nodes; x is [n,4,6,8]."""
    nodes, opset, end, constants, _ = case
    given = {"w1": np.linspace(-0.4, 0.5, 144, dtype=np.float32).reshape(4, 4, 3, 3), **constants}
    head = "a = Conv<pads = [1, 1, 1, 1]>(x, w1)"
    if isinstance(end, str):
        return build(f"(float[n,4,6,8] x) => ({end} b) {{ {head} {nodes} }}", opset, **given)
    given["w2"] = np.linspace(-0.5, 0.4, 5 * end * 9, dtype=np.float32).reshape(5, end, 3, 3)
    tail = "y = Conv<pads = [1, 1, 1, 1]>(b, w2)"
    return build(f"(float[n,4,6,8] x) => (float[n,5,h,w] y) {{ {head} {nodes} {tail} }}", opset, **given)


BETWEEN: dict[str, Case] = {
    **{op: between(f"b = {op}(a)") for op in UNARY},
    **{
        f"Add a constant of shape {shape}": between("b = Add(c, a)", c=normal(*shape))
        for shape in ((), (1,), (8,), (6, 8), (6, 1), (4, 1, 1), (4, 6, 8), (1, 4, 1, 1))
    },
    "Clip": between("b = Clip(a, low, high)", low=np.float32(-0.3), high=np.float32(0.4)),
    "Where": between("t = Greater(a, c) b = Where(t, a, d)", c=normal(4, 1, 1), d=normal(8)),
    "PRelu": between("b = PRelu(a, c)", c=normal(4, 1, 1)),
    "PRelu, one slope": between("b = PRelu(a, c)", c=normal(1)),
    "Max of three": between("q = Relu(a) b = Max(a, q, c)", c=normal(4, 1, 1)),
    "operand of rank 3": between("s = ReduceMean<axes = [0], keepdims = 0>(a) b = Add(a, s)"),
    "operand of rank 2": between("s = ReduceMean<axes = [0, 1], keepdims = 0>(a) b = Add(a, s)"),
    "gate of Convs": between("s = GlobalAveragePool(a) t = Conv(s, k) u = Sigmoid(t) b = Mul(a, u)", k=normal(4, 4, 1, 1)),
    "gate of a Gemm": between(
        "s = GlobalAveragePool(a) f = Flatten(s) t = Gemm(f, k) v = Reshape(t, e) b = Mul(a, v)",
        k=normal(4, 4), e=ints(0, 4, 1, 1),
    ),
    "gate behind Unsqueeze": between(
        "s = ReduceMean<axes = [2, 3], keepdims = 0>(a) t = Gemm(s, k) v = Unsqueeze(t, e) b = Mul(a, v)",
        k=normal(4, 4), e=ints(2, 3),
    ),
    "GlobalMaxPool": between("s = GlobalMaxPool(a) b = Mul(a, s)"),
    "AveragePool of all": between("s = AveragePool<kernel_shape = [6, 8]>(a) b = Mul(a, s)"),
    "Concat": between("q = Relu(a) b = Concat<axis = 1>(a, q)", channels=8),
    "Concat, axis from the end": between("q = Relu(a) b = Concat<axis = -3>(a, q)", channels=8),
    "Concat of rows": between("q = Relu(a) b = Concat<axis = 2>(a, q)"),
    "Concat with a constant": between("b = Concat<axis = 2>(a, c)", c=normal(2, 4, 1, 8)),
    "Split": between("p, q = Split<axis = 1>(a) r = Mul(p, q) b = Concat<axis = 1>(r, p)"),
    "Split by sizes": between("p, q = Split<axis = -3>(a, s) b = Concat<axis = 1>(q, p)", s=ints(1, 3)),
    "Split, opset 11": between("p, q = Split<axis = 1, split = [1, 3]>(a) b = Concat<axis = 1>(q, p)", 11),
    "Slice": between("b = Slice(a, s, e, i)", channels=2, s=ints(1), e=ints(3), i=ints(1)),
    "Slice, steps": between("b = Slice(a, s, e, i, t)", s=ints(0, 0), e=ints(6, 8), i=ints(-2, 3), t=ints(2, 2)),
    "Slice, no axes": between("b = Slice(a, s, e)", s=ints(0, 0, 1), e=ints(10, 4, 5)),
    "Slice, computed end": between(
        "h = Shape(a) g = Gather(h, i) e = Unsqueeze(g, z) b = Slice(a, s, e, r)",
        i=number(2), z=ints(0), s=ints(0), r=ints(3),
    ),
    "Pad": between("b = Pad(a, p, v)", p=ints(0, 0, 1, 2, 0, 0, 3, 4), v=np.float32(0.5)),
    "Pad channels": between("b = Pad(a, p)", channels=6, p=ints(0, 1, 0, 0, 0, 1, 0, 0)),
    "Pad, reflect": between('b = Pad<mode = "reflect">(a, p)', p=ints(0, 0, 1, 2, 0, 0, 3, 1)),
    "Pad, axes": between("b = Pad(a, p, , i)", 18, p=ints(1, 2, 1, 0), i=ints(2, -1)),
    "Pad, computed": between(
        "h = Shape(a) g = Gather(h, i) z = Mul(g, o) q = Add(p, z) b = Pad(a, q)",
        i=number(1), o=number(0), p=ints(0, 0, 1, 2, 0, 0, 3, 4),
    ),
    **{f"{op}, axes as attribute": between(f"s = {op}<axes = [1]>(a) b = Mul(a, s)") for op in REDUCTIONS},
    **{f"{op}, axes as input": between(f"s = {op}(a, i) b = Mul(a, s)", 18, i=ints(2, 3)) for op in REDUCTIONS},
    "Softmax of channels": between("b = Softmax<axis = 1>(a)"),
    "Softmax of columns": between("b = Softmax(a)", left=None),
    "Softmax, opset 11": between("b = Softmax(a)", 11, left=None),
    "Softmax of columns, opset 11": between("b = Softmax<axis = 3>(a)", 11, left=None),
    "LogSoftmax": between("b = LogSoftmax<axis = 1>(a)"),
    "Resize, nearest": between('b = Resize<mode = "nearest">(a, , s)', s=floats(1, 1, 2, 2)),
    "Resize, linear": between('b = Resize<mode = "linear">(a, , s)', s=floats(1, 1, 2, 3)),
    "Resize, corners": between(
        'b = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(a, , s)', s=floats(1, 1, 2, 3)
    ),
    "Resize to sizes": between('b = Resize<mode = "linear">(a, , , s)', s=ints(2, 4, 9, 11)),
    "Resize, cubic": between('b = Resize<mode = "cubic">(a, , s)', s=floats(1, 1, 2, 3), left=4),
    "Resize, axes": between('b = Resize<mode = "linear", axes = [2, 3]>(a, , s)', 18, s=floats(2, 2)),
    "Resize, computed": between(
        'h = Shape(a) c = Slice(h, z, e) s = Concat<axis = 0>(c, k) b = Resize<mode = "nearest">(a, , , s)',
        z=ints(0), e=ints(2), k=ints(12, 16),
    ),
    "CumSum": between("b = CumSum(a, k)", k=number(1)),
    "TopK": between("b, i = TopK<axis = 1>(a, k)", channels=2, k=ints(2)),
    "Tile": between("b = Tile(a, k)", channels=8, k=ints(1, 2, 1, 1)),
    "Expand": between("s = ReduceMean<axes = [2, 3]>(a) b = Expand(s, k)", k=ints(1, 4, 6, 8)),
    "Expand, computed": between("s = ReduceMean<axes = [2, 3]>(a) k = Shape(a) b = Expand(s, k)"),
    "Gather": between("b = Gather<axis = 1>(a, k)", channels=3, k=ints(3, 1, 0)),
    "LRN": between("b = LRN<size = 3>(a)"),
    "BatchNormalization": between(
        "b = BatchNormalization(a, p, q, r, s)", p=normal(4), q=normal(4), r=normal(4), s=abs(normal(4))
    ),
    "InstanceNormalization": between("b = InstanceNormalization(a, p, q)", p=normal(4), q=normal(4)),
    "GroupNormalization": between("b = GroupNormalization<num_groups = 2>(a, p, q)", 21, p=normal(4), q=normal(4)),
    "DepthToSpace": between("b = DepthToSpace<blocksize = 2>(a)", channels=1),
    "DepthToSpace, CRD": between('q = Sigmoid(a) b = DepthToSpace<blocksize = 2, mode = "CRD">(q)', channels=1),
    "SpaceToDepth": between("b = SpaceToDepth<blocksize = 2>(a)", channels=16),
    "pixel shuffle": between(
        "q = Conv(a, k) r = Reshape(q, s) t = Transpose<perm = [0, 1, 4, 2, 5, 3]>(r) b = Reshape(t, e)",
        channels=3, k=normal(12, 4, 1, 1), s=ints(0, 3, 2, 2, 6, 8), e=ints(0, 3, 12, 16),
    ),
    "MaxPool": between("b = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(a)"),
    "AveragePool": between("b = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(a)"),
    "ConvTranspose": between("b = ConvTranspose<strides = [2, 2]>(a, k)", k=normal(4, 4, 2, 2)),
    "channel shuffle": between(
        "r = Reshape(a, s) t = Transpose<perm = [0, 2, 1, 3, 4]>(r) b = Reshape(t, e)",
        s=ints(0, 2, 2, 6, 8), e=ints(0, 4, 6, 8), left=3,
    ),
    "channels last for a while": between(
        "t = Transpose<perm = [0, 2, 3, 1]>(a) u = LayerNormalization(t, c, c) v = MatMul(u, e) "
        "b = Transpose<perm = [0, 3, 1, 2]>(v)",
        c=normal(4), e=normal(4, 4),
    ),
    "attention of places": between(
        "r = Reshape(a, s) t = Transpose<perm = [0, 2, 1]>(r) q = MatMul(t, k) u = Softmax(q) "
        "v = Transpose<perm = [0, 2, 1]>(u) b = Reshape(v, e)",
        s=ints(0, 4, 48), k=normal(4, 4), e=ints(0, 4, 6, 8),
    ),
    "norm of channels": between("m = ReduceMean<axes = [1]>(a) d = Sub(a, m) q = Mul(d, d) v = ReduceMean<axes = [1]>(q) b = Div(d, v)"),
    "MatMul of columns": between("b = MatMul(a, k)", left=4, k=normal(8, 8)),
    "Shape of rows and columns": between("h = Shape<start = 2>(a) q = Cast<to = 1>(h) p = ReduceSum(q) b = Mul(a, p)"),
}  # fmt: skip

BEHIND: dict[str, Case] = {
    "an output that is an image": behind("b = Relu(a)", "float[n,4,6,8]", 2),
    "mean of the image": behind("b = ReduceMean<axes = [2, 3], keepdims = 0>(a)", "float[n,4]", 1),
    "mean of everything": behind("b = ReduceMean<keepdims = 0>(a)", "float", 1),
    "maximum of columns": behind("b = ReduceMax<axes = [-1], keepdims = 0>(a)", "float[n,4,6]", 2),
    "rows as one dimension": behind(
        "r = ReduceMean<axes = [2], keepdims = 0>(a) b = Conv(r, k)", "float[n,3,6]", 2, k=normal(3, 4, 3)
    ),
    "ArgMax": behind("b = ArgMax<axis = 1>(a)", "int64[n,1,6,8]", 1),
    "ArgMax without its axis": behind("b = ArgMax<axis = 1, keepdims = 0>(a)", "int64[n,6,8]", 1),
    "one channel": behind("b = Gather<axis = 1>(a, k)", "float[n,6,8]", 1, k=number(2)),
    "Softmax of pooled channels, opset 11": behind("g = GlobalAveragePool(a) b = Softmax(g)", "float[n,4,1,1]", 1, 11),
    "Gemm": behind("f = Flatten(a) b = Gemm<transB = 1>(f, k, d)", "float[n,7]", 1, k=normal(7, 192), d=normal(7)),
    "MatMul, with constants between": behind(
        "f = Flatten(a) g = Relu(f) h = Mul(g, m) b = MatMul(h, k)", "float[n,7]", 1, k=normal(192, 7), m=normal(192)
    ),
    "two Gemms": behind(
        "f = Reshape(a, s) p = Gemm(f, k) q = Gemm(f, j) b = Add(p, q)", "float[n,7]", 1,
        s=ints(-1, 192), k=normal(192, 7), j=normal(192, 7),
    ),
    "one weight, read in two orders": behind(
        "f = Flatten(a) p = Gemm(f, k) q = Gemm(z, k) b = Add(p, q)", "float[n,7]", 1, k=normal(192, 7), z=normal(1, 192)
    ),
    "Gemm, and others": behind(
        "f = Flatten(a) g = Gemm(f, k) h = Softmax(f) m = ReduceMax<axes = [1]>(h) b = Add(g, m)", "float[n,7]", 2,
        k=normal(192, 7),
    ),
    "a flattened output": behind("b = Flatten(a)", "float[n,192]", 2),
    "sequence of columns": behind(
        "r = ReduceMean<axes = [2]>(a) t = Squeeze(r, s) u = Transpose<perm = [2, 0, 1]>(t) b = MatMul(u, k)",
        "float[8,n,5]", 2, s=ints(2), k=normal(4, 5),
    ),
    "sequence of columns, all rows": behind(
        "r = Reshape(a, s) u = Transpose<perm = [0, 2, 1]>(r) b = MatMul(u, k)", "float[n,8,5]", 2,
        s=ints(0, 24, 8), k=normal(24, 5),
    ),
    "detector's boxes": behind(
        "t = Transpose<perm = [0, 2, 3, 1]>(a) b = Reshape(t, s)", "float[n,48,4]", 1, s=ints(0, -1, 4)
    ),
    "detector's anchors": behind(
        "r = Reshape(a, s) b = Transpose<perm = [0, 1, 3, 4, 2]>(r)", "float[n,2,6,8,2]", 2, s=ints(0, 2, 2, 6, 8)
    ),
    "places of channels": behind("r = Reshape(a, s) b = Softmax(r)", "float[n,4,48]", 2, s=ints(0, 4, 48)),
    "channels of places": behind(
        "r = Reshape(a, s) t = Transpose<perm = [0, 2, 1]>(r) b = Softmax(t)", "float[n,48,4]", 1, s=ints(0, 4, 48)
    ),
    "Reshape to what is computed": behind(
        "h = Shape(a) g = Gather(h, i) s = Concat<axis = 0>(g, k) r = Reshape(a, s) b = Softmax(r)", "float[n,192]", 2,
        i=ints(0), k=ints(-1),
    ),
}  # fmt: skip
