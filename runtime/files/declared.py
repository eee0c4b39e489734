"""What a model declares of its values, checked beyond what onnx.checker looks at: its types exist, and what is stored
or fed has the type and shape that an output of the same name says.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files.tensors import all_graphs, all_nodes, bits_of

MOST_COUNTED = 1 << 21
"""Values of a Range of constants, copies of a Tile: onnx's shape inference (1.23) makes lists of them all."""
MOST_AXES = 64
"""Values of the constants that say how many."""
_KNOWN = frozenset(TensorProto.DataType.values())
_NUMBERS = ("value_int", "value_ints", "value_float", "value_floats")


def check_declared(model: ModelProto) -> None:
    """Raises ModelError naming the value."""
    for graph in all_graphs(model):
        for role, values in (("input", graph.input), ("output", graph.output), ("value", graph.value_info)):
            _check_types(role, values)
    for function in model.functions:
        _check_types("value", function.value_info)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    fed = {value.name: value for value in model.graph.input}
    for output in model.graph.output:
        if output.name in stored:
            _check_stored(output, stored[output.name])
        elif output.name in fed and not _agree(fed[output.name].type, output.type):
            raise ModelError(
                f"output '{output.name}' is an input too, of another type or shape; export the model again"
            )


def check_counts(model: ModelProto) -> None:
    """Raises ModelError naming a Range of constants, or a Tile by constants, of more than MOST_COUNTED values or copies."""
    stored = {tensor.name: tensor for graph in all_graphs(model) for tensor in graph.initializer}
    for node in all_nodes(model):
        if node.op_type == "Constant" and node.output:
            for one in node.attribute:
                if one.name == "value":
                    stored[node.output[0]] = one.t
                elif one.name in _NUMBERS:
                    stored[node.output[0]] = _tensor(one)
    for node in all_nodes(model):
        says = {"Range": node.input, "Tile": node.input[1:2]}.get(node.op_type, [])
        if not says or any(name not in stored for name in says):
            continue
        constants = [stored[name] for name in says]
        if any(bits_of(one.data_type) is None or math.prod(one.dims) > MOST_AXES for one in constants):
            continue
        try:
            values = [onnx.numpy_helper.to_array(one).astype(float).reshape(-1) for one in constants]
        except (TypeError, ValueError):  # no number is stored: the checker says so
            continue
        if _counted(node.op_type, values) > MOST_COUNTED:
            raise ModelError(
                f"node '{node.name}' ({node.op_type}) makes more than {MOST_COUNTED:,} values or copies of constants; "
                "export the model again"
            )


def _tensor(attribute: onnx.AttributeProto) -> TensorProto:
    """What a Constant stores as numbers."""
    whole = attribute.name.startswith("value_int")
    single = [attribute.i if whole else attribute.f]
    several = list(attribute.ints if whole else attribute.floats)
    values = several if attribute.name.endswith("s") else single
    kind = TensorProto.INT64 if whole else TensorProto.FLOAT
    return onnx.helper.make_tensor("", kind, [len(values)], values)


def _counted(kind: str, values: list[np.ndarray]) -> float:
    """How many values a Range makes, or copies a Tile."""
    if kind == "Tile":
        return float(np.prod(values[0]))
    if len(values) != 3 or any(one.size != 1 for one in values):
        return 0.0
    first, last, step = (float(one[0]) for one in values)
    return abs(last - first) / abs(step) if step else 0.0


def _agree(one: onnx.TypeProto, other: onnx.TypeProto) -> bool:
    """Whether a value may have both types: names of sizes are free, and no shape is any."""
    if not (one.HasField("tensor_type") and other.HasField("tensor_type")):
        return one.WhichOneof("value") == other.WhichOneof("value")
    first, second = one.tensor_type, other.tensor_type
    if first.elem_type != second.elem_type:
        return False
    if not (first.HasField("shape") and second.HasField("shape")):
        return True
    sizes, others = _sizes(first), _sizes(second)
    return len(sizes) == len(others) and all(
        None in (size, found) or size == found for size, found in zip(sizes, others, strict=True)
    )


def _sizes(tensor: onnx.TypeProto.Tensor) -> list[int | None]:
    """None for what is open: a name, nothing, or a negative number."""
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
        for dim in tensor.shape.dim
    ]


def _check_types(role: str, values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        for kind in _element_types(value.type):
            if kind not in _KNOWN:
                raise ModelError(
                    f"{role} '{value.name}' is of an unknown type, {kind}; export the model again"
                )


def _element_types(declared: onnx.TypeProto) -> Iterator[int]:
    """Of tensors, at any depth."""
    pending = [declared]
    while pending:
        one = pending.pop()
        kind = one.WhichOneof("value")
        if kind in ("tensor_type", "sparse_tensor_type"):
            yield getattr(one, kind).elem_type
        elif kind == "map_type":
            yield one.map_type.key_type
            pending.append(one.map_type.value_type)
        elif kind in ("sequence_type", "optional_type"):
            pending.append(getattr(one, kind).elem_type)


def _check_stored(output: onnx.ValueInfoProto, tensor: TensorProto) -> None:
    """A runtime hands out what is stored, whatever is declared."""
    declared = output.type.tensor_type
    dims = _sizes(declared)
    fits = len(dims) == len(tensor.dims) and all(
        wanted in (None, found) for wanted, found in zip(dims, tensor.dims, strict=True)
    )
    if tensor.data_type != declared.elem_type or (declared.HasField("shape") and not fits):
        raise ModelError(
            f"output '{output.name}' is a stored tensor of shape {list(tensor.dims)}, and declared otherwise; "
            "export the model again"
        )
