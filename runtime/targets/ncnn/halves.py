"""Whether activations fit into float16, in which ncnn computes on ARM where the processor has it: beyond 65504, a value
becomes infinite there, and what is computed of it is lost.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.runtime.running import ort

LARGEST = float(np.finfo(np.float16).max)
MARGIN = 2.0
"""Other samples reach further than the one that was looked at; and a sum passes larger values than it ends in."""
FIRST = 3
"""So many nodes are named."""
CHUNK_BYTES = 256 << 20
"""Of activations that are kept at once, as far as their sizes are known; those that are not count as one value."""


def beyond_half(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[tuple[str, float]]:
    """(node, largest magnitude) of the first nodes whose floats go beyond float16's largest value over `MARGIN`. `feeds`:
    one sample. What lies in bodies, and initializers, are not looked at.

    Raises ModelError if ONNX Runtime does not run the model.
    """
    found: list[tuple[str, float]] = []
    made = {name: node.name or name for node in model.graph.node for name in node.output if name}
    shaped = _with_shapes(model, feeds)
    for names in _chunks(shaped, list(made)):
        values = ort.run(ort.session(_giving(shaped, names)), feeds)
        for name in names:
            largest = _largest(values.get(name))
            if largest > LARGEST / MARGIN:
                found.append((made[name], largest))
        if len(found) >= FIRST:
            break
    return found[:FIRST]


def _largest(value: np.ndarray | None) -> float:
    """Of its finite and infinite values; 0 for what holds no floats."""
    if value is None or not np.issubdtype(value.dtype, np.floating) or not value.size:
        return 0.0
    magnitude = np.abs(value)
    return float(np.fmax.reduce(magnitude, axis=None, initial=0.0))  # NaN is no larger than others


def _with_shapes(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy whose inputs have the sizes of the feeds, and whose tensors have theirs, as far as they can be told."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        if value.name in feeds:
            element = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, element, feeds[value.name].shape))
    del copy.graph.value_info[:]
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")  # they are declared for other sizes, perhaps
    try:
        return onnx.shape_inference.infer_shapes(copy)
    except (onnx.shape_inference.InferenceError, ValueError):  # ValueError: more than protobuf holds
        return copy


def _chunks(model: onnx.ModelProto, names: Sequence[str]) -> Iterator[list[str]]:
    """In the order of the nodes."""
    sizes = {
        value.name: _bytes(value)
        for value in (*model.graph.value_info, *model.graph.output, *model.graph.input)
    }
    chunk: list[str] = []
    total = 0
    for name in names:
        size = sizes.get(name, 1)
        if chunk and total + size > CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(name)
        total += size
    if chunk:
        yield chunk


def _bytes(value: onnx.ValueInfoProto) -> int:
    sizes = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    return 4 * int(np.prod(sizes, dtype=np.int64))


def _giving(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these tensors as its outputs; ONNX Runtime finds their types."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    del copy.graph.output[:]
    copy.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    return copy
