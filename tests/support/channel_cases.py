"""Small networks whose channels are coupled: text, weights, and the shapes that are left at a sparsity of 0.3."""

import numpy as np

from tests.support.builders import random

IMAGE = "(float[N, 3, 8, 8] x) => (float[N, 5, H, W] y)"
CHAIN = f"{IMAGE} {{ a = Conv (x, u, c) b = Relu (a) y = Conv (b, v) }}"


def variance(size: int) -> np.ndarray:
    return np.abs(random(size)) + np.float32(0.5)


def bn(size: int) -> dict[str, np.ndarray]:
    return {"g": random(size), "s": random(size), "m": random(size), "n": variance(size)}


CASES = {
    "bias": (
        CHAIN,
        {"u": random(10, 3, 3, 3), "c": random(10), "v": random(5, 10, 1, 1)},
        {"u": [7, 3, 3, 3], "c": [7], "v": [5, 7, 1, 1]},
    ),
    "batch normalization": (
        f"{IMAGE} {{ a = Conv (x, u) b = BatchNormalization (a, g, s, m, n) y = Conv (b, v) }}",
        {"u": random(10, 3, 3, 3), "v": random(5, 10, 1, 1)} | bn(10),
        {"u": [7, 3, 3, 3], "g": [7], "s": [7], "m": [7], "n": [7], "v": [5, 7, 1, 1]},
    ),
    "instance normalization and prelu": (
        f"{IMAGE} {{ a = Conv (x, u) b = InstanceNormalization (a, g, s) d = PRelu (b, p) e = Mul (d, k) f = Add (o, e) y = Conv (f, v) }}",
        {"u": random(10, 3, 3, 3), "v": random(5, 10, 1, 1), "g": random(10), "s": random(10)}
        | {"p": random(10, 1, 1), "k": random(1, 10, 1, 1), "o": random(1, 1, 1)},
        {
            "u": [7, 3, 3, 3],
            "g": [7],
            "s": [7],
            "p": [7, 1, 1],
            "k": [1, 7, 1, 1],
            "o": [1, 1, 1],
            "v": [5, 7, 1, 1],
        },
    ),
    "residual": (
        f"{IMAGE} {{ a = Conv (x, u) b = Relu (a) d = Conv <pads = [1, 1, 1, 1]> (b, w) e = Add (d, a) y = Conv (e, v) }}",
        {"u": random(10, 3, 1, 1), "w": random(10, 10, 3, 3), "v": random(5, 10, 1, 1)},
        {"u": [7, 3, 1, 1], "w": [7, 7, 3, 3], "v": [5, 7, 1, 1]},
    ),
    "concat": (
        f"{IMAGE} {{ a = Conv (x, u) b = Conv (x, w) d = Concat <axis = 1> (a, x, b) y = Conv (d, v) }}",
        {"u": random(10, 3, 1, 1), "w": random(20, 3, 1, 1), "v": random(5, 33, 1, 1)},
        {"u": [7, 3, 1, 1], "w": [14, 3, 1, 1], "v": [5, 24, 1, 1]},
    ),
    "split": (
        f"{IMAGE} {{ a = Conv (x, u) b, d = Split <axis = 1> (a, z) e = Sigmoid (b) f = Mul (e, d) y = Conv (f, v) }}",
        {"u": random(20, 3, 1, 1), "z": np.array([10, 10]), "v": random(5, 10, 1, 1)},
        {"u": [14, 3, 1, 1], "v": [5, 7, 1, 1]},
    ),
    "slice": (
        f"{IMAGE} {{ a = Conv (x, u) b = Slice (a, i, j, k) d = Slice (a, j, l, k) y1 = Conv (b, v) y2 = Conv (d, w) y = Add (y1, y2) }}",
        {
            "u": random(20, 3, 1, 1),
            "i": np.array([0]),
            "j": np.array([8]),
            "l": np.array([2**31]),
            "k": np.array([1]),
        }
        | {"v": random(5, 8, 1, 1), "w": random(5, 12, 1, 1)},
        {"u": [14, 3, 1, 1]},
    ),
    "depthwise": (
        f"{IMAGE} {{ a = Conv (x, u) b = Conv <group = 10> (a, w, c) y = Conv (b, v) }}",
        {"u": random(10, 3, 1, 1), "w": random(20, 1, 3, 3), "c": random(20), "v": random(5, 20, 1, 1)},
        {"u": [7, 3, 1, 1], "w": [14, 1, 3, 3], "c": [14], "v": [5, 14, 1, 1]},
    ),
    "grouped": (
        f"{IMAGE} {{ a = Conv (x, u) b = Conv <group = 2> (a, w, c) y = Conv (b, v) }}",
        {"u": random(20, 3, 1, 1), "w": random(20, 10, 3, 3), "c": random(20), "v": random(5, 20, 1, 1)},
        {"u": [14, 3, 1, 1], "w": [14, 7, 3, 3], "c": [14], "v": [5, 14, 1, 1]},
    ),
    "shuffle": (
        "(float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) { a = Conv (x, u) b = Reshape (a, p) "
        "d = Transpose <perm = [0, 2, 1, 3, 4]> (b) e = Reshape (d, q) y = Conv (e, v) }",
        {
            "u": random(20, 3, 1, 1),
            "p": np.array([0, 2, 10, 8, 8]),
            "q": np.array([-1, 20, 8, 8]),
            "v": random(5, 20, 1, 1),
        },
        {"u": [14, 3, 1, 1], "v": [5, 14, 1, 1]},
    ),
    "grouped shuffle": (
        "(float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) { a = Conv (x, u) g = Conv <group = 3> (a, t) b = Reshape (g, p) "
        "d = Transpose <perm = [0, 2, 1, 3, 4]> (b) e = Reshape (d, q) f = Conv <group = 30> (e, r) "
        "h = Conv <group = 3> (f, w) y = Conv (h, v) }",
        {
            "u": random(30, 3, 1, 1),
            "t": random(30, 10, 1, 1),
            "r": random(30, 1, 1, 1),
            "w": random(30, 10, 1, 1),
            "v": random(5, 30, 1, 1),
        }
        | {"p": np.array([0, 3, 10, 8, 8]), "q": np.array([0, 30, 8, 8])},
        {"u": [21, 3, 1, 1], "t": [21, 7, 1, 1], "r": [21, 1, 1, 1], "w": [21, 7, 1, 1], "v": [5, 21, 1, 1]},
    ),
    "flatten": (
        "(float[N, 3, 4, 4] x) => (float[N, 5] y) { a = Conv (x, u) b = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a) "
        "d = Flatten (b) y = Gemm <transB = 1> (d, v) }",
        {"u": random(10, 3, 1, 1), "v": random(5, 40)},
        {"u": [7, 3, 1, 1], "v": [5, 28]},
    ),
    "reshape": (
        "(float[N, 3, 4, 4] x) => (float[N, 5] y) { a = Conv (x, u) d = Reshape (a, p) y = MatMul (d, v) }",
        {"u": random(10, 3, 1, 1), "p": np.array([-1, 160]), "v": random(160, 5)},
        {"u": [7, 3, 1, 1], "v": [112, 5]},
    ),
    "global average pool": (
        "(float[N, 3, H, W] x) => (float[N, 5] y) { a = Conv (x, u) b = GlobalAveragePool (a) d = Squeeze (b, s) y = Gemm (d, v, c) }",
        {"u": random(10, 3, 1, 1), "s": np.array([2, 3]), "v": random(10, 5), "c": random(5)},
        {"u": [7, 3, 1, 1], "v": [7, 5], "c": [5]},
    ),
    "transposed convolution": (
        f"{IMAGE} {{ a = ConvTranspose (x, u, c) b = Relu (a) y = ConvTranspose (b, v) }}",
        {"u": random(3, 10, 2, 2), "c": random(10), "v": random(10, 5, 1, 1)},
        {"u": [3, 7, 2, 2], "c": [7], "v": [7, 5, 1, 1]},
    ),
    "grouped transposed convolution": (
        f"{IMAGE} {{ a = Conv (x, u) b = ConvTranspose <group = 2> (a, w, c) y = Conv (b, v) }}",
        {"u": random(20, 3, 1, 1), "w": random(20, 10, 2, 2), "c": random(20), "v": random(5, 20, 1, 1)},
        {"u": [14, 3, 1, 1], "w": [14, 7, 2, 2], "c": [14], "v": [5, 14, 1, 1]},
    ),
    "padded shortcut": (
        f"{IMAGE} {{ a = Conv (x, u) b = Pad (a, p) d = Conv (a, w) e = Add (b, d) y = Conv (e, v) }}",
        {
            "u": random(10, 3, 1, 1),
            "w": random(20, 10, 1, 1),
            "p": np.array([0, 5, 0, 0, 0, 5, 0, 0]),
            "v": random(5, 20, 1, 1),
        },
        {},  # how many of each go depends on which are small
    ),
    "resized": (
        "(float[N, 3, 8, 8] x) => (float[N, 5, 16, 16] y) { a = Conv (x, u) b = Resize (a, , , z) d = Resize (b, , r) y = Conv (d, v) }",
        {
            "u": random(10, 3, 1, 1),
            "z": np.array([1, 10, 8, 8]),
            "r": np.array([1, 1, 2, 2], np.float32),
            "v": random(5, 10, 1, 1),
        },
        {"u": [7, 3, 1, 1], "v": [5, 7, 1, 1]},
    ),
    "squeeze and excitation": (
        f"{IMAGE} {{ a = Conv (x, u) b = GlobalAveragePool (a) d = Conv (b, w) e = Conv (d, z) "
        "f = HardSigmoid (e) h = Mul (a, f) y = Conv (h, v) }",
        {
            "u": random(20, 3, 1, 1),
            "w": random(10, 20, 1, 1),
            "z": random(20, 10, 1, 1),
            "v": random(5, 20, 1, 1),
        },
        {"u": [14, 3, 1, 1], "w": [7, 14, 1, 1], "z": [14, 7, 1, 1], "v": [5, 14, 1, 1]},
    ),
    "shared weight": (
        f"{IMAGE} {{ a = Conv (x, u) b = Conv (a, w) d = Relu (b) e = Conv (d, w) y = Conv (e, v) }}",
        {"u": random(10, 3, 1, 1), "w": random(10, 10, 1, 1), "v": random(5, 10, 1, 1)},
        {"u": [7, 3, 1, 1], "w": [7, 7, 1, 1], "v": [5, 7, 1, 1]},
    ),
    "several readers": (
        f"{IMAGE} {{ a = Conv (x, u) b = Conv (a, v) d = Tanh (a) e = Conv (d, w) y = Add (b, e) }}",
        {"u": random(10, 3, 1, 1), "v": random(5, 10, 1, 1), "w": random(5, 10, 1, 1)},
        {"u": [7, 3, 1, 1], "v": [5, 7, 1, 1], "w": [5, 7, 1, 1]},
    ),
}
