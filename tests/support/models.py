"""Where the models are that several tests use: this repository's, and those that the `onnx` package ships."""

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
MATERIALIZED_PARAMETERS = 10_000_000


def shipped_with_onnx(pattern: str) -> list[Path]:
    """Models inside the `onnx` package: a collection that Lathe's authors did not write."""
    return sorted((Path(onnx.__file__).parent / "backend" / "test" / "data").glob(pattern))


def load_foreign(path: Path) -> onnx.ModelProto:
    """A model of that collection at an opset that Lathe takes, with real weights where it had none.

    The collection is of opset 6 to 9, and its `light_*` models make their weights at run time with
    ConstantOfShape, to be small in a package. Up to ten million parameters they become random initializers
    here, so that passes find something to do.
    """
    model = onnx.load(path)
    if model.opset_import[0].version < 11:
        model = onnx.version_converter.convert_version(model, 13)
    generator = np.random.default_rng(0)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    sources = [
        node for node in model.graph.node if node.op_type == "ConstantOfShape" and node.input[0] in stored
    ]
    shapes = [tuple(onnx.numpy_helper.to_array(stored[node.input[0]])) for node in sources]
    if not sources or sum(int(np.prod(shape)) for shape in shapes) > MATERIALIZED_PARAMETERS:
        return model
    for node, shape in zip(sources, shapes, strict=True):
        scale = np.sqrt(2 / max(np.prod(shape[1:]), 1)) if len(shape) > 1 else 0.1
        values = generator.standard_normal(shape).astype(np.float32) * np.float32(scale)
        if len(shape) == 1:
            values = np.abs(values) + np.float32(0.5)  # variances and scales among them
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
        model.graph.node.remove(node)
    return model
