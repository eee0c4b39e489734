"""A small network with points to train it on, and how good and how alike networks are."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.runtime.data import Batch, DataSource
from tests.support import quantized
from tests.support.builders import build

CLASSES = 4
CENTRES = np.random.default_rng(1).standard_normal((CLASSES, 6)).astype(np.float32) * 3


class Points(DataSource):
    """Points around one centre per class; `known=False` hides how many there are."""

    fingerprint, description = "points", "points"

    def __init__(
        self, count: int = 512, labelled: bool = True, known: bool = True, seed: int = 0, name: str = "x"
    ) -> None:
        generator = np.random.default_rng(seed)
        self.labels = generator.integers(0, CLASSES, count)
        self.points = CENTRES[self.labels] + generator.standard_normal((count, 6)).astype(np.float32)
        self.labelled, self.count, self.name = labelled, count if known else None, name

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        order = np.arange(len(self.points))
        if shuffle_seed is not None:
            np.random.default_rng(shuffle_seed).shuffle(order)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield Batch(
                {self.name: self.points[rows].astype(np.float32)},
                self.labels[rows] if self.labelled else None,
            )


def options(**changes: Any) -> dict[str, Any]:
    return asdict(replace(Retrain.Config(), **changes))


def model(
    tail: str = "y = Gemm(h, v, c)", batch: str = "n", seed: int = 0, scale: float = 1.0, **more: np.ndarray
) -> onnx.ModelProto:
    generator = np.random.default_rng(seed)
    weights = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in {"w": (6, 8), "v": (8, CLASSES)}.items()
    }
    weights |= {"b": np.zeros(8, np.float32), "c": np.zeros(CLASSES, np.float32)}
    text = (
        f"(float[{batch}, 6] x) => (float[{batch}, {CLASSES}] y) {{ a = Gemm(x, w, b)  h = Relu(a)  {tail} }}"
    )
    return build(text, **{name: value * np.float32(scale) for name, value in weights.items()}, **more)


def updated(start: onnx.ModelProto, values: Any) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(start)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return result


def accuracy(candidate: onnx.ModelProto) -> float:
    data = Points(1000, seed=5)
    return float((quantized.run(candidate, {"x": data.points})[0].argmax(1) == data.labels).mean())


def disagreement(one: onnx.ModelProto, other: onnx.ModelProto) -> float:
    """Mean difference of the probabilities that two models give, 0 to 2."""
    import torch

    points = {"x": Points(1000, seed=5).points}
    a, b = (
        torch.softmax(torch.from_numpy(quantized.run(candidate, points)[0]), 1) for candidate in (one, other)
    )
    return float((a - b).abs().sum(1).mean())
