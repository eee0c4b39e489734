"""What goes in and out of a .tflite file, as its signature and its tensors say."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.targets.litert.file import IDENTIFIER, SIGNATURE, VERSION
from onnx_lathe.runtime.targets.litert.package import schema

DESCRIPTION = "lathe"
"""Metadata of ours: JSON, in which `ports` has what the model says of each (Port.given)."""


@dataclass(frozen=True)
class Port:
    """An input or output. `place`: of its tensor. `sizes`: None for one that the file leaves open. `scale`, `zero_point`: of
    a stored tensor. `order`: axes of the file's tensor in the order of the model's; empty if that is the same.
    `fixed_batch`: whether its first size is fixed, and a batch that the model has open.
    """

    name: str
    place: int
    type: str
    sizes: tuple[int | None, ...]
    scale: float = 0.0
    zero_point: int = 0
    order: tuple[int, ...] = ()
    fixed_batch: bool = False

    @property
    def model_sizes(self) -> tuple[int | None, ...]:
        """In the order of the model's axes."""
        return tuple(self.sizes[axis] for axis in self.order) if self.order else self.sizes


def ports(content: bytes, what: str) -> tuple[list[Port], list[Port]]:
    """(inputs, outputs), in the order of the file. Raises ModelError for what is no .tflite file; `what`: its name."""
    if content[4:8] != IDENTIFIER:
        raise ModelError(f"{what}: is no .tflite file: its identifier is not {IDENTIFIER.decode()}")
    try:
        return _ports(content, schema())
    except (
        struct.error,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
    ) as error:
        raise ModelError(f"{what}: is a damaged .tflite file, or one without inputs and outputs") from error


def _ports(content: bytes, classes: Any) -> tuple[list[Port], list[Port]]:
    model = classes.Model.GetRootAs(content, 0)
    if model.Version() != VERSION:
        raise ValueError(f"version {model.Version()}")
    graph = model.Subgraphs(0)
    names = _names(model)
    said = described(content)
    orders = {name: tuple(order) for name, order in said.get("orders", {}).items()}
    types = {value: name for name, value in vars(classes.TensorType).items() if not name.startswith("_")}
    inputs, outputs = (
        [_port(graph, int(place), names, types, orders) for place in places]
        for places in (graph.InputsAsNumpy(), graph.OutputsAsNumpy())
    )
    fixed = set(said.get("fixed_batch", ()))
    return (
        [replace(port, fixed_batch=port.name in fixed) for port in inputs],
        [replace(port, fixed_batch=port.name in fixed) for port in outputs],
    )


def _names(model: Any) -> dict[int, str]:
    """Tensor -> its name in the signature."""
    found: dict[int, str] = {}
    for index in range(model.SignatureDefsLength()):
        one = model.SignatureDefs(index)
        if one.SignatureKey() == SIGNATURE.encode() or model.SignatureDefsLength() == 1:
            for entry in (
                *(one.Inputs(place) for place in range(one.InputsLength())),
                *(one.Outputs(place) for place in range(one.OutputsLength())),
            ):
                found[entry.TensorIndex()] = entry.Name().decode()
    return found


def _port(
    graph: Any, place: int, names: dict[int, str], types: dict[int, str], orders: dict[str, tuple[int, ...]]
) -> Port:
    tensor = graph.Tensors(place)
    name = names.get(place) or tensor.Name().decode()
    shape = [] if tensor.ShapeIsNone() or not tensor.ShapeLength() else tensor.ShapeAsNumpy()
    signature = shape if not tensor.ShapeSignatureLength() else tensor.ShapeSignatureAsNumpy()
    sizes = tuple(None if size < 0 else int(size) for size in signature)
    quantization = tensor.Quantization()
    scale, zero = 0.0, 0
    if quantization is not None and quantization.ScaleLength() == 1:
        scale, zero = float(quantization.Scale(0)), int(quantization.ZeroPoint(0))
    order = orders.get(name, ())
    return Port(
        name, place, types[tensor.Type()], sizes, scale, zero, order if len(order) == len(sizes) else ()
    )


def described(content: bytes) -> dict[str, Any]:
    """Our own metadata of a file; empty for one of others."""
    model = schema().Model.GetRootAs(content, 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == DESCRIPTION.encode():
            buffer = model.Buffers(entry.Buffer())
            found = json.loads(bytes(buffer.DataAsNumpy()).decode())
            return found if isinstance(found, dict) else {}
    return {}


def shown(sizes: Sequence[int | None]) -> str:
    return ", ".join("?" if size is None else str(size) for size in sizes)
