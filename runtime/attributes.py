"""Attributes of a node by what they are to be. The builders of the bridge and of ncnn read them."""

from collections.abc import Mapping
from typing import Any


class Attributed:
    """Base of what has the `attributes` of a node, by name, as onnx.helper reads their values."""

    attributes: Mapping[str, Any]

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
