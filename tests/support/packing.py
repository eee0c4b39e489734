"""Tensors and models that exercise every coder of the packed format."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper


def model(tensors: Mapping[str, np.ndarray] | list[onnx.TensorProto]) -> bytes:
    """The file of a model with these initializers."""
    if isinstance(tensors, Mapping):
        tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()]
    return helper.make_model(
        helper.make_graph([], "g", [], [], tensors), opset_imports=[helper.make_opsetid("", 21)]
    ).SerializeToString()


def pruned(shape: tuple[int, ...], density: float, values: int, seed: int = 0) -> np.ndarray:
    """Few distinct values, zero elsewhere, rows of different density, float32."""
    generator = np.random.default_rng(seed)
    palette = generator.standard_normal(values).astype(np.float32)
    rows = np.exp(generator.standard_normal((shape[0], *(1,) * (len(shape) - 1))))
    return np.where(
        generator.random(shape) < density * rows, palette[generator.integers(0, values, shape)], 0
    ).astype(np.float32)


def two_of_four(shape: tuple[int, int]) -> np.ndarray:
    """The two largest of every four neighbours in a row, float32."""
    values = np.random.default_rng(3).standard_normal((shape[0], shape[1] // 4, 4))
    rank = np.argsort(np.argsort(-np.abs(values), axis=2), axis=2)
    return np.where(rank < 2, values, 0).reshape(shape).astype(np.float32)


def arrays() -> dict[str, np.ndarray]:
    """A tensor for each kind of structure and each element type; the links between the sparse ones are on
    purpose.
    """
    generator = np.random.default_rng(1)
    normal, integers = generator.standard_normal, generator.integers
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38], np.float32)
    nan = np.array([0x7FC00000, 0xFFC00001, 0x7F800001, 0x7FFFFFFF] * 3, np.uint32).view(np.float32)
    found: dict[str, np.ndarray] = {
        "dense": pruned((30, 49), 0.05, 5), "after": pruned((20, 30), 0.05, 5, 2),
        "conv": pruned((16, 8, 3, 3), 0.2, 6), "conv_after": pruned((12, 16, 3, 3), 0.1, 6),
        "numbers": np.where(generator.random((30, 20)) < 0.1, normal((30, 20)), 0).astype(np.float32),
        "two_of_four": two_of_four((24, 32)), "bias": normal(40).astype(np.float32), "special": special, "nan": nan,
        "short_mantissa": (normal(60).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32),
        "int8": np.clip(generator.normal(0, 20, (20, 33)), -127, 127).astype(np.int8), "uint8": integers(0, 200, 300).astype(np.uint8),
        "uint4": integers(0, 9, (7, 9)).astype(ml_dtypes.uint4), "int4": integers(-8, 8, (5, 5, 5)).astype(ml_dtypes.int4),
        "uint4_sparse": np.where(generator.random((17, 21)) < 0.2, integers(0, 16, (17, 21)), 4).astype(ml_dtypes.uint4),
        "bfloat16": normal((9, 30)).astype(ml_dtypes.bfloat16), "float16": normal((9, 30)).astype(np.float16),
        "float8": normal((9, 30)).astype(ml_dtypes.float8_e4m3fn), "double": normal((9, 30)),
        "complex64": (normal((9, 3)) + 1j * normal((9, 3))).astype(np.complex64), "complex128": normal((3, 3)) * (1 + 2j),
        "int64": integers(-3, 5, 40), "uint16": integers(0, 65536, 50).astype(np.uint16), "int32": np.arange(100, dtype=np.int32),
        "bool": generator.random((20, 20)) < 0.3, "zeros": np.zeros((5, 6), np.float32), "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(3.5), "one": np.zeros((1, 1, 1), np.float32), "text": np.array(["a", "b"], object),
    }  # fmt: skip
    return found | {"copy": found["bias"]}
