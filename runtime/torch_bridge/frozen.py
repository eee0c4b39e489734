"""Nodes that PyTorch does not run, computed by ONNX Runtime: as they are, and without a gradient.

    weights -> ... -> unknown operator -> ... -> layers -> outputs

A weight before such a node would get only the part of its gradient that goes past the node, so it is not
trained; a node that gives no floats has no gradient to lose. What depends on chance, and what does not give
tensors, is refused all the same.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch

from onnx_lathe.errors import LatheError, PassError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.torch_bridge.arrays import FLOATS, HALVES, to_numpy, to_torch
from onnx_lathe.runtime.torch_bridge.registry import RefusedError

_NEVER = [
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Dropout",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "LabelEncoder",
    "RegexFullMatch",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "TfIdfVectorizer",
    "ImageDecoder",
    "Adagrad",
    "Adam",
    "Gradient",
    "Momentum",
]
"""Random numbers, text, optionals, and steps of training."""


@dataclass(frozen=True)
class Frozen:
    """A node that ONNX Runtime computes: its name, why PyTorch does not, and the tensors that it reads."""

    node: str
    op: str
    reads: tuple[str, ...]
    passes_gradient: bool
    """Whether there would be a gradient through it, were it known."""

    @property
    def reason(self) -> str:
        return f"{self.op} runs in ONNX Runtime, without a gradient"


class Kept(NamedTuple):
    """A layer, or other node, that training leaves as it is, and why."""

    node: str
    reason: str


def can_freeze(node: onnx.NodeProto) -> bool:
    """Whether a node that PyTorch does not run may be left to ONNX Runtime."""
    return node.op_type not in _NEVER and not any(
        _has_never(graph) for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)
    )


def _has_never(graph: onnx.GraphProto) -> bool:
    return any(not can_freeze(node) for node in graph.node)


def captured(node: onnx.NodeProto, known: Collection[str]) -> list[str]:
    """Names of the tensors of the main graph that the node's bodies read, beside its inputs."""
    names = dict.fromkeys(
        name
        for attribute in node.attribute
        for graph in (attribute.g, *attribute.graphs)
        for name in _names(graph)
    )
    return [name for name in names if name in known and name not in node.input]


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names(inner)
    yield from (value.name for value in graph.output)


class OnnxRuntimeNode:
    """Called with the values of `names`, the node's inputs and what its bodies read, it gives the node's
    outputs.

    Raises PassError if ONNX Runtime cannot run the node, or gives what PyTorch cannot carry.
    """

    def __init__(
        self, node: onnx.NodeProto, names: Sequence[str], model: onnx.ModelProto, elements: Mapping[str, int]
    ) -> None:
        self.node, self.names = node, names
        self.opsets, self.ir_version = list(model.opset_import), model.ir_version
        self.elements = [elements.get(name, 0) for name in names]
        self.sessions: dict[tuple[Any, ...], Any] = {}
        """By the types of the inputs."""

    def __call__(self, *values: Any) -> Any:
        given = [
            (name, self._array(value, element))
            for name, value, element in zip(self.names, values, self.elements, strict=True)
            if name
        ]
        device = next(
            (
                value.device
                for value in values
                if isinstance(value, torch.Tensor) and value.device.type != "cpu"
            ),
            torch.device("cpu"),
        )
        feeds = dict(given)
        try:
            results = self._session(feeds).run(None, feeds)
            outputs = [_tensor(result, device) for result in results]
        except RefusedError as refusal:
            raise PassError(f"node {self._title} gives {refusal}, which PyTorch cannot carry") from refusal
        except LatheError as error:
            raise PassError(f"node {self._title} has no counterpart in PyTorch, and alone {error}") from error
        except Exception as error:
            message = " ".join(str(error).split())
            raise PassError(f"ONNX Runtime cannot run node {self._title} alone: {message}") from error
        given_outputs = iter(outputs)
        return tuple(next(given_outputs) if name else None for name in self.node.output)

    @property
    def _title(self) -> str:
        return f"'{self.node.name or self.node.output[0]}' ({self.node.op_type})"

    def _array(self, value: Any, element: int) -> Any:
        if isinstance(value, list):
            return [self._array(one, 0) for one in value]
        if value.dtype in HALVES and torch.is_autocast_enabled(value.device.type):
            value = value.float()
        if element:
            return to_numpy(value, onnx.helper.tensor_dtype_to_np_dtype(element))
        if value.dtype == torch.bfloat16:
            return to_numpy(value, onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))
        return value.detach().cpu().contiguous().numpy()

    def _session(self, feeds: Mapping[str, Any]) -> Any:
        types = {name: _typed(name, value) for name, value in feeds.items()}
        key = tuple(value.SerializeToString() for value in types.values())
        if key not in self.sessions:
            graph = onnx.helper.make_graph(
                [self.node], "node", list(types.values()),
                [onnx.ValueInfoProto(name=name) for name in self.node.output if name],
            )  # fmt: skip
            model = onnx.helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version)
            self.sessions[key] = ort.session(model, optimized=False)
        return self.sessions[key]


def _typed(name: str, value: Any) -> onnx.ValueInfoProto:
    if isinstance(value, list):
        element = onnx.helper.np_dtype_to_tensor_dtype(value[0].dtype) if value else onnx.TensorProto.FLOAT
        return onnx.helper.make_tensor_sequence_value_info(name, element, None)
    element = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, element, [None] * value.ndim)


def _tensor(result: Any, device: torch.device) -> Any:
    if isinstance(result, list):
        return [_tensor(one, device) for one in result]
    array = np.asarray(result)
    if array.dtype.kind in "OUS":
        raise RefusedError("text")
    return to_torch(array).to(device)


def gives_floats(node: onnx.NodeProto, elements: Mapping[str, int], opset: int) -> bool:
    """Whether some output may be of floats: neither the model nor the standard says otherwise."""
    return any(
        elements.get(name) in FLOATS if elements.get(name) else _may_be_float(node, place, opset)
        for place, name in enumerate(node.output)
        if name
    )


def _may_be_float(node: onnx.NodeProto, place: int, opset: int) -> bool:
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return True
    outputs = onnx.defs.get_schema(node.op_type, opset, "").outputs
    return any("float" in kind or "double" in kind for kind in outputs[min(place, len(outputs) - 1)].types)
