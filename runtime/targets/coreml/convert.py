"""A lowered model -> a MIL program: walks the graph, and lists what Core ML cannot compute."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.runtime.targets.core.facts import BODIES, SIZE_OPS, gather
from onnx_lathe.runtime.targets.core.further import varying
from onnx_lathe.runtime.targets.core.node import Node, Unsupported, overlooked, view
from onnx_lathe.runtime.targets.coreml.dimensions import spread
from onnx_lathe.runtime.targets.coreml.form import Form
from onnx_lathe.runtime.targets.coreml.image import Image
from onnx_lathe.runtime.targets.coreml.knowledge import INTEGERS
from onnx_lathe.runtime.targets.coreml.names import settle
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.package import builder, library, quiet
from onnx_lathe.runtime.targets.coreml.registry import Builder, find
from onnx_lathe.runtime.targets.coreml.sizes import Sizes
from onnx_lathe.runtime.targets.coreml.weights import Kept

Refusal = tuple[str, str, str]
FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})
TAKEN = FLOATS | INTEGERS | {onnx.TensorProto.BOOL}


@dataclass(frozen=True)
class Port:
    """An input or output of the program. `name`: in Core ML; `element`: ONNX's type; `kind`: float32 or int32, as the
    program has it; `shape`: with None where it is open; `least`, `greatest`: of an input, between which it may be.
    """

    tensor: str
    name: str
    element: int
    kind: str
    shape: Sequence[int | None]
    least: Sequence[int] = ()
    greatest: Sequence[int] = ()


@dataclass(frozen=True)
class Conversion:
    """`refused`: (node, operator, reason) of what Core ML cannot compute; then there is no program. `kept`: constants
    of the program, and what they are to be.
    """

    program: Any
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    refused: Sequence[Refusal]
    kept: Sequence[Kept] = ()


def convert(model: onnx.ModelProto, sizes: Sizes, form: Form, image: Image | None = None) -> Conversion:
    """The program of a model whose inputs have these sizes. `image`: how the picture that it takes becomes its input.

    Raises TargetError where ONNX Runtime cannot run the model at these sizes, or the package is not installed.
    """
    facts = gather(model, sizes.first, sizes.second() if sizes.open else sizes.first)
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)
    made = {name: node for node in model.graph.node for name in node.output if name}
    sparse = frozenset(metadata.read_sparse(model.metadata_props))
    net = Network(facts, made, varying(model, facts), form, sparse)
    inputs = _input_ports(model, net, sizes)
    names = [net.names.new(value.name) for value in model.graph.output]
    library()
    from coremltools.converters.mil.mil import Function, Program

    builder().name_count.clear()  # two builds of one model give its parameters the same names
    program, refused = Program(), _foreign_types(model)
    if refused:
        return Conversion(None, (), (), refused)
    with Function(_placeholders(inputs, sizes), opset_version=form.target()) as function:
        for port in inputs:
            node = Node(port.tensor, "Input", opset, (), (port.tensor,), {}, {})
            _try(refused, node, partial(_take, net, port, function.inputs[port.name], image))
        read = _read(model.graph) | {one.name for one in model.graph.output}
        for index, proto in enumerate(model.graph.node):
            if any(name and name in read and name not in facts.free for name in proto.output):
                node = view(proto, index, opset)
                kept = tuple(name if name in read else "" for name in node.outputs)
                _write(net, refused, proto, replace(node, outputs=kept))
        outputs: list[tuple[Port, Any]] = []
        for value, name in zip(model.graph.output, names, strict=True):
            node = Node(value.name, "Output", opset, (value.name,), (), {}, {})
            _try(refused, node, partial(_give, net, value.name, name, outputs))
        if refused:
            return Conversion(None, (), (), refused)
        function.set_outputs([variable for _, variable in outputs])
    settle(function.operations, {id(one) for one in (*net.own, *(variable for _, variable in outputs))})
    program.add_function("main", function)
    return Conversion(program, inputs, [port for port, _ in outputs], (), net.kept)


def _foreign_types(model: onnx.ModelProto) -> list[Refusal]:
    found = []
    for kind, values in (("Input", model.graph.input), ("Output", model.graph.output)):
        for value in values:
            element = value.type.tensor_type.elem_type
            if not value.type.HasField("tensor_type") or element not in TAKEN:
                named = onnx.TensorProto.DataType.Name(element).lower() if element else "no tensor"
                found.append((value.name, kind, f"it is {named}, which Core ML neither takes nor gives"))
    return found


def _input_ports(model: onnx.ModelProto, net: Network, sizes: Sizes) -> list[Port]:
    found = []
    for value in model.graph.input:
        if value.name in sizes.first:
            least, greatest = sizes.least[value.name], sizes.greatest[value.name]
            shape = [low if low == high else None for low, high in zip(least, greatest, strict=True)]
            element = value.type.tensor_type.elem_type
            kind = "float32" if element in FLOATS else "int32"
            found.append(Port(value.name, net.names.new(value.name), element, kind, shape, least, greatest))
    return found


def _placeholders(inputs: Sequence[Port], sizes: Sizes) -> dict[str, Any]:
    from coremltools.converters.mil.mil import get_new_symbol, types

    symbols: dict[str, Any] = {}
    found = {}
    for port in inputs:
        shape = [
            symbols.setdefault(key, get_new_symbol()) if size is None else size
            for key, size in zip(sizes.keys[port.tensor], port.shape, strict=True)
        ]
        kind = types.fp32 if port.kind == "float32" else types.int32
        found[port.name] = builder().placeholder(shape=shape, dtype=kind)
    return found


def _take(net: Network, port: Port, variable: Any, image: Image | None) -> None:
    """Makes the input the model's tensor, in the program's types."""
    if not port.shape:
        raise Unsupported("it is a single number without dimensions, which Core ML does not take as an input")
    if port.element == onnx.TensorProto.BOOL:
        variable = net.op("not_equal", port.tensor, x=variable, y=np.int32(0))
    elif port.kind == "float32":
        variable = net.cast(variable, net.form.cast, port.tensor)
        if image is not None and image.input == port.tensor:
            variable = _normalized(net, image, variable)
    net.variables[port.tensor] = variable


def _normalized(net: Network, image: Image, variable: Any) -> Any:
    """(pixel - mean) / std, [N, C, H, W]."""
    shape = (1, -1, 1, 1)
    mean = net.stored(f"{image.input}_mean", np.array(image.mean, np.float32).reshape(shape))
    scale = net.stored(f"{image.input}_scale", 1 / np.array(image.std, np.float32).reshape(shape))
    centred = net.op("sub", f"{image.input}_centred", x=variable, y=mean)
    return net.op("mul", f"{image.input}_normalized", x=centred, y=scale)


def _give(net: Network, tensor: str, name: str, outputs: list[tuple[Port, Any]]) -> None:
    net.refuse_varying([tensor])
    spread(net, tensor)
    variable = net.variable(tensor)
    kind = "float32" if net.is_float(variable) else "int32"
    short = {"float32": "fp32", "int32": "int32"}[kind]
    variable = net.cast(variable, short, f"{tensor}_given")
    with quiet():
        variable = builder().identity(x=variable, name=name)
    outputs.append((Port(tensor, name, net.element(tensor), kind, net.sizes(tensor)), variable))


def _read(graph: onnx.GraphProto) -> set[str]:
    """Also what bodies read."""
    found: set[str] = set()
    for node in graph.node:
        found.update(node.input)
        for item in node.attribute:
            if item.type == onnx.AttributeProto.GRAPH:
                found |= _read(item.g) | {value.name for value in item.g.output}
    return found


def _write(net: Network, refused: list[Refusal], proto: onnx.NodeProto, node: Node) -> None:
    known = len(refused)
    builds = find("" if proto.domain == "ai.onnx" else proto.domain, proto.op_type)
    if proto.op_type in BODIES and not proto.domain:
        refused.append((node.name, node.op, "Lathe writes no branches and no loops for Core ML"))
    elif builds is None:
        domain = f" of domain {proto.domain}" if proto.domain else ""
        refused.append((node.name, node.op, f"Core ML, or Lathe for it, has no {node.op}{domain}"))
    else:
        _try(refused, node, partial(_built, net, node, builds))
        if (name := overlooked(node, proto.domain)) and len(refused) == known:
            refused.append(
                (node.name, node.op, f"Lathe does not know what its attribute '{name}' means for Core ML")
            )
    for name in node.outputs if len(refused) > known else ():
        if name and name not in net.variables:
            _pretend(net, name)


def _built(net: Network, node: Node, builds: Builder) -> None:
    net.refuse_varying(node.inputs if node.op not in SIZE_OPS else ())
    for name in node.inputs:
        spread(net, name)
    builds(node, net)


def _try(refused: list[Refusal], node: Node, act: Callable[[], None]) -> None:
    try:
        act()
    except Unsupported as reason:
        refused.append((node.name, node.op, str(reason)))


def _pretend(net: Network, tensor: str) -> None:
    """A variable for what a refused node would write, so that the nodes behind it are looked at too."""
    try:
        shape = net.shape(tensor) or (1,)
        kind = np.int32 if net.is_integer(tensor) else net.form.dtype.type
        if net.element(tensor) == onnx.TensorProto.BOOL:
            kind = np.bool_
        net.variables[tensor] = net.op("fill", tensor, shape=np.array(shape, np.int32), value=kind(0))
    except Unsupported:
        return
