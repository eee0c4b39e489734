"""Small models for tests, in the syntax of onnx.parser."""

from collections.abc import Mapping

import numpy as np
import onnx

from onnx_lathe.runtime.running import ort
from tests.support import seeds


def random(*shape: int) -> np.ndarray:
    """Standard normal float32 values; each call in a test gives others."""
    return seeds.generator().standard_normal(shape).astype(np.float32)


def build(text: str, opset: int = 17, **initializers: np.ndarray) -> onnx.ModelProto:
    """A checked model: `text` is `(inputs) => (outputs) { nodes }`; import_model names its nodes by
    operator and position.
    """
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g {text}')
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()
    )
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name, computed by ONNX Runtime in one thread."""
    return ort.run(ort.session(model, threads=1), feeds)
