"""What a user is to know of a network that was written: one line each, or none."""

import onnx

from onnx_lathe.errors import first_few
from onnx_lathe.runtime.targets.ncnn.facts import defaults


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
