"""What the description of a network says beside its inputs and outputs, as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnx_lathe.kernels import NAMES, PROFILES
from onnx_lathe.metadata import CONV_ALGORITHM
from onnx_lathe.runtime.targets.ncnn.dialect import Layer
from onnx_lathe.runtime.targets.ncnn.requantize import is_int8

KERNEL, DILATION, STRIDE = (1, 11), (2, 12), (3, 13)
OUTPUTS, WEIGHTS = 0, 6
MASK, HINT = 31, 30
"""What a layer is not to use, of which 64 is Winograd, and 1 arithmetic in half; the sizes that it is told (src/layer.cpp, layer/convolution)."""
NO_HALF_ARITHMETIC, NO_WINOGRAD = 1, 64
TAPS = 3


@dataclass(frozen=True)
class Chosen:
    """A convolution that ncnn can compute in more than one way. `algorithm`: the one written down; None leaves it to
    ncnn, whose `own` choice it is then. `node`: its name in the model.
    """

    node: str
    layer: str
    bottom: str
    top: str
    inputs: int
    outputs: int
    int8: bool
    own: str
    algorithm: str | None

    def as_json(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "layer": self.layer,
            "channels": [self.inputs, self.outputs],
            "int8": self.int8,
            "own": self.own,
            "algorithm": self.algorithm,
        }


def convolutions(layers: Sequence[Layer], model: onnx.ModelProto, profile: str) -> list[Chosen]:
    """Those of 3 x 3 with stride and dilation 1, which Winograd's algorithms are for, that a Conv of the model has
    become; other nodes are written as Convolution, too.
    """
    said, known = _said(model), {node.name for node in model.graph.node if node.op_type == "Conv"}
    found = []
    for layer in layers:
        params = layer.params
        outputs, weights = params.get(OUTPUTS), params.get(WEIGHTS)
        if layer.type != "Convolution" or not isinstance(outputs, int) or not isinstance(weights, int):
            continue
        steps = {params.get(key, 1) for key in (*DILATION, *STRIDE)}
        if {params.get(key) for key in KERNEL} != {TAPS} or steps != {1}:
            continue
        if _masked(layer, NO_HALF_ARITHMETIC):  # direct, for its error: no time outweighs that
            continue
        node = next((name for name in layer.nodes if name and name in known), None)
        if node is None:
            continue
        inputs = weights // (outputs * TAPS * TAPS)
        found.append(
            Chosen(
                node,
                layer.name,
                layer.bottoms[0],
                layer.tops[0],
                inputs,
                outputs,
                is_int8(layer),
                _own(profile, inputs, outputs, is_int8(layer)),
                _written(layer, said.get(node)),
            )
        )
    return found


def _own(profile: str, inputs: int, outputs: int, int8: bool) -> str:
    return NAMES[PROFILES[profile].own(inputs, outputs, int8)]


def _written(layer: Layer, said: str | None) -> str | None:
    if _masked(layer, NO_WINOGRAD):
        return "direct"
    return said if HINT in layer.params else None


def _masked(layer: Layer, bit: int) -> bool:
    mask = layer.params.get(MASK, 0)
    return isinstance(mask, int) and bool(mask & bit)


def _said(model: onnx.ModelProto) -> Mapping[str, str]:
    """By node, what `lathe.conv_algorithm` chooses."""
    return {
        node.name: entry.value
        for node in model.graph.node
        for entry in node.metadata_props
        if entry.key == CONV_ALGORITHM
    }
