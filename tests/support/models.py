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


def load_foreign(path: Path, thinner: int = 1) -> onnx.ModelProto:
    """A model of that collection at an opset that Lathe takes, with real weights where it had none, and with so many
    times fewer channels, unless they would not come out even.

    The collection is of opset 6 to 9, and its `light_*` models make their weights at run time with
    ConstantOfShape, to be small in a package. Up to ten million parameters they become random initializers
    here, so that passes find something to do.
    """
    model = onnx.load(path)
    if thinner > 1 and _comes_out_even(model, thinner):
        _thin(model, thinner)
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


def _made(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """What ConstantOfShape and Reshape are given as a shape, by name."""
    wanted = {node.input[-1] for node in model.graph.node if node.op_type in ("ConstantOfShape", "Reshape")}
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in wanted}


def _comes_out_even(model: onnx.ModelProto, by: int) -> bool:
    """Whether channels are multiples of that, and none are grouped by their number, as those of a depthwise layer."""
    groups = [
        attribute.i for node in model.graph.node for attribute in node.attribute if attribute.name == "group"
    ]
    sizes = np.concatenate([onnx.numpy_helper.to_array(shape)[:2] for shape in _made(model).values()] or [[]])
    return max(groups, default=1) < 8 and bool(np.all((sizes <= 3) | (sizes % by == 0)))


def _thin(model: onnx.ModelProto, by: int) -> None:
    """A dimension of more than 3, the colours of an image, among a weight's first two is of channels."""
    shapes = _made(model)
    thin = {name: onnx.numpy_helper.to_array(shape).copy() for name, shape in shapes.items()}
    for shape in thin.values():
        channels = shape[: 4 if shape[:2].tolist() == [1, 1] else 2]  # of old classifiers the last two
        channels[:] = np.where(channels > 3, channels // by, channels)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            whole = onnx.numpy_helper.to_array(tensor)
            thin[tensor.name] = whole[
                tuple(slice(size // by if size > 3 else size) for size in whole.shape[:2])
            ]
        if tensor.name in thin:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(np.ascontiguousarray(thin[tensor.name]), tensor.name)
            )
    stored = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for value in [*model.graph.input, *model.graph.output]:
        shape = value.type.tensor_type.shape.dim
        if value.name in stored:
            for size, thinner in zip(shape, stored[value.name], strict=True):
                size.dim_value = thinner
        elif value in model.graph.output:  # scores of classes
            shape[1].dim_value //= by
    del model.graph.value_info[:]


def beginning(model: onnx.ModelProto, most: int) -> onnx.ModelProto:
    """The model up to the last place among its first `most` nodes where a single tensor goes on: of many blocks that
    are alike the first. A model of fewer nodes is whole.
    """
    if len(model.graph.node) <= most:
        return model
    last = {name: place for place, node in enumerate(model.graph.node) for name in node.input}
    live: set[str] = set()
    for place, node in enumerate(model.graph.node[:most]):
        live = {name for name in (*live, *node.output) if last.get(name, place) > place}
        if len(live) == 1:
            (end,), stop = live, place + 1
    shapes = {
        value.name: value
        for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    }
    graph = model.graph
    del graph.node[stop:]
    del graph.value_info[:]
    graph.output.pop()
    graph.output.append(shapes[end])
    read = {name for node in graph.node for name in node.input}
    for listed in (graph.initializer, graph.input):
        for one in [one for one in listed if one.name not in read]:
            listed.remove(one)
    return model


def miniature(path: Path, side: int, thinner: int = 8) -> onnx.ModelProto:
    """A `light_*` model with so many times fewer channels, for pictures of `side` x `side`: with what averages the
    last map averaging all of it, whatever its size.
    """
    model = load_foreign(path, thinner)
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in stored:
            for size in value.type.tensor_type.shape.dim[2:]:
                size.dim_value = side
    for node in model.graph.node:
        if node.op_type == "AveragePool":
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
    del model.graph.value_info[:]
    return model
