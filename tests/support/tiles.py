"""The tiles of minimal filtering as a trainer is given them, and models whose convolutions carry a choice."""

from collections.abc import Iterator

import numpy as np
import onnx

from onnx_lathe.kernels import DIRECT, NAMES
from onnx_lathe.metadata import CONV_ALGORITHM
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.tiles import NCNN
from tests.support.builders import build

TILES = {name: NCNN[m] for m, name in NAMES.items() if m != DIRECT}


def choose(model: onnx.ModelProto, algorithm: str, node: int = 0) -> onnx.ModelProto:
    """The model itself, whose node of this number now carries the algorithm."""
    model.graph.node[node].metadata_props.add(key=CONV_ALGORITHM, value=algorithm)
    return model


def sqnr(exact: np.ndarray, found: np.ndarray) -> float:
    """In dB."""
    return float(10 * np.log10(np.square(exact).sum() / np.square(found - exact).sum()))


class Levels(DataSource):
    """Small pictures of a high level: where float16 has few digits left for what differs."""

    labelled, fingerprint, description = False, "levels", "levels"

    def __init__(self, count: int = 128, seed: int = 1) -> None:
        pictures = np.random.default_rng(seed).standard_normal((count, 3, 14, 14)) + 64
        self.count, self.pictures = count, pictures.astype(np.float32)

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        order = np.arange(len(self.pictures))
        if shuffle_seed is not None:
            np.random.default_rng(shuffle_seed).shuffle(order)
        for start in range(0, len(order), size):
            yield Batch({"x": self.pictures[order[start : start + size]]})


def detector(algorithm: str = "winograd63") -> onnx.ModelProto:
    """Means of eight filters that do not see the level, for the pictures of Levels."""
    text = "(float[n, 3, 14, 14] x) => (float[n, 8, 1, 1] y) { [conv] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu(a)  y = GlobalAveragePool(r) }"
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3))
    weight -= weight.mean((1, 2, 3), keepdims=True)
    return choose(build(text, w=weight.astype(np.float32), b=np.ones(8, np.float32)), algorithm)
