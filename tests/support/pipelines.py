"""Networks that are awkward to cut into stages, and pictures to train them on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_lathe.metadata import SPARSE, format_sparse
from onnx_lathe.runtime.data import Batch, DataSource
from tests.support.builders import build

CLASSES = 5
SIDES = (9, 7)


class Pictures(DataSource):
    """Noise [3, 9, 7] around one picture for each class; `fails_at` batches from now on, once."""

    labelled, fingerprint, description = True, "pictures", "pictures"

    def __init__(self, count: int, dtype: str = "float64", fails_at: int | None = None) -> None:
        generator = np.random.default_rng(3)
        self.labels = generator.integers(0, CLASSES, count)
        centres = generator.standard_normal((CLASSES, 3, *SIDES))
        noise = generator.standard_normal((count, 3, *SIDES))
        self.pictures = (centres[self.labels] + noise).astype(dtype)
        self.count, self.left = count, fails_at

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        order = np.arange(len(self.pictures))
        if shuffle_seed is not None:
            np.random.default_rng(shuffle_seed).shuffle(order)
        for start in range(0, len(order), size):
            if self.left is not None and shuffle_seed is not None:
                self.left -= 1
                if self.left < 0:
                    raise InterruptedError("the lights went out")
            rows = order[start : start + size]
            yield Batch({"x": self.pictures[rows]}, self.labels[rows])


def residual(dtype: str = "float64", seed: int = 0) -> onnx.ModelProto:
    """x [N, 3, 9, 7] -> y [N, 5], with frozen batch normalization, skip connections that lie in each other,
    a shape and a comparison that are read long after, and a weight with zeros that is decoded at the top.
    """
    generator = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.3) -> np.ndarray:
        return (scale * generator.standard_normal(shape)).astype(dtype)

    kind = {"float32": "float", "float64": "double"}[dtype]
    book = np.concatenate((np.zeros(1), generator.standard_normal(7) * 0.3)).astype(dtype)
    text = f"""
        ({kind}[n, 3, 9, 7] x) => ({kind}[n, {CLASSES}] y) {{
            w3 = Gather (book, indices)
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            b = BatchNormalization (a, s1, b1, m1, v1)
            c = Relu (b)
            shape = Shape (c)
            large = Greater (c, half)
            d = Conv <pads = [1, 1, 1, 1]> (c, w2, c2)
            e = Relu (d)
            f = Conv <pads = [1, 1, 1, 1]> (e, w3)
            g = BatchNormalization (f, s2, b2, m2, v2)
            h = Add (g, c)
            i = Relu (h)
            chosen = Where (large, i, h)
            j = Conv (chosen, w4)
            k = Add (j, a)
            l = GlobalAveragePool (k)
            first = Gather (shape, zero)
            count = Unsqueeze (first, zeros)
            wanted = Concat <axis = 0> (count, rest)
            m = Reshape (l, wanted)
            y = Gemm <transB = 1> (m, w5, c5)
        }}"""
    model = build(
        text,
        book=book,
        indices=generator.integers(0, 8, (4, 4, 3, 3)),
        w1=normal(4, 3, 3, 3),
        w2=normal(4, 4, 3, 3),
        w4=normal(4, 4, 1, 1),
        w5=normal(CLASSES, 4),
        c2=normal(4),
        c5=normal(CLASSES),
        half=np.array(0.5, dtype),
        zero=np.array(0),
        zeros=np.array([0]),
        rest=np.array([-1]),
        **{f"s{index}": (1 + normal(4)).astype(dtype) for index in (1, 2)},
        **{f"b{index}": normal(4) for index in (1, 2)},
        **{f"m{index}": normal(4) for index in (1, 2)},
        **{f"v{index}": np.square(normal(4)) + np.ones(4, dtype) for index in (1, 2)},
    )
    onnx.helper.set_model_props(model, {SPARSE: format_sparse({"w3": "unstructured"})})
    return model


def regression(dtype: str = "float64", seed: int = 0) -> onnx.ModelProto:
    """x [N, 3, 9, 7] -> two outputs that are no classes, one of them computed halfway."""
    generator = np.random.default_rng(seed)
    kind = {"float32": "float", "float64": "double"}[dtype]
    text = f"""
        ({kind}[n, 3, 9, 7] x) => ({kind}[n, 2, 3] y, {kind}[n, 4, 1] z) {{
            f = Flatten (x)
            a = MatMul (f, w)
            t = Tanh (a)
            b = MatMul (t, v)
            z = Reshape (b, narrow)
            r = Relu (b)
            c = MatMul (r, u)
            y = Reshape (c, wide)
        }}"""
    weights: dict[str, Any] = {
        name: (generator.standard_normal(shape) / np.sqrt(shape[0])).astype(dtype)
        for name, shape in {"w": (189, 8), "v": (8, 4), "u": (4, 6)}.items()
    }
    return build(text, wide=np.array([-1, 2, 3]), narrow=np.array([-1, 4, 1]), **weights)


def tied(dtype: str = "float64") -> onnx.ModelProto:
    """Its first and its last layer share a weight."""
    kind = {"float32": "float", "float64": "double"}[dtype]
    text = f"""
        ({kind}[n, 6] x) => ({kind}[n, 6] y) {{
            a = MatMul (x, w)
            b = Relu (a)
            c = MatMul (b, v)
            y = MatMul (c, w)
        }}"""
    generator = np.random.default_rng(0)
    return build(text, **{name: generator.standard_normal((6, 6)).astype(dtype) for name in "wv"})


def moved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with smaller weights; zeros stay."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and tensor.name[0] in "wuvb":
            tensor.CopyFrom(numpy_helper.from_array((array * 0.7).astype(array.dtype), tensor.name))
    return other
