"""Layers with weights: Conv, ConvTranspose, Gemm and MatMul, and where each weight comes from.

`weights(everywhere=True)` also gives the weights that are stored in less space, and computed with as before:
W and R of LSTM, GRU and RNN, and the table of an embedding (Gather by indices that are computed).

The float tensor that a layer reads keeps its name when a pass changes how it is stored: a codebook weight's
Gather writes the tensor that was the initializer. So `lathe.sparse` and per-layer options go on naming the
same thing.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.bodies import parts
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.keeping import is_optional_input
from onnx_lathe.passes.graph.model import FOUR_BIT

WEIGHT_INPUT = 1
LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RECURRENT_OPS = ("GRU", "LSTM", "RNN")
RECURRENT_INPUTS = (1, 2)
"""W [directions, gates * H, I] and R [directions, gates * H, H]."""
STRIP_FIRST = "int8(existing=strip) gives the float layer back"
NOT_CONSTANT = "its weight is computed at run time"
_WITH_WEIGHTS = {
    "Gather": "its table is an embedding",
    "Einsum": "its constant is an operand of an Einsum",
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "its weights are those of a recurrent layer"),
}
OPTIONAL = (
    "its weight is an input of the model too, so a caller may feed another one; "
    "--drop-optional-inputs makes a weight of it"
)


_INTEGER = (
    *("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "MatMulIntegerToFloat", "QGemm", "QAttention"),
    *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
)
INTEGER_LAYERS = (
    *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QAttention", "DynamicQuantizeMatMul"),
    *("DynamicQuantizeLSTM", "QLinearConv", "QLinearMatMul"),
)
_INTEGER_DOMAINS = (None, "", "ai.onnx", "com.microsoft")


def is_integer(node: Node) -> bool:
    """Whether the node computes on quantized integers, in the form of the standard or of ONNX Runtime."""
    named = node.op in _INTEGER or node.op.startswith("QLinear")
    return named and node.domain in _INTEGER_DOMAINS


@dataclass
class Weight:
    """One weight tensor and every layer that reads it.

    `tensor` is what the layers read, `axis` its output-channel axis (of the first layer's view), `opset`
    that of the graph, `place` a body of If, Loop or Scan that one of the layers is in, such as
    "then_branch of If_3", or nothing; `output_of` what has the tensor as an output, "model" or such a body.
    """

    tensor: Tensor
    nodes: list[Node]
    axis: int
    opset: int
    place: str = ""
    output_of: str = ""

    @property
    def name(self) -> str:
        return str(self.tensor.name)

    @property
    def is_initializer(self) -> bool:
        return isinstance(self.tensor, Constant)


def is_layer(node: Node) -> bool:
    return node.op in LAYER_OPS and not node.domain and len(node.inputs) > WEIGHT_INPUT


def output_axis(node: Node, rank: int) -> int:
    """Output-channel axis of the layer's weight: Conv [O, I, ...] 0, ConvTranspose [I, O, ...] 1, Gemm by
    transB, MatMul last; the rows of gates of a recurrent layer 1, those of an embedding's table 0.
    """
    if node.op in ("Conv", "Gather") or (node.op == "Gemm" and node.attrs.get("transB", 0)):
        return 0
    return rank - 1 if node.op == "MatMul" else 1


def is_recurrent(node: Node) -> bool:
    return node.op in RECURRENT_OPS and not node.domain and len(node.inputs) > max(RECURRENT_INPUTS)


def is_embedding(node: Node) -> bool:
    """Whether the node looks rows of a stored float table [rows, size] up, which ones being computed."""
    if node.op != "Gather" or node.domain or node.attrs.get("axis", 0) != 0:
        return False
    table, indices = node.inputs
    if is_constant(indices, UNFOLDED) or not is_constant(table):
        return False
    return table.dtype in (np.float32, np.float16) and table.shape is not None and len(table.shape) == 2


def weight_inputs(node: Node, everywhere: bool = False) -> tuple[int, ...]:
    """Which inputs of the node are weights, none if it is no layer; `everywhere` as for `weights`."""
    if is_layer(node):
        return (WEIGHT_INPUT,)
    if everywhere and is_recurrent(node):
        return RECURRENT_INPUTS
    return (0,) if everywhere and is_embedding(node) else ()


def weights(
    graph: Graph,
    refuse: Callable[[str, str], None],
    halves: bool = False,
    bodies: bool = False,
    everywhere: bool = False,
    filled: bool = False,
) -> Iterator[Weight]:
    """Every float32 weight that is constant (initializer, or decoded from initializers), once, in graph
    order; float16 ones if `halves`; those of layers inside bodies of If, Loop and Scan if `bodies`; those of
    recurrent layers and embeddings if `everywhere`; those that `FILLERS` write if `filled`.

    `refuse(node name, reason)` is called for each layer whose weight cannot be used. A MatMul of two
    activations is not a layer.
    """
    found: dict[str, Weight] = {}
    whole = parts(graph)
    ends = {id(tensor): part.place or "model" for part in reversed(whole) for tensor in part.graph.outputs}
    for part in whole:
        for node in part.graph.nodes:
            if node.op in INTEGER_LAYERS and is_integer(node):
                advice = "" if node.op == "QAttention" else f"; {STRIP_FIRST}"
                refuse(node.name, f"{node.op} computes on integers{advice}")
            positions = weight_inputs(node, everywhere)
            if not positions and (reason := _other_weight(node)):
                refuse(node.name, reason)
            for position in positions:
                tensor = node.inputs[position]
                if tensor.name in found and (bodies or not part.place):
                    found[tensor.name].nodes.append(node)
                    found[tensor.name].place = found[tensor.name].place or part.place
                    continue
                decoders = (*_DECODERS, *FILLERS) if filled else _DECODERS
                reason = _unusable(node, position, halves, decoders) or _uncomputable(tensor, graph.opset)
                if reason is None and part.place and not bodies:
                    refuse(
                        node.name, f"it is in the {part.place}, and this pass changes no layer inside a body"
                    )
                elif reason is None:
                    shape = tensor.shape if tensor.shape is not None else constant_shape(tensor, graph.opset)
                    axis = output_axis(node, len(shape))
                    found[tensor.name] = Weight(
                        tensor, [node], axis, graph.opset, part.place, ends.get(id(tensor), "")
                    )
                elif node.op != "MatMul" or reason != NOT_CONSTANT:
                    refuse(node.name, reason)
    yield from found.values()


def layers_inside(graph: Graph) -> dict[str, list[str]]:
    """Each body of If, Loop or Scan that has layers with constant weights -> the names of these."""
    found: dict[str, list[str]] = {}
    for part in parts(graph)[1:]:
        for node in part.graph.nodes:
            if is_layer(node) and is_constant(node.inputs[WEIGHT_INPUT], UNFOLDED):
                found.setdefault(part.place, []).append(node.name)
    return found


def is_stored_only(weight: Weight) -> bool:
    """Whether a layer of the weight is one that `weights` gives `everywhere` alone: no runtime computes with
    another form of its weight than float.
    """
    return not all(is_layer(node) for node in weight.nodes)


def other_use(graph: Graph, weight: Weight) -> str | None:
    """Why a changed weight would change more than its layers: it is an output of the model, or another node
    reads it too.
    """
    if any(weight.tensor is output for output in graph.outputs):
        return "its weight is an output of the model"
    if weight.output_of:
        return f"its weight is an output of the {weight.output_of}"
    known = {id(node) for node in weight.nodes}
    other = next((node for node in weight.tensor.outputs if id(node) not in known), None)
    return None if other is None else f"its weight is also read by {other.name or other.op}"


def _other_weight(node: Node) -> str | None:
    """What constant of an operator that is no layer here would be a weight elsewhere."""
    if node.domain or node.op not in _WITH_WEIGHTS or is_constant(node.outputs[0]):
        return None
    # what a layer reads, too, is refused or compressed there
    own = [tensor for tensor in node.inputs if not any(map(is_layer, tensor.outputs))]
    leaves = [leaf for t in own if not t.is_empty() and is_constant(t) for leaf in stored_in(t)]
    # a recurrent layer has weights, be they computed of constants by more than decoders
    large = node.op in RECURRENT_OPS or any(
        leaf.dtype in (np.float32, np.float16) and len(leaf.shape) > 1 for leaf in leaves
    )
    return f"{_WITH_WEIGHTS[node.op]}, which this pass does not change" if large else None


def _unusable(node: Node, position: int, halves: bool, decoders: Collection[str]) -> str | None:
    tensor = node.inputs[position]
    if not is_constant(tensor, decoders):
        if is_constant(tensor, UNFOLDED):
            return "its weight is a Constant node; fold first"
        if node.op == "MatMul" and is_constant(node.inputs[0], UNFOLDED):
            return "its weight is the left operand"
        if is_constant(tensor, (*_DECODERS, *FILLERS)):
            return f"its weight is written by {tensor.inputs[0].op} from fewer numbers than it has"
        return OPTIONAL if is_optional_input(tensor) else NOT_CONSTANT
    if isinstance(tensor, Constant):
        if tensor.dtype != np.float32 and not (halves and tensor.dtype == np.float16):
            return f"its weight is {tensor.dtype}, not float32"
        if len(tensor.shape) < 2:
            return "its weight is a vector"
        if 0 in tensor.shape:
            return "its weight is empty"
    return None


def _uncomputable(tensor: Tensor, opset: int) -> str | None:
    """Why a decoded weight cannot be decoded here; a codebook of known shape is not tried, to save the
    time.
    """
    if isinstance(tensor, Constant) or (tensor.shape is not None and codebook_of(tensor) is not None):
        return None
    from onnx_lathe.passes.graph.evaluate import REFUSALS

    try:
        constant_value(tensor, opset)
    except REFUSALS as error:
        return f"its weight cannot be computed: {' '.join(str(error).split())}"
    return None


# Operators through which a stored weight is decoded; each is a pure function of constants in the canonical
# forms.
_DECODERS = (
    "Gather",
    "Cast",
    "Concat",
    "Reshape",
    "Transpose",
    "Identity",
    "DequantizeLinear",
    "QuantizeLinear",
    "Unsqueeze",
    "Squeeze",
)
UNFOLDED = (*_DECODERS, "Constant")
FILLERS = ("ConstantOfShape", "Expand", "Tile")
"""Operators that repeat a few stored numbers, and that fold leaves as they are for the bytes that this saves."""


def is_constant(tensor: Tensor, decoders: Collection[str] = _DECODERS) -> bool:
    """Whether the tensor is an initializer or decoded from initializers by `decoders`, the operators of the
    canonical forms.
    """
    if isinstance(tensor, Constant):
        return True
    if not tensor.inputs or tensor.inputs[0].op not in decoders or tensor.inputs[0].domain:
        return False
    return all(is_constant(source, decoders) for source in tensor.inputs[0].inputs if not source.is_empty())


def stored_in(tensor: Tensor) -> list[Constant]:
    """The initializers that a constant tensor is decoded from (itself, if it is one)."""
    if isinstance(tensor, Constant):
        return [tensor]
    return [leaf for source in tensor.inputs[0].inputs if not source.is_empty() for leaf in stored_in(source)]


def constant_value(tensor: Tensor, opset: int) -> np.ndarray:
    """The decoded values of a tensor for which `is_constant` holds, at the graph's opset. As with `read`,
    do not write into them.

    Raises one of evaluate.REFUSALS if the reference implementation cannot decode it.
    """
    if isinstance(tensor, Constant):
        return read(tensor)
    from onnx_lathe.passes.graph.evaluate import evaluate

    node = tensor.inputs[0]
    if node.op == "Constant" and isinstance(node.attrs.get("value"), Constant):
        return read(node.attrs["value"])
    values = evaluate(
        node, [None if source.is_empty() else constant_value(source, opset) for source in node.inputs], opset
    )
    return values[next(index for index, output in enumerate(node.outputs) if output is tensor)]


def zeros_of(tensor: Tensor, opset: int) -> tuple[int, tuple[int, ...]]:
    """How many of the decoded values of a constant tensor are zero, and its shape."""
    codes = codebook_of(tensor)
    if codes is None:
        value = constant_value(tensor, opset)
        return value.size - int(np.count_nonzero(value)), tuple(value.shape)
    codebook, indices = codes
    zero = np.flatnonzero(codebook == 0)
    return sum(int(np.count_nonzero(indices == code)) for code in zero), tuple(indices.shape)


def codebook_of(tensor: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
    """Codebook [K] and indices (shaped like the weight) of a tensor in the codebook form; None for any
    other tensor.

    Groups of channels with a codebook each (a Concat of such tensors) come as one long codebook. A
    quantization of the decoded weight (QuantizeLinear -> DequantizeLinear) is looked through: it keeps
    zeros zero.
    """
    while (
        tensor.inputs
        and tensor.inputs[0].op in ("DequantizeLinear", "QuantizeLinear", "Reshape")
        and is_constant(tensor)
    ):
        tensor = tensor.inputs[0].inputs[0]
    if tensor.inputs and tensor.inputs[0].op == "Concat":
        parts = [codebook_of(source) for source in tensor.inputs[0].inputs]
        return (
            None
            if None in parts
            else _joined([part for part in parts if part is not None], tensor.inputs[0].attrs["axis"])
        )
    if not tensor.inputs or tensor.inputs[0].op != "Gather":
        return None
    codebook, indices = tensor.inputs[0].inputs
    if indices.inputs and indices.inputs[0].op == "Cast":
        indices = indices.inputs[0].inputs[0]
    if not isinstance(codebook, Constant) or not isinstance(indices, Constant) or len(codebook.shape) != 1:
        return None
    return read(codebook), read(indices)


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]], axis: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.cumsum([0, *(codebook.size for codebook, _ in parts)])
    indices = [index.astype(np.int32) + offset for (_, index), offset in zip(parts, first[:-1], strict=True)]
    return np.concatenate([codebook for codebook, _ in parts]), np.concatenate(indices, axis)


def constant_shape(tensor: Tensor, opset: int) -> tuple[int, ...]:
    return tuple(constant_value(tensor, opset).shape)


def not_float(tensor: Tensor, pass_name: str) -> str | None:
    """Why a pass on float32 initializers must leave this constant weight alone; None if it is such an
    initializer.
    """
    if isinstance(tensor, Constant):
        return None
    if codebook_of(tensor) is not None:
        return f"its weight is stored as a codebook; {pass_name} before codebook"
    producer = tensor.inputs[0]
    while producer.op == "Reshape" and producer.inputs[0].inputs:
        producer = producer.inputs[0].inputs[0]
    if producer.op == "DequantizeLinear":
        stored = stored_in(tensor)[0].dtype
        maker = "int4" if stored in FOUR_BIT else "int8"
        return f"its weight is stored as {stored}{' already' if pass_name == maker else f'; {pass_name} before {maker}'}"
    return f"its weight is computed by {tensor.inputs[0].op}; fold before {pass_name}"
