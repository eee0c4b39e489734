"""Where the models are that several tests use."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import pytest

from passes.base import Context
from passes.fold import Fold
from passes.graph.model import export_model, import_model

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
MATERIALIZED_PARAMETERS = 10_000_000

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs on two workers; more threads than cores slow both down


@pytest.fixture(scope="session")
def lenet5() -> Path:
    return MODELS / "lenet5-mnist" / "model.onnx"


@pytest.fixture(scope="session")
def mnist() -> Path:
    return MODELS / "mnist.npz"


def shipped_with_onnx(pattern: str) -> list[Path]:
    """Models inside the `onnx` package: a collection that Lathe's authors did not write."""
    return sorted((Path(onnx.__file__).parent / "backend" / "test" / "data").glob(pattern))


def load_foreign(path: Path) -> onnx.ModelProto:
    """A model of that collection at an opset that Lathe takes, with real weights where it had none.

    The collection is of opset 6 to 9, and its `light_*` models make their weights at run time with ConstantOfShape, to be small in a
    package. Up to ten million parameters they become random initializers here, so that passes find something to do.
    """
    model = onnx.load(path)
    if model.opset_import[0].version < 11:
        model = onnx.version_converter.convert_version(model, 13)
    generator = np.random.default_rng(0)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    sources = [node for node in model.graph.node if node.op_type == "ConstantOfShape" and node.input[0] in stored]
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


@pytest.fixture
def light(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """A `light_*` model (the parameter: its path) with all its weights stored, folded as a recipe would do it.

    Hidden layers of 4096, hundreds of megabytes, are of 256 here.
    """
    model = onnx.load(request.param)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and 4096 in (sizes := onnx.numpy_helper.to_array(tensor)):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.where(sizes == 4096, 256, sizes), tensor.name))
    for value in model.graph.value_info:
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr(f"{__name__}.MATERIALIZED_PARAMETERS", 30_000_000)
    graph = import_model(load_foreign(tmp_path / "model.onnx"))
    Fold().apply(graph, Context())
    return export_model(graph)


@pytest.fixture(scope="session")
def small_mnist(tmp_path_factory: pytest.TempPathFactory, mnist: Path) -> Path:
    """300 training and 400 test images, so that a whole run takes seconds."""
    path = tmp_path_factory.mktemp("data") / "mnist.npz"
    with np.load(mnist) as arrays:
        train = {f"train/{key}": arrays[f"train/{key}"][:300] for key in ("image", "labels")}
        test = {f"test/{key}": arrays[f"test/{key}"][:400] for key in ("image", "labels")}
    np.savez(path, **train, **test)
    return path
