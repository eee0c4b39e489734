"""Models as ncnn's layers, and what ncnn computes of them beside ONNX Runtime."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph.branches import take_branches
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.branches import decided
from onnx_lathe.runtime.targets.ncnn.convert import Conversion, convert
from onnx_lathe.runtime.targets.ncnn.dialect import Layer, param_text, write_weights
from onnx_lathe.runtime.targets.ncnn.running import Opened, Settings
from tests.support import ncnn_reader

Sizes = Mapping[str, tuple[int, ...]]


def fixed_sizes(model: onnx.ModelProto) -> Sizes:
    """Shapes of the inputs as the model says them, with 1 where the first dimension is open."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(
            dim.dim_value or (1 if axis == 0 else 0)
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        )
        for value in model.graph.input
        if value.name not in stored
    }


def converted(model: onnx.ModelProto, sizes: Sizes | None = None, others: Sizes | None = None) -> Conversion:
    """The layers; `sizes` and `others` where a size is open. Branches that these decide are taken before, as the
    lowering does.
    """
    sizes = sizes or fixed_sizes(model)
    others = others or sizes
    while chosen := decided(model, sizes, others):
        graph = import_model(model)
        take_branches(graph, chosen, PassReport())
        model = export_model(graph)
        onnx.checker.check_model(model, full_check=True)
    return convert(model, sizes, others)


def refusals(
    model: onnx.ModelProto, sizes: Sizes | None = None, others: Sizes | None = None
) -> list[tuple[str, str, str]]:
    return list(converted(model, sizes, others).refused)


def agree(
    model: onnx.ModelProto,
    sizes: Sizes | None = None,
    others: Sizes | None = None,
    *,
    feeds: Mapping[str, np.ndarray] | None = None,
    tolerance: float = 1e-5,
    half_weights: bool = False,
    elsewhere: Sequence[Sizes] = (),
) -> Sequence[Layer]:
    """Checks that every output of ncnn is ONNX Runtime's, in shape and within `tolerance` of its largest value, at
    `sizes`, at `others` and `elsewhere`, and that the strict reader takes the files. Returns the layers.
    """
    onnx.checker.check_model(model, full_check=True)
    found = converted(model, sizes, others)
    assert not found.refused, found.refused
    session = ort.session(model)
    with tempfile.TemporaryDirectory() as folder:
        param, weights = Path(folder) / "model.param", Path(folder) / "model.bin"
        param.write_text(param_text(found.layers), encoding="utf-8")
        with weights.open("wb") as file:
            write_weights(found.layers, file, half_weights)
        ncnn_reader.read(param, weights)
        opened = Opened(param, weights, found.inputs, found.outputs, Settings())
        for shapes in [sizes or fixed_sizes(model)] + ([others] if others else []) + list(elsewhere):
            given = feeds or random_feeds(model, shapes)
            wanted, got = ort.run(session, given), opened.sample(given)
            assert got.keys() == wanted.keys()
            for name, value in wanted.items():
                assert got[name].shape == value.shape, (name, got[name].shape, value.shape)
                largest = max(float(np.abs(value).max(initial=0.0)), 1e-6)
                worst = float(np.abs(got[name].astype(np.float64) - value).max(initial=0.0)) / largest
                assert worst <= tolerance, (name, worst)
    return found.layers


def random_feeds(model: onnx.ModelProto, shapes: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    return {
        name: generator.standard_normal(shape).astype(np.float32)
        if types[name] == onnx.TensorProto.FLOAT
        else generator.integers(0, 4, shape).astype(onnx.helper.tensor_dtype_to_np_dtype(types[name]))
        for name, shape in shapes.items()
    }


def types(layers: Sequence[Layer]) -> list[str]:
    """Types of the layers, without inputs."""
    return [layer.type for layer in layers if layer.type != "Input"]
