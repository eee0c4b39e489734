"""Element types and shapes of a graph's tensors, inferred afresh: shapes written in a file may be stale and
are not trusted.
"""

from dataclasses import dataclass

import onnx

from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.model import export_model
from onnx_lathe.passes.graph.skeleton import skeleton


@dataclass(frozen=True)
class TensorType:
    """`element` is an onnx.TensorProto type. A dimension of unknown size is its name, or None; `shape` is
    None for unknown rank.
    """

    element: int
    shape: tuple[int | str | None, ...] | None

    @property
    def size(self) -> int | None:
        """Number of elements, if every dimension is known."""
        total = 1
        for dim in self.shape if self.shape is not None else (None,):
            if not isinstance(dim, int):
                return None
            total *= dim
        return total

    @property
    def size_bytes(self) -> int | None:
        size = self.size
        return None if size is None else size * onnx.helper.tensor_dtype_to_np_dtype(self.element).itemsize


def infer_types(graph: Graph, one_sample: bool = False) -> dict[str, TensorType]:
    """Tensor name -> type, of every tensor of the main graph whose type follows from the graph's inputs and
    initializers. one_sample: where the first dimension of an input is open, it is taken to be 1.
    """
    model = skeleton(export_model(graph))
    for node in [one for one in model.graph.node if not any(one.output)]:
        model.graph.node.remove(node)  # taken out by a pass that goes on, and cleared away at its end
    for value in model.graph.input if one_sample else ():
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_value = 1
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    return {
        **{value.name: type_of(value) for value in values if value.type.tensor_type.elem_type},
        **{tensor.name: TensorType(tensor.data_type, tuple(tensor.dims)) for tensor in inferred.initializer},
    }


def type_of(value: onnx.ValueInfoProto) -> TensorType:
    """As it is written there."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return TensorType(tensor.elem_type, None)
    dims = tensor.shape.dim
    return TensorType(
        tensor.elem_type, tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)
    )
