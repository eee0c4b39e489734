"""Models as LiteRT's files, and what its kernels compute of them beside ONNX Runtime."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.distances import largest
from onnx_lathe.runtime.targets.litert.contents import contents_of
from onnx_lathe.runtime.targets.litert.convert import Conversion
from onnx_lathe.runtime.targets.litert.file import pack
from onnx_lathe.runtime.targets.litert.litert import LiteRT
from onnx_lathe.runtime.targets.litert.running import REFERENCE, XNNPACK, Opened
from onnx_lathe.runtime.targets.litert.sizing import Fitted, fitted
from tests.support.builders import random

OPTIONS = LiteRT.Config()


def written(model: onnx.ModelProto, shapes: Mapping[str, str] | None = None, half: bool = False) -> Fitted:
    """Asserts that nothing is refused."""
    found = fitted(model, shapes or {}, half)
    assert not found.conversion.refused, found.conversion.refused
    return found


def refusals(model: onnx.ModelProto, shapes: Mapping[str, str] | None = None) -> list[str]:
    """`node: reason` of each."""
    return [f"{node}: {reason}" for node, _, reason in fitted(model, shapes or {}).conversion.refused]


def codes(found: Fitted | Conversion) -> list[str]:
    """Operators of the file, in order."""
    conversion = found.conversion if isinstance(found, Fitted) else found
    return [one.code for one in conversion.network.operators]


def content(model: onnx.ModelProto, found: Fitted, options: LiteRT.Config = OPTIONS) -> bytes:
    return pack(contents_of(model, found.conversion, options))


def feeds_of(model: onnx.ModelProto, batch: int = 1) -> dict[str, np.ndarray]:
    """Random values; an open dimension is `batch`."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: random(*(dim.dim_value or batch for dim in value.type.tensor_type.shape.dim))
        for value in model.graph.input
        if value.name not in stored
    }


def agree(
    model: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray] | None = None,
    kernels: Sequence[str] = (XNNPACK, REFERENCE),
    shapes: Mapping[str, str] | None = None,
    tolerance: float = 1e-5,
    half: bool = False,
) -> Fitted:
    """Asserts that all outputs are ONNX Runtime's, within `tolerance` of the largest value."""
    found = written(model, shapes, half)
    feeds = feeds_of(model) if feeds is None else feeds
    wanted = ort.run(ort.session(model, optimized=False), feeds)
    blob = content(model, found)
    for kernel in kernels:
        got = Opened(blob, "model.tflite", kernels=kernel).run(feeds)
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert got[name].shape == value.shape, (kernel, name)
            assert largest(got[name], value) <= tolerance, (kernel, name)
    return found
