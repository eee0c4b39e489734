"""A node of the model as builders see it, and how they refuse one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx


class Unsupported(Exception):  # noqa: N818 - it is no error of the program: a builder's way to refuse a node
    """Why ncnn cannot compute a node as the model has it."""


@dataclass(frozen=True)
class Node:
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

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def integers(self, name: str) -> list[int] | None:
        """None if the attribute is absent."""
        value = self.attributes.get(name)
        return None if value is None else [int(item) for item in value]


def node_name(proto: onnx.NodeProto, index: int) -> str:
    """The name, or one by the node's place."""
    return proto.name or f"{proto.op_type}_{index}"


def view(proto: onnx.NodeProto, index: int, opset: int) -> Node:
    return Node(
        node_name(proto, index),
        proto.op_type,
        opset,
        tuple(proto.input),
        tuple(proto.output),
        {item.name: onnx.helper.get_attribute_value(item) for item in proto.attribute},
        {entry.key: entry.value for entry in proto.metadata_props},
    )
