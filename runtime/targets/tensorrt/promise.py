"""What the check promises of a lowered model's layers, and how much of the network each of them is."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from onnx_lathe.macs import macs_of
from onnx_lathe.runtime.targets.core.base import layers_of
from onnx_lathe.runtime.targets.tensorrt.check import QUANTIZERS, verdicts
from onnx_lathe.runtime.targets.tensorrt.dimensions import Shape
from onnx_lathe.runtime.targets.tensorrt.tensor_shapes import computed, inferred


@dataclass(frozen=True)
class Promise:
    """One layer. `name`: how reports call it; `known_as`: what TensorRT calls it; `int8`, `reason`: the check's
    verdict; `macs`: at the sizes that the engine is tuned for, None where they are not known.
    """

    name: str
    op: str
    known_as: str
    int8: bool
    reason: str
    macs: int | None


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether there is anything to promise."""
    return any(node.op_type in QUANTIZERS and not node.domain for node in model.graph.node)


def promises(
    model: onnx.ModelProto, sizes: Mapping[str, Shape], in_float: str | None = None
) -> list[Promise]:
    """One per layer of the main graph, in graph order. sizes: of the inputs that are not fixed; in_float: why the
    engine has no INT8 at all.
    """
    layers = list(layers_of(model).values())
    shapes = inferred(model, sizes)
    unknown = [node for node in layers if not isinstance(macs_of(node, shapes), int)]
    if unknown:
        wanted = dict.fromkeys(name for node in unknown for name in (*node.input[:2], node.output[0]))
        shapes |= computed(model, sizes, list(wanted))
    found = []
    of_main = verdicts(model, in_float)[: len(layers)]  # those of bodies come behind
    for node, verdict in zip(layers, of_main, strict=True):
        macs = macs_of(node, shapes)
        found.append(
            Promise(
                verdict.node,
                verdict.op,
                node.name
                or f"node_of_{node.output[0]}",  # what TensorRT's parser makes of a node without a name
                verdict.int8,
                verdict.reason,
                macs if isinstance(macs, int) else None,
            )
        )
    return found
