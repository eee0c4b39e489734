"""What a user is to know of a network that was written: one line each, or none."""

from collections.abc import Sequence

import onnx

from onnx_lathe.errors import first_few
from onnx_lathe.runtime.targets.core.facts import defaults
from onnx_lathe.runtime.targets.ncnn.dialect import Layer
from onnx_lathe.runtime.targets.ncnn.requantize import is_int8

FITS = 2048 * 2048
"""Weights of a matrix that no longer lies in a processor's cache in float, where INT8 takes no longer (0.4
of float's time, measured on x86); from 64 x 64 to 1024 x 1024 it takes 1.2 to 1.9 times as long.
"""


def about_defaults(graph: onnx.GraphProto) -> str:
    """Of inputs with a default value, which are constants of the network."""
    read = {name for node in graph.node for name in node.input}
    names = [name for name in defaults(graph) if name in read]
    if not names:
        return ""
    return (
        f"{first_few(names)}: an input with a default value is written as a constant, and the network takes no other "
        "value; export it without the default to have it as an input"
    )


def about_slow_matrices(layers: Sequence[Layer], profile: str) -> str:
    """Of INT8 matrix products that x86 computes faster in float; other processors were not measured."""
    if profile != "x86":
        return ""
    slow = [
        layer
        for layer in layers
        if layer.type == "InnerProduct" and is_int8(layer) and layer.weights[0].stored.values.size < FITS
    ]
    if not slow:
        return ""
    names = list(dict.fromkeys(name for layer in slow for name in layer.nodes or (layer.name,)))
    many = f"{len(slow)} matrix product{'s' * (len(slow) > 1)} in INT8"
    return (
        f"{many} ({first_few(names)}) take{'s' * (len(slow) == 1)} 1.2 to 1.9 times float's time on x86, for a quarter of the "
        f"weights' bytes; int8(layers={{{names[0]}: false}}) and the like leave in float what is to be fast"
    )
