"""What nodes of opset 7 to 10 are at opset 17: one rule per operator whose attributes, inputs or meaning changed.

| operator | then | now |
|---|---|---|
| Clip, Dropout, Pad, Slice, Squeeze, Unsqueeze, Split, ReduceSum, TopK | bounds, ratio, pads, starts, axes, k are attributes | they are inputs |
| Softmax, LogSoftmax, Hardmax | over all axes from `axis` on, as one | over one axis |
| Upsample, Resize | corners at 0, coordinates rounded down | a choice, spelled out here |
| BatchNormalization | `spatial`, outputs of training | neither |
| Scatter | | ScatterElements |
| RoiAlign | coordinates without half a pixel | a choice, spelled out here |
| Scan | a batch axis of its own (opset 8) | refused |

Source: the changelog of operators, https://github.com/onnx/onnx/blob/main/docs/Changelog.md.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_lathe.errors import ModelError

Rule = Callable[["Rewriter", onnx.NodeProto], list[onnx.NodeProto] | None]
"""The nodes that stand for one; None if it may stay as it is."""


class Rewriter:
    """What rules ask for in one graph: types of its values, unused names, and constants, which it collects."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        opset: int,
        taken: set[str],
        types: Mapping[str, onnx.TypeProto.Tensor],
    ) -> None:
        """`taken` are the names of the whole model."""
        self.opset = opset
        self.types = types
        self.constants: list[TensorProto] = []
        self.done: Counter[str] = Counter()
        """Nodes written anew, by operator."""
        self._graph = graph
        self._taken = taken

    def of_body(self, body: onnx.GraphProto) -> "Rewriter":
        """For a body of a node of this graph: names and counts are the whole model's."""
        inner = Rewriter(body, self.opset, self._taken, self.types)
        inner.done = self.done
        return inner

    def name(self, wanted: str) -> str:
        """A name that nothing has."""
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name

    def constant(self, wanted: str, values: Any, element: int = TensorProto.INT64) -> str:
        """The name of a new initializer."""
        name = self.name(wanted)
        array = np.asarray(values, helper.tensor_dtype_to_np_dtype(element))
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def element(self, name: str) -> int:
        """Element type of a value; float where nothing says it."""
        return self.types[name].elem_type if name in self.types else TensorProto.FLOAT

    def rank(self, name: str) -> int | None:
        kind = self.types.get(name)
        return len(kind.shape.dim) if kind is not None and kind.HasField("shape") else None

    def sizes(self, name: str) -> list[int | None]:
        """Sizes of the axes of a value whose rank is known; None for one that is not."""
        return [dim.dim_value or None for dim in self.types[name].shape.dim]

    def constant_of(self, name: str) -> np.ndarray | None:
        """Value of a constant of this graph."""
        for tensor in self._graph.initializer:
            if tensor.name == name:
                return onnx.numpy_helper.to_array(tensor)
        for node in self._graph.node:
            if node.op_type == "Constant" and name in node.output:
                return onnx.numpy_helper.to_array(node.attribute[0].t)
        return None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _anew(
    node: onnx.NodeProto, op: str, inputs: Sequence[str], keep: Sequence[str] = (), **attributes: Any
) -> onnx.NodeProto:
    """The node as another one of the same name and outputs. `keep` are attributes that stay as they are."""
    made = helper.make_node(op, inputs, list(node.output), name=node.name, **attributes)
    made.attribute.extend(attribute for attribute in node.attribute if attribute.name in keep)
    made.metadata_props.extend(node.metadata_props)
    if node.doc_string:
        made.doc_string = node.doc_string
    return made


def _place(node: onnx.NodeProto) -> str:
    return f"node '{node.name}'" if node.name else f"the {node.op_type} that writes '{node.output[0]}'"


def _base(node: onnx.NodeProto) -> str:
    return node.name or next(name for name in node.output if name)


def _clip(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    found, element = _attributes(node), rewriter.element(node.input[0])
    bounds = [
        rewriter.constant(f"{_base(node)}_{key}", found[key], element) if key in found else ""
        for key in ("min", "max")
    ]
    while bounds and not bounds[-1]:
        bounds.pop()
    return [_anew(node, "Clip", [node.input[0], *bounds])]


def _dropout(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    ratio = rewriter.constant(f"{_base(node)}_ratio", _attributes(node).get("ratio", 0.5), TensorProto.FLOAT)
    return [_anew(node, "Dropout", [node.input[0], ratio])]


def _pad(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    found = _attributes(node)
    inputs = [node.input[0], rewriter.constant(f"{_base(node)}_pads", found["pads"])]
    if found.get("value", 0.0):
        inputs.append(
            rewriter.constant(f"{_base(node)}_value", found["value"], rewriter.element(node.input[0]))
        )
    return [_anew(node, "Pad", inputs, keep=("mode",))]


def _slice(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    if rewriter.opset >= 10:
        return None
    found = _attributes(node)
    axes = found.get("axes", range(len(found["starts"])))
    given = {"starts": found["starts"], "ends": found["ends"], "axes": axes}
    inputs = [rewriter.constant(f"{_base(node)}_{key}", list(values)) for key, values in given.items()]
    return [_anew(node, "Slice", [node.input[0], *inputs])]


def _by_input(key: str) -> Rule:
    """A rule for an operator one of whose attributes, a list of whole numbers, is its second input now."""

    def rule(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        found = _attributes(node)
        if key not in found:
            return None
        inputs = [node.input[0], rewriter.constant(f"{_base(node)}_{key}", found[key])]
        return [_anew(node, node.op_type, inputs, keep=("axis", "keepdims"))]

    return rule


def _top_k(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    if rewriter.opset >= 10:
        return None
    count = rewriter.constant(f"{_base(node)}_k", [_attributes(node)["k"]])
    return [_anew(node, "TopK", [node.input[0], count], keep=("axis",))]


def _softmax(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """One axis if it is the last, or those behind it are of size 1; else flattened, and shaped as before."""
    axis, source = int(_attributes(node).get("axis", 1)), node.input[0]
    rank = rewriter.rank(source)
    if rank is not None:
        axis = axis + rank if axis < 0 else axis
        if axis == rank - 1 or (
            axis < rank and all(size == 1 for size in rewriter.sizes(source)[axis + 1 :])
        ):
            return [_anew(node, node.op_type, [source], axis=axis)]
    base = _base(node)
    shape, flat, found = (rewriter.name(f"{base}_{part}") for part in ("shape", "flat", "flat_result"))
    inner = helper.make_node(node.op_type, [flat], [found], name=rewriter.name(f"{base}_flattened"), axis=-1)
    return [
        helper.make_node("Shape", [source], [shape], name=rewriter.name(f"{base}_Shape")),
        helper.make_node("Flatten", [source], [flat], name=rewriter.name(f"{base}_Flatten"), axis=axis),
        inner,
        _anew(node, "Reshape", [found, shape]),
    ]


def _resize(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Upsample and Resize-10: asymmetric coordinates. ONNX Runtime rounds them up where the size shrinks."""
    found = _attributes(node)
    if "scales" in found:
        values: np.ndarray | None = np.asarray(found["scales"], np.float32)
        scales = rewriter.constant(f"{_base(node)}_scales", values, TensorProto.FLOAT)
    else:
        scales = node.input[1]
        values = rewriter.constant_of(scales)
    mode = found.get("mode", b"nearest").decode()
    shrinks = values is not None and bool((values < 1).any())
    choice = {"nearest_mode": "ceil" if shrinks else "floor"} if mode == "nearest" else {}
    return [
        _anew(
            node,
            "Resize",
            [node.input[0], "", scales],
            mode="linear" if mode == "bilinear" else mode,
            coordinate_transformation_mode="asymmetric",
            **choice,
        )
    ]


def _batch_normalization(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    if not _attributes(node).get("spatial", 1):
        return _normalize_each(rewriter, node)
    if len(node.output) == 1 and "spatial" not in _attributes(node):
        return None
    made = _anew(node, "BatchNormalization", list(node.input), keep=("epsilon", "momentum"))
    del made.output[1:]  # statistics of training, which a network that runs does not have
    return [made]


def _normalize_each(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """With spatial=0 every position has its own scale, bias, mean and variance, of shape [C, ...]."""
    source, scale, bias, mean, variance = node.input
    base, element = _base(node), rewriter.element(source)
    epsilon = rewriter.constant(f"{base}_epsilon", _attributes(node).get("epsilon", 1e-5), element)
    made: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str) -> str:
        output = rewriter.name(f"{base}_{op}")
        made.append(helper.make_node(op, list(inputs), [output], name=rewriter.name(f"{base}_{op}_node")))
        return output

    deviation = add("Sqrt", add("Add", variance, epsilon))
    scaled = add("Mul", add("Div", add("Sub", source, mean), deviation), scale)
    last = _anew(node, "Add", [scaled, bias])
    del last.output[1:]
    return [*made, last]


def _scatter(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [_anew(node, "ScatterElements", list(node.input), keep=("axis",))]


def _roi_align(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    made = _anew(node, "RoiAlign", list(node.input), coordinate_transformation_mode="output_half_pixel")
    made.attribute.extend(node.attribute)
    return [made]


def _scan(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    if rewriter.opset > 8:
        return None
    raise ModelError(
        f"{_place(node)} is a Scan of opset 8, whose batch axis no later Scan has; "
        "export the model again with opset_version=17"
    )


RULES: Mapping[str, Rule] = {
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Dropout": _dropout,
    "Hardmax": _softmax,
    "LogSoftmax": _softmax,
    "Pad": _pad,
    "ReduceSum": _by_input("axes"),
    "Resize": _resize,
    "RoiAlign": _roi_align,
    "Scan": _scan,
    "Scatter": _scatter,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _by_input("split"),
    "Squeeze": _by_input("axes"),
    "TopK": _top_k,
    "Unsqueeze": _by_input("axes"),
    "Upsample": _resize,
}
