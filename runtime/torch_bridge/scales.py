"""Which scales of QuantizeLinear and DequantizeLinear can be learned: decided by use, like the weights of
`parameters.py`.

| the scale of | learned | condition |
|---|---|---|
| QuantizeLinear -> DequantizeLinear | as a step size (LSQ) | both read this initializer, along one axis; nothing else reads the integers |
| DequantizeLinear of stored integers | as a factor of the weight | |

One initializer may serve several places of one of these kinds. It stays as it is if it has any other use,
is no float, is not positive and finite, or if all its values are powers of two (a device that shifts
instead of multiplying wants those). So do the scales of a layer whose bias is stored in whole numbers:
those count in units of the product of the other two scales.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from onnx_lathe.runtime.torch_bridge.arrays import FLOATS
from onnx_lathe.runtime.torch_bridge.operators.quantization import Pace, largest

_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")
_STANDARD = ("", "ai.onnx")

LEAST = 2.0**-10
"""No scale falls below this share of what it was."""


@dataclass(frozen=True)
class Scales:
    """`steps`: names of scales learned as step sizes; `factors`: of scales learned as factors; `paces`: by
    output of their Q and DQ.
    """

    steps: frozenset[str] = frozenset()
    factors: frozenset[str] = frozenset()
    paces: Mapping[str, Pace] = field(default_factory=dict)


def learnable(graph: onnx.GraphProto) -> Scales:
    """The scales to learn, by the table above."""
    return _Pairs(graph).scales()


class LearnedScale(nn.Module):
    """Called without arguments, it gives the initial scale times 1 + `change`, its Parameter: positive, and
    finite in `dtype`.

    An optimizer whose steps have a length of their own, like AdamW's, so moves scales of all sizes by the
    same share, and weight decay draws them back to where they were. The gradient of a step size's change is
    that of the scale divided by the initial scale: SGD thereby moves the scale as if it were the Parameter,
    as in the paper. That of a factor's is the ordinary one. Where a scale would be out of bounds its
    gradient still passes, so that it can come back.
    """

    initial: Tensor

    def __init__(self, initial: Tensor, dtype: torch.dtype, is_step: bool) -> None:
        super().__init__()
        self.register_buffer("initial", initial)
        self.change = nn.Parameter(torch.zeros_like(initial))
        self.dtype, self.is_step = dtype, is_step

    def forward(self) -> Tensor:
        limits = torch.finfo(self.dtype)
        least = torch.maximum(self.initial * LEAST, self.initial.clamp(max=limits.tiny))
        scale: Tensor = _Rescaled.apply(self.change, self.initial, least, limits.max, self.is_step)
        return scale


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, change: Tensor, initial: Tensor, least: Tensor, most: float, is_step: bool
    ) -> Tensor:
        ctx.save_for_backward(initial)
        ctx.is_step = is_step
        return ((1 + change) * initial).clamp(max=most).maximum(least)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (initial,) = ctx.saved_tensors
        return gradients[0] / initial if ctx.is_step else gradients[0] * initial, None, None, None, None


class _Pairs:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.outputs = {value.name for value in graph.output}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        self.computed = {value.name for value in graph.input} - self.stored.keys()
        """Tensors that depend on the model's input."""
        for node in graph.node:
            for position, name in enumerate(node.input):
                self.readers[name].append((node, position))
            if any(name in self.computed for name in node.input):
                self.computed.update(node.output)
        self.bound = {
            scale for node in graph.node if node.op_type in _WITH_BIAS for scale in self._bound_by_bias(node)
        }

    def scales(self) -> Scales:
        kinds = {name: self._kind(tensor) for name, tensor in self.stored.items() if name in self.readers}
        steps = frozenset(name for name, kind in kinds.items() if kind == "step")
        paces = {node.output[0]: self._pace(node) for name in steps for node, _ in self.readers[name]}
        return Scales(steps, frozenset(name for name, kind in kinds.items() if kind == "factor"), paces)

    def _kind(self, tensor: onnx.TensorProto) -> str | None:
        """What the scale is learned as; None if it is left alone, or no scale."""
        kinds = {self._use(node, position) for node, position in self.readers[tensor.name]}
        if kinds not in ({"step"}, {"factor"}) or tensor.name in self.outputs | self.bound:
            return None
        return kinds.pop() if tensor.data_type in FLOATS and _is_free(tensor) else None

    def _use(self, node: onnx.NodeProto, position: int) -> str | None:
        if position != 1 or node.domain not in _STANDARD:
            return None
        if node.op_type == "QuantizeLinear":
            pairs = [
                self._is_pair(node, reader) for reader, place in self.readers[node.output[0]] if place == 0
            ]
            whole = node.output[0] not in self.outputs and len(pairs) == len(self.readers[node.output[0]])
            return "step" if pairs and all(pairs) and whole else None
        if node.op_type == "DequantizeLinear":
            source = self.producers.get(node.input[0])
            if source is not None and source.op_type == "QuantizeLinear":
                return "step" if self._is_pair(source, node) else None
            return "factor" if self._is_stored(node.input[0]) else None
        return None

    def _is_stored(self, name: str) -> bool:
        """Whether a constant was decoded from initializers without being quantized on the way."""
        node = self.producers.get(name)
        if node is None:
            return name in self.stored
        return (
            node.op_type != "QuantizeLinear"
            and name not in self.computed
            and all(map(self._is_stored, filter(None, node.input)))
        )

    def _bound_by_bias(self, layer: onnx.NodeProto) -> set[str]:
        """The scales of the layer's operands, if its bias is stored as INT32 behind a DequantizeLinear."""
        decoders = [self.producers.get(name) for name in layer.input]
        scales = [None if node is None or node.op_type != "DequantizeLinear" else node for node in decoders]
        bias = scales[2] if len(scales) > 2 else None
        stored = None if bias is None else self.stored.get(bias.input[0])
        if bias is None or (stored is not None and stored.data_type != onnx.TensorProto.INT32):
            return set()
        return {node.input[1] for node in scales if node is not None}

    def _pace(self, node: onnx.NodeProto) -> Pace:
        quantizer = node if node.op_type == "QuantizeLinear" else self.producers[node.input[0]]
        zero = self.stored.get(quantizer.input[2]) if len(quantizer.input) > 2 else None
        element = _attribute(quantizer, "output_dtype", 0) or (0 if zero is None else zero.data_type)
        return Pace(largest(element), node.input[0] in self.computed)

    def _is_pair(self, quantizer: onnx.NodeProto, reader: onnx.NodeProto) -> bool:
        """Whether a reader gives back what the quantizer rounded: one scale, in the same places."""
        scale = self.stored.get(quantizer.input[1])
        places = () if scale is None or math.prod(scale.dims) == 1 else (("axis", 1), ("block_size", 0))
        return (
            reader.op_type == "DequantizeLinear"
            and reader.input[1] == quantizer.input[1]
            and all(
                _attribute(reader, name, default) == _attribute(quantizer, name, default)
                for name, default in places
            )
        )


def _attribute(node: onnx.NodeProto, name: str, default: int) -> Any:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _is_free(tensor: onnx.TensorProto) -> bool:
    values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
    return bool(
        values.size
        and np.isfinite(values).all()
        and (values > 0).all()
        and (np.frexp(values)[0] != 0.5).any()
    )
