"""A node of the model as builders see it, and how they refuse one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx

from onnx_lathe.runtime.attributes import Attributed

NO_MATTER = frozenset(
    {
        "kernel_shape",
        "to",
        "hidden_size",
        "momentum",
        "consumed_inputs",
        "storage_order",
        "is_test",
        "seed",
        "allowzero",
        "num_outputs",
        "saturate",
    }
)
"""Attributes that say again what weights, shapes and types do, or that count in training alone."""


class Unsupported(Exception):  # noqa: N818 - it is no error of the program: a builder's way to refuse a node
    """Why a runtime cannot compute a node as the model has it."""


class Attributes(dict[str, Any]):
    """Of one node; `read` has the names of those that a builder looked at."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)

    def items(self) -> Any:
        self.read.update(self)
        return super().items()


@dataclass(frozen=True)
class Node(Attributed):
    """One node of the model. An optional input that is left out has an empty name."""

    name: str
    op: str
    opset: int
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Any]
    metadata: Mapping[str, str]

    def given(self, position: int) -> bool:
        return position < len(self.inputs) and bool(self.inputs[position])


def node_name(proto: onnx.NodeProto, index: int) -> str:
    """The name, or one by the node's place."""
    return proto.name or f"{proto.op_type}_{index}"


def overlooked(node: Node, domain: str) -> str | None:
    """An attribute that says something else than its default, and that nobody has read: the operator may be another
    one than was written.
    """
    if not isinstance(node.attributes, Attributes):
        return None
    defaults = _defaults(node.op, node.opset, domain)
    read = frozenset(node.attributes.read)
    for name, value in node.attributes.items():
        if name not in read and name not in NO_MATTER and value != defaults.get(name):
            return name
    return None


@cache
def _defaults(op: str, opset: int, domain: str) -> Mapping[str, Any]:
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    return {
        name: onnx.helper.get_attribute_value(item.default_value)
        for name, item in schema.attributes.items()
        if item.default_value.name
    }


def view(proto: onnx.NodeProto, index: int, opset: int) -> Node:
    return Node(
        node_name(proto, index),
        proto.op_type,
        opset,
        tuple(proto.input),
        tuple(proto.output),
        Attributes({item.name: onnx.helper.get_attribute_value(item) for item in proto.attribute}),
        {entry.key: entry.value for entry in proto.metadata_props},
    )
